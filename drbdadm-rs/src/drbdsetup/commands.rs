//! The commands of `drbdsetup`: what each works on, its arguments and its options (command line spec 9).

use udrbd_control::options::{
    DiskOptions, NetOptions, OptionEntry, OptionKind, OptionSet, OptionSpec, RESYNC_UNDO, ResourceOptions,
    Scale,
};

use super::getopt::{Argument, LongOption};

/// What the first words of a command name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Object {
    /// Nothing: the arguments say it all.
    None,
    /// A minor.
    Minor,
    /// A resource.
    Resource,
    /// A resource, or `all`, or nothing, which is `all`.
    ResourceOrAll,
    /// A minor, a resource, or `all`, or nothing, which is `all`.
    Any,
    /// Two addresses.
    Connection,
    /// A resource and two addresses.
    ResourceAndConnection,
}

impl Object {
    pub(super) const fn takes_minor(self) -> bool {
        matches!(self, Self::Minor | Self::Any)
    }

    pub(super) const fn takes_resource(self) -> bool {
        matches!(self, Self::Resource | Self::ResourceOrAll | Self::Any | Self::ResourceAndConnection)
    }

    pub(super) const fn takes_all(self) -> bool {
        matches!(self, Self::ResourceOrAll | Self::Any)
    }

    pub(super) const fn takes_connection(self) -> bool {
        matches!(self, Self::Connection | Self::ResourceAndConnection)
    }
}

/// The options of a command that have a table: those of a set, or a few of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fields {
    /// None.
    None,
    /// The options of a disk, all of them.
    Disk,
    /// The options of a disk that can change.
    ChangeableDisk,
    /// The options of a connection.
    Net,
    /// The options of a connection, and those that only `connect` has.
    Connect,
    /// The options of a resource.
    Resource,
    /// These.
    Own(&'static [OptionSpec]),
}

/// One command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Command {
    /// Its name.
    pub(super) name: &'static str,
    /// What it works on.
    pub(super) object: Object,
    /// The names of its further arguments.
    pub(super) arguments: &'static [&'static str],
    /// Its options with a table.
    pub(super) fields: Fields,
    /// Its other options.
    pub(super) options: &'static [LongOption],
    /// Whether it knows `--set-defaults`.
    pub(super) set_defaults: bool,
}

const fn flag(name: &'static str) -> OptionSpec {
    OptionSpec { name, kind: OptionKind::Flag, unit: None, changeable: true }
}

const fn number(
    name: &'static str,
    scale: Scale,
    min: i64,
    max: i64,
    unit: Option<&'static str>,
) -> OptionSpec {
    OptionSpec { name, kind: OptionKind::Number { scale, min, max, clamped: false }, unit, changeable: true }
}

const fn long(name: &'static str, argument: Argument) -> LongOption {
    LongOption { name, argument }
}

const DISK_SIZE_SECTORS_MAX: i64 = 2_199_023_255_552;
const SECTORS: Scale = Scale::Sectors;
const BYTES: Option<&str> = Some("bytes");

const FORCE: &[OptionSpec] = &[flag("force")];
const CLEAR_BITMAP: &[OptionSpec] = &[flag("clear-bitmap")];
const VERIFY: &[OptionSpec] = &[
    number("start", SECTORS, 0, DISK_SIZE_SECTORS_MAX, BYTES),
    number("stop", SECTORS, 0, DISK_SIZE_SECTORS_MAX, BYTES),
];
const RESIZE: &[OptionSpec] = &[
    number("size", SECTORS, 0, DISK_SIZE_SECTORS_MAX, BYTES),
    flag("assume-peer-has-space"),
    flag("assume-clean"),
    number("al-stripes", Scale::Ones, 1, 1024, None),
    number("al-stripe-size-kB", Scale::Kibi, 4, 16_777_216, None),
];
/// The addresses of a second path are known to the configuration only; the protocol has no such thing.
const CONNECT: &[OptionSpec] = &[
    flag("tentative"),
    flag("discard-my-data"),
    OptionSpec { name: "alternate-address", kind: OptionKind::Address, unit: None, changeable: true },
    OptionSpec { name: "alternate-peer-address", kind: OptionKind::Address, unit: None, changeable: true },
];

const WAIT: &[LongOption] = &[
    long("wfc-timeout", Argument::Required),
    long("degr-wfc-timeout", Argument::Required),
    long("outdated-wfc-timeout", Argument::Required),
    long("wait-after-sb", Argument::Optional),
];
const WAIT_VERIFY: &[LongOption] = &[long("repair", Argument::No)];
const SPLIT_BRAIN_REPORT: &[LongOption] =
    &[long("json", Argument::No), long("peer-name", Argument::Required)];
const EVENTS2: &[LongOption] =
    &[long("timestamps", Argument::No), long("statistics", Argument::No), long("now", Argument::No)];
const SHOW: &[LongOption] = &[long("show-defaults", Argument::No)];
const STATUS: &[LongOption] =
    &[long("verbose", Argument::No), long("statistics", Argument::No), long("color", Argument::Optional)];

const fn command(name: &'static str, object: Object) -> Command {
    Command { name, object, arguments: &[], fields: Fields::None, options: &[], set_defaults: false }
}

impl Command {
    const fn fields(mut self, fields: Fields) -> Self {
        self.fields = fields;
        self
    }

    const fn options(mut self, options: &'static [LongOption]) -> Self {
        self.options = options;
        self
    }

