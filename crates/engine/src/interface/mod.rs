//! What goes into the engine and what comes out: time, events, actions, options, status.
//!
//! Nothing here does anything. A runtime turns [`Action`]s into system calls and what comes of them into
//! [`Event`]s; the simulator does the same with simulated disks and wires.

mod action;
mod buffer;
mod command;
mod event;
mod options;
mod status;
mod time;

pub use action::{Action, Actions, DiscardMode, Handler, Level, Report, SocketRole};
pub use buffer::{Buffer, MetadataBlock, Payload};
pub use command::{
    AttachSettings, Command, CommandId, CommandResult, DiskProperties, Failure, KeptBlocks, ResizeRequest,
};
pub use event::{
    ClientError, ClientRequest, Event, HandlerId, IoError, Operation, RequestId, SocketId, SocketLoss, Token,
};
pub use options::{
    AfterSplitBrain, DiskOptions, Fencing, NetOptions, OnCongestion, OnIoError, OnNoData, Protocol,
    ReadBalancing, ResourceOptions, RrConflict,
};
pub use status::{ConnectionStatus, Counters, ResourceStatus, SyncProgress, VolumeStatus, WaitingClients};
pub use time::{Duration, Time};
