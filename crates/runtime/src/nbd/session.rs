//! The second phase: one client's requests and replies on a ring.
//!
//! Requests are handed out as [`Submission`]s of at most [`SessionLimits::piece_bytes`] of data; the payload of a
//! write is received straight into its pool buffer. A request that is larger than one piece is handed out piece by
//! piece while the limits allow, and answered when all are done:
//!
//! * a write or a range without data is answered once, with the first error if there was one;
//! * a read is answered chunk by chunk in whatever order pieces are done, if structured replies were agreed. Without
//!   them the data must follow one header in order and an error cannot be told once the header is out: such a read
//!   waits until the session is otherwise idle, goes piece after piece, and ends the session if a later piece fails.
//!
//! The owner calls, in a turn: [`Session::handle_receive`] and [`Session::handle_writable`] for its completions,
//! [`Session::complete`] for finished submissions, then once [`Session::resume`] and [`Session::flush`]; asks
//! [`Session::wants_resume`] before it sleeps; and drops the session with [`Session::close`] when
//! [`Session::is_finished`]. A client that disconnects with requests in flight
//! leaves a session that finishes when the last of them completes.
//!
//! Buffers: the session owns one reference of each submission's buffer until [`Session::complete`]; who passes the
//! buffer on takes a reference of its own.

mod table;

use std::fmt::Debug;
use std::os::fd::OwnedFd;

use udrbd_units::{SECTOR_BYTES, Sector, SectorRange};

use super::negotiation::Negotiated;
use super::protocol::{
    self, Bounds, Command, ErrorCode, REQUEST_BYTES, Request, encode_data_chunk, encode_error_chunk,
    encode_simple_reply,
};
use crate::Errno;
use crate::buffers::BufferHandle;
use crate::ring::Ring;
use crate::socket::{RECEIVE_BUFFER_BYTES, Received, Stream, StreamTokens};
use table::{Job, JobState, Piece, Table};

/// A number of freed buffers that no pool reaches: "try again in any case".
const NEVER_FREED: u64 = u64::MAX;

/// How much a session may have under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionLimits {
    /// Submissions at once.
    pub submissions: usize,
    /// Bytes of data in submissions and in replies not sent yet. One piece is always allowed.
    pub data_bytes: u64,
    /// Blocks of 1 MiB of the pool that clients leave to the peer and to metadata; at most a quarter of the pool.
    pub reserve_mebibytes: usize,
    /// The largest submission with data, in bytes; a power of two up to 1 MiB.
    pub piece_bytes: u32,
    /// The largest submission without data, in bytes.
    pub zero_bytes: u32,
}

impl Default for SessionLimits {
    fn default() -> Self {
        Self {
            submissions: 128,
            data_bytes: 8 << 20,
            reserve_mebibytes: 8,
            piece_bytes: 1 << 20,
            zero_bytes: 128 << 20,
        }
    }
}

/// Names a submission within its session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SubmissionId(pub u32);

/// What is to be done to a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Read into the buffer.
    Read,
    /// Write the buffer.
    Write {
        /// On stable storage before it completes.
        fua: bool,
    },
    /// Everything completed before is on stable storage when it completes. The range is empty.
    Flush,
    /// The content is no longer needed.
    Trim,
    /// Make the range read as zeroes.
    WriteZeroes {
        /// The range may be unmapped.
        may_unmap: bool,
    },
}

/// A request of a client, or a piece of one. Ranges are whole blocks within the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Submission {
    /// For [`Session::complete`].
    pub id: SubmissionId,
    /// What to do.
    pub operation: Operation,
    /// Where.
    pub range: SectorRange,
    /// The data of a write, or the room for a read, from the buffer's first byte on.
    pub buffer: Option<BufferHandle>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    /// Requests are read.
    Running,
    /// The client is done asking; answers are still sent.
    Draining,
    /// Nobody listens any more.
    Broken,
}

/// The request whose pieces are being handed out.
#[derive(Clone, Copy, Debug)]
enum Current {
    /// A job's next piece begins here.
    Job { job: u32, next: u64 },
    /// A piece of a write is being received.
    Receiving { job: u32, next: u64, piece: Piece },
    /// A read that must be answered in order (see the module's text), waiting for the rest to finish.
    WaitingForIdle { job: u32 },
    /// The last piece of such a read is under way: no other reply may come before it.
    EndingInOrder,
    /// Payload of a refused write.
    Discarding { left: u32, cookie: u64, error: ErrorCode },
}

