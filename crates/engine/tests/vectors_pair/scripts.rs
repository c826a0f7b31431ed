//! What two nodes went through step by step: fencing, failing disks, frozen I/O, invalidated data, two Primaries.

use std::collections::HashMap;

use udrbd_engine::interface::{ClientError, Command, Operation};

use crate::common::{Case, read_cases};
use crate::compare::{Identifiers, differences, handlers, unordered_log_difference};
use crate::harness::Pair;
use crate::records::{SIDES, Script, ScriptStep, Setup, Sides, State};
use crate::world::{HELD_OPEN, build, net_options, number, recorded_number, run, side_index};

/// What a case needs that the engine does not do, if anything.
fn beyond_the_engine(case: &Script) -> Option<String> {
    for step in &case.steps {
        match step.cmd[0].as_str() {
            "verify"
                if step.after.values().flatten().any(|state| state.conn.as_deref() == Some("VerifyS")) =>
            {
                return Some("a verify seen under way".to_owned());
            }
            "sh" if step.cmd[1] != "true" => return Some("writing below the device".to_owned()),
            "drbdmeta" if step.cmd[1] == "get-gi" => return Some("drbdmeta get-gi".to_owned()),
            _ => {}
        }
    }
    None
}

/// Whether from this step on udrbd differs on purpose: a forced promotion makes one generation, where the real one makes
/// two and forgets the one the peer has.
fn differs_on_purpose(step: &ScriptStep) -> bool {
    let generations = |log: &Vec<String>| log.iter().filter(|line| line.contains("new current UUID")).count();
    step.cmd.iter().any(|word| word == "--force") && step.log.values().any(|log| generations(log) > 1)
}

struct Replay<'a> {
    pair: Pair,
    case: &'a Script,
    identifiers: Identifiers,
    log_starts: [usize; 2],
    handler_starts: [usize; 2],
    /// The link stands still: when that is noticed is a matter of time.
    stalled: bool,
    /// The last request of each kind on each node.
    requests: HashMap<(usize, String), u64>,
    found: Vec<String>,
}

impl<'a> Replay<'a> {
    fn new(case: &'a Script) -> Self {
        let mut identifiers = Identifiers::default();
        for setup in case.setup.values() {
            identifiers.give(setup.metadata.iter().flat_map(|metadata| &metadata.gi));
        }
        let pair = build(&case.setup);
        let mut replay = Self {
            pair,
            case,
            identifiers,
            log_starts: [0; 2],
            handler_starts: [0; 2],
            stalled: false,
            requests: HashMap::new(),
            found: Vec::new(),
        };
        if case.connected_at_start {
            for (node, side) in SIDES.into_iter().enumerate() {
                let options = Box::new(net_options(&case.net_options[side]));
                replay.pair.command(node, Command::Connect(options)).unwrap();
                replay.pair.pass_ms(350);
            }
            replay.pair.pass(3);
        }
        let start = replay.recorded_start();
        replay.expect("start", &start);
        replay.log_starts = replay.pair.nodes.each_ref().map(|node| node.log.len());
        replay.handler_starts = replay.pair.nodes.each_ref().map(|node| node.handlers.len());
        replay
    }

    fn recorded_start(&self) -> Sides<State> {
        let mut start = self.case.start.clone();
        if self.case.setup.values().any(sized) {
            start.values_mut().for_each(|state| state.oos_kb = None);
        }
        start
    }

    /// Goes on until both nodes are as recorded, or do not become so.
    fn expect(&mut self, what: &str, recorded: &Sides<State>) {
        let mut last = Vec::new();
        for _ in 0..150 {
            last = self.identifiers.tentatively(|identifiers| differences(&self.pair, recorded, identifiers));
            if last.is_empty() {
                return;
            }
            self.pair.pass_ms(100);
        }
        self.found.extend(last.into_iter().map(|text| format!("{what}: {text}")));
    }

