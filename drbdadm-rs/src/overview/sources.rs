//! Where `drbd-overview` gets names and uses from.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use super::table::Overview;

/// What a program prints; nothing if it cannot run. The one beside this program is preferred.
pub(super) fn lines_of_program(program: &str, arguments: &[&str]) -> String {
    let beside: Option<PathBuf> =
        std::env::current_exe().ok().and_then(|own| own.parent().map(|folder| folder.join(program)));
    let path = beside.filter(|path| path.is_file()).unwrap_or_else(|| PathBuf::from(program));
    Command::new(path)
        .args(arguments)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
        .unwrap_or_default()
}

/// Takes the names from the output of `drbdadm sh-status`.
pub(super) fn add_names(overview: &mut Overview, sh_status: &str) {
    let mut block: Vec<&str> = Vec::new();
    let mut resource: Vec<&str> = Vec::new();
    for line in sh_status.lines() {
        if line.starts_with("_conf_res_name=") {
            resource.clear();
        }
        if line.starts_with("_conf_res_name=") || line.starts_with("_stacked_on") {
            resource.push(line);
        }
        block.push(line);
        if line == "_sh_status_process" {
            add_block(overview, &resource, &block);
            block.clear();
        }
    }
}

fn add_block(overview: &mut Overview, resource: &[&str], block: &[&str]) {
    let value = |lines: &[&str], key: &str| -> Option<String> {
        let found = lines.iter().rev().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        found.filter(|text| !text.is_empty()).map(str::to_owned)
    };
    let Some(minor) = value(block, "_minor").and_then(|minor| minor.parse().ok()) else { return };
    let Some(name) = value(block, "_res_name").or_else(|| value(resource, "_conf_res_name")) else { return };
    let running_volume = value(block, "_volume").filter(|volume| volume != "-1");
    let name = match running_volume.or_else(|| value(block, "_conf_volume")) {
        Some(volume) => format!("{name}/{volume}"),
        None => name,
    };
    let lower = value(resource, "_stacked_on_minor").and_then(|minor| minor.parse().ok());
    overview.set_name(minor, name, lower);
}

/// Finds out what devices are used for: physical volumes, mounts and swap.
pub(super) fn add_uses(overview: &mut Overview) {
    add_volumes(
        overview,
        &lines_of_program("pvs", &["--noheadings", "--units", "g", "-o", "pv_name,vg_name,pv_size,pv_used"]),
    );
    add_mounts(overview, &lines_of_program("df", &["-TPhl", "-x", "tmpfs", "--local"]));
    add_swaps(overview, &std::fs::read_to_string("/proc/swaps").unwrap_or_default());
}

/// The minor and the other words of a line that begins with a device of ours.
fn device_line(line: &str) -> Option<(u32, Vec<&str>)> {
    let mut words = line.split_whitespace();
    let minor = words.next()?.strip_prefix("/dev/drbd")?.parse().ok()?;
    Some((minor, words.collect()))
}

fn add_volumes(overview: &mut Overview, pvs: &str) {
    for (minor, words) in pvs.lines().filter_map(device_line) {
        if let [group, size, used] = words.as_slice() {
            overview.set_use(minor, &["lvm-pv:", group, size, used]);
        }
    }
}

/// Takes the lines of `df -T`: device, type, size, used, available, percent, mount point.
pub(super) fn add_mounts(overview: &mut Overview, df: &str) {
    for (minor, words) in df.lines().filter_map(device_line) {
        if let [kind, size, used, available, percent, mount_point, ..] = words.as_slice() {
            overview.set_use(minor, &[mount_point, kind, size, used, available, percent]);
        }
    }
}

fn add_swaps(overview: &mut Overview, swaps: &str) {
    for (minor, words) in swaps.lines().filter_map(device_line) {
        if let [_, size, used, ..] = words.as_slice() {
            overview.set_use(minor, &["swap", size, used]);
        }
    }
}
