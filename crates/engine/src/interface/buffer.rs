//! Handles of payload, and the blocks metadata are written from.
//!
//! Payload never passes through the engine: it lives in the runtime's pools, and the engine moves handles.
//!
//! Ownership of a [`Buffer`]: a handle in an *event* is a reference the engine now owns. It gives the reference back
//! in [`Action::Release`](super::Action::Release) or in the `data` of
//! [`Action::Complete`](super::Action::Complete). A handle in any other *action* is only lent: the runtime takes a
//! reference of its own for as long as a disk or a socket uses it, also beyond the engine's release.

use std::fmt;
use std::ops::{Deref, DerefMut};

/// The handle of a pooled payload buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Buffer(pub u32);

/// What follows the structure of a packet on the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload {
    /// Nothing.
    None,
    /// The first `bytes` bytes of a pooled buffer.
    Buffer {
        /// The buffer.
        buffer: Buffer,
        /// How many bytes of it.
        bytes: u32,
    },
    /// Bytes the engine made: a piece of bitmap.
    Bytes(Vec<u8>),
}

/// 4 KiB of metadata: an activity log transaction, a page of bitmap, a superblock. Aligned for direct I/O, and handed
/// back with the completion so that a warm engine allocates none.
#[derive(Clone, PartialEq, Eq)]
pub struct MetadataBlock(Box<AlignedBlock>);

#[derive(Clone, PartialEq, Eq)]
#[repr(C, align(4096))]
struct AlignedBlock([u8; 4096]);

impl MetadataBlock {
    /// A block of zeroes.
    pub fn new() -> Self {
        Self(Box::new(AlignedBlock([0; 4096])))
    }
}

impl Default for MetadataBlock {
    fn default() -> Self {
        Self::new()
    }
}

impl Deref for MetadataBlock {
    type Target = [u8; 4096];

    fn deref(&self) -> &[u8; 4096] {
        &self.0.0
    }
}

impl DerefMut for MetadataBlock {
    fn deref_mut(&mut self) -> &mut [u8; 4096] {
        &mut self.0.0
    }
}

impl fmt::Debug for MetadataBlock {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("MetadataBlock")
    }
}
