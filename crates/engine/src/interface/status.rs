//! What the engine shows of itself: the source of `/proc/drbd`, `status`, `events2`, `show-gi` and the metrics.

use udrbd_units::{ConnectionState, DiskState, GenerationId, Minor, Role, Sector, VolumeNumber};

use super::{DiskOptions, NetOptions, ResourceOptions};
use crate::generation::SplitBrain;

/// A resource.
#[derive(Clone, Debug)]
pub struct ResourceStatus {
    /// The highest role of the volumes.
    pub role: Role,
    /// I/O is suspended by the administrator.
    pub suspended_user: bool,
    /// I/O is suspended because no good data can be reached.
    pub suspended_no_data: bool,
    /// I/O is suspended until the peer is fenced.
    pub suspended_fencing: bool,
    /// The options.
    pub options: ResourceOptions,
    /// The connection.
    pub connection: ConnectionStatus,
    /// The volumes, by number.
    pub volumes: Vec<VolumeStatus>,
}

/// The connection of a resource.
#[derive(Clone, Debug)]
pub struct ConnectionStatus {
    /// Its state; never above WFReportParams.
    pub state: ConnectionState,
    /// The highest role of the peer.
    pub peer_role: Role,
    /// The options; `None` without a network configuration.
    pub options: Option<NetOptions>,
    /// The agreed protocol version, once there is one.
    pub agreed_version: u32,
    /// `ep`: epochs on the receiving side.
    pub epochs: u32,
    /// `wo`: `f`, `d` or `n`.
    pub write_ordering: char,
}

/// The counters of `/proc/drbd` (io spec 19).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// `ns`: payload sectors sent.
    pub sent_sectors: u64,
    /// `nr`: payload sectors received.
    pub received_sectors: u64,
    /// `dw`: sectors written to the backing device.
    pub written_sectors: u64,
    /// `dr`: sectors read from the backing device.
    pub read_sectors: u64,
    /// `al`: activity log blocks written.
    pub al_writes: u64,
    /// `bm`: bitmap pages written.
    pub bitmap_writes: u64,
    /// `lo`: requests at the backing device.
    pub local_pending: u32,
    /// `pe`: requests the peer has not answered.
    pub peer_pending: u32,
    /// `ua`: requests of the peer not answered yet.
    pub unacknowledged: u32,
    /// `ap`: requests of clients not completed.
    pub application_pending: u32,
    /// `oos`: sectors out of sync (whole blocks).
    pub out_of_sync_sectors: u64,
}

/// The progress of a resync or verify (io spec 15.12).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SyncProgress {
    /// Blocks to visit at the start.
    pub total_blocks: u64,
    /// Blocks left.
    pub left_blocks: u64,
    /// Blocks that failed.
    pub failed_blocks: u64,
    /// Nanoseconds since the start, pauses left out.
    pub elapsed_ns: u64,
    /// Nanoseconds paused.
    pub paused_ns: u64,
    /// The mark the speed is told from: nanoseconds since.
    pub mark_ns: u64,
    /// Blocks left at that mark.
    pub mark_left_blocks: u64,
    /// The rate the controller wants, KiB/s; shown on the requesting side.
    pub want_kib: u32,
    /// Position of an online verify.
    pub position: Option<Sector>,
}

/// Clients that were served by a daemon that has died, and whose requests wait for the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WaitingClients {
    /// The generation of the data they were last served; none if that is not known.
    pub served: GenerationId,
    /// The peer has written since, over a connection: that makes no new generation.
    pub overwritten: bool,
}

/// A volume.
#[derive(Clone, Debug)]
pub struct VolumeStatus {
    /// Its number in the resource.
    pub volume: VolumeNumber,
    /// Its number on the node.
    pub minor: Minor,
    /// The own role.
    pub role: Role,
    /// The peer's role.
    pub peer_role: Role,
    /// The state of the connection as this volume sees it.
    pub connection: ConnectionState,
    /// The own disk.
    pub disk: DiskState,
    /// The peer's disk.
    pub peer_disk: DiskState,
    /// Resync paused by the user here.
    pub paused_by_user: bool,
    /// Resync paused by the peer.
    pub paused_by_peer: bool,
    /// Resync paused by `resync-after`.
    pub paused_by_dependency: bool,
    /// Activity log updates are suspended.
    pub al_suspended: bool,
    /// The node was a Primary without connection when it went down, and has not met its peer since.
    pub use_degraded_timeout: bool,
    /// Admission of client requests would wait.
    pub blocked: bool,
    /// The size of the device; 0 while unknown.
    pub size: Sector,
    /// The options; `None` without a disk.
    pub options: Option<DiskOptions>,
    /// current, bitmap, history 0, history 1; `None` without a disk.
    pub generations: Option<[GenerationId; 4]>,
    /// The flags word of the superblock; 0 without a disk.
    pub metadata_flags: u32,
    /// The generation of the data clients see.
    pub exposed_generation: GenerationId,
    /// The generation of the data clients see, also while the own disk is being resynced; what to keep for
    /// [`WaitingClients::served`].
    pub served_generation: GenerationId,
    /// Clients that wait for a server, as [`Command::ClientsWait`](super::Command::ClientsWait) told, and what has
    /// happened to the data since.
    pub waiting_clients: Option<WaitingClients>,
    /// Clients that wait, if there are any, may go on with the data there are now.
    pub clients_may_go_on: bool,
    /// The counters.
    pub counters: Counters,
    /// The background work, while there is one.
    pub progress: Option<SyncProgress>,
    /// The last split brain a handshake found; it stays when it is over.
    pub split_brain: Option<Box<SplitBrain>>,
}
