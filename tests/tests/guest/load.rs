//! File systems on a block device under everything that writes to files, for minutes; with a daemon that stays, and
//! with one that is killed again and again.

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use udrbd_tests::guest::Guest;
use udrbd_tests::machine;
use udrbd_tests::replica::{Frontend, Kind, Replica};

use crate::block::{MOUNT, run};
use crate::duo::{Duo, Stage};

/// xfs takes no smaller ones.
const DISK_BYTES: u64 = 400 << 20;
/// How long each load lasts.
const SECONDS: u64 = 120;
const SECONDS_OF_DEATHS: u64 = 300;

/// A file system with its words for making it, mounting it and checking it.
struct FileSystem {
    make: &'static str,
    mount: &'static str,
    check: &'static str,
}

const EXT4: FileSystem =
    FileSystem { make: "mkfs.ext4 -q -F", mount: "mount -o discard", check: "e2fsck -fn" };
const XFS: FileSystem =
    FileSystem { make: "modprobe xfs; mkfs.xfs -q -f", mount: "mount", check: "xfs_repair -n" };

pub(crate) fn ext4_and_udrbd() -> Result<()> {
    undisturbed(&EXT4, Kind::Udrbd)
}

pub(crate) fn ext4_and_kernel() -> Result<()> {
    undisturbed(&EXT4, Kind::Kernel)
}

pub(crate) fn xfs_and_udrbd() -> Result<()> {
    undisturbed(&XFS, Kind::Udrbd)
}

pub(crate) fn xfs_and_kernel() -> Result<()> {
    undisturbed(&XFS, Kind::Kernel)
}

fn undisturbed(system: &FileSystem, peer: Kind) -> Result<()> {
    soak(system, peer, SECONDS, |duo, end| {
        while Instant::now() < end {
            std::thread::sleep(Duration::from_secs(5));
            let status = duo.first.status(&mut duo.guest)?;
            ensure!(status.is_healthy(), "under load it is {status:?}");
        }
        Ok("undisturbed".to_owned())
    })
}

/// The daemon is killed every few seconds and comes back as its service manager brings it back. No program notices.
pub(crate) fn many_deaths() -> Result<()> {
    soak(&EXT4, Kind::Kernel, SECONDS_OF_DEATHS, |duo, end| {
        let first = duo.first.clone();
        let (mut deaths, mut while_resyncing) = (0_u64, 0);
        let mut longest = Duration::ZERO;
        while Instant::now() < end {
            std::thread::sleep(Duration::from_millis(1500 + deaths * 7919 % 4000));
            while_resyncing += u64::from(first.status(&mut duo.guest)?.connection == "SyncSource");
            first.kill_daemon(&mut duo.guest)?;
            let away = Instant::now();
            first.start(&mut duo.guest)?;
            duo.guest.sh(&first.resources("resume"))?;
            longest = longest.max(away.elapsed());
            deaths += 1;
            let role = first.status(&mut duo.guest)?.role;
            ensure!(role == "Primary", "after death {deaths} it is {role}");
        }
        ensure!(deaths >= SECONDS_OF_DEATHS / 30, "only {deaths} deaths");
        Ok(format!(
            "{deaths} deaths, {while_resyncing} of them during a resync, the longest absence {} s",
            longest.as_secs()
        ))
    })
}

/// Brings the first side up by its configuration, as a service manager needs it to bring it up again.
pub(crate) fn configure(duo: &mut Duo, first: &Replica, second: &Replica) -> Result<()> {
    first.down(&mut duo.guest)?;
    let on = |side: &Replica| {
        format!(
            "on {} {{ device minor {}; disk {}; address {}; meta-disk internal; }}",
            side.node, side.minor, side.disk, side.own
        )
    };
    let file = format!(
        "global {{ usage-count no; }}\nresource {} {{\n\
         net {{ protocol C; connect-int 2; ping-int 3; ping-timeout 20; }}\n\
         # A resync after a crash covers what the activity log does.
         disk {{ c-plan-ahead 0; resync-rate 200M; al-extents 13; }}\n{}\n{}\n}}\n",
        first.resource,
        on(first),
        on(second)
    );
    std::fs::write(duo.guest.share().join("drbd.conf"), file)?;
    run(duo, &first.adm(&format!("-c {}/drbd.conf up {}", Guest::SHARE, first.resource)))?;
    second.connect(&mut duo.guest)
}

