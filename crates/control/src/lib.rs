//! What the command line and the daemon say to each other; status, events, metrics.
//!
//! * [`protocol`]: the messages on the control socket and their framing,
//! * [`client`]: the blocking client; [`connect_or_start`] also starts a daemon,
//! * [`options`]: the options of disks, connections and resources,
//! * [`status`]: a snapshot of a node and the texts made of it,
//! * [`ReturnCode`]: how commands end,
//! * [`Address`]: one end of a connection.
#![forbid(unsafe_code)]

mod address;
pub mod client;
mod launch;
pub mod options;
pub mod protocol;
mod return_code;
pub mod status;

pub use address::{Address, AddressError, AddressFamily, DEFAULT_PORT};
pub use launch::connect_or_start;
pub use return_code::ReturnCode;
