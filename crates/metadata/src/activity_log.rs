//! The blocks of the activity log (metadata spec 5; DRBD's `struct al_transaction_on_disk`).
//!
//! A transaction names up to 64 slots and the extents they hold from now on, and a window of up to 919 slots with
//! what they held before. Building one allocates nothing: [`NewTransaction::encode_into`] fills the caller's block.

use udrbd_units::Extent;

use crate::{BLOCK_BYTES, Block};

/// The magic number of a block.
pub const MAGIC: u32 = 0x69CB_65A2;
/// The most slots one transaction changes.
pub const UPDATES_MAX: usize = 64;
/// Slots of the context window of one transaction.
pub const CONTEXT_SLOTS: usize = (BLOCK_BYTES - CONTEXT_AT) / 4;
/// An extent number that stands for "none": the slot is free.
pub const FREE_EXTENT: Extent = Extent(u32::MAX);
/// A slot number that stands for "none".
pub const FREE_SLOT: u16 = u16::MAX;

const NUMBER_AT: usize = 4;
const CRC_AT: usize = 8;
const TYPE_AT: usize = 12;
const UPDATES_AT: usize = 14;
const CONTEXT_SIZE_AT: usize = 16;
const CONTEXT_START_AT: usize = 18;
const UPDATE_SLOTS_AT: usize = 36;
const UPDATE_EXTENTS_AT: usize = 164;
const CONTEXT_AT: usize = 420;
const TYPE_UPDATE: u16 = 0;
const TYPE_INITIALIZED: u16 = 0xFFFF;

const _: () = assert!(CONTEXT_SLOTS == 919);
const _: () = assert!(UPDATE_SLOTS_AT + UPDATES_MAX * 2 == UPDATE_EXTENTS_AT);
const _: () = assert!(UPDATE_EXTENTS_AT + UPDATES_MAX * 4 == CONTEXT_AT);

fn u16_at(block: &Block, offset: usize) -> u16 {
    u16::from_be_bytes([block[offset], block[offset + 1]])
}

fn u32_at(block: &Block, offset: usize) -> u32 {
    u32::from_be_bytes([block[offset], block[offset + 1], block[offset + 2], block[offset + 3]])
}

fn put_u16(block: &mut Block, offset: usize, value: u16) {
    block[offset..offset + 2].copy_from_slice(&value.to_be_bytes());
}

fn put_u32(block: &mut Block, offset: usize, value: u32) {
    block[offset..offset + 4].copy_from_slice(&value.to_be_bytes());
}

/// CRC-32C over the block with its crc field as zero, starting from 0 and without the usual final inversion
/// (metadata spec 5.3).
fn checksum(block: &Block) -> u32 {
    let mut crc = crc32c::crc32c_append(u32::MAX, &block[..CRC_AT]);
    crc = crc32c::crc32c_append(crc, &[0; 4]);
    !crc32c::crc32c_append(crc, &block[CRC_AT + 4..])
}

/// The content of one slot from a transaction on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotUpdate {
    /// The slot that changes.
    pub slot: u16,
    /// The extent it holds from now on; [`FREE_EXTENT`] empties it.
    pub extent: Extent,
}

/// A transaction to be written (metadata spec 5.6).
#[derive(Clone, Copy, Debug)]
pub struct NewTransaction<'a> {
    /// Its number; [`crate::Layout::al_block`] says where it goes.
    pub number: u32,
    /// What changes: at most [`UPDATES_MAX`].
    pub updates: &'a [SlotUpdate],
    /// The number of slots (`al-extents` after clamping).
    pub slots: u16,
    /// The first slot of the context window; see [`next_context_start`].
    pub context_start: u16,
}