    const fn arguments(mut self, arguments: &'static [&'static str]) -> Self {
        self.arguments = arguments;
        self
    }

    const fn set_defaults(mut self) -> Self {
        self.set_defaults = true;
        self
    }

    /// The descriptions of the options with a table, in the order of the usage text.
    pub(super) fn specs(&self) -> Vec<&'static OptionSpec> {
        match self.fields {
            Fields::None => Vec::new(),
            Fields::Disk => DiskOptions::drbd_specs().collect(),
            Fields::ChangeableDisk => DiskOptions::drbd_specs().filter(|spec| spec.changeable).collect(),
            Fields::Net => NetOptions::SPECS.iter().collect(),
            Fields::Connect => CONNECT.iter().chain(NetOptions::SPECS).collect(),
            Fields::Resource => ResourceOptions::SPECS.iter().collect(),
            Fields::Own(specs) => specs.iter().collect(),
        }
    }

    /// Every option the command line may hold.
    pub(super) fn long_options(&self) -> Vec<LongOption> {
        let of_spec = |spec: &&'static OptionSpec| {
            let argument = match spec.kind {
                OptionKind::Flag => Argument::Optional,
                _ => Argument::Required,
            };
            long(spec.name, argument)
        };
        let mut known: Vec<LongOption> = self.specs().iter().map(of_spec).collect();
        known.extend(self.options);
        if self.name == "primary" {
            known.push(long("overwrite-data-of-peer", Argument::Optional));
        }
        if self.name == "connect" {
            known.push(long("dry-run", Argument::Optional));
        }
        if self.name == "attach" {
            // Ours; the usage text stays that of 8.4.
            known.push(long(RESYNC_UNDO, Argument::Required));
        }
        if self.name == "status" {
            // Of the 9 series; the usage text stays that of 8.4.
            known.push(long("json", Argument::No));
        }
        if self.set_defaults {
            known.push(long("set-defaults", Argument::No));
        }
        known
    }

    /// The default of an option with a table, as `xml-help` shows it.
    pub(super) fn default_of(&self, spec: &OptionSpec) -> String {
        let find = |entries: Vec<OptionEntry>| {
            entries.into_iter().find(|entry| entry.spec.name == spec.name).map(|entry| entry.value)
        };
        let known = match self.fields {
            Fields::Disk | Fields::ChangeableDisk => find(DiskOptions::default().entries()),
            Fields::Net | Fields::Connect => find(NetOptions::default().entries()),
            Fields::Resource => find(ResourceOptions::default().entries()),
            Fields::None | Fields::Own(_) => None,
        };
        let value = known.unwrap_or_else(|| match (spec.kind, spec.name) {
            (OptionKind::Flag, _) => "no".to_owned(),
            (_, "al-stripes") => "1".to_owned(),
            (_, "al-stripe-size-kB") => "32".to_owned(),
            _ => "0".to_owned(),
        });
        match spec.kind {
            OptionKind::Number { .. } => value.trim_end_matches(['k', 's']).to_owned(),
            _ => value,
        }
    }
}

/// The commands in the order of the usage text.
pub(super) const COMMANDS: &[Command] = &[
    command("primary", Object::Minor).fields(Fields::Own(FORCE)),
    command("secondary", Object::Minor),
    command("attach", Object::Minor).fields(Fields::Disk).arguments(&[
        "lower_dev",
        "meta_data_dev",
        "meta_data_index",
    ]),
    command("disk-options", Object::Minor).fields(Fields::ChangeableDisk).set_defaults(),
    command("detach", Object::Minor).fields(Fields::Own(FORCE)),
    command("connect", Object::ResourceAndConnection).fields(Fields::Connect),
    command("net-options", Object::Connection).fields(Fields::Net).set_defaults(),
    command("disconnect", Object::Connection).fields(Fields::Own(FORCE)),
    command("resize", Object::Minor).fields(Fields::Own(RESIZE)),
    command("resource-options", Object::Resource).fields(Fields::Resource).set_defaults(),
    command("new-current-uuid", Object::Minor).fields(Fields::Own(CLEAR_BITMAP)),
    command("invalidate", Object::Minor),
    command("invalidate-remote", Object::Minor),
    command("pause-sync", Object::Minor),
    command("resume-sync", Object::Minor),
    command("suspend-io", Object::Minor),
    command("resume-io", Object::Minor),
    command("outdate", Object::Minor),
    command("verify", Object::Minor).fields(Fields::Own(VERIFY)),
    command("down", Object::Resource),
    command("state", Object::Minor),
    command("role", Object::Minor),
    command("sh-status", Object::Any),
    command("cstate", Object::Minor),
    command("dstate", Object::Minor),
    command("show-gi", Object::Minor),
    command("get-gi", Object::Minor),
    command("show", Object::Any).options(SHOW),
    command("status", Object::ResourceOrAll).options(STATUS),
    command("check-resize", Object::Minor),
    command("events", Object::Any),
    command("events2", Object::ResourceOrAll).options(EVENTS2),
    command("wait-connect", Object::Minor).options(WAIT),
    command("wait-sync", Object::Minor).options(WAIT),
    command("new-resource", Object::Resource).fields(Fields::Resource),
    command("new-minor", Object::None).arguments(&["resource", "minor", "volume"]),
    command("del-minor", Object::Minor),
    command("del-resource", Object::Resource),
];

/// Ours alone, for `drbdadm`: in no usage text.
const UNLISTED: &[Command] = &[
    command("wait-verify", Object::Minor).options(WAIT_VERIFY),
    command("resync-undo", Object::Minor),
    command("drop-resync-undo", Object::Minor),
    command("split-brain-report", Object::Resource).options(SPLIT_BRAIN_REPORT),
];

/// The command of this name.
pub(super) fn find(name: &str) -> Option<&'static Command> {
    COMMANDS.iter().chain(UNLISTED).find(|command| command.name == name)
}
