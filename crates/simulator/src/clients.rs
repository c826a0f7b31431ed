//! Clients of the device: reads, writes, flushes, discards on whichever node is Primary.

use std::rc::Rc;

use udrbd_engine::interface::{Buffer, ClientError, ClientRequest as Request, Event, Operation, RequestId};
use udrbd_units::{ConnectionState, DiskState, Sector, SectorRange};

use crate::disk::Data;
use crate::machine::{number, zeroes};
use crate::network::NodeId;
use crate::node::{ClientRequest, Mirrored, VolumeIndex};
use crate::plan::SECOND;
use crate::world::{Due, InTransit, World};

/// How long clients wait for a Primary before they give up.
const PATIENCE: u64 = 15 * SECOND;

impl World {
    /// Clients have something to do.
    pub(crate) fn load(&mut self, requests: u32, depth: u32) {
        self.budget += requests;
        self.depth = depth;
        self.clients_since = self.now;
        self.call_clients(0);
    }

    pub(crate) fn call_clients(&mut self, delay: u64) {
        if !self.clients_due {
            self.clients_due = true;
            self.after(delay, Due::Clients);
        }
    }

    /// How long a client waits before its next request.
    fn think(&mut self) -> u64 {
        match self.plan.settings.think {
            0 if self.random.one_in(8) => self.random.between(0, SECOND / 50),
            0 => 0,
            think => self.random.between(0, think),
        }
    }

    /// Issues what may be issued.
    pub(crate) fn run_clients(&mut self) {
        while self.budget > 0 && self.violation.is_none() {
            let places = (0..2).flat_map(|node| (0..self.are_equal.len()).map(move |volume| (node, volume)));
            let primaries: Vec<(NodeId, VolumeIndex)> =
                places.filter(|(node, volume)| self.nodes[*node].serves(*volume)).collect();
            if primaries.is_empty() {
                if self.now > self.clients_since + PATIENCE {
                    self.budget = 0;
                } else {
                    self.call_clients(SECOND / 10);
                }
                return;
            }
            let (node, volume) = self.random.pick(&primaries);
            if self.nodes[node].requests.len() >= self.depth as usize {
                return;
            }
            self.budget -= 1;
            self.clients_since = self.now;
            self.issue(node, volume);
            if self.budget > 0 && self.plan.settings.think > 0 {
                let delay = self.think();
                self.call_clients(delay);
                return;
            }
        }
    }

    fn issue(&mut self, node: NodeId, volume: VolumeIndex) {
        let (reads, flushes, discards) = self.plan.settings.mix;
        let kind = self.random.below(100);
        let (fua, partial) = (self.plan.settings.fua, self.plan.settings.partial);
        if kind < reads {
            let range = self.range(volume, partial);
            self.request(node, volume, Operation::Read, range);
        } else if kind < reads + flushes {
            self.request(node, volume, Operation::Flush, SectorRange::new(Sector(0), 0));
        } else if kind < reads + flushes + discards {
            let range = self.range(volume, partial);
            let operation = match self.random.below(3) {
                0 => Operation::WriteZeroes { may_unmap: self.random.one_in(2) },
                _ => Operation::Discard,
            };
            self.request(node, volume, operation, range);
        } else {
            let range = self.range(volume, partial);
            let fua = self.random.below(100) < fua;
            let preflush = fua && self.random.one_in(3);
            self.request(node, volume, Operation::Write { fua, preflush }, range);
        }
    }

    fn range(&mut self, volume: VolumeIndex, partial: u64) -> SectorRange {
        let place = self.random.below(self.plan.settings.regions[volume].len() as u64) as usize;
        let (start, count) = self.plan.settings.regions[volume][place];
        let first = start + self.random.below(count);
        let most = (start + count - first).min(self.plan.settings.blocks_max);
        let blocks = self.random.between(1, most);
        let (mut sector, mut sectors) = (first * 8, blocks * 8);
        if self.random.below(100) < partial {
            let skip = self.random.below(8);
            sector += skip;
            sectors = self.random.between(1, sectors - skip);
        }
        SectorRange::new(Sector(sector), (sectors * 512) as u32)
    }

