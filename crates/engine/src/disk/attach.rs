//! Attaching a backing device: what it refuses, and what is read and written until it serves (states spec 13.1;
//! metadata spec 7.1).

use udrbd_metadata::attach::{
    AttachError, Geometry, Sizes, Unclean, check_sizes, read_superblock, superblock_place,
};
use udrbd_metadata::{Flags, Layout, Superblock, activity_log, apply, bitmap};
use udrbd_units::{ConnectionState, DiskState, Extent, Role, Sector};

use super::{Io, Purpose};
use crate::Engine;
use crate::activity_log::ActivityLog;
use crate::bitmap::Bitmap;
use crate::disk::bitmap_io::BitmapIo;
use crate::interface::{
    Action, AttachSettings, CommandId, Duration, Failure, IoError, Level, MetadataBlock, Token,
};
use crate::resync_extents::ResyncExtents;
use crate::slab::Key;
use crate::state::{
    AttachFacts, MetadataFlags, RememberedDisks, StateChangeResult, StateRequest, attached_state,
};
use crate::undo::Undo;
use crate::volume::{Disk, TransactionStep};

/// Bytes of one read of metadata.
const READ_BYTES: u64 = 1 << 20;
/// Reads of the bitmap, and writes, in flight at the most.
const IN_FLIGHT: u32 = 8;

/// DRBD's numbers for what an attach refuses besides what the metadata say.
mod code {
    pub(super) const IO_MD_DISK: u32 = 118;
    pub(super) const DISK_CONFIGURED: u32 = 124;
    pub(super) const DATA_NOT_CURRENT: u32 = 150;
    pub(super) const MD_UNCLEAN: u32 = 165;
}

/// Where an attach stands. Each step ends when nothing of it is in flight.
#[derive(Debug)]
enum Step {
    /// Requests in flight at the peer have to end first.
    Quiesce,
    Superblock,
    Log {
        area: Vec<u8>,
        read: u64,
    },
    Bitmap {
        next: u64,
        bytes: u64,
    },
    /// Pages changed by the activity log or a new size.
    Pages,
    /// The superblock says that the activity log does not count: this version.
    Retire(u64),
    /// The activity log is written empty.
    Ring {
        next: u32,
    },
    /// The disk begins to serve.
    Publish,
    /// The superblock says so: this version.
    Durable(u64),
}

/// An attach under way.
#[derive(Debug)]
pub(crate) struct Attaching {
    command: CommandId,
    number: u64,
    settings: Box<AttachSettings>,
    step: Step,
    outstanding: u32,
    failed: Option<IoError>,
    place: Sector,
    superblock: Superblock,
    layout: Option<Layout>,
    geometry: Option<Geometry>,
    bitmap: Option<Bitmap>,
    mark: Vec<Extent>,
    marked: u64,
    whole_bitmap: bool,
    ring: bool,
}

impl Attaching {
    /// The `disk-timeout` the disk is to have.
    pub(super) fn disk_timeout(&self) -> Duration {
        self.settings.options.disk_timeout
    }
}

impl Engine {
    /// `attach`: the checks that need no disk, and the first read.
    pub(crate) fn attach(&mut self, command: CommandId, index: usize, settings: Box<AttachSettings>) {
        let volume = &self.volumes[index];
        if volume.state.disk > DiskState::Diskless || volume.attaching.is_some() {
            self.reply(command, Err(Failure::configuration(code::DISK_CONFIGURED)));
            return;
        }
        let place = match superblock_place(settings.placement, settings.properties.metadata_size) {
            Ok(place) => place,
            Err(error) => {
                self.refuse_attach(command, index, &error);
                return;
            }
        };
        let flags = &mut self.volumes[index].flags;
        flags.was_io_error = false;
        flags.was_read_error = false;
        flags.force_detach = false;
        flags.target = crate::generation::TargetOfResync::Unknown;
        self.volumes[index].verify_range = crate::resync::VerifyRange::default();
        let change = self.change_state(index, StateRequest::disk(DiskState::Attaching));
        if !change.is_success() {
            self.reply(command, Err(Failure::state(change)));
            return;
        }
        self.attach_count += 1;
        let counters = &mut self.volumes[index].counters;
        (counters.sent_sectors, counters.received_sectors) = (0, 0);
        (counters.written_sectors, counters.read_sectors) = (0, 0);
        self.volumes[index].quiesce += 1;
        self.volumes[index].attaching = Some(Box::new(Attaching {
            command,
            number: self.attach_count,
            settings,
            step: Step::Quiesce,
            outstanding: 0,
            failed: None,
            place,
            superblock: Superblock::decode(&[0; 4096]),
            layout: None,
            geometry: None,
            bitmap: None,
            mark: Vec::new(),
            marked: 0,
            whole_bitmap: false,
            ring: false,
        }));
        self.attention = true;
    }

