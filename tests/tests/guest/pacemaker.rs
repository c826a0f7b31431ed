//! Two nodes under Pacemaker: the resource agent of `drbd-utils`, a file system above it, as the guides set it up.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use udrbd_tests::guest::{Guest, GuestOptions};
use udrbd_tests::shell::Shell as _;
use udrbd_tests::{machine, package, replica};

use crate::block::NOT;
use crate::duo::{DISK_BYTES, compare_files, forget_guests};

/// By their Debian names. The agent for DRBD comes with `drbd-utils`.
const PACKAGES: &[&str] = &["drbd-utils", "kmod", "pacemaker", "corosync", "crmsh", "resource-agents"];
/// Pacemaker's tools are slow under emulation.
const LIMIT: Duration = Duration::from_secs(400);
const MOUNT: &str = "/srv/data";

const RESOURCE: &str = "resource r0 {
    device minor 0;
    disk /dev/vda;
    meta-disk internal;
    net { ping-int 2; connect-int 2; }
    disk { c-plan-ahead 0; resync-rate 200M; fencing resource-only; }
    handlers {
        fence-peer \"/usr/lib/drbd/crm-fence-peer.sh --timeout 90\";
        after-resync-target \"/usr/lib/drbd/crm-unfence-peer.sh --timeout 90\";
    }
    on alpha { address 10.66.0.1:7788; }
    on beta { address 10.66.0.2:7788; }
}
";

/// The members for each other: alpha and beta, of whom either alone may go on.
pub(crate) const COROSYNC: &str = "totem {
    version: 2
    cluster_name: pair
    transport: knet
    token: 10000
    crypto_cipher: none
    crypto_hash: none
}
nodelist {
    node {
        ring0_addr: 10.66.0.1
        name: alpha
        nodeid: 1
    }
    node {
        ring0_addr: 10.66.0.2
        name: beta
        nodeid: 2
    }
}
quorum {
    provider: corosync_votequorum
    two_node: 1
    wait_for_all: 0
}
logging {
    to_logfile: yes
    logfile: /var/log/corosync.log
    to_syslog: no
}
";

/// What an administrator types into `crm configure`, with one agent or the other.
const CLUSTER: &str = "property stonith-enabled=false no-quorum-policy=ignore
rsc_defaults resource-stickiness=100
primitive drbd_r0 ocf:PROVIDER:drbd params drbd_resource=r0 \\
    op start timeout=240 op stop timeout=240 op promote timeout=240 op demote timeout=240 op notify timeout=240 \\
    op monitor interval=15 role=Master timeout=120 op monitor interval=20 role=Slave timeout=120
ms ms_drbd_r0 drbd_r0 meta master-max=1 master-node-max=1 clone-max=2 clone-node-max=1 notify=true
primitive fs_r0 ocf:heartbeat:Filesystem params device=/dev/drbd0 directory=/srv/data fstype=ext4 \\
    op start timeout=240 op stop timeout=240 op monitor interval=20 timeout=120
colocation fs_on_drbd inf: fs_r0 ms_drbd_r0:Master
order fs_after_drbd inf: ms_drbd_r0:promote fs_r0:start
";

/// A member of the cluster.
struct Member {
    guest: Guest,
}

impl Member {
    fn run(&mut self, script: &str) -> Result<String> {
        let script = format!("set -e\n{NOT}\nexport LC_ALL=C.UTF-8 TERM=dumb\n{script}");
        self.guest.run_limited(&script, LIMIT)?.expect_success()
    }

    /// Installs what a boot has forgotten, and joins the cluster.
    fn prepare(package: &str) -> String {
        format!(
            "export DEBIAN_FRONTEND=noninteractive; dpkg -i {share}/{package} >/run/dpkg 2>&1 || {{ cat /run/dpkg >&2; exit 1; }}\n\
             mkdir -p /etc/drbd.d {MOUNT}; cp {share}/r0.res /etc/drbd.d/; cp {share}/corosync.conf /etc/corosync/\n\
             modprobe ublk_drv",
            share = Guest::SHARE
        )
    }

