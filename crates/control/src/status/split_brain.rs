//! What is known of a split brain: the answer to `split-brain-report`, and what the daemon keeps of it in a file.
//!
//! Times are microseconds since the epoch (UTC), identifiers 16 hexadecimal digits: numbers of JSON are too short for
//! them.

use serde::{Deserialize, Serialize};
use udrbd_units::{ConnectionState, DiskState, Minor, Role, VolumeNumber};

use crate::address::Address;

/// A resource.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct SplitBrainReport {
    /// The resource.
    pub resource: String,
    /// This node.
    pub node: String,
    /// The peer's name, where the command line knows it; the daemon does not.
    pub peer: Option<String>,
    /// When this was told.
    pub time_us: i64,
    /// The connection now, that of the volume with the worst.
    pub connection: ConnectionState,
    /// The peer's address, while the connection is configured.
    pub peer_address: Option<Address>,
    /// The volumes by number.
    pub volumes: Vec<VolumeSplitBrain>,
}

/// One volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct VolumeSplitBrain {
    /// Its number in the resource.
    pub volume: VolumeNumber,
    /// Its number on the node.
    pub minor: Minor,
    /// The size of the device; 0 while unknown.
    pub size_sectors: u64,
    /// The own role now.
    pub role: Role,
    /// The own disk now.
    pub disk: DiskState,
    /// Who uses the device here.
    pub holders: Vec<String>,
    /// Blocks of 4 KiB that have changed here and the peer does not have, now; `None` without a disk.
    pub changed_blocks: Option<u64>,
    /// Where they are, now; `None` without a disk.
    pub regions: Option<Vec<ChangedRegion>>,
    /// How the nodes parted, and what was found when they met again.
    #[serde(flatten)]
    pub known: KnownSplitBrain,
}

/// A part of the device with changed blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ChangedRegion {
    /// The first block of 4 KiB.
    pub first_block: u64,
    /// How many blocks it spans.
    pub blocks: u64,
    /// How many of them have changed.
    pub changed_blocks: u64,
}

/// What a node remembers of its peer, also when its daemon ends.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct KnownSplitBrain {
    /// When the nodes last came together.
    pub connected_us: Option<i64>,
    /// When this node lost the peer after that; `None` while they are connected, or where the daemon ended first.
    pub lost_us: Option<i64>,
    /// The last split brain found.
    pub found: Option<FoundSplitBrain>,
}

/// A split brain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct FoundSplitBrain {
    /// When it was found first.
    pub first_us: i64,
    /// When it was found last.
    pub last_us: i64,
    /// How often.
    pub times: u64,
    /// When the nodes had last come together before it.
    pub connected_us: Option<i64>,
    /// When this node lost the peer then.
    pub lost_us: Option<i64>,
    /// When the nodes came together again.
    pub ended_us: Option<i64>,
    /// What ended it, as far as the handshake said so.
    pub end: Option<SplitBrainEnd>,
    /// The youngest generation both nodes remember.
    pub ancestor: Option<String>,
    /// The rule of DRBD's comparison of identifiers.
    pub rule: u8,
    /// The generation both come from is in no bitmap slot: policies count only with `always-asbp`.
    pub ambiguous: bool,
    /// `always-asbp` was set.
    pub always_asbp: bool,
    /// This node, when it was found last.
    pub own: SplitBrainSide,
    /// The peer, as it told of itself then.
    pub peer: SplitBrainSide,
    /// What each policy would do.
    pub policies: Vec<PolicyOutlook>,
}

/// How a split brain ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct SplitBrainEnd {
    /// Whose data were kept.
    pub keeps: WhichNode,
    /// Every block was copied.
    pub full: bool,
    /// By `discard-my-data`, not by a policy.
    pub by_hand: bool,
}

/// One of the two nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WhichNode {
    /// The one that tells.
    Own,
    /// Its peer.
    Peer,
}

/// One node of a split brain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct SplitBrainSide {
    /// The generation of its data.
    pub current: String,
    /// The generation since which its bitmap counts.
    pub bitmap: String,
    /// Older generations, the youngest first.
    pub history: [String; 2],
    /// It was Primary already when its bitmap began to count, which is when the nodes parted.
    pub was_primary: bool,
    /// Its role.
    pub role: Role,
    /// Its disk.
    pub disk: DiskState,
    /// Blocks of 4 KiB that had changed there.
    pub changed_blocks: u64,
    /// It had crashed as Primary.
    pub crashed_primary: bool,
    /// It connected with `discard-my-data`.
    pub discard_my_data: bool,
}

/// What a policy would do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct PolicyOutlook {
    /// The nodes that would be Primary.
    pub primaries: Vec<WhichNode>,
    /// The option that counts then.
    pub option: String,
    /// Its value.
    pub policy: String,
    /// It was configured.
    pub configured: bool,
    /// What would come of it.
    pub outcome: PolicyOutcome,
}

/// What would come of a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PolicyOutcome {
    /// The nodes stay apart.
    StayApart,
    /// One node's data are kept, the other one's changes discarded.
    Keep {
        /// Whose data are kept.
        node: WhichNode,
        /// Every block is copied.
        full: bool,
    },
    /// The node that would lose is Primary: it runs `pri-lost-after-sb`, and they stay apart.
    CallPriLost {
        /// Whose data would be kept.
        node: WhichNode,
    },
    /// The node that would lose is Primary, and `rr-conflict` keeps it from being overwritten.
    PrimaryInTheWay {
        /// Whose data would be kept.
        node: WhichNode,
    },
    /// They connect without a resync.
    Connect,
}

impl SplitBrainReport {
    /// Whether a split brain keeps the nodes apart.
    pub fn is_split(&self) -> bool {
        self.volumes.iter().any(VolumeSplitBrain::is_split)
    }

    /// As JSON, with a line break at the end.
    pub fn to_json(&self) -> String {
        // Nothing of it can fail: no maps, no foreign types.
        serde_json::to_string_pretty(self).unwrap_or_default() + "\n"
    }
}

impl VolumeSplitBrain {
    /// Whether a split brain keeps this volume apart.
    pub fn is_split(&self) -> bool {
        self.known.found.as_ref().is_some_and(|found| found.ended_us.is_none())
    }
}
