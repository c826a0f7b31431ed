//! The table of `drbd-overview`.

use std::collections::BTreeMap;

use udrbd_control::status::NodeSnapshot;
use udrbd_units::Minor;

const NAMELESS: &str = "??not-found??";

/// Which columns there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Style {
    /// As the newest versions print.
    #[default]
    Plain,
    /// With the protocol and the flags, as the versions for 8.3 and early 8.4 did.
    WithFlags,
}

/// What is known of every device.
#[derive(Debug, Default)]
pub(super) struct Overview {
    devices: BTreeMap<u32, Device>,
}

#[derive(Debug, Default)]
struct Device {
    name: Option<String>,
    lower: Option<u32>,
    connection: Option<String>,
    roles: Option<String>,
    disks: Option<String>,
    protocol: Option<String>,
    flags: Option<String>,
    bar: Option<String>,
    used_for: Vec<String>,
}

impl Overview {
    /// Names a device, perhaps one that stands on another.
    pub(super) fn set_name(&mut self, minor: u32, name: String, lower: Option<u32>) {
        let device = self.devices.entry(minor).or_default();
        device.name = Some(name);
        device.lower = lower;
    }

    /// Names the devices that run but are not in the configuration.
    pub(super) fn name_the_nameless(&mut self, node: &NodeSnapshot) {
        for (minor, device) in self.devices.iter_mut().filter(|(_, device)| device.name.is_none()) {
            let known = node.device_by_minor(Minor(*minor));
            device.name = known.map(|(resource, device)| format!("{}/{}", resource.name, device.volume));
        }
    }

    /// Says what a device is used for, if nothing has been said yet.
    pub(super) fn set_use(&mut self, minor: u32, words: &[&str]) {
        if let Some(device) = self.devices.get_mut(&minor)
            && device.used_for.is_empty()
        {
            device.used_for = words.iter().map(|word| (*word).to_owned()).collect();
        }
    }

    /// Takes the states from the text of the status file.
    pub(super) fn add_states(&mut self, text: &str) {
        let mut minor = None;
        for line in text.lines().skip(1) {
            let start = line.trim_start_matches(' ');
            if let Some((number, state)) = start.split_once(": ")
                && let Ok(number) = number.parse::<u32>()
            {
                let unconfigured = state.starts_with("cs:Unconfigured");
                minor = (!unconfigured || self.devices.contains_key(&number)).then_some(number);
                if let (Some(number), false) = (minor, unconfigured) {
                    self.devices.entry(number).or_default().set_state(state);
                }
            } else if line.starts_with("\t[")
                && line.contains("sync'ed:")
                && let Some(device) = minor.and_then(|minor| self.devices.get_mut(&minor))
            {
                device.bar = Some(line.to_owned());
            }
        }
    }

    /// The table. Every column is as wide as its widest entry and a blank; a bar has a line of its own.
    pub(super) fn text(&self, style: Style) -> String {
        let minor_width = self.devices.keys().next_back().map_or(2, |last| last.to_string().len().max(2));
        let rows: Vec<(Vec<String>, Option<&String>)> = self
            .devices
            .iter()
            .map(|(minor, device)| (self.columns(*minor, device, minor_width, style), device.bar.as_ref()))
            .collect();
        let mut widths: Vec<usize> = Vec::new();
        for (columns, _) in &rows {
            widths.resize(widths.len().max(columns.len()), 0);
            for (width, column) in widths.iter_mut().zip(columns) {
                *width = (*width).max(column.chars().count() + 1);
            }
        }
        let mut text = String::new();
        for (columns, bar) in rows {
            for (column, width) in columns.iter().zip(&widths) {
                text.push_str(&format!("{column:<width$}"));
            }
            text.push('\n');
            if let Some(bar) = bar {
                // The bar is followed by blanks for a whole first column.
                let blanks = " ".repeat(widths.first().copied().unwrap_or_default());
                text.push_str(&format!("{bar}{blanks}\n"));
            }
        }
        text
    }

    fn columns(&self, minor: u32, device: &Device, minor_width: usize, style: Style) -> Vec<String> {
        let name = device.name.as_deref().unwrap_or(NAMELESS);
        let or_dot = |text: &Option<String>| text.clone().unwrap_or_else(|| ".".to_owned());
        let mut columns = vec![
            format!("{minor:>minor_width$}:{name}"),
            device.lower.map(|lower| format!("^^{lower}")).unwrap_or_default(),
            device.connection.clone().unwrap_or_else(|| "Unconfigured".to_owned()),
            or_dot(&device.roles),
            or_dot(&device.disks),
        ];
        if style == Style::WithFlags {
            columns.extend([or_dot(&device.protocol), or_dot(&device.flags)]);
        }
        if device.used_for.is_empty() {
            columns.extend(self.upper_device(minor));
        } else {
            columns.extend(device.used_for.iter().cloned());
        }
        columns
    }

