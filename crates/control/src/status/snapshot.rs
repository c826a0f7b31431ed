//! The plain values of a snapshot.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use udrbd_units::{ConnectionState, DiskState, GenerationId, Minor, Role, VolumeNumber};

use crate::address::Address;
use crate::options::{DiskOptions, NetOptions, ResourceOptions};
use crate::protocol::MetadataIndex;

/// Everything a node reports, at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NodeSnapshot {
    /// The resources in the order in which they were made.
    pub resources: Vec<ResourceSnapshot>,
}

/// One resource with its connection and volumes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ResourceSnapshot {
    /// The name.
    pub name: String,
    /// The options in force.
    pub options: ResourceOptions,
    /// Why I/O is suspended.
    pub suspended: Suspension,
    /// How the order of writes is kept.
    pub write_ordering: WriteOrdering,
    /// The one connection, present even without addresses.
    pub connection: ConnectionSnapshot,
    /// The volumes by ascending number.
    pub devices: Vec<DeviceSnapshot>,
    /// The configuration file the resource came from, if the command line told.
    pub configuration: Option<PathBuf>,
}

/// The reasons for which I/O is suspended; all false is running.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Suspension {
    /// The administrator (`suspend-io`).
    pub user: bool,
    /// No node has data (`on-no-data-accessible suspend-io`).
    pub no_data: bool,
    /// The peer is being fenced.
    pub fencing: bool,
}

impl Suspension {
    /// Whether I/O is suspended at all.
    pub const fn any(self) -> bool {
        self.user || self.no_data || self.fencing
    }
}

/// How the order of writes is kept on the backing devices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum WriteOrdering {
    /// Not at all.
    None,
    /// By waiting for all writes.
    Drain,
    /// By flushes.
    #[default]
    Flush,
}

/// The connection of a resource.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ConnectionSnapshot {
    /// The own and the peer's address; `None` between the end of `disconnect` and the next `connect`.
    pub addresses: Option<(Address, Address)>,
    /// The options, present as long as the addresses.
    pub options: Option<NetOptions>,
    /// The state of the sockets, never above [`ConnectionState::WFReportParams`].
    pub state: ConnectionState,
    /// The agreed protocol version while connected.
    pub protocol_version: Option<u32>,
    /// Whether the send buffer is congested.
    pub congested: bool,
    /// Write epochs in flight on the receiving side; 1 when idle.
    pub epochs: u32,
    /// Application data sent and not acknowledged, in sectors.
    pub application_in_flight_sectors: u64,
    /// Resync data requested or sent and not acknowledged, in sectors.
    pub resync_in_flight_sectors: u64,
}

/// One volume of a resource: the local device and what is known of the peer's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeviceSnapshot {
    /// The number within the resource.
    pub volume: VolumeNumber,
    /// The number on the node.
    pub minor: Minor,
    /// The own role.
    pub role: Role,
    /// The peer's role.
    pub peer_role: Role,
    /// The combined connection state of the volume.
    pub connection: ConnectionState,
    /// The local disk.
    pub disk: DiskState,
    /// The peer's disk.
    pub peer_disk: DiskState,
    /// Why a resync is paused.
    pub resync_paused: ResyncPause,
    /// Whether updates of the activity log are suspended.
    pub activity_log_suspended: bool,
    /// Whether new requests are held back, for another reason than a suspension of the resource.
    pub upper_blocked: bool,
    /// Whether somebody has the block device open.
    pub open: bool,
    /// Whether the node was a Primary without connection when it went down, and has not met its peer since
    /// (states spec 13.1: selects `degr-wfc-timeout`).
    pub use_degraded_timeout: bool,
    /// The size in sectors; 0 while unknown.
    pub size_sectors: u64,
    /// The backing device; `None` while Diskless.
    pub backing: Option<BackingSnapshot>,
    /// The counters.
    pub counters: DeviceCounters,
    /// The resync or verify that is running or paused.
    pub progress: Option<ProgressSnapshot>,
    /// What a resync has overwritten here, kept.
    #[serde(default)]
    pub undo: Option<UndoSnapshot>,
}

