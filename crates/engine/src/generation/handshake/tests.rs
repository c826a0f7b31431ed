use udrbd_units::GenerationId;

use super::*;
use crate::interface::AfterSplitBrain;

const A: u64 = 0xA1A1_A1A1_A1A1_A1A0;
const B: u64 = 0xB2B2_B2B2_B2B2_B2B0;
const C: u64 = 0xC3C3_C3C3_C3C3_C3C0;

fn set(values: [u64; 4]) -> GenerationSet {
    GenerationSet::from_array(values.map(GenerationId))
}

fn facts(own: [u64; 4], peer: [u64; 4]) -> HandshakeFacts {
    HandshakeFacts {
        own: set(own),
        crashed_primary: false,
        own_told_bits: 3,
        own_set_bits: 3,
        own_role: Role::Secondary,
        own_disk: DiskState::UpToDate,
        remembered_disk: None,
        discard_my_data: false,
        peer: PeerGeneration { set: set(peer), set_bits: 5, flags: PeerFlags(0) },
        peer_role: Role::Secondary,
        peer_disk: DiskState::UpToDate,
        resolve_conflicts: false,
        protocol: 101,
        features: 0xf,
        policies: ResyncPolicies::default(),
        dry_run: false,
    }
}

/// A split brain with a common ancestor (result 100).
fn split() -> HandshakeFacts {
    facts([A, B, 0, 0], [C, B, 0, 0])
}

/// A split brain without one (result -100).
fn ambiguous() -> HandshakeFacts {
    facts([A, 0, 0, 0], [C, 0, 0, 0])
}

fn with_zero_primaries(facts: HandshakeFacts, after_sb_0pri: AfterSplitBrain) -> HandshakeFacts {
    HandshakeFacts { policies: ResyncPolicies { after_sb_0pri, ..facts.policies }, ..facts }
}

fn outcome(facts: HandshakeFacts) -> HandshakeOutcome {
    handshake(&facts).outcome
}

fn last_line(decision: &HandshakeDecision) -> (Level, &str) {
    let line = decision.steps.iter().rev().find_map(|step| match step {
        Step::Log(level, text) => Some((*level, text.as_str())),
        Step::Handler(_) => None,
    });
    line.expect("a line")
}

const SOURCE: HandshakeOutcome = HandshakeOutcome::Source { full: false };
const TARGET: HandshakeOutcome = HandshakeOutcome::Target { full: false };
const UNRESOLVED: HandshakeOutcome = HandshakeOutcome::Refused(Refused::SplitBrain);

#[test]
fn unrelated_data_and_old_peers_are_refused() {
    let unrelated = handshake(&facts([A, 0, 8, 8], [C, 0, 16, 16]));
    assert_eq!(unrelated.outcome, HandshakeOutcome::Refused(Refused::UnrelatedData));
    assert_eq!(last_line(&unrelated), (Level::Alert, "Unrelated data, aborting!"));
    let old = handshake(&HandshakeFacts { protocol: 90, ..facts([A, B, 0, 0], [A, 0, 0, 0]) });
    assert_eq!(old.outcome, HandshakeOutcome::Refused(Refused::PeerTooOld));
    assert_eq!(
        last_line(&old),
        (Level::Alert, "To resolve this both sides have to support at least protocol 91")
    );
    let crashed = HandshakeFacts {
        crashed_primary: true,
        peer_role: Role::Primary,
        features: 0,
        ..facts([A, 0, 0, 0], [A, 0, 0, 0])
    };
    let decision = handshake(&crashed);
    assert_eq!(decision.outcome, HandshakeOutcome::Refused(Refused::PeerTooOld));
    assert_eq!(
        last_line(&decision).1,
        "To resolve this both sides have to support at least protocol 101 and feature flags 0x4"
    );
}

