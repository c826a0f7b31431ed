//! Reads for the peer: of its applications, of a resync, of an online verify (io spec 6.2, 15.7).

use udrbd_units::DiskState;
use udrbd_wire as wire;

use super::{PeerOperation, PeerRequest};
use crate::Engine;
use crate::connection::{Inbound, parameters::Verdict};
use crate::interface::{Action, Level};
use crate::resync::WaitingRead;
use crate::slab::Key;

impl Engine {
    /// A request for data.
    pub(crate) fn read_received(
        &mut self,
        index: usize,
        request: wire::BlockRequest,
        operation: PeerOperation,
    ) -> Verdict {
        let range = request.range();
        let whole = request.size > 0 && request.size.is_multiple_of(512) && request.size <= 1 << 20;
        let within =
            range.start.0.checked_add(range.sectors()).is_some_and(|end| end <= self.volumes[index].size.0);
        if !whole || !within {
            let text = format!("bad read request: sector: {}s, size: {}", range.start, range.bytes);
            self.say(Level::Error, Some(index), text);
            return Verdict::Reconnect;
        }
        let application = operation == PeerOperation::Read;
        if self.volumes[index].state.disk != DiskState::UpToDate {
            if !application {
                self.say_rarely(
                    Level::Error,
                    Some(index),
                    "Can not satisfy peer's resync request, no local data.".to_owned(),
                );
            }
            self.send_negative_reply(index, &request, !application);
            return Verdict::Good;
        }
        let resync = matches!(operation, PeerOperation::ResyncRead { .. });
        if resync && !self.volumes[index].serves_resync() {
            // It is of a resync that was given up, and would be answered in the next one if the disk is slow.
            self.send_negative_reply(index, &request, true);
            return Verdict::Good;
        }
        let key = self.peer_requests.insert(PeerRequest {
            volume: index,
            operation,
            range,
            block_id: request.block_id,
            buffer: None,
            outstanding: 0,
            failed: false,
            orphaned: false,
            given_up: false,
            locks: crate::resync::Locks::default(),
        });
        self.volumes[index].counters.unacknowledged += 1;
        if application {
            self.read_for_peer(key);
        } else {
            self.volumes[index].resync.waiting_reads.push_back(WaitingRead::new(key));
            self.run_resync_reads(index);
        }
        Verdict::Good
    }

    /// Gives a read to the disk.
    pub(crate) fn read_for_peer(&mut self, key: Key) {
        let request = &self.peer_requests[key];
        let (index, range) = (request.volume, request.range);
        let (digest, look_for_zeroes) = match request.operation {
            PeerOperation::ResyncRead { digest: Some(_), .. } => (self.checksum_algorithm(), false),
            PeerOperation::ResyncRead { thin, .. } => (None, thin),
            PeerOperation::ChecksumRead => (self.checksum_algorithm(), false),
            PeerOperation::Verify { .. } => (self.verify_algorithm(), false),
            _ => (None, false),
        };
        let volume = self.volumes[index].number;
        let token = self.start_peer_io(index, key);
        self.out.push(Action::Read { token, volume, range, buffer: None, digest, look_for_zeroes });
    }

    /// Answers a read that has ended.
    pub(super) fn answer_read(&mut self, key: Key, digest: Option<wire::DigestValue>, zeroes: bool) {
        let request = &self.peer_requests[key];
        let index = request.volume;
        match request.operation {
            PeerOperation::Read => {
                let (packet, buffer, failed) = (request.request(), request.buffer, request.failed);
                match buffer {
                    Some(buffer) if !failed => self.send_data_reply(index, &packet, false, buffer),
                    _ => self.send_negative_reply(index, &packet, false),
                }
            }
            PeerOperation::ResyncRead { .. } => {
                self.answer_resync_read(key, digest, zeroes);
            }
            PeerOperation::Verify { .. } => {
                self.verify_read_done(key, digest);
                return;
            }
            PeerOperation::ChecksumRead => {
                self.ask_with_checksum(key, digest);
                return;
            }
            PeerOperation::Write { .. } | PeerOperation::ResyncWrite => {}
        }
        let unacknowledged = &mut self.volumes[index].counters.unacknowledged;
        *unacknowledged = unacknowledged.saturating_sub(1);
        self.forget_peer_request(key);
    }

    /// P_DATA_REPLY: the data of an own read.
    pub(crate) fn data_reply(&mut self, index: usize, reply: wire::BlockReply, inbound: &Inbound) -> Verdict {
        if self.proof_received(index, reply.block_id) {
            self.release(inbound.payload);
            return Verdict::Good;
        }
        let key = Key::from_number(reply.block_id.0);
        let matches = self.requests.get(key).is_some_and(|request| {
            request.volume == index
                && request.range.start == reply.sector
                && request.range.bytes == inbound.payload_bytes
                && self.connection.remote_reads.contains(&key)
        });
        self.volumes[index].counters.received_sectors += u64::from(inbound.payload_bytes) / 512;
        let Some(buffer) = inbound.payload.filter(|_| matches) else {
            self.release(inbound.payload);
            let text = format!(
                "receive_DataReply: failed to find request 0x{:x}, sector {}s",
                reply.block_id.0, reply.sector
            );
            self.say(Level::Error, Some(index), text);
            return Verdict::Reconnect;
        };
        if !inbound.intact {
            self.release(Some(buffer));
            self.say(Level::Error, Some(index), "Digest integrity check FAILED. Broken NICs?".to_owned());
            return Verdict::Reconnect;
        }
        self.remote_read_done(key, buffer);
        Verdict::Good
    }
}
