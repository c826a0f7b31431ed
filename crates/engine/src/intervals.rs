//! The runs of sectors that are in flight on one volume, to be asked which of them a new one overlaps
//! (DRBD's `drbd_interval.c`).
//!
//! A balanced tree in one table: nodes are ordered by start and key, and each knows the furthest end below it, so a
//! question costs the depth of the tree whatever the lengths: a discard of 128 MiB in between does not make the
//! questions about 4 KiB writes slower. Slots of removed nodes are used again, so nothing is allocated once the table
//! has reached its size.

use udrbd_units::{Sector, SectorRange};

/// No node.
const NONE: u32 = u32::MAX;

#[derive(Clone, Copy, Debug)]
struct Node<K> {
    range: SectorRange,
    key: K,
    /// The furthest end of this node and all below it, in sectors.
    end_max: u64,
    /// Parents have a higher weight than their children; the weights are as good as random, which keeps the tree flat
    /// whatever the order of insertion.
    weight: u32,
    left: u32,
    right: u32,
}

/// A set of runs of sectors, each with a key that tells it from others (the number of its request, say). Runs may overlap
/// each other, and the same run may be there under several keys. An empty run may be there too; nothing overlaps it.
#[derive(Clone, Debug)]
pub struct IntervalSet<K> {
    nodes: Vec<Node<K>>,
    root: u32,
    /// The first of the unused nodes, chained by `left`.
    free: u32,
    len: usize,
    /// State of the generator of weights.
    weights: u64,
    /// The way to the node that is taken out; empty between calls, kept for its memory.
    path: Vec<Step>,
}

/// A step of a way down the tree.
#[derive(Clone, Copy, Debug)]
struct Step {
    parent: u32,
    /// It leads to the left child.
    left: bool,
}

impl<K> Default for IntervalSet<K> {
    fn default() -> Self {
        Self { nodes: Vec::new(), root: NONE, free: NONE, len: 0, weights: 0, path: Vec::new() }
    }
}

impl<K: Copy + Ord> IntervalSet<K> {
    /// An empty set that grows when needed.
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty set that allocates nothing until it holds more than `capacity` runs.
    pub fn with_capacity(capacity: usize) -> Self {
        Self { nodes: Vec::with_capacity(capacity), ..Self::default() }
    }

    /// The number of runs.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds a run. Returns false, and changes nothing, if a run with this start and key is already there.
    pub fn insert(&mut self, range: SectorRange, key: K) -> bool {
        if self.find(range.start, key) != NONE {
            return false;
        }
        let node = self.take_node(range, key);
        self.insert_node(node);
        self.len += 1;
        true
    }

    /// Takes a run out. Returns false, and changes nothing, if it is not there with this start and key.
    pub fn remove(&mut self, range: SectorRange, key: K) -> bool {
        let removed = self.remove_node((range.start, key));
        self.len -= usize::from(removed);
        removed
    }

    /// Takes out everything.
    pub fn clear(&mut self) {
        self.nodes.clear();
        (self.root, self.free, self.len) = (NONE, NONE, 0);
    }

    /// Whether any run overlaps `range`.
    pub fn overlaps(&self, range: SectorRange) -> bool {
        self.search(self.root, range, None) != NONE
    }

    /// The first run, by start and key, that overlaps `range` and of which `wanted` is true.
    pub fn first_overlap(
        &self,
        range: SectorRange,
        mut wanted: impl FnMut(SectorRange, K) -> bool,
    ) -> Option<(SectorRange, K)> {
        self.overlapping(range).find(|(range, key)| wanted(*range, *key))
    }

    /// The runs that overlap `range`, in the order of start and key.
    pub fn overlapping(&self, range: SectorRange) -> impl Iterator<Item = (SectorRange, K)> {
        let mut after = None;
        std::iter::from_fn(move || {
            let found = self.next_overlap(range, after)?;
            after = Some((found.0.start, found.1));
            Some(found)
        })
    }

    /// The next run that overlaps `range` behind the one with start and key `after`: for a walk during which the set
    /// changes.
    pub fn next_overlap(&self, range: SectorRange, after: Option<(Sector, K)>) -> Option<(SectorRange, K)> {
        let node = self.nodes.get(self.search(self.root, range, after) as usize)?;
        Some((node.range, node.key))
    }

    fn node(&self, node: u32) -> &Node<K> {
        &self.nodes[node as usize]
    }

    fn position(&self, node: u32) -> (Sector, K) {
        let node = self.node(node);
        (node.range.start, node.key)
    }