    fn step(&mut self, step: &ScriptStep, last: bool) {
        let what = format!("{} {}", step.on, step.cmd.join(" "));
        match step.on.as_str() {
            "net" => self.network(&step.cmd[0]),
            "-" => {
                assert_eq!(step.cmd[0], "sleep");
                self.pair.pass(step.cmd[1].parse().unwrap());
            }
            side => self.on_side(side_index(side), step, &what),
        }
        self.pair.pass_ms(300);
        if !self.stalled || last {
            self.expect(&what, &self.recorded_states(step));
        }
        if !self.stalled {
            self.compare_logs(step, &what);
            self.compare_requests(step, &what);
        }
    }

    /// What was recorded, without what is known to have been recorded in the middle of something.
    fn recorded_states(&self, step: &ScriptStep) -> Sides<State> {
        let mut states = Sides::new();
        for (side, state) in &step.after {
            let Some(mut state) = state.clone() else { continue };
            let frozen = state.flags.as_ref().is_some_and(|flags| flags.starts_with('s'));
            let log = step.log.get(side);
            if frozen && log.is_some_and(|log| log.iter().any(|line| line.contains("susp( 1 -> 0 )"))) {
                continue;
            }
            if self.case.setup.values().any(sized) {
                // A bitmap that shrinks: the real one loses count of some bits.
                state.oos_kb = None;
            }
            states.insert(side.clone(), state);
        }
        states
    }

    fn compare_logs(&mut self, step: &ScriptStep, what: &str) {
        let fenced =
            self.case.setup.values().any(|setup| setup.disk_options.iter().any(|o| o.contains("fencing")));
        for (node, side) in SIDES.into_iter().enumerate() {
            let mut recorded = step.log.get(side).cloned().unwrap_or_default();
            let mut log = self.pair.nodes[node].log[self.log_starts[node]..].to_vec();
            self.log_starts[node] = self.pair.nodes[node].log.len();
            // The end of the preparations is in some logs.
            let prepared = |line: &String| {
                line.contains("Attaching -> Consistent") || line.contains("WFReportParams -> Connected")
            };
            if let Some(place) = recorded.iter().rposition(prepared)
                && !log.iter().any(prepared)
            {
                recorded.drain(..=place);
            }
            // The real one says so also of who never wanted to fence.
            recorded.retain(|line| fenced || !line.contains("Not fencing peer"));
            if step.cmd[0] == "primary" && fenced {
                // The real one does not tell the last of several refusals.
                for text in ["State change failed", "  state =", " wanted ="] {
                    if !recorded.iter().any(|line| line.contains(text)) {
                        log.retain(|line| !line.starts_with(text));
                    }
                }
            }
            let difference = unordered_log_difference(&recorded, &log, &mut self.identifiers);
            self.found.extend(difference.map(|text| format!("{what}: {side}: {text}")));
            let own = &self.pair.nodes[node].handlers[self.handler_starts[node]..];
            let own: Vec<&str> = own.iter().map(|handler| handler.name()).collect();
            let recorded = handlers(&recorded);
            if own != recorded {
                self.found.push(format!("{what}: {side}: handlers {own:?}, were {recorded:?}"));
            }
            self.handler_starts[node] = self.pair.nodes[node].handlers.len();
        }
    }

    /// What had become of earlier requests when the step was over.
    fn compare_requests(&mut self, step: &ScriptStep, what: &str) {
        for seen in &step.io_seen_after_step {
            let node = side_index(&seen.on);
            let own = self.outcome(node, self.requests[&(node, seen.op.clone())]);
            if own != seen.result {
                self.found.push(format!("{what}: the {} is {own}, was {}", seen.op, seen.result));
            }
        }
    }

