//! A bit that is turned over on its way, where the peers send digests of what they send (`data-integrity-alg`).

use std::time::Duration;

use anyhow::{Result, ensure};
use udrbd_tests::replica::{Kind, Replica};
use udrbd_tests::runner;

use crate::duo::{Duo, IO};
use crate::replication::MIXED;

/// What is sent when a bit is to be turned over, again and again.
const MARKER: &str = "a-bit-of-this-is";
/// While there is this file the next such content loses a bit.
const FLIP: &str = "/run/flip";
/// The other side's address, as each side has it: that of a relay.
const RELAYS: [(&str, &str); 2] =
    [("127.0.0.1:7798", "127.0.0.1:7789"), ("127.0.0.1:7799", "127.0.0.1:7788")];

/// What became of a flip: what either side says of digests and what states its connection goes through, and the exit status of the
/// client whose data it was, if it was a client's.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    part: &'static str,
    digests: [String; 2],
    states: [String; 2],
    client: Option<i32>,
}

/// The receiver of spoiled data ends the connection; the next one makes both disks equal. As two kernels do it, so do ours.
pub(crate) fn flips_are_found() -> Result<()> {
    let wanted = outcomes((Kind::Kernel, Kind::Kernel))?;
    for outcome in &wanted {
        println!("{outcome:?}");
    }
    let mut different = Vec::new();
    // With a kernel peer each of ours is sender and receiver.
    let alone = runner::is_long().then_some((Kind::Udrbd, Kind::Udrbd));
    for kinds in MIXED.into_iter().chain(alone) {
        for (own, kernels) in outcomes(kinds)?.iter().zip(&wanted) {
            if own != kernels {
                different.push(format!("{kinds:?} {own:?}\nand not {kernels:?}"));
            }
        }
    }
    ensure!(different.is_empty(), "{}", different.join("\n"));
    Ok(())
}

fn outcomes(kinds: (Kind, Kind)) -> Result<Vec<Outcome>> {
    let mut outcomes = Vec::new();
    Duo::play(kinds, |duo| {
        for (side, (relay, _)) in [&mut duo.first, &mut duo.second].into_iter().zip(RELAYS) {
            relay.clone_into(&mut side.peer);
            side.net.push("--data-integrity-alg=crc32c".to_owned());
        }
        for (number, (from, to)) in RELAYS.iter().enumerate() {
            duo.guest.sh(&format!(
                "setsid {IO} relay {from} {to} --marker {MARKER} --flip {FLIP} >/dev/null 2>&1 & echo $! >/run/relay{number}"
            ))?;
        }
        let (first, second) = (duo.first.clone(), duo.second.clone());
        duo.connect_and_sync()?;
        let size = duo.size(&first)?;

        outcomes.push(flip(duo, "a write", |duo| write(duo, &first, 0).map(Some))?);
        duo.compare(size)?;

        // What the other side lacks is one request.
        outcomes.push(flip(duo, "a resync", |duo| {
            second.disconnect(&mut duo.guest)?;
            first.wait(&mut duo.guest, "WFConnection", Duration::from_secs(60), |s| {
                s.connection == "WFConnection"
            })?;
            write(duo, &first, 4 << 20)?;
            second.connect(&mut duo.guest)?;
            Ok(None)
        })?);
        duo.compare(size)?;

        first.secondary(&mut duo.guest)?;
        second.primary(&mut duo.guest, false)?;
        outcomes.push(flip(duo, "a write of the other side", |duo| write(duo, &second, 8 << 20).map(Some))?);
        duo.compare(size)?;

        for number in 0..RELAYS.len() {
            duo.guest.sh(&format!("kill $(cat /run/relay{number})"))?;
        }
        Ok(())
    })?;
    Ok(outcomes)
}

/// Has a client write what loses a bit on its way; its exit status.
fn write(duo: &mut Duo, side: &Replica, offset: u64) -> Result<i32> {
    let script =
        format!("{IO} once {} --write --fill {MARKER} --offset {offset} --length 262144", side.target());
    Ok(duo.guest.run_limited(&script, Duration::from_secs(60))?.status)
}

/// Plays a part in which a bit is turned over, and waits until the pair is well again.
fn flip(
    duo: &mut Duo,
    part: &'static str,
    play: impl FnOnce(&mut Duo) -> Result<Option<i32>>,
) -> Result<Outcome> {
    let sides = [duo.first.clone(), duo.second.clone()];
    duo.guest.sh("dmesg -C")?;
    let mut before = Vec::new();
    for side in &sides {
        before.push(lines(duo, side)?.len());
    }
    duo.guest.sh(&format!("touch {FLIP}"))?;
    let client = play(duo)?;
    duo.guest.sh(&format!("for i in $(seq 300); do [ -e {FLIP} ] || exit 0; sleep 0.1; done; exit 1"))?;
    // The connection that lost the bit has to go first.
    std::thread::sleep(Duration::from_secs(2));
    duo.wait_healthy()?;
    let mut digests = Vec::new();
    let mut states = Vec::new();
    for (side, before) in sides.iter().zip(before) {
        let lines = lines(duo, side)?.split_off(before);
        digests.push(
            lines.iter().filter_map(|line| from(line, "Digest integrity")).collect::<Vec<_>>().join("; "),
        );
        states.push(lines.iter().filter_map(|line| conn(line)).collect::<Vec<_>>().join(", "));
    }
    let pair = |texts: Vec<String>| <[String; 2]>::try_from(texts).unwrap_or_default();
    Ok(Outcome { part, digests: pair(digests), states: pair(states), client })
}

/// What a side's log says of it.
fn lines(duo: &mut Duo, side: &Replica) -> Result<Vec<String>> {
    let script = match side.kind {
        Kind::Kernel => format!("dmesg | grep -E 'drbd {}: |drbd{}: ' || true", side.resource, side.minor),
        Kind::Udrbd => format!("cat {}/log", side.run_dir),
    };
    Ok(duo.guest.sh(&script)?.lines().map(str::to_owned).collect())
}

/// The rest of a line from a word on.
fn from(line: &str, word: &str) -> Option<String> {
    line.find(word).map(|at| line[at..].to_owned())
}

/// The states of a connection's change.
fn conn(line: &str) -> Option<String> {
    let rest = from(line, "conn( ")?;
    let (states, _) = rest.strip_prefix("conn( ")?.split_once(" )")?;
    // Which of its two sockets a node first finds closed is chance.
    Some(states.replace("NetworkFailure", "BrokenPipe"))
}
