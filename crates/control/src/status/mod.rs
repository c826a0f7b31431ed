//! What a node looks like at one moment, and every text made of it.
//!
//! The daemon fills a [`NodeSnapshot`] (or one [`ResourceSnapshot`] per change for event streams); everything else
//! in this module is pure formatting: `/proc/drbd`, `drbdsetup status`, `show`, `sh-status`, `show-gi`, `events2`
//! and the metrics (status spec 2 to 5, 10.1, 12.5).

mod snapshot;

pub use snapshot::{
    BackingSnapshot, ConnectionSnapshot, DeviceCounters, DeviceSnapshot, Generations, NodeSnapshot,
    ProgressKind, ProgressSnapshot, ResourceSnapshot, ResyncPause, SpeedMark, Suspension, WriteOrdering,
};
