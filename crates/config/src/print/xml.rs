//! `drbdadm dump-xml`.

use std::fmt::Write as _;

use super::Printed;
use crate::model::{Address, Configuration, Host, ProxySection, Resource, Volume, joined_names};

const INDENT: usize = 4;

/// Text under construction. Writing to a string cannot fail, so results of `write!` are dropped.
struct Output {
    text: String,
    depth: usize,
}

impl Output {
    fn new(depth: usize) -> Self {
        Self { text: String::new(), depth }
    }

    fn line(&mut self, text: &str) {
        let _ = writeln!(self.text, "{:width$}{text}", "", width = self.depth * INDENT);
    }

    fn open(&mut self, element: &str) {
        self.line(element);
        self.depth += 1;
    }

    fn close(&mut self, name: &str) {
        self.depth -= 1;
        self.line(&format!("</{name}>"));
    }

    fn options(&mut self, title: &str, options: &[Printed<'_>]) {
        self.options_with_plugins(title, options, &[]);
    }

    fn options_with_plugins(&mut self, title: &str, options: &[Printed<'_>], plugins: &[Printed<'_>]) {
        if options.is_empty() && plugins.is_empty() {
            return;
        }
        self.open(&format!("<section name=\"{title}\">"));
        for option in options {
            match option.value {
                Some(value) => {
                    let value = if option.raw { value.to_owned() } else { escaped(value) };
                    self.line(&format!("<option name=\"{}\" value=\"{value}\"/>", option.name));
                }
                None => self.line(&format!("<option name=\"{}\"/>", option.name)),
            }
        }
        self.options("plugin", plugins);
        self.close("section");
    }

    fn address(&mut self, element: &str, address: Option<&Address>) {
        let Some(Address { family, address, port }) = address else { return };
        self.line(&format!("<{element} family=\"{family}\" port=\"{port}\">{address}</{element}>"));
    }
}

/// What XML does not allow, as entities.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\'' => escaped.push_str("&apos;"),
            '"' => escaped.push_str("&quot;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '&' => escaped.push_str("&amp;"),
            other => escaped.push(other),
        }
    }
    escaped
}

/// The opening element, `global` and `common`. `file` is the absolute path.
#[must_use]
pub fn header(configuration: &Configuration, file: &str) -> String {
    let mut output = Output::new(0);
    output.open(&format!("<config file=\"{file}\">"));
    let global = &configuration.global;
    if global.minor_count != 0 || global.disable_ip_verification || global.dialog_refresh != 1 {
        output.open("<global>");
        if global.disable_ip_verification {
            output.line("<disable-ip-verification/>");
        }
        if global.minor_count != 0 {
            output.line(&format!("<minor-count count=\"{}\"/>", global.minor_count));
        }
        if global.dialog_refresh != 1 {
            output.line(&format!("<dialog-refresh refresh=\"{}\"/>", global.dialog_refresh));
        }
        output.close("global");
    }
    if let Some(common) = &configuration.common {
        output.open("<common>");
        sections(&mut output, common);
        output.close("common");
    }
    output.text
}

/// The closing element.
#[must_use]
pub fn footer() -> &'static str {
    "</config>\n"
}

/// One resource, inside the opening element or alone.
#[must_use]
pub fn resource(resource: &Resource, inside_config: bool) -> String {
    let mut output = Output::new(usize::from(inside_config));
    output.open(&format!(
        "<resource name=\"{}\" conf-file-line=\"{}:{}\">",
        escaped(&resource.name),
        escaped(&resource.file),
        resource.line
    ));
    for section in &resource.hosts {
        host(&mut output, section);
    }
    sections(&mut output, resource);
    output.close("resource");
    output.text
}

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

fn host(output: &mut Output, host: &Host) {
    if host.is_floating() {
        output.open("<host floating=\"1\">");
    } else {
        output.open(&format!("<host name=\"{}\">", joined_names(&host.names)));
    }
    output.options("options", &Printed::list(&host.options));
    for entry in &host.volumes {
        volume(output, entry);
    }
    output.address("address", host.address.as_ref());
    if let Some(section) = &host.proxy {
        proxy(output, section);
    }
    output.close("host");
}

fn proxy(output: &mut Output, section: &ProxySection) {
    output.open(&format!("<proxy hostname=\"{}\">", joined_names(&section.names)));
    output.address("inside", section.inside.as_ref());
    output.address("outside", section.outside.as_ref());
    output.options_with_plugins(
        "options",
        &Printed::list(&section.options),
        &Printed::list(&section.plugins),
    );
    output.close("proxy");
}

fn volume(output: &mut Output, volume: &Volume) {
    let text = |value: &Option<String>| escaped(value.as_deref().unwrap_or(""));
    output.open(&format!("<volume vnr=\"{}\">", volume.number));
    output.options("disk", &Printed::list(&volume.disk_options));
    let minor = volume.minor.map_or(-1, i64::from);
    output.line(&format!("<device minor=\"{minor}\">{}</device>", text(&volume.device)));
    output.line(&format!("<disk>{}</disk>", text(&volume.disk)));
    let meta_disk = text(&volume.meta_disk);
    match volume.meta_index.as_deref().unwrap_or("") {
        "internal" => output.line("<meta-disk>internal</meta-disk>"),
        "flexible" => output.line(&format!("<meta-disk>{meta_disk}</meta-disk>")),
        index => output.line(&format!("<meta-disk index=\"{index}\">{meta_disk}</meta-disk>")),
    }
    output.close("volume");
}
