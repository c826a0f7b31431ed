//! Devices that grow and shrink while they serve (states spec 18).

use udrbd_engine::interface::{Command, DiskOptions, Event, Failure, NetOptions, Operation, ResizeRequest};
use udrbd_metadata::{Flags, Layout, Placement, Striping, Superblock};
use udrbd_units::{ConnectionState, DiskState, Sector};

use crate::harness::{Pair, VOLUME};
use crate::stuck::WRITE;
use crate::{both, fast, synced};

/// Sectors of the devices of [`synced`], and what they grow to.
pub(crate) const OLD: u64 = 20 * 2048;
pub(crate) const NEW: u64 = 30 * 2048;

fn layout(sectors: u64) -> Layout {
    Layout::new(Placement::Internal, Sector(sectors), Striping::DEFAULT).unwrap()
}

pub(crate) fn capacity(sectors: u64) -> u64 {
    layout(sectors).max_capacity(Sector(sectors)).0
}

/// The device of a node has another size now, and its runtime has noticed.
pub(crate) fn grow(pair: &mut Pair, node: usize) {
    pair.sectors = NEW;
    let (backing, metadata) = (Sector(NEW), Sector(NEW));
    pair.inject(node, Event::DeviceSize { volume: VOLUME, backing, metadata });
}

pub(crate) fn resize(pair: &mut Pair, node: usize, request: ResizeRequest) -> Result<(), Failure> {
    pair.command(node, Command::Resize { volume: VOLUME, request })
}

pub(crate) fn superblock_at(pair: &Pair, node: usize, sectors: u64) -> Superblock {
    pair.nodes[node].superblock(sectors)
}

#[test]
fn both_devices_grow_and_the_new_part_is_resynced() {
    let mut pair = synced();
    pair.write(0, 800, 7, 8192).unwrap();
    grow(&mut pair, 0);
    grow(&mut pair, 1);
    resize(&mut pair, 0, ResizeRequest::default()).unwrap();
    pair.until(|pair| pair.nodes.iter().all(|node| node.status().size.0 == capacity(NEW)));
    pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::UpToDate));
    for node in 0..2 {
        assert!(pair.nodes[node].says("Writing the whole bitmap"), "{}", pair.describe());
        assert!(pair.nodes[node].says("Resync of new storage after online grow"), "{}", pair.describe());
        let superblock = superblock_at(&pair, node, NEW);
        assert_eq!(superblock.la_size_sect.0, capacity(NEW));
        assert!(!superblock.flags.contains(Flags::FULL_SYNC));
        assert_eq!(pair.nodes[node].status().counters.out_of_sync_sectors, 0);
    }
    // The new end takes writes, and both nodes have them.
    pair.write(0, capacity(NEW) - 8, 9, 4096).unwrap();
    pair.settle();
    assert_eq!(pair.differences(), Vec::<u64>::new());
    assert_eq!(pair.nodes[1].load(800, 8192), vec![7; 8192]);
    // What was written is found again at the new place, after a crash as well: the activity log covers it.
    pair.kill(0);
    pair.start(0, fast());
    assert_eq!(pair.nodes[0].status().size.0, capacity(NEW));
    assert!(pair.nodes[0].status().counters.out_of_sync_sectors > 0, "{}", pair.describe());
}

#[test]
fn a_device_that_has_grown_alone_moves_its_metadata_and_keeps_the_agreed_size() {
    let mut pair = synced();
    grow(&mut pair, 0);
    resize(&mut pair, 0, ResizeRequest::default()).unwrap();
    pair.settle();
    assert!(both(&pair, ConnectionState::Connected, DiskState::UpToDate));
    assert_eq!(pair.nodes[0].status().size.0, capacity(OLD));
    assert_eq!(superblock_at(&pair, 0, NEW).la_size_sect.0, capacity(OLD));
    // The other follows, and tells it: both grow.
    grow(&mut pair, 1);
    resize(&mut pair, 1, ResizeRequest { assume_clean: true, ..ResizeRequest::default() }).unwrap();
    pair.until(|pair| pair.nodes.iter().all(|node| node.status().size.0 == capacity(NEW)));
    pair.settle();
    assert!(both(&pair, ConnectionState::Connected, DiskState::UpToDate));
    assert!(pair.nodes.iter().all(|node| node.status().counters.out_of_sync_sectors == 0));
}

