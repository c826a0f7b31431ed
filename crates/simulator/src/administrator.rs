//! What people do to the nodes, and what fate does.

use udrbd_engine::Engine;
use udrbd_engine::interface::{
    AttachSettings, Command, CommandId, CommandResult, DiskProperties, Event, Failure, NetOptions,
    ResourceOptions,
};
use udrbd_metadata::Placement;
use udrbd_units::{ConnectionState, DiskState, Minor, Role};

use crate::machine::number;
use crate::network::{Ending, NodeId};
use crate::node::{Failing, Node, NodeVolume, Purpose, Resolution, VolumeIndex};
use crate::plan::{Operation, SECOND};
use crate::traps::Trap;
use crate::world::{CONVERGENCE, Due, Restore, World};

/// What an attach may be refused with at times: it was given up, or the disk is there already.
const ATTACH_REFUSALS: [u32; 2] = [118, 124];
/// There is no such volume.
const MINOR_INVALID: u32 = 127;
/// Clients have seen other data.
const DATA_NOT_CURRENT: u32 = 150;
/// The peer serves less than the disk says is in use.
const PEER_IS_SMALLER: u32 = 170;

impl World {
    /// Starts the daemon of a node that has power.
    pub(crate) fn start_daemon(&mut self, node: NodeId) {
        if self.nodes[node].engine.is_some() || !self.nodes[node].powered {
            return;
        }
        let mut seed = [0; 32];
        for piece in seed.chunks_mut(8) {
            piece.copy_from_slice(&self.random.bits().to_le_bytes());
        }
        let text = format!("node {node}: the daemon starts");
        self.say(&text);
        let mut engine = Engine::new(ResourceOptions::default(), seed);
        self.plan.switch_bug_on(&mut engine);
        self.nodes[node].engine = Some(engine);
    }

    /// The daemon is gone, with the power or alone.
    fn stop_daemon(&mut self, node: NodeId, power: bool) {
        let text = format!("node {node}: {}", if power { "POWER CUT" } else { "KILLED" });
        self.say(&text);
        if power && !self.nodes[node].powered {
            return;
        }
        for volume in 0..self.nodes[node].volumes.len() {
            self.stop_disk(node, volume, power);
            let target = matches!(
                self.nodes[node].connection(volume),
                ConnectionState::SyncTarget | ConnectionState::PausedSyncT
            );
            if target && self.says_consistent(node, volume) {
                let disk = &self.nodes[node].volumes[volume].disk;
                self.checker.is_what_it_was(node, volume, disk);
            }
        }
        self.look_at_order(node);
        self.look_at_order(1 - node);
        let given_up: Vec<_> = self.nodes[node]
            .requests
            .values()
            .filter(|request| request.operation.is_write())
            .map(|request| request.write)
            .collect();
        for write in given_up {
            self.checker.give_up_write(write);
        }
        for (connection, end) in self.network.ends_of(node) {
            if power {
                self.network.connections[connection].ends[end].open = false;
                self.network.connections[connection].directions[1 - end].frames.clear();
            } else {
                let ending = if self.random.one_in(2) { Ending::Reset } else { Ending::Finished };
                self.close_end(connection, end, ending);
            }
        }
        self.in_transit.retain(|write| write.issuer != node);
        self.checker.daemon_lost(node);
        for volume in 0..self.are_equal.len() {
            self.checker.mirroring_ends(0, volume);
            self.checker.mirroring_ends(1, volume);
            self.rot_forgotten(volume);
        }
        self.nodes[node].forget_daemon();
        self.are_equal.fill(false);
        if power {
            self.nodes[node].powered = false;
        }
    }

    /// What is in flight to a disk is done or not.
    fn stop_disk(&mut self, node: NodeId, volume: VolumeIndex, power: bool) {
        let NodeVolume { disk, in_flight, .. } = &mut self.nodes[node].volumes[volume];
        let writes = in_flight.values().filter_map(|operation| operation.write());
        if power {
            let before = disk.data.contents().clone();
            disk.lose_power(&mut self.random, writes);
            self.checker.power_lost(node, volume, &before, disk);
        } else {
            disk.lose_daemon(&mut self.random, writes);
        }
    }

