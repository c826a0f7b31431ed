//! `cargo xtask check`: formatting, clippy without a warning, and the rules no compiler knows.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result};

use crate::workspace;

/// Longest source file, in lines.
const LINES_MAX: usize = 800;

/// How far above an `unsafe` its reason may stand, in lines.
const SAFETY_DISTANCE: usize = 8;

/// Runs everything, prints what is wrong, and fails if there is anything.
///
/// # Errors
///
/// If the tools cannot be run.
pub(crate) fn run() -> Result<ExitCode> {
    let mut good = true;
    let clippy = |features: &[&'static str]| {
        let words = ["clippy", "--quiet", "--workspace", "--all-targets"];
        let mut words: Vec<&str> = words.into_iter().chain(features.iter().copied()).collect();
        words.extend(["--", "-D", "warnings"]);
        words
    };
    let mut runs = vec![vec!["fmt", "--all", "--check"], clippy(&[])];
    if !workspace::features().is_empty() {
        runs.push(clippy(workspace::features()));
    }
    for words in runs {
        let status = workspace::cargo().args(&words).status().context("cannot run cargo")?;
        if !status.success() {
            eprintln!("cargo {} failed", words.join(" "));
            good = false;
        }
    }
    let complaints = tidy()?;
    for complaint in &complaints {
        eprintln!("{complaint}");
    }
    Ok(if good && complaints.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What is untidy in the files git knows, one line each.
///
/// # Errors
///
/// If git or a file cannot be read.
fn tidy() -> Result<Vec<String>> {
    let root = workspace::root();
    let output = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(&root)
        .output()
        .context("cannot run git")?;
    let mut complaints = Vec::new();
    let mut sources = String::new();
    let mut named = Vec::new();
    for name in String::from_utf8_lossy(&output.stdout).lines() {
        // What the real DRBD wrote stays as it was.
        if name.contains("/data/") {
            continue;
        }
        let Ok(text) = fs::read_to_string(root.join(name)) else { continue };
        complaints.extend(tidy_text(name, &text));
        if name.ends_with(".rs") {
            complaints.extend(tidy_source(Path::new(name), &text));
            sources.push_str(&text);
        } else if name.ends_with(".md") {
            named.extend(tests_named(&text).into_iter().map(|test| (name.to_owned(), test)));
        }
    }
    let missing = named.into_iter().filter(|(_, test)| !sources.contains(test.as_str()));
    complaints.extend(missing.map(|(name, test)| format!("{name}: there is no test `{test}`")));
    Ok(complaints)
}

/// What a document names in quotes that looks like a test: many words joined by underscores.
fn tests_named(text: &str) -> Vec<String> {
    let words = text.split('`').skip(1).step_by(2);
    let long = |word: &&str| word.matches('_').count() >= 3;
    let lower = |word: &&str| {
        word.chars().all(|letter| letter == '_' || letter.is_ascii_lowercase() || letter.is_ascii_digit())
    };
    words.filter(long).filter(lower).map(str::to_owned).collect()
}

/// Rules of every text file.
fn tidy_text(name: &str, text: &str) -> Vec<String> {
    // In pieces, so that this file does not break its own rule.
    let forbidden = [
        concat!("/wo", "rk/"),
        concat!("/ro", "ot/."),
        concat!("/home/", "user"),
        concat!("deb.", "debian.org"),
        concat!("crates", ".io/api"),
    ];
    let mut complaints = Vec::new();
    for (index, line) in text.lines().enumerate() {
        for words in forbidden.iter().filter(|words| line.contains(**words)) {
            complaints.push(format!("{name}:{}: `{words}` names one machine or one registry", index + 1));
        }
    }
    complaints
}

/// Rules of Rust files.
fn tidy_source(path: &Path, text: &str) -> Vec<String> {
    let name = path.display();
    let lines: Vec<&str> = text.lines().collect();
    let mut complaints = Vec::new();
    if lines.len() >= LINES_MAX {
        complaints
            .push(format!("{name}: {} lines; a file holds one idea in less than {LINES_MAX}", lines.len()));
    }
    let is_test = is_test_file(path);
    let in_runtime = path.starts_with("crates/runtime");
    for (index, line) in lines.iter().enumerate() {
        let code = line.split("//").next().unwrap_or(line);
        if code.trim() == "#[cfg(test)]" {
            break;
        }
        let at = index + 1;
        for word in [concat!("todo", "!("), concat!("unimplemented", "!("), concat!("dbg", "!(")] {
            if code.contains(word) {
                complaints.push(format!("{name}:{at}: `{word}` is not finished"));
            }
        }
        if !is_test && (code.contains(concat!(".unwrap", "()")) || code.contains(concat!(".expect", "(\""))) {
            complaints.push(format!("{name}:{at}: unwrap and expect belong into tests"));
        }
        if is_unsafe(code) {
            if !in_runtime {
                complaints.push(format!("{name}:{at}: unsafe belongs into crates/runtime"));
            }
            let above = &lines[index.saturating_sub(SAFETY_DISTANCE)..index];
            if !above.iter().chain([line]).any(|line| line.contains("SAFETY:") || line.contains("# Safety")) {
                complaints.push(format!("{name}:{at}: unsafe without a SAFETY comment"));
            }
        }
    }
    complaints
}

fn is_unsafe(code: &str) -> bool {
    let quoted = code.contains('"');
    !quoted && ["unsafe {", "unsafe impl", "unsafe fn"].iter().any(|words| code.contains(words))
}

/// Files that hold nothing but tests: in a `tests` or `benches` folder, or a module named so.
fn is_test_file(path: &Path) -> bool {
    let parts: PathBuf = path.with_extension("");
    parts.components().any(|part| {
        let part = part.as_os_str().to_string_lossy();
        part == "tests" || part == "benches" || part.ends_with("_tests") || part == "build.rs"
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_name_tests_in_quotes() {
        let text = "| `not_these` | `this_one_is_a_test`, `udrbdd --x_y_z_a` |\nthis_one_is_none";
        assert_eq!(tests_named(text), ["this_one_is_a_test"]);
    }

    fn source(text: &str) -> Vec<String> {
        tidy_source(Path::new("crates/x/src/lib.rs"), text)
    }

    #[test]
    fn unwrap_is_refused_outside_tests_only() {
        assert_eq!(source("fn f() { g().unwrap(); }\n").len(), 1);
        assert_eq!(
            source("// g().unwrap()\n#[cfg(test)]\nmod tests { fn f() { g().unwrap(); } }\n").len(),
            0
        );
        assert_eq!(tidy_source(Path::new("crates/x/tests/a.rs"), "fn f() { g().unwrap(); }\n").len(), 0);
    }

    #[test]
    fn unsafe_wants_its_reason_and_its_place() {
        assert_eq!(source("let x = unsafe { y() };\n").len(), 2);
        let runtime = Path::new("crates/runtime/src/ring.rs");
        assert_eq!(tidy_source(runtime, "// SAFETY: y is sound.\nlet x = unsafe { y() };\n").len(), 0);
        assert_eq!(tidy_source(runtime, "let x = unsafe { y() };\n").len(), 1);
    }

    #[test]
    fn long_files_and_machine_paths_are_refused() {
        assert_eq!(source(&"\n".repeat(LINES_MAX)).len(), 1);
        assert_eq!(tidy_text("a.md", concat!("see /wo", "rk/shared\n")).len(), 1);
    }
}
