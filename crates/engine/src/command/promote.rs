//! `primary` and `secondary` (states spec 14).

use udrbd_units::{ConnectionState, DiskState, Role};

use super::Running;
use crate::Engine;
use crate::change::{DeviceRequest, Verbosity};
use crate::handlers::Reason;
use crate::interface::{CommandId, Duration, Failure, Fencing, Handler, Level, Time};
use crate::state::{StateChangeResult as Code, StateRequest};

/// How often a promotion is tried.
const TRIES: u32 = 4;

#[derive(Debug)]
enum Step {
    Ask,
    Fence,
    Sleep(Time),
    AskLoudly,
    Durable(u64),
}

/// A promotion under way.
#[derive(Debug)]
pub(crate) struct Promotion {
    id: CommandId,
    index: usize,
    force: bool,
    forced: bool,
    tries: u32,
    wanted: StateRequest,
    request: DeviceRequest,
    refused: Code,
    step: Step,
}

impl Promotion {
    pub(crate) const fn timeout(&self) -> Option<Time> {
        match self.step {
            Step::Sleep(until) => Some(until),
            _ => None,
        }
    }
}

/// A demotion under way.
#[derive(Debug)]
pub(crate) struct Demotion {
    id: CommandId,
    index: usize,
    request: Option<DeviceRequest>,
    version: u64,
}

impl Engine {
    /// `primary`.
    pub(super) fn promote(&mut self, id: CommandId, index: usize, force: bool) {
        if let Some(refusal) = self.refuse_to_serve(index) {
            self.reply(id, Err(refusal));
            return;
        }
        if self.connection.is_established() {
            // A dead peer is noticed early.
            self.ping();
        }
        let wanted = StateRequest::role(Role::Primary);
        self.commands.push(Running::Promotion(Promotion {
            id,
            index,
            force,
            forced: false,
            tries: 1,
            wanted,
            request: DeviceRequest::new(index, wanted, Verbosity::Quiet),
            refused: Code::Success,
            step: Step::Ask,
        }));
    }

    pub(super) fn run_promotion(&mut self, promotion: &mut Promotion) -> bool {
        match promotion.step {
            Step::Ask => {
                let Some(result) = self.poll_request(&mut promotion.request) else { return false };
                self.promotion_answered(promotion, result)
            }
            Step::Fence => {
                let Some(place) = self.fence_answers.iter().position(|(id, _)| *id == promotion.id.0) else {
                    return false;
                };
                let (_, fenced) = self.fence_answers.swap_remove(place);
                self.promotion_fenced(promotion, fenced);
                false
            }
            Step::Sleep(until) => {
                if self.now < until {
                    return false;
                }
                self.ask_again(promotion);
                false
            }
            Step::AskLoudly => {
                let Some(result) = self.poll_request(&mut promotion.request) else { return false };
                if result.is_success() {
                    self.promoted(promotion);
                    return false;
                }
                self.reply(promotion.id, Err(Failure::state(result)));
                true
            }
            Step::Durable(version) => {
                let durable = self.superblock_is_durable(promotion.index, version);
                if durable {
                    self.reply(promotion.id, Ok(()));
                }
                durable
            }
        }
    }

