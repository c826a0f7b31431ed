//! Where superblock, activity log and bitmap lie, and what is left for data (metadata spec 2, 3, 5.4, 5.5).

use std::fmt;

use udrbd_units::Sector;

use crate::activity_log::CONTEXT_SLOTS;

/// Sectors of the superblock and of every other 4 KiB block.
pub const BLOCK_SECTORS: u64 = 8;
/// Sectors of a slot on an indexed metadata device: 128 MiB.
pub const SLOT_SECTORS: u64 = 262_144;
/// Sectors of data one 4 KiB bitmap page covers: 128 MiB.
pub const PAGE_DATA_SECTORS: u64 = 262_144;
/// Sectors of data one sector of bitmap covers: 16 MiB.
const SECTOR_DATA_SECTORS: u64 = 32_768;
/// The largest device: 1 PiB (metadata spec 3).
pub const MAX_SECTORS: u64 = 1 << 41;
/// `drbdmeta` refuses a device for metadata smaller than this.
pub const MIN_DEVICE_BYTES: u64 = 69_632;
/// The kernel refuses internal and flexible metadata on a device smaller than this.
pub const MIN_ATTACH_SECTORS: u64 = 2048;
/// The highest slot number `drbdmeta` accepts.
pub const MAX_INDEX: u32 = 255;
/// The smallest number of activity log slots; smaller settings are raised.
pub const AL_EXTENTS_MIN: u32 = 67;
/// The largest number of activity log slots with a large ring.
pub const AL_EXTENTS_MAX: u32 = 65_534;

/// How the metadata is placed on its device (metadata spec 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Placement {
    /// At the end of the data device.
    Internal,
    /// At the start of a device of its own, which it fills.
    FlexibleExternal,
    /// In a slot of 128 MiB of a metadata device shared by several volumes.
    Indexed(u32),
}

impl Placement {
    /// The signed number the configuration interface and the kernel's log use: −3, −2, or the slot.
    pub const fn index(self) -> i32 {
        match self {
            Self::Internal => -3,
            Self::FlexibleExternal => -2,
            Self::Indexed(slot) => slot as i32,
        }
    }

    /// From the signed number; −1 (0.7's "internal") is taken as internal, below −3 there is nothing.
    pub const fn from_index(index: i32) -> Option<Self> {
        match index {
            -3 | -1 => Some(Self::Internal),
            -2 => Some(Self::FlexibleExternal),
            0.. => Some(Self::Indexed(index as u32)),
            _ => None,
        }
    }

    /// Whether data and metadata share a device.
    pub const fn is_internal(self) -> bool {
        matches!(self, Self::Internal)
    }

    /// The first sector of the superblock on a device of `device` sectors; `None` if the device is too small for one.
    pub const fn superblock(self, device: Sector) -> Option<Sector> {
        match self {
            Self::Internal => match (device.0 & !(BLOCK_SECTORS - 1)).checked_sub(BLOCK_SECTORS) {
                Some(sector) => Some(Sector(sector)),
                None => None,
            },
            Self::FlexibleExternal => {
                if device.0 >= BLOCK_SECTORS {
                    Some(Sector(0))
                } else {
                    None
                }
            }
            Self::Indexed(slot) => {
                let start = slot as u64 * SLOT_SECTORS;
                if device.0 >= start + BLOCK_SECTORS { Some(Sector(start)) } else { None }
            }
        }
    }
}

/// How the ring of activity log blocks is spread over its area (metadata spec 5.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Striping {
    /// Number of stripes (`al_stripes`).
    pub stripes: u32,
    /// Blocks of 4 KiB per stripe (`al_stripe_size_4k`).
    pub stripe_size_4k: u32,
}

/// Fewest blocks of a ring: 32 KiB.
const RING_BLOCKS_MIN: u64 = 8;
/// Most blocks of a ring the kernel accepts: 16 GiB.
const RING_BLOCKS_MAX: u64 = 4_194_304;
/// Most blocks of a ring `drbdmeta` creates: 32 MiB.
pub const RING_BLOCKS_MAX_CREATE: u64 = 8192;

