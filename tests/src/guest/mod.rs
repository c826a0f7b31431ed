//! Guests: a Debian kernel in QEMU's software emulation, with this machine's own root as theirs.
//!
//! What is installed or built on the machine is in the guest at the same path; what the guest writes
//! stays in its memory, apart from its disks. Commands go through a virtio port; their output comes
//! back through a shared folder.
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! use udrbd_tests::guest::{Guest, GuestOptions};
//! let mut guest = Guest::boot(GuestOptions { disks: vec![64 << 20], ..GuestOptions::default() })?;
//! guest.run("mkfs.ext4 -q /dev/vda")?.expect_success()?;
//! guest.power_cut()?;
//! guest.power_on()?;
//! # Ok(()) }
//! ```

mod initramfs;
mod kernel;
mod link;

use std::fs::{self, File};
use std::io::{ErrorKind, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

pub use kernel::{KERNEL_VARIABLE, Kernel, KernelChoice};
pub use link::{End, Link};

use crate::machine;

const AGENT: &str = include_str!("agent.sh");

/// Packages a guest needs on the machine, by their Debian names.
pub const PACKAGES: &[&str] = &[
    "qemu-system-x86",
    "qemu-utils",
    "busybox-static",
    "kmod",
    "xz-utils",
    "iproute2",
    "coreutils",
    "util-linux",
];

/// Time a guest gets from power on to its first command. Emulation on a busy machine is slow.
const BOOT_LIMIT: Duration = Duration::from_secs(240);

/// Limit of [`Guest::run`].
const RUN_LIMIT: Duration = Duration::from_secs(120);

/// What a guest is made of.
#[derive(Debug, Clone)]
pub struct GuestOptions {
    /// Its host name.
    pub name: String,
    /// The kernel it boots; `None`: what [`KERNEL_VARIABLE`] asks for.
    pub kernel: Option<KernelChoice>,
    /// Virtual processors.
    pub processors: u32,
    /// Memory, in MiB.
    pub memory_mib: u32,
    /// Sizes of its disks in bytes: `/dev/vda`, `/dev/vdb` and so on. Sparse files of their own.
    pub disks: Vec<u64>,
    /// Counts guest time in executed instructions: exact, repeatable, one processor, and time limits
    /// inside the guest mean nothing.
    pub icount: bool,
    /// Its place on a cable: which end, the cable's sockets, its address with prefix length.
    pub network: Option<Network>,
    /// Names put into its `/etc/hosts`, as (address, name).
    pub hosts: Vec<(String, String)>,
}

/// A guest's network card.
#[derive(Debug, Clone)]
pub struct Network {
    /// Which end of the cable.
    pub end: End,
    /// Socket the card listens on.
    pub guest_socket: PathBuf,
    /// Socket the card sends to.
    pub hub_socket: PathBuf,
    /// Address with prefix length, as `ip addr add` takes it.
    pub address: String,
}

impl Default for GuestOptions {
    fn default() -> Self {
        Self {
            name: "alpha".to_owned(),
            kernel: None,
            processors: 2,
            memory_mib: 1536,
            disks: Vec::new(),
            icount: false,
            network: None,
            hosts: Vec::new(),
        }
    }
}

/// What a command left behind.
#[derive(Debug, Clone)]
pub struct Output {
    /// The command, for messages.
    pub command: String,
    /// Exit status; 124 if it ran out of time, 128 + signal if it was killed.
    pub status: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Output {
    /// The standard output, if the command succeeded.
    ///
    /// # Errors
    ///
    /// With command, status and everything it printed, if it did not.
    pub fn expect_success(self) -> Result<String> {
        if self.status != 0 {
            bail!("`{}` gave {}:\n{}{}", self.command, self.status, self.stdout, self.stderr);
        }
        Ok(self.stdout)
    }
}

/// A command that was started and not yet waited for.
#[derive(Debug)]
pub struct Job {
    id: u64,
    command: String,
    limit: Duration,
    started: Instant,
}

struct Machine {
    qemu: Child,
    port: UnixStream,
    received: Vec<u8>,
    finished: Vec<u64>,
}

/// A guest; its power is cut when it is dropped.
pub struct Guest {
    options: GuestOptions,
    folder: tempfile::TempDir,
    kernel: Kernel,
    machine: Option<Machine>,
    next_id: u64,
}

/// The program that emulates a guest was killed or gave up: that says nothing of what was tested.
#[derive(Debug, thiserror::Error)]
#[error("the emulator ended with {0}")]
pub struct EmulatorDied(std::process::ExitStatus);

impl Guest {
    /// Powers a guest on and waits until it takes commands.
    ///
    /// # Errors
    ///
    /// A [`machine::Skip`] where guests cannot run; else whatever kept it from booting, with its console.
    pub fn boot(options: GuestOptions) -> Result<Self> {
        let mut guest = Self::start(options)?;
        guest.wait_ready()?;
        Ok(guest)
    }

    /// Powers a guest on and returns at once; [`Self::wait_ready`] before the first command.
    ///
    /// # Errors
    ///
    /// As [`Self::boot`].
    pub fn start(options: GuestOptions) -> Result<Self> {
        machine::ensure_packages(PACKAGES)?;
        let choice = match options.kernel {
            Some(choice) => choice,
            None => KernelChoice::from_environment()?,
        };
        let kernel = Kernel::fetch(choice)?;
        let folder = tempfile::Builder::new().prefix("udrbd-guest-").tempdir()?;
        fs::create_dir(folder.path().join("share"))?;
        for (index, size) in options.disks.iter().enumerate() {
            File::create(folder.path().join(format!("disk{index}.raw")))?.set_len(*size)?;
        }
        initramfs::write(&kernel, &folder.path().join("initramfs"))?;
        let mut guest = Self { options, folder, kernel, machine: None, next_id: 1 };
        guest.write_share()?;
        guest.start_qemu()?;
        Ok(guest)
    }

    /// Two guests, `alpha` (10.66.0.1) and `beta` (10.66.0.2), on one cable; both are what `options` says.
    ///
    /// # Errors
    ///
    /// As [`Self::boot`].
    pub fn boot_pair(options: &GuestOptions) -> Result<(Self, Self, Cable)> {
        let folder = tempfile::Builder::new().prefix("udrbd-cable-").tempdir()?;
        let link = Link::new(folder.path())?;
        let hosts =
            vec![("10.66.0.1".to_owned(), "alpha".to_owned()), ("10.66.0.2".to_owned(), "beta".to_owned())];
        let mut guests = Vec::new();
        for (end, (address, name)) in [End::First, End::Second].into_iter().zip(&hosts) {
            guests.push(Self::start(GuestOptions {
                name: name.clone(),
                hosts: hosts.clone(),
                network: Some(Network {
                    end,
                    guest_socket: link.guest_socket(end),
                    hub_socket: link.hub_socket(end),
                    address: format!("{address}/24"),
                }),
                ..options.clone()
            })?);
        }
        for guest in &mut guests {
            guest.wait_ready()?;
        }
        let (Some(second), Some(first)) = (guests.pop(), guests.pop()) else {
            bail!("two guests were started")
        };
        Ok((first, second, Cable { link, _folder: folder }))
    }

    /// Its host name.
    pub fn name(&self) -> &str {
        &self.options.name
    }

    /// Its kernel, as `uname -r` says.
    pub fn kernel_release(&self) -> &str {
        &self.kernel.release
    }

    /// The file behind its disk `index` (0 is `/dev/vda`): what was written is to be seen there at once.
    pub fn disk_file(&self, index: usize) -> PathBuf {
        self.folder.path().join(format!("disk{index}.raw"))
    }

    /// The folder that host and guest share.
    pub fn share(&self) -> PathBuf {
        self.folder.path().join("share")
    }

    /// The shared folder's path inside the guest.
    pub const SHARE: &'static str = "/run/share";

    /// True while it has power and has not halted by itself.
    pub fn is_on(&mut self) -> bool {
        self.machine.as_mut().is_some_and(|machine| matches!(machine.qemu.try_wait(), Ok(None)))
    }

    /// The process that emulates it, while it is on.
    pub fn emulator(&self) -> Option<u32> {
        self.machine.as_ref().map(|machine| machine.qemu.id())
    }

    /// Runs a script with bash and waits for it, for at most two minutes.
    ///
    /// # Errors
    ///
    /// If the guest dies or the time is over; a failing script is not an error but a status.
    pub fn run(&mut self, script: &str) -> Result<Output> {
        self.run_limited(script, RUN_LIMIT)
    }

    /// As [`Self::run`], with another limit.
    ///
    /// # Errors
    ///
    /// As [`Self::run`].
    pub fn run_limited(&mut self, script: &str, limit: Duration) -> Result<Output> {
        let job = self.spawn(script, limit)?;
        self.wait(job)
    }

    /// Runs a script that must succeed and returns what it printed.
    ///
    /// # Errors
    ///
    /// As [`Self::run`], and if the status is not 0.
    pub fn sh(&mut self, script: &str) -> Result<String> {
        self.run(script)?.expect_success()
    }

    /// Starts a script in the background of the guest.
    ///
    /// # Errors
    ///
    /// If the guest is off.
    pub fn spawn(&mut self, script: &str, limit: Duration) -> Result<Job> {
        let id = self.next_id;
        self.next_id += 1;
        fs::write(self.share().join(format!("{id}.sh")), script)?;
        // Under icount guest seconds run away while the guest waits for the host.
        let seconds = if self.options.icount { 0 } else { limit.as_secs().max(1) };
        let name = self.options.name.clone();
        let machine = self.machine.as_mut().with_context(|| format!("{name} is off"))?;
        let told = machine.port.write_all(format!("{id} {seconds}\n").as_bytes());
        if told.is_err() {
            return Err(self.went_down());
        }
        Ok(Job { id, command: script.trim().to_owned(), limit, started: Instant::now() })
    }

    /// Waits for a script that was started.
    ///
    /// # Errors
    ///
    /// As [`Self::run`].
    pub fn wait(&mut self, job: Job) -> Result<Output> {
        self.wait_and(job, |_| Ok(()))
    }

    /// Waits for a script and copies what it prints to this process's own outputs meanwhile.
    ///
    /// # Errors
    ///
    /// As [`Self::run`].
    pub fn run_copied(&mut self, script: &str, limit: Duration) -> Result<Output> {
        let job = self.spawn(script, limit)?;
        let base = self.share().join(job.id.to_string());
        let mut sources = [(base.with_extension("out"), 0_u64), (base.with_extension("err"), 0_u64)];
        let mut copy = move || -> Result<()> {
            for (index, (path, offset)) in sources.iter_mut().enumerate() {
                let Ok(mut file) = File::open(path) else { continue };
                file.seek(SeekFrom::Start(*offset))?;
                let mut bytes = Vec::new();
                *offset += file.read_to_end(&mut bytes)? as u64;
                if index == 0 {
                    std::io::stdout().write_all(&bytes)?;
                } else {
                    std::io::stderr().write_all(&bytes)?;
                }
            }
            std::io::stdout().flush()?;
            Ok(())
        };
        let output = self.wait_and(job, |_| copy());
        copy()?;
        output
    }

    fn wait_and(&mut self, job: Job, mut each_turn: impl FnMut(&Self) -> Result<()>) -> Result<Output> {
        // The guest's own limit comes first; this one is for a guest that hangs.
        let deadline = Instant::now() + job.limit + Duration::from_secs(60);
        loop {
            self.receive(Duration::from_millis(100)).with_context(|| format!("during `{}`", job.command))?;
            each_turn(self)?;
            let Some(machine) = self.machine.as_mut() else { bail!("{} is off", self.options.name) };
            if let Some(position) = machine.finished.iter().position(|id| *id == job.id) {
                machine.finished.swap_remove(position);
                break;
            }
            if Instant::now() > deadline {
                bail!("{} hangs in `{}`\n{}", self.options.name, job.command, self.console_tail());
            }
        }
        let base = self.share().join(job.id.to_string());
        let read = |extension: &str| -> String {
            let bytes = fs::read(base.with_extension(extension)).unwrap_or_default();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        let status = read("rc").trim().parse().context("the guest left no exit status")?;
        let output = Output { command: job.command, status, stdout: read("out"), stderr: read("err") };
        if std::env::var_os("UDRBD_VM_TRACE").is_some() {
            let seconds = job.started.elapsed().as_secs_f32();
            eprintln!("{} {seconds:6.2} s {status}: {}", self.options.name, output.command);
        }
        for extension in ["sh", "out", "err", "rc"] {
            let _gone = fs::remove_file(base.with_extension(extension));
        }
        Ok(output)
    }

    /// Takes the power away in the middle of whatever it does: its memory is lost, its disks keep what
    /// they were given.
    ///
    /// # Errors
    ///
    /// If QEMU does not die.
    pub fn power_cut(&mut self) -> Result<()> {
        if let Some(mut machine) = self.machine.take() {
            machine.qemu.kill()?;
            machine.qemu.wait()?;
        }
        Ok(())
    }

    /// Powers it on again with the same disks and waits until it takes commands.
    ///
    /// # Errors
    ///
    /// As [`Self::boot`].
    pub fn power_on(&mut self) -> Result<()> {
        self.start_again()?;
        self.wait_ready()
    }

    /// As [`Self::power_on`], but returns while it boots; [`Self::wait_ready`] before the first command.
    ///
    /// # Errors
    ///
    /// If QEMU cannot be started.
    pub fn start_again(&mut self) -> Result<()> {
        self.power_cut()?;
        self.start_qemu()
    }

    /// Waits until it takes commands.
    ///
    /// # Errors
    ///
    /// If it does not within the limit, with the end of its console.
    pub fn wait_ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + BOOT_LIMIT;
        loop {
            self.receive(Duration::from_millis(200))?;
            let ready = self.machine.as_ref().is_some_and(|machine| machine.finished.contains(&0));
            if ready {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("{} does not boot\n{}", self.options.name, self.console_tail());
            }
        }
    }

    /// The last lines of its console: kernel messages that matter, failures of its start.
    pub fn console_tail(&self) -> String {
        let text = fs::read(self.folder.path().join("console.log")).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }

    /// Reads what the agent says, for at most `limit`. READY counts as job 0.
    fn receive(&mut self, limit: Duration) -> Result<()> {
        let name = self.options.name.clone();
        let machine = self.machine.as_mut().with_context(|| format!("{name} is off"))?;
        machine.port.set_read_timeout(Some(limit))?;
        let mut bytes = [0; 4096];
        let ended = match machine.port.read(&mut bytes) {
            Ok(0) => true,
            Ok(length) => {
                machine.received.extend_from_slice(&bytes[..length]);
                false
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => false,
            Err(_) => true,
        };
        while let Some(end) = machine.received.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = machine.received.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line).into_owned();
            let mut words = line.split_whitespace();
            match (words.next(), words.next()) {
                (Some("READY"), _) => machine.finished.push(0),
                (Some("DONE"), Some(id)) => machine.finished.push(id.parse().context("the agent's answer")?),
                _ => {}
            }
        }
        if ended || machine.qemu.try_wait()?.is_some() {
            return Err(self.went_down());
        }
        Ok(())
    }

    /// What became of a guest that is there no more. One whose kernel breaks down ends its emulator in order.
    fn went_down(&mut self) -> anyhow::Error {
        let name = self.options.name.clone();
        let deadline = Instant::now() + Duration::from_secs(5);
        let mut status = None;
        while let Some(machine) = self.machine.as_mut()
            && status.is_none()
            && Instant::now() < deadline
        {
            status = machine.qemu.try_wait().ok().flatten();
            std::thread::sleep(Duration::from_millis(20));
        }
        let log = fs::read_to_string(self.folder.path().join("qemu.log")).unwrap_or_default();
        let text = format!("{name} went down\n{}{}", log, self.console_tail());
        match status.filter(|status| !status.success()) {
            Some(status) => anyhow::Error::new(EmulatorDied(status)).context(text),
            None => anyhow::Error::msg(text),
        }
    }

    fn write_share(&self) -> Result<()> {
        let address =
            self.options.network.as_ref().map(|network| network.address.as_str()).unwrap_or_default();
        let share = self.share();
        let environment = format!(
            "KERNEL_RELEASE={}\nMODULES={}\nGUEST_NAME={}\nGUEST_ADDRESS={address}\n",
            self.kernel.release,
            self.kernel.modules.display(),
            self.options.name,
        );
        fs::write(share.join("guest.env"), environment)?;
        fs::write(share.join("agent.sh"), AGENT)?;
        let hosts: String =
            self.options.hosts.iter().map(|(address, name)| format!("{address} {name}\n")).collect();
        // A networked guest's own name means its address on the cable, not the loopback.
        let own = if hosts.is_empty() { format!("127.0.0.1 {}\n", self.options.name) } else { hosts };
        fs::write(share.join("hosts"), own)?;
        Ok(())
    }

    fn start_qemu(&mut self) -> Result<()> {
        let folder = self.folder.path().to_owned();
        let agent = folder.join("agent.sock");
        for stale in [&agent].into_iter().chain(self.options.network.as_ref().map(|n| &n.guest_socket)) {
            let _gone = fs::remove_file(stale);
        }
        // setpriv ties QEMU's life to ours, so that a killed test leaves no guest behind.
        let mut qemu = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "qemu-system-x86_64"])
            .args(self.qemu_words(&folder, &agent))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(folder.join("qemu.log"))?)
            .spawn()
            .context("cannot start qemu-system-x86_64")?;
        let deadline = Instant::now() + Duration::from_secs(30);
        let port = loop {
            if let Ok(port) = UnixStream::connect(&agent) {
                break port;
            }
            if let Some(status) = qemu.try_wait()? {
                let log = fs::read_to_string(folder.join("qemu.log")).unwrap_or_default();
                bail!("QEMU ended with {status}: {log}");
            }
            if Instant::now() > deadline {
                qemu.kill()?;
                bail!("QEMU opens no port");
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        self.machine = Some(Machine { qemu, port, received: Vec::new(), finished: Vec::new() });
        Ok(())
    }

    fn qemu_words(&self, folder: &Path, agent: &Path) -> Vec<String> {
        let options = &self.options;
        let mut words: Vec<String> = Vec::new();
        let mut add = |parts: &[&str]| words.extend(parts.iter().map(|part| (*part).to_owned()));
        add(&[
            "-machine",
            "q35",
            "-cpu",
            "max",
            "-nodefaults",
            "-display",
            "none",
            "-no-reboot",
            "-no-user-config",
        ]);
        if options.icount {
            add(&["-accel", "tcg,thread=single", "-icount", "shift=0,sleep=off", "-smp", "1"]);
        } else {
            add(&["-accel", "tcg,thread=multi", "-smp", &options.processors.to_string()]);
        }
        add(&["-m", &format!("{}M", options.memory_mib)]);
        add(&["-kernel", &self.kernel.image.display().to_string()]);
        add(&["-initrd", &folder.join("initramfs").display().to_string()]);
        add(&["-append", "console=ttyS0 quiet panic=-1 nokaslr mitigations=off"]);
        add(&["-serial", &format!("file:{}", folder.join("console.log").display())]);
        add(&["-device", "virtio-serial-pci"]);
        add(&["-chardev", &format!("socket,id=agent,path={},server=on,wait=off", agent.display())]);
        add(&["-device", "virtserialport,chardev=agent,name=udrbd.agent"]);
        add(&["-device", "virtio-rng-pci"]);
        add(&["-fsdev", "local,id=root,path=/,security_model=none,readonly=on,multidevs=remap"]);
        add(&["-device", "virtio-9p-pci,fsdev=root,mount_tag=root"]);
        let share = folder.join("share");
        add(&["-fsdev", &format!("local,id=share,path={},security_model=none", share.display())]);
        add(&["-device", "virtio-9p-pci,fsdev=share,mount_tag=share"]);
        for index in 0..options.disks.len() {
            let file = self.disk_file(index);
            add(&[
                "-drive",
                &format!(
                    "if=none,id=d{index},file={},format=raw,cache=writeback,discard=unmap",
                    file.display()
                ),
                "-device",
                &format!("virtio-blk-pci,drive=d{index},serial=disk{index}"),
            ]);
        }
        if let Some(network) = &options.network {
            let last = if network.end == End::First { 1 } else { 2 };
            add(&[
                "-netdev",
                &format!(
                    "dgram,id=net,local.type=unix,local.path={},remote.type=unix,remote.path={}",
                    network.guest_socket.display(),
                    network.hub_socket.display()
                ),
                "-device",
                &format!("virtio-net-pci,netdev=net,mac=52:54:00:12:34:0{last}"),
            ]);
        }
        words
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _dead = self.power_cut();
        if std::env::var_os("UDRBD_VM_KEEP").is_some() {
            eprintln!("{} is kept in {}", self.options.name, self.folder.path().display());
            self.folder.disable_cleanup(true);
        }
    }
}

/// The cable of a pair of guests, with the folder its sockets live in.
pub struct Cable {
    link: Link,
    _folder: tempfile::TempDir,
}

impl Cable {
    /// Cuts it: see [`Link::cut`].
    pub fn cut(&self) {
        self.link.cut();
    }

    /// Joins it: see [`Link::join`].
    pub fn join(&self) {
        self.link.join();
    }
}
