//! What is recognised of metadata other than DRBD 8.4's (metadata spec 11).

use udrbd_units::{Extent, GenerationId, Sector};

use crate::activity_log::FREE_EXTENT;
use crate::layout::SLOT_SECTORS;
use crate::replay::{Replay, ReplayNote, Replayed};
use crate::superblock::BM_BYTES_PER_BIT;
use crate::validity::{Invalid, Offsets};
use crate::{BLOCK_BYTES, Block, Flags, Layout, Magic, Striping, Superblock};

const SECTOR: usize = 512;
const LOG_MAGIC: u32 = 0x8374_0267;
const ENTRIES: usize = 62;
/// Slots the context of one sector covers.
const CONTEXT: u32 = 61;

/// Replays an activity log of 8.3: transactions of one sector of 512 bytes, recognised by a magic number and a xor.
/// `al_nr_extents` says how long the ring is. Sectors that are not valid are passed over; if none is valid there is
/// nothing to do.
pub(crate) fn replay(area: &[u8], al_nr_extents: u32) -> Replay {
    let ring = 1 + al_nr_extents.div_ceil(CONTEXT) as usize;
    let sectors: Vec<Option<LogSector<'_>>> =
        area.as_chunks::<SECTOR>().0.iter().take(ring).map(LogSector::decode).collect();
    let mut bounds: Option<((usize, u32), (usize, u32))> = None;
    for (position, sector) in sectors.iter().enumerate() {
        let Some(sector) = sector else { continue };
        let found = (position, sector.number());
        let (oldest, newest) = bounds.get_or_insert((found, found));
        if is_before(found.1, oldest.1) {
            *oldest = found;
        }
        if is_before(newest.1, found.1) {
            *newest = found;
        }
    }
    let Some((oldest, newest)) = bounds else {
        return Replay { notes: Vec::new(), result: Ok(Replayed::Nothing) };
    };
    let mut slots: Vec<Extent> = Vec::new();
    let mut notes = Vec::new();
    let invalid = sectors.iter().filter(|sector| sector.is_none()).count();
    if invalid > 0 {
        notes.push(ReplayNote::LegacyInvalid(invalid as u32));
    }
    let unwrapped = if newest.0 < oldest.0 { sectors.len() } else { 0 };
    for position in oldest.0..=newest.0 + unwrapped {
        let Some(sector) = &sectors[position % sectors.len()] else { continue };
        // The update is entry 0 and must win over the context behind it.
        for index in (0..ENTRIES).rev() {
            let (slot, extent) = sector.entry(index);
            if extent == FREE_EXTENT {
                continue;
            }
            if slot >= crate::layout::AL_EXTENTS_MAX {
                let position = (position % sectors.len()) as u32;
                notes.push(ReplayNote::SlotOutOfRange { position, slot, updated: false });
                continue;
            }
            let slot = slot as usize;
            if slots.len() <= slot {
                slots.resize(slot + 1, FREE_EXTENT);
            }
            slots[slot] = extent;
        }
    }
    slots.retain(|extent| *extent != FREE_EXTENT);
    slots.sort_unstable();
    slots.dedup();
    Replay { notes, result: Ok(Replayed::Hot { extents: slots, newest: newest.1 }) }
}

const fn is_before(one: u32, other: u32) -> bool {
    (one.wrapping_sub(other) as i32) < 0
}

struct LogSector<'a>(&'a [u8; SECTOR]);

impl<'a> LogSector<'a> {
    fn decode(bytes: &'a [u8; SECTOR]) -> Option<Self> {
        let sector = Self(bytes);
        let xor = (0..ENTRIES).fold(0, |xor, index| xor ^ sector.entry(index).1.0);
        (sector.word(0) == LOG_MAGIC && sector.word(2 + ENTRIES * 2) == xor).then_some(sector)
    }

    fn word(&self, index: usize) -> u32 {
        let at = index * 4;
        u32::from_be_bytes([self.0[at], self.0[at + 1], self.0[at + 2], self.0[at + 3]])
    }

    fn number(&self) -> u32 {
        self.word(1)
    }

    fn entry(&self, index: usize) -> (u32, Extent) {
        (self.word(2 + index * 2), Extent(self.word(3 + index * 2)))
    }
}

/// Metadata of another format, as far as `create-md` needs it: to be recognised and converted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Foreign {
    /// The format: `v07` or `v09`.
    pub format: &'static str,
    superblock: Superblock,
}

impl Foreign {
    /// The superblock of format v08 with the same data, for the given layout: `md_convert_07_to_08` and
    /// `md_convert_09_to_08`. Activity log and bitmap are left alone by the caller, as the original does.
    pub fn convert(&self, layout: &Layout) -> Superblock {
        let mut superblock = self.superblock.clone();
        superblock.set_layout(layout);
        superblock
    }
}

