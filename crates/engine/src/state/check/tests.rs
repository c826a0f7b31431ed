use udrbd_units::{ConnectionState as C, DiskState as D, Role};

use super::super::context::NetworkContext;
use super::*;

fn connected() -> VolumeState {
    VolumeState {
        peer: Role::Secondary,
        connection: C::Connected,
        disk: D::UpToDate,
        peer_disk: D::UpToDate,
        ..VolumeState::INITIAL
    }
}

fn alone(role: Role, disk: D, peer_disk: D) -> VolumeState {
    VolumeState { role, disk, peer_disk, connection: C::WFConnection, ..VolumeState::INITIAL }
}

fn with(connection: C, disk: D, peer_disk: D) -> VolumeState {
    VolumeState { connection, disk, peer_disk, ..connected() }
}

fn context() -> Context {
    Context {
        present_disk: D::UpToDate,
        network: Some(NetworkContext { allow_two_primaries: false, has_verify_algorithm: true }),
        agreed_protocol: 101,
        ..Context::INITIAL
    }
}

fn valid(state: VolumeState) -> Code {
    check_valid(state, &context())
}

#[test]
fn t1_to_t7_in_order() {
    for old in C::ALL.iter().copied() {
        for new in C::ALL.iter().copied() {
            let expected = match (old, new) {
                _ if old == new => Code::NothingToDo,
                (C::StandAlone, C::Disconnecting) => Code::AlreadyStandAlone,
                (C::StandAlone, C::Unconnected) => Code::Success,
                (C::StandAlone, _) => Code::NeedConnection,
                _ if old < C::WFReportParams && new >= C::Connected => Code::NeedConnection,
                (C::Timeout | C::BrokenPipe | C::NetworkFailure | C::ProtocolError | C::TearDown, _)
                    if new != C::Unconnected && new != C::Disconnecting =>
                {
                    Code::InTransientState
                }
                (C::Disconnecting, other) if other != C::StandAlone => Code::InTransientState,
                _ => Code::Success,
            };
            assert_eq!(check_connection_transition(old, new), expected, "{old} -> {new}");
        }
    }
}

#[test]
fn a_disk_that_is_gone_cannot_fail() {
    let old = VolumeState { disk: D::Diskless, ..connected() };
    assert_eq!(check_transition(old, VolumeState { disk: D::Failed, ..old }), Code::IsDiskless);
    assert_eq!(check_transition(connected(), VolumeState { disk: D::Failed, ..old }), Code::NothingToDo);
}

#[test]
fn v1_and_v2_one_primary() {
    let both = VolumeState { role: Role::Primary, peer: Role::Primary, ..connected() };
    assert_eq!(valid(both), Code::TwoPrimaries);
    let allowed = Some(NetworkContext { allow_two_primaries: true, has_verify_algorithm: true });
    assert_eq!(check_valid(both, &Context { network: allowed, ..context() }), Code::Success);
    assert_eq!(check_valid(both, &Context { network: None, ..context() }), Code::Success);
    let other_volume = Context { highest_peer: Role::Primary, ..context() };
    let primary = VolumeState { role: Role::Primary, ..connected() };
    assert_eq!(check_valid(primary, &other_volume), Code::OtherVolumePeerPrimary);
    assert_eq!(check_valid(connected(), &other_volume), Code::Success);
    // Before everything else.
    let without_data = VolumeState { disk: D::Diskless, peer_disk: D::Diskless, ..both };
    assert_eq!(valid(without_data), Code::TwoPrimaries);
}

#[test]
fn v3_to_v6_a_role_needs_users_and_data() {
    let opened = Context { open_count: 1, ..context() };
    assert_eq!(check_valid(connected(), &opened), Code::DeviceInUse, "V3");
    assert_eq!(valid(alone(Role::Primary, D::Outdated, D::Outdated)), Code::NoUpToDateDisk, "V4");
    let fencing = |policy| Context { fencing: policy, ..context() };
    let lonely = alone(Role::Primary, D::UpToDate, D::Unknown);
    for policy in [FencingPolicy::ResourceOnly, FencingPolicy::ResourceAndStonith] {
        assert_eq!(check_valid(lonely, &fencing(policy)), Code::PrimaryWithoutOutdatedPeer, "V5");
        let fenced = VolumeState { peer_disk: D::Outdated, ..lonely };
        assert_eq!(check_valid(fenced, &fencing(policy)), Code::Success);
    }
    assert_eq!(check_valid(lonely, &fencing(FencingPolicy::DontCare)), Code::Success);
    let no_data =
        VolumeState { role: Role::Primary, disk: D::Inconsistent, peer_disk: D::Inconsistent, ..connected() };
    assert_eq!(valid(no_data), Code::NoUpToDateDisk, "V6");
}

