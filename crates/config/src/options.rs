//! The options of DRBD 8.4: their types, units, ranges and defaults (configuration spec 8).
//!
//! Everything that takes options as text uses these tables: the parser for its range checks, `drbdadm adjust`
//! to compare values, and the control layer to convert them.

use crate::model::OptionEntry;
use crate::number::{NumberError, Unit, parse_number};

/// The type of an option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OptionKind {
    /// A number. `minimum`, `maximum` and `default` count in `unit`.
    Number {
        /// What a value without suffix counts in.
        unit: Unit,
        /// The least value.
        minimum: i64,
        /// The greatest value.
        maximum: i64,
        /// The value if the option is not given.
        default: i64,
    },
    /// `yes` or `no`.
    Flag {
        /// The value if the option is not given.
        default: bool,
    },
    /// One of a list of names.
    Choice {
        /// The names.
        names: &'static [&'static str],
        /// The name that is the default.
        default: &'static str,
        /// Whether upper and lower case are the same.
        ignore_case: bool,
    },
    /// Any text of at most `maximum_length` bytes; the default is the empty text.
    Text {
        /// The most bytes a value may have.
        maximum_length: usize,
    },
    /// A network address. It has no default that could be compared.
    Address,
}

/// One option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OptionDefinition {
    /// The 8.4 name.
    pub name: &'static str,
    /// Its type.
    pub kind: OptionKind,
    /// What `drbdsetup show` prints behind the value: `seconds`, `1/10 seconds`, `bytes`, `bytes/second` or nothing.
    pub unit_name: &'static str,
    /// `drbdadm` checks the range while it parses; of other options `drbdsetup` does, or nobody.
    pub checked_by_parser: bool,
}

/// A typed value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OptionValue {
    /// A number, in the unit of the option.
    Number(i64),
    /// A flag.
    Flag(bool),
    /// A name of the list, spelled as the list spells it.
    Choice(&'static str),
    /// A text or an address.
    Text(String),
}

/// Why a text is no value of an option.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    /// Not a number.
    #[error(transparent)]
    Number(#[from] NumberError),
    /// A number outside of the range.
    #[error("{name} {text} => {value}{unit} out of range [{minimum}..{maximum}]{unit}.")]
    Range {
        /// The option.
        name: &'static str,
        /// The text.
        text: String,
        /// The number it means.
        value: u64,
        /// The unit letter.
        unit: &'static str,
        /// The least value.
        minimum: i64,
        /// The greatest value.
        maximum: i64,
    },
    /// Neither a flag's value nor a name of the list.
    #[error("Option --{name}: invalid argument '{text}'")]
    NotAllowed {
        /// The option.
        name: &'static str,
        /// The text.
        text: String,
    },
    /// Longer than allowed.
    #[error("Option --{name}: invalid argument '{text}'")]
    TooLong {
        /// The option.
        name: &'static str,
        /// The text.
        text: String,
    },
}

impl OptionDefinition {
    /// A number, its range checked by the parser.
    const fn number(name: &'static str, unit: Unit, minimum: i64, maximum: i64, default: i64) -> Self {
        let kind = OptionKind::Number { unit, minimum, maximum, default };
        Self { name, kind, unit_name: "", checked_by_parser: true }
    }

    const fn flag(name: &'static str, default: bool) -> Self {
        Self { name, kind: OptionKind::Flag { default }, unit_name: "", checked_by_parser: false }
    }