    /// One of the volumes.
    pub(crate) fn some_volume(&mut self) -> VolumeIndex {
        match self.are_equal.len() {
            1 => 0,
            volumes => self.random.below(volumes as u64) as VolumeIndex,
        }
    }

    /// Gives a command; `volume` is the first one where it is about all of them.
    pub(crate) fn command(&mut self, node: NodeId, volume: VolumeIndex, purpose: Purpose, command: Command) {
        if self.nodes[node].engine.is_none() {
            return;
        }
        let id = CommandId(self.next_command);
        self.next_command += 1;
        self.nodes[node].administrator.commands.insert(id, (purpose, volume));
        self.feed(node, Event::Command { id, command });
    }

    /// A command is done.
    pub(crate) fn replied(&mut self, node: NodeId, id: CommandId, result: &CommandResult) {
        let Some((purpose, volume)) = self.nodes[node].administrator.commands.remove(&id) else {
            self.fail("a command is answered once", format!("{id:?}"));
            return;
        };
        match (purpose, result) {
            (Purpose::NewMinor, Ok(())) => self.nodes[node].volumes[volume].has_minor = true,
            (Purpose::Down, Ok(())) => {
                self.nodes[node].volumes.iter_mut().for_each(|volume| volume.has_minor = false);
            }
            (Purpose::DelMinor, Ok(())) => self.nodes[node].volumes[volume].has_minor = false,
            // Clients have seen other data than these: before they may be seen, the clients have to go.
            (Purpose::Attach, Err(Failure::Configuration { code: DATA_NOT_CURRENT, .. })) => {
                self.give_up_role(node);
            }
            (Purpose::Attach, Err(Failure::Configuration { code: PEER_IS_SMALLER, .. })) => {
                self.resize(1 - node);
            }
            // Somebody has the minor removed, which takes the peer's consent.
            (Purpose::Attach, Err(Failure::Configuration { code: MINOR_INVALID, .. }))
                if self.nodes[node].administrator.is_doing_to(volume, Purpose::DelMinor) => {}
            (Purpose::Attach, Err(Failure::Configuration { code, info }))
                if !ATTACH_REFUSALS.contains(code) && !self.nodes[node].volumes[volume].disk_failed =>
            {
                let text = format!("node {node}: {code} {info:?}");
                self.fail("a good disk is attached", text);
            }
            _ => {}
        }
    }

    /// Has a disk's data thrown away; they are given up also where the command is cut short.
    pub(crate) fn invalidate(&mut self, node: NodeId, volume: VolumeIndex, disk: NodeId) {
        self.checker.volumes[volume].excused[disk] = true;
        let command = if disk == node {
            Command::Invalidate { volume: number(volume) }
        } else {
            Command::InvalidateRemote { volume: number(volume) }
        };
        self.command(node, volume, Purpose::Other, command);
    }

    /// What a node's administrator does about what he sees.
    pub(crate) fn administrate(&mut self, node: NodeId) {
        let own = &self.nodes[node];
        if own.engine.is_none() || own.administrator.is_doing(Purpose::Down) {
            return;
        }
        if own.volumes.iter().any(|volume| !volume.has_minor) {
            self.create_minors(node);
            return;
        }
        let connection = own.status.as_ref().map_or(ConnectionState::StandAlone, |s| s.connection.state);
        let mut attaches = false;
        for volume in 0..self.nodes[node].volumes.len() {
            let own = &self.nodes[node];
            if own.volumes[volume].wants_disk
                && own.disk_state(volume) == DiskState::Diskless
                // A disk that was given up stays claimed until it has done what it had to do.
                && !own.volumes[volume].is_busy()
                && !own.administrator.is_doing_to(volume, Purpose::Attach)
                && !own.administrator.is_doing_to(volume, Purpose::Detach)
            {
                self.attach_or_part(node, volume, connection);
                attaches = true;
            } else if own.disk_state(volume) >= DiskState::Inconsistent {
                self.nodes[node].volumes[volume].vain_attaches = 0;
            }
        }
        if attaches {
            return;
        }
        let administrator = &self.nodes[node].administrator;
        if let Some(resolution) = administrator.resolution {
            self.resolve_here(node, resolution, connection);
            return;
        }
        let quiet = !administrator.is_doing(Purpose::Connect) && !administrator.is_doing(Purpose::Attach);
        if administrator.wants_connection
            && !administrator.refused
            && quiet
            && connection == ConnectionState::StandAlone
        {
            self.connect(node, false);
        }
        self.first_promotion(node);
    }