impl NewTransaction<'_> {
    /// Fills `block`. `content` gives what a slot holds *before* this transaction ([`FREE_EXTENT`] if nothing); it is
    /// asked for the slots of the window, in order.
    ///
    /// # Panics
    /// If there are more than [`UPDATES_MAX`] updates, or an update or the window starts beyond the slots: a log that
    /// lies must not reach the disk.
    pub fn encode_into(&self, block: &mut Block, mut content: impl FnMut(u16) -> Extent) {
        assert!(self.updates.len() <= UPDATES_MAX, "{} updates in one transaction", self.updates.len());
        assert!(self.context_start < self.slots, "context starts beyond the slots");
        block[..UPDATE_SLOTS_AT].fill(0);
        block[UPDATE_SLOTS_AT..].fill(0xFF);
        put_u32(block, 0, MAGIC);
        put_u32(block, NUMBER_AT, self.number);
        put_u16(block, TYPE_AT, TYPE_UPDATE);
        put_u16(block, UPDATES_AT, self.updates.len() as u16);
        put_u16(block, CONTEXT_SIZE_AT, self.slots);
        put_u16(block, CONTEXT_START_AT, self.context_start);
        for (index, update) in self.updates.iter().enumerate() {
            assert!(update.slot < self.slots, "update of slot {} of {}", update.slot, self.slots);
            put_u16(block, UPDATE_SLOTS_AT + index * 2, update.slot);
            put_u32(block, UPDATE_EXTENTS_AT + index * 4, update.extent.0);
        }
        let window = self.context_start..context_end(self.context_start, self.slots);
        for (bytes, slot) in block[CONTEXT_AT..].chunks_exact_mut(4).zip(window) {
            bytes.copy_from_slice(&content(slot).0.to_be_bytes());
        }
        let crc = checksum(block);
        put_u32(block, CRC_AT, crc);
    }
}

fn context_end(start: u16, slots: u16) -> u16 {
    slots.min(start.saturating_add(CONTEXT_SLOTS as u16))
}

/// Where the context window of the transaction after one that starts at `start` starts.
pub fn next_context_start(start: u16, slots: u16) -> u16 {
    let end = context_end(start, slots);
    if end >= slots { 0 } else { end }
}

/// The block that fills the whole ring after `create-md` and `apply-al` (metadata spec 5.9).
pub fn initialized_block() -> Block {
    let mut block = [0; BLOCK_BYTES];
    put_u32(&mut block, 0, MAGIC);
    put_u16(&mut block, TYPE_AT, TYPE_INITIALIZED);
    let crc = checksum(&block);
    put_u32(&mut block, CRC_AT, crc);
    block
}

/// What a block of the ring is.
#[derive(Clone, Copy, Debug)]
pub enum RingBlock<'a> {
    /// Torn, foreign, or never written.
    Corrupt,
    /// Valid and empty.
    Initialized,
    /// A transaction.
    Update(Transaction<'a>),
}

impl<'a> RingBlock<'a> {
    /// Looks at a block: magic and checksum must be right.
    pub fn decode(block: &'a Block) -> Self {
        if u32_at(block, 0) != MAGIC || u32_at(block, CRC_AT) != checksum(block) {
            Self::Corrupt
        } else if u16_at(block, TYPE_AT) == TYPE_INITIALIZED {
            Self::Initialized
        } else {
            Self::Update(Transaction { block })
        }
    }
}

/// A transaction read back; its magic and checksum were right.
#[derive(Clone, Copy)]
pub struct Transaction<'a> {
    block: &'a Block,
}

impl std::fmt::Debug for Transaction<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Transaction")
            .field("number", &self.number())
            .field("slots", &self.slots())
            .field("context_start", &self.context_start())
            .finish_non_exhaustive()
    }
}

impl<'a> Transaction<'a> {
    /// The number of the transaction.
    pub fn number(self) -> u32 {
        u32_at(self.block, NUMBER_AT)
    }

    /// The stored checksum.
    pub fn checksum(self) -> u32 {
        u32_at(self.block, CRC_AT)
    }

    /// The stored type; 0 for every transaction DRBD 8.4 writes.
    pub fn transaction_type(self) -> u16 {
        u16_at(self.block, TYPE_AT)
    }

    /// The number of updates the header claims.
    pub fn update_count(self) -> u16 {
        u16_at(self.block, UPDATES_AT)
    }

    /// The total number of slots (`context_size`).
    pub fn slots(self) -> u16 {
        u16_at(self.block, CONTEXT_SIZE_AT)
    }

