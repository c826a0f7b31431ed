//! One node: the engine, its disk, its buffers, and what its administrator wants.

use std::collections::BTreeMap;
use std::rc::Rc;

use udrbd_engine::Engine;
use udrbd_engine::interface::{
    Buffer, CommandId, MetadataBlock, Operation, RequestId, ResourceStatus, Token, VolumeStatus,
};
use udrbd_units::{ConnectionState, DiskState, Role, Sector, SectorRange};
use udrbd_wire::DigestAlgorithm;

use crate::disk::{Change, Data, Disk, Tag, Write};

/// One of the volumes of the resource: also its number there.
pub(crate) type VolumeIndex = usize;

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
    pub(crate) volume: VolumeIndex,
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
    pub(crate) wants_connection: bool,
    /// The connection was given up without being asked to.
    pub(crate) refused: bool,
    pub(crate) resolution: Option<Resolution>,
    /// What he has asked for: of which volume, or of the first one where it is about all of them.
    pub(crate) commands: BTreeMap<CommandId, (Purpose, VolumeIndex)>,
}

impl Administrator {
    /// Whether there is a command of this kind that has not ended, for any volume.
    pub(crate) fn is_doing(&self, purpose: Purpose) -> bool {
        self.commands.values().any(|(other, _)| *other == purpose)
    }

    /// The same for one volume.
    pub(crate) fn is_doing_to(&self, volume: VolumeIndex, purpose: Purpose) -> bool {
        self.commands.values().any(|other| *other == (purpose, volume))
    }
}

/// What a node has of a volume.
pub(crate) struct NodeVolume {
    pub(crate) disk: Disk,
    /// Sectors of its device: at first, and each time it had grown.
    pub(crate) sizes: Vec<u64>,
    pub(crate) in_flight: BTreeMap<u64, InFlight>,
    /// The role the front end was told.
    pub(crate) role: Role,
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
    /// What its administrator has done about it, and wants.
    pub(crate) has_minor: bool,
    pub(crate) wants_disk: bool,
    /// Attaches while connected that came to nothing.
    pub(crate) vain_attaches: u32,
    /// The disk has failed to do something since the last attach began.
    pub(crate) disk_failed: bool,
    /// The disk was detached by force since the last attach began: nobody waits for what it still has to do.
    pub(crate) gives_disk_up: bool,
}

impl NodeVolume {
    fn new(volatile: bool, sectors: u64) -> Self {
        Self {
            disk: Disk::new(volatile),
            sizes: vec![sectors],
            in_flight: BTreeMap::new(),
            role: Role::Secondary,
            verifying: crate::verifies::Verifying::default(),
            failing: None,
            interruptions: 0,
            mirroring: false,
            disk_losses: 0,
            storing: false,
            has_minor: false,
            wants_disk: false,
            vain_attaches: 0,
            disk_failed: false,
            gives_disk_up: false,
        }
    }

    /// Sectors of its device.
    pub(crate) fn device(&self) -> Sector {
        Sector(self.sizes.last().copied().unwrap_or(0))
    }

    /// Whether something is at the disk: a write may wait for it.
    pub(crate) fn is_busy(&self) -> bool {
        !self.in_flight.is_empty()
    }

