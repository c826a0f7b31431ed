//! Disks and links that fail half-way, and what must still be so afterwards.

use udrbd_engine::interface::{
    Command, CommandId, DiskOptions, Event, Fencing, NetOptions, OnNoData, Operation, ResourceOptions,
};
use udrbd_metadata::{Flags, Layout, Placement, Striping};
use udrbd_units::{ConnectionState, DiskState, GenerationId, Sector, VolumeNumber};
use udrbd_wire as wire;
use wire::{BlockAck, BlockId, Packet, SequenceNumber};

use crate::harness::{Pair, VOLUME};
use crate::stuck::WRITE;
use crate::{both, fast, promote, synced};

/// Sectors of an extent of the activity log.
const EXTENT: u64 = 8192;

fn layout(pair: &Pair) -> Layout {
    Layout::new(Placement::Internal, Sector(pair.sectors), Striping::DEFAULT).unwrap()
}

/// Node 0 Primary on its own disk alone, everything in sync before.
fn alone() -> Pair {
    let mut pair = synced();
    pair.command(1, Command::Disconnect { force: false }).unwrap();
    pair.command(0, Command::Disconnect { force: false }).unwrap();
    pair
}

fn options(pair: &mut Pair, node: usize, options: DiskOptions) {
    pair.command(node, Command::DiskOptions { volume: VOLUME, options: Box::new(options) }).unwrap();
}

pub(crate) fn meta_packet(pair: &mut Pair, node: usize, packet: Packet) {
    let socket = pair.socket(node, false).unwrap();
    let event = Event::Packet {
        socket,
        volume: VolumeNumber(0),
        packet,
        payload: None,
        payload_bytes: 0,
        bytes: Vec::new(),
        digest: None,
        intact: true,
    };
    pair.inject(node, event);
}

/// A write of node 0 is acknowledged, if the last thing it was told has not cost the connection.
fn meta_packet_if_connected(pair: &mut Pair, ack: BlockAck) {
    if pair.socket(0, false).is_some() {
        meta_packet(pair, 0, Packet::WriteAck(ack));
    }
}

fn ack(block_id: BlockId, sector: u64) -> BlockAck {
    BlockAck { sector: Sector(sector), block_id, size: 4096, sequence: SequenceNumber(1) }
}

/// The block id of the last write a node has sent.
fn last_write(pair: &Pair) -> BlockId {
    let data = pair.packets.iter().rev().find_map(|(_, packet)| match packet {
        Packet::Data(write) => Some(write.block_id),
        _ => None,
    });
    data.unwrap()
}

#[test]
fn new_slots_for_the_activity_log_lose_no_bit() {
    for (changed, last) in [
        (DiskOptions { al_extents: 67, ..fast() }, fast()),
        (DiskOptions { al_updates: false, ..fast() }, fast()),
    ] {
        let mut pair = alone();
        pair.write(0, EXTENT, 1, 4096).unwrap();
        options(&mut pair, 0, changed.clone());
        if !changed.al_updates {
            options(&mut pair, 0, last);
        }
        // Another extent goes into the new slots: the log on disk says nothing of the first.
        pair.write(0, 2 * EXTENT, 2, 4096).unwrap();
        pair.kill(0);
        pair.start(0, fast());
        let out = pair.nodes[0].status().counters.out_of_sync_sectors;
        assert!(out > EXTENT, "the write before the change is forgotten: {out}\n{}", pair.describe());
    }
}

#[test]
fn options_wait_for_writes_that_hold_extents_and_keep_others_out() {
    let mut pair = alone();
    pair.nodes[0].stuck = true;
    let first = pair.submit(0, WRITE, 0, &[1; 4096], 4096);
    pair.settle();
    let changed = Box::new(DiskOptions { al_extents: 67, ..fast() });
    assert!(pair.try_command(0, Command::DiskOptions { volume: VOLUME, options: changed }).is_none());
    let second = pair.submit(0, WRITE, 2 * EXTENT, &[2; 4096], 4096);
    pair.settle();
    pair.unstick(0);
    pair.settle();
    for id in [first, second] {
        assert!(pair.nodes[0].completions[&id].0.is_ok());
    }
}

