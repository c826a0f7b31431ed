//! What is the same in two runs: states, identifiers up to those drawn at random, lines of the log.

use std::collections::{BTreeMap, BTreeSet};

use udrbd_metadata::Flags;
use udrbd_units::{ConnectionState, DiskState, Role};

use crate::harness::{Node, Pair};
use crate::records::{SIDES, Sides, State};
use crate::world::{SECTORS, flags, identifier, side_index};

/// What a new sync identifier is above the identifier it is derived from.
const STEP: u64 = 1 << 48;

/// Which identifier of this run stands for which of the record. Identifiers that were written beforehand stand for
/// themselves, those drawn at random for whatever turned up in their place first; bit 0 is not part of them.
#[derive(Clone, Default)]
pub(crate) struct Identifiers {
    given: BTreeSet<u64>,
    drawn: BTreeMap<u64, u64>,
}

impl Identifiers {
    /// These are not random.
    pub(crate) fn give<'a>(&mut self, texts: impl IntoIterator<Item = &'a String>) {
        self.given.extend(texts.into_iter().map(|text| identifier(text).0 & !1));
    }

    /// Compares, and forgets what was found to stand for what if there are differences.
    pub(crate) fn tentatively(&mut self, compare: impl FnOnce(&mut Self) -> Vec<String>) -> Vec<String> {
        let before = self.clone();
        let found = compare(self);
        if !found.is_empty() {
            *self = before;
        }
        found
    }

    fn is_given(&self, value: u64) -> bool {
        (0..8).any(|steps| self.given.contains(&value.wrapping_sub(steps * STEP)) || value <= 4)
    }

    /// Whether `own` is what the record calls `recorded`.
    pub(crate) fn same(&mut self, recorded: u64, own: u64) -> bool {
        let (recorded, own) = (recorded & !1, own & !1);
        if self.is_given(recorded) || self.is_given(own) {
            return recorded == own;
        }
        for steps in 0..8 {
            if let Some(found) = self.drawn.get(&recorded.wrapping_sub(steps * STEP)) {
                return found.wrapping_add(steps * STEP) == own;
            }
        }
        if self.drawn.values().any(|other| *other == own) {
            return false;
        }
        self.drawn.insert(recorded, own);
        true
    }

    /// The same for a text with identifiers in it.
    pub(crate) fn same_text(&mut self, recorded: &str, own: &str) -> bool {
        let pieces = |text: &str| -> Vec<String> { text.split([' ', ':', '=']).map(str::to_owned).collect() };
        let (recorded, own) = (pieces(recorded), pieces(own));
        recorded.len() == own.len()
            && recorded.iter().zip(&own).all(|(recorded, own)| {
                let hex =
                    |text: &str| (text.len() == 16).then(|| u64::from_str_radix(text, 16).ok()).flatten();
                match (hex(recorded), hex(own)) {
                    (Some(recorded), Some(own)) => self.same(recorded, own),
                    _ => recorded == own,
                }
            })
    }
}

/// A difference for each field that is not as recorded.
pub(crate) fn differences(
    pair: &Pair,
    recorded: &Sides<State>,
    identifiers: &mut Identifiers,
) -> Vec<String> {
    let mut found = Vec::new();
    for side in SIDES {
        if let Some(state) = recorded.get(side) {
            let node = &pair.nodes[side_index(side)];
            found.extend(
                node_differences(node, state, identifiers).into_iter().map(|text| format!("{side}: {text}")),
            );
        }
    }
    found
}

