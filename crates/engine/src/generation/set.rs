//! The four identifiers of a volume and the operations on them.

use std::fmt;

use udrbd_units::GenerationId;

/// What a source adds to its bitmap identifier to name the data a resync is about to make (states spec 8.4).
pub const SYNC_IDENTIFIER_OFFSET: u64 = 0x0001_0000_0000_0000;

/// The identifiers of one volume: the generation of its data, the generation since which the bitmap counts, and two
/// older ones (states spec 8.1).
///
/// An operation that writes `current` takes the own role, because bit 0 of the current identifier says whether this
/// node is Primary; the caller then takes `current` over as the effective data identifier (`ed_uuid`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct GenerationSet {
    /// The generation of the data.
    pub current: GenerationId,
    /// The generation the peer has, since which changed blocks are marked in the bitmap; none while both are equal.
    pub bitmap: GenerationId,
    /// Older generations, the newest first.
    pub history: [GenerationId; 2],
}

impl GenerationSet {
    /// What `create-md` writes.
    pub const JUST_CREATED: Self = Self {
        current: GenerationId::JUST_CREATED,
        bitmap: GenerationId::NONE,
        history: [GenerationId::NONE; 2],
    };

    /// From the order of the superblock and the wire: current, bitmap, history 0, history 1.
    pub const fn from_array([current, bitmap, newer, older]: [GenerationId; 4]) -> Self {
        Self { current, bitmap, history: [newer, older] }
    }

    /// In the order of the superblock and the wire: current, bitmap, history 0, history 1.
    pub const fn to_array(self) -> [GenerationId; 4] {
        [self.current, self.bitmap, self.history[0], self.history[1]]
    }

    /// Writes the current identifier (`drbd_uuid_set`), bit 0 being the role.
    pub fn set_current(&mut self, value: GenerationId, primary: bool) {
        self.current = value.with_primary_bit(primary);
    }

    /// Bit 0 of the current identifier follows the role: at attach, promotion and demotion.
    pub fn mark_role(&mut self, primary: bool) {
        self.set_current(self.current, primary);
    }

    /// Starts a new generation on the source of a resync whose end is not known: the peer may hold the current generation,
    /// or have begun to take over the one in the bitmap slot. Both stay known, so that neither is taken for an ancestor of
    /// what is written from now on. What the peer holds most likely is in the bitmap slot then; if it holds the other one, it
    /// gets every block.
    pub fn new_current_of_doubtful_source(&mut self, random: u64, primary: bool, target: TargetOfResync) {
        if target == TargetOfResync::HoldsCurrent {
            self.history = [self.bitmap, self.history[0]];
            self.bitmap = self.current;
        } else {
            self.history = [self.current, self.history[0]];
        }
        self.set_current(GenerationId(random), primary);
    }

    /// Whether the bitmap identifier is the name of a resync from here that has not ended here, and under which nothing has
    /// been written since. (One that was made up at random cannot be told.)
    pub fn is_source_of_unended_resync(&self) -> bool {
        let name = GenerationId(self.history[0].0.wrapping_add(SYNC_IDENTIFIER_OFFSET));
        self.bitmap.is_some() && self.history[0].is_some() && self.bitmap.same_generation(name)
    }

    /// Starts a new generation (`drbd_uuid_new_current`): the present one becomes the bitmap's. `random` is 64 random
    /// bits. Returns the bitmap identifier this overwrote, if there was one: DRBD warns of it, see
    /// [`GenerationSet::overwritten_warning`].
    pub fn new_current(&mut self, random: u64, primary: bool) -> Option<GenerationId> {
        let overwritten = self.bitmap;
        self.bitmap = self.current;
        self.set_current(GenerationId(random), primary);
        overwritten.is_some().then_some(overwritten)
    }

    /// The warning for what [`GenerationSet::new_current`] overwrote.
    pub fn overwritten_warning(overwritten: GenerationId) -> String {
        format!("bm UUID was already set: {:X}", overwritten.0)
    }

    /// Writes the bitmap identifier with rotation (`drbd_uuid_set`): the old one, if any, goes into the history.
    pub fn set_bitmap_rotating(&mut self, value: GenerationId) {
        self.rotate_into_history(self.bitmap);
        self.bitmap = value;
    }

    /// The bitmap identifier, if any, goes into the history (`drbd_uuid_set_bm` with 0). Returns whether there was one.
    pub fn clear_bitmap(&mut self) -> bool {
        let was_set = self.bitmap.is_some();
        self.set_bitmap_rotating(GenerationId::NONE);
        was_set
    }

    fn rotate_into_history(&mut self, value: GenerationId) {
        if value.is_some() {
            self.history = [value, self.history[0]];
        }
    }

