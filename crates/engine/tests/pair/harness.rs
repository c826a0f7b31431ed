//! Two engines in one process: disks that answer at once, wires that lose nothing, time that jumps to the next timeout.
//! Tests read as scripts; the simulator is where things go wrong.

use std::collections::{HashMap, HashSet, VecDeque};

use udrbd_engine::Engine;
use udrbd_engine::interface::{
    Action, AttachSettings, Buffer, ClientError, ClientRequest, Command, CommandId, CommandResult,
    DiscardMode, DiskOptions, DiskProperties, Event, Handler, HandlerId, IoError, NetOptions, Operation,
    Payload, Report, RequestId, ResourceOptions, SocketId, SocketLoss, Time, VolumeStatus,
};
use udrbd_metadata::{Layout, Placement, Striping, Superblock, activity_log};
use udrbd_units::{Minor, Sector, SectorRange, VolumeNumber};

use crate::side_file::SideFile;

/// The volume every test uses.
pub(crate) const VOLUME: VolumeNumber = VolumeNumber(0);

/// One node: an engine and the disk under it.
pub(crate) struct Node {
    pub(crate) engine: Option<Engine>,
    pub(crate) disk: HashMap<u64, [u8; 512]>,
    pub(crate) log: Vec<String>,
    pub(crate) replies: HashMap<u64, CommandResult>,
    pub(crate) completions: HashMap<u64, (Result<(), ClientError>, Vec<u8>)>,
    pub(crate) handlers: Vec<Handler>,
    /// Exit codes of handlers; 0 where there is none.
    pub(crate) exits: HashMap<Handler, i32>,
    /// Backing devices that are open.
    pub(crate) open_disks: u32,
    /// Handlers end when the test says so.
    pub(crate) slow_handlers: bool,
    /// Handlers that have not ended.
    pub(crate) handlers_at_work: Vec<HandlerId>,
    /// Data operations fail.
    pub(crate) failing: bool,
    /// Sectors of which reads and writes fail.
    pub(crate) bad_data: std::ops::Range<u64>,
    /// Writes of metadata fail.
    pub(crate) failing_metadata: bool,
    /// Writes of metadata that touch these sectors fail.
    pub(crate) bad_metadata: std::ops::Range<u64>,
    /// Where metadata were written, and whether with a flush before.
    pub(crate) metadata_writes: Vec<(u64, bool)>,
    /// Where the disk was told to discard or zero, and how.
    pub(crate) discards: Vec<(SectorRange, DiscardMode)>,
    /// Data have been written since the last flush.
    unflushed: bool,
    /// Flushes of the data that were asked for by themselves.
    pub(crate) flushes: usize,
    /// Flushes fail.
    pub(crate) failing_flushes: bool,
    /// Pages of the bitmap written while that was so.
    pub(crate) hasty_pages: usize,
    /// Actions on data are kept instead of done.
    pub(crate) stuck: bool,
    /// Writes of metadata are kept instead of done.
    pub(crate) stuck_metadata: bool,
    /// Reads of metadata are kept instead of done.
    pub(crate) stuck_metadata_reads: bool,
    /// Reads of data are done at once, and the engine hears of them (`unheard`) when the test says so.
    pub(crate) late_reads: bool,
    pub(crate) unheard: Vec<Event>,
    /// What is kept does not happen by chance.
    pub(crate) hanging: bool,
    pub(crate) kept: Vec<Action>,
    /// The side file of an undo.
    pub(crate) undo: Option<SideFile>,
    /// The blocks an undo may keep.
    pub(crate) undo_room: usize,
    /// Buffers of which the engine owns a reference.
    pub(crate) owned: HashSet<u32>,
    buffers: HashMap<u32, Vec<u8>>,
    reads_into: HashMap<u64, u32>,
    next: u64,
    listening: bool,
}

