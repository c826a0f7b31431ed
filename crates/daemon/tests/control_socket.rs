//! A daemon without resources to speak of, driven over its control socket.
#![allow(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use udrbd_control::client::{Client, Next};
use udrbd_control::options::{DiskOptions, NetOptions, ResourceOptions};
use udrbd_control::protocol::{MetadataIndex, Request, StreamItem};
use udrbd_control::{Address, ReturnCode};
use udrbd_metadata::{Flags, Layout, Placement, Striping, Superblock, activity_log};
use udrbd_units::{Minor, Sector, VolumeNumber};

struct Daemon {
    child: Child,
    run: tempfile::TempDir,
}

impl Daemon {
    fn start() -> Self {
        let run = tempfile::tempdir().unwrap();
        let child = command(run.path()).stderr(Stdio::null()).spawn().unwrap();
        let daemon = Self { child, run };
        let deadline = Instant::now() + Duration::from_secs(20);
        while !daemon.path("control.sock").exists() {
            assert!(Instant::now() < deadline, "the daemon does not come up");
            std::thread::sleep(Duration::from_millis(5));
        }
        daemon
    }

    fn path(&self, name: &str) -> PathBuf {
        self.run.path().join(name)
    }

    fn client(&self) -> Client {
        Client::connect(self.run.path(), "test").unwrap()
    }

    fn code(&self, request: Request) -> ReturnCode {
        self.client().command(&request).unwrap().code
    }

