//! Runs of the real `drbdadm` over configurations: what it printed, complained about, called and returned.
//!
//! A run is made in this process, on a machine that exists in memory but for the files of the case: host name,
//! addresses, terminal and helper programs are those of the vector.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod machine;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use machine::Machine;
use serde::Deserialize;

/// One line of the manifest.
#[derive(Debug, Deserialize)]
struct Vector {
    id: String,
    dir: String,
    tool: String,
    argv0: String,
    args: Vec<String>,
    hostname: String,
    #[serde(default)]
    addrs: Vec<String>,
    etc: Option<String>,
    env: Option<BTreeMap<String, String>>,
    #[serde(default)]
    tty: bool,
    stdin: Option<String>,
    fakes: Option<String>,
    stdout: Option<String>,
    stderr: Option<String>,
    calls: Option<String>,
    exit: i32,
    tags: Vec<String>,
}

/// What a run left behind.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    stdout: String,
    stderr: String,
    calls: String,
    exit: i32,
}

fn read_expected(base: &Path, file: Option<&String>) -> Vec<u8> {
    file.map(|file| fs::read(base.join(file)).unwrap()).unwrap_or_default()
}

/// Versions are compared by their form: each is replaced by a word for the form it has.
fn without_versions(text: &str) -> String {
    let form = |value: &str| {
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        if value.len() == 8 && value.starts_with("0x") && value[2..].bytes().all(|b| b.is_ascii_hexdigit()) {
            "a version code"
        } else if value.split('.').count() == 3 && value.split('.').all(digits) {
            "a version"
        } else if value.starts_with("GIT-hash:") && value.len() > 10 {
            "a build tag"
        } else {
            "something else"
        }
    };
    let line = |line: &str| match line.split_once('=') {
        Some((name, value)) if name.starts_with("DRBD") && name != "DRBDADM_API_VERSION" => {
            format!("{name}={}", form(value))
        }
        Some(("_drbd_version", value)) => format!("_drbd_version={}", form(value)),
        _ if line.starts_with("GIT-hash: ") => form(line).to_owned(),
        _ => match line.strip_prefix("Version: ").and_then(|rest| rest.split_once(' ')) {
            Some((version, rest)) => format!("Version: {} {rest}", form(version)),
            None => line.to_owned(),
        },
    };
    text.split('\n').map(line).collect::<Vec<_>>().join("\n")
}

fn run(base: &Path, vector: &Vector) -> (Outcome, Outcome) {
    let directory = fs::canonicalize(base.join(&vector.dir)).unwrap();
    let directory = directory.to_str().unwrap();
    let mut machine = Machine::new(directory, vector);
    let arguments: Vec<String> =
        vector.args.iter().map(|argument| argument.replace("@DIR@", directory)).collect();
    let exit = drbdadm_rs::drbdadm::run_on(&mut machine, &vector.argv0, &arguments);
    let has_version = vector.tags.iter().any(|tag| tag == "version");
    let text = |bytes: &[u8]| {
        let text = String::from_utf8_lossy(bytes).replace(directory, "@DIR@");
        if has_version { without_versions(&text) } else { text }
    };
    let got = Outcome {
        stdout: text(&machine.stdout),
        stderr: text(&machine.stderr),
        calls: text(&machine.calls),
        exit,
    };
    let expected = Outcome {
        stdout: text(&read_expected(base, vector.stdout.as_ref())),
        stderr: text(&read_expected(base, vector.stderr.as_ref())),
        calls: text(&read_expected(base, vector.calls.as_ref())),
        exit: vector.exit,
    };
    (got, expected)
}

/// Runs every vector of a folder; the ids of those that differ, with how.
fn differing(base: &Path) -> (usize, Vec<String>) {
    let manifest = fs::read_to_string(base.join("manifest.jsonl")).unwrap();
    let mut runs = 0;
    let mut differing = Vec::new();
    for line in manifest.lines() {
        let vector: Vector = serde_json::from_str(line).unwrap();
        if vector.tool != "drbdadm-84" {
            continue;
        }
        runs += 1;
        let (got, expected) = run(base, &vector);
        if got != expected {
            differing.push(format!("{}\nexpected {expected:#?}\ngot {got:#?}\n", vector.id));
        }
    }
    (runs, differing)
}

fn check(base: &Path) {
    let (runs, differing) = differing(base);
    assert!(runs > 0, "no vectors in {}", base.display());
    assert!(differing.is_empty(), "{} of {runs} runs differ:\n{}", differing.len(), differing.join("\n"));
}

#[test]
fn config_vectors_of_the_real_drbdadm() {
    check(&PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/config"));
}

#[test]
fn extra_config_vectors_of_the_real_drbdadm() {
    let Some(folder) = std::env::var_os("UDRBD_EXTRA_VECTORS") else { return };
    let base = PathBuf::from(folder).join("config");
    if base.is_dir() {
        check(&base);
    }
}