    fn request(&mut self, node: NodeId, volume: VolumeIndex, operation: Operation, range: SectorRange) {
        let id = RequestId(self.next_request);
        self.next_request += 1;
        let issued;
        let (mut write, mut buffer, mut expected) = (0, None, Vec::new());
        let viewer = self.served_from(node, volume);
        match operation {
            Operation::Read => {
                issued = self.checker.tick();
                expected = self.checker.expected(viewer, volume, range);
                if self.is_cut_off(node, volume, viewer) {
                    let more = self.checker.expected(node, volume, range);
                    for (sector, more) in expected.iter_mut().zip(more) {
                        sector.extend(more);
                    }
                }
                buffer = Some(self.nodes[node].add_buffer(zeroes(range.sectors())));
            }
            Operation::Flush => issued = self.checker.tick(),
            Operation::Write { .. } => {
                (write, issued) = self.checker.issue_write(node, volume, range, false);
                let items = (0..range.sectors()).map(|offset| (offset, write)).collect();
                let data = Rc::new(Data { sectors: range.sectors(), items });
                buffer = Some(self.nodes[node].add_buffer(data));
            }
            Operation::Discard | Operation::WriteZeroes { .. } => {
                (write, issued) = self.checker.issue_write(node, volume, range, true);
            }
        }
        if self.is_tracing() {
            let text = format!("request {} is write {write}: {operation:?} {range:?} of {volume}", id.0);
            self.say(&text);
        }
        let mirrored_since = self.mirrored_since(node, volume);
        if mirrored_since.is_some() && write > 0 {
            self.checker.mirror(1 - node, write);
        }
        let own = &self.nodes[node].volumes[volume];
        let stored_since = own.storing.then_some(own.disk_losses);
        let request = ClientRequest {
            volume,
            operation,
            range,
            write,
            issued,
            buffer,
            mirrored_since,
            stored_since,
            expected,
        };
        self.nodes[node].requests.insert(id, request);
        self.feed(node, Event::Request(Request { id, volume: number(volume), operation, range, buffer }));
    }

    /// Since when a node's writes go to the peer, whose power, daemon and disk have been there as long; `None`: they do
    /// not.
    fn mirrored_since(&self, node: NodeId, volume: VolumeIndex) -> Option<Mirrored> {
        let [own, peer] = [node, 1 - node].map(|node| &self.nodes[node].volumes[volume]);
        let life = self.nodes[1 - node].life;
        let since = Mirrored { interruptions: own.interruptions, life, disk_losses: peer.disk_losses };
        (own.mirroring && peer.storing).then_some(since)
    }

    /// Whose disk a node's clients read.
    fn served_from(&self, node: NodeId, volume: VolumeIndex) -> NodeId {
        let own = &self.nodes[node];
        let good = matches!(own.disk_state(volume), DiskState::UpToDate | DiskState::Consistent);
        if !good && own.peer_disk_state(volume) == DiskState::UpToDate { 1 - node } else { node }
    }

    /// Whether a node reads on a disk whose node has parted from it and may write alone, which it does not know yet. Without
    /// fencing nothing keeps a second Primary from reading data of before then.
    fn is_cut_off(&self, node: NodeId, volume: VolumeIndex, viewer: NodeId) -> bool {
        viewer != node
            && self.plan.settings.net_options.allow_two_primaries
            && self.nodes[node].volumes[volume].storing
            && self.nodes[viewer].connection(volume) < ConnectionState::Connected
    }

    /// A request is complete.
    pub(crate) fn completed(
        &mut self,
        node: NodeId,
        id: RequestId,
        result: Result<(), ClientError>,
        data: Option<Buffer>,
    ) {
        let Some(request) = self.request_mut(node).remove(&id) else {
            self.fail("a request completes once", format!("{id:?} on node {node}"));
            return;
        };
        match (request.operation, result) {
            (Operation::Read, Ok(())) => self.read_completed(node, &request, data),
            (Operation::Flush, Ok(())) => self.flush_completed(node, &request),
            (Operation::Read | Operation::Flush, Err(_)) => {}
            (_, Ok(())) => self.write_completed(node, &request),
            (_, Err(_)) => {
                self.checker.give_up_write(request.write);
                self.checker.excuse_from_order(1 - node, request.write);
            }
        }
        if result.is_err() {
            self.coverage.check("requests that failed");
        }
        if let Some(buffer) = data {
            self.release(node, buffer);
        }
        if self.budget > 0 {
            let delay = self.think();
            self.call_clients(delay);
        }
    }

