//! A run: two nodes, the network, the clock, and the order in which things happen.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use udrbd_engine::interface::{
    Actions, Event, HandlerId, Protocol, Report, RequestId, ResourceStatus, SocketId, SocketLoss, Time,
    Token, VolumeStatus,
};
use udrbd_units::{ConnectionState, DiskState, Role, Sector, SectorRange};

use crate::check::{Checker, Violation};
use crate::coverage::Coverage;
use crate::disk::Tag;
use crate::network::{Network, NodeId};
use crate::node::{Node, VolumeIndex};
use crate::plan::{Operation, Plan, SECOND};
use crate::random::Random;
use crate::traps::Trap;

/// Events of a run after which it is taken for endless.
const EVENTS_MAX: u64 = 3_000_000;
/// Simulated time after the last step in which the nodes have to find together.
pub(crate) const CONVERGENCE: u64 = 1_200 * SECOND;

/// Something that is due at some time.
#[derive(Debug)]
pub(crate) enum Due {
    Timer {
        node: NodeId,
        life: u32,
    },
    Disk {
        node: NodeId,
        life: u32,
        volume: VolumeIndex,
        operation: u64,
    },
    /// Something arrives on a direction of a connection.
    Arrival {
        connection: usize,
        direction: usize,
    },
    /// An attempt to connect reaches the other node.
    Dial {
        node: NodeId,
        life: u32,
        socket: SocketId,
        deadline: u64,
    },
    Accept {
        connection: usize,
    },
    Sent {
        node: NodeId,
        life: u32,
        socket: SocketId,
        token: Token,
    },
    Handler {
        node: NodeId,
        life: u32,
        handler: HandlerId,
        status: i32,
    },
    /// The cluster manager decides about a fencing.
    Fence {
        node: NodeId,
        life: u32,
        handler: HandlerId,
    },
    /// The peer's end of a connection no longer exists: a reset comes back.
    NoSuchConnection {
        connection: usize,
        end: usize,
    },
    Step(usize),
    /// What a trap was set for.
    Sprung(Box<Operation>),
    /// A fault or an absence is over.
    Over(Restore),
    /// Clients look whether they have something to do.
    Clients,
    /// The administrator of a node looks at it.
    Administrator {
        node: NodeId,
    },
    /// The end phase looks whether everything is well.
    Ending,
}

/// What comes back after a while.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Restore {
    Link,
    Power(NodeId),
    Daemon(NodeId),
    Connection(NodeId),
    Disk(NodeId),
    Resync(NodeId),
    Io(NodeId),
    Network,
}

