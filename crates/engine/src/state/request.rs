//! What a state change asks for: DRBD's (mask, value) pairs.

use udrbd_units::{ConnectionState, DiskState, Role, UnknownState};

use super::volume::{VolumeState, word};

/// The fields a change asks for; `None` leaves a field as it is. The typed form of DRBD's (mask, value) pairs over the
/// state word (states spec 3.1), in which a field is either wholly in the mask or not at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct StateRequest {
    /// This node's role.
    pub role: Option<Role>,
    /// The peer's role.
    pub peer: Option<Role>,
    /// The connection.
    pub connection: Option<ConnectionState>,
    /// The own disk.
    pub disk: Option<DiskState>,
    /// The peer's disk.
    pub peer_disk: Option<DiskState>,
    /// Pause by a dependency.
    pub after_isp: Option<bool>,
    /// Pause by the peer.
    pub peer_isp: Option<bool>,
    /// Pause by the operator.
    pub user_isp: Option<bool>,
    /// Suspension by the operator.
    pub suspended_by_user: Option<bool>,
    /// Suspension for lack of data.
    pub suspended_no_data: Option<bool>,
    /// Suspension while fencing.
    pub suspended_fencing: Option<bool>,
}

impl StateRequest {
    /// A request that asks for nothing: start of a struct update.
    pub const NONE: Self = Self {
        role: None,
        peer: None,
        connection: None,
        disk: None,
        peer_disk: None,
        after_isp: None,
        peer_isp: None,
        user_isp: None,
        suspended_by_user: None,
        suspended_no_data: None,
        suspended_fencing: None,
    };

    /// Asks for a role.
    pub const fn role(role: Role) -> Self {
        Self { role: Some(role), ..Self::NONE }
    }

    /// Asks for a connection state.
    pub const fn connection(connection: ConnectionState) -> Self {
        Self { connection: Some(connection), ..Self::NONE }
    }

    /// Asks for a state of the own disk.
    pub const fn disk(disk: DiskState) -> Self {
        Self { disk: Some(disk), ..Self::NONE }
    }

    /// Asks for a state of the peer's disk.
    pub const fn peer_disk(peer_disk: DiskState) -> Self {
        Self { peer_disk: Some(peer_disk), ..Self::NONE }
    }

    /// Asks for the end of every suspension (`resume-io`).
    pub const RESUME: Self = Self {
        suspended_by_user: Some(false),
        suspended_no_data: Some(false),
        suspended_fencing: Some(false),
        ..Self::NONE
    };

    /// The state wanted: `(current & ~mask) | value`.
    #[must_use]
    pub fn apply(self, present: VolumeState) -> VolumeState {
        let mut wanted = present;
        wanted.role = self.role.unwrap_or(wanted.role);
        wanted.peer = self.peer.unwrap_or(wanted.peer);
        wanted.connection = self.connection.unwrap_or(wanted.connection);
        wanted.disk = self.disk.unwrap_or(wanted.disk);
        wanted.peer_disk = self.peer_disk.unwrap_or(wanted.peer_disk);
        wanted.after_isp = self.after_isp.unwrap_or(wanted.after_isp);
        wanted.peer_isp = self.peer_isp.unwrap_or(wanted.peer_isp);
        wanted.user_isp = self.user_isp.unwrap_or(wanted.user_isp);
        wanted.suspension.user = self.suspended_by_user.unwrap_or(wanted.suspension.user);
        wanted.suspension.no_data = self.suspended_no_data.unwrap_or(wanted.suspension.no_data);
        wanted.suspension.fencing = self.suspended_fencing.unwrap_or(wanted.suspension.fencing);
        wanted
    }

    /// The (mask, value) pair of P_STATE_CHG_REQ and P_CONN_ST_CHG_REQ.
    pub fn to_raw(self) -> (u32, u32) {
        // What `apply` puts on a word of zeros is the value; StandAlone, Diskless and Unknown are 0.
        let zero =
            VolumeState { role: Role::Unknown, peer_disk: DiskState::Diskless, ..VolumeState::INITIAL };
        let present = [
            (self.role.is_some(), word::ROLE),
            (self.peer.is_some(), word::PEER),
            (self.connection.is_some(), word::CONNECTION),
            (self.disk.is_some(), word::DISK),
            (self.peer_disk.is_some(), word::PEER_DISK),
            (self.after_isp.is_some(), word::AFTER_ISP),
            (self.peer_isp.is_some(), word::PEER_ISP),
            (self.user_isp.is_some(), word::USER_ISP),
            (self.suspended_by_user.is_some(), word::SUSPENDED_BY_USER),
            (self.suspended_no_data.is_some(), word::SUSPENDED_NO_DATA),
            (self.suspended_fencing.is_some(), word::SUSPENDED_FENCING),
        ];
        let mask = present.iter().filter(|(set, _)| *set).fold(0, |mask, (_, bits)| mask | bits);
        (mask, self.apply(zero).to_raw())
    }