    fn read_completed(&mut self, node: NodeId, request: &ClientRequest, data: Option<Buffer>) {
        let Some(buffer) = data.or(request.buffer) else { return };
        let Some(found) = self.nodes[node].buffers.get(&buffer).cloned() else {
            self.fail("a read has its data", format!("{buffer:?} on node {node}"));
            return;
        };
        let volume = request.volume;
        let viewer = self.served_from(node, volume);
        let mut result = self.checker.complete_read(viewer, request, &found);
        if result.is_err() && self.is_cut_off(node, volume, viewer) {
            result = self.checker.complete_read(node, request, &found);
        }
        self.check("reads", result);
    }

    fn flush_completed(&mut self, node: NodeId, request: &ClientRequest) {
        let own = &self.nodes[node].volumes[request.volume];
        if request.stored_since != Some(own.disk_losses) {
            return;
        }
        let result = self.checker.complete_flush(&own.disk, node, request.volume, request.issued);
        self.check("flushes", result);
    }

    fn write_completed(&mut self, node: NodeId, request: &ClientRequest) {
        self.coverage.check("completed writes");
        let (write, volume) = (request.write, request.volume);
        let mut on =
            [0, 1].map(|disk: NodeId| self.checker.has(&self.nodes[disk].volumes[volume].disk, write, false));
        let name = format!("write {write} of {:?} of volume {volume} on node {node}", request.range);
        // A peer that acknowledged the write and lost power since may have lost it with its cache.
        let peer_failed = request.mirrored_since.is_some_and(|since| since.life != self.nodes[1 - node].life);
        // With protocol A the write may still be on its way to the peer: nothing is promised of that.
        let asynchronous = self.is_asynchronous();
        let sent =
            asynchronous && (request.mirrored_since.is_some() || self.nodes[node].volumes[volume].mirroring);
        if sent {
            self.in_transit.push(InTransit { issuer: node, write, volume, range: request.range });
            self.forget_what_arrived();
        }
        let on_its_way = self.in_transit.iter().any(|other| other.write == write);
        on[1 - node] &= !on_its_way;
        let contended =
            self.plan.settings.net_options.allow_two_primaries && self.checker.is_contended(write);
        if contended {
            self.coverage.check("writes of two nodes to one place");
            self.checker.excuse_from_order(1 - node, write);
        }
        if !on[0] && !on[1] && !peer_failed && !sent {
            self.fail("a completed write is on a disk", name);
            return;
        }
        let mirrored = !asynchronous
            && !contended
            && request.mirrored_since.is_some()
            && request.mirrored_since == self.mirrored_since(node, volume);
        if mirrored && !on[1 - node] {
            self.fail("a completed write is on both disks", format!("{name} is not on the peer's"));
            return;
        }
        let stored = request.stored_since == Some(self.nodes[node].volumes[volume].disk_losses);
        if stored && !on[node] {
            self.fail("a completed write is on both disks", format!("{name} is not on the own"));
            return;
        }
        if matches!(request.operation, Operation::Write { fua: true, .. }) {
            for (disk, wanted) in [(node, stored), (1 - node, mirrored)] {
                if wanted && !self.checker.has(&self.nodes[disk].volumes[volume].disk, write, true) {
                    self.fail("FUA means stable storage", format!("{name} can be lost on node {disk}"));
                }
            }
        }
        let good = [0, 1].map(|disk: NodeId| {
            !on_its_way && !contended && self.nodes[disk].disk_state(volume) >= DiskState::Consistent
        });
        // The acknowledgement was on its way when the peer lost power with what was in its cache, as if it had come just
        // before: this node does not know, and if it fails as well before it does, nobody can.
        let own = &self.nodes[node].volumes[volume];
        let believed = own.mirroring
            && request.mirrored_since.is_some_and(|since| since.interruptions == own.interruptions);
        self.checker.complete_write(write, node, on, good, believed && peer_failed);
        self.check_one_history(volume);
    }
}
