//! `dump-md`, `verify-dump` and `restore-md` (metadata spec 9.5).

use std::io::{BufWriter, Read, Write};

use udrbd_metadata::dump::{BitmapWriter, DumpHead, MovedDevice, clip_size, write_ring};
use udrbd_metadata::restore::{DumpParser, ParseError, ParsedDump};
use udrbd_metadata::{BLOCK_BYTES, Layout, bitmap};
use udrbd_units::Sector;

use super::apply::{initialize_ring, read_log};
use super::device::{Buffer, Device};
use super::open::{Metadata, Opened, Presence, open, write_superblock};
use super::options::Context;
use super::{BAD, FAILED, Outcome, USAGE, confirmed, create, existing, reason, say, stop, tell};

/// How often `--verbose` must be given for the activity log to be shown.
const RING_VERBOSITY: u32 = 10;
/// Pages of bitmap that are moved in one piece.
const PIECE_PAGES: u64 = 256;

pub(super) fn dump_md(context: &Context) -> Outcome<i32> {
    let Opened { device, presence } = open(context)?;
    let (metadata, known) = match presence {
        Presence::Valid(metadata) => (metadata, None),
        Presence::AtLastKnown(metadata, known) => (metadata, Some(known)),
        Presence::Absent => {
            tell("No valid meta data found");
            return Ok(FAILED);
        }
    };
    if !metadata.superblock.is_clean() {
        tell("Found meta data is \"unclean\", please apply-al first");
        if !context.force {
            return Ok(FAILED);
        }
    }
    let date = chrono::Local::now().format("%F %T %z [%s]").to_string();
    let host = nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned());
    let expected = context.placement.superblock(device.sectors()).unwrap_or_default();
    let head = DumpHead {
        date: &date,
        host: host.as_deref().unwrap_or_default(),
        command: &context.command_line,
        superblock: &metadata.superblock,
        md_offset: metadata.layout.superblock.bytes(),
        moved: known.as_ref().map(|known| MovedDevice {
            name: &context.device,
            bytes: device.bytes,
            md_offset: expected.bytes(),
            known_name: known.name.as_deref().unwrap_or("-?-"),
            known_bytes: known.bytes,
        }),
    };
    write_dump(&device, &metadata, &head)?;
    if context.verbose >= RING_VERBOSITY {
        show_ring(&device, &metadata)?;
    }
    Ok(0)
}

/// Shows the activity log.
fn show_ring(device: &Device, metadata: &Metadata) -> Outcome<()> {
    let log = read_log(device, &metadata.layout)?;
    let written = write_ring(
        &mut BufWriter::new(std::io::stdout().lock()),
        log.bytes(),
        metadata.superblock.al_nr_extents,
    );
    match written {
        Ok(()) => Ok(()),
        Err(error) => stop(BAD, format_args!("writing the dump failed: {}", reason(&error))),
    }
}

fn write_dump(device: &Device, metadata: &Metadata, head: &DumpHead<'_>) -> Outcome<()> {
    let failed = |error: std::io::Error| {
        tell(format_args!("writing the dump failed: {}", reason(&error)));
        super::Exit(BAD)
    };
    let mut out = BufWriter::new(std::io::stdout().lock());
    head.write(&mut out).map_err(failed)?;
    let mut writer = BitmapWriter::new(out).map_err(failed)?;
    let pages = bitmap::pages(metadata.superblock.la_size_sect);
    let mut page = 0;
    while page < pages {
        let count = PIECE_PAGES.min(pages - page);
        // The last page of an external device of odd size lies only in part in the area.
        let bytes: usize = (page..page + count).map(|page| metadata.layout.bitmap_page_bytes(page)).sum();
        let mut buffer = Buffer::new(bytes);
        device.read("dump_md", &mut buffer, metadata.layout.bitmap_page(page).bytes())?;
        writer.push(buffer.bytes()).map_err(failed)?;
        let missing = count as usize * BLOCK_BYTES - bytes;
        writer.push(&[0; BLOCK_BYTES][..missing.min(BLOCK_BYTES)]).map_err(failed)?;
        page += count;
    }
    writer.finish().and_then(|mut out| out.flush()).map_err(failed)
}

