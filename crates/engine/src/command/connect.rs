//! `connect`, `net-options`, `disconnect` (states spec 4.3 and 19.3).

use udrbd_units::{ConnectionState, DiskState, Role};
use udrbd_wire as wire;

use super::{Running, code};
use crate::Engine;
use crate::change::Verbosity;
use crate::interface::{CommandId, Failure, Fencing, NetOptions, OnCongestion, Protocol, Time};
use crate::state::{Enforcement, OutdateFailure, StateChangeResult as Code, StateRequest};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Trying, with this request.
    Try(Attempt),
    /// The peer has been asked.
    Asked(Attempt),
    /// The connection is being cleared away.
    Closing,
}

/// The requests a disconnect tries one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Attempt {
    Plain,
    OutdatePeer,
    PlainAfterOutdatePeer,
    OutdateSelf,
    Hard,
}

impl Attempt {
    const fn request(self) -> StateRequest {
        let plain = StateRequest::connection(ConnectionState::Disconnecting);
        match self {
            Self::Plain | Self::PlainAfterOutdatePeer | Self::Hard => plain,
            Self::OutdatePeer => StateRequest { peer_disk: Some(DiskState::Outdated), ..plain },
            Self::OutdateSelf => StateRequest { disk: Some(DiskState::Outdated), ..plain },
        }
    }
}

/// A disconnect under way.
#[derive(Debug)]
pub(crate) struct Disconnecting {
    id: CommandId,
    step: Step,
    /// How long a handshake under way is waited for.
    until: Option<Time>,
}

impl Disconnecting {
    pub(super) const fn new(id: CommandId, force: bool) -> Self {
        Self { id, step: Step::Try(if force { Attempt::Hard } else { Attempt::Plain }), until: None }
    }

    /// When to look at it again if nothing happens.
    pub(crate) const fn timeout(&self) -> Option<Time> {
        self.until
    }
}

impl Engine {
    /// `connect`.
    pub(super) fn connect(&mut self, id: CommandId, options: NetOptions) {
        if self.connection.state > ConnectionState::StandAlone {
            self.reply(id, Err(Failure::configuration(125)));
            return;
        }
        if let Err(code) = self.install_net_options(options, true) {
            self.reply(id, Err(Failure::configuration(code)));
            return;
        }
        for volume in &mut self.volumes {
            (volume.counters.sent_sectors, volume.counters.received_sectors) = (0, 0);
        }
        self.change_connection(
            StateRequest::connection(ConnectionState::Unconnected),
            Enforcement::Soft,
            OutdateFailure::Refuse,
            Verbosity::Verbose,
        );
        self.reply(id, Ok(()));
    }

    /// Checks and takes over a `net` section. `Err`: DRBD's number.
    fn install_net_options(&mut self, options: NetOptions, connecting: bool) -> Result<(), u32> {
        let primary = self.volume_states().any(|state| state.role == Role::Primary);
        let both_primary =
            self.volume_states().any(|state| state.role == Role::Primary && state.peer == Role::Primary);
        let fenced = self
            .volumes
            .iter()
            .filter_map(|volume| volume.disk.as_ref())
            .any(|disk| disk.options.fencing == Fencing::ResourceAndStonith);
        if !connecting && !options.allow_two_primaries && both_primary {
            return Err(164);
        }
        if options.allow_two_primaries && options.protocol != Protocol::C {
            return Err(139);
        }
        if fenced && options.protocol == Protocol::A {
            return Err(154);
        }
        if connecting && options.discard_my_data && primary {
            return Err(123);
        }
        if options.on_congestion != OnCongestion::Block && options.protocol != Protocol::A {
            return Err(155);
        }
        let algorithm = |name: &str, code: u32| match name {
            "" => Ok(None),
            name => name.parse::<wire::DigestAlgorithm>().map(Some).map_err(|_| code),
        };
        algorithm(&options.csums_alg, 144)?;
        algorithm(&options.verify_alg, 146)?;
        let integrity = algorithm(&options.data_integrity_alg, 141)?;
        let authentication = match algorithm(&options.cram_hmac_alg, 120)? {
            Some(found) => Some(
                wire::Authentication::new(found, options.shared_secret.as_bytes()).map_err(|_| 121_u32)?,
            ),
            None => None,
        };
        self.connection.authentication = authentication;
        self.connection.own_integrity = integrity;
        self.connection.options = Some(options);
        Ok(())
    }