#[test]
fn an_inconsistent_disk_is_overwritten_whatever_the_identifiers_say() {
    // By the identifiers this node would be the target.
    let older = facts([A, 0, 0, 0], [B, A, 0, 0]);
    assert_eq!(outcome(older), TARGET);
    assert_eq!(outcome(HandshakeFacts { peer_disk: DiskState::Inconsistent, ..older }), SOURCE);
    // Not a split brain any more, and no handler.
    let decision = handshake(&HandshakeFacts { own_disk: DiskState::Inconsistent, ..split() });
    assert_eq!(decision.outcome, TARGET);
    assert!(!decision.steps.iter().any(|step| matches!(step, Step::Handler(_))));
    let full = HandshakeFacts { own_disk: DiskState::Inconsistent, ..ambiguous() };
    assert_eq!(outcome(full), HandshakeOutcome::Target { full: true });
}

#[test]
fn a_negotiating_disk_counts_as_what_it_will_be() {
    let attaching = HandshakeFacts {
        own_disk: DiskState::Negotiating,
        remembered_disk: Some(DiskState::Inconsistent),
        ..facts([B, A, 0, 0], [A, 0, 0, 0])
    };
    assert_eq!(outcome(attaching), TARGET);
    let both = HandshakeFacts { peer_disk: DiskState::Inconsistent, ..attaching };
    let decision = handshake(&both);
    assert_eq!(decision.outcome, HandshakeOutcome::Refused(Refused::InconsistentSource));
    assert_eq!(last_line(&decision).1, "I shall become SyncSource, but I am inconsistent!");
    // It serves nobody yet, so a diskless Primary may take it as target.
    let primary = HandshakeFacts {
        own_role: Role::Primary,
        remembered_disk: Some(DiskState::UpToDate),
        own_disk: DiskState::Negotiating,
        ..facts([A, 0, 0, 0], [B, A, 0, 0])
    };
    assert_eq!(outcome(primary), TARGET);
}

#[test]
fn nobody_primary_policies() {
    use AfterSplitBrain as P;
    let decide = |policy, own, peer, resolve_conflicts| {
        let split = split();
        outcome(with_zero_primaries(
            HandshakeFacts {
                own_told_bits: own,
                peer: PeerGeneration { set_bits: peer, ..split.peer },
                resolve_conflicts,
                ..split
            },
            policy,
        ))
    };
    assert_eq!(decide(P::Disconnect, 0, 0, false), UNRESOLVED);
    assert_eq!(decide(P::DiscardLocal, 0, 0, false), TARGET);
    assert_eq!(decide(P::DiscardRemote, 0, 0, false), SOURCE);
    for (own, peer, expected) in [(0, 5, TARGET), (5, 0, SOURCE), (3, 5, UNRESOLVED), (5, 5, UNRESOLVED)] {
        assert_eq!(decide(P::DiscardZeroChanges, own, peer, false), expected, "zero changes {own} {peer}");
    }
    for (own, peer, expected) in [(3, 5, TARGET), (5, 3, SOURCE), (0, 5, TARGET)] {
        assert_eq!(decide(P::DiscardLeastChanges, own, peer, false), expected, "least changes {own} {peer}");
    }
    for policy in [P::DiscardZeroChanges, P::DiscardLeastChanges] {
        assert_eq!(decide(policy, 0, 0, false), SOURCE, "a tie");
        assert_eq!(decide(policy, 0, 0, true), TARGET, "a tie, on the other node");
    }
    for policy in [P::Consensus, P::DiscardSecondary, P::CallPriLostAfterSb, P::ViolentlyAsZeroPrimaries] {
        assert_eq!(decide(policy, 0, 5, false), UNRESOLVED, "not a policy for this");
    }
}

