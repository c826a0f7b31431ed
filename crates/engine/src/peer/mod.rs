//! What this node does for the peer: mirrored writes, reads, and the order of its epochs (io spec 7 and 8).

mod epoch;
mod read;
mod write;

use udrbd_units::{ConnectionState, SectorRange};
use udrbd_wire as wire;

pub(crate) use epoch::{CachedWrite, PeerEpoch};

use crate::Engine;
use crate::bugs::Bug;
use crate::connection::{Inbound, parameters::Verdict};
use crate::disk::Purpose;
use crate::interface::{Buffer, IoError};
use crate::resync::Locks;
use crate::slab::Key;

/// What a request of the peer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PeerOperation {
    /// A write, discard or write of zeroes.
    Write {
        /// The epoch it belongs to, by the engine's own count.
        epoch: u64,
        flags: wire::DataFlags,
        acknowledge: bool,
        /// Activity log references taken (only while the peer is diskless).
        extents: bool,
    },
    /// A block of a resync, to be written here.
    ResyncWrite,
    /// A read for an application there.
    Read,
    /// A read for a resync there.
    ResyncRead { thin: bool, digest: Option<wire::DigestValue> },
    /// The own block, to be compared by digest before the peer's is asked for.
    ChecksumRead,
    /// A read for an online verify: on behalf of the peer, or the own block to compare with.
    Verify { digest: Option<wire::DigestValue> },
}

/// A request of the peer, or of a resync.
pub(crate) struct PeerRequest {
    pub(crate) volume: usize,
    pub(crate) operation: PeerOperation,
    pub(crate) range: SectorRange,
    pub(crate) block_id: wire::BlockId,
    pub(crate) buffer: Option<Buffer>,
    /// Operations at the disk, and whether one has failed.
    pub(crate) outstanding: u32,
    pub(crate) failed: bool,
    /// The connection it belongs to is gone, or the resync it was read for: nothing is answered.
    pub(crate) orphaned: bool,
    /// The resync it belongs to was given up: it is answered, but its blocks stay out of sync here.
    pub(crate) given_up: bool,
    /// What a request of a resync keeps application writes out of.
    pub(crate) locks: Locks,
}

impl PeerRequest {
    /// The packet it came in, as far as an answer needs it.
    pub(crate) const fn request(&self) -> wire::BlockRequest {
        wire::BlockRequest::new(self.range.start, self.block_id, self.range.bytes)
    }
}

impl Engine {
    /// Whether a packet of the data socket may be processed now; all behind it wait as well.
    pub(crate) fn may_receive(&self, inbound: &Inbound) -> bool {
        // What follows cannot be read before it: whether there are digests.
        if matches!(inbound.packet, wire::Packet::Protocol(_)) {
            return true;
        }
        let index = self.volume_index(inbound.volume);
        let drains = self.epoch_is_draining()
            && !(self.bug(Bug::DrainByVolume)
                && index.is_some_and(|index| self.volumes[index].peer_writes == 0));
        if self.connection.flushes > 0 || drains || self.is_pondering() {
            return false;
        }
        let Some(index) = index else { return true };
        if self.is_resizing(index) {
            return false;
        }
        match &inbound.packet {
            // A peer that is done with its resync may have a new size; then so has this node to be.
            wire::Packet::Sizes(_) => !self.is_ending_as_source(index),
            wire::Packet::Data(write) => self.may_write_for_peer(
                index,
                SectorRange::new(write.sector, inbound.payload_bytes),
                write.sequence,
            ),
            wire::Packet::Trim(zero) | wire::Packet::Zeroes(zero) => {
                self.volumes.iter().all(|volume| volume.peer_writes == 0)
                    && self.may_write_for_peer(index, zero.range(), zero.sequence)
            }
            // Nor must a block that a resync which was given up gave to the disk land on the same block of the next one.
            wire::Packet::ResyncDataReply(reply) => {
                let range = SectorRange::new(reply.sector, inbound.payload_bytes);
                !self.volumes[index].sync_writes.overlaps(range)
            }
            wire::Packet::ResyncDeallocated(range) => {
                !self.volumes[index].sync_writes.overlaps(range.range())
            }
            // P_SYNC_UUID may be early (states spec 6.5).
            wire::Packet::SyncUuid(_) => self.may_take_sync_uuid(index),
            // The bitmap of the peer is wanted when the own is complete.
            wire::Packet::Bitmap | wire::Packet::CompressedBitmap(_) => self.may_take_bitmap(index),
            // The peer's identifiers wait for a change of state under way (states spec 6.3 step 4).
            wire::Packet::Uuids(_) => !self.volumes[index].state_locked,
            // It is about to give up its copy for the one here.
            wire::Packet::StateChangeRequest(change)
                if change.connection == Some(ConnectionState::StartingSyncT) =>
            {
                self.superblock_is_current(index)
            }
            _ => true,
        }
    }

