//! The replication engine: every decision DRBD takes, with no I/O, no clock and no threads.
//!
//! [`Engine`] is a function of what happened: events go in ([`interface::Event`]), actions come out
//! ([`interface::Action`]), and the time is an argument. It is fully deterministic, so the daemon runs it on real
//! disks and sockets and the simulator on invented ones, and a run that went wrong can be had again from its seed.
//!
//! Where to look:
//!
//! * [`interface`]: what goes in and comes out;
//! * [`state`]: DRBD's rules about states, [`generation`]: about who has the newer data; both pure functions;
//! * `change`: a change of state from the wish to its consequences;
//! * `request`: what clients of the device ask for; `peer`: what the peer asks for;
//! * `disk`: the backing device, activity log, bitmap and superblock; `resync`: making two disks equal;
//! * [`dependency`]: which volumes of a node wait for others (`resync-after`), a pure function;
//! * `connection`: from the first call to the loss; `command`: what the administrator wants.
//!
//! Sections cited as "states spec", "io spec" and so on are those of the project's specification of DRBD 8.4.11.
#![forbid(unsafe_code)]

pub mod activity_log;
pub mod bitmap;
#[cfg(feature = "deliberate-bugs")]
pub mod bugs;
#[cfg(not(feature = "deliberate-bugs"))]
mod bugs;
mod change;
mod command;
mod connection;
pub mod dependency;
mod disk;
mod engine;
pub mod generation;
mod generations;
mod handlers;
mod inheritance;
pub mod interface;
pub mod intervals;
mod peer;
mod random;
mod request;
mod resync;
pub mod resync_extents;
mod sending;
mod size;
mod slab;
pub mod state;
mod status;
mod undo;
mod volume;

pub use engine::Engine;
