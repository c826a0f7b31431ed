//! Scripts of what two nodes go through, told to two engines.

#![expect(clippy::unwrap_used, reason = "a script that goes wrong is a failed test")]

mod commands;
mod congestion;
mod disks;
mod establish;
mod faults;
mod growth;
mod handlers;
mod hanging;
mod harness;
mod hostile;
mod inheritance;
mod missed_end;
mod operators;
mod options;
mod pacing;
mod quirks;
mod resize;
mod resyncs;
mod side_file;
mod split_brain;
mod stuck;
mod two_primaries;
mod undo;
mod unnoticed;
mod verify;
mod volumes;

use harness::{Pair, VOLUME};
use udrbd_engine::interface::{Command, DiscardMode, DiskOptions, NetOptions, Operation, Protocol};
use udrbd_units::{ConnectionState, DiskState, Role, Sector, SectorRange};

fn promote(pair: &mut Pair, node: usize, force: bool) {
    pair.command(node, Command::Primary { volume: VOLUME, force }).unwrap();
}

fn demote(pair: &mut Pair, node: usize) {
    pair.command(node, Command::Secondary { volume: VOLUME, held_open: false }).unwrap();
}

fn both(pair: &Pair, connection: ConnectionState, disk: DiskState) -> bool {
    pair.nodes.iter().all(|node| {
        let status = node.status();
        status.connection == connection && status.disk == disk && status.peer_disk == disk
    })
}

fn fast() -> DiskOptions {
    DiskOptions { c_plan_ahead: 0, resync_rate_kib: 400_000, ..DiskOptions::default() }
}

/// Both up to date and connected, node 0 Primary.
fn synced() -> Pair {
    let mut pair = Pair::new();
    for node in 0..2 {
        pair.command(node, Command::DiskOptions { volume: VOLUME, options: Box::new(fast()) }).unwrap();
    }
    pair.connect(&NetOptions::default());
    pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::Inconsistent));
    promote(&mut pair, 0, true);
    pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::UpToDate));
    pair
}

#[test]
fn fresh_nodes_connect_and_are_inconsistent() {
    let mut pair = Pair::new();
    pair.connect(&NetOptions::default());
    pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::Inconsistent));
    let roles: Vec<Role> = pair.nodes.iter().map(|node| node.status().role).collect();
    assert_eq!(roles, [Role::Secondary, Role::Secondary]);
}

#[test]
fn a_volume_that_only_one_node_has_is_in_nobodys_way() {
    let mut pair = Pair::new();
    let (volume, minor) = (udrbd_units::VolumeNumber(1), udrbd_units::Minor(1));
    pair.command(0, Command::NewMinor { volume, minor }).unwrap();
    pair.connect(&NetOptions::default());
    pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::Inconsistent));
    let promoted = pair.try_command(0, Command::Primary { volume: VOLUME, force: true });
    assert_eq!(promoted, Some(Ok(())), "{}", pair.describe());
    pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::UpToDate));
    assert!(pair.nodes[0].says("The peer does not have this volume"));
    let other = |pair: &Pair, node: usize| {
        let volumes = pair.nodes[node].engine.as_ref().unwrap().status().volumes;
        volumes.get(1).map(|volume| volume.connection)
    };
    assert_eq!(other(&pair, 0), Some(ConnectionState::WFReportParams));
    // The peer gets it, too.
    pair.command(1, Command::NewMinor { volume, minor }).unwrap();
    pair.settle();
    for node in 0..2 {
        assert_eq!(other(&pair, node), Some(ConnectionState::Connected), "{}", pair.describe());
    }
    pair.write(0, 0, 1, 4096).unwrap();
    demote(&mut pair, 0);
    promote(&mut pair, 1, false);
}

#[test]
fn a_forced_promotion_starts_the_full_sync() {
    let mut pair = synced();
    assert!(pair.nodes[1].says("Began resync as SyncTarget"));
    assert!(pair.differences().is_empty());
    let status = pair.nodes.each_ref().map(|node| node.status());
    assert_eq!(status[0].counters.out_of_sync_sectors, 0);
    assert_eq!(status[1].counters.out_of_sync_sectors, 0);
    let (a, b) = (status[0].generations.unwrap(), status[1].generations.unwrap());
    assert!(a[0].same_generation(b[0]) && !a[1].is_some() && !b[1].is_some(), "{a:?} {b:?}");
    assert_eq!(a[2].0 & !1, b[2].0 & !1);
    pair.write(0, 100, 7, 4096).unwrap();
    assert_eq!(pair.nodes[1].load(100, 4096), vec![7; 4096]);
}

