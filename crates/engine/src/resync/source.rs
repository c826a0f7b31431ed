//! The source of a resync: reads what the target asks for while no application writes there (io spec 15.7).

use udrbd_units::{ConnectionState, DiskState, ResyncExtent, SectorRange};
use udrbd_wire as wire;

use super::throttle::PAUSE;
use crate::Engine;
use crate::generation::TargetOfResync;
use crate::peer::PeerOperation;
use crate::resync_extents::{Begin, ResyncExtents, ResyncLock};
use crate::slab::Key;

/// The resync extents of a range. A request of DRBD never crosses a border; one that does takes both.
pub(super) fn extents(range: SectorRange) -> impl Iterator<Item = ResyncExtent> {
    let first = range.start.resync_extent().0;
    let last = udrbd_units::Sector(range.end().0.max(range.start.0 + 1) - 1).resync_extent().0;
    (first..=last).map(ResyncExtent)
}

/// The locks a request of a resync holds: on one extent, or on two where it crosses a border.
#[derive(Debug, Default)]
pub(crate) struct Locks(pub(super) [Option<ResyncLock>; 2]);

impl Locks {
    fn release(&mut self, extents: &mut ResyncExtents) {
        for lock in self.0.iter_mut().filter_map(Option::take) {
            extents.end(lock);
        }
    }
}

/// What came of trying to lock the extents of a read.
enum Locking {
    Done(Locks),
    /// Writes are in flight there, or too many extents are locked.
    Waits,
    /// An application waits for the extent, which is open again.
    SteppedAside,
}

impl Engine {
    /// Starts the reads whose extents are free of application writes. Returns whether one was started.
    pub(crate) fn run_resync_reads(&mut self, index: usize) -> bool {
        if self.volumes[index].state.connection == ConnectionState::Ahead {
            return self.cancel_waiting_reads(index);
        }
        let mut progress = false;
        let now = self.now;
        let resync = &mut self.volumes[index].resync;
        resync.held_until = resync.held_until.filter(|until| *until > now);
        for _ in 0..self.volumes[index].resync.waiting_reads.len() {
            let Some(mut read) = self.volumes[index].resync.waiting_reads.pop_front() else { break };
            let Some(request) = self.peer_requests.get(read.key) else { continue };
            let range = request.range;
            read.not_before = read.not_before.filter(|time| *time > now);
            if self.has_its_turn(index, &mut read, extents(range).next()) && read.not_before.is_none() {
                match self.lock_extents(index, range) {
                    Locking::Done(locks) => {
                        self.peer_requests[read.key].locks = locks;
                        self.volumes[index].resync.budget.spend(u64::from(range.bytes));
                        self.read_for_peer(read.key);
                        progress = true;
                        continue;
                    }
                    Locking::Waits => {}
                    Locking::SteppedAside => {
                        read.not_before = Some(now.after(PAUSE));
                        progress = true;
                    }
                }
            }
            self.volumes[index].resync.waiting_reads.push_back(read);
        }
        progress
    }

    /// Locks all extents of a range against application writes, or none. Where an application waits for one of them it makes
    /// room, while it is faster than it has to be.
    fn lock_extents(&mut self, index: usize, range: SectorRange) -> Locking {
        let mut locks = Locks::default();
        let unlocked = self.bug(crate::bugs::Bug::NoExtentLock);
        let now = self.now;
        for (place, extent) in extents(range).enumerate().take(2) {
            if unlocked {
                continue;
            }
            let volume = &mut self.volumes[index];
            let awaited = volume.disk.as_ref().is_some_and(|disk| disk.extents.has_priority(extent));
            let gives_way = awaited && volume.background_gives_way(now);
            let Some(disk) = &mut volume.disk else { return Locking::Waits };
            match disk.extents.begin_or_wait(extent, &disk.log, gives_way) {
                Begin::Begun(lock) => locks.0[place] = Some(lock),
                other => {
                    locks.release(&mut disk.extents);
                    let aside = other == Begin::SteppedAside;
                    return if aside { Locking::SteppedAside } else { Locking::Waits };
                }
            }
        }
        Locking::Done(locks)
    }

    /// Lets application writes into the extents of a request again.
    pub(crate) fn unlock(&mut self, index: usize, mut locks: Locks) {
        if let Some(disk) = &mut self.volumes[index].disk {
            locks.release(&mut disk.extents);
        }
        self.attention = true;
    }

    /// A block of a resync has been read. The reply is sent before the lock is dropped, so every later write of the
    /// extent is behind it on the socket (io spec I10).
    pub(crate) fn answer_resync_read(&mut self, key: Key, digest: Option<wire::DigestValue>, zeroes: bool) {
        let request = &self.peer_requests[key];
        let (index, range, packet, failed) =
            (request.volume, request.range, request.request(), request.failed);
        let buffer = request.buffer;
        let PeerOperation::ResyncRead { thin, digest: wanted } = request.operation else { return };
        self.volumes[index].resync.by_checksum |= wanted.is_some();
        let state = self.volumes[index].state;
        if state.connection == ConnectionState::Ahead {
            self.cancel_read(index, &packet);
        } else if failed {
            let text = format!("Sending NegRSDReply. sector {}s.", packet.sector);
            self.say_rarely(crate::interface::Level::Error, Some(index), text);
            self.send_negative_reply(index, &packet, true);
            self.count_failed_blocks(index, range);
        } else if state.peer_disk < DiskState::Inconsistent {
            // Nobody is there to take it.
        } else if wanted.is_some() && wanted == digest {
            self.volumes[index].resync.equal_blocks += range.sectors() / 8;
            self.set_in_sync(index, range);
            let sequence = wire::SequenceNumber(self.volumes[index].next_sequence());
            let ack = wire::BlockAck {
                sector: packet.sector,
                block_id: packet.block_id,
                size: packet.size,
                sequence,
            };
            self.send_on_meta(index, wire::Packet::ResyncIsInSync(ack));
        } else if thin && zeroes {
            self.volumes[index].resync.sent_blocks.insert((range.start, range.bytes));
            self.volumes[index].counters.peer_pending += 1;
            self.volumes[index].resync.pending += 1;
            let block = wire::BlockRange::new(packet.sector, packet.size);
            self.send_on_data(index, wire::Packet::ResyncDeallocated(block));
        } else if let Some(buffer) = buffer {
            self.volumes[index].resync.sent_blocks.insert((range.start, range.bytes));
            self.volumes[index].counters.peer_pending += 1;
            self.volumes[index].resync.pending += 1;
            self.send_data_reply(index, &packet, true, buffer);
        }
        let locks = std::mem::take(&mut self.peer_requests[key].locks);
        self.unlock(index, locks);
    }

