//! Device nodes, links to them, and who has them open.
//!
//! A node is made under another name and renamed into its place: whoever opens the path finds the old node or the new
//! one. Between a disk and the next one the node is a placeholder: a block special file whose number no driver has, so
//! that it is there and opening it fails. Its major is 0, which is nobody's; never DRBD's own, which would have
//! the kernel load DRBD's module.

mod events;
mod openers;

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::unistd::{Gid, Group, Uid, chown};
use udrbd_units::Sector;

use crate::Errno;
pub use events::DeviceEvents;
pub use openers::{Opener, openers};

const NODE_MODE: u32 = 0o660;
const NODE_GROUP: &str = "disk";
/// The kernel's own DRBD.
const DRBD_MAJOR: u64 = 147;
/// Where it is noted which daemon has which minor.
const CLAIM_FOLDERS: [&str; 2] = ["/run/lock", "/run"];

/// The number of a block device, as `stat` tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DeviceNumber(pub u64);

impl DeviceNumber {
    /// A number no driver has, another one for each minor.
    #[must_use]
    pub const fn placeholder(minor: u32) -> Self {
        Self(makedev(0, minor as u64))
    }

    /// The major part.
    #[must_use]
    pub const fn major(self) -> u64 {
        nix::sys::stat::major(self.0)
    }

    /// The minor part.
    #[must_use]
    pub const fn minor(self) -> u64 {
        nix::sys::stat::minor(self.0)
    }

    /// The folder in which the kernel shows the device, if there is one.
    #[must_use]
    pub fn folder(self) -> PathBuf {
        PathBuf::from(format!("/sys/dev/block/{}:{}", self.major(), self.minor()))
    }

    /// The size the kernel shows.
    #[must_use]
    pub fn size(self) -> Option<Sector> {
        let text = std::fs::read_to_string(self.folder().join("size")).ok()?;
        text.trim().parse().ok().map(Sector)
    }

    /// The partitions the kernel has found on the disk: which one each is, and its device.
    #[must_use]
    pub fn partitions(self) -> Vec<(u32, Self)> {
        let Ok(entries) = std::fs::read_dir(self.folder()) else { return Vec::new() };
        let folders = entries.flatten().map(|entry| entry.path());
        let read = |folder: PathBuf| {
            let which = std::fs::read_to_string(folder.join("partition")).ok()?.trim().parse().ok()?;
            Some((which, Self::parse(&std::fs::read_to_string(folder.join("dev")).ok()?)?))
        };
        folders.filter_map(read).collect()
    }

    fn parse(text: &str) -> Option<Self> {
        let (major, minor) = text.trim().split_once(':')?;
        Some(Self(makedev(major.parse().ok()?, minor.parse().ok()?)))
    }

    /// The number of the disk `name`.
    ///
    /// # Errors
    /// `ENODEV` where the kernel shows no such disk.
    pub fn of_disk(name: &str) -> Result<Self, Errno> {
        let text =
            std::fs::read_to_string(format!("/sys/block/{name}/dev")).map_err(|error| errno(&error))?;
        let number = text
            .trim()
            .split_once(':')
            .and_then(|(major, minor)| Some(Self(makedev(major.parse().ok()?, minor.parse().ok()?))));
        number.ok_or(Errno::ENODEV)
    }
}