    const fn choice(name: &'static str, names: &'static [&'static str], default: &'static str) -> Self {
        let kind = OptionKind::Choice { names, default, ignore_case: false };
        Self { name, kind, unit_name: "", checked_by_parser: false }
    }

    const fn text(name: &'static str, maximum_length: usize) -> Self {
        Self { name, kind: OptionKind::Text { maximum_length }, unit_name: "", checked_by_parser: false }
    }

    const fn address(name: &'static str) -> Self {
        Self { name, kind: OptionKind::Address, unit_name: "", checked_by_parser: false }
    }

    const fn unit_name(mut self, unit_name: &'static str) -> Self {
        self.unit_name = unit_name;
        self
    }

    const fn unchecked(mut self) -> Self {
        self.checked_by_parser = false;
        self
    }

    /// Whether the option can be given without a value, which then is `yes`.
    #[must_use]
    pub fn value_is_optional(&self) -> bool {
        matches!(self.kind, OptionKind::Flag { .. })
    }

    /// The typed value of a text; `None` is an option given without value.
    ///
    /// # Errors
    /// [`ValueError`]: no number, out of range, not in the list, too long.
    pub fn convert(&self, text: Option<&str>) -> Result<OptionValue, ValueError> {
        let given = text.unwrap_or("");
        let not_allowed = || ValueError::NotAllowed { name: self.name, text: given.to_owned() };
        match self.kind {
            OptionKind::Number { unit, .. } => {
                let value = parse_number(given, unit)?;
                self.check_range(given, value)?;
                Ok(OptionValue::Number(value.cast_signed()))
            }
            OptionKind::Flag { .. } => match text {
                None | Some("yes") => Ok(OptionValue::Flag(true)),
                Some("no") => Ok(OptionValue::Flag(false)),
                Some(_) => Err(not_allowed()),
            },
            OptionKind::Choice { names, ignore_case, .. } => names
                .iter()
                .find(|name| **name == given || (ignore_case && name.eq_ignore_ascii_case(given)))
                .map(|name| OptionValue::Choice(name))
                .ok_or_else(not_allowed),
            OptionKind::Text { maximum_length } if given.len() > maximum_length => {
                Err(ValueError::TooLong { name: self.name, text: given.to_owned() })
            }
            OptionKind::Text { .. } | OptionKind::Address => Ok(OptionValue::Text(given.to_owned())),
        }
    }

    /// The range check of a number already parsed; other types always pass.
    ///
    /// # Errors
    /// [`ValueError::Range`].
    pub fn check_range(&self, text: &str, value: u64) -> Result<(), ValueError> {
        let OptionKind::Number { unit, minimum, maximum, .. } = self.kind else { return Ok(()) };
        // A negative number is a huge one to DRBD; only an option that allows -1 takes it as what it is.
        let signed = value.cast_signed();
        let inside = if minimum < 0 {
            (minimum..=maximum).contains(&signed)
        } else {
            signed >= minimum && signed <= maximum
        };
        if inside {
            return Ok(());
        }
        Err(ValueError::Range {
            name: self.name,
            text: text.to_owned(),
            value,
            unit: unit.letter(),
            minimum,
            maximum,
        })
    }

    /// Whether the text means the default.
    ///
    /// # Errors
    /// The option is a number and the text is not.
    pub fn is_default(&self, text: Option<&str>) -> Result<bool, NumberError> {
        let given = text.unwrap_or("");
        Ok(match self.kind {
            OptionKind::Number { unit, default, .. } => parse_number(given, unit)?.cast_signed() == default,
            OptionKind::Flag { default } => flag_value(text) == Some(default),
            OptionKind::Choice { default, ignore_case: true, .. } => given.eq_ignore_ascii_case(default),
            OptionKind::Choice { default, .. } => given == default,
            OptionKind::Text { .. } => text == Some(""),
            OptionKind::Address => true,
        })
    }

    /// Whether two texts mean the same value.
    ///
    /// # Errors
    /// The option is a number and a text is not.
    pub fn is_equal(&self, a: Option<&str>, b: Option<&str>) -> Result<bool, NumberError> {
        let (left, right) = (a.unwrap_or(""), b.unwrap_or(""));
        Ok(match self.kind {
            OptionKind::Number { unit, .. } => parse_number(left, unit)? == parse_number(right, unit)?,
            OptionKind::Flag { .. } => flag_value(a) == flag_value(b),
            OptionKind::Choice { ignore_case: true, .. } => left.eq_ignore_ascii_case(right),
            OptionKind::Choice { .. } | OptionKind::Text { .. } | OptionKind::Address => left == right,
        })
    }
}

/// A flag's value; an option without value is on.
fn flag_value(text: Option<&str>) -> Option<bool> {
    match text {
        None | Some("yes") => Some(true),
        Some("no") => Some(false),
        Some(_) => None,
    }
}

const KIBI: Unit = Unit::Kibi;
const ONE: Unit = Unit::One;
const SECTOR: Unit = Unit::Sector;
/// The largest device: 1 PiB, in sectors.
const DISK_SIZE_MAX: i64 = 2_199_023_255_552;
/// Names and secrets are at most this long (`SHARED_SECRET_MAX` less its terminator).
const NAME_LENGTH_MAX: usize = 63;
const RATE_MAX: i64 = 4 << 20;

const ON_IO_ERROR: &[&str] = &["pass_on", "call-local-io-error", "detach"];
const FENCING: &[&str] = &["dont-care", "resource-only", "resource-and-stonith"];
const READ_BALANCING: &[&str] = &[
    "prefer-local",
    "prefer-remote",
    "round-robin",
    "least-pending",
    "when-congested-remote",
    "32K-striping",
    "64K-striping",
    "128K-striping",
    "256K-striping",
    "512K-striping",
    "1M-striping",
];
const AFTER_SPLIT_BRAIN_0: &[&str] = &[
    "disconnect",
    "discard-younger-primary",
    "discard-older-primary",
    "discard-zero-changes",
    "discard-least-changes",
    "discard-local",
    "discard-remote",
];
const AFTER_SPLIT_BRAIN_1: &[&str] =
    &["disconnect", "consensus", "violently-as0p", "discard-secondary", "call-pri-lost-after-sb"];
const AFTER_SPLIT_BRAIN_2: &[&str] = &["disconnect", "violently-as0p", "call-pri-lost-after-sb"];
const RR_CONFLICT: &[&str] = &["disconnect", "violently", "call-pri-lost"];
const ON_CONGESTION: &[&str] = &["block", "pull-ahead", "disconnect"];
const ON_NO_DATA: &[&str] = &["io-error", "suspend-io"];

const PROTOCOL: OptionDefinition = OptionDefinition {
    name: "protocol",
    kind: OptionKind::Choice { names: &["A", "B", "C"], default: "C", ignore_case: true },
    unit_name: "",
    checked_by_parser: true,
};

/// `net { }`, in the order DRBD shows them: what `net-options` takes.
pub const NET_OPTIONS: &[OptionDefinition] = &[
    PROTOCOL,
    OptionDefinition::number("timeout", ONE, 1, 600, 60).unit_name("1/10 seconds"),
    OptionDefinition::number("max-epoch-size", ONE, 1, 20000, 2048),
    OptionDefinition::number("max-buffers", ONE, 32, 131_072, 2048),
    OptionDefinition::number("unplug-watermark", ONE, 1, 131_072, 128).unchecked(),
    OptionDefinition::number("connect-int", ONE, 1, 120, 10).unit_name("seconds"),
    OptionDefinition::number("ping-int", ONE, 1, 120, 10).unit_name("seconds"),
    OptionDefinition::number("sndbuf-size", ONE, 0, 10 << 20, 0).unit_name("bytes"),
    OptionDefinition::number("rcvbuf-size", ONE, 0, 10 << 20, 0).unit_name("bytes"),
    OptionDefinition::number("ko-count", ONE, 0, 200, 7),
    OptionDefinition::flag("allow-two-primaries", false),
    OptionDefinition::text("cram-hmac-alg", NAME_LENGTH_MAX),
    OptionDefinition::text("shared-secret", NAME_LENGTH_MAX),
    OptionDefinition::choice("after-sb-0pri", AFTER_SPLIT_BRAIN_0, "disconnect"),
    OptionDefinition::choice("after-sb-1pri", AFTER_SPLIT_BRAIN_1, "disconnect"),
    OptionDefinition::choice("after-sb-2pri", AFTER_SPLIT_BRAIN_2, "disconnect"),
    OptionDefinition::flag("always-asbp", false),
    OptionDefinition::choice("rr-conflict", RR_CONFLICT, "disconnect"),
    OptionDefinition::number("ping-timeout", ONE, 1, 300, 5).unit_name("1/10 seconds").unchecked(),
    OptionDefinition::text("data-integrity-alg", NAME_LENGTH_MAX),
    OptionDefinition::flag("tcp-cork", true),
    OptionDefinition::choice("on-congestion", ON_CONGESTION, "block"),
    OptionDefinition::number("congestion-fill", SECTOR, 0, 10 << 21, 0).unit_name("bytes"),
    OptionDefinition::number("congestion-extents", ONE, 67, 65534, 1237),
    OptionDefinition::text("csums-alg", NAME_LENGTH_MAX),
    OptionDefinition::flag("csums-after-crash-only", false),
    OptionDefinition::text("verify-alg", NAME_LENGTH_MAX),
    OptionDefinition::flag("use-rle", true),
    OptionDefinition::number("socket-check-timeout", ONE, 0, 300, 0).unchecked(),
];

/// `disk { }` but for the two options only `attach` takes, in the order DRBD shows them: what `disk-options` takes.
pub const DISK_OPTIONS: &[OptionDefinition] = &[
    OptionDefinition::choice("on-io-error", ON_IO_ERROR, "detach"),
    OptionDefinition::choice("fencing", FENCING, "dont-care"),
    OptionDefinition::flag("disk-barrier", false),
    OptionDefinition::flag("disk-flushes", true),
    OptionDefinition::flag("disk-drain", true),
    OptionDefinition::flag("md-flushes", true),
    OptionDefinition::number("resync-rate", KIBI, 1, RATE_MAX, 250).unit_name("bytes/second"),
    OptionDefinition::number("resync-after", ONE, -1, (1 << 20) - 1, -1).unchecked(),
    OptionDefinition::number("al-extents", ONE, 67, 65534, 1237).unchecked(),
    OptionDefinition::flag("al-updates", true),
    OptionDefinition::flag("discard-zeroes-if-aligned", true),
    OptionDefinition::flag("disable-write-same", false),
    OptionDefinition::number("c-plan-ahead", ONE, 0, 300, 20).unit_name("1/10 seconds"),
    OptionDefinition::number("c-delay-target", ONE, 1, 100, 10).unit_name("1/10 seconds"),
    OptionDefinition::number("c-fill-target", SECTOR, 0, 1 << 20, 100).unit_name("bytes"),
    OptionDefinition::number("c-max-rate", KIBI, 250, RATE_MAX, 102_400).unit_name("bytes/second"),
    OptionDefinition::number("c-min-rate", KIBI, 0, RATE_MAX, 250).unit_name("bytes/second"),
    OptionDefinition::number("disk-timeout", ONE, 0, 6000, 0).unit_name("1/10 seconds").unchecked(),
    OptionDefinition::choice("read-balancing", READ_BALANCING, "prefer-local"),
    OptionDefinition::number("rs-discard-granularity", ONE, 0, 1 << 20, 0).unchecked(),
];

/// The options of `disk { }` that take effect at `attach` only.
pub const ATTACH_ONLY_OPTIONS: &[OptionDefinition] = &[
    OptionDefinition::number("size", SECTOR, 0, DISK_SIZE_MAX, 0).unit_name("bytes"),
    OptionDefinition::number("max-bio-bvecs", ONE, 0, 128, 0).unchecked(),
];

/// The options of `disk { }` that DRBD does not have; they take effect at `attach` only. In no usage text, and in no set of
/// those DRBD knows.
pub const OWN_DISK_OPTIONS: &[OptionDefinition] = &[OptionDefinition::text("resync-undo", 4095)];

/// `options { }`: what `new-resource` and `resource-options` take.
pub const RESOURCE_OPTIONS: &[OptionDefinition] = &[
    OptionDefinition::text("cpu-mask", 31),
    OptionDefinition::choice("on-no-data-accessible", ON_NO_DATA, "io-error"),
];

/// `startup { }`: what `wait-connect` takes.
pub const STARTUP_OPTIONS: &[OptionDefinition] = &[
    OptionDefinition::number("wfc-timeout", ONE, 0, 300_000, 0).unit_name("seconds"),
    OptionDefinition::number("degr-wfc-timeout", ONE, 0, 300_000, 0).unit_name("seconds"),
    OptionDefinition::number("outdated-wfc-timeout", ONE, 0, 300_000, 0).unit_name("seconds"),
    OptionDefinition::flag("wait-after-sb", false),
];

/// What `connect` takes before the net options.
pub const CONNECT_ONLY_OPTIONS: &[OptionDefinition] = &[
    OptionDefinition::flag("tentative", false),
    OptionDefinition::flag("discard-my-data", false),
    OptionDefinition::address("alternate-address"),
    OptionDefinition::address("alternate-peer-address"),
];

/// What `primary`, `detach` and `disconnect` take.
pub const FORCE_OPTIONS: &[OptionDefinition] = &[OptionDefinition::flag("force", false)];

/// What `new-current-uuid` takes.
pub const NEW_CURRENT_UUID_OPTIONS: &[OptionDefinition] = &[OptionDefinition::flag("clear-bitmap", false)];

/// What `resize` takes.
pub const RESIZE_OPTIONS: &[OptionDefinition] = &[
    OptionDefinition::number("size", SECTOR, 0, DISK_SIZE_MAX, 0).unit_name("bytes"),
    OptionDefinition::flag("assume-peer-has-space", false),
    OptionDefinition::flag("assume-clean", false),
    OptionDefinition::number("al-stripes", ONE, 1, 1024, 1),
    OptionDefinition::number("al-stripe-size-kB", KIBI, 4, 16_777_216, 32),
];

/// What `verify` takes.
pub const VERIFY_OPTIONS: &[OptionDefinition] = &[
    OptionDefinition::number("start", SECTOR, 0, DISK_SIZE_MAX, 0).unit_name("bytes"),
    OptionDefinition::number("stop", SECTOR, 0, DISK_SIZE_MAX, 0).unit_name("bytes"),
];

/// A set of options that a command takes, as a list of the tables above.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OptionSet(pub &'static [&'static [OptionDefinition]]);

impl OptionSet {
    /// What `attach` takes.
    pub const ATTACH: Self = Self(&[ATTACH_ONLY_OPTIONS, DISK_OPTIONS]);
    /// What `disk-options` takes.
    pub const DISK: Self = Self(&[DISK_OPTIONS]);
    /// What `connect` takes.
    pub const CONNECT: Self = Self(&[CONNECT_ONLY_OPTIONS, NET_OPTIONS]);
    /// What `net-options` takes.
    pub const NET: Self = Self(&[NET_OPTIONS]);
    /// What `new-resource` and `resource-options` take.
    pub const RESOURCE: Self = Self(&[RESOURCE_OPTIONS]);
    /// What `wait-connect` and `wait-sync` take.
    pub const STARTUP: Self = Self(&[STARTUP_OPTIONS]);
    /// What `primary`, `detach` and `disconnect` take.
    pub const FORCE: Self = Self(&[FORCE_OPTIONS]);
    /// What `new-current-uuid` takes.
    pub const NEW_CURRENT_UUID: Self = Self(&[NEW_CURRENT_UUID_OPTIONS]);
    /// What `resize` takes.
    pub const RESIZE: Self = Self(&[RESIZE_OPTIONS]);
    /// What `verify` takes.
    pub const VERIFY: Self = Self(&[VERIFY_OPTIONS]);

