//! Random histories of two nodes: promotions, writes, lost links, crashes, resyncs cut at every point. Whatever
//! happened, the identifiers must lead to a decision that loses no acknowledged write without calling it a split
//! brain, and the bitmaps must cover what differs.

use std::collections::BTreeSet;

use proptest::prelude::*;
use udrbd_engine::generation::{
    Comparison, ComparisonFacts, ComparisonResult, GenerationSet, PeerFlags, PeerGeneration, compare,
};
use udrbd_units::{DiskState, GenerationId, Role};

const BLOCKS: usize = 8;
const ALL_BITS: u8 = 0xff;

#[derive(Clone, Debug)]
struct Node {
    set: GenerationSet,
    primary: bool,
    crashed: bool,
    /// Started a generation since the nodes were one.
    moved_on: bool,
    disk: DiskState,
    /// The number of the last write to each block.
    blocks: [u32; BLOCKS],
    bits: u8,
    /// Every acknowledged write these data descend from.
    history: BTreeSet<u32>,
}

/// Where a resync is cut.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Cut {
    BeforeTheBitmaps,
    BeforeTheSyncIdentifierArrives,
    BeforeTheFirstBlock,
    Halfway,
    BeforeTheSourceHearsOfTheEnd,
    Never,
}

#[derive(Clone, Copy, Debug)]
enum Event {
    Promote(usize),
    Demote(usize),
    Write(usize, usize),
    LoseTheLink,
    Crash(usize, usize),
    Connect { later: usize, victim: usize, cut: Cut },
}

struct Pair {
    nodes: [Node; 2],
    connected: bool,
    /// There has been a split brain.
    was_split: bool,
    /// A node that finished a resync its source does not know of. DRBD's identifiers cannot tell what the source
    /// writes from then on, so promoting it before the nodes met again is the one thing an operator must not do.
    ahead_of_its_source: Option<usize>,
    writes: u32,
    random: u64,
}

impl Pair {
    fn new() -> Self {
        let generation = GenerationSet { current: GenerationId(0x1000), ..GenerationSet::default() };
        let node = Node {
            set: generation,
            primary: false,
            crashed: false,
            moved_on: false,
            disk: DiskState::UpToDate,
            blocks: [0; BLOCKS],
            bits: 0,
            history: BTreeSet::new(),
        };
        Self {
            nodes: [node.clone(), node],
            connected: true,
            was_split: false,
            ahead_of_its_source: None,
            writes: 0,
            random: 0x2000,
        }
    }

    /// Identifiers no other draw is near to.
    fn draw(&mut self) -> u64 {
        self.random += 0x10;
        self.random
    }

    fn run(&mut self, event: Event) {
        match event {
            Event::Promote(node) => self.promote(node),
            Event::Demote(node) => self.set_role(node, false),
            Event::Write(node, block) => self.write(node, block),
            Event::LoseTheLink => self.lose_the_link(),
            Event::Crash(node, block) => self.crash(node, block),
            Event::Connect { later, victim, cut } => self.connect(later, victim, cut),
        }
    }

    fn set_role(&mut self, node: usize, primary: bool) {
        self.nodes[node].primary = primary;
        self.nodes[node].set.mark_role(primary);
    }

    fn promote(&mut self, node: usize) {
        let refused = self.nodes[node].disk != DiskState::UpToDate
            || (self.connected && self.nodes[1 - node].primary)
            || self.ahead_of_its_source == Some(node);
        if refused || self.nodes[node].primary {
            return;
        }
        self.nodes[node].primary = true;
        self.start_generation_if_alone(node);
        self.nodes[node].set.mark_role(true);
    }

    fn start_generation_if_alone(&mut self, node: usize) {
        let random = self.draw();
        let own = &mut self.nodes[node];
        if !self.connected && own.primary && own.disk == DiskState::UpToDate && !own.set.bitmap.is_some() {
            assert_eq!(own.set.new_current(random, true), None);
            own.moved_on = true;
        }
    }

