//! Commands that change one volume: detach, invalidate, outdate, pause, new identifiers (states spec 19.3).

use udrbd_units::{ConnectionState, DiskState, Role};

use super::{Running, code};
use crate::Engine;
use crate::change::{DeviceRequest, Verbosity, is_paused};
use crate::interface::{CommandId, Failure, Level};
use crate::state::{StateChangeResult as Code, StateRequest};
use crate::volume::uuid_flag;

/// What has to happen after the change before the command is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Then {
    /// Nothing.
    Reply,
    /// Nothing; a disk that is worse than outdated is refused, also if it has come to that while the command waited.
    ReplyUnlessWorse,
    /// The same, and a refusal is not told.
    ReplyAlways,
    /// The disk is no longer Failed.
    Detached,
    /// Every bit is set, and on disk.
    FullSync,
    /// The superblock of this version and the bitmap are on disk.
    Durable(u64),
    /// The volume is gone, whatever the peer thought of it.
    Removed,
    /// Nothing; but before the peer is asked to give up its copy, the superblock here says that this one is good.
    ReplyToSource,
}

/// A change of one volume's state by a command.
#[derive(Debug)]
pub(crate) struct DeviceCommand {
    id: CommandId,
    index: usize,
    request: Option<DeviceRequest>,
    then: Then,
}

impl DeviceCommand {
    pub(crate) const fn new(
        id: CommandId,
        index: usize,
        request: StateRequest,
        verbosity: Verbosity,
        then: Then,
    ) -> Self {
        Self { id, index, request: Some(DeviceRequest::new(index, request, verbosity)), then }
    }

    /// The change has been made; what follows it is awaited.
    pub(super) const fn after(id: CommandId, index: usize, then: Then) -> Self {
        Self { id, index, request: None, then }
    }
}

impl Engine {
    pub(crate) fn run_device(&mut self, command: &mut DeviceCommand) -> bool {
        if command.then == Then::ReplyToSource && !self.superblock_is_current(command.index) {
            return false;
        }
        if command.then == Then::ReplyUnlessWorse && self.is_worse_than_outdated(command.index) {
            self.reply(command.id, Err(Failure::state(Code::LowerThanOutdated)));
            return true;
        }
        if let Some(request) = &mut command.request {
            let Some(result) = self.poll_request(request) else { return false };
            command.request = None;
            if !result.is_success() && command.then == Then::Removed {
                self.remove_volume_unheard(command.index);
            }
            if !result.is_success() && !matches!(command.then, Then::ReplyAlways | Then::Removed) {
                let diskless = command.then == Then::Detached && result == Code::IsDiskless;
                let answer = if diskless { Ok(()) } else { Err(Failure::state(result)) };
                self.reply(command.id, answer);
                return true;
            }
            if command.then == Then::FullSync {
                self.begin_full_sync(command.index);
            }
        }
        let index = command.index;
        let over = match command.then {
            Then::Reply | Then::ReplyUnlessWorse | Then::ReplyAlways | Then::ReplyToSource => true,
            Then::Removed => {
                self.remove_volume(index);
                true
            }
            Then::Detached => self.volumes[index].state.disk != DiskState::Failed,
            Then::FullSync => self.full_sync_is_durable(index),
            Then::Durable(version) => self.superblock_is_durable(index, version),
        };
        if over {
            self.reply(command.id, Ok(()));
        }
        over
    }

    /// `outdate`.
    pub(super) fn outdate(&mut self, id: CommandId, index: usize) {
        self.request_device(id, index, StateRequest::disk(DiskState::Outdated), Then::ReplyUnlessWorse);
    }

    /// Such a disk stays so. (8.4.11 takes a Connected one for UpToDate when it is to be outdated.)
    fn is_worse_than_outdated(&self, index: usize) -> bool {
        let state = self.volumes[index].state;
        state.connection >= ConnectionState::Connected && state.disk < DiskState::Outdated
    }

    /// `detach` (states spec 13.2).
    pub(super) fn detach(&mut self, id: CommandId, index: usize, force: bool) {
        if force {
            self.force_detach(index);
            self.reply(id, Ok(()));
            return;
        }
        self.request_device(id, index, StateRequest::disk(DiskState::Failed), Then::Detached);
    }

    /// `invalidate`: the data of this node are to be replaced by the peer's.
    pub(super) fn invalidate(&mut self, id: CommandId, index: usize) {
        let state = self.volumes[index].state;
        if !self.volumes[index].has_disk() {
            self.reply(id, Err(Failure::configuration(code::NO_DISK_CONFIG)));
            return;
        }
        if state.connection == ConnectionState::StandAlone && state.role == Role::Secondary {
            self.request_device(id, index, StateRequest::disk(DiskState::Inconsistent), Then::FullSync);
        } else {
            self.start_full_resync(id, index, ConnectionState::StartingSyncT);
        }
    }

    /// `invalidate-remote`: the peer's data are to be replaced by those of this node.
    pub(super) fn invalidate_remote(&mut self, id: CommandId, index: usize) {
        let state = self.volumes[index].state;
        if !self.volumes[index].has_disk() {
            self.reply(id, Err(Failure::configuration(code::NO_DISK_CONFIG)));
            return;
        }
        if state.connection == ConnectionState::StandAlone && state.role == Role::Primary {
            self.request_device(id, index, StateRequest::peer_disk(DiskState::Inconsistent), Then::FullSync);
        } else {
            self.start_full_resync(id, index, ConnectionState::StartingSyncS);
        }
    }

