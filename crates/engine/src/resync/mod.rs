//! Background work: from the start of a resync to its end (io spec 15; states spec 12).

mod control;
pub(crate) mod exchange;
mod finish;
mod proof;
mod source;
mod start;
mod target;
mod throttle;
mod verify;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use udrbd_units::{ConnectionState, GenerationId, Sector, SectorRange};

use crate::interface::{Duration, SyncProgress, Time};
use control::Controller;
pub(crate) use source::Locks;
pub(crate) use throttle::{Activity, WaitingRead};
pub(crate) use verify::VerifyRange;

/// Progress marks kept, and how far they are apart.
const MARKS: usize = 8;
/// The time between two steps of a target.
const STEP: Duration = Duration::from_millis(100);
const MARK_DISTANCE: Duration = Duration::from_secs(3);

/// A resync that is about to start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Start {
    /// SyncSource or SyncTarget.
    pub(crate) side: ConnectionState,
    /// The state in which it was decided: in no other may it start.
    pub(crate) from: ConnectionState,
    /// The handler that is asked.
    pub(crate) handler: u64,
    /// It has allowed it.
    pub(crate) allowed: bool,
}

/// The background work of a volume.
#[derive(Debug, Default)]
pub(crate) struct Resync {
    pub(crate) start: Option<Start>,
    pub(crate) running: bool,
    /// Source: blocks sent in this run that the target has not acknowledged: first sector and bytes.
    pub(super) sent_blocks: BTreeSet<(Sector, u32)>,
    /// Source: the target says that it has everything.
    pub(crate) peer_is_done: bool,
    /// Blocks at the start, and failed since.
    pub(crate) total: u64,
    pub(crate) failed: u64,
    started: Time,
    paused_at: Option<Time>,
    paused: Duration,
    marks: [(Time, u64); MARKS],
    last_mark: usize,
    /// What it may ask for while applications are busy.
    budget: throttle::Budget,

    /// Target: the block to look at next, requests not answered, and when the next step is due.
    pub(super) next_block: u64,
    pub(super) pending: u32,
    /// What was asked for, by its first sector, with the locks.
    pub(super) asked: BTreeMap<Sector, (SectorRange, Locks)>,
    /// Some of it is of the run before: nothing is asked for until that has been answered.
    pub(super) leftover: bool,
    /// Where bits were cleared in this run, and nothing shows that the peer heard of it before it was Ahead.
    pub(super) told: Vec<SectorRange>,
    /// Where of it the peer has written since without mirroring: that the digests were equal says nothing of it any more.
    pub(super) announced: BTreeSet<Sector>,
    pub(crate) timer: Option<Time>,
    pub(super) controller: Controller,
    pub(super) sectors_arrived: u64,
    /// The superblock that has to be durable before the first request.
    pub(super) after_superblock: Option<u64>,
    pub(crate) by_checksum: bool,
    pub(super) equal_blocks: u64,

    /// Source: reads of the peer that wait for their turn or their extent.
    pub(crate) waiting_reads: VecDeque<WaitingRead>,
    /// Source: until then reads of the peer give way to applications.
    pub(crate) held_until: Option<Time>,
    /// Source: the identifier to tell the peer when the superblock of this version is durable.
    pub(crate) sync_uuid_due: Option<(u64, GenerationId)>,
    /// A P_STATE waits for that.
    pub(crate) state_due: bool,

    /// A verify: an own one, or one of the peer from its first request on.
    pub(crate) verify: Option<verify::Verify>,

    pub(crate) done_posted: bool,
    pub(super) finishing: Option<Finish>,
}

/// The end of a resync, waiting for a sign of life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Finish {
    /// Extents are still in use.
    Extents,
    /// The ping with this number has to be answered.
    Ping(u64),
    /// What the peer sends after it has heard of all blocks has to come: the answer to the read of this name.
    Proof(u64),
    /// It has come.
    Proven,
}

impl Resync {
    /// A resync of `total` blocks begins.
    pub(super) fn begin(&mut self, now: Time, total: u64) {
        self.running = true;
        self.total = total;
        self.failed = 0;
        self.started = now;
        self.paused = Duration::ZERO;
        self.paused_at = None;
        self.marks = [(now, total); MARKS];
        self.last_mark = 0;
        self.budget = throttle::Budget::default();
        self.next_block = 0;
        // What was asked for before this node was Behind is still answered.
        self.leftover = !self.asked.is_empty();
        self.controller = Controller::default();
        self.sectors_arrived = 0;
        self.equal_blocks = 0;
        self.by_checksum = false;
        self.verify = None;
        self.done_posted = false;
        self.peer_is_done = false;
        self.sent_blocks.clear();
        self.finishing = None;
    }

