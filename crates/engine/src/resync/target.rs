//! The target of a resync: asks for blocks, writes them (io spec 15.2 to 15.4).

use udrbd_units::{BlockNumber, ConnectionState, SectorRange};
use udrbd_wire as wire;

use super::STEP;
use super::control::Room;
use super::source::Locks;
use crate::Engine;
use crate::bugs::Bug;
use crate::connection::parameters::Verdict;
use crate::interface::{Action, Buffer, Duration, Level};
use crate::peer::{PeerOperation, PeerRequest};
use crate::sending::Ack;
use crate::slab::Key;
use crate::volume::Disk;

/// Blocks of a 16 MiB extent.
const EXTENT_BLOCKS: u64 = udrbd_units::RESYNC_EXTENT_BLOCKS;
/// Bytes of the largest request.
const REQUEST_BYTES_MAX: u32 = 1 << 20;

/// What came of trying to ask for blocks, of a resync or a verify.
pub(super) enum Asked {
    Blocks(u64),
    Busy,
    /// There is no room for a whole request, and will be.
    Later,
    Nothing,
}

impl Engine {
    /// A step of the target is due.
    pub(crate) fn run_resync_step(&mut self, index: usize) {
        let now = self.now;
        let volume = &self.volumes[index];
        if volume.resync.timer.is_none_or(|timer| timer > now) {
            return;
        }
        if volume.state.connection == ConnectionState::VerifyS && volume.resync.verify.is_some() {
            self.run_verify_step(index);
            return;
        }
        if volume.state.connection != ConnectionState::SyncTarget {
            self.volumes[index].resync.timer = None;
            return;
        }
        if volume.resync.after_superblock.is_some_and(|version| !self.superblock_is_durable(index, version)) {
            self.volumes[index].resync.timer = Some(now.after(Duration::from_millis(1)));
            return;
        }
        self.volumes[index].resync.after_superblock = None;
        let volume = &mut self.volumes[index];
        volume.resync.leftover &= !volume.resync.asked.is_empty();
        if volume.resync.leftover {
            volume.resync.timer = Some(now.after(STEP));
            return;
        }
        let room = self.resync_room(index);
        let volume = &mut self.volumes[index];
        volume.resync.sectors_arrived = 0;
        let Some(disk) = &volume.disk else { return };
        let number = volume.resync.controller.step(&disk.options, room);
        volume.resync.timer = Some(now.after(STEP));
        self.ask_for(index, number);
        self.resync_may_be_done(index);
    }

    pub(super) fn resync_room(&self, index: usize) -> Room {
        let volume = &self.volumes[index];
        let reading = volume.resync.verify.as_ref().map_or(0, |verify| verify.reading);
        Room {
            max_buffers: self.connection.options.as_ref().map_or(2048, |options| options.max_buffers),
            arrived: volume.resync.sectors_arrived,
            unfinished: volume.sync_write_sectors + reading,
        }
    }

    /// Something has arrived, or been written or compared: asks for what the present step may still ask for.
    pub(super) fn ask_for_more(&mut self, index: usize) {
        let volume = &self.volumes[index];
        let asking =
            matches!(volume.state.connection, ConnectionState::SyncTarget | ConnectionState::VerifyS)
                && volume.resync.timer.is_some()
                && volume.resync.after_superblock.is_none();
        if asking {
            let number = volume.resync.controller.refill(self.resync_room(index));
            self.ask_for(index, number);
        }
    }

    /// Asks for `number` blocks, as far as there are so many.
    pub(super) fn ask_for(&mut self, index: usize, number: i64) {
        let verifying = self.volumes[index].resync.verify.is_some();
        let mut asked = 0;
        while (asked as i64) < number {
            let limit = number as u64 - asked;
            let came = if verifying {
                self.ask_to_verify(index, limit)
            } else {
                let controller = &self.volumes[index].resync.controller;
                let granted = (controller.granted() - asked as i64).max(0) as u64;
                let limit = limit + u64::from(limit == granted && controller.last_request_grows());
                self.ask_for_blocks(index, limit, limit.max(granted))
            };
            match came {
                Asked::Blocks(blocks) => asked += blocks,
                Asked::Later => break,
                Asked::Busy => {
                    self.volumes[index].resync.controller.end_step();
                    break;
                }
                Asked::Nothing => {
                    self.volumes[index].resync.timer = None;
                    break;
                }
            }
        }
        self.volumes[index].resync.controller.asked(asked);
    }

