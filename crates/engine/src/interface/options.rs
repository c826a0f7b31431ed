//! The options of a resource, its connection and its volumes, as far as the engine decides by them.
//!
//! Names, units, ranges and defaults are DRBD's (config spec); values arrive checked.

use super::Duration;
pub use crate::state::{FencingPolicy as Fencing, OnNoDataAccessible as OnNoData};

/// When a write is complete (`protocol`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Local disk, and handed to TCP.
    A,
    /// Local disk, and received by the peer.
    B,
    /// Both disks.
    C,
}

/// What to do about a failing backing device (`on-io-error`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnIoError {
    /// Report the error upwards where no copy helps.
    PassOn,
    /// Run the handler, then detach.
    CallLocalIoError,
    /// Detach.
    Detach,
}

/// `on-congestion`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnCongestion {
    /// Writers wait.
    Block,
    /// Stop replicating, keep track.
    PullAhead,
    /// Drop the connection.
    Disconnect,
}

/// `read-balancing`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadBalancing {
    /// Local where possible.
    PreferLocal,
    /// The peer where possible.
    PreferRemote,
    /// In turn.
    RoundRobin,
    /// Where fewer requests wait.
    LeastPending,
    /// The peer while the local disk is congested.
    WhenCongestedRemote,
    /// By stripes of 2^n bytes, n from 15 (32K) to 20 (1M).
    Striping(u8),
}

/// The values of `after-sb-0pri`, `after-sb-1pri` and `after-sb-2pri`, with their numbers on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum AfterSplitBrain {
    /// No automatic recovery.
    Disconnect = 0,
    /// Discard the changes of the node promoted later.
    DiscardYoungerPrimary = 1,
    /// Discard the changes of the node promoted first.
    DiscardOlderPrimary = 2,
    /// Discard the node without changes.
    DiscardZeroChanges = 3,
    /// Discard the node with fewer changes.
    DiscardLeastChanges = 4,
    /// Discard this node's changes.
    DiscardLocal = 5,
    /// Discard the peer's changes.
    DiscardRemote = 6,
    /// As 0pri, if that discards the Secondary.
    Consensus = 7,
    /// Discard the Secondary's changes.
    DiscardSecondary = 8,
    /// As 0pri; run `pri-lost-after-sb` where that discards a Primary.
    CallPriLostAfterSb = 9,
    /// As 0pri, whoever that discards.
    ViolentlyAsZeroPrimaries = 10,
}

/// `rr-conflict`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RrConflict {
    /// Refuse.
    Disconnect,
    /// Run `pri-lost`, then refuse.
    CallPriLost,
    /// Do it.
    Violently,
}

/// The `disk` section.
#[derive(Clone, Debug, PartialEq)]
pub struct DiskOptions {
    /// `size` in sectors, 0: as large as possible.
    pub size_sectors: u64,
    /// `on-io-error`.
    pub on_io_error: OnIoError,
    /// `fencing`.
    pub fencing: Fencing,
    /// `disk-flushes`.
    pub disk_flushes: bool,
    /// `disk-drain`.
    pub disk_drain: bool,
    /// `md-flushes`.
    pub metadata_flushes: bool,
    /// `resync-rate`, KiB/s.
    pub resync_rate_kib: u32,
    /// `resync-after`: a minor.
    pub resync_after: Option<u32>,
    /// `al-extents`.
    pub al_extents: u32,
    /// `al-updates`.
    pub al_updates: bool,
    /// `c-plan-ahead`, 0.1 s; 0: fixed rate.
    pub c_plan_ahead: u32,
    /// `c-delay-target`, 0.1 s.
    pub c_delay_target: u32,
    /// `c-fill-target`, sectors.
    pub c_fill_target_sectors: u32,
    /// `c-max-rate`, KiB/s.
    pub c_max_rate_kib: u32,
    /// `c-min-rate`, KiB/s.
    pub c_min_rate_kib: u32,
    /// `disk-timeout`; zero: none.
    pub disk_timeout: Duration,
    /// `read-balancing`.
    pub read_balancing: ReadBalancing,
    /// `rs-discard-granularity`, bytes; 0: off.
    pub rs_discard_granularity_bytes: u32,
    /// `discard-zeroes-if-aligned`.
    pub discard_zeroes_if_aligned: bool,
    /// `resync-undo` is set: what a resync after a split brain overwrites is kept.
    pub resync_undo: bool,
}

