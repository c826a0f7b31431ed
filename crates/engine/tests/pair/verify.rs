//! Online verify (io spec 16): it finds what differs and nothing else, whoever asks and whatever is written meanwhile.

use udrbd_engine::interface::{Command, DiskOptions, Event, Handler, NetOptions, Operation};
use udrbd_engine::state::StateChangeResult;
use udrbd_units::{ConnectionState, DiskState, Sector};
use udrbd_wire::{BlockId, Packet};

use crate::harness::{Pair, VOLUME};
use crate::{both, fast, promote};

const WRITE: Operation = Operation::Write { fua: false, preflush: false };
/// Sectors of the devices.
const SECTORS: u64 = 4096;

fn pair(verify_alg: &str) -> Pair {
    let mut pair = Pair::with_sectors(SECTORS);
    for node in 0..2 {
        pair.command(node, Command::DiskOptions { volume: VOLUME, options: Box::new(fast()) }).unwrap();
    }
    pair.connect(&NetOptions { verify_alg: verify_alg.to_owned(), ..NetOptions::default() });
    pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::Inconsistent));
    promote(&mut pair, 0, true);
    pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::UpToDate));
    pair
}

fn verify(pair: &mut Pair, node: usize, start: Option<u64>, stop: Option<u64>) {
    let (start, stop) = (start.map(Sector), stop.map(Sector));
    pair.command(node, Command::Verify { volume: VOLUME, start, stop }).unwrap();
}

fn verified(pair: &mut Pair) {
    pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::UpToDate));
    pair.settle();
}

fn out_of_sync(pair: &Pair) -> [u64; 2] {
    [0, 1].map(|node| pair.nodes[node].status().counters.out_of_sync_sectors)
}

fn plant(pair: &mut Pair, node: usize, sector: u64) {
    pair.nodes[node].disk.insert(sector, [0xee; 512]);
}

#[test]
fn planted_differences_are_found_and_repaired_by_a_reconnect() {
    let size = pair("crc32c").nodes[0].status().size.0;
    for (node, algorithm) in [(0, "crc32c"), (1, "md5"), (1, "sha1")] {
        let mut pair = pair(algorithm);
        // The first block, a run of two, a single one, and the last.
        let planted = [0, 803, 808, 1600, size - 1];
        for sector in planted {
            plant(&mut pair, 1, sector);
        }
        verify(&mut pair, node, None, None);
        verified(&mut pair);
        assert_eq!(out_of_sync(&pair), [40; 2], "{algorithm}");
        for side in &pair.nodes {
            assert!(side.says("Out of sync: start=0, size=8 (sectors)"));
            assert!(side.says("Out of sync: start=800, size=16 (sectors)"));
            assert!(side.says(&format!("Out of sync: start={}, size=8 (sectors)", size / 8 * 8 - 8)));
            assert!(side.says("Online verify found 5 4k block out of sync!"));
            assert_eq!(side.handlers.iter().filter(|handler| **handler == Handler::OutOfSync).count(), 1);
        }
        // What was found outlives a crash.
        pair.command(1, Command::Disconnect { force: false }).unwrap();
        pair.command(0, Command::Disconnect { force: false }).unwrap();
        let options = NetOptions { verify_alg: algorithm.to_owned(), ..NetOptions::default() };
        pair.connect(&options);
        pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::UpToDate));
        assert_eq!(pair.differences(), Vec::<u64>::new());
        assert_eq!(out_of_sync(&pair), [0; 2]);
    }
}

#[test]
fn a_part_is_verified_and_the_next_run_goes_on_there() {
    let mut pair = pair("crc32c");
    plant(&mut pair, 1, 100);
    plant(&mut pair, 1, 2100);
    verify(&mut pair, 0, Some(1003), Some(2000));
    verified(&mut pair);
    assert_eq!(out_of_sync(&pair), [0; 2]);
    assert!(pair.nodes[0].says("Starting Online Verify from sector 1000"), "{}", pair.describe());
    assert!(pair.nodes[0].says("Online Verify reached sector 2000"), "{}", pair.describe());
    verify(&mut pair, 0, None, None);
    verified(&mut pair);
    assert!(pair.nodes[0].says("Starting Online Verify from sector 2000"));
    assert_eq!(out_of_sync(&pair), [8; 2]);
    // And the one after that at the beginning.
    verify(&mut pair, 0, None, None);
    verified(&mut pair);
    assert_eq!(out_of_sync(&pair), [16; 2]);
}

