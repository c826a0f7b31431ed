//! The end of a resync: proof that the link lives, then the identifiers (io spec 15.11, I18; states spec 12.4).

use udrbd_units::{ConnectionState, DiskState};

use super::{Finish, WaitingRead};
use crate::Engine;
use crate::change::Verbosity;
use crate::generation::{GenerationSet, TargetOfResync};
use crate::interface::{Handler, Level};
use crate::peer::PeerOperation;
use crate::slab::Key;
use crate::state::{Enforcement, StateRequest};
use crate::volume::PeerGenerations;

impl Engine {
    /// Everything is in sync that can be: the resync ends, once the peer is known to be there.
    pub(crate) fn finish_resync(&mut self, index: usize) {
        if self.volumes[index].resync.finishing.is_none() && self.volumes[index].resync.running {
            self.volumes[index].resync.finishing = Some(Finish::Extents);
            self.volumes[index].resync.timer = None;
            self.attention = true;
        }
    }

    /// Takes the end of a resync further. Returns whether something happened.
    pub(crate) fn run_resync_finish(&mut self, index: usize) -> bool {
        match self.volumes[index].resync.finishing {
            None => {
                let volume = &self.volumes[index];
                if !volume.resync.peer_is_done {
                    return false;
                }
                let done = volume.set_bits() <= volume.resync.failed;
                if done {
                    self.volumes[index].resync.peer_is_done = false;
                    self.finish_resync(index);
                } else if volume.resync.failed == 0
                    && self.look_at_target(index) == TargetOfResync::Unfinished
                {
                    self.ask_for_bitmap(index);
                    return true;
                }
                done
            }
            Some(Finish::Extents) => {
                if !self.volumes[index].resync.waiting_reads.is_empty() {
                    return false;
                }
                if let Some(disk) = &mut self.volumes[index].disk {
                    disk.extents.cancel_all();
                }
                let ping = self.ping();
                self.volumes[index].resync.finishing = Some(Finish::Ping(ping));
                true
            }
            Some(Finish::Ping(number)) => {
                // A change the peer is asked about may end the resync: the peer must not hear of both (states spec 4).
                if self.connection.pings_answered < number || self.volumes[index].state_locked {
                    return false;
                }
                if !self.ask_for_proof(index) {
                    self.volumes[index].resync.finishing = Some(Finish::Proven);
                }
                true
            }
            Some(Finish::Proof(_)) => false,
            Some(Finish::Proven) => {
                if self.volumes[index].state_locked {
                    return false;
                }
                self.volumes[index].resync.finishing = None;
                if !self.resync_goes_on(index) {
                    self.conclude_resync(index);
                }
                true
            }
        }
    }

    /// Whether this node is the source of a resync whose target is done.
    pub(crate) fn is_ending_as_source(&self, index: usize) -> bool {
        let volume = &self.volumes[index];
        let source =
            matches!(volume.state.connection, ConnectionState::SyncSource | ConnectionState::PausedSyncS);
        source && (volume.resync.peer_is_done || volume.resync.finishing.is_some())
    }

    /// The target is done, and knows nothing of blocks that are out of sync here: the new part of a device is resynced without an
    /// exchange of bitmaps. (A source of 8.4.11 waits for ever.) The next handshake exchanges them.
    fn ask_for_bitmap(&mut self, index: usize) {
        let text = "The peer is done, and has not asked for all that is out of sync here: connecting again";
        self.say(Level::Warning, Some(index), text.to_owned());
        self.lose_connection(ConnectionState::ProtocolError);
    }

    /// A verify that the peer has ended, and that only waits for a sign of life of the peer, is over: this is one.
    pub(crate) fn conclude_answered_verify(&mut self, index: usize) {
        let ends = matches!(self.volumes[index].resync.finishing, Some(Finish::Ping(_)));
        if ends && self.volumes[index].state.connection == ConnectionState::VerifyT {
            self.volumes[index].resync.finishing = None;
            self.conclude_resync(index);
        }
    }

    /// Blocks have got out of sync while the peer was asked for a sign of life: a target fetches those, too.
    fn resync_goes_on(&mut self, index: usize) -> bool {
        let volume = &mut self.volumes[index];
        let more = volume.state.connection == ConnectionState::SyncTarget
            && volume.set_bits() > volume.resync.failed;
        if more {
            volume.resync.look_again(self.now);
        }
        more
    }

    /// A resync ends before its time: a disk has gone, or the connection. What the peer still asks for it gets not.
    pub(crate) fn give_up_resync(&mut self, index: usize) {
        self.volumes[index].stop_resync();
        if let Some(disk) = &mut self.volumes[index].disk {
            disk.extents.cancel_all();
        }
        self.disown_disk_operations(index);
        self.volumes[index].resync.held_until = None;
        for WaitingRead { key, .. } in std::mem::take(&mut self.volumes[index].resync.waiting_reads) {
            if let Some(request) = self.peer_requests.get(key) {
                let packet = request.request();
                self.send_negative_reply(index, &packet, true);
                self.forget_peer_request(key);
                let unacknowledged = &mut self.volumes[index].counters.unacknowledged;
                *unacknowledged = unacknowledged.saturating_sub(1);
            }
        }
        self.attention = true;
    }

