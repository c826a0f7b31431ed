//! A command line, understood.

use std::path::Path;
use std::time::Duration;

use udrbd_control::client::{Client, ClientError, run_directory};
use udrbd_control::options::OptionSetting;
use udrbd_control::status::NodeSnapshot;
use udrbd_control::{Address, connect_or_start};
use udrbd_units::Minor;

use super::commands::Command;
use super::output::{complain, out, terminal_width};
use super::{EXIT_USAGE, general_usage, getopt, usage};

/// A command waits so long for its answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(120);
/// Any value keeps this program from starting a daemon.
const NO_START_VARIABLE: &str = "UDRBD_NO_START";
/// How the object prints that has no name: commands that name addresses only.
const NAMELESS: &str = "??";

/// What a command works on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// Nothing, or addresses only.
    None,
    /// Everything.
    All,
    /// A minor.
    Minor(Minor),
    /// A resource.
    Resource(String),
}

/// A command line, understood.
#[derive(Debug)]
pub(super) struct Invocation<'a> {
    /// The name of the program.
    pub(super) program: &'a str,
    /// The command.
    pub(super) command: &'static Command,
    /// The object as typed; messages begin with it.
    pub(super) object: String,
    /// The object.
    pub(super) target: Target,
    /// The own and the peer's address, for commands about connections.
    pub(super) addresses: Option<(Address, Address)>,
    /// The options in order, by full name.
    pub(super) options: Vec<(&'static str, Option<String>)>,
    /// The words behind the object.
    pub(super) words: Vec<String>,
}

impl<'a> Invocation<'a> {
    /// Understands the words behind the command.
    ///
    /// # Errors
    /// The exit status, when everything has been said.
    pub(super) fn parse(program: &'a str, command: &'static Command, args: &[String]) -> Result<Self, i32> {
        let parsed = getopt::parse(command.name, args, &command.long_options()).map_err(|message| {
            complain(&message);
            general_usage(program, None)
        })?;
        let mut words = parsed.words.into_iter();
        let (object, target) = parse_object(program, command, &mut words)?;
        let addresses = parse_addresses(program, command, &mut words)?;
        let options = parsed.options;
        Ok(Self { program, command, object, target, addresses, options, words: words.collect() })
    }

    /// Whether a bare option was given.
    pub(super) fn has(&self, name: &str) -> bool {
        self.options.iter().any(|(known, _)| *known == name)
    }

    /// The value of an option.
    pub(super) fn value(&self, name: &str) -> Option<&str> {
        self.options.iter().find(|(known, _)| *known == name).and_then(|(_, value)| value.as_deref())
    }

    /// The options as settings for an option set.
    pub(super) fn settings(&self) -> Vec<OptionSetting> {
        self.options
            .iter()
            .map(|(name, value)| OptionSetting { name: (*name).to_owned(), value: value.clone() })
            .collect()
    }

    /// Tells of words that are too many, on standard error but for the newline, as the original does.
    pub(super) fn refuse_excess(&self, expected: usize) -> Result<(), i32> {
        let excess = self.words.get(expected..).unwrap_or_default();
        if excess.is_empty() {
            return Ok(());
        }
        eprint!("Excess arguments: {}", excess.join(" "));
        out("\n");
        Err(EXIT_USAGE)
    }

    /// Says that an argument is missing.
    pub(super) fn missing_argument(&self, name: &str) -> i32 {
        complain(&format!("Missing argument '{name}'"));
        out(&usage::of_command(self.program, self.command, terminal_width()));
        EXIT_USAGE
    }

    /// Connects to the daemon; `start` says whether to start one where none answers.
    ///
    /// # Errors
    /// As [`Client::connect`].
    pub(super) fn connect(&self, start: bool) -> Result<Client, ClientError> {
        let directory = run_directory();
        let connect: fn(&Path, &str) -> Result<Client, ClientError> =
            if start && std::env::var_os(NO_START_VARIABLE).is_none() {
                connect_or_start
            } else {
                Client::connect
            };
        let mut client = connect(&directory, self.program)?;
        client.set_answer_timeout(Some(ANSWER_TIMEOUT))?;
        Ok(client)
    }

