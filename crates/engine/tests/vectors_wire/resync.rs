//! The resync of a captured target: which sectors it asked for, and what it was told about each.

use std::collections::{HashMap, VecDeque};

use udrbd_units::VolumeNumber;
use udrbd_wire::{BlockId, BlockRange, BlockReply, Packet, SequenceNumber};

use crate::captures::session::Received;

/// What the source said about a sector.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Answer {
    Data(Vec<u8>),
    InSync,
    Deallocated,
}

/// The answers of a connection's source, by sector.
#[derive(Debug, Default)]
pub(crate) struct Answers(HashMap<(VolumeNumber, u64), VecDeque<Answer>>);

impl Answers {
    /// Collects them from everything the peer sent on the two sockets of a connection.
    pub(crate) fn collect<'a>(packets: impl Iterator<Item = &'a Received>) -> Self {
        let mut answers = Self::default();
        for received in packets {
            let (sector, bytes) = match &received.packet {
                Packet::ResyncDataReply(reply) => (reply.sector.0, received.payload.len()),
                Packet::ResyncIsInSync(ack) => (ack.sector.0, ack.size as usize),
                Packet::ResyncDeallocated(range) => (range.sector.0, range.size as usize),
                _ => continue,
            };
            for index in 0..bytes / 512 {
                let answer = match &received.packet {
                    Packet::ResyncDataReply(_) => {
                        Answer::Data(received.payload[index * 512..][..512].to_vec())
                    }
                    Packet::ResyncIsInSync(_) => Answer::InSync,
                    _ => Answer::Deallocated,
                };
                answers
                    .0
                    .entry((received.incoming.volume, sector + index as u64))
                    .or_default()
                    .push_back(answer);
            }
        }
        answers
    }

    /// The answer to a request of the engine, which may be cut differently; `own` is what the engine's disk holds there.
    pub(crate) fn answer(
        &mut self,
        volume: VolumeNumber,
        request: &Packet,
        own: &[u8],
    ) -> Result<(Packet, Vec<u8>), String> {
        let (Packet::ResyncDataRequest(block)
        | Packet::ResyncThinRequest(block)
        | Packet::ChecksumResyncRequest(block)) = request
        else {
            return Err(format!("{request:?} is no request"));
        };
        let mut data = Vec::new();
        let mut answers = Vec::new();
        for index in 0..block.size as usize / 512 {
            let sector = block.sector.0 + index as u64;
            let answer = self.0.get_mut(&(volume, sector)).and_then(VecDeque::pop_front);
            let answer = answer.ok_or_else(|| format!("nobody asked for sector {sector}: {request:?}"))?;
            match &answer {
                Answer::Data(bytes) => data.extend_from_slice(bytes),
                Answer::InSync => data.extend_from_slice(&own[index * 512..][..512]),
                Answer::Deallocated => data.extend_from_slice(&[0; 512]),
            }
            answers.push(answer);
        }
        let all = |wanted: &Answer| answers.iter().all(|answer| answer == wanted);
        if all(&Answer::InSync) {
            let ack = udrbd_wire::BlockAck {
                sector: block.sector,
                block_id: BlockId(0x1234_5678),
                size: block.size,
                sequence: SequenceNumber(0),
            };
            return Ok((Packet::ResyncIsInSync(ack), Vec::new()));
        }
        if all(&Answer::Deallocated) && matches!(request, Packet::ResyncThinRequest(_)) {
            let range = BlockRange::new(block.sector, block.size);
            return Ok((Packet::ResyncDeallocated(range), Vec::new()));
        }
        let reply = BlockReply { sector: block.sector, block_id: block.block_id };
        Ok((Packet::ResyncDataReply(reply), data))
    }
}

/// How often each sector was asked for or acknowledged, by kind of packet.
#[derive(Debug, Default)]
pub(crate) struct Sectors(HashMap<(&'static str, VolumeNumber, u64), i64>);

impl Sectors {
    fn add(&mut self, volume: VolumeNumber, packet: &Packet, step: i64) {
        let (kind, sector, size) = match packet {
            Packet::ResyncDataRequest(block) => ("request", block.sector, block.size),
            Packet::ResyncThinRequest(block) => ("thin request", block.sector, block.size),
            Packet::ChecksumResyncRequest(block) => ("checksum", block.sector, block.size),
            Packet::ResyncWriteAck(ack) => ("ack", ack.sector, ack.size),
            Packet::NegativeAck(ack) => ("negative ack", ack.sector, ack.size),
            _ => return,
        };
        for sector in sector.0..sector.0 + u64::from(size) / 512 {
            let count = self.0.entry((kind, volume, sector)).or_default();
            *count += step;
            if *count == 0 {
                self.0.remove(&(kind, volume, sector));
            }
        }
    }

    /// The captured node sent this.
    pub(crate) fn expect(&mut self, volume: VolumeNumber, packet: &Packet) {
        self.add(volume, packet, 1);
    }

    /// The engine sent this.
    pub(crate) fn found(&mut self, volume: VolumeNumber, packet: &Packet) {
        self.add(volume, packet, -1);
    }

    /// Something the engine has not sent yet.
    pub(crate) fn missing(&self) -> Option<String> {
        let (key, _) = self.0.iter().filter(|(_, count)| **count > 0).min_by_key(|(key, _)| key.2)?;
        Some(format!("{} of sector {}", key.0, key.2))
    }

    /// Something the engine sent and the captured node did not.
    pub(crate) fn surplus(&self) -> Option<String> {
        let (key, _) = self.0.iter().filter(|(_, count)| **count < 0).min_by_key(|(key, _)| key.2)?;
        Some(format!("{} of sector {}", key.0, key.2))
    }
}
