//! Stream sockets of the engine thread: the two TCP connections to the peer, and NBD clients.
//!
//! A [`Stream`] has two halves that share nothing but the file:
//!
//! * sending: packets are queued as header bytes and payload slices, and [`Stream::flush`] hands everything queued
//!   to the kernel with one gathered call per turn (the runtime spec 3.5: worth more than every ring flag
//!   together). When the socket is full the stream waits for room with one poll; so there is never more than one
//!   send under way, and the kernel never holds memory of the queue.
//! * receiving: bytes arrive in one linear buffer, to be parsed in place; bulk payload goes to a pool buffer, the
//!   part that has already arrived by copy, the rest straight from the kernel ([`Stream::receive_into`]).
//!
//! Every socket result is an event, never an assertion.

mod lending;
mod listen;
mod outgoing;

use std::fmt::Debug;
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use crate::Errno;
use crate::buffers::{BufferHandle, BufferSlice};
use crate::ring::{Descriptor, OperationId, Readiness, Ring};

pub use listen::{Connecting, Listener, SocketOptions, local_address, peer_address};
use outgoing::Outgoing;

/// Bytes of the receive buffer unless asked otherwise; packets parsed in place must be smaller.
pub const RECEIVE_BUFFER_BYTES: usize = 64 << 10;

/// Receives between two reminders of [`Stream::delay_acknowledgements`]: few enough to be right again soon, and enough
/// not to be felt.
const RECEIVES_PER_REMINDER: u32 = 64;

/// What a finished receive brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// More bytes in [`Stream::data`].
    Data,
    /// The bulk receive is complete.
    Bulk(BufferSlice),
    /// The bulk receive goes on; [`Stream::arm`] asks for more.
    Partial,
    /// The peer has sent everything it will.
    Closed,
    /// The connection broke.
    Failed(Errno),
}

/// Where a bulk receive stands.
#[derive(Clone, Copy, Debug)]
struct Bulk {
    target: BufferSlice,
    filled: u32,
}

/// The tokens a stream's operations complete with.
#[derive(Clone, Copy, Debug)]
pub struct StreamTokens<T> {
    /// For [`Stream::handle_receive`].
    pub receive: T,
    /// For [`Stream::handle_writable`].
    pub writable: T,
}

/// A connected socket on a ring: see the module's text.
#[derive(Debug)]
pub struct Stream<T: Copy + Debug> {
    socket: Descriptor,
    tokens: StreamTokens<T>,
    outgoing: Outgoing,
    writable_poll: Option<OperationId>,
    receive_buffer: BufferHandle,
    receive_capacity: u32,
    /// Unconsumed bytes are `start..end` of the receive buffer.
    start: u32,
    end: u32,
    bulk: Option<Bulk>,
    receive: Option<OperationId>,
    /// Bytes the receive under way asks for.
    asked: u32,
    /// The last receive took all there was.
    drained: bool,
    bytes_received: u64,
    /// Receives until the kernel is told again that acknowledgements may wait; `None` where they may not.
    remind_in: Option<u32>,
}

impl<T: Copy + Debug> Stream<T> {
    /// Takes over a connected socket; it becomes non-blocking. `None` when the pool has no receive buffer left.
    ///
    /// # Errors
    /// What the kernel says to making it non-blocking.
    pub fn new(
        ring: &mut Ring<T>,
        socket: OwnedFd,
        receive_buffer_bytes: usize,
        tokens: StreamTokens<T>,
    ) -> Result<Option<Self>, Errno> {
        listen::set_nonblocking(socket.as_fd())?;
        let Some(receive_buffer) = ring.allocate(receive_buffer_bytes) else { return Ok(None) };
        let receive_capacity = ring.buffers().capacity(receive_buffer) as u32;
        Ok(Some(Self {
            socket: Arc::new(socket),
            tokens,
            outgoing: Outgoing::default(),
            writable_poll: None,
            receive_buffer,
            receive_capacity,
            start: 0,
            end: 0,
            bulk: None,
            receive: None,
            asked: 0,
            drained: false,
            bytes_received: 0,
            remind_in: None,
        }))
    }

    /// Lets the kernel send the acknowledgements of what arrives by TCP together with others, or with data, as it does on
    /// connections that talk in both directions. The two connections of a pair do not: each has data in one direction and
    /// the answers on the other, and without this every packet would be acknowledged by itself as soon as it is read, a
    /// packet more for each write on either node. As always with TCP two full segments are acknowledged at once, and
    /// nothing waits for more than some ten milliseconds.
    pub fn delay_acknowledgements(&mut self) {
        self.remind_in = Some(0);
    }

    /// The kernel forgets about it whenever the connection was silent for a moment.
    fn remind_of_acknowledgements(&mut self) {
        match self.remind_in {
            None => {}
            Some(0) => {
                // Best effort: what it saves is all that is lost.
                let _ = listen::delay_acknowledgements(self.socket.as_fd());
                self.remind_in = Some(RECEIVES_PER_REMINDER);
            }
            Some(left) => self.remind_in = Some(left - 1),
        }
    }

    // Sending

