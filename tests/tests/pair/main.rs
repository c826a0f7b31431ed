//! Two daemons on one machine, over its loopback, without root: see `cases`.

fn main() {}
