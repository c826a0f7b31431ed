//! `resync-after`: volumes of one resource wait for volumes of another, and no engine knows another.

use udrbd_engine::dependency::{Member, must_wait};
use udrbd_engine::interface::{Command, VolumeStatus};

use super::resource::Resource;
use super::{Node, State};
use crate::messages::ToEngine;

fn volumes(entry: &Resource) -> impl Iterator<Item = &VolumeStatus> {
    entry.status.iter().flat_map(|status| &status.resource.volumes)
}

impl Node {
    /// Something of a resource has changed: tells the engines whose volumes have to wait from now on, or no longer. An
    /// engine that has not got round to it yet is told again, which does nothing.
    pub(super) fn review_dependencies(&self) {
        let State { resources, .. } = &mut *self.state.borrow_mut();
        let concerned = |volume: &VolumeStatus| {
            let depends = volume.options.as_ref().is_some_and(|options| options.resync_after.is_some());
            depends || volume.paused_by_dependency
        };
        if !resources.iter().flat_map(volumes).any(concerned) {
            return;
        }
        let members: Vec<Member> = resources.iter().flat_map(volumes).map(Member::of).collect();
        for entry in resources {
            let changed: Vec<_> = volumes(entry)
                .map(|volume| (volume.volume, volume.paused_by_dependency, must_wait(&members, volume.minor)))
                .filter(|(_, before, waits)| before != waits)
                .collect();
            for (volume, _, waits) in changed {
                let command = Command::ResyncDependency { volume, waits };
                // The status shows what came of it.
                drop(entry.command(|id| ToEngine::Command { id, command }));
            }
        }
    }
}
