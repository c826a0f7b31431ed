//! `cargo xtask bench --background`: how soon large devices are in sync again, and whether a resync keeps to its limits.
//!
//! Two daemons over loopback, sparse files in memory. Here a bar is a time or a rate the administrator asked for, not a contender.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use udrbd_metadata::{Layout, Placement, Striping};
use udrbd_tests::machine;
use udrbd_tests::nbd::Nbd;
use udrbd_tests::pair::{Node, Pair, PairOptions};
use udrbd_tests::replica::Status;
use udrbd_units::Sector;

use super::unix_uri;
use crate::workspace;

const TIB: u64 = 1 << 40;

/// The largest device DRBD 8.4 makes, with its metadata inside: a little less than this can be used.
const LARGEST: u64 = 16 * TIB;

/// How long a limit is watched, and over which windows it has to hold.
const WATCHED: Duration = Duration::from_secs(30);
const WINDOW: Duration = Duration::from_secs(10);

/// What a client writes to, bytes.
const CLIENTS_PART: u64 = 256 << 20;

/// A resync with its limit.
struct Limit {
    disk: &'static str,
    /// Requests of 4 KiB of a client, each second; 0 for no client.
    client: u32,
    /// What it is to be, MiB/s.
    rate: f64,
}

const LIMITS: &[Limit] = &[
    Limit { disk: "c-plan-ahead 0; resync-rate 30M;", client: 0, rate: 30.0 },
    Limit { disk: "c-max-rate 30M; c-fill-target 10M;", client: 0, rate: 30.0 },
    Limit { disk: "c-max-rate 60M; c-fill-target 0; c-delay-target 10;", client: 0, rate: 60.0 },
    Limit { disk: "c-max-rate 200M; c-fill-target 1M; c-min-rate 10M;", client: 2_000, rate: 10.0 },
    Limit { disk: "c-max-rate 200M; c-fill-target 1M; c-min-rate 10M;", client: 60_000, rate: 10.0 },
];

