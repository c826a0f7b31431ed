//! The three sets of options.

use serde::{Deserialize, Serialize};

use super::number::Scale::{self, Kibi, Ones, Sectors};
use super::values::{
    AfterSplitBrain0Primaries, AfterSplitBrain1Primary, AfterSplitBrain2Primaries, Fencing, OnCongestion,
    OnIoError, OnNoDataAccessible, OptionValue, Protocol, ReadBalancing, RrConflict, Secret,
};
use super::{OptionEntry, OptionError, OptionKind, OptionSet, OptionSpec};

/// The longest name of an algorithm, and the longest shared secret.
const ALGORITHM_LENGTH_MAX: usize = 63;
const CPU_MASK_LENGTH_MAX: usize = 31;
/// The greatest disk size in sectors (1 PiB).
/// The one option of a disk that DRBD does not have.
pub const RESYNC_UNDO: &str = "resync-undo";
const PATH_LENGTH_MAX: usize = 4095;
const DISK_SIZE_SECTORS_MAX: i64 = 2_199_023_255_552;
const MINOR_MAX: i64 = (1 << 20) - 1;

const TENTHS: &str = "1/10 seconds";
const SECONDS: &str = "seconds";
const BYTES: &str = "bytes";
const RATE: &str = "bytes/second";

const fn spec(name: &'static str, kind: OptionKind) -> OptionSpec {
    OptionSpec { name, kind, unit: None, changeable: true }
}

const fn number(name: &'static str, scale: Scale, min: i64, max: i64) -> OptionSpec {
    spec(name, OptionKind::Number { scale, min, max, clamped: false })
}

const fn flag(name: &'static str) -> OptionSpec {
    spec(name, OptionKind::Flag)
}

const fn text(name: &'static str, length_max: usize) -> OptionSpec {
    spec(name, OptionKind::Text { length_max })
}

impl OptionSpec {
    const fn unit(mut self, unit: &'static str) -> Self {
        self.unit = Some(unit);
        self
    }

    const fn invariant(mut self) -> Self {
        self.changeable = false;
        self
    }

    const fn clamped(mut self) -> Self {
        if let OptionKind::Number { scale, min, max, .. } = self.kind {
            self.kind = OptionKind::Number { scale, min, max, clamped: true };
        }
        self
    }
}

