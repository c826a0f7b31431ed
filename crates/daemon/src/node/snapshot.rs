//! What a resource looks like: what its engine says, and what only the control thread knows.

use udrbd_control::status::{
    BackingSnapshot, ConnectionSnapshot, DeviceCounters, DeviceSnapshot, Generations, ProgressKind,
    ProgressSnapshot, ResourceSnapshot, ResyncPause, SpeedMark, Suspension, WriteOrdering,
};
use udrbd_engine::interface::{Counters, SyncProgress, VolumeStatus};
use udrbd_metadata::Flags;
use udrbd_units::{ConnectionState, DiskState, GenerationId};

use super::resource::{Resource, VolumeEntry};
use super::undo;

const NANOSECONDS_PER_MILLISECOND: u64 = 1_000_000;
const SECTORS_PER_BLOCK: u64 = udrbd_units::BLOCK_SECTORS;

/// The present state of a resource.
pub(super) fn resource(entry: &Resource) -> ResourceSnapshot {
    let mut snapshot = ResourceSnapshot::new(&entry.name);
    snapshot.options = entry.options.clone();
    snapshot.configuration.clone_from(&entry.configuration);
    let Some(status) = &entry.status else { return snapshot };
    let engine = &status.resource;
    snapshot.suspended = Suspension {
        user: engine.suspended_user,
        no_data: engine.suspended_no_data,
        fencing: engine.suspended_fencing,
    };
    snapshot.write_ordering = match engine.connection.write_ordering {
        'f' => WriteOrdering::Flush,
        'd' => WriteOrdering::Drain,
        _ => WriteOrdering::None,
    };
    let net = entry.net.as_ref().filter(|_| engine.connection.options.is_some());
    let version = engine.connection.agreed_version;
    let connected = engine.connection.state >= ConnectionState::WFReportParams;
    snapshot.connection = ConnectionSnapshot {
        addresses: net.map(|net| (net.local, net.peer)),
        options: net.map(|net| net.options.clone()),
        state: engine.connection.state,
        protocol_version: Some(version).filter(|version| connected && *version > 0),
        congested: status.congested,
        epochs: engine.connection.epochs.max(1),
        application_in_flight_sectors: 0,
        resync_in_flight_sectors: 0,
    };
    snapshot.devices = engine
        .volumes
        .iter()
        .map(|volume| {
            let known = entry.volumes.iter().find(|known| known.number == volume.volume);
            let mut shown = device(volume, known, status.open.contains(&volume.volume));
            let undo = known.and_then(|known| known.undo.as_ref());
            shown.undo = undo.and_then(|undo| undo::snapshot(undo, &entry.name, volume.volume));
            shown
        })
        .collect();
    snapshot.devices.sort_by_key(|device| device.volume);
    snapshot
}

fn device(volume: &VolumeStatus, entry: Option<&VolumeEntry>, open: bool) -> DeviceSnapshot {
    DeviceSnapshot {
        role: volume.role,
        peer_role: volume.peer_role,
        connection: volume.connection,
        disk: volume.disk,
        peer_disk: volume.peer_disk,
        resync_paused: ResyncPause {
            user: volume.paused_by_user,
            peer: volume.paused_by_peer,
            dependency: volume.paused_by_dependency,
        },
        activity_log_suspended: volume.al_suspended,
        upper_blocked: volume.blocked,
        open,
        use_degraded_timeout: volume.use_degraded_timeout,
        size_sectors: volume.size.0,
        backing: backing(volume, entry),
        counters: counters(&volume.counters),
        progress: volume.progress.as_ref().map(|done| progress(done, volume.connection)),
        ..DeviceSnapshot::new(volume.volume, volume.minor)
    }
}

fn backing(volume: &VolumeStatus, entry: Option<&VolumeEntry>) -> Option<BackingSnapshot> {
    let attached = entry?.backing.as_ref().filter(|_| volume.disk > DiskState::Diskless)?;
    Some(BackingSnapshot {
        disk: attached.disk.clone(),
        metadata: attached.metadata.clone(),
        index: attached.index,
        options: attached.options.clone(),
        generations: volume
            .generations
            .map(|set| generations(set, Flags(volume.metadata_flags)))
            .unwrap_or_default(),
    })
}

fn generations([current, bitmap, one, two]: [GenerationId; 4], flags: Flags) -> Generations {
    Generations {
        current,
        bitmap,
        history: [one, two],
        consistent: flags.contains(Flags::CONSISTENT),
        was_up_to_date: flags.contains(Flags::WAS_UP_TO_DATE),
        primary: flags.contains(Flags::PRIMARY_IND),
        connected: flags.contains(Flags::CONNECTED_IND),
        full_sync: flags.contains(Flags::FULL_SYNC),
        peer_outdated: flags.contains(Flags::PEER_OUT_DATED),
        crashed_primary: flags.contains(Flags::CRASHED_PRIMARY),
    }
}

const fn counters(counters: &Counters) -> DeviceCounters {
    DeviceCounters {
        sent_sectors: counters.sent_sectors,
        received_sectors: counters.received_sectors,
        written_sectors: counters.written_sectors,
        read_sectors: counters.read_sectors,
        activity_log_writes: counters.al_writes,
        bitmap_writes: counters.bitmap_writes,
        local_pending: counters.local_pending as u64,
        peer_pending: counters.peer_pending as u64,
        resync_pending: 0,
        unacknowledged: counters.unacknowledged as u64,
        application_pending: counters.application_pending as u64,
        out_of_sync_blocks: counters.out_of_sync_sectors / SECTORS_PER_BLOCK,
    }
}

fn progress(progress: &SyncProgress, state: ConnectionState) -> ProgressSnapshot {
    let verify = matches!(state, ConnectionState::VerifyS | ConnectionState::VerifyT);
    let position_blocks = match progress.position {
        Some(position) => position.0 / SECTORS_PER_BLOCK,
        None => progress.total_blocks.saturating_sub(progress.left_blocks),
    };
    let mark = SpeedMark {
        age_ms: progress.mark_ns / NANOSECONDS_PER_MILLISECOND,
        left_blocks: progress.mark_left_blocks,
    };
    ProgressSnapshot {
        kind: if verify { ProgressKind::Verify } else { ProgressKind::Resync },
        total_blocks: progress.total_blocks,
        failed_blocks: progress.failed_blocks,
        verify_left_blocks: if verify { progress.left_blocks } else { 0 },
        equal_checksum_blocks: 0,
        elapsed_ms: progress.elapsed_ns / NANOSECONDS_PER_MILLISECOND,
        paused_ms: progress.paused_ns / NANOSECONDS_PER_MILLISECOND,
        short_mark: mark,
        mid_mark: mark,
        wanted_kib_per_second: u64::from(progress.want_kib),
        position_blocks,
        verify_start_sector: 0,
        verify_stop_sector: None,
    }
}

/// The part of a snapshot whose change is worth telling: no counters, no progress.
pub(super) fn without_counters(snapshot: &ResourceSnapshot) -> ResourceSnapshot {
    let mut plain = snapshot.clone();
    plain.connection.epochs = 1;
    plain.connection.congested = false;
    for device in &mut plain.devices {
        device.counters = DeviceCounters::default();
        device.progress = None;
        device.upper_blocked = false;
        if let Some(undo) = &mut device.undo {
            undo.kept_blocks = 0;
        }
    }
    plain
}
