//! What the volumes of a resource are together.

use udrbd_units::{ConnectionState, DiskState, Role};

use super::volume::{Suspension, VolumeState};

/// The own role of a resource: the highest over its volumes, Secondary without volumes (`conn_highest_role`).
pub fn highest_role(volumes: impl IntoIterator<Item = VolumeState>) -> Role {
    volumes.into_iter().map(|state| state.role).fold(Role::Secondary, higher)
}

/// The peer's role: the highest over the volumes, Unknown without volumes (`conn_highest_peer`).
pub fn highest_peer(volumes: impl IntoIterator<Item = VolumeState>) -> Role {
    volumes.into_iter().map(|state| state.peer).fold(Role::Unknown, higher)
}

/// The lowest and the highest of every field over the volumes of a resource. For roles: Unknown < Secondary < Primary.
/// The pause flags are false in both; the suspension is the resource's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateRange {
    /// The lowest of every field.
    pub lowest: VolumeState,
    /// The highest of every field.
    pub highest: VolumeState,
}

/// Computes the range over the volumes. Without volumes both ends are an unconfigured volume with the `connection`
/// given (states spec 3.7 step 5).
pub fn state_range(
    connection: ConnectionState,
    suspension: Suspension,
    volumes: impl IntoIterator<Item = VolumeState>,
) -> StateRange {
    let plain = |state: VolumeState| VolumeState {
        after_isp: false,
        peer_isp: false,
        user_isp: false,
        suspension,
        ..state
    };
    let mut volumes = volumes.into_iter();
    let Some(first) = volumes.next() else {
        let none = VolumeState { connection, suspension, ..VolumeState::INITIAL };
        return StateRange { lowest: none, highest: none };
    };
    let start = StateRange { lowest: plain(first), highest: plain(first) };
    volumes.fold(start, |range, state| StateRange {
        lowest: VolumeState {
            role: lower(range.lowest.role, state.role),
            peer: lower(range.lowest.peer, state.peer),
            connection: range.lowest.connection.min(state.connection),
            disk: range.lowest.disk.min(state.disk),
            peer_disk: range.lowest.peer_disk.min(state.peer_disk),
            ..range.lowest
        },
        highest: VolumeState {
            role: higher(range.highest.role, state.role),
            peer: higher(range.highest.peer, state.peer),
            connection: range.highest.connection.max(state.connection),
            disk: range.highest.disk.max(state.disk),
            peer_disk: range.highest.peer_disk.max(state.peer_disk),
            ..range.highest
        },
    })
}

fn higher(one: Role, other: Role) -> Role {
    if other.rank() > one.rank() { other } else { one }
}

fn lower(one: Role, other: Role) -> Role {
    if other.rank() < one.rank() { other } else { one }
}

impl StateRange {
    /// Whether every volume has both disks UpToDate (asked before `unfence-peer`, states spec 12.4 step 8).
    pub fn all_up_to_date(&self) -> bool {
        self.lowest.disk == DiskState::UpToDate && self.lowest.peer_disk == DiskState::UpToDate
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(role: Role, peer: Role, disk: DiskState) -> VolumeState {
        VolumeState { role, peer, disk, ..VolumeState::INITIAL }
    }

    #[test]
    fn an_empty_resource_is_secondary_with_an_unknown_peer() {
        assert_eq!(highest_role([]), Role::Secondary);
        assert_eq!(highest_peer([]), Role::Unknown);
        let range = state_range(ConnectionState::WFConnection, Suspension::NONE, []);
        assert_eq!(range.lowest, range.highest);
        assert_eq!(range.lowest.connection, ConnectionState::WFConnection);
        assert_eq!(range.lowest.peer_disk, DiskState::Unknown);
    }

    #[test]
    fn roles_are_ordered_by_rank_not_by_number() {
        let volumes = [
            volume(Role::Primary, Role::Secondary, DiskState::Inconsistent),
            volume(Role::Secondary, Role::Unknown, DiskState::UpToDate),
        ];
        assert_eq!(highest_role(volumes), Role::Primary);
        assert_eq!(highest_peer(volumes), Role::Secondary);
        let range = state_range(ConnectionState::StandAlone, Suspension::NONE, volumes);
        assert_eq!((range.lowest.role, range.highest.role), (Role::Secondary, Role::Primary));
        assert_eq!((range.lowest.peer, range.highest.peer), (Role::Unknown, Role::Secondary));
        assert_eq!((range.lowest.disk, range.highest.disk), (DiskState::Inconsistent, DiskState::UpToDate));
        assert!(!range.all_up_to_date());
    }
}
