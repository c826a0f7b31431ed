//! Handler programs: started, and what their exit status means (states spec 15 and 20).

use udrbd_units::{ConnectionState, DiskState};

use crate::Engine;
use crate::bugs::Bug;
use crate::change::Verbosity;
use crate::interface::{Action, Fencing, Handler, HandlerId, Level};
use crate::state::{Enforcement, OutdateFailure, StateRequest};

/// What waits for the end of a handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// Nothing.
    Nobody,
    /// A resync may start.
    BeforeResync { index: usize, handler: u64 },
    /// I/O of a Primary that lost the peer; `count` connections had been made then.
    FenceAfterLoss { count: u32 },
    /// What follows from a change of state: the volume's disk or its last good data are gone (states spec 13.4 and 5.1, A4).
    AfterChange,
    /// The decision about the data, which it is told of first (states spec 10.2).
    Handshake { index: usize },
    /// A promotion.
    FenceForPromotion { command: u64, count: u32 },
}

impl Engine {
    /// Runs a handler nobody waits for.
    pub(crate) fn run_handler(&mut self, name: Handler, index: Option<usize>) {
        self.run_handler_for(name, index, Reason::Nobody);
    }

    /// Runs a handler for a reason. Returns what it is called.
    pub(crate) fn run_handler_for(
        &mut self,
        name: Handler,
        index: Option<usize>,
        reason: Reason,
    ) -> HandlerId {
        self.handler_count += 1;
        let handler = HandlerId(self.handler_count);
        self.handlers.push((handler, reason));
        let volume = index.map(|index| self.volumes[index].number);
        self.out.push(Action::RunHandler { handler, name, volume });
        handler
    }

    /// Runs a handler that may reset this node: nothing follows from the change of state, and no write goes to the peer,
    /// before it has ended.
    pub(crate) fn run_handler_and_wait(&mut self, name: Handler, index: usize) {
        self.after_waits = true;
        self.run_handler_for(name, Some(index), Reason::AfterChange);
    }

    /// A handler has ended.
    pub(crate) fn handler_exit(&mut self, handler: HandlerId, status: i32) {
        let Some(place) = self.handlers.iter().position(|(other, _)| *other == handler) else { return };
        let (_, reason) = self.handlers.swap_remove(place);
        self.attention = true;
        match reason {
            Reason::Nobody => {}
            Reason::AfterChange => self.after_waits = false,
            Reason::Handshake { index } => self.handshake_handler_done(index, handler),
            Reason::BeforeResync { index, handler } => self.resync_handler_done(index, handler, status),
            Reason::FenceAfterLoss { count } => {
                self.connection.fencing_running = false;
                self.fence_result(status, count);
                self.fencing_succeeded();
            }
            Reason::FenceForPromotion { command, count } => {
                let fenced = self.fence_result(status, count);
                self.fence_answers.push((command, fenced));
                // I/O of another volume may be frozen, whose own fencing failed.
                self.fencing_succeeded();
            }
        }
    }

    /// The strictest fencing policy of the volumes with good data.
    pub(crate) fn fencing_policy(&self) -> Fencing {
        self.volumes
            .iter()
            .filter(|volume| volume.state.disk >= DiskState::Consistent)
            .filter_map(|volume| volume.disk.as_ref())
            .map(|disk| disk.options.fencing)
            .max()
            .unwrap_or(Fencing::DontCare)
    }

    /// What the exit status of `fence-peer` means (states spec 15.2). Returns whether the peer is fenced.
    fn fence_result(&mut self, status: i32, count: u32) -> bool {
        let best = self.volume_states().map(|state| state.disk).max().unwrap_or(DiskState::Diskless);
        let outdated = StateRequest::peer_disk(DiskState::Outdated);
        let (text, request) = match status {
            3 => ("peer is inconsistent or worse", Some(StateRequest::peer_disk(DiskState::Inconsistent))),
            4 => ("peer was fenced", Some(outdated)),
            5 if best == DiskState::UpToDate => ("peer is unreachable, assumed to be dead", Some(outdated)),
            5 => ("peer unreachable, doing nothing since disk != UpToDate", None),
            6 => {
                self.say(Level::Warning, None, "Peer is primary, outdating myself.".to_owned());
                ("peer is active", Some(StateRequest::disk(DiskState::Outdated)))
            }
            7 => {
                if self.fencing_policy() != Fencing::ResourceAndStonith {
                    self.say(Level::Error, None, "fence-peer() = 7 && fencing != Stonith !!!".to_owned());
                }
                ("peer was stonithed", Some(outdated))
            }
            other => {
                self.say(Level::Error, None, format!("fence-peer helper broken, returned {other}"));
                return false;
            }
        };
        let request = if self.bug(Bug::FailedFenceCounts) { Some(outdated) } else { request };
        self.say(Level::Info, None, format!("fence-peer helper returned {status} ({text})"));
        if self.connection.state < ConnectionState::WFReportParams && !self.connection.state_sent {
            if self.connection.connect_count != count {
                self.say(Level::Info, None, "Ignoring fence-peer exit code".to_owned());
            } else if let Some(request) = request {
                self.change_connection(
                    request,
                    Enforcement::Soft,
                    OutdateFailure::Refuse,
                    Verbosity::Verbose,
                );
            }
        }
        self.volume_states().all(|state| state.peer_disk <= DiskState::Outdated)
    }
}
