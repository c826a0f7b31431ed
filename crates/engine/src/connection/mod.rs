//! The connection to the peer: two sockets, what was agreed on them, and what is in flight.

mod establish;
mod handshake;
mod keepalive;
mod loss;
pub(crate) mod parameters;
mod receive;
mod state;

use std::collections::VecDeque;

use udrbd_units::{ConnectionState, VolumeNumber};
use udrbd_wire as wire;

pub(crate) use establish::{Calls, Establish};
pub(crate) use loss::Losing;
pub(crate) use state::Pondering;

use crate::interface::{Buffer, NetOptions, SocketId, SocketRole, Time};
use crate::peer::PeerEpoch;
use crate::slab::Key;

/// How far the two nodes have come on an established pair of sockets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// There is no pair of sockets.
    None,
    /// The peer's versions and features are awaited.
    Features,
    /// The peer's challenge is awaited.
    Challenge,
    /// The peer's answer to the own challenge is awaited.
    Response,
    /// Everything is agreed; packets flow.
    Established,
}

/// How the receiving side keeps the order of epochs (io spec 8.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum WriteOrdering {
    /// Not at all.
    None,
    /// An epoch is complete before the next is submitted.
    Drain,
    /// And on stable storage.
    Flush,
}

/// A packet of the data socket that has to wait.
#[derive(Debug)]
pub(crate) struct Inbound {
    pub(crate) volume: VolumeNumber,
    pub(crate) packet: wire::Packet,
    pub(crate) payload: Option<Buffer>,
    pub(crate) payload_bytes: u32,
    pub(crate) bytes: Vec<u8>,
    pub(crate) digest: Option<wire::DigestValue>,
    pub(crate) intact: bool,
}

/// Bytes of payload that may wait until the data socket is no longer read.
const INBOX_BYTES_MAX: u64 = 4 << 20;

/// The connection.
pub(crate) struct Connection {
    pub(crate) state: ConnectionState,
    pub(crate) options: Option<NetOptions>,
    pub(crate) establish: Establish,
    pub(crate) calls: Calls,
    pub(crate) stage: Stage,
    pub(crate) data: Option<SocketId>,
    pub(crate) meta: Option<SocketId>,
    pub(crate) next_socket: u32,
    pub(crate) resolve_conflicts: bool,
    pub(crate) dialect: wire::Dialect,
    /// What was agreed on with the last peer, also while it is away; 0 and everything before the first one.
    pub(crate) agreed_version: u32,
    pub(crate) agreed_features: wire::Features,
    /// What both udrbd nodes can do beyond DRBD; nothing with another peer.
    pub(crate) extensions: wire::Extensions,
    pub(crate) authentication: Option<wire::Authentication>,
    pub(crate) challenge: Option<wire::AuthChallenge>,
    pub(crate) peer_integrity: Option<wire::DigestAlgorithm>,
    pub(crate) own_integrity: Option<wire::DigestAlgorithm>,
    pub(crate) deadline: Option<Time>,
    pub(crate) established_at: Time,
    pub(crate) state_sent: bool,
    /// The peer has told of all volumes it had when it connected.
    pub(crate) peer_told_all: bool,
    /// Volumes that are gone here, and that the peer still takes for connected.
    pub(crate) removed_unheard: Vec<VolumeNumber>,
    pub(crate) peer_dry_run: bool,
    pub(crate) disconnect_sent: bool,
    /// This node has found a reason to refuse the peer.
    pub(crate) refused: bool,
    /// The meta socket of a peer that was refused, and until when it stays open.
    pub(crate) refused_meta: Option<(SocketId, Time)>,
    /// The peer has closed one socket; its answer to a disconnect may still come on the other, until then.
    pub(crate) answer_until: Option<Time>,
    pub(crate) change_reply: Option<i32>,
    pub(crate) change_pending: bool,
    pub(crate) connect_count: u32,

    /// The epoch writes are put into, and how many are in it.
    pub(crate) epoch: u32,
    pub(crate) epoch_writes: u32,
    /// The epoch being sent, and how many writes of it were sent on this connection.
    pub(crate) sent_epoch: Option<u32>,
    pub(crate) sent_epoch_writes: u32,
    pub(crate) barrier_sent_at: Option<(u32, Time)>,
    pub(crate) remote_reads: Vec<Key>,
    pub(crate) scratch: Vec<Key>,

