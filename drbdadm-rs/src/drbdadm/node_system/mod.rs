//! This machine, as `drbdadm` sees it.

mod processes;
mod scripts;
mod waiting;

use std::collections::BTreeMap;
use std::io::{self, IsTerminal as _, Read as _, Write as _};

use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use nix::unistd::{AccessFlags, access};
use udrbd_config::{Address, Files};

use super::disk_files::DiskFiles;
use super::system::{Call, Finished, Helper, Registered, System, WaitDialog};
use crate::registry::{self, Key};

/// Verbs of `drbdsetup` before which the daemon is started: those that create something.
const CREATING_VERBS: &[&str] = &["new-resource", "new-minor", "attach", "connect"];

/// This machine.
#[derive(Debug)]
pub(super) struct NodeSystem {
    /// The name the program was called by, as typed.
    called_as: String,
    files: DiskFiles,
    /// What helpers find in their environment besides ours.
    environment: BTreeMap<String, String>,
    daemon_checked: bool,
}

impl NodeSystem {
    /// For a program called by that name.
    pub(super) fn new(called_as: &str) -> Self {
        Self {
            called_as: called_as.to_owned(),
            files: DiskFiles,
            environment: BTreeMap::new(),
            daemon_checked: false,
        }
    }
}

impl System for NodeSystem {
    fn node_name(&self) -> String {
        nix::unistd::gethostname().map_or_else(|_| String::new(), |name| name.to_string_lossy().into_owned())
    }

    fn variable(&self, name: &str) -> Option<String> {
        self.environment.get(name).cloned().or_else(|| std::env::var(name).ok())
    }

    fn set_variable(&mut self, name: &str, value: &str) {
        self.environment.insert(name.to_owned(), value.to_owned());
    }

    fn has_address(&self, address: &Address) -> bool {
        has_address(address)
    }

    fn has_terminal(&self) -> bool {
        io::stdin().is_terminal() && io::stdout().is_terminal()
    }

    fn directory(&self) -> String {
        let directory = std::env::current_dir().ok();
        directory.map_or_else(|| ".".to_owned(), |path| path.to_string_lossy().into_owned())
    }

    fn files(&self) -> &dyn Files {
        &self.files
    }

    fn read_input(&mut self) -> io::Result<Vec<u8>> {
        let mut text = Vec::new();
        io::stdin().read_to_end(&mut text)?;
        Ok(text)
    }

    fn is_executable(&self, path: &str) -> bool {
        access(path, AccessFlags::X_OK).is_ok()
    }

    fn print(&mut self, bytes: &[u8]) {
        // A reader that has gone away is no reason to leave the work half done.
        let _ = io::stdout().write_all(bytes);
    }

    fn complain(&mut self, bytes: &[u8]) {
        let _ = io::stderr().write_all(bytes);
    }

    fn run(&mut self, call: &Call) -> Finished {
        let _ = io::stdout().flush();
        let mut call = call.clone();
        if let (Helper::Shell, Some(handler)) = (call.helper, call.words.last_mut()) {
            match scripts::redirected(handler) {
                Ok(redirected) => *handler = redirected,
                // It may do something useful all the same.
                Err(error) => self.complain(format!("{error}\n").as_bytes()),
            }
        }
        processes::run(&self.called_as, &call, &self.environment)
    }

    fn wait_for_all(&mut self, calls: &[Call], dialog: &WaitDialog) {
        let _ = io::stdout().flush();
        let children = calls
            .iter()
            .filter_map(|call| processes::start(&self.called_as, call, &self.environment).ok())
            .collect();
        waiting::wait_for_all(children, dialog, self.has_terminal());
    }

    fn registered(&mut self, key: &Registered<'_>) -> Option<String> {
        registry::lookup(&registry::directory(), registry_key(key))
    }

    fn register(&mut self, key: &Registered<'_>, file: &str) {
        if let Err(error) = registry::register(&registry::directory(), registry_key(key), file) {
            self.complain(format!("{}: {error}\n", registry::directory().display()).as_bytes());
        }
    }

    fn pause(&mut self) {
        std::thread::sleep(std::time::Duration::from_secs(1));
    }

    fn start_daemon(&mut self, call: &Call, may_start: bool) -> Result<(), String> {
        let creates = call.helper == Helper::Setup
            && call.words.get(1).is_some_and(|verb| CREATING_VERBS.contains(&verb.as_str()));
        if !creates || self.daemon_checked || !processes::is_own(&self.called_as, call) {
            return Ok(());
        }
        let run_directory = udrbd_control::client::run_directory();
        let connected = if may_start {
            udrbd_control::connect_or_start(&run_directory, "drbdadm")
        } else {
            udrbd_control::client::Client::connect(&run_directory, "drbdadm")
        };
        self.daemon_checked = true;
        connected.map(|_| ()).map_err(|error| error.to_string())
    }
}

fn registry_key<'a>(key: &Registered<'a>) -> Key<'a> {
    match key {
        Registered::Minor(minor) => Key::Minor(*minor),
        Registered::Resource(name) => Key::Resource(name),
    }
}

/// Whether an address is configured on an interface. IPv4 counts on interfaces that are up only; families other
/// than IPv4 and IPv6 cannot be asked about and count as there.
fn has_address(address: &Address) -> bool {
    let Ok(interfaces) = getifaddrs() else { return false };
    // Without the interface that a link-local address names.
    let text = address.address.split('%').next().unwrap_or("");
    match address.family.as_str() {
        "ipv4" => text.parse().is_ok_and(|wanted: std::net::Ipv4Addr| {
            interfaces
                .filter(|interface| interface.flags.contains(InterfaceFlags::IFF_UP))
                .filter_map(|interface| interface.address)
                .any(|address| address.as_sockaddr_in().is_some_and(|address| address.ip() == wanted))
        }),
        "ipv6" => text.parse().is_ok_and(|wanted: std::net::Ipv6Addr| {
            interfaces
                .filter_map(|interface| interface.address)
                .any(|address| address.as_sockaddr_in6().is_some_and(|address| address.ip() == wanted))
        }),
        _ => true,
    }
}
