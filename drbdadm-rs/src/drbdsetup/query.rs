//! The commands that print something once.

use std::io::IsTerminal;

use udrbd_control::ReturnCode;
use udrbd_control::protocol::CommandResult;
use udrbd_control::status::{
    DeviceSnapshot, NodeSnapshot, StatusStyle, cstate_line, dstate_line, generations_of, get_gi, role_line,
    sh_status_all, sh_status_minor, sh_status_resource, show_gi, show_minor, status_json, status_text,
};
use udrbd_units::Minor;

use super::configure::report;
use super::invocation::{Invocation, Target};
use super::output::{complain, out, terminal_width};
use super::{EXIT_USAGE, general_usage};

/// `sh-status` of a resource that does not exist: no output, and this status.
const EXIT_NO_SUCH_RESOURCE: i32 = 19;

/// Says that a minor does not exist.
pub(super) fn unknown_minor(object: &str) -> i32 {
    report(object, &CommandResult::with_info(ReturnCode::MinorInvalid, "unknown minor"))
}

/// The device a query is about.
///
/// # Errors
/// The exit status, when everything has been said.
pub(super) fn find_device<'a>(
    invocation: &Invocation<'_>,
    node: &'a NodeSnapshot,
) -> Result<(Minor, &'a DeviceSnapshot), i32> {
    let Target::Minor(minor) = invocation.target else { return Err(EXIT_USAGE) };
    match node.device_by_minor(minor) {
        Some((_, device)) => Ok((minor, device)),
        None => Err(unknown_minor(&invocation.object)),
    }
}

/// `role`, `cstate`, `dstate`, `show-gi`, `get-gi`.
pub(super) fn device(invocation: &Invocation<'_>) -> i32 {
    let result = invocation.refuse_excess(0).and_then(|()| {
        if invocation.command.name == "state" {
            let program = invocation.program;
            let note = format!("'{program} ... state' is deprecated, use '{program} ... role' instead.");
            // The original says it twice.
            complain(&note);
            complain(&note);
        }
        let node = invocation.snapshot()?;
        find_device(invocation, &node).and_then(|(_, device)| device_text(invocation.command.name, device))
    });
    match result {
        Ok(text) => {
            out(&text);
            0
        }
        Err(status) => status,
    }
}

fn device_text(query: &str, device: &DeviceSnapshot) -> Result<String, i32> {
    let line = match query {
        "cstate" => cstate_line(device),
        "dstate" => dstate_line(device),
        "show-gi" | "get-gi" => {
            let generations = generations_of(device).map_err(|none| {
                complain(&none.to_string());
                1
            })?;
            if query == "show-gi" {
                return Ok(show_gi(generations));
            }
            get_gi(generations)
        }
        _ => role_line(device),
    };
    Ok(line + "\n")
}

/// `show`.
pub(super) fn show(invocation: &Invocation<'_>) -> i32 {
    let result = invocation.refuse_excess(0).and_then(|()| {
        let node = invocation.snapshot()?;
        let defaults = invocation.has("show-defaults");
        match &invocation.target {
            Target::Minor(minor) => {
                show_minor(&node, *minor, defaults).ok_or_else(|| unknown_minor(&invocation.object))
            }
            Target::Resource(name) if node.resource(name).is_none() => {
                complain("received netlink error reply: No such device");
                Err(EXIT_USAGE)
            }
            _ => Ok(udrbd_control::status::show(&node, defaults)),
        }
    });
    match result {
        Ok(text) => {
            out(&text);
            0
        }
        Err(status) => status,
    }
}

/// `sh-status`.
pub(super) fn sh_status(invocation: &Invocation<'_>) -> i32 {
    let result = invocation.refuse_excess(0).and_then(|()| {
        let node = invocation.snapshot()?;
        match &invocation.target {
            Target::Minor(minor) => Ok(sh_status_minor(&node, *minor)),
            Target::Resource(name) => {
                node.resource(name).map(sh_status_resource).ok_or(EXIT_NO_SUCH_RESOURCE)
            }
            _ => Ok(sh_status_all(&node)),
        }
    });
    match result {
        Ok(text) => {
            out(&text);
            0
        }
        Err(status) => status,
    }
}

/// `status`.
pub(super) fn status(invocation: &Invocation<'_>) -> i32 {
    let mut color = std::io::stdout().is_terminal();
    for (name, value) in &invocation.options {
        if *name == "color" {
            color = match value.as_deref() {
                None | Some("always") => true,
                Some("never") => false,
                Some("auto") => std::io::stdout().is_terminal(),
                Some(_) => return general_usage(invocation.program, Some("unknown --color argument")),
            };
        }
    }
    let style = StatusStyle {
        verbose: invocation.has("verbose"),
        statistics: invocation.has("statistics"),
        color,
        width: terminal_width(),
    };
    let node = match invocation.snapshot() {
        Ok(node) => node,
        Err(status) => return status,
    };
    if let Target::Resource(name) = &invocation.target
        && node.resource(name).is_none()
    {
        complain(&format!("{name}: No such resource"));
        return 10;
    }
    out(&if invocation.has("json") { status_json(&node) } else { status_text(&node, style) });
    0
}
