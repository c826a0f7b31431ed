//! Clients of the device: reads, writes, flushes, discards on whichever node is Primary.

use std::rc::Rc;

use udrbd_engine::interface::{Buffer, ClientError, ClientRequest as Request, Event, Operation, RequestId};
use udrbd_units::{ConnectionState, DiskState, Sector, SectorRange};

use crate::disk::Data;
use crate::machine::{VOLUME, zeroes};
use crate::network::NodeId;
use crate::node::{ClientRequest, Mirrored};
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
            let primaries: Vec<NodeId> = (0..2).filter(|node| self.nodes[*node].is_primary()).collect();
            if primaries.is_empty() {
                if self.now > self.clients_since + PATIENCE {
                    self.budget = 0;
                } else {
                    self.call_clients(SECOND / 10);
                }
                return;
            }
            let node = self.random.pick(&primaries);
            if self.nodes[node].requests.len() >= self.depth as usize {
                return;
            }
            self.budget -= 1;
            self.clients_since = self.now;
            self.issue(node);
            if self.budget > 0 && self.plan.settings.think > 0 {
                let delay = self.think();
                self.call_clients(delay);
                return;
            }
        }
    }

    fn issue(&mut self, node: NodeId) {
        let (reads, flushes, discards) = self.plan.settings.mix;
        let kind = self.random.below(100);
        let (fua, partial) = (self.plan.settings.fua, self.plan.settings.partial);
        if kind < reads {
            let range = self.range(partial);
            self.request(node, Operation::Read, range);
        } else if kind < reads + flushes {
            self.request(node, Operation::Flush, SectorRange::new(Sector(0), 0));
        } else if kind < reads + flushes + discards {
            let range = self.range(partial);
            let operation = match self.random.below(3) {
                0 => Operation::WriteZeroes { may_unmap: self.random.one_in(2) },
                _ => Operation::Discard,
            };
            self.request(node, operation, range);
        } else {
            let range = self.range(partial);
            let fua = self.random.below(100) < fua;
            let preflush = fua && self.random.one_in(3);
            self.request(node, Operation::Write { fua, preflush }, range);
        }
    }

    fn range(&mut self, partial: u64) -> SectorRange {
        let place = self.random.below(self.plan.settings.regions.len() as u64) as usize;
        let (start, count) = self.plan.settings.regions[place];
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

    fn request(&mut self, node: NodeId, operation: Operation, range: SectorRange) {
        let id = RequestId(self.next_request);
        self.next_request += 1;
        let issued;
        let (mut write, mut buffer, mut expected) = (0, None, Vec::new());
        let viewer = self.served_from(node);
        match operation {
            Operation::Read => {
                issued = self.checker.tick();
                expected = self.checker.expected(viewer, range);
                if self.is_cut_off(node, viewer) {
                    for (sector, more) in expected.iter_mut().zip(self.checker.expected(node, range)) {
                        sector.extend(more);
                    }
                }
                buffer = Some(self.nodes[node].add_buffer(zeroes(range.sectors())));
            }
            Operation::Flush => issued = self.checker.tick(),
            Operation::Write { .. } => {
                (write, issued) = self.checker.issue_write(node, range, false);
                let items = (0..range.sectors()).map(|offset| (offset, write)).collect();
                let data = Rc::new(Data { sectors: range.sectors(), items });
                buffer = Some(self.nodes[node].add_buffer(data));
            }
            Operation::Discard | Operation::WriteZeroes { .. } => {
                (write, issued) = self.checker.issue_write(node, range, true);
            }
        }
        if self.is_tracing() {
            let text = format!("request {} is write {write}: {operation:?} {range:?}", id.0);
            self.say(&text);
        }
        let mirrored_since = self.mirrored_since(node);
        if mirrored_since.is_some() && write > 0 {
            self.checker.mirror(1 - node, write);
        }
        let own = &mut self.nodes[node];
        let stored_since = own.storing.then_some(own.disk_losses);
        own.requests.insert(
            id,
            ClientRequest { operation, range, write, issued, buffer, mirrored_since, stored_since, expected },
        );
        self.feed(node, Event::Request(Request { id, volume: VOLUME, operation, range, buffer }));
    }

    /// Since when a node's writes go to the peer, whose power, daemon and disk have been there as long; `None`: they do
    /// not.
    fn mirrored_since(&self, node: NodeId) -> Option<Mirrored> {
        let (own, peer) = (&self.nodes[node], &self.nodes[1 - node]);
        let since =
            Mirrored { interruptions: own.interruptions, life: peer.life, disk_losses: peer.disk_losses };
        (own.mirroring && peer.storing).then_some(since)
    }

    /// Whose disk a node's clients read.
    fn served_from(&self, node: NodeId) -> NodeId {
        let own = &self.nodes[node];
        let good = matches!(own.disk_state(), DiskState::UpToDate | DiskState::Consistent);
        if !good && own.peer_disk_state() == DiskState::UpToDate { 1 - node } else { node }
    }

    /// Whether a node reads on a disk whose node has parted from it and may write alone, which it does not know yet. Without
    /// fencing nothing keeps a second Primary from reading data of before then.
    fn is_cut_off(&self, node: NodeId, viewer: NodeId) -> bool {
        viewer != node
            && self.plan.settings.net_options.allow_two_primaries
            && self.nodes[node].storing
            && self.nodes[viewer].connection() < ConnectionState::Connected
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
            (_, Err(_)) => self.checker.give_up_write(request.write),
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
        let viewer = self.served_from(node);
        let (range, issued) = (request.range, request.issued);
        let mut result = self.checker.complete_read(viewer, range, &found, &request.expected, issued);
        if result.is_err() && self.is_cut_off(node, viewer) {
            result = self.checker.complete_read(node, range, &found, &request.expected, issued);
        }
        self.check("reads", result);
    }

    fn flush_completed(&mut self, node: NodeId, request: &ClientRequest) {
        if request.stored_since != Some(self.nodes[node].disk_losses) {
            return;
        }
        let result = self.checker.complete_flush(&self.nodes[node].disk, node, request.issued);
        self.check("flushes", result);
    }

    fn write_completed(&mut self, node: NodeId, request: &ClientRequest) {
        self.coverage.check("completed writes");
        let write = request.write;
        let mut on = [0, 1].map(|disk| self.checker.has(&self.nodes[disk].disk, write, false));
        let name = format!("write {write} of {:?} on node {node}", request.range);
        // A peer that acknowledged the write and lost power since may have lost it with its cache.
        let peer_failed = request.mirrored_since.is_some_and(|since| since.life != self.nodes[1 - node].life);
        // With protocol A the write may still be on its way to the peer: nothing is promised of that.
        let asynchronous = self.is_asynchronous();
        let sent = asynchronous && (request.mirrored_since.is_some() || self.nodes[node].mirroring);
        if sent {
            self.in_transit.push(InTransit { issuer: node, write, range: request.range });
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
            && request.mirrored_since == self.mirrored_since(node);
        if mirrored && !on[1 - node] {
            self.fail("a completed write is on both disks", format!("{name} is not on the peer's"));
            return;
        }
        let stored = request.stored_since == Some(self.nodes[node].disk_losses);
        if stored && !on[node] {
            self.fail("a completed write is on both disks", format!("{name} is not on the own"));
            return;
        }
        if matches!(request.operation, Operation::Write { fua: true, .. }) {
            for (disk, wanted) in [(node, stored), (1 - node, mirrored)] {
                if wanted && !self.checker.has(&self.nodes[disk].disk, write, true) {
                    self.fail("FUA means stable storage", format!("{name} can be lost on node {disk}"));
                }
            }
        }
        let good = [0, 1].map(|disk: NodeId| {
            !on_its_way && !contended && self.nodes[disk].disk_state() >= DiskState::Consistent
        });
        // The acknowledgement was on its way when the peer lost power with what was in its cache, as if it had come just
        // before: this node does not know, and if it fails as well before it does, nobody can.
        let own = &self.nodes[node];
        let believed = own.mirroring
            && request.mirrored_since.is_some_and(|since| since.interruptions == own.interruptions);
        self.checker.complete_write(write, node, on, good, believed && peer_failed);
        self.check_one_history();
    }
}
