//! One side of a replicated resource, driven by the verbs of `drbdsetup` and `drbdmeta`.
//!
//! The real DRBD and ours take the same words, so a scenario is written once and played with either in
//! either part. Two sides may live in one guest (or, both ours, on one machine without root): they only
//! differ in their ports.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::guest::Output;
use crate::machine::skip;
use crate::shell::{Shell, quoted};

/// Who replicates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The kernel's own DRBD, with the distribution's tools.
    Kernel,
    /// The daemon and tools built here.
    Udrbd,
}

/// How a daemon of ours offers its volumes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frontend {
    /// NBD only.
    Nbd,
    /// Block devices of the kernel, and NBD.
    Ublk,
}

/// One side of a resource with one volume.
#[derive(Debug, Clone)]
pub struct Replica {
    /// Who replicates.
    pub kind: Kind,
    /// Name of the resource on this side.
    pub resource: String,
    /// Minor of its volume 0.
    pub minor: u32,
    /// Backing device or file.
    pub disk: String,
    /// Own address and port.
    pub own: String,
    /// The other side's.
    pub peer: String,
    /// Options of `connect`.
    pub net: Vec<String>,
    /// Options of `attach`.
    pub disk_options: Vec<String>,
    /// Our daemon's run directory; without meaning for the kernel's.
    pub run_dir: String,
    /// Our daemon's node name; without meaning for the kernel's.
    pub node: String,
    /// What our daemon offers; without meaning for the kernel's.
    pub frontend: Frontend,
    /// The program that runs handlers.
    pub helper: String,
}

/// What the status file says about a minor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// `cs:`, or `Unconfigured`.
    pub connection: String,
    /// Own role of `ro:`.
    pub role: String,
    /// The peer's role of `ro:`.
    pub peer_role: String,
    /// Own disk of `ds:`.
    pub disk: String,
    /// The peer's disk of `ds:`.
    pub peer_disk: String,
    /// Client I/O is suspended.
    pub suspended: bool,
    /// `oos:`, in KiB.
    pub out_of_sync_kib: u64,
    /// `ns:` and `nr:`, in KiB: sent and received, resync included.
    pub sent_kib: u64,
    /// See `sent_kib`.
    pub received_kib: u64,
}

impl Status {
    /// Connected, and both disks up to date.
    pub fn is_healthy(&self) -> bool {
        self.connection == "Connected"
            && self.disk == "UpToDate"
            && self.peer_disk == "UpToDate"
            && self.out_of_sync_kib == 0
    }

    /// Reads what a status file says of a minor.
    pub fn parse(text: &str, minor: u32) -> Option<Self> {
        let head = format!("{minor}: ");
        let mut lines = text.lines().skip_while(|line| !line.trim_start().starts_with(&head));
        let state = lines.next()?;
        let field = |line: &str, key: &str| -> Option<String> {
            line.split_whitespace().find_map(|word| word.strip_prefix(key)).map(str::to_owned)
        };
        let pair = |value: Option<String>| -> (String, String) {
            let value = value.unwrap_or_default();
            let (own, peer) = value.split_once('/').unwrap_or((&value, ""));
            (own.to_owned(), peer.to_owned())
        };
        let counters = lines.next().unwrap_or_default();
        let number = |key: &str| field(counters, key).and_then(|value| value.parse().ok()).unwrap_or(0);
        let (role, peer_role) = pair(field(state, "ro:"));
        let (disk, peer_disk) = pair(field(state, "ds:"));
        Some(Self {
            connection: field(state, "cs:")?,
            role,
            peer_role,
            disk,
            peer_disk,
            suspended: state.split_whitespace().last().is_some_and(|flags| flags.starts_with('s')),
            out_of_sync_kib: number("oos:"),
            sent_kib: number("ns:"),
            received_kib: number("nr:"),
        })
    }
}

/// The folder with the binaries under test: `$UDRBD_BIN_DIR`, else `target/release` of this workspace.
pub fn binaries() -> PathBuf {
    match std::env::var_os("UDRBD_BIN_DIR") {
        Some(folder) => folder.into(),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/release"),
    }
}

/// The binaries as an absolute folder, if all that a node needs are there.
///
/// # Errors
///
/// A [`crate::machine::Skip`] that says what to build.
pub fn built_binaries() -> Result<PathBuf> {
    built(&["udrbdd", "drbdadm", "drbdsetup", "drbdmeta"])
}

