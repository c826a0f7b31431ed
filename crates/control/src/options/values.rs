//! How option values are read and printed, and the options that are one of a few words.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::number::{Scale, parse_number};
use super::{OptionError, OptionKind, OptionSpec};

/// A type an option can have.
pub(super) trait OptionValue: Sized {
    /// Reads the text behind `=`; `None` is a bare option.
    fn parse(spec: &'static OptionSpec, text: Option<&str>) -> Result<Self, OptionError>;
    /// The text `show` prints.
    fn show(&self, spec: &OptionSpec) -> String;
}

fn invalid(spec: &'static OptionSpec, text: Option<&str>) -> OptionError {
    OptionError::InvalidArgument { name: spec.name, value: text.unwrap_or_default().to_owned() }
}

fn parse_in_range(spec: &'static OptionSpec, text: Option<&str>) -> Result<u64, OptionError> {
    let OptionKind::Number { scale, min, max, clamped } = spec.kind else { return Err(invalid(spec, text)) };
    let text = text.unwrap_or_default();
    let value = parse_number(text, scale)?;
    let signed = i64::try_from(value).unwrap_or(i64::MAX);
    if clamped {
        return Ok(signed.clamp(min, max).unsigned_abs());
    }
    if signed < min || signed > max {
        let (name, text, letter) = (spec.name, text.to_owned(), scale.letter());
        return Err(OptionError::OutOfRange { name, text, value, letter, min, max });
    }
    Ok(value)
}

fn letter_of(spec: &OptionSpec) -> &'static str {
    match spec.kind {
        OptionKind::Number { scale, .. } => scale.letter(),
        _ => Scale::Ones.letter(),
    }
}

impl OptionValue for u64 {
    fn parse(spec: &'static OptionSpec, text: Option<&str>) -> Result<Self, OptionError> {
        parse_in_range(spec, text)
    }

    fn show(&self, spec: &OptionSpec) -> String {
        format!("{self}{}", letter_of(spec))
    }
}

impl OptionValue for u32 {
    fn parse(spec: &'static OptionSpec, text: Option<&str>) -> Result<Self, OptionError> {
        let value = parse_in_range(spec, text)?;
        Self::try_from(value).map_err(|_| OptionError::Overflow(text.unwrap_or_default().to_owned()))
    }

    fn show(&self, spec: &OptionSpec) -> String {
        format!("{self}{}", letter_of(spec))
    }
}

/// A minor number, or none, written -1.
impl OptionValue for i32 {
    fn parse(spec: &'static OptionSpec, text: Option<&str>) -> Result<Self, OptionError> {
        if text == Some("-1") {
            return Ok(-1);
        }
        let value = parse_in_range(spec, text)?;
        Self::try_from(value).map_err(|_| OptionError::Overflow(text.unwrap_or_default().to_owned()))
    }

    fn show(&self, _spec: &OptionSpec) -> String {
        self.to_string()
    }
}

impl OptionValue for bool {
    fn parse(spec: &'static OptionSpec, text: Option<&str>) -> Result<Self, OptionError> {
        match text {
            None | Some("yes") => Ok(true),
            Some("no") => Ok(false),
            Some(_) => Err(invalid(spec, text)),
        }
    }

    fn show(&self, _spec: &OptionSpec) -> String {
        if *self { "yes".to_owned() } else { "no".to_owned() }
    }
}

impl OptionValue for String {
    fn parse(spec: &'static OptionSpec, text: Option<&str>) -> Result<Self, OptionError> {
        let OptionKind::Text { length_max } = spec.kind else { return Err(invalid(spec, text)) };
        match text {
            Some(value) if value.len() <= length_max => Ok(value.to_owned()),
            _ => Err(invalid(spec, text)),
        }
    }

    fn show(&self, _spec: &OptionSpec) -> String {
        self.clone()
    }
}

/// A text that no log or debug output shows.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(if self.0.is_empty() { "Secret(empty)" } else { "Secret(...)" })
    }
}

impl OptionValue for Secret {
    fn parse(spec: &'static OptionSpec, text: Option<&str>) -> Result<Self, OptionError> {
        // The refusal must not repeat the secret.
        String::parse(spec, text)
            .map(Self)
            .map_err(|_| OptionError::InvalidArgument { name: spec.name, value: "...".to_owned() })
    }

    fn show(&self, _spec: &OptionSpec) -> String {
        self.0.clone()
    }
}

