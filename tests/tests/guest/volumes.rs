//! Partitions on a block device, and two volumes of one resource.

use std::time::Duration;

use anyhow::{Result, bail};
use udrbd_tests::machine;
use udrbd_tests::replica::{Frontend, Kind, Replica};

use crate::block::{FIO, MOUNT, expect_in_use, expect_no_names, run};
use crate::duo::{Duo, IO};

/// Waits for a node; the kernel may look for partitions after the disk is there, and tells of them then.
fn until_node(path: &str) -> String {
    format!("for _ in $(seq 100); do [ -b {path} ] && break; sleep 0.1; done; test -b {path}\n")
}

/// Partitions are there while the node is Primary, keep it Primary while they are in use, and go with the device.
pub(crate) fn partitions() -> Result<()> {
    machine::ensure_packages(&["fdisk"])?;
    Duo::play_on(Frontend::Ublk, (Kind::Udrbd, Kind::Udrbd), |duo| {
        let (first, second) = (duo.first.clone(), duo.second.clone());
        duo.connect_and_sync()?;
        let size = duo.size(&first)?;
        run(
            duo,
            &format!(
                "printf 'label: gpt\\nsize=40MiB\\nsize=20MiB\\n' | sfdisk -q {device}\n\
                 test \"$(lsblk -nro TYPE /dev/ublkb0 | tr '\\n' ' ')\" = 'disk part part '\n\
                 {partition_one}test \"$(stat -c %a:%U {device}p1)\" = 660:root\n\
                 mkdir -p {MOUNT}; mkfs.ext4 -q -F {device}p1; mount {device}p1 {MOUNT}\n\
                 grep -q '^{device}p1 {MOUNT} ' /proc/mounts\n\
                 head -c 5000000 /dev/urandom >{MOUNT}/file; md5sum <{MOUNT}/file >/run/share/sum; sync",
                device = first.device(),
                partition_one = until_node("/dev/drbd0p1"),
            ),
        )?;
        let mounted = format!("mounted on {MOUNT}");
        expect_in_use(duo, &first, "secondary 0", &mounted)?;
        expect_in_use(duo, &first, &format!("down {}", first.resource), &mounted)?;
        // The mounted one goes on; another one is taken out of the kernel's table and put back.
        run(
            duo,
            &format!(
                "echo more >{MOUNT}/more; sync; partx -d --nr 2 {0}; not ls /dev/ublkb0p2\n\
                 {gone}partx -a --nr 2 {0}\n{back}\
                 mkswap -q {0}p2 && swapon {0}p2; umount {MOUNT}",
                first.device(),
                gone = "until ! [ -e /dev/drbd0p2 ]; do sleep 0.1; done\n",
                back = until_node("/dev/drbd0p2"),
            ),
        )?;
        expect_in_use(duo, &first, "secondary 0", "used as swap space")?;
        run(duo, "swapoff /dev/drbd0p2")?;
        first.secondary(&mut duo.guest)?;
        run(duo, "not ls /dev/ublkb*; not ls /dev/drbd0p*; not grep ublkb /proc/partitions")?;
        duo.compare(size)?;

        // The peer finds the same partitions, keeps one mounted over the death of its daemon.
        second.primary(&mut duo.guest, false)?;
        run(
            duo,
            &format!(
                "{}test -b /dev/drbd1p2; e2fsck -fn /dev/drbd1p1; mount /dev/drbd1p1 {MOUNT}; md5sum <{MOUNT}/file | cmp - /run/share/sum",
                until_node("/dev/drbd1p1")
            ),
        )?;
        second.kill_daemon(&mut duo.guest)?;
        // A partition of a dead daemon's disk that nobody knows any more.
        run(duo, "mknod /dev/drbd1p7 b 0 777; touch /dev/drbd1px")?;
        let write = format!("head -c 3000000 /dev/urandom >{MOUNT}/other; sync");
        let job = duo.guest.spawn(&write, Duration::from_secs(120))?;
        second.bring_up(&mut duo.guest)?;
        second.wait_healthy(&mut duo.guest)?;
        second.primary(&mut duo.guest, false)?;
        duo.guest.wait(job)?.expect_success()?;
        expect_in_use(duo, &second, "secondary 1", &mounted)?;
        run(duo, "not ls /dev/drbd1p7; test -b /dev/drbd1p1; rm /dev/drbd1px")?;
        run(duo, &format!("umount {MOUNT}; e2fsck -fn /dev/drbd1p1"))?;
        duo.wait_healthy()?;
        duo.compare(size)?;
        for side in [&first, &second] {
            side.down(&mut duo.guest)?;
        }
        expect_no_names(duo)?;
        run(duo, "not grep ublkb /proc/partitions").map(drop)
    })
}