    /// Somebody has to say once whose data are the good ones.
    fn first_promotion(&mut self, node: NodeId) {
        for volume in 0..self.nodes[node].volumes.len() {
            let connected = |node: NodeId| {
                let own = &self.nodes[node];
                own.connection(volume) == ConnectionState::Connected
                    && own.disk_state(volume) == DiskState::Inconsistent
                    && own.peer_disk_state(volume) == DiskState::Inconsistent
            };
            let busy = |node: NodeId| !self.nodes[node].administrator.commands.is_empty();
            if connected(0) && connected(1) && !busy(0) && !busy(1) {
                self.promote(node, volume, true);
            }
        }
    }

    fn create_minors(&mut self, node: NodeId) {
        for volume in 0..self.nodes[node].volumes.len() {
            let own = &self.nodes[node];
            let wanted = own.volumes[volume].wants_disk || own.administrator.wants_connection;
            if !own.volumes[volume].has_minor
                && !own.administrator.is_doing_to(volume, Purpose::NewMinor)
                && wanted
            {
                let command = Command::NewMinor { volume: number(volume), minor: Minor(volume as u32) };
                self.command(node, volume, Purpose::NewMinor, command);
            }
        }
    }

    fn promote(&mut self, node: NodeId, volume: VolumeIndex, force: bool) {
        let command = Command::Primary { volume: number(volume), force };
        self.command(node, volume, Purpose::Primary { force }, command);
    }

    /// Attaches, or leaves a peer first whose data keep the disk from being attached.
    fn attach_or_part(&mut self, node: NodeId, volume: VolumeIndex, connection: ConnectionState) {
        let own = &mut self.nodes[node].volumes[volume];
        if connection == ConnectionState::StandAlone {
            own.vain_attaches = 0;
        } else if own.vain_attaches > 2 {
            if !self.nodes[node].administrator.is_doing(Purpose::Disconnect) {
                self.command(node, 0, Purpose::Disconnect, Command::Disconnect { force: true });
            }
            return;
        } else {
            own.vain_attaches += 1;
        }
        self.attach(node, volume);
    }

    fn attach(&mut self, node: NodeId, volume: VolumeIndex) {
        self.nodes[node].volumes[volume].disk_failed = false;
        self.nodes[node].volumes[volume].gives_disk_up = false;
        self.check_resize(node, volume);
        let settings = &self.plan.settings;
        let backing = self.nodes[node].volumes[volume].device();
        let properties = DiskProperties {
            backing_size: backing,
            metadata_size: backing,
            logical_block_bytes: 512,
            physical_block_bytes: 4096,
            max_request_bytes: 1 << 20,
            volatile_cache: settings.volatile[node],
            discard_granularity_bytes: settings.discard_granularity,
        };
        let settings = AttachSettings {
            placement: Placement::Internal,
            properties,
            options: settings.disk_options.clone(),
            kept: None,
        };
        let command = Command::Attach { volume: number(volume), settings: Box::new(settings) };
        self.command(node, volume, Purpose::Attach, command);
    }

    fn connect(&mut self, node: NodeId, discard_my_data: bool) {
        self.nodes[node].administrator.refused = false;
        let options = NetOptions { discard_my_data, ..self.plan.settings.net_options.clone() };
        self.command(node, 0, Purpose::Connect, Command::Connect(Box::new(options)));
    }

    /// Takes a node's part in resolving a split brain.
    fn resolve_here(&mut self, node: NodeId, resolution: Resolution, connection: ConnectionState) {
        let own = &self.nodes[node];
        if !own.administrator.commands.is_empty() {
            return;
        }
        let discard = resolution == Resolution::Discard;
        if discard && own.is_primary() {
            let frozen = own.status.as_ref().is_some_and(|status| status.suspended_fencing);
            if frozen && self.ending_since.is_some() {
                // A fencing that has failed, and so holds the device open for ever: nobody else will see to it now.
                self.command(node, 0, Purpose::Other, Command::ResumeIo { volume: number(0) });
            }
            self.secondary(node);
        } else if connection != ConnectionState::StandAlone {
            if discard {
                self.command(node, 0, Purpose::Disconnect, Command::Disconnect { force: true });
            } else {
                self.nodes[node].administrator.resolution = None;
            }
        } else {
            self.nodes[node].administrator.resolution = None;
            if discard {
                self.excuse(node);
            }
            self.connect(node, discard);
        }
    }

