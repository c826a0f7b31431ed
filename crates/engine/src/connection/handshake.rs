//! What two nodes agree on before anything else: versions, features, who they are (wire spec 6.1 and 6.2).

use udrbd_units::{ConnectionState, VolumeNumber};
use udrbd_wire as wire;

use super::Stage;
use crate::Engine;
use crate::change::Verbosity;
use crate::interface::{Action, Duration, Level, Payload};
use crate::state::{Enforcement, OutdateFailure, StateRequest};

impl Engine {
    /// Both sockets are there. The peer gets so long to say its first word.
    pub(crate) fn begin_handshake(&mut self, patience: Duration) {
        self.connection.stage = Stage::Features;
        self.connection.dialect = wire::Dialect::UNNEGOTIATED;
        self.connection.deadline = Some(self.now.after(patience));
        self.send_handshake(wire::Packet::ConnectionFeatures(wire::ConnectionFeatures::OWN));
    }

    fn send_handshake(&mut self, packet: wire::Packet) {
        let Some(socket) = self.connection.data else { return };
        let dialect = match packet {
            wire::Packet::ConnectionFeatures(_) => wire::Dialect::UNNEGOTIATED,
            _ => self.connection.dialect,
        };
        self.out.push(Action::Send {
            socket,
            dialect,
            volume: VolumeNumber(0),
            packet,
            payload: Payload::None,
            integrity: None,
            digest: None,
            sent: None,
        });
    }

    /// A packet of the handshake has come.
    pub(crate) fn handshake_packet(&mut self, packet: wire::Packet) {
        match (&self.connection.stage, packet) {
            (Stage::Features, wire::Packet::ConnectionFeatures(features)) => self.features_received(features),
            (Stage::Challenge, wire::Packet::AuthChallenge(challenge)) => self.challenge_received(&challenge),
            (Stage::Response, wire::Packet::AuthResponse(response)) => self.response_received(&response),
            _ => self.retry_later(),
        }
    }

    fn features_received(&mut self, features: wire::ConnectionFeatures) {
        match wire::ConnectionFeatures::OWN.agree(features) {
            Err(error) => {
                self.say(Level::Error, None, error.to_string());
                self.give_up_handshake();
            }
            Ok(dialect) => {
                self.connection.dialect = dialect;
                self.connection.agreed_version = dialect.version;
                self.connection.agreed_features = dialect.features;
                self.connection.extensions =
                    wire::ConnectionFeatures::OWN.extensions.intersection(features.extensions);
                self.log_agreement(dialect);
                if self.connection.authentication.is_some() {
                    self.send_challenge();
                } else {
                    self.send_parameters();
                }
            }
        }
    }

    fn log_agreement(&mut self, dialect: wire::Dialect) {
        let version = dialect.version;
        self.say(
            Level::Info,
            None,
            format!("Handshake successful: Agreed network protocol version {version}"),
        );
        let names: Vec<&str> = dialect.features.names().collect();
        let names = if names.is_empty() { "none".to_owned() } else { names.join(" ") };
        let bits = dialect.features.0;
        self.say(Level::Info, None, format!("Feature flags enabled on protocol level: 0x{bits:x} {names}."));
    }

    fn send_challenge(&mut self) {
        let challenge = wire::AuthChallenge::new(self.secret_bytes());
        self.connection.challenge = Some(challenge.clone());
        self.connection.stage = Stage::Challenge;
        self.connection.deadline = Some(self.now.after(self.handshake_timeout()));
        self.send_handshake(wire::Packet::AuthChallenge(Box::new(challenge)));
    }

    fn challenge_received(&mut self, challenge: &wire::AuthChallenge) {
        let own = self.connection.challenge.as_ref();
        if own.is_some_and(|own| challenge.reflects(own)) {
            self.say(Level::Error, None, "Peer presented the same challenge!".to_owned());
            self.authentication_failed();
            return;
        }
        let Some(authentication) = &self.connection.authentication else { return };
        let response = authentication.respond(challenge);
        self.connection.stage = Stage::Response;
        self.connection.deadline = Some(self.now.after(self.handshake_timeout()));
        self.send_handshake(wire::Packet::AuthResponse(Box::new(response)));
    }

    fn response_received(&mut self, response: &wire::AuthResponse) {
        let good = match (&self.connection.authentication, &self.connection.challenge) {
            (Some(authentication), Some(challenge)) => authentication.accepts(challenge, response),
            _ => false,
        };
        if !good {
            self.authentication_failed();
            return;
        }
        let bytes = self.connection.authentication.as_ref().map_or(0, |found| found.algorithm().bytes());
        self.say(Level::Info, None, format!("Peer authenticated using {bytes} bytes HMAC"));
        self.connection.challenge = None;
        self.send_parameters();
    }

