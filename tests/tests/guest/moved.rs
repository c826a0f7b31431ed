//! What a resync moves that leaves out what it can: equal blocks by their checksums, and ranges without content.
//!
//! Both disks are made by the test, beneath the pair, so every pair begins with the same: runs of blocks that are equal, differ, or are
//! there on one side only. Two kernels tell what has to be moved of it.

use std::fs::File;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use udrbd_tests::replica::{Kind, Replica};
use udrbd_tests::runner;

use crate::duo::Duo;
use crate::replication;

const BLOCK: u64 = 4096;

/// What is planted: less than any disk of a pair, whose end has no content.
const PLANTED_BLOCKS: u64 = (80 << 20) / BLOCK;

/// Lengths of runs, in blocks: longer and shorter than the largest request, in and out of step with it.
const RUNS: [u64; 12] = [1, 2, 3, 8, 16, 17, 40, 64, 128, 300, 700, 1500];

/// A rate that any guest keeps, so that steps and thereby requests do not depend on its speed.
const STEADY: &str = "--c-plan-ahead=0 --resync-rate=10M --c-min-rate=0";

/// The controller as it is by itself, apart from the time that it takes to come up to speed.
const DYNAMIC: &str = "--c-plan-ahead=20 --c-fill-target=1M --c-max-rate=100M --c-min-rate=0";

/// A resync that leaves something out.
struct Sparing {
    name: &'static str,
    net: &'static str,
    disk: String,
}

/// What it has moved.
#[derive(Debug)]
struct Moved {
    /// `ns` of the source and `nr` of the target.
    sent_kib: u64,
    received_kib: u64,
    /// What either side's log says, if anything was compared: eliminated, transferred and total.
    compared: Option<[Compared; 2]>,
    /// What the target's disk takes of its thin device.
    allocated_kib: u64,
}

/// The last words of a resync by checksums, KiB.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
struct Compared {
    eliminated: u64,
    transferred: u64,
    total: u64,
}

/// Blocks with equal checksums are not moved, and no more than those.
pub(crate) fn by_checksums() -> Result<()> {
    let case = |name, disk: &str| Sparing { name, net: "--csums-alg=crc32c", disk: disk.to_owned() };
    judge(&[case("checksums", STEADY)], &[case("checksums, dynamic", DYNAMIC)])
}

/// Ranges without content are not moved, and are discarded on the target.
pub(crate) fn thin() -> Result<()> {
    let case = |name, granularity: u32, disk: &str| Sparing {
        name,
        net: "",
        disk: format!("--rs-discard-granularity={granularity} {disk}"),
    };
    judge(
        &[case("granules of 64 KiB", 65536, STEADY)],
        &[
            case("granules of 1 MiB", 1 << 20, STEADY),
            case("granules of 4 KiB", 4096, STEADY),
            case("granules of 64 KiB, dynamic", 65536, DYNAMIC),
        ],
    )
}

/// Plays the cases, in the long run all of them, with two kernels and with ours in the place of one or both.
fn judge(usual: &[Sparing], long: &[Sparing]) -> Result<()> {
    let long = long.iter().filter(|_| runner::is_long());
    let mut different = Vec::new();
    for case in usual.iter().chain(long) {
        let wanted = moved((Kind::Kernel, Kind::Kernel), case)?;
        println!("{}: two kernels {wanted:?}", case.name);
        ensure!(
            wanted.sent_kib > 0 && wanted.sent_kib < PLANTED_BLOCKS * BLOCK / 1024,
            "two kernels leave out nothing or all: {wanted:?}"
        );
        for kinds in replication::beside_kernels() {
            let got = moved(kinds, case)?;
            println!("{}: {kinds:?} {got:?}", case.name);
            different.extend(
                got.beside(&wanted)
                    .into_iter()
                    .filter(|(_, got, wanted)| got.abs_diff(*wanted) * 100 > *wanted)
                    .map(|(what, got, wanted)| {
                        format!("{}: {kinds:?} {what} {got}, not {wanted}", case.name)
                    }),
            );
        }
    }
    ensure!(different.is_empty(), "{}", different.join("\n"));
    Ok(())
}

