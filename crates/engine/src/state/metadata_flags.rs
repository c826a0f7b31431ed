//! The flags of the superblock that follow from the state, and the state that follows from the flags.

use udrbd_units::{ConnectionState, DiskState, Role};

use super::context::FencingPolicy;
use super::volume::VolumeState;

/// The flags word of the superblock (`MDF_*`, states spec 1.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct MetadataFlags(pub u32);

impl MetadataFlags {
    /// The disk is better than Inconsistent.
    pub const CONSISTENT: Self = Self(0x001);
    /// This node, or its diskless peer, is Primary.
    pub const PRIMARY_INDICATION: Self = Self(0x002);
    /// There is a connection.
    pub const CONNECTED_INDICATION: Self = Self(0x004);
    /// Every block counts as out of sync.
    pub const FULL_SYNC: Self = Self(0x008);
    /// The disk is better than Outdated.
    pub const WAS_UP_TO_DATE: Self = Self(0x010);
    /// The peer's disk is known to be Inconsistent or Outdated.
    pub const PEER_OUTDATED: Self = Self(0x020);
    /// The node crashed while Primary.
    pub const CRASHED_PRIMARY: Self = Self(0x040);
    /// The activity log is empty.
    pub const ACTIVITY_LOG_CLEAN: Self = Self(0x080);
    /// The activity log is not kept (`al-updates no`).
    pub const ACTIVITY_LOG_DISABLED: Self = Self(0x100);

    /// Whether all of `flags` are set.
    pub const fn contains(self, flags: Self) -> bool {
        self.0 & flags.0 == flags.0
    }

    /// These flags with `flags` set or cleared.
    #[must_use]
    pub const fn with(self, flags: Self, set: bool) -> Self {
        Self(if set { self.0 | flags.0 } else { self.0 & !flags.0 })
    }
}

/// The flags after a change of state of a volume with disk >= Inconsistent (states spec 1.3). FULL_SYNC and
/// ACTIVITY_LOG_DISABLED stay as they are. `crashed_primary` is the volume's own flag.
#[must_use]
pub fn implicit_metadata_flags(
    present: MetadataFlags,
    state: VolumeState,
    crashed_primary: bool,
) -> MetadataFlags {
    use MetadataFlags as F;
    // A diskless Primary writes to this disk alone, so this disk has to remember the crash.
    let stores_for_a_primary = state.peer_disk < DiskState::Inconsistent && state.peer == Role::Primary;
    let peer_outdated = (DiskState::Inconsistent..=DiskState::Outdated).contains(&state.peer_disk);
    present
        .with(F::CONSISTENT, state.disk > DiskState::Inconsistent)
        .with(F::PRIMARY_INDICATION, state.role == Role::Primary || stores_for_a_primary)
        .with(F::CONNECTED_INDICATION, state.connection > ConnectionState::WFReportParams)
        .with(F::WAS_UP_TO_DATE, state.disk > DiskState::Outdated)
        .with(F::PEER_OUTDATED, peer_outdated)
        .with(F::CRASHED_PRIMARY, crashed_primary)
        .with(F::ACTIVITY_LOG_CLEAN, false)
}

/// What an attach reads to know what its disk is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttachFacts {
    /// The flags found in the superblock.
    pub flags: MetadataFlags,
    /// Disk option `fencing`.
    pub fencing: FencingPolicy,
    /// This node's role now.
    pub role: Role,
    /// I/O is suspended for lack of data now.
    pub suspended_no_data: bool,
}

/// What a disk is worth at attach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttachedState {
    /// The own disk's state.
    pub disk: DiskState,
    /// The peer's disk, where the metadata record it as outdated; `None` leaves it as it is.
    pub peer_disk: Option<DiskState>,
    /// The flag CRASHED_PRIMARY.
    pub crashed_primary: bool,
    /// The flag USE_DEGR_WFC_T: this node was Primary without connection when it went down.
    pub use_degraded_timeout: bool,
    /// Every block must be marked out of sync before use: an interrupted full sync, or a crash without activity log.
    pub all_out_of_sync: bool,
}

