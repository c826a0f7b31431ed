//! Epochs on the receiving side: a barrier is acknowledged when everything before it is on stable storage
//! (io spec 7.3, 8.1; safer than 8.4.11, which does not wait for the flush: 23.1).

use crate::Engine;
use crate::bugs::Bug;
use crate::connection::WriteOrdering;
use crate::disk::Purpose;
use crate::interface::{Action, IoError, Level};

/// A set of the peer's writes that may be reordered among each other.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PeerEpoch {
    id: u64,
    /// The barrier that ended it.
    barrier: Option<u32>,
    /// Writes received.
    size: u32,
    /// Writes not complete.
    active: u32,
    flushed: bool,
}

impl PeerEpoch {
    pub(crate) const fn new(id: u64) -> Self {
        Self { id, barrier: None, size: 0, active: 0, flushed: false }
    }
}

/// A write of the peer that its disk has completed and may still lose.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CachedWrite {
    volume: usize,
    epoch: u64,
    sector: udrbd_units::Sector,
    block_id: udrbd_wire::BlockId,
    bytes: u32,
}

impl Engine {
    /// A write of the peer is in the cache of the disk.
    pub(crate) fn peer_write_cached(&mut self, request: &super::PeerRequest, epoch: u64) {
        let index = request.volume;
        let volatile = self.volumes[index].disk.as_ref().is_some_and(|disk| disk.properties.volatile_cache);
        if volatile && self.connection.write_ordering == WriteOrdering::Flush {
            self.connection.cached_writes.push_back(CachedWrite {
                volume: index,
                epoch,
                sector: request.range.start,
                block_id: request.block_id,
                bytes: request.range.bytes,
            });
            if !self.volumes[index].has_disk() {
                self.cached_writes_lost(index);
            }
        }
    }

    /// The disk is gone with what was in its cache: the peer, which took these writes for done, is told that they are not,
    /// before a barrier confirms them. Its bits remember them then.
    pub(crate) fn cached_writes_lost(&mut self, index: usize) {
        if self.connection.losing.is_some() {
            return;
        }
        for write in std::mem::take(&mut self.connection.cached_writes) {
            if write.volume == index {
                self.send_ack(index, crate::sending::Ack::Failed, write.sector, write.block_id, write.bytes);
            } else {
                self.connection.cached_writes.push_back(write);
            }
        }
    }

    /// Counts a write of the peer into the current epoch. Returns the epoch.
    pub(crate) fn count_peer_write(&mut self, active: bool) -> u64 {
        if self.connection.epochs.is_empty() {
            self.connection.epoch_count += 1;
            self.connection.epochs.push_back(PeerEpoch::new(self.connection.epoch_count));
        }
        match self.connection.epochs.back_mut() {
            Some(epoch) => {
                epoch.size += 1;
                epoch.active += u32::from(active);
                epoch.id
            }
            None => 0,
        }
    }

    /// A write of an epoch is complete, and its acknowledgement sent.
    pub(crate) fn peer_write_completed(&mut self, epoch: u64) {
        if let Some(epoch) = self.connection.epochs.iter_mut().find(|other| other.id == epoch) {
            epoch.active -= 1;
        }
        self.finish_epochs();
    }

    /// P_BARRIER: the current epoch is over.
    pub(crate) fn barrier_received(&mut self, number: u32) {
        let Some(epoch) = self.connection.epochs.back_mut() else { return };
        if epoch.size == 0 {
            // Nothing to acknowledge (io spec 7.3); the kernel would keep the number and be wrong later.
            return;
        }
        epoch.barrier = Some(number);
        self.connection.epoch_count += 1;
        let next = PeerEpoch::new(self.connection.epoch_count);
        self.connection.epochs.push_back(next);
        self.finish_epochs();
    }

