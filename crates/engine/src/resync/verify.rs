//! Online verify (io spec 16): the node that asks (VerifyS) compares its blocks with digests of the one that answers
//! (VerifyT). Both keep writes out of a block from the reading on until it has been judged.
//!
//! As a resync, a verify is not bound to steps: what a step may ask for beyond what may be on the way at a time follows when
//! that has come. Where the peer counts the blocks of a result, more than one is asked for at a time
//! ([`wire::Extensions::VERIFY_RANGES`]); what differs then is asked for again in smaller parts, down to single blocks, so that
//! exactly these are marked.

use std::collections::{BTreeMap, VecDeque};

use udrbd_units::{BlockNumber, ConnectionState, DiskState, Sector, SectorRange};
use udrbd_wire as wire;

use crate::Engine;
use crate::change::Verbosity;
use crate::command::Then;
use crate::connection::parameters::Verdict;
use crate::interface::{CommandId, Failure, Handler, Level, Payload, SocketRole};
use crate::peer::{PeerOperation, PeerRequest};
use crate::slab::Key;
use crate::state::{Enforcement, StateChangeResult as Code, StateRequest};

use super::STEP;
use super::source::Locks;
use super::target::Asked;

const BLOCK_SECTORS: u64 = 8;
/// Blocks of the largest request: what is gained by larger ones is little, and their digests take long.
const BLOCKS_MAX: u64 = 64;
/// Parts in which a range is asked for again that differs somewhere.
const PARTS: u64 = 16;
/// Judged ranges that wait for one before them. No node that answers needs so many; it bounds what a peer can make us keep.
const AHEAD_MAX: usize = 1 << 16;

/// A verify under way, of either side.
#[derive(Debug, Default)]
pub(crate) struct Verify {
    /// Blocks that have not been judged yet.
    pub(super) left: u64,
    /// The first sector.
    start: Sector,
    /// All before this one has been judged.
    reached: Sector,
    /// What has been judged behind it: where it ends, and whether it is different.
    ahead: BTreeMap<Sector, (Sector, bool)>,
    /// The run of different blocks that has not been reported yet: its first sector, and the one behind it.
    different: Option<(Sector, Sector)>,
    /// VerifyS: the sector to stop at.
    stop: Option<Sector>,
    /// VerifyS: the size of the volume when it began: what it has grown since is not counted in.
    size: Sector,
    /// VerifyS: parts of what differs somewhere, to be asked for. They are locked already.
    again: VecDeque<(SectorRange, Locks)>,
    /// VerifyS: sectors the peer has answered for that have not been compared yet.
    pub(super) reading: u64,
    /// VerifyT: what keeps writes out of blocks that have been answered and not been judged.
    answered: BTreeMap<Sector, Locks>,
}

impl Verify {
    /// The next range in the order of sectors that has been judged; `all`: also behind one that has not been.
    fn next_judged(&mut self, all: bool) -> Option<(Sector, Sector, bool)> {
        let entry = self.ahead.first_entry()?;
        if *entry.key() > self.reached && !all && self.ahead.len() <= AHEAD_MAX {
            return None;
        }
        let (start, (end, different)) = self.ahead.pop_first()?;
        self.reached = self.reached.max(end);
        Some((start, end, different))
    }

    /// VerifyS: whether everything has been judged up to where it is to stop.
    fn is_done(&self) -> bool {
        self.left == 0 || self.stop.is_some_and(|stop| self.reached >= stop)
    }
}

/// Where the next verify begins, and where it is to stop.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct VerifyRange {
    /// The first block.
    pub(crate) start: u64,
    /// The sector to stop at.
    pub(crate) stop: Option<Sector>,
}

impl Engine {
    /// The digest of `verify-alg`.
    pub(crate) fn verify_algorithm(&self) -> Option<wire::DigestAlgorithm> {
        self.connection.options.as_ref()?.verify_alg.parse().ok()
    }

    /// The digest of `csums-alg`.
    pub(crate) fn checksum_algorithm(&self) -> Option<wire::DigestAlgorithm> {
        self.connection.options.as_ref()?.csums_alg.parse().ok()
    }

    /// `verify`: from where on, or from where the last one ended; up to where.
    pub(crate) fn verify(
        &mut self,
        id: CommandId,
        index: usize,
        start: Option<Sector>,
        stop: Option<Sector>,
    ) {
        if !self.may_verify(index) {
            self.reply(id, Err(Failure::state(Code::NoUpToDateDisk)));
            return;
        }
        let volume = &mut self.volumes[index];
        if let Some(start) = start {
            volume.verify_range.start = start.0 / BLOCK_SECTORS;
        }
        volume.verify_range.stop = stop.filter(|stop| *stop < volume.size);
        self.request_device(id, index, StateRequest::connection(ConnectionState::VerifyS), Then::Reply);
    }

