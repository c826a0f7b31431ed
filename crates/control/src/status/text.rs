//! `drbdsetup status` (status spec 4).

use udrbd_units::{ConnectionState, DiskState, Role};

use super::words::{blocks_kib, connection_word, kib, replication_word, yes_no};
use super::wrap::Wrapper;
use super::{DeviceSnapshot, NodeSnapshot, ResourceSnapshot};

/// How `drbdsetup status` prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatusStyle {
    /// `--verbose`: everything, not only what is not as usual.
    pub verbose: bool,
    /// `--statistics`: counters.
    pub statistics: bool,
    /// Whether words are coloured.
    pub color: bool,
    /// The columns of the terminal.
    pub width: usize,
}

impl Default for StatusStyle {
    fn default() -> Self {
        Self { verbose: false, statistics: false, color: false, width: 80 }
    }
}

/// The status of the resources, sorted by name, each followed by an empty line.
pub fn status_text(node: &NodeSnapshot, style: StatusStyle) -> String {
    let mut resources: Vec<&ResourceSnapshot> = node.resources.iter().collect();
    resources.sort_by(|one, other| one.name.cmp(&other.name));
    let mut printer = Printer { out: Wrapper::new(style.width), style };
    for resource in resources {
        printer.resource(resource);
        let single = matches!(resource.devices.as_slice(), [device] if device.volume.0 == 0);
        for device in &resource.devices {
            printer.device(resource, device, single);
        }
        printer.connection(resource, single);
        printer.out.put(0, "\n");
    }
    printer.out.finish()
}

struct Printer {
    out: Wrapper,
    style: StatusStyle,
}

/// Whose state a word is: the local set of colours is bold.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Local,
    Peer,
}

impl Printer {
    fn colored(&self, word: &str, code: Option<&str>) -> String {
        match code {
            Some(code) if self.style.color => format!("\x1b[{code}m{word}\x1b[0m"),
            _ => word.to_owned(),
        }
    }

    fn role(&self, role: Role, side: Side) -> String {
        let code = match (role, side) {
            (Role::Primary, Side::Local) => Some("1;36"),
            (Role::Primary, Side::Peer) => Some("36"),
            (Role::Unknown, Side::Local) => Some("1"),
            _ => None,
        };
        self.colored(role.name(), code)
    }

    fn disk(&self, disk: DiskState, side: Side) -> String {
        let code = match (disk, side) {
            (DiskState::UpToDate, Side::Local) => Some("1;32"),
            (DiskState::UpToDate, Side::Peer) => Some("32"),
            (DiskState::Diskless | DiskState::Inconsistent | DiskState::Outdated, Side::Local) => {
                Some("1;31")
            }
            (DiskState::Diskless | DiskState::Inconsistent | DiskState::Outdated, Side::Peer) => Some("31"),
            (_, Side::Local) => Some("1"),
            _ => None,
        };
        self.colored(disk.name(), code)
    }

    fn connection_state(&self, state: ConnectionState) -> String {
        let code = match state {
            ConnectionState::StandAlone | ConnectionState::WFConnection => Some("1;31"),
            state if state >= ConnectionState::WFReportParams => None,
            _ => Some("1"),
        };
        self.colored(connection_word(state), code)
    }

    fn replication_state(&self, state: ConnectionState) -> String {
        let code = match state {
            ConnectionState::SyncTarget | ConnectionState::PausedSyncT => Some("1;31"),
            ConnectionState::SyncSource => Some("31"),
            ConnectionState::Behind => Some("1"),
            _ => None,
        };
        self.colored(replication_word(state), code)
    }

    fn resource(&mut self, resource: &ResourceSnapshot) {
        let StatusStyle { verbose, statistics, .. } = self.style;
        self.out.put(0, &resource.name);
        let role = self.role(resource.role(), Side::Local);
        self.out.put(4, &format!(" role:{role}"));
        if verbose || resource.suspended.any() {
            self.out.put(4, &format!(" suspended:{}", resource.suspended.words()));
        }
        if verbose && statistics {
            self.out.put(4, "\n");
            self.out.put(4, &format!(" write-ordering:{}", resource.write_ordering.word()));
        }
        self.out.put(0, "\n");
    }

    fn device(&mut self, resource: &ResourceSnapshot, device: &DeviceSnapshot, single: bool) {
        let StatusStyle { verbose, statistics, .. } = self.style;
        let mut indent = 2;
        if verbose || !single {
            self.out.put(indent, &format!("volume:{}", device.volume));
            indent = 6;
            if verbose {
                self.out.put(indent, &format!(" minor:{}", device.minor));
            }
        }
        let disk = self.disk(device.disk, Side::Local);
        self.out.put(indent, &format!(" disk:{disk}"));
        let indent = 6;
        if statistics {
            self.out.put(indent, "\n");
            self.device_statistics(indent, device);
        }
        let blocked = is_upper_blocked(resource, device);
        if verbose || blocked {
            self.out.put(indent, &format!(" blocked:{}", blocked_word(blocked)));
        }
        self.out.put(indent, "\n");
    }

