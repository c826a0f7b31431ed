//! What a node looks like at one moment, and every text made of it.
//!
//! The daemon fills a [`NodeSnapshot`] (or one [`ResourceSnapshot`] per change for event streams); everything else
//! in this module is pure formatting: `/proc/drbd`, `drbdsetup status`, `show`, `sh-status`, `show-gi`, `events2`
//! and the metrics (status spec 2 to 5, 10.1, 12.5).

mod broadcast;
mod events2;
mod generations;
mod json;
mod metrics;
mod proc_drbd;
mod progress;
mod query;
mod show;
mod snapshot;
mod split_brain;
mod text;
mod words;
mod wrap;

pub use broadcast::{BroadcastPrinter, BroadcastScope};
pub use events2::{EventLine, EventPrinter, EventStyle};
pub use generations::{NoGenerations, generations_of, get_gi, show_gi};
pub use json::status_json;
pub use metrics::{DaemonMetrics, metrics};
pub use proc_drbd::{DRBD_VERSION, VERSION_LINE, proc_drbd};
pub use progress::progress_bar;
pub use query::{
    UNCONFIGURED, cstate_line, dstate_line, role_line, sh_status_all, sh_status_minor, sh_status_resource,
    shell_escape,
};
pub use show::{show, show_minor};
pub use snapshot::{
    BackingSnapshot, ConnectionSnapshot, DeviceCounters, DeviceSnapshot, Generations, NodeSnapshot,
    ProgressKind, ProgressSnapshot, ResourceSnapshot, ResyncPause, SpeedMark, Suspension, UndoSnapshot,
    WriteOrdering,
};
pub use split_brain::{
    ChangedRegion, FoundSplitBrain, KnownSplitBrain, PolicyOutcome, PolicyOutlook, SplitBrainEnd,
    SplitBrainReport, SplitBrainSide, VolumeSplitBrain, WhichNode,
};
pub use text::{StatusStyle, status_text};
pub use words::{connection_word, replication_word};
pub use wrap::Wrapper;
