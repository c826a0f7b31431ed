//! The pool's memory in the ring's table of buffers.
//!
//! For memory in that table the kernel has looked up the pages once, and does not look for them, take and give them back
//! with each transfer. An entry is one of the pool's blocks of 1 MiB, and is made when a transfer first uses the block:
//! that is when its memory becomes resident. Where pages of a block were exchanged for others the entry is made anew.
//!
//! A kernel that refuses, for want of a limit or of memory, costs speed only.

use io_uring::IoUring;

use super::pages;
use crate::buffers::{BUFFER_BYTES_MAX, BufferHandle, BufferPool, CHUNKS_MAX, Chunk};

/// What the kernel has in its table.
#[derive(Debug)]
pub(super) struct Table {
    /// By block: the version of its memory that is in the table.
    versions: Vec<Option<u32>>,
    exists: bool,
    usable: bool,
}

/// The entries before are for pages of block devices' requests.
const FIRST: u16 = pages::ENTRIES;

impl Table {
    pub(super) fn new(uring: &IoUring) -> Self {
        let entries = u32::from(FIRST) + CHUNKS_MAX as u32;
        let exists = uring.submitter().register_buffers_sparse(entries).is_ok();
        Self { versions: Vec::new(), exists, usable: exists }
    }

    /// Whether the kernel has such a table.
    #[cfg_attr(not(feature = "ublk"), allow(dead_code, reason = "only block devices ask"))]
    pub(super) const fn exists(&self) -> bool {
        self.exists
    }

    /// The entry a buffer is in. `None`: it is in none.
    pub(super) fn entry(&mut self, uring: &IoUring, pool: &BufferPool, buffer: BufferHandle) -> Option<u16> {
        if !self.usable {
            return None;
        }
        let chunk = pool.chunk(buffer);
        if self.versions.get(chunk.number).copied().flatten() == Some(chunk.version) {
            return Some(FIRST + chunk.number as u16);
        }
        self.make(uring, &chunk)
    }

    #[cold]
    fn make(&mut self, uring: &IoUring, chunk: &Chunk) -> Option<u16> {
        let memory = libc::iovec { iov_base: chunk.start.cast(), iov_len: BUFFER_BYTES_MAX };
        // An entry that is wrong would be worse than none: a failure is final.
        let entry = FIRST + chunk.number as u16;
        self.usable = update(uring, u32::from(entry), memory);
        if !self.usable {
            return None;
        }
        if self.versions.len() <= chunk.number {
            self.versions.resize(chunk.number + 1, None);
        }
        self.versions[chunk.number] = Some(chunk.version);
        Some(entry)
    }
}

#[allow(unsafe_code)]
fn update(uring: &IoUring, entry: u32, memory: libc::iovec) -> bool {
    // SAFETY: the pool's memory stays mapped until the ring is gone, or for ever; the kernel holds its pages by itself, and
    // what it does with them goes by the operations, whose buffers are pinned.
    unsafe { uring.submitter().register_buffers_update(entry, &[memory], None) }.is_ok()
}
