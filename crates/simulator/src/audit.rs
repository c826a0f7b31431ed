//! The rule behind crash safety, looked at in the middle of things (io spec I1): if the power of both nodes went now,
//! everything in which their disks then differ would be marked in a bitmap or lie in an extent of an activity log, on
//! the medium.

use std::collections::BTreeSet;

use udrbd_metadata::{Flags, apply};
use udrbd_units::EXTENT_SECTORS;

use crate::check::Checker;
use crate::disk::Disk;
use crate::growth::find_metadata;
use crate::network::NodeId;
use crate::node::{NodeVolume, VolumeIndex};
use crate::world::World;

/// What a disk says may differ.
struct Covered {
    everything: bool,
    /// Sectors in use.
    size: u64,
    bits: Vec<u8>,
    extents: BTreeSet<u64>,
}

impl Covered {
    fn covers(&self, sector: u64) -> bool {
        let block = sector / 8;
        let bit = self.bits.get((block / 8) as usize).is_some_and(|byte| byte >> (block % 8) & 1 == 1);
        self.everything || bit || self.extents.contains(&(sector / EXTENT_SECTORS))
    }
}

impl World {
    /// Looks whether a loss of power of both nodes now would be survived.
    pub(crate) fn audit(&mut self) {
        if !self.were_equal.contains(&true) || self.violation.is_some() {
            return;
        }
        self.coverage.check("audits");
        let mut random = self.random.fork();
        let disks = [0, 1].map(|node: NodeId| {
            let without_power = |own: &NodeVolume| {
                let in_flight = own.in_flight.values().filter_map(|operation| operation.write());
                own.disk.without_power(&mut random, in_flight)
            };
            self.nodes[node].volumes.iter().map(without_power).collect::<Vec<_>>()
        });
        for (node, disks) in disks.iter().enumerate() {
            self.look_at_order(node);
            let order = self.checker.check_order(node, &disks.iter().collect::<Vec<_>>());
            self.check("a mirror keeps the order of writes", order);
        }
        for volume in 0..self.were_equal.len() {
            if self.were_equal[volume] {
                self.audit_marks(volume, disks.each_ref().map(|disks| &disks[volume]));
            }
        }
    }

    /// Looks whether everything in which two disks differ is marked on one of them.
    fn audit_marks(&mut self, volume: VolumeIndex, disks: [&Disk; 2]) {
        let found = Checker::differences(disks, &[]);
        if found.is_empty() {
            return;
        }
        let covered = [0, 1].map(|node| self.covered(node, volume, disks[node]));
        // What only one counts in comes out of sync where the other one grows.
        let sizes = covered.iter().flatten().map(|covered| covered.size);
        let size = sizes.filter(|size| *size > 0).min().unwrap_or(u64::MAX);
        for sector in found.into_iter().filter(|sector| *sector < size && !self.is_rotten(volume, *sector)) {
            if !covered.iter().flatten().any(|covered| covered.covers(sector)) {
                let values = disks.map(|disk| disk.data.sector(sector).copied().unwrap_or(0));
                let text = format!(
                    "after a loss of power now sector {sector} of volume {volume} would be {values:?}, and \
                     nothing would tell"
                );
                self.fail("what may differ is marked on disk", text);
                return;
            }
        }
    }

    /// Sectors that no client has ever written may differ where both devices were resized apart from each other: their bits are
    /// set, and stay so until the next resync (`No resync, but n bits in bitmap!`).
    pub(crate) fn without_marked_leftovers(&self, volume: VolumeIndex, found: &mut Vec<u64>) {
        let disks = [0, 1].map(|node: NodeId| &self.nodes[node].volumes[volume].disk);
        let is_leftover = |sector: &u64| {
            let mut values = disks.iter().map(|disk| disk.data.sector(*sector).copied().unwrap_or(0));
            values.all(|value| self.checker.is_leftover(value))
        };
        if found.iter().any(is_leftover) {
            let covered = [0, 1].map(|node| self.covered(node, volume, disks[node]));
            // On its way to a disk whose superblock does not count it in yet.
            let is_marked = |covered: &Covered, sector: u64| covered.covers(sector) || sector >= covered.size;
            let marked = |sector: u64| covered.iter().flatten().any(|covered| is_marked(covered, sector));
            found.retain(|sector| !(is_leftover(sector) && marked(*sector)));
        }
    }

    /// Whether the superblock on a disk says that it is consistent.
    pub(crate) fn says_consistent(&self, node: NodeId, volume: VolumeIndex) -> bool {
        let own = &self.nodes[node].volumes[volume];
        let found = find_metadata(&own.disk, &own.sizes);
        found.is_some_and(|(_, superblock, _)| superblock.flags.contains(Flags::CONSISTENT))
    }

    fn covered(&self, node: NodeId, volume: VolumeIndex, disk: &Disk) -> Option<Covered> {
        let (_, superblock, layout) = find_metadata(disk, &self.nodes[node].volumes[volume].sizes)?;
        let area = disk.metadata_bytes(layout.al_start().0, layout.al_bytes() / 512);
        let plan = apply::plan(&superblock, &area);
        let bitmap = disk.metadata_bytes(layout.bitmap_start().0, layout.bitmap_sectors());
        let extents = plan.writes.map(|writes| writes.mark).unwrap_or_default();
        Some(Covered {
            everything: superblock.flags.contains(Flags::FULL_SYNC) || superblock.la_size_sect.0 == 0,
            size: superblock.la_size_sect.0,
            bits: bitmap,
            extents: extents.into_iter().map(|extent| u64::from(extent.0)).collect(),
        })
    }
}
