//! Commands about the disk of a volume. Devices are opened here: an open may take long, and the engine thread
//! never waits.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use udrbd_control::ReturnCode;
use udrbd_control::options::{DiskOptions, Fencing, OptionChanges, OptionSet, Protocol};
use udrbd_control::protocol::{CommandResult, MetadataIndex};
use udrbd_engine::interface::{AttachSettings, Command, DiskProperties, Level};
use udrbd_runtime::disk::{Disk, DiskOptions as OpenOptions, OpenError, SharedDisks};
use udrbd_runtime::undo::Undo;
use udrbd_units::{DiskState, Minor, VolumeNumber};

use super::commands::{
    bad_option, find_device, no_answer, one_at_a_time, pass, unknown_minor, unknown_resource,
};
use super::resource::{Backing, Resource};
use super::{Node, State, block, convert, undo};
use crate::messages::{DiskPair, ToEngine};
use crate::undo::Keeper;

/// How often and after what pause a disk that is in use is tried again.
const BUSY_TRIES: u32 = 100;
const BUSY_PAUSE: Duration = Duration::from_millis(50);

/// What `attach` asks for.
pub(super) struct Wanted {
    pub(super) disk: PathBuf,
    pub(super) metadata: PathBuf,
    pub(super) index: MetadataIndex,
    pub(super) options: DiskOptions,
}

/// `attach` (states spec 13.1).
pub(super) async fn attach(node: &Rc<Node>, minor: Minor, wanted: Wanted) -> CommandResult {
    let Some((resource, volume)) = find_device(node, minor) else { return unknown_minor() };
    let resource = resource.as_str();
    one_at_a_time(node, resource, async || {
        if let Err(code) = check(&node.state.borrow(), resource, volume, &wanted) {
            return code.into();
        }
        let disks = match open(node, resource, volume, &wanted).await {
            Ok(disks) => disks,
            Err(code) => return code.into(),
        };
        let undo = find_undo(node, (resource, volume, minor), &wanted, &disks).await;
        hand_over(node, (resource, volume, minor), wanted, disks, undo).await
    })
    .await
}

fn check(state: &State, resource: &str, volume: VolumeNumber, wanted: &Wanted) -> Result<(), ReturnCode> {
    let entry = state.resource(resource).ok_or(ReturnCode::ResourceNotKnown)?;
    let device = entry.snapshot.devices.iter().find(|device| device.volume == volume);
    if device.is_some_and(|device| device.disk > DiskState::Diskless) {
        return Err(ReturnCode::DiskConfigured);
    }
    let internal = wanted.index == MetadataIndex::Internal;
    if internal != (wanted.disk == wanted.metadata) {
        return Err(ReturnCode::MetadataIndexInvalid);
    }
    if !undo::is_valid(&wanted.options.resync_undo) {
        return Err(ReturnCode::MandatoryTag);
    }
    check_fencing(entry, &wanted.options)?;
    check_dependency(state, entry, volume, &wanted.options)
}

fn check_fencing(entry: &Resource, options: &DiskOptions) -> Result<(), ReturnCode> {
    let protocol_a = entry.net.as_ref().is_some_and(|net| net.options.protocol == Protocol::A);
    if protocol_a && options.fencing == Fencing::ResourceAndStonith {
        return Err(ReturnCode::StonithAndProtocolA);
    }
    Ok(())
}

/// `resync-after` names a minor of this node and leads not back here.
fn check_dependency(
    state: &State,
    entry: &Resource,
    volume: VolumeNumber,
    options: &DiskOptions,
) -> Result<(), ReturnCode> {
    let own = entry.volume(volume).map(|volume| volume.minor);
    let mut next = u32::try_from(options.resync_after_minor).ok().map(Minor);
    if next.is_some_and(|minor| state.by_minor(minor).is_none()) {
        return Err(ReturnCode::ResyncAfter);
    }
    while let Some(minor) = next {
        if Some(minor) == own {
            return Err(ReturnCode::ResyncAfterCycle);
        }
        let backing =
            state.by_minor(minor).and_then(|(entry, volume)| entry.volume(volume)?.backing.as_ref());
        next = backing.and_then(|disk| u32::try_from(disk.options.resync_after_minor).ok()).map(Minor);
    }
    Ok(())
}

