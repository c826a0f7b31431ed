//! A file system under load on a block device; its node loses power; the other one takes over.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use udrbd_tests::guest::Guest;
use udrbd_tests::machine;
use udrbd_tests::replica::Kind;
use udrbd_tests::runner;

use crate::duo::compare_files;
use crate::power::{Node, boot};

const MOUNT: &str = "/run/mnt";
/// Small, as all of it is in the activity log and is resynced in every round.
const DISK_BYTES: u64 = 36 << 20;
/// Takeovers of the usual run, and of the long one.
const ROUNDS: u64 = 10;
const ROUNDS_LONG: u64 = 200;
/// Promises of each sort, below which a round proves nothing.
const PROMISES_MIN: u64 = 5;

/// What was promised: forced records and committed rows.
#[derive(Debug, Clone, Copy, Default)]
struct Promises {
    records: u64,
    rows: u64,
}

impl Promises {
    /// What a guest noted outside of itself.
    fn read(share: &Path) -> Result<Self> {
        let number = |name: &str| -> Result<u64> {
            let text = std::fs::read_to_string(share.join(name)).unwrap_or_default();
            if text.is_empty() {
                return Ok(0);
            }
            text.trim().parse().with_context(|| format!("`{text}` {name}"))
        };
        Ok(Self { records: number("records")?, rows: number("rows")? })
    }
}

/// Each round: records are appended and forced to the disk one by one, rows are committed to a database, fio writes
/// beside them; at some moment the power goes, and the survivor mounts what it has. Every record and row of this and
/// all earlier rounds is there, the file system is clean, and after the resync both disks are equal.
pub(crate) fn under_load() -> Result<()> {
    machine::ensure_packages(&["fio", "python3"])?;
    let rounds = if runner::is_long() { ROUNDS_LONG } else { ROUNDS };
    let (mut primary, mut survivor, _cable) = boot(DISK_BYTES, Kind::Udrbd, Kind::Udrbd)?;
    for node in [&mut primary, &mut survivor] {
        node.side = node.side.clone().with_ublk();
        // The loss of the peer is noticed sooner, its return too.
        node.side.net = ["--protocol=C", "--connect-int=1", "--ping-int=1", "--ping-timeout=20"]
            .map(str::to_owned)
            .into();
        std::fs::write(node.guest.share().join("promises.py"), include_str!("promises.py"))?;
        node.prepare()?;
    }
    primary
        .side
        .wait(&mut primary.guest, "Connected", Duration::from_secs(60), |s| s.connection == "Connected")?;
    primary.side.primary(&mut primary.guest, true)?;
    primary.side.wait_healthy(&mut primary.guest)?;
    primary.guest.sh(&format!("mkfs.ext4 -q -F {}", primary.side.device()))?;
    let size: u64 =
        primary.guest.sh(&format!("blockdev --getsize64 {}", primary.side.device()))?.trim().parse()?;
    let begin = Instant::now();
    let mut kept = Promises::default();
    for round in 0..rounds {
        let result = take_over(&mut primary, &mut survivor, round, kept, size);
        kept = result.map_err(|error| {
            let logs = [&mut primary, &mut survivor].map(|node| {
                let log = node.side.log(&mut node.guest);
                format!("--- {}\n{log}", node.guest.name())
            });
            error.context(format!("round {round}, {kept:?} before it\n{}", logs.join("\n")))
        })?;
        std::mem::swap(&mut primary, &mut survivor);
    }
    println!(
        "{rounds} takeovers in {} s, with {} records forced and {} rows committed",
        begin.elapsed().as_secs(),
        kept.records,
        kept.rows
    );
    Ok(())
}

/// Goes on with the promises of earlier rounds, while fio checks what it writes itself.
fn load(device: &str) -> String {
    format!(
        "set -e; mkdir -p {MOUNT}; mount {device} {MOUNT}\n\
         (while :; do fio --name=noise --filename={MOUNT}/noise --size=4m --rw=randwrite --bsrange=4k-64k --ioengine=libaio \
             --iodepth=8 --direct=1 --fsync=16 --verify=crc32c --randseed=$RANDOM --output=/dev/null; done) &\n\
         python3 {share}/promises.py make {MOUNT} {share}",
        share = Guest::SHARE
    )
}

/// One round. Returns what has been promised up to its end.
fn take_over(
    primary: &mut Node,
    survivor: &mut Node,
    round: u64,
    before: Promises,
    size: u64,
) -> Result<Promises> {
    let share = primary.guest.share();
    for name in ["records", "rows"] {
        let _absent = std::fs::remove_file(share.join(name));
    }
    let device = primary.side.device();
    let _interrupted = primary.guest.spawn(&load(&device), Duration::from_secs(240))?;
    let enough = |promises: &Promises| {
        promises.records >= before.records + PROMISES_MIN && promises.rows >= before.rows + PROMISES_MIN
    };
    let deadline = Instant::now() + Duration::from_secs(60);
    while !enough(&Promises::read(&share)?) {
        if Instant::now() > deadline {
            bail!("the load makes no progress: {:?} after {before:?}", Promises::read(&share)?);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    // Another moment in each round.
    std::thread::sleep(Duration::from_millis(round * 7919 % 2000));
    primary.guest.power_cut()?;
    let promised = Promises::read(&share)?;
    // It boots while the other one takes over, and does nothing else yet.
    primary.guest.start_again()?;
    survivor.side.wait(&mut survivor.guest, "the loss of the peer", Duration::from_secs(60), |s| {
        s.peer_disk == "DUnknown" && s.connection == "WFConnection"
    })?;
    survivor.side.primary(&mut survivor.guest, false)?;
    let device = survivor.side.device();
    let check = format!(
        "set -e\nmkdir -p {MOUNT}; mount {device} {MOUNT}\n\
         python3 {}/promises.py check {MOUNT} {} {}\n\
         umount {MOUNT}; e2fsck -fn {device} >&2",
        Guest::SHARE,
        promised.records,
        promised.rows
    );
    survivor.guest.run_limited(&check, Duration::from_secs(120))?.expect_success()?;
    primary.guest.wait_ready()?;
    primary.side.bring_up(&mut primary.guest)?;
    primary.side.wait_healthy(&mut primary.guest)?;
    survivor.side.wait_healthy(&mut survivor.guest)?;
    compare_files(&primary.guest.disk_file(0), &survivor.guest.disk_file(0), size)?;
    Ok(promised)
}
