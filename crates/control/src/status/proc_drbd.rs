//! The text of `/proc/drbd` (status spec 2).

use udrbd_units::{ConnectionState, DiskState, Role};

use super::words::{blocks_kib, kib};
use super::{DeviceSnapshot, NodeSnapshot, ResourceSnapshot, progress};

/// The version of DRBD whose behaviour this is; programs choose their dialect by it.
pub const DRBD_VERSION: &str = "8.4.11";
/// The first line of `/proc/drbd`: version, configuration interface, range of wire protocols.
pub const VERSION_LINE: &str = "version: 8.4.11 (api:1/proto:86-101)";

/// The text of the status file. `build` names the build; the kernel has a hash of its sources there.
///
/// There are exactly two header lines: readers skip that many.
pub fn proc_drbd(node: &NodeSnapshot, build: &str) -> String {
    let mut text = format!("{VERSION_LINE}\nsrcversion: {build:<24}\n");
    let mut devices: Vec<_> = node
        .resources
        .iter()
        .flat_map(|resource| resource.devices.iter().map(move |device| (resource, device)))
        .collect();
    devices.sort_by_key(|(_, device)| device.minor);
    let mut expected_minor = 0;
    for (resource, device) in devices {
        if device.minor.0 != expected_minor {
            text.push('\n');
        }
        expected_minor = device.minor.0 + 1;
        text.push_str(&device_lines(resource, device));
    }
    text
}

fn device_lines(resource: &ResourceSnapshot, device: &DeviceSnapshot) -> String {
    let unconfigured = device.connection == ConnectionState::StandAlone
        && device.disk == DiskState::Diskless
        && device.role == Role::Secondary;
    if unconfigured {
        return format!("{:2}: cs:Unconfigured\n", device.minor);
    }
    format!("{}{}{}", state_line(resource, device), counter_line(resource, device), progress::lines(device))
}

fn state_line(resource: &ResourceSnapshot, device: &DeviceSnapshot) -> String {
    let protocol = resource.connection.options.as_ref().map_or(" ", |options| options.protocol.name());
    let flag = |on: bool, letter: char| if on { letter } else { '-' };
    let paused = device.resync_paused;
    format!(
        "{:2}: cs:{} ro:{}/{} ds:{}/{} {protocol} {}{}{}{}-{}\n",
        device.minor,
        device.connection,
        device.role,
        device.peer_role,
        device.disk,
        device.peer_disk,
        if resource.suspended.any() { 's' } else { 'r' },
        flag(paused.dependency, 'a'),
        flag(paused.peer, 'p'),
        flag(paused.user, 'u'),
        flag(device.activity_log_suspended, 's'),
    )
}

fn counter_line(resource: &ResourceSnapshot, device: &DeviceSnapshot) -> String {
    let counters = &device.counters;
    format!(
        "    ns:{} nr:{} dw:{} dr:{} al:{} bm:0 lo:{} pe:{} ua:{} ap:{} ep:{} wo:{} oos:{}\n",
        kib(counters.sent_sectors),
        kib(counters.received_sectors),
        kib(counters.written_sectors),
        kib(counters.read_sectors),
        counters.activity_log_writes,
        counters.local_pending,
        counters.peer_pending + counters.resync_pending,
        counters.unacknowledged,
        counters.application_pending,
        resource.connection.epochs,
        resource.write_ordering.letter(),
        blocks_kib(counters.out_of_sync_blocks),
    )
}
