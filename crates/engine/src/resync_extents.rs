//! The locks that keep resync and application writes out of each other's way, per 16 MiB extent (I/O spec 4.5;
//! DRBD's `drbd_try_rs_begin_io`, `drbd_rs_begin_io`, `drbd_rs_complete_io`).
//!
//! Resync first closes an extent to new writes, then waits until none of its four activity log extents is in use, and
//! only then reads or writes there: neither can overtake the other. Nothing of this is on disk.

use udrbd_units::{Extent, ResyncExtent};

use crate::activity_log::ActivityLog;
use crate::bitmap::Bitmap;

/// Extents the table knows at a time, locked or remembered.
pub const SLOTS: usize = 61;
/// Who generates requests starts no new extent while more than this many are closed to writes.
const GENERATING_MAX: usize = SLOTS - 3;
/// Who answers requests starts no new extent while more than this many are closed to writes.
const ANSWERING_MAX: usize = SLOTS / 2;
/// Activity log extents per resync extent.
const ACTIVITY_LOG_EXTENTS: u32 = 4;

/// A reference on a locked extent, to be given back with [`ResyncExtents::end`]. It cannot be copied, so it cannot be given
/// back twice.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "the extent stays closed to application writes until the lock is ended"]
pub struct ResyncLock {
    extent: ResyncExtent,
    /// Which life of the table it belongs to.
    generation: u32,
}

impl ResyncLock {
    /// The extent that is locked.
    pub const fn extent(&self) -> ResyncExtent {
        self.extent
    }
}

/// Why [`ResyncExtents::try_begin`] did not lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Busy {
    /// The application has writes in flight there. The extent is closed to new ones: try the same place again.
    Writes,
    /// The application is busy and resync above its minimal rate: try again with the next step.
    Throttled,
    /// Too many extents are locked.
    Full,
}

/// What [`ResyncExtents::begin_or_wait`] achieved.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub enum Begin {
    /// The extent is locked.
    Begun(ResyncLock),
    /// Ask again when an activity log extent or a resync extent was released.
    Waiting,
    /// An application write waits for this very extent and resync is above its minimal rate: the extent was opened again;
    /// ask again in 100 ms.
    SteppedAside,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    /// References of requests in flight; 0 while half-locked.
    count: u32,
    /// Closed to application writes: locked, or half-locked while writes in flight drain.
    no_writes: bool,
    locked: bool,
    /// An application write waits for it.
    priority: bool,
    /// Blocks of it that could not be resynced in this run.
    failed: u64,
    /// When it was used last, in uses of the table.
    used: u64,
}

const EMPTY: Entry = Entry { count: 0, no_writes: false, locked: false, priority: false, failed: 0, used: 0 };

/// The table of resync extents of one volume.
///
/// * Resync and verify: [`try_begin`](Self::try_begin) on the node that generates requests,
///   [`begin_or_wait`](Self::begin_or_wait) on the one that answers them, [`end`](Self::end) on both;
///   [`drop_half_lock`](Self::drop_half_lock) and [`give_up_wait`](Self::give_up_wait) when what they waited for is not
///   wanted any more;
/// * application writes: [`blocks_writes`](Self::blocks_writes) and [`set_priority`](Self::set_priority) **before** the
///   activity log is asked for the extent;
/// * progress: [`blocks_cleared`](Self::blocks_cleared) and [`blocks_failed`](Self::blocks_failed);
/// * [`take_released`](Self::take_released) after any of them: whether those who wait should look again.
#[derive(Debug)]
pub struct ResyncExtents {
    extents: [Option<ResyncExtent>; SLOTS],
    entries: [Entry; SLOTS],
    /// How many are closed to writes.
    closed: usize,
    /// The extent that the generating side has closed and could not lock yet (DRBD's `resync_wenr`).
    half_locked: Option<ResyncExtent>,
    generation: u32,
    uses: u64,
    released: bool,
}

