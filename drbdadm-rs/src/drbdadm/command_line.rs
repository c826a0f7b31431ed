//! The command line, by the rules of GNU `getopt_long` (cli spec 2).

use udrbd_config::options::OptionDefinition;
use udrbd_config::resource_name_fault;

use super::Exit;
use super::commands::{COMMANDS, Command, Function, find};
use super::system::System;
use super::usage;

/// Whether an option takes an argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Argument {
    None,
    Optional,
    Required,
}

/// An option of the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LongOption {
    pub(super) name: &'static str,
    pub(super) argument: Argument,
    /// The short form; options to pass on have none.
    pub(super) short: Option<char>,
}

const fn general(name: &'static str, short: char, argument: Argument) -> LongOption {
    LongOption { name, argument, short: Some(short) }
}

/// The options of `drbdadm` itself, as the usage lists them.
pub(super) const GENERAL_OPTIONS: &[LongOption] = &[
    general("stacked", 'S', Argument::None),
    general("dry-run", 'd', Argument::None),
    general("verbose", 'v', Argument::None),
    general("config-file", 'c', Argument::Required),
    general("config-to-test", 't', Argument::Required),
    general("drbdsetup", 's', Argument::Required),
    general("drbdmeta", 'm', Argument::Required),
    general("drbd-proxy-ctl", 'p', Argument::Required),
    general("sh-varname", 'n', Argument::Required),
    general("peer", 'P', Argument::Required),
    general("version", 'V', Argument::None),
    general("setup-option", 'W', Argument::Required),
    general("help", 'h', Argument::None),
];

/// Ours alone, not in the usage: do not start the daemon. The character is no option letter.
const NO_START: LongOption = general("no-start", '\0', Argument::None);

/// Ours alone, for `verify`: wait for its end; and have differences repaired. Known by their whole names only, so that
/// they change no abbreviation.
const WAIT: &str = "wait";
const REPAIR: &str = "repair";
/// Ours alone, for `split-brain-report`: for programs. Known by its whole name only.
const JSON: &str = "json";

/// How an option to pass on is spelled.
pub(super) fn passed_on(definition: &OptionDefinition) -> LongOption {
    let argument = if definition.value_is_optional() { Argument::Optional } else { Argument::Required };
    LongOption { name: definition.name, argument, short: None }
}

/// The configuration file named with `-c`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct GivenFile {
    /// The name; `STDIN` for standard input.
    pub(super) name: String,
    pub(super) text: Vec<u8>,
    pub(super) is_input: bool,
}

/// What the command line says.
#[derive(Debug, Clone, Default)]
pub(super) struct CommandLine {
    pub(super) command: Option<&'static Command>,
    /// The names behind the command.
    pub(super) names: Vec<String>,
    /// What helpers are given besides.
    pub(super) passed_on: Vec<String>,
    pub(super) stacked: bool,
    pub(super) dry_run: u32,
    pub(super) verbose: u32,
    pub(super) file: Option<GivenFile>,
    pub(super) file_to_test: Option<String>,
    pub(super) setup_path: Option<String>,
    pub(super) meta_path: Option<String>,
    pub(super) proxy_control_path: Option<String>,
    pub(super) variable_name: Option<String>,
    pub(super) peer: Option<String>,
    pub(super) no_start: bool,
    pub(super) wait: bool,
    pub(super) repair: bool,
    pub(super) json: bool,
}

/// A parse in progress.
struct Reader<'s> {
    system: &'s mut dyn System,
    program: &'s str,
    options: Vec<LongOption>,
    line: CommandLine,
    help: bool,
    /// Options given as such, which the command must know.
    to_check: Vec<String>,
}

/// Reads the command line. `program` is the name it was called by, without path.
///
/// # Errors
/// The exit status, when that is all there is to do.
pub(super) fn read(
    system: &mut dyn System,
    program: &str,
    arguments: &[String],
) -> Result<CommandLine, Exit> {
    let mut options = GENERAL_OPTIONS.to_vec();
    for set in COMMANDS.iter().filter_map(|command| command.options) {
        options.extend(set.iter().map(passed_on));
    }
    options.push(NO_START);
    let line = CommandLine::default();
    let mut reader = Reader { system, program, options, line, help: false, to_check: Vec::new() };
    let words = reader.options(arguments)?;
    reader.words(&words)?;
    reader.check_passed_on()?;
    Ok(reader.line)
}

