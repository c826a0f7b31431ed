//! The control thread: everything of a node that is not on the path of data.
//!
//! One thread, no locks: the state is only looked at between two points where a task waits. Requests that concern a
//! resource are passed to its engine thread and wait for the answer there; nothing here ever blocks an engine.

mod block;
mod commands;
mod connect;
mod convert;
mod dependencies;
mod disks;
mod handlers;
mod metrics;
mod nbd;
mod resource;
mod roles;
mod server;
mod service_manager;
mod snapshot;
mod split_brain;
mod status_file;
mod undo;
mod watch;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::io::unix::AsyncFd;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;
use udrbd_control::protocol::{SOCKET_NAME, StreamItem};
use udrbd_control::status::{DaemonMetrics, NodeSnapshot};
use udrbd_engine::interface::Level;
use udrbd_runtime::disk::SharedDisks;
use udrbd_runtime::mailbox::{Received, Receiver};
use udrbd_units::{Minor, Role, VolumeNumber};

use crate::instance::listen_privately;
use crate::messages::{FromEngine, ToEngine};
use crate::settings::Settings;
use resource::Resource;
use status_file::StatusFile;
use watch::Watchers;

/// How long an engine may take to tell its status.
const STATUS_PATIENCE: Duration = Duration::from_secs(2);
/// How long engines may take to end.
const STOP_PATIENCE: Duration = Duration::from_secs(8);

/// The node.
struct Node {
    pub(super) name: String,
    pub(super) run_directory: PathBuf,
    /// For what outlives a reboot.
    pub(super) state_directory: PathBuf,
    pub(super) helper: Option<PathBuf>,
    pub(super) disks: Arc<SharedDisks>,
    /// Volumes are block devices, beside NBD.
    pub(super) block_devices: bool,
    pub(super) state: RefCell<State>,
    /// The status file is to be written.
    pub(super) changed: Notify,
    pub(super) status_file: RefCell<StatusFile>,
}

/// What changes of a node.
struct State {
    /// In the order in which they were made.
    pub(super) resources: Vec<Resource>,
    pub(super) watchers: Watchers,
    pub(super) metrics: DaemonMetrics,
    /// Resources that are being made or removed.
    pub(super) reserved: Vec<String>,
    /// What is remembered of peers could not be kept, and that was said.
    pub(super) memory_fails: bool,
    /// The block devices of the volumes.
    pub(super) blocks: BTreeMap<Minor, block::Device>,
}

impl State {
    pub(super) fn resource(&self, name: &str) -> Option<&Resource> {
        self.resources.iter().find(|resource| resource.name == name)
    }

    pub(super) fn resource_mut(&mut self, name: &str) -> Option<&mut Resource> {
        self.resources.iter_mut().find(|resource| resource.name == name)
    }

    /// The resource and volume of a minor.
    pub(super) fn by_minor(&self, minor: Minor) -> Option<(&Resource, VolumeNumber)> {
        self.resources.iter().find_map(|resource| {
            let volume = resource.volumes.iter().find(|volume| volume.minor == minor)?;
            Some((resource, volume.number))
        })
    }

    /// The role of a volume, as its engine told it last.
    pub(super) fn role(&self, minor: Minor) -> Option<Role> {
        let (entry, volume) = self.by_minor(minor)?;
        let volumes = &entry.status.as_ref()?.resource.volumes;
        volumes.iter().find(|known| known.volume == volume).map(|known| known.role)
    }

    pub(super) fn snapshot(&self, resource: Option<&str>) -> NodeSnapshot {
        let wanted = |entry: &&Resource| resource.is_none_or(|name| entry.name == name);
        let resources = self.resources.iter().filter(wanted).map(|entry| entry.snapshot.clone());
        NodeSnapshot { resources: resources.collect() }
    }
}

/// Microseconds since the epoch.
pub(super) fn time_us() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_micros() as i64)
}

