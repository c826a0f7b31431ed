//! Keeping what a resync overwrites (`resync-undo`): which block has to be kept before which write.
//!
//! An undo begins when a split brain ends with this node's changes discarded. From then on, until it is dropped or there
//! is no room for it, no block is overwritten for the first time, by a resync or by anybody else, before its old content
//! is durable in the runtime's side file. Writes that have to wait for that are held here; they count as being at the
//! disk. Where a block cannot be kept, the undo is given up and the writes go on: the resync matters more.

use std::collections::VecDeque;
use std::ops::RangeInclusive;

use udrbd_units::SectorRange;

use crate::Engine;
use crate::disk::Purpose;
use crate::interface::{Action, IoError, Level, Token};

/// EEXIST: there is an older undo.
const OLDER_UNDO: i32 = 17;
const WORD_BITS: u64 = 64;

/// What is kept of a disk, and what waits for more of it.
#[derive(Debug)]
pub(crate) struct Undo {
    /// A bit for each block; those set are kept.
    kept: Vec<u64>,
    /// The blocks there were when it began. Others need no keeping.
    blocks: u64,
    /// Runs of blocks on their way to the side file.
    keeping: Vec<(Token, RangeInclusive<u64>)>,
    /// Writes that wait for blocks, in their order.
    held: VecDeque<(RangeInclusive<u64>, Action)>,
}

impl Undo {
    /// One that begins with nothing kept.
    fn new(blocks: u64) -> Self {
        Self::found(vec![0; blocks.div_ceil(WORD_BITS) as usize], blocks)
    }

    /// One that an earlier daemon began.
    pub(crate) fn found(kept: Vec<u64>, blocks: u64) -> Self {
        assert!(kept.len() as u64 >= blocks.div_ceil(WORD_BITS), "a bit for each block");
        Self { kept, blocks, keeping: Vec::new(), held: VecDeque::new() }
    }

    fn is_kept(&self, block: u64) -> bool {
        block >= self.blocks || self.kept[(block / WORD_BITS) as usize] >> (block % WORD_BITS) & 1 == 1
    }

    fn are_kept(&self, blocks: &RangeInclusive<u64>) -> bool {
        blocks.clone().all(|block| self.is_kept(block))
    }

    /// The runs of `blocks` that are neither kept nor on their way.
    fn missing(&self, blocks: RangeInclusive<u64>) -> Vec<RangeInclusive<u64>> {
        let mut runs: Vec<RangeInclusive<u64>> = Vec::new();
        for block in blocks {
            if self.is_kept(block) || self.keeping.iter().any(|(_, run)| run.contains(&block)) {
                continue;
            }
            match runs.last_mut() {
                Some(run) if *run.end() + 1 == block => *run = *run.start()..=block,
                _ => runs.push(block..=block),
            }
        }
        runs
    }

    fn note_kept(&mut self, blocks: RangeInclusive<u64>) {
        for block in blocks {
            self.kept[(block / WORD_BITS) as usize] |= 1 << (block % WORD_BITS);
        }
    }
}

impl Engine {
    /// This node's changes are about to be discarded: they are kept, where that is configured.
    pub(crate) fn begin_undo(&mut self, index: usize) {
        let Some(disk) = &self.volumes[index].disk else { return };
        if !disk.options.resync_undo {
            return;
        }
        if disk.undo.is_some() {
            let text = "An older resync-undo is still kept: it goes on, and shows the device as it was then";
            self.say(Level::Warning, Some(index), text.to_owned());
            return;
        }
        let size = disk.bitmap.capacity();
        let undo = Undo::new(disk.bitmap.bits());
        let token = self.start_io(index, Purpose::Keep);
        if let Some(disk) = &mut self.volumes[index].disk {
            disk.undo = Some(Box::new(undo));
        }
        let volume = self.volumes[index].number;
        self.out.push(Action::BeginUndo { token, volume, size });
        self.say(Level::Info, Some(index), "resync-undo begins: what is overwritten is kept".to_owned());
    }

    /// Gives a write or discard to the backing device, once what it overwrites is kept.
    pub(crate) fn change_disk(&mut self, index: usize, range: SectorRange, action: Action) {
        let volume = &mut self.volumes[index];
        let undo = volume.disk.as_mut().and_then(|disk| disk.undo.as_mut());
        let (Some(undo), Some(blocks)) = (undo, range.touched_blocks()) else {
            self.out.push(action);
            return;
        };
        if undo.are_kept(&blocks) {
            self.out.push(action);
            return;
        }
        let Some(undo) = self.undo(index) else { return };
        let missing = undo.missing(blocks.clone());
        undo.held.push_back((blocks, action));
        let volume = self.volumes[index].number;
        for run in missing {
            let token = self.start_io(index, Purpose::Keep);
            let (first, blocks) = (*run.start(), run.end() - run.start() + 1);
            if let Some(undo) = self.undo(index) {
                undo.keeping.push((token, run));
            }
            self.out.push(Action::KeepOld { token, volume, first, blocks });
        }
    }

    fn undo(&mut self, index: usize) -> Option<&mut Undo> {
        self.volumes[index].disk.as_mut().and_then(|disk| disk.undo.as_deref_mut())
    }

    /// Blocks are durable in the side file, or cannot be.
    pub(crate) fn kept(&mut self, index: usize, token: Token, result: Result<(), IoError>) {
        let Some(undo) = self.undo(index) else { return };
        let place = undo.keeping.iter().position(|(other, _)| *other == token);
        let run = place.map(|place| undo.keeping.swap_remove(place).1);
        if let Err(error) = result {
            let text = if error.errno == OLDER_UNDO {
                "No resync-undo: an older one is still there, see drbdadm drop-resync-undo".to_owned()
            } else {
                format!(
                    "The resync-undo is incomplete from here on: error {} when keeping blocks",
                    error.errno
                )
            };
            self.say(Level::Error, Some(index), text);
            self.end_undo(index);
            return;
        }
        let Some(run) = run else { return };
        undo.note_kept(run);
        let mut ready = Vec::new();
        for (blocks, action) in std::mem::take(&mut undo.held) {
            if undo.are_kept(&blocks) {
                ready.push(action);
            } else {
                undo.held.push_back((blocks, action));
            }
        }
        self.out.append(&mut ready);
    }

    /// Nothing is kept any more: what waited goes on.
    pub(crate) fn end_undo(&mut self, index: usize) {
        let undo = self.volumes[index].disk.as_mut().and_then(|disk| disk.undo.take());
        if let Some(undo) = undo {
            self.out.extend(undo.held.into_iter().map(|(_, action)| action));
        }
    }

    /// The disk is given up: writes that wait here never get there, and end as those that are there.
    pub(crate) fn fail_held_writes(&mut self, index: usize, error: IoError) {
        let undo = self.volumes[index].disk.as_mut().and_then(|disk| disk.undo.take());
        for (_, action) in undo.into_iter().flat_map(|undo| undo.held) {
            if let Action::Write { token, .. } | Action::Discard { token, .. } = action {
                self.disk_write_done(token, Err(error));
            }
        }
    }
}
