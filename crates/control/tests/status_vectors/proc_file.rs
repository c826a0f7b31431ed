//! `/proc/drbd`.

use udrbd_control::options::{NetOptions, OptionSet};
use udrbd_control::status::{
    DeviceSnapshot, NodeSnapshot, ProgressKind, ProgressSnapshot, ResourceSnapshot, SpeedMark, WriteOrdering,
    proc_drbd,
};
use udrbd_units::{ConnectionState, Minor, VolumeNumber};

use crate::{check_all, file_name, files, same};

#[test]
fn proc_drbd_vectors() {
    let files = files("states")
        .into_iter()
        .filter(|(path, _)| file_name(path).starts_with("proc-drbd") && !file_name(path).contains("details"))
        .collect();
    check_all(files, 45, |_, text| {
        let build =
            text.lines().nth(1).and_then(|line| line.strip_prefix("srcversion: ")).ok_or("no build")?;
        same(&proc_drbd(&parse(text)?, build.trim_end()), text)
    });
}

fn parse(text: &str) -> Result<NodeSnapshot, String> {
    let mut node = NodeSnapshot::default();
    for line in text.lines().skip(2) {
        let start = line.trim_start();
        if line.is_empty() {
            continue;
        }
        if start.starts_with(|character: char| character.is_ascii_digit()) {
            node.resources.push(state_line(line)?);
            continue;
        }
        let resource = node.resources.last_mut().ok_or("no device")?;
        if start.starts_with("ns:") {
            counter_line(resource, start)?;
        } else if start.starts_with('[') {
            bar_line(&mut resource.devices[0], start)?;
        } else if start.starts_with("finish:") {
            speed_line(&mut resource.devices[0], start)?;
        } else {
            return Err(format!("unknown line {line:?}"));
        }
    }
    Ok(node)
}

fn word<'a>(line: &'a str, key: &str) -> Result<&'a str, String> {
    line.split_whitespace().find_map(|word| word.strip_prefix(key)).ok_or(format!("no {key} in {line:?}"))
}

fn number(line: &str, key: &str) -> Result<u64, String> {
    word(line, key)?.parse().map_err(|error| format!("{key} {error}"))
}

fn state_line(line: &str) -> Result<ResourceSnapshot, String> {
    let (minor, rest) = line.split_once(": ").ok_or("no minor")?;
    let minor = minor.trim().parse().map_err(|_| "minor")?;
    let mut resource = ResourceSnapshot::new(format!("r{minor}"));
    let mut device = DeviceSnapshot::new(VolumeNumber(0), Minor(minor));
    if rest != "cs:Unconfigured" {
        device.connection = word(rest, "cs:")?.parse().map_err(|_| "cs")?;
        let pair = |key| word(rest, key)?.split_once('/').ok_or(format!("{key} without slash"));
        let (role, peer_role) = pair("ro:")?;
        let (disk, peer_disk) = pair("ds:")?;
        device.role = role.parse().map_err(|_| "role")?;
        device.peer_role = peer_role.parse().map_err(|_| "peer role")?;
        device.disk = disk.parse().map_err(|_| "disk")?;
        device.peer_disk = peer_disk.parse().map_err(|_| "peer disk")?;
        let flags: Vec<char> = rest.chars().rev().take(6).collect();
        resource.suspended.user = flags[5] == 's';
        device.resync_paused.dependency = flags[4] == 'a';
        device.resync_paused.peer = flags[3] == 'p';
        device.resync_paused.user = flags[2] == 'u';
        device.activity_log_suspended = flags[0] == 's';
        let protocol = rest.chars().rev().nth(7).ok_or("no protocol")?;
        if protocol != ' ' {
            let mut options = NetOptions::default();
            options.set("protocol", Some(&protocol.to_string())).map_err(|error| error.to_string())?;
            resource.connection.options = Some(options);
        }
    }
    resource.devices.push(device);
    Ok(resource)
}

