//! The engine in the place of one captured node, the rest of the capture around it.

use std::collections::{BTreeMap, HashMap, VecDeque};

use udrbd_engine::interface::{
    AttachSettings, Command, Event, NetOptions, Operation, SocketId, SocketLoss, Time,
};
use udrbd_units::{Minor, Sector, VolumeNumber};
use udrbd_wire::{
    AuthResponse, Authentication, BlockReply, ConnectionFeatures, DigestValue, Expected, Incoming, Packet,
};

use crate::captures::session::Received;
use crate::commands::{self, Step};
use crate::compare::{self, Class, Translation};
use crate::node::{Node, Sent, Wish, bytes_range};
use crate::resync::{Answers, Sectors};
use crate::script::{Script, What};
use crate::start::{self, Metadata};

const VOLUME: VolumeNumber = VolumeNumber(0);
/// How long the engine may take for what the captured node did at once.
const PATIENCE: u64 = 60_000_000_000;
/// A ping after so much silence is one of the clock's.
const IDLE_MICROS: i64 = 5_000_000;

/// How a replay ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// At the end of the capture.
    Whole,
    /// At a command the engine does not know.
    Until(String),
}

enum Inbound {
    Captured(usize),
    Made(VolumeNumber, Packet, Vec<u8>),
    Closed,
}

/// A TCP connection the engine takes part in.
pub(crate) struct Wire {
    socket: SocketId,
    inbound: VecDeque<Inbound>,
    pub(crate) is_open: bool,
}

/// What has been captured, and sent by the engine, but not compared yet.
#[derive(Default)]
pub(crate) struct Pending {
    pub(crate) expected: VecDeque<usize>,
    pub(crate) sent: VecDeque<Sent>,
    pub(crate) expected_replies: Vec<usize>,
    /// Pings that only the time that passes makes necessary.
    pub(crate) idle_pings: usize,
    pub(crate) sent_replies: Vec<Sent>,
    pub(crate) sectors: Sectors,
}

pub(crate) struct Replay<'a> {
    pub(crate) script: &'a Script,
    pub(crate) me: usize,
    pub(crate) node: Node,
    position: usize,
    /// What was on the disk of each volume the node has or will have.
    pub(crate) starts: BTreeMap<VolumeNumber, Metadata>,
    pub(crate) translation: Translation,
    pub(crate) wires: BTreeMap<usize, Wire>,
    pub(crate) pending: BTreeMap<usize, Pending>,
    data: Option<usize>,
    meta: Option<usize>,
    answers: Answers,
    /// Numbers in the sender's counter, which both sockets share.
    sequence: HashMap<VolumeNumber, u32>,
    calling: Option<SocketId>,
    listening: bool,
    next_socket: u32,
    options: NetOptions,
    secrets: [String; 2],
    own_challenge: Option<Packet>,
    pings: u32,
    heard: i64,
    steps: VecDeque<Step>,
    step: Vec<u64>,
    pub(crate) commands: Vec<(u64, String, bool)>,
    /// The last command of the capture was for this node.
    is_last_mine: bool,
}

impl<'a> Replay<'a> {
    pub(crate) fn new(script: &'a Script, me: usize) -> Self {
        let mut node = Node::new(me as u8 + 7);
        let mut starts = BTreeMap::new();
        let mut translation = Translation::default();
        for volume in (0..2).map(VolumeNumber) {
            let start = Metadata::read(&script.state, me, volume, "before");
            if start.device_sectors > 0 {
                start.write(&mut node, volume);
                translation.give(&start.generations);
                starts.insert(volume, start);
            }
        }
        let name = script.path.file_name().unwrap().to_string_lossy();
        node.failing = start::failing_sectors(&name, me);
        start::prefill(script, me, &mut node);
        start::foreign_digests(script, me, &mut node);
        Self {
            script,
            me,
            node,
            position: 0,
            starts,
            translation,
            wires: BTreeMap::new(),
            pending: BTreeMap::new(),
            data: None,
            meta: None,
            answers: Answers::default(),
            sequence: HashMap::new(),
            calling: None,
            listening: false,
            next_socket: SocketId::FIRST_ACCEPTED.0,
            options: NetOptions::default(),
            secrets: Default::default(),
            own_challenge: None,
            pings: 0,
            heard: 0,
            steps: VecDeque::new(),
            step: Vec::new(),
            commands: Vec::new(),
            is_last_mine: false,
        }
    }