    /// Nothing of the daemon is left.
    fn forget_daemon(&mut self) {
        self.in_flight.clear();
        self.role = Role::Secondary;
        self.interruptions += 1;
        self.mirroring = false;
        self.disk_losses += 1;
        self.storing = false;
        self.has_minor = false;
        self.vain_attaches = 0;
        self.disk_failed = false;
        self.gives_disk_up = false;
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
    pub(crate) volumes: Vec<NodeVolume>,
    pub(crate) buffers: BTreeMap<Buffer, Rc<Data>>,
    pub(crate) next_buffer: u32,
    pub(crate) requests: BTreeMap<RequestId, ClientRequest>,
    pub(crate) listening: bool,
    pub(crate) next_accepted: u32,
    /// Connection attempts under way.
    pub(crate) dialling: Vec<udrbd_engine::interface::SocketId>,
    pub(crate) timer_at: Option<u64>,
    pub(crate) status: Option<ResourceStatus>,
    pub(crate) administrator: Administrator,
    pub(crate) slow_until: u64,
}

impl Node {
    /// A node whose devices have these sizes, by volume.
    pub(crate) fn new(sectors: impl Iterator<Item = u64>, volatile: bool) -> Self {
        Self {
            engine: None,
            powered: true,
            life: 0,
            volumes: sectors.map(|sectors| NodeVolume::new(volatile, sectors)).collect(),
            buffers: BTreeMap::new(),
            next_buffer: 0,
            requests: BTreeMap::new(),
            listening: false,
            next_accepted: udrbd_engine::interface::SocketId::FIRST_ACCEPTED.0,
            dialling: Vec::new(),
            timer_at: None,
            status: None,
            administrator: Administrator::default(),
            slow_until: 0,
        }
    }

    /// What the node says of a volume; `None`: it has none of this number.
    pub(crate) fn volume(&self, volume: VolumeIndex) -> Option<&VolumeStatus> {
        let status = self.status.as_ref()?;
        status.volumes.iter().find(|other| usize::from(other.volume.0) == volume)
    }

    /// The state of the connection as the volume sees it.
    pub(crate) fn connection(&self, volume: VolumeIndex) -> ConnectionState {
        let own = self.status.as_ref().map_or(ConnectionState::StandAlone, |status| status.connection.state);
        self.volume(volume).map_or(own, |volume| volume.connection)
    }

    /// The state of the connection of the volume that is least far with it.
    pub(crate) fn least_connection(&self) -> ConnectionState {
        let least = (0..self.volumes.len()).map(|volume| self.connection(volume)).min();
        least.unwrap_or(ConnectionState::StandAlone)
    }

    pub(crate) fn disk_state(&self, volume: VolumeIndex) -> DiskState {
        self.volume(volume).map_or(DiskState::Diskless, |volume| volume.disk)
    }

    /// The state of the worst disk.
    pub(crate) fn least_disk_state(&self) -> DiskState {
        let least = (0..self.volumes.len()).map(|volume| self.disk_state(volume)).min();
        least.unwrap_or(DiskState::Diskless)
    }

    pub(crate) fn peer_disk_state(&self, volume: VolumeIndex) -> DiskState {
        self.volume(volume).map_or(DiskState::Unknown, |volume| volume.peer_disk)
    }

    /// Whether clients may use the volume here.
    pub(crate) fn serves(&self, volume: VolumeIndex) -> bool {
        self.engine.is_some() && self.volumes[volume].role == Role::Primary
    }

    /// Whether clients may use any volume here.
    pub(crate) fn is_primary(&self) -> bool {
        (0..self.volumes.len()).any(|volume| self.serves(volume))
    }

    /// Every disk.
    pub(crate) fn disks(&self) -> Vec<&Disk> {
        self.volumes.iter().map(|volume| &volume.disk).collect()
    }

    pub(crate) fn add_buffer(&mut self, data: Rc<Data>) -> Buffer {
        let buffer = Buffer(self.next_buffer);
        self.next_buffer += 1;
        self.buffers.insert(buffer, data);
        buffer
    }

    /// Nothing of the daemon is left.
    pub(crate) fn forget_daemon(&mut self) {
        self.engine = None;
        self.life += 1;
        self.buffers.clear();
        self.requests.clear();
        self.listening = false;
        self.dialling.clear();
        self.timer_at = None;
        self.status = None;
        for volume in &mut self.volumes {
            volume.forget_daemon();
        }
        let wants_connection = self.administrator.wants_connection;
        self.administrator = Administrator { wants_connection, ..Administrator::default() };
    }
}
