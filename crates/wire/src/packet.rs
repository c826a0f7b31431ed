//! Every packet as a value.

use udrbd_units::{GenerationId, VolumeNumber};

use crate::authentication::{AuthChallenge, AuthResponse};
use crate::bitmap::RunLengthEncoding;
use crate::blocks::{
    Barrier, BarrierAck, BlockAck, BlockRange, BlockReply, BlockRequest, BlockWrite, BlockZero, DelayProbe,
};
use crate::command::Command;
use crate::cursor::{Put, Reader};
use crate::dialect::Dialect;
use crate::digest::DigestValue;
use crate::error::WireError;
use crate::handshake::{ConnectionFeatures, ProtocolParameters, SyncParameters};
use crate::header;
use crate::incoming::Incoming;
use crate::state::{StateChange, StateReturnCode, StateWord, decode_return_code};
use crate::volume::{Sizes, Uuids};

/// A packet without its header, digest and payload. The few large ones of the handshake are boxed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Packet {
    /// A write; payload: the data.
    Data(BlockWrite),
    /// What a read found; payload: the data.
    DataReply(BlockReply),
    /// A block of a resync; payload: the data.
    ResyncDataReply(BlockReply),
    /// A discard.
    Trim(BlockZero),
    /// A write of zeroes.
    Zeroes(BlockZero),
    /// The end of an epoch.
    Barrier(Barrier),
    /// A hint that nothing follows for now.
    UnplugRemote,
    /// A read.
    DataRequest(BlockRequest),
    /// A block wanted for a resync.
    ResyncDataRequest(BlockRequest),
    /// A block wanted for a resync, a hole as such.
    ResyncThinRequest(BlockRequest),
    /// A block wanted for a resync unless it has the digest that follows.
    ChecksumResyncRequest(BlockRequest),
    /// A digest wanted for online verify.
    VerifyRequest(BlockRequest),
    /// The digest that follows, for online verify.
    VerifyReply(BlockRequest),
    /// A range the peer does not get, to be marked out of sync.
    OutOfSync(BlockRange),
    /// The block asked for by [`Packet::ResyncThinRequest`] is a hole.
    ResyncDeallocated(BlockRange),
    /// Payload: words of the bitmap.
    Bitmap,
    /// Payload: run lengths of the bitmap.
    CompressedBitmap(RunLengthEncoding),

    /// A write has arrived.
    ReceiveAck(BlockAck),
    /// A write is on disk.
    WriteAck(BlockAck),
    /// A write is on disk and the range in sync.
    ResyncWriteAck(BlockAck),
    /// A conflicting write was dropped, an own one covers it.
    Superseded(BlockAck),
    /// A conflicting write was dropped and is to be sent again.
    RetryWrite(BlockAck),
    /// A write failed.
    NegativeAck(BlockAck),
    /// A read failed.
    NegativeDataReply(BlockAck),
    /// A read for a resync or verify failed.
    NegativeResyncDataReply(BlockAck),
    /// What online verify found about a block.
    VerifyResult(BlockAck),
    /// The block has the digest of the [`Packet::ChecksumResyncRequest`].
    ResyncIsInSync(BlockAck),
    /// A resync request is not answered now.
    ResyncCancel(BlockAck),
    /// All writes of an epoch have completed.
    BarrierAck(BarrierAck),
    /// Are you there?
    Ping,
    /// Yes.
    PingAck,

    /// May this volume's state change?
    StateChangeRequest(StateChange),
    /// The answer.
    StateChangeReply(StateReturnCode),
    /// May the connection's state change? Below version 100 it travels as [`Packet::StateChangeRequest`].
    ConnectionStateChangeRequest(StateChange),
    /// The answer. Below version 100 it travels as [`Packet::StateChangeReply`].
    ConnectionStateChangeReply(StateReturnCode),
    /// A volume's state.
    State(StateWord),
    /// A volume's generation identifiers.
    Uuids(Uuids),
    /// The identifier of the resync that starts.
    SyncUuid(GenerationId),
    /// A volume's sizes.
    Sizes(Sizes),
    /// Settings of resync and verify; the version selects P_SYNC_PARAM or P_SYNC_PARAM89.
    SyncParameters(Box<SyncParameters>),
    /// The connection's parameters.
    Protocol(Box<ProtocolParameters>),
    /// The connection's parameters have changed.
    ProtocolUpdate(Box<ProtocolParameters>),

    /// This TCP connection is the data socket.
    InitialData,
    /// This TCP connection is the meta socket.
    InitialMeta,
    /// Versions and features.
    ConnectionFeatures(ConnectionFeatures),
    /// Random bytes to prove knowledge of the secret on.
    AuthChallenge(Box<AuthChallenge>),
    /// The proof.
    AuthResponse(Box<AuthResponse>),
    /// A relic, to be ignored (`skipping unknown optional packet type 39, l: 0!`).
    DelayProbe(DelayProbe),
}

