//! The commands of `drbdadm` (cli spec 5).

use udrbd_config::options::OptionSet;

/// What a command does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Function {
    Attach,
    /// `drbdsetup COMMAND OBJECT`, which is quick.
    SetupShort,
    /// The same, which can take long.
    SetupLong,
    /// `drbdsetup`, and if that does not help `drbdmeta`.
    SetupOrMeta,
    /// `drbdmeta ... COMMAND`.
    Meta,
    DiskOptions,
    Connect,
    NetOptions,
    Disconnect,
    Up,
    ResourceOptions,
    Outdate,
    Resize,
    Adjust,
    AdjustWithProgress,
    Verify,
    SplitBrainReport,
    WaitConnect,
    WaitConnectInteractive,
    Dump,
    DumpXml,
    CreateMeta,
    Nothing,
    ShResources,
    ShResource,
    ShModuleParameters,
    ShDevice,
    ShUdev,
    ShMinor,
    ShLowerDevice,
    ShMetaDevice,
    ShMetaIndex,
    ShAddress,
    ShLowerResource,
    ShBecomePrimary,
    ShStatus,
    ProxyUp,
    ProxyDown,
    NewResource,
    NewMinor,
    Handler,
    CheckResize,
    // Steps of `adjust` that are no commands of their own.
    ResetDiskOptions,
    ResetNetOptions,
    ResetResourceOptions,
    ProxyConnectionUp,
    ProxyConnectionDown,
    ProxyConnectionPlugins,
    ProxySetting,
}

/// Which list a command is shown in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum List {
    /// The usage text.
    Usage,
    /// For shell scripts.
    Shell,
    /// Handlers.
    Handlers,
    /// For experts.
    Experts,
}

/// A command and what it needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Command {
    pub(super) name: &'static str,
    pub(super) function: Function,
    pub(super) list: List,
    /// It works on resources, which must be named.
    pub(super) needs_resource: bool,
    /// It works on one volume, which must be named unless the resource has an implicit one only.
    pub(super) needs_volume: bool,
    /// It works on the volumes of a resource one by one.
    pub(super) per_volume: bool,
    /// The own address must be configured on an interface.
    pub(super) verifies_address: bool,
    /// The peer must be known.
    pub(super) needs_peer: bool,
    /// The own section is the one whose proxy runs here.
    pub(super) is_proxy_command: bool,
    /// The configuration is the registered one.
    pub(super) uses_registry: bool,
    /// `-t` is allowed.
    pub(super) tests_configuration: bool,
    /// Options passed on.
    pub(super) options: Option<OptionSet>,
}

impl Command {
    /// A command on the volumes of named resources, shown in the usage.
    const fn volume(name: &'static str, function: Function) -> Self {
        Self {
            name,
            function,
            list: List::Usage,
            needs_resource: true,
            needs_volume: false,
            per_volume: true,
            verifies_address: false,
            needs_peer: false,
            is_proxy_command: false,
            uses_registry: false,
            tests_configuration: false,
            options: None,
        }
    }

    /// A command on named resources, shown in the usage.
    const fn resource(name: &'static str, function: Function) -> Self {
        let mut command = Self::volume(name, function);
        command.per_volume = false;
        command
    }

    /// A command on connections: on resources, with address and peer.
    const fn connection(name: &'static str, function: Function) -> Self {
        let mut command = Self::resource(name, function).address();
        command.needs_peer = true;
        command
    }

    /// A command that needs no resource.
    const fn general(name: &'static str, function: Function) -> Self {
        let mut command = Self::resource(name, function);
        command.needs_resource = false;
        command
    }

    const fn handler(name: &'static str) -> Self {
        let mut command = Self::resource_handler(name);
        command.needs_volume = true;
        command
    }

    const fn resource_handler(name: &'static str) -> Self {
        let mut command = Self::resource(name, Function::Handler).list(List::Handlers);
        command.uses_registry = true;
        command
    }

    const fn list(mut self, list: List) -> Self {
        self.list = list;
        self
    }

    const fn address(mut self) -> Self {
        self.verifies_address = true;
        self
    }

    const fn peer(mut self) -> Self {
        self.needs_peer = true;
        self
    }

    const fn one_volume(mut self) -> Self {
        self.needs_volume = true;
        self
    }

    const fn registry(mut self) -> Self {
        self.uses_registry = true;
        self
    }

    const fn proxy(mut self) -> Self {
        self.is_proxy_command = true;
        self.peer()
    }

    const fn test(mut self) -> Self {
        self.tests_configuration = true;
        self
    }

    const fn options(mut self, options: OptionSet) -> Self {
        self.options = Some(options);
        self
    }

    /// Whether it prints the configuration.
    pub(super) fn is_dump(&self) -> bool {
        matches!(self.function, Function::Dump | Function::DumpXml)
    }
}