/// Measures and prints; fails with `judge` if something misses its bar.
///
/// # Errors
///
/// A pair that does not come up, or tools that are missing.
pub(super) fn run(folder: &Path, job: &str, judge: bool) -> Result<ExitCode> {
    machine::ensure_packages(&["fio"])?;
    workspace::build_release()?;
    let mut good = true;
    let mut told = |what: &str, figure: String, kept: bool| {
        println!("{what:<72} {figure:<28} {}", if kept { "kept" } else { "missed" });
        good &= kept;
    };
    if "large device".contains(job) {
        let took = one_block(folder)?;
        told("16 TiB, one block written while the peer was away: in sync, s (2)", seconds(took), took < 2.0);
    }
    if "fragmented bitmap".contains(job) {
        let took = fragmented(folder)?;
        told("1 TiB, every fifth block marked: bitmaps exchanged, s (3)", seconds(took), took < 3.0);
    }
    for limit in LIMITS.iter().filter(|limit| limit.disk.contains(job)) {
        let (least, most) = watch(folder, limit)?;
        let clients = if limit.client > 0 { format!(" {} writes/s", limit.client) } else { String::new() };
        let kept = least >= 0.9 * limit.rate && most <= 1.1 * limit.rate;
        let what = format!("{}{clients} MiB/s ({})", limit.disk, limit.rate);
        told(&what, format!("{least:.1} to {most:.1}"), kept);
    }
    Ok(if judge && !good { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn seconds(time: f64) -> String {
    format!("{time:.2}")
}

fn pair(folder: &Path, disk_bytes: u64, disk: &str) -> Result<Pair> {
    let mut pair = Pair::new(PairOptions {
        resource: "bench".to_owned(),
        disk_bytes,
        net: "protocol C; max-buffers 8000;".to_owned(),
        disk: disk.to_owned(),
        handlers: String::new(),
        within: Some(folder.to_owned()),
    })?;
    pair.bring_up()?;
    Ok(pair)
}

/// A pair that is in sync without having copied anything, alpha Primary.
fn in_sync(folder: &Path, disk_bytes: u64, disk: &str) -> Result<Pair> {
    let pair = pair(folder, disk_bytes, disk)?;
    pair.adm(Node::Alpha, "new-current-uuid --clear-bitmap bench/0")?;
    pair.wait_healthy()?;
    pair.adm(Node::Alpha, "primary bench")?;
    Ok(pair)
}

fn write_one_block(pair: &Pair, offset: u64) -> Result<()> {
    let mut export = Nbd::connect(&pair.socket(Node::Alpha), "bench")?;
    export.write(offset, &[0x5a; 4096], false)?;
    export.flush()
}

/// Seconds from `connect` until both nodes are UpToDate.
fn one_block(folder: &Path) -> Result<f64> {
    let pair = in_sync(folder, LARGEST, "c-plan-ahead 0; resync-rate 100M;")?;
    pair.adm(Node::Beta, "disconnect bench")?;
    write_one_block(&pair, 7 * TIB)?;
    let start = Instant::now();
    pair.adm(Node::Beta, "connect bench")?;
    pair.wait_healthy()?;
    let both_know = start.elapsed().as_secs_f64();
    let status = pair.status(Node::Beta)?;
    if !status.is_healthy() {
        bail!("the resync did not end: {status:?}");
    }
    Ok(both_know)
}

/// Seconds from `connect` until the resync of a bitmap begins that run lengths do not make shorter.
fn fragmented(folder: &Path) -> Result<f64> {
    let bytes = TIB + (64 << 20);
    let pair = in_sync(folder, bytes, "c-plan-ahead 0; resync-rate 250K;")?;
    pair.adm(Node::Beta, "disconnect bench")?;
    write_one_block(&pair, 0)?;
    pair.adm(Node::Alpha, "down bench")?;
    mark(Path::new(&pair.side(Node::Alpha).disk), bytes)?;
    pair.adm(Node::Alpha, "up bench")?;
    let start = Instant::now();
    pair.adm(Node::Beta, "connect bench")?;
    for (node, state) in [(Node::Alpha, "SyncSource"), (Node::Beta, "SyncTarget")] {
        pair.wait(node, state, |status| status.connection == state)?;
    }
    let took = start.elapsed().as_secs_f64();
    let marked = pair.status(Node::Beta)?.out_of_sync_kib;
    if marked < TIB / 1024 / 8 {
        bail!("only {marked} KiB are marked: that was no fragmented bitmap");
    }
    Ok(took)
}

/// Marks blocks in the metadata of a disk that is in nobody's use: three to eight blocks apart, without a pattern.
fn mark(disk: &Path, bytes: u64) -> Result<()> {
    let layout = Layout::new(Placement::Internal, Sector(bytes / 512), Striping::DEFAULT)
        .map_err(|error| anyhow::anyhow!("{error}"))?;
    let file = File::options().write(true).open(disk)?;
    let mut state = 1_u64;
    let mut next = 0_u64;
    let blocks = TIB / 4096;
    let mut bitmap = vec![0_u8; usize::try_from(blocks / 8)?];
    while next < blocks {
        if let Some(byte) = bitmap.get_mut(usize::try_from(next / 8)?) {
            *byte |= 1 << (next % 8);
        }
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        next += 3 + (state >> 40) % 6;
    }
    file.write_all_at(&bitmap, layout.bitmap_start().0 * 512)?;
    Ok(())
}

/// The least and the most a resync ran at over the windows, MiB/s.
fn watch(folder: &Path, limit: &Limit) -> Result<(f64, f64)> {
    // As much as it can be copied in the time watched and before, and some.
    let size = 4_u64 << 30;
    let pair = pair(folder, size, limit.disk)?;
    pair.adm(Node::Alpha, "primary --force bench")?;
    pair.wait(Node::Alpha, "SyncSource", |status| status.connection == "SyncSource")?;
    let client = if limit.client > 0 {
        // What it writes is in sync already: blocks that it brings in sync are none of the resync's.
        let done = |status: &Status| status.out_of_sync_kib < (size - CLIENTS_PART - (100 << 20)) / 1024;
        pair.wait(Node::Beta, "the part of the client in sync", done)?;
        Some(Client::start(&pair, limit.client)?)
    } else {
        None
    };
    // The controller needs a moment, and so does the client.
    sleep(Duration::from_secs(10));
    let begin = Instant::now();
    let mut seen = Vec::new();
    while begin.elapsed() < WATCHED {
        seen.push((begin.elapsed(), copied_kib(&pair)?));
        sleep(Duration::from_millis(500));
    }
    drop(client);
    let rates = windows(&seen, WINDOW);
    if rates.is_empty() {
        bail!("too few samples: the machine is too busy to measure anything");
    }
    let least = rates.iter().copied().fold(f64::INFINITY, f64::min);
    let most = rates.iter().copied().fold(0.0, f64::max);
    Ok((least, most))
}

/// What of the resync is done: what is still out of sync, counted down.
fn copied_kib(pair: &Pair) -> Result<u64> {
    let status = pair.status(Node::Beta)?;
    if status.connection != "SyncTarget" {
        bail!("the resync is over before its time: {}", status.connection);
    }
    Ok(u64::MAX / 2 - status.out_of_sync_kib)
}

/// MiB/s between each sample and the first one a window later.
fn windows(samples: &[(Duration, u64)], window: Duration) -> Vec<f64> {
    let later = |at: Duration| samples.iter().find(|(time, _)| *time >= at + window);
    let rate = |(time, kib): &(Duration, u64)| {
        later(*time).map(|(end, done)| {
            let mib = done.saturating_sub(*kib) as f64 / 1024.0;
            mib / (*end - *time).as_secs_f64()
        })
    };
    samples.iter().filter_map(rate).collect()
}

/// fio, writing to a part that is in sync, until it is dropped.
struct Client(Child);

impl Client {
    fn start(pair: &Pair, each_second: u32) -> Result<Self> {
        let child = Command::new("fio")
            .args(["--name=client", "--ioengine=nbd", "--time_based", "--runtime=120", "--rw=randwrite"])
            // In threads: a process of its own would outlive the one that is killed.
            .args(["--thread", "--bs=4k", "--iodepth=16", "--norandommap", "--output=/dev/null"])
            .arg(format!("--rate_iops={each_second}"))
            .arg(format!("--size={CLIENTS_PART}"))
            .arg(format!("--uri={}", unix_uri(&pair.socket(Node::Alpha), "bench")))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot run fio")?;
        Ok(Self(child))
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _dead = self.0.kill();
        let _gone = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_is_as_long_as_the_samples_allow() {
        let at = |seconds| Duration::from_secs(seconds);
        let samples = [(at(0), 0), (at(5), 5 << 10), (at(10), 20 << 10), (at(15), 25 << 10)];
        assert_eq!(windows(&samples, at(10)), [2.0, 2.0]);
        assert_eq!(windows(&samples[..2], at(10)), [0.0; 0]);
    }
}
