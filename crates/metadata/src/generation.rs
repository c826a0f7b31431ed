//! The texts about generation identifiers: `get-gi`, `show-gi`, `dstate`, and the argument of `set-gi`
//! (metadata spec 9.5).

use std::fmt::Write as _;

use udrbd_units::{DiskState, GenerationId, Sector};

use crate::{Flags, Superblock};

/// The flags of the text form, in its order.
const FLAG_ORDER: [Flags; 7] = [
    Flags::CONSISTENT,
    Flags::WAS_UP_TO_DATE,
    Flags::PRIMARY_IND,
    Flags::CONNECTED_IND,
    Flags::FULL_SYNC,
    Flags::PEER_OUT_DATED,
    Flags::CRASHED_PRIMARY,
];

/// The identifiers and flags of a device, from its superblock or from a running device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Generation {
    /// The generation of the data held here.
    pub current: GenerationId,
    /// The generation the bitmap describes the difference to.
    pub bitmap: GenerationId,
    /// Former bitmap identifiers, younger first.
    pub history: [GenerationId; 2],
    /// See [`Flags`].
    pub flags: Flags,
}

impl From<&Superblock> for Generation {
    fn from(superblock: &Superblock) -> Self {
        Self {
            current: superblock.current,
            bitmap: superblock.bitmap,
            history: superblock.history,
            flags: superblock.flags,
        }
    }
}

impl Generation {
    /// The line `get-gi` prints, without its end.
    pub fn line(&self) -> String {
        let mut line = format!("{}:{}:{}:{}", self.current, self.bitmap, self.history[0], self.history[1]);
        for flag in FLAG_ORDER {
            line.push_str(if self.flags.contains(flag) { ":1" } else { ":0" });
        }
        line
    }

    /// What `drbdsetup show-gi` prints: the line with its legend, and the flags in words.
    pub fn show(&self) -> String {
        let mut text = String::from(LEGEND_ABOVE);
        text.push_str(&self.line());
        text.push('\n');
        text.push_str(LEGEND_BELOW);
        text.push_str("flags:");
        let has = |flag| self.flags.contains(flag);
        if has(Flags::CRASHED_PRIMARY) {
            text.push_str(" crashed");
        }
        text.push_str(if has(Flags::PRIMARY_IND) { " Primary, " } else { " Secondary, " });
        text.push_str(if has(Flags::CONNECTED_IND) { "Connected, " } else { "StandAlone, " });
        text.push_str(match (has(Flags::CONSISTENT), has(Flags::WAS_UP_TO_DATE)) {
            (false, _) => "Inconsistent",
            (true, false) => "Outdated",
            (true, true) => "UpToDate",
        });
        if has(Flags::FULL_SYNC) {
            text.push_str(", need full sync");
        }
        if has(Flags::PEER_OUT_DATED) {
            text.push_str(", peer Outdated");
        }
        text.push_str("\nmeta-data: ");
        text.push_str(if has(Flags::AL_CLEAN) { "clean\n" } else { "need apply-al\n" });
        text
    }

    /// The disk state an offline device would have, as `drbdmeta dstate` prints it.
    pub const fn disk_state(&self) -> DiskState {
        if !self.flags.contains(Flags::CONSISTENT) {
            DiskState::Inconsistent
        } else if !self.flags.contains(Flags::WAS_UP_TO_DATE) {
            DiskState::Outdated
        } else if self.flags.contains(Flags::PEER_OUT_DATED) {
            DiskState::UpToDate
        } else {
            DiskState::Consistent
        }
    }

    /// Changes what the argument of `set-gi` names: fields as in [`Self::line`], an empty one keeps the old value,
    /// missing ones at the end keep theirs.
    ///
    /// # Errors
    /// [`SetError`], with the text `drbdmeta` prints.
    pub fn set(&mut self, text: &str) -> Result<(), SetError> {
        let mut rest = Some(text);
        let [younger, older] = &mut self.history;
        for id in [&mut self.current, &mut self.bitmap, younger, older] {
            let Some(field) = next_field(&mut rest) else { return Ok(()) };
            if !field.is_empty() {
                *id = GenerationId(number(field, 16, rest)?);
            }
        }
        for flag in FLAG_ORDER {
            let Some(field) = next_field(&mut rest) else { return Ok(()) };
            if !field.is_empty() {
                match number(field, 0, rest)? {
                    bit @ 0..=1 => self.flags.set(flag, bit == 1),
                    other => return Err(SetError::NotABit(other)),
                }
            }
        }
        Ok(())
    }
}

fn next_field<'a>(rest: &mut Option<&'a str>) -> Option<&'a str> {
    let text = (*rest)?;
    let (field, behind) = match text.split_once(':') {
        Some((field, behind)) => (field, Some(behind)),
        None => (text, None),
    };
    *rest = behind;
    Some(field)
}

