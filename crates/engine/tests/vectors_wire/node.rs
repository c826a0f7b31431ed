//! An engine in the place of a captured node: its disk, and what it wants of the network.

use std::collections::{HashMap, VecDeque};

use udrbd_engine::Engine;
use udrbd_engine::interface::{
    Action, Buffer, ClientError, ClientRequest, Command, CommandId, CommandResult, Event, IoError, Operation,
    Payload, Report, RequestId, ResourceOptions, SocketId, Time,
};
use udrbd_units::{Sector, SectorRange, VolumeNumber};
use udrbd_wire::{DigestValue, Packet};

/// A packet the engine sent.
#[derive(Debug)]
pub(crate) struct Sent {
    pub(crate) volume: VolumeNumber,
    pub(crate) packet: Packet,
    pub(crate) payload: Vec<u8>,
    pub(crate) digest: Vec<u8>,
}

/// What the engine wants of the network.
#[derive(Debug)]
pub(crate) enum Wish {
    Listen(bool),
    Connect(SocketId),
    Close(SocketId),
    Send(SocketId, Sent),
}

/// An engine and what is under it.
pub(crate) struct Node {
    pub(crate) engine: Engine,
    pub(crate) now: Time,
    disks: HashMap<(VolumeNumber, u64), [u8; 512]>,
    /// Operations on these sectors fail.
    pub(crate) failing: Option<SectorRange>,
    /// What reads of sectors with unknown content digest to.
    pub(crate) digests: HashMap<u64, DigestValue>,
    pub(crate) events: VecDeque<Event>,
    pub(crate) wishes: VecDeque<Wish>,
    pub(crate) log: Vec<String>,
    pub(crate) replies: HashMap<u64, CommandResult>,
    pub(crate) completions: HashMap<u64, Result<(), ClientError>>,
    buffers: HashMap<u32, Vec<u8>>,
    next: u64,
}

impl Node {
    pub(crate) fn new(seed: u8) -> Self {
        Self {
            engine: Engine::new(ResourceOptions::default(), [seed; 32]),
            now: Time(0),
            disks: HashMap::new(),
            failing: None,
            digests: HashMap::new(),
            events: VecDeque::new(),
            wishes: VecDeque::new(),
            log: Vec::new(),
            replies: HashMap::new(),
            completions: HashMap::new(),
            buffers: HashMap::new(),
            next: 1,
        }
    }

    pub(crate) fn store(&mut self, volume: VolumeNumber, sector: u64, bytes: &[u8]) {
        for (offset, chunk) in bytes.chunks(512).enumerate() {
            let mut whole = [0; 512];
            whole[..chunk.len()].copy_from_slice(chunk);
            self.disks.insert((volume, sector + offset as u64), whole);
        }
    }

