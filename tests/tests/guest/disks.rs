//! Disks in trouble under either side: they fail as a whole, in a few blocks or for a while, are slow, or say nothing at all.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use udrbd_tests::replica::{Kind, Replica, Status};
use udrbd_tests::runner;

use crate::duo::{DISK_BYTES, Duo, IO};
use crate::replication::MIXED;

/// A reader and writer must see nothing of it within this time.
const LIMIT: Duration = Duration::from_secs(300);

/// Which side of a pair has the disk in trouble.
#[derive(Clone, Copy)]
enum Side {
    First,
    Second,
}

/// The disk of a side, behind a table of device mapper that can be changed under load.
struct Mapped {
    side: Side,
    lower: String,
    sectors: u64,
}

impl Mapped {
    /// Puts device mapper below a side, which is down and has its disk attached again afterwards.
    fn below(duo: &mut Duo, side: Side) -> Result<Self> {
        duo.guest.sh("for module in dm-mod dm-flakey dm-delay; do modprobe $module; done")?;
        let replica = Self::replica(duo, side);
        let lower = replica.disk.clone();
        replica.clone().down(&mut duo.guest)?;
        let sectors = duo.guest.sh(&format!("blockdev --getsz {lower}"))?.trim().parse().context("a size")?;
        let mapped = Self { side, lower, sectors };
        let table = mapped.whole("linear");
        duo.guest.sh(&format!("dmsetup create troubled --table '{table}'; dmsetup mknodes"))?;
        "/dev/mapper/troubled".clone_into(&mut Self::replica(duo, side).disk);
        Self::replica(duo, side).clone().attach(&mut duo.guest)?;
        Ok(mapped)
    }

    fn replica(duo: &mut Duo, side: Side) -> &mut Replica {
        match side {
            Side::First => &mut duo.first,
            Side::Second => &mut duo.second,
        }
    }

    /// A table of one target.
    fn whole(&self, target: &str) -> String {
        match target {
            "error" => format!("0 {} error", self.sectors),
            _ => format!("0 {} {target} {} 0", self.sectors, self.lower),
        }
    }

    /// A table in which some sectors are another target's, and the others as ever.
    fn part(&self, start: u64, sectors: u64, target: &str) -> String {
        let (lower, end) = (&self.lower, start + sectors);
        let rest = self.sectors - end;
        format!("0 {start} linear {lower} 0\\n{start} {sectors} {target}\\n{end} {rest} linear {lower} {end}")
    }

    /// The commands that give the device another table; what is under way is neither awaited nor failed.
    fn change(table: &str) -> String {
        format!(
            "dmsetup suspend --nolockfs --noflush troubled; printf '{table}\n' | dmsetup load troubled; dmsetup resume troubled"
        )
    }

    fn load(&self, duo: &mut Duo, table: &str) -> Result<()> {
        duo.guest.sh(&Self::change(table)).map(drop)
    }

    /// A disk that was lost is whole again and taken back.
    fn attach_again(&self, duo: &mut Duo) -> Result<()> {
        self.load(duo, &self.whole("linear"))?;
        let side = Self::replica(duo, self.side).clone();
        let disk = &side.disk;
        let apply = side.meta("apply-al");
        let attach = side.setup(&format!(
            "attach {} {disk} {disk} internal {}",
            side.minor,
            side.disk_options.join(" ")
        ));
        duo.guest.sh(&format!("set -e\n{apply}\n{attach}")).map(drop)
    }

    /// The side has its own disk again, as the scenario found it.
    fn remove(self, duo: &mut Duo) -> Result<()> {
        let side = Self::replica(duo, self.side);
        side.clone().down(&mut duo.guest)?;
        duo.guest.sh("dmsetup remove --retry troubled")?;
        self.lower.clone_into(&mut Self::replica(duo, self.side).disk);
        Self::replica(duo, self.side).clone().attach(&mut duo.guest)
    }
}

/// Writes through the first side for six seconds, in which `trouble` comes after two: the writer must see no error.
fn write_through(duo: &mut Duo, seed: u32, trouble: &str) -> Result<()> {
    let target = duo.first.target();
    let script = format!(
        "{IO} write {target} --journal /run/share/journal --seed {seed} --seconds 6 --threads 8 & \
         writer=$!; sleep 2; {trouble}; wait $writer"
    );
    duo.guest.run_limited(&script, LIMIT)?.expect_success()?;
    Ok(())
}

/// Both are in step again, the same on both disks, and every promise is kept.
fn all_is_well(duo: &mut Duo) -> Result<()> {
    duo.wait_healthy()?;
    let first = duo.first.clone();
    duo.verify(&first)?;
    let size = duo.size(&first)?;
    duo.compare(size)
}

fn wait(duo: &mut Duo, side: &Replica, what: &str, wanted: impl Fn(&Status) -> bool) -> Result<Status> {
    side.wait(&mut duo.guest, what, Duration::from_secs(90), wanted)
}

