//! The send queue of a stream: header bytes and payload slices, sent in order and gathered.

use std::collections::VecDeque;
use std::fmt::Debug;
use std::io::IoSlice;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::sys::socket::{MsgFlags, sendmsg};

use super::lending::{self, Lane};
use crate::Errno;
use crate::buffers::{BUFFER_BYTES_MIN, BufferSlice};
use crate::ring::Ring;

/// Pieces handed to the kernel in one call; half of what it takes at most (`UIO_MAXIOV`), to bound the stack.
const PIECES_MAX: usize = 256;
/// What most calls have: there is no need to clear a larger list for them.
const PIECES_FEW: usize = 8;

#[derive(Clone, Copy, Debug)]
enum Piece {
    /// So many bytes of `headers`, in order.
    Header(usize),
    Payload(BufferSlice),
    /// Payload that nobody changes before the peer has answered.
    Held(BufferSlice),
}

impl Piece {
    const fn length(self) -> usize {
        match self {
            Self::Header(length) => length,
            Self::Payload(slice) | Self::Held(slice) => slice.length as usize,
        }
    }
}

/// Payload from so many bytes on is sent without a copy, where it may.
const LENT_BYTES_MIN: u32 = BUFFER_BYTES_MIN as u32;

#[derive(Debug, Default)]
pub(super) struct Outgoing {
    /// Bytes of all header pieces that are not sent, from `headers_sent` on.
    headers: Vec<u8>,
    headers_sent: usize,
    pieces: VecDeque<Piece>,
    queued_bytes: u64,
    bytes_sent: u64,
    /// The way for payload that is not copied.
    lane: Option<Lane>,
}

impl Outgoing {
    /// Sends held payload without a copy from now on, where that can be.
    pub(super) fn lend(&mut self) {
        if self.lane.is_none() {
            self.lane = Lane::new();
        }
    }

    pub(super) fn push_header(&mut self, encode: impl FnOnce(&mut Vec<u8>)) {
        let before = self.headers.len();
        encode(&mut self.headers);
        let Some(added) = self.headers.len().checked_sub(before) else {
            unreachable!("an encoder only appends")
        };
        if added == 0 {
            return;
        }
        self.queued_bytes += added as u64;
        match self.pieces.back_mut() {
            Some(Piece::Header(length)) => *length += added,
            _ => self.pieces.push_back(Piece::Header(added)),
        }
    }

    pub(super) fn push_payload(&mut self, payload: BufferSlice, held: bool) {
        self.queued_bytes += u64::from(payload.length);
        let lent = held && self.lane.is_some() && payload.length >= LENT_BYTES_MIN;
        self.pieces.push_back(if lent { Piece::Held(payload) } else { Piece::Payload(payload) });
    }

    pub(super) fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Whether there is something, and none of it is payload.
    pub(super) fn has_headers_only(&self) -> bool {
        self.pieces.len() == 1 && matches!(self.pieces.front(), Some(Piece::Header(_)))
    }

    pub(super) const fn queued_bytes(&self) -> u64 {
        self.queued_bytes
    }

    pub(super) const fn bytes_sent(&self) -> u64 {
        self.bytes_sent
    }

    /// Sends until the queue is empty (`Ok`) or the socket is full (`EAGAIN`) or broken.
    pub(super) fn send<T: Copy + Debug>(
        &mut self,
        ring: &mut Ring<T>,
        socket: BorrowedFd<'_>,
    ) -> Result<(), Errno> {
        while !self.pieces.is_empty() {
            let sent = match self.send_some(ring, socket) {
                Err(Errno::EINTR) => continue,
                result => result?,
            };
            self.advance(ring, sent);
        }
        Ok(())
    }

    /// One call of the kernel's: with copies, or without.
    fn send_some<T: Copy + Debug>(
        &mut self,
        ring: &mut Ring<T>,
        socket: BorrowedFd<'_>,
    ) -> Result<usize, Errno> {
        if let Some(lane) = &mut self.lane {
            let filled = lane.bytes() > 0
                || (add_run(&self.pieces, &self.headers[self.headers_sent..], lane)
                    && lane.fill(ring).is_ok());
            if filled {
                let more = lane.bytes() < self.queued_bytes as usize;
                return lane.send(socket, more);
            }
        }
        self.send_once(ring, socket)
    }

    fn send_once<T: Copy + Debug>(&self, ring: &Ring<T>, socket: BorrowedFd<'_>) -> Result<usize, Errno> {
        if self.pieces.len() <= PIECES_FEW {
            self.send_pieces::<T, PIECES_FEW>(ring, socket)
        } else {
            self.send_pieces::<T, PIECES_MAX>(ring, socket)
        }
    }