fn counter_line(resource: &mut ResourceSnapshot, line: &str) -> Result<(), String> {
    resource.connection.epochs = number(line, "ep:")? as u32;
    resource.write_ordering = match word(line, "wo:")? {
        "f" => WriteOrdering::Flush,
        "d" => WriteOrdering::Drain,
        "n" => WriteOrdering::None,
        other => return Err(format!("wo:{other}")),
    };
    let counters = &mut resource.devices[0].counters;
    counters.sent_sectors = number(line, "ns:")? * 2;
    counters.received_sectors = number(line, "nr:")? * 2;
    counters.written_sectors = number(line, "dw:")? * 2;
    counters.read_sectors = number(line, "dr:")? * 2;
    counters.activity_log_writes = number(line, "al:")?;
    counters.local_pending = number(line, "lo:")?;
    counters.peer_pending = number(line, "pe:")?;
    counters.unacknowledged = number(line, "ua:")?;
    counters.application_pending = number(line, "ap:")?;
    counters.out_of_sync_blocks = number(line, "oos:")? / 4;
    Ok(())
}

fn bar_line(device: &mut DeviceSnapshot, line: &str) -> Result<(), String> {
    let amounts = line.split_once('(').and_then(|(_, rest)| rest.split_once(')')).ok_or("no amounts")?;
    let (left, total) = amounts.0.split_once('/').ok_or("no total")?;
    let unit_blocks = if amounts.1 == "M" { 256 } else { 1 };
    let blocks = |kib: &str| -> Result<u64, String> {
        Ok(kib.parse::<u64>().map_err(|error| error.to_string())? * unit_blocks
            / if unit_blocks == 1 { 4 } else { 1 })
    };
    let verify = matches!(device.connection, ConnectionState::VerifyS | ConnectionState::VerifyT);
    device.progress = Some(ProgressSnapshot {
        kind: if verify { ProgressKind::Verify } else { ProgressKind::Resync },
        total_blocks: blocks(total)?,
        failed_blocks: 0,
        verify_left_blocks: blocks(left)?,
        equal_checksum_blocks: 0,
        elapsed_ms: 1000,
        paused_ms: 0,
        short_mark: SpeedMark { age_ms: 1000, left_blocks: 0 },
        mid_mark: SpeedMark { age_ms: 1000, left_blocks: 0 },
        wanted_kib_per_second: 0,
        position_blocks: 0,
        verify_start_sector: 0,
        verify_stop_sector: None,
    });
    Ok(())
}

/// The line shows two rates and a time, which times and amounts must have produced: looks for some that do.
fn speed_line(device: &mut DeviceSnapshot, line: &str) -> Result<(), String> {
    let wanted = line.split_once("want: ").map(|(_, rest)| rest.split(' ').next().unwrap_or_default());
    let ungrouped = |text: &str| text.replace([',', '(', ')'], "").parse::<u64>();
    let words: Vec<&str> = line.split_whitespace().collect();
    let (short, long) =
        (ungrouped(words[3]).map_err(|_| "speed")?, ungrouped(words[4]).map_err(|_| "speed")?);
    let out_of_sync = device.counters.out_of_sync_blocks;
    let progress = device.progress.as_mut().ok_or("speed without bar")?;
    progress.wanted_kib_per_second = wanted.map_or(Ok(0), ungrouped).map_err(|_| "want")?;
    let left = match progress.kind {
        ProgressKind::Verify => progress.verify_left_blocks,
        ProgressKind::Resync => out_of_sync,
    };
    // A total in MiB is rounded down, so any number of blocks up to the next step may be missing.
    let missing = if progress.total_blocks.is_multiple_of(1024) { 0..1024 } else { 0..1 };
    let fits = |(extra, seconds): &(u64, u64)| {
        (progress.total_blocks + extra).saturating_sub(left) / seconds * 4 == long
    };
    let (extra, seconds) = missing
        .flat_map(|extra| (1..3000).map(move |seconds| (extra, seconds)))
        .find(fits)
        .ok_or(format!("no time gives the rate of {line:?}"))?;
    progress.total_blocks += extra;
    progress.elapsed_ms = seconds * 1000;
    let time: Vec<u64> = words[1].split(':').filter_map(|part| part.parse().ok()).collect();
    let finish = time[0] * 3600 + time[1] * 60 + time[2];
    let first = if line.ends_with("(stalled)") { 181 } else { 1 };
    for seconds in first..first + 180_u64 {
        for blocks in (short / 4 * seconds)..(short / 4 * seconds + seconds) {
            if seconds * (left / (blocks / 100 + 1)) / 100 == finish {
                progress.short_mark = SpeedMark { age_ms: seconds * 1000, left_blocks: left + blocks };
                return Ok(());
            }
        }
    }
    Err(format!("no times give {line:?}"))
}
