//! `cargo xtask bench --vm --resync`: what a resync costs applications, how long it takes beside the kernel's own DRBD, and how near it
//! comes to the slowest of disks and link.
//!
//! As in [`guest`](super::guest) one instruction is one nanosecond; time in which nothing happens passes at once. Disks are in memory,
//! so what applications wait for is the one processor both nodes share, the activity log's extents, and each other.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use udrbd_tests::guest::{Guest, GuestOptions};
use udrbd_tests::machine;
use udrbd_tests::replica::{Kind, Replica};

use super::guest::pair;
use super::median;

/// MiB of each disk: all of it is resynced. Under load less, as `c-min-rate` has its default of 250 KiB/s there.
const DISK_MIB: u32 = 128;
const LOADED_MIB: u32 = 24;
/// What the administrator accepts: ours beside the kernel's.
const WORSE_MAX: f64 = 1.1;
/// Of the slowest of disks and link.
const SHARE_MIN: f64 = 0.9;
/// Resyncs of what is judged, of which the median counts: one of three seconds is now and then a tenth slower.
const ROUNDS: usize = 3;
/// MiB/s of whatever is made slow.
const SLOW_MIB: u32 = 40;
/// Time for a script, on this machine.
const LIMIT: Duration = Duration::from_secs(1500);

/// Options of both nodes while applications write.
struct Settings {
    name: &'static str,
    disk: &'static str,
    /// Writes of 4 KiB each second.
    writes: u32,
    /// Resyncs, one after the other: a percentile of a few seconds of writes says nothing.
    rounds: u32,
}

const SETTINGS: &[Settings] = &[
    Settings { name: "defaults", disk: "", writes: 100, rounds: 1 },
    Settings { name: "c-min-rate 0", disk: "--c-min-rate=0", writes: 100, rounds: 4 },
    Settings {
        name: "c-fill-target 1M c-min-rate 0",
        disk: "--c-fill-target=1M --c-min-rate=0",
        writes: 100,
        rounds: 12,
    },
];

/// What is made slow.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Slow {
    Source,
    Target,
    Link,
}

const BOUNDS: &[(&str, Slow)] =
    &[("source disk", Slow::Source), ("target disk", Slow::Target), ("link", Slow::Link)];

/// Without a bound of its own, which is judged. Then with the controller, which takes longer to come up to speed than these disks
/// take; and as it comes.
const RATES: &[(&str, &str)] = &[
    (JUDGED, "--c-plan-ahead=0 --resync-rate=4194304 --c-min-rate=0"),
    ("c-max-rate 4G c-fill-target 1M", "--c-max-rate=4194304 --c-fill-target=1M --c-min-rate=0"),
    ("defaults", ""),
];
const JUDGED: &str = "resync-rate 4G c-plan-ahead 0";

/// A resync and what was written meanwhile.
struct Outcome {
    /// Seconds.
    duration: f64,
    /// Microseconds: the writes' 99th percentile without a resync, and during it.
    idle_p99: f64,
    busy_p99: f64,
}

