//! What the kernel knows about a disk: ioctls, sysfs, `statx`, locks; and plain blocking transfers.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::sys::uio::{pread, pwrite};
use udrbd_units::{SECTOR_BYTES, Sector};

use super::{DiscardLimits, DiskIdentity, DiskProperties};
use crate::Errno;
use crate::buffers::{BUFFER_BYTES_MAX, BUFFER_BYTES_MIN};
use crate::ring::StorageKind;

/// "No limit but the number format": regular files have none of their own.
const FILE_DISCARD_BYTES_MAX: u64 = 1 << 40;

/// Drops what the page cache has of a device and is not dirty. Best effort: it is about speed only.
pub(super) fn forget_cached(device: BorrowedFd<'_>) {
    let _ = posix_fadvise(device, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
}

pub(super) fn properties(
    file: &File,
    kind: StorageKind,
    direct: bool,
    identity: DiskIdentity,
) -> Result<DiskProperties, Errno> {
    let size = size(file.as_fd(), kind)?;
    match (kind, identity) {
        (StorageKind::BlockDevice, DiskIdentity::Device(number)) => Ok(device_properties(
            &Queue::of(number),
            size,
            ioctl::logical_block_bytes(file.as_fd())?,
            direct,
            identity,
        )),
        _ => Ok(file_properties(file, kind, size, direct, identity)),
    }
}

fn file_properties(
    file: &File,
    kind: StorageKind,
    size: Sector,
    direct: bool,
    identity: DiskIdentity,
) -> DiskProperties {
    let in_memory = is_in_memory(file);
    DiskProperties {
        kind,
        size,
        logical_block_bytes: SECTOR_BYTES as u32,
        physical_block_bytes: BUFFER_BYTES_MIN as u32,
        request_bytes_max: BUFFER_BYTES_MAX as u32,
        // The device below has a cache of its own, and the file system has metadata to write.
        volatile_cache: !in_memory,
        forced_writes: true,
        direct,
        in_memory,
        rotational: false,
        discard: DiscardLimits {
            granularity_bytes: file.metadata().map_or(4096, |metadata| metadata.blksize() as u32),
            alignment_bytes: 0,
            bytes_max: FILE_DISCARD_BYTES_MAX,
        },
        identity,
    }
}

/// Whether a file lives in memory. Where the file system does not tell, it does not.
fn is_in_memory(file: &File) -> bool {
    nix::sys::statfs::fstatfs(file)
        .is_ok_and(|found| found.filesystem_type() == nix::sys::statfs::TMPFS_MAGIC)
}

fn device_properties(
    queue: &Queue,
    size: Sector,
    logical_block_bytes: u32,
    direct: bool,
    identity: DiskIdentity,
) -> DiskProperties {
    // Where sysfs tells nothing the safe answer is taken: a cache that must be flushed.
    let volatile_cache = queue.text("write_cache").is_none_or(|mode| mode.trim() != "write through");
    let request_kibibytes = queue.number("max_sectors_kb").unwrap_or(BUFFER_BYTES_MAX as u64 >> 10);
    let number = |name: &str| queue.number(name).unwrap_or(0);
    DiskProperties {
        kind: StorageKind::BlockDevice,
        size,
        logical_block_bytes,
        physical_block_bytes: number("physical_block_size").max(u64::from(logical_block_bytes)) as u32,
        request_bytes_max: (request_kibibytes << 10).clamp(BUFFER_BYTES_MIN as u64, BUFFER_BYTES_MAX as u64)
            as u32,
        volatile_cache,
        forced_writes: number("fua") == 1,
        direct,
        in_memory: false,
        rotational: number("rotational") == 1,
        discard: DiscardLimits {
            granularity_bytes: number("discard_granularity") as u32,
            alignment_bytes: queue.device_number("discard_alignment").unwrap_or(0) as u32,
            bytes_max: number("discard_max_bytes"),
        },
        identity,
    }
}

/// The folder of a block device in sysfs. A partition shares the queue of its disk.
struct Queue {
    device: PathBuf,
    queue: PathBuf,
}

impl Queue {
    fn of(number: u64) -> Self {
        let device = PathBuf::from(format!(
            "/sys/dev/block/{}:{}",
            nix::sys::stat::major(number),
            nix::sys::stat::minor(number)
        ));
        let own = device.join("queue");
        let queue = if own.is_dir() { own } else { device.join("../queue") };
        Self { device, queue }
    }

    fn text(&self, name: &str) -> Option<String> {
        std::fs::read_to_string(self.queue.join(name)).ok()
    }

    fn number(&self, name: &str) -> Option<u64> {
        self.text(name)?.trim().parse().ok()
    }

    fn device_number(&self, name: &str) -> Option<u64> {
        std::fs::read_to_string(self.device.join(name)).ok()?.trim().parse().ok()
    }
}

pub(super) fn size(file: BorrowedFd<'_>, kind: StorageKind) -> Result<Sector, Errno> {
    let bytes = match kind {
        StorageKind::BlockDevice => ioctl::size_bytes(file)?,
        StorageKind::RegularFile => nix::sys::stat::fstat(file)?.st_size as u64,
    };
    Ok(Sector(bytes / SECTOR_BYTES))
}

pub(super) fn is_read_only(file: BorrowedFd<'_>) -> Result<bool, Errno> {
    ioctl::is_read_only(file)
}

/// Whether direct I/O on a file works at every sector: tried out, because older kernels cannot say.
pub(super) fn direct_by_sector(file: &File) -> bool {
    let mut block = AlignedBlock::default();
    let sector = &mut block.0[..SECTOR_BYTES as usize];
    // An empty read at the end of the file is checked for alignment like any other.
    pread(file, sector, SECTOR_BYTES as i64).is_ok()
}

/// Locks a whole regular file for this open file description: a second attach, by whatever process, is refused.
pub(super) fn lock_whole_file(file: BorrowedFd<'_>) -> Result<(), Errno> {
    let lock = libc::flock {
        l_type: libc::F_WRLCK as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    nix::fcntl::fcntl(file, nix::fcntl::FcntlArg::F_OFD_SETLK(&lock)).map(|_| ())
}

/// Memory aligned as direct I/O wants it.
#[repr(align(4096))]
struct AlignedBlock([u8; 4096]);

impl Default for AlignedBlock {
    fn default() -> Self {
        Self([0; 4096])
    }
}

/// Bytes moved per call by the blocking transfers.
const BLOCKING_BYTES: usize = 1 << 20;

fn aligned(bytes: usize) -> (Vec<u8>, usize) {
    let memory = vec![0; bytes + BUFFER_BYTES_MIN];
    let start = memory.as_ptr().align_offset(BUFFER_BYTES_MIN);
    assert!(start < BUFFER_BYTES_MIN, "bytes can always be aligned");
    (memory, start)
}

pub(super) fn read_blocking(file: BorrowedFd<'_>, start: u64, bytes: &mut [u8]) -> Result<(), Errno> {
    let (mut memory, front) = aligned(bytes.len().min(BLOCKING_BYTES));
    let mut done = 0;
    while done < bytes.len() {
        let length = (bytes.len() - done).min(BLOCKING_BYTES);
        let window = &mut memory[front..front + length];
        match pread(file, window, (start + done as u64) as i64) {
            Ok(0) => return Err(Errno::EIO),
            Ok(moved) => {
                bytes[done..done + moved].copy_from_slice(&window[..moved]);
                done += moved;
            }
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

pub(super) fn write_blocking(file: BorrowedFd<'_>, start: u64, bytes: &[u8]) -> Result<(), Errno> {
    let (mut memory, front) = aligned(bytes.len().min(BLOCKING_BYTES));
    let mut done = 0;
    while done < bytes.len() {
        let length = (bytes.len() - done).min(BLOCKING_BYTES);
        let window = &mut memory[front..front + length];
        window.copy_from_slice(&bytes[done..done + length]);
        match pwrite(file, window, (start + done as u64) as i64) {
            Ok(0) => return Err(Errno::EIO),
            Ok(moved) => done += moved,
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    nix::unistd::fdatasync(file)
}

/// The ioctls of block devices (`linux/fs.h`).
#[allow(unsafe_code)]
mod ioctl {
    use super::{AsRawFd, BorrowedFd, Errno};

    nix::ioctl_read!(blkgetsize64, 0x12, 114, usize);
    nix::ioctl_read_bad!(blksszget, libc::BLKSSZGET, libc::c_int);
    nix::ioctl_read_bad!(blkroget, 0x125e, libc::c_int);

    pub(super) fn size_bytes(file: BorrowedFd<'_>) -> Result<u64, Errno> {
        let mut bytes = 0usize;
        // SAFETY: BLKGETSIZE64 writes one 64-bit number (`size_t` in the request code) to a live local.
        unsafe { blkgetsize64(file.as_raw_fd(), &mut bytes) }?;
        Ok(bytes as u64)
    }

    pub(super) fn logical_block_bytes(file: BorrowedFd<'_>) -> Result<u32, Errno> {
        let mut bytes = 0;
        // SAFETY: BLKSSZGET writes one int to a live local.
        unsafe { blksszget(file.as_raw_fd(), &mut bytes) }?;
        u32::try_from(bytes).map_err(|_| Errno::EINVAL)
    }

    pub(super) fn is_read_only(file: BorrowedFd<'_>) -> Result<bool, Errno> {
        let mut flag = 0;
        // SAFETY: BLKROGET writes one int to a live local.
        unsafe { blkroget(file.as_raw_fd(), &mut flag) }?;
        Ok(flag != 0)
    }
}
