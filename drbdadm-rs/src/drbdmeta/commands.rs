//! The commands that need no more than the superblock (metadata spec 9.5).

use udrbd_metadata::generation::Generation;
use udrbd_metadata::{BLOCK_BYTES, Flags};

use super::open::{open_valid, write_superblock};
use super::options::Context;
use super::{BAD, FAILED, Outcome, confirmed, known, say, stop, tell};

/// The status of `outdate` if the data are not consistent.
const INCONSISTENT: i32 = 5;

pub(super) fn get_gi(context: &Context) -> Outcome<i32> {
    let Some((_, metadata)) = open_valid(context)? else { return Ok(FAILED) };
    say(Generation::from(&metadata.superblock).line());
    Ok(0)
}

pub(super) fn show_gi(context: &Context) -> Outcome<i32> {
    let Some((_, metadata)) = open_valid(context)? else { return Ok(FAILED) };
    say(metadata.superblock.show_generation().trim_end_matches('\n'));
    Ok(0)
}

pub(super) fn dstate(context: &Context) -> Outcome<i32> {
    let Some((_, metadata)) = open_valid(context)? else {
        tell("No valid meta data found");
        return Ok(FAILED);
    };
    say(Generation::from(&metadata.superblock).disk_state());
    Ok(0)
}

pub(super) fn outdate(context: &Context) -> Outcome<i32> {
    let Some((device, mut metadata)) = open_valid(context)? else { return Ok(FAILED) };
    if !metadata.superblock.flags.contains(Flags::CONSISTENT) {
        return stop(INCONSISTENT, "Device is inconsistent.");
    }
    metadata.superblock.flags.set(Flags::WAS_UP_TO_DATE, false);
    write_superblock(context, &device, &metadata)?;
    Ok(0)
}

pub(super) fn invalidate(context: &Context) -> Outcome<i32> {
    let Some((device, mut metadata)) = open_valid(context)? else { return Ok(FAILED) };
    metadata.superblock.flags.set(Flags::CONSISTENT | Flags::WAS_UP_TO_DATE, false);
    metadata.superblock.flags.set(Flags::FULL_SYNC, true);
    write_superblock(context, &device, &metadata)?;
    Ok(0)
}

pub(super) fn read_dev_uuid(context: &Context) -> Outcome<i32> {
    let Some((_, metadata)) = open_valid(context)? else { return Ok(FAILED) };
    say(format_args!("{:016X}", metadata.superblock.device_uuid));
    Ok(0)
}

pub(super) fn write_dev_uuid(context: &Context) -> Outcome<i32> {
    let Some(value) = context.arguments.first() else { return stop(BAD, "Required Argument missing") };
    let Some((device, mut metadata)) = open_valid(context)? else { return Ok(FAILED) };
    metadata.superblock.device_uuid = leading_hexadecimal(value);
    write_superblock(context, &device, &metadata)?;
    Ok(0)
}

/// The number a text starts with, 0 if it starts with none: as C's `strtoull` reads it.
fn leading_hexadecimal(text: &str) -> u64 {
    let text = text.trim_start();
    let digits = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")).unwrap_or(text);
    let end = digits.bytes().take_while(u8::is_ascii_hexdigit).count();
    match &digits[..end] {
        "" => 0,
        digits => u64::from_str_radix(digits, 16).unwrap_or(u64::MAX),
    }
}

pub(super) fn set_gi(context: &Context) -> Outcome<i32> {
    let Some(value) = context.arguments.first() else { return stop(BAD, "Required Argument missing") };
    let Some((device, mut metadata)) = open_valid(context)? else { return Ok(FAILED) };
    let old = Generation::from(&metadata.superblock);
    let mut new = old;
    if let Err(error) = new.set(value) {
        return stop(BAD, error);
    }
    say(format_args!("previously {}", old.line()));
    say(format_args!("set GI to  {}", new.line()));
    if !confirmed(context, "Write new GI to disk?") {
        say("Operation canceled.");
        return Ok(0);
    }
    metadata.superblock.set_generation(&new);
    write_superblock(context, &device, &metadata)?;
    Ok(0)
}

pub(super) fn wipe_md(context: &Context) -> Outcome<i32> {
    let Some((device, metadata)) = open_valid(context)? else {
        tell("There appears to be no drbd meta data to wipe out?");
        return Ok(0);
    };
    if !confirmed(context, "Do you really want to wipe out the DRBD meta data?") {
        say("Operation cancelled.");
        return Ok(FAILED);
    }
    say("Wiping meta data...");
    device.write_block("meta_wipe_md", &[0; BLOCK_BYTES], metadata.layout.superblock.bytes())?;
    device.flush()?;
    say("DRBD meta data block successfully wiped out.");
    known::delete(context.minor);
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::leading_hexadecimal;

    #[test]
    fn a_number_is_read_up_to_what_is_none() {
        assert_eq!(leading_hexadecimal("00ff"), 0xFF);
        assert_eq!(leading_hexadecimal("0x12 3"), 0x12);
        assert_eq!(leading_hexadecimal("xyz"), 0);
        assert_eq!(leading_hexadecimal("12345678901234567"), u64::MAX);
    }
}