impl Striping {
    /// 1 × 8: what 8.3 and indexed metadata have, and what `create-md` makes unless told otherwise.
    pub const DEFAULT: Self = Self { stripes: 1, stripe_size_4k: 8 };

    /// Whether an attach accepts it: both non-zero, 8 to 4194304 blocks.
    pub const fn is_valid(self) -> bool {
        let blocks = self.stripes as u64 * self.stripe_size_4k as u64;
        self.stripes != 0
            && self.stripe_size_4k != 0
            && blocks >= RING_BLOCKS_MIN
            && blocks <= RING_BLOCKS_MAX
    }

    /// Blocks of the ring.
    pub const fn blocks(self) -> u32 {
        self.stripes.saturating_mul(self.stripe_size_4k)
    }

    /// Sectors of the ring.
    pub const fn sectors(self) -> u64 {
        self.blocks() as u64 * BLOCK_SECTORS
    }

    /// The block of the area that holds transaction `number`.
    ///
    /// # Panics
    /// If the striping is not valid.
    pub const fn block_of(self, number: u32) -> u32 {
        self.block_at(number % self.blocks())
    }

    /// The block of the area that comes at `position` of the ring.
    pub const fn block_at(self, position: u32) -> u32 {
        (position % self.stripes) * self.stripe_size_4k + position / self.stripes
    }

    /// The most activity log slots of which the ring keeps the full content even with one torn block.
    pub const fn al_extents_max(self) -> u32 {
        if self.blocks() > 72 { AL_EXTENTS_MAX } else { (self.blocks() - 1) * CONTEXT_SLOTS as u32 }
    }

    /// The number of slots used for a configured `al-extents` (metadata spec 5.5).
    pub fn al_extents(self, configured: u32) -> u16 {
        let slots = configured.max(AL_EXTENTS_MIN).min(self.al_extents_max());
        slots as u16
    }
}

/// Why a device cannot hold metadata of the kind asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// The metadata would not fit.
    #[error("device of {device} sectors is too small for this meta-disk type")]
    TooSmall {
        /// Size of the device in sectors.
        device: Sector,
    },
    /// More than 1 PiB of data, or a metadata device of which the size does not fit the superblock.
    #[error("Bitmap for that device got too large.")]
    TooLarge {
        /// Size of the device in sectors.
        device: Sector,
    },
    /// The striping of the activity log is out of range.
    #[error(
        "invalid activity log striping: al_stripes={}, al_stripe_size_4k={}",
        .0.stripes,
        .0.stripe_size_4k
    )]
    Striping(Striping),
}

/// The places of one set of metadata on its device, as the formulas of metadata spec 2 give them or as a checked
/// superblock has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Which kind.
    pub placement: Placement,
    /// The first sector of the superblock, from the start of the device.
    pub superblock: Sector,
    /// The start of the activity log relative to the superblock, in sectors.
    pub al_offset: i32,
    /// The start of the bitmap relative to the superblock, in sectors.
    pub bm_offset: i32,
    /// The size of the metadata area in sectors.
    pub md_size_sect: u32,
    /// The striping of the activity log.
    pub striping: Striping,
}

impl Layout {
    /// The layout for a device of `device` sectors (the one that holds the metadata).
    ///
    /// # Errors
    /// [`LayoutError`] if it does not fit.
    pub fn new(placement: Placement, device: Sector, striping: Striping) -> Result<Self, LayoutError> {
        if !striping.is_valid() {
            return Err(LayoutError::Striping(striping));
        }
        let too_small = LayoutError::TooSmall { device };
        let al_sectors = striping.sectors();
        let superblock = placement.superblock(device).ok_or(too_small)?;
        let (md_size_sect, al_offset, bm_offset) = match placement {
            Placement::Internal => {
                if device.0 > MAX_SECTORS {
                    return Err(LayoutError::TooLarge { device });
                }
                let bitmap_sectors = device.0.div_ceil(PAGE_DATA_SECTORS) * BLOCK_SECTORS;
                let size = BLOCK_SECTORS + al_sectors + bitmap_sectors;
                if size > superblock.0 + BLOCK_SECTORS {
                    return Err(too_small);
                }
                (size, -(al_sectors as i64), BLOCK_SECTORS as i64 - size as i64)
            }
            Placement::FlexibleExternal | Placement::Indexed(_) => {
                let size = if placement == Placement::FlexibleExternal { device.0 } else { SLOT_SECTORS };
                let bm_offset = BLOCK_SECTORS + al_sectors;
                if size <= bm_offset || device.0 < superblock.0 + size {
                    return Err(too_small);
                }
                (size, BLOCK_SECTORS as i64, bm_offset as i64)
            }
        };
        let too_large = |_| LayoutError::TooLarge { device };
        Ok(Self {
            placement,
            superblock,
            al_offset: i32::try_from(al_offset).map_err(too_large)?,
            bm_offset: i32::try_from(bm_offset).map_err(too_large)?,
            md_size_sect: u32::try_from(md_size_sect).map_err(too_large)?,
            striping,
        })
    }

