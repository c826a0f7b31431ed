//! Questions about states that several decisions share.

use udrbd_units::{ConnectionState, DiskState, Role};

use super::volume::VolumeState;

/// Whether a change of one volume must be agreed with the peer (W1 to W7, `cl_wide_st_chg`, states spec 4.1).
/// Everything else is decided locally and reported afterwards.
pub fn needs_peer(old: VolumeState, new: VolumeState) -> bool {
    use ConnectionState::{Connected, Disconnecting, StartingSyncS, StartingSyncT, VerifyS, WFReportParams};
    let was_connected = old.connection >= Connected;
    let becomes = |connection| old.connection != connection && new.connection == connection;
    let promotes = old.role != Role::Primary && new.role == Role::Primary;
    let fails_the_disk = old.disk != DiskState::Failed && new.disk == DiskState::Failed;
    let stays_connected = was_connected && new.connection >= Connected;
    (stays_connected && (promotes || becomes(StartingSyncT) || becomes(StartingSyncS) || fails_the_disk))
        || (was_connected && new.connection == Disconnecting)
        || (old.connection == Connected && matches!(new.connection, VerifyS | WFReportParams))
}

/// Whether application writes are mirrored to the peer (`drbd_should_do_remote`, states spec 11).
pub fn writes_go_to_peer(state: VolumeState) -> bool {
    state.peer_disk == DiskState::UpToDate
        || (state.peer_disk >= DiskState::Inconsistent
            && state.connection >= ConnectionState::WFBitMapT
            && state.connection < ConnectionState::Ahead)
}

/// Whether application writes are only announced to the peer as out of sync (`drbd_should_send_out_of_sync`).
pub fn out_of_sync_goes_to_peer(state: VolumeState) -> bool {
    matches!(state.connection, ConnectionState::Ahead | ConnectionState::WFBitMapS)
}

/// Whether a change of the peer's disk state means that its data can no longer follow: the moment a Primary starts a
/// new generation (`lost_contact_to_peer_data`, states spec 5.1).
pub fn contact_to_peers_data_lost(old: DiskState, new: DiskState) -> bool {
    let out_of_reach = |disk| matches!(disk, DiskState::Unknown | DiskState::Outdated);
    let had_data = old >= DiskState::Inconsistent && !out_of_reach(old);
    let has_data = new >= DiskState::Inconsistent && !out_of_reach(new);
    let learned_of_the_loss = old == DiskState::Unknown
        && matches!(new, DiskState::Diskless | DiskState::Failed | DiskState::Outdated);
    (had_data && !has_data) || learned_of_the_loss
}

/// Whether a state received from the peer (`P_STATE`, as the peer sees it) calls for the handshake about the data
/// (states spec 6.4 step 7). The caller has checked that the peer's identifiers are known. `own` is the state before
/// this packet; `consider_resync` the flag CONSIDER_RESYNC.
pub fn resync_should_be_considered(own: VolumeState, received: VolumeState, consider_resync: bool) -> bool {
    use ConnectionState::{Connected, StartingSyncS, WFBitMapT};
    let negotiating = DiskState::Negotiating;
    if received.disk < negotiating || own.disk < negotiating {
        return false;
    }
    let attaching = received.disk == negotiating || own.disk == negotiating;
    let peer_starts = (StartingSyncS..=WFBitMapT).contains(&received.connection);
    own.connection < Connected
        || (own.connection == Connected && (attaching || peer_starts))
        || consider_resync
}

#[cfg(test)]
mod tests {
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

    fn with_connection(state: VolumeState, connection: ConnectionState) -> VolumeState {
        VolumeState { connection, ..state }
    }

    #[test]
    fn w1_to_w7_need_the_peer() {
        use ConnectionState as C;
        let old = connected();
        assert!(needs_peer(old, VolumeState { role: Role::Primary, ..old }), "W1");
        assert!(needs_peer(old, with_connection(old, C::StartingSyncT)), "W2");
        assert!(needs_peer(old, with_connection(old, C::StartingSyncS)), "W3");
        assert!(needs_peer(old, VolumeState { disk: DiskState::Failed, ..old }), "W4");
        assert!(
            needs_peer(with_connection(old, C::SyncSource), with_connection(old, C::Disconnecting)),
            "W5"
        );
        assert!(needs_peer(old, with_connection(old, C::VerifyS)), "W6");
        assert!(needs_peer(old, with_connection(old, C::WFReportParams)), "W7");
    }