impl Reader<'_> {
    fn complain(&mut self, text: &str) {
        self.system.complain(text.as_bytes());
    }

    /// A fault of getopt's, and how to get help.
    fn refuse<T>(&mut self, complaint: &str) -> Result<T, Exit> {
        self.complain(&format!("{}: {complaint}\ntry '{} help'\n", self.program, self.program));
        Err(Exit(1))
    }

    /// Takes the options out and returns the other words.
    fn options(&mut self, arguments: &[String]) -> Result<Vec<String>, Exit> {
        let mut words = Vec::new();
        let mut rest = arguments.iter();
        while let Some(argument) = rest.next() {
            if argument == "--" {
                words.extend(rest.cloned());
                break;
            } else if let Some(long) = argument.strip_prefix("--") {
                self.long_option(long, &mut rest)?;
            } else if argument.starts_with('-') && argument.len() > 1 {
                self.short_options(&argument[1..], &mut rest)?;
            } else {
                words.push(argument.clone());
            }
        }
        Ok(words)
    }

    fn long_option(&mut self, text: &str, rest: &mut std::slice::Iter<'_, String>) -> Result<(), Exit> {
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (text, None),
        };
        if name == WAIT || name == REPAIR {
            self.line.wait = true;
            self.line.repair |= name == REPAIR;
            self.to_check.push(format!("--{text}"));
            return Ok(());
        }
        if name == JSON {
            self.line.json = true;
            self.to_check.push(format!("--{text}"));
            return Ok(());
        }
        let option = self.find_long(name, text)?;
        let value = match (option.argument, value) {
            (Argument::None, Some(_)) => {
                return self.refuse(&format!("option '--{}' doesn't allow an argument", option.name));
            }
            (Argument::Required, None) => match rest.next() {
                Some(value) => Some(value.clone()),
                None => return self.refuse(&format!("option '--{}' requires an argument", option.name)),
            },
            (_, value) => value,
        };
        self.apply(option, value)
    }

    /// The option of that name, or the one it abbreviates.
    fn find_long(&mut self, name: &str, text: &str) -> Result<LongOption, Exit> {
        if let Some(option) = self.options.iter().find(|option| option.name == name) {
            return Ok(*option);
        }
        let mut candidates = self.options.iter().filter(|option| option.name.starts_with(name));
        let Some(first) = candidates.next().copied() else {
            return self.refuse(&format!("unrecognized option '--{text}'"));
        };
        // Options that are handled alike do not make an abbreviation ambiguous.
        let others: Vec<&str> = candidates
            .filter(|option| option.argument != first.argument || option.short != first.short)
            .map(|option| option.name)
            .collect();
        if others.is_empty() {
            return Ok(first);
        }
        let possibilities: String =
            std::iter::once(first.name).chain(others).map(|name| format!(" '--{name}'")).collect();
        self.refuse(&format!("option '--{text}' is ambiguous; possibilities:{possibilities}"))
    }

    fn short_options(&mut self, text: &str, rest: &mut std::slice::Iter<'_, String>) -> Result<(), Exit> {
        for (position, letter) in text.char_indices() {
            let known = GENERAL_OPTIONS.iter().find(|option| option.short == Some(letter));
            let Some(option) = known else {
                return self.refuse(&format!("invalid option -- '{letter}'"));
            };
            if option.argument == Argument::None {
                self.apply(*option, None)?;
                continue;
            }
            let attached = &text[position + letter.len_utf8()..];
            let value = if attached.is_empty() { rest.next().cloned() } else { Some(attached.to_owned()) };
            let Some(value) = value else {
                return self.refuse(&format!("option requires an argument -- '{letter}'"));
            };
            return self.apply(*option, Some(value));
        }
        Ok(())
    }

    fn apply(&mut self, option: LongOption, value: Option<String>) -> Result<(), Exit> {
        let Some(short) = option.short else {
            let text = match value {
                Some(value) => format!("--{}={value}", option.name),
                None => format!("--{}", option.name),
            };
            self.to_check.push(text.clone());
            self.line.passed_on.push(text);
            return Ok(());
        };
        let value = value.unwrap_or_default();
        match short {
            'S' => self.line.stacked = true,
            'd' => self.line.dry_run += 1,
            'v' => self.line.verbose += 1,
            'c' => self.line.file = Some(self.open(value)?),
            't' => self.line.file_to_test = Some(value),
            's' => self.line.setup_path = Some(self.executable(value)?),
            'm' => self.line.meta_path = Some(self.executable(value)?),
            'p' => self.line.proxy_control_path = Some(self.executable(value)?),
            'n' => self.variable_name(value),
            'P' => self.line.peer = Some(value),
            'V' => {
                let text = usage::version_assignments();
                self.system.print(&text);
                return Err(Exit(0));
            }
            'W' => self.line.passed_on.push(value),
            'h' => self.help = true,
            _ => self.line.no_start = true,
        }
        Ok(())
    }

    fn open(&mut self, name: String) -> Result<GivenFile, Exit> {
        if name == "-" {
            let text = self.system.read_input().map_err(|_| Exit(20))?;
            return Ok(GivenFile { name: "STDIN".to_owned(), text, is_input: true });
        }
        let directory = self.system.directory();
        match self.system.files().read(&directory, &name) {
            Ok(text) => Ok(GivenFile { name, text, is_input: false }),
            Err(_) => {
                self.complain(&format!("Can not open '{name}'.\n."));
                Err(Exit(20))
            }
        }
    }

    fn executable(&mut self, path: String) -> Result<String, Exit> {
        if self.system.is_executable(&path) {
            return Ok(path);
        }
        self.complain("Can not find command (drbdsetup/drbdmeta)\n");
        Err(Exit(20))
    }

    fn variable_name(&mut self, name: String) {
        if name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
            self.line.variable_name = Some(name);
            return;
        }
        self.complain(&format!(
            "ignored --sh-varname={name}: contains suspect characters, allowed set is [a-zA-Z0-9_]\n"
        ));
    }

    /// The words: helper options, the command, names.
    fn words(&mut self, words: &[String]) -> Result<(), Exit> {
        for word in words {
            if self.line.command.is_some() {
                if let Some(fault) = resource_name_fault(word) {
                    self.complain(&format!("{fault}\n"));
                    return Err(Exit(1));
                }
                self.line.names.push(word.clone());
            } else if word == "help" {
                self.help = true;
            } else if word == "hidden-commands" {
                let text = usage::hidden_commands();
                self.system.print(text.as_bytes());
                return Err(Exit(0));
            } else {
                self.line.command = find(self.undeprecated(word));
                if self.line.command.is_none() {
                    self.line.passed_on.push(word.clone());
                }
            }
        }
        if self.help {
            let text = usage::usage(self.program, self.line.command, None);
            self.system.print(text.as_bytes());
            return Err(Exit(0));
        }
        if self.line.command.is_some() {
            return Ok(());
        }
        if let Some(first) = words.first() {
            self.complain(&format!("{}: Unknown command '{first}'\n", self.program));
        } else {
            let text = usage::usage(self.program, None, Some("No command specified"));
            self.system.print(text.as_bytes());
        }
        Err(Exit(1))
    }

    /// The name today of a command with an old name.
    fn undeprecated<'w>(&mut self, word: &'w str) -> &'w str {
        let new = match word {
            "state" => "role",
            "outdate-peer" => "fence-peer",
            _ => return word,
        };
        let program = self.program;
        self.complain(&format!("'{program} {word}' is deprecated, use '{program} {new}' instead.\n"));
        new
    }

    /// Options given as such must be options of the command; `create-md` takes them all.
    fn check_passed_on(&mut self) -> Result<(), Exit> {
        let Some(command) = self.line.command else { return Ok(()) };
        if command.function == Function::CreateMeta {
            return Ok(());
        }
        for option in std::mem::take(&mut self.to_check) {
            let full = option.split_once('=').map_or(option.as_str(), |(name, _)| name);
            let name = full.trim_start_matches("--");
            if command.function == Function::Verify && full == option && matches!(name, WAIT | REPAIR) {
                continue;
            }
            if command.function == Function::SplitBrainReport && full == option && name == JSON {
                continue;
            }
            if command.options.is_none_or(|set| set.find(name).is_none()) {
                self.complain(&format!(
                    "{0}: unrecognized option '{full}'\ntry '{0} help {1}'\n",
                    self.program, command.name
                ));
                return Err(Exit(1));
            }
        }
        Ok(())
    }
}