    /// Reads a (mask, value) pair, for instance from a peer. Value bits outside the mask are ignored, as DRBD sends
    /// none.
    ///
    /// # Errors
    /// [`UnknownState`] where a value is no state of its kind or a field is only partly in the mask.
    pub fn from_raw(mask: u32, value: u32) -> Result<Self, UnknownState> {
        for field in [word::ROLE, word::PEER, word::CONNECTION, word::DISK, word::PEER_DISK] {
            if mask & field != 0 && mask & field != field {
                return Err(UnknownState(format!("mask {mask:#x}")));
            }
        }
        let state = VolumeState::from_raw(value & mask)?;
        Ok(Self {
            role: in_mask(mask, word::ROLE, state.role),
            peer: in_mask(mask, word::PEER, state.peer),
            connection: in_mask(mask, word::CONNECTION, state.connection),
            disk: in_mask(mask, word::DISK, state.disk),
            peer_disk: in_mask(mask, word::PEER_DISK, state.peer_disk),
            after_isp: in_mask(mask, word::AFTER_ISP, state.after_isp),
            peer_isp: in_mask(mask, word::PEER_ISP, state.peer_isp),
            user_isp: in_mask(mask, word::USER_ISP, state.user_isp),
            suspended_by_user: in_mask(mask, word::SUSPENDED_BY_USER, state.suspension.user),
            suspended_no_data: in_mask(mask, word::SUSPENDED_NO_DATA, state.suspension.no_data),
            suspended_fencing: in_mask(mask, word::SUSPENDED_FENCING, state.suspension.fencing),
        })
    }

    /// The peer's request in this node's point of view (`convert_state`, states spec 4.4): own and peer's side change
    /// places. A connection state that has no counterpart becomes StandAlone, which the checks refuse.
    #[must_use]
    pub fn from_peers_view(self) -> Self {
        let paused = match (self.after_isp, self.user_isp) {
            (None, None) => None,
            (after, user) => Some(after.unwrap_or(false) || user.unwrap_or(false)),
        };
        Self {
            role: self.peer,
            peer: self.role,
            connection: self.connection.map(seen_from_the_peer),
            disk: self.peer_disk,
            peer_disk: self.disk,
            peer_isp: paused,
            ..self
        }
    }
}

/// The own connection state that corresponds to one the peer asks for on its side.
fn seen_from_the_peer(connection: ConnectionState) -> ConnectionState {
    use ConnectionState::{
        Connected, Disconnecting, StandAlone, StartingSyncS, StartingSyncT, TearDown, VerifyS, VerifyT,
        WFReportParams,
    };
    match connection {
        WFReportParams => WFReportParams,
        Connected => Connected,
        StartingSyncS => StartingSyncT,
        StartingSyncT => StartingSyncS,
        Disconnecting => TearDown,
        VerifyS => VerifyT,
        _ => StandAlone,
    }
}

fn in_mask<T>(mask: u32, field: u32, value: T) -> Option<T> {
    (mask & field != 0).then_some(value)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_promotion_becomes_the_peers_promotion() {
        let request = StateRequest::role(Role::Primary);
        assert_eq!(request.to_raw(), (0x3, 0x1));
        assert_eq!(request.from_peers_view().to_raw(), (0xc, 0x4));
    }

    #[test]
    fn connection_states_map_to_their_counterparts() {
        use ConnectionState as C;
        let pairs = [
            (C::WFReportParams, C::WFReportParams),
            (C::Connected, C::Connected),
            (C::StartingSyncS, C::StartingSyncT),
            (C::StartingSyncT, C::StartingSyncS),
            (C::Disconnecting, C::TearDown),
            (C::VerifyS, C::VerifyT),
        ];
        for connection in C::ALL {
            let expected =
                pairs.iter().find(|(from, _)| from == connection).map_or(C::StandAlone, |(_, to)| *to);
            assert_eq!(StateRequest::connection(*connection).from_peers_view().connection, Some(expected));
        }
    }

    #[test]
    fn the_peers_pauses_arrive_as_one() {
        let request = StateRequest { user_isp: Some(true), after_isp: Some(false), ..StateRequest::NONE };
        assert_eq!(request.from_peers_view().peer_isp, Some(true));
        assert_eq!(StateRequest::NONE.from_peers_view().peer_isp, None);
    }

    #[test]
    fn half_a_field_in_the_mask_is_an_error() {
        assert!(StateRequest::from_raw(0x1, 0x1).is_err());
        assert!(StateRequest::from_raw(0x1f0, 0x1f0).is_err());
        assert_eq!(StateRequest::from_raw(0x3, 0xff01), Ok(StateRequest::role(Role::Primary)));
    }

    proptest! {
        #[test]
        fn pairs_read_back(mask: u32, value: u32) {
            if let Ok(request) = StateRequest::from_raw(mask, value) {
                let (mask_again, value_again) = request.to_raw();
                prop_assert_eq!(mask_again, mask & 0x007f_ffff);
                prop_assert_eq!(value_again, value & mask_again);
                prop_assert_eq!(StateRequest::from_raw(mask_again, value_again), Ok(request));
            }
        }
    }
}
