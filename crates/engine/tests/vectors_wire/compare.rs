//! Whether what the engine sent is what the captured node sent, and the captured peer's packets in the engine's words.
//!
//! What a node chooses freely differs: names of requests, numbers of epochs, random identifiers of generations. Each
//! captured value stands for one of the engine's, everywhere.

use std::collections::{HashMap, HashSet};

use udrbd_units::GenerationId;
use udrbd_wire::{BlockAck, BlockId, Expected, Incoming, Packet, Reception, SequenceNumber, Uuids};

use crate::captures::session::Received;
use crate::node::Sent;

/// The distance between a bitmap identifier and the identifier of the resync it leads to.
const SYNC_STEP: u64 = 1 << 48;

/// How a packet is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// In its order on the socket.
    Ordered,
    /// It need not be there.
    Optional,
    /// A request of a resync: the sectors count, not how they are cut.
    Request,
    /// The acknowledgement of a block of a resync: likewise.
    ResyncAck,
    /// An answer to a request, or said by another thread of the kernel than the rest: they come in any order.
    Reply,
}

pub(crate) fn class(packet: &Packet) -> Class {
    match packet {
        Packet::UnplugRemote => Class::Optional,
        Packet::ResyncDataRequest(_) | Packet::ResyncThinRequest(_) | Packet::ChecksumResyncRequest(_) => {
            Class::Request
        }
        Packet::ResyncWriteAck(ack) | Packet::NegativeAck(ack) if ack.block_id == BlockId::SYNCER => {
            Class::ResyncAck
        }
        Packet::ResyncDataReply(_)
        | Packet::DataReply(_)
        | Packet::ResyncDeallocated(_)
        | Packet::ResyncIsInSync(_)
        | Packet::VerifyRequest(_)
        | Packet::VerifyReply(_)
        | Packet::Ping
        | Packet::PingAck
        | Packet::StateChangeReply(_)
        | Packet::ConnectionStateChangeReply(_) => Class::Reply,
        _ => Class::Ordered,
    }
}

/// The acknowledgement in a packet that is one.
pub(crate) const fn block_ack(packet: &mut Packet) -> Option<&mut BlockAck> {
    match packet {
        Packet::ReceiveAck(ack)
        | Packet::WriteAck(ack)
        | Packet::ResyncWriteAck(ack)
        | Packet::Superseded(ack)
        | Packet::RetryWrite(ack)
        | Packet::NegativeAck(ack)
        | Packet::NegativeDataReply(ack)
        | Packet::NegativeResyncDataReply(ack)
        | Packet::VerifyResult(ack)
        | Packet::ResyncIsInSync(ack)
        | Packet::ResyncCancel(ack) => Some(ack),
        _ => None,
    }
}

/// The number in the sender's counter.
pub(crate) fn sequence(packet: &mut Packet) -> Option<&mut SequenceNumber> {
    match packet {
        Packet::Data(write) => Some(&mut write.sequence),
        Packet::Trim(zero) | Packet::Zeroes(zero) => Some(&mut zero.sequence),
        other => Some(&mut block_ack(other)?.sequence),
    }
}

/// The name the sender gave its request.
fn own_name(packet: &mut Packet) -> Option<&mut BlockId> {
    match packet {
        Packet::Data(write) => Some(&mut write.block_id),
        Packet::Trim(zero) | Packet::Zeroes(zero) => Some(&mut zero.block_id),
        Packet::DataRequest(request) => Some(&mut request.block_id),
        _ => None,
    }
}

/// What the engine sent, as a receiver reads it: older versions leave fields out.
fn as_on_the_wire(captured: &Received, sent: &Sent) -> Packet {
    let command = sent.packet.command(captured.dialect);
    if command != captured.incoming.command || command.precedes_agreement() || captured.integrity.is_some() {
        return sent.packet.clone();
    }
    let mut bytes = Vec::new();
    sent.packet.encode(&mut bytes, captured.dialect, sent.volume, &sent.digest, sent.payload.len() as u32);
    let reception = Reception { dialect: captured.dialect, integrity: None };
    let expected = Expected::Established(command.socket());
    match Incoming::decode_header(&bytes, expected, &reception) {
        Ok(Some((incoming, header))) => {
            incoming.decode(&bytes[header..header + incoming.packet_bytes], captured.dialect).unwrap()
        }
        _ => sent.packet.clone(),
    }
}

