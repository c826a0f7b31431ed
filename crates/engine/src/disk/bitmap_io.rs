//! Writing the bitmap in bulk: the changed pages, and the bracket around a full sync (io spec 14; metadata spec 8.8).

use udrbd_metadata::Flags;
use udrbd_units::Sector;
use udrbd_wire::DataFlags;

use super::Purpose;
use crate::Engine;
use crate::interface::{Action, IoError, MetadataBlock};
use crate::peer::PeerOperation;
use crate::request::Net;
use crate::slab::Key;

/// Pages in flight at the most.
const PAGES_IN_FLIGHT: u32 = 512;

/// A pass over the pages that are changed.
#[derive(Clone, Copy, Debug)]
struct Pass {
    number: u64,
    next: usize,
    outstanding: u32,
}

/// A page that says that blocks are in sync which may still be in the cache of the disk.
#[derive(Debug)]
struct HeldPage {
    purpose: Purpose,
    position: Sector,
    block: MetadataBlock,
}

/// Where the bracket of a full sync stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FullSync {
    /// The flag is on its way to the disk, in this version of the superblock.
    Flag(u64),
    /// The pages are, in this pass.
    Pages(u64),
    /// The superblock without the flag is.
    Clear(u64),
}

/// The bulk writes of one volume.
#[derive(Debug, Default)]
pub(crate) struct BitmapIo {
    requested: u64,
    finished: u64,
    pass: Option<Pass>,
    full_sync: Option<FullSync>,
    /// A pass the superblock has to wait for.
    superblock_after: Option<u64>,
    /// Pages have been written since the last flush.
    unflushed: bool,
    /// A page could not be written.
    incomplete: bool,
    /// Bits have been cleared since the last flush of the data.
    cleared: bool,
    /// Pages that wait for the flush in flight, and for the one after it.
    flushing: Option<Vec<HeldPage>>,
    held: Vec<HeldPage>,
}

impl BitmapIo {
    /// Whether requests of clients must wait: all bits are being set.
    pub(crate) const fn demands_silence(&self) -> bool {
        self.full_sync.is_some()
    }

    /// Whether the superblock must not be written yet.
    pub(crate) const fn holds_superblock(&self) -> bool {
        self.superblock_after.is_some()
    }

    /// Whether a pass has ended.
    pub(crate) const fn is_finished(&self, pass: u64) -> bool {
        self.finished >= pass
    }

    /// Whether all of it is quiet.
    pub(crate) const fn is_idle(&self) -> bool {
        self.pass.is_none() && self.full_sync.is_none() && self.requested == self.finished
    }

    pub(crate) const fn page_was_written(&mut self) {
        self.unflushed = true;
    }

    /// Bits have been cleared of blocks that may still be in the cache of the disk.
    pub(crate) const fn bits_were_cleared(&mut self) {
        self.cleared = true;
    }

    /// Whether a page could not be written, so that the superblock has to go on saying that all is out of sync.
    pub(crate) const fn is_incomplete(&self) -> bool {
        self.incomplete
    }

    /// Whether a flush is due before the next block that relies on pages being durable; it is taken as done.
    pub(crate) const fn take_unflushed(&mut self) -> bool {
        std::mem::replace(&mut self.unflushed, false)
    }
}

impl Engine {
    /// Has every page written that is changed now. Returns the number of the pass, 0 without a disk.
    pub(crate) fn write_changed_pages(&mut self, index: usize) -> u64 {
        let Some(disk) = &mut self.volumes[index].disk else { return 0 };
        disk.bitmap_io.requested += 1;
        self.attention = true;
        disk.bitmap_io.requested
    }

    /// As [`write_changed_pages`](Self::write_changed_pages), and the superblock waits for it.
    pub(crate) fn write_changed_pages_before_superblock(&mut self, index: usize) {
        let pass = self.write_changed_pages(index);
        if let Some(disk) = &mut self.volumes[index].disk {
            disk.bitmap_io.superblock_after = Some(pass);
        }
    }

    /// Sets every bit, in memory at once, on disk within the bracket of the flag (io spec I17).
    pub(crate) fn begin_full_sync(&mut self, index: usize) {
        let Some(disk) = &mut self.volumes[index].disk else { return };
        disk.superblock.flags.set(Flags::FULL_SYNC, true);
        disk.bitmap.set_all();
        disk.bitmap.mark_all_pages();
        self.volumes[index].counters.out_of_sync_sectors = self.volumes[index].set_bits() * 8;
        self.keep_bits_of_writes_in_flight(index);
        let version = self.touch_superblock(index);
        if let Some(disk) = &mut self.volumes[index].disk {
            disk.bitmap_io.full_sync = Some(FullSync::Flag(version));
        }
    }

