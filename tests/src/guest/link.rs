//! A virtual cable between two guests, in the hands of the test.
//!
//! Each guest's network card sends its frames as datagrams to one of two unix sockets; a thread here
//! carries them across, unless the cable is cut. Datagrams have no connection that a power cut could
//! break: a guest that comes back is on the wire again.

use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result};

/// The two ends of a cable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The first guest's.
    First,
    /// The second guest's.
    Second,
}

/// A cable; unplugged for good when dropped.
pub struct Link {
    folder: PathBuf,
    cut: Arc<AtomicBool>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Link {
    /// A cable whose sockets live in `folder`.
    ///
    /// # Errors
    ///
    /// If the sockets cannot be made there.
    pub fn new(folder: &Path) -> Result<Self> {
        let cut = Arc::new(AtomicBool::new(false));
        let stop = Arc::new(AtomicBool::new(false));
        let mut link = Self { folder: folder.to_owned(), cut, stop, threads: Vec::new() };
        for (from, to) in [(End::First, End::Second), (End::Second, End::First)] {
            let path = link.hub_socket(from);
            let socket =
                UnixDatagram::bind(&path).with_context(|| format!("cannot bind {}", path.display()))?;
            socket.set_read_timeout(Some(Duration::from_millis(100)))?;
            let target = link.guest_socket(to);
            let (cut, stop) = (Arc::clone(&link.cut), Arc::clone(&link.stop));
            link.threads.push(std::thread::spawn(move || carry(&socket, &target, &cut, &stop)));
        }
        Ok(link)
    }

    /// The socket a guest's network card listens on.
    pub fn guest_socket(&self, end: End) -> PathBuf {
        self.folder.join(format!("guest-{end:?}.sock"))
    }

    /// The socket a guest's network card sends to.
    pub fn hub_socket(&self, end: End) -> PathBuf {
        self.folder.join(format!("hub-{end:?}.sock"))
    }

    /// Cuts the cable: frames vanish in both directions and neither end is told.
    pub fn cut(&self) {
        self.cut.store(true, Ordering::SeqCst);
    }

    /// Joins the cable again.
    pub fn join(&self) {
        self.cut.store(false, Ordering::SeqCst);
    }
}

fn carry(socket: &UnixDatagram, target: &Path, cut: &AtomicBool, stop: &AtomicBool) {
    let mut frame = vec![0; 128 * 1024];
    while !stop.load(Ordering::SeqCst) {
        let Ok(length) = socket.recv(&mut frame) else { continue };
        if !cut.load(Ordering::SeqCst) {
            // A guest that is off has no socket: its frames are lost, as on a real cable.
            let _lost = socket.send_to(&frame[..length], target);
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            let _ended = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_cross_until_the_cable_is_cut() {
        let folder = tempfile::tempdir().unwrap();
        let link = Link::new(folder.path()).unwrap();
        let first = UnixDatagram::bind(link.guest_socket(End::First)).unwrap();
        let second = UnixDatagram::bind(link.guest_socket(End::Second)).unwrap();
        second.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let mut frame = [0; 16];
        first.send_to(b"one", link.hub_socket(End::First)).unwrap();
        assert_eq!(second.recv(&mut frame).unwrap(), 3);
        link.cut();
        first.send_to(b"two", link.hub_socket(End::First)).unwrap();
        second.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        assert!(second.recv(&mut frame).is_err());
        link.join();
        first.send_to(b"three", link.hub_socket(End::First)).unwrap();
        second.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        assert_eq!(second.recv(&mut frame).unwrap(), 5);
    }
}
