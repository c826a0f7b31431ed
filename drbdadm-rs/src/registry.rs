//! Which configuration file set up a minor or a resource (cli spec 13, DRBD's registry).
//!
//! Symbolic links in a run-time directory, made when a minor or a resource is created and removed when it
//! goes. Handlers find their configuration by them.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::{Path, PathBuf};

/// Where DRBD keeps its links.
const DIRECTORY: &str = "/var/run/drbd";

/// What a link is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key<'a> {
    /// A minor number.
    Minor(u32),
    /// The name of a resource.
    Resource(&'a str),
}

/// The directory of the links: DRBD's own, or one in the private run directory of `$UDRBD_RUN_DIR`.
#[must_use]
pub fn directory() -> PathBuf {
    match std::env::var_os("UDRBD_RUN_DIR").filter(|directory| !directory.is_empty()) {
        Some(directory) => Path::new(&directory).join("drbd"),
        None => PathBuf::from(DIRECTORY),
    }
}

fn link(directory: &Path, key: Key<'_>) -> PathBuf {
    directory.join(match key {
        Key::Minor(minor) => format!("drbd-minor-{minor}.conf"),
        Key::Resource(name) => format!("drbd-resource-{name}.conf"),
    })
}

/// The registered file; none if there is no link, or it leads nowhere.
#[must_use]
pub fn lookup(directory: &Path, key: Key<'_>) -> Option<String> {
    let link = link(directory, key);
    fs::metadata(&link).ok()?;
    fs::read_link(&link).ok()?.into_os_string().into_string().ok()
}

/// Registers a file by its absolute path.
///
/// # Errors
/// The path is not absolute, or the link cannot be made.
pub fn register(directory: &Path, key: Key<'_>, file: &str) -> io::Result<()> {
    if !file.starts_with('/') {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "absolute path expected"));
    }
    // A link to a link here would lead to itself sooner or later.
    if Path::new(file).starts_with(directory) {
        return Ok(());
    }
    let link = link(directory, key);
    if fs::read_link(&link).is_ok_and(|target| target == Path::new(file)) {
        return Ok(());
    }
    remove(&link)?;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    symlink(file, link)
}

/// Forgets what was registered.
///
/// # Errors
/// The link is there and cannot be removed.
pub fn unregister(directory: &Path, key: Key<'_>) -> io::Result<()> {
    remove(&link(directory, key))
}

fn remove(link: &Path) -> io::Result<()> {
    match fs::remove_file(link) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_found_until_it_is_unregistered_or_gone() {
        let folder = tempfile::tempdir().unwrap();
        let directory = folder.path().join("drbd");
        let file = folder.path().join("r0.conf");
        fs::write(&file, "").unwrap();
        let file = file.to_str().unwrap();
        for key in [Key::Minor(7), Key::Resource("r0")] {
            assert_eq!(lookup(&directory, key), None);
            register(&directory, key, file).unwrap();
            register(&directory, key, file).unwrap();
            assert_eq!(lookup(&directory, key).as_deref(), Some(file));
        }
        unregister(&directory, Key::Minor(7)).unwrap();
        unregister(&directory, Key::Minor(7)).unwrap();
        assert_eq!(lookup(&directory, Key::Minor(7)), None);
        fs::remove_file(file).unwrap();
        assert_eq!(lookup(&directory, Key::Resource("r0")), None, "the link leads nowhere");
    }

    #[test]
    fn relative_paths_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        assert!(register(folder.path(), Key::Minor(1), "r0.conf").is_err());
    }
}
