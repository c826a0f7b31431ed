use udrbd_control::status::{KnownSplitBrain, SplitBrainEnd};
use udrbd_units::{DiskState, Minor, VolumeNumber};

use super::*;

const MINUTE: i64 = 60_000_000;

fn when(time_us: i64) -> String {
    let minutes = time_us / MINUTE;
    format!("2026-11-20 {:02}:{:02}:00 +00:00", minutes / 60, minutes % 60)
}

fn side(current: &str, was_primary: bool, role: Role, changed_blocks: u64) -> SplitBrainSide {
    SplitBrainSide {
        current: current.to_owned(),
        bitmap: format!("8C44031A618CB8E{}", u8::from(was_primary) + 2),
        history: ["AD0790E8F4860194".to_owned(), "0000000000000004".to_owned()],
        was_primary,
        role,
        disk: DiskState::UpToDate,
        changed_blocks,
        crashed_primary: false,
        discard_my_data: false,
    }
}

fn policy(primaries: &[WhichNode], policy: &str, configured: bool, outcome: PolicyOutcome) -> PolicyOutlook {
    let option = ["after-sb-0pri", "after-sb-1pri", "after-sb-2pri"][primaries.len()];
    PolicyOutlook {
        primaries: primaries.to_vec(),
        option: option.to_owned(),
        policy: policy.to_owned(),
        configured,
        outcome,
    }
}

/// Found at 22:50, after the connection was lost at 22:10; it is 23:47.
fn report() -> SplitBrainReport {
    use WhichNode::{Own, Peer};
    let region = |first_block, blocks, changed_blocks| ChangedRegion { first_block, blocks, changed_blocks };
    let keep = |node| PolicyOutcome::Keep { node, full: false };
    let found = FoundSplitBrain {
        first_us: (22 * 60 + 50) * MINUTE,
        last_us: (23 * 60 + 41) * MINUTE,
        times: 3,
        connected_us: Some(20 * 60 * MINUTE),
        lost_us: Some((22 * 60 + 10) * MINUTE),
        ended_us: None,
        end: None,
        ancestor: Some("8C44031A618CB8E2".to_owned()),
        rule: 90,
        ambiguous: false,
        always_asbp: false,
        own: side("AE41D07091FF3DD3", true, Role::Primary, 3072),
        peer: side("FCB90488B75C16C7", false, Role::Secondary, 1),
        policies: vec![
            policy(&[], "disconnect", true, PolicyOutcome::StayApart),
            policy(&[], "discard-younger-primary", false, keep(Own)),
            policy(&[Own], "disconnect", true, PolicyOutcome::StayApart),
            policy(&[Own], "violently-as0p", false, PolicyOutcome::PrimaryInTheWay { node: Peer }),
            policy(&[Peer], "discard-secondary", false, keep(Peer)),
            policy(&[Own, Peer], "call-pri-lost-after-sb", false, PolicyOutcome::CallPriLost { node: Own }),
        ],
    };
    let volume = VolumeSplitBrain {
        volume: VolumeNumber(0),
        minor: Minor(3),
        size_sectors: 1 << 21,
        role: Role::Primary,
        disk: DiskState::UpToDate,
        holders: vec!["mounted on /srv".to_owned()],
        changed_blocks: Some(3100),
        regions: Some(vec![region(8, 3000, 3000), region(100_000, 200, 100)]),
        known: KnownSplitBrain { connected_us: Some(0), lost_us: Some(0), found: Some(found) },
    };
    SplitBrainReport {
        resource: "r0".to_owned(),
        node: "alpha".to_owned(),
        peer: Some("beta".to_owned()),
        time_us: (23 * 60 + 47) * MINUTE,
        connection: ConnectionState::StandAlone,
        peer_address: None,
        volumes: vec![volume],
    }
}

fn text(report: &SplitBrainReport) -> String {
    of_report(report, &when)
}

fn found(report: &mut SplitBrainReport) -> &mut FoundSplitBrain {
    report.volumes[0].known.found.as_mut().unwrap()
}

#[test]
fn a_split_brain_is_told_from_what_happened_to_what_to_type() {
    let text = text(&report());
    assert_eq!(text, include_str!("split.txt"), "{text}");
    let widest = text.lines().max_by_key(|line| line.chars().count()).unwrap();
    assert!(widest.chars().count() <= 110, "{widest}");
}

