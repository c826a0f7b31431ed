//! `cargo xtask test`: every suite, and one last line that counts them all.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result};
use clap::Args;
use udrbd_tests::guest::{KERNEL_VARIABLE, KernelChoice};
use udrbd_tests::machine;

use crate::workspace;

/// Seeds of the simulator in the usual run and in the long one.
const SEEDS: &str = "8000";
const SEEDS_LONG: &str = "100000";

/// Which tests to run.
#[derive(Args)]
pub(crate) struct Options {
    /// Also run what takes hours: more seeds, larger disks.
    #[arg(long)]
    long: bool,
    /// Leave out everything that needs a guest.
    #[arg(long)]
    no_guests: bool,
}

/// Counts of one suite or all of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Counts {
    passed: u64,
    failed: u64,
    skipped: u64,
}

impl Counts {
    fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }

    fn one(passed: bool) -> Self {
        Self { passed: u64::from(passed), failed: u64::from(!passed), skipped: 0 }
    }
}

/// What is kept of a run for its end.
#[derive(Default)]
struct Report {
    counts: Counts,
    lines: Vec<String>,
    times: Vec<String>,
}

/// Runs everything and prints `N passed, N failed, N skipped` as the last line.
///
/// # Errors
///
/// If nothing can be run at all.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let mut report = Report::default();
    let begin = Instant::now();
    if let Err(error) = workspace::build_release() {
        // Without binaries the suites that need them say that they were skipped; this is why.
        report.note(machine::skip_reason(&error).map_or_else(
            || (Counts::one(false), format!("FAILED: build: {error:#}")),
            |reason| (Counts { skipped: 1, ..Counts::default() }, format!("skipped: build: {reason}")),
        ));
    }
    let test = |words: &[&str]| {
        let mut command = workspace::cargo();
        command.arg("test").arg("--no-fail-fast").args(words);
        if options.long {
            command.env("UDRBD_TEST_LONG", "1");
        }
        command
    };
    let mut units = test(&["--workspace", "--exclude", "udrbd-tests"]);
    units.args(workspace::features());
    report.suite("unit, vector and property tests", units);
    report.suite("test library", test(&["-p", "udrbd-tests", "--lib"]));
    let seeds = if options.long { SEEDS_LONG } else { SEEDS };
    if let Some(command) = simulator(&["--seeds", seeds]) {
        report.program(&format!("simulator, {seeds} seeds"), command);
    }
    let failing = if options.long { "100000" } else { "3000" };
    if let Some(command) = simulator(&["--failing-disks", "--seeds", failing]) {
        report.program(&format!("simulator, failing disks, {failing} seeds"), command);
    }
    if let Some(command) = simulator(&["--all-bugs"]) {
        report.program("simulator, every deliberate bug is found", command);
    }
    report.suite("pairs on this machine", test(&["-p", "udrbd-tests", "--test", "pair"]));
    report.program("demo", own(&["demo", "--once"])?);
    if options.no_guests {
        report.note((Counts { skipped: 1, ..Counts::default() }, "skipped: guests: --no-guests".to_owned()));
    } else {
        report.suite("guests", test(&["-p", "udrbd-tests", "--test", "guest"]));
        if options.long {
            // What depends on the kernel's ublk driver.
            let mut newer =
                test(&["-p", "udrbd-tests", "--test", "guest", "--", "block_device", "survivor_"]);
            newer.env(KERNEL_VARIABLE, KernelChoice::NAMES[1]);
            report.suite("block devices on a newer kernel", newer);
        }
    }

    println!("\n{:.0} s in all:", begin.elapsed().as_secs_f32());
    report.times.iter().chain(&report.lines).for_each(|line| println!("  {line}"));
    let Counts { passed, failed, skipped } = report.counts;
    println!("{passed} passed, {failed} failed, {skipped} skipped");
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The simulator's program with `words`, if this checkout has it.
pub(crate) fn simulator(words: &[&str]) -> Option<Command> {
    let folder = workspace::root().join("crates/simulator/src");
    if !folder.join("main.rs").is_file() && !folder.join("bin").is_dir() {
        return None;
    }
    let mut command = workspace::cargo();
    command.args(["run", "--quiet", "--release", "-p", "udrbd-simulator"]);
    // Only a simulator that looks for deliberate bugs is built with them.
    if words.iter().any(|word| word.starts_with("--bug") || *word == "--all-bugs") {
        command.args(["--features", "deliberate-bugs"]);
    }
    command.arg("--").args(words);
    Some(command)
}