    /// Queues header bytes: `encode` appends them to the vector it is given and must not touch what is there.
    pub fn queue_header(&mut self, encode: impl FnOnce(&mut Vec<u8>)) {
        self.outgoing.push_header(encode);
    }

    /// Queues bytes by copy.
    pub fn queue_bytes(&mut self, bytes: &[u8]) {
        self.outgoing.push_header(|headers| headers.extend_from_slice(bytes));
    }

    /// Queues payload; the queue holds a reference of its own until the kernel has taken all of it.
    pub fn queue_payload(&mut self, ring: &mut Ring<T>, payload: BufferSlice) {
        ring.retain(payload.buffer);
        self.outgoing.push_payload(payload, false);
    }

    /// As [`Stream::queue_payload`], of bytes that the caller does not change, nor let be changed, before the peer has
    /// answered them or the stream has ended. With [`Stream::lend_held_payload`] they are sent without a copy.
    pub fn queue_held_payload(&mut self, ring: &mut Ring<T>, payload: BufferSlice) {
        ring.retain(payload.buffer);
        self.outgoing.push_payload(payload, true);
    }

    /// Sends held payload without a copy from now on, where the kernel can: see [`crate::buffers`].
    pub fn lend_held_payload(&mut self) {
        self.outgoing.lend();
    }

    /// Nobody waits for answers of the peer any more: what is left to be sent is copied, and buffers that were lent get
    /// other memory when they are released. [`Stream::close`] does it, too.
    pub fn stop_lending(&mut self, ring: &mut Ring<T>) {
        self.outgoing.stop_lending(ring);
    }

    /// Whether something is queued, and none of it is payload.
    #[must_use]
    pub fn has_headers_only(&self) -> bool {
        self.outgoing.has_headers_only()
    }

    /// Bytes queued and not yet taken by the kernel.
    #[must_use]
    pub const fn queued_bytes(&self) -> u64 {
        self.outgoing.queued_bytes()
    }

    /// All bytes the kernel has ever taken; a queue that is not empty and a total that does not grow is a send
    /// without progress (`ko-count`, io spec 18).
    #[must_use]
    pub const fn bytes_sent(&self) -> u64 {
        self.outgoing.bytes_sent()
    }

    /// The value [`Stream::bytes_sent`] has when everything queued until now is in the kernel's hands.
    #[must_use]
    pub const fn queue_end(&self) -> u64 {
        self.outgoing.bytes_sent() + self.outgoing.queued_bytes()
    }

    /// All bytes ever received.
    #[must_use]
    pub const fn bytes_received(&self) -> u64 {
        self.bytes_received
    }

    /// Bytes the kernel has taken and the peer has not acknowledged.
    ///
    /// # Errors
    /// What the kernel says; not every kind of socket can tell.
    pub fn unacknowledged_bytes(&self) -> Result<u32, Errno> {
        crate::process::unacknowledged_bytes(&self.socket)
    }