/// What is kept of a device as it was before a resync overwrote its changes (`resync-undo`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UndoSnapshot {
    /// When it began: microseconds since the epoch.
    pub began_us: i64,
    /// The blocks of 4 KiB that are kept.
    pub kept_blocks: u64,
    /// Blocks were overwritten that are not kept: it does not show the device as it was.
    pub incomplete: bool,
    /// The side file.
    pub path: PathBuf,
    /// The export of the NBD server that shows the device as it was.
    pub export: String,
}

/// The reasons for which a resync is paused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResyncPause {
    /// The local administrator (`user_isp`).
    pub user: bool,
    /// The peer (`peer_isp`).
    pub peer: bool,
    /// Another device goes first (`aftr_isp`).
    pub dependency: bool,
}

/// The backing device of a volume.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BackingSnapshot {
    /// The backing device as given to `attach`.
    pub disk: String,
    /// The metadata device as given to `attach`; with internal metadata the same.
    pub metadata: String,
    /// Where the metadata are.
    pub index: MetadataIndex,
    /// The options in force.
    pub options: DiskOptions,
    /// The generation identifiers.
    pub generations: Generations,
}

/// The generation identifiers of a disk and the flags beside them (status spec 3.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Generations {
    /// The current identifier.
    pub current: GenerationId,
    /// The base of the bitmap.
    pub bitmap: GenerationId,
    /// The younger and the older history.
    pub history: [GenerationId; 2],
    /// The data are consistent.
    pub consistent: bool,
    /// The data were UpToDate.
    pub was_up_to_date: bool,
    /// The node is or was Primary.
    pub primary: bool,
    /// The node is or was connected.
    pub connected: bool,
    /// A full sync is pending.
    pub full_sync: bool,
    /// The peer is outdated or inconsistent.
    pub peer_outdated: bool,
    /// The node crashed as Primary and has not met its peer since.
    pub crashed_primary: bool,
}

/// The counters of a volume; amounts in sectors of 512 bytes (status spec 2.4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceCounters {
    /// `ns`: payload sent.
    pub sent_sectors: u64,
    /// `nr`: payload received.
    pub received_sectors: u64,
    /// `dw`: written to the local disk.
    pub written_sectors: u64,
    /// `dr`: read from the local disk.
    pub read_sectors: u64,
    /// `al`: blocks of the activity log written.
    pub activity_log_writes: u64,
    /// Blocks of the bitmap written. `bm:` prints 0 all the same, as DRBD does.
    pub bitmap_writes: u64,
    /// `lo`: requests at the local disk.
    pub local_pending: u64,
    /// Part of `pe`: application requests the peer has not answered.
    pub peer_pending: u64,
    /// Part of `pe`: resync and verify requests the peer has not answered.
    pub resync_pending: u64,
    /// `ua`: the peer's requests not answered yet.
    pub unacknowledged: u64,
    /// `ap`: application requests not completed.
    pub application_pending: u64,
    /// `oos`: set bits of the bitmap; 0 without a local disk.
    pub out_of_sync_blocks: u64,
}

/// What is running.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProgressKind {
    /// A resync.
    Resync,
    /// An online verify.
    Verify,
}

