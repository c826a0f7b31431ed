//! What the outside world may rely on, and whether it held.
//!
//! Each disk has a *view*: for each sector the writes it may hold, if this disk is the one that is used. A write becomes
//! possible when it is issued; when it completes, everything that was complete before it was issued is no longer
//! possible on the disks that have it. Nothing here believes what an engine says of its data: whether a disk has a
//! write is looked up on the disk.
//!
//! Volumes of a resource have views of their own and one order of writes.
//!
//! A write that completed but is on one disk only is *exclusive* to it: before the other disk's data may replace these,
//! an administrator has to say so. That is what split brain detection is for.

use std::collections::{BTreeMap, BTreeSet};

use udrbd_units::{Sector, SectorRange};

use crate::disk::{Disk, Tag};
use crate::network::NodeId;
use crate::node::{ClientRequest, VolumeIndex};

/// Something that must not happen has happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which rule was broken, in short.
    pub rule: &'static str,
    /// How.
    pub text: String,
}

/// A write of a client.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WriteRecord {
    /// What the sectors hold afterwards; 0: zeroes.
    pub(crate) value: Tag,
    pub(crate) volume: VolumeIndex,
    pub(crate) range: SectorRange,
    /// The node of the client.
    pub(crate) issuer: NodeId,
    pub(crate) issued: u64,
    /// When it was over; `u64::MAX`: it is not.
    pub(crate) done: u64,
    /// No client wrote it: it was on the new part of a device.
    pub(crate) found: bool,
}

/// Which writes each sector may hold.
pub(crate) type View = BTreeMap<u64, Vec<Tag>>;

const ZERO: &[Tag] = &[0];
/// Mirrored writes whose order is looked at.
const ORDER_CHECKED: usize = 200;

/// What is known of a volume, by node.
#[derive(Default)]
pub(crate) struct Known {
    pub(crate) views: [View; 2],
    pub(crate) exclusive: [BTreeSet<Tag>; 2],
    /// Writes each disk alone has of which its node does not know that yet: the peer failed with the acknowledgement on its
    /// way. They become exclusive when the node hears of the failure, and never if it fails itself before.
    unnoticed: [BTreeSet<Tag>; 2],
    /// An administrator allowed this disk's data to be discarded.
    pub(crate) excused: [bool; 2],
    /// Completed writes of a node's clients that no flush of theirs has confirmed.
    unflushed: [Vec<Tag>; 2],
    /// The mirroring to this disk has ended: what was mirrored is what it may be left with.
    mirroring_over: [bool; 2],
    /// Discards and writes of zeroes; those that are not over.
    zeroes: Vec<Tag>,
    zeroing: Vec<Tag>,
}

/// The rules, and what is known.
pub(crate) struct Checker {
    pub(crate) writes: Vec<WriteRecord>,
    pub(crate) volumes: Vec<Known>,
    /// Writes of all volumes mirrored to a node since the mirroring to it began, also when that has ended.
    mirrored: [Vec<Tag>; 2],
    count: u64,
}

impl Checker {
    pub(crate) fn new(volumes: usize) -> Self {
        let nothing = WriteRecord {
            value: 0,
            volume: 0,
            range: SectorRange::new(Sector(0), 0),
            issuer: 0,
            issued: 0,
            done: 0,
            found: true,
        };
        Self {
            writes: vec![nothing],
            volumes: (0..volumes).map(|_| Known::default()).collect(),
            mirrored: [Vec::new(), Vec::new()],
            count: 1,
        }
    }

    /// A moment in the order of things.
    pub(crate) const fn tick(&mut self) -> u64 {
        self.count += 1;
        self.count
    }

