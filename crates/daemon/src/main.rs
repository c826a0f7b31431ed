//! udrbdd: the daemon of a node. It is in the place of DRBD's kernel module.
//!
//! * one engine thread per resource (`reactor`): disks, sockets, clients, and the engine that decides;
//! * one control thread (`node`): the control socket, the status file, handlers, the NBD server's greetings, metrics;
//! * bounded mailboxes between them (`messages`): neither ever waits for the other.
//!
//! SIGTERM and SIGINT end it as a reboot ends the kernel's DRBD: clients are hung up on, requests in flight may finish
//! for some seconds, and nothing is demoted or detached. What the metadata say then is what they say after a
//! crash, and the next attach goes on from there.

mod instance;
mod messages;
mod node;
mod reactor;
mod settings;
mod thread;
mod undo;

use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use tracing_subscriber::EnvFilter;
use udrbd_runtime::process;

use instance::Instance;
use settings::Settings;

fn main() -> ExitCode {
    let settings = Settings::parse();
    start_logging();
    match serve(settings) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn serve(settings: Settings) -> anyhow::Result<()> {
    let instance = Instance::take(&settings.run_directory())?;
    make_promises();
    let outcome = tokio_uring::start(node::run(settings)).context("the control thread failed");
    drop(instance);
    outcome
}

/// libublk tells every step.
const FILTER: &str = "info,libublk=warn";

fn start_logging() {
    let filter = EnvFilter::try_from_env("UDRBD_LOG").unwrap_or_else(|_| EnvFilter::new(FILTER));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .with_ansi(false)
        .with_writer(std::io::stderr);
    if writes_to_journal() {
        log.without_time().init();
    } else {
        log.init();
    }
}

/// Whether standard error is systemd's journal, which notes the time itself. The variable alone says nothing: it is
/// inherited by processes that write elsewhere.
fn writes_to_journal() -> bool {
    let Ok(about) = nix::sys::stat::fstat(std::io::stderr()) else { return false };
    let own = format!("{}:{}", about.st_dev, about.st_ino);
    std::env::var("JOURNAL_STREAM").is_ok_and(|stream| stream == own)
}

/// What a process under a file system promises, as far as it is allowed to.
fn make_promises() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    // Without the limit being lifted, a later mapping could fail where none does now.
    if let Err(errno) = process::lock_memory() {
        tracing::warn!("memory is not locked: {errno}");
    }
    if let Err(errno) = process::shun_out_of_memory_killer() {
        tracing::warn!("the out-of-memory killer is not kept away: {errno}");
    }
}
