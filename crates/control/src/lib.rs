//! What the command line and the daemon say to each other; status, events, metrics.
