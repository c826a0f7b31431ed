//! The answering side of an online verify (io spec 16).

use udrbd_wire as wire;

use crate::Engine;
use crate::connection::parameters::Verdict;
use crate::interface::{Level, Payload, SocketRole};
use crate::slab::Key;

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

    /// P_OV_RESULT: what the peer found out about a block.
    pub(crate) fn verify_result(&mut self, index: usize, ack: &wire::BlockAck) {
        if ack.block_id == wire::BlockId::OUT_OF_SYNC {
            let range = ack.range();
            self.volumes[index].set_out_of_sync(range);
            let text = format!("Out of sync: start={}, size={} (sectors)", range.start, range.sectors());
            self.say(Level::Error, Some(index), text);
        }
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
