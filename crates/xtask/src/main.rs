//! The project's own commands: check, test, demo, dist, vm, bench, sim.
//!
//! `cargo xtask COMMAND` is the one entry point for everything a developer or a build machine runs.

mod bench;
mod check;
mod demo;
mod dist;
mod suites;
mod vm;
mod workspace;

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
    /// Formatting, clippy without a warning, and the project's own rules.
    Check,
    /// Every suite: unit, vector and property tests, simulator, pairs, guests.
    Test(suites::Options),
    /// A pair on this machine, from nothing to a failover, in about a minute.
    Demo(demo::Options),
    /// A Debian package in target/dist.
    Dist,
    /// A udrbd pair beside QEMU's quorum driver and an unreplicated NBD server.
    Bench(bench::Options),
    /// The simulator; its own words follow, e.g. `sim --seeds 1000`.
    Sim {
        /// Words of the simulator.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<String>,
    },
    /// Run a command in a guest with a Debian kernel (ublk, the real DRBD) and this machine's root.
    Vm(vm::Options),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = match arguments.command {
        Task::Check => check::run(),
        Task::Test(options) => suites::run(&options),
        Task::Demo(options) => demo::run(&options),
        Task::Dist => dist::run(),
        Task::Bench(options) => bench::run(&options),
        Task::Sim { words } => suites::simulate(&words),
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