/// What is decided in the handshake is decided by what both have told. That a device has grown since is no matter of it: the
/// nodes would have two sizes, and bitmaps of two lengths (as 8.4.11's have).
#[test]
fn a_device_that_has_grown_while_apart_is_as_large_as_it_has_told() {
    let mut pair = synced();
    // The other device is larger than what is used of it, and says so.
    grow(&mut pair, 0);
    resize(&mut pair, 0, ResizeRequest::default()).unwrap();
    for node in 0..2 {
        pair.command(node, Command::Disconnect { force: false }).unwrap();
    }
    pair.write(0, 800, 7, 4096).unwrap();
    grow(&mut pair, 1);
    pair.connect(&NetOptions::default());
    pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::UpToDate));
    assert_eq!(pair.nodes[1].load(800, 4096), vec![7; 4096]);
    let sizes = [0, 1].map(|node| pair.nodes[node].status().size.0);
    assert_eq!(sizes, [capacity(OLD); 2]);
    // It is used when an operator says so.
    resize(&mut pair, 1, ResizeRequest::default()).unwrap();
    pair.until(|pair| pair.nodes.iter().all(|node| node.status().size.0 == capacity(NEW)));
    pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::UpToDate));
}

#[test]
fn writes_go_on_while_the_metadata_move() {
    let mut pair = synced();
    grow(&mut pair, 0);
    grow(&mut pair, 1);
    pair.nodes[0].stuck = true;
    let write = Operation::Write { fua: false, preflush: false };
    let before = pair.submit(0, write, 0, &[3; 4096], 4096);
    pair.settle();
    let number = pair.begin_command(0, Command::Resize { volume: VOLUME, request: ResizeRequest::default() });
    let during = pair.submit(0, write, 64, &[4; 4096], 4096);
    pair.settle();
    // It waits for the write that holds an extent.
    assert!(!pair.nodes[0].replies.contains_key(&number));
    pair.unstick(0);
    pair.until(|pair| pair.nodes[0].replies.contains_key(&number));
    pair.until(|pair| [before, during].iter().all(|id| pair.nodes[0].completions.contains_key(id)));
    pair.until(|pair| pair.nodes.iter().all(|node| node.status().size.0 == capacity(NEW)));
    pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::UpToDate));
    assert_eq!(pair.differences(), Vec::<u64>::new());
    assert_eq!(pair.nodes[1].load(64, 4096), vec![4; 4096]);
}

#[test]
fn a_crash_while_the_metadata_move_loses_no_bit() {
    // How many writes of metadata the move takes.
    let mut writes = 0;
    for limit in 0.. {
        let mut pair = synced();
        // A write that only this node has.
        pair.command(1, Command::Disconnect { force: false }).unwrap();
        pair.command(0, Command::Disconnect { force: false }).unwrap();
        pair.write(0, 800, 7, 4096).unwrap();
        pair.settle();
        grow(&mut pair, 0);
        pair.nodes[0].stuck_metadata = true;
        let request = ResizeRequest { assume_peer_has_space: true, ..ResizeRequest::default() };
        let number = pair.begin_command(0, Command::Resize { volume: VOLUME, request });
        pair.settle();
        for _ in 0..limit {
            if pair.kept(0) > 0 {
                pair.unstick_first(0);
            }
            pair.settle();
        }
        let over = pair.nodes[0].replies.contains_key(&number);
        pair.kill(0);
        pair.nodes[0].stuck_metadata = false;
        // Before the new superblock is there, the old metadata are as they were.
        pair.sectors = if limit == 0 { OLD } else { NEW };
        pair.start(0, DiskOptions::default());
        let status = pair.nodes[0].status();
        assert!(status.counters.out_of_sync_sectors >= 8, "after {limit} writes\n{}", pair.describe());
        if !over && limit > 0 {
            assert_eq!(status.counters.out_of_sync_sectors, status.size.0, "after {limit} writes");
        }
        if over {
            break;
        }
        writes = limit;
    }
    assert!(writes > 8, "the log alone has eight blocks");
}

