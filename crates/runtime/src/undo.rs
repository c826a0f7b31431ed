//! The side file of an undo (`resync-undo`): what blocks of a disk held before they were overwritten.
//!
//! A sparse file: one block of header, a bitmap with a bit for each block of the device, and behind it the old content of
//! block N at its place N. A block counts once its bit is set, and its bit is written when its content is durable; both
//! are durable before [`Undo::keep`] returns, so that whoever overwrites the block afterwards finds it kept whatever
//! happens then. Where that cannot be had the file says that it is incomplete, before anything else may be overwritten.
//!
//! [`Undo::read`] shows the device as it was: kept blocks from here, the others from the disk, also while it is written to.
//!
//! Everything here blocks: it is for threads of its own.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use udrbd_units::{BLOCK_BYTES as BLOCK, BLOCK_SECTORS, SECTOR_BYTES, Sector};

use crate::Errno;
use crate::disk::Disk;

const MAGIC: &[u8; 8] = b"udrbundo";
const VERSION: u32 = 1;
const HEADER_BYTES: u64 = 4096;
/// Where in the header the path of the disk is, and the longest there is.
const PATH_START: usize = 40;
const PATH_BYTES_MAX: usize = HEADER_BYTES as usize - PATH_START;
/// The bitmap is written in pieces of this size.
const PAGE_BYTES: u64 = 4096;
const WORDS_PER_PAGE: u64 = PAGE_BYTES / 8;
/// Blocks copied with one read.
const RUN_BLOCKS_MAX: u64 = 256;

/// What is known of an undo.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UndoInfo {
    /// When it began, microseconds since the epoch.
    pub began_us: i64,
    /// The size of the device then.
    pub size: Sector,
    /// Blocks of 4 KiB that are kept.
    pub kept_blocks: u64,
    /// Blocks were overwritten that are not kept.
    pub incomplete: bool,
    /// The disk it is of.
    pub disk: PathBuf,
}

/// What is kept, as it is on disk.
#[derive(Debug)]
struct Kept {
    file: Arc<File>,
    info: UndoInfo,
    words: Vec<u64>,
    /// Tells one undo from the next.
    number: u64,
}

#[derive(Debug, Default)]
struct State {
    kept: Option<Kept>,
    count: u64,
    /// The disk whose blocks are kept, while it is attached.
    disk: Option<Disk>,
}

/// The undo of one disk, whether there is one or not.
#[derive(Debug)]
pub struct Undo {
    path: PathBuf,
    /// How many bytes of blocks may be kept.
    bytes_max: Option<u64>,
    state: Mutex<State>,
}