/// The disk of the second side fails under load: the first goes on, and what the other had acknowledged and lost with its
/// disk is resynced when that is back.
pub(crate) fn of_the_secondary() -> Result<()> {
    for kinds in MIXED {
        Duo::play(kinds, |duo| {
            let mapped = Mapped::below(duo, Side::Second)?;
            duo.connect_and_sync()?;
            let first = duo.first.clone();
            write_through(duo, 8, &Mapped::change(&mapped.whole("error")))?;
            wait(duo, &first, "Diskless at the peer", |s| {
                s.peer_disk == "Diskless" && s.connection == "Connected"
            })?;
            duo.verify(&first)?;
            mapped.attach_again(duo)?;
            all_is_well(duo)?;
            mapped.remove(duo)
        })?;
    }
    Ok(())
}

/// The disk of the Primary fails under load: it goes on with the other one's, reads there, and resyncs its own when that is back.
pub(crate) fn of_the_primary() -> Result<()> {
    for kinds in MIXED {
        Duo::play(kinds, |duo| {
            let mapped = Mapped::below(duo, Side::First)?;
            duo.connect_and_sync()?;
            let first = duo.first.clone();
            write_through(duo, 9, &Mapped::change(&mapped.whole("error")))?;
            wait(duo, &first, "Diskless", |s| s.disk == "Diskless" && s.peer_disk == "UpToDate")?;
            duo.verify(&first)?;
            duo.write(&first, "--seed 10 --count 40")?;
            mapped.attach_again(duo)?;
            all_is_well(duo)?;
            mapped.remove(duo)
        })?;
    }
    Ok(())
}

/// With `on-io-error pass_on` a part that cannot be written costs the disk its good name, and nothing else: the peer has it all,
/// and serves it; when the part is back a reconnect resyncs it.
pub(crate) fn passed_on() -> Result<()> {
    for kinds in MIXED {
        Duo::play(kinds, |duo| {
            duo.first.disk_options.push("--on-io-error=pass_on".to_owned());
            let mapped = Mapped::below(duo, Side::First)?;
            duo.connect_and_sync()?;
            let first = duo.first.clone();
            write_through(duo, 11, &Mapped::change(&mapped.part(8192, 65536, "error")))?;
            let status = wait(duo, &first, "Inconsistent", |s| s.disk == "Inconsistent")?;
            ensure!(status.peer_disk == "UpToDate" && status.out_of_sync_kib > 0, "{status:?}");
            duo.verify(&first)?;
            mapped.load(duo, &mapped.whole("linear"))?;
            // While it is Primary and has no good disk of its own it must not disconnect.
            first.minor_verb(&mut duo.guest, "detach", "")?;
            mapped.attach_again(duo)?;
            all_is_well(duo)?;
            mapped.remove(duo)
        })?;
    }
    Ok(())
}

/// A part that cannot be read is read from the peer. With `pass_on` the disk stays, and is not good any more; with `detach` it goes.
/// Taken back it is resynced: no more than what it lacks.
pub(crate) fn unreadable_part() -> Result<()> {
    for (kinds, policy) in MIXED.into_iter().flat_map(|kinds| [(kinds, "pass_on"), (kinds, "detach")]) {
        Duo::play(kinds, |duo| {
            duo.first.disk_options.push(format!("--on-io-error={policy}"));
            let mapped = Mapped::below(duo, Side::First)?;
            duo.connect_and_sync()?;
            let first = duo.first.clone();
            // A part only, as what is in the activity log is resynced, too.
            duo.write(&first, "--seed 12 --count 60 --length 33554432")?;
            let target = format!("flakey {} 8192 0 60 1 error_reads", mapped.lower);
            mapped.load(duo, &mapped.part(8192, 65536, &target))?;
            duo.verify(&first)?;
            let lost = if policy == "detach" { "Diskless" } else { "Inconsistent" };
            wait(duo, &first, lost, |s| s.disk == lost && s.peer_disk == "UpToDate")?;
            duo.verify(&first)?;
            if policy == "pass_on" {
                first.minor_verb(&mut duo.guest, "detach", "")?;
            }
            mapped.attach_again(duo)?;
            all_is_well(duo)?;
            // Counted since the disk was taken back.
            let resynced = first.status(&mut duo.guest)?.received_kib;
            ensure!((1..=48 << 10).contains(&resynced), "{resynced} KiB were received");
            mapped.remove(duo)
        })?;
    }
    Ok(())
}

/// A disk that fails for a second every three, again and again, and is taken back each time.
pub(crate) fn flaky() -> Result<()> {
    for kinds in MIXED {
        for side in [Side::First, Side::Second] {
            Duo::play(kinds, |duo| {
                let mapped = Mapped::below(duo, side)?;
                duo.connect_and_sync()?;
                let troubled = Mapped::replica(duo, side).clone();
                for seed in 20..23 {
                    let table = format!("0 {} flakey {} 0 2 1", mapped.sectors, mapped.lower);
                    write_through(duo, seed, &Mapped::change(&table))?;
                    // It may be that nothing was written in the bad second.
                    mapped.load(duo, &mapped.whole("error"))?;
                    let first = duo.first.clone();
                    duo.write(&first, "--seed 30 --count 4")?;
                    wait(duo, &troubled, "Diskless", |s| s.disk == "Diskless")?;
                    mapped.attach_again(duo)?;
                    all_is_well(duo)?;
                }
                mapped.remove(duo)
            })?;
        }
    }
    Ok(())
}

