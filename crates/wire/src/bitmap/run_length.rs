//! The run-length code: alternating runs of clear and set bits, each length a code word in a bit stream that fills
//! bytes from their lowest bit (wire spec 11.3).

use crate::error::WireError;

/// The only code there is, "RLE_VLI_Bits".
const CODE: u8 = 2;

/// The first byte of P_COMPRESSED_BITMAP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RunLengthEncoding {
    starts_set: bool,
    pad_bits: u8,
}

impl RunLengthEncoding {
    /// A code of `code_bits` bits whose first run is of set bits if `starts_set`.
    pub const fn new(starts_set: bool, code_bits: u64) -> Self {
        Self { starts_set, pad_bits: ((8 - code_bits % 8) % 8) as u8 }
    }

    /// Whether the first run is of set bits.
    pub const fn starts_set(self) -> bool {
        self.starts_set
    }

    /// The number of bits of the last byte that are not used.
    pub const fn pad_bits(self) -> u8 {
        self.pad_bits
    }

    pub(crate) const fn byte(self) -> u8 {
        CODE | self.pad_bits << 4 | (self.starts_set as u8) << 7
    }

    pub(crate) const fn from_byte(byte: u8) -> Result<Self, WireError> {
        if byte & 0xf != CODE {
            return Err(WireError::BitmapEncoding { encoding: byte });
        }
        Ok(Self { starts_set: byte >> 7 == 1, pad_bits: byte >> 4 & 7 })
    }
}

/// A range of run lengths and how they are written: prefix, then `run - base` in `data_bits` bits.
#[derive(Clone, Copy)]
struct Row {
    prefix: u64,
    prefix_bits: u32,
    data_bits: u32,
    base: u64,
}

const fn row(prefix: u64, prefix_bits: u32, data_bits: u32, base: u64) -> Row {
    Row { prefix, prefix_bits, data_bits, base }
}

const ROWS: [Row; 10] = [
    row(0x00, 1, 1, 1),
    row(0x01, 2, 1, 3),
    row(0x03, 3, 2, 5),
    row(0x07, 4, 3, 9),
    row(0x0f, 5, 5, 17),
    row(0x1f, 6, 8, 49),
    row(0x3f, 8, 13, 305),
    row(0x7f, 8, 21, 8497),
    row(0xbf, 8, 34, 2_105_649),
    row(0xff, 8, 56, 17_181_974_833),
];

// Each row begins where the one before ends.
const _: () = {
    let mut index = 1;
    while index < ROWS.len() {
        let before = ROWS[index - 1];
        assert!(before.base + (1 << before.data_bits) == ROWS[index].base);
        index += 1;
    }
};

/// The longest run there is a code word for.
pub(crate) const RUN_MAX: u64 = ROWS[9].base + (1 << 56) - 1;

/// A code word: its bits, the first one lowest, and how many there are (2 to 64).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CodeWord {
    pub(crate) value: u64,
    pub(crate) bits: u32,
}

/// How many bits the code words of the first rows' runs have; they are most of a fragmented bitmap's.
const SHORT_RUNS: usize = 305;
const SHORT: [u8; SHORT_RUNS] = {
    let mut bits = [0; SHORT_RUNS];
    let mut run = 1;
    while run < SHORT_RUNS {
        bits[run] = search(run as u64).bits as u8;
        run += 1;
    }
    bits
};

/// The length of the code word for a run of `run` bits, 1 to [`RUN_MAX`].
#[inline]
pub(crate) fn code_bits(run: u64) -> u32 {
    match SHORT.get(run as usize) {
        Some(bits) => u32::from(*bits),
        None => encode(run).bits,
    }
}

/// The code word for a run of `run` bits, 1 to [`RUN_MAX`].
pub(crate) fn encode(run: u64) -> CodeWord {
    assert!((1..=RUN_MAX).contains(&run), "run of {run} bits");
    search(run)
}

const fn search(run: u64) -> CodeWord {
    let mut index = ROWS.len() - 1;
    while ROWS[index].base > run {
        index -= 1;
    }
    let row = ROWS[index];
    CodeWord {
        value: (run - row.base) << row.prefix_bits | row.prefix,
        bits: row.prefix_bits + row.data_bits,
    }
}

