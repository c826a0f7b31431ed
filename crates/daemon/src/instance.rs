//! One daemon per run directory.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::Path;

use anyhow::{Context, bail};
use nix::fcntl::{Flock, FlockArg};

const LOCK_NAME: &str = "udrbdd.pid";

/// The right to serve a run directory; lasts as long as it is kept.
#[derive(Debug)]
pub(crate) struct Instance {
    _lock: Flock<File>,
}

impl Instance {
    /// Makes the run directory and takes the right to serve it.
    pub(crate) fn take(directory: &Path) -> anyhow::Result<Self> {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
        let path = directory.join(LOCK_NAME);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o644)
            .open(&path)
            .with_context(|| format!("cannot open {}", path.display()))?;
        let mut lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => lock,
            Err((mut file, _)) => {
                let mut owner = String::new();
                // Only for the message.
                let _ = file.read_to_string(&mut owner);
                bail!(
                    "{} is served by another udrbdd already (process {})",
                    directory.display(),
                    owner.trim()
                );
            }
        };
        lock.set_len(0)?;
        lock.rewind()?;
        writeln!(lock, "{}", std::process::id())?;
        Ok(Self { _lock: lock })
    }
}

/// Listens on a socket only the own user may connect to. What is there already was left behind: the caller is
/// the only daemon of this directory.
pub(crate) fn listen_privately(path: &Path) -> anyhow::Result<UnixListener> {
    let hidden = path.with_extension("new");
    let _ = std::fs::remove_file(&hidden);
    let listen = || -> std::io::Result<UnixListener> {
        let listener = UnixListener::bind(&hidden)?;
        listener.set_nonblocking(true)?;
        std::fs::set_permissions(&hidden, std::fs::Permissions::from_mode(0o600))?;
        std::fs::rename(&hidden, path)?;
        Ok(listener)
    };
    listen().with_context(|| format!("cannot listen on {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_directory_has_one_daemon() {
        let folder = tempfile::tempdir().unwrap();
        let run = folder.path().join("run");
        let first = Instance::take(&run).unwrap();
        let refusal = Instance::take(&run).unwrap_err().to_string();
        assert!(refusal.contains(&format!("(process {})", std::process::id())), "{refusal}");
        drop(first);
        Instance::take(&run).unwrap();
    }

    #[test]
    fn a_stale_socket_gives_way_and_the_new_one_is_private() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control.sock");
        drop(listen_privately(&path).unwrap());
        let _listener = listen_privately(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        std::os::unix::net::UnixStream::connect(&path).unwrap();
    }
}
