//! What follows from a change of state, in DRBD's order (states spec 5).

use udrbd_units::{ConnectionState, DiskState, Role};

use crate::Engine;
use crate::bugs::Bug;
use crate::generation::TargetOfResync;
use crate::interface::Handler;
use crate::state::{StateRequest, Suspension, VolumeState, contact_to_peers_data_lost, state_range};

/// A change of which the consequences are still to be drawn.
#[derive(Clone, Copy, Debug)]
pub(crate) enum After {
    /// Of a volume.
    Volume { index: usize, old: VolumeState, new: VolumeState, step: Step },
    /// Of the connection.
    Connection { old: ConnectionState, new: ConnectionState },
}

/// How far the consequences of a change are drawn. A handler that is waited for ends each step but the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Step {
    /// Not at all.
    Begin,
    /// Those who care for a Primary without good data know.
    NoDataTold,
    /// All that comes before the disk goes.
    Changed,
    /// Those who care for the failure of a disk know.
    FailureTold,
}

const fn lacks_data(state: VolumeState) -> bool {
    matches!(state.role, Role::Primary)
        && (state.disk as u8) < DiskState::UpToDate as u8
        && (state.peer_disk as u8) < DiskState::UpToDate as u8
}

impl Engine {
    /// Draws the consequences of all changes, in their order. Returns whether there were any.
    pub(crate) fn run_after(&mut self) -> bool {
        let mut progress = false;
        while !self.after_waits
            && let Some(after) = self.after.pop_front()
        {
            progress = true;
            match after {
                After::Volume { index, old, new, step } => {
                    if let Some(step) = self.after_volume(index, old, new, step) {
                        self.after.push_front(After::Volume { index, old, new, step });
                    }
                }
                After::Connection { old, new } => self.after_connection(old, new),
            }
        }
        progress
    }

    /// Returns where to go on once the handler that was started has ended.
    fn after_volume(&mut self, index: usize, old: VolumeState, new: VolumeState, step: Step) -> Option<Step> {
        if step == Step::Begin {
            self.both_became_good(index, old, new);
            if lacks_data(new) && !lacks_data(old) {
                self.run_handler_and_wait(Handler::PriOnInconDegr, index);
                return Some(Step::NoDataTold);
            }
        }
        if step <= Step::NoDataTold {
            self.after_volume_change(index, old, new);
        }
        let failed = old.disk != DiskState::Failed && new.disk == DiskState::Failed;
        if step <= Step::Changed && failed && self.has_local_io_error_handler(index) {
            // Called before the peer is told, so that it may reset this node (states spec 13.4).
            self.run_handler_and_wait(Handler::LocalIoError, index);
            return Some(Step::FailureTold);
        }
        self.disk_goes(index, old, new);
        self.resync_ends(index, old, new);
        None
    }

    fn both_became_good(&mut self, index: usize, old: VolumeState, new: VolumeState) {
        let both_good =
            |state: VolumeState| state.disk == DiskState::UpToDate && state.peer_disk == DiskState::UpToDate;
        if !both_good(old) && both_good(new) {
            self.volumes[index].flags.crashed_primary = false;
            if let Some(peer) = &mut self.volumes[index].peer_generations {
                peer.flags &= !crate::volume::uuid_flag::CRASHED_PRIMARY;
            }
        }
    }

    fn after_volume_change(&mut self, index: usize, old: VolumeState, new: VolumeState) {
        if old.connection != new.connection {
            // A resync that waits for its handler is given up with the state it was to start from, also when that comes again.
            let start = &mut self.volumes[index].resync.start;
            *start = start.filter(|start| start.from == new.connection);
        }
        self.thaw_after(old, new);
        self.resync_source_starts(index, old, new);
        // A peer that was attaching when it connected waits for this just as well.
        let comes = old.peer_disk == DiskState::Diskless
            || (old.peer_disk == DiskState::Attaching && new.peer_disk > DiskState::Failed);
        if comes && new.peer_disk > DiskState::Diskless && new.peer_disk != DiskState::Unknown {
            self.send_uuids(index, 0);
            self.send_state_word(index, new);
        }
        if old.connection != ConnectionState::WFBitMapS && new.connection == ConnectionState::WFBitMapS {
            self.begin_sending_bitmap(index);
        }
        self.peer_data_lost(index, old, new);
        self.demoted(index, old, new);
        self.tell_peer_of_change(index, old, new);
    }

    fn has_local_io_error_handler(&self, index: usize) -> bool {
        let volume = &self.volumes[index];
        let policy = volume.disk.as_ref().map(|disk| disk.options.on_io_error);
        volume.flags.was_io_error && policy == Some(crate::interface::OnIoError::CallLocalIoError)
    }

