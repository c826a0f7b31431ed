//! Options of the command line to options of the engine, and results back.

use std::time::Duration;

use udrbd_control::options as control;
use udrbd_control::protocol::{CommandResult, MetadataIndex};
use udrbd_control::{Address, ReturnCode};
use udrbd_engine::interface as engine;
use udrbd_metadata::Placement;
use udrbd_runtime::socket::SocketOptions;

use crate::messages::Endpoint;

/// The options of a disk as the engine decides by them.
pub(super) fn disk_options(options: &control::DiskOptions) -> engine::DiskOptions {
    engine::DiskOptions {
        size_sectors: options.size_sectors,
        on_io_error: match options.on_io_error {
            control::OnIoError::PassOn => engine::OnIoError::PassOn,
            control::OnIoError::CallLocalIoError => engine::OnIoError::CallLocalIoError,
            control::OnIoError::Detach => engine::OnIoError::Detach,
        },
        fencing: match options.fencing {
            control::Fencing::DontCare => engine::Fencing::DontCare,
            control::Fencing::ResourceOnly => engine::Fencing::ResourceOnly,
            control::Fencing::ResourceAndStonith => engine::Fencing::ResourceAndStonith,
        },
        disk_flushes: options.disk_flushes,
        disk_drain: options.disk_drain,
        metadata_flushes: options.md_flushes,
        resync_rate_kib: options.resync_rate_kib_per_second,
        resync_after: u32::try_from(options.resync_after_minor).ok(),
        al_extents: options.al_extents,
        al_updates: options.al_updates,
        c_plan_ahead: options.c_plan_ahead_deciseconds,
        c_delay_target: options.c_delay_target_deciseconds,
        c_fill_target_sectors: options.c_fill_target_sectors,
        c_max_rate_kib: options.c_max_rate_kib_per_second,
        c_min_rate_kib: options.c_min_rate_kib_per_second,
        disk_timeout: deciseconds(options.disk_timeout_deciseconds),
        read_balancing: read_balancing(options.read_balancing),
        rs_discard_granularity_bytes: options.rs_discard_granularity_bytes,
        discard_zeroes_if_aligned: options.discard_zeroes_if_aligned,
        resync_undo: !options.resync_undo.is_empty(),
    }
}

const fn read_balancing(policy: control::ReadBalancing) -> engine::ReadBalancing {
    match policy {
        control::ReadBalancing::PreferLocal => engine::ReadBalancing::PreferLocal,
        control::ReadBalancing::PreferRemote => engine::ReadBalancing::PreferRemote,
        control::ReadBalancing::RoundRobin => engine::ReadBalancing::RoundRobin,
        control::ReadBalancing::LeastPending => engine::ReadBalancing::LeastPending,
        control::ReadBalancing::WhenCongestedRemote => engine::ReadBalancing::WhenCongestedRemote,
        control::ReadBalancing::Striping32K => engine::ReadBalancing::Striping(15),
        control::ReadBalancing::Striping64K => engine::ReadBalancing::Striping(16),
        control::ReadBalancing::Striping128K => engine::ReadBalancing::Striping(17),
        control::ReadBalancing::Striping256K => engine::ReadBalancing::Striping(18),
        control::ReadBalancing::Striping512K => engine::ReadBalancing::Striping(19),
        control::ReadBalancing::Striping1M => engine::ReadBalancing::Striping(20),
    }
}

const fn deciseconds(tenths: u32) -> Duration {
    Duration::from_millis(tenths as u64 * 100)
}

const fn seconds(count: u32) -> Duration {
    Duration::from_secs(count as u64)
}