    fn refuse_attach(&mut self, command: CommandId, index: usize, error: &AttachError) {
        for line in error.to_string().lines() {
            self.say(Level::Error, Some(index), line.to_owned());
        }
        let info = match error {
            AttachError::ImplicitShrink { size, last_agreed } => vec![
                "To-be-attached device has last effective > current size, and is consistent".to_owned(),
                format!("({last_agreed} > {size} sectors). Refusing to attach."),
            ],
            _ => Vec::new(),
        };
        self.reply(command, Err(Failure::Configuration { code: error.code(), info }));
    }

    /// Takes an attach one step further, if the present one is over. Returns whether something happened.
    pub(crate) fn run_attach(&mut self, index: usize) -> bool {
        let Some(mut attaching) = self.volumes[index].attaching.take() else { return false };
        if attaching.outstanding > 0 && !matches!(attaching.step, Step::Bitmap { .. } | Step::Ring { .. }) {
            self.volumes[index].attaching = Some(attaching);
            return false;
        }
        // A detach, or a failure of the disk on the way, ends it once nothing of it is in flight.
        let given_up = self.volumes[index].state.disk == DiskState::Failed;
        let over = attaching.failed.is_some() || given_up;
        // The writers of pages and superblock, too: what they have in flight must not end on the disk that comes next.
        let busy = self.volumes[index].disk.as_ref().is_some_and(|disk| disk.operations > 0);
        let outcome = if over && attaching.outstanding == 0 && (given_up || !busy) {
            Err(Failure::configuration(code::IO_MD_DISK))
        } else if given_up || (over && busy) {
            Ok(Progress::Waiting)
        } else {
            self.next_step(index, &mut attaching)
        };
        match outcome {
            Ok(Progress::Waiting) => {
                self.volumes[index].attaching = Some(attaching);
                false
            }
            Ok(Progress::Stepped) => {
                self.volumes[index].attaching = Some(attaching);
                true
            }
            Ok(Progress::Attached) => {
                self.volumes[index].quiesce -= 1;
                self.reply(attaching.command, Ok(()));
                true
            }
            Err(failure) => {
                self.volumes[index].quiesce -= 1;
                if !given_up {
                    self.force_state(index, StateRequest::disk(DiskState::Diskless));
                    self.drop_disk(index);
                }
                self.reply(attaching.command, Err(failure));
                true
            }
        }
    }

    fn next_step(&mut self, index: usize, attaching: &mut Attaching) -> Result<Progress, Failure> {
        match &mut attaching.step {
            Step::Quiesce => {
                if self.volumes[index].admitted > 0 && !self.suspension.any() {
                    return Ok(Progress::Waiting);
                }
                attaching.step = Step::Superblock;
                self.attach_read_at(index, attaching, attaching.place, 4096, 0);
            }
            Step::Superblock => return Ok(Progress::Waiting),
            Step::Log { area, read } => {
                if (*read as usize) < area.len() {
                    return Ok(Progress::Waiting);
                }
                let area = std::mem::take(area);
                self.log_read(index, attaching, &area)?;
            }
            Step::Bitmap { .. } => return self.read_bitmap(index, attaching),
            Step::Pages => return self.write_attached_pages(index, attaching),
            Step::Retire(version) => {
                let version = *version;
                if !self.superblock_is_durable(index, version) {
                    return Ok(Progress::Waiting);
                }
                attaching.step = Step::Ring { next: 0 };
            }
            Step::Ring { .. } => return self.write_ring(index, attaching),
            Step::Publish => return self.publish_disk(index, attaching),
            Step::Durable(version) => {
                let version = *version;
                let durable = self.superblock_is_durable(index, version);
                return Ok(if durable { Progress::Attached } else { Progress::Waiting });
            }
        }
        Ok(Progress::Stepped)
    }

    fn start_attach_io(&mut self, index: usize, attaching: &Attaching) -> Token {
        self.volumes[index].counters.local_pending += 1;
        self.arm_disk_timer_for(index, attaching.disk_timeout());
        let purpose = Purpose::Attach(attaching.number);
        let io = Io { volume: index, purpose, started: self.now, counted: false };
        Token(self.io.insert(io).number())
    }

