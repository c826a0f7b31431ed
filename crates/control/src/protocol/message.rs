//! What goes back and forth besides requests.

use serde::{Deserialize, Serialize};
use udrbd_units::{Minor, VolumeNumber};

use crate::ReturnCode;
use crate::status::{NodeSnapshot, ResourceSnapshot, SplitBrainReport};

/// The version of this conversation. It changes with every change of a message.
pub const PROTOCOL_VERSION: u32 = 1;

/// The first message on a connection, from the client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientHello {
    /// [`PROTOCOL_VERSION`] of the client.
    pub protocol: u32,
    /// The program, for the daemon's log.
    pub program: String,
}

/// The server's answer to [`ClientHello`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerHello {
    /// [`PROTOCOL_VERSION`] of the server.
    pub protocol: u32,
    /// The version of the daemon.
    pub version: String,
    /// The name of the node.
    pub node: String,
    /// The process number of the daemon.
    pub process: u32,
}

/// What the server sends.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ServerMessage {
    /// The client may go on.
    Hello(ServerHello),
    /// The client may not go on; the server closes the connection after this.
    Refused {
        /// Why, in one line.
        reason: String,
    },
    /// The result of a command.
    Result(CommandResult),
    /// The answer to [`super::Request::Snapshot`].
    Snapshot(NodeSnapshot),
    /// The answer to [`super::Request::SplitBrainReport`]; `None`: there is no such resource.
    SplitBrain(Option<Box<SplitBrainReport>>),
    /// One item of a stream.
    Stream(StreamItem),
    /// The stream is over.
    End,
}

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommandResult {
    /// DRBD's code.
    pub code: ReturnCode,
    /// The lines `drbdsetup` prints below `additional info from kernel:`.
    pub info: Vec<String>,
    /// Where the device is in use: by whom, one line each. `drbdadm -v` prints them.
    #[serde(default)]
    pub holders: Vec<String>,
}

impl CommandResult {
    /// A result without further information.
    pub const fn new(code: ReturnCode) -> Self {
        Self { code, info: Vec::new(), holders: Vec::new() }
    }

    /// A result with one line of information.
    pub fn with_info(code: ReturnCode, info: impl Into<String>) -> Self {
        Self { code, info: vec![info.into()], holders: Vec::new() }
    }
}

impl From<ReturnCode> for CommandResult {
    fn from(code: ReturnCode) -> Self {
        Self::new(code)
    }
}

/// One item of the stream of changes. Times are microseconds since the epoch (UTC).
///
/// An item carries the whole state of a resource: the client finds out what changed. A server that had to drop
/// items sends [`Self::Skipped`], then the present state of every resource and [`Self::DumpEnd`], and the stream is
/// whole again: resources the client knows that were not among them are gone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum StreamItem {
    /// The state of a resource: new, changed, or part of the first dump.
    Resource {
        /// When it changed; equal for changes that are one.
        time_us: i64,
        /// The state.
        resource: Box<ResourceSnapshot>,
    },
    /// A resource was removed.
    ResourceGone {
        /// When.
        time_us: i64,
        /// Which.
        name: String,
    },
    /// The first dump, or the one after [`Self::Skipped`], is complete.
    DumpEnd {
        /// When.
        time_us: i64,
    },
    /// A handler started or ended.
    Helper {
        /// When.
        time_us: i64,
        /// What happened.
        event: HelperEvent,
    },
    /// Items were dropped because the client did not read them.
    Skipped {
        /// How many.
        count: u64,
    },
}

/// A handler that started or ended (status spec 5.6).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HelperEvent {
    /// The resource.
    pub resource: String,
    /// Whether the connection has addresses.
    pub connected_to_peer: bool,
    /// The volume and its minor, for handlers of a device.
    pub device: Option<(VolumeNumber, Minor)>,
    /// The name of the handler.
    pub helper: String,
    /// The raw wait status (exit status in bits 8 to 15) of a handler that ended; `None` when it started.
    pub status: Option<u32>,
}
