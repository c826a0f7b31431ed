//! Two nodes and the TCP connections between them.
//!
//! Each connection is two independent directions, in order, delayed at will; nothing keeps the order between two
//! connections. A direction of the whole link may be cut: what is sent meanwhile arrives once it heals, as TCP would
//! have it. A connection can be closed, half-closed by a FIN, or reset.

use std::collections::VecDeque;
use std::rc::Rc;

use udrbd_engine::interface::SocketId;

use crate::disk::Data;

/// One of the two nodes.
pub(crate) type NodeId = usize;

/// What follows header, structure and digest.
#[derive(Clone, Debug)]
pub(crate) enum Tail {
    /// Nothing.
    None,
    /// Data of so many bytes.
    Data(Rc<Data>, u32),
    /// A piece of bitmap.
    Bytes(Vec<u8>),
}

/// A packet on its way.
#[derive(Clone, Debug)]
pub(crate) struct Frame {
    /// It arrives then at the earliest.
    pub(crate) at: u64,
    /// Header, structure and digest, as encoded.
    pub(crate) bytes: Vec<u8>,
    /// What follows.
    pub(crate) tail: Tail,
}

/// How a direction ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// After everything sent (FIN).
    Finished,
    /// At once (RST).
    Reset,
}

/// One direction of a connection.
#[derive(Clone, Debug, Default)]
pub(crate) struct Direction {
    /// Sent, not received.
    pub(crate) frames: VecDeque<Frame>,
    /// The end, and when it arrives.
    pub(crate) ending: Option<(Ending, u64)>,
    /// No frame arrives before the one sent before it.
    pub(crate) last_at: u64,
    /// The receiver does not read although something has arrived.
    pub(crate) blocked: bool,
}

/// One end of a connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct End {
    /// Whose.
    pub(crate) node: NodeId,
    /// Under which name; `None` until it is accepted.
    pub(crate) socket: Option<SocketId>,
    /// The node knows it.
    pub(crate) open: bool,
    /// Nothing gets to it any more, though the node knows nothing of that.
    pub(crate) deaf: bool,
}

/// A TCP connection.
#[derive(Clone, Debug)]
pub(crate) struct Connection {
    /// The caller's and the called one's end.
    pub(crate) ends: [End; 2],
    /// From the caller, and to it.
    pub(crate) directions: [Direction; 2],
}

/// Every connection there ever was in a run, and the link.
#[derive(Debug)]
pub(crate) struct Network {
    /// By number.
    pub(crate) connections: Vec<Connection>,
    /// Whether what this node sends gets lost.
    pub(crate) cut: [bool; 2],
    /// Least and most time a packet takes, nanoseconds.
    pub(crate) latency: (u64, u64),
}

impl Network {
    /// A link without connections.
    pub(crate) const fn new(latency: (u64, u64)) -> Self {
        Self { connections: Vec::new(), cut: [false; 2], latency }
    }

    /// Whether packets pass both ways.
    pub(crate) const fn is_whole(&self) -> bool {
        !self.cut[0] && !self.cut[1]
    }

    /// The caller's attempt arrives.
    pub(crate) fn connect(&mut self, caller: NodeId, socket: SocketId) -> usize {
        let own = End { node: caller, socket: Some(socket), open: true, deaf: false };
        let other = End { node: 1 - caller, socket: None, open: true, deaf: false };
        self.connections.push(Connection { ends: [own, other], directions: Default::default() });
        self.connections.len() - 1
    }

    /// Which connection, and which end of it, a node calls by this name.
    pub(crate) fn find(&self, node: NodeId, socket: SocketId) -> Option<(usize, usize)> {
        self.connections.iter().enumerate().rev().find_map(|(index, connection)| {
            let end = connection
                .ends
                .iter()
                .position(|end| end.node == node && end.socket == Some(socket) && end.open)?;
            Some((index, end))
        })
    }

    /// The open ends of a node: connection, end.
    pub(crate) fn ends_of(&self, node: NodeId) -> Vec<(usize, usize)> {
        let mut found = Vec::new();
        for (index, connection) in self.connections.iter().enumerate() {
            for (end, state) in connection.ends.iter().enumerate() {
                if state.node == node && state.open {
                    found.push((index, end));
                }
            }
        }
        found
    }

    /// Whether something a node has sent may still arrive.
    pub(crate) fn carries_from(&self, node: NodeId) -> bool {
        self.connections.iter().any(|connection| {
            (0..2).any(|end| {
                let [own, other] = [connection.ends[end], connection.ends[1 - end]];
                own.node == node && other.open && !connection.directions[end].frames.is_empty()
            })
        })
    }

    /// Sends something. Returns when it arrives.
    pub(crate) fn send(
        &mut self,
        connection: usize,
        end: usize,
        now: u64,
        delay: u64,
        bytes: Vec<u8>,
        tail: Tail,
    ) -> u64 {
        let direction = &mut self.connections[connection].directions[end];
        let at = direction.last_at.max(now + delay);
        direction.last_at = at;
        direction.frames.push_back(Frame { at, bytes, tail });
        at
    }

    /// An end is closed. Of what is on its way `kept` packets still arrive if it is reset. Returns when the other end
    /// hears of it.
    pub(crate) fn close(
        &mut self,
        connection: usize,
        end: usize,
        now: u64,
        delay: u64,
        ending: Ending,
        kept: usize,
    ) -> u64 {
        let connection = &mut self.connections[connection];
        connection.ends[end].open = false;
        connection.directions[1 - end].frames.clear();
        let direction = &mut connection.directions[end];
        if ending == Ending::Reset {
            direction.frames.truncate(kept);
        }
        let last = direction.frames.back().map_or(0, |frame| frame.at);
        let at = last.max(now + delay);
        direction.ending = Some((ending, at));
        direction.last_at = at;
        at
    }
}
