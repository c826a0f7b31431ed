//! Volumes as block devices of the kernel: `/dev/drbdN`.
//!
//! A disk of the ublk driver is there while the volume is Primary: it is made when a promotion has succeeded, and the
//! promotion is told when it can be used; it is ended before the engine is asked for the demotion, when nobody has it
//! open any more. The node `/dev/drbdN` is there from `new-minor` to `down`, and a placeholder that cannot be opened while
//! there is no disk.
//!
//! A disk outlives this process. What a dead one left is found when its minor is configured again: nobody has it open,
//! then it is deleted; or somebody waits for it, then the next promotion takes it over.

mod keeper;
mod names;
mod partitions;
mod record;

use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use udrbd_engine::interface::{Command, Level, VolumeStatus, WaitingClients};
use udrbd_runtime::devices::{ClaimError, DeviceNumber, MinorClaim, Opener, openers};
use udrbd_runtime::ublk::{self, ControlError, Existing, Mark, Parameters, Source};
use udrbd_units::{ConnectionState, DiskState, Minor, Role, Sector, VolumeNumber};

use super::commands::{find_device, pass};
use super::{Node, State};
use crate::messages::ToEngine;
use keeper::{Keeper, Origin};
use names::Names;
pub(super) use partitions::follow as follow_partitions;
use record::Record;

/// Marks disks of udrbd in the driver; the rest of the number is the minor.
const MARK: u64 = 0x7564_7262 << 32;
/// The largest discard or write of zeroes. What the peer takes at once is cut from it.
const ZERO_BYTES_MAX: u32 = 128 << 20;
/// What a volume without a disk of its own is said to be like.
const DISKLESS_BLOCK_BYTES: (u32, u32) = (512, 4096);
const PHYSICAL_BLOCK_BYTES_MAX: u32 = 1 << 20;
/// How long those who only look at a new device may have it open, and how often that is asked.
const PASSING_TRIES: u32 = 30;
const PASSING_PAUSE: Duration = Duration::from_millis(100);
/// How often the driver may say that somebody is there who is not found, [`PASSING_PAUSE`] apart.
const HIDDEN_TRIES: u32 = 10;
/// How long the driver may take to notice the death of a server, and how often it is asked.
const ORPHAN_TRIES: u32 = 50;
const ORPHAN_PAUSE: Duration = Duration::from_millis(100);
/// How long an engine may take to let a stopped disk go.
const CLOSE_PATIENCE: Duration = Duration::from_secs(10);

/// The block device of a minor.
pub(super) struct Device {
    resource: String,
    names: Names,
    /// Disks are made for it: the minor is not another daemon's.
    serving: bool,
    disk: Option<Arc<Keeper>>,
    /// The disk can be used: the kernel has started it.
    started: bool,
    /// The size of the disk.
    size: Sector,
    /// A disk whose server died, and that somebody has open.
    orphan: Option<u32>,
    /// What is kept of the data its clients were served.
    record: Option<Record>,
    /// Told when the engine has let the disk go.
    closed: Option<oneshot::Sender<()>>,
}

/// Under whom a disk is ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ending {
    /// Nobody has it open; where the driver knows better it refuses.
    Unused,
    /// Whoever has it open gets errors.
    Whoever,
}

const fn mark_of(minor: Minor) -> Mark {
    Mark(MARK | minor.0 as u64)
}

fn disk_name(number: u32) -> String {
    format!("ublkb{number}")
}

/// Whether volumes are block devices here; `Err` with the reason where that was asked for and cannot be.
pub(super) fn is_wanted(frontend: crate::settings::Frontend) -> anyhow::Result<bool> {
    use crate::settings::Frontend;
    if frontend == Frontend::Nbd {
        return Ok(false);
    }
    let obstacle = match ublk::check() {
        Ok(()) => return Ok(true),
        Err(_) if !ublk::BUILT_IN => "this build has no ublk front end".to_owned(),
        Err(nix::errno::Errno::ENOENT) => "there is no /dev/ublk-control (modprobe ublk_drv)".to_owned(),
        Err(errno) => format!("/dev/ublk-control: {errno}"),
    };
    match frontend {
        Frontend::Ublk => anyhow::bail!("{obstacle}; use --frontend nbd"),
        _ => tracing::info!("volumes are no block devices here: {obstacle}; they are served through NBD"),
    }
    Ok(false)
}

