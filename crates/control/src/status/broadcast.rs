//! The old `drbdsetup events` (status spec 6): states in the words of 8.4, three lines per change.
//!
//! The stream of changes does not carry progress, so there are no `SP` lines; and the `R` lines that repeat other
//! kinds of messages are left out.

use std::collections::HashMap;

use udrbd_units::Minor;

use super::{DeviceSnapshot, ResourceSnapshot};
use crate::protocol::{HelperEvent, StreamItem};

/// Which devices to tell of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BroadcastScope {
    /// All of the stream.
    All,
    /// One.
    Minor(Minor),
}

/// Turns the stream of changes into lines.
#[derive(Debug)]
pub struct BroadcastPrinter {
    scope: BroadcastScope,
    /// The states last told, by minor, as text.
    states: HashMap<Minor, String>,
    sequence: u64,
    dumping: bool,
}

impl BroadcastPrinter {
    /// A printer that has seen nothing.
    pub fn new(scope: BroadcastScope) -> Self {
        Self { scope, states: HashMap::new(), sequence: 1, dumping: true }
    }

    /// The lines that an item of the stream is worth, without newlines.
    pub fn lines(&mut self, item: &StreamItem) -> Vec<String> {
        match item {
            StreamItem::Resource { resource, .. } => self.resource(resource),
            StreamItem::Helper { event, .. } => self.helper(event).into_iter().collect(),
            StreamItem::DumpEnd { .. } => {
                self.dumping = false;
                Vec::new()
            }
            StreamItem::ResourceGone { .. } | StreamItem::Skipped { .. } => Vec::new(),
        }
    }

    fn wants(&self, minor: Minor) -> bool {
        match self.scope {
            BroadcastScope::All => true,
            BroadcastScope::Minor(wanted) => wanted == minor,
        }
    }

    fn resource(&mut self, resource: &ResourceSnapshot) -> Vec<String> {
        if resource.devices.is_empty() && self.dumping && self.scope == BroadcastScope::All {
            return vec![format!("{} R - {}", self.sequence, resource.name)];
        }
        let mut lines = Vec::new();
        for device in &resource.devices {
            if !self.wants(device.minor) {
                continue;
            }
            let name = device_name(resource, device);
            let state = state_text(resource, device);
            let previous = self.states.insert(device.minor, state.clone());
            match previous {
                Some(previous) if previous != state => {
                    self.sequence += 1;
                    let number = self.sequence;
                    lines.push(format!("{number} ST-prev {name} {previous}"));
                    lines.push(format!("{number} ST-new {name} {state}"));
                    lines.push(format!("{number} ST {name} {state}"));
                }
                None if self.dumping => lines.push(format!("{} ST {name} {state}", self.sequence)),
                _ => {}
            }
        }
        lines
    }

    fn helper(&mut self, event: &HelperEvent) -> Option<String> {
        let (volume, minor) = event.device.filter(|(_, minor)| self.wants(*minor))?;
        self.sequence += 1;
        let name = format!("{minor},{}[{volume}] {}", event.resource, event.helper);
        Some(match event.status {
            None => format!("{} UH {name}", self.sequence),
            Some(status) => format!("{} UH-post {name} 0x{status:04x}", self.sequence),
        })
    }
}

fn device_name(resource: &ResourceSnapshot, device: &DeviceSnapshot) -> String {
    format!("{},{}[{}]", device.minor, resource.name, device.volume)
}

fn state_text(resource: &ResourceSnapshot, device: &DeviceSnapshot) -> String {
    let flag = |on: bool, letter: char| if on { letter } else { '-' };
    let paused = device.resync_paused;
    format!(
        "{{ cs:{} ro:{}/{} ds:{}/{} {}{}{}{} }}",
        device.connection,
        device.role,
        device.peer_role,
        device.disk,
        device.peer_disk,
        if resource.suspended.user { 's' } else { 'r' },
        flag(paused.dependency, 'a'),
        flag(paused.peer, 'p'),
        flag(paused.user, 'u'),
    )
}
