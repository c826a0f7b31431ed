//! The engine itself: where events come in and actions go out.

use std::collections::{HashMap, VecDeque};

use udrbd_units::{DiskState, Role, VolumeNumber};
use udrbd_wire as wire;

use crate::change::After;
use crate::command::Running;
use crate::connection::{Connection, Inbound};
use crate::disk::{Io, Purpose};
use crate::handlers::Reason;
use crate::interface::{
    Action, Actions, CommandId, CommandResult, Duration, Event, HandlerId, Level, MetadataBlock, Report,
    ResourceOptions, Time, Token,
};
use crate::peer::PeerRequest;
use crate::random::Random;
use crate::request::Request;
use crate::slab::{Key, Slab};
use crate::state::Suspension;
use crate::volume::Volume;

/// Lines that may be said rarely, within the interval.
const RARE_LINES: u32 = 5;
const RARE_INTERVAL: Duration = Duration::from_secs(5);
/// Rounds after which an engine that finds no rest is taken for broken.
const ROUNDS_MAX: u32 = 100_000;

/// The replication engine of one resource: its volumes, its connection, everything DRBD decides.
///
/// The grammar is:
///
/// 1. [`handle`](Self::handle) for each event, in the order in which they happened, with the time as it is;
/// 2. [`finish_turn`](Self::finish_turn) once no further event is at hand;
/// 3. do the actions in their order; wait for events, at the longest until
///    [`next_timeout`](Self::next_timeout), which is told with [`Event::Timeout`].
///
/// Packets are read from a socket only while [`reception`](Self::reception) says what may come.
/// [`status`](Self::status) may be looked at any time.
///
/// The engine is deterministic: the same seed, options and events give the same actions.
pub struct Engine {
    pub(crate) now: Time,
    pub(crate) out: Actions,
    pub(crate) random: Random,
    secret: [u8; 32],
    secret_count: u64,
    pub(crate) options: ResourceOptions,
    pub(crate) suspension: Suspension,
    pub(crate) connection: Connection,
    pub(crate) volumes: Vec<Volume>,
    pub(crate) requests: Slab<Request>,
    pub(crate) peer_requests: Slab<PeerRequest>,
    pub(crate) io: Slab<Io>,
    /// The transfer log: writes in the order of their submission.
    pub(crate) log: VecDeque<Key>,
    pub(crate) after: VecDeque<After>,
    /// A handler has to end before the next one of them.
    pub(crate) after_waits: bool,
    pub(crate) commands: Vec<Running>,
    pub(crate) handlers: Vec<(HandlerId, Reason)>,
    pub(crate) handler_count: u64,
    pub(crate) fence_answers: Vec<(u64, bool)>,
    pub(crate) blocks: Vec<MetadataBlock>,
    pub(crate) scratch_keys: Vec<Key>,
    pub(crate) attach_reads: HashMap<Key, u64>,
    pub(crate) attach_count: u64,
    /// Something has happened that the slower machinery has to look at.
    pub(crate) attention: bool,
    #[cfg(feature = "deliberate-bugs")]
    pub(crate) bug: Option<crate::bugs::Bug>,
    rare_since: Time,
    rare_lines: u32,
    changed: bool,
}

impl Engine {
    /// An engine without volumes, not connected. `seed` are random bytes from the system; whoever knows them can guess
    /// generation identifiers and authentication challenges.
    pub fn new(options: ResourceOptions, seed: [u8; 32]) -> Self {
        let mut start = [0; 8];
        start.copy_from_slice(&seed[..8]);
        Self {
            now: Time(0),
            out: Vec::new(),
            random: Random::new(u64::from_le_bytes(start)),
            secret: seed,
            secret_count: 0,
            options,
            suspension: Suspension::NONE,
            connection: Connection::new(),
            volumes: Vec::new(),
            requests: Slab::new(),
            peer_requests: Slab::new(),
            io: Slab::new(),
            log: VecDeque::new(),
            after: VecDeque::new(),
            after_waits: false,
            commands: Vec::new(),
            handlers: Vec::new(),
            handler_count: 0,
            fence_answers: Vec::new(),
            blocks: Vec::new(),
            scratch_keys: Vec::new(),
            attach_reads: HashMap::new(),
            attach_count: 0,
            attention: false,
            #[cfg(feature = "deliberate-bugs")]
            bug: None,
            rare_since: Time(0),
            rare_lines: 0,
            changed: false,
        }
    }

