//! What an attach refuses (metadata spec 7.1; `drbd_md_read`, `drbd_adm_attach`).
//!
//! Every refusal has the return code of DRBD's configuration interface ([`AttachError::code`]) and the line the kernel
//! logs (its `Display`).

use udrbd_units::Sector;

use crate::bitmap;
use crate::layout::{
    BLOCK_SECTORS, Layout, LayoutError, MIN_ATTACH_SECTORS, Placement, SLOT_SECTORS, Striping, device_size,
};
use crate::superblock::BM_BYTES_PER_BIT;
use crate::{Block, Flags, Magic, Superblock};

/// A refusal to attach. The texts are the kernel's log lines.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AttachError {
    /// The superblock is not marked clean.
    #[error("Found unclean meta data. Did you \"drbdadm apply-al\"?")]
    Unclean,
    /// The superblock is DRBD 0.7's.
    #[error("Found old (0.7) meta data magic. Did you \"drbdadm create-md\"?")]
    Magic07,
    /// There is no superblock, or it is DRBD 9's.
    #[error("Meta data magic not found. Did you \"drbdadm create-md\"?")]
    NoMagic,
    /// One bit stands for something else than 4 KiB.
    #[error("unexpected bm_bytes_per_bit: {0} (expected 4096)")]
    BytesPerBit(u32),
    /// The striping of the activity log is out of range.
    #[error("invalid activity log striping: al_stripes={}, al_stripe_size_4k={}", .0.stripes, .0.stripe_size_4k)]
    Striping(Striping),
    /// Offsets, sizes or striping contradict each other or the device.
    #[error(
        "meta data offsets don't make sense: idx={index} al_s={}, al_sz4k={}, al_offset={al_offset}, \
         bm_offset={bm_offset}, md_size_sect={md_size_sect}, la_size={la_size}, md_capacity={md_capacity}",
        striping.stripes, striping.stripe_size_4k
    )]
    Offsets {
        /// The placement as a signed number.
        index: i32,
        /// The superblock's striping.
        striping: Striping,
        /// The superblock's `al_offset`.
        al_offset: i32,
        /// The superblock's `bm_offset`.
        bm_offset: i32,
        /// The superblock's `md_size_sect`.
        md_size_sect: u32,
        /// The superblock's `la_size_sect`.
        la_size: Sector,
        /// The size of the device that holds the metadata.
        md_capacity: Sector,
    },
    /// The superblock lies behind the end of the device: the read fails.
    #[error("Error while reading metadata.")]
    Unreadable,
    /// The configured size, or the size the device has now, is more than can be stored.
    #[error("max capacity {max} smaller than disk size {wanted}")]
    DiskTooSmall {
        /// What can be stored.
        max: Sector,
        /// What is wanted.
        wanted: Sector,
    },
    /// The device is too small to hold metadata of this kind.
    #[error(
        "refusing attach: md-device too small, at least {minimum} sectors needed for this meta-disk type"
    )]
    MetadataDeviceTooSmall {
        /// The size it needs.
        minimum: Sector,
    },
    /// The device would become smaller than the consistent data it holds.
    #[error("refusing to truncate a consistent device ({size} < {last_agreed})")]
    ImplicitShrink {
        /// What the size would be.
        size: Sector,
        /// What it was.
        last_agreed: Sector,
    },
    /// The bitmap does not fit its area.
    #[error("no space for a bitmap of {bits} bits")]
    BitmapSpace {
        /// Bits it needs.
        bits: u64,
    },
}

impl AttachError {
    /// The return code of the configuration interface.
    pub const fn code(&self) -> u32 {
        match self {
            Self::DiskTooSmall { .. } => 111,
            Self::MetadataDeviceTooSmall { .. } => 112,
            Self::Unreadable => 118,
            Self::Magic07
            | Self::NoMagic
            | Self::BytesPerBit(_)
            | Self::Striping(_)
            | Self::Offsets { .. } => 119,
            Self::BitmapSpace { .. } => 140,
            Self::Unclean => 165,
            Self::ImplicitShrink { .. } => 170,
        }
    }
}

