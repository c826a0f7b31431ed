//! Opens a device and looks for its metadata (metadata spec 9.3, 9.4).

use udrbd_metadata::dump::clip_size;
use udrbd_metadata::layout::MIN_DEVICE_BYTES;
use udrbd_metadata::validity::{Found, examine};
use udrbd_metadata::{BLOCK_BYTES, Layout, Placement, Superblock};
use udrbd_units::{SECTOR_BYTES, Sector};

use super::device::Device;
use super::known::{self, KnownDevice};
use super::options::Context;
use super::{BAD, Outcome, say, stop, tell};

/// A superblock and where its parts lie.
#[derive(Clone, Debug)]
pub(super) struct Metadata {
    pub(super) superblock: Superblock,
    pub(super) layout: Layout,
}

/// What was found.
#[derive(Clone, Debug)]
pub(super) enum Presence {
    /// Metadata in its place.
    Valid(Metadata),
    /// Metadata where it was before the device was resized.
    AtLastKnown(Metadata, KnownDevice),
    /// None.
    Absent,
}

/// An open device and what was found on it.
pub(super) struct Opened {
    pub(super) device: Device,
    pub(super) presence: Presence,
}

/// Opens the device of the command line and looks for metadata.
pub(super) fn open(context: &Context) -> Outcome<Opened> {
    let mut device = Device::open(context)?;
    let name = &context.device;
    let bytes = device.bytes;
    if bytes < MIN_DEVICE_BYTES {
        return stop(BAD, format_args!("{name} is only {bytes} bytes. That's not enough."));
    }
    let Some(place) = context.placement.superblock(device.sectors()) else {
        let Placement::Indexed(slot) = context.placement else {
            return stop(BAD, format_args!("{name} is only {bytes} bytes. That's not enough."));
        };
        let expected = u64::from(slot) * udrbd_metadata::layout::SLOT_SECTORS * SECTOR_BYTES;
        tell("Device too small: expecting meta data block at");
        return stop(BAD, format_args!("byte offset {expected}, but {name} is only {bytes} bytes."));
    };
    let found = look(context, &device, place, device.sectors())?;
    let presence = match found {
        Some(mut metadata) => {
            let usable = metadata.layout.max_capacity(Sector(u64::MAX));
            if let Some(message) = clip_size(&mut metadata.superblock, usable) {
                say(message);
            }
            device.allow(&metadata.layout);
            Presence::Valid(metadata)
        }
        None => match look_at_last_known(context, &device)? {
            Some((metadata, known)) => Presence::AtLastKnown(metadata, known),
            None => Presence::Absent,
        },
    };
    Ok(Opened { device, presence })
}

/// Opens the device for a command that needs metadata in its place. `None`: there is none, and nothing was said.
pub(super) fn open_valid(context: &Context) -> Outcome<Option<(Device, Metadata)>> {
    let Opened { device, presence } = open(context)?;
    Ok(match presence {
        Presence::Valid(metadata) => Some((device, metadata)),
        Presence::AtLastKnown(..) | Presence::Absent => None,
    })
}

/// Looks for a superblock at `place`, as if the device had `sectors` sectors.
fn look(context: &Context, device: &Device, place: Sector, sectors: Sector) -> Outcome<Option<Metadata>> {
    let block = device.read_block("v08_md_disk_to_cpu", place.bytes())?;
    match examine(Superblock::decode(&block), context.placement, sectors) {
        Found::Valid(superblock, layout) => {
            let mut superblock = *superblock;
            superblock.al_stripes = layout.striping.stripes;
            superblock.al_stripe_size_4k = layout.striping.stripe_size_4k;
            Ok(Some(Metadata { superblock, layout }))
        }
        Found::Invalid(invalid) => {
            tell(invalid);
            Ok(None)
        }
        Found::Nothing => {
            if context.verbose >= 1 {
                tell("v08 Magic number not found");
            }
            Ok(None)
        }
    }
}

/// Looks where the metadata would be if the device had the size that is remembered.
fn look_at_last_known(context: &Context, device: &Device) -> Outcome<Option<(Metadata, KnownDevice)>> {
    if !context.placement.is_internal() {
        return Ok(None);
    }
    let Some(known) = known::load(context.minor) else {
        if context.verbose >= 1 {
            tell("no last-known offset information available.");
        }
        return Ok(None);
    };
    let sectors = Sector(known.bytes / SECTOR_BYTES);
    if context.verbose >= 1 {
        let name = known.name.as_deref().unwrap_or("-unknown device name-");
        tell(format_args!(" last known info: {} {name}", known.bytes));
    }
    let Some(place) = context.placement.superblock(sectors) else { return Ok(None) };
    // Metadata of a device that was larger lies behind its end now.
    if known.bytes == device.bytes || place.bytes() + BLOCK_BYTES as u64 > device.bytes {
        return Ok(None);
    }
    let Some(metadata) = look(context, device, place, sectors)? else { return Ok(None) };
    let found = metadata.superblock.device_uuid;
    if known.device_uuid != 0 && known.device_uuid != found {
        tell("Last known and found uuid differ!?");
        tell(format_args!("{:016X} != {found:016X}", known.device_uuid));
        if !context.force {
            tell("You may --force me to ignore that.");
            return Ok(None);
        }
        tell("You --force'ed me to ignore that.");
    }
    Ok(Some((metadata, known)))
}

/// Writes a superblock, makes everything written so far durable, and remembers the device.
pub(super) fn write_superblock(context: &Context, device: &Device, metadata: &Metadata) -> Outcome<()> {
    // What was written before, a bitmap or an activity log, must not come after the superblock that vouches for it.
    device.flush()?;
    let place = metadata.layout.superblock.bytes();
    device.write_block("v08_md_cpu_to_disk", &metadata.superblock.encode(), place)?;
    device.flush()?;
    remember(context, device, metadata);
    Ok(())
}

/// Remembers size and name of a device with internal metadata; forgets about any other.
pub(super) fn remember(context: &Context, device: &Device, metadata: &Metadata) {
    if context.dry_run {
        return;
    }
    if !context.placement.is_internal() {
        known::delete(context.minor);
        return;
    }
    let known = KnownDevice {
        bytes: device.bytes,
        name: Some(context.device.clone()),
        device_uuid: metadata.superblock.device_uuid,
    };
    known::save(context.minor, &known);
}
