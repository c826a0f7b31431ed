use udrbd_units::DiskState;

use super::*;
use crate::generation::GenerationSet;
use crate::interface::RrConflict;

const A: u64 = 0xA1A1_A1A1_A1A1_A1A0;
const B: u64 = 0xB2B2_B2B2_B2B2_B2B0;
const C: u64 = 0xC3C3_C3C3_C3C3_C3C0;

/// Both have changed since B, where this node was Primary. Here are 3 changed blocks, at the peer 5.
fn split() -> HandshakeFacts {
    let set = |values: [u64; 4]| GenerationSet::from_array(values.map(GenerationId));
    HandshakeFacts {
        own: set([A | 1, B | 1, 0, 0]),
        crashed_primary: false,
        own_told_bits: 3,
        own_set_bits: 3,
        own_role: Role::Primary,
        own_disk: DiskState::UpToDate,
        remembered_disk: None,
        discard_my_data: false,
        peer: PeerGeneration { set: set([C, B, 0, 0]), set_bits: 5, flags: PeerFlags(0) },
        peer_role: Role::Secondary,
        peer_disk: DiskState::UpToDate,
        resolve_conflicts: false,
        protocol: 101,
        features: 0xf,
        policies: ResyncPolicies::default(),
        dry_run: false,
    }
}

fn ambiguous() -> HandshakeFacts {
    let mut facts = split();
    (facts.own.bitmap, facts.peer.set.bitmap) = (GenerationId::NONE, GenerationId::NONE);
    facts.own.history = [GenerationId(B), GenerationId(0x8)];
    facts.peer.set.history = [GenerationId(0x10), GenerationId(B | 1)];
    facts
}

fn of(facts: &HandshakeFacts, primaries: Primaries, policy: AfterSplitBrain) -> Prospect {
    let table = prospects(facts);
    let row = table.iter().find(|row| (row.primaries, row.policy) == (primaries, policy));
    row.expect("every policy has a row").prospect
}

const OWN: Prospect = Prospect::Keep { side: Side::Own, full: false };
const PEER: Prospect = Prospect::Keep { side: Side::Peer, full: false };

#[test]
fn every_policy_tells_whose_data_it_keeps() {
    use AfterSplitBrain as P;
    let facts = split();
    let without = |policy| of(&facts, Primaries::None, policy);
    assert_eq!(without(P::Disconnect), Prospect::Apart);
    assert_eq!(without(P::DiscardYoungerPrimary), OWN, "this node was Primary before");
    assert_eq!(without(P::DiscardOlderPrimary), PEER);
    assert_eq!(without(P::DiscardZeroChanges), Prospect::Apart, "both have changes");
    assert_eq!(without(P::DiscardLeastChanges), PEER);
    assert_eq!(without(P::DiscardLocal), PEER);
    assert_eq!(without(P::DiscardRemote), OWN);
    assert_eq!(of(&facts, Primaries::Own, P::DiscardSecondary), OWN);
    assert_eq!(of(&facts, Primaries::Peer, P::DiscardSecondary), PEER);
    assert_eq!(of(&facts, Primaries::Both, P::Disconnect), Prospect::Apart);
}

#[test]
fn a_primary_that_is_to_lose_calls_for_help_or_is_in_the_way() {
    use AfterSplitBrain as P;
    let policies = ResyncPolicies { after_sb_0pri: P::DiscardLocal, ..ResyncPolicies::default() };
    let facts = HandshakeFacts { policies, ..split() };
    let lost = |side| Prospect::PrimaryLost { side };
    assert_eq!(of(&facts, Primaries::Own, P::CallPriLostAfterSb), lost(Side::Peer));
    assert_eq!(of(&facts, Primaries::Peer, P::CallPriLostAfterSb), PEER);
    assert_eq!(of(&facts, Primaries::Both, P::CallPriLostAfterSb), lost(Side::Peer));
    let way = |side| Prospect::PrimaryInTheWay { side };
    assert_eq!(of(&facts, Primaries::Own, P::ViolentlyAsZeroPrimaries), way(Side::Peer));
    assert_eq!(of(&facts, Primaries::Own, P::Consensus), Prospect::Apart);
    assert_eq!(of(&facts, Primaries::Peer, P::Consensus), PEER);
    let policies = ResyncPolicies { rr_conflict: RrConflict::Violently, ..policies };
    let violent = HandshakeFacts { policies, ..facts };
    assert_eq!(of(&violent, Primaries::Own, P::ViolentlyAsZeroPrimaries), PEER);
    // The other way round it is the peer that refuses, which this node cannot see by itself.
    let policies = ResyncPolicies { after_sb_0pri: P::DiscardRemote, ..ResyncPolicies::default() };
    let facts = HandshakeFacts { policies, ..split() };
    assert_eq!(of(&facts, Primaries::Both, P::ViolentlyAsZeroPrimaries), way(Side::Own));
    assert_eq!(of(&facts, Primaries::Both, P::CallPriLostAfterSb), lost(Side::Own));
}

