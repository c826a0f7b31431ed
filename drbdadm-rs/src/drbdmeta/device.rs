//! The device that holds the metadata: opened, measured, read and written (metadata spec 9.2).

use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::libc;
use udrbd_metadata::{BLOCK_BYTES, Block, Layout, Placement};
use udrbd_units::{SECTOR_BYTES, Sector};

use super::options::{Command, Context};
use super::{BAD, Exit, Outcome, USAGE, confirmed, lock, reason, say, stop, tell};

/// How many bytes are moved in one piece.
const PIECE_BYTES: usize = 1 << 20;
/// How often and after what pause a busy device is tried again. The kernel lets go of what a killed daemon had open only
/// when the last request of its ring has ended, which is some time after the process itself is gone.
const BUSY_TRIES: u32 = 100;
const BUSY_PAUSE: Duration = Duration::from_millis(50);
/// What direct I/O wants memory, offsets and lengths to be multiples of.
const ALIGNMENT: usize = 4096;

/// A buffer of which the bytes start where direct I/O wants them.
pub(super) struct Buffer {
    memory: Vec<u8>,
    start: usize,
    length: usize,
}

impl Buffer {
    /// A buffer of zeros.
    pub(super) fn new(length: usize) -> Self {
        let memory = vec![0; length + ALIGNMENT];
        let start = memory.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
        Self { memory, start, length }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.length]
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.length]
    }
}

/// An open device.
pub(super) struct Device {
    file: File,
    name: String,
    /// Its size in bytes.
    pub(super) bytes: u64,
    is_block_device: bool,
    verbose: u32,
    dry_run: bool,
    ignore_sanity_checks: bool,
    /// The bytes that belong to the metadata; nothing else is written.
    writable: Range<u64>,
}

impl Device {
    /// Opens the device of the command line for this program alone, unless it is shared by several volumes.
    pub(super) fn open(context: &Context) -> Outcome<Self> {
        let (file, is_block_device) = open_file(context)?;
        let mut handle = &file;
        let bytes = match handle.seek(SeekFrom::End(0)) {
            Ok(bytes) => bytes,
            Err(error) => {
                let text = reason(&error);
                return stop(USAGE, format_args!("can not tell the size of {}: {text}", context.device));
            }
        };
        Ok(Self {
            file,
            name: context.device.clone(),
            bytes,
            is_block_device,
            verbose: context.verbose,
            dry_run: context.dry_run,
            ignore_sanity_checks: context.ignore_sanity_checks,
            writable: 0..0,
        })
    }

    /// The size in sectors.
    pub(super) const fn sectors(&self) -> Sector {
        Sector(self.bytes / SECTOR_BYTES)
    }

    /// Allows writing to the areas of a layout, and nowhere else.
    pub(super) fn allow(&mut self, layout: &Layout) {
        let start = layout.first_sector().bytes();
        self.writable = start..start + u64::from(layout.md_size_sect) * SECTOR_BYTES;
    }

    /// Allows writing one block anywhere: to wipe a superblock that has been superseded.
    pub(super) fn allow_block(&mut self, offset: u64) {
        self.writable = offset..offset + BLOCK_BYTES as u64;
    }

    /// Reads `buffer` from byte `offset`.
    pub(super) fn read(&self, tag: &str, buffer: &mut Buffer, offset: u64) -> Outcome<()> {
        self.trace(tag, "pread", buffer.length, offset, "");
        let descriptor = self.file.as_raw_fd();
        let count = buffer.length;
        match self.file.read_exact_at(buffer.bytes_mut(), offset) {
            Ok(()) => Ok(()),
            Err(error) => {
                let text = reason(&error);
                let call = format_args!("pread({descriptor},...,{count},{offset}) in {tag} failed: {text}");
                stop(BAD, call)
            }
        }
    }

    /// Writes `buffer` at byte `offset`; it is durable after [`Self::flush`].
    pub(super) fn write(&self, tag: &str, buffer: &Buffer, offset: u64) -> Outcome<()> {
        let count = buffer.length;
        let end = offset.saturating_add(count as u64);
        if offset < self.writable.start || end > self.writable.end {
            let Range { start, end } = self.writable;
            tell(format_args!(
                "{tag}: offset+count ({offset}+{count}) not in meta data area range [{start}; {end}], aborted"
            ));
            if !self.ignore_sanity_checks {
                return stop(BAD, "If you want to force this, tell me to --ignore-sanity-checks");
            }
            tell("Ignored due to --ignore-sanity-checks");
        }
        if self.dry_run {
            self.line(tag, "pwrite", count, offset, " SKIPPED DUE TO DRY-RUN");
            return Ok(());
        }
        let written = self.file.write_all_at(buffer.bytes(), offset);
        self.trace(tag, "pwrite", count, offset, "");
        let descriptor = self.file.as_raw_fd();
        match written {
            Ok(()) => Ok(()),
            Err(error) => {
                let text = reason(&error);
                let call = format_args!("pwrite({descriptor},...,{count},{offset}) in {tag} failed: {text}");
                stop(BAD, call)
            }
        }
    }

