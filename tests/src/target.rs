//! What a test writes to: a device or file with direct I/O, or an NBD export.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;

use anyhow::{Context as _, Result, bail};

use crate::nbd::Nbd;

/// Direct I/O wants memory and lengths aligned to the largest logical block that is in use.
const ALIGNMENT: usize = 4096;

/// The name of a place to write to; `nbd:SOCKET:EXPORT` or a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TargetName {
    /// An export of the server on a unix socket.
    Nbd(PathBuf, String),
    /// A block device or regular file.
    Path(PathBuf),
}

impl FromStr for TargetName {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let Some(rest) = text.strip_prefix("nbd:") else { return Ok(Self::Path(text.into())) };
        let Some((socket, export)) = rest.split_once(':') else { bail!("`{text}` is not nbd:SOCKET:EXPORT") };
        Ok(Self::Nbd(socket.into(), export.to_owned()))
    }
}

/// An opened target.
#[derive(Debug)]
pub enum Target {
    /// A connection of its own to an NBD server.
    Nbd(Nbd),
    /// A device or file without the page cache in between, and an aligned buffer for it.
    Direct(File, Aligned),
}

impl Target {
    /// Opens the target for reading and writing.
    ///
    /// # Errors
    ///
    /// If there is no such device or export, or it refuses to be opened.
    pub fn open(name: &TargetName) -> Result<Self> {
        match name {
            TargetName::Nbd(socket, export) => Ok(Self::Nbd(Nbd::connect(socket, export)?)),
            TargetName::Path(path) => Ok(Self::Direct(open_direct(path, true)?, Aligned::default())),
        }
    }

    /// Opens the target for reading only.
    ///
    /// # Errors
    ///
    /// As [`Self::open`].
    pub fn open_to_read(name: &TargetName) -> Result<Self> {
        match name {
            TargetName::Nbd(..) => Self::open(name),
            TargetName::Path(path) => Ok(Self::Direct(open_direct(path, false)?, Aligned::default())),
        }
    }

    /// Size in bytes.
    ///
    /// # Errors
    ///
    /// If the device does not tell.
    pub fn size(&mut self) -> Result<u64> {
        use std::io::{Seek as _, SeekFrom};
        match self {
            Self::Nbd(nbd) => Ok(nbd.size()),
            Self::Direct(file, _) => Ok(file.seek(SeekFrom::End(0))?),
        }
    }

    /// Reads into `data` from `offset`; both multiples of 4 KiB.
    ///
    /// # Errors
    ///
    /// The device's own.
    pub fn read(&mut self, offset: u64, data: &mut [u8]) -> Result<()> {
        match self {
            Self::Nbd(nbd) => nbd.read(offset, data),
            Self::Direct(file, buffer) => {
                let aligned = buffer.slice(data.len());
                file.read_exact_at(aligned, offset).with_context(|| format!("read at {offset}"))?;
                data.copy_from_slice(aligned);
                Ok(())
            }
        }
    }

    /// Writes `data` at `offset`; both multiples of 4 KiB.
    ///
    /// # Errors
    ///
    /// The device's own. Whether the data is there is unknown then.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Result<()> {
        match self {
            Self::Nbd(nbd) => nbd.write(offset, data, false),
            Self::Direct(file, buffer) => {
                let aligned = buffer.slice(data.len());
                aligned.copy_from_slice(data);
                file.write_all_at(aligned, offset).with_context(|| format!("write at {offset}"))
            }
        }
    }

    /// Gives a part of the target called `name` back.
    ///
    /// # Errors
    ///
    /// The server's own; what `blkdiscard` says.
    pub fn discard(name: &TargetName, offset: u64, length: u32) -> Result<()> {
        match name {
            TargetName::Nbd(socket, export) => Nbd::connect(socket, export)?.trim(offset, length),
            TargetName::Path(path) => {
                // Forced, as it reads what is there before it asks else.
                let words = ["-f", "-o", &offset.to_string(), "-l", &length.to_string()];
                let status = Command::new("blkdiscard")
                    .args(words)
                    .arg(path)
                    .status()
                    .context("cannot run blkdiscard")?;
                if !status.success() {
                    bail!("blkdiscard: {status}");
                }
                Ok(())
            }
        }
    }

    /// Brings everything written so far to stable storage.
    ///
    /// # Errors
    ///
    /// The device's own.
    pub fn flush(&mut self) -> Result<()> {
        match self {
            Self::Nbd(nbd) => nbd.flush(),
            Self::Direct(file, _) => Ok(file.sync_data()?),
        }
    }
}

fn open_direct(path: &Path, write: bool) -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(write)
        .custom_flags(libc::O_DIRECT)
        .open(path)
        .with_context(|| format!("cannot open {}", path.display()))
}

/// Memory whose start is aligned for direct I/O.
#[derive(Debug, Default)]
pub struct Aligned(Vec<u8>);

impl Aligned {
    /// `length` aligned bytes; what they hold is unspecified.
    pub fn slice(&mut self, length: usize) -> &mut [u8] {
        if self.0.len() < length + ALIGNMENT {
            self.0.resize(length + ALIGNMENT, 0);
        }
        let start = self.0.as_ptr().align_offset(ALIGNMENT);
        &mut self.0[start..start + length]
    }
}
