//! Random writes whose every sector says which write it came from, a journal of what was promised,
//! and the check that every promise was kept.
//!
//! The journal is a text file: `i SEQUENCE BLOCK COUNT` is written before a write is issued,
//! `a SEQUENCE` after it was acknowledged, both straight to the file, so that it survives the death of
//! the writer (and, in the folder a guest shares with its host, the guest's power cut). After any crash
//! a sector may hold the last acknowledged write of its block or one issued later, and nothing else.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::target::{Target, TargetName};

/// Bytes in a block, the smallest thing a workload writes.
pub const BLOCK: u64 = 4096;
const SECTOR: usize = 512;
/// Most blocks that one read of a check takes.
const RUN_MAX: u64 = 256;
/// First word of every sector that a workload wrote.
const MARK: u64 = 0x7564_7262_645f_696f;

/// A stream of numbers that depends on its seed alone (SplitMix64).
#[derive(Debug, Clone)]
pub struct Numbers(pub u64);

impl Numbers {
    /// The next number.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`, which is not 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        assert!(limit > 0);
        self.draw() % limit
    }
}

/// Fills the sectors of `data`, which begins at block `block`, as write `sequence` does.
pub fn fill(data: &mut [u8], sequence: u64, block: u64) {
    for (index, sector) in data.chunks_exact_mut(SECTOR).enumerate() {
        let place = block * (BLOCK / SECTOR as u64) + index as u64;
        let mut numbers = Numbers(sequence.wrapping_mul(0x1_0000_0001) ^ place);
        for (word, bytes) in sector.chunks_exact_mut(8).enumerate() {
            let value = match word {
                0 => MARK,
                1 => sequence,
                2 => place,
                _ => numbers.draw(),
            };
            bytes.copy_from_slice(&value.to_le_bytes());
        }
    }
}

/// Which write a sector came from: `Some(0)` if it was never written, `None` if it is none of ours or damaged.
fn origin(sector: &[u8], place: u64) -> Option<u64> {
    if sector.iter().all(|byte| *byte == 0) {
        return Some(0);
    }
    let word = |index: usize| {
        sector[index * 8..index * 8 + 8].iter().rev().fold(0_u64, |value, byte| value << 8 | u64::from(*byte))
    };
    let sequence = word(1);
    let mut numbers = Numbers(sequence.wrapping_mul(0x1_0000_0001) ^ place);
    let intact =
        word(0) == MARK && word(2) == place && (3..SECTOR / 8).all(|index| word(index) == numbers.draw());
    (intact && sequence != 0).then_some(sequence)
}

/// What to write.
#[derive(Debug, Clone)]
pub struct Workload {
    /// Decides sizes and places.
    pub seed: u64,
    /// Number of writes; 0 for as many as fit into `limit`.
    pub count: u64,
    /// Time after which no further write is issued.
    pub limit: Option<Duration>,
    /// Smallest and largest write in bytes, multiples of 4 KiB.
    pub sizes: (u64, u64),
    /// Writes in flight at once.
    pub threads: u32,
    /// Part of the target that is written, as (offset, length) in bytes; the whole by default.
    pub region: Option<(u64, u64)>,
    /// A flush after so many writes of each thread; 0 for none but the last.
    pub flush_every: u64,
}

/// What a workload did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Done {
    /// Writes that were acknowledged.
    pub writes: u64,
    /// Their bytes.
    pub bytes: u64,
}

struct Journal {
    file: File,
    next: u64,
    /// Block ranges of the writes in flight: overlapping writes have no order, so there are none.
    in_flight: Vec<(u64, u64)>,
}

/// Runs the workload, continuing the journal if there is one.
///
/// # Errors
///
/// The first write or flush that fails; the journal knows which writes were acknowledged.
pub fn write(target: &TargetName, journal: &Path, workload: &Workload) -> Result<Done> {
    let size = Target::open(target)?.size()?;
    let (offset, length) = workload.region.unwrap_or((0, size));
    let (first, blocks) = (offset / BLOCK, length.min(size.saturating_sub(offset)) / BLOCK);
    let (least, most) = (workload.sizes.0 / BLOCK, workload.sizes.1 / BLOCK);
    if least == 0 || least > most || blocks < most {
        bail!("a region of {blocks} blocks cannot take writes of {least} to {most} blocks");
    }
    let last = if journal.exists() { read_journal(journal)?.last } else { 0 };
    let file = OpenOptions::new().create(true).append(true).open(journal).context("the journal")?;
    let shared = Mutex::new(Journal { file, next: last + 1, in_flight: Vec::new() });
    let issued = AtomicU64::new(0);
    let deadline = workload.limit.map(|limit| Instant::now() + limit);

    let worker = |thread: u64| -> Result<Done> {
        let mut target = Target::open(target)?;
        let mut numbers = Numbers(workload.seed.wrapping_mul(1_000_003) ^ thread);
        let mut data = vec![0; (most * BLOCK) as usize];
        let mut done = Done::default();
        while deadline.is_none_or(|deadline| Instant::now() < deadline) {
            if workload.count > 0 && issued.fetch_add(1, Ordering::SeqCst) >= workload.count {
                break;
            }
            let (sequence, block, count) = claim(&shared, &mut numbers, (first, blocks), (least, most))?;
            let bytes = &mut data[..(count * BLOCK) as usize];
            fill(bytes, sequence, block);
            target.write(block * BLOCK, bytes)?;
            release(&shared, sequence, block)?;
            done.writes += 1;
            done.bytes += count * BLOCK;
            if workload.flush_every > 0 && done.writes % workload.flush_every == 0 {
                target.flush()?;
            }
        }
        target.flush()?;
        Ok(done)
    };
    let results: Vec<Result<Done>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..u64::from(workload.threads.max(1)))
            .map(|thread| scope.spawn(move || worker(thread)))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|_| bail!("a writer panicked")))
            .collect()
    });
    let mut total = Done::default();
    for result in results {
        let done = result?;
        total.writes += done.writes;
        total.bytes += done.bytes;
    }
    Ok(total)
}

