//! One change from wish to verdict: corrections and checks in DRBD's order.

use udrbd_units::{ConnectionState, DiskState};

use super::check::{check_connection_transition, check_soft_transition, check_transition, check_valid};
use super::context::Context;
use super::predicates::needs_peer;
use super::request::StateRequest;
use super::result::StateChangeResult as Code;
use super::sanitise::{Warning, sanitise};
use super::volume::VolumeState;

/// Whether a change is a wish or a fact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enforcement {
    /// A wish: all checks apply.
    Soft,
    /// A fact the environment imposes (`CS_HARD`): only the transition checks apply.
    Hard,
}

/// What a connection-wide change does where it asks for Outdated and a volume's disk is below that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutdateFailure {
    /// The change is refused.
    Refuse,
    /// The volume keeps its disk state (`CS_IGN_OUTD_FAIL`).
    Ignore,
}

/// A change that may be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// The state before.
    pub old: VolumeState,
    /// The state after.
    pub new: VolumeState,
    /// A correction to log before the change.
    pub warning: Option<Warning>,
    /// `Success` or `NothingToDo`. A hard change that leaves the connection alone has `NothingToDo` although it is a
    /// change, as in DRBD; see [`Change::is_change`].
    pub result: Code,
}

impl Change {
    /// Whether there is anything to store, log and react to.
    pub fn is_change(&self) -> bool {
        self.old != self.new
    }
}

/// A change that may not be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Why.
    pub code: Code,
    /// The present state.
    pub old: VolumeState,
    /// What was wanted, after the corrections.
    pub wanted: VolumeState,
}

impl Refusal {
    /// The lines of a refusal for the log, `None` for the one DRBD never logs (states spec 3.8).
    pub fn lines(&self) -> Option<[String; 3]> {
        (self.code != Code::InTransientState).then(|| {
            [
                format!("State change failed: {}", self.code.text()),
                format!("  state = {{ {} }}", self.old),
                format!(" wanted = {{ {} }}", self.wanted),
            ]
        })
    }

    /// The lines of a refused connection-wide request, logged at the connection (states spec 3.7 step 6).
    pub fn connection_lines(code: Code, request: StateRequest, old: ConnectionState) -> [String; 3] {
        let (mask, value) = request.to_raw();
        let wanted = request.connection.unwrap_or(ConnectionState::StandAlone);
        [
            format!("State change failed: {}", code.text()),
            format!(" mask = 0x{mask:x} val = 0x{value:x}"),
            format!(" old_conn:{old} wanted_conn:{wanted}"),
        ]
    }
}

/// Corrects and checks a change of one volume (`__drbd_set_state`, states spec 3.2 steps 1 to 5). Makes nothing.
///
/// # Errors
/// The [`Refusal`] with its code.
pub fn decide(
    old: VolumeState,
    wanted: VolumeState,
    enforcement: Enforcement,
    context: &Context,
) -> Result<Change, Refusal> {
    let (new, warning) = sanitise(old, wanted, context);
    if new == old {
        return Ok(Change { old, new, warning: None, result: Code::NothingToDo });
    }
    let result = check(old, new, enforcement, context);
    if result.is_success() {
        Ok(Change { old, new, warning, result })
    } else {
        Err(Refusal { code: result, old, wanted: new })
    }
}

fn check(old: VolumeState, new: VolumeState, enforcement: Enforcement, context: &Context) -> Code {
    let transition = check_transition(old, new);
    if !transition.is_success() || enforcement == Enforcement::Hard {
        return transition;
    }
    let valid = check_valid(new, context);
    // An illegal state may stay illegal in the same way.
    if valid.is_success() || check_valid(old, context) == valid {
        check_soft_transition(old, new, context)
    } else {
        valid
    }
}

/// How a request for a volume goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestPlan {
    /// Apply it here, by [`decide`].
    Local,
    /// Ask the peer first.
    AskPeer,
}

/// The first half of a request that may become cluster-wide (`drbd_req_state`, states spec 4.2 steps 2 and 3).
///
/// # Errors
/// The [`Refusal`]. Here, other than in [`decide`], an illegal present state excuses nothing.
pub fn plan_request(
    old: VolumeState,
    wanted: VolumeState,
    context: &Context,
) -> Result<RequestPlan, Refusal> {
    let (new, _) = sanitise(old, wanted, context);
    let refuse = |code| Err(Refusal { code, old, wanted: new });
    let transition = check_transition(old, new);
    if !transition.is_success() {
        return refuse(transition);
    }
    if !needs_peer(old, new) {
        return Ok(RequestPlan::Local);
    }
    match check_valid_and_soft(old, new, context) {
        code if code.is_success() => Ok(RequestPlan::AskPeer),
        code => refuse(code),
    }
}

/// While the peer's answer is outstanding: the result that ends the waiting because the state changed meanwhile,
/// `None` to wait on (`_req_st_cond`, states spec 4.2 step 5).
pub fn request_outcome_while_waiting(
    old: VolumeState,
    wanted: VolumeState,
    context: &Context,
) -> Option<Code> {
    let (new, _) = sanitise(old, wanted, context);
    if !needs_peer(old, new) {
        return Some(Code::ClusterWideNotNeeded);
    }
    let transition = check_transition(old, new);
    if !transition.is_success() {
        return Some(transition);
    }
    let code = check_valid_and_soft(old, new, context);
    (!code.is_success()).then_some(code)
}

fn check_valid_and_soft(old: VolumeState, new: VolumeState, context: &Context) -> Code {
    match check_valid(new, context) {
        code if code.is_success() => check_soft_transition(old, new, context),
        code => code,
    }
}

/// The state a connection-wide request wants for one volume: what to hand to [`decide`] when it is applied.
pub fn plan_connection_volume(
    old: VolumeState,
    request: StateRequest,
    outdate_failure: OutdateFailure,
    context: &Context,
) -> VolumeState {
    let (mut new, _) = sanitise(old, request.apply(old), context);
    // A disk that was negotiating has just become what it was found to be (S4); nobody asked to outdate it.
    let settled = old.disk == DiskState::Negotiating && request.disk.is_none();
    let cannot_be_outdated = new.disk == DiskState::Outdated && old.disk < DiskState::Outdated && !settled;
    if outdate_failure == OutdateFailure::Ignore && cannot_be_outdated {
        new.disk = old.disk;
    }
    new
}

/// Checks a change of all volumes of a resource at once (`_conn_request_state`, states spec 3.7 steps 1 and 2).
/// `connection` is the connection's own state (`cstate`). Makes nothing.
///
/// # Errors
/// The code, and the volume (by its place in `volumes`) that refused, `None` where the connection did.
pub fn check_connection_change(
    connection: ConnectionState,
    request: StateRequest,
    enforcement: Enforcement,
    outdate_failure: OutdateFailure,
    volumes: impl IntoIterator<Item = (VolumeState, Context)>,
) -> Result<Code, (Code, Option<(usize, Refusal)>)> {
    if let Some(wanted) = request.connection {
        let code = check_connection_transition(connection, wanted);
        if !code.is_success() {
            return Err((code, None));
        }
    }
    let mut result = Code::Success;
    for (index, (old, context)) in volumes.into_iter().enumerate() {
        let new = plan_connection_volume(old, request, outdate_failure, &context);
        if new == old {
            continue;
        }
        result = check(old, new, enforcement, &context);
        if !result.is_success() {
            return Err((result, Some((index, Refusal { code: result, old, wanted: new }))));
        }
    }
    Ok(result)
}

#[cfg(test)]
mod tests;
