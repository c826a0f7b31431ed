//! Numbers with unit suffixes (configuration spec 5).

use super::OptionError;

/// The unit an option's number is stored in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// Ones: counts, times, bytes.
    Ones,
    /// KiB.
    Kibi,
    /// Sectors of 512 bytes.
    Sectors,
}

impl Scale {
    /// The letter `show` puts behind the number; empty for ones.
    pub const fn letter(self) -> &'static str {
        match self {
            Self::Ones => "",
            Self::Kibi => "k",
            Self::Sectors => "s",
        }
    }

    /// The letter of `xml-help`, which names ones as `1`.
    pub const fn prefix(self) -> char {
        match self {
            Self::Ones => '1',
            Self::Kibi => 'k',
            Self::Sectors => 's',
        }
    }

    const fn shift(self) -> u32 {
        match self {
            Self::Ones => 0,
            Self::Kibi => 10,
            Self::Sectors => 9,
        }
    }
}

/// Reads a number with at most one suffix and converts it to `scale`, rounding up.
///
/// # Errors
/// [`OptionError::NotANumber`] and [`OptionError::Overflow`].
pub fn parse_number(text: &str, scale: Scale) -> Result<u64, OptionError> {
    let not_a_number = || OptionError::NotANumber(text.to_owned());
    let digits_end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, suffix) = text.split_at(digits_end);
    if digits.is_empty() {
        return Err(not_a_number());
    }
    let suffix_shift = match suffix {
        "" => scale.shift(),
        "K" | "k" => 10,
        "M" | "m" => 20,
        "G" | "g" => 30,
        "s" => 9,
        _ => return Err(not_a_number()),
    };
    let overflow = || OptionError::Overflow(text.to_owned());
    let number: u64 = digits.parse().map_err(|_| overflow())?;
    if suffix_shift >= scale.shift() {
        number.checked_mul(1 << (suffix_shift - scale.shift())).ok_or_else(overflow)
    } else {
        Ok(number.div_ceil(1 << (scale.shift() - suffix_shift)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suffixes_are_relative_to_the_unit() {
        let cases = [
            ("30M", Scale::Kibi, 30720),
            ("30", Scale::Kibi, 30),
            ("1s", Scale::Kibi, 1),
            ("3s", Scale::Kibi, 2),
            ("1k", Scale::Ones, 1024),
            ("8G", Scale::Sectors, 16_777_216),
            ("7", Scale::Sectors, 7),
        ];
        for (text, scale, value) in cases {
            assert_eq!(parse_number(text, scale), Ok(value), "{text}");
        }
    }

    #[test]
    fn garbage_is_refused() {
        for text in ["", "k", "1T", "1kk", "-1", "1 ", "0x10"] {
            assert_eq!(parse_number(text, Scale::Ones), Err(OptionError::NotANumber(text.to_owned())));
        }
        let big = "99999999999999999999";
        assert_eq!(parse_number(big, Scale::Ones), Err(OptionError::Overflow(big.to_owned())));
        let shifted = "18446744073709551615G";
        assert_eq!(parse_number(shifted, Scale::Ones), Err(OptionError::Overflow(shifted.to_owned())));
    }
}
