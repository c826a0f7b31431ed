//! What is recognised of metadata other than DRBD 8.4's (metadata spec 11).

use udrbd_units::Extent;

use crate::activity_log::FREE_EXTENT;
use crate::replay::{Replay, ReplayNote, Replayed};

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
                notes.push(ReplayNote::SlotOutOfRange { number: sector.number(), slot });
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
