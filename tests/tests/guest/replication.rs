//! Handshake, initial sync, writes and role changes.

use std::time::Duration;

use anyhow::{Result, bail};
use udrbd_tests::replica::Kind;
use udrbd_tests::runner;

use crate::duo::Duo;

/// Ours against the kernel's, in both parts.
pub(crate) const MIXED: [(Kind, Kind); 2] = [(Kind::Udrbd, Kind::Kernel), (Kind::Kernel, Kind::Udrbd)];

/// Pairs that are to do what two kernels do: two of ours, and in the long run one of each, in either part.
pub(crate) fn beside_kernels() -> impl Iterator<Item = (Kind, Kind)> {
    let mixed = MIXED.into_iter().filter(|_| runner::is_long());
    [(Kind::Udrbd, Kind::Udrbd)].into_iter().chain(mixed)
}

pub(crate) fn kernel_pair() -> Result<()> {
    Duo::play((Kind::Kernel, Kind::Kernel), both_take_writes)
}

pub(crate) fn udrbd_first() -> Result<()> {
    Duo::play((Kind::Udrbd, Kind::Kernel), both_take_writes)
}

pub(crate) fn kernel_first() -> Result<()> {
    Duo::play((Kind::Kernel, Kind::Udrbd), both_take_writes)
}

/// Full sync from the first side, then writes on it and, after a switch of roles and back, on both.
fn both_take_writes(duo: &mut Duo) -> Result<()> {
    let (first, second) = (duo.first.clone(), duo.second.clone());
    duo.connect_and_sync()?;
    let size = duo.size(&first)?;
    duo.write(&first, "--seed 1 --count 150 --flush-every 20")?;
    duo.compare(size)?;

    for round in 0..2 {
        for (old, new) in [(&first, &second), (&second, &first)] {
            old.secondary(&mut duo.guest)?;
            new.primary(&mut duo.guest, false)?;
            duo.verify(new)?;
            duo.write(new, &format!("--seed 2{round} --count 30 --threads 8"))?;
            duo.compare(size)?;
        }
    }
    refused_promotion(duo)?;
    duo.wait_healthy()
}

/// The second side may not become Primary while the first is: -1, exit status 11.
fn refused_promotion(duo: &mut Duo) -> Result<()> {
    let second = duo.second.clone();
    let output = second.try_minor_verb(&mut duo.guest, "primary", "")?;
    if output.status != 11 || !output.stderr.contains("Multiple primaries not allowed by config") {
        bail!("a second Primary was answered with {}: {}", output.status, output.stderr);
    }
    Ok(())
}

pub(crate) fn authenticated() -> Result<()> {
    for kinds in MIXED {
        Duo::play(kinds, |duo| {
            for side in [&mut duo.first, &mut duo.second] {
                side.net.extend(["--cram-hmac-alg=sha1".to_owned(), "--shared-secret=two-of-us".to_owned()]);
            }
            duo.connect_and_sync()?;
            let first = duo.first.clone();
            duo.write(&first, "--seed 3 --count 50")?;
            let size = duo.size(&first)?;
            duo.compare(size)
        })?;
    }
    Ok(())
}

pub(crate) fn wrong_secret() -> Result<()> {
    let secret = |word: &str| format!("--cram-hmac-alg=sha1 --shared-secret={word}");
    Duo::play((Kind::Udrbd, Kind::Kernel), |duo| {
        kept_apart(duo, &secret("ours"), &secret("theirs"), "Authentication of peer failed")?;
        heals_with(duo, &secret("the-same"))
    })
}

pub(crate) fn wrong_protocol() -> Result<()> {
    for kinds in MIXED {
        Duo::play(kinds, |duo| {
            kept_apart(duo, "--protocol=A", "--protocol=C", "incompatible protocol settings")?;
            heals_with(duo, "--protocol=C")
        })?;
    }
    Ok(())
}

/// The size of the smaller side is the device's, whoever is smaller.
pub(crate) fn smaller_side_decides() -> Result<()> {
    for kinds in MIXED {
        Duo::play(kinds, |duo| {
            let limit = 64_u64 << 20;
            duo.second.down(&mut duo.guest)?;
            duo.second.disk_options.push(format!("--size={}K", limit / 1024));
            duo.second.clone().attach(&mut duo.guest)?;
            duo.connect_and_sync()?;
            let first = duo.first.clone();
            let size = duo.size(&first)?;
            if size != limit {
                bail!("the device has {size} bytes and not {limit}");
            }
            duo.write(&first, "--seed 11 --count 40")?;
            duo.compare(size)
        })?;
    }
    Ok(())
}

/// With these options the sides must not meet, and our log has to say why in DRBD's words.
fn kept_apart(duo: &mut Duo, first: &str, second: &str, words: &str) -> Result<()> {
    let plain = duo.first.net.clone();
    let with = |options: &str| plain.iter().cloned().chain(options.split(' ').map(str::to_owned)).collect();
    (duo.first.net, duo.second.net) = (with(first), with(second));
    duo.connect()?;
    // Long enough for several attempts.
    for _ in 0..20 {
        for side in [&duo.first, &duo.second] {
            let status = side.status(&mut duo.guest)?;
            if status.connection == "Connected" {
                bail!("{:?} is connected with {first} against {second}", side.kind);
            }
        }
        std::thread::sleep(Duration::from_millis(400));
    }
    let logs = [duo.first.clone(), duo.second.clone()].map(|side| side.log(&mut duo.guest));
    if !logs.iter().any(|log| log.contains(words)) {
        bail!("no log says `{words}`");
    }
    (duo.first.net, duo.second.net) = (plain.clone(), plain);
    Ok(())
}

/// Connects again with `options` on both sides, syncs, writes.
fn heals_with(duo: &mut Duo, options: &str) -> Result<()> {
    for side in [duo.first.clone(), duo.second.clone()] {
        // Whoever has given up by itself has nothing left to disconnect.
        if side.status(&mut duo.guest)?.connection != "StandAlone" {
            side.disconnect(&mut duo.guest)?;
        }
    }
    for side in [&mut duo.first, &mut duo.second] {
        side.net.extend(options.split(' ').map(str::to_owned));
    }
    duo.connect_and_sync()?;
    let first = duo.first.clone();
    duo.write(&first, "--seed 12 --count 20")?;
    let size = duo.size(&first)?;
    duo.compare(size)
}
