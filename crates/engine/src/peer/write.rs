//! A mirrored write (io spec 7).

use udrbd_units::{DiskState, Extent, SectorRange};
use udrbd_wire as wire;
use wire::DataFlags;

use super::{PeerOperation, PeerRequest};
use crate::Engine;
use crate::activity_log::Get;
use crate::bugs::Bug;
use crate::connection::parameters::Verdict;
use crate::interface::{Action, Buffer, Level, Protocol};
use crate::request::Net;
use crate::sending::Ack;
use crate::slab::Key;

/// How a write of the peer meets the own writes under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meeting {
    /// None is in its way.
    Free,
    /// One is, and comes first.
    Wait,
    /// This own write replaces all of it.
    Superseded(SectorRange),
    /// This own write replaces a part of it: it has to be written again on top.
    Retry(SectorRange),
}

impl Engine {
    /// Whether a write of the peer may be taken now: nothing of a resync is in its way, the activity log covers it
    /// where this node alone stores it, and with two Primaries every earlier acknowledgement has been seen.
    pub(crate) fn may_write_for_peer(
        &self,
        index: usize,
        range: SectorRange,
        sequence: wire::SequenceNumber,
    ) -> bool {
        let volume = &self.volumes[index];
        // Also after the end of a resync: a block of it that is still at the disk must not land on top.
        let on_top = volume.sync_writes.overlaps(range) && !self.bug(Bug::NoOverlapWait);
        if on_top || !self.is_covered(index, range) {
            return false;
        }
        if !self.allows_two_primaries() {
            return true;
        }
        // The node that decides waits for every earlier acknowledgement (io spec 9.1).
        let seen = wire::SequenceNumber(volume.peer_sequence.wrapping_add(1));
        if self.connection.resolve_conflicts && sequence.is_after(seen) {
            return false;
        }
        self.meeting(index, range) != Meeting::Wait
    }

    /// Whether both nodes may be Primary.
    pub(crate) fn allows_two_primaries(&self) -> bool {
        self.connection.options.as_ref().is_some_and(|options| options.allow_two_primaries)
    }

    /// What becomes of a write of the peer, given the own writes under way that it overlaps (io spec 9.3).
    fn meeting(&self, index: usize, range: SectorRange) -> Meeting {
        if self.bug(Bug::IgnoreConflicts) {
            return Meeting::Free;
        }
        let mut first: Option<SectorRange> = None;
        for (own, key) in self.volumes[index].writes.overlapping(range) {
            let Some(request) = self.requests.get(key).filter(|request| !request.completed) else { continue };
            let at_disk = request.local.is_pending();
            let concurrent = if self.connection.resolve_conflicts {
                // A write the peer has answered came before this one there, as every earlier answer has been seen: it has
                // to be on the disk before it here, too. (8.4.11 calls it concurrent, and the copies differ.)
                request.net == Net::Pending
            } else {
                // The peer decides about the own write first. One that is to be repeated steps aside.
                false
            };
            if concurrent && at_disk {
                // The peer's write is over as soon as it hears that it is superseded. Nobody may read then what was there
                // before, so this one has to be on the disk (8.4.11 answers at once).
                return Meeting::Wait;
            }
            if concurrent {
                first = Some(first.filter(|first| first.start <= own.start).unwrap_or(own));
            } else if at_disk || !(self.connection.resolve_conflicts || request.postponed) {
                return Meeting::Wait;
            }
        }
        match first {
            None => Meeting::Free,
            Some(own) if own.start <= range.start && range.end() <= own.end() => Meeting::Superseded(own),
            Some(own) => Meeting::Retry(own),
        }
    }

