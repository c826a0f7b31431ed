//! What the engine shows of itself.

use udrbd_units::{DiskState, VolumeNumber};

use crate::Engine;
use crate::bitmap::Region;
use crate::connection::WriteOrdering;
use crate::interface::{ConnectionStatus, ResourceStatus, VolumeStatus};
use crate::state::{highest_peer, highest_role};

impl Engine {
    /// The state of everything, as it is now.
    pub fn status(&self) -> ResourceStatus {
        let volumes = (0..self.volumes.len())
            .filter(|index| !self.volumes[*index].removed)
            .map(|index| self.volume_status(index))
            .collect();
        ResourceStatus {
            role: highest_role(self.volume_states()),
            suspended_user: self.suspension.user,
            suspended_no_data: self.suspension.no_data,
            suspended_fencing: self.suspension.fencing,
            options: self.options,
            connection: ConnectionStatus {
                state: self.connection.state,
                peer_role: highest_peer(self.volume_states()),
                options: self.connection.options.clone(),
                agreed_version: self.connection.agreed_version,
                epochs: self.connection.epochs.len() as u32,
                write_ordering: match self.connection.write_ordering {
                    WriteOrdering::Flush => 'f',
                    WriteOrdering::Drain => 'd',
                    WriteOrdering::None => 'n',
                },
            },
            volumes,
        }
    }

    fn volume_status(&self, index: usize) -> VolumeStatus {
        let volume = &self.volumes[index];
        let disk = volume.disk.as_ref();
        let mut counters = volume.counters;
        counters.application_pending = volume.admitted;
        counters.out_of_sync_sectors = volume.set_bits() * 8;
        VolumeStatus {
            volume: volume.number,
            minor: volume.minor,
            role: volume.state.role,
            peer_role: volume.state.peer,
            connection: volume.state.connection,
            disk: volume.state.disk,
            peer_disk: volume.state.peer_disk,
            paused_by_user: volume.state.user_isp,
            paused_by_peer: volume.state.peer_isp,
            paused_by_dependency: volume.state.after_isp,
            al_suspended: false,
            use_degraded_timeout: volume.flags.use_degraded_wfc_timeout,
            blocked: !self.may_admit(index),
            size: volume.size,
            options: disk.map(|disk| disk.options.clone()),
            generations: self.generations(index).map(|set| set.to_array()),
            metadata_flags: disk.map_or(0, |disk| disk.superblock.flags.0),
            exposed_generation: volume.exposed,
            served_generation: volume.served_generation(),
            waiting_clients: volume.clients,
            clients_may_go_on: volume.waiting_clients_may_go_on(),
            counters,
            split_brain: volume.split_brain.clone(),
            progress: volume.resync.running.then(|| volume.resync.progress(self.now, volume.set_bits())),
        }
    }

    /// Where a volume's blocks differ from the peer's, as far as this node knows, in at most about `limit` regions; `None`
    /// without a disk.
    pub fn changed_regions(&self, volume: VolumeNumber, limit: usize) -> Option<Vec<Region>> {
        let disk = self.volumes[self.volume_index(volume)?].disk.as_ref()?;
        Some(disk.bitmap.regions(limit))
    }

    /// Whether a volume has a disk attached, or is on the way there or back: what `attach` refuses with 124.
    pub fn has_disk_configured(&self, volume: VolumeNumber) -> bool {
        self.volume_index(volume).is_some_and(|index| self.volumes[index].state.disk > DiskState::Diskless)
    }
}
