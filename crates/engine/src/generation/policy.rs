//! What the operator wants done when both nodes have changed their data.

use crate::interface::{AfterSplitBrain, NetOptions, RrConflict};

/// The net options a handshake reads (states spec 10.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResyncPolicies {
    /// `after-sb-0pri`: nobody is Primary.
    pub after_sb_0pri: AfterSplitBrain,
    /// `after-sb-1pri`: one is Primary.
    pub after_sb_1pri: AfterSplitBrain,
    /// `after-sb-2pri`: both are Primary.
    pub after_sb_2pri: AfterSplitBrain,
    /// `always-asbp`: use these policies for an ambiguous split brain too.
    pub always_asbp: bool,
    /// `rr-conflict`: a Primary would become the target.
    pub rr_conflict: RrConflict,
}

impl Default for ResyncPolicies {
    fn default() -> Self {
        Self::from(&NetOptions::default())
    }
}

impl From<&NetOptions> for ResyncPolicies {
    fn from(options: &NetOptions) -> Self {
        Self {
            after_sb_0pri: options.after_sb_0pri,
            after_sb_1pri: options.after_sb_1pri,
            after_sb_2pri: options.after_sb_2pri,
            always_asbp: options.always_asbp,
            rr_conflict: options.rr_conflict,
        }
    }
}

/// A policy of the peer in this node's words: what is local there is remote here (states spec 6.1).
#[must_use]
pub const fn seen_from_the_peer(policy: AfterSplitBrain) -> AfterSplitBrain {
    match policy {
        AfterSplitBrain::DiscardLocal => AfterSplitBrain::DiscardRemote,
        AfterSplitBrain::DiscardRemote => AfterSplitBrain::DiscardLocal,
        same => same,
    }
}
