//! The engine thread of a resource: one ring that carries its disks, its sockets, its clients and its mail, and the
//! engine that decides.
//!
//! One turn: wait; tell the engine everything that happened, in order, doing what it wants in order; then let it finish
//! the turn, and send what gathered with one call per socket.
//!
//! Nothing here waits, locks or allocates for a write once warm. What is to be said to people goes through the
//! outbox to the control thread.

mod blocks;
mod clients;
mod disks;
mod outbox;
mod peer;
mod receive;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use udrbd_engine::Engine;
use udrbd_engine::interface::{
    Action, Actions, Buffer, Command, Event, Failure, Report, SocketId, SocketLoss, Time, Token,
};
use udrbd_engine::state::StateChangeResult;
use udrbd_runtime::mailbox::{Received, Receiver, Sender};
use udrbd_runtime::{BufferHandle, Completion, Errno, Ring};
use udrbd_units::{Role, VolumeNumber};

use crate::messages::{EngineStatus, FromEngine, REGIONS_MAX, ToEngine};
use blocks::Blocks;
use clients::Clients;
use disks::Disks;
use outbox::Outbox;
use peer::Network;

use crate::undo::Job;

/// How long a thread that was told to end waits for requests in flight.
const STOP_PATIENCE: Duration = Duration::from_secs(5);
/// How long what is shown of a busy engine may be old.
const SHOWN_AGE_MAX: Duration = Duration::from_millis(100);
/// How long the end of a turn is put off for the next request of a client that has just been answered. What the
/// engine holds back for the end of the turn, a barrier, then leaves together with that request instead of by itself:
/// two packets, two system calls and two wake-ups less for each write of a client that writes one at a time.
const TURN_HELD: Duration = Duration::from_millis(2);
/// No memory (states spec 19.2).
const NO_MEMORY: u32 = 122;
/// Disk already configured (states spec 19.2).
const DISK_CONFIGURED: u32 = 124;

/// What a completion of the ring is for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Tag {
    /// There is mail.
    Mail,
    /// Somebody calls.
    Accept,
    /// A call to the peer was answered.
    Connected(SocketId),
    /// Input from the peer.
    PeerReceive(SocketId),
    /// Room for output to the peer.
    PeerWritable(SocketId),
    /// Input from a client.
    ClientReceive(u32),
    /// Room for output to a client.
    ClientWritable(u32),
    /// A request of the kernel to the block device of a volume.
    Block {
        /// Which volume.
        volume: VolumeNumber,
        /// Which slot.
        tag: u16,
    },
    /// A read of a backing device, by its place in the table.
    Read(u32),
    /// Anything else on a backing device.
    Write(Token),
    /// A read of metadata, by its place in the table.
    MetadataRead(u32),
    /// A write of metadata, by its place in the table.
    MetadataWrite(u32),
}

const fn handle_of(buffer: Buffer) -> BufferHandle {
    BufferHandle::from_raw(buffer.0)
}

const fn buffer_of(handle: BufferHandle) -> Buffer {
    Buffer(handle.into_raw())
}

/// See the module's text.
pub(crate) struct Reactor {
    ring: Ring<Tag>,
    engine: Engine,
    origin: Instant,
    now: Time,
    actions: Actions,
    /// Room for completions of operations done inline; empty between calls.
    inline: Vec<Completion<Tag>>,
    /// What came at once of actions; told to the engine after them.
    consequences: VecDeque<Event>,
    disks: Disks,
    network: Network,
    clients: Clients,
    blocks: Blocks,
    /// Answers to the kernel wait for buffers: how many had been freed when they were tried last.
    blocks_wait: Option<u64>,
    outbox: Outbox,
    mail: Receiver<ToEngine>,
    /// The status is to be told at the end of the turn.
    publish: bool,
    /// When the status was told last.
    published_at: Time,
    /// Something has happened since.
    stale: bool,
    /// The end of the engine's turn is put off until then.
    turn_held_until: Option<Time>,
    /// How many buffers had been freed when those that wait for one tried last.
    freed_at_retry: u64,
    answered: u64,
    /// The thread is to end, at the latest then.
    stop_by: Option<Time>,
}

impl Reactor {
    pub(crate) fn new(
        mut ring: Ring<Tag>,
        engine: Engine,
        mail: Receiver<ToEngine>,
        control: Sender<FromEngine>,
    ) -> Self {
        let disks = Disks::new(&mut ring);
        Self {
            ring,
            engine,
            origin: Instant::now(),
            now: Time(0),
            actions: Vec::with_capacity(256),
            inline: Vec::with_capacity(256),
            consequences: VecDeque::new(),
            disks,
            network: Network::default(),
            clients: Clients::default(),
            blocks: Blocks::default(),
            blocks_wait: None,
            outbox: Outbox::new(control),
            mail,
            publish: true,
            published_at: Time(0),
            stale: false,
            turn_held_until: None,
            freed_at_retry: 0,
            answered: 0,
            stop_by: None,
        }
    }

