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
        /// Where the transaction lies in the ring: that is what the original calls `tr`.
        position: u32,
        /// The slot.
        slot: u32,
        /// Whether it was named as changed, not in the context window.
        updated: bool,
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
            Self::SlotOutOfRange { position, slot, updated } => {
                let kind = if *updated { "update " } else { "" };
                write!(formatter, "{kind}slot number out of range: tr:{position} slot:{slot}")
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
                    slots.follow(transaction, (position % blocks.len()) as u32, &mut notes);
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
    fn follow(&mut self, transaction: Transaction<'_>, position: u32, notes: &mut Vec<ReplayNote>) {
        let context = transaction.context().map(|(slot, extent)| (slot, extent, false));
        let updates = transaction.updates().map(|update| (u32::from(update.slot), update.extent, true));
        for (slot, extent, updated) in context.chain(updates) {
            if slot >= AL_EXTENTS_MAX {
                notes.push(ReplayNote::SlotOutOfRange { position, slot, updated });
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::SlotUpdate;
    use crate::activity_log::{NewTransaction, initialized_block, next_context_start};

    /// A writer as DRBD's: slots, a rolling window, and the ring on disk.
    struct Writer {
        striping: Striping,
        number: u32,
        context_start: u16,
        slots: Vec<Extent>,
        area: Vec<u8>,
    }

    impl Writer {
        fn new(striping: Striping, slots: u16, number: u32) -> Self {
            let area = initialized_block().repeat(striping.blocks() as usize);
            Self { striping, number, context_start: 0, slots: vec![FREE_EXTENT; slots.into()], area }
        }

        /// Writes a transaction; with `torn`, only so many of its bytes arrive, and the slots are not changed.
        fn write(&mut self, updates: &[SlotUpdate], torn: Option<usize>) {
            let slots = self.slots.len() as u16;
            let transaction =
                NewTransaction { number: self.number, updates, slots, context_start: self.context_start };
            let mut block = [0; BLOCK_BYTES];
            transaction.encode_into(&mut block, |slot| self.slots[usize::from(slot)]);
            let place = self.striping.block_of(self.number) as usize * BLOCK_BYTES;
            let arrived = torn.unwrap_or(BLOCK_BYTES);
            self.area[place..place + arrived].copy_from_slice(&block[..arrived]);
            // What did not arrive may be what was there before.
            if self.area[place..place + BLOCK_BYTES] == block {
                for update in updates {
                    self.slots[usize::from(update.slot)] = update.extent;
                }
                self.number = self.number.wrapping_add(1);
                self.context_start = next_context_start(self.context_start, slots);
            }
        }

        fn hot(&self) -> Vec<Extent> {
            let mut hot: Vec<Extent> =
                self.slots.iter().copied().filter(|extent| *extent != FREE_EXTENT).collect();
            hot.sort_unstable();
            hot.dedup();
            hot
        }
    }

    proptest! {
        /// The contract of the log: whatever was in a slot when the power went is found again, also if the newest
        /// transaction is torn; and nothing else, once every slot has been in a window.
        #[test]
        fn no_hot_extent_is_lost(
            (stripes, stripe_size_4k) in prop_oneof![Just((1_u32, 8_u32)), Just((3, 3)), Just((4, 8)), Just((1, 9))],
            crowded: bool,
            small in 67_u16..2000,
            before_wrap in 0_u32..40,
            near_wrap: bool,
            rounds in proptest::collection::vec(
                proptest::collection::vec((any::<proptest::sample::Index>(), prop_oneof![1 => Just(u32::MAX), 9 => 0_u32..5000]), 0..=64),
                0..60,
            ),
            torn in proptest::option::of(0_usize..8),
        ) {
            let striping = Striping { stripes, stripe_size_4k };
            let slots = if crowded { striping.al_extents(u32::MAX) } else { small };
            // A ring whose length is no power of two jumps when the numbers wrap, in the original too; it takes
            // 2^32 transactions within one attachment to get there.
            let wraps = near_wrap && striping.blocks().is_power_of_two();
            let number = if wraps { u32::MAX - before_wrap } else { before_wrap };
            let mut writer = Writer::new(striping, slots, number);
            for round in &rounds {
                let mut updates: Vec<SlotUpdate> = Vec::new();
                for (slot, extent) in round {
                    let slot = slot.index(usize::from(slots)) as u16;
                    if updates.iter().all(|update| update.slot != slot) {
                        updates.push(SlotUpdate { slot, extent: Extent(*extent) });
                    }
                }
                writer.write(&updates, None);
            }
            if let Some(sectors) = torn {
                writer.write(&[SlotUpdate { slot: 0, extent: Extent(9999) }], Some(sectors * 512));
            }
            let newest = writer.number.wrapping_sub(1);
            let replay = replay(&writer.area, striping);
            match replay.result {
                Ok(Replayed::Nothing) => prop_assert!(rounds.is_empty()),
                Ok(Replayed::Hot { extents, newest: found }) => {
                    prop_assert_eq!(found, newest);
                    let hot = writer.hot();
                    prop_assert!(hot.iter().all(|extent| extents.contains(extent)), "{:?} in {:?}", hot, extents);
                    prop_assert_eq!(&extents, &hot);
                }
                // The first transaction of a ring that does not start at its first block looks like damage. The
                // original counts from 0 there, as must we.
                Err(error) => prop_assert!(rounds.is_empty() && number % striping.blocks() != 0, "{}", error),
            }
        }

        #[test]
        fn any_area_is_replayed_or_refused(
            blocks in proptest::collection::vec(proptest::option::of((any::<u32>(), any::<u16>(), 1_u16..)), 8),
        ) {
            let mut area = Vec::new();
            for block in blocks {
                let mut bytes = [7; BLOCK_BYTES];
                if let Some((number, start, slots)) = block {
                    let context_start = start % slots;
                    let transaction = NewTransaction { number, updates: &[], slots, context_start };
                    transaction.encode_into(&mut bytes, |slot| Extent(u32::from(slot)));
                }
                area.extend_from_slice(&bytes);
            }
            let replay = replay(&area, Striping::DEFAULT);
            prop_assert_eq!(replay.result.is_err(), area.chunks(BLOCK_BYTES).all(|block| block[0] == 7));
        }
    }
}
