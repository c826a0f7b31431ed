//! Two Primaries that write the same blocks at the same time (io spec 9): whoever wins, both copies are the same.

use std::collections::HashMap;

use udrbd_engine::interface::{Command, DiskOptions, Fencing, NetOptions, Operation};
use udrbd_units::{ConnectionState, DiskState, Role};
use udrbd_wire::Packet;

use crate::harness::{Pair, VOLUME};
use crate::stuck::WRITE;
use crate::{both, fast, promote};

fn two_primaries() -> Pair {
    let mut pair = Pair::with_sectors(2048);
    for node in 0..2 {
        let options = Box::new(fast());
        pair.command(node, Command::DiskOptions { volume: VOLUME, options }).unwrap();
    }
    pair.connect(&NetOptions { allow_two_primaries: true, ..NetOptions::default() });
    pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::Inconsistent));
    promote(&mut pair, 0, true);
    pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::UpToDate));
    promote(&mut pair, 1, false);
    pair.settle();
    pair
}

/// A write, and when it began and ended.
struct Write {
    node: usize,
    id: u64,
    sectors: std::ops::Range<u64>,
    value: u8,
    begun: usize,
    ended: Option<usize>,
}

/// Lets both nodes write to a few blocks, in an order left to chance, and looks at what comes of it.
fn play(seed: u64, writes_of_each: usize) -> HashMap<&'static str, usize> {
    let mut pair = two_primaries();
    let before = pair.packets.len();
    pair.chance = Some(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    for node in 0..2 {
        pair.nodes[node].stuck = true;
    }
    let mut writes: Vec<Write> = Vec::new();
    let mut time = 0;
    let deep = 1 + pair.random(6);
    loop {
        time += 1;
        let open = writes.iter().filter(|write| write.ended.is_none()).count();
        if writes.len() < 2 * writes_of_each && open < deep && pair.random(3) == 0 {
            let node = pair.random(2);
            let whole = pair.random(4) > 0;
            let (start, count) = if whole {
                (8 * pair.random(6), 8 * (1 + pair.random(3)))
            } else {
                (pair.random(48), 1 + pair.random(12))
            };
            let (start, count) = (start as u64, count as u64);
            let value = writes.len() as u8 + 1;
            let data = vec![value; count as usize * 512];
            let zeroes = whole && pair.random(8) == 0;
            let (operation, value) =
                if zeroes { (Operation::WriteZeroes { may_unmap: true }, 0) } else { (WRITE, value) };
            let id = pair.submit(node, operation, start, &data, data.len() as u32);
            writes.push(Write { node, id, sectors: start..start + count, value, begun: time, ended: None });
        }
        let moved = pair.step();
        for write in writes.iter_mut().filter(|write| write.ended.is_none()) {
            if let Some((result, _)) = pair.nodes[write.node].completions.get(&write.id) {
                assert_eq!(*result, Ok(()), "seed {seed}\n{}", pair.describe());
                write.ended = Some(time);
            }
        }
        let over = writes.len() == 2 * writes_of_each;
        if over && !moved {
            break;
        }
        assert!(time < 100_000, "seed {seed}: it takes too long\n{}", pair.describe());
    }
    let stuck: Vec<_> = writes.iter().filter(|write| write.ended.is_none()).map(|write| write.id).collect();
    assert!(stuck.is_empty(), "seed {seed}: {stuck:?} never end\n{}", pair.describe());
    for node in 0..2 {
        pair.unstick(node);
    }
    pair.chance = None;
    pair.settle();
    assert!(both(&pair, ConnectionState::Connected, DiskState::UpToDate), "seed {seed}\n{}", pair.describe());
    assert_eq!(pair.differences(), Vec::<u64>::new(), "seed {seed}\n{}", pair.describe());
    for node in 0..2 {
        let status = pair.nodes[node].status();
        assert_eq!(status.counters.out_of_sync_sectors, 0, "seed {seed}");
        assert_eq!(pair.buffers_owned(node), 0, "seed {seed}");
    }
    for sector in 0..60 {
        let value = pair.nodes[0].load(sector, 1)[0];
        let over = |write: &Write| write.sectors.contains(&sector);
        // The last of all writes to this sector may be any that no other one followed.
        let allowed = |last: &Write| {
            let end = last.ended.unwrap_or(usize::MAX);
            over(last) && !writes.iter().any(|later| over(later) && later.begun > end)
        };
        let good = writes.iter().any(|write| write.value == value && allowed(write))
            || (value == 0 && !writes.iter().any(over));
        assert!(
            good,
            "seed {seed}: sector {sector} has {value}, which another write followed\n{}",
            pair.describe()
        );
    }
    let mut seen = HashMap::new();
    for (_, packet) in &pair.packets[before..] {
        match packet {
            Packet::Superseded(_) => *seen.entry("superseded").or_default() += 1,
            Packet::RetryWrite(_) => *seen.entry("retry").or_default() += 1,
            Packet::BarrierAck(_) => *seen.entry("barriers").or_default() += 1,
            _ => {}
        }
    }
    seen
}

