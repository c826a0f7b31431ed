//! What each packet of the peer sets in motion.

use udrbd_units::{ConnectionState, VolumeNumber};
use udrbd_wire as wire;
use wire::{Expected, Packet, Reception};

use super::parameters::Verdict;
use super::{Inbound, Stage};
use crate::Engine;
use crate::interface::{Level, SocketId, SocketLoss};
use crate::request::WriteAnswer;
use crate::slab::Key;
use crate::state::{StateChangeResult, StateRequest, VolumeState};

/// Codes of answers to a change of state (states spec 3.8).
const CONCURRENT_CHANGE: i32 = -19;

impl Engine {
    /// What may come next on a socket: `None` while nothing of it is to be read.
    pub fn reception(&self, socket: SocketId) -> Option<(Expected, Reception)> {
        let connection = &self.connection;
        let reception = Reception { dialect: connection.dialect, integrity: connection.peer_integrity };
        if connection.establish.is_silent(socket) {
            return Some((Expected::Initial, Reception::UNNEGOTIATED));
        }
        let is_data = connection.data == Some(socket);
        let is_meta = connection.meta == Some(socket);
        match &connection.stage {
            // The peer may be sure of the pair before this node is.
            Stage::None if is_data && connection.establish.is_settling() && connection.meta.is_some() => {
                Some((Expected::Features, Reception::UNNEGOTIATED))
            }
            Stage::Features if is_data => Some((Expected::Features, Reception::UNNEGOTIATED)),
            Stage::Challenge if is_data => Some((Expected::AuthChallenge, reception)),
            Stage::Response if is_data => {
                let algorithm = connection.authentication.as_ref()?.algorithm();
                Some((Expected::AuthResponse(algorithm), reception))
            }
            Stage::Established if is_data && connection.inbox_has_room() => {
                Some((Expected::Established(wire::Socket::Data), reception))
            }
            Stage::Established if is_meta => Some((Expected::Established(wire::Socket::Meta), reception)),
            _ => None,
        }
    }

    /// A packet has come.
    pub(crate) fn packet(&mut self, socket: SocketId, inbound: Inbound) {
        self.heard();
        if self.connection.establish.is_silent(socket) {
            self.greeting(socket, matches!(inbound.packet, Packet::InitialData));
            return;
        }
        if self.connection.data == Some(socket) {
            if self.connection.establish.is_settling() {
                self.peer_is_sure();
            }
            match self.connection.stage {
                Stage::Established => self.data_packet(inbound),
                Stage::None => self.release(inbound.payload),
                _ => self.handshake_packet(inbound.packet),
            }
        } else if self.connection.meta == Some(socket) && self.connection.stage == Stage::Established {
            self.meta_packet(inbound.volume, &inbound.packet);
        } else {
            self.release(inbound.payload);
        }
    }

    /// A packet of the data socket: in order, behind everything that has to wait.
    fn data_packet(&mut self, inbound: Inbound) {
        if self.connection.losing.is_some() {
            self.release(inbound.payload);
        } else if self.connection.inbox.is_empty() && self.may_receive(&inbound) {
            self.process(inbound);
        } else {
            self.connection.inbox_bytes += u64::from(inbound.payload_bytes).max(64);
            self.connection.inbox.push_back(inbound);
            // What it waits for may be something that only starts because it waits.
            self.attention = true;
        }
    }

    /// Takes what had to wait and may go on. Returns whether something did.
    pub(crate) fn run_inbox(&mut self) -> bool {
        let mut progress = false;
        while self.connection.is_established() {
            self.cover_next_peer_write();
            let Some(front) = self.connection.inbox.front() else { break };
            if !self.may_receive(front) {
                break;
            }
            let Some(inbound) = self.connection.inbox.pop_front() else { break };
            self.connection.inbox_bytes -= u64::from(inbound.payload_bytes).max(64);
            self.process(inbound);
            progress = true;
        }
        progress
    }

    pub(crate) fn drop_inbox(&mut self) {
        for inbound in std::mem::take(&mut self.connection.inbox) {
            self.release(inbound.payload);
        }
        self.connection.inbox_bytes = 0;
        for index in 0..self.volumes.len() {
            self.uncover_peer_write(index);
        }
    }

    fn process(&mut self, inbound: Inbound) {
        let name = inbound.packet.command(self.connection.dialect).log_name();
        let verdict = self.dispatch(inbound);
        self.obey(verdict, name);
    }

