//! What a node remembers of its peer for `split-brain-report`: when they parted, and what a split brain was found with.
//!
//! The engine says what a handshake found, without a clock. Here it gets its time, and is kept in a file per volume that
//! outlives the daemon, and the machine's reboot where the state folder does: who is called at night wants to know what
//! a node knew before it crashed. Nothing is decided by it.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use udrbd_control::status::{
    ChangedRegion, FoundSplitBrain, KnownSplitBrain, PolicyOutcome, PolicyOutlook, SplitBrainEnd,
    SplitBrainReport, SplitBrainSide, VolumeSplitBrain, WhichNode,
};
use udrbd_engine::bitmap::Region;
use udrbd_engine::generation::{
    GenerationSet, HandshakeFacts, HandshakeOutcome, PeerFlags, Primaries, Prospect, Side, SplitBrain,
    prospects,
};
use udrbd_engine::interface::{AfterSplitBrain, Level, VolumeStatus};
use udrbd_units::{ConnectionState, DiskState, GenerationId, Minor, Role, VolumeNumber};

use super::{Node, STATUS_PATIENCE, block, time_us};
use crate::messages::ToEngine;

/// What is remembered of one volume.
#[derive(Debug)]
pub(super) struct Memory {
    path: PathBuf,
    known: KnownSplitBrain,
    /// The nodes were together when the engine was looked at last.
    connected: bool,
    /// The last split brain of this engine that is in `known`.
    number: u64,
}

impl Memory {
    /// Reads what an earlier daemon left. What cannot be read is not known.
    fn read(state_directory: &Path, minor: Minor) -> Self {
        let path = state_directory.join(format!("split-brain-drbd{minor}"));
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let known = serde_json::from_str(&text).unwrap_or_default();
        Self { path, known, connected: false, number: 0 }
    }

    /// Takes in what the engine says, and returns whether that is news.
    fn take(&mut self, now_us: i64, volume: &VolumeStatus) -> bool {
        let mut news = false;
        let found = volume.split_brain.as_deref().filter(|found| found.number != self.number);
        if let Some(found) = found {
            self.number = found.number;
            self.known.found = Some(self.found(now_us, found));
            news = true;
        }
        let connected = volume.connection >= ConnectionState::Connected;
        if connected && !self.connected {
            if let Some(found) = &mut self.known.found {
                found.ended_us.get_or_insert(now_us);
            }
            self.known.connected_us = Some(now_us);
            self.known.lost_us = None;
            news = true;
        } else if !connected && self.connected {
            self.known.lost_us = Some(now_us);
            news = true;
        }
        self.connected = connected;
        news
    }

    fn found(&self, now_us: i64, found: &SplitBrain) -> FoundSplitBrain {
        let facts = &found.facts;
        let ancestor = found.ancestor.map(|ancestor| ancestor.to_string());
        // The same one as before, met again: it began when it was found first.
        let before = self.known.found.as_ref();
        let before = before.filter(|before| before.ended_us.is_none() && before.ancestor == ancestor);
        let by_hand = facts.discard_my_data || facts.peer.flags.contains(PeerFlags::DISCARD_MY_DATA);
        let end = |keeps, full| Some(SplitBrainEnd { keeps, full, by_hand });
        FoundSplitBrain {
            first_us: before.map_or(now_us, |before| before.first_us),
            last_us: now_us,
            times: before.map_or(1, |before| before.times + 1),
            connected_us: before.map_or(self.known.connected_us, |before| before.connected_us),
            lost_us: before.map_or(self.known.lost_us, |before| before.lost_us),
            ended_us: None,
            end: match found.outcome {
                HandshakeOutcome::Source { full } => end(WhichNode::Own, full),
                HandshakeOutcome::Target { full } => end(WhichNode::Peer, full),
                _ => None,
            },
            ancestor,
            rule: found.rule,
            ambiguous: found.ambiguous,
            always_asbp: facts.policies.always_asbp,
            own: own_side(facts),
            peer: peer_side(facts),
            policies: prospects(facts).iter().map(outlook).collect(),
        }
    }