/// Programs that check what they write, side by side on the file system in `MOUNT`, for so many seconds.
pub(crate) fn programs(seconds: u64) -> String {
    format!(
        "end=$(($(date +%s) + {seconds}))\n\
         passes() {{\n\
             name=$1; shift; count=0\n\
             while [ $(date +%s) -lt $end ]; do\n\
                 count=$((count + 1))\n\
                 fio --name=$name --directory={MOUNT} --verify_fatal=1 --randseed=$count \"$@\" >/run/fio.$name 2>&1 || \
                     {{ cat /run/fio.$name >&2; exit 1; }}\n\
             done\n\
             echo \"$name: $count passes\"\n\
         }}\n\
         jobs=\n\
         passes direct --direct=1 --ioengine=libaio --iodepth=8 --rw=randwrite --bsrange=4k-64k --size=16m --fsync=32 \
             --verify=crc32c & jobs=\"$jobs $!\"\n\
         passes buffered --ioengine=psync --rw=randwrite --bsrange=512-16k --size=4m --fdatasync=16 --verify=crc32c & \
             jobs=\"$jobs $!\"\n\
         passes mapped --ioengine=mmap --rw=randwrite --bs=4k --size=8m --fsync=64 --verify=md5 & jobs=\"$jobs $!\"\n\
         passes sequential --numjobs=2 --direct=1 --rw=write --bs=128k --size=8m --end_fsync=1 --verify=crc32c & \
             jobs=\"$jobs $!\"\n\
         python3 {share}/fsx.py {MOUNT} 1 {seconds} & jobs=\"$jobs $!\"\n\
         # What is read comes from the device, and space that is free goes back to it.\n\
         while sleep 5; do echo 1 >/proc/sys/vm/drop_caches; fstrim {MOUNT}; done & trims=$!\n\
         failed=0; for job in $jobs; do wait $job || failed=1; done; kill $trims; exit $failed",
        share = Guest::SHARE
    )
}

/// Makes the file system on a pair, runs the load while `meanwhile` does what it does until the load ends, and checks
/// everything: the programs' own checks, the file system on either node, its files, and both disks.
fn soak(
    system: &FileSystem,
    peer: Kind,
    seconds: u64,
    meanwhile: impl FnOnce(&mut Duo, Instant) -> Result<String>,
) -> Result<()> {
    machine::ensure_packages(&["fio", "xfsprogs", "python3"])?;
    let stage = Stage { disk_bytes: DISK_BYTES, frontend: Frontend::Ublk, ..Stage::default() };
    Duo::play_at(stage, (Kind::Udrbd, peer), |duo| {
        let (first, second) = (duo.first.clone(), duo.second.clone());
        configure(duo, &first, &second)?;
        for side in [&first, &second] {
            side.wait(&mut duo.guest, "Connected", Duration::from_secs(60), |s| s.connection == "Connected")?;
        }
        // Both disks are empty: there is nothing to sync.
        first.minor_verb(&mut duo.guest, "new-current-uuid", "--clear-bitmap")?;
        duo.wait_healthy()?;
        first.primary(&mut duo.guest, false)?;
        let device = first.device();
        let size = duo.size(&first)?;
        let FileSystem { make, mount, check } = system;
        run(duo, &format!("{make} {device}; mkdir -p {MOUNT}; {mount} {device} {MOUNT}"))?;
        std::fs::write(duo.guest.share().join("fsx.py"), include_str!("fsx.py"))?;
        let job = duo.guest.spawn(&programs(seconds), Duration::from_secs(seconds * 2 + 300))?;
        let what = meanwhile(duo, Instant::now() + Duration::from_secs(seconds))?;
        let told = duo.guest.wait(job)?.expect_success()?;
        let sums = format!("{}/sums", Guest::SHARE);
        run(duo, &format!("sync; md5sum {MOUNT}/*.* >{sums}; umount {MOUNT}; {check} {device}"))?;
        duo.wait_healthy()?;
        duo.compare(size)?;
        first.secondary(&mut duo.guest)?;
        second.primary(&mut duo.guest, false)?;
        let there = second.device();
        run(
            duo,
            &format!(
                "{check} {there}; {mount} {there} {MOUNT}; md5sum --quiet -c {sums}; umount {MOUNT}; rm -r {MOUNT}"
            ),
        )?;
        let errors = duo.guest.sh(
            "dmesg | grep -iE 'i/o error|ext4-fs (error|warning)|xfs .*(corrupt|error|shutdown)|hung|BUG:|WARNING:' || true",
        )?;
        if !errors.is_empty() {
            bail!("the kernel says:\n{errors}");
        }
        println!("{what}; {}", told.trim().replace('\n', ", "));
        Ok(())
    })
}
