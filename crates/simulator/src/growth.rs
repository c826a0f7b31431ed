//! Devices that grow while they serve, and while they do not (states spec 18). What is on the new part of a device is arbitrary,
//! and another thing on each node: where both grow together it has to be resynced before the nodes may call it equal, and
//! elsewhere it is at least marked until it is (`docs/testing.md`).

use std::rc::Rc;

use udrbd_engine::interface::{Command, Event, ResizeRequest};
use udrbd_metadata::attach::{Unclean, read_superblock};
use udrbd_metadata::{Layout, Placement, Striping, Superblock};
use udrbd_units::{ConnectionState, Sector, SectorRange};

use crate::deeds::sprinkle;
use crate::disk::{Change, Data, Disk, Write};
use crate::machine::number;
use crate::network::NodeId;
use crate::node::{Node, Purpose, VolumeIndex};
use crate::plan::{Operation, Step};
use crate::random::Random;
use crate::world::World;

/// How many sectors a piece of what is found on a new part has at most.
const PIECE: u64 = 16;

/// Adds devices that grow to a plan.
pub(crate) fn plan(random: &mut Random, steps: &mut Vec<Step>) {
    let count = random.between(1, 3);
    sprinkle(random, steps, count, |random| Operation::Grow {
        nodes: random.pick(&[[true, true], [true, true], [true, false], [false, true]]),
        sectors: random.between(1, 6 * 2048),
    });
    let count = random.between(2, 6);
    sprinkle(random, steps, count, |random| Operation::Resize { node: random.below(2) as NodeId });
}

/// The superblock of a disk whose device has been of these sizes, the last one the present one, and where its metadata are.
/// They move with the end of the device, but not before somebody has had it resized.
pub(crate) fn find_metadata(disk: &Disk, sizes: &[u64]) -> Option<(u64, Superblock, Layout)> {
    sizes.iter().rev().find_map(|size| {
        let device = Sector(*size);
        let place = Placement::Internal.superblock(device)?;
        let block: [u8; 4096] = disk.metadata_bytes(place.0, 8).try_into().ok()?;
        let (superblock, layout) =
            read_superblock(&block, Placement::Internal, device, Unclean::Accept).ok()?;
        Some((*size, superblock, layout))
    })
}

impl World {
    /// Devices of a volume grow.
    pub(crate) fn grow(&mut self, nodes: [bool; 2], sectors: u64) {
        self.coverage.fault("device grows");
        let volume = self.some_volume();
        for node in (0..2).filter(|node| nodes[*node]) {
            let before = self.layout(node, volume).map_or(0, |layout| layout.first_sector().0);
            let sizes = &mut self.nodes[node].volumes[volume].sizes;
            let size = sizes.last().copied().unwrap_or(0) + sectors;
            sizes.push(size);
            let after = self.layout(node, volume).map_or(0, |layout| layout.first_sector().0);
            self.find_garbage(node, volume, before, after);
            let (backing, metadata) = (Sector(size), Sector(size));
            self.feed(node, Event::DeviceSize { volume: number(volume), backing, metadata });
        }
    }

    /// Something is on the new part of a device, which nobody wrote to it as a client.
    fn find_garbage(&mut self, node: NodeId, volume: VolumeIndex, start: u64, end: u64) {
        if start >= end {
            return;
        }
        let middle = start + (end - start) / 2;
        for first in [start, middle, end.saturating_sub(PIECE).max(start)] {
            let sectors = PIECE.min(end - first);
            let range = SectorRange::new(Sector(first), (sectors * 512) as u32);
            let found = self.checker.find_on_disk(node, volume, range);
            let items = (0..sectors).map(|offset| (offset, found)).collect();
            let change = Change::Data { start: first, data: Rc::new(Data { sectors, items }) };
            self.nodes[node].volumes[volume].disk.complete(&Write { change, preflush: None, fua: true });
        }
    }

    /// An operator has the new size used, of what both nodes have. One who cannot reach the peer may say that it has the space,
    /// where he knows.
    pub(crate) fn resize(&mut self, node: NodeId) {
        self.coverage.fault("resize");
        for volume in 0..self.nodes[node].volumes.len() {
            let capacity = |node| self.layout(node, volume).map_or(0, |layout| layout.first_sector().0);
            let apart = self.nodes[node].connection(volume) < ConnectionState::Connected;
            let assume_peer_has_space = apart && capacity(1 - node) >= capacity(node);
            let request = ResizeRequest { assume_peer_has_space, ..ResizeRequest::default() };
            self.command(node, volume, Purpose::Other, Command::Resize { volume: number(volume), request });
        }
    }

    /// Where the part of a volume begins that it did not have at first on both nodes.
    pub(crate) fn new_part(&self, volume: VolumeIndex) -> Sector {
        let first = |node: &Node| node.volumes[volume].sizes.first().copied();
        let layout = |size: u64| Layout::new(Placement::Internal, Sector(size), Striping::DEFAULT).ok();
        let starts =
            self.nodes.iter().filter_map(first).filter_map(layout).map(|layout| layout.first_sector());
        starts.min().unwrap_or(Sector(u64::MAX))
    }

    /// The metadata tool's work before an attach: it moves the metadata of a device that has grown to its new end.
    pub(crate) fn check_resize(&mut self, node: NodeId, volume: VolumeIndex) {
        let own = &mut self.nodes[node].volumes[volume];
        let Some(now) = own.sizes.last().copied() else { return };
        let Some((size, _, layout)) = find_metadata(&own.disk, &own.sizes) else { return };
        let (true, Some(place)) = (size != now, Placement::Internal.superblock(Sector(now))) else { return };
        let (from, end) = (layout.first_sector().0, layout.superblock.0 + 8);
        let bytes = own.disk.metadata_bytes(from, end - from);
        let change = Disk::metadata_change(place.0 + 8 - (end - from), &bytes);
        own.disk.complete(&Write { change, preflush: None, fua: true });
        self.coverage.fault("metadata moved");
    }

    /// A node has a size to serve: clients use all of it.
    pub(crate) fn size_told(&mut self, volume: VolumeIndex, size: Sector) {
        let regions = &mut self.plan.settings.regions[volume];
        let end = regions.iter().map(|(start, count)| start + count).max().unwrap_or(0);
        let blocks = size.0 / 8;
        if self.nodes.iter().any(|node| node.volumes[volume].sizes.len() > 1) && blocks > end {
            let count = 20.min(blocks - end);
            regions.extend([(end, count), (blocks - count, count)]);
        }
    }
}
