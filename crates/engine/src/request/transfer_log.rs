//! Epochs on the sending side, acknowledgements, and the transfer log (io spec 5.7, 12, 13).

use udrbd_units::ConnectionState;

use super::{Local, Net};
use crate::Engine;
use crate::interface::{Action, Protocol};
use crate::slab::Key;

/// What the peer said about a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WriteAnswer {
    /// It has received it (B).
    Received,
    /// Its disk has it (C).
    Written,
    /// As `Written`, and the peer has marked it in sync.
    WrittenInSync,
    /// Its disk has it not.
    Failed,
    /// A write of its own has replaced it (two Primaries).
    Superseded,
    /// Send it again once the conflict is over (two Primaries).
    Retry,
}

impl Engine {
    /// Ends the current epoch, if there is a write in it.
    pub(crate) fn close_epoch(&mut self) {
        if self.connection.epoch_writes > 0 {
            self.connection.epoch = self.connection.epoch.wrapping_add(1);
            self.connection.epoch_writes = 0;
        }
    }

    /// Sends the barrier that is due before anything of `epoch` (io spec 5.2).
    pub(crate) fn flush_barrier(&mut self, epoch: u32) {
        match self.connection.sent_epoch {
            Some(sent) if sent == epoch => {}
            Some(sent) => {
                if self.connection.sent_epoch_writes > 0 {
                    self.send_barrier(sent);
                    self.connection.barrier_sent_at = Some((sent, self.now));
                }
                self.connection.sent_epoch = Some(epoch);
                self.connection.sent_epoch_writes = 0;
            }
            None => {
                self.connection.sent_epoch = Some(epoch);
                self.connection.sent_epoch_writes = 0;
            }
        }
    }

    /// Nothing more to send for now: a barrier that is due goes out (io spec 5.2).
    pub(crate) fn flush_idle_barrier(&mut self) {
        let due = self.connection.sent_epoch.is_some_and(|sent| sent != self.connection.epoch);
        if due && self.connection.sent_epoch_writes > 0 && self.connection.is_established() {
            self.flush_barrier(self.connection.epoch);
        }
    }

    /// The peer has answered a write. `false`: there is no such write.
    pub(crate) fn write_answered(&mut self, key: Key, answer: WriteAnswer) -> bool {
        let Some(request) = self.requests.get_mut(key) else { return false };
        let index = request.volume;
        let was_pending = request.net == Net::Pending;
        match answer {
            WriteAnswer::Received | WriteAnswer::Written => request.net = Net::Ok,
            WriteAnswer::WrittenInSync => {
                request.net = Net::Ok;
                request.set_in_sync = !request.overtaken;
            }
            WriteAnswer::Failed => request.net = Net::Failed,
            WriteAnswer::Superseded => {
                request.net = Net::Ok;
                // The peer does not count it (io spec 23.2).
                request.barrier_expected = false;
                request.net_done = true;
            }
            WriteAnswer::Retry => {
                request.barrier_expected = false;
                request.postponed = true;
            }
        }
        if was_pending && request.net != Net::Pending {
            self.volumes[index].counters.peer_pending -= 1;
        }
        if matches!(answer, WriteAnswer::Superseded | WriteAnswer::Retry) {
            self.leaves_flight(key);
        }
        let request = &self.requests[key];
        if answer == WriteAnswer::WrittenInSync && request.overtaken {
            self.announce_again(index, request.range);
        }
        let request = &self.requests[key];
        if request.net == Net::Failed || (request.doubtful && request.net != Net::Pending) {
            self.mark_out_of_sync(key);
        }
        self.settle(key);
        true
    }

    /// TCP has a write: with protocol A the peer counts as having it (io spec 5.3).
    pub(crate) fn write_sent(&mut self, key: Key) {
        if self.requests.get(key).is_none() {
            return;
        }
        self.enters_flight(key);
        if let Some(request) = self.requests.get_mut(key)
            && request.net == Net::Pending
        {
            request.net = Net::Ok;
            let index = request.volume;
            self.volumes[index].counters.peer_pending -= 1;
            self.settle(key);
        }
    }

