//! The state word, and changes of state that both nodes must agree to (wire spec 7).

use std::fmt;

use udrbd_units::{ConnectionState, DiskState, Role};

use crate::cursor::Reader;
use crate::error::WireError;

const ROLE: Field = Field { shift: 0, mask: 0x3 };
const PEER_ROLE: Field = Field { shift: 2, mask: 0x3 };
const CONNECTION: Field = Field { shift: 4, mask: 0x1f };
const DISK: Field = Field { shift: 9, mask: 0xf };
const PEER_DISK: Field = Field { shift: 13, mask: 0xf };
const SUSPENDED: Field = Field::flag(17);
const AFTER_PAUSED: Field = Field::flag(18);
const PEER_PAUSED: Field = Field::flag(19);
const USER_PAUSED: Field = Field::flag(20);
const SUSPENDED_NO_DATA: Field = Field::flag(21);
const SUSPENDED_FENCING: Field = Field::flag(22);

/// Where a field of the state word lies.
#[derive(Clone, Copy)]
struct Field {
    shift: u32,
    mask: u32,
}

impl Field {
    const fn flag(shift: u32) -> Self {
        Self { shift, mask: 1 }
    }

    const fn get(self, word: u32) -> u8 {
        ((word >> self.shift) & self.mask) as u8
    }

    const fn is_set(self, word: u32) -> bool {
        self.get(word) != 0
    }

    const fn put(self, value: u8) -> u32 {
        (value as u32 & self.mask) << self.shift
    }
}

/// A volume's state as one node sees it: the content of P_STATE, 32 bits on the wire (wire spec 7.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StateWord {
    /// The sender's role.
    pub role: Role,
    /// The role of the sender's peer.
    pub peer_role: Role,
    /// The connection.
    pub connection: ConnectionState,
    /// The sender's disk.
    pub disk: DiskState,
    /// The disk of the sender's peer.
    pub peer_disk: DiskState,
    /// Input and output are suspended by the administrator (`susp`).
    pub suspended: bool,
    /// The resync is paused by a dependency on another one (`aftr_isp`).
    pub after_paused: bool,
    /// The resync is paused by the sender's peer (`peer_isp`).
    pub peer_paused: bool,
    /// The resync is paused by the administrator (`user_isp`).
    pub user_paused: bool,
    /// Input and output are suspended because no data are accessible (`susp_nod`).
    pub suspended_no_data: bool,
    /// Input and output are suspended while the peer is being fenced (`susp_fen`).
    pub suspended_fencing: bool,
}

impl StateWord {
    /// The word.
    pub const fn pack(self) -> u32 {
        ROLE.put(self.role.number())
            | PEER_ROLE.put(self.peer_role.number())
            | CONNECTION.put(self.connection.number())
            | DISK.put(self.disk.number())
            | PEER_DISK.put(self.peer_disk.number())
            | SUSPENDED.put(self.suspended as u8)
            | AFTER_PAUSED.put(self.after_paused as u8)
            | PEER_PAUSED.put(self.peer_paused as u8)
            | USER_PAUSED.put(self.user_paused as u8)
            | SUSPENDED_NO_DATA.put(self.suspended_no_data as u8)
            | SUSPENDED_FENCING.put(self.suspended_fencing as u8)
    }

    /// The state a word stands for; bits without meaning are ignored. `None` if a field has a value that is no state.
    pub fn unpack(word: u32) -> Option<Self> {
        Some(Self {
            role: Role::try_from(ROLE.get(word)).ok()?,
            peer_role: Role::try_from(PEER_ROLE.get(word)).ok()?,
            connection: ConnectionState::try_from(CONNECTION.get(word)).ok()?,
            disk: DiskState::try_from(DISK.get(word)).ok()?,
            peer_disk: DiskState::try_from(PEER_DISK.get(word)).ok()?,
            suspended: SUSPENDED.is_set(word),
            after_paused: AFTER_PAUSED.is_set(word),
            peer_paused: PEER_PAUSED.is_set(word),
            user_paused: USER_PAUSED.is_set(word),
            suspended_no_data: SUSPENDED_NO_DATA.is_set(word),
            suspended_fencing: SUSPENDED_FENCING.is_set(word),
        })
    }

    pub(crate) fn decode(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        let word = reader.u32()?;
        Self::unpack(word).ok_or(WireError::InvalidState { command: reader.command(), word })
    }
}

