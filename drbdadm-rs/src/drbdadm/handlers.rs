//! Handlers: `drbdadm HANDLER minor-N`, as the daemon calls it (cli spec 8).

use udrbd_config::model::find_option;

use super::Exit;
use super::calls::{Limit, Request, words};
use super::session::{Session, Work};
use super::system::Helper;

impl Session<'_> {
    /// Runs the configured handler in DRBD's environment; without one that is a success.
    pub(super) fn handler(&mut self, work: &Work) -> Result<i32, Exit> {
        let resource = &work.resource;
        let peer = resource.peer_host().or_else(|| {
            // With several possible peers, the caller says which by its address.
            let family = self.system.variable("DRBD_PEER_AF")?;
            let text = self.system.variable("DRBD_PEER_ADDRESS")?;
            resource.hosts.iter().find(|host| {
                host.address
                    .as_ref()
                    .is_some_and(|address| address.family == family && address.address == text)
            })
        });
        if let Some(peer) = peer {
            if let Some(address) = &peer.address {
                self.system.set_variable("DRBD_PEER_AF", &address.family);
                self.system.set_variable("DRBD_PEER_ADDRESS", &address.address);
            }
            self.system.set_variable("DRBD_PEER", peer.names.first().map_or("", String::as_str));
            self.system.set_variable("DRBD_PEERS", &udrbd_config::model::joined_names(&peer.names));
        }
        if let Some(volume) = &work.volume {
            self.system.set_variable("DRBD_MINOR", &volume.minor_or_unknown().to_string());
            self.system.set_variable("DRBD_VOLUME", &volume.number.to_string());
            self.system.set_variable("DRBD_LL_DISK", volume.disk.as_deref().unwrap_or(""));
        } else {
            let minors: Vec<String> =
                resource.own_volumes().iter().map(|volume| volume.minor_or_unknown().to_string()).collect();
            self.system.set_variable("DRBD_MINOR", &minors.join(" "));
        }
        self.system.set_variable("DRBD_RESOURCE", &resource.name);
        let file = self.file.clone();
        self.system.set_variable("DRBD_CONF", &file);
        let Some(handler) = find_option(&resource.handlers, &work.verb) else { return Ok(0) };
        let arguments = words!["-c", handler.text()];
        self.call(&Request::new(Helper::Shell, arguments, Limit::Long), &resource.name)
    }
}
