//! How far a resync or verify has come, as `/proc/drbd` and `sh-status` compute it (status spec 2.5, 3.3).

use udrbd_units::ConnectionState;

use super::words::blocks_kib;
use super::{DeviceSnapshot, ProgressKind, ProgressSnapshot, SpeedMark};

/// Above so many blocks the line uses MiB (4 GiB of blocks).
const MEBI_BLOCKS_MIN: u64 = 1 << 20;
/// Below so many blocks percentages are computed in steps of 2^10 blocks, above in steps of 2^16.
const FINE_BLOCKS_MAX: u64 = u32::MAX as u64;
const STALLED_SECONDS: u64 = 180;
const BAR_WIDTH: u64 = 20;

/// The blocks still to do and the thousandths done.
pub(super) fn left_and_per_mille(device: &DeviceSnapshot, progress: &ProgressSnapshot) -> (u64, u64) {
    let left = left_blocks(device, progress);
    let total = progress.total_blocks;
    if left > total {
        return (total, if total == 0 { 1000 } else { 0 });
    }
    (left, per_mille(left, total, total > FINE_BLOCKS_MAX))
}

fn left_blocks(device: &DeviceSnapshot, progress: &ProgressSnapshot) -> u64 {
    match progress.kind {
        ProgressKind::Verify => progress.verify_left_blocks,
        ProgressKind::Resync => device.counters.out_of_sync_blocks.saturating_sub(progress.failed_blocks),
    }
}

fn per_mille(left: u64, total: u64, coarse: bool) -> u64 {
    let shift = if coarse { 16 } else { 10 };
    1000 - (((left >> shift) * 1000) / (1 + (total >> shift))).min(1000)
}

/// `_resynced_percent` in thousandths: it looks at set bits even during a verify (status spec 13.1).
pub(super) fn resynced_per_mille(device: &DeviceSnapshot, progress: &ProgressSnapshot) -> u64 {
    let left = device.counters.out_of_sync_blocks.saturating_sub(progress.failed_blocks);
    per_mille(left, progress.total_blocks, progress.total_blocks > FINE_BLOCKS_MAX)
}

/// The two lines below the counters, empty unless a resync or verify runs.
pub(super) fn lines(device: &DeviceSnapshot) -> String {
    let running = matches!(
        device.connection,
        ConnectionState::SyncSource
            | ConnectionState::SyncTarget
            | ConnectionState::VerifyS
            | ConnectionState::VerifyT
    );
    match (&device.progress, running) {
        (Some(progress), true) => format!("{}{}", bar_line(device, progress), speed_line(device, progress)),
        _ => String::new(),
    }
}

/// `[==>...] sync'ed: 12.5% (1/2)K`, the line without its tab and newline; `None` unless running.
pub fn progress_bar(device: &DeviceSnapshot) -> Option<String> {
    lines(device).lines().next().map(|line| line.trim_start_matches('\t').to_owned())
}

fn bar_line(device: &DeviceSnapshot, progress: &ProgressSnapshot) -> String {
    let (left, per_mille) = left_and_per_mille(device, progress);
    let filled = per_mille / 50;
    let done = "=".repeat(filled.saturating_sub(1) as usize);
    let open = ".".repeat(BAR_WIDTH.saturating_sub(filled) as usize);
    let label = match device.connection {
        ConnectionState::VerifyS | ConnectionState::VerifyT => "verified:",
        _ => "sync'ed:",
    };
    let total = progress.total_blocks;
    let (left_amount, total_amount, unit) = if total > MEBI_BLOCKS_MIN {
        (blocks_kib(left >> 10), blocks_kib(total >> 10), 'M')
    } else {
        (blocks_kib(left), blocks_kib(total), 'K')
    };
    format!(
        "\t[{done}>{open}] {label}{:3}.{}% ({left_amount}/{total_amount}){unit}\n",
        per_mille / 10,
        per_mille % 10
    )
}

