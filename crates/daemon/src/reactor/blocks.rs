//! The kernel's requests to the block devices of a resource: as with NBD clients, they go to the engine and its
//! completions back to them.

use udrbd_engine::interface::{ClientError, ClientRequest, Event, Operation, RequestId};
use udrbd_runtime::ublk::{self, Fetched, Queue, Request, Source};
use udrbd_runtime::{BufferHandle, Errno, Ring};
use udrbd_units::{SECTOR_BYTES, Sector, SectorRange, VolumeNumber};

use super::{Reactor, Tag, buffer_of};
use crate::messages::FromEngine;

/// Blocks of 1 MiB of the pool that are there for NBD clients, the peer and metadata whatever block devices there are.
const OTHERS_MEBIBYTES: usize = 32;
/// Names requests of block devices; the rest of the number is the volume and the slot. NBD clients' numbers end below.
const BLOCK_REQUEST: u64 = 1 << 63;

/// What is left of a discard or write of zeroes that is larger than the peer takes at once.
#[derive(Clone, Copy)]
struct Rest {
    operation: Operation,
    range: SectorRange,
}

struct Block {
    volume: VolumeNumber,
    queue: Queue<Tag>,
    /// By slot.
    rests: Vec<Option<Rest>>,
}

/// The block devices of a resource.
#[derive(Default)]
pub(super) struct Blocks {
    blocks: Vec<Block>,
    /// Requests are left unanswered: whoever serves the device next gets them.
    leaving: bool,
}

fn request_id(volume: VolumeNumber, tag: u16) -> RequestId {
    RequestId(BLOCK_REQUEST | u64::from(volume.0) << 16 | u64::from(tag))
}

const fn slot_of(request: RequestId) -> (VolumeNumber, u16) {
    (VolumeNumber((request.0 >> 16) as u16), request.0 as u16)
}

/// Cuts the first piece off a range.
fn cut(range: SectorRange, limit: u32) -> (SectorRange, Option<SectorRange>) {
    let bytes = range.bytes.min(limit);
    let left = range.bytes - bytes;
    let start = Sector(range.start.0 + u64::from(bytes) / SECTOR_BYTES);
    (SectorRange { bytes, ..range }, (left > 0).then_some(SectorRange { start, bytes: left }))
}

/// Whether a request is one of a block device.
pub(super) const fn is_block_request(request: RequestId) -> bool {
    request.0 & BLOCK_REQUEST != 0
}

impl Blocks {
    fn block(&mut self, volume: VolumeNumber) -> Option<&mut Block> {
        self.blocks.iter_mut().find(|block| block.volume == volume)
    }

    /// Takes the queue of a device in.
    pub(super) fn serve(
        &mut self,
        ring: &mut Ring<Tag>,
        volume: VolumeNumber,
        source: Source,
    ) -> Result<(), Errno> {
        if self.block(volume).is_some() {
            return Err(Errno::EBUSY);
        }
        let tag = |tag| Tag::Block { volume, tag };
        let queue = Queue::open(ring, source, OTHERS_MEBIBYTES, tag)?;
        self.blocks.push(Block { volume, queue, rests: vec![None; usize::from(ublk::DEPTH)] });
        Ok(())
    }

    pub(super) fn complete(
        &mut self,
        ring: &mut Ring<Tag>,
        request: RequestId,
        result: Result<(), ClientError>,
        data: Option<BufferHandle>,
    ) {
        let (volume, tag) = slot_of(request);
        // A queue is kept until its last request has completed.
        let Some(block) = self.block(volume) else { unreachable!("a request of no device completed") };
        let result = result.map_err(|error| match error {
            ClientError::Io | ClientError::NotPrimary | ClientError::NoVolume => Errno::EIO,
            ClientError::Invalid => Errno::EINVAL,
        });
        block.rests[usize::from(tag)] = None;
        block.queue.complete(ring, tag, result, data);
    }

