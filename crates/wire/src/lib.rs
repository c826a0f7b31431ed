//! The DRBD 8.4 wire protocol as values: packets, the bitmap's run-length code, digests and authentication.
//!
//! Nothing in here does I/O, and nothing allocates by a size the peer names.
//!
//! **Receiving** is three steps, so that bulk data go from the socket straight into the buffer they are written
//! from:
//!
//! 1. [`Incoming::decode_header`] reads a header as soon as enough bytes are there and says how the body is cut:
//!    `packet_bytes` of structure, `digest_bytes` of checksum, `payload_bytes` of bulk data. Everything about the
//!    length is checked here.
//! 2. [`Incoming::decode`] turns the structure's bytes into a [`Packet`].
//! 3. The digest and the payload are the receiver's to place where it likes.
//!
//! **Sending** is the mirror: [`Packet::encode`] appends header, structure and digest to a buffer the caller keeps,
//! and is told only the length of the payload, which the caller gathers behind it. It cannot fail.
//!
//! What both ends have agreed on ([`Dialect`]) decides the header's form and which fields exist.
#![forbid(unsafe_code)]

mod authentication;
pub mod bitmap;
mod blocks;
mod command;
mod cursor;
mod dialect;
mod digest;
mod error;
mod flags;
mod handshake;
mod header;
mod incoming;
mod name;
mod packet;
mod state;
mod volume;

pub use authentication::{AuthChallenge, AuthResponse, Authentication, UnsupportedAuthentication};
pub use blocks::{
    Barrier, BarrierAck, BlockAck, BlockId, BlockRange, BlockReply, BlockRequest, BlockWrite, BlockZero,
    DelayProbe, SequenceNumber,
};
pub use command::{Command, Scope, Socket, log_name};
pub use dialect::{Dialect, PROTOCOL_MAX, PROTOCOL_MIN};
pub use digest::{DIGEST_BYTES_MAX, DigestAlgorithm, DigestValue, Digester, UnknownAlgorithm};
pub use error::WireError;
pub use flags::{ConnectionFlags, DataFlags, Extensions, Features, SizesFlags, UuidFlags};
pub use handshake::{
    AfterSplitBrain, ConnectionFeatures, ControllerParameters, ProtocolParameters, ReplicationProtocol,
    SyncParameters,
};
pub use header::{HEADER_BYTES_MAX, Header};
pub use incoming::{Expected, Incoming, Reception};
pub use name::{AlgorithmName, NameTooLong};
pub use packet::Packet;
pub use state::{StateChange, StateReturnCode, StateWord};
pub use volume::{QueueLimits, Sizes, Uuids};

/// The largest payload of a data packet and the largest block that may be asked for, in bytes (wire spec 4 and 8.2).
pub const DATA_BYTES_MAX: u32 = 1 << 20;
/// The largest range of a discard or write-zeroes, in bytes (wire spec 8.3).
pub const ZERO_BYTES_MAX: u32 = 128 << 20;
/// The most bytes of structure and digest any packet has: what a receiver must be able to hold besides payload.
pub const SMALL_BYTES_MAX: usize = 192;
