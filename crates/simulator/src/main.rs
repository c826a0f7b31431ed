//! Plays many seeds, and says which breaks a rule.

use clap::Parser;
use udrbd_simulator::{Coverage, Plan, run};

#[derive(Parser)]
struct Arguments {
    #[arg(long, default_value_t = 1000)]
    seeds: u64,
    #[arg(long)]
    seed: Option<u64>,
}

fn main() {
    let arguments = Arguments::parse();
    let mut coverage = Coverage::default();
    if let Some(seed) = arguments.seed {
        let outcome = run(Plan::new(seed), true);
        for line in &outcome.trace {
            println!("{line}");
        }
        println!("{:?}", outcome.violation);
        return;
    }
    let begin = std::time::Instant::now();
    for seed in 0..arguments.seeds {
        let outcome = run(Plan::new(seed), false);
        coverage.add(&outcome.coverage);
        if let Some(violation) = outcome.violation {
            println!("seed {seed}: {}: {}", violation.rule, violation.text);
        }
    }
    println!("{coverage}");
    println!("{:.0} seeds/s", arguments.seeds as f64 / begin.elapsed().as_secs_f64());
}
