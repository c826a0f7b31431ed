//! One daemon after the other under a mounted file system, as an upgrade does it.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use udrbd_tests::guest::Guest;
use udrbd_tests::machine;
use udrbd_tests::replica::{Frontend, Kind, Replica};

use crate::block::{FIO, MOUNT, run};
use crate::duo::{DISK_BYTES, Duo, Stage};
use crate::load::configure;

/// Small writes one after the other: the longest took about as long as the device stood still.
const PULSE: &str = "fio --name=pulse --direct=1 --ioengine=psync --rw=randwrite --bs=4k --size=2m --time_based \
                     --thinktime=2ms --output-format=json";
/// How long the load lasts.
const SECONDS: u64 = 30;
const HANDOVERS: u64 = 2;

pub(crate) fn udrbd_peer() -> Result<()> {
    handed_over(Kind::Udrbd)
}

pub(crate) fn kernel_peer() -> Result<()> {
    handed_over(Kind::Kernel)
}

/// What must be the same before and after, and the daemon, which must not.
#[derive(Debug, PartialEq, Eq)]
struct Served {
    /// The number of the device behind the name.
    device: String,
    daemon: String,
}

impl Served {
    fn read(duo: &mut Duo, side: &Replica) -> Result<Self> {
        let device = duo.guest.sh(&format!("stat -c %t:%T {}; ls /dev/ublkb*", side.device()))?;
        let daemon = duo.guest.sh(&format!("cat {}/udrbdd.pid", side.run_dir))?;
        Ok(Self { device, daemon: daemon.trim().to_owned() })
    }
}

/// Checked writes go on over two handovers: no error, nothing lost, the same disk, and still the Primary.
fn handed_over(peer: Kind) -> Result<()> {
    machine::ensure_packages(&["fio", "python3"])?;
    let stage = Stage { disk_bytes: DISK_BYTES, frontend: Frontend::Ublk, ..Stage::default() };
    Duo::play_at(stage, (Kind::Udrbd, peer), |duo| {
        let (first, second) = (duo.first.clone(), duo.second.clone());
        configure(duo, &first, &second)?;
        first.wait(&mut duo.guest, "Connected", Duration::from_secs(60), |s| s.connection == "Connected")?;
        first.primary(&mut duo.guest, true)?;
        duo.wait_healthy()?;
        let (size, device) = (duo.size(&first)?, first.device());
        run(duo, &format!("mkdir -p {MOUNT}; mkfs.ext4 -q -F {device}; mount {device} {MOUNT}"))?;
        let load = format!("{FIO} --size=20m --time_based --runtime={SECONDS} --filename={MOUNT}/file");
        let pulse =
            format!("{PULSE} --runtime={SECONDS} --filename={MOUNT}/pulse --output={}/pulse", Guest::SHARE);
        let limit = Duration::from_secs(300);
        let jobs = [duo.guest.spawn(&load, limit)?, duo.guest.spawn(&pulse, limit)?];

        let mut before = Served::read(duo, &first)?;
        let mut took = Vec::new();
        for _ in 0..HANDOVERS {
            std::thread::sleep(Duration::from_secs(4));
            // The daemon that comes keeps its messages elsewhere than the one that the harness started.
            let timed = format!(
                "begin=$(date +%s%3N); {}; echo $(($(date +%s%3N) - begin)); tail -n +0 {}/udrbdd.log >&2",
                first.resources("handover"),
                first.run_dir
            );
            let output = duo.guest.run_limited(&timed, Duration::from_secs(300))?;
            let told = output.stderr.clone();
            took.push(output.expect_success()?.trim().lines().last().unwrap_or_default().to_owned());
            let status = first.status(&mut duo.guest)?;
            ensure!(status.role == "Primary", "handed over it is {status:?}\n{told}");
            let after = Served::read(duo, &first)?;
            ensure!(after.device == before.device, "before {before:?}, after {after:?}");
            ensure!(after.daemon != before.daemon, "{after:?} has not been replaced");
            // For the harness, which started the first one.
            run(duo, &format!("cp {0}/udrbdd.pid {0}/pid", first.run_dir))?;
            before = after;
        }
        for job in jobs {
            duo.guest.wait(job)?.expect_success()?;
        }
        run(duo, &format!("umount {MOUNT}; e2fsck -fn {device}"))?;
        duo.wait_healthy()?;
        duo.compare(size)?;
        first.secondary(&mut duo.guest)?;
        second.primary(&mut duo.guest, false)?;
        let there = second.device();
        run(duo, &format!("e2fsck -fn {there}"))?;
        let errors =
            duo.guest.sh("dmesg | grep -iE 'i/o error|ext4-fs (error|warning)|hung|BUG:' || true")?;
        if !errors.is_empty() {
            bail!("the kernel says:\n{errors}");
        }
        println!(
            "{HANDOVERS} handovers with a peer of kind {peer:?}: {} ms; the longest wait of a write {} ms",
            took.join(" and "),
            longest_write(duo)?.as_millis()
        );
        Ok(())
    })
}

/// The longest write of the pulse.
fn longest_write(duo: &mut Duo) -> Result<Duration> {
    let read = "import json, sys; print(json.load(sys.stdin)['jobs'][0]['write']['lat_ns']['max'])";
    let text = duo.guest.sh(&format!("python3 -c \"{read}\" <{}/pulse", Guest::SHARE))?;
    Ok(Duration::from_nanos(text.trim().parse().with_context(|| format!("`{text}` of fio"))?))
}
