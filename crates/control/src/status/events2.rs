//! `drbdsetup events2` (status spec 5): lines about what changed between two states of a resource.
//!
//! Two steps, as in the original: comparing two states gives [`Notification`]s with all values of an object;
//! printing one leaves out the values the reader has seen for this object already. An object is known by its
//! identity text, so a connection with and without addresses are two.

use std::collections::HashMap;

use crate::protocol::{HelperEvent, StreamItem};

use super::text::{blocked_word, is_upper_blocked};
use super::words::{blocks_kib, connection_word, kib, replication_word, yes_no};
use super::{DeviceSnapshot, ResourceSnapshot};

/// How `events2` prints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EventStyle {
    /// `--statistics`: counters on every line about a device or peer device.
    pub statistics: bool,
}

/// One printed line, without its timestamp.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventLine {
    /// When it happened, in microseconds since the epoch; `None` for `- skipped N`, which has no timestamp.
    pub time_us: Option<i64>,
    /// The line.
    pub text: String,
}

/// What happened to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verb {
    Exists,
    Create,
    Change,
    Destroy,
}

impl Verb {
    const fn word(self) -> &'static str {
        match self {
            Self::Exists => "exists",
            Self::Create => "create",
            Self::Change => "change",
            Self::Destroy => "destroy",
        }
    }
}

/// When a value is printed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Show {
    /// If it is new or changed.
    Changed,
    /// If it is new or changed and statistics are wanted.
    ChangedStatistic,
    /// Whenever statistics are wanted.
    Statistic,
}

/// One thing that happened to one object.
struct Notification {
    verb: Verb,
    identity: String,
    values: Vec<(&'static str, String, Show)>,
}

/// Turns the stream of changes into lines.
#[derive(Debug, Default)]
pub struct EventPrinter {
    style: EventStyle,
    resources: HashMap<String, ResourceSnapshot>,
    /// The values last printed, by identity and key.
    printed: HashMap<String, HashMap<&'static str, String>>,
    phase: Phase,
    /// The resources seen since items were skipped.
    seen: Vec<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    /// The first dump.
    #[default]
    Dump,
    /// Changes.
    Running,
    /// The dump after items were skipped.
    CatchUp,
}

impl EventPrinter {
    /// A printer that has seen nothing.
    pub fn new(style: EventStyle) -> Self {
        Self { style, ..Self::default() }
    }

    /// The lines that an item of the stream is worth.
    pub fn lines(&mut self, item: &StreamItem) -> Vec<EventLine> {
        match item {
            StreamItem::Resource { time_us, resource } => self.resource(*time_us, resource),
            StreamItem::ResourceGone { time_us, name } => self.gone(*time_us, name),
            StreamItem::DumpEnd { time_us } => self.dump_end(*time_us),
            StreamItem::Helper { time_us, event } => vec![line(*time_us, helper_line(event))],
            StreamItem::Skipped { count } => {
                self.phase = Phase::CatchUp;
                self.seen.clear();
                vec![EventLine { time_us: None, text: format!("- skipped {count}") }]
            }
        }
    }

    fn resource(&mut self, time_us: i64, new: &ResourceSnapshot) -> Vec<EventLine> {
        if self.phase == Phase::CatchUp {
            self.seen.push(new.name.clone());
        }
        let old = self.resources.insert(new.name.clone(), new.clone());
        let notifications = match (&old, self.phase) {
            (None, Phase::Dump) => dump(new),
            (old, _) => compare(old.as_ref(), new),
        };
        self.print(time_us, notifications)
    }

    fn gone(&mut self, time_us: i64, name: &str) -> Vec<EventLine> {
        let Some(old) = self.resources.remove(name) else { return Vec::new() };
        let notifications = destroy_resource(&old);
        self.print(time_us, notifications)
    }

    fn dump_end(&mut self, time_us: i64) -> Vec<EventLine> {
        let phase = std::mem::replace(&mut self.phase, Phase::Running);
        if phase != Phase::CatchUp {
            return vec![line(time_us, "exists -".to_owned())];
        }
        let mut vanished: Vec<String> =
            self.resources.keys().filter(|name| !self.seen.contains(name)).cloned().collect();
        vanished.sort();
        vanished.iter().flat_map(|name| self.gone(time_us, name)).collect()
    }