    /// Writes that were sent during the last resync must not clear bits of the next one: the node where they end later would
    /// clear what the other has set, and one of the two would wait for a block that nobody asks for. Those that are still to be
    /// sent belong to the next one.
    fn keep_bits_of_writes_in_flight(&mut self, index: usize) {
        let own: Vec<Key> = self.requests.iter().map(|(key, _)| key).collect();
        for key in own {
            let request = &mut self.requests[key];
            if request.volume == index && request.net != Net::None {
                request.set_in_sync = false;
                request.overtaken = true;
            }
        }
        let of_peer: Vec<Key> = self.peer_requests.iter().map(|(key, _)| key).collect();
        for key in of_peer {
            let request = &mut self.peer_requests[key];
            if request.volume == index
                && let PeerOperation::Write { flags, .. } = &mut request.operation
            {
                *flags = flags.without(DataFlags::MAY_SET_IN_SYNC);
            }
        }
    }

    /// Whether the bracket of a full sync is closed.
    pub(crate) fn full_sync_is_durable(&self, index: usize) -> bool {
        self.volumes[index].disk.as_ref().is_none_or(|disk| disk.bitmap_io.full_sync.is_none())
    }

    /// Drives the bulk writes. Returns whether something happened.
    pub(crate) fn run_bitmap_io(&mut self, index: usize) -> bool {
        if self.is_abandoned(index) {
            return self.skip_bitmap_io(index);
        }
        let mut progress = self.step_full_sync(index);
        let Some(disk) = &mut self.volumes[index].disk else { return progress };
        let io = &mut disk.bitmap_io;
        if io.pass.is_none() && io.requested > io.finished {
            io.pass = Some(Pass { number: io.requested, next: 0, outstanding: 0 });
            progress = true;
        }
        progress |= self.write_pages_of_pass(index);
        let Some(disk) = &mut self.volumes[index].disk else { return progress };
        let io = &mut disk.bitmap_io;
        if let Some(pass) = io.pass
            && pass.outstanding == 0
            // A page an activity log transaction has given out is not on disk before that write ends.
            && disk.bitmap.writes_in_flight() == 0
            && disk.bitmap.next_changed_page(pass.next).is_none()
        {
            io.finished = pass.number;
            io.pass = None;
            if io.superblock_after.is_some_and(|after| after <= pass.number) {
                io.superblock_after = None;
            }
            progress = true;
        }
        progress
    }

    /// Nothing gets to a disk that does not answer: whoever waits for the bitmap goes on without. Pages stay changed, and
    /// the superblock in memory says that all is out of sync where it said so. Returns whether something happened.
    fn skip_bitmap_io(&mut self, index: usize) -> bool {
        let Some(disk) = &mut self.volumes[index].disk else { return false };
        let io = &mut disk.bitmap_io;
        let waited = !io.is_idle() || io.superblock_after.is_some();
        io.pass = None;
        io.finished = io.requested;
        io.full_sync = None;
        io.superblock_after = None;
        waited
    }

    fn write_pages_of_pass(&mut self, index: usize) -> bool {
        let mut progress = false;
        loop {
            let mut block = self.blocks.pop().unwrap_or_default();
            let taken = self.take_page_of_pass(index, &mut block);
            let Some((page, position)) = taken else {
                self.blocks.push(block);
                return progress;
            };
            self.write_page(index, Purpose::BitmapPage { page }, position, block);
            progress = true;
        }
    }

    fn take_page_of_pass(&mut self, index: usize, block: &mut MetadataBlock) -> Option<(usize, Sector)> {
        let disk = self.volumes[index].disk.as_mut()?;
        let pass = disk.bitmap_io.pass.as_mut().filter(|pass| pass.outstanding < PAGES_IN_FLIGHT)?;
        let page = disk.bitmap.next_changed_page(pass.next)?;
        // A page that is being written already ends this turn: it must be written again, after that.
        if !disk.bitmap.take_page(page, block) {
            return None;
        }
        pass.next = page + 1;
        pass.outstanding += 1;
        Some((page, disk.layout.bitmap_page(page as u64)))
    }

    /// Writes a page of the bitmap. A bit that is clear on disk says that the block is there for good, so what has been
    /// cleared since the last flush of the data gets there only behind the next one (io spec I1, I11).
    pub(super) fn write_page(
        &mut self,
        index: usize,
        purpose: Purpose,
        position: Sector,
        block: MetadataBlock,
    ) {
        let early = self.bug(crate::bugs::Bug::PageBeforeData);
        let Some(disk) = &mut self.volumes[index].disk else { return };
        let io = &mut disk.bitmap_io;
        if disk.properties.volatile_cache && !early && (io.cleared || io.flushing.is_some()) {
            io.held.push(HeldPage { purpose, position, block });
            self.flush_for_pages(index);
        } else {
            self.write_page_now(index, HeldPage { purpose, position, block });
        }
    }

