//! `RUN/proc/drbd`: what `/proc/drbd` is to the kernel's DRBD.

use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use anyhow::Context;
use udrbd_control::status::proc_drbd;

use super::Node;

/// At the least between two versions of the file.
const PAUSE: Duration = Duration::from_millis(20);
/// Names the build in the second line.
const BUILD: &str = concat!("udrbd-", env!("CARGO_PKG_VERSION"));

/// Writes the file now and whenever something changes.
pub(super) fn start(node: &Rc<Node>) -> anyhow::Result<()> {
    let folder = node.run_directory.join("proc");
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let path = folder.join("drbd");
    let mut written = text(node);
    replace(&path, &written).with_context(|| format!("cannot write {}", path.display()))?;
    let node = Rc::clone(node);
    tokio::task::spawn_local(async move {
        let mut complained = false;
        loop {
            node.changed.notified().await;
            let text = text(&node);
            if text != written {
                match replace(&path, &text) {
                    Ok(()) => complained = false,
                    Err(error) if !complained => {
                        tracing::warn!("cannot write {}: {error}", path.display());
                        complained = true;
                    }
                    Err(_) => {}
                }
                written = text;
            }
            tokio::time::sleep(PAUSE).await;
        }
    });
    Ok(())
}

fn text(node: &Node) -> String {
    proc_drbd(&node.state.borrow().snapshot(None), BUILD)
}

/// A reader finds the old text or the new one, never a part.
fn replace(path: &Path, text: &str) -> std::io::Result<()> {
    let new = path.with_extension("new");
    std::fs::write(&new, text)?;
    std::fs::rename(&new, path)
}