/// Two volumes of one resource: each takes its own writes, at once, also over the death of the daemon.
pub(crate) fn two_volumes() -> Result<()> {
    machine::ensure_packages(&["fio"])?;
    Duo::play_on(Frontend::Ublk, (Kind::Udrbd, Kind::Kernel), |duo| {
        duo.first.down(&mut duo.guest)?;
        duo.second.down(&mut duo.guest)?;
        // Each disk is cut into two.
        run(
            duo,
            "modprobe dm-mod\n\
             for i in a b; do for j in 0 1; do\n\
                 dmsetup create d$i$j --table \"0 98304 linear /dev/vd$i $((j * 98304))\"\n\
             done; done",
        )?;
        // Volume 0 has the minors 0 and 1, volume 1 the minors 2 and 3.
        let part = |side: &Replica, volume: u32, disk: u32| {
            let mut part = side.clone();
            part.minor += 2 * volume;
            part.disk = format!("/dev/dm-{}", disk + volume);
            part
        };
        let first = [part(&duo.first, 0, 0), part(&duo.first, 1, 0)];
        let second = [part(&duo.second, 0, 2), part(&duo.second, 1, 2)];
        for side in [&first, &second] {
            for volume in side {
                volume.create_md(&mut duo.guest)?;
            }
            bring_up(duo, side)?;
        }
        let all = [&first[0], &first[1], &second[0], &second[1]];
        for volume in all {
            volume.wait(&mut duo.guest, "Connected", Duration::from_secs(60), |s| {
                s.connection == "Connected"
            })?;
        }
        for volume in &first {
            volume.primary(&mut duo.guest, true)?;
        }
        for volume in all {
            volume.wait_healthy(&mut duo.guest)?;
        }

        let load = |seed: u32, volume: &Replica| {
            format!("{FIO} --randseed={seed} --size=20m --fdatasync=32 --filename={}", volume.device())
        };
        let both = format!(
            "{} & one=$!; {} & two=$!; wait $one && wait $two",
            load(3, &first[0]),
            load(4, &first[1])
        );
        run(duo, &both)?;
        compare(duo, &first, &second)?;
        // One file for each would be no proof: what is on them differs.
        let different = format!("not cmp -n 10000000 {} {}", first[0].device(), first[1].device());
        run(duo, &different)?;

        // One daemon serves both: both wait for its successor.
        let again = both.replace("--randseed=", "--randseed=1");
        let job = duo.guest.spawn(&again, Duration::from_secs(300))?;
        std::thread::sleep(Duration::from_secs(4));
        first[0].kill_daemon(&mut duo.guest)?;
        first[0].start(&mut duo.guest)?;
        bring_up(duo, &first)?;
        for volume in &first {
            volume.wait_healthy(&mut duo.guest)?;
            volume.primary(&mut duo.guest, false)?;
        }
        duo.guest.wait(job)?.expect_success()?;
        compare(duo, &first, &second)?;

        // Each volume is demoted by itself where the other one is in use.
        run(
            duo,
            &format!(
                "sleep 1000 <{} >/dev/null 2>&1 & echo $! >/run/share/pid; sleep 0.3",
                first[1].device()
            ),
        )?;
        expect_in_use(duo, &first[0], "secondary 2", "(sleep)")?;
        run(duo, "kill $(cat /run/share/pid); sleep 0.3")?;
        for volume in &first {
            volume.secondary(&mut duo.guest)?;
        }
        for volume in &second {
            volume.primary(&mut duo.guest, false)?;
            let seed = if volume.minor == 1 { 13 } else { 14 };
            run(duo, &format!("{} --verify_only", load(seed, volume)))?;
            volume.secondary(&mut duo.guest)?;
        }
        first[0].down(&mut duo.guest)?;
        second[0].down(&mut duo.guest)?;
        run(duo, "for i in a b; do for j in 0 1; do dmsetup remove d$i$j; done; done").map(drop)
    })
}

/// The resource with both volumes, attached and looking for its peer.
fn bring_up(duo: &mut Duo, volumes: &[Replica; 2]) -> Result<()> {
    let [one, two] = volumes;
    one.attach(&mut duo.guest)?;
    let script = format!(
        "{}\n{}\n{}",
        one.setup(&format!("new-minor {} {} 1", one.resource, two.minor)),
        two.meta("apply-al"),
        two.setup(&format!(
            "attach {0} {1} {1} internal {2}",
            two.minor,
            two.disk,
            two.disk_options.join(" ")
        ))
    );
    run(duo, &script)?;
    one.connect(&mut duo.guest)
}

/// Both volumes, on both nodes.
fn compare(duo: &mut Duo, first: &[Replica; 2], second: &[Replica; 2]) -> Result<()> {
    for (one, two) in first.iter().zip(second) {
        one.wait_healthy(&mut duo.guest)?;
        let size = duo.size(one)?;
        if size < 40 << 20 {
            bail!("{} has {size} bytes", one.device());
        }
        run(duo, &format!("{IO} compare {} {} --bytes {size}", one.disk, two.disk))?;
    }
    Ok(())
}