    /// Decides about a write of the peer that meets own ones (io spec 9.3). It is answered here unless it is free. It
    /// belongs to no epoch: its sender counts it in none either (23.2).
    fn resolve(
        &mut self,
        index: usize,
        range: SectorRange,
        block_id: wire::BlockId,
        payload: Option<Buffer>,
    ) -> Option<Verdict> {
        if !self.allows_two_primaries() {
            return None;
        }
        let (own, ack) = match self.meeting(index, range) {
            Meeting::Superseded(own) => (own, Ack::Superseded),
            Meeting::Retry(own) => (own, Ack::Retry),
            Meeting::Free | Meeting::Wait => return None,
        };
        self.release(payload);
        self.uncover_peer_write(index);
        if own != range {
            let first = if ack == Ack::Superseded { "remote" } else { "local" };
            let text = format!(
                "Concurrent writes detected: local={}s +{}, remote={}s +{}, assuming {first} came first",
                own.start, own.bytes, range.start, range.bytes
            );
            self.say(Level::Alert, Some(index), text);
        }
        // Peers below 100 cannot be told to repeat a write, and what lies outside the own write would be missing here.
        if ack == Ack::Retry && self.connection.dialect.version < 100 {
            return Some(Verdict::Reconnect);
        }
        self.send_ack(index, ack, range.start, block_id, range.bytes);
        Some(Verdict::Good)
    }

    /// P_DATA.
    pub(crate) fn write_received(
        &mut self,
        index: usize,
        range: SectorRange,
        write: wire::BlockWrite,
        payload: Option<Buffer>,
        intact: bool,
    ) -> Verdict {
        self.note_sequence(index, write.sequence);
        self.volumes[index].counters.received_sectors += range.sectors();
        if !self.stores_for_peer(index) {
            self.release(payload);
            self.count_peer_write(false);
            self.send_ack(index, Ack::Failed, write.sector, write.block_id, range.bytes);
            self.restart_postponed(index, range);
            return Verdict::Good;
        }
        if !intact {
            let text = format!("Digest integrity check FAILED: {}s +{}", range.start, range.bytes);
            self.say(Level::Error, Some(index), text);
            self.release(payload);
            return Verdict::Reconnect;
        }
        if !self.is_within_device(index, range) {
            self.release(payload);
            return Verdict::Reconnect;
        }
        if let Some(verdict) = self.resolve(index, range, write.block_id, payload) {
            return verdict;
        }
        let Some(buffer) = payload else { return Verdict::Reconnect };
        let key = self.accept_write(index, range, write.block_id, write.flags, Some(buffer));
        let volatile = self.volumes[index].disk.as_ref().is_some_and(|disk| disk.properties.volatile_cache);
        let fua = write.flags.contains(DataFlags::FUA) && volatile;
        let preflush = write.flags.contains(DataFlags::FLUSH) && volatile;
        let number = self.volumes[index].number;
        if self.bug(Bug::AckBeforeDisk) {
            self.acknowledge_write(index, range, write.block_id, write.flags, true, false);
        }
        let token = self.start_peer_io(index, key);
        let action = Action::Write { token, volume: number, range, buffer, fua, preflush };
        self.change_disk(index, range, action);
        Verdict::Good
    }

    /// P_TRIM, P_ZEROES (io spec 10.3).
    pub(crate) fn discard_received(&mut self, index: usize, zero: wire::BlockZero, trim: bool) -> Verdict {
        let range = zero.range();
        self.note_sequence(index, zero.sequence);
        if !self.stores_for_peer(index) {
            self.count_peer_write(false);
            self.send_ack(index, Ack::Failed, zero.sector, zero.block_id, range.bytes);
            self.restart_postponed(index, range);
            return Verdict::Good;
        }
        if !self.is_within_device(index, range) {
            return Verdict::Reconnect;
        }
        if let Some(verdict) = self.resolve(index, range, zero.block_id, None) {
            return verdict;
        }
        let (may_trim, mut zero_out) = if trim {
            (true, !self.connection.dialect.has(wire::Features::WRITE_ZEROES))
        } else {
            (zero.flags.contains(DataFlags::DISCARD), true)
        };
        zero_out |= self.has_untrusted_discards(index);
        let key = self.accept_write(index, range, zero.block_id, zero.flags, None);
        let number = self.volumes[index].number;
        for (range, mode) in self.discard_pieces(index, range, may_trim, zero_out) {
            let token = self.start_peer_io(index, key);
            self.change_disk(index, range, Action::Discard { token, volume: number, range, mode });
        }
        Verdict::Good
    }

    /// Whether zeroes have to be written where the peer has discarded: the disk does not discard, or `discard-zeroes-if-aligned` does
    /// not let its whole granules count as zeroes then. Kernels do not tell any more what reads as zeroes.
    pub(crate) fn has_untrusted_discards(&self, index: usize) -> bool {
        self.volumes[index].disk.as_ref().is_some_and(|disk| {
            disk.properties.discard_granularity_bytes == 0 || !disk.options.discard_zeroes_if_aligned
        })
    }

