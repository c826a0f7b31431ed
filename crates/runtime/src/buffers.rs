//! Pooled, page-aligned payload memory.
//!
//! All memory is mapped at start ("memory-pressure deadlock", runtime spec 10.4: nothing is allocated on the write
//! path), and where a front end is opened that brings buffers of its own ([`BufferPool::grow`]). A mapping is cut into
//! chunks of 1 MiB, each a buddy system with blocks of 4 KiB to 1 MiB, so that any mix of small and large requests
//! fits without classes sized in advance. A chunk that was never used costs address space only.
//!
//! A buffer has one reference per owner: [`BufferPool::allocate`] gives the first, [`BufferPool::retain`] one
//! more, [`BufferPool::release`] takes one away. The ring holds a reference of its own while the kernel works on a
//! buffer, so that releasing early is harmless: the block becomes free when the last reference goes.
//! A stale handle is caught by its generation number.
//!
//! Pages may be *lent* to a socket, which sends them without a copy ([`BufferPool::lend`]). Who lends sees to it that they
//! are not changed before the peer has answered. Where that answer will never come because the connection is lost, the
//! socket, or a peer on the same machine, may still have them when their owner is long done. So
//! [`BufferPool::give_up_lent`] is called then: whatever was lent is never used again, and the buffers get other memory.

#[allow(unsafe_code)]
mod memory;

use crate::Errno;

/// The smallest buffer, in bytes; also the alignment of every buffer.
pub const BUFFER_BYTES_MIN: usize = 4096;
/// The largest buffer, in bytes: the largest data request of the protocol (`DRBD_MAX_BIO_SIZE`).
pub const BUFFER_BYTES_MAX: usize = 1 << 20;

const ORDERS: usize = 9;
const PAGES_PER_CHUNK: usize = BUFFER_BYTES_MAX / BUFFER_BYTES_MIN;
const NIL: u32 = u32::MAX;

const _: () = assert!(BUFFER_BYTES_MIN << (ORDERS - 1) == BUFFER_BYTES_MAX);

/// Blocks of 1 MiB in the largest pool.
pub(crate) const CHUNKS_MAX: usize = PAGES_MAX / PAGES_PER_CHUNK;
/// Pages a handle can tell apart: 1 GiB of buffers.
const PAGES_MAX: usize = 1 << PAGE_BITS;
const PAGE_BITS: u32 = 18;
const GENERATION_MASK: u32 = u32::MAX >> PAGE_BITS;

/// Names one buffer of a pool. Copying it does not add a reference.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BufferHandle {
    raw: u32,
}

impl BufferHandle {
    const fn new(page: u32, generation: u32) -> Self {
        Self { raw: generation << PAGE_BITS | page }
    }

    const fn page(self) -> u32 {
        self.raw & (PAGES_MAX as u32 - 1)
    }

    const fn generation(self) -> u32 {
        self.raw >> PAGE_BITS
    }

    /// The handle as a number, for layers that carry it without knowing this crate.
    #[must_use]
    pub const fn into_raw(self) -> u32 {
        self.raw
    }

    /// The handle again, from [`BufferHandle::into_raw`].
    #[must_use]
    pub const fn from_raw(raw: u32) -> Self {
        Self { raw }
    }

    /// The number of its first page in the pool.
    pub(crate) const fn first_page(self) -> usize {
        self.page() as usize
    }

    /// The `length` bytes of this buffer from `offset` on.
    #[must_use]
    pub const fn slice(self, offset: u32, length: u32) -> BufferSlice {
        BufferSlice { buffer: self, offset, length }
    }
}

impl std::fmt::Debug for BufferHandle {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "buffer {}.{}", self.page(), self.generation())
    }
}

/// A part of one buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BufferSlice {
    /// The buffer.
    pub buffer: BufferHandle,
    /// First byte of the part.
    pub offset: u32,
    /// Bytes in the part.
    pub length: u32,
}

impl BufferSlice {
    /// The `length` bytes from `offset` on, counted from the start of this part.
    #[must_use]
    pub fn part(self, offset: u32, length: u32) -> Self {
        assert!(offset <= self.length && length <= self.length - offset, "part outside of its slice");
        Self { buffer: self.buffer, offset: self.offset + offset, length }
    }
}