/// `new-minor`: the names.
pub(super) async fn appear(node: &Rc<Node>, minor: Minor, resource: &str, volume: VolumeNumber) {
    if !node.block_devices || node.state.borrow().blocks.contains_key(&minor) {
        return;
    }
    let owner = format!("udrbdd of {} (process {})", node.run_directory.display(), std::process::id());
    let (about, resource_name) = (resource.to_owned(), resource.to_owned());
    let prepared = tokio::task::spawn_blocking(move || prepare(minor, &resource_name, volume, &owner)).await;
    let device = match prepared {
        Ok(Ok(device)) => device,
        Ok(Err(error)) => {
            let text = format!("/dev/drbd{minor} is left alone, only NBD serves the volume: {error}");
            node.log(&about, Level::Warning, Some(volume), &text);
            Device {
                resource: about.clone(),
                names: Names::none(minor),
                serving: false,
                disk: None,
                started: false,
                size: Sector(0),
                orphan: None,
                record: None,
                closed: None,
            }
        }
        Err(_) => return,
    };
    if let Some(number) = device.orphan {
        let text = format!("/dev/{} is in use and waits: 'primary' takes it over", disk_name(number));
        node.log(&about, Level::Warning, Some(volume), &text);
    }
    let record = device.orphan.map(|_| record::read(&node.run_directory, minor));
    node.state.borrow_mut().blocks.insert(minor, Device { record, ..device });
    if let Some(record) = record {
        let clients = Some(record.clients);
        // It cannot be refused.
        pass(node, &about, Command::ClientsWait { volume, clients }).await;
    }
}

fn prepare(minor: Minor, resource: &str, volume: VolumeNumber, owner: &str) -> Result<Device, ClaimError> {
    let claim = MinorClaim::take(minor.0, owner)?;
    let orphan = ublk::existing()
        .into_iter()
        .filter(|disk| disk.mark == mark_of(minor))
        .filter_map(|disk| keep_or_delete(minor, disk))
        .next_back();
    let number = orphan.and_then(|number| DeviceNumber::of_disk(&disk_name(number)).ok());
    let names = Names::make(claim, minor, resource, volume, number);
    Ok(Device {
        resource: resource.to_owned(),
        names,
        serving: true,
        disk: None,
        started: false,
        size: Sector(0),
        orphan,
        record: None,
        closed: None,
    })
}

/// A disk of a dead daemon stays only where somebody waits for it.
fn keep_or_delete(minor: Minor, disk: Existing) -> Option<u32> {
    let name = disk_name(disk.number);
    let number = DeviceNumber::of_disk(&name).ok();
    let node = PathBuf::from(format!("/dev/{name}"));
    if number.is_some_and(|number| !openers(&node, number).is_empty()) {
        wait_for_orphan(disk.number);
        return Some(disk.number);
    }
    match ublk::remove_unused(disk.number) {
        Ok(()) => tracing::info!("drbd{minor}: deleted /dev/{name}, which a dead daemon left"),
        Err(error) if error.errno == nix::errno::Errno::EBUSY => {
            wait_for_orphan(disk.number);
            return Some(disk.number);
        }
        Err(error) => tracing::warn!("drbd{minor}: /dev/{name} stays behind: {error}"),
    }
    None
}

/// The driver needs a moment to notice that a server has died.
fn wait_for_orphan(number: u32) {
    for _ in 0..ORPHAN_TRIES {
        if ublk::existing().iter().any(|disk| disk.number == number && disk.orphaned) {
            return;
        }
        std::thread::sleep(ORPHAN_PAUSE);
    }
}

