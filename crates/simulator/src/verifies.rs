//! Online verifies: as disks that are in sync are equal, a verify calls no block different, whatever is written meanwhile; and
//! it judges every block.
//!
//! The bits that are set afterwards say nothing of that: earlier ones stay, such as those of a full resync that a loss of
//! power ended before it began (io spec 16 item 7 and 23.12; states spec 10.2: "No resync, but n bits in bitmap!").

use std::collections::BTreeMap;

use udrbd_units::{ConnectionState, DiskState, Sector, SectorRange};
use udrbd_wire::{BlockAck, BlockId, Packet};

use crate::network::NodeId;
use crate::node::VolumeIndex;
use crate::world::World;

/// What a node that verifies has asked for and judged.
#[derive(Debug, Default)]
pub(crate) struct Verifying {
    /// The first sector and the end of what it has asked for; `None`: nothing yet.
    asked: Option<(u64, u64)>,
    /// The size of the volume when it began.
    size: u64,
    /// What it has judged: the first sectors and the ends, without what touches.
    judged: BTreeMap<u64, u64>,
}

impl Verifying {
    fn judge(&mut self, range: SectorRange) {
        let (mut start, mut end) = (range.start.0, range.end().0);
        if let Some((before, until)) = self.judged.range(..=start).next_back().map(|(a, b)| (*a, *b))
            && until >= start
        {
            start = before;
            end = end.max(until);
        }
        while let Some((after, until)) = self.judged.range(start..=end).next().map(|(a, b)| (*a, *b)) {
            self.judged.remove(&after);
            end = end.max(until);
        }
        self.judged.insert(start, end);
    }
}

impl World {
    /// A node sends a packet, perhaps of its verify.
    pub(crate) fn verify_passes(&mut self, node: NodeId, volume: VolumeIndex, packet: &Packet) {
        match packet {
            Packet::VerifyRequest(request) => {
                let (start, end) = (request.sector.0, request.range().end().0);
                let asked = self.nodes[node].volumes[volume].verifying.asked.get_or_insert((start, start));
                if start > asked.1 {
                    let text = format!("node {node} asks for sector {start} after sector {}", asked.1);
                    self.fail("a verify leaves nothing out", text);
                } else {
                    asked.1 = asked.1.max(end);
                }
            }
            Packet::VerifyResult(ack) => self.judged(node, volume, ack),
            _ => {}
        }
    }

    fn judged(&mut self, node: NodeId, volume: VolumeIndex, ack: &BlockAck) {
        self.coverage.check("verified blocks");
        let range = ack.range();
        self.nodes[node].volumes[volume].verifying.judge(range);
        // What cannot be read counts as different.
        let readable = self.nodes.iter().all(|node| node.volumes[volume].failing.is_none());
        // Nobody promises that the new part of a device is equal before it is written or resynced.
        let new_part = self.new_part(volume);
        let rotten = self.may_be_rotten(volume, range);
        if ack.block_id != BlockId::IN_SYNC && readable && range.start < new_part && !rotten {
            let text = format!("node {node} calls sector {} +{} different", range.start, range.bytes);
            self.fail("a verify finds nothing in equal disks", text);
        }
        self.rot_judged(node, volume, ack);
    }

    /// The state of a node's connection has changed: whether its verify begins, or has come to its end.
    pub(crate) fn verify_changed(
        &mut self,
        node: NodeId,
        volume: VolumeIndex,
        before: ConnectionState,
        present: ConnectionState,
        disks: [DiskState; 2],
    ) {
        if before == present {
            return;
        }
        let Sector(size) = self.nodes[node].volume(volume).map_or(Sector(0), |volume| volume.size);
        let begun = Verifying { size, ..Verifying::default() };
        let verifying = std::mem::replace(&mut self.nodes[node].volumes[volume].verifying, begun);
        let good = disks == [DiskState::UpToDate; 2];
        if before != ConnectionState::VerifyS || present != ConnectionState::Connected || !good {
            return;
        }
        self.coverage.check("verifies");
        self.rot_counted(node, volume);
        let size = verifying.size;
        let start = verifying.asked.map_or(0, |(start, _)| start);
        if verifying.judged != BTreeMap::from([(start, size)]) {
            let judged = &verifying.judged;
            let text =
                format!("node {node} verified {judged:?} of sectors {start} to {size} of volume {volume}");
            self.fail("a verify judges every block", text);
        }
    }
}
