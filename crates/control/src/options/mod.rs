//! The options of disks, connections and resources: names, units, ranges and defaults (configuration spec 8).
//!
//! Each set is a plain struct with typed fields ([`DiskOptions`], [`NetOptions`], [`ResourceOptions`]). Behind it
//! stands a table of [`OptionSpec`]s in the order in which `drbdsetup show` prints them; [`OptionSet`] reads and
//! writes a set by the names of that table.

mod number;
mod sets;
mod values;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use number::{Scale, parse_number};
pub use sets::{DiskOptions, NetOptions, RESYNC_UNDO, ResourceOptions};
pub use values::{
    AfterSplitBrain0Primaries, AfterSplitBrain1Primary, AfterSplitBrain2Primaries, Fencing, OnCongestion,
    OnIoError, OnNoDataAccessible, Protocol, ReadBalancing, RrConflict, Secret,
};

/// What an option's value looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OptionKind {
    /// A number with an optional unit suffix.
    Number {
        /// The unit of a bare number, and of the value as stored.
        scale: Scale,
        /// The smallest value.
        min: i64,
        /// The greatest value.
        max: i64,
        /// Whether a value out of range is moved to the nearer end instead of refused.
        clamped: bool,
    },
    /// `yes`, `no`, or nothing, which is `yes`.
    Flag,
    /// A text of at most so many bytes.
    Text {
        /// The greatest length in bytes.
        length_max: usize,
    },
    /// An address.
    Address,
    /// One of these words.
    Word {
        /// The words, in DRBD's order.
        words: &'static [&'static str],
        /// Whether upper and lower case are the same.
        ignore_case: bool,
    },
}

/// The description of one option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionSpec {
    /// The name, as in the configuration file and behind `--`.
    pub name: &'static str,
    /// What values it takes.
    pub kind: OptionKind,
    /// The unit `show` names in its comment.
    pub unit: Option<&'static str>,
    /// Whether the option can change while the object exists; `size` and `max-bio-bvecs` cannot.
    pub changeable: bool,
}

/// One option of a set, as `show` prints it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OptionEntry {
    /// The description.
    pub spec: &'static OptionSpec,
    /// The value; numbers carry the unit letter of the option, texts are not quoted.
    pub value: String,
    /// Whether the value is the default.
    pub is_default: bool,
}

/// An option given by the user: its name and the text behind `=`, if any.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OptionSetting {
    /// The full name of the option.
    pub name: String,
    /// The value; `None` for a bare flag.
    pub value: Option<String>,
}

impl fmt::Debug for OptionSetting {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.value {
            Some(_) if self.name == "shared-secret" => write!(formatter, "{}=...", self.name),
            Some(value) => write!(formatter, "{}={value}", self.name),
            None => formatter.write_str(&self.name),
        }
    }
}

/// What `disk-options`, `net-options` and `resource-options` ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OptionChanges {
    /// Whether every changeable option goes back to its default first (`--set-defaults`).
    pub set_defaults: bool,
    /// The settings, applied in order.
    pub settings: Vec<OptionSetting>,
}

/// Why an option cannot be set.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    /// The set has no option of this name.
    #[error("unrecognized option '--{0}'")]
    Unknown(String),
    /// The option cannot change any more.
    #[error("can not change invariant setting '{0}'")]
    Invariant(&'static str),
    /// The value is none of those the option takes.
    #[error("Option --{name}: invalid argument '{value}'")]
    InvalidArgument {
        /// The option.
        name: &'static str,
        /// What was given.
        value: String,
    },
    /// The value is no number.
    #[error("{0} is not a valid number")]
    NotANumber(String),
    /// The number does not fit 64 bits.
    #[error("{0}: out of range")]
    Overflow(String),
    /// The number is outside the range of the option.
    #[error("{name} {text} => {value}{letter} out of range [{min}..{max}]{letter}.")]
    OutOfRange {
        /// The option.
        name: &'static str,
        /// What was given.
        text: String,
        /// The value in the unit of the option.
        value: u64,
        /// The unit letter, empty for plain numbers.
        letter: &'static str,
        /// The smallest value.
        min: i64,
        /// The greatest value.
        max: i64,
    },
}

/// A set of options that can be read and written by name.
pub trait OptionSet: Sized + Clone + Default {
    /// The options of the set, in the order of `drbdsetup show`.
    const SPECS: &'static [OptionSpec];

    /// Sets one option from its text.
    ///
    /// # Errors
    /// The name is unknown or the value is not valid; the set is unchanged then.
    fn set(&mut self, name: &str, value: Option<&str>) -> Result<(), OptionError>;

    /// Every option with its value, in the order of the table.
    fn entries(&self) -> Vec<OptionEntry>;

    /// Copies the options that cannot change from another set.
    fn keep_invariant_from(&mut self, other: &Self);

