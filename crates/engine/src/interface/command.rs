//! What an administrator may want, and how it can end.

use udrbd_metadata::Placement;
use udrbd_units::{Minor, Sector, VolumeNumber};

use super::{DiskOptions, NetOptions, ResourceOptions, WaitingClients};
use crate::state::StateChangeResult;

/// The control side's name for a command it gave; comes back with the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CommandId(pub u64);

/// What the runtime found out about a pair of backing and metadata device it has opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskProperties {
    /// The size of the backing device.
    pub backing_size: Sector,
    /// The size of the metadata device; the same as `backing_size` for internal metadata.
    pub metadata_size: Sector,
    /// The unit of I/O, bytes: 512 or 4096.
    pub logical_block_bytes: u32,
    /// The unit the device prefers, bytes.
    pub physical_block_bytes: u32,
    /// The largest request the device takes, bytes.
    pub max_request_bytes: u32,
    /// Whether a completed write may be lost with the power until the device is flushed.
    pub volatile_cache: bool,
    /// The granularity of discards, bytes; 0: the device does not discard.
    pub discard_granularity_bytes: u32,
}

/// Everything an attach needs, the devices being open.
#[derive(Clone, Debug, PartialEq)]
pub struct AttachSettings {
    /// Where on the metadata device the metadata live: internal, flexible external or indexed.
    pub placement: Placement,
    /// The devices.
    pub properties: DiskProperties,
    /// The `disk` section.
    pub options: DiskOptions,
    /// The blocks of which an undo of an earlier daemon has the old content; `None`: there is no such undo, or it is
    /// incomplete.
    pub kept: Option<KeptBlocks>,
}

/// What an undo has kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptBlocks {
    /// A bit for each block, the lowest of each word first.
    pub words: Vec<u64>,
    /// The number of blocks of 4 KiB the device had when the undo began.
    pub blocks: u64,
}

/// A command, after the verbs of `drbdsetup` (states spec 19.3).
#[derive(Clone, Debug)]
pub enum Command {
    /// `new-minor`.
    NewMinor {
        /// The number in the resource.
        volume: VolumeNumber,
        /// The number on the node.
        minor: Minor,
    },
    /// `del-minor`.
    DelMinor {
        /// Which.
        volume: VolumeNumber,
    },
    /// `resource-options`.
    ResourceOptions(ResourceOptions),
    /// `attach`. Where it fails, the runtime closes the devices.
    Attach {
        /// Which volume.
        volume: VolumeNumber,
        /// To what.
        settings: Box<AttachSettings>,
    },
    /// A block device of a dead daemon was found with requests that wait; or, with `None`, it is served again or gone.
    ClientsWait {
        /// Which volume.
        volume: VolumeNumber,
        /// What is known of them.
        clients: Option<WaitingClients>,
    },
    /// `detach`.
    Detach {
        /// Which volume.
        volume: VolumeNumber,
        /// Do not wait for the disk or the peer.
        force: bool,
    },
    /// `disk-options`.
    DiskOptions {
        /// Which volume.
        volume: VolumeNumber,
        /// All of them.
        options: Box<DiskOptions>,
    },
    /// `connect`.
    Connect(Box<NetOptions>),
    /// `net-options`.
    NetOptions(Box<NetOptions>),
    /// `disconnect`.
    Disconnect {
        /// Do not ask the peer.
        force: bool,
    },
    /// `primary`.
    Primary {
        /// Which volume.
        volume: VolumeNumber,
        /// Also without good data.
        force: bool,
    },
    /// `secondary`.
    Secondary {
        /// Which volume.
        volume: VolumeNumber,
        /// Somebody has the device open: the runtime knows, the engine refuses.
        held_open: bool,
    },
    /// `outdate`.
    Outdate {
        /// Which volume.
        volume: VolumeNumber,
    },
    /// `invalidate`.
    Invalidate {
        /// Which volume.
        volume: VolumeNumber,
    },
    /// `invalidate-remote`.
    InvalidateRemote {
        /// Which volume.
        volume: VolumeNumber,
    },
    /// `pause-sync`.
    PauseSync {
        /// Which volume.
        volume: VolumeNumber,
    },
    /// `resume-sync`.
    ResumeSync {
        /// Which volume.
        volume: VolumeNumber,
    },
    /// What this volume's resync comes after (`resync-after`) has begun to keep it waiting, or does so no more, as
    /// [`must_wait`](crate::dependency::must_wait) says.
    ResyncDependency {
        /// Which volume.
        volume: VolumeNumber,
        /// Its resync has to wait.
        waits: bool,
    },
    /// `suspend-io`.
    SuspendIo {
        /// Which volume.
        volume: VolumeNumber,
    },
    /// `resume-io`.
    ResumeIo {
        /// Which volume.
        volume: VolumeNumber,
    },
    /// `new-current-uuid`.
    NewCurrentUuid {
        /// Which volume.
        volume: VolumeNumber,
        /// Forget which blocks differ.
        clear_bitmap: bool,
    },
    /// `verify`.
    Verify {
        /// Which volume.
        volume: VolumeNumber,
        /// The first sector, rounded down to a block; `None`: where the last verify ended before its time, or 0.
        start: Option<Sector>,
        /// The sector to stop before; `None`: the end.
        stop: Option<Sector>,
    },
    /// `resize`. The runtime tells of another size of the device first ([`Event::DeviceSize`](super::Event::DeviceSize)).
    Resize {
        /// Which volume.
        volume: VolumeNumber,
        /// How.
        request: ResizeRequest,
    },
    /// `drop-resync-undo`: nothing is kept any more. Once it has succeeded the side file is not written to.
    DropUndo {
        /// Which volume.
        volume: VolumeNumber,
    },
    /// `down`: everything of the resource, in order.
    Down,
}

/// What a `resize` asks for (states spec 18.6).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ResizeRequest {
    /// The size in sectors; 0: as large as both devices allow.
    pub size_sectors: u64,
    /// A peer that is not connected is taken to have the space.
    pub assume_peer_has_space: bool,
    /// The new part counts as in sync.
    pub assume_clean: bool,
    /// Stripes of the activity log, if they are to change.
    pub al_stripes: Option<u32>,
    /// Size of a stripe of the activity log in KiB, if it is to change.
    pub al_stripe_size_kib: Option<u32>,
}

/// Why a command failed: DRBD's number and text, and what `drbdsetup` shows as additional information.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// A configuration error: a number of states spec 19.2 (100 and up).
    Configuration {
        /// The number.
        code: u32,
        /// Further lines, "additional info from kernel".
        info: Vec<String>,
    },
    /// A refused change of state (states spec 3.8).
    State {
        /// The code.
        code: StateChangeResult,
        /// Further lines.
        info: Vec<String>,
    },
}

impl Failure {
    /// A configuration error without further lines.
    pub const fn configuration(code: u32) -> Self {
        Self::Configuration { code, info: Vec::new() }
    }

    /// A refused change of state without further lines.
    pub const fn state(code: StateChangeResult) -> Self {
        Self::State { code, info: Vec::new() }
    }
}

/// How a command ended.
pub type CommandResult = Result<(), Failure>;
