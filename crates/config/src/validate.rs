//! Checks of whole resources, after the parse (configuration spec 13, DRBD's `validate_resource`).

use crate::diagnostics::{Diagnostics, Stop};
use crate::expand::{convert_discard_node, convert_resync_after};
use crate::model::{Configuration, Host, Resource, find_option, joined_names};
use crate::resolve::{Node, PeerChoice, select_peer};

/// Validates every resource; with `convert`, also turns names into what helper programs take.
///
/// # Errors
/// The first resource with a fault; the diagnostics say which.
pub fn validate(
    configuration: &mut Configuration,
    diagnostics: &mut Diagnostics,
    node: &dyn Node,
    choice: PeerChoice<'_>,
    match_on_proxy: bool,
    convert: bool,
) -> Result<(), Stop> {
    for index in 0..configuration.resources.len() {
        check_resync_after(configuration, diagnostics, node.has_terminal(), match_on_proxy, index);
        validate_resource(&mut configuration.resources[index], diagnostics, node.name(), choice);
        if !diagnostics.is_valid() {
            return Err(Stop::CONFIG_INVALID);
        }
        if convert {
            convert_resync_after(configuration, diagnostics, node.has_terminal(), index)?;
            convert_discard_node(configuration, node.name(), index);
        }
        if !diagnostics.is_valid() {
            return Err(Stop::CONFIG_INVALID);
        }
    }
    Ok(())
}

/// The resources that `resync-after` of the resource's own disk options names must be known.
fn check_resync_after(
    configuration: &mut Configuration,
    diagnostics: &mut Diagnostics,
    has_terminal: bool,
    match_on_proxy: bool,
    index: usize,
) {
    let resource = &configuration.resources[index];
    let mut kept = Vec::with_capacity(resource.disk.len());
    for option in &resource.disk {
        let text = option.text();
        let name = text.split_once('/').map_or(text, |(name, _)| name);
        let target = configuration.resources.iter().find(|other| other.name == name);
        if option.name != "resync-after" || target.is_some_and(|target| !target.ignored || match_on_proxy) {
            kept.push(option.clone());
            continue;
        }
        let on_this_host = if target.is_some() { " on this host" } else { "" };
        let message = format!(
            "{}:{}: in resource {}:\n\tresource '{text}' mentioned in 'resync-after' option is not \
             known{on_this_host}.\n",
            resource.file, resource.line, resource.name
        );
        if has_terminal {
            diagnostics.fault(message);
            kept.push(option.clone());
        } else {
            diagnostics.warn(message);
        }
    }
    configuration.resources[index].disk = kept;
}

fn validate_resource(
    resource: &mut Resource,
    diagnostics: &mut Diagnostics,
    node_name: &str,
    choice: PeerChoice<'_>,
) {
    if resource.ignored {
        return;
    }
    let place = format!("{}:{}: in resource {}", resource.file, resource.line, resource.name);
    check_discard_node(resource, diagnostics, &place);
    let both = resource.become_primary_on.iter().any(|name| name == "both");
    if both && find_option(&resource.net, "allow-two-primaries").is_none() {
        diagnostics.fault(format!(
            "{place}:\nbecome-primary-on is set to both, but allow-two-primaries is not set.\n"
        ));
    }
    if resource.peer.is_none() {
        select_peer(resource, diagnostics, node_name, choice, false);
    }
    let (Some(own), Some(peer)) = (resource.own_host(), resource.peer_host()) else { return };
    if own.proxy.is_none() != peer.proxy.is_none() {
        diagnostics.fault(format!(
            "{place}:\n\tEither both 'on' sections must contain a proxy subsection, or none.\n"
        ));
    }
    for name in &resource.become_primary_on {
        if name != "both" && !is_named(own, name) && !is_named(peer, name) {
            diagnostics.fault(format!(
                "{place}:\n\tbecome-primary-on contains '{name}', which is not named with the 'on' \
                 sections.\n"
            ));
        }
    }
}

fn check_discard_node(resource: &Resource, diagnostics: &mut Diagnostics, place: &str) {
    let (Some(own), Some(peer)) = (resource.own_host(), resource.peer_host()) else { return };
    let Some(option) = find_option(&resource.net, "after-sb-0pri") else { return };
    let Some(name) = option.text().strip_prefix("discard-node-") else { return };
    if !is_named(own, name) && !is_named(peer, name) {
        diagnostics.fault(format!(
            "{place}:\n\tthe nodename in the '{}' option is not known.\n\tvalid nodenames are: '{} {}'.\n",
            option.text(),
            joined_names(&own.names),
            joined_names(&peer.names)
        ));
    }
}

fn is_named(host: &Host, name: &str) -> bool {
    host.names.iter().any(|other| other == name)
}