/// The minor is gone: the names go.
pub(super) fn disappear(node: &Node, minor: Minor) {
    let device = node.state.borrow_mut().blocks.remove(&minor);
    drop(device);
}

/// The resource is gone: the names of all its minors go.
pub(super) fn disappear_all(node: &Node, resource: &str) {
    node.state.borrow_mut().blocks.retain(|_, device| device.resource != resource);
}

/// The volume has another backing device, or none.
pub(super) fn backing_changed(node: &Node, minor: Minor, disk: Option<&str>) {
    if let Some(device) = node.state.borrow_mut().blocks.get_mut(&minor) {
        device.names.link_disk(disk);
    }
}

/// The engine has let a stopped disk go.
pub(super) fn closed(node: &Rc<Node>, resource: &str, volume: VolumeNumber) {
    let mut state = node.state.borrow_mut();
    let Some(minor) = state.resource(resource).and_then(|entry| Some(entry.volume(volume)?.minor)) else {
        return;
    };
    let Some(device) = state.blocks.get_mut(&minor) else { return };
    if let Some(waiting) = device.closed.take() {
        // Whoever waits may have given up.
        let _ = waiting.send(());
        return;
    }
    let disk = device.disk.take();
    if let Err(errno) = device.names.set(None) {
        tracing::warn!("drbd{minor}: the node stays: {errno}");
    }
    drop(state);
    if let Some(disk) = disk {
        let text = format!("/dev/{} was stopped by somebody else", disk_name(disk.number()));
        node.log(resource, Level::Error, Some(volume), &text);
        tokio::task::spawn_local(async move {
            // It is stopped; a number that stays taken harms nobody.
            let _ = disk.delete().await;
        });
    }
}

/// Whether the volume has a disk now.
pub(super) fn is_up(node: &Node, minor: Minor) -> bool {
    node.state.borrow().blocks.get(&minor).is_some_and(|device| device.disk.is_some())
}

fn parameters(state: &State, resource: &str, volume: VolumeNumber) -> Option<Parameters> {
    let entry = state.resource(resource)?;
    let status = &entry.status.as_ref()?.resource;
    let known = status.volumes.iter().find(|known| known.volume == volume)?;
    let backing = entry.volume(volume)?.backing.as_ref().filter(|_| known.disk > DiskState::Diskless);
    let (logical, physical) = backing
        .map_or(DISKLESS_BLOCK_BYTES, |backing| (backing.logical_block_bytes, backing.physical_block_bytes));
    let physical = physical.checked_next_power_of_two().unwrap_or(logical);
    Some(Parameters {
        size: known.size,
        logical_block_bytes: logical,
        physical_block_bytes: physical.clamp(logical, PHYSICAL_BLOCK_BYTES_MAX),
        request_bytes_max: ublk::REQUEST_BYTES,
        discard_granularity_bytes: backing.map_or(logical, |backing| backing.discard_granularity_bytes),
        zero_bytes_max: ZERO_BYTES_MAX,
        rotational: backing.is_some_and(|backing| backing.rotational),
    })
}

