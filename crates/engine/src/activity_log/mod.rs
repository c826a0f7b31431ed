//! The activity log at run time: which 4 MiB extents may be written to (I/O spec 4.1 to 4.4; DRBD's `lru_cache.c` and
//! `drbd_actlog.c`).
//!
//! A fixed number of slots hold extents. After a crash every extent that stands in a slot *on disk* is resynced, so a write
//! may take effect, locally or at the peer, only while its extents stand there. A slot is free, idle (labelled, nobody
//! holds it: still hot on disk), in use, or changing (relabelled, the transaction not yet durable).

mod slots;
mod transaction;

#[cfg(test)]
mod tests;

use udrbd_metadata::activity_log::UPDATES_MAX;
use udrbd_metadata::layout::Striping;
use udrbd_metadata::{FREE_EXTENT, SlotUpdate};
use udrbd_units::Extent;

use slots::SlotTable;
pub use transaction::TransactionPlace;

/// What [`ActivityLog::get`] achieved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Get {
    /// The extent is held, and hot on disk: the write may go on.
    Committed,
    /// The extent is held, but the write must wait until the transaction that makes it hot has been committed.
    Pending,
    /// The extent is not held: all slots are in use, or a transaction is in flight, or the one in preparation is full.
    /// Try again when an extent was released or a transaction committed.
    Busy,
}

/// What happened to the slots so far; DRBD shows these numbers per LRU in `/proc/drbd`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// An extent asked for was in its slot.
    pub hits: u64,
    /// It was not.
    pub misses: u64,
    /// It could not be had because the log was starving.
    pub starving: u64,
    /// It could not be had because a transaction was in flight.
    pub locked: u64,
    /// Slots relabelled.
    pub changed: u64,
}

/// The log is in use: some extent is held or a slot is changing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the activity log is in use")]
pub struct InUse;

/// The slots of one volume's activity log and the transaction in preparation or in flight.
///
/// * Holding extents: [`try_get`](Self::try_get) first; where it fails, and for writes of several extents,
///   [`get`](Self::get) each; [`put`](Self::put) each when the write is done for good (I/O spec 4.4);
/// * the transaction, while [`pending`](Self::pending): [`begin_transaction`](Self::begin_transaction); hint the bitmap
///   page of each of [`evicted_extents`](Self::evicted_extents) and wait for those pages;
///   [`encode_transaction`](Self::encode_transaction), write it at its place with PREFLUSH and FUA, then
///   [`commit`](Self::commit), or [`commit_unwritten`](Self::commit_unwritten) if any of it failed;
/// * getters: [`in_use`](Self::in_use), [`is_hot`](Self::is_hot), [`labelled`](Self::labelled) and others.
///
/// Nothing is allocated after construction but by [`resize`](Self::resize).
#[derive(Debug)]
pub struct ActivityLog {
    table: SlotTable,
    /// The changes of the transaction in preparation (oldest first) or in flight (most recent first).
    updates: Vec<SlotUpdate>,
    transaction_in_flight: bool,
    starving: bool,
    used: usize,
    striping: Striping,
    /// The number of the next transaction, or of the one in flight.
    number: u32,
    /// Its place in the ring.
    position: u32,
    /// The first slot of its context window.
    context_start: u16,
    transactions_written: u64,
    statistics: Statistics,
}

impl ActivityLog {
    /// An empty log with `al_extents` slots, raised or lowered to what the ring allows (metadata spec 5.5), whose next
    /// transaction has the number `number`: 0 on a ring that has just been initialised, else one more than the highest
    /// number in it (metadata spec 5.4). Another number than 0 on an initialised ring should be a multiple of its blocks:
    /// `apply-al` forgives a torn first transaction only in the first block (metadata spec 5.10).
    ///
    /// # Panics
    /// If the striping is not valid: an attach has checked it.
    pub fn new(al_extents: u32, striping: Striping, number: u32) -> Self {
        assert!(striping.is_valid());
        Self {
            table: SlotTable::new(striping.al_extents(al_extents)),
            updates: Vec::with_capacity(UPDATES_MAX),
            transaction_in_flight: false,
            starving: false,
            used: 0,
            striping,
            number,
            position: number % striping.blocks(),
            context_start: 0,
            transactions_written: 0,
            statistics: Statistics::default(),
        }
    }

