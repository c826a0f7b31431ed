//! How two nodes get a pair of sockets although both call each other (wire spec 2.2).
//!
//! DRBD pauses before it believes in a pair: calls may have crossed, and the peer may be about to close what it replaced.
//! Here the pause ends early where there is proof that both nodes have the same pair. A node that made one call in this
//! attempt, as the data socket, and took one, as the other socket, knows it: nobody calls for the second socket before he
//! has the first one, and there is no other socket that he could have for either. It goes on at once. Its first packet is
//! the peer's proof: that node has ended its search, on this very socket.

use std::collections::VecDeque;

use udrbd_units::{ConnectionState, VolumeNumber};
use udrbd_wire as wire;

use crate::Engine;
use crate::interface::{Action, Duration, Level, Payload, SocketId, Time};

/// How long a failed handshake is left alone.
const PAUSE: Duration = Duration::from_secs(1);
/// Accepted sockets that may wait, for their first packet or with it.
const GREETINGS_MAX: usize = 8;

/// What is being done to get a pair of sockets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Establish {
    /// Nothing.
    Off,
    /// Calling the peer with this socket.
    Calling { socket: SocketId, greetings: Greetings },
    /// Waiting to be called, until then.
    Waiting { until: Time, greetings: Greetings },
    /// Both sockets are there: they have to stay alive until then.
    Settling { until: Time, greetings: Greetings },
    /// Doing nothing after a failed handshake, until then.
    Pausing { until: Time },
}

/// Sockets that were accepted: waiting for their first packet, or with it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Greetings {
    silent: Vec<(SocketId, Time)>,
    arrived: VecDeque<(SocketId, bool)>,
}

/// How many sockets there have been since there was none: with one of either sort nothing can have crossed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Calls {
    /// Own calls that the peer took.
    made: u32,
    /// Calls to this node, whoever they were from.
    taken: u32,
}

impl Establish {
    fn greetings(&mut self) -> Greetings {
        match self {
            Self::Calling { greetings, .. }
            | Self::Waiting { greetings, .. }
            | Self::Settling { greetings, .. } => std::mem::take(greetings),
            Self::Off | Self::Pausing { .. } => Greetings::default(),
        }
    }

    fn greetings_mut(&mut self) -> Option<&mut Greetings> {
        match self {
            Self::Calling { greetings, .. }
            | Self::Waiting { greetings, .. }
            | Self::Settling { greetings, .. } => Some(greetings),
            Self::Off | Self::Pausing { .. } => None,
        }
    }

    /// Whether a pair of sockets has to prove itself.
    pub(crate) const fn is_settling(&self) -> bool {
        matches!(self, Self::Settling { .. })
    }

    /// When something has to be done if nothing happens.
    pub(crate) fn timeout(&self) -> Option<Time> {
        let (until, greetings) = match self {
            Self::Off => return None,
            Self::Calling { greetings, .. } => (None, Some(greetings)),
            Self::Waiting { until, greetings } | Self::Settling { until, greetings } => {
                (Some(*until), Some(greetings))
            }
            Self::Pausing { until } => (Some(*until), None),
        };
        let silent = greetings.and_then(|greetings| greetings.silent.iter().map(|(_, until)| *until).min());
        [until, silent].into_iter().flatten().min()
    }

    /// Whether this socket was accepted and has not said yet what it is.
    pub(crate) fn is_silent(&self, socket: SocketId) -> bool {
        match self {
            Self::Calling { greetings, .. }
            | Self::Waiting { greetings, .. }
            | Self::Settling { greetings, .. } => {
                greetings.silent.iter().any(|(silent, _)| *silent == socket)
            }
            Self::Off | Self::Pausing { .. } => false,
        }
    }
}

impl Engine {
    /// How long a sign of life may take.
    pub(crate) fn ping_timeout(&self) -> Duration {
        self.connection.options.as_ref().map_or(Duration::from_millis(500), |options| options.ping_timeout)
    }

    /// How long each step of the handshake may take.
    pub(crate) fn handshake_timeout(&self) -> Duration {
        self.ping_timeout() * 4
    }

    fn connect_interval(&self) -> Duration {
        self.connection.options.as_ref().map_or(Duration::from_secs(10), |options| options.connect_interval)
    }

    /// Begins to look for the peer.
    pub(crate) fn start_connecting(&mut self) {
        if self.connection.losing.is_some() || self.connection.options.is_none() {
            return;
        }
        self.change_connection_quietly(ConnectionState::WFConnection);
        self.connection.stage = crate::connection::Stage::None;
        self.connection.dialect = wire::Dialect::UNNEGOTIATED;
        self.out.push(Action::Listen);
        self.call_peer(Greetings::default());
    }

