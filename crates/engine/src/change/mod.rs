//! Changing states: the checks, what happens at once, what happens after (states spec 3 to 5).

mod after;
mod cluster_wide;

pub(crate) use after::After;
use after::Step;
pub(crate) use cluster_wide::DeviceRequest;

use udrbd_metadata::Flags;
use udrbd_units::{ConnectionState, DiskState, Role};

use crate::Engine;
use crate::interface::Level;
use crate::state::{
    Change, ChangeLine, Context, Enforcement, MetadataFlags, NetworkContext, OutdateFailure, Refusal,
    StateChangeResult, StateRequest, Suspension, VolumeState, check_connection_change, common_state, decide,
    highest_peer, implicit_metadata_flags, plan_connection_volume, state_range, writes_go_to_peer,
};

/// Whether a refusal is told to the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verbosity {
    Quiet,
    Verbose,
}

impl Engine {
    /// What the rules read about a volume besides its state.
    pub(crate) fn context(&self, index: usize) -> Context {
        let volume = &self.volumes[index];
        Context {
            present_disk: volume.state.disk,
            fencing: volume.disk.as_ref().map_or_else(Default::default, |disk| disk.options.fencing),
            on_no_data: self.options.on_no_data,
            effective_data: volume.exposed,
            metadata_current: volume
                .disk
                .as_ref()
                .map_or_else(Default::default, |disk| disk.superblock.current),
            remembered: volume.remembered,
            network: self.connection.options.as_ref().map(|options| NetworkContext {
                allow_two_primaries: options.allow_two_primaries,
                has_verify_algorithm: !options.verify_alg.is_empty(),
            }),
            highest_peer: highest_peer(self.volume_states()),
            open_count: u32::from(volume.held_open),
            agreed_protocol: self.connection.dialect.version,
            state_sent: self.connection.state_sent,
            resync_due: volume.state.connection == ConnectionState::Connected
                && (volume.flags.resize_pending || volume.resync.start.is_some()),
        }
    }

    /// The states of all volumes.
    pub(crate) fn volume_states(&self) -> impl Iterator<Item = VolumeState> {
        self.volumes.iter().filter(|volume| !volume.removed).map(|volume| volume.state)
    }

    fn present_state(&self, index: usize) -> VolumeState {
        VolumeState { suspension: self.suspension, ..self.volumes[index].state }
    }

    /// Asks for a change of one volume, decided here and at once; a refusal is told to the log.
    pub(crate) fn change_state(&mut self, index: usize, request: StateRequest) -> StateChangeResult {
        self.change_volume(index, request, Enforcement::Soft, Verbosity::Verbose)
    }

    /// Imposes a fact.
    pub(crate) fn force_state(&mut self, index: usize, request: StateRequest) -> StateChangeResult {
        self.change_volume(index, request, Enforcement::Hard, Verbosity::Quiet)
    }

    pub(crate) fn change_volume(
        &mut self,
        index: usize,
        request: StateRequest,
        enforcement: Enforcement,
        verbosity: Verbosity,
    ) -> StateChangeResult {
        let old = self.present_state(index);
        match decide(old, request.apply(old), enforcement, &self.context(index)) {
            Ok(change) => {
                let result = change.result;
                if change.is_change() {
                    self.apply_change(index, &change, &ChangeLine::volume(change.old, change.new));
                    self.say_suspension(old.suspension);
                }
                result
            }
            Err(refusal) => {
                if verbosity == Verbosity::Verbose {
                    self.log_refusal(index, &refusal);
                }
                refusal.code
            }
        }
    }

    pub(crate) fn log_refusal(&mut self, index: usize, refusal: &Refusal) {
        for line in refusal.lines().into_iter().flatten() {
            self.say(Level::Error, Some(index), line);
        }
    }

    /// Stores a change and does what has to happen at once (states spec 3.9).
    fn apply_change(&mut self, index: usize, change: &Change, line: &ChangeLine) {
        let (old, new) = (change.old, change.new);
        if let Some(warning) = change.warning {
            self.say(Level::Warning, Some(index), warning.to_string());
        }
        if !line.is_empty() {
            self.say(Level::Info, Some(index), line.to_string());
        }
        if writes_go_to_peer(old) != writes_go_to_peer(new) {
            self.close_epoch();
        }
        if old.peer_disk >= DiskState::Inconsistent && new.peer_disk < DiskState::Inconsistent {
            self.doubt_unconfirmed(index);
        }
        self.suspension = new.suspension;
        self.volumes[index].state = new;
        if old.disk >= DiskState::Inconsistent && new.disk < DiskState::Inconsistent {
            self.cached_writes_lost(index);
        }
        self.connection_effects(index, old, new);
        self.disk_effects(index, old, new);
        if old.disk == DiskState::Inconsistent
            && old.peer_disk == DiskState::Inconsistent
            && old.peer == Role::Secondary
            && new.peer == Role::Primary
        {
            self.volumes[index].flags.consider_resync = true;
        }
        if old.role != new.role {
            self.tell_device(index);
        }
        self.state_changed();
        self.after.push_back(After::Volume { index, old, new, step: Step::Begin });
    }

