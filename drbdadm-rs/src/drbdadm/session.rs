//! One run of `drbdadm`: configuration, resources, command.

use std::collections::HashSet;
use std::rc::Rc;

use udrbd_config::resolve::{Node, PeerChoice, Target, find_by_minor, find_by_name, resolve, select_peer};
use udrbd_config::validate::validate;
use udrbd_config::{Address, Configuration, Diagnostics, Loader, Resource, Source, Volume, expand, print};

use super::Exit;
use super::command_line::{self, CommandLine};
use super::commands::{Command, Function};
use super::stages::Stages;
use super::system::{Registered, System};
use super::usage;

/// Where the configuration is looked for, in this order.
const DEFAULT_FILES: &[&str] =
    &["/etc/drbd-84.conf", "/etc/drbd-83.conf", "/etc/drbd-82.conf", "/etc/drbd-08.conf", "/etc/drbd.conf"];

/// What a command works on: a resource, perhaps one volume of it.
#[derive(Debug, Clone)]
pub(super) struct Work {
    pub(super) resource: Rc<Resource>,
    /// Tells resources apart: the index in the configuration; larger numbers are of running resources.
    pub(super) identity: usize,
    pub(super) volume: Option<Volume>,
    /// The verb for helper programs, and the name in messages.
    pub(super) verb: String,
}

/// How many resources of a kind there are.
#[derive(Debug, Clone, Copy, Default)]
struct Counts {
    normal: usize,
    stacked: usize,
    ignored: usize,
}

/// The state of a run.
pub(super) struct Session<'s> {
    pub(super) system: &'s mut dyn System,
    pub(super) program: String,
    pub(super) line: CommandLine,
    pub(super) command: &'static Command,
    pub(super) node_name: String,
    pub(super) configuration: Configuration,
    pub(super) diagnostics: Diagnostics,
    /// The configuration file with its absolute path; `STDIN` for standard input.
    pub(super) file: String,
    pub(super) registers: bool,
    /// Stacked resources are worked on.
    pub(super) stacked_mode: bool,
    pub(super) all_resources: bool,
    pub(super) stages: Stages,
    /// Resources whose first steps failed.
    pub(super) skipped: HashSet<usize>,
    pub(super) shows_progress: bool,
    /// The resource `up` was last called for.
    pub(super) last_up: Option<String>,
}

/// The node as the configuration sees it.
struct NodeView<'s> {
    system: &'s dyn System,
    name: &'s str,
}

impl Node for NodeView<'_> {
    fn name(&self) -> &str {
        self.name
    }

    fn has_address(&self, address: &Address) -> bool {
        self.system.has_address(address)
    }

    fn has_terminal(&self) -> bool {
        self.system.has_terminal()
    }
}

/// Runs `drbdadm` as the arguments say.
pub(super) fn run(system: &mut dyn System, program: &str, arguments: &[String]) -> Result<i32, Exit> {
    let node_name = node_name(system);
    let line = command_line::read(system, program, arguments)?;
    let Some(command) = line.command else { return Err(Exit(1)) };
    if line.file_to_test.is_some() && !command.tests_configuration {
        system.complain(
            b"The --config-to-test (-t) option is only allowed with the dump and sh-nop commands\n",
        );
        return Err(Exit(1));
    }
    let all_resources = line.names.is_empty() && (command.is_dump() || command.name == "status");
    check_names(system, program, command, &line)?;
    let stacked_mode = line.stacked;
    let mut session = Session {
        system,
        program: program.to_owned(),
        line,
        command,
        node_name,
        configuration: Configuration::default(),
        diagnostics: Diagnostics::new(),
        file: String::new(),
        registers: false,
        stacked_mode,
        all_resources,
        stages: Stages::default(),
        skipped: HashSet::new(),
        shows_progress: false,
        last_up: None,
    };
    session.load()?;
    session.execute()
}

/// The node name: of the kernel, or pretended.
fn node_name(system: &mut dyn System) -> String {
    let Some(name) = system.variable("__DRBD_NODE__").filter(|name| !name.is_empty()) else {
        return system.node_name();
    };
    // A private run directory means several nodes side by side: there it is no pretence.
    if system.variable("UDRBD_RUN_DIR").is_none() {
        system.complain(
            format!("\n   found __DRBD_NODE__ in environment\n   PRETENDING that I am >>{name}<<\n\n")
                .as_bytes(),
        );
    }
    name
}

