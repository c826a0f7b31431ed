//! What is on the two disks.

use std::collections::HashSet;

use crate::harness::Pair;

impl Pair {
    /// The sectors of the data area in which the disks differ.
    pub(crate) fn differences(&self) -> Vec<u64> {
        let size = self
            .nodes
            .iter()
            .filter_map(|node| Some(node.engine.as_ref()?.status().volumes[0].size.0))
            .max()
            .unwrap();
        let sectors: HashSet<u64> = self.nodes.iter().flat_map(|node| node.disk.keys().copied()).collect();
        let mut different: Vec<u64> = sectors
            .into_iter()
            .filter(|sector| {
                *sector < size && self.nodes[0].load(*sector, 512) != self.nodes[1].load(*sector, 512)
            })
            .collect();
        different.sort_unstable();
        different
    }
}
