//! The bitmap of one volume: a bit per 4 KiB block, set where the two copies may differ.
//!
//! The whole bitmap is in memory while the disk is attached. [`Bitmap`] counts what it holds as it goes, knows which
//! 4 KiB pages of it differ from the disk (metadata spec 6.4), and gives those pages out for writing. It does no I/O
//! and decides nothing about when to write (I/O spec 14.3).
//!
//! Memory is committed only where bits are or were set: a bitmap of a large device in sync costs next to nothing.

mod pages;
mod regions;
mod transfer;

#[cfg(test)]
mod tests;

use std::ops::RangeInclusive;

use udrbd_units::{BLOCK_SECTORS, BlockNumber, Extent, RESYNC_EXTENT_BLOCKS, ResyncExtent, Sector};

use pages::Page;
pub use pages::PageState;
pub use regions::Region;

/// Bits in a word of the bitmap.
const WORD_BITS: u64 = 64;
/// Words in a page.
const PAGE_WORDS: usize = 512;
/// Bytes in a page of the bitmap, the unit in which it is written.
pub const PAGE_BYTES: usize = 4096;
/// Bits in a page: 128 MiB of data.
pub const PAGE_BITS: u64 = 32768;

const _: () = assert!(PAGE_WORDS * 8 == PAGE_BYTES && PAGE_BITS == PAGE_WORDS as u64 * WORD_BITS);
// A page's count of set bits has 16 bits.
const _: () = assert!(PAGE_BITS <= u16::MAX as u64);

/// The bits of one volume, the number of set ones, and the state of each page against the disk.
///
/// * Getters: [`capacity`](Self::capacity), [`bits`](Self::bits), [`set_count`](Self::set_count),
///   [`any_set`](Self::any_set), [`count`](Self::count), [`find_next_set`](Self::find_next_set) and their neighbours;
/// * changes: [`set_range`](Self::set_range), [`clear_range`](Self::clear_range), [`set_all`](Self::set_all),
///   [`clear_all`](Self::clear_all), [`resize`](Self::resize);
/// * to and from disk and peer: [`load`](Self::load), [`merge_words`](Self::merge_words),
///   [`merge_range`](Self::merge_range), [`words`](Self::words);
/// * pages: [`next_changed_page`](Self::next_changed_page), [`take_page`](Self::take_page), then one of
///   [`page_written`](Self::page_written) and [`mark_page_unwritten`](Self::mark_page_unwritten);
///   [`hint_page`](Self::hint_page) for what an activity log transaction must wait for.
///
/// Ranges of blocks are clipped to the device. Bits beyond the device's end are never set, in memory or in what is
/// given out.
#[derive(Debug)]
pub struct Bitmap {
    capacity: Sector,
    bits: u64,
    /// Whole pages: `pages.len() * PAGE_WORDS` words. Zero pages are never written to, so they cost no memory.
    words: Vec<u64>,
    pages: Vec<Page>,
    set_count: u64,
    changed_page_count: usize,
    writes_in_flight: usize,
    /// Pages the activity log transaction in preparation waits for.
    hints: Vec<usize>,
}

impl Bitmap {
    /// A bitmap with every bit clear, for a device of `capacity` sectors; a short last block has a bit too.
    pub fn new(capacity: Sector) -> Self {
        let bits = capacity.0.div_ceil(BLOCK_SECTORS);
        let page_count = bits.div_ceil(PAGE_BITS) as usize;
        Self {
            capacity,
            bits,
            words: vec![0; page_count * PAGE_WORDS],
            pages: vec![Page::default(); page_count],
            set_count: 0,
            changed_page_count: 0,
            writes_in_flight: 0,
            hints: Vec::with_capacity(pages::HINTS_MAX),
        }
    }

    /// The size of the device, in sectors.
    pub const fn capacity(&self) -> Sector {
        self.capacity
    }

    /// The number of bits, one per block of the device.
    pub const fn bits(&self) -> u64 {
        self.bits
    }

