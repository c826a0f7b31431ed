//! Usage texts and `xml-help`.

use std::fmt::Write as _;

use udrbd_control::options::{OptionKind, OptionSpec};
use udrbd_control::status::Wrapper;

use super::commands::{COMMANDS, Command};
use super::getopt::Argument;

/// The usage of the program, and a reason for showing it.
pub(super) fn general(program: &str, reason: Option<&str>, width: usize) -> String {
    let mut list = Wrapper::new(width);
    for command in COMMANDS {
        list.put(4, &format!("{:<18}  ", command.name));
    }
    let reason = reason.map(|reason| format!("\n{reason}\n")).unwrap_or_default();
    format!(
        "\nUSAGE: {program} command device arguments options\n\n\
         Device is usually /dev/drbdX or /dev/drbd/X.\n\
         \nCommands are:\n{}\n\n\
         To get more details about a command issue 'drbdsetup help cmd'.\n\n{reason}",
        list.finish()
    )
}

/// The usage of a command.
pub(super) fn of_command(program: &str, command: &Command, width: usize) -> String {
    let mut text = Wrapper::new(width);
    text.put(0, "USAGE:\n");
    text.put(1, &format!("{program} {}", command.name));
    let object = command.object;
    let names =
        [(object.takes_resource(), "resource"), (object.takes_minor(), "minor"), (object.takes_all(), "all")];
    let mut separator = "";
    if names.iter().any(|(taken, _)| *taken) {
        text.put(4, " {");
        for (_, name) in names.iter().filter(|(taken, _)| *taken) {
            text.put(4, &format!("{separator}{name}"));
            separator = "|";
        }
        text.put(4, "}");
    }
    if object.takes_connection() {
        text.put(4, " [{af}:]{local_addr}[:{port}]");
        text.put(4, " [{af}:]{remote_addr}[:{port}]");
    }
    for argument in command.arguments {
        text.put(4, &format!(" {{{argument}}}"));
    }
    for option in command.options {
        let value = if option.argument == Argument::No { "" } else { "=..." };
        text.put(4, &format!(" [--{}{value}]", option.name));
    }
    if command.set_defaults {
        text.put(4, " [--set-defaults]");
    }
    for spec in command.specs() {
        text.put(4, &format!(" {}", field_usage(spec)));
    }
    text.put(4, "\n");
    text.finish()
}

fn field_usage(spec: &OptionSpec) -> String {
    let name = spec.name;
    match spec.kind {
        OptionKind::Number { min, max, .. } => format!("[--{name}=({min} ... {max})]"),
        OptionKind::Flag => format!("[--{name}={{yes|no}}]"),
        OptionKind::Text { .. } => format!("[--{name}=<str>]"),
        OptionKind::Address => format!("[--{name}=[{{af}}:]{{local_addr}}[:{{port}}]]"),
        OptionKind::Word { words, .. } => format!("[--{name}={{{}}}]", words.join("|")),
    }
}

/// The description of a command for programs.
pub(super) fn xml_of_command(command: &Command) -> String {
    let mut xml = format!("<command name=\"{}\">\n", command.name);
    let object = command.object;
    let names: Vec<&str> =
        [(object.takes_resource(), "resource"), (object.takes_minor(), "minor"), (object.takes_all(), "all")]
            .iter()
            .filter(|(taken, _)| *taken)
            .map(|(_, name)| *name)
            .collect();
    let grouped = names.len() > 1;
    let indent = if grouped { "\t\t" } else { "\t" };
    if grouped {
        xml.push_str("\t<group>\n");
    }
    for name in names {
        xml.push_str(&format!("{indent}<argument>{name}</argument>\n"));
    }
    if grouped {
        xml.push_str("\t</group>\n");
    }
    if object.takes_connection() {
        xml.push_str("\t<argument>local_addr</argument>\n\t<argument>remote_addr</argument>\n");
    }
    for argument in command.arguments {
        xml.push_str(&format!("\t<argument>{argument}</argument>\n"));
    }
    for option in command.options {
        let kind = if option.argument == Argument::No { "flag" } else { "string" };
        xml.push_str(&format!("\t<option name=\"{}\" type=\"{kind}\">\n\t</option>\n", option.name));
    }
    if command.set_defaults {
        xml.push_str("\t<option name=\"set-defaults\" type=\"flag\">\n\t</option>\n");
    }
    for spec in command.specs() {
        xml.push_str(&xml_of_field(command, spec));
    }
    xml.push_str("</command>\n");
    xml
}

fn xml_of_field(command: &Command, spec: &OptionSpec) -> String {
    let default = command.default_of(spec);
    let (kind, content) = match spec.kind {
        OptionKind::Number { scale, min, max, .. } => {
            let unit = spec.unit.map(|unit| format!("\t\t<unit>{unit}</unit>\n")).unwrap_or_default();
            let content = format!(
                "\t\t<min>{min}</min>\n\t\t<max>{max}</max>\n\t\t<default>{default}</default>\n\
                 \t\t<unit_prefix>{}</unit_prefix>\n{unit}",
                scale.prefix()
            );
            ("numeric", content)
        }
        OptionKind::Flag => ("boolean", format!("\t\t<default>{default}</default>\n")),
        OptionKind::Text { .. } => ("string", String::new()),
        OptionKind::Address => ("address", String::new()),
        OptionKind::Word { words, .. } => {
            let mut content = String::new();
            for word in words {
                // Writing to a string cannot fail.
                let _ = writeln!(content, "\t\t<handler>{word}</handler>");
            }
            ("handler", content)
        }
    };
    format!("\t<option name=\"{}\" type=\"{kind}\">\n{content}\t</option>\n", spec.name)
}
