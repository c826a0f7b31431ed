//! Writes, verifies and compares devices and NBD exports; what the tests run inside guests.
//!
//! A target is `nbd:SOCKET:EXPORT`, or the path of a block device or file, which is used with direct I/O.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::{Parser, Subcommand};
use udrbd_tests::relay::Relay;
use udrbd_tests::target::{Target, TargetName};
use udrbd_tests::workload::{self, Workload};

#[derive(Parser)]
#[command(about = "Writes, verifies and compares devices and NBD exports")]
struct Arguments {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Random writes; every sector says which write it came from.
    Write {
        target: TargetName,
        /// Where to note what was issued and acknowledged.
        #[arg(long)]
        journal: PathBuf,
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Number of writes; 0 for as many as fit into --seconds.
        #[arg(long, default_value_t = 0)]
        count: u64,
        #[arg(long)]
        seconds: Option<u64>,
        #[arg(long, default_value_t = 4096)]
        min: u64,
        #[arg(long, default_value_t = 1 << 20)]
        max: u64,
        /// Writes in flight at once.
        #[arg(long, default_value_t = 4)]
        threads: u32,
        /// First byte of the part that is written.
        #[arg(long, default_value_t = 0)]
        offset: u64,
        /// Length of the part that is written; to the end by default.
        #[arg(long)]
        length: Option<u64>,
        #[arg(long, default_value_t = 0)]
        flush_every: u64,
    },
    /// Checks that every promise of the journal was kept.
    Verify {
        target: TargetName,
        #[arg(long)]
        journal: PathBuf,
    },
    /// Block for block; prints the numbers of the 4 KiB blocks that differ and fails if there are any.
    Compare {
        first: TargetName,
        second: TargetName,
        /// How much to compare.
        #[arg(long)]
        bytes: u64,
    },
    /// Prints the size in bytes.
    Size { target: TargetName },
    /// One request: what comes of it is the exit status.
    Once {
        target: TargetName,
        /// Write, and do not read.
        #[arg(long)]
        write: bool,
        /// What is written, again and again; else zeroes.
        #[arg(long, value_name = "TEXT")]
        fill: Option<String>,
        /// First byte.
        #[arg(long)]
        offset: u64,
        /// How many bytes.
        #[arg(long)]
        length: usize,
    },
    /// Gives a part back.
    Discard {
        target: TargetName,
        /// First byte.
        #[arg(long)]
        offset: u64,
        /// How many bytes.
        #[arg(long)]
        length: u32,
    },
    /// Carries connections from one address to another, and turns one bit over where it is told to.
    Relay {
        from: SocketAddr,
        to: SocketAddr,
        /// The next bytes with this text lose a bit...
        #[arg(long)]
        marker: String,
        /// ...each time there is this file, which is removed with it.
        #[arg(long)]
        flip: PathBuf,
    },
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("udrbd-io: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<()> {
    match task {
        Task::Write {
            target,
            journal,
            seed,
            count,
            seconds,
            min,
            max,
            threads,
            offset,
            length,
            flush_every,
        } => {
            if count == 0 && seconds.is_none() {
                bail!("give --count or --seconds");
            }
            let workload = Workload {
                seed,
                count,
                limit: seconds.map(Duration::from_secs),
                sizes: (min, max),
                threads,
                region: (offset > 0 || length.is_some()).then(|| (offset, length.unwrap_or(u64::MAX))),
                flush_every,
            };
            let done = workload::write(&target, &journal, &workload)?;
            println!("{} writes, {} bytes", done.writes, done.bytes);
        }
        Task::Verify { target, journal } => {
            let checked = workload::verify(&target, &journal)?;
            println!(
                "{} blocks, {} writes acknowledged, {} unanswered",
                checked.blocks, checked.acknowledged, checked.unanswered
            );
        }
        Task::Compare { first, second, bytes } => {
            let different = workload::compare(&first, &second, bytes)?;
            if !different.is_empty() {
                let some: Vec<String> = different.iter().take(20).map(u64::to_string).collect();
                bail!("{} blocks differ: {}", different.len(), some.join(" "));
            }
            println!("{} blocks are equal", bytes / workload::BLOCK);
        }
        Task::Size { target } => println!("{}", Target::open_to_read(&target)?.size()?),
        Task::Discard { target, offset, length } => Target::discard(&target, offset, length)?,
        Task::Relay { from, to, marker, flip } => Relay { from, to, marker, flip }.run()?,
        Task::Once { target, write, fill, offset, length } => {
            let mut data = vec![0; length];
            if let Some(text) = fill {
                data = text.bytes().cycle().take(length).collect();
            }
            if write {
                Target::open(&target)?.write(offset, &data)?;
            } else {
                Target::open_to_read(&target)?.read(offset, &mut data)?;
            }
        }
    }
    Ok(())
}