/// Makes a block special file, in the place of whatever node is there: mode 0660, root and where it exists the group
/// `disk`.
///
/// # Errors
/// `EPERM` where the process may not, `EROFS` and its like where nothing can be made; `EEXIST` where there is something
/// that is no block special file, or the node of a live device of the kernel's own DRBD.
pub fn make_node(path: &Path, number: DeviceNumber) -> Result<(), Errno> {
    match node_at(path)? {
        Some(present) if present == number => return Ok(()),
        Some(present) if present.major() == DRBD_MAJOR && present.folder().exists() => {
            return Err(Errno::EEXIST);
        }
        _ => {}
    }
    let new = hidden(path);
    // One that a crash left.
    let _ = std::fs::remove_file(&new);
    let mode = Mode::from_bits_truncate(NODE_MODE);
    mknod(&new, SFlag::S_IFBLK, mode, number.0)?;
    let group = Group::from_name(NODE_GROUP).ok().flatten().map(|group| group.gid);
    let finished = chown(&new, Some(Uid::from_raw(0)), Some(group.unwrap_or(Gid::from_raw(0))))
        .and_then(|()| {
            // The mode without the mask of the process.
            std::fs::set_permissions(&new, std::fs::Permissions::from_mode(NODE_MODE))
                .map_err(|error| errno(&error))
        })
        .and_then(|()| std::fs::rename(&new, path).map_err(|error| errno(&error)));
    if finished.is_err() {
        let _ = std::fs::remove_file(&new);
    }
    finished
}

/// Removes a node, if it is one with this number.
///
/// # Errors
/// What the kernel says.
pub fn remove_node(path: &Path, number: DeviceNumber) -> Result<(), Errno> {
    match node_at(path) {
        Ok(Some(present)) if present == number => std::fs::remove_file(path).map_err(|error| errno(&error)),
        _ => Ok(()),
    }
}

/// Removes the nodes in `folder` whose names are `stem` and a number, if no device has their number any more.
pub fn remove_stale_nodes(folder: &Path, stem: &str) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let number = name.strip_prefix(stem).unwrap_or_default();
        if number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit()) {
            continue;
        }
        if let Ok(Some(number)) = node_at(&path)
            && !number.folder().exists()
        {
            // What cannot be removed leads nowhere.
            let _ = std::fs::remove_file(&path);
        }
    }
}

/// The number of the node at a path; `None` where there is nothing.
fn node_at(path: &Path) -> Result<Option<DeviceNumber>, Errno> {
    match std::fs::symlink_metadata(path) {
        Ok(metadata) if metadata.file_type().is_block_device() => Ok(Some(DeviceNumber(metadata.rdev()))),
        // A link of somebody's rule to a device that is gone is as good as nothing.
        Ok(metadata) if metadata.file_type().is_symlink() && !path.exists() => Ok(None),
        Ok(_) => Err(Errno::EEXIST),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(errno(&error)),
    }
}

/// Makes a link, and the folders it needs. A link that is there is replaced.
///
/// # Errors
/// What the kernel says; `EEXIST` where there is something that is no link.
pub fn make_link(link: &Path, target: &Path) -> Result<(), Errno> {
    if let Some(folder) = link.parent() {
        std::fs::create_dir_all(folder).map_err(|error| errno(&error))?;
    }
    if std::fs::symlink_metadata(link).is_ok_and(|metadata| !metadata.file_type().is_symlink()) {
        return Err(Errno::EEXIST);
    }
    let new = hidden(link);
    let _ = std::fs::remove_file(&new);
    let made = std::os::unix::fs::symlink(target, &new).and_then(|()| std::fs::rename(&new, link));
    made.map_err(|error| errno(&error))
}

/// Removes a link to `target`, and the folders it leaves empty, up to `root`.
pub fn remove_link(link: &Path, target: &Path, root: &Path) {
    if std::fs::read_link(link).is_ok_and(|present| present == target) {
        // What cannot be removed leads nowhere.
        let _ = std::fs::remove_file(link);
    }
    let mut folder = link.parent();
    while let Some(empty) = folder.filter(|folder| folder.starts_with(root)) {
        if std::fs::remove_dir(empty).is_err() {
            return;
        }
        folder = empty.parent();
    }
}

fn hidden(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.new"))
}

/// The right to the device node of a minor. It ends with the process, whatever ends it.
#[derive(Debug)]
pub struct MinorClaim {
    path: PathBuf,
    _lock: Flock<File>,
}

/// Why a minor cannot be claimed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClaimError {
    /// Another daemon has it.
    #[error("it belongs to {0}")]
    Taken(String),
    /// There is no place to note it.
    #[error("{0}")]
    Failed(Errno),
}

