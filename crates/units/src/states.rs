//! Roles, disk states and connection states with their numbers on the wire and their names in every message.

use std::fmt;
use std::str::FromStr;

/// A number or name that is no state of the kind asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownState(pub String);

impl fmt::Display for UnknownState {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "no such state: {}", self.0)
    }
}

impl std::error::Error for UnknownState {}

macro_rules! states {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $number:literal $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
        #[repr(u8)]
        pub enum $name {
            $($(#[$variant_doc])* $variant = $number,)+
        }

        impl $name {
            /// Every value, in the order of the numbers.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The number used on the wire and on the configuration interface.
            pub const fn number(self) -> u8 {
                self as u8
            }

            /// The name in DRBD's messages and status.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)+
                }
            }
        }

        impl TryFrom<u8> for $name {
            type Error = UnknownState;

            fn try_from(number: u8) -> Result<Self, UnknownState> {
                match number {
                    $($number => Ok(Self::$variant),)+
                    _ => Err(UnknownState(number.to_string())),
                }
            }
        }

        impl FromStr for $name {
            type Err = UnknownState;

            fn from_str(text: &str) -> Result<Self, UnknownState> {
                match text {
                    $($text => Ok(Self::$variant),)+
                    _ => Err(UnknownState(text.to_owned())),
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.pad(self.name())
            }
        }
    };
}

states! {
    /// The role of a node for a volume. Not ordered by number: see [`Role::rank`].
    Role {
        /// The peer's role while it is not known.
        Unknown = 0 "Unknown",
        /// May write.
        Primary = 1 "Primary",
        /// Holds a copy.
        Secondary = 2 "Secondary",
    }
}

impl Role {
    /// The order DRBD uses for "the highest role over all volumes": Unknown, Secondary, Primary.
    pub const fn rank(self) -> u8 {
        match self {
            Self::Unknown => 0,
            Self::Secondary => 1,
            Self::Primary => 2,
        }
    }
}

states! {
    /// The state of a disk. The order matters: DRBD compares these numbers.
    DiskState {
        /// There is no backing device.
        Diskless = 0 "Diskless",
        /// The metadata are being read.
        Attaching = 1 "Attaching",
        /// On its way to Diskless after an error or a detach.
        Failed = 2 "Failed",
        /// Attached while connected; the handshake about the data is running.
        Negotiating = 3 "Negotiating",
        /// The data are not usable: a resync has not finished.
        Inconsistent = 4 "Inconsistent",
        /// The data are usable but known to be old.
        Outdated = 5 "Outdated",
        /// The peer's disk while there is no connection.
        Unknown = 6 "DUnknown",
        /// The data are usable; whether they are the newest is not known.
        Consistent = 7 "Consistent",
        /// The data are the newest.
        UpToDate = 8 "UpToDate",
    }
}

states! {
    /// The state of the connection, per volume from WFReportParams upwards. The order matters.
    ConnectionState {
        /// No network configuration, or given up.
        StandAlone = 0 "StandAlone",
        /// A disconnect is running.
        Disconnecting = 1 "Disconnecting",
        /// About to try to connect.
        Unconnected = 2 "Unconnected",
        /// The peer did not answer in time.
        Timeout = 3 "Timeout",
        /// The connection broke.
        BrokenPipe = 4 "BrokenPipe",
        /// The connection broke, or was told to.
        NetworkFailure = 5 "NetworkFailure",
        /// The peer sent what the protocol does not allow.
        ProtocolError = 6 "ProtocolError",
        /// The peer is closing the connection.
        TearDown = 7 "TearDown",
        /// Waiting for the peer to appear.
        WFConnection = 8 "WFConnection",
        /// Both sockets are there; waiting for the first packets.
        WFReportParams = 9 "WFReportParams",
        /// Connected, and no background work.
        Connected = 10 "Connected",
        /// A full resync towards the peer is about to start.
        StartingSyncS = 11 "StartingSyncS",
        /// A full resync from the peer is about to start.
        StartingSyncT = 12 "StartingSyncT",
        /// Exchange of bitmaps, this side becoming SyncSource.
        WFBitMapS = 13 "WFBitMapS",
        /// Exchange of bitmaps, this side becoming SyncTarget.
        WFBitMapT = 14 "WFBitMapT",
        /// Bitmaps exchanged; waiting for the identifier of the resync.
        WFSyncUUID = 15 "WFSyncUUID",
        /// Resync running, from here.
        SyncSource = 16 "SyncSource",
        /// Resync running, to here.
        SyncTarget = 17 "SyncTarget",
        /// Online verify running, driven from here.
        VerifyS = 18 "VerifyS",
        /// Online verify running, driven by the peer.
        VerifyT = 19 "VerifyT",
        /// Resync paused, from here.
        PausedSyncS = 20 "PausedSyncS",
        /// Resync paused, to here.
        PausedSyncT = 21 "PausedSyncT",
        /// Congested: writes are only marked out of sync.
        Ahead = 22 "Ahead",
        /// The peer is Ahead.
        Behind = 23 "Behind",
    }
}

impl ConnectionState {
    /// Whether a resync or an online verify runs, or a resync is paused.
    pub fn is_syncing(self) -> bool {
        (Self::SyncSource..=Self::PausedSyncT).contains(&self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_names_lead_back() {
        for state in ConnectionState::ALL {
            assert_eq!(ConnectionState::try_from(state.number()), Ok(*state));
            assert_eq!(state.name().parse(), Ok(*state));
        }
        assert!(DiskState::try_from(9).is_err());
        assert!("Uptodate".parse::<DiskState>().is_err());
        assert!(Role::Primary.rank() > Role::Secondary.rank());
    }
}
