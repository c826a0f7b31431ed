//! The backing device: its operations, its metadata, attach and detach.

mod abandon;
mod activity;
pub(crate) mod attach;
pub(crate) mod bitmap_io;
mod detach;
pub(crate) mod resize;
mod superblock;

use udrbd_units::{DiskState, SectorRange};

use crate::Engine;
use crate::interface::{IoError, Level, MetadataBlock, OnIoError, Time, Token};
use crate::slab::Key;
use crate::state::StateRequest;

/// What an operation of the backing device is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// The local part of a request.
    RequestLocal(Key),
    /// A write, read or discard for the peer, or of a resync.
    PeerRequest(Key),
    /// The flush an epoch of the peer waits for.
    EpochFlush,
    /// The superblock.
    Superblock,
    /// A changed page of the bitmap.
    BitmapPage { page: usize },
    /// A page that has to be durable before an activity log transaction.
    HintedPage { page: usize },
    /// The flush of the data that pages of the bitmap wait for.
    BitmapFlush,
    /// The transaction.
    Transaction,
    /// A step of an attach; the number is the attach's own.
    Attach(u64),
    /// A block of the empty activity log of metadata that move.
    Ring,
    /// Old content on its way to the side file of an undo.
    Keep,
    /// Nothing any more: whoever waited for it was told that it failed.
    GivenUp {
        /// It was for the peer: a buffer that comes with the answer is nobody's.
        for_peer: bool,
    },
}

impl Purpose {
    /// Whether it is about metadata, not data.
    const fn is_metadata(self) -> bool {
        match self {
            Self::Superblock
            | Self::BitmapPage { .. }
            | Self::HintedPage { .. }
            | Self::Transaction
            | Self::Attach(_)
            | Self::Ring => true,
            Self::RequestLocal(_)
            | Self::PeerRequest(_)
            | Self::EpochFlush
            | Self::BitmapFlush
            | Self::Keep
            | Self::GivenUp { .. } => false,
        }
    }
}

/// An operation in flight.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Io {
    pub(crate) volume: usize,
    pub(crate) purpose: Purpose,
    /// When it was asked for.
    pub(crate) started: Time,
    /// It counts among the operations of the disk.
    pub(crate) counted: bool,
}

impl Io {
    /// Whether nobody waits for it any more.
    pub(crate) const fn is_given_up(&self) -> bool {
        matches!(self.purpose, Purpose::GivenUp { .. })
    }
}

impl Engine {
    /// Names an operation that is about to be asked for.
    pub(crate) fn start_io(&mut self, index: usize, purpose: Purpose) -> Token {
        self.arm_disk_timer(index);
        let volume = &mut self.volumes[index];
        if let Some(disk) = &mut volume.disk {
            disk.operations += 1;
        }
        volume.counters.local_pending += 1;
        let io = Io { volume: index, purpose, started: self.now, counted: true };
        Token(self.io.insert(io).number())
    }

    /// Finds out what an operation that ended was for; `None` for a token that was never given.
    pub(crate) fn end_io(&mut self, token: Token) -> Option<Io> {
        let io = self.io.remove(Key::from_number(token.0))?;
        let volume = &mut self.volumes[io.volume];
        volume.counters.local_pending -= 1;
        volume.io_ended_at = self.now;
        if let Some(disk) = &mut volume.disk {
            if io.counted {
                disk.operations -= 1;
                // It answers after all: what is left to be written can be written.
                disk.abandoned &= disk.operations > 0;
            }
            if disk.operations == 0 && volume.state.disk <= DiskState::Failed {
                self.attention = true;
            }
        }
        Some(io)
    }

    /// A write, flush or discard has ended.
    pub(crate) fn disk_write_done(&mut self, token: Token, result: Result<(), IoError>) {
        let Some(io) = self.end_io(token) else { return };
        match io.purpose {
            Purpose::RequestLocal(key) => self.request_local_done(key, result.is_err()),
            Purpose::PeerRequest(key) => self.peer_disk_done(key, result),
            Purpose::EpochFlush => self.epoch_flushed(io.volume, result),
            Purpose::BitmapFlush => self.flushed_for_pages(io.volume, result),
            Purpose::Keep => self.kept(io.volume, token, result),
            _ => {}
        }
    }

