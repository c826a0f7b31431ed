//! What tools for disks do with a block device: those of util-linux, fio in the ways of blktests' block group, QEMU's,
//! and blktests itself where it is at hand.

use std::time::Duration;

use anyhow::{Result, bail};
use udrbd_tests::guest::Guest;
use udrbd_tests::replica::{Frontend, Kind};
use udrbd_tests::{images, machine};

use crate::block::{FIO, NOT, run};
use crate::duo::Duo;

/// A raw image and a qcow2 one, written through one node and checked through the other.
pub(crate) fn images_of_guests() -> Result<()> {
    machine::ensure_packages(images::PACKAGES)?;
    Duo::play_on(Frontend::Ublk, (Kind::Udrbd, Kind::Kernel), |duo| {
        let (first, second) = (duo.first.clone(), duo.second.clone());
        duo.connect_and_sync()?;
        let size = duo.size(&first)?;
        let folder = "/run/images";
        for (put, check) in [
            (images::put_raw as fn(&str, &str) -> String, images::check_raw as fn(&str, &str) -> String),
            (images::put_qcow2, images::check_qcow2),
        ] {
            run(duo, &put(&first.device(), folder))?;
            duo.compare(size)?;
            first.secondary(&mut duo.guest)?;
            second.primary(&mut duo.guest, false)?;
            run(duo, &check(&second.device(), folder))?;
            second.secondary(&mut duo.guest)?;
            first.primary(&mut duo.guest, false)?;
        }
        duo.compare(size)
    })
}

/// Each line is a test of its own, with the device as `$d` and its folder in sysfs as `$q`. They stand for those of
/// blktests' block group that are for any disk: 003 to 005, 008, 012, and the discontiguous and odd requests of 0xx.
const BLOCK_LAYER: &[(&str, &str)] = &[
    (
        "it is listed",
        "test \"$(lsblk -bnro TYPE,RO,LOG-SEC $d)\" = 'disk 0 512'; blockdev --report $d | grep -q '^rw '",
    ),
    (
        "requests of one sector, and of parts of pages",
        "dd if=/dev/urandom of=/run/odd bs=512 count=777 status=none\n\
         dd if=/run/odd of=$d bs=512 seek=3 oflag=direct status=none\n\
         dd if=$d bs=512 skip=3 count=777 iflag=direct status=none | cmp - /run/odd\n\
         dd if=$d bs=7777 count=51 iflag=skip_bytes skip=1536 status=none | cmp -n 396627 - /run/odd",
    ),
    (
        "a request that is no multiple of a sector is refused",
        "not dd if=$d of=/dev/null bs=100 count=1 iflag=direct status=none 2>/run/told; grep -q 'Invalid argument' /run/told",
    ),
    (
        "the end is the end",
        "size=$(blockdev --getsize64 $d); dd if=/dev/zero of=$d bs=512 seek=$((size / 512 - 1)) count=1 oflag=direct status=none\n\
         not dd if=/dev/zero of=$d bs=512 seek=$((size / 512)) count=1 oflag=direct status=none 2>/run/told\n\
         grep -q 'No space left' /run/told",
    ),
    (
        "discards of all sizes",
        "fio --name=t --filename=$d --rw=randtrim --bsrange=512-4m --norandommap --number_ios=400 --randseed=3\n\
         fio --name=t --filename=$d --rw=randtrim --bsrange=512-4m --norandommap --number_ios=200 --randseed=4 --ioengine=libaio \
             --direct=1 --iodepth=16",
    ),
    (
        "discards between writes that are checked",
        "fio --name=t --filename=$d --rw=trimwrite --bs=16k --size=16m --verify=crc32c --direct=1 --ioengine=libaio --iodepth=4",
    ),
    ("discarded, all of it", "blkdiscard -f $d; cmp -n 8000000 $d /dev/zero; blkdiscard -f -z -l 4194304 $d"),
    ("a secure discard is refused", "not blkdiscard -f -s $d 2>/run/told; grep -q 'not supported' /run/told"),
    (
        "lots of flushes",
        "fio --name=t --filename=$d --bs=4k --rw=randwrite --norandommap --fsync=1 --number_ios=16 --numjobs=64",
    ),
    (
        "schedulers change under load",
        "for m in bfq kyber-iosched mq-deadline; do modprobe $m || true; done\n\
         $fio --size=32m --filename=$d & job=$!; turns=0\n\
         while kill -0 $job 2>/dev/null; do\n\
             for s in $(tr -d '[]' <$q/queue/scheduler); do echo $s >$q/queue/scheduler; turns=$((turns + 1)); sleep 0.2; done\n\
         done; wait $job; test $turns -gt 8; echo none >$q/queue/scheduler",
    ),
    (
        "limits of the queue change under load",
        "$fio --size=24m --filename=$d & job=$!\n\
         while kill -0 $job 2>/dev/null; do\n\
             for kib in 4 64 128; do echo $kib >$q/queue/max_sectors_kb; echo $((kib + 4)) >$q/queue/read_ahead_kb; sleep 0.3; done\n\
         done; wait $job",
    ),
    (
        "processors go and come under load",
        "$fio --size=32m --filename=$d & job=$!; turns=0\n\
         while kill -0 $job 2>/dev/null; do\n\
             for on in 0 1; do echo $on >/sys/devices/system/cpu/cpu1/online; turns=$((turns + 1)); sleep 0.3; done\n\
         done; wait $job; test $turns -gt 3",
    ),
    (
        "read-only, nothing is written",
        "tr '\\0' a </dev/zero | dd of=$d bs=1M count=1 oflag=direct iflag=fullblock status=none\n\
         blockdev --setro $d; test $(blockdev --getro $d) = 1\n\
         not dd if=/dev/zero of=$d bs=1M count=1 oflag=direct status=none; not blkdiscard -f $d\n\
         dd if=$d bs=1M count=1 iflag=direct status=none | tr -d a | wc -c | grep -qx 0\n\
         blockdev --setrw $d; test $(blockdev --getro $d) = 0; dd if=/dev/zero of=$d bs=1M count=1 oflag=direct status=none",
    ),
    (
        "opened and closed, and its partitions read, under load",
        "$fio --size=16m --filename=$d & job=$!\n\
         while kill -0 $job 2>/dev/null; do blockdev --flushbufs $d; blockdev --rereadpt $d 2>/dev/null || true; done; wait $job",
    ),
    (
        "engines of fio",
        "for engine in sync psync pvsync2 libaio posixaio io_uring; do\n\
             fio --name=t --filename=$d --ioengine=$engine --rw=randwrite --bs=4k --size=2m --iodepth=8 --verify=crc32c\n\
         done\n\
         fio --name=t --filename=$d --ioengine=io_uring --fixedbufs=1 --registerfiles=1 --nonvectored=1 --direct=1 --rw=randwrite \
             --bs=64k --size=8m --iodepth=8 --verify=crc32c",
    ),
];