    /// Something happened. What has to be done about it is appended to `actions`.
    pub fn handle(&mut self, now: Time, event: Event, actions: &mut Actions) {
        assert!(now >= self.now, "time does not go back");
        self.now = now;
        std::mem::swap(&mut self.out, actions);
        match event {
            Event::Request(request) => self.client_request(request),
            Event::ReadDone { token, buffer, digest, zeroes, result } => {
                self.read_done(token, buffer, digest, zeroes, result);
            }
            Event::WriteDone { token, result } => self.disk_write_done(token, result),
            Event::MetadataRead { token, result } => self.metadata_read(token, result),
            Event::MetadataWritten { token, block, result } => self.metadata_written(token, block, result),
            Event::DeviceSize { volume, backing, metadata } => {
                if let Some(index) = self.volume_index(volume) {
                    self.device_resized(index, backing, metadata);
                }
            }
            Event::Connected(socket) => self.socket_connected(socket),
            Event::Accepted(socket) => self.socket_accepted(socket),
            Event::SocketDown { socket, loss } => self.socket_down(socket, loss),
            Event::ListenFailed(errno) => self.listen_failed(errno),
            Event::Packet { socket, volume, packet, payload, payload_bytes, bytes, digest, intact } => {
                self.packet(
                    socket,
                    Inbound { volume, packet, payload, payload_bytes, bytes, digest, intact },
                );
            }
            Event::Sent(token) => self.packet_sent(token),
            Event::Timeout => self.timeout(),
            Event::Command { id, command } => self.command(id, command),
            Event::HandlerExit { handler, status } => self.handler_exit(handler, status),
        }
        self.settle_down();
        std::mem::swap(&mut self.out, actions);
    }

    /// No further event is at hand: what was held back to be gathered goes out.
    pub fn finish_turn(&mut self, now: Time, actions: &mut Actions) {
        self.now = self.now.max(now);
        std::mem::swap(&mut self.out, actions);
        self.flush_idle_barrier();
        if std::mem::take(&mut self.changed) {
            self.out.push(Action::Report(Report::StateChanged));
        }
        std::mem::swap(&mut self.out, actions);
    }

    /// When to call with [`Event::Timeout`] if nothing else happens.
    pub fn next_timeout(&self) -> Option<Time> {
        let connection = [
            self.connection.establish.timeout(),
            self.connection.deadline,
            self.connection.answer_until,
            self.connection.refused_meta.map(|(_, until)| until),
            self.connection.ping_timer,
            self.connection.request_timer,
        ];
        let volumes = self.volumes.iter().flat_map(|volume| {
            let resync = &volume.resync;
            [resync.timer, resync.reads_due(), volume.disk_timer, volume.return_at]
        });
        let commands = self.commands.iter().map(|command| self.command_timeout(command));
        connection.into_iter().chain(volumes).chain(commands).flatten().min()
    }

    fn timeout(&mut self) {
        self.establish_timeout();
        if self.connection.deadline.is_some_and(|deadline| deadline <= self.now) {
            self.connection.deadline = None;
            self.say(Level::Error, None, "sock_recvmsg returned -11".to_owned());
            self.retry_later();
        }
        if self.connection.answer_until.is_some_and(|until| until <= self.now) {
            self.connection.answer_until = None;
            self.lose_connection(udrbd_units::ConnectionState::BrokenPipe);
        }
        if self.connection.refused_meta.is_some_and(|(_, until)| until <= self.now) {
            self.close_refused_meta();
        }
        self.keepalive_timeout();
        self.request_timeout();
        for index in 0..self.volumes.len() {
            self.run_resync_step(index);
            self.disk_timeout(index);
            self.return_from_ahead(index);
        }
        self.attention = true;
    }

    fn read_done(
        &mut self,
        token: Token,
        buffer: Option<crate::interface::Buffer>,
        digest: Option<wire::DigestValue>,
        zeroes: bool,
        result: Result<(), crate::interface::IoError>,
    ) {
        let Some(io) = self.end_io(token) else {
            self.release(buffer);
            return;
        };
        match io.purpose {
            Purpose::RequestLocal(key) => self.request_local_done(key, result.is_err()),
            Purpose::PeerRequest(key) => self.peer_read_done(key, buffer, digest, zeroes, result),
            // The buffer is the client's, which has had its answer.
            Purpose::GivenUp { for_peer: false } => {}
            _ => self.release(buffer),
        }
    }

    /// Runs the slower machinery until it finds nothing more to do.
    fn settle_down(&mut self) {
        let mut rounds = 0;
        while self.attention || (!self.after.is_empty() && !self.after_waits) {
            self.attention = false;
            let mut progress = self.run_after();
            for index in 0..self.volumes.len() {
                progress |= self.run_volume(index);
            }
            progress |= self.run_connection();
            progress |= self.run_commands();
            self.attention |= progress;
            rounds += 1;
            assert!(rounds < ROUNDS_MAX, "the engine finds no rest");
        }
    }