#[test]
fn the_older_primary_is_the_one_that_was_primary_when_the_link_broke() {
    use AfterSplitBrain as P;
    let was_primary = facts([A, B | 1, 0, 0], [C, B, 0, 0]);
    let peer_was = facts([A, B, 0, 0], [C, B | 1, 0, 0]);
    assert_eq!(outcome(with_zero_primaries(was_primary, P::DiscardYoungerPrimary)), SOURCE);
    assert_eq!(outcome(with_zero_primaries(was_primary, P::DiscardOlderPrimary)), TARGET);
    assert_eq!(outcome(with_zero_primaries(peer_was, P::DiscardYoungerPrimary)), TARGET);
    assert_eq!(outcome(with_zero_primaries(peer_was, P::DiscardOlderPrimary)), SOURCE);
    // Neither, or both: by changes.
    let decision = handshake(&with_zero_primaries(split(), P::DiscardOlderPrimary));
    assert_eq!(decision.outcome, TARGET, "3 bits against 5");
    let fallback =
        "Discard younger/older primary did not find a decision\nUsing discard-least-changes instead";
    assert!(decision.steps.contains(&Step::Log(Level::Warning, fallback.to_owned())));
    let no_changes = HandshakeFacts { own_told_bits: 0, ..split() };
    assert_eq!(outcome(with_zero_primaries(no_changes, P::DiscardYoungerPrimary)), TARGET);
}

fn with_one_primary(facts: HandshakeFacts, own: bool, after_sb_1pri: AfterSplitBrain) -> HandshakeFacts {
    let role = |primary| if primary { Role::Primary } else { Role::Secondary };
    HandshakeFacts {
        own_role: role(own),
        peer_role: role(!own),
        policies: ResyncPolicies { after_sb_1pri, rr_conflict: RrConflict::Violently, ..facts.policies },
        ..facts
    }
}

#[test]
fn one_primary_policies() {
    use AfterSplitBrain as P;
    // As 0pri says: discard the own changes.
    let discard_own = with_zero_primaries(split(), P::DiscardLocal);
    let discard_peers = with_zero_primaries(split(), P::DiscardRemote);
    let decide = |facts, own_primary, policy| outcome(with_one_primary(facts, own_primary, policy));
    assert_eq!(decide(discard_own, true, P::Disconnect), UNRESOLVED);
    assert_eq!(decide(discard_own, true, P::Consensus), UNRESOLVED);
    assert_eq!(decide(discard_own, false, P::Consensus), TARGET);
    assert_eq!(decide(discard_peers, true, P::Consensus), SOURCE);
    assert_eq!(decide(discard_peers, false, P::Consensus), UNRESOLVED);
    assert_eq!(decide(discard_own, true, P::ViolentlyAsZeroPrimaries), TARGET);
    assert_eq!(decide(discard_own, true, P::DiscardSecondary), SOURCE);
    assert_eq!(decide(discard_peers, false, P::DiscardSecondary), TARGET);
    assert_eq!(decide(discard_own, true, P::CallPriLostAfterSb), HandshakeOutcome::TryDemotion);
    assert_eq!(decide(discard_own, false, P::CallPriLostAfterSb), TARGET);
    assert_eq!(decide(discard_peers, true, P::CallPriLostAfterSb), SOURCE);
    assert_eq!(decide(discard_own, true, P::DiscardLocal), UNRESOLVED, "not a policy for this");
}

#[test]
fn two_primaries_policies() {
    use AfterSplitBrain as P;
    let decide = |zero, two| {
        let facts = with_zero_primaries(split(), zero);
        outcome(HandshakeFacts {
            own_role: Role::Primary,
            peer_role: Role::Primary,
            policies: ResyncPolicies {
                after_sb_2pri: two,
                rr_conflict: RrConflict::Violently,
                ..facts.policies
            },
            ..facts
        })
    };
    assert_eq!(decide(P::DiscardLocal, P::Disconnect), UNRESOLVED);
    assert_eq!(decide(P::DiscardLocal, P::ViolentlyAsZeroPrimaries), TARGET);
    assert_eq!(decide(P::DiscardRemote, P::ViolentlyAsZeroPrimaries), SOURCE);
    assert_eq!(decide(P::DiscardLocal, P::CallPriLostAfterSb), HandshakeOutcome::TryDemotion);
    assert_eq!(decide(P::DiscardRemote, P::CallPriLostAfterSb), SOURCE);
    assert_eq!(decide(P::DiscardLocal, P::Consensus), UNRESOLVED, "not a policy for this");
}

