//! What the meeting of two nodes comes to, by their metadata, and a split brain under every policy: recorded between two
//! kernels, played again with one of ours in either part. The records are those that judge the engine.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use udrbd_tests::replica::{Frontend, Replica, Status};
use udrbd_tests::runner;

use crate::duo::{Course, Duo, Stage};
use crate::replication::MIXED;

/// The size of the recorded disks: their metadata lie where those of the records lay.
pub(crate) const DISK_BYTES: u64 = 8 << 20;
/// Where the metadata of such a disk begin, in sectors.
pub(crate) const METADATA: u64 = 16304;
/// Where its superblock begins, in blocks of 4 KiB.
const SUPERBLOCK: u64 = 2047;
/// Where the bitmap of such a disk begins, in blocks of 4 KiB.
const BITMAP_BLOCK: u64 = 2038;
/// One record of so many is played in the usual run, with either part; in the long run all are.
const USUAL_SHARE: usize = 30;
/// The flags of metadata, in the order `set-gi` takes them.
const FLAGS: [&str; 7] = [
    "consistent",
    "was_up_to_date",
    "primary_ind",
    "connected_ind",
    "full_sync",
    "peer_out_dated",
    "crashed_primary",
];
/// What both nodes may take to come to rest.
const LIMIT: Duration = Duration::from_secs(60);

/// A recorded meeting.
struct Record {
    value: Value,
}

impl Course for Record {
    fn id(&self) -> &str {
        self.value["id"].as_str().unwrap_or_default()
    }
}

impl Record {
    /// What a side was, and became.
    fn side(&self, when: &str, side: &str) -> &Value {
        &self.value[when][side]
    }

    /// A `connect` that is refused, a handler that refuses, somebody who has the device open, other options of disks, no
    /// disk, and nodes that wait for each other for ever are the engine's to judge.
    fn is_played(&self) -> bool {
        self.value["connect_result"].is_null()
            && ["a", "b"].iter().all(|side| {
                let before = self.side("before", side);
                let plain =
                    ["handler_exit", "held_open", "disk_options"].iter().all(|key| before[key].is_null());
                plain && !before["metadata"].is_null() && self.side("final", side)["conn"] != "WFBitMapT"
            })
    }

    /// Drawn when it was recorded: also by the promotion that came before.
    fn is_random(&self, identifier: &str) -> bool {
        let has = |list: &Value| {
            let texts = list.as_array().into_iter().flatten().filter_map(Value::as_str);
            texts.map(without_role).any(|one| one.is_ok_and(|one| without_role(identifier).ok() == Some(one)))
        };
        let before = ["a", "b"].map(|side| self.side("before", side));
        has(&self.value["random_uuids"])
            || (before.iter().any(|side| has(&side["gi"]))
                && !before.iter().any(|side| has(&side["metadata"]["gi"])))
    }

    /// They do not stay together. Whether a node finds its own reason, or only that the other one has left, is a matter of time.
    fn parts(&self) -> bool {
        let alone = |side: &&str| self.side("final", side)["conn"] == "StandAlone";
        ["a", "b"].iter().any(alone)
    }
}

fn records(name: &str) -> Result<Vec<Record>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/engine/tests/data/states");
    let path = folder.join(name);
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let values: Result<Vec<Value>, _> = text.lines().map(serde_json::from_str).collect();
    let records = values?.into_iter().map(|value| Record { value });
    Ok(records.filter(Record::is_played).collect())
}

/// Ours is `a`, the kernel's is `b`.
pub(crate) fn udrbd_first() -> Result<()> {
    meetings_end_as_between_kernels(0)
}

/// The other way round.
pub(crate) fn kernel_first() -> Result<()> {
    meetings_end_as_between_kernels(1)
}