#[test]
fn a_write_is_on_both_disks_when_it_completes() {
    let mut pair = synced();
    for block in 0..20 {
        pair.write(0, block * 1500 + 8, block as u8 + 1, 8192).unwrap();
        assert_eq!(pair.nodes[1].load(block * 1500 + 8, 8192), vec![block as u8 + 1; 8192]);
    }
    assert!(pair.differences().is_empty());
    assert_eq!(pair.read(0, 8, 4096).unwrap(), vec![1; 4096]);
}

#[test]
fn the_peer_waits_for_its_disk_before_it_acknowledges() {
    let mut pair = synced();
    pair.nodes[1].stuck = true;
    let write = Operation::Write { fua: false, preflush: false };
    let id = pair.submit(0, write, 0, &[9; 4096], 4096);
    pair.settle();
    assert!(!pair.nodes[0].completions.contains_key(&id));
    pair.unstick(1);
    pair.settle();
    assert!(pair.nodes[0].completions.contains_key(&id));
}

#[test]
fn roles_change_places() {
    let mut pair = synced();
    assert!(pair.command(1, Command::Primary { volume: VOLUME, force: false }).is_err());
    demote(&mut pair, 0);
    promote(&mut pair, 1, false);
    pair.write(1, 0, 5, 4096).unwrap();
    assert!(pair.differences().is_empty());
    assert!(pair.write(0, 0, 6, 4096).is_err());
    demote(&mut pair, 1);
    promote(&mut pair, 0, false);
    assert_eq!(pair.read(0, 0, 4096).unwrap(), vec![5; 4096]);
}

#[test]
fn only_what_changed_travels_after_an_absence() {
    let mut pair = synced();
    pair.command(1, Command::Disconnect { force: false }).unwrap();
    for block in [3, 500, 501] {
        pair.write(0, block * 8, 0xAA, 4096).unwrap();
    }
    assert_eq!(pair.nodes[0].status().counters.out_of_sync_sectors, 24);
    pair.command(1, Command::Connect(Box::default())).unwrap();
    pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::UpToDate));
    assert!(pair.differences().is_empty());
    assert!(pair.nodes[1].says("(will sync 12 KB [3 bits set])"), "{}", pair.describe());
}

#[test]
fn writes_in_flight_when_the_link_breaks_complete_and_are_resynced() {
    let mut pair = synced();
    pair.cut = true;
    let write = Operation::Write { fua: false, preflush: false };
    let ids: Vec<u64> = (0..8).map(|block| pair.submit(0, write, block * 8, &[3; 4096], 4096)).collect();
    pair.settle();
    assert!(ids.iter().all(|id| !pair.nodes[0].completions.contains_key(id)));
    pair.break_wires();
    pair.until(|pair| ids.iter().all(|id| pair.nodes[0].completions.contains_key(id)));
    assert_eq!(pair.nodes[0].status().counters.out_of_sync_sectors, 64);
    pair.cut = false;
    pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::UpToDate));
    assert!(pair.differences().is_empty());
}

#[test]
fn a_silent_peer_is_noticed_by_the_ping() {
    let mut pair = synced();
    pair.cut = true;
    pair.until(|pair| pair.nodes[0].status().connection < ConnectionState::Connected);
    assert!(pair.nodes[0].says("PingAck did not arrive in time."));
}

#[test]
fn a_killed_primary_comes_back_as_secondary_and_is_resynced() {
    let mut pair = synced();
    pair.nodes[1].stuck = true;
    let write = Operation::Write { fua: false, preflush: false };
    pair.submit(0, write, 16, &[4; 4096], 4096);
    pair.settle();
    pair.kill(0);
    pair.nodes[1].stuck = false;
    pair.unstick(1);
    pair.until(|pair| pair.nodes[1].status().connection == ConnectionState::WFConnection);
    pair.start(0, fast());
    pair.command(0, Command::Connect(Box::default())).unwrap();
    pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::UpToDate));
    assert!(pair.differences().is_empty());
    assert!(pair.nodes[0].says("as out-of-sync based on AL"), "{}", pair.describe());
}

#[test]
fn a_survivor_takes_over() {
    let mut pair = synced();
    pair.write(0, 0, 1, 4096).unwrap();
    pair.kill(0);
    pair.until(|pair| pair.nodes[1].status().connection == ConnectionState::WFConnection);
    promote(&mut pair, 1, false);
    pair.write(1, 8, 2, 4096).unwrap();
    assert_eq!(pair.read(1, 0, 4096).unwrap(), vec![1; 4096]);
    pair.start(0, fast());
    pair.command(0, Command::Connect(Box::default())).unwrap();
    pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::UpToDate));
    assert!(pair.differences().is_empty());
}

