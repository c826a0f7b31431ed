//! `drbdsetup show`: the configuration in force, as configuration text (status spec 3.4).

use std::fmt::Write as _;

use udrbd_units::Minor;

use super::{DeviceSnapshot, NodeSnapshot, ResourceSnapshot};
use crate::options::{OptionEntry, OptionKind, OptionSet, RESYNC_UNDO};
use crate::protocol::MetadataIndex;

/// The configuration of the resources, in their order, blocks separated by an empty line.
pub fn show(node: &NodeSnapshot, show_defaults: bool) -> String {
    let blocks: Vec<String> = node
        .resources
        .iter()
        .map(|resource| show_resource(resource, &resource.devices.iter().collect::<Vec<_>>(), show_defaults))
        .collect();
    blocks.join("\n")
}

/// The configuration of one volume and its resource; `None` if there is no such minor.
pub fn show_minor(node: &NodeSnapshot, minor: Minor, show_defaults: bool) -> Option<String> {
    let (resource, device) = node.device_by_minor(minor)?;
    Some(show_resource(resource, &[device], show_defaults))
}

fn show_resource(resource: &ResourceSnapshot, devices: &[&DeviceSnapshot], show_defaults: bool) -> String {
    let mut out = Block { text: String::new(), indent: 0, show_defaults };
    out.open(&format!("resource {}", resource.name));
    // The original does not tell the options of a resource without volumes.
    if !devices.is_empty() {
        out.options("options", &resource.options);
    }
    if let Some(options) = &resource.connection.options {
        out.options("net", options);
    }
    if let Some((_, peer)) = &resource.connection.addresses {
        out.open("_remote_host");
        out.line(&format!("address\t\t\t{};", peer.show()));
        out.close();
    }
    out.open("_this_host");
    if let Some((local, _)) = &resource.connection.addresses {
        out.line(&format!("address\t\t\t{};", local.show()));
    }
    for device in devices {
        out.volume(device);
    }
    out.close();
    out.close();
    out.text
}

struct Block {
    text: String,
    indent: usize,
    show_defaults: bool,
}

impl Block {
    fn line(&mut self, line: &str) {
        self.text.extend(std::iter::repeat_n(' ', self.indent * 4));
        self.text.push_str(line);
        self.text.push('\n');
    }

    fn open(&mut self, name: &str) {
        self.line(&format!("{name} {{"));
        self.indent += 1;
    }

    fn close(&mut self) {
        self.indent -= 1;
        self.line("}");
    }

    fn volume(&mut self, device: &DeviceSnapshot) {
        self.open(&format!("volume {}", device.volume));
        self.line(&format!("device\t\t\tminor {};", device.minor));
        if let Some(backing) = &device.backing {
            self.line(&format!("disk\t\t\t{};", quoted(&backing.disk)));
            let metadata = match backing.index {
                MetadataIndex::Internal => "internal".to_owned(),
                MetadataIndex::Flexible => quoted(&backing.metadata),
                MetadataIndex::Slot(slot) => format!("{} [ {slot} ]", quoted(&backing.metadata)),
            };
            self.line(&format!("meta-disk\t\t\t{metadata};"));
            self.options("disk", &backing.options);
        }
        self.close();
    }

    fn options<S: OptionSet>(&mut self, section: &str, options: &S) {
        self.open(section);
        for entry in options.entries() {
            let shown_default = self.show_defaults && entry.spec.name != RESYNC_UNDO;
            if shown_default || !entry.is_default {
                self.line(&option_line(&entry));
            }
        }
        self.close();
    }
}

fn option_line(entry: &OptionEntry) -> String {
    let value = match entry.spec.kind {
        OptionKind::Text { .. } => quoted(&entry.value),
        _ => entry.value.clone(),
    };
    let mut line = format!("{:<16}\t{value};", entry.spec.name);
    let comment = match (entry.spec.unit, entry.is_default) {
        (Some(unit), true) => format!("{unit}, default"),
        (Some(unit), false) => unit.to_owned(),
        (None, true) => "default".to_owned(),
        (None, false) => return line,
    };
    // Writing to a string cannot fail.
    let _ = write!(line, " # {comment}");
    line
}

/// The text in double quotes, with backslashes before backslashes and quotes.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}