    /// A metadata write has ended.
    pub(crate) fn metadata_written(
        &mut self,
        token: Token,
        block: MetadataBlock,
        result: Result<(), IoError>,
    ) {
        self.blocks.push(block);
        let Some(io) = self.end_io(token) else { return };
        let failed = result.is_err();
        self.attention = true;
        match io.purpose {
            Purpose::Superblock => self.superblock_written(io.volume, failed),
            Purpose::BitmapPage { page } => self.bitmap_page_written(io.volume, page, failed),
            Purpose::HintedPage { page } => self.hinted_page_written(io.volume, page, failed),
            Purpose::Transaction => self.transaction_written(io.volume, failed),
            Purpose::Attach(number) => self.attach_written(io.volume, number, result),
            Purpose::Ring => self.ring_written(io.volume, failed),
            _ => {}
        }
    }

    /// A block to write metadata from, of zeroes or of whatever it held before.
    pub(crate) fn take_block(&mut self) -> MetadataBlock {
        self.blocks.pop().unwrap_or_default()
    }

    /// An operation on data has failed: `on-io-error` (io spec 5.6; states spec 13.3).
    pub(crate) fn local_io_failed(&mut self, index: usize, read: bool) {
        if self.is_abandoned(index) {
            // It is on its way out already, and nothing is known of this operation.
            return;
        }
        let Some(policy) = self.volumes[index].disk.as_ref().map(|disk| disk.options.on_io_error) else {
            return;
        };
        let state = self.volumes[index].state.disk;
        match policy {
            OnIoError::PassOn => {
                self.say_rarely(Level::Error, Some(index), "Local IO failed.".to_owned());
                if state > DiskState::Inconsistent {
                    self.force_state(index, StateRequest::disk(DiskState::Inconsistent));
                }
            }
            OnIoError::CallLocalIoError | OnIoError::Detach => self.fail_disk(index, read),
        }
    }

    /// An operation on metadata has failed: the disk goes, whatever the policy.
    pub(crate) fn metadata_io_failed(&mut self, index: usize) {
        self.fail_attach(index);
        self.fail_disk(index, false);
    }

    fn fail_disk(&mut self, index: usize, read: bool) {
        let flags = &mut self.volumes[index].flags;
        flags.was_io_error = true;
        flags.was_read_error |= read;
        if self.volumes[index].state.disk > DiskState::Failed {
            self.force_state(index, StateRequest::disk(DiskState::Failed));
            self.say(Level::Error, Some(index), "Local IO failed. Detaching...".to_owned());
        }
    }

    /// Marks the whole blocks of a range in sync on this node. Returns how many bits were cleared.
    pub(crate) fn set_in_sync(&mut self, index: usize, range: SectorRange) -> u64 {
        if self.volumes[index].state.connection == udrbd_units::ConnectionState::Behind {
            // What is written now was sent before the peer was Ahead: it may have another version already.
            return 0;
        }
        let now = self.now;
        let partial = self.bug(crate::bugs::Bug::ClearPartialBlock);
        let volume = &mut self.volumes[index];
        let covered = range.covered_blocks(volume.size);
        let blocks = if partial { range.touched_blocks() } else { covered };
        let (Some(blocks), Some(disk)) = (blocks, &mut volume.disk) else {
            return 0;
        };
        let cleared = disk.bitmap.clear_range(blocks);
        if cleared > 0 {
            disk.bitmap_io.bits_were_cleared();
            volume.counters.out_of_sync_sectors = disk.bitmap.set_count() * 8;
            let left = disk.bitmap.set_count();
            volume.resync.advance(now, left);
            self.attention = true;
            self.note_told(index, range);
        }
        cleared
    }
}
