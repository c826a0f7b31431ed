//! The generation identifiers of an attached disk: read from the superblock, changed, written back (states spec 8).

use udrbd_metadata::Superblock;
use udrbd_units::{GenerationId, Role};

use crate::Engine;
use crate::bugs::Bug;
use crate::generation::{GenerationSet, TargetOfResync};
use crate::interface::Level;

/// The identifiers in a superblock.
pub(crate) const fn of(superblock: &Superblock) -> GenerationSet {
    GenerationSet { current: superblock.current, bitmap: superblock.bitmap, history: superblock.history }
}

impl Engine {
    /// The identifiers of a volume's disk.
    pub(crate) fn generations(&self, index: usize) -> Option<GenerationSet> {
        self.volumes[index].disk.as_ref().map(|disk| of(&disk.superblock))
    }

    /// Changes the identifiers. Returns the version of the superblock that holds them; 0 without a disk.
    pub(crate) fn change_generations(
        &mut self,
        index: usize,
        change: impl FnOnce(&mut GenerationSet),
    ) -> u64 {
        let Some(disk) = &mut self.volumes[index].disk else { return 0 };
        let mut set = of(&disk.superblock);
        change(&mut set);
        disk.superblock.current = set.current;
        disk.superblock.bitmap = set.bitmap;
        disk.superblock.history = set.history;
        self.volumes[index].exposed = set.current;
        self.state_changed();
        self.touch_superblock(index)
    }

    /// Starts a new generation. No unreplicated write completes before it is durable (io spec I13).
    pub(crate) fn new_current_generation(&mut self, index: usize) -> u64 {
        let mut random = self.random.generation().0;
        if self.bug(Bug::PredictableGeneration) {
            random = self.generations(index).map_or(random, |set| set.current.0.wrapping_add(2));
        }
        let forget = self.bug(Bug::ForgetOldGeneration);
        let primary = self.volumes[index].state.role == Role::Primary;
        let mut overwritten = None;
        let target = self.doubtful_target(index);
        let flags = &mut self.volumes[index].flags;
        (flags.source_of_equals, flags.target) = (false, TargetOfResync::Unknown);
        let version = self.change_generations(index, |set| {
            if let Some(target) = target {
                set.new_current_of_doubtful_source(random, primary, target);
            } else {
                overwritten = set.new_current(random, primary);
            }
            if forget {
                set.bitmap = GenerationId(random);
            }
        });
        if let Some(overwritten) = overwritten {
            self.say(Level::Warning, Some(index), GenerationSet::overwritten_warning(overwritten));
        }
        self.log_generations(index, "new current UUID");
        if version > 0 {
            self.volumes[index].current_due = Some(version);
        }
        version
    }

    /// Starts the generations that wait for the end of a freeze. I/O of all volumes goes on together, so those of all do.
    pub(crate) fn begin_due_generations(&mut self) {
        for index in 0..self.volumes.len() {
            if std::mem::take(&mut self.volumes[index].flags.new_current_due) {
                self.new_current_generation(index);
            }
        }
    }

    /// The target of a resync of which this node was the source, where it may have taken over the current generation and this
    /// node does not know. What is written here from now on must not pass for what the peer has, and what the peer has must
    /// not pass for the successor of what is written here: 8.4.11 begins no generation in that case, so should the target be
    /// promoted, what the source has written meanwhile is discarded in silence.
    pub(crate) fn doubtful_target(&self, index: usize) -> Option<TargetOfResync> {
        let set = self.generations(index).filter(|set| set.bitmap.is_some())?;
        let flags = &self.volumes[index].flags;
        if flags.source_of_equals {
            return Some(TargetOfResync::HoldsCurrent);
        }
        match flags.target {
            // A node that was started since knows by its identifiers that there was one; that it was not done is likely.
            TargetOfResync::Unknown => {
                set.is_source_of_unended_resync().then_some(TargetOfResync::WasSentAll)
            }
            target => target.may_be_done().then_some(target),
        }
    }

    /// Tells the identifiers to the log.
    pub(crate) fn log_generations(&mut self, index: usize, what: &str) {
        if let Some(set) = self.generations(index) {
            self.say(Level::Info, Some(index), format!("{what} {set}"));
        }
    }
}
