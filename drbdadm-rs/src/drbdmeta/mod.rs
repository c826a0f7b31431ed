//! `drbdmeta`: creates, shows and changes the metadata of a device that is not attached (metadata spec 9).
//!
//! Everything that is decided about bytes is in the crate `udrbd_metadata`; here are the command line, the questions,
//! the texts and the I/O. Devices may be block devices or regular files.

mod apply;
mod commands;
mod create;
mod device;
mod existing;
mod known;
mod lock;
mod open;
mod options;
mod resize;
mod text;

use std::fmt::Display;
use std::io::{BufRead, IsTerminal, Write};

use options::{Command, Context};

/// The program ends with this status; whatever there was to say has been said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Exit(i32);

/// A result of which the error has already been reported.
type Outcome<T> = Result<T, Exit>;

/// The status of a command that failed in the ordinary way.
const FAILED: i32 = 1;
/// The status after an I/O error, a bad argument or a bad dump.
const BAD: i32 = 10;
/// The status after a usage error, or if the device cannot be opened or is in use.
const USAGE: i32 = 20;

/// Runs `drbdmeta` as `called_as` with its arguments and returns the exit status.
pub fn run(called_as: &str, arguments: &[String]) -> i32 {
    match run_command(called_as, arguments) {
        Ok(status) | Err(Exit(status)) => status,
    }
}

fn run_command(called_as: &str, arguments: &[String]) -> Outcome<i32> {
    let program = called_as.rsplit('/').next().unwrap_or(called_as);
    let context = options::parse(program, arguments)?;
    // Held until the command is done.
    let mut guard = None;
    let mut attached = false;
    if let Some(minor) = context.minor {
        guard = Some(lock::take(minor)?);
        attached = lock::is_attached(minor)?;
        if attached && context.command.modifies() {
            return stop(USAGE, format_args!("Device '{}' is configured!", context.drbd_device));
        }
    }
    context.check_options()?;
    let status = dispatch(&context)?;
    if let Some(minor) = context.minor
        && attached
    {
        tell(format_args!("# Output might be stale, since minor {minor} is attached"));
    }
    drop(guard);
    Ok(status)
}

fn dispatch(context: &Context) -> Outcome<i32> {
    let takes = match context.command {
        Command::RestoreMd | Command::VerifyDump => usize::MAX,
        Command::SetGi | Command::WriteDevUuid | Command::CreateMd => 1,
        _ => 0,
    };
    if context.arguments.len() > takes
        || (context.command == Command::CreateMd && !context.arguments.is_empty())
    {
        tell("Ignoring additional arguments");
    }
    match context.command {
        Command::GetGi => commands::get_gi(context),
        Command::ShowGi => commands::show_gi(context),
        Command::DumpMd => text::dump_md(context),
        Command::RestoreMd => text::restore_md(context),
        Command::VerifyDump => text::verify_dump(context),
        Command::ApplyAl => apply::apply_al(context),
        Command::WipeMd => commands::wipe_md(context),
        Command::Outdate => commands::outdate(context),
        Command::Invalidate => commands::invalidate(context),
        Command::Dstate => commands::dstate(context),
        Command::ReadDevUuid => commands::read_dev_uuid(context),
        Command::WriteDevUuid => commands::write_dev_uuid(context),
        Command::SetGi => commands::set_gi(context),
        Command::CheckResize => resize::check_resize(context),
        Command::CreateMd => create::create_md(context),
    }
}

/// Prints a line on standard error.
fn tell(message: impl Display) {
    // There is nobody left to tell if standard error is closed.
    let _ = writeln!(std::io::stderr(), "{message}");
}

/// Prints a line on standard output.
fn say(message: impl Display) {
    let _ = writeln!(std::io::stdout(), "{message}");
}

/// Prints a line on standard error and ends with `status`.
fn stop<T>(status: i32, message: impl Display) -> Outcome<T> {
    tell(message);
    Err(Exit(status))
}

/// Asks for a `yes` (metadata spec 9.6): given by `--force`, refused without a terminal.
fn confirmed(context: &Context, question: &str) -> bool {
    tell(format_args!("\n{question}"));
    if context.force {
        tell("*** confirmation forced via --force option ***");
        return true;
    }
    let input = std::io::stdin();
    if !input.is_terminal() {
        tell("stdin not a TTY, not waiting for confirmation");
        return false;
    }
    let _ = write!(std::io::stderr(), "[need to type 'yes' to confirm] ");
    let mut answer = String::new();
    let yes = input.lock().read_line(&mut answer).is_ok() && answer == "yes\n";
    tell("");
    yes
}

/// The text of an operating system error, without its number.
fn reason(error: &std::io::Error) -> String {
    match error.raw_os_error() {
        Some(number) => nix::errno::Errno::from_raw(number).desc().to_owned(),
        None => error.to_string(),
    }
}
