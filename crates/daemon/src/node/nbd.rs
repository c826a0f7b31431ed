//! The NBD server's greetings; requests are served by the engine threads.

use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use udrbd_control::status::{DeviceSnapshot, ResourceSnapshot};
use udrbd_runtime::nbd::{
    Export, Exports, Negotiated, Negotiation, Progress, Refusal, RefusalKind, split_export_name,
};
use udrbd_runtime::undo::Undo;
use udrbd_units::{DiskState, Role, SECTOR_BYTES, VolumeNumber};

use super::{Node, State, block, undo};
use crate::instance::listen_privately;
use crate::messages::ToEngine;

const SOCKET_NAME: &str = "nbd.sock";
/// How long a client may take to choose an export.
const PATIENCE: Duration = Duration::from_secs(30);
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Listens and serves.
pub(super) fn start(node: &Rc<Node>) -> anyhow::Result<()> {
    let listener = UnixListener::from_std(listen_privately(&node.run_directory.join(SOCKET_NAME))?)?;
    let node = Rc::clone(node);
    tokio::task::spawn_local(async move {
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            };
            let node = Rc::clone(&node);
            tokio::task::spawn_local(async move {
                if let Ok(Err(error)) = tokio::time::timeout(PATIENCE, greet(&node, stream)).await {
                    tracing::info!("a client of the NBD socket: {error}");
                }
            });
        }
    });
    Ok(())
}

async fn greet(node: &Rc<Node>, mut stream: UnixStream) -> anyhow::Result<()> {
    let mut negotiation = Negotiation::new();
    let mut bytes = [0; 4096];
    loop {
        stream.write_all(&negotiation.take_output()).await?;
        let count = stream.read(&mut bytes).await?;
        if count == 0 {
            return Ok(());
        }
        let progress = negotiation.handle(&bytes[..count], &*node.state.borrow());
        match progress {
            Progress::More => {}
            Progress::Ended(_) => {
                stream.write_all(&negotiation.take_output()).await?;
                return Ok(());
            }
            Progress::Done(negotiated) => {
                stream.write_all(&negotiation.take_output()).await?;
                return hand_over(node, stream, negotiated).await;
            }
        }
    }
}

async fn hand_over(node: &Rc<Node>, stream: UnixStream, negotiated: Box<Negotiated>) -> anyhow::Result<()> {
    let socket = OwnedFd::from(stream.into_std()?);
    if let Some(found) = node.state.borrow().find_undo(&negotiated.export.name).map(|(_, _, undo)| undo) {
        undo::serve(found, socket.into(), negotiated)?;
        return Ok(());
    }
    let Some((resource, volume)) = split_export_name(&negotiated.export.name) else { return Ok(()) };
    let (name, volume) = (resource.to_owned(), VolumeNumber(volume));
    let known = node.state.borrow().resource(&name).and_then(|entry| Some(entry.volume(volume)?.minor));
    if let Some(minor) = known
        && let Some(holder) = block::open_by(node, minor).await.first()
    {
        // The kernel keeps what it has read of its block device: it would not see what this client writes.
        anyhow::bail!("{name} is in use as /dev/drbd{minor}: {holder}");
    }
    let state = node.state.borrow();
    let Some(entry) = state.resource(&name) else { return Ok(()) };
    if entry.engine.mail.send(ToEngine::Client { volume, socket, negotiated }).is_err() {
        anyhow::bail!("{name} is busy");
    }
    Ok(())
}

/// Why a volume is not served here and now, in words for people.
fn obstacle(resource: &ResourceSnapshot, device: &DeviceSnapshot) -> Option<String> {
    let name = export_name(resource, device.volume);
    if device.role != Role::Primary {
        return Some(format!(
            "{name} is Secondary here: promote it with 'drbdadm primary {}'",
            resource.name
        ));
    }
    // With `on-no-data-accessible suspend-io` the requests of who comes now wait, as those of who was there before do.
    let waits = resource.suspended.no_data && device.size_sectors > 0;
    if device.disk < DiskState::Inconsistent && device.peer_disk != DiskState::UpToDate && !waits {
        return Some(format!("{name} has no data here: its disk is {}", device.disk));
    }
    None
}

fn export_name(resource: &ResourceSnapshot, volume: VolumeNumber) -> String {
    if volume.0 == 0 { resource.name.clone() } else { format!("{}/{volume}", resource.name) }
}