/// What captured values are to the engine.
#[derive(Debug, Default)]
pub(crate) struct Translation {
    names: HashMap<BlockId, BlockId>,
    barriers: HashMap<u32, u32>,
    /// Bit 0 apart, which is set in the value where it is the other one.
    generations: HashMap<u64, u64>,
    /// Captured identifiers that the node did not invent.
    given: HashSet<u64>,
}

impl Translation {
    /// These identifiers were there before the node could invent any.
    pub(crate) fn give(&mut self, generations: &[GenerationId]) {
        self.given.extend(generations.iter().map(|generation| generation.0 & !1));
    }

    /// The engine's identifier for a captured one.
    pub(crate) fn generation(&self, captured: GenerationId) -> GenerationId {
        let whole = captured.0 & !1;
        let derived =
            || self.generations.get(&whole.wrapping_sub(SYNC_STEP)).map(|g| g.wrapping_add(SYNC_STEP));
        let mapped = self.generations.get(&whole).copied().or_else(derived).unwrap_or(whole);
        GenerationId(mapped ^ (captured.0 & 1))
    }

    fn uuids(&self, captured: &Uuids) -> Uuids {
        let of = |generation| self.generation(generation);
        Uuids {
            current: of(captured.current),
            bitmap: of(captured.bitmap),
            history: captured.history.map(of),
            ..*captured
        }
    }

    /// A packet of the captured peer as the engine's peer would have sent it.
    pub(crate) fn inbound(&mut self, packet: &Packet) -> Result<Packet, String> {
        let mut packet = packet.clone();
        match &mut packet {
            Packet::Uuids(uuids) => {
                let heard = [uuids.current, uuids.bitmap, uuids.history[0], uuids.history[1]];
                let unknown =
                    heard.iter().filter(|g| self.generation(**g) == **g).copied().collect::<Vec<_>>();
                self.give(&unknown);
                *uuids = self.uuids(uuids);
            }
            Packet::SyncUuid(generation) => {
                self.give(&[*generation]);
                *generation = self.generation(*generation);
            }
            Packet::BarrierAck(ack) => {
                let number = self.barriers.get(&ack.number);
                ack.number = *number.ok_or_else(|| format!("no barrier for {ack:?}"))?;
            }
            Packet::DataReply(reply) => {
                let name = self.names.get(&reply.block_id);
                reply.block_id = *name.ok_or_else(|| format!("no request for {reply:?}"))?;
            }
            Packet::VerifyResult(_) | Packet::ResyncIsInSync(_) | Packet::NegativeResyncDataReply(_) => {}
            other => {
                if let Some(ack) = block_ack(other).filter(|ack| ack.block_id != BlockId::SYNCER) {
                    let name = self.names.get(&ack.block_id);
                    ack.block_id = *name.ok_or_else(|| format!("no request for {ack:?}"))?;
                }
            }
        }
        Ok(packet)
    }

    /// Learns what the captured identifier of a resync is to the engine. Where it is random, bit 0 is random, too.
    fn learn_sync(&mut self, captured: GenerationId, engine: GenerationId) -> Result<(), String> {
        let bit = (captured.0 ^ engine.0) & 1;
        self.learn(GenerationId(captured.0 & !1), GenerationId(engine.0 & !1))?;
        let mapped = self.generations.get_mut(&(captured.0 & !1));
        if let Some(mapped) = mapped {
            *mapped = (*mapped & !1) | bit;
        }
        Ok(())
    }

