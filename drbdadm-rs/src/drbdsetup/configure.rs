//! The commands that change something.

use std::fs::OpenOptions;
use std::io::IsTerminal;
use std::os::unix::fs::FileTypeExt;
use std::path::PathBuf;

use udrbd_control::ReturnCode;
use udrbd_control::client::ClientError;
use udrbd_control::options::{
    DiskOptions, NetOptions, OptionChanges, OptionError, OptionKind, OptionSet, OptionSetting,
    ResourceOptions, parse_number,
};
use udrbd_control::protocol::{CommandResult, MetadataIndex, Request};
use udrbd_units::{Minor, VolumeNumber};

use super::EXIT_USAGE;
use super::invocation::{Invocation, Target, minor_of_device};
use super::output::{complain, reason};
use crate::registry;

/// Runs the command and returns the exit status.
pub(super) fn run(invocation: &Invocation<'_>) -> i32 {
    let request = match build(invocation) {
        Ok(request) => request,
        Err(status) => return status,
    };
    // Afterwards nobody knows any more which minors the resource had.
    let minors = minors_going(invocation, &request);
    let mut result = match send(invocation, &request) {
        Ok(result) => result,
        Err(status) => return status,
    };
    if invocation.command.name == "down" && result.code == ReturnCode::ResourceNotKnown {
        if std::io::stderr().is_terminal() {
            complain("Resource unknown");
        }
        result = ReturnCode::NoError.into();
    }
    if result.code.is_success() {
        forget(&request, &minors);
    }
    report(&invocation.object, &result)
}

/// The minors that a command takes away.
fn minors_going(invocation: &Invocation<'_>, request: &Request) -> Vec<Minor> {
    match request {
        Request::DelMinor { minor } => vec![*minor],
        // If the state cannot be told, the command itself says why.
        Request::Down { resource } => invocation
            .connect(false)
            .and_then(|mut client| client.snapshot(Some(resource)))
            .map(|node| {
                node.resources.iter().flat_map(|it| it.devices.iter().map(|device| device.minor)).collect()
            })
            .unwrap_or_default(),
        _ => Vec::new(),
    }
}

/// Removes what was remembered of objects that are gone: which configuration they came from.
fn forget(request: &Request, minors: &[Minor]) {
    let directory = registry::directory();
    // A link that stays behind leads a handler to a file that no longer matters.
    for minor in minors {
        let _ = registry::unregister(&directory, registry::Key::Minor(minor.0));
    }
    if let Request::Down { resource } | Request::DelResource { resource } = request {
        let _ = registry::unregister(&directory, registry::Key::Resource(resource));
    }
}

/// Prints a refusal and returns the exit status (`print_config_error`).
pub(super) fn report(object: &str, result: &CommandResult) -> i32 {
    if let Some(message) = result.code.message(object) {
        complain(&message);
        if !result.info.is_empty() {
            complain("additional info from kernel:");
            result.info.iter().for_each(|line| complain(line));
        }
        if std::env::var_os(crate::VERBOSE_VARIABLE).is_some() {
            result.holders.iter().for_each(|line| complain(&format!("held open: {line}")));
        }
    }
    result.code.exit_status()
}

fn send(invocation: &Invocation<'_>, request: &Request) -> Result<CommandResult, i32> {
    let without_daemon = result_without_daemon(request);
    match (invocation.connect(without_daemon.is_none()), without_daemon) {
        (Err(ClientError::NotRunning { .. }), Some(result)) => Ok(result),
        (Err(error @ ClientError::NotRunning { .. }), None) => {
            complain(&format!("{error}"));
            complain("Make sure that udrbdd is installed and can be started!");
            Err(EXIT_USAGE)
        }
        (Err(error), _) => Err(invocation.daemon_trouble(&error)),
        (Ok(mut client), _) => client.command(request).map_err(|error| invocation.daemon_trouble(&error)),
    }
}

/// What a command comes to where there is no daemon, and so nothing it could be about; `None` for the commands
/// that create something and have a daemon started.
fn result_without_daemon(request: &Request) -> Option<CommandResult> {
    Some(match request {
        Request::NewResource { .. }
        | Request::NewMinor { .. }
        | Request::Attach { .. }
        | Request::Connect { .. } => return None,
        Request::Down { .. } | Request::DelResource { .. } | Request::ResourceOptions { .. } => {
            CommandResult::with_info(ReturnCode::ResourceNotKnown, "unknown resource")
        }
        Request::Disconnect { .. } | Request::NetOptions { .. } => {
            CommandResult::with_info(ReturnCode::InvalidRequest, "unknown connection")
        }
        _ => CommandResult::with_info(ReturnCode::MinorInvalid, "unknown minor"),
    })
}

