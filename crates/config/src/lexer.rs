//! The scanner: bytes to tokens, without context; the longest match wins (configuration spec 2).

use crate::token::{TokenKind, classify_word};

/// A bare word has at most this many characters.
const WORD_LENGTH_MAX: usize = 128;
/// A quoted text has at most this many characters, an escaped one counting as one.
const QUOTED_LENGTH_MAX: usize = 255;

/// One token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// What it is.
    pub kind: TokenKind,
    /// Its text; of a well-formed quoted text what is between the quotes, without escapes.
    pub text: String,
}

/// Reads tokens from a text.
#[derive(Debug, Clone)]
pub struct Lexer {
    text: Vec<u8>,
    position: usize,
    line: u32,
}

impl Lexer {
    /// Starts at the first line of a text.
    #[must_use]
    pub fn new(text: Vec<u8>) -> Self {
        Self::starting_at(text, 1)
    }

    /// Starts at another line, for a text that continues another.
    #[must_use]
    pub fn starting_at(text: Vec<u8>, line: u32) -> Self {
        Self { text, position: 0, line }
    }

    /// The line of the last token: one more than the newlines passed.
    #[must_use]
    pub fn line(&self) -> u32 {
        self.line
    }

    /// The next token. At the end of the text, again and again, [`TokenKind::EndOfFile`].
    pub fn next_token(&mut self) -> Token {
        self.skip_space();
        let rest = &self.text[self.position..];
        let (kind, length) = match rest.first() {
            None => return Token { kind: TokenKind::EndOfFile, text: String::new() },
            Some(b'"') => quoted(rest),
            Some(_) => unquoted(rest),
        };
        let raw = &rest[..length];
        let text = if kind == TokenKind::Word && raw.first() == Some(&b'"') {
            String::from_utf8_lossy(&unescape(raw)).into_owned()
        } else {
            String::from_utf8_lossy(raw).into_owned()
        };
        self.position += length;
        Token { kind, text }
    }

    fn skip_space(&mut self) {
        while let Some(byte) = self.text.get(self.position) {
            match byte {
                b'\n' => self.line += 1,
                b' ' | b'\t' | b'\r' => {}
                b'#' => {
                    let rest = &self.text[self.position..];
                    let length = rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len());
                    self.position += length;
                    continue;
                }
                _ => return,
            }
            self.position += 1;
        }
    }
}

/// The token that starts with a double quote, and its length.
fn quoted(rest: &[u8]) -> (TokenKind, usize) {
    let mut position = 1;
    let mut characters = 0;
    // The longest broken text so far: one that ends with a backslash or a newline.
    let mut unterminated = 0;
    while let Some(byte) = rest.get(position) {
        if *byte == b'"' {
            return (TokenKind::Word, position + 1);
        }
        if characters == QUOTED_LENGTH_MAX && *byte != b'\n' {
            return (TokenKind::QuotedTooLong, position + 1);
        }
        let step = match (byte, rest.get(position + 1)) {
            (b'\n', _) | (b'\\', None | Some(b'\n')) => {
                unterminated = position + 1;
                break;
            }
            (b'\\', Some(_)) => {
                unterminated = position + 1;
                2
            }
            _ => 1,
        };
        position += step;
        characters += 1;
    }
    if unterminated > 0 { (TokenKind::QuotedUnterminated, unterminated) } else { (TokenKind::Other, 1) }
}

/// What a quoted text stands for: quotes go, a backslash goes and keeps what follows it.
fn unescape(raw: &[u8]) -> Vec<u8> {
    let mut text = Vec::with_capacity(raw.len());
    let mut bytes = raw.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => {}
            b'\\' => text.extend(bytes.next()),
            _ => text.push(*byte),
        }
    }
    text
}

