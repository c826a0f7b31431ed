//! `create-md` (metadata spec 9.6).

use udrbd_metadata::generation::human_size;
use udrbd_metadata::legacy::{self, Foreign};
use udrbd_metadata::validity::{Found, examine};
use udrbd_metadata::{BLOCK_BYTES, Layout, LayoutError, Superblock};
use udrbd_units::{SECTOR_BYTES, Sector};

use super::apply::initialize_ring;
use super::device::Device;
use super::existing;
use super::open::{Metadata, Opened, Presence, open, write_superblock};
use super::options::{Context, InitializeBitmap};
use super::resize::move_to_end;
use super::{BAD, Exit, FAILED, Outcome, USAGE, confirmed, say, stop, tell};

/// The status if only the striping was to be changed, which is not possible.
const NOT_IMPLEMENTED: i32 = 30;

pub(super) fn create_md(context: &Context) -> Outcome<i32> {
    let Opened { mut device, presence } = open(context)?;
    if let Presence::AtLastKnown(metadata, known) = &presence {
        if context.striping_given && context.striping() != metadata.layout.striping {
            return stop(
                USAGE,
                "Cannot move after offline resize and change AL-striping at the same time, yet.",
            );
        }
        if !context.force && confirmed(context, "Move internal meta data from last-known position?\n") {
            existing::check(context, &device, &layout_for(context, &device)?)?;
            move_to_end(context, &mut device, metadata, &known.clone())?;
            return Ok(0);
        }
    }
    let found = match presence {
        Presence::Valid(metadata) => Some(metadata),
        Presence::AtLastKnown(..) | Presence::Absent => None,
    };
    let converted = match found {
        Some(metadata) => {
            ask_about_same_format(context, &metadata)?;
            None
        }
        None => ask_about_other_format(context, &device)?,
    };
    let layout = layout_for(context, &device)?;
    device.allow(&layout);
    let mut superblock = match &converted {
        Some(conversion) => {
            let superblock = conversion.foreign.convert(&layout);
            existing::check(context, &device, &layout)?;
            superblock
        }
        None => initialize(context, &device, &layout)?,
    };
    superblock.la_peer_max_bio_size = context.peer_max_bio_size;
    say("Writing meta data...");
    write_superblock(context, &device, &Metadata { superblock, layout })?;
    if let Some(Conversion { wipe: Some(place), .. }) = converted {
        device.allow_block(place.bytes());
        device.write_block("wipe fixed-size v07 internal md", &[0; BLOCK_BYTES], place.bytes())?;
        device.flush()?;
    }
    say("New drbd meta data block successfully created.");
    Ok(0)
}

/// The layout of new metadata on this device.
pub(super) fn layout_for(context: &Context, device: &Device) -> Outcome<Layout> {
    match Layout::new(context.placement, device.sectors(), context.striping()) {
        Ok(layout) => Ok(layout),
        Err(LayoutError::TooSmall { .. }) => {
            let (name, bytes) = (&context.device, device.bytes);
            stop(BAD, format_args!("{name} is only {bytes} bytes. That's not enough."))
        }
        Err(error) => stop(BAD, error),
    }
}

/// Writes an empty activity log and bitmap; returns the superblock that goes with them.
fn initialize(context: &Context, device: &Device, layout: &Layout) -> Outcome<Superblock> {
    existing::check(context, device, layout)?;
    say("initializing activity log");
    initialize_ring(device, layout)?;
    initialize_bitmap(context, device, layout)?;
    Ok(Superblock::fresh(layout, context.peer_max_bio_size))
}

