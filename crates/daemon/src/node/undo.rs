//! `resync-undo`: where the side file is, what is shown of it, its export, and its end.
//!
//! A link in the state folder leads to the side file of a disk that has one. It is made when an undo begins and goes with
//! it: a side file without it was not looked after in between, and is out of date. It counts more than the option: an undo
//! goes on, wherever it is, until it is dropped.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use udrbd_control::ReturnCode;
use udrbd_control::options::{Scale, parse_number};
use udrbd_control::protocol::CommandResult;
use udrbd_control::status::UndoSnapshot;
use udrbd_engine::interface::{Command, KeptBlocks, Level};
use udrbd_runtime::disk::Disk;
use udrbd_runtime::nbd::protocol::{
    Bounds, Command as NbdCommand, ErrorCode, REQUEST_BYTES, Request, encode_data_chunk, encode_error_chunk,
    encode_simple_reply, validate,
};
use udrbd_runtime::nbd::{Export, Negotiated};
use udrbd_runtime::undo::Undo;
use udrbd_units::{BLOCK_SECTORS, Minor, SECTOR_BYTES, VolumeNumber};

use super::Node;
use super::commands::{find_device, one_at_a_time, pass, unknown_minor};

/// Behind the name of an export: the device as it was.
pub(super) const SUFFIX: &str = "@undo";
/// Bytes read from the undo at once.
const CHUNK_BYTES: usize = 256 << 10;

/// Where what is overwritten is to be kept, by the value of `resync-undo`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    path: PathBuf,
    bytes_max: Option<u64>,
}

/// `None` for a value that is neither a folder nor a size.
fn place(value: &str, state_directory: &Path, minor: Minor) -> Option<Place> {
    if value.starts_with('/') {
        return Some(Place {
            path: Path::new(value).join(format!("undo-drbd{minor}.side")),
            bytes_max: None,
        });
    }
    let bytes = parse_number(value, Scale::Ones).ok().filter(|bytes| *bytes > 0)?;
    Some(Place { path: state_directory.join(format!("undo-drbd{minor}.side")), bytes_max: Some(bytes) })
}

/// Whether the option can have this value.
pub(super) fn is_valid(value: &str) -> bool {
    value.is_empty() || place(value, Path::new("/"), Minor(0)).is_some()
}

pub(super) fn marker(state_directory: &Path, minor: Minor) -> PathBuf {
    state_directory.join(format!("undo-drbd{minor}"))
}

/// Looks for the undo of a disk that is being attached, or gets one ready to begin. `None` where nothing is to be kept. The
/// text is for the log: an undo that cannot be gone on with must not keep the disk from being used.
pub(super) fn prepare(
    state_directory: &Path,
    minor: Minor,
    value: &str,
    disk: &Disk,
) -> (Option<Undo>, Option<String>) {
    let marker = marker(state_directory, minor);
    let linked = std::fs::read_link(&marker).ok();
    let marked = linked.clone().filter(|path| path.exists());
    if let Some(gone) = linked.filter(|_| marked.is_none()) {
        // Should it come back, it is out of date.
        let _ = std::fs::remove_file(&marker);
        tracing::warn!("drbd{minor}: the resync-undo in {} is not there", gone.display());
    }
    let configured = place(value, state_directory, minor);
    let bytes_max = configured.as_ref().and_then(|place| place.bytes_max);
    let Some(path) = marked.clone().or_else(|| configured.map(|place| place.path)) else {
        return (None, None);
    };
    match Undo::open(&path, bytes_max, disk.clone()) {
        Ok(undo) => {
            let stale = undo.info().is_some_and(|info| !info.incomplete) && marked.is_none();
            if stale {
                undo.distrust();
            }
            let text =
                format!("The resync-undo in {} is out of date: it was not gone on with", path.display());
            (Some(undo), stale.then_some(text))
        }
        Err(error) => {
            // It is not gone on with: nobody may take it for whole later.
            let _ = std::fs::remove_file(&marker);
            (None, Some(format!("No resync-undo: {}: {error}", path.display())))
        }
    }
}

/// What the engine is to know of it.
pub(super) fn kept_blocks(undo: &Undo) -> Option<KeptBlocks> {
    let blocks = undo.info()?.size.0.div_ceil(BLOCK_SECTORS);
    Some(KeptBlocks { words: undo.kept_words()?, blocks })
}

/// What is shown of it.
pub(super) fn snapshot(undo: &Undo, resource: &str, volume: VolumeNumber) -> Option<UndoSnapshot> {
    let info = undo.info()?;
    let name = if volume.0 == 0 { resource.to_owned() } else { format!("{resource}/{volume}") };
    Some(UndoSnapshot {
        began_us: info.began_us,
        kept_blocks: info.kept_blocks,
        incomplete: info.incomplete,
        path: undo.path().to_owned(),
        export: name + SUFFIX,
    })
}

