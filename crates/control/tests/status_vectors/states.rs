//! `drbdsetup status`, `sh-status` and the one-line queries.

use udrbd_control::status::{
    DeviceSnapshot, NodeSnapshot, ProgressKind, ProgressSnapshot, ResourceSnapshot, SpeedMark, StatusStyle,
    WriteOrdering, cstate_line, dstate_line, role_line, sh_status_all, status_text,
};
use udrbd_units::{ConnectionState, DiskState, Minor, Role, VolumeNumber};

use crate::{check_all, connection_of_word, file_name, files, give_addresses, replication_of_word, same};

/// A size for devices whose size is not shown; it makes every percentage possible.
const SIZE_SECTORS: u64 = 800_000;

/// Stands for the first device until it is met: the role of a resource comes before its devices.
const PLACEHOLDER: VolumeNumber = VolumeNumber(u16::MAX);

#[test]
fn status_vectors() {
    let files =
        files("states").into_iter().filter(|(path, _)| file_name(path).starts_with("status")).collect();
    check_all(files, 160, |path, text| {
        let name = file_name(path);
        let style = StatusStyle {
            verbose: name.contains("verbose"),
            statistics: name.contains("statistics"),
            color: name.contains("color-always"),
            width: 80,
        };
        same(&status_text(&parse_status(text), style), text)
    });
}

#[test]
fn sh_status_vectors() {
    let files = files("states").into_iter().filter(|(path, _)| file_name(path) == "sh-status").collect();
    check_all(files, 40, |_, text| same(&sh_status_all(&parse_sh_status(text)), text));
}

#[test]
fn query_vectors() {
    let files = files("states").into_iter().filter(|(path, _)| file_name(path) == "cmds").collect();
    check_all(files, 35, |_, text| {
        let answer = |query: &str, minor: &str| {
            let command = format!("$ drbdsetup {query} {minor}\n");
            text.split_once(&command).and_then(|(_, rest)| rest.lines().next()).ok_or(format!("no {command}"))
        };
        for minor in text.lines().filter_map(|line| line.strip_prefix("$ drbdsetup role ")) {
            let mut device = DeviceSnapshot::new(VolumeNumber(0), Minor(0));
            if let Some((disk, peer_disk)) = answer("dstate", minor)?.split_once('/') {
                let (role, peer_role) = answer("role", minor)?.split_once('/').ok_or("role without slash")?;
                device.role = role.parse().map_err(|_| "role")?;
                device.peer_role = peer_role.parse().map_err(|_| "peer role")?;
                device.disk = disk.parse().map_err(|_| "disk")?;
                device.peer_disk = peer_disk.parse().map_err(|_| "peer disk")?;
                device.connection = answer("cstate", minor)?.parse().map_err(|_| "cstate")?;
            }
            same(&role_line(&device), answer("role", minor)?)?;
            same(&cstate_line(&device), answer("cstate", minor)?)?;
            same(&dstate_line(&device), answer("dstate", minor)?)?;
        }
        Ok(())
    });
}

fn without_colors(text: &str) -> String {
    let mut plain = String::new();
    let mut rest = text;
    while let Some((before, behind)) = rest.split_once('\x1b') {
        plain.push_str(before);
        rest = behind.split_once('m').map_or("", |(_, after)| after);
    }
    plain + rest
}

