//! A link that is cut or slow and a daemon that is killed, under writes.

use std::time::Duration;

use anyhow::{Result, bail};
use udrbd_tests::replica::{Kind, Replica};

use crate::duo::{Duo, IO};

/// Cuts and joins the loopback; nothing but the pair uses it.
const CUT: &str = "tc qdisc add dev lo root netem loss 100%";
const JOIN: &str = "tc qdisc del dev lo root";
/// Slows the loopback down to less than a writer needs.
const SLOW: &str = "tc qdisc add dev lo root netem rate 16mbit limit 10000";

pub(crate) fn kernel_pair() -> Result<()> {
    Duo::play((Kind::Kernel, Kind::Kernel), resync_after_cut)
}

pub(crate) fn udrbd_primary() -> Result<()> {
    Duo::play((Kind::Udrbd, Kind::Kernel), resync_after_cut)
}

pub(crate) fn kernel_primary() -> Result<()> {
    Duo::play((Kind::Kernel, Kind::Udrbd), resync_after_cut)
}

/// Writes run while the link goes and comes; the writer sees no error, and only what changed travels.
fn resync_after_cut(duo: &mut Duo) -> Result<()> {
    let first = duo.first.clone();
    duo.connect_and_sync()?;
    let size = duo.size(&first)?;
    let sent_before = first.status(&mut duo.guest)?.sent_kib;

    // One part of the device only, so that what travels later can be told from a full sync.
    let writer = format!(
        "{IO} write {} --journal /run/share/journal --seed 4 --seconds 25 --length 16777216 --max 65536",
        first.target()
    );
    let job = duo.guest.spawn(&writer, Duration::from_secs(240))?;
    std::thread::sleep(Duration::from_secs(3));
    duo.guest.sh(CUT)?;
    first.wait(&mut duo.guest, "the loss of the peer", Duration::from_secs(60), |s| {
        s.peer_disk == "DUnknown"
    })?;
    duo.guest.wait(job)?.expect_success()?;
    let limit = Duration::from_secs(10);
    let lonely = first.wait(&mut duo.guest, "something out of sync", limit, |s| s.out_of_sync_kib > 0)?;
    if lonely.out_of_sync_kib > 17 << 10 {
        bail!("alone, it counts {} KiB out of sync of 16 MiB that were written", lonely.out_of_sync_kib);
    }
    duo.verify(&first)?;
    duo.guest.sh(JOIN)?;
    duo.wait_healthy()?;
    duo.compare(size)?;
    let sent = first.status(&mut duo.guest)?.sent_kib.saturating_sub(sent_before);
    if sent == 0 {
        bail!("nothing was sent to the peer that came back");
    }
    switch_and_verify(duo)
}

pub(crate) fn udrbd_congested() -> Result<()> {
    Duo::play((Kind::Udrbd, Kind::Kernel), pulls_ahead)
}

pub(crate) fn udrbd_behind() -> Result<()> {
    Duo::play((Kind::Kernel, Kind::Udrbd), pulls_ahead)
}

/// With protocol A over a link that is too slow the writer's side gets Ahead; when the writer is done the other one catches up
/// by itself, with the link as slow as it was. (Two kernels do not pass: with 8.4.11 blocks differ afterwards that count as in
/// sync.)
fn pulls_ahead(duo: &mut Duo) -> Result<()> {
    for side in [&mut duo.first, &mut duo.second] {
        side.net.retain(|option| option != "--protocol=C");
        side.net.extend(
            ["--protocol=A", "--on-congestion=pull-ahead", "--congestion-fill=512k"].map(str::to_owned),
        );
    }
    let (first, second) = (duo.first.clone(), duo.second.clone());
    duo.connect_and_sync()?;
    let size = duo.size(&first)?;
    duo.guest.sh(SLOW)?;
    let writer = format!(
        "{IO} write {} --journal /run/share/journal --seed 11 --seconds 20 --threads 8 --length 16777216 --max 65536",
        first.target()
    );
    let job = duo.guest.spawn(&writer, Duration::from_secs(240))?;
    first.wait(&mut duo.guest, "Ahead", Duration::from_secs(20), |s| s.connection == "Ahead")?;
    second.wait(&mut duo.guest, "Behind", Duration::from_secs(20), |s| s.connection == "Behind")?;
    duo.guest.wait(job)?.expect_success()?;
    duo.wait_healthy()?;
    duo.guest.sh(JOIN)?;
    duo.verify(&first)?;
    duo.compare(size)?;
    switch_and_verify(duo)
}

/// The other side serves what the first had promised.
fn switch_and_verify(duo: &mut Duo) -> Result<()> {
    let (first, second) = (duo.first.clone(), duo.second.clone());
    first.secondary(&mut duo.guest)?;
    second.primary(&mut duo.guest, false)?;
    duo.verify(&second)
}

/// Killed under writes, started again: the same data, the pair in step again.
pub(crate) fn killed_primary() -> Result<()> {
    Duo::play((Kind::Udrbd, Kind::Kernel), |duo| {
        let first = duo.first.clone();
        duo.connect_and_sync()?;
        let size = duo.size(&first)?;
        for seed in 0..3 {
            kill_under_writes(duo, &first, seed)?;
            duo.wait_healthy()?;
            duo.compare(size)?;
            first.primary(&mut duo.guest, false)?;
            duo.verify(&first)?;
        }
        switch_and_verify(duo)
    })
}

fn kill_under_writes(duo: &mut Duo, side: &Replica, seed: u64) -> Result<()> {
    let writer =
        format!("{IO} write {} --journal /run/share/journal --seed {seed} --seconds 120", side.target());
    let job = duo.guest.spawn(&writer, Duration::from_secs(240))?;
    std::thread::sleep(Duration::from_secs(3 + seed));
    side.kill_daemon(&mut duo.guest)?;
    if duo.guest.wait(job)?.status == 0 {
        bail!("the writer did not notice that its server is gone");
    }
    side.bring_up(&mut duo.guest)
}
