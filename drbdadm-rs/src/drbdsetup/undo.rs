//! `resync-undo`: what is kept of a device as it was before a resync overwrote its changes. Ours alone.

use chrono::{Local, TimeZone};
use udrbd_control::client::run_directory;
use udrbd_control::status::{DeviceSnapshot, UndoSnapshot};

use super::invocation::Invocation;
use super::output::out;
use super::query::find_device;

/// Runs the command.
pub(super) fn show(invocation: &Invocation<'_>) -> i32 {
    let result = invocation.refuse_excess(0).and_then(|()| {
        let node = invocation.snapshot()?;
        find_device(invocation, &node).map(|(_, device)| text(device))
    });
    match result {
        Ok(text) => {
            out(&text);
            0
        }
        Err(status) => status,
    }
}

fn text(device: &DeviceSnapshot) -> String {
    let name = format!("/dev/drbd{}", device.minor);
    let Some(undo) = &device.undo else { return format!("{name}: there is no resync-undo.\n") };
    let UndoSnapshot { began_us, kept_blocks, incomplete, path, export } = undo;
    let time = Local.timestamp_micros(*began_us).single();
    let began = time.map_or_else(String::new, |time| time.format(" of %Y-%m-%d %H:%M:%S %:z").to_string());
    let socket = run_directory().join("nbd.sock");
    let whole = if *incomplete {
        "INCOMPLETE: there was no room for all of it. It does not show the device as it was; what it has is right."
    } else {
        "It shows the device as it was before the resync, and will until it is dropped."
    };
    format!(
        "{name}: resync-undo{began}, {} KiB kept in {}\n  {whole}\n  Read-only over NBD: \
         nbd+unix:///{export}?socket={}\n",
        kept_blocks * 4,
        path.display(),
        socket.display()
    )
}

#[cfg(test)]
mod tests {
    use udrbd_units::{Minor, VolumeNumber};

    use super::*;

    #[test]
    fn an_incomplete_undo_is_not_taken_for_a_whole_one() {
        let mut device = DeviceSnapshot::new(VolumeNumber(0), Minor(3));
        assert_eq!(text(&device), "/dev/drbd3: there is no resync-undo.\n");
        let undo = UndoSnapshot {
            began_us: 0,
            kept_blocks: 3,
            incomplete: false,
            path: "/var/undo".into(),
            export: "r0@undo".to_owned(),
        };
        device.undo = Some(undo.clone());
        let whole = text(&device);
        assert!(
            whole.contains("12 KiB kept in /var/undo") && whole.contains("nbd+unix:///r0@undo?"),
            "{whole}"
        );
        assert!(!whole.contains("INCOMPLETE"));
        device.undo = Some(UndoSnapshot { incomplete: true, ..undo });
        assert!(text(&device).contains("INCOMPLETE"));
    }
}
