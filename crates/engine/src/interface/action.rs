//! What the engine wants done.

use udrbd_units::{Minor, Role, Sector, SectorRange, VolumeNumber};
use udrbd_wire as wire;

use super::{
    Buffer, ClientError, CommandId, CommandResult, HandlerId, MetadataBlock, Payload, RequestId, SocketId,
    Token,
};

/// Actions in the order in which they are to be done. The runtime drains it after each call.
pub type Actions = Vec<Action>;

/// Which of the two sockets of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SocketRole {
    /// Carries data and requests.
    Data,
    /// Carries acknowledgements and pings.
    Meta,
}

/// How a range without payload is to be treated on a backing device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiscardMode {
    /// Discard it; what it reads as afterwards does not matter.
    Discard,
    /// Write zeroes, and unmap where that yields zeroes.
    ZeroesMayUnmap,
    /// Write zeroes and keep the range allocated.
    ZeroesKeepAllocated,
}

/// How loud a line of the log is, after the kernel's levels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// An administrator has to act at once.
    Alert,
    /// Something failed.
    Error,
    /// Something is odd.
    Warning,
    /// Good to know.
    Info,
}

/// A handler program, by the name of its option.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Handler {
    /// A Primary has no access to good data.
    PriOnInconDegr,
    /// A Primary lost the decision after a split brain and could not give up its role.
    PriLostAfterSb,
    /// A Primary should become SyncTarget.
    PriLost,
    /// The backing device failed.
    LocalIoError,
    /// A split brain was detected, before any automatic recovery.
    InitialSplitBrain,
    /// A split brain was not resolved.
    SplitBrain,
    /// About to become SyncTarget.
    BeforeResyncTarget,
    /// About to become SyncSource.
    BeforeResyncSource,
    /// Was SyncTarget, the resync is done.
    AfterResyncTarget,
    /// Online verify found differences.
    OutOfSync,
    /// Fence the peer.
    FencePeer,
    /// The peer is in sync again.
    UnfencePeer,
}

impl Handler {
    /// The name: of the option, and the command `drbdadm` is run with.
    pub const fn name(self) -> &'static str {
        match self {
            Self::PriOnInconDegr => "pri-on-incon-degr",
            Self::PriLostAfterSb => "pri-lost-after-sb",
            Self::PriLost => "pri-lost",
            Self::LocalIoError => "local-io-error",
            Self::InitialSplitBrain => "initial-split-brain",
            Self::SplitBrain => "split-brain",
            Self::BeforeResyncTarget => "before-resync-target",
            Self::BeforeResyncSource => "before-resync-source",
            Self::AfterResyncTarget => "after-resync-target",
            Self::OutOfSync => "out-of-sync",
            Self::FencePeer => "fence-peer",
            Self::UnfencePeer => "unfence-peer",
        }
    }
}

/// Something for people and their scripts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// A line for the log.
    Log {
        /// How loud.
        level: Level,
        /// The volume it is about, `None` for the connection or the resource.
        volume: Option<VolumeNumber>,
        /// The text, with DRBD's phrases.
        text: String,
    },
    /// Something that status, `events2` or the status file shows has changed: look at
    /// [`Engine::status`](crate::Engine::status).
    StateChanged,
    /// The name of a resync's progress has moved on; as [`Report::StateChanged`], but not worth waking anybody early.
    Progress,
}