/// Looks for metadata of DRBD 0.7 or 9 in a block read where format v08 would be, or, for 0.7, at
/// [`v07_internal_place`]. `flexible_internal` says that activity log and bitmap lie in front of the superblock.
pub fn detect(block: &Block, flexible_internal: bool, device: Sector) -> Option<Foreign> {
    match Superblock::decode(block).magic {
        Magic::V09 => detect_v09(block, flexible_internal, device),
        _ if u32_at(block, V07_MAGIC_AT) == Magic::V07.0 => detect_v07(block, flexible_internal, device),
        _ => None,
    }
}

/// Where DRBD 0.7 had its internal metadata: 128 MiB before the end, the areas behind the superblock.
pub const fn v07_internal_place(device: Sector) -> Option<Sector> {
    match (device.0 & !7).checked_sub(SLOT_SECTORS) {
        Some(sector) => Some(Sector(sector)),
        None => None,
    }
}

const V07_MAGIC_AT: usize = 28;

fn u32_at(block: &Block, offset: usize) -> u32 {
    u32::from_be_bytes([block[offset], block[offset + 1], block[offset + 2], block[offset + 3]])
}

fn u64_at(block: &Block, offset: usize) -> u64 {
    u64::from(u32_at(block, offset)) << 32 | u64::from(u32_at(block, offset + 4))
}

fn detect_v07(block: &Block, flexible_internal: bool, device: Sector) -> Option<Foreign> {
    let md_size_sect = u32_at(block, 32).wrapping_mul(2);
    let offsets = Offsets {
        format: "v07",
        md_size_sect,
        al_offset: u32_at(block, 36) as i32,
        bm_offset: u32_at(block, 44) as i32,
        al_sectors: Striping::DEFAULT.sectors() as i64,
        peers: 1,
    };
    // The size was not written consistently by 0.7, so it may be anything.
    match offsets.check(flexible_internal, device) {
        Ok(()) | Err(Invalid::MdSize { .. }) => {}
        Err(_) => return None,
    }
    let counter = |index: usize| u64::from(u32_at(block, 8 + index * 4) & 0xFFFF);
    let (human, timeout, connected, arbitrary) = (counter(1), counter(2), counter(3), counter(4));
    let current = human << 48 | timeout << 32 | ((connected + arbitrary) & 0xFFFF) << 16 | 0xBABE;
    let mut superblock = Superblock::decode(&[0; BLOCK_BYTES]);
    superblock.magic = Magic::V08;
    superblock.la_size_sect = Sector(u64_at(block, 0).wrapping_mul(2));
    superblock.current = GenerationId(current);
    superblock.history = [1, 2].map(|age| GenerationId(current.wrapping_sub(age * 0x1_0000)));
    superblock.flags = Flags(u32_at(block, 8));
    superblock.al_nr_extents = u32_at(block, 40);
    superblock.bm_bytes_per_bit = BM_BYTES_PER_BIT;
    Some(Foreign { format: "v07", superblock })
}

fn detect_v09(block: &Block, flexible_internal: bool, device: Sector) -> Option<Foreign> {
    const PEER_AT: usize = 112;
    const HISTORY_AT: usize = PEER_AT + 32 * 32;
    const PEERS_MAX: u32 = 31;
    const PEER_CONNECTED: u32 = 1;
    const PEER_OUTDATED: u32 = 2;
    const PEER_FULL_SYNC: u32 = 8;
    let peers = u32_at(block, 88).min(PEERS_MAX);
    if peers == 0 {
        return None;
    }
    let al_sectors = i64::from(u32_at(block, 96)).wrapping_mul(i64::from(u32_at(block, 100))).wrapping_mul(8);
    let offsets = Offsets {
        format: "v09",
        md_size_sect: u32_at(block, 64),
        al_offset: u32_at(block, 68) as i32,
        bm_offset: u32_at(block, 76) as i32,
        al_sectors,
        peers: u64::from(peers),
    };
    // As for 0.7, a size that differs is no reason to overlook the metadata.
    match offsets.check(flexible_internal, device) {
        Ok(()) | Err(Invalid::MdSize { .. }) => {}
        Err(_) => return None,
    }
    // The fields up to la_peer_max_bio_size lie where v08 has them, but for the identifiers.
    let mut superblock = Superblock::decode(block);
    superblock.magic = Magic::V08;
    superblock.bitmap = GenerationId(u64_at(block, PEER_AT));
    superblock.history = [0, 8].map(|offset| GenerationId(u64_at(block, HISTORY_AT + offset)));
    superblock.device_uuid = u64_at(block, 48);
    let peer_flags = u32_at(block, PEER_AT + 16);
    for (bit, flag) in [
        (PEER_CONNECTED, Flags::CONNECTED_IND),
        (PEER_FULL_SYNC, Flags::FULL_SYNC),
        (PEER_OUTDATED, Flags::PEER_OUT_DATED),
    ] {
        if peer_flags & bit != 0 {
            superblock.flags |= flag;
        }
    }
    if peers > 1 && superblock.la_size_sect != Sector(0) {
        // The bitmap holds the bits of several peers by turns: of no use as one bitmap.
        superblock.flags |= Flags::FULL_SYNC;
    }
    Some(Foreign { format: "v09", superblock })
}
