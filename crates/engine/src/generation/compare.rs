//! Who has the newer data: DRBD's decision table over two sets of identifiers.

use std::fmt;

use udrbd_units::{GenerationId, Role};

use super::set::{GenerationSet, PeerFlags, PeerGeneration, SYNC_IDENTIFIER_OFFSET};

/// The feature flag without which two crashed nodes with a Primary present cannot agree (`DRBD_FF_WSAME`, which DRBD
/// uses as the mark of a peer new enough).
pub const FEATURE_WRITE_SAME: u32 = 4;

/// The greatest protocol version there is, named where a newer peer is needed.
const PROTOCOL_MAX: u32 = 101;

/// What the comparison reads (states spec 9.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ComparisonFacts {
    /// The own identifiers.
    pub own: GenerationSet,
    /// What the peer sent.
    pub peer: PeerGeneration,
    /// The own flag CRASHED_PRIMARY.
    pub crashed_primary: bool,
    /// The own role now.
    pub own_role: Role,
    /// The peer's role now, as just received.
    pub peer_role: Role,
    /// The connection's flag RESOLVE_CONFLICTS: set on exactly one node.
    pub resolve_conflicts: bool,
    /// The agreed protocol version.
    pub protocol: u32,
    /// The agreed feature flags.
    pub features: u32,
}

/// What a comparison concludes. The number is DRBD's: positive where this node is the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ComparisonResult {
    /// 0: the data are the same.
    NoSync,
    /// +1: the peer needs what the bitmap marks.
    SourceByBitmap,
    /// -1: this node needs what the bitmaps mark.
    TargetByBitmap,
    /// +2: the peer needs every block.
    SourceFull,
    /// -2: this node needs every block.
    TargetFull,
    /// 100: both have changed since a generation both know.
    SplitBrain,
    /// -100: split brain without a common bitmap generation.
    SplitBrainAmbiguous,
    /// -1000: the data have nothing in common.
    Unrelated,
    /// -1000 - n: deciding this needs protocol n.
    NeedsProtocol(u32),
    /// -(0x10000 + protocol + 256 * features): deciding this needs both.
    NeedsFeatures {
        /// The protocol version needed.
        protocol: u32,
        /// The feature flags needed.
        features: u32,
    },
}

impl ComparisonResult {
    /// DRBD's number, as in `uuid_compare()=<n>`.
    pub const fn number(self) -> i32 {
        match self {
            Self::NoSync => 0,
            Self::SourceByBitmap => 1,
            Self::TargetByBitmap => -1,
            Self::SourceFull => 2,
            Self::TargetFull => -2,
            Self::SplitBrain => 100,
            Self::SplitBrainAmbiguous => -100,
            Self::Unrelated => -1000,
            Self::NeedsProtocol(protocol) => -1000 - protocol as i32,
            Self::NeedsFeatures { protocol, features } => -(0x10000 + (protocol | features << 8) as i32),
        }
    }

    /// The same conclusion seen from the other node.
    #[must_use]
    pub const fn mirrored(self) -> Self {
        match self {
            Self::SourceByBitmap => Self::TargetByBitmap,
            Self::TargetByBitmap => Self::SourceByBitmap,
            Self::SourceFull => Self::TargetFull,
            Self::TargetFull => Self::SourceFull,
            same => same,
        }
    }
}

/// What a rule has to say in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ComparisonNote {
    /// Rule 34: the own set was corrected.
    SourceMissedResyncFinished,
    /// Rule 36.
    PeerFailedToWriteSyncIdentifier,
    /// Rule 35: the copy of the peer's set was corrected.
    PeerMissedResyncFinished,
    /// Rule 37.
    FailedToWriteSyncIdentifier,
    /// Rule 41, the peer is too old; a warning.
    CurrentPrimaryPresent,
    /// Rule 41, both are Primary; an error.
    BothPrimary,
    /// Rule 51: the copy of the peer's set was corrected.
    LostLastSyncIdentifier,
    /// Rule 71: the own set was corrected.
    LastSyncIdentifierDidNotGetThrough,
}

impl fmt::Display for ComparisonNote {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::SourceMissedResyncFinished => {
                "was SyncSource, missed the resync finished event, corrected myself:"
            }
            Self::PeerFailedToWriteSyncIdentifier => "was SyncSource (peer failed to write sync_uuid)",
            Self::PeerMissedResyncFinished => {
                "was SyncTarget, peer missed the resync finished event, corrected peer:"
            }
            Self::FailedToWriteSyncIdentifier => "was SyncTarget (failed to write sync_uuid)",
            Self::CurrentPrimaryPresent => "Equivalent unrotated UUIDs, but current primary present.",
            Self::BothPrimary => "Equivalent unrotated UUIDs, but both are primary. Can not resolve this.",
            Self::LostLastSyncIdentifier => "Lost last syncUUID packet, corrected:",
            Self::LastSyncIdentifierDidNotGetThrough => "Last syncUUID did not get through, corrected:",
        })
    }
}

