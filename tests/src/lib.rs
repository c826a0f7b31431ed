//! End to end: pairs of daemons, and guests with a real kernel and the real DRBD as peer.
//!
//! The library holds what such tests are made of; `tests/` holds the tests, and `cargo xtask`
//! (`vm`, `demo`, `bench`, `test`) is built from the same parts:
//!
//! - [`machine`]: the packages this machine needs, installed where that is possible;
//! - [`guest`]: a Debian kernel under software emulation with this machine's own root;
//! - [`shell`]: commands, here or in a guest;
//! - [`replica`]: one side of a resource, the real DRBD's or ours, driven by the same verbs;
//! - [`package`]: the Debian package, of built programs;
//! - [`pair`]: two of our daemons side by side on this machine, without root;
//! - [`nbd`], [`target`], [`workload`]: a client, and writes that can be checked after any crash;
//! - [`images`]: what QEMU's tools do with the images of guests on a device;
//! - [`relay`]: a connection that loses a bit where a test wants it;
//! - [`runner`]: a test harness whose tests may say that they were skipped, and why.

pub mod guest;
pub mod images;
pub mod machine;
pub mod nbd;
pub mod package;
pub mod pair;
pub mod relay;
pub mod replica;
pub mod runner;
pub mod shell;
pub mod target;
pub mod workload;