fn parse_status(text: &str) -> NodeSnapshot {
    let mut node = NodeSnapshot::default();
    let mut in_peer = false;
    // The device a word belongs to; words of a peer device have their own count.
    let mut index = 0;
    for word in without_colors(text).split_whitespace() {
        let Some((key, value)) = word.split_once(':') else {
            in_peer = word == "peer";
            index = 0;
            if in_peer {
                give_addresses(node.resources.last_mut().expect("a resource"));
                node.resources.last_mut().expect("a resource").connection.state =
                    ConnectionState::WFReportParams;
            } else {
                node.resources.push(ResourceSnapshot::new(word));
            }
            continue;
        };
        let resource = node.resources.last_mut().expect("a resource");
        if key == "volume" {
            let volume = VolumeNumber(value.parse().expect("a number"));
            if let Some(first) = resource.devices.first_mut()
                && first.volume == PLACEHOLDER
            {
                first.volume = volume;
            }
            match resource.devices.iter().position(|device| device.volume == volume) {
                Some(known) => index = known,
                None => {
                    index = resource.devices.len();
                    let role = resource.devices[0].role;
                    resource.devices.push(DeviceSnapshot { role, ..DeviceSnapshot::new(volume, Minor(0)) });
                }
            }
        } else if in_peer {
            peer_word(resource, index, key, value);
        } else {
            local_word(resource, index, key, value);
        }
    }
    for resource in &mut node.resources {
        finish_status(resource);
    }
    node
}

fn finish_status(resource: &mut ResourceSnapshot) {
    resource.devices.retain(|device| device.volume != PLACEHOLDER);
    for device in &mut resource.devices {
        if device.size_sectors == 0 && device.counters.out_of_sync_blocks > 0 {
            device.size_sectors = SIZE_SECTORS;
        }
        if device.connection == ConnectionState::StandAlone {
            device.connection = resource.connection.state;
        }
    }
}

fn local_word(resource: &mut ResourceSnapshot, index: usize, key: &str, value: &str) {
    let number = || value.parse::<u64>().expect("a number");
    match key {
        "role" => {
            let role = value.parse().expect("a role");
            // Devices come later; a placeholder carries the role until then.
            resource.devices.push(DeviceSnapshot { role, ..DeviceSnapshot::new(PLACEHOLDER, Minor(0)) });
            return;
        }
        "suspended" => {
            resource.suspended.user = value.contains("user");
            resource.suspended.no_data = value.contains("no-data");
            resource.suspended.fencing = value.contains("fencing");
            return;
        }
        "write-ordering" => {
            resource.write_ordering = match value {
                "flush" => WriteOrdering::Flush,
                "drain" => WriteOrdering::Drain,
                "none" => WriteOrdering::None,
                other => panic!("unknown write-ordering {other}"),
            };
            return;
        }
        _ => {}
    }
    let device = &mut resource.devices[index];
    if device.volume == PLACEHOLDER {
        device.volume = VolumeNumber(0);
    }
    match key {
        "minor" => device.minor = Minor(value.parse().expect("a number")),
        "disk" => device.disk = value.parse().expect("a disk state"),
        "size" => device.size_sectors = number() * 2,
        "read" => device.counters.read_sectors = number() * 2,
        "written" => device.counters.written_sectors = number() * 2,
        "al-writes" => device.counters.activity_log_writes = number(),
        "bm-writes" => assert_eq!(value, "0"),
        "upper-pending" => device.counters.application_pending = number(),
        "lower-pending" => device.counters.local_pending = number(),
        "al-suspended" => device.activity_log_suspended = value == "yes",
        "blocked" => device.upper_blocked = value == "upper",
        other => panic!("unknown word {other}:{value}"),
    }
}

fn peer_word(resource: &mut ResourceSnapshot, index: usize, key: &str, value: &str) {
    let number = || value.parse::<u64>().expect("a number");
    match key {
        "connection" => resource.connection.state = connection_of_word(value),
        "congested" => resource.connection.congested = value == "yes",
        "role" => {
            let role: Role = value.parse().expect("a role");
            for device in &mut resource.devices {
                device.peer_role = role;
            }
        }
        _ => {
            let state = resource.connection.state;
            let device = &mut resource.devices[index];
            match key {
                "replication" => device.connection = replication_of_word(value, state),
                "peer-disk" => device.peer_disk = value.parse().expect("a disk state"),
                "done" if device.size_sectors == 0 => {
                    let percent: f64 = value.parse().expect("a number");
                    device.counters.out_of_sync_blocks = ((100.0 - percent) * 1000.0).round() as u64;
                    device.size_sectors = SIZE_SECTORS;
                }
                "done" => {}
                "resync-suspended" => {
                    device.resync_paused.user = value.contains("user");
                    device.resync_paused.peer = value.contains("peer");
                    device.resync_paused.dependency = value.contains("dependency");
                }
                "received" => device.counters.received_sectors = number() * 2,
                "sent" => device.counters.sent_sectors = number() * 2,
                "out-of-sync" => adopt_out_of_sync(device, number() / 4),
                "pending" => device.counters.peer_pending = number(),
                "unacked" => device.counters.unacknowledged = number(),
                other => panic!("unknown word {other}:{value}"),
            }
        }
    }
}

