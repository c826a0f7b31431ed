//! The records of the folder `states`, as far as these tests read them.

use std::collections::BTreeMap;

use serde::Deserialize;

/// What there is for side `a` and side `b`.
pub(crate) type Sides<T> = BTreeMap<String, T>;

/// Names of the sides, in the order of the nodes of a pair.
pub(crate) const SIDES: [&str; 2] = ["a", "b"];

/// The metadata a side starts with.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct Metadata {
    pub(crate) gi: [String; 4],
    pub(crate) flags: Vec<String>,
    #[serde(default)]
    pub(crate) bits_set: Bits,
    #[serde(default)]
    pub(crate) last_agreed_sectors: Option<u64>,
}

/// Set bits: the first so many, or these.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum Bits {
    First(u64),
    These(Vec<u64>),
}

impl Default for Bits {
    fn default() -> Self {
        Self::First(0)
    }
}

/// A side as it is started.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct Setup {
    pub(crate) metadata: Option<Metadata>,
    #[serde(default)]
    pub(crate) attached: bool,
    #[serde(default)]
    pub(crate) disk_options: Vec<String>,
    #[serde(default)]
    pub(crate) resource_options: Vec<String>,
    #[serde(default)]
    pub(crate) handler_exit: BTreeMap<String, i32>,
    #[serde(default)]
    pub(crate) commands_before_connect: Vec<Vec<String>>,
    #[serde(default)]
    pub(crate) held_open: bool,
    #[serde(flatten)]
    pub(crate) state: State,
}

/// A state as recorded; an empty volume has `conn` "Unconfigured" and little else.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct State {
    pub(crate) conn: Option<String>,
    pub(crate) role: Option<String>,
    pub(crate) peer: Option<String>,
    pub(crate) disk: Option<String>,
    pub(crate) pdsk: Option<String>,
    pub(crate) flags: Option<String>,
    pub(crate) oos_kb: Option<u64>,
    pub(crate) gi: Option<[String; 4]>,
    pub(crate) ed_uuid: Option<String>,
    pub(crate) metadata_flags_on_disk: Option<Vec<String>>,
    pub(crate) last_agreed_sectors: Option<u64>,
    pub(crate) metadata_after_down: Option<Metadata>,
}

/// Two nodes that meet: `uuid-handshake.jsonl`, `after-sb.jsonl`.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Meeting {
    pub(crate) id: String,
    pub(crate) connect_order: String,
    pub(crate) net_options: Sides<Vec<String>>,
    pub(crate) before: Sides<Setup>,
    #[serde(rename = "final")]
    pub(crate) after: Sides<State>,
    /// What depends on time.
    #[serde(default)]
    pub(crate) notes: Vec<String>,
    pub(crate) log: Sides<Vec<String>>,
}

/// One command: `commands.jsonl`.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct CommandCase {
    pub(crate) id: String,
    pub(crate) scenario: String,
    pub(crate) before: Sides<State>,
    pub(crate) on: String,
    pub(crate) cmd: Vec<String>,
    pub(crate) exit: Option<i32>,
    #[serde(default)]
    pub(crate) output: String,
    pub(crate) after: Sides<State>,
    #[serde(default)]
    pub(crate) log: Sides<Vec<String>>,
}

/// A script: `misc.jsonl`, `fencing.jsonl`.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Script {
    pub(crate) id: String,
    pub(crate) connected_at_start: bool,
    pub(crate) net_options: Sides<Vec<String>>,
    pub(crate) setup: Sides<Setup>,
    pub(crate) start: Sides<State>,
    pub(crate) steps: Vec<ScriptStep>,
}

/// A step of a script.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct ScriptStep {
    pub(crate) on: String,
    pub(crate) cmd: Vec<String>,
    pub(crate) exit: Option<i32>,
    #[serde(default)]
    pub(crate) output: String,
    #[serde(default)]
    pub(crate) io_result: Option<String>,
    #[serde(default)]
    pub(crate) io_seen_after_step: Vec<RequestSeen>,
    /// `None` for a side that is down.
    pub(crate) after: Sides<Option<State>>,
    #[serde(default)]
    pub(crate) log: Sides<Vec<String>>,
}

/// What had become of an earlier request.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct RequestSeen {
    pub(crate) op: String,
    pub(crate) on: String,
    pub(crate) result: String,
}
