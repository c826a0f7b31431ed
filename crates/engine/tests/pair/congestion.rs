//! Writes that come faster than the peer takes them: Ahead and Behind.

use udrbd_engine::interface::{Command, Event, NetOptions, OnCongestion, Protocol};
use udrbd_units::{ConnectionState, DiskState};
use udrbd_wire::{Packet, StateWord};

use crate::harness::{Pair, VOLUME};
use crate::stuck::WRITE;
use crate::{both, fast, promote};

/// Both up to date and connected with protocol A, node 0 Primary; 64 sectors on their way are too many.
fn asynchronous(on_congestion: OnCongestion) -> Pair {
    let mut pair = Pair::new();
    for node in 0..2 {
        pair.command(node, Command::DiskOptions { volume: VOLUME, options: Box::new(fast()) }).unwrap();
    }
    let protocol = Protocol::A;
    pair.connect(&NetOptions {
        protocol,
        on_congestion,
        congestion_fill_sectors: 64,
        ..NetOptions::default()
    });
    pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::Inconsistent));
    promote(&mut pair, 0, true);
    pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::UpToDate));
    pair
}

/// The disk of node 1 does not answer, and node 0 has pulled ahead of it: it has mirrored 64 sectors, and written 8 more.
fn ahead() -> Pair {
    let mut pair = asynchronous(OnCongestion::PullAhead);
    pair.nodes[1].stuck = true;
    for block in 0..9 {
        pair.write(0, block * 8, block as u8 + 1, 4096).unwrap();
    }
    pair.settle();
    pair
}

fn states(pair: &Pair) -> [(ConnectionState, DiskState, DiskState); 2] {
    pair.nodes.each_ref().map(|node| {
        let status = node.status();
        (status.connection, status.disk, status.peer_disk)
    })
}

fn left(pair: &Pair) -> [u64; 2] {
    pair.nodes.each_ref().map(|node| node.status().counters.out_of_sync_sectors)
}

fn becomes_equal(pair: &mut Pair) {
    pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::UpToDate));
    assert!(pair.differences().is_empty(), "{}", pair.describe());
    assert_eq!(left(pair), [0, 0]);
}

#[test]
fn a_congested_node_pulls_ahead_and_lets_its_peer_catch_up() {
    let mut pair = ahead();
    assert!(pair.nodes[0].says("Congestion-fill threshold reached"));
    let source = (ConnectionState::Ahead, DiskState::UpToDate, DiskState::Consistent);
    assert_eq!(states(&pair)[0], source);
    pair.write(0, 4000, 99, 8192).unwrap();
    pair.pass(3);
    assert_eq!(states(&pair)[0], source, "the peer has not confirmed anything");
    assert_eq!(left(&pair)[0], 24);
    pair.unstick(1);
    pair.settle();
    let target = (ConnectionState::Behind, DiskState::Outdated, DiskState::UpToDate);
    assert_eq!(states(&pair), [source, target]);
    // Both know what only one of them has.
    assert_eq!(left(&pair), [24, 24]);
    becomes_equal(&mut pair);
    assert_eq!(pair.nodes[1].load(4000, 8192), [99; 8192]);
    assert_eq!(pair.nodes[0].log.iter().filter(|line| line.contains("Began resync")).count(), 2);
}

#[test]
fn the_peer_hears_that_it_is_behind_before_it_hears_of_a_block_it_does_not_get() {
    let pair = ahead();
    let places = |wanted: fn(&Packet) -> bool| {
        let all = pair.packets.iter().enumerate();
        let sent = all.filter(|(_, (node, packet))| *node == 0 && wanted(packet));
        sent.map(|(place, _)| place).collect::<Vec<_>>()
    };
    let states = places(|packet| matches!(packet, Packet::State(_)));
    assert!(states.last() < places(|packet| matches!(packet, Packet::OutOfSync(_))).first());
    assert!(states.last() > places(|packet| matches!(packet, Packet::Data(_))).last());
}

#[test]
fn a_block_of_a_resync_that_was_overtaken_is_fetched_again() {
    let mut pair = asynchronous(OnCongestion::PullAhead);
    pair.command(1, Command::Disconnect { force: false }).unwrap();
    pair.write(0, 0, 1, 4096).unwrap();
    let options = pair.nodes[0].engine.as_ref().unwrap().status().connection.options.unwrap();
    pair.command(1, Command::Connect(Box::new(options))).unwrap();
    pair.until(|pair| pair.nodes[1].status().connection == ConnectionState::SyncTarget);
    pair.nodes[1].stuck = true;
    pair.pass(1);
    assert_eq!(pair.kept(1), 1, "the block is at the disk of the target");
    // The resync has let go of the extent: writes are mirrored, until they are too many.
    let writes: Vec<u64> = (1..9).map(|block| pair.submit(0, WRITE, block * 8, &[2; 4096], 4096)).collect();
    pair.settle();
    let last = pair.submit(0, WRITE, 0, &[3; 4096], 4096);
    pair.settle();
    assert_eq!(states(&pair)[0].0, ConnectionState::Ahead, "{}", pair.describe());
    assert!(writes.iter().chain([&last]).all(|id| pair.nodes[0].completions.contains_key(id)));
    // The old block gets to the disk now; it says nothing of the new one.
    pair.unstick(1);
    pair.settle();
    assert_eq!(left(&pair), [8, 8], "{}", pair.describe());
    becomes_equal(&mut pair);
    assert_eq!(pair.nodes[1].load(0, 4096), [3; 4096]);
}

