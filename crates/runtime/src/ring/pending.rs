//! Operations in flight: what the kernel is asked to do, and how a partial answer is continued.

use std::fmt::Debug;

use io_uring::{opcode, squeue, types};

use super::{Descriptor, StorageKind, Zeroing};
use crate::Errno;
use crate::buffers::{BufferSlice, KernelAccess};

/// Bytes written at once by the slowest way of zeroing.
pub(super) const ZEROES_BYTES: usize = 64 << 10;

/// Aligned as direct I/O wants it.
#[repr(align(4096))]
struct Zeroes([u8; ZEROES_BYTES]);

static ZEROES: Zeroes = Zeroes([0; ZEROES_BYTES]);

/// `BLOCK_URING_CMD_DISCARD`, Linux 6.12: discard a range of a block device; bytes in the 64-bit field after the
/// address.
const BLOCK_URING_CMD_DISCARD: u32 = 0x12 << 8;

/// One way of zeroing, in order of preference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    DiscardBlocks,
    PunchHole,
    ZeroRange,
    WriteZeroes,
}

impl Way {
    const fn next(self) -> Option<Self> {
        match self {
            Self::DiscardBlocks => Some(Self::PunchHole),
            Self::PunchHole => Some(Self::ZeroRange),
            Self::ZeroRange => Some(Self::WriteZeroes),
            Self::WriteZeroes => None,
        }
    }
}

pub(super) const fn first_way(kind: StorageKind, zeroing: Zeroing) -> Way {
    match (kind, zeroing) {
        (StorageKind::BlockDevice, Zeroing::Discard) => Way::DiscardBlocks,
        (StorageKind::RegularFile, Zeroing::Discard) | (_, Zeroing::MayUnmap) => Way::PunchHole,
        (_, Zeroing::KeepAllocated) => Way::ZeroRange,
    }
}

pub(super) fn zero_entry(fd: types::Fd, way: Way, start: u64, bytes: u64) -> squeue::Entry {
    match way {
        Way::DiscardBlocks => {
            let mut command = [0; 16];
            command[..8].copy_from_slice(&bytes.to_ne_bytes());
            // Not tried without waiting first: devices that cannot do that, as thin volumes, refuse it as if they had no discards.
            opcode::UringCmd16::new(fd, BLOCK_URING_CMD_DISCARD)
                .addr(Some(start))
                .cmd(command)
                .build()
                .flags(squeue::Flags::ASYNC)
        }
        Way::PunchHole => opcode::Fallocate::new(fd, bytes)
            .offset(start)
            .mode(libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE)
            .build(),
        Way::ZeroRange => opcode::Fallocate::new(fd, bytes)
            .offset(start)
            .mode(libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE)
            .build(),
        Way::WriteZeroes => {
            let length = bytes.min(ZEROES_BYTES as u64) as u32;
            opcode::Write::new(fd, ZEROES.0.as_ptr(), length).offset(start).build()
        }
    }
}

/// Where the data of the answer are, and the data of the next request will be.
#[cfg(feature = "ublk")]
#[derive(Clone, Copy, Debug)]
pub(crate) enum RequestData {
    /// The kernel copies them out of and into this.
    Copied(BufferSlice),
    /// They stay in the request's pages, which the kernel puts into this entry of the ring's table.
    Pages(u16),
}

/// What an operation does, and how far it has come.
#[derive(Clone, Copy, Debug)]
pub(super) enum Work {
    Read {
        slice: BufferSlice,
        start: u64,
        done: u32,
        /// The entry of the ring's table whose pages take the data, in place of the slice.
        pages: Option<u16>,
    },
    Write {
        slice: BufferSlice,
        start: u64,
        done: u32,
        forced: bool,
        flush_first: bool,
    },
    Sync,
    /// Nothing to do, but to be answered like everything else.
    Nothing,
    Zero {
        way: Way,
        start: u64,
        bytes: u64,
        done: u64,
    },
    Receive {
        slice: BufferSlice,
        whole: bool,
        /// Nothing is expected to be there yet.
        empty: bool,
    },
    Poll {
        events: u32,
    },
    /// A command to a ublk character device: answers the last request of a tag, waits for the next one.
    #[cfg(feature = "ublk")]
    BlockRequest {
        /// The kernel's number of the command.
        command: u32,
        tag: u16,
        /// The answer.
        result: i32,
        data: RequestData,
    },
    Cancel,
}

/// Operations that complete when somebody outside wants something, which may be never.
#[cfg(feature = "ublk")]
pub(super) const fn waits_for_others(work: &Work) -> bool {
    matches!(work, Work::BlockRequest { .. })
}

