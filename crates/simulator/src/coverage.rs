//! What the runs have been through.

use std::collections::BTreeMap;
use std::fmt;

/// Counts of what happened, by kind and name.
#[derive(Clone, Debug, Default)]
pub struct Coverage {
    states: BTreeMap<(u8, &'static str), u64>,
    transitions: BTreeMap<(u8, &'static str, &'static str), u64>,
    faults: BTreeMap<&'static str, u64>,
    packets: BTreeMap<&'static str, u64>,
    checks: BTreeMap<&'static str, u64>,
    /// Events handed to engines.
    pub events: u64,
    /// Simulated nanoseconds.
    pub simulated: u64,
}

/// The names of what has states.
const KINDS: [&str; 4] = ["connection", "disk", "peer's disk", "role"];

impl Coverage {
    /// Kind 0 to 3: connection, disk, peer's disk, role.
    pub(crate) fn state(&mut self, kind: u8, from: &'static str, to: &'static str) {
        *self.states.entry((kind, to)).or_default() += 1;
        *self.transitions.entry((kind, from, to)).or_default() += 1;
    }

    pub(crate) fn fault(&mut self, name: &'static str) {
        *self.faults.entry(name).or_default() += 1;
    }

    pub(crate) fn packet(&mut self, name: &'static str) {
        *self.packets.entry(name).or_default() += 1;
    }

    pub(crate) fn check(&mut self, name: &'static str) {
        *self.checks.entry(name).or_default() += 1;
    }

    /// Adds another run's.
    pub fn add(&mut self, other: &Self) {
        other.states.iter().for_each(|(key, count)| *self.states.entry(*key).or_default() += count);
        other.transitions.iter().for_each(|(key, count)| *self.transitions.entry(*key).or_default() += count);
        other.faults.iter().for_each(|(key, count)| *self.faults.entry(key).or_default() += count);
        other.packets.iter().for_each(|(key, count)| *self.packets.entry(key).or_default() += count);
        other.checks.iter().for_each(|(key, count)| *self.checks.entry(key).or_default() += count);
        self.events += other.events;
        self.simulated += other.simulated;
    }
}

fn list<'a>(
    formatter: &mut fmt::Formatter<'_>,
    title: &str,
    items: impl Iterator<Item = (&'a str, &'a u64)>,
) -> fmt::Result {
    let items: Vec<String> = items.map(|(name, count)| format!("{name} {count}")).collect();
    writeln!(formatter, "{title} ({}): {}", items.len(), items.join(", "))
}

impl fmt::Display for Coverage {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (kind, name) in KINDS.iter().enumerate() {
            let of_kind = self.states.iter().filter(|((other, _), _)| usize::from(*other) == kind);
            let transitions =
                self.transitions.keys().filter(|(other, ..)| usize::from(*other) == kind).count();
            list(
                formatter,
                &format!("{name} states, {transitions} transitions"),
                of_kind.map(|((_, state), count)| (*state, count)),
            )?;
        }
        list(formatter, "faults and commands", self.faults.iter().map(|(name, count)| (*name, count)))?;
        list(formatter, "packets", self.packets.iter().map(|(name, count)| (*name, count)))?;
        list(formatter, "checks", self.checks.iter().map(|(name, count)| (*name, count)))?;
        write!(formatter, "{} events, {:.1} simulated hours", self.events, self.simulated as f64 / 3_600e9)
    }
}