/// A number in `base`, where 0 stands for C's rule: `0x` for hexadecimal, `0` for octal, else decimal.
fn number(field: &str, base: u32, rest: Option<&str>) -> Result<u64, SetError> {
    let hexadecimal = field.strip_prefix("0x").or_else(|| field.strip_prefix("0X"));
    let (digits, radix) = match (base, hexadecimal) {
        (0 | 16, Some(digits)) => (digits, 16),
        (0, None) if field.len() > 1 && field.starts_with('0') => (&field[1..], 8),
        (0, None) => (field, 10),
        (_, _) => (field, base),
    };
    // A sign would be accepted by `from_str_radix`.
    let plain = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    let parsed = if plain { u64::from_str_radix(digits, radix).ok() } else { None };
    parsed.ok_or_else(|| SetError::NotANumber(rest.unwrap_or("(null)").to_owned()))
}

/// Why the argument of `set-gi` was not understood. The texts are `drbdmeta`'s.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SetError {
    /// A field is no number. The text names what follows the bad field: that is what the original prints.
    #[error("'{0}' is not a number.")]
    NotANumber(String),
    /// A flag is a number other than 0 and 1.
    #[error("'{0}' is not 0 or 1.")]
    NotABit(u64),
}

impl Superblock {
    /// Takes over identifiers and flags, as `set-gi` does.
    pub const fn set_generation(&mut self, generation: &Generation) {
        self.current = generation.current;
        self.bitmap = generation.bitmap;
        self.history = generation.history;
        self.flags = generation.flags;
    }

    /// What `drbdmeta show-gi` prints: [`Generation::show`] and the sizes.
    pub fn show_generation(&self) -> String {
        let mut text = Generation::from(self).show();
        if self.la_size_sect == Sector(0) {
            text.push_str("zero size device -- never seen peer yet?\n");
        } else {
            let size = human_size(self.la_size_sect.0.div_ceil(2));
            // Writing to a string cannot fail.
            let _ = writeln!(text, "last agreed size: {size} ({} sectors)", self.la_size_sect);
            let _ = writeln!(text, "last agreed max bio size: {} Byte", self.la_peer_max_bio_size);
        }
        text
    }
}

/// A size as DRBD prints it: at most four digits and a unit (metadata spec 9.4).
pub fn human_size(mut kib: u64) -> String {
    let mut units = "KMGTPE".chars();
    let mut unit = units.next();
    while kib >= 10_000
        && let Some(next) = units.next()
    {
        kib = (kib >> 10) + (kib >> 9 & 1);
        unit = Some(next);
    }
    format!("{kib} {}B", unit.unwrap_or('E'))
}

const LEGEND_ABOVE: &str = "
       +--<  Current data generation UUID  >-
       |               +--<  Bitmap's base data generation UUID  >-
       |               |                 +--<  younger history UUID  >-
       |               |                 |         +-<  older history  >-
       V               V                 V         V
";

const LEGEND_BELOW: &str = concat!(
    "                                                                    ^ ^ ^ ^ ^ ^ ^\n",
    "                                      -<  Data consistency flag  >--+ | | | | | |\n",
    "                             -<  Data was/is currently up-to-date  >--+ | | | | |\n",
    "                                  -<  Node was/is currently primary  >--+ | | | |\n",
    "                                  -<  Node was/is currently connected  >--+ | | |\n",
    "         -<  Node was in the progress of setting all bits in the bitmap  >--+ | |\n",
    "                        -<  The peer's disk was out-dated or inconsistent  >--+ |\n",
    "      -<  This node was a crashed primary, and has not seen its peer since   >--+\n",
    "\n",
);

#[cfg(test)]
mod tests {
    use super::*;

    fn generation(line: &str) -> Generation {
        let none = GenerationId::NONE;
        let mut generation = Generation { current: none, bitmap: none, history: [none; 2], flags: Flags(0) };
        generation.set(line).unwrap();
        generation
    }

    #[test]
    fn a_line_sets_what_it_prints() {
        let line = "1111111111111111:2222222222222222:0000000000003333:0000000000004444:1:0:1:1:0:1:1";
        assert_eq!(generation(line).line(), line);
    }

    #[test]
    fn empty_and_missing_fields_keep_their_values() {
        let mut changed = generation("1:2:3:4:1:1:1:1:1:1:1");
        changed.set(":::7:0").unwrap();
        let expected = "0000000000000001:0000000000000002:0000000000000003:0000000000000007:0:1:1:1:1:1:1";
        assert_eq!(changed.line(), expected);
    }

    #[test]
    fn bad_fields_are_named_as_the_original_does() {
        let mut target = generation("1");
        let not_a_number = |rest: &str| Err(SetError::NotANumber(rest.to_owned()));
        assert_eq!(target.set("XYZ"), not_a_number("(null)"));
        assert_eq!(target.set("XYZ:1:2"), not_a_number("1:2"));
        assert_eq!(target.set("-1"), not_a_number("(null)"));
        assert_eq!(target.set("12345678901234567"), not_a_number("(null)"));
        assert_eq!(target.set("::::2"), Err(SetError::NotABit(2)));
    }

    #[test]
    fn sizes_have_four_digits_at_most() {
        assert_eq!(human_size(9999), "9999 KB");
        assert_eq!(human_size(65_496), "64 MB");
        assert_eq!(human_size(10_000), "10 MB");
        assert_eq!(human_size(u64::MAX), "16384 EB");
    }
}