    /// Decides what to do about the verdict on a promotion. Returns whether the command is over.
    fn promotion_answered(&mut self, promotion: &mut Promotion, result: Code) -> bool {
        let disk = self.volumes[promotion.index].state.disk;
        let usable = disk >= DiskState::Inconsistent && disk < DiskState::UpToDate;
        promotion.refused = result;
        match result {
            Code::NoUpToDateDisk
                if self.bug(crate::bugs::Bug::StalePromote) && usable && !promotion.forced =>
            {
                promotion.wanted.disk = Some(DiskState::UpToDate);
                promotion.forced = true;
                self.ask_again(promotion);
            }
            Code::NothingToDo => {
                self.reply(promotion.id, Ok(()));
                return true;
            }
            Code::ClusterWideFailedByPeer if promotion.wanted.peer_disk.is_some() => {
                promotion.wanted.peer_disk = None;
                self.ask_again(promotion);
            }
            Code::NoUpToDateDisk if promotion.force && usable && !promotion.forced => {
                promotion.wanted.disk = Some(DiskState::UpToDate);
                promotion.forced = true;
                self.ask_again(promotion);
            }
            Code::NoUpToDateDisk if disk == DiskState::Consistent && promotion.wanted.peer_disk.is_none() => {
                self.fence_for_promotion(promotion);
            }
            Code::PrimaryWithoutOutdatedPeer if promotion.wanted.peer_disk.is_none() => {
                self.fence_for_promotion(promotion);
            }
            Code::TwoPrimaries => {
                if promotion.tries < TRIES {
                    promotion.tries = TRIES - 1;
                }
                let timeout = self
                    .connection
                    .options
                    .as_ref()
                    .map_or(Duration::from_millis(500), |options| options.ping_timeout);
                promotion.step = Step::Sleep(self.now.after(timeout + Duration::from_millis(100)));
                if promotion.tries >= TRIES {
                    self.reply(promotion.id, Err(Failure::state(result)));
                    return true;
                }
            }
            code if !code.is_success() => {
                promotion.request = DeviceRequest::new(promotion.index, promotion.wanted, Verbosity::Verbose);
                promotion.step = Step::AskLoudly;
                self.attention = true;
            }
            _ => self.promoted(promotion),
        }
        false
    }

    fn ask_again(&mut self, promotion: &mut Promotion) {
        promotion.tries += 1;
        let last = promotion.tries > TRIES;
        let verbosity = if last { Verbosity::Verbose } else { Verbosity::Quiet };
        promotion.request = DeviceRequest::new(promotion.index, promotion.wanted, verbosity);
        promotion.step = if last { Step::AskLoudly } else { Step::Ask };
        self.attention = true;
    }

    /// Has the peer fenced (states spec 15.2).
    fn fence_for_promotion(&mut self, promotion: &mut Promotion) {
        let policy = self.fencing_policy();
        let consistent = self.volume_states().any(|state| state.disk >= DiskState::Consistent);
        if self.connection.state >= ConnectionState::WFReportParams {
            self.say(Level::Error, None, "Expected cstate < C_WF_REPORT_PARAMS".to_owned());
            self.promotion_fenced(promotion, false);
        } else if !consistent {
            let text = "Not fencing peer, I'm not even Consistent myself.".to_owned();
            self.say(Level::Warning, None, text);
            self.promotion_fenced(promotion, false);
        } else if policy == Fencing::DontCare {
            self.promotion_fenced(promotion, true);
        } else {
            let count = self.connection.connect_count;
            promotion.step = Step::Fence;
            let reason = Reason::FenceForPromotion { command: promotion.id.0, count };
            self.run_handler_for(Handler::FencePeer, None, reason);
        }
    }

    fn promotion_fenced(&mut self, promotion: &mut Promotion, fenced: bool) {
        if promotion.refused == Code::NoUpToDateDisk && fenced {
            promotion.wanted.disk = Some(DiskState::UpToDate);
        } else if promotion.refused == Code::PrimaryWithoutOutdatedPeer && !fenced && promotion.force {
            self.say(Level::Warning, None, "Forced into split brain situation!".to_owned());
            promotion.wanted.peer_disk = Some(DiskState::Outdated);
        }
        self.ask_again(promotion);
    }

