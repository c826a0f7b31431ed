//! `cargo xtask demo`: a pair on this machine, from nothing to a failover, in about a minute.

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use udrbd_tests::nbd::Nbd;
use udrbd_tests::pair::{Node, Pair, PairOptions};
use udrbd_tests::replica::Status;
use udrbd_tests::target::TargetName;
use udrbd_tests::workload::{self, Workload};

use crate::workspace;

const MIB: u64 = 1 << 20;
const DISK_BYTES: u64 = 256 * MIB;
/// Where the secondary's death is written over: little, so that a full sync would be seen.
const REGION: (u64, u64) = (64 * MIB, 8 * MIB);

/// How the demo ends.
#[derive(Args)]
pub(crate) struct Options {
    /// Exit when everything was shown, also under a terminal.
    #[arg(long)]
    once: bool,
}

/// Shows everything; fails on any mismatch.
///
/// # Errors
///
/// A skip if the machine cannot; else the step that went wrong, with the logs.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    say("Building udrbdd, drbdadm, drbdsetup, drbdmeta");
    workspace::build_release()?;
    let begin = Instant::now();
    let mut pair = Pair::new(PairOptions {
        disk_bytes: DISK_BYTES,
        disk: "resync-rate 100M; c-plan-ahead 0;".to_owned(),
        ..PairOptions::default()
    })?;
    first_sync(&mut pair)?;
    write_some(&pair)?;
    lose_the_secondary(&mut pair)?;
    fail_over(&pair)?;
    say(&format!("All of it was as it should be ({:.0} s).", begin.elapsed().as_secs_f32()));
    next_steps(&pair);
    if options.once || !std::io::stdin().is_terminal() || !std::io::stdout().is_terminal() {
        return Ok(ExitCode::SUCCESS);
    }
    println!("The pair keeps running until Ctrl-C.");
    wait_for_interrupt()?;
    Ok(ExitCode::SUCCESS)
}

fn say(text: &str) {
    let (bold, plain) = if std::io::stdout().is_terminal() { ("\x1b[1m", "\x1b[0m") } else { ("", "") };
    println!("\n{bold}==> {text}{plain}");
}

/// Runs `drbdadm` and shows it as it would be typed on that node.
fn typed(pair: &Pair, node: Node, words: &str) -> Result<String> {
    println!("{}# drbdadm {words}", node.name());
    let printed = pair.adm(node, words)?;
    print!("{printed}");
    Ok(printed)
}

fn first_sync(pair: &mut Pair) -> Result<()> {
    say("Two nodes on this machine, each with a sparse file of 256 MiB as its disk");
    println!("{}", std::fs::read_to_string(pair.config())?.trim_end());
    for node in Node::BOTH {
        pair.start(node)?;
        typed(pair, node, "create-md r0")?;
        typed(pair, node, "up r0")?;
    }
    for node in Node::BOTH {
        pair.wait(node, "Connected", |status| status.connection == "Connected")?;
    }
    typed(pair, Node::Alpha, "role r0")?;
    typed(pair, Node::Alpha, "dstate r0")?;

    say("The first sync: alpha is told that its data is the good one");
    typed(pair, Node::Alpha, "primary --force r0")?;
    progress(pair, DISK_BYTES / 1024)?;
    show_status(pair)
}

