//! Devices that grow on both nodes: the new part is resynced without an exchange of bitmaps, by what each has decided (states spec
//! 18.5). So both have to decide the same, whatever else happens.

use udrbd_engine::interface::{Command, Event, NetOptions, ResizeRequest};
use udrbd_units::{ConnectionState, DiskState, GenerationId, Sector, VolumeNumber};
use udrbd_wire::{Packet, Sizes, SizesFlags};

use crate::harness::{Pair, VOLUME};
use crate::resize::{NEW, OLD, capacity, grow, resize, superblock_at};
use crate::{both, demote, fast, promote, synced};

fn sizes(pair: &Pair) -> [u64; 2] {
    [0, 1].map(|node| pair.nodes[node].status().size.0)
}

/// Both can be verified.
fn verifiable() -> Pair {
    let mut pair = synced();
    let options = NetOptions { verify_alg: "crc32c".to_owned(), ..NetOptions::default() };
    for node in 0..2 {
        pair.command(node, Command::NetOptions(Box::new(options.clone()))).unwrap();
    }
    pair
}

/// Both have the new size, and the same data.
fn grown(pair: &mut Pair) {
    pair.until(|pair| sizes(pair) == [capacity(NEW); 2]);
    pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::UpToDate));
    pair.settle();
    assert!(both(pair, ConnectionState::Connected, DiskState::UpToDate), "{}", pair.describe());
}

/// Both decide about the size at once where a disk is attached, too. A device that has grown since is no matter of that.
#[test]
fn a_device_that_has_grown_is_not_used_by_an_attach() {
    let mut pair = synced();
    pair.command(1, Command::Detach { volume: VOLUME, force: false }).unwrap();
    pair.write(0, 800, 7, 4096).unwrap();
    grow(&mut pair, 0);
    pair.nodes[1].slow_handlers = true;
    pair.sectors = OLD;
    pair.begin_attach(1, fast());
    pair.until(|pair| pair.nodes[1].status().disk == DiskState::Negotiating);
    grow(&mut pair, 1);
    pair.nodes[1].slow_handlers = false;
    pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::UpToDate));
    assert_eq!(sizes(&pair), [capacity(OLD); 2]);
    assert_eq!(pair.nodes[1].load(800, 4096), vec![7; 4096]);
}

/// Both resize, and before either hears of that the Primary becomes Secondary: to the one the other is still Primary, so it waits for
/// that; the other goes by who decides conflicts.
#[test]
fn two_nodes_that_wait_to_become_the_target_connect_again() {
    let mut met = false;
    for primary in 0..2 {
        let mut pair = synced();
        if primary == 1 {
            demote(&mut pair, 0);
            promote(&mut pair, 1, false);
            pair.settle();
        }
        grow(&mut pair, 0);
        grow(&mut pair, 1);
        pair.cut = true;
        let request = ResizeRequest::default();
        let first = pair.begin_command(primary, Command::Resize { volume: VOLUME, request });
        pair.settle();
        pair.begin_command(primary, Command::Secondary { volume: VOLUME, held_open: false });
        let second = pair.begin_command(1 - primary, Command::Resize { volume: VOLUME, request });
        pair.settle();
        assert_eq!(pair.nodes[primary].replies[&first], Ok(()));
        assert_eq!(pair.nodes[1 - primary].replies[&second], Ok(()));
        pair.cut = false;
        grown(&mut pair);
        met |= pair.nodes.iter().any(|node| node.says("Both nodes wait to become SyncTarget"));
    }
    assert!(met);
}

/// Until it hears the name of the resync the target is called what the source is called: what is written on when it is lost needs
/// another name, or a Primary without a disk takes the target's data for what its clients have seen.
#[test]
fn a_source_whose_grown_peer_is_lost_begins_a_generation() {
    let mut pair = synced();
    grow(&mut pair, 0);
    grow(&mut pair, 1);
    resize(&mut pair, 0, ResizeRequest::default()).unwrap();
    pair.until(|pair| pair.nodes[0].status().connection == ConnectionState::SyncSource);
    assert_eq!(pair.nodes[1].status().connection, ConnectionState::WFSyncUUID);
    pair.kill(1);
    pair.write(0, 800, 7, 4096).unwrap();
    pair.settle();
    let [own, lost] = [0, 1].map(|node| superblock_at(&pair, node, NEW).current);
    assert!(!own.same_generation(lost), "{}", pair.describe());
}

/// A peer that is lost before it has answered a resize is not waited for.
#[test]
fn a_survivor_is_promoted_though_its_resize_was_not_answered() {
    let mut pair = synced();
    grow(&mut pair, 0);
    resize(&mut pair, 0, ResizeRequest::default()).unwrap();
    pair.settle();
    grow(&mut pair, 1);
    pair.cut = true;
    let resized =
        pair.begin_command(1, Command::Resize { volume: VOLUME, request: ResizeRequest::default() });
    pair.settle();
    assert_eq!(pair.nodes[1].replies[&resized], Ok(()));
    assert_eq!(pair.nodes[1].status().size.0, capacity(NEW));
    pair.cut = false;
    pair.kill(0);
    pair.until(|pair| pair.nodes[1].status().connection == ConnectionState::WFConnection);
    promote(&mut pair, 1, false);
    assert_eq!(pair.nodes[1].status().role, udrbd_units::Role::Primary, "{}", pair.describe());
}

