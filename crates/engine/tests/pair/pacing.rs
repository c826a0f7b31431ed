//! How fast a resync is, and to whom it gives way.

use udrbd_engine::interface::{Command, DiskOptions};
use udrbd_units::{ConnectionState, DiskState};

use crate::harness::{Pair, VOLUME};
use crate::{both, synced};

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
fn a_resync_that_nobody_is_in_the_way_of_gives_way_to_nobody() {
    let mut pair = synced();
    for node in 0..2 {
        options(&mut pair, node, paced(250));
    }
    pair.command(1, Command::Invalidate { volume: VOLUME }).unwrap();
    pair.pass_ms(1500);
    assert!(both(&pair, ConnectionState::Connected, DiskState::UpToDate), "{}", pair.describe());
}
