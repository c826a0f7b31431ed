//! `check-resize`: remembers the size of a backing device with internal metadata (metadata spec 9.3), so that the
//! metadata can be found again after the device has grown while nothing ran.

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::path::PathBuf;

use udrbd_control::client::RUN_DIRECTORY_VARIABLE;
use udrbd_control::protocol::MetadataIndex;
use udrbd_units::Minor;

use super::invocation::Invocation;
use super::output::{complain, reason};
use super::query::find_device;

/// Runs the command.
pub(super) fn check_resize(invocation: &Invocation<'_>) -> i32 {
    let result = invocation.refuse_excess(0).and_then(|()| {
        let node = invocation.snapshot()?;
        let (minor, device) = find_device(invocation, &node)?;
        // Without a disk there is nothing to remember, and with external metadata no need to.
        match &device.backing {
            Some(backing) if backing.index == MetadataIndex::Internal => remember(minor, &backing.disk),
            _ => forget(minor),
        }
    });
    result.err().unwrap_or(0)
}

fn path(minor: Minor) -> PathBuf {
    let folder = std::env::var_os(RUN_DIRECTORY_VARIABLE)
        .filter(|folder| !folder.is_empty())
        .map_or_else(|| PathBuf::from("/var/lib/drbd"), PathBuf::from);
    folder.join(format!("drbd-minor-{minor}.lkbd"))
}

fn forget(minor: Minor) -> Result<(), i32> {
    // What is not there needs no removing.
    let _ = std::fs::remove_file(path(minor));
    Ok(())
}

fn remember(minor: Minor, disk: &str) -> Result<(), i32> {
    let bytes = File::open(disk).and_then(|mut file| file.seek(SeekFrom::End(0))).map_err(|error| {
        complain(&format!("Could not open {disk}: {}.", reason(&error)));
        1
    })?;
    let path = path(minor);
    let known = std::fs::read_to_string(&path).unwrap_or_default();
    let first_line = format!("{bytes}\t{disk}");
    if known.lines().next() == Some(first_line.as_str()) {
        return Ok(());
    }
    // The second line names the device by its own number and stays.
    let rest = known.lines().nth(1).map(|line| format!("{line}\n")).unwrap_or_default();
    if let Err(error) = save(&path, &format!("{first_line}\n{rest}")) {
        complain(&format!("lk_bdev_save({}) failed: {}", path.display(), reason(&error)));
    }
    Ok(())
}

fn save(path: &std::path::Path, text: &str) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let mut file = File::create(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}