    fn join() -> &'static str {
        "corosync; for _ in $(seq 60); do corosync-cfgtool -s >/dev/null 2>&1 && break; sleep 0.5; done\n\
         setsid pacemakerd </dev/null >/run/pacemakerd.log 2>&1 &\n\
         sleep 1"
    }

    /// What the cluster shows and what its programs said: for a failure.
    fn story(&mut self) -> String {
        let script = "crm_mon -1Arf; cat /run/udrbd/proc/drbd; cibadmin -Q -o constraints; \
                      cat /run/udrbd/udrbdd.log | grep -a fence | tail -20; \
                      grep -hE 'error|warning|ocf-exit|drbd\\(' /var/log/pacemaker/pacemaker.log | tail -40; tail -5 /run/pacemakerd.log";
        match self.guest.run_limited(script, Duration::from_secs(60)) {
            Ok(output) => format!("{}{}", output.stdout, output.stderr),
            Err(error) => format!("({error:#})"),
        }
    }

    /// Whether the file system is mounted here from the replicated device.
    fn serves(&mut self) -> Result<bool> {
        Ok(self.guest.run(&format!("grep -q '^/dev/drbd0 {MOUNT} ' /proc/mounts"))?.status == 0)
    }

    fn wait_serving(&mut self) -> Result<()> {
        let served = self.guest.wait_for("the file system", LIMIT, |guest| {
            let mounted = guest.run(&format!("grep -q '^/dev/drbd0 {MOUNT} ' /proc/mounts"))?.status == 0;
            Ok(mounted.then_some(()))
        });
        served.map_err(|error| error.context(self.story()))
    }

    /// Waits until both disks are up to date, as this node sees it.
    fn wait_in_sync(&mut self) -> Result<()> {
        let wanted = "grep -q 'cs:Connected ro:.* ds:UpToDate/UpToDate' /run/udrbd/proc/drbd";
        let found = self.guest.wait_for("both disks up to date", LIMIT, |guest| {
            Ok((guest.run(wanted)?.status == 0).then_some(()))
        });
        found.map_err(|error| error.context(self.story()))
    }

    /// Writes a file that has to be there ever after, and its checksum beside it.
    fn promise(&mut self, name: &str) -> Result<()> {
        let write = format!(
            "cd {MOUNT}; head -c 3000000 /dev/urandom >{name}; md5sum {name} >{name}.md5; sync -f {name}; sync -f {name}.md5"
        );
        self.run(&write).map(drop)
    }

    /// Waits until the constraint is there, or gone, by which `crm-fence-peer.sh` keeps the peer from being promoted.
    fn wait_fenced(&mut self, fenced: bool) -> Result<()> {
        let wanted = if fenced { "" } else { "not " };
        let script =
            format!("{NOT}\n{wanted}grep -q drbd-fence-by-handler-r0 <<<\"$(cibadmin -Q -o constraints)\"");
        let found = self.guest.wait_for("the constraint of crm-fence-peer.sh", LIMIT, |guest| {
            Ok((guest.run(&script)?.status == 0).then_some(()))
        });
        found.map_err(|error| error.context(self.story()))
    }

    /// All files that were promised are there.
    fn check(&mut self, files: usize) -> Result<()> {
        let script = format!("cd {MOUNT}; md5sum --quiet -c ./*.md5; test $(ls ./*.md5 | wc -l) = {files}");
        self.run(&script).map(drop)
    }
}

/// With the agent of `drbd-utils`, as the guides have it; it loads the kernel's module, which does nothing.
pub(crate) fn with_the_stock_agent() -> Result<()> {
    fails_over("linbit", "modinfo drbd >/dev/null", "test -d /sys/module/drbd")
}

/// With the package's own agent, on a kernel without DRBD.
pub(crate) fn without_the_module() -> Result<()> {
    fails_over(
        "udrbd",
        "echo install drbd /bin/false >/etc/modprobe.d/no-drbd.conf",
        "not test -d /sys/module/drbd",
    )
}

