//! A read, from the local disk or the peer (io spec 6).

use udrbd_units::DiskState;

use super::{Local, Net};
use crate::Engine;
use crate::disk::Purpose;
use crate::interface::{Action, Buffer, Level, ReadBalancing};
use crate::slab::Key;

impl Engine {
    /// Starts a read where there is good data.
    pub(crate) fn start_read(&mut self, key: Key) {
        let request = &self.requests[key];
        let (index, range, buffer) = (request.volume, request.range, request.buffer);
        let local = self.may_read_locally(key);
        let remote = self.volumes[index].state.peer_disk == DiskState::UpToDate;
        match (local, remote) {
            (true, true) if self.balance_to_peer(key) => self.read_remotely(key),
            (true, _) => {
                let volume = self.volumes[index].number;
                let token = self.start_io(index, Purpose::RequestLocal(key));
                self.requests[key].local = Local::Pending { operations: 1, failed: false };
                self.out.push(Action::Read {
                    token,
                    volume,
                    range,
                    buffer,
                    digest: None,
                    look_for_zeroes: false,
                });
            }
            (false, true) => self.read_remotely(key),
            (false, false) => {
                self.log_no_data(index, range);
                self.fail_read(key);
            }
        }
    }

    /// The own disk is good for a range that is up to date as a whole (io spec I8).
    fn may_read_locally(&self, key: Key) -> bool {
        let request = &self.requests[key];
        let volume = &self.volumes[request.volume];
        match (volume.state.disk, &volume.disk, request.range.touched_blocks()) {
            (DiskState::UpToDate, Some(_), _) => true,
            (DiskState::Inconsistent, Some(_), _) if self.bug(crate::bugs::Bug::StaleRead) => true,
            (DiskState::Inconsistent, Some(disk), Some(blocks)) => !disk.bitmap.any_set(blocks),
            _ => false,
        }
    }

    fn balance_to_peer(&mut self, key: Key) -> bool {
        let request = &self.requests[key];
        let (index, start) = (request.volume, request.range.start);
        let volume = &mut self.volumes[index];
        let Some(disk) = &volume.disk else { return true };
        match disk.options.read_balancing {
            ReadBalancing::PreferLocal | ReadBalancing::WhenCongestedRemote => false,
            ReadBalancing::PreferRemote => true,
            ReadBalancing::RoundRobin => {
                volume.round_robin = !volume.round_robin;
                !volume.round_robin
            }
            ReadBalancing::LeastPending => volume.counters.local_pending > volume.counters.peer_pending,
            ReadBalancing::Striping(shift) => start.0 >> (u32::from(shift) - 9) & 1 == 1,
        }
    }

    fn read_remotely(&mut self, key: Key) {
        let request = &mut self.requests[key];
        request.net = Net::Pending;
        request.epoch = self.connection.epoch;
        request.sent_at = self.now;
        let (index, range, epoch) = (request.volume, request.range, request.epoch);
        self.connection.remote_reads.push(key);
        self.volumes[index].counters.peer_pending += 1;
        self.flush_barrier(epoch);
        self.send_data_request(index, key, range);
        self.arm_request_timer();
    }

    /// The peer has read (P_DATA_REPLY): the data go to the client.
    pub(crate) fn remote_read_done(&mut self, key: Key, data: Buffer) {
        let Some(request) = self.requests.get_mut(key) else {
            self.out.push(Action::Release(data));
            return;
        };
        request.net = Net::Ok;
        let index = request.volume;
        self.volumes[index].counters.peer_pending -= 1;
        self.connection.remote_reads.retain(|other| *other != key);
        self.complete_read(key, Some(data));
    }

    /// The peer could not read (P_NEG_DREPLY), or is gone: the read starts over.
    pub(crate) fn remote_read_failed(&mut self, key: Key) {
        if !self.connection.remote_reads.contains(&key) {
            return;
        }
        let Some(request) = self.requests.get_mut(key) else { return };
        request.net = Net::Failed;
        let index = request.volume;
        self.volumes[index].counters.peer_pending -= 1;
        self.connection.remote_reads.retain(|other| *other != key);
        self.retry_read(key);
    }

    /// The local disk has read, or not.
    pub(crate) fn local_read_done(&mut self, key: Key, failed: bool) {
        let request = &mut self.requests[key];
        let (index, range) = (request.volume, request.range);
        if failed {
            request.local = Local::Failed;
            self.say_rarely(
                Level::Error,
                Some(index),
                format!("local READ IO error sector {}+{}", range.start.0, range.sectors()),
            );
            // The block is bad here: what the peer has is the data now.
            self.volumes[index].set_out_of_sync(range);
            self.local_io_failed(index, true);
            self.retry_read(key);
        } else {
            request.local = Local::Ok;
            self.volumes[index].counters.read_sectors += range.sectors();
            self.volumes[index].activity.add(range.sectors());
            self.complete_read(key, None);
        }
    }

    /// Starts a failed read over from admission. It ends: a failed disk is no longer asked.
    pub(super) fn retry_read(&mut self, key: Key) {
        self.readmit(key);
        self.attention = true;
    }

    fn fail_read(&mut self, key: Key) {
        self.requests[key].local = Local::Failed;
        self.complete_read(key, None);
    }

    fn complete_read(&mut self, key: Key, data: Option<Buffer>) {
        if self.suspension.any() && data.is_none() && self.requests[key].local != Local::Ok {
            self.retry_read(key);
            return;
        }
        self.complete_upwards(key, data);
        self.requests.remove(key);
    }
}