/// How far a resync or verify has come; amounts in blocks of 4 KiB (status spec 2.5).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProgressSnapshot {
    /// Resync or verify.
    pub kind: ProgressKind,
    /// The blocks to do when it began (`rs_total`).
    pub total_blocks: u64,
    /// The blocks a resync failed to copy (`rs_failed`).
    pub failed_blocks: u64,
    /// The blocks a verify has not looked at yet (`ov_left`); 0 for a resync.
    pub verify_left_blocks: u64,
    /// The blocks a checksum resync found equal (`rs_same_csum`).
    pub equal_checksum_blocks: u64,
    /// The time since the beginning, in milliseconds.
    pub elapsed_ms: u64,
    /// The part of that time for which it was paused, in milliseconds.
    pub paused_ms: u64,
    /// The mark about 18 s old: slot (newest + 2) mod 8.
    pub short_mark: SpeedMark,
    /// The mark about 3 s old: slot (newest + 7) mod 8.
    pub mid_mark: SpeedMark,
    /// The rate aimed at (`c_sync_rate`), in KiB/s; printed by the side that makes the requests.
    pub wanted_kib_per_second: u64,
    /// Where the scan is, in blocks (`bm_resync_fo`).
    pub position_blocks: u64,
    /// The sector a verify starts at, if not 0.
    pub verify_start_sector: u64,
    /// The sector a verify stops before, if one was given.
    pub verify_stop_sector: Option<u64>,
}

/// How much was left at a moment of the past.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpeedMark {
    /// How long ago, in milliseconds.
    pub age_ms: u64,
    /// The blocks left then.
    pub left_blocks: u64,
}

impl Default for ConnectionSnapshot {
    fn default() -> Self {
        Self {
            addresses: None,
            options: None,
            state: ConnectionState::StandAlone,
            protocol_version: None,
            congested: false,
            epochs: 1,
            application_in_flight_sectors: 0,
            resync_in_flight_sectors: 0,
        }
    }
}

impl ResourceSnapshot {
    /// A resource as `new-resource` makes it.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            options: ResourceOptions::default(),
            suspended: Suspension::default(),
            write_ordering: WriteOrdering::default(),
            connection: ConnectionSnapshot::default(),
            devices: Vec::new(),
            configuration: None,
        }
    }

    /// The role of the resource: the highest of its volumes, Secondary without volumes.
    pub fn role(&self) -> Role {
        self.devices.iter().map(|device| device.role).fold(Role::Secondary, higher)
    }

    /// The role of the peer: the highest of its volumes, Unknown without volumes.
    pub fn peer_role(&self) -> Role {
        self.devices.iter().map(|device| device.peer_role).fold(Role::Unknown, higher)
    }

    /// The volume with this minor.
    pub fn device_by_minor(&self, minor: Minor) -> Option<&DeviceSnapshot> {
        self.devices.iter().find(|device| device.minor == minor)
    }
}

fn higher(one: Role, other: Role) -> Role {
    if other.rank() > one.rank() { other } else { one }
}

impl DeviceSnapshot {
    /// A volume as `new-minor` makes it.
    pub fn new(volume: VolumeNumber, minor: Minor) -> Self {
        Self {
            volume,
            minor,
            role: Role::Secondary,
            peer_role: Role::Unknown,
            connection: ConnectionState::StandAlone,
            disk: DiskState::Diskless,
            peer_disk: DiskState::Unknown,
            resync_paused: ResyncPause::default(),
            activity_log_suspended: false,
            upper_blocked: false,
            open: false,
            use_degraded_timeout: false,
            size_sectors: 0,
            backing: None,
            counters: DeviceCounters::default(),
            progress: None,
            undo: None,
        }
    }

    /// Whether the query commands call the device `Unconfigured`: StandAlone and Diskless, whatever the role.
    pub fn is_unconfigured(&self) -> bool {
        self.connection == ConnectionState::StandAlone && self.disk == DiskState::Diskless
    }
}

impl NodeSnapshot {
    /// The resource of this name.
    pub fn resource(&self, name: &str) -> Option<&ResourceSnapshot> {
        self.resources.iter().find(|resource| resource.name == name)
    }

    /// The volume with this minor and its resource.
    pub fn device_by_minor(&self, minor: Minor) -> Option<(&ResourceSnapshot, &DeviceSnapshot)> {
        self.resources
            .iter()
            .find_map(|resource| resource.device_by_minor(minor).map(|device| (resource, device)))
    }
}