    fn print(&mut self, time_us: i64, notifications: Vec<Notification>) -> Vec<EventLine> {
        notifications
            .into_iter()
            .filter_map(|notification| self.print_one(notification))
            .map(|text| line(time_us, text))
            .collect()
    }

    /// The line of a notification; `None` if it would say nothing.
    fn print_one(&mut self, notification: Notification) -> Option<String> {
        let Notification { verb, identity, values } = notification;
        let mut text = format!("{} {identity}", verb.word());
        if verb == Verb::Destroy {
            self.printed.remove(&identity);
            return Some(text);
        }
        let known = self.printed.entry(identity).or_default();
        let mut says_something = verb != Verb::Change;
        for (key, value, show) in values {
            let changed = known.insert(key, value.clone()).as_ref() != Some(&value);
            let wanted = match show {
                Show::Changed => changed,
                Show::ChangedStatistic => changed && self.style.statistics,
                Show::Statistic => self.style.statistics,
            };
            says_something |= wanted && show == Show::Changed;
            if wanted {
                text.push_str(&format!(" {key}:{value}"));
            }
        }
        says_something.then_some(text)
    }
}

fn line(time_us: i64, text: String) -> EventLine {
    EventLine { time_us: Some(time_us), text }
}

fn helper_line(event: &HelperEvent) -> String {
    let verb = if event.status.is_some() { "response" } else { "call" };
    let mut text = format!("{verb} helper {}", connection_key(&event.resource, event.connected_to_peer));
    if let Some((volume, minor)) = event.device {
        text.push_str(&format!(" volume:{volume} minor:{minor}"));
    }
    text.push_str(&format!(" helper:{}", event.helper));
    if let Some(status) = event.status {
        text.push_str(&format!(" status:{status}"));
    }
    text
}

fn connection_key(name: &str, has_addresses: bool) -> String {
    let peer = if has_addresses { " conn-name:peer" } else { "" };
    format!("name:{name} peer-node-id:0{peer}")
}

fn has_addresses(resource: &ResourceSnapshot) -> bool {
    resource.connection.addresses.is_some()
}

fn resource_notification(verb: Verb, resource: &ResourceSnapshot) -> Notification {
    let values = vec![
        ("role", resource.role().to_string(), Show::Changed),
        ("suspended", resource.suspended.words(), Show::Changed),
        ("write-ordering", resource.write_ordering.word().to_owned(), Show::ChangedStatistic),
    ];
    Notification { verb, identity: format!("resource name:{}", resource.name), values }
}

/// `named` says whether the connection is called by its name, which it is as long as it has addresses.
fn connection_notification(verb: Verb, resource: &ResourceSnapshot, named: bool) -> Notification {
    let connection = &resource.connection;
    let values = vec![
        ("connection", connection_word(connection.state).to_owned(), Show::Changed),
        ("role", resource.peer_role().to_string(), Show::Changed),
        ("congested", yes_no(connection.congested).to_owned(), Show::ChangedStatistic),
    ];
    let identity = format!("connection {}", connection_key(&resource.name, named));
    Notification { verb, identity, values }
}

fn device_notification(verb: Verb, resource: &ResourceSnapshot, device: &DeviceSnapshot) -> Notification {
    let counters = &device.counters;
    let blocked = is_upper_blocked(resource, device);
    let values = vec![
        ("disk", device.disk.to_string(), Show::Changed),
        ("size", kib(device.size_sectors).to_string(), Show::Statistic),
        ("read", kib(counters.read_sectors).to_string(), Show::Statistic),
        ("written", kib(counters.written_sectors).to_string(), Show::Statistic),
        ("al-writes", counters.activity_log_writes.to_string(), Show::Statistic),
        // Always 0 in the outputs of 8.4; the true count is in the metrics.
        ("bm-writes", "0".to_owned(), Show::Statistic),
        ("upper-pending", counters.application_pending.to_string(), Show::Statistic),
        ("lower-pending", counters.local_pending.to_string(), Show::Statistic),
        ("al-suspended", yes_no(device.activity_log_suspended).to_owned(), Show::ChangedStatistic),
        ("blocked", blocked_word(blocked).to_owned(), Show::ChangedStatistic),
    ];
    let identity = format!("device name:{} volume:{} minor:{}", resource.name, device.volume, device.minor);
    Notification { verb, identity, values }
}

fn peer_device_notification(
    verb: Verb,
    resource: &ResourceSnapshot,
    device: &DeviceSnapshot,
    named: bool,
) -> Notification {
    let counters = &device.counters;
    let pending = counters.peer_pending + counters.resync_pending;
    let values = vec![
        ("replication", replication_word(device.connection).to_owned(), Show::Changed),
        ("peer-disk", device.peer_disk.to_string(), Show::Changed),
        ("resync-suspended", device.resync_paused.words(), Show::Changed),
        ("received", kib(counters.received_sectors).to_string(), Show::Statistic),
        ("sent", kib(counters.sent_sectors).to_string(), Show::Statistic),
        ("out-of-sync", blocks_kib(counters.out_of_sync_blocks).to_string(), Show::Statistic),
        ("pending", pending.to_string(), Show::Statistic),
        ("unacked", counters.unacknowledged.to_string(), Show::Statistic),
    ];
    let key = connection_key(&resource.name, named);
    Notification { verb, identity: format!("peer-device {key} volume:{}", device.volume), values }
}

fn dump(resource: &ResourceSnapshot) -> Vec<Notification> {
    let named = has_addresses(resource);
    let mut list = vec![
        resource_notification(Verb::Exists, resource),
        connection_notification(Verb::Exists, resource, named),
    ];
    list.extend(resource.devices.iter().map(|device| device_notification(Verb::Exists, resource, device)));
    list.extend(
        resource.devices.iter().map(|device| peer_device_notification(Verb::Exists, resource, device, named)),
    );
    list
}

/// What happened between two states of a resource: resource, connection, devices, peer devices, then what went.
fn compare(old: Option<&ResourceSnapshot>, new: &ResourceSnapshot) -> Vec<Notification> {
    let mut list = Vec::new();
    match old {
        None => list.push(resource_notification(Verb::Create, new)),
        Some(old) if (old.role(), old.suspended) != (new.role(), new.suspended) => {
            list.push(resource_notification(Verb::Change, new));
        }
        Some(_) => {}
    }
    let (had_addresses, has_addresses) = (old.is_some_and(has_addresses), has_addresses(new));
    // While addresses go, the last states are still told under the name the connection had.
    let named = had_addresses || has_addresses;
    let created = has_addresses && !had_addresses;
    if created {
        list.push(connection_notification(Verb::Create, new, true));
    } else if let Some(old) = old
        && (connection_word(old.connection.state), old.peer_role())
            != (connection_word(new.connection.state), new.peer_role())
        && (named || old.connection.state != new.connection.state)
    {
        list.push(connection_notification(Verb::Change, new, named));
    }
    let old_device = |device: &DeviceSnapshot| old.and_then(|old| same_device(old, device));
    for device in &new.devices {
        match old_device(device) {
            None => list.push(device_notification(Verb::Create, new, device)),
            Some(before) if before.disk != device.disk => {
                list.push(device_notification(Verb::Change, new, device));
            }
            Some(_) => {}
        }
    }
    for device in &new.devices {
        match old_device(device) {
            Some(before) if !created && peer_state(before) != peer_state(device) => {
                list.push(peer_device_notification(Verb::Change, new, device, named));
            }
            None if has_addresses => list.push(peer_device_notification(Verb::Create, new, device, true)),
            Some(_) if created => list.push(peer_device_notification(Verb::Create, new, device, true)),
            _ => {}
        }
    }
    if let Some(old) = old {
        list.extend(removals(old, new));
    }
    list
}

fn removals(old: &ResourceSnapshot, new: &ResourceSnapshot) -> Vec<Notification> {
    let mut list = Vec::new();
    let disconnected = has_addresses(old) && !has_addresses(new);
    if disconnected {
        list.extend(
            old.devices.iter().map(|device| peer_device_notification(Verb::Destroy, old, device, true)),
        );
        list.push(connection_notification(Verb::Destroy, old, true));
    }
    for device in old.devices.iter().filter(|device| same_device(new, device).is_none()) {
        if has_addresses(old) && !disconnected {
            list.push(peer_device_notification(Verb::Destroy, old, device, true));
        }
        list.push(device_notification(Verb::Destroy, old, device));
    }
    list
}

fn destroy_resource(old: &ResourceSnapshot) -> Vec<Notification> {
    let empty = ResourceSnapshot::new(old.name.clone());
    let mut list = removals(old, &empty);
    list.push(resource_notification(Verb::Destroy, old));
    list
}

fn same_device<'a>(resource: &'a ResourceSnapshot, device: &DeviceSnapshot) -> Option<&'a DeviceSnapshot> {
    resource.devices.iter().find(|other| other.volume == device.volume && other.minor == device.minor)
}

