//! The send queue of a stream: header bytes and payload slices, sent in order and gathered.

use std::collections::VecDeque;
use std::fmt::Debug;
use std::io::IoSlice;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::sys::socket::{MsgFlags, sendmsg};

use crate::Errno;
use crate::buffers::BufferSlice;
use crate::ring::Ring;

/// Pieces handed to the kernel in one call; half of what it takes at most (`UIO_MAXIOV`), to bound the stack.
const PIECES_MAX: usize = 256;

#[derive(Clone, Copy, Debug)]
enum Piece {
    /// So many bytes of `headers`, in order.
    Header(usize),
    Payload(BufferSlice),
}

impl Piece {
    const fn length(self) -> usize {
        match self {
            Self::Header(length) => length,
            Self::Payload(slice) => slice.length as usize,
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Outgoing {
    /// Bytes of all header pieces that are not sent, from `headers_sent` on.
    headers: Vec<u8>,
    headers_sent: usize,
    pieces: VecDeque<Piece>,
    queued_bytes: u64,
    bytes_sent: u64,
}

impl Outgoing {
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

    pub(super) fn push_payload(&mut self, payload: BufferSlice) {
        self.queued_bytes += u64::from(payload.length);
        self.pieces.push_back(Piece::Payload(payload));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.pieces.is_empty()
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
            let sent = match self.send_once(ring, socket) {
                Err(Errno::EINTR) => continue,
                result => result?,
            };
            self.advance(ring, sent);
        }
        Ok(())
    }

    fn send_once<T: Copy + Debug>(&self, ring: &Ring<T>, socket: BorrowedFd<'_>) -> Result<usize, Errno> {
        let mut gathered = [IoSlice::new(&[]); PIECES_MAX];
        let mut count = 0;
        let mut headers = &self.headers[self.headers_sent..];
        for (piece, place) in self.pieces.iter().zip(&mut gathered) {
            *place = IoSlice::new(match *piece {
                Piece::Header(length) => {
                    let (header, rest) = headers.split_at(length);
                    headers = rest;
                    header
                }
                Piece::Payload(slice) => ring.bytes(slice),
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
                    Piece::Payload(slice) => ring.release(slice.buffer),
                }
                continue;
            }
            match piece {
                Piece::Header(length) => {
                    *length -= taken;
                    self.headers_sent += taken;
                }
                Piece::Payload(slice) => {
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

    /// Forgets everything queued.
    pub(super) fn clear<T: Copy + Debug>(&mut self, ring: &mut Ring<T>) {
        for piece in self.pieces.drain(..) {
            if let Piece::Payload(slice) = piece {
                ring.release(slice.buffer);
            }
        }
        self.headers.clear();
        self.headers_sent = 0;
        self.queued_bytes = 0;
    }
}
