//! Handler programs: `drbdadm HANDLER minor-N`, as the kernel calls its user-mode helper (states spec 20.1).

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::rc::Rc;
use std::time::Duration;

use tokio::process::Command;
use udrbd_control::client::{RUN_DIRECTORY_DEFAULT, RUN_DIRECTORY_VARIABLE};
use udrbd_control::protocol::{HelperEvent, StreamItem};
use udrbd_engine::interface::{Handler, HandlerId, Level};
use udrbd_units::{Minor, VolumeNumber};

use super::{Node, time_us};
use crate::messages::ToEngine;

/// drbdadm gives its shell 600 seconds; whoever takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(660);
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
    let wait_status = match node.helper.clone() {
        Some(program) => call(&node, &resource, &program, name, volume).await,
        None => 0,
    };
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
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit()).kill_on_drop(true);
    let status = run_to_end(command).await;

    let exit = if status == NOT_STARTED { 0xff } else { status >> 8 & 0xff };
    let level = if status == 0 { Level::Info } else { Level::Warning };
    let text = format!("helper command: {words} exit code {exit} (0x{status:x})");
    node.log(resource, level, volume, &text);
    tell(node, resource, peer.is_some(), device, name, Some(status));
    status
}

/// The wait status.
async fn run_to_end(mut command: Command) -> u32 {
    let Ok(mut child) = command.spawn() else { return NOT_STARTED };
    match tokio::time::timeout(PATIENCE, child.wait()).await {
        Ok(status) => status.map_or(NOT_STARTED, wait_status),
        Err(_) => {
            // It may have ended in this moment.
            let _ = child.kill().await;
            child.wait().await.map_or(NOT_STARTED, wait_status)
        }
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
