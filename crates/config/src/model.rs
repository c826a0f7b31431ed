//! The configuration as a value: what the files say, in the order they say it.
//!
//! Options stay name and text, as in DRBD, because the text is what `drbdadm dump` prints and what the helper
//! programs are given. [`crate::options`] gives the texts their types.

/// Everything one set of configuration files says (configuration spec 3).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Configuration {
    /// The `global` section.
    pub global: GlobalOptions,
    /// The `common` section; its name is `common`.
    pub common: Option<Resource>,
    /// The resources in the order of the files.
    pub resources: Vec<Resource>,
}

/// Whether the installation may be counted by a server. We never do that, whatever the answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum UsageCount {
    /// `yes`
    Yes,
    /// `no`
    No,
    /// `ask`, the default
    #[default]
    Ask,
}

/// The `global` section (configuration spec 6).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GlobalOptions {
    /// `usage-count`.
    pub usage_count: UsageCount,
    /// `minor-count`; 0 is "not said".
    pub minor_count: u32,
    /// `dialog-refresh` in seconds; 0 is "never".
    pub dialog_refresh: u32,
    /// `disable-ip-verification`: the own address need not be configured on an interface.
    pub disable_ip_verification: bool,
    /// `udev-always-use-vnr`: `sh-udev` names implicit volumes `RES/0`.
    pub udev_always_use_vnr: bool,
    /// `cmd-timeout-short` in seconds; 0 is none.
    pub command_timeout_short: u32,
    /// `cmd-timeout-medium` in seconds; 0 is none.
    pub command_timeout_medium: u32,
    /// `cmd-timeout-long` in seconds; 0 is none.
    pub command_timeout_long: u32,
}

impl Default for GlobalOptions {
    /// The defaults in effect. For the medium and the long limit DRBD meant 121 and 600 seconds, and has 600
    /// and none; `dump` shows that (configuration spec 6).
    fn default() -> Self {
        Self {
            usage_count: UsageCount::Ask,
            minor_count: 0,
            dialog_refresh: 1,
            disable_ip_verification: false,
            udev_always_use_vnr: false,
            command_timeout_short: 5,
            command_timeout_medium: 600,
            command_timeout_long: 0,
        }
    }
}

/// One option as written: a name and the text of its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OptionEntry {
    /// The 8.4 name.
    pub name: String,
    /// The text, unquoted; `None` for a word that takes no value.
    pub value: Option<String>,
}

impl OptionEntry {
    /// An option with a value.
    #[must_use]
    pub fn new(name: impl Into<String>, value: impl Into<String>) -> Self {
        Self { name: name.into(), value: Some(value.into()) }
    }

    /// The text of the value; empty if there is none.
    #[must_use]
    pub fn text(&self) -> &str {
        self.value.as_deref().unwrap_or("")
    }
}

/// The first entry of that name.
#[must_use]
pub fn find_option<'a>(options: &'a [OptionEntry], name: &str) -> Option<&'a OptionEntry> {
    options.iter().find(|option| option.name == name)
}

/// A resource, or the `common` section, which has the same grammar (configuration spec 7).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resource {
    /// The name.
    pub name: String,
    /// Volumes said at resource level, sorted by number; the host sections inherit from them.
    pub volumes: Vec<Volume>,
    /// The host sections in order.
    pub hosts: Vec<Host>,
    /// The section of this node, as an index into `hosts`.
    pub own: Option<usize>,
    /// The section of the peer, as an index into `hosts`.
    pub peer: Option<usize>,
    /// `net { }`.
    pub net: Vec<OptionEntry>,
    /// `disk { }`.
    pub disk: Vec<OptionEntry>,
    /// `options { }`.
    pub options: Vec<OptionEntry>,
    /// `startup { }` but for the two fields below.
    pub startup: Vec<OptionEntry>,
    /// `startup { become-primary-on ...; }`.
    pub become_primary_on: Vec<String>,
    /// `startup { stacked-timeouts; }`.
    pub stacked_timeouts: bool,
    /// `handlers { }`.
    pub handlers: Vec<OptionEntry>,
    /// `proxy { }` but for the plugins.
    pub proxy: Vec<OptionEntry>,
    /// `proxy { plugin { } }`, a line of words each, without values.
    pub proxy_plugins: Vec<OptionEntry>,
    /// The absolute path of the file that defines it.
    pub file: String,
    /// The line of its opening brace.
    pub line: u32,
    /// No section is for this node.
    pub ignored: bool,
    /// This node's section is stacked on another resource.
    pub stacked: bool,
    /// Some section, on whatever node, is stacked on another resource.
    pub has_stacked_section: bool,
}

impl Resource {
    /// The section of this node.
    #[must_use]
    pub fn own_host(&self) -> Option<&Host> {
        self.own.and_then(|index| self.hosts.get(index))
    }

    /// The section of the peer.
    #[must_use]
    pub fn peer_host(&self) -> Option<&Host> {
        self.peer.and_then(|index| self.hosts.get(index))
    }