    /// The next piece of a request whose last piece ended well.
    pub(super) fn next_piece(&mut self, request: RequestId, limit: u32) -> Option<ClientRequest> {
        let (volume, tag) = slot_of(request);
        let slot = &mut self.block(volume)?.rests[usize::from(tag)];
        let Rest { operation, range } = slot.take()?;
        let (range, rest) = cut(range, limit);
        *slot = rest.map(|range| Rest { operation, range });
        Some(ClientRequest { id: request, volume, operation, range, buffer: None })
    }

    /// Whether there are devices that are left to another server.
    pub(super) const fn are_left(&self) -> bool {
        self.leaving && !self.blocks.is_empty()
    }

    /// Takes no request any more, and leaves them to whoever serves the devices next.
    pub(super) const fn leave(&mut self) {
        self.leaving = true;
    }

    pub(super) fn are_idle(&self) -> bool {
        self.blocks.iter().all(|block| block.queue.serving() == 0)
    }

    /// Sends the answers of this turn. Returns whether some wait for a buffer.
    pub(super) fn flush(&mut self, ring: &mut Ring<Tag>) -> bool {
        let mut waiting = false;
        for block in &mut self.blocks {
            waiting |= block.queue.flush(ring);
        }
        waiting
    }

    /// Closes a device that was stopped.
    fn take_finished(&mut self, ring: &mut Ring<Tag>) -> Option<VolumeNumber> {
        let index = self.blocks.iter().position(|block| block.queue.is_finished())?;
        let block = self.blocks.swap_remove(index);
        block.queue.close(ring);
        Some(block.volume)
    }
}

impl Reactor {
    pub(super) fn block_fetched(&mut self, volume: VolumeNumber, tag: u16, result: Result<u32, Errno>) {
        if self.blocks.leaving && result.is_ok() {
            // The kernel gives a request that has no answer to the next server.
            return;
        }
        let Some(block) = self.blocks.block(volume) else { return };
        let Request { tag, operation, range, buffer } = match block.queue.fetched(&mut self.ring, tag, result)
        {
            Fetched::Request(request) => request,
            Fetched::Nothing => return,
            Fetched::Ended => {
                while let Some(volume) = self.blocks.take_finished(&mut self.ring) {
                    self.outbox.push(FromEngine::BlockClosed { volume });
                }
                return;
            }
        };
        let id = request_id(volume, tag);
        if operation == ublk::Operation::Trim && !self.engine.offers_discard() {
            // As for NBD clients.
            self.blocks.complete(&mut self.ring, id, Ok(()), None);
            return;
        }
        let operation = match operation {
            ublk::Operation::Read => Operation::Read,
            ublk::Operation::Write { fua } => Operation::Write { fua, preflush: false },
            ublk::Operation::Flush => Operation::Flush,
            ublk::Operation::Trim => Operation::Discard,
            ublk::Operation::WriteZeroes { may_unmap } => Operation::WriteZeroes { may_unmap },
        };
        let mut range = range;
        if operation.is_payloadless()
            && let Some(block) = self.blocks.block(volume)
        {
            let (first, rest) = cut(range, self.engine.request_limits().1);
            range = first;
            block.rests[usize::from(tag)] = rest.map(|range| Rest { operation, range });
        }
        // The slot keeps its own reference.
        if let Some(buffer) = buffer {
            self.ring.retain(buffer);
        }
        self.feed(Event::Request(ClientRequest {
            id,
            volume,
            operation,
            range,
            buffer: buffer.map(buffer_of),
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_cut_into_pieces_without_gaps() {
        let mut left = Some(SectorRange { start: Sector(8), bytes: 10 << 10 });
        let mut pieces = Vec::new();
        while let Some(range) = left {
            let (piece, rest) = cut(range, 4 << 10);
            pieces.push((piece.start.0, piece.bytes));
            left = rest;
        }
        assert_eq!(pieces, [(8, 4096), (16, 4096), (24, 2048)]);
    }

    #[test]
    fn the_number_of_a_request_names_its_slot() {
        let id = request_id(VolumeNumber(u16::MAX), 127);
        assert!(is_block_request(id) && slot_of(id) == (VolumeNumber(u16::MAX), 127));
        assert!(!is_block_request(RequestId(u64::from(u32::MAX >> 1) << 32)));
    }
}
