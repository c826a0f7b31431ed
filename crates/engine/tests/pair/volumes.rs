//! Two volumes in one resource: what they share, and what each has by itself.

use udrbd_engine::interface::{
    AttachSettings, ClientRequest, Command, DiskOptions, DiskProperties, Event, Fencing, Handler, NetOptions,
    Operation, RequestId,
};
use udrbd_metadata::{Flags, Layout, Placement, Striping, Superblock, activity_log};
use udrbd_units::{ConnectionState, DiskState, Minor, Sector, SectorRange, VolumeNumber};

use crate::fast;
use crate::harness::{PLACE, Pair, VOLUME};

/// The other volume.
const SECOND: VolumeNumber = VolumeNumber(1);
const SECTORS: u64 = 2048;

fn fenced() -> DiskOptions {
    DiskOptions { fencing: Fencing::ResourceAndStonith, ..fast() }
}

fn create_metadata(pair: &mut Pair, node: usize) {
    let layout = Layout::new(Placement::Internal, Sector(SECTORS), Striping::DEFAULT).unwrap();
    let mut superblock = Superblock::fresh(&layout, 1 << 20);
    superblock.flags = Flags::AL_CLEAN;
    pair.nodes[node].store(PLACE + layout.superblock.0, &superblock.encode());
    for block in 0..8 {
        let start = PLACE + layout.al_start().0 + block * 8;
        pair.nodes[node].store(start, &activity_log::initialized_block());
    }
}

/// Starts a node with both volumes and their disks.
fn start(pair: &mut Pair, node: usize) {
    pair.start(node, fenced());
    pair.command(node, Command::NewMinor { volume: SECOND, minor: Minor(1) }).unwrap();
    let properties = DiskProperties {
        backing_size: Sector(SECTORS),
        metadata_size: Sector(SECTORS),
        logical_block_bytes: 512,
        physical_block_bytes: 4096,
        max_request_bytes: 1 << 20,
        volatile_cache: true,
        discard_granularity_bytes: 4096,
    };
    let settings =
        AttachSettings { placement: Placement::Internal, properties, options: fenced(), kept: None };
    pair.command(node, Command::Attach { volume: SECOND, settings: Box::new(settings) }).unwrap();
}

fn all(pair: &Pair, connection: ConnectionState, disk: DiskState) -> bool {
    pair.nodes.iter().all(|node| {
        let volumes = node.engine.as_ref().unwrap().status().volumes;
        volumes.len() == 2
            && volumes.iter().all(|volume| {
                volume.connection == connection && volume.disk == disk && volume.peer_disk == disk
            })
    })
}

/// Both volumes are up to date on both nodes, and node 0 is Primary.
fn synced() -> Pair {
    let mut pair = Pair::down(SECTORS);
    for node in 0..2 {
        create_metadata(&mut pair, node);
        start(&mut pair, node);
    }
    pair.connect(&NetOptions::default());
    pair.until(|pair| all(pair, ConnectionState::Connected, DiskState::Inconsistent));
    for volume in [VOLUME, SECOND] {
        pair.command(0, Command::Primary { volume, force: true }).unwrap();
    }
    pair.until(|pair| all(pair, ConnectionState::Connected, DiskState::UpToDate));
    pair
}

/// Begins a write to the second volume.
fn submit(pair: &mut Pair, node: usize, sector: u64, value: u8) -> u64 {
    let buffer = pair.new_buffer(node, vec![value; 4096]);
    let id = RequestId(u64::from(buffer.0) + (1 << 40));
    let operation = Operation::Write { fua: false, preflush: false };
    let range = SectorRange::new(Sector(sector), 4096);
    let request = ClientRequest { id, volume: SECOND, operation, range, buffer: Some(buffer) };
    pair.events.push_back((node, Event::Request(request)));
    id.0
}

/// The rebooted peer of a frozen Primary is refused, and I/O goes on without it: of every volume, so each of them begins a
/// generation. What only the second one has written meanwhile is resynced (8.4.11 would take both for equal).
#[test]
fn all_volumes_begin_a_generation_when_a_rebooted_peer_is_refused() {
    let mut pair = synced();
    pair.nodes[0].slow_handlers = true;
    pair.kill(1);
    pair.until(|pair| pair.nodes[0].status().connection == ConnectionState::WFConnection);
    let id = submit(&mut pair, 0, 8, 7);
    pair.settle();
    assert!(!pair.nodes[0].completions.contains_key(&id), "I/O is frozen");
    start(&mut pair, 1);
    pair.nodes[0].slow_handlers = false;
    pair.command(1, Command::Connect(Box::default())).unwrap();
    pair.until(|pair| pair.nodes[0].completions.contains_key(&id));
    assert!(pair.nodes[0].says("can not thaw IO with an only Consistent peer"), "{}", pair.describe());
    pair.until(|pair| all(pair, ConnectionState::Connected, DiskState::UpToDate));
    assert_eq!(pair.nodes[1].load(PLACE + 8, 4096), [7; 4096], "{}", pair.describe());
}

/// Fencing failed when the peer was lost, and I/O is frozen. It succeeds when the other volume is promoted: now, not in the next
/// handshake, where the generations that then begin would not be the ones the peer has just been told.
#[test]
fn a_promotion_that_fences_the_peer_ends_the_freeze_of_the_other_volume() {
    let mut pair = synced();
    pair.command(0, Command::Secondary { volume: SECOND, held_open: false }).unwrap();
    pair.nodes[0].exits.insert(Handler::FencePeer, 1);
    pair.kill(1);
    pair.until(|pair| pair.nodes[0].status().connection == ConnectionState::WFConnection);
    let id = pair.submit(0, crate::stuck::WRITE, 8, &[7; 4096], 4096);
    pair.settle();
    assert!(!pair.nodes[0].completions.contains_key(&id), "I/O is frozen");
    pair.nodes[0].exits.insert(Handler::FencePeer, 4);
    pair.command(0, Command::Primary { volume: SECOND, force: false }).unwrap();
    pair.until(|pair| pair.nodes[0].completions.contains_key(&id));
    assert_eq!(pair.nodes[0].status().connection, ConnectionState::WFConnection, "{}", pair.describe());
}
