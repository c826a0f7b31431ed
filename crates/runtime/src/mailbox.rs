//! Bounded messages into a thread that waits on a file descriptor.
//!
//! The engine thread sleeps in its ring and the control thread in its own loop, so a message is a queue entry and
//! an eventfd that wakes the other side. Sending never waits: a full mailbox is an answer, because an engine
//! must not wait for the control thread, nor the control thread for an engine.
//!
//! [`Receiver`] is readable ([`std::os::fd::AsFd`]) whenever something may be in it: poll it on a ring with
//! [`Receiver::arm`], or in any other event loop.

use std::fmt::Debug;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc;

use crate::Errno;
use crate::ring::{Descriptor, Readiness, Ring};

/// Why a message was not taken; it comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError<M> {
    /// As many messages are waiting as the mailbox holds.
    #[error("the mailbox is full")]
    Full(M),
    /// The receiver is gone.
    #[error("nobody reads the mailbox")]
    Closed(M),
}

/// Makes a mailbox for at most `capacity` waiting messages.
///
/// # Errors
/// `EMFILE` or `ENFILE` when there is no file descriptor left.
pub fn mailbox<M>(capacity: usize) -> Result<(Sender<M>, Receiver<M>), Errno> {
    let event = wakeup::new()?;
    let event = Arc::new(event);
    let (queue, messages) = mpsc::sync_channel(capacity);
    let sender = Sender { queue: Some(queue), event: Arc::clone(&event) };
    Ok((sender, Receiver { messages, event }))
}

/// The end that sends; clones send into the same mailbox.
#[derive(Debug)]
pub struct Sender<M> {
    /// Always there but while dropping.
    queue: Option<mpsc::SyncSender<M>>,
    event: Descriptor,
}

impl<M> Clone for Sender<M> {
    fn clone(&self) -> Self {
        Self { queue: self.queue.clone(), event: Arc::clone(&self.event) }
    }
}

impl<M> Sender<M> {
    /// Puts a message in and wakes the receiver; never waits.
    ///
    /// # Errors
    /// See [`SendError`].
    pub fn send(&self, message: M) -> Result<(), SendError<M>> {
        let Some(queue) = &self.queue else { return Err(SendError::Closed(message)) };
        match queue.try_send(message) {
            Ok(()) => {
                wakeup::signal(self.event.as_fd());
                Ok(())
            }
            Err(mpsc::TrySendError::Full(message)) => Err(SendError::Full(message)),
            Err(mpsc::TrySendError::Disconnected(message)) => Err(SendError::Closed(message)),
        }
    }
}

impl<M> Drop for Sender<M> {
    /// Wakes the receiver so that it notices when the last sender goes.
    fn drop(&mut self) {
        self.queue = None;
        wakeup::signal(self.event.as_fd());
    }
}

/// What is in the mailbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received<M> {
    /// The oldest message.
    Message(M),
    /// Nothing now.
    Empty,
    /// Nothing, and every sender is gone.
    Closed,
}

/// The end that receives.
#[derive(Debug)]
pub struct Receiver<M> {
    messages: mpsc::Receiver<M>,
    event: Descriptor,
}

impl<M> Receiver<M> {
    /// Asks the ring to complete `token` when there is something to receive. Once: arm again after each
    /// completion, before taking the messages out.
    pub fn arm<T: Copy + Debug>(&self, ring: &mut Ring<T>, token: T) {
        wakeup::clear(self.event.as_fd());
        ring.poll(&self.event, Readiness::Readable, token);
    }

    /// Takes the wake-up back, before taking the messages out; for event loops other than a ring.
    pub fn clear_wakeup(&self) {
        wakeup::clear(self.event.as_fd());
    }

    /// Takes the oldest message out.
    pub fn take(&self) -> Received<M> {
        match self.messages.try_recv() {
            Ok(message) => Received::Message(message),
            Err(mpsc::TryRecvError::Empty) => Received::Empty,
            Err(mpsc::TryRecvError::Disconnected) => Received::Closed,
        }
    }
}

impl<M> AsFd for Receiver<M> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

/// The eventfd.
mod wakeup {
    use super::{BorrowedFd, Errno, OwnedFd};
    use nix::sys::eventfd::{EfdFlags, EventFd};

    pub(super) fn new() -> Result<OwnedFd, Errno> {
        let event = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(event.into())
    }

    /// A counter at its maximum (`EAGAIN`) wakes as well as one more would.
    pub(super) fn signal(event: BorrowedFd<'_>) {
        let _ = nix::unistd::write(event, &1u64.to_ne_bytes());
    }

    pub(super) fn clear(event: BorrowedFd<'_>) {
        let _ = nix::unistd::read(event, &mut [0; 8]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffers::PoolOptions;
    use crate::ring::RingOptions;

    #[test]
    fn a_message_from_another_thread_wakes_the_ring() {
        let (sender, receiver) = mailbox::<u32>(4).unwrap();
        let pool = PoolOptions { bytes: 1 << 20, lock: false };
        let mut ring = Ring::new(RingOptions { pool, ..RingOptions::default() }).unwrap();
        receiver.arm(&mut ring, "mail");
        let thread = std::thread::spawn(move || sender.send(5).unwrap());
        let mut completions = Vec::new();
        ring.wait(None, &mut completions).unwrap();
        assert_eq!(completions[0].token, "mail");
        receiver.arm(&mut ring, "mail");
        thread.join().unwrap();
        assert_eq!(receiver.take(), Received::Message(5));
        assert_eq!(receiver.take(), Received::Closed);
    }

    #[test]
    fn a_message_sent_before_arming_is_not_slept_over() {
        let (sender, receiver) = mailbox::<u32>(4).unwrap();
        sender.send(1).unwrap();
        let pool = PoolOptions { bytes: 1 << 20, lock: false };
        let mut ring = Ring::new(RingOptions { pool, ..RingOptions::default() }).unwrap();
        receiver.arm(&mut ring, ());
        assert_eq!(receiver.take(), Received::Message(1));
        sender.send(2).unwrap();
        let mut completions = Vec::new();
        ring.wait(None, &mut completions).unwrap();
        assert_eq!(completions.len(), 1);
        assert_eq!(receiver.take(), Received::Message(2));
        assert_eq!(receiver.take(), Received::Empty);
    }

    #[test]
    fn the_last_sender_going_wakes_the_ring() {
        let (sender, receiver) = mailbox::<u32>(1).unwrap();
        let pool = PoolOptions { bytes: 1 << 20, lock: false };
        let mut ring = Ring::new(RingOptions { pool, ..RingOptions::default() }).unwrap();
        receiver.arm(&mut ring, ());
        drop(sender);
        let mut completions = Vec::new();
        ring.wait(Some(std::time::Duration::from_secs(60)), &mut completions).unwrap();
        assert_eq!(completions.len(), 1);
        assert_eq!(receiver.take(), Received::Closed);
    }

    #[test]
    fn a_full_mailbox_gives_the_message_back() {
        let (sender, receiver) = mailbox::<u32>(1).unwrap();
        sender.send(1).unwrap();
        assert_eq!(sender.send(2), Err(SendError::Full(2)));
        drop(receiver);
        assert_eq!(sender.send(3), Err(SendError::Closed(3)));
    }
}
