//! Volumes as block devices of the kernel: `/dev/drbdN`.

use std::time::Duration;

use anyhow::{Result, bail};
use udrbd_tests::guest::KernelChoice;
use udrbd_tests::machine;
use udrbd_tests::replica::{Frontend, Kind, Replica, Status};
use udrbd_tests::shell::Shell as _;

use crate::duo::{Duo, IO, Stage};

/// A random write of fio whose every block is checked afterwards; small, as emulated processors are slow.
pub(crate) const FIO: &str = "fio --name=t --direct=1 --ioengine=libaio --rw=randwrite --bsrange=4k-64k --iodepth=8 \
                   --verify=crc32c --randseed=7";
pub(crate) const MOUNT: &str = "/run/share/mnt";
/// Where NVMe targets are configured.
const NVMET: &str = "/sys/kernel/config/nvmet";

/// For commands that have to fail: a `!` before one is no error to `set -e`, whatever the command does.
pub(crate) const NOT: &str = r#"not() { if "$@"; then echo "not refused: $*" >&2; return 1; fi; }"#;

/// Runs a script whose first command that fails ends it.
pub(crate) fn run(duo: &mut Duo, script: &str) -> Result<String> {
    let script = format!("set -e\n{NOT}\n{script}");
    duo.guest.run_limited(&script, Duration::from_secs(300))?.expect_success()
}

/// Tells a daemon to end, and waits until it has.
pub(crate) fn end_of_daemon(side: &Replica) -> String {
    format!("pid=$(cat {}/pid); kill $pid; while kill -0 $pid 2>/dev/null; do sleep 0.1; done", side.run_dir)
}

/// What has to hold of `/dev` when nothing is configured.
pub(crate) fn expect_no_names(duo: &mut Duo) -> Result<()> {
    let left = duo
        .guest
        .sh("ls -d /dev/drbd* /dev/ublkb* /dev/ublkc* /run/lock/udrbd-minor-* 2>/dev/null || true")?;
    if !left.trim().is_empty() {
        bail!("these were left behind:\n{left}");
    }
    Ok(())
}

/// Refused with DRBD's number, and the holder's name for those who ask.
pub(crate) fn expect_in_use(duo: &mut Duo, side: &Replica, command: &str, holder: &str) -> Result<()> {
    let script = format!("UDRBD_VERBOSE=1 {}", side.setup(command));
    let output = duo.guest.run_limited(&script, Duration::from_secs(60))?;
    let told =
        output.stderr.contains("(-12) Device is held open by someone") && output.stderr.contains(holder);
    if output.status != 11 || !told {
        bail!("{command} with {holder}: {output:?}");
    }
    Ok(())
}

/// A file system made and filled on one node, read on the other.
pub(crate) fn fails_over() -> Result<()> {
    Duo::play_on(Frontend::Ublk, (Kind::Udrbd, Kind::Udrbd), |duo| {
        let (first, second) = (duo.first.clone(), duo.second.clone());
        duo.connect_and_sync()?;
        let (here, there) = (first.device(), second.device());
        let script = format!(
            "mkdir -p {MOUNT}; mkfs.ext4 -q -F {here}; mount {here} {MOUNT}\n\
             head -c 5000000 /dev/urandom >{MOUNT}/file; md5sum <{MOUNT}/file >/run/share/sum; sync\n\
             grep -q '^{here} {MOUNT} ' /proc/mounts\n\
             test \"$(stat -c %a:%U {here})\" = 660:root\n\
             not head -c 512 {there}"
        );
        run(duo, &script)?;
        expect_in_use(duo, &first, "secondary 0", &format!("mounted on {MOUNT}"))?;
        run(duo, &format!("umount {MOUNT}"))?;
        first.secondary(&mut duo.guest)?;
        second.primary(&mut duo.guest, false)?;
        let script = format!(
            "test -b {here}; not head -c 512 {here}\n\
             mount {there} {MOUNT}; md5sum <{MOUNT}/file | cmp - /run/share/sum; umount {MOUNT}\n\
             test /dev/drbd/by-disk/vda -ef {here}; test /dev/drbd/by-res/{0}/0 -ef {there}",
            second.resource
        );
        run(duo, &script)?;
        let size = duo.size(&second)?;
        duo.compare(size)
    })
}

