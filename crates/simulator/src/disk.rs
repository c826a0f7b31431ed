//! A disk with a volatile write cache.
//!
//! Fault model:
//!
//! * a completed write is visible to every later read, and lost or kept sector by sector when the power goes, unless it
//!   was forced (FUA), flushed behind, or the disk has no volatile cache;
//! * of several cached versions of a sector any may be the one that has reached the medium;
//! * a write in flight when the power goes is torn: any of its sectors may have been written, after the preflush that
//!   belongs to it;
//! * a write in flight when only the daemon dies is done as a whole or not at all, and the cache survives.
//!
//! Contents are sparse: a sector nobody wrote is zero. Data sectors hold the number of the write that wrote them,
//! metadata sectors their bytes.

use std::collections::BTreeMap;
use std::rc::Rc;

use crate::random::Random;

/// The number of the client's write that a data sector holds; a sector of zeroes has none.
pub(crate) type Tag = u64;

/// The bytes of a metadata sector.
pub(crate) type MetadataSector = Rc<[u8; 512]>;

/// The sectors of a range that are not zero: offset from its start, content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sparse<V> {
    /// Length in sectors.
    pub(crate) sectors: u64,
    /// Ascending offsets.
    pub(crate) items: Vec<(u64, V)>,
}

impl<V> Sparse<V> {
    /// Zeroes.
    pub(crate) const fn zeroes(sectors: u64) -> Self {
        Self { sectors, items: Vec::new() }
    }
}

/// Data as clients and peers pass it around.
pub(crate) type Data = Sparse<Tag>;

impl Data {
    /// Bytes that stand for the content where a digest is wanted.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.sectors.to_le_bytes().to_vec();
        for (offset, tag) in &self.items {
            bytes.extend(offset.to_le_bytes());
            bytes.extend(tag.to_le_bytes());
        }
        bytes
    }
}

/// A version of a sector in the cache: the count of completions, and what was written (`None`: zeroes).
type Version<V> = (u64, Option<V>);

/// One of the two areas of a disk: data or metadata.
#[derive(Clone, Debug)]
pub(crate) struct Area<V> {
    current: BTreeMap<u64, V>,
    durable: BTreeMap<u64, V>,
    cached: BTreeMap<u64, Vec<Version<V>>>,
}

impl<V: Clone + PartialEq> Area<V> {
    const fn new() -> Self {
        Self { current: BTreeMap::new(), durable: BTreeMap::new(), cached: BTreeMap::new() }
    }

    /// What a read finds.
    pub(crate) fn read(&self, start: u64, sectors: u64) -> Sparse<V> {
        let items = self
            .current
            .range(start..start + sectors)
            .map(|(at, value)| (at - start, value.clone()))
            .collect();
        Sparse { sectors, items }
    }

    /// What a read of one sector finds.
    pub(crate) fn sector(&self, at: u64) -> Option<&V> {
        self.current.get(&at)
    }

    /// Everything a read of the whole area finds.
    pub(crate) const fn contents(&self) -> &BTreeMap<u64, V> {
        &self.current
    }

    /// Every value that may be there after a power cut now, writes in flight left out.
    pub(crate) fn outcomes(&self, at: u64) -> impl Iterator<Item = Option<&V>> {
        let cached = self.cached.get(&at).into_iter().flatten().map(|(_, value)| value.as_ref());
        std::iter::once(self.durable.get(&at)).chain(cached)
    }

    fn put(&mut self, at: u64, value: Option<V>, volatile: Option<u64>) {
        match (&value, volatile) {
            (value, Some(count)) => self.cached.entry(at).or_default().push((count, value.clone())),
            (Some(value), None) => {
                self.durable.insert(at, value.clone());
                self.cached.remove(&at);
            }
            (None, None) => {
                self.durable.remove(&at);
                self.cached.remove(&at);
            }
        }
        match value {
            Some(value) => self.current.insert(at, value),
            None => self.current.remove(&at),
        };
    }

