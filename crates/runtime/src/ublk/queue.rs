//! The requests of one disk on a ring.
//!
//! Each slot has a buffer of the largest request's size. A slot's command tells the kernel the answer to the slot's last
//! request and where the data of the next one go, and completes with that next request: one buffer for both. So a slot
//! may be answered only when nobody else has its buffer any more; where somebody does (a peer's socket that was cut
//! while data waited in it; a disk that was given up before it answered), the slot gets another buffer, or waits for one.
//!
//! Where the driver puts the pages of a request into the ring's table (Linux 6.16), a disk read goes straight into them, and
//! the kernel copies nothing by itself: the data of a write are fetched into the slot's buffer, and those of a read that
//! came another way (from the peer) are put into the pages.
//!
//! The owner calls, in a turn: [`Queue::fetched`] for completions, [`Queue::complete`] for finished requests, and
//! [`Queue::flush`] at the end, when those who gave their references back in this turn have done so.

use std::fmt::Debug;
use std::os::fd::AsFd;
use std::sync::Arc;

use libublk::sys;
use nix::sys::uio::{pread, pwrite};
use udrbd_units::{SECTOR_BYTES, Sector, SectorRange};

use super::{DEPTH, Fetched, Operation, REQUEST_BYTES, Request, Source};
use crate::Errno;
use crate::buffers::{BUFFER_BYTES_MAX, BufferHandle};
use crate::ring::{Descriptor, RequestData, Ring};

/// The bytes of a command for queue 0.
pub(crate) fn command_words(tag: u16, result: i32, address: u64) -> [u8; 16] {
    let sys::ublksrv_io_cmd { q_id, tag, result, addr } =
        sys::ublksrv_io_cmd { q_id: 0, tag, result, addr: address };
    let mut words = [0; 16];
    words[..2].copy_from_slice(&q_id.to_ne_bytes());
    words[2..4].copy_from_slice(&tag.to_ne_bytes());
    words[4..8].copy_from_slice(&result.to_ne_bytes());
    words[8..].copy_from_slice(&addr.to_ne_bytes());
    words
}

/// What a command says about an entry of the ring's table: where it cannot be filled the request is to come all the same.
pub(crate) const fn registration_of(entry: u16) -> u64 {
    (sys::UBLK_AUTO_BUF_REG_FALLBACK as u64) << 16 | entry as u64
}

/// Where the data of a slot's request are to be read and written in the character device (queue 0).
const fn data_position(tag: u16) -> i64 {
    sys::UBLKSRV_IO_BUF_OFFSET as i64 + ((tag as i64) << sys::UBLK_TAG_OFF)
}

/// Who has a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    /// The kernel: it waits for a request.
    Kernel,
    /// Those who serve its request.
    Service {
        /// Bytes a good answer says were moved.
        bytes: u32,
        /// Whether the answer has to be in the buffer.
        read: bool,
    },
    /// It is served; the answer goes out with the next flush.
    Answered(i32),
    /// Nobody: the disk is being stopped.
    Nobody,
}

#[derive(Debug)]
struct Slot<T> {
    owner: Owner,
    buffer: BufferHandle,
    /// Where the data of the answer are, with a reference, while a disk that was given up still has the slot's buffer.
    data: Option<BufferHandle>,
    /// The last answer was in the buffer.
    holds_answer: bool,
    token: T,
}

/// One disk's requests: see the module's text.
#[derive(Debug)]
pub struct Queue<T: Copy + Debug> {
    device: Descriptor,
    requests: mapping::Requests,
    slots: Vec<Slot<T>>,
    /// Slots that are answered, for the next flush.
    answered: Vec<u16>,
    ended: u16,
    serving: usize,
    /// Blocks of the pool that are for others.
    others_mebibytes: usize,
    /// The first entry of the ring's table for the slots' pages, where the driver puts them there.
    pages: Option<u16>,
}

