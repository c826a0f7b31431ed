//! `primary`, `secondary`, `down` and `resize`: the engine decides about role and size, and the block device goes with
//! them.

use std::rc::Rc;

use udrbd_control::ReturnCode;
use udrbd_control::protocol::CommandResult;
use udrbd_engine::interface::{Command, Level, ResizeRequest};
use udrbd_units::{Minor, Role, VolumeNumber};

use super::commands::{find_device, one_at_a_time, pass, remove, unknown_minor, unknown_resource};
use super::{Node, block};

/// `primary`: done when the block device can be used. Where there is to be one and cannot be, the volume is Secondary
/// again, unless it was Primary before.
pub(super) async fn promote(node: &Rc<Node>, minor: Minor, force: bool) -> CommandResult {
    let Some((resource, volume)) = find_device(node, minor) else { return unknown_minor() };
    let resource = resource.as_str();
    one_at_a_time(node, resource, async || {
        let mut result = pass(node, resource, Command::Primary { volume, force }).await;
        // Nothing else refuses a promotion with this code.
        if result.code == ReturnCode::DeviceInUse && block::fail_waiting(node, resource, volume, minor).await
        {
            result.info.push(format!(
                "they got I/O errors: unmount what was mounted from /dev/drbd{minor}, then promote again"
            ));
        }
        if !result.code.is_success() {
            return result;
        }
        let Err(reason) = block::bring_up(node, resource, volume, minor).await else { return result };
        let text = format!("/dev/drbd{minor} cannot be started: {reason}");
        node.log(resource, Level::Error, Some(volume), &text);
        if result.code != ReturnCode::NothingToDo && !block::is_up(node, minor) {
            let demotion = Command::Secondary { volume, held_open: false };
            let demoted = pass(node, resource, demotion).await;
            if !demoted.code.is_success() {
                node.log(resource, Level::Error, Some(volume), "it stays Primary");
            }
        }
        CommandResult::with_info(ReturnCode::UnknownError, text)
    })
    .await
}

/// `secondary`.
pub(super) async fn demote(node: &Rc<Node>, minor: Minor) -> CommandResult {
    let Some((resource, volume)) = find_device(node, minor) else { return unknown_minor() };
    let resource = resource.as_str();
    one_at_a_time(node, resource, async || {
        let was_up = block::is_up(node, minor);
        if let Err(refusal) = release(node, resource, volume, minor).await {
            return refusal;
        }
        // The engine thread knows which NBD clients there are.
        let result = pass(node, resource, Command::Secondary { volume, held_open: false }).await;
        if !result.code.is_success() && was_up {
            restore(node, resource, &[(volume, minor)]).await;
        }
        result
    })
    .await
}

/// `del-minor`.
pub(super) async fn delete(node: &Rc<Node>, minor: Minor) -> CommandResult {
    let Some((resource, volume)) = find_device(node, minor) else { return unknown_minor() };
    let resource = resource.as_str();
    one_at_a_time(node, resource, async || {
        // The engine refuses for a Primary. It does not know of those who wait for a disk of a dead daemon.
        if !block::is_up(node, minor)
            && let Err(refusal) = release(node, resource, volume, minor).await
        {
            return refusal;
        }
        let result = pass(node, resource, Command::DelMinor { volume }).await;
        if result.code.is_success() {
            block::disappear(node, minor);
        }
        result
    })
    .await
}

/// `down`.
pub(super) async fn down(node: &Rc<Node>, resource: &str) -> CommandResult {
    one_at_a_time(node, resource, async || {
        let volumes: Vec<(VolumeNumber, Minor)> = match node.state.borrow().resource(resource) {
            Some(entry) => entry.volumes.iter().map(|volume| (volume.number, volume.minor)).collect(),
            None => return unknown_resource(),
        };
        let mut released = Vec::new();
        for (volume, minor) in volumes {
            let was_up = block::is_up(node, minor);
            if let Err(mut refusal) = release(node, resource, volume, minor).await {
                restore(node, resource, &released).await;
                refusal.info = vec!["failed to demote".to_owned()];
                return refusal;
            }
            if was_up {
                released.push((volume, minor));
            }
        }
        let result = pass(node, resource, Command::Down).await;
        if !result.code.is_success() {
            restore(node, resource, &released).await;
            return result;
        }
        remove(node, resource).await
    })
    .await
}

/// `resize`. Where the kernel cannot resize a block device that is there, it is ended and made anew, unless somebody has
/// it open.
pub(super) async fn resize(node: &Rc<Node>, minor: Minor, request: ResizeRequest) -> CommandResult {
    let Some((resource, volume)) = find_device(node, minor) else { return unknown_minor() };
    let resource = resource.as_str();
    one_at_a_time(node, resource, async || {
        let anew = block::is_up(node, minor) && !block::can_resize().await;
        if anew && let Err(mut refusal) = release(node, resource, volume, minor).await {
            refusal.info.push(format!(
                "this kernel cannot resize /dev/drbd{minor} while it is open (Linux 6.16 and later can)"
            ));
            return refusal;
        }
        let result = pass(node, resource, Command::Resize { volume, request }).await;
        if anew {
            restore(node, resource, &[(volume, minor)]).await;
        } else if block::is_up(node, minor) {
            node.refresh_now(Some(resource)).await;
            block::follow_size(node, resource, minor).await;
        }
        result
    })
    .await
}

/// Ends the block device of a volume, unless somebody has it open, or the volume open by other means: then nothing is
/// changed.
async fn release(
    node: &Rc<Node>,
    resource: &str,
    volume: VolumeNumber,
    minor: Minor,
) -> Result<(), CommandResult> {
    let mut holders = Vec::new();
    if block::is_up(node, minor) {
        node.refresh_now(Some(resource)).await;
        let state = node.state.borrow();
        if let Some(status) = state.resource(resource).and_then(|entry| entry.status.as_ref()) {
            let engine = &status.resource;
            let suspended = engine.suspended_user || engine.suspended_no_data || engine.suspended_fencing;
            let pending = engine
                .volumes
                .iter()
                .any(|known| known.volume == volume && known.counters.application_pending > 0);
            if suspended && pending {
                // The driver would wait for them to end, for as long as they are frozen.
                holders.push("requests wait because I/O is suspended".to_owned());
            }
            if status.open.contains(&volume) {
                holders.push("an NBD client is connected".to_owned());
            }
        }
    }
    if holders.is_empty() {
        match block::release(node, minor).await {
            Ok(()) => return Ok(()),
            Err(who) => holders = who,
        }
    }
    for holder in &holders {
        node.log(resource, Level::Info, Some(volume), &format!("/dev/drbd{minor} is held open: {holder}"));
    }
    Err(CommandResult { holders, ..ReturnCode::DeviceInUse.into() })
}

/// Starts block devices again that were ended in vain.
async fn restore(node: &Rc<Node>, resource: &str, volumes: &[(VolumeNumber, Minor)]) {
    node.refresh_now(Some(resource)).await;
    for &(volume, minor) in volumes {
        let primary = node.state.borrow().role(minor) == Some(Role::Primary);
        if primary && let Err(reason) = block::bring_up(node, resource, volume, minor).await {
            let text = format!("/dev/drbd{minor} cannot be started again: {reason}");
            node.log(resource, Level::Error, Some(volume), &text);
        }
    }
}
