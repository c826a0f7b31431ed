//! Implicit corrections of a wanted state.

use std::fmt;

use udrbd_units::{ConnectionState, DiskState, Role};

use super::context::{Context, FencingPolicy, OnNoDataAccessible};
use super::volume::VolumeState;

/// A correction people should know of. Only the last one raised is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Warning {
    /// A disk went away during a verify.
    AbortedOnlineVerify,
    /// A disk went away during a resync.
    AbortedResync,
    /// The connection went away before the handshake told what the own disk is worth.
    ConnectionLostNegotiating,
    /// The connection state implies a better own disk.
    ImplicitlyUpgradedDisk,
    /// The connection state implies a better disk of the peer.
    ImplicitlyUpgradedPeerDisk,
}

impl fmt::Display for Warning {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::AbortedOnlineVerify => "Online-verify aborted.",
            Self::AbortedResync => "Resync aborted.",
            Self::ConnectionLostNegotiating => "Connection lost while negotiating, no data!",
            Self::ImplicitlyUpgradedDisk => "Implicitly upgraded disk",
            Self::ImplicitlyUpgradedPeerDisk => "Implicitly upgraded pdsk",
        })
    }
}

/// What a wanted state becomes (`sanitize_state`, states spec 3.3). The rules run in order; each sees the result of
/// those before it.
pub fn sanitise(old: VolumeState, wanted: VolumeState, context: &Context) -> (VolumeState, Option<Warning>) {
    let mut new = wanted;
    let mut warning = None;
    forget_a_lost_peer(&mut new);
    abort_without_disk(&mut new, &mut warning);
    settle_negotiation(&mut new, context, &mut warning);
    promote_connected_disks(&mut new);
    clamp_disks(&mut new, &mut warning);
    suspend(old, &mut new, context);
    pause_or_continue(&mut new);
    (new, warning)
}

/// S1 and S2: what follows from having no connection or no configuration.
fn forget_a_lost_peer(new: &mut VolumeState) {
    if new.connection < ConnectionState::Connected {
        new.peer_isp = false;
        new.peer = Role::Unknown;
        // Inconsistent and Outdated are facts about the peer's data that outlive the connection.
        if new.peer_disk > DiskState::Unknown || new.peer_disk < DiskState::Inconsistent {
            new.peer_disk = DiskState::Unknown;
        }
    }
    if new.is_unconfigured() {
        new.after_isp = false;
    }
}

/// S3: neither resync nor verify goes on without both disks.
fn abort_without_disk(new: &mut VolumeState, warning: &mut Option<Warning>) {
    let a_disk_is_gone = new.disk <= DiskState::Failed || new.peer_disk <= DiskState::Failed;
    if new.connection > ConnectionState::Connected && a_disk_is_gone {
        let verifying = matches!(new.connection, ConnectionState::VerifyS | ConnectionState::VerifyT);
        *warning = Some(if verifying { Warning::AbortedOnlineVerify } else { Warning::AbortedResync });
        disk_behind_stays_behind(new);
        new.connection = ConnectionState::Connected;
    }
}

/// A resync that was decided and has not begun, or a node that is Ahead of the other: the disk that was to be its target lacks what the other one has. DRBD
/// forgets that with the resync, and S5 would call it UpToDate.
fn disk_behind_stays_behind(new: &mut VolumeState) {
    use ConnectionState as C;
    let behind = |disk: DiskState| matches!(disk, DiskState::Outdated | DiskState::Consistent);
    match new.connection {
        C::StartingSyncS | C::WFBitMapS | C::Ahead if behind(new.peer_disk) => {
            new.peer_disk = DiskState::Inconsistent;
        }
        C::StartingSyncT | C::WFBitMapT | C::WFSyncUUID | C::Behind if behind(new.disk) => {
            new.disk = DiskState::Inconsistent;
        }
        _ => {}
    }
}

/// S4: the connection broke before the handshake about a disk attached while connected. The disk may only be used if
/// it holds the generation applications saw last.
fn settle_negotiation(new: &mut VolumeState, context: &Context, warning: &mut Option<Warning>) {
    if new.connection >= ConnectionState::Connected
        || new.disk != DiskState::Negotiating
        || context.present_disk < DiskState::Negotiating
    {
        return;
    }
    match context.remembered {
        Some(remembered) if context.effective_data == context.metadata_current => {
            new.disk = remembered.disk;
            new.peer_disk = remembered.peer_disk;
        }
        _ => {
            *warning = Some(Warning::ConnectionLostNegotiating);
            new.disk = DiskState::Diskless;
            new.peer_disk = DiskState::Unknown;
        }
    }
}

