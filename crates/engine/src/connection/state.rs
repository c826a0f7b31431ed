//! The peer's state, and the decision about the data that follows from it (states spec 6.4 and 10).

use udrbd_units::{ConnectionState, DiskState, Role};

use super::parameters::Verdict;
use crate::Engine;
use crate::change::Verbosity;
use crate::generation::{
    GenerationSet, HandshakeFacts, HandshakeOutcome, PeerFlags, PeerGeneration, ResyncPolicies, SplitBrain,
    Step, handshake, handshake_after_demotion,
};
use crate::handlers::Reason;
use crate::interface::{Fencing, HandlerId, Level};
use crate::state::{Enforcement, StateRequest, VolumeState, resync_should_be_considered};
use crate::volume::uuid_flag;

/// What the handshake means for the state.
enum Handshaken {
    Connection(ConnectionState),
    Refused,
    /// A handler has to end first.
    Later,
}

/// A decision about the data, of which handlers are told one after the other (states spec 10.2 and 20.2). Nothing else of
/// the peer is received meanwhile.
#[derive(Debug)]
pub(crate) struct Pondering {
    /// By what it was made.
    facts: HandshakeFacts,
    /// The peer's state that led to it.
    received: VolumeState,
    /// How many of its steps are taken.
    taken: usize,
    /// The handler that runs.
    handler: Option<HandlerId>,
    /// It waits for the own new generation to be on disk.
    awaits_generation: bool,
}

impl Engine {
    /// P_STATE.
    pub(crate) fn state_received(&mut self, index: usize, received: VolumeState) -> Verdict {
        use ConnectionState as C;
        if std::mem::replace(&mut self.volumes[index].peer_seen, true) {
            // It answers what this node has told of itself, so it has told of itself all that there is.
            self.connection.peer_told_all = true;
            self.look_whether_handshake_is_over();
        }
        // A role changed while both devices grew. (Two kernels wait for each other for ever.)
        let same = match (self.volumes[index].state.connection, received.connection) {
            (C::WFSyncUUID, C::WFSyncUUID) => Some("Both nodes wait to become SyncTarget, connecting again"),
            (C::SyncSource | C::PausedSyncS, C::SyncSource | C::PausedSyncS) => {
                Some("Both nodes have become SyncSource, connecting again")
            }
            _ => None,
        };
        if let Some(text) = same {
            self.say(Level::Info, Some(index), text.to_owned());
            return Verdict::Reconnect;
        }
        let mut peer_disk = self.real_peer_disk(index, received);
        let old = VolumeState { suspension: self.suspension, ..self.volumes[index].state };
        if old.connection <= C::TearDown {
            return Verdict::Reconnect;
        }
        if self.finishes_resync(index, old, received, &mut peer_disk) {
            return Verdict::Good;
        }
        if old.peer_disk == DiskState::UpToDate
            && peer_disk == DiskState::Inconsistent
            && old.connection == C::Connected
            && received.connection > C::SyncSource
        {
            peer_disk = DiskState::UpToDate;
        }
        let mut connection = if old.connection == C::WFReportParams { C::Connected } else { old.connection };
        if received.connection == C::Ahead {
            connection = C::Behind;
            // The resync it asked for before that is not to begin any more.
            self.volumes[index].resync.start = None;
        }
        let mut received_disk = received.disk;
        let unknown = self.volumes[index].peer_generations.is_none();
        let both_disks = old.disk >= DiskState::Negotiating && received.disk >= DiskState::Negotiating;
        if unknown && both_disks && old.connection < C::Connected {
            // A disk was attached while this volume alone joined: nobody knows yet who has the better data.
            let text = "Peer told its state before its identifiers, connecting again".to_owned();
            self.say(Level::Info, Some(index), text);
            return Verdict::Reconnect;
        }
        if !unknown && resync_should_be_considered(old, received, self.volumes[index].flags.consider_resync) {
            match self.decide_resync(index, received, peer_disk) {
                Handshaken::Later => return Verdict::Good,
                Handshaken::Connection(decided) => connection = decided,
                Handshaken::Refused if old.disk == DiskState::Negotiating => {
                    connection = C::Connected;
                    self.force_state(index, StateRequest::disk(DiskState::Failed));
                }
                Handshaken::Refused if received.disk == DiskState::Negotiating => {
                    let text = "Disk attach process on the peer node was aborted.".to_owned();
                    self.say(Level::Error, Some(index), text);
                    // Or the peer would wait for a decision for ever.
                    self.send_uuids(index, 0);
                    self.send_current_state(index);
                    connection = C::Connected;
                    received_disk = DiskState::Diskless;
                    peer_disk = DiskState::Diskless;
                }
                // Where both only try, both have heard what there is to hear (8.4.11 goes on for ever).
                Handshaken::Refused
                    if std::mem::take(&mut self.connection.peer_dry_run) && !self.only_tries() =>
                {
                    return Verdict::Reconnect;
                }
                Handshaken::Refused => return Verdict::StandAlone,
            }
        }
        self.take_over(index, old, received, received_disk, peer_disk, connection)
    }