    pub(crate) fn load(&self, volume: VolumeNumber, sector: u64, bytes: usize) -> Vec<u8> {
        let sectors = sector..sector + bytes.div_ceil(512) as u64;
        sectors.flat_map(|sector| self.disks.get(&(volume, sector)).copied().unwrap_or([0; 512])).collect()
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    pub(crate) fn buffer(&mut self, bytes: Vec<u8>) -> Buffer {
        let number = self.number() as u32;
        self.buffers.insert(number, bytes);
        Buffer(number)
    }

    /// Gives a command; the number its reply will have.
    pub(crate) fn command(&mut self, command: Command) -> u64 {
        let id = self.number();
        self.events.push_back(Event::Command { id: CommandId(id), command });
        id
    }

    /// Starts a request; the number of its completion.
    pub(crate) fn submit(
        &mut self,
        volume: VolumeNumber,
        operation: Operation,
        at: SectorRange,
        data: Vec<u8>,
    ) -> u64 {
        let id = self.number();
        let has_buffer = matches!(operation, Operation::Write { .. } | Operation::Read);
        let buffer = has_buffer.then(|| self.buffer(data));
        let request = ClientRequest { id: RequestId(id), volume, operation, range: at, buffer };
        self.events.push_back(Event::Request(request));
        id
    }

    /// Lets the engine see the next event. Returns whether there was one.
    pub(crate) fn step(&mut self) -> bool {
        let Some(event) = self.events.pop_front() else { return false };
        let mut actions = Vec::new();
        self.engine.handle(self.now, event, &mut actions);
        self.engine.finish_turn(self.now, &mut actions);
        for action in actions {
            self.act(action);
        }
        true
    }

    fn outcome(&self, range: SectorRange) -> Result<(), IoError> {
        match self.failing {
            Some(failing) if failing.overlaps(range) => Err(IoError { errno: 5 }),
            _ => Ok(()),
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Read { token, volume, range, buffer, digest, look_for_zeroes, .. } => {
                let bytes = self.load(volume, range.start.0, range.bytes as usize);
                let zeroes = look_for_zeroes && bytes.iter().all(|byte| *byte == 0);
                let known = self.digests.get(&range.start.0).copied();
                let digest = digest.map(|algorithm| known.unwrap_or_else(|| algorithm.digest(&bytes)));
                let buffer = match buffer {
                    Some(buffer) => {
                        self.buffers.insert(buffer.0, bytes);
                        buffer
                    }
                    None => self.buffer(bytes),
                };
                let result = self.outcome(range);
                let event = Event::ReadDone { token, buffer: Some(buffer), digest, zeroes, result };
                self.events.push_back(event);
            }
            Action::Write { token, volume, range, buffer, .. } => {
                let result = self.outcome(range);
                if result.is_ok() {
                    let bytes = self.buffers[&buffer.0].clone();
                    assert_eq!(bytes.len(), range.bytes as usize);
                    self.store(volume, range.start.0, &bytes);
                }
                self.events.push_back(Event::WriteDone { token, result });
            }
            Action::Flush { token, .. } => {
                self.events.push_back(Event::WriteDone { token, result: Ok(()) });
            }
            Action::Discard { token, volume, range, .. } => {
                let result = self.outcome(range);
                self.store(volume, range.start.0, &vec![0; range.bytes as usize]);
                self.events.push_back(Event::WriteDone { token, result });
            }
            Action::ReadMetadata { token, volume, position, bytes, .. } => {
                let bytes = self.load(volume, position.0, bytes as usize);
                self.events.push_back(Event::MetadataRead { token, result: Ok(bytes) });
            }
            Action::WriteMetadata { token, volume, position, block, .. } => {
                self.store(volume, position.0, &block[..]);
                self.events.push_back(Event::MetadataWritten { token, block, result: Ok(()) });
            }
            Action::Listen => self.wishes.push_back(Wish::Listen(true)),
            Action::StopListening => self.wishes.push_back(Wish::Listen(false)),
            Action::Connect { socket, .. } => self.wishes.push_back(Wish::Connect(socket)),
            Action::Close { socket, .. } => self.wishes.push_back(Wish::Close(socket)),
            Action::Send { socket, volume, packet, payload, integrity, digest, sent, .. } => {
                let payload = self.payload(payload);
                let in_front = integrity.map(|algorithm| algorithm.digest(&payload));
                let digest = in_front.or(digest);
                let digest =
                    digest.as_ref().map_or(Vec::new(), |digest| DigestValue::as_bytes(digest).to_vec());
                self.wishes.push_back(Wish::Send(socket, Sent { volume, packet, payload, digest }));
                self.events.extend(sent.map(Event::Sent));
            }
            Action::Complete { request, result, .. } => {
                self.completions.insert(request.0, result);
            }
            Action::Reply { command, result } => {
                self.replies.insert(command.0, result);
            }
            Action::RunHandler { handler, .. } => {
                self.events.push_back(Event::HandlerExit { handler, status: 0 });
            }
            Action::Report(Report::Log { text, .. }) => self.log.push(text),
            Action::BeginUndo { .. } | Action::KeepOld { .. } => unreachable!("DRBD has no undo"),
            Action::Report(_) | Action::Release(_) | Action::CloseDisk { .. } | Action::Device { .. } => {}
        }
    }

    fn payload(&self, payload: Payload) -> Vec<u8> {
        match payload {
            Payload::None => Vec::new(),
            Payload::Bytes(bytes) => bytes,
            Payload::Buffer { buffer, bytes } => self.buffers[&buffer.0][..bytes as usize].to_vec(),
        }
    }
}

/// A range of sectors from bytes, as tools name it.
pub(crate) const fn bytes_range(offset: u64, bytes: u32) -> SectorRange {
    SectorRange::new(Sector(offset / 512), bytes)
}
