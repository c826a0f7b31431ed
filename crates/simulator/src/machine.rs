//! What a runtime does: carries out the actions of an engine on the simulated disks and sockets.

use std::rc::Rc;

use udrbd_engine::interface::{Action, Buffer, Event, IoError, Payload, Report, SocketId, SocketLoss};
use udrbd_metadata::{Flags, Layout, Placement, Striping, Superblock};
use udrbd_units::{Sector, SectorRange, VolumeNumber};
use udrbd_wire as wire;
use udrbd_wire::{DigestValue, Incoming};

use crate::disk::{Change, Data, Disk, Sparse, Write};
use crate::network::{Ending, Frame, NodeId, Tail};
use crate::node::{InFlight, VolumeIndex};
use crate::plan::SECOND;
use crate::world::{Due, World};

/// The number of a volume.
pub(crate) const fn number(volume: VolumeIndex) -> VolumeNumber {
    VolumeNumber(volume as u16)
}

/// The volume of a number.
fn index(volume: VolumeNumber) -> VolumeIndex {
    usize::from(volume.0)
}

const CONNECTION_REFUSED: i32 = 111;
const TIMED_OUT: i32 = 110;
const CONNECTION_RESET: i32 = 104;

/// What an operation of a disk takes at most, in nanoseconds: after a minute of silence `down` gives a disk up and closes it with
/// what is in flight. The engine's own tests have such disks.
const SLOWEST_OPERATION: u64 = 50 * SECOND;

impl World {
    /// Does what an engine wants done.
    pub(crate) fn act(&mut self, node: NodeId, action: Action) {
        if self.is_tracing() {
            self.trace_action(node, &action);
        }
        match action {
            Action::Read { token, volume, range, buffer, digest, look_for_zeroes } => {
                let now = self.random.one_in(2);
                let disk = &self.nodes[node].volumes[index(volume)].disk;
                let found = now.then(|| disk.data.read(range.start.0, range.sectors()));
                self.submit(
                    node,
                    volume,
                    InFlight::Read { token, range, buffer, digest, look_for_zeroes, found },
                );
            }
            Action::Write { token, volume, range, buffer, fua, preflush } => {
                let Some(data) = self.data_of(node, buffer, range) else { return };
                let change = Change::Data { start: range.start.0, data };
                let preflush = preflush.then(|| self.completed_changes(node, volume));
                self.submit(node, volume, InFlight::Write { token, write: Write { change, preflush, fua } });
            }
            Action::Flush { token, volume } => {
                let preflush = Some(self.completed_changes(node, volume));
                let write = Write { change: Change::Flush, preflush, fua: false };
                self.submit(node, volume, InFlight::Write { token, write });
            }
            Action::Discard { token, volume, range, .. } => {
                let data = Rc::new(Data::zeroes(range.sectors()));
                let change = Change::Data { start: range.start.0, data };
                let write = Write { change, preflush: None, fua: false };
                self.submit(node, volume, InFlight::Write { token, write });
            }
            Action::BeginUndo { .. } | Action::KeepOld { .. } => {
                self.fail("nothing is kept unasked", "no undo is configured".to_owned());
            }
            Action::ReadMetadata { token, volume, position, bytes } => {
                self.submit(node, volume, InFlight::MetadataRead { token, start: position.0, bytes });
            }
            Action::WriteMetadata { token, volume, position, block, preflush, fua } => {
                let change = Disk::metadata_change(position.0, &block[..]);
                let preflush = preflush.then(|| self.completed_changes(node, volume));
                let write = Write { change, preflush, fua };
                self.submit(node, volume, InFlight::MetadataWrite { token, write, block });
            }
            Action::CloseDisk { volume } => {
                let own = &self.nodes[node].volumes[index(volume)];
                let busy = own.in_flight.len();
                if busy > 0 && !own.gives_disk_up {
                    self.fail("a disk is closed when nothing is in flight", format!("{busy} operations are"));
                }
            }
            Action::Listen => self.nodes[node].listening = true,
            Action::StopListening => self.nodes[node].listening = false,
            Action::Connect { socket, timeout } => self.call(node, socket, timeout.as_nanos() as u64),
            Action::Close { socket, abort } => self.close(node, socket, abort),
            Action::Send { socket, dialect, volume, packet, payload, integrity, digest, sent } => {
                let message = Message { packet, dialect, volume, payload, integrity, digest };
                self.send(node, socket, &message);
                if let Some(token) = sent {
                    let life = self.nodes[node].life;
                    let delay = self.random.between(0, SECOND / 1000);
                    self.after(delay, Due::Sent { node, life, socket, token });
                }
            }
            Action::Complete { request, result, data } => self.completed(node, request, result, data),
            Action::Release(buffer) => self.release(node, buffer),
            Action::Reply { command, result } => self.replied(node, command, &result),
            Action::RunHandler { handler, name, .. } => {
                self.coverage.fault(name.name());
                if name == udrbd_engine::interface::Handler::FencePeer {
                    self.run_fence_peer(node, handler);
                } else {
                    let life = self.nodes[node].life;
                    let delay = self.random.between(SECOND / 1000, SECOND / 5);
                    self.after(delay, Due::Handler { node, life, handler, status: 0 });
                }
            }
            Action::Device { volume, role, size, .. } => {
                self.nodes[node].volumes[index(volume)].role = role;
                self.size_told(index(volume), size);
            }
            Action::Report(Report::Log { .. } | Report::StateChanged | Report::Progress) => {}
        }
    }

