//! The replication engine: every decision DRBD takes, with no I/O, no clock and no threads.