    /// Resolves a split brain, if one keeps the nodes apart.
    pub(crate) fn resolve(&mut self) {
        let refused = (0..2).any(|node| self.nodes[node].administrator.refused);
        let busy = (0..2).any(|node| self.nodes[node].administrator.resolution.is_some());
        let up = (0..2).all(|node| self.nodes[node].engine.is_some());
        if !refused || busy || !up {
            return;
        }
        let good: Vec<NodeId> =
            (0..2).filter(|node| self.nodes[*node].least_disk_state() >= DiskState::Consistent).collect();
        let keep = if good.is_empty() { self.random.below(2) as NodeId } else { self.random.pick(&good) };
        let text = format!("somebody keeps the data of node {keep}");
        self.say(&text);
        self.coverage.fault("split brain resolved");
        self.resolutions += u32::from(self.ending_since.is_some());
        if self.resolutions > 5 {
            // Data that have become unrelated: only new metadata help.
            self.resolutions = 0;
            self.recreate_metadata(1 - keep);
        }
        self.nodes[keep].administrator.resolution = Some(Resolution::Keep);
        self.nodes[1 - keep].administrator.resolution = Some(Resolution::Discard);
    }

    /// Makes a disk one that was never used.
    fn recreate_metadata(&mut self, node: NodeId) {
        self.coverage.fault("metadata created anew");
        self.stop_daemon(node, false);
        for volume in 0..self.nodes[node].volumes.len() {
            self.create_metadata(node, volume, None);
        }
        self.excuse(node);
        self.start_daemon(node);
    }

    /// All data of a node are given up.
    fn excuse(&mut self, node: NodeId) {
        self.checker.volumes.iter_mut().for_each(|known| known.excused[node] = true);
    }

    /// A step of the plan.
    pub(crate) fn step(&mut self, index: usize) {
        let operation = self.plan.steps[index].operation.clone();
        let text = format!("step {index}: {operation:?}");
        self.say(&text);
        self.carry_out(operation);
    }

    /// Does what a plan wants done.
    pub(crate) fn carry_out(&mut self, operation: Operation) {
        match operation {
            Operation::When { node, moment, count, delay, then } => {
                self.traps.push(Trap { node, moment, left: count, delay, then });
            }
            Operation::Load { requests, depth } => {
                self.load(requests, depth);
            }
            Operation::Cut { node, both, time } => {
                self.coverage.fault("link cut");
                self.network.cut[node] = true;
                self.network.cut[1 - node] |= both;
                self.after(time, Due::Over(Restore::Link));
            }
            Operation::Break { pick, half } => self.break_connection(pick, half),
            // With both disks gone the newest generation may have been on neither: what a node that comes back with the older
            // data discards then, it cannot know of. One at a time is what has to be survived.
            Operation::FailDisk { node, .. } if !self.is_intact(1 - node) => {}
            Operation::PowerCut { .. } | Operation::PowerCutBoth { .. } if self.a_disk_is_out() => {}
            Operation::PowerCut { node, time } => self.cut_power(node, time),
            Operation::PowerCutBoth { times } => {
                self.cut_power(0, times[0]);
                self.cut_power(1, times[1]);
            }
            Operation::Kill { node, time } => {
                if self.nodes[node].engine.is_some() {
                    self.coverage.fault("daemon killed");
                    self.stop_daemon(node, false);
                    self.after(time, Due::Over(Restore::Daemon(node)));
                }
            }
            Operation::Disconnect { node, time, force } => {
                self.coverage.fault("disconnect");
                self.nodes[node].administrator.wants_connection = false;
                self.command(node, 0, Purpose::Disconnect, Command::Disconnect { force });
                self.after(time, Due::Over(Restore::Connection(node)));
            }
            Operation::SwitchOver => self.switch_over(),
            Operation::Promote { node } => self.try_promotion(node),
            Operation::Demote { node } => self.give_up_role(node),
            other => self.rare_step(other),
        }
    }