#[test]
fn what_a_resize_refuses() {
    let mut pair = synced();
    let refused = |code| Err(Failure::Configuration { code, info: Vec::new() });
    let log = |stripes, kib| ResizeRequest {
        al_stripes: Some(stripes),
        al_stripe_size_kib: Some(kib),
        ..ResizeRequest::default()
    };
    assert_eq!(resize(&mut pair, 0, log(1, 4)), refused(168));
    assert_eq!(resize(&mut pair, 0, log(1 << 16, 1 << 20)), refused(167));
    assert_eq!(resize(&mut pair, 0, log(4, 1024)), refused(170), "the log would take room from data");
    pair.command(0, Command::Secondary { volume: VOLUME, held_open: false }).unwrap();
    assert_eq!(resize(&mut pair, 0, ResizeRequest::default()), refused(131));
    pair.command(1, Command::Disconnect { force: false }).unwrap();
    assert_eq!(resize(&mut pair, 1, log(4, 64)), refused(166));
    pair.command(1, Command::Detach { volume: VOLUME, force: false }).unwrap();
    assert_eq!(resize(&mut pair, 1, ResizeRequest::default()), refused(138));
}

#[test]
fn a_device_that_shrinks_below_its_data_is_not_believed() {
    let mut pair = synced();
    let small = Sector(OLD / 2);
    pair.inject(0, Event::DeviceSize { volume: VOLUME, backing: small, metadata: small });
    assert!(pair.nodes[0].says("has shrunk"));
    resize(&mut pair, 0, ResizeRequest::default()).unwrap();
    pair.settle();
    assert_eq!(pair.nodes[0].status().size.0, capacity(OLD));
    assert!(both(&pair, ConnectionState::Connected, DiskState::UpToDate));
}

/// It would wait for them, they for the peer, and the peer's handshake for the size.
#[test]
fn a_resize_does_not_wait_for_writes_that_are_frozen() {
    let mut pair = synced();
    pair.nodes[1].stuck = true;
    let id = pair.submit(0, WRITE, 0, &[7; 4096], 4096);
    pair.settle();
    let request = ResizeRequest::default();
    let resized = pair.begin_command(0, Command::Resize { volume: VOLUME, request });
    pair.settle();
    assert!(!pair.nodes[0].replies.contains_key(&resized), "{}", pair.describe());
    pair.command(0, Command::SuspendIo { volume: VOLUME }).unwrap();
    pair.break_wires();
    pair.unstick(1);
    pair.until(|pair| pair.nodes[0].replies.contains_key(&resized));
    assert!(matches!(pair.nodes[0].replies[&resized], Err(Failure::State { .. })), "{}", pair.describe());
    assert!(pair.nodes[0].says("Not resized: I/O is suspended"));
    pair.until(|pair| pair.nodes[0].status().connection >= ConnectionState::Connected);
    pair.command(0, Command::ResumeIo { volume: VOLUME }).unwrap();
    pair.until(|pair| pair.nodes[0].completions.contains_key(&id));
    assert!(pair.nodes[0].completions[&id].0.is_ok());
    pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::UpToDate));
    resize(&mut pair, 0, request).unwrap();
}

/// It waits for what is being written of the metadata where they are, and so for the bitmap of a full resync that has lost its
/// peer: that must not wait for the resize.
#[test]
fn a_resize_lets_the_bitmap_of_a_full_resync_be_written() {
    let mut pair = synced();
    pair.nodes[1].stuck_metadata = true;
    pair.begin_command(1, Command::Invalidate { volume: VOLUME });
    pair.until(|pair| pair.nodes[1].status().connection == ConnectionState::StartingSyncT);
    pair.refused = true;
    pair.break_wires();
    pair.until(|pair| pair.nodes[1].status().connection == ConnectionState::WFConnection);
    let resized =
        pair.begin_command(1, Command::Resize { volume: VOLUME, request: ResizeRequest::default() });
    pair.settle();
    assert!(!pair.nodes[1].replies.contains_key(&resized), "{}", pair.describe());
    pair.unstick(1);
    pair.until(|pair| pair.nodes[1].replies.contains_key(&resized));
    assert_eq!(pair.nodes[1].replies[&resized], Ok(()));
    pair.refused = false;
    pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::UpToDate));
}

/// The second device has room, and its node waits for its peer.
fn with_room() -> Pair {
    let mut pair = synced();
    grow(&mut pair, 1);
    resize(&mut pair, 1, ResizeRequest::default()).unwrap();
    for node in 0..2 {
        pair.command(node, Command::Disconnect { force: false }).unwrap();
    }
    grow(&mut pair, 0);
    pair
}