    #[test]
    fn the_rest_is_local() {
        use ConnectionState as C;
        let old = connected();
        let primary = VolumeState { role: Role::Primary, ..old };
        assert!(!needs_peer(primary, old), "secondary");
        assert!(!needs_peer(old, VolumeState { user_isp: true, ..old }));
        assert!(!needs_peer(with_connection(old, C::SyncTarget), with_connection(old, C::WFReportParams)));
        let alone = with_connection(old, C::WFConnection);
        assert!(!needs_peer(alone, VolumeState { role: Role::Primary, ..alone }));
        assert!(!needs_peer(alone, VolumeState { disk: DiskState::Failed, ..alone }));
    }

    #[test]
    fn writes_go_where_they_are_wanted() {
        use ConnectionState as C;
        let target = VolumeState { peer_disk: DiskState::Inconsistent, ..connected() };
        assert!(writes_go_to_peer(connected()));
        assert!(!writes_go_to_peer(target));
        assert!(!writes_go_to_peer(with_connection(target, C::WFBitMapS)));
        assert!(writes_go_to_peer(with_connection(target, C::WFBitMapT)));
        assert!(writes_go_to_peer(with_connection(target, C::PausedSyncT)));
        assert!(!writes_go_to_peer(with_connection(target, C::Ahead)));
        assert!(out_of_sync_goes_to_peer(with_connection(target, C::Ahead)));
        assert!(out_of_sync_goes_to_peer(with_connection(target, C::WFBitMapS)));
        assert!(!out_of_sync_goes_to_peer(connected()));
    }

    #[test]
    fn contact_is_lost_once() {
        use DiskState as D;
        let lost = [
            (D::UpToDate, D::Unknown),
            (D::UpToDate, D::Failed),
            (D::UpToDate, D::Diskless),
            (D::UpToDate, D::Outdated),
            (D::Inconsistent, D::Unknown),
            (D::Consistent, D::Diskless),
            (D::Unknown, D::Diskless),
            (D::Unknown, D::Failed),
            (D::Unknown, D::Outdated),
        ];
        for old in D::ALL {
            for new in D::ALL {
                let expected = lost.contains(&(*old, *new))
                    || (matches!(old, D::Inconsistent | D::Consistent | D::UpToDate)
                        && (*new < D::Inconsistent || matches!(new, D::Unknown | D::Outdated)));
                assert_eq!(contact_to_peers_data_lost(*old, *new), expected, "{old} -> {new}");
            }
        }
        assert!(!contact_to_peers_data_lost(D::Outdated, D::Unknown));
        assert!(!contact_to_peers_data_lost(D::Unknown, D::Inconsistent));
        assert!(!contact_to_peers_data_lost(D::Failed, D::Diskless));
    }

    #[test]
    fn the_handshake_runs_when_data_meet() {
        use ConnectionState as C;
        let joining = with_connection(connected(), C::WFReportParams);
        assert!(resync_should_be_considered(joining, connected(), false));
        assert!(!resync_should_be_considered(connected(), connected(), false));
        assert!(resync_should_be_considered(connected(), connected(), true));
        let attaching = VolumeState { disk: DiskState::Negotiating, ..connected() };
        assert!(resync_should_be_considered(connected(), attaching, false));
        assert!(resync_should_be_considered(attaching, connected(), false));
        let starting = with_connection(connected(), C::WFBitMapT);
        assert!(resync_should_be_considered(connected(), starting, false));
        assert!(!resync_should_be_considered(with_connection(connected(), C::WFBitMapS), starting, false));
        let diskless = VolumeState { disk: DiskState::Diskless, ..connected() };
        assert!(!resync_should_be_considered(joining, diskless, true));
    }
}