    fn connection_effects(&mut self, index: usize, old: VolumeState, new: VolumeState) {
        use ConnectionState::{Connected, WFReportParams};
        if old.connection == new.connection {
            return;
        }
        let now = self.now;
        if old.connection == WFReportParams {
            self.look_whether_handshake_is_over();
        }
        if new.connection == WFReportParams {
            // The peer took its volume away, and may come with another.
            self.volumes[index].peer_generations = None;
        }
        if old.connection == Connected && new.connection == ConnectionState::VerifyS {
            self.begin_own_verify(index);
        }
        if old.is_verifying() && !new.is_verifying() {
            self.end_verify(index);
        }
        if new.is_syncing() && !old.is_syncing() {
            self.volumes[index].resync.done_posted = false;
        }
        if old.is_syncing() && new.is_syncing() {
            let was_paused = is_paused(old.connection);
            match (was_paused, is_paused(new.connection)) {
                (true, false) => {
                    self.say(Level::Info, Some(index), "Syncer continues.".to_owned());
                    self.volumes[index].resync.resume(now);
                }
                (false, true) => {
                    self.say(Level::Info, Some(index), "Resync suspended".to_owned());
                    self.volumes[index].resync.pause(now);
                    // Nobody comes back for an extent that was to be locked: writes may go there again.
                    if let Some(disk) = &mut self.volumes[index].disk {
                        disk.extents.drop_half_lock();
                    }
                }
                _ => {}
            }
        }
        if matches!(new.connection, ConnectionState::Ahead | ConnectionState::Behind) {
            // Nothing is asked for any more, and no answer counts as one to a resync that runs.
            self.volumes[index].resync.overtake();
            self.doubt_what_was_told(index);
            if let Some(disk) = &mut self.volumes[index].disk {
                disk.extents.drop_half_lock();
            }
        }
        if old.connection == ConnectionState::Ahead {
            self.volumes[index].return_at = None;
        }
        if new.connection < Connected {
            self.volumes[index].was_verifying = false;
        }
        if old.connection < Connected && new.connection >= Connected {
            self.connection.connect_count += 1;
        }
    }

    fn disk_effects(&mut self, index: usize, old: VolumeState, new: VolumeState) {
        let cut_corner = self.bug(crate::bugs::Bug::ConsistentWhileResync);
        let flags = self.volumes[index].flags.crashed_primary;
        let volume = &mut self.volumes[index];
        if old.disk == DiskState::Attaching
            && new.disk >= DiskState::Negotiating
            && let Some(disk) = &volume.disk
        {
            let text = format!("attached to UUIDs {}", crate::generations::of(&disk.superblock));
            self.say(Level::Info, Some(index), text);
        }
        let volume = &mut self.volumes[index];
        if new.disk < DiskState::Inconsistent {
            return;
        }
        let Some(disk) = &mut volume.disk else { return };
        let present = MetadataFlags(disk.superblock.flags.0);
        let mut implied = implicit_metadata_flags(present, new, flags);
        if cut_corner && new.is_syncing() {
            implied = implied.with(MetadataFlags::CONSISTENT, true).with(MetadataFlags::WAS_UP_TO_DATE, true);
        }
        if old.disk < DiskState::Consistent && new.disk >= DiskState::Consistent {
            volume.exposed = disk.superblock.current;
        }
        if implied != present {
            disk.superblock.flags = Flags(implied.0);
            self.touch_superblock(index);
            // The activity log counts only while this is set: what it covers has to be in the bitmap on disk first,
            // whatever the reason (metadata spec 8.6).
            let indication = MetadataFlags::PRIMARY_INDICATION;
            if present.contains(indication) && !implied.contains(indication) {
                self.write_changed_pages_before_superblock(index);
            }
        }
    }

    /// I/O is suspended for these reasons from now on.
    pub(crate) fn set_suspension(&mut self, suspension: Suspension) {
        let old = std::mem::replace(&mut self.suspension, suspension);
        if old != suspension {
            self.say_suspension(old);
            self.state_changed();
        }
    }

