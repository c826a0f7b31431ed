//! Clients that outlive a server: a block device whose daemon has died keeps its requests until the next daemon takes
//! it over. Meanwhile the peer may have been Primary. Then the data here have become other data than those clients
//! know, and their requests must never reach them.
//!
//! Whether they may go on is told by the generation they were last served: data that somebody else has written have
//! another one, but for what a connected peer writes, which is remembered apart.

use udrbd_units::{ConnectionState, DiskState, GenerationId, Role};

use crate::Engine;
use crate::interface::{Failure, WaitingClients};
use crate::state::StateChangeResult;
use crate::volume::Volume;

/// What a refused promotion says.
const CHANGED: &str = "requests wait that were made of other data: they have been written elsewhere since";

impl Volume {
    /// The generation of the data that clients see. While the own disk is being resynced they see the peer's.
    pub(crate) fn served_generation(&self) -> GenerationId {
        let resynced = self.state.disk == DiskState::Inconsistent
            && self.state.connection >= ConnectionState::Connected
            && self.state.peer_disk == DiskState::UpToDate;
        match self.peer_generations.filter(|_| resynced) {
            Some(peer) => peer.current,
            None => self.exposed,
        }
    }

    /// The peer has written to this volume.
    pub(crate) const fn note_peer_write(&mut self) {
        if let Some(clients) = &mut self.clients {
            clients.overwritten = true;
        }
    }

    /// Whether clients that wait for a server, if there are any, may go on with the data there are now.
    pub(crate) fn waiting_clients_may_go_on(&self) -> bool {
        let Some(clients) = self.clients else { return true };
        if clients.overwritten || !clients.served.is_some() {
            return false;
        }
        let is_served = |generation: GenerationId| generation.same_generation(clients.served);
        // What this node started when it had lost its peer, or died, has the served one in its bitmap slot. After a
        // resync from somebody else that slot is empty.
        if self.state.disk >= DiskState::Consistent {
            return self
                .disk
                .as_ref()
                .is_some_and(|disk| is_served(disk.superblock.current) || is_served(disk.superblock.bitmap));
        }
        self.state.peer_disk == DiskState::UpToDate
            && self.peer_generations.is_some_and(|peer| is_served(peer.current))
    }
}

impl Engine {
    /// Told when a block device is found that outlived its daemon, and when it is served again or gone.
    pub(crate) fn clients_wait(&mut self, index: usize, clients: Option<WaitingClients>) {
        self.volumes[index].clients = clients;
        self.state_changed();
    }

    /// Refuses a promotion which would let requests go on that were made of other data.
    pub(crate) fn refuse_to_serve(&self, index: usize) -> Option<Failure> {
        let volume = &self.volumes[index];
        let refused = volume.state.role == Role::Secondary && !volume.waiting_clients_may_go_on();
        refused
            .then(|| Failure::State { code: StateChangeResult::DeviceInUse, info: vec![CHANGED.to_owned()] })
    }
}
