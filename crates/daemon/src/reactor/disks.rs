//! Backing and metadata devices: actions on them become operations of the ring, and their ends become events.

use std::collections::VecDeque;

use udrbd_engine::interface::{Action, CommandId, DiscardMode, Event, IoError, MetadataBlock, Token};
use udrbd_runtime::disk::Disk;
use udrbd_runtime::ring::{Durability, Zeroing};
use udrbd_runtime::{BufferHandle, Errno, Ring};
use udrbd_units::{Sector, SectorRange, VolumeNumber};
use udrbd_wire::DigestAlgorithm;

use super::{Reactor, Tag, buffer_of, handle_of};
use crate::messages::DiskPair;
use crate::undo::Job;

/// Buffers kept for writes of metadata, so that they never wait for buffers whose owners wait for them.
const METADATA_BUFFERS: usize = 32;
const METADATA_BLOCK_BYTES: u32 = 4096;
const METADATA_BLOCK_SECTORS: u64 = 8;
/// Blocks of 1 MiB that reads for the peer leave to what the peer sends, and to metadata.
const READ_RESERVE_MEBIBYTES: usize = 5;
/// Blocks of metadata written with one call: 512 KiB.
const GATHERED_MAX: usize = 128;

struct Slot {
    volume: VolumeNumber,
    disks: DiskPair,
    /// The sizes the engine knows, of the backing device and of that of the metadata.
    sizes: (Sector, Sector),
    /// The attach that brought it, until it succeeds.
    attach: Option<CommandId>,
}

#[derive(Clone, Copy, Debug)]
struct Read {
    token: Token,
    buffer: BufferHandle,
    bytes: u32,
    digest: Option<DigestAlgorithm>,
    look_for_zeroes: bool,
    /// The buffer was taken from the pool for this read.
    taken: bool,
}

#[derive(Debug)]
struct MetadataWrite {
    buffer: BufferHandle,
    /// What is written, one block behind the other.
    blocks: Vec<(Token, MetadataBlock)>,
}

/// Writes of metadata that go out together at the end of the turn: pages of the bitmap, one behind the other.
struct Gathered {
    volume: VolumeNumber,
    start: Sector,
    blocks: Vec<(Token, MetadataBlock)>,
}

impl Gathered {
    fn next(&self) -> Sector {
        Sector(self.start.0 + self.blocks.len() as u64 * METADATA_BLOCK_SECTORS)
    }
}

#[derive(Clone, Copy, Debug)]
struct MetadataRead {
    token: Token,
    buffer: BufferHandle,
    bytes: u32,
}

/// The devices of a resource and what is in flight on them.
pub(super) struct Disks {
    slots: Vec<Slot>,
    reads: Places<Read>,
    metadata_reads: Places<MetadataRead>,
    metadata_writes: Places<MetadataWrite>,
    reserve: Vec<BufferHandle>,
    /// Actions that wait for a buffer.
    waiting: VecDeque<Action>,
    waiting_metadata: VecDeque<Action>,
    gathered: Option<Gathered>,
}

impl Disks {
    pub(super) fn new(ring: &mut Ring<Tag>) -> Self {
        let reserve =
            (0..METADATA_BUFFERS).filter_map(|_| ring.allocate(METADATA_BLOCK_BYTES as usize)).collect();
        Self {
            slots: Vec::new(),
            reads: Places::default(),
            metadata_reads: Places::default(),
            metadata_writes: Places::default(),
            reserve,
            waiting: VecDeque::new(),
            waiting_metadata: VecDeque::new(),
            gathered: None,
        }
    }

    fn pair(&self, volume: VolumeNumber) -> Option<&DiskPair> {
        pair_of(&self.slots, volume)
    }

    /// Takes the devices of an attach in. False where the volume has devices already.
    pub(super) fn install(&mut self, attach: CommandId, volume: VolumeNumber, disks: DiskPair) -> bool {
        if self.pair(volume).is_some() {
            return false;
        }
        let sizes = (disks.backing.properties().size, disks.metadata.properties().size);
        self.slots.push(Slot { volume, disks, sizes, attach: Some(attach) });
        true
    }

    /// Closes the devices of an attach that failed.
    pub(super) fn attach_failed(&mut self, attach: CommandId) {
        self.slots.retain(|slot| slot.attach != Some(attach));
    }

    /// Whether something waits for a buffer.
    pub(super) fn is_waiting(&self) -> bool {
        !self.waiting.is_empty() || !self.waiting_metadata.is_empty()
    }