#[test]
fn a_split_brain_is_refused() {
    let mut pair = synced();
    pair.command(1, Command::Disconnect { force: true }).unwrap();
    promote(&mut pair, 1, false);
    pair.write(1, 8, 2, 4096).unwrap();
    pair.write(0, 8, 3, 4096).unwrap();
    pair.command(1, Command::Connect(Box::default())).unwrap();
    pair.until(|pair| pair.nodes[1].status().connection == ConnectionState::StandAlone);
    assert!(pair.nodes[1].says("Split-Brain detected but unresolved, dropping connection!"));
    demote(&mut pair, 1);
    let discard = NetOptions { discard_my_data: true, ..NetOptions::default() };
    pair.command(1, Command::Connect(Box::new(discard))).unwrap();
    if pair.nodes[0].status().connection == ConnectionState::StandAlone {
        pair.command(0, Command::Connect(Box::default())).unwrap();
    }
    pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::UpToDate));
    assert!(pair.differences().is_empty());
    assert_eq!(pair.nodes[1].load(8, 4096), vec![3; 4096]);
}

#[test]
fn whoever_disconnects_keeps_good_data() {
    for first in 0..2 {
        for leaver in 0..2 {
            let mut pair = synced();
            for node in [first, 1 - first] {
                pair.command(node, Command::Disconnect { force: false }).unwrap();
            }
            demote(&mut pair, 0);
            for node in [first, 1 - first] {
                pair.command(node, Command::Connect(Box::default())).unwrap();
            }
            pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::UpToDate));
            pair.command(leaver, Command::Disconnect { force: false }).unwrap();
            for node in &pair.nodes {
                assert_eq!(node.status().disk, DiskState::UpToDate, "{}", pair.describe());
            }
            assert!(pair.nodes[1 - leaver].says("conn( Connected -> TearDown )"), "{}", pair.describe());
        }
    }
}

#[test]
fn invalidate_fetches_everything_again() {
    let mut pair = synced();
    pair.write(0, 0, 1, 65536).unwrap();
    pair.command(1, Command::Invalidate { volume: VOLUME }).unwrap();
    pair.until(|pair| pair.nodes[1].status().connection == ConnectionState::SyncTarget);
    pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::UpToDate));
    assert!(pair.differences().is_empty());
}

#[test]
fn writes_go_on_during_a_resync() {
    let mut pair = synced();
    pair.command(1, Command::Invalidate { volume: VOLUME }).unwrap();
    pair.until(|pair| pair.nodes[0].status().connection == ConnectionState::SyncSource);
    for block in 0..200 {
        pair.write(0, (block * 37 % 1000) * 8, block as u8, 4096).unwrap();
    }
    pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::UpToDate));
    assert!(pair.differences().is_empty());
}

#[test]
fn a_wrong_secret_ends_stand_alone() {
    let mut pair = Pair::new();
    let secret = |secret: &str| NetOptions {
        cram_hmac_alg: "sha1".to_owned(),
        shared_secret: secret.to_owned(),
        ..NetOptions::default()
    };
    pair.command(0, Command::Connect(Box::new(secret("one")))).unwrap();
    pair.command(1, Command::Connect(Box::new(secret("two")))).unwrap();
    pair.until(|pair| pair.nodes.iter().any(|node| node.says("Authentication of peer failed")));
    pair.pass(5);
    let alone =
        pair.nodes.iter().filter(|node| node.status().connection == ConnectionState::StandAlone).count();
    assert!(alone >= 1, "{}", pair.describe());
}

#[test]
fn the_right_secret_connects() {
    let mut pair = Pair::new();
    let options = NetOptions {
        cram_hmac_alg: "sha1".to_owned(),
        shared_secret: "one".to_owned(),
        ..NetOptions::default()
    };
    pair.connect(&options);
    pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::Inconsistent));
    assert!(pair.nodes[0].says("Peer authenticated using 20 bytes HMAC"));
}

#[test]
fn a_diskless_primary_reads_and_writes_through_the_peer() {
    let mut pair = synced();
    pair.write(0, 0, 1, 4096).unwrap();
    pair.command(0, Command::Detach { volume: VOLUME, force: false }).unwrap();
    pair.until(|pair| pair.nodes[0].status().disk == DiskState::Diskless);
    assert_eq!(pair.read(0, 0, 4096).unwrap(), vec![1; 4096]);
    pair.write(0, 8, 2, 4096).unwrap();
    assert_eq!(pair.nodes[1].load(8, 4096), vec![2; 4096]);
    pair.attach(0, fast()).unwrap();
    pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::UpToDate));
    assert!(pair.differences().is_empty());
    assert_eq!(pair.read(0, 8, 4096).unwrap(), vec![2; 4096]);
}

