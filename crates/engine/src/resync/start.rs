//! The start of a resync (states spec 12.2; io spec 15.1).

use udrbd_units::{ConnectionState, DiskState, GenerationId};

use super::Start;
use crate::Engine;
use crate::change::Verbosity;
use crate::connection::parameters::Verdict;
use crate::generation::TargetOfResync;
use crate::handlers::Reason;
use crate::interface::{Handler, Level};
use crate::state::{Enforcement, StateRequest, VolumeState};

impl Engine {
    /// Starts a resync with this node on `side`, once the handler agrees.
    pub(crate) fn start_resync(&mut self, index: usize, side: ConnectionState) {
        let state = self.volumes[index].state.connection;
        if state.is_syncing() {
            self.say(Level::Error, Some(index), "Resync already running!".to_owned());
            return;
        }
        let asked = self.handler_count + 1;
        self.volumes[index].resync.start = Some(Start { side, from: state, handler: asked, allowed: false });
        let handler = if side == ConnectionState::SyncTarget {
            Handler::BeforeResyncTarget
        } else {
            Handler::BeforeResyncSource
        };
        self.run_handler_for(handler, Some(index), Reason::BeforeResync { index, handler: asked });
    }

    /// The handler has ended.
    pub(crate) fn resync_handler_done(&mut self, index: usize, handler: u64, status: i32) {
        // One that was asked on an earlier connection has no say in this one.
        let Some(start) = self.volumes[index].resync.start.filter(|start| start.handler == handler) else {
            return;
        };
        let target = start.side == ConnectionState::SyncTarget;
        let name = if target { "before-resync-target" } else { "before-resync-source" };
        if status > 0 && !target && status == 3 {
            let text = format!("{name} handler returned {status}, ignoring. Old userland tools?");
            self.say(Level::Info, Some(index), text);
        } else if status > 0 {
            let text = format!("{name} handler returned {status}, dropping connection.");
            self.say(Level::Info, Some(index), text);
            self.volumes[index].resync.start = None;
            self.refuse_connection();
            return;
        }
        self.volumes[index].resync.start = Some(Start { allowed: true, ..start });
        self.attention = true;
    }

    /// Starts what may start. Returns whether something did.
    pub(crate) fn run_resync_start(&mut self, index: usize) -> bool {
        let volume = &self.volumes[index];
        let Some(Start { side, from, allowed: true, .. }) = volume.resync.start else { return false };
        if volume.state_locked || !self.full_sync_is_durable(index) {
            return false;
        }
        self.volumes[index].resync.start = None;
        let state = self.volumes[index].state;
        // Either disk may have gone while the handler ran, or come again.
        let peer_has_none = side == ConnectionState::SyncSource && state.peer_disk < DiskState::Inconsistent;
        if state.connection != from || state.disk < DiskState::Negotiating || peer_has_none {
            return true;
        }
        let mut request = StateRequest::connection(side);
        if side == ConnectionState::SyncTarget {
            request.disk = Some(DiskState::Inconsistent);
        } else {
            request.peer_disk = Some(DiskState::Inconsistent);
        }
        let result = self.change_volume(index, request, Enforcement::Soft, Verbosity::Verbose);
        if !result.is_success() || !self.volumes[index].state.is_syncing() {
            // Refused, or one of the disks has gone meanwhile.
            return true;
        }
        self.volumes[index].flags.source_of_equals =
            matches!(from, ConnectionState::StartingSyncS | ConnectionState::Connected);
        self.volumes[index].flags.target = TargetOfResync::Unknown;
        self.begin_resync(index, side);
        true
    }

    fn begin_resync(&mut self, index: usize, side: ConnectionState) {
        let now = self.now;
        let bits = self.volumes[index].set_bits();
        let crashed = self.volumes[index].flags.crashed_primary;
        let by_checksum = self.connection.options.as_ref().is_some_and(|options| {
            !options.csums_alg.is_empty() && (!options.csums_after_crash_only || crashed)
        }) && self.connection.dialect.version >= 89;
        let paused = crate::change::is_paused(self.volumes[index].state.connection);
        let resync = &mut self.volumes[index].resync;
        resync.begin(now, bits);
        resync.by_checksum = by_checksum && side == ConnectionState::SyncTarget;
        if paused {
            resync.pause(now);
        }
        let name = self.volumes[index].state.connection;
        let text = format!("Began resync as {name} (will sync {} KB [{bits} bits set]).", bits * 4);
        self.say(Level::Info, Some(index), text);
        if side == ConnectionState::SyncTarget {
            // Inconsistent has to be on disk before the first block is overwritten (io spec I9); and the bits the peer has
            // told of, for it forgets them when this node has written the blocks, be it only to a cache.
            self.write_changed_pages_before_superblock(index);
            let version = self.touch_superblock(index);
            self.volumes[index].resync.after_superblock = Some(version);
            if !paused {
                self.volumes[index].resync.timer = Some(now);
            }
        }
        self.attention = true;
    }