    /// Epochs of the peer's writes, the newest last.
    pub(crate) epochs: VecDeque<PeerEpoch>,
    pub(crate) epoch_count: u64,
    /// Writes of the peer that a volatile cache holds and no flush has confirmed, in their order.
    pub(crate) cached_writes: VecDeque<crate::peer::CachedWrite>,
    pub(crate) flushes: u32,
    /// The epoch they are for.
    pub(crate) flushed_epoch: u64,
    pub(crate) write_ordering: WriteOrdering,
    pub(crate) inbox: VecDeque<Inbound>,
    pub(crate) inbox_bytes: u64,

    pub(crate) last_received: Time,
    pub(crate) ping_timer: Option<Time>,
    pub(crate) ping_sent_at: Option<Time>,
    /// Answers to pings awaited: a count of pings sent, and how many were answered.
    pub(crate) pings_sent: u64,
    pub(crate) pings_answered: u64,
    pub(crate) request_timer: Option<Time>,
    pub(crate) losing: Option<Losing>,
    /// The transfer log has to be gone through as after the loss of the connection, once that is safe.
    pub(crate) lost_log_pending: bool,
    /// A connection was lost while I/O was suspended, and nothing has become of the transfer log since.
    pub(crate) log_frozen: bool,
    pub(crate) fencing_running: bool,
}

impl Connection {
    pub(crate) fn new() -> Self {
        Self {
            state: ConnectionState::StandAlone,
            options: None,
            establish: Establish::Off,
            calls: Calls::default(),
            stage: Stage::None,
            data: None,
            meta: None,
            next_socket: 1,
            resolve_conflicts: false,
            dialect: wire::Dialect::UNNEGOTIATED,
            agreed_version: 0,
            agreed_features: wire::Features::ALL,
            extensions: wire::Extensions::NONE,
            authentication: None,
            challenge: None,
            peer_integrity: None,
            own_integrity: None,
            deadline: None,
            established_at: Time(0),
            state_sent: false,
            peer_told_all: false,
            removed_unheard: Vec::new(),
            peer_dry_run: false,
            disconnect_sent: false,
            refused: false,
            refused_meta: None,
            answer_until: None,
            change_reply: None,
            change_pending: false,
            connect_count: 0,
            epoch: 0,
            epoch_writes: 0,
            sent_epoch: None,
            sent_epoch_writes: 0,
            barrier_sent_at: None,
            remote_reads: Vec::new(),
            scratch: Vec::new(),
            epochs: VecDeque::from([PeerEpoch::new(0)]),
            epoch_count: 1,
            cached_writes: VecDeque::new(),
            flushes: 0,
            flushed_epoch: 0,
            write_ordering: WriteOrdering::Flush,
            inbox: VecDeque::new(),
            inbox_bytes: 0,
            last_received: Time(0),
            ping_timer: None,
            ping_sent_at: None,
            pings_sent: 0,
            pings_answered: 0,
            request_timer: None,
            losing: None,
            lost_log_pending: false,
            log_frozen: false,
            fencing_running: false,
        }
    }

    /// Whether packets flow: the parameters have been sent, and nobody has given the connection up.
    pub(crate) fn is_established(&self) -> bool {
        self.stage == Stage::Established && self.data.is_some() && self.losing.is_none()
    }

    /// The socket of a role.
    pub(crate) const fn socket(&self, role: SocketRole) -> Option<SocketId> {
        match role {
            SocketRole::Data => self.data,
            SocketRole::Meta => self.meta,
        }
    }

    /// Whether the inbox takes more.
    pub(crate) const fn inbox_has_room(&self) -> bool {
        self.inbox_bytes < INBOX_BYTES_MAX
    }

    /// Nothing is left of the network configuration.
    pub(crate) fn forget_configuration(&mut self) {
        self.options = None;
        self.authentication = None;
        self.own_integrity = None;
        self.peer_integrity = None;
    }
}
