//! Resyncs that are given up half-way, and what of them is still at a disk when the next one runs.

use udrbd_engine::interface::{Command, Event, Failure};
use udrbd_units::{ConnectionState, DiskState, Sector};

use crate::harness::{Pair, VOLUME};
use crate::stuck::WRITE;
use crate::{both, demote, fast, promote, synced};

/// Node 1 lacks one block, which holds 7s, and is about to write it: its disk does not answer. Nobody is Primary.
fn block_at_the_disk() -> Pair {
    let mut pair = synced();
    pair.command(1, Command::Disconnect { force: false }).unwrap();
    pair.write(0, 0, 7, 4096).unwrap();
    demote(&mut pair, 0);
    pair.command(1, Command::Connect(Box::default())).unwrap();
    pair.until(|pair| pair.nodes[1].status().connection == ConnectionState::SyncTarget);
    pair.nodes[1].stuck = true;
    pair.pass(1);
    assert_eq!(pair.kept(1), 1, "{}", pair.describe());
    pair
}

/// The source's disk goes: the resync is given up on a connection that stays.
fn given_up() -> Pair {
    let mut pair = block_at_the_disk();
    pair.command(0, Command::Detach { volume: VOLUME, force: false }).unwrap();
    pair.until(|pair| pair.nodes[1].status().connection == ConnectionState::Connected);
    pair
}

fn left(pair: &Pair, node: usize) -> u64 {
    pair.nodes[node].status().counters.out_of_sync_sectors
}

/// Neither node counts anything as under way.
fn nothing_is_counted(pair: &mut Pair) {
    pair.pass(1);
    for node in 0..2 {
        let counters = pair.nodes[node].status().counters;
        let counts = (counters.peer_pending, counters.unacknowledged, counters.local_pending);
        assert_eq!(counts, (0, 0, 0), "node {node}\n{}", pair.describe());
        assert_eq!(pair.buffers_owned(node), 0);
    }
}

#[test]
fn a_block_of_a_resync_that_was_given_up_counts_for_no_other() {
    let mut pair = given_up();
    pair.attach(0, fast()).unwrap();
    pair.until(|pair| pair.nodes[1].status().connection == ConnectionState::SyncTarget);
    pair.pass(1);
    assert_eq!(left(&pair, 1), 8);
    pair.unstick_first(1);
    pair.settle();
    // The source has sent the block anew and counts only the answer to that.
    assert_eq!(left(&pair, 1), 8, "{}", pair.describe());
    pair.unstick(1);
    pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::UpToDate));
    assert_eq!(pair.nodes[1].load(0, 4096), [7; 4096]);
    nothing_is_counted(&mut pair);
}

#[test]
fn the_block_of_the_next_resync_waits_for_the_one_at_the_disk() {
    let mut pair = given_up();
    pair.attach(0, fast()).unwrap();
    pair.until(|pair| pair.nodes[1].status().connection == ConnectionState::SyncTarget);
    pair.pass(1);
    assert_eq!(pair.kept(1), 1, "two writes of one block are at the disk: any may be the last");
    pair.unstick_first(1);
    pair.settle();
    assert_eq!(pair.kept(1), 1, "{}", pair.describe());
}

#[test]
fn an_own_write_waits_for_the_block_at_the_disk() {
    let mut pair = given_up();
    pair.command(1, Command::PauseSync { volume: VOLUME }).unwrap();
    pair.attach(0, fast()).unwrap();
    pair.until(|pair| pair.nodes[1].status().connection == ConnectionState::PausedSyncT);
    promote(&mut pair, 1, false);
    let id = pair.submit(1, WRITE, 0, &[9; 4096], 4096);
    pair.settle();
    assert_eq!(pair.kept(1), 1, "the old block may land on top of the write");
    pair.unstick_first(1);
    pair.settle();
    assert_eq!(pair.kept(1), 1, "{}", pair.describe());
    pair.unstick(1);
    pair.until(|pair| pair.nodes[1].completions.contains_key(&id));
    pair.command(1, Command::ResumeSync { volume: VOLUME }).unwrap();
    pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::UpToDate));
    for node in 0..2 {
        assert_eq!(pair.nodes[node].load(0, 4096), [9; 4096]);
    }
    nothing_is_counted(&mut pair);
}

