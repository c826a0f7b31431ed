//! `check-resize`: moves internal metadata to the end of a device that has grown (metadata spec 9.3, 9.5).

use udrbd_metadata::{BLOCK_BYTES, Flags, Layout, Placement, bitmap};
use udrbd_units::SECTOR_BYTES;

use super::apply::read_log;
use super::device::{Buffer, Device};
use super::known::{self, KnownDevice};
use super::open::{Metadata, Opened, Presence, open, remember, write_superblock};
use super::options::Context;
use super::{BAD, Exit, FAILED, Outcome, say, stop, tell};

/// How many bytes of bitmap are moved in one piece.
const PIECE_BYTES: u64 = 1 << 20;

pub(super) fn check_resize(context: &Context) -> Outcome<i32> {
    let Opened { mut device, presence } = open(context)?;
    match presence {
        Presence::Valid(metadata) => {
            let Some(known) = known::load(context.minor) else { return Ok(FAILED) };
            let current = known.bytes == device.bytes && known.device_uuid == metadata.superblock.device_uuid;
            if !context.placement.is_internal() || !current {
                remember(context, &device, &metadata);
            }
            Ok(0)
        }
        Presence::AtLastKnown(metadata, known) => {
            move_to_end(context, &mut device, &metadata, &known)?;
            Ok(0)
        }
        Presence::Absent if context.placement.is_internal() => {
            tell("no suitable meta data found :(");
            Ok(FAILED)
        }
        Presence::Absent => {
            tell("Operation only supported for >= v8 internal meta data");
            Ok(FAILED)
        }
    }
}

/// Moves activity log, bitmap and superblock from where they were on the smaller device to where they belong.
///
/// Bit 0 stays bit 0. (The original shifts the bitmap if its area has grown; metadata spec 10, 2.)
pub(super) fn move_to_end(
    context: &Context,
    device: &mut Device,
    old: &Metadata,
    known: &KnownDevice,
) -> Outcome<Metadata> {
    tell("Moving the internal meta data to its proper location");
    if known.bytes > device.bytes {
        tell("Device is too small now!");
        return Err(Exit(FAILED));
    }
    let layout = match Layout::new(Placement::Internal, device.sectors(), old.layout.striping) {
        Ok(layout) => layout,
        Err(error) => return stop(BAD, error),
    };
    if layout.first_sector() < old.superblock.la_size_sect {
        // A device that has grown by less than its bitmap needs more room.
        let size = old.superblock.la_size_sect;
        return stop(BAD, format_args!("the meta data would overwrite data: device of {size} sectors"));
    }
    let log = read_log(device, &old.layout)?;

    let old_place = old.layout.superblock.bytes();
    let new_start = layout.first_sector().bytes();
    if new_start < old_place + BLOCK_BYTES as u64 {
        // The new place overlaps the old one: if we are interrupted while the bitmap is half moved, the old
        // superblock must not vouch for it.
        let mut guarded = old.superblock.clone();
        guarded.flags.set(Flags::FULL_SYNC, true);
        device.allow_block(old_place);
        device.write_block("move_internal_md", &guarded.encode(), old_place)?;
        device.flush()?;
    }
    device.allow(&layout);
    move_bitmap(device, &old.layout, &layout, old.superblock.la_size_sect)?;
    device.write("move_internal_md", &log, layout.al_start().bytes())?;
    let mut moved = Metadata { superblock: old.superblock.clone(), layout };
    moved.superblock.set_layout(&layout);
    write_superblock(context, device, &moved)?;
    say("Internal drbd meta data successfully moved.");
    if old_place < new_start {
        device.allow_block(old_place);
        device.write_block("wipe previous md", &[0; BLOCK_BYTES], old_place)?;
        device.flush()?;
        device.allow(&layout);
    }
    Ok(moved)
}

/// Moves the used part of the bitmap; what follows in the new area becomes zero. The areas may overlap.
fn move_bitmap(device: &Device, old: &Layout, new: &Layout, size: udrbd_units::Sector) -> Outcome<()> {
    let used = bitmap::area_bytes(size).min(old.bitmap_sectors() * SECTOR_BYTES);
    let (from, to) = (old.bitmap_start().bytes(), new.bitmap_start().bytes());
    let pieces = used.div_ceil(PIECE_BYTES);
    for turn in 0..pieces {
        // Towards higher addresses the last piece has to go first, or it would be overwritten.
        let piece = if to > from { pieces - 1 - turn } else { turn };
        let offset = piece * PIECE_BYTES;
        let mut buffer = Buffer::new(PIECE_BYTES.min(used - offset) as usize);
        device.read("move_internal_md", &mut buffer, from + offset)?;
        device.write("move_internal_md", &buffer, to + offset)?;
    }
    let area = new.bitmap_sectors() * SECTOR_BYTES;
    device.fill("move_internal_md", &[0; BLOCK_BYTES], to + used, area - used)
}