fn peer_state(device: &DeviceSnapshot) -> (&'static str, udrbd_units::DiskState, super::ResyncPause) {
    (replication_word(device.connection), device.peer_disk, device.resync_paused)
}

#[cfg(test)]
mod tests {
    use udrbd_units::{ConnectionState, DiskState, Minor, VolumeNumber};

    use super::*;

    fn connected(name: &str) -> ResourceSnapshot {
        let mut resource = ResourceSnapshot::new(name);
        let address = "127.0.0.1:7788".parse().unwrap();
        resource.connection.addresses = Some((address, address));
        resource.connection.state = ConnectionState::WFReportParams;
        let mut device = DeviceSnapshot::new(VolumeNumber(0), Minor(0));
        device.connection = ConnectionState::Connected;
        device.peer_disk = DiskState::UpToDate;
        resource.devices.push(device);
        resource
    }

    fn feed(printer: &mut EventPrinter, resource: &ResourceSnapshot) -> Vec<String> {
        texts(printer.lines(&StreamItem::Resource { time_us: 0, resource: Box::new(resource.clone()) }))
    }

    fn texts(lines: Vec<EventLine>) -> Vec<String> {
        lines.into_iter().map(|line| line.text).collect()
    }

    fn running(resources: &[&ResourceSnapshot]) -> EventPrinter {
        let mut printer = EventPrinter::new(EventStyle::default());
        for resource in resources {
            feed(&mut printer, resource);
        }
        printer.lines(&StreamItem::DumpEnd { time_us: 0 });
        printer
    }

