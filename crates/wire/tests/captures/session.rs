//! From the byte streams of a capture to packets, by the crate's own receiving side.

use udrbd_units::VolumeNumber;
use udrbd_wire::{
    Command, Dialect, DigestAlgorithm, Expected, Features, Header, Incoming, Packet, Reception, Socket,
};

use super::capture::{Connection, Moment, Stream};

/// A packet with everything that was on the wire.
#[derive(Clone, Debug)]
pub(crate) struct Received {
    pub(crate) header: Header,
    pub(crate) incoming: Incoming,
    pub(crate) packet: Packet,
    pub(crate) digest: Vec<u8>,
    pub(crate) payload: Vec<u8>,
    pub(crate) bytes: Vec<u8>,
    /// When its last byte was captured.
    pub(crate) at: Moment,
    pub(crate) dialect: Dialect,
    pub(crate) integrity: Option<DigestAlgorithm>,
}

/// One TCP connection as packets: `sent[0]` is what A sent, `sent[1]` what B sent.
#[derive(Clone, Debug)]
pub(crate) struct Session {
    pub(crate) number: usize,
    pub(crate) socket: Option<Socket>,
    pub(crate) sent: [Vec<Received>; 2],
}

/// All connections as packets.
pub(crate) fn sessions(connections: &[Connection], authentication: DigestAlgorithm) -> Vec<Session> {
    let dialect = agreed(connections);
    let session = |connection: &Connection| {
        let initial = connection.streams.iter().find_map(|stream| first_command(&stream.bytes()));
        let socket = initial.map(Command::socket);
        let sent = connection
            .streams
            .each_ref()
            .map(|stream| receive(stream, socket.unwrap_or(Socket::Data), dialect, authentication));
        Session { number: connection.number, socket, sent }
    };
    connections.iter().map(session).collect()
}

/// The packet a stream begins with, if it is one from before the agreement.
fn first_command(bytes: &[u8]) -> Option<Command> {
    let header = Header::decode(bytes, Dialect::UNNEGOTIATED).ok().flatten()?;
    Command::from_code(header.code).filter(|command| command.precedes_agreement())
}

/// What the nodes of a capture agree on: a proxy may have lowered one of the two announcements.
pub(crate) fn agreed(connections: &[Connection]) -> Dialect {
    let mut dialect = Dialect::NEWEST;
    for stream in connections.iter().flat_map(|connection| &connection.streams) {
        let bytes = stream.bytes();
        let Some(at) = bytes.windows(8).position(|w| w == [0x83, 0x74, 2, 0x67, 0xff, 0xfe, 0, 72]) else {
            continue;
        };
        if bytes.len() < at + 20 {
            continue;
        }
        let field =
            |offset: usize| u32::from_be_bytes(bytes[at + offset..at + offset + 4].try_into().unwrap());
        dialect.features = dialect.features.intersection(Features(field(12)));
        dialect.version = dialect.version.min(field(16));
    }
    dialect
}

fn receive(
    stream: &Stream,
    socket: Socket,
    dialect: Dialect,
    authentication: DigestAlgorithm,
) -> Vec<Received> {
    let mut packets = Vec::new();
    let all = stream.bytes();
    let mut rest = &all[..];
    // Who accepts the meta socket says nothing on it before the agreement.
    let begins = if first_command(rest).is_some() { Dialect::UNNEGOTIATED } else { dialect };
    let mut reception = Reception { dialect: begins, integrity: None };
    while !rest.is_empty() {
        let Some(header) = Header::decode(rest, reception.dialect).unwrap() else { break };
        let expected = match Command::from_code(header.code) {
            Some(Command::InitialData | Command::InitialMeta) => Expected::Initial,
            Some(Command::ConnectionFeatures) => Expected::Features,
            Some(Command::AuthChallenge) => Expected::AuthChallenge,
            Some(Command::AuthResponse) => Expected::AuthResponse(authentication),
            _ => Expected::Established(socket),
        };
        let (incoming, header_bytes) =
            Incoming::decode_header(rest, expected, &reception).unwrap().expect("whole header");
        let total = header_bytes + incoming.small_bytes() + incoming.payload_bytes;
        // A connection may have died within a packet; that none is missing the listing tells.
        let Some(bytes) = rest.get(..total) else { break };
        let (structure, tail) = bytes[header_bytes..].split_at(incoming.packet_bytes);
        let (digest, payload) = tail.split_at(incoming.digest_bytes);
        let packet = incoming.decode(structure, reception.dialect).unwrap();
        packets.push(Received {
            header,
            incoming,
            digest: digest.to_vec(),
            payload: payload.to_vec(),
            bytes: bytes.to_vec(),
            at: stream.arrival(all.len() - rest.len() + total),
            dialect: reception.dialect,
            integrity: reception.integrity,
            packet: packet.clone(),
        });
        match packet {
            Packet::InitialMeta | Packet::ConnectionFeatures(_) => reception.dialect = dialect,
            Packet::Protocol(parameters) | Packet::ProtocolUpdate(parameters) => {
                let name = parameters.integrity.as_str().unwrap();
                reception.integrity = (!name.is_empty()).then(|| name.parse().unwrap());
            }
            _ => {}
        }
        rest = &rest[total..];
    }
    packets
}

impl Received {
    /// The packet as the crate sends it.
    pub(crate) fn encoded(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let volume: VolumeNumber = self.incoming.volume;
        self.packet.encode(&mut out, self.dialect, volume, &self.digest, self.payload.len() as u32);
        out.extend_from_slice(&self.payload);
        out
    }
}
