//! Another size, or another place of the metadata, for a disk that serves (states spec 18; metadata spec 8.9).
//!
//! Internal metadata are at the end of the device, so they move when it has grown. A crash on the way finds a superblock
//! at the new place that says that every block is out of sync.

use udrbd_metadata::attach::expected_layout;
use udrbd_metadata::layout::device_size;
use udrbd_metadata::{Flags, Layout, Striping, activity_log};
use udrbd_units::{ConnectionState, DiskState, Role, Sector};
use udrbd_wire as wire;

use super::Purpose;
use crate::Engine;
use crate::activity_log::ActivityLog;
use crate::interface::{Action, CommandId, Failure, Level, MetadataBlock, ResizeRequest, Token};
use crate::state::StateChangeResult as Code;

/// DRBD's numbers for what a resize refuses.
mod code {
    pub(super) const RESIZE_DURING_RESYNC: u32 = 130;
    pub(super) const NO_PRIMARY: u32 = 131;
    pub(super) const NO_DISK: u32 = 138;
    pub(super) const LAYOUT_NEEDS_PEER: u32 = 166;
    pub(super) const LAYOUT_TOO_BIG: u32 = 167;
    pub(super) const LAYOUT_TOO_SMALL: u32 = 168;
    pub(super) const LAYOUT_NO_FIT: u32 = 169;
    pub(super) const IMPLICIT_SHRINK: u32 = 170;
    pub(super) const IO_METADATA: u32 = 118;
}

/// The most an activity log may take, bytes.
const LOG_BYTES_MAX: u64 = 16 << 30;
/// The least an activity log may take, bytes.
const LOG_BYTES_MIN: u64 = 32 << 10;

/// Who wants it.
#[derive(Debug)]
enum Cause {
    /// The administrator; what the peer is told with the new size.
    Command { id: CommandId, flags: wire::SizesFlags },
    /// The peer's P_SIZES: the device was found to have another size.
    Peer(Box<wire::Sizes>),
}

#[derive(Debug)]
enum Step {
    /// Writes in flight have to end first: they hold extents of the activity log.
    Drain,
    /// The superblock at the new place says that all is out of sync: this version.
    Flag(u64),
    /// The activity log is written empty.
    Ring { next: u32, outstanding: u32 },
    /// The pages of the bitmap are: this pass.
    Pages(u64),
    /// The superblock says that everything is as it was: this version.
    Durable(u64),
}

/// A change of size or place under way.
#[derive(Debug)]
pub(crate) struct Resizing {
    cause: Cause,
    step: Step,
    layout: Layout,
    size: Sector,
    assume_clean: bool,
    grew: bool,
}

impl Resizing {
    const fn is_waiting(&self) -> bool {
        matches!(self.step, Step::Drain)
    }
}

impl Engine {
    /// The runtime has found that the devices of a volume have other sizes than when it looked last. One that has become
    /// smaller is not believed: what is on it would be lost.
    pub(crate) fn device_resized(&mut self, index: usize, backing: Sector, metadata: Sector) {
        let Some(disk) = &mut self.volumes[index].disk else { return };
        let known = &mut disk.properties;
        if backing < known.backing_size || metadata < known.metadata_size {
            let text = format!(
                "The backing device has shrunk to {backing} sectors (metadata device: {metadata}); ignored"
            );
            self.say(Level::Error, Some(index), text);
            return;
        }
        (known.backing_size, known.metadata_size) = (backing, metadata);
    }

    /// Where the metadata belong on the device as it is, with this striping.
    fn layout_for(&self, index: usize, striping: Option<Striping>) -> Option<Layout> {
        let disk = self.volumes[index].disk.as_ref()?;
        let striping = striping.unwrap_or(disk.layout.striping);
        expected_layout(disk.layout.placement, disk.properties.metadata_size, striping).ok()
    }

    /// What this node can offer: the device as it is, with the metadata where they then belong.
    pub(crate) fn capacity_offered(&self, index: usize) -> Option<Sector> {
        let disk = self.volumes[index].disk.as_ref()?;
        let layout = self.layout_for(index, None).unwrap_or(disk.layout);
        Some(layout.max_capacity(disk.properties.backing_size))
    }

    /// `resize` (states spec 18.6).
    pub(crate) fn resize(&mut self, id: CommandId, index: usize, request: &ResizeRequest) {
        // Nothing may change of what the peer is told before it has answered.
        if self.volumes[index].state.connection == ConnectionState::WFReportParams {
            return self.reply(id, Err(Failure::state(Code::InTransientState)));
        }
        let result = self.begin_resize(id, index, request);
        if let Err(code) = result {
            self.reply(id, Err(Failure::configuration(code)));
        }
    }