#[test]
fn nothing_of_a_resync_stays_counted_that_was_given_up() {
    let mut pair = given_up();
    pair.unstick(1);
    pair.pass(1);
    nothing_is_counted(&mut pair);
    let mut pair = block_at_the_disk();
    pair.break_wires();
    pair.settle();
    pair.unstick(1);
    pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::UpToDate));
    nothing_is_counted(&mut pair);
}

/// Node 1 asks for a block, and loses its disk; node 0 has read 7s and does not know it yet. Meanwhile the block becomes 8s.
fn a_read_that_outlives_its_resync() -> Pair {
    let mut pair = synced();
    pair.command(1, Command::Disconnect { force: false }).unwrap();
    pair.write(0, 0, 7, 4096).unwrap();
    pair.command(1, Command::Connect(Box::default())).unwrap();
    pair.nodes[0].late_reads = true;
    pair.until(|pair| pair.nodes[1].status().connection == ConnectionState::SyncTarget);
    pair.pass(1);
    pair.command(1, Command::Detach { volume: VOLUME, force: true }).unwrap();
    pair.until(|pair| pair.nodes[1].status().disk == DiskState::Diskless);
    pair.settle();
    assert_eq!(pair.nodes[0].status().connection, ConnectionState::Connected);
    pair.write(0, 0, 8, 4096).unwrap();
    pair
}

#[test]
fn what_a_resync_that_was_given_up_has_read_goes_into_no_other() {
    let mut pair = a_read_that_outlives_its_resync();
    pair.attach(1, fast()).unwrap();
    pair.until(|pair| pair.nodes[1].status().connection == ConnectionState::SyncTarget);
    let connections = pair.nodes[1].log.len();
    pair.pass(1);
    assert_eq!(pair.tell_of_reads(0), 2, "one of each resync");
    pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::UpToDate));
    assert!(pair.differences().is_empty(), "{}", pair.describe());
    let lost = pair.nodes[1].log[connections..].iter().any(|line| line.contains("connection lost"));
    assert!(!lost, "{}", pair.describe());
    nothing_is_counted(&mut pair);
}

#[test]
fn a_request_that_comes_after_its_resync_is_refused_at_once() {
    let mut pair = synced();
    pair.nodes[0].late_reads = true;
    let socket = pair.socket(0, true).unwrap();
    let request = udrbd_wire::BlockRequest::new(Sector(0), udrbd_wire::BlockId::SYNCER, 4096);
    let packet = udrbd_wire::Packet::ResyncDataRequest(request);
    let event = Event::Packet {
        socket,
        volume: VOLUME,
        packet,
        payload: None,
        payload_bytes: 0,
        bytes: Vec::new(),
        digest: None,
        intact: true,
    };
    pair.inject(0, event);
    pair.settle();
    assert_eq!(pair.tell_of_reads(0), 0);
    let last = pair.packets.last().map(|(node, packet)| (*node, packet.clone()));
    assert!(matches!(last, Some((0, udrbd_wire::Packet::NegativeResyncDataReply(_)))), "{last:?}");
}

#[test]
fn a_resync_waits_for_another_minors_and_both_nodes_show_it() {
    let mut pair = synced();
    let waits = |waits| Command::ResyncDependency { volume: VOLUME, waits };
    pair.command(1, waits(true)).unwrap();
    pair.settle();
    assert!(pair.nodes[1].status().paused_by_dependency && pair.nodes[0].status().paused_by_peer);
    pair.command(1, Command::Disconnect { force: false }).unwrap();
    assert!(pair.nodes[1].status().paused_by_dependency && !pair.nodes[0].status().paused_by_peer);
    pair.write(0, 0, 7, 4096).unwrap();
    pair.command(1, Command::Connect(Box::default())).unwrap();
    pair.until(|pair| pair.nodes[1].status().connection == ConnectionState::PausedSyncT);
    pair.pass(2);
    assert_eq!(pair.nodes[0].status().connection, ConnectionState::PausedSyncS);
    assert_eq!(left(&pair, 1), 8, "{}", pair.describe());
    let refused = pair.command(1, Command::ResumeSync { volume: VOLUME });
    assert_eq!(refused, Err(Failure::configuration(156)));
    pair.command(1, waits(false)).unwrap();
    pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::UpToDate));
    assert!(!pair.nodes[0].status().paused_by_peer);
    assert_eq!(pair.nodes[1].load(0, 4096), [7; 4096]);
    nothing_is_counted(&mut pair);
}

