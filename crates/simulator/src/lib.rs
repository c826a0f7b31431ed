//! Two engines on simulated disks, network, operators and power, driven from a seed.
//!
//! A run is decided by one number: the sizes of the devices, every delay, what clients write, when the power goes and
//! what is lost with it. The same program and the same seed give the same run, so a bug found once can be looked at as
//! often as it takes.
//!
//! * `plan`: what a seed means; `aims`: plans that concentrate on a narrow window; `disk` and `network`: what can go wrong
//!   with them;
//! * `world`: the clock and the order of things; `traps`: what waits for a moment instead of a time; `machine`: what a
//!   runtime does for an engine; `clients` and `administrator`: who use it;
//! * `several`: runs with two volumes; `growth`: devices that grow; `rot`: disks that rot;
//! * `check` and `audit`: the rules (io spec 21); `coverage`: what was seen;
//! * [`run`] plays one seed.
#![forbid(unsafe_code)]

mod administrator;
mod aims;
mod audit;
mod check;
mod clients;
mod coverage;
mod deeds;
mod disk;
mod fencing;
mod growth;
mod machine;
mod network;
mod node;
mod plan;
mod random;
mod rot;
mod several;
mod trace;
mod traps;
mod verifies;
mod world;

pub use check::Violation;
pub use coverage::Coverage;
pub use plan::{Moment, Operation, Plan, Step};
pub use world::Outcome;

#[cfg(feature = "deliberate-bugs")]
pub use udrbd_engine::bugs::Bug;

/// No bug: there are none without the feature `deliberate-bugs`.
#[cfg(not(feature = "deliberate-bugs"))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {}

#[cfg(not(feature = "deliberate-bugs"))]
impl std::str::FromStr for Bug {
    type Err = ();

    fn from_str(_: &str) -> Result<Self, ()> {
        Err(())
    }
}

/// The names of the deliberate bugs.
pub fn bugs() -> Vec<String> {
    #[cfg(feature = "deliberate-bugs")]
    return Bug::ALL.iter().map(|bug| bug.name().to_owned()).collect();
    #[cfg(not(feature = "deliberate-bugs"))]
    Vec::new()
}

/// Plays a plan. `tracing`: tell on standard output what happens.
pub fn run(plan: Plan, tracing: bool) -> Outcome {
    world::World::new(plan, tracing).run()
}