/// The write that is superseded has completed: what is read from then on, from either disk, is not older.
#[test]
fn a_write_is_superseded_by_one_that_is_on_the_disk() {
    for stuck in 0..2 {
        let mut pair = two_primaries();
        pair.packets.clear();
        pair.nodes[stuck].stuck = true;
        let ids = [1, 2].map(|value| pair.submit(value - 1, WRITE, 0, &[value as u8; 4096], 4096));
        pair.settle();
        let over = |pair: &Pair, node: usize| pair.nodes[node].completions.contains_key(&ids[node]);
        for node in 0..2 {
            assert!(!over(&pair, node), "the disk of node {stuck} has nothing yet\n{}", pair.describe());
        }
        pair.unstick(stuck);
        pair.until(|pair| over(pair, 0) && over(pair, 1));
        let superseded = |(_, packet): &(usize, Packet)| matches!(packet, Packet::Superseded(_));
        assert!(pair.packets.iter().any(superseded), "{}", pair.describe());
        assert_eq!(pair.differences(), Vec::<u64>::new(), "{}", pair.describe());
    }
}

#[test]
fn copies_are_the_same_whoever_wins() {
    let mut seen: HashMap<&str, usize> = HashMap::new();
    let seeds = if std::env::var_os("UDRBD_TEST_LONG").is_some() { 50_000 } else { 600 };
    for seed in 1..=seeds {
        for (what, count) in play(seed, 8) {
            *seen.entry(what).or_default() += count;
        }
    }
    // Every way a conflict can end has been taken.
    for what in ["superseded", "retry", "barriers"] {
        assert!(seen.get(what).is_some_and(|count| *count > 50), "{seen:?}");
    }
}

/// A node that is asked to disconnect and to be promoted does one after the other. Its peer agrees to the first where that outdates the
/// node, and goes on alone, unfenced: promoted meanwhile both would.
#[test]
fn a_node_is_not_promoted_while_its_disconnect_is_agreed_on() {
    let mut pair = two_primaries();
    for node in 0..2 {
        let options = DiskOptions { fencing: Fencing::ResourceAndStonith, ..fast() };
        pair.command(node, Command::DiskOptions { volume: VOLUME, options: Box::new(options) }).unwrap();
        pair.nodes[node].slow_handlers = true;
    }
    pair.command(0, Command::Secondary { volume: VOLUME, held_open: false }).unwrap();
    let down = pair.begin_command(0, Command::Disconnect { force: false });
    let up = pair.begin_command(0, Command::Primary { volume: VOLUME, force: false });
    pair.until(|pair| pair.nodes[0].replies.contains_key(&down));
    pair.settle();
    let [own, other] = [0, 1].map(|node| pair.nodes[node].status());
    assert_eq!((other.role, other.peer_disk), (Role::Primary, DiskState::Outdated), "{}", pair.describe());
    assert_eq!((own.role, own.disk), (Role::Secondary, DiskState::Outdated), "{}", pair.describe());
    assert!(!matches!(pair.nodes[0].replies.get(&up), Some(Ok(()))), "{}", pair.describe());
}