    fn rare_step(&mut self, operation: Operation) {
        match operation {
            Operation::Detach { node, time } => {
                self.coverage.fault("detach");
                let volume = self.some_volume();
                self.nodes[node].volumes[volume].wants_disk = false;
                let command = Command::Detach { volume: number(volume), force: false };
                self.command(node, volume, Purpose::Detach, command);
                self.after(time, Due::Over(Restore::Disk(node)));
            }
            Operation::Invalidate { node } => {
                self.coverage.fault("invalidate");
                let volume = self.some_volume();
                self.invalidate(node, volume, node);
            }
            Operation::InvalidateRemote { node } => {
                self.coverage.fault("invalidate-remote");
                let volume = self.some_volume();
                self.invalidate(node, volume, 1 - node);
            }
            Operation::Pause { node, time } => {
                self.coverage.fault("pause-sync");
                let volume = self.some_volume();
                self.command(node, volume, Purpose::Other, Command::PauseSync { volume: number(volume) });
                self.after(time, Due::Over(Restore::Resync(node)));
            }
            Operation::Suspend { node, time } => {
                self.coverage.fault("suspend-io");
                self.command(node, 0, Purpose::Other, Command::SuspendIo { volume: number(0) });
                self.after(time, Due::Over(Restore::Io(node)));
            }
            Operation::Down { node, time } => {
                if self.nodes[node].engine.is_some() {
                    self.coverage.fault("down");
                    self.nodes[node].volumes.iter_mut().for_each(|volume| volume.wants_disk = false);
                    self.nodes[node].administrator.wants_connection = false;
                    self.command(node, 0, Purpose::Down, Command::Down);
                    self.after(time, Due::Over(Restore::Disk(node)));
                    self.after(time, Due::Over(Restore::Connection(node)));
                }
            }
            Operation::FailDisk { node, metadata, time } => {
                self.coverage.fault("disk fails");
                let volume = self.some_volume();
                self.nodes[node].volumes[volume].failing = Some(Failing { until: self.now + time, metadata });
                // Nobody attaches it before that is over.
                self.nodes[node].volumes[volume].wants_disk = false;
                self.after(time, Due::Over(Restore::Disk(node)));
            }
            Operation::SlowDisk { node, time } => {
                self.coverage.fault("slow disk");
                self.nodes[node].slow_until = self.now + time;
            }
            Operation::SlowNetwork { time } => {
                self.coverage.fault("slow network");
                self.network.latency.1 = self.plan.settings.network_latency.1 * 20;
                self.after(time, Due::Over(Restore::Network));
            }
            Operation::PromoteBoth => self.promote_both(),
            Operation::Verify { node } => self.verify(node),
            Operation::Rot { node } => self.rot(node),
            Operation::Grow { nodes, sectors } => self.grow(nodes, sectors),
            Operation::Resize { node } => self.resize(node),
            Operation::Deed { node, which, time } => self.deed(node, which, time),
            _ => self.resolve(),
        }
    }

    pub(crate) fn cut_power(&mut self, node: NodeId, time: u64) {
        if self.nodes[node].powered {
            self.coverage.fault("power cut");
            self.stop_daemon(node, true);
            self.after(time, Due::Over(Restore::Power(node)));
        }
    }

    fn break_connection(&mut self, pick: u64, half: bool) {
        let ends = self.network.ends_of((pick % 2) as NodeId);
        if ends.is_empty() {
            return;
        }
        let (connection, end) = ends[(pick / 2) as usize % ends.len()];
        self.coverage.fault(if half { "socket half-closed" } else { "socket reset" });
        let state = self.network.connections[connection].ends[end];
        self.close_end(connection, end, if half { Ending::Finished } else { Ending::Reset });
        let text = format!("connection {connection} breaks at node {}", state.node);
        self.say(&text);
        let Some(socket) = state.socket else { return };
        if half {
            // This end keeps sending into the void: it hears of it when the other end has hung up.
            self.network.connections[connection].ends[end].open = true;
            self.network.connections[connection].ends[end].deaf = true;
            self.network.connections[connection].directions[end].ending = Some((Ending::Finished, self.now));
        } else {
            let loss = udrbd_engine::interface::SocketLoss::Broken(104);
            self.feed(state.node, Event::SocketDown { socket, loss });
        }
    }

