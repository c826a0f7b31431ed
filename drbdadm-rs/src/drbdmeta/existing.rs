//! Looks for data that new metadata would destroy (metadata spec 9.6, "existing-data check").

use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use udrbd_metadata::Layout;
use udrbd_metadata::layout::MIN_DEVICE_BYTES;
use udrbd_units::Sector;

use super::device::{Buffer, Device};
use super::options::Context;
use super::{Exit, FAILED, Outcome, confirmed, say, tell};

/// The status if there is something that must not be overwritten.
const REFUSED: i32 = 40;

/// What the start of a device looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Signature {
    name: &'static str,
    size: Size,
}

/// How much of the device is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Size {
    /// Data of unknown meaning.
    None,
    /// All of it.
    Whole,
    /// Nobody knows.
    Unknown,
    /// So many bytes.
    Bytes(u64),
}

/// Says what is on the device, and asks or refuses if the metadata of `layout` would endanger it.
pub(super) fn check(context: &Context, device: &Device, layout: &Layout) -> Outcome<()> {
    let mut start = Buffer::new(MIN_DEVICE_BYTES as usize);
    device.read("check_for_existing_data", &mut start, 0)?;
    let data = start.bytes();
    if data.iter().all(|byte| *byte == 0) {
        return Ok(());
    }
    let signature = recognise(data, &context.device);
    say(format_args!("md_offset {}", layout.superblock.bytes()));
    say(format_args!("al_offset {}", layout.al_start().bytes()));
    say(format_args!("bm_offset {}", layout.bitmap_start().bytes()));
    say(format_args!("\nFound {}", signature.name));
    let safe_to_ask = match signature.size {
        Size::None => {
            say("\n ==> This might destroy existing data! <==");
            true
        }
        size if layout.placement.is_internal() => internal(context, layout, size)?,
        _ => {
            say("\nThis would corrupt existing data.");
            refuse_unless_ignored(context)?;
            false
        }
    };
    if safe_to_ask && !confirmed(context, "Do you want to proceed?") {
        say("Operation canceled.");
        return Err(Exit(FAILED));
    }
    Ok(())
}

/// The metadata take the end of the device: does what is there end before? Says whether to ask.
fn internal(context: &Context, layout: &Layout, size: Size) -> Outcome<bool> {
    let usable_kb = layout.max_capacity(Sector(u64::MAX)).0 >> 1;
    let mut fits = false;
    if let Size::Bytes(bytes) = size {
        let used_kb = bytes.div_ceil(1024);
        fits = used_kb <= usable_kb;
        say(format_args!("{used_kb:12} kB data area apparently used"));
    }
    say(format_args!("{usable_kb:12} kB left usable by current configuration"));
    match size {
        Size::Bytes(_) if fits => {
            say("\nEven though it looks like this would place the new meta data into");
            say("unused space, you still need to confirm, as this is only a guess.");
            Ok(true)
        }
        Size::Bytes(_) => {
            say(format_args!("\n{TRUNCATED}"));
            say("You need to either");
            say("   * use external meta data (recommended)");
            say("   * shrink that filesystem first");
            say("   * zero out the device (destroy the filesystem)");
            say("Operation refused.\n");
            Err(Exit(REFUSED))
        }
        Size::None | Size::Whole | Size::Unknown => {
            if size == Size::Unknown {
                say("Could not determine the size of the actually used data area.\n");
            }
            say(TRUNCATED);
            refuse_unless_ignored(context)?;
            Ok(false)
        }
    }
}

const TRUNCATED: &str = "Device size would be truncated, which
would corrupt data and result in
'access beyond end of device' errors.";

fn refuse_unless_ignored(context: &Context) -> Outcome<()> {
    if context.ignore_sanity_checks {
        say("\nIgnoring sanity check on user request.\n");
        return Ok(());
    }
    say("If you want me to do this, you need to zero out the first part");
    say("of the device (destroy the content).");
    say("You should be very sure that you mean it.");
    say("Operation refused.\n");
    Err(Exit(REFUSED))
}

fn array<const N: usize>(data: &[u8], offset: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&data[offset..offset + N]);
    bytes
}