#[test]
fn an_extent_leaves_the_log_only_with_its_data_flushed() {
    let mut pair = Pair::with_sectors(80 * EXTENT + 2048);
    for node in 0..2 {
        options(&mut pair, node, DiskOptions { al_extents: 67, ..fast() });
    }
    pair.connect(&NetOptions::default());
    pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::Inconsistent));
    promote(&mut pair, 0, true);
    pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::UpToDate));
    for extent in 0..67 {
        pair.write(0, extent * EXTENT, 1, 512).unwrap();
    }
    pair.settle();
    pair.nodes[0].metadata_writes.clear();
    for extent in 67..70 {
        pair.write(0, extent * EXTENT, 1, 512).unwrap();
    }
    let start = layout(&pair).al_start().0;
    let log: Vec<bool> = pair.nodes[0]
        .metadata_writes
        .iter()
        .filter(|(sector, _)| (start..start + 64).contains(sector))
        .map(|(_, flushed)| *flushed)
        .collect();
    assert_eq!(log, [true; 3]);
}

#[test]
fn a_page_that_cannot_be_written_leaves_the_full_sync_marked() {
    let mut pair = synced();
    pair.command(1, Command::Disconnect { force: false }).unwrap();
    let page = layout(&pair).bitmap_page(0).0;
    pair.nodes[1].bad_metadata = page..page + 8;
    pair.try_command(1, Command::Invalidate { volume: VOLUME });
    pair.until(|pair| pair.nodes[1].status().disk == DiskState::Diskless);
    assert!(pair.nodes[1].superblock(pair.sectors).flags.contains(Flags::FULL_SYNC));
}

#[test]
fn a_link_lost_while_the_activity_log_is_written_for_the_peer_blocks_nothing() {
    let mut pair = synced();
    pair.command(0, Command::Detach { volume: VOLUME, force: false }).unwrap();
    pair.until(|pair| pair.nodes[0].status().disk == DiskState::Diskless);
    pair.nodes[1].stuck_metadata = true;
    let first = pair.submit(0, WRITE, EXTENT, &[1; 4096], 4096);
    pair.settle();
    assert!(pair.kept(1) > 0 && !pair.nodes[0].completions.contains_key(&first));
    pair.break_wires();
    pair.settle();
    pair.unstick(1);
    pair.until(|pair| pair.nodes[0].completions.contains_key(&first));
    pair.until(|pair| pair.nodes[0].status().connection == ConnectionState::Connected);
    let second = pair.submit(0, WRITE, 3 * EXTENT, &[2; 4096], 4096);
    pair.settle();
    assert!(pair.nodes[0].completions[&second].0.is_ok(), "{}", pair.describe());
    assert_eq!(pair.nodes[1].load(3 * EXTENT, 4096), [2; 4096]);
    assert_eq!(pair.buffers_owned(1), 0);
}

#[test]
fn answers_to_another_kind_of_request_change_nothing() {
    let mut pair = synced();
    pair.nodes[0].stuck = true;
    pair.nodes[1].stuck = true;
    let write = pair.submit(0, WRITE, 0, &[1; 4096], 4096);
    pair.settle();
    let id = last_write(&pair);
    meta_packet(&mut pair, 0, Packet::NegativeDataReply(ack(id, 0)));
    assert_eq!(last_write(&pair), id, "a write starts over that is under way");
    let read = pair.submit(0, Operation::Read, 800, &[], 4096);
    pair.settle();
    // Keys count up; the read's is one of those near the write's.
    for near in 0..8 {
        let id = BlockId((id.0 & !0xff_ffff) + near);
        meta_packet_if_connected(&mut pair, ack(id, 800));
    }
    assert!(!pair.nodes[0].completions.contains_key(&read), "a read completed without data");
    pair.unstick(0);
    pair.unstick(1);
    pair.until(|pair| pair.nodes[0].completions.contains_key(&read));
    pair.until(|pair| pair.nodes[0].completions.contains_key(&write));
}

