//! `drbdsetup events2`, once and as a stream.

use std::collections::BTreeSet;

use udrbd_control::protocol::{HelperEvent, StreamItem};
use udrbd_control::status::{
    DeviceSnapshot, EventPrinter, EventStyle, NodeSnapshot, ResourceSnapshot, WriteOrdering,
};
use udrbd_units::{Minor, VolumeNumber};

use crate::{check_all, connection_of_word, file_name, files, give_addresses, replication_of_word, same};

#[test]
fn events2_now_vectors() {
    let files =
        files("states").into_iter().filter(|(path, _)| file_name(path).starts_with("events2-now")).collect();
    check_all(files, 80, |path, text| replay(text, file_name(path).contains("statistics")));
}

#[test]
fn events2_stream_vectors() {
    let files = files("events")
        .into_iter()
        .filter(|(path, _)| {
            let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
            extension.starts_with("events2")
        })
        .collect();
    check_all(files, 50, |path, text| replay(text, file_name(path).contains("statistics")));
}

/// A line taken apart.
struct Line<'a> {
    /// The line as printed, without its timestamp.
    text: &'a str,
    /// Lines with the same token belong to one change; without timestamps every line has its own.
    time: Option<&'a str>,
    verb: &'a str,
    kind: &'a str,
    words: Vec<(&'a str, &'a str)>,
}

impl<'a> Line<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let (time, text) = match line.strip_prefix("<T") {
            Some(_) => line.split_once(' ').map(|(time, text)| (Some(time), text))?,
            None => (None, line),
        };
        let mut parts = text.split(' ');
        let (verb, kind) = (parts.next()?, parts.next()?);
        let words = parts.filter_map(|word| word.split_once(':')).collect();
        Some(Self { text, time, verb, kind, words })
    }

    fn value(&self, key: &str) -> Option<&'a str> {
        self.words.iter().find(|(known, _)| *known == key).map(|(_, value)| *value)
    }

    /// Whether the line names an object and says nothing about it; udrbd leaves such lines out (status spec 12.3).
    fn is_empty_change(&self) -> bool {
        let identity = ["name", "peer-node-id", "conn-name", "volume", "minor"];
        let numbers = [
            "size",
            "read",
            "written",
            "al-writes",
            "bm-writes",
            "upper-pending",
            "lower-pending",
            "received",
            "sent",
            "out-of-sync",
            "pending",
            "unacked",
            "blocked",
            "al-suspended",
            "congested",
            "write-ordering",
        ];
        self.verb == "change"
            && self.words.iter().all(|(key, _)| identity.contains(key) || numbers.contains(key))
    }
}

/// Feeds the printer what the lines say and compares what it prints.
fn replay(text: &str, statistics: bool) -> Result<(), String> {
    let lines: Vec<Line<'_>> =
        text.lines().filter_map(Line::parse).filter(|line| !line.is_empty_change()).collect();
    let mut node = NodeSnapshot::default();
    let mut printer = EventPrinter::new(EventStyle { statistics });
    let mut rest = lines.as_slice();
    while let Some(first) = rest.first() {
        let (group, behind) = rest.split_at(group_length(rest));
        rest = behind;
        let expected: Vec<&str> = group.iter().map(|line| line.text).collect();
        let item = item(&mut node, first, group)?;
        let printed: Vec<String> = printer.lines(&item).into_iter().map(|line| line.text).collect();
        same(&printed.join("\n"), &expected.join("\n"))?;
    }
    Ok(())
}

/// How many of the lines were one change of one resource.
fn group_length(lines: &[Line<'_>]) -> usize {
    let first = &lines[0];
    if !matches!(first.verb, "exists" | "create" | "change" | "destroy") || first.kind == "-" {
        return 1;
    }
    let mut length = 1;
    let mut kinds = BTreeSet::from([first.kind]);
    while let Some(line) = lines.get(length) {
        let previous = &lines[length - 1];
        let same_resource = line.value("name") == first.value("name");
        let same_time = first.time.is_some() && line.time == first.time && line.verb == first.verb;
        let dumped = first.verb == "exists" && line.verb == "exists" && line.kind != "resource";
        let created_together = first.verb == "create"
            && line.verb == "create"
            && line.kind == "peer-device"
            && first.kind != "resource";
        let destroyed_together =
            previous.verb == "destroy" && previous.kind == "peer-device" && line.verb == "destroy";
        kinds.insert(line.kind);
        if !(same_resource && (same_time || dumped || created_together || destroyed_together)) {
            break;
        }
        length += 1;
    }
    length
}

fn item(node: &mut NodeSnapshot, first: &Line<'_>, group: &[Line<'_>]) -> Result<StreamItem, String> {
    let time_us = 0;
    match (first.verb, first.kind) {
        ("exists", "-") => return Ok(StreamItem::DumpEnd { time_us }),
        ("-", "skipped") => {
            let count = first.text.rsplit(' ').next().and_then(|count| count.parse().ok()).ok_or("count")?;
            return Ok(StreamItem::Skipped { count });
        }
        ("call" | "response", "helper") => {
            let volume = first.value("volume").and_then(|volume| volume.parse().ok()).map(VolumeNumber);
            let minor = first.value("minor").and_then(|minor| minor.parse().ok()).map(Minor);
            let event = HelperEvent {
                resource: first.value("name").unwrap_or_default().to_owned(),
                connected_to_peer: first.value("conn-name").is_some(),
                device: volume.zip(minor),
                helper: first.value("helper").unwrap_or_default().to_owned(),
                status: first.value("status").and_then(|status| status.parse().ok()),
            };
            return Ok(StreamItem::Helper { time_us, event });
        }
        ("destroy", "resource") => {
            let name = first.value("name").unwrap_or_default().to_owned();
            node.resources.retain(|resource| resource.name != name);
            return Ok(StreamItem::ResourceGone { time_us, name });
        }
        _ => {}
    }
    for line in group {
        apply(node, line)?;
    }
    let name = first.value("name").ok_or("no name")?;
    let mut resource = node.resource(name).ok_or("no such resource")?.clone();
    resource.devices.retain(|device| device.volume.0 != u16::MAX);
    Ok(StreamItem::Resource { time_us, resource: Box::new(resource) })
}