    /// Asks for the next run of blocks that are out of sync, `limit` at the most. Of those `granted` that is all there is room for now:
    /// a request is not cut for that, as a hole does not show in its parts (io spec 15.9).
    fn ask_for_blocks(&mut self, index: usize, limit: u64, granted: u64) -> Asked {
        let now = self.now;
        let max_buffers = self.resync_room(index).max_buffers;
        let volume = &mut self.volumes[index];
        let capacity = volume.size;
        let peer_bytes_max = self.connection.dialect.request_bytes_max();
        let is_thin_agreed = self.connection.dialect.has(wire::Features::THIN_RESYNC);
        let Some(disk) = &mut volume.disk else { return Asked::Nothing };
        let Some(block) = disk.bitmap.find_next_set(BlockNumber(volume.resync.next_block)) else {
            volume.resync.next_block = disk.bitmap.bits();
            if disk.extents.drop_half_lock() {
                self.attention = true;
            }
            return Asked::Nothing;
        };
        volume.resync.next_block = block.0;
        let limit_bytes = disk.properties.max_request_bytes.min(REQUEST_BYTES_MAX).min(peer_bytes_max);
        let thin_bytes = thin_bytes(disk).filter(|_| is_thin_agreed);
        let gives_way = volume.background_gives_way(now);
        let limit_bytes = match volume.yielding_request_bytes() {
            Some(bytes) => limit_bytes.min(bytes.max(thin_bytes.unwrap_or(0))),
            None => limit_bytes,
        };
        let under_way = !volume.resync.asked.is_empty() || volume.sync_write_sectors > 0;
        let Some(disk) = &mut volume.disk else { return Asked::Nothing };
        let blocks = run_length(&disk.bitmap, block.0, limit, limit_bytes, thin_bytes);
        if blocks == limit && limit < granted && under_way {
            let whole = run_length(&disk.bitmap, block.0, granted, limit_bytes, thin_bytes);
            // Where few buffers make do, requests are cut as they always are.
            if whole > blocks && whole <= u64::from(max_buffers) / 8 {
                return Asked::Later;
            }
        }
        let Ok(lock) = disk.extents.try_begin(block.resync_extent(), &disk.log, gives_way) else {
            // An extent may have been opened to writes.
            self.attention = true;
            return Asked::Busy;
        };
        volume.resync.next_block = block.0 + blocks;
        let start = udrbd_units::Sector::of_block(block);
        let sectors = (blocks * 8).min(capacity.0 - start.0);
        let range = SectorRange::new(start, (sectors * 512) as u32);
        volume.resync.budget.spend(u64::from(range.bytes));
        volume.resync.asked.insert(start, (range, Locks([Some(lock), None])));
        if volume.resync.by_checksum {
            let key = self.peer_requests.insert(PeerRequest {
                volume: index,
                operation: PeerOperation::ChecksumRead,
                range,
                block_id: wire::BlockId::SYNCER,
                buffer: None,
                outstanding: 0,
                failed: false,
                orphaned: false,
                given_up: false,
                locks: Locks::default(),
            });
            self.read_for_peer(key);
        } else {
            volume.counters.peer_pending += 1;
            volume.resync.pending += 1;
            let request = wire::BlockRequest::new(range.start, wire::BlockId::SYNCER, range.bytes);
            let packet = match thin_bytes {
                Some(bytes) if bytes == range.bytes => wire::Packet::ResyncThinRequest(request),
                _ => wire::Packet::ResyncDataRequest(request),
            };
            self.send_on_data(index, packet);
        }
        Asked::Blocks(blocks)
    }