impl<T: Copy + Debug> Queue<T> {
    /// Maps what the kernel says about requests, takes buffers, and waits for requests in every slot. `token` names a
    /// slot's completions. Where the pool has no buffers beyond `others_mebibytes` blocks of 1 MiB, it grows.
    ///
    /// # Errors
    /// `ENOMEM`, and what the kernel says.
    pub fn open(
        ring: &mut Ring<T>,
        source: Source,
        others_mebibytes: usize,
        token: impl Fn(u16) -> T,
    ) -> Result<Self, Errno> {
        let Source { device, in_place } = source;
        let requests = mapping::Requests::new(device.as_fd())?;
        let mut buffers = Vec::with_capacity(usize::from(DEPTH));
        while buffers.len() < usize::from(DEPTH) {
            match ring.allocate_leaving(REQUEST_BYTES as usize, others_mebibytes) {
                Some(buffer) => buffers.push(buffer),
                None => {
                    let missing = (usize::from(DEPTH) - buffers.len()) * REQUEST_BYTES as usize;
                    if let Err(errno) = ring.grow(missing.div_ceil(BUFFER_BYTES_MAX)) {
                        buffers.into_iter().for_each(|buffer| ring.release(buffer));
                        return Err(errno);
                    }
                }
            }
        }
        let pages = if in_place { ring.reserve_pages(DEPTH) } else { None };
        if in_place && pages.is_none() {
            buffers.into_iter().for_each(|buffer| ring.release(buffer));
            return Err(Errno::ENOSPC);
        }
        let slots = buffers.into_iter().zip(0..DEPTH);
        let slots = slots.map(|(buffer, tag)| Slot {
            owner: Owner::Kernel,
            buffer,
            data: None,
            holds_answer: false,
            token: token(tag),
        });
        let queue = Self {
            device: Arc::new(device),
            requests,
            slots: slots.collect(),
            answered: Vec::with_capacity(usize::from(DEPTH)),
            ended: 0,
            serving: 0,
            others_mebibytes,
            pages,
        };
        for tag in 0..DEPTH {
            queue.command(ring, sys::UBLK_U_IO_FETCH_REQ, tag, 0);
        }
        Ok(queue)
    }

    fn command(&self, ring: &mut Ring<T>, command: u32, tag: u16, result: i32) {
        let slot = &self.slots[usize::from(tag)];
        let data = match self.pages {
            Some(first) => RequestData::Pages(first + tag),
            None => RequestData::Copied(slot.buffer.slice(0, REQUEST_BYTES)),
        };
        ring.block_request(&self.device, command, (tag, result), data, slot.token);
    }

    /// Takes the completion of a slot's command in.
    pub fn fetched(&mut self, ring: &mut Ring<T>, tag: u16, result: Result<u32, Errno>) -> Fetched {
        let slot = &mut self.slots[usize::from(tag)];
        assert!(slot.owner == Owner::Kernel, "slot {tag} has a request already");
        if result != Ok(sys::UBLK_IO_RES_OK) {
            // ENODEV: the disk is being stopped. No other answer makes the slot usable again.
            slot.owner = Owner::Nobody;
            self.ended += 1;
            return Fetched::Ended;
        }
        let buffer = slot.buffer;
        let request = self.requests.read(tag);
        let Some((operation, range)) = operation_of(request) else {
            return self.refuse(ring, tag, Errno::EOPNOTSUPP);
        };
        if let Some(first) = self.pages {
            match operation {
                Operation::Read if request.op_flags & sys::UBLK_IO_F_NEED_REG_BUF == 0 => {
                    ring.lend_pages(buffer, first + tag);
                }
                Operation::Write { .. } => {
                    let bytes = ring.bytes_mut(buffer.slice(0, range.bytes));
                    if let Err(errno) =
                        whole(bytes.len(), pread(self.device.as_fd(), bytes, data_position(tag)))
                    {
                        return self.refuse(ring, tag, errno);
                    }
                }
                _ => {}
            }
        }
        let slot = &mut self.slots[usize::from(tag)];
        let read = operation == Operation::Read;
        let data = read || matches!(operation, Operation::Write { .. });
        slot.owner = Owner::Service { bytes: if data { range.bytes } else { 0 }, read };
        self.serving += 1;
        Fetched::Request(Request { tag, operation, range, buffer: data.then_some(buffer) })
    }

    /// Answers a request that is not served.
    fn refuse(&mut self, ring: &mut Ring<T>, tag: u16, errno: Errno) -> Fetched {
        let slot = &mut self.slots[usize::from(tag)];
        slot.owner = Owner::Answered(-(errno as i32));
        slot.holds_answer = false;
        self.answered.push(tag);
        self.flush(ring);
        Fetched::Nothing
    }