    /// A write is issued. Returns its number and when.
    pub(crate) fn issue_write(
        &mut self,
        issuer: NodeId,
        volume: VolumeIndex,
        range: SectorRange,
        zeroes: bool,
    ) -> (Tag, u64) {
        let issued = self.tick();
        let number = self.writes.len() as Tag;
        self.writes.push(WriteRecord {
            value: if zeroes { 0 } else { number },
            volume,
            range,
            issuer,
            issued,
            done: u64::MAX,
            found: false,
        });
        let known = &mut self.volumes[volume];
        let mut fresh = ZERO.to_vec();
        fresh
            .extend(known.zeroing.iter().filter(|other| self.writes[**other as usize].range.overlaps(range)));
        for view in &mut known.views {
            if zeroes {
                for (_, possible) in view.range_mut(range.start.0..range.end().0) {
                    possible.push(number);
                }
            } else {
                for sector in range.start.0..range.end().0 {
                    view.entry(sector).or_insert_with(|| fresh.clone()).push(number);
                }
            }
        }
        if zeroes {
            known.zeroes.push(number);
            known.zeroing.push(number);
        }
        (number, issued)
    }

    /// Something is found on the new part of a disk. Returns its number. Until it is written or resynced, what any node has
    /// found there may be read.
    pub(crate) fn find_on_disk(&mut self, node: NodeId, volume: VolumeIndex, range: SectorRange) -> Tag {
        let (number, _) = self.issue_write(node, volume, range, false);
        self.give_up_write(number);
        self.writes[number as usize].found = true;
        number
    }

    /// Whether no client has written any of these sectors.
    pub(crate) fn is_untouched(&self, volume: VolumeIndex, range: SectorRange) -> bool {
        let mut written =
            self.volumes[volume].views.iter().flat_map(|view| view.range(range.start.0..range.end().0));
        written.all(|(_, possible)| possible.iter().all(|number| self.is_leftover(*number)))
    }

    /// Whether no client has written what was found somewhere.
    pub(crate) fn is_leftover(&self, value: Tag) -> bool {
        self.writes[value as usize].found
    }

    /// A write goes to this disk as well, as the mirror of the node it was issued on.
    pub(crate) fn mirror(&mut self, disk: NodeId, number: Tag) {
        (0..self.volumes.len()).for_each(|volume| self.mirroring_begins(disk, volume));
        self.mirrored[disk].push(number);
    }

    /// Writes of a volume go to this disk as well from now on, perhaps also some that were issued before and have waited. If that
    /// had ended, it begins anew.
    pub(crate) fn mirroring_begins(&mut self, disk: NodeId, volume: VolumeIndex) {
        if std::mem::take(&mut self.volumes[volume].mirroring_over[disk]) {
            self.forget_mirrored(disk, volume);
        }
    }

    /// Nothing is expected any more of the order in which writes of a volume got to a node.
    fn forget_mirrored(&mut self, disk: NodeId, volume: VolumeIndex) {
        let writes = &self.writes;
        self.mirrored[disk].retain(|number| writes[*number as usize].volume != volume);
    }

    /// Whether a client of the other node has written to the same place at the same time. Which of the two is kept is open
    /// (io spec 9.3), and one that is superseded is done before the other is: who shares a device does not do that.
    pub(crate) fn is_contended(&self, number: Tag) -> bool {
        let write = self.writes[number as usize];
        let recent = &self.writes[self.writes.len().saturating_sub(ORDER_CHECKED * 2)..];
        recent.iter().any(|other| {
            other.issuer != write.issuer
                && other.volume == write.volume
                && other.done > write.issued
                && other.range.overlaps(write.range)
        })
    }

    /// Nothing is expected of the order in which a write gets to its mirror.
    pub(crate) fn excuse_from_order(&mut self, disk: NodeId, number: Tag) {
        self.mirrored[disk].retain(|other| *other != number);
    }

    /// The mirroring of a volume to this node has ended. What the node is left with stays in order until it begins anew.
    pub(crate) fn mirroring_ends(&mut self, disk: NodeId, volume: VolumeIndex) {
        self.volumes[volume].mirroring_over[disk] = true;
    }

