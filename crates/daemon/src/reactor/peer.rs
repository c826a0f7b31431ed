//! The sockets to the peer: calling, being called, sending, closing. Receiving is in `receive`.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::time::Duration;

use udrbd_engine::interface::{Event, Payload, SocketId, SocketLoss, Time, Token};
use udrbd_runtime::socket::{
    Connecting, Listener, RECEIVE_BUFFER_BYTES, SocketOptions, Stream, StreamTokens,
};
use udrbd_runtime::{Errno, Ring};
use udrbd_units::VolumeNumber;
use udrbd_wire as wire;

use super::receive::Body;
use super::{Reactor, Tag, handle_of};
use crate::messages::Endpoint;

/// How long what was queued before a close may take to leave.
const LINGER: Duration = Duration::from_secs(5);
/// When to accept again where there was no file descriptor or memory left.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// A socket to the peer.
pub(super) struct PeerSocket {
    pub(super) id: SocketId,
    pub(super) stream: Stream<Tag>,
    pub(super) body: Body,
    /// Who wants to know when the stream has sent so many bytes.
    sent: VecDeque<(u64, Token)>,
}

/// What comes with a packet.
pub(super) struct Tail {
    pub(super) payload: Payload,
    pub(super) integrity: Option<wire::DigestAlgorithm>,
    pub(super) digest: Option<wire::DigestValue>,
    pub(super) sent: Option<Token>,
}

impl PeerSocket {
    /// Queues a packet behind everything queued before.
    pub(super) fn queue(
        &mut self,
        ring: &mut Ring<Tag>,
        dialect: wire::Dialect,
        volume: VolumeNumber,
        packet: &wire::Packet,
        tail: Tail,
    ) {
        let Tail { payload, integrity, digest, sent } = tail;
        let (slice, bytes) = match payload {
            Payload::None => (None, Vec::new()),
            Payload::Buffer { buffer, bytes } => (Some(handle_of(buffer).slice(0, bytes)), Vec::new()),
            Payload::Bytes(bytes) => (None, bytes),
        };
        let digest = integrity
            .map(|algorithm| algorithm.digest(slice.map_or(&bytes[..], |slice| ring.bytes(slice))))
            .or(digest);
        let payload_bytes = slice.map_or(bytes.len() as u32, |slice| slice.length);
        self.stream.queue_header(|header| {
            let digest = digest.as_ref().map_or(&[][..], wire::DigestValue::as_bytes);
            packet.encode(header, dialect, volume, digest, payload_bytes);
        });
        // The engine keeps the data of a write until the peer has answered, but with protocol A, where it asks when they
        // were sent.
        let held = matches!(packet, wire::Packet::Data(_)) && sent.is_none();
        match slice {
            Some(slice) if held => self.stream.queue_held_payload(ring, slice),
            Some(slice) => self.stream.queue_payload(ring, slice),
            None if !bytes.is_empty() => self.stream.queue_bytes(&bytes),
            None => {}
        }
        if let Some(token) = sent {
            self.sent.push_back((self.stream.queue_end(), token));
        }
    }

    /// The next token whose bytes have all left.
    fn next_sent(&mut self) -> Option<Token> {
        let sent = self.stream.bytes_sent();
        self.sent
            .front()
            .is_some_and(|(end, _)| *end <= sent)
            .then(|| self.sent.pop_front())?
            .map(|(_, token)| token)
    }
}

/// The sockets of a resource.
#[derive(Default)]
pub(super) struct Network {
    endpoint: Option<Endpoint>,
    listener: Option<Listener>,
    listen_again: Option<Time>,
    calling: Vec<(SocketId, Connecting, Time)>,
    sockets: Vec<PeerSocket>,
    /// Closed, but not all is sent.
    lingering: Vec<(PeerSocket, Time)>,
    accepted: u32,
}

impl Network {
    pub(super) fn set_endpoint(&mut self, endpoint: Endpoint) {
        self.endpoint = Some(endpoint);
    }

    pub(super) fn set_socket_options(&mut self, options: SocketOptions) {
        if let Some(endpoint) = &mut self.endpoint {
            endpoint.options = options;
        }
    }

    pub(super) fn socket(&mut self, id: SocketId) -> Option<&mut PeerSocket> {
        self.sockets.iter_mut().find(|socket| socket.id == id)
    }

