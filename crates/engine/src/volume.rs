//! One volume: its state, its disk, what is in flight on it.

use std::collections::VecDeque;

use udrbd_metadata::{Layout, Superblock};
use udrbd_units::{GenerationId, Minor, Sector, SectorRange, VolumeNumber};

use crate::activity_log::ActivityLog;
use crate::bitmap::Bitmap;
use crate::connection::Pondering;
use crate::disk::attach::Attaching;
use crate::disk::bitmap_io::BitmapIo;
use crate::disk::resize::Resizing;
use crate::generation::{GenerationSet, SplitBrain, TargetOfResync};
use crate::interface::{ClientRequest, Counters, DiskOptions, DiskProperties, Time, WaitingClients};
use crate::intervals::IntervalSet;
use crate::resync::exchange::Exchange;
use crate::resync::{Activity, Resync, VerifyRange};
use crate::resync_extents::ResyncExtents;
use crate::slab::Key;
use crate::state::{RememberedDisks, VolumeState};
use crate::undo::Undo;

/// The peer's generation identifiers as it last told them, and corrected since (states spec 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PeerGenerations {
    pub(crate) current: GenerationId,
    pub(crate) bitmap: GenerationId,
    pub(crate) history: [GenerationId; 2],
    pub(crate) set_bits: u64,
    pub(crate) flags: u64,
}

/// Bits of the flags word of P_UUIDS.
pub(crate) mod uuid_flag {
    pub(crate) const DISCARD_MY_DATA: u64 = 1;
    pub(crate) const CRASHED_PRIMARY: u64 = 2;
    pub(crate) const INCONSISTENT: u64 = 4;
    pub(crate) const SKIP_INITIAL_SYNC: u64 = 8;
}

/// The flags of states spec 1.2 that are not derived.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct VolumeFlags {
    pub(crate) crashed_primary: bool,
    pub(crate) consider_resync: bool,
    pub(crate) new_current_due: bool,
    /// This node is the source of a resync between disks that were equal.
    pub(crate) source_of_equals: bool,
    /// What this node knows of the target of the last resync from here, if that has not ended.
    pub(crate) target: TargetOfResync,
    pub(crate) discard_my_data: bool,
    pub(crate) use_degraded_wfc_timeout: bool,
    pub(crate) resync_after_negotiating: bool,
    pub(crate) resize_pending: bool,
    pub(crate) was_io_error: bool,
    pub(crate) was_read_error: bool,
    pub(crate) force_detach: bool,
}

/// An attached backing device with all its metadata in memory.
pub(crate) struct Disk {
    pub(crate) properties: DiskProperties,
    pub(crate) options: DiskOptions,
    pub(crate) layout: Layout,
    pub(crate) superblock: Superblock,
    /// Counts changes of `superblock`; what is below `superblock_durable` is on disk.
    pub(crate) superblock_version: u64,
    pub(crate) superblock_durable: u64,
    /// The version being written.
    pub(crate) superblock_writing: Option<u64>,
    /// The superblock on disk says, whatever becomes of the one being written, that the activity log counts after a crash.
    pub(crate) indicated: bool,
    /// The same of the one being written.
    pub(crate) indicating: bool,
    pub(crate) bitmap: Bitmap,
    pub(crate) log: ActivityLog,
    pub(crate) extents: ResyncExtents,
    pub(crate) bitmap_io: BitmapIo,
    /// Writes that wait for the activity log, in their order.
    pub(crate) submit: VecDeque<Key>,
    /// Writes that wait for the transaction being written.
    pub(crate) in_transaction: Vec<Key>,
    pub(crate) transaction: TransactionStep,
    /// Where in the ring it goes.
    pub(crate) transaction_block: u32,
    /// Operations at the devices.
    pub(crate) operations: u32,
    /// Nobody waits for those operations any more (`disk-timeout`, `detach --force`).
    pub(crate) abandoned: bool,
    /// The metadata have moved, and there is no activity log yet at the new place.
    pub(crate) log_is_absent: bool,
    /// The pass `detach` waits for has been started.
    pub(crate) detach_pages: Option<u64>,
    /// What is overwritten is kept first.
    pub(crate) undo: Option<Box<Undo>>,
}

