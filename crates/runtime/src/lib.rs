//! Everything that touches the kernel: io_uring, disks, sockets, the mailbox, the NBD server.
//!
//! One engine thread per resource owns one [`Ring`]; everything the thread waits for comes through it. The parts
//! are independent nouns that a daemon glues to the engine:
//!
//! * [`buffers`]: pooled, page-aligned payload memory, addressed by copyable handles;
//! * [`ring`]: one io_uring, submissions tagged by the caller's own token type, completions as values;
//! * [`disk`]: backing and metadata devices (block devices or regular files), opened for exclusive use;
//! * [`socket`]: TCP and unix stream sockets: a gathered send queue and a receive side that places bulk payload
//!   straight into pool buffers;
//! * [`nbd`]: the NBD server: a protocol without I/O, and the session that runs it on a ring;
//! * [`ublk`]: a block device of the kernel whose requests come through a ring (feature `ublk`);
//! * [`devices`]: device nodes, links to them, and who has them open;
//! * [`mailbox`]: bounded messages into a thread that waits on a file descriptor;
//! * [`process`]: scheduling class, memory locking and the other promises a storage process makes.
//!
//! All `unsafe` code of the project is in this crate, in the modules that say so in their first lines.
//!
//! # One turn of an engine thread
//!
//! 1. [`Ring::wait`] submits what was queued and sleeps until something completes or the deadline passes;
//! 2. every completion goes to its owner by token ([`socket::Stream::handle_receive`],
//!    [`socket::Stream::handle_writable`], [`nbd::Session::handle_receive`], a disk request), in order;
//! 3. the engine runs; its actions queue disk operations, packets and replies;
//! 4. [`socket::Stream::flush`] sends everything queued on a socket with one gathered call, and
//!    [`socket::Stream::arm`] asks for more input.

pub mod buffers;
pub mod devices;
pub mod disk;
pub mod mailbox;
pub mod nbd;
pub mod process;
pub mod ring;
pub mod socket;
pub mod ublk;
pub mod undo;

pub use buffers::{BufferHandle, BufferPool, BufferSlice, PoolOptions};
pub use nix::errno::Errno;
pub use ring::{Completion, Descriptor, OperationId, Ring, RingOptions};
