use proptest::prelude::*;

use super::*;

const A: u64 = 0xA1A1_A1A1_A1A1_A1A0;
const B: u64 = 0xB2B2_B2B2_B2B2_B2B0;
const C: u64 = 0xC3C3_C3C3_C3C3_C3C0;
const D: u64 = 0xD4D4_D4D4_D4D4_D4D0;
const E: u64 = 0xE5E5_E5E5_E5E5_E5E0;

fn set(values: [u64; 4]) -> GenerationSet {
    GenerationSet::from_array(values.map(GenerationId))
}

fn facts(own: [u64; 4], peer: [u64; 4]) -> ComparisonFacts {
    ComparisonFacts {
        own: set(own),
        peer: PeerGeneration { set: set(peer), ..PeerGeneration::default() },
        crashed_primary: false,
        own_role: Role::Secondary,
        peer_role: Role::Secondary,
        resolve_conflicts: false,
        protocol: 101,
        features: 0xf,
    }
}

/// The number and the rule, as logged.
fn decided(facts: ComparisonFacts) -> (i32, u8) {
    let comparison = compare(&facts);
    (comparison.result.number(), comparison.rule)
}

fn rule(own: [u64; 4], peer: [u64; 4]) -> (i32, u8) {
    decided(facts(own, peer))
}

#[test]
fn rules_10_to_30_fresh_metadata() {
    assert_eq!(rule([4, 0, 0, 0], [4, 0, 0, 0]), (0, 10));
    assert_eq!(rule([5, 0, 0, 0], [4, 0, 0, 0]), (0, 10), "bit 0 does not count");
    assert_eq!(rule([4, 0, 0, 0], [A, 0, 0, 0]), (-2, 20));
    assert_eq!(rule([0, 0, 0, 0], [A, 0, 0, 0]), (-2, 20));
    assert_eq!(rule([0, 0, 0, 0], [0, 0, 0, 0]), (-2, 20));
    assert_eq!(rule([4, 0, 0, 0], [0, 0, 0, 0]), (-2, 20));
    assert_eq!(rule([A, 0, 0, 0], [4, 0, 0, 0]), (2, 30));
    assert_eq!(rule([A, 0, 0, 0], [0, 0, 0, 0]), (2, 30));
    assert_eq!(rule([0, 0, 0, 0], [4, 0, 0, 0]), (2, 30));
}

#[test]
fn rules_34_to_37_the_end_of_a_resync_was_missed() {
    let missed = compare(&facts([A, B, C, D], [A, 0, B | 1, C]));
    assert_eq!((missed.result.number(), missed.rule), (1, 34));
    assert_eq!(missed.own, set([A, 0, B, C]));
    let peer_missed = compare(&facts([A, 0, B, C], [A, B, C, D]));
    assert_eq!((peer_missed.result.number(), peer_missed.rule), (-1, 35));
    assert_eq!(peer_missed.peer, set([A, 0, B, C]));
    assert_eq!(peer_missed.own, set([A, 0, B, C]), "the own set is as it was");
    assert_eq!(rule([A, B, C, D], [A, 0, B, D]), (1, 36));
    assert_eq!(rule([A, 0, B, D], [A, B, C, D]), (-1, 37));
    for own_has_bitmap in [true, false] {
        let (own, peer) =
            if own_has_bitmap { ([A, B, C, D], [A, 0, 0, 0]) } else { ([A, 0, 0, 0], [A, B, C, D]) };
        assert_eq!(decided(ComparisonFacts { protocol: 90, ..facts(own, peer) }), (-1091, 30));
    }
}

#[test]
fn rules_40_and_41_crashes() {
    let same = facts([A, B, 0, 0], [A, C, 0, 0]);
    assert_eq!(decided(same), (0, 40), "whatever the bitmaps");
    let crashed = |own: bool, peer: bool| ComparisonFacts {
        crashed_primary: own,
        peer: PeerGeneration { flags: PeerFlags(if peer { 2 } else { 0xd }), ..same.peer },
        ..same
    };
    assert_eq!(decided(crashed(false, false)), (0, 40));
    assert_eq!(decided(crashed(true, false)), (1, 40));
    assert_eq!(decided(crashed(false, true)), (-1, 40));
    assert_eq!(decided(crashed(true, true)), (1, 40));
    assert_eq!(decided(ComparisonFacts { resolve_conflicts: true, ..crashed(true, true) }), (-1, 40));
    let with_roles = |own_role, peer_role| ComparisonFacts { own_role, peer_role, ..crashed(false, true) };
    assert_eq!(decided(with_roles(Role::Primary, Role::Secondary)), (1, 41));
    assert_eq!(decided(with_roles(Role::Secondary, Role::Primary)), (-1, 41));
    assert_eq!(decided(with_roles(Role::Primary, Role::Primary)), (-100, 41));
    let old_peer = ComparisonFacts { features: 0xb, ..with_roles(Role::Primary, Role::Secondary) };
    assert_eq!(decided(old_peer), (-66661, 41));
    let no_crash = ComparisonFacts { own_role: Role::Primary, ..same };
    assert_eq!(decided(no_crash), (0, 40));
}

