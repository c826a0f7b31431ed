//! Usage, lists of commands, version.

use std::fmt::Write as _;

use super::command_line::{Argument, GENERAL_OPTIONS, LongOption, passed_on};
use super::commands::{COMMANDS, Command, List};
use super::shell_escape;

/// The version of these programs.
pub(super) const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The version of DRBD's interface that scripts ask for.
pub(super) const API_VERSION: u32 = 1;
/// The version of DRBD that the daemon stands for, 8.4.11, as scripts compare it.
const DRBD_VERSION_CODE: u32 = 0x08_04_0b;

/// The build, in the form of DRBD's build tag.
fn build_tag() -> String {
    format!("GIT-hash: {}", option_env!("UDRBD_GIT_HASH").unwrap_or("unknown"))
}

/// Our version in one number, a byte for each part.
fn version_code() -> u32 {
    let parts = VERSION.split('.').map(|part| part.parse::<u32>().unwrap_or(0) & 0xff);
    parts.fold(0, |code, part| (code << 8) | part)
}

/// What `--version` prints: assignments that a shell can evaluate.
pub(super) fn version_assignments() -> Vec<u8> {
    let mut text = b"DRBDADM_BUILDTAG=".to_vec();
    text.extend(shell_escape(&build_tag()));
    let rest = format!(
        "\nDRBDADM_API_VERSION={API_VERSION}\n\
         DRBD_KERNEL_VERSION_CODE=0x{DRBD_VERSION_CODE:06x}\n\
         DRBDADM_VERSION_CODE=0x{:06x}\n\
         DRBDADM_VERSION={VERSION}\n",
        version_code()
    );
    text.extend(rest.into_bytes());
    text
}

fn option_line(option: &LongOption) -> String {
    let LongOption { name, argument, short } = option;
    let (long_form, short_form) = match argument {
        Argument::None => ("", ""),
        Argument::Optional => ("[=...]", "..."),
        Argument::Required => ("=...", " ..."),
    };
    match short {
        Some(short) => format!("  --{name}{long_form}, -{short}{short_form}\n"),
        None => format!("  --{name}{long_form}\n"),
    }
}

/// The commands of a list in two columns.
fn command_columns(list: List) -> String {
    let names: Vec<&str> =
        COMMANDS.iter().filter(|command| command.list == list).map(|command| command.name).collect();
    let mut text = String::new();
    for row in names.chunks(2) {
        // Writing to a string cannot fail.
        let _ = match row {
            [left, right] => writeln!(text, " {left:<35}{right:<35}"),
            _ => writeln!(text, " {:<35}", row.concat()),
        };
    }
    text
}

/// The usage of a command, or of all, with a closing remark.
pub(super) fn usage(program: &str, command: Option<&Command>, remark: Option<&str>) -> String {
    let name = command.map_or("COMMAND", |command| command.name);
    let mut text = format!("\nUSAGE: {program} {name} [OPTION...] {{all|RESOURCE...}}\n\nGENERAL OPTIONS:\n");
    text.extend(GENERAL_OPTIONS.iter().map(option_line));
    if let Some(options) = command.and_then(|command| command.options) {
        text.push_str(&format!("\nOPTIONS FOR {name}:\n"));
        text.extend(options.iter().map(|definition| option_line(&passed_on(definition))));
    }
    if command.is_none() {
        text.push_str("\nCOMMANDS:\n");
        text.push_str(&command_columns(List::Usage));
    }
    text.push_str(&format!("\nVersion: {VERSION} (api:{API_VERSION})\n{}\n", build_tag()));
    if let Some(remark) = remark {
        text.push_str(&format!("\n{remark}\n"));
    }
    text
}

/// What `hidden-commands` prints.
pub(super) fn hidden_commands() -> String {
    format!(
        "\nThese additional commands might be useful for writing\nnifty shell scripts around drbdadm:\n\n{}\
         \nThese commands are used by the kernel part of DRBD to\ninvoke user mode helper programs:\n\n{}\
         \nThese commands ought to be used by experts and developers:\n\n{}\n",
        command_columns(List::Shell),
        command_columns(List::Handlers),
        command_columns(List::Experts)
    )
}
