//! The three checks of a state change (states spec 3.4 to 3.6).

use udrbd_units::{ConnectionState, DiskState, Role};

use super::context::{Context, FencingPolicy};
use super::result::StateChangeResult as Code;
use super::volume::VolumeState;

/// The transition check of the connection part (T1 to T7, `is_valid_conn_transition`): `NothingToDo` where it stays,
/// `Success`, or a refusal. It applies to hard changes too.
pub fn check_connection_transition(old: ConnectionState, new: ConnectionState) -> Code {
    use ConnectionState::{
        Connected, Disconnecting, StandAlone, TearDown, Timeout, Unconnected, WFReportParams,
    };
    if old == new {
        Code::NothingToDo
    } else if old == StandAlone && new == Disconnecting {
        Code::AlreadyStandAlone
    } else if (old == StandAlone && new != Unconnected) || (old < WFReportParams && new >= Connected) {
        Code::NeedConnection
    } else if (Timeout..=TearDown).contains(&old) && new != Unconnected && new != Disconnecting {
        // The first reason for losing a connection is the one that is kept.
        Code::InTransientState
    } else if old == Disconnecting && new != StandAlone {
        Code::InTransientState
    } else {
        Code::Success
    }
}

/// The transition check of a volume (`is_valid_transition`). It applies to hard changes too.
pub fn check_transition(old: VolumeState, new: VolumeState) -> Code {
    if new.disk == DiskState::Failed && old.disk == DiskState::Diskless {
        return Code::IsDiskless;
    }
    check_connection_transition(old.connection, new.connection)
}

/// Whether a state is legal in itself (V1 to V15, `is_valid_state`): `Success` or the first reason why not.
pub fn check_valid(state: VolumeState, context: &Context) -> Code {
    check_primaries(state, context)
        .or_else(|| check_role(state, context))
        .or_else(|| check_activity(state, context))
        .unwrap_or(Code::Success)
}

/// V1 and V2: one Primary, unless two are allowed.
fn check_primaries(state: VolumeState, context: &Context) -> Option<Code> {
    let network = context.network?;
    if network.allow_two_primaries || state.role != Role::Primary {
        None
    } else if state.peer == Role::Primary {
        Some(Code::TwoPrimaries)
    } else if context.highest_peer == Role::Primary {
        Some(Code::OtherVolumePeerPrimary)
    } else {
        None
    }
}

/// V3 to V6: a role needs its data and its users.
fn check_role(state: VolumeState, context: &Context) -> Option<Code> {
    let primary = state.role == Role::Primary;
    let alone = state.connection < ConnectionState::Connected;
    if state.role == Role::Secondary && context.open_count > 0 {
        Some(Code::DeviceInUse)
    } else if primary && alone && state.disk < DiskState::UpToDate {
        Some(Code::NoUpToDateDisk)
    } else if context.fencing_in_force() >= FencingPolicy::ResourceOnly
        && primary
        && alone
        && state.peer_disk >= DiskState::Unknown
    {
        Some(Code::PrimaryWithoutOutdatedPeer)
    } else if primary && state.disk <= DiskState::Inconsistent && state.peer_disk <= DiskState::Inconsistent {
        Some(Code::NoUpToDateDisk)
    } else {
        None
    }
}

/// V7 to V15: what the peers do together needs disks and options.
fn check_activity(state: VolumeState, context: &Context) -> Option<Code> {
    use ConnectionState::{
        Connected, PausedSyncS, StartingSyncS, StartingSyncT, SyncSource, VerifyS, VerifyT, WFBitMapS,
    };
    let active = state.connection > Connected;
    let verifying = matches!(state.connection, VerifyS | VerifyT);
    let no_side_up_to_date = state.disk < DiskState::UpToDate && state.peer_disk < DiskState::UpToDate;
    if active && state.disk < DiskState::Inconsistent {
        Some(Code::NoLocalDisk)
    } else if active && state.peer_disk < DiskState::Inconsistent {
        Some(Code::NoRemoteDisk)
    } else if active && no_side_up_to_date {
        Some(Code::NoUpToDateDisk)
    } else if matches!(state.connection, Connected | WFBitMapS | SyncSource | PausedSyncS)
        && state.disk == DiskState::Outdated
    {
        Some(Code::ConnectedOutdates)
    } else if verifying && context.network.is_some_and(|network| !network.has_verify_algorithm) {
        Some(Code::NoVerifyAlg)
    } else if verifying && context.agreed_protocol < 88 {
        Some(Code::NotSupported)
    } else if state.role == Role::Primary && no_side_up_to_date {
        Some(Code::NoUpToDateDisk)
    } else if matches!(state.connection, StartingSyncS | StartingSyncT)
        && state.peer_disk == DiskState::Unknown
    {
        Some(Code::NeedConnection)
    } else if state.connection >= Connected && state.peer_disk == DiskState::Unknown {
        Some(Code::ConnectedOutdates)
    } else {
        None
    }
}

