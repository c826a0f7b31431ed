//! NBD clients: their requests go to the engine, its completions back to them.

use std::os::fd::OwnedFd;

use udrbd_engine::interface::{ClientError, ClientRequest, Event, Operation, RequestId};
use udrbd_runtime::nbd::{self, Negotiated, Session, SessionLimits, Submission, SubmissionId};
use udrbd_runtime::socket::StreamTokens;
use udrbd_runtime::{BufferHandle, Errno, Ring};
use udrbd_units::{Sector, VolumeNumber};

use super::{Reactor, Tag, buffer_of};

/// Clients of one resource at a time.
const CLIENTS_MAX: usize = 64;

struct Client {
    number: u32,
    volume: VolumeNumber,
    session: Session<Tag>,
}

/// The clients of a resource.
#[derive(Default)]
pub(super) struct Clients {
    clients: Vec<Client>,
    count: u32,
    /// Room for submissions on their way to the engine; empty between calls.
    submissions: Vec<Submission>,
}

impl Clients {
    pub(super) fn any(&self) -> bool {
        !self.clients.is_empty()
    }

    pub(super) fn is_open(&self, volume: VolumeNumber) -> bool {
        self.clients.iter().any(|client| client.volume == volume)
    }

    pub(super) fn open_volumes(&self) -> Vec<VolumeNumber> {
        let mut volumes: Vec<VolumeNumber> = self.clients.iter().map(|client| client.volume).collect();
        volumes.sort_unstable();
        volumes.dedup();
        volumes
    }

    /// Takes a client over. Where that cannot be it is hung up on; it finds its connection closed.
    pub(super) fn welcome(
        &mut self,
        ring: &mut Ring<Tag>,
        volume: VolumeNumber,
        socket: OwnedFd,
        negotiated: &Negotiated,
        serving: bool,
        (piece_bytes, zero_bytes): (u32, u32),
    ) {
        if !serving || self.clients.len() >= CLIENTS_MAX {
            return;
        }
        let number = self.count;
        // The highest bit tells requests of block devices from those of clients.
        self.count = (self.count + 1) & (u32::MAX >> 1);
        let tokens =
            StreamTokens { receive: Tag::ClientReceive(number), writable: Tag::ClientWritable(number) };
        let limits = SessionLimits { piece_bytes, zero_bytes, ..SessionLimits::default() };
        if let Ok(session) = Session::new(ring, socket, negotiated, limits, tokens) {
            self.clients.push(Client { number, volume, session });
        }
    }

    fn client(&mut self, number: u32) -> Option<&mut Client> {
        self.clients.iter_mut().find(|client| client.number == number)
    }

    pub(super) fn writable(&mut self, ring: &mut Ring<Tag>, number: u32, result: Result<u32, Errno>) {
        if let Some(client) = self.client(number) {
            client.session.handle_writable(ring, result);
        }
    }

    pub(super) fn complete(
        &mut self,
        ring: &mut Ring<Tag>,
        request: RequestId,
        result: Result<(), ClientError>,
        data: Option<BufferHandle>,
    ) {
        let (number, submission) = ((request.0 >> 32) as u32, SubmissionId(request.0 as u32));
        // A client is kept until its last request has completed.
        let Some(client) = self.client(number) else { unreachable!("a request of nobody completed") };
        let result = result.map_err(|error| match error {
            ClientError::Io => Errno::EIO,
            ClientError::NotPrimary => Errno::EROFS,
            ClientError::Invalid => Errno::EINVAL,
            ClientError::NoVolume => Errno::ENXIO,
        });
        client.session.complete(ring, submission, result, data);
    }

    /// A volume has another role or size.
    pub(super) fn device_changed(
        &mut self,
        ring: &mut Ring<Tag>,
        volume: VolumeNumber,
        primary: bool,
        size: Sector,
    ) {
        for client in self.clients.iter_mut().filter(|client| client.volume == volume) {
            if primary {
                if size.0 > 0 {
                    client.session.set_size_bytes(size.bytes());
                }
            } else {
                client.session.hang_up(ring);
            }
        }
    }

    pub(super) fn hang_up_all(&mut self, ring: &mut Ring<Tag>) {
        for client in &mut self.clients {
            client.session.hang_up(ring);
        }
    }

    pub(super) fn are_idle(&self) -> bool {
        self.clients.iter().all(|client| client.session.in_flight() == 0)
    }

    pub(super) fn want_another_turn(&self, ring: &Ring<Tag>) -> bool {
        self.clients.iter().any(|client| client.session.wants_resume(ring))
    }

    /// Answers, and asks for more; drops those that are done. Returns whether one went.
    pub(super) fn flush(&mut self, ring: &mut Ring<Tag>) -> bool {
        let mut index = 0;
        let before = self.clients.len();
        while let Some(client) = self.clients.get_mut(index) {
            client.session.flush(ring);
            if client.session.is_finished() {
                self.clients.swap_remove(index).session.close(ring);
            } else {
                index += 1;
            }
        }
        self.clients.len() != before
    }
}

impl Reactor {
    pub(super) fn client_received(&mut self, number: u32, result: Result<u32, Errno>) {
        let mut submissions = std::mem::take(&mut self.clients.submissions);
        if let Some(client) = self.clients.client(number) {
            let volume = client.volume;
            client.session.handle_receive(&mut self.ring, result, &mut submissions);
            self.submit(number, volume, &mut submissions);
        }
        self.clients.submissions = submissions;
    }

    /// Takes up what clients had to leave for want of room.
    pub(super) fn resume_clients(&mut self) {
        let mut submissions = std::mem::take(&mut self.clients.submissions);
        for index in 0..self.clients.clients.len() {
            let client = &mut self.clients.clients[index];
            let (number, volume) = (client.number, client.volume);
            client.session.resume(&mut self.ring, &mut submissions);
            self.submit(number, volume, &mut submissions);
        }
        self.clients.submissions = submissions;
    }

    fn submit(&mut self, client: u32, volume: VolumeNumber, submissions: &mut Vec<Submission>) {
        for submission in submissions.drain(..) {
            let id = RequestId(u64::from(client) << 32 | u64::from(submission.id.0));
            if submission.operation == nbd::Operation::Trim && !self.engine.offers_discard() {
                // The peer does not know discards: nothing changes anywhere, which is what a discard may do.
                self.clients.complete(&mut self.ring, id, Ok(()), None);
                continue;
            }
            let operation = match submission.operation {
                nbd::Operation::Read => Operation::Read,
                nbd::Operation::Write { fua } => Operation::Write { fua, preflush: false },
                nbd::Operation::Flush => Operation::Flush,
                nbd::Operation::Trim => Operation::Discard,
                nbd::Operation::WriteZeroes { may_unmap } => Operation::WriteZeroes { may_unmap },
            };
            // The session keeps its own reference until completion.
            if let Some(buffer) = submission.buffer {
                self.ring.retain(buffer);
            }
            self.feed(Event::Request(ClientRequest {
                id,
                volume,
                operation,
                range: submission.range,
                buffer: submission.buffer.map(buffer_of),
            }));
        }
    }
}