impl Packet {
    /// The packet's number in this dialect.
    pub const fn command(&self, dialect: Dialect) -> Command {
        match self {
            Self::Data(_) => Command::Data,
            Self::DataReply(_) => Command::DataReply,
            Self::ResyncDataReply(_) => Command::ResyncDataReply,
            Self::Trim(_) => Command::Trim,
            Self::Zeroes(_) => Command::Zeroes,
            Self::Barrier(_) => Command::Barrier,
            Self::UnplugRemote => Command::UnplugRemote,
            Self::DataRequest(_) => Command::DataRequest,
            Self::ResyncDataRequest(_) => Command::ResyncDataRequest,
            Self::ResyncThinRequest(_) => Command::ResyncThinRequest,
            Self::ChecksumResyncRequest(_) => Command::ChecksumResyncRequest,
            Self::VerifyRequest(_) => Command::VerifyRequest,
            Self::VerifyReply(_) => Command::VerifyReply,
            Self::OutOfSync(_) => Command::OutOfSync,
            Self::ResyncDeallocated(_) => Command::ResyncDeallocated,
            Self::Bitmap => Command::Bitmap,
            Self::CompressedBitmap(_) => Command::CompressedBitmap,
            Self::ReceiveAck(_) => Command::ReceiveAck,
            Self::WriteAck(_) => Command::WriteAck,
            Self::ResyncWriteAck(_) => Command::ResyncWriteAck,
            Self::Superseded(_) => Command::Superseded,
            Self::RetryWrite(_) => Command::RetryWrite,
            Self::NegativeAck(_) => Command::NegativeAck,
            Self::NegativeDataReply(_) => Command::NegativeDataReply,
            Self::NegativeResyncDataReply(_) => Command::NegativeResyncDataReply,
            Self::VerifyResult(_) => Command::VerifyResult,
            Self::ResyncIsInSync(_) => Command::ResyncIsInSync,
            Self::ResyncCancel(_) => Command::ResyncCancel,
            Self::BarrierAck(_) => Command::BarrierAck,
            Self::Ping => Command::Ping,
            Self::PingAck => Command::PingAck,
            Self::ConnectionStateChangeRequest(_) if dialect.has_volumes() => {
                Command::ConnectionStateChangeRequest
            }
            Self::ConnectionStateChangeReply(_) if dialect.has_volumes() => {
                Command::ConnectionStateChangeReply
            }
            Self::StateChangeRequest(_) | Self::ConnectionStateChangeRequest(_) => {
                Command::StateChangeRequest
            }
            Self::StateChangeReply(_) | Self::ConnectionStateChangeReply(_) => Command::StateChangeReply,
            Self::State(_) => Command::State,
            Self::Uuids(_) => Command::Uuids,
            Self::SyncUuid(_) => Command::SyncUuid,
            Self::Sizes(_) => Command::Sizes,
            Self::SyncParameters(_) => SyncParameters::command(dialect),
            Self::Protocol(_) => Command::Protocol,
            Self::ProtocolUpdate(_) => Command::ProtocolUpdate,
            Self::InitialData => Command::InitialData,
            Self::InitialMeta => Command::InitialMeta,
            Self::ConnectionFeatures(_) => Command::ConnectionFeatures,
            Self::AuthChallenge(_) => Command::AuthChallenge,
            Self::AuthResponse(_) => Command::AuthResponse,
            Self::DelayProbe(_) => Command::DelayProbe,
        }
    }

