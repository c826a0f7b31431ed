//! One node: the engine, its disk, its buffers, and what its administrator wants.

use std::collections::BTreeMap;
use std::rc::Rc;

use udrbd_engine::Engine;
use udrbd_engine::interface::{
    Buffer, CommandId, MetadataBlock, Operation, RequestId, ResourceStatus, Token, VolumeStatus,
};
use udrbd_units::{ConnectionState, DiskState, Role, SectorRange};
use udrbd_wire::DigestAlgorithm;

use crate::disk::{Change, Data, Disk, Tag, Write};

/// A disk operation in flight.
#[derive(Debug)]
pub(crate) enum InFlight {
    Read {
        token: Token,
        range: SectorRange,
        buffer: Option<Buffer>,
        digest: Option<DigestAlgorithm>,
        look_for_zeroes: bool,
        /// What it finds, where that is already decided.
        found: Option<Data>,
    },
    Write {
        token: Token,
        write: Write,
    },
    MetadataRead {
        token: Token,
        start: u64,
        bytes: u32,
    },
    MetadataWrite {
        token: Token,
        write: Write,
        block: MetadataBlock,
    },
}

impl InFlight {
    /// The change of the disk, if it is one.
    pub(crate) const fn write(&self) -> Option<&Write> {
        match self {
            Self::Write { write, .. } | Self::MetadataWrite { write, .. } => Some(write),
            Self::Read { .. } | Self::MetadataRead { .. } => None,
        }
    }
}

/// By what a later look tells whether a mirroring went on all the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mirrored {
    /// How often the node had seen it interrupted.
    pub(crate) interruptions: u64,
    /// Which life of the peer's daemon it was.
    pub(crate) life: u32,
    /// How often the peer had lost its disk.
    pub(crate) disk_losses: u64,
}

/// A request of a client that is not complete.
#[derive(Debug)]
pub(crate) struct ClientRequest {
    pub(crate) operation: Operation,
    pub(crate) range: SectorRange,
    /// The number of the write.
    pub(crate) write: Tag,
    /// When it was issued, in the checker's count.
    pub(crate) issued: u64,
    pub(crate) buffer: Option<Buffer>,
    /// How the mirroring stood when it was issued; `None`: it was interrupted then.
    pub(crate) mirrored_since: Option<Mirrored>,
    /// The same for the own disk.
    pub(crate) stored_since: Option<u64>,
    /// What a read might have found when it was issued.
    pub(crate) expected: Vec<Vec<Tag>>,
}

/// A disk that fails.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Failing {
    /// Until when, nanoseconds.
    pub(crate) until: u64,
    /// It is the metadata that cannot be read and written; else the data.
    pub(crate) metadata: bool,
}

impl Failing {
    /// Whether an operation that ends at `now` fails. Zeroes never do: a discard that fails leaves bits set and costs no
    /// disk, so afterwards a read may find what was there before.
    pub(crate) fn hits(self, now: u64, operation: &InFlight) -> bool {
        let hit = match operation {
            InFlight::Write { write, .. } => {
                !self.metadata && matches!(&write.change, Change::Data { data, .. } if !data.items.is_empty())
            }
            InFlight::Read { .. } => !self.metadata,
            InFlight::MetadataRead { .. } | InFlight::MetadataWrite { .. } => self.metadata,
        };
        hit && now < self.until
    }
}

/// What a command is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    NewMinor,
    Attach,
    Connect,
    Disconnect,
    Primary { force: bool },
    Secondary,
    Detach,
    Down,
    DelMinor,
    Other,
}

/// What an administrator still has to do about a split brain on this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Resolution {
    /// This node's data are discarded.
    Discard,
    /// This node's data stay.
    Keep,
}

/// What the administrator of a node wants, and is doing.
#[derive(Debug, Default)]
pub(crate) struct Administrator {
    pub(crate) has_minor: bool,
    pub(crate) wants_disk: bool,
    pub(crate) wants_connection: bool,
    /// The connection was given up without being asked to.
    pub(crate) refused: bool,
    pub(crate) resolution: Option<Resolution>,
    /// Attaches while connected that came to nothing.
    pub(crate) vain_attaches: u32,
    pub(crate) commands: BTreeMap<CommandId, Purpose>,
    /// The disk has failed to do something since the last attach began.
    pub(crate) disk_failed: bool,
    /// The disk was detached by force since the last attach began: nobody waits for what it still has to do.
    pub(crate) gives_disk_up: bool,
}