fn apply(node: &mut NodeSnapshot, line: &Line<'_>) -> Result<(), String> {
    let name = line.value("name").ok_or("no name")?;
    if node.resource(name).is_none() {
        node.resources.push(ResourceSnapshot::new(name));
    }
    let resource = node.resources.iter_mut().find(|resource| resource.name == name).ok_or("resource")?;
    match (line.verb, line.kind) {
        ("destroy", "connection") => resource.connection.addresses = None,
        ("destroy", "peer-device") => {}
        ("destroy", "device") => {
            let volume = line.value("volume").unwrap_or_default();
            resource.devices.retain(|device| device.volume.to_string() != volume);
        }
        (_, "resource") => apply_resource(resource, line),
        (_, "connection") => apply_connection(resource, line),
        (_, "device" | "peer-device") => apply_device(resource, line)?,
        (verb, kind) => return Err(format!("{verb} {kind}")),
    }
    Ok(())
}

fn apply_resource(resource: &mut ResourceSnapshot, line: &Line<'_>) {
    if let Some(role) = line.value("role") {
        let role = role.parse().expect("a role");
        for device in &mut resource.devices {
            device.role = role;
        }
        // A dump tells the role before the devices.
        if resource.devices.is_empty() {
            resource
                .devices
                .push(DeviceSnapshot { role, ..DeviceSnapshot::new(VolumeNumber(u16::MAX), Minor(0)) });
        }
        if line.verb == "create" {
            resource.devices.clear();
        }
    }
    if let Some(ordering) = line.value("write-ordering") {
        let all = [WriteOrdering::None, WriteOrdering::Drain, WriteOrdering::Flush];
        resource.write_ordering =
            all.into_iter().find(|known| known.word() == ordering).expect("a write ordering");
    }
    if let Some(suspended) = line.value("suspended") {
        resource.suspended.user = suspended.contains("user");
        resource.suspended.no_data = suspended.contains("no-data");
        resource.suspended.fencing = suspended.contains("fencing");
    }
}

fn apply_connection(resource: &mut ResourceSnapshot, line: &Line<'_>) {
    if line.value("conn-name").is_some() {
        give_addresses(resource);
    }
    if let Some(state) = line.value("connection") {
        resource.connection.state = connection_of_word(state);
    }
    if let Some(congested) = line.value("congested") {
        resource.connection.congested = congested == "yes";
    }
    if let Some(role) = line.value("role") {
        let role = role.parse().expect("a role");
        for device in &mut resource.devices {
            device.peer_role = role;
        }
    }
}

fn apply_device(resource: &mut ResourceSnapshot, line: &Line<'_>) -> Result<(), String> {
    let volume = VolumeNumber(line.value("volume").ok_or("volume")?.parse().map_err(|_| "volume")?);
    let state = resource.connection.state;
    let placeholder = resource.devices.iter().position(|device| device.volume.0 == u16::MAX);
    if !resource.devices.iter().any(|device| device.volume == volume) {
        let mut device = DeviceSnapshot::new(volume, Minor(0));
        if let Some(first) = resource.devices.first() {
            (device.role, device.peer_role) = (first.role, first.peer_role);
        }
        resource.devices.push(device);
        if let Some(index) = placeholder {
            resource.devices.remove(index);
        }
    }
    let device = resource.devices.iter_mut().find(|device| device.volume == volume).ok_or("device")?;
    for (key, value) in &line.words {
        let number = || value.parse::<u64>().map_err(|error| format!("{key}: {error}"));
        let counters = &mut device.counters;
        match *key {
            "minor" => device.minor = Minor(number()? as u32),
            "disk" => device.disk = value.parse().map_err(|_| "disk")?,
            "replication" => device.connection = replication_of_word(value, state),
            "peer-disk" => device.peer_disk = value.parse().map_err(|_| "peer-disk")?,
            "resync-suspended" => {
                device.resync_paused.user = value.contains("user");
                device.resync_paused.peer = value.contains("peer");
                device.resync_paused.dependency = value.contains("dependency");
            }
            "size" => device.size_sectors = number()? * 2,
            "read" => counters.read_sectors = number()? * 2,
            "written" => counters.written_sectors = number()? * 2,
            "al-writes" => counters.activity_log_writes = number()?,
            "upper-pending" => counters.application_pending = number()?,
            "lower-pending" => counters.local_pending = number()?,
            "al-suspended" => device.activity_log_suspended = *value == "yes",
            "blocked" => device.upper_blocked = *value == "upper",
            "received" => counters.received_sectors = number()? * 2,
            "sent" => counters.sent_sectors = number()? * 2,
            "out-of-sync" => counters.out_of_sync_blocks = number()? / 4,
            "pending" => counters.peer_pending = number()?,
            "unacked" => counters.unacknowledged = number()?,
            _ => {}
        }
    }
    Ok(())
}
