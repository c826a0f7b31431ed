//! Disks that do not answer: `disk-timeout`, `detach --force`, and a `down` that does not wait for ever (states spec 13.2 to
//! 13.4; io spec 18).
//!
//! What is in flight ends here as failed, so that everybody who waits for it goes on without this disk. At the devices it
//! goes on: the disk stays Failed until the last answer has come, nothing is attached in its place before, and the runtime
//! keeps the memory and the files of each operation. Late answers change nothing any more. What a late write leaves on the
//! disk is what a crash would leave: its extents are in the activity log there.

use udrbd_units::DiskState;

use super::{Io, Purpose};
use crate::Engine;
use crate::interface::{Duration, IoError, Level, Time};
use crate::slab::Key;
use crate::state::StateRequest;

/// How long `down` waits for a disk of which nothing ends.
const DOWN_PATIENCE: Duration = Duration::from_secs(60);
/// What operations that are given up end with: ETIMEDOUT.
const GIVEN_UP: IoError = IoError { errno: 110 };

impl Engine {
    /// The `disk-timeout` of the disk, or of the one being attached; zero: it may take as long as it likes.
    fn disk_patience(&self, index: usize) -> Duration {
        let volume = &self.volumes[index];
        let of_disk = volume.disk.as_ref().map(|disk| disk.options.disk_timeout);
        let of_attach = || volume.attaching.as_ref().map(|attaching| attaching.disk_timeout());
        of_disk.or_else(of_attach).unwrap_or(Duration::ZERO)
    }

    /// An operation begins: it has to end in time.
    pub(crate) fn arm_disk_timer(&mut self, index: usize) {
        self.arm_disk_timer_for(index, self.disk_patience(index));
    }

    pub(crate) fn arm_disk_timer_for(&mut self, index: usize, patience: Duration) {
        if patience > Duration::ZERO && self.volumes[index].disk_timer.is_none() {
            self.volumes[index].disk_timer = Some(self.now.after(patience));
        }
    }

    /// The operation of a volume that has been at the devices for longest, of those somebody waits for.
    fn oldest_operation(&self, index: usize) -> Option<Io> {
        let own = self.io.iter().map(|(_, io)| *io).filter(|io| io.volume == index && !io.is_given_up());
        own.min_by_key(|io| io.started)
    }

    /// Looks whether a disk keeps its `disk-timeout` (io spec 18 rule 4).
    pub(crate) fn disk_timeout(&mut self, index: usize) {
        if self.volumes[index].disk_timer.is_none_or(|timer| timer > self.now) {
            return;
        }
        self.volumes[index].disk_timer = None;
        let patience = self.disk_patience(index);
        let Some(oldest) = self.oldest_operation(index).filter(|_| patience > Duration::ZERO) else { return };
        let due = oldest.started.after(patience);
        if due > self.now {
            self.volumes[index].disk_timer = Some(due);
            return;
        }
        if oldest.purpose.is_metadata() {
            self.say(Level::Error, Some(index), "meta-data IO operation timed out".to_owned());
        } else {
            let text = "Local backing device failed to meet the disk-timeout".to_owned();
            self.say(Level::Warning, Some(index), text);
        }
        self.volumes[index].flags.was_io_error = true;
        self.force_detach(index);
        self.say(Level::Error, Some(index), "Local IO failed. Detaching...".to_owned());
    }

    /// The disk goes, and nobody waits for what is in flight on it.
    pub(crate) fn force_detach(&mut self, index: usize) {
        if self.volumes[index].state.disk == DiskState::Diskless {
            return;
        }
        self.volumes[index].flags.force_detach = true;
        self.force_state(index, StateRequest::disk(DiskState::Failed));
        self.attention = true;
    }

