//! Two whole engines taken through what two nodes of the real DRBD went through, from the same start to the same end.

#![expect(clippy::unwrap_used, reason = "a script that goes wrong is a failed test")]

mod commands;
#[path = "../common/mod.rs"]
mod common;
mod compare;
#[path = "../pair/harness.rs"]
#[allow(dead_code, reason = "the scripts of the other tests use the rest")]
mod harness;
mod meetings;
mod records;
mod scripts;
#[path = "../pair/side_file.rs"]
#[allow(dead_code, reason = "the tests of undos use it")]
mod side_file;
#[path = "../pair/stuck.rs"]
#[allow(dead_code, reason = "the scripts of the other tests use the rest")]
mod stuck;
mod world;