/// Zeroes the bitmap. The original zeroes what a data device of the size of this device would need; here all of the
/// area becomes zero, though the message names the same size (metadata spec 9.6, 6).
fn initialize_bitmap(context: &Context, device: &Device, layout: &Layout) -> Outcome<()> {
    let size = human_size(udrbd_metadata::bitmap::area_bytes(device.sectors()) >> 10);
    let start = layout.bitmap_start().bytes();
    let bytes = layout.bitmap_sectors() * SECTOR_BYTES;
    let mode = context.initialize_bitmap;
    match mode {
        InitializeBitmap::Skip => {
            tell("SKIPPED initializing bitmap area");
            return Ok(());
        }
        InitializeBitmap::Automatic | InitializeBitmap::Zeroout => {
            tell(format_args!("initializing bitmap ({size}) to all zero"));
            if device.zero_fast(start, bytes) {
                return Ok(());
            }
            if mode == InitializeBitmap::Zeroout {
                return stop(BAD, "fast zero-out failed, fallback disabled");
            }
            // For a file it is no surprise.
            if device.is_block_device() {
                tell(format_args!("initializing bitmap ({size}) to all zero using pwrite"));
            }
        }
        InitializeBitmap::Write => {
            tell(format_args!("initializing bitmap ({size}) to all zero using pwrite"));
        }
    }
    device.fill("md_initialize_common:BM", &[0; BLOCK_BYTES], start, bytes)
}

/// There is valid metadata of the same format: may it be overwritten?
fn ask_about_same_format(context: &Context, metadata: &Metadata) -> Outcome<()> {
    if !context.placement.is_internal() {
        let question = "Valid meta data seems to be in place.\nDo you really want to overwrite?";
        return if confirmed(context, question) { Ok(()) } else { cancelled() };
    }
    tell_about(context, "v08", true, metadata.layout.superblock);
    if metadata.layout.striping != context.striping()
        && confirmed(context, "Do you want to change the activity log stripe settings *only*?")
    {
        tell("Sorry, not yet fully implemented");
        return stop(NOT_IMPLEMENTED, "Try dump-md > dump.txt; restore-md -s x -z y dump.txt");
    }
    if confirmed(context, "Do you really want to overwrite the existing meta-data?") {
        Ok(())
    } else {
        cancelled()
    }
}

/// Metadata of another format that is to be converted.
struct Conversion {
    foreign: Foreign,
    /// The place of a superblock that has to be wiped afterwards.
    wipe: Option<Sector>,
}

/// Looks for metadata of another format and asks what to do about it.
fn ask_about_other_format(context: &Context, device: &Device) -> Outcome<Option<Conversion>> {
    let internal = context.placement.is_internal();
    let sectors = device.sectors();
    let mut found = None;
    if internal && let Some(place) = legacy::v07_internal_place(sectors) {
        let block = device.read_block("check_internal_md_flavours", place.bytes())?;
        // Behind such a superblock come its areas, as with external metadata.
        found = legacy::detect(&block, false, sectors)
            .filter(|foreign| foreign.format == "v07")
            .map(|foreign| (foreign, Some(place)));
    }
    if found.is_none()
        && let Some(place) = context.placement.superblock(sectors)
    {
        let block = device.read_block("check_md_flavours", place.bytes())?;
        if let Found::Invalid(invalid) = examine(Superblock::decode(&block), context.placement, sectors) {
            tell(invalid);
        }
        found = legacy::detect(&block, internal, sectors).map(|foreign| (foreign, None));
    }
    let Some((foreign, wipe)) = found else { return Ok(None) };
    let format = foreign.format;
    if internal {
        let place = wipe.or(context.placement.superblock(sectors)).unwrap_or_default();
        tell_about(context, format, wipe.is_none(), place);
    }
    if confirmed(context, &format!("Valid {format} meta-data found, convert to v08?")) {
        if format == "v07" {
            say("Converting meta data...");
        }
        return Ok(Some(Conversion { foreign, wipe }));
    }
    let question =
        format!("So you want me to replace the {format} meta-data\nwith newly initialized v08 meta-data?");
    if confirmed(context, &question) { Ok(None) } else { cancelled() }
}

fn tell_about(context: &Context, format: &str, flexible: bool, place: Sector) {
    let kind = if flexible { "flexible-size" } else { "fixed-size" };
    tell("You want me to create a v08 style flexible-size internal meta data block.");
    tell(format_args!("There appears to be a {format} {kind} internal meta data block"));
    tell(format_args!("already in place on {} at byte offset {}", context.device, place.bytes()));
}

fn cancelled<T>() -> Outcome<T> {
    say("Operation cancelled.");
    Err(Exit(FAILED))
}
