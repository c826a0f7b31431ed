//! The lines that tell of a change. They write straight into a formatter: no allocation, and nothing at all is done
//! where a log level drops the line.

use std::fmt;

use udrbd_units::ConnectionState;

use super::volume::VolumeState;

/// A choice of the fields a change line may show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FieldSet {
    /// `role( )`.
    pub role: bool,
    /// `peer( )`.
    pub peer: bool,
    /// `conn( )`.
    pub connection: bool,
    /// `disk( )`.
    pub disk: bool,
    /// `pdsk( )`.
    pub peer_disk: bool,
}

impl FieldSet {
    /// Every field.
    pub const ALL: Self = Self { role: true, peer: true, connection: true, disk: true, peer_disk: true };
    /// No field.
    pub const NONE: Self =
        Self { role: false, peer: false, connection: false, disk: false, peer_disk: false };

    /// The fields not in this choice.
    #[must_use]
    pub const fn others(self) -> Self {
        Self {
            role: !self.role,
            peer: !self.peer,
            connection: !self.connection,
            disk: !self.disk,
            peer_disk: !self.peer_disk,
        }
    }
}

/// What all volumes had in common before a connection-wide change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommonState {
    /// The state of the first volume; without volumes, an unconfigured one.
    pub state: VolumeState,
    /// The fields in which all volumes agree with it.
    pub fields: FieldSet,
}

/// Computes what the volumes have in common before a connection-wide change (`conn_old_common_state`); `connection` is
/// the connection's own state, used where there are no volumes.
pub fn common_state(
    connection: ConnectionState,
    volumes: impl IntoIterator<Item = VolumeState>,
) -> CommonState {
    let mut volumes = volumes.into_iter();
    let state = volumes.next().unwrap_or(VolumeState { connection, ..VolumeState::INITIAL });
    let mut fields = FieldSet::ALL;
    for other in volumes {
        fields.role &= state.role == other.role;
        fields.peer &= state.peer == other.peer;
        fields.connection &= state.connection == other.connection;
        fields.disk &= state.disk == other.disk;
        fields.peer_disk &= state.peer_disk == other.peer_disk;
    }
    CommonState { state, fields }
}

/// One line about a change, such as `conn( WFConnection -> WFReportParams ) `: each changed field, followed by one
/// blank, in DRBD's order (states spec 3.8).
#[derive(Clone, Copy, Debug)]
pub struct ChangeLine {
    old: VolumeState,
    new: VolumeState,
    fields: FieldSet,
    pauses: bool,
    suspension: bool,
}

impl ChangeLine {
    /// A change of one volume by itself. A change of suspension that comes with it is a line of its own, at the
    /// connection: [`ChangeLine::suspension`].
    pub const fn volume(old: VolumeState, new: VolumeState) -> Self {
        Self { old, new, fields: FieldSet::ALL, pauses: true, suspension: false }
    }

    /// A change of one volume within a connection-wide change: without the fields told at the connection.
    pub const fn volume_within(old: VolumeState, new: VolumeState, common: &CommonState) -> Self {
        Self { old, new, fields: common.fields.others(), pauses: true, suspension: false }
    }

    /// A connection-wide change: what all volumes had in common; `new` has the highest new states.
    pub const fn connection(common: &CommonState, new: VolumeState) -> Self {
        Self { old: common.state, new, fields: common.fields, pauses: false, suspension: true }
    }

    /// The change of the suspension alone.
    pub const fn suspension(old: VolumeState, new: VolumeState) -> Self {
        Self { old, new, fields: FieldSet::NONE, pauses: false, suspension: true }
    }

    /// Whether there is nothing to tell.
    pub fn is_empty(&self) -> bool {
        let (old, new, fields) = (&self.old, &self.new, &self.fields);
        !((fields.role && old.role != new.role)
            || (fields.peer && old.peer != new.peer)
            || (fields.connection && old.connection != new.connection)
            || (fields.disk && old.disk != new.disk)
            || (fields.peer_disk && old.peer_disk != new.peer_disk)
            || (self.pauses
                && (old.after_isp, old.peer_isp, old.user_isp)
                    != (new.after_isp, new.peer_isp, new.user_isp))
            || (self.suspension && old.suspension.any() != new.suspension.any()))
    }
}