/// What to do about a superblock that is not marked clean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unclean {
    /// Refuse, as the kernel does.
    Refuse,
    /// Go on: the caller applies the activity log itself ([`crate::apply::plan`]).
    Accept,
}

/// Where the superblock is to be read from, and how large the device must be at least (metadata spec 2).
///
/// # Errors
/// [`AttachError::MetadataDeviceTooSmall`], or [`AttachError::Unreadable`] for a slot behind the end of the device.
pub fn superblock_place(placement: Placement, device: Sector) -> Result<Sector, AttachError> {
    match placement {
        Placement::Indexed(slot) => {
            let start = u64::from(slot) * SLOT_SECTORS;
            if device.0 < start + BLOCK_SECTORS { Err(AttachError::Unreadable) } else { Ok(Sector(start)) }
        }
        Placement::Internal | Placement::FlexibleExternal => placement
            .superblock(device)
            .ok_or(AttachError::MetadataDeviceTooSmall { minimum: Sector(MIN_ATTACH_SECTORS) }),
    }
}

/// Checks the block read from [`superblock_place`]: `drbd_md_read`.
///
/// Returns the superblock and the layout it describes on the device of `device` sectors that holds it. The layout may
/// differ from the one the formulas give: see [`expected_layout`].
///
/// # Errors
/// [`AttachError`] with code 119 or 165.
pub fn read_superblock(
    block: &Block,
    placement: Placement,
    device: Sector,
    unclean: Unclean,
) -> Result<(Superblock, Layout), AttachError> {
    let superblock = Superblock::decode(block);
    match superblock.magic {
        Magic::V08_UNCLEAN | Magic::V08 => {}
        Magic::V07 => return Err(AttachError::Magic07),
        _ => return Err(AttachError::NoMagic),
    }
    if unclean == Unclean::Refuse && !superblock.is_clean() {
        return Err(AttachError::Unclean);
    }
    if superblock.bm_bytes_per_bit != BM_BYTES_PER_BIT {
        return Err(AttachError::BytesPerBit(superblock.bm_bytes_per_bit));
    }
    let striping = superblock.striping();
    if !striping.is_valid() {
        return Err(AttachError::Striping(striping));
    }
    let offsets = AttachError::Offsets {
        index: placement.index(),
        striping,
        al_offset: superblock.al_offset,
        bm_offset: superblock.bm_offset,
        md_size_sect: superblock.md_size_sect,
        la_size: superblock.la_size_sect,
        md_capacity: device,
    };
    let layout = layout_on_disk(&superblock, placement, device).ok_or(offsets)?;
    Ok((superblock, layout))
}

/// The layout a superblock describes, `None` where it makes no sense (metadata spec 7.1.1; `check_offsets_and_sizes`).
fn layout_on_disk(superblock: &Superblock, placement: Placement, device: Sector) -> Option<Layout> {
    let striping = superblock.striping();
    let al_offset = i64::from(superblock.al_offset);
    let bm_offset = i64::from(superblock.bm_offset);
    let size = i64::from(superblock.md_size_sect);
    if let Placement::Indexed(_) = placement {
        let fixed = size == SLOT_SECTORS as i64 && al_offset == 8 && bm_offset == 72;
        if !fixed || striping != Striping::DEFAULT {
            return None;
        }
    }
    // The kernel tells the order from the sign alone; the sign must also fit where the superblock was found, or the
    // areas would lie outside the device.
    if (al_offset < 0) != placement.is_internal() {
        return None;
    }
    let (al_sectors, bitmap_sectors) = if al_offset < 0 {
        (-al_offset, al_offset - bm_offset)
    } else {
        let starts_right = al_offset == 8 && bm_offset >= al_offset + striping.sectors() as i64;
        starts_right.then_some((bm_offset - al_offset, size - bm_offset))?
    };
    let place = placement.superblock(device)?;
    let layout = Layout {
        placement,
        superblock: place,
        al_offset: superblock.al_offset,
        bm_offset: superblock.bm_offset,
        md_size_sect: superblock.md_size_sect,
        striping,
    };
    let first = if al_offset < 0 { place.0 as i64 + bm_offset } else { place.0 as i64 };
    let needed = (superblock.la_size_sect.0.saturating_add(7) / 8 / 8 / 512) as i64;
    let sensible = bitmap_sectors >= 0
        && first >= 0
        && (device.0 as i64).checked_sub(size).is_some_and(|left| left >= first)
        && al_sectors == striping.sectors() as i64
        && bm_offset % 8 == 0
        && bitmap_sectors >= needed;
    sensible.then_some(layout)
}

