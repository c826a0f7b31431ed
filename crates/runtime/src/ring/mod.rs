//! One io_uring for everything an engine thread waits for.
//!
//! Submissions carry a token of the caller's own type and come back as [`Completion`]s. The kernel keeps no
//! reference to anything but pool buffers (pinned, see [`crate::buffers`]) and open files (kept open by the
//! operation itself), so nothing a caller drops or closes can be touched by a late operation, and a file
//! descriptor number is never reused under one.
//!
//! Disk transfers are finished here: a short transfer is continued, an interrupted one repeated, and the caller
//! sees one completion for the whole (io spec 5.6: any error is an error of the whole request).
//!
//! The ring is set up as measured in the runtime spec 10.1: single issuer, deferred task work, no polling
//! thread; each flag is left out where the kernel does not know it. Waiting with a deadline needs no timeout
//! operation: the deadline is an argument of the wait itself.

#[cfg_attr(not(feature = "ublk"), allow(dead_code, reason = "only block devices have such pages"))]
mod pages;
mod pending;
mod table;

use std::collections::VecDeque;
use std::fmt::Debug;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use io_uring::{IoUring, cqueue, opcode, squeue, types};
use udrbd_units::Sector;

use crate::Errno;
use crate::buffers::{BufferHandle, BufferPool, BufferSlice, KernelAccess, PoolOptions};
use pages::Pages;
#[cfg(feature = "ublk")]
pub(crate) use pending::RequestData;
use pending::{Pending, Slots, Work, ZEROES_BYTES};
use table::Table;

/// An open file that operations in flight keep open. Dropping the last clone closes it.
pub type Descriptor = Arc<OwnedFd>;

/// How large the queues are.
#[derive(Clone, Copy, Debug)]
pub struct RingOptions {
    /// Entries of the submission queue; a full one is submitted early, never an error.
    pub submissions: u32,
    /// Entries of the completion queue.
    pub completions: u32,
    /// The payload memory of this ring.
    pub pool: PoolOptions,
}

impl Default for RingOptions {
    fn default() -> Self {
        Self { submissions: 512, completions: 4096, pool: PoolOptions::default() }
    }
}

/// Names one operation in flight, to cancel it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OperationId(u64);

/// What an operation came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion<T> {
    /// The caller's token of the submission.
    pub token: T,
    /// The operation, as named at submission.
    pub operation: OperationId,
    /// Bytes moved (disk transfers: always all), or the events of a poll; or why it failed.
    pub result: Result<u32, Errno>,
}

/// What a disk write promises when it completes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Durability {
    /// The data may be in the device's volatile cache.
    #[default]
    Cached,
    /// The data itself is on stable storage (FUA).
    Forced,
    /// Everything completed before is on stable storage first, then the data itself (PREFLUSH and FUA).
    FlushedAndForced,
}

/// How a range is made to read as zeroes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Zeroing {
    /// Discard; where the device cannot, write zeroes and let it unmap ("trim" of io spec 10.2).
    Discard,
    /// Write zeroes; the device may unmap.
    MayUnmap,
    /// Write zeroes; the space stays allocated.
    KeepAllocated,
}

/// Whether a descriptor is a block device or a regular file: the two differ in how they discard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StorageKind {
    /// A block device.
    BlockDevice,
    /// A regular file.
    RegularFile,
}

/// The events a poll waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// There is something to read, a connection to accept, or the end.
    Readable,
    /// There is room to write, or a connect has ended.
    Writable,
}

/// The ring, its operations in flight, and the payload memory they use.
pub struct Ring<T: Copy + Debug> {
    uring: IoUring,
    buffers: Option<BufferPool>,
    /// `None` until a block device has room in the ring's table of buffers.
    pages: Option<Pages>,
    table: Table,
    slots: Slots<T>,
    /// Entries that did not fit into the submission queue.
    backlog: VecDeque<squeue::Entry>,
    reaped: Vec<cqueue::Entry>,
    /// What was done without the ring since the last wait.
    done_inline: Vec<Completion<T>>,
    /// The kernel can be told that a receive has to wait, so that it does not look first (Linux 5.19).
    can_poll_first: bool,
    /// Reads or writes of disks were queued since the kernel last took what is queued.
    transfers_queued: bool,
}

/// `IORING_RECVSEND_POLL_FIRST`: wait for input before trying to take it.
const RECEIVE_POLL_FIRST: u16 = 1;

