//! The same metadata for the kernel and for us.

use std::time::Duration;

use anyhow::{Result, bail};
use udrbd_tests::replica::{self, Kind, Replica};

use crate::duo::Duo;

/// A node changes from the kernel to us and back between writes; its peer, the kernel, never has to sync.
pub(crate) fn moves_between() -> Result<()> {
    Duo::play((Kind::Kernel, Kind::Kernel), |duo| {
        replica::built_binaries()?;
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
        live_a_little(duo)?;
        for side in [duo.first.clone(), duo.second.clone()] {
            side.down(&mut duo.guest)?;
            both_tools_agree(duo, &side)?;
        }
        Ok(())
    })
}

/// What the kernel leaves behind reads the same with both tools.
pub(crate) fn kernel_dumps_are_equal() -> Result<()> {
    replica::built(&["drbdmeta"])?;
    Duo::play((Kind::Kernel, Kind::Kernel), |duo| {
        live_a_little(duo)?;
        for side in [duo.first.clone(), duo.second.clone()] {
            side.down(&mut duo.guest)?;
            both_tools_agree(duo, &side)?;
        }
        Ok(())
    })
}

/// The kernel attaches, syncs and replicates on metadata that our drbdmeta wrote.
pub(crate) fn kernel_takes_our_metadata() -> Result<()> {
    replica::built(&["drbdmeta"])?;
    Duo::play((Kind::Kernel, Kind::Kernel), |duo| {
        for side in [duo.first.clone(), duo.second.clone()] {
            side.down(&mut duo.guest)?;
            duo.guest.sh(&format!("blkdiscard -f {}", side.disk))?;
            let ours = Replica { kind: Kind::Udrbd, ..side.clone() };
            ours.create_md(&mut duo.guest)?;
            both_tools_agree(duo, &side)?;
            side.attach(&mut duo.guest)?;
        }
        let first = duo.first.clone();
        duo.connect_and_sync()?;
        duo.write(&first, "--seed 62 --count 30")?;
        let size = duo.size(&first)?;
        duo.compare(size)
    })
}

/// A kernel node dies with a hot activity log; both tools apply it to copies of its disk and leave the
/// same bytes.
pub(crate) fn activity_log_is_applied_alike() -> Result<()> {
    replica::built(&["drbdmeta"])?;
    Duo::play((Kind::Kernel, Kind::Kernel), |duo| {
        let first = duo.first.clone();
        duo.connect_and_sync()?;
        duo.write(&first, "--seed 61 --count 40 --max 65536")?;
        duo.guest.power_cut()?;
        duo.guest.power_on()?;
        duo.guest.sh("dd if=/dev/vda of=/dev/vdb bs=1M iflag=direct oflag=direct status=none")?;
        let before = duo.guest.sh("md5sum </dev/vda; md5sum </dev/vdb")?;
        // The same minor for both: it is the second disk that differs.
        let real = Replica { kind: Kind::Kernel, ..first.clone() };
        let ours = Replica { kind: Kind::Udrbd, disk: "/dev/vdb".to_owned(), ..first.clone() };
        duo.guest.sh(&real.meta("apply-al"))?;
        duo.guest.sh(&ours.meta("apply-al"))?;
        let after = duo.guest.sh("echo 3 >/proc/sys/vm/drop_caches; md5sum </dev/vda; md5sum </dev/vdb")?;
        let lines = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
        let (before, after) = (lines(&before), lines(&after));
        if before[0] == after[0] {
            bail!("the activity log had nothing to apply: this proves nothing");
        }
        if after[0] != after[1] {
            let differ = duo.guest.run("cmp -l /dev/vda /dev/vdb | head -20")?.stdout;
            bail!("the two disks differ (byte, real, ours):\n{differ}");
        }
        Ok(())
    })
}

/// Writes together, then writes of the first side alone, so that the bitmap has something to say.
fn live_a_little(duo: &mut Duo) -> Result<()> {
    let first = duo.first.clone();
    duo.connect_and_sync()?;
    duo.write(&first, "--seed 6 --count 40")?;
    duo.second.clone().disconnect(&mut duo.guest)?;
    first.wait(&mut duo.guest, "the loss of the peer", Duration::from_secs(30), |s| {
        s.peer_disk == "DUnknown"
    })?;
    duo.write(&first, "--seed 7 --count 40")?;
    // An empty bitmap would prove nothing.
    first
        .wait(&mut duo.guest, "something out of sync", Duration::from_secs(10), |s| s.out_of_sync_kib > 0)?;
    Ok(())
}

fn both_tools_agree(duo: &mut Duo, side: &Replica) -> Result<()> {
    let real = dump(duo, &Replica { kind: Kind::Kernel, ..side.clone() })?;
    let ours = dump(duo, &Replica { kind: Kind::Udrbd, ..side.clone() })?;
    if real != ours {
        let differing: Vec<String> = real
            .lines()
            .zip(ours.lines())
            .filter(|(real, ours)| real != ours)
            .take(20)
            .map(|(real, ours)| format!("  real: {real}\n  ours: {ours}"))
            .collect();
        let (lines, other) = (real.lines().count(), ours.lines().count());
        bail!("{:?}'s metadata, {lines} and {other} lines:\n{}", side.kind, differing.join("\n"));
    }
    Ok(())
}

/// The dump without its comments, which hold the time and the command, and the flags as get-gi shows
/// them: drbdmeta before 9.33 prints `flags 0x00000000` in every dump.
fn dump(duo: &mut Duo, side: &Replica) -> Result<String> {
    let text = duo.guest.sh(&side.meta("dump-md"))?;
    let plain = |line: &&str| !line.starts_with('#') && !line.trim_start().starts_with("flags 0x");
    let lines: Vec<&str> = text.lines().filter(plain).collect();
    if lines.len() < 10 {
        bail!("a dump of {} lines:\n{text}", lines.len());
    }
    Ok(format!("{}\n{}", duo.guest.sh(&side.meta("get-gi"))?.trim(), lines.join("\n")))
}
