//! The transaction that makes changed slots durable (I/O spec 4.3, metadata spec 5.6).

use udrbd_metadata::activity_log::{NewTransaction, next_context_start};
use udrbd_metadata::layout::Striping;
use udrbd_metadata::{Block, FREE_EXTENT};
use udrbd_units::Extent;

use super::ActivityLog;

/// Which transaction goes where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransactionPlace {
    /// Its number.
    pub number: u32,
    /// The 4 KiB block of the activity log area that it must be written to, striping included.
    pub block: u32,
}

impl ActivityLog {
    /// Whether slots wait for a transaction that has not been begun.
    pub fn pending(&self) -> bool {
        !self.updates.is_empty() && !self.transaction_in_flight
    }

    /// Whether a transaction has been begun and not committed.
    pub const fn transaction_in_flight(&self) -> bool {
        self.transaction_in_flight
    }

    /// The number the next transaction has, or the one in flight: what the log that follows after a detach and attach
    /// continues with.
    pub const fn number(&self) -> u32 {
        self.number
    }

    /// The number of transactions written: DRBD's counter `al`.
    pub const fn transactions_written(&self) -> u64 {
        self.transactions_written
    }

    /// Closes the set of changes and starts their transaction. No slot changes until it is committed. `None` if there are
    /// no changes or another transaction is in flight.
    pub fn begin_transaction(&mut self) -> Option<TransactionPlace> {
        if self.updates.is_empty() { None } else { self.begin_ring_transaction() }
    }

    /// As [`begin_transaction`](Self::begin_transaction), also without changes: to fill a ring that has moved or has never
    /// been used with one transaction per block (metadata spec 5.9). `None` if another transaction is in flight.
    pub fn begin_ring_transaction(&mut self) -> Option<TransactionPlace> {
        if self.transaction_in_flight {
            return None;
        }
        self.transaction_in_flight = true;
        // DRBD lists the most recent first.
        self.updates.reverse();
        Some(self.place())
    }

    /// Where the transaction in flight goes.
    fn place(&self) -> TransactionPlace {
        TransactionPlace { number: self.number, block: self.striping.block_at(self.position) }
    }

    /// The extents that lose their slot in the transaction in flight. The page of the bitmap that holds the bits of each must
    /// be on disk, as it is now, before the transaction is written.
    pub fn evicted_extents(&self) -> impl Iterator<Item = Extent> {
        let updates = if self.transaction_in_flight { self.updates.as_slice() } else { &[] };
        updates.iter().map(|update| self.table.label(update.slot)).filter(|extent| *extent != FREE_EXTENT)
    }

    /// Writes the block of the transaction in flight into `block`.
    ///
    /// # Panics
    /// If none is in flight.
    pub fn encode_transaction(&self, block: &mut Block) {
        assert!(self.transaction_in_flight);
        let transaction = NewTransaction {
            number: self.number,
            updates: &self.updates,
            slots: self.slots(),
            context_start: self.context_start,
        };
        transaction.encode_into(block, |slot| self.table.label(slot));
    }

    /// The transaction in flight is durable: its extents are hot, and the writes that waited for it may go on.
    ///
    /// # Panics
    /// If none is in flight.
    pub fn commit(&mut self) {
        self.commit_unwritten();
        self.number = self.number.wrapping_add(1);
        self.position = (self.position + 1) % self.striping.blocks();
        self.context_start = next_context_start(self.context_start, self.slots());
        self.transactions_written += 1;
    }

    /// The transaction in flight will not be written, and its extents count as hot nevertheless. There are two reasons:
    /// `al-updates no`, where the log must be emptied with [`resize`](Self::resize) before updates are written
    /// again; and an error of the metadata device, after which the disk has Failed and the writes that waited find that out
    /// for themselves (I/O spec 4.3).
    ///
    /// # Panics
    /// If none is in flight.
    pub fn commit_unwritten(&mut self) {
        assert!(self.transaction_in_flight);
        self.transaction_in_flight = false;
        self.statistics.changed += self.updates.len() as u64;
        while let Some(update) = self.updates.pop() {
            if self.table.settle(update.slot) {
                self.starving = false;
            }
        }
    }

    /// The ring has another shape from now on (the metadata move). Fill it with
    /// [`begin_ring_transaction`](Self::begin_ring_transaction), one per block, before the first write relies on it.
    ///
    /// # Errors
    /// False, and nothing has changed, if the ring is too small for the slots there are, or a transaction is in flight.
    #[must_use]
    pub fn set_striping(&mut self, striping: Striping) -> bool {
        let fits = striping.is_valid() && u32::from(self.slots()) <= striping.al_extents_max();
        if !fits || self.transaction_in_flight {
            return false;
        }
        self.striping = striping;
        self.position = self.number % striping.blocks();
        true
    }
}