/// The sizes of the devices and of the configuration at an attach.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Size of the data device.
    pub backing: Sector,
    /// Size of the device that holds the metadata; the same if they are internal.
    pub metadata: Sector,
    /// The configured `size`, 0 if none.
    pub configured: Sector,
    /// The size the volume has now (attach while connected and diskless), 0 if none.
    pub current: Sector,
    /// What the peer announced, 0 if nothing is known.
    pub peer: Sector,
}

/// What an attach has found out about places and sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// The layout to use from now on: the formulas' for the device as it is.
    pub layout: Layout,
    /// Whether that differs from what the superblock says: the whole bitmap is to be written with all bits set
    /// ("md moved").
    pub moved: bool,
    /// What this node can offer.
    pub max_capacity: Sector,
    /// The size of the volume.
    pub size: Sector,
    /// Whether that differs from the last agreed size: the ring is written anew, and new bits are set.
    pub size_changed: bool,
    /// The configured size would cut off consistent data, and is obeyed; to be logged as a warning.
    pub truncates: bool,
    /// The configured size is larger than what both sides can store, and is disregarded; to be logged as an error.
    pub configured_too_large: bool,
}

/// The layout the formulas give for a device, in the kernel's words if it does not fit.
///
/// # Errors
/// Code 112 or 119.
pub fn expected_layout(
    placement: Placement,
    device: Sector,
    striping: Striping,
) -> Result<Layout, AttachError> {
    Layout::new(placement, device, striping).map_err(|error| match error {
        LayoutError::TooSmall { .. } => AttachError::MetadataDeviceTooSmall { minimum: minimum(placement) },
        LayoutError::TooLarge { device } => AttachError::BitmapSpace { bits: bitmap::bits(device) },
        LayoutError::Striping(striping) => AttachError::Striping(striping),
    })
}

const fn minimum(placement: Placement) -> Sector {
    match placement {
        Placement::Indexed(slot) => Sector(SLOT_SECTORS * (slot as u64 + 1)),
        Placement::Internal | Placement::FlexibleExternal => Sector(MIN_ATTACH_SECTORS),
    }
}

