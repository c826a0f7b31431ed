//! `cargo xtask bench`: a udrbd pair beside what one would use today without a kernel module.
//!
//! Three contenders serve the same size of the same kind of file over an NBD unix socket, and fio runs the
//! same jobs against each in turn, in alternating rounds; the medians are printed as ratios. What must not
//! be compared: numbers of different runs, machines or folders. Both nodes of a pair share this machine.

mod background;
mod contenders;
mod guest;
mod guest_resync;

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use udrbd_tests::machine;

use crate::workspace;
use contenders::Contender;

/// What to measure, and where.
#[derive(Args)]
pub(crate) struct Options {
    /// About three minutes: four jobs, three alternating rounds, three seconds each.
    #[arg(long)]
    quick: bool,
    /// Block devices beside the kernel's own DRBD, in a guest that counts instructions.
    #[arg(long)]
    vm: bool,
    /// With --vm: a resync under an application's writes beside the kernel's own DRBD, and beside the slowest of disks and link.
    #[arg(long, requires = "vm")]
    resync: bool,
    /// Resync: large devices, and whether its limits hold. About six minutes.
    #[arg(long)]
    background: bool,
    /// Folder for the disk files; it must take direct I/O. Memory (/dev/shm) if not given.
    #[arg(long, value_name = "FOLDER")]
    folder: Option<PathBuf>,
    /// Only these contenders.
    #[arg(long, value_delimiter = ',', value_name = "NAME", value_parser = ["udrbd", "quorum", "plain"])]
    only: Vec<String>,
    /// Only the jobs whose names contain this, e.g. "128k".
    #[arg(long, default_value = "", value_name = "TEXT")]
    job: String,
    /// More statements for the `disk` section of the udrbd pair, e.g. "disk-flushes no;".
    #[arg(long, default_value = "", value_name = "STATEMENTS")]
    disk: String,
    /// Fail if a ratio to the quorum pair is below its bar.
    #[arg(long)]
    judge: bool,
}

/// One fio job.
struct Job {
    name: &'static str,
    words: &'static [&'static str],
    /// The least that a udrbd pair is to be of a quorum pair.
    bar: f64,
}

const JOBS: &[Job] = &[
    Job { name: "4k randwrite qd1", words: &["--rw=randwrite", "--bs=4k", "--iodepth=1"], bar: 1.1 },
    Job { name: "4k randwrite qd32", words: &["--rw=randwrite", "--bs=4k", "--iodepth=32"], bar: 5.0 },
    Job { name: "4k randread qd32", words: &["--rw=randread", "--bs=4k", "--iodepth=32"], bar: 4.0 },
    Job { name: "128k seqwrite qd8", words: &["--rw=write", "--bs=128k", "--iodepth=8"], bar: 4.0 },
];

/// Bytes each job works on.
const SIZE: u64 = 512 << 20;

const PACKAGES: &[&str] = &["fio", "qemu-utils", "nbdkit", "iproute2", "util-linux"];

/// Marks the run inside the network namespace, so that it is entered once.
const INSIDE: &str = "UDRBD_BENCH_INSIDE";

/// Builds, measures and prints.
///
/// # Errors
///
/// A skip without the tools; a contender that does not start or fio that fails.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    if options.background {
        let folder = options.folder.clone().unwrap_or_else(|| PathBuf::from("/dev/shm"));
        return background::run(&folder, &options.job, options.judge);
    }
    if options.vm {
        workspace::build_release()?;
        if options.resync {
            return guest_resync::run(&options.job, options.judge);
        }
        let (rounds, seconds) = if options.quick { (1, 1) } else { (3, 2) };
        return guest::run(rounds, seconds, &options.job, options.judge);
    }
    if std::env::var_os(INSIDE).is_none() {
        machine::ensure_packages(PACKAGES)?;
        if wanted(options, "udrbd") {
            workspace::build_release()?;
        }
        enter_namespace();
    }
    let folder = options.folder.clone().unwrap_or_else(|| PathBuf::from("/dev/shm"));
    let (rounds, seconds) = if options.quick { (3, 3) } else { (5, 10) };
    let names: Vec<&str> = contenders::NAMES.iter().copied().filter(|name| wanted(options, name)).collect();
    println!(
        "disk files in {}, {rounds} rounds of {seconds} s, MTU of lo: {}, {}",
        folder.display(),
        mtu(),
        qemu_version()
    );

    // results[contender][job] = IOPS of each round
    let mut results = vec![vec![Vec::new(); JOBS.len()]; names.len()];
    let mut running: Vec<Contender> = Vec::new();
    for name in &names {
        running.push(Contender::start(name, &folder, SIZE, &options.disk)?);
    }
    for contender in &running {
        contender.prefill(SIZE)?;
    }
    for round in 0..rounds {
        for (index, contender) in running.iter().enumerate() {
            for (job_index, job) in JOBS.iter().enumerate().filter(|(_, job)| job.name.contains(&options.job))
            {
                let iops = measure(&contender.uri(), job, seconds)
                    .with_context(|| format!("{} against {}", job.name, names[index]))?;
                eprintln!("round {}: {:<8} {:<18} {iops:>9.0} IOPS", round + 1, names[index], job.name);
                results[index][job_index].push(iops);
            }
        }
    }
    drop(running);
    Ok(print(&names, &results, options.judge))
}