#[test]
fn a_failing_disk_is_detached_and_the_peer_serves() {
    let mut pair = synced();
    pair.nodes[0].failing = true;
    pair.write(0, 0, 1, 4096).unwrap();
    pair.until(|pair| pair.nodes[0].status().disk == DiskState::Diskless);
    assert_eq!(pair.read(0, 0, 4096).unwrap(), vec![1; 4096]);
}

#[test]
fn discards_and_zeroes_reach_the_peer() {
    let mut pair = synced();
    pair.write(0, 0, 1, 65536).unwrap();
    for operation in [Operation::Discard, Operation::WriteZeroes { may_unmap: true }] {
        let id = pair.submit(0, operation, 16, &[], 32768);
        pair.until(|pair| pair.nodes[0].completions.contains_key(&id));
        assert!(pair.nodes[0].completions[&id].0.is_ok());
    }
    pair.settle();
    assert_eq!(pair.nodes[1].load(16, 32768), vec![0; 32768]);
    assert!(pair.differences().is_empty());
}

/// Io spec 10.3: zeroes are written on the peer only where its administrator does not trust discards.
#[test]
fn the_peer_discards_what_is_discarded() {
    for trusted in [true, false] {
        let mut pair = synced();
        let options = DiskOptions { discard_zeroes_if_aligned: trusted, ..fast() };
        pair.command(1, Command::DiskOptions { volume: VOLUME, options: Box::new(options) }).unwrap();
        let id = pair.submit(0, Operation::Discard, 16, &[], 32768);
        pair.until(|pair| pair.nodes[0].completions.contains_key(&id));
        pair.settle();
        let mode = if trusted { DiscardMode::Discard } else { DiscardMode::ZeroesMayUnmap };
        let range = SectorRange::new(Sector(16), 32768);
        assert_eq!(pair.nodes[0].discards, [(range, DiscardMode::Discard)]);
        assert_eq!(pair.nodes[1].discards, [(range, mode)]);
    }
}

/// What was agreed with the last peer holds while it is away: a Primary alone would ignore discards otherwise, and cut them into
/// pieces that no disk gives back.
#[test]
fn discards_are_taken_as_before_while_the_peer_is_away() {
    let mut pair = synced();
    pair.write(0, 0, 1, 65536).unwrap();
    let offers = |pair: &Pair| {
        let engine = pair.nodes[0].engine.as_ref().unwrap();
        (engine.offers_discard(), engine.offers_write_zeroes(), engine.request_limits())
    };
    let connected = offers(&pair);
    assert_eq!(connected, (true, true, (1 << 20, 128 << 20)));
    pair.command(1, Command::Disconnect { force: false }).unwrap();
    pair.until(|pair| pair.nodes[0].status().connection == ConnectionState::WFConnection);
    assert_eq!(offers(&pair), connected);
    let id = pair.submit(0, Operation::Discard, 16, &[], 32768);
    pair.until(|pair| pair.nodes[0].completions.contains_key(&id));
    pair.command(1, Command::Connect(Box::default())).unwrap();
    pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::UpToDate));
    assert_eq!(offers(&pair), connected);
    assert_eq!(pair.nodes[1].load(16, 32768), vec![0; 32768]);
}

#[test]
fn down_takes_everything_away_and_up_needs_no_resync() {
    let mut pair = synced();
    pair.write(0, 0, 1, 4096).unwrap();
    for node in 0..2 {
        pair.command(node, Command::Down).unwrap();
        pair.kill(node);
    }
    for node in 0..2 {
        pair.start(node, fast());
    }
    pair.connect(&NetOptions::default());
    pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::UpToDate));
    assert!(pair.differences().is_empty());
    promote(&mut pair, 1, false);
    assert_eq!(pair.read(1, 0, 4096).unwrap(), vec![1; 4096]);
}

#[test]
fn a_write_in_flight_at_the_reconnect_is_in_the_bitmap_that_is_sent() {
    let mut pair = synced();
    pair.command(1, Command::Disconnect { force: false }).unwrap();
    pair.nodes[0].stuck = true;
    let write = Operation::Write { fua: false, preflush: false };
    let id = pair.submit(0, write, 800, &[8; 4096], 4096);
    pair.settle();
    pair.command(1, Command::Connect(Box::default())).unwrap();
    pair.until(|pair| pair.nodes[0].status().connection == ConnectionState::WFBitMapS);
    pair.pass(2);
    assert!(!pair.nodes[0].completions.contains_key(&id));
    pair.unstick(0);
    pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::UpToDate));
    assert!(pair.differences().is_empty());
    assert_eq!(pair.nodes[1].load(800, 4096), vec![8; 4096]);
}

