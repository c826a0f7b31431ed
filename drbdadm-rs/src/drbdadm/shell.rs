//! Answers for shell scripts: `sh-*` (cli spec 5 and 10.4).

use udrbd_config::{Resource, Volume};

use super::calls::Limit;
use super::commands::Function;
use super::session::{Session, Work};
use super::usage::{API_VERSION, VERSION};
use super::{Exit, shell_escape};

/// The fewest and the most minors `sh-mod-parms` speaks of, and how many it adds for later.
const MINOR_COUNT: (u32, u32, u32) = (32, 255, 3);
/// How often promotion is tried when both nodes want to become Primary at once.
const PROMOTION_TRIES: u32 = 5;

impl Session<'_> {
    /// The names of all resources on one line.
    pub(super) fn sh_resources(&mut self) {
        let mode = self.stacked_mode;
        let names: Vec<String> = self
            .configuration
            .resources
            .iter()
            .filter(|resource| !resource.ignored && resource.stacked == mode)
            .map(|resource| udrbd_config::print::quoted(&resource.name))
            .collect();
        if !names.is_empty() {
            self.print(&format!("{}\n", names.join(" ")));
        }
    }

    /// The module parameter that says how many minors there can be.
    pub(super) fn sh_module_parameters(&mut self) {
        let (least, most, spare) = MINOR_COUNT;
        let said = self.configuration.global.minor_count;
        let minors: usize =
            self.configuration.resources.iter().map(|resource| resource.own_volumes().len()).sum();
        let minors = u32::try_from(minors).unwrap_or(most).saturating_add(spare);
        let count = if said == 0 { minors.clamp(least, most) } else { said };
        self.print(&format!("minor_count={count}\n"));
    }

    /// The answers about one resource or volume.
    pub(super) fn shell_answer(&mut self, function: Function, work: &Work) -> Result<i32, Exit> {
        let text = match function {
            Function::ShResource => work.resource.name.clone(),
            Function::ShUdev => return Ok(self.sh_udev(work)),
            Function::ShLowerResource => return self.sh_lower_resource(&work.resource),
            Function::ShAddress => work
                .resource
                .own_host()
                .and_then(|own| own.address.as_ref())
                .map_or_else(String::new, |address| address.address.clone()),
            _ => {
                let nothing = Volume::default();
                let volume = work.volume.as_ref().unwrap_or(&nothing);
                let text = |value: &Option<String>| value.clone().unwrap_or_default();
                match function {
                    Function::ShDevice => text(&volume.device),
                    Function::ShMinor => volume.minor.map_or(-1, i64::from).to_string(),
                    Function::ShLowerDevice => text(&volume.disk),
                    Function::ShMetaDevice => volume.meta_device().to_owned(),
                    Function::ShMetaIndex => text(&volume.meta_index),
                    _ => return Ok(0),
                }
            }
        };
        self.print(&format!("{text}\n"));
        Ok(0)
    }

    /// What the udev rule makes links from.
    fn sh_udev(&mut self, work: &Work) -> i32 {
        let Some(volume) = &work.volume else {
            self.complain("volume not specified\n");
            return 1;
        };
        let name = &work.resource.name;
        let resource = if volume.implicit && !self.configuration.global.udev_always_use_vnr {
            name.clone()
        } else {
            format!("{name}/{}", volume.number)
        };
        let device = volume.device.as_deref().unwrap_or("");
        let device = match device.strip_prefix("/dev/").filter(|name| name.starts_with("drbd")) {
            Some(name) => name.to_owned(),
            None => format!("drbd{}", volume.minor_or_unknown()),
        };
        let disk = volume.disk.as_deref().unwrap_or("");
        let disk = disk.strip_prefix("/dev/").unwrap_or(disk);
        self.print(&format!("RESOURCE={resource}\nDEVICE={device}\nDISK={disk}\n"));
        0
    }

    fn sh_lower_resource(&mut self, resource: &Resource) -> Result<i32, Exit> {
        if !self.stacked_mode {
            self.complain("sh-lower-resource only available in stacked mode\n");
            return Err(Exit(1));
        }
        let lower = resource.own_host().and_then(udrbd_config::Host::lower);
        let Some(lower) = lower else {
            let message = format!("'{}' is not stacked on this host ({})\n", resource.name, self.node_name);
            self.complain(&message);
            return Err(Exit(1));
        };
        let name = self.configuration.resources[lower].name.clone();
        self.print(&format!("{name}\n"));
        Ok(0)
    }

    /// Promotes if the node is in `become-primary-on`. When both are, they can get into each other's way.
    pub(super) fn sh_become_primary(&mut self, work: &mut Work) -> Result<i32, Exit> {
        let node_name = &self.node_name;
        let wanted = work.resource.become_primary_on.iter().any(|name| name == node_name || name == "both");
        if !wanted {
            return Ok(0);
        }
        "primary".clone_into(&mut work.verb);
        let mut status = 0;
        for _ in 0..PROMOTION_TRIES {
            status = self.setup_verb(work, Limit::Short)?;
            if status == 0 {
                return Ok(0);
            }
            self.system.pause();
        }
        Ok(status)
    }

    /// The state of everything, for a shell to evaluate.
    pub(super) fn sh_status(&mut self) -> Result<i32, Exit> {
        if self.line.dry_run == 0 {
            let file = self.file.clone();
            self.print(&format!("_drbd_version={VERSION}\n_drbd_api={API_VERSION}\n"));
            self.print_assignment("_config_file", &file);
            self.print("\n\n");
        }
        for (index, resource) in self.configuration.resources.clone().into_iter().enumerate() {
            if resource.ignored {
                continue;
            }
            self.print_assignment("_conf_res_name", &resource.name);
            let mut place = b"_conf_file_line=".to_vec();
            place.extend(shell_escape(&resource.file));
            place.extend(format!(":{}\n\n", resource.line).into_bytes());
            self.system.print(&place);
            let lower = resource.own_host().and_then(udrbd_config::Host::lower).filter(|_| resource.stacked);
            let mut lower_volumes = match lower.map(|lower| self.configuration.resources[lower].clone()) {
                Some(lower) => {
                    self.print_assignment("_stacked_on", &lower.name);
                    Some(lower.own_volumes().to_vec().into_iter())
                }
                None => {
                    self.print("_stacked_on=\n_stacked_on_device=\n_stacked_on_minor=\n");
                    None
                }
            };
            for volume in resource.own_volumes() {
                if let Some(below) = lower_volumes.as_mut().and_then(Iterator::next) {
                    self.print_assignment("_stacked_on_device", below.device.as_deref().unwrap_or(""));
                    self.print(&format!("_stacked_on_minor={}\n", below.minor_or_unknown()));
                }
                self.print(&format!("_conf_volume={}\n", volume.number));
                let work = Work {
                    resource: std::rc::Rc::new(resource.clone()),
                    identity: index,
                    volume: Some(volume.clone()),
                    verb: self.command.name.to_owned(),
                };
                let status = self.setup_verb(&work, Limit::Short)?;
                if status != 0 {
                    return Ok(status);
                }
            }
        }
        Ok(0)
    }

    fn print_assignment(&mut self, name: &str, value: &str) {
        let mut line = format!("{name}=").into_bytes();
        line.extend(shell_escape(value));
        line.push(b'\n');
        self.system.print(&line);
    }
}
