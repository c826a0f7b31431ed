//! Handing options down, and turning names into what helper programs take (configuration spec 10).

use crate::diagnostics::{Diagnostics, Stop};
use crate::model::{Configuration, OptionEntry, find_option};
use crate::resolve::find_by_name;

/// Hands options from `common` to the resources and from there to the volumes, and names every device.
///
/// An inherited option goes in front of those already there, so inherited options end up in reverse order.
pub fn expand(configuration: &mut Configuration) {
    for resource in &mut configuration.resources {
        for volume in resource.hosts.iter_mut().flat_map(|host| &mut host.volumes) {
            let minor = volume.minor_or_unknown();
            volume.device.get_or_insert_with(|| format!("/dev/drbd{minor}"));
        }
    }
    inherit_from_common(configuration);
    for resource in &mut configuration.resources {
        for host in &mut resource.hosts {
            for volume in &mut host.volumes {
                inherit(&resource.disk, &mut volume.disk_options);
            }
            if let Some(proxy) = &mut host.proxy {
                inherit(&resource.proxy, &mut proxy.options);
                inherit(&resource.proxy_plugins, &mut proxy.plugins);
            }
        }
        // Later than the resource's own options, which therefore win.
        for volume in &resource.volumes {
            for host in &mut resource.hosts {
                let same = host.volumes.iter_mut().find(|other| other.number == volume.number);
                if let Some(host_volume) = same {
                    inherit(&volume.disk_options, &mut host_volume.disk_options);
                }
            }
        }
    }
}

fn inherit_from_common(configuration: &mut Configuration) {
    let Some(common) = &configuration.common else { return };
    for resource in &mut configuration.resources {
        inherit(&common.net, &mut resource.net);
        inherit(&common.disk, &mut resource.disk);
        inherit(&common.startup, &mut resource.startup);
        inherit(&common.proxy, &mut resource.proxy);
        inherit(&common.handlers, &mut resource.handlers);
        inherit(&common.options, &mut resource.options);
        resource.stacked_timeouts |= common.stacked_timeouts;
        if resource.become_primary_on.is_empty() {
            resource.become_primary_on.clone_from(&common.become_primary_on);
        }
        if resource.proxy_plugins.is_empty() {
            inherit(&common.proxy_plugins, &mut resource.proxy_plugins);
        }
    }
}

/// Puts every option whose name is not there yet in front, one after the other.
fn inherit(from: &[OptionEntry], to: &mut Vec<OptionEntry>) {
    for option in from {
        if find_option(to, &option.name).is_none() {
            to.insert(0, option.clone());
        }
    }
}

/// Turns the resource names in `resync-after` of one resource's volumes into minor numbers.
///
/// A name that is not known is a fault on a terminal only; a script's command goes on without the option, so
/// that a stale reference stops no cluster.
///
/// # Errors
/// A volume number that is no number.
pub fn convert_resync_after(
    configuration: &mut Configuration,
    diagnostics: &mut Diagnostics,
    has_terminal: bool,
    index: usize,
) -> Result<(), Stop> {
    for host in 0..configuration.resources[index].hosts.len() {
        for volume in 0..configuration.resources[index].hosts[host].volumes.len() {
            let options = configuration.resources[index].hosts[host].volumes[volume].disk_options.clone();
            let converted = convert_list(configuration, diagnostics, has_terminal, index, options)?;
            configuration.resources[index].hosts[host].volumes[volume].disk_options = converted;
        }
    }
    Ok(())
}

fn convert_list(
    configuration: &Configuration,
    diagnostics: &mut Diagnostics,
    has_terminal: bool,
    index: usize,
    options: Vec<OptionEntry>,
) -> Result<Vec<OptionEntry>, Stop> {
    let resource = &configuration.resources[index];
    let place = format!("{}:{}: in resource {}", resource.file, resource.line, resource.name);
    let mut converted = Vec::with_capacity(options.len());
    let mut options = options.into_iter();
    while let Some(mut option) = options.next() {
        if option.name != "resync-after" {
            converted.push(option);
            continue;
        }
        let text = option.text().to_owned();
        let target = match find_by_name(configuration, &text) {
            Ok(target) => target,
            Err(error) => return Err(diagnostics.stop_number(&error)),
        };
        let volumes = target.map_or(&[][..], |target| configuration.resources[target.resource].own_volumes());
        let volume = match target.and_then(|target| target.volume) {
            Some(volume) => volumes.get(volume),
            None if volumes.len() > 1 => {
                diagnostics.fault(format!(
                    "{place}:\n\tresync-after contains '{text}', which is ambiguous, since it contains {} \
                     volumes\n",
                    volumes.len()
                ));
                converted.push(option);
                converted.extend(options);
                return Ok(converted);
            }
            None => volumes.first(),
        };
        if let Some(volume) = volume {
            option.value = Some(volume.minor_or_unknown().to_string());
            converted.push(option);
            continue;
        }
        let on_this_host = if target.is_some() { " on this host" } else { "" };
        let message = format!(
            "{place}:\n\tresource '{text}' mentioned in 'resync-after' option is not known{on_this_host}.\n"
        );
        if has_terminal {
            diagnostics.fault(message);
            converted.push(option);
        } else {
            diagnostics.warn(message);
        }
    }
    Ok(converted)
}

/// Turns `after-sb-0pri discard-node-NAME` into `discard-local` on that node and `discard-remote` elsewhere.
pub fn convert_discard_node(configuration: &mut Configuration, node_name: &str, index: usize) {
    let options = &mut configuration.resources[index].net;
    let Some(option) = options.iter_mut().find(|option| option.name == "after-sb-0pri") else { return };
    if let Some(name) = option.text().strip_prefix("discard-node-") {
        let side = if name == node_name { "discard-local" } else { "discard-remote" };
        option.value = Some(side.to_owned());
    }
}
