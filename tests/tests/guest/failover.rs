//! A file system under load on a block device; its node loses power; the other one takes over.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use udrbd_tests::guest::Guest;
use udrbd_tests::replica::Kind;

use crate::power::{Node, boot};

const MOUNT: &str = "/run/mnt";
/// Takeovers of the usual run, and of the long one.
const ROUNDS: u64 = 2;
const ROUNDS_LONG: u64 = 200;

/// Each round: records are appended and forced to the disk one by one beside other writes, at some moment the power
/// goes, the survivor mounts what it has. Every record that was forced is there, and the file system is clean.
pub(crate) fn under_load() -> Result<()> {
    let rounds = if std::env::var_os("UDRBD_TEST_LONG").is_some() { ROUNDS_LONG } else { ROUNDS };
    let (mut primary, mut survivor, _cable) = boot(Kind::Udrbd, Kind::Udrbd)?;
    for node in [&mut primary, &mut survivor] {
        node.side = node.side.clone().with_ublk();
        node.prepare()?;
    }
    primary
        .side
        .wait(&mut primary.guest, "Connected", Duration::from_secs(60), |s| s.connection == "Connected")?;
    primary.side.primary(&mut primary.guest, true)?;
    primary.side.wait_healthy(&mut primary.guest)?;
    let device = primary.side.device();
    primary.guest.sh(&format!("mkdir -p {MOUNT}; mkfs.ext4 -q -F {device}; mount {device} {MOUNT}"))?;
    for round in 0..rounds {
        let result = take_over(&mut primary, &mut survivor, round);
        result.map_err(|error| {
            let logs = [&mut primary, &mut survivor].map(|node| {
                let log = node.side.log(&mut node.guest);
                format!("--- {}\n{log}", node.guest.name())
            });
            error.context(format!("round {round}\n{}", logs.join("\n")))
        })?;
        std::mem::swap(&mut primary, &mut survivor);
    }
    Ok(())
}

/// Appends numbers to a file of the device, each forced to the disk, and tells the host which are.
fn load() -> String {
    format!(
        "rm -f {share}/forced; : >{MOUNT}/records\n\
         (while :; do head -c 300000 /dev/urandom >{MOUNT}/noise.$((RANDOM % 8)); done) &\n\
         i=0; while :; do i=$((i+1)); printf '%08d\\n' $i |\n\
             dd of={MOUNT}/records oflag=append conv=notrunc,fsync status=none || break\n\
             echo $i | dd of={share}/forced conv=notrunc,fsync status=none; done",
        share = Guest::SHARE
    )
}

fn take_over(primary: &mut Node, survivor: &mut Node, round: u64) -> Result<()> {
    let _interrupted = primary.guest.spawn(&load(), Duration::from_secs(240))?;
    // Another moment in each round.
    std::thread::sleep(Duration::from_millis(6000 + round * 7919 % 4000));
    primary.guest.power_cut()?;
    let forced = std::fs::read_to_string(primary.guest.share().join("forced")).context("what was forced")?;
    let forced: u64 = forced.trim().parse().with_context(|| format!("`{forced}` was forced"))?;
    if forced < 5 {
        bail!("only {forced} records before the power cut prove nothing");
    }
    survivor.side.wait(&mut survivor.guest, "the loss of the peer", Duration::from_secs(60), |s| {
        s.peer_disk == "DUnknown" && s.connection == "WFConnection"
    })?;
    survivor.side.primary(&mut survivor.guest, false)?;
    let device = survivor.side.device();
    let check = format!(
        "set -e\nmkdir -p {MOUNT}; mount {device} {MOUNT}; umount {MOUNT}; e2fsck -fn {device} >&2\n\
         mount {device} {MOUNT}\n\
         head -n {forced} {MOUNT}/records >/run/found; seq -f %08.0f {forced} | cmp - /run/found"
    );
    survivor.guest.run_limited(&check, Duration::from_secs(120))?.expect_success()?;
    primary.guest.power_on()?;
    primary.side.bring_up(&mut primary.guest)?;
    primary.side.wait_healthy(&mut primary.guest)?;
    survivor.side.wait_healthy(&mut survivor.guest)?;
    Ok(())
}
