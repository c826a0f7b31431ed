//! Receiving from the peer: bytes become packets, bulk data go straight into the buffers they are written from.
//!
//! A packet is only looked at while [`udrbd_engine::Engine::reception`] says what may come, and a payload only taken
//! where there is a buffer for it: that is how a peer is made to wait.

use udrbd_engine::interface::{Event, SocketId, SocketLoss};
use udrbd_runtime::socket::Received;
use udrbd_runtime::{BufferHandle, Errno, Ring};
use udrbd_wire as wire;
use wire::{Command, DigestAlgorithm, DigestValue, Expected, Incoming, Packet, Reception, WireError};

use super::peer::PeerSocket;
use super::{Reactor, Tag, buffer_of};

/// Blocks of 1 MiB that payload leaves to metadata: nothing is written before its extent is in the activity log.
const RESERVE_MEBIBYTES: usize = 3;

/// A packet up to its payload.
#[derive(Debug)]
pub(super) struct Head {
    incoming: Incoming,
    packet: Packet,
    digest: Option<DigestValue>,
    /// The algorithm of `digest`, where it is about the payload.
    integrity: Option<DigestAlgorithm>,
}

/// What a socket receives.
#[derive(Debug, Default)]
pub(super) enum Body {
    /// The next packet.
    #[default]
    Head,
    /// A payload for which there was no buffer yet.
    Waiting(Head),
    /// A payload, into this buffer.
    Filling(Head, BufferHandle),
}

impl Body {
    /// Gives a buffer back that will not be filled.
    pub(super) fn release(self, ring: &mut Ring<Tag>) {
        if let Self::Filling(_, buffer) = self {
            ring.release(buffer);
        }
    }
}

/// What became of looking at what has arrived.
enum Step {
    Packet(Box<Event>),
    Again,
    Wait,
    Malformed(WireError),
}

impl PeerSocket {
    /// Takes one packet from what has arrived, or asks for more.
    fn step(&mut self, ring: &mut Ring<Tag>, reception: Option<(Expected, Reception)>) -> Step {
        if self.stream.is_receiving() {
            return Step::Wait;
        }
        match std::mem::take(&mut self.body) {
            Body::Head => match self.take_head(ring, reception) {
                Ok(Some(step)) => step,
                Ok(None) => {
                    self.stream.arm(ring);
                    Step::Wait
                }
                Err(error) => Step::Malformed(error),
            },
            Body::Waiting(head) => self.begin_payload(ring, head),
            filling @ Body::Filling(..) => {
                self.body = filling;
                self.stream.arm(ring);
                Step::Wait
            }
        }
    }

    /// Takes header, structure and digest, and small payloads too. `None` where more has to arrive.
    fn take_head(
        &mut self,
        ring: &mut Ring<Tag>,
        reception: Option<(Expected, Reception)>,
    ) -> Result<Option<Step>, WireError> {
        let data = self.stream.data(ring);
        let Some((expected, reception)) = reception else {
            // The peer waits; only its end is listened for.
            return Ok(if data.is_empty() { None } else { Some(Step::Wait) });
        };
        let Some((incoming, header_bytes)) = Incoming::decode_header(data, expected, &reception)? else {
            return Ok(None);
        };
        let inline = matches!(incoming.command, Command::Bitmap | Command::CompressedBitmap);
        let body = &data[header_bytes..];
        let here = incoming.small_bytes() + if inline { incoming.payload_bytes } else { 0 };
        let Some(body) = body.get(..here) else { return Ok(None) };
        let (structure, rest) = body.split_at(incoming.packet_bytes);
        let (digest, inline_bytes) = rest.split_at(incoming.digest_bytes);
        let packet = incoming.decode(structure, reception.dialect)?;
        let digest = if digest.is_empty() { None } else { DigestValue::from_bytes(digest) };
        let about_payload =
            matches!(incoming.command, Command::Data | Command::DataReply | Command::ResyncDataReply);
        let integrity = reception.integrity.filter(|_| about_payload);
        let bytes = inline_bytes.to_vec();
        let head = Head { incoming, packet, digest, integrity };
        self.stream.consume(header_bytes + here);
        if inline || incoming.payload_bytes == 0 {
            return Ok(Some(self.event(ring, head, None, bytes)));
        }
        Ok(Some(self.begin_payload(ring, head)))
    }

