//! Structures about blocks: writes, requests, replies and acknowledgements (wire spec 5).

use std::fmt;

use udrbd_units::{Sector, SectorRange};

use crate::cursor::{Put, Reader};
use crate::dialect::Dialect;
use crate::error::WireError;
use crate::flags::DataFlags;

/// What a request is called by its sender: the receiver echoes it and never looks into it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct BlockId(pub u64);

impl BlockId {
    /// Marks resync and verify traffic; never a request's name.
    pub const SYNCER: Self = Self(u64::MAX);
    /// In P_OV_RESULT: both copies are equal.
    pub const IN_SYNC: Self = Self(4711);
    /// In P_OV_RESULT: the copies differ.
    pub const OUT_OF_SYNC: Self = Self(4712);
}

impl fmt::Debug for BlockId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "BlockId({:016x})", self.0)
    }
}

/// The number of a write or of an acknowledgement in the counter a node has for each volume (wire spec 10.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct SequenceNumber(pub u32);

impl SequenceNumber {
    /// The number after this one; it wraps around.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.wrapping_add(1))
    }

    /// Whether this number comes after `other`, with wrap-around.
    pub const fn is_after(self, other: Self) -> bool {
        (self.0.wrapping_sub(other.0) as i32) > 0
    }
}

/// P_DATA (p_data): a write; digest and data follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockWrite {
    /// Where it goes.
    pub sector: Sector,
    /// Its name.
    pub block_id: BlockId,
    /// Its number among the sender's writes and acknowledgements.
    pub sequence: SequenceNumber,
    /// What is wanted.
    pub flags: DataFlags,
}

impl BlockWrite {
    pub(crate) fn decode(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        Ok(Self {
            sector: Sector(reader.u64()?),
            block_id: BlockId(reader.u64()?),
            sequence: SequenceNumber(reader.u32()?),
            flags: DataFlags(reader.u32()?),
        })
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.put_u64(self.sector.0);
        out.put_u64(self.block_id.0);
        out.put_u32(self.sequence.0);
        out.put_u32(self.flags.0);
    }
}

/// P_DATA_REPLY, P_RS_DATA_REPLY (p_data without number and flags): digest and data follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockReply {
    /// Where the data are from.
    pub sector: Sector,
    /// The name of the request.
    pub block_id: BlockId,
}

impl BlockReply {
    pub(crate) fn decode(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        let BlockWrite { sector, block_id, .. } = BlockWrite::decode(reader)?;
        Ok(Self { sector, block_id })
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        let Self { sector, block_id } = *self;
        BlockWrite { sector, block_id, sequence: SequenceNumber(0), flags: DataFlags::NONE }.encode(out);
    }
}

/// P_TRIM, P_ZEROES (p_trim): a write without data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockZero {
    /// Where it goes.
    pub sector: Sector,
    /// Its name.
    pub block_id: BlockId,
    /// Its number among the sender's writes and acknowledgements.
    pub sequence: SequenceNumber,
    /// What is wanted.
    pub flags: DataFlags,
    /// The length in bytes: a multiple of 512, at most 128 MiB.
    pub size: u32,
}

impl BlockZero {
    pub(crate) fn decode(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        let BlockWrite { sector, block_id, sequence, flags } = BlockWrite::decode(reader)?;
        let size = reader.u32()?;
        check_size(reader, sector, size, crate::ZERO_BYTES_MAX)?;
        Ok(Self { sector, block_id, sequence, flags, size })
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        let Self { sector, block_id, sequence, flags, size } = *self;
        BlockWrite { sector, block_id, sequence, flags }.encode(out);
        out.put_u32(size);
    }

    /// The run of sectors it is about.
    pub const fn range(&self) -> SectorRange {
        SectorRange::new(self.sector, self.size)
    }
}

/// P_DATA_REQUEST, P_RS_DATA_REQUEST, P_RS_THIN_REQ, P_CSUM_RS_REQUEST, P_OV_REQUEST, P_OV_REPLY (p_block_req).
/// A digest follows in P_CSUM_RS_REQUEST and P_OV_REPLY.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockRequest {
    /// The first sector.
    pub sector: Sector,
    /// The request's name; [`BlockId::SYNCER`] for resync and verify.
    pub block_id: BlockId,
    /// The length in bytes: a multiple of 512, 512 to 1 MiB.
    pub size: u32,
    /// Without meaning. 0 when we send; a kernel leaves anything in here (wire spec 1).
    pub padding: u32,
}

impl BlockRequest {
    /// A request for `size` bytes from `sector` on.
    pub const fn new(sector: Sector, block_id: BlockId, size: u32) -> Self {
        Self { sector, block_id, size, padding: 0 }
    }

    /// The run of sectors it is about.
    pub const fn range(&self) -> SectorRange {
        SectorRange::new(self.sector, self.size)
    }

    /// A size the answer could not carry is refused: no peer's wish may lead to a packet that cannot be sent.
    pub(crate) fn decode(reader: &mut Reader<'_>, dialect: Dialect) -> Result<Self, WireError> {
        let request = Self {
            sector: Sector(reader.u64()?),
            block_id: BlockId(reader.u64()?),
            size: reader.u32()?,
            padding: reader.u32()?,
        };
        check_size(reader, request.sector, request.size, dialect.data_bytes_max())?;
        Ok(request)
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.put_u64(self.sector.0);
        out.put_u64(self.block_id.0);
        out.put_u32(self.size);
        out.put_u32(self.padding);
    }
}

