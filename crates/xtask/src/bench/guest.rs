//! `cargo xtask bench --vm`: block devices beside the kernel's own DRBD, in one guest whose time is counted in executed
//! instructions.
//!
//! Both pairs live in the guest with disks in memory, and so does a disk without replication. What is counted is the
//! path of the whole system, both nodes and fio included: one instruction is one nanosecond, whatever else the machine
//! does. Caches, mitigations and other processors cost nothing there.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use udrbd_tests::guest::{Guest, GuestOptions};
use udrbd_tests::machine;
use udrbd_tests::replica::{Kind, Replica};

use super::{median, parse_terse};

/// One fio job, and the least the udrbd pair is to be of the kernel's.
struct Job {
    name: &'static str,
    words: &'static str,
    bar: Option<f64>,
}

const JOBS: &[Job] = &[
    Job { name: "4k randwrite qd1", words: "--rw=randwrite --bs=4k --iodepth=1", bar: Some(1.2) },
    Job { name: "4k randwrite qd8", words: "--rw=randwrite --bs=4k --iodepth=8", bar: None },
    Job { name: "4k randwrite qd32", words: "--rw=randwrite --bs=4k --iodepth=32", bar: Some(1.15) },
    Job { name: "4k randread qd32", words: "--rw=randread --bs=4k --iodepth=32", bar: Some(0.6) },
    Job { name: "128k seqwrite qd8", words: "--rw=write --bs=128k --iodepth=8", bar: None },
    Job { name: "128k seqread qd8", words: "--rw=read --bs=128k --iodepth=8", bar: None },
];

/// KiB of each disk in memory.
const DISK_KIB: u32 = 131_072;
/// What fio works on: what every device has.
const FIO: &str = "fio --name=job --direct=1 --ioengine=libaio --time_based --norandommap --randrepeat=0 --size=96m \
                   --output-format=terse --terse-version=3";

/// Measures in `rounds` rounds of `seconds` of the guest's time, and prints.
///
/// # Errors
///
/// A guest that does not boot, a pair that does not come up, fio that fails.
pub(super) fn run(rounds: usize, seconds: u32, only: &str, judge: bool) -> Result<ExitCode> {
    machine::ensure_packages(&["fio", "drbd-utils", "kmod"])?;
    let options = GuestOptions { processors: 1, icount: true, memory_mib: 2048, ..GuestOptions::default() };
    let mut guest = Guest::boot(options)?;
    guest.sh(&format!("modprobe brd rd_nr=5 rd_size={DISK_KIB}"))?;
    let udrbd = pair(&mut guest, Kind::Udrbd, 0, ["/dev/ram0", "/dev/ram1"])?.0.device();
    let kernel = pair(&mut guest, Kind::Kernel, 2, ["/dev/ram2", "/dev/ram3"])?.0.device();
    let contenders = [("udrbd", udrbd), ("kernel", kernel), ("disk", "/dev/ram4".to_owned())];
    for (_, device) in &contenders {
        // A disk in memory has no page before the first write to it, and making one costs as much as writing it.
        let fill = format!("dd if=/dev/zero of={device} bs=1M count=96 oflag=direct status=none");
        guest.run_limited(&fill, Duration::from_secs(900))?.expect_success()?;
    }
    let jobs: Vec<&Job> = JOBS.iter().filter(|job| job.name.contains(only)).collect();
    let mut results = vec![vec![Vec::new(); jobs.len()]; contenders.len()];
    for round in 0..rounds {
        for (contender, (name, device)) in contenders.iter().enumerate() {
            for (index, job) in jobs.iter().enumerate() {
                let script =
                    format!("{FIO} --filename={device} --runtime={seconds} --ramp_time=0.2 {}", job.words);
                let text = guest.run_limited(&script, Duration::from_secs(900))?.expect_success()?;
                let iops = parse_terse(&text).with_context(|| format!("fio printed no result: {text}"))?;
                eprintln!("round {}: {name:<7} {:<18} {iops:>9.0} IOPS", round + 1, job.name);
                results[contender][index].push(iops);
            }
        }
    }
    let mut below = false;
    println!("\nmedian IOPS, one instruction being one nanosecond");
    println!(
        "{:<20}{:>10}{:>10}{:>10}{:>14}{:>12}{:>8}",
        "", "udrbd", "kernel", "disk", "udrbd/kernel", "udrbd/disk", "bar"
    );
    for (index, job) in jobs.iter().enumerate() {
        let of = |contender: usize| median(&results[contender][index]);
        let ratio = of(0) / of(1).max(1.0);
        let bar = job.bar.map_or_else(|| "-".to_owned(), |bar| bar.to_string());
        below |= job.bar.is_some_and(|bar| ratio < bar);
        println!(
            "{:<20}{:>10.0}{:>10.0}{:>10.0}{ratio:>14.2}{:>12.2}{bar:>8}",
            job.name,
            of(0),
            of(1),
            of(2),
            of(0) / of(2).max(1.0),
        );
    }
    Ok(if judge && below { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Two nodes joined by the loopback, in sync without a sync; the first one is Primary.
pub(super) fn pair(
    guest: &mut Guest,
    kind: Kind,
    number: u32,
    [one_disk, other_disk]: [&str; 2],
) -> Result<(Replica, Replica)> {
    let name = |side: &str| format!("{side}{number}");
    let (one, two) = (format!("127.0.0.1:{}", 7700 + number), format!("127.0.0.1:{}", 7701 + number));
    let first = Replica::new(kind, &name("first"), number, one_disk, &one, &two).with_ublk();
    let second = Replica::new(kind, &name("second"), number + 1, other_disk, &two, &one).with_ublk();
    // One that is in memory and needs nothing else: what has to be fetched takes the time of this machine, which in the guest passes
    // for its own.
    guest.sh("cp -u $(command -v busybox) /run/true")?;
    let [first, second] = [first, second].map(|side| Replica { helper: "/run/true".to_owned(), ..side });
    for side in [&first, &second] {
        side.start(guest)?;
        side.create_md(guest)?;
        side.attach(guest)?;
        side.connect(guest)?;
    }
    first.wait(guest, "Connected", Duration::from_secs(120), |status| status.connection == "Connected")?;
    first.minor_verb(guest, "new-current-uuid", "--clear-bitmap")?;
    first.wait_healthy(guest)?;
    first.primary(guest, false)?;
    Ok((first, second))
}
