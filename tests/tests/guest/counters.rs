//! The counters of `/proc/drbd`, beside those of two kernels that went through the same.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use udrbd_tests::replica::{Kind, Replica, Status};

use crate::duo::{Duo, IO};
use crate::replication;

/// What a side's counters were after each part of the scenario.
type Account = Vec<(&'static str, String)>;

/// Two of ours count as two kernels do; in the long run so does one of each, in either part.
pub(crate) fn count_as_the_kernel_does() -> Result<()> {
    let wanted = account_of((Kind::Kernel, Kind::Kernel))?;
    let mut differences = Vec::new();
    for kinds in replication::beside_kernels() {
        for ((part, own), (_, kernels)) in account_of(kinds)?.iter().zip(&wanted) {
            if own != kernels {
                differences.push(format!("{kinds:?} after {part}: {own}\nand not {kernels}"));
            }
        }
    }
    if !differences.is_empty() {
        bail!("{}", differences.join("\n"));
    }
    Ok(())
}

fn account_of(kinds: (Kind, Kind)) -> Result<Account> {
    let mut account = Account::new();
    // As NBD servers: of a ublk disk the kernel looks for partitions, which counts as reading.
    Duo::play(kinds, |duo| {
        for side in [&mut duo.first, &mut duo.second] {
            side.net.push("--verify-alg=crc32c".to_owned());
        }
        let (first, second) = (duo.first.clone(), duo.second.clone());
        duo.connect_and_sync()?;
        note(duo, "the full sync", &mut account)?;

        duo.write(&first, "--seed 5 --count 40 --threads 1 --max 65536 --flush-every 7")?;
        note(duo, "writes", &mut account)?;

        duo.verify(&first)?;
        note(duo, "reads", &mut account)?;

        second.disconnect(&mut duo.guest)?;
        first.wait(&mut duo.guest, "WFConnection", Duration::from_secs(60), |s| {
            s.connection == "WFConnection"
        })?;
        duo.write(&first, "--seed 6 --count 20 --threads 1 --max 65536")?;
        second.connect(&mut duo.guest)?;
        duo.wait_healthy()?;
        note(duo, "the resync of a part", &mut account)?;

        for (offset, length) in [(0, 4 << 20), (8 << 20, 65536), ((12 << 20) + 4096, 1_000_448)] {
            let words = format!("discard {} --offset {offset} --length {length}", first.target());
            duo.guest.sh(&format!("{IO} {words}"))?;
        }
        note(duo, "discards", &mut account)?;

        first.minor_verb(&mut duo.guest, "verify", "--start=0")?;
        done(duo)?;
        note(duo, "a verify", &mut account)?;

        by_checksums(duo)?;
        note(duo, "a resync by checksums", &mut account)
    })?;
    Ok(account)
}

/// Waits until neither side has background work.
fn done(duo: &mut Duo) -> Result<()> {
    for side in [duo.first.clone(), duo.second.clone()] {
        side.wait(&mut duo.guest, "the end", Duration::from_secs(180), Status::is_healthy)?;
    }
    Ok(())
}

/// A resync of the whole second disk, of which one block differs.
fn by_checksums(duo: &mut Duo) -> Result<()> {
    for side in [&duo.first, &duo.second] {
        side.disconnect(&mut duo.guest)?;
    }
    duo.guest.sh(&format!(
        "head -c 4096 /dev/urandom | dd of={} bs=4096 seek=77 conv=notrunc oflag=direct status=none",
        duo.second.disk
    ))?;
    for side in [&mut duo.first, &mut duo.second] {
        side.net.push("--csums-alg=crc32c".to_owned());
    }
    duo.connect()?;
    duo.wait_healthy()?;
    duo.second.minor_verb(&mut duo.guest, "invalidate", "")?;
    done(duo)
}

/// Notes the counters of both sides, once they are at rest.
fn note(duo: &mut Duo, part: &'static str, account: &mut Account) -> Result<()> {
    for side in [duo.first.clone(), duo.second.clone()] {
        let begin = Instant::now();
        let mut last = String::new();
        loop {
            // Our status file is written ten times a second.
            std::thread::sleep(Duration::from_millis(500));
            let line = counters(duo, &side)?;
            let at_rest = ["lo:0", "pe:0", "ua:0", "ap:0"].iter().all(|word| line.contains(word));
            if at_rest && line == last {
                account.push((part, line));
                break;
            }
            if begin.elapsed() > Duration::from_secs(30) {
                bail!("the counters do not come to rest: {line}");
            }
            last = line;
        }
    }
    Ok(())
}

/// The line of counters of a side.
fn counters(duo: &mut Duo, side: &Replica) -> Result<String> {
    let text = duo.guest.sh(&format!("cat {}", side.status_file()))?;
    let head = format!("{}: cs:", side.minor);
    let mut lines = text.lines().skip_while(|line| !line.trim_start().starts_with(&head)).skip(1);
    Ok(lines.next().context("a line of counters")?.trim().to_owned())
}