/// The run whose code word begins at the lowest bit of `window`, and the code word's length in bits.
pub(crate) fn decode(window: u64) -> (u64, u32) {
    let row = match window.trailing_ones() {
        ones @ 0..6 => ROWS[ones as usize],
        _ => match window >> 6 & 3 {
            0 => ROWS[6],
            1 => ROWS[7],
            2 => ROWS[8],
            _ => ROWS[9],
        },
    };
    let data = window >> row.prefix_bits & (u64::MAX >> (64 - row.data_bits));
    (row.base + data, row.prefix_bits + row.data_bits)
}

/// Appends code words to a byte buffer, up to a limit. What was written is there after [`finish`](Self::finish).
#[derive(Debug)]
pub(crate) struct BitWriter<'a> {
    out: &'a mut Vec<u8>,
    bits: u64,
    bits_max: u64,
    /// The bits behind the last whole word of 64, the first one lowest; nothing above them.
    pending: u64,
}

impl<'a> BitWriter<'a> {
    pub(crate) fn new(out: &'a mut Vec<u8>, bytes_max: usize) -> Self {
        out.reserve(bytes_max);
        Self { out, bits: 0, bits_max: bytes_max as u64 * 8, pending: 0 }
    }

    /// Whether the word fitted; if not, nothing was written.
    pub(crate) fn push(&mut self, word: CodeWord) -> bool {
        let end = self.bits + u64::from(word.bits);
        if end > self.bits_max {
            return false;
        }
        let filled = self.bits % 64;
        self.pending |= word.value << filled;
        if filled + u64::from(word.bits) >= 64 {
            self.out.extend_from_slice(&self.pending.to_le_bytes());
            // Shifting by all 64 is not defined, and nothing is left then.
            self.pending = word.value.checked_shr(64 - filled as u32).unwrap_or(0);
        }
        self.bits = end;
        true
    }

    /// The number of bits written.
    pub(crate) const fn bits(&self) -> u64 {
        self.bits
    }

    /// The number of bytes they are in.
    pub(crate) const fn bytes(&self) -> u64 {
        self.bits.div_ceil(8)
    }

    /// Everything is in the buffer.
    pub(crate) fn finish(self) {
        let rest = (self.bits % 64).div_ceil(8) as usize;
        self.out.extend_from_slice(&self.pending.to_le_bytes()[..rest]);
    }
}

/// Reads code words from bytes.
#[derive(Debug)]
pub(crate) struct BitReader<'a> {
    bytes: &'a [u8],
    position: u64,
    end: u64,
}

impl<'a> BitReader<'a> {
    pub(crate) fn new(bytes: &'a [u8], pad_bits: u8) -> Self {
        Self { bytes, position: 0, end: (bytes.len() as u64 * 8).saturating_sub(u64::from(pad_bits)) }
    }

    /// The next run, `None` at the end.
    pub(crate) fn next_run(&mut self) -> Result<Option<u64>, WireError> {
        let left = self.end - self.position;
        if left == 0 {
            return Ok(None);
        }
        let window = self.window();
        let (run, bits) = decode(window);
        if u64::from(bits) > left {
            return Err(WireError::BitmapCode {
                have: left as u32,
                bits,
                window,
                left: (left / 8) as u32,
                bytes: self.bytes.len() as u32,
            });
        }
        self.position += u64::from(bits);
        Ok(Some(run))
    }

    /// The next 64 bits, zeroes behind the end.
    fn window(&self) -> u64 {
        let from = (self.position / 8) as usize;
        let mut chunk = [0; 16];
        let rest = &self.bytes[from..];
        let taken = rest.len().min(9);
        chunk[..taken].copy_from_slice(&rest[..taken]);
        (u128::from_le_bytes(chunk) >> (self.position % 8)) as u64
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Runs of every magnitude.
    fn any_run() -> impl Strategy<Value = u64> {
        (0..57_u32).prop_flat_map(|magnitude| 1 << magnitude..=RUN_MAX.min(2 << magnitude))
    }

    proptest! {
        #[test]
        fn any_runs_come_back(runs in prop::collection::vec(any_run(), 1..200), starts_set: bool) {
            let (bytes, bits) = code(&runs);
            let encoding = RunLengthEncoding::new(starts_set, bits);
            let mut reader = BitReader::new(&bytes, encoding.pad_bits());
            for run in &runs {
                prop_assert_eq!(reader.next_run(), Ok(Some(*run)));
            }
            prop_assert_eq!(reader.next_run(), Ok(None));
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..100), pad_bits in 0..8_u8) {
            let mut reader = BitReader::new(&bytes, pad_bits);
            let mut words = 0;
            while let Ok(Some(run)) = reader.next_run() {
                prop_assert!((1..=RUN_MAX).contains(&run));
                words += 1;
            }
            prop_assert!(words <= bytes.len() * 4, "{} words of at least two bits", words);
        }
    }