/// How large a pool is and whether its memory may be paged out.
#[derive(Clone, Copy, Debug)]
pub struct PoolOptions {
    /// Upper limit of all buffers together, in bytes; rounded up to whole MiB.
    pub bytes: usize,
    /// Fault in and lock all of it at once, so that the write path never waits for memory.
    pub lock: bool,
}

impl Default for PoolOptions {
    fn default() -> Self {
        Self { bytes: 32 << 20, lock: false }
    }
}

/// Which way the kernel moves data while it works on a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KernelAccess {
    /// The kernel reads the memory (a disk write).
    Reads,
    /// The kernel writes the memory (a disk read, a receive).
    Writes,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum PageState {
    /// Inside a block that starts at another page.
    Inside,
    /// First page of a free block.
    Free,
    /// First page of a block in use.
    Used,
}

#[derive(Clone, Copy)]
struct Page {
    generation: u32,
    /// Neighbours in the free list of this order.
    next: u32,
    previous: u32,
    references: u32,
    kernel_reads: u16,
    kernel_writes: u16,
    order: u8,
    state: PageState,
    /// This page was lent to a socket.
    lent: bool,
    /// Of a block's first page: lent pages of this block are to be exchanged before it is used again.
    given_up: bool,
}

/// A block of 1 MiB that a buffer lies in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chunk {
    /// Its place in the pool.
    pub(crate) number: usize,
    /// Changes when some of its pages are exchanged for others.
    pub(crate) version: u32,
    /// Where it starts.
    pub(crate) start: *mut u8,
}

/// The pool: see the module's text.
pub struct BufferPool {
    memory: memory::Memory,
    pages: Vec<Page>,
    /// By chunk: how often pages of it were exchanged.
    versions: Vec<u32>,
    lock: bool,
    free: [u32; ORDERS],
    used_bytes: usize,
    used_bytes_peak: usize,
    freed: u64,
    /// Chunks that are free as a whole.
    whole_chunks: usize,
}

impl std::fmt::Debug for BufferPool {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{} bytes of buffers, {} in use", self.total_bytes(), self.used_bytes)
    }
}

impl BufferPool {
    /// Maps the memory of a pool.
    ///
    /// # Errors
    /// `ENOMEM` or `EPERM` if the memory cannot be mapped or locked, `EINVAL` beyond 1 GiB.
    pub fn new(options: PoolOptions) -> Result<Self, Errno> {
        let chunks = options.bytes.div_ceil(BUFFER_BYTES_MAX).max(1);
        let mut pool = Self {
            memory: memory::Memory::default(),
            pages: Vec::new(),
            versions: Vec::new(),
            lock: options.lock,
            free: [NIL; ORDERS],
            used_bytes: 0,
            used_bytes_peak: 0,
            freed: 0,
            whole_chunks: 0,
        };
        pool.grow(chunks)?;
        Ok(pool)
    }

    /// Maps more memory, for a front end with buffers of its own. Memory is never given back before the end.
    ///
    /// # Errors
    /// As [`BufferPool::new`]; the pool is as it was then.
    pub fn grow(&mut self, mebibytes: usize) -> Result<(), Errno> {
        let before = self.pages.len() / PAGES_PER_CHUNK;
        let after = before + mebibytes;
        if after * PAGES_PER_CHUNK > PAGES_MAX {
            return Err(Errno::EINVAL);
        }
        self.memory.map(mebibytes, self.lock)?;
        let page = Page {
            generation: 0,
            next: NIL,
            previous: NIL,
            references: 0,
            kernel_reads: 0,
            kernel_writes: 0,
            order: 0,
            state: PageState::Inside,
            lent: false,
            given_up: false,
        };
        self.pages.resize(after * PAGES_PER_CHUNK, page);
        self.versions.resize(after, 0);
        // The last chunk goes in first, so that allocation starts at the front of the mapping.
        for chunk in (before..after).rev() {
            self.push_free((chunk * PAGES_PER_CHUNK) as u32, ORDERS - 1);
        }
        Ok(())
    }

    /// Takes a buffer of at least `bytes` bytes (the next power of two from 4 KiB to 1 MiB), with one reference.
    /// Its contents are whatever an earlier owner left. `None` when the pool has no block that large: the caller
    /// waits for a release.
    ///
    /// # Panics
    /// If `bytes` exceeds [`BUFFER_BYTES_MAX`].
    pub fn allocate(&mut self, bytes: usize) -> Option<BufferHandle> {
        self.allocate_leaving(bytes, 0)
    }