/// Takes the true count; where the size is not shown, one that keeps the percentage.
fn adopt_out_of_sync(device: &mut DeviceSnapshot, blocks: u64) {
    let guessed = device.size_sectors == SIZE_SECTORS && device.counters.out_of_sync_blocks > 0;
    if guessed && blocks > 0 {
        device.size_sectors = device.size_sectors * blocks / device.counters.out_of_sync_blocks;
    }
    device.counters.out_of_sync_blocks = blocks;
}

fn parse_sh_status(text: &str) -> NodeSnapshot {
    let mut node = NodeSnapshot::default();
    for block in text.split("_sh_status_process") {
        let value = |key: &str| {
            block.lines().find_map(|line| line.strip_prefix(key).and_then(|rest| rest.strip_prefix('=')))
        };
        let (Some(minor), Some(name), Some(volume)) = (value("_minor"), value("_res_name"), value("_volume"))
        else {
            continue;
        };
        if node.resource(name).is_none() {
            node.resources.push(ResourceSnapshot::new(name));
        }
        let resource = node.resources.iter_mut().find(|resource| resource.name == name).expect("just pushed");
        if volume == "-1" {
            continue;
        }
        let mut device = DeviceSnapshot::new(
            VolumeNumber(volume.parse().expect("a volume")),
            Minor(minor.parse().expect("a minor")),
        );
        if value("_known") == Some("Configured") {
            resource.suspended.user = value("_flags_susp") == Some("1");
            configured(&mut device, value);
        }
        resource.devices.push(device);
    }
    node
}

fn configured<'a>(device: &mut DeviceSnapshot, value: impl Fn(&str) -> Option<&'a str>) {
    let role = |key: &str| -> Role { value(key).expect("a role").parse().expect("a role") };
    let disk = |key: &str| -> DiskState { value(key).expect("a disk").parse().expect("a disk state") };
    device.connection = value("_cstate").expect("a state").parse().expect("a connection state");
    device.role = role("_role");
    device.peer_role = role("_peer");
    device.disk = disk("_disk");
    device.peer_disk = disk("_pdsk");
    device.resync_paused.dependency = value("_flags_aftr_isp") == Some("1");
    device.resync_paused.peer = value("_flags_peer_isp") == Some("1");
    device.resync_paused.user = value("_flags_user_isp") == Some("1");
    let percent = value("_resynced_percent").unwrap_or_default();
    if let Some((whole, tenth)) = percent.split_once('.') {
        let per_mille = whole.parse::<u64>().expect("percent") * 10 + tenth.parse::<u64>().expect("percent");
        // With 999 steps of 1024 blocks a step is a thousandth.
        device.counters.out_of_sync_blocks = (1000 - per_mille) << 10;
        device.progress = Some(ProgressSnapshot {
            kind: ProgressKind::Resync,
            total_blocks: 999 << 10,
            failed_blocks: 0,
            verify_left_blocks: 0,
            equal_checksum_blocks: 0,
            elapsed_ms: 0,
            paused_ms: 0,
            short_mark: SpeedMark { age_ms: 0, left_blocks: 0 },
            mid_mark: SpeedMark { age_ms: 0, left_blocks: 0 },
            wanted_kib_per_second: 0,
            position_blocks: 0,
            verify_start_sector: 0,
            verify_stop_sector: None,
        });
    }
}
