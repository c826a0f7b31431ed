//! Waiting for the peers: `wait-connect`, `wait-con-int` (cli spec 5).

use udrbd_config::model::find_option;
use udrbd_config::number::leading_digits;

use super::Exit;
use super::calls::{Limit, Request, option_words, words};
use super::session::{Session, Work};
use super::system::{Helper, WaitDialog};

/// How long a stacked resource waits if `connect-int` is not configured, in seconds.
const STACKED_TIMEOUT: u32 = 20;
/// The status of `drbdsetup wait-verify` where the copies differ.
const DIFFERENT: i32 = 1;

impl Session<'_> {
    /// Waits for the peer of one volume.
    pub(super) fn wait_connect(&mut self, work: &Work) -> Result<i32, Exit> {
        let resource = &work.resource;
        let minor = work.volume.as_ref().map_or(u32::MAX, udrbd_config::Volume::minor_or_unknown);
        let mut arguments = words!["wait-connect", minor.to_string()];
        if self.stacked_mode && !resource.stacked_timeouts {
            let timeout = find_option(&resource.net, "connect-int")
                .map_or(STACKED_TIMEOUT, |option| leading_digits(option.text()).saturating_mul(2));
            arguments.extend(words!["--wfc-timeout", timeout.to_string()]);
        } else {
            arguments.extend(option_words(&resource.startup));
        }
        self.call(&Request::new(Helper::Setup, arguments, Limit::Forever), &resource.name)
    }

    /// Starts a verify. With `--wait`, waits for its end, and says by the status whether the copies differ; with `--repair`
    /// has the differing blocks copied from the Primary, as disconnecting and connecting does.
    pub(super) fn verify(&mut self, work: &Work) -> Result<i32, Exit> {
        let status = self.setup_verb(work, Limit::Short)?;
        if status != 0 || !self.line.wait {
            return Ok(status);
        }
        let minor = work.volume.as_ref().map_or(u32::MAX, udrbd_config::Volume::minor_or_unknown).to_string();
        let mut arguments = words!["wait-verify", minor.clone()];
        if self.line.repair {
            arguments.push("--repair".to_owned());
        }
        let name = work.resource.name.clone();
        let status = self.call(&Request::new(Helper::Setup, arguments, Limit::Forever), &name)?;
        if status != DIFFERENT || !self.line.repair {
            return Ok(status);
        }
        for status in [self.disconnect(work)?, self.connect(work)?] {
            if status != 0 {
                return Ok(status);
            }
        }
        let wait = Request::new(Helper::Setup, words!["wait-sync", minor], Limit::Forever);
        self.call(&wait, &name)
    }

    /// Waits for the peers of all volumes at once, as long as the operator wants to.
    pub(super) fn wait_connect_interactive(&mut self) -> Result<i32, Exit> {
        let warning = "WARN: stdin/stdout is not a TTY; using /dev/console";
        let elsewhere = !self.system.has_terminal();
        if elsewhere {
            self.complain(warning);
            if self.line.dry_run > 0 {
                self.print(warning);
            }
        }
        let mut calls = Vec::new();
        let resources = self.configuration.resources.clone();
        for resource in &resources {
            if resource.ignored || resource.stacked != self.stacked_mode {
                continue;
            }
            for volume in resource.own_volumes() {
                let mut arguments = words!["wait-connect", volume.minor_or_unknown().to_string()];
                arguments.extend(option_words(&resource.startup));
                let call = self.prepared(&Request::new(Helper::Setup, arguments, Limit::Forever));
                self.show_call(&call, &resource.name);
                calls.push(call);
            }
        }
        if self.line.dry_run > 0 {
            return Ok(0);
        }
        if calls.is_empty() {
            // Where the dialog is elsewhere nothing else comes to standard output.
            if elsewhere {
                self.print(warning);
            }
            return Ok(0);
        }
        let Some(first) = resources.first() else { return Ok(0) };
        let timeout =
            |name: &str| find_option(&first.startup, name).map_or("0", |option| option.text()).to_owned();
        let text = format!(
            "\n***************************************************************\n \
             DRBD's startup script waits for the peer node(s) to appear.\n \
             - If this node was already a degraded cluster before the\n   \
             reboot, the timeout is {} seconds. [degr-wfc-timeout]\n \
             - If the peer was available before the reboot, the timeout\n   \
             is {} seconds. [wfc-timeout]\n   \
             (These values are for resource '{}'; 0 sec -> wait forever)\n",
            timeout("degr-wfc-timeout"),
            timeout("wfc-timeout"),
            first.name
        );
        let refresh_seconds = self.configuration.global.dialog_refresh;
        self.system.wait_for_all(&calls, &WaitDialog { text, refresh_seconds });
        Ok(0)
    }
}