    /// The definitions in order.
    pub fn iter(self) -> impl Iterator<Item = &'static OptionDefinition> {
        self.0.iter().flat_map(|table| table.iter())
    }

    /// The definition of that name.
    #[must_use]
    pub fn find(self, name: &str) -> Option<&'static OptionDefinition> {
        self.iter().find(|definition| definition.name == name)
    }

    /// The typed values a list of options gives, defaults included; of repeated options the last counts.
    ///
    /// # Errors
    /// The first value that does not fit its option. Options that are not of this set are left out.
    pub fn typed(
        self,
        entries: &[OptionEntry],
    ) -> Result<Vec<(&'static OptionDefinition, OptionValue)>, ValueError> {
        self.iter()
            .map(|definition| {
                let entry = entries.iter().rev().find(|entry| entry.name == definition.name);
                let value = match entry {
                    Some(entry) => definition.convert(entry.value.as_deref())?,
                    None => definition.default_value(),
                };
                Ok((definition, value))
            })
            .collect()
    }
}

impl OptionDefinition {
    /// The default.
    #[must_use]
    pub fn default_value(&self) -> OptionValue {
        match self.kind {
            OptionKind::Number { default, .. } => OptionValue::Number(default),
            OptionKind::Flag { default } => OptionValue::Flag(default),
            OptionKind::Choice { default, .. } => OptionValue::Choice(default),
            OptionKind::Text { .. } | OptionKind::Address => OptionValue::Text(String::new()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_options_becomes_typed_values_with_defaults() {
        let entries = [
            OptionEntry::new("resync-rate", "10M"),
            OptionEntry::new("resync-rate", "30M"),
            OptionEntry::new("disk-barrier", "yes"),
        ];
        let typed = OptionSet::DISK.typed(&entries).unwrap();
        let value = |name: &str| typed.iter().find(|(d, _)| d.name == name).map(|(_, v)| v.clone()).unwrap();
        assert_eq!(value("resync-rate"), OptionValue::Number(30720), "the last occurrence counts");
        assert_eq!(value("disk-barrier"), OptionValue::Flag(true));
        assert_eq!(value("on-io-error"), OptionValue::Choice("detach"));
        assert_eq!(value("resync-after"), OptionValue::Number(-1));
    }

    #[test]
    fn range_errors_have_drbds_words() {
        let rate = OptionSet::DISK.find("resync-rate").unwrap();
        assert_eq!(
            rate.convert(Some("0")).unwrap_err().to_string(),
            "resync-rate 0 => 0k out of range [1..4194304]k."
        );
        let timeout = OptionSet::NET.find("timeout").unwrap();
        assert_eq!(
            timeout.convert(Some("-1")).unwrap_err().to_string(),
            "timeout -1 => 18446744073709551615 out of range [1..600]."
        );
    }

    #[test]
    fn values_are_compared_by_type() {
        let rate = OptionSet::DISK.find("resync-rate").unwrap();
        assert_eq!(rate.is_equal(Some("30M"), Some("30720k")), Ok(true));
        assert_eq!(rate.is_default(Some("250")), Ok(true));
        let protocol = OptionSet::NET.find("protocol").unwrap();
        assert_eq!(protocol.is_equal(Some("c"), Some("C")), Ok(true));
        let flag = OptionSet::NET.find("allow-two-primaries").unwrap();
        assert_eq!(flag.is_equal(None, Some("yes")), Ok(true));
        assert_eq!(flag.is_default(Some("no")), Ok(true));
        let after = OptionSet::DISK.find("resync-after").unwrap();
        assert_eq!(after.is_default(Some("-1")), Ok(true));
        assert_eq!(after.convert(Some("-1")), Ok(OptionValue::Number(-1)));
        assert!(after.convert(Some("-2")).is_err());
    }

    #[test]
    fn every_option_accepts_its_own_default() {
        for set in [OptionSet::ATTACH, OptionSet::NET, OptionSet::RESOURCE, OptionSet::STARTUP] {
            for definition in set.iter() {
                let text = match definition.default_value() {
                    OptionValue::Number(number) => number.to_string(),
                    OptionValue::Flag(flag) => if flag { "yes" } else { "no" }.to_owned(),
                    OptionValue::Choice(name) => name.to_owned(),
                    OptionValue::Text(text) => text,
                };
                assert_eq!(definition.convert(Some(&text)), Ok(definition.default_value()));
                assert_eq!(definition.is_default(Some(&text)), Ok(true), "{}", definition.name);
            }
        }
    }
}