    /// Whether the connection is only wanted to see what it would do.
    fn only_tries(&self) -> bool {
        self.connection.options.as_ref().is_some_and(|options| options.tentative)
    }

    /// A disk the peer is still attaching counts as what it will be (states spec 6.4 step 1).
    fn real_peer_disk(&mut self, index: usize, received: VolumeState) -> DiskState {
        if received.disk != DiskState::Negotiating {
            return received.disk;
        }
        let flags = self.volumes[index].peer_generations.map_or(0, |peer| peer.flags);
        let real = if flags & uuid_flag::INCONSISTENT != 0 {
            DiskState::Inconsistent
        } else {
            DiskState::Consistent
        };
        self.say(Level::Info, Some(index), format!("real peer disk state = {real}"));
        real
    }

    /// The peer says that it is done with a resync or a verify (steps 3 and 4).
    fn finishes_resync(
        &mut self,
        index: usize,
        old: VolumeState,
        received: VolumeState,
        peer_disk: &mut DiskState,
    ) -> bool {
        use ConnectionState as C;
        let peer_was_behind = matches!(old.peer_disk, DiskState::Inconsistent | DiskState::Consistent);
        if peer_was_behind
            && *peer_disk == DiskState::UpToDate
            && old.connection > C::Connected
            && old.disk == DiskState::UpToDate
        {
            if received.connection > C::Connected && received.connection < C::SyncSource {
                *peer_disk = DiskState::Inconsistent;
            } else if old.connection == C::Ahead && received.connection == C::Connected {
                // It was done with the last resync before it heard that it is Behind.
                return true;
            } else if old.connection >= C::SyncSource && received.connection == C::Connected {
                // Writes that the target marked in sync may still wait for their barrier here.
                self.volumes[index].resync.peer_is_done = true;
                self.attention = true;
                return true;
            }
        }
        // A target that ends with blocks it could not get reports Connected and Inconsistent (io spec 23.4).
        if matches!(old.connection, C::SyncSource | C::PausedSyncS)
            && received.connection == C::Connected
            && received.disk == DiskState::Inconsistent
        {
            if self.volumes[index].resync.failed > 0 {
                self.finish_resync(index);
            } else {
                // It has taken a refusal of the last run for one of this.
                let text = "The peer ended its resync without all blocks, connecting again".to_owned();
                self.say(Level::Info, Some(index), text);
                self.lose_connection(ConnectionState::ProtocolError);
            }
            return true;
        }
        if old.connection == C::VerifyT
            && old.disk == DiskState::UpToDate
            && received.connection == C::Connected
            && *peer_disk == DiskState::UpToDate
        {
            self.finish_verify(index);
            return true;
        }
        false
    }

