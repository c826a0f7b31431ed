//! Reads the text form of metadata ([`crate::dump`]; metadata spec 9.5, grammar of `restore-md`).

use std::fmt;

use udrbd_units::{GenerationId, Sector};

use crate::layout::Striping;
use crate::superblock::BM_BYTES_PER_BIT;
use crate::{BLOCK_BYTES, Block, Flags, Superblock};

/// A text that is no dump. `Display` is what `drbdmeta` prints, which may be several lines.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ParseError(String);

/// What a dump says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParsedDump {
    /// Identifiers, flags and sizes. The offsets are 0: they are computed for the device that is written to
    /// ([`Superblock::set_layout`]).
    pub superblock: Superblock,
    /// The striping of the activity log.
    pub striping: Striping,
    /// The words of the bitmap.
    pub bitmap: BitmapWords,
}

/// The bitmap of a dump: runs of equal 64-bit words, as the text has them.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct BitmapWords(Vec<(u64, u64)>);

impl BitmapWords {
    /// The number of words; `u64::MAX` if the text claims more.
    pub fn len(&self) -> u64 {
        self.0.iter().fold(0, |sum: u64, (times, _)| sum.saturating_add(*times))
    }

    /// Whether there are no words.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bitmap as pages, one after the other without end: behind the last word come zeros.
    pub fn pages(&self) -> impl Iterator<Item = Block> + '_ {
        let mut runs = self.0.iter().copied();
        let mut run = (0, 0);
        std::iter::from_fn(move || {
            let mut page = [0; BLOCK_BYTES];
            for bytes in page.as_chunks_mut::<8>().0 {
                while run.0 == 0 {
                    match runs.next() {
                        Some(next) => run = next,
                        None => return Some(page),
                    }
                }
                run.0 -= 1;
                *bytes = u64::to_le_bytes(run.1);
            }
            Some(page)
        })
    }
}

/// A parser in two steps, as `drbdmeta` asks its questions in between.
#[derive(Clone, Debug)]
pub struct DumpParser<'a> {
    scanner: Scanner<'a>,
}

impl<'a> DumpParser<'a> {
    /// Parses `text`.
    pub const fn new(text: &'a [u8]) -> Self {
        Self { scanner: Scanner { text, line: 1 } }
    }

    /// The first statement: the format must be v08.
    ///
    /// # Errors
    /// [`ParseError`].
    pub fn version(&mut self) -> Result<(), ParseError> {
        self.expect(Wanted::Keyword("version"))?;
        let Token::String(version) = self.expect(Wanted::String)? else { return Err(self.internal()) };
        if version != "v08" {
            return Err(ParseError(format!("dump is '{version}' you requested 'v08'.")));
        }
        self.semicolon()
    }

    /// All that follows the version, to the end of the text.
    ///
    /// # Errors
    /// [`ParseError`].
    pub fn body(mut self) -> Result<ParsedDump, ParseError> {
        self.expect(Wanted::Keyword("uuid"))?;
        self.expect(Wanted::Operator('{'))?;
        let mut ids = [GenerationId::NONE; 4];
        for id in &mut ids {
            *id = GenerationId(self.statement(Wanted::U64)?);
        }
        self.expect(Wanted::Keyword("flags"))?;
        let flags = Flags(self.statement(Wanted::U32)? as u32);
        self.expect(Wanted::Operator('}'))?;
        let la_size_sect = Sector(self.named("la-size-sect", Wanted::Number)?);
        let bytes_per_bit = self.named("bm-byte-per-bit", Wanted::Number)?;
        check_bytes_per_bit(bytes_per_bit)?;
        let device_uuid = self.named("device-uuid", Wanted::U64)?;
        let la_peer_max_bio_size = self.named("la-peer-max-bio-size", Wanted::Number)? as u32;
        let stripes = self.named("al-stripes", Wanted::Number)? as u32;
        let stripe_size_4k = self.named("al-stripe-size-4k", Wanted::Number)? as u32;
        let bitmap = self.bitmap()?;
        self.expect(Wanted::End)?;
        let mut superblock = Superblock::decode(&[0; BLOCK_BYTES]);
        superblock.current = ids[0];
        superblock.bitmap = ids[1];
        superblock.history = [ids[2], ids[3]];
        superblock.flags = flags;
        superblock.magic = crate::Magic::V08;
        superblock.la_size_sect = la_size_sect;
        superblock.bm_bytes_per_bit = BM_BYTES_PER_BIT;
        superblock.al_nr_extents = crate::superblock::AL_NR_EXTENTS_FRESH;
        superblock.device_uuid = device_uuid;
        superblock.la_peer_max_bio_size = la_peer_max_bio_size;
        Ok(ParsedDump { superblock, striping: Striping { stripes, stripe_size_4k }, bitmap })
    }

