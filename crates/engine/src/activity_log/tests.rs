use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use udrbd_metadata::activity_log::{RingBlock, initialized_block};
use udrbd_metadata::replay::{Replayed, replay};
use udrbd_metadata::{BLOCK_BYTES, Block};

use super::*;

/// An activity log area on a disk that keeps what was written, but for a block torn by a crash.
#[derive(Clone)]
struct Ring {
    area: Vec<u8>,
    striping: Striping,
}

impl Ring {
    fn new(striping: Striping) -> Self {
        Self { area: initialized_block().repeat(striping.blocks() as usize), striping }
    }

    fn write(&mut self, place: TransactionPlace, block: &[u8]) {
        let at = place.block as usize * BLOCK_BYTES;
        self.area[at..at + block.len()].copy_from_slice(block);
    }

    /// What `apply-al` would take for hot.
    fn hot(&self) -> BTreeSet<Extent> {
        match replay(&self.area, self.striping).result.unwrap() {
            Replayed::Nothing => BTreeSet::new(),
            Replayed::Hot { extents, .. } => extents.into_iter().collect(),
        }
    }

    /// Writes the transaction in flight; checks what a crash before, during and after that would leave.
    fn write_checked(&mut self, log: &ActivityLog, place: TransactionPlace, held: &BTreeSet<Extent>) {
        let mut block: Block = [0xEE; BLOCK_BYTES];
        log.encode_transaction(&mut block);
        let labelled: BTreeSet<Extent> = log.labelled().collect();
        assert!(self.hot().is_superset(&labelled), "before transaction {}", place.number);

        let mut torn = self.clone();
        torn.write(place, &block[..2048]);
        let at = place.block as usize * BLOCK_BYTES;
        if !matches!(
            RingBlock::decode((&torn.area[at..at + BLOCK_BYTES]).try_into().unwrap()),
            RingBlock::Update(_)
        ) {
            assert!(torn.hot().is_superset(&labelled), "transaction {} torn", place.number);
        }

        self.write(place, &block);
        let evicted: BTreeSet<Extent> = log.evicted_extents().collect();
        let hot = self.hot();
        assert!(hot.is_superset(held), "after transaction {}", place.number);
        for extent in labelled.difference(&evicted) {
            assert!(hot.contains(extent), "{extent:?} is gone without a hint");
        }
    }
}

fn log(al_extents: u32) -> ActivityLog {
    ActivityLog::new(al_extents, Striping::DEFAULT, 0)
}

/// Makes extents hot, in one transaction, and lets go of them.
fn heat(log: &mut ActivityLog, extents: impl IntoIterator<Item = u32> + Clone) {
    for extent in extents.clone() {
        assert_eq!(log.get(Extent(extent)), Get::Pending);
    }
    log.begin_transaction().unwrap();
    log.commit();
    for extent in extents {
        assert!(log.put(Extent(extent)));
    }
}

#[test]
fn slots_stay_within_what_the_ring_allows() {
    assert_eq!(log(7).slots(), 67);
    assert_eq!(log(1237).slots(), 1237);
    assert_eq!(log(10_000).slots(), 6433);
    assert_eq!(ActivityLog::new(u32::MAX, Striping { stripes: 8, stripe_size_4k: 64 }, 0).slots(), 65534);
}

#[test]
fn a_cold_extent_waits_for_its_transaction_and_a_hot_one_does_not() {
    let mut log = log(67);
    assert!(!log.try_get(Extent(1)));
    assert_eq!(log.get(Extent(1)), Get::Pending);
    assert!(!log.try_get(Extent(1)), "not durable yet");
    assert!(log.pending() && log.in_use(Extent(1)) && !log.is_hot(Extent(1)));
    assert_eq!(log.get(Extent(1)), Get::Pending);
    assert_eq!(log.begin_transaction(), Some(TransactionPlace { number: 0, block: 0 }));
    assert_eq!((log.begin_transaction(), log.pending()), (None, false));
    assert_eq!(log.get(Extent(1)), Get::Pending);
    assert_eq!(log.get(Extent(2)), Get::Busy, "the transaction is closed");
    log.commit();
    assert!(log.try_get(Extent(1)) && log.is_hot(Extent(1)));
    assert_eq!(log.get(Extent(1)), Get::Committed);
    for _ in 0..4 {
        assert!(!log.put(Extent(1)));
    }
    assert!(log.put(Extent(1)));
    assert!(!log.in_use(Extent(1)) && log.is_hot(Extent(1)));
    assert_eq!((log.transactions_written(), log.used_extents()), (1, 0));
}

