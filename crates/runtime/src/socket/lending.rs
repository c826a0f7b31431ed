//! Sending pages instead of copies of them.
//!
//! A TCP socket that is given bytes takes pages from the system, clears them and copies the bytes into them. It can be given
//! the pages themselves: they are put into a pipe, and the pipe is spliced into the socket. The kernel's DRBD sends payload in
//! that way, too. The pages must then stay as they are until the peer has answered; [`crate::buffers`] says what happens
//! where it never does.
//!
//! The headers between the payloads go the same way, from pages of the lane's own. Nobody tells when those may be used
//! again, so each is exchanged for other memory before it is.

use std::fmt::Debug;
use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice, vmsplice};

use crate::Errno;
use crate::buffers::{BUFFER_BYTES_MIN, BufferHandle, BufferPool, BufferSlice, PoolOptions};
use crate::ring::Ring;

/// Bytes of the header pages of a lane.
const HEADER_BYTES: usize = 64 << 10;
/// Pages a pipe is to have room for. Without privilege there may be less.
const PIPE_PAGES: usize = 256;
/// The largest header; what is larger is copied.
pub(super) const HEADER_BYTES_MAX: usize = 1024;
/// Pieces put into the pipe by one call; half of what the kernel takes at most (`UIO_MAXIOV`), to bound the stack.
pub(super) const PIECES_MAX: usize = 256;
/// What most calls have: there is no need to clear a larger list for them.
const PIECES_FEW: usize = 8;

/// What goes into the pipe.
#[derive(Clone, Copy, Debug)]
pub(super) enum Part {
    /// Bytes of a header page.
    Header(BufferSlice),
    /// Payload, in the ring's buffers.
    Payload(BufferSlice),
}

/// See the module's text.
#[derive(Debug)]
pub(super) struct Lane {
    output: OwnedFd,
    input: OwnedFd,
    /// Pages the pipe has room for.
    pages: usize,
    /// Bytes in the pipe.
    inside: usize,
    /// What goes into the pipe next; empty between calls.
    parts: Vec<Part>,
    memory: BufferPool,
    headers: BufferHandle,
    /// Where the next header goes.
    header_end: usize,
    /// Every header page has been used before.
    wrapped: bool,
}

impl Lane {
    /// `None` where there is no pipe or no memory to be had: everything is copied then.
    pub(super) fn new() -> Option<Self> {
        let (output, input) = nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).ok()?;
        let wanted = (PIPE_PAGES * BUFFER_BYTES_MIN) as i32;
        // What it says is rounded; a refusal leaves the pipe as it was.
        let bytes = fcntl(&input, FcntlArg::F_SETPIPE_SZ(wanted))
            .or_else(|_| fcntl(&input, FcntlArg::F_GETPIPE_SZ))
            .ok()?;
        let mut memory = BufferPool::new(PoolOptions { bytes: HEADER_BYTES, lock: false }).ok()?;
        let headers = memory.allocate(HEADER_BYTES)?;
        // Without this lent pages could never be used again.
        if !memory.exchange(headers.slice(0, HEADER_BYTES as u32)) {
            return None;
        }
        Some(Self {
            output,
            input,
            pages: bytes as usize / BUFFER_BYTES_MIN,
            inside: 0,
            parts: Vec::with_capacity(PIECES_MAX),
            memory,
            headers,
            header_end: 0,
            wrapped: false,
        })
    }

    /// Pages that fit into the pipe at once.
    pub(super) const fn pages(&self) -> usize {
        self.pages
    }

    /// Bytes put in and not sent.
    pub(super) const fn bytes(&self) -> usize {
        self.inside
    }

    /// Copies a header to where it can be sent from, behind what was added before. False: there is no memory for it.
    pub(super) fn add_header(&mut self, header: &[u8]) -> bool {
        let room = BUFFER_BYTES_MIN - self.header_end % BUFFER_BYTES_MIN;
        if header.len() > room {
            self.header_end += room;
        }
        if self.header_end == HEADER_BYTES {
            self.header_end = 0;
            self.wrapped = true;
        }
        if self.wrapped && self.header_end.is_multiple_of(BUFFER_BYTES_MIN) {
            let page = self.headers.slice(self.header_end as u32, BUFFER_BYTES_MIN as u32);
            if !self.memory.exchange(page) {
                return false;
            }
        }
        let slice = self.headers.slice(self.header_end as u32, header.len() as u32);
        self.memory.bytes_mut(slice).copy_from_slice(header);
        self.header_end += header.len();
        self.parts.push(Part::Header(slice));
        true
    }

    /// Adds payload behind what was added before.
    pub(super) fn add_payload(&mut self, payload: BufferSlice) {
        self.parts.push(Part::Payload(payload));
    }

    /// Forgets what was added.
    pub(super) fn drop_added(&mut self) {
        self.parts.clear();
    }

    /// Puts what was added into the empty pipe, as far as it fits.
    ///
    /// # Errors
    /// What the kernel says; nothing is in the pipe then.
    pub(super) fn fill<T: Copy + Debug>(&mut self, ring: &mut Ring<T>) -> Result<(), Errno> {
        let filled = match self.parts.len() {
            0..=PIECES_FEW => self.put::<T, PIECES_FEW>(ring),
            _ => self.put::<T, PIECES_MAX>(ring),
        };
        if filled.is_ok() {
            for part in &self.parts {
                if let Part::Payload(payload) = *part {
                    ring.lend(payload);
                }
            }
        }
        self.parts.clear();
        self.inside = filled?;
        Ok(())
    }

    fn put<T: Copy + Debug, const PIECES: usize>(&self, ring: &Ring<T>) -> Result<usize, Errno> {
        let mut gathered = [IoSlice::new(&[]); PIECES];
        for (part, place) in self.parts.iter().zip(&mut gathered) {
            *place = IoSlice::new(match *part {
                Part::Header(slice) => self.memory.bytes(slice),
                Part::Payload(slice) => ring.bytes(slice),
            });
        }
        let flags = SpliceFFlags::SPLICE_F_NONBLOCK;
        vmsplice(self.input.as_fd(), &gathered[..self.parts.len()], flags)
    }

    /// Sends from the pipe, as far as the socket has room. `more`: what follows is to go into the same packet.
    ///
    /// # Errors
    /// `EAGAIN` where there is no room; what else the kernel says about the connection.
    pub(super) fn send(&mut self, socket: BorrowedFd<'_>, more: bool) -> Result<usize, Errno> {
        let mut flags = SpliceFFlags::SPLICE_F_NONBLOCK;
        flags.set(SpliceFFlags::SPLICE_F_MORE, more);
        match splice(self.output.as_fd(), None, socket, None, self.inside, flags)? {
            0 => Err(Errno::EPIPE),
            sent => {
                self.inside -= sent;
                Ok(sent)
            }
        }
    }
}
