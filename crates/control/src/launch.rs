//! Starting the daemon where none answers, as the original loads its module.
//!
//! The daemon has to outlive whoever needed it first. A cluster manager's agent, a udev rule or a login session that
//! spawned it would take it along when its own control group ends, so an installed daemon is started by systemd where
//! there is one. A daemon of a build folder or of a run directory of its own is spawned.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::client::{Client, ClientError, RUN_DIRECTORY_DEFAULT};

const DAEMON_NAME: &str = "udrbdd";
/// The daemon that the unit starts.
const DAEMON_INSTALLED: &str = "/usr/sbin/udrbdd";
const UNIT: &str = "udrbdd.service";
/// Where systemd looks for units.
const UNIT_DIRECTORIES: &[&str] = &[
    "etc/systemd/system",
    "run/systemd/system",
    "usr/local/lib/systemd/system",
    "usr/lib/systemd/system",
    "lib/systemd/system",
];
/// Names the node otherwise than its host; a daemon that systemd starts would not know.
const NODE_VARIABLE: &str = "__DRBD_NODE__";
/// Where the messages of a daemon go that was not started by a service manager.
const LOG_NAME: &str = "udrbdd.log";
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(20);

/// Connects to the daemon, starting one if none answers.
///
/// # Errors
/// [`ClientError::NotRunning`] if none answers and none could be started; otherwise as [`Client::connect`].
pub fn connect_or_start(run_directory: &Path, program: &str) -> Result<Client, ClientError> {
    let not_running = match Client::connect(run_directory, program) {
        Err(not_running @ ClientError::NotRunning { .. }) => not_running,
        connected => return connected,
    };
    let daemon = daemon_program();
    let named = std::env::var_os(NODE_VARIABLE).is_some_and(|name| !name.is_empty());
    if !named && is_systemds(Path::new("/"), run_directory, &daemon) {
        return start_unit(not_running).and_then(|()| Client::connect(run_directory, program));
    }
    let Ok(mut daemon) = start(run_directory, &daemon) else { return Err(not_running) };
    let deadline = Instant::now() + PATIENCE;
    loop {
        match Client::connect(run_directory, program) {
            Err(still @ ClientError::NotRunning { .. }) => {
                // Another program may have started one at the same moment, and ours then gave way to it.
                let gone = matches!(daemon.try_wait(), Ok(Some(_)));
                if Instant::now() >= deadline || (gone && Client::connect(run_directory, program).is_err()) {
                    return Err(still);
                }
            }
            connected => return connected,
        }
        thread::sleep(PAUSE);
    }
}

/// Whether the daemon is systemd's to start: systemd runs (below `root`, which is `/` but in tests), it has the unit,
/// and the unit means this daemon and this run directory.
fn is_systemds(root: &Path, run_directory: &Path, daemon: &Path) -> bool {
    run_directory == Path::new(RUN_DIRECTORY_DEFAULT)
        && daemon == Path::new(DAEMON_INSTALLED)
        && root.join("run/systemd/system").is_dir()
        && has_unit(root)
}

/// Whether systemd knows the unit. A masked one counts: systemd then refuses to start it, and says so.
fn has_unit(root: &Path) -> bool {
    UNIT_DIRECTORIES.iter().any(|directory| root.join(directory).join(UNIT).symlink_metadata().is_ok())
}

/// Has systemd start the daemon. Its unit is ready when the control socket accepts.
fn start_unit(not_running: ClientError) -> Result<(), ClientError> {
    let mut command = Command::new("systemctl");
    command.args(["--quiet", "--no-ask-password", "start", UNIT]).stdin(Stdio::null()).stdout(Stdio::null());
    // It says itself what went wrong. A daemon spawned past a unit that fails would be one nobody looks after.
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        _ => Err(not_running),
    }
}

/// Starts a daemon in the background, with its messages in a file of the run directory.
fn start(run_directory: &Path, daemon: &Path) -> io::Result<Child> {
    std::fs::create_dir_all(run_directory)?;
    let log = OpenOptions::new().create(true).append(true).open(run_directory.join(LOG_NAME))?;
    Command::new(daemon)
        .arg("--run-dir")
        .arg(run_directory)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .current_dir("/")
        .process_group(0)
        .spawn()
}

/// The daemon beside this program, or the one in the search path.
fn daemon_program() -> PathBuf {
    let beside =
        std::env::current_exe().ok().and_then(|own| own.parent().map(|folder| folder.join(DAEMON_NAME)));
    beside.filter(|program| program.is_file()).unwrap_or_else(|| PathBuf::from(DAEMON_NAME))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    /// A machine that runs systemd and has the package.
    fn machine() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for directory in UNIT_DIRECTORIES {
            fs::create_dir_all(root.path().join(directory)).unwrap();
        }
        fs::write(root.path().join("usr/lib/systemd/system").join(UNIT), "").unwrap();
        root
    }

    fn decides(root: &Path) -> bool {
        is_systemds(root, Path::new("/run/udrbd"), Path::new("/usr/sbin/udrbdd"))
    }

    #[test]
    fn systemd_starts_an_installed_daemon() {
        let machine = machine();
        assert!(decides(machine.path()));
    }

    #[test]
    fn other_run_directories_and_other_builds_are_spawned() {
        let machine = machine();
        let (usual, installed) = (Path::new("/run/udrbd"), Path::new("/usr/sbin/udrbdd"));
        assert!(!is_systemds(machine.path(), Path::new("/tmp/alpha"), installed));
        assert!(!is_systemds(machine.path(), usual, Path::new("/src/target/release/udrbdd")));
        assert!(!is_systemds(machine.path(), usual, Path::new("udrbdd")));
    }

    #[test]
    fn without_systemd_or_its_unit_the_daemon_is_spawned() {
        let no_unit = machine();
        fs::remove_file(no_unit.path().join("usr/lib/systemd/system").join(UNIT)).unwrap();
        assert!(!decides(no_unit.path()));

        // Booted with something else: systemd's own run-time folder is missing.
        let no_systemd = machine();
        fs::remove_dir_all(no_systemd.path().join("run")).unwrap();
        assert!(!decides(no_systemd.path()));
    }

    #[test]
    fn a_masked_unit_is_not_gone_around() {
        let machine = machine();
        fs::remove_file(machine.path().join("usr/lib/systemd/system").join(UNIT)).unwrap();
        symlink("/dev/null", machine.path().join("etc/systemd/system").join(UNIT)).unwrap();
        assert!(decides(machine.path()));
    }
}
