//! What happens to the engine.

use udrbd_units::{Sector, SectorRange, VolumeNumber};
use udrbd_wire as wire;

use super::{Buffer, Command, CommandId, MetadataBlock};

/// The front end's name for one of its requests; comes back in the completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// The engine's name for a disk operation it asked for; comes back with the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Token(pub u64);

/// A TCP socket. The engine names those it connects (below 2³¹), the runtime those it accepts (from 2³¹ on); a number
/// is never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SocketId(pub u32);

impl SocketId {
    /// The first number for accepted sockets.
    pub const FIRST_ACCEPTED: Self = Self(1 << 31);
}

/// The engine's name for a run of a handler program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HandlerId(pub u64);

/// What a client wants done to a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Read into the buffer.
    Read,
    /// Write the buffer.
    Write {
        /// The data are on stable storage when the write completes.
        fua: bool,
        /// Everything completed before is on stable storage first.
        preflush: bool,
    },
    /// Everything completed before is on stable storage when the flush completes. The range is empty.
    Flush,
    /// The content of the range is no longer needed.
    Discard,
    /// Zeroes, without sending them.
    WriteZeroes {
        /// The range may be unmapped.
        may_unmap: bool,
    },
}

impl Operation {
    /// Whether the operation changes data.
    pub const fn is_write(self) -> bool {
        !matches!(self, Self::Read | Self::Flush)
    }

    /// Whether the operation is a discard or a write of zeroes: a change without payload.
    pub const fn is_payloadless(self) -> bool {
        matches!(self, Self::Discard | Self::WriteZeroes { .. })
    }
}

/// A request of a client of the device. Ranges are whole logical blocks of the device and lie within it; at most 1 MiB
/// for reads and writes, at most 128 MiB for discards and zeroes. What is outside completes with
/// [`ClientError::Invalid`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientRequest {
    /// The front end's name for it.
    pub id: RequestId,
    /// The volume.
    pub volume: VolumeNumber,
    /// What to do.
    pub operation: Operation,
    /// Where.
    pub range: SectorRange,
    /// The data of a write, or the room for a read; `None` for flush, discard and zeroes.
    pub buffer: Option<Buffer>,
}

/// Why a client's request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientError {
    /// No copy of the data could be read or written (EIO).
    Io,
    /// This node is not Primary (EROFS for a write, EMEDIUMTYPE for a read).
    NotPrimary,
    /// The request is outside the device or not made of whole blocks (EINVAL).
    Invalid,
    /// There is no such volume (ENXIO).
    NoVolume,
}

/// A disk said no.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoError {
    /// The error number.
    pub errno: i32,
}

/// Why a socket is no longer there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketLoss {
    /// The connection attempt failed, with this error number.
    ConnectFailed(i32),
    /// The peer closed it.
    Closed,
    /// It broke, with this error number.
    Broken(i32),
    /// What the peer sent is not what may come here. The runtime has closed the socket.
    Malformed(wire::WireError),
}

/// What happened. See [`Engine::handle`](crate::Engine::handle).
#[derive(Debug)]
pub enum Event {
    /// A client of a device asks for something.
    Request(ClientRequest),
    /// A read of the backing device ended. `buffer` is the one of the request, or one the runtime took from its pool
    /// where the request had none.
    ReadDone {
        /// Whose.
        token: Token,
        /// Where the data are. Owned by the engine from now on where the runtime took it from its pool.
        buffer: Option<Buffer>,
        /// The digest, where one was asked for.
        digest: Option<wire::DigestValue>,
        /// Whether all bytes are zero, where that was asked for.
        zeroes: bool,
        /// Success, or the error.
        result: Result<(), IoError>,
    },
    /// A write, flush, discard or write of zeroes of the backing device ended.
    WriteDone {
        /// Whose.
        token: Token,
        /// Success, or the error.
        result: Result<(), IoError>,
    },
    /// A read of metadata ended.
    MetadataRead {
        /// Whose.
        token: Token,
        /// The bytes, or the error.
        result: Result<Vec<u8>, IoError>,
    },
    /// A write of metadata ended.
    MetadataWritten {
        /// Whose.
        token: Token,
        /// The block, handed back to be used again.
        block: MetadataBlock,
        /// Success, or the error.
        result: Result<(), IoError>,
    },
    /// The backing device, or that of the metadata, has another size than at the attach or when this was told last. To be
    /// told before a `resize`, and before a P_SIZES of the peer.
    DeviceSize {
        /// Which volume.
        volume: VolumeNumber,
        /// The size of the backing device.
        backing: Sector,
        /// The size of the metadata device; the same for internal metadata.
        metadata: Sector,
    },
    /// An attempt to connect succeeded.
    Connected(SocketId),
    /// Somebody connected to the listening socket.
    Accepted(SocketId),
    /// A socket is gone: it could not be connected, was closed by the peer, or broke. After this event the runtime
    /// knows it no more.
    SocketDown {
        /// Which.
        socket: SocketId,
        /// Why.
        loss: SocketLoss,
    },
    /// The listening socket could not be made, with this error number.
    ListenFailed(i32),
    /// A packet came. Packets of one socket are told in their order, and only while
    /// [`Engine::wants_packets`](crate::Engine::wants_packets) says so.
    Packet {
        /// From where.
        socket: SocketId,
        /// The volume in the header, 0 where the header has none.
        volume: VolumeNumber,
        /// The packet.
        packet: wire::Packet,
        /// The data behind a packet with data; owned by the engine from now on. How many bytes they are is told by
        /// `payload_bytes`.
        payload: Option<Buffer>,
        /// How many bytes of data.
        payload_bytes: u32,
        /// The piece of a bitmap; empty for every other packet.
        bytes: Vec<u8>,
        /// The digest behind a checksum or verify packet.
        digest: Option<wire::DigestValue>,
        /// `false` where the integrity digest in front of the data did not match them.
        intact: bool,
    },
    /// What was sent with [`Action::Send`](super::Action::Send)'s `sent` token is completely in the kernel's hands.
    Sent(Token),
    /// A timer may have expired: the runtime's clock has reached [`Engine::next_timeout`](crate::Engine::next_timeout).
    Timeout,
    /// The administrator wants something.
    Command {
        /// Comes back with the result.
        id: CommandId,
        /// What.
        command: Command,
    },
    /// A handler program ended.
    HandlerExit {
        /// Which.
        handler: HandlerId,
        /// Its exit status.
        status: i32,
    },
}