    pub(super) fn close(&mut self, volume: VolumeNumber) {
        self.slots.retain(|slot| slot.volume != volume);
    }
}

fn pair_of(slots: &[Slot], volume: VolumeNumber) -> Option<&DiskPair> {
    slots.iter().find(|slot| slot.volume == volume).map(|slot| &slot.disks)
}

pub(super) fn io_result(result: Result<u32, Errno>) -> Result<(), IoError> {
    result.map(drop).map_err(io_error)
}

pub(super) fn kept_result(result: Result<(), Errno>) -> Result<(), IoError> {
    result.map_err(io_error)
}

const fn io_error(errno: Errno) -> IoError {
    IoError { errno: errno as i32 }
}

const fn durability(fua: bool, preflush: bool) -> Durability {
    match (fua, preflush) {
        (_, true) => Durability::FlushedAndForced,
        (true, false) => Durability::Forced,
        (false, false) => Durability::Cached,
    }
}

impl Reactor {
    pub(super) fn perform_disk(&mut self, action: Action) {
        match action {
            Action::Read { .. } => self.start_read(action),
            Action::Write { token, volume, range, buffer, fua, preflush } => {
                let ring = &mut self.ring;
                let Some(disk) = self.disks.pair(volume).map(|pair| &pair.backing) else {
                    self.no_disk(token);
                    return;
                };
                let slice = handle_of(buffer).slice(0, range.bytes);
                disk.write(ring, range.start, slice, durability(fua, preflush), Tag::Write(token));
            }
            Action::Flush { token, volume } => {
                self.on_backing(token, volume, |disk, ring| {
                    disk.flush(ring, Tag::Write(token));
                });
            }
            Action::Discard { token, volume, range, mode } => {
                let zeroing = match mode {
                    DiscardMode::Discard => Zeroing::Discard,
                    DiscardMode::ZeroesMayUnmap => Zeroing::MayUnmap,
                    DiscardMode::ZeroesKeepAllocated => Zeroing::KeepAllocated,
                };
                self.on_backing(token, volume, |disk, ring| {
                    let SectorRange { start, bytes } = range;
                    disk.zero(ring, start, u64::from(bytes), zeroing, Tag::Write(token));
                });
            }
            Action::ReadMetadata { .. } | Action::WriteMetadata { .. } => {
                // In order: a write must not overtake one that waits.
                if self.disks.waiting_metadata.is_empty() {
                    self.start_metadata(action);
                } else {
                    self.disks.waiting_metadata.push_back(action);
                }
            }
            other => unreachable!("no action on a disk: {other:?}"),
        }
    }

    fn on_backing(&mut self, token: Token, volume: VolumeNumber, start: impl FnOnce(&Disk, &mut Ring<Tag>)) {
        match self.disks.pair(volume) {
            Some(pair) => start(&pair.backing, &mut self.ring),
            None => self.no_disk(token),
        }
    }

    /// Hands a job to the thread that keeps what is overwritten.
    pub(super) fn keep(&mut self, volume: VolumeNumber, token: Token, job: Job) {
        let keeper = self.disks.pair(volume).and_then(|pair| pair.undo.as_ref());
        if !keeper.is_some_and(|keeper| keeper.ask(job)) {
            self.no_disk(token);
        }
    }

    fn no_disk(&mut self, token: Token) {
        let result = Err(io_error(Errno::ENODEV));
        self.consequences.push_back(Event::WriteDone { token, result });
    }

    fn start_read(&mut self, action: Action) {
        let Action::Read { token, volume, range, buffer, digest, look_for_zeroes } = action else {
            unreachable!("only reads come here")
        };
        let Some(pair) = pair_of(&self.disks.slots, volume) else {
            let result = Err(io_error(Errno::ENODEV));
            let event = Event::ReadDone { token, buffer, digest: None, zeroes: false, result };
            self.consequences.push_back(event);
            return;
        };
        let taken = buffer.is_none();
        let buffer = match buffer {
            Some(buffer) => Some(handle_of(buffer)),
            None if self.disks.waiting.is_empty() => {
                self.ring.allocate_leaving(range.bytes as usize, READ_RESERVE_MEBIBYTES)
            }
            None => None,
        };
        let Some(buffer) = buffer else {
            self.disks.waiting.push_back(action);
            return;
        };
        if digest.is_some() || look_for_zeroes {
            self.ring.use_own_memory(buffer);
        }
        let read = Read { token, buffer, bytes: range.bytes, digest, look_for_zeroes, taken };
        let slot = self.disks.reads.insert(read);
        pair.backing.read(&mut self.ring, range.start, buffer.slice(0, range.bytes), Tag::Read(slot));
    }