    /// Makes what has been written durable.
    pub(super) fn flush(&self) -> Outcome<()> {
        match self.file.sync_all() {
            Ok(()) => Ok(()),
            Err(error) => stop(BAD, format_args!("fsync({}) failed: {}", self.name, reason(&error))),
        }
    }

    /// Reads one block.
    pub(super) fn read_block(&self, tag: &str, offset: u64) -> Outcome<Block> {
        let mut buffer = Buffer::new(BLOCK_BYTES);
        self.read(tag, &mut buffer, offset)?;
        let mut block = [0; BLOCK_BYTES];
        block.copy_from_slice(buffer.bytes());
        Ok(block)
    }

    /// Writes one block.
    pub(super) fn write_block(&self, tag: &str, block: &Block, offset: u64) -> Outcome<()> {
        let mut buffer = Buffer::new(BLOCK_BYTES);
        buffer.bytes_mut().copy_from_slice(block);
        self.write(tag, &buffer, offset)
    }

    /// Writes the same block over and over from `offset` on, `bytes` bytes in all.
    pub(super) fn fill(&self, tag: &str, block: &Block, offset: u64, bytes: u64) -> Outcome<()> {
        let mut done = 0;
        while done < bytes {
            let mut piece = Buffer::new((bytes - done).min(PIECE_BYTES as u64) as usize);
            for part in piece.bytes_mut().chunks_mut(BLOCK_BYTES) {
                part.copy_from_slice(&block[..part.len()]);
            }
            self.write(tag, &piece, offset + done)?;
            done += piece.length as u64;
        }
        Ok(())
    }

    /// Has the device itself turn a range into zeros. `false` if it cannot.
    pub(super) fn zero_fast(&self, offset: u64, bytes: u64) -> bool {
        // A hole in a file reads as zeros and takes no space; a device may unmap or write.
        let how = if self.is_block_device {
            FallocateFlags::FALLOC_FL_ZERO_RANGE
        } else {
            FallocateFlags::FALLOC_FL_PUNCH_HOLE
        };
        let inside = offset >= self.writable.start && offset.saturating_add(bytes) <= self.writable.end;
        let (Ok(offset), Ok(bytes)) = (i64::try_from(offset), i64::try_from(bytes)) else { return false };
        inside
            && (self.dry_run
                || fallocate(&self.file, how | FallocateFlags::FALLOC_FL_KEEP_SIZE, offset, bytes).is_ok())
    }

    /// Whether this is a block device and no regular file.
    pub(super) const fn is_block_device(&self) -> bool {
        self.is_block_device
    }

    fn trace(&self, tag: &str, call: &str, count: usize, offset: u64, note: &str) {
        if self.verbose >= 2 {
            self.line(tag, call, count, offset, note);
        }
    }

    fn line(&self, tag: &str, call: &str, count: usize, offset: u64, note: &str) {
        let descriptor = self.file.as_raw_fd();
        tell(format_args!(" {tag:<26}: {call}({descriptor}, ...,{count:6},{offset:12}){note}"));
    }
}

/// Opens the file of the device. Busy: asks whether to go on without a claim.
fn open_file(context: &Context) -> Outcome<(File, bool)> {
    let name = &context.device;
    let is_block_device = match std::fs::metadata(name) {
        Ok(metadata) => metadata.file_type().is_block_device(),
        // Opening will say what is wrong.
        Err(_) => true,
    };
    // Slots of one device are used by several volumes.
    let mut exclusive = !matches!(context.placement, Placement::Indexed(_));
    let mut direct = is_block_device;
    let mut tries = 0;
    loop {
        let mut flags = 0;
        if is_block_device && exclusive {
            flags |= libc::O_EXCL;
        }
        if direct {
            flags |= libc::O_DIRECT;
        }
        let opened = OpenOptions::new().read(true).write(true).custom_flags(flags).open(name);
        let opened = opened.and_then(|file| {
            if exclusive && !is_block_device && lock::take_file(&file).is_err() {
                return Err(Errno::EBUSY.into());
            }
            Ok(file)
        });
        let error = match opened {
            Ok(file) if is_block_device || file.metadata().is_ok_and(|metadata| metadata.is_file()) => {
                return Ok((file, is_block_device));
            }
            Ok(_) => return stop(USAGE, format_args!("'{name}' is not a block device!")),
            Err(error) => error,
        };
        tries += 1;
        if exclusive && tries < BUSY_TRIES && error.raw_os_error() == Some(libc::EBUSY) {
            std::thread::sleep(BUSY_PAUSE);
            continue;
        }
        tell(format_args!("open({name}) failed: {}", reason(&error)));
        match error.raw_os_error() {
            Some(libc::EBUSY) if exclusive => {
                let may_ask = context.force || context.command != Command::ApplyAl;
                if !may_ask || !confirmed(context, "Exclusive open failed. Do it anyways?") {
                    say("Operation canceled.");
                    return Err(Exit(USAGE));
                }
                exclusive = false;
            }
            Some(libc::EINVAL) if direct => {
                tell("could not open with O_DIRECT, retrying without");
                direct = false;
            }
            _ => return Err(Exit(USAGE)),
        }
    }
}