/// Two nodes and what is between them.
pub(crate) struct Pair {
    pub(crate) nodes: [Node; 2],
    pub(crate) now: Time,
    pub(crate) events: VecDeque<(usize, Event)>,
    /// Socket of a node to socket of the other.
    wires: HashMap<(usize, SocketId), (usize, SocketId)>,
    pub(crate) pending: HashMap<(usize, SocketId), VecDeque<Event>>,
    next_socket: u32,
    /// Nothing gets through.
    pub(crate) cut: bool,
    /// Nobody gets a connection.
    pub(crate) refused: bool,
    pub(crate) sectors: u64,
    pub(crate) packets: Vec<(usize, udrbd_wire::Packet)>,
    /// Which sockets nodes have closed, and whether with what was not sent yet.
    pub(crate) aborts: Vec<(usize, bool)>,
    /// What happens next is left to chance: the state of a generator of random numbers.
    pub(crate) chance: Option<u64>,
    /// What the next engine's coins depend on.
    pub(crate) seed: u8,
    /// Neither node hears of the other's extensions, as beside the kernel's DRBD.
    pub(crate) plain: bool,
}

impl Node {
    fn new(sectors: u64) -> Self {
        let mut node = Self {
            engine: None,
            disk: HashMap::new(),
            log: Vec::new(),
            replies: HashMap::new(),
            completions: HashMap::new(),
            handlers: Vec::new(),
            exits: HashMap::new(),
            open_disks: 0,
            slow_handlers: false,
            handlers_at_work: Vec::new(),
            failing: false,
            bad_data: 0..0,
            failing_metadata: false,
            bad_metadata: 0..0,
            metadata_writes: Vec::new(),
            discards: Vec::new(),
            unflushed: false,
            flushes: 0,
            failing_flushes: false,
            hasty_pages: 0,
            stuck: false,
            stuck_metadata: false,
            stuck_metadata_reads: false,
            late_reads: false,
            unheard: Vec::new(),
            hanging: false,
            kept: Vec::new(),
            undo: None,
            undo_room: usize::MAX,
            owned: HashSet::new(),
            buffers: HashMap::new(),
            reads_into: HashMap::new(),
            next: 1,
            listening: false,
        };
        let layout = internal(sectors);
        let mut superblock = Superblock::fresh(&layout, 1 << 20);
        superblock.flags = udrbd_metadata::Flags::AL_CLEAN;
        node.store(layout.superblock.0, &superblock.encode());
        for block in 0..8 {
            node.store(layout.al_start().0 + block * 8, &activity_log::initialized_block());
        }
        node
    }

    /// Writes the metadata of a disk of this size that is in use by nobody.
    pub(crate) fn write_metadata(
        &mut self,
        sectors: u64,
        bitmap: &[u8],
        change: impl FnOnce(&mut Superblock, &Layout),
    ) {
        let layout = internal(sectors);
        let mut superblock = Superblock::fresh(&layout, 1 << 20);
        superblock.flags = udrbd_metadata::Flags::AL_CLEAN;
        change(&mut superblock, &layout);
        self.store(layout.superblock.0, &superblock.encode());
        self.store(layout.bitmap_page(0).0, bitmap);
    }

    /// The superblock as it is on the disk.
    pub(crate) fn superblock(&self, sectors: u64) -> Superblock {
        let bytes = self.load(internal(sectors).superblock.0, 4096);
        Superblock::decode(bytes.as_slice().try_into().unwrap())
    }

    pub(crate) fn store(&mut self, sector: u64, bytes: &[u8]) {
        for (offset, chunk) in bytes.chunks(512).enumerate() {
            let mut sector_bytes = [0; 512];
            sector_bytes[..chunk.len()].copy_from_slice(chunk);
            self.disk.insert(sector + offset as u64, sector_bytes);
        }
    }

    pub(crate) fn load(&self, sector: u64, bytes: usize) -> Vec<u8> {
        (0..bytes.div_ceil(512) as u64)
            .flat_map(|offset| self.disk.get(&(sector + offset)).copied().unwrap_or([0; 512]))
            .collect()
    }

