//! From a capture file to the two byte streams of each TCP connection.

use std::collections::BTreeMap;
use std::path::Path;

/// The ports the two nodes of every capture listen on.
const PORT_A: u16 = 7788;
const PORT_B: u16 = 7789;
const FIN: u8 = 1;
const RST: u8 = 4;

/// When something was captured: microseconds since the first frame, and the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Moment {
    pub(crate) micros: i64,
    pub(crate) frame: usize,
}

/// One direction of a TCP connection.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stream {
    start: Option<u32>,
    segments: BTreeMap<u32, (Vec<u8>, Moment)>,
    /// The first FIN or RST.
    pub(crate) closed: Option<Moment>,
}

impl Stream {
    fn begin(&mut self, sequence: u32) {
        self.start.get_or_insert(sequence.wrapping_add(1));
    }

    fn add(&mut self, sequence: u32, data: &[u8], at: Moment) {
        let start = self.start.expect("data before SYN");
        let segment = self.segments.entry(sequence.wrapping_sub(start)).or_insert((Vec::new(), at));
        if segment.0.len() < data.len() {
            *segment = (data.to_vec(), at);
        }
    }

    /// When the byte before `offset` arrived.
    pub(crate) fn arrival(&self, offset: usize) -> Moment {
        let (_, (_, at)) = self.segments.range(..offset as u32).next_back().expect("an offset of the stream");
        *at
    }

    /// The bytes in order, up to the first gap.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (offset, (data, _)) in &self.segments {
            let known = bytes.len().checked_sub(*offset as usize).expect("gap in the capture");
            bytes.extend(data.iter().skip(known));
        }
        bytes
    }
}

/// A TCP connection in the order of appearance. `streams[0]` is what A sent, `streams[1]` what B sent.
#[derive(Clone, Debug)]
pub(crate) struct Connection {
    pub(crate) number: usize,
    pub(crate) streams: [Stream; 2],
    /// Who connected: 0 is A.
    pub(crate) client_node: usize,
    /// When the first SYN was seen.
    pub(crate) opened: Moment,
    client: (u16, u16),
    first_sequence: u32,
}

/// Every TCP connection of a capture.
pub(crate) fn read(path: &Path) -> Vec<Connection> {
    let file = std::fs::read(path).unwrap();
    assert_eq!(file[..4], [0xd4, 0xc3, 0xb2, 0xa1], "classic pcap, little endian");
    assert_eq!(file[20], 1, "Ethernet");
    let mut connections = Vec::new();
    let mut rest = &file[24..];
    let mut first = None;
    let mut frames = 0;
    while !rest.is_empty() {
        let word = |at: usize| u32::from_le_bytes(rest[at..at + 4].try_into().unwrap());
        let micros = i64::from(word(0)) * 1_000_000 + i64::from(word(4));
        let at = Moment { micros: micros - *first.get_or_insert(micros), frame: frames };
        let length = word(8) as usize;
        frame(&mut connections, &rest[16..16 + length], at);
        rest = &rest[16 + length..];
        frames += 1;
    }
    connections
}

fn frame(connections: &mut Vec<Connection>, frame: &[u8], at: Moment) {
    assert_eq!(frame[12..14], [8, 0], "IPv4");
    let ip = &frame[14..];
    let total = usize::from(u16::from_be_bytes([ip[2], ip[3]]));
    // A segment merged by the kernel may say 0.
    let ip = if total == 0 { ip } else { &ip[..total] };
    assert_eq!(ip[9], 6, "TCP");
    let tcp = &ip[usize::from(ip[0] & 15) * 4..];
    let ports = (u16::from_be_bytes([tcp[0], tcp[1]]), u16::from_be_bytes([tcp[2], tcp[3]]));
    let sequence = u32::from_be_bytes(tcp[4..8].try_into().unwrap());
    let (syn, ack) = (tcp[13] & 2 != 0, tcp[13] & 16 != 0);
    let data = &tcp[usize::from(tcp[12] >> 4) * 4..];
    let is_new = |c: &Connection| c.client != ports || c.first_sequence != sequence;
    if syn && !ack && connections.iter().all(is_new) {
        connections.push(Connection {
            number: connections.len() + 1,
            streams: Default::default(),
            client_node: usize::from(ports.1 == PORT_A),
            opened: at,
            client: ports,
            first_sequence: sequence,
        });
    }
    let swapped = (ports.1, ports.0);
    let connection = connections.iter_mut().rev().find(|c| c.client == ports || c.client == swapped);
    let connection = connection.expect("segment of no connection");
    let from_client = connection.client == ports;
    // The client of the one that listens on B's port is A.
    let from_a = match connection.client.1 {
        PORT_B => from_client,
        PORT_A => !from_client,
        other => panic!("port {other}"),
    };
    let stream = &mut connection.streams[usize::from(!from_a)];
    if syn {
        stream.begin(sequence);
    } else if !data.is_empty() {
        stream.add(sequence, data, at);
    }
    if tcp[13] & (FIN | RST) != 0 {
        stream.closed.get_or_insert(at);
    }
}

impl Connection {
    /// Whether the listening side answered with a reset.
    pub(crate) fn is_refused(&self) -> bool {
        self.streams[1 - self.client_node].start.is_none()
    }
}