    fn begin_resize(&mut self, id: CommandId, index: usize, request: &ResizeRequest) -> Result<(), u32> {
        let state = self.volumes[index].state;
        if self.volumes[index].disk.is_none() || !self.volumes[index].has_disk() {
            return Err(code::NO_DISK);
        }
        if state.connection > ConnectionState::Connected || self.volumes[index].resizing.is_some() {
            return Err(code::RESIZE_DURING_RESYNC);
        }
        if state.role == Role::Secondary && state.peer == Role::Secondary {
            return Err(code::NO_PRIMARY);
        }
        let striping = self.wanted_striping(index, request)?;
        let Some(layout) = self.layout_for(index, striping) else { return Err(code::LAYOUT_NO_FIT) };
        let Some(disk) = &self.volumes[index].disk else { return Err(code::NO_DISK) };
        let own = layout.max_capacity(disk.properties.backing_size);
        let last_agreed = disk.superblock.la_size_sect;
        let configured = Sector(request.size_sectors);
        let forced = request.assume_peer_has_space && state.connection < ConnectionState::Connected;
        let peer = if forced { own } else { self.volumes[index].peer_size };
        let found = device_size(own, peer, last_agreed, configured);
        if striping.is_some() && found.configured_too_large {
            return Err(code::LAYOUT_NO_FIT);
        }
        if striping.is_some() && configured.0 == 0 && found.size < last_agreed {
            return Err(code::IMPLICIT_SHRINK);
        }
        if forced {
            let text = "Resize while not connected was forced by the user!".to_owned();
            self.say(Level::Warning, Some(index), text);
        }
        if found.configured_too_large {
            let text =
                format!("Requested disk size is too big ({} > {})", configured.0 / 2, found.size.0 / 2);
            self.say(Level::Error, Some(index), text);
        }
        if let Some(disk) = &mut self.volumes[index].disk {
            disk.options.size_sectors = configured.0;
        }
        let flag = |set: bool, flag: wire::SizesFlags| if set { flag.0 } else { 0 };
        let flags = wire::SizesFlags(
            flag(request.assume_peer_has_space, wire::SizesFlags::FORCED)
                | flag(request.assume_clean, wire::SizesFlags::NO_RESYNC),
        );
        let cause = Cause::Command { id, flags };
        self.start_resizing(index, cause, layout, found.size, request.assume_clean);
        Ok(())
    }

    /// The striping asked for, if it is to change, after the checks it has to pass.
    fn wanted_striping(&self, index: usize, request: &ResizeRequest) -> Result<Option<Striping>, u32> {
        let Some(disk) = &self.volumes[index].disk else { return Err(code::NO_DISK) };
        let now = disk.layout.striping;
        let wanted = Striping {
            stripes: request.al_stripes.unwrap_or(now.stripes),
            stripe_size_4k: request.al_stripe_size_kib.map_or(now.stripe_size_4k, |kib| kib / 4),
        };
        if wanted == now {
            return Ok(None);
        }
        let bytes = u64::from(wanted.stripes) * u64::from(wanted.stripe_size_4k) * 4096;
        if bytes > LOG_BYTES_MAX {
            return Err(code::LAYOUT_TOO_BIG);
        }
        if bytes < LOG_BYTES_MIN {
            return Err(code::LAYOUT_TOO_SMALL);
        }
        if self.volumes[index].state.connection != ConnectionState::Connected
            && !request.assume_peer_has_space
        {
            return Err(code::LAYOUT_NEEDS_PEER);
        }
        Ok(Some(wanted))
    }

    /// The peer has told its size, and the own device has another one than the metadata were made for. Returns whether
    /// they have to move before the peer's size can be answered.
    pub(crate) fn move_for_peer(&mut self, index: usize, size: Sector, sizes: &wire::Sizes) -> bool {
        let Some(disk) = &self.volumes[index].disk else { return false };
        let Some(layout) = self.layout_for(index, None).filter(|layout| *layout != disk.layout) else {
            return false;
        };
        let clean = sizes.flags.contains(wire::SizesFlags::NO_RESYNC);
        self.start_resizing(index, Cause::Peer(Box::new(*sizes)), layout, size, clean);
        true
    }

    fn start_resizing(
        &mut self,
        index: usize,
        cause: Cause,
        layout: Layout,
        size: Sector,
        assume_clean: bool,
    ) {
        let volume = &mut self.volumes[index];
        let grew = size > volume.size && volume.size.0 > 0;
        volume.quiesce += 1;
        volume.resizing =
            Some(Box::new(Resizing { cause, step: Step::Drain, layout, size, assume_clean, grew }));
        self.attention = true;
    }

