use proptest::prelude::*;

use udrbd_units::{ConnectionState as C, DiskState as D, GenerationId, Role};

use super::super::context::RememberedDisks;
use super::super::volume::Suspension;
use super::*;

/// Both up to date and connected.
fn connected() -> VolumeState {
    VolumeState {
        peer: Role::Secondary,
        connection: C::Connected,
        disk: D::UpToDate,
        peer_disk: D::UpToDate,
        ..VolumeState::INITIAL
    }
}

/// A resync source, or with `SyncTarget` as `connection` a target.
fn syncing(connection: C, disk: D, peer_disk: D) -> VolumeState {
    VolumeState { connection, disk, peer_disk, ..connected() }
}

fn context() -> Context {
    Context { present_disk: D::UpToDate, ..Context::INITIAL }
}

fn corrected(wanted: VolumeState) -> (VolumeState, Option<Warning>) {
    sanitise(connected(), wanted, &context())
}

#[test]
fn s1_a_lost_connection_takes_the_peer_with_it() {
    for connection in C::ALL.iter().copied().filter(|connection| *connection < C::Connected) {
        let wanted = VolumeState { connection, peer: Role::Primary, peer_isp: true, ..connected() };
        let expected = VolumeState { connection, peer_disk: D::Unknown, peer: Role::Unknown, ..connected() };
        assert_eq!(corrected(wanted), (expected, None), "{connection}");
    }
}

#[test]
fn s1_what_is_known_of_the_peers_data_survives() {
    for (before, after) in [
        (D::Diskless, D::Unknown),
        (D::Attaching, D::Unknown),
        (D::Failed, D::Unknown),
        (D::Negotiating, D::Unknown),
        (D::Inconsistent, D::Inconsistent),
        (D::Outdated, D::Outdated),
        (D::Unknown, D::Unknown),
        (D::Consistent, D::Unknown),
        (D::UpToDate, D::Unknown),
    ] {
        let wanted = VolumeState { connection: C::BrokenPipe, peer_disk: before, ..connected() };
        assert_eq!(corrected(wanted).0.peer_disk, after, "{before}");
    }
}

#[test]
fn s2_an_unconfigured_volume_waits_for_nobody() {
    let unconfigured = VolumeState { after_isp: true, user_isp: true, ..VolumeState::INITIAL };
    let (new, _) = sanitise(unconfigured, unconfigured, &Context::INITIAL);
    assert!(!new.after_isp);
    assert!(new.user_isp, "the operator's pause stays");
    let attached = VolumeState { disk: D::UpToDate, ..unconfigured };
    assert!(sanitise(attached, attached, &context()).0.after_isp);
}

#[test]
fn s3_without_a_disk_there_is_no_resync_and_no_verify() {
    let lost = syncing(C::SyncTarget, D::Failed, D::UpToDate);
    let (new, warning) = corrected(lost);
    assert_eq!((new.connection, new.disk, warning), (C::Connected, D::Failed, Some(Warning::AbortedResync)));
    let peer_lost = syncing(C::SyncSource, D::UpToDate, D::Diskless);
    let (new, warning) = corrected(peer_lost);
    assert_eq!((new.connection, new.peer_disk), (C::Connected, D::Diskless));
    assert_eq!(warning, Some(Warning::AbortedResync));
    let (new, warning) = corrected(syncing(C::VerifyT, D::Attaching, D::UpToDate));
    assert_eq!((new.connection, warning), (C::Connected, Some(Warning::AbortedOnlineVerify)));
}

#[test]
fn s4_a_negotiating_disk_is_used_only_if_it_holds_what_was_seen_last() {
    let old = VolumeState { disk: D::Negotiating, ..connected() };
    let wanted = VolumeState { connection: C::NetworkFailure, ..old };
    let remembered = Some(RememberedDisks { disk: D::UpToDate, peer_disk: D::Outdated });
    let context = Context {
        present_disk: D::Negotiating,
        effective_data: GenerationId(0xA1),
        metadata_current: GenerationId(0xA1),
        remembered,
        ..Context::INITIAL
    };
    let (new, warning) = sanitise(old, wanted, &context);
    assert_eq!((new.disk, new.peer_disk, warning), (D::UpToDate, D::Outdated, None));
    // Bit 0 counts here.
    let other = Context { metadata_current: GenerationId(0xA0), ..context };
    let (new, warning) = sanitise(old, wanted, &other);
    assert_eq!((new.disk, new.peer_disk), (D::Diskless, D::Unknown));
    assert_eq!(
        warning.map(|warning| warning.to_string()).as_deref(),
        Some("Connection lost while negotiating, no data!")
    );
}

