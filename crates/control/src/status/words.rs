//! The words the outputs use for states (status spec 1).

use udrbd_units::ConnectionState;

use super::{ResyncPause, Suspension, WriteOrdering};

/// What `connection:` says: the state of the sockets in the words of the 9 series.
pub fn connection_word(state: ConnectionState) -> &'static str {
    match state {
        ConnectionState::WFConnection => "Connecting",
        state if state >= ConnectionState::WFReportParams => "Connected",
        state => state.name(),
    }
}

/// What `replication:` says: the state of the volume in the words of the 9 series.
pub fn replication_word(state: ConnectionState) -> &'static str {
    match state {
        ConnectionState::Connected => "Established",
        state if state <= ConnectionState::WFReportParams => "Off",
        state => state.name(),
    }
}

fn list(reasons: &[(bool, &str)]) -> String {
    let set: Vec<&str> = reasons.iter().filter(|(on, _)| *on).map(|(_, word)| *word).collect();
    if set.is_empty() { "no".to_owned() } else { set.join(",") }
}

impl Suspension {
    /// What `suspended:` says.
    pub fn words(self) -> String {
        list(&[(self.user, "user"), (self.no_data, "no-data"), (self.fencing, "fencing")])
    }
}

impl ResyncPause {
    /// What `resync-suspended:` says.
    pub fn words(self) -> String {
        list(&[(self.user, "user"), (self.peer, "peer"), (self.dependency, "dependency")])
    }
}

impl WriteOrdering {
    /// What `write-ordering:` says.
    pub const fn word(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Drain => "drain",
            Self::Flush => "flush",
        }
    }

    /// The letter behind `wo:`.
    pub const fn letter(self) -> char {
        match self {
            Self::None => 'n',
            Self::Drain => 'd',
            Self::Flush => 'f',
        }
    }
}

/// `yes` or `no`.
pub(super) const fn yes_no(value: bool) -> &'static str {
    if value { "yes" } else { "no" }
}

/// Sectors as KiB.
pub(super) const fn kib(sectors: u64) -> u64 {
    sectors / 2
}

/// Blocks of the bitmap as KiB.
pub(super) const fn blocks_kib(blocks: u64) -> u64 {
    blocks * 4
}
