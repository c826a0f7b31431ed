//! `apply-al`: turns the activity log of a device that was in use into bits of its bitmap (metadata spec 5.11).

use udrbd_metadata::activity_log::initialized_block;
use udrbd_metadata::apply::{Writes, plan};
use udrbd_metadata::generation::human_size;
use udrbd_metadata::{BLOCK_BYTES, Block, Layout, bitmap};
use udrbd_units::{BLOCK_BYTES as BIT_BYTES, Extent};

use super::device::{Buffer, Device};
use super::open::{Metadata, Opened, Presence, open, write_superblock};
use super::options::Context;
use super::resize::move_to_end;
use super::{BAD, FAILED, Outcome, stop, tell};

/// The largest activity log the kernel can have been told to make is read as a whole; this is a guard against a
/// superblock that asks for memory without end.
const LOG_BYTES_MAX: u64 = 1 << 30;

pub(super) fn apply_al(context: &Context) -> Outcome<i32> {
    let Opened { mut device, presence } = open(context)?;
    let mut metadata = match presence {
        Presence::Valid(metadata) => metadata,
        Presence::AtLastKnown(metadata, known) => move_to_end(context, &mut device, &metadata, &known)?,
        Presence::Absent => {
            tell("No valid meta data found");
            return Ok(FAILED);
        }
    };
    let log = read_log(&device, &metadata.layout)?;
    let plan = plan(&metadata.superblock, log.bytes());
    for note in &plan.notes {
        tell(note);
    }
    let Ok(writes) = plan.writes else { return Ok(FAILED) };
    carry_out(context, &device, &mut metadata, &writes)?;
    Ok(0)
}

/// Reads the activity log as it lies on the device.
pub(super) fn read_log(device: &Device, layout: &Layout) -> Outcome<Buffer> {
    let bytes = layout.al_bytes();
    if bytes > LOG_BYTES_MAX {
        return stop(BAD, format_args!("activity log of {bytes} bytes is too large"));
    }
    let mut log = Buffer::new(bytes as usize);
    device.read("apply_al", &mut log, layout.al_start().bytes())?;
    Ok(log)
}

/// Writes what has been decided. Each step is durable before the next, or a power cut between could leave a superblock
/// that vouches for bits which are not there.
fn carry_out(context: &Context, device: &Device, metadata: &mut Metadata, writes: &Writes) -> Outcome<()> {
    let layout = metadata.layout;
    if !writes.mark.is_empty() {
        let marked = mark(device, &layout, &writes.mark)?;
        device.flush()?;
        let size = human_size(marked * (BIT_BYTES / 1024));
        tell(format_args!("Marked additional {size} as out-of-sync based on AL."));
    }
    if writes.initialize_ring {
        initialize_ring(device, &layout)?;
        device.flush()?;
    }
    if let Some(superblock) = &writes.superblock {
        metadata.superblock = superblock.clone();
        write_superblock(context, device, metadata)?;
    }
    Ok(())
}

/// Fills the activity log with empty transactions.
pub(super) fn initialize_ring(device: &Device, layout: &Layout) -> Outcome<()> {
    device.fill("md_initialize_common:AL", &initialized_block(), layout.al_start().bytes(), layout.al_bytes())
}

/// Sets the bits of the extents, page by page; returns how many were not set before.
fn mark(device: &Device, layout: &Layout, extents: &[Extent]) -> Outcome<u64> {
    let mut marked = 0;
    for group in extents.chunk_by(|one, other| bitmap::page_of_extent(*one) == bitmap::page_of_extent(*other))
    {
        let page = bitmap::page_of_extent(group[0]);
        let bytes = layout.bitmap_page_bytes(page);
        if bytes == 0 {
            // The size was cut to what the area can hold, so extents behind it are left out already.
            return stop(BAD, format_args!("bitmap page {page} lies behind its area"));
        }
        let offset = layout.bitmap_page(page).bytes();
        let mut buffer = Buffer::new(bytes);
        device.read("apply_al", &mut buffer, offset)?;
        let mut block: Block = [0; BLOCK_BYTES];
        block[..bytes].copy_from_slice(buffer.bytes());
        for extent in group {
            marked += u64::from(bitmap::mark_extent(&mut block, *extent));
        }
        buffer.bytes_mut().copy_from_slice(&block[..bytes]);
        device.write("apply_al", &buffer, offset)?;
    }
    Ok(marked)
}
