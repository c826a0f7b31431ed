//! The engine against what the kernel's DRBD said on the wire.
//!
//! For each capture and each of its two nodes one engine takes the node's place: it starts with the node's metadata, is
//! given the administrator's commands and the writes of the capture, and hears the captured peer. It must say what the
//! captured node said. The captures of the directory named by `UDRBD_EXTRA_VECTORS` are tried too, if it is set.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "../../../wire/tests/captures/mod.rs"]
#[allow(dead_code, reason = "the wire crate's tests use the rest")]
mod captures;
mod commands;
mod compare;
mod judge;
mod node;
mod replay;
mod resync;
mod script;
mod start;

use std::path::PathBuf;

use replay::{Outcome, Replay};
use script::Script;

/// Every file of this capture.
fn paths(name: &str) -> Vec<PathBuf> {
    let own = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../wire/tests/data/wire");
    let extra = std::env::var_os("UDRBD_EXTRA_VECTORS").map(|extra| PathBuf::from(extra).join("wire"));
    let files = [Some(own), extra].into_iter().flatten().map(|folder| folder.join(format!("{name}.pcap")));
    let paths: Vec<PathBuf> = files.filter(|path| path.is_file()).collect();
    assert!(!paths.is_empty(), "{name} is missing");
    paths
}

/// How far a capture is reproduced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected {
    /// To its end, and what is then on disk.
    Whole,
    /// Up to a command the engine does not have.
    Until(&'static str),
    /// Not tried: something the engine does not have decides what is said.
    Lacking(&'static str),
}

use Expected::{Lacking, Until, Whole};

/// What A and B of this capture did, the engine does too.
fn reproduces(name: &str, expected: [Expected; 2]) {
    for path in paths(name) {
        let script = Script::load(&path);
        for (node, expected) in expected.into_iter().enumerate() {
            let outcome = match expected {
                Whole => Outcome::Whole,
                Until(command) => Outcome::Until(command.to_owned()),
                Lacking(_) => continue,
            };
            match Replay::new(&script, node).run() {
                Ok(found) => assert_eq!(found, outcome, "{name}"),
                Err(error) => panic!("{error}"),
            }
        }
    }
}

macro_rules! captures {
    ($($test:ident: $name:literal, $a:expr, $b:expr;)+) => {
        $(
            #[test]
            fn $test() {
                reproduces($name, [$a, $b]);
            }
        )+

        const NAMES: &[&str] = &[$($name),+];
    };
}

captures! {
    vectors_handshake_without_authentication: "01-handshake-noauth", Whole, Whole;
    vectors_handshake_with_sha1: "02-handshake-sha1", Whole, Whole;
    vectors_different_secrets: "02b-auth-wrong-secret", Whole, Whole;
    vectors_authentication_on_one_side: "02c-auth-one-side-only", Whole, Whole;
    vectors_writes_of_protocol_c: "03-writes-proto-C", Whole, Whole;
    vectors_full_initial_sync: "04-full-initial-sync", Whole, Whole;
    vectors_bitmap_resync: "05-bitmap-resync", Whole, Whole;
    vectors_online_verify: "06-online-verify", Whole, Whole;
    vectors_checksum_resync: "07-csum-resync", Whole, Whole;
    vectors_discards_and_zeroes: "08-discard-zeroes", Whole, Whole;
    vectors_data_integrity: "09-data-integrity", Whole, Whole;
    vectors_crossed_calls: "09b-integrity-zeroes-bug", Lacking("the same coins"), Lacking("the same coins");
    vectors_writes_of_protocol_a: "10-protocol-A", Whole, Whole;
    vectors_writes_of_protocol_b: "11-protocol-B", Whole, Whole;
    vectors_promotion_and_demotion: "12-promote-demote", Whole, Whole;
    vectors_ways_to_disconnect: "13-disconnect-variants", Whole, Whole;
    vectors_conflicting_writes:
        "14-dual-primary-conflict", Lacking("8.4.11 counts conflicting writes wrongly"), Lacking("8.4.11 counts conflicting writes wrongly");
    vectors_diskless_primary: "15-diskless-primary", Whole, Whole;
    vectors_thin_resync: "16-thin-resync", Whole, Whole;
    vectors_skipped_initial_sync: "17-skip-initial-sync", Whole, Whole;
    vectors_mixed_bitmap: "18-bitmap-mixed-rle", Whole, Whole;
    vectors_plain_bitmap: "18b-bitmap-plain", Whole, Whole;
    vectors_resync_under_io: "19-resync-under-io", Whole, Whole;
    vectors_split_brain: "20-split-brain", Whole, Whole;
    vectors_settings_that_do_not_match: "21-settings-mismatch", Whole, Whole;
    vectors_changed_net_options: "22-net-options-change", Whole, Whole;
    vectors_congestion: "23-congestion-ahead-behind", Lacking("8.4.11 begins no generation when it pulls ahead"), Whole;
    vectors_invalidate: "24-invalidate", Whole, Whole;
    vectors_resize: "25-resize", Whole, Whole;
    vectors_io_errors_of_a_secondary: "26-io-errors-on-secondary", Whole, Whole;
    vectors_io_errors_under_protocol_a: "26b-io-errors-proto-A", Whole, Whole;
    vectors_superseded_write_in_a_mixed_epoch:
        "27-two-primaries-mixed-epoch", Lacking("8.4.11 counts conflicting writes wrongly"), Lacking("8.4.11 counts conflicting writes wrongly");
    vectors_added_volume: "28-add-volume", Until("new-minor"), Until("new-minor");
    vectors_protocol_86: "proto86", Whole, Whole;
    vectors_protocol_95: "proto95", Whole, Whole;
    vectors_protocol_100: "proto100", Whole, Whole;
    vectors_protocol_101_without_features: "proto101-features0", Whole, Whole;
}

#[test]
fn vectors_are_all_judged() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../wire/tests/data/wire");
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let captures: Vec<PathBuf> = files.filter(|path| path.extension().is_some_and(|e| e == "pcap")).collect();
    assert_eq!(captures.len(), NAMES.len());
    for path in captures {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        assert!(NAMES.contains(&name.as_str()), "{name}");
    }
}

/// Captures of the other directory that this test does not know by name have to be reproduced as well.
#[test]
fn vectors_of_elsewhere_are_reproduced() {
    let Some(extra) = std::env::var_os("UDRBD_EXTRA_VECTORS") else { return };
    let Ok(files) = std::fs::read_dir(PathBuf::from(extra).join("wire")) else { return };
    for path in files.map(|entry| entry.unwrap().path()) {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        if path.extension().is_some_and(|e| e == "pcap") && !NAMES.contains(&name.as_str()) {
            let script = Script::load(&path);
            for node in 0..2 {
                Replay::new(&script, node).run().unwrap_or_else(|error| panic!("{error}"));
            }
        }
    }
}
