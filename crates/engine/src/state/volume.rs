//! The state of one volume and its 32-bit form.

use std::fmt;

use udrbd_units::{ConnectionState, DiskState, Role, UnknownState};

/// Why application I/O of a resource is suspended. The three reasons belong to the resource (states spec 16.1); a
/// [`VolumeState`] carries a copy, because one change may concern both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Suspension {
    /// An operator said `suspend-io` (`susp`).
    pub user: bool,
    /// No up-to-date data can be reached (`susp_nod`).
    pub no_data: bool,
    /// The peer is being fenced (`susp_fen`).
    pub fencing: bool,
}

impl Suspension {
    /// Nothing is suspended.
    pub const NONE: Self = Self { user: false, no_data: false, fencing: false };

    /// Whether any of the reasons holds (`is_susp`).
    pub const fn any(self) -> bool {
        self.user || self.no_data || self.fencing
    }
}

/// The state of one volume as its node sees it (states spec 1.1), with the suspension of its resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct VolumeState {
    /// This node's role, never `Unknown`.
    pub role: Role,
    /// The peer's role.
    pub peer: Role,
    /// The connection; below `WFReportParams` the same for all volumes of a resource.
    pub connection: ConnectionState,
    /// The own disk, never `Unknown`.
    pub disk: DiskState,
    /// The peer's disk.
    pub peer_disk: DiskState,
    /// Resync is paused by a `resync-after` dependency of this node (`aftr_isp`).
    pub after_isp: bool,
    /// Resync is paused by the peer, for whatever reason it has (`peer_isp`).
    pub peer_isp: bool,
    /// Resync is paused by `pause-sync` on this node (`user_isp`).
    pub user_isp: bool,
    /// The suspension of the resource. The resource's own copy is authoritative: fill it in before a decision, take
    /// it from the result.
    pub suspension: Suspension,
}

const ROLE_SHIFT: u32 = 0;
const PEER_SHIFT: u32 = 2;
const CONNECTION_SHIFT: u32 = 4;
const DISK_SHIFT: u32 = 9;
const PEER_DISK_SHIFT: u32 = 13;

/// The bits and fields of a state word, shared with the (mask, value) form of a request.
pub(super) mod word {
    pub(in crate::state) const ROLE: u32 = 0x3 << super::ROLE_SHIFT;
    pub(in crate::state) const PEER: u32 = 0x3 << super::PEER_SHIFT;
    pub(in crate::state) const CONNECTION: u32 = 0x1f << super::CONNECTION_SHIFT;
    pub(in crate::state) const DISK: u32 = 0xf << super::DISK_SHIFT;
    pub(in crate::state) const PEER_DISK: u32 = 0xf << super::PEER_DISK_SHIFT;
    pub(in crate::state) const SUSPENDED_BY_USER: u32 = 1 << 17;
    pub(in crate::state) const AFTER_ISP: u32 = 1 << 18;
    pub(in crate::state) const PEER_ISP: u32 = 1 << 19;
    pub(in crate::state) const USER_ISP: u32 = 1 << 20;
    pub(in crate::state) const SUSPENDED_NO_DATA: u32 = 1 << 21;
    pub(in crate::state) const SUSPENDED_FENCING: u32 = 1 << 22;
}

impl VolumeState {
    /// A volume just made: nothing configured (states spec 1, consequence 4).
    pub const INITIAL: Self = Self {
        role: Role::Secondary,
        peer: Role::Unknown,
        connection: ConnectionState::StandAlone,
        disk: DiskState::Diskless,
        peer_disk: DiskState::Unknown,
        after_isp: false,
        peer_isp: false,
        user_isp: false,
        suspension: Suspension::NONE,
    };

    /// The 32-bit word of the wire and the configuration interface (states spec 1.1).
    pub const fn to_raw(self) -> u32 {
        (self.role.number() as u32) << ROLE_SHIFT
            | (self.peer.number() as u32) << PEER_SHIFT
            | (self.connection.number() as u32) << CONNECTION_SHIFT
            | (self.disk.number() as u32) << DISK_SHIFT
            | (self.peer_disk.number() as u32) << PEER_DISK_SHIFT
            | flag(self.suspension.user, word::SUSPENDED_BY_USER)
            | flag(self.after_isp, word::AFTER_ISP)
            | flag(self.peer_isp, word::PEER_ISP)
            | flag(self.user_isp, word::USER_ISP)
            | flag(self.suspension.no_data, word::SUSPENDED_NO_DATA)
            | flag(self.suspension.fencing, word::SUSPENDED_FENCING)
    }