    /// Whether a verify has two good copies to compare, or is refused for another reason. (8.4.11 takes both disks for UpToDate
    /// then, whatever they are.)
    pub(crate) fn may_verify(&self, index: usize) -> bool {
        let state = self.volumes[index].state;
        let good = state.disk == DiskState::UpToDate && state.peer_disk == DiskState::UpToDate;
        good || state.connection != ConnectionState::Connected
    }

    /// Connected became VerifyS (states spec 3.9 step 11).
    pub(crate) fn begin_own_verify(&mut self, index: usize) {
        let size = self.volumes[index].size;
        let blocks = size.0.div_ceil(BLOCK_SECTORS);
        let VerifyRange { start, stop } = self.volumes[index].verify_range;
        let start =
            if self.connection.dialect.version < 90 { 0 } else { start.min(blocks.saturating_sub(1)) };
        let version = self.connection.dialect.version;
        let stop = stop.filter(|_| version >= 97 && version != 100);
        self.begin_verify(index, Sector(start * BLOCK_SECTORS), blocks - start);
        self.volumes[index].was_verifying = true;
        let resync = &mut self.volumes[index].resync;
        resync.next_block = start;
        resync.timer = Some(self.now);
        if let Some(verify) = &mut resync.verify {
            verify.stop = stop;
            verify.size = size;
        }
        let text = format!("Starting Online Verify from sector {}", start * BLOCK_SECTORS);
        self.say(Level::Info, Some(index), text);
        self.attention = true;
    }

    /// A step of the node that asks is due.
    pub(crate) fn run_verify_step(&mut self, index: usize) {
        let room = self.resync_room(index);
        let volume = &mut self.volumes[index];
        volume.resync.timer = Some(self.now.after(STEP));
        volume.resync.sectors_arrived = 0;
        let Some(disk) = &volume.disk else { return };
        let number = volume.resync.controller.step(&disk.options, room);
        self.ask_for(index, number);
    }

    /// Asks for the digest of the next blocks, `limit` at the most; of one block at least, whatever the end.
    pub(super) fn ask_to_verify(&mut self, index: usize, limit: u64) -> Asked {
        let verify = self.volumes[index].resync.verify.as_mut();
        if let Some((range, locks)) = verify.and_then(|verify| verify.again.pop_front()) {
            self.ask_for_digest(index, range, locks);
            return Asked::Blocks(range.sectors().div_ceil(BLOCK_SECTORS));
        }
        let now = self.now;
        let unlocked = self.bug(crate::bugs::Bug::VerifyWithoutLock);
        let bytes_max = self.verify_bytes_max(index);
        let volume = &mut self.volumes[index];
        let first = volume.resync.next_block;
        let start = Sector(first * BLOCK_SECTORS);
        let Some(verify) = &volume.resync.verify else { return Asked::Nothing };
        let is_first = start == verify.start;
        let stop = verify.stop;
        let capacity = volume.size.min(verify.size);
        if start >= capacity || (!is_first && stop.is_some_and(|stop| start >= stop)) {
            return Asked::Nothing;
        }
        let gives_way = volume.background_gives_way(now);
        let Some(disk) = &mut volume.disk else { return Asked::Nothing };
        let extent = BlockNumber(first).resync_extent();
        let Ok(lock) = disk.extents.try_begin(extent, &disk.log, gives_way) else {
            // An extent may have been opened to writes.
            self.attention = true;
            return Asked::Busy;
        };
        let end = stop.map_or(capacity, |stop| stop.min(capacity)).0.div_ceil(BLOCK_SECTORS);
        let blocks = run_length(first, limit.min(end.saturating_sub(first)), bytes_max);
        let sectors = (blocks * BLOCK_SECTORS).min(capacity.0 - start.0);
        let range = SectorRange::new(start, (sectors * 512) as u32);
        volume.resync.next_block += blocks;
        let lock = if unlocked {
            disk.extents.end(lock);
            None
        } else {
            Some(lock)
        };
        self.ask_for_digest(index, range, Locks([lock, None]));
        Asked::Blocks(blocks)
    }