    fn say_suspension(&mut self, old: Suspension) {
        let state = |suspension| VolumeState { suspension, ..VolumeState::INITIAL };
        let line = ChangeLine::suspension(state(old), state(self.suspension));
        if !line.is_empty() {
            self.say(Level::Info, None, line.to_string());
        }
    }

    /// Asks for a change of the connection and all volumes at once (states spec 3.7), without asking the peer.
    pub(crate) fn change_connection(
        &mut self,
        request: StateRequest,
        enforcement: Enforcement,
        outdate_failure: OutdateFailure,
        verbosity: Verbosity,
    ) -> StateChangeResult {
        let members: Vec<usize> =
            (0..self.volumes.len()).filter(|index| !self.volumes[*index].removed).collect();
        let states: Vec<_> =
            members.iter().map(|index| (self.present_state(*index), self.context(*index))).collect();
        let mut common = common_state(self.connection.state, states.iter().map(|(state, _)| *state));
        common.state.suspension = self.suspension;
        let present = self.connection.state;
        let checked = check_connection_change(present, request, enforcement, outdate_failure, states);
        let result = match checked {
            Ok(code) => code,
            Err((code, volume)) => {
                if verbosity == Verbosity::Verbose {
                    if let Some((member, refusal)) = volume {
                        self.log_refusal(members[member], &refusal);
                    }
                    for line in Refusal::connection_lines(code, request, present) {
                        self.say(Level::Error, None, line);
                    }
                }
                return code;
            }
        };
        if let Some(wanted) = request.connection {
            self.set_connection_state(wanted);
        }
        for index in members {
            let old = self.present_state(index);
            let new = plan_connection_volume(old, request, outdate_failure, &self.context(index));
            if new != old {
                let change = Change { old, new, warning: None, result: StateChangeResult::Success };
                self.apply_change(index, &change, &ChangeLine::volume_within(old, new, &common));
            }
        }
        let after = state_range(self.connection.state, self.suspension, self.volume_states());
        let line = ChangeLine::connection(&common, after.highest);
        if !line.is_empty() {
            self.say(Level::Info, None, line.to_string());
        }
        if self.connection.state != present {
            self.after.push_back(After::Connection { old: present, new: self.connection.state });
        }
        if present == self.connection.state && result == StateChangeResult::Success {
            StateChangeResult::Success
        } else {
            result
        }
    }

    /// Whether a change of the connection would be allowed now.
    pub(crate) fn connection_change_allowed(&self, request: StateRequest) -> StateChangeResult {
        let states = (0..self.volumes.len())
            .filter(|index| !self.volumes[*index].removed)
            .map(|index| (self.present_state(index), self.context(index)));
        let checked = check_connection_change(
            self.connection.state,
            request,
            Enforcement::Soft,
            OutdateFailure::Ignore,
            states,
        );
        checked.unwrap_or_else(|(code, _)| code)
    }

    fn set_connection_state(&mut self, wanted: ConnectionState) {
        let present = self.connection.state;
        if present == wanted {
            return;
        }
        self.connection.state = wanted;
        if wanted == ConnectionState::WFReportParams {
            self.connection.established_at = self.now;
        }
        self.state_changed();
    }

    /// The connection is no good any more: the first reason counts (states spec 7.4).
    pub(crate) fn lose_connection(&mut self, reason: ConnectionState) {
        use ConnectionState::{Disconnecting, WFConnection};
        if self.connection.state < WFConnection && self.connection.state != ConnectionState::Unconnected {
            return;
        }
        let request = StateRequest::connection(reason);
        self.change_connection(request, Enforcement::Hard, OutdateFailure::Ignore, Verbosity::Quiet);
        if reason != Disconnecting {
            self.say(Level::Info, None, format!("connection lost: {reason}"));
        }
        self.attention = true;
    }

    /// The handshake came to nothing, for good: give the network configuration up (states spec 7.3).
    pub(crate) fn refuse_connection(&mut self) {
        self.connection.refused = true;
        self.change_connection(
            StateRequest::connection(ConnectionState::Disconnecting),
            Enforcement::Hard,
            OutdateFailure::Ignore,
            Verbosity::Quiet,
        );
        self.attention = true;
    }
}

/// Whether a resync stands still.
pub(crate) const fn is_paused(state: ConnectionState) -> bool {
    matches!(state, ConnectionState::PausedSyncS | ConnectionState::PausedSyncT)
}
