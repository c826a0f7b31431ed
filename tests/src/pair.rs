//! Two of our daemons side by side on this machine: sparse files as disks, the loopback between them,
//! no root. `alpha` and `beta` share one configuration file, as two machines would.

use std::fs::{self, File};
use std::net::TcpListener;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::guest::Output;
use crate::replica::{self, Kind, Replica, Status};
use crate::shell::{Local, Shell as _, quoted};
use crate::target::TargetName;

/// Which of the two nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Node {
    /// The first.
    Alpha,
    /// The second.
    Beta,
}

impl Node {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::Alpha, Self::Beta];

    /// Its name in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Alpha => "alpha",
            Self::Beta => "beta",
        }
    }

    /// The other one.
    pub fn other(self) -> Self {
        match self {
            Self::Alpha => Self::Beta,
            Self::Beta => Self::Alpha,
        }
    }
}

/// What a pair is made of.
#[derive(Debug, Clone)]
pub struct PairOptions {
    /// Name of the resource.
    pub resource: String,
    /// Size of each disk file in bytes.
    pub disk_bytes: u64,
    /// Statements of the resource's `net` section.
    pub net: String,
    /// Statements of the resource's `disk` section.
    pub disk: String,
    /// Statements of the resource's `handlers` section.
    pub handlers: String,
    /// Where its folder is made; the system's folder for temporary files if `None`.
    pub within: Option<PathBuf>,
}

impl Default for PairOptions {
    fn default() -> Self {
        Self {
            resource: "r0".to_owned(),
            disk_bytes: 64 << 20,
            net: "protocol C; connect-int 1; ping-int 3; ping-timeout 20;".to_owned(),
            disk: "resync-rate 400M; c-plan-ahead 0;".to_owned(),
            handlers: String::new(),
            within: None,
        }
    }
}

/// A pair; its daemons are killed and its files removed when it is dropped.
pub struct Pair {
    options: PairOptions,
    folder: tempfile::TempDir,
    binaries: PathBuf,
    sides: [Replica; 2],
    daemons: [Option<Child>; 2],
}

impl Pair {
    /// Lays out folders, disk files and configuration; starts nothing.
    ///
    /// # Errors
    ///
    /// A [`crate::machine::Skip`] if the binaries are not built.
    pub fn new(options: PairOptions) -> Result<Self> {
        let binaries = replica::built_binaries()?;
        let mut builder = tempfile::Builder::new();
        builder.prefix("udrbd-");
        let folder = match &options.within {
            Some(parent) => builder.tempdir_in(parent)?,
            None => builder.tempdir()?,
        };
        let (one, two) = (free_port()?, free_port()?);
        let address = |port: u16| format!("127.0.0.1:{port}");
        let side = |node: Node, minor: u32, own: u16, peer: u16| {
            let path = folder.path().join(node.name());
            let disk = path.join("disk").display().to_string();
            let mut side =
                Replica::new(Kind::Udrbd, &options.resource, minor, &disk, &address(own), &address(peer));
            side.run_dir = path.display().to_string();
            side.node = node.name().to_owned();
            side
        };
        let sides = [side(Node::Alpha, 0, one, two), side(Node::Beta, 1, two, one)];
        for side in &sides {
            fs::create_dir(&side.run_dir)?;
            File::create(&side.disk)?.set_len(options.disk_bytes)?;
        }
        let pair = Self { options, folder, binaries, sides, daemons: [None, None] };
        fs::write(pair.config(), pair.config_text())?;
        Ok(pair)
    }

    fn config_text(&self) -> String {
        let PairOptions { resource, net, disk, handlers, .. } = &self.options;
        let mut text = format!(
            "global {{ usage-count no; }}\n\nresource {resource} {{\n    net {{ {net} }}\n    disk {{ {disk} }}\n"
        );
        if !handlers.is_empty() {
            text.push_str(&format!("    handlers {{ {handlers} }}\n"));
        }
        for side in &self.sides {
            text.push_str(&format!(
                "    on {} {{\n        device    /dev/drbd{} minor {};\n        disk      \"{}\";\n        \
                 address   {};\n        meta-disk internal;\n    }}\n",
                side.node, side.minor, side.minor, side.disk, side.own
            ));
        }
        text + "}\n"
    }

    /// The configuration file of both nodes.
    pub fn config(&self) -> PathBuf {
        self.folder.path().join("drbd.conf")
    }

    /// One side, for the verbs of `drbdsetup`.
    pub fn side(&self, node: Node) -> &Replica {
        &self.sides[node as usize]
    }

    /// The disk file of a node.
    pub fn disk(&self, node: Node) -> TargetName {
        TargetName::Path(self.side(node).disk.clone().into())
    }

    /// The NBD server's socket of a node.
    pub fn socket(&self, node: Node) -> PathBuf {
        Path::new(&self.side(node).run_dir).join("nbd.sock")
    }

    /// The replicated device as a node exports it.
    pub fn export(&self, node: Node) -> TargetName {
        TargetName::Nbd(self.socket(node), self.options.resource.clone())
    }