fn check_names(
    system: &mut dyn System,
    program: &str,
    command: &Command,
    line: &CommandLine,
) -> Result<(), Exit> {
    if line.names.is_empty() {
        let implies_all = command.is_dump() || command.name == "status";
        if command.needs_resource && !implies_all {
            let text = usage::usage(program, Some(command), Some("No resource names specified"));
            system.print(text.as_bytes());
            return Err(Exit(1));
        }
    } else if !command.needs_resource {
        system.complain(b"This command will ignore resource names!\n");
    } else if line.names.len() > 1 && command.uses_registry {
        system.complain(b"You should not use this command with multiple resources!\n");
    }
    Ok(())
}

impl Session<'_> {
    pub(super) fn print(&mut self, text: &str) {
        self.system.print(text.as_bytes());
    }

    pub(super) fn complain(&mut self, text: &str) {
        self.system.complain(text.as_bytes());
    }

    /// Tells what was found wrong with the configuration so far.
    fn tell_diagnostics(&mut self) {
        let messages = self.diagnostics.take_messages();
        self.complain(&messages);
    }

    /// Runs `work`, tells its diagnostics, and ends the program if it failed or the configuration is at fault.
    fn checked(
        &mut self,
        work: impl FnOnce(&mut Configuration, &mut Diagnostics, &dyn Node) -> Result<(), udrbd_config::Stop>,
    ) -> Result<(), Exit> {
        let node = NodeView { system: &*self.system, name: &self.node_name };
        let result = work(&mut self.configuration, &mut self.diagnostics, &node);
        self.tell_diagnostics();
        Ok(result?)
    }

    /// Reads the configuration, finds own sections, hands options down.
    fn load(&mut self) -> Result<(), Exit> {
        let (source, is_input) = self.main_source()?;
        self.file.clone_from(&source.absolute);
        let test = self.line.file_to_test.clone();
        let mut loader = Loader::new(self.system.files());
        let mut result = loader.load(source);
        let mut missing = None;
        if let (Ok(()), Some(name)) = (result, test) {
            let directory = self.system.directory();
            match read_source(self.system.files(), &directory, &name) {
                Some(source) => result = loader.load(source),
                None => missing = Some(format!("Can not open '{name}'.\n.")),
            }
        }
        (self.configuration, self.diagnostics) = loader.finish();
        self.tell_diagnostics();
        result?;
        if let Some(message) = missing {
            self.complain(&message);
            return Err(Exit(20));
        }
        if !self.diagnostics.is_valid() {
            return Err(Exit(10));
        }
        let match_on_proxy = self.command.is_proxy_command;
        self.checked(|configuration, diagnostics, node| {
            resolve(configuration, diagnostics, node, match_on_proxy)
        })?;
        if !self.command.is_dump() || self.line.dry_run > 0 || self.line.verbose > 0 {
            expand::expand(&mut self.configuration);
        }
        self.registers = self.line.dry_run == 0 && !is_input;
        Ok(())
    }

    /// The configuration file: the given one, the registered one, or the first there is.
    fn main_source(&mut self) -> Result<(Source, bool), Exit> {
        let directory = self.system.directory();
        if let Some(file) = self.line.file.take() {
            let absolute = if file.is_input {
                file.name.clone()
            } else {
                self.system
                    .files()
                    .absolute_path(&directory, &file.name)
                    .unwrap_or_else(|_| file.name.clone())
            };
            let source = Source { name: file.name, absolute, directory, text: file.text };
            return Ok((source, file.is_input));
        }
        if self.command.uses_registry
            && let Some(source) = self.registered_source(&directory)?
        {
            return Ok((source, false));
        }
        for name in DEFAULT_FILES {
            if let Some(source) = read_source(self.system.files(), &directory, name) {
                return Ok((source, false));
            }
        }
        let last = DEFAULT_FILES.last().unwrap_or(&"");
        let reason = match self.system.files().read(&directory, last) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                "No such file or directory".to_owned()
            }
            Err(error) => error.to_string(),
            Ok(_) => String::new(),
        };
        self.complain(&format!("Can not open '{last}': {reason}\n"));
        Err(Exit(10))
    }

    /// The file by which the first named minor or resource was set up.
    fn registered_source(&mut self, directory: &str) -> Result<Option<Source>, Exit> {
        let name = self.line.names.first().cloned().unwrap_or_default();
        let minor = match name.strip_prefix("minor-") {
            Some(number) => {
                let minor = udrbd_config::number::parse_number(number, udrbd_config::number::Unit::One);
                Some(minor.map_err(|error| self.refuse_number(&error))?)
            }
            None => None,
        };
        let key = match minor {
            Some(minor) => Registered::Minor(u32::try_from(minor).unwrap_or(u32::MAX)),
            None => Registered::Resource(&name),
        };
        let what = match minor {
            Some(minor) => format!("minor {minor}"),
            None => format!("resource {name}"),
        };
        let Some(file) = self.system.registered(&key) else {
            self.complain(&format!(
                "Don't know which config file belongs to {what}, trying default ones...\n"
            ));
            return Ok(None);
        };
        let source = read_source(self.system.files(), directory, &file);
        if source.is_none() {
            self.complain(&format!("Couldn't open file {file} for reading, trying default config file...\n"));
        }
        Ok(source)
    }

    /// A number that is none ends the program.
    pub(super) fn refuse_number(&mut self, error: &udrbd_config::number::NumberError) -> Exit {
        self.complain(&format!("{error}\n"));
        Exit(error.exit_status())
    }

    /// Runs the command on what it was called for, then what it scheduled.
    fn execute(&mut self) -> Result<i32, Exit> {
        let status = if self.command.needs_resource {
            self.execute_on_resources()?
        } else {
            let status = self.execute_general()?;
            if status >= 10 {
                let name = self.command.name;
                self.complain(&format!("command {name} exited with code {status}\n"));
                return Err(Exit(status));
            }
            status
        };
        let deferred = self.run_stages()?;
        Ok(status.max(deferred))
    }

    fn execute_general(&mut self) -> Result<i32, Exit> {
        match self.command.function {
            Function::ShResources => self.sh_resources(),
            Function::ShModuleParameters => self.sh_module_parameters(),
            Function::ShStatus => return self.sh_status(),
            Function::WaitConnectInteractive => return self.wait_connect_interactive(),
            _ => {}
        }
        Ok(0)
    }

    fn execute_on_resources(&mut self) -> Result<i32, Exit> {
        let is_dump = self.command.is_dump();
        if self.configuration.resources.is_empty() && !is_dump {
            self.complain("no resources defined!\n");
            return Err(Exit(1));
        }
        let peer = self.line.peer.clone();
        let remark = self.line.dry_run > 1;
        let match_on_proxy = self.command.is_proxy_command;
        self.checked(|configuration, diagnostics, node| {
            let choice = PeerChoice { name: peer.as_deref(), remark };
            validate(configuration, diagnostics, node, choice, match_on_proxy, !is_dump)
        })?;
        match self.line.names.first() {
            None => self.execute_on_all(),
            Some(name) if name == "all" => self.execute_on_all(),
            Some(_) => self.execute_on_named(),
        }
    }

    fn execute_on_all(&mut self) -> Result<i32, Exit> {
        self.all_resources = true;
        let is_dump = self.command.is_dump();
        if !is_dump {
            self.die_without_resources()?;
        }
        for index in 0..self.configuration.resources.len() {
            self.verify_address(index);
        }
        if !self.diagnostics.is_valid() {
            return Err(Exit(10));
        }
        match self.command.function {
            Function::Dump => {
                let verbose = self.line.verbose > 0;
                let text = print::header(&self.configuration, &self.file, verbose);
                self.print(&text);
            }
            Function::DumpXml => {
                let text = print::xml_header(&self.configuration, &self.file);
                self.print(&text);
            }
            _ => {}
        }
        let mut status = 0;
        for index in 0..self.configuration.resources.len() {
            let resource = &self.configuration.resources[index];
            if !is_dump && (resource.ignored || resource.stacked != self.stacked_mode) {
                continue;
            }
            status = status.max(self.execute_on(Target { resource: index, volume: None })?);
        }
        if self.command.function == Function::DumpXml {
            self.print(print::xml_footer());
        }
        Ok(status)
    }

    fn execute_on_named(&mut self) -> Result<i32, Exit> {
        let is_dump = self.command.is_dump();
        let mut status = 0;
        for name in self.line.names.clone() {
            let mut target = self.find_target(&name)?;
            self.check_volume(&mut target, &name)?;
            let resource = &self.configuration.resources[target.resource];
            if resource.stacked != self.stacked_mode && !is_dump {
                let kind = |stacked: bool| if stacked { "stacked" } else { "normal" };
                let message = format!(
                    "'{}' is a {} resource, and not available in {} mode.\n",
                    resource.name,
                    kind(resource.stacked),
                    kind(self.stacked_mode)
                );
                self.complain(&message);
                status = 1;
                continue;
            }
            self.verify_address(target.resource);
            if !is_dump && !self.diagnostics.is_valid() {
                return Err(Exit(10));
            }
            status = status.max(self.execute_on(target)?);
        }
        Ok(status)
    }

    /// What a name stands for: a resource or a volume by name, else a volume by minor number.
    fn find_target(&mut self, name: &str) -> Result<Target, Exit> {
        let found = find_by_name(&self.configuration, name).and_then(|target| match target {
            Some(target) => Ok(Some((target, false))),
            None => Ok(find_by_minor(&self.configuration, name)?.map(|target| (target, true))),
        });
        match found {
            Ok(Some((target, by_minor))) => {
                if by_minor {
                    self.stacked_mode = self.configuration.resources[target.resource].stacked;
                }
                Ok(target)
            }
            Ok(None) => {
                self.complain(&format!("'{name}' not defined in your config (for this host).\n"));
                Err(Exit(1))
            }
            Err(error) => Err(self.refuse_number(&error)),
        }
    }

    /// Commands on whole resources take no explicit volume; commands on one volume need one.
    fn check_volume(&mut self, target: &mut Target, name: &str) -> Result<(), Exit> {
        let command = self.command;
        let volumes = self.configuration.resources[target.resource].own_volumes();
        let implicit = volumes.first().is_some_and(|volume| volume.implicit);
        if !command.needs_volume && !command.per_volume && target.volume.is_some() {
            if !implicit {
                self.complain(&format!(
                    "{} operates on whole resources, but you specified a specific volume!\n",
                    command.name
                ));
                return Err(Exit(1));
            }
            target.volume = None;
        }
        if command.needs_volume && target.volume.is_none() {
            if !implicit {
                self.complain(&format!(
                    "{0} requires a specific volume id, but none is specified.\n\
                     Try '{0} minor-<minor_number>' or '{0} {name}/<vnr>'\n",
                    command.name
                ));
                return Err(Exit(1));
            }
            target.volume = Some(0);
        }
        Ok(())
    }

    fn die_without_resources(&mut self) -> Result<(), Exit> {
        let mut counts = Counts::default();
        for resource in &self.configuration.resources {
            match (resource.ignored, resource.stacked) {
                (true, _) => counts.ignored += 1,
                (false, true) => counts.stacked += 1,
                (false, false) => counts.normal += 1,
            }
        }
        let name = self.node_name.clone();
        if !self.stacked_mode && counts.normal == 0 {
            self.complain(&format!("WARN: no normal resources defined for this host ({name})!?\n"));
            if counts.ignored > 0 {
                self.complain("Misspelled name of the local machine with the 'on' keyword ?\n");
            }
            return Err(Exit(1));
        }
        if self.stacked_mode && counts.stacked == 0 {
            self.complain(&format!(
                "WARN: nothing stacked for this host ({name}), nothing to do in stacked mode!\n"
            ));
            return Err(Exit(1));
        }
        Ok(())
    }

    /// The own address must be there before the network is set up, but for a plain dry run.
    fn verify_address(&mut self, index: usize) {
        let resource = &self.configuration.resources[index];
        let unchecked = self.configuration.global.disable_ip_verification
            || self.line.dry_run == 1
            || !self.command.verifies_address
            || resource.ignored
            || (resource.stacked && !self.stacked_mode);
        let Some((own, address)) = resource.own_host().and_then(|own| Some((own, own.address.as_ref()?)))
        else {
            return;
        };
        if unchecked || self.system.has_address(address) {
            return;
        }
        let key = format!("{}:{}", address.address, address.port);
        let place = self.diagnostics.first_use(&key).unwrap_or(&resource.file);
        let message = format!(
            "{place}: in resource {}, on {}:\n\tIP {} not found on this host.\n",
            resource.name,
            udrbd_config::model::joined_names(&own.names),
            address.address
        );
        self.diagnostics.fault(message);
        self.tell_diagnostics();
    }

    /// Runs the command on a resource, or one after the other on its volumes.
    fn execute_on(&mut self, target: Target) -> Result<i32, Exit> {
        let choice = PeerChoice { name: self.line.peer.as_deref(), remark: self.line.dry_run > 1 };
        let resource = &mut self.configuration.resources[target.resource];
        if resource.peer.is_none() {
            let required = self.command.needs_peer;
            select_peer(resource, &mut self.diagnostics, &self.node_name, choice, required);
        }
        self.tell_diagnostics();
        let resource = Rc::new(self.configuration.resources[target.resource].clone());
        let volumes = resource.own_volumes().to_vec();
        let work = |volume: Option<Volume>| Work {
            resource: Rc::clone(&resource),
            identity: target.resource,
            volume,
            verb: self.command.name.to_owned(),
        };
        let works: Vec<Work> = match target.volume {
            Some(index) => vec![work(volumes.get(index).cloned())],
            None if self.command.per_volume => volumes.into_iter().map(|volume| work(Some(volume))).collect(),
            None => vec![work(None)],
        };
        for mut work in works {
            let status = self.perform(self.command.function, &mut work)?;
            if status >= 20 {
                return Err(Exit(status));
            }
            if status != 0 {
                return Ok(status);
            }
        }
        Ok(0)
    }

    /// Does what a function stands for.
    pub(super) fn perform(&mut self, function: Function, work: &mut Work) -> Result<i32, Exit> {
        match function {
            Function::Attach => self.attach(work),
            Function::SetupShort => self.setup_verb(work, super::calls::Limit::Short),
            Function::SetupLong => self.setup_verb(work, super::calls::Limit::Medium),
            Function::SetupOrMeta => self.setup_or_meta(work),
            Function::Meta => self.meta_verb(work),
            Function::DiskOptions => self.disk_options(work, false),
            Function::Connect => self.connect(work),
            Function::NetOptions => self.net_options(work, false),
            Function::Disconnect => self.disconnect(work),
            Function::Up => Ok(self.schedule_up(work)),
            Function::ResourceOptions => self.resource_options(work, false),
            Function::Outdate => self.outdate(work),
            Function::Resize => self.resize(work),
            Function::Adjust => self.adjust(work),
            Function::AdjustWithProgress => {
                self.shows_progress = self.line.verbose == 0 && self.line.dry_run == 0;
                self.adjust(work)
            }
            Function::Verify => self.verify(work),
            Function::SplitBrainReport => self.split_brain_report(work),
            Function::WaitConnect => self.wait_connect(work),
            Function::Dump | Function::DumpXml => Ok(self.dump(work)),
            Function::CreateMeta => self.create_meta(work),
            Function::ProxyUp => self.proxy(work, true),
            Function::ProxyDown => self.proxy(work, false),
            Function::NewResource => self.new_resource(work),
            Function::NewMinor => self.new_minor(work),
            Function::Handler => self.handler(work),
            Function::CheckResize => self.check_resize(work),
            Function::ResetDiskOptions => self.disk_options(work, true),
            Function::ResetNetOptions => self.net_options(work, true),
            Function::ResetResourceOptions => self.resource_options(work, true),
            Function::ProxyConnectionUp => self.proxy_connection_up(work),
            Function::ProxyConnectionDown => self.proxy_connection_down(work),
            Function::ProxyConnectionPlugins => self.proxy_connection_plugins(work),
            Function::ProxySetting => self.proxy_setting(work),
            Function::ShBecomePrimary => self.sh_become_primary(work),
            _ => self.shell_answer(function, work),
        }
    }

    fn dump(&mut self, work: &Work) -> i32 {
        let text = if self.command.function == Function::DumpXml {
            print::xml_resource(&work.resource, self.all_resources)
        } else {
            print::resource(&self.configuration, &work.resource, &self.node_name)
        };
        self.print(&text);
        0
    }
}

/// A file to parse, or `None` if it cannot be read.
fn read_source(files: &dyn udrbd_config::Files, directory: &str, name: &str) -> Option<Source> {
    let text = files.read(directory, name).ok()?;
    let absolute = files.absolute_path(directory, name).ok()?;
    Some(Source { name: name.to_owned(), absolute, directory: directory.to_owned(), text })
}
