//! Giving way to applications: `c-min-rate` (io spec 15.6).
//!
//! A resync or verify that is faster than `c-min-rate` slows down while applications use the disk. DRBD learns from the
//! kernel's statistics of the backing device that somebody does; here what was moved for clients of either node is counted.

use udrbd_units::ResyncExtent;

use crate::Engine;
use crate::interface::{Duration, Time};
use crate::slab::Key;
use crate::volume::Volume;

/// Sectors moved for applications since they were last found to be busy, from which on they are again.
const BUSY_SECTORS: u64 = 64;
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
        let set_bits = self.set_bits();
        let Some(disk) = &self.disk else { return false };
        let least_kib = u64::from(disk.options.c_min_rate_kib);
        if least_kib == 0 {
            return false;
        }
        let somebody_waits = !disk.submit.is_empty() || !disk.in_transaction.is_empty();
        self.activity.take_busy(somebody_waits) && self.resync.recent_kib(now, set_bits) > least_kib
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
            volume.resync.held_until = Some(now.after(PAUSE));
            return false;
        }
        read.turn = Turn::Come;
        true
    }
}
