//! What the administrator wants, from the command to the reply (states spec 14 and 19).

mod connect;
mod device;
mod down;
mod options;
mod promote;

use udrbd_units::{ConnectionState, DiskState, Role};

pub(crate) use connect::Disconnecting;
pub(crate) use device::{DeviceCommand, Then};
pub(crate) use down::GoingDown;
pub(crate) use options::ChangingOptions;
pub(crate) use promote::{Demotion, Promotion};

use crate::Engine;
use crate::change::Verbosity;
use crate::interface::{Command, CommandId, Failure, Level, Time};
use crate::state::{StateRequest, Suspension, VolumeState};
use crate::volume::Volume;

/// DRBD's numbers for commands that are refused (states spec 19.2).
pub(crate) mod code {
    pub(crate) const MINOR_INVALID: u32 = 127;
    pub(crate) const NO_DISK_CONFIG: u32 = 138;
    pub(crate) const NEED_STANDALONE: u32 = 151;
    pub(crate) const PAUSE_ALREADY_SET: u32 = 134;
    pub(crate) const PAUSE_ALREADY_CLEAR: u32 = 135;
    pub(crate) const PAUSED_BY_DEPENDENCY: u32 = 156;
    pub(crate) const PAUSED_BY_PEER: u32 = 157;
    pub(crate) const MINOR_CONFIGURED: u32 = 160;
    pub(crate) const MINOR_OR_VOLUME_EXISTS: u32 = 161;
    pub(crate) const INVALID_REQUEST: u32 = 162;
}

/// A command that is not over at once.
#[derive(Debug)]
pub(crate) enum Running {
    /// A change of one volume's state, and perhaps something after it.
    Device(DeviceCommand),
    /// `disk-options`, with another activity log.
    Options(ChangingOptions),
    /// `primary`.
    Promotion(Promotion),
    /// `secondary`.
    Demotion(Demotion),
    /// `disconnect`.
    Disconnecting(Disconnecting),
    /// `down`.
    GoingDown(GoingDown),
    /// Waits until the handshake under way is over.
    Deferred(CommandId, Option<Command>),
}

impl Running {
    /// When to look at it again if nothing happens.
    pub(crate) const fn timeout(&self) -> Option<Time> {
        match self {
            Self::Promotion(promotion) => promotion.timeout(),
            Self::Disconnecting(disconnecting) => disconnecting.timeout(),
            Self::GoingDown(going) => going.timeout(),
            _ => None,
        }
    }
}

impl Engine {
    /// When to look at a command again if nothing happens.
    pub(crate) fn command_timeout(&self, command: &Running) -> Option<Time> {
        let own = command.timeout();
        let Running::GoingDown(going) = command else { return own };
        own.into_iter().chain(self.down_patience_ends(going.since())).min()
    }

    /// A command comes in.
    pub(crate) fn command(&mut self, id: CommandId, command: Command) {
        self.attention = true;
        let known = match volume_of(&command) {
            Some(number) => {
                // What began now on a volume that leaves would end with it, unanswered.
                let index = self.volume_index(number).filter(|index| !self.volumes[*index].leaves);
                let Some(index) = index else {
                    let failure = Failure::Configuration {
                        code: code::MINOR_INVALID,
                        info: vec!["unknown minor".to_owned()],
                    };
                    self.reply(id, Err(failure));
                    return;
                };
                index
            }
            None => 0,
        };
        // What the peer has just been told must not change under its decision (states spec 3.6, X7).
        let touches_handshake = matches!(command, Command::Attach { .. } | Command::ResumeIo { .. });
        if touches_handshake && self.connection.state_sent {
            self.commands.push(Running::Deferred(id, Some(command)));
            return;
        }
        match command {
            Command::NewMinor { volume, minor } => self.new_minor(id, volume, minor),
            Command::DelMinor { .. } => self.delete_minor(id, known),
            Command::ResourceOptions(options) => {
                self.options = options;
                self.reply(id, Ok(()));
            }
            Command::Attach { settings, .. } => self.attach(id, known, settings),
            Command::ClientsWait { clients, .. } => {
                self.clients_wait(known, clients);
                self.reply(id, Ok(()));
            }
            Command::Detach { force, .. } => self.detach(id, known, force),
            Command::DiskOptions { options, .. } => self.disk_options(id, known, *options),
            Command::Connect(options) => self.connect(id, *options),
            Command::NetOptions(options) => self.net_options(id, *options),
            Command::Disconnect { force } => self.disconnect(id, force),
            Command::Primary { force, .. } => self.promote(id, known, force),
            Command::Secondary { held_open, .. } => self.demote(id, known, held_open),
            Command::Outdate { .. } => self.outdate(id, known),
            Command::Invalidate { .. } => self.invalidate(id, known),
            Command::InvalidateRemote { .. } => self.invalidate_remote(id, known),
            Command::PauseSync { .. } => self.pause_sync(id, known),
            Command::ResumeSync { .. } => self.resume_sync(id, known),
            Command::ResyncDependency { waits, .. } => self.resync_dependency(id, known, waits),
            Command::SuspendIo { .. } => {
                self.set_suspension(Suspension { user: true, ..self.suspension });
                self.reply(id, Ok(()));
            }
            Command::ResumeIo { .. } => self.resume_io(id),
            Command::NewCurrentUuid { clear_bitmap, .. } => self.new_current_uuid(id, known, clear_bitmap),
            Command::Verify { start, stop, .. } => self.verify(id, known, start, stop),
            Command::Resize { request, .. } => self.resize(id, known, &request),
            Command::DropUndo { .. } => {
                self.end_undo(known);
                self.reply(id, Ok(()));
            }
            Command::Down => self.go_down(id),
        }
    }