#[test]
fn no_timer_fires_for_ever_when_a_resync_is_given_up_or_goes_on() {
    let mut pair = synced();
    let slow = DiskOptions { c_plan_ahead: 0, resync_rate_kib: 250, ..DiskOptions::default() };
    for node in 0..2 {
        options(&mut pair, node, slow.clone());
    }
    pair.command(1, Command::Invalidate { volume: VOLUME }).unwrap();
    pair.until(|pair| pair.nodes[1].status().connection == ConnectionState::SyncTarget);
    for node in 0..2 {
        pair.command(node, Command::PauseSync { volume: VOLUME }).unwrap();
        pair.pass(1);
        pair.command(node, Command::ResumeSync { volume: VOLUME }).unwrap();
        pair.pass(1);
    }
    assert_eq!(pair.nodes[1].status().connection, ConnectionState::SyncTarget);
    pair.nodes[1].failing = true;
    pair.until(|pair| pair.nodes[1].status().disk == DiskState::Diskless);
    pair.pass(5);
    assert_eq!(pair.nodes[0].status().connection, ConnectionState::Connected);
    pair.nodes[1].failing = false;
    pair.attach(1, fast()).unwrap();
    pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::UpToDate));
    assert!(pair.differences().is_empty());
    assert_eq!((pair.buffers_owned(0), pair.buffers_owned(1)), (0, 0));
}

#[test]
fn what_froze_while_the_link_was_lost_goes_to_the_peer_that_is_back() {
    let mut pair = synced();
    pair.cut = true;
    let id = pair.submit(0, WRITE, 0, &[7; 4096], 4096);
    pair.settle();
    pair.command(0, Command::SuspendIo { volume: VOLUME }).unwrap();
    pair.break_wires();
    pair.cut = false;
    pair.until(|pair| pair.nodes[0].status().connection == ConnectionState::Connected);
    pair.pass(1);
    assert!(!pair.nodes[0].completions.contains_key(&id));
    assert_eq!(pair.nodes[1].load(0, 4096), [7; 4096]);
    pair.command(0, Command::ResumeIo { volume: VOLUME }).unwrap();
    pair.settle();
    assert!(pair.nodes[0].completions[&id].0.is_ok(), "{}", pair.describe());
    pair.pass(60);
    assert_eq!(pair.nodes[0].status().counters.out_of_sync_sectors, 0);
    assert!(!pair.nodes[0].says("connection lost: ProtocolError"), "{}", pair.describe());
}

/// Both nodes have `fencing resource-and-stonith`.
fn fenced() -> Pair {
    let mut pair = synced();
    let fenced = DiskOptions { fencing: Fencing::ResourceAndStonith, ..fast() };
    for node in 0..2 {
        let options = Box::new(fenced.clone());
        pair.command(node, Command::DiskOptions { volume: VOLUME, options }).unwrap();
    }
    pair
}

/// What the peer had acknowledged before the link went is not sent again, so it is not in its epoch.
#[test]
fn an_epoch_that_is_sent_again_counts_what_is_sent() {
    let mut pair = fenced();
    for node in 0..2 {
        pair.nodes[node].stuck = true;
        pair.nodes[node].slow_handlers = true;
    }
    let ids = [0, 64].map(|sector| pair.submit(0, WRITE, sector, &[7; 4096], 4096));
    pair.settle();
    // The peer acknowledges the second one. Its disk here is not done with it before the link is back.
    pair.unstick_one(1, 1);
    pair.settle();
    pair.unstick_one(0, 0);
    pair.break_wires();
    pair.settle();
    assert!(pair.nodes[0].engine.as_ref().unwrap().status().suspended_fencing);
    pair.unstick(1);
    pair.until(|pair| pair.nodes[0].completions.contains_key(&ids[0]));
    pair.pass(1);
    assert_eq!(pair.nodes[1].load(0, 4096), [7; 4096]);
    pair.unstick(0);
    pair.settle();
    assert!(ids.iter().all(|id| pair.nodes[0].completions[id].0.is_ok()), "{}", pair.describe());
    let lost = pair.nodes[0].log.iter().filter(|line| line.contains("connection lost")).count();
    assert_eq!(lost, 1, "{}", pair.describe());
}

#[test]
fn a_write_only_the_failed_disk_has_is_not_reported_as_done() {
    let mut pair = synced();
    pair.cut = true;
    let id = pair.submit(0, WRITE, 0, &[7; 4096], 4096);
    pair.settle();
    pair.nodes[0].failing_metadata = true;
    pair.break_wires();
    pair.until(|pair| pair.nodes[0].completions.contains_key(&id));
    // The new generation could not be recorded: the peer may be promoted, and would win without a split brain.
    assert!(pair.nodes[0].completions[&id].0.is_err());
}