/// Makes the disk of a volume that has become Primary, or takes it over. Returns when it can be used.
pub(super) async fn bring_up(
    node: &Rc<Node>,
    resource: &str,
    volume: VolumeNumber,
    minor: Minor,
) -> Result<(), String> {
    let origin = {
        let state = node.state.borrow();
        let Some(device) = state.blocks.get(&minor) else { return Ok(()) };
        if device.disk.is_some() && !device.started {
            return Err("the kernel has not finished starting it".to_owned());
        }
        if !device.serving || device.disk.is_some() {
            return Ok(());
        }
        match (device.orphan, parameters(&state, resource, volume)) {
            (Some(number), _) => Origin::Orphan { number },
            (None, Some(parameters)) => Origin::New { number: minor.0, mark: mark_of(minor), parameters },
            (None, None) => return Err("the size of the device is not known".to_owned()),
        }
    };
    let taken_over = matches!(origin, Origin::Orphan { .. });
    let size = match &origin {
        Origin::New { parameters, .. } => Some(parameters.size),
        Origin::Orphan { number } => {
            DeviceNumber::of_disk(&disk_name(*number)).ok().and_then(DeviceNumber::size)
        }
    };
    keep_record(node, resource, volume, minor).await?;
    let (disk, queue) = Keeper::make(origin).await.map_err(|error| error.to_string())?;
    let disk = Arc::new(disk);
    if let Err(text) = serve(node, resource, volume, queue).await {
        let _ = disk.delete().await;
        return Err(text);
    }
    if let Some(device) = node.state.borrow_mut().blocks.get_mut(&minor) {
        device.disk = Some(Arc::clone(&disk));
        device.started = false;
        device.size = size.unwrap_or(Sector(0));
        device.orphan = None;
    }
    let started = match disk.start().await {
        Ok(()) => name(node, minor, disk.number()),
        Err(error) => Err(error),
    };
    match started {
        Ok(()) => {
            let how = if taken_over { "took over" } else { "started" };
            if taken_over {
                pass(node, resource, Command::ClientsWait { volume, clients: None }).await;
            }
            let text = format!("{how} /dev/{} as /dev/drbd{minor}", disk_name(disk.number()));
            node.log(resource, Level::Info, Some(volume), &text);
            Ok(())
        }
        Err(error) => {
            if error.errno != nix::errno::Errno::ETIMEDOUT {
                // The first error is the one to tell.
                let _ = end(node, minor, Ending::Whoever).await;
            }
            Err(error.to_string())
        }
    }
}

/// Before anybody is served, what data they will see is kept; and who waits is looked at once more: the promotion may
/// have taken its time.
async fn keep_record(
    node: &Rc<Node>,
    resource: &str,
    volume: VolumeNumber,
    minor: Minor,
) -> Result<(), String> {
    node.refresh_now(Some(resource)).await;
    let mut state = node.state.borrow_mut();
    let known = state.resource(resource).and_then(|entry| {
        let volumes = &entry.status.as_ref()?.resource.volumes;
        let known = volumes.iter().find(|known| known.volume == volume)?;
        Some((served_now(known), known.clients_may_go_on))
    });
    let Some((record, may_go_on)) = known else { return Err("the engine does not answer".to_owned()) };
    if !may_go_on {
        return Err("the peer has written since".to_owned());
    }
    if let Some(device) = state.blocks.get_mut(&minor) {
        device.record = Some(record);
    }
    drop(state);
    record::write(&node.run_directory, minor, record).map_err(|error| {
        format!("{}: {error}; which data it serves must be remembered there", node.run_directory.display())
    })
}

/// What clients see of a volume now.
fn served_now(volume: &VolumeStatus) -> Record {
    let clients = WaitingClients { served: volume.served_generation, overwritten: false };
    Record { clients, alone: volume.connection < ConnectionState::Connected }
}

/// Keeps what has become of the data a block device serves, or of those that its waiting clients know.
fn update_records(node: &Node, resource: &str) {
    let mut state = node.state.borrow_mut();
    let State { resources, blocks, .. } = &mut *state;
    let Some(status) =
        resources.iter().find(|entry| entry.name == resource).and_then(|entry| entry.status.as_ref())
    else {
        return;
    };
    for volume in &status.resource.volumes {
        let Some(device) = blocks.get_mut(&volume.minor) else { continue };
        let record = if device.orphan.is_some() {
            let overwritten = volume.waiting_clients.filter(|clients| clients.overwritten);
            overwritten.map(|clients| Record { clients, alone: false })
        } else if device.started && volume.role == Role::Primary {
            Some(served_now(volume))
        } else {
            None
        };
        if let Some(record) = record
            && device.record != Some(record)
        {
            device.record = Some(record);
            if let Err(error) = record::write(&node.run_directory, volume.minor, record) {
                tracing::warn!("{}: {error}", node.run_directory.display());
            }
        }
    }
}

