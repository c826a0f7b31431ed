//! The words of the language and their numbers, which parse errors quote (configuration spec 2 and 13).

use crate::options::{
    ATTACH_ONLY_OPTIONS, DISK_OPTIONS, NET_OPTIONS, OWN_DISK_OPTIONS, OptionDefinition, STARTUP_OPTIONS,
};

/// Words that are no options.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "each is the word it is named after; see KEYWORDS")]
pub enum Keyword {
    Global,
    Resource,
    On,
    StackedOnTopOf,
    IgnoreOn,
    Net,
    Disk,
    Skip,
    Syncer,
    Startup,
    DisableIpVerification,
    DialogRefresh,
    Handlers,
    Common,
    Address,
    AlternateLinkAddress,
    Device,
    Minor,
    MetaDisk,
    FlexibleMetaDisk,
    MinorCount,
    UsageCount,
    Ask,
    Yes,
    No,
    ThisHost,
    RemoteHost,
    Proxy,
    Inside,
    Outside,
    Sci,
    Sdp,
    Ssocks,
    Ipv4,
    Ipv6,
    Include,
    Floating,
    Volume,
    CommandTimeoutShort,
    CommandTimeoutMedium,
    CommandTimeoutLong,
    Options,
    UdevAlwaysUseVnr,
}

/// Every keyword with its spelling and its number.
const KEYWORDS: &[(&str, Keyword, u32)] = &[
    ("global", Keyword::Global, 258),
    ("resource", Keyword::Resource, 259),
    ("on", Keyword::On, 260),
    ("stacked-on-top-of", Keyword::StackedOnTopOf, 261),
    ("ignore-on", Keyword::IgnoreOn, 262),
    ("net", Keyword::Net, 263),
    ("disk", Keyword::Disk, 264),
    ("skip", Keyword::Skip, 265),
    ("syncer", Keyword::Syncer, 266),
    ("startup", Keyword::Startup, 267),
    ("disable-ip-verification", Keyword::DisableIpVerification, 268),
    ("dialog-refresh", Keyword::DialogRefresh, 269),
    ("handlers", Keyword::Handlers, 271),
    ("common", Keyword::Common, 272),
    ("address", Keyword::Address, 273),
    ("alternate-link-address", Keyword::AlternateLinkAddress, 274),
    ("device", Keyword::Device, 275),
    ("minor", Keyword::Minor, 276),
    ("meta-disk", Keyword::MetaDisk, 277),
    ("flexible-meta-disk", Keyword::FlexibleMetaDisk, 278),
    ("minor-count", Keyword::MinorCount, 279),
    ("usage-count", Keyword::UsageCount, 296),
    ("ask", Keyword::Ask, 297),
    ("yes", Keyword::Yes, 298),
    ("no", Keyword::No, 299),
    ("_this_host", Keyword::ThisHost, 300),
    ("_remote_host", Keyword::RemoteHost, 301),
    ("proxy", Keyword::Proxy, 302),
    ("inside", Keyword::Inside, 303),
    ("outside", Keyword::Outside, 304),
    ("sci", Keyword::Sci, 311),
    ("sdp", Keyword::Sdp, 312),
    ("ssocks", Keyword::Ssocks, 313),
    ("ipv4", Keyword::Ipv4, 314),
    ("ipv6", Keyword::Ipv6, 315),
    ("include", Keyword::Include, 318),
    ("floating", Keyword::Floating, 320),
    ("volume", Keyword::Volume, 322),
    ("cmd-timeout-short", Keyword::CommandTimeoutShort, 323),
    ("cmd-timeout-medium", Keyword::CommandTimeoutMedium, 324),
    ("cmd-timeout-long", Keyword::CommandTimeoutLong, 325),
    ("options", Keyword::Options, 327),
    ("udev-always-use-vnr", Keyword::UdevAlwaysUseVnr, 328),
];

