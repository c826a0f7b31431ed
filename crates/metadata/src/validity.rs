//! When `drbdmeta` takes a block for a superblock (metadata spec 9.4).
//!
//! This is stricter than an attach ([`crate::attach`]): the offsets must be exactly those the formulas give.

use udrbd_units::Sector;

use crate::layout::{BLOCK_SECTORS, PAGE_DATA_SECTORS, Placement};
use crate::{Layout, Superblock};

/// Why a block with the right magic number is no valid superblock. The texts are `drbdmeta`'s, after the name of the
/// format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// The activity log of external metadata does not follow the superblock.
    #[error("{format} Magic number (al_offset) not found\n\texpected: {expected}, found {found}")]
    ExternalAlOffset {
        /// Name of the format.
        format: &'static str,
        /// What it should be.
        expected: i64,
        /// What it is.
        found: i32,
    },
    /// The bitmap of external metadata does not follow the activity log.
    #[error("{format} bm_offset: expected {expected}, found {found}")]
    ExternalBmOffset {
        /// Name of the format.
        format: &'static str,
        /// What it should be.
        expected: i64,
        /// What it is.
        found: i32,
    },
    /// The activity log of internal metadata is not where it should be.
    #[error("{format} al_offset: expected {expected}, found {found}")]
    AlOffset {
        /// Name of the format.
        format: &'static str,
        /// What it should be.
        expected: i64,
        /// What it is.
        found: i32,
    },
    /// The bitmap of internal metadata is not where it should be.
    #[error("strange bm_offset {found} (expected: {expected})")]
    BmOffset {
        /// What it should be.
        expected: i64,
        /// What it is.
        found: i32,
    },
    /// The area of internal metadata has not the right size.
    #[error("strange md_size_sect {found} (expected: {expected})")]
    MdSize {
        /// What it should be.
        expected: i64,
        /// What it is.
        found: u32,
    },
}

/// The fields that are compared; the formats have them in common.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Offsets {
    pub(crate) format: &'static str,
    pub(crate) md_size_sect: u32,
    pub(crate) al_offset: i32,
    pub(crate) bm_offset: i32,
    /// Sectors of the activity log.
    pub(crate) al_sectors: i64,
    /// Bits of the bitmap are kept for that many peers.
    pub(crate) peers: u64,
}

impl Offsets {
    pub(crate) fn check(&self, internal: bool, device: Sector) -> Result<(), Invalid> {
        let Self { format, md_size_sect, al_offset, bm_offset, al_sectors, peers } = *self;
        let superblock = BLOCK_SECTORS as i64;
        if !internal {
            if i64::from(al_offset) != superblock {
                return Err(Invalid::ExternalAlOffset { format, expected: superblock, found: al_offset });
            }
            let expected = superblock + al_sectors;
            if i64::from(bm_offset) != expected {
                return Err(Invalid::ExternalBmOffset { format, expected, found: bm_offset });
            }
            return Ok(());
        }
        if i64::from(al_offset) != -al_sectors {
            return Err(Invalid::AlOffset { format, expected: -al_sectors, found: al_offset });
        }
        // One peer needs a page per 128 MiB; several share their pages.
        let words = device.0.div_ceil(PAGE_DATA_SECTORS / 512);
        let bitmap = words.saturating_mul(peers).div_ceil(512) as i64 * superblock;
        let size = superblock + al_sectors + bitmap;
        if i64::from(bm_offset) != superblock - size {
            return Err(Invalid::BmOffset { expected: superblock - size, found: bm_offset });
        }
        if i64::from(md_size_sect) != size {
            return Err(Invalid::MdSize { expected: size, found: md_size_sect });
        }
        Ok(())
    }
}

/// A block that holds format v08, or does not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// A superblock and the layout it describes.
    Valid(Box<Superblock>, Layout),
    /// The magic number is not v08's, or the striping makes no sense.
    Nothing,
    /// The magic number is v08's, the rest is not.
    Invalid(Invalid),
}

/// Looks at the block read from [`Placement::superblock`] of a device of `device` sectors: `is_valid_md`.
pub fn examine(superblock: Superblock, placement: Placement, device: Sector) -> Found {
    if !superblock.magic.is_v08() {
        return Found::Nothing;
    }
    let striping = superblock.striping();
    let offsets = Offsets {
        format: "v08",
        md_size_sect: superblock.md_size_sect,
        al_offset: superblock.al_offset,
        bm_offset: superblock.bm_offset,
        al_sectors: i64::from(striping.stripes)
            .wrapping_mul(i64::from(striping.stripe_size_4k))
            .wrapping_mul(8),
        peers: 1,
    };
    if let Err(invalid) = offsets.check(placement.is_internal(), device) {
        return Found::Invalid(invalid);
    }
    match placement.superblock(device) {
        Some(place) if striping.is_valid() => {
            let layout = Layout {
                placement,
                superblock: place,
                al_offset: superblock.al_offset,
                bm_offset: superblock.bm_offset,
                md_size_sect: superblock.md_size_sect,
                striping,
            };
            Found::Valid(Box::new(superblock), layout)
        }
        _ => Found::Nothing,
    }
}