impl Default for DiskOptions {
    fn default() -> Self {
        Self {
            size_sectors: 0,
            on_io_error: OnIoError::Detach,
            fencing: Fencing::DontCare,
            disk_flushes: true,
            disk_drain: true,
            metadata_flushes: true,
            resync_rate_kib: 250,
            resync_after: None,
            al_extents: 1237,
            al_updates: true,
            c_plan_ahead: 20,
            c_delay_target: 10,
            c_fill_target_sectors: 100,
            c_max_rate_kib: 102_400,
            c_min_rate_kib: 250,
            disk_timeout: Duration::ZERO,
            read_balancing: ReadBalancing::PreferLocal,
            rs_discard_granularity_bytes: 0,
            discard_zeroes_if_aligned: true,
            resync_undo: false,
        }
    }
}

/// The `net` section.
#[derive(Clone, Debug, PartialEq)]
pub struct NetOptions {
    /// `protocol`.
    pub protocol: Protocol,
    /// `timeout`.
    pub timeout: Duration,
    /// `ping-int`.
    pub ping_interval: Duration,
    /// `ping-timeout`.
    pub ping_timeout: Duration,
    /// `connect-int`.
    pub connect_interval: Duration,
    /// `socket-check-timeout`; zero: as `ping-timeout`.
    pub socket_check_timeout: Duration,
    /// `ko-count`; 0: never give up.
    pub ko_count: u32,
    /// `max-buffers`, pages of 4 KiB.
    pub max_buffers: u32,
    /// `max-epoch-size`, writes.
    pub max_epoch_size: u32,
    /// `cram-hmac-alg`; empty: none.
    pub cram_hmac_alg: String,
    /// `shared-secret`.
    pub shared_secret: String,
    /// `allow-two-primaries`.
    pub allow_two_primaries: bool,
    /// `after-sb-0pri`.
    pub after_sb_0pri: AfterSplitBrain,
    /// `after-sb-1pri`.
    pub after_sb_1pri: AfterSplitBrain,
    /// `after-sb-2pri`.
    pub after_sb_2pri: AfterSplitBrain,
    /// `always-asbp`.
    pub always_asbp: bool,
    /// `rr-conflict`.
    pub rr_conflict: RrConflict,
    /// `data-integrity-alg`; empty: none.
    pub data_integrity_alg: String,
    /// `verify-alg`; empty: none.
    pub verify_alg: String,
    /// `csums-alg`; empty: none.
    pub csums_alg: String,
    /// `csums-after-crash-only`.
    pub csums_after_crash_only: bool,
    /// `use-rle`.
    pub use_rle: bool,
    /// `on-congestion`.
    pub on_congestion: OnCongestion,
    /// `congestion-fill`, sectors.
    pub congestion_fill_sectors: u32,
    /// `congestion-extents`.
    pub congestion_extents: u32,
    /// `--discard-my-data` of this connect.
    pub discard_my_data: bool,
    /// `--tentative` of this connect.
    pub tentative: bool,
}

impl Default for NetOptions {
    fn default() -> Self {
        Self {
            protocol: Protocol::C,
            timeout: Duration::from_secs(6),
            ping_interval: Duration::from_secs(10),
            ping_timeout: Duration::from_millis(500),
            connect_interval: Duration::from_secs(10),
            socket_check_timeout: Duration::ZERO,
            ko_count: 7,
            max_buffers: 2048,
            max_epoch_size: 2048,
            cram_hmac_alg: String::new(),
            shared_secret: String::new(),
            allow_two_primaries: false,
            after_sb_0pri: AfterSplitBrain::Disconnect,
            after_sb_1pri: AfterSplitBrain::Disconnect,
            after_sb_2pri: AfterSplitBrain::Disconnect,
            always_asbp: false,
            rr_conflict: RrConflict::Disconnect,
            data_integrity_alg: String::new(),
            verify_alg: String::new(),
            csums_alg: String::new(),
            csums_after_crash_only: false,
            use_rle: true,
            on_congestion: OnCongestion::Block,
            congestion_fill_sectors: 0,
            congestion_extents: 1237,
            discard_my_data: false,
            tentative: false,
        }
    }
}

/// The `options` section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResourceOptions {
    /// `on-no-data-accessible`.
    pub on_no_data: OnNoData,
}

impl Default for ResourceOptions {
    fn default() -> Self {
        Self { on_no_data: OnNoData::IoError }
    }
}
