//! The pages of the bitmap against their copies on disk: what must be written, what is being written, what an activity
//! log transaction waits for.

use super::{Bitmap, PAGE_BYTES, PAGE_WORDS};

/// Bits were set, or the whole page must reach the disk.
pub(super) const NEED_WRITE: u8 = 1;
/// Bits were cleared, or set because the peer has them set.
pub(super) const LAZY: u8 = 2;
/// A write of the page has been given out and has not completed.
const WRITING: u8 = 4;
/// An activity log transaction waits for a write of the page that has not been given out.
const HINTED: u8 = 8;
/// An activity log transaction waits for the write of the page that has been given out.
const HINT_IN_FLIGHT: u8 = 16;

const CHANGED: u8 = NEED_WRITE | LAZY;

/// The most pages one activity log transaction can wait for: one per update.
pub(super) const HINTS_MAX: usize = 64;

/// One page: how many of its bits are set, and its flags.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Page {
    pub(super) set: u16,
    flags: u8,
}

impl Page {
    pub(super) const fn is_changed(self) -> bool {
        self.flags & CHANGED != 0
    }

    pub(super) const fn is_writing(self) -> bool {
        self.flags & WRITING != 0
    }
}

/// How a page stands against its copy on disk (metadata spec 6.4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PageState {
    /// It has bits set that the disk does not have, or must be written for another reason.
    pub need_write: bool,
    /// It has bits cleared that the disk still has, or bits set that the peer has too.
    pub lazy: bool,
    /// An activity log transaction waits for it.
    pub hinted: bool,
    /// It is being written.
    pub writing: bool,
}

impl Bitmap {
    /// The number of pages.
    pub const fn page_count(&self) -> usize {
        self.pages.len()
    }

    /// The number of pages that differ from what was last given out for writing.
    pub const fn changed_page_count(&self) -> usize {
        self.changed_page_count
    }

    /// The number of pages given out by [`take_page`](Self::take_page) and not reported back. Until it is 0 a caller
    /// that wants the bitmap on disk is not done, whoever started those writes.
    pub const fn writes_in_flight(&self) -> usize {
        self.writes_in_flight
    }

    /// How a page stands; all false beyond the last one.
    pub fn page_state(&self, page: usize) -> PageState {
        let flags = self.pages.get(page).map_or(0, |page| page.flags);
        PageState {
            need_write: flags & NEED_WRITE != 0,
            lazy: flags & LAZY != 0,
            hinted: flags & (HINTED | HINT_IN_FLIGHT) != 0,
            writing: flags & WRITING != 0,
        }
    }

    /// Whether a page differs from what was last given out for writing.
    pub fn page_changed(&self, page: usize) -> bool {
        self.pages.get(page).is_some_and(|page| page.is_changed())
    }

    /// The first changed page at or behind `from`, including pages of which an older state is just being written.
    pub fn next_changed_page(&self, from: usize) -> Option<usize> {
        if self.changed_page_count == 0 {
            return None;
        }
        let index = self.pages.get(from..)?.iter().position(|page| page.is_changed())?;
        Some(from + index)
    }

    /// The changed pages at or behind `from`, in order.
    pub fn changed_pages(&self, from: usize) -> impl Iterator<Item = usize> {
        std::iter::successors(self.next_changed_page(from), |page| self.next_changed_page(page + 1))
    }

