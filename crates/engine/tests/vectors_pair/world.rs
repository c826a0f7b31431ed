//! Two engines set up as the two resources of a record were.

use std::time::Duration;

use udrbd_engine::interface::{
    AfterSplitBrain, Command, CommandResult, DiskOptions, Failure, Fencing, Handler, NetOptions,
    OnCongestion, OnIoError, OnNoData, Protocol, ResizeRequest, ResourceOptions, RrConflict,
};
use udrbd_metadata::Flags;
use udrbd_units::{GenerationId, Sector};

use crate::harness::{Pair, VOLUME};
use crate::records::{Bits, Metadata, SIDES, Setup, Sides};

/// The lower devices are 8 MiB.
pub(crate) const SECTORS: u64 = 16384;
/// What is left of them for data.
pub(crate) const USABLE_SECTORS: u64 = 16304;

/// A word for `secondary`, for what the kernel knows by itself there.
pub(crate) const HELD_OPEN: &str = "held-open";

pub(crate) fn identifier(text: &str) -> GenerationId {
    GenerationId(u64::from_str_radix(text, 16).unwrap_or_else(|error| panic!("{text}: {error}")))
}

pub(crate) fn flag(name: &str) -> Flags {
    match name {
        "consistent" => Flags::CONSISTENT,
        "primary_ind" => Flags::PRIMARY_IND,
        "connected_ind" => Flags::CONNECTED_IND,
        "full_sync" => Flags::FULL_SYNC,
        "was_up_to_date" => Flags::WAS_UP_TO_DATE,
        "peer_out_dated" => Flags::PEER_OUT_DATED,
        "crashed_primary" => Flags::CRASHED_PRIMARY,
        "al_clean" => Flags::AL_CLEAN,
        "al_disabled" => Flags::AL_DISABLED,
        other => panic!("unknown metadata flag {other}"),
    }
}

pub(crate) fn flags(names: &[String]) -> Flags {
    names.iter().fold(Flags(0), |flags, name| flags.with(flag(name), true))
}

pub(crate) fn side_index(side: &str) -> usize {
    SIDES.iter().position(|name| *name == side).unwrap_or_else(|| panic!("side {side}"))
}

fn handler(name: &str) -> Handler {
    const ALL: [Handler; 12] = [
        Handler::PriOnInconDegr,
        Handler::PriLostAfterSb,
        Handler::PriLost,
        Handler::LocalIoError,
        Handler::InitialSplitBrain,
        Handler::SplitBrain,
        Handler::BeforeResyncTarget,
        Handler::BeforeResyncSource,
        Handler::AfterResyncTarget,
        Handler::OutOfSync,
        Handler::FencePeer,
        Handler::UnfencePeer,
    ];
    ALL.into_iter().find(|handler| handler.name() == name).unwrap_or_else(|| panic!("handler {name}"))
}

/// The options of `attach`: those all recordings have, and the given ones.
pub(crate) fn disk_options(words: &[String]) -> DiskOptions {
    let mut options = DiskOptions { c_plan_ahead: 0, resync_rate_kib: 200 * 1024, ..DiskOptions::default() };
    for word in words {
        match word.split_once('=').unwrap_or((word, "")) {
            ("--fencing", value) => options.fencing = value.parse::<Fencing>().unwrap(),
            ("--on-io-error", "pass_on") => options.on_io_error = OnIoError::PassOn,
            ("--on-io-error", "detach") => options.on_io_error = OnIoError::Detach,
            ("--on-io-error", "call-local-io-error") => options.on_io_error = OnIoError::CallLocalIoError,
            ("--size", value) => options.size_sectors = size_in_sectors(value),
            (other, _) => panic!("unknown disk option {other}"),
        }
    }
    options
}

fn size_in_sectors(text: &str) -> u64 {
    text.strip_suffix('M').unwrap_or_else(|| panic!("size {text}")).parse::<u64>().unwrap() * 2048
}

fn policy(text: &str) -> AfterSplitBrain {
    match text {
        "disconnect" => AfterSplitBrain::Disconnect,
        "discard-younger-primary" => AfterSplitBrain::DiscardYoungerPrimary,
        "discard-older-primary" => AfterSplitBrain::DiscardOlderPrimary,
        "discard-zero-changes" => AfterSplitBrain::DiscardZeroChanges,
        "discard-least-changes" => AfterSplitBrain::DiscardLeastChanges,
        "discard-local" => AfterSplitBrain::DiscardLocal,
        "discard-remote" => AfterSplitBrain::DiscardRemote,
        "consensus" => AfterSplitBrain::Consensus,
        "discard-secondary" => AfterSplitBrain::DiscardSecondary,
        "call-pri-lost-after-sb" => AfterSplitBrain::CallPriLostAfterSb,
        "violently-as0p" => AfterSplitBrain::ViolentlyAsZeroPrimaries,
        other => panic!("unknown policy {other}"),
    }
}