    pub(crate) fn status(&self) -> VolumeStatus {
        self.engine.as_ref().expect("the node is up").status().volumes.remove(0)
    }

    pub(crate) fn says(&self, text: &str) -> bool {
        self.log.iter().any(|line| line.contains(text))
    }
}

/// Where the disk of each further volume is on that of the node.
pub(crate) const PLACE: u64 = 1 << 32;

/// An operation of the disk of any volume, as one of the node's only disk.
fn placed(mut action: Action) -> Action {
    match &mut action {
        Action::Read { volume, range, .. }
        | Action::Write { volume, range, .. }
        | Action::Discard { volume, range, .. } => range.start.0 += PLACE * u64::from(volume.0),
        Action::ReadMetadata { volume, position, .. } | Action::WriteMetadata { volume, position, .. } => {
            position.0 += PLACE * u64::from(volume.0);
        }
        _ => {}
    }
    action
}

/// Where the metadata are on a disk of this size.
fn internal(sectors: u64) -> Layout {
    Layout::new(Placement::Internal, Sector(sectors), Striping::DEFAULT).unwrap()
}

impl Pair {
    /// Two nodes that are down, with fresh metadata.
    pub(crate) fn down(sectors: u64) -> Self {
        Self {
            nodes: [Node::new(sectors), Node::new(sectors)],
            now: Time(0),
            events: VecDeque::new(),
            wires: HashMap::new(),
            pending: HashMap::new(),
            next_socket: SocketId::FIRST_ACCEPTED.0,
            cut: false,
            refused: false,
            sectors,
            packets: Vec::new(),
            aborts: Vec::new(),
            chance: None,
            seed: 1,
            plain: false,
        }
    }

    /// Two nodes with fresh metadata, attached, not connected.
    pub(crate) fn new() -> Self {
        Self::with_sectors(20 * 2048)
    }

    pub(crate) fn with_sectors(sectors: u64) -> Self {
        let mut pair = Self::down(sectors);
        for node in 0..2 {
            pair.start(node, DiskOptions::default());
        }
        pair
    }

    /// Starts a node's engine and attaches its disk.
    pub(crate) fn start(&mut self, node: usize, options: DiskOptions) {
        self.start_diskless(node, ResourceOptions::default());
        self.attach(node, options).unwrap();
    }

    /// Starts a node's engine without a disk.
    pub(crate) fn start_diskless(&mut self, node: usize, options: ResourceOptions) {
        self.seed += 1;
        self.nodes[node].engine = Some(Engine::new(options, [self.seed; 32]));
        self.command(node, Command::NewMinor { volume: VOLUME, minor: Minor(0) }).unwrap();
    }

    pub(crate) fn attach(&mut self, node: usize, options: DiskOptions) -> CommandResult {
        let id = self.begin_attach(node, options);
        self.until(|pair| pair.nodes[node].replies.contains_key(&id));
        self.nodes[node].replies.remove(&id).unwrap()
    }

    /// Gives the command to attach the disk. Returns under which number the reply comes.
    pub(crate) fn begin_attach(&mut self, node: usize, options: DiskOptions) -> u64 {
        let settings = Box::new(AttachSettings {
            placement: Placement::Internal,
            properties: DiskProperties {
                backing_size: Sector(self.sectors),
                metadata_size: Sector(self.sectors),
                logical_block_bytes: 512,
                physical_block_bytes: 4096,
                max_request_bytes: 1 << 20,
                volatile_cache: true,
                discard_granularity_bytes: 4096,
            },
            options,
            kept: self.nodes[node].undo.as_ref().and_then(SideFile::kept_blocks),
        });
        let id = self.nodes[node].next;
        self.nodes[node].next += 1;
        let command = Command::Attach { volume: VOLUME, settings };
        self.events.push_back((node, Event::Command { id: CommandId(id), command }));
        id
    }