/// Every acknowledgement but that of a barrier (p_block_ack).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockAck {
    /// The first sector, as in the request.
    pub sector: Sector,
    /// The request's name. In P_RS_IS_IN_SYNC anything (wire spec 18.5); in P_OV_RESULT the result.
    pub block_id: BlockId,
    /// The length in bytes. In P_NEG_ACK for a discard anything (wire spec 18.7).
    pub size: u32,
    /// Its number among the sender's writes and acknowledgements.
    pub sequence: SequenceNumber,
}

impl BlockAck {
    /// The run of sectors it is about.
    pub const fn range(&self) -> SectorRange {
        SectorRange::new(self.sector, self.size)
    }

    pub(crate) fn decode(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        Ok(Self {
            sector: Sector(reader.u64()?),
            block_id: BlockId(reader.u64()?),
            size: reader.u32()?,
            sequence: SequenceNumber(reader.u32()?),
        })
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.put_u64(self.sector.0);
        out.put_u64(self.block_id.0);
        out.put_u32(self.size);
        out.put_u32(self.sequence.0);
    }
}

/// P_OUT_OF_SYNC, P_RS_DEALLOCATED (p_block_desc).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockRange {
    /// The first sector.
    pub sector: Sector,
    /// The length in bytes.
    pub size: u32,
    /// Without meaning. 0 when we send; a kernel leaves anything in here (wire spec 1).
    pub padding: u32,
}

impl BlockRange {
    /// The range of `size` bytes from `sector` on.
    pub const fn new(sector: Sector, size: u32) -> Self {
        Self { sector, size, padding: 0 }
    }

    /// The run of sectors it is about.
    pub const fn range(&self) -> SectorRange {
        SectorRange::new(self.sector, self.size)
    }

    pub(crate) fn decode(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        let block = Self { sector: Sector(reader.u64()?), size: reader.u32()?, padding: reader.u32()? };
        check_size(reader, block.sector, block.size, crate::ZERO_BYTES_MAX)?;
        Ok(block)
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.put_u64(self.sector.0);
        out.put_u32(self.size);
        out.put_u32(self.padding);
    }
}

/// P_BARRIER: closes the epoch of this number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Barrier {
    /// The epoch's number: the receiver echoes it and never looks into it.
    pub number: u32,
}

/// P_BARRIER_ACK: the writes of the epoch have completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BarrierAck {
    /// The number from the barrier.
    pub number: u32,
    /// How many writes the epoch had.
    pub set_size: u32,
}

/// P_DELAY_PROBE (p_delay_probe93): read and ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DelayProbe {
    /// Pairs the probes of the two sockets.
    pub sequence: u32,
    /// Microseconds since the first of the pair was queued.
    pub offset: u32,
}

/// Refuses a length that is 0, no multiple of 512 or above `maximum`.
fn check_size(reader: &Reader<'_>, sector: Sector, bytes: u32, maximum: u32) -> Result<(), WireError> {
    if bytes == 0 || !bytes.is_multiple_of(512) || bytes > maximum {
        return Err(WireError::BlockSize { command: reader.command(), sector: sector.0, bytes });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::Command;
    use crate::flags::Features;

    #[test]
    fn sizes_are_whole_sectors_within_the_limit() {
        let read = |command, size: u32, version| {
            let structure = [&[0; 16][..], &size.to_be_bytes(), &[0; 4]].concat();
            let dialect = Dialect { version, features: Features::ALL };
            BlockRequest::decode(&mut Reader::new(command, &structure), dialect).map(|request| request.size)
        };
        for (size, version) in [(512, 101), (1 << 20, 95), (1 << 15, 94)] {
            assert_eq!(read(Command::DataRequest, size, version), Ok(size));
        }
        for (size, version) in
            [(0, 101), (511, 101), ((1 << 20) + 512, 101), (1 << 31, 101), ((1 << 15) + 512, 94)]
        {
            let error = read(Command::ResyncDataRequest, size, version).unwrap_err();
            assert_eq!(error.to_string(), format!("RSDataRequest: sector: 0s, size: {size}"));
        }
        let discard = |size: u32| {
            let structure = [&[0; 24][..], &size.to_be_bytes()].concat();
            BlockZero::decode(&mut Reader::new(Command::Trim, &structure)).map(|zero| zero.size)
        };
        assert_eq!(discard(128 << 20), Ok(128 << 20));
        assert!(discard((128 << 20) + 512).is_err() && discard(0).is_err());
    }

    #[test]
    fn sequence_numbers_wrap() {
        assert!(SequenceNumber(1).is_after(SequenceNumber(0)));
        assert!(SequenceNumber(0).is_after(SequenceNumber(u32::MAX)));
        assert!(!SequenceNumber(5).is_after(SequenceNumber(5)));
        assert_eq!(SequenceNumber(u32::MAX).next(), SequenceNumber(0));
    }
}