    fn write(&mut self, node: usize, block: usize) {
        if !self.nodes[node].primary || self.nodes[node].disk != DiskState::UpToDate {
            return;
        }
        self.writes += 1;
        let number = self.writes;
        for (index, one) in self.nodes.iter_mut().enumerate() {
            if index == node || self.connected {
                one.blocks[block] = number;
                one.history.insert(number);
                one.bits |= u8::from(!self.connected) << block;
            }
        }
    }

    fn lose_the_link(&mut self) {
        if self.connected {
            self.connected = false;
            self.start_generation_if_alone(0);
            self.start_generation_if_alone(1);
        }
    }

    /// A node goes down; the survivor, if Primary, starts a generation, the crashed one cannot. A write to `block` is
    /// under way: it reaches the disk of a crashing Primary, whose activity log sets the bit, and is never
    /// acknowledged.
    fn crash(&mut self, node: usize, block: usize) {
        if self.nodes[node].primary && self.nodes[node].disk == DiskState::UpToDate {
            self.writes += 1;
            self.nodes[node].blocks[block] = self.writes;
            self.nodes[node].bits |= 1 << block;
        }
        let was_connected = std::mem::replace(&mut self.connected, false);
        if was_connected {
            self.start_generation_if_alone(1 - node);
        }
        let own = &mut self.nodes[node];
        own.crashed |= own.primary;
        own.primary = false;
        own.set.mark_role(false);
    }

    fn compared(&self, own: usize, later: usize) -> Comparison {
        let role = |node: &Node| if node.primary { Role::Primary } else { Role::Secondary };
        let (one, other) = (&self.nodes[own], &self.nodes[1 - own]);
        compare(&ComparisonFacts {
            own: one.set,
            peer: PeerGeneration {
                set: other.set,
                set_bits: u64::from(other.bits.count_ones()),
                flags: PeerFlags(u64::from(other.crashed) * PeerFlags::CRASHED_PRIMARY.0),
            },
            crashed_primary: one.crashed,
            own_role: role(one),
            peer_role: role(other),
            resolve_conflicts: own == later,
            protocol: 101,
            features: 0xf,
        })
    }

    fn connect(&mut self, later: usize, victim: usize, cut: Cut) {
        if self.connected {
            return;
        }
        if self.nodes[0].primary && self.nodes[1].primary {
            self.set_role(victim, false);
        }
        let decisions = [self.compared(0, later), self.compared(1, later)];
        let [here, there] = decisions;
        assert_eq!(here.result, there.result.mirrored(), "rules {} and {}", here.rule, there.rule);
        assert_eq!((here.own, here.peer), (there.peer, there.own));
        let worse = (0..2).find(|node| {
            self.nodes[*node].disk == DiskState::Inconsistent
                && self.nodes[1 - *node].disk > DiskState::Inconsistent
        });
        let (target, full) = match (worse, here.result) {
            (Some(target), ComparisonResult::SourceFull | ComparisonResult::TargetFull) => (target, true),
            (Some(target), ComparisonResult::SplitBrainAmbiguous) => (target, true),
            (Some(target), _) => (target, false),
            (None, ComparisonResult::NoSync) => return self.join(here.rule),
            (None, ComparisonResult::SourceByBitmap) => (self.must_descend(1, here.rule), false),
            (None, ComparisonResult::TargetByBitmap) => (self.must_descend(0, here.rule), false),
            (None, ComparisonResult::SourceFull) => (self.must_descend(1, here.rule), true),
            (None, ComparisonResult::TargetFull) => (self.must_descend(0, here.rule), true),
            // The operator chooses whose changes are discarded (`discard-my-data`).
            (None, ComparisonResult::SplitBrain | ComparisonResult::SplitBrainAmbiguous) => {
                assert!(self.nodes.iter().all(|node| node.moved_on), "rule {}: no split brain", here.rule);
                self.was_split = true;
                let kept = self.nodes[1 - victim].history.clone();
                self.nodes[victim].history.retain(|write| kept.contains(write));
                (victim, false)
            }
            // The history is too short for every split: refused, nothing is lost.
            (None, ComparisonResult::Unrelated) if self.was_split => return,
            (None, other) => panic!("{other:?} by rule {}", here.rule),
        };
        // A Primary is not overwritten: its operator has to give up first.
        self.set_role(target, false);
        self.resync(target, decisions[1 - target].own, full, cut);
    }

