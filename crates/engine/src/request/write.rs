//! A write, from the activity log to both disks (io spec 4.2, 5.1, 10).

use udrbd_units::{DiskState, SectorRange};

use super::{Local, Net};
use crate::Engine;
use crate::bugs::Bug;
use crate::disk::Purpose;
use crate::interface::{Action, DiscardMode, Level, Operation, Payload};
use crate::slab::Key;
use crate::state::{out_of_sync_goes_to_peer, writes_go_to_peer};

impl Engine {
    /// Makes sure that the activity log covers a write, then starts it.
    pub(crate) fn activate_write(&mut self, key: Key) {
        let request = &self.requests[key];
        let (index, range, plain) = (request.volume, request.range, !request.operation.is_payloadless());
        let Some(extents) = range.extents() else {
            self.start_write(key);
            return;
        };
        let volume = &mut self.volumes[index];
        let Some(disk) = volume.usable_disk() else {
            self.start_write(key);
            return;
        };
        // The fast path: one extent that is hot, nobody in front, no resync on it.
        if plain && extents.start() == extents.end() && disk.submit.is_empty() {
            let extent = udrbd_units::Extent(*extents.start());
            if disk.extents.blocks_writes(extent) {
                disk.extents.set_priority(extent);
            } else if disk.log.try_get(extent) {
                self.requests[key].extents_held = 1;
                self.start_write(key);
                return;
            }
        }
        disk.submit.push_back(key);
        self.run_activity_log(index);
        // A read for a resync may have to make room for it.
        self.attention |= !self.volumes[index].resync.waiting_reads.is_empty();
    }

    /// Sends a write to where it has to go: `drbd_send_and_submit`. It is covered by the activity log.
    pub(crate) fn start_write(&mut self, key: Key) {
        let request = &self.requests[key];
        let (index, range) = (request.volume, request.range);
        let requests = &self.requests;
        let blocks = |other: Key| requests.get(other).is_some_and(|other| !other.completed);
        // With two Primaries a write of the peer that is under way here comes first, too (io spec 9.2).
        let peer_writes = self.allows_two_primaries() && self.volumes[index].peer_ranges.overlaps(range);
        // A resync that was given up keeps nobody out any more, but what it gave to the disk must not land on top.
        let on_top = self.volumes[index].sync_writes.overlaps(range);
        if peer_writes
            || on_top
            || self.volumes[index].writes.overlapping(range).any(|(_, other)| blocks(other))
        {
            self.volumes[index].overlapping.push_back(key);
            return;
        }
        // What waited for the activity log while the peer was lost must not complete before the new generation is on disk
        // (io spec I13). Nor must what is too much for the peer be sent.
        if self.suspension.any()
            || self.volumes[index].current_due.is_some()
            || self.peer_must_hear_first()
            || self.is_congested(index)
        {
            self.release_extents(key);
            self.readmit(key);
            return;
        }
        if !self.is_covered_here(key) {
            // The disk whose activity log covered it has gone, and another come.
            self.activate_write(key);
            return;
        }
        self.stamp(key);
        let state = self.volumes[index].state;
        let local = self.volumes[index].has_disk();
        if state.disk < DiskState::UpToDate && state.peer_disk < DiskState::UpToDate {
            self.log_no_data(index, range);
            self.requests[key].local = if local { Local::Failed } else { Local::None };
            self.settle(key);
            return;
        }
        if writes_go_to_peer(state) {
            self.replicate(key);
        } else if out_of_sync_goes_to_peer(state) {
            let newly_set = self.write_sets_out_of_sync(index, range);
            self.announce_unmirrored(key, newly_set);
        }
        if local && self.volumes[index].has_disk() {
            self.write_locally(key);
        }
        self.settle(key);
    }

    /// Whether a write holds all the extents that it needs of the disk there is now (io spec I1).
    fn is_covered_here(&self, key: Key) -> bool {
        let request = &self.requests[key];
        let needed = request.range.extents().map_or(0, |extents| extents.end() - extents.start() + 1);
        !self.volumes[request.volume].has_disk() || request.extents_held == needed
    }

    /// Puts a write into the current epoch and on the transfer log.
    fn stamp(&mut self, key: Key) {
        let epoch = self.connection.epoch;
        self.connection.epoch_writes += 1;
        let request = &mut self.requests[key];
        request.epoch = epoch;
        request.in_log = true;
        // Writes the peer does not get count as well: one that is still at the disk when the mirroring begins must not land
        // on a mirrored one.
        request.in_tree = true;
        request.sent_at = self.now;
        let (index, range) = (request.volume, request.range);
        self.log.push_back(key);
        self.volumes[index].writes.insert(range, key);
    }

    /// Sends a write to the peer (io spec 5.1 step 7 and 5.2).
    fn replicate(&mut self, key: Key) {
        let request = &mut self.requests[key];
        request.net = Net::Pending;
        request.net_done = false;
        request.barrier_expected = true;
        let (index, range, operation, epoch) =
            (request.volume, request.range, request.operation, request.epoch);
        let payload = match request.buffer {
            Some(buffer) if !operation.is_payloadless() => Payload::Buffer { buffer, bytes: range.bytes },
            _ => Payload::None,
        };
        self.volumes[index].counters.peer_pending += 1;
        self.flush_barrier(epoch);
        self.connection.sent_epoch_writes += 1;
        self.send_write(index, key, operation, range, payload);
        let limit = self.connection.options.as_ref().map_or(2048, |options| options.max_epoch_size);
        if self.connection.epoch_writes >= limit && self.connection.epoch == epoch {
            self.close_epoch();
        }
        self.arm_request_timer();
    }