#[test]
fn protocols_a_and_b_complete_before_the_peers_disk_has_it() {
    for (protocol, waits_for_arrival) in [(Protocol::A, false), (Protocol::B, true)] {
        let mut pair = Pair::new();
        let options = NetOptions { protocol, ..NetOptions::default() };
        for node in 0..2 {
            pair.command(node, Command::DiskOptions { volume: VOLUME, options: Box::new(fast()) }).unwrap();
        }
        pair.connect(&options);
        pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::Inconsistent));
        promote(&mut pair, 0, true);
        pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::UpToDate));
        pair.nodes[1].stuck = true;
        pair.cut = true;
        let write = Operation::Write { fua: false, preflush: false };
        let id = pair.submit(0, write, 0, &[9; 4096], 4096);
        pair.settle();
        assert_eq!(pair.nodes[0].completions.contains_key(&id), !waits_for_arrival);
        pair.cut = false;
        pair.settle();
        assert!(pair.nodes[0].completions.contains_key(&id));
        pair.unstick(1);
        pair.settle();
        assert!(pair.differences().is_empty());
    }
}

#[test]
fn a_diskless_primary_does_not_wait_for_time_to_pass() {
    let mut pair = synced();
    pair.command(0, Command::Detach { volume: VOLUME, force: false }).unwrap();
    pair.pass(1);
    let write = Operation::Write { fua: false, preflush: false };
    let id = pair.submit(0, write, 0, &[9; 4096], 4096);
    pair.settle();
    assert!(pair.nodes[0].completions.contains_key(&id), "{}", pair.describe());
    assert_eq!(pair.nodes[1].load(0, 4096), vec![9; 4096]);
}

#[test]
fn zeroes_travel_as_data_where_a_digest_is_expected() {
    let mut pair = Pair::new();
    let options = NetOptions { data_integrity_alg: "crc32c".to_owned(), ..NetOptions::default() };
    for node in 0..2 {
        pair.command(node, Command::DiskOptions { volume: VOLUME, options: Box::new(fast()) }).unwrap();
    }
    pair.connect(&options);
    pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::Inconsistent));
    promote(&mut pair, 0, true);
    pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::UpToDate));
    pair.write(0, 0, 1, 65536).unwrap();
    pair.packets.clear();
    let (data_bytes, zero_bytes) = pair.nodes[0].engine.as_ref().unwrap().request_limits();
    assert_eq!((data_bytes, zero_bytes), (1 << 20, 1 << 20));
    let id = pair.submit(0, Operation::WriteZeroes { may_unmap: true }, 16, &[], 32768);
    pair.until(|pair| pair.nodes[0].completions.contains_key(&id));
    assert!(pair.packets.iter().any(|(_, packet)| matches!(packet, udrbd_wire::Packet::Data(_))));
    assert!(!pair.packets.iter().any(|(_, packet)| matches!(packet, udrbd_wire::Packet::Zeroes(_))));
    // One that is too large is not sent: the connection goes, the write completes, and the resync carries it.
    let id = pair.submit(0, Operation::WriteZeroes { may_unmap: true }, 4096, &[], 2 << 20);
    pair.until(|pair| pair.nodes[0].completions.contains_key(&id));
    assert!(pair.nodes[0].completions[&id].0.is_ok());
    pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::UpToDate));
    assert!(pair.differences().is_empty());
}

/// Both Primary, connected and up to date.
fn two_primaries() -> Pair {
    let mut pair = Pair::new();
    let options = NetOptions { allow_two_primaries: true, ..NetOptions::default() };
    for node in 0..2 {
        pair.command(node, Command::DiskOptions { volume: VOLUME, options: Box::new(fast()) }).unwrap();
    }
    pair.connect(&options);
    pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::Inconsistent));
    promote(&mut pair, 0, true);
    pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::UpToDate));
    promote(&mut pair, 1, false);
    pair
}

#[test]
fn two_primaries_write_in_turn_without_a_conflict() {
    let mut pair = two_primaries();
    for round in 0..20 {
        pair.write(round % 2, 0, round as u8, 8192).unwrap();
        pair.write(1 - round % 2, 8, round as u8 + 100, 8192).unwrap();
    }
    pair.settle();
    assert!(pair.differences().is_empty());
    assert!(both(&pair, ConnectionState::Connected, DiskState::UpToDate));
}