    fn take_over(
        &mut self,
        index: usize,
        old: VolumeState,
        received: VolumeState,
        received_disk: DiskState,
        peer_disk: DiskState,
        connection: ConnectionState,
    ) -> Verdict {
        use ConnectionState as C;
        self.volumes[index].flags.consider_resync = false;
        let mut disk = self.volumes[index].state.disk;
        // What the peer said before it heard of the disk decides nothing: its identifiers are on their way.
        let undecided =
            self.volumes[index].peer_generations.is_none() && received_disk >= DiskState::Negotiating;
        if matches!(connection, C::Connected | C::WFBitMapS)
            && disk == DiskState::Negotiating
            && !undecided
            && let Some(remembered) = self.volumes[index].remembered
        {
            disk = remembered.disk;
        }
        let frozen = self.suspension.any() && self.volumes[index].flags.new_current_due;
        // It may have lost power, and with its cache what it had acknowledged; that a cluster manager has outdated it since shows
        // nothing else (8.4.11 asks for Consistent alone).
        if matches!(peer_disk, DiskState::Consistent | DiskState::Outdated)
            && frozen
            && connection == C::Connected
            && old.connection < C::Connected
        {
            let text = format!("Aborting Connect, can not thaw IO with an only {peer_disk} peer");
            self.say(Level::Error, Some(index), text);
            // I/O of every volume goes on without the peer (8.4.11 begins a generation for this one alone).
            self.volumes[index].flags.new_current_due = true;
            self.begin_due_generations();
            self.set_suspension(crate::state::Suspension::NONE);
            // With them what is held completes, also what never was on its way to the peer.
            self.connection.lost_log_pending = true;
            return Verdict::Reconnect;
        }
        if self.connection.log_frozen
            && old.connection < C::Connected
            && self.resyncs_unconfirmed(index, connection, peer_disk)
        {
            return Verdict::Reconnect;
        }
        let request = StateRequest {
            connection: Some(connection),
            peer: Some(received.role),
            peer_disk: Some(peer_disk),
            peer_isp: Some(received.after_isp || received.user_isp),
            disk: Some(disk),
            ..StateRequest::NONE
        };
        let establishes = old.connection < C::Connected && connection >= C::Connected;
        let enforcement = if establishes { Enforcement::Soft } else { Enforcement::Hard };
        let result = self.change_volume(index, request, enforcement, Verbosity::Verbose);
        if !result.is_success() && enforcement == Enforcement::Soft {
            return Verdict::StandAlone;
        }
        if old.connection > C::WFReportParams
            && self.volumes[index].state.connection > C::Connected
            && received.connection <= C::Connected
            && received_disk != DiskState::Negotiating
        {
            self.send_uuids(index, 0);
            self.send_current_state(index);
        }
        self.volumes[index].flags.discard_my_data = false;
        Verdict::Good
    }

    /// The peer is back while I/O is frozen: what it had acknowledged and not confirmed for good is not sent again, and may have
    /// gone with its cache. Sees to it that this is resynced. Returns whether another handshake has to begin for that.
    fn resyncs_unconfirmed(
        &mut self,
        index: usize,
        connection: ConnectionState,
        peer_disk: DiskState,
    ) -> bool {
        if connection == ConnectionState::WFBitMapS {
            // It goes with the resync that begins anyway.
            self.mark_unconfirmed(index);
            return false;
        }
        // With fencing a peer that lost power says that it is only Consistent, and has been refused. Without, it says that it
        // is UpToDate, as one does that was there all the time (8.4.11 believes it).
        let believed = connection == ConnectionState::Connected
            && peer_disk == DiskState::UpToDate
            && self.fencing_policy() == Fencing::DontCare
            && self.volumes[index].flags.new_current_due;
        if !believed || !self.mark_unconfirmed(index) {
            return false;
        }
        let text = "Connecting again, the peer may have lost what it has not confirmed".to_owned();
        self.say(Level::Info, Some(index), text);
        self.volumes[index].flags.new_current_due = false;
        self.new_current_generation(index);
        true
    }