    /// As [`BufferPool::allocate`], but leaves so many blocks of 1 MiB alone, whole, for others.
    ///
    /// What clients may use must end before what answers them does: a read that waits for the peer holds a buffer, and
    /// the peer's answer needs one more. Those who come last in such a chain allocate with the smaller reserve.
    ///
    /// # Panics
    /// As [`BufferPool::allocate`].
    pub fn allocate_leaving(&mut self, bytes: usize, reserve_mebibytes: usize) -> Option<BufferHandle> {
        assert!(bytes <= BUFFER_BYTES_MAX, "a buffer of {bytes} bytes is beyond the largest class");
        let wanted = order_of(bytes);
        let found = (wanted..ORDERS).find(|&order| self.free[order] != NIL)?;
        if found == ORDERS - 1 && self.whole_chunks <= reserve_mebibytes {
            return None;
        }
        let index = self.free[found];
        self.unlink_free(index, found);
        for order in (wanted..found).rev() {
            self.push_free(index + (1 << order), order);
        }
        let page = &mut self.pages[index as usize];
        assert!(page.references == 0 && page.kernel_reads == 0 && page.kernel_writes == 0);
        page.state = PageState::Used;
        page.order = wanted as u8;
        page.references = 1;
        self.used_bytes += BUFFER_BYTES_MIN << wanted;
        self.used_bytes_peak = self.used_bytes_peak.max(self.used_bytes);
        Some(BufferHandle::new(index, page.generation))
    }

    /// Adds a reference.
    pub fn retain(&mut self, buffer: BufferHandle) {
        self.page_mut(buffer).references += 1;
    }

    /// Takes a reference away; the last one frees the buffer.
    pub fn release(&mut self, buffer: BufferHandle) {
        let page = self.page_mut(buffer);
        page.references -= 1;
        if page.references > 0 {
            return;
        }
        assert!(page.kernel_reads == 0 && page.kernel_writes == 0, "the kernel's own reference is missing");
        page.generation = (page.generation + 1) & GENERATION_MASK;
        let order = usize::from(page.order);
        if std::mem::take(&mut self.pages[buffer.page() as usize].given_up)
            && !self.exchange_lent(buffer.page(), order)
        {
            // Lost, but nobody's data are mixed up.
            return;
        }
        self.used_bytes -= BUFFER_BYTES_MIN << order;
        self.freed += 1;
        self.merge_free(buffer.page(), order);
    }

    /// Notes that a socket sends from the pages of a part of a buffer. They must not change before the peer has answered;
    /// if the connection ends first, call [`BufferPool::give_up_lent`] before anybody changes them.
    pub fn lend(&mut self, slice: BufferSlice) {
        let position = self.position(slice);
        let end = position + slice.length as usize;
        for page in position / BUFFER_BYTES_MIN..end.div_ceil(BUFFER_BYTES_MIN) {
            self.pages[page].lent = true;
        }
    }

    /// A connection to which pages were lent has ended: pages lent until now are not used again after this owner, and
    /// their buffers get others. What is in them stays as it is until the buffer is released.
    pub fn give_up_lent(&mut self) {
        let mut index = 0;
        while index < self.pages.len() {
            let Page { order, state, .. } = self.pages[index];
            let block = index..index + (1 << order);
            if self.pages[block.clone()].iter().any(|page| page.lent) {
                if state == PageState::Used {
                    self.pages[index].given_up = true;
                } else if !self.exchange_lent(index as u32, usize::from(order)) {
                    self.unlink_free(index as u32, usize::from(order));
                    self.pages[index].state = PageState::Used;
                }
            }
            index = block.end;
        }
    }

    /// Whether the memory of a buffer was given up: it may be looked at, but not be filled with anything new.
    #[must_use]
    pub fn is_given_up(&self, buffer: BufferHandle) -> bool {
        self.page(buffer).given_up
    }

    /// Makes a buffer that was given up and has one owner fit to be filled again, with other memory in the place of what was
    /// lent. False if the kernel does not: the buffer must be released.
    pub fn renew(&mut self, buffer: BufferHandle) -> bool {
        let Page { references, kernel_reads, kernel_writes, order, .. } = *self.page(buffer);
        if references > 1 || kernel_reads > 0 || kernel_writes > 0 {
            return false;
        }
        let renewed = self.exchange_lent(buffer.page(), usize::from(order));
        self.page_mut(buffer).given_up = !renewed;
        renewed
    }