#[test]
fn the_victim_is_told_to_discard_and_the_survivor_to_connect() {
    let discard = "drbdadm secondary r0; drbdadm disconnect r0; drbdadm -- --discard-my-data connect r0";
    let text = text(&report());
    let commands: Vec<&str> = text
        .lines()
        .map(str::trim)
        .filter(|line| line.starts_with("drbdadm") || line.starts_with("on "))
        .collect();
    let [keep_own, discard_peer, on_own, connect_own, keep_peer, discard_own, on_peer, connect_peer] =
        commands[..]
    else {
        panic!("{commands:?}")
    };
    assert!(keep_own.starts_with("on beta, after"), "{keep_own}");
    assert_eq!((discard_peer, on_own, connect_own), (discard, "on alpha:", "drbdadm connect r0"));
    assert_eq!(keep_peer, "on alpha, after this has let go of the device: mounted on /srv:");
    assert_eq!((discard_own, on_peer, connect_peer), (discard, "on beta:", "drbdadm connect r0"));
    // What is lost is on the line with the choice.
    assert!(text.contains("lose what changed on beta (at least 4 KiB (1 block))"), "{text}");
    assert!(text.contains("lose what changed on alpha (12.1 MiB (3100 blocks))"), "{text}");
}

#[test]
fn what_went_wrong_in_the_last_attempt_is_said() {
    let mut report = report();
    assert!(!text(&report).contains("connected with --discard-my-data"));
    found(&mut report).own.discard_my_data = true;
    assert!(text(&report).contains("alpha connected with --discard-my-data, but is Primary."));
    found(&mut report).peer.discard_my_data = true;
    assert!(text(&report).contains("Both nodes connected with --discard-my-data."));
}

#[test]
fn what_is_not_known_is_said() {
    let mut report = report();
    report.peer = None;
    report.volumes[0].regions = None;
    report.volumes[0].changed_blocks = None;
    found(&mut report).lost_us = None;
    let text_of_crash = text(&report);
    assert!(
        text_of_crash.contains("not known: alpha went down while they were connected"),
        "{text_of_crash}"
    );
    assert!(text_of_crash.contains("Where alpha has changed is not known without its disk."));
    assert!(text_of_crash.contains("Where the peer has changed is not known here"));
    let found = found(&mut report);
    (found.connected_us, found.ancestor, found.ambiguous) = (None, None, true);
    let text = text(&report);
    assert!(text.contains("not known: alpha has no record of the last connection"), "{text}");
    assert!(text.contains("They name no generation both come from."));
    assert!(text.contains("only with 'always-asbp yes', which is not configured"));
}

#[test]
fn no_split_brain_is_said_in_one_line() {
    let mut report = report();
    report.connection = ConnectionState::Connected;
    report.volumes[0].known = KnownSplitBrain::default();
    assert_eq!(text(&report), "r0: no split brain is known. The connection is Connected.\n");
    // Apart, and not met since: one may be found then.
    report.connection = ConnectionState::WFConnection;
    report.volumes[0].known.lost_us = Some(22 * 60 * MINUTE);
    let text = text(&report);
    assert!(text.contains("12.1 MiB (3100 blocks) changed on alpha only"), "{text}");
    assert!(text.contains("apart since 2026-11-20 22:00:00 +00:00 (1 h 47 min ago)"), "{text}");
}

#[test]
fn one_that_is_over_says_whose_changes_went() {
    let mut report = report();
    report.connection = ConnectionState::Connected;
    let found = found(&mut report);
    found.ended_us = Some((23 * 60 + 45) * MINUTE);
    found.end = Some(SplitBrainEnd { keeps: WhichNode::Peer, full: false, by_hand: true });
    let text = text(&report);
    assert!(text.starts_with("r0: no split brain is known."), "{text}");
    let end = "ended 2026-11-20 23:45:00 +00:00 (2 min ago) by discard-my-data: the data of beta were kept, the \
               changes of alpha discarded";
    assert!(text.contains(end), "{text}");
}

#[test]
fn programs_get_all_of_it() {
    let report = report();
    let json = report.to_json();
    assert_eq!(serde_json::from_str::<SplitBrainReport>(&json).unwrap(), report);
    let value: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(value["volumes"][0]["found"]["own"]["current"], "AE41D07091FF3DD3");
    assert_eq!(value["volumes"][0]["regions"][0]["first-block"], 8);
}
