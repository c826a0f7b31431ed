//! The commands of the command line: checked here as far as they concern the node, decided by the engines.

use std::rc::Rc;
use std::time::Duration;

use udrbd_control::ReturnCode;
use udrbd_control::options::{OptionChanges, OptionError, OptionSet, ResourceOptions};
use udrbd_control::protocol::{CommandResult, Request, StreamItem};
use udrbd_engine::interface::{Command, ResizeRequest};
use udrbd_units::{ConnectionState, Minor, Sector, VolumeNumber};

use super::resource::Resource;
use super::{Node, State, block, connect, convert, disks, roles, time_us, undo};
use crate::messages::ToEngine;
use crate::thread;

/// How long an engine thread may take to end.
const END_PATIENCE: Duration = Duration::from_secs(10);
const END_PAUSE: Duration = Duration::from_millis(2);
const VOLUME_MAX: u16 = 65_534;
const MINOR_MAX: u32 = (1 << 20) - 1;

/// Carries a command out.
pub(super) async fn execute(node: &Rc<Node>, request: Request) -> CommandResult {
    match request {
        Request::NewResource { resource, options } => new_resource(node, resource, options).await,
        Request::DelResource { resource } => delete_resource(node, &resource).await,
        Request::NewMinor { resource, minor, volume } => new_minor(node, &resource, minor, volume).await,
        Request::DelMinor { minor } => roles::delete(node, minor).await,
        Request::Attach { minor, disk, metadata, index, options } => {
            disks::attach(node, minor, disks::Wanted { disk, metadata, index, options }).await
        }
        Request::DiskOptions { minor, changes } => disks::change_options(node, minor, changes).await,
        Request::Detach { minor, force } => {
            let detach = |volume| Command::Detach { volume, force };
            let result = device_unless(node, minor, force, detach).await;
            if result.code.is_success() {
                block::backing_changed(node, minor, None);
            }
            result
        }
        Request::Connect { resource, local, peer, options, discard_my_data, tentative } => {
            let wanted = connect::Wanted { local, peer, options, discard_my_data, tentative };
            connect::connect(node, &resource, wanted).await
        }
        Request::NetOptions { local, peer, changes } => {
            connect::change_options(node, local, peer, changes).await
        }
        Request::Disconnect { local, peer, force } => connect::disconnect(node, local, peer, force).await,
        Request::ResourceOptions { resource, changes } => {
            change_resource_options(node, &resource, changes).await
        }
        Request::Primary { minor, force } => roles::promote(node, minor, force).await,
        Request::Secondary { minor } => roles::demote(node, minor).await,
        Request::Invalidate { minor } => device(node, minor, |volume| Command::Invalidate { volume }).await,
        Request::InvalidateRemote { minor } => {
            device(node, minor, |volume| Command::InvalidateRemote { volume }).await
        }
        Request::Outdate { minor } => device(node, minor, |volume| Command::Outdate { volume }).await,
        Request::PauseSync { minor } => device(node, minor, |volume| Command::PauseSync { volume }).await,
        Request::ResumeSync { minor } => device(node, minor, |volume| Command::ResumeSync { volume }).await,
        Request::SuspendIo { minor } => device(node, minor, |volume| Command::SuspendIo { volume }).await,
        Request::ResumeIo { minor } => device(node, minor, |volume| Command::ResumeIo { volume }).await,
        Request::NewCurrentUuid { minor, clear_bitmap } => {
            device(node, minor, |volume| Command::NewCurrentUuid { volume, clear_bitmap }).await
        }
        Request::DropResyncUndo { minor } => undo::drop_undo(node, minor).await,
        Request::Down { resource } => roles::down(node, &resource).await,
        Request::RegisterConfiguration { resource, path } => {
            let mut state = node.state.borrow_mut();
            let Some(entry) = state.resource_mut(&resource) else { return unknown_resource() };
            entry.configuration = Some(path);
            drop(state);
            node.show(&resource);
            ReturnCode::NoError.into()
        }
        Request::Resize {
            minor,
            size_sectors,
            assume_peer_has_space,
            assume_clean,
            al_stripes,
            al_stripe_size_kib,
        } => {
            let request = ResizeRequest {
                size_sectors: size_sectors.unwrap_or(0),
                assume_peer_has_space,
                assume_clean,
                al_stripes,
                al_stripe_size_kib,
            };
            roles::resize(node, minor, request).await
        }
        Request::Verify { minor, start_sector, stop_sector } => {
            let (start, stop) = (start_sector.map(Sector), stop_sector.map(Sector));
            device(node, minor, |volume| Command::Verify { volume, start, stop }).await
        }
        Request::Snapshot { .. } | Request::SplitBrainReport { .. } | Request::Watch { .. } => {
            ReturnCode::InvalidRequest.into()
        }
    }
}

