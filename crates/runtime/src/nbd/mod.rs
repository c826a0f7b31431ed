//! The NBD server.
//!
//! A client goes through two phases, which two threads of a daemon serve:
//!
//! 1. [`negotiation`] (fixed newstyle) on the control thread, which owns the listening socket: bytes in, bytes out, no
//!    I/O of its own. It ends with the name of an export, and the connection is handed to the thread of its resource
//!    as a [`Negotiated`] and the open socket;
//! 2. [`Session`] on the engine thread's ring: requests become [`Submission`]s of at most 1 MiB of data (128 MiB
//!    without data), completions become replies.
//!
//! [`protocol`] has the numbers, the validation of requests and the replies.
//!
//! Offered: FLUSH, FUA, TRIM, WRITE_ZEROES (with NO_HOLE; FAST_ZERO is answered "not supported" at once), multiple
//! connections (one engine is behind all of them, so a flush on one covers all), structured replies with DF, and block
//! sizes. Not offered: TLS (the socket is local), metadata contexts, extended headers.

pub mod negotiation;
pub mod protocol;
mod session;

pub use negotiation::{
    Export, Exports, Negotiated, Negotiation, Progress, Refusal, RefusalKind, split_export_name,
};
pub use session::{Operation, Session, SessionLimits, Submission, SubmissionId};
