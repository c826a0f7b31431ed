//! Single commands: what they are answered with, what they change, what they tell.

use udrbd_engine::interface::{Command, CommandResult, Failure};
use udrbd_units::Minor;

use crate::common::{Case, read_cases};
use crate::compare::{Identifiers, differences, unordered_log_difference};
use crate::harness::{Pair, VOLUME};
use crate::records::{CommandCase, Metadata, SIDES, Setup, Sides, State};
use crate::world::{build, net_options, number, recorded_number, run, side_index, write_metadata};

/// The nodes, and what is known of their identifiers, from one command of a scenario to the next.
struct World {
    pair: Pair,
    identifiers: Identifiers,
    /// It was set up, and what a diskless node remembers of data it has seen was not.
    forgetful: bool,
}

fn flag_list(flags: &[&str]) -> Vec<String> {
    flags.iter().map(|flag| (*flag).to_owned()).collect()
}

/// Metadata that become such a state when they are attached.
fn metadata(state: &State) -> Option<Metadata> {
    let gi = state.gi.clone()?;
    let mut flags = match state.disk.as_deref()? {
        "UpToDate" => flag_list(&["consistent", "was_up_to_date"]),
        "Outdated" => flag_list(&["consistent"]),
        "Inconsistent" => Vec::new(),
        _ => return None,
    };
    let known = state.metadata_flags_on_disk.iter().flatten();
    flags.extend(known.filter(|flag| *flag == "crashed_primary").cloned());
    if matches!(state.pdsk.as_deref(), Some("Inconsistent" | "Outdated")) {
        flags.push("peer_out_dated".to_owned());
    }
    let bits = state.oos_kb.unwrap_or(0) / 4;
    Some(Metadata {
        gi,
        flags,
        bits_set: crate::records::Bits::First(bits),
        last_agreed_sectors: state.last_agreed_sectors,
    })
}

/// Sets two nodes up in the state in which a command was given. They may turn out different.
fn set_up(before: &Sides<State>, two_primaries: bool) -> World {
    let mut identifiers = Identifiers::default();
    let mut setups = Sides::new();
    for (side, state) in before {
        identifiers.give(state.gi.iter().flatten());
        identifiers.give(&state.ed_uuid);
        let setup = Setup { metadata: metadata(state), attached: true, ..Setup::default() };
        setups.insert(side.clone(), setup);
    }
    let mut pair = build(&setups);
    let is = |state: &State, conn: &str| state.conn.as_deref() == Some(conn);
    let alone = |state: &State| is(state, "StandAlone") || is(state, "Unconfigured");
    let words = if two_primaries { vec!["--allow-two-primaries".to_owned()] } else { Vec::new() };
    for connected in [false, true] {
        for (side, state) in before {
            let primary = state.role.as_deref() == Some("Primary");
            let node = side_index(side);
            let with_peer = state.peer.as_deref().is_some_and(|role| role != "Unknown");
            if primary && with_peer == connected {
                pair.try_command(node, Command::Primary { volume: VOLUME, force: false });
            }
            if !connected && !alone(state) {
                pair.try_command(node, Command::Connect(Box::new(net_options(&words))));
                pair.pass_ms(350);
            }
        }
        pair.pass(3);
    }
    World { pair, identifiers, forgetful: true }
}

/// Whether the nodes are in this state, or come to be in it.
fn is_in(world: &mut World, recorded: &Sides<State>) -> bool {
    differences_after_a_while(world, recorded).is_empty()
}

fn differences_after_a_while(world: &mut World, recorded: &Sides<State>) -> Vec<String> {
    let mut last = Vec::new();
    let mut recorded = recorded.clone();
    if world.forgetful {
        let diskless = recorded.values_mut().filter(|state| state.gi.is_none());
        diskless.for_each(|state| state.ed_uuid = None);
    }
    for _ in 0..30 {
        let pair = &world.pair;
        last = world.identifiers.tentatively(|identifiers| differences(pair, &recorded, identifiers));
        if last.is_empty() {
            break;
        }
        world.pair.pass_ms(100);
    }
    last
}

/// Whether a state lasts: the others were recorded in passing.
fn lasts(states: &Sides<State>) -> bool {
    let passing = |conn: &str| {
        conn.starts_with("Sync")
            || conn.starts_with("Starting")
            || conn.starts_with("WFSync")
            || conn.starts_with("WFBit")
    };
    let failed =
        |state: &State| state.disk.as_deref() == Some("Failed") || state.pdsk.as_deref() == Some("Failed");
    !states.values().any(|state| state.conn.as_deref().is_some_and(passing) || failed(state))
}

