//! How requests end (io spec 5.3 to 5.6).

use udrbd_units::{DiskState, SectorRange};

use super::{Local, Net};
use crate::Engine;
use crate::bugs::Bug;
use crate::interface::{Action, Buffer, ClientError, Level, Operation};
use crate::slab::Key;

impl Engine {
    /// A local part has ended.
    pub(crate) fn request_local_done(&mut self, key: Key, error: bool) {
        let Some(request) = self.requests.get_mut(key) else { return };
        let (index, range, operation) = (request.volume, request.range, request.operation);
        if operation == Operation::Read {
            self.local_read_done(key, error);
            return;
        }
        let Local::Pending { operations, failed } = request.local else { return };
        let failed = failed || error;
        request.local = match (operations - 1, failed) {
            (0, false) => Local::Ok,
            (0, true) => Local::Failed,
            (operations, failed) => Local::Pending { operations, failed },
        };
        // With two Primaries a write of the peer may wait for this.
        self.attention |= !request.local.is_pending() && !self.connection.inbox.is_empty();
        if request.local == Local::Ok {
            self.volumes[index].counters.written_sectors += range.sectors();
            self.volumes[index].activity.add(range.sectors());
        }
        // A failing discard only leaves bits set (io spec 5.6). Zeroes that are not there would be read, though.
        if error && operation != Operation::Discard {
            self.say_rarely(
                Level::Error,
                Some(index),
                format!("local WRITE IO error sector {}+{}", range.start.0, range.sectors()),
            );
            self.local_io_failed(index, false);
        }
        self.settle(key);
    }

    /// The disk does not answer: the request goes on without it.
    pub(crate) fn request_local_given_up(&mut self, key: Key) {
        let Some(request) = self.requests.get_mut(key) else { return };
        request.local = Local::Failed;
        self.attention |= !self.connection.inbox.is_empty();
        if request.operation == Operation::Read {
            self.retry_read(key);
        } else {
            self.settle(key);
        }
    }

    /// Does with a write what its parts allow: tells the client, and destroys it.
    pub(crate) fn settle(&mut self, key: Key) {
        let Some(request) = self.requests.get(key) else { return };
        let answered =
            !request.local.is_pending() && (request.net != Net::Pending || self.bug(Bug::CompleteBeforePeer));
        if request.postponed {
            // It steps aside for the write of the peer, and starts over after that.
            self.attention |= !request.local.is_pending();
            return;
        }
        if !request.completed && answered {
            if self.suspension.any() {
                self.requests[key].held = true;
                return;
            }
            self.complete_upwards(key, None);
        }
        let Some(request) = self.requests.get(key) else { return };
        let peer_done = !request.barrier_expected || request.net_done;
        if request.completed && peer_done && !request.local.is_pending() {
            self.destroy(key);
        }
    }

    /// Tells the client. The epoch is closed first (io spec I7).
    pub(crate) fn complete_upwards(&mut self, key: Key, data: Option<Buffer>) {
        let request = &mut self.requests[key];
        assert!(!request.completed, "a request completes once");
        request.completed = true;
        request.held = false;
        let (index, epoch, id, in_log) = (request.volume, request.epoch, request.id, request.in_log);
        // A write that only a disk has which has failed since is lost with it: the generation it belongs to may not be
        // known there (io spec I13). On a disk that is the target of a resync it would be overwritten by the next one.
        let kept = request.operation == Operation::Read
            || self.volumes[request.volume].state.disk == DiskState::UpToDate;
        let good = (request.local == Local::Ok && kept) || request.net == Net::Ok;
        let buffer = request.buffer.take();
        let left_open = self.bug(Bug::CompleteInOpenEpoch)
            || (self.bug(Bug::EpochOfFirstVolume) && self.volumes[index].number.0 > 0);
        if in_log && epoch == self.connection.epoch && !left_open {
            self.close_epoch();
        }
        if self.bug(Bug::ReleaseAtWriteAck) {
            self.release_extents(key);
        }
        self.volumes[index].admitted -= 1;
        let result = if good { Ok(()) } else { Err(ClientError::Io) };
        self.out.push(Action::Complete { request: id, result, data });
        if let Some(buffer) = buffer {
            self.out.push(Action::Release(buffer));
        }
        // With two Primaries a write of the peer may wait for this one.
        self.attention |= !self.connection.inbox.is_empty();
        if !self.volumes[index].overlapping.is_empty() || !self.volumes[index].waiting.is_empty() {
            self.attention = true;
        }
        if self.volumes[index].admitted == 0 {
            self.attention = true;
        }
    }

    /// The end of a write: the bitmap learns what became of it, then the activity log lets go (io spec 5.5, I3).
    fn destroy(&mut self, key: Key) {
        let request = &self.requests[key];
        let (index, range, in_tree) = (request.volume, request.range, request.in_tree);
        let both = request.local == Local::Ok && request.net == Net::Ok && !request.doubtful;
        let (set_in_sync, request_net, marked) = (request.set_in_sync, request.net, request.marked);
        if request.operation.is_write() {
            let forgets = request_net == Net::Failed && self.bug(Bug::ForgetInFlight);
            if forgets {
                // The cut corner: nothing is set.
            } else if !both {
                if !marked {
                    self.write_sets_out_of_sync(index, range);
                }
            } else if set_in_sync {
                self.set_in_sync(index, range);
            }
        }
        self.release_extents(key);
        if in_tree {
            self.volumes[index].writes.remove(range, key);
        }
        self.requests.remove(key);
        while self.log.front().is_some_and(|front| self.requests.get(*front).is_none()) {
            self.log.pop_front();
        }
    }

    /// A write that the peer does not have sets its bits. Returns how many were set anew. An older write that the peer
    /// marked in sync may still wait for its barrier: it must not clear them again when it ends.
    pub(crate) fn write_sets_out_of_sync(&mut self, index: usize, range: SectorRange) -> u64 {
        let requests = &mut self.requests;
        let mut unsettled = Vec::new();
        for (_, older) in self.volumes[index].writes.overlapping(range) {
            if let Some(older) = requests.get_mut(older) {
                if std::mem::take(&mut older.set_in_sync) {
                    unsettled.push(older.range);
                }
                older.overtaken = true;
            }
        }
        // Of those the peer has cleared its bits, also where this write does not reach.
        for range in unsettled {
            self.announce_again(index, range);
        }
        self.volumes[index].set_out_of_sync(range)
    }

    /// Gives the activity log references of a write back.
    pub(crate) fn release_extents(&mut self, key: Key) {
        let request = &mut self.requests[key];
        let held = std::mem::take(&mut request.extents_held);
        let (index, range) = (request.volume, request.range);
        let (Some(extents), Some(disk)) = (range.extents(), &mut self.volumes[index].disk) else { return };
        let mut idle = false;
        for extent in extents.take(held as usize) {
            idle |= disk.log.put(udrbd_units::Extent(extent));
        }
        let volume = &self.volumes[index];
        let awaited = volume.quiesce > 0 || volume.resync.waits_for_extents();
        if idle && (awaited || volume.disk.as_ref().is_some_and(|disk| !disk.submit.is_empty())) {
            self.attention = true;
        }
    }

    /// Completes what suspension held back.
    pub(crate) fn complete_held(&mut self) {
        let held: Vec<Key> =
            self.requests.iter().filter(|(_, request)| request.held).map(|(key, _)| key).collect();
        for key in held {
            if let Some(request) = self.requests.get_mut(key) {
                request.held = false;
                self.settle(key);
            }
        }
    }
}