    fn run_volume(&mut self, index: usize) -> bool {
        if self.volumes[index].removed {
            return false;
        }
        let mut progress = self.run_abandon(index);
        progress |= self.run_congestion(index);
        progress |= self.run_attach(index);
        progress |= self.run_resizing(index);
        progress |= self.run_activity_log(index);
        progress |= self.run_bitmap_io(index);
        progress |= self.write_superblock(index);
        progress |= self.current_became_durable(index);
        progress |= self.generation_of_handshake_is_durable(index);
        progress |= self.run_sync_uuid(index);
        progress |= self.run_starting_sync(index);
        progress |= self.run_resync_start(index);
        progress |= self.run_resync_reads(index);
        progress |= self.run_bitmap_exchange(index);
        progress |= self.run_resync_finish(index);
        progress |= self.run_detach(index);
        if !self.volumes[index].overlapping.is_empty() {
            self.retry_overlapping(index);
        }
        progress | self.admit_waiting(index)
    }

    fn run_connection(&mut self) -> bool {
        let mut progress = self.run_loss();
        if self.connection.lost_log_pending
            && self.after.is_empty()
            && self.volumes.iter().all(|volume| volume.current_due.is_none())
        {
            self.connection.lost_log_pending = false;
            self.transfer_log_connection_lost();
            self.complete_held();
            progress = true;
        }
        progress | self.run_inbox()
    }

    /// A new generation is on stable storage: what waited for it goes on.
    fn current_became_durable(&mut self, index: usize) -> bool {
        let due = self.volumes[index].current_due;
        let durable = due.is_some_and(|version| self.superblock_is_durable(index, version));
        if durable {
            self.volumes[index].current_due = None;
        }
        durable
    }

    fn listen_failed(&mut self, errno: i32) {
        self.say(Level::Error, None, format!("bind before listen failed, err = -{errno}"));
        self.give_up_handshake();
    }

    /// Where a volume is in the table.
    pub(crate) fn volume_index(&self, number: VolumeNumber) -> Option<usize> {
        self.volumes.iter().position(|volume| volume.number == number && !volume.removed)
    }

    /// A line for the log.
    pub(crate) fn say(&mut self, level: Level, index: Option<usize>, text: String) {
        let volume = index.map(|index| self.volumes[index].number);
        self.out.push(Action::Report(Report::Log { level, volume, text }));
    }

    /// A line for the log that may come in floods: five in five seconds are told.
    pub(crate) fn say_rarely(&mut self, level: Level, index: Option<usize>, text: String) {
        if self.now.since(self.rare_since) >= RARE_INTERVAL {
            self.rare_since = self.now;
            self.rare_lines = 0;
        }
        self.rare_lines += 1;
        if self.rare_lines <= RARE_LINES {
            self.say(level, index, text);
        }
    }

    /// Something that is shown has changed.
    pub(crate) const fn state_changed(&mut self) {
        self.changed = true;
        self.attention = true;
    }

    pub(crate) fn reply(&mut self, command: CommandId, result: CommandResult) {
        self.out.push(Action::Reply { command, result });
    }

    /// 64 bytes nobody can guess who does not know the seed.
    pub(crate) fn secret_bytes(&mut self) -> [u8; 64] {
        let mut bytes = [0; 64];
        for half in bytes.chunks_mut(32) {
            self.secret_count += 1;
            let mut input = self.secret.to_vec();
            input.extend_from_slice(&self.secret_count.to_le_bytes());
            let digest = wire::DigestAlgorithm::Sha256.digest(&input);
            half.copy_from_slice(digest.as_bytes());
        }
        bytes
    }

    /// Whether discards may be offered to clients: the peer understands them, the last one if it is away, or there was none.
    pub const fn offers_discard(&self) -> bool {
        self.connection.agreed_features.contains(wire::Features::TRIM)
    }

    /// Whether writes of zeroes may be offered to clients.
    pub const fn offers_write_zeroes(&self) -> bool {
        self.connection.agreed_features.contains(wire::Features::WRITE_ZEROES)
    }

    /// Whether a volume serves requests of clients, or keeps them until some node has data again.
    pub fn is_serving(&self, volume: VolumeNumber) -> bool {
        self.volume_index(volume).is_some_and(|index| {
            let state = self.volumes[index].state;
            let data = state.disk >= DiskState::Inconsistent || state.peer_disk == DiskState::UpToDate;
            state.role == Role::Primary && (data || self.suspension.no_data)
        })
    }
}