    /// The own data have been read for a comparison: the peer is asked with their digest (io spec 15.8).
    pub(crate) fn ask_with_checksum(&mut self, key: Key, digest: Option<wire::DigestValue>) {
        let Some(request) = self.peer_requests.get(key) else { return };
        let (index, range, failed) = (request.volume, request.range, request.failed);
        self.forget_peer_request(key);
        let volume = &mut self.volumes[index];
        if !volume.resync.asked.contains_key(&range.start) {
            // The resync was given up meanwhile.
            return;
        }
        volume.counters.peer_pending += 1;
        volume.resync.pending += 1;
        let request = wire::BlockRequest::new(range.start, wire::BlockId::SYNCER, range.bytes);
        let number = volume.number;
        // A block that cannot be read here is asked for as it is.
        let packet = match digest {
            Some(_) if !failed => wire::Packet::ChecksumResyncRequest(request),
            _ => wire::Packet::ResyncDataRequest(request),
        };
        let digest = digest.filter(|_| !failed);
        self.send_with(
            crate::interface::SocketRole::Data,
            number,
            packet,
            crate::interface::Payload::None,
            false,
            digest,
            None,
        );
    }

    /// P_RS_DATA_REPLY.
    pub(crate) fn resync_data_received(
        &mut self,
        index: usize,
        range: SectorRange,
        payload: Option<Buffer>,
        intact: bool,
    ) -> Verdict {
        self.volumes[index].counters.received_sectors += range.sectors();
        self.volumes[index].resync.sectors_arrived += range.sectors();
        if !self.volumes[index].resync.running {
            // On its way when the resync was given up.
            self.release(payload);
            return Verdict::Good;
        }
        let Some(locks) = self.take_asked(index, range) else {
            self.release(payload);
            return Verdict::Reconnect;
        };
        if !intact && self.volumes[index].has_disk() {
            let text = format!("Digest integrity check FAILED: {}s +{}", range.start, range.bytes);
            self.say(Level::Error, Some(index), text);
            self.release(payload);
            return Verdict::Reconnect;
        }
        self.resync_answered(index);
        if !self.volumes[index].has_disk() {
            self.release(payload);
            self.unlock(index, locks);
            self.send_ack(index, Ack::Failed, range.start, wire::BlockId::SYNCER, range.bytes);
            return Verdict::Good;
        }
        let Some(buffer) = payload else { return Verdict::Reconnect };
        if self.bug(Bug::ClearOnArrival) {
            self.set_in_sync(index, range);
        }
        let key = self.accept_resync_write(index, range, Some(buffer), locks);
        let volume = self.volumes[index].number;
        let token = self.start_peer_io(index, key);
        let write = Action::Write { token, volume, range, buffer, fua: false, preflush: false };
        self.change_disk(index, range, write);
        self.ask_for_more(index);
        Verdict::Good
    }

    /// P_RS_DEALLOCATED: zeroes.
    pub(crate) fn resync_deallocated(&mut self, index: usize, range: SectorRange) -> Verdict {
        if !self.volumes[index].resync.running {
            return Verdict::Good;
        }
        self.volumes[index].resync.sectors_arrived += range.sectors();
        let Some(locks) = self.take_asked(index, range) else { return Verdict::Reconnect };
        self.resync_answered(index);
        if !self.volumes[index].has_disk() {
            self.unlock(index, locks);
            self.send_ack(index, Ack::Failed, range.start, wire::BlockId::SYNCER, range.bytes);
            return Verdict::Good;
        }
        let key = self.accept_resync_write(index, range, None, locks);
        let volume = self.volumes[index].number;
        // As a discard of the peer (io spec 15.9).
        for (range, mode) in self.discard_pieces(index, range, true, self.has_untrusted_discards(index)) {
            let token = self.start_peer_io(index, key);
            self.change_disk(index, range, Action::Discard { token, volume, range, mode });
        }
        self.ask_for_more(index);
        Verdict::Good
    }

