//! `adjust`: compares the configuration with what runs, and schedules the difference (cli spec 6).

use std::net::{Ipv4Addr, Ipv6Addr};
use std::rc::Rc;

use udrbd_config::model::{find_option, insert_volume};
use udrbd_config::number::NumberError;
use udrbd_config::options::OptionSet;
use udrbd_config::resolve::resolve_shown;
use udrbd_config::{Address, OptionEntry, Resource, Volume, parse_proxy_settings, parse_shown_resource};

use super::Exit;
use super::calls::{Limit, Request, words};
use super::commands::Function;
use super::session::{Session, Work};
use super::stages::Stage;
use super::system::{Helper, Stream};

/// Identities of running resources start here.
const RUNNING_IDENTITY: usize = usize::MAX / 2;

/// A volume, and what is to be done about it.
#[derive(Debug, Clone, Default)]
struct Plan {
    volume: Volume,
    delete_minor: bool,
    add_minor: bool,
    detach: bool,
    attach: bool,
    resize: bool,
    disk_options: bool,
}

impl Session<'_> {
    /// Schedules what makes the running resource like the configured one.
    pub(super) fn adjust(&mut self, work: &mut Work) -> Result<i32, Exit> {
        let running = self.running_resource(&work.resource)?;
        let settings = self.running_proxy_settings(&work.resource, running.is_some())?;
        let running = running.map(|mut running| {
            if let Some(Some(settings)) = &settings {
                running.proxy.clone_from(&settings.proxy);
                running.proxy_plugins.clone_from(&settings.proxy_plugins);
            }
            Rc::new(running)
        });
        let own_volumes = work.resource.own_volumes();
        let running_volumes = running.as_deref().map_or(&[][..], Resource::own_volumes);
        let plans = self.compare_volumes(own_volumes, running_volumes)?;
        // Later steps see the options in the order the comparison left them in.
        let configured = with_volumes(&work.resource, &plans);
        work.resource = Rc::new(configured);

        let mut connect = true;
        let mut net_options = false;
        let mut resource_options = false;
        match &running {
            None => self.schedule(Stage::CreateResource, Function::NewResource, work, "new-resource"),
            Some(running) => {
                connect = !self.same_addresses(&work.resource, running);
                net_options = !self.same_options(OptionSet::NET, &work.resource.net, &running.net)?;
                resource_options =
                    !self.same_options(OptionSet::RESOURCE, &work.resource.options, &running.options)?;
            }
        }
        if let (Some(Some(_)) | None, true) = (&settings, has_proxy(&work.resource)) {
            self.schedule_proxy(work, running.as_deref())?;
        }
        if resource_options {
            let reset = Function::ResetResourceOptions;
            self.schedule(Stage::AdjustResource, reset, work, "resource-options");
        }
        for plan in plans {
            self.schedule_volume(work, plan, running_volumes);
        }
        if connect {
            let is_connected =
                running.as_ref().is_some_and(|running| running.peer.is_some() || !running.net.is_empty());
            if let (Some(running), true) = (&running, is_connected) {
                let identity = RUNNING_IDENTITY.saturating_add(work.identity);
                let old = Work { resource: Rc::clone(running), identity, volume: None, ..work.clone() };
                self.schedule(Stage::PrepareNet, Function::Disconnect, &old, "disconnect");
            }
            self.schedule(Stage::AdjustNet, Function::Connect, work, "connect");
        } else if net_options {
            self.schedule(Stage::AdjustNet, Function::ResetNetOptions, work, "net-options");
        }
        Ok(0)
    }

    /// What `drbdsetup show` says; asked for in a dry run too.
    fn running_resource(&mut self, resource: &Resource) -> Result<Option<Resource>, Exit> {
        let name = &resource.name;
        let mut request = Request::new(Helper::Setup, words!["show", name.as_str()], Limit::Forever);
        request.output = Stream::Captured;
        request.errors = Stream::Dropped;
        let call = self.prepared(&request);
        let finished = self.system.run(&call);
        let source = format!("drbdsetup show {name}");
        let (shown, mut diagnostics) = parse_shown_resource(name, &source, &finished.output);
        // From here on faults of the configuration were either told or are not looked for.
        self.diagnostics.forgive();
        self.complain(&diagnostics.take_messages());
        let mut running = shown?;
        if let Some(running) = &mut running {
            resolve_shown(running);
        }
        Ok(running)
    }

    /// What `drbd-proxy-ctl` says; `None` if this node runs no proxy.
    #[expect(clippy::option_option, reason = "no proxy, a proxy that does not answer, and settings")]
    fn running_proxy_settings(
        &mut self,
        resource: &Resource,
        is_running: bool,
    ) -> Result<Option<Option<Resource>>, Exit> {
        if !has_proxy(resource) {
            return Ok(None);
        }
        let question = format!("show proxy-settings {}", super::proxy::connection_name(resource));
        let arguments = words!["-c", question.as_str()];
        let mut request = Request::new(Helper::ProxyControl, arguments, Limit::Forever);
        request.output = Stream::Captured;
        request.errors = Stream::Dropped;
        let call = self.prepared(&request);
        let finished = self.system.run(&call);
        let source = format!("drbd-proxy-ctl -c '{question}'");
        let (settings, mut diagnostics) = parse_proxy_settings(&source, &finished.output);
        self.complain(&diagnostics.take_messages());
        let settings = settings?;
        Ok(Some(if is_running { settings } else { settings.map(|_| Resource::default()) }))
    }

    /// Tells why something is to be done, when asked to.
    fn explain(&mut self, verbosity: u32, text: &str) {
        if self.line.verbose >= verbosity {
            self.complain(text);
        }
    }

    /// Whether every running option is configured with an equal value or has its default, and the reverse.
    fn same_options(
        &mut self,
        set: OptionSet,
        configured: &[OptionEntry],
        running: &[OptionEntry],
    ) -> Result<bool, Exit> {
        let mut mentioned = vec![false; configured.len()];
        for run in running {
            let position = configured.iter().position(|option| option.name == run.name);
            let Some(position) = position else {
                if !self.has_default(set, run)? {
                    self.explain(3, &format!("Only in running config {}: {}\n", run.name, run.text()));
                    return Ok(false);
                }
                self.explain(4, &format!("Is default: '{}' equal: r={}\n", run.name, run.text()));
                continue;
            };
            let option = &configured[position];
            let values = format!("r={} c={}\n", run.text(), option.text());
            if !self.has_equal_value(set, run, option)? {
                self.explain(3, &format!("Value of '{}' differs: {values}", option.name));
                return Ok(false);
            }
            self.explain(4, &format!("Value of '{}' equal: {values}", option.name));
            mentioned[position] = true;
        }
        for (option, mentioned) in configured.iter().zip(mentioned) {
            if !mentioned && !self.has_default(set, option)? {
                self.explain(3, &format!("Only in config file {}: {}\n", option.name, option.text()));
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn number<T>(&mut self, result: Result<T, NumberError>) -> Result<T, Exit> {
        result.map_err(|error| self.refuse_number(&error))
    }

    fn has_default(&mut self, set: OptionSet, option: &OptionEntry) -> Result<bool, Exit> {
        let Some(definition) = set.find(&option.name) else { return Ok(false) };
        self.number(definition.is_default(option.value.as_deref()))
    }

    fn has_equal_value(&mut self, set: OptionSet, a: &OptionEntry, b: &OptionEntry) -> Result<bool, Exit> {
        let Some(definition) = set.find(&a.name) else { return Ok(a.value == b.value) };
        self.number(definition.is_equal(a.value.as_deref(), b.value.as_deref()))
    }

    /// Whether both ends of the connection are where the configuration has them.
    fn same_addresses(&mut self, configured: &Resource, running: &Resource) -> bool {
        let own = configured.own_host();
        let proxy = own.and_then(|own| own.proxy.as_ref());
        let Some(running_peer) = running.peer_host().and_then(|peer| peer.address.as_ref()) else {
            return running.peer.is_none() && configured.peer.is_none();
        };
        let remote = match proxy {
            Some(proxy) => proxy.inside.as_ref(),
            None => configured.peer_host().and_then(|peer| peer.address.as_ref()),
        };
        let local = own.and_then(|own| own.address.as_ref());
        let running_local = running.own_host().and_then(|own| own.address.as_ref());
        let is_same = configured.peer.is_some()
            && same_address(local, running_local)
            && same_address(remote, Some(running_peer));
        if !is_same {
            let text = |address: Option<&Address>| match address {
                Some(Address { family, address, port }) => format!("{family}:{address}:{port}"),
                None => "(null):(null):(null)".to_owned(),
            };
            let message = format!(
                "Network addresses differ:\n\trunning: {} -- {}\n\t config: {} -- {}\n",
                text(running_local),
                text(Some(running_peer)),
                text(local),
                text(remote)
            );
            self.explain(3, &message);
        }
        is_same
    }

    /// What is to be done about each volume, by number.
    fn compare_volumes(&mut self, configured: &[Volume], running: &[Volume]) -> Result<Vec<Plan>, Exit> {
        let mut plans = Vec::new();
        for volume in configured {
            let same = running.iter().find(|run| run.number == volume.number);
            plans.push(match same {
                Some(run) => self.compare_volume(volume, run)?,
                None => Plan { volume: volume.clone(), add_minor: true, attach: true, ..Plan::default() },
            });
        }
        for run in running {
            if configured.iter().any(|volume| volume.number == run.number) {
                continue;
            }
            let plan = Plan {
                volume: run.clone(),
                delete_minor: true,
                detach: run.disk.is_some(),
                ..Plan::default()
            };
            let position = plans.iter().position(|plan| plan.volume.number > run.number);
            plans.insert(position.unwrap_or(plans.len()), plan);
        }
        Ok(plans)
    }

    fn compare_volume(&mut self, configured: &Volume, running: &Volume) -> Result<Plan, Exit> {
        let other_minor = configured.minor != running.minor;
        let mut plan = Plan {
            volume: configured.clone(),
            add_minor: other_minor,
            delete_minor: other_minor,
            ..Plan::default()
        };
        if other_minor || !same_disk(configured, running) {
            plan.attach = configured.disk.is_some();
            plan.detach = running.disk.is_some();
        }
        let options = &mut plan.volume.disk_options;
        plan.attach |= self.attach_option_differs(options, &running.disk_options, "max-bio-bvecs")?;
        if !plan.attach {
            let options = &mut plan.volume.disk_options;
            plan.resize = self.attach_option_differs(options, &running.disk_options, "size")?;
            let changeable = |options: &[OptionEntry]| -> Vec<OptionEntry> {
                let rest = options.iter().filter(|option| !super::calls::is_attach_only(&option.name));
                rest.cloned().collect()
            };
            let (own, theirs) = (changeable(&plan.volume.disk_options), changeable(&running.disk_options));
            plan.disk_options = !self.same_options(OptionSet::DISK, &own, &theirs)?;
        }
        plan.detach |= plan.attach && running.disk.is_some();
        Ok(plan)
    }

    /// Whether an option that only `attach` takes differs. It is moved to the front, where later steps skip it.
    fn attach_option_differs(
        &mut self,
        configured: &mut Vec<OptionEntry>,
        running: &[OptionEntry],
        name: &str,
    ) -> Result<bool, Exit> {
        let own = configured.iter().position(|option| option.name == name).map(|position| {
            let option = configured.remove(position);
            configured.insert(0, option.clone());
            option
        });
        let mut theirs = find_option(running, name);
        if let Some(run) = theirs
            && self.has_default(OptionSet::ATTACH, run)?
        {
            theirs = None;
        }
        match (own, theirs) {
            (None, None) => Ok(false),
            (Some(own), Some(run)) => Ok(!self.has_equal_value(OptionSet::ATTACH, &own, run)?),
            _ => Ok(true),
        }
    }

    fn schedule_volume(&mut self, work: &Work, plan: Plan, running: &[Volume]) {
        let configured = Work { volume: Some(plan.volume.clone()), ..work.clone() };
        let kernel = running.iter().find(|run| run.number == plan.volume.number);
        let old = Work { volume: Some(kernel.unwrap_or(&plan.volume).clone()), ..work.clone() };
        if plan.detach {
            self.schedule(Stage::CreateResource, Function::SetupShort, &old, "detach");
        }
        if plan.delete_minor {
            self.schedule(Stage::CreateResource, Function::SetupShort, &old, "del-minor");
        }
        if plan.add_minor {
            self.schedule(Stage::PrepareDisk, Function::NewMinor, &configured, "new-minor");
        }
        if plan.attach {
            self.schedule(Stage::AdjustDisk, Function::Attach, &configured, "attach");
        }
        if plan.disk_options {
            self.schedule(Stage::AdjustDisk, Function::ResetDiskOptions, &configured, "disk-options");
        }
        if plan.resize {
            self.schedule(Stage::AdjustDisk, Function::Resize, &configured, "resize");
        }
    }
}

fn has_proxy(resource: &Resource) -> bool {
    resource.own_host().is_some_and(|own| own.proxy.is_some())
}

/// The resource with the own section's volumes as planned.
fn with_volumes(resource: &Resource, plans: &[Plan]) -> Resource {
    let mut resource = resource.clone();
    if let Some(own) = resource.own.and_then(|own| resource.hosts.get_mut(own)) {
        own.volumes.clear();
        for plan in plans {
            insert_volume(&mut own.volumes, plan.volume.clone());
        }
    }
    resource
}

/// Disks are compared by name; of metadata devices only whether internal, else the name. Indices are not.
fn same_disk(configured: &Volume, running: &Volume) -> bool {
    let (Some(disk), Some(running_disk)) = (&configured.disk, &running.disk) else {
        return configured.disk.is_none() && running.disk.is_none();
    };
    let meta_disk = configured.meta_disk.as_deref().unwrap_or("");
    let running_meta_disk = running.meta_disk.as_deref().unwrap_or("");
    disk == running_disk && meta_disk == running_meta_disk
}

fn same_address(a: Option<&Address>, b: Option<&Address>) -> bool {
    let (Some(a), Some(b)) = (a, b) else { return false };
    if a.port != b.port {
        return false;
    }
    let family = |family: &str, other: &str| a.family == family && b.family == other;
    if family("ipv4", "ipv4") {
        let parsed = (a.address.parse::<Ipv4Addr>(), b.address.parse::<Ipv4Addr>());
        matches!(parsed, (Ok(a), Ok(b)) if a == b)
    } else if family("ipv6", "ipv6") {
        let parsed = (a.address.parse::<Ipv6Addr>(), b.address.parse::<Ipv6Addr>());
        // An address with a scope cannot be parsed; then the texts decide.
        matches!(parsed, (Ok(a), Ok(b)) if a == b) || a.address == b.address
    } else {
        a.family == b.family && a.address == b.address
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(family: &str, text: &str, port: &str) -> Address {
        Address { family: family.to_owned(), address: text.to_owned(), port: port.to_owned() }
    }

    #[test]
    fn addresses_are_compared_by_meaning() {
        let long = address("ipv6", "fd00:0:0::1", "7788");
        let short = address("ipv6", "fd00::1", "7788");
        assert!(same_address(Some(&long), Some(&short)));
        assert!(!same_address(Some(&long), Some(&address("ipv6", "fd00::2", "7788"))));
        assert!(!same_address(Some(&long), Some(&address("ipv6", "fd00::1", "7789"))));
        assert!(!same_address(Some(&long), None));
    }
}