    /// Who has the better data (states spec 10).
    fn decide_resync(&mut self, index: usize, received: VolumeState, peer_disk: DiskState) -> Handshaken {
        let Some(facts) = self.handshake_facts(index, received.role, peer_disk) else {
            return Handshaken::Refused;
        };
        // Writes go on while a handler runs; everything else that has changed meanwhile makes another decision.
        let before = self.volumes[index].pondering.take();
        let same = |before: &Pondering| {
            before.facts == HandshakeFacts { own_set_bits: before.facts.own_set_bits, ..facts }
        };
        let before = before.filter(|before| same(before));
        let facts = before.as_ref().map_or(facts, |before| before.facts);
        let taken = before.map_or(0, |before| before.taken);
        let mut pondering = Pondering { facts, received, taken, handler: None, awaits_generation: false };
        let mut decision = handshake(&facts);
        if self.begins_generation_first(index, &facts, decision.outcome) {
            self.volumes[index].pondering =
                Some(Box::new(Pondering { awaits_generation: true, ..pondering }));
            return Handshaken::Later;
        }
        let first = std::mem::take(&mut decision.steps);
        if !self.take_steps(index, &first, 0, &mut pondering) {
            self.volumes[index].pondering = Some(Box::new(pondering));
            return Handshaken::Later;
        }
        if decision.outcome == HandshakeOutcome::TryDemotion {
            let demoted = self.change_state(index, StateRequest::role(Role::Secondary)).is_success();
            decision = handshake_after_demotion(&facts, demoted);
            let steps = std::mem::take(&mut decision.steps);
            if !self.take_steps(index, &steps, first.len(), &mut pondering) {
                self.volumes[index].pondering = Some(Box::new(pondering));
                return Handshaken::Later;
            }
        }
        self.remember_split_brain(index, &facts, decision.outcome);
        if self.bug(crate::bugs::Bug::WrongDirection) {
            decision.outcome = match decision.outcome {
                HandshakeOutcome::Source { full } => HandshakeOutcome::Target { full },
                HandshakeOutcome::Target { full } => HandshakeOutcome::Source { full },
                other => other,
            };
        }
        // A correction of the own identifiers is only made when the resync it leads to begins: before, a lost link
        // would leave two nodes with equal identifiers and different data.
        let corrected = decision.comparison.own;
        self.volumes[index].correction = (corrected != facts.own).then_some(corrected);
        if let Some(peer) = &mut self.volumes[index].peer_generations {
            let set = decision.comparison.peer;
            peer.current = set.current;
            peer.bitmap = set.bitmap;
            peer.history = set.history;
        }
        let Some(connection) = decision.outcome.connection() else { return Handshaken::Refused };
        if self.connection.state <= ConnectionState::TearDown {
            // The connection went while a handler ran.
            return Handshaken::Later;
        }
        if decision.outcome.is_full() {
            self.begin_full_sync(index);
        }
        Handshaken::Connection(connection)
    }

    /// A Primary whose peer has crashed, or both, finds it back with the same identifiers, and is the source (rule 41). Until the
    /// resync has a name it writes what the peer does not get: should it fail before, the two would look equal once more, and a
    /// coin decide whose data are kept. So a new generation comes first, and the decision is made with that. (8.4.11 goes on as
    /// it is; where such a peer needs no resync it begins a generation, too: "can not thaw IO with an only Consistent peer".)
    /// Returns whether it begins one.
    fn begins_generation_first(
        &mut self,
        index: usize,
        facts: &HandshakeFacts,
        outcome: HandshakeOutcome,
    ) -> bool {
        let nameless = !facts.own.bitmap.is_some()
            && facts.own.current.same_generation(facts.peer.set.current)
            && facts.effective_disk() == DiskState::UpToDate
            && facts.peer_disk > DiskState::Inconsistent;
        let source = matches!(outcome, HandshakeOutcome::Source { .. });
        let joining = self.volumes[index].state.connection < ConnectionState::Connected;
        if !nameless || !source || !joining || facts.own_role != Role::Primary {
            return false;
        }
        self.volumes[index].flags.new_current_due = false;
        self.new_current_generation(index);
        self.send_uuids(index, 0);
        true
    }

    /// The new generation that a decision waited for is on disk. Returns whether one did.
    pub(crate) fn generation_of_handshake_is_durable(&mut self, index: usize) -> bool {
        let volume = &mut self.volumes[index];
        let waits = volume.pondering.as_ref().is_some_and(|pondering| pondering.awaits_generation);
        if !waits || volume.current_due.is_some() {
            return false;
        }
        let Some(pondering) = volume.pondering.take() else { return false };
        // The same word of the peer once more: it does not show that the peer has told of all its volumes.
        volume.peer_seen = false;
        if self.connection.state > ConnectionState::TearDown {
            let verdict = self.state_received(index, pondering.received);
            self.obey(verdict, "ReportState");
        }
        self.attention = true;
        true
    }

