//! Deliberate bugs, each a cut corner of the kind that loses data without anybody noticing. The simulator switches them
//! on one at a time to prove that it would find them; they exist only with the feature `deliberate-bugs`.
#![cfg_attr(
    not(feature = "deliberate-bugs"),
    allow(
        unreachable_pub,
        dead_code,
        reason = "without the feature there is only the question, and its answer is no"
    )
)]

use crate::Engine;

macro_rules! bugs {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)+) => {
        /// A deliberate bug.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Bug {
            $($(#[$doc])* $name,)+
        }

        impl Bug {
            /// Every bug.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// Its name on the command line.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)+
                }
            }
        }
    };
}

bugs! {
    /// Writes start without the activity log transaction that covers them (io spec I1).
    SkipActivityLog = "skip-activity-log",
    /// A disk that was in use is attached without applying its activity log (io spec I1).
    SkipReplay = "skip-replay",
    /// An extent is released when the write is acknowledged, not when the barrier is (io spec I2).
    ReleaseAtWriteAck = "release-at-write-ack",
    /// The bitmap page of an extent is not written before the extent leaves the activity log (io spec I3).
    PageAfterLog = "page-after-log",
    /// An extent leaves the activity log before what was written to it is on stable storage (io spec I3).
    EvictWithoutFlush = "evict-without-flush",
    /// A write completes as soon as the own disk has it (io spec I5).
    CompleteBeforePeer = "complete-before-peer",
    /// A mirrored write is acknowledged before the disk has it (io spec I5).
    AckBeforeDisk = "ack-before-disk",
    /// The epoch stays open when a member completes (io spec I7).
    CompleteInOpenEpoch = "complete-in-open-epoch",
    /// A barrier does not make the next epoch wait for this one (io spec I6).
    DropBarrier = "drop-barrier",
    /// A barrier is acknowledged before the disk is flushed (io spec 23.1).
    BarrierAckBeforeFlush = "barrier-ack-before-flush",
    /// A flush of a client completes without flushing the disk (io spec 8.4).
    ForgetFlush = "forget-flush",
    /// A target's disk that is not complete serves reads of blocks that are out of sync (io spec I8).
    StaleRead = "stale-read",
    /// The superblock still says Consistent while a resync overwrites the disk (io spec I9).
    ConsistentWhileResync = "consistent-while-resync",
    /// The superblock is written without flush and force (io spec 14).
    SuperblockWithoutFlush = "superblock-without-flush",
    /// A mirrored write does not wait for a resync write to the same blocks (io spec I10).
    NoOverlapWait = "no-overlap-wait",
    /// A source reads blocks for a resync while writes to them are under way (io spec I10).
    NoExtentLock = "no-extent-lock",
    /// A target clears the bits of a block when its data arrive (io spec I11).
    ClearOnArrival = "clear-on-arrival",
    /// A page of the bitmap gets to disk before the data whose bits were cleared in it (io spec I11).
    PageBeforeData = "page-before-data",
    /// A write of a part of a block clears its bit (io spec I11).
    ClearPartialBlock = "clear-partial-block",
    /// Writes in flight when the connection is lost leave no bits (io spec I12).
    ForgetInFlight = "forget-in-flight",
    /// Writes acknowledged, but not confirmed by a barrier, leave no bits when the connection is lost (io spec I12).
    ForgetUnconfirmed = "forget-unconfirmed",
    /// No new generation begins when the peer's data are lost (io spec I13).
    NoNewGeneration = "no-new-generation",
    /// The bitmap is sent while writes are in flight that may still set bits (io spec I19).
    BitmapInFlight = "bitmap-in-flight",
    /// Writes during the exchange of bitmaps are not told to the target (io spec I19).
    NoOutOfSyncNotice = "no-out-of-sync-notice",
    /// Writes of a node that is Ahead are not told to the one that is Behind (io spec 17).
    SilentAhead = "silent-ahead",
    /// A received bitmap is not merged into the own one (io spec I19).
    ForgetPeersBits = "forget-peers-bits",
    /// A handler that did not fence the peer counts as one that did (states spec 15.2).
    FailedFenceCounts = "failed-fence-counts",
    /// A node is promoted on data that are not up to date (states spec 14.1).
    StalePromote = "stale-promote",
    /// A new generation has an identifier that the peer would choose as well (states spec 8.2).
    PredictableGeneration = "predictable-generation",
    /// The identifier that names the data of before a new generation is not kept (states spec 8.2).
    ForgetOldGeneration = "forget-old-generation",
    /// A resync goes from the worse data to the better (states spec 9.2).
    WrongDirection = "wrong-direction",
    /// Concurrent writes of two Primaries are made in the order in which they come (io spec 9.3).
    IgnoreConflicts = "ignore-conflicts",
    /// An online verify does not keep writes away from what it compares (io spec 16).
    VerifyWithoutLock = "verify-without-lock",
    /// An online verify takes different blocks for equal ones (io spec 16).
    VerifyFindsNothing = "verify-finds-nothing",
    /// Blocks that an online verify finds different are told of, but not marked (io spec 16 item 5).
    VerifyMarksNothing = "verify-marks-nothing",
    /// A node that stores for a diskless Primary keeps no activity log (io spec I21).
    NoBookForDiskless = "no-book-for-diskless",
    /// A new generation begins for the first volume alone when the peer's data are lost (io spec I13).
    GenerationOfFirstVolume = "generation-of-first-volume",
    /// The epoch, which all volumes share, is closed by the first one's writes alone (io spec I7).
    EpochOfFirstVolume = "epoch-of-first-volume",
    /// A barrier makes the next epoch wait for the writes of its own volume alone (io spec I6).
    DrainByVolume = "drain-by-volume",
    /// Before a barrier is acknowledged, the first volume's disk alone is flushed (io spec 23.1).
    FlushOfFirstVolume = "flush-of-first-volume",
}

/// There is no bug of this name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoSuchBug;

impl std::str::FromStr for Bug {
    type Err = NoSuchBug;

    fn from_str(text: &str) -> Result<Self, NoSuchBug> {
        Self::ALL.iter().copied().find(|bug| bug.name() == text).ok_or(NoSuchBug)
    }
}

impl Engine {
    /// Switches a deliberate bug on.
    #[cfg(feature = "deliberate-bugs")]
    pub const fn set_bug(&mut self, bug: Bug) {
        self.bug = Some(bug);
    }

    /// Whether a bug is switched on.
    #[cfg(feature = "deliberate-bugs")]
    pub(crate) fn bug(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }

    /// Whether a bug is switched on: there are none.
    #[cfg(not(feature = "deliberate-bugs"))]
    #[expect(clippy::unused_self, reason = "the same question with and without the feature")]
    pub(crate) const fn bug(&self, _: Bug) -> bool {
        false
    }
}
