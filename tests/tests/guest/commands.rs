//! Recorded commands, made into courses: those of a scenario were given one after the other.

use serde_json::{Value, json};

use crate::recorded::Record;

/// The one scenario that looks at commands while a resync runs, which never comes to an end here. A verify could begin there.
const DURING_A_RESYNC: &str = "r12";
const NO_RESYNC: &str = "--resync-rate=1";

/// The scenarios as courses. Opening block devices and setting metadata by themselves are no commands.
pub(crate) fn records(commands: Vec<Record>) -> Vec<Record> {
    let mut courses: Vec<Vec<Value>> = Vec::new();
    for Record { value } in commands {
        let follows = |course: &Vec<Value>| course[0]["scenario"] == value["scenario"];
        match courses.last_mut().filter(|course| follows(course)) {
            Some(course) => course.push(value),
            None => courses.push(vec![value]),
        }
    }
    courses.retain(|course| course[0]["cmd"][0] != "setmd");
    courses.iter().map(|course| Record { value: course_of(course) }).collect()
}

fn course_of(commands: &[Value]) -> Value {
    let (first, name) = (&commands[0]["before"], commands[0]["scenario"].as_str().unwrap_or_default());
    let mut options = Vec::new();
    if allows_two_primaries(commands) {
        options.push("--allow-two-primaries");
    }
    if name == DURING_A_RESYNC {
        options.push("--verify-alg=crc32c");
    }
    let mut setup = json!({});
    for side in ["a", "b"] {
        if first[side].is_object() {
            setup[side] = setup_of(&first[side]);
            if name == DURING_A_RESYNC {
                setup[side]["disk_options"] = json!([NO_RESYNC]);
            }
        }
    }
    let steps = commands.iter().filter(|command| !opens(command)).map(|command| {
        let mut step = command.clone();
        if !lasts(&command["after"]) {
            step["in_passing"] = json!(name != DURING_A_RESYNC);
        }
        step
    });
    json!({
        "id": name,
        "connected_at_start": first["a"]["conn"] == "Connected",
        "net_options": { "a": options, "b": options },
        "setup": setup,
        "start": first,
        "steps": steps.collect::<Vec<_>>(),
    })
}

fn opens(command: &Value) -> bool {
    ["open", "openro"].iter().any(|verb| command["cmd"][0] == *verb)
}

/// What a side is set up as to be in this state.
fn setup_of(state: &Value) -> Value {
    // It is there, and has neither disk nor network.
    if state["conn"] == "Unconfigured" {
        return json!({ "attached": false });
    }
    let mut flags = match state["disk"].as_str() {
        Some("UpToDate") => vec!["consistent", "was_up_to_date"],
        Some("Outdated") => vec!["consistent"],
        _ => Vec::new(),
    };
    if state["pdsk"] == "Inconsistent" {
        flags.push("peer_out_dated");
    }
    json!({
        "attached": true,
        "metadata": {
            "gi": state["gi"],
            "flags": flags,
            "bits_set": 0,
            "last_agreed_sectors": state["last_agreed_sectors"],
        },
    })
}

/// Whether both nodes may be Primary from the start.
fn allows_two_primaries(commands: &[Value]) -> bool {
    let both = |state: &Value| state["role"] == "Primary" && state["peer"] == "Primary";
    let later = |command: &Value| command["cmd"][1] == "--allow-two-primaries=yes";
    commands.iter().any(|command| both(&command["before"]["a"])) && !commands.iter().any(later)
}

/// Whether a state lasts: the others were recorded in passing.
fn lasts(states: &Value) -> bool {
    let passing = ["Sync", "Starting", "WFSync", "WFBit"];
    ["a", "b"].iter().all(|side| {
        let state = &states[side];
        let moves =
            state["conn"].as_str().is_some_and(|conn| passing.iter().any(|one| conn.starts_with(one)));
        !moves && state["disk"] != "Failed" && state["pdsk"] != "Failed"
    })
}
