//! The decisions of two nodes that meet, as the real DRBD took them: each side computed from what both were before.

use std::collections::BTreeSet;

use serde::Deserialize;
use udrbd_engine::generation::{
    GenerationSet, HandshakeDecision, HandshakeFacts, HandshakeOutcome, PeerFlags, PeerGeneration,
    ResyncPolicies, Step, handshake, handshake_after_demotion, seen_from_the_peer,
};
use udrbd_engine::interface::{AfterSplitBrain, Level, RrConflict};
use udrbd_engine::state::{
    AttachFacts, AttachedState, ChangeLine, Context, Enforcement, FencingPolicy, MetadataFlags,
    NetworkContext, VolumeState, attached_state, decide,
};
use udrbd_units::{ConnectionState, DiskState, Role};

use crate::common::read_cases;
use crate::records::{Sides, StateRecord, identifier};

#[derive(Debug, Deserialize)]
struct HandshakeCase {
    id: String,
    connect_order: String,
    net_options: Sides<Vec<String>>,
    before: Sides<Before>,
    uuid_compare: Sides<Vec<Compared>>,
    #[serde(rename = "final")]
    after: Sides<StateRecord>,
    handlers: Vec<HandlerCall>,
    log: Sides<Vec<String>>,
}

#[derive(Debug, Deserialize)]
struct Before {
    metadata: Option<Metadata>,
    #[serde(default)]
    disk_options: Vec<String>,
    #[serde(default)]
    commands_before_connect: Vec<Vec<String>>,
    #[serde(default)]
    held_open: bool,
    #[serde(flatten)]
    state: StateRecord,
}

#[derive(Debug, Deserialize)]
struct Metadata {
    flags: Vec<String>,
}

#[derive(Debug, Deserialize, PartialEq)]
struct Compared {
    result: i32,
    rule: u8,
}

#[derive(Debug, Deserialize)]
struct HandlerCall {
    side: String,
    handler: String,
}

const FILES: [&str; 2] = ["uuid-handshake.jsonl", "after-sb.jsonl"];
const PROTOCOL: u32 = 101;
const FEATURES: u32 = 0xf;
const BLOCK_KIB: u64 = 4;

/// Runs `check` for each side of each case in which the identifiers were compared.
fn for_each_side(mut check: impl FnMut(&HandshakeCase, &str, &HandshakeFacts)) {
    let mut sides = 0;
    for name in FILES {
        for case in read_cases::<HandshakeCase>("states", name) {
            println!("{} {}", case.origin, case.record.id);
            for (side, peer) in [("a", "b"), ("b", "a")] {
                if !case.record.uuid_compare[side].is_empty() {
                    check(&case.record, side, &facts(&case.record, side, peer));
                    sides += 1;
                }
            }
        }
    }
    assert!(sides > 0);
}

fn metadata_flags(names: &[String]) -> MetadataFlags {
    use MetadataFlags as F;
    names.iter().fold(F::default(), |flags, name| {
        let flag = match name.as_str() {
            "consistent" => F::CONSISTENT,
            "primary_ind" => F::PRIMARY_INDICATION,
            "connected_ind" => F::CONNECTED_INDICATION,
            "full_sync" => F::FULL_SYNC,
            "was_up_to_date" => F::WAS_UP_TO_DATE,
            "peer_out_dated" => F::PEER_OUTDATED,
            "crashed_primary" => F::CRASHED_PRIMARY,
            "al_clean" => F::ACTIVITY_LOG_CLEAN,
            "al_disabled" => F::ACTIVITY_LOG_DISABLED,
            other => panic!("unknown metadata flag {other}"),
        };
        flags.with(flag, true)
    })
}

