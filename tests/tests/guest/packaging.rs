//! The Debian package: installed in a guest as an administrator installs it.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use udrbd_tests::guest::{Guest, GuestOptions, Output};
use udrbd_tests::machine::{self, skip};
use udrbd_tests::{package, replica};

/// Installing is slow under emulation.
const INSTALL_LIMIT: Duration = Duration::from_secs(300);

/// A resource of this one node, at `/etc`, as people write it.
const RESOURCE: &str = "mkdir -p /etc/drbd.d; cat >/etc/drbd.d/r0.res <<X
resource r0 {
    device minor 0;
    disk /dev/vda;
    meta-disk internal;
    startup { wfc-timeout 2; degr-wfc-timeout 2; become-primary-on $(hostname); }
    on $(hostname) { address 127.0.0.1:7788; }
    on elsewhere { address 127.0.0.1:7789; }
}
X
";

/// A guest with the package in its shared folder.
pub(crate) struct Node {
    pub(crate) guest: Guest,
    package: String,
}

impl Node {
    fn boot() -> Result<Self> {
        Self::boot_with(vec![64 << 20])
    }

    /// With disks of these sizes.
    pub(crate) fn boot_with(disks: Vec<u64>) -> Result<Self> {
        let programs = replica::built(package::PROGRAMS)?;
        let guest = Guest::boot(GuestOptions { disks, ..GuestOptions::default() })?;
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let file = package::build(&source, &programs, &guest.share())?;
        let name = file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        Ok(Self { guest, package: format!("{}/{name}", Guest::SHARE) })
    }

    pub(crate) fn run(&mut self, script: &str) -> Result<Output> {
        self.guest.run_limited(script, INSTALL_LIMIT)
    }

    pub(crate) fn sh(&mut self, script: &str) -> Result<String> {
        self.run(script)?.expect_success()
    }

    fn has_drbd_utils(&mut self) -> Result<bool> {
        Ok(self.run("dpkg-query -W -f '${db:Status-Status}' drbd-utils")?.stdout == "installed")
    }

    pub(crate) fn install(&mut self) -> Result<()> {
        let package = self.package.clone();
        self.sh(&format!("apt-get install -y -q {package}")).map(drop)
    }

    /// Metadata, up, Primary, by the installed programs and the configuration in `/etc`.
    fn serve(&mut self) -> Result<()> {
        self.sh(RESOURCE)?;
        self.sh("drbdadm create-md --force r0 && drbdadm up r0 && drbdadm primary --force r0")?;
        let role = self.sh("drbdadm role r0")?;
        ensure!(role == "Primary/Unknown\n", "role {role}");
        let server = self.sh("readlink /proc/$(cat /run/udrbd/udrbdd.pid)/exe")?;
        ensure!(server == "/usr/sbin/udrbdd\n", "served by {server}");
        let overview = self.sh("drbd-overview")?;
        ensure!(overview.contains("0:r0/0") && overview.contains("Primary/Unknown"), "{overview}");
        Ok(())
    }

    /// A node that serves its data keeps its programs; stopped, it lets them go.
    fn remove(&mut self, how: &str) -> Result<()> {
        let refusal = self.run(&format!("dpkg --{how} udrbd 2>&1"))?;
        let text = &refusal.stdout;
        ensure!(refusal.status != 0 && text.contains("a resource is Primary"), "not refused: {text}");
        let role = self.sh("drbdadm role r0")?;
        ensure!(role == "Primary/Unknown\n", "after the refusal: {role}");
        self.sh(&format!("drbdadm down r0 && apt-get {how} -y -q udrbd")).map(drop)
    }
}

/// What the other package has under the names that are taken over, with checksums.
const TAKEN_OVER: &str = "cd / && sha256sum usr/sbin/drbdadm usr/sbin/drbdsetup usr/sbin/drbdmeta \
    usr/lib/systemd/system/drbd.service usr/lib/systemd/system/drbd@.service \
    usr/lib/systemd/system/drbd@.target usr/lib/modules-load.d/drbd.conf";