#[test]
fn s5_outdating_a_connected_disk_changes_nothing() {
    let (new, warning) = corrected(VolumeState { disk: D::Outdated, ..connected() });
    assert_eq!((new, warning), (connected(), None));
    let (new, _) = corrected(VolumeState { peer_disk: D::Consistent, ..connected() });
    assert_eq!(new, connected());
    let behind = syncing(C::Behind, D::Outdated, D::UpToDate);
    assert_eq!(corrected(behind).0, behind, "Behind is beyond");
}

#[test]
fn s6_the_connection_limits_the_disks() {
    let target = ((D::Inconsistent, D::Outdated), (D::UpToDate, D::UpToDate));
    let source = ((D::UpToDate, D::UpToDate), (D::Inconsistent, D::Consistent));
    let verify = ((D::UpToDate, D::UpToDate), (D::UpToDate, D::UpToDate));
    for (connection, (own, peer)) in [
        (C::StartingSyncT, target),
        (C::WFBitMapT, target),
        (C::WFSyncUUID, target),
        (C::Behind, target),
        (C::SyncTarget, ((D::Inconsistent, D::Inconsistent), (D::UpToDate, D::UpToDate))),
        (C::StartingSyncS, source),
        (C::WFBitMapS, source),
        (C::Ahead, source),
        (C::SyncSource, ((D::UpToDate, D::UpToDate), (D::Inconsistent, D::Inconsistent))),
        (C::VerifyS, verify),
        (C::VerifyT, verify),
        (C::Connected, ((D::Diskless, D::UpToDate), (D::Diskless, D::UpToDate))),
    ] {
        for disk in D::ALL.iter().copied().filter(|disk| *disk > D::Failed) {
            for peer_disk in D::ALL.iter().copied().filter(|disk| *disk > D::Failed) {
                let (new, _) = corrected(syncing(connection, disk, peer_disk));
                assert_eq!(new.connection, connection);
                assert!((own.0..=own.1).contains(&new.disk), "{connection} {disk}: {}", new.disk);
                assert!((peer.0..=peer.1).contains(&new.peer_disk), "{connection} {peer_disk}");
            }
        }
    }
}

#[test]
fn s6_raising_a_disk_is_worth_a_warning_and_the_last_one_counts() {
    let (new, warning) = corrected(syncing(C::WFBitMapT, D::UpToDate, D::UpToDate));
    assert_eq!((new.disk, warning), (D::Outdated, None), "lowering is silent");
    let (new, warning) = corrected(syncing(C::WFBitMapT, D::Negotiating, D::UpToDate));
    assert_eq!((new.disk, warning), (D::Inconsistent, Some(Warning::ImplicitlyUpgradedDisk)));
    // `invalidate` while both are Inconsistent makes the peer UpToDate.
    let (new, warning) = corrected(syncing(C::StartingSyncT, D::Inconsistent, D::Inconsistent));
    assert_eq!((new.peer_disk, warning), (D::UpToDate, Some(Warning::ImplicitlyUpgradedPeerDisk)));
    let (new, warning) = corrected(syncing(C::StartingSyncS, D::Inconsistent, D::UpToDate));
    assert_eq!((new.disk, new.peer_disk), (D::UpToDate, D::Consistent));
    assert_eq!(warning, Some(Warning::ImplicitlyUpgradedDisk));
    let (_, warning) = corrected(syncing(C::SyncSource, D::Inconsistent, D::Negotiating));
    assert_eq!(warning, Some(Warning::ImplicitlyUpgradedPeerDisk));
}

#[test]
fn s7_losing_the_peer_freezes_io_under_stonith_only() {
    let primary = VolumeState { role: Role::Primary, ..connected() };
    let lost = VolumeState { connection: C::NetworkFailure, ..primary };
    let stonith = Context { fencing: FencingPolicy::ResourceAndStonith, ..context() };
    assert!(sanitise(primary, lost, &stonith).0.suspension.fencing);
    let resource_only = Context { fencing: FencingPolicy::ResourceOnly, ..stonith };
    assert!(!sanitise(primary, lost, &resource_only).0.suspension.any());
    let diskless = Context { present_disk: D::Diskless, ..stonith };
    assert!(!sanitise(primary, lost, &diskless).0.suspension.any(), "no disk, no policy");
    let outdated = VolumeState { peer_disk: D::Outdated, ..lost };
    assert!(!sanitise(primary, outdated, &stonith).0.suspension.any());
    let thawed = sanitise(lost, VolumeState { connection: C::Unconnected, ..lost }, &stonith).0;
    assert!(!thawed.suspension.any(), "only on entering");
}

