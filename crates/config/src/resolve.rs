//! This node's section, the peer's, and what stacked resources stand on (configuration spec 11 and 12).

use crate::diagnostics::{Diagnostics, Stop};
use crate::model::{Address, Configuration, Host, HostKind, Resource, Volume, joined_names};
use crate::number::{NumberError, Unit, parse_number};
use crate::parser::{compare_volume_sets, is_loopback};

/// The name DRBD gives the own section in what `drbdsetup show` prints.
const THIS_HOST: &str = "_this_host";

/// What the node is, as far as a configuration depends on it.
pub trait Node {
    /// The node name: `uname -n` or what stands in for it.
    fn name(&self) -> &str;

    /// Whether the address is configured on an interface of the node.
    fn has_address(&self, address: &Address) -> bool;

    /// Whether standard input and output are a terminal. Without one a stale `resync-after` is no reason to stop.
    fn has_terminal(&self) -> bool;
}

/// Which peer to choose, and how much to say about it.
#[derive(Debug, Clone, Copy, Default)]
pub struct PeerChoice<'a> {
    /// The value of `--peer`.
    pub name: Option<&'a str>,
    /// Say so where the choice has no effect.
    pub remark: bool,
}

/// Finds the own section of every resource and completes stacked sections (DRBD's `post_parse`).
///
/// With `match_on_proxy` the own section is the one whose proxy runs on this node.
///
/// # Errors
/// A device or address that a stacked section uses is in use elsewhere; the diagnostics say where.
pub fn resolve(
    configuration: &mut Configuration,
    diagnostics: &mut Diagnostics,
    node: &dyn Node,
    match_on_proxy: bool,
) -> Result<(), Stop> {
    let count = configuration.resources.len();
    for index in 0..count {
        if configuration.resources[index].has_stacked_section {
            bind_stacked_sections(configuration, diagnostics, index)?;
        }
    }
    for stacked in [false, true] {
        for index in 0..count {
            if configuration.resources[index].has_stacked_section == stacked {
                set_own_section(configuration, diagnostics, node, match_on_proxy, index);
            }
        }
    }
    for index in 0..count {
        let resource = &configuration.resources[index];
        if resource.has_stacked_section && !resource.ignored {
            set_stacked_disks(configuration, diagnostics, node.has_terminal(), index);
        }
    }
    Ok(())
}

/// Finds own and peer section in what `drbdsetup show` says.
pub fn resolve_shown(resource: &mut Resource) {
    resource.own = resource.hosts.iter().rposition(|host| host.names.iter().any(|name| name == THIS_HOST));
    resource.ignored = resource.own.is_none();
    if let (Some(own), 2) = (resource.own, resource.hosts.len()) {
        resource.peer = Some(1 - own);
    }
}

/// Gives stacked sections the names of the nodes they can be on.
fn bind_stacked_sections(
    configuration: &mut Configuration,
    diagnostics: &mut Diagnostics,
    index: usize,
) -> Result<(), Stop> {
    for host_index in 0..configuration.resources[index].hosts.len() {
        let resource = &configuration.resources[index];
        let host = &resource.hosts[host_index];
        let HostKind::Stacked { lower_name, .. } = &host.kind else { continue };
        let Some(lower) = configuration.resources.iter().position(|other| other.name == *lower_name) else {
            diagnostics.fault(format!(
                "{}:{}: in resource {}, referenced resource '{lower_name}' not defined.\n",
                resource.file, resource.line, resource.name
            ));
            continue;
        };
        let mut names = Vec::new();
        for lower_host in &configuration.resources[lower].hosts {
            if matches!(lower_host.kind, HostKind::Stacked { .. }) {
                continue;
            }
            names.extend(lower_host.names.iter().cloned());
            for name in &lower_host.names {
                check_stacked_devices(diagnostics, name, &host.volumes)?;
            }
        }
        if let Some(address) = host.address.as_ref().filter(|address| is_loopback(&address.address)) {
            for name in &names {
                diagnostics.unique("IP", format!("{name}:{}:{}", address.address, address.port))?;
            }
        }
        let host = &mut configuration.resources[index].hosts[host_index];
        host.names = names;
        if let HostKind::Stacked { lower: bound, .. } = &mut host.kind {
            *bound = Some(lower);
        }
    }
    Ok(())
}

