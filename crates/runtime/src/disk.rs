//! Backing and metadata devices: block devices or regular files, opened for exclusive use.
//!
//! A device is claimed the way the kernel module claims it: a block device with `O_EXCL` (so that a mounted, or
//! otherwise claimed, device is refused, and a later mount of it too), a regular file with a whole-file lock of
//! the open file description. The claim ends when the last [`Disk`] on it is dropped.
//!
//! Errors of I/O itself surface as errno values in the completions of the [`Ring`]; what they mean
//! (`on-io-error`, io spec 5.6) is the engine's decision.

mod query;

use std::collections::HashMap;
use std::fmt::Debug;
use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use udrbd_units::Sector;

use crate::Errno;
use crate::buffers::BufferSlice;
use crate::ring::{Descriptor, Durability, OperationId, Ring, StorageKind, Zeroing};

/// A handler program being started holds copies of all open files for an instant between fork and exec, and so an
/// old claim: a refused claim is tried again this often, this far apart.
const CLAIM_RETRIES: u32 = 5;
const CLAIM_PAUSE: Duration = Duration::from_millis(10);

/// Whether the page cache is bypassed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum DirectIo {
    /// Direct where it works in units of 512 bytes (always for block devices), else through the page cache.
    #[default]
    WhereSupported,
    /// Always through the page cache; for tests and odd file systems.
    Never,
}

/// How to open a disk.
#[derive(Clone, Copy, Debug, Default)]
pub struct DiskOptions {
    /// Whether the page cache is bypassed.
    pub direct: DirectIo,
    /// Open for reading only and without a claim: for tools that only look.
    pub inspect_only: bool,
}

/// Why a disk could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Nothing there (`ERR_OPEN_DISK`, `ERR_OPEN_MD_DISK`).
    #[error("{path}: no such file or device")]
    Missing {
        /// The path asked for.
        path: PathBuf,
    },
    /// Neither a block device nor a regular file (`ERR_DISK_NOT_BDEV`).
    #[error("{path}: neither a block device nor a regular file")]
    NotADisk {
        /// The path asked for.
        path: PathBuf,
    },
    /// Somebody else has claimed it: a mount, another resource, another program.
    #[error("{path}: already in use")]
    InUse {
        /// The path asked for.
        path: PathBuf,
    },
    /// The device, file or file system is read-only.
    #[error("{path}: read-only")]
    ReadOnly {
        /// The path asked for.
        path: PathBuf,
    },
    /// Anything else the kernel said.
    #[error("{path}: {action}: {errno}")]
    Failed {
        /// The path asked for.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// What the kernel said.
        errno: Errno,
    },
}

impl OpenError {
    /// The errno that fits the refusal best.
    #[must_use]
    pub const fn errno(&self) -> Errno {
        match self {
            Self::Missing { .. } => Errno::ENOENT,
            Self::NotADisk { .. } => Errno::ENOTBLK,
            Self::InUse { .. } => Errno::EBUSY,
            Self::ReadOnly { .. } => Errno::EROFS,
            Self::Failed { errno, .. } => *errno,
        }
    }
}

/// What discards a disk offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiscardLimits {
    /// Discards act on whole, aligned units of this many bytes; the rest of a range keeps its content.
    pub granularity_bytes: u32,
    /// Offset of the first aligned unit, in bytes.
    pub alignment_bytes: u32,
    /// The largest discard, in bytes; 0 if the disk cannot discard.
    pub bytes_max: u64,
}

/// What was found out about a disk when it was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskProperties {
    /// Block device or regular file.
    pub kind: StorageKind,
    /// Size in sectors of 512 bytes; a tail smaller than a sector does not count.
    pub size: Sector,
    /// The unit every offset and length must be a multiple of, in bytes.
    pub logical_block_bytes: u32,
    /// The unit that avoids read-modify-write in the device, in bytes.
    pub physical_block_bytes: u32,
    /// The largest request the device takes as one, in bytes (io spec 11, "local max").
    pub request_bytes_max: u32,
    /// Whether a completed write may still be lost with the power until a flush.
    pub volatile_cache: bool,
    /// Whether the device forces single writes (FUA) by itself. Without, the kernel flushes after the write;
    /// [`Durability::Forced`] keeps its promise either way.
    pub forced_writes: bool,
    /// Whether the page cache is bypassed.
    pub direct: bool,
    /// Whether it is a file in memory (tmpfs): nothing there waits for a device, and nothing outlives the power.
    pub in_memory: bool,
    /// Whether the medium rotates (status and resync heuristics).
    pub rotational: bool,
    /// What discards it offers.
    pub discard: DiscardLimits,
    /// Identifies the device or file: equal for two paths to the same one.
    pub identity: DiskIdentity,
}