/// This very program with other words.
fn own(words: &[&str]) -> Result<Command> {
    let program = std::env::current_exe().context("the path of this program")?;
    let mut command = Command::new(program);
    command.args(words).current_dir(workspace::root()).stdin(Stdio::null());
    Ok(command)
}

impl Report {
    fn note(&mut self, (counts, line): (Counts, String)) {
        self.counts.add(counts);
        self.lines.push(line);
    }

    /// A suite that counts its own tests, by the lines of Rust's test harness.
    fn suite(&mut self, name: &str, mut command: Command) {
        let start = Instant::now();
        println!("\n=== {name}");
        command.stdout(Stdio::piped());
        let mut counts = Counts::default();
        let ended = command.spawn().and_then(|mut child| {
            if let Some(output) = child.stdout.take() {
                for line in BufReader::new(output).lines() {
                    let line = line?;
                    println!("{line}");
                    counts.add(result_line(&line).unwrap_or_default());
                    self.lines.extend(notable(&line).map(|text| format!("{name}: {text}")));
                }
            }
            child.wait()
        });
        let good = ended.as_ref().is_ok_and(std::process::ExitStatus::success);
        if !good && counts.failed == 0 {
            // It did not get as far as to count: it does not build, or was killed.
            counts.failed = 1;
            self.lines
                .push(format!("FAILED: {name}: {}", ended.map_or_else(|e| e.to_string(), |s| s.to_string())));
        }
        self.finish(name, counts, start);
    }

    /// A program that is one test: it passes if it succeeds.
    fn program(&mut self, name: &str, mut command: Command) {
        let start = Instant::now();
        println!("\n=== {name}");
        let output = command.stderr(Stdio::piped()).spawn().and_then(std::process::Child::wait_with_output);
        let (good, message) = match output {
            Ok(output) => (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned()),
            Err(error) => (false, error.to_string()),
        };
        eprint!("{message}");
        let reason = message.lines().find_map(|line| line.strip_prefix("skipped: "));
        let counts = match (good, reason) {
            (true, _) => Counts::one(true),
            (false, Some(reason)) => {
                self.lines.push(format!("skipped: {name}: {reason}"));
                Counts { skipped: 1, ..Counts::default() }
            }
            (false, None) => {
                self.lines.push(format!("FAILED: {name}"));
                Counts::one(false)
            }
        };
        self.finish(name, counts, start);
    }

    fn finish(&mut self, name: &str, counts: Counts, start: Instant) {
        self.counts.add(counts);
        let Counts { passed, failed, skipped } = counts;
        let seconds = start.elapsed().as_secs_f32();
        self.times
            .push(format!("{seconds:5.0} s  {name}: {passed} passed, {failed} failed, {skipped} skipped"));
    }
}

/// The counts of a harness's last line.
fn result_line(line: &str) -> Option<Counts> {
    let rest = line.strip_prefix("test result: ")?;
    let number = |what: &str| -> Option<u64> {
        let before = rest.split(what).next()?;
        before.split_whitespace().last()?.parse().ok()
    };
    Some(Counts { passed: number(" passed")?, failed: number(" failed")?, skipped: number(" ignored")? })
}

/// A failed or skipped test's line, as it is repeated at the end.
fn notable(line: &str) -> Option<String> {
    let (name, verdict) = line.strip_prefix("test ")?.split_once(" ... ")?;
    let wanted = ["FAILED", "skipped", "ignored"].iter().any(|word| verdict.starts_with(word));
    wanted.then(|| format!("{name}: {verdict}"))
}

/// Runs the simulator with the words of `cargo xtask sim`.
///
/// # Errors
///
/// If there is none in this checkout or it cannot be run.
pub(crate) fn simulate(words: &[String]) -> Result<ExitCode> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let mut command = simulator(&words).context("this checkout has no simulator program")?;
    let status = command.status().context("cannot run cargo")?;
    Ok(ExitCode::from(u8::try_from(status.code().unwrap_or(1)).unwrap_or(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn result_lines_are_counted() {
        let line = "test result: FAILED. 12 passed; 3 failed; 1 ignored; 0 measured; 4 filtered out; finished in 0.1s";
        assert_eq!(result_line(line), Some(Counts { passed: 12, failed: 3, skipped: 1 }));
        assert_eq!(result_line("test result"), None);
        assert_eq!(result_line("running 3 tests"), None);
    }

    #[test]
    fn what_was_skipped_or_failed_is_repeated() {
        assert_eq!(notable("test a::b ... ok"), None);
        assert_eq!(notable("test a ... skipped: no qemu").as_deref(), Some("a: skipped: no qemu"));
        assert_eq!(notable("test a ... ignored, slow").as_deref(), Some("a: ignored, slow"));
    }
}