    fn code(runs: &[u64]) -> (Vec<u8>, u64) {
        let mut out = Vec::new();
        let mut writer = BitWriter::new(&mut out, 4079);
        assert!(runs.iter().all(|run| writer.push(encode(*run))));
        let bits = writer.bits();
        writer.finish();
        (out, bits)
    }

    /// The worked examples of wire spec 11.3: first polarity, runs, encoding byte, code.
    #[test]
    fn worked_examples() {
        for (starts_set, runs, byte, bytes) in [
            (true, &[96][..], 0xa2, &[0xdf, 0x0b][..]),
            (false, &[2038], 0x32, &[0x3f, 0xc5, 0x06]),
            (true, &[16374], 0xb2, &[0x7f, 0xc5, 0x1e, 0x00]),
            (false, &[32, 2, 2004], 0x72, &[0xef, 0xf9, 0x33, 0x6a, 0x00]),
            (
                false,
                &[1, 1, 14, 8, 232, 1, 767, 1, 1012, 1],
                0x22,
                &[0x70, 0xdd, 0xdf, 0x2d, 0x3f, 0xce, 0x81, 0x9f, 0x61, 0x01],
            ),
            (
                true,
                &[1, 2, 3, 4, 5, 8, 9, 16, 17, 48, 49, 304, 305, 8496, 8497],
                0xf2,
                &[
                    0x98, 0x8e, 0x7d, 0xb8, 0x3f, 0xf0, 0xfe, 0x07, 0xf0, 0xfd, 0xff, 0x00, 0x80, 0x9f, 0xff,
                    0xff, 0x07, 0x00, 0x00, 0x00,
                ],
            ),
        ] {
            let (encoded, bits) = code(runs);
            assert_eq!(encoded, bytes);
            let encoding = RunLengthEncoding::new(starts_set, bits);
            assert_eq!(encoding.byte(), byte);
            assert_eq!(RunLengthEncoding::from_byte(byte), Ok(encoding));
            let mut reader = BitReader::new(bytes, encoding.pad_bits());
            for run in runs {
                assert_eq!(reader.next_run(), Ok(Some(*run)));
            }
            assert_eq!(reader.next_run(), Ok(None));
        }
    }

    #[test]
    fn the_ends_of_each_row() {
        for (run, bits) in [
            (1, 2),
            (2, 2),
            (3, 3),
            (4, 3),
            (5, 5),
            (8, 5),
            (9, 7),
            (16, 7),
            (17, 10),
            (48, 10),
            (49, 14),
            (304, 14),
            (305, 21),
            (8496, 21),
            (8497, 29),
            (2_105_648, 29),
            (2_105_649, 42),
            (17_181_974_832, 42),
            (17_181_974_833, 64),
            (72_057_611_219_902_768, 64),
        ] {
            let word = encode(run);
            assert_eq!((word.bits, code_bits(run)), (bits, bits), "{run}");
            assert_eq!(decode(word.value), (run, bits));
        }
        assert_eq!(RUN_MAX, 72_057_611_219_902_768);
    }

    #[test]
    fn a_word_that_does_not_fit_is_not_begun() {
        let mut out = vec![0xaa];
        let mut writer = BitWriter::new(&mut out, 2);
        assert!(writer.push(encode(304)) && writer.push(encode(1)) && !writer.push(encode(1)));
        assert_eq!((writer.bits(), writer.bytes()), (16, 2));
        writer.finish();
        assert_eq!(out.len(), 3);
    }

    #[test]
    fn half_a_word_is_an_error() {
        let error = BitReader::new(&[0xff, 0x00], 0).next_run().unwrap_err();
        assert!(error.to_string().starts_with("bitmap decoding error: h:16 b:64"), "{error}");
        assert!(RunLengthEncoding::from_byte(0x81).is_err());
    }
}