/// Something to be done. The order matters: sends on one socket, and writes of metadata against sends, keep it.
#[derive(Debug)]
pub enum Action {
    /// Read from a backing device; answer with [`Event::ReadDone`](super::Event::ReadDone).
    Read {
        /// Comes back.
        token: Token,
        /// The volume.
        volume: VolumeNumber,
        /// Where.
        range: SectorRange,
        /// Into which buffer; `None`: take one from the pool, waiting for one where there is none.
        buffer: Option<Buffer>,
        /// Compute this digest of the data.
        digest: Option<wire::DigestAlgorithm>,
        /// Look whether all bytes are zero.
        look_for_zeroes: bool,
    },
    /// Write to a backing device; answer with [`Event::WriteDone`](super::Event::WriteDone).
    Write {
        /// Comes back.
        token: Token,
        /// The volume.
        volume: VolumeNumber,
        /// Where.
        range: SectorRange,
        /// What.
        buffer: Buffer,
        /// Done only when it is on stable storage.
        fua: bool,
        /// Flush the device's cache first.
        preflush: bool,
    },
    /// Flush a backing device's volatile cache; answer with [`Event::WriteDone`](super::Event::WriteDone).
    Flush {
        /// Comes back.
        token: Token,
        /// The volume.
        volume: VolumeNumber,
    },
    /// Discard or zero a range; answer with [`Event::WriteDone`](super::Event::WriteDone).
    Discard {
        /// Comes back.
        token: Token,
        /// The volume.
        volume: VolumeNumber,
        /// Where.
        range: SectorRange,
        /// How.
        mode: DiscardMode,
    },
    /// Begin an undo: make its side file, durably, with nothing kept; answer with
    /// [`Event::WriteDone`](super::Event::WriteDone), EEXIST where there is one. Comes before any [`Action::KeepOld`].
    BeginUndo {
        /// Comes back.
        token: Token,
        /// The volume.
        volume: VolumeNumber,
        /// The size of the device.
        size: Sector,
    },
    /// Copy what these blocks hold now to the side file of the undo; answer with
    /// [`Event::WriteDone`](super::Event::WriteDone) when the copy, and the record of it, are durable. On an error the side
    /// file says, durably, that it is incomplete.
    KeepOld {
        /// Comes back.
        token: Token,
        /// The volume.
        volume: VolumeNumber,
        /// The first block of 4 KiB.
        first: u64,
        /// How many blocks; the last one of the device may be short.
        blocks: u64,
    },
    /// Read metadata; answer with [`Event::MetadataRead`](super::Event::MetadataRead).
    ReadMetadata {
        /// Comes back.
        token: Token,
        /// The volume.
        volume: VolumeNumber,
        /// Where on the metadata device.
        position: Sector,
        /// How many bytes: whole sectors, at most 1 MiB.
        bytes: u32,
    },
    /// Write 4 KiB of metadata; answer with [`Event::MetadataWritten`](super::Event::MetadataWritten).
    WriteMetadata {
        /// Comes back.
        token: Token,
        /// The volume.
        volume: VolumeNumber,
        /// Where on the metadata device.
        position: Sector,
        /// What.
        block: MetadataBlock,
        /// Flush the device's cache first.
        preflush: bool,
        /// Done only when it is on stable storage.
        fua: bool,
    },
    /// Every disk of this volume may be closed: nothing of it is in flight.
    CloseDisk {
        /// The volume.
        volume: VolumeNumber,
    },
    /// Listen on the own address; each connection is an [`Event::Accepted`](super::Event::Accepted).
    Listen,
    /// Stop listening.
    StopListening,
    /// Connect to the peer's address, bound to the own one, giving up after `timeout`; answer with
    /// [`Event::Connected`](super::Event::Connected) or [`Event::SocketDown`](super::Event::SocketDown).
    Connect {
        /// The name of the new socket.
        socket: SocketId,
        /// How long to try.
        timeout: std::time::Duration,
    },
    /// Close a socket: what is not yet sent is dropped where `abort`, else sent first. There is no answer, and no event
    /// of this socket any more.
    Close {
        /// Which.
        socket: SocketId,
        /// Do not send what is queued.
        abort: bool,
    },
    /// Send a packet behind everything queued on this socket. If the socket is already gone, do nothing.
    Send {
        /// On which.
        socket: SocketId,
        /// What the peers have agreed on: decides the form.
        dialect: wire::Dialect,
        /// The volume in the header.
        volume: VolumeNumber,
        /// The packet.
        packet: wire::Packet,
        /// What follows it.
        payload: Payload,
        /// Compute this digest of the payload and put it in front of it.
        integrity: Option<wire::DigestAlgorithm>,
        /// Put this digest behind the packet.
        digest: Option<wire::DigestValue>,
        /// Say with [`Event::Sent`](super::Event::Sent) when all of it is in the kernel's hands.
        sent: Option<Token>,
    },
    /// A client's request is done.
    Complete {
        /// Which.
        request: RequestId,
        /// How it ended.
        result: Result<(), ClientError>,
        /// For a read answered by the peer: where the data are, to be copied to the client and released.
        data: Option<Buffer>,
    },
    /// The engine needs this buffer no more.
    Release(Buffer),
    /// A command is done.
    Reply {
        /// Which.
        command: CommandId,
        /// How it ended.
        result: CommandResult,
    },
    /// Run a handler program; answer with [`Event::HandlerExit`](super::Event::HandlerExit), also where it cannot be
    /// started (status 127).
    RunHandler {
        /// Comes back.
        handler: HandlerId,
        /// Which program.
        name: Handler,
        /// The volume it is about, `None` for the connection.
        volume: Option<VolumeNumber>,
    },
    /// The front end of a volume has to change: it serves requests only while `role` is Primary.
    Device {
        /// The volume.
        volume: VolumeNumber,
        /// Its minor.
        minor: Minor,
        /// The role.
        role: Role,
        /// The size; 0 while it is not known.
        size: Sector,
    },
    /// Tell people.
    Report(Report),
}
