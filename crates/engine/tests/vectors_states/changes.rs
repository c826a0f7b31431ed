//! Every change of state and every refusal in the logs of the real DRBD, against the rules.

use serde::Deserialize;
use serde_json::Value;
use udrbd_engine::state::{
    ChangeLine, Context, Enforcement, FencingPolicy, NetworkContext, Refusal, RequestPlan, StateChangeResult,
    StateRequest, Suspension, VolumeState, check_transition, decide, plan_request, sanitise,
};
use udrbd_units::ConnectionState;

use crate::common::read_cases;
use crate::records::{Sides, StateRecord};

/// What the logs of every kind of record have in common.
#[derive(Debug, Deserialize)]
struct Record {
    id: String,
    #[serde(default, alias = "start")]
    before: Sides<StateRecord>,
    #[serde(default)]
    log: Option<Sides<Vec<String>>>,
    #[serde(default)]
    steps: Vec<StepRecord>,
}

#[derive(Debug, Deserialize)]
struct StepRecord {
    #[serde(default)]
    log: Option<Sides<Vec<String>>>,
}

/// The log of one side of one record, from a known state on.
struct Thread {
    name: String,
    start: VolumeState,
    lines: Vec<String>,
    /// The whole record as text, to look for options in.
    text: String,
}

const FILES: [&str; 5] =
    ["uuid-handshake.jsonl", "after-sb.jsonl", "commands.jsonl", "fencing.jsonl", "misc.jsonl"];

fn threads() -> Vec<Thread> {
    let mut threads = Vec::new();
    for name in FILES {
        for case in read_cases::<Value>("states", name) {
            let text = case.record.to_string();
            let record: Record = serde_json::from_value(case.record)
                .unwrap_or_else(|error| panic!("{}: {error}", case.origin));
            for (side, before) in &record.before {
                let logs = record.log.iter().chain(record.steps.iter().filter_map(|step| step.log.as_ref()));
                threads.push(Thread {
                    name: format!("{} {} side {side}", case.origin, record.id),
                    start: before.state(ConnectionState::StandAlone),
                    lines: logs.filter_map(|log| log.get(side)).flatten().cloned().collect(),
                    text: text.clone(),
                });
            }
        }
    }
    assert!(!threads.is_empty());
    threads
}

/// The fields of a line about a change, `None` for any other line.
fn changed_fields(line: &str) -> Option<Vec<(&str, &str, &str)>> {
    let text = line.strip_prefix("INFO: ")?;
    let mut fields = Vec::new();
    for part in text.trim_end().split_inclusive(" )") {
        let (name, change) = part.trim().split_once("( ")?;
        let (old, new) = change.strip_suffix(" )")?.split_once(" -> ")?;
        fields.push((name, old, new));
    }
    Some(fields)
}

fn set_field(state: &mut VolumeState, name: &str, value: &str) {
    match name {
        "role" => state.role = value.parse().expect("a role"),
        "peer" => state.peer = value.parse().expect("a role"),
        "conn" => state.connection = value.parse().expect("a connection state"),
        "disk" => state.disk = value.parse().expect("a disk state"),
        "pdsk" => state.peer_disk = value.parse().expect("a disk state"),
        "aftr_isp" => state.after_isp = value == "1",
        "peer_isp" => state.peer_isp = value == "1",
        "user_isp" => state.user_isp = value == "1",
        "susp" => state.suspension = Suspension { user: value == "1", ..Suspension::NONE },
        other => panic!("unknown field {other}"),
    }
}

/// A context in which nothing suspends and no remembered state is known: what the logs show is corrected already.
fn plain_context(present: VolumeState) -> Context {
    Context { present_disk: present.disk, agreed_protocol: 101, ..Context::INITIAL }
}

/// Follows a thread and hands each change to `check` with the state before and after it.
fn follow(thread: &Thread, mut check: impl FnMut(VolumeState, VolumeState, &str)) {
    let mut state = thread.start;
    for line in &thread.lines {
        let Some(fields) = changed_fields(line) else { continue };
        let (mut before, mut after) = (state, state);
        for (name, old, new) in fields {
            set_field(&mut before, name, old);
            set_field(&mut after, name, new);
        }
        check(before, after, line);
        state = after;
    }
}

#[test]
fn vectors_every_state_reached_needs_no_correction() {
    let mut changes = 0;
    for thread in threads() {
        follow(&thread, |old, new, line| {
            changes += 1;
            // The pause flags change with the connection, but are told in a line of their own before it.
            let pause_told_first = old.connection == new.connection && old.peer_isp && !new.peer_isp;
            if pause_told_first {
                return;
            }
            let (corrected, _) = sanitise(old, new, &plain_context(old));
            assert_eq!(corrected, new, "{}: {line}", thread.name);
            let transition = check_transition(old, new);
            assert!(transition.is_success(), "{}: {line}: {transition}", thread.name);
        });
    }
    assert!(changes > 0);
}