/// Node 0, a Primary, has written a block in the middle of a resync, which is over: the peer has it and has marked it in sync.
/// The disk of node 0 has not answered yet.
fn marked_by_the_peer_alone() -> Pair {
    let mut pair = synced();
    pair.command(1, Command::Disconnect { force: false }).unwrap();
    // Not in the same extent: the resync would wait for the write.
    pair.write(0, 36000, 7, 4096).unwrap();
    pair.command(0, Command::PauseSync { volume: VOLUME }).unwrap();
    pair.command(1, Command::Connect(Box::default())).unwrap();
    pair.until(|pair| pair.nodes[0].status().connection == ConnectionState::PausedSyncS);
    pair.nodes[0].stuck = true;
    pair.submit(0, WRITE, 800, &[8; 4096], 4096);
    pair.settle();
    assert_eq!(pair.kept(0), 1, "{}", pair.describe());
    pair.nodes[0].stuck = false;
    pair.command(0, Command::ResumeSync { volume: VOLUME }).unwrap();
    pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::UpToDate));
    pair
}

#[test]
fn a_write_of_the_last_resync_clears_no_bit_of_a_full_one() {
    for command in [Command::Invalidate { volume: VOLUME }, Command::InvalidateRemote { volume: VOLUME }] {
        let mut pair = marked_by_the_peer_alone();
        pair.begin_command(0, command);
        pair.settle();
        pair.unstick(0);
        pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::UpToDate));
        assert!(pair.differences().is_empty());
    }
}

/// It waits for another one to the same place while the full resync is prepared. When it is sent the peer clears its bit, and
/// never asks for the block.
#[test]
fn a_write_that_waits_when_a_full_resync_is_asked_for_belongs_to_it() {
    let mut pair = synced();
    pair.nodes[0].stuck = true;
    let one = pair.submit(0, WRITE, 40_000, &[1; 4096], 4096);
    let other = pair.submit(0, WRITE, 40_000, &[2; 4096], 4096);
    pair.settle();
    let invalidated = pair.begin_command(1, Command::Invalidate { volume: VOLUME });
    pair.settle();
    pair.nodes[1].stuck = true;
    while !pair.nodes[0].completions.contains_key(&one) {
        assert!(pair.kept(0) > 0, "{}", pair.describe());
        pair.unstick_first(0);
        pair.settle();
    }
    // The write is over before the resync has come to its block.
    while !pair.nodes[0].completions.contains_key(&other) {
        for node in 0..2 {
            if pair.kept(node) > 0 {
                pair.unstick_first(node);
            }
        }
        pair.settle();
    }
    for node in 0..2 {
        pair.unstick(node);
    }
    pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::UpToDate));
    assert_eq!(pair.nodes[1].replies[&invalidated], Ok(()));
    assert_eq!((left(&pair, 0), left(&pair, 1)), (0, 0), "{}", pair.describe());
    assert!(pair.differences().is_empty());
}

#[test]
fn a_resynced_block_with_a_wrong_digest_is_named_and_asked_for_again() {
    let mut pair = synced();
    pair.packets.clear();
    pair.nodes[0].stuck = true;
    pair.command(1, Command::Invalidate { volume: VOLUME }).unwrap();
    pair.pass(1);
    let asked = pair.packets.iter().find_map(|(_, packet)| match packet {
        udrbd_wire::Packet::ResyncDataRequest(request) => Some(*request),
        _ => None,
    });
    let range = asked.unwrap().range();
    let payload = Some(pair.new_buffer(1, vec![1; range.bytes as usize]));
    let reply = udrbd_wire::BlockReply { sector: range.start, block_id: udrbd_wire::BlockId::SYNCER };
    let event = Event::Packet {
        socket: pair.socket(1, true).unwrap(),
        volume: VOLUME,
        packet: udrbd_wire::Packet::ResyncDataReply(reply),
        payload,
        payload_bytes: range.bytes,
        bytes: Vec::new(),
        digest: None,
        intact: false,
    };
    pair.inject(1, event);
    pair.settle();
    let text = format!("Digest integrity check FAILED: {}s +{}", range.start, range.bytes);
    assert!(pair.nodes[1].says(&text), "{}", pair.describe());
    assert!(pair.nodes[1].says("ProtocolError"), "{}", pair.describe());
    pair.unstick(0);
    pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::UpToDate));
    assert!(pair.differences().is_empty(), "{}", pair.describe());
}
