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

fn context(state: VolumeState) -> Context {
    Context {
        present_disk: state.disk,
        network: Some(NetworkContext::default()),
        highest_peer: state.peer,
        agreed_protocol: 101,
        ..Context::INITIAL
    }
}

fn soft(old: VolumeState, request: StateRequest) -> Result<Change, Refusal> {
    decide(old, request.apply(old), Enforcement::Soft, &context(old))
}

#[test]
fn asking_for_what_is_there_is_nothing_to_do() {
    let change = soft(connected(), StateRequest::role(Role::Secondary)).unwrap();
    assert_eq!((change.result, change.is_change()), (Code::NothingToDo, false));
    // What the corrections take back is nothing to do either: `outdate` while connected.
    let change = soft(connected(), StateRequest::disk(D::Outdated)).unwrap();
    assert!(!change.is_change());
}

#[test]
fn a_hard_change_skips_all_but_the_transition_checks() {
    let primary = VolumeState { role: Role::Primary, peer_disk: D::Diskless, ..connected() };
    let failed = StateRequest::disk(D::Failed);
    let refusal = soft(primary, failed).unwrap_err();
    assert_eq!(refusal.code, Code::NoUpToDateDisk);
    let change = decide(primary, failed.apply(primary), Enforcement::Hard, &context(primary)).unwrap();
    assert!(change.is_change());
    assert_eq!(change.result, Code::NothingToDo, "DRBD's oddity for changes that leave the connection alone");
    let gone = VolumeState { disk: D::Diskless, ..primary };
    let refusal = decide(gone, failed.apply(gone), Enforcement::Hard, &context(gone)).unwrap_err();
    assert_eq!(refusal.code, Code::IsDiskless);
}

#[test]
fn an_illegal_state_may_stay_illegal() {
    // Two Primaries after a hard change: pausing the resync is no worse.
    let both = VolumeState { role: Role::Primary, peer: Role::Primary, ..connected() };
    let pause = StateRequest { user_isp: Some(true), ..StateRequest::NONE };
    assert!(soft(both, pause).unwrap().is_change());
    // But it must be the very same reason.
    let opened = Context { open_count: 1, ..context(both) };
    let demoted = StateRequest::role(Role::Secondary).apply(both);
    assert_eq!(decide(both, demoted, Enforcement::Soft, &opened).unwrap_err().code, Code::DeviceInUse);
}

#[test]
fn a_refusal_reads_as_drbds() {
    let old = VolumeState { disk: D::Outdated, ..VolumeState::INITIAL };
    let refusal = soft(old, StateRequest::role(Role::Primary)).unwrap_err();
    let lines = refusal.lines().unwrap();
    assert_eq!(
        lines,
        [
            "State change failed: Need access to UpToDate data",
            "  state = { cs:StandAlone ro:Secondary/Unknown ds:Outdated/DUnknown r----- }",
            " wanted = { cs:StandAlone ro:Primary/Unknown ds:Outdated/DUnknown r----- }",
        ]
    );
    let transient = Refusal { code: Code::InTransientState, ..refusal };
    assert_eq!(transient.lines(), None, "never logged");
    let request = StateRequest::connection(C::Disconnecting);
    assert_eq!(
        Refusal::connection_lines(Code::AlreadyStandAlone, request, C::StandAlone),
        [
            "State change failed: Can not disconnect a StandAlone device",
            " mask = 0x1f0 val = 0x10",
            " old_conn:StandAlone wanted_conn:Disconnecting",
        ]
    );
}

#[test]
fn a_promotion_asks_the_peer_only_while_connected() {
    let plan =
        |old: VolumeState| plan_request(old, StateRequest::role(Role::Primary).apply(old), &context(old));
    assert_eq!(plan(connected()), Ok(RequestPlan::AskPeer));
    let alone =
        VolumeState { connection: C::StandAlone, peer: Role::Unknown, peer_disk: D::Unknown, ..connected() };
    assert_eq!(plan(alone), Ok(RequestPlan::Local));
    let taken = VolumeState { peer: Role::Primary, ..connected() };
    assert_eq!(plan(taken).unwrap_err().code, Code::TwoPrimaries);
    // A refused local request is not refused here, but where it is applied.
    let worthless = VolumeState { disk: D::Inconsistent, ..alone };
    assert_eq!(plan(worthless), Ok(RequestPlan::Local));
}

#[test]
fn a_pending_request_ends_when_the_state_moves_under_it() {
    let old = connected();
    let request = StateRequest::role(Role::Primary);
    let waiting = |now: VolumeState| request_outcome_while_waiting(now, request.apply(now), &context(now));
    assert_eq!(waiting(old), None);
    assert_eq!(waiting(VolumeState { peer: Role::Primary, ..old }), Some(Code::TwoPrimaries));
    let lost =
        VolumeState { connection: C::NetworkFailure, peer_disk: D::Unknown, peer: Role::Unknown, ..old };
    assert_eq!(waiting(lost), Some(Code::ClusterWideNotNeeded));
    let invalidate = StateRequest::connection(C::StartingSyncT);
    let outcome = request_outcome_while_waiting(lost, invalidate.apply(lost), &context(lost));
    assert_eq!(outcome, Some(Code::ClusterWideNotNeeded), "no need goes before a refused transition");
}

#[test]
fn a_connection_wide_change_is_refused_by_the_first_volume() {
    let request = StateRequest { disk: Some(D::Outdated), ..StateRequest::connection(C::TearDown) };
    let good = connected();
    let bad = VolumeState { disk: D::Inconsistent, ..connected() };
    let volumes = [good, bad].map(|state| (state, context(state)));
    let check =
        |failure| check_connection_change(C::WFReportParams, request, Enforcement::Soft, failure, volumes);
    let (code, refused) = check(OutdateFailure::Refuse).unwrap_err();
    assert_eq!((code, refused.map(|(index, _)| index)), (Code::LowerThanOutdated, Some(1)));
    assert_eq!(check(OutdateFailure::Ignore), Ok(Code::Success));
    let new = plan_connection_volume(bad, request, OutdateFailure::Ignore, &context(bad));
    assert_eq!((new.disk, new.connection), (D::Inconsistent, C::TearDown));
    let standalone = check_connection_change(
        C::StandAlone,
        StateRequest::connection(C::Disconnecting),
        Enforcement::Soft,
        OutdateFailure::Refuse,
        [],
    );
    assert_eq!(standalone, Err((Code::AlreadyStandAlone, None)));
}