fn speed_line(device: &DeviceSnapshot, progress: &ProgressSnapshot) -> String {
    let (left, _) = left_and_per_mille(device, progress);
    let (short_seconds, short_blocks) = since(progress.short_mark, left);
    let finish_seconds = finish_seconds(left, short_seconds, short_blocks);
    let long_seconds = (progress.elapsed_ms.saturating_sub(progress.paused_ms) / 1000).max(1);
    let long_blocks = progress.total_blocks - left;
    let mut line = format!(
        "\tfinish: {}:{:02}:{:02} speed: {} ({})",
        finish_seconds / 3600,
        finish_seconds % 3600 / 60,
        finish_seconds % 60,
        grouped(blocks_kib(short_blocks / short_seconds)),
        grouped(blocks_kib(long_blocks / long_seconds)),
    );
    if matches!(device.connection, ConnectionState::SyncTarget | ConnectionState::VerifyS) {
        line.push_str(&format!(" want: {}", grouped(progress.wanted_kib_per_second)));
    }
    line.push_str(" K/sec");
    if short_seconds > STALLED_SECONDS {
        line.push_str(" (stalled)");
    }
    line.push('\n');
    line
}

/// The seconds since a mark (at least 1) and the blocks done since then.
fn since(mark: SpeedMark, left: u64) -> (u64, u64) {
    ((mark.age_ms / 1000).max(1), mark.left_blocks.saturating_sub(left))
}

fn finish_seconds(left: u64, seconds: u64, blocks: u64) -> u64 {
    seconds * (left / (blocks / 100 + 1)) / 100
}

/// The estimated seconds to the end, and the present rate in bytes per second, as the progress lines show them.
pub(super) fn estimate(device: &DeviceSnapshot, progress: &ProgressSnapshot) -> (u64, u64) {
    let (left, _) = left_and_per_mille(device, progress);
    let (seconds, blocks) = since(progress.short_mark, left);
    (finish_seconds(left, seconds, blocks), blocks / seconds * 4096)
}

/// A number with its thousands grouped; DRBD leaves millions ungrouped above.
fn grouped(value: u64) -> String {
    let (millions, thousands, ones) = (value / 1_000_000, value / 1000 % 1000, value % 1000);
    if millions > 0 {
        format!("{millions},{thousands:03},{ones:03}")
    } else if thousands > 0 {
        format!("{thousands},{ones:03}")
    } else {
        ones.to_string()
    }
}

#[cfg(test)]
mod tests {
    use udrbd_units::{Minor, VolumeNumber};

    use super::*;

    fn syncing(total_blocks: u64, left_blocks: u64) -> DeviceSnapshot {
        let mut device = DeviceSnapshot::new(VolumeNumber(0), Minor(0));
        device.connection = ConnectionState::SyncSource;
        device.counters.out_of_sync_blocks = left_blocks;
        device.progress = Some(ProgressSnapshot {
            kind: ProgressKind::Resync,
            total_blocks,
            failed_blocks: 0,
            verify_left_blocks: 0,
            equal_checksum_blocks: 0,
            elapsed_ms: 1000,
            paused_ms: 0,
            short_mark: SpeedMark { age_ms: 1000, left_blocks: total_blocks },
            mid_mark: SpeedMark { age_ms: 1000, left_blocks: total_blocks },
            wanted_kib_per_second: 0,
            position_blocks: 0,
            verify_start_sector: 0,
            verify_stop_sector: None,
        });
        device
    }

    #[test]
    fn the_bar_has_a_character_more_below_five_percent() {
        let bar = |device: &DeviceSnapshot| lines(device).split(']').next().unwrap().len();
        assert_eq!(bar(&syncing(1 << 20, 1 << 20)), 2 + 21);
        assert_eq!(bar(&syncing(16374, 16374)), 2 + 20);
        assert_eq!(bar(&syncing(16374, 8000)), 2 + 20);
        assert_eq!(bar(&syncing(16374, 0)), 2 + 20);
    }

    #[test]
    fn more_left_than_there_is_counts_as_nothing_done() {
        let device = syncing(100, 200);
        assert_eq!(left_and_per_mille(&device, &device.progress.unwrap()), (100, 0));
        let empty = syncing(0, 1);
        assert_eq!(left_and_per_mille(&empty, &empty.progress.unwrap()), (0, 1000));
    }

    #[test]
    fn a_slow_device_is_stalled() {
        let mut device = syncing(16374, 16374);
        if let Some(progress) = &mut device.progress {
            progress.short_mark.age_ms = 181_000;
        }
        assert!(lines(&device).ends_with(" K/sec (stalled)\n"));
    }

    #[test]
    fn thousands_are_grouped() {
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(1040), "1,040");
        assert_eq!(grouped(12_345_006), "12,345,006");
    }
}