/// A source knows of blocks that are out of sync, its target does not: it is done before they are.
#[test]
fn a_source_with_more_bits_than_its_target_asks_for_the_bitmaps() {
    let mut pair = Pair::down(OLD);
    for node in 0..2 {
        // 16 blocks are marked on the first node alone.
        let bits = if node == 0 { [0xff, 0xff, 0, 0] } else { [0; 4] };
        pair.nodes[node].write_metadata(OLD, &bits, |superblock, layout| {
            superblock.current = GenerationId(0x1234_5678);
            superblock.la_size_sect = layout.max_capacity(Sector(OLD));
            superblock.flags =
                superblock.flags | udrbd_metadata::Flags::CONSISTENT | udrbd_metadata::Flags::WAS_UP_TO_DATE;
        });
        pair.start(node, fast());
    }
    pair.connect(&NetOptions::default());
    pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::UpToDate));
    assert!(pair.nodes[0].says("No resync, but 16 bits in bitmap!"));
    promote(&mut pair, 0, false);
    grow(&mut pair, 0);
    grow(&mut pair, 1);
    resize(&mut pair, 0, ResizeRequest::default()).unwrap();
    grown(&mut pair);
    assert!(pair.nodes[0].says("has not asked for all that is out of sync here"), "{}", pair.describe());
    assert_eq!(pair.nodes[0].status().counters.out_of_sync_sectors, 0);
}

/// A verify that began in between would end the resync of the new part before it has begun, on one of the two nodes.
#[test]
fn a_verify_does_not_come_between_two_nodes_that_grow() {
    let mut pair = verifiable();
    grow(&mut pair, 0);
    grow(&mut pair, 1);
    pair.cut = true;
    let resized =
        pair.begin_command(1, Command::Resize { volume: VOLUME, request: ResizeRequest::default() });
    pair.settle();
    assert_eq!(pair.nodes[1].replies[&resized], Ok(()));
    let verify = pair.begin_command(1, Command::Verify { volume: VOLUME, start: None, stop: None });
    pair.settle();
    // The source waits for its handler.
    pair.nodes[0].slow_handlers = true;
    pair.cut = false;
    pair.settle();
    pair.nodes[0].slow_handlers = false;
    for handler in std::mem::take(&mut pair.nodes[0].handlers_at_work) {
        pair.handler_exit(0, handler, 0);
    }
    pair.until(|pair| pair.nodes[1].replies.contains_key(&verify));
    grown(&mut pair);
    assert!(pair.nodes.iter().all(|node| node.status().counters.out_of_sync_sectors == 0));
}

/// A peer that is done with a resync has a new size at once; the source has not heard of the end of the resync yet.
#[test]
fn a_source_ends_its_resync_before_it_grows() {
    let mut pair = synced();
    grow(&mut pair, 0);
    grow(&mut pair, 1);
    pair.command(1, Command::Invalidate { volume: VOLUME }).unwrap();
    let done = |pair: &Pair| {
        let status = pair.nodes[1].status();
        status.connection == ConnectionState::Connected && status.disk == DiskState::UpToDate
    };
    pair.until(|pair| pair.nodes[1].status().connection == ConnectionState::SyncTarget);
    while !done(&pair) {
        assert!(pair.step() || pair.advance());
    }
    assert_eq!(pair.nodes[0].status().connection, ConnectionState::SyncSource, "{}", pair.describe());
    pair.cut = true;
    let resized =
        pair.begin_command(1, Command::Resize { volume: VOLUME, request: ResizeRequest::default() });
    pair.settle();
    assert_eq!(pair.nodes[1].replies[&resized], Ok(()));
    pair.cut = false;
    grown(&mut pair);
    assert!(pair.nodes.iter().all(|node| node.status().counters.out_of_sync_sectors == 0));
}

/// What a volume grows by while it is verified is not counted in, so it is not asked for.
#[test]
fn a_verify_ends_where_the_volume_ended_when_it_began() {
    let mut pair = verifiable();
    grow(&mut pair, 1);
    resize(&mut pair, 1, ResizeRequest::default()).unwrap();
    pair.settle();
    pair.command(1, Command::Verify { volume: VOLUME, start: None, stop: None }).unwrap();
    let disk_size = Sector(capacity(NEW));
    let packet = Packet::Sizes(Sizes {
        disk_size,
        user_size: Sector(0),
        current_size: disk_size,
        max_bio_size: 1 << 20,
        queue_order_type: 0,
        flags: SizesFlags(0),
        queue_limits: None,
    });
    let socket = pair.socket(1, true).unwrap();
    let (volume, bytes) = (VolumeNumber(0), Vec::new());
    let event = Event::Packet {
        socket,
        volume,
        packet,
        payload: None,
        payload_bytes: 0,
        bytes,
        digest: None,
        intact: true,
    };
    pair.packets.clear();
    pair.inject(1, event);
    assert_eq!(pair.nodes[1].status().size, disk_size, "{}", pair.describe());
    pair.until(|pair| pair.nodes[1].status().connection == ConnectionState::Connected);
    let asked = pair.packets.iter().filter_map(|(node, packet)| match packet {
        Packet::VerifyRequest(request) if *node == 1 => Some(request.range().end().0),
        _ => None,
    });
    assert_eq!(asked.max(), Some(capacity(OLD)));
}