    /// What a resync that was given up still has at the disk: blocks are written and answered, but say nothing of the next
    /// one. What is read is older than what may be written from now on: it must not be sent in the next one, where it would pass
    /// for the answer to a request for the same block.
    fn disown_disk_operations(&mut self, index: usize) {
        let keys: Vec<Key> = self.peer_requests.iter().map(|(key, _)| key).collect();
        for key in keys {
            let request = &mut self.peer_requests[key];
            if request.volume != index || request.orphaned {
                continue;
            }
            match request.operation {
                PeerOperation::ResyncWrite => request.given_up = true,
                PeerOperation::ChecksumRead => request.orphaned = true,
                PeerOperation::ResyncRead { .. } if request.outstanding > 0 => {
                    request.orphaned = true;
                    let packet = request.request();
                    self.send_negative_reply(index, &packet, true);
                    let unacknowledged = &mut self.volumes[index].counters.unacknowledged;
                    *unacknowledged = unacknowledged.saturating_sub(1);
                }
                _ => {}
            }
        }
    }

    fn conclude_resync(&mut self, index: usize) {
        let old = self.volumes[index].state;
        if old.connection <= ConnectionState::Connected {
            return;
        }
        if self.volumes[index].resync.verify.is_some() {
            self.conclude_verify(index);
            return;
        }
        self.log_resync_done(index);
        let target = matches!(old.connection, ConnectionState::SyncTarget | ConnectionState::PausedSyncT);
        let failed = self.volumes[index].resync.failed;
        let mut request = StateRequest {
            disk: Some(DiskState::UpToDate),
            peer_disk: Some(DiskState::UpToDate),
            ..StateRequest::connection(ConnectionState::Connected)
        };
        if failed > 0 {
            self.say(Level::Error, Some(index), format!("            {failed} failed blocks"));
            if target {
                request.disk = Some(DiskState::Inconsistent);
            } else {
                request.peer_disk = Some(DiskState::Inconsistent);
            }
        } else {
            self.volumes[index].flags.source_of_equals = false;
            self.volumes[index].flags.target = TargetOfResync::Unknown;
            self.conclude_generations(index, target);
        }
        self.change_volume(index, request, Enforcement::Soft, Verbosity::Verbose);
        let was_source = old.connection == ConnectionState::SyncSource;
        let fencing = self.fencing_policy() != crate::interface::Fencing::DontCare;
        let all_good = self
            .volume_states()
            .all(|state| state.disk == DiskState::UpToDate && state.peer_disk == DiskState::UpToDate);
        self.volumes[index].stop_resync();
        if was_source && fencing && all_good {
            self.run_handler(Handler::UnfencePeer, None);
        }
        if target {
            self.write_changed_pages_before_superblock(index);
            self.run_handler(Handler::AfterResyncTarget, Some(index));
        }
        self.touch_superblock(index);
    }

    fn log_resync_done(&mut self, index: usize) {
        let (elapsed, paused) = self.volumes[index].resync.elapsed(self.now);
        let resync = &self.volumes[index].resync;
        let active = elapsed.saturating_sub(paused).as_secs().max(1);
        let total_kib = resync.total.saturating_sub(resync.failed) * 4;
        let (equal, total) = (resync.equal_blocks, resync.total);
        let by_checksum = resync.by_checksum;
        let text = format!(
            "Resync done (total {} sec; paused {} sec; {} K/sec)",
            elapsed.as_secs(),
            paused.as_secs(),
            total_kib / active
        );
        self.say(Level::Info, Some(index), text);
        if by_checksum && total > 0 {
            let text = format!(
                "{} % had equal checksums, eliminated: {}K; transferred {}K total {}K",
                equal * 100 / total,
                equal * 4,
                total.saturating_sub(equal) * 4,
                total * 4
            );
            self.say(Level::Info, Some(index), text);
        }
    }

    fn conclude_generations(&mut self, index: usize, target: bool) {
        let primary = self.is_primary(index);
        let peer = self.volumes[index].peer_generations;
        self.change_generations(index, |set| match peer.filter(|_| target) {
            Some(peer) => {
                let peer =
                    GenerationSet { current: peer.current, bitmap: peer.bitmap, history: peer.history };
                set.finish_resync_as_target(&peer, primary);
            }
            None => set.finish_resync_as_source(),
        });
        self.log_generations(index, "updated UUIDs");
        // From now on the peer's are the own.
        if let (Some(set), Some(peer)) = (self.generations(index), &mut self.volumes[index].peer_generations)
        {
            *peer =
                PeerGenerations { current: set.current, bitmap: set.bitmap, history: set.history, ..*peer };
        }
    }
}