    fn note_sequence(&mut self, index: usize, sequence: wire::SequenceNumber) {
        self.volumes[index].note_peer_write();
        let seen = wire::SequenceNumber(self.volumes[index].peer_sequence);
        if sequence.is_after(seen) {
            self.volumes[index].peer_sequence = sequence.0;
        }
    }

    fn stores_for_peer(&self, index: usize) -> bool {
        self.volumes[index].has_disk()
    }

    pub(super) fn is_within_device(&mut self, index: usize, range: SectorRange) -> bool {
        let capacity = self.volumes[index].size;
        if range.start.0.checked_add(range.sectors()).is_some_and(|end| end <= capacity.0) {
            return true;
        }
        let text = format!(
            "request from peer beyond end of local disk: capacity: {capacity}s < sector: {}s + size: {}",
            range.start, range.bytes
        );
        self.say(Level::Error, Some(index), text);
        false
    }

    /// Takes a write on: into the epoch, with the acknowledgement of its arrival where that is wanted.
    fn accept_write(
        &mut self,
        index: usize,
        range: SectorRange,
        block_id: wire::BlockId,
        mut flags: DataFlags,
        buffer: Option<Buffer>,
    ) -> Key {
        let epoch = self.count_peer_write(true);
        let (receive_ack, acknowledge) = self.wanted_acks(flags);
        if receive_ack {
            self.send_ack(index, Ack::Received, range.start, block_id, range.bytes);
        }
        let alone = self.volumes[index].state.peer_disk < DiskState::Inconsistent;
        let mut extents = false;
        if alone || !self.volumes[index].state.connection.is_syncing() {
            // It was sent during a resync that is over here.
            flags = flags.without(DataFlags::MAY_SET_IN_SYNC);
        }
        if alone {
            self.volumes[index].set_out_of_sync(range);
            extents = self.volumes[index].peer_extents.take().is_some();
        }
        self.volumes[index].peer_writes += 1;
        if acknowledge {
            self.volumes[index].counters.unacknowledged += 1;
        }
        let key = self.peer_requests.insert(PeerRequest {
            volume: index,
            operation: PeerOperation::Write { epoch, flags, acknowledge, extents },
            range,
            block_id,
            buffer,
            outstanding: 0,
            failed: false,
            orphaned: false,
            given_up: false,
            locks: crate::resync::Locks::default(),
        });
        if self.allows_two_primaries() {
            self.volumes[index].peer_ranges.insert(range, key);
        }
        key
    }

    /// Which acknowledgements a write wants: of its arrival, of its completion (io spec 7.1 step 4).
    fn wanted_acks(&self, flags: DataFlags) -> (bool, bool) {
        if self.connection.dialect.version >= 100 {
            return (flags.contains(DataFlags::SEND_RECEIVE_ACK), flags.contains(DataFlags::SEND_WRITE_ACK));
        }
        let protocol = self.connection.options.as_ref().map_or(Protocol::C, |options| options.protocol);
        (protocol == Protocol::B, protocol == Protocol::C)
    }

    /// Where this node alone stores the peer's writes, it keeps the book (io spec 7.1 step 8, I21): the bits of the next
    /// write are set and its extents taken; it goes on when the transaction is durable.
    pub(crate) fn cover_next_peer_write(&mut self) {
        let Some(front) = self.connection.inbox.front() else { return };
        let range = match &front.packet {
            wire::Packet::Data(write) => SectorRange::new(write.sector, front.payload_bytes),
            wire::Packet::Trim(zero) | wire::Packet::Zeroes(zero) => zero.range(),
            _ => return,
        };
        let Some(index) = self.volume_index(front.volume) else { return };
        if self.volumes[index]
            .peer_extents
            .is_some_and(|covered| covered != range || !self.stores_alone(index))
        {
            self.uncover_peer_write(index);
        }
        let covered = self.volumes[index].peer_extents.is_some();
        if !self.stores_alone(index) || covered || self.volumes[index].quiesce > 0 {
            return;
        }
        self.volumes[index].set_out_of_sync(range);
        let (Some(extents), Some(disk)) = (range.extents(), self.volumes[index].usable_disk()) else {
            return;
        };
        for extent in extents.clone().map(Extent) {
            if disk.extents.blocks_writes(extent) || disk.log.get(extent) == Get::Busy {
                for taken in (*extents.start()..extent.0).map(Extent) {
                    disk.log.put(taken);
                }
                return;
            }
        }
        self.volumes[index].peer_extents = Some(range);
        self.attention = true;
    }