impl State {
    /// The undo an export is of.
    fn find_undo(&self, name: &str) -> Option<(&ResourceSnapshot, &DeviceSnapshot, Arc<Undo>)> {
        let (resource, volume) = split_export_name(name.strip_suffix(undo::SUFFIX)?)?;
        let entry = self.resource(resource)?;
        let undo = entry.volume(VolumeNumber(volume))?.undo.clone()?;
        let device = entry.snapshot.devices.iter().find(|device| device.volume.0 == volume)?;
        undo.info().is_some().then_some((&entry.snapshot, device, undo))
    }

    fn export(&self, resource: &ResourceSnapshot, device: &DeviceSnapshot) -> Export {
        let backing =
            self.resource(&resource.name).and_then(|entry| entry.volume(device.volume)?.backing.as_ref());
        Export {
            name: export_name(resource, device.volume),
            description: format!("replicated device /dev/drbd{}", device.minor),
            size_bytes: device.size_sectors * SECTOR_BYTES,
            block_bytes: backing.map_or(SECTOR_BYTES as u32, |backing| backing.logical_block_bytes),
            read_only: false,
            trim: true,
            rotational: backing.is_some_and(|backing| backing.rotational),
        }
    }
}

impl Exports for State {
    fn names(&self) -> Vec<String> {
        let snapshots = self.resources.iter().map(|entry| &entry.snapshot);
        let undos = snapshots
            .clone()
            .flat_map(|resource| resource.devices.iter().filter_map(|device| device.undo.as_ref()))
            .map(|undo| undo.export.clone());
        let served = snapshots.flat_map(|resource| {
            let served = resource.devices.iter().filter(|device| obstacle(resource, device).is_none());
            served.map(|device| export_name(resource, device.volume))
        });
        served.chain(undos).collect()
    }

    fn find(&self, name: &str) -> Result<Export, Refusal> {
        let unknown = || Refusal {
            kind: RefusalKind::Unknown,
            message: format!("there is no resource or volume '{name}' here"),
        };
        if name.is_empty() {
            let mut names = self.names();
            names.retain(|name| !name.ends_with(undo::SUFFIX));
            let [only] = &names[..] else {
                let message = "say which export: RESOURCE or RESOURCE/VOLUME".to_owned();
                return Err(Refusal { kind: RefusalKind::Unknown, message });
            };
            return self.find(only);
        }
        if name.ends_with(undo::SUFFIX) {
            let (resource, device, undo) = self.find_undo(name).ok_or_else(unknown)?;
            let block_bytes = self.export(resource, device).block_bytes;
            return undo::export(&undo, name, device.minor, block_bytes).ok_or_else(unknown);
        }
        let (resource, volume) = split_export_name(name).ok_or_else(unknown)?;
        let resource = &self.resource(resource).ok_or_else(unknown)?.snapshot;
        let device = resource.devices.iter().find(|device| device.volume.0 == volume).ok_or_else(unknown)?;
        match obstacle(resource, device) {
            None => Ok(self.export(resource, device)),
            Some(message) => Err(Refusal { kind: RefusalKind::Policy, message }),
        }
    }
}

#[cfg(test)]
mod tests {
    use udrbd_control::status::Suspension;
    use udrbd_units::Minor;

    use super::*;

    #[test]
    fn who_comes_without_data_is_told_unless_requests_wait_for_them() {
        let mut resource = ResourceSnapshot::new("r0".to_owned());
        let mut device = DeviceSnapshot::new(VolumeNumber(0), Minor(0));
        assert!(obstacle(&resource, &device).is_some_and(|text| text.contains("is Secondary here")));
        device.role = Role::Primary;
        device.size_sectors = 8;
        assert!(obstacle(&resource, &device).is_some_and(|text| text.contains("has no data here")));
        for other in [Suspension { user: true, ..Suspension::default() }, Suspension::default()] {
            resource.suspended = other;
            assert!(obstacle(&resource, &device).is_some());
        }
        resource.suspended.no_data = true;
        assert_eq!(obstacle(&resource, &device), None);
        // Nobody has ever told how large it is: there is nothing to offer.
        device.size_sectors = 0;
        assert!(obstacle(&resource, &device).is_some());
    }
}