    pub(crate) fn release(&mut self, node: NodeId, buffer: Buffer) {
        if self.nodes[node].buffers.remove(&buffer).is_none() {
            self.fail("a buffer is released once", format!("{buffer:?} on node {node}"));
        }
    }

    fn data_of(&mut self, node: NodeId, buffer: Buffer, range: SectorRange) -> Option<Rc<Data>> {
        let found = self.nodes[node].buffers.get(&buffer).cloned();
        let Some(data) = found else {
            self.fail("a buffer in use is not released", format!("{buffer:?} on node {node}"));
            return None;
        };
        if data.sectors != range.sectors() {
            let text = format!("{buffer:?} of {} sectors for {range:?}", data.sectors);
            self.fail("a buffer has the size of its use", text);
        }
        Some(data)
    }

    fn disk_delay(&mut self, node: NodeId) -> u64 {
        let (least, most) = self.plan.settings.disk_latency;
        let slow = if self.now < self.nodes[node].slow_until { 200 } else { 1 };
        let usual = self.random.between(least, most);
        let odd = if self.random.one_in(200) { 20 } else { 1 };
        (usual * slow * odd).min(SLOWEST_OPERATION)
    }

    /// How many changes a disk has completed.
    fn completed_changes(&self, node: NodeId, volume: VolumeNumber) -> u64 {
        self.nodes[node].volumes[index(volume)].disk.completed()
    }

    fn submit(&mut self, node: NodeId, volume: VolumeNumber, operation: InFlight) {
        let delay = self.disk_delay(node);
        let number = self.next_operation;
        self.next_operation += 1;
        self.disk_passes(node, &operation, false);
        let volume = index(volume);
        self.nodes[node].volumes[volume].in_flight.insert(number, operation);
        let life = self.nodes[node].life;
        self.after(delay, Due::Disk { node, life, volume, operation: number });
    }

    pub(crate) fn disk_done(&mut self, node: NodeId, volume: VolumeIndex, number: u64) {
        let own = &mut self.nodes[node].volumes[volume];
        let Some(operation) = own.in_flight.remove(&number) else { return };
        let failed = own.failing.is_some_and(|failing| failing.hits(self.now, &operation));
        // Of a write that failed anything may be there, or nothing.
        let mut random = if failed { self.random.fork() } else { crate::random::Random::new(0) };
        let own = &mut self.nodes[node].volumes[volume];
        own.disk_failed |= failed;
        match operation.write() {
            Some(write) if failed => own.disk.fail(write, &mut random),
            Some(write) => own.disk.complete(write),
            None => {}
        }
        self.disk_passes(node, &operation, true);
        let result = if failed { Err(IoError { errno: 5 }) } else { Ok(()) };
        let event = self.disk_event(node, volume, operation, result);
        self.feed(node, event);
    }