    /// The device that stands on this one.
    fn upper_device(&self, minor: u32) -> Vec<String> {
        let upper = self.devices.iter().find(|(_, device)| device.lower == Some(minor));
        upper.map_or_else(Vec::new, |(upper, device)| {
            let name = device.name.clone().unwrap_or_default();
            vec!["ll-dev of:".to_owned(), upper.to_string(), name]
        })
    }
}

impl Device {
    fn set_state(&mut self, state: &str) {
        let words: Vec<&str> = state.split_whitespace().collect();
        let value = |key: &str| words.iter().find_map(|word| word.strip_prefix(key)).map(str::to_owned);
        self.connection = value("cs:");
        self.roles = value("ro:");
        self.disks = value("ds:");
        // Without a network configuration there is no letter.
        if let [.., protocol, flags] = words.as_slice() {
            self.flags = Some((*flags).to_owned());
            self.protocol = (protocol.len() == 1).then(|| (*protocol).to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::sources::{add_mounts, add_names};
    use super::*;

    const SH_STATUS: &str = "_conf_res_name=web\n_stacked_on=\n_stacked_on_device=\n_stacked_on_minor=\n\
        _conf_volume=0\n_minor=0\n_res_name=web\n_volume=0\n_known=Configured\n_sh_status_process\n\n\n\
        _conf_volume=1\n_minor=1\n_res_name=\n_volume=-1\n_known=NA # not available\n_sh_status_process\n";

    /// The minors and states of a printed overview, as a status file; the bar lines go along.
    fn status_file(overview: &str) -> String {
        let mut text = "version: 8.4.11 (api:1/proto:86-101)\nsrcversion: x\n".to_owned();
        for line in overview.lines() {
            if line.starts_with('\t') {
                text.push_str(&format!("{}\n", line.trim_end()));
                continue;
            }
            let words: Vec<&str> = line.split_whitespace().collect();
            if let [name, connection, roles, disks, ..] = words.as_slice()
                && roles.contains('/')
            {
                let minor = name.split(':').next().unwrap();
                text.push_str(&format!("{minor:>2}: cs:{connection} ro:{roles} ds:{disks} C r-----\n"));
            }
        }
        text
    }

    fn check(recorded: &str, df: &str) {
        // A terminal shows the note on standard error first.
        let expected = recorded.split_once("drbdmon.\n\n").map_or(recorded, |(_, rest)| rest);
        let mut overview = Overview::default();
        add_names(&mut overview, SH_STATUS);
        overview.add_states(&status_file(expected));
        add_mounts(&mut overview, df);
        assert_eq!(overview.text(Style::Plain), expected);
    }

    #[test]
    fn overview_vectors() {
        let own = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/status/drbdadm");
        let extra = std::env::var_os("UDRBD_EXTRA_VECTORS")
            .map(|folder| std::path::Path::new(&folder).join("status/drbdadm"));
        let mut count = 0;
        for folder in std::iter::once(own).chain(extra) {
            let Ok(entries) = std::fs::read_dir(&folder) else { continue };
            for path in entries.flatten().map(|entry| entry.path()) {
                let name = path.file_name().unwrap().to_string_lossy().into_owned();
                if name.starts_with("drbd-overview") && !name.ends_with(".df") {
                    let df = std::fs::read_to_string(folder.join(format!("{name}.df"))).unwrap_or_default();
                    check(&std::fs::read_to_string(&path).unwrap(), &df);
                    count += 1;
                }
            }
        }
        assert!(count >= 4, "only {count} files");
    }

    #[test]
    fn the_old_form_has_protocol_and_flags() {
        let mut overview = Overview::default();
        overview.add_states("version\n 0: cs:StandAlone ro:Primary/Unknown ds:UpToDate/DUnknown   r-----\n");
        assert_eq!(
            overview.text(Style::WithFlags),
            " 0:??not-found??  StandAlone Primary/Unknown UpToDate/DUnknown . r----- \n"
        );
    }

    #[test]
    fn a_stacked_device_names_its_lower_one_and_the_other_way_round() {
        let mut overview = Overview::default();
        overview.set_name(0, "low/0".to_owned(), None);
        overview.set_name(10, "high/0".to_owned(), Some(0));
        assert_eq!(
            overview.text(Style::Plain),
            " 0:low/0      Unconfigured . . ll-dev of: 10 high/0 \n10:high/0 ^^0 Unconfigured . . \n"
        );
    }
}
