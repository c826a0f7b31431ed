//! `drbdadm dump`.

use std::fmt::Write as _;

use super::{Printed, quoted};
use crate::model::{
    Address, Configuration, GlobalOptions, Host, HostKind, ProxySection, Resource, UsageCount, Volume,
    joined_names,
};

const INDENT: usize = 4;
/// The value of an option starts behind this column.
const VALUE_COLUMN: usize = 24;

/// Text under construction. Writing to a string cannot fail, so results of `write!` are dropped.
#[derive(Default)]
struct Output {
    text: String,
    depth: usize,
}

impl Output {
    fn line(&mut self, text: &str) {
        let _ = writeln!(self.text, "{:width$}{text}", "", width = self.depth * INDENT);
    }

    fn open(&mut self, title: &str) {
        self.line(&format!("{title} {{"));
        self.depth += 1;
    }

    fn close(&mut self) {
        self.depth -= 1;
        self.line("}");
    }

    /// A name and a value in their columns.
    fn entry(&mut self, name: &str, value: &str) {
        let width = VALUE_COLUMN.saturating_sub(self.depth * INDENT);
        self.line(&format!("{name:<width$} {value:>3};"));
    }

    fn options(&mut self, title: &str, options: &[Printed<'_>]) {
        self.options_with_plugins(title, options, &[]);
    }

    fn options_with_plugins(&mut self, title: &str, options: &[Printed<'_>], plugins: &[Printed<'_>]) {
        if options.is_empty() && plugins.is_empty() {
            return;
        }
        self.open(title);
        for option in options {
            match option.value {
                Some(value) if option.raw => self.entry(option.name, value),
                Some(value) => self.entry(option.name, &quoted(value)),
                None => self.line(&format!("{};", option.name)),
            }
        }
        self.options("plugin", plugins);
        self.close();
    }

    fn address(&mut self, name: &str, address: Option<&Address>) {
        let Some(address) = address else { return };
        let Address { family, address, port } = address;
        if family == "ipv6" {
            self.line(&format!("{name:<16} {family} [{address}]:{port};"));
        } else {
            self.line(&format!("{name:<16} {family} {address}:{port};"));
        }
    }
}

/// What comes before the resources: the file, `global` and `common`.
///
/// `file` is the absolute path. `global` is printed if it says something, or if `verbose`.
#[must_use]
pub fn header(configuration: &Configuration, file: &str, verbose: bool) -> String {
    let mut output = Output::default();
    output.line(&format!("# {file}"));
    global(&mut output, &configuration.global, verbose);
    if let Some(common) = &configuration.common {
        output.open("common");
        sections(&mut output, common);
        output.close();
        output.text.push('\n');
    }
    output.text
}

fn global(output: &mut Output, global: &GlobalOptions, verbose: bool) {
    // The limits that DRBD meant to be the defaults; its real ones differ, and so are always printed.
    const SHORT_MEANT: u32 = 5;
    const MEDIUM_MEANT: u32 = 121;
    const LONG_MEANT: u32 = 600;
    let default = GlobalOptions::default();
    let says_nothing = global.minor_count == 0
        && !global.disable_ip_verification
        && global.dialog_refresh == default.dialog_refresh
        && global.usage_count == default.usage_count;
    if says_nothing && !verbose {
        return;
    }
    output.open("global");
    if global.disable_ip_verification {
        output.line("disable-ip-verification;");
    }
    if global.minor_count != 0 {
        output.line(&format!("minor-count {};", global.minor_count));
    }
    if global.dialog_refresh != default.dialog_refresh {
        output.line(&format!("dialog-refresh {};", global.dialog_refresh));
    }
    match global.usage_count {
        UsageCount::Ask => {}
        UsageCount::Yes => output.line("usage-count yes;"),
        UsageCount::No => output.line("usage-count no;"),
    }
    for (name, value, meant) in [
        ("short", global.command_timeout_short, SHORT_MEANT),
        ("medium", global.command_timeout_medium, MEDIUM_MEANT),
        ("long", global.command_timeout_long, LONG_MEANT),
    ] {
        if value != meant {
            output.line(&format!("cmd-timeout-{name} {value};"));
        }
    }
    output.close();
    output.text.push('\n');
}

/// One resource with its two comment lines, as seen from the node of that name.
#[must_use]
pub fn resource(configuration: &Configuration, resource: &Resource, node_name: &str) -> String {
    let mut output = Output::default();
    let name = quoted(&resource.name);
    let ignored = if resource.ignored { "ignored" } else { "not ignored" };
    let stacked = if resource.stacked { "stacked" } else { "not stacked" };
    output.line(&format!("# resource {name} on {node_name}: {ignored}, {stacked}"));
    output.line(&format!("# defined at {}:{}", resource.file, resource.line));
    output.open(&format!("resource {name}"));
    for section in &resource.hosts {
        host(&mut output, configuration, section);
    }
    sections(&mut output, resource);
    output.close();
    output.text.push('\n');
    output.text
}

/// The option sections of a resource or of `common`.
fn sections(output: &mut Output, resource: &Resource) {
    let primaries = resource.become_primary_on.join(" ");
    output.options("options", &Printed::list(&resource.options));
    output.options("net", &Printed::list(&resource.net));
    output.options("disk", &Printed::list(&resource.disk));
    output.options("startup", &Printed::startup(resource, &primaries));
    output.options_with_plugins(
        "proxy",
        &Printed::list(&resource.proxy),
        &Printed::list(&resource.proxy_plugins),
    );
    output.options("handlers", &Printed::list(&resource.handlers));
}

fn host(output: &mut Output, configuration: &Configuration, host: &Host) {
    let names = joined_names(&host.names);
    let stacked = match &host.kind {
        HostKind::Stacked { lower: Some(lower), .. } => {
            let lower_name = &configuration.resources[*lower].name;
            output.open(&format!("stacked-on-top-of {}", quoted(lower_name)));
            output.line(&format!("# on {names} "));
            true
        }
        HostKind::Floating => {
            let Some(Address { family, address, port }) = &host.address else { return };
            if family == "ipv6" {
                output.open(&format!("floating ipv6 [{address}]:{port}"));
            } else {
                output.open(&format!("floating {family} {address}:{port}"));
            }
            false
        }
        HostKind::On | HostKind::Stacked { .. } => {
            output.open(&format!("on {names}"));
            false
        }
    };
    output.options("options", &Printed::list(&host.options));
    for entry in &host.volumes {
        volume(output, entry, stacked);
    }
    if !host.is_floating() {
        output.address("address", host.address.as_ref());
    }
    output.address("alternate-link-address", host.alternate_address.as_ref());
    if let Some(section) = &host.proxy {
        proxy(output, section);
    }
    output.close();
}

fn proxy(output: &mut Output, section: &ProxySection) {
    output.open(&format!("proxy on {}", joined_names(&section.names)));
    output.address("inside", section.inside.as_ref());
    output.address("outside", section.outside.as_ref());
    output.options_with_plugins(
        "options",
        &Printed::list(&section.options),
        &Printed::list(&section.plugins),
    );
    output.close();
}

fn volume(output: &mut Output, volume: &Volume, stacked: bool) {
    if !volume.implicit {
        output.open(&format!("volume {}", volume.number));
    }
    output.options("disk", &Printed::list(&volume.disk_options));
    let padding = 19_usize.saturating_sub(output.depth * INDENT);
    let device = volume.device.as_ref().map(|device| format!("{} ", quoted(device))).unwrap_or_default();
    let minor = volume.minor.map_or(-1, i64::from);
    output.line(&format!("device{:padding$}{device}minor {minor};", ""));
    if !stacked {
        output.entry("disk", &quoted(volume.disk.as_deref().unwrap_or("")));
        let meta_disk = quoted(volume.meta_disk.as_deref().unwrap_or(""));
        match volume.meta_index.as_deref().unwrap_or("") {
            "internal" => output.entry("meta-disk", "internal"),
            "flexible" => output.line(&format!("{:<16} {meta_disk};", "meta-disk")),
            index => output.line(&format!("{:<16} {meta_disk} [{index}];", "meta-disk")),
        }
    }
    if !volume.implicit {
        output.close();
    }
}