    fn bitmap(&mut self) -> Result<BitmapWords, ParseError> {
        self.expect(Wanted::Keyword("bm"))?;
        self.expect(Wanted::Operator('{'))?;
        let mut runs = Vec::new();
        loop {
            match self.scanner.next_token() {
                Token::U64(word) => {
                    self.semicolon()?;
                    runs.push((1, word));
                }
                Token::Number(times) => {
                    self.expect(Wanted::Keyword("times"))?;
                    runs.push((times, self.statement(Wanted::U64)?));
                }
                Token::Operator('}') => return Ok(BitmapWords(runs)),
                other => {
                    let wanted = "repeat count, 16-digit hex number, or closing brace (})";
                    return Err(self.unexpected(wanted, &other));
                }
            }
        }
    }

    fn named(&mut self, keyword: &'static str, value: Wanted) -> Result<u64, ParseError> {
        self.expect(Wanted::Keyword(keyword))?;
        self.statement(value)
    }

    fn statement(&mut self, value: Wanted) -> Result<u64, ParseError> {
        let token = self.expect(value)?;
        let (Token::U64(number) | Token::U32(number) | Token::Number(number)) = token else {
            return Err(self.internal());
        };
        self.semicolon()?;
        Ok(number)
    }

    fn semicolon(&mut self) -> Result<(), ParseError> {
        self.expect(Wanted::Operator(';')).map(|_| ())
    }

    fn expect(&mut self, wanted: Wanted) -> Result<Token<'a>, ParseError> {
        let token = self.scanner.next_token();
        let matches = match (&token, wanted) {
            (Token::Operator(found), Wanted::Operator(operator)) => *found == operator,
            (Token::Keyword(found), Wanted::Keyword(keyword)) => *found == keyword,
            (Token::String(_), Wanted::String)
            | (Token::U64(_), Wanted::U64)
            | (Token::U32(_), Wanted::U32)
            | (Token::Number(_), Wanted::Number)
            | (Token::End, Wanted::End) => true,
            _ => false,
        };
        if matches { Ok(token) } else { Err(self.unexpected(&wanted.to_string(), &token)) }
    }

    fn internal(&self) -> ParseError {
        ParseError(format!("Parse error in line {}", self.scanner.line))
    }

    fn unexpected(&self, wanted: &str, found: &Token<'_>) -> ParseError {
        let line = self.scanner.line;
        let first = match found {
            Token::Invalid { what, text } => format!("line {line}: {what}: {text} ...\n"),
            _ => String::new(),
        };
        let seen = match found {
            Token::End => ", but end of file encountered".to_owned(),
            Token::Operator(operator @ ('[' | ']')) => {
                format!("; got token value {} (this should never happen!)", *operator as u32)
            }
            Token::Operator(operator) => format!(", not '{operator}'"),
            Token::Number(_) | Token::U32(_) | Token::U64(_) => ", not some number".to_owned(),
            Token::String(text) | Token::Keyword(text) => format!(", not '{text}'"),
            Token::Invalid { .. } => String::new(),
            Token::InvalidByte(byte) => {
                format!("; got invalid input character '\\x{byte:02x}' [{}]", char::from(*byte))
            }
        };
        // A text with a leading blank stands for itself.
        let expected = if wanted.starts_with(' ') { ":" } else { " expected" };
        ParseError(format!("{first}Parse error in line {line}: {wanted}{expected}{seen}"))
    }
}

fn check_bytes_per_bit(value: u64) -> Result<(), ParseError> {
    if value < 4096 || !value.is_power_of_two() {
        let text = "Invalid value for bm-byte-per-bit: value must be a power-of-two multiple of 4096";
        return Err(ParseError(text.to_owned()));
    }
    if value != u64::from(BM_BYTES_PER_BIT) {
        // The original writes such metadata, which then cannot be attached.
        return Err(ParseError(format!(
            "unexpected bm_bytes_per_bit: {value} (expected {BM_BYTES_PER_BIT})"
        )));
    }
    Ok(())
}