impl Default for ResyncExtents {
    fn default() -> Self {
        Self {
            extents: [None; SLOTS],
            entries: [EMPTY; SLOTS],
            closed: 0,
            half_locked: None,
            generation: 0,
            uses: 0,
            released: false,
        }
    }
}

impl ResyncExtents {
    /// An empty table.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether application writes to an activity log extent must wait. If so, say [`set_priority`](Self::set_priority).
    #[inline]
    pub fn blocks_writes(&self, extent: Extent) -> bool {
        self.closed > 0 && self.find(resync_extent(extent)).is_some_and(|slot| self.entries[slot].no_writes)
    }

    /// An application write waits for the resync extent around `extent`: resync steps aside, or hurries, there.
    pub fn set_priority(&mut self, extent: Extent) {
        if let Some(slot) = self.find(resync_extent(extent)) {
            self.entries[slot].priority = self.entries[slot].no_writes;
        }
    }

    /// Whether an application write waits for the extent: then who answers requests must not throttle (I/O spec 15.6).
    pub fn has_priority(&self, extent: ResyncExtent) -> bool {
        self.find(extent).is_some_and(|slot| self.entries[slot].priority)
    }

    /// The number of extents that are locked or about to be.
    pub const fn closed_extents(&self) -> usize {
        self.closed
    }

    /// The extent closed by [`try_begin`](Self::try_begin) and not locked yet.
    pub const fn half_locked(&self) -> Option<ResyncExtent> {
        self.half_locked
    }

    /// Whether an extent was opened to writes since the last time this was asked.
    pub fn take_released(&mut self) -> bool {
        std::mem::take(&mut self.released)
    }

    /// Locks an extent for one request of the node that generates them (SyncTarget, VerifyS), or says at once why not.
    /// `throttled`: resync is above its minimal rate and the application busy (I/O spec 15.6).
    ///
    /// # Errors
    /// Where writes are in flight the extent stays closed (half-locked) until this is asked again for it, or for
    /// another, or throttling sets in.
    pub fn try_begin(
        &mut self,
        extent: ResyncExtent,
        activity_log: &ActivityLog,
        throttled: bool,
    ) -> Result<ResyncLock, Busy> {
        if self.half_locked != Some(extent) {
            self.drop_half_lock();
            if throttled {
                return Err(Busy::Throttled);
            }
        }
        let slot = self.close(extent, GENERATING_MAX).ok_or(Busy::Full)?;
        if let Some(lock) = self.lock(slot, activity_log) {
            self.half_locked = None;
            return Ok(lock);
        }
        self.half_locked = Some(extent);
        if throttled {
            self.drop_half_lock();
            return Err(Busy::Throttled);
        }
        Err(Busy::Writes)
    }

    /// Opens the half-locked extent again: resync paused or stopped, nobody will come back for it. True if there was one.
    pub fn drop_half_lock(&mut self) -> bool {
        let Some(extent) = self.half_locked.take() else { return false };
        self.give_up_wait(extent)
    }

    /// Locks an extent for one request of the node that answers them (SyncSource, VerifyT), or closes it and has the caller
    /// wait. `throttled` as for [`try_begin`](Self::try_begin); it counts only once an application write waits for
    /// the extent.
    pub fn begin_or_wait(
        &mut self,
        extent: ResyncExtent,
        activity_log: &ActivityLog,
        throttled: bool,
    ) -> Begin {
        let Some(slot) = self.close(extent, ANSWERING_MAX) else { return Begin::Waiting };
        if let Some(lock) = self.lock(slot, activity_log) {
            return Begin::Begun(lock);
        }
        if throttled && self.entries[slot].priority {
            self.open(slot);
            return Begin::SteppedAside;
        }
        Begin::Waiting
    }

