//! Discards and zeroes on thin devices: both sides stay equal, and as thin as those of two kernels.

use std::fs::File;
use std::os::unix::fs::MetadataExt as _;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use udrbd_tests::replica::{Frontend, Kind, Replica};
use udrbd_tests::runner;

use crate::block::run;
use crate::duo::{Duo, IO};
use crate::replication;

/// What lies below a side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Below {
    /// A disk that discards any sector, whose file is sparse.
    Sparse,
    /// A thin volume of device mapper, which discards nothing less than its chunks of 64 KiB.
    Pool,
}

/// One thing that is done on the Primary's device, by commands for `$device`.
struct Step {
    name: &'static str,
    script: &'static str,
}

const STEPS: &[Step] = &[
    // What the others take away from.
    Step {
        name: "content",
        script: "head -c 62914560 /run/content | dd of=$device bs=1M oflag=direct status=none",
    },
    Step { name: "discard", script: "blkdiscard -o 0 -l 4194304 $device" },
    Step { name: "unaligned discard", script: "blkdiscard -o 5247488 -l 2000384 $device" },
    Step {
        name: "small discards",
        script: "blkdiscard -o 8454144 -l 4096 $device; blkdiscard -o 8519680 -l 65536 $device; blkdiscard -o 8716288 -l 66048 $device",
    },
    Step { name: "zeroes", script: "blkdiscard -z -o 12582912 -l 2097152 $device" },
    Step { name: "unaligned zeroes", script: "blkdiscard -z -o 15733248 -l 1000448 $device" },
    Step { name: "zeroes that may unmap", script: "fallocate -z -o 18874368 -l 2097152 $device" },
    Step { name: "unaligned zeroes that may unmap", script: "fallocate -z -o 22024704 -l 1003520 $device" },
    Step { name: "holes", script: "fallocate -p -o 25165824 -l 2097152 $device" },
    Step { name: "unaligned holes", script: "fallocate -p -o 28316160 -l 1003520 $device" },
    Step {
        name: "content again",
        script: "head -c 8388608 /run/content | dd of=$device bs=64k oflag=direct status=none",
    },
];

/// What the peer is not there for: the resync brings it.
const ALONE: &str = "blkdiscard -o 33554432 -l 8388608 $device\nblkdiscard -z -o 44040192 -l 1048576 $device\n\
                     head -c 1048576 /run/content | dd of=$device bs=1M seek=46 oflag=direct status=none\n\
                     blkdiscard -o 1048576 -l 1000448 $device";

/// A file system that gives back what was deleted. It writes nothing by itself later on: how much it has written would be chance.
const TRIM: &str = "mkfs.ext4 -q -F -E nodiscard,lazy_itable_init=0,lazy_journal_init=0 -U 3d1f4c5e-0000-4000-8000-000000000001 $device; mkdir -p /run/mnt; mount $device /run/mnt\n\
                    for i in 0 1 2 3 4 5 6 7; do head -c 4000000 /run/content >/run/mnt/$i; sync; done\n\
                    rm /run/mnt/1 /run/mnt/3 /run/mnt/4; sync; fstrim /run/mnt; umount /run/mnt";