    /// The state of the node; an empty one where no daemon answers.
    ///
    /// # Errors
    /// The exit status, when everything has been said.
    pub(super) fn snapshot(&self) -> Result<NodeSnapshot, i32> {
        let resource = match &self.target {
            Target::Resource(name) => Some(name.as_str()),
            _ => None,
        };
        match self.connect(false).and_then(|mut client| client.snapshot(resource)) {
            Ok(snapshot) => Ok(snapshot),
            Err(ClientError::NotRunning { .. }) => Ok(NodeSnapshot::default()),
            Err(error) => Err(self.daemon_trouble(&error)),
        }
    }

    /// Says why the daemon cannot be asked.
    pub(super) fn daemon_trouble(&self, error: &ClientError) -> i32 {
        complain(&format!("{}: {error}", self.object));
        EXIT_USAGE
    }
}

fn parse_object(
    program: &str,
    command: &'static Command,
    words: &mut impl Iterator<Item = String>,
) -> Result<(String, Target), i32> {
    let object = command.object;
    if !(object.takes_minor() || object.takes_resource()) {
        return Ok((NAMELESS.to_owned(), Target::None));
    }
    let Some(name) = words.next() else {
        if object.takes_all() {
            return Ok(("all".to_owned(), Target::All));
        }
        complain("Missing first argument");
        out(&usage::of_command(program, command, terminal_width()));
        return Err(EXIT_USAGE);
    };
    if let Some(problem) = problem_of_name(&name) {
        complain(problem);
        return Err(1);
    }
    if name == "all" {
        if !object.takes_all() {
            return Err(general_usage(program, Some("command does not accept argument 'all'")));
        }
        return Ok((name, Target::All));
    }
    if object.takes_minor() {
        if let Some(minor) = minor_of_device(&name) {
            return Ok((name, Target::Minor(minor)));
        }
        if !object.takes_resource() {
            complain(&format!("Cannot determine minor device number of device '{name}'"));
            return Err(EXIT_USAGE);
        }
    }
    Ok((name.clone(), Target::Resource(name)))
}

fn problem_of_name(name: &str) -> Option<&'static str> {
    if name.is_empty() {
        return Some("Resource name is empty.");
    }
    let control = name.bytes().any(|byte| byte < b' ' || byte == 0x7f);
    control.then_some("Resource name is invalid - please don't use control characters.")
}

/// The minor that `7`, `/dev/drbd7` or a link to it names.
pub(super) fn minor_of_device(name: &str) -> Option<Minor> {
    let digits = |text: &str| -> Option<Minor> {
        let all_digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        if all_digits { text.parse().ok().map(Minor) } else { None }
    };
    let of_node = |path: &str| path.strip_prefix("/dev/drbd").and_then(digits);
    if let Some(minor) = digits(name).or_else(|| of_node(name)) {
        return Some(minor);
    }
    let real = std::fs::canonicalize(name).ok()?;
    of_node(real.to_str()?)
}

fn parse_addresses(
    program: &str,
    command: &'static Command,
    words: &mut impl Iterator<Item = String>,
) -> Result<Option<(Address, Address)>, i32> {
    if !command.object.takes_connection() {
        return Ok(None);
    }
    let (Some(local), Some(peer)) = (words.next(), words.next()) else {
        complain("Missing connection endpoint argument");
        out(&usage::of_command(program, command, terminal_width()));
        return Err(EXIT_USAGE);
    };
    let read = |text: &str| {
        text.parse::<Address>().map_err(|error| {
            complain(&error.to_string());
            EXIT_USAGE
        })
    };
    Ok(Some((read(&local)?, read(&peer)?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn minors_have_two_spellings() {
        assert_eq!(minor_of_device("0"), Some(Minor(0)));
        assert_eq!(minor_of_device("/dev/drbd12"), Some(Minor(12)));
        for name in ["r0", "", "-1", "/dev/drbd", "/dev/drbdx", "/dev/null", "99999999999"] {
            assert_eq!(minor_of_device(name), None, "{name}");
        }
    }

    #[test]
    fn names_are_checked() {
        assert!(problem_of_name("").is_some());
        assert!(problem_of_name("a\tb").is_some());
        assert!(problem_of_name("r0/1").is_none());
    }
}