/// The options of a connection as the engine decides by them.
pub(super) fn net_options(
    options: &control::NetOptions,
    discard_my_data: bool,
    tentative: bool,
) -> engine::NetOptions {
    engine::NetOptions {
        protocol: match options.protocol {
            control::Protocol::A => engine::Protocol::A,
            control::Protocol::B => engine::Protocol::B,
            control::Protocol::C => engine::Protocol::C,
        },
        timeout: deciseconds(options.timeout_deciseconds),
        ping_interval: seconds(options.ping_int_seconds),
        ping_timeout: deciseconds(options.ping_timeout_deciseconds),
        connect_interval: seconds(options.connect_int_seconds),
        socket_check_timeout: deciseconds(options.socket_check_timeout_deciseconds),
        ko_count: options.ko_count,
        max_buffers: options.max_buffers,
        max_epoch_size: options.max_epoch_size,
        cram_hmac_alg: options.cram_hmac_alg.clone(),
        shared_secret: options.shared_secret.0.clone(),
        allow_two_primaries: options.allow_two_primaries,
        after_sb_0pri: after_split_brain_0(options.after_sb_0pri),
        after_sb_1pri: after_split_brain_1(options.after_sb_1pri),
        after_sb_2pri: after_split_brain_2(options.after_sb_2pri),
        always_asbp: options.always_asbp,
        rr_conflict: match options.rr_conflict {
            control::RrConflict::Disconnect => engine::RrConflict::Disconnect,
            control::RrConflict::CallPriLost => engine::RrConflict::CallPriLost,
            control::RrConflict::Violently => engine::RrConflict::Violently,
        },
        data_integrity_alg: options.data_integrity_alg.clone(),
        verify_alg: options.verify_alg.clone(),
        csums_alg: options.csums_alg.clone(),
        csums_after_crash_only: options.csums_after_crash_only,
        use_rle: options.use_rle,
        on_congestion: match options.on_congestion {
            control::OnCongestion::Block => engine::OnCongestion::Block,
            control::OnCongestion::PullAhead => engine::OnCongestion::PullAhead,
            control::OnCongestion::Disconnect => engine::OnCongestion::Disconnect,
        },
        congestion_fill_sectors: options.congestion_fill_sectors,
        congestion_extents: options.congestion_extents,
        discard_my_data,
        tentative,
    }
}

const fn after_split_brain_0(policy: control::AfterSplitBrain0Primaries) -> engine::AfterSplitBrain {
    use control::AfterSplitBrain0Primaries as Policy;
    match policy {
        Policy::Disconnect => engine::AfterSplitBrain::Disconnect,
        Policy::DiscardYoungerPrimary => engine::AfterSplitBrain::DiscardYoungerPrimary,
        Policy::DiscardOlderPrimary => engine::AfterSplitBrain::DiscardOlderPrimary,
        Policy::DiscardZeroChanges => engine::AfterSplitBrain::DiscardZeroChanges,
        Policy::DiscardLeastChanges => engine::AfterSplitBrain::DiscardLeastChanges,
        Policy::DiscardLocal => engine::AfterSplitBrain::DiscardLocal,
        Policy::DiscardRemote => engine::AfterSplitBrain::DiscardRemote,
    }
}

const fn after_split_brain_1(policy: control::AfterSplitBrain1Primary) -> engine::AfterSplitBrain {
    use control::AfterSplitBrain1Primary as Policy;
    match policy {
        Policy::Disconnect => engine::AfterSplitBrain::Disconnect,
        Policy::Consensus => engine::AfterSplitBrain::Consensus,
        Policy::DiscardSecondary => engine::AfterSplitBrain::DiscardSecondary,
        Policy::CallPriLostAfterSb => engine::AfterSplitBrain::CallPriLostAfterSb,
        Policy::ViolentlyAs0p => engine::AfterSplitBrain::ViolentlyAsZeroPrimaries,
    }
}

const fn after_split_brain_2(policy: control::AfterSplitBrain2Primaries) -> engine::AfterSplitBrain {
    use control::AfterSplitBrain2Primaries as Policy;
    match policy {
        Policy::Disconnect => engine::AfterSplitBrain::Disconnect,
        Policy::CallPriLostAfterSb => engine::AfterSplitBrain::CallPriLostAfterSb,
        Policy::ViolentlyAs0p => engine::AfterSplitBrain::ViolentlyAsZeroPrimaries,
    }
}