    /// Something is over.
    pub(crate) fn restore(&mut self, restore: Restore) {
        let text = format!("over: {restore:?}");
        self.say(&text);
        match restore {
            Restore::Link => {
                self.network.cut = [false; 2];
                for connection in 0..self.network.connections.len() {
                    for direction in 0..2 {
                        let delay = self.network_delay();
                        self.after(delay, Due::Arrival { connection, direction });
                    }
                }
            }
            Restore::Power(node) => {
                self.nodes[node].powered = true;
                self.start_daemon(node);
            }
            Restore::Daemon(node) => self.start_daemon(node),
            Restore::Connection(node) => self.nodes[node].administrator.wants_connection = true,
            Restore::Disk(node) => {
                self.nodes[node].volumes.iter_mut().for_each(|volume| volume.wants_disk = true);
            }
            Restore::Resync(node) => {
                for volume in 0..self.nodes[node].volumes.len() {
                    let command = Command::ResumeSync { volume: number(volume) };
                    self.command(node, volume, Purpose::Other, command);
                }
            }
            Restore::Io(node) => {
                self.command(node, 0, Purpose::Other, Command::ResumeIo { volume: number(0) });
            }
            Restore::Network => self.network.latency = self.plan.settings.network_latency,
        }
    }

    fn demote(&mut self, node: NodeId) {
        self.coverage.fault("secondary");
        self.secondary(node);
    }

    /// Demotes every volume.
    fn secondary(&mut self, node: NodeId) {
        for volume in 0..self.nodes[node].volumes.len() {
            let command = Command::Secondary { volume: number(volume), held_open: false };
            self.command(node, volume, Purpose::Secondary, command);
        }
    }

    fn give_up_role(&mut self, node: NodeId) {
        if self.nodes[node].is_primary() {
            self.demote(node);
        }
    }

    fn switch_over(&mut self) {
        let primary = (0..2).find(|node| self.nodes[*node].is_primary());
        match primary {
            Some(node) if !self.nodes[1 - node].is_primary() => {
                self.demote(node);
                self.try_promotion(1 - node);
            }
            Some(_) => {}
            None => self.try_promotion(0),
        }
    }

    /// Promotes a node. Behind the back of a Primary it does so at times only.
    pub(crate) fn try_promotion(&mut self, node: NodeId) {
        let volumes = 0..self.nodes[node].volumes.len();
        let own = &self.nodes[node];
        if own.engine.is_none() || volumes.clone().all(|volume| own.serves(volume)) {
            return;
        }
        let unseen = self.nodes[1 - node].is_primary()
            && self.nodes[node].least_connection() < ConnectionState::Connected;
        if unseen && !self.random.one_in(3) {
            return;
        }
        self.coverage.fault("primary");
        for volume in volumes {
            if !self.nodes[node].serves(volume) {
                self.promote(node, volume, false);
            }
        }
    }

    /// The end: everything is healed, and the nodes have to find together.
    pub(crate) fn ending(&mut self) {
        let Some(since) = self.ending_since else {
            self.ending_since = Some(self.now);
            self.resolved_at = self.now;
            self.begin_ending();
            self.after(SECOND / 2, Due::Ending);
            return;
        };
        for node in 0..2 {
            self.nodes[node].powered = true;
            self.start_daemon(node);
            self.nodes[node].volumes.iter_mut().for_each(|volume| volume.wants_disk = true);
            self.nodes[node].administrator.wants_connection = true;
        }
        if self.budget > 0 {
            self.call_clients(0);
        }
        self.forget_what_arrived();
        let calm = self.budget == 0
            && self.nodes.iter().all(|node| node.requests.is_empty())
            && self.in_transit.is_empty();
        let size = |node: NodeId, volume| self.nodes[node].volume(volume).map(|volume| volume.size);
        let alike = (0..self.are_equal.len()).all(|volume| size(0, volume) == size(1, volume));
        if self.all_are_equal() && calm && alike {
            self.conclude();
            return;
        }
        if self.now > since + CONVERGENCE {
            let text = self.all_states();
            self.fail("the nodes find together", text);
            return;
        }
        if self.now > self.resolved_at + 5 * SECOND {
            self.resolved_at = self.now;
            self.resume_late_pauses();
            self.resolve();
            self.last_resort(since);
        }
        self.after(SECOND / 2, Due::Ending);
    }

