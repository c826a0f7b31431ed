//! The side file of an undo, and the rule that nothing is overwritten that it does not have.

use std::collections::BTreeMap;

use udrbd_engine::interface::{Action, IoError, KeptBlocks};
use udrbd_units::{Sector, SectorRange};

use crate::harness::Node;

/// EEXIST.
const EXISTS: IoError = IoError { errno: 17 };
/// ENOSPC.
const NO_ROOM: IoError = IoError { errno: 28 };

/// It outlives the engine.
#[derive(Default)]
pub(crate) struct SideFile {
    pub(crate) blocks: BTreeMap<u64, Vec<u8>>,
    pub(crate) incomplete: bool,
    /// The blocks of the device when it began.
    device_blocks: u64,
}

impl SideFile {
    /// What the next engine is told of it.
    pub(crate) fn kept_blocks(&self) -> Option<KeptBlocks> {
        let mut words = vec![0; self.device_blocks.div_ceil(64) as usize];
        for block in self.blocks.keys() {
            words[(block / 64) as usize] |= 1 << (block % 64);
        }
        (!self.incomplete).then_some(KeptBlocks { words, blocks: self.device_blocks })
    }
}

impl Node {
    pub(crate) fn ask_side_file(&mut self, action: &Action) -> Result<(), IoError> {
        match action {
            Action::BeginUndo { size, .. } => self.begin_undo(*size),
            Action::KeepOld { first, blocks, .. } => self.keep_old(*first, *blocks),
            other => unreachable!("nothing of a side file: {other:?}"),
        }
    }

    fn begin_undo(&mut self, size: Sector) -> Result<(), IoError> {
        if self.undo.is_some() {
            return Err(EXISTS);
        }
        self.undo = Some(SideFile { device_blocks: size.0.div_ceil(8), ..SideFile::default() });
        Ok(())
    }

    fn keep_old(&mut self, first: u64, blocks: u64) -> Result<(), IoError> {
        let old: Vec<_> = (first..first + blocks).map(|block| (block, self.load(block * 8, 4096))).collect();
        let room = self.undo_room;
        let undo = self.undo.as_mut().expect("an undo has begun");
        if undo.incomplete || undo.blocks.len() + old.len() > room {
            undo.incomplete = true;
            return Err(NO_ROOM);
        }
        for (block, bytes) in old {
            assert!(undo.blocks.insert(block, bytes).is_none(), "block {block} is kept twice");
        }
        Ok(())
    }

    /// A write of this range reaches the disk.
    pub(crate) fn expect_kept(&self, range: SectorRange) {
        let Some(undo) = self.undo.as_ref().filter(|undo| !undo.incomplete) else { return };
        for block in range.touched_blocks().into_iter().flatten().filter(|block| *block < undo.device_blocks)
        {
            assert!(undo.blocks.contains_key(&block), "block {block} is overwritten and was not kept");
        }
    }

    /// A block as the device was when the undo began.
    pub(crate) fn undone(&self, block: u64) -> Vec<u8> {
        let kept = self.undo.as_ref().and_then(|undo| undo.blocks.get(&block).cloned());
        kept.unwrap_or_else(|| self.load(block * 8, 4096))
    }
}