    /// Starts a node's daemon and waits until it answers.
    ///
    /// # Errors
    ///
    /// What it wrote to its log, if it ends or keeps silent.
    pub fn start(&mut self, node: Node) -> Result<()> {
        assert!(self.daemons[node as usize].is_none(), "{} runs already", node.name());
        let run_dir = PathBuf::from(&self.side(node).run_dir);
        let _stale = fs::remove_file(run_dir.join("control.sock"));
        let log = File::options().create(true).append(true).open(run_dir.join("log"))?;
        // Tied to our life, but out of reach of the terminal's Ctrl-C: the pair ends when we say so.
        let mut child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL"])
            .arg(self.binaries.join("udrbdd"))
            .arg("--run-dir")
            .arg(&run_dir)
            .args(["--node", node.name(), "--frontend", "nbd"])
            .env("UDRBD_RUN_DIR", &run_dir)
            .env("__DRBD_NODE__", node.name())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()
            .context("cannot start udrbdd")?;
        let deadline = Instant::now() + Duration::from_secs(20);
        while !run_dir.join("control.sock").exists() {
            if let Some(status) = child.try_wait()? {
                bail!("udrbdd of {} ended with {status}\n{}", node.name(), self.log(node));
            }
            if Instant::now() > deadline {
                child.kill()?;
                bail!("udrbdd of {} does not answer\n{}", node.name(), self.log(node));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        self.daemons[node as usize] = Some(child);
        Ok(())
    }

    /// Kills a node's daemon as a crash would.
    ///
    /// # Errors
    ///
    /// If it runs no longer.
    pub fn kill(&mut self, node: Node) -> Result<()> {
        let mut child =
            self.daemons[node as usize].take().with_context(|| format!("{} is down", node.name()))?;
        if let Some(status) = child.try_wait()? {
            bail!("udrbdd of {} had ended by itself with {status}\n{}", node.name(), self.log(node));
        }
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// Process id of a node's daemon, while it runs.
    pub fn daemon_id(&self, node: Node) -> Option<u32> {
        self.daemons[node as usize].as_ref().map(Child::id)
    }

    /// The command line of `drbdadm WORDS` on a node, as a user would type it.
    pub fn command(&self, node: Node, words: &str) -> String {
        format!(
            "UDRBD_RUN_DIR={} __DRBD_NODE__={} PATH={}:$PATH drbdadm -c {} {words}",
            quoted(&self.side(node).run_dir),
            node.name(),
            quoted(&self.binaries.display().to_string()),
            quoted(&self.config().display().to_string()),
        )
    }

    /// Runs a line of shell on a node as its root would type it: `drbdadm` is the one of this pair. The line need not
    /// succeed.
    ///
    /// # Errors
    ///
    /// If it cannot be run.
    pub fn shell(&self, node: Node, line: &str) -> Result<Output> {
        // By way of `env`, as the function has the program's name.
        let script = format!("drbdadm() {{ env {} \"$@\"; }}; {line}", self.command(node, ""));
        Local.run_limited(&script, Duration::from_secs(120))
    }

    /// The whole log of a node.
    ///
    /// # Errors
    ///
    /// If there is none.
    pub fn whole_log(&self, node: Node) -> Result<String> {
        Ok(fs::read_to_string(Path::new(&self.side(node).run_dir).join("log"))?)
    }

    /// Runs `drbdadm WORDS` on a node, which must succeed.
    ///
    /// # Errors
    ///
    /// What it prints, if it does not.
    pub fn adm(&self, node: Node, words: &str) -> Result<String> {
        Local.sh(&self.command(node, words)).with_context(|| self.log(node))
    }

    /// Runs `drbdadm WORDS` on a node and returns whatever comes of it.
    ///
    /// # Errors
    ///
    /// If it cannot be run.
    pub fn try_adm(&self, node: Node, words: &str) -> Result<Output> {
        Local.run_limited(&self.command(node, words), Duration::from_secs(120))
    }

    /// Starts both daemons, writes fresh metadata and brings the resource up on both.
    ///
    /// # Errors
    ///
    /// The first step that fails.
    pub fn bring_up(&mut self) -> Result<()> {
        let resource = self.options.resource.clone();
        for node in Node::BOTH {
            self.start(node)?;
            self.adm(node, &format!("create-md {resource}"))?;
            self.adm(node, &format!("up {resource}"))?;
        }
        for node in Node::BOTH {
            self.wait(node, "Connected", |status| status.connection == "Connected")?;
        }
        Ok(())
    }

    /// As [`Self::bring_up`], then makes alpha Primary by force and waits for the initial sync.
    ///
    /// # Errors
    ///
    /// The first step that fails.
    pub fn bring_up_and_sync(&mut self) -> Result<()> {
        self.bring_up()?;
        let resource = self.options.resource.clone();
        self.adm(Node::Alpha, &format!("primary --force {resource}"))?;
        self.wait_healthy()
    }

    /// What a node's status file says.
    ///
    /// # Errors
    ///
    /// If there is none.
    pub fn status(&self, node: Node) -> Result<Status> {
        self.side(node).status(&mut Local)
    }

    /// Waits until a node's status is as `wanted`.
    ///
    /// # Errors
    ///
    /// If it does not become so within a minute, with the end of its log.
    pub fn wait(&self, node: Node, what: &str, wanted: impl Fn(&Status) -> bool) -> Result<Status> {
        self.side(node).wait(&mut Local, what, Duration::from_secs(60), wanted)
    }

    /// Waits until both sides are connected and up to date.
    ///
    /// # Errors
    ///
    /// As [`Self::wait`].
    pub fn wait_healthy(&self) -> Result<()> {
        for node in Node::BOTH {
            self.wait(node, "Connected UpToDate/UpToDate", Status::is_healthy)?;
        }
        Ok(())
    }

    /// The end of a node's log.
    pub fn log(&self, node: Node) -> String {
        let text = fs::read_to_string(Path::new(&self.side(node).run_dir).join("log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let tail = lines[lines.len().saturating_sub(30)..].join("\n");
        format!("--- log of {}\n{tail}", node.name())
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        for child in self.daemons.iter_mut().flatten() {
            let _dead = child.kill();
            let _gone = child.wait();
        }
        if std::env::var_os("UDRBD_VM_KEEP").is_some() {
            eprintln!("the pair is kept in {}", self.folder.path().display());
            self.folder.disable_cleanup(true);
        }
    }
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