/// The token that does not start with a double quote, and its length.
fn unquoted(rest: &[u8]) -> (TokenKind, usize) {
    let run = rest.iter().take(WORD_LENGTH_MAX + 1).take_while(|byte| is_word_byte(**byte)).count();
    let ipv6 = ipv6_length(rest);
    if ipv6 > 0 && ipv6 >= run {
        return (TokenKind::Ipv6Address, ipv6);
    }
    if run > WORD_LENGTH_MAX {
        return (TokenKind::WordTooLong, run);
    }
    if run == 0 {
        let byte = rest[0];
        let punctuation = matches!(byte, b'{' | b'}' | b';' | b'[' | b']' | b':');
        return (if punctuation { TokenKind::Punctuation(byte) } else { TokenKind::Other }, 1);
    }
    let word = std::str::from_utf8(&rest[..run]).unwrap_or("");
    let kind = if is_ipv4(word) {
        TokenKind::Ipv4Address
    } else if is_integer(word) {
        TokenKind::Integer
    } else {
        classify_word(word)
    };
    (kind, run)
}

fn is_word_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'/' | b'.' | b'_' | b'-')
}

/// Four groups of one to three digits.
fn is_ipv4(word: &str) -> bool {
    let group = |text: &str| (1..=3).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    word.split('.').count() == 4 && word.split('.').all(group)
}

/// One to eight digits and at most one suffix letter.
fn is_integer(word: &str) -> bool {
    let digits = word.strip_suffix(['M', 'K', 'G', 's']).unwrap_or(word);
    (1..=8).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit())
}

/// The length of the longest IPv6 address `rest` begins with, 0 if it begins with none.
///
/// The form is looser than an address: up to six groups, a colon, perhaps a group, a colon, up to six groups,
/// perhaps a scope; or `::ffff:` and an IPv4 address.
fn ipv6_length(rest: &[u8]) -> usize {
    let mut best = mapped_ipv4_length(rest);
    let mut starts = vec![0];
    starts.extend(group_ends(rest));
    for left in starts {
        if rest.get(left) != Some(&b':') {
            continue;
        }
        let middle = hex_digits(&rest[left + 1..]);
        for gap in [0, middle] {
            let second_colon = left + 1 + gap;
            if rest.get(second_colon) != Some(&b':') {
                continue;
            }
            let right = &rest[second_colon + 1..];
            let length = group_ends(right).last().copied().unwrap_or(0);
            let end = second_colon + 1 + length;
            best = best.max(end + scope_length(&rest[end..]));
        }
    }
    best
}

/// The ends of one group, two groups, ... up to six groups joined by colons.
fn group_ends(bytes: &[u8]) -> Vec<usize> {
    let mut ends = Vec::new();
    let mut position = 0;
    while ends.len() < 6 {
        let digits = hex_digits(&bytes[position..]);
        if digits == 0 {
            break;
        }
        ends.push(position + digits);
        if bytes.get(position + digits) != Some(&b':') {
            break;
        }
        position += digits + 1;
    }
    ends
}

/// How many of the first four bytes are hexadecimal digits.
fn hex_digits(bytes: &[u8]) -> usize {
    bytes.iter().take(4).take_while(|byte| byte.is_ascii_hexdigit()).count()
}

/// The length of `%SCOPE`, 0 if there is none.
fn scope_length(bytes: &[u8]) -> usize {
    if bytes.first() != Some(&b'%') {
        return 0;
    }
    match bytes[1..].iter().take(WORD_LENGTH_MAX).take_while(|byte| is_word_byte(**byte)).count() {
        0 => 0,
        name => name + 1,
    }
}