/// What the grammar wants next.
#[derive(Clone, Copy, Debug)]
enum Wanted {
    Operator(char),
    Keyword(&'static str),
    String,
    U64,
    U32,
    Number,
    End,
}

impl fmt::Display for Wanted {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Operator(';') => "semicolon (;)",
            Self::Operator('{') => "opening brace ({)",
            Self::Operator('}') => "closing brace (})",
            // The original has no name for these three.
            Self::Operator(_)
            | Self::Keyword("la-peer-max-bio-size" | "al-stripes" | "al-stripe-size-4k") => {
                " invalid/unexpected token!"
            }
            Self::Keyword(keyword) => return write!(formatter, "keyword '{keyword}'"),
            Self::String => "short quoted string (\"..up to 20 characters, no newline..\")",
            Self::U64 => "a 16-digit hex number",
            Self::U32 => "an 8-digit hex number",
            Self::Number => "number ([0-9], up to 20 digits)",
            Self::End => "end of file",
        })
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token<'a> {
    Operator(char),
    Keyword(&'a str),
    String(&'a str),
    U64(u64),
    U32(u64),
    Number(u64),
    Invalid { what: &'static str, text: &'a str },
    InvalidByte(u8),
    End,
}

const KEYWORDS: [&str; 22] = [
    "gc",
    "bm",
    "uuid",
    "version",
    "la-size-sect",
    "bm-byte-per-bit",
    "device-uuid",
    "times",
    "flags",
    "al-stripes",
    "al-stripe-size-4k",
    "la-peer-max-bio-size",
    "node-id",
    "current-uuid",
    "bitmap",
    "bitmap-uuid",
    "bitmap-dagtag",
    "history-uuids",
    "peer",
    "hash",
    "max-peers",
    "bitmap-index",
];

/// The longest run of word characters that is one token.
const WORD_MAX: usize = 100;
/// The longest quoted text.
const STRING_MAX: usize = 20;

#[derive(Clone, Debug)]
struct Scanner<'a> {
    text: &'a [u8],
    line: u32,
}

impl<'a> Scanner<'a> {
    fn next_token(&mut self) -> Token<'a> {
        self.skip_blanks();
        let Some(first) = self.text.first().copied() else { return Token::End };
        match first {
            b'{' | b'}' | b';' | b'[' | b']' => {
                self.take(1);
                Token::Operator(char::from(first))
            }
            b'"' => self.string(),
            _ if is_word(first) => {
                let length = self.text.iter().take(WORD_MAX).take_while(|byte| is_word(**byte)).count();
                classify(self.take(length))
            }
            _ => {
                self.take(1);
                Token::InvalidByte(first)
            }
        }
    }

    fn skip_blanks(&mut self) {
        while let Some(byte) = self.text.first() {
            match byte {
                b'\n' => self.line += 1,
                b' ' | b'\r' | b'\t' => {}
                b'#' => {
                    let end = self.text.iter().position(|byte| *byte == b'\n').unwrap_or(self.text.len());
                    self.text = &self.text[end..];
                    continue;
                }
                _ => return,
            }
            self.text = &self.text[1..];
        }
    }

    fn string(&mut self) -> Token<'a> {
        let inside = self.text[1..]
            .iter()
            .take(STRING_MAX)
            .take_while(|byte| !matches!(byte, b'"' | b'\r' | b'\n'))
            .count();
        let closed = self.text.get(inside + 1) == Some(&b'"');
        let text = self.take(inside + 1 + usize::from(closed));
        if closed && inside > 0 {
            Token::String(text.get(1..=inside).unwrap_or_default())
        } else {
            Token::Invalid { what: "invalid string", text }
        }
    }

    /// Takes bytes that hold no newline. What is not UTF-8 is cut off: it only appears in messages.
    fn take(&mut self, length: usize) -> &'a str {
        let (taken, rest) = self.text.split_at(length);
        self.text = rest;
        taken.utf8_chunks().next().map_or("", |chunk| chunk.valid())
    }
}

const fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_'
}