/// The sections that hold options.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Section {
    /// `disk { }`
    Disk,
    /// `net { }`
    Net,
    /// `options { }`
    Resource,
    /// `startup { }`
    Startup,
    /// `handlers { }`
    Handlers,
    /// `proxy { }`
    Proxy,
}

/// How an option word is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OptionForm {
    /// Alone or with `yes` or `no`.
    Flag,
    /// The 8.3 spelling `no-FLAG`.
    NoFlag,
    /// With one value.
    Value,
    /// With a syntax of its own: `become-primary-on`, `stacked-timeouts`, `plugin`, `discard-my-data`.
    Special,
    /// Accepted with a value and dropped.
    Dropped,
}

/// An option word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OptionWord {
    /// The section it belongs to.
    pub section: Section,
    /// How it is used.
    pub form: OptionForm,
    /// Also usable in `syncer { }` (8.3).
    pub in_syncer: bool,
    /// Also usable in `proxy { }`.
    pub in_proxy: bool,
}

impl OptionWord {
    /// The token number without the group bits.
    fn base_number(self) -> u32 {
        match (self.section, self.form) {
            (_, OptionForm::Dropped) => 321,
            (Section::Disk, OptionForm::Flag) => 284,
            (Section::Disk, OptionForm::NoFlag) => 285,
            (Section::Disk, _) => 286,
            (Section::Net, OptionForm::Flag) => 287,
            (Section::Net, OptionForm::NoFlag) => 288,
            (Section::Net, OptionForm::Value) => 289,
            (Section::Net, OptionForm::Special) => 317,
            (Section::Startup, OptionForm::Flag) => 292,
            (Section::Startup, OptionForm::Special) => 294,
            (Section::Startup, _) => 293,
            (Section::Handlers, _) => 295,
            (Section::Proxy, OptionForm::Special) => 307,
            (Section::Proxy, _) => 306,
            (Section::Resource, _) => 326,
        }
    }
}

/// What a token is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenKind {
    /// Nothing is left.
    EndOfFile,
    /// One of `{ } ; [ ] :`.
    Punctuation(u8),
    /// A keyword.
    Keyword(Keyword),
    /// An option name.
    Option(OptionWord),
    /// Four groups of digits.
    Ipv4Address,
    /// An IPv6 address.
    Ipv6Address,
    /// Digits with at most one of `M K G s`.
    Integer,
    /// A bare word or a quoted text.
    Word,
    /// A bare word of more than 128 characters.
    WordTooLong,
    /// A quoted text of more than 255 characters.
    QuotedTooLong,
    /// A quoted text without its closing quote on the line.
    QuotedUnterminated,
    /// Any other character.
    Other,
}

impl TokenKind {
    /// The number parse errors quote: `(TK 59)`.
    #[must_use]
    pub fn number(self) -> u32 {
        match self {
            Self::EndOfFile => 0,
            Self::Punctuation(character) => u32::from(character),
            Self::Keyword(keyword) => {
                KEYWORDS.iter().find(|(_, other, _)| *other == keyword).map_or(0, |(_, _, number)| *number)
            }
            // The proxy group is 0x3000, which contains the syncer group 0x2000.
            Self::Option(word) if word.in_proxy => word.base_number() | 0x3000,
            Self::Option(word) if word.in_syncer => word.base_number() | 0x2000,
            Self::Option(word) => word.base_number(),
            Self::Ipv4Address => 280,
            Self::Integer => 281,
            Self::Word => 282,
            Self::Other => 283,
            Self::WordTooLong => 308,
            Self::QuotedTooLong => 309,
            Self::QuotedUnterminated => 310,
            Self::Ipv6Address => 316,
        }
    }
}

/// Handler names, `outdate-peer` being the old one of `fence-peer`.
const HANDLERS: &[&str] = &[
    "pri-on-incon-degr",
    "pri-lost-after-sb",
    "pri-lost",
    "initial-split-brain",
    "split-brain",
    "outdate-peer",
    "fence-peer",
    "unfence-peer",
    "local-io-error",
    "before-resync-target",
    "after-resync-target",
    "before-resync-source",
    "out-of-sync",
];