    fn begin_payload(&mut self, ring: &mut Ring<Tag>, head: Head) -> Step {
        let bytes = head.incoming.payload_bytes;
        let Some(buffer) = ring.allocate_leaving(bytes, RESERVE_MEBIBYTES) else {
            self.body = Body::Waiting(head);
            return Step::Wait;
        };
        if self.stream.receive_into(ring, buffer.slice(0, bytes as u32)) {
            return self.event(ring, head, Some(buffer), Vec::new());
        }
        self.body = Body::Filling(head, buffer);
        Step::Again
    }

    fn event(&self, ring: &Ring<Tag>, head: Head, payload: Option<BufferHandle>, bytes: Vec<u8>) -> Step {
        let Head { incoming, packet, digest, integrity } = head;
        let payload_bytes = if payload.is_some() { incoming.payload_bytes as u32 } else { 0 };
        let intact = integrity.is_none_or(|algorithm| {
            let data = payload.map_or(&[][..], |buffer| ring.bytes(buffer.slice(0, payload_bytes)));
            digest == Some(algorithm.digest(data))
        });
        Step::Packet(Box::new(Event::Packet {
            socket: self.id,
            volume: incoming.volume,
            packet,
            payload: payload.map(buffer_of),
            payload_bytes,
            bytes,
            digest: digest.filter(|_| integrity.is_none()),
            intact,
        }))
    }
}

impl Reactor {
    pub(super) fn peer_received(&mut self, id: SocketId, result: Result<u32, Errno>) {
        let Some(socket) = self.network.socket(id) else { return };
        match socket.stream.handle_receive(result) {
            Received::Data | Received::Partial => {}
            Received::Bulk(_) => {
                let Body::Filling(head, buffer) = std::mem::take(&mut socket.body) else {
                    unreachable!("bulk is only received for a payload")
                };
                if let Step::Packet(event) = socket.event(&self.ring, head, Some(buffer), Vec::new()) {
                    self.feed(*event);
                }
            }
            Received::Closed => {
                self.socket_lost(id, SocketLoss::Closed);
                return;
            }
            Received::Failed(errno) => {
                self.socket_lost(id, SocketLoss::Broken(errno as i32));
                return;
            }
        }
        self.pump(id);
    }

    /// Tells the engine every packet that has arrived on a socket and may be told.
    fn pump(&mut self, id: SocketId) {
        loop {
            let reception = self.engine.reception(id);
            let Some(socket) = self.network.socket(id) else { return };
            match socket.step(&mut self.ring, reception) {
                Step::Packet(event) => {
                    if let Event::Packet { volume, packet: Packet::Sizes(_), .. } = *event {
                        // The answer depends on the own size, which may have changed, too.
                        self.look_at_size(volume);
                    }
                    self.feed(*event);
                }
                Step::Again => {}
                Step::Wait => return,
                Step::Malformed(error) => {
                    self.socket_lost(id, SocketLoss::Malformed(error));
                    return;
                }
            }
        }
    }

    /// Looks again at sockets that had to wait: for the engine, or for a buffer.
    pub(super) fn pump_sockets(&mut self) {
        let mut index = 0;
        while let Some(socket) = self.network.socket_at(index) {
            let id = socket.id;
            if !socket.stream.is_receiving() {
                self.pump(id);
            }
            if self.network.socket_at(index).is_some_and(|socket| socket.id == id) {
                index += 1;
            }
        }
    }
}
