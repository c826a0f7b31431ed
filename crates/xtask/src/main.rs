//! The project's own commands: check, test, demo, vm, bench, sim.
//!
//! `cargo xtask COMMAND` is the one entry point for everything a developer or a build machine runs.

mod vm;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use udrbd_tests::machine;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "The project's own commands", disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Run a command in a guest with a Debian kernel (ublk, the real DRBD) and this machine's root.
    Vm(vm::Options),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = match arguments.command {
        Task::Vm(options) => vm::run(&options),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            match machine::skip_reason(&error) {
                Some(reason) => eprintln!("skipped: {reason}"),
                None => eprintln!("error: {error:#}"),
            }
            ExitCode::FAILURE
        }
    }
}