    /// Appends header, structure and `digest` to `out`, for a packet that `payload_bytes` of payload will follow.
    /// `volume` is ignored for packets of the connection.
    ///
    /// # Panics
    /// If digest or payload do not go with this packet, or the payload is larger than can travel
    /// ([`Dialect::data_bytes_max`]): all of it the caller's own doing.
    pub fn encode(
        &self,
        out: &mut Vec<u8>,
        dialect: Dialect,
        volume: VolumeNumber,
        digest: &[u8],
        payload_bytes: u32,
    ) {
        let command = self.command(dialect);
        self.check_tail(digest, payload_bytes, dialect);
        let start = out.len();
        let body = start + header::header_bytes(command, dialect);
        out.resize(body, 0);
        self.encode_structure(out, dialect);
        out.extend_from_slice(digest);
        let length = (out.len() - body) as u32 + payload_bytes;
        header::write(&mut out[start..body], command, dialect, volume, length);
    }

    /// Asserts that digest and payload are such as the peer accepts.
    fn check_tail(&self, digest: &[u8], payload_bytes: u32, dialect: Dialect) {
        assert!(digest.len() <= crate::DIGEST_BYTES_MAX, "digest of {} bytes", digest.len());
        let (digest_allowed, payload_max, unit) = match self {
            Self::Data(_) | Self::DataReply(_) | Self::ResyncDataReply(_) => {
                (true, dialect.data_bytes_max(), 512)
            }
            Self::VerifyReply(_) | Self::ChecksumResyncRequest(_) => (true, 0, 1),
            Self::Bitmap => (false, dialect.bitmap_bytes_max() as u32, 8),
            Self::CompressedBitmap(_) => (false, dialect.bitmap_bytes_max() as u32 - 1, 1),
            _ => (false, 0, 1),
        };
        assert!(digest_allowed || digest.is_empty(), "{self:?} has no digest");
        assert!(
            payload_bytes <= payload_max && payload_bytes.is_multiple_of(unit),
            "{payload_bytes} bytes behind {self:?}"
        );
    }

    fn encode_structure(&self, out: &mut Vec<u8>, dialect: Dialect) {
        match self {
            Self::Data(write) => write.encode(out),
            Self::DataReply(reply) | Self::ResyncDataReply(reply) => reply.encode(out),
            Self::Trim(zero) | Self::Zeroes(zero) => zero.encode(out),
            Self::Barrier(barrier) => {
                out.put_u32(barrier.number);
                out.put_u32(0);
            }
            Self::DataRequest(request)
            | Self::ResyncDataRequest(request)
            | Self::ResyncThinRequest(request)
            | Self::ChecksumResyncRequest(request)
            | Self::VerifyRequest(request)
            | Self::VerifyReply(request) => request.encode(out),
            Self::OutOfSync(range) | Self::ResyncDeallocated(range) => range.encode(out),
            Self::CompressedBitmap(encoding) => out.put_u8(encoding.byte()),
            Self::ReceiveAck(ack)
            | Self::WriteAck(ack)
            | Self::ResyncWriteAck(ack)
            | Self::Superseded(ack)
            | Self::RetryWrite(ack)
            | Self::NegativeAck(ack)
            | Self::NegativeDataReply(ack)
            | Self::NegativeResyncDataReply(ack)
            | Self::VerifyResult(ack)
            | Self::ResyncIsInSync(ack)
            | Self::ResyncCancel(ack) => ack.encode(out),
            Self::BarrierAck(ack) => {
                out.put_u32(ack.number);
                out.put_u32(ack.set_size);
            }
            Self::StateChangeRequest(change) | Self::ConnectionStateChangeRequest(change) => {
                let (mask, value) = change.pack();
                out.put_u32(mask);
                out.put_u32(value);
            }
            Self::StateChangeReply(code) | Self::ConnectionStateChangeReply(code) => {
                out.put_u32(code.0 as u32);
            }
            Self::State(state) => out.put_u32(state.pack()),
            Self::Uuids(uuids) => uuids.encode(out),
            Self::SyncUuid(uuid) => out.put_u64(uuid.0),
            Self::Sizes(sizes) => sizes.encode(out, dialect),
            Self::SyncParameters(parameters) => parameters.encode(out, dialect),
            Self::Protocol(parameters) | Self::ProtocolUpdate(parameters) => parameters.encode(out, dialect),
            Self::ConnectionFeatures(features) => features.encode(out),
            Self::AuthChallenge(challenge) => out.extend_from_slice(challenge.as_bytes()),
            Self::AuthResponse(response) => out.extend_from_slice(response.0.as_bytes()),
            Self::DelayProbe(probe) => {
                out.put_u32(probe.sequence);
                out.put_u32(probe.offset);
            }
            Self::UnplugRemote
            | Self::Bitmap
            | Self::Ping
            | Self::PingAck
            | Self::InitialData
            | Self::InitialMeta => {}
        }
    }
}