/// Recognises what a device of at least [`MIN_DEVICE_BYTES`] bytes starts with.
fn recognise(data: &[u8], device: &str) -> Signature {
    let starts = |offset: usize, text: &str| data[offset..].starts_with(text.as_bytes());
    let blocks = |count: u64, size: u64| match count.saturating_mul(size) {
        // Without blocks it is just some data, under the name that was recognised.
        0 if count == 0 => Size::None,
        bytes => Size::Bytes(bytes),
    };
    if [4086, 8182].iter().any(|offset| starts(*offset, "SWAP-SPACE") || starts(*offset, "SWAPSPACE2")) {
        return Signature { name: "swap space signature", size: Size::Whole };
    }
    if starts(0x218, "LVM2") {
        let size = match physical_volume_sectors(device) {
            Some(sectors) => blocks(sectors, 512),
            None => Size::Unknown,
        };
        return Signature { name: "LVM2 physical volume signature", size };
    }
    if array(data, 0x438) == 0xEF53_u16.to_le_bytes() {
        let has_journal = data[0x45C] & 4 != 0;
        let count = u64::from(u32::from_le_bytes(array(data, 0x404)));
        let size = match u32::from_le_bytes(array(data, 0x418)) {
            shift @ 0..=2 => 1024 << shift,
            _ => 4096,
        };
        let name = if has_journal { "ext3 filesystem" } else { "ext2 filesystem" };
        return Signature { name, size: blocks(count, size) };
    }
    if starts(0, "XFSB") {
        let size = u64::from(u32::from_be_bytes(array(data, 4)));
        return Signature { name: "xfs filesystem", size: blocks(u64::from_be_bytes(array(data, 8)), size) };
    }
    if starts(0x8000, "JFS1") {
        let size = u64::from(u32::from_le_bytes(array(data, 0x8018)));
        let count = u64::from_le_bytes(array(data, 0x8008));
        return Signature { name: "JFS filesystem", size: blocks(count, size) };
    }
    if starts(0x1_0034, "ReIsErFs") || starts(0x1_0034, "ReIsEr2Fs") {
        let count = u64::from(u32::from_le_bytes(array(data, 0x1_0000)));
        let size = u64::from(u16::from_le_bytes(array(data, 0x1_002C)));
        return Signature { name: "reiser filesystem", size: blocks(count, size) };
    }
    Signature { name: "some data", size: Size::None }
}

/// How many of the last lines of `pvs` are shown if it fails.
const LINES_SHOWN: usize = 3;

/// Asks LVM for the size of a physical volume, in sectors.
fn physical_volume_sectors(device: &str) -> Option<u64> {
    let script = "pvs -vvv --noheadings --nosuffix --units s -o pv_size \
                  --config \"devices { write_cache_state=0 filter = [ 'a|$dev_name|', 'r|.|' ] }\"";
    let output = Command::new("/bin/sh")
        .arg0("sh")
        .args(["-vxc", script])
        .env("dev_name", device)
        .stdin(Stdio::null())
        .output()
        .ok()?;
    let size = String::from_utf8_lossy(&output.stdout)
        .trim_start()
        .split(|c: char| !c.is_ascii_digit())
        .next()?
        .parse();
    if let Ok(sectors) = size {
        return Some(sectors);
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = errors.lines().collect();
    for line in &lines[lines.len().saturating_sub(LINES_SHOWN)..] {
        tell(format_args!("pvs stderr:{line}"));
    }
    tell("");
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(parts: &[(usize, &[u8])]) -> Vec<u8> {
        let mut data = vec![0; MIN_DEVICE_BYTES as usize];
        for (offset, bytes) in parts {
            data[*offset..offset + bytes.len()].copy_from_slice(bytes);
        }
        data
    }

    #[test]
    fn signatures_and_sizes_are_recognised() {
        let found = |parts: &[(usize, &[u8])]| {
            let signature = recognise(&device(parts), "");
            (signature.name, signature.size)
        };
        assert_eq!(found(&[(4086, b"SWAPSPACE2")]), ("swap space signature", Size::Whole));
        assert_eq!(found(&[(8182, b"SWAP-SPACE")]), ("swap space signature", Size::Whole));
        let ext: [(usize, &[u8]); 3] = [(0x438, &[0x53, 0xEF]), (0x404, &[3]), (0x418, &[1])];
        assert_eq!(found(&ext), ("ext2 filesystem", Size::Bytes(3 * 2048)));
        let jfs: [(usize, &[u8]); 3] = [(0x8000, b"JFS1"), (0x8008, &[5]), (0x8018, &[0, 16])];
        assert_eq!(found(&jfs), ("JFS filesystem", Size::Bytes(5 * 4096)));
        let reiser: [(usize, &[u8]); 3] = [(0x1_0034, b"ReIsEr2Fs"), (0x1_0000, &[7]), (0x1_002C, &[0, 16])];
        assert_eq!(found(&reiser), ("reiser filesystem", Size::Bytes(7 * 4096)));
        assert_eq!(found(&[(9, b"x")]), ("some data", Size::None));
    }
}
