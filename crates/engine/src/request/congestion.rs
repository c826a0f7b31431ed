//! Congestion: what becomes of writes that come faster than the peer takes them (io spec 17).
//!
//! With `on-congestion pull-ahead` a node stops to mirror: it is Ahead, marks what is written out of sync and tells the
//! peer, which is Behind, so that the bitmaps of both cover every difference. When the peer has confirmed all that was on
//! its way, the node becomes the source of a resync, without another exchange of bitmaps.

use udrbd_units::{ConnectionState, DiskState, SectorRange};

use crate::Engine;
use crate::bugs::Bug;
use crate::change::Verbosity;
use crate::interface::{Duration, Level, OnCongestion};
use crate::slab::Key;
use crate::state::{Enforcement, StateRequest, writes_go_to_peer};

/// From the last confirmed write to the resync.
const RETURN_PAUSE: Duration = Duration::from_secs(1);
/// The same where the peer still owes answers.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

impl Engine {
    /// Whether too much is on its way to the peer for another write. If so, the write has to wait until the connection has
    /// been given up, or this node is Ahead ([`run_congestion`](Self::run_congestion)).
    pub(super) fn is_congested(&mut self, index: usize) -> bool {
        if self.volumes[index].congested {
            return true;
        }
        let Some(options) = &self.connection.options else { return false };
        let (policy, fill) = (options.on_congestion, u64::from(options.congestion_fill_sectors));
        let extents = options.congestion_extents as usize;
        if policy == OnCongestion::Block || !self.may_stop_mirroring(index) {
            return false;
        }
        let volume = &self.volumes[index];
        let filled = fill > 0 && volume.in_flight_sectors >= fill;
        let spread = volume.disk.as_ref().is_some_and(|disk| disk.log.used_extents() >= extents);
        for (reached, name) in [(filled, "fill"), (spread, "extents")] {
            if reached {
                self.say(Level::Info, Some(index), format!("Congestion-{name} threshold reached"));
            }
        }
        self.volumes[index].congested = filled || spread;
        self.attention |= filled || spread;
        filled || spread
    }

    /// Whether this node may pull ahead of its peer now, or leave it: it mirrors, has good data, and nothing else is about to
    /// change. An online verify goes on, as does a resync that compares digests: what it found equal before the node was
    /// Ahead is told on the other socket, so the peer might forget a block that was written since.
    fn may_stop_mirroring(&self, index: usize) -> bool {
        use ConnectionState::{Connected, PausedSyncS, SyncSource};
        let volume = &self.volumes[index];
        let (state, resync) = (volume.state, &volume.resync);
        matches!(state.connection, Connected | SyncSource | PausedSyncS)
            && self.connection.dialect.version >= 96
            && state.disk == DiskState::UpToDate
            && writes_go_to_peer(state)
            && !volume.state_locked
            && !self.connection.change_pending
            && resync.is_uneventful()
            && !(state.is_syncing() && resync.by_checksum)
    }

    /// Does what `on-congestion` says about a congestion that was found. Returns whether there was one.
    pub(crate) fn run_congestion(&mut self, index: usize) -> bool {
        if !std::mem::take(&mut self.volumes[index].congested) {
            return false;
        }
        let policy = self.connection.options.as_ref().map(|options| options.on_congestion);
        if !self.may_stop_mirroring(index) {
            return true;
        }
        self.close_epoch();
        if policy != Some(OnCongestion::PullAhead) {
            self.refuse_connection();
        } else {
            // The target of a resync may be done and not have said so: then it does not come to be Behind.
            let target = self.look_at_target(index);
            let syncing = self.volumes[index].state.is_syncing();
            let request = StateRequest::connection(ConnectionState::Ahead);
            self.change_volume(index, request, Enforcement::Hard, Verbosity::Verbose);
            // The peer learns of it before it learns of the first write that it does not get.
            self.run_after();
            // What is written now is here only. Should this node lose its role before the link, nothing else would tell that
            // from what the peer has (DRBD begins no generation here).
            let unnamed = self.generations(index).is_some_and(|set| !set.bitmap.is_some());
            if syncing {
                self.volumes[index].flags.target = target;
            }
            let doubtful = syncing && self.doubtful_target(index).is_some();
            if (unnamed || doubtful) && self.volumes[index].state.connection == ConnectionState::Ahead {
                self.new_current_generation(index);
                self.send_uuids(index, 0);
            }
            self.may_return_from_ahead();
        }
        self.run_after();
        true
    }