    /// This node is Ahead: a block the peer asks for is out of date as soon as it is sent.
    fn cancel_read(&mut self, index: usize, request: &wire::BlockRequest) {
        let sequence = wire::SequenceNumber(self.volumes[index].next_sequence());
        let (sector, block_id, size) = (request.sector, request.block_id, request.size);
        let ack = wire::BlockAck { sector, block_id, size, sequence };
        self.send_on_meta(index, wire::Packet::ResyncCancel(ack));
    }

    /// Cancels the reads that wait. Returns whether there were any.
    fn cancel_waiting_reads(&mut self, index: usize) -> bool {
        let waiting = std::mem::take(&mut self.volumes[index].resync.waiting_reads);
        self.volumes[index].resync.held_until = None;
        for read in &waiting {
            let Some(request) = self.peer_requests.get(read.key) else { continue };
            let (range, packet) = (request.range, request.request());
            self.cancel_read(index, &packet);
            self.forget_peer_request(read.key);
            let volume = &mut self.volumes[index];
            volume.counters.unacknowledged = volume.counters.unacknowledged.saturating_sub(1);
            if let Some(disk) = &mut volume.disk {
                for extent in extents(range) {
                    disk.extents.give_up_wait(extent);
                }
            }
        }
        !waiting.is_empty()
    }

    /// The target has written a block.
    pub(crate) fn resync_write_done(&mut self, index: usize, range: SectorRange) {
        self.resync_answered(index);
        // An answer that comes after its resync was cut short says nothing of what has been written since.
        if self.volumes[index].resync.sent_blocks.remove(&(range.start, range.bytes)) {
            self.set_in_sync(index, range);
        } else if self.volumes[index].state.connection == ConnectionState::Ahead {
            // The peer has just cleared the bits of a block that may have been written since.
            self.send_out_of_sync(index, range);
        }
        self.source_may_be_done(index);
    }

    /// What a source whose resync ends before its time knows of the target. It may have everything: a bit that is set here for
    /// a block that was sent, or for a write that is not over, may be clear there. One for any other is set there as well.
    pub(crate) fn look_at_target(&self, index: usize) -> TargetOfResync {
        let volume = &self.volumes[index];
        let Some(disk) = &volume.disk else { return TargetOfResync::Unknown };
        if !volume.resync.running {
            // What was sent is forgotten.
            return TargetOfResync::WasSentAll;
        }
        let set = |range: SectorRange| range.touched_blocks().map_or(0, |blocks| disk.bitmap.count(blocks));
        let sent = volume.resync.sent_blocks.iter().map(|(start, bytes)| SectorRange::new(*start, *bytes));
        let own = self.log.iter().filter_map(|key| self.requests.get(*key));
        let written = own.filter(|request| request.volume == index && request.barrier_expected);
        let written: u64 = written.map(|request| set(request.range)).sum();
        let left = disk.bitmap.set_count().saturating_sub(written);
        if left == 0 {
            TargetOfResync::HoldsCurrent
        } else if left <= sent.map(set).sum() {
            TargetOfResync::WasSentAll
        } else {
            TargetOfResync::Unfinished
        }
    }

    /// The target could not write a block.
    pub(crate) fn resync_write_failed(&mut self, index: usize, range: SectorRange) {
        self.resync_answered(index);
        self.count_failed_blocks(index, range);
    }

    /// One request or block less that the peer owes an answer to. One of a run that was given up counts no more.
    pub(super) fn resync_answered(&mut self, index: usize) {
        let volume = &mut self.volumes[index];
        if volume.resync.pending > 0 {
            volume.resync.pending -= 1;
            volume.counters.peer_pending -= 1;
        }
    }

    /// Blocks of a resync that stay out of sync.
    pub(super) fn count_failed_blocks(&mut self, index: usize, range: SectorRange) {
        let volume = &mut self.volumes[index];
        if let (Some(blocks), Some(disk)) = (range.touched_blocks(), &volume.disk) {
            volume.resync.failed += disk.bitmap.count(blocks);
        }
        self.attention = true;
    }

    /// Up to version 95 the source counts for itself.
    fn source_may_be_done(&mut self, index: usize) {
        let volume = &self.volumes[index];
        let old_protocol = self.connection.dialect.version <= 95;
        let source = volume.state.connection == ConnectionState::SyncSource;
        if old_protocol && source && volume.set_bits() <= volume.resync.failed {
            self.finish_resync(index);
        }
    }
}
