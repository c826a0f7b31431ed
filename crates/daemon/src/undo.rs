//! The thread that keeps what is overwritten, one for each disk with `resync-undo`. It takes whatever has gathered at once:
//! what many writes wait for is durable with one pair of flushes.

use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use udrbd_engine::interface::Token;
use udrbd_runtime::Errno;
use udrbd_runtime::mailbox::{self, SendError};
use udrbd_runtime::undo::Undo;
use udrbd_units::Sector;

use crate::messages::ToEngine;

/// Jobs taken together.
const BATCH_MAX: usize = 512;
const RETRY: Duration = Duration::from_millis(1);

/// Something to be kept.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Job {
    /// Begin an undo of a device of this size.
    Begin { token: Token, size: Sector },
    /// Keep these blocks.
    Keep { token: Token, first: u64, blocks: u64 },
}

/// The engine's end of the thread. The disk is let go of when it is dropped.
#[derive(Debug)]
pub(crate) struct Keeper {
    undo: Arc<Undo>,
    queue: Sender<Job>,
}

impl Keeper {
    /// Starts the thread. `marker` is a link to the side file, by which the next daemon knows that it is not out of date.
    pub(crate) fn start(
        undo: Arc<Undo>,
        marker: PathBuf,
        mail: mailbox::Sender<ToEngine>,
    ) -> io::Result<Self> {
        let (queue, jobs) = mpsc::channel();
        let kept = Arc::clone(&undo);
        let run = move || work(&kept, &marker, &jobs, &mail);
        std::thread::Builder::new().name("undo".to_owned()).spawn(run)?;
        Ok(Self { undo, queue })
    }

    /// Hands a job over; false where the thread is gone.
    pub(crate) fn ask(&self, job: Job) -> bool {
        self.queue.send(job).is_ok()
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.undo.release_disk();
    }
}

fn work(undo: &Undo, marker: &Path, jobs: &Receiver<Job>, mail: &mailbox::Sender<ToEngine>) {
    let mut next = None;
    while let Some(job) = next.take().or_else(|| jobs.recv().ok()) {
        let (mut tokens, mut runs) = (Vec::new(), Vec::new());
        let result = match job {
            Job::Begin { token, size } => {
                tokens.push(token);
                begin(undo, marker, size)
            }
            Job::Keep { token, first, blocks } => {
                tokens.push(token);
                runs.push((first, blocks));
                while tokens.len() < BATCH_MAX {
                    match jobs.try_recv() {
                        Ok(Job::Keep { token, first, blocks }) => {
                            tokens.push(token);
                            runs.push((first, blocks));
                        }
                        Ok(other) => {
                            next = Some(other);
                            break;
                        }
                        Err(_) => break,
                    }
                }
                undo.keep(&runs)
            }
        };
        for token in tokens {
            if !tell(mail, ToEngine::Kept { token, result }) {
                return;
            }
        }
    }
}

fn begin(undo: &Undo, marker: &Path, size: Sector) -> Result<(), Errno> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_micros() as i64);
    undo.begin(size, now)?;
    let marked = mark(undo.path(), marker);
    if marked.is_err() {
        // Without it the next daemon would not trust the file: it is not begun.
        let _ = undo.remove();
    }
    marked.map_err(|error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))
}

fn mark(path: &Path, marker: &Path) -> io::Result<()> {
    // One of an undo that is gone.
    let _ = std::fs::remove_file(marker);
    let folder = marker.parent().unwrap_or(Path::new("/"));
    std::fs::create_dir_all(folder)?;
    symlink(path, marker)?;
    std::fs::File::open(folder)?.sync_all()
}

/// The mailbox of a busy engine may be full: it empties it soon.
fn tell(mail: &mailbox::Sender<ToEngine>, message: ToEngine) -> bool {
    let mut message = message;
    loop {
        match mail.send(message) {
            Ok(()) => return true,
            Err(SendError::Full(back)) => {
                message = back;
                std::thread::sleep(RETRY);
            }
            Err(SendError::Closed(_)) => return false,
        }
    }
}