#[test]
fn at_most_64_changes_fit_in_a_transaction() {
    let mut log = log(1237);
    for extent in 0..64 {
        assert_eq!(log.get(Extent(extent)), Get::Pending);
    }
    assert_eq!(log.get(Extent(64)), Get::Busy);
    assert!(!log.starving());
    log.begin_transaction().unwrap();
    log.commit();
    assert_eq!(log.get(Extent(64)), Get::Pending);
}

#[test]
fn the_least_recently_used_idle_extent_goes_first() {
    let mut log = log(67);
    heat(&mut log, 0..60);
    heat(&mut log, 60..67);
    assert!(log.try_get(Extent(0)));
    log.put(Extent(0));
    assert!(log.try_get(Extent(1)));
    assert_eq!(log.get(Extent(100)), Get::Pending);
    assert_eq!(log.get(Extent(101)), Get::Pending);
    log.begin_transaction().unwrap();
    assert_eq!(log.evicted_extents().collect::<Vec<_>>(), [Extent(3), Extent(2)], "most recent change first");
    log.commit();
    assert_eq!(log.evicted_extents().count(), 0);
    assert!(!log.is_hot(Extent(2)) && log.is_hot(Extent(0)));
}

#[test]
fn a_starving_log_refuses_hits_until_somebody_lets_go() {
    let mut log = log(67);
    heat(&mut log, 0..60);
    heat(&mut log, 60..67);
    for extent in 0..67 {
        assert!(log.try_get(Extent(extent)));
    }
    assert!(log.try_get(Extent(5)));
    assert_eq!(log.get(Extent(67)), Get::Busy);
    assert!(!log.try_get(Extent(5)));
    assert_eq!(log.get(Extent(5)), Get::Busy);
    assert!(!log.put(Extent(5)), "still held");
    assert!(log.starving());
    assert!(log.put(Extent(6)));
    assert_eq!(log.get(Extent(67)), Get::Pending);
}

#[test]
fn an_evicted_extent_comes_back_through_another_transaction() {
    let mut log = log(67);
    heat(&mut log, 0..60);
    heat(&mut log, 60..67);
    assert_eq!(log.get(Extent(100)), Get::Pending);
    // Extent 0 is on its way out; it comes in again in the same transaction, for extent 1.
    assert_eq!(log.get(Extent(0)), Get::Pending);
    log.begin_transaction().unwrap();
    assert_eq!(log.get(Extent(1)), Get::Busy, "it is on its way out");
    assert_eq!(log.get(Extent(2)), Get::Committed);
    log.commit();
    assert!(log.is_hot(Extent(0)) && !log.is_hot(Extent(1)));
    assert_eq!(log.labelled().count(), 67);
}

#[test]
fn a_write_given_up_before_its_transaction_leaves_an_idle_slot() {
    let mut log = log(67);
    assert_eq!(log.get(Extent(1)), Get::Pending);
    assert!(log.put(Extent(1)));
    assert_eq!(log.used_extents(), 0);
    assert!(log.in_use(Extent(1)), "still changing");
    assert_eq!(log.resize(100), Err(InUse));
    log.begin_transaction().unwrap();
    log.commit();
    assert!(log.is_hot(Extent(1)) && !log.in_use(Extent(1)));
    assert_eq!(log.resize(100), Ok(()));
    assert_eq!((log.slots(), log.labelled().count(), log.number()), (100, 0, 1));
}

