//! What an exchange of bitmaps cost.

use std::fmt;

use crate::dialect::Dialect;

/// Bytes and packets of one direction of a bitmap exchange, for DRBD's line about it (wire spec 11.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransferStatistics {
    /// Bytes in plain packets, headers included.
    pub plain_bytes: u64,
    /// Plain packets.
    pub plain_packets: u64,
    /// Bytes in compressed packets, headers included.
    pub compressed_bytes: u64,
    /// Compressed packets.
    pub compressed_packets: u64,
    words: u64,
    dialect: Dialect,
}

impl TransferStatistics {
    pub(crate) const fn new(words: u64, dialect: Dialect) -> Self {
        Self { plain_bytes: 0, plain_packets: 0, compressed_bytes: 0, compressed_packets: 0, words, dialect }
    }

    pub(crate) fn count_plain(&mut self, payload_bytes: usize) {
        self.plain_packets += 1;
        self.plain_bytes += (self.dialect.header_bytes() + payload_bytes) as u64;
    }

    pub(crate) fn count_compressed(&mut self, code_bytes: usize) {
        self.compressed_packets += 1;
        self.compressed_bytes += (self.dialect.header_bytes() + 1 + code_bytes) as u64;
    }

    /// What the bitmap would have cost without compression. DRBD divides the number of words by the bytes of a
    /// packet here, which counts too few headers; the line is to be the same.
    fn all_plain(&self) -> u64 {
        let headers = self.words.div_ceil(self.dialect.bitmap_bytes_max() as u64) + 1;
        self.dialect.header_bytes() as u64 * headers + self.words * 8
    }

    /// Whether anything was saved: only then does DRBD log the line.
    pub fn saved_anything(&self) -> bool {
        let total = self.plain_bytes + self.compressed_bytes;
        total > 0 && total < self.all_plain()
    }
}

/// The line without its first word, `send` or `receive`.
impl fmt::Display for TransferStatistics {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let total = self.plain_bytes + self.compressed_bytes;
        let permille = 1000 - (total * 1000 / self.all_plain().max(1)).min(1000);
        write!(
            formatter,
            "bitmap stats [Bytes(packets)]: plain {}({}), RLE {}({}), total {total}; compression: {}.{}%",
            self.plain_bytes,
            self.plain_packets,
            self.compressed_bytes,
            self.compressed_packets,
            permille / 10,
            permille % 10,
        )
    }
}