/// As [`built_binaries`], for some of them.
///
/// # Errors
///
/// As [`built_binaries`].
pub fn built(names: &[&str]) -> Result<PathBuf> {
    let folder = binaries();
    for name in names {
        if !folder.join(name).is_file() {
            return Err(skip(format!("{name} is not built (cargo build --release)")));
        }
    }
    Ok(std::fs::canonicalize(folder)?)
}

/// What runs handlers unless a test has something better.
pub const HELPER: &str = "/bin/true";

/// Status readings in a row that say StandAlone before a wait gives up.
const STAND_ALONE_MAX: u32 = 20;

impl Replica {
    /// A side that talks from `own` to `peer`, protocol C, and tries to connect every two seconds.
    pub fn new(kind: Kind, resource: &str, minor: u32, disk: &str, own: &str, peer: &str) -> Self {
        Self {
            kind,
            resource: resource.to_owned(),
            minor,
            disk: disk.to_owned(),
            own: own.to_owned(),
            peer: peer.to_owned(),
            net: ["--protocol=C", "--connect-int=2", "--ping-int=3", "--ping-timeout=20"]
                .map(str::to_owned)
                .into(),
            disk_options: ["--c-plan-ahead=0", "--resync-rate=200M"].map(str::to_owned).into(),
            run_dir: format!("/run/udrbd-{resource}"),
            node: resource.to_owned(),
            frontend: Frontend::Nbd,
            helper: HELPER.to_owned(),
        }
    }

    /// The same side with a daemon that offers block devices.
    #[must_use]
    pub fn with_ublk(self) -> Self {
        Self { frontend: Frontend::Ublk, ..self }
    }

    /// The node of its block device.
    pub fn device(&self) -> String {
        format!("/dev/drbd{}", self.minor)
    }

    /// The command line of `drbdsetup WORDS` on this side.
    pub fn setup(&self, words: &str) -> String {
        match self.kind {
            Kind::Kernel => format!("/lib/drbd/drbdsetup-84 {words}"),
            Kind::Udrbd => format!("{} {}/drbdsetup {words}", self.environment(), folder_text()),
        }
    }

    /// The command line of our `drbdadm WORDS` for this side's daemon.
    pub fn adm(&self, words: &str) -> String {
        assert!(self.kind == Kind::Udrbd, "the kernel's drbdadm knows no other node's daemon");
        format!("{} {}/drbdadm {words}", self.environment(), folder_text())
    }

    /// The command line of what the service manager runs after a crash of our daemon: conf/resources, with the words it takes.
    pub fn resources(&self, words: &str) -> String {
        // The programs under test in the place of those that are installed.
        let script = format!("{}/../conf/resources", env!("CARGO_MANIFEST_DIR"));
        format!(
            "{} sh -c \"$(sed 's|^PATH=.*|PATH={}:/usr/sbin:/usr/bin:/sbin:/bin|' {script})\" resources {words}",
            self.environment(),
            folder_text()
        )
    }

    /// The command line of `drbdmeta VERB` on this side's disk, with internal metadata.
    pub fn meta(&self, verb: &str) -> String {
        let words = format!("--force {} v08 {} internal {verb}", self.minor, quoted(&self.disk));
        match self.kind {
            Kind::Kernel => format!("/sbin/drbdmeta {words}"),
            Kind::Udrbd => format!("{} {}/drbdmeta {words}", self.environment(), folder_text()),
        }
    }

    fn environment(&self) -> String {
        format!("UDRBD_RUN_DIR={} __DRBD_NODE__={}", quoted(&self.run_dir), quoted(&self.node))
    }

    /// What [`crate::target::TargetName`] calls the replicated device.
    pub fn target(&self) -> String {
        match (self.kind, self.frontend) {
            (Kind::Kernel, _) | (_, Frontend::Ublk) => self.device(),
            (Kind::Udrbd, Frontend::Nbd) => format!("nbd:{}/nbd.sock:{}", self.run_dir, self.resource),
        }
    }

