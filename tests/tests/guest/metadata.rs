//! The same metadata for the kernel and for us.

use std::time::Duration;

use anyhow::{Result, bail};
use udrbd_tests::replica::{Kind, Replica};

use crate::duo::Duo;

/// A node changes from the kernel to us and back between writes; its peer, the kernel, never has to sync.
pub(crate) fn moves_between() -> Result<()> {
    Duo::play((Kind::Kernel, Kind::Kernel), |duo| {
        udrbd_tests::replica::built_binaries()?;
        duo.connect_and_sync()?;
        let size = duo.size(&duo.first.clone())?;
        let mut active = duo.first.clone();
        for (turn, kind) in [Kind::Udrbd, Kind::Kernel, Kind::Udrbd, Kind::Kernel].into_iter().enumerate() {
            duo.write(&active, &format!("--seed 5{turn} --count 60"))?;
            active = change_kind(duo, &active, kind)?;
            duo.verify(&active)?;
            duo.compare(size)?;
        }
        duo.write(&active, "--seed 59 --count 30")?;
        duo.compare(size)
    })
}

/// Stops the first side, starts it as `kind` on the same disk, and promotes it again.
fn change_kind(duo: &mut Duo, old: &Replica, kind: Kind) -> Result<Replica> {
    old.secondary(&mut duo.guest)?;
    let identifiers_before = old.minor_verb(&mut duo.guest, "get-gi", "")?;
    old.down(&mut duo.guest)?;
    if old.kind == Kind::Udrbd {
        old.kill_daemon(&mut duo.guest)?;
    }
    // Another name for each life, so that our daemons do not share a log.
    let new = Replica { kind, ..old.clone() };
    let second = duo.second.clone();
    duo.guest.sh("dmesg -C")?;
    new.start(&mut duo.guest)?;
    new.attach(&mut duo.guest)?;
    let offline: Vec<String> = words(&identifiers_before).into_iter().take(4).collect();
    let found: Vec<String> =
        words(&new.minor_verb(&mut duo.guest, "get-gi", "")?).into_iter().take(4).collect();
    if offline != found {
        bail!("the identifiers were {offline:?} and are {found:?}");
    }
    new.connect(&mut duo.guest)?;
    new.wait(&mut duo.guest, "Connected", Duration::from_secs(60), |s| s.connection == "Connected")?;
    second.wait_healthy(&mut duo.guest)?;
    new.wait_healthy(&mut duo.guest)?;
    let log = duo.guest.sh("dmesg")?;
    if log.contains("Began resync") {
        bail!("the move to {kind:?} caused a resync:\n{log}");
    }
    new.primary(&mut duo.guest, false)?;
    Ok(new)
}

fn words(identifiers: &str) -> Vec<String> {
    identifiers.trim().split(':').map(str::to_owned).collect()
}

/// After a life with writes on either kind of side, both tools print the same for either disk.
pub(crate) fn dumps_are_equal() -> Result<()> {
    Duo::play((Kind::Udrbd, Kind::Kernel), |duo| {
        let first = duo.first.clone();
        duo.connect_and_sync()?;
        duo.write(&first, "--seed 6 --count 40")?;
        // Alone for a while, so that the bitmap has something to say.
        duo.second.clone().disconnect(&mut duo.guest)?;
        first.wait(&mut duo.guest, "the loss of the peer", Duration::from_secs(30), |s| {
            s.peer_disk == "DUnknown"
        })?;
        duo.write(&first, "--seed 7 --count 40")?;
        for side in [duo.first.clone(), duo.second.clone()] {
            side.down(&mut duo.guest)?;
            let real = Replica { kind: Kind::Kernel, ..side.clone() };
            let ours = Replica { kind: Kind::Udrbd, ..side.clone() };
            let real = dump(duo, &real)?;
            let ours = dump(duo, &ours)?;
            if real != ours {
                bail!("{:?}'s metadata\nby the real drbdmeta:\n{real}\nby ours:\n{ours}", side.kind);
            }
            if side.kind == Kind::Udrbd
                && real.contains("bm-bytes")
                && !real.contains("0xF")
                && !real.contains("0x0000000000000")
            {
                bail!("a bitmap with nothing in it proves nothing:\n{real}");
            }
        }
        Ok(())
    })
}

/// The dump without its comments, which hold the time and the command.
fn dump(duo: &mut Duo, side: &Replica) -> Result<String> {
    let text = duo.guest.sh(&side.meta("dump-md"))?;
    Ok(text.lines().filter(|line| !line.starts_with('#')).collect::<Vec<_>>().join("\n"))
}