    /// The volumes of this node's section; none if there is no such section.
    #[must_use]
    pub fn own_volumes(&self) -> &[Volume] {
        self.own_host().map_or(&[], |host| host.volumes.as_slice())
    }
}

/// What a host section stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostKind {
    /// `on NAMES { }`
    On,
    /// `floating ADDRESS { }`: the node that has the address.
    Floating,
    /// `stacked-on-top-of RESOURCE { }`: whichever node has the lower resource.
    Stacked {
        /// The name of the lower resource.
        lower_name: String,
        /// The lower resource, as an index into the resources of the configuration, once resolved.
        lower: Option<usize>,
    },
}

/// A host section (configuration spec 7).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// Node names; of a floating section the text of its address; of a stacked one the names of the lower
    /// resource's sections, once resolved.
    pub names: Vec<String>,
    /// What the section stands for.
    pub kind: HostKind,
    /// Its volumes, sorted by number.
    pub volumes: Vec<Volume>,
    /// `address`.
    pub address: Option<Address>,
    /// `alternate-link-address`.
    pub alternate_address: Option<Address>,
    /// `proxy on ... { }`.
    pub proxy: Option<ProxySection>,
    /// The line of the section.
    pub line: u32,
    /// `options { }` of the section: parsed and printed, used by no command.
    pub options: Vec<OptionEntry>,
}

impl Host {
    /// An empty section.
    #[must_use]
    pub fn new(kind: HostKind, names: Vec<String>, line: u32) -> Self {
        Self {
            names,
            kind,
            volumes: Vec::new(),
            address: None,
            alternate_address: None,
            proxy: None,
            line,
            options: Vec::new(),
        }
    }

    /// Whether the section matches by address.
    #[must_use]
    pub fn is_floating(&self) -> bool {
        self.kind == HostKind::Floating
    }

    /// The resource this section is stacked on, as an index, once resolved.
    #[must_use]
    pub fn lower(&self) -> Option<usize> {
        match &self.kind {
            HostKind::Stacked { lower, .. } => *lower,
            HostKind::On | HostKind::Floating => None,
        }
    }
}

/// A network address (configuration spec 7).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// `ipv4`, `ipv6`, `sdp` or `ssocks`.
    pub family: String,
    /// The address as written, without brackets.
    pub address: String,
    /// The port as written.
    pub port: String,
}

impl Address {
    /// The form helper programs take: `ipv4:10.9.1.1:7788`, `ipv6:[fd00::1]:7788`.
    #[must_use]
    pub fn argument(&self) -> String {
        if self.family == "ipv6" {
            format!("{}:[{}]:{}", self.family, self.address, self.port)
        } else {
            format!("{}:{}:{}", self.family, self.address, self.port)
        }
    }
}

/// `proxy on NAMES { }` in a host section (configuration spec 12).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProxySection {
    /// The nodes that run the proxy.
    pub names: Vec<String>,
    /// `inside`.
    pub inside: Option<Address>,
    /// `outside`.
    pub outside: Option<Address>,
    /// `options { }` but for the plugins.
    pub options: Vec<OptionEntry>,
    /// `options { plugin { } }`, a line of words each, without values.
    pub plugins: Vec<OptionEntry>,
}

/// A volume (configuration spec 7).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Volume {
    /// The volume number.
    pub number: u32,
    /// Not written as `volume N { }`.
    pub implicit: bool,
    /// The device name with `/dev/`, if one was given.
    pub device: Option<String>,
    /// The minor number.
    pub minor: Option<u32>,
    /// The backing device or file.
    pub disk: Option<String>,
    /// `internal`, or the metadata device or file.
    pub meta_disk: Option<String>,
    /// `internal`, `flexible` or a number.
    pub meta_index: Option<String>,
    /// `disk { }` of the volume.
    pub disk_options: Vec<OptionEntry>,
}

impl Volume {
    /// An empty volume.
    #[must_use]
    pub fn new(number: u32, implicit: bool) -> Self {
        Self { number, implicit, ..Self::default() }
    }

    /// The minor number as DRBD prints one that is not known: the largest 32-bit number.
    #[must_use]
    pub fn minor_or_unknown(&self) -> u32 {
        self.minor.unwrap_or(u32::MAX)
    }

    /// Where the metadata is: the disk itself if internal.
    #[must_use]
    pub fn meta_device(&self) -> &str {
        let disk = self.disk.as_deref().unwrap_or("");
        match self.meta_disk.as_deref() {
            None | Some("internal") => disk,
            Some(path) => path,
        }
    }
}

/// Puts a volume into a list sorted by number, behind those of the same number.
pub fn insert_volume(volumes: &mut Vec<Volume>, volume: Volume) {
    let position = volumes.iter().position(|other| other.number > volume.number).unwrap_or(volumes.len());
    volumes.insert(position, volume);
}

/// Names joined by blanks as messages and `dump` show them; `UNKNOWN` for an empty list.
#[must_use]
pub fn joined_names(names: &[String]) -> String {
    if names.is_empty() { "UNKNOWN".to_owned() } else { names.join(" ") }
}