/// Serves the node until it is told to end.
pub(crate) async fn run(settings: Settings) -> anyhow::Result<()> {
    let run_directory = settings.run_directory();
    let start_time_seconds = (time_us() / 1_000_000) as u64;
    let version = env!("CARGO_PKG_VERSION").to_owned();
    let node = Rc::new(Node {
        name: settings.node_name(),
        helper: settings.helper_program(),
        disks: Arc::new(SharedDisks::default()),
        block_devices: block::is_wanted(settings.frontend)?,
        state: RefCell::new(State {
            resources: Vec::new(),
            watchers: Watchers::default(),
            metrics: DaemonMetrics { version, start_time_seconds, ..DaemonMetrics::default() },
            reserved: Vec::new(),
            memory_fails: false,
            blocks: BTreeMap::new(),
        }),
        changed: Notify::new(),
        status_file: RefCell::new(StatusFile::create(&run_directory)?),
        state_directory: settings.state_directory(),
        run_directory,
    });
    tokio::task::spawn_local(status_file::keep_current(Rc::clone(&node)));
    if node.block_devices {
        tokio::task::spawn_local(block::follow_partitions(Rc::clone(&node)));
    }
    nbd::start(&node)?;
    if let Some(address) = settings.metrics {
        metrics::start(&node, address).await?;
    }
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    // Last: whoever finds the control socket finds everything else, too.
    let listener = listen_privately(&node.run_directory.join(SOCKET_NAME))?;
    let listener = tokio::net::UnixListener::from_std(listener)?;
    tracing::info!(
        "udrbdd {} serves {} in {}",
        env!("CARGO_PKG_VERSION"),
        node.name,
        node.run_directory.display()
    );
    service_manager::tell_ready();
    tokio::task::spawn_local(service_manager::give_signs_of_life(Rc::clone(&node)));
    tokio::select! {
        () = server::serve(Rc::clone(&node), listener) => {}
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("ending");
    service_manager::tell_stopping();
    block::end_all(&node).await;
    node.stop().await;
    // What is left of names goes before the process does.
    node.state.borrow_mut().blocks.clear();
    Ok(())
}

impl Node {
    /// Ends the engines, as far as they end in time.
    async fn stop(&self) {
        let resources = std::mem::take(&mut self.state.borrow_mut().resources);
        let mut threads = Vec::new();
        for resource in resources {
            // Whoever does not hear it sees its mailbox close.
            let _ = resource.engine.mail.send(ToEngine::Stop);
            threads.push(resource.engine.thread);
        }
        self.state.borrow_mut().watchers.end();
        let deadline = tokio::time::Instant::now() + STOP_PATIENCE;
        while threads.iter().any(|thread| !thread.is_finished()) && tokio::time::Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let _ = std::fs::remove_file(self.run_directory.join(SOCKET_NAME));
    }

    /// Asks engines for their status and waits until they have told it. Returns whether all did.
    pub(super) async fn refresh_now(&self, resource: Option<&str>) -> bool {
        let mut asked = true;
        let mut answers = Vec::new();
        for entry in &mut self.state.borrow_mut().resources {
            if resource.is_some_and(|name| entry.name != name) {
                continue;
            }
            entry.publications += 1;
            let number = entry.publications;
            if entry.engine.mail.send(ToEngine::Publish(number)).is_ok() {
                answers.push((entry.answered.subscribe(), number));
            } else {
                // One that does not empty its mailbox keeps silent, too.
                asked = false;
            }
        }
        let all = async {
            for (mut answered, number) in answers {
                // An engine that ends tells nothing any more.
                let _ = answered.wait_for(|answered| *answered >= number).await;
            }
        };
        // What it said last is shown of an engine that keeps silent.
        asked & tokio::time::timeout(STATUS_PATIENCE, all).await.is_ok()
    }

    /// Takes up what an engine says, until it ends.
    pub(super) async fn listen_to(self: Rc<Self>, resource: String, events: Receiver<FromEngine>) {
        // Its descriptor is that of the mailbox it owns, for as long as it lives: what `new` cannot know of any type.
        #[allow(deprecated, reason = "the replacement needs unsafe code")]
        let events = AsyncFd::new(Pollable(events));
        let Ok(events) = events else {
            tracing::error!("drbd {resource}: no file descriptor left");
            return;
        };
        loop {
            let Ok(mut ready) = events.readable().await else { return };
            ready.clear_ready();
            events.get_ref().0.clear_wakeup();
            loop {
                match events.get_ref().0.take() {
                    Received::Message(message) => self.engine_said(&resource, message),
                    Received::Empty => break,
                    Received::Closed => return,
                }
            }
        }
    }

    fn engine_said(self: &Rc<Self>, resource: &str, message: FromEngine) {
        match message {
            FromEngine::Log { level, volume, text } => self.log(resource, level, volume, &text),
            FromEngine::LogLost(lines) => {
                tracing::warn!("drbd {resource}: {lines} lines were lost here");
            }
            FromEngine::Status(status) => {
                if let Some(entry) = self.state.borrow_mut().resource_mut(resource) {
                    entry.take_status(status);
                }
                split_brain::look(self, resource);
                self.review_dependencies();
                self.show(resource);
                block::look_after(self, resource);
            }
            FromEngine::BlockClosed { volume } => block::closed(self, resource, volume),
            FromEngine::Reply { id, result } => {
                let mut state = self.state.borrow_mut();
                let answer = state.resource_mut(resource).and_then(|entry| entry.waiting.remove(&id));
                if let Some(answer) = answer {
                    // Whoever asked may have gone.
                    let _ = answer.send(convert::command_result(result));
                }
            }
            FromEngine::RunHandler { handler, name, volume } => {
                let run = handlers::run(Rc::clone(self), resource.to_owned(), handler, name, volume);
                tokio::task::spawn_local(run);
            }
        }
    }

    /// Brings what is shown of a resource up to date, and tells those who watch.
    pub(super) fn show(&self, resource: &str) {
        let state = &mut *self.state.borrow_mut();
        let Some(entry) = state.resource_mut(resource) else { return };
        let snapshot = snapshot::resource(entry);
        if snapshot == entry.snapshot && entry.told.is_some() {
            return;
        }
        let plain = snapshot::without_counters(&snapshot);
        let news = entry.told.as_ref() != Some(&plain);
        entry.snapshot = snapshot.clone();
        entry.told = Some(plain);
        if news {
            let item = StreamItem::Resource { time_us: time_us(), resource: Box::new(snapshot) };
            state.watchers.tell(resource, &item);
        }
        self.changed.notify_one();
    }

    /// A line for the log, with DRBD's prefix.
    pub(super) fn log(&self, resource: &str, level: Level, volume: Option<VolumeNumber>, text: &str) {
        let mut state = self.state.borrow_mut();
        let minor = volume.and_then(|number| {
            let entry = state.resource(resource)?;
            entry.volume(number).map(|volume| volume.minor)
        });
        let about = match (volume, minor) {
            (Some(volume), Some(minor)) => format!("drbd {resource}/{volume} drbd{minor}"),
            (Some(volume), None) => format!("drbd {resource}/{volume}"),
            _ => format!("drbd {resource}"),
        };
        let name = match level {
            Level::Alert | Level::Error => {
                tracing::error!("{about}: {text}");
                "error"
            }
            Level::Warning => {
                tracing::warn!("{about}: {text}");
                "warning"
            }
            Level::Info => {
                tracing::info!("{about}: {text}");
                "info"
            }
        };
        *state.metrics.log_messages.entry(name.to_owned()).or_default() += 1;
    }
}

/// A mailbox for the event loop of this thread.
struct Pollable(Receiver<FromEngine>);

impl AsRawFd for Pollable {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}