    /// The node dies: what it had sent and written stays, everything else is gone.
    pub(crate) fn kill(&mut self, node: usize) {
        self.nodes[node].engine = None;
        self.nodes[node].open_disks = 0;
        self.nodes[node].listening = false;
        self.nodes[node].kept.clear();
        self.nodes[node].unheard.clear();
        self.nodes[node].owned.clear();
        self.events.retain(|(owner, _)| *owner != node);
        let sockets: Vec<_> = self.wires.keys().filter(|(owner, _)| *owner == node).copied().collect();
        for socket in sockets {
            self.close(socket);
        }
    }

    fn close(&mut self, socket: (usize, SocketId)) {
        self.pending.remove(&socket);
        if let Some(other) = self.wires.remove(&socket) {
            self.wires.remove(&other);
            self.queue_packet(other, Event::SocketDown { socket: other.1, loss: SocketLoss::Closed });
        }
    }

    /// All connections break.
    pub(crate) fn break_wires(&mut self) {
        for socket in self.wires.keys().copied().collect::<Vec<_>>() {
            if self.wires.remove(&socket).is_some() {
                let loss = SocketLoss::Broken(104);
                self.queue_packet(socket, Event::SocketDown { socket: socket.1, loss });
            }
        }
    }

    fn queue_packet(&mut self, to: (usize, SocketId), event: Event) {
        self.pending.entry(to).or_default().push_back(event);
    }

    /// Gives a command. Returns under which number the reply comes.
    pub(crate) fn begin_command(&mut self, node: usize, command: Command) -> u64 {
        let id = self.nodes[node].next;
        self.nodes[node].next += 1;
        self.events.push_back((node, Event::Command { id: CommandId(id), command }));
        id
    }

    /// Gives a command and goes on until it is answered.
    pub(crate) fn command(&mut self, node: usize, command: Command) -> CommandResult {
        let id = self.begin_command(node, command);
        self.until(|pair| pair.nodes[node].replies.contains_key(&id));
        self.nodes[node].replies.remove(&id).unwrap()
    }

    pub(crate) fn connect(&mut self, options: &NetOptions) {
        for node in 0..2 {
            self.command(node, Command::Connect(Box::new(options.clone()))).unwrap();
        }
    }

    /// Starts a request.
    pub(crate) fn submit(
        &mut self,
        node: usize,
        operation: Operation,
        sector: u64,
        data: &[u8],
        bytes: u32,
    ) -> u64 {
        let id = self.nodes[node].next;
        self.nodes[node].next += 1;
        let buffer = match operation {
            Operation::Write { .. } => Some(self.new_buffer(node, data.to_vec())),
            Operation::Read => Some(self.new_buffer(node, vec![0; bytes as usize])),
            _ => None,
        };
        if let (Operation::Read, Some(buffer)) = (operation, buffer) {
            self.nodes[node].reads_into.insert(id, buffer.0);
        }
        let range = SectorRange::new(Sector(sector), bytes);
        let request = ClientRequest { id: RequestId(id), volume: VOLUME, operation, range, buffer };
        self.events.push_back((node, Event::Request(request)));
        id
    }

    pub(crate) fn write(
        &mut self,
        node: usize,
        sector: u64,
        value: u8,
        bytes: u32,
    ) -> Result<(), ClientError> {
        let operation = Operation::Write { fua: false, preflush: false };
        let id = self.submit(node, operation, sector, &vec![value; bytes as usize], bytes);
        self.until(|pair| pair.nodes[node].completions.contains_key(&id));
        self.nodes[node].completions[&id].0
    }

    pub(crate) fn read(&mut self, node: usize, sector: u64, bytes: u32) -> Result<Vec<u8>, ClientError> {
        let id = self.submit(node, Operation::Read, sector, &[], bytes);
        self.until(|pair| pair.nodes[node].completions.contains_key(&id));
        let (result, data) = self.nodes[node].completions.remove(&id).unwrap();
        result.map(|()| data)
    }