    /// `net-options`.
    pub(super) fn net_options(&mut self, id: CommandId, options: NetOptions) {
        let Some(present) = &self.connection.options else {
            let failure = Failure::Configuration {
                code: code::INVALID_REQUEST,
                info: vec!["net conf missing, try connect".to_owned()],
            };
            self.reply(id, Err(failure));
            return;
        };
        let connected = self.connection.is_established();
        let invariant = present.protocol != options.protocol
            || present.allow_two_primaries != options.allow_two_primaries
            || present.data_integrity_alg != options.data_integrity_alg;
        if connected && self.connection.dialect.version < 100 && invariant {
            self.reply(id, Err(Failure::configuration(163)));
            return;
        }
        let options = NetOptions { discard_my_data: false, tentative: present.tentative, ..options };
        let old_integrity = self.connection.own_integrity;
        if let Err(code) = self.install_net_options(options, false) {
            self.reply(id, Err(Failure::configuration(code)));
            return;
        }
        if connected {
            // The update itself still goes out under the old digest's rule; from the next packet on the new one counts.
            let new_integrity = std::mem::replace(&mut self.connection.own_integrity, old_integrity);
            if self.connection.dialect.version >= 100 {
                self.send_protocol(true);
            }
            self.connection.own_integrity = new_integrity;
            for index in 0..self.volumes.len() {
                if !self.volumes[index].removed {
                    self.send_sync_parameters(index);
                }
            }
        }
        self.state_changed();
        self.reply(id, Ok(()));
    }

    /// `disconnect`.
    pub(super) fn disconnect(&mut self, id: CommandId, force: bool) {
        if self.connection.options.is_none() {
            let failure = Failure::Configuration {
                code: code::INVALID_REQUEST,
                info: vec!["unknown connection".to_owned()],
            };
            self.reply(id, Err(failure));
            return;
        }
        self.commands.push(Running::Disconnecting(Disconnecting::new(id, force)));
    }

    pub(super) fn run_disconnecting(&mut self, disconnecting: &mut Disconnecting) -> bool {
        match self.poll_disconnecting(disconnecting) {
            None => false,
            Some(Ok(())) => {
                self.reply(disconnecting.id, Ok(()));
                true
            }
            Some(Err(code)) => {
                self.reply(disconnecting.id, Err(Failure::state(code)));
                true
            }
        }
    }

    pub(super) fn poll_disconnecting(
        &mut self,
        disconnecting: &mut Disconnecting,
    ) -> Option<Result<(), Code>> {
        loop {
            match disconnecting.step {
                Step::Try(attempt) => {
                    let Some(result) = self.try_disconnect(attempt) else {
                        return self.patience_is_over(disconnecting).then_some(Err(Code::InTransientState));
                    };
                    disconnecting.until = None;
                    match result {
                        Tried::Asked => disconnecting.step = Step::Asked(attempt),
                        Tried::Verdict(code) => match next(attempt, code, self.connection.state) {
                            Next::Closing => disconnecting.step = Step::Closing,
                            Next::Over(result) => return Some(result),
                            Next::Try(attempt) => disconnecting.step = Step::Try(attempt),
                        },
                    }
                }
                Step::Asked(attempt) => {
                    let code = self.disconnect_answer(attempt)?;
                    match next(attempt, code, self.connection.state) {
                        Next::Closing => disconnecting.step = Step::Closing,
                        Next::Over(result) => return Some(result),
                        Next::Try(attempt) => disconnecting.step = Step::Try(attempt),
                    }
                }
                Step::Closing => {
                    let over = self.connection.state == ConnectionState::StandAlone
                        && self.connection.losing.is_none();
                    return over.then_some(Ok(()));
                }
            }
        }
    }