    /// Does with the connection what a packet of this name was found to deserve.
    pub(crate) fn obey(&mut self, verdict: Verdict, name: &str) {
        match verdict {
            Verdict::Good => {}
            Verdict::Reconnect => {
                self.say(Level::Error, None, format!("error receiving {name}, e: -5 l: 0!"));
                self.lose_connection(ConnectionState::ProtocolError);
            }
            Verdict::StandAlone => {
                self.say(Level::Error, None, format!("error receiving {name}, e: -5 l: 0!"));
                self.refuse_connection();
            }
        }
    }

    fn dispatch(&mut self, inbound: Inbound) -> Verdict {
        match &inbound.packet {
            Packet::Barrier(barrier) => {
                self.barrier_received(barrier.number);
                return Verdict::Good;
            }
            Packet::Protocol(parameters) => return self.protocol_received(parameters, false),
            Packet::ProtocolUpdate(parameters) => return self.protocol_received(parameters, true),
            Packet::ConnectionStateChangeRequest(change) => return self.connection_change_requested(*change),
            _ => {}
        }
        let Some(index) = self.volume_index(inbound.volume) else {
            return self.unknown_volume(inbound);
        };
        match inbound.packet {
            Packet::SyncParameters(parameters) => self.sync_parameters_received(index, &parameters),
            Packet::Sizes(sizes) => self.sizes_received(index, &sizes),
            Packet::Uuids(uuids) => self.uuids_received(index, &uuids),
            Packet::State(word) => match VolumeState::from_raw(word.pack()) {
                Ok(state) => self.state_received(index, state),
                Err(_) => Verdict::Reconnect,
            },
            Packet::SyncUuid(identifier) => self.sync_uuid_received(index, identifier),
            Packet::StateChangeRequest(change) => self.volume_change_requested(index, change),
            Packet::Bitmap | Packet::CompressedBitmap(_) => {
                self.bitmap_received(index, &inbound.packet, &inbound.bytes)
            }
            Packet::OutOfSync(range) => {
                self.out_of_sync_received(index, range.range());
                Verdict::Good
            }
            Packet::UnplugRemote | Packet::DelayProbe(_) => Verdict::Good,
            _ => self.peer_request_received(index, inbound),
        }
    }

    fn unknown_volume(&mut self, inbound: Inbound) -> Verdict {
        self.release(inbound.payload);
        match inbound.packet {
            Packet::SyncParameters(_) | Packet::Sizes(_) | Packet::Uuids(_) | Packet::State(_) => {
                let name = inbound.packet.command(self.connection.dialect).log_name();
                let text = format!(
                    "{name} packet received for volume {}, which is not configured locally",
                    inbound.volume
                );
                self.say(Level::Error, None, text);
                Verdict::Good
            }
            Packet::DelayProbe(_) | Packet::UnplugRemote => Verdict::Good,
            _ => Verdict::Reconnect,
        }
    }

    /// A packet of the meta socket.
    fn meta_packet(&mut self, volume: VolumeNumber, packet: &Packet) {
        let known = match packet {
            Packet::Ping => {
                self.send(crate::interface::SocketRole::Meta, VolumeNumber(0), Packet::PingAck);
                true
            }
            Packet::PingAck => {
                self.ping_answered();
                true
            }
            Packet::BarrierAck(ack) => {
                if let Err(text) = self.barrier_acknowledged(ack.number, ack.set_size) {
                    self.say(Level::Error, None, text);
                    self.lose_connection(ConnectionState::ProtocolError);
                }
                true
            }
            Packet::ConnectionStateChangeReply(code) => {
                self.connection.change_reply = Some(code.0);
                self.attention = true;
                true
            }
            // Below version 100 it is the answer to both kinds of requests, of which only one is under way.
            Packet::StateChangeReply(code)
                if self.connection.change_pending && !self.connection.dialect.has_volumes() =>
            {
                self.connection.change_reply = Some(code.0);
                self.attention = true;
                true
            }
            _ => match self.volume_index(volume) {
                Some(index) => self.volume_meta_packet(index, packet),
                None => false,
            },
        };
        if !known {
            let name = packet.command(self.connection.dialect).log_name();
            self.say(Level::Error, None, format!("meta packet {name} failed"));
            self.lose_connection(ConnectionState::NetworkFailure);
        }
    }

