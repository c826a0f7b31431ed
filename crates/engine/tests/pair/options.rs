//! Options that say where and how, and what they do: `read-balancing`, `ko-count`, `max-epoch-size`, `disk-flushes`, `disk-drain`,
//! `md-flushes`.

use udrbd_engine::interface::{Command, DiskOptions, Duration, NetOptions, Operation, ReadBalancing};
use udrbd_units::{ConnectionState, DiskState, Sector};
use udrbd_wire::Packet;

use crate::harness::{Pair, VOLUME};
use crate::{both, fast, promote, synced};

const WRITE: Operation = Operation::Write { fua: false, preflush: false };
/// Sectors of 32 KiB, the smallest stripe.
const STRIPE: u64 = 64;

fn change(pair: &mut Pair, node: usize, options: DiskOptions) {
    pair.command(node, Command::DiskOptions { volume: VOLUME, options: Box::new(options) }).unwrap();
}

fn asked_of_peer(pair: &Pair) -> Vec<Sector> {
    let asked = |(node, packet): &(usize, Packet)| match packet {
        Packet::DataRequest(request) if *node == 0 => Some(request.sector),
        _ => None,
    };
    pair.packets.iter().filter_map(asked).collect()
}

/// Reads the first block of eight stripes, and tells which of them the peer was asked for.
fn balanced(read_balancing: ReadBalancing) -> Vec<u64> {
    let mut pair = synced();
    change(&mut pair, 0, DiskOptions { read_balancing, ..fast() });
    pair.write(0, 5 * STRIPE, 7, 4096).unwrap();
    for stripe in 0..8 {
        let found = pair.read(0, stripe * STRIPE, 4096).unwrap();
        assert_eq!(found, vec![if stripe == 5 { 7 } else { 0 }; 4096]);
    }
    asked_of_peer(&pair).into_iter().map(|sector| sector.0 / STRIPE).collect()
}

#[test]
fn each_policy_of_read_balancing_reads_where_it_says() {
    assert_eq!(balanced(ReadBalancing::PreferLocal), [0_u64; 0]);
    assert_eq!(balanced(ReadBalancing::PreferRemote), [0, 1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(balanced(ReadBalancing::RoundRobin).len(), 4);
    assert_eq!(balanced(ReadBalancing::Striping(15)), [1, 3, 5, 7]);
    assert_eq!(balanced(ReadBalancing::Striping(16)), [2, 3, 6, 7]);
    assert_eq!(balanced(ReadBalancing::Striping(20)), [0_u64; 0]);
    // One read at a time: nothing is pending when the next one comes.
    assert_eq!(balanced(ReadBalancing::LeastPending), [0_u64; 0]);
    // No disk of today says that it is congested (io spec 5).
    assert_eq!(balanced(ReadBalancing::WhenCongestedRemote), [0_u64; 0]);
}

#[test]
fn reads_go_to_the_peer_while_the_own_disk_has_more_to_do() {
    let mut pair = synced();
    change(&mut pair, 0, DiskOptions { read_balancing: ReadBalancing::LeastPending, ..fast() });
    pair.nodes[0].stuck = true;
    let first = pair.submit(0, Operation::Read, 0, &[], 4096);
    pair.settle();
    let second = pair.submit(0, Operation::Read, STRIPE, &[], 4096);
    pair.settle();
    assert_eq!(asked_of_peer(&pair), [Sector(STRIPE)]);
    assert!(
        pair.nodes[0].completions.contains_key(&second) && !pair.nodes[0].completions.contains_key(&first)
    );
}

#[test]
fn an_epoch_has_no_more_writes_than_max_epoch_size() {
    let mut pair = synced();
    let options = NetOptions { max_epoch_size: 3, ..NetOptions::default() };
    pair.command(0, Command::NetOptions(Box::new(options))).unwrap();
    // None of them ends, so that nothing else closes an epoch.
    pair.nodes[1].stuck = true;
    pair.packets.clear();
    for place in 0..8 {
        pair.submit(0, WRITE, place * 8, &[1; 4096], 4096);
    }
    pair.settle();
    let mut epochs = vec![0];
    for (_, packet) in pair.packets.iter().filter(|(node, _)| *node == 0) {
        match packet {
            Packet::Data(_) => *epochs.last_mut().unwrap() += 1,
            Packet::Barrier(_) => epochs.push(0),
            _ => {}
        }
    }
    assert_eq!(epochs, [3, 3, 2], "{}", pair.describe());
}

/// A Primary whose peer's disk does not answer a write, so many tenths of a second after it.
fn unanswered(ko_count: u32, seconds: u64) -> (Pair, u64) {
    let mut pair = Pair::new();
    for node in 0..2 {
        change(&mut pair, node, fast());
    }
    pair.connect(&NetOptions { timeout: Duration::from_secs(6), ko_count, ..NetOptions::default() });
    pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::Inconsistent));
    promote(&mut pair, 0, true);
    pair.until(|pair| both(pair, ConnectionState::Connected, DiskState::UpToDate));
    pair.nodes[1].stuck = true;
    let write = pair.submit(0, WRITE, 0, &[1; 4096], 4096);
    pair.pass(seconds);
    (pair, write)
}

