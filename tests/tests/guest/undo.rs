//! `resync-undo` below a block device: the power of a split brain's victim goes in the middle of its resync.

use std::time::Duration;

use anyhow::{Result, ensure};
use udrbd_tests::guest::{Cable, Guest, GuestOptions};
use udrbd_tests::machine;
use udrbd_tests::replica::{self, Kind, Replica};

use crate::duo::{compare_files, forget_guests};
use crate::power::Node;

const DISK_BYTES: u64 = 64 << 20;
/// The disk of the side file, with a file system of its own, whose cache is lost with the power.
const SIDE_DISK_BYTES: u64 = 192 << 20;
const SIDE_FOLDER: &str = "/srv/undo";
/// Slow enough to be met in the middle several times.
const RESYNC_RATE: &str = "--resync-rate=1M";
const CUTS: u32 = 3;
const LIMIT: Duration = Duration::from_secs(180);

/// Pieces of 1 MiB that each node changes on its own: `(first, count)`; in part the same ones.
const ALPHA_CHANGES: (u32, u32) = (8, 24);
const BETA_CHANGES: (u32, u32) = (2, 24);

/// What the victim had changed, and what the other one overwrites, is shown by its undo as it was, though the victim's power
/// went three times in the middle, and though the survivor's applications go on writing.
pub(crate) fn power_cuts() -> Result<()> {
    let (mut alpha, mut beta, _cable) = boot()?;
    let result = play(&mut alpha, &mut beta);
    result.map_err(|error| {
        let logs = [&mut alpha, &mut beta].map(|node| {
            let log = node.side.log(&mut node.guest);
            format!("--- {}\n{log}", node.guest.name())
        });
        error.context(logs.join("\n"))
    })
}

fn boot() -> Result<(Node, Node, Cable)> {
    replica::built_binaries()?;
    machine::ensure_packages(&["drbd-utils", "kmod", "e2fsprogs", "libnbd-bin"])?;
    forget_guests();
    let disks = vec![DISK_BYTES, SIDE_DISK_BYTES];
    let (alpha, beta, cable) =
        Guest::boot_pair(&GuestOptions { disks, processors: 1, ..GuestOptions::default() })?;
    let (one, two) = ("10.66.0.1:7788", "10.66.0.2:7788");
    let side = |own, peer, undo: &[&str]| {
        let options =
            ["--c-plan-ahead=0", RESYNC_RATE].iter().chain(undo).copied().map(str::to_owned).collect();
        Replica {
            disk_options: options,
            ..Replica::new(Kind::Udrbd, "res", 0, "/dev/vda", own, peer).with_ublk()
        }
    };
    let undo = format!("--resync-undo={SIDE_FOLDER}");
    // What a daemon leaves for the next one is on a disk, too.
    let run_dir = format!("{SIDE_FOLDER}/run");
    let (first, second) = (side(one, two, &[]), Replica { run_dir, ..side(two, one, &[&undo]) });
    Ok((Node { guest: alpha, side: first }, Node { guest: beta, side: second }, cable))
}

impl Node {
    fn change(&mut self, (first, count): (u32, u32)) -> Result<()> {
        let device = self.side.device();
        self.guest.sh(&format!(
            "set -e; head -c {count}M /dev/urandom | dd of={device} bs=1M seek={first} iflag=fullblock oflag=direct conv=fsync 2>/dev/null\n\
             head -c 512 /dev/urandom | dd of={device} bs=512 seek=81921 oflag=direct conv=fsync 2>/dev/null"
        ))?;
        Ok(())
    }

    /// The checksum of the device, read from the disk below.
    fn sum(&mut self) -> Result<String> {
        let device = self.side.device();
        self.guest.sh(&format!("echo 3 >/proc/sys/vm/drop_caches; md5sum <{device}"))
    }

    /// The checksum of what the undo shows, which has to be whole.
    fn undone(&mut self) -> Result<String> {
        let uri = format!("nbd+unix:///res@undo?socket={}/nbd.sock", self.side.run_dir);
        let told = self.guest.sh(&format!("nbdinfo '{uri}'"))?;
        ensure!(told.contains("before the resync") && !told.contains("INCOMPLETE"), "{told}");
        self.guest.sh(&format!("nbdcopy '{uri}' - | md5sum"))
    }

    fn mount_side_disk(&mut self) -> Result<()> {
        self.guest.sh(&format!("mkdir -p {SIDE_FOLDER} && mount /dev/vdb {SIDE_FOLDER}")).map(drop)
    }

    fn wait_resyncing(&mut self) -> Result<()> {
        let found = self.side.wait(&mut self.guest, "the resync", LIMIT, |status| {
            status.connection == "SyncTarget" && status.out_of_sync_kib > 0
        });
        found.map(drop)
    }
}

fn play(alpha: &mut Node, beta: &mut Node) -> Result<()> {
    beta.guest.sh("mkfs.ext4 -q /dev/vdb")?;
    beta.mount_side_disk()?;
    alpha.prepare()?;
    beta.prepare()?;
    alpha.side.wait(&mut alpha.guest, "Connected", LIMIT, |status| status.connection == "Connected")?;
    alpha.side.minor_verb(&mut alpha.guest, "new-current-uuid", "--clear-bitmap")?;
    for node in [&mut *alpha, &mut *beta] {
        node.side.wait_healthy(&mut node.guest)?;
    }
    beta.side.disconnect(&mut beta.guest)?;
    for (node, changes) in [(&mut *alpha, ALPHA_CHANGES), (&mut *beta, BETA_CHANGES)] {
        node.side.primary(&mut node.guest, false)?;
        node.change(changes)?;
    }
    let size: u64 =
        alpha.guest.sh(&format!("blockdev --getsize64 {}", alpha.side.device()))?.trim().parse()?;
    let was = beta.sum()?;
    ensure!(was != alpha.sum()?, "they have changed nothing");

    // The victim gives in, as the guides say.
    beta.side.secondary(&mut beta.guest)?;
    let net = beta.side.net.clone();
    beta.side.net.push("--discard-my-data".to_owned());
    beta.side.connect(&mut beta.guest)?;
    beta.side.net = net;
    for cut in 1..=CUTS {
        beta.wait_resyncing()?;
        // Blocks the resync has not come to, and such that it has.
        alpha.change((ALPHA_CHANGES.0 + 5 * cut, 2))?;
        ensure!(beta.undone()? == was, "the undo differs before power cut {cut}");
        let left = beta.side.status(&mut beta.guest)?.out_of_sync_kib;
        ensure!(left > 0, "the resync is over before power cut {cut}");
        beta.guest.power_cut()?;
        beta.guest.power_on()?;
        beta.mount_side_disk()?;
        beta.side.bring_up(&mut beta.guest)?;
    }
    beta.wait_resyncing()?;
    for node in [&mut *alpha, &mut *beta] {
        node.side.wait_healthy(&mut node.guest)?;
    }
    alpha.change((40, 4))?;
    let undone = beta.undone()?;
    ensure!(undone == was, "the undo is {undone}, the device was {was}");
    alpha.side.secondary(&mut alpha.guest)?;
    compare_files(&alpha.guest.disk_file(0), &beta.guest.disk_file(0), size)
}