    /// Takes the end of a request in. For a read, `data` may name another buffer that has the data (it came from the
    /// peer); references of it stay the caller's. The answer goes out with the next [`Queue::flush`].
    pub fn complete(
        &mut self,
        ring: &mut Ring<T>,
        tag: u16,
        result: Result<(), Errno>,
        data: Option<BufferHandle>,
    ) {
        let slot = &mut self.slots[usize::from(tag)];
        let Owner::Service { bytes, read } = slot.owner else { unreachable!("slot {tag} has no request") };
        let own = slot.buffer;
        slot.owner = Owner::Answered(match result {
            Ok(()) => bytes as i32,
            Err(errno) => -(errno as i32),
        });
        slot.holds_answer = read;
        self.serving -= 1;
        self.answered.push(tag);
        if !read {
            return;
        }
        let filled = self.pages.is_some() && ring.take_pages(own);
        let data = match data {
            Some(data) if data != own => Some(data),
            _ if self.pages.is_some() && !filled => Some(own),
            _ => None,
        };
        let (Ok(()), Some(data)) = (result, data) else { return };
        if self.pages.is_none() {
            if ring.buffers().is_with_kernel(own) {
                ring.retain(data);
                slot.data = Some(data);
            } else {
                ring.copy(data.slice(0, bytes), own.slice(0, bytes));
            }
            return;
        }
        let data = ring.bytes(data.slice(0, bytes));
        if let Err(errno) = whole(data.len(), pwrite(self.device.as_fd(), data, data_position(tag))) {
            slot.owner = Owner::Answered(-(errno as i32));
        }
    }

    /// Sends the answers whose buffers are free. True if some have to wait for one: to be called again when one was freed.
    pub fn flush(&mut self, ring: &mut Ring<T>) -> bool {
        let mut kept = 0;
        for index in 0..self.answered.len() {
            let tag = self.answered[index];
            let slot = &mut self.slots[usize::from(tag)];
            let Owner::Answered(result) = slot.owner else { unreachable!("only answered slots are here") };
            let shared = ring.buffers().references(slot.buffer) > 1;
            // A socket that was lost may still send from it; a read's answer is in it, and does not change.
            let given_up = !slot.holds_answer && ring.buffers().is_given_up(slot.buffer);
            if shared || (given_up && !ring.renew(slot.buffer)) {
                // A write's buffer may be with others, and the answer to a write is not in it; that of a read only with
                // a disk that was given up.
                let other = ring.allocate_leaving(REQUEST_BYTES as usize, self.others_mebibytes);
                let Some(other) = other else {
                    self.answered[kept] = tag;
                    kept += 1;
                    continue;
                };
                ring.release(std::mem::replace(&mut slot.buffer, other));
            }
            if let Some(data) = slot.data.take() {
                if let Ok(bytes) = u32::try_from(result) {
                    ring.copy(data.slice(0, bytes), slot.buffer.slice(0, bytes));
                }
                ring.release(data);
            }
            slot.owner = Owner::Kernel;
            self.command(ring, sys::UBLK_U_IO_COMMIT_AND_FETCH_REQ, tag, result);
        }
        self.answered.truncate(kept);
        kept > 0
    }

    /// Requests being served.
    #[must_use]
    pub const fn serving(&self) -> usize {
        self.serving
    }

    /// Whether it can be closed: the disk was stopped, and every slot has ended.
    #[must_use]
    pub const fn is_finished(&self) -> bool {
        self.ended == DEPTH
    }

    /// Gives its buffers back and closes the disk's character device.
    ///
    /// # Panics
    /// If it is not finished: the kernel has its buffers.
    pub fn close(self, ring: &mut Ring<T>) {
        assert!(self.is_finished(), "closed with slots in use");
        for slot in self.slots {
            ring.release(slot.buffer);
        }
        if let Some(first) = self.pages {
            ring.free_pages(first);
        }
    }
}

/// A transfer of data is all or nothing.
fn whole(length: usize, moved: Result<usize, Errno>) -> Result<(), Errno> {
    if moved? == length { Ok(()) } else { Err(Errno::EIO) }
}

/// What the kernel wants; `None` where it is nothing that a disk of ours was said to do.
fn operation_of(request: sys::ublksrv_io_desc) -> Option<(Operation, SectorRange)> {
    let flags = request.op_flags & !0xff;
    let operation = match request.op_flags & 0xff {
        sys::UBLK_IO_OP_READ => Operation::Read,
        sys::UBLK_IO_OP_WRITE => Operation::Write { fua: flags & sys::UBLK_IO_F_FUA != 0 },
        sys::UBLK_IO_OP_FLUSH => return Some((Operation::Flush, SectorRange { start: Sector(0), bytes: 0 })),
        sys::UBLK_IO_OP_DISCARD => Operation::Trim,
        sys::UBLK_IO_OP_WRITE_ZEROES => {
            Operation::WriteZeroes { may_unmap: flags & sys::UBLK_IO_F_NOUNMAP == 0 }
        }
        _ => return None,
    };
    let bytes = u32::try_from(u64::from(request.nr_sectors) * SECTOR_BYTES).ok()?;
    let data = matches!(operation, Operation::Read | Operation::Write { .. });
    if data && bytes > REQUEST_BYTES {
        return None;
    }
    Some((operation, SectorRange { start: Sector(request.start_sector), bytes }))
}

