//! The answering side of an online verify (io spec 16).

use udrbd_units::{ConnectionState, SectorRange};
use udrbd_wire as wire;

use crate::Engine;
use crate::change::Verbosity;
use crate::connection::parameters::Verdict;
use crate::interface::{Handler, Level, Payload, SocketRole};
use crate::peer::PeerOperation;
use crate::slab::Key;
use crate::state::{Enforcement, StateRequest};

const BLOCK_SECTORS: u64 = 8;

/// A verify of the peer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Verify {
    /// Blocks the peer has not judged yet.
    pub(super) left: u64,
    /// The run of different blocks that has not been reported yet.
    different: Option<SectorRange>,
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

    /// The own block has been read for a verify of the peer: its digest is the answer, zeroes after an error.
    pub(crate) fn answer_verify_read(&mut self, key: Key, digest: Option<wire::DigestValue>) {
        let Some(request) = self.peer_requests.get(key) else { return };
        let (index, packet, failed) = (request.volume, request.request(), request.failed);
        let zero = self.verify_algorithm().map(wire::DigestAlgorithm::zero);
        let digest = if failed { zero } else { digest.or(zero) };
        let locks = std::mem::take(&mut self.peer_requests[key].locks);
        let volume = self.volumes[index].number;
        self.forget_peer_request(key);
        let unacknowledged = &mut self.volumes[index].counters.unacknowledged;
        *unacknowledged = unacknowledged.saturating_sub(1);
        let reply = wire::Packet::VerifyReply(packet);
        self.send_with(SocketRole::Data, volume, reply, Payload::None, false, digest, None);
        self.unlock(index, locks);
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
        resync.verify = Some(Verify { left, different: None });
    }

    /// P_OV_RESULT: what the peer found out about a block.
    pub(crate) fn verify_result(&mut self, index: usize, ack: &wire::BlockAck) {
        let range = ack.range();
        if ack.block_id == wire::BlockId::OUT_OF_SYNC {
            self.volumes[index].set_out_of_sync(range);
        }
        let Some(verify) = &mut self.volumes[index].resync.verify else { return };
        verify.left = verify.left.saturating_sub(1);
        let is_last = verify.left == 0;
        if ack.block_id == wire::BlockId::OUT_OF_SYNC {
            // A difference that is not next to the last one replaces it unsaid, as in DRBD: all blocks are visited.
            let before = verify.different.filter(|before| before.end() == range.start);
            verify.different = Some(before.map_or(range, |before| {
                SectorRange::new(before.start, before.bytes.saturating_add(range.bytes))
            }));
        } else {
            self.say_different(index);
        }
        if is_last {
            self.finish_verify(index);
        }
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
        let left = resync.verify.map_or(0, |verify| verify.left);
        let active = elapsed.saturating_sub(paused).as_secs().max(1);
        let text = format!(
            "Online verify done (total {} sec; paused {} sec; {} K/sec)",
            elapsed.as_secs(),
            paused.as_secs(),
            resync.total.saturating_sub(left) * 4 / active
        );
        self.say(Level::Info, Some(index), text);
        let different = self.volumes[index].set_bits();
        if different > 0 {
            let text = format!("Online verify found {different} 4k block out of sync!");
            self.say(Level::Alert, Some(index), text);
        }
        let request = StateRequest::connection(ConnectionState::Connected);
        self.change_volume(index, request, Enforcement::Soft, Verbosity::Verbose);
        self.end_verify(index);
        if different > 0 {
            self.run_handler(Handler::OutOfSync, Some(index));
        }
        self.touch_superblock(index);
    }

    /// Nothing is verified any more, for whatever reason.
    pub(super) fn end_verify(&mut self, index: usize) {
        let left = self.volumes[index].resync.verify.map_or(0, |verify| verify.left);
        if left > 0 {
            let blocks = self.volumes[index].size.0.div_ceil(BLOCK_SECTORS);
            let text =
                format!("Online Verify reached sector {}", blocks.saturating_sub(left) * BLOCK_SECTORS);
            self.say(Level::Info, Some(index), text);
        }
        self.volumes[index].stop_resync();
    }

    /// P_OV_REPLY: nobody here has asked.
    pub(crate) fn verify_reply(
        &mut self,
        index: usize,
        request: wire::BlockRequest,
        _digest: Option<wire::DigestValue>,
    ) -> Verdict {
        let text = format!("OVReply for sector {}s, which was not asked for", request.sector);
        self.say(Level::Error, Some(index), text);
        Verdict::Reconnect
    }
}