    /// Whether the next packet has to wait for an epoch that is over but not complete.
    pub(crate) fn epoch_is_draining(&self) -> bool {
        self.connection.write_ordering >= WriteOrdering::Drain
            && !self.bug(Bug::DropBarrier)
            && self.connection.epochs.iter().any(|epoch| epoch.barrier.is_some())
    }

    /// Acknowledges the epochs that are complete, the oldest first.
    fn finish_epochs(&mut self) {
        while let Some(epoch) = self.connection.epochs.front().copied() {
            let Some(barrier) = epoch.barrier else { return };
            if epoch.active > 0 {
                return;
            }
            if !epoch.flushed
                && self.connection.write_ordering == WriteOrdering::Flush
                && !self.bug(Bug::BarrierAckBeforeFlush)
                && self.flush_for_epoch(epoch.id)
            {
                return;
            }
            self.connection.epochs.pop_front();
            self.connection.cached_writes.retain(|write| write.epoch != epoch.id);
            if epoch.size > 0 && self.connection.losing.is_none() {
                self.send_barrier_ack(barrier, epoch.size);
            }
            if !self.connection.inbox.is_empty() {
                self.attention = true;
            }
        }
    }

    /// Flushes the disks with a volatile cache. Returns whether there is something to wait for.
    fn flush_for_epoch(&mut self, epoch: u64) -> bool {
        if self.connection.flushes > 0 {
            return true;
        }
        self.connection.flushed_epoch = epoch;
        for index in 0..self.volumes.len() {
            let volume = &self.volumes[index];
            let volatile = volume.disk.as_ref().is_some_and(|disk| disk.properties.volatile_cache);
            let forgotten = self.bug(Bug::FlushOfFirstVolume) && volume.number.0 > 0;
            if volatile && volume.has_disk() && !forgotten {
                let number = volume.number;
                let token = self.start_io(index, Purpose::EpochFlush);
                self.connection.flushes += 1;
                self.out.push(Action::Flush { token, volume: number });
            }
        }
        self.connection.flushes > 0
    }

    /// One of the flushes has ended.
    pub(crate) fn epoch_flushed(&mut self, index: usize, result: Result<(), IoError>) {
        self.connection.flushes -= 1;
        if let Err(error) = result {
            let text = format!("local disk FLUSH FAILED with status {}", error.errno);
            self.say(Level::Info, Some(index), text);
            self.lower_write_ordering(WriteOrdering::Drain);
        }
        self.attention = true;
        if self.connection.flushes > 0 {
            return;
        }
        let flushed = self.connection.flushed_epoch;
        if let Some(epoch) = self.connection.epochs.iter_mut().find(|epoch| epoch.id == flushed) {
            epoch.flushed = true;
        }
        self.finish_epochs();
    }

    fn lower_write_ordering(&mut self, ordering: WriteOrdering) {
        if self.connection.write_ordering > ordering {
            self.set_write_ordering(ordering);
        }
    }

    fn set_write_ordering(&mut self, ordering: WriteOrdering) {
        let changed = self.connection.write_ordering != ordering;
        self.connection.write_ordering = ordering;
        let name = match ordering {
            WriteOrdering::None => "none",
            WriteOrdering::Drain => "drain",
            WriteOrdering::Flush => "flush",
        };
        if changed || ordering == WriteOrdering::Flush {
            self.say(Level::Info, None, format!("Method to ensure write ordering: {name}"));
        }
    }

    /// A disk has come or gone, or its options changed (io spec 8.2).
    pub(crate) fn write_ordering_may_change(&mut self) {
        let mut ordering = WriteOrdering::Flush;
        for disk in self.volumes.iter().filter_map(|volume| volume.disk.as_ref()) {
            if ordering == WriteOrdering::Flush && !disk.options.disk_flushes {
                ordering = WriteOrdering::Drain;
            }
            if ordering == WriteOrdering::Drain && !disk.options.disk_drain {
                ordering = WriteOrdering::None;
            }
        }
        self.set_write_ordering(ordering);
    }
}