#[test]
fn an_attach_that_fails_leaves_nothing_behind_for_the_next() {
    let mut pair = one_block_behind(40 * EXTENT);
    for node in 0..2 {
        pair.command(node, Command::Disconnect { force: true }).unwrap();
    }
    // Two pages of the bitmap have to be written when the activity log is applied.
    pair.write(0, 0, 1, 4096).unwrap();
    pair.write(0, 33 * EXTENT, 1, 4096).unwrap();
    pair.kill(0);
    pair.start_diskless(0, ResourceOptions::default());
    let page = layout(&pair).bitmap_page(0).0;
    pair.nodes[0].bad_metadata = page..page + 8;
    pair.nodes[0].stuck_metadata = true;
    let first = pair.begin_attach(0, fast());
    pair.settle();
    assert_eq!(pair.kept(0), 2);
    pair.unstick_first(0);
    pair.settle();
    pair.nodes[0].bad_metadata = 0..0;
    let second = pair.begin_attach(0, fast());
    pair.settle();
    pair.unstick(0);
    pair.settle();
    assert!(pair.nodes[0].replies[&first].is_err());
    assert!(pair.nodes[0].replies[&second].is_err(), "the first attach is not over");
    pair.attach(0, fast()).unwrap();
    assert!(pair.nodes[0].status().counters.out_of_sync_sectors >= 2 * EXTENT);
}

#[test]
fn a_block_that_gets_out_of_sync_behind_the_search_is_fetched_too() {
    let mut pair = synced();
    pair.command(1, Command::Invalidate { volume: VOLUME }).unwrap();
    pair.until(|pair| pair.nodes[1].status().connection == ConnectionState::SyncTarget);
    let left = |pair: &Pair| pair.nodes[1].status().counters.out_of_sync_sectors;
    let all = left(&pair);
    pair.until(|pair| left(pair) < all / 2);
    let socket = pair.socket(1, true).unwrap();
    let event = Event::Packet {
        socket,
        volume: VolumeNumber(0),
        packet: Packet::OutOfSync(wire::BlockRange::new(Sector(0), 4096)),
        payload: None,
        payload_bytes: 0,
        bytes: Vec::new(),
        digest: None,
        intact: true,
    };
    pair.inject(1, event);
    pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::UpToDate));
    assert_eq!(left(&pair), 0);
}

#[test]
fn a_paused_resync_keeps_no_write_out() {
    let mut pair = synced();
    let slow = DiskOptions { c_plan_ahead: 0, resync_rate_kib: 250, ..DiskOptions::default() };
    for node in 0..2 {
        options(&mut pair, node, slow.clone());
    }
    pair.nodes[1].stuck = true;
    // The Primary is the target: its own write keeps the resync out of the extent.
    let first = pair.submit(0, WRITE, 0, &[1; 4096], 4096);
    pair.settle();
    let invalidate = Command::Invalidate { volume: VOLUME };
    assert!(pair.try_command(0, invalidate).is_some());
    pair.pass(1);
    pair.command(0, Command::PauseSync { volume: VOLUME }).unwrap();
    pair.unstick(1);
    pair.until(|pair| pair.nodes[0].completions.contains_key(&first));
    let second = pair.submit(0, WRITE, 8, &[2; 4096], 4096);
    pair.pass(1);
    assert!(pair.nodes[0].completions.contains_key(&second), "{}", pair.describe());
}

/// Both nodes hold data; node 0 is ahead by the first block, and the resync is paused. Node 0 is Primary.
fn one_block_behind(sectors: u64) -> Pair {
    let mut pair = Pair::down(sectors);
    let size = layout(&pair).max_capacity(Sector(sectors));
    for node in 0..2 {
        let mut bitmap = [0; 4096];
        bitmap[0] = u8::from(node == 0);
        pair.nodes[node].write_metadata(sectors, &bitmap, |superblock, _| {
            superblock.la_size_sect = size;
            superblock.current = GenerationId(if node == 0 { 0x2000 } else { 0x1000 });
            superblock.bitmap = GenerationId(if node == 0 { 0x1000 } else { 0 });
            superblock.flags =
                Flags::AL_CLEAN.with(Flags::CONSISTENT, true).with(Flags::WAS_UP_TO_DATE, true);
        });
        pair.start(node, DiskOptions { al_extents: 67, ..fast() });
        pair.command(node, Command::PauseSync { volume: VOLUME }).unwrap();
    }
    pair.connect(&NetOptions::default());
    pair.until(|pair| pair.nodes[1].status().connection == ConnectionState::PausedSyncT);
    promote(&mut pair, 0, false);
    pair
}