    fn ask_for_digest(&mut self, index: usize, range: SectorRange, locks: Locks) {
        let volume = &mut self.volumes[index];
        volume.resync.budget.spend(u64::from(range.bytes));
        volume.resync.asked.insert(range.start, (range, locks));
        volume.counters.peer_pending += 1;
        volume.resync.pending += 1;
        let request = wire::BlockRequest::new(range.start, wire::BlockId::SYNCER, range.bytes);
        self.send_on_data(index, wire::Packet::VerifyRequest(request));
    }

    /// The most one request may ask for. To the kernel's DRBD every result counts as one block: it takes larger requests, but
    /// would give the wrong place for the start of the next verify.
    fn verify_bytes_max(&self, index: usize) -> u32 {
        let own = self.volumes[index].disk.as_ref().map_or(0, |disk| disk.properties.max_request_bytes);
        if self.connection.extensions.contains(wire::Extensions::VERIFY_RANGES) {
            own.min(self.connection.dialect.request_bytes_max())
        } else {
            4096
        }
    }

    /// P_OV_REPLY: the peer's digest. The own block is read and compared with it.
    pub(crate) fn verify_reply(
        &mut self,
        index: usize,
        request: wire::BlockRequest,
        digest: Option<wire::DigestValue>,
    ) -> Verdict {
        let range = request.range();
        if self.volumes[index].state.connection != ConnectionState::VerifyS
            && self.volumes[index].was_verifying
        {
            // On its way when the verify ended.
            return Verdict::Good;
        }
        let asked = &mut self.volumes[index].resync.asked;
        let known = asked.get(&range.start).is_some_and(|(wanted, _)| *wanted == range);
        let (Some((_, locks)), Some(digest)) = (known.then(|| asked.remove(&range.start)).flatten(), digest)
        else {
            let text = format!("OVReply for sector {}s, which was not asked for", request.sector);
            self.say(Level::Error, Some(index), text);
            return Verdict::Reconnect;
        };
        self.resync_answered(index);
        let resync = &mut self.volumes[index].resync;
        resync.sectors_arrived += range.sectors();
        if self.volumes[index].state.disk != DiskState::UpToDate {
            self.unlock(index, locks);
            self.send_verify_result(index, range, false);
            return Verdict::Good;
        }
        let key = self.peer_requests.insert(PeerRequest {
            volume: index,
            operation: PeerOperation::Verify { digest: Some(digest) },
            range,
            block_id: wire::BlockId::SYNCER,
            buffer: None,
            outstanding: 0,
            failed: false,
            orphaned: false,
            given_up: false,
            locks,
        });
        self.volumes[index].counters.unacknowledged += 1;
        if let Some(verify) = &mut self.volumes[index].resync.verify {
            verify.reading += range.sectors();
        }
        self.read_for_peer(key);
        self.ask_for_more(index);
        Verdict::Good
    }

    /// The own block has been read.
    pub(crate) fn verify_read_done(&mut self, key: Key, digest: Option<wire::DigestValue>) {
        let Some(request) = self.peer_requests.get(key) else { return };
        match request.operation {
            PeerOperation::Verify { digest: Some(theirs) } => {
                let blind = self.bug(crate::bugs::Bug::VerifyFindsNothing);
                let different = (request.failed || digest != Some(theirs)) && !blind;
                self.judge_block(key, different);
            }
            _ => self.answer_verify_read(key, digest),
        }
    }

    /// The node that asked has compared a range, and says so; or asks again for parts of one that differs.
    fn judge_block(&mut self, key: Key, different: bool) {
        let request = &mut self.peer_requests[key];
        let (index, range, locks) = (request.volume, request.range, std::mem::take(&mut request.locks));
        self.forget_peer_request(key);
        let unacknowledged = &mut self.volumes[index].counters.unacknowledged;
        *unacknowledged = unacknowledged.saturating_sub(1);
        let Some(verify) = &mut self.volumes[index].resync.verify else {
            // The verify was given up meanwhile.
            return;
        };
        verify.reading = verify.reading.saturating_sub(range.sectors());
        if different && range.sectors() > BLOCK_SECTORS {
            self.look_closer(index, range);
            self.unlock(index, locks);
        } else {
            self.send_verify_result(index, range, different);
            // The peer hears of it before it hears of any write that had to wait.
            self.unlock(index, locks);
            self.note_judged(index, range, different);
            if self.volumes[index].resync.verify.as_ref().is_some_and(Verify::is_done) {
                self.finish_verify(index);
                return;
            }
        }
        self.ask_for_more(index);
    }

