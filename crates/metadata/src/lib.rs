//! DRBD 8.4 on-disk metadata (format v08): superblock, activity log and bitmap as values.
//!
//! No I/O happens here: bytes come in, values and bytes go out. The daemon's engine and `drbdmeta` share this crate,
//! so what one writes the other reads, and both replay an activity log the same way.
//!
//! * [`Superblock`]: the 4 KiB block with sizes, generation identifiers and flags;
//! * [`Layout`] and [`Placement`]: where superblock, activity log and bitmap lie, and what is left for data;
//! * [`activity_log`]: the transaction blocks; [`replay`]: from a ring of them to the set of hot extents;
//! * [`apply`]: what to write so that a crashed device can be attached (`apply-al`);
//! * [`bitmap`]: sizes of the bitmap and its pages as words;
//! * [`attach`]: what an attach refuses, with DRBD's return codes and log texts;
//! * [`generation`]: the texts of `get-gi`, `show-gi`, `dstate` and the argument of `set-gi`;
//! * [`dump`] and [`restore`]: the text form of `dump-md`, written and parsed;
//! * [`validity`]: what `drbdmeta` takes for a superblock;
//! * [`legacy`]: what is recognised of DRBD 0.7, 8.3 and 9.
//!
//! Sections are those of the metadata specification.
#![forbid(unsafe_code)]

pub mod activity_log;
pub mod apply;
pub mod attach;
pub mod bitmap;
pub mod dump;
pub mod generation;
pub mod layout;
pub mod legacy;
pub mod replay;
pub mod restore;
pub mod superblock;
pub mod validity;

pub use activity_log::{FREE_EXTENT, FREE_SLOT, SlotUpdate};
pub use layout::{Layout, LayoutError, Placement, Striping};
pub use superblock::{Flags, Magic, Superblock};

/// Bytes of the unit of all metadata I/O: superblock, one activity log transaction, one bitmap page.
pub const BLOCK_BYTES: usize = 4096;

/// One 4 KiB block of metadata.
pub type Block = [u8; BLOCK_BYTES];