/// The outcome of a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Comparison {
    /// Who has the newer data.
    pub result: ComparisonResult,
    /// The number DRBD logs for the rule that decided.
    pub rule: u8,
    /// What the rule has to say.
    pub note: Option<ComparisonNote>,
    /// The own set as corrected by rules 34 and 71: where it differs from the set given, it is to be stored when the
    /// resync starts.
    pub own: GenerationSet,
    /// The peer's set as corrected by rules 35 and 51: to be remembered instead of what was received.
    pub peer: GenerationSet,
}

/// Compares two sets of identifiers (`drbd_uuid_compare`, states spec 9.2): the first rule that fits decides. Bit 0
/// never counts, but in the tests of a bitmap identifier against 0.
pub fn compare(facts: &ComparisonFacts) -> Comparison {
    use ComparisonResult as R;
    let own_current = plain(facts.own.current);
    let peer_current = plain(facts.peer.set.current);
    let created = GenerationId::JUST_CREATED.0;
    if own_current == created && peer_current == created {
        verdict(facts, 10, R::NoSync)
    } else if (own_current == created || own_current == 0) && peer_current != created {
        verdict(facts, 20, R::TargetFull)
    } else if own_current != created && (peer_current == created || peer_current == 0) {
        verdict(facts, 30, R::SourceFull)
    } else if own_current == peer_current {
        compare_equal_generations(facts)
    } else {
        compare_as_target(facts)
            .or_else(|| compare_as_source(facts))
            .unwrap_or_else(|| compare_diverged(facts))
    }
}

/// Rules 34 to 41: the data are of one generation; what remains is how the last resync or crash ended.
fn compare_equal_generations(facts: &ComparisonFacts) -> Comparison {
    use ComparisonResult as R;
    let (own, peer) = (facts.own, facts.peer.set);
    if !peer.bitmap.is_some() && own.bitmap.is_some() {
        if facts.protocol < 91 {
            return verdict(facts, 30, R::NeedsProtocol(91));
        }
        if same(own.bitmap, peer.history[0]) && same(own.history[0], peer.history[1]) {
            let mut decided = verdict(facts, 34, R::SourceByBitmap);
            decided.own.clear_bitmap();
            return with_note(decided, ComparisonNote::SourceMissedResyncFinished);
        }
        let decided = verdict(facts, 36, R::SourceByBitmap);
        return with_note(decided, ComparisonNote::PeerFailedToWriteSyncIdentifier);
    }
    if !own.bitmap.is_some() && peer.bitmap.is_some() {
        if facts.protocol < 91 {
            return verdict(facts, 30, R::NeedsProtocol(91));
        }
        if same(own.history[0], peer.bitmap) && same(own.history[1], peer.history[0]) {
            let mut decided = verdict(facts, 35, R::TargetByBitmap);
            decided.peer.clear_bitmap();
            return with_note(decided, ComparisonNote::PeerMissedResyncFinished);
        }
        let decided = verdict(facts, 37, R::TargetByBitmap);
        return with_note(decided, ComparisonNote::FailedToWriteSyncIdentifier);
    }
    compare_after_crash(facts)
}

/// Rules 40 and 41: what a crashed Primary wrote last may be on either disk.
fn compare_after_crash(facts: &ComparisonFacts) -> Comparison {
    use ComparisonResult as R;
    let own_crashed = facts.crashed_primary;
    let peer_crashed = facts.peer.flags.contains(PeerFlags::CRASHED_PRIMARY);
    let own_primary = facts.own_role == Role::Primary;
    let peer_primary = facts.peer_role == Role::Primary;
    if !own_crashed && !peer_crashed {
        return verdict(facts, 40, R::NoSync);
    }
    if own_primary || peer_primary {
        if facts.features & FEATURE_WRITE_SAME == 0 {
            let result = R::NeedsFeatures { protocol: PROTOCOL_MAX, features: FEATURE_WRITE_SAME };
            return with_note(verdict(facts, 41, result), ComparisonNote::CurrentPrimaryPresent);
        }
        return match (own_primary, peer_primary) {
            (true, true) => {
                with_note(verdict(facts, 41, R::SplitBrainAmbiguous), ComparisonNote::BothPrimary)
            }
            (true, false) => verdict(facts, 41, R::SourceByBitmap),
            (false, _) => verdict(facts, 41, R::TargetByBitmap),
        };
    }
    let source = match (own_crashed, peer_crashed) {
        (true, true) => !facts.resolve_conflicts,
        (own_crashed, _) => own_crashed,
    };
    verdict(facts, 40, if source { R::SourceByBitmap } else { R::TargetByBitmap })
}