    /// Gives whole pages of a buffer other memory, which is zero. False if the kernel does not: they must not be used.
    ///
    /// # Panics
    /// If the part is not whole pages, or the kernel is working on the buffer.
    pub fn exchange(&mut self, slice: BufferSlice) -> bool {
        let page = self.page(slice.buffer);
        assert!(page.kernel_writes == 0 && page.kernel_reads == 0, "{:?} is with the kernel", slice.buffer);
        let position = self.position(slice);
        let bytes = slice.length as usize;
        assert!((position | bytes).is_multiple_of(BUFFER_BYTES_MIN), "{slice:?} is not whole pages");
        self.exchange_memory(position, bytes)
    }

    fn exchange_memory(&mut self, position: usize, bytes: usize) -> bool {
        let version = &mut self.versions[position / BUFFER_BYTES_MAX];
        *version = version.wrapping_add(1);
        self.memory.exchange(position, bytes)
    }

    /// The block of 1 MiB a buffer lies in.
    pub(crate) fn chunk(&self, buffer: BufferHandle) -> Chunk {
        let number = buffer.page() as usize / PAGES_PER_CHUNK;
        let start = self.memory.pointer(number * BUFFER_BYTES_MAX, BUFFER_BYTES_MAX);
        Chunk { number, version: self.versions[number], start }
    }

    /// Gives the lent pages of a block nobody uses other memory. False if the kernel does not.
    fn exchange_lent(&mut self, index: u32, order: usize) -> bool {
        for page in index as usize..index as usize + (1 << order) {
            if self.pages[page].lent {
                if !self.exchange_memory(page * BUFFER_BYTES_MIN, BUFFER_BYTES_MIN) {
                    return false;
                }
                self.pages[page].lent = false;
            }
        }
        true
    }

    /// The size of a buffer in bytes.
    #[must_use]
    pub fn capacity(&self, buffer: BufferHandle) -> usize {
        BUFFER_BYTES_MIN << self.page(buffer).order
    }

    /// The bytes of a part of a buffer.
    ///
    /// # Panics
    /// If the handle is stale, the part is outside of the buffer, or the kernel is writing to the buffer.
    #[must_use]
    pub fn bytes(&self, slice: BufferSlice) -> &[u8] {
        let page = self.page(slice.buffer);
        assert!(page.kernel_writes == 0, "{:?} is being filled by the kernel", slice.buffer);
        self.memory.bytes(self.position(slice), slice.length as usize)
    }

    /// The bytes of a part of a buffer, to be changed.
    ///
    /// # Panics
    /// If the handle is stale, the part is outside of the buffer, or the kernel is working on the buffer.
    #[must_use]
    pub fn bytes_mut(&mut self, slice: BufferSlice) -> &mut [u8] {
        let page = self.page(slice.buffer);
        assert!(page.kernel_writes == 0 && page.kernel_reads == 0, "{:?} is with the kernel", slice.buffer);
        let position = self.position(slice);
        self.memory.bytes_mut(position, slice.length as usize)
    }

    /// Copies a part of a buffer into an equally long part of another.
    ///
    /// # Panics
    /// If the lengths differ, both are the same buffer, or one of them may not be looked at or changed.
    pub fn copy(&mut self, from: BufferSlice, to: BufferSlice) {
        assert!(from.length == to.length && from.buffer != to.buffer);
        let source = self.page(from.buffer);
        assert!(source.kernel_writes == 0, "{:?} is being filled by the kernel", from.buffer);
        let target = self.page(to.buffer);
        assert!(target.kernel_writes == 0 && target.kernel_reads == 0, "{:?} is with the kernel", to.buffer);
        let (from_position, to_position) = (self.position(from), self.position(to));
        let length = from.length as usize;
        self.memory.copy(from_position, to_position, length);
    }

    /// Bytes in buffers that are not free.
    #[must_use]
    pub const fn used_bytes(&self) -> usize {
        self.used_bytes
    }

    /// The most that was ever in use at once, in bytes.
    #[must_use]
    pub const fn used_bytes_peak(&self) -> usize {
        self.used_bytes_peak
    }