    fn volume_meta_packet(&mut self, index: usize, packet: &Packet) -> bool {
        let conflict = matches!(packet, Packet::Superseded(_) | Packet::RetryWrite(_));
        if conflict && (self.connection.resolve_conflicts || !self.allows_two_primaries()) {
            // Only the other node decides so, and only between two Primaries.
            return false;
        }
        let answer = match packet {
            Packet::ReceiveAck(_) => Some(WriteAnswer::Received),
            Packet::WriteAck(_) => Some(WriteAnswer::Written),
            Packet::ResyncWriteAck(_) => Some(WriteAnswer::WrittenInSync),
            Packet::NegativeAck(_) => Some(WriteAnswer::Failed),
            Packet::Superseded(_) => Some(WriteAnswer::Superseded),
            Packet::RetryWrite(_) => Some(WriteAnswer::Retry),
            _ => None,
        };
        match packet {
            Packet::ReceiveAck(ack)
            | Packet::WriteAck(ack)
            | Packet::ResyncWriteAck(ack)
            | Packet::NegativeAck(ack)
            | Packet::Superseded(ack)
            | Packet::RetryWrite(ack) => {
                self.sequence_seen(index, ack.sequence);
                let Some(answer) = answer else { return false };
                self.block_acknowledged(index, ack, answer)
            }
            Packet::NegativeDataReply(ack) => {
                self.sequence_seen(index, ack.sequence);
                if self.proof_received(index, ack.block_id) {
                    return true;
                }
                let text = format!("Got NegDReply; Sector {}s, len {}.", ack.sector, ack.size);
                self.say_rarely(Level::Error, Some(index), text);
                self.remote_read_failed(Key::from_number(ack.block_id.0));
                true
            }
            Packet::NegativeResyncDataReply(ack) => {
                self.sequence_seen(index, ack.sequence);
                self.resync_reply_failed(index, ack.range(), false);
                true
            }
            Packet::ResyncCancel(ack) => {
                self.sequence_seen(index, ack.sequence);
                self.resync_reply_failed(index, ack.range(), true);
                true
            }
            Packet::ResyncIsInSync(ack) => {
                self.sequence_seen(index, ack.sequence);
                self.resync_in_sync(index, ack.range());
                true
            }
            Packet::VerifyResult(ack) => {
                self.sequence_seen(index, ack.sequence);
                self.verify_result(index, ack);
                true
            }
            Packet::StateChangeReply(code) => {
                let volume = &mut self.volumes[index];
                if volume.stale_replies > 0 {
                    volume.stale_replies -= 1;
                } else {
                    volume.change_reply = Some(code.0);
                    self.attention = true;
                }
                true
            }
            _ => false,
        }
    }

    fn block_acknowledged(&mut self, index: usize, ack: &wire::BlockAck, answer: WriteAnswer) -> bool {
        if ack.block_id == wire::BlockId::SYNCER {
            match answer {
                WriteAnswer::WrittenInSync | WriteAnswer::Written => {
                    self.resync_write_done(index, ack.range());
                }
                WriteAnswer::Failed => self.resync_write_failed(index, ack.range()),
                _ => return false,
            }
            return true;
        }
        let key = Key::from_number(ack.block_id.0);
        let matches = self.requests.get(key).is_some_and(|request| {
            request.barrier_expected && request.volume == index && request.range.start == ack.sector
        });
        if matches && self.write_answered(key, answer) {
            return true;
        }
        if answer == WriteAnswer::Failed {
            // A and B: the request may be gone already.
            self.volumes[index].set_out_of_sync(ack.range());
            return true;
        }
        let text =
            format!("got_BlockAck: failed to find request 0x{:x}, sector {}s", ack.block_id.0, ack.sector);
        self.say(Level::Error, Some(index), text);
        false
    }

    fn sequence_seen(&mut self, index: usize, sequence: wire::SequenceNumber) {
        let seen = wire::SequenceNumber(self.volumes[index].peer_sequence);
        if sequence.is_after(seen) {
            self.volumes[index].peer_sequence = sequence.0;
            if !self.connection.inbox.is_empty() {
                self.attention = true;
            }
        }
    }

    /// The peer asks for a change of a volume's state (states spec 4.2).
    fn volume_change_requested(&mut self, index: usize, change: wire::StateChange) -> Verdict {
        let (mask, value) = change.pack();
        // Below version 100 a disconnect comes this way, too.
        let disconnect = change.connection == Some(ConnectionState::Disconnecting);
        if disconnect && !self.connection.dialect.has_volumes() {
            return self.connection_change_requested(change);
        }
        let verify = matches!(change.connection, Some(ConnectionState::VerifyS | ConnectionState::VerifyT));
        if verify {
            // The peer has ended the last one, or it would not ask.
            self.conclude_answered_verify(index);
        }
        let code = if self.connection.resolve_conflicts && self.volumes[index].state_locked {
            CONCURRENT_CHANGE
        } else if verify && !self.may_verify(index) {
            StateChangeResult::NoUpToDateDisk.code()
        } else {
            match StateRequest::from_raw(mask, value) {
                Ok(request) => self.change_state(index, request.from_peers_view()).code(),
                Err(_) => return Verdict::Reconnect,
            }
        };
        self.run_after();
        self.send_on_meta(index, Packet::StateChangeReply(wire::StateReturnCode(code)));
        Verdict::Good
    }

