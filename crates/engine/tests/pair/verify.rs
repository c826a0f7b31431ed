//! Online verify (io spec 16): it finds what differs and nothing else, whoever asks and whatever is written meanwhile.

use udrbd_engine::interface::{Command, DiskOptions, Event, Handler, NetOptions};
use udrbd_engine::state::StateChangeResult;
use udrbd_units::{ConnectionState, DiskState, Sector};
use udrbd_wire::{BlockId, Packet};

use crate::harness::{Pair, VOLUME};
use crate::stuck::WRITE;
use crate::{both, fast, promote};

/// Sectors of the devices.
const SECTORS: u64 = 4096;

fn pair(verify_alg: &str) -> Pair {
    synced(Pair::with_sectors(SECTORS), verify_alg)
}

fn synced(mut pair: Pair, verify_alg: &str) -> Pair {
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

/// What node `node` asked for: first sectors and bytes.
fn asked(pair: &Pair, node: usize) -> Vec<(u64, u32)> {
    let request = |(sender, packet): &(usize, Packet)| match packet {
        Packet::VerifyRequest(request) if *sender == node => Some((request.sector.0, request.size)),
        _ => None,
    };
    pair.packets.iter().filter_map(request).collect()
}

#[test]
fn ranges_are_asked_for_and_what_differs_in_one_is_found_to_the_block() {
    let mut pair = pair("crc32c");
    let size = pair.nodes[0].status().size.0;
    pair.packets.clear();
    verify(&mut pair, 1, None, None);
    verified(&mut pair);
    let whole = asked(&pair, 1);
    assert!(whole.iter().all(|(_, bytes)| *bytes <= 256 << 10), "{whole:?}");
    assert!(whole.iter().filter(|(_, bytes)| *bytes == 256 << 10).count() as u64 >= size / 512 - 1);
    assert_eq!(whole.iter().map(|(_, bytes)| u64::from(*bytes) / 512).sum::<u64>(), size);
    // The first and the last block of a range, two that touch across a border of ranges, and the last of the device.
    for sector in [512, 1023, 1528, 1536, size - 1] {
        plant(&mut pair, 0, sector);
    }
    verify(&mut pair, 1, None, None);
    verified(&mut pair);
    assert_eq!(out_of_sync(&pair), [40; 2]);
    for side in &pair.nodes {
        let found: Vec<&String> = side.log.iter().filter(|line| line.starts_with("Out of sync:")).collect();
        let last = format!("Out of sync: start={}, size=8 (sectors)", size / 8 * 8 - 8);
        let expected = [
            "Out of sync: start=512, size=8 (sectors)",
            "Out of sync: start=1016, size=8 (sectors)",
            "Out of sync: start=1528, size=16 (sectors)",
            &last,
        ];
        assert_eq!(found, expected);
    }
}

#[test]
fn a_peer_that_counts_results_is_asked_for_single_blocks() {
    let mut pair = Pair::with_sectors(SECTORS);
    pair.plain = true;
    let mut pair = synced(pair, "crc32c");
    let size = pair.nodes[0].status().size.0;
    plant(&mut pair, 0, 1023);
    for node in 0..2 {
        pair.packets.clear();
        verify(&mut pair, node, None, None);
        verified(&mut pair);
        let blocks = asked(&pair, node);
        assert_eq!(blocks.len() as u64, size.div_ceil(8));
        assert!(blocks.iter().all(|(_, bytes)| *bytes <= 4096));
        assert_eq!(out_of_sync(&pair), [8; 2]);
    }
}

#[test]
fn a_verify_is_as_fast_as_the_disks_where_the_rate_allows_it() {
    for plain in [false, true] {
        let mut pair = Pair::new();
        pair.plain = plain;
        let mut pair = synced(pair, "crc32c");
        verify(&mut pair, 0, None, None);
        // 20 MiB: five times what may be on the way at a time.
        pair.pass_ms(90);
        assert!(both(&pair, ConnectionState::Connected, DiskState::UpToDate), "{}", pair.describe());
        assert!(pair.nodes[0].says("Online verify done"));
    }
}

#[test]
fn no_more_is_verified_in_a_step_than_the_rate_allows() {
    let mut pair = pair("crc32c");
    for node in 0..2 {
        let options = Box::new(DiskOptions { resync_rate_kib: 4000, ..fast() });
        pair.command(node, Command::DiskOptions { volume: VOLUME, options }).unwrap();
    }
    pair.packets.clear();
    verify(&mut pair, 0, None, None);
    pair.pass_ms(50);
    for steps in 1..=4 {
        let bytes: u32 = asked(&pair, 0).iter().map(|(_, bytes)| *bytes).sum();
        assert_eq!(bytes, (steps * 400) << 10);
        pair.pass_ms(100);
    }
}

/// A full verify of 20 MiB has begun; the disk of one node does not answer. What is asked for, in bytes.
fn asked_without_answers(stuck: usize) -> u32 {
    let mut pair = synced(Pair::new(), "crc32c");
    pair.packets.clear();
    pair.nodes[stuck].stuck = true;
    verify(&mut pair, 0, None, None);
    pair.pass(2);
    let bytes = asked(&pair, 0).iter().map(|(_, bytes)| *bytes).sum();
    pair.unstick(stuck);
    verified(&mut pair);
    assert!(pair.nodes[0].says("Online verify done"));
    bytes
}

#[test]
fn no_more_is_asked_for_than_max_buffers_allow() {
    assert_eq!(asked_without_answers(1), 4 << 20, "half of them before something arrives");
    assert_eq!(asked_without_answers(0), 8 << 20, "all of them before something is compared");
}

/// Disks answer in any order: where the last block before the stop sector is judged first, the others are still locked, and
/// judged.
#[test]
fn a_verify_stops_when_all_before_the_stop_sector_has_been_judged() {
    let mut pair = Pair::with_sectors(SECTORS);
    pair.plain = true;
    let mut pair = synced(pair, "crc32c");
    plant(&mut pair, 1, 0);
    pair.nodes[0].stuck = true;
    verify(&mut pair, 0, None, Some(64));
    pair.until(|pair| pair.kept(0) == 8);
    pair.unstick_one(0, 7);
    pair.pass_ms(1000);
    assert!(!pair.nodes[0].says("Online verify done"), "{}", pair.describe());
    let write = pair.submit(0, WRITE, 8, &[7; 4096], 4096);
    pair.settle();
    assert!(!pair.nodes[0].completions.contains_key(&write), "a block that is being compared is written to");
    pair.unstick(0);
    pair.until(|pair| pair.nodes[0].completions.contains_key(&write));
    verified(&mut pair);
    assert_eq!(out_of_sync(&pair), [8; 2]);
    for side in &pair.nodes {
        assert!(side.says("Online Verify reached sector 64"), "{}", pair.describe());
    }
}

/// What is judged behind a block that is not does not count as reached: the next run would leave that block out.
#[test]
fn a_verify_that_was_cut_short_goes_on_with_the_first_block_that_was_not_judged() {
    let mut pair = Pair::with_sectors(SECTORS);
    pair.plain = true;
    let mut pair = synced(pair, "crc32c");
    plant(&mut pair, 1, 24);
    pair.nodes[0].stuck = true;
    verify(&mut pair, 0, None, Some(64));
    pair.until(|pair| pair.kept(0) == 8);
    for place in [7, 5, 0, 1, 2] {
        // 0, 8, 16, 24: the rest moves up.
        pair.unstick_one(0, if place > 2 { place } else { 0 });
    }
    pair.settle();
    pair.break_wires();
    pair.settle();
    pair.unstick(0);
    pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::UpToDate));
    for side in &pair.nodes {
        assert!(side.says("Online Verify reached sector 24"), "{}", pair.describe());
    }
    for node in 0..2 {
        pair.packets.clear();
        verify(&mut pair, node, None, None);
        verified(&mut pair);
        assert_eq!(asked(&pair, node)[0].0, if node == 0 { 24 } else { 0 });
        assert_eq!(out_of_sync(&pair), [8; 2]);
    }
}

