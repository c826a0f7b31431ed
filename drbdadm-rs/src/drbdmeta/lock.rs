//! Who else may be working on a minor (metadata spec 9.2).

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use udrbd_units::DiskState;

use super::{Outcome, USAGE, reason, stop};

/// How long to wait for another program.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long to sleep between two looks.
const PAUSE: Duration = Duration::from_millis(20);

/// The folder for locks and for what is remembered about devices, where two nodes run side by side.
pub(super) fn private_folder() -> Option<PathBuf> {
    std::env::var_os("UDRBD_RUN_DIR").filter(|folder| !folder.is_empty()).map(PathBuf::from)
}

/// Takes the lock of a minor, as every program does that configures it. It lasts as long as the file is open.
pub(super) fn take(minor: u32) -> Outcome<File> {
    let folder = match private_folder() {
        Some(folder) => {
            // If this fails, opening the file says why.
            let _ = std::fs::create_dir_all(&folder);
            folder
        }
        None => PathBuf::from("/var/lock"),
    };
    let path = folder.join(format!("drbd-147-{minor}"));
    let opened =
        OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
    let file = match opened {
        Ok(file) => file,
        Err(error) => {
            return stop(USAGE, format_args!("open({}): {}", path.display(), reason(&error)));
        }
    };
    let deadline = Instant::now() + PATIENCE;
    loop {
        match fcntl(&file, FcntlArg::F_SETLK(&whole_file())) {
            Ok(_) => return Ok(file),
            Err(Errno::EACCES | Errno::EAGAIN | Errno::EINTR) if Instant::now() < deadline => {
                std::thread::sleep(PAUSE);
            }
            Err(Errno::EACCES | Errno::EAGAIN | Errno::EINTR) => {
                let mut holder = whole_file();
                let pid = match fcntl(&file, FcntlArg::F_GETLK(&mut holder)) {
                    Ok(_) => holder.l_pid,
                    Err(_) => 0,
                };
                return stop(USAGE, format_args!("lock on {} currently held by pid:{pid}", path.display()));
            }
            Err(error) => {
                let text = error.desc();
                return stop(USAGE, format_args!("fcntl({},...): {text}", path.display()));
            }
        }
    }
}

fn whole_file() -> libc::flock {
    libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

/// Asks `drbdsetup MINOR dstate` whether the device has a disk now.
pub(super) fn is_attached(minor: u32) -> Outcome<bool> {
    // The same binary answers to both names, so it is found wherever this one was.
    let asked = std::env::current_exe().and_then(|program| {
        std::process::Command::new(program)
            .arg0("drbdsetup")
            .args([&minor.to_string(), "dstate"])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .output()
    });
    let output = match asked {
        Ok(output) => output,
        Err(error) => return stop(USAGE, format_args!("Can not exec drbdsetup: {}", reason(&error))),
    };
    // 20: no daemon; 10: no such minor.
    if matches!(output.status.code(), Some(10 | 20)) {
        return Ok(false);
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let state = text.trim_end().split('/').next().unwrap_or_default();
    match state.parse::<DiskState>() {
        Ok(state) => Ok(state > DiskState::Diskless),
        Err(_) if state == "Unconfigured" => Ok(false),
        Err(_) => stop(USAGE, format_args!("Unexpected output from drbdsetup >{}<", text.trim_end())),
    }
}

/// Takes a regular file for this program alone: with a lock of the open file, as the daemon takes the files it uses.
/// Block devices have `O_EXCL` for that.
pub(super) fn take_file(file: &File) -> Result<(), Errno> {
    fcntl(file, FcntlArg::F_OFD_SETLK(&whole_file())).map(|_| ())
}
