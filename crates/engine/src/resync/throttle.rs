//! Giving way to applications: `c-min-rate` (io spec 15.6).
//!
//! A resync or verify that is faster than `c-min-rate` slows down while applications use the disk. DRBD learns from the
//! kernel's statistics of the backing device that somebody does; here what was moved for clients of either node is counted.
//! And DRBD looks at the speed of the last seconds: after a quick part it stands still until that is paid for, afterwards it
//! goes by fits and starts. Here a budget counts what is asked for while applications are busy.

use udrbd_units::ResyncExtent;

use crate::Engine;
use crate::interface::{Duration, Time};
use crate::slab::Key;
use crate::volume::Volume;

/// Sectors moved for applications since they were last found to be busy, from which on they are again.
const BUSY_SECTORS: u64 = 64;
/// How long after the last sign of them applications count as busy.
const BUSY_TIME: Duration = Duration::from_millis(300);
/// What a budget saves at the most: the time it stands for.
const SAVED_TIME: Duration = Duration::from_millis(300);
/// The least a request is cut to while applications are busy.
const YIELDING_BYTES_MIN: u32 = 64 << 10;
/// How long a request of the peer gives way.
pub(super) const PAUSE: Duration = Duration::from_millis(100);

/// What applications have moved on a disk, for clients of this node or of the peer.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Activity {
    sectors: u64,
    /// The same when they were last found to be busy.
    noticed: u64,
}

impl Activity {
    /// So many sectors were read, written or discarded for an application.
    pub(crate) const fn add(&mut self, sectors: u64) {
        self.sectors = self.sectors.wrapping_add(sectors);
    }

    /// Whether applications have been busy since this last said so.
    const fn take_busy(&mut self, somebody_waits: bool) -> bool {
        let busy = somebody_waits || self.sectors.wrapping_sub(self.noticed) > BUSY_SECTORS;
        if busy {
            self.noticed = self.sectors;
        }
        busy
    }
}

/// What the background work may ask for while applications are busy.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Budget {
    /// Until when they count as busy, if they do.
    busy_until: Option<Time>,
    /// When it was last added to.
    counted: Time,
    /// Bytes that may be asked for; below zero, what has to be waited for.
    bytes: i64,
}

impl Budget {
    /// Whether nothing may be asked for now. `busy`: applications have been seen at work.
    fn is_spent(&mut self, now: Time, busy: bool, least_kib: u64) -> bool {
        let went_on = self.busy_until.is_some_and(|until| now <= until);
        if !went_on {
            // What was asked for while nobody was in the way is nobody's debt.
            *self = Self { busy_until: None, counted: now, bytes: 0 };
        }
        if busy {
            self.busy_until = Some(now.after(BUSY_TIME));
        }
        let worth = |time: Duration| (least_kib * 1024 * time.as_millis() as u64 / 1000) as i64;
        let earned = worth(now.since(self.counted));
        if earned > 0 {
            self.counted = now;
            self.bytes = (self.bytes + earned).min(worth(SAVED_TIME).max(1));
        }
        self.busy_until.is_some() && self.bytes <= 0
    }

    /// How long it takes until something may be asked for again.
    fn paid_after(&self, least_kib: u64) -> Duration {
        let owed = self.bytes.min(0).unsigned_abs() + 1;
        Duration::from_millis((owed * 1000).div_ceil((least_kib * 1024).max(1)))
    }

    /// So much was asked for.
    pub(super) const fn spend(&mut self, bytes: u64) {
        if self.busy_until.is_some() {
            self.bytes -= bytes as i64;
        }
    }
}

/// A read of the peer that waits, for its turn or for its extent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WaitingRead {
    pub(crate) key: Key,
    pub(super) turn: Turn,
    /// It has made room for a write of an application, and tries again then.
    pub(super) not_before: Option<Time>,
}

/// Whether a read of the peer has given way to applications.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// It has not come to that.
    Behind,
    /// It is about to, until [`Resync::held_until`](super::Resync::held_until).
    Held,
    /// It may go for its extent.
    Come,
}

impl WaitingRead {
    pub(crate) const fn new(key: Key) -> Self {
        Self { key, turn: Turn::Behind, not_before: None }
    }
}

