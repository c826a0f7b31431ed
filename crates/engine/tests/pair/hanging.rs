//! Disks that never answer, and how everybody goes on without them.

use udrbd_engine::interface::{ClientError, Command, DiskOptions, Duration, Handler, OnIoError, Operation};
use udrbd_units::{ConnectionState, DiskState, Role};

use crate::harness::{Pair, VOLUME};
use crate::stuck::WRITE;
use crate::{both, demote, fast, promote, synced};

const FORCE: Command = Command::Detach { volume: VOLUME, force: true };
/// Sectors of an extent of the activity log.
const EXTENT: u64 = 8192;

/// Nothing the disk of a node is asked for ends any more.
fn hang(pair: &mut Pair, node: usize) {
    let node = &mut pair.nodes[node];
    (node.stuck, node.stuck_metadata, node.hanging) = (true, true, true);
}

/// The disk answers after all.
fn revive(pair: &mut Pair, node: usize) {
    pair.nodes[node].hanging = false;
    pair.unstick(node);
    pair.settle();
}

fn set_timeout(pair: &mut Pair, node: usize, on_io_error: OnIoError) {
    let options = DiskOptions { disk_timeout: Duration::from_secs(2), on_io_error, ..fast() };
    pair.command(node, Command::DiskOptions { volume: VOLUME, options: Box::new(options) }).unwrap();
}

fn disk(pair: &Pair, node: usize) -> DiskState {
    pair.nodes[node].status().disk
}

/// The disk answers, is attached again, and gets what it missed.
fn heal(pair: &mut Pair, node: usize) {
    revive(pair, node);
    pair.until(|pair| disk(pair, node) == DiskState::Diskless);
    assert_eq!(pair.nodes[node].open_disks, 0);
    pair.attach(node, fast()).unwrap();
    pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::UpToDate));
    assert_eq!(pair.differences(), Vec::<u64>::new(), "{}", pair.describe());
    for node in 0..2 {
        assert_eq!(pair.buffers_owned(node), 0, "{}", pair.describe());
    }
}

#[test]
fn what_hangs_at_a_disk_that_is_detached_by_force_ends_with_the_peers_answer() {
    let mut pair = synced();
    pair.write(0, 0, 1, 4096).unwrap();
    hang(&mut pair, 0);
    pair.nodes[0].completions.clear();
    let write = pair.submit(0, WRITE, 8, &[2; 4096], 4096);
    let read = pair.submit(0, Operation::Read, 0, &[], 4096);
    pair.settle();
    assert!(pair.nodes[0].completions.is_empty());
    pair.command(0, FORCE).unwrap();
    pair.settle();
    assert_eq!(pair.nodes[0].completions[&write].0, Ok(()), "{}", pair.describe());
    assert_eq!(pair.nodes[0].completions[&read], (Ok(()), vec![1; 4096]));
    // The kernel still has the operations: nothing may come in their place.
    assert_eq!(disk(&pair, 0), DiskState::Failed);
    assert_eq!(pair.nodes[1].status().peer_disk, DiskState::Failed);
    assert!(pair.attach(0, fast()).is_err());
    pair.write(0, 16, 3, 4096).unwrap();
    assert_eq!(pair.read(0, 8, 4096).unwrap(), vec![2; 4096]);
    heal(&mut pair, 0);
}

#[test]
fn a_disk_that_misses_its_timeout_goes() {
    for policy in [OnIoError::Detach, OnIoError::PassOn, OnIoError::CallLocalIoError] {
        let mut pair = synced();
        set_timeout(&mut pair, 0, policy);
        pair.write(0, 0, 1, 4096).unwrap();
        pair.nodes[0].stuck = true;
        let early = pair.submit(0, WRITE, 8, &[2; 4096], 4096);
        pair.pass(1);
        assert!(!pair.nodes[0].completions.contains_key(&early), "it is given up too early");
        let late = pair.submit(0, WRITE, 16, &[3; 4096], 4096);
        pair.pass_ms(1001);
        for id in [early, late] {
            assert_eq!(pair.nodes[0].completions[&id].0, Ok(()), "{}", pair.describe());
        }
        assert!(pair.nodes[0].says("Local backing device failed to meet the disk-timeout"));
        assert_eq!(disk(&pair, 0), DiskState::Failed);
        let called = pair.nodes[0].handlers.contains(&Handler::LocalIoError);
        assert_eq!(called, policy == OnIoError::CallLocalIoError);
        heal(&mut pair, 0);
    }
}

#[test]
fn a_slow_disk_keeps_its_timeout() {
    let mut pair = synced();
    set_timeout(&mut pair, 0, OnIoError::Detach);
    for value in 1..6 {
        pair.nodes[0].stuck = true;
        let write = pair.submit(0, WRITE, 0, &[value; 4096], 4096);
        pair.pass_ms(1500);
        revive(&mut pair, 0);
        assert_eq!(pair.nodes[0].completions[&write].0, Ok(()));
    }
    assert_eq!(disk(&pair, 0), DiskState::UpToDate);
}