    /// Copies a page as it must lie on disk (metadata spec 6.1, padding zero) into `image` and counts it as being
    /// written: changes from now on mark it again. The caller reports the end of the write with
    /// [`page_written`](Self::page_written) or [`mark_page_unwritten`](Self::mark_page_unwritten).
    ///
    /// Returns false and does nothing while a write of this page is in flight, because two could reach the disk in the
    /// wrong order; and for a page that does not exist.
    #[must_use]
    pub fn take_page(&mut self, page: usize, image: &mut [u8; PAGE_BYTES]) -> bool {
        let Some(state) = self.pages.get_mut(page) else { return false };
        if state.is_writing() {
            return false;
        }
        if state.is_changed() {
            self.changed_page_count -= 1;
        }
        let was_hinted = state.flags & HINTED != 0;
        state.flags = WRITING | if was_hinted { HINT_IN_FLIGHT } else { 0 };
        self.writes_in_flight += 1;
        if state.set == 0 {
            image.fill(0);
            return true;
        }
        let words = &self.words[page * PAGE_WORDS..(page + 1) * PAGE_WORDS];
        let (chunks, _) = image.as_chunks_mut::<8>();
        for (bytes, word) in chunks.iter_mut().zip(words) {
            *bytes = word.to_le_bytes();
        }
        true
    }

    /// The write of a page has completed. It is durable with the next flush.
    pub fn page_written(&mut self, page: usize) {
        let Some(was_hinted) = self.end_write(page) else { return };
        if was_hinted && self.pages[page].flags & HINTED == 0 {
            self.hints.retain(|hint| *hint != page);
        }
    }

    /// The write of a page has failed: it must be written again, and a transaction that waits for it still waits.
    pub fn mark_page_unwritten(&mut self, page: usize) {
        let Some(was_hinted) = self.end_write(page) else { return };
        self.mark(page, NEED_WRITE);
        if was_hinted {
            self.pages[page].flags |= HINTED;
        }
    }

    /// Has every page written, whatever the disk holds (moved metadata, full sync).
    pub fn mark_all_pages(&mut self) {
        for page in 0..self.pages.len() {
            self.mark(page, NEED_WRITE);
        }
    }

    /// An activity log transaction is about to take an extent of this page out of the log: the page as it is now must be
    /// on disk before (I/O spec 4.3). Write every [`next_hinted_page`](Self::next_hinted_page), and the transaction once
    /// [`hints_settled`](Self::hints_settled). A page the device no longer has, or that the disk already has as it is,
    /// is settled at once.
    ///
    /// It is not enough to look at [`page_changed`](Self::page_changed): a page counts as unchanged while its write is
    /// in flight, and the flush before the activity log block does not cover a write that has not completed.
    pub fn hint_page(&mut self, page: usize) {
        let Some(state) = self.pages.get_mut(page) else { return };
        let hint = match (state.is_changed(), state.is_writing()) {
            (true, _) => HINTED,
            (false, true) => HINT_IN_FLIGHT,
            (false, false) => return,
        };
        if state.flags & (HINTED | HINT_IN_FLIGHT) == 0 {
            self.hints.push(page);
        }
        state.flags |= hint;
    }

    /// A hinted page that has to be taken and written now, if there is one.
    pub fn next_hinted_page(&self) -> Option<usize> {
        let ready = |page: &usize| self.pages[*page].flags & (HINTED | WRITING) == HINTED;
        self.hints.iter().copied().find(ready)
    }

    /// Whether every hinted page has been written.
    pub fn hints_settled(&self) -> bool {
        self.hints.is_empty()
    }

    /// Forgets the hints: the transaction will not be written.
    pub fn clear_hints(&mut self) {
        while let Some(page) = self.hints.pop() {
            self.pages[page].flags &= !(HINTED | HINT_IN_FLIGHT);
        }
    }

    /// Marks a page changed.
    #[inline]
    pub(super) fn mark(&mut self, page: usize, flag: u8) {
        let state = &mut self.pages[page];
        if !state.is_changed() {
            self.changed_page_count += 1;
        }
        state.flags |= flag;
    }

    /// Ends a write; whether a transaction waited for it, `None` if no write of the page is known (the device has shrunk
    /// meanwhile).
    fn end_write(&mut self, page: usize) -> Option<bool> {
        let state = self.pages.get_mut(page)?;
        if !state.is_writing() {
            return None;
        }
        let was_hinted = state.flags & HINT_IN_FLIGHT != 0;
        state.flags &= !(WRITING | HINT_IN_FLIGHT);
        self.writes_in_flight -= 1;
        Some(was_hinted)
    }
}
