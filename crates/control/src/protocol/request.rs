//! What a client asks for: one variant per verb of `drbdsetup` (command line spec 9).

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use udrbd_units::{Minor, VolumeNumber};

use crate::address::Address;
use crate::options::{DiskOptions, NetOptions, OptionChanges, ResourceOptions};

/// Where the metadata of a disk are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum MetadataIndex {
    /// At the end of the backing device.
    Internal,
    /// All of a device of their own.
    Flexible,
    /// The slot of 128 MiB with this number.
    Slot(u32),
}

impl fmt::Display for MetadataIndex {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Internal => formatter.write_str("internal"),
            Self::Flexible => formatter.write_str("flexible"),
            Self::Slot(slot) => write!(formatter, "{slot}"),
        }
    }
}

impl FromStr for MetadataIndex {
    type Err = crate::options::OptionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "internal" => Ok(Self::Internal),
            "flexible" => Ok(Self::Flexible),
            number => {
                let slot = crate::options::parse_number(number, crate::options::Scale::Ones)?;
                u32::try_from(slot)
                    .map(Self::Slot)
                    .map_err(|_| crate::options::OptionError::Overflow(number.to_owned()))
            }
        }
    }
}

/// One command.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "kebab-case")]
pub enum Request {
    /// Makes a resource; success if it exists.
    NewResource {
        /// Its name.
        resource: String,
        /// Its options.
        options: ResourceOptions,
    },
    /// Removes a resource without volumes.
    DelResource {
        /// Its name.
        resource: String,
    },
    /// Makes a volume; success if the same one exists.
    NewMinor {
        /// The resource.
        resource: String,
        /// The number on the node.
        minor: Minor,
        /// The number in the resource.
        volume: VolumeNumber,
    },
    /// Removes a volume.
    DelMinor {
        /// Its minor.
        minor: Minor,
    },
    /// Attaches a backing device.
    Attach {
        /// The volume.
        minor: Minor,
        /// The backing device.
        disk: PathBuf,
        /// The metadata device; the backing device again for internal metadata.
        metadata: PathBuf,
        /// Where in it the metadata are.
        index: MetadataIndex,
        /// The options.
        options: DiskOptions,
    },
    /// Changes the options of an attached disk.
    DiskOptions {
        /// The volume.
        minor: Minor,
        /// What to change.
        changes: OptionChanges,
    },
    /// Detaches the backing device.
    Detach {
        /// The volume.
        minor: Minor,
        /// Without waiting for requests on the disk.
        force: bool,
    },
    /// Configures and starts the connection.
    Connect {
        /// The resource.
        resource: String,
        /// The own address.
        local: Address,
        /// The peer's address.
        peer: Address,
        /// The options.
        options: NetOptions,
        /// Whether the local data are given up if the nodes diverged.
        discard_my_data: bool,
        /// Whether to stop after the handshake, before any data move.
        tentative: bool,
    },
    /// Changes the options of a connection.
    NetOptions {
        /// The own address.
        local: Address,
        /// The peer's address.
        peer: Address,
        /// What to change.
        changes: OptionChanges,
    },
    /// Ends the connection and forgets its configuration.
    Disconnect {
        /// The own address.
        local: Address,
        /// The peer's address.
        peer: Address,
        /// Without asking the peer.
        force: bool,
    },
    /// Changes the options of a resource.
    ResourceOptions {
        /// The resource.
        resource: String,
        /// What to change.
        changes: OptionChanges,
    },
    /// Promotes the resource of a volume.
    Primary {
        /// The volume.
        minor: Minor,
        /// Whether the local data count as UpToDate, whatever they are (`--force`, `--overwrite-data-of-peer`).
        force: bool,
    },
    /// Demotes the resource of a volume.
    Secondary {
        /// The volume.
        minor: Minor,
    },
    /// Adopts a new size.
    Resize {
        /// The volume.
        minor: Minor,
        /// The size in sectors; `None` leaves the configured one.
        size_sectors: Option<u64>,
        /// Whether the peer is taken to have the space.
        assume_peer_has_space: bool,
        /// Whether the new part counts as in sync.
        assume_clean: bool,
        /// The stripes of the activity log, if they are to change.
        al_stripes: Option<u32>,
        /// The size of a stripe of the activity log in KiB, if it is to change.
        al_stripe_size_kib: Option<u32>,
    },
    /// Starts a full resync to here.
    Invalidate {
        /// The volume.
        minor: Minor,
    },
    /// Starts a full resync to the peer.
    InvalidateRemote {
        /// The volume.
        minor: Minor,
    },
    /// Marks the local data as outdated.
    Outdate {
        /// The volume.
        minor: Minor,
    },
    /// Starts an online verify.
    Verify {
        /// The volume.
        minor: Minor,
        /// The first sector; `None` goes on where the last one ended.
        start_sector: Option<u64>,
        /// The sector to stop before.
        stop_sector: Option<u64>,
    },
    /// Pauses the resync.
    PauseSync {
        /// The volume.
        minor: Minor,
    },
    /// Resumes the resync.
    ResumeSync {
        /// The volume.
        minor: Minor,
    },
    /// Suspends I/O.
    SuspendIo {
        /// The volume.
        minor: Minor,
    },
    /// Resumes I/O.
    ResumeIo {
        /// The volume.
        minor: Minor,
    },
    /// Makes a new generation.
    NewCurrentUuid {
        /// The volume.
        minor: Minor,
        /// Whether the bitmap is cleared: the nodes hold the same data.
        clear_bitmap: bool,
    },
    /// Drops what is kept of the device as it was before a resync.
    DropResyncUndo {
        /// The volume.
        minor: Minor,
    },
    /// Demotes, disconnects, detaches and removes a resource.
    Down {
        /// The resource.
        resource: String,
    },
    /// Tells the daemon which configuration file a resource comes from: handlers get it.
    RegisterConfiguration {
        /// The resource.
        resource: String,
        /// The absolute path.
        path: PathBuf,
    },
    /// Asks for a snapshot; answered by [`super::ServerMessage::Snapshot`]. Never waits for a command in progress.
    Snapshot {
        /// One resource, or all. An unknown name gives an empty snapshot.
        resource: Option<String>,
    },
    /// Asks what is known of a split brain; answered by [`super::ServerMessage::SplitBrain`]. Never waits for a command in
    /// progress.
    SplitBrainReport {
        /// The resource.
        resource: String,
    },
    /// Asks for the stream of changes: the present state of each resource, [`super::StreamItem::DumpEnd`], then
    /// whatever changes, until the client hangs up or the daemon ends.
    Watch {
        /// One resource, or all.
        resource: Option<String>,
    },
}

