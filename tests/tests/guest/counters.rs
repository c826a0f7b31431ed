//! The counters of `/proc/drbd`, beside those of two kernels that went through the same.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use udrbd_tests::replica::{Kind, Replica};
use udrbd_tests::runner;

use crate::duo::Duo;
use crate::replication::MIXED;

/// What a side's counters were after each part of the scenario.
type Account = Vec<(&'static str, String)>;

/// Two of ours count as two kernels do; in the long run so does one of each, in either part.
pub(crate) fn count_as_the_kernel_does() -> Result<()> {
    let wanted = account_of((Kind::Kernel, Kind::Kernel))?;
    let mut differences = Vec::new();
    let mixed = MIXED.into_iter().filter(|_| runner::is_long());
    for kinds in [(Kind::Udrbd, Kind::Udrbd)].into_iter().chain(mixed) {
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
        note(duo, "the resync of a part", &mut account)
    })?;
    Ok(account)
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
