//! `resync-undo`: the victim of a split brain keeps what it loses, also when its daemon dies in the middle.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};
use udrbd_tests::nbd::Nbd;
use udrbd_tests::pair::{Node, Pair, PairOptions};

use crate::compare;
use crate::split_brain::{device, expect};

const MIB: usize = 1 << 20;
const DISCARD: &str = "drbdadm secondary r0; drbdadm disconnect r0; drbdadm -- --discard-my-data connect r0";

/// All of a device.
fn contents(export: &mut Nbd) -> Result<Vec<u8>> {
    let mut bytes = vec![0; export.size() as usize];
    for (offset, piece) in (0..).step_by(MIB).zip(bytes.chunks_mut(MIB)) {
        export.read(offset, piece)?;
    }
    Ok(bytes)
}

/// Both have changed much of what they share. Returns what the victim, beta, has.
fn apart(undo: &str) -> Result<(Pair, Vec<u8>)> {
    let disk = format!("resync-rate 8M; c-plan-ahead 0; resync-undo {undo};");
    let mut pair = Pair::new(PairOptions { disk, ..PairOptions::default() })?;
    pair.bring_up_and_sync()?;
    pair.adm(Node::Beta, "disconnect r0")?;
    pair.adm(Node::Beta, "primary r0")?;
    for (node, first, byte) in [(Node::Alpha, 8, 0xA0), (Node::Beta, 2, 0xB0)] {
        let mut device = device(&pair, node)?;
        for place in first..first + 16 {
            device.write((place * MIB) as u64, &[byte + place as u8; MIB], false)?;
        }
        device.write((40 * MIB + 512) as u64, &[byte; 512], false)?;
    }
    let was = contents(&mut device(&pair, Node::Beta)?)?;
    pair.adm(Node::Beta, "connect r0")?;
    for node in Node::BOTH {
        pair.wait(node, "StandAlone", |status| status.connection == "StandAlone")?;
    }
    Ok((pair, was))
}

fn discard(pair: &Pair) -> Result<()> {
    for (node, command) in [(Node::Beta, DISCARD), (Node::Alpha, "drbdadm connect r0")] {
        let output = pair.shell(node, command)?;
        if output.status != 0 {
            bail!("'{command}' ended with {}: {}", output.status, output.stderr);
        }
    }
    Ok(())
}

fn expect_undone(pair: &Pair, was: &[u8]) -> Result<()> {
    let undone = contents(&mut Nbd::connect(&pair.socket(Node::Beta), "r0@undo")?)?;
    if undone.len() != was.len() {
        bail!("the undo has {} bytes, the device had {}", undone.len(), was.len());
    }
    match undone.iter().zip(was).position(|(one, other)| one != other) {
        Some(place) => bail!("the undo differs from what was there at {place}\n{}", pair.log(Node::Beta)),
        None => Ok(()),
    }
}

fn side_file(pair: &Pair) -> PathBuf {
    PathBuf::from(&pair.side(Node::Beta).run_dir).join("undo-drbd1.side")
}

pub(crate) fn kept_and_dropped() -> Result<()> {
    let (mut pair, was) = apart("48M")?;
    discard(&pair)?;
    pair.wait(Node::Beta, "the middle of the resync", |status| {
        status.connection == "SyncTarget" && status.out_of_sync_kib < 20 << 10
    })?;
    // Killed in the middle, twice.
    for _ in 0..2 {
        expect_undone(&pair, &was)?;
        pair.kill(Node::Beta)?;
        pair.start(Node::Beta)?;
        pair.adm(Node::Beta, "up r0")?;
        pair.wait(Node::Beta, "the resync", |status| {
            status.connection == "SyncTarget" && status.out_of_sync_kib > 0
        })?;
        std::thread::sleep(Duration::from_millis(300));
    }
    pair.wait_healthy()?;
    compare(&pair, Node::Alpha)?;
    expect_undone(&pair, &was)?;
    // Who writes later changes nothing of it.
    let mut device = device(&pair, Node::Alpha)?;
    for place in [1, 3, 30] {
        device.write((place * MIB + 4096) as u64, &[0xEE; 8192], false)?;
    }
    device.write((50 * MIB + 1024) as u64, &[0xEE; 512], false)?;
    compare(&pair, Node::Alpha)?;
    expect_undone(&pair, &was)?;
    let mut export = Nbd::connect(&pair.socket(Node::Beta), "r0@undo")?;
    if export.write(0, &[1; 4096], false).is_ok() {
        bail!("the undo took a write");
    }
    let shown = pair.adm(Node::Beta, "resync-undo r0")?;
    expect(&shown, &["It shows the device as it was", "nbd+unix:///r0@undo?socket="])?;
    // Dropped: the space is free again, and the device goes on.
    pair.adm(Node::Beta, "drop-resync-undo r0")?;
    if side_file(&pair).exists() {
        bail!("the side file is still there");
    }
    if export.read(0, &mut [0; 4096]).is_ok() {
        bail!("the undo is still shown");
    }
    device.write(0, &[0xDD; 4096], false)?;
    compare(&pair, Node::Alpha)?;
    expect(&pair.adm(Node::Beta, "resync-undo r0")?, &["there is no resync-undo"])
}

pub(crate) fn without_room() -> Result<()> {
    let (mut pair, _) = apart("4M")?;
    discard(&pair)?;
    pair.wait_healthy()?;
    compare(&pair, Node::Alpha)?;
    expect(&pair.adm(Node::Beta, "resync-undo r0")?, &["INCOMPLETE"])?;
    expect(&pair.whole_log(Node::Beta)?, &["The resync-undo is incomplete from here on: error 28"])?;
    // That is not forgotten, and nobody minds.
    pair.kill(Node::Beta)?;
    pair.start(Node::Beta)?;
    pair.adm(Node::Beta, "up r0")?;
    pair.wait_healthy()?;
    device(&pair, Node::Alpha)?.write(0, &[0xDD; 4096], false)?;
    compare(&pair, Node::Alpha)?;
    expect(&pair.adm(Node::Beta, "resync-undo r0")?, &["INCOMPLETE"])?;
    pair.adm(Node::Beta, "drop-resync-undo r0").map(drop)
}
