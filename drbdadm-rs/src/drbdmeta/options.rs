//! The command line (metadata spec 9.1).

use std::os::unix::fs::{FileTypeExt, MetadataExt};

use udrbd_metadata::layout::{MAX_INDEX, RING_BLOCKS_MAX_CREATE};
use udrbd_metadata::{Placement, Striping};

use super::{BAD, Exit, Outcome, USAGE, say, stop, tell};

/// The commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    GetGi,
    ShowGi,
    DumpMd,
    RestoreMd,
    VerifyDump,
    ApplyAl,
    WipeMd,
    Outdate,
    Invalidate,
    Dstate,
    ReadDevUuid,
    WriteDevUuid,
    SetGi,
    CheckResize,
    CreateMd,
}

impl Command {
    const ALL: [(&'static str, Self); 15] = [
        ("get-gi", Self::GetGi),
        ("show-gi", Self::ShowGi),
        ("dump-md", Self::DumpMd),
        ("restore-md", Self::RestoreMd),
        ("verify-dump", Self::VerifyDump),
        ("apply-al", Self::ApplyAl),
        ("wipe-md", Self::WipeMd),
        ("outdate", Self::Outdate),
        ("invalidate", Self::Invalidate),
        ("dstate", Self::Dstate),
        ("read-dev-uuid", Self::ReadDevUuid),
        ("write-dev-uuid", Self::WriteDevUuid),
        ("set-gi", Self::SetGi),
        ("check-resize", Self::CheckResize),
        ("create-md", Self::CreateMd),
    ];

    pub(super) fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, command)| *command == self).map_or("", |(name, _)| name)
    }

    /// Whether it may change the metadata, which an attached device forbids.
    pub(super) const fn modifies(self) -> bool {
        !matches!(
            self,
            Self::GetGi | Self::ShowGi | Self::DumpMd | Self::VerifyDump | Self::Dstate | Self::ReadDevUuid
        )
    }

    const fn takes_node_id(self) -> bool {
        matches!(self, Self::GetGi | Self::ShowGi | Self::SetGi)
    }
}

/// How `create-md` clears the bitmap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum InitializeBitmap {
    /// By telling the device to, else by writing.
    Automatic,
    /// By telling the device to, or not at all.
    Zeroout,
    /// By writing zeros.
    Write,
    /// Not at all.
    Skip,
}

/// What the command line says.
#[derive(Debug)]
pub(super) struct Context {
    /// The command line as `dump-md` repeats it.
    pub(super) command_line: String,
    pub(super) force: bool,
    pub(super) verbose: u32,
    pub(super) ignore_sanity_checks: bool,
    pub(super) dry_run: bool,
    pub(super) peer_max_bio_size: u32,
    pub(super) initialize_bitmap: InitializeBitmap,
    /// The striping asked for, as given.
    stripes: u32,
    stripe_size_4k: u32,
    /// Whether a striping was asked for.
    pub(super) striping_given: bool,
    node_id: Option<u64>,
    /// The first argument: a minor number, a device of ours, or `-`.
    pub(super) drbd_device: String,
    pub(super) minor: Option<u32>,
    /// The device that holds the metadata.
    pub(super) device: String,
    pub(super) placement: Placement,
    pub(super) command: Command,
    /// What follows the command.
    pub(super) arguments: Vec<String>,
}

impl Context {
    /// The striping for new metadata.
    pub(super) const fn striping(&self) -> Striping {
        Striping { stripes: self.stripes, stripe_size_4k: self.stripe_size_4k }
    }