/// All commands, in the order they are listed.
pub(super) const COMMANDS: &[Command] = &[
    Command::volume("attach", Function::Attach).options(OptionSet::ATTACH),
    Command::resource("status", Function::SetupShort),
    Command::volume("disk-options", Function::DiskOptions).options(OptionSet::DISK),
    Command::volume("detach", Function::SetupLong).options(OptionSet::FORCE),
    Command::connection("connect", Function::Connect).options(OptionSet::CONNECT),
    Command::connection("net-options", Function::NetOptions).options(OptionSet::NET),
    Command::resource("disconnect", Function::Disconnect).options(OptionSet::FORCE),
    Command::volume("up", Function::Up).address().peer(),
    Command::resource("resource-options", Function::ResourceOptions).options(OptionSet::RESOURCE),
    Command::resource("down", Function::SetupLong),
    Command::volume("primary", Function::SetupLong).options(OptionSet::FORCE),
    Command::volume("secondary", Function::SetupLong),
    Command::volume("invalidate", Function::SetupOrMeta),
    Command::volume("invalidate-remote", Function::SetupLong).address(),
    Command::volume("outdate", Function::Outdate),
    Command::volume("resize", Function::Resize).address(),
    Command::volume("verify", Function::Verify).address(),
    Command::volume("pause-sync", Function::SetupShort).address(),
    Command::volume("resume-sync", Function::SetupShort).address(),
    Command::connection("adjust", Function::Adjust),
    Command::connection("adjust-with-progress", Function::AdjustWithProgress),
    Command::volume("wait-connect", Function::WaitConnect).address(),
    Command::general("wait-con-int", Function::WaitConnectInteractive).address(),
    Command::volume("role", Function::SetupShort),
    Command::volume("cstate", Function::SetupShort),
    Command::volume("dstate", Function::SetupOrMeta),
    Command::resource("dump", Function::Dump).address().test(),
    Command::resource("dump-xml", Function::DumpXml).address().test(),
    Command::volume("create-md", Function::CreateMeta),
    Command::volume("show-gi", Function::SetupOrMeta),
    Command::volume("get-gi", Function::SetupOrMeta),
    Command::volume("dump-md", Function::Meta),
    Command::volume("wipe-md", Function::Meta),
    Command::volume("apply-al", Function::Meta),
    Command::general("hidden-commands", Function::Nothing),
    Command::general("sh-nop", Function::Nothing).list(List::Shell).test(),
    Command::general("sh-resources", Function::ShResources).list(List::Shell),
    Command::resource("sh-resource", Function::ShResource).list(List::Shell),
    Command::general("sh-mod-parms", Function::ShModuleParameters).list(List::Shell),
    Command::volume("sh-dev", Function::ShDevice).list(List::Shell),
    Command::resource("sh-udev", Function::ShUdev).list(List::Shell).one_volume().registry(),
    Command::volume("sh-minor", Function::ShMinor).list(List::Shell),
    Command::volume("sh-ll-dev", Function::ShLowerDevice).list(List::Shell),
    Command::volume("sh-md-dev", Function::ShMetaDevice).list(List::Shell),
    Command::volume("sh-md-idx", Function::ShMetaIndex).list(List::Shell),
    Command::volume("sh-ip", Function::ShAddress).list(List::Shell),
    Command::volume("sh-lr-of", Function::ShLowerResource).list(List::Shell),
    Command::volume("sh-b-pri", Function::ShBecomePrimary).list(List::Shell),
    Command::general("sh-status", Function::ShStatus).list(List::Shell),
    Command::resource("proxy-up", Function::ProxyUp).list(List::Shell).proxy(),
    Command::resource("proxy-down", Function::ProxyDown).list(List::Shell).proxy(),
    Command::resource("new-resource", Function::NewResource).list(List::Shell),
    Command::volume("sh-new-minor", Function::NewMinor).list(List::Experts),
    Command::volume("new-minor", Function::NewMinor).list(List::Experts),
    Command::handler("before-resync-target"),
    Command::handler("after-resync-target"),
    Command::handler("before-resync-source"),
    Command::handler("pri-on-incon-degr"),
    Command::handler("pri-lost-after-sb"),
    Command::resource_handler("fence-peer"),
    Command::resource_handler("unfence-peer"),
    Command::handler("local-io-error"),
    Command::handler("pri-lost"),
    Command::handler("initial-split-brain"),
    Command::handler("split-brain"),
    Command::handler("out-of-sync"),
    Command::volume("suspend-io", Function::SetupShort).list(List::Experts),
    Command::volume("resume-io", Function::SetupShort).list(List::Experts),
    Command::volume("set-gi", Function::Meta).list(List::Experts).one_volume(),
    Command::volume("new-current-uuid", Function::SetupShort)
        .list(List::Experts)
        .one_volume()
        .options(OptionSet::NEW_CURRENT_UUID),
    Command::volume("check-resize", Function::CheckResize).list(List::Experts),
];

/// Ours alone: in no usage text, which scripts and people know from 8.4.
const UNLISTED: &[Command] = &[
    Command::resource("split-brain-report", Function::SplitBrainReport),
    Command::volume("resync-undo", Function::SetupShort),
    Command::volume("drop-resync-undo", Function::SetupShort),
];

/// The command of that name.
pub(super) fn find(name: &str) -> Option<&'static Command> {
    COMMANDS.iter().chain(UNLISTED).find(|command| command.name == name)
}