/// The name of operations done inline: there is nothing to cancel.
const INLINE: OperationId = OperationId(u64::MAX);

impl<T: Copy + Debug> Ring<T> {
    /// Makes the ring and maps its payload memory. Must be called on the thread that will use it.
    ///
    /// # Errors
    /// `ENOSYS` or `EPERM` where io_uring is absent or forbidden, `ENOMEM` when memory cannot be had or, with
    /// [`PoolOptions::lock`], not be locked.
    pub fn new(options: RingOptions) -> Result<Self, Errno> {
        let uring = setup(options).map_err(errno_of)?;
        let features = uring.params();
        if !features.is_feature_ext_arg() || !features.is_feature_nodrop() {
            // Waiting with a deadline (5.11) and completions that are never dropped (5.5) are relied upon.
            return Err(Errno::ENOSYS);
        }
        // Single issuer is newer (6.0).
        let can_poll_first = features.is_setup_single_issuer();
        let table = Table::new(&uring);
        Ok(Self {
            uring,
            table,
            buffers: Some(BufferPool::new(options.pool)?),
            pages: None,
            slots: Slots::default(),
            backlog: VecDeque::new(),
            reaped: Vec::with_capacity(options.completions as usize),
            done_inline: Vec::with_capacity(256),
            can_poll_first,
            transfers_queued: false,
        })
    }

    /// The payload memory, to look at.
    #[must_use]
    pub fn buffers(&self) -> &BufferPool {
        let Some(buffers) = &self.buffers else { unreachable!("only drop takes the pool away") };
        buffers
    }

    fn pool(&mut self) -> &mut BufferPool {
        let Some(buffers) = &mut self.buffers else { unreachable!("only drop takes the pool away") };
        buffers
    }

    /// See [`BufferPool::allocate`].
    pub fn allocate(&mut self, bytes: usize) -> Option<BufferHandle> {
        self.pool().allocate(bytes)
    }

    /// See [`BufferPool::allocate_leaving`].
    pub fn allocate_leaving(&mut self, bytes: usize, reserve_mebibytes: usize) -> Option<BufferHandle> {
        self.pool().allocate_leaving(bytes, reserve_mebibytes)
    }

    /// See [`BufferPool::grow`].
    ///
    /// # Errors
    /// As there.
    pub fn grow(&mut self, mebibytes: usize) -> Result<(), Errno> {
        self.pool().grow(mebibytes)
    }

    /// See [`BufferPool::retain`].
    pub fn retain(&mut self, buffer: BufferHandle) {
        self.pool().retain(buffer);
    }

    /// See [`BufferPool::release`].
    pub fn release(&mut self, buffer: BufferHandle) {
        self.pool().release(buffer);
    }

    /// See [`BufferPool::bytes`].
    #[must_use]
    pub fn bytes(&self, slice: BufferSlice) -> &[u8] {
        self.buffers().bytes(slice)
    }

    /// See [`BufferPool::bytes_mut`].
    #[must_use]
    pub fn bytes_mut(&mut self, slice: BufferSlice) -> &mut [u8] {
        self.pool().bytes_mut(slice)
    }

    /// Copies between two different buffers.
    pub fn copy(&mut self, from: BufferSlice, to: BufferSlice) {
        self.pool().copy(from, to);
    }

    /// See [`BufferPool::lend`].
    pub fn lend(&mut self, slice: BufferSlice) {
        self.pool().lend(slice);
    }

    /// See [`BufferPool::renew`].
    pub fn renew(&mut self, buffer: BufferHandle) -> bool {
        self.pool().renew(buffer)
    }

    /// See [`BufferPool::exchange`].
    pub fn exchange(&mut self, slice: BufferSlice) -> bool {
        self.pool().exchange(slice)
    }

    /// See [`BufferPool::give_up_lent`].
    pub fn give_up_lent(&mut self) {
        self.pool().give_up_lent();
    }