    /// A7: this node became the source: the data the peer is about to hold get a name.
    pub(crate) fn resync_source_starts(&mut self, index: usize, old: VolumeState, new: VolumeState) {
        let is_source = |state: ConnectionState| {
            matches!(state, ConnectionState::SyncSource | ConnectionState::PausedSyncS)
        };
        if is_source(old.connection) || !is_source(new.connection) || !self.volumes[index].has_disk() {
            return;
        }
        let random = self.random.generation().0;
        let mut identifier = GenerationId::NONE;
        let correction = self.volumes[index].correction.take();
        // Disks that were never used and become good by `invalidate` alone: as long as both are called just created, no
        // handshake would find a difference (states spec 9.2 rule 10).
        let nameless = self.volumes[index].flags.source_of_equals
            && self
                .generations(index)
                .is_some_and(|set| set.current.same_generation(GenerationId::JUST_CREATED));
        let name = if nameless { self.random.generation().0 } else { 0 };
        let primary = self.is_primary(index);
        let version = self.change_generations(index, |set| {
            *set = correction.unwrap_or(*set);
            if nameless {
                set.set_current(GenerationId(name), primary);
            }
            identifier = set.start_resync_as_source(random);
        });
        self.log_generations(index, "updated sync UUID");
        if nameless {
            self.send_uuids(index, 0);
        }
        self.volumes[index].resync.sync_uuid_due = Some((version, identifier));
        self.attention = true;
    }

    /// Tells the peer the name, once it is durable here. Returns whether it did.
    pub(crate) fn run_sync_uuid(&mut self, index: usize) -> bool {
        let Some((version, identifier)) = self.volumes[index].resync.sync_uuid_due else { return false };
        if !self.superblock_is_durable(index, version) {
            return false;
        }
        self.volumes[index].resync.sync_uuid_due = None;
        self.send_sync_uuid(index, identifier);
        if std::mem::take(&mut self.volumes[index].resync.state_due) {
            self.send_current_state(index);
        }
        true
    }

    /// Whether P_SYNC_UUID can be made sense of now: it waits for what leads to WFSyncUUID (also a change the peer is
    /// asked about), and for nothing else, or it would wait for ever where the resync has been given up meanwhile.
    pub(crate) fn may_take_sync_uuid(&self, index: usize) -> bool {
        let volume = &self.volumes[index];
        let on_the_way =
            matches!(volume.state.connection, ConnectionState::StartingSyncT | ConnectionState::WFBitMapT);
        !(on_the_way || volume.state_locked) || volume.state.disk < DiskState::Negotiating
    }

    /// P_SYNC_UUID: the data on their way here have this name.
    pub(crate) fn sync_uuid_received(&mut self, index: usize, identifier: GenerationId) -> Verdict {
        let state = self.volumes[index].state;
        let awaited = matches!(state.connection, ConnectionState::WFSyncUUID | ConnectionState::Behind);
        if !awaited || state.disk < DiskState::Negotiating || self.volumes[index].disk.is_none() {
            self.say(Level::Error, Some(index), "Ignoring SyncUUID packet!".to_owned());
            return Verdict::Good;
        }
        let primary = self.is_primary(index);
        self.change_generations(index, |set| set.start_resync_as_target(identifier, primary));
        self.log_generations(index, "updated sync uuid");
        self.start_resync(index, ConnectionState::SyncTarget);
        Verdict::Good
    }

    /// The full sync asked for by `invalidate` or `invalidate-remote` can begin: every bit is set (states spec 12.5).
    pub(crate) fn run_starting_sync(&mut self, index: usize) -> bool {
        if !self.full_sync_is_durable(index) {
            return false;
        }
        match self.volumes[index].state.connection {
            ConnectionState::StartingSyncT => {
                self.change_state(index, StateRequest::connection(ConnectionState::WFSyncUUID));
                true
            }
            ConnectionState::StartingSyncS if self.volumes[index].resync.start.is_none() => {
                self.start_resync(index, ConnectionState::SyncSource);
                true
            }
            _ => false,
        }
    }
}