/// Computes steps 6, 7, 9 and 10 of an attach (states spec 13.1). `peer_disk` is the peer's disk state now.
pub fn attached_state(facts: AttachFacts, peer_disk: DiskState) -> AttachedState {
    use MetadataFlags as F;
    let flags = facts.flags;
    let was_primary = flags.contains(F::PRIMARY_INDICATION);
    // A Primary frozen for lack of data re-attaches its own disk: that is no crash.
    let thaws = facts.role == Role::Primary && facts.suspended_no_data;
    let crashed_primary = flags.contains(F::CRASHED_PRIMARY) || (was_primary && !thaws);
    let recorded_peer_disk = flags.contains(F::PEER_OUTDATED).then_some(DiskState::Outdated);
    let nobody_else_has_newer = recorded_peer_disk.unwrap_or(peer_disk) == DiskState::Outdated
        || facts.fencing == FencingPolicy::DontCare;
    let disk = match (flags.contains(F::CONSISTENT), flags.contains(F::WAS_UP_TO_DATE)) {
        (false, _) => DiskState::Inconsistent,
        (true, false) => DiskState::Outdated,
        (true, true) if nobody_else_has_newer => DiskState::UpToDate,
        (true, true) => DiskState::Consistent,
    };
    AttachedState {
        disk,
        peer_disk: recorded_peer_disk,
        crashed_primary,
        use_degraded_timeout: facts.role != Role::Primary
            && was_primary
            && !flags.contains(F::CONNECTED_INDICATION),
        all_out_of_sync: flags.contains(F::FULL_SYNC)
            || (crashed_primary && flags.contains(F::ACTIVITY_LOG_DISABLED)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECONDARY: AttachFacts = AttachFacts {
        flags: MetadataFlags(0),
        fencing: FencingPolicy::DontCare,
        role: Role::Secondary,
        suspended_no_data: false,
    };

    fn attach(facts: AttachFacts) -> AttachedState {
        attached_state(facts, DiskState::Unknown)
    }

    #[test]
    fn each_flag_follows_its_state() {
        let flags = |state| implicit_metadata_flags(MetadataFlags(0x188), state, false).0;
        let inconsistent = VolumeState { disk: DiskState::Inconsistent, ..VolumeState::INITIAL };
        assert_eq!(flags(inconsistent), 0x108, "full sync and al-disabled stay, al-clean goes");
        assert_eq!(flags(VolumeState { disk: DiskState::Outdated, ..inconsistent }), 0x109);
        assert_eq!(flags(VolumeState { disk: DiskState::Consistent, ..inconsistent }), 0x119);
        assert_eq!(flags(VolumeState { role: Role::Primary, ..inconsistent }), 0x10a);
        assert_eq!(flags(VolumeState { connection: ConnectionState::WFReportParams, ..inconsistent }), 0x108);
        assert_eq!(flags(VolumeState { connection: ConnectionState::Connected, ..inconsistent }), 0x10c);
        assert_eq!(flags(VolumeState { peer_disk: DiskState::Outdated, ..inconsistent }), 0x128);
        assert_eq!(flags(VolumeState { peer_disk: DiskState::Inconsistent, ..inconsistent }), 0x128);
        let served = VolumeState { peer: Role::Primary, peer_disk: DiskState::Diskless, ..inconsistent };
        assert_eq!(flags(served), 0x10a, "the disk of a diskless Primary");
        assert_eq!(implicit_metadata_flags(MetadataFlags(0), inconsistent, true).0, 0x40);
    }

    #[test]
    fn a_disk_is_worth_what_its_flags_say() {
        let with_flags = |flags| AttachFacts { flags: MetadataFlags(flags), ..SECONDARY };
        assert_eq!(attach(with_flags(0x10)).disk, DiskState::Inconsistent);
        assert_eq!(attach(with_flags(0x01)).disk, DiskState::Outdated);
        assert_eq!(attach(with_flags(0x11)).disk, DiskState::UpToDate);
        let fenced = AttachFacts { fencing: FencingPolicy::ResourceOnly, ..with_flags(0x11) };
        assert_eq!(attach(fenced).disk, DiskState::Consistent);
        let outdated_peer = AttachFacts { fencing: FencingPolicy::ResourceOnly, ..with_flags(0x31) };
        assert_eq!(attach(outdated_peer).disk, DiskState::UpToDate);
        assert_eq!(attach(outdated_peer).peer_disk, Some(DiskState::Outdated));
        assert!(attach(with_flags(0x09)).all_out_of_sync);
        assert!(attach(with_flags(0x143)).all_out_of_sync);
        assert!(!attach(with_flags(0x101)).all_out_of_sync);
    }

    #[test]
    fn a_primary_that_went_away_crashed_unless_it_only_lost_its_disk() {
        let was_primary = AttachFacts { flags: MetadataFlags(0x13), ..SECONDARY };
        assert!(attach(was_primary).crashed_primary);
        assert!(attach(was_primary).use_degraded_timeout);
        assert!(!attach(AttachFacts { flags: MetadataFlags(0x17), ..was_primary }).use_degraded_timeout);
        let frozen = AttachFacts { role: Role::Primary, suspended_no_data: true, ..was_primary };
        assert!(!attach(frozen).crashed_primary);
        assert!(attach(AttachFacts { suspended_no_data: false, ..frozen }).crashed_primary);
        assert!(!attach(frozen).use_degraded_timeout);
    }
}
