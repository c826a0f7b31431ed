//! The slots themselves: what each holds, who is idle since when, and the way from an extent to its slot.

use udrbd_metadata::FREE_EXTENT;
use udrbd_units::Extent;

/// No slot. There are at most 65534.
const NONE: u16 = u16::MAX;

#[derive(Clone, Copy, Debug)]
struct Slot {
    /// The extent this slot has on disk.
    label: Extent,
    /// The extent it has or is about to have: another one than `label` while the slot is changing.
    target: Extent,
    /// How often `target` is held.
    count: u32,
    /// The next slot of the same hash.
    chained: u16,
    /// The neighbours in the list of idle slots: the one that became idle before, and after.
    older: u16,
    newer: u16,
}

/// A table of slots with a chained hash over their targets and a list of the idle ones.
///
/// A slot whose count is 0 and that is labelled and not changing is on the idle list; one that has no target is on the
/// free list.
#[derive(Debug)]
pub(super) struct SlotTable {
    slots: Vec<Slot>,
    /// First slot per hash.
    heads: Vec<u16>,
    /// Slots that hold nothing; the highest is handed out first, as DRBD does.
    free: Vec<u16>,
    oldest: u16,
    newest: u16,
}

impl SlotTable {
    pub(super) fn new(len: u16) -> Self {
        assert!(len > 0 && len < NONE);
        let empty = Slot {
            label: FREE_EXTENT,
            target: FREE_EXTENT,
            count: 0,
            chained: NONE,
            older: NONE,
            newer: NONE,
        };
        Self {
            slots: vec![empty; usize::from(len)],
            heads: vec![NONE; usize::from(len).next_power_of_two() * 2],
            free: (0..len).collect(),
            oldest: NONE,
            newest: NONE,
        }
    }

    pub(super) fn len(&self) -> u16 {
        self.slots.len() as u16
    }

    /// The slot an extent has or is about to have.
    #[inline]
    pub(super) fn find(&self, extent: Extent) -> Option<u16> {
        let mut slot = self.heads[self.hash(extent)];
        while slot != NONE {
            let candidate = &self.slots[usize::from(slot)];
            if candidate.target == extent {
                return Some(slot);
            }
            slot = candidate.chained;
        }
        None
    }

    pub(super) fn label(&self, slot: u16) -> Extent {
        self.slots[usize::from(slot)].label
    }

    pub(super) fn count(&self, slot: u16) -> u32 {
        self.slots[usize::from(slot)].count
    }

    pub(super) fn is_changing(&self, slot: u16) -> bool {
        let slot = &self.slots[usize::from(slot)];
        slot.label != slot.target
    }

    /// Whether [`relabel`](Self::relabel) finds a slot.
    pub(super) fn slot_available(&self) -> bool {
        !self.free.is_empty() || self.oldest != NONE
    }

    /// One more holder; true if it is the first.
    #[inline]
    pub(super) fn hold(&mut self, slot: u16) -> bool {
        let was_unused = self.count(slot) == 0;
        if was_unused && !self.is_changing(slot) {
            self.unlink_idle(slot);
        }
        self.slots[usize::from(slot)].count += 1;
        was_unused
    }

    /// One holder less; true if it was the last.
    pub(super) fn let_go(&mut self, slot: u16) -> bool {
        let entry = &mut self.slots[usize::from(slot)];
        entry.count -= 1;
        let unused = entry.count == 0;
        if unused && !self.is_changing(slot) {
            self.link_newest(slot);
        }
        unused
    }

    /// Gives a free slot, else the one that has been idle for longest, to `extent`, with one holder. The label stays until
    /// [`settle`](Self::settle).
    pub(super) fn relabel(&mut self, extent: Extent) -> u16 {
        assert!(self.slot_available());
        let slot = self.free.pop().unwrap_or(self.oldest);
        if self.slots[usize::from(slot)].target != FREE_EXTENT {
            self.unlink_idle(slot);
            self.unchain(slot);
        }
        let head = self.hash(extent);
        let chained = std::mem::replace(&mut self.heads[head], slot);
        let entry = &mut self.slots[usize::from(slot)];
        assert!(entry.count == 0 && entry.label == entry.target);
        (entry.target, entry.count, entry.chained) = (extent, 1, chained);
        slot
    }

    /// The target of a changing slot is its label from now on; true if nobody holds it any more.
    pub(super) fn settle(&mut self, slot: u16) -> bool {
        assert!(self.is_changing(slot));
        let entry = &mut self.slots[usize::from(slot)];
        entry.label = entry.target;
        let unused = entry.count == 0;
        if unused {
            self.link_newest(slot);
        }
        unused
    }

    #[inline]
    fn hash(&self, extent: Extent) -> usize {
        // Multiplicative hashing; neighbouring extents, the common case, go to different heads.
        (extent.0.wrapping_mul(0x9E37_79B1) as usize >> 8) & (self.heads.len() - 1)
    }

    fn unchain(&mut self, slot: u16) {
        let Slot { target, chained, .. } = self.slots[usize::from(slot)];
        let head = self.hash(target);
        if self.heads[head] == slot {
            self.heads[head] = chained;
            return;
        }
        let mut before = self.heads[head];
        while self.slots[usize::from(before)].chained != slot {
            before = self.slots[usize::from(before)].chained;
        }
        self.slots[usize::from(before)].chained = chained;
    }

    fn link_newest(&mut self, slot: u16) {
        let older = std::mem::replace(&mut self.newest, slot);
        let entry = &mut self.slots[usize::from(slot)];
        (entry.older, entry.newer) = (older, NONE);
        match self.slots.get_mut(usize::from(older)) {
            Some(entry) => entry.newer = slot,
            None => self.oldest = slot,
        }
    }

    fn unlink_idle(&mut self, slot: u16) {
        let Slot { older, newer, .. } = self.slots[usize::from(slot)];
        match self.slots.get_mut(usize::from(older)) {
            Some(entry) => entry.newer = newer,
            None => {
                assert!(self.oldest == slot);
                self.oldest = newer;
            }
        }
        match self.slots.get_mut(usize::from(newer)) {
            Some(entry) => entry.older = older,
            None => {
                assert!(self.newest == slot);
                self.newest = older;
            }
        }
    }
}
