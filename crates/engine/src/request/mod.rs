//! Requests of clients, from admission to destruction (io spec 3, 5, 6).

mod admission;
mod complete;
mod congestion;
mod read;
mod transfer_log;
mod write;

pub(crate) use transfer_log::WriteAnswer;

use udrbd_units::SectorRange;

use crate::interface::{Buffer, Operation, RequestId, Time};

/// The local part of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Local {
    /// There is none.
    None,
    /// So many operations are at the disk; whether one has failed already.
    Pending { operations: u32, failed: bool },
    /// Done.
    Ok,
    /// Failed.
    Failed,
}

impl Local {
    pub(crate) const fn is_pending(self) -> bool {
        matches!(self, Self::Pending { .. })
    }
}

/// The part of a request the peer does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Net {
    /// There is none.
    None,
    /// The answer is awaited (NP).
    Pending,
    /// The peer has it (NOK).
    Ok,
    /// The peer does not have it.
    Failed,
}

/// A request that has been admitted.
pub(crate) struct Request {
    pub(crate) id: RequestId,
    pub(crate) volume: usize,
    pub(crate) operation: Operation,
    pub(crate) range: SectorRange,
    pub(crate) buffer: Option<Buffer>,
    pub(crate) epoch: u32,
    pub(crate) local: Local,
    pub(crate) net: Net,
    /// It went to the peer as data and a barrier acknowledgement is due (EB).
    pub(crate) barrier_expected: bool,
    /// The peer is done with it for good (ND).
    pub(crate) net_done: bool,
    /// It counts as on its way to the peer: TCP has it, and the peer is not done with it.
    pub(crate) in_flight: bool,
    /// The peer's disk went before the peer was done with it for good: what it acknowledged may be lost.
    pub(crate) doubtful: bool,
    /// Its bits are set already.
    pub(crate) marked: bool,
    /// The peer marked it in sync (SIS).
    pub(crate) set_in_sync: bool,
    /// A later write to the same place, which the peer does not get, has set its bits: this one must not clear them.
    pub(crate) overtaken: bool,
    /// How many activity log references are held, from the first extent on.
    pub(crate) extents_held: u32,
    /// It is in the tree of writes others must wait for.
    pub(crate) in_tree: bool,
    pub(crate) in_log: bool,
    /// The client has been told.
    pub(crate) completed: bool,
    /// I/O was suspended when it could have completed (CS).
    pub(crate) held: bool,
    /// Started over once its conflict is resolved (PP).
    pub(crate) postponed: bool,
    pub(crate) sent_at: Time,
}