    /// A range differs somewhere: its parts are asked for. The peer drops what it holds for the whole with its first part.
    fn look_closer(&mut self, index: usize, range: SectorRange) {
        let unlocked = self.bug(crate::bugs::Bug::VerifyWithoutLock);
        let volume = &mut self.volumes[index];
        let Some(disk) = &mut volume.disk else { return };
        let Some(verify) = &mut volume.resync.verify else { return };
        let part = range.sectors().div_ceil(PARTS).next_multiple_of(BLOCK_SECTORS);
        for start in (range.start.0..range.end().0).step_by(part as usize) {
            let sectors = part.min(range.end().0 - start);
            let part = SectorRange::new(Sector(start), (sectors * 512) as u32);
            // The whole is locked still, so this cannot fail.
            let lock = if unlocked {
                None
            } else {
                disk.extents.try_begin(part.start.resync_extent(), &disk.log, false).ok()
            };
            verify.again.push_back((part, Locks([lock, None])));
        }
        // The search may have come to its end.
        volume.resync.timer.get_or_insert(self.now.after(STEP));
    }

    fn send_verify_result(&mut self, index: usize, range: SectorRange, different: bool) {
        let block_id = if different { wire::BlockId::OUT_OF_SYNC } else { wire::BlockId::IN_SYNC };
        let sequence = wire::SequenceNumber(self.volumes[index].next_sequence());
        let ack = wire::BlockAck { sector: range.start, block_id, size: range.bytes, sequence };
        self.send_on_meta(index, wire::Packet::VerifyResult(ack));
    }

    /// The own block has been read for a verify of the peer: its digest is the answer, zeroes after an error.
    fn answer_verify_read(&mut self, key: Key, digest: Option<wire::DigestValue>) {
        let Some(request) = self.peer_requests.get(key) else { return };
        let (index, packet, failed) = (request.volume, request.request(), request.failed);
        let zero = self.verify_algorithm().map(wire::DigestAlgorithm::zero);
        let digest = if failed { zero } else { digest.or(zero) };
        let locks = std::mem::take(&mut self.peer_requests[key].locks);
        let volume = self.volumes[index].number;
        self.forget_peer_request(key);
        let unacknowledged = &mut self.volumes[index].counters.unacknowledged;
        *unacknowledged = unacknowledged.saturating_sub(1);
        if self.volumes[index].state.connection != ConnectionState::VerifyT {
            self.unlock(index, locks);
            return;
        }
        let reply = wire::Packet::VerifyReply(packet);
        self.send_with(SocketRole::Data, volume, reply, Payload::None, false, digest, None);
        // A write before the peer has read its block would make the two look different.
        let start = packet.sector;
        match &mut self.volumes[index].resync.verify {
            Some(verify) => {
                if let Some(before) = verify.answered.insert(start, locks) {
                    self.unlock(index, before);
                }
            }
            None => self.unlock(index, locks),
        }
    }

    /// P_OV_REQUEST: the first one tells where the peer starts.
    pub(crate) fn verify_request_received(&mut self, index: usize, request: wire::BlockRequest) -> Verdict {
        let verdict = self.read_received(index, request, PeerOperation::Verify { digest: None });
        let is_target = self.volumes[index].state.connection == ConnectionState::VerifyT;
        if verdict == Verdict::Good && is_target && self.volumes[index].resync.verify.is_none() {
            let blocks = self.volumes[index].size.0.div_ceil(BLOCK_SECTORS);
            let left = blocks.saturating_sub(request.sector.0 / BLOCK_SECTORS);
            self.begin_verify(index, request.sector, left);
            let text = format!("Online Verify start sector: {}", request.sector);
            self.say(Level::Info, Some(index), text);
        }
        verdict
    }

    fn begin_verify(&mut self, index: usize, start: Sector, left: u64) {
        let resync = &mut self.volumes[index].resync;
        resync.begin(self.now, left);
        resync.verify = Some(Verify { left, start, reached: start, ..Verify::default() });
    }

    /// P_OV_RESULT: what the peer found out about a block.
    pub(crate) fn verify_result(&mut self, index: usize, ack: &wire::BlockAck) {
        let range = ack.range();
        let different = ack.block_id == wire::BlockId::OUT_OF_SYNC;
        let verify = self.volumes[index].resync.verify.as_mut();
        if let Some(locks) = verify.and_then(|verify| verify.answered.remove(&range.start)) {
            self.unlock(index, locks);
        }
        self.note_judged(index, range, different);
        if self.volumes[index].resync.verify.as_ref().is_some_and(|verify| verify.left == 0) {
            self.finish_verify(index);
        }
    }