/// A process, a loop device, a claim: each is found, and told from the others.
pub(crate) fn openers_are_named() -> Result<()> {
    Duo::play_on(Frontend::Ublk, (Kind::Udrbd, Kind::Udrbd), |duo| {
        let first = duo.first.clone();
        duo.connect_and_sync()?;
        let device = first.device();
        run(duo, &format!("sleep 1000 <{device} >/dev/null 2>&1 & echo $! >/run/share/pid; sleep 0.3"))?;
        expect_in_use(duo, &first, "secondary 0", "(sleep)")?;
        expect_in_use(duo, &first, &format!("down {}", first.resource), "(sleep)")?;
        // It is turned away when it is to be served, after the size has been told.
        let export = format!("nbd:{}/nbd.sock:{}", first.run_dir, first.resource);
        let nbd = format!("timeout 20 {IO} compare {export} {export} --bytes 4096");
        run(duo, &format!("not {nbd}; kill $(cat /run/share/pid); sleep 0.3; {nbd}"))?;
        run(duo, &format!("modprobe loop; losetup /dev/loop7 {device}"))?;
        expect_in_use(duo, &first, "secondary 0", "used by loop7")?;
        run(duo, &format!("losetup -d /dev/loop7; mkswap {device}; swapon {device}"))?;
        expect_in_use(duo, &first, "secondary 0", "used as swap space")?;
        run(
            duo,
            &format!(
                "swapoff {device}; modprobe dm-mod; dmsetup create t --table '0 2048 linear {device} 0'"
            ),
        )?;
        expect_in_use(duo, &first, "secondary 0", "used by dm-")?;
        // What was refused has changed nothing.
        run(
            duo,
            &format!("dd if=/dev/dm-0 of=/dev/null bs=1M count=1; dmsetup remove t; head -c 512 {device}"),
        )?;
        first.secondary(&mut duo.guest)
    })
}

/// The kernel as peer, in both roles, while fio checks what it wrote.
pub(crate) fn kernel_peer() -> Result<()> {
    machine::ensure_packages(&["fio"])?;
    Duo::play_on(Frontend::Ublk, (Kind::Udrbd, Kind::Kernel), |duo| {
        let (first, second) = (duo.first.clone(), duo.second.clone());
        duo.connect_and_sync()?;
        let size = duo.size(&first)?;
        run(duo, &format!("{FIO} --size=24m --fdatasync=16 --filename={}", first.device()))?;
        duo.compare(size)?;
        first.secondary(&mut duo.guest)?;
        second.primary(&mut duo.guest, false)?;
        run(duo, &format!("{FIO} --size=16m --randseed=9 --filename={}", second.device()))?;
        second.secondary(&mut duo.guest)?;
        first.primary(&mut duo.guest, false)?;
        run(duo, &format!("{FIO} --size=16m --randseed=9 --verify_only --filename={}", first.device()))?;
        duo.compare(size)
    })
}