    /// The number of 64-bit words that hold bits of the device (metadata spec 6.1), as both nodes count them.
    pub const fn word_count(&self) -> u64 {
        self.bits.div_ceil(WORD_BITS)
    }

    /// The number of set bits: blocks out of sync.
    pub const fn set_count(&self) -> u64 {
        self.set_count
    }

    /// Sets the bits of `blocks` and returns how many were clear before.
    pub fn set_range(&mut self, blocks: RangeInclusive<u64>) -> u64 {
        self.set_marking(blocks, pages::NEED_WRITE)
    }

    /// Clears the bits of `blocks` and returns how many were set before. Their pages are only lazily changed: a bit
    /// that stays set on disk costs a needless resync and no more (I/O spec 14.5).
    pub fn clear_range(&mut self, blocks: RangeInclusive<u64>) -> u64 {
        let Some((mut first, end)) = self.clip(&blocks) else { return 0 };
        let mut cleared_total = 0;
        while first < end {
            let page = (first / PAGE_BITS) as usize;
            let page_end = end.min((page as u64 + 1) * PAGE_BITS);
            if self.pages[page].set > 0 {
                let cleared = clear_bits(&mut self.words, first, page_end);
                if cleared > 0 {
                    self.pages[page].set -= cleared as u16;
                    cleared_total += cleared;
                    self.mark(page, pages::LAZY);
                }
            }
            first = page_end;
        }
        self.set_count -= cleared_total;
        cleared_total
    }

    /// Sets every bit (full sync). Every page must be written then, changed or not: a full sync is only safe once the
    /// disk says so too.
    pub fn set_all(&mut self) {
        if self.bits > 0 {
            self.set_range(0..=self.bits - 1);
        }
        assert!(self.set_count == self.bits);
        self.mark_all_pages();
    }

    /// Clears every bit, gives their memory back and has every page written.
    pub fn clear_all(&mut self) {
        self.words = vec![0; self.words.len()];
        for page in &mut self.pages {
            page.set = 0;
        }
        self.set_count = 0;
        self.mark_all_pages();
    }

    /// Gives the device another size; the bits of what both sizes have stay. New blocks are out of sync if
    /// `set_new_bits`; that includes a short last block of the old size that has become longer. All pages from the
    /// smaller of the two ends on must be written, since the disk may hold anything there.
    pub fn resize(&mut self, capacity: Sector, set_new_bits: bool) {
        let (old_capacity, old_bits) = (self.capacity, self.bits);
        self.capacity = capacity;
        self.bits = capacity.0.div_ceil(BLOCK_SECTORS);
        let page_count = self.bits.div_ceil(PAGE_BITS) as usize;
        if page_count != self.pages.len() {
            self.move_words(page_count);
            self.pages.resize(page_count, Page::default());
        }
        if self.bits < old_bits {
            self.mask_surplus();
        }
        self.set_count = self.pages.iter().map(|page| u64::from(page.set)).sum();
        self.changed_page_count = self.pages.iter().filter(|page| page.is_changed()).count();
        self.writes_in_flight = self.pages.iter().filter(|page| page.is_writing()).count();
        self.hints.retain(|page| *page < page_count);
        if self.bits != old_bits {
            let kept_bits = self.bits.min(old_bits);
            for page in (kept_bits / PAGE_BITS) as usize..page_count {
                self.mark(page, pages::NEED_WRITE);
            }
        }
        if set_new_bits && capacity > old_capacity {
            self.set_range(old_capacity.block().0..=self.bits - 1);
        }
    }

    /// Whether any bit of `blocks` is set.
    pub fn any_set(&self, blocks: RangeInclusive<u64>) -> bool {
        let Some((first, end)) = self.clip(&blocks) else { return false };
        self.find_next_set(BlockNumber(first)).is_some_and(|block| block.0 < end)
    }