impl Volume {
    /// Whether the background work has to give way now: applications are busy, and it is faster than it has to be.
    pub(super) fn background_gives_way(&mut self, now: Time) -> bool {
        let Some(disk) = &self.disk else { return false };
        let least_kib = u64::from(disk.options.c_min_rate_kib);
        if least_kib == 0 {
            return false;
        }
        let somebody_waits = !disk.submit.is_empty() || !disk.in_transaction.is_empty();
        let busy = self.activity.take_busy(somebody_waits);
        self.resync.budget.is_spent(now, busy, least_kib)
    }

    /// The bytes of the largest request for blocks while applications are busy: what `c-min-rate` allows in a tenth of a second.
    /// An application's write waits for all of a request where both are about the same extent. `None`: there is no such bound, as
    /// for digests, whose number would be another one than DRBD's, and so what is found different.
    pub(super) fn yielding_request_bytes(&self) -> Option<u32> {
        let least_kib = self.disk.as_ref().map_or(0, |disk| disk.options.c_min_rate_kib);
        if least_kib == 0 || self.resync.by_checksum || self.resync.budget.busy_until.is_none() {
            return None;
        }
        Some((least_kib / 10).next_power_of_two().saturating_mul(1024).max(YIELDING_BYTES_MIN))
    }
}

impl Engine {
    /// Whether the next read of the peer in the queue may go for its extent. Each gives way at most once, one after the
    /// other, and none to a Primary peer, or where an application already waits for the same extent: then it hurries.
    pub(super) fn has_its_turn(
        &mut self,
        index: usize,
        read: &mut WaitingRead,
        extent: Option<ResyncExtent>,
    ) -> bool {
        if read.turn == Turn::Come {
            return true;
        }
        let now = self.now;
        let volume = &mut self.volumes[index];
        if volume.resync.held_until.is_some() {
            return false;
        }
        let awaited =
            volume.disk.as_ref().zip(extent).is_some_and(|(disk, extent)| disk.extents.has_priority(extent));
        if read.turn == Turn::Behind
            && volume.state.peer != udrbd_units::Role::Primary
            && volume.background_gives_way(now)
            && !awaited
        {
            read.turn = Turn::Held;
            let least_kib = volume.disk.as_ref().map_or(0, |disk| u64::from(disk.options.c_min_rate_kib));
            let pause = volume.resync.budget.paid_after(least_kib).min(PAUSE);
            volume.resync.held_until = Some(now.after(pause));
            return false;
        }
        read.turn = Turn::Come;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn at(milliseconds: u64) -> Time {
        Time(milliseconds * 1_000_000)
    }

    /// What is asked for in ten seconds, each time it may be, `bytes` at once.
    fn asked_for(budget: &mut Budget, from: u64, bytes: u64, every: u64) -> u64 {
        let mut asked = 0;
        for step in (from..from + 10_000).step_by(every as usize) {
            if !budget.is_spent(at(step), true, 10_240) {
                budget.spend(bytes);
                asked += bytes;
            }
        }
        asked
    }

    #[test]
    fn a_budget_keeps_its_rate_whatever_the_steps_and_requests_are() {
        for (bytes, every) in [(131_072, 7), (MIB, 100), (4 * MIB, 100)] {
            let asked = asked_for(&mut Budget::default(), 0, bytes, every);
            // At the end the last request may not be paid for.
            let right = 96 * MIB..=(100 * MIB + bytes);
            assert!(right.contains(&asked), "{bytes} every {every} ms: {asked}");
        }
        // Who asks for less than the rate is not held up, but for the first time, when nothing has been earned.
        assert_eq!(asked_for(&mut Budget::default(), 0, 4096, 1), 9_999 * 4096);
    }

    #[test]
    fn what_nobody_was_hindered_by_is_not_paid_for() {
        let mut budget = Budget::default();
        for step in 0..1000 {
            assert!(!budget.is_spent(at(step), false, 10_240));
            budget.spend(MIB);
        }
        let asked = asked_for(&mut budget, 1000, 131_072, 1);
        assert!(asked > 95 * MIB, "{asked}");
    }

    #[test]
    fn little_is_saved_and_a_debt_is_paid_in_time() {
        let mut budget = Budget::default();
        assert!(budget.is_spent(at(0), true, 10_240));
        // Busy all the time, and nothing asked for.
        for step in 0..100 {
            budget.is_spent(at(step * 100), true, 10_240);
        }
        assert_eq!(budget.bytes, 3 * MIB as i64);
        budget.spend(4 * MIB);
        assert_eq!(budget.paid_after(10_240), Duration::from_millis(101));
    }
}