    /// A mirror holds what was written up to some point, and of what was under way then any part: no write without all that
    /// had completed before it was issued (io spec I6), also not of another volume: they share a connection, and its epochs.
    /// So it is at any time, after a loss of power, and when the Primary is gone. `found` is what its disks hold, or would
    /// hold.
    pub(crate) fn check_order(&self, disk: NodeId, found: &[&Disk]) -> Result<(), Violation> {
        let mirrored = &self.mirrored[disk];
        // Nearly all of them are on stable storage for long; the rest are the last ones.
        let recent = &mirrored[mirrored.len().saturating_sub(ORDER_CHECKED)..];
        let holds_some = |number: Tag| {
            let write = self.writes[number as usize];
            write.value != 0
                && (write.range.start.0..write.range.end().0)
                    .any(|sector| found[write.volume].data.sector(sector) == Some(&number))
        };
        let Some(newest) = recent.iter().copied().rev().find(|number| holds_some(*number)) else {
            return Ok(());
        };
        let issued = self.writes[newest as usize].issued;
        for number in recent.iter().copied() {
            let write = &self.writes[number as usize];
            if write.done < issued && !self.has(found[write.volume], number, false) {
                let volumes = [write.volume, self.writes[newest as usize].volume];
                let instead = self.missing(found[write.volume], number, false);
                let text = format!(
                    "node {disk} lacks write {number}, but holds write {newest}, which was issued after that had \
                     completed, of volumes {volumes:?}; sector and what is there: {instead:?}"
                );
                return Err(Violation { rule: "a mirror keeps the order of writes", text });
            }
        }
        Ok(())
    }

    /// A write did not complete and never will.
    pub(crate) fn give_up_write(&mut self, number: Tag) {
        let now = self.tick();
        let write = &mut self.writes[number as usize];
        write.done = now;
        self.volumes[write.volume].zeroing.retain(|other| *other != number);
    }

    fn possible(&self, disk: NodeId, volume: VolumeIndex, sector: u64) -> &[Tag] {
        self.volumes[volume].views[disk].get(&sector).map_or(ZERO, Vec::as_slice)
    }

    /// What a read of these sectors of a disk may find now.
    pub(crate) fn expected(&self, disk: NodeId, volume: VolumeIndex, range: SectorRange) -> Vec<Vec<Tag>> {
        (range.start.0..range.end().0).map(|sector| self.possible(disk, volume, sector).to_vec()).collect()
    }

    /// Whether a value is one of those. Where nobody has written yet, it does not matter whose leftovers are there.
    fn holds(&self, possible: &[Tag], value: Tag) -> bool {
        let mut writes = possible.iter().map(|number| self.writes[*number as usize]);
        let is_leftover = self.is_leftover(value);
        writes.any(|write| write.value == value || (is_leftover && write.found))
    }

    /// Whether a value found in a sector is this write's, or of one that was not over when it was issued.
    fn not_older(&self, sector: u64, value: Tag, write: &WriteRecord) -> bool {
        let later = |number: Tag| {
            let other = &self.writes[number as usize];
            other.volume == write.volume && other.done > write.issued
        };
        let covers = |number: Tag| {
            let range = self.writes[number as usize].range;
            range.start.0 <= sector && sector < range.end().0
        };
        match value {
            value if value == write.value => true,
            0 => self.volumes[write.volume].zeroes.iter().any(|number| covers(*number) && later(*number)),
            number => later(number),
        }
    }

    /// Whether a disk has a write, or what overwrote it. `durable`: also after a power cut now.
    pub(crate) fn has(&self, disk: &Disk, number: Tag, durable: bool) -> bool {
        self.missing(disk, number, durable).is_none()
    }