    /// Nobody waits for the extent in [`begin_or_wait`](Self::begin_or_wait) any more: opens it again unless it is locked.
    /// True if it was opened.
    pub fn give_up_wait(&mut self, extent: ResyncExtent) -> bool {
        let Some(slot) = self.find(extent) else { return false };
        let waiting = self.entries[slot].no_writes && !self.entries[slot].locked;
        if waiting {
            self.open(slot);
        }
        waiting
    }

    /// Gives a lock back: the request is done. True if it was the last one of its extent, which is open to writes now. A lock
    /// from before [`cancel_all`](Self::cancel_all) has been given back by that.
    pub fn end(&mut self, lock: ResyncLock) -> bool {
        if lock.generation != self.generation {
            return false;
        }
        let Some(slot) = self.find(lock.extent) else { return false };
        let entry = &mut self.entries[slot];
        assert!(entry.locked && entry.count > 0, "a lock of this generation stands in the table");
        entry.count -= 1;
        let last = entry.count == 0;
        if last {
            self.open(slot);
        }
        last
    }

    /// Takes back every lock and forgets every failure (connection lost, a resync or verify starts). The caller sees to it
    /// that the requests which held them have no effect any more. True if an extent was opened.
    pub fn cancel_all(&mut self) -> bool {
        let any = self.closed > 0;
        self.released |= any;
        self.extents = [None; SLOTS];
        self.entries = [EMPTY; SLOTS];
        (self.closed, self.half_locked) = (0, None);
        self.generation = self.generation.wrapping_add(1);
        any
    }

    /// The resync or verify is done: opens what is only half-locked and forgets failures. False if locks are still out:
    /// try again when they have been given back (I/O spec 15.11; DRBD's `drbd_rs_del_all`).
    #[must_use]
    pub fn finish(&mut self) -> bool {
        self.half_locked = None;
        for slot in 0..SLOTS {
            if self.entries[slot].no_writes && !self.entries[slot].locked {
                self.open(slot);
            }
            self.entries[slot].failed = 0;
        }
        self.closed == 0
    }

    /// Bits of the extent were cleared. True if nothing of it is left to resync, which is when the bitmap may be worth
    /// writing (I/O spec 14.3).
    pub fn blocks_cleared(&mut self, extent: ResyncExtent, bitmap: &Bitmap) -> bool {
        self.is_complete(extent, bitmap)
    }

    /// `blocks` blocks of the extent could not be resynced; their bits stay set. True if nothing else is left of it.
    pub fn blocks_failed(&mut self, extent: ResyncExtent, blocks: u64, bitmap: &Bitmap) -> bool {
        if let Some(slot) = self.find_or_take(extent) {
            self.entries[slot].failed += blocks;
        }
        self.is_complete(extent, bitmap)
    }

    /// Whether all set bits of the extent are failed ones; these are forgotten then.
    fn is_complete(&mut self, extent: ResyncExtent, bitmap: &Bitmap) -> bool {
        let slot = self.find(extent);
        let failed = slot.map_or(0, |slot| self.entries[slot].failed);
        let complete = bitmap.set_count_in(extent) <= failed;
        if complete && let Some(slot) = slot {
            self.entries[slot].failed = 0;
        }
        complete
    }

    /// Closes an extent to writes if it is not closed already; `None` if more than `closed_max` extents are.
    fn close(&mut self, extent: ResyncExtent, closed_max: usize) -> Option<usize> {
        if let Some(slot) = self.find(extent)
            && self.entries[slot].no_writes
        {
            return Some(slot);
        }
        if self.closed > closed_max {
            return None;
        }
        let slot = self.find_or_take(extent)?;
        self.entries[slot].no_writes = true;
        self.closed += 1;
        Some(slot)
    }