    /// What a node hears of an operation of its disk.
    fn disk_event(
        &mut self,
        node: NodeId,
        volume: VolumeIndex,
        operation: InFlight,
        result: Result<(), IoError>,
    ) -> Event {
        let own = &mut self.nodes[node];
        let disk = &own.volumes[volume].disk;
        match operation {
            InFlight::Write { token, .. } => Event::WriteDone { token, result },
            InFlight::MetadataWrite { token, block, .. } => Event::MetadataWritten { token, block, result },
            InFlight::MetadataRead { token, start, bytes } => {
                let bytes = disk.metadata_bytes(start, u64::from(bytes) / 512);
                Event::MetadataRead { token, result: result.map(|()| bytes) }
            }
            InFlight::Read { token, buffer, .. } if result.is_err() => {
                Event::ReadDone { token, buffer, digest: None, zeroes: false, result }
            }
            InFlight::Read { token, range, buffer, digest, look_for_zeroes, found } => {
                let data = found.unwrap_or_else(|| disk.data.read(range.start.0, range.sectors()));
                let digest = digest.map(|algorithm| algorithm.digest(&data.bytes()));
                let zeroes = look_for_zeroes && data.items.is_empty();
                let buffer = match buffer {
                    Some(buffer) => {
                        if let Some(room) = own.buffers.get_mut(&buffer) {
                            *room = Rc::new(data);
                        }
                        buffer
                    }
                    None => own.add_buffer(Rc::new(data)),
                };
                Event::ReadDone { token, buffer: Some(buffer), digest, zeroes, result }
            }
        }
    }

    // The network.

    pub(crate) fn network_delay(&mut self) -> u64 {
        let (least, most) = self.network.latency;
        let odd = if self.random.one_in(100) { 10 } else { 1 };
        self.random.between(least, most) * odd
    }

    fn call(&mut self, node: NodeId, socket: SocketId, timeout: u64) {
        self.nodes[node].dialling.push(socket);
        let delay = self.network_delay();
        let life = self.nodes[node].life;
        self.after(delay, Due::Dial { node, life, socket, deadline: self.now + timeout });
    }

    pub(crate) fn dial(&mut self, node: NodeId, socket: SocketId, deadline: u64) {
        let Some(place) = self.nodes[node].dialling.iter().position(|other| *other == socket) else { return };
        let peer = &self.nodes[1 - node];
        if !peer.powered || !self.network.is_whole() {
            if self.now >= deadline {
                self.nodes[node].dialling.swap_remove(place);
                self.feed(node, Event::SocketDown { socket, loss: SocketLoss::ConnectFailed(TIMED_OUT) });
            } else {
                let life = self.nodes[node].life;
                let at = deadline.min(self.now + SECOND);
                self.at(at, Due::Dial { node, life, socket, deadline });
            }
            return;
        }
        let listening = peer.listening;
        self.nodes[node].dialling.swap_remove(place);
        if !listening {
            let loss = SocketLoss::ConnectFailed(CONNECTION_REFUSED);
            self.feed(node, Event::SocketDown { socket, loss });
            return;
        }
        let connection = self.network.connect(node, socket);
        let delay = self.network_delay();
        self.after(delay, Due::Accept { connection });
        self.feed(node, Event::Connected(socket));
    }

    pub(crate) fn accept(&mut self, connection: usize) {
        let [caller, called] = self.network.connections[connection].ends;
        let node = called.node;
        let own = &mut self.nodes[node];
        if own.engine.is_none() || !own.listening {
            self.network.connections[connection].ends[1].open = false;
            if caller.open && own.powered {
                let delay = self.network_delay();
                self.after(delay, Due::NoSuchConnection { connection, end: 0 });
            }
            return;
        }
        let socket = SocketId(own.next_accepted);
        own.next_accepted += 1;
        self.network.connections[connection].ends[1].socket = Some(socket);
        self.feed(node, Event::Accepted(socket));
    }

    fn close(&mut self, node: NodeId, socket: SocketId, abort: bool) {
        self.nodes[node].dialling.retain(|other| *other != socket);
        if let Some((connection, end)) = self.network.find(node, socket) {
            self.close_end(connection, end, if abort { Ending::Reset } else { Ending::Finished });
        }
    }

    /// Closes an end; the other one hears of it.
    pub(crate) fn close_end(&mut self, connection: usize, end: usize, ending: Ending) {
        let delay = self.network_delay();
        let waiting = self.network.connections[connection].directions[end].frames.len() as u64;
        let kept = self.random.between(0, waiting) as usize;
        let at = self.network.close(connection, end, self.now, delay, ending, kept);
        self.at(at, Due::Arrival { connection, direction: end });
    }

