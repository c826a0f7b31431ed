//! The activity log at run time: no write anywhere before its extent is on stable storage (io spec 4).

use udrbd_units::Extent;

use super::Purpose;
use crate::Engine;
use crate::activity_log::Get;
use crate::bugs::Bug;
use crate::interface::Action;
use crate::request::Local;
use crate::slab::Key;
use crate::volume::TransactionStep;

impl Engine {
    /// Starts the writes that wait for the activity log, as far as it lets them: the submitter of io spec 4.2.
    /// Returns whether something happened.
    pub(crate) fn run_activity_log(&mut self, index: usize) -> bool {
        if self.volumes[index].usable_disk().is_none() {
            return self.bypass_activity_log(index);
        }
        let mut started = std::mem::take(&mut self.scratch_keys);
        started.clear();
        let progress = self.gather(index, &mut started);
        for key in started.drain(..) {
            self.start_write(key);
        }
        self.scratch_keys = started;
        self.begin_transaction(index) || progress
    }

    /// Takes the extents of waiting writes. Those that have all of them committed go to `started`.
    fn gather(&mut self, index: usize, started: &mut Vec<Key>) -> bool {
        let Some(disk) = &mut self.volumes[index].disk else { return false };
        if disk.transaction != TransactionStep::Idle || disk.submit.is_empty() {
            return false;
        }
        let mut progress = false;
        let mut full = false;
        for _ in 0..disk.submit.len() {
            let Some(key) = disk.submit.pop_front() else { break };
            let Some(request) = self.requests.get_mut(key) else { continue };
            let Some(extents) = request.range.extents() else { continue };
            let mut busy = full;
            // An extent a resync works on is not taken, however far the request has come.
            for extent in extents.clone().skip(request.extents_held as usize).map(Extent) {
                if !busy && disk.extents.blocks_writes(extent) {
                    disk.extents.set_priority(extent);
                    busy = true;
                }
            }
            let wanted = (extents.end() - extents.start() + 1) - request.extents_held;
            let mut pending = false;
            if !busy {
                let first = extents.start() + request.extents_held;
                for extent in (first..first + wanted).map(Extent) {
                    match disk.log.get(extent) {
                        Get::Committed => {}
                        Get::Pending => pending = true,
                        Get::Busy => {
                            // Nothing behind it is looked at: the order of the queue decides who comes next.
                            full = true;
                            busy = true;
                            break;
                        }
                    }
                    request.extents_held += 1;
                }
            }
            if busy {
                // All or nothing: an extent held here would keep a resync out, whose lock this write waits for.
                for extent in extents.take(std::mem::take(&mut request.extents_held) as usize).map(Extent) {
                    disk.log.put(extent);
                }
                disk.submit.push_back(key);
            } else if pending {
                // A slot that is changing does not cover before the transaction is durable.
                disk.in_transaction.push(key);
                progress = true;
            } else {
                started.push(key);
                progress = true;
            }
        }
        progress
    }

    fn begin_transaction(&mut self, index: usize) -> bool {
        let Some(disk) = &mut self.volumes[index].disk else { return false };
        if disk.transaction != TransactionStep::Idle || !disk.log.pending() {
            return false;
        }
        let Some(place) = disk.log.begin_transaction() else { return false };
        let no_updates = !disk.options.al_updates;
        if no_updates || self.bug(Bug::SkipActivityLog) {
            self.commit_transaction(index, false);
            return true;
        }
        let page_after_log = self.bug(Bug::PageAfterLog);
        let Some(disk) = &mut self.volumes[index].disk else { return false };
        disk.transaction_block = place.block;
        for extent in disk.log.evicted_extents().filter(|_| !page_after_log) {
            disk.bitmap.hint_page(crate::bitmap::Bitmap::page_of_extent(extent));
        }
        disk.transaction = TransactionStep::Pages { outstanding: 0, failed: false };
        self.continue_transaction(index);
        true
    }

    /// Writes the pages of extents that leave, then the block (metadata spec 8.2).
    fn continue_transaction(&mut self, index: usize) {
        loop {
            let Some(disk) = &mut self.volumes[index].disk else { return };
            // One that has failed is not tried again: the transaction will not be written.
            let failed = matches!(disk.transaction, TransactionStep::Pages { failed: true, .. });
            let Some(page) = disk.bitmap.next_hinted_page().filter(|_| !failed) else { break };
            let mut block = self.blocks.pop().unwrap_or_default();
            let Some(disk) = &mut self.volumes[index].disk else { return };
            if !disk.bitmap.take_page(page, &mut block) {
                self.blocks.push(block);
                break;
            }
            if let TransactionStep::Pages { outstanding, .. } = &mut disk.transaction {
                *outstanding += 1;
            }
            let position = disk.layout.bitmap_page(page as u64);
            self.write_page(index, Purpose::HintedPage { page }, position, block);
        }
        let Some(disk) = &mut self.volumes[index].disk else { return };
        let TransactionStep::Pages { outstanding: 0, failed } = disk.transaction else { return };
        if failed {
            self.commit_transaction(index, false);
        } else if disk.bitmap.hints_settled() {
            self.write_transaction(index);
        }
    }