#[test]
fn rules_50_to_60_the_peer_is_ahead() {
    assert_eq!(rule([A, 0, C, D], [B, A | 1, C, D]), (-1, 50));
    let lost = compare(&facts([A, 0, C, D], [B, A + SYNC_IDENTIFIER_OFFSET, A, C]));
    assert_eq!((lost.result.number(), lost.rule), (-1, 51));
    assert_eq!(lost.peer, set([B, A, C, C]));
    assert_eq!(rule([A, 0, C, D], [B, E, A, C]), (-2, 60), "the bitmap's is no sync identifier");
    assert_eq!(rule([A, 0, C, D], [B, E, D, A]), (-2, 60));
    let old = |own, peer, protocol| decided(ComparisonFacts { protocol, ..facts(own, peer) });
    assert_eq!(old([A, 0, C, D], [B, E, A, C], 95), (-1, 51), "before 96 the history tells");
    assert_eq!(old([A, 0, C, D], [B, E, A, C], 90), (-1091, 51));
    assert_eq!(old([A, 0, D, C], [B, E, A, C], 95), (-2, 60));
}

#[test]
fn rules_70_to_80_this_node_is_ahead() {
    assert_eq!(rule([B, A | 1, C, D], [A, 0, C, D]), (1, 70));
    let lost = compare(&facts([B, A + SYNC_IDENTIFIER_OFFSET, A, C], [A, 0, C, D]));
    assert_eq!((lost.result.number(), lost.rule), (1, 71));
    assert_eq!(lost.own, set([B, A, C, C]), "nothing is rotated");
    assert_eq!(rule([B, E, A, C], [A, 0, C, D]), (2, 80));
    assert_eq!(rule([B, E, D, A], [A, 0, C, D]), (2, 80));
    let old = |own, peer, protocol| decided(ComparisonFacts { protocol, ..facts(own, peer) });
    assert_eq!(old([B, E, A, C], [A, 0, C, D], 95), (1, 71));
    assert_eq!(old([B, E, A, C], [A, 0, C, D], 90), (-1091, 71));
    assert_eq!(old([B, E, A, C], [A, 0, D, C], 95), (2, 80));
}

#[test]
fn the_offset_of_a_sync_identifier_wraps_around() {
    let near_the_end: u64 = 0xffff_8000_0000_0000;
    let wrapped = near_the_end.wrapping_add(SYNC_IDENTIFIER_OFFSET);
    assert_eq!(wrapped, 0x0000_8000_0000_0000);
    assert_eq!(rule([near_the_end, 0, C, D], [B, wrapped, near_the_end, C]), (-1, 51));
}

#[test]
fn rules_90_and_100_both_have_moved_on() {
    assert_eq!(rule([A, B, 0, 0], [C, B | 1, 0, 0]), (100, 90));
    assert_eq!(rule([A, 0, B, D], [C, 0, E, B]), (-100, 100));
    assert_eq!(rule([A, 1, B, D], [C, 1, E, B]), (-100, 100), "bit 0 alone is no identifier");
    assert_eq!(rule([A, 0, 0, 0], [C, 0, 0, 0]), (-100, 100), "two empty slots are equal");
    assert_eq!(rule([A, 0, B, B], [C, 0, D, E]), (-1000, 100));
}

/// Identifiers from so few values that every rule comes up.
fn few_identifiers() -> impl Strategy<Value = [u64; 4]> {
    let values = prop::sample::select(vec![
        0,
        1,
        4,
        A,
        A | 1,
        A + SYNC_IDENTIFIER_OFFSET,
        B,
        B + SYNC_IDENTIFIER_OFFSET,
        C,
        D,
    ]);
    [values.clone(), values.clone(), values.clone(), values]
}

fn mirrored_rule(comparison: &Comparison) -> u8 {
    match (comparison.rule, comparison.result) {
        (rule, ComparisonResult::NeedsProtocol(_)) if rule < 50 => rule,
        (20, _) => 30,
        (30, _) => 20,
        (34, _) => 35,
        (35, _) => 34,
        (36, _) => 37,
        (37, _) => 36,
        (50, _) => 70,
        (51, _) => 71,
        (60, _) => 80,
        (70, _) => 50,
        (71, _) => 51,
        (80, _) => 60,
        (rule, _) => rule,
    }
}

/// The pairs in which both nodes see themselves as the older one (states spec 9.3).
fn both_are_older(one: GenerationSet, other: GenerationSet) -> bool {
    let knows = |set: &GenerationSet, current| {
        [set.bitmap, set.history[0], set.history[1]].iter().any(|older| same(*older, current))
    };
    (plain(one.current) == 0 && plain(other.current) == 0)
        || (!same(one.current, other.current) && knows(&one, other.current) && knows(&other, one.current))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn both_nodes_reach_mirrored_results(
        own in few_identifiers(),
        peer in few_identifiers(),
        crashed: [bool; 2],
        primary: [bool; 2],
        resolve_conflicts: bool,
        protocol in prop::sample::select(vec![86u32, 90, 91, 95, 96, 101]),
        features in prop::sample::select(vec![0u32, 0xf]),
    ) {
        let role = |primary| if primary { Role::Primary } else { Role::Secondary };
        let side = |index: usize, own, peer, resolve_conflicts| ComparisonFacts {
            own: set(own),
            peer: PeerGeneration {
                set: set(peer),
                flags: PeerFlags(u64::from(crashed[1 - index]) * 2),
                ..PeerGeneration::default()
            },
            crashed_primary: crashed[index],
            own_role: role(primary[index]),
            peer_role: role(primary[1 - index]),
            resolve_conflicts,
            protocol,
            features,
        };
        let here = compare(&side(0, own, peer, resolve_conflicts));
        let there = compare(&side(1, peer, own, !resolve_conflicts));
        if both_are_older(set(own), set(peer)) {
            return Ok(());
        }
        prop_assert_eq!(here.result, there.result.mirrored());
        prop_assert_eq!(here.rule, mirrored_rule(&there));
        prop_assert_eq!(here.own, there.peer, "both correct the same set in the same way");
        prop_assert_eq!(here.peer, there.own);
    }
}