    fn send(&mut self, node: NodeId, socket: SocketId, message: &Message) {
        let Some((connection, end)) = self.network.find(node, socket) else { return };
        let tail = match &message.payload {
            Payload::None => Tail::None,
            Payload::Bytes(bytes) if matches!(message.packet, wire::Packet::Data(_)) => {
                // The only data an engine makes are zeroes.
                Tail::Data(zeroes(bytes.len() as u64 / 512), bytes.len() as u32)
            }
            Payload::Bytes(bytes) => Tail::Bytes(bytes.clone()),
            Payload::Buffer { buffer, bytes } => {
                let range = SectorRange::new(Sector(0), *bytes);
                let Some(data) = self.data_of(node, *buffer, range) else { return };
                Tail::Data(data, *bytes)
            }
        };
        let payload_bytes = match &tail {
            Tail::None => 0,
            Tail::Bytes(bytes) => bytes.len() as u32,
            Tail::Data(_, bytes) => *bytes,
        };
        let digest = match (&tail, message.integrity) {
            (Tail::Data(data, _), Some(algorithm)) => Some(algorithm.digest(&data.bytes())),
            _ => message.digest,
        };
        let digest = digest.as_ref().map_or(&[][..], DigestValue::as_bytes);
        let mut bytes = Vec::with_capacity(64);
        message.packet.encode(&mut bytes, message.dialect, message.volume, digest, payload_bytes);
        self.coverage.packet(message.packet.command(message.dialect).log_name());
        self.packet_passes(node, &message.packet);
        self.verify_passes(node, index(message.volume), &message.packet);
        let delay = self.network_delay();
        let at = self.network.send(connection, end, self.now, delay, bytes, tail);
        self.at(at, Due::Arrival { connection, direction: end });
    }

    /// Something may have arrived.
    pub(crate) fn arrive(&mut self, connection: usize, direction: usize) {
        loop {
            let link = &self.network.connections[connection];
            let (sender, receiver) = (link.ends[direction], link.ends[1 - direction]);
            if self.network.cut[sender.node] || self.violation.is_some() {
                return;
            }
            let state = &link.directions[direction];
            let due = state.frames.front().is_some_and(|frame| frame.at <= self.now);
            if !receiver.open {
                self.arrive_nowhere(connection, direction, due);
                return;
            }
            if receiver.deaf {
                self.network.connections[connection].directions[direction].frames.clear();
            }
            let link = &self.network.connections[connection];
            let state = &link.directions[direction];
            let due = due && !receiver.deaf;
            // Not accepted yet: what has arrived waits.
            let Some(socket) = receiver.socket else {
                self.network.connections[connection].directions[direction].blocked = true;
                return;
            };
            let node = receiver.node;
            if let Some((ending, at)) = state.ending
                && at <= self.now
                && (state.frames.is_empty() || ending == Ending::Reset)
            {
                let loss = match ending {
                    Ending::Finished => SocketLoss::Closed,
                    Ending::Reset => SocketLoss::Broken(CONNECTION_RESET),
                };
                self.hang_up(connection, 1 - direction);
                self.feed(node, Event::SocketDown { socket, loss });
                return;
            }
            if !due {
                return;
            }
            let Some(engine) = &self.nodes[node].engine else { return };
            let Some((expected, reception)) = engine.reception(socket) else {
                self.network.connections[connection].directions[direction].blocked = true;
                return;
            };
            let Some(frame) = self.network.connections[connection].directions[direction].frames.pop_front()
            else {
                return;
            };
            match self.receive(node, socket, &frame, expected, &reception) {
                Ok(event) => self.feed(node, event),
                Err(error) => {
                    let text = format!("node {node}: {error}");
                    self.say(&text);
                    self.fail("no packet of an own node is malformed", text);
                }
            }
        }
    }

    /// The receiving end is gone without a word.
    fn arrive_nowhere(&mut self, connection: usize, direction: usize, due: bool) {
        let link = &mut self.network.connections[connection];
        let (sender, receiver) = (link.ends[direction], link.ends[1 - direction]);
        if due {
            link.directions[direction].frames.clear();
        }
        if due && sender.open && self.nodes[receiver.node].powered {
            let delay = self.network_delay();
            self.after(delay, Due::NoSuchConnection { connection, end: direction });
        }
    }

    /// An end that has heard of the other's end is no more.
    fn hang_up(&mut self, connection: usize, end: usize) {
        let link = &mut self.network.connections[connection];
        link.ends[end].open = false;
        link.directions[1 - end].frames.clear();
        link.directions[end].frames.clear();
        link.ends[1 - end].open &= link.directions[1 - end].ending.is_none();
        if link.ends[1 - end].open {
            let delay = self.network_delay();
            self.after(delay, Due::NoSuchConnection { connection, end: 1 - end });
        }
    }