impl Moved {
    /// Each figure beside that of two kernels.
    fn beside(&self, wanted: &Self) -> Vec<(&'static str, u64, u64)> {
        let mut pairs = vec![
            ("sent", self.sent_kib, wanted.sent_kib),
            ("received", self.received_kib, wanted.received_kib),
            ("allocated", self.allocated_kib, wanted.allocated_kib),
        ];
        let told = |moved: &Self| {
            moved.compared.unwrap_or([Compared { eliminated: 0, transferred: 0, total: 0 }; 2])
        };
        for (own, kernels) in told(self).into_iter().zip(told(wanted)) {
            pairs.push(("eliminated", own.eliminated, kernels.eliminated));
            pairs.push(("transferred", own.transferred, kernels.transferred));
            pairs.push(("total", own.total, kernels.total));
        }
        pairs
    }
}

/// A full resync of disks that were planted.
fn moved(kinds: (Kind, Kind), case: &Sparing) -> Result<Moved> {
    let mut moved = None;
    Duo::play(kinds, |duo| {
        plant(&duo.guest.disk_file(0), &duo.guest.disk_file(1))?;
        for side in [&mut duo.first, &mut duo.second] {
            side.net.push(case.net.to_owned());
        }
        let (first, second) = (duo.first.clone(), duo.second.clone());
        for side in [&first, &second] {
            side.minor_verb(&mut duo.guest, "disk-options", &case.disk)?;
        }
        duo.connect_and_sync()?;
        let size = duo.size(&first)?;
        duo.compare(size)?;
        // Our status file is written ten times a second.
        std::thread::sleep(Duration::from_millis(500));
        let is_compared = !case.net.is_empty();
        let told = |duo: &mut Duo| -> Result<_> { Ok([compared(duo, &first)?, compared(duo, &second)?]) };
        moved = Some(Moved {
            sent_kib: first.status(&mut duo.guest)?.sent_kib,
            received_kib: second.status(&mut duo.guest)?.received_kib,
            compared: is_compared.then(|| told(duo)).transpose()?,
            allocated_kib: allocated_kib(&duo.guest.disk_file(1))?,
        });
        Ok(())
    })?;
    moved.context("the scenario was played")
}

/// Content of both disks, the same each time.
fn plant(source: &Path, target: &Path) -> Result<()> {
    let open = |path| File::options().write(true).open(path);
    let (source, target) = (open(source)?, open(target)?);
    let mut state = 20_u64;
    let mut random = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state >> 33
    };
    let mut next = 0;
    while next < PLANTED_BLOCKS {
        let blocks = RUNS[(random() % RUNS.len() as u64) as usize].min(PLANTED_BLOCKS - next);
        let content = |seed: u64| -> Vec<u8> {
            (0..blocks).flat_map(|block| [(seed + next + block) as u8 | 1; BLOCK as usize]).collect()
        };
        let write = |file: &File, data: &[u8]| file.write_all_at(data, next * BLOCK);
        let zeroes = vec![0; (blocks * BLOCK) as usize];
        match random() % 6 {
            0 | 1 => {
                write(&source, &content(0))?;
                write(&target, &content(0))?;
            }
            2 => {
                write(&source, &content(0))?;
                write(&target, &content(2))?;
            }
            3 => write(&source, &content(0))?,
            4 => write(&target, &content(0))?,
            // Written, and nothing but zeroes.
            _ => {
                write(&source, &zeroes)?;
                write(&target, &content(0))?;
            }
        }
        next += blocks;
    }
    source.sync_all()?;
    target.sync_all()?;
    Ok(())
}

/// What a sparse file takes.
fn allocated_kib(path: &Path) -> Result<u64> {
    let file = File::open(path)?;
    file.sync_all()?;
    Ok(file.metadata()?.blocks() / 2)
}

/// What a side's log says of its last resync by checksums.
fn compared(duo: &mut Duo, side: &Replica) -> Result<Compared> {
    let log = match side.kind {
        Kind::Kernel => format!("dmesg | grep 'drbd{}: '", side.minor),
        Kind::Udrbd => format!("cat {}/log", side.run_dir),
    };
    let text = duo.guest.sh(&format!("{log} | grep 'equal checksums' | tail -n1"))?;
    let figure = |after: &str| -> Option<u64> {
        let rest = text.split_once(after)?.1.trim_start();
        rest.split_once('K')?.0.parse().ok()
    };
    match (figure("eliminated: "), figure("transferred "), figure("total ")) {
        (Some(eliminated), Some(transferred), Some(total)) => Ok(Compared { eliminated, transferred, total }),
        _ => bail!("the log of {} does not say what was equal: {text:?}", side.resource),
    }
}
