//! A cluster file system that two Primaries have mounted at once; one of them loses its power and comes back.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use udrbd_tests::guest::{Guest, Job};
use udrbd_tests::replica::Kind;
use udrbd_tests::{machine, runner};

use crate::block::NOT;
use crate::duo::compare_files;
use crate::pacemaker::COROSYNC;
use crate::power::{Node, boot};

const MOUNT: &str = "/run/mnt";
const DISK_BYTES: u64 = 192 << 20;
/// What one phase lasts in the usual length, and in the long run: ten minutes of load in three of them.
const SECONDS: u64 = 40;
const SECONDS_LONG: u64 = 200;
/// A node whose heartbeat is missing for so many turns of two seconds is dead to the others.
const DEAD_THRESHOLD: u64 = 16;
/// Time for what waits for a node that is dead, and for all that emulation makes slow.
const LIMIT: Duration = Duration::from_secs(400);
/// How many programs of a node make files.
const CREATORS: usize = 3;
/// Promises of each sort, below which a phase proves nothing.
const PROMISES_MIN: u64 = 5;

/// The node with the lower number outlives a broken network: alpha.
const OCFS2_CLUSTER: &str = "cluster:
	node_count = 2
	heartbeat_mode = local
	name = pair

node:
	ip_port = 7777
	ip_address = 10.66.0.1
	number = 0
	name = alpha
	cluster = pair

node:
	ip_port = 7777
	ip_address = 10.66.0.2
	number = 1
	name = beta
	cluster = pair
";

/// What the two have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FileSystem {
    /// With its own cluster stack, in the kernel.
    Ocfs2,
    /// With the kernel's lock manager (DLM), whose members `dlm_controld` takes from corosync.
    Gfs2,
}

impl FileSystem {
    /// By their Debian names.
    fn packages(self) -> &'static [&'static str] {
        match self {
            Self::Ocfs2 => &["ocfs2-tools", "fio", "python3"],
            Self::Gfs2 => &["gfs2-utils", "dlm-controld", "corosync", "fio", "python3"],
        }
    }

    /// What `mount -t` takes.
    fn name(self) -> &'static str {
        match self {
            Self::Ocfs2 => "ocfs2",
            Self::Gfs2 => "gfs2",
        }
    }

    /// Joins the cluster, as the services of these packages do.
    fn join(self) -> String {
        let share = Guest::SHARE;
        match self {
            Self::Ocfs2 => format!(
                "modprobe -a ocfs2_stack_o2cb ocfs2_dlmfs ocfs2; echo o2cb >/sys/fs/ocfs2/cluster_stack\n\
                 mkdir -p /etc/ocfs2 {MOUNT} /dlm; cp {share}/cluster.conf /etc/ocfs2/; mount -t ocfs2_dlmfs ocfs2_dlmfs /dlm\n\
                 o2cb register-cluster pair; cd /sys/kernel/config/cluster/pair\n\
                 echo {DEAD_THRESHOLD} >heartbeat/dead_threshold\n\
                 echo 60000 >idle_timeout_ms; echo 5000 >keepalive_delay_ms; echo 2000 >reconnect_delay_ms"
            ),
            // The links are udev's work. Nothing but a power cut takes a node away here, so nobody has to be fenced.
            Self::Gfs2 => format!(
                "modprobe -a dlm gfs2; mkdir -p {MOUNT} /dev/misc\n\
                 for device in dlm-control dlm-monitor dlm_plock; do ln -sf ../$device /dev/misc/$device; done\n\
                 cp {share}/cluster.conf /etc/corosync/corosync.conf; corosync\n\
                 for _ in $(seq 120); do corosync-quorumtool -s 2>/dev/null | grep -q '^Quorate: *Yes' && break; sleep 0.5; done\n\
                 dlm_controld --enable_fencing 0"
            ),
        }
    }

    /// Waits until both are members. Until then each takes itself for the only one, and would use the other's journal.
    fn meet(self) -> &'static str {
        match self {
            Self::Ocfs2 => "true",
            Self::Gfs2 => {
                "for _ in $(seq 300); do test \"$(dlm_tool status 2>/dev/null | grep -c '^node ')\" = 2 && break; sleep 1; done\n\
                 test \"$(dlm_tool status | grep -c '^node ')\" = 2"
            }
        }
    }

    /// The members of the cluster, for the program that joins them.
    fn members(self) -> String {
        match self {
            Self::Ocfs2 => OCFS2_CLUSTER.to_owned(),
            // Nodes under load that are emulated answer late, and a member that comes back unasked has to be killed.
            Self::Gfs2 => COROSYNC.replace("token: 10000", "token: 30000"),
        }
    }

    fn make(self, device: &str) -> String {
        match self {
            Self::Ocfs2 => format!("mkfs.ocfs2 -q -b 4K -C 4K -N 2 -J size=8M -L shared {device}"),
            Self::Gfs2 => format!("mkfs.gfs2 -q -O -p lock_dlm -t pair:shared -j 2 -J 8 -r 32 {device}"),
        }
    }

    /// Whether a loss of power under load leaves this, whatever disk it is on: GFS2 takes the block of a new inode in one
    /// transaction and fills it in another. Such a block is lost, but nothing refers to it.
    fn forgives(self, complaints: &str) -> bool {
        const OF_SUCH_BLOCKS: &[&str] = &[
            "Found invalid inode at block ",
            "was 'inode', should be free.",
            "bitmap says 3 (inode) but FSCK saw 0 (free)",
            "The bitmap inconsistency was ignored.",
            "left inconsistent",
            "count inconsistent: is ",
            "The statfs file ",
        ];
        const AS_ALWAYS: &[&str] = &[
            "Initializing fsck",
            "Validating resource group index.",
            "evel 1 ",
            "Starting ",
            "completed in ",
            "percent complete.",
            "Reconciling bitmaps.",
            " statfs values:",
            "blocks:",
            "free:",
            "dinodes:",
            "fsck.gfs2 complete",
        ];
        let lost = complaints.lines().filter(|line| line.starts_with("Found invalid inode")).count();
        let known = |line: &str| {
            line.trim().is_empty() || OF_SUCH_BLOCKS.iter().chain(AS_ALWAYS).any(|part| line.contains(part))
        };
        self == Self::Gfs2 && (1..=CREATORS).contains(&lost) && complaints.lines().all(known)
    }

    /// Changes nothing; fails if there is something to mend.
    fn check(self, device: &str) -> String {
        format!("fsck.{} -n -f {device} >&2", self.name())
    }
}

