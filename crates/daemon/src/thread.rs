//! Starting and ending engine threads.

use std::fs::File;
use std::io::Read;
use std::thread::JoinHandle;

use udrbd_engine::Engine;
use udrbd_engine::interface::ResourceOptions;
use udrbd_runtime::mailbox::{self, Receiver, Sender};
use udrbd_runtime::{Errno, Ring, RingOptions, process};

use crate::messages::{FromEngine, ToEngine};
use crate::reactor::Reactor;

/// Messages on their way to an engine thread, and back.
const MAIL_MAX: usize = 1024;
/// The longest name the kernel keeps for a thread, in bytes.
const THREAD_NAME_BYTES_MAX: usize = 15;

/// The control side of an engine thread.
pub(crate) struct EngineThread {
    pub(crate) mail: Sender<ToEngine>,
    pub(crate) thread: JoinHandle<()>,
}

/// Starts the engine thread of a resource. It runs once its ring is made; an error comes back at once.
///
/// # Errors
/// No ring, memory, file descriptor or thread can be had.
pub(crate) fn start(
    resource: &str,
    options: ResourceOptions,
    cpus: Vec<usize>,
) -> Result<(EngineThread, Receiver<FromEngine>), Errno> {
    let (mail, inbox) = mailbox::mailbox(MAIL_MAX)?;
    let (outbox, events) = mailbox::mailbox(MAIL_MAX)?;
    let (started, outcome) = std::sync::mpsc::sync_channel(1);
    let mut seed = [0; 32];
    fill_random(&mut seed)?;
    let name = thread_name(resource);
    let resource = resource.to_owned();
    let run = move || {
        prepare(&resource, &cpus);
        let ring = match Ring::new(RingOptions::default()) {
            Ok(ring) => ring,
            Err(errno) => {
                // The starter waits for this answer.
                let _ = started.send(Err(errno));
                return;
            }
        };
        let _ = started.send(Ok(()));
        let mut reactor = Reactor::new(ring, Engine::new(options, seed), inbox, outbox);
        if let Err(errno) = reactor.run() {
            tracing::error!("drbd {resource}: the ring failed: {errno}");
            std::process::abort();
        }
        if reactor.leaves_block_devices() {
            // Closed here, the ring's commands to the ublk driver would be cancelled by a kernel thread while this one still
            // takes requests from the driver, and Linux 6.12 was seen to break down (why is read, not proven). At the end of
            // the thread they are cancelled in its own name, as after a kill -9. The process ends, too.
            std::mem::forget(reactor);
        }
    };
    let thread = std::thread::Builder::new().name(name).spawn(run).map_err(|_| Errno::EAGAIN)?;
    outcome.recv().unwrap_or(Err(Errno::EAGAIN))?;
    Ok((EngineThread { mail, thread }, events))
}

/// Settings of the thread itself; none of them is needed for being right.
fn prepare(resource: &str, cpus: &[usize]) {
    if let Err(errno) = process::use_batch_scheduling() {
        tracing::warn!("drbd {resource}: no batch scheduling: {errno}");
    }
    if !cpus.is_empty()
        && let Err(errno) = process::bind_to_cpus(cpus)
    {
        tracing::warn!("drbd {resource}: cpu-mask: {errno}");
    }
    if nix::unistd::geteuid().is_root()
        && let Err(errno) = process::become_io_flusher()
    {
        tracing::warn!("drbd {resource}: allocations may wait for I/O: {errno}");
    }
}

fn thread_name(resource: &str) -> String {
    let mut end = resource.len().min(THREAD_NAME_BYTES_MAX);
    while !resource.is_char_boundary(end) {
        end -= 1;
    }
    resource[..end].to_owned()
}

fn fill_random(bytes: &mut [u8]) -> Result<(), Errno> {
    let filled = File::open("/dev/urandom").and_then(|mut source| source.read_exact(bytes));
    filled.map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(Errno::EIO as i32)))
}
