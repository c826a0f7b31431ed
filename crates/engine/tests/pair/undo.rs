//! The victim of a split brain keeps what it loses. The harness refuses any write over a block that was not kept.

use udrbd_engine::interface::{Command, DiskOptions, NetOptions, Operation};
use udrbd_units::{ConnectionState, DiskState};

use crate::harness::{Pair, VOLUME};
use crate::stuck::WRITE;
use crate::{both, demote, fast, promote, synced};

fn keeping() -> DiskOptions {
    DiskOptions { resync_undo: true, ..fast() }
}

/// Both have changed what both had; node 1 is to lose. Returns the data of its first 32 blocks.
fn apart(options: DiskOptions) -> (Pair, Vec<Vec<u8>>) {
    let mut pair = synced();
    pair.command(1, Command::DiskOptions { volume: VOLUME, options: Box::new(options) }).unwrap();
    for block in 0..32 {
        pair.write(0, block * 8, 1, 4096).unwrap();
    }
    pair.command(1, Command::Disconnect { force: false }).unwrap();
    promote(&mut pair, 1, false);
    for block in 4..12 {
        pair.write(1, block * 8, 2, 4096).unwrap();
    }
    // Less than a block.
    pair.write(1, 13 * 8 + 3, 2, 512).unwrap();
    for block in 8..16 {
        pair.write(0, block * 8, 3, 4096).unwrap();
    }
    demote(&mut pair, 1);
    pair.command(0, Command::Disconnect { force: false }).unwrap();
    let was = (0..32).map(|block| pair.nodes[1].load(block * 8, 4096)).collect();
    (pair, was)
}

fn discard(pair: &mut Pair) {
    let discard = NetOptions { discard_my_data: true, ..NetOptions::default() };
    pair.command(1, Command::Connect(Box::new(discard))).unwrap();
    pair.command(0, Command::Connect(Box::default())).unwrap();
}

fn is_healthy(pair: &Pair) -> bool {
    both(pair, ConnectionState::Connected, DiskState::UpToDate)
}

fn expect_undone(pair: &Pair, was: &[Vec<u8>]) {
    for (block, bytes) in (0..).zip(was) {
        assert_eq!(&pair.nodes[1].undone(block), bytes, "block {block}\n{}", pair.describe());
    }
}

fn kept(pair: &Pair) -> Vec<u64> {
    pair.nodes[1].undo.as_ref().map(|undo| undo.blocks.keys().copied().collect()).unwrap_or_default()
}

#[test]
fn what_the_resync_overwrites_is_kept() {
    let (mut pair, was) = apart(keeping());
    discard(&mut pair);
    pair.until(is_healthy);
    assert!(pair.differences().is_empty());
    // And what was not known to be on both when they parted.
    let kept: Vec<u64> = kept(&pair).into_iter().filter(|block| *block < 16).collect();
    assert_eq!(kept, (4..16).collect::<Vec<_>>(), "{}", pair.describe());
    expect_undone(&pair, &was);
    assert!(pair.nodes[0].undo.is_none(), "the survivor loses nothing");
}

#[test]
fn what_is_written_later_is_kept_too_until_it_is_dropped() {
    let (mut pair, was) = apart(keeping());
    discard(&mut pair);
    pair.until(is_healthy);
    // By the peer: parts of blocks at once, and once more.
    let requests = [(160, 512), (161, 512), (162, 4096), (160, 4096)]
        .map(|(sector, bytes)| pair.submit(0, WRITE, sector, &[7; 4096][..bytes as usize], bytes));
    pair.settle();
    for request in requests {
        assert_eq!(pair.nodes[0].completions[&request].0, Ok(()), "{}", pair.describe());
    }
    let trim = pair.submit(0, Operation::Discard, 24 * 8, &[], 16384);
    pair.settle();
    assert_eq!(pair.nodes[0].completions[&trim].0, Ok(()));
    // And by this node, Primary now.
    demote(&mut pair, 0);
    promote(&mut pair, 1, false);
    pair.write(1, 31 * 8, 7, 4096).unwrap();
    assert!(pair.differences().is_empty());
    expect_undone(&pair, &was);
    let before = kept(&pair);
    assert!([20, 21, 24, 27, 31].iter().all(|block| before.contains(block)), "{before:?}");
    pair.command(1, Command::DropUndo { volume: VOLUME }).unwrap();
    pair.nodes[1].undo = None;
    pair.write(1, 30 * 8, 7, 4096).unwrap();
    assert!(pair.differences().is_empty());
}

#[test]
fn a_daemon_that_dies_leaves_an_undo_that_goes_on() {
    for patience in 0..12 {
        let (mut pair, was) = apart(keeping());
        discard(&mut pair);
        pair.until(|pair| {
            pair.nodes[1].status().connection == ConnectionState::SyncTarget || is_healthy(pair)
        });
        for _ in 0..patience * 4 {
            pair.step();
        }
        pair.kill(1);
        expect_undone(&pair, &was);
        pair.until(|pair| pair.nodes[0].status().connection == ConnectionState::WFConnection);
        pair.write(0, 20 * 8, 9, 4096).unwrap();
        pair.start(1, keeping());
        pair.command(1, Command::Connect(Box::default())).unwrap();
        pair.until(is_healthy);
        assert!(pair.differences().is_empty());
        expect_undone(&pair, &was);
    }
}

#[test]
fn the_resync_goes_on_where_there_is_no_room() {
    let (mut pair, _) = apart(keeping());
    pair.nodes[1].undo_room = 5;
    discard(&mut pair);
    pair.until(is_healthy);
    assert!(pair.differences().is_empty());
    assert!(pair.nodes[1].undo.as_ref().is_some_and(|undo| undo.incomplete));
    assert!(pair.nodes[1].says("The resync-undo is incomplete"), "{}", pair.describe());
    // Nor does the next daemon take it for whole.
    pair.kill(1);
    pair.until(|pair| pair.nodes[0].status().connection == ConnectionState::WFConnection);
    pair.start(1, keeping());
    pair.command(1, Command::Connect(Box::default())).unwrap();
    pair.until(is_healthy);
    pair.write(0, 30 * 8, 7, 4096).unwrap();
}

#[test]
fn a_side_file_that_hangs_goes_with_the_disk() {
    let (mut pair, _) = apart(keeping());
    discard(&mut pair);
    pair.until(is_healthy);
    pair.nodes[1].stuck = true;
    pair.nodes[1].hanging = true;
    let request = pair.submit(0, WRITE, 240, &[7; 4096], 4096);
    pair.settle();
    pair.command(1, Command::Detach { volume: VOLUME, force: true }).unwrap();
    pair.settle();
    assert_eq!(pair.nodes[0].completions[&request].0, Ok(()), "{}", pair.describe());
    assert_eq!(pair.nodes[1].status().disk, DiskState::Failed, "the side file has not answered");
    pair.unstick(1);
    pair.settle();
    assert_eq!(pair.nodes[1].status().disk, DiskState::Diskless, "{}", pair.describe());
}

#[test]
fn nothing_is_kept_unasked_or_of_an_ordinary_resync() {
    let (mut pair, _) = apart(fast());
    discard(&mut pair);
    pair.until(is_healthy);
    assert!(pair.nodes[1].undo.is_none());
    pair.command(1, Command::DiskOptions { volume: VOLUME, options: Box::new(keeping()) }).unwrap();
    pair.command(1, Command::Disconnect { force: false }).unwrap();
    pair.write(0, 0, 9, 4096).unwrap();
    pair.command(1, Command::Connect(Box::default())).unwrap();
    pair.until(is_healthy);
    assert!(pair.nodes[1].undo.is_none());
}
