//! Where bits are set, in few words: for people.

use udrbd_units::BlockNumber;

use super::{Bitmap, PAGE_BITS};

/// Runs that are looked at one by one; behind them whole pages are. Bounds the time this takes on a bitmap in tatters.
const RUNS_MAX: usize = 65_536;

/// A part of the device with set bits: both its ends are set, unless it is whole pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// The first block.
    pub first: u64,
    /// The number of blocks it spans.
    pub blocks: u64,
    /// How many of them are set.
    pub set: u64,
}

impl Bitmap {
    /// Regions with all set bits, in order, at most `limit` of them (at least one). Where there are fewer runs than that
    /// each is one; else those with little between them are taken together.
    pub fn regions(&self, limit: usize) -> Vec<Region> {
        let limit = limit.max(1);
        let mut list: Vec<Region> = Vec::with_capacity(limit + 1);
        // What lies at most so far apart is one region.
        let mut gap = 0;
        let mut runs = 0;
        let mut from = 0;
        while let Some(BlockNumber(first)) = self.find_next_set(BlockNumber(from)) {
            let found = if runs < RUNS_MAX {
                let end = self.find_next_clear(BlockNumber(first)).map_or(self.bits(), |end| end.0);
                Region { first, blocks: end - first, set: end - first }
            } else {
                let end = ((first / PAGE_BITS + 1) * PAGE_BITS).min(self.bits());
                Region { first, blocks: end - first, set: self.count(first..=end - 1) }
            };
            runs += 1;
            from = first + found.blocks;
            list.push(found);
            if gap > 0 {
                join(&mut list, gap);
            }
            while list.len() > limit {
                gap = (gap * 2).max(1);
                join(&mut list, gap);
            }
        }
        list
    }
}

/// Takes together what lies at most `gap` blocks apart.
fn join(list: &mut Vec<Region>, gap: u64) {
    list.dedup_by(|next, before| {
        let end = before.first + before.blocks;
        let near = next.first - end <= gap;
        if near {
            before.blocks = next.first + next.blocks - before.first;
            before.set += next.set;
        }
        near
    });
}

#[cfg(test)]
mod tests {
    use udrbd_units::Sector;

    use super::*;

    fn bitmap(runs: impl IntoIterator<Item = (u64, u64)>) -> Bitmap {
        let mut bitmap = Bitmap::new(Sector(8 * 4 * PAGE_BITS + 8));
        for (first, blocks) in runs {
            bitmap.set_range(first..=first + blocks - 1);
        }
        bitmap
    }

    fn region(first: u64, blocks: u64, set: u64) -> Region {
        Region { first, blocks, set }
    }

    #[test]
    fn few_runs_are_told_as_they_are() {
        assert_eq!(bitmap([]).regions(4), []);
        let bitmap = bitmap([(0, 3), (100, 1), (4 * PAGE_BITS, 1)]);
        let runs = [region(0, 3, 3), region(100, 1, 1), region(4 * PAGE_BITS, 1, 1)];
        assert_eq!(bitmap.regions(3), runs);
    }

    #[test]
    fn many_runs_are_taken_together_where_they_are_close() {
        let bitmap = bitmap((0..50).map(|place| (place * 2, 1)).chain([(30_000, 5), (90_000, 2)]));
        assert_eq!(bitmap.regions(4), [region(0, 99, 50), region(30_000, 5, 5), region(90_000, 2, 2)]);
        assert_eq!(bitmap.regions(1), [region(0, 90_002, 57)]);
    }

    #[test]
    fn a_bitmap_in_tatters_is_told_by_pages_and_misses_nothing() {
        let runs = RUNS_MAX as u64;
        let bitmap = bitmap((0..runs - 10).map(|place| (place * 2, 1)).chain([(4 * PAGE_BITS, 1)]));
        let regions = bitmap.regions(8);
        assert_eq!(regions.iter().map(|region| region.set).sum::<u64>(), bitmap.set_count());
        assert_eq!(regions, [region(0, 2 * (runs - 10) - 1, runs - 10), region(4 * PAGE_BITS, 1, 1)]);
        // More runs than are looked at one by one.
        let mut all = Bitmap::new(Sector(8 * 6 * PAGE_BITS));
        for place in 0..3 * PAGE_BITS {
            all.set_range(place * 2..=place * 2);
        }
        let regions = all.regions(8);
        assert_eq!(regions.iter().map(|region| region.set).sum::<u64>(), 3 * PAGE_BITS);
        assert_eq!(regions, [region(0, 6 * PAGE_BITS, 3 * PAGE_BITS)]);
    }
}
