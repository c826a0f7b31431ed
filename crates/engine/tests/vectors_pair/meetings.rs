//! Two nodes that meet: who has the better data, and what becomes of both.

use udrbd_engine::interface::Command;

use crate::common::{Case, read_cases};
use crate::compare::{
    Identifiers, before_the_loss, differences, flag_difference, generation_differences, handlers,
    log_difference,
};
use crate::harness::{Node, Pair};
use crate::records::{Meeting, SIDES, Sides, State};
use crate::world::{SECTORS, build, identifier, net_options, side_index};

/// What is not as recorded in one case.
fn replay(case: &Meeting) -> Vec<String> {
    let mut identifiers = Identifiers::default();
    let mut setups = case.before.clone();
    for setup in setups.values_mut() {
        setup.attached = true;
        identifiers.give(setup.metadata.iter().flat_map(|metadata| &metadata.gi));
    }
    let mut pair = build(&setups);
    let before: Sides<State> =
        case.before.iter().map(|(side, setup)| (side.clone(), setup.state.clone())).collect();
    let mut found = differences(&pair, &before, &mut identifiers);
    if !found.is_empty() {
        found.insert(0, "before connecting:".to_owned());
        return found;
    }
    let starts = pair.nodes.each_ref().map(|node| node.log.len());
    for side in case.connect_order.chars() {
        let options = net_options(&case.net_options[&side.to_string()]);
        let node = side_index(&side.to_string());
        // The record says by where the connection ends whether this was refused.
        let _ = pair.command(node, Command::Connect(Box::new(options)));
        pair.pass_ms(350);
    }
    pair.pass(8);
    let mut after = case.after.clone();
    for side in SIDES {
        let node = &pair.nodes[side_index(side)];
        if depends_on_time(case, side) && !ends_as_recorded(node, &case.after[side]) {
            after.remove(side);
            continue;
        }
        let log = node.log[starts[side_index(side)]..].to_vec();
        let mut recorded = case.log[side].clone();
        if case.before[side].held_open {
            // Here a command says so, there the kernel knows: the refusal is the same, but for what it tells first.
            recorded.retain(|line| {
                !["State change failed", "  state =", " wanted ="].iter().any(|text| line.contains(text))
            });
        }
        let prefix = depends_on_time(case, side) && case.after[side].conn.as_deref() == Some("WFConnection");
        if prefix {
            recorded = before_the_loss(&recorded);
        }
        let difference = log_difference(&recorded, &log, prefix, &mut identifiers);
        found.extend(difference.map(|text| format!("{side}: {text}")));
        let own: Vec<&str> = node.handlers.iter().map(|handler| handler.name()).collect();
        let recorded = handlers(&case.log[side]);
        if own != recorded {
            found.push(format!("{side}: handlers {own:?}, were {recorded:?}"));
        }
    }
    found.extend(differences(&pair, &after, &mut identifiers));
    found.extend(after_down(&mut pair, case, &mut identifiers));
    if !found.is_empty() {
        found.push(pair.describe());
    }
    found
}

/// Whether this side may see the other refuse before it has decided itself, or after.
fn depends_on_time(case: &Meeting, side: &str) -> bool {
    let gave_up = |side: &str| {
        case.after[side].conn.as_deref().is_some_and(|conn| conn == "WFConnection" || conn == "StandAlone")
    };
    !case.notes.is_empty() && gave_up(side) && SIDES.iter().all(|side| gave_up(side))
}

fn ends_as_recorded(node: &Node, recorded: &State) -> bool {
    Some(node.status().connection.to_string()) == recorded.conn
}

/// Both go down, `a` first; what the metadata say then.
fn after_down(pair: &mut Pair, case: &Meeting, identifiers: &mut Identifiers) -> Vec<String> {
    let mut found = Vec::new();
    for side in SIDES {
        let node = side_index(side);
        if pair.try_command(node, Command::Down) != Some(Ok(())) {
            found.push(format!("{side}: does not go down"));
        }
        pair.pass(2);
    }
    for side in SIDES {
        let Some(metadata) = &case.after[side].metadata_after_down else { continue };
        let node = &pair.nodes[side_index(side)];
        let superblock = node.superblock(SECTORS);
        let own = [superblock.current, superblock.bitmap, superblock.history[0], superblock.history[1]];
        // What bit 0 of the current identifier of a node that is down says is the next attach's business.
        let mut recorded = metadata.gi.clone();
        recorded[0] = format!("{:016X}", identifier(&recorded[0]).0 & !1 | own[0].0 & 1);
        let after = generation_differences(&recorded, own.map(|one| one.0), identifiers);
        found.extend(after.into_iter().map(|text| format!("{side} after down: {text}")));
        let flags = flag_difference(node, &metadata.flags);
        found.extend(flags.map(|text| format!("{side} after down: {text}")));
    }
    found
}

fn replay_all(name: &str) {
    let cases: Vec<Case<Meeting>> = read_cases("states", name);
    let mut failed = Vec::new();
    for case in &cases {
        let found = replay(&case.record);
        if !found.is_empty() {
            println!("{} {}:", case.origin, case.record.id);
            for text in found {
                println!("    {text}");
            }
            failed.push(case.record.id.clone());
        }
    }
    println!("{name}: {} of {} cases", cases.len() - failed.len(), cases.len());
    assert!(failed.is_empty(), "{name}: not as recorded: {failed:?}");
}

#[test]
fn vectors_pair_uuid_handshake() {
    replay_all("uuid-handshake.jsonl");
}

#[test]
fn vectors_pair_after_split_brain() {
    replay_all("after-sb.jsonl");
}
