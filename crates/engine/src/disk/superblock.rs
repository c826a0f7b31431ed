//! Writing the superblock: always the newest, one at a time, flushed (metadata spec 8.6).

use udrbd_metadata::Flags;

use super::Purpose;
use crate::Engine;
use crate::interface::Action;

impl Engine {
    /// The superblock in memory has changed. It is written at the end of this turn; the number returned is durable
    /// once [`superblock_is_durable`](Self::superblock_is_durable) says so. 0 without a disk.
    pub(crate) fn touch_superblock(&mut self, index: usize) -> u64 {
        let Some(disk) = &mut self.volumes[index].disk else { return 0 };
        disk.superblock_version += 1;
        self.attention = true;
        disk.superblock_version
    }

    /// Whether a version is on stable storage, or there is no disk any more that it could get to, or none that answers.
    pub(crate) fn superblock_is_durable(&self, index: usize, version: u64) -> bool {
        self.volumes[index]
            .disk
            .as_ref()
            .is_none_or(|disk| disk.abandoned || disk.superblock_durable >= version)
    }

    /// Whether the superblock on stable storage says what this node knows. A target that has finished is UpToDate before that is
    /// written: until then nobody may rely on its disk alone, or a crash would leave a pair without good data.
    pub(crate) fn superblock_is_current(&self, index: usize) -> bool {
        let version = self.volumes[index].disk.as_ref().map_or(0, |disk| disk.superblock_version);
        self.superblock_is_durable(index, version)
    }

    /// Writes the superblock if it has changed. Returns whether it did.
    pub(crate) fn write_superblock(&mut self, index: usize) -> bool {
        let Some(disk) = &self.volumes[index].disk else { return false };
        let dirty = disk.superblock_version > disk.superblock_durable;
        // Bits have to be on disk before a superblock that says "no longer Primary" (metadata spec 8.6).
        if !dirty || disk.abandoned || disk.superblock_writing.is_some() || disk.bitmap_io.holds_superblock()
        {
            return false;
        }
        let mut block = self.take_block();
        let token = self.start_io(index, Purpose::Superblock);
        let skips_flush = self.bug(crate::bugs::Bug::SuperblockWithoutFlush);
        let volume = &mut self.volumes[index];
        let number = volume.number;
        let Some(disk) = &mut volume.disk else { return false };
        if disk.log_is_absent && disk.superblock.flags.contains(Flags::PRIMARY_IND) {
            // Nobody must look for extents in what is at the log's place. (8.4.11 leaves a node that crashes now with
            // metadata it refuses to attach.)
            let flags = disk.superblock.flags;
            disk.superblock.flags = flags.with(Flags::PRIMARY_IND, false).with(Flags::CRASHED_PRIMARY, true);
            disk.superblock.encode_into(&mut block);
            disk.superblock.flags = flags;
        } else {
            disk.superblock.encode_into(&mut block);
        }
        disk.superblock_writing = Some(disk.superblock_version);
        disk.indicating = disk.superblock.flags.contains(Flags::PRIMARY_IND);
        disk.indicated &= disk.indicating;
        let flush = disk.options.metadata_flushes && !skips_flush;
        self.out.push(Action::WriteMetadata {
            token,
            volume: number,
            position: disk.layout.superblock,
            block,
            preflush: flush,
            fua: flush,
        });
        true
    }

    pub(super) fn superblock_written(&mut self, index: usize, failed: bool) {
        let Some(disk) = &mut self.volumes[index].disk else { return };
        if let Some(version) = disk.superblock_writing.take() {
            // A failed write is not tried again: the disk is on its way out.
            disk.superblock_durable = version;
            disk.indicated = disk.indicating;
        }
        if failed {
            self.metadata_io_failed(index);
        }
    }
}
