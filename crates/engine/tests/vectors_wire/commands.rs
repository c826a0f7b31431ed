//! The words of `drbdsetup` and of the writing tool, as commands and requests.

use udrbd_engine::interface::{
    AfterSplitBrain, DiskOptions, Duration, NetOptions, OnCongestion, Operation, Protocol,
};
use udrbd_units::VolumeNumber;

use crate::script::option;

/// Whom a command is for: the node whose resource, minor or address it names; `None` for anything else.
pub(crate) fn node_of(command: &str) -> Option<usize> {
    let words: Vec<&str> = command.split(' ').collect();
    match words[..] {
        ["drbdsetup-84", "connect" | "new-minor", resource, ..] => Some(usize::from(resource == "rb")),
        ["drbdsetup-84", "disconnect" | "net-options", own, ..] => Some(usize::from(own.ends_with(":7789"))),
        ["drbdsetup-84", _, ref rest @ ..] => {
            let minor = rest.iter().find_map(|word| word.parse::<usize>().ok())?;
            Some(minor % 2)
        }
        ["wio", device, ..] => Some(device.strip_prefix("/dev/drbd")?.parse::<usize>().ok()? % 2),
        _ => None,
    }
}

/// Which volume a command is about, by its minor: A has the even ones, B the odd ones.
pub(crate) fn volume_of(command: &str) -> VolumeNumber {
    let mut words = command.split(' ').skip(1);
    let minor = words.find_map(|word| word.trim_start_matches("/dev/drbd").parse::<u16>().ok());
    VolumeNumber(minor.map_or(0, |minor| minor / 2))
}

/// Changes what the command names.
pub(crate) fn net_options(command: &str, options: &mut NetOptions) {
    let number = |name: &str| option(command, name).map(|value| value.parse::<u32>().unwrap());
    let text = |name: &str, into: &mut String| {
        if let Some(value) = option(command, name) {
            value.clone_into(into);
        }
    };
    match option(command, "protocol") {
        Some("A") => options.protocol = Protocol::A,
        Some("B") => options.protocol = Protocol::B,
        Some("C") => options.protocol = Protocol::C,
        other => assert_eq!(other, None),
    }
    if let Some(seconds) = number("connect-int") {
        options.connect_interval = Duration::from_secs(seconds.into());
    }
    if let Some(tenths) = number("timeout") {
        options.timeout = Duration::from_millis(u64::from(tenths) * 100);
    }
    if let Some(count) = number("ko-count") {
        options.ko_count = count;
    }
    if let Some(sectors) = number("congestion-fill") {
        options.congestion_fill_sectors = sectors;
    }
    text("cram-hmac-alg", &mut options.cram_hmac_alg);
    text("shared-secret", &mut options.shared_secret);
    text("verify-alg", &mut options.verify_alg);
    text("csums-alg", &mut options.csums_alg);
    text("data-integrity-alg", &mut options.data_integrity_alg);
    if let Some(value) = option(command, "use-rle") {
        options.use_rle = value == "yes";
    }
    if let Some(value) = option(command, "allow-two-primaries") {
        options.allow_two_primaries = value == "yes";
    }
    match option(command, "after-sb-0pri") {
        Some("discard-zero-changes") => options.after_sb_0pri = AfterSplitBrain::DiscardZeroChanges,
        other => assert_eq!(other, None),
    }
    match option(command, "on-congestion") {
        Some("pull-ahead") => options.on_congestion = OnCongestion::PullAhead,
        other => assert_eq!(other, None),
    }
    options.discard_my_data = command.contains("--discard-my-data");
}

/// Changes what the command names.
pub(crate) fn disk_options(command: &str, options: &mut DiskOptions) {
    if let Some(rate) = option(command, "resync-rate") {
        let mebibytes: u32 = rate.strip_suffix('M').unwrap().parse().unwrap();
        options.resync_rate_kib = mebibytes * 1024;
    }
    if let Some(tenths) = option(command, "c-plan-ahead") {
        options.c_plan_ahead = tenths.parse().unwrap();
    }
    if let Some(size) = option(command, "size") {
        options.size_sectors = size.strip_suffix('s').unwrap().parse().unwrap();
    }
}

/// One step of the writing tool.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    pub(crate) volume: VolumeNumber,
    pub(crate) operation: Operation,
    pub(crate) offset: u64,
    pub(crate) bytes: u32,
    /// The value of all bytes; `None`: no matter, or known from the capture alone.
    pub(crate) value: Option<u8>,
}

/// The steps of `wio DEVICE STEP...`.
pub(crate) fn steps(command: &str) -> Vec<Step> {
    let volume = volume_of(command);
    command.split(' ').skip(2).map(|word| step(volume, word)).collect()
}

fn step(volume: VolumeNumber, word: &str) -> Step {
    let parts: Vec<&str> = word.split(':').collect();
    let number = |index: usize| parts.get(index).map_or(0, |text| text.parse::<u64>().unwrap());
    let write = |fua: bool| Operation::Write { fua, preflush: false };
    let operation = match parts[0] {
        "w" | "W" => write(false),
        "wf" => write(true),
        "s" => Operation::Flush,
        "r" => Operation::Read,
        "d" => Operation::Discard,
        "z" => Operation::WriteZeroes { may_unmap: false },
        "h" => Operation::WriteZeroes { may_unmap: true },
        other => panic!("wio {other}"),
    };
    let value = matches!(parts[0], "w" | "wf").then(|| number(3) as u8);
    Step { volume, operation, offset: number(1), bytes: number(2) as u32, value }
}

/// Cuts a step as a block layer does that lets no larger request through.
pub(crate) fn pieces(step: &Step, most: u32) -> Vec<Step> {
    let has_data = matches!(step.operation, Operation::Write { .. } | Operation::Read);
    if !has_data || step.bytes <= most {
        return vec![step.clone()];
    }
    let piece = |start: u32| Step {
        offset: step.offset + u64::from(start),
        bytes: most.min(step.bytes - start),
        ..step.clone()
    };
    (0..step.bytes).step_by(most as usize).map(piece).collect()
}