/// Promoted and mounted by the cluster; moved by `crm node standby`; taken over after the power of a node went. Nothing that
/// was written is missing, and both disks are equal in the end. `before` is run after each boot, `after` when all is done.
fn fails_over(provider: &str, before: &str, after: &str) -> Result<()> {
    machine::ensure_packages(PACKAGES)?;
    let programs = replica::built(package::PROGRAMS)?;
    forget_guests();
    let options = GuestOptions { disks: vec![DISK_BYTES], processors: 1, ..GuestOptions::default() };
    let (alpha, beta, _cable) = Guest::boot_pair(&options)?;
    let (mut one, mut two) = (Member { guest: alpha }, Member { guest: beta });
    let mut name = String::new();
    for member in [&one, &two] {
        let share = member.guest.share();
        let file = package::build(&Path::new(env!("CARGO_MANIFEST_DIR")).join(".."), &programs, &share)?;
        name = file.file_name().context("a package")?.to_string_lossy().into_owned();
        std::fs::write(share.join("r0.res"), RESOURCE)?;
        std::fs::write(share.join("corosync.conf"), COROSYNC)?;
        std::fs::write(share.join("cluster"), CLUSTER.replace("PROVIDER", provider))?;
    }
    let prepare = format!("{before}; {}", Member::prepare(&name));
    together(&mut one, &mut two, &format!("{prepare}\ndrbdadm create-md --force r0; drbdadm up r0"))?;
    one.run(
        "drbdadm wait-connect r0; drbdadm new-current-uuid --clear-bitmap r0/0; drbdadm primary r0; mkfs.ext4 -q -F /dev/drbd0",
    )?;
    together(&mut one, &mut two, &format!("drbdadm down r0\n{}", Member::join()))?;
    one.run("until crm_mon -1 2>/dev/null | grep -q 'Online: \\[ alpha beta \\]'; do sleep 1; done")?;
    // crmsh gives up when the cluster itself changes its configuration in that moment, as a young one does.
    let configure = format!(
        "for _ in 1 2 3 4; do crm -F configure load update {}/cluster && exit 0; sleep 5; done; exit 1",
        Guest::SHARE
    );
    one.run(&configure)?;

    // Either may have been chosen.
    let mut passes = 0;
    while !one.serves()? && !two.serves()? {
        passes += 1;
        ensure!(passes < 400, "nobody serves\n{}\n{}", one.story(), two.story());
        std::thread::sleep(Duration::from_secs(1));
    }
    let (mut active, mut passive) = if one.serves()? { (one, two) } else { (two, one) };
    active.promise("first")?;

    let here = active.guest.name().to_owned();
    active.run(&format!("crm node standby {here}"))?;
    passive.wait_serving()?;
    passive.check(1)?;
    passive.promise("second")?;
    active.run(&format!("not grep {MOUNT} /proc/mounts; crm node online {here}"))?;
    passive.wait_in_sync()?;
    std::mem::swap(&mut active, &mut passive);

    // Under writes.
    let load = format!("while :; do head -c 500000 /dev/urandom >{MOUNT}/load; sync; done");
    let _interrupted = active.guest.spawn(&load, Duration::from_secs(600))?;
    active.promise("third")?;
    active.guest.power_cut()?;
    passive.wait_serving()?;
    passive.wait_fenced(true)?;
    passive.check(3)?;
    passive.promise("fourth")?;

    active.guest.power_on()?;
    active.run(&format!("{prepare}\n{}", Member::join()))?;
    passive.wait_in_sync()?;
    passive.wait_fenced(false)?;
    passive.check(4)?;
    let size = passive.run("blockdev --getsize64 /dev/drbd0")?.trim().parse().context("a size")?;
    let other = passive.guest.name().to_owned();
    passive.run(&format!("crm node standby {other}"))?;
    active.wait_serving()?;
    active.check(4)?;
    passive.run(&format!("crm node online {other}"))?;
    active.wait_in_sync()?;
    // Unmounted, as what is mounted is written to at any time.
    active.run("crm --wait -F resource stop fs_r0")?;
    active.run(&format!("until not grep -q {MOUNT} /proc/mounts 2>/dev/null; do sleep 1; done"))?;
    active.wait_in_sync()?;
    active.run(after)?;
    passive.run(after)?;
    compare_files(&active.guest.disk_file(0), &passive.guest.disk_file(0), size)
}

/// Runs the same in both at once.
fn together(one: &mut Member, two: &mut Member, script: &str) -> Result<()> {
    let script = format!("set -e\n{NOT}\n{script}");
    let jobs = [one.guest.spawn(&script, LIMIT)?, two.guest.spawn(&script, LIMIT)?];
    let [first, second] = jobs;
    one.guest.wait(first)?.expect_success()?;
    two.guest.wait(second)?.expect_success()?;
    Ok(())
}
