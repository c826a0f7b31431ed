//! A source that does not hear how its resync ended. It writes on, and the target, which has everything, may be promoted: that
//! is a split brain, which has to be found.

use udrbd_engine::interface::Command;
use udrbd_metadata::Superblock;
use udrbd_units::{ConnectionState, DiskState, Role};

use crate::harness::Pair;
use crate::{both, demote, fast, promote, synced};

/// Node 1 comes back to node 0, which is Primary and has written in this many places meanwhile.
fn behind(places: u64) -> Pair {
    let mut pair = synced();
    pair.command(1, Command::Disconnect { force: false }).unwrap();
    for place in 0..places {
        pair.write(0, place * 64, 7, 4096).unwrap();
    }
    pair.command(1, Command::Connect(Box::default())).unwrap();
    pair
}

fn superblock(pair: &Pair, node: usize) -> Superblock {
    pair.nodes[node].superblock(pair.sectors)
}

/// The connection is gone, and no other comes about.
fn part(pair: &mut Pair) {
    pair.refused = true;
    pair.break_wires_before(0);
    pair.until(|pair| pair.nodes[0].status().connection == ConnectionState::WFConnection);
    pair.settle();
}

/// Node 1 is done, and what it says of that is on its way.
fn done(mut pair: Pair) -> Pair {
    let done = |pair: &Pair| {
        let status = pair.nodes[1].status();
        status.connection == ConnectionState::Connected && status.disk == DiskState::UpToDate
    };
    while !done(&pair) {
        assert!(pair.step() || pair.advance());
    }
    assert_eq!(pair.nodes[0].status().connection, ConnectionState::SyncSource, "{}", pair.describe());
    pair
}

/// It is lost with the connection.
fn missed(pair: Pair) -> Pair {
    let mut pair = done(pair);
    part(&mut pair);
    pair
}

fn meet(pair: &mut Pair) {
    pair.refused = false;
    pair.until(|pair| {
        both(pair, ConnectionState::Connected, DiskState::UpToDate)
            || pair.nodes.iter().any(|node| node.status().connection == ConnectionState::StandAlone)
    });
    pair.settle();
}

/// Both have written, each believing that it goes on alone.
fn is_found(pair: &mut Pair) {
    promote(pair, 1, false);
    pair.write(1, 640, 8, 4096).unwrap();
    meet(pair);
    assert!(pair.nodes[0].says("Split-Brain detected"), "{}", pair.describe());
    assert_eq!(pair.nodes[0].load(0, 4096), [9; 4096], "what node 0 wrote is discarded\n{}", pair.describe());
    assert_eq!(pair.nodes[1].load(640, 4096), [8; 4096], "{}", pair.describe());
}

#[test]
fn a_primary_source_and_its_promoted_target_find_their_split_brain() {
    let mut pair = missed(behind(1));
    pair.write(0, 0, 9, 4096).unwrap();
    is_found(&mut pair);
}

#[test]
fn so_do_they_where_the_source_became_primary_afterwards() {
    let mut pair = behind(1);
    demote(&mut pair, 0);
    let mut pair = missed(pair);
    promote(&mut pair, 0, false);
    pair.write(0, 0, 9, 4096).unwrap();
    is_found(&mut pair);
}

/// It does not live to hear of the loss, either: its identifiers alone tell that there was a resync.
#[test]
fn so_do_they_where_the_source_was_started_anew() {
    let mut pair = done(behind(1));
    pair.refused = true;
    pair.kill(0);
    let name = superblock(&pair, 0).bitmap;
    pair.start(0, fast());
    pair.command(0, Command::Connect(Box::default())).unwrap();
    promote(&mut pair, 0, false);
    assert!(superblock(&pair, 0).bitmap.same_generation(name), "{}", pair.describe());
    pair.write(0, 0, 9, 4096).unwrap();
    is_found(&mut pair);
}

#[test]
fn a_target_that_was_done_gets_what_its_source_wrote_since() {
    let mut pair = missed(behind(1));
    pair.write(0, 0, 9, 4096).unwrap();
    meet(&mut pair);
    assert!(both(&pair, ConnectionState::Connected, DiskState::UpToDate), "{}", pair.describe());
    assert_eq!(pair.nodes[1].load(0, 4096), [9; 4096]);
    assert!(pair.differences().is_empty());
    assert_eq!(pair.nodes[0].status().role, Role::Primary);
    let [one, other] = [0, 1].map(|node| superblock(&pair, node));
    assert!(one.current.same_generation(other.current) && !one.bitmap.is_some() && !other.bitmap.is_some());
}

/// The last block is at the target's disk when the connection breaks: the target may be done, and is not. No more is
/// resynced for it.
#[test]
fn a_target_that_was_sent_all_goes_on_where_it_was() {
    let mut pair = behind(1);
    pair.nodes[1].stuck = true;
    pair.until(|pair| pair.kept(1) > 0);
    let before = superblock(&pair, 0);
    part(&mut pair);
    let after = superblock(&pair, 0);
    assert!(!after.current.same_generation(before.current), "{}", pair.describe());
    assert!(after.bitmap.same_generation(before.bitmap) && after.history[0].same_generation(before.current));
    pair.unstick(1);
    pair.write(0, 64, 9, 4096).unwrap();
    meet(&mut pair);
    assert!(
        pair.nodes[1].says("Began resync as SyncTarget (will sync 8 KB [2 bits set])"),
        "{}",
        pair.describe()
    );
    assert!(pair.differences().is_empty());
}

/// A target that lacks blocks it was not sent is not done: its source goes on under the identifiers it has, as DRBD does.
#[test]
fn a_source_knows_of_a_target_that_cannot_be_done() {
    let mut pair = behind(2);
    pair.nodes[0].stuck = true;
    pair.until(|pair| pair.kept(0) == 2);
    pair.unstick_first(0);
    pair.settle();
    assert_eq!(pair.nodes[1].load(0, 4096), [7; 4096]);
    let before = superblock(&pair, 0);
    pair.break_wires_before(0);
    pair.settle();
    pair.refused = true;
    pair.unstick(0);
    part(&mut pair);
    assert_eq!(superblock(&pair, 0).current, before.current, "{}", pair.describe());
    meet(&mut pair);
    assert!(pair.differences().is_empty());
}
