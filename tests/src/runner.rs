//! A small test harness whose tests may say that they were skipped, and why.
//!
//! It takes the arguments of the standard one that matter (a filter, `--list`, `--exact`, `--skip`) and
//! ends with the standard one's last line, so that whoever counts tests needs not know the difference.
//! Tests run one after the other: each may fill the machine with guests.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;

use crate::machine;

/// One test.
pub struct Case {
    /// Its name: what goes right if it passes.
    pub name: &'static str,
    /// Longer tests run only with `UDRBD_TEST_LONG` set.
    pub long: bool,
    /// The test. A [`machine::Skip`] as its error counts as skipped.
    pub run: fn() -> Result<()>,
}

impl Case {
    /// A test of the usual run.
    pub const fn new(name: &'static str, run: fn() -> Result<()>) -> Self {
        Self { name, long: false, run }
    }

    /// A test of the long run.
    pub const fn long(name: &'static str, run: fn() -> Result<()>) -> Self {
        Self { name, long: true, run }
    }
}

/// Runs the tests that the arguments choose.
pub fn main(cases: &[Case]) -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let has = |flag: &str| arguments.iter().any(|argument| argument == flag);
    let mut filters = Vec::new();
    let mut excluded = Vec::new();
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            "--skip" => excluded.extend(words.next()),
            "--test-threads" | "--format" | "--color" | "-Z" => drop(words.next()),
            word if word.starts_with('-') => {}
            _ => filters.push(word),
        }
    }
    let matches =
        |name: &str, pattern: &str| if has("--exact") { name == pattern } else { name.contains(pattern) };
    let chosen: Vec<&Case> = cases
        .iter()
        .filter(|case| filters.is_empty() || filters.iter().any(|pattern| matches(case.name, pattern)))
        .filter(|case| !excluded.iter().any(|pattern| matches(case.name, pattern)))
        .collect();
    if has("--list") {
        chosen.iter().for_each(|case| println!("{}: test", case.name));
        return ExitCode::SUCCESS;
    }
    run_all(&chosen, cases.len())
}

fn run_all(chosen: &[&Case], total: usize) -> ExitCode {
    let long = std::env::var_os("UDRBD_TEST_LONG").is_some();
    println!("\nrunning {} tests", chosen.len());
    let (mut passed, mut skipped, mut failures) = (0, 0, Vec::new());
    let begin = Instant::now();
    for case in chosen {
        if case.long && !long {
            skipped += 1;
            println!("test {} ... skipped: only in the long run (--long)", case.name);
            continue;
        }
        let start = Instant::now();
        let result = catch_unwind(AssertUnwindSafe(case.run))
            .unwrap_or_else(|_| Err(anyhow::anyhow!("it panicked, see above")));
        let seconds = start.elapsed().as_secs_f32();
        match result {
            Ok(()) => {
                passed += 1;
                println!("test {} ... ok ({seconds:.1} s)", case.name);
            }
            Err(error) => match machine::skip_reason(&error) {
                Some(reason) => {
                    skipped += 1;
                    println!("test {} ... skipped: {reason}", case.name);
                }
                None => {
                    println!("test {} ... FAILED ({seconds:.1} s)\n{error:#}\n", case.name);
                    failures.push(case.name);
                }
            },
        }
    }
    if !failures.is_empty() {
        println!("\nfailures:");
        failures.iter().for_each(|name| println!("    {name}"));
    }
    println!(
        "\ntest result: {}. {passed} passed; {} failed; {skipped} ignored; 0 measured; {} filtered out; finished in {:.2}s\n",
        if failures.is_empty() { "ok" } else { "FAILED" },
        failures.len(),
        total - chosen.len(),
        begin.elapsed().as_secs_f32(),
    );
    if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