/// What blktests asks of any disk, in words of our own; afterwards the peer has the same.
pub(crate) fn block_layer() -> Result<()> {
    machine::ensure_packages(&["fio"])?;
    Duo::play_on(Frontend::Ublk, (Kind::Udrbd, Kind::Kernel), |duo| {
        let first = duo.first.clone();
        duo.connect_and_sync()?;
        let size = duo.size(&first)?;
        let mut failed = Vec::new();
        for (name, script) in BLOCK_LAYER {
            let script = format!(
                "set -e; {NOT}; d={} q=/sys/block/ublkb{} fio='{FIO} --fsync=32'\n{script}",
                first.device(),
                first.minor
            );
            let output = duo.guest.run_limited(&script, Duration::from_secs(300))?;
            if output.status != 0 {
                failed.push(format!("{name}: {output:?}"));
            }
            first.wait_healthy(&mut duo.guest)?;
            if let Err(error) = duo.compare(size) {
                failed.push(format!("{name}: {error:#}"));
            }
        }
        if !failed.is_empty() {
            bail!("{}", failed.join("\n"));
        }
        Ok(())
    })
}

/// The group `block` of blktests, where `UDRBD_BLKTESTS` names a folder with it, built; it is in no Debian package.
pub(crate) fn blktests() -> Result<()> {
    let Some(folder) = std::env::var_os("UDRBD_BLKTESTS") else {
        return Err(machine::skip(
            "needs UDRBD_BLKTESTS, the path of a built blktests (no Debian package has it)",
        ));
    };
    let folder = folder.to_string_lossy().into_owned();
    machine::ensure_packages(&["fio", "xfsprogs", "bsdextrautils", "gawk"])?;
    Duo::play_on(Frontend::Ublk, (Kind::Udrbd, Kind::Kernel), |duo| {
        let first = duo.first.clone();
        duo.connect_and_sync()?;
        let size = duo.size(&first)?;
        // Only those that take a device are about it; the others are about the kernel.
        let script = format!(
            "ln -sfn /proc/self/fd /dev/fd; cp -r {folder} /run/blktests; cd /run/blktests\n\
             printf 'TEST_DEVS=(%s)\\nTIMEOUT=30\\nQUICK_RUN=1\\n' {} >config\n\
             ./check $(grep -l '^test_device()' tests/block/* | sed 's|tests/||') >{share}/blktests 2>&1\n\
             cat results/*/block/*.bad >>{share}/blktests 2>/dev/null; true",
            first.device(),
            share = Guest::SHARE
        );
        duo.guest.run_limited(&script, Duration::from_secs(900))?.expect_success()?;
        let told = std::fs::read_to_string(duo.guest.share().join("blktests"))?;
        println!("{told}");
        if told.contains("[failed]") || !told.contains("[passed]") {
            bail!("{told}");
        }
        first.wait_healthy(&mut duo.guest)?;
        duo.compare(size)
    })
}