    /// Writes the sectors of a range for which `chosen` says so.
    fn write(
        &mut self,
        start: u64,
        data: &Sparse<V>,
        volatile: Option<u64>,
        mut chosen: impl FnMut() -> bool,
    ) {
        let end = start + data.sectors;
        let mut zeroed: Vec<u64> = self.current.range(start..end).map(|(at, _)| *at).collect();
        zeroed.extend(self.durable.range(start..end).map(|(at, _)| *at));
        zeroed.extend(self.cached.range(start..end).map(|(at, _)| *at));
        zeroed.sort_unstable();
        zeroed.dedup();
        zeroed.retain(|at| data.items.binary_search_by_key(&(at - start), |(offset, _)| *offset).is_err());
        for at in zeroed {
            if chosen() {
                self.put(at, None, volatile);
            }
        }
        for (offset, value) in &data.items {
            if chosen() {
                self.put(start + offset, Some(value.clone()), volatile);
            }
        }
    }

    fn flush(&mut self, count: u64) {
        let durable = &mut self.durable;
        self.cached.retain(|at, versions| {
            if let Some((_, value)) = versions.iter().rev().find(|(written, _)| *written <= count) {
                match value {
                    Some(value) => durable.insert(*at, value.clone()),
                    None => durable.remove(at),
                };
            }
            versions.retain(|(written, _)| *written > count);
            !versions.is_empty()
        });
    }

    /// The same without what is read now, which a loss of power replaces: see [`lose_power`](Self::lose_power).
    fn before_power_loss(&self) -> Self {
        Self { current: BTreeMap::new(), durable: self.durable.clone(), cached: self.cached.clone() }
    }

    fn lose_power(&mut self, random: &mut Random, fate: CacheFate) {
        for (at, versions) in std::mem::take(&mut self.cached) {
            let kept = match fate {
                CacheFate::Lost => 0,
                CacheFate::Kept => versions.len(),
                CacheFate::Mixed => random.below(versions.len() as u64 + 1) as usize,
            };
            if kept > 0 {
                match &versions[kept - 1].1 {
                    Some(value) => self.durable.insert(at, value.clone()),
                    None => self.durable.remove(&at),
                };
            }
        }
        self.current.clone_from(&self.durable);
    }
}

/// What becomes of the cache in a power cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CacheFate {
    Lost,
    Kept,
    Mixed,
}

/// An operation that changes a disk.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    /// Data, or zeroes.
    Data { start: u64, data: Rc<Data> },
    /// Metadata.
    Metadata { start: u64, data: Rc<Sparse<MetadataSector>> },
    /// Nothing but the flush in front.
    Flush,
}

/// A change in flight.
#[derive(Clone, Debug)]
pub(crate) struct Write {
    /// What.
    pub(crate) change: Change,
    /// The cache is flushed first, of what had completed when this was submitted: so many writes.
    pub(crate) preflush: Option<u64>,
    /// On the medium when it completes.
    pub(crate) fua: bool,
}

/// A disk.
#[derive(Clone, Debug)]
pub(crate) struct Disk {
    /// What clients and the peer store.
    pub(crate) data: Area<Tag>,
    /// Superblock, activity log, bitmap.
    pub(crate) metadata: Area<MetadataSector>,
    /// Whether there is a volatile write cache.
    pub(crate) volatile: bool,
    completed: u64,
}

impl Disk {
    /// A disk full of zeroes.
    pub(crate) const fn new(volatile: bool) -> Self {
        Self { data: Area::new(), metadata: Area::new(), volatile, completed: 0 }
    }

    /// How many changes have completed.
    pub(crate) const fn completed(&self) -> u64 {
        self.completed
    }

    /// A change completes.
    pub(crate) fn complete(&mut self, write: &Write) {
        self.apply(write, || true, true);
    }

    /// A change fails: what it was to write is there in any part, metadata as a whole or not at all.
    pub(crate) fn fail(&mut self, write: &Write, random: &mut Random) {
        let whole = random.one_in(2);
        match &write.change {
            Change::Data { .. } => self.apply(write, || random.one_in(2), false),
            Change::Metadata { .. } if whole => self.apply(write, || true, false),
            Change::Metadata { .. } | Change::Flush => {}
        }
    }