/// Programs that check what they write, in folders of their own and in a common one, until they are told to stop.
/// What is read comes from the device now and then, and free space goes back to it.
fn load(name: &str) -> String {
    format!(
        "stopped() {{ test -e {share}/stop; }}\n\
         mkdir -p {MOUNT}/{name}\n\
         passes() {{\n\
             what=$1; shift; count=0\n\
             until stopped; do\n\
                 count=$((count + 1))\n\
                 fio --name=$what --directory={MOUNT}/{name} --verify_fatal=1 --randseed=$RANDOM \"$@\" >/run/fio.$what 2>&1 || \
                     {{ cat /run/fio.$what >&2; exit 1; }}\n\
             done\n\
             echo \"{name} $what: $count passes\"\n\
         }}\n\
         jobs=\n\
         passes direct --direct=1 --ioengine=libaio --iodepth=8 --rw=randwrite --bsrange=4k-64k --size=4m --fsync=32 \
             --verify=crc32c & jobs=\"$jobs $!\"\n\
         passes buffered --ioengine=psync --rw=randwrite --bsrange=512-16k --size=2m --fdatasync=16 --verify=crc32c & \
             jobs=\"$jobs $!\"\n\
         python3 {share}/cluster.py make {MOUNT} {name} {share} & jobs=\"$jobs $!\"\n\
         trims() {{\n\
             count=0\n\
             until stopped; do\n\
                 sleep 4; echo 3 >/proc/sys/vm/drop_caches; fstrim {MOUNT} || exit 1; count=$((count + 1))\n\
             done\n\
             echo \"{name}: $count trims\"\n\
         }}\n\
         trims & jobs=\"$jobs $!\"\n\
         failed=0; for job in $jobs; do wait $job || failed=1; done; exit $failed",
        share = Guest::SHARE
    )
}

/// How much of each sort a node has promised.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Promises {
    own: u64,
    shared: u64,
    renamed: u64,
}

impl Promises {
    /// What a guest noted outside of itself.
    fn read(node: &Node) -> Result<Self> {
        let number = |name: &str| -> Result<u64> {
            let text = std::fs::read_to_string(node.guest.share().join(name)).unwrap_or_default();
            if text.is_empty() {
                return Ok(0);
            }
            text.trim().parse().with_context(|| format!("`{text}` {name}"))
        };
        Ok(Self { own: number("own")?, shared: number("shared")?, renamed: number("renamed")? })
    }

    fn is_past(self, before: Self) -> bool {
        let pairs = [(self.own, before.own), (self.shared, before.shared), (self.renamed, before.renamed)];
        pairs.iter().all(|(now, before)| *now >= before + PROMISES_MIN)
    }
}

pub(crate) fn udrbd_pair_ocfs2() -> Result<()> {
    shared(FileSystem::Ocfs2, Kind::Udrbd)
}

pub(crate) fn udrbd_pair_gfs2() -> Result<()> {
    shared(FileSystem::Gfs2, Kind::Udrbd)
}

