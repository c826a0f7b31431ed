//! Transcripts: `show`, `get-gi`, `show-gi` and the messages of refused commands.

use udrbd_control::options::{DiskOptions, NetOptions, OptionSet};
use udrbd_control::protocol::MetadataIndex;
use udrbd_control::status::{
    BackingSnapshot, DeviceSnapshot, Generations, NodeSnapshot, ResourceSnapshot, get_gi, show, show_gi,
};
use udrbd_control::{Address, ReturnCode};
use udrbd_units::{GenerationId, Minor, VolumeNumber};

use crate::{check_all, files, same};

/// One command of a transcript: its words, what it printed, its exit status.
struct Run {
    command: String,
    output: String,
    status: i32,
}

fn runs(text: &str) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for line in text.lines() {
        if let Some(command) = line.strip_prefix("$ ") {
            runs.push(Run { command: command.to_owned(), output: String::new(), status: 0 });
        } else if let Some(run) = runs.last_mut() {
            match line.strip_prefix("[rc ").and_then(|rest| rest.strip_suffix(']')) {
                Some(status) => run.status = status.parse().expect("a status"),
                None => run.output.push_str(&format!("{line}\n")),
            }
        }
    }
    runs
}

/// Checks every run of a program called drbdsetup, in transcripts of every folder, that `wanted` picks.
fn check_runs(at_least: usize, wanted: impl Fn(&Run) -> bool, check: impl Fn(&Run) -> Result<(), String>) {
    let mut count = 0;
    for folder in ["commands", "states", "drbdadm"] {
        let texts = files(folder);
        let number_of = |text: &str| runs(text).into_iter().filter(|run| wanted(run)).count();
        count += texts.iter().map(|(_, text)| number_of(text)).sum::<usize>();
        check_all(texts, 0, |_, text| {
            runs(text)
                .iter()
                .filter(|run| run.command.starts_with("drbdsetup") && wanted(run))
                .try_for_each(|run| check(run).map_err(|problem| format!("$ {}\n{problem}", run.command)))
        });
    }
    assert!(count >= at_least, "only {count} runs");
}

fn verb(run: &Run) -> &str {
    run.command.split(' ').nth(1).unwrap_or_default()
}

#[test]
fn show_vectors() {
    check_runs(
        15,
        |run| verb(run) == "show" && run.status == 0,
        |run| {
            let defaults = run.command.contains("--show-defaults");
            same(&show(&parse_show(&run.output)?, defaults), &run.output)
        },
    );
}

#[test]
fn show_gi_vectors() {
    check_runs(
        7,
        |run| verb(run) == "show-gi" && run.status == 0,
        |run| {
            let line = run.output.lines().nth(6).ok_or("too short")?;
            same(&show_gi(&parse_gi(line)?), &run.output)
        },
    );
}

#[test]
fn get_gi_vectors() {
    check_runs(
        60,
        |run| verb(run) == "get-gi" && run.status == 0,
        |run| same(&format!("{}\n", get_gi(&parse_gi(run.output.trim_end())?)), &run.output),
    );
}

#[test]
fn refusal_vectors() {
    let code_of = |run: &Run| -> Option<i32> {
        let (_, rest) =
            run.output.split_once(": Failure: (").or(run.output.split_once("change failed: ("))?;
        rest.split_once(')')?.0.parse().ok()
    };
    check_runs(
        15,
        |run| code_of(run).is_some(),
        |run| {
            let code = code_of(run).and_then(ReturnCode::from_number).ok_or("unknown code")?;
            let object = run.output.split(':').next().unwrap_or_default();
            let message = code.message(object).ok_or("a refusal that is none")?;
            let (ours, info) = run.output.split_at(message.len().min(run.output.len()));
            same(ours, &message)?;
            if !(info == "\n" || info.starts_with("\nadditional info from kernel:\n")) {
                return Err(format!("  behind the message: {info:?}"));
            }
            same(&code.exit_status().to_string(), &run.status.to_string())
        },
    );
}

fn parse_gi(line: &str) -> Result<Generations, String> {
    let parts: Vec<&str> = line.split(':').collect();
    if parts.len() != 11 {
        return Err(format!("{} parts in {line:?}", parts.len()));
    }
    let id =
        |index: usize| u64::from_str_radix(parts[index], 16).map(GenerationId).map_err(|e| e.to_string());
    let flag = |index: usize| parts[index] == "1";
    Ok(Generations {
        current: id(0)?,
        bitmap: id(1)?,
        history: [id(2)?, id(3)?],
        consistent: flag(4),
        was_up_to_date: flag(5),
        primary: flag(6),
        connected: flag(7),
        full_sync: flag(8),
        peer_outdated: flag(9),
        crashed_primary: flag(10),
    })
}

