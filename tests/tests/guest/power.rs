//! Two guests on a cable; the Primary's power is cut under writes.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use udrbd_tests::guest::{Cable, EmulatorDied, Guest, GuestOptions};
use udrbd_tests::machine;
use udrbd_tests::replica::{self, Kind, Replica};

use crate::duo::{DISK_BYTES, IO, compare_files, forget_guests};

pub(crate) fn kernel_pair() -> Result<()> {
    power_cut_primary(Kind::Kernel, Kind::Kernel)
}

pub(crate) fn kernel_primary() -> Result<()> {
    power_cut_primary(Kind::Kernel, Kind::Udrbd)
}

pub(crate) fn udrbd_primary() -> Result<()> {
    power_cut_primary(Kind::Udrbd, Kind::Kernel)
}

/// One node: a guest and the side that lives in it.
pub(crate) struct Node {
    pub(crate) guest: Guest,
    pub(crate) side: Replica,
}

impl Node {
    pub(crate) fn prepare(&mut self) -> Result<()> {
        self.side.start(&mut self.guest)?;
        self.side.create_md(&mut self.guest)?;
        self.side.attach(&mut self.guest)?;
        self.side.connect(&mut self.guest)
    }

    fn verify(&mut self) -> Result<()> {
        let script = format!("{IO} verify {} --journal {}/journal", self.side.target(), Guest::SHARE);
        self.guest.run_limited(&script, Duration::from_secs(300))?.expect_success()?;
        Ok(())
    }

    fn write(&mut self, words: &str) -> Result<()> {
        let script = format!("{IO} write {} --journal {}/journal {words}", self.side.target(), Guest::SHARE);
        self.guest.run_limited(&script, Duration::from_secs(300))?.expect_success()?;
        Ok(())
    }
}

/// Boots two guests on a cable, each with a side of that kind on a disk of `bytes`.
pub(crate) fn boot(bytes: u64, first: Kind, second: Kind) -> Result<(Node, Node, Cable)> {
    if first == Kind::Udrbd || second == Kind::Udrbd {
        replica::built_binaries()?;
    }
    machine::ensure_packages(&["drbd-utils", "kmod"])?;
    forget_guests();
    let options = GuestOptions { disks: vec![bytes], processors: 1, ..GuestOptions::default() };
    let (alpha, beta, cable) = Guest::boot_pair(&options)?;
    let (one, two) = ("10.66.0.1:7788", "10.66.0.2:7788");
    let first = Replica::new(first, "res", 0, "/dev/vda", one, two);
    let second = Replica::new(second, "res", 0, "/dev/vda", two, one);
    Ok((Node { guest: alpha, side: first }, Node { guest: beta, side: second }, cable))
}

/// The Primary loses its power under writes. The survivor is promoted and has every acknowledged write;
/// it takes more writes; the lost node comes back, is brought up to date and serves all of it.
fn power_cut_primary(first: Kind, second: Kind) -> Result<()> {
    let (mut lost, mut survivor, _cable) = boot(DISK_BYTES, first, second)?;
    let result = play(&mut lost, &mut survivor);
    result.map_err(|error| {
        let logs = [&mut lost, &mut survivor].map(|node| {
            let log = node.side.log(&mut node.guest);
            format!("--- {} {:?}\n{log}", node.guest.name(), node.side.kind)
        });
        error.context(logs.join("\n"))
    })
}

fn play(lost: &mut Node, survivor: &mut Node) -> Result<()> {
    lost.prepare()?;
    survivor.prepare()?;
    lost.side.wait(&mut lost.guest, "Connected", Duration::from_secs(60), |s| s.connection == "Connected")?;
    lost.side.primary(&mut lost.guest, true)?;
    lost.side.wait_healthy(&mut lost.guest)?;
    survivor.side.wait_healthy(&mut survivor.guest)?;
    let size: u64 =
        lost.guest.sh(&format!("{IO} size {}", lost.side.target()))?.trim().parse().context("a size")?;

    let writer = format!(
        "{IO} write {} --journal {}/journal --seed 8 --seconds 100",
        lost.side.target(),
        Guest::SHARE
    );
    let _interrupted = lost.guest.spawn(&writer, Duration::from_secs(240))?;
    std::thread::sleep(Duration::from_secs(8));
    lost.guest.power_cut()?;

    let (from, to) = (lost.guest.share().join("journal"), survivor.guest.share().join("journal"));
    std::fs::copy(&from, &to).context("the journal")?;
    if std::fs::read_to_string(&to)?.matches("\na ").count() < 20 {
        bail!("too few writes before the power cut to prove anything");
    }
    survivor.side.wait(&mut survivor.guest, "the loss of the peer", Duration::from_secs(60), |s| {
        s.peer_disk == "DUnknown" && s.connection == "WFConnection"
    })?;
    survivor.side.primary(&mut survivor.guest, false)?;
    survivor.verify()?;
    survivor.write("--seed 9 --count 60")?;

    lost.guest.power_on()?;
    lost.side.bring_up(&mut lost.guest)?;
    lost.side.wait_healthy(&mut lost.guest)?;
    survivor.side.wait_healthy(&mut survivor.guest)?;
    compare_files(&lost.guest.disk_file(0), &survivor.guest.disk_file(0), size)?;

    survivor.side.secondary(&mut survivor.guest)?;
    lost.side.primary(&mut lost.guest, false)?;
    std::fs::copy(&to, &from).context("the journal")?;
    lost.verify()
}

/// A test whose guest's emulator was killed is played once more; one whose guest went down by itself has failed.
pub(crate) fn emulator_is_told_from_guest() -> Result<()> {
    let mut guest = Guest::boot(GuestOptions::default())?;
    let emulator = guest.emulator().context("the guest is off")?.to_string();
    ensure!(Command::new("kill").args(["-KILL", &emulator]).status()?.success());
    let killed = guest.run("true").err().context("a dead guest answers")?;
    ensure!(killed.downcast_ref::<EmulatorDied>().is_some(), "{killed:#}");
    guest.power_on()?;
    let down = guest.run("echo o >/proc/sysrq-trigger; sleep 60").err().context("a dead guest answers")?;
    ensure!(down.downcast_ref::<EmulatorDied>().is_none(), "{down:#}");
    Ok(())
}
