//! What goes to the control thread. It never makes the engine wait: where the mailbox is full, answers are kept until
//! there is room, and lines for the log are counted and dropped.

use std::collections::VecDeque;
use std::time::Duration;

use udrbd_engine::interface::Time;
use udrbd_runtime::mailbox::{SendError, Sender};

use crate::messages::FromEngine;

/// Messages that wait before lines for the log are dropped.
const WAITING_MAX: usize = 1024;
const RETRY: Duration = Duration::from_millis(10);

pub(super) struct Outbox {
    control: Sender<FromEngine>,
    waiting: VecDeque<FromEngine>,
    lost_lines: u64,
    retry_at: Option<Time>,
}

impl Outbox {
    pub(super) const fn new(control: Sender<FromEngine>) -> Self {
        Self { control, waiting: VecDeque::new(), lost_lines: 0, retry_at: None }
    }

    pub(super) fn push(&mut self, message: FromEngine) {
        match &message {
            FromEngine::Log { .. } if self.waiting.len() >= WAITING_MAX => {
                self.lost_lines += 1;
                return;
            }
            // A newer status replaces one that nobody has read, unless something was said in between.
            FromEngine::Status(_) if matches!(self.waiting.back(), Some(FromEngine::Status(_))) => {
                self.waiting.pop_back();
            }
            _ => {}
        }
        self.waiting.push_back(message);
    }

    pub(super) fn flush(&mut self, now: Time) {
        self.retry_at = None;
        loop {
            if self.waiting.is_empty() && self.lost_lines > 0 {
                let lost = std::mem::take(&mut self.lost_lines);
                self.waiting.push_back(FromEngine::LogLost(lost));
            }
            let Some(message) = self.waiting.pop_front() else { return };
            match self.control.send(message) {
                Ok(()) => {}
                Err(SendError::Full(message)) => {
                    self.waiting.push_front(message);
                    self.retry_at = Some(now.after(RETRY));
                    return;
                }
                Err(SendError::Closed(_)) => {
                    self.waiting.clear();
                    return;
                }
            }
        }
    }

    pub(super) const fn next_timeout(&self) -> Option<Time> {
        self.retry_at
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use udrbd_engine::interface::{CommandId, Level};
    use udrbd_runtime::mailbox::{Received, mailbox};

    use super::*;

    fn line() -> FromEngine {
        FromEngine::Log { level: Level::Info, volume: None, text: String::new() }
    }

    #[test]
    fn floods_of_lines_are_counted_and_answers_are_kept() {
        let (sender, receiver) = mailbox(WAITING_MAX + 2).unwrap();
        let mut outbox = Outbox::new(sender);
        for _ in 0..WAITING_MAX + 5 {
            outbox.push(line());
        }
        outbox.push(FromEngine::Reply { id: CommandId(7), result: Ok(()) });
        outbox.flush(Time(0));
        let mut lines = 0;
        loop {
            match receiver.take() {
                Received::Message(FromEngine::Log { .. }) => lines += 1,
                Received::Message(FromEngine::Reply { id, .. }) => assert_eq!(id, CommandId(7)),
                Received::Message(FromEngine::LogLost(lost)) => {
                    assert_eq!((lines, lost), (WAITING_MAX, 5));
                    break;
                }
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn a_full_mailbox_is_tried_again() {
        let (sender, receiver) = mailbox(1).unwrap();
        let mut outbox = Outbox::new(sender);
        outbox.push(line());
        outbox.push(line());
        outbox.flush(Time(5));
        assert_eq!(outbox.next_timeout(), Some(Time(5).after(RETRY)));
        assert!(matches!(receiver.take(), Received::Message(_)));
        outbox.flush(Time(6));
        assert!(outbox.is_empty() && outbox.next_timeout().is_none());
    }
}