    /// Bytes the kernel takes before it makes the sender wait, for the congestion rules.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn send_buffer_bytes(&self) -> Result<usize, Errno> {
        nix::sys::socket::getsockopt(&self.socket, nix::sys::socket::sockopt::SndBuf)
    }

    /// Sends what is queued, as far as the socket has room. To be called once at the end of a turn.
    ///
    /// # Errors
    /// The connection is broken (`EPIPE`, `ECONNRESET`, `ETIMEDOUT`, ...); what was queued is lost.
    pub fn flush(&mut self, ring: &mut Ring<T>) -> Result<(), Errno> {
        if self.writable_poll.is_some() || self.outgoing.is_empty() {
            return Ok(());
        }
        match self.outgoing.send(ring, self.socket.as_fd()) {
            Ok(()) => Ok(()),
            Err(Errno::EAGAIN) => {
                let poll = ring.poll(&self.socket, Readiness::Writable, self.tokens.writable);
                self.writable_poll = Some(poll);
                Ok(())
            }
            Err(errno) => {
                self.outgoing.clear(ring);
                Err(errno)
            }
        }
    }

    /// Takes the completion of the wait for room in, and goes on sending.
    ///
    /// # Errors
    /// As [`Stream::flush`].
    pub fn handle_writable(&mut self, ring: &mut Ring<T>, result: Result<u32, Errno>) -> Result<(), Errno> {
        self.writable_poll = None;
        result?;
        self.flush(ring)
    }

    // Receiving

    /// Puts bytes that were read from the socket by somebody else in front of all others. False, and nothing done, if
    /// they do not fit.
    pub fn preload(&mut self, ring: &mut Ring<T>, bytes: &[u8]) -> bool {
        assert!(self.receive.is_none() && self.end == 0, "preloaded after the first receive");
        if bytes.len() > self.receive_capacity as usize {
            return false;
        }
        self.end = bytes.len() as u32;
        ring.bytes_mut(self.receive_buffer.slice(0, self.end)).copy_from_slice(bytes);
        true
    }

    /// Asks for more input, unless a receive is under way. Leave it out to make the peer wait.
    ///
    /// # Panics
    /// If the receive buffer is full of bytes nobody consumes: the caller waits for a packet larger than it may be.
    pub fn arm(&mut self, ring: &mut Ring<T>) {
        if self.receive.is_some() {
            return;
        }
        let (target, whole) = match self.bulk {
            Some(Bulk { target, filled }) => {
                self.drained = false;
                (target.part(filled, target.length - filled), true)
            }
            None => {
                self.make_room(ring);
                let room = self.receive_capacity - self.end;
                assert!(room > 0, "a packet larger than the receive buffer was waited for");
                (self.receive_buffer.slice(self.end, room), false)
            }
        };
        self.remind_of_acknowledgements();
        self.asked = target.length;
        self.receive = Some(ring.receive(&self.socket, target, (whole, self.drained), self.tokens.receive));
    }

    /// Whether a receive is under way. [`Stream::data`] may not be looked at then.
    #[must_use]
    pub const fn is_receiving(&self) -> bool {
        self.receive.is_some()
    }

    /// Takes the completion of a receive in.
    pub fn handle_receive(&mut self, result: Result<u32, Errno>) -> Received {
        self.receive = None;
        let count = match result {
            Ok(0) => return Received::Closed,
            Ok(count) => count,
            // Interrupted, or woken for nothing: the next receive tells.
            Err(Errno::EINTR | Errno::EAGAIN) => return Received::Partial,
            Err(errno) => return Received::Failed(errno),
        };
        self.bytes_received += u64::from(count);
        self.drained = count < self.asked;
        let Some(bulk) = &mut self.bulk else {
            self.end += count;
            return Received::Data;
        };
        bulk.filled += count;
        if bulk.filled < bulk.target.length {
            return Received::Partial;
        }
        let target = bulk.target;
        self.bulk = None;
        Received::Bulk(target)
    }

    /// The bytes that have arrived and were not consumed.
    #[must_use]
    pub fn data<'ring>(&self, ring: &'ring Ring<T>) -> &'ring [u8] {
        if self.start == self.end {
            return &[];
        }
        ring.bytes(self.receive_buffer.slice(self.start, self.end - self.start))
    }

    /// Marks the first `count` bytes of [`Stream::data`] as done with.
    pub fn consume(&mut self, count: usize) {
        assert!(count <= (self.end - self.start) as usize, "consumed more than has arrived");
        self.start += count as u32;
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
        }
    }

    /// Directs the next `target.length` bytes of the stream to a pool buffer. True: all of them had arrived and the
    /// buffer is full. False: [`Stream::handle_receive`] says [`Received::Bulk`] when it is; until then
    /// [`Stream::data`] is empty. The caller keeps its reference of the buffer.
    pub fn receive_into(&mut self, ring: &mut Ring<T>, target: BufferSlice) -> bool {
        assert!(self.bulk.is_none() && self.receive.is_none(), "one thing is received at a time");
        let here = (self.end - self.start).min(target.length);
        if here > 0 {
            ring.copy(self.receive_buffer.slice(self.start, here), target.part(0, here));
            self.consume(here as usize);
        }
        if here == target.length {
            return true;
        }
        self.bulk = Some(Bulk { target, filled: here });
        false
    }

    /// Moves what is unconsumed to the front when little room is left behind it.
    fn make_room(&mut self, ring: &mut Ring<T>) {
        let kept = self.end - self.start;
        if self.start > 0 && self.receive_capacity - self.end < self.receive_capacity / 2 {
            let all = self.receive_buffer.slice(0, self.receive_capacity);
            ring.bytes_mut(all).copy_within(self.start as usize..self.end as usize, 0);
            self.start = 0;
            self.end = kept;
        }
    }

    // Ending

    /// Tells the peer that nothing more will be sent; receiving goes on. What is queued but not sent yet is lost:
    /// wait until [`Stream::queued_bytes`] is 0.
    pub fn close_sending(&self) {
        // A socket that is not connected any more has told the peer already.
        let _ = listen::shut_down(self.socket.as_fd(), Shutdown::Write);
    }

    /// Ends the stream: both directions are shut, so that operations under way complete at once, and the buffers
    /// are given back. Completions with this stream's tokens may still arrive and are to be ignored.
    pub fn close(mut self, ring: &mut Ring<T>) {
        let _ = listen::shut_down(self.socket.as_fd(), Shutdown::Both);
        self.outgoing.clear(ring);
        for operation in [self.receive.take(), self.writable_poll.take()].into_iter().flatten() {
            ring.cancel(operation);
        }
        ring.release(self.receive_buffer);
    }

    /// As [`Stream::close`], but what the kernel has not sent yet is thrown away and a TCP peer sees a reset.
    pub fn abort(self, ring: &mut Ring<T>) {
        listen::reset_on_close(self.socket.as_fd());
        self.close(ring);
    }

    /// The token of receive completions and of completions of waits for room.
    #[must_use]
    pub const fn tokens(&self) -> StreamTokens<T> {
        self.tokens
    }
}

impl<T: Copy + Debug> AsFd for Stream<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl<T: Copy + Debug> AsRawFd for Stream<T> {
    fn as_raw_fd(&self) -> i32 {
        self.socket.as_raw_fd()
    }
}

#[cfg(test)]
mod tests;