    /// How many buffers were ever freed: who found the pool empty tries again when this has changed.
    #[must_use]
    pub const fn freed(&self) -> u64 {
        self.freed
    }

    /// How many owners a buffer has, the kernel included.
    #[must_use]
    pub fn references(&self, buffer: BufferHandle) -> u32 {
        self.page(buffer).references
    }

    /// Whether the kernel reads or writes the memory of a buffer.
    #[must_use]
    pub fn is_with_kernel(&self, buffer: BufferHandle) -> bool {
        let page = self.page(buffer);
        page.kernel_reads > 0 || page.kernel_writes > 0
    }

    /// Upper limit of all buffers together, in bytes.
    #[must_use]
    pub fn total_bytes(&self) -> usize {
        self.pages.len() * BUFFER_BYTES_MIN
    }

    /// Hands a part of a buffer to the kernel: adds a reference, and forbids what would race with the kernel
    /// until [`BufferPool::unpin`].
    pub(crate) fn pin(&mut self, slice: BufferSlice, access: KernelAccess) -> *mut u8 {
        let position = self.position(slice);
        let page = self.page_mut(slice.buffer);
        page.references += 1;
        match access {
            KernelAccess::Reads => page.kernel_reads += 1,
            KernelAccess::Writes => page.kernel_writes += 1,
        }
        self.memory.pointer(position, slice.length as usize)
    }

    /// The address of a part of a buffer that is pinned already, for the rest of a transfer.
    pub(crate) fn pinned_pointer(&self, slice: BufferSlice) -> *mut u8 {
        let page = self.page(slice.buffer);
        assert!(page.kernel_reads > 0 || page.kernel_writes > 0);
        self.memory.pointer(self.position(slice), slice.length as usize)
    }

    /// Takes a part of a buffer back from the kernel.
    pub(crate) fn unpin(&mut self, slice: BufferSlice, access: KernelAccess) {
        let page = self.page_mut(slice.buffer);
        match access {
            KernelAccess::Reads => page.kernel_reads -= 1,
            KernelAccess::Writes => page.kernel_writes -= 1,
        }
        self.release(slice.buffer);
    }

    /// Gives the memory up without unmapping it, because the kernel may still write to it.
    pub(crate) fn leak(self) {
        self.memory.leak();
    }

    fn page(&self, buffer: BufferHandle) -> &Page {
        let page = &self.pages[buffer.page() as usize];
        assert!(page.generation == buffer.generation() && page.references > 0, "{buffer:?} was released");
        page
    }

    fn page_mut(&mut self, buffer: BufferHandle) -> &mut Page {
        let page = &mut self.pages[buffer.page() as usize];
        assert!(page.generation == buffer.generation() && page.references > 0, "{buffer:?} was released");
        page
    }

    fn position(&self, slice: BufferSlice) -> usize {
        let end = slice.offset as usize + slice.length as usize;
        assert!(end <= self.capacity(slice.buffer), "{slice:?} ends outside of its buffer");
        slice.buffer.page() as usize * BUFFER_BYTES_MIN + slice.offset as usize
    }

    fn push_free(&mut self, index: u32, order: usize) {
        self.whole_chunks += usize::from(order == ORDERS - 1);
        let head = self.free[order];
        let page = &mut self.pages[index as usize];
        page.state = PageState::Free;
        page.order = order as u8;
        page.previous = NIL;
        page.next = head;
        if head != NIL {
            self.pages[head as usize].previous = index;
        }
        self.free[order] = index;
    }

    fn unlink_free(&mut self, index: u32, order: usize) {
        let Page { next, previous, state, .. } = self.pages[index as usize];
        assert!(state == PageState::Free);
        self.whole_chunks -= usize::from(order == ORDERS - 1);
        if previous == NIL {
            self.free[order] = next;
        } else {
            self.pages[previous as usize].next = next;
        }
        if next != NIL {
            self.pages[next as usize].previous = previous;
        }
        self.pages[index as usize].state = PageState::Inside;
    }

    /// Frees a block, joining it with its buddy as long as that one is free as a whole.
    fn merge_free(&mut self, mut index: u32, mut order: usize) {
        self.pages[index as usize].state = PageState::Inside;
        while order + 1 < ORDERS {
            let buddy = index ^ (1 << order);
            let Page { state, order: buddy_order, .. } = self.pages[buddy as usize];
            if state != PageState::Free || usize::from(buddy_order) != order {
                break;
            }
            self.unlink_free(buddy, order);
            index &= !(1 << order);
            order += 1;
        }
        self.push_free(index, order);
    }
}

