//! Handler scripts that read `/proc/drbd`.
//!
//! Those of `drbd-utils` (`crm-fence-peer.sh`, `stonith_admin-fence-peer.sh`, `rhcs_fence`, `snapshot-resync-target-lvm.sh`) and
//! many of its users' own do. Without the kernel's module there is no such file, and nothing can make one: with it there is one
//! that knows nothing of our devices. So a handler is given a copy of the script that reads the daemon's status file instead.
//! What a script calls in its turn is not looked at.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, access};
use udrbd_control::client::{RUN_DIRECTORY_DEFAULT, run_directory};

/// What scripts read.
const KERNELS: &str = "/proc/drbd";
/// Where the daemon's files are that outlive a reboot. The run directory is often mounted so that nothing in it can be executed.
const STATE_DIRECTORY: &str = "/var/lib/udrbd";
/// Nobody's script is larger, in bytes.
const SCRIPT_MAX: u64 = 1 << 20;

/// The text of a handler with what it needs to read of our devices what it would read of the kernel's.
///
/// # Errors
/// A script that reads `/proc/drbd` cannot be copied. The message names it.
pub(super) fn redirected(handler: &str) -> Result<String, String> {
    let run = run_directory();
    let state = if run == Path::new(RUN_DIRECTORY_DEFAULT) { Path::new(STATE_DIRECTORY) } else { &run };
    let status = run.join("proc/drbd");
    match status.to_str() {
        Some(status) if Path::new(status).exists() => redirect_all(handler, status, &state.join("scripts")),
        _ => Ok(handler.to_owned()),
    }
}

/// Copies go into `folder`, under the path of the script.
fn redirect_all(handler: &str, status: &str, folder: &Path) -> Result<String, String> {
    let mut text = String::with_capacity(handler.len());
    for piece in Pieces(handler) {
        match piece {
            KERNELS => text.push_str(status),
            _ if piece.starts_with('/') => {
                let copy = copy(Path::new(piece), status, folder);
                let copy = copy.map_err(|error| {
                    format!("{piece} reads {KERNELS}, and cannot be given {status} to read instead: {error}")
                })?;
                text.push_str(copy.as_ref().and_then(|copy| copy.to_str()).unwrap_or(piece));
            }
            _ => text.push_str(piece),
        }
    }
    Ok(text)
}

/// The copy of a script that reads the kernel's file; none of anything else.
fn copy(script: &Path, status: &str, folder: &Path) -> io::Result<Option<PathBuf>> {
    // What is not there, or may not be read, is the handler's own matter.
    let Ok(metadata) = fs::metadata(script) else { return Ok(None) };
    if !metadata.is_file() || metadata.size() > SCRIPT_MAX {
        return Ok(None);
    }
    let Ok(text) = fs::read_to_string(script) else { return Ok(None) };
    if !text.starts_with("#!") || !Pieces(&text).any(|piece| piece == KERNELS) {
        return Ok(None);
    }
    let text: String = Pieces(&text).map(|piece| if piece == KERNELS { status } else { piece }).collect();
    let copy = folder.join(script.strip_prefix("/").unwrap_or(script));
    let Some(parent) = copy.parent() else { return Ok(None) };
    fs::create_dir_all(parent)?;
    // Another handler may be about to run it.
    let mut new = tempfile::NamedTempFile::new_in(parent)?;
    io::Write::write_all(&mut new, text.as_bytes())?;
    fs::set_permissions(new.path(), fs::Permissions::from_mode(metadata.mode() & 0o755))?;
    new.persist(&copy).map_err(|error| error.error)?;
    if metadata.mode() & 0o111 != 0 {
        access(&copy, AccessFlags::X_OK).map_err(|error| {
            io::Error::other(format!("{} cannot be executed there: {error}", copy.display()))
        })?;
    }
    Ok(Some(copy))
}

/// A text in pieces: absolute paths, and what is between them.
struct Pieces<'a>(&'a str);

/// Whether a path goes on with this.
fn is_of_a_path(character: char) -> bool {
    character.is_alphanumeric() || "/._-+~@%".contains(character)
}

impl<'a> Iterator for Pieces<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        let text = self.0;
        let length = if text.starts_with('/') {
            text.find(|character| !is_of_a_path(character)).unwrap_or(text.len())
        } else {
            // A path that begins elsewhere goes on here.
            let mut inside = false;
            let begins = |(at, character): (usize, char)| {
                let begins = character == '/' && !inside;
                inside = is_of_a_path(character);
                begins.then_some(at)
            };
            text.char_indices().find_map(begins).unwrap_or(text.len())
        };
        let (piece, rest) = text.split_at_checked(length).filter(|(piece, _)| !piece.is_empty())?;
        self.0 = rest;
        Some(piece)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_kernels_file_is_meant() {
        let pieces = |text| Pieces(text).collect::<Vec<_>>();
        assert_eq!(pieces("cat /proc/drbd|wc"), ["cat ", "/proc/drbd", "|wc"]);
        assert_eq!(pieces("$(</proc/drbd)"), ["$(<", "/proc/drbd", ")"]);
        assert_eq!(pieces("x/proc/drbd /proc/drbd.old"), ["x/proc/drbd ", "/proc/drbd.old"]);
        assert_eq!(pieces(""), [""; 0]);
    }

    fn script(folder: &Path, name: &str, text: &str) -> String {
        let path = folder.join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path.to_str().unwrap().to_owned()
    }

    #[test]
    fn a_script_that_reads_it_is_copied_and_no_other_one() {
        let folder = tempfile::tempdir().unwrap();
        let copies = folder.path().join("copies");
        let reads = script(folder.path(), "reads", "#!/bin/bash\nsed 1d < /proc/drbd\n");
        let other = script(folder.path(), "other", "#!/bin/bash\nsed 1d < /proc/drbd.txt\n");
        let handler = format!("nice {reads} -t 3; {other} || grep -q 0: /proc/drbd; /bin/sh /nowhere");
        let text = redirect_all(&handler, "/run/status", &copies).unwrap();
        let copy = copies.join(reads.trim_start_matches('/'));
        let expected =
            format!("nice {} -t 3; {other} || grep -q 0: /run/status; /bin/sh /nowhere", copy.display());
        assert_eq!(text, expected);
        assert_eq!(fs::read_to_string(&copy).unwrap(), "#!/bin/bash\nsed 1d < /run/status\n");
        assert_eq!(fs::metadata(&copy).unwrap().mode() & 0o777, 0o755);
    }

    #[test]
    fn a_copy_that_cannot_be_made_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let reads = script(folder.path(), "reads", "#!/bin/sh\ncat /proc/drbd\n");
        let error = redirect_all(&reads, "/run/status", Path::new("/proc/nowhere")).unwrap_err();
        assert!(error.starts_with(&format!("{reads} reads /proc/drbd, and cannot be given")), "{error}");
    }
}
