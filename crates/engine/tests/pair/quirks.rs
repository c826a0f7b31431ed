//! Oddities of 8.4.11, kept where scripts and peers see them and mended where they may be (states spec 22.1, io spec 23), as far
//! as no recorded case shows them. `docs/safer.md` names the test of each.

use udrbd_engine::interface::{
    Command, DiskOptions, Failure, Fencing, Handler, NetOptions, OnIoError, Operation,
};
use udrbd_engine::state::StateChangeResult;
use udrbd_metadata::Flags;
use udrbd_units::{ConnectionState, DiskState, GenerationId, Role, Sector};
use udrbd_wire::{BlockAck, Packet, SequenceNumber};

use crate::faults::meta_packet;
use crate::harness::{Pair, VOLUME};
use crate::stuck::WRITE;
use crate::{both, demote, fast, promote, synced};

fn connections(pair: &Pair) -> [ConnectionState; 2] {
    pair.nodes.each_ref().map(|node| node.status().connection)
}

/// Node 0 is Primary, connected, and under a fencing policy; the handler says `exit`.
fn fenced(exit: i32) -> Pair {
    let mut pair = synced();
    for node in 0..2 {
        let options = DiskOptions { fencing: Fencing::ResourceOnly, ..fast() };
        pair.command(node, Command::DiskOptions { volume: VOLUME, options: Box::new(options) }).unwrap();
        pair.nodes[node].exits.insert(Handler::FencePeer, exit);
        pair.nodes[node].handlers.clear();
    }
    pair
}

fn calls(pair: &Pair, node: usize, handler: Handler) -> usize {
    pair.nodes[node].handlers.iter().filter(|name| **name == handler).count()
}

/// Both have been Primary alone, and have demoted.
fn split() -> Pair {
    let mut pair = synced();
    pair.command(1, Command::Disconnect { force: false }).unwrap();
    promote(&mut pair, 1, false);
    for node in 0..2 {
        pair.write(node, 8, node as u8 + 1, 4096).unwrap();
        demote(&mut pair, node);
    }
    pair.command(0, Command::Disconnect { force: false }).unwrap();
    pair
}

/// States spec 22.1 row 3.
#[test]
fn discarding_on_both_sides_solves_nothing() {
    let mut pair = split();
    pair.connect(&NetOptions { discard_my_data: true, ..NetOptions::default() });
    pair.until(|pair| connections(pair) == [ConnectionState::StandAlone; 2]);
    for node in &pair.nodes {
        assert!(node.says("Split-Brain detected but unresolved, dropping connection!"));
    }
}

/// Row 4: in 8.4.11 two nodes that both only try connect again and again.
#[test]
fn two_nodes_that_only_try_come_to_an_end() {
    let mut pair = synced();
    demote(&mut pair, 0);
    pair.command(0, Command::Disconnect { force: false }).unwrap();
    pair.command(1, Command::Disconnect { force: false }).unwrap();
    promote(&mut pair, 0, false);
    pair.write(0, 8, 1, 4096).unwrap();
    pair.connect(&NetOptions { tentative: true, ..NetOptions::default() });
    pair.pass(60);
    assert_eq!(connections(&pair), [ConnectionState::StandAlone; 2], "{}", pair.describe());
}

/// Row 7, states spec 9.3: each node knows the other's data as its own of earlier, and wants to be the target.
#[test]
fn nodes_that_both_want_to_be_target_change_nothing() {
    let mut pair = Pair::down(20 * 2048);
    let [one, other] = [0x1111_0000_0000_0000, 0x2222_0000_0000_0000].map(GenerationId);
    for (node, current, history) in [(0, one, other), (1, other, one)] {
        pair.nodes[node].write_metadata(20 * 2048, &[0; 4096], |superblock, _| {
            superblock.current = current;
            superblock.history[0] = history;
            superblock.flags =
                Flags::AL_CLEAN.with(Flags::CONSISTENT, true).with(Flags::WAS_UP_TO_DATE, true);
        });
        pair.start(node, fast());
    }
    pair.connect(&NetOptions::default());
    pair.pass(60);
    assert_eq!(connections(&pair), [ConnectionState::WFBitMapT; 2], "{}", pair.describe());
    for node in 0..2 {
        pair.command(node, Command::Disconnect { force: false }).unwrap();
    }
    let kept = pair.nodes.each_ref().map(|node| node.status().generations.unwrap()[0]);
    assert_eq!(kept, [one, other]);
}