    pub(super) fn socket_at(&self, index: usize) -> Option<&PeerSocket> {
        self.sockets.get(index)
    }

    pub(super) fn next_timeout(&self) -> Option<Time> {
        let calling = self.calling.iter().map(|(_, _, until)| *until);
        let lingering = self.lingering.iter().map(|(_, until)| *until);
        calling.chain(lingering).chain(self.listen_again).min()
    }

    /// Whether a payload waits for a buffer.
    pub(super) fn is_waiting(&self) -> bool {
        self.sockets.iter().any(|socket| matches!(socket.body, Body::Waiting(_)))
    }

    /// Whether a socket has no room for what is to be sent.
    pub(super) fn is_congested(&self) -> bool {
        self.sockets.iter().any(|socket| socket.stream.queued_bytes() > 0)
    }

    pub(super) fn stop_listening(&mut self, ring: &mut Ring<Tag>) {
        self.listen_again = None;
        if let Some(listener) = self.listener.take() {
            listener.close(ring);
        }
    }

    /// Forgets a socket. False where it is not known.
    pub(super) fn drop_socket(&mut self, ring: &mut Ring<Tag>, id: SocketId) -> bool {
        let Some(index) = self.sockets.iter().position(|socket| socket.id == id) else { return false };
        let socket = self.sockets.swap_remove(index);
        socket.body.release(ring);
        socket.stream.close(ring);
        true
    }

    pub(super) fn close(&mut self, ring: &mut Ring<Tag>, id: SocketId, abort: bool, now: Time) {
        if let Some(index) = self.calling.iter().position(|(calling, _, _)| *calling == id) {
            self.calling.swap_remove(index).1.abandon(ring);
            return;
        }
        let Some(index) = self.sockets.iter().position(|socket| socket.id == id) else { return };
        let mut socket = self.sockets.swap_remove(index);
        std::mem::take(&mut socket.body).release(ring);
        if abort {
            socket.stream.abort(ring);
            return;
        }
        socket.stream.stop_lending(ring);
        match socket.stream.flush(ring) {
            Ok(()) if socket.stream.queued_bytes() > 0 => {
                self.lingering.push((socket, now.after(LINGER)));
            }
            _ => socket.stream.close(ring),
        }
    }

    fn lingering_writable(&mut self, ring: &mut Ring<Tag>, id: SocketId, result: Result<u32, Errno>) {
        let Some(index) = self.lingering.iter().position(|(socket, _)| socket.id == id) else { return };
        let (socket, _) = &mut self.lingering[index];
        let sent = socket.stream.handle_writable(ring, result);
        if sent.is_err() || socket.stream.queued_bytes() == 0 {
            self.lingering.swap_remove(index).0.stream.close(ring);
        }
    }
}

impl Reactor {
    pub(super) fn listen(&mut self) {
        if self.network.listener.is_some() {
            return;
        }
        let Some(endpoint) = self.network.endpoint else {
            self.consequences.push_back(Event::ListenFailed(Errno::EADDRNOTAVAIL as i32));
            return;
        };
        match Listener::bind(endpoint.local, endpoint.options) {
            Ok(mut listener) => {
                listener.arm(&mut self.ring, Tag::Accept);
                self.network.listener = Some(listener);
            }
            Err(errno) => self.consequences.push_back(Event::ListenFailed(errno as i32)),
        }
    }

    pub(super) fn accept(&mut self) {
        let Some(listener) = &mut self.network.listener else { return };
        match listener.accept() {
            Ok(Some((socket, _))) => {
                listener.arm(&mut self.ring, Tag::Accept);
                let id = SocketId(SocketId::FIRST_ACCEPTED.0 + self.network.accepted);
                self.network.accepted += 1;
                if self.add_socket(id, socket).is_ok() {
                    self.feed(Event::Accepted(id));
                }
            }
            Ok(None) => listener.arm(&mut self.ring, Tag::Accept),
            Err(_) => self.network.listen_again = Some(self.now.after(ACCEPT_PAUSE)),
        }
    }