/// Options 8.3 had that a `syncer` section may hold.
const SYNCER_WORDS: &[&str] = &[
    "rate",
    "after",
    "verify-alg",
    "csums-alg",
    "al-extents",
    "cpu-mask",
    "use-rle",
    "c-plan-ahead",
    "c-delay-target",
    "c-fill-target",
    "c-max-rate",
    "c-min-rate",
    "on-no-data-accessible",
];

/// Net options a `proxy` section may hold too.
const PROXY_NET_WORDS: &[&str] = &["sndbuf-size", "rcvbuf-size", "ping-timeout"];

/// What a bare word is: a keyword, an option name, or just a word.
#[must_use]
pub fn classify_word(word: &str) -> TokenKind {
    if let Some((_, keyword, _)) = KEYWORDS.iter().find(|(spelling, _, _)| *spelling == word) {
        return TokenKind::Keyword(*keyword);
    }
    option_word(word).map_or(TokenKind::Word, TokenKind::Option)
}

fn option_word(word: &str) -> Option<OptionWord> {
    let in_proxy_section = matches!(word, "memlimit" | "read-loops" | "compression" | "bwlimit");
    let (section, form) = match word {
        "use-bmbv" => (Section::Disk, OptionForm::Flag),
        "rate" | "after" => (Section::Disk, OptionForm::Value),
        "no-disk-barrier" | "no-disk-flushes" | "no-disk-drain" | "no-md-flushes" => {
            (Section::Disk, OptionForm::NoFlag)
        }
        "no-tcp-cork" => (Section::Net, OptionForm::NoFlag),
        "discard-my-data" => (Section::Net, OptionForm::Special),
        "stacked-timeouts" | "become-primary-on" => (Section::Startup, OptionForm::Special),
        "cpu-mask" | "on-no-data-accessible" => (Section::Resource, OptionForm::Value),
        "plugin" => (Section::Proxy, OptionForm::Special),
        "delay-probe-volume" | "delay-probe-interval" | "throttle-threshold" | "hold-off-threshold" => {
            (Section::Disk, OptionForm::Dropped)
        }
        _ if in_proxy_section => (Section::Proxy, OptionForm::Value),
        _ if HANDLERS.contains(&word) => (Section::Handlers, OptionForm::Value),
        _ => {
            let find = |table: &'static [OptionDefinition]| table.iter().find(|option| option.name == word);
            let (section, definition) = find(DISK_OPTIONS)
                .or_else(|| find(ATTACH_ONLY_OPTIONS))
                .or_else(|| find(OWN_DISK_OPTIONS))
                .map(|definition| (Section::Disk, definition))
                .or_else(|| find(NET_OPTIONS).map(|definition| (Section::Net, definition)))
                .or_else(|| find(STARTUP_OPTIONS).map(|definition| (Section::Startup, definition)))?;
            let flag = definition.value_is_optional();
            (section, if flag { OptionForm::Flag } else { OptionForm::Value })
        }
    };
    Some(OptionWord {
        section,
        form,
        in_syncer: SYNCER_WORDS.contains(&word),
        in_proxy: in_proxy_section || PROXY_NET_WORDS.contains(&word),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_numbers_are_those_of_drbd() {
        for (word, number) in [
            ("disk", 264),
            ("include", 318),
            ("node-id", 282),
            ("rate", 8192 + 286),
            ("memlimit", 12288 + 306),
            ("sndbuf-size", 12288 + 289),
            ("cpu-mask", 8192 + 326),
            ("become-primary-on", 294),
            ("no-tcp-cork", 288),
            ("discard-my-data", 317),
            ("throttle-threshold", 321),
            ("use-rle", 8192 + 287),
            ("plugin", 307),
            ("wait-after-sb", 292),
            ("fence-peer", 295),
        ] {
            assert_eq!(classify_word(word).number(), number, "{word}");
        }
        assert_eq!(TokenKind::Punctuation(b'[').number(), 91);
    }
}