#[test]
fn a_primary_that_can_give_up_its_role_does() {
    let facts = with_zero_primaries(split(), AfterSplitBrain::DiscardLocal);
    let facts = with_one_primary(facts, true, AfterSplitBrain::CallPriLostAfterSb);
    let policies = ResyncPolicies { rr_conflict: RrConflict::Disconnect, ..facts.policies };
    let facts = HandshakeFacts { policies, ..facts };
    let start = handshake(&facts);
    assert_eq!(start.outcome, HandshakeOutcome::TryDemotion);
    assert_eq!(start.steps.last(), Some(&Step::Handler(Handler::InitialSplitBrain)));
    let given_up = handshake_after_demotion(&facts, true);
    assert_eq!(given_up.outcome, TARGET, "and rr-conflict does not concern a Secondary");
    let lines = [
        "Successfully gave up primary role.",
        "Split-Brain detected, 1 primaries, automatically solved. Sync from peer node",
    ];
    assert_eq!(given_up.steps, lines.map(|text| Step::Log(Level::Warning, text.to_owned())));
    let refused = handshake_after_demotion(&facts, false);
    assert_eq!(refused.outcome, UNRESOLVED);
    assert_eq!(refused.steps.first(), Some(&Step::Handler(Handler::PriLostAfterSb)));
    assert_eq!(refused.steps.last(), Some(&Step::Handler(Handler::SplitBrain)));
}

#[test]
fn an_ambiguous_split_brain_is_recovered_only_if_always_asked_for() {
    let policy = with_zero_primaries(ambiguous(), AfterSplitBrain::DiscardLocal);
    assert_eq!(outcome(policy), UNRESOLVED);
    let always = ResyncPolicies { always_asbp: true, ..policy.policies };
    let decision = handshake(&HandshakeFacts { policies: always, ..policy });
    assert_eq!(decision.outcome, HandshakeOutcome::Target { full: true });
    let warning = "Doing a full sync, since UUIDs where ambiguous.";
    assert!(decision.steps.contains(&Step::Log(Level::Warning, warning.to_owned())));
}

#[test]
fn discarding_by_hand_works_only_on_one_side() {
    let peer_discards = PeerGeneration { flags: PeerFlags::DISCARD_MY_DATA, ..split().peer };
    let own = HandshakeFacts { discard_my_data: true, ..split() };
    assert_eq!(outcome(own), TARGET);
    assert_eq!(outcome(HandshakeFacts { peer: peer_discards, ..split() }), SOURCE);
    assert_eq!(outcome(HandshakeFacts { peer: peer_discards, ..own }), UNRESOLVED);
    assert_eq!(outcome(HandshakeFacts { discard_my_data: true, ..ambiguous() }), TARGET, "by bitmap");
    let no_split = HandshakeFacts { discard_my_data: true, ..facts([B, A, 0, 0], [A, 0, 0, 0]) };
    assert_eq!(outcome(no_split), SOURCE, "nothing to discard without a split brain");
}

#[test]
fn an_unresolved_split_brain_is_told_in_both_wordings_and_to_both_handlers() {
    let decision = handshake(&split());
    let tail = &decision.steps[decision.steps.len() - 4..];
    assert_eq!(
        tail,
        [
            Step::Handler(Handler::InitialSplitBrain),
            Step::Log(Level::Alert, "Split-Brain detected, dropping connection!".to_owned()),
            Step::Log(Level::Alert, "Split-Brain detected but unresolved, dropping connection!".to_owned()),
            Step::Handler(Handler::SplitBrain),
        ]
    );
}