    /// Operations the kernel has not answered yet.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.slots.len()
    }

    /// Reads `slice.length` bytes at `start`. Reading over the end of a regular file is `EIO`: the device the
    /// metadata describes is larger than the file. Where the buffer is that of a block device's request, the data may go to the
    /// request's own pages, and not to the buffer; see [`Ring::use_own_memory`].
    pub fn read(&mut self, file: &Descriptor, start: Sector, slice: BufferSlice, token: T) -> OperationId {
        self.pool().pin(slice, KernelAccess::Writes);
        let pages = self.pages.as_ref().and_then(|pages| pages.of(slice.buffer));
        self.submit(file, token, Work::Read { slice, start: start.bytes(), done: 0, pages })
    }

    /// Writes a part of a buffer at `start`.
    pub fn write(
        &mut self,
        file: &Descriptor,
        start: Sector,
        slice: BufferSlice,
        durability: Durability,
        token: T,
    ) -> OperationId {
        self.pool().pin(slice, KernelAccess::Reads);
        let forced = durability != Durability::Cached;
        let flush_first = durability == Durability::FlushedAndForced;
        self.submit(file, token, Work::Write { slice, start: start.bytes(), done: 0, forced, flush_first })
    }

    /// As [`Ring::read`], at once instead of through the ring: for files in memory, which never make anybody wait, while
    /// the ring would hand each transfer to a thread of its own. The next [`Ring::wait`] tells the completion.
    pub fn read_inline(
        &mut self,
        file: &Descriptor,
        start: Sector,
        slice: BufferSlice,
        token: T,
    ) -> OperationId {
        self.use_own_memory(slice.buffer);
        let bytes = self.bytes_mut(slice);
        let result = inline_transfer(bytes.len(), |done| {
            nix::sys::uio::pread(file.as_fd(), &mut bytes[done..], (start.bytes() + done as u64) as i64)
        });
        self.done_inline.push(Completion { token, operation: INLINE, result });
        INLINE
    }

    /// As [`Ring::write`], at once; see [`Ring::read_inline`].
    pub fn write_inline(
        &mut self,
        file: &Descriptor,
        start: Sector,
        slice: BufferSlice,
        token: T,
    ) -> OperationId {
        let bytes = self.bytes(slice);
        let result = inline_transfer(bytes.len(), |done| {
            nix::sys::uio::pwrite(file.as_fd(), &bytes[done..], (start.bytes() + done as u64) as i64)
        });
        self.done_inline.push(Completion { token, operation: INLINE, result });
        INLINE
    }

    /// Puts everything completed before on stable storage (`fdatasync`; for a block device a cache flush).
    pub fn sync(&mut self, file: &Descriptor, token: T) -> OperationId {
        self.submit(file, token, Work::Sync)
    }

    /// Completes without doing anything: for a flush of a device that has nothing to flush.
    pub fn nothing(&mut self, file: &Descriptor, token: T) -> OperationId {
        self.submit(file, token, Work::Nothing)
    }

    /// Makes `bytes` bytes at `start` read as zeroes. Where the device lacks the asked way, the next slower one
    /// is taken, down to writing zeroes, so that both replicas always end up with the same content.
    pub fn zero(
        &mut self,
        (file, kind): (&Descriptor, StorageKind),
        start: Sector,
        bytes: u64,
        zeroing: Zeroing,
        token: T,
    ) -> OperationId {
        let way = pending::first_way(kind, zeroing);
        self.submit(file, token, Work::Zero { way, start: start.bytes(), bytes, done: 0 })
    }

    /// Receives into a part of a buffer; with `whole`, waits until the part is full or the stream ends. `empty`: nothing
    /// is expected to be there yet.
    pub(crate) fn receive(
        &mut self,
        socket: &Descriptor,
        slice: BufferSlice,
        (whole, empty): (bool, bool),
        token: T,
    ) -> OperationId {
        self.pool().pin(slice, KernelAccess::Writes);
        self.submit(socket, token, Work::Receive { slice, whole, empty })
    }

    /// Waits until a file is ready; completes once, with the events (`POLLIN` and its like) as the result.
    pub fn poll(&mut self, file: &Descriptor, readiness: Readiness, token: T) -> OperationId {
        let events = match readiness {
            Readiness::Readable => libc::POLLIN,
            Readiness::Writable => libc::POLLOUT,
        };
        self.submit(file, token, Work::Poll { events: events as u32 })
    }

    /// Sees to it that reads into this buffer leave their data there, also where it is that of a block device's request.
    pub fn use_own_memory(&mut self, buffer: BufferHandle) {
        if let Some(pages) = &mut self.pages {
            pages.take(buffer);
        }
    }

    /// Room for `count` entries in the ring's table of buffers; the first one's number. `None` where there is none left, or
    /// the kernel has no such table.
    #[cfg(feature = "ublk")]
    pub(crate) fn reserve_pages(&mut self, count: u16) -> Option<u16> {
        if !self.table.exists() {
            return None;
        }
        self.pages.get_or_insert_default().reserve(count)
    }

    /// Gives back what [`Ring::reserve_pages`] gave.
    #[cfg(feature = "ublk")]
    pub(crate) fn free_pages(&mut self, first: u16) {
        if let Some(pages) = &mut self.pages {
            pages.free(first);
        }
    }

    /// From now on reads into this buffer go to the pages of an entry.
    #[cfg(feature = "ublk")]
    pub(crate) fn lend_pages(&mut self, buffer: BufferHandle, entry: u16) {
        if let Some(pages) = &mut self.pages {
            pages.lend(buffer, entry);
        }
    }

    /// Ends that. True if it still was so: what was read into the buffer is in the pages, and not in the buffer.
    #[cfg(feature = "ublk")]
    pub(crate) fn take_pages(&mut self, buffer: BufferHandle) -> bool {
        self.pages.as_mut().is_some_and(|pages| pages.take(buffer).is_some())
    }

    /// A command of a ublk queue (number 0): the answer to the last request of a tag goes out, and the completion is
    /// the next request. The kernel has the part of the buffer all the while.
    #[cfg(feature = "ublk")]
    pub(crate) fn block_request(
        &mut self,
        device: &Descriptor,
        command: u32,
        (tag, result): (u16, i32),
        data: RequestData,
        token: T,
    ) -> OperationId {
        if let RequestData::Copied(slice) = data {
            self.pool().pin(slice, KernelAccess::Writes);
        }
        self.submit(device, token, Work::BlockRequest { command, tag, result, data })
    }

    /// Asks the kernel to give an operation up. It completes all the same: with `ECANCELED`, or with its result
    /// if it was faster. A disk transfer that the device has already taken cannot be cancelled.
    pub fn cancel(&mut self, operation: OperationId) {
        if self.slots.contains(operation.0) {
            let id = self.slots.insert(Pending { token: None, file: None, work: Work::Cancel });
            self.push(opcode::AsyncCancel::new(operation.0).build().user_data(id));
        }
    }

    /// Submits what is queued, sleeps until there is a completion or `timeout` has passed (`None`: for ever), and
    /// appends all completions there are to `completions`, in the kernel's order. Returning with none is normal.
    ///
    /// # Errors
    /// Only those that mean the ring itself is unusable.
    pub fn wait(
        &mut self,
        timeout: Option<Duration>,
        completions: &mut Vec<Completion<T>>,
    ) -> Result<(), Errno> {
        self.drain_backlog();
        let work_is_left = !self.backlog.is_empty() || !self.done_inline.is_empty();
        let timeout = if work_is_left { Some(Duration::ZERO) } else { timeout };
        let entered = match timeout {
            None => self.uring.submit_and_wait(1),
            Some(timeout) => {
                let limit = types::Timespec::from(timeout);
                let arguments = types::SubmitArgs::new().timespec(&limit);
                self.uring.submitter().submit_with_args(1, &arguments)
            }
        };
        self.transfers_queued = false;
        match entered.map_err(errno_of) {
            // EBUSY and EAGAIN: the completion queue is full or memory is short; reaping helps.
            Ok(_) | Err(Errno::ETIME | Errno::EINTR | Errno::EBUSY | Errno::EAGAIN) => {}
            Err(error) => return Err(error),
        }
        self.reap(completions);
        completions.append(&mut self.done_inline);
        Ok(())
    }

    /// Appends the completions of what was done inline, ahead of the next [`Ring::wait`]: what comes of them can leave
    /// together with what caused them. Returns whether there were any.
    pub fn take_inline(&mut self, completions: &mut Vec<Completion<T>>) -> bool {
        let any = !self.done_inline.is_empty();
        completions.append(&mut self.done_inline);
        any
    }

    /// Whether reads or writes of disks wait for the next [`Ring::wait`] to begin.
    #[must_use]
    pub const fn has_queued_transfers(&self) -> bool {
        self.transfers_queued
    }

    /// Hands queued submissions to the kernel without waiting. [`Ring::wait`] does it too; this is for work that
    /// should start before the caller goes on computing.
    pub fn submit_now(&mut self) {
        // A refusal (completion queue full, memory short) leaves the entries queued for the next wait.
        let _ = self.uring.submit();
    }

    fn reap(&mut self, completions: &mut Vec<Completion<T>>) {
        let mut reaped = std::mem::take(&mut self.reaped);
        reaped.extend(self.uring.completion());
        for entry in reaped.drain(..) {
            self.complete(entry.user_data(), entry.result(), completions);
        }
        self.reaped = reaped;
    }

    fn complete(&mut self, id: u64, result: i32, completions: &mut Vec<Completion<T>>) {
        let Some(mut pending) = self.slots.remove(id) else {
            unreachable!("the kernel completed an operation that was never submitted")
        };
        let result = if result < 0 { Err(Errno::from_raw(-result)) } else { Ok(result as u32) };
        match pending.work.advance(result) {
            pending::Step::Again => {
                if let Work::Read { slice, pages: None, .. } = pending.work {
                    self.use_own_memory(slice.buffer);
                }
                // The slot keeps its number so that a cancel by id still finds the operation.
                self.slots.restore(id, pending);
                self.start(id);
            }
            pending::Step::Done(result) => {
                if let Some((slice, access)) = pending.work.pinned() {
                    self.pool().unpin(slice, access);
                }
                if let Some(token) = pending.token {
                    completions.push(Completion { token, operation: OperationId(id), result });
                }
            }
        }
    }

    fn submit(&mut self, file: &Descriptor, token: T, work: Work) -> OperationId {
        let id = self.slots.insert(Pending { token: Some(token), file: Some(Arc::clone(file)), work });
        self.start(id);
        OperationId(id)
    }

    /// Queues the next system call of an operation.
    fn start(&mut self, id: u64) {
        let Some(&Pending { file: Some(ref file), work, .. }) = self.slots.get(id) else {
            unreachable!("started operations have a slot and a file")
        };
        let fd = types::Fd(file.as_raw_fd());
        self.transfers_queued |= matches!(work, Work::Read { .. } | Work::Write { .. });
        let entry = match work {
            Work::Write { flush_first: true, .. } | Work::Sync => {
                opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build()
            }
            Work::Read { slice, start, done, pages: Some(entry) } => {
                // Addresses in the pages of a request count from 0.
                let place = std::ptr::without_provenance_mut((slice.offset + done) as usize);
                opcode::ReadFixed::new(fd, place, slice.length - done, entry)
                    .offset(start + u64::from(done))
                    .build()
            }
            Work::Read { slice, start, done, pages: None } => {
                let rest = slice.part(done, slice.length - done);
                let pointer = self.buffers().pinned_pointer(rest);
                let offset = start + u64::from(done);
                match self.table_entry(slice.buffer) {
                    Some(entry) => {
                        opcode::ReadFixed::new(fd, pointer, rest.length, entry).offset(offset).build()
                    }
                    None => opcode::Read::new(fd, pointer, rest.length).offset(offset).build(),
                }
            }
            Work::Write { slice, start, done, forced, .. } => {
                let rest = slice.part(done, slice.length - done);
                let pointer = self.buffers().pinned_pointer(rest);
                let flags = if forced { libc::RWF_DSYNC } else { 0 };
                let offset = start + u64::from(done);
                match self.table_entry(slice.buffer) {
                    Some(entry) => opcode::WriteFixed::new(fd, pointer, rest.length, entry)
                        .offset(offset)
                        .rw_flags(flags)
                        .build(),
                    None => {
                        opcode::Write::new(fd, pointer, rest.length).offset(offset).rw_flags(flags).build()
                    }
                }
            }
            Work::Zero { way, start, bytes, done } => {
                pending::zero_entry(fd, way, start + done, bytes - done)
            }
            Work::Receive { slice, whole, empty } => {
                let pointer = self.buffers().pinned_pointer(slice);
                let flags = if whole { libc::MSG_WAITALL } else { 0 };
                let how = if empty && self.can_poll_first { RECEIVE_POLL_FIRST } else { 0 };
                opcode::Recv::new(fd, pointer, slice.length).flags(flags).ioprio(how).build()
            }
            Work::Nothing => opcode::Nop::new().build(),
            Work::Poll { events } => opcode::PollAdd::new(fd, events).build(),
            #[cfg(feature = "ublk")]
            Work::BlockRequest { command, tag, result, data: RequestData::Copied(slice) } => {
                let address = self.buffers().pinned_pointer(slice) as u64;
                let words = crate::ublk::command_words(tag, result, address);
                opcode::UringCmd16::new(fd, command).cmd(words).build()
            }
            #[cfg(feature = "ublk")]
            Work::BlockRequest { command, tag, result, data: RequestData::Pages(entry) } => {
                let words = crate::ublk::command_words(tag, result, 0);
                let registration = crate::ublk::registration_of(entry);
                opcode::UringCmd16::new(fd, command).cmd(words).addr(Some(registration)).build()
            }
            Work::Cancel => unreachable!("a cancel is queued by itself"),
        };
        self.push(entry.user_data(id));
    }

    /// The entry of the kernel's table of buffers that a buffer lies in, if it does.
    fn table_entry(&mut self, buffer: BufferHandle) -> Option<u16> {
        let Some(pool) = &self.buffers else { unreachable!("only drop takes the pool away") };
        self.table.entry(&self.uring, pool, buffer)
    }

    fn push(&mut self, entry: squeue::Entry) {
        if self.backlog.is_empty() && push_entry(&mut self.uring, &entry) {
            return;
        }
        self.backlog.push_back(entry);
        self.drain_backlog();
    }

    fn drain_backlog(&mut self) {
        while let Some(entry) = self.backlog.front() {
            if !push_entry(&mut self.uring, entry) {
                // Full: the kernel takes what is queued. Where it refuses for now, the next wait tries again.
                if self.uring.submit().is_err() || !push_entry(&mut self.uring, entry) {
                    return;
                }
            }
            self.backlog.pop_front();
        }
    }
}