    fn at(&self, offset: i64) -> Sector {
        // Constructors have checked that no area starts before the device.
        Sector(self.superblock.0.saturating_add_signed(offset))
    }

    /// The first sector of the activity log area.
    pub fn al_start(&self) -> Sector {
        self.at(i64::from(self.al_offset))
    }

    /// Bytes of the activity log area.
    pub const fn al_bytes(&self) -> u64 {
        self.striping.sectors() * 512
    }

    /// The first sector of the block that holds transaction `number`.
    pub fn al_block(&self, number: u32) -> Sector {
        Sector(self.al_start().0 + u64::from(self.striping.block_of(number)) * BLOCK_SECTORS)
    }

    /// The first sector of the bitmap area.
    pub fn bitmap_start(&self) -> Sector {
        self.at(i64::from(self.bm_offset))
    }

    /// Sectors of the bitmap area. Not a multiple of 8 on an external device of odd size.
    pub fn bitmap_sectors(&self) -> u64 {
        let sectors = if self.placement.is_internal() {
            i64::from(self.al_offset) - i64::from(self.bm_offset)
        } else {
            i64::from(self.md_size_sect) - i64::from(self.bm_offset)
        };
        sectors.max(0) as u64
    }

    /// The first sector of 4 KiB page `page` of the bitmap.
    pub fn bitmap_page(&self, page: u64) -> Sector {
        Sector(self.bitmap_start().0 + page * BLOCK_SECTORS)
    }

    /// Bytes of page `page` that lie in the area: 4096, less only for the last page of an external device of odd
    /// size, 0 behind the area.
    pub fn bitmap_page_bytes(&self, page: u64) -> usize {
        let left = self.bitmap_sectors().saturating_sub(page.saturating_mul(BLOCK_SECTORS));
        (left.min(BLOCK_SECTORS) * 512) as usize
    }

    /// The first sector that belongs to the metadata.
    pub fn first_sector(&self) -> Sector {
        if self.placement.is_internal() { self.bitmap_start() } else { self.superblock }
    }

    /// What this node can offer for data: `drbd_get_max_capacity`. `backing` is the size of the data device; for
    /// internal metadata the layout alone decides.
    pub fn max_capacity(&self, backing: Sector) -> Sector {
        let limit = if self.placement.is_internal() {
            self.first_sector().0.min(backing.0)
        } else {
            backing.0.min(self.bitmap_sectors() * SECTOR_DATA_SECTORS)
        };
        Sector(limit.min(MAX_SECTORS))
    }
}

impl fmt::Display for Placement {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Internal => formatter.write_str("internal"),
            Self::FlexibleExternal => formatter.write_str("flex-external"),
            Self::Indexed(slot) => write!(formatter, "{slot}"),
        }
    }
}

/// What [`device_size`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceSize {
    /// The size the device gets.
    pub size: Sector,
    /// The configured size was larger than that and has been disregarded; to be logged as an error.
    pub configured_too_large: bool,
}

