//! Automatic recovery after a split brain: whose changes are discarded.

use udrbd_units::Role;

use super::handshake::{HandshakeFacts, Step};
use crate::interface::{AfterSplitBrain, Handler, Level};

/// What the policies say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Recovery {
    /// The peer's changes are discarded (+1).
    Source,
    /// The own changes are discarded (-1).
    Target,
    /// No decision (-100).
    Undecided,
    /// The own changes are discarded if this Primary can become Secondary now.
    TryDemotion,
}

/// The number of Primaries and what the policy for it says (states spec 10.2 step 6).
pub(super) fn recover(facts: &HandshakeFacts, steps: &mut Vec<Step>) -> (u8, Recovery) {
    let primaries = u8::from(facts.own_role == Role::Primary) + u8::from(facts.peer_role == Role::Primary);
    let recovery = match primaries {
        0 => without_primary(facts, steps),
        1 => with_one_primary(facts, steps),
        _ => with_two_primaries(facts, steps),
    };
    (primaries, recovery)
}

/// After an attempt to become Secondary (states spec 10.5).
pub(super) fn after_demotion(given_up: bool, steps: &mut Vec<Step>) -> Recovery {
    if given_up {
        steps.push(Step::Log(Level::Warning, "Successfully gave up primary role.".to_owned()));
        Recovery::Target
    } else {
        steps.push(Step::Handler(Handler::PriLostAfterSb));
        Recovery::Undecided
    }
}

/// `after-sb-0pri` (states spec 10.4).
fn without_primary(facts: &HandshakeFacts, steps: &mut Vec<Step>) -> Recovery {
    use AfterSplitBrain as P;
    match facts.policies.after_sb_0pri {
        P::Disconnect => Recovery::Undecided,
        P::DiscardYoungerPrimary => by_age(facts, false, steps),
        P::DiscardOlderPrimary => by_age(facts, true, steps),
        P::DiscardZeroChanges => by_zero_changes(facts).unwrap_or(Recovery::Undecided),
        P::DiscardLeastChanges => by_least_changes(facts),
        P::DiscardLocal => Recovery::Target,
        P::DiscardRemote => Recovery::Source,
        P::Consensus | P::DiscardSecondary | P::CallPriLostAfterSb | P::ViolentlyAsZeroPrimaries => {
            configuration_error(steps)
        }
    }
}

/// The bitmap identifier's bit 0 tells who was Primary when the connection was lost: the older Primary.
fn by_age(facts: &HandshakeFacts, discard_older: bool, steps: &mut Vec<Step>) -> Recovery {
    let own_is_older = facts.own.bitmap.primary_bit();
    let peer_is_older = facts.peer.set.bitmap.primary_bit();
    if own_is_older != peer_is_older {
        return if own_is_older == discard_older { Recovery::Target } else { Recovery::Source };
    }
    let text = "Discard younger/older primary did not find a decision\nUsing discard-least-changes instead";
    steps.push(Step::Log(Level::Warning, text.to_owned()));
    by_zero_changes(facts).unwrap_or_else(|| by_least_changes(facts))
}

fn by_zero_changes(facts: &HandshakeFacts) -> Option<Recovery> {
    match (facts.own_told_bits, facts.peer.set_bits) {
        (0, 0) => Some(tie(facts)),
        (_, 0) => Some(Recovery::Source),
        (0, _) => Some(Recovery::Target),
        _ => None,
    }
}

fn by_least_changes(facts: &HandshakeFacts) -> Recovery {
    match facts.own_told_bits.cmp(&facts.peer.set_bits) {
        std::cmp::Ordering::Less => Recovery::Target,
        std::cmp::Ordering::Greater => Recovery::Source,
        std::cmp::Ordering::Equal => tie(facts),
    }
}

/// RESOLVE_CONFLICTS is set on exactly one node, so the nodes take different sides.
fn tie(facts: &HandshakeFacts) -> Recovery {
    if facts.resolve_conflicts { Recovery::Target } else { Recovery::Source }
}

/// `after-sb-1pri` (states spec 10.5).
fn with_one_primary(facts: &HandshakeFacts, steps: &mut Vec<Step>) -> Recovery {
    use AfterSplitBrain as P;
    let primary = facts.own_role == Role::Primary;
    match facts.policies.after_sb_1pri {
        P::Disconnect => Recovery::Undecided,
        P::Consensus => match without_primary(facts, steps) {
            Recovery::Target if !primary => Recovery::Target,
            Recovery::Source if primary => Recovery::Source,
            _ => Recovery::Undecided,
        },
        P::ViolentlyAsZeroPrimaries => without_primary(facts, steps),
        P::DiscardSecondary if primary => Recovery::Source,
        P::DiscardSecondary => Recovery::Target,
        P::CallPriLostAfterSb => match without_primary(facts, steps) {
            Recovery::Target if primary => Recovery::TryDemotion,
            recovery => recovery,
        },
        P::DiscardYoungerPrimary
        | P::DiscardOlderPrimary
        | P::DiscardZeroChanges
        | P::DiscardLeastChanges
        | P::DiscardLocal
        | P::DiscardRemote => configuration_error(steps),
    }
}

/// `after-sb-2pri` (states spec 10.5).
fn with_two_primaries(facts: &HandshakeFacts, steps: &mut Vec<Step>) -> Recovery {
    use AfterSplitBrain as P;
    match facts.policies.after_sb_2pri {
        P::Disconnect => Recovery::Undecided,
        P::ViolentlyAsZeroPrimaries => without_primary(facts, steps),
        P::CallPriLostAfterSb => match without_primary(facts, steps) {
            Recovery::Target => Recovery::TryDemotion,
            recovery => recovery,
        },
        P::DiscardYoungerPrimary
        | P::DiscardOlderPrimary
        | P::DiscardZeroChanges
        | P::DiscardLeastChanges
        | P::DiscardLocal
        | P::DiscardRemote
        | P::Consensus
        | P::DiscardSecondary => configuration_error(steps),
    }
}

fn configuration_error(steps: &mut Vec<Step>) -> Recovery {
    steps.push(Step::Log(Level::Error, "Configuration error.".to_owned()));
    Recovery::Undecided
}