/// What the metadata of a side were worth when they were attached: as Secondary, without connection.
fn attached(before: &Before) -> Option<AttachedState> {
    let fencing = before
        .disk_options
        .iter()
        .find_map(|option| option.strip_prefix("--fencing="))
        .map_or(FencingPolicy::DontCare, |policy| policy.parse().expect("a fencing policy"));
    let metadata = before.metadata.as_ref()?;
    let facts = AttachFacts {
        flags: metadata_flags(&metadata.flags),
        fencing,
        role: Role::Secondary,
        suspended_no_data: false,
    };
    Some(attached_state(facts, DiskState::Unknown))
}

fn generation_sent(case: &HandshakeCase, side: &str) -> PeerGeneration {
    let before = &case.before[side];
    let crashed = attached(before).is_some_and(|state| state.crashed_primary);
    let discard = case.net_options[side].iter().any(|option| option == "--discard-my-data");
    let flags =
        u64::from(discard) * PeerFlags::DISCARD_MY_DATA.0 + u64::from(crashed) * PeerFlags::CRASHED_PRIMARY.0;
    PeerGeneration {
        set: GenerationSet::from_array(before.state.generations()),
        set_bits: before.state.oos_kb.unwrap_or(0) / BLOCK_KIB,
        flags: PeerFlags(flags),
    }
}

fn policies(options: &[String]) -> ResyncPolicies {
    let policy = |text: &str| match text {
        "disconnect" => AfterSplitBrain::Disconnect,
        "discard-younger-primary" => AfterSplitBrain::DiscardYoungerPrimary,
        "discard-older-primary" => AfterSplitBrain::DiscardOlderPrimary,
        "discard-zero-changes" => AfterSplitBrain::DiscardZeroChanges,
        "discard-least-changes" => AfterSplitBrain::DiscardLeastChanges,
        "discard-local" => AfterSplitBrain::DiscardLocal,
        "discard-remote" => AfterSplitBrain::DiscardRemote,
        "consensus" => AfterSplitBrain::Consensus,
        "discard-secondary" => AfterSplitBrain::DiscardSecondary,
        "call-pri-lost-after-sb" => AfterSplitBrain::CallPriLostAfterSb,
        "violently-as0p" => AfterSplitBrain::ViolentlyAsZeroPrimaries,
        other => panic!("unknown policy {other}"),
    };
    let mut policies = ResyncPolicies::default();
    for option in options {
        match option.split_once('=').unwrap_or((option, "")) {
            ("--after-sb-0pri", value) => policies.after_sb_0pri = policy(value),
            ("--after-sb-1pri", value) => policies.after_sb_1pri = policy(value),
            ("--after-sb-2pri", value) => policies.after_sb_2pri = policy(value),
            ("--always-asbp", value) => policies.always_asbp = value != "no",
            ("--rr-conflict", "disconnect") => policies.rr_conflict = RrConflict::Disconnect,
            ("--rr-conflict", "violently") => policies.rr_conflict = RrConflict::Violently,
            ("--rr-conflict", "call-pri-lost") => policies.rr_conflict = RrConflict::CallPriLost,
            ("--allow-two-primaries" | "--discard-my-data" | "--tentative", _) => {}
            (other, _) => panic!("unknown option {other}"),
        }
    }
    policies
}

fn facts(case: &HandshakeCase, side: &str, peer: &str) -> HandshakeFacts {
    let own = generation_sent(case, side);
    let own_before = &case.before[side].state;
    let peer_before = case.before[peer].state.state(ConnectionState::StandAlone);
    let own_state = own_before.state(ConnectionState::StandAlone);
    HandshakeFacts {
        own: own.set,
        crashed_primary: own.flags.contains(PeerFlags::CRASHED_PRIMARY),
        own_told_bits: own.set_bits,
        own_set_bits: own.set_bits,
        own_role: own_state.role,
        own_disk: own_state.disk,
        remembered_disk: None,
        discard_my_data: own.flags.contains(PeerFlags::DISCARD_MY_DATA),
        peer: generation_sent(case, peer),
        peer_role: peer_before.role,
        peer_disk: peer_before.disk,
        // The node that connects later opens the data socket, and is told so by the other's meta socket.
        resolve_conflicts: case.connect_order.ends_with(side),
        protocol: PROTOCOL,
        features: FEATURES,
        policies: policies(&case.net_options[side]),
        dry_run: case.net_options.values().flatten().any(|option| option == "--tentative"),
    }
}