    /// The number of slots (`al-extents` as used).
    pub fn slots(&self) -> u16 {
        self.table.len()
    }

    /// The number of extents that are held.
    pub const fn used_extents(&self) -> usize {
        self.used
    }

    /// Takes hold of an extent that is hot, the fast path of a write within one extent. False if it is not hot, or the
    /// log is starving: then a cold extent has waited for a slot in vain, and even hits have to wait until
    /// somebody lets go.
    #[must_use]
    pub fn try_get(&mut self, extent: Extent) -> bool {
        if self.starving {
            self.statistics.starving += 1;
            return false;
        }
        match self.table.find(extent) {
            Some(slot) if !self.table.is_changing(slot) => {
                self.hold(slot);
                true
            }
            _ => {
                self.statistics.misses += 1;
                false
            }
        }
    }

    /// Takes hold of an extent, giving it a slot if it has none. A write of several extents gets them one after the other
    /// and keeps what it has when one is [`Busy`](Get::Busy).
    pub fn get(&mut self, extent: Extent) -> Get {
        assert!(extent != FREE_EXTENT);
        if self.starving {
            self.statistics.starving += 1;
            return Get::Busy;
        }
        if let Some(slot) = self.table.find(extent) {
            self.hold(slot);
            return if self.table.is_changing(slot) { Get::Pending } else { Get::Committed };
        }
        self.statistics.misses += 1;
        if self.transaction_in_flight {
            self.statistics.locked += 1;
            return Get::Busy;
        }
        if !self.table.slot_available() {
            self.starving = true;
            self.statistics.starving += 1;
            return Get::Busy;
        }
        if self.updates.len() == UPDATES_MAX {
            return Get::Busy;
        }
        self.updates.push(SlotUpdate { slot: self.table.relabel(extent), extent });
        self.used += 1;
        Get::Pending
    }

    /// Lets go of an extent. True if nobody holds it any more: writes and resync that wait may try again.
    ///
    /// Bits of what may differ must have been set before (I/O spec 21, I3).
    ///
    /// # Panics
    /// If the extent is not held: an extent let go of too early is a block lost after a crash.
    pub fn put(&mut self, extent: Extent) -> bool {
        let slot = self.table.find(extent);
        assert!(slot.is_some_and(|slot| self.table.count(slot) > 0), "{extent:?} is not held");
        let Some(slot) = slot else { return false };
        if !self.table.let_go(slot) {
            return false;
        }
        self.used -= 1;
        self.starving = false;
        true
    }

    /// Whether an extent is held or about to be: resync must stay out of it (I/O spec 4.5).
    pub fn in_use(&self, extent: Extent) -> bool {
        self.table.find(extent).is_some_and(|slot| self.table.count(slot) > 0 || self.table.is_changing(slot))
    }

    /// Whether an extent stands in a slot on disk, as far as transactions have been committed.
    pub fn is_hot(&self, extent: Extent) -> bool {
        self.table.find(extent).is_some_and(|slot| !self.table.is_changing(slot))
    }

    /// The extents that stand in a slot on disk, held or not, as far as transactions have been committed; in the order of
    /// the slots.
    pub fn labelled(&self) -> impl Iterator<Item = Extent> {
        (0..self.slots()).map(|slot| self.table.label(slot)).filter(|extent| *extent != FREE_EXTENT)
    }

    /// Whether the log is starving: some extent found neither a free nor an idle slot, and nobody has let go since.
    pub const fn starving(&self) -> bool {
        self.starving
    }

    /// What happened so far.
    pub const fn statistics(&self) -> Statistics {
        self.statistics
    }

    /// Empties the log and gives it `al_extents` slots, within what the ring allows. Every changed page of the bitmap must
    /// be durable before, because the extents that stand in the ring until now lose their slots without a hint.
    ///
    /// # Errors
    /// If any extent is held or any slot is changing; nothing has changed then.
    pub fn resize(&mut self, al_extents: u32) -> Result<(), InUse> {
        if self.used > 0 || !self.updates.is_empty() || self.transaction_in_flight {
            return Err(InUse);
        }
        self.table = SlotTable::new(self.striping.al_extents(al_extents));
        self.context_start = 0;
        self.starving = false;
        Ok(())
    }

    fn hold(&mut self, slot: u16) {
        self.statistics.hits += 1;
        if self.table.hold(slot) {
            self.used += 1;
        }
    }
}
