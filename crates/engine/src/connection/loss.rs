//! What has to be cleared away when a connection is lost, in order (io spec 12; states spec 7.4).

use udrbd_units::{ConnectionState, DiskState, Role};

use super::Stage;
use super::establish::Establish;
use crate::Engine;
use crate::change::Verbosity;
use crate::interface::{Handler, Level};
use crate::peer::PeerEpoch;
use crate::state::{Enforcement, OutdateFailure, StateRequest, Suspension};

/// Where the cleaning up stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Losing {
    /// The disks still work for the peer.
    Drain,
    /// Superblocks that have to be durable first are being written.
    Durable,
}

impl Engine {
    /// Starts to clear away a lost connection, if one is. Returns whether something happened.
    pub(crate) fn run_loss(&mut self) -> bool {
        use ConnectionState::{Disconnecting, TearDown, Timeout};
        let lost =
            self.connection.state == Disconnecting || (Timeout..=TearDown).contains(&self.connection.state);
        if !lost {
            return false;
        }
        match self.connection.losing {
            // A receiver that waits for a handler notices nothing else, except that the administrator wants it gone.
            None if self.is_pondering() && self.connection.state != Disconnecting => false,
            None => {
                self.begin_loss();
                true
            }
            Some(Losing::Drain) => {
                if self.peer_requests_at_disk() > 0 || self.connection.flushes > 0 {
                    return false;
                }
                self.forget_peer_requests();
                self.connection.losing = Some(Losing::Durable);
                true
            }
            Some(Losing::Durable) => {
                if !self.after.is_empty() || self.volumes.iter().any(|volume| volume.current_due.is_some()) {
                    return false;
                }
                self.end_loss();
                true
            }
        }
    }

    fn begin_loss(&mut self) {
        // A peer that asked for the end still gets the answer. One that is refused still gets what it was told before: by that
        // it may find its own reason, or that its data are old. It would not look at that any more if the meta socket ended
        // as soon.
        let refused = std::mem::take(&mut self.connection.refused);
        if refused
            && self.connection.data.is_some()
            && let Some(meta) = self.connection.meta.take()
        {
            self.close_refused_meta();
            self.connection.refused_meta = Some((meta, self.now.after(self.ping_timeout())));
        }
        let graceful =
            self.connection.state == ConnectionState::TearDown || self.connection.disconnect_sent || refused;
        if self.connection.establish != Establish::Off {
            self.say(Level::Warning, None, "Discarding network configuration.".to_owned());
        }
        self.abandon_attempt(!graceful);
        self.stop_keepalive();
        self.connection.deadline = None;
        self.connection.answer_until = None;
        self.connection.stage = Stage::None;
        self.connection.state_sent = false;
        self.connection.losing = Some(Losing::Drain);
        self.drop_inbox();
        self.drop_waiting_peer_requests();
        for index in 0..self.volumes.len() {
            let volume = &mut self.volumes[index];
            volume.peer_generations = None;
            volume.pondering = None;
            volume.exchange = Default::default();
            volume.stop_resync();
            volume.resync.start = None;
            if let Some(disk) = &mut volume.disk {
                disk.extents.cancel_all();
            }
        }
        self.attention = true;
    }

    fn end_loss(&mut self) {
        if self.suspension.any() {
            // Frozen: what becomes of the requests is decided when I/O thaws.
            self.connection.log_frozen = true;
        } else {
            self.transfer_log_connection_lost();
        }
        for index in 0..self.volumes.len() {
            if self.volumes[index].has_disk() {
                self.write_changed_pages(index);
            }
        }
        self.connection.epochs.clear();
        self.connection.cached_writes.clear();
        self.connection.epoch_count += 1;
        self.connection.epochs.push_back(PeerEpoch::new(self.connection.epoch_count));
        self.connection.sent_epoch = None;
        self.connection.sent_epoch_writes = 0;
        self.connection.losing = None;
        self.connection.change_reply = None;
        self.say(Level::Info, None, "Connection closed".to_owned());
        self.fence_after_loss();
        let disconnecting = self.connection.state == ConnectionState::Disconnecting;
        let next = if disconnecting { ConnectionState::StandAlone } else { ConnectionState::Unconnected };
        self.change_connection(
            StateRequest::connection(next),
            if disconnecting { Enforcement::Hard } else { Enforcement::Soft },
            OutdateFailure::Ignore,
            Verbosity::Verbose,
        );
        if disconnecting {
            self.connection.forget_configuration();
        } else {
            self.start_connecting();
        }
        self.attention = true;
    }

    /// A Primary that lost the peer fences it (states spec 15.3).
    fn fence_after_loss(&mut self) {
        let primary = self.volume_states().any(|state| state.role == Role::Primary);
        let unknown = self.volume_states().any(|state| state.peer_disk >= DiskState::Unknown);
        let consistent = self.volume_states().any(|state| state.disk >= DiskState::Consistent);
        if primary && unknown && !consistent && self.suspension.fencing {
            // Nobody will ask for a fencing, so nothing may wait for one (states spec 15.2 step 2).
            let text = "Not fencing peer, I'm not even Consistent myself.".to_owned();
            self.say(Level::Warning, None, text);
            self.set_suspension(Suspension { fencing: false, ..self.suspension });
            self.connection.lost_log_pending |= !self.suspension.any();
        }
        if primary && unknown && self.fencing_policy() > crate::interface::Fencing::DontCare {
            self.connection.fencing_running = true;
            let count = self.connection.connect_count;
            self.run_handler_for(Handler::FencePeer, None, crate::handlers::Reason::FenceAfterLoss { count });
        }
    }
}