macro_rules! words {
    ($(#[$doc:meta])* $name:ident, ignore_case = $ignore_case:literal {
        $($(#[$variant_doc:meta])* $variant:ident = $text:literal,)+
    }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
        pub enum $name {
            $($(#[$variant_doc])* $variant,)+
        }

        impl $name {
            /// Every value.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];
            /// The words of the configuration file.
            pub const WORDS: &'static [&'static str] = &[$($text,)+];
            /// The description of the values.
            pub const KIND: OptionKind = OptionKind::Word { words: Self::WORDS, ignore_case: $ignore_case };

            /// The word of the configuration file.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)+
                }
            }
        }

        impl OptionValue for $name {
            fn parse(spec: &'static OptionSpec, text: Option<&str>) -> Result<Self, OptionError> {
                let wanted = text.unwrap_or_default();
                Self::ALL
                    .iter()
                    .copied()
                    .find(|value| {
                        value.name() == wanted || ($ignore_case && value.name().eq_ignore_ascii_case(wanted))
                    })
                    .ok_or_else(|| invalid(spec, text))
            }

            fn show(&self, _spec: &OptionSpec) -> String {
                self.name().to_owned()
            }
        }
    };
}

words! {
    /// When a write counts as done.
    Protocol, ignore_case = true {
        /// When it is on the local disk and in the send buffer.
        A = "A",
        /// When the peer has received it.
        B = "B",
        /// When it is on both disks.
        #[default]
        C = "C",
    }
}

words! {
    /// What to do about an error of the backing device.
    OnIoError, ignore_case = false {
        /// Report it upwards, keep the disk as Inconsistent.
        PassOn = "pass_on",
        /// Call the handler `local-io-error`, then detach.
        CallLocalIoError = "call-local-io-error",
        /// Go on without the disk.
        #[default]
        Detach = "detach",
    }
}

words! {
    /// What to do about the peer before going on without it.
    Fencing, ignore_case = false {
        /// Nothing.
        #[default]
        DontCare = "dont-care",
        /// Call the handler `fence-peer`.
        ResourceOnly = "resource-only",
        /// Freeze I/O and call the handler `fence-peer`.
        ResourceAndStonith = "resource-and-stonith",
    }
}

words! {
    /// How reads are shared between the nodes.
    ReadBalancing, ignore_case = false {
        /// Local.
        #[default]
        PreferLocal = "prefer-local",
        /// At the peer.
        PreferRemote = "prefer-remote",
        /// In turn.
        RoundRobin = "round-robin",
        /// Where fewer requests wait.
        LeastPending = "least-pending",
        /// At the peer while the local disk is congested.
        WhenCongestedRemote = "when-congested-remote",
        /// In stripes of 32 KiB.
        Striping32K = "32K-striping",
        /// In stripes of 64 KiB.
        Striping64K = "64K-striping",
        /// In stripes of 128 KiB.
        Striping128K = "128K-striping",
        /// In stripes of 256 KiB.
        Striping256K = "256K-striping",
        /// In stripes of 512 KiB.
        Striping512K = "512K-striping",
        /// In stripes of 1 MiB.
        Striping1M = "1M-striping",
    }
}

words! {
    /// Split brain with no Primary.
    AfterSplitBrain0Primaries, ignore_case = false {
        /// Drop the connection.
        #[default]
        Disconnect = "disconnect",
        /// Discard the younger Primary's data.
        DiscardYoungerPrimary = "discard-younger-primary",
        /// Discard the older Primary's data.
        DiscardOlderPrimary = "discard-older-primary",
        /// Discard the side without changes.
        DiscardZeroChanges = "discard-zero-changes",
        /// Discard the side with fewer changes.
        DiscardLeastChanges = "discard-least-changes",
        /// Discard the local data.
        DiscardLocal = "discard-local",
        /// Discard the peer's data.
        DiscardRemote = "discard-remote",
    }
}

words! {
    /// Split brain with one Primary.
    AfterSplitBrain1Primary, ignore_case = false {
        /// Drop the connection.
        #[default]
        Disconnect = "disconnect",
        /// As without a Primary if the victim is the Secondary, else disconnect.
        Consensus = "consensus",
        /// Discard the Secondary's data.
        DiscardSecondary = "discard-secondary",
        /// As without a Primary; call the handler `pri-lost-after-sb` on a Primary that loses.
        CallPriLostAfterSb = "call-pri-lost-after-sb",
        /// As without a Primary, whatever the roles.
        ViolentlyAs0p = "violently-as0p",
    }
}

words! {
    /// Split brain with two Primaries.
    AfterSplitBrain2Primaries, ignore_case = false {
        /// Drop the connection.
        #[default]
        Disconnect = "disconnect",
        /// As without a Primary; call the handler `pri-lost-after-sb` on a Primary that loses.
        CallPriLostAfterSb = "call-pri-lost-after-sb",
        /// As without a Primary, whatever the roles.
        ViolentlyAs0p = "violently-as0p",
    }
}

words! {
    /// What to do when the resync direction contradicts the roles.
    RrConflict, ignore_case = false {
        /// Drop the connection.
        #[default]
        Disconnect = "disconnect",
        /// Call the handler `pri-lost`.
        CallPriLost = "call-pri-lost",
        /// Sync anyway.
        Violently = "violently",
    }
}

words! {
    /// What to do when the connection is congested.
    OnCongestion, ignore_case = false {
        /// Wait.
        #[default]
        Block = "block",
        /// Go Ahead and resync later.
        PullAhead = "pull-ahead",
        /// Drop the connection.
        Disconnect = "disconnect",
    }
}

words! {
    /// What happens to requests when no node has data.
    OnNoDataAccessible, ignore_case = false {
        /// They fail.
        #[default]
        IoError = "io-error",
        /// They wait.
        SuspendIo = "suspend-io",
    }
}
