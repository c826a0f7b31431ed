//! Those who watch: streams of changes, each with a bounded queue of its own.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::{Rc, Weak};

use tokio::sync::Notify;
use udrbd_control::protocol::StreamItem;

/// Items kept for one who does not read.
const QUEUE_MAX: usize = 1024;

/// One who watches.
#[derive(Debug)]
pub(super) struct Watcher {
    /// The one resource of interest.
    resource: Option<String>,
    queue: RefCell<VecDeque<StreamItem>>,
    skipped: Cell<u64>,
    ended: Cell<bool>,
    wake: Notify,
}

/// What comes next for one who watches.
#[derive(Debug, PartialEq)]
pub(super) enum Next {
    Item(StreamItem),
    /// So many items were dropped; the present state has to follow.
    Skipped(u64),
    End,
}

impl Watcher {
    /// Waits for the next item.
    pub(super) async fn next(&self) -> Next {
        loop {
            if let Some(item) = self.queue.borrow_mut().pop_front() {
                return Next::Item(item);
            }
            match self.skipped.take() {
                0 if self.ended.get() => return Next::End,
                0 => {}
                count => return Next::Skipped(count),
            }
            self.wake.notified().await;
        }
    }

    fn push(&self, item: &StreamItem) {
        let mut queue = self.queue.borrow_mut();
        // Behind a gap there is nothing to be added until the gap was told.
        if queue.len() < QUEUE_MAX && self.skipped.get() == 0 {
            queue.push_back(item.clone());
        } else {
            self.skipped.set(self.skipped.get() + 1);
        }
        self.wake.notify_one();
    }
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Watchers {
    list: Vec<Weak<Watcher>>,
}

impl Watchers {
    /// One more; it is forgotten when it is dropped.
    pub(super) fn add(&mut self, resource: Option<String>) -> Rc<Watcher> {
        self.list.retain(|watcher| watcher.strong_count() > 0);
        let watcher = Rc::new(Watcher {
            resource,
            queue: RefCell::default(),
            skipped: Cell::new(0),
            ended: Cell::new(false),
            wake: Notify::new(),
        });
        self.list.push(Rc::downgrade(&watcher));
        watcher
    }

    /// Tells an item about a resource to whom it concerns.
    pub(super) fn tell(&self, resource: &str, item: &StreamItem) {
        for watcher in self.list.iter().filter_map(Weak::upgrade) {
            if watcher.resource.as_deref().is_none_or(|wanted| wanted == resource) {
                watcher.push(item);
            }
        }
    }

    /// Nothing more will come.
    pub(super) fn end(&self) {
        for watcher in self.list.iter().filter_map(Weak::upgrade) {
            watcher.ended.set(true);
            watcher.wake.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gone(name: &str) -> StreamItem {
        StreamItem::ResourceGone { time_us: 0, name: name.to_owned() }
    }

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
    }

    #[test]
    fn only_what_concerns_one_is_told() {
        let mut watchers = Watchers::default();
        let one = watchers.add(Some("r1".to_owned()));
        watchers.tell("r0", &gone("r0"));
        watchers.tell("r1", &gone("r1"));
        watchers.end();
        assert_eq!(block_on(one.next()), Next::Item(gone("r1")));
        assert_eq!(block_on(one.next()), Next::End);
    }

    #[test]
    fn a_gap_is_told_in_its_place() {
        let mut watchers = Watchers::default();
        let slow = watchers.add(None);
        for _ in 0..QUEUE_MAX + 3 {
            watchers.tell("r0", &gone("r0"));
        }
        for _ in 0..QUEUE_MAX {
            assert_eq!(block_on(slow.next()), Next::Item(gone("r0")));
        }
        watchers.tell("r0", &gone("late"));
        assert_eq!(block_on(slow.next()), Next::Skipped(4));
        watchers.tell("r0", &gone("r0"));
        assert_eq!(block_on(slow.next()), Next::Item(gone("r0")));
    }
}