/// What tools read of the device, beside what they read of the kernel's.
pub(crate) fn figures() -> Result<()> {
    Duo::play_on(Frontend::Ublk, (Kind::Udrbd, Kind::Kernel), |duo| {
        let (first, second) = (duo.first.clone(), duo.second.clone());
        duo.connect_and_sync()?;
        let figures = |device: &str| format!("blockdev --getsize64 --getss --getpbsz --getro {device}");
        let ours = run(duo, &figures(&first.device()))?;
        let disk = format!(
            "queue=/sys/dev/block/$(printf '%d:%d' 0x$(stat -c %t {0}) 0x$(stat -c %T {0}))/queue\n\
             test \"$(cat $queue/write_cache)\" = 'write back'; test $(cat $queue/fua) = 1\n\
             test $(cat $queue/discard_max_bytes) -gt 0; test $(cat $queue/write_zeroes_max_bytes) -gt 0\n\
             test $(cat $queue/max_hw_sectors_kb) = 128; cat $queue/rotational /sys/block/vda/queue/rotational",
            first.device()
        );
        let rotational = run(duo, &disk)?;
        if rotational != "1\n1\n" && rotational != "0\n0\n" {
            bail!("rotational here and of the disk: {rotational}");
        }
        let size = duo.size(&first)?;
        let discard = format!(
            "tr '\\0' 'x' </dev/zero | dd of={0} bs=1M count=8 iflag=fullblock oflag=direct status=none\n\
             blkdiscard -o 1048576 -l 2097152 {0}; blkdiscard -z -o 4194304 -l 1048576 {0}\n\
             cmp -n 2097152 -i 1048576:0 {0} /dev/zero; cmp -n 1048576 -i 4194304:0 {0} /dev/zero\n\
             dd if={0} bs=1M count=1 iflag=direct status=none | tr -d x | wc -c | grep -qx 0",
            first.device()
        );
        run(duo, &discard)?;
        duo.compare(size)?;
        run(duo, &format!("blkdiscard -f {}", first.device()))?;
        first.secondary(&mut duo.guest)?;
        second.primary(&mut duo.guest, false)?;
        let kernels = run(duo, &figures(&second.device()))?;
        if ours != kernels {
            bail!("ours: {ours}\nthe kernel's: {kernels}");
        }
        Ok(())
    })
}

/// Where the disk cannot be made the promotion fails, and can be had as soon as it can.
pub(crate) fn failing_start() -> Result<()> {
    Duo::play_on(Frontend::Ublk, (Kind::Udrbd, Kind::Kernel), |duo| {
        let first = duo.first.clone();
        duo.connect_and_sync()?;
        first.secondary(&mut duo.guest)?;
        run(duo, "mv /dev/ublk-control /dev/ublk-elsewhere")?;
        let refused = first.try_minor_verb(&mut duo.guest, "primary", "")?;
        run(duo, "mv /dev/ublk-elsewhere /dev/ublk-control")?;
        if refused.status == 0
            || !refused.stderr.contains("/dev/drbd0 cannot be started: ublk: add a disk: ENOENT")
        {
            bail!("{refused:?}");
        }
        let role = first.status(&mut duo.guest)?.role;
        if role != "Secondary" {
            bail!("it is {role}");
        }
        first.primary(&mut duo.guest, false)?;
        run(duo, &format!("head -c 512 {}", first.device())).map(drop)
    })
}

/// Nodes, links and disks go: with `down`, with the daemon, and where the daemon was killed with the next one.
pub(crate) fn nothing_stale() -> Result<()> {
    Duo::play_on(Frontend::Ublk, (Kind::Udrbd, Kind::Udrbd), |duo| {
        let (first, second) = (duo.first.clone(), duo.second.clone());
        duo.connect_and_sync()?;
        for side in [&first, &second] {
            side.down(&mut duo.guest)?;
        }
        expect_no_names(duo)?;

        for side in [&first, &second] {
            side.attach(&mut duo.guest)?;
        }
        first.primary(&mut duo.guest, true)?;
        first.kill_daemon(&mut duo.guest)?;
        run(duo, "test -b /dev/drbd0; test -e /dev/ublkc0")?;
        first.start(&mut duo.guest)?;
        first.attach(&mut duo.guest)?;
        // A Secondary again, and no disk of the dead one.
        run(duo, "test -b /dev/drbd0; not head -c 512 /dev/drbd0; not ls /dev/ublkb*")?;
        first.primary(&mut duo.guest, true)?;
        run(duo, "head -c 512 /dev/drbd0")?;

        // A daemon that is told to end takes everything with it.
        let run_dir = first.run_dir.clone();
        run(
            duo,
            &format!(
                "pid=$(cat {run_dir}/pid); kill $pid; while kill -0 $pid 2>/dev/null; do sleep 0.1; done"
            ),
        )?;
        run(duo, "not ls /dev/drbd0; not ls /dev/ublkb*; not ls /dev/drbd/by-disk/vda")?;
        first.start(&mut duo.guest)?;
        first.attach(&mut duo.guest)?;
        for side in [&first, &second] {
            side.down(&mut duo.guest)?;
        }
        expect_no_names(duo)
    })
}