/// Both nodes work in one file system. The power of one goes; the other goes on with all that was promised; the lost one
/// comes back as the target of a resync, is promoted and mounts under the other's load, and both work again. In the end
/// nothing is missing, the file system is clean, and both disks are equal.
fn shared(file_system: FileSystem, kind: Kind) -> Result<()> {
    machine::ensure_packages(file_system.packages())?;
    let (mut alpha, mut beta, _cable) = boot(DISK_BYTES, kind, kind)?;
    let result = play(file_system, &mut alpha, &mut beta);
    result.map_err(|error| {
        let logs = [&mut alpha, &mut beta].map(|node| {
            let log = node.side.log(&mut node.guest);
            let kernel = node
                .guest
                .run(&format!("dmesg | tail -60; tail -n 20 {}/*.err", Guest::SHARE))
                .map(|output| output.stdout)
                .unwrap_or_default();
            format!("--- {}\n{log}\n{kernel}\n{}", node.guest.name(), node.guest.console_tail())
        });
        error.context(logs.join("\n"))
    })
}

impl Node {
    fn script(&mut self, script: &str) -> Result<String> {
        let script = format!("set -e\n{NOT}\n{script}");
        self.guest.run_limited(&script, LIMIT)?.expect_success()
    }

    fn mount(&mut self, file_system: FileSystem) -> Result<()> {
        let device = self.side.device();
        let (meet, name) = (file_system.meet(), file_system.name());
        self.script(&format!("{meet}\nmount -t {name} {device} {MOUNT}")).map(drop)
    }

    fn begin(&mut self) -> Result<Job> {
        for name in ["stop", "own", "shared", "renamed"] {
            let _absent = std::fs::remove_file(self.guest.share().join(name));
        }
        let script = load(self.guest.name());
        self.guest.spawn(&script, Duration::from_secs(3 * SECONDS_LONG + 1500))
    }

    fn end(&mut self, job: Job) -> Result<String> {
        std::fs::write(self.guest.share().join("stop"), "")?;
        let told = self.guest.wait(job)?.expect_success()?;
        Ok(told.trim().replace('\n', ", "))
    }

    /// What a node of that name promised is there, as this one sees it.
    fn check(&mut self, name: &str, promised: Promises) -> Result<()> {
        let Promises { own, shared, renamed } = promised;
        let share = Guest::SHARE;
        self.script(&format!("python3 {share}/cluster.py check {MOUNT} {name} {own} {shared} {renamed}"))?;
        Ok(())
    }

