//! How fast a resync is, and to whom it gives way.

use udrbd_engine::interface::{Command, DiscardMode, DiskOptions, NetOptions, Operation};
use udrbd_units::{ConnectionState, DiskState};
use udrbd_wire::Packet;

use crate::harness::{Pair, VOLUME};
use crate::{both, fast, synced};

/// A resync of 40 MB/s, and `c-min-rate`.
fn paced(c_min_rate_kib: u32) -> DiskOptions {
    DiskOptions { c_plan_ahead: 0, resync_rate_kib: 40_000, c_min_rate_kib, ..DiskOptions::default() }
}

fn options(pair: &mut Pair, node: usize, options: DiskOptions) {
    pair.command(node, Command::DiskOptions { volume: VOLUME, options: Box::new(options) }).unwrap();
}

/// Milliseconds of a full resync of 20 MiB from node 0 to node 1, while clients of node 0 write 800 KB/s.
fn resync_under_load(least_kib: [u32; 2]) -> u64 {
    let mut pair = synced();
    for (node, least) in least_kib.into_iter().enumerate() {
        options(&mut pair, node, paced(least));
    }
    pair.command(1, Command::Invalidate { volume: VOLUME }).unwrap();
    let start = pair.now;
    for count in 0..2000 {
        if both(&pair, ConnectionState::Connected, DiskState::UpToDate) {
            break;
        }
        pair.write(0, count % 50 * 80, 7, 40_960).unwrap();
        pair.pass_ms(50);
    }
    assert!(both(&pair, ConnectionState::Connected, DiskState::UpToDate), "{}", pair.describe());
    assert!(pair.differences().is_empty());
    pair.now.since(start).as_millis() as u64
}

#[test]
fn a_resync_gives_way_to_applications_on_either_node() {
    let alone = resync_under_load([0, 0]);
    let (target, source) = (resync_under_load([0, 1000]), resync_under_load([1000, 0]));
    assert!(alone < 1500, "{alone} ms without c-min-rate");
    // 1000 KiB/s at the target, a pause before each request at the source.
    assert!(target > 10_000 && source > 2 * alone, "{alone} ms, {target} ms, {source} ms");
}

#[test]
fn what_applications_write_is_not_taken_for_the_resyncs_speed() {
    let mut pair = synced();
    for node in 0..2 {
        options(&mut pair, node, paced(1000));
    }
    pair.packets.clear();
    pair.command(1, Command::Invalidate { volume: VOLUME }).unwrap();
    // 8 MB/s to blocks the resync has not come to.
    for count in 0..20 {
        pair.write(0, 20_000 + count * 800, 7, 409_600).unwrap();
        pair.pass_ms(50);
    }
    let before = asked_for(&pair);
    for count in 0..160 {
        pair.write(0, 20_000 + count % 20 * 800, 7, 40_960).unwrap();
        pair.pass_ms(50);
    }
    let asked = asked_for(&pair) - before;
    assert!(asked > 4_000_000, "{asked} bytes in eight seconds, {before} before");
}

#[test]
fn a_resync_that_nobody_is_in_the_way_of_gives_way_to_nobody() {
    let mut pair = synced();
    for node in 0..2 {
        options(&mut pair, node, paced(250));
    }
    pair.command(1, Command::Invalidate { volume: VOLUME }).unwrap();
    pair.pass_ms(1500);
    assert!(both(&pair, ConnectionState::Connected, DiskState::UpToDate), "{}", pair.describe());
}

/// Requests of node 1: the first block, and how many there are.
fn requests(pair: &Pair) -> Vec<(u64, u32)> {
    let request = |(node, packet): &(usize, Packet)| match packet {
        Packet::ResyncDataRequest(request) | Packet::ChecksumResyncRequest(request) if *node == 1 => {
            Some((request.sector.0 / 8, request.size / 4096))
        }
        _ => None,
    };
    pair.packets.iter().filter_map(request).collect()
}

/// The first steps of a full resync as captured from two kernels (04-full-initial-sync): 7, 9, 11 and so on blocks where
/// the controller says 6, 8, 10.
#[test]
fn the_last_request_of_a_step_is_a_block_longer() {
    let mut pair = synced();
    options(&mut pair, 1, DiskOptions::default());
    pair.packets.clear();
    pair.command(1, Command::Invalidate { volume: VOLUME }).unwrap();
    pair.pass_ms(680);
    let captured = [
        (0, 7),
        (7, 1),
        (8, 8),
        (16, 11),
        (27, 1),
        (28, 4),
        (32, 8),
        (40, 8),
        (48, 7),
        (55, 1),
        (56, 8),
        (64, 8),
        (72, 8),
        (80, 11),
    ];
    assert_eq!(requests(&pair)[..captured.len()], captured);
}

