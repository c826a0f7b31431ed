//! `RUN/proc/drbd`: what `/proc/drbd` is to the kernel's DRBD.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use anyhow::Context;
use udrbd_control::status::{NodeSnapshot, proc_drbd};

use super::Node;

/// At the least between two versions of the file.
const PAUSE: Duration = Duration::from_millis(20);
/// Names the build in the second line.
const BUILD: &str = concat!("udrbd-", env!("CARGO_PKG_VERSION"));

/// The file, and what it says.
pub(super) struct StatusFile {
    path: PathBuf,
    written: String,
    /// The last write failed, and that was said.
    failing: bool,
}

impl StatusFile {
    /// The file of a node without resources.
    pub(super) fn create(run_directory: &Path) -> anyhow::Result<Self> {
        let folder = run_directory.join("proc");
        std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let path = folder.join("drbd");
        let written = proc_drbd(&NodeSnapshot::default(), BUILD);
        replace(&path, &written).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self { path, written, failing: false })
    }

    fn update(&mut self, text: String) {
        if text == self.written {
            return;
        }
        match replace(&self.path, &text) {
            Ok(()) => {
                self.failing = false;
                self.written = text;
            }
            Err(error) => {
                if !self.failing {
                    tracing::warn!("cannot write {}: {error}", self.path.display());
                }
                self.failing = true;
            }
        }
    }
}

impl Node {
    /// Writes the file, if it says something else. After a command, so that whoever gave it reads what came of it.
    pub(super) fn write_status_file(&self) {
        let text = proc_drbd(&self.state.borrow().snapshot(None), BUILD);
        self.status_file.borrow_mut().update(text);
    }
}

/// Writes the file whenever something changes.
pub(super) async fn keep_current(node: Rc<Node>) {
    loop {
        node.changed.notified().await;
        node.write_status_file();
        tokio::time::sleep(PAUSE).await;
    }
}

/// A reader finds the old text or the new one, never a part.
fn replace(path: &Path, text: &str) -> std::io::Result<()> {
    let new = path.with_extension("new");
    std::fs::write(&new, text)?;
    std::fs::rename(&new, path)
}