/// The length of `::ffff:1.2.3.4`, 0 if it is not that.
fn mapped_ipv4_length(rest: &[u8]) -> usize {
    let prefix = rest.len() >= 7 && rest.starts_with(b"::") && rest[2..7].eq_ignore_ascii_case(b"ffff:");
    if !prefix {
        return 0;
    }
    let mut position = 7;
    for group in 0..4 {
        let digits = rest[position..].iter().take(3).take_while(|byte| byte.is_ascii_digit()).count();
        if digits == 0 {
            return 0;
        }
        position += digits;
        if group < 3 {
            if rest.get(position) != Some(&b'.') {
                return 0;
            }
            position += 1;
        }
    }
    position
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::token::Keyword;

    fn tokens(text: &str) -> Vec<(TokenKind, String)> {
        let mut lexer = Lexer::new(text.as_bytes().to_vec());
        std::iter::from_fn(|| {
            let token = lexer.next_token();
            (token.kind != TokenKind::EndOfFile).then_some((token.kind, token.text))
        })
        .collect()
    }

    fn kinds(text: &str) -> Vec<TokenKind> {
        tokens(text).into_iter().map(|(kind, _)| kind).collect()
    }

    #[test]
    fn the_longest_match_wins() {
        assert_eq!(kinds("on on-x"), [TokenKind::Keyword(Keyword::On), TokenKind::Word]);
        assert_eq!(kinds("disk/dev/sdb1"), [TokenKind::Word]);
        assert_eq!(kinds("disk\"/dev/sdb1\""), [TokenKind::Keyword(Keyword::Disk), TokenKind::Word]);
        assert_eq!(
            kinds("10.9.1.1:7788"),
            [TokenKind::Ipv4Address, TokenKind::Punctuation(b':'), TokenKind::Integer]
        );
        assert_eq!(kinds("fd00::1:7788"), [TokenKind::Ipv6Address]);
        assert_eq!(kinds("fe80::1%eth0]"), [TokenKind::Ipv6Address, TokenKind::Punctuation(b']')]);
        assert_eq!(tokens("::ffff:10.9.1.1")[0], (TokenKind::Ipv6Address, "::ffff:10.9.1.1".to_owned()));
    }

    #[test]
    fn integers_have_eight_digits_and_upper_case_suffixes() {
        assert_eq!(kinds("30M 12345678 16s"), [TokenKind::Integer; 3]);
        assert_eq!(kinds("30m 1k 60ms 123456789 -1"), [TokenKind::Word; 5]);
    }

    #[test]
    fn quoting_makes_words() {
        assert_eq!(
            tokens(r#""on" "a\"b\\c\td" "42""#),
            [
                (TokenKind::Word, "on".to_owned()),
                (TokenKind::Word, r#"a"b\ctd"#.to_owned()),
                (TokenKind::Word, "42".to_owned()),
            ]
        );
    }

    #[test]
    fn broken_words_are_tokens_of_their_own() {
        assert_eq!(kinds(&"a".repeat(129)), [TokenKind::WordTooLong]);
        assert_eq!(kinds(&"a".repeat(128)), [TokenKind::Word]);
        assert_eq!(kinds(&format!("\"{}\"", "a".repeat(255))), [TokenKind::Word]);
        assert_eq!(kinds(&format!("\"{}\"", "a".repeat(256)))[0], TokenKind::QuotedTooLong);
        assert_eq!(kinds("\"abc\ndef")[0], TokenKind::QuotedUnterminated);
        assert_eq!(kinds("\"abc")[0], TokenKind::Other);
    }

    #[test]
    fn lines_are_counted_and_comments_skipped() {
        let mut lexer = Lexer::new(b"a # { \"\n\r\n\tb;#x\nc".to_vec());
        for (text, line) in [("a", 1), ("b", 3), (";", 3), ("c", 4)] {
            assert_eq!(lexer.next_token().text, text);
            assert_eq!(lexer.line(), line);
        }
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_become_tokens_and_an_end(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..400)) {
            let mut lexer = Lexer::new(bytes.clone());
            for _ in 0..=bytes.len() {
                if lexer.next_token().kind == TokenKind::EndOfFile {
                    return Ok(());
                }
            }
            proptest::prop_assert!(false, "more tokens than bytes");
        }
    }
}