/// Whether an operator or the peer may ask for a change (X1 to X13, `is_valid_soft_transition`): `Success` or the
/// *last* reason why not, as DRBD tests every condition and later ones overwrite.
pub fn check_soft_transition(old: VolumeState, new: VolumeState, context: &Context) -> Code {
    use ConnectionState as C;
    let starting = matches!(new.connection, C::StartingSyncS | C::StartingSyncT);
    let verifying = matches!(new.connection, C::VerifyS | C::VerifyT);
    let disconnecting = new.connection == C::Disconnecting;
    let was_active = old.connection > C::Connected;
    let was_alone = old.connection < C::Connected;
    let rules = [
        (starting && was_active, Code::ResyncRunning),
        (disconnecting && old.connection == C::StandAlone, Code::AlreadyStandAlone),
        (new.disk > DiskState::Attaching && old.disk == DiskState::Diskless, Code::IsDiskless),
        (new.connection == C::WFConnection && old.connection < C::Unconnected, Code::NoNetConfig),
        (outdates_too_low_a_disk(old, new), Code::LowerThanOutdated),
        (disconnecting && old.connection == C::Unconnected, Code::InTransientState),
        (context.state_sent && !is_handshake_step(old, new), Code::InTransientState),
        (promotes_into_a_starting_resync(old, new), Code::InTransientState),
        (
            (starting || verifying) && context.resync_due && new.connection != old.connection,
            Code::InTransientState,
        ),
        // Who becomes its source goes by the roles.
        (context.resync_due && promotes(old, new), Code::InTransientState),
        (verifying && was_alone, Code::NeedConnection),
        (verifying && new.connection != old.connection && was_active, Code::ResyncRunning),
        (starting && was_alone, Code::NeedConnection),
        (
            matches!(new.connection, C::SyncTarget | C::SyncSource) && old.connection < C::WFReportParams,
            Code::NeedConnection,
        ),
        (
            disconnecting
                && new.peer_disk == DiskState::Outdated
                && was_alone
                && old.peer_disk > DiskState::Outdated,
            Code::OutdateWithoutConnection,
        ),
    ];
    rules.iter().rev().find(|(applies, _)| *applies).map_or(Code::Success, |(_, code)| *code)
}

/// Either node.
fn promotes(old: VolumeState, new: VolumeState) -> bool {
    let becomes = |old: Role, new: Role| new == Role::Primary && old != Role::Primary;
    becomes(old.role, new.role) || becomes(old.peer, new.peer)
}

fn outdates_too_low_a_disk(old: VolumeState, new: VolumeState) -> bool {
    new.disk == DiskState::Outdated && old.disk < DiskState::Outdated && old.disk != DiskState::Attaching
}

/// X7: the only changes allowed while the handshake is under way.
fn is_handshake_step(old: VolumeState, new: VolumeState) -> bool {
    use ConnectionState::{Connected, WFConnection, WFReportParams};
    (old.connection == WFConnection && new.connection == WFReportParams)
        || (old.connection == WFReportParams && new.connection >= Connected)
}

/// X8: a promotion in the window in which the peer's forced promotion starts a resync to here.
fn promotes_into_a_starting_resync(old: VolumeState, new: VolumeState) -> bool {
    old.role != Role::Primary
        && new.role == Role::Primary
        && new.peer_disk == DiskState::UpToDate
        && !matches!(new.disk, DiskState::UpToDate | DiskState::Diskless)
        && (new.connection <= ConnectionState::WFSyncUUID || new.connection != old.connection)
}

#[cfg(test)]
mod tests;
