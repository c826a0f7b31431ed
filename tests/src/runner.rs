//! A small test harness whose tests may say that they were skipped, and why.
//!
//! It takes the arguments of the standard one that matter (a filter, `--list`, `--exact`, `--skip`) and
//! ends with the standard one's last line, so that whoever counts tests needs not know the difference.
//! Tests run one after the other, or a few at a time where their own program says so.

use std::num::NonZero;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use anyhow::Result;

use crate::guest::EmulatorDied;
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

    /// A test of the long run (`UDRBD_TEST_LONG`), left out of the usual one.
    pub const fn long(name: &'static str, run: fn() -> Result<()>) -> Self {
        Self { name, long: true, run }
    }
}

/// Whether this is the long run.
pub fn is_long() -> bool {
    std::env::var_os("UDRBD_TEST_LONG").is_some()
}

/// Runs the tests that the arguments choose, one after the other.
pub fn main(cases: &[Case]) -> ExitCode {
    run_chosen(cases, 1)
}

/// Runs the tests that the arguments choose: the first by itself, which makes what all need, then as many at a time as there
/// are processors, `most` at the most.
pub fn main_together(cases: &[Case], most: usize) -> ExitCode {
    let processors = std::thread::available_parallelism().map_or(1, NonZero::get);
    run_chosen(cases, processors.min(most))
}

fn run_chosen(cases: &[Case], jobs: usize) -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let has = |flag: &str| arguments.iter().any(|argument| argument == flag);
    let long_run = is_long();
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
        // They are another run's, and no part of this one that was left out. Who names one wants it.
        .filter(|case| !case.long || long_run || has("--exact") || has("--list"))
        .collect();
    if has("--list") {
        chosen.iter().for_each(|case| println!("{}: test", case.name));
        return ExitCode::SUCCESS;
    }
    run_all(&chosen, cases.len(), jobs)
}

/// What became of the tests so far.
#[derive(Default)]
struct Results {
    passed: usize,
    skipped: usize,
    failures: Vec<&'static str>,
}

fn run_all(chosen: &[&Case], total: usize, jobs: usize) -> ExitCode {
    println!("\nrunning {} tests", chosen.len());
    let results = Mutex::new(Results::default());
    let begin = Instant::now();
    if let Some(first) = chosen.first() {
        run(first, &results);
    }
    let next = AtomicUsize::new(1);
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                while let Some(case) = chosen.get(next.fetch_add(1, Ordering::Relaxed)) {
                    run(case, &results);
                }
            });
        }
    });
    let Results { passed, skipped, failures } = results.into_inner().unwrap_or_else(PoisonError::into_inner);
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

fn run(case: &Case, results: &Mutex<Results>) {
    let results = || results.lock().unwrap_or_else(PoisonError::into_inner);
    let start = Instant::now();
    let play = || {
        catch_unwind(AssertUnwindSafe(case.run))
            .unwrap_or_else(|_| Err(anyhow::anyhow!("it panicked, see above")))
    };
    let mut result = play();
    if let Err(error) = &result
        && error.downcast_ref::<EmulatorDied>().is_some()
    {
        println!("test {}: {error:#}; once more", case.name);
        result = play();
    }
    let seconds = start.elapsed().as_secs_f32();
    let mut results = results();
    match result {
        Ok(()) => {
            results.passed += 1;
            println!("test {} ... ok ({seconds:.1} s)", case.name);
        }
        Err(error) => match machine::skip_reason(&error) {
            Some(reason) => {
                results.skipped += 1;
                println!("test {} ... skipped: {reason}", case.name);
            }
            None => {
                println!("test {} ... FAILED ({seconds:.1} s)\n{error:#}\n", case.name);
                results.failures.push(case.name);
            }
        },
    }
}