#[test]
fn a_transaction_that_failed_has_its_number_used_again() {
    let mut log = log(67);
    assert_eq!(log.get(Extent(1)), Get::Pending);
    let place = log.begin_transaction();
    log.commit_unwritten();
    assert!(log.is_hot(Extent(1)));
    assert_eq!(log.transactions_written(), 0);
    assert_eq!(log.get(Extent(2)), Get::Pending);
    assert_eq!(log.begin_transaction(), place);
}

#[test]
fn a_log_in_a_moved_ring_is_complete_after_one_round() {
    let mut log = log(6433);
    for first in (0..6400).step_by(64) {
        heat(&mut log, first..first + 64);
    }
    assert!(!log.set_striping(Striping { stripes: 1, stripe_size_4k: 7 }));
    let striping = Striping { stripes: 3, stripe_size_4k: 3 };
    assert!(log.set_striping(striping));
    let mut ring = Ring::new(striping);
    for _ in 0..9 {
        let place = log.begin_ring_transaction().unwrap();
        let mut block = [0; BLOCK_BYTES];
        log.encode_transaction(&mut block);
        ring.write(place, &block);
        log.commit();
    }
    assert_eq!(ring.hot(), (0..6400).map(Extent).collect());
}

/// Goes more than twice through all slots of the largest log a ring can have, and crashes at every transaction. A quarter
/// of the first extents stays in use for good, the rest comes and goes.
fn fill_twice(striping: Striping, number: u32) {
    let mut log = ActivityLog::new(u32::MAX, striping, number);
    let slots = u32::from(log.slots());
    let mut ring = Ring::new(striping);
    let mut held = BTreeSet::new();
    for round in 0..slots / 64 * 5 / 2 {
        let extents = round * 64..(round + 1) * 64;
        for extent in extents.clone() {
            assert_eq!(log.get(Extent(extent)), Get::Pending);
            held.insert(Extent(extent));
        }
        let place = log.begin_transaction().unwrap();
        ring.write_checked(&log, place, &held);
        log.commit();
        for extent in extents.filter(|extent| extent % 4 > 0 || *extent > slots - 400) {
            log.put(Extent(extent));
            held.remove(&Extent(extent));
        }
    }
    assert_eq!(log.labelled().count(), slots as usize);
}

#[test]
fn the_largest_log_survives_a_torn_block_at_any_time() {
    fill_twice(Striping::DEFAULT, 0);
}

#[test]
fn the_ring_goes_round_while_the_number_wraps() {
    // The kernel takes the number modulo the blocks, and so jumps in a ring of 9 when the number wraps; who replays goes
    // by the order of the blocks.
    fill_twice(Striping { stripes: 1, stripe_size_4k: 9 }, (u32::MAX - 200) / 9 * 9);
}

#[derive(Clone, Debug)]
enum Step {
    TryGet(u32),
    Get(u32),
    Put(usize),
    Begin,
    Commit,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0..160u32).prop_map(Step::TryGet),
        16 => (0..160u32).prop_map(Step::Get),
        8 => any::<usize>().prop_map(Step::Put),
        2 => Just(Step::Begin),
        3 => Just(Step::Commit),
    ];
    proptest::collection::vec(step, 1..1200)
}

/// The log as its specification says it, without regard to speed.
#[derive(Default)]
struct Model {
    counts: BTreeMap<u32, u32>,
    /// Labelled or about to be, not held, least recently used first.
    idle: Vec<u32>,
    committed: BTreeSet<u32>,
    pending: Vec<u32>,
    evicted: BTreeSet<u32>,
    free: usize,
    in_flight: bool,
    starving: bool,
}

impl Model {
    fn hit(&mut self, extent: u32) {
        self.idle.retain(|idle| *idle != extent);
        *self.counts.entry(extent).or_default() += 1;
    }

    fn try_get(&mut self, extent: u32) -> bool {
        let success = !self.starving && self.committed.contains(&extent);
        if success {
            self.hit(extent);
        }
        success
    }