    /// Plays the capture to its end.
    pub(crate) fn run(&mut self) -> Result<Outcome, String> {
        let outcome = self.play().map_err(|error| self.describe(&error))?;
        if outcome == Outcome::Whole {
            self.judge_end().map_err(|error| self.describe(&error))?;
        }
        Ok(outcome)
    }

    fn play(&mut self) -> Result<Outcome, String> {
        self.prepare()?;
        let last = self.script.items.iter().rposition(|item| !matches!(item.what, What::Command(_)));
        for position in 0..self.script.items.len() {
            self.position = position;
            let item = &self.script.items[position];
            let is_over = Some(position) > last;
            if is_over && self.wires.values().any(|wire| wire.is_open) {
                // What came of this was not captured.
                break;
            }
            match &item.what {
                What::Command(text) if item.at.micros < 0 && text.contains(" attach ") => {}
                What::Command(text) if text.starts_with("/proc/drbd: ") => self.judge_states(text)?,
                What::Command(text) => {
                    self.finish_commands()?;
                    if let Some(unknown) = self.run_command(text)? {
                        return Ok(Outcome::Until(unknown));
                    }
                }
                What::ExitCode(code) => {
                    self.finish_commands()?;
                    if let Some((_, _, success)) = self.commands.last_mut().filter(|_| self.is_last_mine) {
                        *success &= *code == 0;
                    }
                }
                What::Open { connection, by } => self.open(*connection, *by)?,
                What::Packet { connection, from, index } if *from == self.me => {
                    self.expect(*connection, *index)?;
                }
                What::Packet { connection, index, .. } => {
                    self.hear(*connection, Inbound::Captured(*index))?;
                    self.heard = item.at.micros;
                }
                What::Close { connection, by } if *by != self.me => {
                    self.hear(*connection, Inbound::Closed)?;
                }
                What::Close { .. } => {}
            }
        }
        self.catch_up()?;
        self.judge_surplus()?;
        Ok(Outcome::Whole)
    }

    fn prepare(&mut self) -> Result<(), String> {
        let minor = Minor(self.me as u32);
        self.node.command(Command::NewMinor { volume: VOLUME, minor });
        let settings = self.attach_settings(VOLUME);
        self.node.command(Command::Attach { volume: VOLUME, settings });
        let first = self.script.sent_by(self.me).find_map(|(_, received)| match received.packet {
            Packet::State(state) => Some(state),
            _ => None,
        });
        if first.is_some_and(|state| state.user_paused) && !self.script.says("pause-sync") {
            self.node.command(Command::PauseSync { volume: VOLUME });
        }
        self.settle()?;
        let failed: Vec<_> = self.node.replies.values().filter(|result| result.is_err()).collect();
        if failed.is_empty() { Ok(()) } else { Err(format!("{failed:?}")) }
    }

    fn attach_settings(&self, volume: VolumeNumber) -> Box<AttachSettings> {
        Box::new(self.starts[&volume].attach_settings(self.script, self.me, volume))
    }

    fn describe(&self, error: &str) -> String {
        let name = self.script.path.file_stem().unwrap().to_string_lossy();
        let item = self.script.items.get(self.position);
        let log = self.node.log.iter().rev().take(25).rev().cloned().collect::<Vec<_>>().join("\n  ");
        let node = ["A", "B"][self.me];
        format!("{name}, {node}, at {item:?}:\n{error}\nits log ends with\n  {log}")
    }

    // What the capture says.