#[test]
fn vectors_change_lines_word_for_word() {
    for thread in threads() {
        follow(&thread, |old, new, line| {
            let mut text = ChangeLine::volume(old, new).to_string();
            text += &ChangeLine::suspension(old, new).to_string();
            assert_eq!(format!("INFO: {}", text.trim_end()), *line, "{}", thread.name);
        });
    }
}

/// Reads the state in a line such as ` wanted = { cs:... ro:.../... ds:.../... r----- }`.
fn state_in(line: &str) -> VolumeState {
    let words: Vec<_> = line
        .split_once("{ ")
        .and_then(|(_, rest)| rest.split_once(" }"))
        .expect("braces")
        .0
        .split(' ')
        .collect();
    let [connection, roles, disks, flags] = words[..] else { panic!("{line}") };
    let value = |word: &'_ str| word.split_once(':').expect("a colon").1.to_owned();
    let mut state = VolumeState::INITIAL;
    set_field(&mut state, "conn", &value(connection));
    for (names, pair) in [(["role", "peer"], value(roles)), (["disk", "pdsk"], value(disks))] {
        let (own, peer) = pair.split_once('/').expect("a slash");
        set_field(&mut state, names[0], own);
        set_field(&mut state, names[1], peer);
    }
    state.after_isp = flags.contains('a');
    state.peer_isp = flags.contains('p');
    state.user_isp = flags.contains('u');
    state.suspension = Suspension { user: false, no_data: flags.contains('N'), fencing: flags.contains('F') };
    state.suspension.user = flags.starts_with('s') && !state.suspension.any();
    state
}

/// The context a refusal was made in, as far as the record tells. That the device was open shows in the refusal alone.
fn refusing_context(thread: &Thread, old: VolumeState, reason: &str) -> Context {
    let fencing = if thread.text.contains("--fencing=resource") {
        FencingPolicy::ResourceOnly
    } else {
        FencingPolicy::DontCare
    };
    let network = NetworkContext {
        allow_two_primaries: thread.text.contains("--allow-two-primaries"),
        has_verify_algorithm: reason != StateChangeResult::NoVerifyAlg.text(),
    };
    Context {
        fencing,
        network: Some(network),
        open_count: u32::from(reason == StateChangeResult::DeviceInUse.text()),
        ..plain_context(old)
    }
}

#[test]
fn vectors_refusals() {
    let mut refusals = 0;
    for thread in threads() {
        for lines in thread.lines.windows(3) {
            let Some(reason) = lines[0].strip_prefix("ERR: State change failed: ") else { continue };
            if !lines[1].contains("  state = {") {
                continue;
            }
            let (old, wanted) = (state_in(&lines[1]), state_in(&lines[2]));
            let context = refusing_context(&thread, old, reason);
            let name = format!("{}: {}", thread.name, lines[2]);
            assert_eq!(sanitise(old, wanted, &context).0, wanted, "{name}");
            let refusal = if reason == StateChangeResult::ClusterWideFailedByPeer.text() {
                assert_eq!(plan_request(old, wanted, &context), Ok(RequestPlan::AskPeer), "{name}");
                Refusal { code: StateChangeResult::ClusterWideFailedByPeer, old, wanted }
            } else {
                decide(old, wanted, Enforcement::Soft, &context).expect_err(&name)
            };
            let computed =
                refusal.lines().expect("a refusal that is logged").map(|line| format!("ERR: {line}"));
            assert_eq!(computed, lines, "{name}");
            refusals += 1;
        }
    }
    assert!(refusals > 0);
}

/// `State change failed` lines of a connection: three lines, of which the second has the raw request.
#[test]
fn vectors_refused_connection_requests() {
    let mut refusals = 0;
    for thread in threads() {
        for lines in thread.lines.windows(3) {
            let Some(raw) = lines[1].strip_prefix("ERR:  mask = 0x") else { continue };
            let (mask, value) = raw.split_once(" val = 0x").expect("a value");
            let number = |digits| u32::from_str_radix(digits, 16).expect("hex digits");
            let request = StateRequest::from_raw(number(mask), number(value)).expect("a request");
            let reason = lines[0].strip_prefix("ERR: State change failed: ").expect("a reason");
            let code =
                StateChangeResult::ALL.iter().find(|code| code.text() == reason).expect("a known reason");
            let old = lines[2]
                .split(['=', ':', ' '])
                .skip_while(|word| *word != "old_conn")
                .nth(1)
                .expect("a state");
            let old = old.parse().expect("a connection state");
            let computed = Refusal::connection_lines(*code, request, old).map(|line| format!("ERR: {line}"));
            assert_eq!(computed, lines, "{}", thread.name);
            refusals += 1;
        }
    }
    assert!(refusals > 0);
}