    /// Blocks are out of sync that the search has passed: it starts over with the next step.
    pub(super) fn look_again(&mut self, now: Time) {
        self.next_block = 0;
        self.done_posted = false;
        self.peer_is_done = false;
        self.sent_blocks.clear();
        self.timer = Some(now.after(STEP));
    }

    /// The connection is lost, or the work is over. Returns how many answers were awaited: they are counted no more.
    pub(crate) fn stop(&mut self) -> u32 {
        self.running = false;
        self.total = 0;
        self.failed = 0;
        self.asked.clear();
        self.announced.clear();
        self.told.clear();
        self.leftover = false;
        self.timer = None;
        self.finishing = None;
        self.sync_uuid_due = None;
        self.state_due = false;
        self.after_superblock = None;
        self.verify = None;
        self.done_posted = false;
        self.peer_is_done = false;
        self.sent_blocks.clear();
        std::mem::take(&mut self.pending)
    }

    /// The resync has ended here, in good order or not: no answer to it clears a bit any more.
    pub(crate) fn forget_sent_blocks(&mut self) {
        self.sent_blocks.clear();
    }

    /// One of the nodes is Ahead of the other: the resync stands still until the next one takes its place.
    pub(crate) fn overtake(&mut self) {
        self.timer = None;
        self.finishing = None;
        self.done_posted = false;
        self.peer_is_done = false;
        self.sent_blocks.clear();
    }

    /// Whether no resync is about to begin or to end.
    pub(crate) fn is_uneventful(&self) -> bool {
        self.start.is_none() && self.sync_uuid_due.is_none() && self.finishing.is_none() && !self.peer_is_done
    }

    /// Whether the peer has been sent or asked for something, and has not answered.
    pub(crate) const fn is_owed_answers(&self) -> bool {
        self.pending > 0
    }

    pub(crate) const fn pause(&mut self, now: Time) {
        self.paused_at = Some(now);
        self.timer = None;
    }

    pub(crate) fn resume(&mut self, now: Time) {
        if let Some(at) = self.paused_at.take() {
            self.paused += now.since(at);
        }
        self.timer = Some(now);
    }

    /// Bits have been cleared: `left` are set.
    pub(crate) fn advance(&mut self, now: Time, left: u64) {
        if !self.running {
            return;
        }
        let (time, mark_left) = self.marks[self.last_mark];
        if now.since(time) >= MARK_DISTANCE && mark_left != left && self.paused_at.is_none() {
            self.last_mark = (self.last_mark + 1) % MARKS;
            self.marks[self.last_mark] = (now, left.saturating_sub(self.failed));
        }
    }

    /// Whether something of a resync waits until the activity log lets go of an extent.
    pub(crate) fn waits_for_extents(&self) -> bool {
        !self.waiting_reads.is_empty() || self.timer.is_some()
    }

    /// Source: when reads that wait have to be looked at again, whatever happens.
    pub(crate) fn reads_due(&self) -> Option<Time> {
        let tries = self.waiting_reads.iter().filter_map(|read| read.not_before);
        tries.chain(self.held_until).min()
    }

    /// Blocks that are left to do.
    fn left(&self, set_bits: u64) -> u64 {
        self.verify.as_ref().map_or(set_bits.saturating_sub(self.failed), |verify| verify.left)
    }

    /// What is shown of it.
    pub(crate) fn progress(&self, now: Time, set_bits: u64) -> SyncProgress {
        let (mark_time, mark_left) = self.marks[(self.last_mark + 2) % MARKS];
        let paused = self.paused + self.paused_at.map_or(Duration::ZERO, |at| now.since(at));
        SyncProgress {
            total_blocks: self.total,
            left_blocks: self.left(set_bits),
            failed_blocks: self.failed,
            elapsed_ns: now.since(self.started).saturating_sub(paused).as_nanos() as u64,
            paused_ns: paused.as_nanos() as u64,
            mark_ns: now.since(mark_time).as_nanos() as u64,
            mark_left_blocks: mark_left,
            want_kib: self.controller.want_kib(),
            position: None,
        }
    }

    pub(super) fn elapsed(&self, now: Time) -> (Duration, Duration) {
        let paused = self.paused + self.paused_at.map_or(Duration::ZERO, |at| now.since(at));
        (now.since(self.started), paused)
    }
}
