//! Online verify (io spec 16): the node that asks (VerifyS) compares its blocks with digests of the one that answers
//! (VerifyT). Both keep writes out of a block from the reading on until it has been judged.

use std::collections::BTreeMap;

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
use super::control::Room;
use super::source::Locks;

const BLOCK_SECTORS: u64 = 8;

/// A verify under way, of either side.
#[derive(Debug, Default)]
pub(crate) struct Verify {
    /// Blocks that have not been judged yet.
    pub(super) left: u64,
    /// The run of different blocks that has not been reported yet.
    different: Option<SectorRange>,
    /// VerifyS: the sector to stop at.
    stop: Option<Sector>,
    /// VerifyT: what keeps writes out of blocks that have been answered and not been judged.
    answered: BTreeMap<Sector, Locks>,
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
        let blocks = self.volumes[index].size.0.div_ceil(BLOCK_SECTORS);
        let VerifyRange { start, stop } = self.volumes[index].verify_range;
        let start =
            if self.connection.dialect.version < 90 { 0 } else { start.min(blocks.saturating_sub(1)) };
        let version = self.connection.dialect.version;
        let stop = stop.filter(|_| version >= 97 && version != 100);
        self.begin_verify(index, blocks - start);
        self.volumes[index].was_verifying = true;
        let resync = &mut self.volumes[index].resync;
        resync.next_block = start;
        resync.timer = Some(self.now);
        if let Some(verify) = &mut resync.verify {
            verify.stop = stop;
        }
        let text = format!("Starting Online Verify from sector {}", start * BLOCK_SECTORS);
        self.say(Level::Info, Some(index), text);
        self.attention = true;
    }

    /// A step of the node that asks is due.
    pub(crate) fn run_verify_step(&mut self, index: usize) {
        let now = self.now;
        let max_buffers = self.connection.options.as_ref().map_or(2048, |options| options.max_buffers);
        let volume = &mut self.volumes[index];
        volume.resync.timer = Some(now.after(STEP));
        let arrived = std::mem::take(&mut volume.resync.sectors_arrived);
        let Some(disk) = &volume.disk else { return };
        let room = Room { max_buffers, arrived, writing: 0 };
        let number = volume.resync.controller.step(&disk.options, room);
        let mut asked = 0;
        while (asked as i64) < number {
            match self.ask_to_verify(index, asked == 0) {
                Asked::Block => asked += 1,
                Asked::Busy => break,
                Asked::Nothing => {
                    self.volumes[index].resync.timer = None;
                    break;
                }
            }
        }
        self.volumes[index].resync.controller.asked(asked);
    }

    /// Asks for the digest of the next block; of one block at least, whatever the end.
    fn ask_to_verify(&mut self, index: usize, first: bool) -> Asked {
        let now = self.now;
        let unlocked = self.bug(crate::bugs::Bug::VerifyWithoutLock);
        let volume = &mut self.volumes[index];
        let capacity = volume.size;
        let start = Sector(volume.resync.next_block * BLOCK_SECTORS);
        let stop = volume.resync.verify.as_ref().and_then(|verify| verify.stop);
        if start >= capacity || (!first && stop.is_some_and(|stop| start >= stop)) {
            return Asked::Nothing;
        }
        let extent = BlockNumber(volume.resync.next_block).resync_extent();
        let gives_way = volume.background_gives_way(now);
        let Some(disk) = &mut volume.disk else { return Asked::Nothing };
        let Ok(lock) = disk.extents.try_begin(extent, &disk.log, gives_way) else {
            // An extent may have been opened to writes.
            self.attention = true;
            return Asked::Busy;
        };
        let sectors = BLOCK_SECTORS.min(capacity.0 - start.0);
        let range = SectorRange::new(start, (sectors * 512) as u32);
        volume.resync.next_block += 1;
        let lock = if unlocked {
            disk.extents.end(lock);
            None
        } else {
            Some(lock)
        };
        volume.resync.budget.spend(u64::from(range.bytes));
        volume.resync.asked.insert(start, (range, Locks([lock, None])));
        volume.counters.peer_pending += 1;
        volume.resync.pending += 1;
        let request = wire::BlockRequest::new(range.start, wire::BlockId::SYNCER, range.bytes);
        self.send_on_data(index, wire::Packet::VerifyRequest(request));
        Asked::Block
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
        self.volumes[index].resync.sectors_arrived += range.sectors();
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
        self.read_for_peer(key);
        Verdict::Good
    }

    /// The own block has been read.
    pub(crate) fn verify_read_done(&mut self, key: Key, digest: Option<wire::DigestValue>) {
        let Some(request) = self.peer_requests.get(key) else { return };
        match request.operation {
            PeerOperation::Verify { digest: Some(theirs) } => {
                let different = request.failed || digest != Some(theirs);
                self.judge_block(key, different);
            }
            _ => self.answer_verify_read(key, digest),
        }
    }

    /// The node that asked has compared a block, and says so.
    fn judge_block(&mut self, key: Key, different: bool) {
        let request = &mut self.peer_requests[key];
        let (index, range, locks) = (request.volume, request.range, std::mem::take(&mut request.locks));
        self.forget_peer_request(key);
        let unacknowledged = &mut self.volumes[index].counters.unacknowledged;
        *unacknowledged = unacknowledged.saturating_sub(1);
        if self.volumes[index].resync.verify.is_none() {
            // The verify was given up meanwhile.
            return;
        }
        self.send_verify_result(index, range, different);
        // The peer hears of it before it hears of any write that had to wait.
        self.unlock(index, locks);
        self.note_judged(index, range, different);
        let Some(verify) = &self.volumes[index].resync.verify else { return };
        if verify.left == 0 || verify.stop.is_some_and(|stop| range.end() >= stop) {
            self.finish_verify(index);
        }
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
            self.begin_verify(index, left);
            let text = format!("Online Verify start sector: {}", request.sector);
            self.say(Level::Info, Some(index), text);
        }
        verdict
    }

    fn begin_verify(&mut self, index: usize, left: u64) {
        let resync = &mut self.volumes[index].resync;
        resync.begin(self.now, left);
        resync.verify = Some(Verify { left, ..Verify::default() });
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

    /// A block is the same on both nodes, or is not.
    fn note_judged(&mut self, index: usize, range: SectorRange, different: bool) {
        if different {
            self.volumes[index].set_out_of_sync(range);
        }
        let now = self.now;
        let Some(verify) = &mut self.volumes[index].resync.verify else { return };
        verify.left = verify.left.saturating_sub(1);
        let left = verify.left;
        if different {
            // A difference that is not next to the last one replaces it unsaid, as in DRBD: all blocks are visited.
            let before = verify.different.filter(|before| before.end() == range.start);
            verify.different = Some(before.map_or(range, |before| {
                SectorRange::new(before.start, before.bytes.saturating_add(range.bytes))
            }));
        } else {
            self.say_different(index);
        }
        self.volumes[index].resync.advance(now, left);
    }

    fn say_different(&mut self, index: usize) {
        let verify = self.volumes[index].resync.verify.as_mut();
        if let Some(range) = verify.and_then(|verify| verify.different.take()) {
            let text = format!("Out of sync: start={}, size={} (sectors)", range.start, range.sectors());
            self.say(Level::Error, Some(index), text);
        }
    }

    /// The peer's verify is over: it has judged every block, or says that it stops.
    pub(crate) fn finish_verify(&mut self, index: usize) {
        if self.volumes[index].resync.verify.is_none() {
            self.begin_verify(index, 0);
        }
        self.say_different(index);
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
        let left = self.volumes[index].resync.verify.as_ref().map_or(0, |verify| verify.left);
        self.volumes[index].verify_range = VerifyRange::default();
        if left > 0 {
            let blocks = self.volumes[index].size.0.div_ceil(BLOCK_SECTORS);
            let reached = blocks.saturating_sub(left);
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

/// What came of trying to ask for a block.
enum Asked {
    Block,
    Busy,
    Nothing,
}