struct Entry {
    at: u64,
    number: u64,
    due: Due,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

/// What came of a run.
#[derive(Debug)]
pub struct Outcome {
    /// The rule that was broken, if one was.
    pub violation: Option<Violation>,
    /// What it went through.
    pub coverage: Coverage,
}

/// A write of protocol A that has completed and is not on the peer's disk.
#[derive(Clone, Copy, Debug)]
pub(crate) struct InTransit {
    /// Whose client's it is.
    pub(crate) issuer: NodeId,
    pub(crate) write: Tag,
    pub(crate) volume: VolumeIndex,
    pub(crate) range: SectorRange,
}

/// A run under way.
pub(crate) struct World {
    pub(crate) plan: Plan,
    pub(crate) random: Random,
    pub(crate) now: u64,
    queue: BinaryHeap<Reverse<Entry>>,
    queued: u64,
    pub(crate) nodes: [Node; 2],
    pub(crate) network: Network,
    pub(crate) checker: Checker,
    /// What waits for a moment.
    pub(crate) traps: Vec<Trap>,
    pub(crate) coverage: Coverage,
    pub(crate) violation: Option<Violation>,
    /// Say on standard output what happens.
    tracing: bool,
    actions: Actions,
    pub(crate) next_operation: u64,
    pub(crate) next_command: u64,
    pub(crate) next_request: u64,
    /// Requests clients still want to issue, and how many at a time.
    pub(crate) budget: u32,
    pub(crate) depth: u32,
    pub(crate) clients_due: bool,
    pub(crate) clients_since: u64,
    pub(crate) ending_since: Option<u64>,
    pub(crate) resolved_at: u64,
    /// How often somebody has tried to resolve a split brain since the end began.
    pub(crate) resolutions: u32,
    pub(crate) over: bool,
    /// By volume. The nodes have had the same data once: from then on every difference is accounted for.
    pub(crate) were_equal: Vec<bool>,
    pub(crate) are_equal: Vec<bool>,
    /// By volume: the sectors in which a disk has rotted; whether a verify has told of it.
    pub(crate) rotten: Vec<BTreeMap<u64, bool>>,
    pub(crate) in_transit: Vec<InTransit>,
    /// The node that a cluster manager lets be Primary alone.
    pub(crate) only_primary: Option<NodeId>,
    /// A split brain is to be expected: an administrator promoted a node behind the other's back.
    next_audit: u64,
}

impl World {
    pub(crate) fn new(plan: Plan, tracing: bool) -> Self {
        let mut random = plan.random.clone();
        let volatile = plan.settings.volatile;
        let latency = plan.settings.network_latency;
        let volumes = plan.settings.backing_sectors.len();
        let mut world = Self {
            random: random.fork(),
            now: SECOND,
            queue: BinaryHeap::new(),
            queued: 0,
            nodes: [0, 1].map(|node: NodeId| {
                let sectors = plan.settings.backing_sectors.iter().map(|sectors| sectors[node]);
                Node::new(sectors, volatile[node])
            }),
            network: Network::new(latency),
            checker: Checker::new(volumes),
            traps: Vec::new(),
            coverage: Coverage::default(),
            violation: None,
            tracing,
            actions: Vec::new(),
            next_operation: 0,
            next_command: 0,
            next_request: 0,
            budget: 0,
            depth: 1,
            clients_due: false,
            clients_since: 0,
            ending_since: None,
            resolved_at: 0,
            resolutions: 0,
            over: false,
            were_equal: vec![plan.settings.in_sync; volumes],
            are_equal: vec![false; volumes],
            rotten: vec![BTreeMap::new(); volumes],
            in_transit: Vec::new(),
            only_primary: None,
            next_audit: plan.settings.audit_events,
            plan,
        };
        world.begin();
        world
    }

    fn begin(&mut self) {
        self.create_all_metadata();
        if self.tracing {
            let text = format!("aim: {:?}, {:?}", self.plan.aim, self.plan.settings);
            self.say(&text);
        }
        for node in 0..2 {
            self.nodes[node].volumes.iter_mut().for_each(|volume| volume.wants_disk = true);
            self.nodes[node].administrator.wants_connection = true;
            self.start_daemon(node);
            let delay = self.random.between(0, SECOND);
            self.after(delay, Due::Administrator { node });
        }
        for (index, step) in self.plan.steps.iter().enumerate() {
            let at = self.now + step.at;
            self.queued += 1;
            self.queue.push(Reverse(Entry { at, number: self.queued, due: Due::Step(index) }));
        }
        let end = self.plan.steps.last().map_or(0, |step| step.at) + 3 * SECOND;
        self.after(end, Due::Ending);
    }

    /// Runs to the end.
    pub(crate) fn run(mut self) -> Outcome {
        while self.violation.is_none() && !self.over {
            let Some(Reverse(entry)) = self.queue.pop() else { break };
            self.now = entry.at;
            self.coverage.events += 1;
            if self.coverage.events > EVENTS_MAX {
                self.fail("the run ends", "too many events".to_owned());
                break;
            }
            self.happen(entry.due);
            if self.coverage.events >= self.next_audit {
                self.next_audit = self.coverage.events + self.plan.settings.audit_events;
                self.audit();
            }
        }
        self.coverage.simulated = self.now;
        Outcome { violation: self.violation, coverage: self.coverage }
    }