#[test]
fn metadata_that_cannot_be_written_block_nobody() {
    let mut pair = synced();
    set_timeout(&mut pair, 0, OnIoError::Detach);
    pair.nodes[0].stuck_metadata = true;
    // A cold extent: the write waits for its transaction.
    let write = pair.submit(0, WRITE, EXTENT, &[1; 4096], 4096);
    pair.pass(3);
    assert_eq!(pair.nodes[0].completions[&write].0, Ok(()), "{}", pair.describe());
    assert!(pair.nodes[0].says("meta-data IO operation timed out"));
    pair.write(0, 2 * EXTENT, 2, 4096).unwrap();
    heal(&mut pair, 0);
}

#[test]
fn without_another_copy_requests_fail() {
    let mut pair = synced();
    pair.write(0, 0, 1, 4096).unwrap();
    for node in [1, 0] {
        pair.command(node, Command::Disconnect { force: false }).unwrap();
    }
    hang(&mut pair, 0);
    let write = pair.submit(0, WRITE, 0, &[2; 4096], 4096);
    let read = pair.submit(0, Operation::Read, 8, &[], 4096);
    pair.settle();
    pair.command(0, FORCE).unwrap();
    pair.settle();
    for id in [write, read] {
        assert_eq!(pair.nodes[0].completions[&id].0, Err(ClientError::Io), "{}", pair.describe());
    }
    assert!(pair.write(0, 0, 3, 4096).is_err());
    assert_eq!(pair.buffers_owned(0), 0);
}

#[test]
fn a_primary_goes_on_when_its_peers_disk_hangs_and_is_let_go() {
    for timeout in [false, true] {
        let mut pair = synced();
        if timeout {
            set_timeout(&mut pair, 1, OnIoError::Detach);
        }
        hang(&mut pair, 1);
        let write = pair.submit(0, WRITE, 0, &[1; 4096], 4096);
        pair.settle();
        assert!(!pair.nodes[0].completions.contains_key(&write));
        if timeout {
            pair.pass(3);
        } else {
            pair.command(1, FORCE).unwrap();
            pair.settle();
        }
        assert_eq!(pair.nodes[0].completions[&write].0, Ok(()), "{}", pair.describe());
        assert_eq!(pair.nodes[0].status().connection, ConnectionState::Connected);
        pair.write(0, 8, 2, 4096).unwrap();
        heal(&mut pair, 1);
    }
}

#[test]
fn a_disk_without_anything_in_flight_is_let_go_in_good_order() {
    let mut pair = synced();
    pair.command(1, Command::Disconnect { force: false }).unwrap();
    pair.write(0, 0, 1, 4096).unwrap();
    pair.settle();
    pair.command(0, FORCE).unwrap();
    pair.until(|pair| disk(pair, 0) == DiskState::Diskless);
    demote(&mut pair, 0);
    pair.attach(0, fast()).unwrap();
    // The extent of the activity log, as after any detach of a Primary.
    assert_eq!(pair.nodes[0].status().counters.out_of_sync_sectors, EXTENT, "{}", pair.describe());
    pair.command(0, FORCE).unwrap();
    pair.until(|pair| disk(pair, 0) == DiskState::Diskless);
    pair.command(0, FORCE).unwrap();
    assert_eq!(disk(&pair, 0), DiskState::Diskless);
}

#[test]
fn down_does_not_wait_for_ever() {
    // Which node's disk hangs, and whether the peer is there.
    for (node, connected) in [(0, true), (1, true), (0, false)] {
        let mut pair = synced();
        if !connected {
            pair.command(1, Command::Disconnect { force: false }).unwrap();
        }
        pair.write(0, 0, 1, 4096).unwrap();
        pair.settle();
        hang(&mut pair, node);
        if node == 1 {
            pair.submit(0, WRITE, 8, &[2; 4096], 4096);
            pair.settle();
        }
        let id = pair.begin_command(node, Command::Down);
        pair.pass(59);
        assert!(!pair.nodes[node].replies.contains_key(&id), "it waits a minute\n{}", pair.describe());
        pair.pass(62);
        let reply = pair.nodes[node].replies.remove(&id);
        assert_eq!(reply, Some(Ok(())), "node {node}\n{}", pair.describe());
        assert!(pair.nodes[node].engine.as_ref().unwrap().status().volumes.is_empty());
        revive(&mut pair, node);
    }
}