impl<T: Copy + Debug> Drop for Ring<T> {
    /// Cancels what can be cancelled and waits for the rest; memory the kernel still holds is given up, not freed.
    /// Requests of a ublk disk are not waited for: the disk outlives its server.
    fn drop(&mut self) {
        let mut rounds = 0;
        let mut ignored = Vec::new();
        for id in self.slots.ids() {
            self.cancel(OperationId(id));
        }
        while self.slots.ending() > 0 && rounds < 50 {
            ignored.clear();
            if self.wait(Some(Duration::from_millis(100)), &mut ignored).is_err() {
                break;
            }
            rounds += 1;
        }
        if self.in_flight() > 0
            && let Some(buffers) = self.buffers.take()
        {
            buffers.leak();
        }
    }
}

/// Moves `length` bytes, continuing what was cut short.
fn inline_transfer(
    length: usize,
    mut transfer: impl FnMut(usize) -> Result<usize, Errno>,
) -> Result<u32, Errno> {
    let mut done = 0;
    while done < length {
        match transfer(done) {
            // The end of the file: the device the metadata describe is larger.
            Ok(0) => return Err(Errno::EIO),
            Ok(moved) => done += moved,
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(done as u32)
}

fn errno_of(error: std::io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))
}

/// Tries the flags from best to plainest; old kernels answer `EINVAL` to one they do not know.
fn setup(options: RingOptions) -> std::io::Result<IoUring> {
    let deferred = IoUring::builder()
        .setup_cqsize(options.completions)
        .setup_clamp()
        .setup_submit_all()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .build(options.submissions);
    let invalid = |error: &std::io::Error| error.raw_os_error() == Some(libc::EINVAL);
    match deferred {
        Err(error) if invalid(&error) => {}
        decided => return decided,
    }
    let cooperative = IoUring::builder()
        .setup_cqsize(options.completions)
        .setup_clamp()
        .setup_coop_taskrun()
        .build(options.submissions);
    match cooperative {
        Err(error) if invalid(&error) => {}
        decided => return decided,
    }
    IoUring::builder().setup_cqsize(options.completions).setup_clamp().build(options.submissions)
}

#[allow(unsafe_code)]
fn push_entry(uring: &mut IoUring, entry: &squeue::Entry) -> bool {
    // SAFETY: an entry's memory is a pinned pool buffer (the pool outlives the ring, or is leaked), the static
    // zeroes, or an entry of the ring's table, whose pages the kernel keeps for its operations; and its file is kept
    // open by the slot until the completion; both hold until the kernel answers.
    unsafe { uring.submission().push(entry) }.is_ok()
}

const _: () = assert!(ZEROES_BYTES.is_multiple_of(4096));

#[cfg(test)]
mod tests;