/// A bar of what is in sync, until both sides are healthy.
fn progress(pair: &Pair, total_kib: u64) -> Result<()> {
    let terminal = std::io::stdout().is_terminal();
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut shown = u64::MAX;
    loop {
        let status = pair.status(Node::Alpha)?;
        let left = status.out_of_sync_kib.min(total_kib);
        let percent = 100 - left * 100 / total_kib;
        let step = if terminal { 1 } else { 25 };
        if percent / step != shown {
            shown = percent / step;
            let filled = (percent / 4) as usize;
            let bar = format!(
                "[{}{}] {percent:3} %  {} ",
                "=".repeat(filled),
                ".".repeat(25 - filled),
                status.connection
            );
            if terminal {
                print!("\r{bar:<60}");
                std::io::stdout().flush()?;
            } else {
                println!("{bar}");
            }
        }
        if status.is_healthy() {
            break;
        }
        if Instant::now() > deadline {
            bail!("the sync does not end: {status:?}\n{}\n{}", pair.log(Node::Alpha), pair.log(Node::Beta));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    if terminal {
        println!();
    }
    pair.wait_healthy()
}

fn show_status(pair: &Pair) -> Result<()> {
    for node in Node::BOTH {
        let Status { connection, role, peer_role, disk, peer_disk, out_of_sync_kib, .. } =
            pair.status(node)?;
        println!(
            "{:>5}: cs:{connection} ro:{role}/{peer_role} ds:{disk}/{peer_disk} oos:{out_of_sync_kib}",
            node.name()
        );
    }
    Ok(())
}

fn journal(pair: &Pair) -> std::path::PathBuf {
    pair.config().with_file_name("journal")
}

fn write_some(pair: &Pair) -> Result<()> {
    say("Writes through alpha's NBD socket, 4 KiB to 1 MiB, each on both disks before it is acknowledged");
    let load = Workload {
        seed: 1,
        count: 300,
        limit: None,
        sizes: (4096, MIB),
        threads: 4,
        region: None,
        flush_every: 32,
    };
    let start = Instant::now();
    let done = workload::write(&pair.export(Node::Alpha), &journal(pair), &load)?;
    let seconds = start.elapsed().as_secs_f32().max(0.001);
    println!(
        "{} writes, {} MiB, {:.0} MiB/s replicated",
        done.writes,
        done.bytes / MIB,
        done.bytes as f32 / MIB as f32 / seconds
    );
    compare_disks(pair, Node::Alpha)?;
    show_status(pair)
}

fn lose_the_secondary(pair: &mut Pair) -> Result<()> {
    say("beta's daemon is killed (kill -9) in the middle of writes");
    let stop = Arc::new(AtomicBool::new(false));
    let written = Arc::new(AtomicU64::new(0));
    let writer = {
        let (target, journal, stop, written) =
            (pair.export(Node::Alpha), journal(pair), Arc::clone(&stop), Arc::clone(&written));
        std::thread::spawn(move || -> Result<()> {
            let mut seed = 100;
            while !stop.load(Ordering::SeqCst) {
                let load = Workload {
                    seed,
                    count: 50,
                    limit: None,
                    sizes: (4096, 64 << 10),
                    threads: 2,
                    region: Some(REGION),
                    flush_every: 16,
                };
                written.fetch_add(workload::write(&target, &journal, &load)?.writes, Ordering::SeqCst);
                seed += 1;
            }
            Ok(())
        })
    };
    std::thread::sleep(Duration::from_millis(700));
    pair.kill(Node::Beta)?;
    pair.wait(Node::Alpha, "the loss of beta", |status| status.peer_disk == "DUnknown")?;
    let at_loss = written.load(Ordering::SeqCst);
    std::thread::sleep(Duration::from_millis(800));
    stop.store(true, Ordering::SeqCst);
    match writer.join() {
        Ok(result) => result.context("the writer on alpha")?,
        Err(_) => bail!("the writer panicked"),
    }
    println!("alpha went on: {} writes without its peer, no error", written.load(Ordering::SeqCst) - at_loss);
    let alone = pair.wait(Node::Alpha, "something out of sync", |status| status.out_of_sync_kib > 0)?;
    println!(
        "alpha: cs:{} ds:{}/{} out of sync: {} KiB of {} KiB",
        alone.connection,
        alone.disk,
        alone.peer_disk,
        alone.out_of_sync_kib,
        DISK_BYTES / 1024
    );
    if alone.out_of_sync_kib > 2 * REGION.1 / 1024 {
        bail!("{} KiB are out of sync after writes to {} KiB", alone.out_of_sync_kib, REGION.1 / 1024);
    }

    say("beta comes back: only what changed travels");
    pair.start(Node::Beta)?;
    typed(pair, Node::Beta, "up r0")?;
    progress(pair, alone.out_of_sync_kib.max(1))?;
    let received =
        pair.wait(Node::Beta, "something received", |status| status.received_kib > 0)?.received_kib;
    println!("beta received {received} KiB; the device has {} KiB", DISK_BYTES / 1024);
    if received > DISK_BYTES / 1024 / 4 {
        bail!("beta received {received} KiB where about {} were out of sync", alone.out_of_sync_kib);
    }
    compare_disks(pair, Node::Alpha)
}

fn fail_over(pair: &Pair) -> Result<()> {
    say("Failover: beta becomes Primary and serves what alpha wrote");
    let before = checksum(pair, Node::Alpha)?;
    println!("alpha's device: {before:016x}");
    typed(pair, Node::Alpha, "secondary r0")?;
    typed(pair, Node::Beta, "primary r0")?;
    let after = checksum(pair, Node::Beta)?;
    println!("beta's device:  {after:016x}");
    if before != after {
        bail!("the checksums differ");
    }
    let checked = workload::verify(&pair.export(Node::Beta), &journal(pair))?;
    println!(
        "every one of {} acknowledged writes is there ({} blocks read back)",
        checked.acknowledged, checked.blocks
    );
    show_status(pair)
}

/// A checksum over the whole device, read through a node's NBD socket.
fn checksum(pair: &Pair, node: Node) -> Result<u64> {
    let mut export = connect(pair, node)?;
    let mut sum = 0xcbf2_9ce4_8422_2325_u64;
    let mut data = vec![0; MIB as usize];
    let mut offset = 0;
    while offset < export.size() {
        let length = MIB.min(export.size() - offset) as usize;
        export.read(offset, &mut data[..length])?;
        for word in data[..length].chunks(8) {
            let value = word.iter().fold(0, |value, byte| value << 8 | u64::from(*byte));
            sum = (sum ^ value).wrapping_mul(0x0100_0000_01b3).rotate_left(17);
        }
        offset += length as u64;
    }
    Ok(sum)
}

fn connect(pair: &Pair, node: Node) -> Result<Nbd> {
    let TargetName::Nbd(socket, export) = pair.export(node) else { bail!("an export is NBD") };
    Nbd::connect(&socket, &export)
}

fn compare_disks(pair: &Pair, primary: Node) -> Result<()> {
    let size = connect(pair, primary)?.size();
    let different = workload::compare(&pair.disk(Node::Alpha), &pair.disk(Node::Beta), size)?;
    if !different.is_empty() {
        bail!("{} blocks of the two disks differ, the first is {}", different.len(), different[0]);
    }
    println!("both disks compared block for block: equal ({} blocks)", size / workload::BLOCK);
    Ok(())
}

fn next_steps(pair: &Pair) {
    println!("\nYour own next steps (while the pair runs):\n");
    for (node, words) in [
        (Node::Beta, "status r0"),
        (Node::Beta, "secondary r0"),
        (Node::Alpha, "primary r0"),
        (Node::Alpha, "disconnect r0"),
        (Node::Alpha, "connect r0"),
    ] {
        println!("  {}", pair.command(node, words));
    }
    println!("  cat {}/proc/drbd", pair.side(Node::Alpha).run_dir);
    println!("  nbdinfo 'nbd+unix:///r0?socket={}'\n", pair.socket(Node::Beta).display());
}

/// Returns when the user presses Ctrl-C or the program is asked to end.
fn wait_for_interrupt() -> Result<()> {
    use nix::sys::signal::{SigSet, Signal};
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    signals.thread_block().context("cannot hold Ctrl-C back")?;
    signals.wait().context("cannot wait for Ctrl-C")?;
    println!();
    Ok(())
}