    fn new_minor(&mut self, id: CommandId, number: udrbd_units::VolumeNumber, minor: udrbd_units::Minor) {
        let same = |volume: &&Volume| !volume.removed && (volume.number == number || volume.minor == minor);
        if let Some(volume) = self.volumes.iter().find(same) {
            let exists = volume.number == number && volume.minor == minor;
            let result =
                if exists { Ok(()) } else { Err(Failure::configuration(code::MINOR_OR_VOLUME_EXISTS)) };
            self.reply(id, result);
            return;
        }
        let connection = self.connection.state;
        let state = VolumeState { connection, ..VolumeState::INITIAL };
        let volume = Volume::new(number, minor, state);
        // A removed volume's place is only reused when nothing can refer to it any more.
        self.volumes.push(volume);
        let index = self.volumes.len() - 1;
        self.tell_device(index);
        if connection == ConnectionState::WFReportParams {
            if self.connection.removed_unheard.contains(&number) {
                // The peer would take what this volume tells for news of the one that is gone, and not answer.
                let text = "The peer still has the volume that was removed, connecting again".to_owned();
                self.say(Level::Info, Some(index), text);
                self.lose_connection(ConnectionState::ProtocolError);
            } else {
                self.send_volume_parameters(index);
            }
        }
        self.state_changed();
        self.reply(id, Ok(()));
    }

    fn delete_minor(&mut self, id: CommandId, index: usize) {
        let state = self.volumes[index].state;
        if state.disk != DiskState::Diskless || state.role != Role::Secondary {
            self.reply(id, Err(Failure::configuration(code::MINOR_CONFIGURED)));
            return;
        }
        if state.connection < ConnectionState::Connected {
            self.remove_volume_unheard(index);
            self.reply(id, Ok(()));
            return;
        }
        // The peer has to know, or it would go on talking to a volume that is not there.
        let request = StateRequest::connection(ConnectionState::WFReportParams);
        self.volumes[index].leaves = true;
        self.request_device(id, index, request, Then::Removed);
    }

    /// Removes a volume of which the peer does not hear, or does not want to.
    pub(crate) fn remove_volume_unheard(&mut self, index: usize) {
        if self.connection.state == ConnectionState::WFReportParams {
            self.connection.removed_unheard.push(self.volumes[index].number);
        }
        self.remove_volume(index);
    }

    pub(crate) fn remove_volume(&mut self, index: usize) {
        self.volumes[index].removed = true;
        self.state_changed();
    }

    /// Takes all commands further. Returns whether one ended.
    pub(crate) fn run_commands(&mut self) -> bool {
        let mut progress = false;
        for mut running in std::mem::take(&mut self.commands) {
            let over = match &mut running {
                Running::Device(command) => self.run_device(command),
                Running::Options(changing) => self.run_options(changing),
                Running::Promotion(promotion) => self.run_promotion(promotion),
                Running::Demotion(demotion) => self.run_demotion(demotion),
                Running::Disconnecting(disconnecting) => self.run_disconnecting(disconnecting),
                Running::GoingDown(going) => self.run_going_down(going),
                Running::Deferred(id, command) => self.run_deferred(*id, command),
            };
            if over {
                progress = true;
            } else {
                self.commands.push(running);
            }
        }
        progress
    }

    fn run_deferred(&mut self, id: CommandId, command: &mut Option<Command>) -> bool {
        if self.connection.state_sent {
            return false;
        }
        if let Some(command) = command.take() {
            self.command(id, command);
        }
        true
    }

    /// Asks for a change of one volume, with the peer's consent where it takes that.
    pub(crate) fn request_device(&mut self, id: CommandId, index: usize, request: StateRequest, then: Then) {
        let command = DeviceCommand::new(id, index, request, Verbosity::Verbose, then);
        self.commands.push(Running::Device(command));
    }
}

/// The volume a command is about.
const fn volume_of(command: &Command) -> Option<udrbd_units::VolumeNumber> {
    match command {
        Command::NewMinor { .. }
        | Command::ResourceOptions(_)
        | Command::Connect(_)
        | Command::NetOptions(_)
        | Command::Disconnect { .. }
        | Command::Down => None,
        Command::DelMinor { volume }
        | Command::Attach { volume, .. }
        | Command::ClientsWait { volume, .. }
        | Command::Detach { volume, .. }
        | Command::DiskOptions { volume, .. }
        | Command::Primary { volume, .. }
        | Command::Secondary { volume, .. }
        | Command::Outdate { volume }
        | Command::Invalidate { volume }
        | Command::InvalidateRemote { volume }
        | Command::PauseSync { volume }
        | Command::ResumeSync { volume }
        | Command::ResyncDependency { volume, .. }
        | Command::SuspendIo { volume }
        | Command::ResumeIo { volume }
        | Command::DropUndo { volume }
        | Command::Verify { volume, .. }
        | Command::Resize { volume, .. }
        | Command::NewCurrentUuid { volume, .. } => Some(*volume),
    }
}
