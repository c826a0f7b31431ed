//! Differences that nobody marked: a disk that has rotted, or that somebody wrote to past the mirror. Only an online verify finds
//! them (io spec 16), and the resync after it mends them. They are put where no client has written, so that what may be read there
//! stays simple: what either disk holds.
//!
//! Until a verify has told of such a difference nobody promises anything of it. From then on it is counted out of sync, and the
//! end of the next resync finds both disks equal.

use std::ops::Range;
use std::rc::Rc;

use udrbd_units::{DiskState, Sector, SectorRange};
use udrbd_wire::{BlockAck, BlockId};

use crate::deeds::sprinkle;
use crate::disk::{Change, Data, Write};
use crate::network::NodeId;
use crate::node::VolumeIndex;
use crate::plan::{Operation, Step};
use crate::random::Random;
use crate::world::World;

/// Most blocks in a place that rots.
const BLOCKS: u64 = 40;
/// How many places are tried before the disk stays as it is.
const TRIES: u32 = 8;

/// Adds differences, and verifies that come after some of them, to a plan that has verifies.
pub(crate) fn plan(random: &mut Random, steps: &mut Vec<Step>) {
    let count = random.between(1, 4);
    sprinkle(random, steps, count, |random| Operation::Rot { node: random.below(2) as NodeId });
    let count = random.between(1, 4);
    sprinkle(random, steps, count, |random| Operation::Verify { node: random.below(2) as NodeId });
}

impl World {
    /// A place of a disk no longer holds what the mirror has, where no client has written.
    pub(crate) fn rot(&mut self, node: NodeId) {
        let volume = self.some_volume();
        // Who compares a block at this moment may see either.
        if !self.are_equal[volume] {
            return;
        }
        for _ in 0..TRIES {
            let range = self.some_place(volume);
            let busy = self.busy_ranges(volume).iter().any(|busy| busy.overlaps(range));
            if range.bytes == 0 || busy || !self.checker.is_untouched(volume, range) {
                continue;
            }
            self.coverage.fault("disk rots");
            let found = self.checker.find_on_disk(node, volume, range);
            let sectors = range.sectors();
            let items = (0..sectors).map(|offset| (offset, found)).collect();
            let change = Change::Data { start: range.start.0, data: Rc::new(Data { sectors, items }) };
            self.nodes[node].volumes[volume].disk.complete(&Write { change, preflush: None, fua: true });
            self.rotten[volume].extend((range.start.0..range.end().0).map(|sector| (sector, false)));
            let text = format!("the disk of node {node} rots at sector {} +{}", range.start, range.bytes);
            self.say(&text);
            return;
        }
    }

    /// Some sectors of a volume, often its first or last ones.
    fn some_place(&mut self, volume: VolumeIndex) -> SectorRange {
        let Sector(size) = self.in_use(volume);
        let sectors = self.random.between(1, BLOCKS * 8).min(size);
        let start = match self.random.below(4) {
            0 => 0,
            1 => size - sectors,
            _ => self.random.below(size - sectors + 1),
        };
        SectorRange::new(Sector(start), (sectors * 512) as u32)
    }

    /// The rotten sectors of a range in which the disks differ now.
    fn still_rotten(&self, volume: VolumeIndex, sectors: Range<u64>) -> Vec<u64> {
        let [one, other] = [0, 1].map(|node: NodeId| &self.nodes[node].volumes[volume].disk.data);
        let rotten = self.rotten[volume].range(sectors).map(|(sector, _)| *sector);
        rotten.filter(|sector| one.sector(*sector) != other.sector(*sector)).collect()
    }

    /// Whether somewhere in a range a disk has rotted, and no resync has ended since it was told.
    pub(crate) fn may_be_rotten(&self, volume: VolumeIndex, range: SectorRange) -> bool {
        self.rotten[volume].range(range.start.0..range.end().0).next().is_some()
    }

    /// A node that verifies has judged a range.
    pub(crate) fn rot_judged(&mut self, node: NodeId, volume: VolumeIndex, ack: &BlockAck) {
        let range = ack.range();
        let rotten = self.still_rotten(volume, range.start.0..range.end().0);
        // Whoever lost its disk meanwhile has nothing to compare.
        let comparable = self.nodes.iter().all(|node| {
            node.volumes[volume].failing.is_none() && node.disk_state(volume) == DiskState::UpToDate
        });
        if ack.block_id == BlockId::IN_SYNC
            && comparable
            && let Some(sector) = rotten.first()
        {
            let text = format!(
                "node {node} calls sector {} +{} the same: {sector} is not",
                range.start, range.bytes
            );
            self.fail("a verify finds what differs", text);
        }
        if ack.block_id != BlockId::IN_SYNC {
            self.coverage.check("differences told");
            for sector in rotten {
                self.rotten[volume].insert(sector, true);
            }
        }
    }

    /// A verify of a node has come to its end: what it told of is counted out of sync.
    pub(crate) fn rot_counted(&mut self, node: NodeId, volume: VolumeIndex) {
        // What a client has written since is in sync again, and differs while more is written there.
        let busy = self.busy_ranges(volume);
        let is_busy =
            |sector: u64| busy.iter().any(|range| range.start.0 <= sector && sector < range.end().0);
        let told = |sector: &u64| self.rotten[volume].get(sector) == Some(&true) && !is_busy(*sector);
        let mut blocks: Vec<u64> = self
            .still_rotten(volume, 0..u64::MAX)
            .into_iter()
            .filter(told)
            .map(|sector| sector / 8)
            .collect();
        blocks.dedup();
        let status = self.nodes[node].volume(volume);
        let counted = status.map_or(0, |status| status.counters.out_of_sync_sectors / 8);
        if counted < blocks.len() as u64 {
            let text = format!("node {node} counts {counted} blocks, {} were told", blocks.len());
            self.fail("a verify marks what it tells of", text);
        }
    }

    /// A resync has come to its end: what had been told of is equal.
    pub(crate) fn rot_resynced(&mut self, volume: VolumeIndex) {
        let before = self.rotten[volume].len();
        self.rotten[volume].retain(|_, told| !*told);
        if self.rotten[volume].len() < before {
            self.coverage.check("rot mended");
        }
    }

    /// What a node knew is lost with its daemon or its disk, perhaps before it was on the medium.
    pub(crate) fn rot_forgotten(&mut self, volume: VolumeIndex) {
        self.rotten[volume].values_mut().for_each(|told| *told = false);
    }

    /// Whether nobody promises that a sector is the same on both disks.
    pub(crate) fn is_rotten(&self, volume: VolumeIndex, sector: u64) -> bool {
        self.rotten[volume].contains_key(&sector)
    }
}