fn node_differences(node: &Node, recorded: &State, identifiers: &mut Identifiers) -> Vec<String> {
    let mut found = Vec::new();
    let Some(engine) = &node.engine else { return found };
    let status = engine.status();
    let Some(volume) = status.volumes.first() else {
        if recorded.conn.is_some() {
            found.push("there is no volume".to_owned());
        }
        return found;
    };
    let mut check = |name: &str, own: String, recorded: &Option<String>| {
        if let Some(recorded) = recorded
            && own != *recorded
        {
            found.push(format!("{name} is {own}, was {recorded}"));
        }
    };
    let unconfigured = volume.disk == DiskState::Diskless
        && volume.connection == ConnectionState::StandAlone
        && volume.role == Role::Secondary;
    let connection = if unconfigured { "Unconfigured".to_owned() } else { volume.connection.to_string() };
    check("conn", connection, &recorded.conn);
    check("role", volume.role.to_string(), &recorded.role);
    check("peer", volume.peer_role.to_string(), &recorded.peer);
    check("disk", volume.disk.to_string(), &recorded.disk);
    check("pdsk", volume.peer_disk.to_string(), &recorded.pdsk);
    let letter = |set: bool, letter: char| if set { letter } else { '-' };
    let suspended = status.suspended_user || status.suspended_no_data || status.suspended_fencing;
    let letters: String = [
        if suspended { 's' } else { 'r' },
        letter(volume.paused_by_dependency, 'a'),
        letter(volume.paused_by_peer, 'p'),
        letter(volume.paused_by_user, 'u'),
    ]
    .into_iter()
    .collect();
    check("flags", letters, &recorded.flags.as_ref().map(|text| text.chars().take(4).collect()));
    let kib = volume.counters.out_of_sync_sectors / 2;
    check("oos", kib.to_string(), &recorded.oos_kb.map(|kib| kib.to_string()));
    if let (Some(texts), Some(own)) = (&recorded.gi, volume.generations) {
        found.extend(generation_differences(texts, own.map(|one| one.0), identifiers));
    }
    if let Some(text) = &recorded.ed_uuid
        && !identifiers.same(identifier(text).0, volume.exposed_generation.0)
    {
        found.push(format!("ed_uuid is {}, was {text}", volume.exposed_generation));
    }
    if let Some(sectors) = recorded.last_agreed_sectors
        && volume.generations.is_some()
        && node.superblock(SECTORS).la_size_sect.0 != sectors
    {
        found.push(format!("la is {}, was {sectors}", node.superblock(SECTORS).la_size_sect));
    }
    found
}

/// A difference for each of four identifiers. Bit 0 counts where it is not random: everywhere in identifiers that were
/// written beforehand, and in the current one.
pub(crate) fn generation_differences(
    recorded: &[String; 4],
    own: [u64; 4],
    identifiers: &mut Identifiers,
) -> Vec<String> {
    let mut found = Vec::new();
    for (place, (text, own)) in recorded.iter().zip(own).enumerate() {
        let value = identifier(text).0;
        let low_bit_counts = place == 0 || identifiers.is_given(value & !1);
        if !identifiers.same(value, own) || (low_bit_counts && value & 1 != own & 1) {
            found.push(format!("gi[{place}] is {own:016X}, was {text}"));
        }
    }
    found
}

/// A difference if the flags on disk are not these. Whether the activity log is clean is the next attach's business.
pub(crate) fn flag_difference(node: &Node, recorded: &[String]) -> Option<String> {
    let own = node.superblock(SECTORS).flags.with(Flags::AL_CLEAN, false);
    let recorded = flags(recorded).with(Flags::AL_CLEAN, false);
    (own != recorded).then(|| format!("metadata flags are {:#x}, were {:#x}", own.0, recorded.0))
}

/// Whether a line of the log tells a decision: a change of state, a change of identifiers, what a handshake found.
/// How a connection broke is a matter of time.
fn tells(line: &str) -> bool {
    const WORDS: [&str; 34] = [
        "role( ",
        "peer( ",
        "conn( ",
        "disk( ",
        "pdsk( ",
        "susp( ",
        "_isp( ",
        "current UUID",
        "updated sync",
        "updated UUIDs",
        "cleared bitmap",
        "drbd_sync_handshake:",
        "uuid_compare()",
        "self ",
        "peer 0",
        "Split-Brain",
        "Becoming sync",
        "I shall become",
        "Unrelated data",
        "dry-run connect",
        "Writing the whole bitmap, full",
        "No resync, but",
        "Began resync",
        "Implicitly upgraded",
        "Resync aborted",
        "was SyncSource",
        "was SyncTarget",
        "syncUUID",
        "State change failed",
        "  state =",
        " wanted =",
        "fence-peer helper",
        "Not fencing",
        "Forced",
    ];
    WORDS.iter().any(|word| line.contains(word)) && !is_about_losing(line)
}