    fn outcome(&self, node: usize, id: u64) -> &'static str {
        match self.pair.nodes[node].completions.get(&id).map(|(result, _)| *result) {
            None => "blocked",
            Some(Ok(())) => "ok",
            Some(Err(ClientError::Io)) => "EIO",
            Some(Err(_)) => "another error",
        }
    }

    fn network(&mut self, what: &str) {
        match what {
            "refuse" => {
                self.pair.refused = true;
                self.pair.break_wires();
            }
            "cut" => self.pair.break_wires(),
            "hold" => {
                self.pair.cut = true;
                self.stalled = true;
            }
            "ok" => {
                self.pair.refused = false;
                self.pair.cut = false;
            }
            other => panic!("network {other}"),
        }
    }

    fn on_side(&mut self, node: usize, step: &ScriptStep, what: &str) {
        match step.cmd[0].as_str() {
            "write" | "read" => self.request(node, step, what),
            "io-error" => {
                let kind = step.cmd[1].as_str();
                self.pair.nodes[node].failing = kind == "data" || kind == "all";
                self.pair.nodes[node].failing_metadata = kind == "meta" || kind == "all";
            }
            "blocksize" => {
                let size = self.pair.nodes[node].status().size.to_string();
                if size != step.output.trim() {
                    self.found.push(format!("{what}: size is {size}, was {}", step.output));
                }
            }
            "sh" => {}
            _ => {
                let mut words = step.cmd.clone();
                if words[0] == "connect" {
                    words.extend(self.case.net_options[&step.on].iter().cloned());
                }
                if words[0] == "secondary" && self.has_pending_requests(node) {
                    words.push(HELD_OPEN.to_owned());
                }
                let result = run(&mut self.pair, node, &words).unwrap_or_else(|| panic!("{what}"));
                let own = result.as_ref().map(number);
                let recorded = step.exit.map(|exit| recorded_number(exit, &step.output));
                if own != recorded {
                    self.found.push(format!("{what}: ended with {own:?}, did with {recorded:?}"));
                }
            }
        }
    }

    fn request(&mut self, node: usize, step: &ScriptStep, what: &str) {
        let sector = step.cmd[1].parse::<u64>().unwrap() * 2;
        let bytes = step.cmd[2].parse::<u32>().unwrap() * 1024;
        let operation = match step.cmd[0].as_str() {
            "write" => Operation::Write { fua: false, preflush: false },
            _ => Operation::Read,
        };
        let id = self.pair.submit(node, operation, sector, &vec![7; bytes as usize], bytes);
        self.pair.pass_ms(1500);
        self.requests.insert((node, step.cmd[0].clone()), id);
        let own = self.outcome(node, id);
        // A handler that ran held some up for longer than the recording waited.
        let late = own == "ok" && step.io_result.as_deref() == Some("blocked") && !self.is_suspended(node);
        if !self.stalled && !late && Some(own) != step.io_result.as_deref() {
            self.found.push(format!("{what}: {own}, was {:?}", step.io_result));
        }
    }

    fn has_pending_requests(&self, node: usize) -> bool {
        self.requests.iter().any(|((owner, _), id)| *owner == node && self.outcome(node, *id) == "blocked")
    }

    fn is_suspended(&self, node: usize) -> bool {
        let status = self.pair.nodes[node].engine.as_ref().unwrap().status();
        status.suspended_user || status.suspended_fencing || status.suspended_no_data
    }
}

fn sized(setup: &Setup) -> bool {
    setup.disk_options.iter().any(|option| option.starts_with("--size="))
}

fn replay_all(name: &str) {
    let cases: Vec<Case<Script>> = read_cases("states", name);
    let mut failed = Vec::new();
    let mut left_out = Vec::new();
    let mut in_part = Vec::new();
    for case in &cases {
        let script = &case.record;
        if let Some(what) = beyond_the_engine(script) {
            left_out.push(format!("{} ({what})", script.id));
            continue;
        }
        let mut replay = Replay::new(script);
        for (number, step) in script.steps.iter().enumerate() {
            if differs_on_purpose(step) {
                in_part.push(script.id.clone());
                break;
            }
            replay.step(step, number + 1 == script.steps.len());
            if !replay.found.is_empty() {
                break;
            }
        }
        if !replay.found.is_empty() {
            println!("{} {}:", case.origin, script.id);
            for text in &replay.found {
                println!("    {text}");
            }
            println!("{}", replay.pair.describe());
            failed.push(script.id.clone());
        }
    }
    let tried = cases.len() - left_out.len();
    println!("{name}: {} of {} cases; left out: {left_out:?}", tried - failed.len(), cases.len());
    println!("{name}: up to a promotion that differs on purpose: {in_part:?}");
    assert!(failed.is_empty(), "{name}: not as recorded: {failed:?}");
}

#[test]
fn vectors_pair_fencing() {
    replay_all("fencing.jsonl");
}

#[test]
fn vectors_pair_misc() {
    replay_all("misc.jsonl");
}