async fn open(
    node: &Rc<Node>,
    resource: &str,
    volume: VolumeNumber,
    wanted: &Wanted,
) -> Result<DiskPair, ReturnCode> {
    let (disk, metadata, index) = (wanted.disk.clone(), wanted.metadata.clone(), wanted.index);
    let shared = Arc::clone(&node.disks);
    let opened = tokio::task::spawn_blocking(move || open_pair(&shared, &disk, &metadata, index)).await;
    match opened {
        Ok(Ok(disks)) => Ok(disks),
        Ok(Err((path, error, code))) => {
            let errno = error.errno() as i32;
            let text = format!("open(\"{}\") failed with -{errno}", path.display());
            node.log(resource, Level::Error, Some(volume), &text);
            Err(code)
        }
        Err(_) => Err(ReturnCode::OpenDisk),
    }
}

/// Tries a disk that is in use again for a while: a daemon that was killed keeps its disks until the kernel has ended the
/// last request of its ring, some time after the process itself is gone.
fn patiently(open: impl Fn() -> Result<Disk, OpenError>) -> Result<Disk, OpenError> {
    for _ in 0..BUSY_TRIES {
        match open() {
            Err(OpenError::InUse { .. }) => std::thread::sleep(BUSY_PAUSE),
            other => return other,
        }
    }
    open()
}

fn open_pair(
    shared: &SharedDisks,
    disk: &Path,
    metadata: &Path,
    index: MetadataIndex,
) -> Result<DiskPair, (PathBuf, OpenError, ReturnCode)> {
    let options = OpenOptions::default();
    let backing = patiently(|| Disk::open(disk, options));
    let backing = backing.map_err(|error| (disk.to_owned(), error, ReturnCode::OpenDisk))?;
    let metadata = match index {
        MetadataIndex::Internal => Ok(backing.clone()),
        // Several volumes may have slots on one device.
        MetadataIndex::Slot(_) => patiently(|| shared.open(metadata, options)),
        MetadataIndex::Flexible => patiently(|| Disk::open(metadata, options)),
    }
    .map_err(|error| (metadata.to_owned(), error, ReturnCode::OpenMetadataDisk))?;
    Ok(DiskPair { backing, metadata, undo: None })
}

/// The undo of the disk, or one that may begin.
async fn find_undo(
    node: &Rc<Node>,
    (resource, volume, minor): (&str, VolumeNumber, Minor),
    wanted: &Wanted,
    disks: &DiskPair,
) -> Option<Arc<Undo>> {
    let (folder, value) = (node.state_directory.clone(), wanted.options.resync_undo.clone());
    let disk = disks.backing.clone();
    let found = tokio::task::spawn_blocking(move || undo::prepare(&folder, minor, &value, &disk)).await;
    let (undo, trouble) = found.unwrap_or((None, None));
    if let Some(text) = trouble {
        node.log(resource, Level::Error, Some(volume), &text);
    }
    undo.map(Arc::new)
}