    /// P_BARRIER_ACK: the oldest epoch is done at the peer. `Err`: the text for the log; the peer is confused.
    pub(crate) fn barrier_acknowledged(&mut self, barrier: u32, count: u32) -> Result<(), String> {
        let is_open = |request: &super::Request| request.barrier_expected && !request.net_done;
        let first = self.log.iter().position(|key| self.requests.get(*key).is_some_and(is_open));
        let Some(first) = first else {
            return Err(format!("BAD! BarrierAck #{barrier} received, but no epoch in tl!?"));
        };
        let epoch = self.requests[self.log[first]].epoch;
        if epoch != barrier {
            return Err(format!("BAD! BarrierAck #{barrier} received, expected #{epoch}!"));
        }
        let mut members = std::mem::take(&mut self.connection.scratch);
        members.clear();
        for key in self.log.iter().skip(first) {
            match self.requests.get(*key) {
                Some(request) if request.epoch != epoch => break,
                // Another volume of this connection may not replicate: its writes were never sent.
                Some(request) if request.barrier_expected => members.push(*key),
                _ => {}
            }
        }
        let expected = members.len() as u32;
        if expected != count {
            self.connection.scratch = members;
            return Err(format!(
                "BAD! BarrierAck #{barrier} received with n_writes={count}, expected n_writes={expected}!"
            ));
        }
        for key in &members {
            let request = &mut self.requests[*key];
            if request.barrier_expected {
                request.net_done = true;
                self.leaves_flight(*key);
                self.settle(*key);
            }
        }
        self.connection.scratch = members;
        self.may_return_from_ahead();
        Ok(())
    }

    /// The peer's disk is gone. What the peer has acknowledged and not confirmed for good may not have left its cache.
    pub(crate) fn doubt_unconfirmed(&mut self, index: usize) {
        for key in self.log.iter().copied().collect::<Vec<_>>() {
            let Some(request) = self.requests.get_mut(key) else { continue };
            if request.volume == index && request.barrier_expected && !request.net_done {
                request.doubtful = true;
                if request.net != Net::Pending {
                    self.mark_out_of_sync(key);
                }
            }
        }
    }

    /// Sets the bits of the frozen writes of a volume that the peer has acknowledged and not confirmed for good: they are not
    /// sent again. Returns whether there are any.
    pub(crate) fn mark_unconfirmed(&mut self, index: usize) -> bool {
        let mut any = false;
        for key in self.log.iter().copied().collect::<Vec<_>>() {
            let Some(request) = self.requests.get_mut(key) else { continue };
            let acknowledged = matches!(request.net, Net::Ok | Net::Failed);
            if request.volume == index && request.barrier_expected && !request.net_done && acknowledged {
                request.doubtful = true;
                self.mark_out_of_sync(key);
                any = true;
            }
        }
        any
    }

    /// Sets the bits of a write the peer does not have, without waiting for its barrier: the bitmap may be sent before
    /// that comes.
    fn mark_out_of_sync(&mut self, key: Key) {
        let request = &mut self.requests[key];
        if request.operation.is_write() && !std::mem::replace(&mut request.marked, true) {
            let (index, range) = (request.volume, request.range);
            self.write_sets_out_of_sync(index, range);
        }
    }

    /// The connection is lost: what the peer has not confirmed for good ends without it (io spec 12 step 6).
    pub(crate) fn transfer_log_connection_lost(&mut self) {
        self.connection.log_frozen = false;
        let forgets = self.bug(crate::bugs::Bug::ForgetUnconfirmed);
        for key in self.log.iter().copied().collect::<Vec<_>>() {
            let Some(request) = self.requests.get_mut(key) else { continue };
            if request.net == Net::None {
                continue;
            }
            let index = request.volume;
            if request.net == Net::Pending {
                self.volumes[index].counters.peer_pending -= 1;
            }
            let request = &mut self.requests[key];
            if !(forgets && request.net == Net::Ok) {
                request.net = Net::Failed;
            }
            request.net_done = true;
            request.postponed = false;
            request.held = false;
            self.leaves_flight(key);
            self.settle(key);
        }
        for key in std::mem::take(&mut self.connection.remote_reads) {
            self.connection.remote_reads.push(key);
            self.remote_read_failed(key);
        }
    }