    fn send_pieces<T: Copy + Debug, const PIECES: usize>(
        &self,
        ring: &Ring<T>,
        socket: BorrowedFd<'_>,
    ) -> Result<usize, Errno> {
        let mut gathered = [IoSlice::new(&[]); PIECES];
        let mut count = 0;
        let mut headers = &self.headers[self.headers_sent..];
        for (piece, place) in self.pieces.iter().zip(&mut gathered) {
            *place = IoSlice::new(match *piece {
                Piece::Header(length) => {
                    let (header, rest) = headers.split_at(length);
                    headers = rest;
                    header
                }
                Piece::Payload(slice) | Piece::Held(slice) => ring.bytes(slice),
            });
            count += 1;
        }
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        sendmsg::<()>(socket.as_raw_fd(), &gathered[..count], &[], flags, None)
    }

    /// Takes `sent` bytes off the front.
    fn advance<T: Copy + Debug>(&mut self, ring: &mut Ring<T>, mut sent: usize) {
        assert!(sent as u64 <= self.queued_bytes, "the kernel took more than it was given");
        self.bytes_sent += sent as u64;
        self.queued_bytes -= sent as u64;
        while sent > 0 {
            let Some(piece) = self.pieces.front_mut() else { unreachable!("checked against the total") };
            let taken = sent.min(piece.length());
            sent -= taken;
            if taken == piece.length() {
                let whole = *piece;
                self.pieces.pop_front();
                match whole {
                    Piece::Header(length) => self.headers_sent += length,
                    Piece::Payload(slice) | Piece::Held(slice) => ring.release(slice.buffer),
                }
                continue;
            }
            match piece {
                Piece::Header(length) => {
                    *length -= taken;
                    self.headers_sent += taken;
                }
                Piece::Payload(slice) | Piece::Held(slice) => {
                    *slice = slice.part(taken as u32, slice.length - taken as u32);
                }
            }
        }
        self.drop_sent_headers();
    }

    fn drop_sent_headers(&mut self) {
        if self.headers_sent == self.headers.len() {
            self.headers.clear();
            self.headers_sent = 0;
        } else if self.headers_sent > self.headers.len() / 2 {
            self.headers.drain(..self.headers_sent);
            self.headers_sent = 0;
        }
    }

    /// Sends by copy from now on, and gives up what is lent: nobody waits for the peer's answers any more.
    pub(super) fn stop_lending<T: Copy + Debug>(&mut self, ring: &mut Ring<T>) {
        // What is in the pipe can only leave through it; nothing more will go in.
        self.lane.take_if(|lane| lane.bytes() == 0);
        ring.give_up_lent();
        for piece in &mut self.pieces {
            if let Piece::Held(slice) = *piece {
                *piece = Piece::Payload(slice);
            }
        }
    }

    /// Forgets everything queued.
    pub(super) fn clear<T: Copy + Debug>(&mut self, ring: &mut Ring<T>) {
        for piece in self.pieces.drain(..) {
            if let Piece::Payload(slice) | Piece::Held(slice) = piece {
                ring.release(slice.buffer);
            }
        }
        if self.lane.take().is_some() {
            ring.give_up_lent();
        }
        self.headers.clear();
        self.headers_sent = 0;
        self.queued_bytes = 0;
    }
}

/// Adds the pieces at the front that can leave through a lane to it, up to the last held payload. False where there are
/// none: the front has to be copied.
fn add_run(pieces: &VecDeque<Piece>, mut headers: &[u8], lane: &mut Lane) -> bool {
    let mut count = 0;
    let mut pages = 0;
    for (index, piece) in pieces.iter().take(lending::PIECES_MAX).enumerate() {
        pages += match *piece {
            Piece::Header(length) if length <= lending::HEADER_BYTES_MAX => 1,
            Piece::Held(slice) => 1 + slice.length as usize / BUFFER_BYTES_MIN,
            Piece::Header(_) | Piece::Payload(_) => break,
        };
        if pages > lane.pages() {
            break;
        }
        if matches!(piece, Piece::Held(_)) {
            count = index + 1;
        }
    }
    for piece in pieces.iter().take(count) {
        match *piece {
            Piece::Header(length) => {
                let (header, rest) = headers.split_at(length);
                headers = rest;
                if !lane.add_header(header) {
                    lane.drop_added();
                    return false;
                }
            }
            Piece::Payload(slice) | Piece::Held(slice) => lane.add_payload(slice),
        }
    }
    count > 0
}