    fn authentication_failed(&mut self) {
        self.say(Level::Error, None, "Authentication of peer failed".to_owned());
        self.give_up_handshake();
    }

    /// The handshake failed for a reason that will not go away.
    pub(crate) fn give_up_handshake(&mut self) {
        self.say(Level::Info, None, "Discarding network configuration.".to_owned());
        self.connection.deadline = None;
        self.connection.stage = Stage::None;
        self.refuse_connection();
    }

    /// The socket or the peer said something during the handshake that ends it.
    pub(crate) fn handshake_malformed(&mut self, fatal: bool, message: Option<String>) {
        if let Some(message) = message {
            self.say(Level::Error, None, message);
        }
        if fatal {
            self.give_up_handshake();
        } else {
            self.retry_later();
        }
    }

    /// Sends what this node is and has, and waits for the same of the peer (states spec 7.3).
    fn send_parameters(&mut self) {
        let tentative = self.connection.options.as_ref().is_some_and(|options| options.tentative);
        if tentative && self.connection.dialect.version < 92 {
            self.say(Level::Error, None, "--dry-run is not supported by peer".to_owned());
            self.give_up_handshake();
            return;
        }
        self.connection.stage = Stage::Established;
        self.connection.deadline = None;
        self.connection.peer_dry_run = false;
        self.connection.disconnect_sent = false;
        self.connection.refused = false;
        self.connection.change_reply = None;
        self.connection.sent_epoch = None;
        self.connection.sent_epoch_writes = 0;
        self.connection.last_received = self.now;
        self.send_protocol(false);
        self.connection.state_sent = true;
        self.connection.peer_told_all = false;
        self.connection.removed_unheard.clear();
        let discard = self.connection.options.as_ref().is_some_and(|options| options.discard_my_data);
        for index in 0..self.volumes.len() {
            if self.volumes[index].removed {
                continue;
            }
            let volume = &mut self.volumes[index];
            volume.packet_sequence = 0;
            volume.peer_sequence = 0;
            volume.peer_generations = None;
            volume.peer_seen = false;
            volume.change_reply = None;
            volume.stale_replies = 0;
            volume.flags.discard_my_data = discard;
            volume.flags.use_degraded_wfc_timeout = false;
            volume.flags.resize_pending = false;
            volume.flags.resync_after_negotiating = false;
            self.give_up_waiting_resize(index);
            self.send_volume_parameters(index);
        }
        let result = self.change_connection(
            StateRequest::connection(ConnectionState::WFReportParams),
            Enforcement::Soft,
            OutdateFailure::Refuse,
            Verbosity::Verbose,
        );
        if !result.is_success() {
            self.connection.state_sent = false;
            self.retry_later();
            return;
        }
        if let Some(options) = &mut self.connection.options {
            options.discard_my_data = false;
        }
        if self.volumes.iter().all(|volume| volume.removed) {
            self.connection.state_sent = false;
        }
        self.start_keepalive();
        self.arm_request_timer();
    }

    /// What one volume is and has.
    pub(crate) fn send_volume_parameters(&mut self, index: usize) {
        self.send_sync_parameters(index);
        self.send_sizes(index, false, 0);
        self.send_uuids(index, 0);
        let state = self.volumes[index].state;
        self.send_state_word(index, state);
    }

    /// The handshake is over when no volume waits for the peer any more. One that the peer does not have waits for nothing:
    /// it goes on as if there were no connection, until the peer makes it. (In 8.4.11 it keeps the handshake open, and no
    /// volume can be promoted, wire spec 18.16.)
    pub(crate) fn look_whether_handshake_is_over(&mut self) {
        if !self.connection.state_sent || self.connection.stage != Stage::Established {
            return;
        }
        let waits = |index: &usize| {
            let volume = &self.volumes[*index];
            !volume.removed && volume.state.connection == ConnectionState::WFReportParams
        };
        let waiting: Vec<usize> = (0..self.volumes.len()).filter(waits).collect();
        let missing = |index: &usize| self.connection.peer_told_all && !self.volumes[*index].peer_seen;
        if !waiting.iter().all(missing) {
            return;
        }
        self.connection.state_sent = false;
        self.attention = true;
        for index in waiting {
            let text = "The peer does not have this volume: it is not replicated".to_owned();
            self.say(Level::Warning, Some(index), text);
        }
    }

    pub(crate) fn change_connection_quietly(&mut self, wanted: ConnectionState) {
        self.change_connection(
            StateRequest::connection(wanted),
            Enforcement::Soft,
            OutdateFailure::Refuse,
            Verbosity::Verbose,
        );
    }
}