/// The daemon is killed several times under a mounted file system with a checked load: nobody notices more than a wait.
pub(crate) fn live_restart() -> Result<()> {
    machine::ensure_packages(&["fio"])?;
    Duo::play_on(Frontend::Ublk, (Kind::Udrbd, Kind::Kernel), |duo| {
        let (first, second) = (duo.first.clone(), duo.second.clone());
        duo.connect_and_sync()?;
        let size = duo.size(&first)?;
        let device = first.device();
        run(duo, &format!("mkdir -p {MOUNT}; mkfs.ext4 -q -F {device}; mount {device} {MOUNT}"))?;
        let load = format!("{FIO} --size=24m --time_based --runtime=25 --filename={MOUNT}/file");
        let job = duo.guest.spawn(&load, Duration::from_secs(400))?;
        for round in 0..4 {
            std::thread::sleep(Duration::from_secs(2 + round));
            if round < 3 {
                first.kill_daemon(&mut duo.guest)?;
            } else {
                run(duo, &end_of_daemon(&first))?;
            }
            first.bring_up(&mut duo.guest)?;
            first.wait_healthy(&mut duo.guest)?;
            expect_in_use(duo, &first, &format!("down {}", first.resource), "mounted")?;
            first.primary(&mut duo.guest, false)?;
        }
        duo.guest.wait(job)?.expect_success()?;
        run(duo, &format!("umount {MOUNT}; e2fsck -fn {device}"))?;
        first.wait_healthy(&mut duo.guest)?;
        duo.compare(size)?;
        first.secondary(&mut duo.guest)?;
        second.primary(&mut duo.guest, false)?;
        run(duo, &format!("e2fsck -fn {}", second.device()))?;
        Ok(())
    })
}

/// While a daemon is dead under a mounted file system the peer is promoted and writes. What waited must not reach the
/// data that have come from there, however often the daemon starts again.
pub(crate) fn foreign_data() -> Result<()> {
    Duo::play_on(Frontend::Ublk, (Kind::Udrbd, Kind::Udrbd), |duo| {
        let (first, second) = (duo.first.clone(), duo.second.clone());
        duo.connect_and_sync()?;
        let size = duo.size(&first)?;
        let (here, there) = (first.device(), second.device());
        run(duo, &format!("mkdir -p {MOUNT}; mkfs.ext4 -q -F {here}; mount {here} {MOUNT}"))?;
        first.kill_daemon(&mut duo.guest)?;
        let waiting = format!("! dd if=/dev/urandom of={MOUNT}/late bs=64k count=16 conv=fsync");
        let waiting = duo.guest.spawn(&waiting, Duration::from_secs(300))?;
        let lost = |status: &Status| status.peer_disk == "DUnknown" && status.connection == "WFConnection";
        second.wait(&mut duo.guest, "the loss of the peer", Duration::from_secs(60), lost)?;
        second.primary(&mut duo.guest, false)?;
        let fill = "head -c 4M /dev/urandom | dd of={device} bs=1M oflag=direct iflag=fullblock";
        run(duo, &fill.replace("{device}", &there))?;
        second.secondary(&mut duo.guest)?;
        for _ in 0..2 {
            first.bring_up(&mut duo.guest)?;
            duo.wait_healthy()?;
            first.kill_daemon(&mut duo.guest)?;
        }
        first.bring_up(&mut duo.guest)?;
        duo.wait_healthy()?;
        expect_in_use(duo, &first, "primary 0", "they have been written elsewhere since")?;
        duo.guest.wait(waiting)?.expect_success()?;
        run(duo, &format!("umount {MOUNT}"))?;
        first.primary(&mut duo.guest, false)?;
        run(duo, &format!("cmp -n 4194304 {here} {}", second.disk))?;
        duo.compare(size)
    })
}

