//! DRBD Proxy, a separate product that `drbdadm` configures through `drbd-proxy-ctl` (configuration spec 12).

use udrbd_config::model::find_option;
use udrbd_config::number::{Unit, parse_number};
use udrbd_config::{Address, ProxySection, Resource};

use super::Exit;
use super::calls::{Limit, Request, words};
use super::commands::Function;
use super::session::{Session, Work};
use super::stages::Stage;
use super::system::Helper;

/// Memory limits that differ by at most this many percent are the same.
const MEMORY_TOLERANCE_PERCENT: u64 = 2;

/// `RESOURCE-PEERPROXIES-OWNPROXIES`.
pub(super) fn connection_name(resource: &Resource) -> String {
    let names = |proxy: Option<&ProxySection>| match proxy {
        Some(proxy) => proxy.names.join("_"),
        None => "UNKNOWN".to_owned(),
    };
    let own = resource.own_host().and_then(|host| host.proxy.as_ref());
    let peer = resource.peer_host().and_then(|host| host.proxy.as_ref());
    format!("{}-{}-{}", resource.name, names(peer), names(own))
}

fn endpoint(address: Option<&Address>) -> String {
    address.map_or_else(String::new, |address| format!("{}:{}", address.address, address.port))
}

impl Session<'_> {
    /// `proxy-up` and `proxy-down`.
    pub(super) fn proxy(&mut self, work: &mut Work, up: bool) -> Result<i32, Exit> {
        let name = work.resource.name.clone();
        let node_name = self.node_name.clone();
        let own = work.resource.own_host().and_then(|host| host.proxy.as_ref());
        let peer = work.resource.peer_host();
        // What is missing, and whether `all` passes over it without a word.
        let fault = match (own, peer) {
            (None, _) => {
                Some((format!("There is no proxy config for host {node_name} in resource {name}.\n"), true))
            }
            (Some(own), _) if !own.names.contains(&node_name) => {
                Some((format!("The proxy config in resource {name} is not for {node_name}.\n"), true))
            }
            (_, None) => Some((format!("Cannot determine the peer in resource {name}.\n"), false)),
            (_, Some(peer)) if peer.proxy.is_none() => {
                let message = format!("There is no proxy config for the peer in resource {name}.\n");
                if self.all_resources {
                    self.complain(&message);
                    return Ok(0);
                }
                Some((message, false))
            }
            _ => None,
        };
        if let Some((message, silent_for_all)) = fault {
            if silent_for_all && self.all_resources {
                return Ok(0);
            }
            self.complain(&message);
            return Err(Exit(10));
        }
        if !up {
            return self.proxy_connection_down(work);
        }
        match self.proxy_connection_up(work)? {
            0 => self.proxy_connection_plugins(work),
            status => Ok(status),
        }
    }

    fn proxy_call(&mut self, work: &Work, arguments: Vec<String>) -> Result<i32, Exit> {
        let request = Request::new(Helper::ProxyControl, arguments, Limit::Short);
        self.call(&request, &work.resource.name)
    }

    pub(super) fn proxy_connection_up(&mut self, work: &Work) -> Result<i32, Exit> {
        let own = work.resource.own_host();
        let own_proxy = own.and_then(|host| host.proxy.as_ref());
        let peer_proxy = work.resource.peer_host().and_then(|host| host.proxy.as_ref());
        let text = format!(
            "add connection {} {} {} {} {}",
            connection_name(&work.resource),
            endpoint(own_proxy.and_then(|proxy| proxy.inside.as_ref())),
            endpoint(peer_proxy.and_then(|proxy| proxy.outside.as_ref())),
            endpoint(own_proxy.and_then(|proxy| proxy.outside.as_ref())),
            endpoint(own.and_then(|host| host.address.as_ref())),
        );
        self.proxy_call(work, words!["-c", text])
    }

    pub(super) fn proxy_connection_down(&mut self, work: &Work) -> Result<i32, Exit> {
        let text = format!("del connection {}", connection_name(&work.resource));
        self.proxy_call(work, words!["-c", text])
    }

    /// Options and plugins in one call; none if there is nothing to say.
    pub(super) fn proxy_connection_plugins(&mut self, work: &Work) -> Result<i32, Exit> {
        let Some(proxy) = work.resource.own_host().and_then(|host| host.proxy.as_ref()) else { return Ok(0) };
        let name = connection_name(&work.resource);
        let mut arguments = Vec::new();
        for option in &proxy.options {
            arguments.extend(words!["-c", format!("set {} {name} {}", option.name, option.text())]);
        }
        for (position, plugin) in proxy.plugins.iter().enumerate() {
            arguments.extend(words!["-c", format!("set plugin {name} {position} {}", plugin.name)]);
        }
        if !proxy.plugins.is_empty() {
            arguments.extend(words!["-c", format!("set plugin {name} {} END", proxy.plugins.len())]);
        }
        if arguments.is_empty() {
            return Ok(0);
        }
        self.proxy_call(work, arguments)
    }

    /// One setting; the verb of the work is its text.
    pub(super) fn proxy_setting(&mut self, work: &Work) -> Result<i32, Exit> {
        let text = work.verb.clone();
        self.proxy_call(work, words!["-c", text])
    }

    /// Schedules what makes the running proxy connection like the configured one.
    pub(super) fn schedule_proxy(&mut self, work: &Work, running: Option<&Resource>) -> Result<(), Exit> {
        let changes = match running {
            Some(running) => self.plugin_changes(work, running)?,
            None => None,
        };
        let Some(changes) = changes else {
            for function in
                [Function::ProxyConnectionDown, Function::ProxyConnectionUp, Function::ProxyConnectionPlugins]
            {
                self.schedule(Stage::PrepareNet, function, work, "(null)");
            }
            return Ok(());
        };
        for change in changes {
            self.schedule(Stage::AdjustNet, Function::ProxySetting, work, &change);
        }
        Ok(())
    }

    /// The settings that differ, or `None` if the connection has to be built anew: its memory is fixed at the
    /// start, and plugins cannot change places.
    fn plugin_changes(&mut self, work: &Work, running: &Resource) -> Result<Option<Vec<String>>, Exit> {
        let Some(proxy) = work.resource.own_host().and_then(|host| host.proxy.as_ref()) else {
            return Ok(Some(Vec::new()));
        };
        let memory = |option: Option<&udrbd_config::OptionEntry>| match option {
            Some(option) => parse_number(option.text(), Unit::One),
            None => Ok(0),
        };
        let configured_limit = find_option(&proxy.options, "memlimit");
        let running_limit = find_option(&running.proxy, "memlimit");
        let limits = memory(configured_limit).and_then(|own| Ok((own, memory(running_limit)?)));
        let (own, theirs) = limits.map_err(|error| self.refuse_number(&error))?;
        let tolerance = u128::from(own.min(theirs)) * u128::from(MEMORY_TOLERANCE_PERCENT);
        let differs = u128::from(own.abs_diff(theirs)) * 100 > tolerance;
        if configured_limit.is_some() && (running_limit.is_none() || differs) {
            return Ok(None);
        }
        let kind = |line: &str| line.split_whitespace().next().unwrap_or("").to_owned();
        let own_kinds: Vec<String> = proxy.plugins.iter().map(|plugin| kind(&plugin.name)).collect();
        let running_kinds: Vec<String> =
            running.proxy_plugins.iter().map(|plugin| kind(&plugin.name)).collect();
        let name = connection_name(&work.resource);
        let mut changes = Vec::new();
        for (position, plugin) in proxy.plugins.iter().enumerate() {
            let before =
                |kinds: &[String], wanted: &str| kinds.iter().take(position).any(|kind| kind == wanted);
            let same_place = running.proxy_plugins.get(position);
            let moved = before(&running_kinds, &own_kinds[position])
                || running_kinds.get(position).is_some_and(|kind| before(&own_kinds, kind));
            if moved {
                return Ok(None);
            }
            if same_place.is_none_or(|running| running.name != plugin.name) {
                changes.push(format!("set plugin {name} {position} {}", plugin.name));
            }
        }
        if running.proxy_plugins.len() > proxy.plugins.len() {
            changes.push(format!("set plugin {name} {} end", proxy.plugins.len()));
        }
        Ok(Some(changes))
    }
}
