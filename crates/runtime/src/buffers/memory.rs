//! The mapping itself. The pool's bookkeeping decides who may look at which part when.

use std::num::NonZeroUsize;
use std::ptr::NonNull;

use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mlock, mmap_anonymous, munmap};

use super::BUFFER_BYTES_MAX;
use crate::Errno;

/// Mappings, seen as one row of chunks. A buffer never reaches from one chunk into the next.
#[derive(Default)]
pub(super) struct Memory {
    mappings: Vec<Mapping>,
    /// Where each chunk starts.
    chunks: Vec<NonNull<u8>>,
}

impl Memory {
    pub(super) fn map(&mut self, chunks: usize, lock: bool) -> Result<(), Errno> {
        let mapping = Mapping::new(chunks * BUFFER_BYTES_MAX, lock)?;
        for chunk in 0..chunks {
            // SAFETY: the mapping has so many chunks.
            self.chunks.push(unsafe { mapping.start.add(chunk * BUFFER_BYTES_MAX) });
        }
        self.mappings.push(mapping);
        Ok(())
    }

    pub(super) fn pointer(&self, position: usize, length: usize) -> *mut u8 {
        let (chunk, offset) = (position / BUFFER_BYTES_MAX, position % BUFFER_BYTES_MAX);
        assert!(length <= BUFFER_BYTES_MAX - offset);
        // SAFETY: the range was just checked to lie inside the chunk.
        unsafe { self.chunks[chunk].as_ptr().add(offset) }
    }

    pub(super) fn bytes(&self, position: usize, length: usize) -> &[u8] {
        let pointer = self.pointer(position, length);
        // SAFETY: inside a mapping, which lives as long as `self`; anonymous memory is initialised to zero;
        // the pool hands out shared bytes only while the kernel does not write to the buffer, and changes
        // bytes only through `&mut self`.
        unsafe { std::slice::from_raw_parts(pointer, length) }
    }

    pub(super) fn bytes_mut(&mut self, position: usize, length: usize) -> &mut [u8] {
        let pointer = self.pointer(position, length);
        // SAFETY: as in `bytes`; `&mut self` excludes every other borrow of the memory, and the pool has
        // checked that the kernel does not work on the buffer.
        unsafe { std::slice::from_raw_parts_mut(pointer, length) }
    }

    pub(super) fn copy(&mut self, from: usize, to: usize, length: usize) {
        assert!(from + length <= to || to + length <= from, "source and target overlap");
        let (source, target) = (self.pointer(from, length), self.pointer(to, length));
        // In small pieces: the C library copies larger ones by a string instruction, which begins slowly, and which is
        // thousands of instructions where they are counted or emulated.
        for offset in (0..length).step_by(COPIED_AT_ONCE) {
            let bytes = COPIED_AT_ONCE.min(length - offset);
            // SAFETY: both ranges lie inside mappings and, positions being places in one row, do not overlap;
            // `&mut self` excludes borrows, and the pool has checked that the kernel neither fills the source nor
            // works on the target. `offset + bytes` is at most `length`.
            unsafe { std::ptr::copy_nonoverlapping(source.add(offset), target.add(offset), bytes) }
        }
    }

    /// Other memory in the place of whole pages: whoever else still has the old ones sees no change any more.
    pub(super) fn exchange(&mut self, position: usize, length: usize) -> bool {
        let start = self.pointer(position, length).cast();
        // The first is refused where the process has its memory locked, the second is not known before Linux 5.18.
        [libc::MADV_DONTNEED, MADV_DONTNEED_LOCKED].into_iter().any(|advice| {
            // SAFETY: inside a mapping of private anonymous memory, which reads as zero afterwards; `&mut self` excludes
            // borrows, and the pool has checked that no transfer of the kernel is under way here.
            unsafe { libc::madvise(start, length, advice) == 0 }
        })
    }

    pub(super) fn leak(self) {
        std::mem::forget(self.mappings);
    }
}

/// Linux 5.18, `asm-generic/mman-common.h`.
const MADV_DONTNEED_LOCKED: libc::c_int = 24;

/// Bytes copied by one call.
const COPIED_AT_ONCE: usize = 1024;

struct Mapping {
    start: NonNull<u8>,
    bytes: usize,
}

impl Mapping {
    fn new(bytes: usize, lock: bool) -> Result<Self, Errno> {
        let length = NonZeroUsize::new(bytes).ok_or(Errno::EINVAL)?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
        // SAFETY: a new private anonymous mapping at an address of the kernel's choice overlaps nothing.
        let start = unsafe { mmap_anonymous(None, length, protection, flags) }?;
        // A forked handler must not share pages that the kernel is writing to.
        // SAFETY: the range is exactly the mapping made above; the advice changes only what fork copies.
        unsafe { madvise(start, bytes, MmapAdvise::MADV_DONTFORK) }?;
        let mapping = Self { start: start.cast(), bytes };
        if lock {
            // SAFETY: the range is exactly the mapping made above.
            unsafe { mlock(start, bytes) }?;
        }
        Ok(mapping)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: exactly the mapping made in `new`; no borrow of it can be alive, and the ring leaks the
        // pool instead of dropping it while the kernel still holds a part.
        let unmapped = unsafe { munmap(self.start.cast(), self.bytes) };
        assert!(unmapped.is_ok(), "unmapping the buffer pool failed");
    }
}
