//! From a ring of activity log blocks to the set of hot extents (metadata spec 5.10; `drbdmeta`'s `replay_al_84`).
//!
//! A torn newest transaction fails its checksum and is ignored: the writes it was for have waited for it. A torn block
//! anywhere else loses nothing, as the context windows of its neighbours repeat every slot. What is found may name more
//! extents than were in use, never fewer.

use std::fmt;

use udrbd_units::Extent;

use crate::activity_log::{FREE_EXTENT, RingBlock, Transaction};
use crate::layout::{AL_EXTENTS_MAX, Striping};
use crate::{BLOCK_BYTES, Block};

/// Why an activity log cannot be used. The text is `drbdmeta`'s.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReplayError {
    /// No block is valid.
    #[error("No usable activity log found. Do you need to create-md?")]
    NoData,
    /// Some blocks are valid but none is a transaction, and it is not the very first one that was torn.
    #[error("No valid AL update transaction found.")]
    Invalid,
}

/// Something worth telling the operator. The text is `drbdmeta`'s.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplayNote {
    /// That many blocks are not valid.
    Corrupt(u32),
    /// That many sectors of a log of 8.3 are not valid.
    LegacyInvalid(u32),
    /// A transaction names a slot no activity log can have; it is skipped.
    SlotOutOfRange {
        /// Number of the transaction.
        number: u32,
        /// The slot.
        slot: u32,
    },
}

impl fmt::Display for ReplayNote {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Corrupt(count) => write!(formatter, "{count} corrupt AL transactions found"),
            Self::LegacyInvalid(count) => write!(
                formatter,
                "{count} corrupt or uninitialized AL transactions found\n\
                 You can safely ignore this if this node was cleanly stopped (no crash)."
            ),
            Self::SlotOutOfRange { number, slot } => {
                write!(formatter, "slot number out of range: tr:{number} slot:{slot}")
            }
        }
    }
}

/// What a usable ring says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Replayed {
    /// No transaction was ever completed since the ring was initialised.
    Nothing,
    /// Transactions were found.
    Hot {
        /// The extents in the slots, ascending, each once.
        extents: Vec<Extent>,
        /// The highest transaction number. A writer that goes on without initialising the ring continues behind it.
        newest: u32,
    },
}

/// The result of a replay with what is worth telling.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replay {
    /// In the order in which they were found.
    pub notes: Vec<ReplayNote>,
    /// What the ring says.
    pub result: Result<Replayed, ReplayError>,
}

/// Replays the activity log area `area` of [`crate::Layout::al_bytes`] bytes.
///
/// # Panics
/// If the area is not as long as the striping says.
pub fn replay(area: &[u8], striping: Striping) -> Replay {
    let (blocks, rest) = area.as_chunks::<BLOCK_BYTES>();
    assert!(rest.is_empty() && blocks.len() == striping.blocks() as usize, "area and striping differ");
    let at = |position: usize| -> &Block {
        let positions = blocks.len();
        &blocks[striping.block_at((position % positions) as u32) as usize]
    };

    let mut corrupt = 0;
    let mut first_corrupt = None;
    let mut bounds: Option<(Bound, Bound)> = None;
    for position in 0..blocks.len() {
        match RingBlock::decode(at(position)) {
            RingBlock::Corrupt => {
                corrupt += 1;
                first_corrupt = first_corrupt.or(Some(position));
            }
            RingBlock::Initialized => {}
            RingBlock::Update(transaction) => {
                let found = Bound { position, number: transaction.number() };
                let (oldest, newest) = bounds.get_or_insert((found, found));
                if found.is_before(*oldest) {
                    *oldest = found;
                }
                if newest.is_before(found) {
                    *newest = found;
                }
            }
        }
    }

    let mut notes = Vec::new();
    if corrupt > 0 && (corrupt as usize) < blocks.len() {
        notes.push(ReplayNote::Corrupt(corrupt));
    }
    let result = match bounds {
        None if corrupt as usize == blocks.len() => Err(ReplayError::NoData),
        None if corrupt == 0 || (corrupt == 1 && first_corrupt == Some(0)) => Ok(Replayed::Nothing),
        None => Err(ReplayError::Invalid),
        Some((oldest, newest)) => {
            let mut slots = SlotTable::default();
            let unwrapped = if newest.position < oldest.position { blocks.len() } else { 0 };
            for position in oldest.position..=newest.position + unwrapped {
                if let RingBlock::Update(transaction) = RingBlock::decode(at(position)) {
                    slots.follow(transaction, &mut notes);
                }
            }
            Ok(Replayed::Hot { extents: slots.into_extents(), newest: newest.number })
        }
    };
    Replay { notes, result }
}

#[derive(Clone, Copy)]
struct Bound {
    position: usize,
    number: u32,
}

impl Bound {
    /// Numbers wrap, so only their difference says which is older.
    const fn is_before(self, other: Self) -> bool {
        (self.number.wrapping_sub(other.number) as i32) < 0
    }
}

/// What each slot holds.
#[derive(Default)]
struct SlotTable(Vec<Extent>);

impl SlotTable {
    fn follow(&mut self, transaction: Transaction<'_>, notes: &mut Vec<ReplayNote>) {
        let updates = transaction.updates().map(|update| (u32::from(update.slot), update.extent));
        for (slot, extent) in transaction.context().chain(updates) {
            if slot >= AL_EXTENTS_MAX {
                notes.push(ReplayNote::SlotOutOfRange { number: transaction.number(), slot });
                continue;
            }
            let slot = slot as usize;
            if self.0.len() <= slot {
                self.0.resize(slot + 1, FREE_EXTENT);
            }
            self.0[slot] = extent;
        }
    }

    fn into_extents(self) -> Vec<Extent> {
        let mut extents: Vec<Extent> = self.0.into_iter().filter(|extent| *extent != FREE_EXTENT).collect();
        extents.sort_unstable();
        extents.dedup();
        extents
    }
}