    fn call_peer(&mut self, greetings: Greetings) {
        let none = self.connection.data.is_none() && self.connection.meta.is_none();
        if none && greetings == Greetings::default() {
            self.connection.calls = Calls::default();
        }
        let socket = SocketId(self.connection.next_socket);
        self.connection.next_socket += 1;
        assert!(socket < SocketId::FIRST_ACCEPTED, "more sockets than names");
        self.out.push(Action::Connect { socket, timeout: self.connect_interval() });
        self.connection.establish = Establish::Calling { socket, greetings };
    }

    /// Waits to be called: connect-int, give or take a seventh.
    fn wait_for_call(&mut self, greetings: Greetings) {
        let interval = self.connect_interval();
        let wait = if self.random.coin() { interval + interval / 7 } else { interval - interval / 7 };
        self.connection.establish = Establish::Waiting { until: self.now.after(wait), greetings };
        self.take_arrivals();
    }

    /// The peer took the call.
    pub(crate) fn socket_connected(&mut self, socket: SocketId) {
        let ours = matches!(self.connection.establish, Establish::Calling { socket: calling, .. } if calling == socket);
        if !ours {
            self.out.push(Action::Close { socket, abort: true });
            return;
        }
        self.connection.calls.made = self.connection.calls.made.saturating_add(1);
        let greetings = self.connection.establish.greetings();
        let packet = if self.connection.data.is_none() {
            self.connection.data = Some(socket);
            wire::Packet::InitialData
        } else {
            self.connection.meta = Some(socket);
            self.connection.resolve_conflicts = false;
            wire::Packet::InitialMeta
        };
        self.out.push(Action::Send {
            socket,
            dialect: wire::Dialect::UNNEGOTIATED,
            volume: VolumeNumber(0),
            packet,
            payload: Payload::None,
            integrity: None,
            digest: None,
            sent: None,
        });
        self.settle_or(greetings, true);
    }

    /// How long a pair of sockets has to stay alive, if that is configured.
    fn socket_check(&self) -> Option<Duration> {
        let check = self.connection.options.as_ref().map(|options| options.socket_check_timeout);
        check.filter(|check| !check.is_zero())
    }

    /// Whether the data socket is the only call this node made, and the other socket the only one it took.
    fn is_only_pair(&self) -> bool {
        let called = self.connection.data.is_some_and(|socket| socket < SocketId::FIRST_ACCEPTED);
        let was_called = self.connection.meta.is_some_and(|socket| socket >= SocketId::FIRST_ACCEPTED);
        called && was_called && self.connection.calls == Calls { made: 1, taken: 1 }
    }

    /// The peer has begun the handshake on the data socket of a pair that had to prove itself.
    pub(crate) fn peer_is_sure(&mut self) {
        self.end_search();
        self.begin_handshake(self.handshake_timeout());
    }

    /// Stays with the pair of sockets there is.
    pub(crate) fn end_search(&mut self) {
        let greetings = self.connection.establish.greetings();
        self.stop_looking(greetings);
    }

    /// Goes on with a pair of sockets, or looks for the other one.
    fn settle_or(&mut self, greetings: Greetings, wait: bool) {
        if self.connection.data.is_some() && self.connection.meta.is_some() {
            let check = self.socket_check();
            self.connection.establish = Establish::Settling {
                until: self.now.after(check.unwrap_or(self.ping_timeout())),
                greetings,
            };
            // Who configures the pause has a reason: something between the nodes that answers calls by itself.
            if check.is_none() && self.is_only_pair() {
                // The peer may make the whole pause.
                let patience = self.ping_timeout() + self.handshake_timeout();
                self.end_search();
                self.begin_handshake(patience);
            }
        } else if wait {
            self.wait_for_call(greetings);
        } else {
            self.call_peer(greetings);
        }
    }

    /// Somebody called.
    pub(crate) fn socket_accepted(&mut self, socket: SocketId) {
        self.connection.calls.taken = self.connection.calls.taken.saturating_add(1);
        let until = self.now.after(self.handshake_timeout());
        match self.connection.establish.greetings_mut() {
            Some(greetings) if greetings.silent.len() + greetings.arrived.len() < GREETINGS_MAX => {
                greetings.silent.push((socket, until));
            }
            _ => self.out.push(Action::Close { socket, abort: true }),
        }
    }

    /// A caller said which socket it is.
    pub(crate) fn greeting(&mut self, socket: SocketId, is_data: bool) {
        let Some(greetings) = self.connection.establish.greetings_mut() else { return };
        greetings.silent.retain(|(silent, _)| *silent != socket);
        greetings.arrived.push_back((socket, is_data));
        self.take_arrivals();
    }