/// Rules 50 to 60: the own data are a generation the peer knows as an older one.
fn compare_as_target(facts: &ComparisonFacts) -> Option<Comparison> {
    use ComparisonResult as R;
    let (own, peer) = (facts.own, facts.peer.set);
    if same(own.current, peer.bitmap) {
        return Some(verdict(facts, 50, R::TargetByBitmap));
    }
    if same(own.current, peer.history[0]) {
        let sync_identifier_was_lost = if facts.protocol < 96 {
            same(own.history[0], peer.history[1])
        } else {
            is_sync_identifier_of(peer.bitmap, peer.history[0])
        };
        if sync_identifier_was_lost && facts.protocol < 91 {
            return Some(verdict(facts, 51, R::NeedsProtocol(91)));
        }
        if sync_identifier_was_lost {
            let mut decided = verdict(facts, 51, R::TargetByBitmap);
            undo_start_of_resync(&mut decided.peer);
            return Some(with_note(decided, ComparisonNote::LostLastSyncIdentifier));
        }
    }
    peer.history.iter().any(|older| same(own.current, *older)).then(|| verdict(facts, 60, R::TargetFull))
}

/// Rules 70 to 80: the peer's data are a generation this node knows as an older one.
fn compare_as_source(facts: &ComparisonFacts) -> Option<Comparison> {
    use ComparisonResult as R;
    let (own, peer) = (facts.own, facts.peer.set);
    if same(own.bitmap, peer.current) {
        return Some(verdict(facts, 70, R::SourceByBitmap));
    }
    if same(own.history[0], peer.current) {
        let sync_identifier_was_lost = if facts.protocol < 96 {
            same(own.history[1], peer.history[0])
        } else {
            is_sync_identifier_of(own.bitmap, own.history[0])
        };
        if sync_identifier_was_lost && facts.protocol < 91 {
            return Some(verdict(facts, 71, R::NeedsProtocol(91)));
        }
        if sync_identifier_was_lost {
            let mut decided = verdict(facts, 71, R::SourceByBitmap);
            undo_start_of_resync(&mut decided.own);
            return Some(with_note(decided, ComparisonNote::LastSyncIdentifierDidNotGetThrough));
        }
    }
    own.history.iter().any(|older| same(*older, peer.current)).then(|| verdict(facts, 80, R::SourceFull))
}

/// Rules 90 and 100: neither current generation is known to the other node.
fn compare_diverged(facts: &ComparisonFacts) -> Comparison {
    use ComparisonResult as R;
    let (own, peer) = (facts.own, facts.peer.set);
    if same(own.bitmap, peer.bitmap) && plain(own.bitmap) != 0 {
        return verdict(facts, 90, R::SplitBrain);
    }
    // Two empty slots count as a common ancestor: DRBD compares them like any others.
    let common = own.history.iter().any(|one| peer.history.iter().any(|other| same(*one, *other)));
    verdict(facts, 100, if common { R::SplitBrainAmbiguous } else { R::Unrelated })
}

/// The youngest generation that both nodes remember, without bit 0: what people are told. It decides nothing.
pub fn common_ancestor(own: GenerationSet, peer: GenerationSet) -> Option<GenerationId> {
    let known = peer.to_array();
    let shared = |one: &GenerationId| plain(*one) != 0 && known.iter().any(|other| same(*one, *other));
    own.to_array().into_iter().find(shared).map(|found| GenerationId(plain(found)))
}

/// Takes back what the start of a resync did to the source's identifiers, without rotation.
fn undo_start_of_resync(source: &mut GenerationSet) {
    source.bitmap = source.history[0];
    source.history[0] = source.history[1];
}

fn is_sync_identifier_of(candidate: GenerationId, generation: GenerationId) -> bool {
    plain(generation).wrapping_add(SYNC_IDENTIFIER_OFFSET) == plain(candidate)
}

fn verdict(facts: &ComparisonFacts, rule: u8, result: ComparisonResult) -> Comparison {
    Comparison { result, rule, note: None, own: facts.own, peer: facts.peer.set }
}

fn with_note(decided: Comparison, note: ComparisonNote) -> Comparison {
    Comparison { note: Some(note), ..decided }
}

fn same(one: GenerationId, other: GenerationId) -> bool {
    one.same_generation(other)
}

fn plain(identifier: GenerationId) -> u64 {
    identifier.0 & !1
}

#[cfg(test)]
mod tests;
