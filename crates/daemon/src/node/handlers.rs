//! Handler programs: `drbdadm HANDLER minor-N`, as the kernel calls its user-mode helper (states spec 20.1).
//!
//! The handlers of a resource run one after the other, in the order the engine asks for them; `fence-peer` alone waits for
//! nobody, as it decides whether I/O goes on. What they say on standard error goes to the log, up to a limit; one that does
//! not end is killed with all its processes, and counts as any helper that was killed: as a success, as in DRBD.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::rc::Rc;
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncReadExt, BufReader};
use tokio::process::{ChildStderr, Command};
use udrbd_control::client::{RUN_DIRECTORY_DEFAULT, RUN_DIRECTORY_VARIABLE};
use udrbd_control::protocol::{HelperEvent, StreamItem};
use udrbd_engine::interface::{Handler, HandlerId, Level};
use udrbd_units::{Minor, VolumeNumber};

use super::{Node, time_us};
use crate::messages::ToEngine;

/// drbdadm gives its shell 600 seconds; whoever takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(660);
/// What a handler may say, in bytes; the rest is dropped.
const SAID_MAX: usize = 16 << 10;
/// How long what it said is waited for when it has ended: its descendants may go on and hold its standard error.
const SAID_PATIENCE: Duration = Duration::from_millis(500);
/// The search path the kernel gives its helpers.
const SEARCH_PATH: &str = "/sbin:/usr/sbin:/bin:/usr/bin";
/// The wait status the kernel tells of a program it cannot start (-ENOENT).
const NOT_STARTED: u32 = 0xffff_fffe;

/// Runs a handler and tells the engine how it ended.
pub(super) async fn run(
    node: Rc<Node>,
    resource: String,
    handler: HandlerId,
    name: Handler,
    volume: Option<VolumeNumber>,
) {
    let turn = node.state.borrow().resource(&resource).map(|entry| Rc::clone(&entry.handlers));
    let turn = match &turn {
        Some(turn) if name != Handler::FencePeer => Some(turn.lock().await),
        _ => None,
    };
    let wait_status = match node.helper.clone() {
        Some(program) => call(&node, &resource, &program, name, volume).await,
        None => 0,
    };
    drop(turn);
    // As the kernel does: only the exit status counts, so that a helper that was killed, or could not be started,
    // counts as 0.
    let status = if wait_status == NOT_STARTED { 0 } else { wait_status >> 8 & 0xff };
    let mut state = node.state.borrow_mut();
    *state.metrics.helper_exits.entry((name.name().to_owned(), status)).or_default() += 1;
    if name == Handler::SplitBrain {
        *state.metrics.split_brains.entry(resource.clone()).or_default() += 1;
    }
    let Some(entry) = state.resource(&resource) else { return };
    let message = ToEngine::HandlerExit { handler, status: status as i32 };
    if entry.engine.mail.send(message).is_err() {
        tracing::error!("drbd {resource}: the end of {} got lost", name.name());
    }
}

async fn call(
    node: &Rc<Node>,
    resource: &str,
    program: &Path,
    name: Handler,
    volume: Option<VolumeNumber>,
) -> u32 {
    let (device, peer) = {
        let state = node.state.borrow();
        let entry = state.resource(resource);
        let device = volume.and_then(|number| {
            let volume = entry?.volume(number)?;
            Some((number, volume.minor))
        });
        let peer = entry.and_then(|entry| entry.net.as_ref()).map(|net| net.peer);
        (device, peer)
    };
    let argument = device.map_or_else(|| resource.to_owned(), |(_, minor)| format!("minor-{minor}"));
    let words = format!("{} {} {argument}", program.display(), name.name());
    node.log(resource, Level::Info, volume, &format!("helper command: {words}"));
    tell(node, resource, peer.is_some(), device, name, None);
    // Many scripts look there what they are called for.
    node.write_status_file();

    let mut command = Command::new(program);
    command.arg(name.name()).arg(&argument).env_clear();
    command.env("HOME", "/").env("TERM", "linux").env("PATH", search_path(program));
    command.env("DRBD_PEER_AF", peer.map_or("", |peer| peer.family.name()));
    command.env("DRBD_PEER_ADDRESS", peer.map_or_else(String::new, |peer| peer.host_for_handlers()));
    // A helper that asks back has to find this daemon.
    if node.run_directory != Path::new(RUN_DIRECTORY_DEFAULT) {
        command.env(RUN_DIRECTORY_VARIABLE, &node.run_directory);
    }
    command.env("__DRBD_NODE__", &node.name);
    let outcome = run_to_end(command, PATIENCE).await;
    let status = outcome.status;
    for line in outcome.said.lines() {
        node.log(resource, Level::Info, volume, &format!("{}: {line}", name.name()));
    }
    let trouble = match outcome.trouble {
        Some(Trouble::NotStarted(error)) => Some(format!("cannot be started: {error}")),
        Some(Trouble::Killed) => {
            Some(format!("did not end within {} seconds and was killed", PATIENCE.as_secs()))
        }
        None => None,
    };
    if let Some(trouble) = trouble {
        node.log(resource, Level::Error, volume, &format!("helper command: {words} {trouble}"));
    }
    if outcome.dropped > 0 {
        let text = format!("helper command: {words} said {} bytes more, not shown", outcome.dropped);
        node.log(resource, Level::Warning, volume, &text);
    }

    let exit = if status == NOT_STARTED { 0xff } else { status >> 8 & 0xff };
    let level = if status == 0 { Level::Info } else { Level::Warning };
    let text = format!("helper command: {words} exit code {exit} (0x{status:x})");
    node.log(resource, level, volume, &text);
    tell(node, resource, peer.is_some(), device, name, Some(status));
    status
}

