//! `disk-options` (states spec 19.3).

use super::{DeviceCommand, Running, Then, code};
use crate::Engine;
use crate::interface::{CommandId, DiskOptions, Failure};
use crate::volume::TransactionStep;

/// Where a change of the activity log stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Writes that hold extents have to end.
    Drain,
    /// What the labels cover has to be in the bitmap on disk, in front of this version of the superblock.
    Covered(u64),
    /// The options count from now on; this version of the superblock says so.
    Durable(u64),
}

/// A change of options that gives the activity log new slots. No write starts before it is over.
#[derive(Debug)]
pub(crate) struct ChangingOptions {
    id: CommandId,
    index: usize,
    options: Box<DiskOptions>,
    step: Step,
}

/// The number of a refusal to change the activity log now.
const ACTIVITY_LOG_BUSY: u32 = 122;

impl Engine {
    /// `disk-options`.
    pub(super) fn disk_options(&mut self, id: CommandId, index: usize, options: DiskOptions) {
        let Some(disk) = &self.volumes[index].disk else {
            self.reply(id, Err(Failure::configuration(code::NO_DISK_CONFIG)));
            return;
        };
        let slots = disk.layout.striping.al_extents(options.al_extents);
        if slots == disk.log.slots() && disk.options.al_updates == options.al_updates {
            let version = self.take_disk_options(index, options);
            let then = Then::Durable(version);
            self.commands.push(Running::Device(DeviceCommand::after(id, index, then)));
            return;
        }
        if self.suspension.any() {
            // What is frozen holds its extents.
            self.refuse_options(id);
            return;
        }
        self.volumes[index].quiesce += 1;
        let options = Box::new(options);
        self.commands.push(Running::Options(ChangingOptions { id, index, options, step: Step::Drain }));
    }

    fn refuse_options(&mut self, id: CommandId) {
        let info = vec!["Try again without changing current al-extents setting".to_owned()];
        self.reply(id, Err(Failure::Configuration { code: ACTIVITY_LOG_BUSY, info }));
    }

    /// Puts options into force. Returns the version of the superblock that tells of them.
    fn take_disk_options(&mut self, index: usize, options: DiskOptions) -> u64 {
        let Some(disk) = &mut self.volumes[index].disk else { return 0 };
        disk.superblock.al_nr_extents = u32::from(disk.log.slots());
        disk.superblock.flags.set(udrbd_metadata::Flags::AL_DISABLED, !options.al_updates);
        disk.options = options;
        let version = self.touch_superblock(index);
        self.write_ordering_may_change();
        if self.connection.is_established() {
            self.send_sync_parameters(index);
        }
        self.state_changed();
        version
    }

    /// Takes a change of the activity log further. Returns whether it is over.
    pub(super) fn run_options(&mut self, changing: &mut ChangingOptions) -> bool {
        let index = changing.index;
        if !self.volumes[index].has_disk() {
            self.volumes[index].quiesce -= 1;
            self.reply(changing.id, Err(Failure::configuration(code::NO_DISK_CONFIG)));
            return true;
        }
        match changing.step {
            Step::Drain => {
                if self.holds_extents(index) {
                    return false;
                }
                // The slots lose their labels, so the bits of what those cover have to be on disk (metadata spec 8.2);
                // and where no updates are to be written, the superblock has to say so before they end.
                if !changing.options.al_updates
                    && let Some(disk) = &mut self.volumes[index].disk
                {
                    disk.superblock.flags.set(udrbd_metadata::Flags::AL_DISABLED, true);
                }
                self.write_changed_pages_before_superblock(index);
                changing.step = Step::Covered(self.touch_superblock(index));
                false
            }
            Step::Covered(version) => {
                if !self.superblock_is_durable(index, version) {
                    return false;
                }
                let Some(disk) = &mut self.volumes[index].disk else { return false };
                let slots = disk.layout.striping.al_extents(changing.options.al_extents);
                if disk.log.resize(u32::from(slots)).is_err() {
                    self.volumes[index].quiesce -= 1;
                    self.refuse_options(changing.id);
                    return true;
                }
                let version = self.take_disk_options(index, (*changing.options).clone());
                changing.step = Step::Durable(version);
                false
            }
            Step::Durable(version) => {
                let over = self.superblock_is_durable(index, version);
                if over {
                    self.volumes[index].quiesce -= 1;
                    self.reply(changing.id, Ok(()));
                }
                over
            }
        }
    }

    /// Whether a write holds an extent of the activity log, or is about to.
    pub(crate) fn holds_extents(&self, index: usize) -> bool {
        self.volumes[index].disk.as_ref().is_some_and(|disk| {
            disk.log.used_extents() > 0
                || disk.log.pending()
                || disk.transaction != TransactionStep::Idle
                || !disk.submit.is_empty()
        })
    }
}
