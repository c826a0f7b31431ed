//! Playing one seed, many seeds, or many seeds against each deliberate bug.

use std::cell::Cell;
use std::num::NonZero;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use udrbd_simulator::{Coverage, Plan, run};

use crate::{Arguments, shrink};

/// What is said of an engine that panics, in the place of a rule.
const PANICS: &str = "the engine panics";

thread_local! {
    /// The seed this thread plays.
    static PLAYING: Cell<Option<u64>> = const { Cell::new(None) };
}

/// What many runs have found, shared by the threads that play them.
#[derive(Default)]
struct Found {
    coverage: Coverage,
    /// Seed, rule, text; the lowest seed first.
    violations: Vec<(u64, String)>,
}

fn plan(seed: u64, arguments: &Arguments) -> Option<Plan> {
    let mut plan = arguments.plan(seed);
    if let Some(kept) = &arguments.keep {
        plan.keep(kept);
    }
    if let Some(name) = &arguments.bug {
        match name.parse() {
            Ok(bug) => plan.bug = Some(bug),
            Err(_) => {
                eprintln!("no such deliberate bug: {name} (built with the feature deliberate-bugs?)");
                return None;
            }
        }
    }
    Some(plan)
}

/// One seed, told in full.
pub(crate) fn single(seed: u64, arguments: &Arguments) -> ExitCode {
    let Some(plan) = plan(seed, arguments) else { return ExitCode::from(2) };
    if arguments.terse {
        std::panic::set_hook(Box::new(|info| {
            println!("{PANICS}: {info}");
            std::process::exit(1);
        }));
    }
    let outcome = run(plan, !arguments.terse);
    match outcome.violation {
        Some(violation) => {
            println!("{}: {}", violation.rule, violation.text);
            ExitCode::FAILURE
        }
        None => {
            println!("seed {seed}: no violation");
            ExitCode::SUCCESS
        }
    }
}

/// Many seeds.
pub(crate) fn many(first: u64, seeds: u64, arguments: &Arguments) -> ExitCode {
    if plan(first, arguments).is_none() {
        return ExitCode::from(2);
    }
    let begin = Instant::now();
    let hooked = arguments.clone();
    let next = AtomicU64::new(first);
    let stop = AtomicBool::new(false);
    let found = Mutex::new(Found::default());
    let panicking = AtomicBool::new(false);
    let shared = (hooked, panicking);
    std::panic::set_hook(Box::new(move |info| {
        let (arguments, panicking) = &shared;
        // The first to fall tells; the others wait for the end.
        while panicking.swap(true, Ordering::SeqCst) {
            std::thread::park();
        }
        match PLAYING.get() {
            Some(seed) => {
                println!("seed {seed}: {PANICS}: {info}");
                shrink::tell(seed, PANICS, arguments);
                println!("found after {} seeds", seed - first + 1);
            }
            None => println!("the simulator panics: {info}"),
        }
        std::process::exit(1);
    }));
    let jobs = arguments.jobs.or_else(|| std::thread::available_parallelism().ok()).map_or(1, NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + seeds {
                        return;
                    }
                    play(seed, arguments, &found, &stop);
                }
            });
        }
    });
    let mut found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
    let played = next.load(Ordering::Relaxed).min(first + seeds) - first;
    let seconds = begin.elapsed().as_secs_f64();
    println!("{}", found.coverage);
    println!("{played} seeds in {seconds:.1} s: {:.0} seeds/s, {jobs} jobs", played as f64 / seconds);
    found.violations.sort_unstable();
    for (seed, text) in &found.violations {
        println!("seed {seed}: {text}");
    }
    let Some((seed, text)) = found.violations.first() else {
        println!("no violation");
        return ExitCode::SUCCESS;
    };
    if !arguments.go_on {
        let rule = text.split(':').next().unwrap_or(text);
        shrink::tell(*seed, rule, arguments);
    }
    println!("found after {} seeds", seed - first + 1);
    ExitCode::FAILURE
}

fn play(seed: u64, arguments: &Arguments, found: &Mutex<Found>, stop: &AtomicBool) {
    let Some(plan) = plan(seed, arguments) else { return };
    PLAYING.set(Some(seed));
    let outcome = run(plan, false);
    PLAYING.set(None);
    let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
    found.coverage.add(&outcome.coverage);
    if let Some(violation) = outcome.violation {
        found.violations.push((seed, format!("{}: {}", violation.rule, violation.text)));
        if !arguments.go_on {
            stop.store(true, Ordering::Relaxed);
        }
    }
}

/// Each deliberate bug has to be found.
pub(crate) fn all_bugs(arguments: &Arguments) -> ExitCode {
    let bugs = udrbd_simulator::bugs();
    if bugs.is_empty() {
        eprintln!("this program has no deliberate bugs: build it with the feature deliberate-bugs");
        return ExitCode::from(2);
    }
    let seeds = arguments.seeds.unwrap_or(10_000);
    let mut missed = 0;
    for bug in &bugs {
        match shrink::look_for(bug, seeds, arguments) {
            Some(what) => println!("{bug}: {what}"),
            None => {
                missed += 1;
                println!("{bug}: NOT FOUND in {seeds} seeds");
            }
        }
    }
    println!("{} deliberate bugs, {missed} not found", bugs.len());
    if missed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