    fn get(&mut self, extent: u32) -> Get {
        if self.starving {
            return Get::Busy;
        }
        if self.pending.contains(&extent) {
            self.hit(extent);
            return Get::Pending;
        }
        if self.committed.contains(&extent) {
            self.hit(extent);
            return Get::Committed;
        }
        if self.in_flight {
            return Get::Busy;
        }
        if self.free == 0 && self.idle.is_empty() {
            self.starving = true;
            return Get::Busy;
        }
        if self.pending.len() == 64 {
            return Get::Busy;
        }
        if self.free > 0 {
            self.free -= 1;
        } else {
            let evicted = self.idle.remove(0);
            self.committed.remove(&evicted);
            self.evicted.insert(evicted);
        }
        self.pending.push(extent);
        self.counts.insert(extent, 1);
        Get::Pending
    }

    fn put(&mut self, extent: u32) -> bool {
        let count = self.counts.get_mut(&extent).unwrap();
        *count -= 1;
        if *count > 0 {
            return false;
        }
        self.counts.remove(&extent);
        if self.committed.contains(&extent) {
            self.idle.push(extent);
        }
        self.starving = false;
        true
    }

    fn commit(&mut self) {
        for extent in self.pending.drain(..) {
            self.committed.insert(extent);
            if !self.counts.contains_key(&extent) {
                self.idle.push(extent);
                self.starving = false;
            }
        }
        self.evicted.clear();
        self.in_flight = false;
    }

    fn step(&mut self, log: &mut ActivityLog, ring: &mut Ring, step: &Step) {
        match step {
            Step::TryGet(extent) => assert_eq!(log.try_get(Extent(*extent)), self.try_get(*extent)),
            Step::Get(extent) => assert_eq!(log.get(Extent(*extent)), self.get(*extent)),
            Step::Put(index) => {
                if let Some(extent) = self.counts.keys().copied().nth(index % self.counts.len().max(1)) {
                    assert_eq!(log.put(Extent(extent)), self.put(extent));
                }
            }
            Step::Begin => {
                let place = log.begin_transaction();
                assert_eq!(place.is_some(), !self.pending.is_empty() && !self.in_flight);
                if let Some(place) = place {
                    self.in_flight = true;
                    let evicted: BTreeSet<u32> = log.evicted_extents().map(|extent| extent.0).collect();
                    assert_eq!(evicted, self.evicted);
                    ring.write_checked(log, place, &self.counts.keys().copied().map(Extent).collect());
                }
            }
            Step::Commit => {
                assert_eq!(log.transaction_in_flight(), self.in_flight);
                if self.in_flight {
                    log.commit();
                    self.commit();
                }
            }
        }
    }

    fn check(&self, log: &ActivityLog) {
        let mut labelled: Vec<u32> = log.labelled().map(|extent| extent.0).collect();
        labelled.sort_unstable();
        let on_disk: BTreeSet<u32> = self.committed.union(&self.evicted).copied().collect();
        assert_eq!(labelled, on_disk.into_iter().collect::<Vec<_>>());
        assert_eq!(log.used_extents(), self.counts.len());
        assert_eq!(
            (log.starving(), log.pending()),
            (self.starving, !self.pending.is_empty() && !self.in_flight)
        );
        for extent in 0..160 {
            let in_use = self.counts.contains_key(&extent) || self.pending.contains(&extent);
            assert_eq!(log.in_use(Extent(extent)), in_use);
            assert_eq!(log.is_hot(Extent(extent)), self.committed.contains(&extent));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn behaves_as_specified_and_survives_a_crash_at_every_transaction(
        steps in steps(),
        striping in prop_oneof![
            Just(Striping::DEFAULT),
            Just(Striping { stripes: 3, stripe_size_4k: 3 }),
            Just(Striping { stripes: 4, stripe_size_4k: 2 }),
        ],
        rounds in 0..3u32,
    ) {
        let number = rounds * striping.blocks();
        let mut log = ActivityLog::new(67, striping, number);
        let mut ring = Ring::new(striping);
        let mut model = Model { free: 67, ..Model::default() };
        for step in &steps {
            model.step(&mut log, &mut ring, step);
            model.check(&log);
        }
    }
}
