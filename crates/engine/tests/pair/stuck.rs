//! Disks that answer late: what their nodes asked for is kept, and happens when a script says so. And links that lose what is on
//! its way.

use udrbd_engine::interface::Operation;

use crate::harness::Pair;

/// A client's write that nothing has to be flushed for.
pub(crate) const WRITE: Operation = Operation::Write { fua: false, preflush: false };

impl Pair {
    /// All connections break, and what is on its way to a node is lost.
    pub(crate) fn break_wires_before(&mut self, node: usize) {
        for (_, queue) in self.pending.iter_mut().filter(|((owner, _), _)| *owner == node) {
            queue.clear();
        }
        self.break_wires();
    }

    /// What was kept while the disk was stuck happens now.
    pub(crate) fn unstick(&mut self, node: usize) {
        self.nodes[node].stuck = false;
        self.nodes[node].stuck_metadata = false;
        self.nodes[node].stuck_metadata_reads = false;
        for action in std::mem::take(&mut self.nodes[node].kept) {
            self.act(node, action);
        }
    }

    /// The engine hears of all reads that were done. Returns how many there were.
    pub(crate) fn tell_of_reads(&mut self, node: usize) -> usize {
        self.nodes[node].late_reads = false;
        let before = self.events.len();
        self.events.extend(self.nodes[node].unheard.drain(..).map(|event| (node, event)));
        self.events.len() - before
    }

    /// The first of what was kept happens now.
    pub(crate) fn unstick_first(&mut self, node: usize) {
        self.unstick_one(node, 0);
    }

    pub(crate) fn unstick_one(&mut self, node: usize, index: usize) {
        let action = self.nodes[node].kept.remove(index);
        let stuck = (self.nodes[node].stuck, self.nodes[node].stuck_metadata);
        (self.nodes[node].stuck, self.nodes[node].stuck_metadata) = (false, false);
        self.act(node, action);
        (self.nodes[node].stuck, self.nodes[node].stuck_metadata) = stuck;
    }

    /// Node 0 has a write acknowledged whose data node 1 has in its disk's cache only; the flush for its barrier is kept, as
    /// is all that node 1's disk is asked for from now on.
    pub(crate) fn acknowledge_from_the_cache(&mut self) {
        self.nodes[1].stuck = true;
        let id = self.submit(0, WRITE, 0, &[9; 4096], 4096);
        self.settle();
        self.unstick_first(1);
        self.settle();
        assert!(self.nodes[0].completions[&id].0.is_ok());
    }

    /// How many buffers a node's engine has not given back.
    pub(crate) fn buffers_owned(&self, node: usize) -> usize {
        self.nodes[node].owned.len()
    }

    /// How many actions are kept.
    pub(crate) fn kept(&self, node: usize) -> usize {
        self.nodes[node].kept.len()
    }
}