    fn device_statistics(&mut self, indent: usize, device: &DeviceSnapshot) {
        let verbose = self.style.verbose;
        let counters = &device.counters;
        if verbose {
            self.out.put(indent, &format!(" size:{}", kib(device.size_sectors)));
        }
        self.out.put(indent, &format!(" read:{}", kib(counters.read_sectors)));
        self.out.put(indent, &format!(" written:{}", kib(counters.written_sectors)));
        if verbose {
            self.out.put(indent, &format!(" al-writes:{}", counters.activity_log_writes));
            self.out.put(indent, " bm-writes:0");
            self.out.put(indent, &format!(" upper-pending:{}", counters.application_pending));
            self.out.put(indent, &format!(" lower-pending:{}", counters.local_pending));
            self.out.put(indent, &format!(" al-suspended:{}", yes_no(device.activity_log_suspended)));
        }
    }

    fn connection(&mut self, resource: &ResourceSnapshot, single: bool) {
        let connection = &resource.connection;
        if connection.addresses.is_none() {
            return;
        }
        let StatusStyle { verbose, statistics, .. } = self.style;
        let connected = connection.state >= ConnectionState::WFReportParams;
        self.out.put(2, "peer");
        if verbose || !connected {
            let state = self.connection_state(connection.state);
            self.out.put(6, &format!(" connection:{state}"));
        }
        if verbose || connected {
            let role = self.role(resource.peer_role(), Side::Peer);
            self.out.put(6, &format!(" role:{role}"));
        }
        if verbose || connection.congested {
            self.out.put(6, &format!(" congested:{}", yes_no(connection.congested)));
        }
        self.out.put(0, "\n");
        if verbose || statistics || connected {
            for device in &resource.devices {
                self.peer_device(device, single);
            }
        }
    }

    fn peer_device(&mut self, device: &DeviceSnapshot, single: bool) {
        let StatusStyle { verbose, statistics, .. } = self.style;
        let state = device.connection;
        let mut indent = 4;
        if verbose || !single {
            self.out.put(indent, &format!("volume:{}", device.volume));
            indent = 8;
        }
        let replicating = state > ConnectionState::WFReportParams;
        if verbose || replicating {
            let word = self.replication_state(state);
            self.out.put(indent, &format!(" replication:{word}"));
            indent = 8;
        }
        if verbose || statistics || replicating || device.peer_disk != DiskState::Unknown {
            self.peer_disk(indent, device);
        }
        self.out.put(0, "\n");
    }

    fn peer_disk(&mut self, indent: usize, device: &DeviceSnapshot) {
        let StatusStyle { verbose, statistics, .. } = self.style;
        let disk = self.disk(device.peer_disk, Side::Peer);
        self.out.put(indent, &format!(" peer-disk:{disk}"));
        let indent = 8;
        if device.connection.is_syncing() {
            self.out.put(indent, &format!(" done:{:.2}", done_percent(device)));
        }
        let paused = device.resync_paused.words();
        if verbose || paused != "no" {
            self.out.put(indent, &format!(" resync-suspended:{paused}"));
        }
        if statistics {
            self.out.put(indent, "\n");
            self.peer_device_statistics(indent, device);
        }
    }

    fn peer_device_statistics(&mut self, indent: usize, device: &DeviceSnapshot) {
        let counters = &device.counters;
        let out_of_sync = blocks_kib(counters.out_of_sync_blocks);
        self.out.put(indent, &format!(" received:{}", kib(counters.received_sectors)));
        self.out.put(indent, &format!(" sent:{}", kib(counters.sent_sectors)));
        if self.style.verbose || out_of_sync > 0 {
            self.out.put(indent, &format!(" out-of-sync:{out_of_sync}"));
        }
        if self.style.verbose {
            self.out.put(indent, &format!(" pending:{}", counters.peer_pending + counters.resync_pending));
            self.out.put(indent, &format!(" unacked:{}", counters.unacknowledged));
        }
    }
}

/// `blocked:upper`: new requests are held back for the device or the whole resource.
pub(super) fn is_upper_blocked(resource: &ResourceSnapshot, device: &DeviceSnapshot) -> bool {
    device.upper_blocked || resource.suspended.any()
}

pub(super) const fn blocked_word(blocked: bool) -> &'static str {
    if blocked { "upper" } else { "no" }
}

/// The part of the whole device that is in sync, in percent; also during a verify (status spec 4.1 e).
pub(super) fn done_percent(device: &DeviceSnapshot) -> f64 {
    if device.size_sectors == 0 {
        return 0.0;
    }
    100.0 * (1.0 - (device.counters.out_of_sync_blocks * 8) as f64 / device.size_sectors as f64)
}