    pub(crate) fn after(&mut self, delay: u64, due: Due) {
        self.queued += 1;
        let at = self.now + delay;
        self.queue.push(Reverse(Entry { at, number: self.queued, due }));
    }

    pub(crate) fn at(&mut self, at: u64, due: Due) {
        self.after(at.saturating_sub(self.now), due);
    }

    pub(crate) const fn is_tracing(&self) -> bool {
        self.tracing
    }

    pub(crate) fn say(&self, text: &str) {
        if self.tracing {
            println!("{:12.6} {text}", self.now as f64 / 1e9);
        }
    }

    pub(crate) fn fail(&mut self, rule: &'static str, text: String) {
        self.fail_with(Violation { rule, text });
    }

    pub(crate) fn fail_with(&mut self, violation: Violation) {
        if self.violation.is_none() {
            let text = format!("VIOLATION of \"{}\": {}", violation.rule, violation.text);
            self.say(&text);
            self.violation = Some(violation);
        }
    }

    pub(crate) fn check(&mut self, name: &'static str, result: Result<(), Violation>) {
        self.coverage.check(name);
        if let Err(violation) = result {
            self.fail_with(violation);
        }
    }

    fn is_alive(&self, node: NodeId, life: u32) -> bool {
        self.nodes[node].engine.is_some() && self.nodes[node].life == life
    }

    fn happen(&mut self, due: Due) {
        match due {
            Due::Timer { node, life } => {
                if self.is_alive(node, life) && self.nodes[node].timer_at == Some(self.now) {
                    self.nodes[node].timer_at = None;
                    self.feed(node, Event::Timeout);
                }
            }
            Due::Disk { node, life, volume, operation } => {
                if self.is_alive(node, life) {
                    self.disk_done(node, volume, operation);
                }
            }
            Due::Arrival { connection, direction } => self.arrive(connection, direction),
            Due::Dial { node, life, socket, deadline } => {
                if self.is_alive(node, life) {
                    self.dial(node, socket, deadline);
                }
            }
            Due::Accept { connection } => self.accept(connection),
            Due::Sent { node, life, socket, token } => {
                if self.is_alive(node, life) && self.network.find(node, socket).is_some() {
                    self.feed(node, Event::Sent(token));
                }
            }
            Due::Handler { node, life, handler, status } => {
                if self.is_alive(node, life) {
                    self.feed(node, Event::HandlerExit { handler, status });
                }
            }
            Due::Fence { node, life, handler } => {
                if self.is_alive(node, life) {
                    self.fence(node, handler);
                }
            }
            Due::NoSuchConnection { connection, end } => {
                let state = self.network.connections[connection].ends[end];
                if let (true, Some(socket)) = (state.open && self.network.is_whole(), state.socket) {
                    self.network.connections[connection].ends[end].open = false;
                    self.feed(state.node, Event::SocketDown { socket, loss: SocketLoss::Broken(104) });
                }
            }
            Due::Step(index) => self.step(index),
            Due::Sprung(operation) => self.spring(*operation),
            Due::Over(restore) => self.restore(restore),
            Due::Clients => {
                self.clients_due = false;
                self.run_clients();
            }
            Due::Administrator { node } => {
                self.administrate(node);
                let delay = self.random.between(SECOND / 20, SECOND / 2);
                self.after(delay, Due::Administrator { node });
            }
            Due::Ending => self.ending(),
        }
    }