/// A promotion was refused because the data have been replaced under clients that wait: they get errors, as there is
/// nothing else they could ever get. Returns whether there were any.
pub(super) async fn fail_waiting(
    node: &Rc<Node>,
    resource: &str,
    volume: VolumeNumber,
    minor: Minor,
) -> bool {
    let orphan = node.state.borrow_mut().blocks.get_mut(&minor).and_then(|device| device.orphan.take());
    let Some(number) = orphan else { return false };
    pass(node, resource, Command::ClientsWait { volume, clients: None }).await;
    record::remove(&node.run_directory, minor);
    set_node(node, minor, None);
    let removed = tokio::task::spawn_blocking(move || ublk::remove(number)).await;
    let name = disk_name(number);
    let text = match removed {
        Ok(Err(error)) => format!("/dev/{name}: {error}"),
        _ => format!("ended /dev/{name}, in use since another daemon: the peer has written since"),
    };
    node.log(resource, Level::Error, Some(volume), &text);
    true
}

/// Hands the queue to the engine's thread.
async fn serve(node: &Rc<Node>, resource: &str, volume: VolumeNumber, source: Source) -> Result<(), String> {
    let answer = {
        let mut state = node.state.borrow_mut();
        let Some(entry) = state.resource_mut(resource) else { return Err("the resource is gone".to_owned()) };
        entry.command(|id| ToEngine::ServeBlock { id, volume, source })
    };
    match answer.await {
        Ok(result) if result.code.is_success() => Ok(()),
        Ok(result) => Err(result.info.join(", ")),
        Err(_) => Err("the resource is gone".to_owned()),
    }
}

/// Gives the node the disk's number.
fn name(node: &Node, minor: Minor, disk: u32) -> Result<(), ControlError> {
    let failed = |errno| ControlError { step: "name the disk", errno };
    let number = DeviceNumber::of_disk(&disk_name(disk)).map_err(failed)?;
    match node.state.borrow_mut().blocks.get_mut(&minor) {
        Some(device) => {
            device.names.set(Some(number)).map_err(failed)?;
            device.started = true;
            Ok(())
        }
        None => Ok(()),
    }
}

/// Ends the disk of a volume.
///
/// # Errors
/// What the driver says. After `EBUSY` of [`Ending::Unused`] the disk is as it was, but has no name.
async fn end(node: &Rc<Node>, minor: Minor, ending: Ending) -> Result<(), ControlError> {
    let (disk, gone) = {
        let mut state = node.state.borrow_mut();
        let Some(device) = state.blocks.get_mut(&minor) else { return Ok(()) };
        let Some(disk) = device.disk.clone() else { return Ok(()) };
        if let Err(errno) = device.names.set(None) {
            tracing::warn!("drbd{minor}: the node stays: {errno}");
        }
        let (closed, gone) = oneshot::channel();
        device.closed = Some(closed);
        (disk, gone)
    };
    let stopped = match ending {
        Ending::Unused => disk.stop_unused().await,
        Ending::Whoever => disk.stop().await,
    };
    let in_use = stopped.is_err_and(|error| error.errno == nix::errno::Errno::EBUSY);
    if stopped.is_ok() && tokio::time::timeout(CLOSE_PATIENCE, gone).await.is_err() {
        tracing::error!("drbd{minor}: the engine keeps /dev/{}", disk_name(disk.number()));
    }
    if let Some(device) = node.state.borrow_mut().blocks.get_mut(&minor) {
        device.closed = None;
        device.started &= in_use;
        if stopped.is_ok() {
            device.disk = None;
        }
    }
    stopped?;
    record::remove(&node.run_directory, minor);
    disk.delete().await
}

/// Nobody waits for a disk of a dead daemon any more.
async fn forget_waiting(node: &Rc<Node>, minor: Minor) {
    record::remove(&node.run_directory, minor);
    let found = find_device(node, minor);
    if let Some((resource, volume)) = found {
        pass(node, &resource, Command::ClientsWait { volume, clients: None }).await;
    }
}

