//! Handlers that are waited for, and what goes on meanwhile.

use udrbd_engine::interface::{Command, DiskOptions, Handler, NetOptions, OnIoError};
use udrbd_units::{ConnectionState, DiskState, Role};

use crate::harness::{Pair, VOLUME};
use crate::stuck::WRITE;
use crate::{both, demote, fast, promote, synced};

/// The first handler of a node that runs ends.
fn end_handler(pair: &mut Pair, node: usize) {
    let handler = pair.nodes[node].handlers_at_work.remove(0);
    pair.handler_exit(node, handler, 0);
    pair.settle();
}

/// Both have written on their own; node 1 waits for its handlers. Node 0 is Primary.
fn split(options: &NetOptions) -> Pair {
    let mut pair = synced();
    pair.command(1, Command::Disconnect { force: false }).unwrap();
    promote(&mut pair, 1, false);
    pair.write(1, 8, 2, 4096).unwrap();
    demote(&mut pair, 1);
    pair.write(0, 8, 3, 4096).unwrap();
    pair.command(0, Command::Disconnect { force: false }).unwrap();
    for node in &mut pair.nodes {
        node.handlers.clear();
        node.log.clear();
        node.slow_handlers = true;
    }
    pair.connect(options);
    pair.until(|pair| pair.nodes.iter().all(|node| !node.handlers_at_work.is_empty()));
    pair
}

fn connection(pair: &Pair, node: usize) -> ConnectionState {
    pair.nodes[node].status().connection
}

#[test]
fn a_split_brain_is_decided_when_its_handlers_have_ended() {
    let mut pair = split(&NetOptions::default());
    for node in [1, 0] {
        assert_eq!(pair.nodes[node].handlers, [Handler::InitialSplitBrain], "{}", pair.describe());
        assert_eq!(connection(&pair, node), ConnectionState::WFReportParams);
        end_handler(&mut pair, node);
        assert_eq!(pair.nodes[node].handlers, [Handler::InitialSplitBrain, Handler::SplitBrain]);
        assert_eq!(connection(&pair, node), ConnectionState::WFReportParams);
    }
    // The connection is lost under a handler: the decision holds all the same.
    end_handler(&mut pair, 0);
    pair.pass(1);
    assert_eq!(connection(&pair, 0), ConnectionState::StandAlone);
    assert!(connection(&pair, 1) <= ConnectionState::TearDown, "{}", pair.describe());
    end_handler(&mut pair, 1);
    pair.pass(1);
    assert_eq!(connection(&pair, 1), ConnectionState::StandAlone, "{}", pair.describe());
    let told = pair.nodes[1].log.iter().filter(|line| line.contains("uuid_compare()=")).count();
    assert_eq!(told, 1, "{}", pair.describe());
}

#[test]
fn a_split_brain_that_is_solved_waits_for_its_handler_too() {
    let options = NetOptions {
        after_sb_1pri: udrbd_engine::interface::AfterSplitBrain::DiscardSecondary,
        ..NetOptions::default()
    };
    let mut pair = split(&options);
    // Writes go on meanwhile, and are not lost.
    pair.write(0, 16, 4, 4096).unwrap();
    end_handler(&mut pair, 1);
    pair.settle();
    assert_eq!(connection(&pair, 1), ConnectionState::WFBitMapT);
    end_handler(&mut pair, 0);
    for node in &mut pair.nodes {
        node.slow_handlers = false;
        assert_eq!(node.handlers[0], Handler::InitialSplitBrain);
    }
    for node in 0..2 {
        while !pair.nodes[node].handlers_at_work.is_empty() {
            end_handler(&mut pair, node);
        }
    }
    pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::UpToDate));
    assert!(pair.differences().is_empty());
    assert_eq!(pair.nodes[1].load(8, 4096), vec![3; 4096]);
}

#[test]
fn a_forced_disconnect_does_not_wait_for_a_handler_that_hangs() {
    let mut pair = split(&NetOptions::default());
    pair.command(1, Command::Disconnect { force: true }).unwrap();
    pair.settle();
    assert_eq!(connection(&pair, 1), ConnectionState::StandAlone, "{}", pair.describe());
    pair.nodes[1].slow_handlers = false;
    end_handler(&mut pair, 1);
    assert_eq!(pair.nodes[1].handlers, [Handler::InitialSplitBrain]);
    pair.pass(1);
    end_handler(&mut pair, 0);
}

