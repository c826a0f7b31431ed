//! Bits that come in bulk, from the disk or the peer, and go out in bulk to the peer.

use std::ops::RangeInclusive;

use super::{Bitmap, PAGE_WORDS, pages};

impl Bitmap {
    /// Takes over a piece of the bitmap as it lies on disk (metadata spec 6.1), `byte_offset` bytes from its start.
    /// Bits are added, never taken away, and no page counts as changed by it. Whatever the disk holds beyond the
    /// device's last bit is dropped (metadata spec 6.2). No page may be written before all of it has been loaded.
    ///
    /// # Panics
    /// If offset or length is not a multiple of 8: reads are of whole sectors.
    pub fn load(&mut self, byte_offset: u64, bytes: &[u8]) {
        self.merge_bytes(byte_offset, bytes, 0);
    }

    /// Adds a piece of the peer's bitmap given as words from word `first_word` on, and returns how many bits were clear
    /// before. The peer knows these bits too, so their pages are only lazily changed. Words beyond the device's
    /// end are dropped.
    pub fn merge_words(&mut self, first_word: u64, words: impl IntoIterator<Item = u64>) -> u64 {
        self.merge(first_word, words, pages::LAZY)
    }

    /// As [`merge_words`](Self::merge_words), from words in little endian as they lie in a packet.
    ///
    /// # Panics
    /// If the length is not a multiple of 8.
    pub fn merge_le_bytes(&mut self, first_word: u64, bytes: &[u8]) -> u64 {
        self.merge_bytes(first_word * 8, bytes, pages::LAZY)
    }

    /// Adds a run of set bits of the peer's bitmap, as its run-length form gives them, and returns how many were clear
    /// before. Their pages are only lazily changed.
    pub fn merge_range(&mut self, blocks: RangeInclusive<u64>) -> u64 {
        self.set_marking(blocks, pages::LAZY)
    }

    /// Up to `count` words from word `first` on, in the machine's byte order, clipped to
    /// [`word_count`](Self::word_count).
    pub fn words(&self, first: u64, count: usize) -> &[u64] {
        let word_count = self.word_count() as usize;
        let first = usize::try_from(first).unwrap_or(usize::MAX).min(word_count);
        &self.words[first..first.saturating_add(count).min(word_count)]
    }

    fn merge_bytes(&mut self, byte_offset: u64, bytes: &[u8], mark: u8) -> u64 {
        assert!(
            byte_offset.is_multiple_of(8) && bytes.len().is_multiple_of(8),
            "the bitmap moves in whole words"
        );
        let (words, _) = bytes.as_chunks::<8>();
        self.merge(byte_offset / 8, words.iter().map(|word| u64::from_le_bytes(*word)), mark)
    }

    fn merge(&mut self, first_word: u64, words: impl IntoIterator<Item = u64>, mark: u8) -> u64 {
        let mut set_total = 0;
        for (index, word) in (first_word..self.word_count()).zip(words) {
            // Memory of words without bits stays untouched.
            if word == 0 {
                continue;
            }
            let old = self.words[index as usize];
            let changed = word & self.word_mask(index) & !old;
            if changed == 0 {
                continue;
            }
            self.words[index as usize] = old | changed;
            let page = index as usize / PAGE_WORDS;
            self.pages[page].set += changed.count_ones() as u16;
            set_total += u64::from(changed.count_ones());
            if mark != 0 {
                self.mark(page, mark);
            }
        }
        self.set_count += set_total;
        assert!(self.set_count <= self.bits);
        set_total
    }
}