    /// Keeps what people are to be told of a split brain, solved or not, and begins an undo for the victim.
    fn remember_split_brain(&mut self, index: usize, facts: &HandshakeFacts, outcome: HandshakeOutcome) {
        let number = self.volumes[index].split_brain.as_ref().map_or(1, |before| before.number + 1);
        if let Some(found) = SplitBrain::of(facts, outcome, number) {
            self.volumes[index].split_brain = Some(Box::new(found));
            self.state_changed();
            if matches!(outcome, HandshakeOutcome::Target { .. }) {
                self.begin_undo(index);
            }
        }
    }

    fn handshake_facts(&self, index: usize, peer_role: Role, peer_disk: DiskState) -> Option<HandshakeFacts> {
        let volume = &self.volumes[index];
        let options = self.connection.options.as_ref()?;
        let peer = volume.peer_generations?;
        Some(HandshakeFacts {
            own: self.generations(index)?,
            crashed_primary: volume.flags.crashed_primary,
            own_told_bits: volume.told_bits,
            own_set_bits: volume.set_bits(),
            own_role: volume.state.role,
            own_disk: volume.state.disk,
            remembered_disk: volume.remembered.map(|remembered| remembered.disk),
            discard_my_data: volume.flags.discard_my_data,
            peer: PeerGeneration {
                set: GenerationSet { current: peer.current, bitmap: peer.bitmap, history: peer.history },
                set_bits: peer.set_bits,
                flags: PeerFlags(peer.flags),
            },
            peer_role,
            peer_disk,
            resolve_conflicts: self.connection.resolve_conflicts,
            protocol: self.connection.dialect.version,
            features: self.connection.dialect.features.0,
            policies: ResyncPolicies::from(options),
            dry_run: options.tentative || self.connection.peer_dry_run,
        })
    }

    /// Takes the steps of a decision that are still to be taken; `before` of it came before these. False where a handler
    /// has to end first.
    fn take_steps(&mut self, index: usize, steps: &[Step], before: usize, pondering: &mut Pondering) -> bool {
        for step in steps.iter().skip(pondering.taken.saturating_sub(before)) {
            pondering.taken += 1;
            match step {
                Step::Log(level, text) => self.say(*level, Some(index), text.clone()),
                Step::Handler(handler) => {
                    let reason = Reason::Handshake { index };
                    pondering.handler = Some(self.run_handler_for(*handler, Some(index), reason));
                    return false;
                }
            }
        }
        true
    }

    /// Whether a decision waits for a handler.
    pub(crate) fn is_pondering(&self) -> bool {
        self.volumes.iter().any(|volume| !volume.removed && volume.pondering.is_some())
    }

    /// A handler that was told of a decision has ended: the decision goes on. Where it is a refusal, that holds even if the
    /// connection has been lost meanwhile (states spec 7.5).
    pub(crate) fn handshake_handler_done(&mut self, index: usize, handler: HandlerId) {
        let pondering = self.volumes[index].pondering.as_mut();
        let Some(pondering) = pondering.filter(|pondering| pondering.handler == Some(handler)) else {
            return;
        };
        pondering.handler = None;
        let received = pondering.received;
        let lost = self.connection.state <= ConnectionState::TearDown;
        let verdict = if lost {
            let peer_disk = pondering.facts.peer_disk;
            match self.decide_resync(index, received, peer_disk) {
                Handshaken::Refused if !self.connection.peer_dry_run => Verdict::StandAlone,
                _ => Verdict::Good,
            }
        } else {
            self.state_received(index, received)
        };
        if self.volumes[index].pondering.as_ref().is_some_and(|pondering| pondering.handler.is_none()) {
            self.volumes[index].pondering = None;
        }
        self.obey(verdict, "ReportState");
        self.attention = true;
    }
}