impl Incoming {
    /// The packet from the `packet_bytes` bytes of its structure.
    ///
    /// # Errors
    /// If a field has a value no packet can have, or there are not as many bytes as the header said.
    pub fn decode(&self, structure: &[u8], dialect: Dialect) -> Result<Packet, WireError> {
        if structure.len() != self.packet_bytes {
            return Err(WireError::packet_size(self.command, self.packet_bytes, structure.len()));
        }
        let mut reader = Reader::new(self.command, structure);
        decode_structure(&mut reader, dialect)
    }
}

fn decode_structure(reader: &mut Reader<'_>, dialect: Dialect) -> Result<Packet, WireError> {
    Ok(match reader.command() {
        Command::Data => Packet::Data(BlockWrite::decode(reader)?),
        Command::DataReply => Packet::DataReply(BlockReply::decode(reader)?),
        Command::ResyncDataReply => Packet::ResyncDataReply(BlockReply::decode(reader)?),
        Command::Trim => Packet::Trim(BlockZero::decode(reader)?),
        Command::Zeroes => Packet::Zeroes(BlockZero::decode(reader)?),
        Command::Barrier => Packet::Barrier(Barrier { number: reader.u32()? }),
        Command::UnplugRemote => Packet::UnplugRemote,
        Command::DataRequest => Packet::DataRequest(BlockRequest::decode(reader, dialect)?),
        Command::ResyncDataRequest => Packet::ResyncDataRequest(BlockRequest::decode(reader, dialect)?),
        Command::ResyncThinRequest => Packet::ResyncThinRequest(BlockRequest::decode(reader, dialect)?),
        Command::ChecksumResyncRequest => {
            Packet::ChecksumResyncRequest(BlockRequest::decode(reader, dialect)?)
        }
        Command::VerifyRequest => Packet::VerifyRequest(BlockRequest::decode(reader, dialect)?),
        Command::VerifyReply => Packet::VerifyReply(BlockRequest::decode(reader, dialect)?),
        Command::OutOfSync => Packet::OutOfSync(BlockRange::decode(reader)?),
        Command::ResyncDeallocated => Packet::ResyncDeallocated(BlockRange::decode(reader)?),
        Command::Bitmap => Packet::Bitmap,
        Command::CompressedBitmap => Packet::CompressedBitmap(RunLengthEncoding::from_byte(reader.u8()?)?),
        Command::BarrierAck => {
            Packet::BarrierAck(BarrierAck { number: reader.u32()?, set_size: reader.u32()? })
        }
        Command::Ping => Packet::Ping,
        Command::PingAck => Packet::PingAck,
        Command::DelayProbe => {
            Packet::DelayProbe(DelayProbe { sequence: reader.u32()?, offset: reader.u32()? })
        }
        Command::ReceiveAck
        | Command::WriteAck
        | Command::ResyncWriteAck
        | Command::Superseded
        | Command::RetryWrite
        | Command::NegativeAck
        | Command::NegativeDataReply
        | Command::NegativeResyncDataReply
        | Command::VerifyResult
        | Command::ResyncIsInSync
        | Command::ResyncCancel => decode_ack(reader)?,
        _ => decode_parameters(reader, dialect)?,
    })
}

