//! Handshake, initial sync, writes and role changes.

use std::time::Duration;

use anyhow::{Result, bail};
use udrbd_tests::replica::Kind;

use crate::duo::Duo;

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
    for kinds in [(Kind::Udrbd, Kind::Kernel), (Kind::Kernel, Kind::Udrbd)] {
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
    Duo::play((Kind::Udrbd, Kind::Kernel), |duo| {
        let secret = |word: &str| vec!["--cram-hmac-alg=sha1".to_owned(), format!("--shared-secret={word}")];
        let plain = duo.first.net.clone();
        duo.first.net.extend(secret("ours"));
        duo.second.net.extend(secret("theirs"));
        duo.connect()?;
        // Long enough for several attempts.
        for _ in 0..20 {
            for side in [&duo.first, &duo.second] {
                let status = side.status(&mut duo.guest)?;
                if status.connection == "Connected" {
                    bail!("{:?} is connected in spite of a wrong secret", side.kind);
                }
            }
            std::thread::sleep(Duration::from_millis(400));
        }
        for side in [duo.first.clone(), duo.second.clone()] {
            // Whoever has given up by itself has nothing left to disconnect.
            let status = side.status(&mut duo.guest)?;
            if status.connection != "StandAlone" {
                side.disconnect(&mut duo.guest)?;
            }
        }
        for side in [&mut duo.first, &mut duo.second] {
            side.net = plain.clone();
            side.net.extend(secret("the same"));
        }
        duo.connect_and_sync()
    })
}