/// The size of the device: `drbd_new_dev_size` (metadata spec 3). `None` or zero stands for "unknown" throughout.
///
/// * `own`: this node's [`Layout::max_capacity`];
/// * `peer`: what the peer announced;
/// * `last_agreed`: the superblock's `la_size_sect`;
/// * `configured`: the option `size`.
pub fn device_size(own: Sector, peer: Sector, last_agreed: Sector, configured: Sector) -> DeviceSize {
    let smaller = |size: u64, limit: Sector| if limit.0 == 0 { size } else { size.min(limit.0) };
    let size = if own.0 != 0 && peer.0 != 0 {
        own.0.min(peer.0)
    } else if last_agreed.0 != 0 {
        smaller(smaller(last_agreed.0, own), peer)
    } else if own.0 != 0 {
        own.0
    } else {
        peer.0
    };
    let configured_too_large = configured.0 > size;
    let size = if configured.0 == 0 || configured_too_large { size } else { configured.0 };
    DeviceSize { size: Sector(size), configured_too_large }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(placement: Placement, bytes: u64) -> Layout {
        Layout::new(placement, Sector(bytes / 512), Striping::DEFAULT).unwrap()
    }

    #[test]
    fn the_striped_ring_is_walked_across_stripes() {
        let striping = Striping { stripes: 3, stripe_size_4k: 3 };
        let order: Vec<u32> = (0..9).map(|number| striping.block_of(number)).collect();
        assert_eq!(order, [0, 3, 6, 1, 4, 7, 2, 5, 8]);
        assert_eq!(striping.block_of(9), 0);
    }

    #[test]
    fn al_extents_are_clamped_to_the_ring() {
        assert_eq!(Striping::DEFAULT.al_extents(10_000), 6433);
        assert_eq!(Striping::DEFAULT.al_extents(10), 67);
        assert_eq!(Striping { stripes: 1, stripe_size_4k: 73 }.al_extents(99_999), 65_534);
    }

    #[test]
    fn external_capacity_is_limited_by_the_bitmap() {
        let flexible = layout(Placement::FlexibleExternal, 3_147_264);
        assert_eq!(flexible.max_capacity(Sector(1 << 40)), Sector(6075 * 32_768));
        assert_eq!(flexible.max_capacity(Sector(204_803)), Sector(204_803));
        assert_eq!(flexible.bitmap_page_bytes(759), 3 * 512);
        assert_eq!(flexible.bitmap_page_bytes(760), 0);
        let indexed = layout(Placement::Indexed(1), 268_435_456);
        assert_eq!(indexed.max_capacity(Sector(1 << 40)), Sector(8_587_575_296));
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let fits = |placement, sectors| Layout::new(placement, Sector(sectors), Striping::DEFAULT).is_ok();
        for sectors in 0..300_000 {
            assert_eq!(fits(Placement::Internal, sectors), sectors >= 80);
            assert_eq!(fits(Placement::FlexibleExternal, sectors), sectors > 72);
            assert_eq!(fits(Placement::Indexed(0), sectors), sectors >= SLOT_SECTORS);
        }
        assert!(fits(Placement::Internal, MAX_SECTORS));
        assert!(!fits(Placement::Internal, MAX_SECTORS + 8));
        assert!(!fits(Placement::FlexibleExternal, 1 << 32));
        let striping = Striping { stripes: 0, stripe_size_4k: 8 };
        let refused = Layout::new(Placement::Internal, Sector(131_072), striping);
        assert_eq!(refused, Err(LayoutError::Striping(striping)));
    }

    #[test]
    fn size_follows_the_smaller_side_then_the_agreement() {
        let size = |own, peer, agreed, configured| {
            let found = device_size(Sector(own), Sector(peer), Sector(agreed), Sector(configured));
            (found.size.0, found.configured_too_large)
        };
        assert_eq!(size(100, 0, 0, 0), (100, false));
        assert_eq!(size(100, 90, 80, 0), (90, false));
        assert_eq!(size(100, 0, 80, 0), (80, false));
        assert_eq!(size(70, 0, 80, 0), (70, false));
        assert_eq!(size(0, 60, 0, 0), (60, false));
        assert_eq!(size(100, 0, 0, 50), (50, false));
        assert_eq!(size(100, 0, 0, 500), (100, true));
    }
}
