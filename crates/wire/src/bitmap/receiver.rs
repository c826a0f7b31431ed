//! Merging received packets into a bitmap (wire spec 11.2).

use super::run_length::BitReader;
use super::statistics::TransferStatistics;
use super::{RunLengthEncoding, WORD_BITS, valid_bits};
use crate::dialect::Dialect;
use crate::error::WireError;

/// A bitmap to merge into: bits are only ever set.
pub trait BitmapSink {
    /// Sets the bits of word `index` that `bits` has. No bit behind the bitmap's end is among them.
    fn merge_word(&mut self, index: u64, bits: u64);

    /// Sets `count` bits from `first` on.
    fn set_range(&mut self, first: u64, count: u64) {
        let end = first + count;
        let mut position = first;
        while position < end {
            let index = position / WORD_BITS;
            let next = end.min((index + 1) * WORD_BITS);
            let run = u64::MAX >> (WORD_BITS - (next - position));
            self.merge_word(index, run << (position % WORD_BITS));
            position = next;
        }
    }
}

impl BitmapSink for [u64] {
    fn merge_word(&mut self, index: u64, bits: u64) {
        self[index as usize] |= bits;
    }
}

/// Receives a bitmap: each packet is given to it in turn, until it is finished.
#[derive(Clone, Debug)]
pub struct BitmapReceiver {
    bits: u64,
    position: u64,
    finished: bool,
    dialect: Dialect,
    statistics: TransferStatistics,
}

impl BitmapReceiver {
    /// A bitmap of `bits` bits.
    pub const fn new(bits: u64, dialect: Dialect) -> Self {
        Self {
            bits,
            position: 0,
            finished: false,
            dialect,
            statistics: TransferStatistics::new(bits.div_ceil(WORD_BITS), dialect),
        }
    }

    /// Whether the whole bitmap is there.
    pub const fn is_finished(&self) -> bool {
        self.finished
    }

    /// The first bit that has not been received: how far the exchange is.
    pub const fn position(&self) -> u64 {
        self.position
    }

    /// What has been received so far.
    pub const fn statistics(&self) -> &TransferStatistics {
        &self.statistics
    }

    /// The payload of a P_BITMAP.
    ///
    /// # Errors
    /// [`WireError::BitmapSize`] if it has not as many bytes as are wanted at this point: a full packet, or what is
    /// left.
    pub fn plain(
        &mut self,
        payload: &[u8],
        bitmap: &mut (impl BitmapSink + ?Sized),
    ) -> Result<(), WireError> {
        let words = self.bits.div_ceil(WORD_BITS);
        let first = if self.position == self.bits { words } else { self.position / WORD_BITS };
        let end = words.min(first + (self.dialect.bitmap_bytes_max() / 8) as u64);
        let want = ((end - first) * 8) as usize;
        if self.finished || payload.len() != want {
            return Err(WireError::BitmapSize { want: want as u32, size: payload.len() as u32 });
        }
        for (index, bytes) in (first..end).zip(payload.as_chunks::<8>().0) {
            let bits = u64::from_le_bytes(*bytes) & valid_bits(index, self.bits);
            if bits != 0 {
                bitmap.merge_word(index, bits);
            }
        }
        self.statistics.count_plain(payload.len());
        self.position = self.bits.min(end * WORD_BITS);
        self.finished = end == first;
        Ok(())
    }

    /// The payload of a P_COMPRESSED_BITMAP.
    ///
    /// # Errors
    /// [`WireError::BitmapOverflow`] if a run goes past the end, [`WireError::BitmapCode`] if a code word is cut off.
    /// Bits of the runs before are set then, which does no harm.
    pub fn compressed(
        &mut self,
        encoding: RunLengthEncoding,
        payload: &[u8],
        bitmap: &mut (impl BitmapSink + ?Sized),
    ) -> Result<(), WireError> {
        let mut reader = BitReader::new(payload, encoding.pad_bits());
        let mut set = encoding.starts_set();
        while let Some(run) = reader.next_run()? {
            // Position and run are both far below 2^63.
            let end = self.position + run;
            if self.finished || end > self.bits {
                return Err(WireError::BitmapOverflow { end: end - 1 });
            }
            if set {
                bitmap.set_range(self.position, run);
            }
            self.position = end;
            set = !set;
        }
        self.statistics.count_compressed(payload.len());
        self.finished = self.position == self.bits;
        Ok(())
    }
}
