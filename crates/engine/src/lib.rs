//! The replication engine: every decision DRBD takes, with no I/O, no clock and no threads.

pub mod bitmap;
pub mod intervals;
pub mod state;
