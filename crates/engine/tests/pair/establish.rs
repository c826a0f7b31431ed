//! How soon two nodes believe in their pair of sockets.

use udrbd_engine::interface::{Command, Duration, NetOptions, Time};
use udrbd_units::{ConnectionState, DiskState};
use udrbd_wire::Packet;

use crate::harness::Pair;
use crate::{both, fast, synced};

/// What DRBD waits before it believes in a pair of sockets, by default.
const PAUSE: Duration = Duration::from_millis(500);

/// A node of a pair dies and comes back. Returns how long its connection took.
fn comes_back(options: [&NetOptions; 2]) -> Duration {
    let mut pair = synced();
    pair.command(1, Command::NetOptions(Box::new(options[1].clone()))).unwrap();
    pair.kill(0);
    pair.until(|pair| pair.nodes[1].status().connection == ConnectionState::WFConnection);
    pair.settle();
    pair.start(0, fast());
    let begin = pair.now;
    pair.command(0, Command::Connect(Box::new(options[0].clone()))).unwrap();
    pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::UpToDate));
    since(&pair, begin)
}

fn since(pair: &Pair, begin: Time) -> Duration {
    Duration::from_nanos(pair.now.0 - begin.0)
}

#[test]
fn a_node_that_comes_back_is_believed_at_once() {
    let options = NetOptions::default();
    let took = comes_back([&options, &options]);
    assert!(took < PAUSE / 2, "{took:?}");
}

#[test]
fn a_pause_that_is_configured_is_made() {
    let configured = NetOptions { socket_check_timeout: Duration::from_millis(300), ..NetOptions::default() };
    let took = comes_back([&configured, &NetOptions::default()]);
    assert!((Duration::from_millis(300)..PAUSE).contains(&took), "{took:?}");
}

/// Both call at the same moment, and what they say takes as long as it likes.
#[test]
fn nodes_that_call_each_other_at_once_connect() {
    let (mut crossed, mut at_once) = (0, 0);
    for seed in 0..200 {
        let mut pair = Pair::down(20 * 2048);
        pair.seed = seed;
        for node in 0..2 {
            pair.start(node, fast());
        }
        // Neither reaches the other, so both wait to be called, and call again after a time that a coin decides.
        pair.refused = true;
        pair.connect(&NetOptions::default());
        pair.settle();
        pair.refused = false;
        pair.chance = Some(u64::from(seed + 1) * 0x9e37_79b9);
        while pair.packets.is_empty() {
            assert!(pair.step() || pair.advance());
        }
        let begin = pair.now;
        pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::Inconsistent));
        at_once += u32::from(since(&pair, begin) < PAUSE);
        crossed += u32::from(pair.nodes.iter().any(|node| node.says("crossed")));
        // Who believed in the wrong pair has to begin again.
        let begun = pair.packets.iter().filter(|(_, packet)| matches!(packet, Packet::ConnectionFeatures(_)));
        assert_eq!(begun.count(), 2, "seed {seed}\n{}", pair.describe());
    }
    assert!(crossed > 20 && at_once > 20, "{crossed} crossed, {at_once} were connected at once");
}