    /// Takes a change of size further. Returns whether something happened.
    pub(crate) fn run_resizing(&mut self, index: usize) -> bool {
        let Some(mut resizing) = self.volumes[index].resizing.take() else { return false };
        if self.volumes[index].disk.is_none() || self.volumes[index].state.disk <= DiskState::Failed {
            self.volumes[index].quiesce -= 1;
            self.attention = true;
            if let Cause::Command { id, .. } = resizing.cause {
                self.reply(id, Err(Failure::configuration(code::IO_METADATA)));
            }
            return true;
        }
        match self.step_resizing(index, &mut resizing) {
            Progress::Waiting => {
                self.volumes[index].resizing = Some(resizing);
                false
            }
            Progress::Stepped => {
                self.volumes[index].resizing = Some(resizing);
                true
            }
            Progress::Over => {
                self.end_resizing(index, *resizing);
                true
            }
            Progress::GivenUp => {
                // Writes may have to wait for the peer, whose handshake would have to wait for the new size.
                self.give_up_resizing(index, *resizing, "I/O is suspended");
                true
            }
        }
    }

    /// Whether there are writes that do not end before I/O is resumed.
    fn has_frozen_writes(&self, index: usize) -> bool {
        let frozen = |request: &crate::request::Request| {
            request.volume == index
                && request.extents_held > 0
                && (request.held || self.connection.log_frozen)
        };
        self.suspension.any() && self.requests.iter().any(|(_, request)| frozen(request))
    }

    /// A handshake begins: what the peer is told has to hold until it is over. A resize that only waits for its turn is not done.
    pub(crate) fn give_up_waiting_resize(&mut self, index: usize) {
        if let Some(resizing) = self.volumes[index].resizing.take_if(|resizing| resizing.is_waiting()) {
            self.give_up_resizing(index, *resizing, "the peer is connecting");
        }
    }

    fn give_up_resizing(&mut self, index: usize, resizing: Resizing, reason: &str) {
        self.volumes[index].quiesce -= 1;
        self.attention = true;
        self.say(Level::Warning, Some(index), format!("Not resized: {reason}"));
        match resizing.cause {
            Cause::Command { id, .. } => self.reply(id, Err(Failure::state(Code::InTransientState))),
            Cause::Peer(sizes) => self.answer_sizes(index, &sizes, false, false),
        }
    }

    fn step_resizing(&mut self, index: usize, resizing: &mut Resizing) -> Progress {
        match resizing.step {
            Step::Drain => {
                if self.has_frozen_writes(index) {
                    return Progress::GivenUp;
                }
                if self.holds_extents(index)
                    || self.volumes[index].peer_writes > 0
                    || self.writes_metadata(index)
                {
                    return Progress::Waiting;
                }
                self.apply_resize(index, resizing)
            }
            Step::Flag(version) => {
                if !self.superblock_is_durable(index, version) {
                    return Progress::Waiting;
                }
                resizing.step = Step::Ring { next: 0, outstanding: 0 };
                Progress::Stepped
            }
            Step::Ring { .. } => self.write_moved_ring(index, resizing),
            Step::Pages(pass) => {
                if self.volumes[index].disk.as_ref().is_some_and(|disk| !disk.bitmap_io.is_finished(pass)) {
                    return Progress::Waiting;
                }
                if let Some(disk) = &mut self.volumes[index].disk {
                    disk.superblock.flags.set(Flags::FULL_SYNC, disk.bitmap_io.is_incomplete());
                    disk.superblock.flags.set(Flags::AL_DISABLED, !disk.options.al_updates);
                    disk.log_is_absent = false;
                }
                resizing.step = Step::Durable(self.touch_superblock(index));
                Progress::Stepped
            }
            Step::Durable(version) if self.superblock_is_durable(index, version) => Progress::Over,
            Step::Durable(_) => Progress::Waiting,
        }
    }

    /// Whether anything of the metadata is being written at the place they are at now.
    fn writes_metadata(&self, index: usize) -> bool {
        self.volumes[index].disk.as_ref().is_some_and(|disk| {
            disk.superblock_writing.is_some()
                || disk.superblock_version > disk.superblock_durable
                || disk.bitmap.writes_in_flight() > 0
                || !disk.bitmap_io.is_idle()
        })
    }