macro_rules! option_set {
    ($(#[$doc:meta])* $set:ident {
        $($(#[$field_doc:meta])* $field:ident: $kind:ty = $default:expr, $spec:expr;)+
    }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
        pub struct $set {
            $($(#[$field_doc])* pub $field: $kind,)+
        }

        impl Default for $set {
            fn default() -> Self {
                Self { $($field: $default,)+ }
            }
        }

        impl OptionSet for $set {
            const SPECS: &'static [OptionSpec] = &[$($spec,)+];

            fn set(&mut self, name: &str, value: Option<&str>) -> Result<(), OptionError> {
                let Some(spec) = Self::spec(name) else { return Err(OptionError::Unknown(name.to_owned())) };
                $({
                    const NAME: &str = $spec.name;
                    if name == NAME {
                        self.$field = <$kind as OptionValue>::parse(spec, value)?;
                    }
                })+
                Ok(())
            }

            fn entries(&self) -> Vec<OptionEntry> {
                let defaults = Self::default();
                let mut specs = Self::SPECS.iter();
                let mut entries = Vec::with_capacity(Self::SPECS.len());
                $(
                    if let Some(spec) = specs.next() {
                        entries.push(OptionEntry {
                            spec,
                            value: self.$field.show(spec),
                            is_default: self.$field == defaults.$field,
                        });
                    }
                )+
                entries
            }

            fn keep_invariant_from(&mut self, other: &Self) {
                $({
                    const CHANGEABLE: bool = $spec.changeable;
                    if !CHANGEABLE {
                        self.$field = other.$field.clone();
                    }
                })+
            }
        }
    };
}

option_set! {
    /// The options of a disk: `attach` and `disk-options` (configuration spec 8.2).
    DiskOptions {
        /// The size to use in sectors; 0 is all there is.
        size_sectors: u64 = 0, number("size", Sectors, 0, DISK_SIZE_SECTORS_MAX).unit(BYTES).invariant();
        /// Without effect.
        max_bio_bvecs: u32 = 0, number("max-bio-bvecs", Ones, 0, 128).invariant();
        /// What to do about I/O errors.
        on_io_error: OnIoError = OnIoError::Detach, spec("on-io-error", OnIoError::KIND);
        /// What to do about an unreachable peer.
        fencing: Fencing = Fencing::DontCare, spec("fencing", Fencing::KIND);
        /// Whether write order may be kept by barriers.
        disk_barrier: bool = false, flag("disk-barrier");
        /// Whether write order may be kept by flushes.
        disk_flushes: bool = true, flag("disk-flushes");
        /// Whether write order may be kept by draining.
        disk_drain: bool = true, flag("disk-drain");
        /// Whether metadata writes are flushed.
        md_flushes: bool = true, flag("md-flushes");
        /// The fixed resync rate in KiB/s.
        resync_rate_kib_per_second: u32 = 250, number("resync-rate", Kibi, 1, 4_194_304).unit(RATE);
        /// The minor whose resync goes first; -1 is none.
        resync_after_minor: i32 = -1, number("resync-after", Ones, -1, MINOR_MAX);
        /// The extents of the activity log.
        al_extents: u32 = 1237, number("al-extents", Ones, 67, 65_534).clamped();
        /// Whether the activity log is written.
        al_updates: bool = true, flag("al-updates");
        /// Whether an aligned discard may be used to write zeroes.
        discard_zeroes_if_aligned: bool = true, flag("discard-zeroes-if-aligned");
        /// Whether WRITE SAME is never used.
        disable_write_same: bool = false, flag("disable-write-same");
        /// How far the resync controller plans ahead, in tenths of a second; 0 is the fixed rate.
        c_plan_ahead_deciseconds: u32 = 20, number("c-plan-ahead", Ones, 0, 300).unit(TENTHS);
        /// The delay the controller aims at, in tenths of a second.
        c_delay_target_deciseconds: u32 = 10, number("c-delay-target", Ones, 1, 100).unit(TENTHS);
        /// The amount in flight the controller aims at, in sectors.
        c_fill_target_sectors: u32 = 100, number("c-fill-target", Sectors, 0, 1_048_576).unit(BYTES);
        /// The greatest rate of the controller in KiB/s.
        c_max_rate_kib_per_second: u32 = 102_400, number("c-max-rate", Kibi, 250, 4_194_304).unit(RATE);
        /// The rate below which application I/O does not slow the resync, in KiB/s; 0 is no limit.
        c_min_rate_kib_per_second: u32 = 250, number("c-min-rate", Kibi, 0, 4_194_304).unit(RATE);
        /// How long the disk may take, in tenths of a second; 0 is for ever.
        disk_timeout_deciseconds: u32 = 0, number("disk-timeout", Ones, 0, 6000).unit(TENTHS);
        /// How reads are shared.
        read_balancing: ReadBalancing = ReadBalancing::PreferLocal, spec("read-balancing", ReadBalancing::KIND);
        /// The granularity at which a resync discards, in bytes; 0 is off.
        rs_discard_granularity_bytes: u32 = 0, number("rs-discard-granularity", Ones, 0, 1_048_576);
        /// Where what the victim of a split brain loses is kept: a folder, or a size in the usual one; empty is nowhere. DRBD
        /// has no such option.
        resync_undo: String = String::new(), text(RESYNC_UNDO, PATH_LENGTH_MAX).invariant();
    }
}

option_set! {
    /// The options of a connection: `connect` and `net-options` (configuration spec 8.1).
    NetOptions {
        /// When a write counts as done.
        protocol: Protocol = Protocol::C, spec("protocol", Protocol::KIND);
        /// How long the peer may take to answer, in tenths of a second.
        timeout_deciseconds: u32 = 60, number("timeout", Ones, 1, 600).unit(TENTHS);
        /// The greatest number of writes in an epoch.
        max_epoch_size: u32 = 2048, number("max-epoch-size", Ones, 1, 20_000);
        /// The greatest number of pages in use for the peer's requests.
        max_buffers: u32 = 2048, number("max-buffers", Ones, 32, 131_072);
        /// Without effect.
        unplug_watermark: u32 = 128, number("unplug-watermark", Ones, 1, 131_072);
        /// The interval between attempts to connect, in seconds.
        connect_int_seconds: u32 = 10, number("connect-int", Ones, 1, 120).unit(SECONDS);
        /// The interval between pings on an idle connection, in seconds.
        ping_int_seconds: u32 = 10, number("ping-int", Ones, 1, 120).unit(SECONDS);
        /// The size of the send buffer in bytes; 0 is automatic.
        sndbuf_size_bytes: u32 = 0, number("sndbuf-size", Ones, 0, 10_485_760).unit(BYTES);
        /// The size of the receive buffer in bytes; 0 is automatic.
        rcvbuf_size_bytes: u32 = 0, number("rcvbuf-size", Ones, 0, 10_485_760).unit(BYTES);
        /// How many timeouts a request may take; 0 is any number.
        ko_count: u32 = 7, number("ko-count", Ones, 0, 200);
        /// Whether both nodes may be Primary.
        allow_two_primaries: bool = false, flag("allow-two-primaries");
        /// The algorithm of the peer authentication; empty is none.
        cram_hmac_alg: String = String::new(), text("cram-hmac-alg", ALGORITHM_LENGTH_MAX);
        /// The secret of the peer authentication.
        shared_secret: Secret = Secret::default(), text("shared-secret", ALGORITHM_LENGTH_MAX);
        /// Split brain with no Primary.
        after_sb_0pri: AfterSplitBrain0Primaries = AfterSplitBrain0Primaries::Disconnect,
            spec("after-sb-0pri", AfterSplitBrain0Primaries::KIND);
        /// Split brain with one Primary.
        after_sb_1pri: AfterSplitBrain1Primary = AfterSplitBrain1Primary::Disconnect,
            spec("after-sb-1pri", AfterSplitBrain1Primary::KIND);
        /// Split brain with two Primaries.
        after_sb_2pri: AfterSplitBrain2Primaries = AfterSplitBrain2Primaries::Disconnect,
            spec("after-sb-2pri", AfterSplitBrain2Primaries::KIND);
        /// Whether the split brain policies apply even if the roles contradict.
        always_asbp: bool = false, flag("always-asbp");
        /// What to do when the resync direction contradicts the roles.
        rr_conflict: RrConflict = RrConflict::Disconnect, spec("rr-conflict", RrConflict::KIND);
        /// How long the answer to a ping may take, in tenths of a second.
        ping_timeout_deciseconds: u32 = 5, number("ping-timeout", Ones, 1, 300).unit(TENTHS);
        /// The digest over every data packet; empty is none.
        data_integrity_alg: String = String::new(), text("data-integrity-alg", ALGORITHM_LENGTH_MAX);
        /// Whether small packets are gathered.
        tcp_cork: bool = true, flag("tcp-cork");
        /// What to do when the connection is congested.
        on_congestion: OnCongestion = OnCongestion::Block, spec("on-congestion", OnCongestion::KIND);
        /// The amount in flight that counts as congestion, in sectors; 0 is off.
        congestion_fill_sectors: u32 = 0, number("congestion-fill", Sectors, 0, 20_971_520).unit(BYTES);
        /// The active extents that count as congestion.
        congestion_extents: u32 = 1237, number("congestion-extents", Ones, 67, 65_534);
        /// The digest by which a resync skips equal blocks; empty is none.
        csums_alg: String = String::new(), text("csums-alg", ALGORITHM_LENGTH_MAX);
        /// Whether that digest is used after the crash of a Primary only.
        csums_after_crash_only: bool = false, flag("csums-after-crash-only");
        /// The digest of online verify; empty is none.
        verify_alg: String = String::new(), text("verify-alg", ALGORITHM_LENGTH_MAX);
        /// Whether bitmaps are sent run-length encoded.
        use_rle: bool = true, flag("use-rle");
        /// How long a new socket is checked, in tenths of a second; 0 is as ping-timeout.
        socket_check_timeout_deciseconds: u32 = 0, number("socket-check-timeout", Ones, 0, 300);
    }
}

option_set! {
    /// The options of a resource: `new-resource` and `resource-options` (configuration spec 8.3).
    ResourceOptions {
        /// The processors to run on, a hexadecimal mask; empty is any.
        cpu_mask: String = String::new(), text("cpu-mask", CPU_MASK_LENGTH_MAX);
        /// What happens to requests when no node has data.
        on_no_data_accessible: OnNoDataAccessible = OnNoDataAccessible::IoError,
            spec("on-no-data-accessible", OnNoDataAccessible::KIND);
    }
}