    /// A split brain keeps the nodes apart.
    fn is_apart(&self) -> bool {
        self.known.found.as_ref().is_some_and(|found| found.ended_us.is_none() && found.end.is_none())
    }

    /// Keeps it. A reader finds the old text or the new one.
    fn write(&self) -> std::io::Result<()> {
        let new = self.path.with_extension("new");
        if let Some(folder) = self.path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let mut file = std::fs::File::create(&new)?;
        file.write_all(&serde_json::to_vec(&self.known)?)?;
        std::fs::rename(&new, &self.path)
    }
}

fn side(set: GenerationSet) -> SplitBrainSide {
    let text = |identifier: GenerationId| identifier.to_string();
    SplitBrainSide {
        current: text(set.current),
        bitmap: text(set.bitmap),
        history: set.history.map(text),
        // Bit 0 is written with the role, and stays as it was when the bitmap begins to count from there.
        was_primary: set.bitmap.primary_bit(),
        role: Role::Unknown,
        disk: DiskState::Unknown,
        changed_blocks: 0,
        crashed_primary: false,
        discard_my_data: false,
    }
}

fn own_side(facts: &HandshakeFacts) -> SplitBrainSide {
    SplitBrainSide {
        role: facts.own_role,
        disk: facts.effective_disk(),
        changed_blocks: facts.own_told_bits,
        crashed_primary: facts.crashed_primary,
        discard_my_data: facts.discard_my_data,
        ..side(facts.own)
    }
}

fn peer_side(facts: &HandshakeFacts) -> SplitBrainSide {
    SplitBrainSide {
        role: facts.peer_role,
        disk: facts.peer_disk,
        changed_blocks: facts.peer.set_bits,
        crashed_primary: facts.peer.flags.contains(PeerFlags::CRASHED_PRIMARY),
        discard_my_data: facts.peer.flags.contains(PeerFlags::DISCARD_MY_DATA),
        ..side(facts.peer.set)
    }
}

fn outlook(row: &udrbd_engine::generation::PolicyProspect) -> PolicyOutlook {
    let node = |side| match side {
        Side::Own => WhichNode::Own,
        Side::Peer => WhichNode::Peer,
    };
    let (primaries, option) = match row.primaries {
        Primaries::None => (vec![], "after-sb-0pri"),
        Primaries::Own => (vec![WhichNode::Own], "after-sb-1pri"),
        Primaries::Peer => (vec![WhichNode::Peer], "after-sb-1pri"),
        Primaries::Both => (vec![WhichNode::Own, WhichNode::Peer], "after-sb-2pri"),
    };
    PolicyOutlook {
        primaries,
        option: option.to_owned(),
        policy: policy_name(row.policy).to_owned(),
        configured: row.configured,
        outcome: match row.prospect {
            Prospect::Apart => PolicyOutcome::StayApart,
            Prospect::Keep { side, full } => PolicyOutcome::Keep { node: node(side), full },
            Prospect::PrimaryLost { side } => PolicyOutcome::CallPriLost { node: node(side) },
            Prospect::PrimaryInTheWay { side } => PolicyOutcome::PrimaryInTheWay { node: node(side) },
            Prospect::Same => PolicyOutcome::Connect,
        },
    }
}

const fn policy_name(policy: AfterSplitBrain) -> &'static str {
    match policy {
        AfterSplitBrain::Disconnect => "disconnect",
        AfterSplitBrain::DiscardYoungerPrimary => "discard-younger-primary",
        AfterSplitBrain::DiscardOlderPrimary => "discard-older-primary",
        AfterSplitBrain::DiscardZeroChanges => "discard-zero-changes",
        AfterSplitBrain::DiscardLeastChanges => "discard-least-changes",
        AfterSplitBrain::DiscardLocal => "discard-local",
        AfterSplitBrain::DiscardRemote => "discard-remote",
        AfterSplitBrain::Consensus => "consensus",
        AfterSplitBrain::DiscardSecondary => "discard-secondary",
        AfterSplitBrain::CallPriLostAfterSb => "call-pri-lost-after-sb",
        AfterSplitBrain::ViolentlyAsZeroPrimaries => "violently-as0p",
    }
}