    /// Runs until told to stop, or until the control thread is gone.
    ///
    /// # Errors
    /// The ring is unusable.
    pub(crate) fn run(&mut self) -> Result<(), Errno> {
        // Mail may be there already: arming takes its wake-up back.
        self.take_mail();
        let mut completions = Vec::with_capacity(4096);
        loop {
            self.finish_turn(&mut completions)?;
            if self.may_end() {
                return Ok(());
            }
            let timeout = self.timeout();
            self.ring.wait(timeout, &mut completions)?;
            self.read_clock();
            for completion in completions.drain(..) {
                self.completed(completion);
            }
            if self.engine.next_timeout().is_some_and(|time| time <= self.now) {
                self.feed(Event::Timeout);
            }
            self.network_timeouts();
        }
    }

    /// Whether it has ended with block devices that are left to another daemon.
    pub(crate) const fn leaves_block_devices(&self) -> bool {
        self.blocks.are_left()
    }

    fn read_clock(&mut self) {
        let elapsed = self.origin.elapsed().as_nanos() as u64;
        self.now = self.now.max(Time(elapsed));
    }

    fn timeout(&self) -> Option<Duration> {
        let waiting = self.disks.is_waiting() || self.network.is_waiting();
        let freed = waiting && self.ring.buffers().freed() != self.freed_at_retry;
        let blocks_freed = self.blocks_wait.is_some_and(|at| at != self.ring.buffers().freed());
        if freed || blocks_freed || self.clients.want_another_turn(&self.ring) {
            return Some(Duration::ZERO);
        }
        let refresh = self.stale.then(|| self.published_at.after(SHOWN_AGE_MAX));
        let times = [
            refresh,
            self.turn_held_until,
            self.engine.next_timeout(),
            self.network.next_timeout(),
            self.outbox.next_timeout(),
            self.stop_by,
        ];
        let next = times.into_iter().flatten().min()?;
        let elapsed = Time(self.origin.elapsed().as_nanos() as u64);
        Some(next.since(elapsed))
    }

    fn completed(&mut self, completion: Completion<Tag>) {
        let result = completion.result;
        match completion.token {
            Tag::Mail => self.take_mail(),
            Tag::Accept => self.accept(),
            Tag::Connected(socket) => self.call_answered(socket, result),
            Tag::PeerReceive(socket) => self.peer_received(socket, result),
            Tag::PeerWritable(socket) => self.peer_writable(socket, result),
            Tag::ClientReceive(client) => self.client_received(client, result),
            Tag::ClientWritable(client) => self.clients.writable(&mut self.ring, client, result),
            Tag::Block { volume, tag } => self.block_fetched(volume, tag, result),
            Tag::Read(slot) => self.read_done(slot, result),
            Tag::Write(token) => {
                let result = disks::io_result(result);
                self.feed(Event::WriteDone { token, result });
            }
            Tag::MetadataRead(slot) => self.metadata_read(slot, result),
            Tag::MetadataWrite(slot) => self.metadata_written(slot, result),
        }
    }

    /// Tells the engine, and does what it wants, until nothing comes of it at once.
    fn feed(&mut self, event: Event) {
        self.stale = true;
        self.engine.handle(self.now, event, &mut self.actions);
        self.perform_all();
        self.feed_consequences();
    }

    fn feed_consequences(&mut self) {
        while let Some(event) = self.consequences.pop_front() {
            self.engine.handle(self.now, event, &mut self.actions);
            self.perform_all();
        }
    }

