//! Numbers with units: `30M`, `16s`, `60` (configuration spec 5, DRBD's `new_strtoll`).

use thiserror::Error;

/// The unit in which an option's value counts when no suffix is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Plain numbers: counts, times, sizes in bytes.
    One,
    /// KiB, or KiB per second.
    Kibi,
    /// Sectors of 512 bytes.
    Sector,
}

impl Unit {
    /// The letter DRBD prints behind a value in this unit; empty for plain numbers.
    #[must_use]
    pub fn letter(self) -> &'static str {
        match self {
            Self::One => "",
            Self::Kibi => "k",
            Self::Sector => "s",
        }
    }

    /// Binary logarithm of the unit, in bytes.
    fn shift(self) -> i32 {
        match self {
            Self::One => 0,
            Self::Kibi => 10,
            Self::Sector => 9,
        }
    }
}

/// Why a text is not a number. The texts are DRBD's own.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NumberError {
    /// Nothing was given. DRBD exits 100.
    #[error("missing number argument")]
    Missing,
    /// No digits, an unknown suffix, or something behind the suffix. DRBD exits 20.
    #[error("{0} is not a valid number")]
    Invalid(String),
    /// The value with its suffix does not fit in 64 bits. DRBD exits 20.
    #[error("{0}: out of range")]
    OutOfRange(String),
}

impl NumberError {
    /// The exit status DRBD's programs end with on this error.
    #[must_use]
    pub fn exit_status(&self) -> i32 {
        match self {
            Self::Missing => 100,
            Self::Invalid(_) | Self::OutOfRange(_) => 20,
        }
    }
}

/// Reads `text` as a number counted in `unit`.
///
/// A suffix gives the value in bytes (`K`, `M`, `G`) or sectors (`s`), which is then converted, rounding up.
/// A minus sign wraps to an unsigned 64-bit number, so that every range check fails, except one that allows -1.
///
/// # Errors
/// [`NumberError`], as described there.
pub fn parse_number(text: &str, unit: Unit) -> Result<u64, NumberError> {
    if text.is_empty() {
        return Err(NumberError::Missing);
    }
    let invalid = || NumberError::Invalid(text.to_owned());
    let body = text.trim_start_matches([' ', '\t', '\n', '\r', '\x0b', '\x0c']);
    let (negative, body) = match body.as_bytes().first() {
        Some(b'-') => (true, &body[1..]),
        Some(b'+') => (false, &body[1..]),
        _ => (false, body),
    };
    let digits = body.bytes().take_while(u8::is_ascii_digit).count();
    if digits == 0 {
        return Err(invalid());
    }
    // A number too long for 64 bits saturates, as strtoull does.
    let magnitude = body[..digits].parse::<u64>().unwrap_or(u64::MAX);
    let value = if negative && magnitude != u64::MAX { magnitude.wrapping_neg() } else { magnitude };
    let suffix_shift = match &body[digits..] {
        "" => return Ok(value),
        "K" | "k" => 10,
        "M" | "m" => 20,
        "G" | "g" => 30,
        "s" => 9,
        _ => return Err(invalid()),
    };
    let shift = suffix_shift - unit.shift();
    if shift < 0 {
        let down = shift.unsigned_abs();
        return Ok(value.wrapping_add((1_u64 << down) - 1) >> down);
    }
    let up = shift.unsigned_abs();
    if value > u64::MAX >> up {
        return Err(NumberError::OutOfRange(text.to_owned()));
    }
    Ok(value << up)
}

/// The decimal digits a text begins with, as a number: what DRBD does to numbers it does not check.
///
/// `16M` gives 16. A text without digits gives 0; one too long gives `u32::MAX`.
#[must_use]
pub fn leading_digits(text: &str) -> u32 {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    if digits == 0 { 0 } else { text[..digits].parse().unwrap_or(u32::MAX) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suffixes_are_relative_to_the_unit() {
        assert_eq!(parse_number("30M", Unit::Kibi), Ok(30720));
        assert_eq!(parse_number("30", Unit::Kibi), Ok(30));
        assert_eq!(parse_number("1M", Unit::Sector), Ok(2048));
        assert_eq!(parse_number("8G", Unit::Sector), Ok(16_777_216));
        assert_eq!(parse_number("1k", Unit::One), Ok(1024));
        assert_eq!(parse_number("2s", Unit::One), Ok(1024));
    }

    #[test]
    fn conversion_rounds_up() {
        assert_eq!(parse_number("1s", Unit::Kibi), Ok(1));
        assert_eq!(parse_number("3s", Unit::Kibi), Ok(2));
    }

    #[test]
    fn garbage_is_refused_in_drbds_words() {
        for text in ["x", "1T", "1kk", "5 k", "k", "--1"] {
            assert_eq!(
                parse_number(text, Unit::One).unwrap_err().to_string(),
                format!("{text} is not a valid number")
            );
        }
        assert_eq!(parse_number("", Unit::One), Err(NumberError::Missing));
        assert_eq!(
            parse_number("99999999999999G", Unit::One).unwrap_err().to_string(),
            "99999999999999G: out of range"
        );
    }

    #[test]
    fn a_minus_sign_wraps() {
        assert_eq!(parse_number("-1", Unit::One), Ok(u64::MAX));
        assert_eq!(parse_number("-5", Unit::Kibi), Ok(u64::MAX - 4));
    }

    #[test]
    fn unchecked_numbers_are_their_leading_digits() {
        assert_eq!(leading_digits("16M"), 16);
        assert_eq!(leading_digits("0006"), 6);
        assert_eq!(leading_digits("x"), 0);
    }
}