#[test]
fn a_write_that_lacks_an_extent_keeps_none_a_resync_needs() {
    let mut pair = one_block_behind(72 * EXTENT);
    pair.write(0, 0, 1, 512).unwrap();
    pair.settle();
    pair.nodes[1].stuck = true;
    for extent in 4..70 {
        pair.submit(0, WRITE, extent * EXTENT, &[2; 512], 512);
    }
    pair.settle();
    // Extent 0 is hot, for extent 1 there is no slot.
    let id = pair.submit(0, WRITE, EXTENT - 8, &[3; 8192], 8192);
    pair.settle();
    for node in 0..2 {
        pair.command(node, Command::ResumeSync { volume: VOLUME }).unwrap();
    }
    pair.pass(1);
    assert!(!pair.nodes[0].completions.contains_key(&id));
    pair.unstick(1);
    pair.until(|pair| pair.nodes[0].completions.contains_key(&id));
    pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::UpToDate));
    assert_eq!(pair.nodes[1].load(EXTENT - 8, 8192), [3; 8192]);
}

#[test]
fn no_bit_is_clear_on_disk_before_its_block_is_there_for_good() {
    let mut pair = synced();
    let slow = DiskOptions { c_plan_ahead: 0, resync_rate_kib: 2000, ..DiskOptions::default() };
    for node in 0..2 {
        options(&mut pair, node, slow.clone());
    }
    pair.command(1, Command::Disconnect { force: false }).unwrap();
    pair.write(0, 0, 1, 1 << 20).unwrap();
    pair.write(0, 8192, 1, 1 << 20).unwrap();
    pair.kill(1);
    pair.start(1, slow);
    pair.command(1, Command::Connect(Box::default())).unwrap();
    let left = |pair: &Pair| pair.nodes[1].status().counters.out_of_sync_sectors;
    pair.until(|pair| pair.nodes[1].status().connection == ConnectionState::SyncTarget);
    let all = left(&pair);
    pair.until(|pair| left(pair) < all * 2 / 3);
    // The source has forgotten what this node has acknowledged; a power cut takes it from the cache.
    let page = pair.nodes[1].load(layout(&pair).bitmap_page(0).0, 4096);
    let bits: u32 = page.iter().map(|byte| byte.count_ones()).sum();
    assert_eq!(u64::from(bits) * 8, all, "the bits the source told of are not on disk");
    pair.break_wires();
    pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::UpToDate));
    assert_eq!(left(&pair), 0);
    assert_eq!(pair.nodes[1].hasty_pages, 0);
}

#[test]
fn a_page_an_eviction_waits_for_is_not_written_for_ever() {
    let mut pair = one_block_behind(72 * EXTENT);
    for node in 0..2 {
        pair.command(node, Command::Disconnect { force: true }).unwrap();
    }
    for extent in 0..67 {
        pair.write(0, extent * EXTENT, 1, 512).unwrap();
    }
    let page = layout(&pair).bitmap_page(0).0;
    pair.nodes[0].bad_metadata = page..page + 8;
    let id = pair.submit(0, WRITE, 70 * EXTENT, &[1; 512], 512);
    for _ in 0..200 {
        pair.step();
    }
    assert!(pair.nodes[0].completions.get(&id).is_some_and(|(result, _)| result.is_err()));
    assert_eq!(pair.nodes[0].status().disk, DiskState::Diskless);
    assert!(pair.nodes[0].superblock(pair.sectors).flags.contains(Flags::FULL_SYNC));
}

#[test]
fn an_invalidation_cut_short_is_not_forgotten() {
    let mut pair = synced();
    pair.nodes[1].stuck_metadata = true;
    pair.nodes[0].stuck_metadata = true;
    pair.try_command(1, Command::Invalidate { volume: VOLUME });
    pair.until(|pair| pair.nodes[1].status().connection == ConnectionState::StartingSyncT);
    pair.break_wires();
    pair.settle();
    pair.unstick(0);
    pair.unstick(1);
    pair.pass(60);
    pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::UpToDate));
    assert!(pair.nodes[1].says("Began resync as SyncTarget (will sync 20"), "{}", pair.describe());
    assert_eq!(pair.nodes[1].status().counters.out_of_sync_sectors, 0);
}