    /// Waits until it has promised more; returns how long that took.
    fn wait_past(&mut self, before: Promises) -> Result<Duration> {
        let begin = Instant::now();
        while !Promises::read(self)?.is_past(before) {
            let on = self.guest.is_on();
            let now = Promises::read(self)?;
            ensure!(
                on && begin.elapsed() < LIMIT,
                "{} (on: {on}) has {now:?} after {before:?}",
                self.guest.name()
            );
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(begin.elapsed())
    }
}

fn play(file_system: FileSystem, alpha: &mut Node, beta: &mut Node) -> Result<()> {
    let seconds = Duration::from_secs(if runner::is_long() { SECONDS_LONG } else { SECONDS });
    for node in [&mut *alpha, &mut *beta] {
        if node.side.kind == Kind::Udrbd {
            node.side = node.side.clone().with_ublk();
        }
        node.side.net = [
            "--protocol=C",
            "--allow-two-primaries",
            "--connect-int=1",
            "--ping-int=2",
            "--ping-timeout=150",
        ]
        .map(str::to_owned)
        .into();
        std::fs::write(node.guest.share().join("cluster.conf"), file_system.members())?;
        std::fs::write(node.guest.share().join("cluster.py"), include_str!("cluster.py"))?;
        node.prepare()?;
        node.script(&file_system.join())?;
    }
    alpha.side.wait(&mut alpha.guest, "Connected", LIMIT, |s| s.connection == "Connected")?;
    // Both disks are empty: there is nothing to sync.
    alpha.side.minor_verb(&mut alpha.guest, "new-current-uuid", "--clear-bitmap")?;
    for node in [&mut *alpha, &mut *beta] {
        node.side.wait_healthy(&mut node.guest)?;
        node.side.primary(&mut node.guest, false)?;
    }
    let device = alpha.side.device();
    alpha.script(&file_system.make(&device))?;
    let size: u64 = alpha.script(&format!("blockdev --getsize64 {device}"))?.trim().parse()?;
    alpha.mount(file_system)?;
    beta.mount(file_system)?;

    let (job, other) = (alpha.begin()?, beta.begin()?);
    std::thread::sleep(seconds);
    let mut told = both_have_all(alpha, beta, job, other, (Promises::default(), Promises::default()))?;

    // One loses its power under load.
    let earlier = (Promises::read(alpha)?, Promises::read(beta)?);
    let (job, _interrupted) = (alpha.begin()?, beta.begin()?);
    std::thread::sleep(seconds / 2);
    beta.wait_past(earlier.1)?;
    beta.guest.power_cut()?;
    let (kept, lost) = (Promises::read(alpha)?, Promises::read(beta)?);
    alpha.side.wait(&mut alpha.guest, "the loss of the peer", Duration::from_secs(60), |s| {
        s.peer_disk == "DUnknown" && s.connection == "WFConnection"
    })?;
    let stood = alpha.wait_past(kept)?;
    alpha.check("beta", lost)?;
    std::thread::sleep(seconds / 2);

    // It comes back under the load of the other.
    beta.guest.power_on()?;
    beta.side.bring_up(&mut beta.guest)?;
    beta.side.wait_healthy(&mut beta.guest)?;
    let log = beta.side.log(&mut beta.guest);
    ensure!(log.contains("SyncTarget"), "it was not resynced:\n{log}");
    beta.side.primary(&mut beta.guest, false)?;
    beta.script(&file_system.join())?;
    beta.mount(file_system)?;
    beta.check("beta", lost)?;
    let before = (Promises::read(alpha)?, lost);
    let other = beta.begin()?;
    std::thread::sleep(seconds);
    told += &both_have_all(alpha, beta, job, other, before)?;

    let (ours, theirs) = (Promises::read(alpha)?, Promises::read(beta)?);
    let sums =
        alpha.script(&format!("sync; cd {MOUNT}; find . -type f -print0 | sort -z | xargs -0 md5sum"))?;
    std::fs::write(beta.guest.share().join("sums"), &sums)?;
    beta.script(&format!("cd {MOUNT}; md5sum --quiet -c {}/sums", Guest::SHARE))?;
    for node in [&mut *beta, &mut *alpha] {
        node.script(&format!("umount {MOUNT}"))?;
    }
    beta.side.secondary(&mut beta.guest)?;
    // What a complaint is about tells whether the file system or what is below it did that.
    let checked = alpha.guest.run_limited(&file_system.check(&device), LIMIT)?;
    if checked.status != 0 && !file_system.forgives(&checked.stderr) {
        let blocks = described_blocks(alpha, beta, &checked.stderr)?;
        bail!("the file system is not clean: {}{}\n{blocks}", checked.stdout, checked.stderr);
    }
    alpha.side.secondary(&mut alpha.guest)?;
    for node in [&mut *alpha, &mut *beta] {
        node.side.wait_healthy(&mut node.guest)?;
        // OCFS2's heartbeat waits, as every write does, until the loss of the other guest is noticed, and its locks miss that.
        let errors = node
            .guest
            .sh("dmesg | grep -iE 'i/o error|ocfs2.* error|gfs2: .*(fatal|withdr)|hung|\\] BUG:' \
             | grep -vE 'o2hb: node . hb write hung|:dlm_' || true")?;
        ensure!(errors.is_empty(), "the kernel of {} says:\n{errors}", node.guest.name());
    }
    compare_files(&alpha.guest.disk_file(0), &beta.guest.disk_file(0), size)?;
    println!(
        "alpha {ours:?}, beta {theirs:?}; after the power cut the other one stood still for {} s at the most; {told}",
        stood.as_secs()
    );
    Ok(())
}

/// Ends the load of both; each has what either has promised.
fn both_have_all(
    alpha: &mut Node,
    beta: &mut Node,
    job: Job,
    other: Job,
    before: (Promises, Promises),
) -> Result<String> {
    alpha.wait_past(before.0)?;
    beta.wait_past(before.1)?;
    let told = format!("{}, {}; ", alpha.end(job)?, beta.end(other)?);
    let (ours, theirs) = (Promises::read(alpha)?, Promises::read(beta)?);
    for node in [alpha, beta] {
        node.script("echo 3 >/proc/sys/vm/drop_caches")?;
        node.check("alpha", ours)?;
        node.check("beta", theirs)?;
    }
    Ok(told)
}

/// What both disks have at the blocks of 4 KiB that a check calls by their numbers.
fn described_blocks(alpha: &mut Node, beta: &mut Node, said: &str) -> Result<String> {
    let number = |line: &str| line.strip_prefix("Block ")?.split(' ').next()?.parse::<u64>().ok();
    let mut text = String::new();
    for block in said.lines().filter_map(number) {
        for node in [&mut *alpha, &mut *beta] {
            let bytes = node.guest.sh(&format!(
                "echo 3 >/proc/sys/vm/drop_caches; dd if=/dev/vda bs=4096 skip={block} count=1 2>/dev/null | od -A d -t x1z | head -20"
            ))?;
            text += &format!("block {block} of {}:\n{bytes}", node.guest.name());
        }
    }
    Ok(text)
}