    #[test]
    fn a_disconnect_told_at_once_still_names_the_connection() {
        let mut resource = connected("a");
        let mut printer = running(&[&resource]);
        resource.connection.addresses = None;
        resource.connection.state = ConnectionState::StandAlone;
        resource.devices[0].connection = ConnectionState::StandAlone;
        resource.devices[0].peer_disk = DiskState::Unknown;
        assert_eq!(
            feed(&mut printer, &resource),
            [
                "change connection name:a peer-node-id:0 conn-name:peer connection:StandAlone",
                "change peer-device name:a peer-node-id:0 conn-name:peer volume:0 replication:Off peer-disk:DUnknown",
                "destroy peer-device name:a peer-node-id:0 conn-name:peer volume:0",
                "destroy connection name:a peer-node-id:0 conn-name:peer",
            ]
        );
        assert_eq!(feed(&mut printer, &resource), Vec::<String>::new());
    }

    #[test]
    fn a_line_that_would_say_nothing_new_is_left_out() {
        // The reader saw the nameless peer device with its disk unknown; what it was meanwhile had another name.
        let mut resource = connected("a");
        resource.connection.addresses = None;
        resource.devices[0].peer_disk = DiskState::Unknown;
        let mut printer = running(&[&resource]);
        resource.connection.addresses = connected("a").connection.addresses;
        resource.devices[0].peer_disk = DiskState::Outdated;
        feed(&mut printer, &resource);
        resource.connection.addresses = None;
        feed(&mut printer, &resource);
        resource.devices[0].peer_disk = DiskState::Unknown;
        assert_eq!(feed(&mut printer, &resource), Vec::<String>::new());
    }

    #[test]
    fn after_skipped_items_the_reader_learns_what_changed_and_what_went() {
        let (mut one, two) = (connected("a"), connected("b"));
        let mut printer = running(&[&one, &two]);
        assert_eq!(texts(printer.lines(&StreamItem::Skipped { count: 3 })), ["- skipped 3"]);
        one.devices[0].disk = DiskState::UpToDate;
        assert_eq!(feed(&mut printer, &one), ["change device name:a volume:0 minor:0 disk:UpToDate"]);
        assert_eq!(
            texts(printer.lines(&StreamItem::DumpEnd { time_us: 0 })),
            [
                "destroy peer-device name:b peer-node-id:0 conn-name:peer volume:0",
                "destroy connection name:b peer-node-id:0 conn-name:peer",
                "destroy device name:b volume:0 minor:0",
                "destroy resource name:b",
            ]
        );
    }
}
