//! What `drbdadm` needs from the machine it runs on, as a trait: the tests bring a machine of their own.

use std::io;

use udrbd_config::{Address, Files};

/// A helper program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Helper {
    /// `drbdsetup`, which speaks to the daemon.
    Setup,
    /// `drbdmeta`, which works on metadata.
    Meta,
    /// `drbd-proxy-ctl`, of the separate product DRBD Proxy.
    ProxyControl,
    /// `/bin/sh`, for handlers.
    Shell,
}

/// What becomes of an output stream of a helper.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// It goes where ours goes.
    Inherited,
    /// It is dropped.
    Dropped,
    /// It is handed back.
    Captured,
}

/// A helper program to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// Which program.
    pub helper: Helper,
    /// The program as named on the command line, or `None` to look for it.
    pub path: Option<String>,
    /// Its name and arguments, as printed.
    pub words: Vec<String>,
    /// Its standard output.
    pub output: Stream,
    /// Its standard error.
    pub errors: Stream,
    /// How long it may take, in seconds; 0 is for ever.
    pub limit_seconds: u32,
    /// It may say more than the original does (`UDRBD_VERBOSE`).
    pub verbose: bool,
}

/// How a helper ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// With this exit status.
    Status(i32),
    /// By this signal.
    Signal(i32),
    /// It took longer than allowed and was killed.
    TimedOut,
}

/// A helper that has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finished {
    /// How.
    pub ended: Ended,
    /// Its standard output, if captured.
    pub output: Vec<u8>,
    /// Its standard error, if captured.
    pub errors: Vec<u8>,
}

/// The key of a registered configuration file (cli spec 13).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Registered<'a> {
    /// The file that set up a minor.
    Minor(u32),
    /// The file that set up a resource.
    Resource(&'a str),
}

/// The texts of the wait for connections that an operator can end (`wait-con-int`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WaitDialog {
    /// The framed text that explains what is waited for.
    pub text: String,
    /// Seconds between two redraws of the waiting time; 0 is never.
    pub refresh_seconds: u32,
}

/// The machine `drbdadm` runs on.
pub trait System {
    /// `uname -n`.
    fn node_name(&self) -> String;

    /// A variable of the environment.
    fn variable(&self, name: &str) -> Option<String>;

    /// Sets a variable for the helpers to come.
    fn set_variable(&mut self, name: &str, value: &str);

    /// Whether the address is configured on an interface.
    fn has_address(&self, address: &Address) -> bool;

    /// Whether standard input and output are a terminal.
    fn has_terminal(&self) -> bool;

    /// The working directory.
    fn directory(&self) -> String;

    /// The file system.
    fn files(&self) -> &dyn Files;

    /// All of standard input.
    ///
    /// # Errors
    /// It cannot be read.
    fn read_input(&mut self) -> io::Result<Vec<u8>>;

    /// Whether a file can be executed.
    fn is_executable(&self, path: &str) -> bool;

    /// Writes to standard output.
    fn print(&mut self, bytes: &[u8]);

    /// Writes to standard error.
    fn complain(&mut self, bytes: &[u8]);

    /// Runs a helper and waits for it. A program that cannot be run says `Can not exec` and ends with 20.
    fn run(&mut self, call: &Call) -> Finished;

    /// Starts all calls at once and waits for them, showing the operator what for, who can end the wait.
    fn wait_for_all(&mut self, calls: &[Call], dialog: &WaitDialog);

    /// The configuration file registered under a key; none if its link is missing or leads nowhere.
    fn registered(&mut self, key: &Registered<'_>) -> Option<String>;

    /// Registers a configuration file. Faults are told on standard error and change nothing else.
    fn register(&mut self, key: &Registered<'_>, file: &str);

    /// Waits a second before another try.
    fn pause(&mut self);

    /// Makes sure that the daemon runs before something is configured, where the daemon is ours to start.
    ///
    /// # Errors
    /// A line that says why it does not run.
    fn start_daemon(&mut self, call: &Call, may_start: bool) -> Result<(), String>;
}