/// Ends the disk of a volume if nobody has it open.
///
/// # Errors
/// Who has it open, or why it cannot be ended.
pub(super) async fn release(node: &Rc<Node>, minor: Minor) -> Result<(), Vec<String>> {
    let orphan = node.state.borrow().blocks.get(&minor).and_then(|device| device.orphan);
    let up = is_up(node, minor);
    if !up && orphan.is_none() {
        return Ok(());
    }
    refuse_openers(open_by(node, minor).await)?;
    if let Some(number) = orphan {
        let removed = tokio::task::spawn_blocking(move || ublk::remove_unused(number)).await;
        if matches!(removed, Ok(Err(error)) if error.errno == nix::errno::Errno::EBUSY) {
            return Err(vec![Opener::Hidden.to_string()]);
        }
        forget_waiting(node, minor).await;
        if let Some(device) = node.state.borrow_mut().blocks.get_mut(&minor) {
            device.orphan = None;
        }
        return match removed {
            Ok(Err(error)) => Err(vec![error.to_string()]),
            _ => Ok(()),
        };
    }
    // From now on nobody gets in by the name. Who came just before is seen, or the driver knows of them.
    let number = set_node(node, minor, None);
    let mut tries = 0;
    let refused = loop {
        if let Err(holders) = refuse_openers(open_by_number(node, minor, number).await) {
            break holders;
        }
        tries += 1;
        match end(node, minor, Ending::Unused).await {
            Err(error) if error.errno != nix::errno::Errno::EBUSY => return Err(vec![error.to_string()]),
            Ok(()) => return Ok(()),
            Err(_) if tries == HIDDEN_TRIES => break vec![Opener::Hidden.to_string()],
            Err(_) => tokio::time::sleep(PASSING_PAUSE).await,
        }
    };
    set_node(node, minor, number);
    Err(refused)
}

fn refuse_openers(openers: Vec<Opener>) -> Result<(), Vec<String>> {
    if openers.is_empty() { Ok(()) } else { Err(openers.iter().map(ToString::to_string).collect()) }
}

/// Lets the node be a disk's or a placeholder, and returns what it was.
fn set_node(node: &Node, minor: Minor, number: Option<DeviceNumber>) -> Option<DeviceNumber> {
    let mut state = node.state.borrow_mut();
    let names = &mut state.blocks.get_mut(&minor)?.names;
    let before = names.number();
    if let Err(errno) = names.set(number) {
        tracing::warn!("drbd{minor}: the node stays: {errno}");
    }
    before
}

/// Who has the disk of a volume open. Those who only look at it are waited for.
pub(super) async fn open_by(node: &Rc<Node>, minor: Minor) -> Vec<Opener> {
    let number = node.state.borrow().blocks.get(&minor).and_then(|device| device.names.number());
    open_by_number(node, minor, number).await
}

async fn open_by_number(node: &Rc<Node>, minor: Minor, number: Option<DeviceNumber>) -> Vec<Opener> {
    let disk = {
        let state = node.state.borrow();
        let Some(device) = state.blocks.get(&minor) else { return Vec::new() };
        device.disk.as_ref().map(|disk| disk.number()).or(device.orphan)
    };
    let Some(disk) = disk.map(disk_name) else { return Vec::new() };
    let Some(number) = DeviceNumber::of_disk(&disk).ok().or(number) else { return Vec::new() };
    let path = PathBuf::from(format!("/dev/{disk}"));
    let mut tries = 0;
    loop {
        let node_path = path.clone();
        let found = tokio::task::spawn_blocking(move || openers(&node_path, number)).await;
        let found = found.unwrap_or_default();
        tries += 1;
        if tries >= PASSING_TRIES || found.is_empty() || !found.iter().all(Opener::is_passing) {
            return found;
        }
        tokio::time::sleep(PASSING_PAUSE).await;
    }
}