    /// A request of the peer for data, or data of a resync.
    pub(crate) fn peer_request_received(&mut self, index: usize, inbound: Inbound) -> Verdict {
        use wire::Packet as P;
        match inbound.packet {
            P::Data(write) => {
                let range = SectorRange::new(write.sector, inbound.payload_bytes);
                self.write_received(index, range, write, inbound.payload, inbound.intact)
            }
            P::Trim(zero) | P::Zeroes(zero) => {
                let trim = matches!(inbound.packet, P::Trim(_));
                self.discard_received(index, zero, trim)
            }
            P::DataRequest(request) => self.read_received(index, request, PeerOperation::Read),
            P::ResyncDataRequest(request) => {
                self.read_received(index, request, PeerOperation::ResyncRead { thin: false, digest: None })
            }
            P::ResyncThinRequest(request) => {
                self.read_received(index, request, PeerOperation::ResyncRead { thin: true, digest: None })
            }
            P::ChecksumResyncRequest(request) => {
                let operation = PeerOperation::ResyncRead { thin: false, digest: inbound.digest };
                self.read_received(index, request, operation)
            }
            P::VerifyRequest(request) => self.verify_request_received(index, request),
            P::VerifyReply(request) => self.verify_reply(index, request, inbound.digest),
            P::DataReply(reply) => self.data_reply(index, reply, &inbound),
            P::ResyncDataReply(reply) => {
                let range = SectorRange::new(reply.sector, inbound.payload_bytes);
                self.resync_data_received(index, range, inbound.payload, inbound.intact)
            }
            P::ResyncDeallocated(range) => self.resync_deallocated(index, range.range()),
            _ => {
                self.release(inbound.payload);
                Verdict::Reconnect
            }
        }
    }

    /// Requests of the peer that are at a disk.
    pub(crate) fn peer_requests_at_disk(&self) -> usize {
        self.peer_requests.iter().filter(|(_, request)| request.outstanding > 0).count()
    }

    /// The connection is gone: what is at the disks ends silently, what waits is forgotten.
    pub(crate) fn drop_waiting_peer_requests(&mut self) {
        let keys: Vec<Key> = self.peer_requests.iter().map(|(key, _)| key).collect();
        for key in keys {
            let request = &mut self.peer_requests[key];
            request.orphaned = true;
            if request.outstanding == 0 {
                self.forget_peer_request(key);
            }
        }
        for volume in &mut self.volumes {
            volume.resync.waiting_reads.clear();
            volume.resync.held_until = None;
            volume.counters.unacknowledged = 0;
        }
    }

    /// Nothing of the peer is at the disks any more.
    pub(crate) fn forget_peer_requests(&mut self) {
        let keys: Vec<Key> = self.peer_requests.iter().map(|(key, _)| key).collect();
        for key in keys {
            self.forget_peer_request(key);
        }
    }

    pub(crate) fn forget_peer_request(&mut self, key: Key) {
        if let Some(request) = self.peer_requests.remove(key) {
            self.release(request.buffer);
        }
    }

    /// Whether what is at the disk for a request is a read.
    pub(crate) fn is_peer_read(&self, key: Key) -> bool {
        let reads =
            |operation| !matches!(operation, PeerOperation::Write { .. } | PeerOperation::ResyncWrite);
        self.peer_requests.get(key).is_some_and(|request| reads(request.operation))
    }

    /// A disk operation for the peer, other than a read, has ended.
    pub(crate) fn peer_disk_done(&mut self, key: Key, result: Result<(), IoError>) {
        let Some(request) = self.peer_requests.get_mut(key) else { return };
        request.outstanding -= 1;
        request.failed |= result.is_err();
        if request.outstanding > 0 {
            return;
        }
        self.attention |= request.orphaned;
        match request.operation {
            PeerOperation::Write { .. } => self.peer_write_done(key),
            PeerOperation::ResyncWrite => self.resync_write_ended(key),
            _ => self.forget_peer_request(key),
        }
    }

    /// A read for the peer, or for a resync, has ended.
    pub(crate) fn peer_read_done(
        &mut self,
        key: Key,
        buffer: Option<Buffer>,
        digest: Option<wire::DigestValue>,
        zeroes: bool,
        result: Result<(), IoError>,
    ) {
        let Some(request) = self.peer_requests.get_mut(key) else {
            self.release(buffer);
            return;
        };
        request.outstanding -= 1;
        request.failed = result.is_err();
        request.buffer = buffer;
        let (index, range) = (request.volume, request.range);
        let application = request.operation == PeerOperation::Read;
        if request.orphaned {
            self.attention = true;
            self.forget_peer_request(key);
            return;
        }
        if result.is_ok() {
            self.volumes[index].counters.read_sectors += range.sectors();
            if application {
                self.volumes[index].activity.add(range.sectors());
            }
        } else {
            self.local_io_failed(index, true);
        }
        self.answer_read(key, digest, zeroes);
    }

    pub(crate) fn start_peer_io(&mut self, index: usize, key: Key) -> crate::interface::Token {
        self.peer_requests[key].outstanding += 1;
        self.start_io(index, Purpose::PeerRequest(key))
    }
}