    fn run_command(&mut self, text: &str) -> Result<Option<String>, String> {
        if text.contains(" connect ") {
            let secret = crate::script::option(text, "shared-secret").unwrap_or_default();
            self.secrets[usize::from(text.contains(" rb "))] = secret.to_owned();
        }
        self.is_last_mine = commands::node_of(text) == Some(self.me);
        if !self.is_last_mine {
            return Ok(None);
        }
        self.catch_up()?;
        if text.starts_with("wio ") {
            self.steps.extend(commands::steps(text));
            self.settle()?;
            return Ok(None);
        }
        let words: Vec<&str> = text.split(' ').collect();
        let volume = commands::volume_of(text);
        let command = match words[1] {
            "connect" => {
                self.options = NetOptions::default();
                commands::net_options(text, &mut self.options);
                Command::Connect(Box::new(self.options.clone()))
            }
            "net-options" => {
                commands::net_options(text, &mut self.options);
                Command::NetOptions(Box::new(self.options.clone()))
            }
            "disk-options" => {
                let mut options = self.node.engine.status().volumes[0].options.clone().unwrap();
                commands::disk_options(text, &mut options);
                Command::DiskOptions { volume, options: Box::new(options) }
            }
            "attach" => {
                let mut settings = *self.attach_settings(volume);
                commands::disk_options(text, &mut settings.options);
                Command::Attach { volume, settings: Box::new(settings) }
            }
            "new-minor" if self.starts.contains_key(&VolumeNumber(words[4].parse().unwrap())) => {
                let volume = VolumeNumber(words[4].parse().unwrap());
                Command::NewMinor { volume, minor: Minor(words[3].parse().unwrap()) }
            }
            "detach" => Command::Detach { volume, force: false },
            "disconnect" => Command::Disconnect { force: text.ends_with("--force") },
            "primary" => Command::Primary { volume, force: text.ends_with("--force") },
            "secondary" => Command::Secondary { volume, held_open: false },
            "invalidate" => Command::Invalidate { volume },
            "invalidate-remote" => Command::InvalidateRemote { volume },
            "pause-sync" => Command::PauseSync { volume },
            "resume-sync" => Command::ResumeSync { volume },
            "new-current-uuid" => Command::NewCurrentUuid { volume, clear_bitmap: true },
            "verify" => {
                let option = |name| {
                    let text = words.iter().find_map(|word| word.strip_prefix(name))?;
                    Some(Sector(text.trim_end_matches('s').parse().unwrap()))
                };
                Command::Verify { volume, start: option("--start="), stop: option("--stop=") }
            }
            "resize" => {
                let size = words.iter().find_map(|word| word.strip_prefix("--size=")?.strip_suffix('s'));
                let request = udrbd_engine::interface::ResizeRequest {
                    size_sectors: size.map_or(0, |size| size.parse().unwrap()),
                    assume_clean: words.contains(&"--assume-clean"),
                    assume_peer_has_space: words.contains(&"--assume-peer-has-space"),
                    ..Default::default()
                };
                Command::Resize { volume, request }
            }
            other => return Ok(Some(other.to_owned())),
        };
        let id = self.node.command(command);
        self.commands.push((id, text.to_owned(), true));
        self.settle()?;
        Ok(None)
    }

    /// The commands of a capture were given one after the other.
    fn finish_commands(&mut self) -> Result<(), String> {
        self.catch_up()?;
        self.until("end of the last command", |replay| {
            let replied = |(id, _, _): &(u64, String, bool)| replay.node.replies.contains_key(id);
            let is_writing = replay.step.iter().any(|id| !replay.node.completions.contains_key(id));
            replay.commands.iter().all(replied) && replay.steps.is_empty() && !is_writing
        })
    }

    fn open(&mut self, connection: usize, by: usize) -> Result<(), String> {
        self.catch_up()?;
        let socket = if by == self.me {
            self.until("a call", |replay| replay.calling.is_some())?;
            let socket = self.calling.take().unwrap();
            self.node.events.push_back(Event::Connected(socket));
            socket
        } else {
            self.refuse_call();
            self.until("listening", |replay| replay.listening)?;
            let socket = SocketId(self.next_socket);
            self.next_socket += 1;
            self.node.events.push_back(Event::Accepted(socket));
            socket
        };
        let wire = Wire { socket, inbound: VecDeque::new(), is_open: true };
        self.wires.insert(connection, wire);
        self.settle()
    }

