//! Pages of block devices' requests in the ring's table of buffers.
//!
//! The ublk driver can put the pages of a request into the table when it hands the request out, and takes them out when it is
//! answered. A disk read then goes straight into them. Which buffer of the pool stands for which entry is noted here: a
//! read into such a buffer goes into the request's pages instead, and the buffer stays as it is.

use crate::buffers::BufferHandle;

/// Entries of the table: more than the pool has buffers for requests of block devices.
pub(super) const ENTRIES: u16 = 8192;
const NONE: u16 = u16::MAX;

/// Who has which part of the table, and which buffers stand for entries.
#[derive(Debug, Default)]
pub(super) struct Pages {
    /// Parts in use: first entry and length.
    parts: Vec<(u16, u16)>,
    /// By the number of a buffer's first page of the pool: its entry, or [`NONE`].
    entries: Vec<u16>,
}

impl Pages {
    /// Finds room for `count` entries.
    pub(super) fn reserve(&mut self, count: u16) -> Option<u16> {
        let mut first = 0_u16;
        for &(start, length) in &self.parts {
            if start.saturating_sub(first) >= count {
                break;
            }
            first = start + length;
        }
        if ENTRIES - first < count {
            return None;
        }
        self.parts.push((first, count));
        self.parts.sort_unstable();
        Some(first)
    }

    pub(super) fn free(&mut self, first: u16) {
        self.parts.retain(|&(start, _)| start != first);
    }

    /// From now on reads into the buffer go to an entry.
    pub(super) fn lend(&mut self, buffer: BufferHandle, entry: u16) {
        let page = buffer.first_page();
        if self.entries.len() <= page {
            self.entries.resize(page + 1, NONE);
        }
        self.entries[page] = entry;
    }

    /// The entry that the buffer stands for, if any.
    pub(super) fn of(&self, buffer: BufferHandle) -> Option<u16> {
        self.entries.get(buffer.first_page()).copied().filter(|&entry| entry != NONE)
    }

    /// The buffer stands for itself again. Returns the entry it stood for.
    pub(super) fn take(&mut self, buffer: BufferHandle) -> Option<u16> {
        let entry = self.of(buffer)?;
        self.entries[buffer.first_page()] = NONE;
        Some(entry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_the_table_do_not_overlap_and_are_used_again() {
        let mut pages = Pages::default();
        let parts: Vec<u16> = std::iter::from_fn(|| pages.reserve(1000)).collect();
        assert_eq!(parts, [0, 1000, 2000, 3000, 4000, 5000, 6000, 7000]);
        pages.free(1000);
        assert_eq!(pages.reserve(500), Some(1000));
        assert_eq!(pages.reserve(500), Some(1500));
        assert_eq!(pages.reserve(192), Some(8000));
        assert_eq!(pages.reserve(1), None);
    }

    #[test]
    fn a_buffer_stands_for_pages_until_they_are_taken() {
        let mut pages = Pages::default();
        let (one, other) = (BufferHandle::from_raw(3), BufferHandle::from_raw(900));
        pages.lend(one, 7);
        assert_eq!((pages.of(one), pages.of(other)), (Some(7), None));
        assert_eq!((pages.take(one), pages.take(one), pages.take(other)), (Some(7), None, None));
    }
}
