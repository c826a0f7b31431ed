//! The project's own commands: check, test, demo, vm, bench, sim.

fn main() {}