    /// The first sector in which a disk lacks a write, and what it holds there instead.
    fn missing(&self, disk: &Disk, number: Tag, durable: bool) -> Option<(u64, Tag)> {
        let write = self.writes[number as usize];
        let range = write.range.start.0..write.range.end().0;
        let wrong = |sector: u64| {
            let older = |value: Option<&Tag>| {
                let value = value.copied().unwrap_or(0);
                (!self.not_older(sector, value, &write)).then_some((sector, value))
            };
            if durable { disk.data.outcomes(sector).find_map(older) } else { older(disk.data.sector(sector)) }
        };
        if write.value == 0 {
            self.volumes[write.volume].views[0].range(range).find_map(|(sector, _)| wrong(*sector))
        } else {
            range.into_iter().find_map(wrong)
        }
    }

    /// A node has heard that its peer is gone: what that may have lost is kept here alone, and the node knows it.
    pub(crate) fn notices_loss(&mut self, node: NodeId, volume: VolumeIndex) {
        let known = &mut self.volumes[volume];
        let unnoticed = std::mem::take(&mut known.unnoticed[node]);
        known.exclusive[node].extend(unnoticed);
    }

    /// A write of this node's clients completed. `on`: which disks have it; `good`: which disks hold good data as a
    /// whole: what another one has does not make it worth keeping. `unnoticed`: the issuer cannot know yet that the peer
    /// has lost it.
    pub(crate) fn complete_write(
        &mut self,
        number: Tag,
        issuer: NodeId,
        on: [bool; 2],
        good: [bool; 2],
        unnoticed: bool,
    ) {
        let now = self.tick();
        self.writes[number as usize].done = now;
        let write = self.writes[number as usize];
        self.volumes[write.volume].zeroing.retain(|other| *other != number);
        for disk in 0..2 {
            if on[disk] {
                self.settle_view(disk, number, &write);
            }
            let known = &mut self.volumes[write.volume];
            if on[disk] && disk == issuer {
                known.unflushed[disk].push(number);
            } else if !on[disk] && on[1 - disk] && good[1 - disk] {
                let later = unnoticed && issuer == 1 - disk;
                let only_there = if later { &mut known.unnoticed } else { &mut known.exclusive };
                only_there[1 - disk].insert(number);
            }
        }
    }

    fn settle_view(&mut self, disk: NodeId, number: Tag, write: &WriteRecord) {
        let writes = &self.writes;
        let view = &mut self.volumes[write.volume].views[disk];
        for (_, possible) in view.range_mut(write.range.start.0..write.range.end().0) {
            possible.retain(|other| *other == number || writes[*other as usize].done > write.issued);
            if !possible.contains(&number) {
                possible.push(number);
            }
        }
    }

    /// A flush that was issued at `issued` completed on a node whose disk is this.
    pub(crate) fn complete_flush(
        &mut self,
        disk: &Disk,
        node: NodeId,
        volume: VolumeIndex,
        issued: u64,
    ) -> Result<(), Violation> {
        let unflushed = std::mem::take(&mut self.volumes[volume].unflushed[node]);
        let (confirmed, rest): (Vec<_>, Vec<_>) =
            unflushed.into_iter().partition(|number| self.writes[*number as usize].done < issued);
        self.volumes[volume].unflushed[node] = rest;
        for number in confirmed {
            if let Some((sector, value)) = self.missing(disk, number, true) {
                let text = format!(
                    "write {number} completed before a flush on node {node} that completed, and could still be \
                     lost: sector {sector} may be as write {value} left it"
                );
                return Err(Violation { rule: "flush means flush", text });
            }
        }
        Ok(())
    }

