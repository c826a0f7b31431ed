//! One daemon after the other under a mounted file system, as an upgrade does it.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use udrbd_tests::guest::Guest;
use udrbd_tests::machine::{self, skip};
use udrbd_tests::replica::{Frontend, Kind, Replica};

use crate::block::{FIO, MOUNT, run};
use crate::duo::{DISK_BYTES, Duo, Stage, compare_files};
use crate::load::configure;
use crate::packaging::{Node, SYSTEMD};

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

/// Both nodes of the installed resource, as one configuration has them; the first is the guest itself.
const INSTALLED: &str = "mkdir -p /etc/drbd.d; cat >/etc/drbd.d/r0.res <<X
resource r0 {
    net { protocol C; connect-int 2; ping-int 3; ping-timeout 20; }
    disk { c-plan-ahead 0; resync-rate 200M; }
    on $(hostname) { device minor 0; disk /dev/vda; meta-disk internal; address 127.0.0.1:7788; }
    on second { device minor 1; disk /dev/vdb; meta-disk internal; address 127.0.0.1:7789; }
}
X
";

/// Small writes one after the other until the file `stop` is there; says how many, and how many milliseconds the longest took. An
/// error of the device ends it.
const WRITER: &str = r#"import mmap, os, random, sys, time
name, stop = sys.argv[1:]
file = os.open(name, os.O_RDWR | os.O_CREAT | os.O_DIRECT)
block, longest, count = mmap.mmap(-1, 4096), 0, 0
while not os.path.exists(stop):
    block[:8] = count.to_bytes(8, "little")
    begin = time.monotonic()
    os.pwrite(file, block, random.randrange(512) * 4096)
    longest = max(longest, time.monotonic() - begin)
    count += 1
    time.sleep(0.002)
print(count, "small writes, the longest of which waited", round(longest * 1000), "ms")
"#;

/// What has to be the same after `systemctl restart udrbdd`, and the process, which must not.
fn installed(node: &mut Node) -> Result<Served> {
    let device = node.sh(&format!(
        "{SYSTEMD}set -e; stat -c %t:%T /dev/drbd0; $S grep '^/dev/drbd0 /srv ' /proc/mounts; $S drbdadm --no-start role r0 | cut -d/ -f1\n\
         $S systemctl show --property=ActiveState --property=NRestarts udrbdd"
    ))?;
    let daemon = node.sh(&format!("{SYSTEMD}$S systemctl show --property=MainPID --value udrbdd"))?;
    ensure!(device.contains("\nPrimary\n") && device.contains("ActiveState=active"), "{device}");
    Ok(Served { device, daemon })
}

/// The package, under systemd: `systemctl restart udrbdd`, as an administrator does it after an upgrade, under checked writes.
pub(crate) fn restarted_by_systemd() -> Result<()> {
    machine::ensure_packages(&["fio", "python3"])?;
    let mut node = Node::boot_with(vec![DISK_BYTES; 2])?;
    if node.run("test -x /lib/systemd/systemd")?.status != 0 {
        return Err(skip("needs systemd"));
    }
    if node.run("modprobe ublk_drv && test -e /dev/ublk-control")?.status != 0 {
        return Err(skip("needs ublk"));
    }
    node.install()?;
    let second =
        Replica::new(Kind::Udrbd, "second", 1, "/dev/vdb", "127.0.0.1:7789", "127.0.0.1:7788").with_ublk();
    second.start(&mut node.guest)?;
    second.create_md(&mut node.guest)?;
    second.attach(&mut node.guest)?;
    second.connect(&mut node.guest)?;
    node.sh(&format!(
        "{INSTALLED}{SYSTEMD}set -e; drbdadm create-md --force r0; $S drbdadm up r0; $S drbdadm wait-connect r0\n\
         $S drbdadm new-current-uuid --clear-bitmap r0/0; $S drbdadm primary r0; mkfs.ext4 -q -F /dev/drbd0\n\
         $S mkdir -p /srv; $S mount /dev/drbd0 /srv"
    ))?;
    let result = restarted_under_load(&mut node, &second);
    result.map_err(|error| {
        let journal = node.run(&format!("{SYSTEMD}$S journalctl -u udrbdd --no-pager | tail -60"));
        let journal = journal.map_or_else(|error| format!("{error:#}"), |output| output.stdout);
        error.context(format!("{journal}\n--- second\n{}", second.log(&mut node.guest)))
    })
}

fn restarted_under_load(node: &mut Node, second: &Replica) -> Result<()> {
    second.wait_healthy(&mut node.guest)?;
    let size = node.sh("blockdev --getsize64 /dev/drbd0")?.trim().parse().context("a size")?;
    std::fs::write(node.guest.share().join("writer.py"), WRITER)?;
    let (share, limit) = (Guest::SHARE, Duration::from_secs(900));
    // Passes that each check what they wrote.
    let load = format!(
        "{SYSTEMD}count=0; until [ -e {share}/stop ]; do\n\
         $S {FIO} --size=12m --filename=/srv/file --output={share}/fio || {{ cat {share}/fio >&2; exit 1; }}\n\
         count=$((count + 1)); done; echo $count"
    );
    let pulse = format!("{SYSTEMD}$S python3 {share}/writer.py /srv/pulse {share}/stop");
    let jobs = [node.guest.spawn(&load, limit)?, node.guest.spawn(&pulse, limit)?];

    let mut before = installed(node)?;
    let mut took = Vec::new();
    for _ in 0..HANDOVERS {
        std::thread::sleep(Duration::from_secs(4));
        let timed = format!(
            "{SYSTEMD}begin=$(date +%s%3N); $S systemctl restart udrbdd && echo $(($(date +%s%3N) - begin))"
        );
        took.push(node.sh(&timed)?.trim().to_owned());
        let after = installed(node)?;
        ensure!(after.device == before.device, "before {before:?}, after {after:?}");
        ensure!(after.daemon != before.daemon, "{after:?} has not been replaced");
        before = after;
    }
    std::thread::sleep(Duration::from_secs(4));
    std::fs::write(node.guest.share().join("stop"), "")?;
    let mut told = Vec::new();
    for job in jobs {
        told.push(node.guest.wait(job)?.expect_success()?.trim().to_owned());
    }
    node.sh(&format!("{SYSTEMD}set -e; $S umount /srv; e2fsck -fn /dev/drbd0"))?;
    second.wait_healthy(&mut node.guest)?;
    compare_files(&node.guest.disk_file(0), &node.guest.disk_file(1), size)?;
    node.sh(&format!("{SYSTEMD}$S drbdadm secondary r0"))?;
    second.primary(&mut node.guest, false)?;
    node.sh(&format!("e2fsck -fn {}", second.device()))?;
    let errors = node.sh("dmesg | grep -iE 'i/o error|ext4-fs (error|warning)|hung|BUG:' || true")?;
    ensure!(errors.is_empty(), "the kernel says:\n{errors}");
    println!(
        "{HANDOVERS} restarts by systemd: {} ms; {} passes of checked writes, {}",
        took.join(" and "),
        told[0],
        told[1]
    );
    Ok(())
}