/// The options of `connect`: those all recordings have, and the given ones.
pub(crate) fn net_options(words: &[String]) -> NetOptions {
    let options = NetOptions {
        ping_timeout: Duration::from_secs(6),
        socket_check_timeout: Duration::from_millis(200),
        ..NetOptions::default()
    };
    with_net_options(options, words)
}

/// As `options`, changed.
pub(crate) fn with_net_options(mut options: NetOptions, words: &[String]) -> NetOptions {
    let yes = |value: &str| value != "no";
    let tenths = |value: &str| Duration::from_millis(value.parse::<u64>().unwrap() * 100);
    for word in words {
        match word.split_once('=').unwrap_or((word, "")) {
            ("--after-sb-0pri", value) => options.after_sb_0pri = policy(value),
            ("--after-sb-1pri", value) => options.after_sb_1pri = policy(value),
            ("--after-sb-2pri", value) => options.after_sb_2pri = policy(value),
            ("--always-asbp", value) => options.always_asbp = yes(value),
            ("--allow-two-primaries", value) => options.allow_two_primaries = yes(value),
            ("--discard-my-data", value) => options.discard_my_data = yes(value),
            ("--tentative", value) => options.tentative = yes(value),
            ("--rr-conflict", "disconnect") => options.rr_conflict = RrConflict::Disconnect,
            ("--rr-conflict", "violently") => options.rr_conflict = RrConflict::Violently,
            ("--rr-conflict", "call-pri-lost") => options.rr_conflict = RrConflict::CallPriLost,
            ("--protocol", "A") => options.protocol = Protocol::A,
            ("--protocol", "B") => options.protocol = Protocol::B,
            ("--protocol", "C") => options.protocol = Protocol::C,
            ("--on-congestion", "pull-ahead") => options.on_congestion = OnCongestion::PullAhead,
            ("--ping-timeout", value) => options.ping_timeout = tenths(value),
            ("--ping-int", value) => options.ping_interval = tenths(value) * 10,
            ("--verify-alg", value) => value.clone_into(&mut options.verify_alg),
            ("--cram-hmac-alg", value) => value.clone_into(&mut options.cram_hmac_alg),
            ("--data-integrity-alg", value) => value.clone_into(&mut options.data_integrity_alg),
            (other, _) => panic!("unknown net option {other}"),
        }
    }
    options
}

/// Two nodes as set up, attached where they were, not connected. A side without setup stays down.
pub(crate) fn build(setups: &Sides<Setup>) -> Pair {
    let mut pair = Pair::down(SECTORS);
    for (side, setup) in setups {
        let node = side_index(side);
        if let Some(metadata) = &setup.metadata {
            write_metadata(&mut pair, node, metadata);
        }
        for (name, exit) in &setup.handler_exit {
            pair.nodes[node].exits.insert(handler(name), *exit);
        }
        let mut options = ResourceOptions::default();
        for word in &setup.resource_options {
            assert_eq!(word, "--on-no-data-accessible=suspend-io");
            options.on_no_data = OnNoData::SuspendIo;
        }
        pair.start_diskless(node, options);
        if setup.attached && setup.metadata.is_some() {
            pair.attach(node, disk_options(&setup.disk_options)).unwrap();
        }
        for words in &setup.commands_before_connect {
            run(&mut pair, node, words).unwrap().unwrap().unwrap();
        }
    }
    pair
}

pub(crate) fn write_metadata(pair: &mut Pair, node: usize, metadata: &Metadata) {
    let mut bitmap = vec![0_u8; 4096];
    let bits: Vec<u64> = match &metadata.bits_set {
        Bits::First(count) => (0..*count).collect(),
        Bits::These(list) => list.clone(),
    };
    for bit in bits {
        bitmap[bit as usize / 8] |= 1 << (bit % 8);
    }
    let gi = metadata.gi.each_ref().map(|text| identifier(text));
    pair.nodes[node].write_metadata(SECTORS, &bitmap, |superblock, _| {
        superblock.la_size_sect = Sector(metadata.last_agreed_sectors.unwrap_or(USABLE_SECTORS));
        superblock.current = gi[0];
        superblock.bitmap = gi[1];
        superblock.history = [gi[2], gi[3]];
        superblock.flags = flags(&metadata.flags).with(Flags::AL_CLEAN, true);
    });
}