/// Puts both disks of the guest behind devices of 64 MiB, which [`enlarge`] makes larger; attaches, connects, syncs.
fn start_small(duo: &mut Duo) -> Result<()> {
    duo.first.down(&mut duo.guest)?;
    duo.second.down(&mut duo.guest)?;
    let small = "modprobe dm-mod\n\
                 for i in a b; do dmsetup create d$i --table \"0 131072 linear /dev/vd$i 0\"; done";
    run(duo, small)?;
    for (side, disk) in [(&mut duo.first, "/dev/dm-0"), (&mut duo.second, "/dev/dm-1")] {
        disk.clone_into(&mut side.disk);
    }
    for side in [duo.first.clone(), duo.second.clone()] {
        side.create_md(&mut duo.guest)?;
        side.attach(&mut duo.guest)?;
    }
    duo.connect_and_sync()
}

/// Gives both disks 32 MiB more.
fn enlarge(duo: &mut Duo) -> Result<()> {
    let large = "for i in a b; do dmsetup suspend d$i; dmsetup reload d$i --table \"0 196608 linear /dev/vd$i 0\"\n\
                 dmsetup resume d$i; done";
    run(duo, large).map(drop)
}

/// Waits until the device of the first side has grown from `before` bytes, and returns its size. It may be away for a
/// moment.
fn wait_grown(duo: &mut Duo, before: u64) -> Result<u64> {
    let size = format!("blockdev --getsize64 {} 2>/dev/null || true", duo.first.device());
    // The peer has its say about the size; until then the device is as it was.
    duo.guest.wait_for("a larger device", Duration::from_secs(60), |guest| {
        let bytes: u64 = guest.sh(&size)?.trim().parse().unwrap_or(0);
        Ok((bytes > before + (30 << 20)).then_some(bytes))
    })
}

fn end_small(duo: &mut Duo) -> Result<()> {
    for side in [duo.first.clone(), duo.second.clone()] {
        side.down(&mut duo.guest)?;
    }
    run(duo, "dmsetup remove da; dmsetup remove db").map(drop)
}

/// The disk grows below, with a kernel that cannot resize a device: not while it is open, and at once where it is not.
pub(crate) fn grows() -> Result<()> {
    Duo::play_at(Stage::ublk_on(KernelChoice::Stable), (Kind::Udrbd, Kind::Udrbd), |duo| {
        start_small(duo)?;
        let first = duo.first.clone();
        let device = first.device();
        let before = duo.size(&first)?;
        enlarge(duo)?;
        run(duo, &format!("sleep 1000 <{device} >/dev/null 2>&1 & echo $! >/run/share/pid; sleep 0.3"))?;
        expect_in_use(duo, &first, "resize 0", "cannot resize /dev/drbd0 while it is open")?;
        run(duo, "kill $(cat /run/share/pid); sleep 0.3")?;
        first.minor_verb(&mut duo.guest, "resize", "")?;
        let after = wait_grown(duo, before)?;
        duo.wait_healthy()?;
        run(
            duo,
            &format!(
                "head -c 5000000 /dev/urandom | dd of={device} bs=1M seek=80 oflag=direct iflag=fullblock"
            ),
        )?;
        duo.compare(after)?;
        end_small(duo)
    })
}

