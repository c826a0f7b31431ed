//! Pings, and how long the peer may take for an answer (io spec 18).

use udrbd_units::ConnectionState;

use crate::Engine;
use crate::interface::{Duration, Level};

impl Engine {
    fn ping_interval(&self) -> Duration {
        self.connection.options.as_ref().map_or(Duration::from_secs(10), |options| options.ping_interval)
    }

    pub(crate) fn start_keepalive(&mut self) {
        self.connection.ping_timer = Some(self.now.after(self.ping_interval()));
        self.connection.ping_sent_at = None;
        self.connection.pings_sent = 0;
        self.connection.pings_answered = 0;
    }

    pub(crate) fn stop_keepalive(&mut self) {
        self.connection.ping_timer = None;
        self.connection.ping_sent_at = None;
        self.connection.request_timer = None;
        self.connection.barrier_sent_at = None;
    }

    /// Asks the peer whether it is there. Returns the number of the ping.
    pub(crate) fn ping(&mut self) -> u64 {
        self.connection.pings_sent += 1;
        self.send_ping();
        if self.connection.ping_sent_at.is_none() && self.connection.ping_timer.is_some() {
            let timeout =
                self.connection.options.as_ref().map_or(Duration::from_millis(500), |o| o.ping_timeout);
            self.connection.ping_sent_at = Some(self.now);
            self.connection.ping_timer = Some(self.now.after(timeout));
        }
        self.connection.pings_sent
    }

    pub(crate) fn ping_answered(&mut self) {
        self.connection.pings_answered += 1;
        self.attention = true;
        if self.connection.pings_answered >= self.connection.pings_sent {
            self.connection.ping_sent_at = None;
            if self.connection.ping_timer.is_some() {
                self.connection.ping_timer = Some(self.now.after(self.ping_interval()));
            }
        }
    }

    /// Something came on either socket.
    pub(crate) fn heard(&mut self) {
        self.connection.last_received = self.now;
    }

    pub(crate) fn keepalive_timeout(&mut self) {
        let now = self.now;
        if self.connection.ping_timer.is_none_or(|timer| timer > now) {
            return;
        }
        match self.connection.ping_sent_at {
            Some(sent) if self.connection.last_received > sent => {
                // It lives: something else came meanwhile.
                self.connection.ping_sent_at = None;
                self.connection.ping_timer = Some(now.after(self.ping_interval()));
            }
            Some(_) => {
                self.say(Level::Error, None, "PingAck did not arrive in time.".to_owned());
                self.lose_connection(ConnectionState::NetworkFailure);
            }
            None => {
                let idle_until = self.connection.last_received.after(self.ping_interval());
                if idle_until > now {
                    self.connection.ping_timer = Some(idle_until);
                } else {
                    self.ping();
                }
            }
        }
    }

    /// The longest the peer may take for a request; `None`: for ever.
    fn request_patience(&self) -> Option<Duration> {
        let options = self.connection.options.as_ref()?;
        (options.ko_count > 0).then(|| options.timeout * options.ko_count)
    }

    /// Requests are under way: they must be answered in time.
    pub(crate) fn arm_request_timer(&mut self) {
        if self.connection.request_timer.is_none() && self.request_patience().is_some() {
            self.connection.request_timer = Some(self.now.after(Duration::from_secs(1)));
        }
    }

    pub(crate) fn request_timeout(&mut self) {
        let now = self.now;
        if self.connection.request_timer.is_none_or(|timer| timer > now) {
            return;
        }
        self.connection.request_timer = None;
        let Some(patience) = self.request_patience() else { return };
        if self.connection.state < ConnectionState::WFReportParams {
            return;
        }
        let Some((key, only_barrier)) = self.oldest_unanswered() else { return };
        let sent = self.requests[key].sent_at.max(self.connection.established_at);
        let overdue = sent.after(patience);
        if overdue > now {
            self.connection.request_timer = Some(overdue);
            return;
        }
        let ms = patience.as_millis();
        if !only_barrier {
            let options = self.connection.options.as_ref();
            let (count, tenths) = options.map_or((0, 0), |o| (o.ko_count, o.timeout.as_millis() / 100));
            let text = format!(
                "Remote failed to finish a request within {ms}ms > ko-count ({count}) * timeout ({tenths} * 0.1s)"
            );
            self.say(Level::Warning, None, text);
            self.lose_connection(ConnectionState::Timeout);
            return;
        }
        match self.connection.barrier_sent_at {
            Some((_, at)) if at.after(patience) <= now => {
                self.say(Level::Warning, None, format!("Remote failed to answer a P_BARRIER within {ms}ms"));
                self.lose_connection(ConnectionState::Timeout);
            }
            Some((_, at)) => self.connection.request_timer = Some(at.after(patience)),
            None => self.connection.request_timer = Some(now.after(Duration::from_secs(1))),
        }
    }
}
