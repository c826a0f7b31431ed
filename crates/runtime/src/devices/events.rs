//! What the kernel tells of block devices that come, change and go, to whoever listens.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::sys::socket::{
    AddressFamily, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recvfrom, socket,
};

use crate::Errno;

/// The group to which the kernel itself speaks; udev speaks to another one.
const KERNEL_GROUP: u32 = 1;
/// Longer than any message: the kernel's buffer for one has 2 KiB.
const MESSAGE_BYTES: usize = 8192;

/// Hears of block devices. Its descriptor is readable when there is something to hear.
#[derive(Debug)]
pub struct DeviceEvents(OwnedFd);

impl DeviceEvents {
    /// Listens from now on.
    ///
    /// # Errors
    /// What the kernel says; `EPROTONOSUPPORT` and its like where it has no such messages.
    pub fn listen() -> Result<Self, Errno> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let protocol = SockProtocol::NetlinkKObjectUEvent;
        let socket = socket(AddressFamily::Netlink, SockType::Datagram, flags, protocol)?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, KERNEL_GROUP))?;
        Ok(Self(socket))
    }

    /// The names of disks of which something was told since the last call, of themselves or their partitions. `None`
    /// where messages were lost: it may be any.
    #[must_use]
    pub fn take(&self) -> Option<BTreeSet<String>> {
        let mut disks = BTreeSet::new();
        let mut complete = true;
        let mut message = [0; MESSAGE_BYTES];
        loop {
            match recvfrom::<NetlinkAddr>(self.0.as_raw_fd(), &mut message) {
                // Whoever else sends to the group is not believed.
                Ok((_, Some(sender))) if sender.pid() != 0 => {}
                Ok((0, _)) => break,
                Ok((bytes, _)) => disks.extend(disk_of(message.get(..bytes).unwrap_or_default())),
                Err(Errno::EINTR) => {}
                Err(Errno::ENOBUFS) => complete = false,
                Err(_) => break,
            }
        }
        complete.then_some(disks)
    }
}

impl AsRawFd for DeviceEvents {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl AsFd for DeviceEvents {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The disk that a message is about: `ACTION@PATH`, then fields, each ended by a zero.
fn disk_of(message: &[u8]) -> Option<String> {
    let head = message.split(|byte| *byte == 0).next()?;
    let (_, path) = std::str::from_utf8(head).ok()?.split_once('@')?;
    path.split('/').skip_while(|part| *part != "block").nth(1).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_names_the_disk_of_a_partition() {
        let disk = |message: &[u8]| disk_of(message);
        let partition = b"add@/devices/virtual/block/ublkb0/ublkb0p2\0ACTION=add\0SUBSYSTEM=block\0";
        assert_eq!(disk(partition).as_deref(), Some("ublkb0"));
        assert_eq!(disk(b"change@/devices/virtual/block/ublkb12\0").as_deref(), Some("ublkb12"));
        assert_eq!(disk(b"add@/devices/virtual/bdi/259:0\0"), None);
        assert_eq!(disk(b"libudev\0\xfe\xed"), None);
        assert_eq!(disk(b""), None);
    }
}