    fn apply(&mut self, write: &Write, chosen: impl FnMut() -> bool, preflush: bool) {
        if preflush && let Some(count) = write.preflush {
            self.data.flush(count);
            self.metadata.flush(count);
        }
        self.completed += 1;
        let volatile = (self.volatile && !write.fua).then_some(self.completed);
        match &write.change {
            Change::Data { start, data } => self.data.write(*start, data, volatile, chosen),
            Change::Metadata { start, data } => self.metadata.write(*start, data, volatile, chosen),
            Change::Flush => {}
        }
    }

    /// The power goes, with these changes in flight.
    pub(crate) fn lose_power<'a>(&mut self, random: &mut Random, in_flight: impl Iterator<Item = &'a Write>) {
        let all = random.below(4);
        for write in in_flight {
            let fate = if all < 3 { all } else { random.below(3) };
            match fate {
                0 => {}
                1 => self.apply(write, || true, true),
                _ if random.one_in(2) => {
                    let mut coin = random.fork();
                    self.apply(write, || coin.one_in(2), true);
                }
                // The flush in front is not over yet.
                _ if write.preflush.is_some() => {}
                _ => self.apply(write, || random.one_in(3), false),
            }
        }
        let fate = random.pick(&[CacheFate::Lost, CacheFate::Kept, CacheFate::Mixed, CacheFate::Mixed]);
        self.data.lose_power(random, fate);
        self.metadata.lose_power(random, fate);
    }

    /// The disk as it might be if the power went now.
    pub(crate) fn without_power<'a>(
        &self,
        random: &mut Random,
        in_flight: impl Iterator<Item = &'a Write>,
    ) -> Self {
        let mut disk = Self {
            data: self.data.before_power_loss(),
            metadata: self.metadata.before_power_loss(),
            volatile: self.volatile,
            completed: self.completed,
        };
        disk.lose_power(random, in_flight);
        disk
    }

    /// The daemon dies, with these changes in flight.
    pub(crate) fn lose_daemon<'a>(
        &mut self,
        random: &mut Random,
        in_flight: impl Iterator<Item = &'a Write>,
    ) {
        for write in in_flight {
            if random.one_in(2) {
                self.apply(write, || true, true);
            }
        }
    }

    /// Bytes of metadata.
    pub(crate) fn metadata_bytes(&self, start: u64, sectors: u64) -> Vec<u8> {
        let mut bytes = vec![0; (sectors * 512) as usize];
        for (offset, sector) in self.metadata.read(start, sectors).items {
            let at = (offset * 512) as usize;
            bytes[at..at + 512].copy_from_slice(&sector[..]);
        }
        bytes
    }

    /// A change that writes these bytes of metadata.
    pub(crate) fn metadata_change(start: u64, bytes: &[u8]) -> Change {
        let items = bytes
            .as_chunks::<512>()
            .0
            .iter()
            .enumerate()
            .map(|(index, sector)| (index as u64, Rc::new(*sector)))
            .collect();
        Change::Metadata { start, data: Rc::new(Sparse { sectors: bytes.len() as u64 / 512, items }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(start: u64, tag: Tag) -> Write {
        let data = Data { sectors: 1, items: vec![(0, tag)] };
        Write { change: Change::Data { start, data: Rc::new(data) }, preflush: None, fua: false }
    }

    #[test]
    fn what_was_flushed_survives_and_what_was_not_may_go() {
        let mut lost = false;
        for seed in 0..50 {
            let mut disk = Disk::new(true);
            disk.complete(&write(0, 1));
            let flush = Write { change: Change::Flush, preflush: Some(disk.completed()), fua: false };
            disk.complete(&write(0, 2));
            disk.complete(&flush);
            disk.complete(&write(1, 3));
            disk.lose_power(&mut Random::new(seed), std::iter::empty());
            assert!(matches!(disk.data.sector(0), Some(1 | 2)), "{:?}", disk.data.sector(0));
            lost |= disk.data.sector(1).is_none();
        }
        assert!(lost);
    }

    #[test]
    fn a_forced_write_leaves_the_rest_of_the_cache_alone() {
        let mut disk = Disk::new(true);
        disk.complete(&write(0, 1));
        disk.complete(&Write { fua: true, ..write(1, 2) });
        assert_eq!(disk.data.outcomes(0).count(), 2);
        assert_eq!(disk.data.outcomes(1).collect::<Vec<_>>(), [Some(&2)]);
    }
}
