//! What the real DRBD decided, recorded, against the pure decision functions of `state` and `generation`.

mod changes;
#[path = "../common/mod.rs"]
mod common;
mod handshake;
mod records;
