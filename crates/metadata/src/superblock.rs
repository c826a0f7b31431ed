//! The superblock (metadata spec 4; DRBD's `struct meta_data_on_disk`).

use std::fmt;
use std::ops::{BitOr, BitOrAssign};

use udrbd_units::{GenerationId, Sector};

use crate::layout::{Layout, Striping};
use crate::{BLOCK_BYTES, Block};

/// `al_nr_extents` of metadata just created.
pub const AL_NR_EXTENTS_FRESH: u32 = 257;
/// Bytes of data one bitmap bit stands for; the only value 8.4 accepts.
pub const BM_BYTES_PER_BIT: u32 = 4096;

/// The magic number of a superblock (metadata spec 4.1).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Magic(pub u32);

impl Magic {
    /// DRBD 0.7: not attachable.
    pub const V07: Self = Self(0x8374_026A);
    /// v08; clean if the flag [`Flags::AL_CLEAN`] is set too.
    pub const V08: Self = Self(0x8374_026B);
    /// v08 in use, or was in use: the activity log must be applied before the next attach.
    pub const V08_UNCLEAN: Self = Self(0x8374_026C);
    /// DRBD 9: not attachable.
    pub const V09: Self = Self(0x8374_026D);

    /// Whether this is format v08, clean or not.
    pub const fn is_v08(self) -> bool {
        self.0 == Self::V08.0 || self.0 == Self::V08_UNCLEAN.0
    }
}

impl fmt::Debug for Magic {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Magic({:08x})", self.0)
    }
}

/// The flags of a superblock (metadata spec 4.2). Unknown bits are carried along.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Flags(pub u32);

impl Flags {
    /// The local disk was better than Inconsistent.
    pub const CONSISTENT: Self = Self(0x001);
    /// This node was Primary (or its diskless peer was).
    pub const PRIMARY_IND: Self = Self(0x002);
    /// The connection was above WFReportParams.
    pub const CONNECTED_IND: Self = Self(0x004);
    /// The bitmap on disk must be taken as all ones.
    pub const FULL_SYNC: Self = Self(0x008);
    /// The local disk was better than Outdated.
    pub const WAS_UP_TO_DATE: Self = Self(0x010);
    /// The peer's disk was Inconsistent or Outdated.
    pub const PEER_OUT_DATED: Self = Self(0x020);
    /// The node came back from a crash as Primary and has not been in sync with its peer since.
    pub const CRASHED_PRIMARY: Self = Self(0x040);
    /// The activity log has been applied.
    pub const AL_CLEAN: Self = Self(0x080);
    /// Activity log updates are switched off, or a change of the layout is under way.
    pub const AL_DISABLED: Self = Self(0x100);

    /// Whether all bits of `other` are set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// These flags with the bits of `other` set or cleared.
    #[must_use]
    pub const fn with(self, other: Self, set: bool) -> Self {
        if set { Self(self.0 | other.0) } else { Self(self.0 & !other.0) }
    }

    /// Sets or clears the bits of `other`.
    pub const fn set(&mut self, other: Self, set: bool) {
        *self = self.with(other, set);
    }
}