fn order_of(bytes: usize) -> usize {
    let pages = bytes.div_ceil(BUFFER_BYTES_MIN).max(1);
    pages.next_power_of_two().trailing_zeros() as usize
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pool(mebibytes: usize) -> BufferPool {
        BufferPool::new(PoolOptions { bytes: mebibytes << 20, lock: false }).unwrap()
    }

    #[test]
    fn a_buffer_is_page_aligned_and_rounded_up_to_a_power_of_two() {
        let mut pool = pool(1);
        for (asked, given) in [(1, 4096), (4096, 4096), (4097, 8192), (70_000, 131_072)] {
            let buffer = pool.allocate(asked).unwrap();
            assert_eq!(pool.capacity(buffer), given);
            assert_eq!(pool.bytes(buffer.slice(0, 1)).as_ptr() as usize % BUFFER_BYTES_MIN, 0);
            pool.release(buffer);
        }
        assert_eq!(pool.used_bytes(), 0);
    }

    #[test]
    fn what_is_freed_in_any_order_becomes_one_large_block_again() {
        let mut pool = pool(1);
        let mut small: Vec<_> = (0..PAGES_PER_CHUNK).map(|_| pool.allocate(1).unwrap()).collect();
        assert!(pool.allocate(1).is_none());
        while !small.is_empty() {
            let middle = small.len() / 2;
            pool.release(small.swap_remove(middle));
        }
        assert!(pool.allocate(BUFFER_BYTES_MAX).is_some());
    }

    #[test]
    fn a_buffer_with_two_owners_is_freed_by_the_second() {
        let mut pool = pool(1);
        let buffer = pool.allocate(BUFFER_BYTES_MAX).unwrap();
        pool.retain(buffer);
        pool.release(buffer);
        assert!(pool.allocate(1).is_none());
        pool.release(buffer);
        assert!(pool.allocate(1).is_some());
    }

    #[test]
    fn a_reserve_of_whole_blocks_is_left_however_small_the_requests() {
        let mut pool = pool(4);
        let small: Vec<_> = std::iter::from_fn(|| pool.allocate_leaving(1, 2)).collect();
        assert_eq!(small.len(), 2 * PAGES_PER_CHUNK);
        let large: Vec<_> = std::iter::from_fn(|| pool.allocate(BUFFER_BYTES_MAX)).collect();
        assert_eq!(large.len(), 2);
        for buffer in small.into_iter().chain(large) {
            pool.release(buffer);
        }
        assert!(pool.allocate_leaving(1, 3).is_some());
        assert!(pool.allocate_leaving(BUFFER_BYTES_MAX, 3).is_none());
    }

    #[test]
    fn a_pool_that_grows_keeps_what_is_in_it() {
        let mut pool = pool(1);
        let old = pool.allocate(BUFFER_BYTES_MAX).unwrap();
        pool.bytes_mut(old.slice(0, 4096)).fill(7);
        assert!(pool.allocate(1).is_none());
        pool.grow(2).unwrap();
        let new: Vec<_> = std::iter::from_fn(|| pool.allocate(BUFFER_BYTES_MAX)).collect();
        assert_eq!(new.len(), 2);
        pool.copy(old.slice(0, 4096), new[1].slice(4096, 4096));
        assert!(pool.bytes(new[1].slice(4096, 4096)).iter().all(|&byte| byte == 7));
        assert_eq!(pool.grow(1 << 10), Err(Errno::EINVAL));
    }

    #[test]
    #[should_panic(expected = "was released")]
    fn a_stale_handle_is_caught() {
        let mut pool = pool(1);
        let buffer = pool.allocate(1).unwrap();
        pool.release(buffer);
        let again = pool.allocate(1).unwrap();
        assert_eq!(again.page(), buffer.page());
        let _ = pool.bytes(buffer.slice(0, 1));
    }

    #[test]
    #[should_panic(expected = "being filled by the kernel")]
    fn what_the_kernel_fills_cannot_be_read() {
        let mut pool = pool(1);
        let buffer = pool.allocate(1).unwrap();
        pool.pin(buffer.slice(0, 512), KernelAccess::Writes);
        let _ = pool.bytes(buffer.slice(512, 512));
    }

    #[test]
    fn a_buffer_released_while_the_kernel_has_it_stays_until_the_kernel_is_done() {
        let mut pool = pool(1);
        let buffer = pool.allocate(BUFFER_BYTES_MAX).unwrap();
        let slice = buffer.slice(0, 4096);
        pool.pin(slice, KernelAccess::Reads);
        pool.release(buffer);
        assert!(pool.allocate(1).is_none());
        pool.unpin(slice, KernelAccess::Reads);
        assert!(pool.allocate(1).is_some());
    }

    #[test]
    fn lent_pages_that_are_given_up_are_never_used_again() {
        // The daemon has its memory locked.
        for lock in [false, true] {
            lend_and_give_up(BufferPool::new(PoolOptions { bytes: 1 << 20, lock }).unwrap());
        }
    }

    fn lend_and_give_up(mut pool: BufferPool) {
        use std::os::fd::AsFd;
        let (reader, writer) = nix::unistd::pipe().unwrap();
        let used = pool.allocate(8192).unwrap();
        let (first, second) = (used.slice(0, 4096), used.slice(4096, 4096));
        pool.bytes_mut(used.slice(0, 8192)).fill(1);
        let free = pool.allocate(4096).unwrap();
        pool.bytes_mut(free.slice(0, 4096)).fill(2);
        for slice in [first, free.slice(0, 4096)] {
            let pieces = [std::io::IoSlice::new(pool.bytes(slice))];
            let flags = nix::fcntl::SpliceFFlags::empty();
            assert_eq!(nix::fcntl::vmsplice(writer.as_fd(), &pieces, flags), Ok(4096));
            pool.lend(slice);
        }
        pool.release(free);
        pool.give_up_lent();
        assert!(pool.is_given_up(used));
        assert!(pool.bytes(first).iter().all(|&byte| byte == 1));
        pool.release(used);
        let again = pool.allocate(BUFFER_BYTES_MAX).unwrap();
        assert!(!pool.is_given_up(again));
        assert!(pool.bytes(again.slice(4096, 4096)).iter().all(|&byte| byte == 1), "was not lent");
        pool.bytes_mut(again.slice(0, 65_536)).fill(9);
        let mut sent = [0; 8192];
        let mut got = 0;
        while got < sent.len() {
            got += nix::unistd::read(&reader, &mut sent[got..]).unwrap();
        }
        assert!(sent[..4096].iter().all(|&byte| byte == 1) && sent[4096..].iter().all(|&byte| byte == 2));
        assert_eq!(second.offset, 4096);
    }

    #[test]
    fn a_handle_survives_the_trip_through_a_number() {
        let mut pool = pool(2);
        let first = pool.allocate(1).unwrap();
        pool.release(first);
        let buffer = pool.allocate(1).unwrap();
        assert_eq!(BufferHandle::from_raw(buffer.into_raw()), buffer);
    }

    proptest! {
        /// Blocks never overlap, whatever is taken and given back in whatever order.
        #[test]
        fn blocks_in_use_never_overlap(steps in prop::collection::vec((any::<bool>(), 0..=BUFFER_BYTES_MAX, any::<prop::sample::Index>()), 1..400)) {
            let mut pool = pool(3);
            let mut live: Vec<(BufferHandle, u8)> = Vec::new();
            let mut mark = 0u8;
            for (take, bytes, which) in steps {
                if take || live.is_empty() {
                    if let Some(buffer) = pool.allocate(bytes) {
                        mark = mark.wrapping_add(1);
                        let all = buffer.slice(0, pool.capacity(buffer) as u32);
                        pool.bytes_mut(all).fill(mark);
                        live.push((buffer, mark));
                    }
                } else {
                    let (buffer, mark) = live.swap_remove(which.index(live.len()));
                    let all = buffer.slice(0, pool.capacity(buffer) as u32);
                    prop_assert!(pool.bytes(all).iter().all(|&byte| byte == mark));
                    pool.release(buffer);
                }
            }
            for (buffer, _) in live {
                pool.release(buffer);
            }
            prop_assert_eq!(pool.used_bytes(), 0);
            prop_assert_eq!(pool.whole_chunks, 3);
            for _ in 0..3 {
                prop_assert!(pool.allocate(BUFFER_BYTES_MAX).is_some());
            }
        }
    }
}