    pub(crate) fn new_buffer(&mut self, node: usize, bytes: Vec<u8>) -> Buffer {
        let number = self.nodes[node].next as u32;
        self.nodes[node].next += 1;
        self.nodes[node].buffers.insert(number, bytes);
        Buffer(number)
    }

    /// Goes on until something is so; a minute of quiet time at the most.
    pub(crate) fn until(&mut self, mut done: impl FnMut(&Self) -> bool) {
        let limit = self.now.0 + 120_000_000_000;
        while !done(self) {
            if !self.step() && !self.advance() {
                panic!("nothing happens any more\n{}", self.describe());
            }
            assert!(self.now.0 < limit, "it takes too long\n{}", self.describe());
        }
    }

    /// Goes on until nothing is under way, without letting time pass.
    pub(crate) fn settle(&mut self) {
        while self.step() {}
    }

    /// Lets time pass.
    pub(crate) fn pass(&mut self, seconds: u64) {
        self.pass_ms(seconds * 1000);
    }

    /// Lets milliseconds pass.
    pub(crate) fn pass_ms(&mut self, ms: u64) {
        let end = self.now.0 + ms * 1_000_000;
        loop {
            self.settle();
            let next = self.next_timeout().filter(|time| time.0 <= end);
            match next {
                Some(_) => self.advance(),
                None => break,
            };
        }
        self.now = Time(end);
    }

    pub(crate) fn describe(&self) -> String {
        let mut text = String::new();
        for (index, node) in self.nodes.iter().enumerate() {
            if let Some(engine) = &node.engine {
                text += &format!("node {index}: {:?}\n", engine.status());
            }
            for line in &node.log {
                text += &format!("  {index}: {line}\n");
            }
        }
        text
    }

    fn next_timeout(&self) -> Option<Time> {
        self.nodes.iter().filter_map(|node| node.engine.as_ref()?.next_timeout()).min()
    }

    pub(crate) fn advance(&mut self) -> bool {
        let Some(next) = self.next_timeout() else { return false };
        self.now = self.now.max(next);
        for node in 0..2 {
            if self.nodes[node].engine.as_ref().is_some_and(|engine| engine.next_timeout() <= Some(self.now))
                && self.nodes[node].engine.as_ref().is_some_and(|engine| engine.next_timeout().is_some())
            {
                self.events.push_back((node, Event::Timeout));
            }
        }
        true
    }

    /// A random number below `limit`. Only where things are left to chance.
    pub(crate) fn random(&mut self, limit: usize) -> usize {
        let state = self.chance.as_mut().expect("nothing is left to chance");
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        (*state >> 20) as usize % limit
    }

    /// Any one of the things that can happen next: disks and links are as slow as they like, and each socket keeps its
    /// own order.
    fn step_by_chance(&mut self) -> bool {
        let sockets: Vec<_> = {
            let mut ready: Vec<_> = self.pending.iter().filter(|(_, queue)| !queue.is_empty()).collect();
            ready.sort_by_key(|((node, socket), _)| (*node, socket.0));
            // The end of a socket that is not read is seen all the same.
            let open = |(key, queue): &(&(usize, SocketId), &VecDeque<Event>)| {
                matches!(queue.front(), Some(Event::SocketDown { .. }))
                    || self.nodes[key.0]
                        .engine
                        .as_ref()
                        .is_some_and(|engine| engine.reception(key.1).is_some())
            };
            ready.into_iter().filter(open).map(|(key, _)| *key).collect()
        };
        let kept = [0, 1].map(|node| if self.nodes[node].hanging { 0 } else { self.kept(node) });
        let choices = [self.events.len(), kept[0], kept[1], sockets.len()];
        let total: usize = choices.iter().sum();
        if total == 0 {
            return false;
        }
        let mut pick = self.random(total);
        let kind = choices.iter().position(|count| {
            let here = pick < *count;
            pick -= if here { 0 } else { *count };
            here
        });
        match kind {
            Some(0) => {
                let Some((node, event)) = self.events.remove(pick) else { unreachable!("picked below") };
                self.feed(node, event);
            }
            Some(3) => {
                let key = sockets[pick];
                let Some(event) = self.pending.get_mut(&key).and_then(VecDeque::pop_front) else {
                    unreachable!("picked from those that have something")
                };
                self.feed(key.0, event);
            }
            Some(node) => self.unstick_one(node - 1, pick),
            None => unreachable!("picked below the total"),
        }
        true
    }