fn parse_show(text: &str) -> Result<NodeSnapshot, String> {
    let mut node = NodeSnapshot::default();
    let mut path: Vec<String> = Vec::new();
    for line in text.lines() {
        let line = line.trim();
        if let Some(section) = line.strip_suffix(" {") {
            open_section(&mut node, section)?;
            path.push(section.to_owned());
        } else if line == "}" {
            path.pop().ok_or("unbalanced")?;
        } else if !line.is_empty() {
            let section = path.last().ok_or("a statement outside")?;
            let in_peer = section == "_remote_host";
            statement(node.resources.last_mut().ok_or("no resource")?, section, in_peer, line)?;
        }
    }
    Ok(node)
}

/// The text between quotes without its escapes, or the word as it is.
fn unquoted(value: &str) -> String {
    match value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) {
        Some(inner) => inner.replace("\\\"", "\"").replace("\\\\", "\\"),
        None => value.to_owned(),
    }
}

fn open_section(node: &mut NodeSnapshot, section: &str) -> Result<(), String> {
    if let Some(name) = section.strip_prefix("resource ") {
        node.resources.push(ResourceSnapshot::new(name));
        return Ok(());
    }
    let resource = node.resources.last_mut().ok_or("no resource")?;
    if section == "net" {
        resource.connection.options = Some(NetOptions::default());
    } else if let Some(volume) = section.strip_prefix("volume ") {
        let volume = VolumeNumber(volume.parse().map_err(|_| "volume")?);
        resource.devices.push(DeviceSnapshot::new(volume, Minor(0)));
    }
    Ok(())
}

fn statement(
    resource: &mut ResourceSnapshot,
    section: &str,
    in_peer: bool,
    line: &str,
) -> Result<(), String> {
    let (statement, _) = line.split_once(';').ok_or("no semicolon")?;
    let (name, value) = statement.split_once('\t').ok_or("no tab")?;
    let (name, value) = (name.trim_end(), value.trim_start());
    let plain = &unquoted(value);
    let error = |error: udrbd_control::options::OptionError| error.to_string();
    match section {
        "options" => return resource.options.set(name, Some(plain)).map_err(error),
        "net" => {
            let options = resource.connection.options.as_mut().ok_or("no net")?;
            return options.set(name, Some(plain)).map_err(error);
        }
        "disk" => {
            let backing = resource.devices.last_mut().and_then(|device| device.backing.as_mut());
            return backing.ok_or("no disk")?.options.set(name, Some(plain)).map_err(error);
        }
        _ => {}
    }
    match name {
        "address" => {
            let address: Address = value.replacen(' ', ":", 1).parse().map_err(|_| "address")?;
            let (local, peer) = resource.connection.addresses.unwrap_or((address, address));
            resource.connection.addresses = Some(if in_peer { (local, address) } else { (address, peer) });
        }
        "device" => {
            let minor = value.strip_prefix("minor ").ok_or("no minor")?.parse().map_err(|_| "minor")?;
            resource.devices.last_mut().ok_or("no volume")?.minor = Minor(minor);
        }
        "disk" => {
            resource.devices.last_mut().ok_or("no volume")?.backing = Some(BackingSnapshot {
                disk: plain.to_owned(),
                metadata: plain.to_owned(),
                index: MetadataIndex::Internal,
                options: DiskOptions::default(),
                generations: Generations::default(),
            });
        }
        "meta-disk" => {
            let backing =
                resource.devices.last_mut().and_then(|device| device.backing.as_mut()).ok_or("disk")?;
            if let Some((device, slot)) = value.split_once(" [ ") {
                backing.metadata = device.trim_matches('"').to_owned();
                let slot = slot.trim_end_matches(" ]").parse().map_err(|_| "slot")?;
                backing.index = MetadataIndex::Slot(slot);
            } else if value != "internal" {
                backing.metadata = plain.to_owned();
                backing.index = MetadataIndex::Flexible;
            }
        }
        other => return Err(format!("unknown statement {other}")),
    }
    Ok(())
}