    /// Hands an event to a node's engine and does what it wants done.
    pub(crate) fn feed(&mut self, node: NodeId, event: Event) {
        let now = Time(self.now);
        if self.is_tracing() {
            self.trace_event(node, &event);
        }
        let mut actions = std::mem::take(&mut self.actions);
        let Some(engine) = &mut self.nodes[node].engine else {
            self.actions = actions;
            return;
        };
        engine.handle(now, event, &mut actions);
        engine.finish_turn(now, &mut actions);
        let next = engine.next_timeout().map(|time| time.0.max(self.now));
        if self.nodes[node].timer_at != next {
            self.nodes[node].timer_at = next;
            if let Some(at) = next {
                let life = self.nodes[node].life;
                self.at(at, Due::Timer { node, life });
            }
        }
        let changed = actions
            .iter()
            .any(|action| matches!(action, udrbd_engine::interface::Action::Report(Report::StateChanged)));
        if changed {
            self.refresh(node);
        }
        for action in actions.drain(..) {
            self.act(node, action);
        }
        self.actions = actions;
        self.read_on(node);
    }

    /// Looks at the state of a node that says it has changed.
    fn refresh(&mut self, node: NodeId) {
        let Some(engine) = &self.nodes[node].engine else { return };
        let status = engine.status();
        let old = self.nodes[node].status.replace(status);
        for volume in 0..self.nodes[node].volumes.len() {
            self.state_changed(node, volume, old.as_ref());
        }
    }

    fn state_changed(&mut self, node: NodeId, volume: VolumeIndex, old: Option<&ResourceStatus>) {
        let is_this = |other: &&VolumeStatus| usize::from(other.volume.0) == volume;
        let before = old.and_then(|status| status.volumes.iter().find(is_this)).map_or(
            (ConnectionState::StandAlone, DiskState::Diskless, DiskState::Unknown, Role::Secondary),
            |volume| (volume.connection, volume.disk, volume.peer_disk, volume.role),
        );
        let own = &self.nodes[node];
        let role = own.volume(volume).map_or(Role::Secondary, |volume| volume.role);
        let present = (own.connection(volume), own.disk_state(volume), own.peer_disk_state(volume), role);
        let connection_before = old.map(|status| status.connection.state);
        let connection = own.status.as_ref().map(|status| status.connection.state);
        if before.0 != present.0 {
            self.coverage.state(0, before.0.name(), present.0.name());
        }
        if before.1 != present.1 {
            self.coverage.state(1, before.1.name(), present.1.name());
        }
        if before.2 != present.2 {
            self.coverage.state(2, before.2.name(), present.2.name());
        }
        if before.3 != present.3 {
            self.coverage.state(3, before.3.name(), present.3.name());
        }
        self.note_mirroring(node, volume);
        if connection == Some(ConnectionState::StandAlone)
            && connection_before.is_some_and(|state| state != ConnectionState::StandAlone)
        {
            let administrator = &mut self.nodes[node].administrator;
            let asked = administrator.is_doing(crate::node::Purpose::Disconnect)
                || administrator.is_doing(crate::node::Purpose::Down);
            administrator.refused = !asked && administrator.wants_connection;
        }
        self.verify_changed(node, volume, before.0, present.0, [present.1, present.2]);
        let is_target = |state| matches!(state, ConnectionState::SyncTarget | ConnectionState::PausedSyncT);
        if is_target(present.0) && !is_target(before.0) {
            self.in_transit.retain(|write| (write.issuer, write.volume) != (node, volume));
            let result = self.checker.becomes_target(node, volume);
            self.check("SyncTarget discards nothing", result);
        }
        if is_target(before.0) && present.0 == ConnectionState::Connected && present.1 == DiskState::UpToDate
        {
            self.rot_resynced(volume);
            self.nodes_are_equal(node, volume, "at the end of a resync");
        }
        self.look_whether_equal(node, volume);
        if role == Role::Primary && before.3 != Role::Primary {
            self.promoted(node, volume, before.1, present);
        }
    }

