//! A resource as the control thread knows it.

use std::collections::HashMap;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

use tokio::sync::{Mutex, oneshot, watch};
use udrbd_control::options::{DiskOptions, NetOptions, ResourceOptions};
use udrbd_control::protocol::{CommandResult, MetadataIndex};
use udrbd_control::status::ResourceSnapshot;
use udrbd_control::{Address, ReturnCode};
use udrbd_engine::interface::CommandId;
use udrbd_runtime::mailbox::SendError;
use udrbd_runtime::undo::Undo;
use udrbd_units::{DiskState, Minor, VolumeNumber};

use super::split_brain::Memory;
use crate::messages::{EngineStatus, ToEngine};
use crate::thread::EngineThread;

/// What was attached to a volume.
#[derive(Clone, Debug)]
pub(super) struct Backing {
    pub(super) disk: String,
    pub(super) metadata: String,
    pub(super) index: MetadataIndex,
    pub(super) options: DiskOptions,
    pub(super) logical_block_bytes: u32,
    pub(super) physical_block_bytes: u32,
    /// 0: it does not discard.
    pub(super) discard_granularity_bytes: u32,
    pub(super) rotational: bool,
}

/// A volume.
#[derive(Debug)]
pub(super) struct VolumeEntry {
    pub(super) number: VolumeNumber,
    pub(super) minor: Minor,
    pub(super) backing: Option<Backing>,
    /// An attach is under way.
    pub(super) attaching: bool,
    /// What is kept of the disk as it was, where something may be.
    pub(super) undo: Option<Arc<Undo>>,
    /// What is remembered of the peer, once the engine has been looked at.
    pub(super) memory: Option<Memory>,
}

/// The network configuration.
#[derive(Clone, Debug)]
pub(super) struct Net {
    pub(super) local: Address,
    pub(super) peer: Address,
    pub(super) options: NetOptions,
}

/// A resource.
pub(super) struct Resource {
    pub(super) name: String,
    pub(super) engine: EngineThread,
    pub(super) options: ResourceOptions,
    pub(super) net: Option<Net>,
    /// A connect is under way.
    pub(super) connecting: bool,
    pub(super) volumes: Vec<VolumeEntry>,
    pub(super) configuration: Option<PathBuf>,
    pub(super) status: Option<Box<EngineStatus>>,
    pub(super) snapshot: ResourceSnapshot,
    /// What was told to those who watch.
    pub(super) told: Option<ResourceSnapshot>,
    /// Serialises commands, as DRBD's admin mutex does.
    pub(super) admin: Rc<Mutex<()>>,
    /// Whose turn it is to run a handler.
    pub(super) handlers: Rc<Mutex<()>>,
    pub(super) waiting: HashMap<CommandId, oneshot::Sender<CommandResult>>,
    pub(super) commands: u64,
    pub(super) publications: u64,
    /// The last publication that was answered.
    pub(super) answered: watch::Sender<u64>,
}

impl Resource {
    pub(super) fn new(name: String, options: ResourceOptions, engine: EngineThread) -> Self {
        let snapshot = ResourceSnapshot::new(&name);
        Self {
            name,
            engine,
            options,
            net: None,
            connecting: false,
            volumes: Vec::new(),
            configuration: None,
            status: None,
            snapshot,
            told: None,
            admin: Rc::new(Mutex::new(())),
            handlers: Rc::new(Mutex::new(())),
            waiting: HashMap::new(),
            commands: 0,
            publications: 0,
            answered: watch::Sender::new(0),
        }
    }

    pub(super) fn volume(&self, number: VolumeNumber) -> Option<&VolumeEntry> {
        self.volumes.iter().find(|volume| volume.number == number)
    }

    pub(super) fn volume_mut(&mut self, number: VolumeNumber) -> Option<&mut VolumeEntry> {
        self.volumes.iter_mut().find(|volume| volume.number == number)
    }

    /// Hands a command to the engine; the answer comes through what is returned.
    pub(super) fn command(
        &mut self,
        message: impl FnOnce(CommandId) -> ToEngine,
    ) -> oneshot::Receiver<CommandResult> {
        self.commands += 1;
        let id = CommandId(self.commands);
        let (answer, result) = oneshot::channel();
        match self.engine.mail.send(message(id)) {
            Ok(()) => {
                self.waiting.insert(id, answer);
            }
            Err(SendError::Full(_)) => {
                let busy = "the resource is busy, try again".to_owned();
                // Whoever asked is still there: it holds the other end.
                let _ = answer.send(CommandResult::with_info(ReturnCode::NoMemory, busy));
            }
            Err(SendError::Closed(_)) => {}
        }
        result
    }

    /// Takes in what the engine says of itself.
    pub(super) fn take_status(&mut self, status: Box<EngineStatus>) {
        self.answered.send_replace(status.answered);
        if status.resource.connection.options.is_none() && !self.connecting {
            self.net = None;
        }
        self.volumes
            .retain(|entry| status.resource.volumes.iter().any(|volume| volume.volume == entry.number));
        for volume in &status.resource.volumes {
            let entry = self.volumes.iter_mut().find(|entry| entry.number == volume.volume);
            match entry {
                Some(entry) if volume.disk == DiskState::Diskless && !entry.attaching => {
                    entry.backing = None;
                    entry.undo = None;
                }
                Some(_) => {}
                None => self.volumes.push(VolumeEntry {
                    number: volume.volume,
                    minor: volume.minor,
                    backing: None,
                    attaching: false,
                    undo: None,
                    memory: None,
                }),
            }
        }
        self.status = Some(status);
    }
}
