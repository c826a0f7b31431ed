//! The replication engine: every decision DRBD takes, with no I/O, no clock and no threads.

pub mod activity_log;
pub mod bitmap;
pub mod intervals;
pub mod resync_extents;
pub mod state;
