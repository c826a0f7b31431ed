//! The exchange of bitmaps: packets of plain words or of run lengths (wire spec 11).
//!
//! [`BitmapSender`] cuts a bitmap into packets as the kernel does, [`BitmapReceiver`] merges packets into one. Both
//! work packet by packet and hold nothing but a position.

mod receiver;
mod run_length;
mod sender;
mod statistics;

pub use receiver::{BitmapReceiver, BitmapSink};
pub use run_length::RunLengthEncoding;
pub use sender::{BitmapSender, BitmapSource};
pub use statistics::TransferStatistics;

/// Bits in a word of the bitmap.
pub(crate) const WORD_BITS: u64 = 64;

/// The bits of word `index` that belong to a bitmap of `bits` bits.
pub(crate) const fn valid_bits(index: u64, bits: u64) -> u64 {
    match bits.saturating_sub(index * WORD_BITS) {
        0 => 0,
        left if left >= WORD_BITS => u64::MAX,
        left => (1 << left) - 1,
    }
}