/// `drop-resync-undo`.
pub(super) async fn drop_undo(node: &Rc<Node>, minor: Minor) -> CommandResult {
    let Some((resource, volume)) = find_device(node, minor) else { return unknown_minor() };
    let resource = resource.as_str();
    one_at_a_time(node, resource, async || {
        let undo = {
            let state = node.state.borrow();
            state.resource(resource).and_then(|entry| entry.volume(volume)?.undo.clone())
        };
        let Some(undo) = undo.filter(|undo| undo.info().is_some()) else {
            return CommandResult::with_info(ReturnCode::InvalidRequest, "there is no resync-undo");
        };
        let result = pass(node, resource, Command::DropUndo { volume }).await;
        if !result.code.is_success() {
            return result;
        }
        let marker = marker(&node.state_directory, minor);
        let removed = tokio::task::spawn_blocking(move || {
            // First the file: one without its link is out of date, a link without a file leads nowhere.
            let removed = undo.remove();
            let _ = std::fs::remove_file(marker);
            removed
        });
        match removed.await {
            Ok(Err(error)) => CommandResult::with_info(ReturnCode::UnknownError, error.to_string()),
            _ => {
                node.log(resource, Level::Info, Some(volume), "resync-undo dropped");
                result
            }
        }
    })
    .await
}

/// The export of an undo.
pub(super) fn export(undo: &Undo, name: &str, minor: Minor, block_bytes: u32) -> Option<Export> {
    let info = undo.info()?;
    let whole = if info.incomplete { ", INCOMPLETE" } else { "" };
    Some(Export {
        name: name.to_owned(),
        description: format!("/dev/drbd{minor} before the resync{whole}"),
        size_bytes: info.size.0 * SECTOR_BYTES,
        block_bytes,
        read_only: true,
        trim: false,
        rotational: false,
    })
}

/// Serves a client that has negotiated, in a thread of its own.
pub(super) fn serve(undo: Arc<Undo>, stream: UnixStream, negotiated: Box<Negotiated>) -> std::io::Result<()> {
    stream.set_nonblocking(false)?;
    std::thread::Builder::new().name("undo export".to_owned()).spawn(move || {
        // A client that is gone needs no word.
        let _ = converse(&undo, stream, &negotiated);
    })?;
    Ok(())
}

fn converse(undo: &Undo, stream: UnixStream, negotiated: &Negotiated) -> std::io::Result<()> {
    let Negotiated { export, structured, early_bytes } = negotiated;
    let bounds = Bounds {
        size_bytes: export.size_bytes,
        block_bytes: export.block_bytes,
        export_flags: export.flags(*structured),
        structured: *structured,
    };
    let mut input = early_bytes.chain(&stream);
    let mut output = &stream;
    let mut bytes = [0; REQUEST_BYTES];
    loop {
        input.read_exact(&mut bytes)?;
        let Ok(request) = Request::decode(&bytes) else { return Ok(()) };
        let cookie = request.cookie;
        let mut reply = Vec::new();
        match validate(&request, &bounds) {
            Ok(NbdCommand::Disconnect) => return Ok(()),
            Ok(NbdCommand::Read { .. }) => {
                let mut data = vec![0; request.length as usize];
                let mut pieces = (request.offset..).step_by(CHUNK_BYTES).zip(data.chunks_mut(CHUNK_BYTES));
                let read = pieces.try_for_each(|(offset, piece)| undo.read(offset, piece));
                match (read, structured) {
                    (Ok(()), true) => {
                        encode_data_chunk(&mut reply, true, cookie, request.offset, request.length);
                    }
                    (Ok(()), false) => encode_simple_reply(&mut reply, cookie, None),
                    (Err(_), true) => {
                        let at = Some(request.offset);
                        encode_error_chunk(&mut reply, true, cookie, ErrorCode::Io, at);
                    }
                    (Err(_), false) => encode_simple_reply(&mut reply, cookie, Some(ErrorCode::Io)),
                }
                if read.is_ok() {
                    reply.append(&mut data);
                }
            }
            Ok(_) => encode_simple_reply(&mut reply, cookie, None),
            Err(error) => {
                // What a write carries has to be read over.
                if request.command == 1 {
                    std::io::copy(&mut (&mut input).take(request.length.into()), &mut std::io::sink())?;
                }
                encode_simple_reply(&mut reply, cookie, Some(error));
            }
        }
        output.write_all(&reply)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_option_is_a_folder_or_a_size() {
        let state = Path::new("/var/lib/udrbd");
        let wanted = |path: &str, bytes_max| Some(Place { path: path.into(), bytes_max });
        assert_eq!(place("/srv/undo", state, Minor(3)), wanted("/srv/undo/undo-drbd3.side", None));
        assert_eq!(place("2M", state, Minor(3)), wanted("/var/lib/udrbd/undo-drbd3.side", Some(2 << 20)));
        for value in ["", "0", "undo", "10Q"] {
            assert_eq!(place(value, state, Minor(3)), None, "{value}");
        }
        assert!(is_valid("") && is_valid("1G") && !is_valid("relative/folder"));
    }
}