/// Identifies a device (by its number) or a file (by file system and inode).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DiskIdentity {
    /// A block device's number.
    Device(u64),
    /// A file: the device number of its file system, and its inode number.
    File(u64, u64),
}

/// An open disk. Clones share the claim.
#[derive(Clone, Debug)]
pub struct Disk {
    file: Descriptor,
    path: Arc<Path>,
    properties: DiskProperties,
}

impl Disk {
    /// Opens and claims a disk.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(path: &Path, options: DiskOptions) -> Result<Self, OpenError> {
        let mut attempts = 0;
        loop {
            match Self::try_open(path, options) {
                Err(OpenError::InUse { .. }) if attempts < CLAIM_RETRIES => {
                    attempts += 1;
                    std::thread::sleep(CLAIM_PAUSE);
                }
                decided => return decided,
            }
        }
    }

    fn try_open(path: &Path, options: DiskOptions) -> Result<Self, OpenError> {
        let failed = |action, errno| refusal(path, action, errno);
        let (kind, identity) = identify(path)?;
        let wants_direct = options.direct == DirectIo::WhereSupported;
        let (file, direct) = open_file(path, kind, wants_direct, options.inspect_only)
            .map_err(|errno| failed("open", errno))?;
        if kind == StorageKind::RegularFile && !options.inspect_only {
            query::lock_whole_file(file.as_fd()).map_err(|errno| failed("lock", errno))?;
        }
        if kind == StorageKind::BlockDevice && direct && !options.inspect_only {
            // What was read through the page cache before makes every direct transfer look there first.
            query::forget_cached(file.as_fd());
        }
        let properties =
            query::properties(&file, kind, direct, identity).map_err(|errno| failed("query", errno))?;
        if kind == StorageKind::BlockDevice && !options.inspect_only {
            let read_only = query::is_read_only(file.as_fd()).map_err(|errno| failed("query", errno))?;
            if read_only {
                return Err(OpenError::ReadOnly { path: path.to_owned() });
            }
        }
        Ok(Self { file: Arc::new(OwnedFd::from(file)), path: Arc::from(path), properties })
    }

    /// The path it was opened by.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What was found out at open.
    #[must_use]
    pub const fn properties(&self) -> &DiskProperties {
        &self.properties
    }

    /// The size now, in sectors: a device may have grown since it was opened (`drbdsetup resize`).
    ///
    /// # Errors
    /// What the kernel says.
    pub fn current_size(&self) -> Result<Sector, Errno> {
        query::size(self.file.as_fd(), self.properties.kind)
    }

    /// The open file, for operations of the ring.
    #[must_use]
    pub const fn descriptor(&self) -> &Descriptor {
        &self.file
    }

    /// Reads; see [`Ring::read`].
    pub fn read<T: Copy + Debug>(
        &self,
        ring: &mut Ring<T>,
        start: Sector,
        slice: BufferSlice,
        token: T,
    ) -> OperationId {
        if self.properties.in_memory {
            return ring.read_inline(&self.file, start, slice, token);
        }
        ring.read(&self.file, start, slice, token)
    }

    /// Writes; see [`Ring::write`].
    pub fn write<T: Copy + Debug>(
        &self,
        ring: &mut Ring<T>,
        start: Sector,
        slice: BufferSlice,
        durability: Durability,
        token: T,
    ) -> OperationId {
        if self.properties.in_memory {
            return ring.write_inline(&self.file, start, slice, token);
        }
        let durability = if self.keeps_writes_by_itself() { Durability::Cached } else { durability };
        ring.write(&self.file, start, slice, durability, token)
    }

    /// Flushes; see [`Ring::sync`].
    pub fn flush<T: Copy + Debug>(&self, ring: &mut Ring<T>, token: T) -> OperationId {
        if self.keeps_writes_by_itself() {
            ring.nothing(&self.file, token)
        } else {
            ring.sync(&self.file, token)
        }
    }

    /// Discards or zeroes `bytes` bytes; see [`Ring::zero`].
    pub fn zero<T: Copy + Debug>(
        &self,
        ring: &mut Ring<T>,
        start: Sector,
        bytes: u64,
        zeroing: Zeroing,
        token: T,
    ) -> OperationId {
        ring.zero((&self.file, self.properties.kind), start, bytes, zeroing, token)
    }

    /// Reads without a ring, for attach and for tools. `bytes` must be aligned as direct I/O wants it, so it is
    /// copied through an aligned buffer inside.
    ///
    /// # Errors
    /// `EIO` at the end of the disk, else what the kernel says.
    pub fn read_blocking(&self, start: Sector, bytes: &mut [u8]) -> Result<(), Errno> {
        query::read_blocking(self.file.as_fd(), start.bytes(), bytes)
    }

    /// Writes and forces to stable storage without a ring, for attach and for tools.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn write_blocking(&self, start: Sector, bytes: &[u8]) -> Result<(), Errno> {
        query::write_blocking(self.file.as_fd(), start.bytes(), bytes)
    }

    /// A block device without a volatile cache, written around the page cache, has nothing to flush or force, nor has a
    /// file in memory.
    fn keeps_writes_by_itself(&self) -> bool {
        let DiskProperties { kind, volatile_cache, direct, in_memory, .. } = self.properties;
        in_memory || (kind == StorageKind::BlockDevice && direct && !volatile_cache)
    }
}