    /// Notes whether the node sends writes to the peer and to its own disk.
    fn note_mirroring(&mut self, node: NodeId, volume: VolumeIndex) {
        let own = &self.nodes[node];
        let (connection, disk, peer_disk) =
            (own.connection(volume), own.disk_state(volume), own.peer_disk_state(volume));
        let frozen = own.status.as_ref().is_some_and(|status| status.suspended_fencing);
        let syncing = (ConnectionState::WFBitMapT..=ConnectionState::PausedSyncT).contains(&connection)
            && peer_disk >= DiskState::Inconsistent;
        let mirroring = peer_disk == DiskState::UpToDate || (syncing && peer_disk != DiskState::Unknown);
        let own = &mut self.nodes[node].volumes[volume];
        match (std::mem::replace(&mut own.mirroring, mirroring), mirroring) {
            (true, false) => {
                own.interruptions += 1;
                self.look_at_order(1 - node);
                self.checker.mirroring_ends(1 - node, volume);
            }
            (false, true) => self.checker.mirroring_begins(1 - node, volume),
            _ => {}
        }
        // What is frozen for a fencing begins no generation before that has succeeded.
        if !mirroring && !frozen {
            self.checker.notices_loss(node, volume);
        }
        let own = &mut self.nodes[node].volumes[volume];
        let storing = disk >= DiskState::Inconsistent;
        if std::mem::replace(&mut own.storing, storing) && !storing {
            own.disk_losses += 1;
            self.checker.disk_lost(node, volume);
            self.rot_forgotten(volume);
        }
    }

    /// Looks at the order of writes of all volumes on a node as it is.
    pub(crate) fn look_at_order(&mut self, node: NodeId) {
        let result = self.checker.check_order(node, &self.nodes[node].disks());
        self.check("a mirror keeps the order of writes", result);
    }

    /// Both nodes say that they are one: so they have to be.
    fn look_whether_equal(&mut self, node: NodeId, volume: VolumeIndex) {
        let good = |node: &Node| {
            node.engine.is_some()
                && node.connection(volume) == ConnectionState::Connected
                && node.disk_state(volume) == DiskState::UpToDate
                && node.peer_disk_state(volume) == DiskState::UpToDate
        };
        let equal = good(&self.nodes[0]) && good(&self.nodes[1]);
        let were = std::mem::replace(&mut self.are_equal[volume], equal);
        if equal && !were {
            if self.all_are_equal() {
                self.only_primary = None;
            }
            self.nodes_are_equal(node, volume, "connected and UpToDate on both sides");
        }
    }

    /// Whether both nodes say of every volume that they have the same.
    pub(crate) fn all_are_equal(&self) -> bool {
        self.are_equal.iter().all(|equal| *equal)
    }

    fn nodes_are_equal(&mut self, node: NodeId, volume: VolumeIndex, when: &str) {
        let peer = &self.nodes[1 - node];
        // A source that has pulled ahead meanwhile writes on, and tells.
        let with_peer = peer.engine.is_some()
            && peer.connection(volume) >= ConnectionState::Connected
            && peer.connection(volume) != ConnectionState::Ahead;
        if with_peer {
            self.compare(volume, when);
        }
        self.were_equal[volume] = true;
        self.checker.became_equal(node, volume, &self.nodes[node].volumes[volume].disk, with_peer);
        self.forget_what_arrived();
        for write in self.in_transit.iter().filter(|write| write.volume == volume) {
            let mirror = 1 - write.issuer;
            self.checker.may_still_lack(mirror, &self.nodes[mirror].volumes[volume].disk, write.write);
        }
        let disk = &self.nodes[node].volumes[volume].disk;
        let result = self.checker.check_disk(disk, node, volume, self.in_use(volume), when);
        let busy = self.busy_ranges(volume);
        if busy.is_empty() {
            self.check("the disk is what it has to be", result);
        }
    }

    /// Whether a write completes before the peer has it.
    pub(crate) fn is_asynchronous(&self) -> bool {
        self.plan.settings.net_options.protocol == Protocol::A
    }

