//! What a split brain is and what each policy would make of it, for people who have to decide.
//!
//! Nothing here decides anything: [`prospects`] asks the decision itself ([`handshake`]), once for each policy and once
//! from either node's side.

use udrbd_units::{GenerationId, Role};

use super::compare::{ComparisonResult, common_ancestor};
use super::handshake::{HandshakeFacts, HandshakeOutcome, Refused, handshake, is_split_brain};
use super::policy::{ResyncPolicies, seen_from_the_peer};
use super::set::{PeerFlags, PeerGeneration};
use crate::interface::AfterSplitBrain;

/// A split brain as a handshake found it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SplitBrain {
    /// How many this engine has found on this volume, this one included: tells one from the next.
    pub number: u64,
    /// By what the handshake decided.
    pub facts: HandshakeFacts,
    /// The rule of the comparison that found it (states spec 9.2).
    pub rule: u8,
    /// There is no common generation in the bitmap slots (result -100): policies count only with `always-asbp`.
    pub ambiguous: bool,
    /// The youngest generation both nodes remember; `None` where the identifiers name none.
    pub ancestor: Option<GenerationId>,
    /// What became of it.
    pub outcome: HandshakeOutcome,
}

impl SplitBrain {
    /// What a handshake found; `None` where it is no split brain.
    pub fn of(facts: &HandshakeFacts, outcome: HandshakeOutcome, number: u64) -> Option<Self> {
        let comparison = is_split_brain(facts)?;
        Some(Self {
            number,
            facts: *facts,
            rule: comparison.rule,
            ambiguous: comparison.result == ComparisonResult::SplitBrainAmbiguous,
            ancestor: common_ancestor(facts.own, facts.peer.set),
            outcome,
        })
    }
}

/// Who is Primary when the nodes meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Primaries {
    /// Nobody.
    None,
    /// This node alone.
    Own,
    /// The peer alone.
    Peer,
    /// Both.
    Both,
}

impl Primaries {
    /// As these roles say.
    pub const fn of(own: Role, peer: Role) -> Self {
        match (own, peer) {
            (Role::Primary, Role::Primary) => Self::Both,
            (Role::Primary, _) => Self::Own,
            (_, Role::Primary) => Self::Peer,
            _ => Self::None,
        }
    }

    const fn roles(self) -> (Role, Role) {
        match self {
            Self::None => (Role::Secondary, Role::Secondary),
            Self::Own => (Role::Primary, Role::Secondary),
            Self::Peer => (Role::Secondary, Role::Primary),
            Self::Both => (Role::Primary, Role::Primary),
        }
    }

    /// The policies of the option that counts then.
    const fn policies(self) -> &'static [AfterSplitBrain] {
        use AfterSplitBrain as P;
        match self {
            Self::None => &[
                P::Disconnect,
                P::DiscardYoungerPrimary,
                P::DiscardOlderPrimary,
                P::DiscardZeroChanges,
                P::DiscardLeastChanges,
                P::DiscardLocal,
                P::DiscardRemote,
            ],
            Self::Own | Self::Peer => &[
                P::Disconnect,
                P::Consensus,
                P::ViolentlyAsZeroPrimaries,
                P::DiscardSecondary,
                P::CallPriLostAfterSb,
            ],
            Self::Both => &[P::Disconnect, P::ViolentlyAsZeroPrimaries, P::CallPriLostAfterSb],
        }
    }

    const fn configured(self, policies: ResyncPolicies) -> AfterSplitBrain {
        match self {
            Self::None => policies.after_sb_0pri,
            Self::Own | Self::Peer => policies.after_sb_1pri,
            Self::Both => policies.after_sb_2pri,
        }
    }

    const fn configure(self, policy: AfterSplitBrain, policies: ResyncPolicies) -> ResyncPolicies {
        let mut policies = policies;
        match self {
            Self::None => policies.after_sb_0pri = policy,
            Self::Own | Self::Peer => policies.after_sb_1pri = policy,
            Self::Both => policies.after_sb_2pri = policy,
        }
        policies
    }
}

/// One of the two nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// This node.
    Own,
    /// The peer.
    Peer,
}

/// What would come of a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Prospect {
    /// The nodes stay apart.
    Apart,
    /// One node's data are kept, the other one's changes are discarded.
    Keep {
        /// Whose data are kept.
        side: Side,
        /// Every block is copied.
        full: bool,
    },
    /// One node's changes would be discarded, but it is Primary: it runs `pri-lost-after-sb`, which is meant to reset it,
    /// and they stay apart until then. (It tries to give up its role first, which no node can in a handshake, states
    /// spec 10.5.)
    PrimaryLost {
        /// Whose data would be kept.
        side: Side,
    },
    /// One node's changes would be discarded, but it is Primary, and `rr-conflict` does not allow that.
    PrimaryInTheWay {
        /// Whose data would be kept.
        side: Side,
    },
    /// They connect, and nothing is copied.
    Same,
}