/// A change of some fields of the state, in the requester's view: P_STATE_CHG_REQ and P_CONN_ST_CHG_REQ
/// (wire spec 7.3). A field that is `None` stays as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct StateChange {
    /// The requester's role.
    pub role: Option<Role>,
    /// The receiver's role.
    pub peer_role: Option<Role>,
    /// The connection.
    pub connection: Option<ConnectionState>,
    /// The requester's disk.
    pub disk: Option<DiskState>,
    /// The receiver's disk.
    pub peer_disk: Option<DiskState>,
    /// `susp`.
    pub suspended: Option<bool>,
    /// `aftr_isp`.
    pub after_paused: Option<bool>,
    /// `peer_isp`.
    pub peer_paused: Option<bool>,
    /// `user_isp`.
    pub user_paused: Option<bool>,
    /// `susp_nod`.
    pub suspended_no_data: Option<bool>,
    /// `susp_fen`.
    pub suspended_fencing: Option<bool>,
}

impl StateChange {
    /// The two words on the wire: which bits change, and to what.
    pub const fn pack(self) -> (u32, u32) {
        let mut words = (0, 0);
        macro_rules! put {
            ($field:ident, $value:expr) => {
                if let Some(value) = $value {
                    words.0 |= $field.put(0xff);
                    words.1 |= $field.put(value as u8);
                }
            };
        }
        put!(ROLE, self.role);
        put!(PEER_ROLE, self.peer_role);
        put!(CONNECTION, self.connection);
        put!(DISK, self.disk);
        put!(PEER_DISK, self.peer_disk);
        put!(SUSPENDED, self.suspended);
        put!(AFTER_PAUSED, self.after_paused);
        put!(PEER_PAUSED, self.peer_paused);
        put!(USER_PAUSED, self.user_paused);
        put!(SUSPENDED_NO_DATA, self.suspended_no_data);
        put!(SUSPENDED_FENCING, self.suspended_fencing);
        words
    }

    /// The change two words stand for; bits without meaning, and values under bits that do not change, are ignored.
    ///
    /// # Errors
    /// The offending word: the mask if it covers a field in part, the value if a field is no state.
    pub fn unpack(mask: u32, value: u32) -> Result<Self, u32> {
        fn field<T: TryFrom<u8>>(field: Field, mask: u32, value: u32) -> Result<Option<T>, u32> {
            match u32::from(field.get(mask)) {
                0 => Ok(None),
                all if all == field.mask => T::try_from(field.get(value)).map(Some).map_err(|_| value),
                _ => Err(mask),
            }
        }
        let flag = |field: Field| field.is_set(mask).then(|| field.is_set(value));
        Ok(Self {
            role: field(ROLE, mask, value)?,
            peer_role: field(PEER_ROLE, mask, value)?,
            connection: field(CONNECTION, mask, value)?,
            disk: field(DISK, mask, value)?,
            peer_disk: field(PEER_DISK, mask, value)?,
            suspended: flag(SUSPENDED),
            after_paused: flag(AFTER_PAUSED),
            peer_paused: flag(PEER_PAUSED),
            user_paused: flag(USER_PAUSED),
            suspended_no_data: flag(SUSPENDED_NO_DATA),
            suspended_fencing: flag(SUSPENDED_FENCING),
        })
    }

    pub(crate) fn decode(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        let (mask, value) = (reader.u32()?, reader.u32()?);
        Self::unpack(mask, value).map_err(|word| WireError::InvalidState { command: reader.command(), word })
    }
}

/// The answer to a request for a change of state (`enum drbd_state_rv`, wire spec 7.3): positive is success.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StateReturnCode(pub i32);