    /// Loads the module, or starts the daemon and waits until it answers.
    ///
    /// # Errors
    ///
    /// A skip if the binaries are missing; what the daemon said if it ends at once.
    pub fn start(&self, shell: &mut impl Shell) -> Result<()> {
        match self.kind {
            Kind::Kernel => {
                // The module may be there already. It takes a line's end for a part of the name.
                let helper = quoted(&self.helper);
                shell.sh(&format!(
                    "modprobe drbd && printf %s {helper} >/sys/module/drbd/parameters/usermode_helper"
                ))?;
            }
            Kind::Udrbd => {
                let folder = built_binaries()?;
                let run_dir = quoted(&self.run_dir);
                let frontend = match self.frontend {
                    Frontend::Nbd => "nbd",
                    Frontend::Ublk => "ublk",
                };
                if self.frontend == Frontend::Ublk {
                    shell.sh("modprobe ublk_drv")?;
                }
                // What this writes is read when something goes wrong: keep every life of the daemon.
                shell.sh(&format!(
                    "mkdir -p {run_dir}\n\
                     rm -f {run_dir}/control.sock\n\
                     echo '--- started' >>{run_dir}/log\n\
                     {} setsid {}/udrbdd --run-dir {run_dir} --node {} --frontend {frontend} --helper {} \
                     </dev/null >>{run_dir}/log 2>&1 &\n\
                     echo $! >{run_dir}/pid\n\
                     for i in $(seq 200); do\n\
                       [ -S {run_dir}/control.sock ] && exit 0\n\
                       kill -0 $(cat {run_dir}/pid) || break\n\
                       sleep 0.1\n\
                     done\n\
                     tail -20 {run_dir}/log >&2; exit 1",
                    self.environment(),
                    folder.display(),
                    quoted(&self.node),
                    quoted(&self.helper),
                ))?;
            }
        }
        Ok(())
    }

    /// Kills our daemon as a crash would.
    ///
    /// # Errors
    ///
    /// If there is none.
    pub fn kill_daemon(&self, shell: &mut impl Shell) -> Result<()> {
        assert!(self.kind == Kind::Udrbd, "the kernel cannot be killed");
        let run_dir = quoted(&self.run_dir);
        shell.sh(&format!(
            "pid=$(cat {run_dir}/pid); kill -9 $pid; while kill -0 $pid 2>/dev/null; do sleep 0.05; done"
        ))?;
        Ok(())
    }

    /// Writes fresh metadata.
    ///
    /// # Errors
    ///
    /// What `drbdmeta` says.
    pub fn create_md(&self, shell: &mut impl Shell) -> Result<()> {
        shell.sh(&self.meta("create-md"))?;
        Ok(())
    }

    /// Creates resource and minor and attaches the disk, without connecting.
    ///
    /// # Errors
    ///
    /// What the tools say.
    pub fn attach(&self, shell: &mut impl Shell) -> Result<()> {
        let disk = quoted(&self.disk);
        let apply = self.meta("apply-al");
        let (resource, minor) = (&self.resource, self.minor);
        shell.sh(&format!(
            "set -e\n{}\n{}\n{apply}\n{}",
            self.setup(&format!("new-resource {resource}")),
            self.setup(&format!("new-minor {resource} {minor} 0")),
            self.setup(&format!("attach {minor} {disk} {disk} internal {}", self.disk_options.join(" "))),
        ))?;
        Ok(())
    }

    /// Starts to look for the peer.
    ///
    /// # Errors
    ///
    /// What `drbdsetup` says.
    pub fn connect(&self, shell: &mut impl Shell) -> Result<()> {
        let words =
            format!("connect {} ipv4:{} ipv4:{} {}", self.resource, self.own, self.peer, self.net.join(" "));
        shell.sh(&self.setup(&words))?;
        Ok(())
    }

    /// Start, attach and connect: all of it after a crash or a boot.
    ///
    /// # Errors
    ///
    /// As the three.
    pub fn bring_up(&self, shell: &mut impl Shell) -> Result<()> {
        self.start(shell)?;
        self.attach(shell)?;
        self.connect(shell)
    }

    /// Ends the connection.
    ///
    /// # Errors
    ///
    /// What `drbdsetup` says.
    pub fn disconnect(&self, shell: &mut impl Shell) -> Result<()> {
        shell.sh(&self.setup(&format!("disconnect ipv4:{} ipv4:{}", self.own, self.peer)))?;
        Ok(())
    }

    /// Runs `drbdsetup VERB MINOR OPTIONS`, which must succeed.
    ///
    /// # Errors
    ///
    /// What `drbdsetup` says.
    pub fn minor_verb(&self, shell: &mut impl Shell, verb: &str, options: &str) -> Result<String> {
        shell.sh(&self.setup(&format!("{verb} {} {options}", self.minor)))
    }

    /// Runs `drbdsetup VERB MINOR OPTIONS` and returns whatever comes of it.
    ///
    /// # Errors
    ///
    /// If it cannot be run.
    pub fn try_minor_verb(&self, shell: &mut impl Shell, verb: &str, options: &str) -> Result<Output> {
        let script = self.setup(&format!("{verb} {} {options}", self.minor));
        shell.run_limited(&script, Duration::from_secs(120))
    }

    /// Makes it Primary, `--force` or not.
    ///
    /// # Errors
    ///
    /// What `drbdsetup` says.
    pub fn primary(&self, shell: &mut impl Shell, force: bool) -> Result<()> {
        self.minor_verb(shell, "primary", if force { "--force" } else { "" }).map(drop)
    }