/// After each step: what either disk takes of its thin device, KiB.
type Account = Vec<(&'static str, [u64; 2])>;

/// On disks that discard any sector.
pub(crate) fn sparse() -> Result<()> {
    judge(Below::Sparse)
}

/// On disks that discard chunks.
pub(crate) fn pool() -> Result<()> {
    judge(Below::Pool)
}

fn judge(below: Below) -> Result<()> {
    let wanted = account(below, (Kind::Kernel, Kind::Kernel))?;
    println!("{below:?}, two kernels: {wanted:?}");
    let full = wanted.first().map_or(0, |(_, kib)| kib[1]);
    ensure!(wanted.iter().any(|(_, kib)| kib[1] + (8 << 10) < full), "nothing gets thinner: {wanted:?}");
    let mut different = Vec::new();
    for kinds in replication::beside_kernels() {
        let got = account(below, kinds)?;
        println!("{below:?}, {kinds:?}: {got:?}");
        for ((step, own), (_, kernels)) in got.iter().zip(&wanted) {
            if own.iter().zip(kernels).any(|(own, kernels)| own.abs_diff(*kernels) * 100 > *kernels) {
                different.push(format!("{kinds:?} after {step}: {own:?} KiB, not {kernels:?}"));
            }
        }
    }
    ensure!(different.is_empty(), "{}", different.join("\n"));
    Ok(())
}

fn account(below: Below, kinds: (Kind, Kind)) -> Result<Account> {
    let mut account = Account::new();
    Duo::play_on(Frontend::Ublk, kinds, |duo| {
        // The same bytes each time, and no zeroes among them.
        duo.guest.sh("yes 0123456789abcde | head -c 62914560 >/run/content")?;
        if below == Below::Pool {
            build_pools(duo)?;
        }
        let (first, second) = (duo.first.clone(), duo.second.clone());
        for side in [&first, &second] {
            side.minor_verb(&mut duo.guest, "disk-options", "--rs-discard-granularity=65536 --c-min-rate=0")?;
        }
        duo.connect()?;
        for side in [&first, &second] {
            side.wait(&mut duo.guest, "Connected", Duration::from_secs(60), |s| s.connection == "Connected")?;
        }
        // In sync without a sync: both have nothing yet.
        first.minor_verb(&mut duo.guest, "new-current-uuid", "--clear-bitmap")?;
        duo.wait_healthy()?;
        first.primary(&mut duo.guest, false)?;
        let size = duo.size(&first)?;
        let on_device = |script: &str| format!("device={}\n{script}", first.device());
        for step in STEPS {
            run(duo, &on_device(step.script)).with_context(|| step.name)?;
            account.push((step.name, settled(duo, below, size)?));
        }
        second.disconnect(&mut duo.guest)?;
        first.wait(&mut duo.guest, "WFConnection", Duration::from_secs(60), |s| {
            s.connection == "WFConnection"
        })?;
        run(duo, &on_device(ALONE))?;
        second.connect(&mut duo.guest)?;
        duo.wait_healthy()?;
        account.push(("a resync", settled(duo, below, size)?));
        if runner::is_long() {
            run(duo, &on_device(TRIM))?;
            account.push(("fstrim", settled(duo, below, size)?));
        }
        for side in [&first, &second] {
            side.down(&mut duo.guest)?;
        }
        if below == Below::Pool {
            duo.guest
                .sh("for i in a b; do for d in thin pool data meta; do dmsetup remove $d$i; done; done")?;
        }
        duo.guest.sh("rm /run/content")?;
        // As the harness finds them at the end.
        for (side, disk) in [(&mut duo.first, "/dev/vda"), (&mut duo.second, "/dev/vdb")] {
            disk.clone_into(&mut side.disk);
            let side = side.clone();
            side.create_md(&mut duo.guest)?;
            side.attach(&mut duo.guest)?;
        }
        Ok(())
    })?;
    Ok(account)
}

/// Puts a thin volume below either side, in a pool of its own.
fn build_pools(duo: &mut Duo) -> Result<()> {
    let script = "modprobe dm-mod; modprobe dm-thin-pool\n\
         for i in a b; do\n\
             dmsetup create meta$i --table \"0 8192 linear /dev/vd$i 0\"\n\
             dmsetup create data$i --table \"0 180224 linear /dev/vd$i 8192\"\n\
             dmsetup mknodes\n\
             dmsetup create pool$i --table \"0 180224 thin-pool /dev/mapper/meta$i /dev/mapper/data$i 128 0\"\n\
             dmsetup mknodes\n\
             dmsetup message pool$i 0 'create_thin 0'\n\
             dmsetup create thin$i --table \"0 180224 thin /dev/mapper/pool$i 0\"\n\
             dmsetup mknodes\n\
         done";
    for side in [&duo.first, &duo.second] {
        side.down(&mut duo.guest)?;
    }
    // What drbdmeta has written is none of the pool's.
    duo.guest.sh("blkdiscard -f /dev/vda; blkdiscard -f /dev/vdb")?;
    run(duo, script)?;
    for (side, disk) in [(&mut duo.first, "/dev/mapper/thina"), (&mut duo.second, "/dev/mapper/thinb")] {
        disk.clone_into(&mut side.disk);
        let side = side.clone();
        side.create_md(&mut duo.guest)?;
        side.attach(&mut duo.guest)?;
    }
    Ok(())
}

/// Both are equal; what each of them takes.
fn settled(duo: &mut Duo, below: Below, bytes: u64) -> Result<[u64; 2]> {
    let (first, second) = (duo.first.clone(), duo.second.clone());
    duo.guest.sh("sync")?;
    run(duo, &format!("{IO} compare {} {} --bytes {bytes}", first.disk, second.disk))?;
    Ok([allocated_kib(duo, below, &first, 0)?, allocated_kib(duo, below, &second, 1)?])
}

fn allocated_kib(duo: &mut Duo, below: Below, side: &Replica, index: usize) -> Result<u64> {
    match below {
        Below::Sparse => {
            let file = File::open(duo.guest.disk_file(index))?;
            file.sync_all()?;
            Ok(file.metadata()?.blocks() / 2)
        }
        Below::Pool => {
            let name = side.disk.trim_start_matches("/dev/mapper/");
            let text = duo.guest.sh(&format!("dmsetup status {name}"))?;
            let sectors: u64 =
                text.split_whitespace().nth(3).context("mapped sectors")?.parse().context("a number")?;
            Ok(sectors / 2)
        }
    }
}