pub(super) fn unknown_minor() -> CommandResult {
    CommandResult::with_info(ReturnCode::MinorInvalid, "unknown minor")
}

pub(super) fn unknown_resource() -> CommandResult {
    CommandResult::with_info(ReturnCode::ResourceNotKnown, "unknown resource")
}

/// An option that cannot be as it was asked for.
pub(super) fn bad_option(error: &OptionError) -> CommandResult {
    let info = match error {
        OptionError::Invariant(_) => "can not change invariant setting",
        OptionError::Unknown(_) => "unknown mandatory attribute",
        _ => "invalid attribute value",
    };
    CommandResult::with_info(ReturnCode::MandatoryTag, info)
}

/// The engine is gone, or never answered.
pub(super) fn no_answer() -> CommandResult {
    CommandResult::with_info(ReturnCode::UnknownError, "the resource went away")
}

/// Runs `work` while no other command works on the resource.
pub(super) async fn one_at_a_time<F>(node: &Rc<Node>, resource: &str, work: F) -> CommandResult
where
    F: AsyncFnOnce() -> CommandResult,
{
    let admin = match node.state.borrow().resource(resource) {
        Some(entry) => Rc::clone(&entry.admin),
        None => return unknown_resource(),
    };
    let _turn = admin.lock().await;
    work().await
}

/// Passes a command on to the engine of a resource.
pub(super) async fn pass(node: &Rc<Node>, resource: &str, command: Command) -> CommandResult {
    let answer = {
        let mut state = node.state.borrow_mut();
        let Some(entry) = state.resource_mut(resource) else { return unknown_resource() };
        entry.command(|id| ToEngine::Command { id, command })
    };
    answer.await.unwrap_or_else(|_| no_answer())
}

/// The resource and volume of a minor.
pub(super) fn find_device(node: &Node, minor: Minor) -> Option<(String, VolumeNumber)> {
    let state = node.state.borrow();
    state.by_minor(minor).map(|(resource, volume)| (resource.name.clone(), volume))
}

async fn device(
    node: &Rc<Node>,
    minor: Minor,
    command: impl FnOnce(VolumeNumber) -> Command,
) -> CommandResult {
    device_unless(node, minor, false, command).await
}

/// As [`device`]; `force` goes ahead of a command that does not end.
async fn device_unless(
    node: &Rc<Node>,
    minor: Minor,
    force: bool,
    command: impl FnOnce(VolumeNumber) -> Command,
) -> CommandResult {
    let Some((resource, volume)) = find_device(node, minor) else { return unknown_minor() };
    let command = command(volume);
    if force {
        return pass(node, &resource, command).await;
    }
    one_at_a_time(node, &resource, async || pass(node, &resource, command).await).await
}

async fn new_resource(node: &Rc<Node>, name: String, options: ResourceOptions) -> CommandResult {
    if name.is_empty() {
        return CommandResult::with_info(ReturnCode::MandatoryTag, "resource name missing");
    }
    if name.contains('/') {
        return CommandResult::with_info(ReturnCode::InvalidRequest, "invalid resource name");
    }
    let Some(cpus) = convert::processors(&options.cpu_mask) else { return ReturnCode::CpuMaskParse.into() };
    {
        let mut state = node.state.borrow_mut();
        if state.resource(&name).is_some() {
            return ReturnCode::NoError.into();
        }
        if state.reserved.contains(&name) {
            return CommandResult::with_info(
                ReturnCode::ResourceInUse,
                "the resource is being made or removed",
            );
        }
        state.reserved.push(name.clone());
    }
    let engine_options = convert::resource_options(&options);
    let thread_name = name.clone();
    let started =
        tokio::task::spawn_blocking(move || thread::start(&thread_name, engine_options, cpus)).await;
    node.state.borrow_mut().reserved.retain(|reserved| *reserved != name);
    let (engine, events) = match started {
        Ok(Ok(started)) => started,
        Ok(Err(errno)) => {
            tracing::error!("drbd {name}: no engine thread: {errno}");
            return CommandResult::with_info(ReturnCode::NoMemory, format!("no engine thread: {errno}"));
        }
        Err(_) => return ReturnCode::NoMemory.into(),
    };
    node.state.borrow_mut().resources.push(Resource::new(name.clone(), options, engine));
    tokio::task::spawn_local(Rc::clone(node).listen_to(name.clone(), events));
    node.refresh_now(Some(&name)).await;
    ReturnCode::NoError.into()
}