    /// Makes it Secondary.
    ///
    /// # Errors
    ///
    /// What `drbdsetup` says.
    pub fn secondary(&self, shell: &mut impl Shell) -> Result<()> {
        self.minor_verb(shell, "secondary", "").map(drop)
    }

    /// Demotes, disconnects, detaches and removes all of it.
    ///
    /// # Errors
    ///
    /// What `drbdsetup` says.
    pub fn down(&self, shell: &mut impl Shell) -> Result<()> {
        shell.sh(&self.setup(&format!("down {}", self.resource)))?;
        Ok(())
    }

    /// What the status file says now.
    ///
    /// # Errors
    ///
    /// If it cannot be read or does not know the minor.
    pub fn status(&self, shell: &mut impl Shell) -> Result<Status> {
        self.listed(shell)?.with_context(|| format!("the status file has no minor {}", self.minor))
    }

    fn listed(&self, shell: &mut impl Shell) -> Result<Option<Status>> {
        let text = shell.sh(&format!("cat {}", quoted(&self.status_file())))?;
        Ok(Status::parse(&text, self.minor))
    }

    /// Where its `/proc/drbd` is.
    pub fn status_file(&self) -> String {
        match self.kind {
            Kind::Kernel => "/proc/drbd".to_owned(),
            Kind::Udrbd => format!("{}/proc/drbd", self.run_dir),
        }
    }

    /// Waits until the status is as `wanted`.
    ///
    /// # Errors
    ///
    /// If it does not become so within `limit`, with the last status and the end of the log.
    pub fn wait(
        &self,
        shell: &mut impl Shell,
        what: &str,
        limit: Duration,
        wanted: impl Fn(&Status) -> bool,
    ) -> Result<Status> {
        let mut last = None;
        let mut alone = 0;
        let found = shell.wait_for(what, limit, |shell| {
            // A minor that is only just there may not be in the file yet.
            let Some(status) = self.listed(shell)? else { return Ok(None) };
            let found = wanted(&status).then(|| status.clone());
            // StandAlone does not end by itself: no use to wait for the limit.
            alone = if status.connection == "StandAlone" { alone + 1 } else { 0 };
            last = Some(status);
            if found.is_none() && alone > STAND_ALONE_MAX {
                bail!("waiting for {what}, but it stays StandAlone");
            }
            Ok(found)
        });
        match found {
            Ok(status) => Ok(status),
            Err(error) => {
                bail!("{error:#} on {:?} {}; it is {last:?}\n{}", self.kind, self.resource, self.log(shell))
            }
        }
    }

    /// Waits until it is connected and both disks are up to date.
    ///
    /// # Errors
    ///
    /// As [`Self::wait`].
    pub fn wait_healthy(&self, shell: &mut impl Shell) -> Result<Status> {
        self.wait(shell, "Connected UpToDate/UpToDate", Duration::from_secs(180), Status::is_healthy)
    }

    /// The end of its log.
    pub fn log(&self, shell: &mut impl Shell) -> String {
        let script = match self.kind {
            Kind::Kernel => "dmesg | grep -i drbd | tail -40".to_owned(),
            Kind::Udrbd => format!("tail -40 {}/log", quoted(&self.run_dir)),
        };
        match shell.run_limited(&script, Duration::from_secs(30)) {
            Ok(output) => output.stdout,
            Err(error) => format!("(no log: {error:#})"),
        }
    }
}

fn folder_text() -> String {
    let folder = binaries();
    let folder = std::fs::canonicalize(&folder).unwrap_or(folder);
    quoted(&folder.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_file_is_read_by_minor() {
        let text = "version: 8.4.11 (api:1/proto:86-101)\nsrcversion: X \n\
             \n 0: cs:Unconfigured\n\
              1: cs:SyncSource ro:Primary/Secondary ds:UpToDate/Inconsistent C r-----\n    \
             ns:28 nr:4 dw:28 dr:0 al:4 bm:0 lo:0 pe:0 ua:0 ap:0 ep:1 wo:f oos:65000\n";
        let status = Status::parse(text, 1).unwrap();
        assert_eq!((status.role.as_str(), status.peer_disk.as_str()), ("Primary", "Inconsistent"));
        assert_eq!((status.out_of_sync_kib, status.sent_kib, status.received_kib), (65000, 28, 4));
        assert_eq!(Status::parse(text, 0).unwrap().connection, "Unconfigured");
        assert!(Status::parse(text, 2).is_none());
    }
}