#[test]
fn v7_to_v10_activity_needs_disks() {
    assert_eq!(valid(with(C::SyncTarget, D::Failed, D::UpToDate)), Code::NoLocalDisk, "V7");
    assert_eq!(valid(with(C::SyncSource, D::UpToDate, D::Diskless)), Code::NoRemoteDisk, "V8");
    assert_eq!(valid(with(C::Behind, D::Outdated, D::Consistent)), Code::NoUpToDateDisk, "V9");
    for connection in [C::Connected, C::WFBitMapS, C::SyncSource, C::PausedSyncS] {
        let outdated = with(connection, D::Outdated, D::UpToDate);
        assert_eq!(valid(outdated), Code::ConnectedOutdates, "V10 {connection}");
    }
    assert_eq!(valid(with(C::WFBitMapT, D::Outdated, D::UpToDate)), Code::Success);
}

#[test]
fn v11_and_v12_verify_needs_an_algorithm_and_a_peer_that_can() {
    for connection in [C::VerifyS, C::VerifyT] {
        let verifying = with(connection, D::UpToDate, D::UpToDate);
        let none = Some(NetworkContext::default());
        assert_eq!(check_valid(verifying, &Context { network: none, ..context() }), Code::NoVerifyAlg);
        assert_eq!(check_valid(verifying, &Context { agreed_protocol: 87, ..context() }), Code::NotSupported);
        assert_eq!(check_valid(verifying, &Context { agreed_protocol: 88, ..context() }), Code::Success);
    }
}

#[test]
fn v13_to_v15_connected_states_know_the_peers_disk() {
    let primary =
        VolumeState { role: Role::Primary, disk: D::Consistent, peer_disk: D::Outdated, ..connected() };
    assert_eq!(valid(primary), Code::NoUpToDateDisk, "V13");
    for connection in [C::StartingSyncS, C::StartingSyncT] {
        assert_eq!(valid(with(connection, D::UpToDate, D::Unknown)), Code::NeedConnection, "V14");
    }
    assert_eq!(valid(with(C::Connected, D::UpToDate, D::Unknown)), Code::ConnectedOutdates, "V15");
    assert_eq!(valid(alone(Role::Secondary, D::UpToDate, D::Unknown)), Code::Success);
}

/// Checks a soft transition in a plain context.
fn soft(old: VolumeState, new: VolumeState) -> Code {
    check_soft_transition(old, new, &context())
}

fn with_connection(state: VolumeState, connection: C) -> VolumeState {
    VolumeState { connection, ..state }
}

#[test]
fn x1_to_x6_requests_out_of_place() {
    let syncing = with(C::SyncSource, D::UpToDate, D::Inconsistent);
    for connection in [C::StartingSyncS, C::StartingSyncT] {
        assert_eq!(soft(syncing, with_connection(syncing, connection)), Code::ResyncRunning, "X1");
    }
    let standalone = with_connection(alone(Role::Secondary, D::UpToDate, D::Unknown), C::StandAlone);
    let disconnecting = with_connection(standalone, C::Disconnecting);
    assert_eq!(soft(standalone, disconnecting), Code::AlreadyStandAlone, "X2");
    let diskless = VolumeState { disk: D::Diskless, ..connected() };
    assert_eq!(soft(diskless, VolumeState { disk: D::Failed, ..diskless }), Code::IsDiskless, "X3");
    assert_eq!(soft(diskless, VolumeState { disk: D::Attaching, ..diskless }), Code::Success, "X3");
    assert_eq!(soft(disconnecting, with_connection(standalone, C::WFConnection)), Code::NoNetConfig, "X4");
    let inconsistent = VolumeState { disk: D::Inconsistent, ..standalone };
    let outdated = VolumeState { disk: D::Outdated, ..standalone };
    assert_eq!(soft(inconsistent, outdated), Code::LowerThanOutdated, "X5");
    assert_eq!(soft(VolumeState { disk: D::Attaching, ..standalone }, outdated), Code::Success, "X5");
    assert_eq!(soft(standalone, outdated), Code::Success, "X5");
    let unconnected = with_connection(standalone, C::Unconnected);
    assert_eq!(soft(unconnected, disconnecting), Code::InTransientState, "X6");
}