#[test]
fn a_peer_that_answers_pings_and_no_request_is_given_up_after_ko_count_timeouts() {
    let (pair, write) = unanswered(3, 16);
    assert_eq!(pair.nodes[0].status().connection, ConnectionState::Connected, "{}", pair.describe());
    assert!(!pair.nodes[0].completions.contains_key(&write));

    let (pair, write) = unanswered(3, 20);
    let text = "Remote failed to finish a request within 18000ms > ko-count (3) * timeout (60 * 0.1s)";
    assert!(pair.nodes[0].says(text), "{}", pair.describe());
    assert!(pair.nodes[0].says("conn( Connected -> Timeout )"));
    assert_eq!(pair.nodes[0].completions[&write].0, Ok(()));

    let (pair, write) = unanswered(0, 600);
    assert_eq!(pair.nodes[0].status().connection, ConnectionState::Connected);
    assert!(!pair.nodes[0].completions.contains_key(&write), "{}", pair.describe());
}

/// Two epochs on the Secondary; how often its disk was flushed for their barriers.
fn flushes_of_two_epochs(pair: &mut Pair) -> usize {
    let before = pair.nodes[1].flushes;
    for value in 1..=2 {
        pair.write(0, 8, value, 4096).unwrap();
        // The next write closes the epoch of this one.
        pair.write(0, 16, value, 4096).unwrap();
    }
    pair.settle();
    pair.nodes[1].flushes - before
}

#[test]
fn epochs_are_ordered_as_the_options_of_the_disk_say() {
    let mut pair = synced();
    assert!(pair.nodes[1].says("Method to ensure write ordering: flush"));
    assert!(flushes_of_two_epochs(&mut pair) > 0);

    change(&mut pair, 1, DiskOptions { disk_flushes: false, ..fast() });
    assert!(pair.nodes[1].says("Method to ensure write ordering: drain"));
    assert_eq!(flushes_of_two_epochs(&mut pair), 0);

    change(&mut pair, 1, DiskOptions { disk_flushes: false, disk_drain: false, ..fast() });
    assert!(pair.nodes[1].says("Method to ensure write ordering: none"));
    assert_eq!(flushes_of_two_epochs(&mut pair), 0);
    assert!(both(&pair, ConnectionState::Connected, DiskState::UpToDate));
    assert!(pair.differences().is_empty());
}

#[test]
fn a_disk_that_refuses_flushes_is_drained_instead() {
    let mut pair = synced();
    pair.nodes[1].failing_flushes = true;
    flushes_of_two_epochs(&mut pair);
    assert!(pair.nodes[1].says("local disk FLUSH FAILED with status 95"), "{}", pair.describe());
    assert!(pair.nodes[1].says("Method to ensure write ordering: drain"));
    assert_eq!(flushes_of_two_epochs(&mut pair), 0);
    assert!(both(&pair, ConnectionState::Connected, DiskState::UpToDate));
}

#[test]
fn metadata_are_forced_unless_md_flushes_says_no() {
    for metadata_flushes in [true, false] {
        let mut pair = synced();
        change(&mut pair, 0, DiskOptions { metadata_flushes, ..fast() });
        pair.nodes[0].metadata_writes.clear();
        pair.command(0, Command::Disconnect { force: false }).unwrap();
        pair.write(0, 0, 1, 4096).unwrap();
        pair.settle();
        let writes = &pair.nodes[0].metadata_writes;
        assert!(!writes.is_empty());
        assert_eq!(writes.iter().any(|(_, flushed)| *flushed), metadata_flushes, "{writes:?}");
    }
}