    /// Ends what is in flight on a disk that is not waited for, after the peer has been told that it failed. Returns
    /// whether something happened.
    pub(crate) fn run_abandon(&mut self, index: usize) -> bool {
        if self.after_waits {
            // A handler may reset this node before anybody learns of the failure.
            return false;
        }
        let volume = &mut self.volumes[index];
        let asked = volume.state.disk == DiskState::Failed && std::mem::take(&mut volume.flags.force_detach);
        if let Some(disk) = &mut volume.disk
            && asked
            && disk.operations > 0
        {
            disk.abandoned = true;
            // Should it answer after all, pages that were under way are written again.
            disk.detach_pages = None;
        }
        if !asked && !volume.disk.as_ref().is_some_and(|disk| disk.abandoned) {
            return false;
        }
        self.fail_held_writes(index, GIVEN_UP);
        let open = |io: &Io| io.volume == index && !io.is_given_up();
        let keys: Vec<Key> = self.io.iter().filter(|(_, io)| open(io)).map(|(key, _)| key).collect();
        for key in &keys {
            self.give_up_operation(*key);
        }
        !keys.is_empty() || asked
    }

    /// An operation ends as failed for whoever waits for it. It still counts as being at the devices.
    fn give_up_operation(&mut self, key: Key) {
        let Some(io) = self.io.get_mut(key) else { return };
        let Io { volume: index, purpose, .. } = *io;
        // A buffer the runtime took for a read comes with the late answer.
        io.purpose = match purpose {
            Purpose::PeerRequest(_) => Purpose::GivenUp { for_peer: true },
            _ => Purpose::GivenUp { for_peer: false },
        };
        self.attention = true;
        match purpose {
            Purpose::RequestLocal(key) => self.request_local_given_up(key),
            Purpose::PeerRequest(key) if self.is_peer_read(key) => {
                self.peer_read_done(key, None, None, false, Err(GIVEN_UP));
            }
            Purpose::PeerRequest(key) => self.peer_disk_done(key, Err(GIVEN_UP)),
            Purpose::EpochFlush => self.epoch_flushed(index, Err(GIVEN_UP)),
            Purpose::Superblock => self.superblock_written(index, true),
            Purpose::BitmapPage { page } => self.bitmap_page_written(index, page, true),
            Purpose::HintedPage { page } => self.hinted_page_written(index, page, true),
            Purpose::BitmapFlush => self.flushed_for_pages(index, Err(GIVEN_UP)),
            Purpose::Transaction => self.transaction_written(index, true),
            Purpose::Attach(number) => {
                self.attach_reads.remove(&key);
                self.attach_written(index, number, Err(GIVEN_UP));
            }
            Purpose::Ring => self.ring_written(index, true),
            Purpose::Keep | Purpose::GivenUp { .. } => {}
        }
    }

    /// Whether a disk has been given up, and its answers have not all come.
    pub(crate) fn is_abandoned(&self, index: usize) -> bool {
        self.volumes[index].disk.as_ref().is_some_and(|disk| disk.abandoned)
    }

    /// When `down` gives up the disk that has not answered for longest, if one is at work. `since`: the start of the command.
    pub(crate) fn down_patience_ends(&self, since: Time) -> Option<Time> {
        let hanging = (0..self.volumes.len()).filter_map(|index| self.silent_since(index, since));
        hanging.min().map(|silent| silent.after(DOWN_PATIENCE))
    }

    fn silent_since(&self, index: usize, since: Time) -> Option<Time> {
        let oldest = self.oldest_operation(index)?;
        Some(oldest.started.max(self.volumes[index].io_ended_at).max(since))
    }

    /// Gives up the disks a `down` has waited for long enough.
    pub(crate) fn give_up_silent_disks(&mut self, since: Time) {
        for index in 0..self.volumes.len() {
            let silent = self.silent_since(index, since);
            if silent.is_some_and(|silent| silent.after(DOWN_PATIENCE) <= self.now) {
                let text = "Local backing device does not answer, down goes on without it".to_owned();
                self.say(Level::Error, Some(index), text);
                self.force_detach(index);
            }
        }
    }
}
