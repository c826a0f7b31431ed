//! Starting the daemon where none answers, as the original loads its module.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::client::{Client, ClientError};

const DAEMON_NAME: &str = "udrbdd";
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
    let Ok(mut daemon) = start(run_directory) else { return Err(not_running) };
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

/// Starts a daemon in the background, with its messages in a file of the run directory.
fn start(run_directory: &Path) -> io::Result<std::process::Child> {
    std::fs::create_dir_all(run_directory)?;
    let log = OpenOptions::new().create(true).append(true).open(run_directory.join(LOG_NAME))?;
    Command::new(daemon_program())
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