#[test]
fn x7_nothing_but_the_connection_changes_during_the_handshake() {
    let handshaking = Context { state_sent: true, ..context() };
    let waiting = alone(Role::Secondary, D::UpToDate, D::Unknown);
    let exchanging = with_connection(waiting, C::WFReportParams);
    let soft = |old, new| check_soft_transition(old, new, &handshaking);
    assert_eq!(soft(waiting, exchanging), Code::Success);
    assert_eq!(soft(exchanging, connected()), Code::Success);
    assert_eq!(soft(exchanging, with(C::WFBitMapT, D::Outdated, D::UpToDate)), Code::Success);
    assert_eq!(soft(exchanging, VolumeState { role: Role::Primary, ..exchanging }), Code::InTransientState);
    assert_eq!(soft(exchanging, with_connection(exchanging, C::Disconnecting)), Code::InTransientState);
    assert_eq!(soft(connected(), VolumeState { user_isp: true, ..connected() }), Code::InTransientState);
}

#[test]
fn nothing_comes_before_the_resync_of_a_new_part_that_decides_who_is_its_source() {
    let due = Context { resync_due: true, ..context() };
    let promoted = VolumeState { role: Role::Primary, ..connected() };
    let peer_promoted = VolumeState { peer: Role::Primary, ..connected() };
    let demoted = VolumeState { peer: Role::Primary, ..promoted };
    let changes = [promoted, peer_promoted, with_connection(connected(), C::VerifyS)].into_iter().chain(
        [C::StartingSyncS, C::StartingSyncT].map(|connection| with_connection(connected(), connection)),
    );
    for new in changes {
        assert_eq!(check_soft_transition(connected(), new, &due), Code::InTransientState, "{new:?}");
        assert_eq!(soft(connected(), new), Code::Success, "{new:?}");
    }
    assert_eq!(check_soft_transition(demoted, peer_promoted, &due), Code::Success);
}

#[test]
fn x8_no_promotion_while_a_resync_to_here_is_starting() {
    let starting = with(C::WFBitMapT, D::Outdated, D::UpToDate);
    let promoted = |state| VolumeState { role: Role::Primary, ..state };
    assert_eq!(soft(starting, promoted(starting)), Code::InTransientState);
    let running = with(C::SyncTarget, D::Inconsistent, D::UpToDate);
    assert_eq!(soft(running, promoted(running)), Code::Success);
    assert_eq!(soft(starting, promoted(running)), Code::InTransientState, "the connection changes");
    let diskless = with(C::Connected, D::Diskless, D::UpToDate);
    assert_eq!(soft(diskless, promoted(diskless)), Code::Success);
    assert_eq!(soft(connected(), promoted(connected())), Code::Success);
}

#[test]
fn x9_to_x13_connections_needed() {
    let waiting = alone(Role::Secondary, D::UpToDate, D::Unknown);
    let syncing = with(C::SyncSource, D::UpToDate, D::Inconsistent);
    for connection in [C::VerifyS, C::VerifyT] {
        assert_eq!(soft(waiting, with_connection(waiting, connection)), Code::NeedConnection, "X9");
        assert_eq!(soft(syncing, with_connection(syncing, connection)), Code::ResyncRunning, "X10");
        let verifying = with_connection(connected(), connection);
        assert_eq!(soft(verifying, VolumeState { user_isp: true, ..verifying }), Code::Success, "X10");
        assert_eq!(soft(connected(), verifying), Code::Success);
    }
    for connection in [C::StartingSyncS, C::StartingSyncT] {
        assert_eq!(soft(waiting, with_connection(waiting, connection)), Code::NeedConnection, "X11");
    }
    for connection in [C::SyncSource, C::SyncTarget] {
        assert_eq!(soft(waiting, with_connection(waiting, connection)), Code::NeedConnection, "X12");
        let exchanging = with_connection(waiting, C::WFReportParams);
        assert_eq!(soft(exchanging, with_connection(waiting, connection)), Code::Success, "X12");
    }
    let outdating = VolumeState { connection: C::Disconnecting, peer_disk: D::Outdated, ..waiting };
    assert_eq!(soft(waiting, outdating), Code::OutdateWithoutConnection, "X13");
    assert_eq!(soft(connected(), outdating), Code::Success, "X13");
}

#[test]
fn the_last_reason_of_a_soft_refusal_wins() {
    let standalone = with_connection(alone(Role::Secondary, D::UpToDate, D::Unknown), C::StandAlone);
    let outdating = VolumeState { connection: C::Disconnecting, peer_disk: D::Outdated, ..standalone };
    assert_eq!(soft(standalone, outdating), Code::OutdateWithoutConnection, "X13 over X2");
}
