//! Changes the peer has to agree to (states spec 4).

use udrbd_units::{ConnectionState, DiskState};

use crate::Engine;
use crate::change::Verbosity;
use crate::interface::Level;
use crate::state::{
    Enforcement, Refusal, RequestPlan, StateChangeResult as Code, StateRequest, VolumeState,
    check_transition, plan_request, request_outcome_while_waiting, sanitise,
};

/// A request for a change of one volume, from the wish to the verdict: `drbd_request_state`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DeviceRequest {
    index: usize,
    request: StateRequest,
    verbosity: Verbosity,
    asked: bool,
    holds_lock: bool,
}

impl DeviceRequest {
    pub(crate) const fn new(index: usize, request: StateRequest, verbosity: Verbosity) -> Self {
        Self { index, request, verbosity, asked: false, holds_lock: false }
    }
}

impl Engine {
    /// Takes a request further; the verdict, once there is one. A transient refusal is tried again later.
    pub(crate) fn poll_request(&mut self, request: &mut DeviceRequest) -> Option<Code> {
        let index = request.index;
        if !request.holds_lock {
            // One after the other, as 8.4.11's mutex has it: a peer that agrees to outdate this node's disk goes on alone, so the
            // node must not be promoted meanwhile. And below version 100 an answer does not say which of them is meant.
            if self.volumes[index].state_locked || self.connection.change_pending {
                return None;
            }
            self.volumes[index].state_locked = true;
            request.holds_lock = true;
        }
        let code = self.step_request(request);
        if code.is_some() {
            self.volumes[index].state_locked = false;
            request.holds_lock = false;
            self.attention |= code != Some(Code::InTransientState);
        }
        code.filter(|code| *code != Code::InTransientState || self.stays_as_it_is(index))
    }

    /// Whether a volume is in a state that nothing will change by itself: bad data here beside good ones at the peer, and
    /// no resync on its way (states spec 13.5). There, what is refused as transient would be so for ever.
    fn stays_as_it_is(&self, index: usize) -> bool {
        let state = self.volumes[index].state;
        state.connection == ConnectionState::Connected
            && state.disk == DiskState::Inconsistent
            && !self.connection.state_sent
    }

    fn step_request(&mut self, request: &mut DeviceRequest) -> Option<Code> {
        let index = request.index;
        let old = VolumeState { suspension: self.suspension, ..self.volumes[index].state };
        let wanted = request.request.apply(old);
        let context = self.context(index);
        if request.asked {
            let answer = self.volumes[index].change_reply.take();
            let outcome = match answer {
                Some(code) if code >= Code::Success.code() => Some(Code::ClusterWideSuccess),
                Some(code) => {
                    let text = crate::state::result_text(code);
                    let line = format!("Requested state change failed by peer: {text} ({code})");
                    self.say(Level::Error, Some(index), line);
                    Some(Code::ClusterWideFailedByPeer)
                }
                None => {
                    let outcome = request_outcome_while_waiting(old, wanted, &context);
                    if outcome.is_some() && self.connection.is_established() {
                        self.volumes[index].stale_replies += 1;
                    }
                    outcome
                }
            };
            return outcome.map(|code| {
                request.asked = false;
                if code.is_success() {
                    return self.settle_request(request);
                }
                let (wanted, _) = sanitise(old, wanted, &context);
                self.refuse_request(request, &Refusal { code, old, wanted });
                code
            });
        }
        match plan_request(old, wanted, &context) {
            Ok(RequestPlan::Local) => Some(self.settle_request(request)),
            Ok(RequestPlan::AskPeer) => {
                request.asked = true;
                self.volumes[index].change_reply = None;
                self.send_change_request(Some(index), request.request);
                if self.connection.is_established() { None } else { Some(Code::ClusterWideFailedByPeer) }
            }
            Err(refusal) => {
                // What no state leads to is not told (states spec 4.2 step 2).
                if check_transition(refusal.old, refusal.wanted).is_success() {
                    self.refuse_request(request, &refusal);
                }
                Some(refusal.code)
            }
        }
    }

    fn settle_request(&mut self, request: &DeviceRequest) -> Code {
        self.change_volume(request.index, request.request, Enforcement::Soft, request.verbosity)
    }

    fn refuse_request(&mut self, request: &DeviceRequest, refusal: &Refusal) {
        if request.verbosity == Verbosity::Verbose {
            self.log_refusal(request.index, refusal);
        }
    }
}