/// One client: see the module's text.
#[derive(Debug)]
pub struct Session<T: Copy + Debug> {
    stream: Stream<T>,
    bounds: Bounds,
    limits: SessionLimits,
    life: Life,
    refusing: Option<ErrorCode>,
    table: Table,
    current: Option<Current>,
    /// Jobs whose pieces are done and which want a flush before the answer.
    flushes: Vec<u32>,
    /// Whether the session waits for bytes of the client, as opposed to room or memory.
    starved: bool,
    /// Where it waits for room or memory: how many buffers had been freed when it began to wait.
    blocked_at: Option<u64>,
}

impl<T: Copy + Debug> Session<T> {
    /// Takes a negotiated connection over. Call [`Session::resume`] at once: the client's first requests may be here.
    ///
    /// # Errors
    /// `ENOMEM` when the pool has no receive buffer left, and what the kernel says.
    pub fn new(
        ring: &mut Ring<T>,
        socket: OwnedFd,
        negotiated: &Negotiated,
        limits: SessionLimits,
        tokens: StreamTokens<T>,
    ) -> Result<Self, Errno> {
        assert!(limits.piece_bytes.is_power_of_two() && limits.piece_bytes <= 1 << 20);
        assert!(u64::from(limits.zero_bytes).is_multiple_of(SECTOR_BYTES) && limits.zero_bytes > 0);
        let stream = Stream::new(ring, socket, RECEIVE_BUFFER_BYTES, tokens)?;
        let mut stream = stream.ok_or(Errno::ENOMEM)?;
        if !stream.preload(ring, &negotiated.early_bytes) {
            stream.close(ring);
            return Err(Errno::EMSGSIZE);
        }
        let bounds = Bounds {
            size_bytes: negotiated.export.size_bytes,
            block_bytes: negotiated.export.block_bytes,
            export_flags: negotiated.export.flags(negotiated.structured),
            structured: negotiated.structured,
        };
        Ok(Self {
            stream,
            bounds,
            limits,
            life: Life::Running,
            refusing: None,
            table: Table::default(),
            current: None,
            flushes: Vec::new(),
            starved: true,
            blocked_at: None,
        })
    }

    /// The device has another size from now on.
    pub fn set_size_bytes(&mut self, size_bytes: u64) {
        self.bounds.size_bytes = size_bytes;
    }

    /// From now on every new request is answered with this error (the node is no longer Primary), or again served.
    pub fn refuse_requests(&mut self, error: Option<ErrorCode>) {
        self.refusing = error;
    }

