//! What the control thread and the engine threads say to each other, in bounded mailboxes.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use tokio::sync::oneshot;
use udrbd_engine::bitmap::Region;
use udrbd_engine::interface::{
    AttachSettings, Command, CommandId, CommandResult, Handler, HandlerId, Level, NetOptions, ResourceStatus,
    Token,
};
use udrbd_runtime::Errno;
use udrbd_runtime::disk::Disk;
use udrbd_runtime::nbd::Negotiated;
use udrbd_runtime::socket::SocketOptions;
use udrbd_runtime::ublk::Source;
use udrbd_units::VolumeNumber;

use crate::undo::Keeper;

/// Regions of changed blocks that are told.
pub(crate) const REGIONS_MAX: usize = 16;

/// The open devices of a volume. With internal metadata both are clones of one.
#[derive(Debug)]
pub(crate) struct DiskPair {
    pub(crate) backing: Disk,
    pub(crate) metadata: Disk,
    /// Keeps what is overwritten, once there is an undo.
    pub(crate) undo: Option<Keeper>,
}

/// The two ends of a connection and how its sockets are made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Endpoint {
    pub(crate) local: SocketAddr,
    pub(crate) remote: SocketAddr,
    pub(crate) options: SocketOptions,
}

/// To an engine thread.
#[derive(Debug)]
pub(crate) enum ToEngine {
    /// A command that needs nothing but the engine.
    Command { id: CommandId, command: Command },
    /// `attach`, with the devices.
    Attach { id: CommandId, volume: VolumeNumber, settings: Box<AttachSettings>, disks: Box<DiskPair> },
    /// `connect`, with the addresses.
    Connect { id: CommandId, options: Box<NetOptions>, endpoint: Endpoint },
    /// `net-options`, with what becomes of sockets made from now on.
    NetOptions { id: CommandId, options: Box<NetOptions>, sockets: SocketOptions },
    /// An NBD client that has negotiated.
    Client { volume: VolumeNumber, socket: OwnedFd, negotiated: Box<Negotiated> },
    /// The block device of a volume, whose requests are to be served from now on.
    ServeBlock { id: CommandId, volume: VolumeNumber, source: Source },
    /// What was to be kept is durable, or cannot be kept.
    Kept { token: Token, result: Result<(), Errno> },
    /// A handler has ended.
    HandlerExit { handler: HandlerId, status: i32 },
    /// Tell where blocks differ from the peer's, by volume; only of those with a disk.
    ChangedRegions(oneshot::Sender<Vec<(VolumeNumber, Vec<Region>)>>),
    /// Tell the status, with this number or a later one.
    Publish(u64),
    /// End the thread.
    Stop,
}

/// What an engine thread knows at one moment.
#[derive(Debug)]
pub(crate) struct EngineStatus {
    /// The highest number of [`ToEngine::Publish`] seen.
    pub(crate) answered: u64,
    pub(crate) resource: ResourceStatus,
    /// The volumes somebody has open.
    pub(crate) open: Vec<VolumeNumber>,
    /// The socket for data has no room.
    pub(crate) congested: bool,
}

/// From an engine thread.
#[derive(Debug)]
pub(crate) enum FromEngine {
    /// A line for the log.
    Log { level: Level, volume: Option<VolumeNumber>, text: String },
    /// So many lines for the log were dropped.
    LogLost(u64),
    /// The status, after a change or because it was asked for.
    Status(Box<EngineStatus>),
    /// A command is done.
    Reply { id: CommandId, result: CommandResult },
    /// The block device of a volume was stopped, and nothing of it is held here any more.
    BlockClosed { volume: VolumeNumber },
    /// Run a handler.
    RunHandler { handler: HandlerId, name: Handler, volume: Option<VolumeNumber> },
}
