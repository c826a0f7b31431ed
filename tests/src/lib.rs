//! End to end: pairs of daemons, and guests with a real kernel and the real DRBD as peer.
