//! From a seed that breaks a rule to the shortest plan that still breaks it. Each attempt is a process of its own, so
//! that an engine that panics is judged like any other.

use std::process::{Command, Output};

use crate::Arguments;

/// Attempts to leave something out.
const ATTEMPTS_MAX: u32 = 400;
/// Lines of the trace that are shown.
const LINES: usize = 60;

/// This program with other words.
fn own(arguments: &Arguments, words: &[String]) -> Option<Output> {
    let program = std::env::current_exe().ok()?;
    let mut command = Command::new(program);
    command.args(words);
    if let Some(bug) = &arguments.bug {
        command.args(["--bug", bug]);
    }
    if arguments.failing_disks {
        command.arg("--failing-disks");
    }
    if arguments.growing_devices {
        command.arg("--growing-devices");
    }
    command.output().ok()
}

fn words(seed: u64, kept: &[usize]) -> Vec<String> {
    let kept: Vec<String> = kept.iter().map(usize::to_string).collect();
    let mut words = vec!["--seed".to_owned(), seed.to_string()];
    if !kept.is_empty() {
        words.extend(["--keep".to_owned(), kept.join(",")]);
    }
    words
}

/// Whether the seed breaks this rule also with these steps only.
fn breaks(seed: u64, kept: &[usize], rule: &str, arguments: &Arguments) -> bool {
    let mut words = words(seed, kept);
    words.push("--terse".to_owned());
    let broken = |output: Output| {
        !output.status.success() && String::from_utf8_lossy(&output.stdout).starts_with(rule)
    };
    !kept.is_empty() && own(arguments, &words).is_some_and(broken)
}

/// Tells the shortest plan found for a seed, and how its run ends.
pub(crate) fn tell(seed: u64, rule: &str, arguments: &Arguments) {
    let plan = arguments.plan(seed);
    let mut kept: Vec<usize> = (0..plan.steps.len()).collect();
    let mut attempts = 0;
    let mut size = kept.len() / 2;
    while size > 0 && attempts < ATTEMPTS_MAX {
        let mut from = 0;
        let mut shorter = false;
        while from < kept.len() && attempts < ATTEMPTS_MAX {
            let mut fewer = kept.clone();
            fewer.drain(from..(from + size).min(kept.len()));
            attempts += 1;
            if breaks(seed, &fewer, rule, arguments) {
                kept = fewer;
                shorter = true;
            } else {
                from += size;
            }
        }
        if !shorter || size > kept.len() {
            size /= 2;
        }
    }
    println!("the shortest plan found, {} of {} steps:", kept.len(), plan.steps.len());
    for index in &kept {
        let step = &plan.steps[*index];
        println!("  {:10.6} step {index}: {:?}", step.at as f64 / 1e9, step.operation);
    }
    let words = words(seed, &kept);
    if let Some(output) = own(arguments, &words) {
        let text = String::from_utf8_lossy(&output.stdout);
        let lines: Vec<&str> = text.lines().collect();
        let start = lines.len().saturating_sub(LINES);
        println!("the end of its run, of {} lines:", lines.len());
        for line in &lines[start..] {
            println!("  {line}");
        }
    }
    let disks = match (arguments.failing_disks, arguments.growing_devices) {
        (true, _) => " --failing-disks",
        (false, true) => " --growing-devices",
        (false, false) => "",
    };
    println!("all of it: cargo xtask sim {}{disks}", words.join(" "));
}

/// Looks for a deliberate bug. `None`: it was not found.
pub(crate) fn look_for(bug: &str, seeds: u64, arguments: &Arguments) -> Option<String> {
    let mut words = vec!["--seeds".to_owned(), seeds.to_string()];
    if let Some(jobs) = arguments.jobs {
        words.extend(["--jobs".to_owned(), jobs.to_string()]);
    }
    if let Some(first) = arguments.seed {
        words.extend(["--seed".to_owned(), first.to_string()]);
    }
    let with = Arguments { bug: Some(bug.to_owned()), ..arguments.clone() };
    let output = own(&with, &words)?;
    if output.status.success() {
        return None;
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let line = |start: &str| text.lines().find(|line| line.starts_with(start)).map(str::to_owned);
    Some(format!("{}; {}", line("found after")?, line("seed ").unwrap_or_default()))
}