    /// Takes callers while this node waits for them.
    fn take_arrivals(&mut self) {
        while let Establish::Waiting { until, greetings } = &mut self.connection.establish {
            let until = *until;
            let Some((socket, is_data)) = greetings.arrived.pop_front() else { return };
            let greetings = std::mem::take(greetings);
            let letter = if is_data { "S" } else { "M" };
            if !is_data {
                self.connection.resolve_conflicts = true;
            }
            let slot = if is_data { &mut self.connection.data } else { &mut self.connection.meta };
            let crossed = slot.replace(socket);
            if let Some(old) = crossed {
                self.say(Level::Warning, None, format!("initial packet {letter} crossed"));
                self.out.push(Action::Close { socket: old, abort: true });
                if self.random.coin() {
                    self.connection.establish = Establish::Waiting { until, greetings };
                    continue;
                }
            }
            self.settle_or(greetings, false);
        }
    }

    /// A socket of an attempt is gone. Returns whether it was one.
    pub(crate) fn attempt_socket_down(&mut self, socket: SocketId) -> bool {
        if let Some(greetings) = self.connection.establish.greetings_mut() {
            let silent = greetings.silent.len();
            greetings.silent.retain(|(other, _)| *other != socket);
            let silent_gone = greetings.silent.len() != silent;
            let arrived = greetings.arrived.len();
            greetings.arrived.retain(|(other, _)| *other != socket);
            if silent_gone {
                self.say(Level::Warning, None, "Error receiving initial packet".to_owned());
                return true;
            }
            let greetings = self.connection.establish.greetings_mut();
            if greetings.is_some_and(|greetings| greetings.arrived.len() != arrived) {
                return true;
            }
        }
        match &self.connection.establish {
            Establish::Calling { socket: calling, .. } if *calling == socket => {
                let greetings = self.connection.establish.greetings();
                self.settle_or(greetings, true);
                true
            }
            Establish::Off | Establish::Pausing { .. } => false,
            _ => {
                let slots = [&mut self.connection.data, &mut self.connection.meta];
                let mut found = false;
                for slot in slots {
                    if *slot == Some(socket) {
                        *slot = None;
                        found = true;
                    }
                }
                found
            }
        }
    }

    /// Time has passed.
    pub(crate) fn establish_timeout(&mut self) {
        let now = self.now;
        if let Some(greetings) = self.connection.establish.greetings_mut() {
            let late: Vec<SocketId> = greetings
                .silent
                .iter()
                .filter(|(_, until)| *until <= now)
                .map(|(socket, _)| *socket)
                .collect();
            greetings.silent.retain(|(_, until)| *until > now);
            for socket in late {
                self.say(Level::Warning, None, "Error receiving initial packet".to_owned());
                self.out.push(Action::Close { socket, abort: true });
            }
        }
        match &self.connection.establish {
            Establish::Waiting { until, .. } if *until <= now => {
                let greetings = self.connection.establish.greetings();
                self.call_peer(greetings);
            }
            Establish::Settling { until, .. } if *until <= now => {
                let greetings = self.connection.establish.greetings();
                if self.connection.data.is_some() && self.connection.meta.is_some() {
                    self.stop_looking(greetings);
                    self.begin_handshake(self.handshake_timeout());
                } else {
                    self.wait_for_call(greetings);
                }
            }
            Establish::Pausing { until } if *until <= now => {
                self.connection.establish = Establish::Off;
                self.start_connecting();
            }
            _ => {}
        }
    }

    fn stop_looking(&mut self, greetings: Greetings) {
        self.connection.establish = Establish::Off;
        self.out.push(Action::StopListening);
        let waiting = greetings.silent.iter().map(|(socket, _)| *socket);
        for socket in waiting.chain(greetings.arrived.iter().map(|(socket, _)| *socket)) {
            self.out.push(Action::Close { socket, abort: true });
        }
    }

    /// Gives up whatever attempt is being made.
    pub(crate) fn abandon_attempt(&mut self, abort: bool) {
        if let Establish::Calling { socket, .. } = self.connection.establish {
            self.out.push(Action::Close { socket, abort: true });
        }
        let greetings = self.connection.establish.greetings();
        if self.connection.establish != Establish::Off {
            self.stop_looking(greetings);
        }
        self.close_sockets(abort);
    }

    /// A handshake failed in a way that may be over the next time.
    pub(crate) fn retry_later(&mut self) {
        self.close_sockets(true);
        self.connection.stage = crate::connection::Stage::None;
        self.connection.deadline = None;
        if self.connection.state >= ConnectionState::Unconnected && self.connection.losing.is_none() {
            self.connection.establish = Establish::Pausing { until: self.now.after(PAUSE) };
        }
    }

    /// A peer that was refused had time to read what it was told.
    pub(crate) fn close_refused_meta(&mut self) {
        if let Some((socket, _)) = self.connection.refused_meta.take() {
            self.out.push(Action::Close { socket, abort: true });
        }
    }

    /// Closes both sockets.
    pub(crate) fn close_sockets(&mut self, abort: bool) {
        for socket in [self.connection.data.take(), self.connection.meta.take()].into_iter().flatten() {
            self.out.push(Action::Close { socket, abort });
        }
    }
}