/// Bytes that are asked for in ten seconds while clients of node 0 write 800 KB/s.
fn verified_under_load(least_kib: [u32; 2]) -> u32 {
    let mut pair = synced(Pair::with_sectors(400_000), "crc32c");
    for (node, c_min_rate_kib) in least_kib.into_iter().enumerate() {
        let options = Box::new(DiskOptions { resync_rate_kib: 40_000, c_min_rate_kib, ..fast() });
        pair.command(node, Command::DiskOptions { volume: VOLUME, options }).unwrap();
    }
    pair.packets.clear();
    verify(&mut pair, 1, None, None);
    let start = pair.now;
    for count in 0.. {
        if pair.now.since(start).as_secs() >= 10 || pair.nodes[1].says("Online verify done") {
            break;
        }
        pair.write(0, count % 50 * 80, 7, 40_960).unwrap();
        pair.pass_ms(50);
    }
    verified_bytes(&pair)
}

fn verified_bytes(pair: &Pair) -> u32 {
    asked(pair, 1).iter().map(|(_, bytes)| *bytes).sum()
}

#[test]
fn a_verify_gives_way_to_applications_on_either_node() {
    let alone = verified_under_load([0, 0]);
    let (asking, answering) = (verified_under_load([0, 1000]), verified_under_load([1000, 0]));
    // 1000 KiB/s at the node that asks, a pause before each request at the other.
    assert!(alone > 150 << 20, "{} MiB without c-min-rate", alone >> 20);
    assert!(asking < 40 << 20 && answering < alone / 2, "{} MiB, {} MiB", asking >> 20, answering >> 20);
}

/// Disks answer in any order: runs of different blocks are told in that of the sectors, whole and each once.
#[test]
fn what_differs_is_told_in_the_order_of_sectors() {
    let mut pair = Pair::with_sectors(SECTORS);
    pair.plain = true;
    let mut pair = synced(pair, "crc32c");
    for sector in [0, 8, 24, 40, 48, 56] {
        plant(&mut pair, 1, sector);
    }
    pair.nodes[0].stuck = true;
    verify(&mut pair, 0, None, Some(64));
    pair.until(|pair| pair.kept(0) == 8);
    for place in [1, 6, 3, 0, 3, 1, 1, 0] {
        pair.unstick_one(0, place);
        pair.settle();
    }
    pair.nodes[0].stuck = false;
    verified(&mut pair);
    for side in &pair.nodes {
        let found: Vec<&String> = side.log.iter().filter(|line| line.starts_with("Out of sync:")).collect();
        let runs = ["start=0, size=16", "start=24, size=8", "start=40, size=24"];
        assert_eq!(found, runs.map(|run| format!("Out of sync: {run} (sectors)")).iter().collect::<Vec<_>>());
    }
    assert_eq!(out_of_sync(&pair), [48; 2]);
}

#[test]
fn a_verify_right_after_another_ends_on_both_nodes() {
    for node in 0..2 {
        let mut pair = pair("crc32c");
        verify(&mut pair, node, None, None);
        pair.until(|pair| pair.nodes[node].status().connection == ConnectionState::Connected);
        // The other node may still wait for a sign of life before it ends the first.
        verify(&mut pair, node, None, None);
        verified(&mut pair);
        for side in &pair.nodes {
            let done = side.log.iter().filter(|line| line.contains("Online verify done")).count();
            assert_eq!(done, 2, "{}", pair.describe());
        }
    }
}