    fn add_socket(&mut self, id: SocketId, socket: OwnedFd) -> Result<(), Errno> {
        let tokens = StreamTokens { receive: Tag::PeerReceive(id), writable: Tag::PeerWritable(id) };
        let stream = Stream::new(&mut self.ring, socket, RECEIVE_BUFFER_BYTES, tokens)?;
        let mut stream = stream.ok_or(Errno::ENOMEM)?;
        // With buffers of a chosen size a sender may have room for one packet only, and wait.
        if self.network.endpoint.is_some_and(|endpoint| endpoint.options == SocketOptions::default()) {
            stream.delay_acknowledgements();
        }
        stream.lend_held_payload();
        self.network.sockets.push(PeerSocket { id, stream, body: Body::Head, sent: VecDeque::new() });
        Ok(())
    }

    pub(super) fn call(&mut self, id: SocketId, timeout: Duration) {
        let started = match self.network.endpoint {
            Some(Endpoint { local, remote, options }) => {
                Connecting::start(&mut self.ring, local, remote, options, Tag::Connected(id))
            }
            None => Err(Errno::EDESTADDRREQ),
        };
        match started {
            Ok(connecting) => self.network.calling.push((id, connecting, self.now.after(timeout))),
            Err(errno) => {
                let loss = SocketLoss::ConnectFailed(errno as i32);
                self.consequences.push_back(Event::SocketDown { socket: id, loss });
            }
        }
    }

    pub(super) fn call_answered(&mut self, id: SocketId, result: Result<u32, Errno>) {
        let Some(index) = self.network.calling.iter().position(|(calling, _, _)| *calling == id) else {
            return;
        };
        let (_, connecting, _) = self.network.calling.swap_remove(index);
        let connected = connecting.finish(result).and_then(|socket| self.add_socket(id, socket));
        match connected {
            Ok(()) => self.feed(Event::Connected(id)),
            Err(errno) => {
                let loss = SocketLoss::ConnectFailed(errno as i32);
                self.feed(Event::SocketDown { socket: id, loss });
            }
        }
    }

    /// What became too late.
    pub(super) fn network_timeouts(&mut self) {
        let now = self.now;
        while let Some(index) = self.network.calling.iter().position(|(_, _, until)| *until <= now) {
            let (id, connecting, _) = self.network.calling.swap_remove(index);
            connecting.abandon(&mut self.ring);
            let loss = SocketLoss::ConnectFailed(Errno::ETIMEDOUT as i32);
            self.feed(Event::SocketDown { socket: id, loss });
        }
        while let Some(index) = self.network.lingering.iter().position(|(_, until)| *until <= now) {
            self.network.lingering.swap_remove(index).0.stream.abort(&mut self.ring);
        }
        if self.network.listen_again.is_some_and(|time| time <= now) {
            self.network.listen_again = None;
            self.accept();
        }
    }

    pub(super) fn peer_writable(&mut self, id: SocketId, result: Result<u32, Errno>) {
        let Some(socket) = self.network.socket(id) else {
            self.network.lingering_writable(&mut self.ring, id, result);
            return;
        };
        match socket.stream.handle_writable(&mut self.ring, result) {
            Ok(()) => {
                self.tell_sent(id);
            }
            Err(errno) => self.socket_lost(id, SocketLoss::Broken(errno as i32)),
        }
    }

    /// Returns whether somebody was told.
    fn tell_sent(&mut self, id: SocketId) -> bool {
        let mut told = false;
        while let Some(token) = self.network.socket(id).and_then(PeerSocket::next_sent) {
            self.feed(Event::Sent(token));
            told = true;
        }
        told
    }

    /// Whether answers are queued for the peer.
    pub(super) fn answers_are_queued(&self) -> bool {
        self.network.sockets.iter().any(|socket| socket.stream.has_headers_only())
    }

    /// Sends what is queued, with one call per socket; with `payload_only`, on sockets that have payload to send. Returns
    /// whether the engine was told of something.
    pub(super) fn flush_sockets(&mut self, payload_only: bool) -> bool {
        let mut told = false;
        let mut index = 0;
        while let Some(socket) = self.network.sockets.get_mut(index) {
            let id = socket.id;
            if payload_only && socket.stream.has_headers_only() {
                index += 1;
                continue;
            }
            match socket.stream.flush(&mut self.ring) {
                Ok(()) => {
                    told |= self.tell_sent(id);
                    index += 1;
                }
                Err(errno) => {
                    self.socket_lost(id, SocketLoss::Broken(errno as i32));
                    told = true;
                }
            }
        }
        told
    }
}