    fn start_full_resync(&mut self, id: CommandId, index: usize, side: ConnectionState) {
        let request = StateRequest::connection(side);
        let then = if side == ConnectionState::StartingSyncS { Then::ReplyToSource } else { Then::Reply };
        let command = DeviceCommand::new(id, index, request, Verbosity::Verbose, then);
        self.commands.push(Running::Device(command));
    }

    /// `pause-sync`.
    pub(super) fn pause_sync(&mut self, id: CommandId, index: usize) {
        if self.volumes[index].state.user_isp {
            self.reply(id, Err(Failure::configuration(code::PAUSE_ALREADY_SET)));
            return;
        }
        let request = StateRequest { user_isp: Some(true), ..StateRequest::NONE };
        self.request_device(id, index, request, Then::ReplyAlways);
    }

    /// `resume-sync`.
    pub(super) fn resume_sync(&mut self, id: CommandId, index: usize) {
        let state = self.volumes[index].state;
        if !state.user_isp {
            let paused = is_paused(state.connection);
            let code = match (paused && state.after_isp, paused && state.peer_isp) {
                (true, _) => code::PAUSED_BY_DEPENDENCY,
                (_, true) => code::PAUSED_BY_PEER,
                _ => code::PAUSE_ALREADY_CLEAR,
            };
            self.reply(id, Err(Failure::configuration(code)));
            return;
        }
        let request = StateRequest { user_isp: Some(false), ..StateRequest::NONE };
        self.request_device(id, index, request, Then::ReplyAlways);
    }

    /// The resync has to wait for another volume's, or may go on (states spec 12.6). It is a fact, also in the middle of a
    /// handshake; without a configuration it is forgotten at once.
    pub(super) fn resync_dependency(&mut self, id: CommandId, index: usize, waits: bool) {
        self.force_state(index, StateRequest { after_isp: Some(waits), ..StateRequest::NONE });
        self.reply(id, Ok(()));
    }

    /// `resume-io` (states spec 16.4).
    pub(super) fn resume_io(&mut self, id: CommandId) {
        if !self.suspension.any() {
            self.reply(id, Ok(()));
            return;
        }
        for index in 0..self.volumes.len() {
            if !std::mem::take(&mut self.volumes[index].flags.new_current_due) {
                continue;
            }
            if self.volumes[index].disk.is_some() {
                self.new_current_generation(index);
            } else {
                self.volumes[index].exposed = self.random.generation();
                let text =
                    "Resumed without access to data; please tear down before attempting to re-configure.";
                self.say(Level::Warning, Some(index), text.to_owned());
            }
        }
        self.set_suspension(crate::state::Suspension::NONE);
        if self.connection.state < ConnectionState::WFReportParams {
            self.connection.lost_log_pending = true;
        }
        if self.volume_states().any(|state| state.disk <= DiskState::Failed) {
            self.transfer_log_fail_frozen();
        }
        if !self.connection.lost_log_pending {
            self.complete_held();
        }
        self.state_changed();
        self.reply(id, Ok(()));
    }

    /// `new-current-uuid`.
    pub(super) fn new_current_uuid(&mut self, id: CommandId, index: usize, clear_bitmap: bool) {
        if !self.volumes[index].has_disk() {
            self.reply(id, Err(Failure::configuration(code::NO_DISK_CONFIG)));
            return;
        }
        let state = self.volumes[index].state;
        let fresh =
            self.generations(index).is_some_and(|set| set.current == udrbd_units::GenerationId::JUST_CREATED);
        let skip = clear_bitmap
            && fresh
            && state.connection == ConnectionState::Connected
            && self.connection.dialect.version >= 90;
        if skip {
            self.say(Level::Info, Some(index), "Preparing to skip initial sync".to_owned());
        } else if state.connection != ConnectionState::StandAlone {
            self.reply(id, Err(Failure::configuration(code::NEED_STANDALONE)));
            return;
        }
        self.change_generations(index, |set| {
            set.clear_bitmap();
        });
        let mut version = self.new_current_generation(index);
        if clear_bitmap {
            if let Some(disk) = &mut self.volumes[index].disk {
                disk.bitmap.clear_all();
            }
            self.volumes[index].counters.out_of_sync_sectors = 0;
            self.write_changed_pages_before_superblock(index);
        }
        if skip {
            self.send_uuids(index, uuid_flag::SKIP_INITIAL_SYNC);
            version = self.change_generations(index, |set| set.bitmap = udrbd_units::GenerationId::NONE);
            self.log_generations(index, "cleared bitmap UUID");
            self.change_state(
                index,
                StateRequest {
                    peer_disk: Some(DiskState::UpToDate),
                    ..StateRequest::disk(DiskState::UpToDate)
                },
            );
        }
        let command = DeviceCommand { id, index, request: None, then: Then::Durable(version) };
        self.commands.push(Running::Device(command));
    }
}