    /// Asserts that no acknowledged write of a target is unknown to its source.
    fn must_descend(&self, target: usize, rule: u8) -> usize {
        let (own, source) = (&self.nodes[target], &self.nodes[1 - target]);
        assert!(own.history.is_subset(&source.history), "rule {rule} loses acknowledged writes");
        assert!(source.disk > DiskState::Inconsistent, "rule {rule}: the source has the data");
        target
    }

    fn join(&mut self, rule: u8) {
        assert_eq!(self.nodes[0].blocks, self.nodes[1].blocks, "rule {rule}: connected without resync");
        assert_eq!(self.nodes[0].history, self.nodes[1].history, "rule {rule}");
        self.connected = true;
        self.ahead_of_its_source = None;
        for node in &mut self.nodes {
            node.disk = DiskState::UpToDate;
            node.crashed = false;
            node.moved_on = false;
        }
    }

    /// `corrected` is the source's set as the comparison corrected it: it counts from the start of the resync on.
    fn resync(&mut self, target: usize, corrected: GenerationSet, full: bool, cut: Cut) {
        let random = self.draw();
        let [first, second] = &mut self.nodes;
        let (source, target_node) = if target == 0 { (second, first) } else { (first, second) };
        self.ahead_of_its_source = None;
        source.disk = DiskState::UpToDate;
        if target_node.disk > DiskState::Outdated {
            target_node.disk = DiskState::Outdated;
        }
        if full {
            source.bits = ALL_BITS;
            target_node.bits = ALL_BITS;
        }
        if cut == Cut::BeforeTheBitmaps {
            return;
        }
        source.bits |= target_node.bits;
        target_node.bits = source.bits;
        source.set = corrected;
        source.set.mark_role(source.primary);
        let remembered = source.set;
        let identifier = source.set.start_resync_as_source(random);
        if cut == Cut::BeforeTheSyncIdentifierArrives {
            return;
        }
        target_node.set.start_resync_as_target(identifier, false);
        if cut == Cut::BeforeTheFirstBlock {
            return;
        }
        target_node.disk = DiskState::Inconsistent;
        let end = if cut == Cut::Halfway { BLOCKS / 2 } else { BLOCKS };
        for block in (0..end).filter(|block| source.bits >> block & 1 == 1) {
            target_node.blocks[block] = source.blocks[block];
            target_node.bits &= !(1 << block);
        }
        source.bits = target_node.bits;
        if cut == Cut::Halfway {
            return;
        }
        assert_eq!(source.blocks, target_node.blocks, "the bitmaps cover what differs");
        target_node.history.clone_from(&source.history);
        target_node.disk = DiskState::UpToDate;
        target_node.set.finish_resync_as_target(&remembered, false);
        if cut == Cut::BeforeTheSourceHearsOfTheEnd {
            self.ahead_of_its_source = Some(target);
            return;
        }
        source.set.finish_resync_as_source();
        self.join(0);
    }
}

fn any_event() -> impl Strategy<Value = Event> {
    let cut = prop::sample::select(vec![
        Cut::BeforeTheBitmaps,
        Cut::BeforeTheSyncIdentifierArrives,
        Cut::BeforeTheFirstBlock,
        Cut::Halfway,
        Cut::BeforeTheSourceHearsOfTheEnd,
        Cut::Never,
    ]);
    prop_oneof![
        2 => (0usize..2).prop_map(Event::Promote),
        1 => (0usize..2).prop_map(Event::Demote),
        4 => (0usize..2, 0..BLOCKS).prop_map(|(node, block)| Event::Write(node, block)),
        2 => Just(Event::LoseTheLink),
        1 => (0usize..2, 0..BLOCKS).prop_map(|(node, block)| Event::Crash(node, block)),
        4 => (0usize..2, 0usize..2, cut).prop_map(|(later, victim, cut)| Event::Connect { later, victim, cut }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4096, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_history_loses_acknowledged_writes(events in prop::collection::vec(any_event(), 1..40)) {
        let mut pair = Pair::new();
        for event in events {
            pair.run(event);
        }
    }
}