    /// Learns what a captured identifier of the node is to the engine.
    pub(crate) fn learn(&mut self, captured: GenerationId, engine: GenerationId) -> Result<(), String> {
        if self.generation(captured) == engine {
            return Ok(());
        }
        // What is derived from a known identifier is no invention either.
        let is_known = |whole: u64| self.given.contains(&whole) || self.generations.contains_key(&whole);
        let whole = captured.0 & !1;
        let known = is_known(whole) || is_known(whole.wrapping_sub(SYNC_STEP));
        let taken = self.given.contains(&(engine.0 & !1))
            || self.generations.values().any(|mapped| *mapped & !1 == engine.0 & !1)
            || engine.0 & !1 == 0
            || captured.0 & !1 == 0;
        if known || taken || captured.0 & 1 != engine.0 & 1 {
            return Err(format!(
                "generation {captured:?} (here {:?}) is {engine:?}",
                self.generation(captured)
            ));
        }
        self.generations.insert(captured.0 & !1, engine.0 & !1);
        Ok(())
    }

    /// Compares a packet the engine sent with the captured one in its place.
    pub(crate) fn compare(&mut self, captured: &Received, sent: &Sent) -> Result<(), String> {
        let differ = |text: String| format!("captured {:?}\nsent {:?}\n{text}", captured.packet, sent.packet);
        let mut expected = captured.packet.clone();
        let mut found = as_on_the_wire(captured, sent);
        if let (Some(theirs), Some(ours)) = (sequence(&mut expected), sequence(&mut found)) {
            *theirs = *ours;
        }
        if let (Some(theirs), Some(ours)) = (own_name(&mut expected), own_name(&mut found)) {
            self.names.insert(*theirs, *ours);
            *theirs = *ours;
        }
        self.settle(&mut expected, &found).map_err(differ)?;
        let has_volume = captured.incoming.command.scope() == udrbd_wire::Scope::Volume;
        if has_volume && captured.incoming.volume != sent.volume {
            return Err(differ(format!("for {:?} instead of {:?}", sent.volume, captured.incoming.volume)));
        }
        if expected != found {
            return Err(differ(format!("they differ; in the engine's words the first is {expected:?}")));
        }
        let is_random = matches!(found, Packet::AuthChallenge(_));
        if !is_random && (captured.payload != sent.payload || captured.digest != sent.digest) {
            return Err(differ("their data differ".to_owned()));
        }
        Ok(())
    }

    /// Makes what may differ equal.
    fn settle(&mut self, expected: &mut Packet, found: &Packet) -> Result<(), String> {
        match (expected, found) {
            (Packet::Barrier(theirs), Packet::Barrier(ours)) => {
                self.barriers.insert(theirs.number, ours.number);
                *theirs = *ours;
            }
            (Packet::Uuids(theirs), Packet::Uuids(ours)) => {
                self.learn(theirs.current, ours.current)?;
                self.learn(theirs.bitmap, ours.bitmap)?;
                self.learn(theirs.history[0], ours.history[0])?;
                self.learn(theirs.history[1], ours.history[1])?;
                *theirs = self.uuids(theirs);
            }
            (Packet::SyncUuid(theirs), Packet::SyncUuid(ours)) => {
                if self.generation(*theirs) != *ours {
                    self.learn_sync(*theirs, *ours)?;
                }
                *theirs = *ours;
            }
            (Packet::DataRequest(theirs) | Packet::VerifyReply(theirs), _) => theirs.padding = 0,
            (Packet::ResyncDeallocated(theirs), _) | (Packet::OutOfSync(theirs), _) => theirs.padding = 0,
            (Packet::ResyncIsInSync(theirs), Packet::ResyncIsInSync(ours)) => theirs.block_id = ours.block_id,
            // Anything is a good challenge, and a proxy may have changed what was announced.
            (theirs @ Packet::AuthChallenge(_), Packet::AuthChallenge(_))
            | (theirs @ Packet::ConnectionFeatures(_), Packet::ConnectionFeatures(_)) => {
                *theirs = found.clone();
            }
            _ => {}
        }
        Ok(())
    }
}