/// Measures and prints; fails with `judge` if something misses its bar.
///
/// # Errors
///
/// A guest that does not boot, a pair that does not come up, fio that fails.
pub(super) fn run(job: &str, judge: bool) -> Result<ExitCode> {
    machine::ensure_packages(&["fio", "drbd-utils", "kmod", "python3", "iproute2"])?;
    let mut good = under_load(job)?;
    good &= at_bounds(job)?;
    Ok(if judge && !good { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn boot() -> Result<Guest> {
    Guest::boot(GuestOptions { processors: 1, icount: true, memory_mib: 2048, ..GuestOptions::default() })
}

fn sh(guest: &mut Guest, script: &str) -> Result<String> {
    guest.run_limited(script, LIMIT)?.expect_success()
}

/// A full resync while an application writes, ours and the kernel's.
fn under_load(job: &str) -> Result<bool> {
    let chosen: Vec<&Settings> =
        SETTINGS.iter().filter(|settings| "under load".contains(job) || settings.name == job).collect();
    if chosen.is_empty() {
        return Ok(true);
    }
    let mut guest = boot()?;
    // Not brd, which does not count what it does: the kernel's DRBD sees by that whether applications are busy.
    sh(
        &mut guest,
        &format!(
            "set -e; modprobe null_blk nr_devices=0\nfor i in 0 1 2 3; do n=/sys/kernel/config/nullb/nullb$i; mkdir $n\n\
             echo 1 >$n/memory_backed; echo {LOADED_MIB} >$n/size; echo 1 >$n/power; done"
        ),
    )?;
    let ours = pair(&mut guest, Kind::Udrbd, 0, ["/dev/nullb0", "/dev/nullb1"])?;
    let kernels = pair(&mut guest, Kind::Kernel, 2, ["/dev/nullb2", "/dev/nullb3"])?;
    for pair in [&ours, &kernels] {
        fill(&mut guest, &pair.0)?;
    }
    println!(
        "{LOADED_MIB} MiB resynced under random writes of 4 KiB: seconds, and p99 of the writes in microseconds"
    );
    println!(
        "{:<32}{:>8}{:>10}{:>8}{:>8}{:>10}{:>8}{:>10}{:>10}",
        "", "s udrbd", "s kernel", "ratio", "bar", "p99 udrbd", "kernel", "ratio", "idle"
    );
    let mut good = true;
    for settings in chosen {
        let own = resync_under(&mut guest, &ours, settings)?;
        let other = resync_under(&mut guest, &kernels, settings)?;
        let (time, latency) = (own.duration / other.duration, own.busy_p99 / other.busy_p99.max(1.0));
        good &= time <= WORSE_MAX && latency <= WORSE_MAX;
        println!(
            "{:<32}{:>8.1}{:>10.1}{time:>8.2}{WORSE_MAX:>8}{:>10.0}{:>8.0}{latency:>10.2}{:>10}",
            settings.name,
            own.duration,
            other.duration,
            own.busy_p99,
            other.busy_p99,
            format!("{:.0}/{:.0}", own.idle_p99, other.idle_p99),
        );
    }
    Ok(good)
}

/// A disk in memory has no page before the first write to it.
fn fill(guest: &mut Guest, side: &Replica) -> Result<()> {
    let device = side.device();
    sh(guest, &format!("dd if=/dev/zero of={device} bs=1M oflag=direct status=none || true")).map(drop)
}

fn resync_under(
    guest: &mut Guest,
    (first, second): &(Replica, Replica),
    settings: &Settings,
) -> Result<Outcome> {
    for side in [first, second] {
        side.minor_verb(guest, "disk-options", &format!("--set-defaults {}", settings.disk))?;
    }
    let fio = format!(
        "fio --name=load --filename={} --direct=1 --ioengine=libaio --rw=randwrite --bs=4k --iodepth=4 --norandommap \
         --rate_iops={} --time_based --output-format=terse --terse-version=3",
        first.device(),
        settings.writes
    );
    let idle = sh(guest, &format!("{fio} --runtime=10"))?;
    let script = format!(
        "{fio} --runtime=100000 >/run/load & load=$!\nsleep 2\nfor i in $(seq {}); do\n{}\ndone\n\
         kill -INT $load; wait $load\ncat /run/load >&2",
        settings.rounds,
        timed_resync(first, "0.5")
    );
    let output = guest.run_limited(&script, LIMIT)?;
    let busy = output.stderr.clone();
    let duration = seconds(&output.expect_success()?)?;
    let p99 = |text: &str| write_p99(text).with_context(|| format!("fio printed no result: {text}"));
    Ok(Outcome { duration, idle_p99: p99(&idle)?, busy_p99: p99(&busy)? })
}

/// Commands that resync the peer of a Primary, and print the time that it took. They look for the end every so many seconds: each look
/// costs the processor some time. No program is started for that: to fetch one takes the time of this machine, which in the guest
/// passes for its own.
fn timed_resync(first: &Replica, every: &str) -> String {
    let until = |states: &str| {
        format!(
            "until [[ $'\\n'$(<{}) == *$'\\n'*' '{}': cs:{states} '* ]]; do read -rt {every} -u 9 || true; done",
            first.status_file(),
            first.minor,
        )
    };
    // The state file of ours is written ten times a second.
    format!(
        "[ -p /run/never ] || mkfifo /run/never; exec 9<>/run/never\nbegin=$EPOCHREALTIME\n{}\nread -rt 0.2 -u 9 || true\n{}\n\
         end=$EPOCHREALTIME; echo took $(((${{end/./}} - ${{begin/./}}) * 1000))",
        first.setup(&format!("invalidate-remote {}", first.minor)),
        until("Connected")
    )
}

/// The mean of what was printed.
fn seconds(text: &str) -> Result<f64> {
    let words = text.lines().filter_map(|line| line.strip_prefix("took "));
    let times = words.map(|word| word.trim().parse::<f64>()).collect::<Result<Vec<f64>, _>>()?;
    if times.is_empty() {
        bail!("no time was printed");
    }
    Ok(times.iter().sum::<f64>() / times.len() as f64 / 1e9)
}

/// The 99th percentile of the writes' completion, of fio's terse version 3, microseconds.
fn write_p99(text: &str) -> Option<f64> {
    let line = text.lines().find(|line| line.starts_with("3;"))?;
    let mut percentiles = line.split(';').skip(58).take(20);
    percentiles.find_map(|field| field.strip_prefix("99.000000%=")?.parse().ok())
}

/// A full resync with one slow part, which is measured in the same guest.
fn at_bounds(job: &str) -> Result<bool> {
    let mut good = true;
    let chosen = BOUNDS.iter().filter(|(name, _)| "bounds".contains(job) || *name == job);
    for (index, (name, slow)) in chosen.enumerate() {
        if index == 0 {
            println!("\nresync beside its slowest part, MiB/s");
            println!(
                "{:<14}{:<34}{:>8}{:>8}{:>8}{:>8}{:>8}{:>8}",
                "slow", "options", "alone", "udrbd", "share", "bar", "kernel", "share"
            );
        }
        let mut guest = boot()?;
        let raw = prepare(&mut guest, *slow)?;
        let mut rates = Vec::new();
        for (kind, number) in [(Kind::Udrbd, 0), (Kind::Kernel, 2)] {
            let pair = pair(&mut guest, kind, number, DISKS)?;
            // The first one is slower than any later.
            sh(&mut guest, &timed_resync(&pair.0, "0.05"))?;
            for (name, options) in RATES {
                for side in [&pair.0, &pair.1] {
                    side.minor_verb(&mut guest, "disk-options", &format!("--set-defaults {options}"))?;
                }
                let rounds = if *name == JUDGED { ROUNDS } else { 1 };
                let mut took = Vec::new();
                for _ in 0..rounds {
                    took.push(seconds(&sh(&mut guest, &timed_resync(&pair.0, "0.05"))?)?);
                }
                rates.push(f64::from(DISK_MIB) / median(&took));
            }
            for side in [&pair.0, &pair.1] {
                side.down(&mut guest)?;
            }
        }
        let (ours, kernels) = rates.split_at(RATES.len());
        for ((options, _), (own, kernel)) in RATES.iter().zip(ours.iter().zip(kernels)) {
            let judged = *options == JUDGED;
            good &= !judged || own / raw >= SHARE_MIN;
            println!(
                "{name:<14}{options:<34}{raw:>8.1}{own:>8.1}{:>8.2}{:>8}{kernel:>8.1}{:>8.2}",
                own / raw,
                if judged { SHARE_MIN.to_string() } else { "-".to_owned() },
                kernel / raw
            );
        }
    }
    Ok(good)
}

/// Source and target.
const DISKS: [&str; 2] = ["/dev/ram0", "/dev/ram1"];

/// Disks and link with one slow part; what that does alone, MiB/s.
///
/// A disk is slowed down by the block layer's throttle: null_blk's own limit turns requests away that do not fit into what is
/// left of 20 ms, so that with it the speed depends on their size.
fn prepare(guest: &mut Guest, slow: Slow) -> Result<f64> {
    sh(guest, &format!("modprobe brd rd_nr=2 rd_size={}", DISK_MIB * 1024))?;
    for disk in DISKS {
        sh(guest, &format!("dd if=/dev/zero of={disk} bs=1M oflag=direct status=none || true"))?;
    }
    let throttle = |disk: usize, operation: &str| {
        format!(
            "mkdir /run/throttle; mount -t cgroup -o blkio none /run/throttle\n\
             echo \"$(cat /sys/block/ram{disk}/dev) {}\" >/run/throttle/blkio.throttle.{operation}_bps_device",
            SLOW_MIB << 20
        )
    };
    let limit = match slow {
        Slow::Link => format!(
            "modprobe sch_tbf; tc qdisc add dev lo root tbf rate {}bit burst 256k limit 64m",
            u64::from(SLOW_MIB) << 23
        ),
        Slow::Source => throttle(0, "read"),
        Slow::Target => throttle(1, "write"),
    };
    sh(guest, &format!("set -e\n{limit}"))?;
    let bytes = u64::from(DISK_MIB) << 20;
    // With as much under way as a resync has, and without what the throttle lets pass at first for the time nothing was done.
    let alone = |disk: &str, rw: &str, field| {
        format!(
            "fio --name=alone --filename={disk} --rw={rw} --bs=128k --iodepth=16 --direct=1 --ioengine=libaio --time_based \
             --ramp_time=3 --runtime=6 --size={DISK_MIB}m --output-format=terse --terse-version=3 >/run/alone\n\
             awk -F';' '{{printf \"took %.0f\\n\", {DISK_MIB} * 1024 * 1000000000 / ${field}}}' /run/alone"
        )
    };
    let copy = match slow {
        Slow::Source => alone(DISKS[0], "read", 7),
        Slow::Target => alone(DISKS[1], "write", 48),
        Slow::Link => format!(
            "python3 -c 'import socket,threading,time\n\
             server=socket.create_server((\"127.0.0.1\",9000))\n\
             def send():\n s=socket.create_connection((\"127.0.0.1\",9000)); s.sendall(bytes({bytes})); s.close()\n\
             threading.Thread(target=send).start()\n\
             c=server.accept()[0]; begin=time.time_ns()\n\
             while c.recv(1<<18): pass\n\
             print(\"took\", time.time_ns() - begin)'"
        ),
    };
    let rate = f64::from(DISK_MIB) / seconds(&sh(guest, &copy)?)?;
    if rate > 2.0 * f64::from(SLOW_MIB) {
        bail!("what is to be slow does {rate:.0} MiB/s");
    }
    Ok(rate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_percentile_of_writes_is_found() {
        let mut fields = vec!["0"; 130];
        (fields[0], fields[29], fields[70]) = ("3", "99.000000%=7", "99.000000%=412");
        assert_eq!(write_p99(&format!("noise\n{}\n", fields.join(";"))), Some(412.0));
        assert_eq!(write_p99("fio: failed"), None);
    }

    #[test]
    fn the_time_is_found() {
        assert_eq!(seconds("x\ntook 2500000000\n").unwrap(), 2.5);
        assert_eq!(seconds("took 1000000000\ntook 2000000000\n").unwrap(), 1.5);
        assert!(seconds("").is_err());
    }
}