/// The kernel's descriptions of requests, one per slot.
#[allow(unsafe_code)]
mod mapping {
    use std::num::NonZeroUsize;
    use std::os::fd::BorrowedFd;
    use std::ptr::NonNull;

    use libublk::sys;
    use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

    use super::DEPTH;
    use crate::Errno;

    const BYTES: usize = DEPTH as usize * size_of::<sys::ublksrv_io_desc>();

    #[derive(Debug)]
    pub(super) struct Requests {
        start: NonNull<sys::ublksrv_io_desc>,
    }

    impl Requests {
        pub(super) fn new(device: BorrowedFd<'_>) -> Result<Self, Errno> {
            let bytes = NonZeroUsize::new(BYTES).ok_or(Errno::EINVAL)?;
            let (protection, flags) = (ProtFlags::PROT_READ, MapFlags::MAP_SHARED | MapFlags::MAP_POPULATE);
            let offset = i64::from(sys::UBLKSRV_CMD_BUF_OFFSET);
            // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing. Queue 0 is at the start.
            let start = unsafe { mmap(None, bytes, protection, flags, device, offset) }?;
            Ok(Self { start: start.cast() })
        }

        /// The request of a slot: valid between the completion of the slot's command and the next command.
        pub(super) fn read(&self, tag: u16) -> sys::ublksrv_io_desc {
            assert!(tag < DEPTH);
            // SAFETY: inside the mapping; the kernel changes a slot's description only while it has the slot, and
            // volatile because it is the kernel that does so.
            unsafe { self.start.as_ptr().add(usize::from(tag)).read_volatile() }
        }
    }

    impl Drop for Requests {
        fn drop(&mut self) {
            // SAFETY: exactly the mapping made in `new`, and no reference into it was handed out.
            let unmapped = unsafe { munmap(self.start.cast(), BYTES) };
            assert!(unmapped.is_ok(), "unmapping the descriptions of requests failed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(op_flags: u32, nr_sectors: u32) -> sys::ublksrv_io_desc {
        sys::ublksrv_io_desc { op_flags, nr_sectors, start_sector: 8, addr: 0 }
    }

    #[test]
    fn flags_and_operations_are_told_apart() {
        let (operation, range) =
            operation_of(request(sys::UBLK_IO_OP_WRITE | sys::UBLK_IO_F_FUA, 8)).unwrap();
        assert_eq!(operation, Operation::Write { fua: true });
        assert_eq!(range, SectorRange { start: Sector(8), bytes: 4096 });
        let zeroes = sys::UBLK_IO_OP_WRITE_ZEROES;
        let kept = operation_of(request(zeroes | sys::UBLK_IO_F_NOUNMAP, 8)).unwrap().0;
        assert_eq!(kept, Operation::WriteZeroes { may_unmap: false });
        assert_eq!(operation_of(request(zeroes, 8)).unwrap().0, Operation::WriteZeroes { may_unmap: true });
    }

    #[test]
    fn what_no_buffer_holds_is_refused() {
        assert!(operation_of(request(sys::UBLK_IO_OP_READ, (REQUEST_BYTES >> 9) + 1)).is_none());
        assert!(operation_of(request(sys::UBLK_IO_OP_DISCARD, (REQUEST_BYTES >> 9) + 1)).is_some());
        assert!(operation_of(request(sys::UBLK_IO_OP_DISCARD, u32::MAX)).is_none());
        assert!(operation_of(request(sys::UBLK_IO_OP_ZONE_APPEND, 8)).is_none());
    }

    #[test]
    fn a_command_is_laid_out_as_the_kernel_reads_it() {
        let words = command_words(0x0102, -5, 0x1122_3344_5566_7788);
        assert_eq!(words[..2], [0; 2]);
        assert_eq!(words[2..4], 0x0102u16.to_ne_bytes());
        assert_eq!(words[4..8], (-5i32).to_ne_bytes());
        assert_eq!(words[8..], 0x1122_3344_5566_7788u64.to_ne_bytes());
    }
}