fn complain_option(error: &OptionError) -> i32 {
    complain(&error.to_string());
    EXIT_USAGE
}

fn build(invocation: &Invocation<'_>) -> Result<Request, i32> {
    let request = match &invocation.target {
        Target::Minor(minor) => of_minor(invocation, *minor)?,
        Target::Resource(resource) => of_resource(invocation, resource.clone())?,
        Target::None | Target::All => of_words(invocation)?,
    };
    invocation.refuse_excess(invocation.command.arguments.len())?;
    Ok(request)
}

fn of_minor(invocation: &Invocation<'_>, minor: Minor) -> Result<Request, i32> {
    let own = OwnOptions::read(invocation)?;
    Ok(match invocation.command.name {
        "primary" => {
            Request::Primary { minor, force: own.flag("force") || own.flag("overwrite-data-of-peer") }
        }
        "secondary" => Request::Secondary { minor },
        "attach" => attach(invocation, minor)?,
        "disk-options" => {
            let changes = changes(invocation);
            DiskOptions::default().with_changes(&changes).map_err(|error| complain_option(&error))?;
            Request::DiskOptions { minor, changes }
        }
        "detach" => Request::Detach { minor, force: own.flag("force") },
        "resize" => Request::Resize {
            minor,
            size_sectors: own.number("size"),
            assume_peer_has_space: own.flag("assume-peer-has-space"),
            assume_clean: own.flag("assume-clean"),
            al_stripes: own.small_number("al-stripes")?,
            al_stripe_size_kib: own.small_number("al-stripe-size-kB")?,
        },
        "new-current-uuid" => Request::NewCurrentUuid { minor, clear_bitmap: own.flag("clear-bitmap") },
        "invalidate" => Request::Invalidate { minor },
        "invalidate-remote" => Request::InvalidateRemote { minor },
        "pause-sync" => Request::PauseSync { minor },
        "resume-sync" => Request::ResumeSync { minor },
        "suspend-io" => Request::SuspendIo { minor },
        "resume-io" => Request::ResumeIo { minor },
        "outdate" => Request::Outdate { minor },
        "verify" => {
            Request::Verify { minor, start_sector: own.number("start"), stop_sector: own.number("stop") }
        }
        "del-minor" => Request::DelMinor { minor },
        "drop-resync-undo" => Request::DropResyncUndo { minor },
        other => return Err(not_a_change(other)),
    })
}

fn of_resource(invocation: &Invocation<'_>, resource: String) -> Result<Request, i32> {
    let settings = invocation.settings();
    Ok(match invocation.command.name {
        "connect" => connect(invocation, resource)?,
        "resource-options" => {
            let changes = changes(invocation);
            ResourceOptions::default().with_changes(&changes).map_err(|error| complain_option(&error))?;
            Request::ResourceOptions { resource, changes }
        }
        "new-resource" => {
            let options =
                ResourceOptions::from_settings(&settings).map_err(|error| complain_option(&error))?;
            Request::NewResource { resource, options }
        }
        "down" => Request::Down { resource },
        "del-resource" => Request::DelResource { resource },
        other => return Err(not_a_change(other)),
    })
}

/// The commands without an object: `new-minor`, and those that name a connection by its addresses.
fn of_words(invocation: &Invocation<'_>) -> Result<Request, i32> {
    let Some((local, peer)) = invocation.addresses else { return new_minor(invocation) };
    let own = OwnOptions::read(invocation)?;
    Ok(match invocation.command.name {
        "disconnect" => Request::Disconnect { local, peer, force: own.flag("force") },
        "net-options" => {
            let changes = changes(invocation);
            NetOptions::default().with_changes(&changes).map_err(|error| complain_option(&error))?;
            Request::NetOptions { local, peer, changes }
        }
        other => return Err(not_a_change(other)),
    })
}

/// The table of commands and this module disagree; the user is told as of any other unknown command.
fn not_a_change(command: &str) -> i32 {
    complain(&format!("{command}: not implemented"));
    EXIT_USAGE
}

fn changes(invocation: &Invocation<'_>) -> OptionChanges {
    let settings =
        invocation.settings().into_iter().filter(|setting| setting.name != "set-defaults").collect();
    OptionChanges { set_defaults: invocation.has("set-defaults"), settings }
}

fn new_minor(invocation: &Invocation<'_>) -> Result<Request, i32> {
    let mut words = invocation.words.iter();
    let mut next = |name| words.next().ok_or_else(|| invocation.missing_argument(name));
    let (resource, minor, volume) = (next("resource")?, next("minor")?, next("volume")?);
    let Some(minor) = minor_of_device(minor) else {
        complain(&format!("Cannot determine minor device number of device '{minor}'"));
        return Err(EXIT_USAGE);
    };
    let number =
        parse_number(volume, udrbd_control::options::Scale::Ones).map_err(|error| complain_option(&error))?;
    let Ok(volume) = u16::try_from(number) else {
        return Err(complain_option(&OptionError::Overflow(volume.clone())));
    };
    Ok(Request::NewMinor { resource: resource.clone(), minor, volume: VolumeNumber(volume) })
}

