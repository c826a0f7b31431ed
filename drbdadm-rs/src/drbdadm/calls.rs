//! Calls of `drbdsetup` and `drbdmeta` (cli spec 4 and 5).

use std::io::Read as _;

use udrbd_config::model::find_option;
use udrbd_config::{OptionEntry, Volume};
use udrbd_control::options::RESYNC_UNDO;

use super::session::{Session, Work};
use super::system::{Call, Ended, Finished, Helper, Registered, Stream};
use super::{Exit, shell_escape};

/// Statuses of `drbdsetup` that decide what comes next.
mod status {
    /// Already worse than outdated, or a timeout.
    pub(super) const LOWER_THAN_OUTDATED: i32 = 5;
    /// The state change was refused.
    pub(super) const STATE_CHANGE_REFUSED: i32 = 11;
    /// No access to good data.
    pub(super) const NO_UP_TO_DATE_DISK: i32 = 17;
    /// Something cannot be run.
    pub(super) const CANNOT_RUN: i32 = 20;
}

/// How long a call may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Limit {
    /// `cmd-timeout-short`
    Short,
    /// `cmd-timeout-medium`
    Medium,
    /// `cmd-timeout-long`
    Long,
    /// No limit; and a failure is not reported.
    Forever,
}

/// A call to make.
pub(super) struct Request {
    pub(super) helper: Helper,
    /// The arguments behind the program.
    pub(super) arguments: Vec<String>,
    pub(super) limit: Limit,
    pub(super) output: Stream,
    pub(super) errors: Stream,
    /// Whether failures are reported.
    pub(super) reports: bool,
}

impl Request {
    pub(super) fn new(helper: Helper, arguments: Vec<String>, limit: Limit) -> Self {
        let reports = limit != Limit::Forever;
        Self { helper, arguments, limit, output: Stream::Inherited, errors: Stream::Inherited, reports }
    }

    /// Standard error is dropped, and so are reports.
    fn quiet(mut self, quiet: bool) -> Self {
        if quiet {
            self.errors = Stream::Dropped;
            self.reports = false;
        }
        self
    }
}

/// Words from string literals and strings.
macro_rules! words {
    ($($word:expr),* $(,)?) => { vec![$(String::from($word)),*] };
}
pub(super) use words;

/// Options as helpers take them.
pub(super) fn option_words(options: &[OptionEntry]) -> impl Iterator<Item = String> {
    options.iter().map(|option| match &option.value {
        Some(value) => format!("--{}={value}", option.name),
        None => format!("--{}", option.name),
    })
}

