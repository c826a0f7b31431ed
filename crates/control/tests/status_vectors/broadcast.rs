//! The old `drbdsetup events`.

use udrbd_control::protocol::{HelperEvent, StreamItem};
use udrbd_control::status::{BroadcastPrinter, BroadcastScope, DeviceSnapshot, ResourceSnapshot};
use udrbd_units::{Minor, VolumeNumber};

use crate::{check_all, files, same};

#[test]
fn events_vectors() {
    let files = files("events")
        .into_iter()
        .filter(|(path, _)| path.extension().is_some_and(|extension| extension == "events"))
        .collect();
    check_all(files, 14, |_, text| replay(text));
}

/// The lines without the numbers in front, which the kernel gives to other messages as well.
fn replay(text: &str) -> Result<(), String> {
    let mut printer = BroadcastPrinter::new(BroadcastScope::All);
    let mut dumped = false;
    for line in text.lines() {
        let (_, line) = line.split_once(' ').ok_or("no number")?;
        let mut words = line.split(' ');
        let (kind, name) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let item = match kind {
            "ST" if !dumped => resource_item(name, line)?,
            "ST-prev" if !dumped => {
                dumped = true;
                printer.lines(&StreamItem::DumpEnd { time_us: 0 });
                continue;
            }
            // The state before is known; the state after is taken from the second line of three.
            "ST-new" => resource_item(name, line)?,
            "UH" | "UH-post" => helper_item(kind, name, &mut words)?,
            _ => continue,
        };
        let printed = printer.lines(&item);
        let last = printed.last().and_then(|line| line.split_once(' ')).map(|(_, rest)| rest);
        match (kind, last) {
            ("ST-new", Some(last)) => {
                same(last, &line.replacen("ST-new", "ST", 1))?;
                if printed.len() != 3 {
                    return Err(format!("  {} lines for {line}", printed.len()));
                }
            }
            // A change of a resource or of something not shown here repeats the state.
            ("ST-new", None) => {}
            (_, last) => same(last.unwrap_or_default(), line)?,
        }
    }
    Ok(())
}

fn device_of(name: &str) -> Option<(Minor, &str, VolumeNumber)> {
    let (minor, rest) = name.split_once(',')?;
    let (resource, volume) = rest.strip_suffix(']')?.split_once('[')?;
    Some((Minor(minor.parse().ok()?), resource, VolumeNumber(volume.parse().ok()?)))
}

fn resource_item(name: &str, line: &str) -> Result<StreamItem, String> {
    let (minor, resource, volume) = device_of(name).ok_or("no device")?;
    let value =
        |key: &str| line.split(' ').find_map(|word| word.strip_prefix(key)).ok_or(format!("no {key}"));
    let mut device = DeviceSnapshot::new(volume, minor);
    device.connection = value("cs:")?.parse().map_err(|_| "cs")?;
    let (role, peer_role) = value("ro:")?.split_once('/').ok_or("ro")?;
    let (disk, peer_disk) = value("ds:")?.split_once('/').ok_or("ds")?;
    device.role = role.parse().map_err(|_| "role")?;
    device.peer_role = peer_role.parse().map_err(|_| "peer role")?;
    device.disk = disk.parse().map_err(|_| "disk")?;
    device.peer_disk = peer_disk.parse().map_err(|_| "peer disk")?;
    let flags: Vec<char> = line.strip_suffix(" }").unwrap_or(line).chars().rev().take(4).collect();
    let mut snapshot = ResourceSnapshot::new(resource);
    snapshot.suspended.user = flags[3] == 's';
    device.resync_paused.dependency = flags[2] == 'a';
    device.resync_paused.peer = flags[1] == 'p';
    device.resync_paused.user = flags[0] == 'u';
    snapshot.devices.push(device);
    Ok(StreamItem::Resource { time_us: 0, resource: Box::new(snapshot) })
}

fn helper_item<'a>(
    kind: &str,
    name: &str,
    words: &mut impl Iterator<Item = &'a str>,
) -> Result<StreamItem, String> {
    let (minor, resource, volume) = device_of(name).ok_or("no device")?;
    let helper = words.next().ok_or("no helper")?.to_owned();
    let status = match kind {
        "UH" => None,
        _ => {
            let hex = words.next().and_then(|word| word.strip_prefix("0x")).ok_or("no status")?;
            Some(u32::from_str_radix(hex, 16).map_err(|error| error.to_string())?)
        }
    };
    let event = HelperEvent {
        resource: resource.to_owned(),
        connected_to_peer: true,
        device: Some((volume, minor)),
        helper,
        status,
    };
    Ok(StreamItem::Helper { time_us: 0, event })
}