/// Where the activity log transaction stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TransactionStep {
    Idle,
    /// Pages of bitmap of the extents that leave are being written: so many are outstanding.
    Pages {
        outstanding: u32,
        failed: bool,
    },
    /// The block itself is being written.
    Block,
}

/// A volume.
pub(crate) struct Volume {
    pub(crate) number: VolumeNumber,
    pub(crate) minor: Minor,
    pub(crate) removed: bool,
    /// It is about to be removed: the peer is asked, and whatever that says it will be.
    pub(crate) leaves: bool,
    pub(crate) state: VolumeState,
    pub(crate) size: Sector,
    pub(crate) disk: Option<Disk>,
    pub(crate) attaching: Option<Box<Attaching>>,
    pub(crate) resizing: Option<Box<Resizing>>,
    /// When to look whether the disk keeps its `disk-timeout`.
    pub(crate) disk_timer: Option<Time>,
    /// When an operation of the devices ended last.
    pub(crate) io_ended_at: Time,
    pub(crate) remembered: Option<RememberedDisks>,
    pub(crate) exposed: GenerationId,
    pub(crate) peer_generations: Option<PeerGenerations>,
    /// A decision about the data that handlers are told of, before it counts.
    pub(crate) pondering: Option<Box<Pondering>>,
    /// The last split brain a handshake found, for people.
    pub(crate) split_brain: Option<Box<SplitBrain>>,
    /// What the last comparison found out about the own identifiers; taken over when this node becomes SyncSource.
    pub(crate) correction: Option<GenerationSet>,
    /// Set bits as told in the last P_UUIDS sent (policies decide by it).
    pub(crate) told_bits: u64,
    /// The peer's d_size; 0 while not known.
    pub(crate) peer_size: Sector,
    /// What the own disk could hold, as the peer was told last; 0 without a disk.
    pub(crate) told_size: Sector,
    pub(crate) peer_max_request_bytes: u32,
    pub(crate) flags: VolumeFlags,

    /// Requests of clients that are not admitted yet.
    pub(crate) waiting: VecDeque<ClientRequest>,
    /// Admitted writes that wait for an overlapping one.
    pub(crate) overlapping: VecDeque<Key>,
    /// Own replicated writes (and, with two Primaries, the peer's).
    pub(crate) writes: IntervalSet<Key>,
    /// Writes of the peer submitted here and not complete.
    pub(crate) peer_ranges: IntervalSet<Key>,
    /// Resync writes submitted here.
    pub(crate) sync_writes: IntervalSet<Key>,
    /// The sectors of these.
    pub(crate) sync_write_sectors: u64,
    /// Writes of the peer submitted here and not complete.
    pub(crate) peer_writes: u32,
    /// Requests admitted and not completed.
    pub(crate) admitted: u32,
    /// Sectors of own writes that TCP has taken and the peer is not done with.
    pub(crate) in_flight_sectors: u64,
    /// That has become too much: what `on-congestion` says is about to be done.
    pub(crate) congested: bool,
    /// When a node that is Ahead lets its peer catch up.
    pub(crate) return_at: Option<Time>,
    /// Short internal suspensions of admission.
    pub(crate) quiesce: u32,
    /// A new current identifier is not durable yet: nothing may complete unreplicated (io spec I13). The version of
    /// the superblock that makes it so.
    pub(crate) current_due: Option<u64>,

    pub(crate) packet_sequence: u32,
    pub(crate) peer_sequence: u32,
    pub(crate) round_robin: bool,
    pub(crate) counters: Counters,
    pub(crate) resync: Resync,
    /// What applications do with the disk, to which background work gives way.
    pub(crate) activity: Activity,
    /// Of the next verify this node asks for.
    pub(crate) verify_range: VerifyRange,
    /// This node has asked for a verify in this connection.
    pub(crate) was_verifying: bool,
    pub(crate) exchange: Exchange,
    /// Answer of the peer to a state change request of this volume.
    pub(crate) change_reply: Option<i32>,
    /// Answers on their way to requests that were decided without them: they must not pass for answers to later ones.
    pub(crate) stale_replies: u32,
    /// A command holds the volume's state mutex.
    pub(crate) state_locked: bool,
    /// The peer's parameters have been seen in this connection.
    pub(crate) peer_seen: bool,
    /// Somebody has the device open: no demotion.
    pub(crate) held_open: bool,
    /// Clients of a block device whose server has died.
    pub(crate) clients: Option<WaitingClients>,
    /// The range of the peer's next write for which activity log references have been taken (diskless Primary).
    pub(crate) peer_extents: Option<SectorRange>,
}