    fn apply_resize(&mut self, index: usize, resizing: &mut Resizing) -> Progress {
        let Resizing { layout, size, assume_clean, .. } = *resizing;
        let current = self.volumes[index].size;
        let Some(disk) = &mut self.volumes[index].disk else { return Progress::Waiting };
        let moved = disk.layout != layout;
        let resized = disk.superblock.la_size_sect != size || current != size;
        if !moved {
            if resized {
                self.apply_size(index, size, assume_clean);
            }
            resizing.step = Step::Durable(self.touch_superblock(index));
            return Progress::Stepped;
        }
        disk.bitmap.resize(size, !assume_clean);
        disk.bitmap.mark_all_pages();
        disk.layout = layout;
        disk.superblock.la_size_sect = size;
        disk.superblock.set_layout(&layout);
        disk.superblock.flags.set(Flags::FULL_SYNC, true);
        // There is no log yet at the new place; if the disk fails now, there never will be.
        disk.log_is_absent = true;
        disk.superblock.flags.set(Flags::AL_DISABLED, true);
        let slots = layout.striping.al_extents(disk.options.al_extents);
        disk.superblock.al_nr_extents = u32::from(slots);
        disk.log = ActivityLog::new(u32::from(slots), layout.striping, 0);
        self.volumes[index].counters.out_of_sync_sectors = self.volumes[index].set_bits() * 8;
        if size != current {
            self.set_size(index, size);
        }
        let why = if resized { "size changed and md moved" } else { "md moved" };
        self.say(Level::Info, Some(index), format!("Writing the whole bitmap, {why}"));
        resizing.step = Step::Flag(self.touch_superblock(index));
        Progress::Stepped
    }

    /// The pages follow when the whole log is there: an activity log at the new place never speaks of the old one.
    fn write_moved_ring(&mut self, index: usize, resizing: &mut Resizing) -> Progress {
        let Step::Ring { next, outstanding } = &mut resizing.step else { return Progress::Waiting };
        if *next >= resizing.layout.striping.blocks() {
            if *outstanding > 0 {
                return Progress::Waiting;
            }
            resizing.step = Step::Pages(self.write_changed_pages(index));
            return Progress::Stepped;
        }
        if *outstanding > 0 {
            return Progress::Waiting;
        }
        let place = *next;
        *next += 1;
        *outstanding += 1;
        let mut block: MetadataBlock = self.take_block();
        block.copy_from_slice(&activity_log::initialized_block());
        let token: Token = self.start_io(index, Purpose::Ring);
        let volume = self.volumes[index].number;
        self.volumes[index].counters.al_writes += 1;
        let position = Sector(resizing.layout.al_start().0 + u64::from(place) * 8);
        self.out.push(Action::WriteMetadata { token, volume, position, block, preflush: true, fua: true });
        Progress::Stepped
    }

    /// A block of the empty activity log is written.
    pub(super) fn ring_written(&mut self, index: usize, failed: bool) {
        if let Some(resizing) = &mut self.volumes[index].resizing
            && let Step::Ring { outstanding, .. } = &mut resizing.step
        {
            *outstanding -= 1;
        }
        if failed {
            self.metadata_io_failed(index);
        }
    }

    fn end_resizing(&mut self, index: usize, resizing: Resizing) {
        self.volumes[index].quiesce -= 1;
        self.attention = true;
        match resizing.cause {
            Cause::Command { id, flags } => {
                if self.volumes[index].state.connection == ConnectionState::Connected {
                    self.send_uuids(index, 0);
                    // A peer without a disk takes whatever size it is told, and this node has decided.
                    let ask = self.volumes[index].state.peer_disk >= DiskState::Inconsistent;
                    self.volumes[index].flags.resize_pending |= resizing.grew && ask;
                    self.send_sizes(index, ask, flags.0);
                }
                self.reply(id, Ok(()));
            }
            Cause::Peer(sizes) => self.answer_sizes(index, &sizes, resizing.grew, true),
        }
    }

    /// What follows from a P_SIZES that has been applied (states spec 18.4 step 5). `changed`: the own lower device has
    /// another size than the peer was told.
    pub(crate) fn answer_sizes(&mut self, index: usize, sizes: &wire::Sizes, grew: bool, changed: bool) {
        let state = self.volumes[index].state;
        if state.connection <= ConnectionState::WFReportParams {
            return;
        }
        if sizes.current_size != self.volumes[index].size || changed {
            self.send_sizes(index, false, sizes.flags.0);
        }
        let pending = std::mem::take(&mut self.volumes[index].flags.resize_pending);
        if pending || (grew && state.connection == ConnectionState::Connected) {
            self.resync_grown_part(index, sizes.flags.contains(wire::SizesFlags::NO_RESYNC));
        }
    }

    /// Whether the metadata are on their way to another place. What was written before it began to waits no more for that.
    pub(super) fn moves_metadata(&self, index: usize) -> bool {
        self.is_resizing(index) && !self.volumes[index].resizing.as_deref().is_some_and(Resizing::is_waiting)
    }

    /// Whether the disk may be used while its size changes.
    pub(crate) fn is_resizing(&self, index: usize) -> bool {
        self.volumes[index].resizing.is_some() && self.volumes[index].state.disk > DiskState::Failed
    }
}

/// What came of trying to take it further.
enum Progress {
    Waiting,
    Stepped,
    Over,
    GivenUp,
}