/// Lets the disk of a volume have the size that the engine says. Where the driver cannot do that, the disk is made anew,
/// unless somebody has it open.
pub(super) async fn follow_size(node: &Rc<Node>, resource: &str, minor: Minor) {
    let Some((disk, volume, size)) = other_size(&node.state.borrow(), minor) else { return };
    let resized = disk.resize(size).await;
    drop(disk);
    if let Some(device) = node.state.borrow_mut().blocks.get_mut(&minor) {
        // Where it cannot be done now it is not tried again until the size changes once more.
        device.size = size;
    }
    let obstacle = match resized {
        Ok(()) => return,
        Err(error) if error.errno == nix::errno::Errno::EOPNOTSUPP => match release(node, minor).await {
            Ok(()) => bring_up(node, resource, volume, minor).await.err(),
            Err(holders) => Some(holders.join(", ")),
        },
        Err(error) => Some(error.to_string()),
    };
    if let Some(obstacle) = obstacle {
        let text = format!("/dev/drbd{minor} keeps its size until the next promotion: {obstacle}");
        node.log(resource, Level::Warning, Some(volume), &text);
    }
}

fn other_size(state: &State, minor: Minor) -> Option<(Arc<Keeper>, VolumeNumber, Sector)> {
    let device = state.blocks.get(&minor).filter(|device| device.started)?;
    let (entry, volume) = state.by_minor(minor)?;
    let volumes = &entry.status.as_ref()?.resource.volumes;
    let size = volumes.iter().find(|known| known.volume == volume)?.size;
    (size.0 > 0 && size != device.size).then(|| Some((device.disk.clone()?, volume, size)))?
}

/// Whether a volume may change its size while it has a disk: the driver of this kernel knows how.
pub(super) async fn can_resize() -> bool {
    tokio::task::spawn_blocking(ublk::can_resize).await.unwrap_or(false)
}

/// Lets disks follow the sizes of their volumes, and ends those whose volumes are no longer Primary although nobody asked for that here: their requests fail as it is.
pub(super) fn look_after(node: &Rc<Node>, resource: &str) {
    update_records(node, resource);
    let state = node.state.borrow();
    let Some(entry) = state.resource(resource) else { return };
    let Some(status) = &entry.status else { return };
    let up = status.resource.volumes.iter().filter(|volume| {
        state.blocks.get(&volume.minor).is_some_and(|device| {
            device.disk.is_some()
                && (volume.role != Role::Primary || (device.started && volume.size != device.size))
        })
    });
    let up: Vec<Minor> = up.map(|volume| volume.minor).collect();
    if up.is_empty() {
        return;
    }
    // While a command is at it, the command knows what to do.
    let admin = Rc::clone(&entry.admin);
    let (node, resource) = (Rc::clone(node), resource.to_owned());
    tokio::task::spawn_local(async move {
        let _turn = admin.lock().await;
        for minor in up {
            follow_size(&node, &resource, minor).await;
            let secondary = node.state.borrow().role(minor) == Some(Role::Secondary);
            if secondary && is_up(&node, minor) {
                let text = format!("ending /dev/drbd{minor}: its volume is no longer Primary");
                node.log(&resource, Level::Warning, None, &text);
                if let Err(error) = end(&node, minor, Ending::Whoever).await {
                    node.log(&resource, Level::Error, None, &error.to_string());
                }
            }
        }
    });
}

/// The daemon ends: disks that nobody has open go, the others wait for the next daemon.
pub(super) async fn end_all(node: &Rc<Node>) {
    let minors: Vec<Minor> = node.state.borrow().blocks.keys().copied().collect();
    for minor in minors {
        if release(node, minor).await.is_err()
            && let Some(device) = node.state.borrow_mut().blocks.get_mut(&minor)
        {
            tracing::info!("/dev/drbd{minor} is open: it waits for the next daemon");
            device.names.leave();
        }
    }
}
