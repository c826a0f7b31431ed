//! Sizes of the bitmap and the form it has on disk (metadata spec 6).
//!
//! Bit `i` stands for block `i` of the data; 1 is "out of sync". On disk it is a plain little-endian stream of bits, so
//! words of 64 bits are stored little endian.

use udrbd_units::{BlockNumber, Extent, Sector};

use crate::{BLOCK_BYTES, Block};

/// 64-bit words of one 4 KiB page.
pub const PAGE_WORDS: usize = BLOCK_BYTES / 8;
/// Bits of one 4 KiB page.
pub const PAGE_BITS: u64 = BLOCK_BYTES as u64 * 8;
/// Bytes of bitmap per activity log extent.
pub const EXTENT_BYTES: usize = 128;
/// Activity log extents per 4 KiB page.
pub const PAGE_EXTENTS: u32 = (BLOCK_BYTES / EXTENT_BYTES) as u32;

/// Bits of the bitmap of a device of `size` sectors: one per block, the last of which may be short.
pub const fn bits(size: Sector) -> u64 {
    size.0.div_ceil(8)
}

/// 64-bit words of the bitmap of a device of `size` sectors.
pub const fn words(size: Sector) -> u64 {
    bits(size).div_ceil(64)
}

/// 4 KiB pages of the bitmap of a device of `size` sectors.
pub const fn pages(size: Sector) -> u64 {
    words(size).div_ceil(PAGE_WORDS as u64)
}

/// Bytes of the pages of the bitmap: what `dump-md` lists and `apply-al` may set.
pub const fn area_bytes(size: Sector) -> u64 {
    pages(size) * BLOCK_BYTES as u64
}

/// The page that holds the bit of a block.
pub const fn page_of_block(block: BlockNumber) -> u64 {
    block.0 / PAGE_BITS
}

/// The page that holds the bits of an extent.
pub const fn page_of_extent(extent: Extent) -> u64 {
    (extent.0 / PAGE_EXTENTS) as u64
}

/// The bits of the last word that belong to the device: all ones if `bits` is a multiple of 64. (The kernel takes a
/// mask of 0 there and forgets 64 bits; metadata spec 6.7.)
pub const fn last_word_mask(bits: u64) -> u64 {
    let used = bits % 64;
    if used == 0 { u64::MAX } else { (1 << used) - 1 }
}

/// Reads page `page` of a bitmap of `bits` bits into `words`; what lies behind the last bit becomes zero.
pub fn decode_page(block: &Block, page: u64, bits: u64, words: &mut [u64; PAGE_WORDS]) {
    for (word, bytes) in words.iter_mut().zip(block.as_chunks::<8>().0) {
        *word = u64::from_le_bytes(*bytes);
    }
    clear_tail(page, bits, words);
}

/// Writes words of page `page` of a bitmap of `bits` bits; what lies behind the last bit is written as zero. Fewer words
/// than a page has are filled up with zeros.
///
/// # Panics
/// If there are more words than fit a page.
pub fn encode_page(words: &[u64], page: u64, bits: u64, block: &mut Block) {
    assert!(words.len() <= PAGE_WORDS, "{} words in one page", words.len());
    block.fill(0);
    let first_bit = page * PAGE_BITS;
    for (index, (bytes, word)) in block.as_chunks_mut::<8>().0.iter_mut().zip(words).enumerate() {
        *bytes = (word & word_mask(first_bit + index as u64 * 64, bits)).to_le_bytes();
    }
}

fn word_mask(first_bit: u64, bits: u64) -> u64 {
    match bits.saturating_sub(first_bit) {
        0 => 0,
        left @ 1..64 => last_word_mask(left),
        _ => u64::MAX,
    }
}

fn clear_tail(page: u64, bits: u64, words: &mut [u64; PAGE_WORDS]) {
    let first_bit = page * PAGE_BITS;
    for (index, word) in words.iter_mut().enumerate() {
        *word &= word_mask(first_bit + index as u64 * 64, bits);
    }
}

/// Sets the 1024 bits of `extent` in its page and returns how many were clear before. Bits behind the device's last are
/// set too, as `drbdmeta` does; they are masked when read (metadata spec 5.11, 6.2).
pub fn mark_extent(block: &mut Block, extent: Extent) -> u32 {
    let start = (extent.0 % PAGE_EXTENTS) as usize * EXTENT_BYTES;
    let bytes = &mut block[start..start + EXTENT_BYTES];
    let clear = bytes.iter().map(|byte| byte.count_zeros()).sum();
    bytes.fill(0xFF);
    clear
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_round_up() {
        assert_eq!((bits(Sector(204_803)), words(Sector(204_803)), pages(Sector(204_803))), (25_601, 401, 1));
        assert_eq!((bits(Sector(0)), pages(Sector(0)), area_bytes(Sector(0))), (0, 0, 0));
        assert_eq!(pages(Sector(262_144)), 1);
        assert_eq!(pages(Sector(262_145)), 2);
        assert_eq!(last_word_mask(64), u64::MAX);
        assert_eq!(last_word_mask(1), 1);
    }

    proptest! {
        #[test]
        fn pages_lead_back_without_their_tail(
            bytes in proptest::collection::vec(any::<u8>(), BLOCK_BYTES),
            page in 0_u64..3,
            bits in 0_u64..4 * PAGE_BITS,
        ) {
            let block: Block = bytes.try_into().unwrap();
            let mut words = [0; PAGE_WORDS];
            decode_page(&block, page, bits, &mut words);
            for bit in 0..PAGE_BITS {
                let stored = block[(bit / 8) as usize] >> (bit % 8) & 1 == 1;
                let read = words[(bit / 64) as usize] >> (bit % 64) & 1 == 1;
                prop_assert_eq!(read, stored && page * PAGE_BITS + bit < bits);
            }
            let mut written = [0xAA; BLOCK_BYTES];
            encode_page(&words, page, bits, &mut written);
            let mut again = [0; PAGE_WORDS];
            decode_page(&written, page, u64::MAX, &mut again);
            prop_assert_eq!(again, words);
            encode_page(&[u64::MAX; PAGE_WORDS], page, bits, &mut written);
            let set: u64 = written.iter().map(|byte| u64::from(byte.count_ones())).sum();
            prop_assert_eq!(set, bits.saturating_sub(page * PAGE_BITS).min(PAGE_BITS));
        }
    }

    #[test]
    fn an_extent_is_128_bytes_of_its_page() {
        let mut block = [0; BLOCK_BYTES];
        block[5 * 128] = 0x0F;
        assert_eq!(mark_extent(&mut block, Extent(37)), 1020);
        assert_eq!(mark_extent(&mut block, Extent(37)), 0);
        let set: Vec<usize> = (0..BLOCK_BYTES).filter(|index| block[*index] != 0).collect();
        assert_eq!(set, (640..768).collect::<Vec<_>>());
        assert_eq!(page_of_extent(Extent(37)), 1);
    }
}