/// Node 1 has written all of 4 blocks and said so; node 0 has read nothing since.
fn told_of_all_blocks() -> Pair {
    let mut pair = asynchronous(OnCongestion::PullAhead);
    pair.command(1, Command::Disconnect { force: false }).unwrap();
    for block in 0..4 {
        pair.write(0, block * 800, 1, 4096).unwrap();
    }
    let options = pair.nodes[0].engine.as_ref().unwrap().status().connection.options.unwrap();
    pair.command(1, Command::Connect(Box::new(options))).unwrap();
    pair.packets.clear();
    let told = |pair: &Pair| {
        pair.packets
            .iter()
            .filter(|(node, packet)| *node == 1 && matches!(packet, Packet::ResyncWriteAck(_)))
            .count()
    };
    pair.until(|pair| told(pair) == 4);
    pair.nodes[0].late_reads = true;
    pair.pass(2);
    pair
}

/// The kernel's DRBD clears the bits of a block it is told of, also when it has pulled ahead and written it since.
#[test]
fn a_target_ends_a_resync_when_the_peer_shows_that_it_was_not_ahead() {
    let mut pair = told_of_all_blocks();
    assert_eq!(pair.nodes[1].status().connection, ConnectionState::SyncTarget, "{}", pair.describe());
    assert_eq!(left(&pair), [0, 0]);
    assert_eq!(pair.tell_of_reads(0), 1);
    becomes_equal(&mut pair);
    let asked =
        pair.packets.iter().filter(|(node, packet)| *node == 1 && matches!(packet, Packet::DataRequest(_)));
    assert_eq!(asked.count(), 1);
    assert_eq!([0, 1].map(|node| pair.buffers_owned(node)), [0, 0]);
}

#[test]
fn a_target_that_finds_itself_behind_doubts_all_it_has_told() {
    let mut pair = told_of_all_blocks();
    let state = pair.packets.iter().rev().find_map(|(node, packet)| match packet {
        Packet::State(state) if *node == 0 => Some(*state),
        _ => None,
    });
    let packet = Packet::State(StateWord { connection: ConnectionState::Ahead, ..state.unwrap() });
    let socket = pair.socket(1, true).unwrap();
    let (payload, digest) = (None, None);
    let bytes = Vec::new();
    pair.inject(
        1,
        Event::Packet {
            socket,
            volume: VOLUME,
            packet,
            payload,
            payload_bytes: 0,
            bytes,
            digest,
            intact: true,
        },
    );
    pair.settle();
    assert_eq!(pair.nodes[1].status().connection, ConnectionState::Behind, "{}", pair.describe());
    assert_eq!(left(&pair), [0, 32]);
    // What comes of the read now was asked for too early.
    pair.tell_of_reads(0);
    pair.settle();
    assert_eq!(pair.nodes[1].status().connection, ConnectionState::Behind);
}

#[test]
fn a_link_lost_while_ahead_costs_only_a_resync() {
    let mut pair = ahead();
    pair.break_wires();
    pair.unstick(1);
    pair.write(0, 800, 50, 4096).unwrap();
    becomes_equal(&mut pair);
    assert_eq!(pair.nodes[1].load(64, 4096), [9; 4096]);
}

#[test]
fn a_node_that_is_ahead_and_gives_up_its_role_keeps_what_it_wrote() {
    let mut pair = ahead();
    crate::demote(&mut pair, 0);
    pair.break_wires();
    pair.unstick(1);
    becomes_equal(&mut pair);
    assert_eq!(pair.nodes[1].load(64, 4096), [9; 4096]);
}

#[test]
fn a_disk_that_is_behind_is_not_good_because_the_other_one_fails() {
    let mut pair = ahead();
    pair.command(0, Command::Detach { volume: VOLUME, force: true }).unwrap();
    pair.unstick(1);
    pair.pass(1);
    let status = pair.nodes[1].status();
    assert_eq!((status.connection, status.disk), (ConnectionState::Connected, DiskState::Inconsistent));
}

#[test]
fn a_congested_connection_is_given_up_where_that_is_wanted() {
    let mut pair = asynchronous(OnCongestion::Disconnect);
    pair.nodes[1].stuck = true;
    for block in 0..9 {
        pair.write(0, block * 8, block as u8 + 1, 4096).unwrap();
    }
    pair.until(|pair| pair.nodes[0].status().connection == ConnectionState::StandAlone);
    pair.unstick(1);
    assert_eq!(left(&pair)[0], 72);
    let generations = pair.nodes[0].status().generations.unwrap();
    assert!(generations[1].is_some(), "what only this node has is a generation of its own");
}

/// What TCP had taken when the link went has completed, so it is not sent again. Nobody knows whether it has arrived.
#[test]
fn what_was_on_its_way_while_io_is_suspended_is_resynced() {
    let mut pair = asynchronous(OnCongestion::Block);
    pair.cut = true;
    pair.write(0, 0, 9, 4096).unwrap();
    pair.command(0, Command::SuspendIo { volume: VOLUME }).unwrap();
    pair.kill(1);
    pair.cut = false;
    pair.start(1, fast());
    let protocol = Protocol::A;
    pair.command(1, Command::Connect(Box::new(NetOptions { protocol, ..NetOptions::default() }))).unwrap();
    pair.until(|pair| pair.nodes[1].status().connection >= ConnectionState::Connected);
    pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::UpToDate));
    assert_eq!(pair.differences(), Vec::<u64>::new(), "{}", pair.describe());
    pair.command(0, Command::ResumeIo { volume: VOLUME }).unwrap();
    pair.settle();
    assert_eq!(pair.nodes[0].status().counters.out_of_sync_sectors, 0);
}