    /// The checks that come after the device has been found not to be in use.
    pub(super) fn check_options(&self) -> Outcome<()> {
        if self.peer_max_bio_size != 0 && self.command != Command::CreateMd {
            return stop(BAD, "The --peer-max-bio-size option is only allowed with create-md");
        }
        if self.striping_given && !matches!(self.command, Command::CreateMd | Command::RestoreMd) {
            return stop(BAD, "The --al-stripe* options are only allowed with create-md and restore-md");
        }
        let blocks = u64::from(self.stripes) * u64::from(self.stripe_size_4k);
        if blocks > RING_BLOCKS_MAX_CREATE {
            return stop(BAD, "invalid (too large) al-stripe* settings");
        }
        if blocks < u64::from(Striping::DEFAULT.blocks()) {
            return stop(BAD, "invalid (too small) al-stripe* settings");
        }
        match self.node_id {
            Some(_) if !self.command.takes_node_id() => {
                let name = self.command.name();
                stop(BAD, format_args!("The {name} command does not accept the --node-id option"))
            }
            Some(1..) => {
                tell("Not v09, implicitly set --node-id = 0");
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

/// Which option, by any of its spellings.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Opt {
    IgnoreSanityChecks,
    DryRun,
    Force,
    Verbose,
    PeerMaxBioSize,
    NodeId,
    AlStripes,
    AlStripeSize,
    InitializeBitmap,
}

/// Long name, short name, option, whether it takes a value.
const OPTIONS: [(&str, Option<char>, Opt, bool); 9] = [
    ("ignore-sanity-checks", None, Opt::IgnoreSanityChecks, false),
    ("dry-run", None, Opt::DryRun, false),
    ("force", Some('f'), Opt::Force, false),
    ("verbose", Some('v'), Opt::Verbose, false),
    ("peer-max-bio-size", Some('p'), Opt::PeerMaxBioSize, true),
    ("node-id", Some('i'), Opt::NodeId, true),
    ("al-stripes", Some('s'), Opt::AlStripes, true),
    ("al-stripe-size-kB", Some('z'), Opt::AlStripeSize, true),
    ("initialize-bitmap", Some('b'), Opt::InitializeBitmap, true),
];

/// Understands the command line up to and including the command.
pub(super) fn parse(program: &str, arguments: &[String]) -> Outcome<Context> {
    if arguments.len() < 3 {
        return usage(program);
    }
    let mut context = Context {
        command_line: program.to_owned(),
        force: false,
        verbose: 0,
        ignore_sanity_checks: false,
        dry_run: false,
        peer_max_bio_size: 0,
        initialize_bitmap: InitializeBitmap::Automatic,
        stripes: Striping::DEFAULT.stripes,
        stripe_size_4k: Striping::DEFAULT.stripe_size_4k,
        striping_given: false,
        node_id: None,
        drbd_device: String::new(),
        minor: None,
        device: String::new(),
        placement: Placement::Internal,
        command: Command::GetGi,
        arguments: Vec::new(),
    };
    let operands = parse_options(&mut context, program, arguments)?;
    for word in &operands {
        context.command_line.push(' ');
        context.command_line.push_str(word);
    }
    let mut operands = operands.into_iter();
    context.drbd_device = operands.next().unwrap_or_default();
    match operands.next().as_deref() {
        None => return stop(USAGE, "Format identifier missing"),
        Some("v08") => {}
        Some(other @ ("v06" | "v07" | "v09")) => {
            return stop(USAGE, format_args!("Format '{other}' is not supported, only 'v08' is."));
        }
        Some(other) => return stop(USAGE, format_args!("Unknown format '{other}'.")),
    }
    let (Some(device), Some(index)) = (operands.next(), operands.next()) else {
        return stop(USAGE, "Too few arguments for format");
    };
    context.device = device;
    context.placement = parse_index(&index)?;
    let Some(name) = operands.next() else { return stop(USAGE, "command missing") };
    match Command::ALL.iter().find(|(known, _)| *known == name) {
        Some((_, command)) => context.command = *command,
        None => return stop(USAGE, format_args!("Unknown command '{name}'.")),
    }
    context.arguments = operands.collect();
    if context.drbd_device != "-" {
        context.minor = Some(parse_minor(&context.drbd_device)?);
    }
    Ok(context)
}

fn parse_index(text: &str) -> Outcome<Placement> {
    match text {
        "internal" | "flex-internal" => Ok(Placement::Internal),
        "flex-external" => Ok(Placement::FlexibleExternal),
        _ => match c_number(text) {
            Some(slot) if slot <= u64::from(MAX_INDEX) => Ok(Placement::Indexed(slot as u32)),
            _ => stop(USAGE, format_args!("'{text}' is not a valid index number.")),
        },
    }
}

/// A number by C's rules: `0x` hexadecimal, a leading `0` octal, else decimal.
fn c_number(text: &str) -> Option<u64> {
    if !text.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'x' || byte == b'X') {
        return None;
    }
    match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None if text.len() > 1 && text.starts_with('0') => u64::from_str_radix(text, 8).ok(),
        None => text.parse().ok(),
    }
}

/// The minor number of the first argument: digits, `/dev/drbd` and digits, or a device node of DRBD's major number.
fn parse_minor(text: &str) -> Outcome<u32> {
    const MAJOR: u64 = 147;
    let digits = text.strip_prefix("/dev/drbd").unwrap_or(text);
    if !digits.is_empty()
        && digits.bytes().all(|byte| byte.is_ascii_digit())
        && let Ok(minor) = digits.parse()
    {
        return Ok(minor);
    }
    if let Ok(metadata) = std::fs::metadata(text)
        && metadata.file_type().is_block_device()
        && nix::sys::stat::major(metadata.rdev()) == MAJOR
    {
        return Ok(nix::sys::stat::minor(metadata.rdev()) as u32);
    }
    stop(USAGE, format_args!("Cannot determine minor device number of drbd device '{text}'"))
}

/// Takes the options out of the arguments, wherever they stand, as `getopt_long` does; returns the rest. The command
/// line that is repeated has the options first, as `getopt_long` leaves them.
fn parse_options(context: &mut Context, program: &str, arguments: &[String]) -> Outcome<Vec<String>> {
    let mut operands = Vec::new();
    let mut rest = arguments.iter();
    loop {
        let ahead = rest.as_slice();
        let Some(argument) = rest.next() else { break };
        if argument == "--" {
            context.command_line.push_str(" --");
            operands.extend(rest.cloned());
            break;
        }
        if let Some(long) = argument.strip_prefix("--") {
            let (name, mut value) = match long.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (long, None),
            };
            let (full, option, takes_value) = find_long(program, name, argument)?;
            if takes_value && value.is_none() {
                value = rest.next().cloned();
                if value.is_none() {
                    tell(format_args!("{program}: option '--{full}' requires an argument"));
                    return usage(program);
                }
            } else if !takes_value && value.is_some() {
                tell(format_args!("{program}: option '--{full}' doesn't allow an argument"));
                return usage(program);
            }
            apply(context, option, value.as_deref().unwrap_or_default())?;
        } else if argument.len() > 1 && argument.starts_with('-') {
            let mut letters = argument[1..].chars();
            while let Some(letter) = letters.next() {
                let Some((_, _, option, takes_value)) =
                    OPTIONS.iter().find(|(_, short, _, _)| *short == Some(letter))
                else {
                    tell(format_args!("{program}: invalid option -- '{letter}'"));
                    return usage(program);
                };
                if !takes_value {
                    apply(context, *option, "")?;
                    continue;
                }
                let behind: String = letters.by_ref().collect();
                let value = if behind.is_empty() { rest.next().cloned() } else { Some(behind) };
                let Some(value) = value else {
                    tell(format_args!("{program}: option requires an argument -- '{letter}'"));
                    return usage(program);
                };
                apply(context, *option, &value)?;
            }
        } else {
            operands.push(argument.clone());
            continue;
        }
        for word in &ahead[..ahead.len() - rest.len()] {
            context.command_line.push(' ');
            context.command_line.push_str(word);
        }
    }
    Ok(operands)
}