    /// The slot the context window starts with.
    pub fn context_start(self) -> u16 {
        u16_at(self.block, CONTEXT_START_AT)
    }

    /// What changes. An entry counts if it lies within the claimed number or names a slot (metadata spec 5.10).
    pub fn updates(self) -> impl Iterator<Item = SlotUpdate> + 'a {
        let count = usize::from(self.update_count());
        let block = self.block;
        (0..UPDATES_MAX)
            .map(move |index| SlotUpdate {
                slot: u16_at(block, UPDATE_SLOTS_AT + index * 2),
                extent: Extent(u32_at(block, UPDATE_EXTENTS_AT + index * 4)),
            })
            .enumerate()
            .filter(move |(index, update)| *index < count || update.slot != FREE_SLOT)
            .map(|(_, update)| update)
    }

    /// The context window: slot and content before this transaction. Slots are `u32`, as a window may run beyond
    /// 65535; free entries behind the last slot are left out.
    pub fn context(self) -> impl Iterator<Item = (u32, Extent)> + 'a {
        let start = u32::from(self.context_start());
        let slots = u32::from(self.slots());
        let block = self.block;
        (0..CONTEXT_SLOTS)
            .map(move |index| (start + index as u32, Extent(u32_at(block, CONTEXT_AT + index * 4))))
            .filter(move |(slot, extent)| *extent != FREE_EXTENT || *slot < slots)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn checksums_are_those_of_the_specification() {
        assert_eq!(u32_at(&initialized_block(), CRC_AT), 0x709C_C651);
        let mut block = [0; BLOCK_BYTES];
        let mut transaction = NewTransaction { number: 0, updates: &[], slots: 1237, context_start: 0 };
        transaction.encode_into(&mut block, |_| FREE_EXTENT);
        assert_eq!(u32_at(&block, CRC_AT), 0x7396_232E);
        transaction.number = 1;
        transaction.context_start = next_context_start(0, 1237);
        transaction.encode_into(&mut block, |_| FREE_EXTENT);
        assert_eq!(u32_at(&block, CRC_AT), 0xA619_FD4B);
        assert_eq!(next_context_start(919, 1237), 0);
    }

    #[test]
    fn the_window_wraps_at_the_last_slot() {
        assert_eq!(next_context_start(0, 919), 0);
        assert_eq!(next_context_start(0, 920), 919);
        assert_eq!(next_context_start(64_330, 65_534), 65_249);
        assert_eq!(next_context_start(65_249, 65_534), 0);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            number: u32,
            slots in 67_u16..65_535,
            start: proptest::sample::Index,
            changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u32>()), 0..=64),
            seed: u32,
        ) {
            let updates: Vec<SlotUpdate> = changes
                .iter()
                .map(|(slot, extent)| SlotUpdate {
                    slot: slot.index(usize::from(slots)) as u16,
                    extent: Extent(*extent),
                })
                .collect();
            let context_start = start.index(usize::from(slots)) as u16;
            let content = |slot: u16| Extent(u32::from(slot).wrapping_mul(seed));
            let transaction = NewTransaction { number, updates: &updates, slots, context_start };
            let mut block = [0x5A; BLOCK_BYTES];
            transaction.encode_into(&mut block, content);
            let RingBlock::Update(read) = RingBlock::decode(&block) else { panic!("not an update") };
            prop_assert_eq!((read.number(), read.slots(), read.context_start()), (number, slots, context_start));
            prop_assert_eq!(read.updates().collect::<Vec<_>>(), updates);
            for (slot, extent) in read.context() {
                prop_assert_eq!(extent, content(slot as u16));
            }
            let expected = usize::from(slots - context_start).min(CONTEXT_SLOTS);
            prop_assert_eq!(read.context().count(), expected);
        }

        #[test]
        fn no_flipped_bit_goes_unnoticed(bit in 0_usize..BLOCK_BYTES * 8) {
            let mut block = initialized_block();
            block[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(matches!(RingBlock::decode(&block), RingBlock::Corrupt));
        }
    }
}