    /// Submissions not completed yet.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.table.pieces_in_flight()
    }

    /// Whether it can be closed: nothing in flight, and every answer sent or nobody there to hear it.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.table.pieces_in_flight() == 0
            && match self.life {
                Life::Running => false,
                Life::Draining => self.stream.queued_bytes() == 0 && self.flushes.is_empty(),
                Life::Broken => true,
            }
    }

    /// Ends the session and gives its buffers back, sent or not.
    ///
    /// # Panics
    /// If submissions are in flight: their buffers belong to whoever works on them. Use [`Session::hang_up`] and
    /// wait for [`Session::is_finished`].
    pub fn close(mut self, ring: &mut Ring<T>) {
        assert!(self.table.pieces_in_flight() == 0, "closed with submissions in flight");
        self.drop_current(ring);
        self.stream.close(ring);
    }

    /// Stops listening to the client and answering it.
    pub fn hang_up(&mut self, ring: &mut Ring<T>) {
        self.life = Life::Broken;
        self.drop_current(ring);
    }

    /// Takes a receive completion in and appends what can be submitted.
    pub fn handle_receive(
        &mut self,
        ring: &mut Ring<T>,
        result: Result<u32, Errno>,
        submissions: &mut Vec<Submission>,
    ) {
        let received = self.stream.handle_receive(result);
        match received {
            // What still arrives after the end of the session is of no interest.
            _ if self.life != Life::Running => {}
            Received::Data | Received::Partial => {}
            Received::Bulk(_) => self.payload_is_here(submissions),
            Received::Closed => self.client_is_done(ring),
            Received::Failed(_) => self.hang_up(ring),
        }
        self.resume(ring, submissions);
    }

    /// Takes the completion of a wait for room in.
    pub fn handle_writable(&mut self, ring: &mut Ring<T>, result: Result<u32, Errno>) {
        if self.stream.handle_writable(ring, result).is_err() {
            self.hang_up(ring);
        }
    }

    /// Takes the end of a submission in. For a read, `data` may name another buffer that has the data (it came from
    /// the peer); otherwise they are in the submission's own. References of `data` stay the caller's.
    pub fn complete(
        &mut self,
        ring: &mut Ring<T>,
        id: SubmissionId,
        result: Result<(), Errno>,
        data: Option<BufferHandle>,
    ) {
        let piece = self.table.take_piece(id.0);
        let error = result.err().map(ErrorCode::from);
        let job = self.table.job_mut(piece.job);
        job.error = job.error.or(error);
        let told = match job.command {
            Command::Read { .. } => self.answer_read(ring, &piece, error, data),
            _ => Ok(()),
        };
        if let Some(buffer) = piece.buffer {
            ring.release(buffer);
        }
        self.finish_job_if_done(piece.job);
        // A submission less may be what the next one waits for.
        self.blocked_at = self.blocked_at.map(|_| NEVER_FREED);
        if told.is_err() {
            self.hang_up(ring);
        }
    }

    /// Whether [`Session::resume`] may find something to do although nothing will complete: room or memory has become
    /// free, by a flush or a release, since it was called last. To be asked at the end of a turn, of every session;
    /// where it is true the thread does not sleep but takes another turn at once.
    #[must_use]
    pub fn wants_resume(&self, ring: &Ring<T>) -> bool {
        !self.flushes.is_empty() || self.blocked_at.is_some_and(|at| at != ring.buffers().freed())
    }

    /// Appends what can be submitted now. To be called once a turn, after completions.
    pub fn resume(&mut self, ring: &mut Ring<T>, submissions: &mut Vec<Submission>) {
        self.submit_flushes(submissions);
        self.starved = false;
        self.blocked_at = None;
        while !self.starved && self.life == Life::Running {
            let progress = match self.current {
                Some(current) => self.advance(ring, current, submissions),
                None => self.next_request(ring),
            };
            if !progress {
                break;
            }
        }
        if self.life == Life::Running && !self.starved {
            self.blocked_at = Some(ring.buffers().freed());
        }
    }

    /// Sends what there is to send and asks for more input where that is wanted. To be called once at the end of a
    /// turn.
    pub fn flush(&mut self, ring: &mut Ring<T>) {
        if self.life != Life::Broken && self.stream.flush(ring).is_err() {
            self.hang_up(ring);
        }
        if self.life == Life::Running && self.starved {
            self.stream.arm(ring);
        }
    }

    fn client_is_done(&mut self, ring: &mut Ring<T>) {
        if self.life == Life::Running {
            self.life = Life::Draining;
        }
        self.drop_current(ring);
    }

    /// Forgets the request that is being handed out; what was submitted of it goes on.
    fn drop_current(&mut self, ring: &mut Ring<T>) {
        match self.current.take() {
            Some(Current::Receiving { job, piece, .. }) => {
                if let Some(buffer) = piece.buffer {
                    ring.release(buffer);
                }
                self.table.abandon(job);
            }
            Some(Current::Job { job, .. } | Current::WaitingForIdle { job }) => self.table.abandon(job),
            Some(Current::Discarding { .. } | Current::EndingInOrder) | None => {}
        }
    }

    /// Reads the next request. False when nothing more can be done now.
    fn next_request(&mut self, ring: &mut Ring<T>) -> bool {
        if self.stream.is_receiving() {
            self.starved = true;
            return false;
        }
        let Some(bytes) = self.stream.data(ring).first_chunk::<REQUEST_BYTES>() else {
            self.starved = true;
            return false;
        };
        let Ok(request) = Request::decode(bytes) else {
            // Client and server have lost each other; anything answered now would be misread.
            self.hang_up(ring);
            return false;
        };
        if self.table.pieces_in_flight() >= self.limits.submissions {
            return false;
        }
        self.stream.consume(REQUEST_BYTES);
        match protocol::validate(&request, &self.bounds) {
            Ok(Command::Disconnect) => self.client_is_done(ring),
            Ok(command) => match self.refusing {
                Some(error) => self.refuse(&request, error),
                None => self.begin(&request, command),
            },
            Err(error) => self.refuse(&request, error),
        }
        true
    }

    fn refuse(&mut self, request: &Request, error: ErrorCode) {
        let (left, cookie) = (request.payload_bytes(), request.cookie);
        if left > 0 {
            self.current = Some(Current::Discarding { left, cookie, error });
        } else {
            self.answer_error(request.command == 0, cookie, error);
        }
    }

    fn begin(&mut self, request: &Request, command: Command) {
        let structured_read = self.bounds.structured && matches!(command, Command::Read { .. });
        let large = request.length > self.limits.piece_bytes;
        if large && command == (Command::Read { one_chunk: true }) {
            self.answer_error(true, request.cookie, ErrorCode::Overflow);
            return;
        }
        let in_order = large && matches!(command, Command::Read { .. }) && !structured_read;
        let job = self.table.insert_job(Job {
            command,
            cookie: request.cookie,
            offset: request.offset,
            length: request.length,
            in_order,
            state: JobState::HandingOut,
            outstanding: 0,
            error: None,
        });
        self.current =
            Some(if in_order { Current::WaitingForIdle { job } } else { Current::Job { job, next: 0 } });
    }

    /// Goes on with the request at hand. False when nothing more can be done now.
    fn advance(&mut self, ring: &mut Ring<T>, current: Current, submissions: &mut Vec<Submission>) -> bool {
        match current {
            Current::Discarding { left, cookie, error } => self.discard(ring, left, cookie, error),
            Current::WaitingForIdle { job } => {
                if self.table.pieces_in_flight() > 0 {
                    return false;
                }
                self.current = Some(Current::Job { job, next: 0 });
                true
            }
            Current::EndingInOrder => {
                if self.table.pieces_in_flight() > 0 {
                    return false;
                }
                self.current = None;
                true
            }
            // The completion of the receive goes on.
            Current::Receiving { .. } => {
                self.starved = true;
                false
            }
            Current::Job { job, next } => self.next_piece(ring, job, next, submissions),
        }
    }

    fn discard(&mut self, ring: &Ring<T>, left: u32, cookie: u64, error: ErrorCode) -> bool {
        if self.stream.is_receiving() {
            self.starved = true;
            return false;
        }
        let here = self.stream.data(ring).len().min(left as usize);
        self.stream.consume(here);
        let left = left - here as u32;
        if left > 0 {
            self.current = Some(Current::Discarding { left, cookie, error });
            self.starved = true;
            return false;
        }
        self.current = None;
        self.answer_error(false, cookie, error);
        true
    }

    fn next_piece(
        &mut self,
        ring: &mut Ring<T>,
        id: u32,
        next: u64,
        submissions: &mut Vec<Submission>,
    ) -> bool {
        let job = *self.table.job(id);
        let left = u64::from(job.length) - next;
        let carries_data = matches!(job.command, Command::Read { .. } | Command::Write { .. });
        let most = if carries_data { self.limits.piece_bytes } else { self.limits.zero_bytes };
        let length = left.min(u64::from(most)) as u32;
        if job.in_order && (job.outstanding > 0 || job.error.is_some()) {
            return false;
        }
        if self.table.pieces_in_flight() >= self.limits.submissions {
            return false;
        }
        let buffer = if carries_data {
            let held = self.table.data_bytes() + self.stream.queued_bytes();
            if held > 0 && held + u64::from(length) > self.limits.data_bytes {
                return false;
            }
            let reserve = self.limits.reserve_mebibytes.min(ring.buffers().total_bytes() >> 22);
            let Some(buffer) = ring.allocate_leaving(length as usize, reserve) else { return false };
            Some(buffer)
        } else {
            None
        };
        let piece = Piece { job: id, offset: job.offset + next, length, buffer, carries_data };
        let next = next + u64::from(length);
        match (job.command, buffer) {
            (Command::Write { .. }, Some(buffer)) => {
                self.current = Some(Current::Receiving { job: id, next, piece });
                if self.stream.receive_into(ring, buffer.slice(0, length)) {
                    self.payload_is_here(submissions);
                }
            }
            _ => {
                self.current = Some(Current::Job { job: id, next });
                self.submit(piece, submissions);
                self.handed_out(id, next);
            }
        }
        true
    }

    /// The payload of the write's piece at hand is complete.
    fn payload_is_here(&mut self, submissions: &mut Vec<Submission>) {
        let Some(Current::Receiving { job, next, piece }) = self.current else {
            unreachable!("payload is received for a write only")
        };
        self.current = Some(Current::Job { job, next });
        self.submit(piece, submissions);
        self.handed_out(job, next);
    }

    /// Ends the handing out when that was the last piece.
    fn handed_out(&mut self, id: u32, next: u64) {
        let job = self.table.job_mut(id);
        if next == u64::from(job.length) {
            job.state = JobState::HandedOut;
            self.current = job.in_order.then_some(Current::EndingInOrder);
        }
    }

    fn submit(&mut self, piece: Piece, submissions: &mut Vec<Submission>) {
        let operation = match self.table.job(piece.job).command {
            Command::Read { .. } => Operation::Read,
            Command::Write { fua } => Operation::Write { fua },
            Command::Trim { .. } => Operation::Trim,
            Command::WriteZeroes { may_unmap, .. } => Operation::WriteZeroes { may_unmap },
            Command::Flush => Operation::Flush,
            Command::Disconnect => unreachable!("a disconnect is no job"),
        };
        let range = SectorRange::new(Sector(piece.offset / SECTOR_BYTES), piece.length);
        let id = self.table.insert_piece(piece);
        submissions.push(Submission { id: SubmissionId(id), operation, range, buffer: piece.buffer });
    }

    /// Zeroes and trims have no force of their own: a forced one is followed by a flush.
    fn submit_flushes(&mut self, submissions: &mut Vec<Submission>) {
        while let Some(job) = self.flushes.pop() {
            self.table.job_mut(job).state = JobState::Flushing;
            let piece = Piece { job, offset: 0, length: 0, buffer: None, carries_data: false };
            let id = self.table.insert_piece(piece);
            let range = SectorRange::new(Sector(0), 0);
            let (id, operation) = (SubmissionId(id), Operation::Flush);
            submissions.push(Submission { id, operation, range, buffer: None });
        }
    }

    fn finish_job_if_done(&mut self, id: u32) {
        let job = *self.table.job(id);
        if job.outstanding > 0 || job.state == JobState::HandingOut {
            return;
        }
        let forced =
            matches!(job.command, Command::Trim { fua: true } | Command::WriteZeroes { fua: true, .. });
        if forced && job.state == JobState::HandedOut && job.error.is_none() && self.life != Life::Broken {
            self.flushes.push(id);
            return;
        }
        self.table.remove_job(id);
        if job.state != JobState::Abandoned && !matches!(job.command, Command::Read { .. }) {
            self.answer(job.cookie, job.error);
        }
    }

    fn answer(&mut self, cookie: u64, error: Option<ErrorCode>) {
        if self.life != Life::Broken {
            self.stream.queue_header(|reply| encode_simple_reply(reply, cookie, error));
        }
    }

    fn answer_error(&mut self, read: bool, cookie: u64, error: ErrorCode) {
        if read && self.bounds.structured {
            self.stream.queue_header(|reply| encode_error_chunk(reply, true, cookie, error, None));
        } else {
            self.answer(cookie, Some(error));
        }
    }

    /// Answers a piece of a read. Fails when the answer is half sent and cannot be ended.
    fn answer_read(
        &mut self,
        ring: &mut Ring<T>,
        piece: &Piece,
        error: Option<ErrorCode>,
        data: Option<BufferHandle>,
    ) -> Result<(), HalfAnswered> {
        let job = *self.table.job(piece.job);
        if self.life == Life::Broken || job.state == JobState::Abandoned {
            return Ok(());
        }
        let (cookie, offset) = (job.cookie, piece.offset);
        let first = offset == job.offset;
        if self.bounds.structured {
            let done = job.state == JobState::HandedOut && job.outstanding == 0;
            self.stream.queue_header(|reply| match error {
                None => encode_data_chunk(reply, done, cookie, offset, piece.length),
                Some(error) => encode_error_chunk(reply, done, cookie, error, Some(offset)),
            });
        } else if let Some(error) = error {
            if !first {
                return Err(HalfAnswered);
            }
            self.answer(cookie, Some(error));
            if job.in_order && job.state == JobState::HandingOut {
                self.current = None;
                self.table.job_mut(piece.job).state = JobState::HandedOut;
            }
        } else if first {
            self.answer(cookie, None);
        }
        if error.is_none()
            && let Some(buffer) = data.or(piece.buffer)
        {
            self.stream.queue_payload(ring, buffer.slice(0, piece.length));
        }
        Ok(())
    }
}

/// The header of a simple reply promised data that cannot be had.
struct HalfAnswered;

#[cfg(test)]
mod tests;
