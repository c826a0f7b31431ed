//! A block device of the kernel whose requests come through a ring: Linux's ublk.
//!
//! Two sides, on two threads:
//!
//! * [`Control`]: adds, starts, stops and deletes a disk. Each of these may block, some until the disk's own requests are
//!   served, so a control has a thread of its own and never the thread of the queue;
//! * [`Queue`]: the requests of one disk on the [`Ring`](crate::Ring) of an engine thread, beside whatever else that
//!   ring carries. There may be any number of queues on one ring.
//!
//! The order of life (runtime spec 5.2): [`Control::add`]; [`Control::source`] goes to [`Queue::open`];
//! [`Control::start`], which returns when the kernel has read the partition table, through the queue; in the end
//! [`Control::stop`] or [`Control::stop_unused`], which returns when every request has been served and has taken the queue's commands back;
//! [`Queue::close`]; [`Control::delete`].
//!
//! A disk is made so that it survives its server: when the process dies, requests wait, and [`Control::take_over`] of
//! another process serves them, those it had taken without an answer once more.
//!
//! Without the feature `ublk` the types are there, and no value of them can be had.

#[cfg(not(feature = "ublk"))]
mod absent;
#[cfg(feature = "ublk")]
mod command;
#[cfg(feature = "ublk")]
mod control;
#[cfg(feature = "ublk")]
mod queue;

#[cfg(not(feature = "ublk"))]
pub use absent::{Control, Queue, can_resize, existing, remove, remove_unused};
#[cfg(feature = "ublk")]
pub use control::{Control, can_resize, existing, remove, remove_unused};
#[cfg(feature = "ublk")]
pub use queue::Queue;
#[cfg(feature = "ublk")]
pub(crate) use queue::{command_words, registration_of};
use std::os::fd::OwnedFd;

use udrbd_units::{Sector, SectorRange};

use crate::Errno;
use crate::buffers::BufferHandle;
pub use crate::nbd::Operation;

/// Requests of a disk that may be under way at once.
pub const DEPTH: u16 = 128;
/// The largest request with data, in bytes: what every peer takes, older ones too, as the limit of a disk in use
/// cannot change. Each of the [`DEPTH`] slots has a buffer of that size.
pub const REQUEST_BYTES: u32 = 128 << 10;

/// Whether this build can make disks.
pub const BUILT_IN: bool = cfg!(feature = "ublk");

const CONTROL_DEVICE: &str = "/dev/ublk-control";

/// Looks whether this process can make disks on this machine.
///
/// # Errors
/// `EOPNOTSUPP` where this build cannot, `ENOENT` where the driver is not there, `EACCES` where it may not be used.
pub fn check() -> Result<(), Errno> {
    if !BUILT_IN {
        return Err(Errno::EOPNOTSUPP);
    }
    let opened = std::fs::OpenOptions::new().read(true).write(true).open(CONTROL_DEVICE);
    opened.map(drop).map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(Errno::EIO as i32)))
}

/// What a disk looks like. All of it is fixed when the disk is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parameters {
    /// The size.
    pub size: Sector,
    /// The unit of I/O, bytes: a power of two from 512 to 4096.
    pub logical_block_bytes: u32,
    /// The unit the device prefers, bytes: a power of two, at least `logical_block_bytes`.
    pub physical_block_bytes: u32,
    /// The largest request with data, bytes; at most [`REQUEST_BYTES`].
    pub request_bytes_max: u32,
    /// The granularity of discards, bytes; 0: the disk does not discard.
    pub discard_granularity_bytes: u32,
    /// The largest discard or write of zeroes, bytes.
    pub zero_bytes_max: u32,
    /// The medium rotates.
    pub rotational: bool,
}

/// What a disk carries with it in the kernel, to be known by later: whose it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark(pub u64);

/// A disk that exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Existing {
    /// Its number: `/dev/ublkbNUMBER`.
    pub number: u32,
    /// What its maker left.
    pub mark: Mark,
    /// Its server has died, and requests wait for another one.
    pub orphaned: bool,
    /// It serves requests.
    pub live: bool,
}

/// Where a queue gets its requests from.
#[derive(Debug)]
#[cfg_attr(not(feature = "ublk"), expect(dead_code, reason = "no value of it can be had"))]
pub struct Source {
    /// The disk's character device.
    pub(crate) device: OwnedFd,
    /// The driver copies no data: it puts the pages of a request into the ring's table of buffers.
    pub(crate) in_place: bool,
}

/// Why something could not be done to a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("ublk: {step}: {errno}")]
pub struct ControlError {
    /// What was tried.
    pub step: &'static str,
    /// What the kernel said.
    pub errno: Errno,
}

/// A request of the kernel. Ranges are whole logical blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Its slot, for [`Queue::complete`].
    pub tag: u16,
    /// What to do.
    pub operation: Operation,
    /// Where.
    pub range: SectorRange,
    /// The data of a write, or the room for a read: the slot's buffer. `None` where there are no data.
    pub buffer: Option<BufferHandle>,
}

/// What a completion of a slot's command meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fetched {
    /// A request.
    Request(Request),
    /// Nothing to do for the caller.
    Nothing,
    /// The slot has ended: the disk is being stopped.
    Ended,
}