    /// The options that DRBD has, too: for usage texts and lists of defaults.
    fn drbd_specs() -> impl Iterator<Item = &'static OptionSpec> {
        Self::SPECS.iter().filter(|spec| spec.name != RESYNC_UNDO)
    }

    /// The description of the option of this name.
    fn spec(name: &str) -> Option<&'static OptionSpec> {
        Self::SPECS.iter().find(|spec| spec.name == name)
    }

    /// This set after `changes`.
    ///
    /// # Errors
    /// A setting is not valid or concerns an option that cannot change.
    fn with_changes(&self, changes: &OptionChanges) -> Result<Self, OptionError> {
        let mut changed = self.clone();
        if changes.set_defaults {
            changed = Self::default();
            changed.keep_invariant_from(self);
        }
        for setting in &changes.settings {
            if let Some(spec) = Self::spec(&setting.name)
                && !spec.changeable
            {
                return Err(OptionError::Invariant(spec.name));
            }
            changed.set(&setting.name, setting.value.as_deref())?;
        }
        Ok(changed)
    }

    /// The defaults with these settings: what `attach`, `connect` and `new-resource` start from.
    ///
    /// # Errors
    /// A setting is not valid.
    fn from_settings(settings: &[OptionSetting]) -> Result<Self, OptionError> {
        let mut set = Self::default();
        for setting in settings {
            set.set(&setting.name, setting.value.as_deref())?;
        }
        Ok(set)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setting(name: &str, value: &str) -> OptionSetting {
        OptionSetting { name: name.to_owned(), value: Some(value.to_owned()) }
    }

    #[test]
    fn units_are_those_of_the_option() {
        let disk = DiskOptions::from_settings(&[
            setting("resync-rate", "30M"),
            setting("c-fill-target", "1M"),
            setting("size", "8G"),
            setting("c-min-rate", "1"),
        ])
        .unwrap();
        assert_eq!(disk.resync_rate_kib_per_second, 30720);
        assert_eq!(disk.c_fill_target_sectors, 2048);
        assert_eq!(disk.size_sectors, 16_777_216);
        assert_eq!(disk.c_min_rate_kib_per_second, 1);
    }

    #[test]
    fn every_default_is_within_its_own_range_and_reads_back() {
        fn check<S: OptionSet + PartialEq + fmt::Debug>() {
            let defaults = S::default();
            for entry in defaults.entries() {
                assert!(entry.is_default, "{}", entry.spec.name);
                let mut copy = defaults.clone();
                copy.set(entry.spec.name, Some(&entry.value)).unwrap();
                assert_eq!(copy, defaults, "{}", entry.spec.name);
            }
            assert_eq!(defaults.entries().len(), S::SPECS.len());
        }
        check::<DiskOptions>();
        check::<NetOptions>();
        check::<ResourceOptions>();
    }

    #[test]
    fn set_defaults_keeps_what_cannot_change() {
        let before =
            DiskOptions::from_settings(&[setting("size", "1G"), setting("al-extents", "257")]).unwrap();
        let changes =
            OptionChanges { set_defaults: true, settings: vec![setting("fencing", "resource-only")] };
        let after = before.with_changes(&changes).unwrap();
        assert_eq!(after.size_sectors, 2_097_152);
        assert_eq!(after.al_extents, 1237);
        assert_eq!(after.fencing, Fencing::ResourceOnly);
        let refused = OptionChanges { set_defaults: false, settings: vec![setting("size", "2G")] };
        assert_eq!(before.with_changes(&refused), Err(OptionError::Invariant("size")));
    }

    #[test]
    fn bad_values_are_told_in_drbds_words() {
        let mut net = NetOptions::default();
        let cases = [
            ("timeout", Some("0"), "timeout 0 => 0 out of range [1..600]."),
            ("timeout", Some("x"), "x is not a valid number"),
            ("after-sb-0pri", Some("maybe"), "Option --after-sb-0pri: invalid argument 'maybe'"),
            ("tcp-cork", Some("perhaps"), "Option --tcp-cork: invalid argument 'perhaps'"),
            ("bogus", Some("1"), "unrecognized option '--bogus'"),
        ];
        for (name, value, message) in cases {
            assert_eq!(net.set(name, value).unwrap_err().to_string(), message);
        }
        assert_eq!(net, NetOptions::default());
        net.set("protocol", Some("a")).unwrap();
        assert_eq!(net.protocol, Protocol::A);
        net.set("allow-two-primaries", None).unwrap();
        assert!(net.allow_two_primaries);
    }

    #[test]
    fn secrets_stay_out_of_debug_output() {
        let given = setting("shared-secret", "hush");
        let net = NetOptions::from_settings(std::slice::from_ref(&given)).unwrap();
        assert_eq!(net.shared_secret.0, "hush");
        assert!(!format!("{net:?} {given:?}").contains("hush"));
    }

    #[test]
    fn al_extents_out_of_range_are_moved_into_it() {
        let mut disk = DiskOptions::default();
        disk.set("al-extents", Some("7")).unwrap();
        assert_eq!(disk.al_extents, 67);
        disk.set("al-extents", Some("70000")).unwrap();
        assert_eq!(disk.al_extents, 65534);
    }
}