fn is_about_losing(line: &str) -> bool {
    const WORDS: [&str; 5] = ["NetworkFailure", "BrokenPipe", "ProtocolError", "TearDown", "Timeout )"];
    WORDS.iter().any(|word| line.contains(word)) || line == "Split-Brain detected, dropping connection!"
}

/// Whether nothing but the way from a broken connection to its next state is told: it begins in different states.
fn is_a_way_out(line: &str) -> bool {
    const TARGETS: [&str; 4] =
        ["-> Disconnecting )", "-> StandAlone )", "-> Unconnected )", "-> WFConnection )"];
    line.starts_with("conn( ") && TARGETS.iter().any(|target| line.ends_with(target))
}

/// The lines of two logs that tell decisions.
fn telling<'a>(recorded: &'a [String], own: &'a [String]) -> (Vec<&'a str>, Vec<&'a str>) {
    let recorded = recorded.iter().map(|line| line.split_once(": ").map_or(line.as_str(), |(_, text)| text));
    let recorded: Vec<&str> = recorded.map(str::trim_end).collect();
    let own: Vec<&str> = own.iter().map(|line| line.trim_end()).collect();
    let breaks = recorded.iter().chain(&own).any(|line| is_about_losing(line));
    let counts = |line: &&str| tells(line) && !(breaks && is_a_way_out(line));
    (recorded.into_iter().filter(counts).collect(), own.into_iter().filter(counts).collect())
}

/// The first place in which the log of a node is not as recorded, as far as it tells decisions. A `prefix` may go on.
pub(crate) fn log_difference(
    recorded: &[String],
    own: &[String],
    prefix: bool,
    identifiers: &mut Identifiers,
) -> Option<String> {
    let (recorded, mut own) = telling(recorded, own);
    if prefix {
        own.truncate(recorded.len());
    }
    for place in 0..recorded.len().max(own.len()) {
        match (recorded.get(place), own.get(place)) {
            (Some(recorded), Some(own)) if identifiers.same_text(recorded, own) => {}
            (recorded, own) => {
                return Some(format!("the log says {own:?}, said {recorded:?}"));
            }
        }
    }
    None
}

/// The lines only one of two logs has, as far as they tell decisions. There, threads wrote them at the same time.
pub(crate) fn unordered_log_difference(
    recorded: &[String],
    own: &[String],
    identifiers: &mut Identifiers,
) -> Option<String> {
    let (mut recorded, mut own) = telling(recorded, own);
    recorded.retain(|recorded| {
        let place = own.iter().position(|own| {
            let mut trial = identifiers.clone();
            let same = trial.same_text(recorded, own);
            if same {
                *identifiers = trial;
            }
            same
        });
        place.map(|place| own.remove(place)).is_none()
    });
    let same = recorded.is_empty() && own.is_empty();
    (!same).then(|| format!("only here the log says {own:?}, only there {recorded:?}"))
}

/// The lines of a log before a connection broke.
pub(crate) fn before_the_loss(log: &[String]) -> Vec<String> {
    log.iter().take_while(|line| !is_about_losing(line)).cloned().collect()
}

/// The handlers a recorded log tells of, in their order.
pub(crate) fn handlers(log: &[String]) -> Vec<&str> {
    let calls = log.iter().filter(|line| !line.contains(" exit code "));
    calls.filter_map(|line| line.split_once("helper command: HELPER ")?.1.split(' ').next()).collect()
}