/// The largest request of a resync, in blocks, while clients of the source write for two seconds, after the first ones; and how many
/// requests there are until then.
fn largest_while_busy(pair: &mut Pair) -> (Option<u32>, usize) {
    for node in 0..2 {
        options(pair, node, paced(if node == 1 { 2000 } else { 0 }));
    }
    pair.packets.clear();
    pair.command(1, Command::Invalidate { volume: VOLUME }).unwrap();
    let mut first = 0;
    for count in 0..40 {
        pair.write(0, 20_000 + count * 80, 7, 40_960).unwrap();
        pair.pass_ms(50);
        if count == 1 {
            first = requests(pair).len();
        }
    }
    let asked = requests(pair);
    (asked[first..].iter().map(|(_, blocks)| *blocks).max(), asked.len())
}

#[test]
fn a_resync_asks_for_little_at_a_time_while_applications_are_busy() {
    let mut pair = synced();
    // A tenth of a second of 2000 KiB/s, 200 KiB, rounded up to a power of two.
    let (largest, asked) = largest_while_busy(&mut pair);
    assert_eq!(largest, Some(64));
    // When nobody is in the way any more.
    pair.pass(1);
    assert!(requests(&pair)[asked..].iter().any(|(_, blocks)| *blocks > 64));
}

/// How much is found different depends on how much a digest is of: that stays what it is with DRBD.
#[test]
fn digests_of_a_resync_are_of_the_same_blocks_while_applications_are_busy() {
    let mut pair = synced();
    for node in 0..2 {
        let net = NetOptions { csums_alg: "crc32c".to_owned(), ..NetOptions::default() };
        pair.command(node, Command::NetOptions(Box::new(net))).unwrap();
    }
    let (largest, _) = largest_while_busy(&mut pair);
    assert_eq!(largest, Some(256));
}

/// Bytes that node 1 has asked for.
fn asked_for(pair: &Pair) -> u32 {
    let request = |(node, packet): &(usize, Packet)| match packet {
        Packet::ResyncDataRequest(request) if *node == 1 => Some(request.size),
        _ => None,
    };
    pair.packets.iter().filter_map(request).sum()
}

/// A full resync of 20 MiB to node 1 at 400 MB/s has begun; its disk, or that of its source, does not answer.
fn resync_without_answers(stuck: usize) -> Pair {
    let mut pair = synced();
    pair.packets.clear();
    pair.command(1, Command::Invalidate { volume: VOLUME }).unwrap();
    pair.nodes[stuck].stuck = true;
    pair.pass(2);
    pair
}

#[test]
fn a_resync_is_as_fast_as_the_disks_where_the_rate_allows_it() {
    let mut pair = synced();
    pair.command(1, Command::Invalidate { volume: VOLUME }).unwrap();
    // 40 MB may be asked for in the first step, half of `max-buffers` at a time.
    pair.pass_ms(90);
    assert!(both(&pair, ConnectionState::Connected, DiskState::UpToDate), "{}", pair.describe());
}

#[test]
fn no_more_is_asked_for_than_half_of_max_buffers_before_something_arrives() {
    let mut pair = resync_without_answers(0);
    assert_eq!(asked_for(&pair), 4 << 20);
    pair.unstick(0);
    pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::UpToDate));
}

#[test]
fn no_more_arrives_than_max_buffers_before_something_is_written() {
    let mut pair = resync_without_answers(1);
    assert_eq!(asked_for(&pair), 8 << 20);
    pair.unstick(1);
    pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::UpToDate));
}

#[test]
fn a_resync_is_never_faster_than_its_rate() {
    let mut pair = synced();
    options(&mut pair, 1, DiskOptions { resync_rate_kib: 80_000, ..fast() });
    pair.packets.clear();
    pair.command(1, Command::Invalidate { volume: VOLUME }).unwrap();
    pair.pass_ms(90);
    assert_eq!(asked_for(&pair), 80_000 * 1024 / 10 / 4096 * 4096);
    pair.pass_ms(100);
    assert_eq!(asked_for(&pair), 2 * (80_000 * 1024 / 10 / 4096 * 4096));
}

/// A request that is cut for want of room asks for less than a granule, and a hole is copied.
#[test]
fn a_thin_resync_at_full_speed_cuts_no_granule() {
    let mut pair = synced();
    for node in 0..2 {
        options(&mut pair, node, DiskOptions { rs_discard_granularity_bytes: 65536, ..fast() });
    }
    pair.command(1, Command::Disconnect { force: false }).unwrap();
    // An odd number of blocks before the hole, so that what there is room for never ends with a granule.
    for block in [0, 2, 4, 6, 8] {
        pair.write(0, block * 8, 1, 4096).unwrap();
    }
    let id = pair.submit(0, Operation::Discard, 1 << 11, &[], 12 << 20);
    pair.until(|pair| pair.nodes[0].completions.contains_key(&id));
    pair.packets.clear();
    pair.command(1, Command::Connect(Box::default())).unwrap();
    pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::UpToDate));
    // The hole is made as a discard makes one, which is more than zeroes on disks that give nothing back for those.
    let discards = &pair.nodes[1].discards;
    assert!(discards.iter().all(|(_, mode)| *mode == DiscardMode::Discard), "{discards:?}");
    let thin =
        pair.packets.iter().filter(|(_, packet)| matches!(packet, Packet::ResyncThinRequest(_))).count();
    assert_eq!((thin, asked_for(&pair)), ((12 << 20) / 65536, 5 * 4096));
}