    fn perform_all(&mut self) {
        let mut actions = std::mem::take(&mut self.actions);
        for action in actions.drain(..) {
            self.perform(action);
        }
        self.actions = actions;
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::Read { .. }
            | Action::Write { .. }
            | Action::Flush { .. }
            | Action::Discard { .. }
            | Action::ReadMetadata { .. }
            | Action::WriteMetadata { .. } => self.perform_disk(action),
            Action::BeginUndo { token, volume, size } => self.keep(volume, token, Job::Begin { token, size }),
            Action::KeepOld { token, volume, first, blocks } => {
                self.keep(volume, token, Job::Keep { token, first, blocks });
            }
            Action::CloseDisk { volume } => self.disks.close(volume),
            Action::Listen => self.listen(),
            Action::StopListening => self.network.stop_listening(&mut self.ring),
            Action::Connect { socket, timeout } => self.call(socket, timeout),
            Action::Close { socket, abort } => {
                let now = self.now;
                self.network.close(&mut self.ring, socket, abort, now);
            }
            Action::Send { socket, dialect, volume, packet, payload, integrity, digest, sent } => {
                if let Some(peer) = self.network.socket(socket) {
                    let tail = peer::Tail { payload, integrity, digest, sent };
                    peer.queue(&mut self.ring, dialect, volume, &packet, tail);
                }
            }
            Action::Complete { request, result, data } => {
                self.turn_held_until.get_or_insert(self.now.after(TURN_HELD));
                let (ring, from) = (&mut self.ring, data.map(handle_of));
                if blocks::is_block_request(request) {
                    let (_, limit) = self.engine.request_limits();
                    let next = if result.is_ok() { self.blocks.next_piece(request, limit) } else { None };
                    match next {
                        Some(piece) => self.consequences.push_back(Event::Request(piece)),
                        None => self.blocks.complete(ring, request, result, from),
                    }
                } else {
                    self.clients.complete(ring, request, result, from);
                }
                if let Some(data) = data {
                    self.ring.release(handle_of(data));
                }
            }
            Action::Release(buffer) => self.ring.release(handle_of(buffer)),
            Action::Reply { command, result } => {
                if result.is_err() {
                    self.disks.attach_failed(command);
                }
                self.publish_now();
                self.outbox.push(FromEngine::Reply { id: command, result });
            }
            Action::RunHandler { handler, name, volume } => {
                self.publish_now();
                self.outbox.push(FromEngine::RunHandler { handler, name, volume });
            }
            Action::Device { volume, role, size, .. } => {
                self.publish = true;
                self.clients.device_changed(&mut self.ring, volume, role == Role::Primary, size);
            }
            Action::Report(Report::Log { level, volume, text }) => {
                self.outbox.push(FromEngine::Log { level, volume, text });
            }
            Action::Report(Report::StateChanged) => self.publish = true,
            // Whoever shows progress asks for it.
            Action::Report(Report::Progress) => {}
        }
    }

    fn finish_turn(&mut self, completions: &mut Vec<Completion<Tag>>) -> Result<(), Errno> {
        self.resume_clients();
        let mut begun = false;
        loop {
            self.freed_at_retry = self.ring.buffers().freed();
            self.retry_waiting();
            self.pump_sockets();
            if self.turn_held_until.is_none_or(|until| until <= self.now) {
                self.turn_held_until = None;
                self.engine.finish_turn(self.now, &mut self.actions);
                self.perform_all();
            }
            self.write_gathered();
            let told = !self.consequences.is_empty();
            self.feed_consequences();
            if self.finish_inline() || told {
                continue;
            }
            if !begun && self.ring.has_queued_transfers() && self.answers_are_queued() {
                begun = true;
                self.begin_transfers(completions)?;
                continue;
            }
            if !self.flush_sockets(false) {
                break;
            }
        }
        self.publish |= self.clients.flush(&mut self.ring);
        let waiting = self.blocks.flush(&mut self.ring);
        self.blocks_wait = waiting.then(|| self.ring.buffers().freed());
        let refresh = self.stale && self.now >= self.published_at.after(SHOWN_AGE_MAX);
        if self.publish || refresh {
            self.publish_now();
        }
        self.outbox.flush(self.now);
        Ok(())
    }

    /// Lets the disks begin before answers leave: what a disk does at once is answered together with what was to be
    /// answered anyway, a write with the barrier before it. That is a packet and two wake-ups less.
    fn begin_transfers(&mut self, completions: &mut Vec<Completion<Tag>>) -> Result<(), Errno> {
        // Payload has the longest way to go.
        self.flush_sockets(true);
        self.ring.wait(Some(Duration::ZERO), completions)?;
        for completion in completions.drain(..) {
            self.completed(completion);
        }
        Ok(())
    }

    /// Takes up what was done without the ring, so that its answers leave with everything else of this turn.
    fn finish_inline(&mut self) -> bool {
        let mut completions = std::mem::take(&mut self.inline);
        let any = self.ring.take_inline(&mut completions);
        for completion in completions.drain(..) {
            self.completed(completion);
        }
        self.inline = completions;
        any
    }

    /// A reply or a handler comes after the status it goes with.
    fn publish_now(&mut self) {
        self.publish = false;
        self.stale = false;
        self.published_at = self.now;
        self.outbox.push(FromEngine::Status(Box::new(EngineStatus {
            answered: self.answered,
            resource: self.engine.status(),
            open: self.clients.open_volumes(),
            congested: self.network.is_congested(),
        })));
    }

    fn may_end(&self) -> bool {
        let idle = self.clients.are_idle() && self.blocks.are_idle();
        self.stop_by.is_some_and(|by| by <= self.now || idle) && self.outbox.is_empty()
    }

    fn take_mail(&mut self) {
        self.mail.arm(&mut self.ring, Tag::Mail);
        loop {
            match self.mail.take() {
                Received::Message(message) => self.mail(message),
                Received::Empty => return,
                Received::Closed => {
                    self.stop_by = Some(self.now);
                    return;
                }
            }
        }
    }

    fn mail(&mut self, message: ToEngine) {
        match message {
            ToEngine::Command { id, command } => {
                let command = self.with_openers(command);
                if matches!(command, Command::Down) && self.clients.any() {
                    let code = StateChangeResult::DeviceInUse;
                    let result = Err(Failure::State { code, info: vec!["failed to demote".to_owned()] });
                    self.outbox.push(FromEngine::Reply { id, result });
                    return;
                }
                if let Command::Resize { volume, .. } = command {
                    self.look_at_size(volume);
                }
                self.feed(Event::Command { id, command });
            }
            ToEngine::Attach { id, volume, settings, disks } => {
                if !self.disks.install(id, volume, *disks) {
                    let result = Err(Failure::configuration(DISK_CONFIGURED));
                    self.outbox.push(FromEngine::Reply { id, result });
                    return;
                }
                self.feed(Event::Command { id, command: Command::Attach { volume, settings } });
            }
            ToEngine::Connect { id, options, endpoint } => {
                // An engine that is connected already refuses, and goes on with what it has.
                if self.engine.status().connection.options.is_none() {
                    self.network.set_endpoint(endpoint);
                }
                self.feed(Event::Command { id, command: Command::Connect(options) });
            }
            ToEngine::NetOptions { id, options, sockets } => {
                self.network.set_socket_options(sockets);
                self.feed(Event::Command { id, command: Command::NetOptions(options) });
            }
            ToEngine::Client { volume, socket, negotiated } => {
                self.publish = true;
                let serving = self.engine.is_serving(volume);
                let limits = self.engine.request_limits();
                self.clients.welcome(&mut self.ring, volume, socket, &negotiated, serving, limits);
            }
            ToEngine::ServeBlock { id, volume, source } => {
                let served = self.blocks.serve(&mut self.ring, volume, source);
                let result = served.map_err(|errno| Failure::Configuration {
                    code: NO_MEMORY,
                    info: vec![format!("the queue of the block device: {errno}")],
                });
                self.outbox.push(FromEngine::Reply { id, result });
            }
            ToEngine::Kept { token, result } => {
                self.feed(Event::WriteDone { token, result: disks::kept_result(result) });
            }
            ToEngine::HandlerExit { handler, status } => self.feed(Event::HandlerExit { handler, status }),
            ToEngine::ChangedRegions(answer) => {
                let volumes = self.engine.status().volumes;
                let regions = volumes.iter().filter_map(|volume| {
                    let regions = self.engine.changed_regions(volume.volume, REGIONS_MAX)?;
                    Some((volume.volume, regions))
                });
                // Whoever asked may have gone.
                let _ = answer.send(regions.collect());
            }
            ToEngine::Publish(number) => {
                self.answered = self.answered.max(number);
                self.publish = true;
            }
            ToEngine::Stop => {
                self.stop_by.get_or_insert(self.now.after(STOP_PATIENCE));
                self.clients.hang_up_all(&mut self.ring);
                self.blocks.leave();
            }
        }
    }

    /// Who has the device open is known here only.
    fn with_openers(&self, command: Command) -> Command {
        match command {
            Command::Secondary { volume, .. } => {
                Command::Secondary { volume, held_open: self.clients.is_open(volume) }
            }
            other => other,
        }
    }

    /// A socket is gone.
    fn socket_lost(&mut self, socket: SocketId, loss: SocketLoss) {
        if self.network.drop_socket(&mut self.ring, socket) {
            self.feed(Event::SocketDown { socket, loss });
        }
    }
}

#[cfg(test)]
mod tests {
    use udrbd_engine::interface::ResourceOptions;
    use udrbd_runtime::mailbox::mailbox;
    use udrbd_runtime::{PoolOptions, RingOptions};

    use super::*;

    #[test]
    fn mail_from_before_it_runs_is_not_slept_over() {
        let (mail, inbox) = mailbox(4).unwrap();
        let (outbox, events) = mailbox(4).unwrap();
        mail.send(ToEngine::Publish(7)).unwrap();
        mail.send(ToEngine::Stop).unwrap();
        let (ended, outcome) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let pool = PoolOptions { bytes: 1 << 20, lock: false };
            let ring = Ring::new(RingOptions { pool, ..RingOptions::default() }).unwrap();
            let engine = Engine::new(ResourceOptions::default(), [1; 32]);
            ended.send(Reactor::new(ring, engine, inbox, outbox).run()).unwrap();
        });
        // It hangs where it sleeps over it.
        assert_eq!(outcome.recv_timeout(Duration::from_secs(60)).unwrap(), Ok(()));
        let Received::Message(FromEngine::Status(status)) = events.take() else { panic!("no status") };
        assert_eq!(status.answered, 7);
        drop(mail);
    }
}