    /// TCP has taken a write of which the peer's confirmation is due.
    pub(super) fn enters_flight(&mut self, key: Key) {
        let request = &mut self.requests[key];
        if request.barrier_expected && !request.net_done && !request.in_flight {
            request.in_flight = true;
            let (index, sectors) = (request.volume, request.range.sectors());
            self.volumes[index].in_flight_sectors += sectors;
        }
    }

    /// The peer is done with a write for good, or is gone.
    pub(super) fn leaves_flight(&mut self, key: Key) {
        let request = &mut self.requests[key];
        if std::mem::take(&mut request.in_flight) {
            let (index, sectors) = (request.volume, request.range.sectors());
            self.volumes[index].in_flight_sectors -= sectors;
        }
    }

    /// Writes have been confirmed: a node that is Ahead and has none left on their way lets the peer catch up soon.
    pub(super) fn may_return_from_ahead(&mut self) {
        for index in 0..self.volumes.len() {
            let volume = &self.volumes[index];
            let ahead = volume.state.connection == ConnectionState::Ahead;
            if !ahead || volume.return_at.is_some() || volume.resync.start.is_some() {
                continue;
            }
            let unconfirmed = self.log.iter().any(|key| {
                self.requests.get(*key).is_some_and(|request| {
                    request.volume == index && request.barrier_expected && !request.net_done
                })
            });
            if !unconfirmed {
                self.volumes[index].return_at = Some(self.now.after(RETURN_PAUSE));
            }
        }
    }

    /// The time to let the peer catch up may have come. What it still owes of the last resync is waited for: an answer to that
    /// must not pass for one to the next.
    pub(crate) fn return_from_ahead(&mut self, index: usize) {
        let volume = &mut self.volumes[index];
        if volume.return_at.is_none_or(|at| at > self.now) {
            return;
        }
        volume.return_at = None;
        if volume.state.connection != ConnectionState::Ahead {
            return;
        }
        if volume.counters.unacknowledged > 0 || volume.resync.is_owed_answers() {
            volume.return_at = Some(self.now.after(RETRY_PAUSE));
            self.say_rarely(Level::Info, Some(index), "postponing start_resync ...".to_owned());
            return;
        }
        self.start_resync(index, ConnectionState::SyncSource);
    }

    /// The peer has cleared the bits of a write that keep being set here, as a later one that it does not get lies on a part of
    /// it: while Ahead nothing but this would make the bitmaps equal again.
    pub(super) fn announce_again(&mut self, index: usize, range: SectorRange) {
        if self.volumes[index].state.connection == ConnectionState::Ahead {
            self.send_out_of_sync(index, range);
        }
    }

    /// Tells the peer that it does not get a write, whose bits are set. While Ahead every one is told, also where the bits were
    /// set before: the peer may have cleared its own in the last resync, for a block it wrote before it heard of this.
    pub(super) fn announce_unmirrored(&mut self, key: Key, newly_set: u64) {
        let request = &self.requests[key];
        let (index, range, epoch) = (request.volume, request.range, request.epoch);
        let ahead = self.volumes[index].state.connection == ConnectionState::Ahead;
        if newly_set == 0 && !ahead {
            return;
        }
        self.flush_barrier(epoch);
        let silent = if ahead { Bug::SilentAhead } else { Bug::NoOutOfSyncNotice };
        if !self.bug(silent) {
            self.send_out_of_sync(index, range);
        }
    }
}
