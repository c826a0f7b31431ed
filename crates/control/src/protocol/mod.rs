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
//! [`ServerSession`] is the server's side without any input and output; answers are [`frame::encode`]d.
//!
//! Queries travel as snapshots and the client formats them, as the kernel's DRBD sends attributes and lets
//! `drbdsetup` format: what is printed depends on the caller's options, user and terminal.

pub mod frame;
mod message;
mod request;
mod session;

pub use message::{
    ClientHello, CommandResult, HelperEvent, PROTOCOL_VERSION, ServerHello, ServerMessage, StreamItem,
};
pub use request::{MetadataIndex, Request};
pub use session::{ServerSession, SessionEvent};

/// The name of the control socket in the run directory.
pub const SOCKET_NAME: &str = "control.sock";
