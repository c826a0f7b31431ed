//! What keeps a pair healthy: online verify, and another size.

use std::time::Duration;

use anyhow::{Result, bail};
use udrbd_tests::replica::Replica;

use crate::duo::Duo;
use crate::replication::MIXED;

/// Differences planted below one side are found by a verify that either side starts, and nothing else is.
pub(crate) fn verify_finds_what_was_planted() -> Result<()> {
    for kinds in MIXED {
        Duo::play(kinds, |duo| {
            for side in [&mut duo.first, &mut duo.second] {
                side.net.push("--verify-alg=crc32c".to_owned());
                side.disk_options.push("--c-plan-ahead=0 --resync-rate=40M".to_owned());
            }
            let (first, second) = (duo.first.clone(), duo.second.clone());
            for side in [&first, &second] {
                side.minor_verb(&mut duo.guest, "disk-options", "--c-plan-ahead=0 --resync-rate=40M")?;
            }
            duo.connect_and_sync()?;
            duo.write(&first, "--seed 5 --count 60")?;
            let size = duo.size(&first)?;
            let last = size.div_ceil(4096) - 1;
            // The first time everything, the second time a part.
            let part = "--start=4096s --stop=16384s";
            for (asking, range, blocks) in
                [(&first, "--start=0", [0, 700, 701, last]), (&second, part, [512, 900, 901, 2047])]
            {
                plant(duo, &second, &blocks)?;
                verify(duo, asking, range, 16)?;
                for side in [&first, &second] {
                    side.disconnect(&mut duo.guest)?;
                }
                duo.connect()?;
                duo.wait_healthy()?;
                duo.compare(size)?;
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// Writes other bytes below a side's back.
fn plant(duo: &mut Duo, side: &Replica, blocks: &[u64]) -> Result<()> {
    for block in blocks {
        let script = format!(
            "head -c 4096 /dev/urandom | dd of={} bs=4096 seek={block} conv=notrunc oflag=direct status=none",
            side.disk
        );
        duo.guest.sh(&script)?;
    }
    Ok(())
}

/// Runs a verify from one side; afterwards so many KiB must be out of sync on both.
fn verify(duo: &mut Duo, asking: &Replica, range: &str, kib: u64) -> Result<()> {
    asking.minor_verb(&mut duo.guest, "verify", range)?;
    for side in [duo.first.clone(), duo.second.clone()] {
        let status = side.wait(&mut duo.guest, "the end of the verify", Duration::from_secs(120), |s| {
            s.connection == "Connected"
        })?;
        if status.out_of_sync_kib != kib {
            bail!("{} KiB are out of sync after a verify, and not {kib}", status.out_of_sync_kib);
        }
    }
    Ok(())
}

/// The configured size of a pair grows; the new part is resynced.
pub(crate) fn size_grows() -> Result<()> {
    for kinds in MIXED {
        Duo::play(kinds, |duo| {
            for side in [&mut duo.first, &mut duo.second] {
                side.down(&mut duo.guest)?;
                side.disk_options.push("--size=64M".to_owned());
                side.clone().attach(&mut duo.guest)?;
            }
            duo.connect_and_sync()?;
            let first = duo.first.clone();
            duo.write(&first, "--seed 6 --count 40")?;
            first.minor_verb(&mut duo.guest, "resize", "--size=80M")?;
            let grown = 80 << 20;
            for _ in 0..100 {
                if duo.size(&first)? == grown {
                    break;
                }
                std::thread::sleep(Duration::from_millis(200));
            }
            duo.wait_healthy()?;
            if duo.size(&first)? != grown {
                bail!("the device has {} bytes", duo.size(&first)?);
            }
            duo.verify(&first)?;
            duo.write(&first, "--seed 7 --count 40")?;
            duo.compare(grown)
        })?;
    }
    Ok(())
}