    fn write_page_now(&mut self, index: usize, page: HeldPage) {
        let HeldPage { purpose, position, block } = page;
        let token = self.start_io(index, purpose);
        self.volumes[index].counters.bitmap_writes += 1;
        let volume = self.volumes[index].number;
        self.out.push(Action::WriteMetadata { token, volume, position, block, preflush: false, fua: false });
    }

    fn flush_for_pages(&mut self, index: usize) {
        let Some(disk) = &mut self.volumes[index].disk else { return };
        let io = &mut disk.bitmap_io;
        if io.flushing.is_some() || io.held.is_empty() {
            return;
        }
        io.flushing = Some(std::mem::take(&mut io.held));
        io.cleared = false;
        let volume = self.volumes[index].number;
        let token = self.start_io(index, Purpose::BitmapFlush);
        self.out.push(Action::Flush { token, volume });
    }

    /// The data are on stable storage as they were when the flush began: so may be the pages taken before.
    pub(super) fn flushed_for_pages(&mut self, index: usize, result: Result<(), IoError>) {
        let Some(disk) = &mut self.volumes[index].disk else { return };
        let io = &mut disk.bitmap_io;
        let mut pages = io.flushing.take().unwrap_or_default();
        if !io.cleared {
            pages.append(&mut io.held);
        }
        self.attention = true;
        for page in pages {
            match (result, page.purpose) {
                (Ok(()), _) => self.write_page_now(index, page),
                (Err(_), Purpose::HintedPage { page }) => self.hinted_page_written(index, page, true),
                (Err(_), Purpose::BitmapPage { page }) => self.bitmap_page_written(index, page, true),
                (Err(_), _) => {}
            }
        }
        self.flush_for_pages(index);
    }

    pub(super) fn bitmap_page_written(&mut self, index: usize, page: usize, failed: bool) {
        let Some(disk) = &mut self.volumes[index].disk else { return };
        disk.bitmap_io.unflushed = true;
        if failed {
            disk.bitmap.mark_page_unwritten(page);
            if !disk.abandoned {
                self.distrust_bitmap(index);
            }
        } else {
            disk.bitmap.page_written(page);
        }
        let Some(disk) = &mut self.volumes[index].disk else { return };
        if let Some(pass) = &mut disk.bitmap_io.pass {
            pass.outstanding -= 1;
        }
        if failed {
            self.metadata_io_failed(index);
        }
        self.transaction_may_go_on(index);
    }

    /// A page could not be written: bits may be missing on disk, so the superblock says that every block is out of sync
    /// until the disk is attached again.
    pub(super) fn distrust_bitmap(&mut self, index: usize) {
        let Some(disk) = &mut self.volumes[index].disk else { return };
        disk.bitmap_io.incomplete = true;
        disk.superblock.flags.set(Flags::FULL_SYNC, true);
        self.touch_superblock(index);
    }

    fn step_full_sync(&mut self, index: usize) -> bool {
        // Metadata that move have the same flag up until they are complete.
        if self.moves_metadata(index) {
            return false;
        }
        let Some(disk) = &self.volumes[index].disk else { return false };
        let next = match disk.bitmap_io.full_sync {
            Some(FullSync::Flag(version)) if self.superblock_is_durable(index, version) => {
                FullSync::Pages(self.write_changed_pages(index))
            }
            Some(FullSync::Pages(pass)) if disk.bitmap_io.is_finished(pass) => {
                if disk.bitmap_io.incomplete {
                    // The flag stays; the disk is on its way out.
                    if let Some(disk) = &mut self.volumes[index].disk {
                        disk.bitmap_io.full_sync = None;
                    }
                    self.attention = true;
                    return true;
                }
                if let Some(disk) = &mut self.volumes[index].disk {
                    disk.superblock.flags.set(Flags::FULL_SYNC, false);
                }
                FullSync::Clear(self.touch_superblock(index))
            }
            Some(FullSync::Clear(version)) if self.superblock_is_durable(index, version) => {
                if let Some(disk) = &mut self.volumes[index].disk {
                    disk.bitmap_io.full_sync = None;
                }
                self.attention = true;
                return true;
            }
            _ => return false,
        };
        if let Some(disk) = &mut self.volumes[index].disk {
            disk.bitmap_io.full_sync = Some(next);
        }
        true
    }
}
