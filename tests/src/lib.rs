//! End to end: pairs of daemons, and guests with a real kernel and the real DRBD as peer.
//!
//! The library holds what such tests are made of; `tests/` holds the tests, and `cargo xtask`
//! (`vm`, `demo`, `bench`, `test`) is built from the same parts:
//!
//! - [`machine`]: the packages this machine needs, installed where that is possible;
//! - [`guest`]: a Debian kernel under software emulation with this machine's own root;

pub mod guest;
pub mod machine;
