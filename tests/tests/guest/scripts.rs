//! The handler scripts of `drbd-utils`, as their users have them in their configurations. What they call of other packages is
//! there by name only, and notes how it was called.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use udrbd_tests::guest::{Guest, GuestOptions};
use udrbd_tests::shell::Shell as _;
use udrbd_tests::{machine, package, replica};

use crate::duo::forget_guests;

const DISK_BYTES: u64 = 256 << 20;
const LIMIT: Duration = Duration::from_secs(300);

/// The kernel's module reads nothing of this: there the helper is `drbdadm`, too, and runs the same scripts.
const RESOURCE: &str = "resource r0 {
    device minor 0;
    meta-disk internal;
    net { ping-int 2; connect-int 2; ping-timeout 30; }
    disk { c-plan-ahead 0; resync-rate 1M; fencing resource-and-stonith; }
    handlers {
        before-resync-target \"/usr/lib/drbd/snapshot-resync-target-lvm.sh\";
        after-resync-target \"/usr/lib/drbd/unsnapshot-resync-target-lvm.sh\";
        fence-peer \"/usr/lib/drbd/stonith_admin-fence-peer.sh\";
        split-brain \"/usr/lib/drbd/notify-split-brain.sh keeper\";
    }
    on alpha { disk /dev/vda; address 10.66.0.1:7788; }
    on beta { disk /dev/pool/below; address 10.66.0.2:7788; }
}
";

/// Programs the scripts call, in the place of those of other packages: the first finds room for the mail, the second fences.
const STUBS: &str = "rm -f /usr/bin/mail /usr/sbin/stonith_admin
printf '#!/bin/sh\\n{ echo \"to $3: $2\"; cat; } >>/run/mails\\n' >/usr/bin/mail
printf '#!/bin/sh\\necho \"$*\" >>/run/fenced\\n' >/usr/sbin/stonith_admin
chmod 755 /usr/bin/mail /usr/sbin/stonith_admin
touch /run/mails /run/fenced
";

/// A logical volume on the disk, where no udev makes its names.
const VOLUME: &str = "mkdir -p /etc/lvm /dev/mapper; rm -f /etc/lvm/lvm.conf; modprobe dm-snapshot
cat >/etc/lvm/lvm.conf <<X
devices { use_devicesfile=0 scan=\"/dev\" filter=[\"a|^/dev/vda|\",\"r|.*|\"] }
activation { udev_sync=0 udev_rules=0 }
backup { backup=0 archive=0 }
X
pvcreate -q -ff -y /dev/vda; vgcreate -q pool /dev/vda; lvcreate -q -y -Zn -Wn -L 200M -n below pool
";

/// What alpha writes while beta is away, in MiB: as large must the snapshot be, and more.
const CHANGED_MIB: u32 = 12;
/// What the script adds, and a tenth of the volume, in KiB.
const SNAPSHOT_KIB: u32 = CHANGED_MIB * 1024 + 10240 + (200 << 10) / 10;

struct Node(Guest);

impl Node {
    fn run(&mut self, script: &str) -> Result<String> {
        self.0.run_limited(&format!("set -e\n{script}"), LIMIT)?.expect_success()
    }

    fn wait(&mut self, what: &str, script: &str) -> Result<()> {
        let found = self.0.wait_for(what, LIMIT, |guest| Ok((guest.run(script)?.status == 0).then_some(())));
        found.map_err(|error| {
            let log =
                self.run("cat /run/udrbd/proc/drbd /run/mails /run/fenced; tail -60 /run/udrbd/udrbdd.log");
            error.context(log.unwrap_or_default())
        })
    }

    fn wait_state(&mut self, text: &str) -> Result<()> {
        self.wait(text, &format!("grep -q '{text}' /run/udrbd/proc/drbd"))
    }
}

/// A snapshot keeps what a resync overwrites, a peer that does not answer is fenced, and a split brain sends a mail.
pub(crate) fn do_their_work() -> Result<()> {
    let programs = replica::built(package::PROGRAMS)?;
    machine::ensure_packages(&["drbd-utils", "lvm2", "kmod", "bsdutils"])?;
    forget_guests();
    let options = GuestOptions { disks: vec![DISK_BYTES], processors: 1, ..GuestOptions::default() };
    let (alpha, beta, cable) = Guest::boot_pair(&options)?;
    let (mut alpha, mut beta) = (Node(alpha), Node(beta));
    for node in [&mut alpha, &mut beta] {
        let share = node.0.share();
        let file = package::build(&Path::new(env!("CARGO_MANIFEST_DIR")).join(".."), &programs, &share)?;
        let name = file.file_name().context("a package")?.to_string_lossy().into_owned();
        std::fs::write(share.join("r0.res"), RESOURCE)?;
        let volume = if node.0.name() == "beta" { VOLUME } else { "" };
        node.run(&format!(
            "dpkg -i {share}/{name} >/run/dpkg 2>&1 || {{ cat /run/dpkg >&2; exit 1; }}\n\
             mkdir -p /etc/drbd.d; cp {share}/r0.res /etc/drbd.d/; {STUBS}\n\
             modprobe ublk_drv\n{volume}\n\
             drbdadm create-md --force r0; drbdadm up r0",
            share = Guest::SHARE
        ))?;
        // As on most machines nothing can be executed below /run.
        node.run("mount -o remount,noexec /run || mount --bind -o noexec /run /run")?;
    }
    alpha.run("drbdadm wait-connect r0; drbdadm new-current-uuid --clear-bitmap r0/0; drbdadm primary r0")?;
    beta.wait_state("cs:Connected .* ds:UpToDate/UpToDate")?;

    beta.run("drbdadm down r0")?;
    alpha.run(&format!(
        "dd if=/dev/urandom of=/dev/drbd0 bs=1M count={CHANGED_MIB} oflag=direct 2>/dev/null"
    ))?;
    beta.run("drbdadm up r0")?;
    beta.wait_state("cs:SyncTarget")?;
    let size = beta.run("lvs --noheadings --nosuffix --units k -o lv_size pool/below-before-resync")?;
    let size: f64 = size.trim().parse().with_context(|| format!("a size: {size}"))?;
    ensure!(size >= f64::from(SNAPSHOT_KIB), "a snapshot of {size} KiB, not {SNAPSHOT_KIB} or more");
    beta.wait_state("cs:Connected .* ds:UpToDate/UpToDate")?;
    beta.wait("the end of the snapshot", "test $(lvs --noheadings pool | wc -l) = 1")?;

    // Each says that it has fenced the other.
    cable.cut();
    for (node, peer) in [(&mut alpha, "beta"), (&mut beta, "alpha")] {
        node.run(
            "drbdadm primary r0; timeout 200 dd if=/dev/urandom of=/dev/drbd0 bs=4k count=8 oflag=direct 2>/dev/null",
        )?;
        node.wait_state("ds:UpToDate/Outdated")?;
        let fenced = node.run("cat /run/fenced")?;
        ensure!(fenced == format!("--tolerance 5s --tag drbd --fence {peer}\n"), "fenced with {fenced:?}");
    }
    beta.run("drbdadm secondary r0")?;
    cable.join();
    for (node, peer) in [(&mut alpha, "beta"), (&mut beta, "alpha")] {
        let subject = "to keeper: DRBD split brain on resource r0/0 (drbd0)";
        node.wait("a mail", &format!("grep -qxF '{subject}' /run/mails && grep -q '{peer}\\.$' /run/mails"))?;
    }
    Ok(())
}