    /// A resync from here starts (states spec 8.4): names the data the peer is about to hold, and returns the name for
    /// P_SYNC_UUID. `random` is 64 random bits, used where there is no generation to derive it from.
    pub fn start_resync_as_source(&mut self, random: u64) -> GenerationId {
        let identifier = if self.bitmap.is_some() && self.bitmap != GenerationId::JUST_CREATED {
            GenerationId(self.bitmap.0.wrapping_add(SYNC_IDENTIFIER_OFFSET))
        } else {
            GenerationId(random)
        };
        self.set_bitmap_rotating(identifier);
        identifier
    }

    /// A resync to here starts (P_SYNC_UUID received, states spec 6.5): the data are on the way to what the source
    /// named. Nothing is rotated.
    pub fn start_resync_as_target(&mut self, identifier: GenerationId, primary: bool) {
        self.set_current(identifier, primary);
        self.bitmap = GenerationId::NONE;
    }

    /// A resync to here ended with every block written (states spec 8.5): this node takes over the source's
    /// identifiers. `peer` is the remembered set of the peer. The caller then takes the result as the remembered set
    /// of the peer as well.
    pub fn finish_resync_as_target(&mut self, peer: &Self, primary: bool) {
        self.bitmap = peer.bitmap;
        self.history = peer.history;
        self.set_bitmap_rotating(self.current);
        self.set_current(peer.current, primary);
        self.clear_bitmap();
    }

    /// A resync from here ended with every block written: nothing differs any more.
    pub fn finish_resync_as_source(&mut self) {
        self.clear_bitmap();
    }

    /// Accepts the peer's generation without a resync (`new-current-uuid --clear-bitmap`, states spec 6.3 step 3).
    pub fn skip_initial_sync(&mut self, peer_current: GenerationId, primary: bool) {
        self.set_current(peer_current, primary);
        self.bitmap = GenerationId::NONE;
    }
}

/// `CURRENT:BITMAP:HISTORY0:HISTORY1`, 16 upper-case hex digits each, as in every log line about identifiers.
impl fmt::Display for GenerationSet {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}:{}:{}", self.current, self.bitmap, self.history[0], self.history[1])
    }
}

/// What a source knows of the target of a resync that has not ended here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum TargetOfResync {
    /// Nothing: there was none, or this node was started since.
    #[default]
    Unknown,
    /// It lacks blocks that were not sent, so it has not ended there either.
    Unfinished,
    /// All blocks were sent, and it has not said of all that they are written.
    WasSentAll,
    /// It has said so; or the disks were equal before, so that it holds the current generation also if it has not begun.
    HoldsCurrent,
}

impl TargetOfResync {
    /// Whether it may have ended there.
    pub const fn may_be_done(self) -> bool {
        matches!(self, Self::WasSentAll | Self::HoldsCurrent)
    }
}

/// The flags of P_UUIDS (states spec 6.3 step 1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct PeerFlags(pub u64);

impl PeerFlags {
    /// Bit 0: connected with `discard-my-data`.
    pub const DISCARD_MY_DATA: Self = Self(1);
    /// Bit 1: the peer crashed while Primary.
    pub const CRASHED_PRIMARY: Self = Self(2);
    /// Bit 2: the disk being attached was Inconsistent.
    pub const INCONSISTENT: Self = Self(4);
    /// Bit 3: take the new current identifier over without a resync.
    pub const SKIP_INITIAL_SYNC: Self = Self(8);

    /// Whether all of `flags` are set.
    pub const fn contains(self, flags: Self) -> bool {
        self.0 & flags.0 == flags.0
    }
}