#[test]
fn a_primary_is_not_overwritten_unless_told_to() {
    let primary = HandshakeFacts { own_role: Role::Primary, ..facts([A, 0, 0, 0], [B, A, 0, 0]) };
    let with_policy = |rr_conflict| {
        handshake(&HandshakeFacts { policies: ResyncPolicies { rr_conflict, ..primary.policies }, ..primary })
    };
    let refused = HandshakeOutcome::Refused(Refused::PrimaryTarget);
    let disconnect = with_policy(RrConflict::Disconnect);
    assert_eq!(disconnect.outcome, refused);
    assert_eq!(last_line(&disconnect), (Level::Error, "I shall become SyncTarget, but I am primary!"));
    let called = with_policy(RrConflict::CallPriLost);
    assert_eq!(called.outcome, refused);
    assert!(called.steps.contains(&Step::Handler(Handler::PriLost)));
    let violently = with_policy(RrConflict::Violently);
    assert_eq!(violently.outcome, TARGET);
    assert_eq!(last_line(&violently).1, "Becoming SyncTarget, violating the stable-dataassumption");
    let worthless = HandshakeFacts { own_disk: DiskState::Outdated, ..primary };
    assert_eq!(outcome(worthless), TARGET, "a disk that serves nobody");
}

#[test]
fn a_dry_run_tells_and_refuses() {
    let line = |facts| {
        let decision = handshake(&HandshakeFacts { dry_run: true, ..facts });
        assert_eq!(decision.outcome, HandshakeOutcome::Refused(Refused::DryRun));
        last_line(&decision).1.to_owned()
    };
    assert_eq!(
        line(facts([A, 0, 0, 0], [A, 0, 0, 0])),
        "dry-run connect: No resync, would become Connected immediately."
    );
    assert_eq!(
        line(facts([A, 0, 0, 0], [B, A, 0, 0])),
        "dry-run connect: Would become SyncTarget, doing a bit-map based resync."
    );
    assert_eq!(
        line(facts([A, 0, 0, 0], [4, 0, 0, 0])),
        "dry-run connect: Would become SyncSource, doing a full resync."
    );
}

#[test]
fn full_resyncs_and_left_over_bits_are_told() {
    let full = handshake(&facts([A, 0, 0, 0], [4, 0, 0, 0]));
    assert_eq!(full.outcome, HandshakeOutcome::Source { full: true });
    assert_eq!(full.outcome.connection(), Some(ConnectionState::WFBitMapS));
    assert_eq!(last_line(&full).1, "Writing the whole bitmap, full sync required after drbd_sync_handshake.");
    let same = handshake(&facts([A, 0, 0, 0], [A, 0, 0, 0]));
    assert_eq!(same.outcome, HandshakeOutcome::Connected);
    assert_eq!(last_line(&same).1, "No resync, but 3 bits in bitmap!");
    let clean = handshake(&HandshakeFacts { own_set_bits: 0, ..facts([A, 0, 0, 0], [A, 0, 0, 0]) });
    assert_eq!(last_line(&clean).1, "uuid_compare()=0 by rule 40");
}

#[test]
fn corrections_are_logged_and_handed_back_whatever_the_outcome() {
    let missed = HandshakeFacts { own_set_bits: 7, ..facts([A, B, C, 0], [A, 0, B, C]) };
    let decision = handshake(&HandshakeFacts { dry_run: true, ..missed });
    assert_eq!(decision.comparison.own, set([A, 0, B, C]));
    let own_lines: Vec<_> = decision
        .steps
        .iter()
        .filter_map(|step| match step {
            Step::Log(_, text) if text.starts_with("self ") => Some(text.rsplit_once(" bits:")?.1),
            _ => None,
        })
        .collect();
    assert_eq!(own_lines, ["3 flags:0", "7 flags:0"], "first what was told, then what is");
}