impl MinorClaim {
    /// Claims a minor; `owner` is what others are told.
    ///
    /// # Errors
    /// See [`ClaimError`].
    pub fn take(minor: u32, owner: &str) -> Result<Self, ClaimError> {
        let folder = CLAIM_FOLDERS.iter().map(Path::new).find(|folder| folder.is_dir());
        let folder = folder.ok_or(ClaimError::Failed(Errno::ENOENT))?;
        Self::take_in(folder, minor, owner)
    }

    fn take_in(folder: &Path, minor: u32, owner: &str) -> Result<Self, ClaimError> {
        let path = folder.join(format!("udrbd-minor-{minor}"));
        loop {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o644)
                .custom_flags(libc::O_NOFOLLOW)
                .open(&path)
                .map_err(|error| ClaimError::Failed(errno(&error)))?;
            let inode = file.metadata().map_err(|error| ClaimError::Failed(errno(&error)))?.ino();
            let mut lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => lock,
                Err((mut file, _)) => {
                    let mut other = String::new();
                    // Only for the message.
                    let _ = file.read_to_string(&mut other);
                    return Err(ClaimError::Taken(other.trim().to_owned()));
                }
            };
            // The one before may have removed it between the open and the lock.
            if std::fs::metadata(&path).is_ok_and(|present| present.ino() == inode) {
                let note =
                    lock.set_len(0).and_then(|()| lock.rewind()).and_then(|()| writeln!(lock, "{owner}"));
                note.map_err(|error| ClaimError::Failed(errno(&error)))?;
                return Ok(Self { path, _lock: lock });
            }
        }
    }
}

impl Drop for MinorClaim {
    fn drop(&mut self) {
        // While it is still locked, so that nobody locks the one that goes. A file that stays is only a file.
        let _ = std::fs::remove_file(&self.path);
    }
}

fn errno(error: &std::io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minor_has_one_owner_and_is_free_after_it() {
        let folder = tempfile::tempdir().unwrap();
        let first = MinorClaim::take_in(folder.path(), 7, "the first").unwrap();
        let refused = MinorClaim::take_in(folder.path(), 7, "the second").unwrap_err();
        assert_eq!(refused, ClaimError::Taken("the first".to_owned()));
        MinorClaim::take_in(folder.path(), 8, "the second").unwrap();
        drop(first);
        assert!(!folder.path().join("udrbd-minor-7").exists());
        MinorClaim::take_in(folder.path(), 7, "the second").unwrap();
    }

    #[test]
    fn a_link_takes_its_empty_folders_with_it_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("drbd");
        let (one, two) = (root.join("by-res/r0/0"), root.join("by-res/r1/0"));
        make_link(&one, Path::new("../../../drbd0")).unwrap();
        make_link(&one, Path::new("../../../drbd5")).unwrap();
        make_link(&two, Path::new("../../../drbd1")).unwrap();
        // It leads elsewhere by now: it is another one's.
        remove_link(&one, Path::new("../../../drbd0"), &root);
        assert!(one.is_symlink());
        remove_link(&one, Path::new("../../../drbd5"), &root);
        assert!(!root.join("by-res/r0").exists() && two.is_symlink());
        remove_link(&two, Path::new("../../../drbd1"), &root);
        assert!(!root.exists() && folder.path().exists());
    }

    #[test]
    fn what_is_no_node_is_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("drbd0");
        std::fs::write(&path, "kept").unwrap();
        assert_eq!(make_node(&path, DeviceNumber::placeholder(0)), Err(Errno::EEXIST));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "kept");
    }

    #[test]
    fn a_placeholder_is_nobodys_device() {
        for minor in [0, 1, 255, 256, (1 << 20) - 1] {
            let number = DeviceNumber::placeholder(minor);
            assert_eq!((number.major(), number.minor()), (0, u64::from(minor)));
            assert!(!number.folder().exists());
        }
    }
}