    fn write_transaction(&mut self, index: usize) {
        let mut block = self.take_block();
        let token = self.start_io(index, Purpose::Transaction);
        let skips_flush = self.bug(Bug::EvictWithoutFlush);
        let volume = &mut self.volumes[index];
        let number = volume.number;
        let Some(disk) = &mut volume.disk else { return };
        disk.log.encode_transaction(&mut block);
        disk.transaction = TransactionStep::Block;
        disk.bitmap.clear_hints();
        volume.counters.al_writes += 1;
        let position = udrbd_units::Sector(disk.layout.al_start().0 + u64::from(disk.transaction_block) * 8);
        let flush = disk.options.metadata_flushes;
        // The preflush makes the pages durable that were written since the last flush, by whomever; and the data of an
        // extent that leaves, which may still be in the cache of the disk (io spec I1).
        let evicts = disk.log.evicted_extents().next().is_some();
        let preflush = flush && (disk.bitmap_io.take_unflushed() || evicts) && !skips_flush;
        self.out.push(Action::WriteMetadata { token, volume: number, position, block, preflush, fua: flush });
    }

    pub(super) fn hinted_page_written(&mut self, index: usize, page: usize, page_failed: bool) {
        let Some(disk) = &mut self.volumes[index].disk else { return };
        disk.bitmap_io.page_was_written();
        if page_failed {
            disk.bitmap.mark_page_unwritten(page);
            if !disk.abandoned {
                self.distrust_bitmap(index);
            }
        } else {
            disk.bitmap.page_written(page);
        }
        let Some(disk) = &mut self.volumes[index].disk else { return };
        if let TransactionStep::Pages { outstanding, failed, .. } = &mut disk.transaction {
            *outstanding -= 1;
            *failed |= page_failed;
        }
        if page_failed {
            self.metadata_io_failed(index);
            self.run_after();
        }
        self.continue_transaction(index);
    }

    /// Another page write ended that a transaction may wait for.
    pub(super) fn transaction_may_go_on(&mut self, index: usize) {
        let waits = self.volumes[index]
            .disk
            .as_ref()
            .is_some_and(|disk| matches!(disk.transaction, TransactionStep::Pages { .. }));
        if waits {
            self.continue_transaction(index);
        }
    }

    pub(super) fn transaction_written(&mut self, index: usize, failed: bool) {
        if failed {
            // The peer has to know that it stores alone before the first write comes that nothing here remembers.
            self.metadata_io_failed(index);
            self.run_after();
        }
        self.commit_transaction(index, !failed);
    }

    /// The labels take effect, and the writes that waited go. After a failure too: the disk is Failed then, so they
    /// go to the peer only (io spec 23.13).
    fn commit_transaction(&mut self, index: usize, written: bool) {
        let Some(disk) = &mut self.volumes[index].disk else { return };
        if written {
            disk.log.commit();
        } else {
            disk.bitmap.clear_hints();
            disk.log.commit_unwritten();
        }
        disk.transaction = TransactionStep::Idle;
        let mut waiting = std::mem::take(&mut disk.in_transaction);
        for key in waiting.drain(..) {
            self.covered(key);
        }
        if let Some(disk) = &mut self.volumes[index].disk
            && disk.in_transaction.is_empty()
        {
            disk.in_transaction = waiting;
        }
        self.attention = true;
    }

    /// A write is covered by the activity log.
    fn covered(&mut self, key: Key) {
        if self.requests.get(key).is_some() {
            self.start_write(key);
        }
    }

    /// Without a disk there is nothing to wait for.
    fn bypass_activity_log(&mut self, index: usize) -> bool {
        let Some(disk) = &mut self.volumes[index].disk else { return false };
        if disk.transaction != TransactionStep::Idle {
            return false;
        }
        let waiting: Vec<Key> = disk.submit.drain(..).collect();
        let progress = !waiting.is_empty();
        for key in waiting {
            if let Some(request) = self.requests.get_mut(key) {
                request.local = Local::None;
                self.start_write(key);
            }
        }
        progress
    }
}