/// The whole decision. In a handshake after connecting, the attempt to give up the role is refused every time.
fn decision(facts: &HandshakeFacts) -> HandshakeDecision {
    let mut decision = handshake(facts);
    if decision.outcome == HandshakeOutcome::TryDemotion {
        let rest = handshake_after_demotion(facts, false);
        decision.steps.extend(rest.steps);
        decision.outcome = rest.outcome;
    }
    decision
}

#[test]
fn vectors_attach_finds_what_the_disk_is_worth() {
    for name in FILES {
        for case in read_cases::<HandshakeCase>("states", name) {
            for before in case.record.before.values() {
                let forced = before.commands_before_connect.iter().flatten().any(|word| word == "--force");
                let Some(attached) = attached(before).filter(|_| !forced) else { continue };
                let state = before.state.state(ConnectionState::StandAlone);
                assert_eq!(state.disk, attached.disk, "{}", case.origin);
                assert_eq!(
                    state.peer_disk,
                    attached.peer_disk.unwrap_or(DiskState::Unknown),
                    "{}",
                    case.origin
                );
            }
        }
    }
}

#[test]
fn vectors_comparison_results_and_rules() {
    let mut rules = BTreeSet::new();
    for_each_side(|case, side, facts| {
        let comparison = handshake(facts).comparison;
        let computed = Compared { result: comparison.result.number(), rule: comparison.rule };
        assert_eq!(computed, case.uuid_compare[side][0], "{} side {side}", case.id);
        rules.insert(comparison.rule);
    });
    let expected = BTreeSet::from([10, 20, 30, 34, 35, 36, 37, 40, 41, 50, 51, 60, 70, 71, 80, 90, 100]);
    assert_eq!(rules, expected, "every rule there is has a case");
}

#[test]
fn vectors_handlers_in_order() {
    let own_handlers = ["initial-split-brain", "split-brain", "pri-lost", "pri-lost-after-sb"];
    for_each_side(|case, side, facts| {
        let computed: Vec<_> = decision(facts)
            .steps
            .into_iter()
            .filter_map(|step| match step {
                Step::Handler(handler) => Some(handler.name()),
                Step::Log(..) => None,
            })
            .collect();
        let recorded: Vec<_> = case
            .handlers
            .iter()
            .filter(|call| call.side == side)
            .map(|call| call.handler.as_str())
            .filter(|handler| own_handlers.contains(handler))
            .collect();
        assert_eq!(computed, recorded, "{} side {side}", case.id);
    });
}

/// The recorded lines of the decision itself: from its first line to the change of state it leads to, without what
/// happens around it meanwhile. The second value is that change of state, with the warning before it, if any.
fn recorded_lines(log: &[String]) -> (Vec<&str>, Vec<&str>) {
    let start = log.iter().position(|line| line.ends_with("drbd_sync_handshake:")).expect("a handshake");
    let around = [
        "meta connection shut down by peer",
        "sock was shut down by peer",
        "short read",
        "error receiving",
        "marked out-of-sync by on disk bit-map",
        "State change failed",
        "  state =",
        " wanted =",
        "-> NetworkFailure )",
        "-> BrokenPipe )",
    ];
    let (mut lines, mut change) = (Vec::new(), Vec::new());
    for line in &log[start..] {
        if around.iter().any(|text| line.contains(text)) {
            continue;
        }
        if line.contains("Implicitly upgraded") {
            change.push(line.as_str());
        } else if line.contains(" conn( ") || line.contains(" peer( ") {
            change.push(line);
            return (lines, change);
        } else {
            lines.push(line);
        }
    }
    (lines, change)
}

fn word(level: Level) -> &'static str {
    match level {
        Level::Alert => "ALERT",
        Level::Error => "ERR",
        Level::Warning => "WARNING",
        Level::Info => "INFO",
    }
}