/// What P_UUIDS tells of the peer, remembered until the connection is lost (`p_uuid`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct PeerGeneration {
    /// The peer's identifiers.
    pub set: GenerationSet,
    /// The number of bits set in the peer's bitmap.
    pub set_bits: u64,
    /// The peer's flags.
    pub flags: PeerFlags,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(values: [u64; 4]) -> GenerationSet {
        GenerationSet::from_array(values.map(GenerationId))
    }

    #[test]
    fn a_new_generation_keeps_the_old_one_for_the_bitmap() {
        let mut own = set([0xA1, 0, 0xC0, 0xD0]);
        assert_eq!(own.new_current(0xE0, true), None);
        assert_eq!(own, set([0xE1, 0xA1, 0xC0, 0xD0]));
        assert_eq!(own.new_current(0xF1, false), Some(GenerationId(0xA1)), "lost, not rotated");
        assert_eq!(own, set([0xF0, 0xE1, 0xC0, 0xD0]));
        assert_eq!(GenerationSet::overwritten_warning(GenerationId(0xA1)), "bm UUID was already set: A1");
    }

    #[test]
    fn only_a_set_identifier_rotates() {
        let mut own = set([1, 0, 0xC0, 0xD0]);
        assert!(!own.clear_bitmap());
        own.set_bitmap_rotating(GenerationId(0xB0));
        assert_eq!(own, set([1, 0xB0, 0xC0, 0xD0]));
        assert!(own.clear_bitmap());
        assert_eq!(own, set([1, 0, 0xB0, 0xC0]));
    }

    #[test]
    fn both_nodes_end_a_resync_with_the_same_picture() {
        // A was Primary when it lost B (states spec 8.6).
        let mut source = set([0xA1, 0, 0xC0, 0xD0]);
        let mut target = set([0xA0, 0, 0xC0, 0xD0]);
        source.new_current(0xE0, true);
        let remembered = source;
        let identifier = source.start_resync_as_source(0x77);
        assert_eq!(identifier, GenerationId(0xA1 + SYNC_IDENTIFIER_OFFSET));
        assert_eq!(source, set([0xE1, 0xA1 + SYNC_IDENTIFIER_OFFSET, 0xA1, 0xC0]));
        target.start_resync_as_target(identifier, false);
        assert_eq!(target, set([0xA0 + SYNC_IDENTIFIER_OFFSET, 0, 0xC0, 0xD0]));
        source.finish_resync_as_source();
        target.finish_resync_as_target(&remembered, false);
        assert_eq!(source, set([0xE1, 0, 0xA1 + SYNC_IDENTIFIER_OFFSET, 0xA1]));
        assert_eq!(target, set([0xE0, 0, 0xA0 + SYNC_IDENTIFIER_OFFSET, 0xA1]));
    }

    /// Whatever the target holds, the source's data are taken for the newer ones; and where the target has been promoted, both
    /// find that they have gone apart.
    #[test]
    fn a_source_in_doubt_is_the_ancestor_and_the_successor_of_nobody() {
        use crate::generation::{ComparisonFacts, ComparisonResult as Result, compare};
        use udrbd_units::Role::{Primary, Secondary};
        let mut source = set([0xE1, 0xA1, 0xC0, 0xD0]);
        let mut target = set([0xA0, 0, 0xC0, 0xD0]);
        let remembered = source;
        let name = source.start_resync_as_source(0x77);
        assert!(source.is_source_of_unended_resync() && !remembered.is_source_of_unended_resync());
        target.start_resync_as_target(name, false);
        let unfinished = target;
        target.finish_resync_as_target(&remembered, false);
        let (done, mut promoted) = (target, target);
        promoted.new_current(0x50, true);
        for (guess, of_unfinished, of_done) in [
            (TargetOfResync::WasSentAll, Result::SourceByBitmap, Result::SourceFull),
            (TargetOfResync::HoldsCurrent, Result::SourceFull, Result::SourceByBitmap),
        ] {
            let mut own = source;
            own.new_current_of_doubtful_source(0x90, true, guess);
            assert!(!own.is_source_of_unended_resync());
            let found = |own: GenerationSet, peer: GenerationSet, own_role, peer_role| {
                let facts = ComparisonFacts {
                    own,
                    peer: PeerGeneration { set: peer, ..PeerGeneration::default() },
                    crashed_primary: false,
                    own_role,
                    peer_role,
                    resolve_conflicts: false,
                    protocol: 101,
                    features: 15,
                };
                compare(&facts).result
            };
            for (peer, result) in [(unfinished, of_unfinished), (done, of_done)] {
                assert_eq!(found(own, peer, Primary, Secondary), result, "{guess:?} {peer}");
                assert_eq!(found(peer, own, Secondary, Primary), result.mirrored(), "{guess:?} {peer}");
            }
            for result in [found(own, promoted, Primary, Primary), found(promoted, own, Primary, Primary)] {
                let apart = matches!(result, Result::SplitBrain | Result::SplitBrainAmbiguous);
                assert!(apart, "{guess:?} {result:?}");
            }
        }
    }

    #[test]
    fn a_sync_identifier_is_random_without_a_generation_to_derive_it_from() {
        let mut source = GenerationSet::JUST_CREATED;
        assert_eq!(source.start_resync_as_source(0x77), GenerationId(0x77));
        assert_eq!(source, set([4, 0x77, 0, 0]));
        let mut fresh = set([0xE0, 4, 0, 0]);
        assert_eq!(fresh.start_resync_as_source(0x78), GenerationId(0x78));
        assert_eq!(fresh, set([0xE0, 0x78, 4, 0]));
        let mut last = set([0xE0, u64::MAX, 0, 0]);
        assert_eq!(last.start_resync_as_source(0), GenerationId(0x0000_FFFF_FFFF_FFFF), "modulo 2^64");
    }

    #[test]
    fn the_log_form_is_four_times_sixteen_digits() {
        assert_eq!(
            set([0xAB, 4, 0, 1]).to_string(),
            "00000000000000AB:0000000000000004:0000000000000000:0000000000000001"
        );
    }

    #[test]
    fn skipping_the_initial_sync_rotates_nothing() {
        let mut own = set([4, 0xB0, 0xC0, 0]);
        own.skip_initial_sync(GenerationId(0xE1), false);
        assert_eq!(own, set([0xE0, 0, 0xC0, 0]));
    }
}