/// See the other one.
#[cfg(not(feature = "ublk"))]
pub(super) const fn waits_for_others(_: &Work) -> bool {
    false
}

/// What to do after the kernel's answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Submit the rest.
    Again,
    /// Tell the caller.
    Done(Result<u32, Errno>),
}

impl Work {
    /// Takes one answer of the kernel in.
    pub(super) fn advance(&mut self, result: Result<u32, Errno>) -> Step {
        let storage = !matches!(self, Self::Receive { .. } | Self::Poll { .. } | Self::Cancel);
        if storage && !waits_for_others(self) && matches!(result, Err(Errno::EINTR | Errno::EAGAIN)) {
            return Step::Again;
        }
        match (self, result) {
            (Self::Read { pages: pages @ Some(_), done, .. }, Err(_)) => {
                // The device may want memory that is aligned otherwise. Only a failure with our own is the device's.
                (*pages, *done) = (None, 0);
                Step::Again
            }
            (Self::Read { slice, done, .. }, Ok(moved)) => transferred(done, moved, slice.length),
            (Self::Write { flush_first: flush_first @ true, .. }, Ok(_)) => {
                *flush_first = false;
                Step::Again
            }
            (Self::Write { slice, done, .. }, Ok(moved)) => transferred(done, moved, slice.length),
            (Self::Zero { way: Way::WriteZeroes, bytes, done, .. }, Ok(moved)) => {
                *done += u64::from(moved);
                match moved {
                    0 => Step::Done(Err(Errno::EIO)),
                    _ if *done < *bytes => Step::Again,
                    _ => Step::Done(Ok(0)),
                }
            }
            (Self::Zero { .. }, Ok(_)) => Step::Done(Ok(0)),
            (Self::Zero { way, .. }, Err(error)) => match way.next() {
                Some(next) if way_is_missing(error) => {
                    *way = next;
                    Step::Again
                }
                _ => Step::Done(Err(error)),
            },
            (_, result) => Step::Done(result),
        }
    }

    /// The buffer the kernel works on, if any.
    pub(super) fn pinned(&self) -> Option<(BufferSlice, KernelAccess)> {
        match *self {
            Self::Read { slice, .. } | Self::Receive { slice, .. } => Some((slice, KernelAccess::Writes)),
            Self::Write { slice, .. } => Some((slice, KernelAccess::Reads)),
            #[cfg(feature = "ublk")]
            Self::BlockRequest { data: RequestData::Copied(slice), .. } => {
                Some((slice, KernelAccess::Writes))
            }
            #[cfg(feature = "ublk")]
            Self::BlockRequest { data: RequestData::Pages(_), .. } => None,
            Self::Sync | Self::Nothing | Self::Zero { .. } | Self::Poll { .. } | Self::Cancel => None,
        }
    }
}

fn transferred(done: &mut u32, moved: u32, length: u32) -> Step {
    *done += moved;
    match moved {
        _ if *done == length => Step::Done(Ok(length)),
        0 => Step::Done(Err(Errno::EIO)),
        _ => Step::Again,
    }
}

/// Errors that say "this file or kernel has no such operation" and nothing about the medium.
fn way_is_missing(error: Errno) -> bool {
    matches!(error, Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::ENOTTY | Errno::EINVAL | Errno::ENODEV)
}

/// One operation in flight.
#[derive(Debug)]
pub(super) struct Pending<T> {
    /// `None`: the ring's own operation, completed silently.
    pub(super) token: Option<T>,
    /// Keeps the file open.
    pub(super) file: Option<Descriptor>,
    pub(super) work: Work,
}

/// The table of operations in flight. An id is a slot number and the slot's generation.
#[derive(Debug)]
pub(super) struct Slots<T> {
    slots: Vec<(u32, Option<Pending<T>>)>,
    free: Vec<u32>,
    used: usize,
}

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Self { slots: Vec::new(), free: Vec::new(), used: 0 }
    }
}