    /// Takes a reference on a closed extent, unless writes are in flight there. Those writes were admitted before the extent
    /// was closed; an extent that is locked has none.
    fn lock(&mut self, slot: usize, activity_log: &ActivityLog) -> Option<ResyncLock> {
        let extent = self.extents[slot]?;
        let first = extent.0.saturating_mul(ACTIVITY_LOG_EXTENTS);
        let mut inside = first..first.saturating_add(ACTIVITY_LOG_EXTENTS);
        let written = inside.any(|extent| activity_log.in_use(Extent(extent)));
        let entry = &mut self.entries[slot];
        assert!(entry.no_writes && !(entry.locked && written), "a write was admitted to a locked extent");
        if written {
            return None;
        }
        entry.locked = true;
        entry.count += 1;
        Some(ResyncLock { extent, generation: self.generation })
    }

    /// Opens a closed extent to writes; its failures stay remembered.
    fn open(&mut self, slot: usize) {
        self.uses += 1;
        let entry = &mut self.entries[slot];
        assert!(entry.no_writes && entry.count == 0);
        *entry = Entry { failed: entry.failed, used: self.uses, ..EMPTY };
        self.closed -= 1;
        self.released = true;
    }

    #[inline]
    fn find(&self, extent: ResyncExtent) -> Option<usize> {
        self.extents.iter().position(|known| *known == Some(extent))
    }

    /// The slot of an extent, taking an empty one for it or the one unused for longest; `None` if all are closed.
    fn find_or_take(&mut self, extent: ResyncExtent) -> Option<usize> {
        if let Some(slot) = self.find(extent) {
            return Some(slot);
        }
        let open = (0..SLOTS).filter(|slot| !self.entries[*slot].no_writes);
        let slot = open.min_by_key(|slot| self.entries[*slot].used)?;
        self.uses += 1;
        self.extents[slot] = Some(extent);
        self.entries[slot] = Entry { used: self.uses, ..EMPTY };
        Some(slot)
    }
}