    /// Gives a write to the backing device.
    pub(crate) fn write_locally(&mut self, key: Key) {
        let request = &self.requests[key];
        let (index, range, operation, buffer) =
            (request.volume, request.range, request.operation, request.buffer);
        let number = self.volumes[index].number;
        match (operation, buffer) {
            (Operation::Write { fua, preflush }, Some(buffer)) => {
                let volatile =
                    self.volumes[index].disk.as_ref().is_some_and(|disk| disk.properties.volatile_cache);
                let token = self.start_io(index, Purpose::RequestLocal(key));
                self.requests[key].local = Local::Pending { operations: 1, failed: false };
                let (fua, preflush) = (fua && volatile, preflush && volatile);
                let write = Action::Write { token, volume: number, range, buffer, fua, preflush };
                self.change_disk(index, range, write);
            }
            (Operation::Discard, _) => self.discard_locally(key, true, false),
            (Operation::WriteZeroes { may_unmap }, _) => self.discard_locally(key, may_unmap, true),
            _ => {}
        }
    }

    fn discard_locally(&mut self, key: Key, trim: bool, zero_out: bool) {
        let request = &self.requests[key];
        let (index, range) = (request.volume, request.range);
        let pieces = self.discard_pieces(index, range, trim, zero_out);
        self.requests[key].local = Local::Pending { operations: pieces.len() as u32, failed: false };
        let number = self.volumes[index].number;
        for (range, mode) in pieces {
            let token = self.start_io(index, Purpose::RequestLocal(key));
            self.change_disk(index, range, Action::Discard { token, volume: number, range, mode });
        }
    }

    /// Cuts a discard or write of zeroes into what the backing device can do: rule D of io spec 10.2.
    pub(crate) fn discard_pieces(
        &self,
        index: usize,
        range: SectorRange,
        trim: bool,
        zero_out: bool,
    ) -> Vec<(SectorRange, DiscardMode)> {
        let zeroes = if trim { DiscardMode::ZeroesMayUnmap } else { DiscardMode::ZeroesKeepAllocated };
        let granularity = self.volumes[index]
            .disk
            .as_ref()
            .map_or(0, |disk| u64::from(disk.properties.discard_granularity_bytes) / 512);
        let sectors = range.sectors();
        if zero_out || granularity == 0 || sectors < granularity {
            return vec![(range, zeroes)];
        }
        let start = range.start.0;
        let first = start.next_multiple_of(granularity);
        if first != start && sectors < 2 * granularity {
            return vec![(range, zeroes)];
        }
        let end = range.end().0 / granularity * granularity;
        let mut pieces = Vec::with_capacity(3);
        let mut push = |from: u64, to: u64, mode| {
            if from < to {
                let bytes = ((to - from) * 512) as u32;
                pieces.push((SectorRange::new(udrbd_units::Sector(from), bytes), mode));
            }
        };
        push(start, first, zeroes);
        push(first, end, DiscardMode::Discard);
        push(end.max(first), range.end().0, zeroes);
        pieces
    }

    /// An empty flush: the local cache, and the end of the epoch for the peer (io spec 8.4).
    pub(crate) fn start_flush(&mut self, key: Key) {
        let index = self.requests[key].volume;
        let state = self.volumes[index].state;
        if writes_go_to_peer(state) {
            self.close_epoch();
            self.requests[key].net = Net::Ok;
        }
        let flush = self.volumes[index].has_disk();
        let volatile = self.volumes[index].disk.as_ref().is_some_and(|disk| disk.properties.volatile_cache);
        if flush && volatile && !self.bug(Bug::ForgetFlush) {
            let volume = self.volumes[index].number;
            let token = self.start_io(index, Purpose::RequestLocal(key));
            self.requests[key].local = Local::Pending { operations: 1, failed: false };
            self.out.push(Action::Flush { token, volume });
        } else if flush {
            self.requests[key].local = Local::Ok;
        }
        self.settle(key);
    }

    /// Starts the writes that waited for an overlapping one.
    pub(crate) fn retry_overlapping(&mut self, index: usize) {
        for _ in 0..self.volumes[index].overlapping.len() {
            let Some(key) = self.volumes[index].overlapping.pop_front() else { break };
            // The disk whose activity log covered it may have gone, and another come.
            if self.requests.get(key).is_some_and(|request| request.extents_held == 0) {
                self.activate_write(key);
            } else {
                self.start_write(key);
            }
        }
    }

    /// A write of the peer is done: own writes that stepped aside for it start over (io spec 9.3).
    pub(crate) fn restart_postponed(&mut self, index: usize, range: SectorRange) {
        if !self.allows_two_primaries() {
            return;
        }
        let requests = &self.requests;
        let aside = |key: &Key| {
            requests.get(*key).is_some_and(|request| request.postponed && !request.local.is_pending())
        };
        let overlapping = self.volumes[index].writes.overlapping(range);
        let restarted: Vec<Key> = overlapping.map(|(_, key)| key).filter(aside).collect();
        for key in restarted {
            let request = &mut self.requests[key];
            request.postponed = false;
            request.net = Net::None;
            request.barrier_expected = false;
            request.local = Local::None;
            request.in_tree = false;
            request.in_log = false;
            let own = request.range;
            self.leaves_flight(key);
            let volume = &mut self.volumes[index];
            volume.counters.peer_pending -= 1;
            volume.writes.remove(own, key);
            volume.overlapping.push_back(key);
            self.log.retain(|other| *other != key);
            self.attention = true;
        }
    }

    pub(crate) fn log_no_data(&mut self, index: usize, range: SectorRange) {
        let text =
            format!("IO ERROR: neither local nor remote data, sector {}+{}", range.start.0, range.sectors());
        self.say_rarely(Level::Error, Some(index), text);
    }
}
