//! What nodes tell each other about a volume: sizes and generation identifiers (wire spec 5, 6.5, 6.6).

use udrbd_units::{GenerationId, Sector};

use crate::cursor::{Put, Reader};
use crate::dialect::Dialect;
use crate::error::WireError;
use crate::flags::{Features, SizesFlags, UuidFlags};

/// P_UUIDS: a volume's generation identifiers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Uuids {
    /// The current generation.
    pub current: GenerationId,
    /// The generation the bitmap counts from.
    pub bitmap: GenerationId,
    /// Generations before, the younger first.
    pub history: [GenerationId; 2],
    /// How many bits the sender's bitmap has set.
    pub dirty_bits: u64,
    /// What else there is to say.
    pub flags: UuidFlags,
}

impl Uuids {
    pub(crate) fn decode(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        Ok(Self {
            current: GenerationId(reader.u64()?),
            bitmap: GenerationId(reader.u64()?),
            history: [GenerationId(reader.u64()?), GenerationId(reader.u64()?)],
            dirty_bits: reader.u64()?,
            flags: UuidFlags(reader.u64()?),
        })
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        for identifier in [self.current, self.bitmap, self.history[0], self.history[1]] {
            out.put_u64(identifier.0);
        }
        out.put_u64(self.dirty_bits);
        out.put_u64(self.flags.0);
    }
}

/// P_SIZES: a volume's sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// The most the sender's disk could serve (`d_size`); 0 if it has none.
    pub disk_size: Sector,
    /// The configured size (`u_size`); 0 if none is.
    pub user_size: Sector,
    /// The size the device has now (`c_size`); 0 asks for an answer.
    pub current_size: Sector,
    /// The largest request, in bytes.
    pub max_bio_size: u32,
    /// Always 0.
    pub queue_order_type: u16,
    /// How a change of size is to be taken.
    pub flags: SizesFlags,
    /// The limits of the sender's disk. They travel if [`Features::WRITE_SAME`] is agreed; the receiver then has
    /// `Some`, and a sender's `None` travels as the default.
    pub queue_limits: Option<QueueLimits>,
}

/// The limits of a disk (`qlim` in P_SIZES). DRBD 8.4 sends them and never looks at them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueLimits {
    /// Bytes.
    pub physical_block_size: u32,
    /// Bytes.
    pub logical_block_size: u32,
    /// Bytes.
    pub alignment_offset: u32,
    /// Bytes.
    pub io_min: u32,
    /// Bytes.
    pub io_opt: u32,
    /// Whether it takes discards.
    pub discard_enabled: bool,
    /// Always false in 8.4.11.
    pub discard_zeroes_data: bool,
    /// Always false, so that P_WSAME is never received (wire spec 8.3).
    pub write_same_capable: bool,
}

impl Default for QueueLimits {
    fn default() -> Self {
        Self {
            physical_block_size: 512,
            logical_block_size: 512,
            alignment_offset: 0,
            io_min: 512,
            io_opt: 0,
            discard_enabled: false,
            discard_zeroes_data: false,
            write_same_capable: false,
        }
    }
}

impl Sizes {
    pub(crate) fn decode(reader: &mut Reader<'_>, dialect: Dialect) -> Result<Self, WireError> {
        Ok(Self {
            disk_size: Sector(reader.u64()?),
            user_size: Sector(reader.u64()?),
            current_size: Sector(reader.u64()?),
            max_bio_size: reader.u32()?,
            queue_order_type: reader.u16()?,
            flags: SizesFlags(reader.u16()?),
            queue_limits: match dialect.has(Features::WRITE_SAME) {
                true => Some(QueueLimits::decode(reader)?),
                false => None,
            },
        })
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>, dialect: Dialect) {
        out.put_u64(self.disk_size.0);
        out.put_u64(self.user_size.0);
        out.put_u64(self.current_size.0);
        out.put_u32(self.max_bio_size);
        out.put_u16(self.queue_order_type);
        out.put_u16(self.flags.0);
        if dialect.has(Features::WRITE_SAME) {
            self.queue_limits.unwrap_or_default().encode(out);
        }
    }
}

impl QueueLimits {
    fn decode(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        let limits = Self {
            physical_block_size: reader.u32()?,
            logical_block_size: reader.u32()?,
            alignment_offset: reader.u32()?,
            io_min: reader.u32()?,
            io_opt: reader.u32()?,
            discard_enabled: reader.u8()? != 0,
            discard_zeroes_data: reader.u8()? != 0,
            write_same_capable: reader.u8()? != 0,
        };
        reader.u8()?;
        Ok(limits)
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.put_u32(self.physical_block_size);
        out.put_u32(self.logical_block_size);
        out.put_u32(self.alignment_offset);
        out.put_u32(self.io_min);
        out.put_u32(self.io_opt);
        out.put_u8(u8::from(self.discard_enabled));
        out.put_u8(u8::from(self.discard_zeroes_data));
        out.put_u8(u8::from(self.write_same_capable));
        out.put_u8(0);
    }
}