#[test]
fn a_primary_that_gets_its_disk_back_writes_nothing_its_superblock_does_not_know_of() {
    let mut pair = synced();
    crate::demote(&mut pair, 0);
    pair.command(0, Command::Detach { volume: VOLUME, force: false }).unwrap();
    pair.until(|pair| pair.nodes[0].status().disk == DiskState::Diskless);
    promote(&mut pair, 0, false);
    pair.write(0, 0, 7, 4096).unwrap();
    pair.nodes[0].stuck_metadata = true;
    pair.begin_attach(0, fast());
    pair.until(|pair| pair.nodes[0].status().connection == ConnectionState::SyncTarget);
    let id = pair.submit(0, WRITE, EXTENT, &[9; 4096], 4096);
    while !pair.nodes[0].completions.contains_key(&id) {
        if !pair.step() {
            match pair.kept(0) {
                0 => pair.pass_ms(1),
                _ => pair.unstick_first(0),
            }
        }
        let written = pair.nodes[0].load(EXTENT, 4096) == [9; 4096];
        let primary = pair.nodes[0].superblock(pair.sectors).flags.contains(Flags::PRIMARY_IND);
        assert!(primary || !written, "after a crash the activity log would not count");
    }
}

#[test]
fn a_write_that_was_lost_with_a_disk_is_taken_back_before_its_barrier_is_acknowledged() {
    let mut pair = synced();
    pair.acknowledge_from_the_cache();
    pair.packets.clear();
    let command = Command::Detach { volume: VOLUME, force: false };
    pair.inject(1, Event::Command { id: CommandId(1_000_000), command });
    while pair.step() {}
    pair.unstick(1);
    pair.until(|pair| pair.nodes[1].status().disk == DiskState::Diskless);
    pair.settle();
    let place = |wanted: fn(&Packet) -> bool| {
        pair.packets.iter().position(|(node, packet)| *node == 1 && wanted(packet))
    };
    let taken_back = place(|packet| matches!(packet, Packet::NegativeAck(ack) if ack.sector == Sector(0)));
    let confirmed = place(|packet| matches!(packet, Packet::BarrierAck(_)));
    assert!(taken_back.is_some() && taken_back < confirmed, "{:?} {}", pair.packets, pair.describe());
    assert_eq!(pair.nodes[0].status().counters.out_of_sync_sectors, 8);
}

/// The peer's power goes with acknowledged writes in its cache, while I/O is suspended here: they are not sent again, and the
/// peer that is back says it is up to date.
#[test]
fn what_a_peer_loses_with_its_cache_while_io_is_suspended_is_resynced() {
    let mut pair = synced();
    pair.nodes[1].stuck = true;
    let completed = pair.submit(0, WRITE, 0, &[9; 4096], 4096);
    pair.settle();
    // Written to the cache, and acknowledged; the flush for its barrier is not done when the power goes.
    pair.unstick_first(1);
    pair.settle();
    assert!(pair.nodes[0].completions[&completed].0.is_ok());
    let frozen = pair.submit(0, WRITE, 64, &[8; 4096], 4096);
    pair.settle();
    pair.command(0, Command::SuspendIo { volume: VOLUME }).unwrap();
    // The second time a resync is due already.
    for _ in 0..2 {
        pair.kill(1);
        for sector in [0, 64] {
            pair.nodes[1].store(sector, &[0; 4096]);
        }
        pair.nodes[1].stuck = false;
        pair.start(1, fast());
        pair.nodes[1].stuck = true;
        pair.command(1, Command::Connect(Box::default())).unwrap();
        pair.until(|pair| pair.nodes[1].status().connection >= ConnectionState::WFBitMapT);
        pair.settle();
        while pair.kept(1) > 0 {
            pair.unstick_first(1);
            pair.settle();
        }
        // Promoted by force this disk would show the second write without the first.
        assert!(pair.nodes[1].load(64, 4096) == [0; 4096], "{}", pair.describe());
    }
    // As long as the frozen write has not ended the bitmap waits. The peer may not be used meanwhile.
    assert!(!pair.nodes[0].completions.contains_key(&frozen), "I/O is still suspended");
    assert!(pair.nodes[1].status().disk < DiskState::UpToDate, "{}", pair.describe());
    pair.unstick(1);
    pair.command(0, Command::ResumeIo { volume: VOLUME }).unwrap();
    pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::UpToDate));
    pair.settle();
    assert!(pair.nodes[0].completions[&frozen].0.is_ok(), "{}", pair.describe());
    assert_eq!(pair.differences(), Vec::<u64>::new(), "{}", pair.describe());
    pair.pass(60);
    assert_eq!(pair.nodes[0].status().counters.out_of_sync_sectors, 0);
}