    /// The write for which activity log references have been taken will not come: they are given back.
    pub(crate) fn uncover_peer_write(&mut self, index: usize) {
        let Some(range) = self.volumes[index].peer_extents.take() else { return };
        if let (Some(extents), Some(disk)) = (range.extents(), &mut self.volumes[index].disk) {
            for extent in extents.map(Extent) {
                disk.log.put(extent);
            }
        }
        self.attention = true;
    }

    /// Whether the peer is a Primary without a disk of its own.
    fn stores_alone(&self, index: usize) -> bool {
        let volume = &self.volumes[index];
        let alone = volume.has_disk() && volume.state.peer_disk < DiskState::Inconsistent;
        alone && !self.bug(Bug::NoBookForDiskless)
    }

    /// Whether the activity log covers a write of the peer, where it has to.
    fn is_covered(&self, index: usize, range: SectorRange) -> bool {
        let volume = &self.volumes[index];
        // Also the superblock has to say that the log counts after a crash.
        let committed = volume.disk.as_ref().is_none_or(|disk| {
            disk.transaction == crate::volume::TransactionStep::Idle
                && !disk.log.pending()
                && disk.superblock_durable >= disk.superblock_version
        });
        !self.stores_alone(index) || range.bytes == 0 || (volume.peer_extents == Some(range) && committed)
    }

    /// The disk is done with a write of the peer.
    pub(super) fn peer_write_done(&mut self, key: Key) {
        let Some(request) = self.peer_requests.remove(key) else { return };
        let PeerOperation::Write { epoch, flags, acknowledge, extents } = request.operation else { return };
        let (index, range) = (request.volume, request.range);
        self.release(request.buffer);
        self.volumes[index].peer_writes -= 1;
        self.volumes[index].peer_ranges.remove(range, key);
        self.volumes[index].counters.written_sectors += range.sectors();
        self.volumes[index].activity.add(range.sectors());
        if request.failed {
            let text = format!("write: error=10 s={}s", range.start);
            self.say_rarely(Level::Warning, Some(index), text);
            self.volumes[index].set_out_of_sync(range);
            self.local_io_failed(index, false);
        }
        if extents && let (Some(extents), Some(disk)) = (range.extents(), &mut self.volumes[index].disk) {
            for extent in extents.map(Extent) {
                disk.log.put(extent);
            }
        }
        if !request.orphaned {
            if acknowledge {
                let unacknowledged = &mut self.volumes[index].counters.unacknowledged;
                *unacknowledged = unacknowledged.saturating_sub(1);
            }
            if !self.bug(Bug::AckBeforeDisk) {
                self.acknowledge_write(index, range, request.block_id, flags, acknowledge, request.failed);
            }
            if !request.failed {
                self.peer_write_cached(&request, epoch);
            }
            self.peer_write_completed(epoch);
        } else if self.connection.losing.is_none() {
            self.peer_write_completed(epoch);
        }
        self.restart_postponed(index, range);
        let waits = !self.connection.inbox.is_empty()
            || self.connection.losing.is_some()
            || !self.volumes[index].overlapping.is_empty()
            || self.volumes[index].quiesce > 0;
        self.attention |= waits;
    }

    fn acknowledge_write(
        &mut self,
        index: usize,
        range: SectorRange,
        block_id: wire::BlockId,
        flags: DataFlags,
        acknowledge: bool,
        failed: bool,
    ) {
        let syncing = self.volumes[index].state.connection.is_syncing();
        let ack = if failed {
            Ack::Failed
        } else if !acknowledge {
            return;
        } else if flags.contains(DataFlags::MAY_SET_IN_SYNC) && syncing {
            self.set_in_sync(index, range);
            Ack::WrittenInSync
        } else {
            Ack::Written
        };
        self.send_ack(index, ack, range.start, block_id, range.bytes);
    }
}