impl BitOr for Flags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitOrAssign for Flags {
    fn bitor_assign(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

impl fmt::Debug for Flags {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Flags({:#010x})", self.0)
    }
}

/// What a superblock says (metadata spec 4). Reserved bytes are ignored when read and zero when written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// The last agreed size of the device in sectors; 0 if it was never attached.
    pub la_size_sect: Sector,
    /// The generation of the data held here. Bit 0 lags behind the role on disk (metadata spec 4.3).
    pub current: GenerationId,
    /// The generation the peer had when bits started to be collected.
    pub bitmap: GenerationId,
    /// Former bitmap identifiers, younger first.
    pub history: [GenerationId; 2],
    /// A random number that recognises the device.
    pub device_uuid: u64,
    /// See [`Flags`].
    pub flags: Flags,
    /// See [`Magic`].
    pub magic: Magic,
    /// The size of the metadata area in sectors.
    pub md_size_sect: u32,
    /// The start of the activity log relative to the superblock, in sectors.
    pub al_offset: i32,
    /// The number of activity log slots in use (`al-extents`).
    pub al_nr_extents: u32,
    /// The start of the bitmap relative to the superblock, in sectors.
    pub bm_offset: i32,
    /// Must be [`BM_BYTES_PER_BIT`].
    pub bm_bytes_per_bit: u32,
    /// The largest request the peer accepted last, in bytes.
    pub la_peer_max_bio_size: u32,
    /// Stripes of the activity log; 0 (with `al_stripe_size_4k` 0) in metadata written by 8.3.
    pub al_stripes: u32,
    /// Blocks of 4 KiB per stripe; 0 (with `al_stripes` 0) in metadata written by 8.3.
    pub al_stripe_size_4k: u32,
}

fn u32_at(block: &Block, offset: usize) -> u32 {
    u32::from_be_bytes([block[offset], block[offset + 1], block[offset + 2], block[offset + 3]])
}

fn u64_at(block: &Block, offset: usize) -> u64 {
    u64::from(u32_at(block, offset)) << 32 | u64::from(u32_at(block, offset + 4))
}

impl Superblock {
    /// The superblock `create-md` writes for a layout (metadata spec 9.6).
    pub fn fresh(layout: &Layout, la_peer_max_bio_size: u32) -> Self {
        let mut superblock = Self {
            la_size_sect: Sector(0),
            current: GenerationId::JUST_CREATED,
            bitmap: GenerationId::NONE,
            history: [GenerationId::NONE; 2],
            device_uuid: 0,
            flags: Flags::AL_CLEAN,
            magic: Magic::V08,
            md_size_sect: 0,
            al_offset: 0,
            al_nr_extents: AL_NR_EXTENTS_FRESH,
            bm_offset: 0,
            bm_bytes_per_bit: BM_BYTES_PER_BIT,
            la_peer_max_bio_size,
            al_stripes: 0,
            al_stripe_size_4k: 0,
        };
        superblock.set_layout(layout);
        superblock
    }

    /// Takes over the offsets, the size and the striping of a layout.
    pub const fn set_layout(&mut self, layout: &Layout) {
        self.md_size_sect = layout.md_size_sect;
        self.al_offset = layout.al_offset;
        self.bm_offset = layout.bm_offset;
        self.al_stripes = layout.striping.stripes;
        self.al_stripe_size_4k = layout.striping.stripe_size_4k;
    }

    /// Reads the fields. Nothing is checked: see [`crate::attach`].
    pub fn decode(block: &Block) -> Self {
        Self {
            la_size_sect: Sector(u64_at(block, 0)),
            current: GenerationId(u64_at(block, 8)),
            bitmap: GenerationId(u64_at(block, 16)),
            history: [GenerationId(u64_at(block, 24)), GenerationId(u64_at(block, 32))],
            device_uuid: u64_at(block, 40),
            flags: Flags(u32_at(block, 56)),
            magic: Magic(u32_at(block, 60)),
            md_size_sect: u32_at(block, 64),
            al_offset: u32_at(block, 68) as i32,
            al_nr_extents: u32_at(block, 72),
            bm_offset: u32_at(block, 76) as i32,
            bm_bytes_per_bit: u32_at(block, 80),
            la_peer_max_bio_size: u32_at(block, 84),
            al_stripes: u32_at(block, 88),
            al_stripe_size_4k: u32_at(block, 92),
        }
    }

    /// Writes the fields into `block`; everything reserved becomes zero.
    pub fn encode_into(&self, block: &mut Block) {
        block.fill(0);
        let words = [
            self.la_size_sect.0,
            self.current.0,
            self.bitmap.0,
            self.history[0].0,
            self.history[1].0,
            self.device_uuid,
        ];
        for (bytes, word) in block.chunks_exact_mut(8).zip(words) {
            bytes.copy_from_slice(&word.to_be_bytes());
        }
        let halves = [
            self.flags.0,
            self.magic.0,
            self.md_size_sect,
            self.al_offset as u32,
            self.al_nr_extents,
            self.bm_offset as u32,
            self.bm_bytes_per_bit,
            self.la_peer_max_bio_size,
            self.al_stripes,
            self.al_stripe_size_4k,
        ];
        for (bytes, half) in block[56..].chunks_exact_mut(4).zip(halves) {
            bytes.copy_from_slice(&half.to_be_bytes());
        }
    }

    /// The 4 KiB of this superblock.
    pub fn encode(&self) -> Block {
        let mut block = [0; BLOCK_BYTES];
        self.encode_into(&mut block);
        block
    }

    /// Whether the activity log has been applied: the clean magic and the flag (metadata spec 4.1).
    pub fn is_clean(&self) -> bool {
        self.magic == Magic::V08 && self.flags.contains(Flags::AL_CLEAN)
    }

    /// Marks the activity log as applied; only `drbdmeta`, or an attach that has just replayed, may do so.
    pub const fn set_clean(&mut self) {
        self.magic = Magic::V08;
        self.flags.set(Flags::AL_CLEAN, true);
    }

    /// The striping of the activity log; both fields 0 stand for 1 × 8, as 8.3 leaves them.
    pub const fn striping(&self) -> Striping {
        if self.al_stripes == 0 && self.al_stripe_size_4k == 0 {
            Striping::DEFAULT
        } else {
            Striping { stripes: self.al_stripes, stripe_size_4k: self.al_stripe_size_4k }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_block_comes_back_but_for_reserved_bytes(head in proptest::collection::vec(any::<u8>(), 96)) {
            let mut block = [0; BLOCK_BYTES];
            block[..96].copy_from_slice(&head);
            let superblock = Superblock::decode(&block);
            block[48..56].fill(0);
            prop_assert_eq!(superblock.encode(), block);
        }
    }

    #[test]
    fn clean_needs_magic_and_flag() {
        let mut superblock = Superblock::decode(&[0; BLOCK_BYTES]);
        assert!(!superblock.is_clean());
        superblock.magic = Magic::V08;
        assert!(!superblock.is_clean());
        superblock.set_clean();
        assert!(superblock.is_clean());
        superblock.magic = Magic::V08_UNCLEAN;
        assert!(!superblock.is_clean());
    }
}