    /// One event happens, if there is one.
    pub(crate) fn step(&mut self) -> bool {
        if self.chance.is_some() {
            return self.step_by_chance();
        }
        if let Some((node, event)) = self.events.pop_front() {
            self.feed(node, event);
            return true;
        }
        let ready: Vec<_> =
            self.pending.iter().filter(|(_, queue)| !queue.is_empty()).map(|(key, _)| *key).collect();
        let mut ready: Vec<_> = ready.into_iter().collect();
        ready.sort_by_key(|(node, socket)| (*node, socket.0));
        for key in ready {
            let Some(engine) = &self.nodes[key.0].engine else {
                self.pending.remove(&key);
                continue;
            };
            let down = matches!(self.pending[&key].front(), Some(Event::SocketDown { .. }));
            if self.cut && !down {
                continue;
            }
            if !down && engine.reception(key.1).is_none() {
                continue;
            }
            let event = self.pending.get_mut(&key).and_then(VecDeque::pop_front);
            if let Some(event) = event {
                self.feed(key.0, event);
                return true;
            }
        }
        false
    }

    fn feed(&mut self, node: usize, event: Event) {
        let taken = match &event {
            Event::Request(request) => request.buffer,
            Event::Packet { payload, .. } => *payload,
            _ => None,
        };
        if self.nodes[node].engine.is_some() {
            self.nodes[node].owned.extend(taken.map(|buffer| buffer.0));
        }
        let Some(engine) = &mut self.nodes[node].engine else { return };
        let mut actions = Vec::new();
        engine.handle(self.now, event, &mut actions);
        engine.finish_turn(self.now, &mut actions);
        for action in actions {
            self.act(node, placed(action));
        }
    }

    /// A node's end of one of the two sockets of its connection: data is the one it was told of first.
    pub(crate) fn socket(&self, node: usize, data: bool) -> Option<SocketId> {
        let expected = if data { udrbd_wire::Socket::Data } else { udrbd_wire::Socket::Meta };
        let engine = self.nodes[node].engine.as_ref()?;
        self.wires.keys().filter(|(owner, _)| *owner == node).map(|(_, socket)| *socket).find(|socket| {
            engine
                .reception(*socket)
                .is_some_and(|(what, _)| what == udrbd_wire::Expected::Established(expected))
        })
    }

    /// Something the peer never said arrives.
    pub(crate) fn inject(&mut self, node: usize, event: Event) {
        self.feed(node, event);
    }

    /// Gives a command, and lets it be if it is not answered within a minute.
    pub(crate) fn try_command(&mut self, node: usize, command: Command) -> Option<CommandResult> {
        let id = self.nodes[node].next;
        self.nodes[node].next += 1;
        self.events.push_back((node, Event::Command { id: CommandId(id), command }));
        for _ in 0..60 {
            self.settle();
            if let Some(result) = self.nodes[node].replies.remove(&id) {
                return Some(result);
            }
            self.pass(1);
        }
        None
    }

    /// A handler ends.
    pub(crate) fn handler_exit(&mut self, node: usize, handler: HandlerId, status: i32) {
        self.events.push_back((node, Event::HandlerExit { handler, status }));
    }