    /// Finds what was asked for: only that may be answered.
    fn take_asked(&mut self, index: usize, range: SectorRange) -> Option<Locks> {
        let asked = &mut self.volumes[index].resync.asked;
        if asked.get(&range.start).is_some_and(|(wanted, _)| *wanted == range) {
            return asked.remove(&range.start).map(|(_, locks)| locks);
        }
        let text =
            format!("resync reply for sector {}s +{}, which was not asked for", range.start, range.bytes);
        self.say(Level::Error, Some(index), text);
        None
    }

    fn accept_resync_write(
        &mut self,
        index: usize,
        range: SectorRange,
        buffer: Option<Buffer>,
        locks: Locks,
    ) -> Key {
        self.volumes[index].counters.unacknowledged += 1;
        let key = self.peer_requests.insert(PeerRequest {
            volume: index,
            operation: PeerOperation::ResyncWrite,
            range,
            block_id: wire::BlockId::SYNCER,
            buffer,
            outstanding: 0,
            failed: false,
            orphaned: false,
            given_up: false,
            locks,
        });
        self.volumes[index].sync_writes.insert(range, key);
        self.volumes[index].sync_write_sectors += range.sectors();
        key
    }

    /// A resync write has ended. It may still be in the cache of the disk: the peer forgets the bits of the block when it
    /// hears of it, but here they stay on disk until it is on stable storage ([`write_page`](Self::write_page)).
    pub(crate) fn resync_write_ended(&mut self, key: Key) {
        let Some(request) = self.peer_requests.remove(key) else { return };
        let (index, range, good) = (request.volume, request.range, !request.failed && !request.orphaned);
        self.release(request.buffer);
        let volume = &mut self.volumes[index];
        volume.sync_writes.remove(range, key);
        volume.sync_write_sectors -= range.sectors();
        volume.counters.written_sectors += range.sectors();
        volume.counters.unacknowledged = volume.counters.unacknowledged.saturating_sub(1);
        if good {
            // The peer counts only what it sent in the present run: were the bits cleared here, nobody would ask for
            // these blocks, and the peer would wait for them for ever.
            if !request.given_up {
                self.set_in_sync(index, range);
            }
        } else if request.failed {
            self.count_failed_blocks(index, range);
            self.local_io_failed(index, false);
        }
        if !request.orphaned {
            let ack = if good { Ack::WrittenInSync } else { Ack::Failed };
            self.send_ack(index, ack, range.start, wire::BlockId::SYNCER, range.bytes);
        }
        self.unlock(index, request.locks);
        self.ask_for_more(index);
        self.resync_may_be_done(index);
    }

    /// P_NEG_RS_DREPLY, or (`cancelled`) P_RS_CANCEL. They count as arrived (io spec 23.3).
    pub(crate) fn resync_reply_failed(&mut self, index: usize, range: SectorRange, cancelled: bool) {
        if !self.volumes[index].resync.running {
            // The resync was given up.
            return;
        }
        let Some(locks) = self.take_asked(index, range) else { return };
        self.resync_answered(index);
        self.volumes[index].resync.sectors_arrived += range.sectors();
        self.unlock(index, locks);
        if !cancelled {
            self.count_failed_blocks(index, range);
        }
        self.ask_for_more(index);
        self.resync_may_be_done(index);
    }

    /// P_RS_IS_IN_SYNC: the digests were equal.
    pub(crate) fn resync_in_sync(&mut self, index: usize, range: SectorRange) {
        let Some(locks) = self.take_asked(index, range) else { return };
        self.resync_answered(index);
        self.volumes[index].resync.sectors_arrived += range.sectors();
        if !self.volumes[index].resync.announced.remove(&range.start) {
            self.volumes[index].resync.equal_blocks += range.sectors() / 8;
            self.set_in_sync(index, range);
        }
        self.unlock(index, locks);
        self.ask_for_more(index);
        self.resync_may_be_done(index);
    }