async fn delete_resource(node: &Rc<Node>, resource: &str) -> CommandResult {
    one_at_a_time(node, resource, async || {
        node.refresh_now(Some(resource)).await;
        let refusal = {
            let state = node.state.borrow();
            let Some(entry) = state.resource(resource) else { return unknown_resource() };
            if entry.snapshot.connection.state > ConnectionState::StandAlone {
                Some(ReturnCode::NetConfigured)
            } else if entry.volumes.is_empty() {
                None
            } else {
                Some(ReturnCode::ResourceInUse)
            }
        };
        match refusal {
            Some(code) => code.into(),
            None => remove(node, resource).await,
        }
    })
    .await
}

/// Ends the engine thread of a resource and forgets the resource. Its devices are closed afterwards.
pub(super) async fn remove(node: &Rc<Node>, resource: &str) -> CommandResult {
    let entry = {
        let mut state = node.state.borrow_mut();
        let index = state.resources.iter().position(|entry| entry.name == resource);
        let Some(index) = index else { return unknown_resource() };
        state.reserved.push(resource.to_owned());
        state.resources.remove(index)
    };
    // A thread that does not hear it sees its mailbox close.
    let _ = entry.engine.mail.send(ToEngine::Stop);
    let thread = entry.engine.thread;
    drop(entry.engine.mail);
    let deadline = tokio::time::Instant::now() + END_PATIENCE;
    while !thread.is_finished() && tokio::time::Instant::now() < deadline {
        tokio::time::sleep(END_PAUSE).await;
    }
    block::disappear_all(node, resource);
    let mut state = node.state.borrow_mut();
    state.reserved.retain(|reserved| reserved != resource);
    let item = StreamItem::ResourceGone { time_us: time_us(), name: resource.to_owned() };
    state.watchers.tell(resource, &item);
    drop(state);
    node.review_dependencies();
    node.changed.notify_one();
    ReturnCode::NoError.into()
}

async fn new_minor(node: &Rc<Node>, resource: &str, minor: Minor, volume: VolumeNumber) -> CommandResult {
    if minor.0 > MINOR_MAX {
        return CommandResult::with_info(ReturnCode::InvalidRequest, "requested minor out of range");
    }
    if volume.0 > VOLUME_MAX {
        return CommandResult::with_info(ReturnCode::InvalidRequest, "requested volume id out of range");
    }
    one_at_a_time(node, resource, async || {
        let taken = {
            let state = node.state.borrow();
            state.by_minor(minor).is_some_and(|(entry, _)| entry.name != resource)
        };
        if taken {
            return ReturnCode::MinorOrVolumeExists.into();
        }
        let result = pass(node, resource, Command::NewMinor { volume, minor }).await;
        if result.code.is_success() {
            block::appear(node, minor, resource, volume).await;
        }
        result
    })
    .await
}

async fn change_resource_options(node: &Rc<Node>, resource: &str, changes: OptionChanges) -> CommandResult {
    one_at_a_time(node, resource, async || {
        let changed = {
            let state = node.state.borrow();
            let Some(entry) = state.resource(resource) else { return unknown_resource() };
            entry.options.with_changes(&changes)
        };
        let options = match changed {
            Ok(options) => options,
            Err(error) => return bad_option(&error),
        };
        if convert::processors(&options.cpu_mask).is_none() {
            return ReturnCode::CpuMaskParse.into();
        }
        let command = Command::ResourceOptions(convert::resource_options(&options));
        let result = pass(node, resource, command).await;
        if result.code.is_success() {
            if let Some(entry) = node.state.borrow_mut().resource_mut(resource) {
                entry.options = options;
            }
            node.show(resource);
        }
        result
    })
    .await
}

impl State {
    /// The resource with a network configuration between these addresses.
    pub(super) fn by_addresses(
        &self,
        local: udrbd_control::Address,
        peer: udrbd_control::Address,
    ) -> Option<&Resource> {
        self.resources
            .iter()
            .find(|entry| entry.net.as_ref().is_some_and(|net| net.local == local && net.peer == peer))
    }
}
