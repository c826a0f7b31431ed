//! The size of a volume (states spec 18).

use udrbd_units::{ConnectionState, DiskState, Role, Sector};

use crate::Engine;
use crate::interface::{Action, Level};
use crate::state::StateRequest;

impl Engine {
    /// The device has this size from now on.
    pub(crate) fn set_size(&mut self, index: usize, size: Sector) {
        self.volumes[index].size = size;
        let kib = size.0 / 2;
        let text = format!("size = {} ({kib} KB)", udrbd_metadata::generation::human_size(kib));
        self.say(Level::Info, Some(index), text);
        self.tell_device(index);
        self.state_changed();
    }

    /// The runtime learns what the front end of a volume has to be.
    pub(crate) fn tell_device(&mut self, index: usize) {
        let volume = &self.volumes[index];
        self.out.push(Action::Device {
            volume: volume.number,
            minor: volume.minor,
            role: volume.state.role,
            size: volume.size,
        });
    }

    /// Applies a size both nodes have agreed on to the disk. The pages of the new bits are on disk before the superblock
    /// that counts them in.
    pub(crate) fn apply_size(&mut self, index: usize, size: Sector, assume_clean: bool) {
        let Some(disk) = &mut self.volumes[index].disk else { return };
        disk.bitmap.resize(size, !assume_clean);
        disk.superblock.la_size_sect = size;
        self.write_changed_pages_before_superblock(index);
        self.touch_superblock(index);
        self.volumes[index].counters.out_of_sync_sectors = self.volumes[index].set_bits() * 8;
        self.set_size(index, size);
    }

    /// The device has grown while both nodes know each other: the new part is resynced (states spec 18.5).
    pub(crate) fn resync_grown_part(&mut self, index: usize, assume_clean: bool) {
        let state = self.volumes[index].state;
        if state.disk < DiskState::Inconsistent || state.peer_disk < DiskState::Inconsistent {
            self.volumes[index].flags.resync_after_negotiating = true;
        } else if assume_clean {
            let text = "Resync of new storage suppressed with --assume-clean".to_owned();
            self.say(Level::Info, Some(index), text);
        } else {
            self.resync_after_grow(index);
        }
    }

    /// Starts the resync of the new part; no bitmaps are exchanged.
    pub(crate) fn resync_after_grow(&mut self, index: usize) {
        self.say(Level::Info, Some(index), "Resync of new storage after online grow".to_owned());
        let state = self.volumes[index].state;
        let source = match (state.role, state.peer) {
            (Role::Primary, peer) if peer != Role::Primary => true,
            (own, Role::Primary) if own != Role::Primary => false,
            _ => self.connection.resolve_conflicts,
        };
        if source {
            self.start_resync(index, ConnectionState::SyncSource);
        } else {
            self.change_state(index, StateRequest::connection(ConnectionState::WFSyncUUID));
        }
    }
}
