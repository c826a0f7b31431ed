//! What is remembered of a split brain, for people.

use udrbd_engine::bitmap::Region;
use udrbd_engine::generation::{HandshakeOutcome, Primaries, Prospect, Refused, Side, SplitBrain, prospects};
use udrbd_engine::interface::{AfterSplitBrain, Command, Handler, NetOptions};
use udrbd_units::{ConnectionState, DiskState, Role};

use crate::harness::{Pair, VOLUME};
use crate::{both, demote, promote, synced};

/// Both are Primary and have written: node 0 in two places, node 1 in one.
fn apart() -> Pair {
    let mut pair = synced();
    pair.command(1, Command::Disconnect { force: false }).unwrap();
    promote(&mut pair, 1, false);
    pair.write(1, 8, 2, 4096).unwrap();
    pair.write(0, 8, 3, 4096).unwrap();
    pair.write(0, 80, 3, 8192).unwrap();
    pair.command(0, Command::Disconnect { force: false }).unwrap();
    for node in &mut pair.nodes {
        node.handlers.clear();
    }
    pair
}

fn found(pair: &Pair, node: usize) -> Option<SplitBrain> {
    pair.nodes[node].status().split_brain.as_deref().copied()
}

fn meet(pair: &mut Pair, options: &NetOptions) {
    pair.connect(options);
    pair.until(|pair| pair.nodes.iter().all(|node| node.status().connection == ConnectionState::StandAlone));
}

#[test]
fn both_nodes_remember_what_the_handshake_found() {
    let mut pair = apart();
    assert_eq!(found(&pair, 0), None);
    meet(&mut pair, &NetOptions::default());
    let [one, other] = [0, 1].map(|node| found(&pair, node).expect("remembered"));
    assert_eq!(one.outcome, HandshakeOutcome::Refused(Refused::SplitBrain));
    assert_eq!((one.facts.own, one.facts.peer.set), (other.facts.peer.set, other.facts.own));
    assert_eq!((one.facts.own_told_bits, one.facts.peer.set_bits), (3, 1));
    assert_eq!((one.facts.own_role, one.facts.peer_role), (Role::Primary, Role::Primary));
    assert!(one.ancestor.is_some() && one.ancestor == other.ancestor);
    assert!(one.ancestor.is_some_and(|ancestor| ancestor.same_generation(one.facts.own.bitmap)));
    let region = |first, blocks| Region { first, blocks, set: blocks };
    let regions = pair.nodes[0].engine.as_ref().unwrap().changed_regions(VOLUME, 16);
    assert_eq!(regions, Some(vec![region(1, 1), region(10, 2)]));
    // It meets again: another one of the same kind.
    meet(&mut pair, &NetOptions::default());
    assert_eq!(found(&pair, 0).map(|found| found.number), Some(2));
}

#[test]
fn what_ends_it_is_remembered_as_well() {
    let mut pair = apart();
    meet(&mut pair, &NetOptions::default());
    demote(&mut pair, 1);
    let discard = NetOptions { discard_my_data: true, ..NetOptions::default() };
    pair.command(1, Command::Connect(Box::new(discard))).unwrap();
    pair.command(0, Command::Connect(Box::default())).unwrap();
    pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::UpToDate));
    assert!(pair.differences().is_empty());
    let outcomes = [0, 1].map(|node| found(&pair, node).map(|found| found.outcome));
    let source = HandshakeOutcome::Source { full: false };
    assert_eq!(outcomes, [Some(source), Some(HandshakeOutcome::Target { full: false })]);
}

#[test]
fn a_primary_that_loses_calls_for_help() {
    let mut pair = apart();
    let options = NetOptions {
        after_sb_0pri: AfterSplitBrain::DiscardLeastChanges,
        after_sb_2pri: AfterSplitBrain::CallPriLostAfterSb,
        ..NetOptions::default()
    };
    pair.connect(&options);
    pair.until(|pair| pair.nodes[1].status().connection == ConnectionState::StandAlone);
    let wanted = [Handler::InitialSplitBrain, Handler::PriLostAfterSb, Handler::SplitBrain];
    assert_eq!(pair.nodes[1].handlers[..], wanted, "{}", pair.describe());
    for line in ["detected, dropping connection!", "detected but unresolved, dropping connection!"] {
        assert!(pair.nodes[1].says(&format!("Split-Brain {line}")), "{}", pair.describe());
    }
    let found = found(&pair, 1).expect("remembered");
    let mut rows = prospects(&found.facts).into_iter().rev();
    let told = rows.find(|row| row.configured).map(|row| (row.primaries, row.prospect));
    assert_eq!(told, Some((Primaries::Both, Prospect::PrimaryLost { side: Side::Peer })));
}
