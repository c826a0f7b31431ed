//! The conversation between the command line and the daemon over the control socket.
//!
//! Messages are JSON values in frames of a four-byte length (big endian) and so many bytes: see [`frame`]. The
//! client speaks first with [`ClientHello`]; the server answers with [`ServerMessage::Hello`] or
//! [`ServerMessage::Refused`]. Then the client sends one [`Request`] at a time and the server answers each:
//!
//! * [`Request::Snapshot`] with one [`ServerMessage::Snapshot`],
//! * [`Request::Watch`] with any number of [`ServerMessage::Stream`] and then [`ServerMessage::End`],
//! * every other request with one [`ServerMessage::Result`].
//!
//! A server decodes with [`frame::FrameDecoder::for_requests`] and [`frame::encode`]s its answers; both are pure.
//!
//! Queries travel as snapshots and the client formats them, as the kernel's DRBD sends attributes and lets
//! `drbdsetup` format: what is printed depends on the caller's options, user and terminal.

pub mod frame;
mod message;
mod request;

pub use message::{
    ClientHello, CommandResult, HelperEvent, PROTOCOL_VERSION, ServerHello, ServerMessage, StreamItem,
};
pub use request::{MetadataIndex, Request};

/// The name of the control socket in the run directory.
pub const SOCKET_NAME: &str = "control.sock";