    /// A range is the same on both nodes, or is not. Disks answer in any order: what differs is told in that of the sectors.
    fn note_judged(&mut self, index: usize, range: SectorRange, different: bool) {
        if different && !self.bug(crate::bugs::Bug::VerifyMarksNothing) {
            self.volumes[index].set_out_of_sync(range);
        }
        let now = self.now;
        let Some(verify) = &mut self.volumes[index].resync.verify else { return };
        verify.left = verify.left.saturating_sub(range.sectors().div_ceil(BLOCK_SECTORS));
        verify.ahead.insert(range.start, (range.end(), different));
        let left = verify.left;
        self.volumes[index].resync.advance(now, left);
        self.report_judged(index, false);
    }

    /// Tells of the runs of different blocks that have been judged as a whole.
    fn report_judged(&mut self, index: usize, all: bool) {
        while let Some(verify) = &mut self.volumes[index].resync.verify {
            let Some((start, end, different)) = verify.next_judged(all) else { break };
            let run = verify.different.filter(|(_, before)| different && *before == start);
            if let Some((first, _)) = run {
                verify.different = Some((first, end));
                continue;
            }
            self.say_different(index);
            if let (true, Some(verify)) = (different, &mut self.volumes[index].resync.verify) {
                verify.different = Some((start, end));
            }
        }
        if all {
            self.say_different(index);
        }
    }

    fn say_different(&mut self, index: usize) {
        let verify = self.volumes[index].resync.verify.as_mut();
        if let Some((start, end)) = verify.and_then(|verify| verify.different.take()) {
            let text = format!("Out of sync: start={start}, size={} (sectors)", end.0 - start.0);
            self.say(Level::Error, Some(index), text);
        }
    }

    /// The peer's verify is over: it has judged every block, or says that it stops.
    pub(crate) fn finish_verify(&mut self, index: usize) {
        if self.volumes[index].resync.verify.is_none() {
            self.begin_verify(index, Sector(0), 0);
        }
        self.report_judged(index, true);
        self.finish_resync(index);
    }

    /// The peer has shown that it is alive after the end.
    pub(super) fn conclude_verify(&mut self, index: usize) {
        let (elapsed, paused) = self.volumes[index].resync.elapsed(self.now);
        let resync = &self.volumes[index].resync;
        let left = resync.verify.as_ref().map_or(0, |verify| verify.left);
        let active = elapsed.saturating_sub(paused).as_secs().max(1);
        let text = format!(
            "Online verify done (total {} sec; paused {} sec; {} K/sec)",
            elapsed.as_secs(),
            paused.as_secs(),
            resync.total.saturating_sub(left) * 4 / active
        );
        self.say(Level::Info, Some(index), text);
        let different = self.volumes[index].set_bits();
        self.write_changed_pages(index);
        if different > 0 {
            let text = format!("Online verify found {different} 4k block out of sync!");
            self.say(Level::Alert, Some(index), text);
        }
        let request = StateRequest::connection(ConnectionState::Connected);
        self.change_volume(index, request, Enforcement::Soft, Verbosity::Verbose);
        if different > 0 {
            self.run_handler(Handler::OutOfSync, Some(index));
        }
        self.touch_superblock(index);
    }

    /// Nothing is verified any more, for whatever reason.
    pub(crate) fn end_verify(&mut self, index: usize) {
        let verify = self.volumes[index].resync.verify.as_ref().filter(|verify| verify.left > 0);
        let reached = verify.map(|verify| verify.reached.0 / BLOCK_SECTORS);
        self.volumes[index].verify_range = VerifyRange::default();
        if let Some(reached) = reached {
            self.volumes[index].verify_range.start = reached;
            let text = format!("Online Verify reached sector {}", reached * BLOCK_SECTORS);
            self.say(Level::Info, Some(index), text);
        }
        if let Some(disk) = &mut self.volumes[index].disk {
            disk.extents.cancel_all();
        }
        self.volumes[index].stop_resync();
        self.attention = true;
    }
}

/// How many blocks from `first` on make one request: as for a resync, it is aligned to its size (io spec 15.3).
fn run_length(first: u64, limit: u64, bytes_max: u32) -> u64 {
    let most = limit.min(u64::from(bytes_max) / 4096).clamp(1, BLOCKS_MAX);
    let aligned = if first == 0 { BLOCKS_MAX } else { 1 << first.trailing_zeros().min(63) };
    most.min(aligned)
}