macro_rules! return_codes {
    ($($(#[$doc:meta])* $name:ident = $code:literal $text:literal,)+) => {
        impl StateReturnCode {
            /// The change was made.
            pub const SUCCESS: Self = Self(1);
            /// There was nothing to do, which is success too.
            pub const NOTHING_TO_DO: Self = Self(2);
            $($(#[$doc])* pub const $name: Self = Self($code);)+

            /// DRBD's sentence for a refusal (`drbd_set_st_err_str`); what is none gives the words DRBD has for that.
            pub const fn text(self) -> &'static str {
                match self.0 {
                    $($code => $text,)+
                    ..0 => "TOO_SMALL",
                    _ => "TOO_LARGE",
                }
            }
        }
    };
}

return_codes! {
    /// Both would be Primary.
    TWO_PRIMARIES = -1 "Multiple primaries not allowed by config",
    /// There would be no access to good data.
    NO_UP_TO_DATE_DISK = -2 "Need access to UpToDate data",
    /// The own disk is missing for a resync.
    NO_LOCAL_DISK = -4 "Can not resync without local disk",
    /// The peer's disk is missing for a resync.
    NO_REMOTE_DISK = -5 "Can not resync without remote disk",
    /// A connected node is not outdated.
    CONNECTED_OUTDATES = -6 "Refusing to be Outdated while Connected",
    /// Fencing demands an outdated peer first.
    PRIMARY_NO_PEER_OUTDATED = -7 "Refusing to be Primary while peer is not outdated",
    /// A resync or verify is running.
    RESYNC_RUNNING = -8 "Can not start OV/resync since it is already active",
    /// There is nothing to disconnect.
    ALREADY_STANDALONE = -9 "Can not disconnect a StandAlone device",
    /// The peer said no.
    REFUSED_BY_PEER = -10 "State change was refused by peer node",
    /// There is no disk.
    IS_DISKLESS = -11 "Device is diskless, the requested operation requires a disk",
    /// Somebody has the device open.
    DEVICE_IN_USE = -12 "Device is held open by someone",
    /// There is no network configuration.
    NO_NET_CONFIG = -13 "Have no net/connection configuration",
    /// No verify algorithm is configured.
    NO_VERIFY_ALGORITHM = -14 "Need a verify algorithm to start online verify",
    /// There is no connection.
    NEED_CONNECTION = -15 "Need a connection to start verify or resync",
    /// The disk cannot be outdated.
    LOWER_THAN_OUTDATED = -16 "Disk state is lower than outdated",
    /// The agreed version is too low.
    NOT_SUPPORTED = -17 "Peer does not support protocol",
    /// Another change is under way.
    IN_TRANSIENT_STATE = -18 "In transient state, retry after next state change",
    /// Both nodes wanted something at once.
    CONCURRENT_STATE_CHANGE = -19 "Concurrent state changes detected and aborted",
    /// Another volume's peer is Primary.
    OTHER_VOLUME_PEER_PRIMARY = -20 "Other vol primary on peer not allowed by config",
    /// There is nobody to tell.
    OUTDATE_WITHOUT_CONNECTION = -21 "Need a connection for a graceful disconnect/outdate peer",
}

impl StateReturnCode {
    /// Whether the change was made or was not needed.
    pub const fn is_success(self) -> bool {
        self.0 >= 1
    }
}

impl fmt::Debug for StateReturnCode {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_success() {
            return write!(formatter, "StateReturnCode({})", self.0);
        }
        write!(formatter, "StateReturnCode({} {:?})", self.0, self.text())
    }
}

/// What P_STATE_CHG_REPLY and P_CONN_ST_CHG_REPLY are decoded by.
pub(crate) fn decode_return_code(reader: &mut Reader<'_>) -> Result<StateReturnCode, WireError> {
    Ok(StateReturnCode(reader.u32()? as i32))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Words seen on the wire (wire spec 7.1).
    #[test]
    fn words_of_the_kernel() {
        for (word, role, peer_role, connection, disk, peer_disk) in [
            (
                0xc882,
                Role::Secondary,
                Role::Unknown,
                ConnectionState::WFConnection,
                DiskState::Inconsistent,
                DiskState::Unknown,
            ),
            (
                0x110a9,
                Role::Primary,
                Role::Secondary,
                ConnectionState::Connected,
                DiskState::UpToDate,
                DiskState::UpToDate,
            ),
            (
                0xf0d9,
                Role::Primary,
                Role::Secondary,
                ConnectionState::WFBitMapS,
                DiskState::UpToDate,
                DiskState::Consistent,
            ),
            (
                0x10ae6,
                Role::Secondary,
                Role::Primary,
                ConnectionState::WFBitMapT,
                DiskState::Outdated,
                DiskState::UpToDate,
            ),
        ] {
            let state = StateWord::unpack(word).unwrap();
            assert_eq!((state.role, state.peer_role, state.connection), (role, peer_role, connection));
            assert_eq!((state.disk, state.peer_disk), (disk, peer_disk));
            assert_eq!(state.pack(), word);
        }
        assert_eq!(StateWord::unpack(0x3), None);
        assert!(StateWord::unpack(0x10d082).unwrap().user_paused);
    }

    #[test]
    fn a_change_covers_whole_fields() {
        let promote =
            StateChange { role: Some(Role::Primary), disk: Some(DiskState::UpToDate), ..Default::default() };
        assert_eq!(promote.pack(), (0x1e03, 0x1001));
        assert_eq!(StateChange::unpack(0x1e03, 0x1001), Ok(promote));
        assert_eq!(StateChange::unpack(0x1, 0x1), Err(0x1));
        assert_eq!(StateChange::unpack(0x1f0, 0x1f0), Err(0x1f0));
    }
}