/// The disk grows below a mounted file system that is written to all the while, where the kernel can resize a device
/// (Linux 6.16); then the file system grows, too. What is read comes from the disk, and without one from the peer.
pub(crate) fn grows_under_use() -> Result<()> {
    Duo::play_at(Stage::ublk_on(KernelChoice::Backports), (Kind::Udrbd, Kind::Kernel), |duo| {
        start_small(duo)?;
        let (first, second) = (duo.first.clone(), duo.second.clone());
        let device = first.device();
        let before = duo.size(&first)?;
        run(
            duo,
            &format!(
                "mkdir -p {MOUNT}; mkfs.ext4 -q -F {device}; mount {device} {MOUNT}\n\
                 head -c 20000000 /dev/urandom >{MOUNT}/old; md5sum <{MOUNT}/old >/run/share/sum; sync"
            ),
        )?;
        enlarge(duo)?;
        let load = format!(
            "set -e; rm -f /run/share/enough; touch /run/share/busy\n\
             until [ -e /run/share/enough ]; do\n\
               head -c 1000000 /dev/urandom >{MOUNT}/busy; sync; md5sum <{MOUNT}/busy >/run/share/sum.busy; done"
        );
        let job = duo.guest.spawn(&load, Duration::from_secs(300))?;
        run(duo, "until [ -e /run/share/busy ]; do sleep 0.1; done")?;
        first.minor_verb(&mut duo.guest, "resize", "")?;
        let after = wait_grown(duo, before)?;
        run(
            duo,
            &format!(
                "resize2fs {device}; test $(df --output=size -B1M {MOUNT} | tail -1) -gt 75\n\
                 head -c 45000000 /dev/urandom >{MOUNT}/new; md5sum <{MOUNT}/new >/run/share/sum.new; sync\n\
                 touch /run/share/enough"
            ),
        )?;
        duo.guest.wait(job)?.expect_success()?;
        duo.wait_healthy()?;
        let same = format!(
            "md5sum <{MOUNT}/old | cmp - /run/share/sum; md5sum <{MOUNT}/new | cmp - /run/share/sum.new\n\
             md5sum <{MOUNT}/busy | cmp - /run/share/sum.busy"
        );
        run(duo, &format!("sync; echo 3 >/proc/sys/vm/drop_caches\n{same}; umount {MOUNT}"))?;
        duo.compare(after)?;
        // The same without a disk of its own: the peer has the data.
        first.minor_verb(&mut duo.guest, "detach", "")?;
        run(duo, &format!("mount -o ro {device} {MOUNT}\n{same}; umount {MOUNT}"))?;
        first.secondary(&mut duo.guest)?;
        second.primary(&mut duo.guest, false)?;
        let there = second.device();
        run(duo, &format!("e2fsck -fn {there}; mount {there} {MOUNT}\n{same}; umount {MOUNT}"))?;
        end_small(duo)
    })
}

/// A kernel target that opened the device by its path and claims nothing: no list shows it, the driver knows (Linux 7.0).
pub(crate) fn hidden_opener() -> Result<()> {
    Duo::play_at(Stage::ublk_on(KernelChoice::Backports), (Kind::Udrbd, Kind::Udrbd), |duo| {
        let (first, second) = (duo.first.clone(), duo.second.clone());
        duo.connect_and_sync()?;
        let device = first.device();
        run(
            duo,
            &format!(
                "modprobe nvmet; mkdir -p {NVMET}/subsystems/t/namespaces/1; cd {NVMET}/subsystems/t/namespaces/1\n\
                 printf {device} >device_path; echo 1 >enable"
            ),
        )?;
        let holder = "open by somebody the kernel does not name";
        expect_in_use(duo, &first, "secondary 0", holder)?;
        expect_in_use(duo, &first, &format!("down {}", first.resource), holder)?;
        // What was refused has changed nothing.
        run(duo, &format!("head -c 512 {device}"))?;
        // Nor is it taken away by the daemon's end, or by the next daemon.
        run(duo, &end_of_daemon(&first))?;
        first.bring_up(&mut duo.guest)?;
        first.wait_healthy(&mut duo.guest)?;
        expect_in_use(duo, &first, &format!("down {}", first.resource), holder)?;
        first.primary(&mut duo.guest, false)?;
        run(duo, &format!("head -c 512 {device}; echo 0 >{NVMET}/subsystems/t/namespaces/1/enable"))?;
        first.secondary(&mut duo.guest)?;
        second.primary(&mut duo.guest, false)?;
        run(duo, &format!("cd {NVMET}/subsystems; rmdir t/namespaces/1 t")).map(drop)
    })
}