/// The options of a resource as the engine decides by them.
pub(super) const fn resource_options(options: &control::ResourceOptions) -> engine::ResourceOptions {
    engine::ResourceOptions {
        on_no_data: match options.on_no_data_accessible {
            control::OnNoDataAccessible::IoError => engine::OnNoData::IoError,
            control::OnNoDataAccessible::SuspendIo => engine::OnNoData::SuspendIo,
        },
    }
}

/// How the sockets of a connection are made.
pub(super) const fn socket_options(options: &control::NetOptions) -> SocketOptions {
    SocketOptions {
        send_buffer_bytes: options.sndbuf_size_bytes,
        receive_buffer_bytes: options.rcvbuf_size_bytes,
    }
}

/// The two ends of a connection.
pub(super) const fn endpoint(local: Address, peer: Address, options: &control::NetOptions) -> Endpoint {
    Endpoint { local: local.socket, remote: peer.socket, options: socket_options(options) }
}

/// Where the metadata are.
pub(super) const fn placement(index: MetadataIndex) -> Placement {
    match index {
        MetadataIndex::Internal => Placement::Internal,
        MetadataIndex::Flexible => Placement::FlexibleExternal,
        MetadataIndex::Slot(slot) => Placement::Indexed(slot),
    }
}

/// The processors of a `cpu-mask`: hexadecimal, groups of 32 bits separated by commas. `None` where it is none.
pub(super) fn processors(mask: &str) -> Option<Vec<usize>> {
    let mut digits = Vec::new();
    for group in mask.split(',') {
        if group.len() > 8 || (group.is_empty() && !mask.is_empty()) {
            return None;
        }
        let padding = if digits.is_empty() { 0 } else { 8 - group.len() };
        digits.extend(std::iter::repeat_n(0, padding));
        for digit in group.chars() {
            digits.push(digit.to_digit(16)?);
        }
    }
    let bits = digits.iter().rev().enumerate().flat_map(|(place, digit)| {
        (0..4).filter(move |bit| digit >> bit & 1 == 1).map(move |bit| place * 4 + bit)
    });
    Some(bits.collect())
}

/// The end of a command for the command line.
pub(super) fn command_result(result: engine::CommandResult) -> CommandResult {
    match result {
        Ok(()) => CommandResult::new(ReturnCode::Success),
        Err(engine::Failure::Configuration { code, info }) => {
            let code = i32::try_from(code).ok().and_then(ReturnCode::from_number);
            CommandResult { code: code.unwrap_or(ReturnCode::UnknownError), info, holders: Vec::new() }
        }
        Err(engine::Failure::State { code, info }) => {
            let code = ReturnCode::from_number(code.code());
            CommandResult { code: code.unwrap_or(ReturnCode::UnknownError), info, holders: Vec::new() }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_are_read_as_the_kernel_reads_masks() {
        assert_eq!(processors(""), Some(vec![]));
        assert_eq!(processors("3"), Some(vec![0, 1]));
        assert_eq!(processors("80"), Some(vec![7]));
        assert_eq!(processors("1,00000000"), Some(vec![32]));
        assert_eq!(processors("1,0"), Some(vec![32]));
        assert_eq!(processors("x"), None);
        assert_eq!(processors("123456789"), None);
    }

    #[test]
    fn defaults_are_the_same_on_both_sides() {
        assert_eq!(disk_options(&control::DiskOptions::default()), engine::DiskOptions::default());
        assert_eq!(net_options(&control::NetOptions::default(), false, false), engine::NetOptions::default());
        assert_eq!(
            resource_options(&control::ResourceOptions::default()),
            engine::ResourceOptions::default()
        );
    }
}