    /// The number of set bits in `blocks`.
    pub fn count(&self, blocks: RangeInclusive<u64>) -> u64 {
        let Some((mut first, end)) = self.clip(&blocks) else { return 0 };
        let mut total = 0;
        while first < end {
            let page = (first / PAGE_BITS) as usize;
            let page_end = end.min((page as u64 + 1) * PAGE_BITS);
            let set = self.pages[page].set;
            if page_end - first == PAGE_BITS {
                total += u64::from(set);
            } else if set > 0 {
                total += count_bits(&self.words, first, page_end);
            }
            first = page_end;
        }
        total
    }

    /// The number of set bits in a resync extent; 0 beyond the device's end.
    pub fn set_count_in(&self, extent: ResyncExtent) -> u64 {
        let first = u64::from(extent.0) * RESYNC_EXTENT_BLOCKS;
        self.count(first..=first + RESYNC_EXTENT_BLOCKS - 1)
    }

    /// The first set bit at or behind `from`.
    pub fn find_next_set(&self, from: BlockNumber) -> Option<BlockNumber> {
        let mut bit = from.0;
        while bit < self.bits {
            let page = (bit / PAGE_BITS) as usize;
            if self.pages[page].set > 0
                && let Some(found) = self.find_in_page(bit, 0)
            {
                return Some(BlockNumber(found));
            }
            bit = (page as u64 + 1) * PAGE_BITS;
        }
        None
    }

    /// The first clear bit at or behind `from`, within the device.
    pub fn find_next_clear(&self, from: BlockNumber) -> Option<BlockNumber> {
        let mut bit = from.0;
        while bit < self.bits {
            let page = (bit / PAGE_BITS) as usize;
            // The surplus bits of the last page are clear, hence the second look at the end.
            if u64::from(self.pages[page].set) < PAGE_BITS
                && let Some(found) = self.find_in_page(bit, u64::MAX)
            {
                return (found < self.bits).then_some(BlockNumber(found));
            }
            bit = (page as u64 + 1) * PAGE_BITS;
        }
        None
    }

    /// The page that holds the bits of an activity log extent (I/O spec 4.3).
    pub const fn page_of_extent(extent: Extent) -> usize {
        (extent.0 / 32) as usize
    }

    /// The page that holds the bit of a block.
    pub const fn page_of_block(block: BlockNumber) -> usize {
        (block.0 / PAGE_BITS) as usize
    }

    /// The first bit from `bit` to the end of its page that differs from `flip`'s bits (0: a set one, all ones: a
    /// clear one).
    fn find_in_page(&self, bit: u64, flip: u64) -> Option<u64> {
        let first_word = (bit / WORD_BITS) as usize;
        let page_end = (first_word / PAGE_WORDS + 1) * PAGE_WORDS;
        let head = (self.words[first_word] ^ flip) & (u64::MAX << (bit % WORD_BITS));
        if head != 0 {
            return Some(first_word as u64 * WORD_BITS + u64::from(head.trailing_zeros()));
        }
        let words = &self.words[first_word + 1..page_end];
        let index = words.iter().position(|word| *word != flip)?;
        let word = (first_word + 1 + index) as u64;
        Some(word * WORD_BITS + u64::from((words[index] ^ flip).trailing_zeros()))
    }

    /// Sets the bits of `blocks`, marks the pages where one was clear with `mark`, returns how many were clear.
    fn set_marking(&mut self, blocks: RangeInclusive<u64>, mark: u8) -> u64 {
        let Some((mut first, end)) = self.clip(&blocks) else { return 0 };
        let mut set_total = 0;
        while first < end {
            let page = (first / PAGE_BITS) as usize;
            let page_end = end.min((page as u64 + 1) * PAGE_BITS);
            let set = set_bits(&mut self.words, first, page_end);
            if set > 0 {
                self.pages[page].set += set as u16;
                set_total += set;
                self.mark(page, mark);
            }
            first = page_end;
        }
        self.set_count += set_total;
        assert!(self.set_count <= self.bits);
        set_total
    }

