//! From Failed to Diskless (states spec 13.4).

use udrbd_units::DiskState;

use crate::Engine;
use crate::interface::Action;
use crate::state::StateRequest;
use crate::volume::TransactionStep;

impl Engine {
    /// Lets go of a failed disk once nothing of it is in flight and the bitmap is written. Returns whether something
    /// happened.
    pub(crate) fn run_detach(&mut self, index: usize) -> bool {
        // A handler that may reset this node comes first (states spec 13.4).
        if self.volumes[index].state.disk != DiskState::Failed || self.after_waits {
            return false;
        }
        if self.volumes[index].attaching.is_some() {
            return false;
        }
        if self.volumes[index].disk.is_none() {
            // The attach had not come far enough for there to be one.
            self.force_state(index, StateRequest::disk(DiskState::Diskless));
            self.drop_disk(index);
            return true;
        }
        let Some(disk) = &mut self.volumes[index].disk else { return false };
        let quiet = disk.operations == 0 && disk.transaction == TransactionStep::Idle;
        let Some(pass) = disk.detach_pages else {
            if !quiet || !disk.submit.is_empty() {
                return false;
            }
            let pass = self.write_changed_pages(index);
            if let Some(disk) = &mut self.volumes[index].disk {
                disk.detach_pages = Some(pass);
            }
            return true;
        };
        let written = disk.bitmap_io.is_finished(pass)
            && disk.bitmap_io.is_idle()
            && disk.superblock_durable >= disk.superblock_version;
        if !quiet || !written {
            return false;
        }
        self.force_state(index, StateRequest::disk(DiskState::Diskless));
        self.drop_disk(index);
        true
    }

    pub(super) fn drop_disk(&mut self, index: usize) {
        // Also of writes that have their extents and wait for an overlapping one.
        let here = self.requests.iter().filter(|(_, request)| request.volume == index);
        for key in here.map(|(key, _)| key).collect::<Vec<_>>() {
            self.requests[key].extents_held = 0;
        }
        let volume = &mut self.volumes[index];
        volume.disk = None;
        volume.current_due = None;
        volume.peer_extents = None;
        volume.counters.out_of_sync_sectors = 0;
        let number = volume.number;
        self.out.push(Action::CloseDisk { volume: number });
        self.write_ordering_may_change();
        self.attention = true;
    }
}