    /// P_OUT_OF_SYNC: the peer has written there, and this node does not get it. What is on its way here or to the disk is
    /// older: it must not count as in sync when it comes.
    pub(crate) fn out_of_sync_received(&mut self, index: usize, range: SectorRange) {
        let volume = &mut self.volumes[index];
        volume.set_out_of_sync(range);
        for (_, key) in volume.sync_writes.overlapping(range) {
            if let Some(request) = self.peer_requests.get_mut(key) {
                request.given_up = true;
            }
        }
        let resync = &mut volume.resync;
        let asked = resync.asked.iter().filter(|(_, (asked, _))| asked.overlaps(range));
        resync.announced.extend(asked.map(|(start, _)| *start));
    }

    /// Whether that was the last block (also after a failure: io spec 23.4).
    pub(crate) fn resync_may_be_done(&mut self, index: usize) {
        let volume = &self.volumes[index];
        let target =
            matches!(volume.state.connection, ConnectionState::SyncTarget | ConnectionState::PausedSyncT);
        let quiet = volume.resync.asked.is_empty() && volume.sync_writes.is_empty();
        if !target
            || !quiet
            || !volume.resync.running
            || volume.resync.done_posted
            || volume.resync.after_superblock.is_some()
        {
            return;
        }
        let now = self.now;
        let volume = &mut self.volumes[index];
        if volume.set_bits() <= volume.resync.failed {
            volume.resync.done_posted = true;
            self.write_changed_pages(index);
            self.finish_resync(index);
        } else if volume.resync.timer.is_none() && volume.state.connection == ConnectionState::SyncTarget {
            // Blocks the search has passed are out of sync again, or were not sent: nobody else would ask for them.
            volume.resync.look_again(now);
        }
    }
}

/// The size of requests that a hole may answer: `rs-discard-granularity` in whole granules of the device; `None` where
/// it does not discard (io spec 15.9).
fn thin_bytes(disk: &Disk) -> Option<u32> {
    whole_granules(disk.options.rs_discard_granularity_bytes, disk.properties.discard_granularity_bytes)
}

/// `wanted` bytes, rounded up (8.4.11 adds the remainder, io spec 23.14).
fn whole_granules(wanted: u32, granule: u32) -> Option<u32> {
    if granule == 0 || wanted == 0 {
        return None;
    }
    wanted.checked_next_multiple_of(granule).filter(|bytes| *bytes <= REQUEST_BYTES_MAX)
}

/// How many blocks from `first` on make one request (io spec 15.3).
fn run_length(
    bitmap: &crate::bitmap::Bitmap,
    first: u64,
    limit: u64,
    bytes_max: u32,
    thin_bytes: Option<u32>,
) -> u64 {
    let most = limit.min(u64::from(bytes_max) / 4096).max(1);
    let mut blocks = 1;
    while blocks < most {
        let next = first + blocks;
        // The start is aligned to the next power of two above the size so far.
        let aligned = first.is_multiple_of((blocks + 1).next_power_of_two());
        if !aligned
            || thin_bytes.is_some_and(|bytes| u64::from(bytes) == blocks * 4096)
            || next.is_multiple_of(EXTENT_BLOCKS)
            || next >= bitmap.bits()
            || !bitmap.any_set(next..=next)
        {
            break;
        }
        blocks += 1;
    }
    blocks
}

#[cfg(test)]
mod tests {
    use super::whole_granules;

    #[test]
    fn requests_for_holes_are_whole_granules() {
        assert_eq!(whole_granules(65536, 65536), Some(65536));
        // Half as much again would be 98304, and no multiple.
        assert_eq!(whole_granules(81920, 65536), Some(131_072));
        assert_eq!(whole_granules(4096, 65536), Some(65536));
        assert_eq!(whole_granules(65536, 0), None);
        assert_eq!(whole_granules(0, 65536), None);
        assert_eq!(whole_granules(u32::MAX, 65536), None);
    }
}