impl Session<'_> {
    /// The name of a helper as printed, and its path if one was given.
    fn helper_name(&self, helper: Helper) -> (String, Option<String>) {
        let (name, path) = match helper {
            Helper::Setup => ("drbdsetup-84", &self.line.setup_path),
            Helper::Meta => ("drbdmeta", &self.line.meta_path),
            Helper::ProxyControl => ("drbd-proxy-ctl", &self.line.proxy_control_path),
            Helper::Shell => ("/bin/sh", &None),
        };
        (path.clone().unwrap_or_else(|| name.to_owned()), path.clone())
    }

    fn limit_seconds(&self, limit: Limit) -> u32 {
        let global = &self.configuration.global;
        match limit {
            Limit::Short => global.command_timeout_short,
            Limit::Medium => global.command_timeout_medium,
            Limit::Long => global.command_timeout_long,
            Limit::Forever => 0,
        }
    }

    /// The call a request stands for.
    pub(super) fn prepared(&self, request: &Request) -> Call {
        let (name, path) = self.helper_name(request.helper);
        let mut words = vec![name];
        words.extend(request.arguments.iter().cloned());
        Call {
            helper: request.helper,
            path,
            words,
            output: request.output,
            errors: request.errors,
            limit_seconds: self.limit_seconds(request.limit),
            verbose: self.line.verbose > 0,
        }
    }

    /// Prints a call, in a dry run or a verbose one.
    pub(super) fn show_call(&mut self, call: &Call, resource_name: &str) {
        if self.line.dry_run == 0 && self.line.verbose == 0 {
            return;
        }
        let mut line = Vec::new();
        if let Some(name) = &self.line.variable_name {
            line.extend(format!("{name}=").into_bytes());
            line.extend(shell_escape(resource_name));
            line.push(b'\n');
        }
        for (position, word) in call.words.iter().enumerate() {
            if position > 0 {
                line.push(b' ');
            }
            line.extend(shell_escape(word));
        }
        line.push(b'\n');
        self.system.print(&line);
    }

    /// Makes a call and returns its status; in a dry run only prints it.
    pub(super) fn call(&mut self, request: &Request, resource_name: &str) -> Result<i32, Exit> {
        Ok(self.call_captured(request, resource_name)?.0)
    }

    /// The same, with what was captured.
    fn call_captured(&mut self, request: &Request, resource_name: &str) -> Result<(i32, Finished), Exit> {
        let mut call = self.prepared(request);
        self.show_call(&call, resource_name);
        let nothing = Finished { ended: Ended::Status(0), output: Vec::new(), errors: Vec::new() };
        if self.line.dry_run > 0 {
            return Ok((0, nothing));
        }
        let mut reports = request.reports;
        if self.shows_progress && call.errors == Stream::Inherited {
            call.errors = Stream::Dropped;
            reports = false;
        }
        if let Err(message) = self.system.start_daemon(&call, !self.line.no_start) {
            if call.errors == Stream::Inherited {
                self.complain(&format!("{message}\n"));
            }
            return Ok((status::CANNOT_RUN, nothing));
        }
        let finished = self.system.run(&call);
        let status = self.report(&call, &finished.ended, request.helper, reports)?;
        Ok((status, finished))
    }

    /// Tells about a failed call, and says what status it counts as.
    fn report(&mut self, call: &Call, ended: &Ended, helper: Helper, reports: bool) -> Result<i32, Exit> {
        let words = call.words.join(" ");
        match ended {
            Ended::Status(status) => {
                if *status >= 10 && reports {
                    self.complain(&format!("Command '{words}' terminated with exit code {status}\n"));
                }
                Ok(*status)
            }
            // DRBD takes any helper that was killed for a success. Of a handler, that is kept; of our own
            // helpers nobody knows how far they got.
            Ended::Signal(_) if helper == Helper::Shell => Ok(0),
            Ended::Signal(signal) => {
                if reports {
                    self.complain(&format!("Command '{words}' was killed by signal {signal}\n"));
                }
                Ok(status::CANNOT_RUN)
            }
            Ended::TimedOut if reports => {
                let limit = call.limit_seconds;
                self.complain(&format!("Command '{words}' did not terminate within {limit} seconds\n"));
                Err(Exit(status::CANNOT_RUN))
            }
            Ended::TimedOut => Ok(status::CANNOT_RUN),
        }
    }

    /// The arguments passed on from the command line.
    fn passed_on(&self) -> impl Iterator<Item = String> + use<> {
        self.line.passed_on.clone().into_iter()
    }

    /// `drbdsetup VERB OBJECT`.
    fn setup_request(&mut self, work: &Work, limit: Limit) -> Request {
        self.system.set_variable("DRBD_RESOURCE", &work.resource.name);
        let object = match &work.volume {
            Some(volume) => volume.minor_or_unknown().to_string(),
            None => work.resource.name.clone(),
        };
        let mut arguments = words![work.verb.as_str(), object];
        arguments.extend(self.passed_on());
        Request::new(Helper::Setup, arguments, limit)
    }

    pub(super) fn setup_verb(&mut self, work: &Work, limit: Limit) -> Result<i32, Exit> {
        let request = self.setup_request(work, limit);
        self.call(&request, &work.resource.name)
    }

    /// `drbdmeta MINOR v08 DEVICE INDEX VERB`, with options to pass on, or others.
    fn meta_request(&self, work: &Work, verb: &str, options: Option<Vec<String>>) -> Request {
        let nothing = Volume::default();
        let volume = work.volume.as_ref().unwrap_or(&nothing);
        let internal = volume.meta_disk.as_deref() == Some("internal");
        let index = match volume.meta_index.as_deref().unwrap_or("") {
            "flexible" if internal => "flex-internal",
            "flexible" => "flex-external",
            index => index,
        };
        let minor = volume.minor_or_unknown().to_string();
        let mut arguments = words![minor, "v08", volume.meta_device(), index, verb];
        arguments.extend(options.unwrap_or_else(|| self.line.passed_on.clone()));
        Request::new(Helper::Meta, arguments, Limit::Long)
    }

    pub(super) fn meta_verb(&mut self, work: &Work) -> Result<i32, Exit> {
        let request = self.meta_request(work, &work.verb, None);
        self.call(&request, &work.resource.name)
    }

    /// Applies the activity log, then attaches.
    pub(super) fn attach(&mut self, work: &mut Work) -> Result<i32, Exit> {
        "apply-al".clone_into(&mut work.verb);
        let status = self.meta_verb(work)?;
        if status != 0 {
            return Ok(status);
        }
        "attach".clone_into(&mut work.verb);
        let nothing = Volume::default();
        let volume = work.volume.as_ref().unwrap_or(&nothing);
        let disk = volume.disk.as_deref().unwrap_or("");
        let index = volume.meta_index.as_deref().unwrap_or("");
        let minor = volume.minor_or_unknown().to_string();
        let mut arguments = words!["attach", minor, disk, volume.meta_device(), index];
        arguments.extend(option_words(&volume.disk_options));
        arguments.extend(self.passed_on());
        let request = Request::new(Helper::Setup, arguments, Limit::Medium);
        self.call(&request, &work.resource.name)
    }

    /// `disk-options` with what the command line says, or anew with what the configuration says.
    pub(super) fn disk_options(&mut self, work: &Work, reset: bool) -> Result<i32, Exit> {
        let nothing = Volume::default();
        let volume = work.volume.as_ref().unwrap_or(&nothing);
        let mut arguments = words!["disk-options", volume.minor_or_unknown().to_string()];
        if reset {
            arguments.push("--set-defaults".to_owned());
            // The options that only `attach` takes were moved to the front.
            let only_attach = |option: &&OptionEntry| is_attach_only(&option.name);
            let skipped = volume.disk_options.iter().take_while(only_attach).count();
            let rest = volume.disk_options[skipped..].iter().filter(|option| option.name != RESYNC_UNDO);
            arguments.extend(option_words(&rest.cloned().collect::<Vec<_>>()));
        }
        arguments.extend(self.passed_on());
        let request = Request::new(Helper::Setup, arguments, Limit::Medium);
        self.call(&request, &work.resource.name)
    }

    pub(super) fn new_resource(&mut self, work: &Work) -> Result<i32, Exit> {
        let name = &work.resource.name;
        let mut arguments = words!["new-resource", name.as_str()];
        arguments.extend(option_words(&work.resource.options));
        arguments.extend(self.passed_on());
        let status = self.call(&Request::new(Helper::Setup, arguments, Limit::Short), name)?;
        if status == 0 && self.registers {
            self.system.register(&Registered::Resource(name), &self.file);
        }
        Ok(status)
    }

    /// `resource-options` with what the command line says, or anew with what the configuration says.
    pub(super) fn resource_options(&mut self, work: &Work, reset: bool) -> Result<i32, Exit> {
        let name = &work.resource.name;
        let mut arguments = words!["resource-options", name.as_str()];
        if reset {
            arguments.push("--set-defaults".to_owned());
            arguments.extend(option_words(&work.resource.options));
        }
        arguments.extend(self.passed_on());
        self.call(&Request::new(Helper::Setup, arguments, Limit::Short), name)
    }

    pub(super) fn new_minor(&mut self, work: &Work) -> Result<i32, Exit> {
        let name = &work.resource.name;
        let nothing = Volume::default();
        let volume = work.volume.as_ref().unwrap_or(&nothing);
        let minor = volume.minor_or_unknown();
        let arguments = words!["new-minor", name.as_str(), minor.to_string(), volume.number.to_string()];
        let status = self.call(&Request::new(Helper::Setup, arguments, Limit::Short), name)?;
        if status == 0 && self.registers {
            self.system.register(&Registered::Minor(minor), &self.file);
        }
        Ok(status)
    }

    /// Resizes, then has the new size remembered.
    pub(super) fn resize(&mut self, work: &Work) -> Result<i32, Exit> {
        let nothing = Volume::default();
        let volume = work.volume.as_ref().unwrap_or(&nothing);
        let minor = volume.minor_or_unknown().to_string();
        let mut arguments = words!["resize", minor.as_str()];
        let size =
            find_option(&volume.disk_options, "size").or_else(|| find_option(&work.resource.disk, "size"));
        arguments.extend(size.map(|size| format!("--size={}", size.text())));
        arguments.extend(self.passed_on());
        let quiet = work.verb == "check-resize";
        let name = &work.resource.name;
        let request = Request::new(Helper::Setup, arguments, Limit::Short).quiet(quiet);
        let status = self.call(&request, name)?;
        if status != 0 {
            return Ok(status);
        }
        let arguments = words!["check-resize", minor];
        let request = Request::new(Helper::Setup, arguments, Limit::Short).quiet(quiet);
        self.call(&request, name)?;
        Ok(0)
    }

    /// Resizes through the daemon, or looks for metadata left behind by a grown disk.
    pub(super) fn check_resize(&mut self, work: &Work) -> Result<i32, Exit> {
        match self.resize(work)? {
            0 => Ok(0),
            _ => self.meta_verb(work),
        }
    }

    /// Asks the daemon; if that does not know, asks the metadata.
    pub(super) fn setup_or_meta(&mut self, work: &Work) -> Result<i32, Exit> {
        let mut request = self.setup_request(work, Limit::Short);
        request.errors = Stream::Captured;
        request.reports = false;
        let (status, finished) = self.call_captured(&request, &work.resource.name)?;
        if matches!(status, status::STATE_CHANGE_REFUSED | status::NO_UP_TO_DATE_DISK) {
            self.system.complain(&finished.errors);
            return Ok(status);
        }
        if status == 0 && self.line.dry_run == 0 {
            return Ok(0);
        }
        self.meta_verb(work)
    }

    /// Outdates through the daemon or in the metadata. A Primary's data cannot be outdated.
    pub(super) fn outdate(&mut self, work: &Work) -> Result<i32, Exit> {
        let request = self.setup_request(work, Limit::Short).quiet(true);
        match self.call(&request, &work.resource.name)? {
            status::NO_UP_TO_DATE_DISK => Ok(status::NO_UP_TO_DATE_DISK),
            status::LOWER_THAN_OUTDATED => {
                let status = self.meta_verb(work)?;
                Ok(if status == 0 { 0 } else { status::LOWER_THAN_OUTDATED })
            }
            0 if self.line.dry_run == 0 => Ok(0),
            _ => self.meta_verb(work),
        }
    }

    /// Own and remote address, as helpers take them; the status if there is no remote one.
    fn endpoints(&mut self, work: &Work) -> Result<Vec<String>, i32> {
        let resource = &work.resource;
        let own = resource.own_host();
        let inside = own.and_then(|own| own.proxy.as_ref()).map(|proxy| proxy.inside.as_ref());
        let remote = match inside {
            Some(inside) => inside,
            None => resource.peer_host().and_then(|peer| peer.address.as_ref()),
        };
        let local = own.and_then(|own| own.address.as_ref());
        match (local, remote) {
            (Some(local), Some(remote)) => Ok(vec![local.argument(), remote.argument()]),
            (Some(local), None) if self.line.dry_run > 0 => Ok(vec![local.argument(), "N/A".to_owned()]),
            _ => {
                let message = format!(
                    "resource {}: cannot configure network without knowing my peer.\n",
                    resource.name
                );
                self.complain(&message);
                Err(status::CANNOT_RUN)
            }
        }
    }

    pub(super) fn connect(&mut self, work: &Work) -> Result<i32, Exit> {
        let resource = &work.resource;
        let endpoints = match self.endpoints(work) {
            Ok(endpoints) => endpoints,
            Err(status) => return Ok(status),
        };
        let mut arguments = words!["connect", resource.name.as_str()];
        arguments.extend(endpoints);
        let alternate =
            |host: Option<&udrbd_config::Host>| host.and_then(|host| host.alternate_address.clone());
        if let (Some(own), Some(peer)) = (alternate(resource.own_host()), alternate(resource.peer_host())) {
            arguments.extend(words!["--alternate-address", own.argument()]);
            arguments.extend(words!["--alternate-peer-address", peer.argument()]);
        }
        arguments.extend(option_words(&resource.net));
        arguments.extend(self.passed_on());
        self.call(&Request::new(Helper::Setup, arguments, Limit::Short), &resource.name)
    }

    /// `net-options` with what the command line says, or anew with what the configuration says.
    pub(super) fn net_options(&mut self, work: &Work, reset: bool) -> Result<i32, Exit> {
        let mut arguments = words!["net-options"];
        match self.endpoints(work) {
            Ok(endpoints) => arguments.extend(endpoints),
            Err(status) => return Ok(status),
        }
        if reset {
            arguments.push("--set-defaults".to_owned());
            arguments.extend(option_words(&work.resource.net));
        }
        arguments.extend(self.passed_on());
        self.call(&Request::new(Helper::Setup, arguments, Limit::Short), &work.resource.name)
    }

    pub(super) fn disconnect(&mut self, work: &Work) -> Result<i32, Exit> {
        let mut arguments = words!["disconnect"];
        match self.endpoints(work) {
            Ok(endpoints) => arguments.extend(endpoints),
            Err(status) => return Ok(status),
        }
        arguments.extend(self.passed_on());
        self.system.set_variable("DRBD_RESOURCE", &work.resource.name);
        self.call(&Request::new(Helper::Setup, arguments, Limit::Short), &work.resource.name)
    }

    /// What is known of a split brain. The daemon does not know what the peer is called.
    pub(super) fn split_brain_report(&mut self, work: &Work) -> Result<i32, Exit> {
        let mut request = self.setup_request(work, Limit::Short);
        let peer = work.resource.peer_host().and_then(|host| host.names.first());
        request.arguments.extend(peer.map(|name| format!("--peer-name={name}")));
        request.arguments.extend(self.line.json.then(|| "--json".to_owned()));
        self.call(&request, &work.resource.name)
    }

    /// Makes metadata, keeping the device's own identifier or giving it one.
    pub(super) fn create_meta(&mut self, work: &Work) -> Result<i32, Exit> {
        let name = work.resource.name.clone();
        let device_uuid = if self.line.dry_run > 0 {
            0
        } else {
            let mut request = self.meta_request(work, "read-dev-uuid", None);
            request.output = Stream::Captured;
            request.reports = false;
            let verbose = std::mem::take(&mut self.line.verbose);
            let finished = self.call_captured(&request, &name);
            self.line.verbose = verbose;
            parse_uuid(&finished?.1.output)
        };
        let status = self.meta_verb(work)?;
        if status != 0 || self.line.dry_run > 0 {
            return Ok(status);
        }
        let device_uuid = if device_uuid == 0 { random_uuid() } else { device_uuid };
        let request = self.meta_request(work, "write-dev-uuid", Some(vec![format!("{device_uuid:016X}")]));
        self.call(&request, &name)?;
        Ok(status)
    }
}

/// Whether only `attach` takes an option.
pub(super) fn is_attach_only(name: &str) -> bool {
    matches!(name, "size" | "max-bio-bvecs" | RESYNC_UNDO)
}

/// The number that hexadecimal output begins with; 0 if it does not begin with one.
fn parse_uuid(output: &[u8]) -> u64 {
    let text = String::from_utf8_lossy(output);
    let text = text.trim_start();
    let digits = text.bytes().take_while(u8::is_ascii_hexdigit).count();
    u64::from_str_radix(&text[..digits], 16).unwrap_or(0)
}

/// A random identifier. Without a source of randomness, the clock has to do: it only tells devices apart.
fn random_uuid() -> u64 {
    let mut bytes = [0_u8; 8];
    let read = std::fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes));
    if read.is_err() {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        return now.map_or(1, |now| now.as_nanos() as u64);
    }
    u64::from_ne_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::parse_uuid;

    #[test]
    fn a_device_uuid_is_read_from_the_front_of_the_output() {
        assert_eq!(parse_uuid(b"00000000DEADBEEF\n"), 0xDEAD_BEEF);
        assert_eq!(parse_uuid(b"No valid meta data found"), 0);
        assert_eq!(parse_uuid(b""), 0);
    }
}