impl AsFd for Disk {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// The disks that are open for more than one resource: metadata devices with several indices.
///
/// A claim is exclusive, also within the process, so a second user of the same device must share the first one's.
#[derive(Debug, Default)]
pub struct SharedDisks {
    open: Mutex<HashMap<DiskIdentity, WeakDisk>>,
}

#[derive(Debug)]
struct WeakDisk {
    file: Weak<OwnedFd>,
    path: Arc<Path>,
    properties: DiskProperties,
}

impl SharedDisks {
    /// Opens a disk, or shares the claim of a disk opened by this function before and still in use.
    ///
    /// # Errors
    /// As [`Disk::open`].
    pub fn open(&self, path: &Path, options: DiskOptions) -> Result<Disk, OpenError> {
        // A thread that died while holding the lock left the map whole: every change is one insertion.
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|_, disk| disk.file.strong_count() > 0);
        let known = identify(path).ok().and_then(|(_, identity)| {
            let WeakDisk { file, path, properties } = open.get(&identity)?;
            Some(Disk { file: file.upgrade()?, path: Arc::clone(path), properties: *properties })
        });
        if let Some(disk) = known {
            return Ok(disk);
        }
        let disk = Disk::open(path, options)?;
        let weak = WeakDisk {
            file: Arc::downgrade(&disk.file),
            path: Arc::clone(&disk.path),
            properties: disk.properties,
        };
        open.insert(disk.properties.identity, weak);
        Ok(disk)
    }
}

/// Looks at a path without opening it: opening some device nodes has effects, and a FIFO would block.
fn identify(path: &Path) -> Result<(StorageKind, DiskIdentity), OpenError> {
    let metadata = std::fs::metadata(path).map_err(|error| refusal(path, "stat", errno_of(&error)))?;
    if metadata.file_type().is_block_device() {
        Ok((StorageKind::BlockDevice, DiskIdentity::Device(metadata.rdev())))
    } else if metadata.file_type().is_file() {
        Ok((StorageKind::RegularFile, DiskIdentity::File(metadata.dev(), metadata.ino())))
    } else {
        Err(OpenError::NotADisk { path: path.to_owned() })
    }
}

fn open_file(path: &Path, kind: StorageKind, direct: bool, inspect: bool) -> Result<(File, bool), Errno> {
    let claim = if kind == StorageKind::BlockDevice && !inspect { libc::O_EXCL } else { 0 };
    let open = |flags: i32| {
        let mut options = OpenOptions::new();
        let mut open = |flags| {
            options.read(true).write(!inspect).custom_flags(flags | claim | libc::O_NOCTTY);
            options.open(path).map_err(|error| errno_of(&error))
        };
        if kind != StorageKind::BlockDevice || inspect {
            return open(flags);
        }
        // A read need not look whether the node's time of access is due. Only owners may ask for that.
        match open(flags | libc::O_NOATIME) {
            Err(Errno::EPERM) => open(flags),
            result => result,
        }
    };
    if !direct {
        return Ok((open(0)?, false));
    }
    match open(libc::O_DIRECT) {
        // A file system that wants larger units than a sector cannot serve every request directly, and mixing
        // direct and cached I/O on one file is not coherent: all of it goes through the cache then.
        Ok(file) if kind == StorageKind::RegularFile && !query::direct_by_sector(&file) => {
            Ok((open(0)?, false))
        }
        Ok(file) => Ok((file, true)),
        Err(Errno::EINVAL) => Ok((open(0)?, false)),
        Err(errno) => Err(errno),
    }
}

fn refusal(path: &Path, action: &'static str, errno: Errno) -> OpenError {
    let path = path.to_owned();
    match errno {
        Errno::ENOENT | Errno::ENXIO | Errno::ENODEV => OpenError::Missing { path },
        Errno::EBUSY | Errno::ETXTBSY => OpenError::InUse { path },
        Errno::EAGAIN if action == "lock" => OpenError::InUse { path },
        Errno::EROFS => OpenError::ReadOnly { path },
        Errno::EACCES if action == "open" && nix::unistd::geteuid().is_root() => {
            // Root is never refused by permissions; a read-only block device answers this way.
            OpenError::ReadOnly { path }
        }
        errno => OpenError::Failed { path, action, errno },
    }
}

fn errno_of(error: &std::io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))
}

#[cfg(test)]
mod tests;