    /// Metadata have been read for an attach.
    pub(crate) fn metadata_read(&mut self, token: Token, result: Result<Vec<u8>, IoError>) {
        let at = self.attach_reads.remove(&Key::from_number(token.0));
        let Some(io) = self.end_io(token) else { return };
        self.attention = true;
        let Purpose::Attach(number) = io.purpose else { return };
        let Some(mut attaching) = self.volumes[io.volume].attaching.take() else { return };
        if attaching.number != number {
            self.volumes[io.volume].attaching = Some(attaching);
            return;
        }
        attaching.outstanding -= 1;
        match result {
            Err(error) => attaching.failed = Some(error),
            Ok(bytes) => {
                if let Err(failure) = self.take_bytes(io.volume, &mut attaching, at.unwrap_or(0), &bytes) {
                    let command = attaching.command;
                    self.volumes[io.volume].quiesce -= 1;
                    self.force_state(io.volume, StateRequest::disk(DiskState::Diskless));
                    self.reply(command, Err(failure));
                    return;
                }
            }
        }
        self.volumes[io.volume].attaching = Some(attaching);
    }

    fn take_bytes(
        &mut self,
        index: usize,
        attaching: &mut Attaching,
        at: u64,
        bytes: &[u8],
    ) -> Result<(), Failure> {
        match &mut attaching.step {
            Step::Superblock => self.superblock_read(index, attaching, bytes),
            Step::Log { area, read } => {
                let from = at as usize;
                area[from..from + bytes.len()].copy_from_slice(bytes);
                *read += bytes.len() as u64;
                Ok(())
            }
            Step::Bitmap { .. } => {
                if let Some(bitmap) = &mut attaching.bitmap {
                    bitmap.load(at, bytes);
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Checks the superblock and the sizes, then reads the activity log.
    fn superblock_read(
        &mut self,
        index: usize,
        attaching: &mut Attaching,
        bytes: &[u8],
    ) -> Result<(), Failure> {
        let block: &[u8; 4096] = bytes.try_into().map_err(|_| Failure::configuration(code::IO_MD_DISK))?;
        let settings = &attaching.settings;
        let properties = settings.properties;
        let read = read_superblock(block, settings.placement, properties.metadata_size, Unclean::Accept);
        let checked = read.and_then(|(superblock, layout)| {
            let volume = &self.volumes[index];
            // A peer that has been away may have grown meanwhile, and says so when it is back. (8.4.11 refuses the disk until
            // the resource has been down.)
            let is_outdated = self.connection.state < ConnectionState::WFReportParams
                && volume.peer_size < superblock.la_size_sect;
            let sizes = Sizes {
                backing: properties.backing_size,
                metadata: properties.metadata_size,
                configured: Sector(settings.options.size_sectors),
                current: if volume.size.0 > 0 && volume.state.peer_disk != DiskState::Unknown {
                    volume.size
                } else {
                    Sector(0)
                },
                peer: if is_outdated { Sector(0) } else { volume.peer_size },
            };
            check_sizes(&superblock, &layout, &sizes).map(|geometry| (superblock, layout, geometry))
        });
        let (superblock, layout, geometry) = match checked {
            Ok(found) => found,
            Err(error) => {
                for line in error.to_string().lines() {
                    self.say(Level::Error, Some(index), line.to_owned());
                }
                let info = match &error {
                    AttachError::ImplicitShrink { size, last_agreed } => vec![
                        "To-be-attached device has last effective > current size, and is consistent"
                            .to_owned(),
                        format!("({last_agreed} > {size} sectors). Refusing to attach."),
                    ],
                    _ => Vec::new(),
                };
                return Err(Failure::Configuration { code: error.code(), info });
            }
        };
        self.check_exposed_data(index, &superblock)?;
        let length = layout.al_bytes();
        attaching.superblock = superblock;
        attaching.layout = Some(layout);
        attaching.geometry = Some(geometry);
        attaching.step = Step::Log { area: vec![0; length as usize], read: 0 };
        let mut at = 0;
        while at < length {
            let bytes = READ_BYTES.min(length - at);
            let position = Sector(layout.al_start().0 + at / 512);
            self.attach_read_at(index, attaching, position, bytes as u32, at);
            at += bytes;
        }
        Ok(())
    }

    fn attach_read_at(
        &mut self,
        index: usize,
        attaching: &mut Attaching,
        position: Sector,
        bytes: u32,
        at: u64,
    ) {
        attaching.outstanding += 1;
        let token = self.start_attach_io(index, attaching);
        self.attach_reads.insert(Key::from_number(token.0), at);
        let volume = self.volumes[index].number;
        self.out.push(Action::ReadMetadata { token, volume, position, bytes });
    }

    /// A diskless Primary takes back only the data its clients have seen (states spec 13.1 step 3).
    fn check_exposed_data(&mut self, index: usize, superblock: &Superblock) -> Result<(), Failure> {
        let volume = &self.volumes[index];
        let somebody_primary = volume.state.role == Role::Primary || volume.state.peer == Role::Primary;
        let differs = volume.exposed.is_some() && !volume.exposed.same_generation(superblock.current);
        if volume.state.peer_disk != DiskState::UpToDate && somebody_primary && differs {
            let text = format!("Can only attach to data with current UUID={}", volume.exposed);
            self.say(Level::Error, Some(index), text);
            return Err(Failure::configuration(code::DATA_NOT_CURRENT));
        }
        Ok(())
    }

    /// Decides what the activity log means, and reads the bitmap.
    fn log_read(&mut self, index: usize, attaching: &mut Attaching, area: &[u8]) -> Result<(), Failure> {
        let plan = apply::plan(&attaching.superblock, area);
        for note in &plan.notes {
            self.say(Level::Info, Some(index), note.to_string());
        }
        let writes = plan.writes.map_err(|error| {
            self.say(Level::Error, Some(index), error.to_string());
            Failure::configuration(code::MD_UNCLEAN)
        })?;
        let size = attaching.superblock.la_size_sect;
        let mut bitmap = Bitmap::new(size);
        let facts = self.attach_facts(index, attaching);
        let found = attached_state(facts, self.volumes[index].state.peer_disk);
        let moved = attaching.geometry.is_some_and(|geometry| geometry.moved);
        attaching.ring = writes.initialize_ring;
        if found.all_out_of_sync || moved || size.0 == 0 {
            if found.all_out_of_sync {
                let text = "Assuming that all blocks are out of sync (aka FullSync)".to_owned();
                self.say(Level::Info, Some(index), text);
            }
            bitmap.set_all();
            bitmap.mark_all_pages();
            attaching.whole_bitmap = true;
            attaching.bitmap = Some(bitmap);
            attaching.step = Step::Pages;
        } else {
            attaching.mark = writes.mark;
            attaching.bitmap = Some(bitmap);
            attaching.step = Step::Bitmap { next: 0, bytes: bitmap::area_bytes(size) };
        }
        Ok(())
    }

    fn attach_facts(&self, index: usize, attaching: &Attaching) -> AttachFacts {
        AttachFacts {
            flags: MetadataFlags(attaching.superblock.flags.0),
            fencing: attaching.settings.options.fencing,
            role: self.volumes[index].state.role,
            suspended_no_data: self.suspension.no_data,
        }
    }

    fn read_bitmap(&mut self, index: usize, attaching: &mut Attaching) -> Result<Progress, Failure> {
        let Some(layout) = attaching.layout else { return Ok(Progress::Waiting) };
        let mut progress = false;
        while let Step::Bitmap { next, bytes } = &mut attaching.step {
            if *next >= *bytes || attaching.outstanding >= IN_FLIGHT || attaching.failed.is_some() {
                break;
            }
            let at = *next;
            let length = READ_BYTES.min(*bytes - at);
            *next += length;
            let position = Sector(layout.bitmap_start().0 + at / 512);
            self.attach_read_at(index, attaching, position, length as u32, at);
            progress = true;
        }
        let Step::Bitmap { next, bytes } = attaching.step else { return Ok(Progress::Waiting) };
        if next < bytes || attaching.outstanding > 0 {
            return Ok(if progress { Progress::Stepped } else { Progress::Waiting });
        }
        if let Some(bitmap) = &mut attaching.bitmap {
            let before = bitmap.set_count();
            let skips = self.bug(crate::bugs::Bug::SkipReplay);
            for extent in std::mem::take(&mut attaching.mark).into_iter().filter(|_| !skips) {
                let first = u64::from(extent.0) * udrbd_units::EXTENT_BLOCKS;
                bitmap.set_range(first..=first + udrbd_units::EXTENT_BLOCKS - 1);
            }
            attaching.marked = bitmap.set_count() - before;
        }
        attaching.step = Step::Pages;
        Ok(Progress::Stepped)
    }

    /// Makes the disk of all that was read. From here on the ordinary writers of superblock and bitmap do the work;
    /// the disk does not serve before they are done.
    fn write_attached_pages(&mut self, index: usize, attaching: &mut Attaching) -> Result<Progress, Failure> {
        let (Some(geometry), Some(mut bitmap)) = (attaching.geometry, attaching.bitmap.take()) else {
            // The disk is made; its pages are being written.
            return Ok(self.attached_pages_written(index, attaching));
        };
        if attaching.marked > 0 {
            let size = udrbd_metadata::generation::human_size(attaching.marked * 4);
            self.say(
                Level::Info,
                Some(index),
                format!("Marked additional {size} as out-of-sync based on AL."),
            );
        }
        let layout_changes = geometry.size_changed || geometry.moved;
        if layout_changes {
            bitmap.resize(geometry.size, true);
            attaching.ring = true;
        }
        if geometry.moved {
            bitmap.set_all();
            bitmap.mark_all_pages();
        }
        let mut superblock = attaching.superblock.clone();
        superblock.la_size_sect = geometry.size;
        superblock.set_layout(&geometry.layout);
        superblock.magic = udrbd_metadata::Magic::V08_UNCLEAN;
        superblock.flags.set(Flags::AL_CLEAN, false);
        let options = attaching.settings.options.clone();
        let slots = geometry.layout.striping.al_extents(options.al_extents);
        superblock.al_nr_extents = u32::from(slots);
        superblock.flags.set(Flags::AL_DISABLED, !options.al_updates);
        // What is written now must not be taken for good before the pages are (metadata spec 8.9).
        let bracket = layout_changes || attaching.whole_bitmap;
        attaching.superblock = superblock.clone();
        if bracket {
            superblock.flags.set(Flags::FULL_SYNC, true);
        } else {
            superblock = Superblock { flags: attaching.superblock.flags, ..superblock };
        }
        let kept = attaching.settings.kept.take();
        let undo = kept.map(|kept| Box::new(Undo::found(kept.words, kept.blocks)));
        self.volumes[index].disk = Some(Disk {
            properties: attaching.settings.properties,
            options,
            layout: geometry.layout,
            superblock,
            superblock_version: u64::from(bracket),
            superblock_durable: 0,
            superblock_writing: None,
            indicated: attaching.superblock.flags.contains(Flags::PRIMARY_IND),
            indicating: false,
            bitmap,
            log: ActivityLog::new(u32::from(slots), geometry.layout.striping, 0),
            extents: ResyncExtents::new(),
            bitmap_io: BitmapIo::default(),
            submit: std::collections::VecDeque::new(),
            in_transaction: Vec::new(),
            transaction: TransactionStep::Idle,
            transaction_block: 0,
            operations: 0,
            abandoned: false,
            log_is_absent: false,
            detach_pages: None,
            undo,
        });
        Ok(Progress::Stepped)
    }

    fn attached_pages_written(&mut self, index: usize, attaching: &mut Attaching) -> Progress {
        let Some(disk) = &self.volumes[index].disk else { return Progress::Waiting };
        if disk.superblock_durable < disk.superblock_version {
            return Progress::Waiting;
        }
        match disk.detach_pages {
            None => {
                let pass = self.write_changed_pages(index);
                if let Some(disk) = &mut self.volumes[index].disk {
                    disk.detach_pages = Some(pass);
                }
                Progress::Stepped
            }
            Some(pass) if disk.bitmap_io.is_finished(pass) => {
                if let Some(disk) = &mut self.volumes[index].disk {
                    disk.detach_pages = None;
                }
                attaching.step = if attaching.ring { self.retire_log(index) } else { Step::Publish };
                Progress::Stepped
            }
            Some(_) => Progress::Waiting,
        }
    }

    /// What the activity log covered is in the bitmap on disk: the superblock says that the log no longer counts, for a
    /// crash may leave nothing readable of a ring that is being written anew.
    fn retire_log(&mut self, index: usize) -> Step {
        let Some(disk) = &mut self.volumes[index].disk else { return Step::Publish };
        if !disk.superblock.flags.contains(Flags::PRIMARY_IND) {
            return Step::Ring { next: 0 };
        }
        disk.superblock.flags.set(Flags::PRIMARY_IND, false);
        disk.superblock.flags.set(Flags::CRASHED_PRIMARY, true);
        Step::Retire(self.touch_superblock(index))
    }

    /// Writes the activity log empty: pages first, by the flush in front of each block (metadata spec 8.11).
    fn write_ring(&mut self, index: usize, attaching: &mut Attaching) -> Result<Progress, Failure> {
        let (Some(geometry), Step::Ring { next }) = (attaching.geometry, &mut attaching.step) else {
            return Ok(Progress::Waiting);
        };
        let blocks = geometry.layout.striping.blocks();
        if *next >= blocks {
            if attaching.outstanding > 0 {
                return Ok(Progress::Waiting);
            }
            attaching.step = Step::Publish;
            return Ok(Progress::Stepped);
        }
        if attaching.outstanding >= IN_FLIGHT || attaching.failed.is_some() {
            return Ok(Progress::Waiting);
        }
        let place = *next;
        *next += 1;
        attaching.outstanding += 1;
        let mut block: MetadataBlock = self.take_block();
        block.copy_from_slice(&activity_log::initialized_block());
        let token = self.start_attach_io(index, attaching);
        let volume = self.volumes[index].number;
        self.volumes[index].counters.al_writes += 1;
        let position = Sector(geometry.layout.al_start().0 + u64::from(place) * 8);
        self.out.push(Action::WriteMetadata { token, volume, position, block, preflush: true, fua: true });
        Ok(Progress::Stepped)
    }

    /// A metadata write on behalf of an attach has failed.
    pub(super) fn fail_attach(&mut self, index: usize) {
        if let Some(attaching) = &mut self.volumes[index].attaching {
            attaching.failed.get_or_insert(IoError { errno: 5 });
        }
    }

    pub(super) fn attach_written(&mut self, index: usize, number: u64, result: Result<(), IoError>) {
        if let Some(attaching) = &mut self.volumes[index].attaching
            && attaching.number == number
        {
            attaching.outstanding -= 1;
            if let Err(error) = result {
                attaching.failed = Some(error);
            }
        }
    }

    /// The disk begins to serve (states spec 13.1 steps 6 to 12).
    fn publish_disk(&mut self, index: usize, attaching: &mut Attaching) -> Result<Progress, Failure> {
        let Some(geometry) = attaching.geometry else { return Ok(Progress::Waiting) };
        if self.connection.state_sent {
            // The peer decides by what it was told, which is that there is no disk (states spec 3.6, X7).
            return Ok(Progress::Waiting);
        }
        let facts = self.attach_facts(index, attaching);
        let state = self.volumes[index].state;
        let found = attached_state(facts, state.peer_disk);
        let volume = &mut self.volumes[index];
        volume.flags.crashed_primary = found.crashed_primary;
        volume.flags.use_degraded_wfc_timeout = found.use_degraded_timeout;
        // A peer without a disk has nothing to resync, and does not take part when it has one again.
        let peer_has_disk = (DiskState::Inconsistent..=DiskState::UpToDate).contains(&state.peer_disk)
            && state.peer_disk != DiskState::Unknown;
        if geometry.size > volume.size && volume.size.0 > 0 && peer_has_disk {
            volume.flags.resync_after_negotiating = true;
        }
        let Some(disk) = &mut volume.disk else { return Ok(Progress::Waiting) };
        disk.superblock.flags = attaching.superblock.flags.with(Flags::FULL_SYNC, false);
        disk.superblock.current = disk.superblock.current.with_primary_bit(state.role == Role::Primary);
        volume.counters.out_of_sync_sectors = volume.set_bits() * 8;
        let grown = geometry.size != volume.size;
        if grown {
            self.set_size(index, geometry.size);
        }
        let mut request = StateRequest { peer_disk: found.peer_disk, ..StateRequest::disk(found.disk) };
        if state.connection == ConnectionState::Connected {
            self.volumes[index].remembered = Some(RememberedDisks {
                disk: found.disk,
                peer_disk: found.peer_disk.unwrap_or(state.peer_disk),
            });
            self.volumes[index].peer_generations = None;
            request = StateRequest::disk(DiskState::Negotiating);
        }
        let bits = self.volumes[index].set_bits();
        if bits > 0 {
            self.say(
                Level::Info,
                Some(index),
                format!("{} KB ({bits} bits) marked out-of-sync by on disk bit-map.", bits * 4),
            );
        }
        let change = self.change_state(index, request);
        if !change.is_success() {
            return Err(match change {
                StateChangeResult::NothingToDo => Failure::configuration(code::IO_MD_DISK),
                code => Failure::state(code),
            });
        }
        attaching.step = Step::Durable(self.touch_superblock(index));
        self.write_ordering_may_change();
        Ok(Progress::Stepped)
    }
}

/// What came of trying to take an attach further.
enum Progress {
    Waiting,
    Stepped,
    Attached,
}
