//! Quantities of storage and the numbers of devices.

use std::fmt;
use std::ops::RangeInclusive;

/// Bytes in a [`Sector`].
pub const SECTOR_BYTES: u64 = 512;
/// Bytes in a block, the unit of the bitmap.
pub const BLOCK_BYTES: u64 = 4096;
/// Sectors in a block.
pub const BLOCK_SECTORS: u64 = 8;
/// Sectors in an activity log extent (4 MiB).
pub const EXTENT_SECTORS: u64 = 8192;
/// Blocks in an activity log extent.
pub const EXTENT_BLOCKS: u64 = 1024;
/// Sectors in a resync extent (16 MiB).
pub const RESYNC_EXTENT_SECTORS: u64 = 32768;
/// Blocks in a resync extent.
pub const RESYNC_EXTENT_BLOCKS: u64 = 4096;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        #[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
        pub struct $name(pub $inner);

        impl fmt::Debug for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(formatter, concat!(stringify!($name), "({})"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, formatter)
            }
        }
    };
}

number! {
    /// A position on a device, in sectors of 512 bytes from its start.
    Sector(u64)
}
number! {
    /// The number of a 4 KiB block, which is also the number of its bit in the bitmap.
    BlockNumber(u64)
}
number! {
    /// The number of a 4 MiB extent of the activity log.
    Extent(u32)
}
number! {
    /// The number of a 16 MiB extent, the unit in which resync locks out application writes.
    ResyncExtent(u32)
}
number! {
    /// The minor number of a device: unique on a node, the N of `/dev/drbdN`.
    Minor(u32)
}
number! {
    /// The number of a volume within its resource.
    VolumeNumber(u16)
}

impl Sector {
    /// The first sector of a block.
    pub const fn of_block(block: BlockNumber) -> Self {
        Self(block.0 * BLOCK_SECTORS)
    }

    /// The block that holds this sector.
    pub const fn block(self) -> BlockNumber {
        BlockNumber(self.0 / BLOCK_SECTORS)
    }

    /// The activity log extent that holds this sector.
    pub const fn extent(self) -> Extent {
        Extent((self.0 / EXTENT_SECTORS) as u32)
    }

    /// The resync extent that holds this sector.
    pub const fn resync_extent(self) -> ResyncExtent {
        ResyncExtent((self.0 / RESYNC_EXTENT_SECTORS) as u32)
    }

    /// The offset in bytes.
    pub const fn bytes(self) -> u64 {
        self.0 * SECTOR_BYTES
    }
}

impl BlockNumber {
    /// The activity log extent that holds this block.
    pub const fn extent(self) -> Extent {
        Extent((self.0 / EXTENT_BLOCKS) as u32)
    }

    /// The resync extent that holds this block.
    pub const fn resync_extent(self) -> ResyncExtent {
        ResyncExtent((self.0 / RESYNC_EXTENT_BLOCKS) as u32)
    }
}

/// A run of sectors: where it starts and how many bytes it has (a multiple of 512; 0 is an empty flush).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SectorRange {
    /// The first sector.
    pub start: Sector,
    /// The length in bytes.
    pub bytes: u32,
}

impl SectorRange {
    /// A run of `bytes` bytes from `start`.
    pub const fn new(start: Sector, bytes: u32) -> Self {
        Self { start, bytes }
    }

    /// The number of sectors, rounded up.
    pub const fn sectors(self) -> u64 {
        (self.bytes as u64).div_ceil(SECTOR_BYTES)
    }

    /// The sector behind the last one.
    pub const fn end(self) -> Sector {
        Sector(self.start.0.saturating_add(self.sectors()))
    }

    /// Whether two runs share a sector; an empty run overlaps nothing.
    pub const fn overlaps(self, other: Self) -> bool {
        self.bytes > 0 && other.bytes > 0 && self.start.0 < other.end().0 && other.start.0 < self.end().0
    }

    /// Whether `other` lies within this run.
    pub const fn contains(self, other: Self) -> bool {
        self.start.0 <= other.start.0 && other.end().0 <= self.end().0
    }

    /// The activity log extents this run touches, `None` where it is empty.
    pub fn extents(self) -> Option<RangeInclusive<u32>> {
        (self.bytes > 0).then(|| self.start.extent().0..=Sector(self.end().0 - 1).extent().0)
    }

    /// The blocks this run touches, whole or in part, `None` where it is empty: what a failed write sets out of sync.
    pub fn touched_blocks(self) -> Option<RangeInclusive<u64>> {
        (self.bytes > 0).then(|| self.start.block().0..=Sector(self.end().0 - 1).block().0)
    }

    /// The blocks this run covers whole, on a device of `capacity` sectors whose last block may be short: what a
    /// successful write may set in sync. `None` where there is none.
    pub fn covered_blocks(self, capacity: Sector) -> Option<RangeInclusive<u64>> {
        let first = self.start.0.div_ceil(BLOCK_SECTORS);
        let end = if self.end() >= capacity {
            capacity.0.div_ceil(BLOCK_SECTORS)
        } else {
            self.end().0 / BLOCK_SECTORS
        };
        (self.bytes > 0 && first < end).then(|| first..=end - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_touches_more_blocks_than_it_covers() {
        let range = SectorRange::new(Sector(4), 8192);
        assert_eq!(range.touched_blocks(), Some(0..=2));
        assert_eq!(range.covered_blocks(Sector(1000)), Some(1..=1));
        assert_eq!(SectorRange::new(Sector(4), 2048).covered_blocks(Sector(1000)), None);
    }

    #[test]
    fn the_short_last_block_counts_as_covered() {
        let range = SectorRange::new(Sector(8), 2048);
        assert_eq!(range.covered_blocks(Sector(12)), Some(1..=1));
        assert_eq!(range.covered_blocks(Sector(13)), None);
    }

    #[test]
    fn an_empty_range_overlaps_nothing() {
        let flush = SectorRange::new(Sector(4), 0);
        assert!(!flush.overlaps(SectorRange::new(Sector(0), 4096)));
        assert_eq!(flush.extents(), None);
    }
}