    fn find(&self, start: Sector, key: K) -> u32 {
        let mut node = self.root;
        while node != NONE {
            node = match (start, key).cmp(&self.position(node)) {
                std::cmp::Ordering::Equal => return node,
                std::cmp::Ordering::Less => self.node(node).left,
                std::cmp::Ordering::Greater => self.node(node).right,
            };
        }
        NONE
    }

    fn search(&self, node: u32, range: SectorRange, after: Option<(Sector, K)>) -> u32 {
        if node == NONE || self.node(node).end_max <= range.start.0 {
            return NONE;
        }
        let Node { range: own, key, left, right, .. } = *self.node(node);
        if after.is_none_or(|after| (own.start, key) > after) {
            let found = self.search(left, range, after);
            if found != NONE {
                return found;
            }
            if own.overlaps(range) {
                return node;
            }
            if own.start >= range.end() {
                return NONE;
            }
        }
        self.search(right, range, after)
    }

    fn take_node(&mut self, range: SectorRange, key: K) -> u32 {
        // The SplitMix64 generator: cheap, and the weights repeat from run to run.
        self.weights = self.weights.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut weight = self.weights;
        weight = (weight ^ (weight >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        weight = (weight ^ (weight >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        let weight = (weight >> 32) as u32;
        let new = Node { range, key, end_max: range.end().0, weight, left: NONE, right: NONE };
        if self.free == NONE {
            self.nodes.push(new);
            assert!(self.nodes.len() < NONE as usize);
            return (self.nodes.len() - 1) as u32;
        }
        let node = self.free;
        self.free = self.node(node).left;
        self.nodes[node as usize] = new;
        node
    }

    /// Makes `child` the root, or the child of the parent that the last step of a way down led away from.
    fn hang(&mut self, way: Option<Step>, child: u32) {
        match way {
            None => self.root = child,
            Some(Step { parent, left: true }) => self.nodes[parent as usize].left = child,
            Some(Step { parent, left: false }) => self.nodes[parent as usize].right = child,
        }
    }

    /// Puts `new` where its weight wants it, above all that is there already.
    fn insert_node(&mut self, new: u32) {
        let (position, Node { weight, end_max, .. }) = (self.position(new), *self.node(new));
        let mut way = None;
        let mut below = self.root;
        while let Some(node) = self.nodes.get_mut(below as usize)
            && node.weight >= weight
        {
            node.end_max = node.end_max.max(end_max);
            let left = position < (node.range.start, node.key);
            way = Some(Step { parent: below, left });
            below = if left { node.left } else { node.right };
        }
        if below != NONE {
            let (left, right) = self.split(below, position);
            self.nodes[new as usize].left = left;
            self.nodes[new as usize].right = right;
            self.update(new);
        }
        self.hang(way, new);
    }

    /// Takes the node at `position` out. False: there is none.
    fn remove_node(&mut self, position: (Sector, K)) -> bool {
        self.path.clear();
        let mut node = self.root;
        let Node { left, right, .. } = loop {
            let Some(found) = self.nodes.get(node as usize) else { return false };
            let left = match position.cmp(&(found.range.start, found.key)) {
                std::cmp::Ordering::Equal => break *found,
                order => order == std::cmp::Ordering::Less,
            };
            self.path.push(Step { parent: node, left });
            node = if left { found.left } else { found.right };
        };
        let joined = self.join(left, right);
        self.hang(self.path.last().copied(), joined);
        self.nodes[node as usize].left = self.free;
        self.free = node;
        while let Some(Step { parent, .. }) = self.path.pop() {
            let before = self.end_max(parent);
            self.update(parent);
            if self.end_max(parent) == before {
                // Nothing changes further up.
                break;
            }
        }
        true
    }

    /// Parts what is below `node` into what is before `position` and what is behind it.
    fn split(&mut self, node: u32, position: (Sector, K)) -> (u32, u32) {
        if node == NONE {
            return (NONE, NONE);
        }
        let Node { left, right, .. } = *self.node(node);
        if self.position(node) < position {
            let (before, behind) = self.split(right, position);
            self.nodes[node as usize].right = before;
            self.update(node);
            (node, behind)
        } else {
            let (before, behind) = self.split(left, position);
            self.nodes[node as usize].left = behind;
            self.update(node);
            (before, node)
        }
    }

    /// Joins two trees of which the first lies before the second.
    fn join(&mut self, left: u32, right: u32) -> u32 {
        if left == NONE || right == NONE {
            return if left == NONE { right } else { left };
        }
        if self.node(left).weight > self.node(right).weight {
            self.nodes[left as usize].right = self.join(self.node(left).right, right);
            self.update(left);
            left
        } else {
            self.nodes[right as usize].left = self.join(left, self.node(right).left);
            self.update(right);
            right
        }
    }

    fn end_max(&self, node: u32) -> u64 {
        self.nodes.get(node as usize).map_or(0, |node| node.end_max)
    }

    fn update(&mut self, node: u32) {
        let Node { range, left, right, .. } = *self.node(node);
        self.nodes[node as usize].end_max = range.end().0.max(self.end_max(left)).max(self.end_max(right));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn range(start: u64, sectors: u32) -> SectorRange {
        SectorRange::new(Sector(start), sectors * 512)
    }

    #[test]
    fn the_first_overlap_is_the_one_that_starts_first() {
        let mut set = IntervalSet::new();
        assert!(set.insert(range(100, 8), 1));
        assert!(set.insert(range(0, 262_144), 2));
        assert!(set.insert(range(104, 8), 3));
        assert!(!set.insert(range(104, 16), 3), "same start and key");
        assert_eq!(set.first_overlap(range(107, 1), |_, _| true), Some((range(0, 262_144), 2)));
        assert_eq!(set.first_overlap(range(107, 1), |_, key| key != 2), Some((range(100, 8), 1)));
        assert!(set.remove(range(0, 262_144), 2));
        assert!(!set.remove(range(0, 262_144), 2));
        assert!(!set.overlaps(range(0, 100)) && !set.overlaps(range(112, 100)));
        assert_eq!(set.overlapping(range(0, 1000)).map(|(_, key)| key).collect::<Vec<_>>(), [1, 3]);
    }

    #[test]
    fn an_empty_run_overlaps_nothing_and_can_be_taken_out() {
        let mut set = IntervalSet::new();
        assert!(set.insert(range(8, 0), 1));
        assert!(!set.overlaps(range(0, 100)));
        assert!(set.insert(range(0, 100), 2));
        assert!(!set.overlaps(range(8, 0)));
        assert!(set.remove(range(8, 0), 1));
        assert_eq!(set.len(), 1);
    }

    #[test]
    fn a_walk_may_change_the_set() {
        let mut set = IntervalSet::new();
        for key in 0..10u32 {
            set.insert(range(u64::from(key) * 8, 8), key);
        }
        let (mut after, mut seen) = (None, Vec::new());
        while let Some((found, key)) = set.next_overlap(range(16, 32), after) {
            after = Some((found.start, key));
            set.remove(found, key);
            seen.push(key);
        }
        assert_eq!(seen, [2, 3, 4, 5]);
    }

    #[test]
    fn neither_order_makes_the_tree_deep_nor_use_makes_it_big() {
        let mut set = IntervalSet::with_capacity(4096);
        for round in 0..4 {
            for key in 0..4096u64 {
                set.insert(range(key * 8 * (round % 2), 8), key);
            }
            fn depth(set: &IntervalSet<u64>, node: u32) -> usize {
                if node == NONE {
                    return 0;
                }
                1 + depth(set, set.node(node).left).max(depth(set, set.node(node).right))
            }
            assert!(depth(&set, set.root) < 48, "{}", depth(&set, set.root));
            assert_eq!((set.len(), set.nodes.len()), (4096, 4096));
            for key in 0..4096u64 {
                assert!(set.remove(range(key * 8 * (round % 2), 8), key));
            }
        }
        assert!(set.is_empty());
    }

    proptest! {
        #[test]
        fn behaves_as_a_list(
            steps in proptest::collection::vec(
                (any::<bool>(), 0..400u64, prop_oneof![0..20u32, 0..300u32], 0..6u8), 1..200
            )
        ) {
            let mut set = IntervalSet::new();
            let mut list: BTreeMap<(Sector, u8), SectorRange> = BTreeMap::new();
            for (insert, start, sectors, key) in steps {
                let range = range(start, sectors);
                if insert {
                    let new = !list.contains_key(&(range.start, key));
                    list.entry((range.start, key)).or_insert(range);
                    prop_assert_eq!(set.insert(range, key), new);
                } else {
                    // Mostly take out what is there.
                    let at = list.range((range.start, key)..).next().map(|(at, range)| (*at, *range));
                    let ((_, key), range) = at.unwrap_or(((range.start, key), range));
                    prop_assert_eq!(set.remove(range, key), list.remove(&(range.start, key)).is_some());
                }
                prop_assert_eq!(set.len(), list.len());
                let expected: Vec<_> = list
                    .iter()
                    .filter(|(_, own)| own.overlaps(range))
                    .map(|((_, key), own)| (*own, *key))
                    .collect();
                prop_assert_eq!(set.overlaps(range), !expected.is_empty());
                prop_assert_eq!(set.overlapping(range).collect::<Vec<_>>(), expected);
            }
        }
    }
}
