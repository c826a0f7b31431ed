//! The guest's first file system: a busybox, the few modules that reach the real root, and `init`.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::kernel::Kernel;
use crate::machine::{self, skip};

/// What has to be loaded before the machine's own `modprobe` can be reached.
const EARLY_MODULES: &[&str] = &[
    "virtio_pci",
    "virtio_console",
    "virtio_blk",
    "virtio_net",
    "netfs",
    "9pnet_virtio",
    "9p",
    "overlay",
    "rtc_cmos",
];

const INIT: &str = include_str!("init.sh");

/// Writes the initial file system for `kernel` to `path`, as an uncompressed cpio archive.
///
/// # Errors
///
/// A [`machine::Skip`] without a static busybox; an error if a module cannot be unpacked.
pub(super) fn write(kernel: &Kernel, path: &Path) -> Result<()> {
    let busybox = machine::find_program("busybox").ok_or_else(|| skip("needs busybox-static"))?;
    let mut archive = Archive::default();
    for folder in ["bin", "modules", "proc", "sys", "dev", "share", "lower", "upper", "newroot"] {
        archive.add(folder, 0o040_755, b"");
    }
    archive.add("bin/busybox", 0o100_755, &fs::read(busybox)?);
    archive.add("init", 0o100_755, INIT.as_bytes());
    let mut order = String::new();
    for file in kernel.module_files(EARLY_MODULES)? {
        let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let short = name.trim_end_matches(".xz");
        archive.add(&format!("modules/{short}"), 0o100_644, &module_bytes(&file)?);
        order.push_str(short);
        order.push('\n');
    }
    archive.add("modules/order", 0o100_644, order.as_bytes());
    fs::write(path, archive.finish()).with_context(|| format!("cannot write {}", path.display()))
}

fn module_bytes(file: &Path) -> Result<Vec<u8>> {
    if file.extension().is_none_or(|ext| ext != "xz") {
        return Ok(fs::read(file)?);
    }
    let output = Command::new("xz").arg("-dc").arg(file).output().context("cannot run xz")?;
    if !output.status.success() {
        bail!("cannot unpack {}", file.display());
    }
    Ok(output.stdout)
}

/// A cpio archive in the "newc" form, the one the kernel reads.
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    fn add(&mut self, name: &str, mode: u32, data: &[u8]) {
        self.entries += 1;
        let size = u32::try_from(data.len()).unwrap_or(u32::MAX);
        assert!(size < u32::MAX, "a file of 4 GiB has no place in a cpio archive");
        let name_size = name.len() as u32 + 1;
        // ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor, namesize, check
        let fields = [self.entries, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(data);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.add("TRAILER!!!", 0, b"");
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archive_fields_are_aligned_and_ended() {
        let mut archive = Archive::default();
        archive.add("init", 0o100_755, b"hello");
        let bytes = archive.finish();
        assert_eq!(&bytes[..6], b"070701");
        assert_eq!(&bytes[6 + 6 * 8..6 + 7 * 8], b"00000005");
        // Header 110, name 5, padded to 116; data follows and is padded to the next header.
        assert_eq!(&bytes[116..121], b"hello");
        assert_eq!(&bytes[124..130], b"070701");
        assert!(bytes.ends_with(b"TRAILER!!!\0\0\0\0"));
    }
}