    /// A read completed.
    pub(crate) fn complete_read(
        &self,
        disk: NodeId,
        request: &ClientRequest,
        found: &crate::disk::Data,
    ) -> Result<(), Violation> {
        let (volume, range, issued) = (request.volume, request.range, request.issued);
        // Whatever was issued while the read was under way may have been found, also if it is overwritten by now.
        let meanwhile = |sector: u64, value: Tag| {
            let fits = |number: Tag| {
                let write = &self.writes[number as usize];
                write.volume == volume
                    && write.issued > issued
                    && write.range.start.0 <= sector
                    && sector < write.range.end().0
            };
            if value == 0 {
                self.volumes[volume].zeroes.iter().any(|number| fits(*number))
            } else {
                fits(value)
            }
        };
        let mut items = found.items.iter().peekable();
        for (offset, before) in request.expected.iter().enumerate() {
            let sector = range.start.0 + offset as u64;
            let value = match items.peek() {
                Some((at, value)) if *at == offset as u64 => {
                    items.next();
                    *value
                }
                _ => 0,
            };
            if !self.holds(before, value)
                && !self.holds(self.possible(disk, volume, sector), value)
                && !meanwhile(sector, value)
            {
                let text = format!("sector {sector} reads as write {value}, expected one of {before:?}");
                return Err(Violation { rule: "no stale read", text });
            }
        }
        Ok(())
    }

    /// Whether everything in use on a disk, so many sectors, is what its view says.
    pub(crate) fn check_disk(
        &self,
        disk: &Disk,
        node: NodeId,
        volume: VolumeIndex,
        size: Sector,
        when: &str,
    ) -> Result<(), Violation> {
        let view = &self.volumes[volume].views[node];
        let wrong = |sector: u64, value: Tag, possible: &[Tag]| {
            let text = format!(
                "{when}: sector {sector} of volume {volume} of node {node} holds write {value}, expected one of {possible:?}"
            );
            Err(Violation { rule: "no acknowledged write is lost", text })
        };
        for (sector, possible) in view.range(..size.0) {
            let value = disk.data.sector(*sector).copied().unwrap_or(0);
            if !self.holds(possible, value) {
                return wrong(*sector, value, possible);
            }
        }
        for (sector, value) in disk.data.contents().range(..size.0) {
            if !view.contains_key(sector) {
                return wrong(*sector, *value, ZERO);
            }
        }
        Ok(())
    }

    /// A node lost power: what its disk holds now may be served from it.
    pub(crate) fn power_lost(
        &mut self,
        node: NodeId,
        volume: VolumeIndex,
        before: &BTreeMap<u64, Tag>,
        disk: &Disk,
    ) {
        let after = disk.data.contents();
        let mut changed: Vec<u64> = before.keys().chain(after.keys()).copied().collect();
        changed.sort_unstable();
        changed.dedup();
        for sector in changed {
            let value = after.get(&sector).copied().unwrap_or(0);
            if value != before.get(&sector).copied().unwrap_or(0) {
                let view = &mut self.volumes[volume].views[node];
                view.entry(sector).or_insert_with(|| ZERO.to_vec()).push(value);
            }
        }
        let mut exclusive = std::mem::take(&mut self.volumes[volume].exclusive[node]);
        exclusive.retain(|number| self.has(disk, *number, false));
        self.volumes[volume].exclusive[node] = exclusive;
    }

    /// The daemon of a node is gone: nobody there can flush for those who wrote before.
    pub(crate) fn daemon_lost(&mut self, node: NodeId) {
        for known in &mut self.volumes {
            known.unflushed[node].clear();
            known.unnoticed[node].clear();
        }
    }

    /// A node goes on without its disk. What that had alone without the node's knowing it is lost, as if the node had failed
    /// with it: two failures at once, the peer's power and this disk. What it knew of is not: it takes no older data for good.
    /// Nor does it keep the order of writes with other volumes: it gets no more of them.
    pub(crate) fn disk_lost(&mut self, node: NodeId, volume: VolumeIndex) {
        self.volumes[volume].unnoticed[node].clear();
        self.forget_mirrored(node, volume);
    }