/// Row 9: 8.4.11 makes two, and forgets the one that both nodes had.
#[test]
fn a_forced_promotion_makes_one_generation_and_keeps_the_common_one() {
    let mut pair = fenced(5);
    demote(&mut pair, 0);
    let common = pair.nodes[0].status().generations.unwrap()[0];
    pair.command(1, Command::Disconnect { force: false }).unwrap();
    pair.command(1, Command::Outdate { volume: VOLUME }).unwrap();
    pair.command(0, Command::Disconnect { force: false }).unwrap();
    pair.nodes[1].exits.insert(Handler::FencePeer, 1);
    promote(&mut pair, 1, true);
    pair.write(1, 8, 7, 4096).unwrap();
    let bitmap = pair.nodes[1].status().generations.unwrap()[1];
    assert!(bitmap.same_generation(common), "{}", pair.describe());
    pair.connect(&NetOptions::default());
    pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::UpToDate));
    assert_eq!(pair.nodes[0].load(8, 4096), [7; 4096]);
}

/// Row 10.
#[test]
fn two_primaries_that_part_in_good_order_have_split() {
    let mut pair = synced();
    for node in 0..2 {
        let options = NetOptions { allow_two_primaries: true, ..NetOptions::default() };
        pair.command(node, Command::NetOptions(Box::new(options))).unwrap();
    }
    promote(&mut pair, 1, false);
    pair.command(1, Command::Disconnect { force: false }).unwrap();
    pair.command(
        1,
        Command::Connect(Box::new(NetOptions { allow_two_primaries: true, ..NetOptions::default() })),
    )
    .unwrap();
    pair.until(|pair| pair.nodes[1].status().connection == ConnectionState::StandAlone);
    assert!(pair.nodes[1].says("Split-Brain detected"), "{}", pair.describe());
}

/// Rows 12 and 14: success is told, and nothing happens.
#[test]
fn commands_that_change_nothing_succeed() {
    let mut pair = synced();
    pair.command(1, Command::Detach { volume: VOLUME, force: false }).unwrap();
    let before = pair.nodes[0].status().generations;
    for command in [Command::Invalidate { volume: VOLUME }, Command::InvalidateRemote { volume: VOLUME }] {
        let answer = pair.try_command(0, command.clone());
        assert_eq!(answer, Some(Ok(())), "{command:?}");
    }
    pair.settle();
    let status = pair.nodes[0].status();
    assert_eq!((status.disk, status.counters.out_of_sync_sectors), (DiskState::UpToDate, 0));
    assert_eq!(status.generations, before);
}

/// Row 15, kept: a cluster manager that fails for a moment is asked again. 8.4.11 does not say in the end why it refuses.
#[test]
fn a_promotion_asks_four_times_to_fence_the_peer_and_says_why_it_is_refused() {
    let mut pair = fenced(5);
    demote(&mut pair, 0);
    pair.nodes[1].exits.insert(Handler::FencePeer, 1);
    pair.command(0, Command::Disconnect { force: false }).unwrap();
    pair.nodes[1].handlers.clear();
    let answer = pair.command(1, Command::Primary { volume: VOLUME, force: false });
    let code = StateChangeResult::PrimaryWithoutOutdatedPeer;
    assert_eq!(answer, Err(Failure::state(code)), "{}", pair.describe());
    assert_eq!(calls(&pair, 1, Handler::FencePeer), 4, "{:?}", pair.nodes[1].handlers);
    assert!(pair.nodes[1].says("Refusing to be Primary while peer is not outdated"));
}

/// Row 16.
#[test]
fn the_peer_is_unfenced_after_each_resync() {
    let mut pair = fenced(4);
    for round in 1..=2 {
        pair.command(1, Command::Disconnect { force: false }).unwrap();
        pair.write(0, 8, round, 4096).unwrap();
        pair.command(1, Command::Connect(Box::default())).unwrap();
        pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::UpToDate));
        pair.pass(1);
        assert_eq!(calls(&pair, 0, Handler::UnfencePeer), usize::from(round), "{}", pair.describe());
    }
}

/// Row 23: without a connection there is nobody to wait for.
#[test]
fn pauses_end_on_a_node_that_was_never_connected() {
    let mut pair = Pair::new();
    let volume = VOLUME;
    for command in [
        Command::SuspendIo { volume },
        Command::PauseSync { volume },
        Command::ResumeSync { volume },
        Command::ResumeIo { volume },
        Command::Detach { volume, force: false },
    ] {
        assert_eq!(pair.try_command(0, command.clone()), Some(Ok(())), "{command:?}");
    }
}