    fn receive(
        &mut self,
        node: NodeId,
        socket: SocketId,
        frame: &Frame,
        expected: wire::Expected,
        reception: &wire::Reception,
    ) -> Result<Event, wire::WireError> {
        let Some((incoming, header)) = Incoming::decode_header(&frame.bytes, expected, reception)? else {
            return Err(wire::WireError::HeaderPadding);
        };
        let structure = header + incoming.packet_bytes;
        let packet = incoming.decode(&frame.bytes[header..structure], reception.dialect)?;
        let digest = DigestValue::from_bytes(&frame.bytes[structure..structure + incoming.digest_bytes])
            .filter(|_| incoming.digest_bytes > 0);
        let (mut payload, mut bytes, mut intact) = (None, Vec::new(), true);
        let is_data = matches!(&frame.tail, Tail::Data(..));
        match &frame.tail {
            Tail::None => {}
            Tail::Bytes(tail) => bytes.clone_from(tail),
            Tail::Data(data, _) => {
                intact = match (reception.integrity, &digest) {
                    (Some(algorithm), Some(digest)) => algorithm.digest(&data.bytes()) == *digest,
                    (integrity, _) => integrity.is_none(),
                };
                payload = Some(self.nodes[node].add_buffer(data.clone()));
            }
        }
        Ok(Event::Packet {
            socket,
            volume: incoming.volume,
            packet,
            payload,
            payload_bytes: if is_data { incoming.payload_bytes as u32 } else { 0 },
            bytes,
            digest: if is_data { None } else { digest },
            intact,
        })
    }

    /// Goes on with what a node did not read before.
    pub(crate) fn read_on(&mut self, node: NodeId) {
        for connection in 0..self.network.connections.len() {
            for direction in 0..2 {
                let link = &mut self.network.connections[connection];
                if link.ends[1 - direction].node == node && link.directions[direction].blocked {
                    link.directions[direction].blocked = false;
                    self.after(0, Due::Arrival { connection, direction });
                }
            }
        }
    }

    /// Where a node's metadata are.
    pub(crate) fn layout(&self, node: NodeId, volume: VolumeIndex) -> Option<Layout> {
        let device = self.nodes[node].volumes[volume].device();
        Layout::new(Placement::Internal, device, Striping::DEFAULT).ok()
    }

    /// The metadata tool's work before the run.
    pub(crate) fn create_all_metadata(&mut self) {
        let capacity = |layout: Layout| layout.max_capacity(layout.superblock);
        for volume in 0..self.plan.settings.backing_sectors.len() {
            let size = (0..2).filter_map(|node| self.layout(node, volume)).map(capacity).min();
            for node in 0..2 {
                self.create_metadata(node, volume, size.filter(|_| self.plan.settings.in_sync));
            }
        }
    }

    /// Creates a node's metadata; as of a disk that is in sync with the other node's where the agreed size is given.
    pub(crate) fn create_metadata(&mut self, node: NodeId, volume: VolumeIndex, agreed: Option<Sector>) {
        let Some(layout) = self.layout(node, volume) else {
            self.fail("metadata fit", "the device is too small".to_owned());
            return;
        };
        let mut superblock = Superblock::fresh(&layout, 1 << 20);
        if let Some(size) = agreed {
            superblock.la_size_sect = size;
            superblock.current = udrbd_units::GenerationId(0x1234_5678_9abc_def0);
            superblock.flags.set(Flags::CONSISTENT | Flags::WAS_UP_TO_DATE, true);
        }
        let mut blocks = vec![(layout.superblock.0, superblock.encode())];
        for block in 0..layout.striping.blocks() {
            let at = layout.al_start().0 + u64::from(block) * 8;
            blocks.push((at, udrbd_metadata::activity_log::initialized_block()));
        }
        for (start, block) in blocks {
            let change = Disk::metadata_change(start, &block);
            let write = Write { change, preflush: None, fua: true };
            self.nodes[node].volumes[volume].disk.complete(&write);
        }
    }
}

/// A packet to be sent.
struct Message {
    packet: wire::Packet,
    dialect: wire::Dialect,
    volume: VolumeNumber,
    payload: Payload,
    integrity: Option<wire::DigestAlgorithm>,
    digest: Option<DigestValue>,
}

/// Zeroes of this many sectors.
pub(crate) fn zeroes(sectors: u64) -> Rc<Data> {
    Rc::new(Sparse::zeroes(sectors))
}