/// Why a helper did not do what it should.
#[derive(Debug)]
enum Trouble {
    NotStarted(std::io::Error),
    Killed,
}

/// How a helper ended.
#[derive(Debug)]
struct Outcome {
    /// The wait status.
    status: u32,
    /// The beginning of what it wrote to standard error.
    said: String,
    /// Bytes it wrote beyond that.
    dropped: usize,
    trouble: Option<Trouble>,
}

async fn run_to_end(mut command: Command, patience: Duration) -> Outcome {
    // A group of its own, so that a shell does not leave behind what it waits for when it is killed.
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = match command.process_group(0).kill_on_drop(true).spawn() {
        Ok(child) => child,
        Err(error) => {
            let trouble = Some(Trouble::NotStarted(error));
            return Outcome { status: NOT_STARTED, said: String::new(), dropped: 0, trouble };
        }
    };
    let group = child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw);
    let (tell, mut told) = tokio::sync::watch::channel((Vec::new(), 0));
    let listener = child.stderr.take().map(|stderr| tokio::task::spawn_local(listen(stderr, tell)));
    let mut trouble = None;
    let status = match tokio::time::timeout(patience, child.wait()).await {
        Ok(status) => status,
        Err(_) => {
            trouble = Some(Trouble::Killed);
            if let Some(group) = group {
                // It may have ended in this moment.
                let _ = killpg(group, Signal::SIGKILL);
            }
            child.wait().await
        }
    };
    if let Some(listener) = listener {
        // One that is still at it goes on listening, so that nobody is killed for writing to nobody.
        let _ = tokio::time::timeout(SAID_PATIENCE, listener).await;
    }
    let (said, dropped) = told.borrow_and_update().clone();
    let said = String::from_utf8_lossy(&said).into_owned();
    Outcome { status: status.map_or(NOT_STARTED, wait_status), said, dropped, trouble }
}

/// Reads to the end what a helper and its descendants say.
async fn listen(stderr: ChildStderr, tell: tokio::sync::watch::Sender<(Vec<u8>, usize)>) {
    let mut stderr = BufReader::new(stderr);
    let mut piece = vec![0; 4096];
    while let Ok(count @ 1..) = stderr.read(&mut piece).await {
        tell.send_modify(|(said, dropped)| {
            let kept = count.min(SAID_MAX - said.len());
            said.extend_from_slice(&piece[..kept]);
            *dropped += count - kept;
        });
    }
}

fn wait_status(status: ExitStatus) -> u32 {
    status.into_raw() as u32
}

/// The kernel's search path, and before it the folder of the helper: its companions are there.
fn search_path(program: &Path) -> String {
    match program.parent().filter(|folder| folder.is_absolute()) {
        Some(folder) => format!("{}:{SEARCH_PATH}", folder.display()),
        None => format!("{SEARCH_PATH}:/usr/local/sbin:/usr/local/bin"),
    }
}

fn tell(
    node: &Node,
    resource: &str,
    connected_to_peer: bool,
    device: Option<(VolumeNumber, Minor)>,
    name: Handler,
    status: Option<u32>,
) {
    let event = HelperEvent {
        resource: resource.to_owned(),
        connected_to_peer,
        device,
        helper: name.name().to_owned(),
        status,
    };
    let item = StreamItem::Helper { time_us: time_us(), event };
    node.state.borrow().watchers.tell(resource, &item);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run_shell(text: &str, patience: Duration) -> Outcome {
        let mut command = Command::new("/bin/sh");
        command.arg("-c").arg(text);
        run_here(command, patience)
    }

    fn run_here(command: Command, patience: Duration) -> Outcome {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, run_to_end(command, patience))
    }

    #[test]
    fn what_a_helper_says_and_how_it_ends_is_known() {
        let outcome = run_shell("echo one >&2; echo unheard; echo two >&2; exit 7", PATIENCE);
        assert_eq!((outcome.status, outcome.said.as_str(), outcome.dropped), (7 << 8, "one\ntwo\n", 0));
        assert!(outcome.trouble.is_none());
    }

    #[test]
    fn a_flood_neither_fills_the_log_nor_stops_the_helper() {
        let outcome = run_shell("head -c 3000000 /dev/zero | tr '\\0' x >&2; exit 3", PATIENCE);
        assert_eq!((outcome.status, outcome.said.len()), (3 << 8, SAID_MAX));
        assert_eq!(outcome.dropped, 3_000_000 - SAID_MAX);
    }

    #[test]
    fn a_helper_that_hangs_is_killed_with_what_it_waits_for() {
        let outcome = run_shell("sleep 1000; echo alive >&2", Duration::from_millis(200));
        assert_eq!(outcome.status, Signal::SIGKILL as u32);
        assert!(matches!(outcome.trouble, Some(Trouble::Killed)));
        assert_eq!(outcome.said, "");
    }

    #[test]
    fn what_a_helper_leaves_running_is_not_waited_for() {
        let outcome = run_shell("echo here >&2; sleep 30 & exit 0", Duration::from_secs(20));
        assert_eq!((outcome.status, outcome.said.as_str()), (0, "here\n"));
        assert!(outcome.trouble.is_none());
    }

    #[test]
    fn a_helper_that_is_not_there_is_told() {
        let outcome = run_here(Command::new("/nonexistent/helper"), PATIENCE);
        assert_eq!(outcome.status, NOT_STARTED);
        assert!(matches!(outcome.trouble, Some(Trouble::NotStarted(_))));
    }
}