    /// A disk begins to be overwritten with the other's data.
    pub(crate) fn becomes_target(&mut self, node: NodeId, volume: VolumeIndex) -> Result<(), Violation> {
        let known = &mut self.volumes[volume];
        if !known.excused[node] && !known.exclusive[node].is_empty() {
            let some: Vec<_> = known.exclusive[node].iter().take(5).collect();
            let text = format!("node {node} becomes SyncTarget, which discards completed writes {some:?}");
            return Err(Violation { rule: "no completed write is discarded silently", text });
        }
        known.exclusive[node].clear();
        known.unflushed[node].clear();
        known.views[node] = known.views[1 - node].clone();
        self.forget_mirrored(node, volume);
        Ok(())
    }

    /// A node died before the resync that was to overwrite its disk had begun to: so long its superblock says that the disk is
    /// consistent (io spec I9), and what it holds may be served, as old as it is.
    pub(crate) fn is_what_it_was(&mut self, node: NodeId, volume: VolumeIndex, disk: &Disk) {
        for (sector, possible) in &mut self.volumes[volume].views[node] {
            possible.push(disk.data.sector(*sector).copied().unwrap_or(0));
        }
    }

    /// A disk has become equal to the other's, or to what that was until its node failed or left.
    pub(crate) fn became_equal(&mut self, node: NodeId, volume: VolumeIndex, disk: &Disk, with_peer: bool) {
        let known = &mut self.volumes[volume];
        if with_peer {
            known.views[node] = known.views[1 - node].clone();
            known.exclusive = [BTreeSet::new(), BTreeSet::new()];
            known.unnoticed = [BTreeSet::new(), BTreeSet::new()];
            known.excused = [false; 2];
        } else {
            let mut others = std::mem::take(&mut known.exclusive[1 - node]);
            known.exclusive[node].clear();
            others.retain(|number| !self.has(disk, *number, false));
            self.volumes[volume].exclusive[1 - node] = others;
        }
    }

    /// A write on its way to a disk that is taken for equal to the other's: what the disk holds there now may be served.
    pub(crate) fn may_still_lack(&mut self, disk: NodeId, contents: &Disk, number: Tag) {
        let WriteRecord { volume, range, .. } = self.writes[number as usize];
        for sector in range.start.0..range.end().0 {
            let value = contents.data.sector(sector).copied().unwrap_or(0);
            let possible = self.volumes[volume].views[disk].entry(sector).or_insert_with(|| ZERO.to_vec());
            possible.extend([value, number]);
        }
    }

    /// An administrator says that what this disk holds is good.
    pub(crate) fn declare_good(&mut self, node: NodeId, volume: VolumeIndex, disk: &Disk) {
        let known = &mut self.volumes[volume];
        let view: View = known.views[node]
            .keys()
            .map(|sector| (*sector, vec![disk.data.sector(*sector).copied().unwrap_or(0)]))
            .collect();
        known.views[node] = view;
        for (sector, value) in disk.data.contents() {
            known.views[node].entry(*sector).or_insert_with(|| vec![*value]);
        }
        known.excused[1 - node] = true;
    }

    /// Sectors in which two disks differ, `busy` ranges left out.
    pub(crate) fn differences(disks: [&Disk; 2], busy: &[SectorRange]) -> Vec<u64> {
        let mut found = Vec::new();
        let [mut one, mut other] = disks.map(|disk| disk.data.contents().iter().peekable());
        loop {
            match (one.peek(), other.peek()) {
                (Some(left), Some(right)) if left == right => {
                    one.next();
                    other.next();
                }
                (Some((left, _)), Some((right, _))) => {
                    let (left, right) = (**left, **right);
                    found.push(left.min(right));
                    one.next_if(|_| left <= right);
                    other.next_if(|_| right <= left);
                }
                (left, right) => {
                    let Some((sector, _)) = left.or(right) else { break };
                    found.push(**sector);
                    one.next();
                    other.next();
                }
            }
        }
        found.retain(|sector| !busy.iter().any(|range| range.start.0 <= *sector && *sector < range.end().0));
        found
    }
}