    /// The peer asks for a change of the connection: it wants to disconnect (states spec 4.3).
    fn connection_change_requested(&mut self, change: wire::StateChange) -> Verdict {
        let (mask, value) = change.pack();
        let code = if self.connection.resolve_conflicts && self.connection.change_pending {
            CONCURRENT_CHANGE
        } else {
            match StateRequest::from_raw(mask, value) {
                Ok(request) => self
                    .change_connection(
                        request.from_peers_view(),
                        crate::state::Enforcement::Soft,
                        crate::state::OutdateFailure::Ignore,
                        crate::change::Verbosity::Verbose,
                    )
                    .code(),
                Err(_) => return Verdict::Reconnect,
            }
        };
        let packet = Packet::ConnectionStateChangeReply(wire::StateReturnCode(code));
        self.send(crate::interface::SocketRole::Meta, VolumeNumber(0), packet);
        Verdict::Good
    }

    /// Whether the peer, which has closed one socket, has said something on the other that this node has to hear: its
    /// agreement to a disconnect, on the meta socket; the state it refused the handshake with, on the data socket.
    const fn other_socket_has_more_to_say(&self, data_is_closed: bool) -> bool {
        if data_is_closed {
            self.connection.change_pending && self.connection.meta.is_some()
        } else {
            self.connection.state_sent && self.connection.data.is_some()
        }
    }

    /// A socket is gone.
    pub(crate) fn socket_down(&mut self, socket: SocketId, loss: SocketLoss) {
        let is_data = self.connection.data == Some(socket);
        let is_meta = self.connection.meta == Some(socket);
        if is_data && self.connection.establish.is_settling() && matches!(loss, SocketLoss::Malformed(_)) {
            self.end_search();
        }
        if self.connection.refused_meta.is_some_and(|(meta, _)| meta == socket) {
            self.connection.refused_meta = None;
        }
        if self.attempt_socket_down(socket) || (!is_data && !is_meta) {
            return;
        }
        let slot = if is_data { &mut self.connection.data } else { &mut self.connection.meta };
        *slot = None;
        if self.connection.losing.is_some() {
            return;
        }
        let (fatal, message) = match loss {
            SocketLoss::Malformed(error) => (is_fatal(&error), Some(error.to_string())),
            _ => (false, None),
        };
        if self.connection.stage != Stage::Established {
            self.handshake_malformed(fatal, message);
            return;
        }
        let malformed = message.is_some();
        // What the peer said last may settle a command before the connection is given up.
        self.run_commands();
        if !malformed && self.other_socket_has_more_to_say(is_data) {
            self.connection.answer_until = Some(self.now.after(self.ping_timeout()));
            return;
        }
        if let Some(message) = message {
            self.say(Level::Error, None, message);
        } else if is_data {
            self.say(Level::Info, None, "sock was shut down by peer".to_owned());
        } else {
            self.say(Level::Info, None, "meta connection shut down by peer.".to_owned());
        }
        match (is_data, malformed) {
            (false, true) if fatal => self.refuse_connection(),
            (true, true) => self.lose_connection(ConnectionState::ProtocolError),
            (true, false) => self.lose_connection(ConnectionState::BrokenPipe),
            (false, _) => self.lose_connection(ConnectionState::NetworkFailure),
        }
    }
}

/// Whether a violation of the protocol is of a kind that connecting again does not cure (wire spec 6 and 17).
const fn is_fatal(error: &wire::WireError) -> bool {
    use wire::{Command, Socket, WireError};
    match error {
        WireError::NotExpected { expected, .. } => !matches!(expected, Command::AuthResponse),
        WireError::UnexpectedPacket { socket, .. } => matches!(socket, Socket::Meta),
        WireError::FeaturesLength { .. }
        | WireError::ChallengeTooSmall
        | WireError::ChallengeTooBig
        | WireError::IncompatibleDialects { .. }
        | WireError::IncompatibleSetting { .. } => true,
        _ => false,
    }
}