#[test]
fn the_peer_learns_of_a_failed_disk_after_the_handler_that_may_reset_the_node() {
    let mut pair = synced();
    let options = DiskOptions { on_io_error: OnIoError::CallLocalIoError, ..fast() };
    pair.command(0, Command::DiskOptions { volume: VOLUME, options: Box::new(options) }).unwrap();
    pair.nodes[0].slow_handlers = true;
    pair.nodes[0].failing = true;
    pair.write(0, 0, 1, 4096).unwrap();
    pair.settle();
    assert_eq!(pair.nodes[0].handlers.last(), Some(&Handler::LocalIoError));
    assert_eq!(pair.nodes[0].status().disk, DiskState::Failed);
    assert_eq!(pair.nodes[1].status().peer_disk, DiskState::UpToDate);
    // Nor does a write get there that only the peer would have.
    let write = pair.submit(0, WRITE, 0, &[2; 4096], 4096);
    pair.settle();
    assert!(!pair.nodes[0].completions.contains_key(&write));
    assert_eq!(pair.nodes[1].load(0, 4096), vec![1; 4096]);
    pair.nodes[0].slow_handlers = false;
    end_handler(&mut pair, 0);
    assert_eq!(pair.nodes[0].completions[&write].0, Ok(()), "{}", pair.describe());
    assert_eq!(pair.nodes[1].status().peer_disk, DiskState::Diskless);
    pair.nodes[0].failing = false;
    pair.attach(0, fast()).unwrap();
    pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::UpToDate));
    assert!(pair.differences().is_empty());
}

#[test]
fn a_primary_without_good_data_goes_on_when_its_handler_has_ended() {
    let mut pair = synced();
    pair.command(0, Command::Detach { volume: VOLUME, force: false }).unwrap();
    pair.settle();
    pair.nodes[0].slow_handlers = true;
    pair.refused = true;
    pair.break_wires();
    pair.settle();
    assert_eq!(pair.nodes[0].handlers.last(), Some(&Handler::PriOnInconDegr));
    assert_eq!(pair.nodes[0].status().role, Role::Primary);
    // Whoever asks is not kept waiting.
    assert!(pair.write(0, 0, 1, 4096).is_err());
    pair.refused = false;
    pair.pass(20);
    assert!(connection(&pair, 0) < ConnectionState::WFConnection, "{}", pair.describe());
    end_handler(&mut pair, 0);
    pair.until(|pair| connection(pair, 0) == ConnectionState::Connected);
    pair.write(0, 0, 2, 4096).unwrap();
}

/// The source's disk goes away and comes back while the handler runs: the new resync has a name of its own, which the target
/// has to hear of first.
#[test]
fn a_handler_of_a_resync_that_was_given_up_starts_no_later_one() {
    let mut pair = synced();
    pair.command(1, Command::Disconnect { force: false }).unwrap();
    pair.write(0, 8, 3, 4096).unwrap();
    demote(&mut pair, 0);
    pair.nodes[1].slow_handlers = true;
    pair.command(1, Command::Connect(Box::default())).unwrap();
    pair.until(|pair| !pair.nodes[1].handlers_at_work.is_empty());
    assert_eq!(pair.nodes[1].handlers.last(), Some(&Handler::BeforeResyncTarget));
    pair.nodes[0].slow_handlers = true;
    pair.command(0, Command::Detach { volume: VOLUME, force: true }).unwrap();
    pair.settle();
    pair.begin_attach(0, fast());
    pair.until(|pair| connection(pair, 1) == ConnectionState::WFSyncUUID);
    pair.settle();
    end_handler(&mut pair, 1);
    assert_eq!(connection(&pair, 1), ConnectionState::WFSyncUUID, "{}", pair.describe());
    for node in 0..2 {
        pair.nodes[node].slow_handlers = false;
        while !pair.nodes[node].handlers_at_work.is_empty() {
            end_handler(&mut pair, node);
        }
    }
    pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::UpToDate));
    assert!(pair.differences().is_empty());
    let started = pair.nodes[1].log.iter().filter(|line| line.contains("Began resync as SyncTarget"));
    assert_eq!(started.count(), 2, "the first one of the two made the pair\n{}", pair.describe());
}
