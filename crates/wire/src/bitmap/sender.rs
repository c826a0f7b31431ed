//! Cutting a bitmap into packets (wire spec 11.2).

use super::run_length::{self, BitWriter};
use super::statistics::TransferStatistics;
use super::{RunLengthEncoding, WORD_BITS, valid_bits};
use crate::dialect::Dialect;
use crate::packet::Packet;

/// A bitmap to read from.
pub trait BitmapSource {
    /// The word with bits `64 * index` to `64 * index + 63`, the lowest bit number in the lowest bit. Bits behind the
    /// bitmap's end may be anything.
    fn word(&self, index: u64) -> u64;

    /// The first bit at or behind `from` that is set (or clear, as `set` says), or `end` if there is none before it.
    fn find(&self, from: u64, end: u64, set: bool) -> u64 {
        let mut position = from;
        while position < end {
            let word = self.word(position / WORD_BITS);
            let wanted = if set { word } else { !word };
            let wanted = wanted >> (position % WORD_BITS);
            if wanted != 0 {
                return end.min(position + u64::from(wanted.trailing_zeros()));
            }
            position = (position / WORD_BITS + 1) * WORD_BITS;
        }
        end
    }
}

impl BitmapSource for [u64] {
    fn word(&self, index: u64) -> u64 {
        self[index as usize]
    }
}

/// Sends a bitmap: each call gives the next packet.
#[derive(Clone, Debug)]
pub struct BitmapSender {
    bits: u64,
    position: u64,
    finished: bool,
    compress: bool,
    dialect: Dialect,
    statistics: TransferStatistics,
}

impl BitmapSender {
    /// A bitmap of `bits` bits; run lengths are used if `compress` (the option `use-rle`) and the version knows them.
    pub const fn new(bits: u64, compress: bool, dialect: Dialect) -> Self {
        Self {
            bits,
            position: 0,
            finished: false,
            compress: compress && dialect.version >= 90,
            dialect,
            statistics: TransferStatistics::new(bits.div_ceil(WORD_BITS), dialect),
        }
    }

    /// The next packet, its payload appended to `payload` (at most [`Dialect::bitmap_bytes_max`] bytes); `None` when
    /// the last one has been given.
    pub fn next_packet(
        &mut self,
        bitmap: &(impl BitmapSource + ?Sized),
        payload: &mut Vec<u8>,
    ) -> Option<Packet> {
        if self.finished {
            return None;
        }
        Some(match self.compressed(bitmap, payload) {
            Some(encoding) => Packet::CompressedBitmap(encoding),
            None => {
                self.plain(bitmap, payload);
                Packet::Bitmap
            }
        })
    }

    /// What has been sent so far.
    pub const fn statistics(&self) -> &TransferStatistics {
        &self.statistics
    }

    /// Run lengths from the position on, unless they would take more room than the bits they stand for.
    fn compressed(
        &mut self,
        bitmap: &(impl BitmapSource + ?Sized),
        payload: &mut Vec<u8>,
    ) -> Option<RunLengthEncoding> {
        if !self.compress || self.position == self.bits {
            return None;
        }
        let bytes_max = self.dialect.bitmap_bytes_max() - 1;
        let starts_set = bitmap.find(self.position, self.bits, true) == self.position;
        // Counted first: of a fragmented bitmap nothing is written that would be thrown away.
        let (end, code_bits) = self.measure(bitmap, starts_set, bytes_max as u64 * 8);
        if end - self.position < code_bits.div_ceil(8) * 8 {
            return None;
        }
        let mut writer = BitWriter::new(payload, bytes_max);
        let (mut position, mut set) = (self.position, starts_set);
        while position < end {
            let next = bitmap.find(position, self.bits, !set);
            let fitted = writer.push(run_length::encode(next - position));
            debug_assert!(fitted, "measured before");
            position = next;
            set = !set;
        }
        let encoding = RunLengthEncoding::new(starts_set, writer.bits());
        self.statistics.count_compressed(writer.bytes() as usize);
        writer.finish();
        self.position = end;
        self.finished = position == self.bits;
        Some(encoding)
    }

    /// Where the last run ends that fits into a code of `bits_max` bits, and how many the code has.
    fn measure(&self, bitmap: &(impl BitmapSource + ?Sized), starts_set: bool, bits_max: u64) -> (u64, u64) {
        let (mut position, mut set, mut code_bits) = (self.position, starts_set, 0);
        while position < self.bits {
            let end = bitmap.find(position, self.bits, !set);
            assert!(end > position, "empty run at bit {position}");
            let with_run = code_bits + u64::from(run_length::code_bits(end - position));
            if with_run > bits_max {
                break;
            }
            code_bits = with_run;
            position = end;
            set = !set;
        }
        (position, code_bits)
    }

    /// Words from the one the position is in on; none at the end, which tells the peer that it is the end.
    fn plain(&mut self, bitmap: &(impl BitmapSource + ?Sized), payload: &mut Vec<u8>) {
        let words = self.bits.div_ceil(WORD_BITS);
        let first = if self.position == self.bits { words } else { self.position / WORD_BITS };
        let end = words.min(first + (self.dialect.bitmap_bytes_max() / 8) as u64);
        for index in first..end {
            let word = bitmap.word(index) & valid_bits(index, self.bits);
            payload.extend_from_slice(&word.to_le_bytes());
        }
        self.statistics.count_plain(((end - first) * 8) as usize);
        self.position = self.bits.min(end * WORD_BITS);
        self.finished = end == first;
    }
}