impl<T> Slots<T> {
    pub(super) fn insert(&mut self, pending: Pending<T>) -> u64 {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push((0, None));
            (self.slots.len() - 1) as u32
        });
        let (generation, slot) = &mut self.slots[index as usize];
        assert!(slot.is_none());
        *generation = generation.wrapping_add(1);
        *slot = Some(pending);
        self.used += 1;
        u64::from(*generation) << 32 | u64::from(index)
    }

    fn slot(&self, id: u64) -> Option<usize> {
        let index = (id & u64::from(u32::MAX)) as usize;
        let (generation, slot) = self.slots.get(index)?;
        (u64::from(*generation) == id >> 32 && slot.is_some()).then_some(index)
    }

    pub(super) fn contains(&self, id: u64) -> bool {
        self.slot(id).is_some()
    }

    pub(super) fn get(&self, id: u64) -> Option<&Pending<T>> {
        self.slot(id).and_then(|index| self.slots[index].1.as_ref())
    }

    pub(super) fn remove(&mut self, id: u64) -> Option<Pending<T>> {
        let index = self.slot(id)?;
        self.free.push(index as u32);
        self.used -= 1;
        self.slots[index].1.take()
    }

    /// Undoes the removal just made.
    pub(super) fn restore(&mut self, id: u64, pending: Pending<T>) {
        let index = (id & u64::from(u32::MAX)) as usize;
        let freed = self.free.pop();
        assert!(freed == Some(index as u32) && self.slots[index].1.is_none());
        self.slots[index].1 = Some(pending);
        self.used += 1;
    }

    pub(super) const fn len(&self) -> usize {
        self.used
    }

    /// Operations that end by themselves.
    pub(super) fn ending(&self) -> usize {
        let works = self.slots.iter().filter_map(|(_, slot)| slot.as_ref());
        works.filter(|pending| !waits_for_others(&pending.work)).count()
    }

    pub(super) fn ids(&self) -> Vec<u64> {
        let used = self.slots.iter().enumerate().filter(|(_, (_, slot))| slot.is_some());
        used.map(|(index, (generation, _))| u64::from(*generation) << 32 | index as u64).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slice(length: u32) -> BufferSlice {
        crate::BufferHandle::from_raw(0).slice(0, length)
    }

    #[test]
    fn a_short_transfer_is_continued_until_whole() {
        let mut work = Work::Read { slice: slice(4096), start: 0, done: 0, pages: None };
        assert_eq!(work.advance(Ok(1024)), Step::Again);
        assert_eq!(work.advance(Err(Errno::EINTR)), Step::Again);
        assert_eq!(work.advance(Ok(3072)), Step::Done(Ok(4096)));
    }

    #[test]
    fn the_end_of_the_file_inside_a_transfer_is_an_error() {
        let mut work = Work::Read { slice: slice(4096), start: 0, done: 0, pages: None };
        assert_eq!(work.advance(Ok(1024)), Step::Again);
        assert_eq!(work.advance(Ok(0)), Step::Done(Err(Errno::EIO)));
    }

    #[test]
    fn a_read_that_fails_in_the_requests_pages_is_made_once_more_in_full() {
        let mut work = Work::Read { slice: slice(4096), start: 0, done: 0, pages: Some(3) };
        assert_eq!(work.advance(Ok(1024)), Step::Again);
        assert_eq!(work.advance(Err(Errno::EINVAL)), Step::Again);
        assert!(matches!(work, Work::Read { done: 0, pages: None, .. }));
        assert_eq!(work.advance(Err(Errno::EIO)), Step::Done(Err(Errno::EIO)));
    }

    #[test]
    fn a_failed_flush_keeps_the_write_behind_it_from_starting() {
        let mut work = Work::Write { slice: slice(4096), start: 0, done: 0, forced: true, flush_first: true };
        assert_eq!(work.advance(Err(Errno::EIO)), Step::Done(Err(Errno::EIO)));
    }

    #[test]
    fn a_discard_the_device_cannot_do_ends_as_written_zeroes() {
        let way = first_way(StorageKind::BlockDevice, Zeroing::Discard);
        let mut work = Work::Zero { way, start: 0, bytes: 70_000, done: 0 };
        for _ in 0..3 {
            assert_eq!(work.advance(Err(Errno::EOPNOTSUPP)), Step::Again);
        }
        assert_eq!(work.advance(Ok(65_536)), Step::Again);
        assert_eq!(work.advance(Ok(4_464)), Step::Done(Ok(0)));
    }

    #[test]
    fn a_medium_error_while_zeroing_is_not_a_missing_ability() {
        let mut work = Work::Zero { way: Way::PunchHole, start: 0, bytes: 4096, done: 0 };
        assert_eq!(work.advance(Err(Errno::EIO)), Step::Done(Err(Errno::EIO)));
    }

    #[test]
    fn an_id_of_an_earlier_operation_in_the_same_slot_finds_nothing() {
        let mut slots = Slots::default();
        let pending = || Pending { token: Some(()), file: None, work: Work::Sync };
        let first = slots.insert(pending());
        assert!(slots.remove(first).is_some());
        let second = slots.insert(pending());
        assert!(slots.contains(second) && !slots.contains(first));
    }
}
