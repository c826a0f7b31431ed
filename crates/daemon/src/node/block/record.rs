//! What data a block device last showed to its clients, kept in the run directory for the next daemon: by it the engine
//! tells whether clients that outlived their daemon may go on. The folder is in memory, as the disks of the kernel are.

use std::io::Write;
use std::path::{Path, PathBuf};

use udrbd_engine::interface::WaitingClients;
use udrbd_units::{GenerationId, Minor};

fn path(run_directory: &Path, minor: Minor) -> PathBuf {
    run_directory.join(format!("served-drbd{minor}"))
}

/// What is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Record {
    /// What the clients know.
    pub(super) clients: WaitingClients,
    /// The peer was not connected: a daemon that takes over need not wait for it. Read by `conf/resources`.
    pub(super) alone: bool,
}

/// Reads what is kept for a minor. What cannot be read is not known.
pub(super) fn read(run_directory: &Path, minor: Minor) -> Record {
    let text = std::fs::read_to_string(path(run_directory, minor)).unwrap_or_default();
    let unknown = WaitingClients { served: GenerationId::NONE, overwritten: false };
    parse(&text).unwrap_or(Record { clients: unknown, alone: false })
}

fn parse(text: &str) -> Option<Record> {
    let mut words = text.strip_suffix('\n')?.split(' ');
    let served = GenerationId(u64::from_str_radix(words.next()?, 16).ok()?);
    let overwritten = choice(words.next()?, ["served", "overwritten"])?;
    let alone = choice(words.next()?, ["connected", "alone"])?;
    let record = Record { clients: WaitingClients { served, overwritten }, alone };
    words.next().is_none().then_some(record)
}

fn choice(word: &str, [no, yes]: [&str; 2]) -> Option<bool> {
    if word == yes { Some(true) } else { (word == no).then_some(false) }
}

fn text(record: Record) -> String {
    let Record { clients, alone } = record;
    let state = if clients.overwritten { "overwritten" } else { "served" };
    format!("{} {state} {}\n", clients.served, if alone { "alone" } else { "connected" })
}

/// Keeps it. Where that fails, what was kept before goes too: nothing known is better than something old.
pub(super) fn write(run_directory: &Path, minor: Minor, record: Record) -> std::io::Result<()> {
    let path = path(run_directory, minor);
    let new = path.with_extension("new");
    let written = std::fs::File::create(&new)
        .and_then(|mut file| file.write_all(text(record).as_bytes()))
        .and_then(|()| std::fs::rename(&new, &path));
    if written.is_err() {
        let _ = std::fs::remove_file(&path);
    }
    written
}

/// Nobody is served, and nobody waits.
pub(super) fn remove(run_directory: &Path, minor: Minor) {
    // A leftover is overwritten by the next disk.
    let _ = std::fs::remove_file(path(run_directory, minor));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_read_again_and_nothing_else() {
        for (overwritten, alone) in [(false, false), (false, true), (true, false), (true, true)] {
            let clients = WaitingClients { served: GenerationId(0x0123_4567_89AB_CDEF), overwritten };
            let record = Record { clients, alone };
            assert_eq!(parse(&text(record)), Some(record));
            let whole = text(record);
            for end in 0..whole.len() {
                assert_eq!(parse(&whole[..end]), None, "{:?}", &whole[..end]);
            }
        }
    }

    #[test]
    fn a_record_that_is_not_there_is_not_known() {
        let folder = tempfile::tempdir().unwrap();
        let is_known = |record: Record| record.clients.served.is_some();
        assert!(!is_known(read(folder.path(), Minor(3))));
        let clients = WaitingClients { served: GenerationId(7), overwritten: true };
        let record = Record { clients, alone: false };
        write(folder.path(), Minor(3), record).unwrap();
        assert_eq!(read(folder.path(), Minor(3)), record);
        remove(folder.path(), Minor(3));
        assert!(!is_known(read(folder.path(), Minor(3))));
    }
}
