//! The command line of the daemon.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::{Parser, ValueEnum};
use udrbd_control::client;

/// What outlives a reboot.
const STATE_DIRECTORY: &str = "/var/lib/udrbd";

/// How volumes are offered to the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Frontend {
    /// What this machine has; NBD in any case.
    Auto,
    /// Block devices.
    Ublk,
    /// NBD only.
    Nbd,
}

/// The replicated block device of a node: DRBD 8.4 in userspace.
///
/// The daemon is in the kernel module's place: it knows no configuration file. drbdadm reads the configuration and
/// drives the daemon over the control socket in its run directory.
#[derive(Debug, Parser)]
#[command(name = "udrbdd", version)]
pub(crate) struct Settings {
    /// Where the control socket, the status file and the NBD socket are [default: $UDRBD_RUN_DIR, or /run/udrbd]
    #[arg(long, value_name = "DIR")]
    pub(crate) run_dir: Option<PathBuf>,
    /// The name of this node [default: $__DRBD_NODE__, or the host's name]
    #[arg(long, value_name = "NAME")]
    pub(crate) node: Option<String>,
    /// How volumes are offered to the machine
    #[arg(long, value_enum, default_value_t = Frontend::Auto)]
    pub(crate) frontend: Frontend,
    /// Serve metrics over HTTP
    #[arg(long, value_name = "ADDR:PORT")]
    pub(crate) metrics: Option<SocketAddr>,
    /// The program handlers are run with, or none [default: drbdadm beside this program, or in the search path]
    #[arg(long, value_name = "PATH")]
    pub(crate) helper: Option<PathBuf>,
}

impl Settings {
    pub(crate) fn run_directory(&self) -> PathBuf {
        self.run_dir.clone().unwrap_or_else(client::run_directory)
    }

    /// For what is to outlive a reboot: beside everything else where that is not in the usual place.
    pub(crate) fn state_directory(&self) -> PathBuf {
        let run_directory = self.run_directory();
        if run_directory == Path::new(client::RUN_DIRECTORY_DEFAULT) {
            PathBuf::from(STATE_DIRECTORY)
        } else {
            run_directory
        }
    }

    pub(crate) fn node_name(&self) -> String {
        let named = self.node.clone().or_else(|| std::env::var("__DRBD_NODE__").ok());
        named.filter(|name| !name.is_empty()).unwrap_or_else(|| {
            nix::unistd::gethostname()
                .map_or_else(|_| "localhost".to_owned(), |name| name.to_string_lossy().into_owned())
        })
    }

    /// The program handlers are run with; `None` where there is to be none.
    pub(crate) fn helper_program(&self) -> Option<PathBuf> {
        match &self.helper {
            Some(path) if path.as_os_str() == "none" => None,
            Some(path) => Some(path.clone()),
            None => Some(default_helper()),
        }
    }
}

fn default_helper() -> PathBuf {
    let beside =
        std::env::current_exe().ok().and_then(|own| own.parent().map(|folder| folder.join("drbdadm")));
    beside.filter(|program| program.is_file()).unwrap_or_else(|| PathBuf::from("drbdadm"))
}