/// All that is recorded, or in the usual run some of it.
fn meetings_end_as_between_kernels(part: usize) -> Result<()> {
    let mut records = records("after-sb.jsonl")?;
    records.extend(self::records("uuid-handshake.jsonl")?);
    ensure!(records.len() > 120, "only {} records", records.len());
    let stage = Stage { disk_bytes: DISK_BYTES, frontend: Frontend::Nbd, ..Stage::default() };
    let chosen = std::env::var("UDRBD_TEST_RECORD").ok();
    let played = records.iter().enumerate().filter(|(index, record)| {
        let usual = index % USUAL_SHARE == part * USUAL_SHARE / 2;
        chosen.as_ref().map_or(runner::is_long() || usual, |ids| ids.split(',').any(|id| id == record.id()))
    });
    let played: Vec<_> = played.map(|(_, record)| record).collect();
    Duo::play_courses(stage, MIXED[part], &played, take_down, play)
}

fn take_down(duo: &mut Duo) -> Result<()> {
    duo.first.down(&mut duo.guest)?;
    duo.second.down(&mut duo.guest)
}

fn play(duo: &mut Duo, record: &Record) -> Result<()> {
    let sides = [("a", duo.first.clone()), ("b", duo.second.clone())].map(|(name, mut side)| {
        let options = record.value["net_options"][name].as_array().into_iter().flatten();
        side.net = ["--protocol=C", "--ping-timeout=60", "--socket-check-timeout=2"]
            .into_iter()
            .chain(options.filter_map(Value::as_str))
            .map(str::to_owned)
            .collect();
        (name, side)
    });
    for (name, side) in &sides {
        let before = record.side("before", name);
        write_metadata(duo, side, &before["metadata"])?;
        side.attach(&mut duo.guest)?;
        if before["role"] == "Primary" {
            let forced = before["commands_before_connect"][0][2] == "--force";
            side.primary(&mut duo.guest, forced)?;
        }
    }
    let [one, two] = &sides;
    let order = if record.value["connect_order"] == "ba" { [two, one] } else { [one, two] };
    for (_, side) in order {
        side.connect(&mut duo.guest)?;
        std::thread::sleep(Duration::from_millis(350));
    }
    let undecided = come_to_rest(duo, record, &sides)?;
    for (_, side) in &sides {
        side.down(&mut duo.guest)?;
    }
    for ((name, side), undecided) in sides.iter().zip(undecided) {
        let line = duo.guest.sh(&side.meta("get-gi"))?;
        let wanted = match undecided {
            true => &record.side("before", name)["metadata"],
            false => &record.side("final", name)["metadata_after_down"],
        };
        check_identifiers(record, wanted, line.trim()).with_context(|| format!("the metadata of {name}"))?;
    }
    Ok(())
}