/// What an operator says who knows how large the other device is.
const FORCED: ResizeRequest = ResizeRequest {
    size_sectors: 0,
    assume_peer_has_space: true,
    assume_clean: false,
    al_stripes: None,
    al_stripe_size_kib: None,
};

/// Both have to decide about the size by what both were told.
#[test]
fn a_handshake_does_not_wait_for_a_resize_that_has_not_begun() {
    let mut pair = with_room();
    pair.nodes[0].stuck = true;
    let id = pair.submit(0, WRITE, 0, &[7; 4096], 4096);
    pair.settle();
    let resized = pair.begin_command(0, Command::Resize { volume: VOLUME, request: FORCED });
    pair.settle();
    assert!(!pair.nodes[0].replies.contains_key(&resized), "{}", pair.describe());
    pair.connect(&NetOptions::default());
    pair.until(|pair| pair.nodes[0].replies.contains_key(&resized));
    assert!(matches!(pair.nodes[0].replies[&resized], Err(Failure::State { .. })), "{}", pair.describe());
    assert!(pair.nodes[0].says("Not resized: the peer is connecting"));
    pair.unstick(0);
    pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::UpToDate));
    assert!(pair.nodes[0].completions[&id].0.is_ok());
    assert_eq!([0, 1].map(|node| pair.nodes[node].status().size.0), [capacity(OLD); 2]);
}

/// One that has begun is what the peer is told of.
#[test]
fn a_handshake_tells_of_a_resize_that_has_begun() {
    let mut pair = with_room();
    pair.nodes[0].stuck_metadata = true;
    let resized = pair.begin_command(0, Command::Resize { volume: VOLUME, request: FORCED });
    pair.settle();
    pair.connect(&NetOptions::default());
    pair.settle();
    assert!(!pair.nodes[0].replies.contains_key(&resized), "{}", pair.describe());
    pair.unstick(0);
    pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::UpToDate));
    assert_eq!(pair.nodes[0].replies[&resized], Ok(()));
    assert_eq!([0, 1].map(|node| pair.nodes[node].status().size.0), [capacity(NEW); 2]);
}

#[test]
fn a_resize_does_not_get_between_what_a_handshake_tells_and_hears() {
    let mut pair = with_room();
    pair.connect(&NetOptions::default());
    pair.until(|pair| pair.nodes[0].status().connection == ConnectionState::WFReportParams);
    assert!(matches!(resize(&mut pair, 0, FORCED), Err(Failure::State { .. })), "{}", pair.describe());
    pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::UpToDate));
    assert_eq!([0, 1].map(|node| pair.nodes[node].status().size.0), [capacity(OLD); 2]);
}

/// What is at the place of the log then is no log: nobody must look for extents in it.
#[test]
fn a_disk_that_fails_while_its_metadata_move_can_be_attached() {
    let mut pair = synced();
    grow(&mut pair, 0);
    let start = layout(NEW).al_start().0;
    pair.nodes[0].bad_metadata = start..start + 8;
    pair.begin_command(0, Command::Resize { volume: VOLUME, request: ResizeRequest::default() });
    pair.until(|pair| pair.nodes[0].status().disk == DiskState::Diskless);
    pair.nodes[0].bad_metadata = 0..0;
    pair.kill(0);
    pair.start(0, fast());
    let status = pair.nodes[0].status();
    assert_eq!(status.counters.out_of_sync_sectors, status.size.0, "{}", pair.describe());
}

/// A peer that has been away may have grown since it told its size. (8.4.11 refuses the disk until the resource has been down.)
#[test]
fn a_disk_that_has_outgrown_what_the_peer_once_told_is_attached() {
    let mut pair = synced();
    for node in 0..2 {
        pair.command(node, Command::Disconnect { force: false }).unwrap();
    }
    grow(&mut pair, 0);
    resize(&mut pair, 0, FORCED).unwrap();
    pair.command(0, Command::Secondary { volume: VOLUME, held_open: false }).unwrap();
    pair.command(0, Command::Detach { volume: VOLUME, force: false }).unwrap();
    pair.attach(0, fast()).unwrap();
    assert_eq!(pair.nodes[0].status().size.0, capacity(NEW));
    grow(&mut pair, 1);
    resize(&mut pair, 1, FORCED).unwrap();
    pair.connect(&NetOptions::default());
    pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::UpToDate));
}