/// An engine has told its status: what is news about the peer is kept.
pub(super) fn look(node: &Node, resource: &str) {
    let mut state = node.state.borrow_mut();
    let Some(entry) = state.resource_mut(resource) else { return };
    let Some(status) = &entry.status else { return };
    let (mut failed, mut apart) = (None, None);
    for volume in &status.resource.volumes {
        let known = entry.volumes.iter_mut().find(|known| known.number == volume.volume);
        let Some(known) = known else { continue };
        let memory = known.memory.get_or_insert_with(|| Memory::read(&node.state_directory, volume.minor));
        let times = |memory: &Memory| memory.known.found.as_ref().map_or(0, |found| found.times);
        let before = times(memory);
        if !memory.take(time_us(), volume) {
            continue;
        }
        if times(memory) != before && memory.is_apart() {
            apart = Some(volume.volume);
        }
        if let Err(error) = memory.write() {
            failed = Some((memory.path.clone(), error));
        }
    }
    if let Some((path, error)) = failed
        && !std::mem::replace(&mut state.memory_fails, true)
    {
        tracing::warn!("cannot write {}: {error}", path.display());
    }
    drop(state);
    if let Some(volume) = apart {
        let text =
            format!("'drbdadm split-brain-report {resource}' says what each node would lose, and what to do");
        node.log(resource, Level::Error, Some(volume), &text);
    }
}

/// Everything that is known of a resource, or `None` where there is no such resource.
pub(super) async fn report(node: &Rc<Node>, resource: &str) -> Option<Box<SplitBrainReport>> {
    node.refresh_now(Some(resource)).await;
    let answer = {
        let (answer, regions) = tokio::sync::oneshot::channel();
        let state = node.state.borrow();
        // An engine that does not hear it drops the other end.
        let _ = state.resource(resource)?.engine.mail.send(ToEngine::ChangedRegions(answer));
        regions
    };
    let regions = tokio::time::timeout(STATUS_PATIENCE, answer).await;
    let regions = regions.ok().and_then(Result::ok).unwrap_or_default();
    let mut report = {
        let state = node.state.borrow();
        let entry = state.resource(resource)?;
        let devices = || entry.snapshot.devices.iter();
        SplitBrainReport {
            resource: entry.name.clone(),
            node: node.name.clone(),
            peer: None,
            time_us: time_us(),
            // That of the resource goes no further than to the handshake.
            connection: devices()
                .map(|device| device.connection)
                .min()
                .unwrap_or(entry.snapshot.connection.state),
            peer_address: entry.snapshot.connection.addresses.map(|(_, peer)| peer),
            volumes: devices().map(|device| volume(entry, device, &regions)).collect(),
        }
    };
    for volume in &mut report.volumes {
        let openers = block::open_by(node, volume.minor).await;
        volume.holders.extend(openers.iter().map(ToString::to_string));
    }
    Some(Box::new(report))
}

fn volume(
    entry: &super::resource::Resource,
    device: &udrbd_control::status::DeviceSnapshot,
    regions: &[(VolumeNumber, Vec<Region>)],
) -> VolumeSplitBrain {
    let memory = entry.volume(device.volume).and_then(|volume| volume.memory.as_ref());
    let regions = regions.iter().find(|(volume, _)| *volume == device.volume).map(|(_, regions)| regions);
    let told = |region: &Region| ChangedRegion {
        first_block: region.first,
        blocks: region.blocks,
        changed_blocks: region.set,
    };
    VolumeSplitBrain {
        volume: device.volume,
        minor: device.minor,
        size_sectors: device.size_sectors,
        role: device.role,
        disk: device.disk,
        holders: if device.open { vec!["a client of the NBD server".to_owned()] } else { Vec::new() },
        changed_blocks: device.backing.as_ref().map(|_| device.counters.out_of_sync_blocks),
        regions: regions.map(|regions| regions.iter().map(told).collect()),
        known: memory.map(|memory| memory.known.clone()).unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests;