    /// The connection is back before anything was given up: what was frozen is sent again (io spec 13, RESEND), where the peer's
    /// disk is not to be resynced first. There it is marked, as a write is that comes now: before the resync has begun the
    /// disk counts as one that was good at some time, and must not hold it beside the lack of an older one.
    pub(crate) fn transfer_log_resend(&mut self) {
        let asynchronous =
            self.connection.options.as_ref().is_some_and(|options| options.protocol == Protocol::A);
        self.connection.log_frozen = false;
        for key in self.log.iter().copied().collect::<Vec<_>>() {
            let Some(request) = self.requests.get_mut(key) else { continue };
            request.held = false;
            request.postponed = false;
            let volume = &mut self.volumes[request.volume];
            match request.net {
                Net::Pending if volume.state.connection == ConnectionState::WFBitMapS => {
                    request.net = Net::Failed;
                    volume.counters.peer_pending -= 1;
                    self.ends_unsent(key);
                }
                // With protocol A nobody knows whether what TCP took has arrived: its bits are set. So are those of a write the
                // peer has refused, which is not sent again.
                Net::Ok | Net::Failed => {
                    if asynchronous {
                        request.net = Net::Failed;
                    }
                    self.ends_unsent(key);
                }
                Net::Pending => self.resend_write(key),
                Net::None => self.settle(key),
            }
        }
        for key in self.connection.remote_reads.clone() {
            if let Some(request) = self.requests.get(key) {
                let (index, range) = (request.volume, request.range);
                // Behind every write that was sent again: the epoch never goes back.
                self.flush_barrier(self.connection.epoch);
                self.send_data_request(index, key, range);
            }
        }
    }

    /// The peer is done with a frozen write that it does not get again, and does not count in its epoch.
    fn ends_unsent(&mut self, key: Key) {
        let request = &mut self.requests[key];
        request.barrier_expected = false;
        request.net_done = true;
        self.leaves_flight(key);
        self.settle(key);
    }

    fn resend_write(&mut self, key: Key) {
        let request = &mut self.requests[key];
        request.sent_at = self.now;
        let (index, range, operation, epoch) =
            (request.volume, request.range, request.operation, request.epoch);
        let payload = match request.buffer {
            Some(buffer) if !operation.is_payloadless() => {
                crate::interface::Payload::Buffer { buffer, bytes: range.bytes }
            }
            _ => crate::interface::Payload::None,
        };
        self.flush_barrier(epoch);
        self.connection.sent_epoch_writes += 1;
        self.send_write(index, key, operation, range, payload);
    }

    /// The oldest write or read the peer owes an answer, and whether only its barrier is missing.
    pub(crate) fn oldest_unanswered(&self) -> Option<(Key, bool)> {
        let open = |key: &Key| self.requests.get(*key);
        let pending = self
            .log
            .iter()
            .chain(&self.connection.remote_reads)
            .copied()
            .find(|key| open(key).is_some_and(|request| request.net == Net::Pending));
        let unconfirmed = || {
            let wait = |request: &super::Request| request.barrier_expected && !request.net_done;
            self.log.iter().copied().find(|key| open(key).is_some_and(wait))
        };
        pending.map(|key| (key, false)).or_else(|| unconfirmed().map(|key| (key, true)))
    }

    /// Completes with what they have the requests whose local part is over: the disk is gone for good
    /// (io spec 13, FAIL_FROZEN).
    pub(crate) fn transfer_log_fail_frozen(&mut self) {
        for key in self.log.iter().copied().collect::<Vec<_>>() {
            if let Some(request) = self.requests.get_mut(key)
                && matches!(request.local, Local::Ok | Local::Failed)
            {
                request.held = false;
                self.settle(key);
            }
        }
    }

    /// Submits to the re-attached disk what had ended on the lost one (io spec 13, RESTART_DISK).
    pub(crate) fn transfer_log_restart_disk(&mut self) {
        let peer_gone = self.connection.state < ConnectionState::WFReportParams;
        for key in self.log.iter().copied().collect::<Vec<_>>() {
            let Some(request) = self.requests.get_mut(key) else { continue };
            if request.completed || !matches!(request.local, Local::Failed | Local::None) {
                continue;
            }
            request.held = false;
            let (index, net) = (request.volume, request.net);
            let nowhere = net == Net::None || (net != Net::Ok && peer_gone);
            if nowhere && self.volumes[index].has_disk() {
                if net == Net::Pending {
                    self.volumes[index].counters.peer_pending -= 1;
                }
                // It starts over with fresh activity log coverage. Nothing is held of a disk that has gone; another
                // volume's still is there.
                self.release_extents(key);
                self.leaves_flight(key);
                self.log.retain(|other| *other != key);
                self.readmit(key);
            } else {
                self.settle(key);
            }
        }
        // What only the peer had was to do ends without it, as far as it has not started over.
        self.connection.lost_log_pending |= peer_gone;
        self.attention = true;
    }

    /// Gives a buffer back that came with a packet.
    pub(crate) fn release(&mut self, buffer: Option<crate::interface::Buffer>) {
        if let Some(buffer) = buffer {
            self.out.push(Action::Release(buffer));
        }
    }
}
