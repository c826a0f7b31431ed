//! Partitions come and go while a disk is in use, by whoever has it open: the kernel tells, and nodes follow.

use std::rc::Rc;

use tokio::io::unix::AsyncFd;
use udrbd_runtime::devices::DeviceEvents;

use super::{Node, disk_name};

/// Lets the nodes of partitions follow what the kernel tells, for as long as the daemon runs.
pub(in crate::node) async fn follow(node: Rc<Node>) {
    let events = match DeviceEvents::listen() {
        Ok(events) => events,
        Err(errno) => {
            tracing::info!("partitions get nodes at a promotion only: the kernel's events: {errno}");
            return;
        }
    };
    // Its descriptor is that of the socket it owns, for as long as it lives: what `new` cannot know of any type.
    #[allow(deprecated, reason = "the replacement needs unsafe code")]
    let events = AsyncFd::new(events);
    let Ok(events) = events else {
        tracing::error!("no file descriptor left for the kernel's events");
        return;
    };
    loop {
        let Ok(mut ready) = events.readable().await else { return };
        ready.clear_ready();
        let told = events.get_ref().take();
        for device in node.state.borrow_mut().blocks.values_mut() {
            let number = device.disk.as_ref().map(|disk| disk.number()).or(device.orphan);
            let concerned = match (&told, number) {
                (Some(disks), Some(number)) => disks.contains(&disk_name(number)),
                (None, Some(_)) => true,
                (_, None) => false,
            };
            if concerned {
                device.names.follow_partitions();
            }
        }
    }
}