    fn refuse_call(&mut self) {
        if let Some(socket) = self.calling.take() {
            let loss = SocketLoss::ConnectFailed(111);
            self.node.events.push_back(Event::SocketDown { socket, loss });
        }
    }

    /// Whether the next connection of the capture that was accepted is one this node made.
    fn is_caller_next(&self) -> bool {
        let next = self.script.items[self.position..].iter().skip(1).find_map(|item| match item.what {
            What::Open { by, .. } => Some(by),
            _ => None,
        });
        next == Some(self.me)
    }

    fn expect(&mut self, connection: usize, index: usize) -> Result<(), String> {
        let received = &self.script.packets[connection][self.me][index];
        self.note_socket(connection, &received.packet);
        if matches!(received.packet, Packet::Ping) && received.at.micros - self.heard > IDLE_MICROS {
            self.pending.entry(connection).or_default().idle_pings += 1;
            return Ok(());
        }
        let pending = self.pending.entry(connection).or_default();
        match compare::class(&received.packet) {
            Class::Ordered => pending.expected.push_back(index),
            Class::Optional => {}
            Class::Request | Class::ResyncAck => {
                pending.sectors.expect(received.incoming.volume, &received.packet);
            }
            Class::Reply => pending.expected_replies.push(index),
        }
        self.compare_all()
    }

    fn note_socket(&mut self, connection: usize, packet: &Packet) {
        match packet {
            Packet::InitialData => self.data = Some(connection),
            Packet::InitialMeta => {
                self.meta = Some(connection);
                self.sequence.clear();
                let peer = 1 - self.me;
                let both = [self.data, self.meta].into_iter().flatten();
                self.answers = Answers::collect(both.flat_map(|c| &self.script.packets[c][peer]));
            }
            _ => {}
        }
    }

    fn hear(&mut self, connection: usize, inbound: Inbound) -> Result<(), String> {
        self.catch_up()?;
        if let Inbound::Captured(index) = inbound {
            let received = &self.script.packets[connection][1 - self.me][index];
            self.note_socket(connection, &received.packet);
            let is_resync = matches!(
                received.packet,
                Packet::ResyncDataReply(_) | Packet::ResyncDeallocated(_) | Packet::ResyncIsInSync(_)
            );
            if is_resync {
                // Sent when the engine asks.
                return Ok(());
            }
        }
        if let Some(wire) = self.wires.get_mut(&connection).filter(|wire| wire.is_open) {
            wire.inbound.push_back(inbound);
        }
        self.settle()
    }

    // Time.

    fn satisfied(&self) -> bool {
        self.pending.values().all(|pending| {
            pending.expected.is_empty()
                && pending.expected_replies.is_empty()
                && pending.sectors.missing().is_none()
        })
    }

    /// Lets the engine say what the captured node had said by now.
    pub(crate) fn catch_up(&mut self) -> Result<(), String> {
        let result = self.until("", Self::satisfied);
        result.map_err(|error| if error.is_empty() { self.missing() } else { error })
    }

    fn missing(&self) -> String {
        let mut text = String::new();
        for (connection, pending) in &self.pending {
            let all = &self.script.packets[*connection][self.me];
            let ordered = pending.expected.front().map(|index| &all[*index]);
            let reply = pending.expected_replies.first().map(|index| &all[*index]);
            for received in [ordered, reply].into_iter().flatten() {
                text += &format!("not sent on connection {}: {:?}\n", connection + 1, received.packet);
            }
            text.extend(pending.sectors.missing().map(|missing| format!("not sent: {missing}\n")));
            text.extend(pending.sent.front().map(|sent| format!("sent {:?}\n", sent.packet)));
        }
        text + &format!("{:?}", self.node.engine.status())
    }

    pub(crate) fn until(&mut self, what: &str, done: impl Fn(&Self) -> bool) -> Result<(), String> {
        self.settle()?;
        let limit = Time(self.node.now.0 + PATIENCE);
        while !done(self) {
            let next = self.node.engine.next_timeout().filter(|next| *next <= limit);
            let Some(next) = next else {
                return Err(if what.is_empty() { String::new() } else { format!("no {what}") });
            };
            self.node.now = self.node.now.max(next);
            self.node.events.push_back(Event::Timeout);
            self.settle()?;
        }
        Ok(())
    }