    /// A5 and A6: data are accessible again, or the peer is back (states spec 5.1).
    fn thaw_after(&mut self, old: VolumeState, new: VolumeState) {
        let lowest_connection =
            self.volume_states().map(|state| state.connection).min().unwrap_or(ConnectionState::StandAlone);
        let lowest_disk = self.volume_states().map(|state| state.disk).min().unwrap_or(DiskState::Diskless);
        let reconnected =
            old.connection < ConnectionState::Connected && lowest_connection >= ConnectionState::Connected;
        if new.suspension.no_data && self.suspension.no_data {
            let reattached = matches!(old.disk, DiskState::Attaching | DiskState::Negotiating)
                && lowest_disk == DiskState::UpToDate;
            if reattached || reconnected {
                self.set_suspension(Suspension { no_data: false, ..self.suspension });
                if reattached {
                    self.transfer_log_restart_disk();
                } else {
                    self.transfer_log_resend();
                }
                if !self.connection.lost_log_pending {
                    self.complete_held();
                }
                self.state_changed();
            }
        }
        if new.suspension.fencing
            && self.suspension.fencing
            && lowest_connection >= ConnectionState::Connected
        {
            for volume in &mut self.volumes {
                volume.flags.new_current_due = false;
            }
            self.set_suspension(Suspension { fencing: false, ..self.suspension });
            self.transfer_log_resend();
            self.complete_held();
            self.state_changed();
        }
        if reconnected && self.connection.log_frozen {
            // Suspended by the administrator alone, or resumed when the peer was back: the peer gets what it may not have.
            for volume in &mut self.volumes {
                volume.flags.new_current_due = false;
            }
            self.transfer_log_resend();
            self.complete_held();
        }
    }

    /// A10 and A11: the peer's data can no longer follow, so the data here are a new generation.
    fn peer_data_lost(&mut self, index: usize, old: VolumeState, new: VolumeState) {
        let Some(set) = self.generations(index) else { return };
        let doubtful = self.resync_from_here_is_cut_short(index, old, new)
            && new.role == Role::Primary
            && self.doubtful_target(index).is_some();
        if !self.volumes[index].has_disk()
            || (set.bitmap.is_some() && !doubtful)
            || new.disk < DiskState::UpToDate
        {
            return;
        }
        let somebody_primary = new.role == Role::Primary || new.peer == Role::Primary;
        let lost = contact_to_peers_data_lost(old.peer_disk, new.peer_disk) && somebody_primary;
        let diskless_promoted =
            new.peer_disk < DiskState::Inconsistent && old.peer != Role::Primary && new.peer == Role::Primary;
        // A Primary that gets its disk back while the peer's is out of reach: what it writes from now on is on this one only.
        let alone = old.disk < DiskState::UpToDate
            && old.role == Role::Primary
            && new.role == Role::Primary
            && (new.peer_disk < DiskState::Consistent || new.connection < ConnectionState::Connected);
        let forgotten = self.bug(Bug::NoNewGeneration)
            || (self.bug(Bug::GenerationOfFirstVolume) && self.volumes[index].number.0 > 0);
        if (!lost && !diskless_promoted && !alone && !doubtful) || forgotten {
            return;
        }
        // Only the own clients wait for I/O that is suspended here; a Primary peer without a disk goes on writing.
        if (lost || alone || doubtful) && self.suspension.any() && new.role == Role::Primary {
            self.volumes[index].flags.new_current_due = true;
            return;
        }
        self.new_current_generation(index);
        self.send_uuids(index, 0);
    }

    /// Whether a resync of which this node is the source ends before its time. What is known of the target then is kept.
    fn resync_from_here_is_cut_short(&mut self, index: usize, old: VolumeState, new: VolumeState) -> bool {
        use ConnectionState::{Ahead, Connected, PausedSyncS, SyncSource};
        let is_source = |state: VolumeState| matches!(state.connection, SyncSource | PausedSyncS);
        let ended = self.generations(index).is_none_or(|set| !set.bitmap.is_some());
        if is_source(old) && !is_source(new) && new.connection != Ahead && !ended {
            // One that ends with blocks it could not get says so.
            let told = new.connection == Connected && new.peer_disk == DiskState::Inconsistent;
            self.volumes[index].flags.target =
                if told { TargetOfResync::Unfinished } else { self.look_at_target(index) };
            return true;
        }
        self.volumes[index].flags.source_of_equals
            && old.connection >= Connected
            && new.connection < Connected
    }

    /// A12 and A13: a role was given up, so the bitmap is written before the superblock says so.
    fn demoted(&mut self, index: usize, old: VolumeState, new: VolumeState) {
        let diskless_peer = new.peer_disk < DiskState::Inconsistent
            && old.peer == Role::Primary
            && new.peer == Role::Secondary;
        let here = old.role == Role::Primary
            && new.role == Role::Secondary
            && self.volumes[index].state.connection <= ConnectionState::Connected;
        if (diskless_peer || here) && self.volumes[index].has_disk() {
            self.write_changed_pages_before_superblock(index);
        }
    }