/// A disk that takes its time is waited for.
pub(crate) fn slow() -> Result<()> {
    for kinds in MIXED {
        for side in [Side::First, Side::Second] {
            Duo::play(kinds, |duo| {
                let mapped = Mapped::below(duo, side)?;
                duo.connect_and_sync()?;
                let (sectors, lower) = (mapped.sectors, &mapped.lower);
                let delay = format!("0 {sectors} delay {lower} 0 50 {lower} 0 300");
                write_through(duo, 40, &Mapped::change(&delay))?;
                // And through a resync.
                let second = duo.second.clone();
                second.disconnect(&mut duo.guest)?;
                let first = duo.first.clone();
                duo.write(&first, "--seed 41 --count 40")?;
                second.connect(&mut duo.guest)?;
                all_is_well(duo)?;
                mapped.load(duo, &mapped.whole("linear"))?;
                mapped.remove(duo)
            })?;
        }
    }
    Ok(())
}

/// A disk of ours that says nothing at all is given up after `disk-timeout`: the writer goes on with the peer's. It
/// stays Failed until it has done what it was given; then it can be taken back, and nothing of that shows.
pub(crate) fn hanging() -> Result<()> {
    for kinds in [(Kind::Udrbd, Kind::Kernel), (Kind::Udrbd, Kind::Udrbd)] {
        Duo::play(kinds, |duo| {
            duo.first.disk_options.push("--disk-timeout=30".to_owned());
            let mapped = Mapped::below(duo, Side::First)?;
            duo.connect_and_sync()?;
            let first = duo.first.clone();
            write_through(duo, 50, "dmsetup suspend --nolockfs --noflush troubled")?;
            wait(duo, &first, "a disk given up", |s| s.disk == "Failed" && s.peer_disk == "UpToDate")?;
            duo.verify(&first)?;
            duo.write(&first, "--seed 51 --count 40")?;
            duo.guest.sh("dmsetup resume troubled")?;
            wait(duo, &first, "Diskless", |s| s.disk == "Diskless")?;
            mapped.attach_again(duo)?;
            all_is_well(duo)?;
            mapped.remove(duo)
        })?;
    }
    Ok(())
}

/// Sectors a disk of scsi_debug cannot read when it is told so: its first, and how many.
const BAD_SECTORS: (u64, u64) = (9000, 400);

/// As a worn disk does it: some sectors end in a medium error when they are read. The clients get them from the peer; taken
/// back, the disk is resynced.
pub(crate) fn medium_errors() -> Result<()> {
    let pairs = [(Kind::Udrbd, Kind::Kernel), (Kind::Udrbd, Kind::Udrbd)];
    for kinds in pairs.into_iter().take(if runner::is_long() { 2 } else { 1 }) {
        Duo::play(kinds, |duo| {
            duo.first.disk_options.push("--on-io-error=pass_on".to_owned());
            let lower = duo.first.disk.clone();
            duo.first.clone().down(&mut duo.guest)?;
            let (start, count) = BAD_SECTORS;
            duo.guest.sh(&format!(
                "set -e; modprobe sd_mod; modprobe scsi_debug dev_size_mb={} medium_error_start={start} medium_error_count={count} delay=0\n\
                 for i in $(seq 100); do if [ -b /dev/sda ]; then break; fi; sleep 0.1; done; test -b /dev/sda\n\
                 dd if={lower} of=/dev/sda bs=1M oflag=direct status=none",
                DISK_BYTES >> 20
            ))?;
            "/dev/sda".clone_into(&mut duo.first.disk);
            duo.first.clone().attach(&mut duo.guest)?;
            duo.connect_and_sync()?;
            let first = duo.first.clone();
            duo.write(&first, "--seed 60 --count 400")?;
            let errors = |bits: u32| format!("echo {bits} >/sys/bus/pseudo/drivers/scsi_debug/opts");
            duo.guest.sh(&errors(2))?;
            ensure!(
                duo.guest
                    .run(&format!(
                        "dd if=/dev/sda of=/dev/null iflag=direct skip={start} count=8 status=none"
                    ))?
                    .status
                    != 0,
                "the disk reads its bad sectors"
            );
            duo.verify(&first)?;
            wait(duo, &first, "Inconsistent", |s| s.disk == "Inconsistent" && s.peer_disk == "UpToDate")?;
            duo.guest.sh(&errors(0))?;
            first.minor_verb(&mut duo.guest, "detach", "")?;
            duo.first.clone().attach(&mut duo.guest)?;
            duo.wait_healthy()?;
            duo.verify(&first)?;
            let size = duo.size(&first)?;
            duo.first.clone().down(&mut duo.guest)?;
            duo.guest.sh(&format!(
                "set -e; dd if=/dev/sda of={lower} bs=1M oflag=direct status=none; modprobe -r scsi_debug"
            ))?;
            duo.compare(size)?;
            lower.clone_into(&mut duo.first.disk);
            duo.first.clone().attach(&mut duo.guest)
        })?;
    }
    Ok(())
}