/// Row 27.
#[test]
fn of_two_promotions_at_once_one_is_refused() {
    let mut pair = synced();
    demote(&mut pair, 0);
    let ids = [0, 1].map(|node| pair.begin_command(node, Command::Primary { volume: VOLUME, force: false }));
    pair.until(|pair| (0..2).all(|node| pair.nodes[node].replies.contains_key(&ids[node])));
    let answers = [0, 1].map(|node| pair.nodes[node].replies.remove(&ids[node]).unwrap());
    let good = answers.iter().filter(|answer| answer.is_ok()).count();
    assert_eq!(good, 1, "{answers:?}");
    assert!(answers.contains(&Err(Failure::state(StateChangeResult::TwoPrimaries))), "{answers:?}");
    let roles = pair.nodes.each_ref().map(|node| node.status().role);
    assert!(roles.contains(&Role::Primary) && roles.contains(&Role::Secondary), "{roles:?}");
}

/// Io spec 23.1: 8.4.11 answers the barrier while the disk still flushes.
#[test]
fn a_barrier_is_answered_when_its_writes_are_out_of_the_cache() {
    let mut pair = synced();
    pair.nodes[1].stuck = true;
    let id = pair.submit(0, WRITE, 0, &[9; 4096], 4096);
    pair.settle();
    pair.packets.clear();
    pair.unstick_first(1);
    pair.settle();
    assert!(pair.nodes[0].completions.contains_key(&id), "the write needs no flush");
    let answered = |pair: &Pair| {
        pair.packets.iter().any(|(node, packet)| *node == 1 && matches!(packet, Packet::BarrierAck(_)))
    };
    assert_eq!((pair.kept(1), answered(&pair)), (1, false), "{}", pair.describe());
    pair.unstick_first(1);
    pair.settle();
    assert!(answered(&pair));
}

/// Node 1 has missed a mebibyte. One block of it can be read on node `bad` no more, nor be written there.
fn with_a_bad_block(bad: usize, options: &DiskOptions) -> Pair {
    let mut pair = synced();
    for node in 0..2 {
        let options = DiskOptions { on_io_error: OnIoError::PassOn, ..options.clone() };
        pair.command(node, Command::DiskOptions { volume: VOLUME, options: Box::new(options) }).unwrap();
    }
    pair.command(1, Command::Disconnect { force: false }).unwrap();
    pair.write(0, 0, 7, 1 << 20).unwrap();
    demote(&mut pair, 0);
    pair.nodes[bad].bad_data = 1024..1032;
    pair.command(1, Command::Connect(Box::default())).unwrap();
    pair.until(|pair| connections(pair).contains(&ConnectionState::SyncTarget));
    pair
}

/// Io spec 23.3 and 23.4: in 8.4.11 such a resync slows down to nothing, or does not end, or on one node only.
#[test]
fn a_resync_with_blocks_that_fail_ends_on_both_nodes() {
    for bad in 0..2 {
        for options in [fast(), DiskOptions::default()] {
            let mut pair = with_a_bad_block(bad, &options);
            pair.until(|pair| connections(pair) == [ConnectionState::Connected; 2]);
            pair.pass(1);
            let counters = pair.nodes.each_ref().map(|node| node.status().counters);
            for counters in counters {
                assert!((8..=2048).contains(&counters.out_of_sync_sectors), "{counters:?}");
                let waits = (counters.unacknowledged, counters.peer_pending, counters.local_pending);
                assert_eq!(waits, (0, 0, 0), "bad {bad}\n{}", pair.describe());
            }
            assert_eq!(pair.nodes[1].status().disk, DiskState::Inconsistent);
            // The disk is whole again: the next connection heals what is left.
            pair.nodes[bad].bad_data = 0..0;
            pair.break_wires();
            pair.until(|pair| connections(pair) != [ConnectionState::Connected; 2]);
            pair.until(|pair| connections(pair) == [ConnectionState::Connected; 2]);
            assert_eq!(pair.nodes[1].load(0, 1 << 20), vec![7; 1 << 20], "bad {bad}\n{}", pair.describe());
        }
    }
}

/// Io spec 23.10: what a peer without a disk says of the length of a discard is wrong.
#[test]
fn a_refused_discard_counts_with_its_own_length() {
    let mut pair = synced();
    pair.nodes[1].stuck = true;
    let id = pair.submit(0, Operation::Discard, 0, &[], 8192);
    pair.settle();
    let block_id = pair.packets.iter().rev().find_map(|(_, packet)| match packet {
        Packet::Trim(zero) | Packet::Zeroes(zero) => Some(zero.block_id),
        _ => None,
    });
    let refusal =
        BlockAck { sector: Sector(0), block_id: block_id.unwrap(), size: 0, sequence: SequenceNumber(1) };
    meta_packet(&mut pair, 0, Packet::NegativeAck(refusal));
    pair.settle();
    assert!(pair.nodes[0].completions[&id].0.is_ok(), "{}", pair.describe());
    assert_eq!(pair.nodes[0].status().connection, ConnectionState::Connected);
    assert_eq!(pair.nodes[0].status().counters.out_of_sync_sectors, 16);
}