#[test]
fn who_comes_while_no_node_has_data_waits_with_the_others() {
    let mut pair = synced();
    let options = ResourceOptions { on_no_data: OnNoData::SuspendIo };
    pair.command(0, Command::ResourceOptions(options)).unwrap();
    let serves = |pair: &Pair| pair.nodes[0].engine.as_ref().unwrap().is_serving(VOLUME);
    pair.command(0, Command::Detach { volume: VOLUME, force: false }).unwrap();
    // Until it knows the generation the peer goes on with.
    pair.pass(2);
    assert!(serves(&pair));
    pair.refused = true;
    pair.break_wires();
    pair.settle();
    assert!(pair.nodes[0].engine.as_ref().unwrap().status().suspended_no_data);
    assert!(serves(&pair));
    let id = pair.submit(0, WRITE, 0, &[7; 4096], 4096);
    pair.pass(30);
    assert!(!pair.nodes[0].completions.contains_key(&id));
    pair.refused = false;
    pair.until(|pair| pair.nodes[0].completions.contains_key(&id));
    assert!(pair.nodes[0].completions[&id].0.is_ok());
    assert_eq!(pair.nodes[1].load(0, 4096), [7; 4096]);
    // Without data, and where nothing waits for them, nobody is served.
    pair.refused = true;
    pair.break_wires();
    pair.settle();
    pair.command(0, Command::ResumeIo { volume: VOLUME }).unwrap();
    assert!(!serves(&pair));
}

/// A flush that ended under `suspend-io` is on no way to the peer, and goes on with the rest when a peer that was outdated
/// meanwhile cannot be waited for.
#[test]
fn nothing_stays_frozen_when_an_outdated_peer_is_refused() {
    let mut pair = fenced();
    pair.nodes[0].stuck = true;
    let flush = pair.submit(0, Operation::Flush, 0, &[], 0);
    pair.settle();
    pair.command(0, Command::SuspendIo { volume: VOLUME }).unwrap();
    pair.unstick(0);
    pair.settle();
    assert!(!pair.nodes[0].completions.contains_key(&flush));
    pair.command(0, Command::Disconnect { force: false }).unwrap();
    assert_eq!(pair.nodes[1].status().disk, DiskState::Outdated, "{}", pair.describe());
    pair.command(0, Command::Connect(Box::default())).unwrap();
    pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::UpToDate));
    assert!(pair.nodes[0].says("can not thaw IO with an only Outdated peer"), "{}", pair.describe());
    assert!(pair.nodes[0].completions[&flush].0.is_ok());
}

#[test]
fn a_peer_that_is_refused_still_gets_what_it_was_told() {
    let mut pair = Pair::new();
    for (node, algorithm) in ["crc32c", ""].into_iter().enumerate() {
        let options = NetOptions { verify_alg: algorithm.to_owned(), ..NetOptions::default() };
        pair.command(node, Command::Connect(Box::new(options))).unwrap();
    }
    pair.until(|pair| pair.nodes.iter().any(|node| node.says("Different verify-alg settings")));
    pair.until(|pair| pair.nodes.iter().any(|node| node.status().connection == ConnectionState::StandAlone));
    let refusing = pair.nodes.iter().position(|node| node.says("Different verify-alg settings")).unwrap();
    let of_refusing = |pair: &Pair| -> Vec<bool> {
        pair.aborts.iter().filter(|(node, _)| *node == refusing).map(|(_, abort)| *abort).collect()
    };
    // By what was on its way the peer may find that its own data are old. It stops to read when the meta socket ends.
    assert_eq!(of_refusing(&pair), [false], "{}", pair.describe());
    pair.pass(30);
    assert_eq!(of_refusing(&pair), [false, true], "{}", pair.describe());
}