fn attach(invocation: &Invocation<'_>, minor: Minor) -> Result<Request, i32> {
    let options =
        DiskOptions::from_settings(&invocation.settings()).map_err(|error| complain_option(&error))?;
    let mut words = invocation.words.iter();
    let mut next = |name| words.next().ok_or_else(|| invocation.missing_argument(name));
    let disk = openable(next("lower_dev")?)?;
    let metadata = openable(next("meta_data_dev")?)?;
    let index: MetadataIndex =
        next("meta_data_index")?.parse().map_err(|error: OptionError| complain_option(&error))?;
    Ok(Request::Attach { minor, disk, metadata, index, options })
}

/// Checks that a device can be opened at all, so that mistakes are told in the caller's words. A regular file
/// serves as well as a block device.
fn openable(device: &str) -> Result<PathBuf, i32> {
    let path = std::path::absolute(device).unwrap_or_else(|_| PathBuf::from(device));
    let file = OpenOptions::new().read(true).write(true).open(&path).map_err(|error| {
        complain(&format!("Can not open device '{device}': {}", reason(&error)));
        EXIT_USAGE
    })?;
    let kind = file.metadata().map_err(|error| {
        complain(&format!("fstat({device}) failed: {}", reason(&error)));
        EXIT_USAGE
    })?;
    if !(kind.file_type().is_block_device() || kind.is_file()) {
        complain(&format!("{device} is not a block device!"));
        return Err(EXIT_USAGE);
    }
    Ok(path)
}

fn connect(invocation: &Invocation<'_>, resource: String) -> Result<Request, i32> {
    let Some((local, peer)) = invocation.addresses else {
        return Err(not_a_change(invocation.command.name));
    };
    let own = OwnOptions::read(invocation)?;
    for name in ["alternate-address", "alternate-peer-address"] {
        if invocation.has(name) {
            complain(&format!("Option --{name} ignored: the protocol has no second path"));
        }
    }
    let settings: Vec<OptionSetting> = invocation
        .settings()
        .into_iter()
        .filter(|setting| NetOptions::spec(&setting.name).is_some())
        .collect();
    let options = NetOptions::from_settings(&settings).map_err(|error| complain_option(&error))?;
    Ok(Request::Connect {
        resource,
        local,
        peer,
        options,
        discard_my_data: own.flag("discard-my-data"),
        tentative: own.flag("tentative") || own.flag("dry-run"),
    })
}

/// The options a command has besides those of a set: flags and numbers.
struct OwnOptions {
    flags: Vec<(&'static str, bool)>,
    numbers: Vec<(&'static str, u64)>,
}

impl OwnOptions {
    fn read(invocation: &Invocation<'_>) -> Result<Self, i32> {
        let mut own = Self { flags: Vec::new(), numbers: Vec::new() };
        let specs = invocation.command.specs();
        for (name, value) in &invocation.options {
            // Two old names stand for flags of the table.
            let kind = match *name {
                "overwrite-data-of-peer" | "dry-run" => Some(OptionKind::Flag),
                name => specs.iter().find(|spec| spec.name == name).map(|spec| spec.kind),
            };
            match kind {
                Some(OptionKind::Flag) => {
                    let on = match value.as_deref() {
                        None | Some("yes") => true,
                        Some("no") => false,
                        Some(other) => {
                            let value = other.to_owned();
                            return Err(complain_option(&OptionError::InvalidArgument { name, value }));
                        }
                    };
                    own.flags.push((name, on));
                }
                Some(OptionKind::Number { scale, .. }) => {
                    let text = value.as_deref().unwrap_or_default();
                    if text != "-1" {
                        let number = parse_number(text, scale).map_err(|error| complain_option(&error))?;
                        own.numbers.push((name, number));
                    }
                }
                _ => {}
            }
        }
        Ok(own)
    }

    /// Whether the last mention of a flag switched it on.
    fn flag(&self, name: &str) -> bool {
        self.flags.iter().rev().find(|(known, _)| *known == name).is_some_and(|(_, on)| *on)
    }

    fn number(&self, name: &str) -> Option<u64> {
        self.numbers.iter().rev().find(|(known, _)| *known == name).map(|(_, number)| *number)
    }

    fn small_number(&self, name: &str) -> Result<Option<u32>, i32> {
        self.number(name)
            .map(|number| {
                u32::try_from(number).map_err(|_| complain_option(&OptionError::Overflow(number.to_string())))
            })
            .transpose()
    }
}
