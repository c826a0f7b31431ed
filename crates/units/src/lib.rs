//! The units and state names every crate of udrbd shares.
//!
//! A number without a unit is how storage software loses data, so each quantity has its own type:
//! [`Sector`] (512 bytes), [`BlockNumber`] (4 KiB, one bit of the bitmap), [`Extent`] (4 MiB, one entry of the
//! activity log), [`ResyncExtent`] (16 MiB, the unit of the resync lock), [`GenerationId`], [`Minor`],
//! [`VolumeNumber`]; and DRBD's states are the enums [`Role`], [`DiskState`] and [`ConnectionState`] with the
//! numbers they have on the wire.
#![forbid(unsafe_code)]

mod amounts;
mod generation;
mod states;

pub use amounts::{
    BLOCK_BYTES, BLOCK_SECTORS, BlockNumber, EXTENT_BLOCKS, EXTENT_SECTORS, Extent, Minor,
    RESYNC_EXTENT_BLOCKS, RESYNC_EXTENT_SECTORS, ResyncExtent, SECTOR_BYTES, Sector, SectorRange,
    VolumeNumber,
};
pub use generation::GenerationId;
pub use states::{ConnectionState, DiskState, Role, UnknownState};
