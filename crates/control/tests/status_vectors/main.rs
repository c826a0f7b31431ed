//! Texts the real DRBD printed, read into snapshots and printed again: every byte has to come back.
//!
//! A text shows a snapshot only in part, so each file is its own source; what it does not show stays at a default.
//! Besides the copies in this project, the tests run over the folder that `UDRBD_EXTRA_VECTORS` names.

mod broadcast;
mod commands;
mod events;
mod proc_file;
mod states;

use std::fs;
use std::path::{Path, PathBuf};

use udrbd_control::Address;
use udrbd_control::options::NetOptions;
use udrbd_control::status::ResourceSnapshot;
use udrbd_units::ConnectionState;

/// The folders with vectors: the project's own, and the extra one if it is named.
fn roots() -> Vec<PathBuf> {
    let mut roots = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/status")];
    if let Some(extra) = std::env::var_os("UDRBD_EXTRA_VECTORS") {
        roots.push(Path::new(&extra).join("status"));
    }
    roots
}

/// The files below `part` of every root, with their texts.
fn files(part: &str) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    for root in roots() {
        collect(&root.join(part), &mut found);
    }
    found.sort();
    found.into_iter().filter_map(|path| fs::read_to_string(&path).ok().map(|text| (path, text))).collect()
}

fn collect(folder: &Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect(&path, found);
        } else {
            found.push(path);
        }
    }
}

fn file_name(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

/// Runs `check` over the files, tells of every one that fails, and fails if any did or if there were too few.
fn check_all(
    files: Vec<(PathBuf, String)>,
    at_least: usize,
    check: impl Fn(&Path, &str) -> Result<(), String>,
) {
    let mut failures = Vec::new();
    for (path, text) in &files {
        if let Err(problem) = check(path, text) {
            failures.push(format!("{}:\n{problem}", path.display()));
        }
    }
    assert!(failures.is_empty(), "{} of {} differ\n{}", failures.len(), files.len(), failures.join("\n"));
    assert!(files.len() >= at_least, "only {} files", files.len());
}

/// Compares two texts, and shows the first line that differs.
fn same(actual: &str, expected: &str) -> Result<(), String> {
    if actual == expected {
        return Ok(());
    }
    let mut lines = actual.split('\n').zip(expected.split('\n')).enumerate();
    match lines.find(|(_, (ours, theirs))| ours != theirs) {
        Some((number, (ours, theirs))) => {
            Err(format!("  line {}\n  ours:   {ours:?}\n  theirs: {theirs:?}", number + 1))
        }
        None => Err(format!("  ours has {} bytes, theirs {}", actual.len(), expected.len())),
    }
}

/// Gives a connection some addresses, as outputs that show a peer imply.
fn give_addresses(resource: &mut ResourceSnapshot) {
    let address = |text: &str| text.parse::<Address>().expect("an address");
    resource.connection.addresses = Some((address("ipv4:127.0.0.1:7788"), address("ipv4:127.0.0.1:7789")));
    resource.connection.options = Some(NetOptions::default());
}

/// The state of the sockets that `connection:` names.
fn connection_of_word(word: &str) -> ConnectionState {
    match word {
        "Connecting" => ConnectionState::WFConnection,
        "Connected" => ConnectionState::WFReportParams,
        other => other.parse().expect("a connection state"),
    }
}

/// The state of a volume that `replication:` names, on a connection in `connection`.
fn replication_of_word(word: &str, connection: ConnectionState) -> ConnectionState {
    match word {
        "Off" => connection,
        "Established" => ConnectionState::Connected,
        other => other.parse().expect("a replication state"),
    }
}