/// Gives the command. `None`: the engine has no such command, or another part of udrbd answers it.
fn give(world: &mut World, case: &CommandCase) -> Option<Option<CommandResult>> {
    let node = side_index(&case.on);
    if case.cmd[0] == "setmd" {
        let identifiers: Vec<String> = case.cmd[1].split(':').map(|text| format!("{text:0>16}")).collect();
        world.identifiers.give(&identifiers);
        assert_eq!(case.cmd[2], "0x11");
        let flags = flag_list(&["consistent", "was_up_to_date"]);
        let metadata = Metadata { gi: identifiers.try_into().unwrap(), flags, ..Metadata::default() };
        write_metadata(&mut world.pair, node, &metadata);
        return Some(Some(Ok(())));
    }
    if case.cmd[0] == "new-minor" && case.cmd[1] == "RES" {
        let minor = Minor(case.cmd[2].parse().unwrap_or(0));
        return Some(world.pair.try_command(node, Command::NewMinor { volume: VOLUME, minor }));
    }
    // The daemon compares addresses before it asks the engine.
    let address = case.output.contains("(102)");
    let target = case.cmd.get(1).is_none_or(|word| word == "MINOR" || word.starts_with("--"));
    if address || !target || case.exit == Some(20) {
        return None;
    }
    run(&mut world.pair, node, &case.cmd)
}

fn info(result: &CommandResult) -> Vec<String> {
    match result {
        Ok(()) => Vec::new(),
        Err(Failure::Configuration { info, .. } | Failure::State { info, .. }) => info.clone(),
    }
}

/// What is not as recorded. `None`: there is nothing to compare.
fn replay(world: &mut World, case: &CommandCase) -> Option<Vec<String>> {
    let starts = world.pair.nodes.each_ref().map(|node| node.log.len());
    let result = give(world, case)?;
    let mut found = Vec::new();
    let Some(result) = result else {
        return Some(vec!["no answer".to_owned()]);
    };
    let (own, recorded) = (number(&result), recorded_number(case.exit.unwrap(), &case.output));
    if own != recorded {
        found.push(format!("ended with {own}, did with {recorded}"));
    }
    let told =
        case.output.split_once("additional info from kernel:\n").map_or("", |(_, info)| info.trim_end());
    if info(&result).join("\n") != told {
        found.push(format!("additional info {:?}, was {told:?}", info(&result)));
    }
    if lasts(&case.before) && lasts(&case.after) {
        world.pair.pass_ms(300);
        found.extend(differences_after_a_while(world, &case.after));
        for (node, side) in SIDES.into_iter().enumerate() {
            let mut recorded = case.log.get(side).cloned().unwrap_or_default();
            // The end of the preparations is in some logs.
            if case.cmd[0] != "attach" {
                recorded.retain(|line| !line.contains("Attaching"));
            }
            let log = world.pair.nodes[node].log[starts[node]..].to_vec();
            let difference = unordered_log_difference(&recorded, &log, &mut world.identifiers);
            found.extend(difference.map(|text| format!("{side}: {text}")));
        }
    }
    Some(found)
}

/// Whether the nodes of a scenario may both be Primary from its start.
fn allows_two_primaries(cases: &[Case<CommandCase>], scenario: &str) -> bool {
    let of = |case: &&Case<CommandCase>| case.record.scenario == scenario;
    let primary =
        |state: &State| state.role.as_deref() == Some("Primary") && state.peer.as_deref() == Some("Primary");
    let both = cases.iter().filter(of).any(|case| case.record.before.values().any(primary));
    let later =
        |case: &Case<CommandCase>| case.record.cmd.iter().any(|word| word == "--allow-two-primaries=yes");
    both && !cases.iter().filter(of).any(later)
}

#[test]
fn vectors_pair_commands() {
    let cases: Vec<Case<CommandCase>> = read_cases("states", "commands.jsonl");
    let mut present: Option<(String, World)> = None;
    let (mut failed, mut left_out, mut good) = (Vec::new(), Vec::new(), 0);
    for case in &cases {
        let record = &case.record;
        let name = format!("{} {}", record.id, record.cmd.join(" "));
        let two = allows_two_primaries(&cases, &record.scenario);
        let flows = |(scenario, mut world): (String, World)| {
            (scenario == record.scenario && is_in(&mut world, &record.before)).then_some(world)
        };
        let mut world = present.take().and_then(flows).unwrap_or_else(|| set_up(&record.before, two));
        if !is_in(&mut world, &record.before) {
            left_out.push(format!("{name} (not in that state)"));
            continue;
        }
        match replay(&mut world, record) {
            None => left_out.push(name),
            Some(found) if found.is_empty() => good += 1,
            Some(found) => {
                println!("{} {name}:", case.origin);
                for text in found {
                    println!("    {text}");
                }
                println!("{}", world.pair.describe());
                failed.push(record.id.clone());
            }
        }
        present = Some((record.scenario.clone(), world));
    }
    println!("commands.jsonl: {good} of {} cases; left out: {left_out:#?}", cases.len());
    assert!(failed.is_empty(), "commands.jsonl: not as recorded: {failed:?}");
    assert!(good * 3 > cases.len() * 2, "most cases are compared");
}