fn classify(word: &str) -> Token<'_> {
    if let Some(digits) = word.strip_prefix("0x")
        && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
        && digits.len() <= 17
    {
        return match (digits.len(), u64::from_str_radix(digits, 16)) {
            (16, Ok(number)) => Token::U64(number),
            (8, Ok(number)) => Token::U32(number),
            _ => Token::Invalid { what: "invalid hex number (only 8 or 16 hex digits accepted)", text: word },
        };
    }
    if word.bytes().all(|byte| byte.is_ascii_digit()) && word.len() <= 20 {
        return match word.parse() {
            Ok(number) if word.len() <= 19 => Token::Number(number),
            _ => Token::Invalid { what: "number too big", text: word },
        };
    }
    match KEYWORDS.iter().find(|keyword| **keyword == word) {
        Some(keyword) => Token::Keyword(keyword),
        None => Token::Invalid { what: "unknown token", text: word },
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn error(text: &str) -> String {
        let mut parser = DumpParser::new(text.as_bytes());
        let version = parser.version();
        version.and_then(|()| parser.body()).unwrap_err().to_string()
    }

    #[test]
    fn errors_have_the_words_of_the_original() {
        assert_eq!(
            error("version \"v08\";\nfoo"),
            "line 2: unknown token: foo ...\nParse error in line 2: keyword 'uuid' expected"
        );
        assert_eq!(
            error("version \"v08\";\nuuid { 0x1;"),
            "line 2: invalid hex number (only 8 or 16 hex digits accepted): 0x1 ...\n\
             Parse error in line 2: a 16-digit hex number expected"
        );
        assert_eq!(
            error(""),
            "Parse error in line 1: keyword 'version' expected, but end of file encountered"
        );
        assert_eq!(error("version \"v09\";"), "dump is 'v09' you requested 'v08'.");
        assert_eq!(
            error("version \"v08\" uuid"),
            "Parse error in line 1: semicolon (;) expected, not 'uuid'"
        );
        assert_eq!(
            error("version ;"),
            "Parse error in line 1: short quoted string (\"..up to 20 characters, no newline..\") expected, not ';'"
        );
        assert_eq!(
            error("version \"v08\" %"),
            "Parse error in line 1: semicolon (;) expected; got invalid input character '\\x25' [%]"
        );
        assert_eq!(
            error("version \"v08\"; uuid 12"),
            "Parse error in line 1: opening brace ({) expected, not some number"
        );
    }

    #[test]
    fn runs_are_unfolded_page_by_page() {
        let words = BitmapWords(vec![(511, 1), (2, 0xFF00), (0, 7), (1, 3)]);
        assert_eq!(words.len(), 514);
        let pages: Vec<Block> = words.pages().take(3).collect();
        assert_eq!(pages[0][510 * 8], 1);
        assert_eq!(pages[0][511 * 8 + 1], 0xFF);
        assert_eq!(pages[1][..17], [0, 0xFF, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(pages[2], [0; BLOCK_BYTES]);
    }

    proptest! {
        #[test]
        fn any_text_is_an_error_or_a_dump(text in "[ -~\\n]{0,200}") {
            let mut parser = DumpParser::new(text.as_bytes());
            let _ = parser.version().and_then(|()| parser.body());
        }

        #[test]
        fn any_tail_is_an_error_or_a_dump(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = DumpParser::new(&bytes).body();
        }

        #[test]
        fn what_is_dumped_is_read(
            runs in proptest::collection::vec((1_usize..40, prop_oneof![Just(0_u64), Just(u64::MAX), any::<u64>()]), 1..40),
        ) {
            let mut bytes: Vec<u8> = runs
                .iter()
                .flat_map(|(times, word)| std::iter::repeat_n(word.to_le_bytes(), *times).flatten())
                .collect();
            bytes.resize(bytes.len().next_multiple_of(BLOCK_BYTES), 0);
            let mut writer = crate::dump::BitmapWriter::new(Vec::new()).unwrap();
            for part in bytes.chunks(32) {
                writer.push(part).unwrap();
            }
            let text = writer.finish().unwrap();
            let words = DumpParser::new(&text).bitmap().unwrap();
            prop_assert_eq!(words.len() as usize * 8, bytes.len());
            let pages: Vec<u8> = words.pages().take(bytes.len() / BLOCK_BYTES).flatten().collect();
            prop_assert_eq!(pages, bytes);
        }
    }
}