impl Administrator {
    pub(crate) fn is_doing(&self, purpose: Purpose) -> bool {
        self.commands.values().any(|other| *other == purpose)
    }
}

/// A node.
pub(crate) struct Node {
    /// `None`: the daemon does not run.
    pub(crate) engine: Option<Engine>,
    /// The machine has power.
    pub(crate) powered: bool,
    /// Counts the daemon's lives: events of an earlier one mean nothing.
    pub(crate) life: u32,
    pub(crate) disk: Disk,
    pub(crate) buffers: BTreeMap<Buffer, Rc<Data>>,
    pub(crate) next_buffer: u32,
    pub(crate) in_flight: BTreeMap<u64, InFlight>,
    pub(crate) requests: BTreeMap<RequestId, ClientRequest>,
    pub(crate) listening: bool,
    pub(crate) next_accepted: u32,
    /// Connection attempts under way.
    pub(crate) dialling: Vec<udrbd_engine::interface::SocketId>,
    /// The role the front end was told.
    pub(crate) role: Role,
    pub(crate) timer_at: Option<u64>,
    pub(crate) status: Option<ResourceStatus>,
    pub(crate) administrator: Administrator,
    pub(crate) slow_until: u64,
    /// The verify it runs.
    pub(crate) verifying: crate::verifies::Verifying,
    /// The disk fails, or has failed.
    pub(crate) failing: Option<Failing>,
    /// How often the mirroring to the peer was interrupted, and whether it is now.
    pub(crate) interruptions: u64,
    pub(crate) mirroring: bool,
    /// The same for the own disk.
    pub(crate) disk_losses: u64,
    pub(crate) storing: bool,
}

impl Node {
    pub(crate) fn new(volatile: bool) -> Self {
        Self {
            engine: None,
            powered: true,
            life: 0,
            disk: Disk::new(volatile),
            buffers: BTreeMap::new(),
            next_buffer: 0,
            in_flight: BTreeMap::new(),
            requests: BTreeMap::new(),
            listening: false,
            next_accepted: udrbd_engine::interface::SocketId::FIRST_ACCEPTED.0,
            dialling: Vec::new(),
            role: Role::Secondary,
            timer_at: None,
            status: None,
            administrator: Administrator::default(),
            slow_until: 0,
            verifying: crate::verifies::Verifying::default(),
            failing: None,
            interruptions: 0,
            mirroring: false,
            disk_losses: 0,
            storing: false,
        }
    }

    pub(crate) fn volume(&self) -> Option<&VolumeStatus> {
        self.status.as_ref().and_then(|status| status.volumes.first())
    }

    /// The state of the connection as the volume sees it.
    pub(crate) fn connection(&self) -> ConnectionState {
        let own = self.status.as_ref().map_or(ConnectionState::StandAlone, |status| status.connection.state);
        self.volume().map_or(own, |volume| volume.connection)
    }

    pub(crate) fn disk_state(&self) -> DiskState {
        self.volume().map_or(DiskState::Diskless, |volume| volume.disk)
    }

    pub(crate) fn peer_disk_state(&self) -> DiskState {
        self.volume().map_or(DiskState::Unknown, |volume| volume.peer_disk)
    }

    pub(crate) fn is_primary(&self) -> bool {
        self.engine.is_some() && self.role == Role::Primary
    }

    pub(crate) fn add_buffer(&mut self, data: Rc<Data>) -> Buffer {
        let buffer = Buffer(self.next_buffer);
        self.next_buffer += 1;
        self.buffers.insert(buffer, data);
        buffer
    }

    /// Whether something is at the disk: a write may wait for it.
    pub(crate) fn is_busy(&self) -> bool {
        !self.in_flight.is_empty()
    }

    /// Nothing of the daemon is left.
    pub(crate) fn forget_daemon(&mut self) {
        self.engine = None;
        self.life += 1;
        self.buffers.clear();
        self.in_flight.clear();
        self.requests.clear();
        self.listening = false;
        self.dialling.clear();
        self.role = Role::Secondary;
        self.timer_at = None;
        self.status = None;
        self.interruptions += 1;
        self.mirroring = false;
        self.disk_losses += 1;
        self.storing = false;
        let wants_connection = self.administrator.wants_connection;
        let wants_disk = self.administrator.wants_disk;
        self.administrator = Administrator { wants_connection, wants_disk, ..Administrator::default() };
    }
}