async fn hand_over(
    node: &Rc<Node>,
    (resource, volume, minor): (&str, VolumeNumber, Minor),
    wanted: Wanted,
    mut disks: DiskPair,
    undo: Option<Arc<Undo>>,
) -> CommandResult {
    let properties = properties(&disks);
    let settings = Box::new(AttachSettings {
        placement: convert::placement(wanted.index),
        properties,
        options: convert::disk_options(&wanted.options),
        kept: undo.as_deref().and_then(undo::kept_blocks),
    });
    let path = wanted.disk.to_string_lossy().into_owned();
    let backing = Backing {
        disk: wanted.disk.to_string_lossy().into_owned(),
        metadata: wanted.metadata.to_string_lossy().into_owned(),
        index: wanted.index,
        options: wanted.options,
        logical_block_bytes: properties.logical_block_bytes,
        physical_block_bytes: properties.physical_block_bytes,
        discard_granularity_bytes: properties.discard_granularity_bytes,
        rotational: disks.backing.properties().rotational,
    };
    let answer = {
        let mut state = node.state.borrow_mut();
        let Some(entry) = state.resource_mut(resource) else { return unknown_resource() };
        let mail = entry.engine.mail.clone();
        let Some(known) = entry.volume_mut(volume) else { return unknown_minor() };
        known.attaching = true;
        known.backing = Some(backing);
        known.undo.clone_from(&undo);
        let marker = undo::marker(&node.state_directory, minor);
        disks.undo = match undo.map(|undo| Keeper::start(undo, marker, mail)) {
            None => None,
            Some(Ok(keeper)) => Some(keeper),
            Some(Err(error)) => {
                tracing::error!("drbd {resource}: no thread for resync-undo: {error}");
                None
            }
        };
        let disks = Box::new(disks);
        entry.command(|id| ToEngine::Attach { id, volume, settings, disks })
    };
    let result = answer.await.unwrap_or_else(|_| no_answer());
    if let Some(known) =
        node.state.borrow_mut().resource_mut(resource).and_then(|entry| entry.volume_mut(volume))
    {
        known.attaching = false;
        if !result.code.is_success() {
            known.backing = None;
            known.undo = None;
        }
    }
    if result.code.is_success() {
        block::backing_changed(node, minor, Some(&path));
    }
    node.show(resource);
    result
}

fn properties(disks: &DiskPair) -> DiskProperties {
    let backing = disks.backing.properties();
    let metadata = disks.metadata.properties();
    DiskProperties {
        backing_size: backing.size,
        metadata_size: metadata.size,
        logical_block_bytes: backing.logical_block_bytes.max(metadata.logical_block_bytes),
        physical_block_bytes: backing.physical_block_bytes,
        max_request_bytes: backing.request_bytes_max,
        volatile_cache: backing.volatile_cache || metadata.volatile_cache,
        discard_granularity_bytes: if backing.discard.bytes_max > 0 {
            backing.discard.granularity_bytes
        } else {
            0
        },
    }
}

/// `disk-options`.
pub(super) async fn change_options(node: &Rc<Node>, minor: Minor, changes: OptionChanges) -> CommandResult {
    let Some((resource, volume)) = find_device(node, minor) else { return unknown_minor() };
    let resource = resource.as_str();
    one_at_a_time(node, resource, async || {
        let changed = {
            let state = node.state.borrow();
            let Some(entry) = state.resource(resource) else { return unknown_resource() };
            let Some(backing) = entry.volume(volume).and_then(|known| known.backing.as_ref()) else {
                return ReturnCode::NoDisk.into();
            };
            match backing.options.with_changes(&changes) {
                Ok(options) => check_fencing(entry, &options)
                    .and_then(|()| check_dependency(&state, entry, volume, &options))
                    .map(|()| options),
                Err(error) => return bad_option(&error),
            }
        };
        let options = match changed {
            Ok(options) => options,
            Err(code) => return code.into(),
        };
        let engine_options = Box::new(convert::disk_options(&options));
        let result = pass(node, resource, Command::DiskOptions { volume, options: engine_options }).await;
        if result.code.is_success() {
            let mut state = node.state.borrow_mut();
            let backing =
                state.resource_mut(resource).and_then(|entry| entry.volume_mut(volume)?.backing.as_mut());
            if let Some(backing) = backing {
                backing.options = options;
            }
            drop(state);
            node.show(resource);
        }
        result
    })
    .await
}