#[test]
fn a_verify_needs_an_algorithm_and_a_peer() {
    let refused = |pair: &mut Pair, code: StateChangeResult| {
        let command = Command::Verify { volume: VOLUME, start: None, stop: None };
        let result = pair.command(0, command).unwrap_err();
        assert!(
            matches!(result, udrbd_engine::interface::Failure::State { code: found, .. } if found == code),
            "{result:?}"
        );
    };
    let mut without = pair("");
    refused(&mut without, StateChangeResult::NoVerifyAlg);
    let mut alone = pair("crc32c");
    alone.command(0, Command::Disconnect { force: false }).unwrap();
    refused(&mut alone, StateChangeResult::NeedConnection);
}

#[test]
fn the_end_of_the_connection_ends_a_verify_and_its_locks() {
    for node in 0..2 {
        let mut pair = pair("crc32c");
        pair.nodes[0].stuck = true;
        pair.nodes[1].stuck = true;
        verify(&mut pair, node, None, None);
        pair.settle();
        pair.break_wires();
        pair.settle();
        pair.unstick(0);
        pair.unstick(1);
        pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::UpToDate));
        assert!(pair.nodes[node].says("Online Verify reached sector 0"), "{}", pair.describe());
        // Nothing is locked: writes go on, and so does another verify.
        pair.write(0, 0, 5, 4096).unwrap();
        verify(&mut pair, node, None, None);
        verified(&mut pair);
        assert_eq!(out_of_sync(&pair), [0; 2]);
        assert_eq!([pair.buffers_owned(0), pair.buffers_owned(1)], [0; 2]);
    }
}

#[test]
fn a_digest_nobody_asked_for_costs_the_connection() {
    let mut pair = pair("crc32c");
    let socket = pair.socket(0, true).unwrap();
    let request = udrbd_wire::BlockRequest::new(Sector(0), BlockId::SYNCER, 4096);
    let event = Event::Packet {
        socket,
        volume: VOLUME,
        packet: Packet::VerifyReply(request),
        payload: None,
        payload_bytes: 0,
        bytes: Vec::new(),
        digest: None,
        intact: true,
    };
    pair.inject(0, event);
    pair.settle();
    assert!(pair.nodes[0].says("which was not asked for"));
}

/// The node that answers keeps writes out of a block until the other one has read its own, or the two would be compared
/// across a write.
#[test]
fn a_write_waits_until_its_block_is_judged() {
    let mut pair = pair("crc32c");
    pair.nodes[1].stuck = true;
    verify(&mut pair, 1, None, Some(64));
    // Node 1 has its answers and reads its own blocks.
    pair.until(|pair| pair.kept(1) > 0);
    pair.settle();
    let before = pair.packets.len();
    let write = pair.submit(0, WRITE, 0, &[7; 4096], 4096);
    pair.settle();
    let sent =
        |pair: &Pair| pair.packets[before..].iter().any(|(_, packet)| matches!(packet, Packet::Data(_)));
    assert!(!sent(&pair), "{}", pair.describe());
    pair.unstick(1);
    pair.until(|pair| pair.nodes[0].completions.contains_key(&write));
    assert!(sent(&pair));
    verified(&mut pair);
    assert_eq!(out_of_sync(&pair), [0; 2]);
}

/// Writes go on while a verify runs, in an order left to chance: nothing is reported, for nothing differs.
#[test]
fn writes_during_a_verify_are_no_differences() {
    let mut met = 0;
    for seed in 1..=40_u64 {
        let mut pair = pair("crc32c");
        // Two blocks at a time: the device is one extent, which is locked as long as any of them is under way.
        let slow = DiskOptions { resync_rate_kib: 80, ..fast() };
        for node in 0..2 {
            let options = Box::new(slow.clone());
            pair.command(node, Command::DiskOptions { volume: VOLUME, options }).unwrap();
        }
        pair.chance = Some(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        for node in 0..2 {
            pair.nodes[node].stuck = true;
        }
        let asking = pair.random(2);
        verify(&mut pair, asking, None, Some(256));
        let mut ids = Vec::new();
        for round in 0..4000 {
            if ids.len() < 200 && pair.random(8) == 0 {
                let (start, count) = (8 * pair.random(40) as u64, 8 * (1 + pair.random(4)));
                let data = vec![(round % 250) as u8 + 1; count * 512];
                ids.push(pair.submit(0, WRITE, start, &data, data.len() as u32));
            }
            if !pair.step() {
                pair.pass_ms(30);
            }
        }
        met += ids.iter().filter(|id| pair.nodes[0].completions.contains_key(id)).count();
        pair.chance = None;
        for node in 0..2 {
            pair.unstick(node);
        }
        verified(&mut pair);
        assert_eq!(out_of_sync(&pair), [0; 2], "seed {seed}\n{}", pair.describe());
        assert!(ids.iter().all(|id| pair.nodes[0].completions.contains_key(id)), "seed {seed}");
        assert_eq!(pair.differences(), Vec::<u64>::new(), "seed {seed}");
    }
    assert!(met > 1000, "only {met} writes were done");
}