/// Reads the file of the command line, or standard input.
fn read_input(context: &Context) -> Outcome<Vec<u8>> {
    let mut text = Vec::new();
    let Some(name) = context.arguments.first() else {
        return match std::io::stdin().lock().read_to_end(&mut text) {
            Ok(_) => Ok(text),
            Err(error) => stop(USAGE, format_args!("read of standard input failed: {}", reason(&error))),
        };
    };
    match std::fs::File::open(name).and_then(|mut file| file.read_to_end(&mut text)) {
        Ok(_) => Ok(text),
        Err(_) => stop(USAGE, format_args!("open of '{name}' failed.")),
    }
}

fn accepted<T>(parsed: Result<T, ParseError>) -> Outcome<T> {
    match parsed {
        Ok(value) => Ok(value),
        Err(error) => stop(BAD, error),
    }
}

pub(super) fn verify_dump(context: &Context) -> Outcome<i32> {
    let text = read_input(context)?;
    let mut parser = DumpParser::new(&text);
    accepted(parser.version())?;
    let parsed = accepted(parser.body())?;
    let size = parsed.superblock.la_size_sect;
    if context.placement.is_internal() && size != Sector(0) {
        // No device is opened, so none of it fits: meaningless, but what the original says.
        say(format_args!("# la-size-sect was too big ({size}), truncated (0)!"));
    }
    say("input file parsed ok");
    Ok(0)
}

pub(super) fn restore_md(context: &Context) -> Outcome<i32> {
    let text = read_input(context)?;
    let Opened { mut device, presence } = open(context)?;
    if !matches!(presence, Presence::Absent) && !confirmed(context, "Valid meta-data in place, overwrite?") {
        return Ok(FAILED);
    }
    let mut parser = DumpParser::new(&text);
    accepted(parser.version())?;
    tell("reinitializing");
    existing::check(context, &device, &create::layout_for(context, &device)?)?;
    // Nothing is written before all of the text has been understood.
    let parsed = accepted(parser.body())?;
    let layout = restored_layout(context, &device, &parsed)?;
    device.allow(&layout);
    let mut metadata = Metadata { superblock: parsed.superblock.clone(), layout };
    metadata.superblock.set_layout(&layout);
    if let Some(message) = clip_size(&mut metadata.superblock, layout.max_capacity(Sector(u64::MAX))) {
        say(message);
    }
    write_bitmap(&device, &metadata, &parsed)?;
    // A dump that can be parsed was made with the activity log applied. The original leaves the old one there, which
    // is harmless only as long as apply-al is run before the next attach.
    initialize_ring(&device, &layout)?;
    write_superblock(context, &device, &metadata)?;
    say("Successfully restored meta data");
    Ok(0)
}

/// The layout for the striping of the dump, or of the command line if it gives one.
fn restored_layout(context: &Context, device: &Device, parsed: &ParsedDump) -> Outcome<Layout> {
    let mut striping = parsed.striping;
    if context.striping_given && context.striping() != striping {
        tell("override activity log striping from commandline");
        striping = context.striping();
    }
    match Layout::new(context.placement, device.sectors(), striping) {
        Ok(layout) => Ok(layout),
        Err(error) => stop(BAD, error),
    }
}

/// Writes the bitmap of a dump; what the text does not mention becomes zero.
fn write_bitmap(device: &Device, metadata: &Metadata, parsed: &ParsedDump) -> Outcome<()> {
    let pages = bitmap::pages(metadata.superblock.la_size_sect);
    if parsed.bitmap.len().div_ceil(bitmap::PAGE_WORDS as u64) > pages {
        tell("Bitmap info too large, truncated!");
    }
    let mut contents = parsed.bitmap.pages();
    let mut page = 0;
    while page < pages {
        let count = PIECE_PAGES.min(pages - page);
        let bytes: usize = (page..page + count).map(|page| metadata.layout.bitmap_page_bytes(page)).sum();
        let mut buffer = Buffer::new(bytes);
        for part in buffer.bytes_mut().chunks_mut(BLOCK_BYTES) {
            if let Some(block) = contents.next() {
                part.copy_from_slice(&block[..part.len()]);
            }
        }
        device.write("meta_restore_md", &buffer, metadata.layout.bitmap_page(page).bytes())?;
        page += count;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_date_has_the_form_of_the_original() {
        let date = chrono::Local::now().format("%F %T %z [%s]").to_string();
        let length = "2026-11-20 11:35:14 +0000 [1795174514]".len();
        assert_eq!(date.len(), length);
    }
}