/// A long option by its name or the start of it.
fn find_long(program: &str, name: &str, argument: &str) -> Outcome<(&'static str, Opt, bool)> {
    let candidates: Vec<_> = OPTIONS.iter().filter(|(full, ..)| full.starts_with(name)).collect();
    let exact = candidates.iter().find(|(full, ..)| *full == name);
    match (exact, &candidates[..]) {
        (Some((full, _, option, takes_value)), _) | (None, [(full, _, option, takes_value)]) => {
            Ok((full, *option, *takes_value))
        }
        (None, []) => {
            tell(format_args!("{program}: unrecognized option '{argument}'"));
            usage(program)
        }
        (None, several) => {
            let names: String = several.iter().map(|(full, ..)| format!(" '--{full}'")).collect();
            tell(format_args!("{program}: option '{argument}' is ambiguous; possibilities:{names}"));
            usage(program)
        }
    }
}

fn apply(context: &mut Context, option: Opt, value: &str) -> Outcome<()> {
    match option {
        Opt::IgnoreSanityChecks => context.ignore_sanity_checks = true,
        Opt::DryRun => context.dry_run = true,
        Opt::Force => context.force = true,
        Opt::Verbose => context.verbose += 1,
        Opt::PeerMaxBioSize => match size(value, 1)? {
            bytes @ 0..=0x10_0000 => context.peer_max_bio_size = bytes as u32,
            _ => return stop(BAD, "peer-max-bio-size out of range (0...1M)"),
        },
        Opt::NodeId => match size(value, 1)? {
            id @ 0..=31 => context.node_id = Some(id),
            _ => return stop(BAD, "node-id out of range (0...31)"),
        },
        Opt::AlStripes => {
            context.stripes = saturate(size(value, 1)?);
            context.striping_given = true;
        }
        Opt::AlStripeSize => {
            context.stripe_size_4k = saturate(size(value, 1024)? / 4096);
            context.striping_given = true;
        }
        Opt::InitializeBitmap => {
            context.initialize_bitmap = match value {
                "automatic" => InitializeBitmap::Automatic,
                "zeroout" => InitializeBitmap::Zeroout,
                "pwrite" => InitializeBitmap::Write,
                "skip" => InitializeBitmap::Skip,
                _ => {
                    let choice = "automatic|zeroout|pwrite|skip";
                    return stop(
                        BAD,
                        format_args!("invalid initialize-bitmap-mode \"{value}\", should be one of {choice}"),
                    );
                }
            }
        }
    }
    Ok(())
}