    /// Moves the words into a table of `page_count` pages, leaving alone the memory of pages without a set bit.
    fn move_words(&mut self, page_count: usize) {
        let mut words = vec![0; page_count * PAGE_WORDS];
        let tables = words.chunks_exact_mut(PAGE_WORDS).zip(self.words.chunks_exact(PAGE_WORDS));
        for ((new, old), page) in tables.zip(&self.pages) {
            if page.set > 0 {
                new.copy_from_slice(old);
            }
        }
        self.words = words;
    }

    /// Clears what a shrunk device has left behind its end in its last page.
    fn mask_surplus(&mut self) {
        let end = self.pages.len() as u64 * PAGE_BITS;
        if self.bits < end {
            let cleared = clear_bits(&mut self.words, self.bits, end);
            if let Some(page) = self.pages.last_mut() {
                page.set -= cleared as u16;
            }
        }
    }

    /// `blocks` cut to the device as (first, end), `None` if nothing is left.
    fn clip(&self, blocks: &RangeInclusive<u64>) -> Option<(u64, u64)> {
        let first = *blocks.start();
        let end = (*blocks.end()).saturating_add(1).min(self.bits);
        (first < end).then_some((first, end))
    }

    /// Which bits of a word belong to the device.
    const fn word_mask(&self, word: u64) -> u64 {
        let first = word * WORD_BITS;
        if first + WORD_BITS <= self.bits {
            u64::MAX
        } else if first < self.bits {
            // At least one bit and fewer than 64: the shift is in range. (A mask of 0 for a full last word is the
            // original's bug of metadata spec 6.7.)
            (1 << (self.bits - first)) - 1
        } else {
            0
        }
    }
}

/// The words of a run of bits, each with the mask of the bits in the run.
struct WordMasks {
    first: u64,
    end: u64,
}

impl Iterator for WordMasks {
    type Item = (usize, u64);

    #[inline]
    fn next(&mut self) -> Option<(usize, u64)> {
        if self.first >= self.end {
            return None;
        }
        let word = self.first / WORD_BITS;
        let word_end = (word + 1) * WORD_BITS;
        let mut mask = u64::MAX << (self.first % WORD_BITS);
        if self.end < word_end {
            mask &= (1 << (self.end % WORD_BITS)) - 1;
        }
        self.first = word_end;
        Some((word as usize, mask))
    }
}

#[inline]
fn set_bits(words: &mut [u64], first: u64, end: u64) -> u64 {
    let mut changed_total = 0;
    for (word, mask) in (WordMasks { first, end }) {
        let changed = !words[word] & mask;
        if changed != 0 {
            words[word] |= mask;
            changed_total += u64::from(changed.count_ones());
        }
    }
    changed_total
}

#[inline]
fn clear_bits(words: &mut [u64], first: u64, end: u64) -> u64 {
    let mut changed_total = 0;
    for (word, mask) in (WordMasks { first, end }) {
        let changed = words[word] & mask;
        if changed != 0 {
            words[word] &= !mask;
            changed_total += u64::from(changed.count_ones());
        }
    }
    changed_total
}

#[inline]
fn count_bits(words: &[u64], first: u64, end: u64) -> u64 {
    let (first_word, last_word) = ((first / WORD_BITS) as usize, ((end - 1) / WORD_BITS) as usize);
    let head_mask = u64::MAX << (first % WORD_BITS);
    let tail_mask = u64::MAX >> (WORD_BITS - 1 - (end - 1) % WORD_BITS);
    if first_word == last_word {
        return u64::from((words[first_word] & head_mask & tail_mask).count_ones());
    }
    // A plain sum over whole words is what the compiler makes fast.
    let middle: u64 = words[first_word + 1..last_word].iter().map(|word| u64::from(word.count_ones())).sum();
    let head = (words[first_word] & head_mask).count_ones();
    let tail = (words[last_word] & tail_mask).count_ones();
    middle + u64::from(head) + u64::from(tail)
}