/// Chooses a place that no write in flight touches and notes the write in the journal.
fn claim(
    shared: &Mutex<Journal>,
    numbers: &mut Numbers,
    (first, blocks): (u64, u64),
    (least, most): (u64, u64),
) -> Result<(u64, u64, u64)> {
    loop {
        let count = least + numbers.below(most - least + 1);
        let block = first + numbers.below(blocks - count + 1);
        let mut journal = shared.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if journal.in_flight.iter().any(|(start, length)| block < start + length && *start < block + count) {
            continue;
        }
        let sequence = journal.next;
        journal.next += 1;
        journal.in_flight.push((block, count));
        journal.file.write_all(format!("i {sequence} {block} {count}\n").as_bytes())?;
        return Ok((sequence, block, count));
    }
}

fn release(shared: &Mutex<Journal>, sequence: u64, block: u64) -> Result<()> {
    let mut journal = shared.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    journal.file.write_all(format!("a {sequence}\n").as_bytes())?;
    journal.in_flight.retain(|(start, _)| *start != block);
    Ok(())
}

/// What a journal promises.
#[derive(Debug, Default)]
struct Promises {
    last: u64,
    /// Per block: the writes issued to it, in order.
    issued: HashMap<u64, Vec<u64>>,
    acknowledged: std::collections::HashSet<u64>,
}

fn read_journal(path: &Path) -> Result<Promises> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut promises = Promises::default();
    // A last line without its end was never finished, so nothing followed from it.
    for line in text.split_inclusive('\n').filter(|line| line.ends_with('\n')) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let number = |index: usize| -> Result<u64> {
            words
                .get(index)
                .and_then(|word| word.parse().ok())
                .with_context(|| format!("journal line `{line}`"))
        };
        match words.first() {
            Some(&"i") => {
                let (sequence, block, count) = (number(1)?, number(2)?, number(3)?);
                promises.last = promises.last.max(sequence);
                for block in block..block + count {
                    promises.issued.entry(block).or_default().push(sequence);
                }
            }
            Some(&"a") => {
                promises.acknowledged.insert(number(1)?);
            }
            _ => bail!("journal line `{line}`"),
        }
    }
    Ok(promises)
}

/// What a check found to be in order.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Checked {
    /// Blocks that were ever written.
    pub blocks: u64,
    /// Writes that were acknowledged.
    pub acknowledged: u64,
    /// Writes that were issued and never acknowledged: either outcome is right.
    pub unanswered: u64,
}

/// Checks every block the journal names.
///
/// # Errors
///
/// With the first sectors that hold what they must not, and how many there are.
pub fn verify(target: &TargetName, journal: &Path) -> Result<Checked> {
    let promises = read_journal(journal)?;
    let mut target = Target::open_to_read(target)?;
    let mut wrong = Vec::new();
    let mut wrong_count = 0_u64;
    let mut data = vec![0; (RUN_MAX * BLOCK) as usize];
    let mut blocks: Vec<_> = promises.issued.iter().collect();
    blocks.sort_by_key(|(block, _)| **block);
    for run in runs(&blocks) {
        let bytes = &mut data[..run.len() * BLOCK as usize];
        target.read(*run[0].0 * BLOCK, bytes)?;
        for ((block, issued), data) in run.iter().zip(bytes.chunks_exact(BLOCK as usize)) {
            let last = issued.iter().rev().find(|sequence| promises.acknowledged.contains(sequence));
            let last = last.copied().unwrap_or(0);
            for (index, sector) in data.chunks_exact(SECTOR).enumerate() {
                let place = **block * (BLOCK / SECTOR as u64) + index as u64;
                let found = origin(sector, place);
                let right =
                    found.is_some_and(|found| found >= last && (found == 0 || issued.contains(&found)));
                if !right {
                    wrong_count += 1;
                    if wrong.len() < 5 {
                        wrong.push(format!("sector {place}: last acknowledged {last}, found {found:?}"));
                    }
                }
            }
        }
    }
    if wrong_count > 0 {
        bail!("{wrong_count} sectors are wrong: {}", wrong.join("; "));
    }
    let acknowledged = promises.acknowledged.len() as u64;
    let all: std::collections::HashSet<u64> = promises.issued.values().flatten().copied().collect();
    Ok(Checked { blocks: blocks.len() as u64, acknowledged, unanswered: all.len() as u64 - acknowledged })
}