impl fmt::Display for ChangeLine {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (old, new, fields) = (&self.old, &self.new, &self.fields);
        field(formatter, fields.role, "role", old.role, new.role)?;
        field(formatter, fields.peer, "peer", old.peer, new.peer)?;
        field(formatter, fields.connection, "conn", old.connection, new.connection)?;
        field(formatter, fields.disk, "disk", old.disk, new.disk)?;
        field(formatter, fields.peer_disk, "pdsk", old.peer_disk, new.peer_disk)?;
        let number = u8::from;
        field(formatter, self.pauses, "aftr_isp", number(old.after_isp), number(new.after_isp))?;
        field(formatter, self.pauses, "peer_isp", number(old.peer_isp), number(new.peer_isp))?;
        field(formatter, self.pauses, "user_isp", number(old.user_isp), number(new.user_isp))?;
        let (was, is) = (number(old.suspension.any()), number(new.suspension.any()));
        field(formatter, self.suspension, "susp", was, is)
    }
}

fn field<T: PartialEq + fmt::Display>(
    formatter: &mut fmt::Formatter<'_>,
    shown: bool,
    name: &str,
    old: T,
    new: T,
) -> fmt::Result {
    if shown && old != new { write!(formatter, "{name}( {old} -> {new} ) ") } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use udrbd_units::{DiskState, Role};

    use super::super::volume::Suspension;
    use super::*;

    fn connected() -> VolumeState {
        VolumeState {
            peer: Role::Secondary,
            connection: ConnectionState::Connected,
            disk: DiskState::UpToDate,
            peer_disk: DiskState::UpToDate,
            ..VolumeState::INITIAL
        }
    }

    #[test]
    fn a_volume_line_shows_changed_fields_in_order() {
        let new = VolumeState {
            role: Role::Primary,
            connection: ConnectionState::PausedSyncT,
            disk: DiskState::Inconsistent,
            user_isp: true,
            suspension: Suspension { user: true, ..Suspension::NONE },
            ..connected()
        };
        assert_eq!(
            ChangeLine::volume(connected(), new).to_string(),
            "role( Secondary -> Primary ) conn( Connected -> PausedSyncT ) disk( UpToDate -> Inconsistent ) \
             user_isp( 0 -> 1 ) "
        );
        assert_eq!(ChangeLine::suspension(connected(), new).to_string(), "susp( 0 -> 1 ) ");
        assert!(ChangeLine::volume(connected(), connected()).is_empty());
        assert!(!ChangeLine::suspension(connected(), new).is_empty());
    }

    #[test]
    fn what_volumes_share_is_told_once() {
        let first = connected();
        let second = VolumeState { disk: DiskState::Inconsistent, ..connected() };
        let common = common_state(ConnectionState::WFReportParams, [first, second]);
        let lost = |state| VolumeState {
            peer: Role::Unknown,
            connection: ConnectionState::NetworkFailure,
            peer_disk: DiskState::Unknown,
            disk: DiskState::Outdated,
            ..state
        };
        assert_eq!(
            ChangeLine::connection(&common, lost(first)).to_string(),
            "peer( Secondary -> Unknown ) conn( Connected -> NetworkFailure ) pdsk( UpToDate -> DUnknown ) "
        );
        assert_eq!(
            ChangeLine::volume_within(second, lost(second), &common).to_string(),
            "disk( Inconsistent -> Outdated ) "
        );
    }

    #[test]
    fn without_volumes_the_connection_speaks_for_itself() {
        let common = common_state(ConnectionState::WFConnection, []);
        let new = VolumeState { connection: ConnectionState::Disconnecting, ..VolumeState::INITIAL };
        assert_eq!(
            ChangeLine::connection(&common, new).to_string(),
            "conn( WFConnection -> Disconnecting ) "
        );
    }
}