#[test]
fn the_other_node_says_the_same() {
    let other = |side| if side == Side::Own { Side::Peer } else { Side::Own };
    for facts in [split(), ambiguous()] {
        let there = prospects(&mirrored(&facts));
        for row in prospects(&facts) {
            let primaries = match row.primaries {
                Primaries::Own => Primaries::Peer,
                Primaries::Peer => Primaries::Own,
                same => same,
            };
            let policy = seen_from_the_peer(row.policy);
            let found = there.iter().find(|other| (other.primaries, other.policy) == (primaries, policy));
            let wanted = match row.prospect {
                Prospect::Keep { side, full } => Prospect::Keep { side: other(side), full },
                Prospect::PrimaryLost { side } => Prospect::PrimaryLost { side: other(side) },
                Prospect::PrimaryInTheWay { side } => Prospect::PrimaryInTheWay { side: other(side) },
                same => same,
            };
            assert_eq!(found.map(|row| row.prospect), Some(wanted), "{row:?}");
        }
    }
}

#[test]
fn the_configured_policies_are_marked_and_say_what_the_handshake_did() {
    let policies = ResyncPolicies {
        after_sb_0pri: AfterSplitBrain::DiscardRemote,
        after_sb_1pri: AfterSplitBrain::Consensus,
        ..ResyncPolicies::default()
    };
    let facts = HandshakeFacts { policies, ..split() };
    let marked: Vec<PolicyProspect> = prospects(&facts).into_iter().filter(|row| row.configured).collect();
    let chosen: Vec<AfterSplitBrain> = marked.iter().map(|row| row.policy).collect();
    use AfterSplitBrain as P;
    assert_eq!(chosen, [P::DiscardRemote, P::Consensus, P::Consensus, P::Disconnect]);
    assert_eq!(marked[1].prospect, OWN);
    assert_eq!(handshake(&facts).outcome, HandshakeOutcome::Source { full: false });
}

#[test]
fn an_ambiguous_split_brain_is_told_as_if_policies_counted() {
    let facts = ambiguous();
    let found = SplitBrain::of(&facts, handshake(&facts).outcome, 1).expect("a split brain");
    assert!(found.ambiguous);
    assert_eq!(found.ancestor, Some(GenerationId(B)));
    assert_eq!(found.outcome, HandshakeOutcome::Refused(Refused::SplitBrain));
    let full = Prospect::Keep { side: Side::Own, full: true };
    assert_eq!(of(&facts, Primaries::None, AfterSplitBrain::DiscardRemote), full);
}

#[test]
fn only_a_split_brain_is_one() {
    let facts = split();
    let found = SplitBrain::of(&facts, handshake(&facts).outcome, 7).expect("a split brain");
    assert_eq!((found.number, found.rule, found.ambiguous), (7, 90, false));
    assert_eq!(found.ancestor, Some(GenerationId(B)));
    let outcome = HandshakeOutcome::Connected;
    // One knows the other's data as older ones; one has no data at all.
    let mut older = facts;
    older.peer.set.current = GenerationId(B);
    assert_eq!(SplitBrain::of(&older, outcome, 1), None);
    let inconsistent = HandshakeFacts { peer_disk: DiskState::Inconsistent, ..facts };
    assert_eq!(SplitBrain::of(&inconsistent, outcome, 1), None);
}