#[test]
fn vectors_log_lines_word_for_word() {
    for_each_side(|case, side, facts| {
        let minor = format!("minor-{}", side.to_uppercase());
        let mut computed = Vec::new();
        for step in decision(facts).steps {
            match step {
                // The one line that is udrbd's own: the wording of older versions, told before DRBD's.
                Step::Log(_, text) if text == "Split-Brain detected, dropping connection!" => {}
                Step::Log(level, text) => computed.push(format!("{}: {text}", word(level))),
                Step::Handler(handler) => {
                    computed.push(format!("helper command: HELPER {} {minor}", handler.name()));
                    computed.push(format!("helper command: HELPER {} {minor} exit code", handler.name()));
                }
            }
        }
        let (recorded, _) = recorded_lines(&case.log[side]);
        let recorded: Vec<_> = recorded
            .into_iter()
            .map(|line| match line.find("helper command") {
                Some(start) => line[start..].split_inclusive(" exit code").next().expect("a part").to_owned(),
                None => line.to_owned(),
            })
            .collect();
        assert_eq!(computed, recorded, "{} side {side}", case.id);
    });
}

/// The context of a volume that has just exchanged parameters.
fn joining_context(case: &HandshakeCase, side: &str, present: VolumeState) -> Context {
    let options = &case.net_options[side];
    Context {
        present_disk: present.disk,
        network: Some(NetworkContext {
            allow_two_primaries: options.iter().any(|option| option == "--allow-two-primaries"),
            has_verify_algorithm: false,
        }),
        open_count: u32::from(case.before[side].held_open),
        agreed_protocol: PROTOCOL,
        state_sent: true,
        ..Context::INITIAL
    }
}

/// The lines about the change of state that ends the handshake: what the peer told, and the decision's connection.
fn change_lines(case: &HandshakeCase, side: &str, peer: &str, connection: ConnectionState) -> Vec<String> {
    let own = case.before[side].state.state(ConnectionState::StandAlone);
    let told = case.before[peer].state.state(ConnectionState::StandAlone);
    let old = VolumeState { connection: ConnectionState::WFReportParams, ..own };
    let wanted = VolumeState { connection, peer: told.role, peer_disk: told.disk, ..old };
    match decide(old, wanted, Enforcement::Soft, &joining_context(case, side, old)) {
        Ok(change) => {
            let warning = change.warning.map(|warning| format!("WARNING: {warning}"));
            let line = format!("INFO: {}", ChangeLine::volume(old, change.new));
            warning.into_iter().chain([line.trim_end().to_owned()]).collect()
        }
        // A refused first state drops the connection.
        Err(_) => vec!["INFO: conn( WFReportParams -> Disconnecting )".to_owned()],
    }
}

#[test]
fn vectors_outcomes_and_the_change_they_lead_to() {
    for_each_side(|case, side, facts| {
        let peer = if side == "a" { "b" } else { "a" };
        let (_, recorded) = recorded_lines(&case.log[side]);
        match decision(facts).outcome.connection() {
            Some(connection) => {
                let lost_meanwhile = recorded.iter().any(|line| line.contains("Unconnected"));
                if !lost_meanwhile {
                    assert_eq!(
                        recorded,
                        change_lines(case, side, peer, connection),
                        "{} side {side}",
                        case.id
                    );
                }
            }
            None => {
                let line = recorded.first().expect("a change of state");
                let gives_up = ["-> Disconnecting )", "-> ProtocolError )", "-> Unconnected )"];
                assert!(gives_up.iter().any(|text| line.ends_with(text)), "{} side {side}: {line}", case.id);
                assert_ne!(case.after[side].conn.as_deref(), Some("Connected"), "{} side {side}", case.id);
            }
        }
    });
}