    /// A14 to A18, A22, A25, A26: the peer learns of the change.
    fn tell_peer_of_change(&mut self, index: usize, old: VolumeState, new: VolumeState) {
        use ConnectionState::{Ahead, Connected, SyncSource, VerifyS, WFReportParams};
        let connected = new.connection >= Connected;
        let version = self.connection.dialect.version;
        if connected && old.disk == DiskState::Attaching && new.disk == DiskState::Negotiating {
            self.send_sizes(index, false, 0);
            self.send_uuids(index, 0);
            self.send_state_word(index, new);
        }
        if connected && (old.after_isp != new.after_isp || old.user_isp != new.user_isp) {
            self.send_state_word(index, new);
        }
        let handshake_over = old.connection == WFReportParams && connected;
        let went_ahead = old.connection != Ahead && new.connection == Ahead;
        if handshake_over || went_ahead {
            self.send_state_word(index, new);
        }
        let starting =
            matches!(new.connection, ConnectionState::StartingSyncS | ConnectionState::StartingSyncT);
        if starting && old.connection != new.connection {
            self.begin_full_sync(index);
        }
        if old.disk == DiskState::UpToDate && new.disk == DiskState::Inconsistent && connected {
            self.send_state_word(index, new);
        }
        if old.disk < DiskState::UpToDate && old.connection >= SyncSource && new.connection == Connected {
            self.send_state_word(index, new);
        }
        if old.connection == VerifyS && new.connection == Connected && version >= 97 && version != 100 {
            self.send_state_word(index, new);
        }
    }

    /// A20 and A21: the way from Failed to Diskless.
    fn disk_goes(&mut self, index: usize, old: VolumeState, new: VolumeState) {
        let connected = new.connection >= ConnectionState::Connected;
        if old.disk != DiskState::Failed && new.disk == DiskState::Failed {
            if connected {
                self.send_state_word(index, new);
            }
            if let Some(disk) = &mut self.volumes[index].disk {
                disk.extents.cancel_all();
            }
            self.run_activity_log(index);
        }
        if old.disk != DiskState::Diskless && new.disk == DiskState::Diskless && connected {
            self.send_state_word(index, new);
        }
    }

    /// A23, A24, A27 and what follows from the end of background work.
    fn resync_ends(&mut self, index: usize, old: VolumeState, new: VolumeState) {
        use ConnectionState::{Ahead, Connected};
        let lost = |old: DiskState, new: DiskState| new < old && new <= DiskState::Failed;
        let parted = old.connection >= Connected && new.connection < Connected;
        if lost(old.disk, new.disk) || lost(old.peer_disk, new.peer_disk) || parted {
            // What has grown comes with the resync that the next attach begins, or is marked.
            let flags = &mut self.volumes[index].flags;
            (flags.resync_after_negotiating, flags.resize_pending) = (false, false);
        }
        let negotiated = new.disk > DiskState::Negotiating && new.peer_disk > DiskState::Negotiating;
        if negotiated
            && std::mem::take(&mut self.volumes[index].flags.resync_after_negotiating)
            && new.connection == Connected
        {
            self.resync_after_grow(index);
        }
        let was_syncing = old.connection > Connected && old.connection < Ahead;
        let over = new.connection == Connected || new.connection >= Ahead;
        if was_syncing && over {
            self.volumes[index].resync.forget_sent_blocks();
        }
        if was_syncing && over && self.volumes[index].has_disk() {
            self.write_changed_pages(index);
        }
        // A full sync that was asked for and has not got its name: with equal identifiers the next handshake would find both
        // copies in sync. Inconsistent, this one is fetched.
        let unnamed = matches!(old.connection, ConnectionState::StartingSyncT | ConnectionState::WFSyncUUID);
        let all_bits = self.volumes[index]
            .disk
            .as_ref()
            .is_some_and(|disk| disk.bitmap.set_count() == disk.bitmap.bits());
        if unnamed && new.connection < Connected && all_bits && self.volumes[index].has_disk() {
            self.force_state(index, StateRequest::disk(DiskState::Inconsistent));
        }
        let was_ahead = matches!(old.connection, Ahead | ConnectionState::Behind);
        let given_up = (was_syncing || was_ahead) && self.volumes[index].state.connection == Connected;
        if (given_up && self.volumes[index].resync.running)
            || (old.connection >= Connected && new.connection < Connected)
        {
            self.give_up_resync(index);
        }
    }

    fn after_connection(&mut self, old: ConnectionState, new: ConnectionState) {
        use ConnectionState::{Disconnecting, StandAlone, Unconnected};
        if new == Unconnected && old <= Unconnected {
            self.start_connecting();
        }
        if old == Disconnecting && new == StandAlone {
            self.connection.forget_configuration();
        }
        self.fencing_succeeded();
        self.attention = true;
    }

    /// The peer is fenced: what was frozen goes on, as a new generation (states spec 5.2.4).
    pub(crate) fn fencing_succeeded(&mut self) {
        let range = state_range(self.connection.state, self.suspension, self.volume_states());
        // What the peer has just been told must not change under its decision (states spec 3.6, X7).
        let handshake = self.connection.state_sent;
        if !self.suspension.fencing || handshake || range.highest.peer_disk > DiskState::Outdated {
            return;
        }
        self.begin_due_generations();
        self.set_suspension(Suspension { fencing: false, ..self.suspension });
        // What is held completes when the new generation is on disk (io spec I13).
        self.connection.lost_log_pending = true;
        self.state_changed();
    }
}