    /// Tells the engine if a device of the volume has another size than it knows.
    pub(super) fn look_at_size(&mut self, volume: VolumeNumber) {
        let Some(slot) = self.disks.slots.iter_mut().find(|slot| slot.volume == volume) else { return };
        let found = (slot.disks.backing.current_size(), slot.disks.metadata.current_size());
        // One that does not tell its size is left to the next request for it.
        let (Ok(backing), Ok(metadata)) = found else { return };
        if slot.sizes != (backing, metadata) {
            slot.sizes = (backing, metadata);
            self.feed(Event::DeviceSize { volume, backing, metadata });
        }
    }

    pub(super) fn read_done(&mut self, slot: u32, result: Result<u32, Errno>) {
        let read = self.disks.reads.remove(slot);
        let result = io_result(result);
        let mut digest = None;
        let mut zeroes = false;
        if result.is_ok() && (read.digest.is_some() || read.look_for_zeroes) {
            let data = self.ring.bytes(read.buffer.slice(0, read.bytes));
            digest = read.digest.map(|algorithm| algorithm.digest(data));
            zeroes = read.look_for_zeroes && data.iter().all(|byte| *byte == 0);
        }
        let mut buffer = Some(buffer_of(read.buffer));
        if read.taken && result.is_err() {
            // Nobody has use for it.
            self.ring.release(read.buffer);
            buffer = None;
        }
        self.feed(Event::ReadDone { token: read.token, buffer, digest, zeroes, result });
    }

    fn start_metadata(&mut self, action: Action) {
        match action {
            Action::ReadMetadata { token, volume, position, bytes } => {
                let Some(pair) = pair_of(&self.disks.slots, volume) else {
                    let result = Err(io_error(Errno::ENODEV));
                    self.consequences.push_back(Event::MetadataRead { token, result });
                    return;
                };
                let Some(buffer) = self.ring.allocate(bytes as usize) else {
                    self.disks.waiting_metadata.push_back(action);
                    return;
                };
                let slot = self.disks.metadata_reads.insert(MetadataRead { token, buffer, bytes });
                let slice = buffer.slice(0, bytes);
                pair.metadata.read(&mut self.ring, position, slice, Tag::MetadataRead(slot));
            }
            Action::WriteMetadata { token, volume, position, block, preflush: false, fua: false } => {
                self.gather(volume, position, token, block);
            }
            Action::WriteMetadata { token, volume, position, block, preflush, fua } => {
                self.write_gathered();
                self.write_metadata(volume, position, vec![(token, block)], durability(fua, preflush));
            }
            other => unreachable!("no action on metadata: {other:?}"),
        }
    }

    fn gather(&mut self, volume: VolumeNumber, position: Sector, token: Token, block: MetadataBlock) {
        let fits = self.disks.gathered.as_ref().is_some_and(|gathered| {
            gathered.volume == volume && gathered.next() == position && gathered.blocks.len() < GATHERED_MAX
        });
        if !fits {
            self.write_gathered();
        }
        let gathered = self.disks.gathered.get_or_insert_with(|| Gathered {
            volume,
            start: position,
            blocks: Vec::with_capacity(GATHERED_MAX),
        });
        gathered.blocks.push((token, block));
    }

    /// Writes what was gathered. Returns whether there was something.
    pub(super) fn write_gathered(&mut self) -> bool {
        let Some(Gathered { volume, start, blocks }) = self.disks.gathered.take() else { return false };
        self.write_metadata(volume, start, blocks, Durability::Cached);
        true
    }

    fn write_metadata(
        &mut self,
        volume: VolumeNumber,
        start: Sector,
        mut blocks: Vec<(Token, MetadataBlock)>,
        durability: Durability,
    ) {
        if self.disks.pair(volume).is_none() {
            for (token, block) in blocks {
                let result = Err(io_error(Errno::ENODEV));
                self.consequences.push_back(Event::MetadataWritten { token, block, result });
            }
            return;
        }
        let bytes = METADATA_BLOCK_BYTES * blocks.len() as u32;
        let single = blocks.len() == 1;
        let reserved = if single { self.disks.reserve.pop() } else { None };
        let Some(buffer) = reserved.or_else(|| self.ring.allocate(bytes as usize)) else {
            // One by one, from the buffers kept for that; what is left waits for one of them.
            self.wait_for_metadata_buffer(volume, start, &mut blocks, durability);
            return;
        };
        for (index, (_, block)) in blocks.iter().enumerate() {
            let part = buffer.slice(index as u32 * METADATA_BLOCK_BYTES, METADATA_BLOCK_BYTES);
            self.ring.bytes_mut(part).copy_from_slice(&block[..]);
        }
        let slot = self.disks.metadata_writes.insert(MetadataWrite { buffer, blocks });
        let Some(pair) = pair_of(&self.disks.slots, volume) else { unreachable!("looked up above") };
        let slice = buffer.slice(0, bytes);
        pair.metadata.write(&mut self.ring, start, slice, durability, Tag::MetadataWrite(slot));
    }

