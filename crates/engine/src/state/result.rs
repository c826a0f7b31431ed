//! The results of a state change: DRBD's `SS_*` codes.

use std::fmt;

macro_rules! results {
    ($($(#[$doc:meta])* $name:ident = $code:literal $text:literal,)+) => {
        /// The result of a state change with DRBD's number (states spec 3.8). Positive is success.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(i32)]
        pub enum StateChangeResult {
            $($(#[$doc])* $name = $code,)+
        }

        impl StateChangeResult {
            /// Every result, from success to refusal.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// The text of DRBD's messages; empty for results that are no refusal.
            pub const fn text(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)+
                }
            }
        }
    };
}

results! {
    /// The peer's agreement is not needed any more.
    ClusterWideNotNeeded = 4 "",
    /// The peer agreed.
    ClusterWideSuccess = 3 "",
    /// The state already is as wanted.
    NothingToDo = 2 "",
    /// Done.
    Success = 1 "",
    /// No result yet, or an error without a name.
    UnknownError = 0 "",
    /// Both nodes would be Primary.
    TwoPrimaries = -1 "Multiple primaries not allowed by config",
    /// A Primary would have no data.
    NoUpToDateDisk = -2 "Need access to UpToDate data",
    /// Resync needs the own disk.
    NoLocalDisk = -4 "Can not resync without local disk",
    /// Resync needs the peer's disk.
    NoRemoteDisk = -5 "Can not resync without remote disk",
    /// A connected node is not outdated.
    ConnectedOutdates = -6 "Refusing to be Outdated while Connected",
    /// The peer is not known to be outdated (`SS_PRIMARY_NOP`).
    PrimaryWithoutOutdatedPeer = -7 "Refusing to be Primary while peer is not outdated",
    /// A resync or verify runs.
    ResyncRunning = -8 "Can not start OV/resync since it is already active",
    /// There is no connection to end.
    AlreadyStandAlone = -9 "Can not disconnect a StandAlone device",
    /// The peer refused.
    ClusterWideFailedByPeer = -10 "State change was refused by peer node",
    /// There is no disk.
    IsDiskless = -11 "Device is diskless, the requested operation requires a disk",
    /// The device is open.
    DeviceInUse = -12 "Device is held open by someone",
    /// There is no network configuration.
    NoNetConfig = -13 "Have no net/connection configuration",
    /// There is no `verify-alg`.
    NoVerifyAlg = -14 "Need a verify algorithm to start online verify",
    /// There is no connection.
    NeedConnection = -15 "Need a connection to start verify or resync",
    /// The disk is worse than outdated.
    LowerThanOutdated = -16 "Disk state is lower than outdated",
    /// The peer's protocol is too old.
    NotSupported = -17 "Peer does not support protocol",
    /// Something is under way: try again after the next change.
    InTransientState = -18 "In transient state, retry after next state change",
    /// Both nodes asked at the same time.
    ConcurrentStateChange = -19 "Concurrent state changes detected and aborted",
    /// The peer is Primary for another volume.
    OtherVolumePeerPrimary = -20 "Other vol primary on peer not allowed by config",
    /// The peer can only be outdated over a connection.
    OutdateWithoutConnection = -21 "Need a connection for a graceful disconnect/outdate peer",
}

impl StateChangeResult {
    /// DRBD's number.
    pub const fn code(self) -> i32 {
        self as i32
    }

    /// The result with a number, `None` where DRBD has none: -3 and everything out of range.
    pub fn from_code(code: i32) -> Option<Self> {
        Self::ALL.iter().copied().find(|result| result.code() == code)
    }

    /// Whether the change was made, or there was nothing to make (`rv >= SS_SUCCESS`).
    pub const fn is_success(self) -> bool {
        self.code() >= Self::Success.code()
    }

    /// The exit status of `drbdsetup` (states spec 3.8).
    pub const fn exit_code(self) -> i32 {
        match self {
            Self::NoUpToDateDisk => 17,
            Self::NoLocalDisk => 16,
            Self::LowerThanOutdated => 5,
            result if result.is_success() => 0,
            _ => 11,
        }
    }
}

/// The text, or the number where there is none.
impl fmt::Display for StateChangeResult {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.text() {
            "" => write!(formatter, "{}", self.code()),
            text => formatter.pad(text),
        }
    }
}

/// The text for any number, as a peer may send any (`drbd_set_st_err_str`): `TOO_LARGE` above -1, `TOO_SMALL` below
/// -21, nothing for the unused -3.
pub fn result_text(code: i32) -> &'static str {
    match code {
        0.. => "TOO_LARGE",
        ..=-22 => "TOO_SMALL",
        _ => StateChangeResult::from_code(code).map_or("", StateChangeResult::text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_lead_back_and_every_refusal_has_a_text() {
        for result in StateChangeResult::ALL {
            assert_eq!(StateChangeResult::from_code(result.code()), Some(*result));
            assert_eq!(result.text().is_empty(), result.code() >= 0);
        }
        assert_eq!(StateChangeResult::from_code(-3), None);
        assert_eq!(result_text(1), "TOO_LARGE");
        assert_eq!(result_text(-22), "TOO_SMALL");
        assert_eq!(result_text(-3), "");
        assert_eq!(result_text(-21), "Need a connection for a graceful disconnect/outdate peer");
    }

    #[test]
    fn exit_codes_are_drbdsetups() {
        assert_eq!(StateChangeResult::NoUpToDateDisk.exit_code(), 17);
        assert_eq!(StateChangeResult::NoLocalDisk.exit_code(), 16);
        assert_eq!(StateChangeResult::LowerThanOutdated.exit_code(), 5);
        assert_eq!(StateChangeResult::TwoPrimaries.exit_code(), 11);
        assert_eq!(StateChangeResult::UnknownError.exit_code(), 11);
        assert_eq!(StateChangeResult::NothingToDo.exit_code(), 0);
    }
}