impl Undo {
    /// Looks for an undo at `path`. `disk` is the one whose blocks it keeps.
    ///
    /// # Errors
    /// There is something that cannot be read, or is no undo.
    pub fn open(path: &Path, bytes_max: Option<u64>, disk: Disk) -> io::Result<Self> {
        let kept = match OpenOptions::new().read(true).write(true).open(path) {
            Ok(file) => {
                let mut kept = read_kept(file)?;
                // That of another disk says nothing of this one.
                kept.info.incomplete |= kept.info.disk != disk.path();
                Some(kept)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let state = State { kept, count: 0, disk: Some(disk) };
        Ok(Self { path: path.to_owned(), bytes_max, state: Mutex::new(state) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A thread that died while holding it left it whole: each change is one assignment.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the side file is, or would be.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What there is; `None` where there is no undo.
    #[must_use]
    pub fn info(&self) -> Option<UndoInfo> {
        self.state().kept.as_ref().map(|kept| kept.info.clone())
    }

    /// The bits of the blocks that are kept, where the undo is complete.
    #[must_use]
    pub fn kept_words(&self) -> Option<Vec<u64>> {
        let state = self.state();
        state.kept.as_ref().filter(|kept| !kept.info.incomplete).map(|kept| kept.words.clone())
    }

    /// The disk is being closed: its claim must not outlive it.
    pub fn release_disk(&self) {
        self.state().disk = None;
    }

    /// Begins an undo of a device of this size.
    ///
    /// # Errors
    /// `EEXIST` where there is one, else what the file system says; there is none then.
    pub fn begin(&self, size: Sector, began_us: i64) -> Result<(), Errno> {
        let disk = {
            let state = self.state();
            if state.kept.is_some() {
                return Err(Errno::EEXIST);
            }
            state.disk.as_ref().ok_or(Errno::ENODEV)?.path().to_owned()
        };
        let info = UndoInfo { began_us, size, kept_blocks: 0, incomplete: false, disk };
        let made = self.make(&info);
        let file = made.map_err(|error| {
            if error.kind() != io::ErrorKind::AlreadyExists {
                // What there is of it is nothing. A file that came there meanwhile is somebody else's.
                let _ = std::fs::remove_file(&self.path);
            }
            errno_of(&error)
        })?;
        let mut state = self.state();
        state.count += 1;
        let number = state.count;
        let words = vec![0; bitmap_words(size) as usize];
        state.kept = Some(Kept { file: Arc::new(file), info, words, number });
        Ok(())
    }

    fn make(&self, info: &UndoInfo) -> io::Result<File> {
        let folder = self.path.parent().unwrap_or(Path::new("/"));
        std::fs::create_dir_all(folder)?;
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create_new(true).mode(0o600).open(&self.path)?;
        file.set_len(data_start(info.size) + blocks_of(info.size) * BLOCK)?;
        file.write_all_at(&header(info), 0)?;
        file.sync_all()?;
        File::open(folder)?.sync_all()?;
        Ok(file)
    }

    /// Keeps what runs of blocks (the first, and how many) hold now. They are durable afterwards, or the file says that it is
    /// incomplete.
    ///
    /// # Errors
    /// `ENOSPC` where there is no room, `ENOENT` where there is no undo, else what the disks say.
    pub fn keep(&self, runs: &[(u64, u64)]) -> Result<(), Errno> {
        let result = self.try_keep(runs);
        if result.is_err() {
            self.mark_incomplete();
        }
        result
    }

    fn try_keep(&self, runs: &[(u64, u64)]) -> Result<(), Errno> {
        let (file, disk, info, number) = {
            let state = self.state();
            let kept = state.kept.as_ref().ok_or(Errno::ENOENT)?;
            let disk = state.disk.clone().ok_or(Errno::ENODEV)?;
            (Arc::clone(&kept.file), disk, kept.info.clone(), kept.number)
        };
        if info.incomplete {
            return Err(Errno::ENOSPC);
        }
        let wanted: u64 = runs.iter().map(|(_, blocks)| blocks).sum();
        if self.bytes_max.is_some_and(|max| (info.kept_blocks + wanted) * BLOCK > max) {
            return Err(Errno::ENOSPC);
        }
        let mut bytes = Vec::new();
        for (first, blocks) in runs {
            let mut block = *first;
            let end = first + blocks;
            while block < end {
                let count = (end - block).min(RUN_BLOCKS_MAX);
                read_blocks(&disk, info.size, block, count, &mut bytes)?;
                file.write_all_at(&bytes, data_start(info.size) + block * BLOCK)
                    .map_err(|error| errno_of(&error))?;
                block += count;
            }
        }
        file.sync_data().map_err(|error| errno_of(&error))?;
        // The bits on disk follow; those in memory last of all, as they say that both are durable.
        let pages = {
            let state = self.state();
            let kept = state.kept.as_ref().filter(|kept| kept.number == number).ok_or(Errno::ENOENT)?;
            changed_pages(&kept.words, runs)
        };
        for (page, text) in &pages {
            file.write_all_at(text, HEADER_BYTES + page * PAGE_BYTES).map_err(|error| errno_of(&error))?;
        }
        file.sync_data().map_err(|error| errno_of(&error))?;
        let mut state = self.state();
        let kept = state.kept.as_mut().filter(|kept| kept.number == number).ok_or(Errno::ENOENT)?;
        for block in runs.iter().flat_map(|(first, blocks)| *first..first + blocks) {
            kept.words[(block / 64) as usize] |= 1 << (block % 64);
        }
        kept.info.kept_blocks += wanted;
        Ok(())
    }

    /// It was not looked after: what it has may be of any time.
    pub fn distrust(&self) {
        self.mark_incomplete();
    }

    /// Says so in the file, before anything may be overwritten that is not kept.
    fn mark_incomplete(&self) {
        let marked = {
            let mut state = self.state();
            let Some(kept) = &mut state.kept else { return };
            kept.info.incomplete = true;
            (Arc::clone(&kept.file), header(&kept.info))
        };
        let (file, text) = marked;
        let written = file.write_all_at(&text, 0).and_then(|()| file.sync_data());
        if written.is_err() {
            // A file that cannot say it must not be there for the next daemon.
            let _ = std::fs::remove_file(&self.path);
        }
    }

    /// Reads the device as it was. Offset and length are whole sectors.
    ///
    /// # Errors
    /// `EINVAL` beyond its end, `ENOENT` where there is no undo, `ENODEV` for blocks of a disk that is not attached.
    pub fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<(), Errno> {
        let mut done = 0;
        while done < bytes.len() {
            let at = offset + done as u64;
            let length = ((BLOCK - at % BLOCK) as usize).min(bytes.len() - done);
            self.read_in_block(at, &mut bytes[done..done + length])?;
            done += length;
        }
        Ok(())
    }

    fn read_in_block(&self, offset: u64, bytes: &mut [u8]) -> Result<(), Errno> {
        let block = offset / BLOCK;
        let look = || {
            let state = self.state();
            let kept = state.kept.as_ref().ok_or(Errno::ENOENT)?;
            if offset + bytes.len() as u64 > kept.info.size.0 * SECTOR_BYTES {
                return Err(Errno::EINVAL);
            }
            let is_kept = kept.words[(block / 64) as usize] >> (block % 64) & 1 == 1;
            let at = data_start(kept.info.size) + offset;
            let disk = if is_kept { None } else { Some(state.disk.clone().ok_or(Errno::ENODEV)?) };
            Ok((Arc::clone(&kept.file), at, disk))
        };
        if let (_, _, Some(disk)) = look()? {
            let mut found = vec![0; bytes.len()];
            disk.read_blocking(Sector(offset / SECTOR_BYTES), &mut found)?;
            // It may have been overwritten meanwhile, and then it is kept by now.
            if let (_, _, Some(_)) = look()? {
                bytes.copy_from_slice(&found);
                return Ok(());
            }
        }
        let (file, at, _) = look()?;
        file.read_exact_at(bytes, at).map_err(|error| errno_of(&error))
    }

    /// Removes the undo, and gives its space back.
    ///
    /// # Errors
    /// What the file system says.
    pub fn remove(&self) -> io::Result<()> {
        let kept = self.state().kept.take();
        if let Some(kept) = kept {
            // Whoever reads it still has it open: the space goes now.
            let _ = kept.file.set_len(0);
        }
        match std::fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// The bytes the side file takes up.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        std::fs::metadata(&self.path).map_or(0, |metadata| metadata.blocks() * SECTOR_BYTES)
    }
}

/// Blocks of a disk; the last one of the device may be short, and is filled up with zeroes.
fn read_blocks(disk: &Disk, size: Sector, first: u64, blocks: u64, bytes: &mut Vec<u8>) -> Result<(), Errno> {
    bytes.clear();
    bytes.resize((blocks * BLOCK) as usize, 0);
    let start = first * BLOCK_SECTORS;
    let sectors = (blocks * BLOCK_SECTORS).min(size.0.saturating_sub(start));
    disk.read_blocking(Sector(start), &mut bytes[..(sectors * SECTOR_BYTES) as usize])
}

/// The pages of the bitmap as they are with these runs.
fn changed_pages(words: &[u64], runs: &[(u64, u64)]) -> Vec<(u64, Vec<u8>)> {
    let mut numbers: Vec<u64> = runs
        .iter()
        .flat_map(|(first, blocks)| first / 64 / WORDS_PER_PAGE..=(first + blocks - 1) / 64 / WORDS_PER_PAGE)
        .collect();
    numbers.sort_unstable();
    numbers.dedup();
    let page = |number: u64| {
        let first = (number * WORDS_PER_PAGE) as usize;
        let mut page = words[first..first + WORDS_PER_PAGE as usize].to_vec();
        for block in runs.iter().flat_map(|(first, blocks)| *first..first + blocks) {
            let word = (block / 64) as usize;
            if let Some(word) = word.checked_sub(first).and_then(|place| page.get_mut(place)) {
                *word |= 1 << (block % 64);
            }
        }
        (number, page.iter().flat_map(|word| word.to_le_bytes()).collect())
    };
    numbers.into_iter().map(page).collect()
}

const fn blocks_of(size: Sector) -> u64 {
    size.0.div_ceil(BLOCK_SECTORS)
}

/// Words of the bitmap: whole pages.
const fn bitmap_words(size: Sector) -> u64 {
    blocks_of(size).div_ceil(64 * WORDS_PER_PAGE) * WORDS_PER_PAGE
}

const fn data_start(size: Sector) -> u64 {
    HEADER_BYTES + bitmap_words(size) * 8
}

fn header(info: &UndoInfo) -> Vec<u8> {
    let mut text = Vec::with_capacity(HEADER_BYTES as usize);
    text.extend_from_slice(MAGIC);
    text.extend_from_slice(&VERSION.to_le_bytes());
    text.extend_from_slice(&u32::from(info.incomplete).to_le_bytes());
    text.extend_from_slice(&info.size.0.to_le_bytes());
    text.extend_from_slice(&info.began_us.to_le_bytes());
    let path = info.disk.as_os_str().as_bytes();
    let path = &path[..path.len().min(PATH_BYTES_MAX)];
    text.extend_from_slice(&(path.len() as u64).to_le_bytes());
    text.extend_from_slice(path);
    text.resize(HEADER_BYTES as usize, 0);
    text
}

fn read_kept(file: File) -> io::Result<Kept> {
    let mut head = [0; HEADER_BYTES as usize];
    file.read_exact_at(&mut head, 0)?;
    let number = |at: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&head[at..at + 8]);
        u64::from_le_bytes(bytes)
    };
    let (version, flags) = (number(8) as u32, (number(8) >> 32) as u32);
    if &head[..8] != MAGIC || version != VERSION {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is no undo of this version"));
    }
    let size = Sector(number(16));
    let path = &head[PATH_START..PATH_START + (number(32) as usize).min(PATH_BYTES_MAX)];
    let disk = PathBuf::from(OsStr::from_bytes(path));
    let mut bytes = vec![0; (bitmap_words(size) * 8) as usize];
    file.read_exact_at(&mut bytes, HEADER_BYTES)?;
    let words: Vec<u64> = bytes
        .chunks_exact(8)
        .map(|word| word.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
        .collect();
    let kept_blocks = words.iter().map(|word| u64::from(word.count_ones())).sum();
    let info =
        UndoInfo { began_us: number(24).cast_signed(), size, kept_blocks, incomplete: flags & 1 == 1, disk };
    Ok(Kept { file: Arc::new(file), info, words, number: 0 })
}

fn errno_of(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

#[cfg(test)]
mod tests;