/// Beside drbd-utils: the names are ours while the package is there, and afterwards theirs, byte for byte.
pub(crate) fn beside_drbd_utils() -> Result<()> {
    let mut node = Node::boot()?;
    if !node.has_drbd_utils()? {
        return Err(skip("needs the package drbd-utils"));
    }
    let before = node.sh(TAKEN_OVER)?;
    let configuration = "sha256sum /etc/drbd.conf /etc/drbd.d/global_common.conf /etc/init.d/drbd";
    let configuration_before = node.sh(configuration)?;

    // Not while the kernel's DRBD still serves: its drbdadm would be gone.
    node.sh(&format!(
        "{RESOURCE}modprobe drbd usermode_helper=/bin/true; drbdadm create-md --force r0; drbdadm up r0"
    ))?;
    let package = node.package.clone();
    let refusal = node.run(&format!("dpkg -i {package}"))?;
    ensure!(refusal.status != 0, "installed over a running kernel's DRBD");
    ensure!(node.sh(TAKEN_OVER)? == before, "a refused installation left something behind");
    node.sh("drbdadm down r0 && modprobe -r drbd && rm /etc/drbd.d/r0.res")?;

    node.install()?;
    for program in ["drbdadm", "drbdsetup", "drbdmeta", "drbd-overview", "drbdadm-84", "drbdsetup-84"] {
        let path = node.sh(&format!("readlink -f $(command -v {program})"))?;
        ensure!(path == "/usr/sbin/drbdadm\n", "{program} is {path}");
    }
    let kept = node.sh("find /usr/lib/udrbd/diverted -type f | wc -l")?;
    ensure!(kept == "7\n", "{kept} files of drbd-utils are kept");
    node.serve()?;
    // Installed once more, as an upgrade does: what runs goes on, what is diverted stays.
    node.sh(&format!("dpkg -i {package}"))?;
    let role = node.sh("drbdadm role r0")?;
    ensure!(role == "Primary/Unknown\n", "after an upgrade: {role}");

    node.remove("remove")?;
    let after = node.sh(TAKEN_OVER)?;
    ensure!(after == before, "before:\n{before}after:\n{after}");
    ensure!(node.sh(configuration)? == configuration_before, "the configuration of drbd-utils changed");
    ensure!(node.sh("dpkg-divert --list | grep -c udrbd; true")? == "0\n", "diversions are left");
    let left = node.run("ls -d /usr/lib/udrbd /usr/sbin/udrbdd /usr/sbin/drbd-overview")?.stdout;
    ensure!(left.is_empty(), "left behind: {left}");
    Ok(())
}

/// Alone: the configuration is created, the init script works, and purging takes away what nobody changed.
pub(crate) fn alone() -> Result<()> {
    let mut node = Node::boot()?;
    if node.has_drbd_utils()? {
        node.sh("dpkg --purge --force-depends drbd-utils && rm -rf /etc/drbd.d /etc/drbd.conf")?;
    }
    node.install()?;
    node.sh("drbdadm sh-nop")?;
    let about = node.run("/etc/init.d/drbd status")?;
    ensure!(about.status == 3, "stopped, its status is {}", about.status);
    node.serve()?;
    node.sh("drbdadm down r0")?;

    // The configuration makes this node Primary, and nobody is waited for longer than it says.
    node.sh("/etc/init.d/drbd start")?;
    let about = node.sh("/etc/init.d/drbd status")?;
    ensure!(about.contains("0: cs:WFConnection ro:Primary/Unknown ds:UpToDate/"), "{about}");
    node.sh("/etc/init.d/drbd stop")?;
    let daemon = node.run("pgrep -x udrbdd")?;
    ensure!(daemon.stdout.is_empty(), "without a service manager, stop ends the daemon");

    node.sh("echo '# mine' >>/etc/drbd.d/global_common.conf")?;
    node.sh("drbdadm up r0 && drbdadm primary r0")?;
    node.remove("purge")?;
    let left =
        node.run("ls -d /etc/drbd.conf /etc/init.d/drbd /etc/drbd.d/* /usr/lib/udrbd /var/lib/udrbd")?.stdout;
    ensure!(left == "/etc/drbd.d/global_common.conf\n/etc/drbd.d/r0.res\n", "left behind: {left}");
    Ok(())
}