/// S5: a connection tells Outdated and Consistent from UpToDate.
fn promote_connected_disks(new: &mut VolumeState) {
    if new.connection < ConnectionState::Connected || new.connection >= ConnectionState::Ahead {
        return;
    }
    for disk in [&mut new.disk, &mut new.peer_disk] {
        if matches!(disk, DiskState::Consistent | DiskState::Outdated) {
            *disk = DiskState::UpToDate;
        }
    }
}

/// S6: the disk states a connection state allows.
fn clamp_disks(new: &mut VolumeState, warning: &mut Option<Warning>) {
    let (own, peer) = disk_limits(new.connection);
    if new.disk > own.1 {
        new.disk = own.1;
    }
    if new.disk < own.0 {
        *warning = Some(Warning::ImplicitlyUpgradedDisk);
        new.disk = own.0;
    }
    if new.peer_disk > peer.1 {
        new.peer_disk = peer.1;
    }
    if new.peer_disk < peer.0 {
        *warning = Some(Warning::ImplicitlyUpgradedPeerDisk);
        new.peer_disk = peer.0;
    }
}

type Limits = (DiskState, DiskState);

/// Least and greatest state of the own and the peer's disk.
fn disk_limits(connection: ConnectionState) -> (Limits, Limits) {
    use ConnectionState as C;
    use DiskState::{Consistent, Diskless, Inconsistent, Outdated, Unknown, UpToDate};
    match connection {
        C::StartingSyncT | C::WFBitMapT | C::WFSyncUUID | C::PausedSyncT | C::Behind => {
            ((Inconsistent, Outdated), (UpToDate, UpToDate))
        }
        C::SyncTarget => ((Inconsistent, Inconsistent), (UpToDate, UpToDate)),
        C::StartingSyncS | C::WFBitMapS | C::PausedSyncS | C::Ahead => {
            ((UpToDate, UpToDate), (Inconsistent, Consistent))
        }
        C::SyncSource => ((UpToDate, UpToDate), (Inconsistent, Inconsistent)),
        C::VerifyS | C::VerifyT => ((UpToDate, UpToDate), (UpToDate, UpToDate)),
        C::Connected => ((Diskless, UpToDate), (Diskless, UpToDate)),
        C::StandAlone
        | C::Disconnecting
        | C::Unconnected
        | C::Timeout
        | C::BrokenPipe
        | C::NetworkFailure
        | C::ProtocolError
        | C::TearDown
        | C::WFConnection
        | C::WFReportParams => ((Diskless, UpToDate), (Inconsistent, Unknown)),
    }
}

/// S7 and S8: freeze I/O on entering, and only on entering, a state in which going on could make two versions of the
/// data or lose writes.
fn suspend(old: VolumeState, new: &mut VolumeState, context: &Context) {
    let lost_the_peer = |state: &VolumeState| {
        state.role == Role::Primary
            && state.connection < ConnectionState::Connected
            && state.peer_disk > DiskState::Outdated
    };
    if context.fencing_in_force() == FencingPolicy::ResourceAndStonith
        && lost_the_peer(new)
        && !lost_the_peer(&old)
    {
        new.suspension.fencing = true;
    }
    let has_no_data = |state: &VolumeState| {
        state.role == Role::Primary
            && state.disk < DiskState::UpToDate
            && state.peer_disk < DiskState::UpToDate
    };
    if context.on_no_data == OnNoDataAccessible::SuspendIo && has_no_data(new) && !has_no_data(&old) {
        new.suspension.no_data = true;
    }
}

/// S9 and S10: the pause flags choose between a running and a paused resync.
fn pause_or_continue(new: &mut VolumeState) {
    use ConnectionState::{PausedSyncS, PausedSyncT, SyncSource, SyncTarget};
    new.connection = match (new.any_isp(), new.connection) {
        (true, SyncSource) => PausedSyncS,
        (true, SyncTarget) => PausedSyncT,
        (false, PausedSyncS) => SyncSource,
        (false, PausedSyncT) => SyncTarget,
        (_, connection) => connection,
    };
}

#[cfg(test)]
mod tests;
