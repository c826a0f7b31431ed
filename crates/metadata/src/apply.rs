//! What has to be written so that a device that was in use can be attached (metadata spec 5.11; `apply-al`).
//!
//! [`plan`] decides; the caller marks the extents in the bitmap ([`crate::bitmap::mark_extent`]) and writes, each step
//! durable before the next (metadata spec 8.11): bitmap, ring ([`crate::activity_log::initialized_block`] in every
//! block), superblock.

use std::fmt;

use udrbd_units::Extent;

use crate::activity_log;
use crate::bitmap::{EXTENT_BYTES, area_bytes};
use crate::layout::Striping;
use crate::legacy;
use crate::replay::{Replay, ReplayError, ReplayNote, Replayed, replay};
use crate::{BLOCK_BYTES, Flags, Magic, Superblock};

/// Something worth telling the operator. The text is `drbdmeta`'s.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Note {
    /// From the replay.
    Replay(ReplayNote),
    /// The activity log cannot be used.
    Unusable(ReplayError),
    /// The log is of the form of 8.3 and has no valid sector; that is no error.
    NoLegacyLog,
    /// The log cannot be used, but the node was no Primary, so nothing depends on it.
    ErrorIgnored,
    /// The device was Primary and all slots were free.
    NothingToDo,
    /// An extent that lies behind the bitmap; it is left out.
    BeyondBitmap {
        /// The extent.
        extent: Extent,
        /// The byte of the bitmap its bits would start at.
        position: u64,
        /// Bytes of the bitmap.
        bytes: u64,
    },
}

impl fmt::Display for Note {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Replay(note) => note.fmt(formatter),
            Self::Unusable(error) => error.fmt(formatter),
            Self::NoLegacyLog => formatter.write_str("No usable activity log found."),
            Self::ErrorIgnored => formatter.write_str("Error ignored, no need to apply the AL"),
            Self::NothingToDo => formatter.write_str("Nothing to do."),
            Self::BeyondBitmap { extent, position, bytes } => {
                write!(formatter, "extent {extent} beyond end of bitmap! ({position} >= {bytes})")
            }
        }
    }
}

/// What to write, in this order.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Writes {
    /// Extents of which all bits have to be set, ascending; all lie within the bitmap.
    pub mark: Vec<Extent>,
    /// Whether to fill the ring with [`crate::activity_log::initialized_block`].
    pub initialize_ring: bool,
    /// The superblock to write, marked clean.
    pub superblock: Option<Superblock>,
}

/// The decision of [`plan`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// What to tell, in order.
    pub notes: Vec<Note>,
    /// What to write; an error if the device must not be attached: it was Primary and its log is lost.
    pub writes: Result<Writes, ReplayError>,
    /// The highest transaction number found, for a writer that does not initialise the ring.
    pub newest: Option<u32>,
}

/// Decides what to do about the activity log area `area` of a device with this superblock: `meta_apply_al`.
///
/// # Panics
/// If the area is not as long as the superblock's striping says.
pub fn plan(superblock: &Superblock, area: &[u8]) -> Plan {
    let legacy = !is_84_format(superblock, area);
    let replayed =
        if legacy { legacy::replay(area, superblock.al_nr_extents) } else { ring(superblock, area) };
    let primary = superblock.flags.contains(Flags::PRIMARY_IND);
    let mut notes: Vec<Note> = replayed.notes.into_iter().map(Note::Replay).collect();
    let mut writes = Writes { initialize_ring: true, ..Writes::default() };
    let mut newest = None;
    match replayed.result {
        Ok(Replayed::Nothing) if legacy => notes.push(Note::NoLegacyLog),
        Ok(Replayed::Nothing) => writes.initialize_ring = false,
        Ok(Replayed::Hot { extents, newest: number }) => {
            newest = Some(number);
            if primary {
                writes.mark = within_bitmap(superblock, extents, &mut notes);
            }
        }
        Err(error) => {
            notes.push(Note::Unusable(error));
            if primary {
                return Plan { notes, writes: Err(error), newest };
            }
            notes.push(Note::ErrorIgnored);
        }
    }
    if writes.initialize_ring || !superblock.is_clean() {
        let mut clean = superblock.clone();
        clean.set_clean();
        writes.superblock = Some(clean);
    }
    Plan { notes, writes: Ok(writes), newest }
}

fn ring(superblock: &Superblock, area: &[u8]) -> Replay {
    replay(area, superblock.striping())
}

/// 8.3 never writes the unclean magic nor stripes, and its log never has the new magic in the first two blocks.
fn is_84_format(superblock: &Superblock, area: &[u8]) -> bool {
    let has_magic = |block: &[u8]| block.starts_with(&activity_log::MAGIC.to_be_bytes());
    superblock.magic == Magic::V08_UNCLEAN
        || superblock.striping() != Striping::DEFAULT
        || area.chunks(BLOCK_BYTES).take(2).any(has_magic)
}

fn within_bitmap(superblock: &Superblock, mut extents: Vec<Extent>, notes: &mut Vec<Note>) -> Vec<Extent> {
    if extents.is_empty() {
        notes.push(Note::NothingToDo);
    }
    let bytes = area_bytes(superblock.la_size_sect);
    extents.retain(|extent| {
        let position = u64::from(extent.0) * EXTENT_BYTES as u64;
        if position >= bytes {
            notes.push(Note::BeyondBitmap { extent: *extent, position, bytes });
        }
        position < bytes
    });
    extents
}