#[test]
fn vectors_a_side_without_disk_connects_without_comparing() {
    let mut seen = 0;
    for case in read_cases::<HandshakeCase>("states", FILES[0]) {
        for (side, peer) in [("a", "b"), ("b", "a")] {
            let record = &case.record;
            if record.uuid_compare[side].is_empty() && record.after[side].conn.as_deref() == Some("Connected")
            {
                let last = record.log[side].iter().find(|line| line.contains("WFReportParams -> Connected"));
                let computed = change_lines(record, side, peer, ConnectionState::Connected);
                assert_eq!(last, computed.last(), "{} side {side}", case.origin);
                seen += 1;
            }
        }
    }
    assert!(seen > 0);
}

/// The random identifier a source drew for its resync, if the log tells.
fn drawn(case: &HandshakeCase, side: &str) -> u64 {
    let text = "updated sync UUID ";
    let line = case.log[side].iter().find_map(|line| line.split_once(text));
    line.and_then(|(_, set)| set.split(':').nth(1)).map_or(0, |digits| identifier(digits).0)
}

#[test]
fn vectors_identifiers_after_a_resync() {
    let mut resyncs = 0;
    for name in FILES {
        for case in read_cases::<HandshakeCase>("states", name) {
            let case = &case.record;
            let settled = |side: &str| {
                case.after[side].conn.as_deref() == Some("Connected") && case.after[side].oos_kb == Some(0)
            };
            if case.uuid_compare.values().any(Vec::is_empty) || !settled("a") || !settled("b") {
                continue;
            }
            let decisions = [facts(case, "a", "b"), facts(case, "b", "a")].map(|facts| decision(&facts));
            let mut sets = decisions.clone().map(|decision| decision.comparison.own);
            let primary = ["a", "b"].map(|side| case.before[side].state.role.as_deref() == Some("Primary"));
            let source = decisions
                .iter()
                .position(|decision| matches!(decision.outcome, HandshakeOutcome::Source { .. }));
            if let Some(source) = source {
                let target = 1 - source;
                assert!(
                    matches!(decisions[target].outcome, HandshakeOutcome::Target { .. }),
                    "{}: one source, one target",
                    case.id
                );
                let remembered = decisions[target].comparison.peer;
                let identifier = sets[source].start_resync_as_source(drawn(case, ["a", "b"][source]));
                sets[target].start_resync_as_target(identifier, primary[target]);
                sets[target].finish_resync_as_target(&remembered, primary[target]);
                sets[source].finish_resync_as_source();
                resyncs += 1;
            }
            for (side, set) in ["a", "b"].into_iter().zip(sets) {
                let recorded = GenerationSet::from_array(case.after[side].generations());
                assert_eq!(set, recorded, "{} side {side}", case.id);
            }
        }
    }
    assert!(resyncs > 0);
}

#[test]
fn vectors_both_sides_decide_alike() {
    // The pairs in which the real DRBD contradicts itself: both see themselves as the older side, or both are new.
    let contradictory = |results: [i32; 2]| results[0] == results[1] && results[0] < 0 && results[0] > -100;
    for name in FILES {
        for case in read_cases::<HandshakeCase>("states", name) {
            let case = &case.record;
            if case.uuid_compare.values().any(Vec::is_empty) {
                continue;
            }
            let [a, b] = [facts(case, "a", "b"), facts(case, "b", "a")]
                .map(|facts| handshake(&facts).comparison.result);
            let recorded = ["a", "b"].map(|side| case.uuid_compare[side][0].result);
            if !contradictory(recorded) {
                assert_eq!(a, b.mirrored(), "{}", case.id);
            }
        }
    }
}

#[test]
fn policies_of_the_peer_are_mirrored_words() {
    let local = AfterSplitBrain::DiscardLocal;
    assert_eq!(seen_from_the_peer(local), AfterSplitBrain::DiscardRemote);
    assert_eq!(seen_from_the_peer(seen_from_the_peer(local)), local);
    assert_eq!(seen_from_the_peer(AfterSplitBrain::Consensus), AfterSplitBrain::Consensus);
}