    /// The role is there; the identifiers follow it.
    fn promoted(&mut self, promotion: &mut Promotion) {
        let index = promotion.index;
        if promotion.forced {
            let text = "Forced to consider local data as UpToDate!".to_owned();
            self.say(Level::Warning, Some(index), text);
        }
        if let Some(options) = &mut self.connection.options {
            options.discard_my_data = false;
        }
        let mut version = 0;
        let state = self.volumes[index].state;
        if self.volumes[index].has_disk() {
            let alone = state.connection < ConnectionState::Connected || state.peer_disk <= DiskState::Failed;
            let doubtful = self.doubtful_target(index).is_some();
            let unrotated = self.generations(index).is_some_and(|set| !set.bitmap.is_some() || doubtful);
            // What A10 is about to do for the same change must not be done twice (states spec 14.1).
            self.run_after();
            let doubtful = self.doubtful_target(index).is_some();
            let unrotated =
                unrotated && self.generations(index).is_some_and(|set| !set.bitmap.is_some() || doubtful);
            // Nor are writes mirrored before the resync has begun, and until then both may be called the same: should both
            // fail, a coin may say whose data are kept.
            let unnamed = state.connection == ConnectionState::WFBitMapS && unrotated;
            if (alone && unrotated)
                || unnamed
                || (promotion.forced && self.volumes[index].current_due.is_none())
            {
                self.new_current_generation(index);
            }
            if unnamed {
                self.send_uuids(index, 0);
            }
            version = self.change_generations(index, |set| set.mark_role(true));
            // No write before the superblock says Primary: after a crash the activity log would not count.
            self.volumes[index].current_due = Some(version);
        }
        if self.connection.state >= ConnectionState::WFReportParams {
            if promotion.forced {
                self.send_uuids(index, 0);
            }
            self.send_current_state(index);
        }
        promotion.step = Step::Durable(version);
        self.attention = true;
    }

    /// `secondary`.
    pub(super) fn demote(&mut self, id: CommandId, index: usize, held_open: bool) {
        self.volumes[index].held_open = held_open;
        let request = DeviceRequest::new(index, StateRequest::role(Role::Secondary), Verbosity::Verbose);
        self.commands.push(Running::Demotion(Demotion { id, index, request: Some(request), version: 0 }));
    }

    pub(super) fn run_demotion(&mut self, demotion: &mut Demotion) -> bool {
        match self.poll_demotion(demotion) {
            None => false,
            Some(Ok(())) => {
                self.reply(demotion.id, Ok(()));
                true
            }
            Some(Err(code)) => {
                self.reply(demotion.id, Err(Failure::state(code)));
                true
            }
        }
    }

    /// Starts a demotion that is part of another command.
    pub(super) const fn new_demotion(id: CommandId, index: usize) -> Demotion {
        let request = DeviceRequest::new(index, StateRequest::role(Role::Secondary), Verbosity::Verbose);
        Demotion { id, index, request: Some(request), version: 0 }
    }

    /// Whether requests of clients are under way, or writes the peer has not confirmed for good.
    fn has_requests(&self, index: usize) -> bool {
        let volume = &self.volumes[index];
        let unconfirmed = |key| self.requests.get(key).is_some_and(|request| request.volume == index);
        volume.admitted > 0 || !volume.waiting.is_empty() || self.log.iter().any(|key| unconfirmed(*key))
    }

    pub(super) fn poll_demotion(&mut self, demotion: &mut Demotion) -> Option<Result<(), Code>> {
        let index = demotion.index;
        if let Some(request) = &mut demotion.request {
            // Whoever demotes has closed the device, and its writes have ended, at the peer for good too: a Secondary that
            // completes a write starts no generation of its own, and its activity log does not count after a crash.
            let volume = &self.volumes[index];
            if volume.state.role == Role::Primary && self.has_requests(index) {
                if !self.suspension.any() {
                    return None;
                }
                // Frozen requests keep the device open; the request below is refused for it.
                self.volumes[index].held_open = true;
            }
            let result = self.poll_request(request)?;
            demotion.request = None;
            self.volumes[index].held_open = false;
            if !result.is_success() {
                return Some(Err(result));
            }
            if result == Code::NothingToDo {
                return Some(Ok(()));
            }
            if self.volumes[index].has_disk() {
                self.run_after();
                demotion.version = self.change_generations(index, |set| set.mark_role(false));
            }
            if self.connection.state >= ConnectionState::WFReportParams {
                self.send_current_state(index);
            }
        }
        // Mirrored writes still under way end first.
        let quiet = self.volumes[index].admitted == 0;
        (quiet && self.superblock_is_durable(index, demotion.version)).then_some(Ok(()))
    }
}