#[test]
fn s8_losing_all_data_freezes_io_where_told_to() {
    let primary = VolumeState { role: Role::Primary, disk: D::Diskless, ..connected() };
    let lost = VolumeState { peer_disk: D::Failed, ..primary };
    let suspend = Context { on_no_data: OnNoDataAccessible::SuspendIo, ..Context::INITIAL };
    assert!(sanitise(primary, lost, &suspend).0.suspension.no_data);
    assert!(!sanitise(primary, lost, &Context::INITIAL).0.suspension.any());
    assert!(!sanitise(lost, lost, &suspend).0.suspension.any(), "only on entering");
    let unknown = VolumeState { connection: C::BrokenPipe, ..primary };
    assert!(sanitise(primary, unknown, &suspend).0.suspension.no_data, "an unknown disk is no data");
    let secondary = VolumeState { role: Role::Secondary, ..lost };
    assert!(!sanitise(primary, secondary, &suspend).0.suspension.any());
}

#[test]
fn s9_and_s10_pause_flags_choose_between_running_and_paused() {
    let source = syncing(C::SyncSource, D::UpToDate, D::Inconsistent);
    let target = syncing(C::SyncTarget, D::Inconsistent, D::UpToDate);
    for (running, paused) in [(source, C::PausedSyncS), (target, C::PausedSyncT)] {
        for pause in 0..3 {
            let wanted =
                VolumeState { after_isp: pause == 0, peer_isp: pause == 1, user_isp: pause == 2, ..running };
            let (halted, _) = corrected(wanted);
            assert_eq!(halted.connection, paused);
            let resumed = VolumeState { after_isp: false, peer_isp: false, user_isp: false, ..halted };
            assert_eq!(corrected(resumed).0, running);
        }
    }
}

prop_compose! {
    fn any_state()(
        role in 1u8..3, peer in 0u8..3, connection in 0u8..24, disk in 0u8..9, peer_disk in 0u8..9,
        pauses: [bool; 3], suspended: [bool; 3],
    ) -> VolumeState {
        VolumeState {
            role: Role::try_from(role).unwrap(),
            peer: Role::try_from(peer).unwrap(),
            connection: C::try_from(connection).unwrap(),
            disk: D::try_from(disk).unwrap(),
            peer_disk: D::try_from(peer_disk).unwrap(),
            after_isp: pauses[0],
            peer_isp: pauses[1],
            user_isp: pauses[2],
            suspension: Suspension { user: suspended[0], no_data: suspended[1], fencing: suspended[2] },
        }
    }
}

prop_compose! {
    fn any_context()(fencing in 0usize..3, suspend: bool, known: bool, remembered in 4u8..9, present in 0u8..9) -> Context {
        Context {
            present_disk: D::try_from(present).unwrap(),
            fencing: [FencingPolicy::DontCare, FencingPolicy::ResourceOnly, FencingPolicy::ResourceAndStonith][fencing],
            on_no_data: if suspend { OnNoDataAccessible::SuspendIo } else { OnNoDataAccessible::IoError },
            effective_data: GenerationId(u64::from(known)),
            metadata_current: GenerationId(1),
            remembered: Some(RememberedDisks { disk: D::try_from(remembered).unwrap(), peer_disk: D::Unknown }),
            ..Context::INITIAL
        }
    }
}

proptest! {
    #[test]
    fn a_corrected_state_needs_no_correction(old in any_state(), wanted in any_state(), context in any_context()) {
        let (once, _) = sanitise(old, wanted, &context);
        let (twice, warning) = sanitise(old, once, &context);
        // The pause flags are looked at last, after the limits: where they paused or resumed a resync, the limits of
        // its new state are still to be applied, as in DRBD.
        let paused_or_resumed = once.is_syncing() && once.connection != wanted.connection;
        // Likewise a disk dropped by S4 comes too late for S2.
        let dropped = wanted.disk == D::Negotiating && once.disk == D::Diskless;
        if !paused_or_resumed && !dropped {
            prop_assert_eq!(once, twice);
            prop_assert_eq!(warning, None);
        }
        prop_assert_eq!(sanitise(old, twice, &context).0, twice);
    }

    #[test]
    fn a_corrected_state_is_one_of_the_legal_combinations(old in any_state(), wanted in any_state(), context in any_context()) {
        let (first, _) = sanitise(old, wanted, &context);
        let (new, _) = sanitise(old, first, &context);
        if new.connection < C::Connected {
            prop_assert_eq!(new.peer, Role::Unknown);
            prop_assert!(matches!(new.peer_disk, D::Inconsistent | D::Outdated | D::Unknown));
            prop_assert!(!new.peer_isp);
        }
        if new.connection > C::Connected {
            prop_assert!(new.disk >= D::Inconsistent && new.peer_disk >= D::Inconsistent);
            prop_assert!(new.disk == D::UpToDate || new.peer_disk == D::UpToDate);
        }
        prop_assert_eq!(new.role, wanted.role);
        prop_assert_eq!(new.user_isp, wanted.user_isp);
    }
}
