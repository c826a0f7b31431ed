//! The DRBD configuration language: text to checked configuration and back.
//!
//! One parser for everything: `drbd.conf` and its includes in 8.3 and 8.4 spelling, and the output of
//! `drbdsetup show`. It speaks DRBD's words, including its error messages.
//!
//! - [`Loader`] reads files (through [`Files`]; the crate itself does no input or output) into a [`Configuration`].
//! - [`resolve`] finds this node's and the peer's sections and ties stacked resources to their lower ones.
//! - [`expand`] hands options down from `common` to the volumes, [`validate`] checks each resource.
//! - [`print`] writes the configuration as text or XML.
//! - [`options`] has the types, units, ranges and defaults of all options.

pub mod diagnostics;
pub mod expand;
pub mod files;
pub mod lexer;
pub mod model;
pub mod number;
pub mod options;
mod parser;
pub mod print;
pub mod resolve;
pub mod token;
pub mod validate;

pub use diagnostics::{Diagnostics, Stop};
pub use files::{Files, NoFiles};
pub use model::{
    Address, Configuration, GlobalOptions, Host, HostKind, OptionEntry, ProxySection, Resource, UsageCount,
    Volume,
};
pub use parser::{Loader, Source, parse_proxy_settings, parse_shown_resource, resource_name_fault};

/// Exit statuses of DRBD's programs.
pub mod exit_status {
    /// A fault of the command line, or a failed command.
    pub const USAGE: i32 = 1;
    /// A fault of the configuration.
    pub const CONFIG_INVALID: i32 = 10;
    /// Something cannot be run or opened, or is no number.
    pub const EXECUTION_ERROR: i32 = 20;
}