impl Request {
    /// The verb on the command line, for logs.
    pub const fn verb(&self) -> &'static str {
        match self {
            Self::NewResource { .. } => "new-resource",
            Self::DelResource { .. } => "del-resource",
            Self::NewMinor { .. } => "new-minor",
            Self::DelMinor { .. } => "del-minor",
            Self::Attach { .. } => "attach",
            Self::DiskOptions { .. } => "disk-options",
            Self::Detach { .. } => "detach",
            Self::Connect { .. } => "connect",
            Self::NetOptions { .. } => "net-options",
            Self::Disconnect { .. } => "disconnect",
            Self::ResourceOptions { .. } => "resource-options",
            Self::Primary { .. } => "primary",
            Self::Secondary { .. } => "secondary",
            Self::Resize { .. } => "resize",
            Self::Invalidate { .. } => "invalidate",
            Self::InvalidateRemote { .. } => "invalidate-remote",
            Self::Outdate { .. } => "outdate",
            Self::Verify { .. } => "verify",
            Self::PauseSync { .. } => "pause-sync",
            Self::ResumeSync { .. } => "resume-sync",
            Self::SuspendIo { .. } => "suspend-io",
            Self::ResumeIo { .. } => "resume-io",
            Self::NewCurrentUuid { .. } => "new-current-uuid",
            Self::DropResyncUndo { .. } => "drop-resync-undo",
            Self::Down { .. } => "down",
            Self::RegisterConfiguration { .. } => "register-configuration",
            Self::Snapshot { .. } => "snapshot",
            Self::SplitBrainReport { .. } => "split-brain-report",
            Self::Watch { .. } => "watch",
        }
    }
}