/// Starts systemd in the guest, in namespaces of its own and with the units it needs here, as the variable `S` to put
/// before commands. Its first process is the guest's agent, so systemd is the first of a process namespace.
pub(crate) const SYSTEMD: &str = r#"
units=/run/test-units
if [ ! -d $units ]; then
    mkdir $units
    cd /usr/lib/systemd/system
    cp ./*.target systemd-journald*.so* systemd-journald.service modprobe@.service udrbdd.service drbd.service drbd@.service udrbd-verify.* $units
    printf '[Unit]\nRequires=sysinit.target systemd-journald.service\n' >$units/guest.target
    hostname >/etc/hostname
    systemd-machine-id-setup
    setsid unshare --pid --mount --cgroup --fork bash -c "
        # As systemd does where it is no container: what is unmounted here goes from the namespaces of services, too.
        mount --make-rshared /
        mount -t proc proc /proc
        mount -t cgroup2 cgroup2 /sys/fs/cgroup
        exec env -i container=guest PATH=$PATH SYSTEMD_UNIT_PATH=$units \
            /lib/systemd/systemd --system --unit=guest.target --log-target=null" >/dev/null 2>&1 &
    for _ in $(seq 100); do
        sleep 0.3
        pgrep -x systemd && break
    done >/run/test-systemd
fi
S="nsenter --target $(head -1 /run/test-systemd) --mount --pid --cgroup --root --wd"
until $S systemctl is-active --quiet guest.target; do sleep 0.3; done
"#;

/// The administrator's line of a file system that is mounted at boot, as conf/README.md has it.
const NETDEV: &str =
    "/dev/drbd0 /srv/data ext4 _netdev,x-systemd.requires=drbd.service,x-systemd.device-timeout=0 0 0";

/// What a boot brings up: the file systems of the network, the resources, udev.
const BOOT: &str = r#"
boot=/run/boot-units
if [ ! -d $boot ]; then
    mkdir $boot
    cd /usr/lib/systemd/system
    cp ./*.target systemd-journald*.so* systemd-journald.service systemd-udevd*.so* systemd-udevd.service modprobe@.service systemd-poweroff.service \
        udrbdd.service drbd.service $boot
    printf '[Unit]
Requires=sysinit.target systemd-journald.service systemd-udevd.service
Wants=remote-fs.target drbd.service
' >$boot/guest.target
    # What is mounted when the resources are to go down.
    mkdir $boot/drbd.service.d
    printf '[Service]
ExecStop=
ExecStop=/bin/sh -c "cat /proc/mounts >/run/mounts-at-stop"
ExecStop=/usr/lib/udrbd/resources stop
' >$boot/drbd.service.d/look.conf
    hostname >/etc/hostname
    systemd-machine-id-setup
fi
setsid unshare --pid --mount --cgroup --fork bash -c "
    mount --make-rshared /
    mount -t proc proc /proc
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
    exec env -i container=guest PATH=$PATH SYSTEMD_UNIT_PATH=$boot:/run/systemd/generator \
        /lib/systemd/systemd --system --unit=guest.target --log-target=null" >/dev/null 2>&1 &
"#;
/// As `SYSTEMD`'s, for the systemd that runs now.
const BOOTED: &str = r#"S="nsenter --target $(pgrep -x systemd | head -1) --mount --pid --cgroup --root --wd"
"#;

/// A `_netdev` line of `/etc/fstab`: mounted at boot, when the resource is up and Primary; unmounted at shutdown, before
/// the resource goes down. And all of it once more.
pub(crate) fn netdev_mount() -> Result<()> {
    machine::ensure_packages(&["udev"])?;
    let mut node = Node::boot()?;
    if node.run("test -x /lib/systemd/systemd")?.status != 0 {
        return Err(skip("needs systemd"));
    }
    if node.run("modprobe ublk_drv && test -e /dev/ublk-control")?.status != 0 {
        return Err(skip("needs ublk"));
    }
    node.install()?;
    node.serve()?;
    node.sh(&format!(
        "mkfs.ext4 -q -F /dev/drbd0 && drbdadm down r0 && kill $(cat /run/udrbd/udrbdd.pid) && \
         mkdir -p /srv/data && echo '{NETDEV}' >/etc/fstab"
    ))?;
    for boot in 1..=2 {
        node.sh(BOOT)?;
        node.sh("until grep -q '^/dev/drbd0 /srv/data ext4 ' /proc/$(pgrep -x systemd | head -1)/mounts; do sleep 0.5; done")?;
        let up = node.sh(&format!(
            "{BOOTED}$S systemctl is-active drbd.service remote-fs.target srv-data.mount; $S drbdadm role r0"
        ))?;
        ensure!(up == "active\nactive\nactive\nPrimary/Unknown\n", "boot {boot}: {up}");
        node.sh(&format!(
            "{BOOTED}$S sh -c 'echo {boot} >>/srv/data/boots' && test $($S cat /srv/data/boots | wc -l) = {boot} && \
             $S systemctl --no-block start poweroff.target"
        ))?;
        node.sh("while pgrep -x 'systemd|udrbdd'; do sleep 0.5; done")?;
        // At the moment the resources went down nothing was mounted from them, and now nothing is left of them.
        node.sh(
            "! grep /srv/data /run/mounts-at-stop && rm /run/mounts-at-stop && ! ls /dev/drbd0 /dev/ublkb0",
        )?;
    }
    Ok(())
}

/// With the rule for udev systemd knows the disk by all its names: it mounts it by them, and sees it go.
fn udev_names(node: &mut Node) -> Result<()> {
    node.sh(&format!(
        r#"{SYSTEMD}set -e
        $S /lib/systemd/systemd-udevd --daemon
        $S drbdadm primary r0
        $S udevadm settle
        $S udevadm info --query=property /dev/ublkb0 >/run/properties
        state() {{ $S systemctl is-active "$(systemd-escape --path --suffix=device $1)"; }}
        for name in /dev/drbd0 /dev/drbd/by-res/r0/0 /dev/drbd/by-disk/vda; do
            grep -qE "^SYSTEMD_ALIAS=.*$name( |$)" /run/properties || {{ cat /run/properties >&2; exit 1; }}
            for _ in $(seq 50); do state $name >/dev/null && break; sleep 0.2; done
            [ $(state $name) = active ]
            # The links are the daemon's: udev makes none that would lead to the other name.
            test $name -ef /dev/drbd0
        done
        [ "$(readlink -f /dev/drbd/by-res/r0/0)" = /dev/drbd0 ]
        # A partition by its name, too; and not by the name of the minor that has the partition's number.
        echo size=8MiB | $S sfdisk -q /dev/drbd0
        for _ in $(seq 50); do state /dev/drbd0p1 >/dev/null && break; sleep 0.2; done
        [ $(state /dev/drbd0p1) = active ]
        $S udevadm info --query=property --property=SYSTEMD_ALIAS --value /dev/ublkb0p1 | grep -qx /dev/drbd0p1
        test -b /dev/drbd0p1
        $S sfdisk -q --delete /dev/drbd0
        for _ in $(seq 50); do state /dev/drbd0p1 >/dev/null || break; sleep 0.2; done
        [ $(state /dev/drbd0p1 || true) = inactive ]
        $S mkfs.ext4 -q -F /dev/drbd0
        mkdir -p /run/mnt
        printf '[Mount]
What=/dev/drbd/by-res/r0/0
Where=/run/mnt
' >/run/test-units/run-mnt.mount
        $S systemctl daemon-reload
        $S systemctl start run-mnt.mount
        $S grep -q '^/dev/drbd0 /run/mnt ext4 ' /proc/mounts
        if $S drbdadm secondary r0; then echo demoted >&2; exit 1; fi
        $S systemctl stop run-mnt.mount
        $S drbdadm secondary r0
        for name in /dev/drbd0 /dev/drbd/by-res/r0/0 /dev/drbd/by-disk/vda; do
            for _ in $(seq 50); do state $name >/dev/null || break; sleep 0.2; done
            [ $(state $name || true) = inactive ]
        done"#
    ))
    .map(drop)
}

/// Where systemd runs, the daemon is its service, whoever needs it first, and its resources survive a crash.
pub(crate) fn under_systemd() -> Result<()> {
    machine::ensure_packages(&["udev", "fdisk"])?;
    let mut node = Node::boot()?;
    if node.run("test -x /lib/systemd/systemd")?.status != 0 {
        return Err(skip("needs systemd"));
    }
    node.sh("modprobe ublk_drv || true")?;
    node.install()?;
    node.sh(&format!("{RESOURCE}drbdadm create-md --force r0"))?;
    let verdict = node.sh(&format!(
        "{SYSTEMD}$S systemd-analyze verify --man=no udrbdd.service drbd.service drbd@r0.service drbd@r0.target udrbd-verify.timer 2>&1"
    ))?;
    ensure!(verdict.is_empty(), "systemd-analyze verify says:\n{verdict}");

    let property = |node: &mut Node, unit: &str, name: &str| -> Result<String> {
        let value = node.sh(&format!("{SYSTEMD}$S systemctl show --property {name} --value {unit}"))?;
        Ok(value.trim().to_owned())
    };
    // drbdadm needs a daemon: it becomes systemd's, not a child of the session.
    node.sh(&format!("{SYSTEMD}$S drbdadm up r0 && $S drbdadm primary --force r0"))?;
    ensure!(property(&mut node, "udrbdd", "ActiveState")? == "active", "drbdadm spawned the daemon itself");
    let process = property(&mut node, "udrbdd", "MainPID")?;
    let serving = node.sh("cat /run/udrbd/udrbdd.pid")?;
    ensure!(serving.trim() == process, "{serving} serves, {process} is systemd's");
    let memory = node.sh(&format!(
        "{SYSTEMD}$S cat /proc/{process}/oom_score_adj; $S grep 'Max locked' /proc/{process}/limits"
    ))?;
    ensure!(memory.starts_with("-1000\n") && memory.contains("unlimited"), "{memory}");

    // It crashes: another one comes, with what was up.
    node.sh(&format!("{SYSTEMD}$S kill -9 {process}"))?;
    node.sh(&format!(
        "{SYSTEMD}until [ \"$($S drbdadm --no-start role r0)\" = Secondary/Unknown ] && \
         [ \"$($S drbdadm dstate r0)\" = UpToDate/DUnknown ]; do sleep 0.5; done"
    ))?;
    let successor = property(&mut node, "udrbdd", "MainPID")?;
    ensure!(successor != process, "the crashed daemon {process} is still there");

    // It crashes under a mounted file system: whoever writes waits, and goes on.
    if node.run("test -e /dev/ublk-control")?.status == 0 {
        udev_names(&mut node)?;
        node.sh(&format!(
            "{SYSTEMD}$S drbdadm primary r0; $S mkfs.ext4 -q -F /dev/drbd0; $S mkdir -p /run/mnt\n\
             $S mount /dev/drbd0 /run/mnt; $S kill -9 $($S systemctl show --property MainPID --value udrbdd)\n\
             $S timeout 200 sh -c 'head -c 1000000 /dev/urandom >/run/mnt/file && sync'; $S umount /run/mnt\n\
             $S e2fsck -fn /dev/drbd0; $S drbdadm secondary r0"
        ))?;
    }

    // The unit of all resources follows the configuration up to the promotion, and takes everything down.
    node.sh(&format!("{SYSTEMD}$S drbdadm down r0 && $S systemctl stop udrbdd && $S systemctl start drbd"))?;
    let role = node.sh(&format!("{SYSTEMD}$S drbdadm role r0"))?;
    ensure!(role == "Primary/Unknown\n", "drbd.service leaves it {role}");
    node.sh(&format!("{SYSTEMD}$S systemctl stop drbd"))?;
    let names = node.sh(&format!("{SYSTEMD}$S drbdsetup events2 --now"))?;
    ensure!(!names.contains("name:r0"), "{names}");

    // So does the unit of one, without the promotion.
    node.sh(&format!("{SYSTEMD}$S systemctl start drbd@r0"))?;
    let role = node.sh(&format!("{SYSTEMD}$S drbdadm role r0"))?;
    ensure!(role == "Secondary/Unknown\n", "drbd@r0.service leaves it {role}");
    node.sh(&format!("{SYSTEMD}$S systemctl stop drbd@r0 && $S systemctl stop udrbdd"))?;
    ensure!(property(&mut node, "udrbdd", "ActiveState")? == "inactive", "the daemon does not stop");
    Ok(())
}
