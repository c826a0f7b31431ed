//! `drbdsetup`: tells the daemon what to do, one verb at a time, and prints what it is told (command line spec 9).
//!
//! The program takes the command line apart as the original does, sends one request over the control socket and
//! makes texts and an exit status of the answer. Queries that find no daemon answer as if nothing were
//! configured; commands that change something start one, as the original loads its module.

mod commands;
mod configure;
mod getopt;
mod invocation;
mod output;
mod query;
mod resize;
mod split_brain;
mod undo;
mod usage;
mod verify;
mod watch;

use invocation::Invocation;
use output::{out, terminal_width};

/// Everything that is neither success nor a refusal with a number of its own.
const EXIT_USAGE: i32 = 20;

/// Runs `drbdsetup` under the name `program` and returns its exit status.
pub fn run(program: &str, args: &[String]) -> i32 {
    let program = program.rsplit('/').next().unwrap_or(program);
    let mut args = args.to_vec();
    if args.get(1).is_some_and(|word| word == "--help" || word == "-h") {
        args.swap(0, 1);
    }
    if let Some(first) = args.first()
        && ["help", "xml-help", "--help", "-h"].contains(&first.as_str())
    {
        return help(program, first == "xml-help", args.get(1).map(String::as_str));
    }
    // The object used to come first.
    if args.len() >= 2 && commands::find(&args[0]).is_none() && commands::find(&args[1]).is_some() {
        args.swap(0, 1);
    }
    let Some((name, rest)) = args.split_first() else { return general_usage(program, None) };
    let Some(command) = commands::find(name) else { return general_usage(program, Some("invalid command")) };
    match Invocation::parse(program, command, rest) {
        Ok(invocation) => dispatch(&invocation),
        Err(status) => status,
    }
}

fn help(program: &str, xml: bool, command: Option<&str>) -> i32 {
    let Some(name) = command else { return general_usage(program, None) };
    let Some(command) = commands::find(name) else { return general_usage(program, Some("unknown command")) };
    if xml {
        out(&usage::xml_of_command(command));
    } else {
        out(&usage::of_command(program, command, terminal_width()));
    }
    0
}

fn general_usage(program: &str, reason: Option<&str>) -> i32 {
    out(&usage::general(program, reason, terminal_width()));
    EXIT_USAGE
}

fn dispatch(invocation: &Invocation<'_>) -> i32 {
    match invocation.command.name {
        "state" | "role" | "cstate" | "dstate" | "show-gi" | "get-gi" => query::device(invocation),
        "show" => query::show(invocation),
        "status" => query::status(invocation),
        "sh-status" => query::sh_status(invocation),
        "check-resize" => resize::check_resize(invocation),
        "events" => watch::events(invocation),
        "events2" => watch::events2(invocation),
        "resync-undo" => undo::show(invocation),
        "split-brain-report" => split_brain::report(invocation),
        "wait-verify" => verify::wait(invocation),
        "wait-connect" | "wait-sync" => watch::wait(invocation),
        _ => configure::run(invocation),
    }
}