    /// Reads a 32-bit word; bits 23 to 31 are ignored.
    ///
    /// # Errors
    /// [`UnknownState`] where a field holds a number that is no state of its kind.
    pub fn from_raw(raw: u32) -> Result<Self, UnknownState> {
        Ok(Self {
            role: role_field(raw, ROLE_SHIFT)?,
            peer: role_field(raw, PEER_SHIFT)?,
            connection: ConnectionState::try_from((raw >> CONNECTION_SHIFT & 0x1f) as u8)?,
            disk: disk_field(raw, DISK_SHIFT)?,
            peer_disk: disk_field(raw, PEER_DISK_SHIFT)?,
            after_isp: raw & word::AFTER_ISP != 0,
            peer_isp: raw & word::PEER_ISP != 0,
            user_isp: raw & word::USER_ISP != 0,
            suspension: Suspension {
                user: raw & word::SUSPENDED_BY_USER != 0,
                no_data: raw & word::SUSPENDED_NO_DATA != 0,
                fencing: raw & word::SUSPENDED_FENCING != 0,
            },
        })
    }

    /// Whether resync is paused for any reason.
    pub const fn any_isp(self) -> bool {
        self.after_isp || self.peer_isp || self.user_isp
    }

    /// Whether the volume has nothing configured: shown as `Unconfigured`.
    pub fn is_unconfigured(self) -> bool {
        self.disk == DiskState::Diskless
            && self.connection == ConnectionState::StandAlone
            && self.role == Role::Secondary
    }

    /// Whether a resync runs or is paused (states spec 2.3).
    pub const fn is_syncing(self) -> bool {
        use ConnectionState::{PausedSyncS, PausedSyncT, SyncSource, SyncTarget};
        matches!(self.connection, SyncSource | SyncTarget | PausedSyncS | PausedSyncT)
    }

    /// Whether an online verify runs, asked for by either node.
    pub const fn is_verifying(self) -> bool {
        matches!(self.connection, ConnectionState::VerifyS | ConnectionState::VerifyT)
    }

    /// The six characters of the kernel's log: suspended, the three pause flags, fencing, no data (states spec 2.4).
    pub const fn flags(self) -> StateFlags {
        StateFlags(self)
    }
}

impl Default for VolumeState {
    fn default() -> Self {
        Self::INITIAL
    }
}

/// `cs:<connection> ro:<role>/<peer> ds:<disk>/<peer disk> <flags>`, as in the lines about a refused change.
impl fmt::Display for VolumeState {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "cs:{} ro:{}/{} ds:{}/{} {}",
            self.connection,
            self.role,
            self.peer,
            self.disk,
            self.peer_disk,
            self.flags()
        )
    }
}

/// See [`VolumeState::flags`].
#[derive(Clone, Copy, Debug)]
pub struct StateFlags(VolumeState);

impl fmt::Display for StateFlags {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.0;
        let choose = |set: bool, yes: &'static str, no: &'static str| if set { yes } else { no };
        formatter.write_str(choose(state.suspension.any(), "s", "r"))?;
        formatter.write_str(choose(state.after_isp, "a", "-"))?;
        formatter.write_str(choose(state.peer_isp, "p", "-"))?;
        formatter.write_str(choose(state.user_isp, "u", "-"))?;
        formatter.write_str(choose(state.suspension.fencing, "F", "-"))?;
        formatter.write_str(choose(state.suspension.no_data, "N", "-"))
    }
}

const fn flag(set: bool, bit: u32) -> u32 {
    if set { bit } else { 0 }
}

fn role_field(raw: u32, shift: u32) -> Result<Role, UnknownState> {
    Role::try_from((raw >> shift & 0x3) as u8)
}

fn disk_field(raw: u32, shift: u32) -> Result<DiskState, UnknownState> {
    DiskState::try_from((raw >> shift & 0xf) as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_word_has_drbds_layout() {
        let state = VolumeState {
            role: Role::Primary,
            peer: Role::Secondary,
            connection: ConnectionState::Connected,
            disk: DiskState::UpToDate,
            peer_disk: DiskState::UpToDate,
            user_isp: true,
            suspension: Suspension { fencing: true, ..Suspension::NONE },
            ..VolumeState::INITIAL
        };
        assert_eq!(state.to_raw(), 1 | 2 << 2 | 10 << 4 | 8 << 9 | 8 << 13 | 1 << 20 | 1 << 22);
        assert_eq!(VolumeState::from_raw(state.to_raw()), Ok(state));
        assert_eq!(state.to_string(), "cs:Connected ro:Primary/Secondary ds:UpToDate/UpToDate s--uF-");
    }

    #[test]
    fn a_number_that_is_no_state_is_an_error() {
        assert!(VolumeState::from_raw(3).is_err());
        assert!(VolumeState::from_raw(24 << 4).is_err());
        assert!(VolumeState::from_raw(9 << 9).is_err());
    }
}