#[test]
fn down_gives_a_disk_that_answers_slowly_its_time() {
    let mut pair = synced();
    pair.command(1, Command::Disconnect { force: false }).unwrap();
    for extent in 0..4 {
        pair.write(0, extent * EXTENT, 1, 4096).unwrap();
    }
    hang(&mut pair, 0);
    let id = pair.begin_command(0, Command::Down);
    for _ in 0..8 {
        pair.pass(40);
        if pair.kept(0) > 0 {
            pair.unstick_first(0);
        }
        pair.settle();
    }
    assert_eq!(pair.nodes[0].replies.remove(&id), Some(Ok(())), "{}", pair.describe());
    assert!(!pair.nodes[0].says("does not answer"), "{}", pair.describe());
}

#[test]
fn an_attach_that_hangs_ends() {
    for timeout in [false, true] {
        let mut pair = Pair::down(20 * 2048);
        pair.start_diskless(0, udrbd_engine::interface::ResourceOptions::default());
        pair.nodes[0].stuck_metadata_reads = true;
        let disk_timeout = if timeout { Duration::from_secs(2) } else { Duration::ZERO };
        let id = pair.begin_attach(0, DiskOptions { disk_timeout, ..fast() });
        pair.pass(1);
        assert_eq!(disk(&pair, 0), DiskState::Attaching);
        if timeout {
            pair.pass(3);
            assert!(pair.nodes[0].says("meta-data IO operation timed out"));
        } else {
            pair.command(0, FORCE).unwrap();
            pair.settle();
        }
        assert!(pair.nodes[0].replies.remove(&id).unwrap().is_err(), "{}", pair.describe());
        assert_eq!(disk(&pair, 0), DiskState::Diskless);
        // The answers of the first attach come while the second one reads.
        let id = pair.begin_attach(0, fast());
        pair.settle();
        revive(&mut pair, 0);
        assert_eq!(pair.nodes[0].replies.remove(&id), Some(Ok(())), "{}", pair.describe());
    }
}

/// Writes and reads in an order left to chance, while the disk of a node hangs and is given up at any moment.
fn play(seed: u64) {
    let mut pair = synced();
    pair.chance = Some(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let node = pair.random(2);
    for other in 0..2 {
        pair.nodes[other].stuck = true;
    }
    let (hangs, goes) = (pair.random(120), 120 + pair.random(60));
    let mut written: Vec<(u64, u64, u8)> = Vec::new();
    let mut reads = Vec::new();
    let mut force = None;
    for turn in 0..300 {
        if turn == hangs {
            hang(&mut pair, node);
        }
        if turn == goes {
            force = Some(pair.begin_command(node, FORCE));
        }
        if turn % 5 == 0 && turn < 250 {
            // Each block once: the last value is known.
            let sector = (turn as u64 / 5 % 10) * EXTENT / 4 + turn as u64 / 50 * 8;
            let value = turn as u8 + 1;
            let id = pair.submit(0, WRITE, sector, &[value; 4096], 4096);
            written.push((id, sector, value));
        }
        if turn % 7 == 0 {
            reads.push(pair.submit(0, Operation::Read, pair.sectors / 2, &[], 4096));
        }
        pair.step();
    }
    while pair.step() {}
    let (chance, replies) = (pair.chance.take(), &pair.nodes[node].replies);
    assert!(chance.is_some() && replies.contains_key(&force.unwrap()), "seed {seed}");
    for other in 0..2 {
        if other != node {
            pair.unstick(other);
        }
    }
    pair.settle();
    for id in written.iter().map(|(id, ..)| id).chain(&reads) {
        let result = pair.nodes[0].completions.get(id).map(|(result, _)| *result);
        assert_eq!(result, Some(Ok(())), "seed {seed}: {id}\n{}", pair.describe());
    }
    heal(&mut pair, node);
    for (_, sector, value) in written {
        assert_eq!(pair.nodes[0].load(sector, 4096), vec![value; 4096], "seed {seed}: {sector}");
    }
}

#[test]
fn whenever_a_disk_hangs_and_is_given_up_nothing_is_lost() {
    let seeds = if std::env::var_os("UDRBD_TEST_LONG").is_some() { 20_000 } else { 40 };
    (1..=seeds).for_each(play);
}

#[test]
fn a_resync_whose_target_hangs_ends_when_it_is_let_go() {
    let mut pair = synced();
    pair.command(1, Command::Disconnect { force: false }).unwrap();
    pair.write(0, 0, 1, 1 << 20).unwrap();
    hang(&mut pair, 1);
    pair.nodes[1].stuck_metadata = false;
    pair.command(1, Command::Connect(Box::default())).unwrap();
    pair.until(|pair| pair.nodes[1].status().connection == ConnectionState::SyncTarget);
    pair.pass(1);
    pair.command(1, FORCE).unwrap();
    pair.settle();
    assert_eq!(pair.nodes[0].status().connection, ConnectionState::Connected, "{}", pair.describe());
    pair.write(0, 0, 2, 4096).unwrap();
    assert_eq!(pair.nodes[0].status().role, Role::Primary);
    heal(&mut pair, 1);
    demote(&mut pair, 0);
    promote(&mut pair, 1, false);
}