/// The acknowledgements, which differ in their number only.
fn decode_ack(reader: &mut Reader<'_>) -> Result<Packet, WireError> {
    let ack = BlockAck::decode(reader)?;
    Ok(match reader.command() {
        Command::ReceiveAck => Packet::ReceiveAck(ack),
        Command::WriteAck => Packet::WriteAck(ack),
        Command::ResyncWriteAck => Packet::ResyncWriteAck(ack),
        Command::Superseded => Packet::Superseded(ack),
        Command::RetryWrite => Packet::RetryWrite(ack),
        Command::NegativeAck => Packet::NegativeAck(ack),
        Command::NegativeDataReply => Packet::NegativeDataReply(ack),
        Command::NegativeResyncDataReply => Packet::NegativeResyncDataReply(ack),
        Command::VerifyResult => Packet::VerifyResult(ack),
        Command::ResyncIsInSync => Packet::ResyncIsInSync(ack),
        Command::ResyncCancel => Packet::ResyncCancel(ack),
        other => unreachable!("{} is no acknowledgement", other.log_name()),
    })
}

/// States and parameters, and the packets of the handshake.
fn decode_parameters(reader: &mut Reader<'_>, dialect: Dialect) -> Result<Packet, WireError> {
    Ok(match reader.command() {
        Command::StateChangeRequest => Packet::StateChangeRequest(StateChange::decode(reader)?),
        Command::StateChangeReply => Packet::StateChangeReply(decode_return_code(reader)?),
        Command::ConnectionStateChangeRequest => {
            Packet::ConnectionStateChangeRequest(StateChange::decode(reader)?)
        }
        Command::ConnectionStateChangeReply => {
            Packet::ConnectionStateChangeReply(decode_return_code(reader)?)
        }
        Command::State => Packet::State(StateWord::decode(reader)?),
        Command::Uuids => Packet::Uuids(Uuids::decode(reader)?),
        Command::SyncUuid => Packet::SyncUuid(GenerationId(reader.u64()?)),
        Command::Sizes => Packet::Sizes(Sizes::decode(reader, dialect)?),
        Command::SyncParam | Command::SyncParam89 => {
            Packet::SyncParameters(Box::new(SyncParameters::decode(reader, dialect)?))
        }
        Command::Protocol => Packet::Protocol(Box::new(ProtocolParameters::decode(reader)?)),
        Command::ProtocolUpdate => Packet::ProtocolUpdate(Box::new(ProtocolParameters::decode(reader)?)),
        Command::InitialData => Packet::InitialData,
        Command::InitialMeta => Packet::InitialMeta,
        Command::ConnectionFeatures => Packet::ConnectionFeatures(ConnectionFeatures::decode(reader)?),
        Command::AuthChallenge => {
            let bytes = reader.rest();
            let too_small = bytes.len() < AuthChallenge::BYTES;
            let fault = if too_small { WireError::ChallengeTooSmall } else { WireError::ChallengeTooBig };
            Packet::AuthChallenge(Box::new(AuthChallenge::received(bytes).ok_or(fault)?))
        }
        Command::AuthResponse => {
            let digest = DigestValue::from_bytes(reader.rest()).ok_or(WireError::ResponseSize)?;
            Packet::AuthResponse(Box::new(AuthResponse(digest)))
        }
        other => unreachable!("{} is decoded elsewhere", other.log_name()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_is_small_enough_to_move_about() {
        assert!(size_of::<Packet>() <= 72, "{}", size_of::<Packet>());
    }

    #[test]
    #[should_panic(expected = "bytes behind")]
    fn a_packet_without_payload_gets_none() {
        Packet::Ping.encode(&mut Vec::new(), Dialect::NEWEST, VolumeNumber(0), &[], 8);
    }
}