/// Checks the sizes of an attach, in the kernel's order (metadata spec 7.1), and computes the geometry.
///
/// `on_disk` is the layout [`read_superblock`] returned.
///
/// # Errors
/// [`AttachError`] with code 111, 112, 140 or 170.
pub fn check_sizes(
    superblock: &Superblock,
    on_disk: &Layout,
    sizes: &Sizes,
) -> Result<Geometry, AttachError> {
    let placement = on_disk.placement;
    let on_disk_capacity = on_disk.max_capacity(sizes.backing);
    if on_disk_capacity < sizes.configured {
        return Err(AttachError::DiskTooSmall { max: on_disk_capacity, wanted: sizes.configured });
    }
    if sizes.metadata < minimum(placement) {
        return Err(AttachError::MetadataDeviceTooSmall { minimum: minimum(placement) });
    }
    if on_disk_capacity < sizes.current {
        return Err(AttachError::DiskTooSmall { max: on_disk_capacity, wanted: sizes.current });
    }
    let layout = expected_layout(placement, sizes.metadata, on_disk.striping)?;
    let max_capacity = layout.max_capacity(sizes.backing);
    let last_agreed = superblock.la_size_sect;
    let found = device_size(max_capacity, sizes.peer, last_agreed, sizes.configured);
    let shrinks = superblock.flags.contains(Flags::CONSISTENT) && found.size < last_agreed;
    if shrinks && found.size != sizes.configured {
        return Err(AttachError::ImplicitShrink { size: found.size, last_agreed });
    }
    if bitmap::words(found.size) * 8 > layout.bitmap_sectors() * 512 {
        return Err(AttachError::BitmapSpace { bits: bitmap::bits(found.size) });
    }
    Ok(Geometry {
        layout,
        moved: layout != *on_disk,
        max_capacity,
        size: found.size,
        size_changed: found.size != last_agreed,
        truncates: shrinks,
        configured_too_large: found.configured_too_large,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fresh(placement: Placement, device: u64) -> (Superblock, Layout) {
        let layout = Layout::new(placement, Sector(device), Striping::DEFAULT).unwrap();
        (Superblock::fresh(&layout, 0), layout)
    }

    fn sizes(backing: u64, metadata: u64) -> Sizes {
        Sizes {
            backing: Sector(backing),
            metadata: Sector(metadata),
            configured: Sector(0),
            current: Sector(0),
            peer: Sector(0),
        }
    }

    #[test]
    fn every_kind_of_fresh_metadata_is_accepted() {
        for (placement, device) in [
            (Placement::Internal, 131_072),
            (Placement::Internal, 204_803),
            (Placement::FlexibleExternal, 6147),
            (Placement::Indexed(1), 524_288),
        ] {
            let (superblock, layout) = fresh(placement, device);
            let read = read_superblock(&superblock.encode(), placement, Sector(device), Unclean::Refuse);
            assert_eq!(read, Ok((superblock.clone(), layout)));
            let backing = if placement.is_internal() { device } else { 100_000 };
            let geometry = check_sizes(&superblock, &layout, &sizes(backing, device)).unwrap();
            assert_eq!((geometry.moved, geometry.size_changed), (false, true));
            assert_eq!(geometry.size, layout.max_capacity(Sector(backing)));
        }
    }

    #[test]
    fn sizes_are_refused_with_the_codes_of_drbd() {
        let (mut superblock, layout) = fresh(Placement::Internal, 131_072);
        let mut wanted = sizes(131_072, 131_072);
        wanted.configured = Sector(200_000);
        let error = check_sizes(&superblock, &layout, &wanted).unwrap_err();
        assert_eq!(error.code(), 111);
        assert_eq!(error.to_string(), "max capacity 130992 smaller than disk size 200000");
        wanted.configured = Sector(65_536);
        superblock.la_size_sect = Sector(130_992);
        superblock.flags.set(Flags::CONSISTENT, true);
        let geometry = check_sizes(&superblock, &layout, &wanted).unwrap();
        assert_eq!((geometry.size, geometry.truncates), (Sector(65_536), true));
        wanted.configured = Sector(0);
        wanted.peer = Sector(100_000);
        assert_eq!(check_sizes(&superblock, &layout, &wanted).unwrap_err().code(), 170);

        let (superblock, layout) = fresh(Placement::FlexibleExternal, 2047);
        let error = check_sizes(&superblock, &layout, &sizes(100_000, 2047)).unwrap_err();
        assert_eq!(error.code(), 112);
        let text =
            "refusing attach: md-device too small, at least 2048 sectors needed for this meta-disk type";
        assert_eq!(error.to_string(), text);

        assert_eq!(superblock_place(Placement::Indexed(1), Sector(262_144)).unwrap_err().code(), 118);
        assert_eq!(superblock_place(Placement::Indexed(1), Sector(524_288)), Ok(Sector(262_144)));
    }

    #[test]
    fn striped_slots_are_refused() {
        let striping = Striping { stripes: 2, stripe_size_4k: 8 };
        let layout = Layout::new(Placement::Indexed(0), Sector(262_144), striping).unwrap();
        let block = Superblock::fresh(&layout, 0).encode();
        let error =
            read_superblock(&block, Placement::Indexed(0), Sector(262_144), Unclean::Refuse).unwrap_err();
        let text = "meta data offsets don't make sense: idx=0 al_s=2, al_sz4k=8, al_offset=8, bm_offset=136, \
                    md_size_sect=262144, la_size=0, md_capacity=262144";
        assert_eq!(error.to_string(), text);
    }

    #[test]
    fn a_bitmap_before_the_device_is_refused() {
        let (mut superblock, _) = fresh(Placement::Internal, 131_072);
        superblock.md_size_sect = 80;
        superblock.bm_offset = -131_072;
        let block = superblock.encode();
        let error =
            read_superblock(&block, Placement::Internal, Sector(131_072), Unclean::Refuse).unwrap_err();
        assert_eq!(error.code(), 119);
    }

    #[test]
    fn a_grown_metadata_device_means_moved() {
        let (mut superblock, _) = fresh(Placement::FlexibleExternal, 6144);
        superblock.la_size_sect = Sector(100_000);
        let (superblock, layout) =
            read_superblock(&superblock.encode(), Placement::FlexibleExternal, Sector(8192), Unclean::Refuse)
                .unwrap();
        let geometry = check_sizes(&superblock, &layout, &sizes(100_000, 8192)).unwrap();
        assert_eq!((geometry.moved, geometry.size_changed), (true, false));
        assert_eq!(geometry.layout.md_size_sect, 8192);
    }

    proptest! {
        /// A disk says what it likes: what is accepted must lie on the device.
        #[test]
        fn accepted_areas_lie_on_the_device(
            placement in prop_oneof![
                Just(Placement::Internal),
                Just(Placement::FlexibleExternal),
                (0_u32..4).prop_map(Placement::Indexed)
            ],
            device in 0_u64..2_000_000,
            md_size_sect in prop_oneof![Just(262_144_u32), 0_u32..3000, any::<u32>()],
            al_offset in prop_oneof![Just(8), Just(-64), Just(-72), any::<i32>()],
            bm_offset in prop_oneof![Just(72), -3000..3000, any::<i32>()],
            stripes in prop_oneof![Just((1, 8)), Just((3, 3)), any::<(u32, u32)>()],
            la_size in prop_oneof![Just(0_u64), 0_u64..4_000_000, any::<u64>()],
        ) {
            let (mut superblock, _) = fresh(Placement::Internal, 131_072);
            superblock.md_size_sect = md_size_sect;
            superblock.al_offset = al_offset;
            superblock.bm_offset = bm_offset;
            superblock.al_stripes = stripes.0;
            superblock.al_stripe_size_4k = stripes.1;
            superblock.la_size_sect = Sector(la_size);
            let block = superblock.encode();
            if let Ok((_, layout)) = read_superblock(&block, placement, Sector(device), Unclean::Refuse) {
                let end = |start: Sector, sectors: u64| start.0.checked_add(sectors).unwrap();
                prop_assert!(end(layout.superblock, 8) <= device);
                prop_assert!(end(layout.al_start(), layout.striping.sectors()) <= device);
                prop_assert!(end(layout.bitmap_start(), layout.bitmap_sectors()) <= device);
                prop_assert!(i64::from(bm_offset) + layout.superblock.0 as i64 >= 0);
                let _ = check_sizes(&superblock, &layout, &sizes(device, device));
            }
        }
    }
}