/// Runs a command as a record has it. `None`: there is no such command here. Inner `None`: no answer within a minute.
pub(crate) fn run(pair: &mut Pair, node: usize, words: &[String]) -> Option<Option<CommandResult>> {
    let command = command(pair, node, words)?;
    Some(match command {
        What::Command(command) => pair.try_command(node, command),
        What::Attach => {
            let options = disk_options(&words[1..]);
            Some(pair.attach(node, options))
        }
        What::Done => Some(Ok(())),
    })
}

enum What {
    Command(Command),
    Attach,
    Done,
}

fn command(pair: &Pair, node: usize, words: &[String]) -> Option<What> {
    let has = |option: &str| words.iter().any(|word| word == option);
    let force = has("--force");
    let volume = VOLUME;
    let option =
        |name| words.iter().find_map(|word| word.strip_prefix(name)).map(|text| Sector(sectors(text)));
    let command = match words[0].as_str() {
        "primary" => Command::Primary { volume, force },
        "secondary" => Command::Secondary { volume, held_open: has(HELD_OPEN) },
        "outdate" => Command::Outdate { volume },
        "invalidate" => Command::Invalidate { volume },
        "invalidate-remote" => Command::InvalidateRemote { volume },
        "detach" => Command::Detach { volume, force },
        "attach" => return Some(What::Attach),
        "disconnect" => Command::Disconnect { force },
        "connect" => Command::Connect(Box::new(net_options(&words[1..]))),
        "connect-raw" => Command::Connect(Box::new(with_net_options(NetOptions::default(), &words[1..]))),
        "net-options" => {
            let present = pair.nodes[node].engine.as_ref()?.status().connection.options.unwrap_or_default();
            Command::NetOptions(Box::new(with_net_options(present, &words[1..])))
        }
        "pause-sync" => Command::PauseSync { volume },
        "resume-sync" => Command::ResumeSync { volume },
        "suspend-io" => Command::SuspendIo { volume },
        "resume-io" => Command::ResumeIo { volume },
        "new-current-uuid" => Command::NewCurrentUuid { volume, clear_bitmap: has("--clear-bitmap") },
        "verify" => Command::Verify { volume, start: option("--start="), stop: option("--stop=") },
        "resize" => Command::Resize { volume, request: resize_request(&words[1..]) },
        "down" => Command::Down,
        "del-minor" => Command::DelMinor { volume },
        // An attach does this by itself.
        "drbdmeta" if words[1] == "apply-al" => return Some(What::Done),
        _ => return None,
    };
    Some(What::Command(command))
}

/// The options of `resize`.
fn resize_request(words: &[String]) -> ResizeRequest {
    let size = words.iter().find_map(|word| word.strip_prefix("--size="));
    ResizeRequest {
        size_sectors: size.map_or(0, sectors),
        assume_peer_has_space: words.iter().any(|word| word == "--assume-peer-has-space"),
        assume_clean: words.iter().any(|word| word == "--assume-clean"),
        ..ResizeRequest::default()
    }
}

/// A size with its unit; in sectors where it has none but `s`.
fn sectors(text: &str) -> u64 {
    let (number, unit) = text.split_at(text.trim_end_matches(|c: char| c.is_alphabetic()).len());
    let number: u64 = number.parse().unwrap();
    match unit {
        "s" => number,
        "M" => number * 2048,
        "G" => number * 2_097_152,
        _ => number * 2,
    }
}

/// DRBD's number for how a command ended; 0 for success.
pub(crate) fn number(result: &CommandResult) -> i32 {
    match result {
        Ok(()) => 0,
        Err(Failure::Configuration { code, .. }) => *code as i32,
        Err(Failure::State { code, .. }) => code.code(),
    }
}

/// The number in what `drbdsetup` printed; 0 for success.
pub(crate) fn recorded_number(exit: i32, output: &str) -> i32 {
    if exit == 0 {
        return 0;
    }
    let (_, rest) = output.split_once('(').unwrap_or_else(|| panic!("no number in {output:?}"));
    rest.split_once(')').unwrap().0.parse().unwrap()
}
