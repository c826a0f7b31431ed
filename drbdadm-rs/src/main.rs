//! drbdadm, drbdsetup, drbdmeta and drbd-overview: one binary, by name.

fn main() {}