/// What people put on it: xfs with its trims, and LVM with a snapshot, as on a disk.
pub(crate) fn carries_xfs_and_lvm() -> Result<()> {
    machine::ensure_packages(&["fio", "xfsprogs", "lvm2"])?;
    let stage = Stage { disk_bytes: 400 << 20, frontend: Frontend::Ublk, ..Stage::default() };
    Duo::play_at(stage, (Kind::Udrbd, Kind::Kernel), |duo| {
        let (first, second) = (duo.first.clone(), duo.second.clone());
        let device = first.device();
        duo.connect()?;
        for side in [&first, &second] {
            side.wait(&mut duo.guest, "Connected", Duration::from_secs(60), |s| s.connection == "Connected")?;
        }
        // Both disks are empty: there is nothing to sync.
        first.minor_verb(&mut duo.guest, "new-current-uuid", "--clear-bitmap")?;
        first.wait_healthy(&mut duo.guest)?;
        first.primary(&mut duo.guest, false)?;
        run(
            duo,
            &format!(
                "modprobe xfs; mkdir -p {MOUNT}; mkfs.xfs -q -f {device}; mount {device} {MOUNT}\n\
                 {FIO} --size=16m --fsync=32 --filename={MOUNT}/file >/dev/null\n\
                 head -c 20000000 /dev/urandom >{MOUNT}/gone; sync; rm {MOUNT}/gone; fstrim {MOUNT}\n\
                 umount {MOUNT}; xfs_repair -n {device}"
            ),
        )?;
        let size = duo.size(&first)?;
        duo.compare(size)?;
        let lvm = "export LVM_SYSTEM_DIR=/run/lvm LVM_SUPPRESS_FD_WARNINGS=1; mkdir -p /run/lvm /dev/mapper; \
                   modprobe dm-snapshot\n\
                   cat >/run/lvm/lvm.conf <<X\n\
                   devices { use_devicesfile=0 scan=\"/dev\" filter=[\"a|^/dev/drbd|\",\"r|.*|\"] }\n\
                   activation { udev_sync=0 udev_rules=0 }\n\
                   backup { backup=0 archive=0 }\n\
                   X";
        run(
            duo,
            &format!(
                "{lvm}\npvcreate -q -ff -y {device}; vgcreate -q vg {device}; lvcreate -q -y -Zn -Wn -L 64M -n data vg\n\
                 mkfs.ext4 -q -F /dev/mapper/vg-data; mount /dev/mapper/vg-data {MOUNT}\n\
                 echo before >{MOUNT}/file; sync; lvcreate -q -y -s -L 32M -n snap vg/data\n\
                 echo after >{MOUNT}/file; sync; umount {MOUNT}; mount -o ro /dev/mapper/vg-snap {MOUNT}\n\
                 test \"$(cat {MOUNT}/file)\" = before; umount {MOUNT}; pvs --noheadings -o pv_name | grep -q {device}"
            ),
        )?;
        expect_in_use(duo, &first, "secondary 0", "used by dm-")?;
        run(duo, &format!("{lvm}\nlvremove -q -y vg/snap; vgchange -q -an vg"))?;
        duo.compare(size)?;
        first.secondary(&mut duo.guest)
    })
}