    /// Looks which writes have got to the peer's disk since: where both hold the same and nothing more can come, nothing is
    /// missing. (The values alone do not tell: of overlapping writes that were under way together either might have been the
    /// last, and what a disk held before may look like zeroes that are to come.)
    pub(crate) fn forget_what_arrived(&mut self) {
        let carried = [0, 1].map(|issuer| self.network.carries_from(issuer));
        let nodes = &self.nodes;
        self.in_transit.retain(|write| {
            let volumes = [0, 1].map(|node: NodeId| &nodes[node].volumes[write.volume]);
            let [one, other] = volumes.map(|volume| &volume.disk.data);
            let mut sectors = write.range.start.0..write.range.end().0;
            carried[write.issuer]
                || volumes[1 - write.issuer].is_busy()
                || sectors.any(|sector| one.sector(sector) != other.sector(sector))
        });
    }

    /// Ranges of writes under way: there the disks may differ.
    pub(crate) fn busy_ranges(&self, volume: VolumeIndex) -> Vec<SectorRange> {
        let in_transit = self.in_transit.iter().filter(|write| write.volume == volume);
        self.nodes
            .iter()
            .flat_map(|node| node.requests.values())
            .filter(|request| request.volume == volume && request.operation.is_write())
            .map(|request| request.range)
            .chain(in_transit.map(|write| write.range))
            .collect()
    }

    /// How much of a volume is in use: what only one node uses yet is no matter of the other.
    pub(crate) fn in_use(&self, volume: VolumeIndex) -> Sector {
        let sizes = self.nodes.iter().filter_map(|node| node.volume(volume)).map(|volume| volume.size);
        sizes.filter(|size| size.0 > 0).min().unwrap_or(Sector(u64::MAX))
    }

    pub(crate) fn compare(&mut self, volume: VolumeIndex, when: &str) {
        let busy = self.busy_ranges(volume);
        let disks = [0, 1].map(|node: NodeId| &self.nodes[node].volumes[volume].disk);
        let size = self.in_use(volume);
        let mut found = Checker::differences(disks, &busy);
        found.retain(|sector| *sector < size.0);
        found.retain(|sector| !self.is_rotten(volume, *sector));
        self.without_marked_leftovers(volume, &mut found);
        let disks = [0, 1].map(|node: NodeId| &self.nodes[node].volumes[volume].disk);
        self.coverage.check("both disks are equal");
        if let Some(sector) = found.first() {
            let values = disks.map(|disk| disk.data.sector(*sector).copied().unwrap_or(0));
            let text = format!(
                "{when}: {} sectors of volume {volume} differ, the first is {sector}: {values:?}",
                found.len()
            );
            self.fail("disks in sync are equal", text);
        }
    }

    /// A node has become Primary.
    fn promoted(
        &mut self,
        node: NodeId,
        volume: VolumeIndex,
        disk_before: DiskState,
        present: (ConnectionState, DiskState, DiskState, Role),
    ) {
        let own = &self.nodes[node];
        let forced = own.administrator.is_doing_to(volume, crate::node::Purpose::Primary { force: true });
        let contents = &own.volumes[volume].disk;
        let (_, disk, peer_disk, _) = present;
        if forced && disk_before < DiskState::UpToDate && disk == DiskState::UpToDate {
            self.checker.declare_good(node, volume, contents);
        }
        if !forced && disk < DiskState::UpToDate && peer_disk != DiskState::UpToDate {
            let text =
                format!("node {node} became Primary with a disk that is {disk}, the peer's {peer_disk}");
            self.fail("no Primary without good data", text);
        }
        if disk == DiskState::UpToDate {
            let contents = &self.nodes[node].volumes[volume].disk;
            let result =
                self.checker.check_disk(contents, node, volume, self.in_use(volume), "at a promotion");
            self.check("a new Primary has every write", result);
            self.look_at_order(node);
        }
    }

    /// The requests of a node's clients, for those who need to know what is under way.
    pub(crate) fn request_mut(
        &mut self,
        node: NodeId,
    ) -> &mut BTreeMap<RequestId, crate::node::ClientRequest> {
        &mut self.nodes[node].requests
    }
}