    /// Whether a disconnect has waited long enough for a handshake that does not end.
    fn patience_is_over(&self, disconnecting: &mut Disconnecting) -> bool {
        if self.connection.change_pending {
            // Another disconnect waits for the peer.
            disconnecting.until = None;
            return false;
        }
        let patience = self.handshake_timeout();
        *disconnecting.until.get_or_insert(self.now.after(patience)) <= self.now
    }

    fn try_disconnect(&mut self, attempt: Attempt) -> Option<Tried> {
        let request = attempt.request();
        if attempt == Attempt::Hard {
            let code = self.change_connection(
                request,
                Enforcement::Hard,
                OutdateFailure::Ignore,
                Verbosity::Verbose,
            );
            return Some(Tried::Verdict(code));
        }
        let asked = |volume: &crate::volume::Volume| volume.state_locked;
        if self.connection.change_pending || self.volumes.iter().any(asked) {
            return None;
        }
        let allowed = self.connection_change_allowed(request);
        if allowed == Code::InTransientState {
            // A connection that is just being cleared away or set up: its next state decides.
            return None;
        }
        if !allowed.is_success() {
            return Some(Tried::Verdict(allowed));
        }
        if self.connection.state == ConnectionState::WFReportParams && self.connection.is_established() {
            self.connection.change_pending = true;
            self.connection.change_reply = None;
            self.send_change_request(None, request);
            self.connection.disconnect_sent = true;
            return Some(Tried::Asked);
        }
        let code =
            self.change_connection(request, Enforcement::Soft, OutdateFailure::Ignore, Verbosity::Verbose);
        Some(Tried::Verdict(code))
    }

    fn disconnect_answer(&mut self, attempt: Attempt) -> Option<Code> {
        let answer = self.connection.change_reply.take();
        let code = match answer {
            Some(code) if code >= Code::Success.code() => Code::ClusterWideSuccess,
            Some(code) => {
                let text = crate::state::result_text(code);
                let line = format!("Requested state change failed by peer: {text} ({code})");
                self.say(crate::interface::Level::Error, None, line);
                Code::ClusterWideFailedByPeer
            }
            None if self.connection.state == ConnectionState::WFReportParams => return None,
            // The connection is gone before the answer came: what this node thinks of it counts.
            None => match self.connection_change_allowed(attempt.request()) {
                Code::InTransientState => return None,
                code => code,
            },
        };
        self.connection.change_pending = false;
        if !code.is_success() {
            self.connection.disconnect_sent = false;
            return Some(code);
        }
        Some(self.change_connection(
            attempt.request(),
            Enforcement::Soft,
            OutdateFailure::Ignore,
            Verbosity::Verbose,
        ))
    }
}

enum Tried {
    Asked,
    Verdict(Code),
}

enum Next {
    Closing,
    Over(Result<(), Code>),
    Try(Attempt),
}

/// `conn_try_disconnect`, as one table.
fn next(attempt: Attempt, code: Code, connection: ConnectionState) -> Next {
    match (code, attempt) {
        (Code::AlreadyStandAlone, _) => Next::Over(Ok(())),
        (code, _) if code.is_success() => Next::Closing,
        (Code::PrimaryWithoutOutdatedPeer, Attempt::Plain) => Next::Try(Attempt::OutdatePeer),
        (Code::OutdateWithoutConnection, Attempt::OutdatePeer) => Next::Try(Attempt::PlainAfterOutdatePeer),
        (Code::ClusterWideFailedByPeer, Attempt::Plain) if connection <= ConnectionState::WFConnection => {
            Next::Try(Attempt::Plain)
        }
        (Code::ClusterWideFailedByPeer, Attempt::Plain) => Next::Try(Attempt::OutdateSelf),
        (Code::IsDiskless | Code::LowerThanOutdated, Attempt::OutdateSelf) => Next::Try(Attempt::Hard),
        (code, _) => Next::Over(Err(code)),
    }
}
