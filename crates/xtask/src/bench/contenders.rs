//! Who is compared: each serves one export on a unix socket.

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use udrbd_tests::nbd::Nbd;
use udrbd_tests::pair::{Node, Pair, PairOptions};

use super::unix_uri;

/// All of them, in the order of the table.
pub(super) const NAMES: &[&str] = &["udrbd", "quorum", "plain"];

/// A running contender; stopped and its files removed when dropped.
pub(super) struct Contender {
    socket: PathBuf,
    export: String,
    servers: Vec<Child>,
    _pair: Option<Pair>,
    _folder: tempfile::TempDir,
}

impl Contender {
    /// Starts the contender of that name with disks of a little more than `size` bytes under `folder`;
    /// `disk` goes into the `disk` section of a udrbd pair.
    ///
    /// # Errors
    ///
    /// If one of its servers does not come up.
    pub(super) fn start(name: &str, folder: &Path, size: u64, disk: &str) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("udrbd-bench-").tempdir_in(folder)?;
        let mut contender = Self {
            socket: folder.path().join("nbd.sock"),
            export: String::new(),
            servers: Vec::new(),
            _pair: None,
            _folder: folder,
        };
        match name {
            "udrbd" => contender.start_udrbd(size, disk)?,
            "quorum" => contender.start_quorum(size)?,
            "plain" => contender.start_plain(size)?,
            _ => bail!("no contender `{name}`"),
        }
        Ok(contender)
    }

    /// What fio is given.
    pub(super) fn uri(&self) -> String {
        unix_uri(&self.socket, &self.export)
    }

    /// Writes everything once, so that no contender is measured while its file is being allocated.
    ///
    /// # Errors
    ///
    /// The server's own.
    pub(super) fn prefill(&self, size: u64) -> Result<()> {
        let mut export = Nbd::connect(&self.socket, &self.export)?;
        let data = vec![0x5a; 1 << 20];
        for offset in (0..size).step_by(data.len()) {
            export.write(offset, &data, false)?;
        }
        export.flush()
    }

    fn start_udrbd(&mut self, size: u64, disk: &str) -> Result<()> {
        let mut pair = Pair::new(PairOptions {
            resource: "bench".to_owned(),
            disk_bytes: size + (16 << 20),
            net: "protocol C;".to_owned(),
            disk: format!("resync-rate 2G; c-plan-ahead 0; {disk}"),
            handlers: String::new(),
            within: Some(self._folder.path().to_owned()),
        })?;
        pair.bring_up()?;
        pair.adm(Node::Alpha, "primary --force bench")?;
        pair.wait_healthy()?;
        self.socket = pair.socket(Node::Alpha);
        "bench".clone_into(&mut self.export);
        self._pair = Some(pair);
        Ok(())
    }

    fn start_quorum(&mut self, size: u64) -> Result<()> {
        "q".clone_into(&mut self.export);
        let (peer_disk, own_disk) = (self.disk("peer", size)?, self.disk("own", size)?);
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let file = |node: &str, path: &Path| {
            format!(
                "driver=file,node-name={node},filename={},aio=io_uring,cache.direct=on,discard=unmap",
                path.display()
            )
        };
        self.serve(&[
            "--blockdev",
            &file("f", &peer_disk),
            "--nbd-server",
            &format!("addr.type=inet,addr.host=127.0.0.1,addr.port={port},max-connections=8"),
            "--export",
            "type=nbd,id=e,node-name=f,name=x,writable=on",
        ])?;
        wait_for(|| std::net::TcpStream::connect(("127.0.0.1", port)).is_ok())?;
        self.serve(&[
            "--blockdev",
            &file("l", &own_disk),
            "--blockdev",
            &format!(
                "driver=nbd,node-name=r,server.type=inet,server.host=127.0.0.1,server.port={port},export=x"
            ),
            "--blockdev",
            "driver=quorum,node-name=q,vote-threshold=2,read-pattern=fifo,children.0=l,children.1=r",
            "--nbd-server",
            &format!("addr.type=unix,addr.path={},max-connections=8", self.socket.display()),
            "--export",
            "type=nbd,id=e,node-name=q,name=q,writable=on",
        ])?;
        self.wait_for_export()
    }

    fn start_plain(&mut self, size: u64) -> Result<()> {
        "q".clone_into(&mut self.export);
        let disk = self.disk("own", size)?;
        self.serve(&[
            "--blockdev",
            &format!(
                "driver=file,node-name=q,filename={},aio=io_uring,cache.direct=on,discard=unmap",
                disk.display()
            ),
            "--nbd-server",
            &format!("addr.type=unix,addr.path={},max-connections=8", self.socket.display()),
            "--export",
            "type=nbd,id=e,node-name=q,name=q,writable=on",
        ])?;
        self.wait_for_export()
    }

    fn disk(&self, name: &str, size: u64) -> Result<PathBuf> {
        let path = self._folder.path().join(name);
        File::create(&path)?.set_len(size)?;
        Ok(path)
    }

    fn serve(&mut self, words: &[&str]) -> Result<()> {
        let log = File::create(self._folder.path().join(format!("log{}", self.servers.len())))?;
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "qemu-storage-daemon"])
            .args(words)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .context("cannot start qemu-storage-daemon")?;
        self.servers.push(child);
        Ok(())
    }

    fn wait_for_export(&self) -> Result<()> {
        wait_for(|| Nbd::connect(&self.socket, &self.export).is_ok()).with_context(|| {
            let logs = (0..self.servers.len()).map(|index| self._folder.path().join(format!("log{index}")));
            logs.filter_map(|path| fs::read_to_string(path).ok()).collect::<String>()
        })
    }
}

impl Drop for Contender {
    fn drop(&mut self) {
        for server in &mut self.servers {
            let _dead = server.kill();
            let _gone = server.wait();
        }
    }
}

fn wait_for(check: impl Fn() -> bool) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !check() {
        if Instant::now() > deadline {
            bail!("a server does not come up");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}