const fn resync_extent(extent: Extent) -> ResyncExtent {
    ResyncExtent(extent.0 / ACTIVITY_LOG_EXTENTS)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;
    use udrbd_metadata::layout::Striping;
    use udrbd_units::Sector;

    use super::*;
    use crate::activity_log::Get;

    /// A log in which the extents given are in use.
    fn log(in_use: impl IntoIterator<Item = u32>) -> ActivityLog {
        let mut log = ActivityLog::new(1237, Striping::DEFAULT, 0);
        for extent in in_use {
            assert_eq!(log.get(Extent(extent)), Get::Pending);
        }
        if log.pending() {
            log.begin_transaction().unwrap();
            log.commit();
        }
        log
    }

    #[test]
    fn a_locked_extent_keeps_writes_out_until_its_last_request_is_done() {
        let (mut table, log) = (ResyncExtents::new(), log([7, 12]));
        let first = table.try_begin(ResyncExtent(2), &log, false).unwrap();
        let second = table.try_begin(ResyncExtent(2), &log, false).unwrap();
        assert!((8..12).all(|extent| table.blocks_writes(Extent(extent))));
        assert!(!table.blocks_writes(Extent(7)) && !table.blocks_writes(Extent(12)));
        assert!(!table.end(first) && !table.take_released());
        assert!(table.end(second) && table.take_released() && !table.take_released());
        assert!(!table.blocks_writes(Extent(8)));
    }

    #[test]
    fn writes_in_flight_are_waited_for_with_the_extent_closed() {
        let (mut table, mut log) = (ResyncExtents::new(), log([8]));
        assert_eq!(table.try_begin(ResyncExtent(2), &log, false), Err(Busy::Writes));
        assert!(table.blocks_writes(Extent(11)));
        assert_eq!(table.try_begin(ResyncExtent(2), &log, false), Err(Busy::Writes));
        log.put(Extent(8));
        let lock = table.try_begin(ResyncExtent(2), &log, true).unwrap();
        assert_eq!((table.half_locked(), table.closed_extents()), (None, 1));
        assert!(table.end(lock));
    }

    #[test]
    fn a_change_of_the_log_in_flight_counts_as_a_write() {
        let (mut table, mut log) = (ResyncExtents::new(), log([]));
        assert_eq!(log.get(Extent(8)), Get::Pending);
        assert_eq!(table.try_begin(ResyncExtent(2), &log, false), Err(Busy::Writes));
    }

    #[test]
    fn a_half_lock_goes_with_the_next_extent_or_with_throttling() {
        let (mut table, log) = (ResyncExtents::new(), log([8]));
        assert_eq!(table.try_begin(ResyncExtent(2), &log, false), Err(Busy::Writes));
        let lock = table.try_begin(ResyncExtent(3), &log, false).unwrap();
        assert!(!table.blocks_writes(Extent(8)) && table.take_released());
        assert_eq!(table.try_begin(ResyncExtent(2), &log, false), Err(Busy::Writes));
        assert_eq!(table.try_begin(ResyncExtent(2), &log, true), Err(Busy::Throttled));
        assert!(!table.blocks_writes(Extent(8)) && table.take_released());
        assert_eq!(table.try_begin(ResyncExtent(3), &log, true), Err(Busy::Throttled));
        assert!(table.blocks_writes(Extent(12)), "locked is locked");
        assert_eq!(table.try_begin(ResyncExtent(2), &log, false), Err(Busy::Writes));
        assert!(table.drop_half_lock() && !table.drop_half_lock());
        assert!(table.end(lock));
        assert_eq!(table.closed_extents(), 0);
    }

    #[test]
    fn who_answers_steps_aside_for_a_waiting_write_only_above_the_minimal_rate() {
        let (mut table, mut log) = (ResyncExtents::new(), log([8]));
        assert_eq!(table.begin_or_wait(ResyncExtent(2), &log, true), Begin::Waiting);
        table.set_priority(Extent(9));
        assert!(table.has_priority(ResyncExtent(2)));
        assert_eq!(table.begin_or_wait(ResyncExtent(2), &log, false), Begin::Waiting);
        assert_eq!(table.begin_or_wait(ResyncExtent(2), &log, true), Begin::SteppedAside);
        assert!(!table.blocks_writes(Extent(9)) && !table.has_priority(ResyncExtent(2)));
        assert_eq!(table.begin_or_wait(ResyncExtent(2), &log, true), Begin::Waiting);
        log.put(Extent(8));
        assert!(matches!(table.begin_or_wait(ResyncExtent(2), &log, true), Begin::Begun(_)));
        assert!(!table.give_up_wait(ResyncExtent(2)), "a lock does not go that way");
    }

    #[test]
    fn so_many_and_no_more() {
        let (mut table, log) = (ResyncExtents::new(), log([]));
        let mut locks = Vec::new();
        while let Begin::Begun(lock) = table.begin_or_wait(ResyncExtent(locks.len() as u32), &log, false) {
            locks.push(lock);
        }
        assert_eq!(locks.len(), 31);
        locks.extend((31..59).map(|extent| table.try_begin(ResyncExtent(extent), &log, false).unwrap()));
        assert_eq!(table.try_begin(ResyncExtent(100), &log, false), Err(Busy::Full));
        locks.push(table.try_begin(ResyncExtent(0), &log, false).unwrap());
        assert_eq!(locks.into_iter().map(|lock| table.end(lock)).filter(|last| *last).count(), 59);
    }

    #[test]
    fn a_lock_from_before_a_cancel_opens_nothing() {
        let (mut table, log) = (ResyncExtents::new(), log([]));
        let old = table.try_begin(ResyncExtent(2), &log, false).unwrap();
        assert!(table.cancel_all() && table.take_released() && !table.blocks_writes(Extent(8)));
        let new = table.try_begin(ResyncExtent(2), &log, false).unwrap();
        assert!(!table.end(old));
        assert!(table.blocks_writes(Extent(8)));
        assert!(table.end(new));
    }

    #[test]
    fn the_end_waits_for_locks_but_not_for_half_locks() {
        let (mut table, log) = (ResyncExtents::new(), log([8]));
        let lock = table.try_begin(ResyncExtent(3), &log, false).unwrap();
        assert_eq!(table.try_begin(ResyncExtent(2), &log, false), Err(Busy::Writes));
        assert!(!table.finish());
        assert!(!table.blocks_writes(Extent(8)) && table.blocks_writes(Extent(12)));
        table.end(lock);
        assert!(table.finish());
    }

    #[test]
    fn an_extent_is_complete_when_only_failed_blocks_are_left() {
        let mut table = ResyncExtents::new();
        let mut bitmap = Bitmap::new(Sector(1 << 20));
        bitmap.set_range(4096..=4099);
        bitmap.set_range(9000..=9000);
        bitmap.clear_range(4096..=4097);
        assert!(!table.blocks_cleared(ResyncExtent(1), &bitmap));
        assert!(!table.blocks_failed(ResyncExtent(1), 1, &bitmap));
        bitmap.clear_range(4098..=4098);
        assert!(table.blocks_cleared(ResyncExtent(1), &bitmap));
        assert!(!table.blocks_cleared(ResyncExtent(1), &bitmap), "failures count once");
        bitmap.clear_range(4099..=4099);
        assert!(table.blocks_cleared(ResyncExtent(1), &bitmap));
        assert!(table.blocks_failed(ResyncExtent(2), 1, &bitmap));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Write(u32),
        WriteDone(usize),
        Try(u32, bool),
        Answer(u32, bool),
        End(usize),
        GiveUp(u32),
        Cancel,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => (0..280u32).prop_map(Step::Write),
            6 => any::<usize>().prop_map(Step::WriteDone),
            6 => (0..70u32, any::<bool>()).prop_map(|(extent, throttled)| Step::Try(extent, throttled)),
            6 => (0..70u32, any::<bool>()).prop_map(|(extent, throttled)| Step::Answer(extent, throttled)),
            4 => any::<usize>().prop_map(Step::End),
            1 => (0..70u32).prop_map(Step::GiveUp),
            1 => Just(Step::Cancel),
        ]
    }

    /// Who is where, without regard to speed.
    #[derive(Default)]
    struct Model {
        writes: Vec<u32>,
        locks: Vec<ResyncLock>,
        locked: BTreeMap<u32, usize>,
        waiting: BTreeSet<u32>,
        half_locked: Option<u32>,
        priority: BTreeSet<u32>,
    }

    impl Model {
        fn written(&self, extent: u32) -> bool {
            self.writes.iter().any(|write| write / 4 == extent)
        }

        fn closed(&self) -> usize {
            self.locked.len() + self.waiting.len()
        }

        fn is_closed(&self, extent: u32) -> bool {
            self.locked.contains_key(&extent) || self.waiting.contains(&extent)
        }

        fn begin(&mut self, extent: u32, lock: ResyncLock) {
            assert_eq!(lock.extent(), ResyncExtent(extent));
            self.waiting.remove(&extent);
            *self.locked.entry(extent).or_default() += 1;
            self.locks.push(lock);
        }

        fn open(&mut self, extent: u32) {
            self.waiting.remove(&extent);
            self.priority.remove(&extent);
        }

        fn try_begin(&mut self, table: &mut ResyncExtents, log: &ActivityLog, extent: u32, throttled: bool) {
            let result = table.try_begin(ResyncExtent(extent), log, throttled);
            let again = self.half_locked == Some(extent);
            if let (Some(half_locked), false) = (self.half_locked, again) {
                if self.waiting.contains(&half_locked) {
                    self.open(half_locked);
                }
                self.half_locked = None;
            }
            if throttled && !again {
                assert_eq!(result, Err(Busy::Throttled));
            } else if !self.is_closed(extent) && self.closed() > 58 {
                assert_eq!(result, Err(Busy::Full));
            } else if !self.written(extent) {
                self.half_locked = None;
                self.begin(extent, result.unwrap());
            } else if throttled {
                assert_eq!(result, Err(Busy::Throttled));
                self.open(extent);
                self.half_locked = None;
            } else {
                assert_eq!(result, Err(Busy::Writes));
                self.waiting.insert(extent);
                self.half_locked = Some(extent);
            }
        }

        fn answer(&mut self, table: &mut ResyncExtents, log: &ActivityLog, extent: u32, throttled: bool) {
            let result = table.begin_or_wait(ResyncExtent(extent), log, throttled);
            if !self.is_closed(extent) && self.closed() > 30 {
                assert_eq!(result, Begin::Waiting);
            } else if !self.written(extent) {
                let Begin::Begun(lock) = result else { panic!("{result:?}") };
                self.begin(extent, lock);
            } else if throttled && self.priority.contains(&extent) {
                assert_eq!(result, Begin::SteppedAside);
                self.open(extent);
            } else {
                assert_eq!(result, Begin::Waiting);
                self.waiting.insert(extent);
            }
        }

        fn step(&mut self, table: &mut ResyncExtents, log: &mut ActivityLog, step: &Step) {
            match *step {
                Step::Write(extent) => {
                    assert_eq!(table.blocks_writes(Extent(extent)), self.is_closed(extent / 4));
                    if table.blocks_writes(Extent(extent)) {
                        table.set_priority(Extent(extent));
                        self.priority.insert(extent / 4);
                    } else if log.get(Extent(extent)) != Get::Busy {
                        self.writes.push(extent);
                        if log.begin_transaction().is_some() {
                            log.commit();
                        }
                    }
                }
                Step::WriteDone(index) if !self.writes.is_empty() => {
                    log.put(Extent(self.writes.swap_remove(index % self.writes.len())));
                }
                Step::End(index) if !self.locks.is_empty() => {
                    let lock = self.locks.swap_remove(index % self.locks.len());
                    let extent = lock.extent().0;
                    let count = self.locked.get_mut(&extent).unwrap();
                    *count -= 1;
                    let last = *count == 0;
                    if last {
                        self.locked.remove(&extent);
                        self.priority.remove(&extent);
                    }
                    assert_eq!(table.end(lock), last);
                }
                Step::Try(extent, throttled) => self.try_begin(table, log, extent, throttled),
                Step::Answer(extent, throttled) => self.answer(table, log, extent, throttled),
                Step::GiveUp(extent) => {
                    assert_eq!(table.give_up_wait(ResyncExtent(extent)), self.waiting.contains(&extent));
                    if self.waiting.contains(&extent) {
                        self.open(extent);
                    }
                }
                Step::Cancel => {
                    assert_eq!(table.cancel_all(), self.closed() > 0);
                    let writes = std::mem::take(&mut self.writes);
                    let old = std::mem::take(&mut self.locks);
                    *self = Self { writes, ..Self::default() };
                    assert!(old.into_iter().all(|lock| !table.end(lock)));
                }
                Step::WriteDone(_) | Step::End(_) => {}
            }
        }
    }

    proptest! {
        #[test]
        fn resync_and_writes_never_meet(steps in proptest::collection::vec(step(), 1..400)) {
            let (mut table, mut log) = (ResyncExtents::new(), log([]));
            let mut model = Model::default();
            for step in &steps {
                model.step(&mut table, &mut log, step);
                prop_assert!(model.writes.iter().all(|write| !model.locked.contains_key(&(write / 4))));
                prop_assert_eq!(table.closed_extents(), model.closed());
                for extent in 0..70 {
                    prop_assert_eq!(table.blocks_writes(Extent(extent * 4 + 3)), model.is_closed(extent));
                    prop_assert_eq!(table.has_priority(ResyncExtent(extent)), model.priority.contains(&extent));
                }
            }
        }
    }
}