impl Volume {
    /// Whether the peer may ask for blocks of a resync now. (While Ahead it hears that it does not get them.)
    pub(crate) const fn serves_resync(&self) -> bool {
        use udrbd_units::ConnectionState::{Ahead, PausedSyncS, SyncSource};
        matches!(self.state.connection, SyncSource | PausedSyncS | Ahead)
    }

    pub(crate) fn new(number: VolumeNumber, minor: Minor, state: VolumeState) -> Self {
        Self {
            number,
            minor,
            removed: false,
            leaves: false,
            state,
            size: Sector(0),
            disk: None,
            attaching: None,
            resizing: None,
            disk_timer: None,
            io_ended_at: Time(0),
            remembered: None,
            exposed: GenerationId::NONE,
            peer_generations: None,
            pondering: None,
            split_brain: None,
            correction: None,
            told_bits: 0,
            peer_size: Sector(0),
            told_size: Sector(0),
            peer_max_request_bytes: 4096,
            flags: VolumeFlags::default(),
            waiting: VecDeque::new(),
            overlapping: VecDeque::new(),
            writes: IntervalSet::new(),
            peer_ranges: IntervalSet::new(),
            sync_writes: IntervalSet::new(),
            sync_write_sectors: 0,
            peer_writes: 0,
            admitted: 0,
            in_flight_sectors: 0,
            congested: false,
            return_at: None,
            quiesce: 0,
            current_due: None,
            packet_sequence: 0,
            peer_sequence: 0,
            round_robin: false,
            counters: Counters::default(),
            resync: Resync::default(),
            activity: Activity::default(),
            verify_range: VerifyRange::default(),
            was_verifying: false,
            exchange: Exchange::default(),
            change_reply: None,
            stale_replies: 0,
            state_locked: false,
            peer_seen: false,
            held_open: false,
            clients: None,
            peer_extents: None,
        }
    }

    /// Whether there is a usable local disk ("get_ldev").
    pub(crate) fn has_disk(&self) -> bool {
        self.disk.is_some() && self.state.disk >= udrbd_units::DiskState::Inconsistent
    }

    /// The disk, where it is usable.
    pub(crate) fn usable_disk(&mut self) -> Option<&mut Disk> {
        if self.state.disk >= udrbd_units::DiskState::Inconsistent { self.disk.as_mut() } else { None }
    }

    /// Marks the blocks a range touches out of sync. Returns how many bits were newly set.
    pub(crate) fn set_out_of_sync(&mut self, range: SectorRange) -> u64 {
        match (range.touched_blocks(), &mut self.disk) {
            (Some(blocks), Some(disk)) => {
                let set = disk.bitmap.set_range(blocks);
                self.counters.out_of_sync_sectors = disk.bitmap.set_count() * 8;
                set
            }
            _ => 0,
        }
    }

    /// Ends the background work, in good order or not: nobody waits for answers to it any more.
    pub(crate) fn stop_resync(&mut self) {
        self.counters.peer_pending -= self.resync.stop();
    }

    /// The number of set bits.
    pub(crate) fn set_bits(&self) -> u64 {
        self.disk.as_ref().map_or(0, |disk| disk.bitmap.set_count())
    }

    /// Whether writes that came from the peer are at the disk. On a connection that is gone nothing keeps own writes from
    /// being overtaken by them.
    pub(crate) fn has_peer_writes(&self) -> bool {
        self.peer_writes > 0 || !self.sync_writes.is_empty()
    }

    /// The next sequence number for a packet of this volume (io spec 9.1).
    pub(crate) const fn next_sequence(&mut self) -> u32 {
        self.packet_sequence = self.packet_sequence.wrapping_add(1);
        self.packet_sequence
    }
}