    /// Goes on until nothing happens without time passing.
    fn settle(&mut self) -> Result<(), String> {
        loop {
            let mut busy = self.node.step();
            while let Some(wish) = self.node.wishes.pop_front() {
                self.grant(wish)?;
            }
            if !busy {
                busy = self.deliver()? || self.next_step();
            }
            if !busy {
                return self.compare_all();
            }
        }
    }

    // What the engine wants.

    fn grant(&mut self, wish: Wish) -> Result<(), String> {
        match wish {
            Wish::Listen(listening) => self.listening = listening,
            Wish::Connect(socket) => {
                self.calling = Some(socket);
                if !self.is_caller_next() {
                    self.refuse_call();
                }
            }
            Wish::Close(socket) => {
                if self.calling == Some(socket) {
                    self.calling = None;
                }
                for wire in self.wires.values_mut().filter(|wire| wire.socket == socket) {
                    wire.is_open = false;
                    wire.inbound.clear();
                }
            }
            Wish::Send(socket, sent) => return self.sent(socket, sent),
        }
        Ok(())
    }

    fn sent(&mut self, socket: SocketId, mut sent: Sent) -> Result<(), String> {
        let Some((connection, _)) = self.wires.iter().find(|(_, w)| w.socket == socket && w.is_open) else {
            return Ok(());
        };
        let connection = *connection;
        if let Some(number) = compare::sequence(&mut sent.packet).copied() {
            let last = self.sequence.entry(sent.volume).or_default();
            *last += 1;
            if number.0 != *last {
                return Err(format!("number {} where {last} is due: {:?}", number.0, sent.packet));
            }
        }
        if let Packet::DataRequest(request) = &sent.packet
            && request.block_id.0 >> 48 == 0xfffe
        {
            // The engine makes sure that the peer was not Ahead; the original knows no better.
            let reply = BlockReply { sector: request.sector, block_id: request.block_id };
            let made = Inbound::Made(sent.volume, Packet::DataReply(reply), vec![0; request.size as usize]);
            self.wires.get_mut(&connection).ok_or("a read without a connection")?.inbound.push_back(made);
            return Ok(());
        }
        match &sent.packet {
            Packet::Ping => self.pings += 1,
            Packet::AuthChallenge(_) => self.own_challenge = Some(sent.packet.clone()),
            _ => {}
        }
        let pending = self.pending.entry(connection).or_default();
        match compare::class(&sent.packet) {
            Class::Ordered => pending.sent.push_back(sent),
            Class::Optional => {}
            Class::ResyncAck => pending.sectors.found(sent.volume, &sent.packet),
            Class::Reply => pending.sent_replies.push(sent),
            Class::Request => {
                pending.sectors.found(sent.volume, &sent.packet);
                self.check_digest(connection, &sent)?;
                self.answer(&sent)?;
            }
        }
        Ok(())
    }

    /// Where the captured node asked for the same range, it sent the same digest.
    fn check_digest(&self, connection: usize, sent: &Sent) -> Result<(), String> {
        let Packet::ChecksumResyncRequest(request) = &sent.packet else { return Ok(()) };
        let same = self.script.packets[connection][self.me].iter().find(|received| match &received.packet {
            Packet::ChecksumResyncRequest(other) => other.range() == request.range(),
            _ => false,
        });
        match same {
            Some(received) if received.digest != sent.digest => Err(format!("digest of {request:?} differs")),
            _ => Ok(()),
        }
    }

    fn answer(&mut self, sent: &Sent) -> Result<(), String> {
        let (Packet::ResyncDataRequest(block)
        | Packet::ResyncThinRequest(block)
        | Packet::ChecksumResyncRequest(block)) = &sent.packet
        else {
            return Ok(());
        };
        let own = self.node.load(sent.volume, block.sector.0, block.size as usize);
        let (packet, data) = self.answers.answer(sent.volume, &sent.packet, &own)?;
        let on_meta = matches!(packet, Packet::ResyncIsInSync(_));
        let connection = if on_meta { self.meta } else { self.data };
        let wire = connection.and_then(|connection| self.wires.get_mut(&connection));
        let wire = wire.filter(|wire| wire.is_open).ok_or("a request without a connection")?;
        wire.inbound.push_back(Inbound::Made(sent.volume, packet, data));
        Ok(())
    }