/// What one policy would do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PolicyProspect {
    /// Who would be Primary; it says which option counts: `after-sb-0pri`, `1pri` or `2pri`.
    pub primaries: Primaries,
    /// The policy, in this node's words: what is local is here.
    pub policy: AfterSplitBrain,
    /// It is the configured one.
    pub configured: bool,
    /// What would come of it.
    pub prospect: Prospect,
}

/// What each policy would do with these data, whoever were Primary then: for an ambiguous split brain, as if
/// `always-asbp` were set. The other options are as configured, `discard-my-data` is left out.
pub fn prospects(facts: &HandshakeFacts) -> Vec<PolicyProspect> {
    let situations = [Primaries::None, Primaries::Own, Primaries::Peer, Primaries::Both];
    let mut table = Vec::with_capacity(20);
    for primaries in situations {
        let configured = primaries.configured(facts.policies);
        for policy in primaries.policies() {
            let policies =
                ResyncPolicies { always_asbp: true, ..primaries.configure(*policy, facts.policies) };
            table.push(PolicyProspect {
                primaries,
                policy: *policy,
                configured: *policy == configured,
                prospect: prospect(&with_policies(facts, policies, primaries)),
            });
        }
    }
    table
}

fn with_policies(facts: &HandshakeFacts, policies: ResyncPolicies, primaries: Primaries) -> HandshakeFacts {
    let (own_role, peer_role) = primaries.roles();
    let flags = PeerFlags(facts.peer.flags.0 & !PeerFlags::DISCARD_MY_DATA.0);
    HandshakeFacts {
        own_role,
        peer_role,
        policies,
        peer: PeerGeneration { flags, ..facts.peer },
        discard_my_data: false,
        dry_run: false,
        ..*facts
    }
}

fn prospect(facts: &HandshakeFacts) -> Prospect {
    use HandshakeOutcome as O;
    let peer = mirrored(facts);
    match (handshake(facts).outcome, handshake(&peer).outcome) {
        (O::Source { full }, O::Target { .. }) => Prospect::Keep { side: Side::Own, full },
        (O::Target { full }, O::Source { .. }) => Prospect::Keep { side: Side::Peer, full },
        (O::TryDemotion, _) => Prospect::PrimaryLost { side: Side::Peer },
        (_, O::TryDemotion) => Prospect::PrimaryLost { side: Side::Own },
        (O::Refused(Refused::PrimaryTarget), _) => Prospect::PrimaryInTheWay { side: Side::Peer },
        (_, O::Refused(Refused::PrimaryTarget)) => Prospect::PrimaryInTheWay { side: Side::Own },
        (O::Connected, O::Connected) => Prospect::Same,
        _ => Prospect::Apart,
    }
}

/// What the peer decides by. Its bits are those it told of.
fn mirrored(facts: &HandshakeFacts) -> HandshakeFacts {
    let flag = |set: bool, flag: PeerFlags| if set { flag.0 } else { 0 };
    let flags = flag(facts.discard_my_data, PeerFlags::DISCARD_MY_DATA)
        | flag(facts.crashed_primary, PeerFlags::CRASHED_PRIMARY);
    let policies = ResyncPolicies {
        after_sb_0pri: seen_from_the_peer(facts.policies.after_sb_0pri),
        after_sb_1pri: seen_from_the_peer(facts.policies.after_sb_1pri),
        after_sb_2pri: seen_from_the_peer(facts.policies.after_sb_2pri),
        ..facts.policies
    };
    HandshakeFacts {
        own: facts.peer.set,
        crashed_primary: facts.peer.flags.contains(PeerFlags::CRASHED_PRIMARY),
        own_told_bits: facts.peer.set_bits,
        own_set_bits: facts.peer.set_bits,
        own_role: facts.peer_role,
        own_disk: facts.peer_disk,
        remembered_disk: None,
        discard_my_data: facts.peer.flags.contains(PeerFlags::DISCARD_MY_DATA),
        peer: PeerGeneration { set: facts.own, set_bits: facts.own_told_bits, flags: PeerFlags(flags) },
        peer_role: facts.own_role,
        peer_disk: facts.effective_disk(),
        resolve_conflicts: !facts.resolve_conflicts,
        policies,
        ..*facts
    }
}

#[cfg(test)]
mod tests;