    pub(crate) fn act(&mut self, node: usize, action: Action) {
        let data = matches!(
            action,
            Action::Read { .. }
                | Action::Write { .. }
                | Action::Flush { .. }
                | Action::Discard { .. }
                | Action::KeepOld { .. }
        );
        let metadata = matches!(action, Action::WriteMetadata { .. });
        let look = matches!(action, Action::ReadMetadata { .. }) && self.nodes[node].stuck_metadata_reads;
        if look || (data && self.nodes[node].stuck) || (metadata && self.nodes[node].stuck_metadata) {
            self.nodes[node].kept.push(action);
            return;
        }
        let bad = &self.nodes[node].bad_data;
        let hit = match &action {
            Action::Read { range, .. } | Action::Write { range, .. } => {
                range.start.0 < bad.end && range.end().0 > bad.start
            }
            _ => false,
        };
        let outcome = if self.nodes[node].failing || hit { Err(IoError { errno: 5 }) } else { Ok(()) };
        match action {
            Action::BeginUndo { token, .. } | Action::KeepOld { token, .. } => {
                let result = self.nodes[node].ask_side_file(&action);
                self.events.push_back((node, Event::WriteDone { token, result }));
            }
            Action::Read { token, range, buffer, digest, look_for_zeroes, .. } => {
                let bytes = self.nodes[node].load(range.start.0, range.bytes as usize);
                let zeroes = look_for_zeroes && bytes.iter().all(|byte| *byte == 0);
                let digest = digest.map(|algorithm| algorithm.digest(&bytes));
                let buffer = match buffer {
                    Some(buffer) => {
                        self.nodes[node].buffers.insert(buffer.0, bytes);
                        buffer
                    }
                    None => {
                        let buffer = self.new_buffer(node, bytes);
                        self.nodes[node].owned.insert(buffer.0);
                        buffer
                    }
                };
                let event = Event::ReadDone { token, buffer: Some(buffer), digest, zeroes, result: outcome };
                if self.nodes[node].late_reads {
                    self.nodes[node].unheard.push(event);
                } else {
                    self.events.push_back((node, event));
                }
            }
            Action::Write { token, range, buffer, .. } => {
                self.nodes[node].expect_kept(range);
                if outcome.is_ok() {
                    let bytes = self.nodes[node].buffers[&buffer.0].clone();
                    assert_eq!(bytes.len(), range.bytes as usize);
                    self.nodes[node].store(range.start.0, &bytes);
                    self.nodes[node].unflushed = true;
                }
                self.events.push_back((node, Event::WriteDone { token, result: outcome }));
            }
            Action::Flush { token, .. } => {
                self.nodes[node].unflushed = false;
                self.nodes[node].flushes += 1;
                let result =
                    if self.nodes[node].failing_flushes { Err(IoError { errno: 95 }) } else { outcome };
                self.events.push_back((node, Event::WriteDone { token, result }));
            }
            Action::Discard { token, range, mode, .. } => {
                self.nodes[node].discards.push((range, mode));
                self.nodes[node].expect_kept(range);
                self.nodes[node].store(range.start.0, &vec![0; range.bytes as usize]);
                self.events.push_back((node, Event::WriteDone { token, result: outcome }));
            }
            Action::ReadMetadata { token, position, bytes, .. } => {
                let bytes = self.nodes[node].load(position.0, bytes as usize);
                self.events.push_back((node, Event::MetadataRead { token, result: Ok(bytes) }));
            }
            Action::WriteMetadata { token, position, block, preflush, .. } => {
                self.nodes[node].metadata_writes.push((position.0, preflush));
                self.nodes[node].unflushed &= !preflush;
                let layout = internal(self.sectors);
                if (layout.bitmap_start().0..layout.al_start().0).contains(&position.0) {
                    self.nodes[node].hasty_pages += usize::from(self.nodes[node].unflushed);
                }
                let bad = self.nodes[node].bad_metadata.contains(&position.0);
                let failing = self.nodes[node].failing_metadata || bad;
                let result = if failing { Err(IoError { errno: 5 }) } else { Ok(()) };
                if result.is_ok() {
                    self.nodes[node].store(position.0, &block[..]);
                }
                self.events.push_back((node, Event::MetadataWritten { token, block, result }));
            }
            Action::CloseDisk { .. } => {
                let open = &mut self.nodes[node].open_disks;
                *open = open.saturating_sub(1);
            }
            Action::Device { .. } => {}
            Action::Listen => self.nodes[node].listening = true,
            Action::StopListening => self.nodes[node].listening = false,
            Action::Connect { socket, .. } => self.dial(node, socket),
            Action::Close { socket, abort } => {
                self.aborts.push((node, abort));
                self.close((node, socket));
            }
            Action::Send { socket, volume, packet, payload, digest, sent, .. } => {
                self.send(node, socket, volume, packet, payload, digest);
                if let Some(token) = sent {
                    self.events.push_back((node, Event::Sent(token)));
                }
            }
            Action::Complete { request, result, data } => {
                if let Some(buffer) = data {
                    self.give_back(node, buffer);
                }
                let own = self.nodes[node].reads_into.remove(&request.0);
                let buffer = data.map(|buffer| buffer.0).or(own);
                let bytes = buffer.and_then(|buffer| self.nodes[node].buffers.get(&buffer).cloned());
                self.nodes[node].completions.insert(request.0, (result, bytes.unwrap_or_default()));
            }
            Action::Release(buffer) => self.give_back(node, buffer),
            Action::Reply { command, result } => {
                self.nodes[node].replies.insert(command.0, result);
            }
            Action::RunHandler { handler, name, .. } => {
                self.nodes[node].handlers.push(name);
                let status = self.nodes[node].exits.get(&name).copied().unwrap_or(0);
                if self.nodes[node].slow_handlers {
                    self.nodes[node].handlers_at_work.push(handler);
                } else {
                    self.handler_exit(node, handler, status);
                }
            }
            Action::Report(Report::Log { text, .. }) => self.nodes[node].log.push(text),
            Action::Report(_) => {}
        }
    }