fn check_stacked_devices(diagnostics: &mut Diagnostics, name: &str, volumes: &[Volume]) -> Result<(), Stop> {
    for volume in volumes {
        diagnostics.unique("device-minor", format!("device-minor:{name}:{}", volume.minor_or_unknown()))?;
    }
    for device in volumes.iter().filter_map(|volume| volume.device.as_ref()) {
        diagnostics.unique("device", format!("device:{name}:{device}"))?;
    }
    Ok(())
}

fn set_own_section(
    configuration: &mut Configuration,
    diagnostics: &mut Diagnostics,
    node: &dyn Node,
    match_on_proxy: bool,
    index: usize,
) {
    let resource = &configuration.resources[index];
    let mut own: Option<usize> = None;
    for (host_index, host) in resource.hosts.iter().enumerate() {
        if !is_own(configuration, host, node, match_on_proxy) {
            continue;
        }
        if let Some(first) = own {
            let first = section_title(configuration, &resource.hosts[first]);
            let second = section_title(configuration, host);
            diagnostics.fault(format!(
                "{}:{}: in resource {}, {first} {{ ... }} ... {second} {{ ... }}:\n\
                 \tThere are multiple host sections for this node.\n",
                resource.file, host.line, resource.name
            ));
        }
        own = Some(host_index);
    }
    let resource = &mut configuration.resources[index];
    resource.own = own;
    resource.ignored = own.is_none();
    resource.stacked =
        resource.hosts.iter().enumerate().any(|(i, host)| Some(i) == own && host.lower().is_some());
}

fn is_own(configuration: &Configuration, host: &Host, node: &dyn Node, match_on_proxy: bool) -> bool {
    let is_named = |names: &[String]| names.iter().any(|name| name == node.name());
    if match_on_proxy {
        return host.proxy.as_ref().is_some_and(|proxy| is_named(&proxy.names));
    }
    match &host.kind {
        HostKind::Floating => host
            .address
            .as_ref()
            .is_some_and(|address| node.has_address(address) || address.address == node.name()),
        HostKind::Stacked { lower, .. } => {
            lower.and_then(|lower| configuration.resources[lower].own).is_some()
        }
        HostKind::On => is_named(&host.names) || host.names.first().is_some_and(|name| name == THIS_HOST),
    }
}

/// `on NAMES` or `stacked-on-top-of NAME`.
fn section_title(configuration: &Configuration, host: &Host) -> String {
    match host.lower() {
        Some(lower) => format!("stacked-on-top-of {}", configuration.resources[lower].name),
        None => format!("on {}", joined_names(&host.names)),
    }
}

/// The disks of a stacked section are the devices of the lower resource.
fn set_stacked_disks(
    configuration: &mut Configuration,
    diagnostics: &mut Diagnostics,
    has_terminal: bool,
    index: usize,
) {
    for host_index in 0..configuration.resources[index].hosts.len() {
        let resource = &configuration.resources[index];
        let host = &resource.hosts[host_index];
        let Some(lower) = host.lower().map(|lower| &configuration.resources[lower]) else { continue };
        let Some(lower_host) = lower.own_host().filter(|_| !lower.ignored) else { continue };
        let told = Some((lower.name.as_str(), has_terminal));
        compare_volume_sets(diagnostics, &resource.name, host, lower_host, told);
        if !diagnostics.is_valid() {
            continue;
        }
        let lower_volumes = lower_host.volumes.clone();
        for volume in &mut configuration.resources[index].hosts[host_index].volumes {
            let Some(below) = lower_volumes.iter().find(|below| below.number == volume.number) else {
                continue;
            };
            volume.disk = Some(
                below.device.clone().unwrap_or_else(|| format!("/dev/drbd{}", below.minor_or_unknown())),
            );
            volume.meta_disk.get_or_insert_with(|| "internal".to_owned());
            volume.meta_index.get_or_insert_with(|| "internal".to_owned());
        }
    }
}

