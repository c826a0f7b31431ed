//! Plays many seeds, and says which of them breaks a rule.

mod campaign;
mod shrink;

use std::num::NonZero;
use std::process::ExitCode;

use clap::Parser;

/// Plays two nodes on simulated disks, network, operators and power, from seeds.
#[derive(Clone, Debug, Parser)]
#[command(name = "udrbd-simulator")]
struct Arguments {
    /// How many seeds to play.
    #[arg(long)]
    seeds: Option<u64>,
    /// The first seed. Without `--seeds`: play this one and tell all of it.
    #[arg(long)]
    seed: Option<u64>,
    /// Threads; as many as there are processors unless told.
    #[arg(long)]
    jobs: Option<NonZero<usize>>,
    /// Only these steps of the plan, by number and separated by commas.
    #[arg(long, value_delimiter = ',')]
    keep: Option<Vec<usize>>,
    /// Tell nothing of a single run but its end.
    #[arg(long)]
    terse: bool,
    /// Go on after a violation, and count them.
    #[arg(long)]
    go_on: bool,
    /// Let disks fail in every run.
    #[arg(long)]
    failing_disks: bool,
    /// Let devices grow in every run.
    #[arg(long, conflicts_with = "failing_disks")]
    growing_devices: bool,
    /// Switch a deliberate bug of the engine on; to be found.
    #[arg(long)]
    bug: Option<String>,
    /// Look for each deliberate bug in turn.
    #[arg(long)]
    all_bugs: bool,
}

impl Arguments {
    /// What a seed means.
    fn plan(&self, seed: u64) -> udrbd_simulator::Plan {
        if self.failing_disks {
            udrbd_simulator::Plan::with_failing_disks(seed)
        } else if self.growing_devices {
            udrbd_simulator::Plan::with_growing_devices(seed)
        } else {
            udrbd_simulator::Plan::new(seed)
        }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match (arguments.all_bugs, arguments.seed, arguments.seeds) {
        (true, ..) => campaign::all_bugs(&arguments),
        (false, Some(seed), None) => campaign::single(seed, &arguments),
        (false, first, seeds) => campaign::many(first.unwrap_or(0), seeds.unwrap_or(1000), &arguments),
    }
}