    // What the peer says.

    fn deliver(&mut self) -> Result<bool, String> {
        for connection in self.wires.keys().copied().collect::<Vec<_>>() {
            let wire = &self.wires[&connection];
            let Some(front) = wire.inbound.front() else { continue };
            let reception = self.node.engine.reception(wire.socket);
            if reception.is_none() && !matches!(front, Inbound::Closed) {
                continue;
            }
            let socket = wire.socket;
            let inbound = self.wires.get_mut(&connection).and_then(|wire| wire.inbound.pop_front()).unwrap();
            let event = match inbound {
                Inbound::Closed => Some(self.close(connection, SocketLoss::Closed)),
                Inbound::Made(volume, packet, data) => {
                    let payload_bytes = data.len() as u32;
                    let payload = (!data.is_empty()).then(|| self.node.buffer(data));
                    Some(packet_event(socket, volume, packet, payload, payload_bytes))
                }
                Inbound::Captured(index) => {
                    let received = &self.script.packets[connection][1 - self.me][index];
                    self.receive(connection, received, reception.unwrap())?
                }
            };
            self.node.events.extend(event);
            return Ok(true);
        }
        Ok(false)
    }

    fn close(&mut self, connection: usize, loss: SocketLoss) -> Event {
        let wire = self.wires.get_mut(&connection).unwrap();
        wire.is_open = false;
        wire.inbound.clear();
        Event::SocketDown { socket: wire.socket, loss }
    }

    /// Takes the bytes as a runtime does.
    fn receive(
        &mut self,
        connection: usize,
        received: &Received,
        (expected, reception): (Expected, udrbd_wire::Reception),
    ) -> Result<Option<Event>, String> {
        if matches!(received.packet, Packet::PingAck) {
            if self.pings == 0 {
                return Ok(None);
            }
            self.pings -= 1;
        }
        let header = Incoming::decode_header(&received.bytes, expected, &reception);
        let (incoming, header_bytes) = match header {
            Ok(found) => found.expect("a whole header"),
            Err(error) => return Ok(Some(self.close(connection, SocketLoss::Malformed(error)))),
        };
        let body = &received.bytes[header_bytes..];
        let (structure, rest) = body.split_at(incoming.packet_bytes);
        let (digest, data) = rest.split_at(incoming.digest_bytes);
        let packet = incoming.decode(structure, reception.dialect).map_err(|error| error.to_string())?;
        let packet = self.as_to_the_engine(&packet)?;
        let is_bitmap = matches!(packet, Packet::Bitmap | Packet::CompressedBitmap(_));
        let carries = matches!(packet, Packet::Data(_) | Packet::DataReply(_) | Packet::ResyncDataReply(_));
        let integrity = reception.integrity.filter(|_| carries);
        let intact = integrity.is_none_or(|algorithm| algorithm.digest(data).as_bytes() == digest);
        let payload = (!is_bitmap && !data.is_empty()).then(|| self.node.buffer(data.to_vec()));
        Ok(Some(Event::Packet {
            socket: self.wires[&connection].socket,
            volume: incoming.volume,
            packet,
            payload,
            payload_bytes: if is_bitmap { 0 } else { data.len() as u32 },
            bytes: if is_bitmap { data.to_vec() } else { Vec::new() },
            digest: if integrity.is_none() {
                DigestValue::from_bytes(digest).filter(|_| !digest.is_empty())
            } else {
                None
            },
            intact,
        }))
    }

    fn as_to_the_engine(&mut self, packet: &Packet) -> Result<Packet, String> {
        match packet {
            // A proxy may have changed it before or behind the place of the capture.
            Packet::ConnectionFeatures(features) => Ok(Packet::ConnectionFeatures(ConnectionFeatures {
                protocol_max: self.script.dialect.version,
                features: self.script.dialect.features,
                ..*features
            })),
            // It proves knowledge of a secret on a challenge that was not the engine's.
            Packet::AuthResponse(response) => Ok(Packet::AuthResponse(Box::new(self.response(response)))),
            other => self.translation.inbound(other),
        }
    }