    fn wait_for_metadata_buffer(
        &mut self,
        volume: VolumeNumber,
        start: Sector,
        blocks: &mut Vec<(Token, MetadataBlock)>,
        durability: Durability,
    ) {
        let (fua, preflush) = match durability {
            Durability::Cached => (false, false),
            Durability::Forced => (true, false),
            Durability::FlushedAndForced => (true, true),
        };
        for (index, (token, block)) in blocks.drain(..).enumerate() {
            let position = Sector(start.0 + index as u64 * METADATA_BLOCK_SECTORS);
            let action = Action::WriteMetadata { token, volume, position, block, preflush, fua };
            self.disks.waiting_metadata.push_back(action);
        }
    }

    pub(super) fn metadata_read(&mut self, slot: u32, result: Result<u32, Errno>) {
        let MetadataRead { token, buffer, bytes } = self.disks.metadata_reads.remove(slot);
        let result = match result {
            Ok(_) => Ok(self.ring.bytes(buffer.slice(0, bytes)).to_vec()),
            Err(errno) => Err(io_error(errno)),
        };
        self.ring.release(buffer);
        self.feed(Event::MetadataRead { token, result });
    }

    pub(super) fn metadata_written(&mut self, slot: u32, result: Result<u32, Errno>) {
        let MetadataWrite { buffer, blocks } = self.disks.metadata_writes.remove(slot);
        let single = self.ring.buffers().capacity(buffer) == METADATA_BLOCK_BYTES as usize;
        if single && self.disks.reserve.len() < METADATA_BUFFERS {
            self.disks.reserve.push(buffer);
        } else {
            self.ring.release(buffer);
        }
        let result = io_result(result);
        for (token, block) in blocks {
            self.feed(Event::MetadataWritten { token, block, result });
        }
    }

    /// Starts what waited for a buffer for metadata, in its order.
    fn retry_metadata(&mut self) {
        let mut left = self.disks.waiting_metadata.len();
        while left > 0
            && let Some(action) = self.disks.waiting_metadata.pop_front()
        {
            let behind = std::mem::take(&mut self.disks.waiting_metadata);
            self.start_metadata(action);
            self.write_gathered();
            let stuck = !self.disks.waiting_metadata.is_empty();
            self.disks.waiting_metadata.extend(behind);
            if stuck {
                return;
            }
            left -= 1;
        }
    }

    /// Starts what waited for a buffer, as far as there are any.
    pub(super) fn retry_waiting(&mut self) {
        self.retry_metadata();
        for _ in 0..self.disks.waiting.len() {
            let Some(action) = self.disks.waiting.pop_front() else { break };
            // Those that wait behind it do so still: it must not queue up again for them.
            let others = std::mem::take(&mut self.disks.waiting);
            self.start_read(action);
            let stuck = !self.disks.waiting.is_empty();
            self.disks.waiting.extend(others);
            if stuck {
                break;
            }
        }
    }
}

/// A table of things in flight, by place; places are used again.
struct Places<V> {
    values: Vec<Option<V>>,
    free: Vec<u32>,
}

impl<V> Default for Places<V> {
    fn default() -> Self {
        Self { values: Vec::new(), free: Vec::new() }
    }
}

impl<V> Places<V> {
    fn insert(&mut self, value: V) -> u32 {
        match self.free.pop() {
            Some(place) => {
                assert!(self.values[place as usize].is_none(), "a free place is empty");
                self.values[place as usize] = Some(value);
                place
            }
            None => {
                self.values.push(Some(value));
                (self.values.len() - 1) as u32
            }
        }
    }

    fn remove(&mut self, place: u32) -> V {
        let Some(value) = self.values[place as usize].take() else { panic!("an operation completes once") };
        self.free.push(place);
        value
    }
}