fn saturate(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// A number with a unit, in bytes; `default_unit` is that of a number without one.
fn size(text: &str, default_unit: u64) -> Outcome<u64> {
    let digits = text.trim_end_matches(|character: char| !character.is_ascii_digit());
    let unit = match &text[digits.len()..] {
        "" => Some(default_unit),
        "s" | "S" => Some(512),
        "k" | "K" => Some(1 << 10),
        "m" | "M" => Some(1 << 20),
        "g" | "G" => Some(1 << 30),
        _ => None,
    };
    let (Some(unit), Ok(number)) = (unit, digits.parse::<u64>()) else {
        return stop(USAGE, format_args!("{text} is not a valid number"));
    };
    match number.checked_mul(unit) {
        Some(bytes) => Ok(bytes),
        None => stop(USAGE, format_args!("{text}: out of range")),
    }
}

/// Prints the original's text, although of the formats only v08 is supported and of the commands not `forget-peer`.
fn usage<T>(program: &str) -> Outcome<T> {
    say(format_args!(
        "
USAGE: {program} [--force] DEVICE FORMAT [FORMAT ARGS...] COMMAND [CMD ARGS...]

FORMATS:
  v06 minor
  v07 device index
  v08 device index
  v09 device index

COMMANDS:
  get-gi --node-id {{val}} 
  show-gi --node-id {{val}} 
  dump-md 
  restore-md file
  verify-dump file
  apply-al 
  wipe-md 
  outdate 
  invalidate 
  dstate 
  check-resize 
  create-md [--peer-max-bio-size {{val}}] [--al-stripes {{val}}] [--al-stripe-size-kB {{val}}] {{max_peers}}
  forget-peer --node-id {{val}} "
    ));
    Err(Exit(USAGE))
}