    fn response(&self, captured: &AuthResponse) -> AuthResponse {
        let algorithm = self.options.cram_hmac_alg.parse().unwrap();
        let secret = self.secrets[1 - self.me].as_bytes();
        let authentication = Authentication::new(algorithm, secret).unwrap();
        let challenge = |packet: &Packet| match packet {
            Packet::AuthChallenge(challenge) => Some((**challenge).clone()),
            _ => None,
        };
        let theirs =
            self.script.packets[self.data.unwrap()][self.me].iter().find_map(|r| challenge(&r.packet));
        assert_eq!(authentication.respond(&theirs.unwrap()), *captured, "the peer's secret");
        authentication.respond(&challenge(self.own_challenge.as_ref().unwrap()).unwrap())
    }

    // What clients do.

    fn next_step(&mut self) -> bool {
        if self.step.iter().any(|id| !self.node.completions.contains_key(id)) {
            return false;
        }
        for id in self.step.drain(..) {
            assert_eq!(self.node.completions[&id], Ok(()));
        }
        let Some(step) = self.steps.pop_front() else { return false };
        let step = self.as_offered(step);
        for piece in commands::pieces(&step, self.script.dialect.request_bytes_max()) {
            let data = match (piece.operation, piece.value) {
                (Operation::Write { .. }, Some(value)) => vec![value; piece.bytes as usize],
                (Operation::Write { .. }, None) => self.captured_data(piece.offset / 512),
                (_, _) => vec![0; piece.bytes as usize],
            };
            let range = bytes_range(piece.offset, piece.bytes);
            self.step.push(self.node.submit(piece.volume, piece.operation, range, data));
        }
        true
    }

    /// A block layer writes zeroes itself where the device does not offer it.
    fn as_offered(&self, step: Step) -> Step {
        let is_zeroes = matches!(step.operation, Operation::WriteZeroes { .. });
        if is_zeroes && !self.node.engine.offers_write_zeroes() {
            let operation = Operation::Write { fua: false, preflush: false };
            return Step { operation, value: Some(0), ..step };
        }
        step
    }

    /// What the captured node wrote to a sector next.
    fn captured_data(&self, sector: u64) -> Vec<u8> {
        let items = &self.script.items[self.position..];
        let data = items.iter().find_map(|item| match item.what {
            What::Packet { connection, from, index } if from == self.me => {
                let received = &self.script.packets[connection][from][index];
                let is_it = matches!(&received.packet, Packet::Data(write) if write.sector.0 == sector);
                is_it.then(|| received.payload.clone())
            }
            _ => None,
        });
        data.expect("a write of unknown content that was never sent")
    }

    // The comparison.

    fn compare_all(&mut self) -> Result<(), String> {
        for (connection, pending) in &mut self.pending {
            let all = &self.script.packets[*connection][self.me];
            while let (Some(index), Some(_)) = (pending.expected.front(), pending.sent.front()) {
                let captured = &all[*index];
                let sent = pending.sent.pop_front().unwrap();
                pending.expected.pop_front();
                self.translation.compare(captured, &sent)?;
            }
            let translation = &mut self.translation;
            pending.expected_replies.retain(|index| {
                let same = |sent: &Sent| translation.compare(&all[*index], sent).is_ok();
                let found = pending.sent_replies.iter().position(same);
                found.map(|found| pending.sent_replies.remove(found)).is_none()
            });
        }
        Ok(())
    }
}

fn packet_event(
    socket: SocketId,
    volume: VolumeNumber,
    packet: Packet,
    payload: Option<udrbd_engine::interface::Buffer>,
    payload_bytes: u32,
) -> Event {
    Event::Packet {
        socket,
        volume,
        packet,
        payload,
        payload_bytes,
        bytes: Vec::new(),
        digest: None,
        intact: true,
    }
}