fn wanted(options: &Options, name: &str) -> bool {
    options.only.is_empty() || options.only.iter().any(|only| only == name)
}

/// Goes into a network namespace whose loopback has a network card's MTU: at the loopback's own 64 KiB
/// QEMU's NBD client is far slower, and the comparison would be unfair. Stays outside where that is not allowed.
fn enter_namespace() {
    let Ok(program) = std::env::current_exe() else { return };
    let flags: &[&str] = if machine::is_root() { &["--net"] } else { &["--map-root-user", "--net"] };
    let allowed = Command::new("unshare").args(flags).arg("true").stderr(Stdio::null()).status();
    if !allowed.is_ok_and(|status| status.success()) {
        eprintln!("no network namespace here: the loopback keeps its MTU");
        return;
    }
    let error = Command::new("unshare")
        .args(flags)
        .args(["sh", "-c", "ip link set lo mtu 1500 up && exec \"$@\"", "sh"])
        .arg(program)
        .args(std::env::args_os().skip(1))
        .env(INSIDE, "1")
        .exec();
    eprintln!("cannot enter a network namespace: {error}");
}

/// QEMU's own name for itself: which one the contenders are decides much.
fn qemu_version() -> String {
    let output = Command::new("qemu-storage-daemon").arg("--version").output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    text.lines().next().unwrap_or("no qemu-storage-daemon").to_owned()
}

fn mtu() -> String {
    // Not from /sys, which shows the network namespace it was mounted in.
    let output = Command::new("ip").args(["-o", "link", "show", "lo"]).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    let mut words = text.split_whitespace().skip_while(|word| *word != "mtu");
    words.nth(1).unwrap_or("?").to_owned()
}

/// Runs one job and returns its IOPS.
fn measure(uri: &str, job: &Job, seconds: u32) -> Result<f64> {
    let output = Command::new("fio")
        .args(["--name=job", "--ioengine=nbd", "--time_based", "--norandommap", "--randrepeat=0"])
        .args(["--output-format=terse", "--terse-version=3", "--ramp_time=1"])
        .arg(format!("--uri={uri}"))
        .arg(format!("--size={SIZE}"))
        .arg(format!("--runtime={seconds}"))
        .args(job.words)
        .stdin(Stdio::null())
        .output()
        .context("cannot run fio")?;
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        bail!("fio: {}{}", text.trim(), String::from_utf8_lossy(&output.stderr).trim());
    }
    parse_terse(&text).with_context(|| format!("fio printed no result: {text}"))
}

/// IOPS, read plus write, of fio's terse version 3.
fn parse_terse(text: &str) -> Option<f64> {
    let line = text.lines().find(|line| line.starts_with("3;"))?;
    let fields: Vec<&str> = line.split(';').collect();
    let number = |index: usize| fields.get(index).and_then(|field| field.parse::<f64>().ok());
    Some(number(7)? + number(48)?)
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(0.0)
}

fn print(names: &[&str], results: &[Vec<Vec<f64>>], judge: bool) -> ExitCode {
    let of = |name: &str, job: usize| {
        names.iter().position(|have| *have == name).map(|index| median(&results[index][job]))
    };
    print!("\n{:<20}", "median IOPS");
    names.iter().for_each(|name| print!("{name:>12}"));
    println!("{:>16}{:>15}{:>8}", "udrbd/quorum", "udrbd/plain", "bar");
    let mut below = false;
    for (index, job) in JOBS.iter().enumerate().filter(|(index, _)| !results[0][*index].is_empty()) {
        print!("{:<20}", job.name);
        names.iter().filter_map(|name| of(name, index)).for_each(|iops| print!("{iops:>12.0}"));
        let ratio = |other: &str| Some(of("udrbd", index)? / of(other, index)?.max(1.0));
        let text = |ratio: Option<f64>| ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}"));
        below |= ratio("quorum").is_some_and(|ratio| ratio < job.bar);
        println!("{:>16}{:>15}{:>8}", text(ratio("quorum")), text(ratio("plain")), job.bar);
    }
    println!(
        "\nplain: an unreplicated NBD server; quorum: QEMU's quorum driver mirroring to a remote NBD export."
    );
    if judge && below { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// The NBD URI of an export on a unix socket.
fn unix_uri(socket: &Path, export: &str) -> String {
    format!("nbd+unix:///{export}?socket={}", socket.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terse_output_gives_reads_and_writes() {
        let mut fields = vec!["0"; 130];
        (fields[0], fields[7], fields[48]) = ("3", "10", "32");
        let text = format!("warning\n{}\n", fields.join(";"));
        assert_eq!(parse_terse(&text), Some(42.0));
        assert_eq!(parse_terse("fio: failed"), None);
    }

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median(&[9.0, 1.0, 5.0]), 5.0);
        assert_eq!(median(&[]), 0.0);
    }
}