/// Cuts sorted blocks into runs without a gap, none longer than one read takes.
fn runs<'a, 'b>(blocks: &'a [(&'b u64, &'b Vec<u64>)]) -> Vec<&'a [(&'b u64, &'b Vec<u64>)]> {
    let mut runs = Vec::new();
    let mut start = 0;
    for end in 1..=blocks.len() {
        let ends = blocks.get(end).is_none_or(|(block, _)| **block != *blocks[end - 1].0 + 1);
        if ends || end - start == RUN_MAX as usize {
            runs.push(&blocks[start..end]);
            start = end;
        }
    }
    runs
}

/// Compares the first `bytes` of two targets and returns the block numbers that differ.
///
/// # Errors
///
/// If one cannot be read that far.
pub fn compare(first: &TargetName, second: &TargetName, bytes: u64) -> Result<Vec<u64>> {
    const CHUNK: u64 = 1 << 20;
    let (mut first, mut second) = (Target::open_to_read(first)?, Target::open_to_read(second)?);
    let mut different = Vec::new();
    let (mut one, mut two) = (vec![0; CHUNK as usize], vec![0; CHUNK as usize]);
    let bytes = bytes / BLOCK * BLOCK;
    let mut offset = 0;
    while offset < bytes {
        let length = CHUNK.min(bytes - offset) as usize;
        first.read(offset, &mut one[..length])?;
        second.read(offset, &mut two[..length])?;
        if one[..length] != two[..length] {
            for start in (0..length).step_by(BLOCK as usize) {
                if one[start..start + BLOCK as usize] != two[start..start + BLOCK as usize] {
                    different.push((offset + start as u64) / BLOCK);
                }
            }
        }
        offset += length as u64;
    }
    Ok(different)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(folder: &Path) -> TargetName {
        let path = folder.join("disk");
        File::create(&path).unwrap().set_len(8 << 20).unwrap();
        TargetName::Path(path)
    }

    fn workload(seed: u64) -> Workload {
        Workload {
            seed,
            count: 50,
            limit: None,
            sizes: (4096, 256 << 10),
            threads: 3,
            region: None,
            flush_every: 7,
        }
    }

    #[test]
    fn kept_promises_verify_and_a_lost_write_is_found() {
        let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let (target, journal) = (disk(folder.path()), folder.path().join("journal"));
        write(&target, &journal, &workload(1)).unwrap();
        write(&target, &journal, &workload(2)).unwrap();
        let checked = verify(&target, &journal).unwrap();
        assert_eq!((checked.acknowledged, checked.unanswered), (100, 0));

        // Take one acknowledged block back to what was there before anything was written.
        let promises = read_journal(&journal).unwrap();
        let block = *promises.issued.keys().next().unwrap();
        Target::open(&target).unwrap().write(block * BLOCK, &[0; BLOCK as usize]).unwrap();
        let error = verify(&target, &journal).unwrap_err().to_string();
        assert!(error.starts_with("8 sectors are wrong"), "{error}");
    }

    #[test]
    fn a_write_never_answered_may_be_there_or_not() {
        let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let (target, journal) = (disk(folder.path()), folder.path().join("journal"));
        std::fs::write(&journal, "i 1 5 1\na 1\ni 2 5 1\ni 3 6 1\ni 4 7").unwrap();
        let mut data = vec![0; BLOCK as usize];
        for sequence in [1, 2] {
            fill(&mut data, sequence, 5);
            Target::open(&target).unwrap().write(5 * BLOCK, &data).unwrap();
            assert_eq!(verify(&target, &journal).unwrap().unanswered, 2);
        }
        fill(&mut data, 9, 5);
        Target::open(&target).unwrap().write(5 * BLOCK, &data).unwrap();
        assert!(verify(&target, &journal).is_err());
    }

    #[test]
    fn comparing_names_the_blocks_that_differ() {
        let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let one = disk(folder.path());
        let two = TargetName::Path(folder.path().join("other"));
        std::fs::copy(folder.path().join("disk"), folder.path().join("other")).unwrap();
        assert!(compare(&one, &two, 8 << 20).unwrap().is_empty());
        Target::open(&two).unwrap().write(300 * BLOCK, &[1; BLOCK as usize]).unwrap();
        assert_eq!(compare(&one, &two, 8 << 20).unwrap(), [300]);
        assert!(compare(&one, &two, 1 << 20).unwrap().is_empty());
    }
}