    /// The engine needs a buffer no more, of which it had a reference.
    fn give_back(&mut self, node: usize, buffer: Buffer) {
        let owned = self.nodes[node].owned.remove(&buffer.0);
        assert!(owned, "{buffer:?} is released by node {node}, which does not own it");
    }

    fn dial(&mut self, node: usize, socket: SocketId) {
        let other = 1 - node;
        if !self.nodes[other].listening || self.cut || self.refused {
            let loss = SocketLoss::ConnectFailed(111);
            self.events.push_back((node, Event::SocketDown { socket, loss }));
            return;
        }
        let accepted = SocketId(self.next_socket);
        self.next_socket += 1;
        self.wires.insert((node, socket), (other, accepted));
        self.wires.insert((other, accepted), (node, socket));
        self.events.push_back((node, Event::Connected(socket)));
        self.events.push_back((other, Event::Accepted(accepted)));
    }

    fn send(
        &mut self,
        node: usize,
        socket: SocketId,
        volume: VolumeNumber,
        mut packet: udrbd_wire::Packet,
        payload: Payload,
        digest: Option<udrbd_wire::DigestValue>,
    ) {
        if let (true, udrbd_wire::Packet::ConnectionFeatures(features)) = (self.plain, &mut packet) {
            features.extensions = udrbd_wire::Extensions::NONE;
        }
        let Some(to) = self.wires.get(&(node, socket)).copied() else { return };
        self.packets.push((node, packet.clone()));
        let (payload, payload_bytes, bytes) = match payload {
            Payload::None => (None, 0, Vec::new()),
            Payload::Bytes(bytes) => (None, 0, bytes),
            Payload::Buffer { buffer, bytes } => {
                let mut data = self.nodes[node].buffers[&buffer.0].clone();
                data.truncate(bytes as usize);
                (Some(self.new_buffer(to.0, data)), bytes, Vec::new())
            }
        };
        let event = Event::Packet {
            socket: to.1,
            volume,
            packet,
            payload,
            payload_bytes,
            bytes,
            digest,
            intact: true,
        };
        self.queue_packet(to, event);
    }
}