    fn all_states(&self) -> String {
        let states = [0, 1].map(|node: NodeId| {
            let own = &self.nodes[node];
            let waiting = own.requests.len();
            let volumes = (0..own.volumes.len()).map(|volume| {
                let role = own.volume(volume).map_or(Role::Unknown, |volume| volume.role);
                let (connection, disk, peer_disk) =
                    (own.connection(volume), own.disk_state(volume), own.peer_disk_state(volume));
                let marked = own.volume(volume).map_or(0, |volume| volume.counters.out_of_sync_sectors);
                format!("{connection} {role} {disk}/{peer_disk}, {marked} sectors out of sync")
            });
            format!("{}, {waiting} requests", volumes.collect::<Vec<_>>().join("; "))
        });
        format!("{states:?}")
    }

    /// Whether the node's disks hold everything and do not fail.
    fn is_intact(&self, node: NodeId) -> bool {
        let own = &self.nodes[node];
        let fails = |volume: &NodeVolume| volume.failing.is_some_and(|failing| failing.until > self.now);
        own.engine.is_some()
            && !own.volumes.iter().any(fails)
            && own.least_disk_state() == DiskState::UpToDate
    }

    /// Whether a disk fails, or has failed and does not hold everything again.
    fn a_disk_is_out(&self) -> bool {
        let failing = |node: &Node| node.volumes.iter().any(|volume| volume.failing.is_some());
        (0..2).any(|node| failing(&self.nodes[node]) && !self.is_intact(node))
    }

    fn begin_ending(&mut self) {
        self.say("the end begins");
        self.traps.clear();
        self.network.latency = self.plan.settings.network_latency;
        self.restore(Restore::Link);
        for node in 0..2 {
            self.nodes[node].slow_until = 0;
            self.nodes[node].volumes.iter_mut().for_each(|volume| volume.failing = None);
            self.restore(Restore::Power(node));
            if !self.plan.settings.keeps_one_history() {
                self.restore(Restore::Io(node));
            }
            self.restore(Restore::Resync(node));
        }
    }

    /// A pause that had to wait for another command came after the end had begun.
    fn resume_late_pauses(&mut self) {
        for node in 0..2 {
            let paused = |volume| self.nodes[node].volume(volume).is_some_and(|volume| volume.paused_by_user);
            if (0..self.are_equal.len()).any(paused) {
                self.restore(Restore::Resync(node));
            }
        }
    }

    /// Where neither node has good data any more, somebody has to choose.
    fn last_resort(&mut self, since: u64) {
        for volume in 0..self.are_equal.len() {
            let disk = |node: NodeId| self.nodes[node].disk_state(volume);
            let bad = |node: NodeId| (DiskState::Inconsistent..=DiskState::Outdated).contains(&disk(node));
            let connected = |node: NodeId| self.nodes[node].connection(volume) == ConnectionState::Connected;
            let met = connected(0) && connected(1);
            if bad(0) && bad(1) && (met || self.now > since + 30 * SECOND) {
                let better = usize::from(disk(1) > disk(0));
                self.coverage.fault("primary --force");
                self.promote(better, volume, true);
            }
        }
    }

    fn conclude(&mut self) {
        self.over = true;
        for volume in 0..self.are_equal.len() {
            self.compare(volume, "at the end");
            for node in 0..2 {
                let disk = &self.nodes[node].volumes[volume].disk;
                let size = self.in_use(volume);
                let result = self.checker.check_disk(disk, node, volume, size, "at the end");
                self.check("the disk is what it has to be", result);
            }
        }
        for node in 0..2 {
            let buffers = self.nodes[node].buffers.len();
            if buffers > 0 {
                self.fail("every buffer is given back", format!("{buffers} on node {node} are not"));
            }
        }
        self.say("the end");
    }
}
