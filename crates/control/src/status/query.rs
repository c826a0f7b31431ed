//! The one-line queries and `sh-status` (status spec 3.1, 3.3).

use udrbd_units::{ConnectionState, DiskState, Minor, Role, VolumeNumber};

use super::{DeviceSnapshot, NodeSnapshot, ResourceSnapshot, progress};

/// What `role`, `cstate` and `dstate` print for a device that is StandAlone and Diskless.
pub const UNCONFIGURED: &str = "Unconfigured";

/// `drbdsetup role`, without newline.
pub fn role_line(device: &DeviceSnapshot) -> String {
    if device.is_unconfigured() {
        return UNCONFIGURED.to_owned();
    }
    format!("{}/{}", device.role, device.peer_role)
}

/// `drbdsetup cstate`, without newline.
pub fn cstate_line(device: &DeviceSnapshot) -> String {
    if device.is_unconfigured() {
        return UNCONFIGURED.to_owned();
    }
    device.connection.to_string()
}

/// `drbdsetup dstate`, without newline.
pub fn dstate_line(device: &DeviceSnapshot) -> String {
    if device.is_unconfigured() {
        return UNCONFIGURED.to_owned();
    }
    format!("{}/{}", device.disk, device.peer_disk)
}

/// `sh-status` of everything: one block per volume, in the order of the resources.
pub fn sh_status_all(node: &NodeSnapshot) -> String {
    node.resources.iter().map(sh_status_resource).collect()
}

/// `sh-status` of a resource: one block per volume, or one that says there is none.
pub fn sh_status_resource(resource: &ResourceSnapshot) -> String {
    if resource.devices.is_empty() {
        let escaped = shell_escape(&resource.name);
        // The minor of no device is all ones there.
        return header(u32::MAX, &escaped, None) + &unconfigured(false);
    }
    resource.devices.iter().map(|device| sh_status_device(resource, device)).collect()
}

/// `sh-status` of a minor, which need not exist.
pub fn sh_status_minor(node: &NodeSnapshot, minor: Minor) -> String {
    match node.device_by_minor(minor) {
        Some((resource, device)) => sh_status_device(resource, device),
        None => header(minor.0, "", None) + &unconfigured(false),
    }
}

fn sh_status_device(resource: &ResourceSnapshot, device: &DeviceSnapshot) -> String {
    let start = header(device.minor.0, &shell_escape(&resource.name), Some(device.volume));
    let is_unconfigured = device.connection == ConnectionState::StandAlone
        && device.disk == DiskState::Diskless
        && device.role != Role::Primary;
    start + &if is_unconfigured { unconfigured(true) } else { configured(resource, device) }
}

fn header(minor: u32, escaped_name: &str, volume: Option<VolumeNumber>) -> String {
    let volume = volume.map_or_else(|| "-1".to_owned(), |volume| volume.to_string());
    format!("_minor={minor}\n_res_name={escaped_name}\n_volume={volume}\n")
}

const END: &str = "\n_sh_status_process\n\n\n";

fn unconfigured(exists: bool) -> String {
    let known = if exists { UNCONFIGURED } else { "NA # not available or not yet created" };
    format!(
        "_known={known}\n\n_cstate={UNCONFIGURED}\n_role=\n_peer=\n_disk=\n_pdsk=\n_flags_susp=\n\
         _flags_aftr_isp=\n_flags_peer_isp=\n_flags_user_isp=\n_resynced_percent=\n{END}"
    )
}

fn configured(resource: &ResourceSnapshot, device: &DeviceSnapshot) -> String {
    let flag = |on: bool| if on { "1" } else { "" };
    let paused = device.resync_paused;
    let in_progress = device.connection.is_syncing();
    let percent = match &device.progress {
        Some(progress) if in_progress => {
            let per_mille = progress::resynced_per_mille(device, progress);
            format!("{}.{}", per_mille / 10, per_mille % 10)
        }
        _ => String::new(),
    };
    format!(
        "_known=Configured\n\n_cstate={}\n_role={}\n_peer={}\n_disk={}\n_pdsk={}\n\n_flags_susp={}\n\
         _flags_aftr_isp={}\n_flags_peer_isp={}\n_flags_user_isp={}\n\n_resynced_percent={percent}\n{END}",
        device.connection,
        device.role,
        device.peer_role,
        device.disk,
        device.peer_disk,
        flag(resource.suspended.user),
        flag(paused.dependency),
        flag(paused.peer),
        flag(paused.user),
    )
}

/// The text with a backslash before everything the shell might take for something else (command line spec 1).
pub fn shell_escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        let plain = character.is_ascii_alphanumeric() || "%+-./:=@_".contains(character);
        if !plain {
            escaped.push('\\');
        }
        escaped.push(character);
    }
    escaped
}