    fn make(&self, resource: &str, minor: u32) {
        assert!(self.code(new_resource(resource)).is_success());
        assert!(self.code(new_minor(resource, minor, 0)).is_success());
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn command(run: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_udrbdd"));
    command.arg("--run-dir").arg(run).args(["--node", "alpha", "--helper", "none"]);
    command.stdin(Stdio::null()).env_remove("UDRBD_LOG");
    command
}

fn new_resource(name: &str) -> Request {
    Request::NewResource { resource: name.to_owned(), options: ResourceOptions::default() }
}

fn new_minor(resource: &str, minor: u32, volume: u16) -> Request {
    Request::NewMinor { resource: resource.to_owned(), minor: Minor(minor), volume: VolumeNumber(volume) }
}

fn connect(resource: &str, local: &str, peer: &str) -> Request {
    Request::Connect {
        resource: resource.to_owned(),
        local: address(local),
        peer: address(peer),
        options: NetOptions::default(),
        discard_my_data: false,
        tentative: false,
    }
}

fn address(text: &str) -> Address {
    text.parse().unwrap()
}

fn attach(minor: u32, disk: &Path) -> Request {
    attach_after(minor, disk, -1)
}

fn attach_after(minor: u32, disk: &Path, resync_after_minor: i32) -> Request {
    Request::Attach {
        minor: Minor(minor),
        disk: disk.to_owned(),
        metadata: disk.to_owned(),
        index: MetadataIndex::Internal,
        options: DiskOptions { resync_after_minor, ..DiskOptions::default() },
    }
}

/// A disk that was never used, with metadata.
fn fresh_disk(path: &Path) {
    const SECTORS: u64 = 16 << 11;
    let layout = Layout::new(Placement::Internal, Sector(SECTORS), Striping::DEFAULT).unwrap();
    let mut superblock = Superblock::fresh(&layout, 1 << 20);
    superblock.flags = Flags::AL_CLEAN;
    let file = std::fs::File::create(path).unwrap();
    file.set_len(SECTORS * 512).unwrap();
    file.write_all_at(&superblock.encode(), layout.superblock.0 * 512).unwrap();
    for block in 0..8 {
        let at = (layout.al_start().0 + block * 8) * 512;
        file.write_all_at(&activity_log::initialized_block(), at).unwrap();
    }
}

#[test]
fn minors_and_addresses_are_unique_on_the_node() {
    let daemon = Daemon::start();
    daemon.make("r0", 0);
    daemon.make("r1", 1);
    assert_eq!(daemon.code(new_minor("r1", 0, 1)), ReturnCode::MinorOrVolumeExists);
    assert_eq!(daemon.code(new_minor("r0", 7, 0)), ReturnCode::MinorOrVolumeExists);
    assert!(daemon.code(new_minor("r0", 0, 0)).is_success(), "the same once more is no conflict");
    // Port 9 of these addresses answers nobody; nothing but the names is needed here.
    let (one, two) = ("127.0.0.3:1", "127.0.0.4:9");
    assert!(daemon.code(connect("r0", one, two)).is_success());
    assert_eq!(daemon.code(connect("r1", one, "127.0.0.5:9")), ReturnCode::LocalAddress);
    assert_eq!(daemon.code(connect("r1", "127.0.0.5:1", two)), ReturnCode::PeerAddress);
    assert_eq!(daemon.code(connect("r0", one, two)), ReturnCode::LocalAddress);
    let unknown = Request::Disconnect { local: address("127.0.0.8:1"), peer: address(two), force: false };
    assert_eq!(daemon.code(unknown), ReturnCode::InvalidRequest);
}

#[test]
fn what_is_still_in_use_is_not_removed() {
    let daemon = Daemon::start();
    daemon.make("r0", 0);
    let delete = Request::DelResource { resource: "r0".to_owned() };
    assert_eq!(daemon.code(delete.clone()), ReturnCode::ResourceInUse);
    assert!(daemon.code(Request::DelMinor { minor: Minor(0) }).is_success());
    assert!(daemon.code(delete.clone()).is_success());
    assert_eq!(daemon.code(delete), ReturnCode::ResourceNotKnown);
    assert_eq!(daemon.code(Request::DelMinor { minor: Minor(0) }), ReturnCode::MinorInvalid);
    assert!(daemon.client().snapshot(None).unwrap().resources.is_empty());
}

#[test]
fn a_disk_that_cannot_be_had_is_a_clear_code_and_no_harm() {
    let daemon = Daemon::start();
    daemon.make("r0", 0);
    assert_eq!(daemon.code(attach(0, &daemon.path("missing"))), ReturnCode::OpenDisk);
    let disk = daemon.path("disk");
    std::fs::File::create(&disk).unwrap().set_len(64 << 20).unwrap();
    assert_eq!(daemon.code(attach(0, &disk)), ReturnCode::MetadataInvalid);
    // The claim ended with the attempt: the same answer once more.
    assert_eq!(daemon.code(attach(0, &disk)), ReturnCode::MetadataInvalid);
    std::fs::File::options().write(true).open(&disk).unwrap().set_len(4096).unwrap();
    assert_ne!(daemon.code(attach(0, &disk)), ReturnCode::Success);
    assert!(daemon.code(Request::Down { resource: "r0".to_owned() }).is_success());
}

#[test]
fn garbage_on_the_sockets_disturbs_nobody() {
    let daemon = Daemon::start();
    daemon.make("r0", 0);
    for name in ["control.sock", "nbd.sock"] {
        assert_eq!(std::fs::metadata(daemon.path(name)).unwrap().permissions().mode() & 0o777, 0o600);
        for length in [1, 3, 4, 5, 28, 400, 5000] {
            for byte in [0, 0x41, 0xff] {
                let mut stream = UnixStream::connect(daemon.path(name)).unwrap();
                // It may hang up in the middle.
                let _ = stream.write_all(&vec![byte; length]);
            }
        }
    }
    let mut stream = UnixStream::connect(daemon.path("control.sock")).unwrap();
    stream.write_all(b"\0\0\0\x20{\"protocol\":999,\"program\":\"old\"}").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("Refused") && answer.contains("version 999"), "{answer:?}");
    assert_eq!(daemon.client().snapshot(Some("r0")).unwrap().resources.len(), 1);
}

#[test]
fn who_watches_is_told_what_comes_and_what_goes() {
    let daemon = Daemon::start();
    daemon.make("r0", 0);
    let mut watcher = daemon.client();
    watcher.watch(None).unwrap();
    let mut next = || match watcher.next_item(Some(Duration::from_secs(20))).unwrap() {
        Next::Item(item) => item,
        other => panic!("no item but {other:?}"),
    };
    assert!(matches!(next(), StreamItem::Resource { resource, .. } if resource.name == "r0"));
    assert!(matches!(next(), StreamItem::DumpEnd { .. }));
    assert!(daemon.code(Request::SuspendIo { minor: Minor(0) }).is_success());
    assert!(matches!(next(), StreamItem::Resource { resource, .. } if resource.suspended.user));
    assert!(daemon.code(Request::ResumeIo { minor: Minor(0) }).is_success());
    assert!(matches!(next(), StreamItem::Resource { resource, .. } if !resource.suspended.any()));
    assert!(daemon.code(Request::Down { resource: "r0".to_owned() }).is_success());
    let gone = std::iter::from_fn(|| Some(next()))
        .take(4)
        .any(|item| matches!(item, StreamItem::ResourceGone { name, .. } if name == "r0"));
    assert!(gone);
}

#[test]
fn the_status_file_says_what_a_command_has_done_when_it_ends() {
    let daemon = Daemon::start();
    let text = || std::fs::read_to_string(daemon.path("proc/drbd")).unwrap();
    assert_eq!(text().lines().count(), 2);
    daemon.make("r0", 3);
    assert_eq!(text().lines().last(), Some(" 3: cs:Unconfigured"));
    assert!(daemon.code(Request::Down { resource: "r0".to_owned() }).is_success());
    assert_eq!(text().lines().count(), 2);
}

#[test]
fn a_run_directory_is_served_by_one_daemon_until_it_is_told_to_end() {
    let mut daemon = Daemon::start();
    daemon.make("r0", 0);
    let second = command(daemon.run.path()).stderr(Stdio::piped()).output().unwrap();
    let words = String::from_utf8_lossy(&second.stderr).into_owned();
    assert_eq!(second.status.code(), Some(1));
    let process = format!("served by another udrbdd already (process {})", daemon.child.id());
    assert!(words.contains(&process) && words.lines().count() == 1, "{words}");
    kill(Pid::from_raw(daemon.child.id() as i32), Signal::SIGTERM).unwrap();
    assert!(daemon.child.wait().unwrap().success());
    assert!(!daemon.path("control.sock").exists());
}

#[test]
fn the_service_manager_hears_of_readiness_life_and_end() {
    let folder = tempfile::tempdir().unwrap();
    let manager = UnixDatagram::bind(folder.path().join("notify")).unwrap();
    manager.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let run = tempfile::tempdir().unwrap();
    let mut command = command(run.path());
    command.env("NOTIFY_SOCKET", folder.path().join("notify")).env("WATCHDOG_USEC", "60000");
    let daemon = Daemon { child: command.stderr(Stdio::null()).spawn().unwrap(), run };
    let hear = || {
        let mut text = [0; 200];
        let length = manager.recv(&mut text).unwrap();
        String::from_utf8_lossy(&text[..length]).trim().to_owned()
    };
    assert_eq!(hear(), "READY=1");
    daemon.make("r0", 7);
    for _ in 0..3 {
        assert_eq!(hear(), "WATCHDOG=1");
    }
    kill(Pid::from_raw(daemon.child.id() as i32), Signal::SIGTERM).unwrap();
    while hear() != "STOPPING=1" {}
}

#[test]
fn a_resync_that_comes_after_another_waits_for_it_also_in_another_resource() {
    let daemon = Daemon::start();
    daemon.make("r0", 0);
    assert!(daemon.code(new_minor("r0", 1, 1)).is_success());
    daemon.make("r1", 2);
    // 2 comes after 1, in another resource, which comes after 0 in its own.
    for (minor, after) in [(0, -1), (1, 0), (2, 1)] {
        let disk = daemon.path(&format!("disk{minor}"));
        fresh_disk(&disk);
        assert!(daemon.code(attach_after(minor, &disk, after)).is_success(), "minor {minor}");
    }
    let waiting = || {
        let snapshot = daemon.client().snapshot(None).unwrap();
        let devices = snapshot.resources.into_iter().flat_map(|resource| resource.devices);
        let waits = devices.filter(|device| device.resync_paused.dependency);
        waits.map(|device| device.minor.0).collect::<Vec<_>>()
    };
    let soon = |expected: &[u32]| {
        let deadline = Instant::now() + Duration::from_secs(20);
        while waiting() != expected {
            assert!(Instant::now() < deadline, "{:?} wait, not {expected:?}", waiting());
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    assert_eq!(waiting(), [0; 0]);
    assert!(daemon.code(Request::PauseSync { minor: Minor(0) }).is_success());
    soon(&[1, 2]);
    let shown = || {
        let text = std::fs::read_to_string(daemon.path("proc/drbd")).unwrap();
        text.lines().any(|line| line.starts_with(" 2:") && line.ends_with("ra----"))
    };
    let deadline = Instant::now() + Duration::from_secs(20);
    while !shown() {
        assert!(Instant::now() < deadline, "the status file does not show it");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(daemon.code(Request::ResumeSync { minor: Minor(0) }).is_success());
    soon(&[]);
    assert!(daemon.code(Request::PauseSync { minor: Minor(1) }).is_success());
    soon(&[2]);
    assert!(daemon.code(Request::Down { resource: "r0".to_owned() }).is_success());
    soon(&[]);
}
