//! `resync-after`: which volumes of a node may not resync now because another one does (io spec 15.10; states spec 12.6).
//!
//! The volumes belong to different resources, so to different engines. Whoever sees them all asks [`must_wait`] whenever
//! one has changed, and tells the engine of a volume for which the answer is another one with
//! [`Command::ResyncDependency`](crate::interface::Command::ResyncDependency).

use udrbd_units::Minor;

use crate::interface::VolumeStatus;

/// What a volume shows of itself to those that depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its number on the node.
    pub minor: Minor,
    /// The minor its resync comes after: `resync-after`. `None` also without a disk, as it is an option of the disk.
    pub after: Option<Minor>,
    /// A resync or a verify runs, or would if it were not paused.
    pub at_work: bool,
    /// Its resync is paused, for whatever reason, or would be.
    pub paused: bool,
}

impl Member {
    /// What an engine says of a volume.
    pub fn of(status: &VolumeStatus) -> Self {
        Self {
            minor: status.minor,
            after: status.options.as_ref().and_then(|options| options.resync_after).map(Minor),
            at_work: status.connection.is_syncing(),
            paused: status.paused_by_user || status.paused_by_peer || status.paused_by_dependency,
        }
    }
}

/// Whether the resync of a volume has to wait for one that it comes after, next or further along the chain.
pub fn must_wait(members: &[Member], minor: Minor) -> bool {
    let find = |minor: Minor| members.iter().find(|member| member.minor == minor);
    let mut next = find(minor).and_then(|member| member.after);
    // Cycles are refused where they are asked for; should there be one, everybody in it has been looked at.
    for _ in 0..members.len() {
        let Some(member) = next.and_then(find) else { return false };
        if member.at_work || member.paused {
            return true;
        }
        next = member.after;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(minor: u32, after: Option<u32>) -> Member {
        Member { minor: Minor(minor), after: after.map(Minor), at_work: false, paused: false }
    }

    /// Minor 2 after 1 after 0; minor 3 by itself.
    fn chain() -> [Member; 4] {
        [member(0, None), member(1, Some(0)), member(2, Some(1)), member(3, None)]
    }

    fn waiting(members: &[Member]) -> Vec<u32> {
        let waits = |member: &&Member| must_wait(members, member.minor);
        members.iter().filter(waits).map(|member| member.minor.0).collect()
    }

    #[test]
    fn nobody_waits_for_those_that_are_idle() {
        assert_eq!(waiting(&chain()), [0; 0]);
    }

    #[test]
    fn everybody_behind_a_resync_waits_however_far() {
        let mut members = chain();
        members[0].at_work = true;
        members[3].at_work = true;
        assert_eq!(waiting(&members), [1, 2]);
        members[0].at_work = false;
        members[1].at_work = true;
        assert_eq!(waiting(&members), [2]);
    }

    #[test]
    fn a_pause_holds_up_those_behind_it_also_without_a_resync() {
        let mut members = chain();
        members[0].paused = true;
        assert_eq!(waiting(&members), [1, 2]);
    }

    #[test]
    fn the_chain_ends_where_a_disk_or_a_volume_is_missing() {
        let mut members = chain();
        members[0].at_work = true;
        // Without a disk there is no option.
        members[1].after = None;
        assert_eq!(waiting(&members), [0; 0]);
        members[1].after = Some(Minor(9));
        assert_eq!(waiting(&members), [0; 0]);
    }

    #[test]
    fn a_cycle_ends() {
        let members = [member(0, Some(1)), member(1, Some(0))];
        assert_eq!(waiting(&members), [0; 0]);
    }
}