/// Finds the peer's section (DRBD's `set_peer_in_resource`).
///
/// With two sections it is the other one. With more, the choice decides; without a choice there is no peer,
/// which is a fault if one is `required`.
pub fn select_peer(
    resource: &mut Resource,
    diagnostics: &mut Diagnostics,
    node_name: &str,
    choice: PeerChoice<'_>,
    required: bool,
) {
    let (Some(own), false) = (resource.own, resource.ignored) else { return };
    let place = format!("{}:{}: in resource {}", resource.file, resource.line, resource.name);
    if resource.hosts.len() < 2 {
        if required {
            diagnostics.fault(format!("{place}:\n\tMissing section 'on <PEER> {{ ... }}'.\n"));
        }
        return;
    }
    if resource.hosts.len() == 2 {
        resource.peer = Some(1 - own);
        if let Some(name) = choice.name.filter(|_| choice.remark) {
            diagnostics
                .warn(format!("{place}:\n\tIgnoring --peer '{name}': there are only two host sections.\n"));
        }
        return;
    }
    let Some(name) = choice.name else {
        if required {
            diagnostics.fault(format!(
                "{place}:\n\tThere are multiple host sections for the peer node.\n\
                 \tUse the --peer option to select which peer section to use.\n"
            ));
        }
        return;
    };
    let mut complained = false;
    for (index, host) in resource.hosts.iter().enumerate() {
        if !is_chosen(host, name, node_name) {
            continue;
        }
        let complaint = if index == own {
            format!("{place}\n\tInvoked with --peer '{name}', but that matches myself!\n")
        } else if resource.peer.is_some() {
            format!("{place}:\n\tInvoked with --peer '{name}', but that matches multiple times!\n")
        } else {
            resource.peer = Some(index);
            continue;
        };
        diagnostics.warn(complaint);
        resource.peer = None;
        complained = true;
        break;
    }
    if !required || resource.peer.is_some() {
        return;
    }
    if complained {
        diagnostics.invalidate();
    } else {
        diagnostics
            .fault(format!("{place}:\n\tNo host ('on' or 'floating') section matches --peer '{name}'\n"));
    }
}

fn is_chosen(host: &Host, choice: &str, node_name: &str) -> bool {
    if host.is_floating() && host.address.as_ref().is_none_or(|address| address.address != choice) {
        return false;
    }
    let elsewhere =
        host.proxy.as_ref().is_some_and(|proxy| !proxy.names.iter().any(|name| name == node_name));
    !elsewhere && host.names.iter().any(|name| name == choice)
}

/// What a name on the command line or in `resync-after` stands for: a resource and perhaps one volume of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// The resource, as an index.
    pub resource: usize,
    /// The volume, as an index into those of the own section.
    pub volume: Option<usize>,
}

/// Looks `RESOURCE` or `RESOURCE/VOLUME` up among the resources that are not ignored.
///
/// # Errors
/// What stands behind the slash is no number.
pub fn find_by_name(configuration: &Configuration, id: &str) -> Result<Option<Target>, NumberError> {
    let (name, volume) = match id.split_once('/') {
        Some((name, volume)) => (name, Some(parse_number(volume, Unit::One)?)),
        None => (id, None),
    };
    let found =
        configuration.resources.iter().position(|resource| !resource.ignored && resource.name == name);
    let Some(resource) = found else { return Ok(None) };
    let Some(number) = volume else { return Ok(Some(Target { resource, volume: None })) };
    let volumes = configuration.resources[resource].own_volumes();
    let position = volumes.iter().position(|volume| u64::from(volume.number) == number);
    Ok(position.map(|volume| Target { resource, volume: Some(volume) }))
}

/// Looks `minor-N` up.
///
/// # Errors
/// What stands behind the dash is no number.
pub fn find_by_minor(configuration: &Configuration, id: &str) -> Result<Option<Target>, NumberError> {
    let Some(minor) = id.strip_prefix("minor-") else { return Ok(None) };
    let minor = parse_number(minor, Unit::One)?;
    for (resource, entry) in configuration.resources.iter().enumerate() {
        let volumes = entry.own_volumes();
        let found = volumes.iter().position(|volume| volume.minor.is_some_and(|own| u64::from(own) == minor));
        if let (Some(volume), false) = (found, entry.ignored) {
            return Ok(Some(Target { resource, volume: Some(volume) }));
        }
    }
    Ok(None)
}