/// Identifiers, flags, bits and the agreed size, as they were when the nodes met.
pub(crate) fn write_metadata(duo: &mut Duo, side: &Replica, metadata: &Value) -> Result<()> {
    let identifiers: Vec<_> =
        metadata["gi"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let set = metadata["flags"].as_array().into_iter().flatten();
    let set: Vec<_> = set.filter_map(Value::as_str).collect();
    ensure!(set.iter().all(|flag| FLAGS.contains(flag)), "flags that are not played: {set:?}");
    let flags = FLAGS.map(|flag| if set.contains(&flag) { ":1" } else { ":0" });
    let value = format!("{}{}", identifiers.join(":"), flags.concat());
    let bits = metadata["bits_set"].as_u64().context("a number of bits")?;
    ensure!(identifiers.len() == 4 && bits < 64, "metadata of a shape that is not played");
    let bytes: String =
        ((1_u64 << bits) - 1).to_le_bytes().iter().map(|byte| format!("\\{byte:03o}")).collect();
    let agreed = metadata["last_agreed_sectors"].as_u64().unwrap_or(METADATA);
    let agreed: String = agreed.to_be_bytes().iter().map(|byte| format!("\\{byte:03o}")).collect();
    let disk = &side.disk;
    // Anew each time, as the activity log of before would be applied; the agreed size stands first in the superblock.
    duo.guest.sh(&format!(
        "set -e\n{}\n{}\n\
         printf '{bytes}' | dd of={disk} bs=4096 seek={BITMAP_BLOCK} oflag=direct conv=notrunc,sync status=none\n\
         dd if={disk} of=/run/superblock bs=4096 skip={SUPERBLOCK} count=1 iflag=direct status=none\n\
         printf '{agreed}' | dd of=/run/superblock conv=notrunc status=none\n\
         dd if=/run/superblock of={disk} bs=4096 seek={SUPERBLOCK} oflag=direct conv=notrunc status=none",
        side.meta("create-md"),
        side.meta(&format!("set-gi {value}")),
    ))?;
    Ok(())
}

/// Waits until both sides are as they were recorded, and stay so. Returns which of them have decided nothing.
fn come_to_rest(duo: &mut Duo, record: &Record, sides: &[(&str, Replica); 2]) -> Result<Vec<bool>> {
    let begin = Instant::now();
    let mut agreed = 0;
    loop {
        let mut differences = Vec::new();
        let mut undecided = Vec::new();
        let mut alone = !record.parts();
        for (name, side) in sides {
            let status = side.status(&mut duo.guest)?;
            let wanted = record.side("final", name);
            alone |= status.connection == "StandAlone";
            undecided.push(record.parts() && is_as_before(&status, wanted, record.side("before", name)));
            if undecided.last() != Some(&true) && !is_as(&status, wanted, record.parts()) {
                differences.push(format!("{name} is {status:?}, was {wanted}"));
            }
        }
        if !alone {
            differences.push("neither is StandAlone".to_owned());
        }
        agreed = if differences.is_empty() { agreed + 1 } else { 0 };
        if agreed == 2 {
            return Ok(undecided);
        }
        if begin.elapsed() > LIMIT {
            bail!("{}", differences.join("\n"));
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// A side whose peer has left before the own handler had ended decides nothing: it waits for the next meeting as it was.
fn is_as_before(status: &Status, wanted: &Value, before: &Value) -> bool {
    wanted["conn"] == "WFConnection"
        && status.connection == "WFConnection"
        && before["disk"] == *status.disk
        && before["oos_kb"] == status.out_of_sync_kib
}

fn is_as(status: &Status, wanted: &Value, parts: bool) -> bool {
    let is = |own: &str, key: &str| wanted[key] == own;
    let alone = ["StandAlone", "WFConnection"];
    let left = parts && alone.contains(&status.connection.as_str());
    (is(&status.connection, "conn") || left)
        && is(&status.role, "role")
        && is(&status.peer_role, "peer")
        && is(&status.disk, "disk")
        && is(&status.peer_disk, "pdsk")
        && wanted["oos_kb"] == status.out_of_sync_kib
}

/// `line` is that of `get-gi`: the identifiers, then flags by their place.
fn check_identifiers(record: &Record, wanted: &Value, line: &str) -> Result<()> {
    let fields: Vec<_> = line.split(':').collect();
    let wanted_identifiers = wanted["gi"].as_array().context("recorded identifiers")?;
    for (own, wanted) in fields.iter().zip(wanted_identifiers) {
        let wanted = wanted.as_str().unwrap_or_default();
        if without_role(own)? != without_role(wanted)? && !record.is_random(wanted) {
            bail!("{line}, was {wanted_identifiers:?}");
        }
    }
    for (own, name) in fields.iter().skip(4).zip(&FLAGS[..2]) {
        let was = wanted["flags"].as_array().is_some_and(|flags| flags.iter().any(|flag| flag == name));
        ensure!((*own == "1") == was, "{line}, was {}", wanted["flags"]);
    }
    Ok(())
}

/// The last bit says that the node was Primary. It compares nothing, and the kernel does not write it when it changes.
fn without_role(identifier: &str) -> Result<u64> {
    Ok(u64::from_str_radix(identifier, 16).with_context(|| identifier.to_owned())? & !1)
}
