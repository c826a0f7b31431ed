//! Which requests may start now (io spec 3).

use udrbd_units::{ConnectionState, DiskState, Role};

use super::{Local, Net, Request};
use crate::Engine;
use crate::interface::{Action, ClientError, ClientRequest, Operation};

/// Requests admitted without a network configuration.
const ADMITTED_MAX: u32 = 1_000_000;
/// Bytes of the largest read or write.
const DATA_BYTES_MAX: u32 = 1 << 20;
/// Bytes of the largest discard or write of zeroes.
const DISCARD_BYTES_MAX: u32 = 128 << 20;

impl Engine {
    /// A client asks for something.
    pub(crate) fn client_request(&mut self, request: ClientRequest) {
        let Some(index) = self.volume_index(request.volume) else {
            self.refuse(request, ClientError::NoVolume);
            return;
        };
        let volume = &self.volumes[index];
        if volume.state.role != Role::Primary {
            self.refuse(request, ClientError::NotPrimary);
            return;
        }
        let limit = if request.operation.is_payloadless() { DISCARD_BYTES_MAX } else { DATA_BYTES_MAX };
        let whole = request.range.bytes.is_multiple_of(512) && request.range.end() <= volume.size;
        let empty = request.range.bytes == 0;
        if !whole || request.range.bytes > limit || empty != (request.operation == Operation::Flush) {
            self.refuse(request, ClientError::Invalid);
            return;
        }
        if volume.waiting.is_empty() && self.may_admit(index) {
            self.admit(index, request);
        } else {
            self.volumes[index].waiting.push_back(request);
        }
    }

    fn refuse(&mut self, request: ClientRequest, error: ClientError) {
        if let Some(buffer) = request.buffer {
            self.out.push(Action::Release(buffer));
        }
        self.out.push(Action::Complete { request: request.id, result: Err(error), data: None });
    }

    /// Whether a request may start (io spec 3.2).
    pub(crate) fn may_admit(&self, index: usize) -> bool {
        let volume = &self.volumes[index];
        let limit = self.connection.options.as_ref().map_or(ADMITTED_MAX, |options| options.max_buffers);
        !self.suspension.any()
            && volume.quiesce == 0
            && volume.current_due.is_none()
            && !volume.congested
            && !self.connection.lost_log_pending
            && !self.peer_must_hear_first()
            && self.state_is_stable(index)
            && volume.admitted <= limit
            && (self.connection.is_established() || !volume.has_peer_writes())
            && !volume.exchange.demands_silence()
            && self.is_indicated(index)
            && volume.disk.as_ref().is_none_or(|disk| !disk.bitmap_io.demands_silence())
    }

    /// A handler has to end before the peer learns of a change: no write may come there before that.
    pub(crate) fn peer_must_hear_first(&self) -> bool {
        self.after_waits && self.connection.is_established()
    }

    /// The superblock has to say that this node is Primary before its first write: only then the activity log counts after a
    /// crash (io spec I1). A diskless Primary that gets its disk back was not when the attach wrote it.
    fn is_indicated(&self, index: usize) -> bool {
        let volume = &self.volumes[index];
        volume.state.role != Role::Primary
            || volume.state.disk < DiskState::Inconsistent
            || volume.disk.as_ref().is_none_or(|disk| disk.indicated)
    }

    fn state_is_stable(&self, index: usize) -> bool {
        let state = self.volumes[index].state;
        let connection_stable = match state.connection {
            ConnectionState::WFBitMapT | ConnectionState::WFSyncUUID => false,
            ConnectionState::WFBitMapS => self.connection.agreed_version >= 96,
            _ => true,
        };
        connection_stable && !matches!(state.disk, DiskState::Attaching | DiskState::Negotiating)
    }

    fn admit(&mut self, index: usize, request: ClientRequest) {
        self.volumes[index].admitted += 1;
        let key = self.requests.insert(Request {
            id: request.id,
            volume: index,
            operation: request.operation,
            range: request.range,
            buffer: request.buffer,
            epoch: 0,
            local: Local::None,
            net: Net::None,
            barrier_expected: false,
            net_done: false,
            in_flight: false,
            doubtful: false,
            marked: false,
            set_in_sync: false,
            overtaken: false,
            extents_held: 0,
            in_tree: false,
            in_log: false,
            completed: false,
            held: false,
            postponed: false,
            sent_at: self.now,
        });
        match request.operation {
            Operation::Read => self.start_read(key),
            Operation::Flush => self.start_flush(key),
            _ => self.activate_write(key),
        }
    }

    /// Takes an admitted request back to before its admission: nothing of it is in flight.
    pub(crate) fn readmit(&mut self, key: crate::slab::Key) {
        let Some(request) = self.requests.remove(key) else { return };
        let volume = &mut self.volumes[request.volume];
        if request.in_tree {
            volume.writes.remove(request.range, key);
        }
        volume.admitted -= 1;
        volume.waiting.push_front(ClientRequest {
            id: request.id,
            volume: volume.number,
            operation: request.operation,
            range: request.range,
            buffer: request.buffer,
        });
    }

    /// Starts what waits and may start. Returns whether something did.
    pub(crate) fn admit_waiting(&mut self, index: usize) -> bool {
        let mut progress = false;
        while !self.volumes[index].waiting.is_empty() {
            if self.volumes[index].state.role != Role::Primary {
                if let Some(request) = self.volumes[index].waiting.pop_front() {
                    self.refuse(request, ClientError::NotPrimary);
                }
                continue;
            }
            if !self.may_admit(index) {
                break;
            }
            let Some(request) = self.volumes[index].waiting.pop_front() else { break };
            self.admit(index, request);
            progress = true;
            // A request that could only be put back must not be tried for ever.
            if self.volumes[index].waiting.front().is_some_and(|front| front.id == request.id) {
                break;
            }
        }
        progress
    }
}
