//! What a seed means: the sizes, delays and options of a run, and what is done to the nodes and when.

use udrbd_engine::interface::{DiskOptions, Duration, NetOptions, OnCongestion, Protocol, ReadBalancing};

use crate::aims::{self, Aim};
use crate::deeds;
use crate::fencing::Handlers;
use crate::network::NodeId;
use crate::random::Random;

/// A millisecond of simulated time, in nanoseconds.
pub(crate) const MILLISECOND: u64 = 1_000_000;
/// What makes the protocol of a seed.
const ASYNCHRONOUS: u64 = 0x6173_796e;
/// What makes devices of a seed grow.
const GROWTH: u64 = 0x6772_6f77;
/// What makes `c-min-rate` of a seed.
const MIN_RATE: u64 = 0x7261_7465;
/// A second of simulated time, in nanoseconds.
pub(crate) const SECOND: u64 = 1_000 * MILLISECOND;

/// Something a node does, by which a fault can be timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// It sends a barrier: an epoch is over.
    Barrier,
    /// It acknowledges a mirrored write.
    WriteAck,
    /// It acknowledges an epoch.
    BarrierAck,
    /// It sends a block of a resync.
    ResyncData,
    /// It acknowledges a block of a resync.
    ResyncAck,
    /// A write, discard or zeroing of data goes to its disk.
    DataSubmitted,
    /// Its disk has completed one of these.
    DataWritten,
    /// Its disk has completed a flush that is nothing else.
    Flushed,
    /// Its disk has completed a write of metadata.
    MetadataWritten,
}

/// What is done at some time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// From now on a node is watched for a moment; what follows it is done once.
    When {
        /// Which node is watched: 0 or 1.
        node: NodeId,
        /// For what.
        moment: Moment,
        /// How often it has to come.
        count: u32,
        /// How long after it, nanoseconds.
        delay: u64,
        /// What is done.
        then: Box<Self>,
    },
    /// So many requests of clients, so many at a time, on whichever node is Primary.
    Load {
        /// How many in all.
        requests: u32,
        /// How many at a time.
        depth: u32,
    },
    /// What this node sends gets lost for a while; both directions if `both`.
    Cut {
        /// Which node: 0 or 1.
        node: NodeId,
        /// The other direction as well.
        both: bool,
        /// For how long, nanoseconds.
        time: u64,
    },
    /// One of the connections is reset; `half`: a FIN only.
    Break {
        /// Which one, out of those there are.
        pick: u64,
        /// Only one side hears of it, in good order.
        half: bool,
    },
    /// The power of the node goes for a while.
    PowerCut {
        /// Which node: 0 or 1.
        node: NodeId,
        /// For how long, nanoseconds.
        time: u64,
    },
    /// The power of both nodes goes; each is back after its time.
    PowerCutBoth {
        /// For how long each, nanoseconds.
        times: [u64; 2],
    },
    /// The daemon is killed and started again.
    Kill {
        /// Which node: 0 or 1.
        node: NodeId,
        /// For how long, nanoseconds.
        time: u64,
    },
    /// The administrator disconnects for a while.
    Disconnect {
        /// Which node: 0 or 1.
        node: NodeId,
        /// For how long, nanoseconds.
        time: u64,
        /// Without asking the peer.
        force: bool,
    },
    /// The other node becomes Primary, orderly.
    SwitchOver,
    /// The node becomes Primary if nobody it can see is.
    Promote {
        /// Which node: 0 or 1.
        node: NodeId,
    },
    /// The node becomes Secondary.
    Demote {
        /// Which node: 0 or 1.
        node: NodeId,
    },
    /// The disk is detached for a while.
    Detach {
        /// Which node: 0 or 1.
        node: NodeId,
        /// For how long, nanoseconds.
        time: u64,
    },
    /// The node's data are thrown away.
    Invalidate {
        /// Which node: 0 or 1.
        node: NodeId,
    },
    /// The peer's data are thrown away.
    InvalidateRemote {
        /// Which node: 0 or 1.
        node: NodeId,
    },
    /// The resync stands still for a while.
    Pause {
        /// Which node: 0 or 1.
        node: NodeId,
        /// For how long, nanoseconds.
        time: u64,
    },
    /// I/O is suspended for a while.
    Suspend {
        /// Which node: 0 or 1.
        node: NodeId,
        /// For how long, nanoseconds.
        time: u64,
    },
    /// Everything is taken down in order and brought up again.
    Down {
        /// Which node: 0 or 1.
        node: NodeId,
        /// For how long, nanoseconds.
        time: u64,
    },
    /// What is asked of a disk fails for a while; after that it is attached again. Flushes do not fail: a disk that keeps
    /// nothing it has promised is beyond what any node can do.
    FailDisk {
        /// Which node: 0 or 1.
        node: NodeId,
        /// Metadata; else data.
        metadata: bool,
        /// For how long, nanoseconds.
        time: u64,
    },
    /// A disk becomes slow for a while.
    SlowDisk {
        /// Which node: 0 or 1.
        node: NodeId,
        /// For how long, nanoseconds.
        time: u64,
    },
    /// The network becomes slow for a while.
    SlowNetwork {
        /// For how long, nanoseconds.
        time: u64,
    },
    /// Somebody resolves a split brain now, if there is one.
    Resolve,
    /// Both nodes become Primary, if they may.
    PromoteBoth,
    /// An online verify, which has to find what has rotted and nothing else.
    Verify {
        /// Which node: 0 or 1.
        node: NodeId,
    },
    /// A disk rots somewhere.
    Rot {
        /// Which node's: 0 or 1.
        node: NodeId,
    },
    /// Devices of a volume grow.
    Grow {
        /// Which nodes'.
        nodes: [bool; 2],
        /// By how many sectors.
        sectors: u64,
    },
    /// The size that both devices have is to be used.
    Resize {
        /// Which node is told: 0 or 1.
        node: NodeId,
    },
    /// An operator gives a command that nobody asked for.
    Deed {
        /// Which node: 0 or 1.
        node: NodeId,
        /// Which command.
        which: u32,
        /// For how long, nanoseconds, if it is one that has to be taken back.
        time: u64,
    },
}

impl Operation {
    /// Whether it suspends I/O, now or at its moment.
    fn suspends(&self) -> bool {
        match self {
            Self::When { then, .. } => then.suspends(),
            other => matches!(other, Self::Suspend { .. }),
        }
    }

    /// Whether it makes a node serve data, now or at its moment, of which a cluster manager would know that they are old.
    pub(crate) fn overrides_the_cluster(&self) -> bool {
        match self {
            Self::When { then, .. } => then.overrides_the_cluster(),
            other => matches!(other, Self::Suspend { .. } | Self::Detach { .. }),
        }
    }
}

/// An operation and its time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// When, nanoseconds from the start.
    pub at: u64,
    /// What.
    pub operation: Operation,
}

/// The fixed circumstances of a run.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// Sectors of each backing device, by volume and node.
    pub(crate) backing_sectors: Vec<[u64; 2]>,
    /// Whether the nodes start with the same data, known to be the same.
    pub(crate) in_sync: bool,
    /// Whether each disk has a volatile cache.
    pub(crate) volatile: [bool; 2],
    /// Granularity of discards, bytes.
    pub(crate) discard_granularity: u32,
    /// The disk section.
    pub(crate) disk_options: DiskOptions,
    /// The net section.
    pub(crate) net_options: NetOptions,
    /// What `fence-peer` does.
    pub(crate) handlers: Option<Handlers>,
    /// Least and most time of a disk operation, nanoseconds.
    pub(crate) disk_latency: (u64, u64),
    /// Least and most time of a packet, nanoseconds.
    pub(crate) network_latency: (u64, u64),
    /// Blocks clients write to, by volume: (first block, count) of each region.
    pub(crate) regions: Vec<Vec<(u64, u64)>>,
    /// Most blocks of a write.
    pub(crate) blocks_max: u64,
    /// Of a hundred requests, how many are reads, flushes, discards.
    pub(crate) mix: (u64, u64, u64),
    /// Of a hundred writes, how many are FUA.
    pub(crate) fua: u64,
    /// Of a hundred writes, how many are smaller than a block or not aligned to one.
    pub(crate) partial: u64,
    /// How long a client thinks between two requests at the most, nanoseconds.
    pub(crate) think: u64,
    /// Events between two audits of both disks.
    pub(crate) audit_events: u64,
}

/// A run, as far as it is decided beforehand.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What it aims at, if it is not left to chance.
    pub(crate) aim: Option<Aim>,
    /// The circumstances.
    pub(crate) settings: Settings,
    /// What is done, by time.
    pub steps: Vec<Step>,
    /// For everything else that is left to chance.
    pub(crate) random: Random,
    /// The deliberate bug that is switched on.
    pub bug: Option<crate::Bug>,
}

impl Plan {
    /// What a seed means.
    pub fn new(seed: u64) -> Self {
        let plan = Self::with_aim(seed, Aim::of(seed));
        let mut random = Random::new(seed ^ GROWTH);
        if random.one_in(8) { plan.growing(&mut random) } else { plan }
    }

    /// What a seed means where disks fail.
    pub fn with_failing_disks(seed: u64) -> Self {
        Self::with_aim(seed, Some(Aim::Failures))
    }

    /// What a seed means where devices grow.
    pub fn with_growing_devices(seed: u64) -> Self {
        let mut random = Random::new(seed ^ GROWTH);
        // What `new` has drawn before, so that a seed that grows by itself grows the same way.
        random.one_in(8);
        Self::with_aim(seed, Aim::of(seed)).growing(&mut random)
    }

    fn growing(mut self, random: &mut Random) -> Self {
        crate::growth::plan(random, &mut self.steps);
        self
    }

    fn with_aim(seed: u64, aim: Option<Aim>) -> Self {
        let mut random = Random::new(seed);
        let (mut settings, mut steps) = match aim {
            Some(aim) => aims::plan(aim, &mut random),
            None => {
                let wide = random.one_in(6);
                let settings = settings(&mut random, wide);
                let steps = steps(&mut random, wide);
                (settings, steps)
            }
        };
        // By itself, so that everything else of a seed stays what it was.
        settings.disk_options.c_min_rate_kib = Random::new(seed ^ MIN_RATE).pick(&[0, 0, 250, 4_000]);
        if aim != Some(Aim::Failures) {
            run_asynchronously(&mut Random::new(seed ^ ASYNCHRONOUS), &mut settings, &mut steps);
        }
        deeds::add(seed, &mut settings, &mut steps);
        Self { aim, settings, steps, random, bug: None }
    }

    /// Switches the deliberate bug on in an engine.
    #[cfg(feature = "deliberate-bugs")]
    pub(crate) const fn switch_bug_on(&self, engine: &mut udrbd_engine::Engine) {
        if let Some(bug) = self.bug {
            engine.set_bug(bug);
        }
    }

    /// There are no deliberate bugs.
    #[cfg(not(feature = "deliberate-bugs"))]
    pub(crate) const fn switch_bug_on(&self, _: &mut udrbd_engine::Engine) {}

    /// The same with only the steps of these numbers.
    pub fn keep(&mut self, kept: &[usize]) {
        self.steps = kept.iter().filter_map(|index| self.steps.get(*index).cloned()).collect();
    }
}

/// The circumstances of an ordinary run, or of an aimed one before it is given its aim.
pub(crate) fn settings(random: &mut Random, wide: bool) -> Settings {
    // A wide device has more extents than the activity log has slots.
    let data_mib = if wide { random.between(300, 400) } else { random.between(1, 12) };
    let data_sectors = data_mib * 2048 + 8 * random.below(64);
    let metadata_sectors = 8 + 64 + 8 * (data_sectors / 262_144 + 1);
    let odd = if random.one_in(4) { random.below(9) } else { 0 };
    let own = data_sectors + metadata_sectors + odd;
    // A fresh node without a disk would take over the size of a larger peer, and refuse its own disk then.
    let in_sync = wide || random.one_in(2);
    let other = if in_sync && random.one_in(3) { own + random.below(4096) } else { own };
    let volatile = random.pick(&[[true, true], [true, true], [true, false], [false, true], [false, false]]);
    let disk_slowest = random.pick(&[400_000, 2 * MILLISECOND, 20 * MILLISECOND]);
    let network_slowest = random.pick(&[300_000, 2 * MILLISECOND, 30 * MILLISECOND]);
    let (regions, blocks_max) = regions(random, data_sectors / 8, wide);
    Settings {
        backing_sectors: vec![[own, other]],
        in_sync,
        volatile,
        discard_granularity: random.pick(&[0, 0, 512, 4096, 65536]),
        disk_options: disk_options(random),
        net_options: net_options(random),
        handlers: None,
        disk_latency: (20_000, disk_slowest),
        network_latency: (20_000, network_slowest),
        regions: vec![regions],
        blocks_max,
        mix: (random.below(40), random.below(12), if random.one_in(3) { random.below(15) } else { 0 }),
        fua: if random.one_in(2) { random.below(30) } else { 0 },
        partial: if random.one_in(2) { random.below(60) } else { 0 },
        think: random.pick(&[0, 0, 4, 40, 300]) * MILLISECOND,
        audit_events: random.between(40, 400),
    }
}

/// Few places on a small device, so that writes meet; many extents on a wide one.
pub(crate) fn regions(random: &mut Random, blocks: u64, wide: bool) -> (Vec<(u64, u64)>, u64) {
    let mut regions = Vec::new();
    if wide {
        let extents = blocks / 1024;
        for extent in 0..extents {
            regions.push((extent * 1024 + random.below(1000), 1 + random.below(20)));
        }
    } else {
        for _ in 0..random.between(1, 6) {
            let start = random.below(blocks);
            regions.push((start, (1 + random.below(40)).min(blocks - start)));
        }
        regions.push((blocks.saturating_sub(4), 4));
    }
    (regions, random.pick(&[1, 2, 8, 32]))
}

fn disk_options(random: &mut Random) -> DiskOptions {
    let mut options = DiskOptions {
        al_extents: if random.one_in(3) { 1237 } else { 67 },
        resync_rate_kib: random.pick(&[4_000, 40_000, 400_000]),
        c_min_rate_kib: 0,
        discard_zeroes_if_aligned: !random.one_in(4),
        ..DiskOptions::default()
    };
    if random.one_in(2) {
        options.c_plan_ahead = 0;
    } else {
        options.c_fill_target_sectors = random.pick(&[0, 100, 2048, 20_000]);
        options.c_max_rate_kib = 4_194_304;
    }
    options.read_balancing = random.pick(&[
        ReadBalancing::PreferLocal,
        ReadBalancing::PreferLocal,
        ReadBalancing::PreferRemote,
        ReadBalancing::RoundRobin,
        ReadBalancing::LeastPending,
        ReadBalancing::Striping(15),
    ]);
    options
}

fn net_options(random: &mut Random) -> NetOptions {
    let mut options = NetOptions {
        protocol: Protocol::C,
        timeout: Duration::from_millis(random.pick(&[600, 2000, 6000])),
        ping_interval: Duration::from_secs(random.pick(&[1, 3, 10])),
        connect_interval: Duration::from_secs(random.pick(&[1, 3, 10])),
        ko_count: random.pick(&[1, 3, 7]),
        max_buffers: random.pick(&[32, 256, 2048]),
        max_epoch_size: random.pick(&[1, 3, 20, 2048]),
        use_rle: !random.one_in(4),
        ..NetOptions::default()
    };
    if random.one_in(12) {
        options.cram_hmac_alg = "sha1".to_owned();
        options.shared_secret = "between the two of us".to_owned();
    }
    if random.one_in(12) {
        options.data_integrity_alg = "crc32c".to_owned();
    }
    if random.one_in(6) {
        options.csums_alg = "sha1".to_owned();
        options.csums_after_crash_only = random.one_in(2);
    }
    options
}

/// Some runs have protocol A, most of them with a link that is soon congested. I/O is not suspended in those: after it, DRBD
/// does not know what of protocol A has arrived.
fn run_asynchronously(random: &mut Random, settings: &mut Settings, steps: &mut Vec<Step>) {
    if !random.one_in(8) {
        return;
    }
    let options = &mut settings.net_options;
    options.protocol = Protocol::A;
    options.on_congestion = random.pick(&[
        OnCongestion::PullAhead,
        OnCongestion::PullAhead,
        OnCongestion::PullAhead,
        OnCongestion::Block,
    ]);
    options.congestion_fill_sectors = random.pick(&[8, 64, 256, 0]);
    options.congestion_extents = random.pick(&[2, 1237]);
    steps.retain(|step| !step.operation.suspends());
}

/// How long a fault lasts.
pub(crate) fn pause(random: &mut Random) -> u64 {
    match random.below(4) {
        0 => random.between(1, 50) * MILLISECOND,
        1 => random.between(50, 1000) * MILLISECOND,
        2 => random.between(1000, 6000) * MILLISECOND,
        _ => random.between(3, 25) * SECOND,
    }
}

/// What a run is mostly about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Theme {
    /// Everything.
    Any,
    /// Disks that come and go, and are slow.
    Disks,
    /// Power and daemons.
    Power,
    /// The network.
    Network,
    /// Roles.
    Roles,
}

fn steps(random: &mut Random, wide: bool) -> Vec<Step> {
    let count = random.between(4, 24);
    let mut steps = Vec::new();
    let mut at = random.between(0, 3 * SECOND);
    // How eventful the run is between the loads.
    let loads = random.between(20, 60);
    let theme =
        random.pick(&[Theme::Any, Theme::Any, Theme::Disks, Theme::Power, Theme::Network, Theme::Roles]);
    for _ in 0..count {
        let operation = if random.below(100) < loads {
            // A wide device takes many requests before extents leave the activity log.
            let most = if wide { 300 } else { 80 };
            Operation::Load { requests: random.between(1, most) as u32, depth: random.pick(&[1, 2, 4, 16]) }
        } else if random.one_in(2) {
            operation_of(theme, random)
        } else {
            operation(random)
        };
        steps.push(Step { at, operation });
        at += match random.below(3) {
            0 => random.between(0, 20) * MILLISECOND,
            1 => random.between(0, 2000) * MILLISECOND,
            _ => random.between(0, 12) * SECOND,
        };
    }
    steps
}

fn operation_of(theme: Theme, random: &mut Random) -> Operation {
    let node = random.below(2) as NodeId;
    let time = pause(random);
    match (theme, random.below(4)) {
        (Theme::Any, _) => operation(random),
        (Theme::Disks, 0..=1) => Operation::Detach { node, time },
        (Theme::Disks, _) => Operation::SlowDisk { node, time },
        (Theme::Power, 0..=1) => Operation::PowerCut { node, time },
        (Theme::Power, 2) => Operation::Kill { node, time },
        (Theme::Power, _) => Operation::PowerCutBoth { times: [time, pause(random)] },
        (Theme::Network, 0..=1) => Operation::Cut { node, both: random.one_in(2), time },
        (Theme::Network, 2) => Operation::Break { pick: random.bits(), half: random.one_in(3) },
        (Theme::Network, _) => Operation::SlowNetwork { time },
        (Theme::Roles, 0..=1) => Operation::SwitchOver,
        (Theme::Roles, 2) => Operation::Promote { node },
        (Theme::Roles, _) => Operation::Disconnect { node, time, force: random.one_in(3) },
    }
}

fn operation(random: &mut Random) -> Operation {
    let node = random.below(2) as NodeId;
    let time = pause(random);
    match random.below(42) {
        0..=4 => Operation::Cut { node, both: random.one_in(2), time },
        5..=8 => Operation::Break { pick: random.bits(), half: random.one_in(3) },
        9..=13 => Operation::PowerCut { node, time },
        14 => Operation::PowerCutBoth { times: [time, pause(random)] },
        15..=18 => Operation::Kill { node, time },
        19..=21 => Operation::Disconnect { node, time, force: random.one_in(3) },
        22..=24 => Operation::SwitchOver,
        25..=27 => Operation::Promote { node },
        28 => Operation::Demote { node },
        29..=30 => Operation::Detach { node, time },
        31 => Operation::Invalidate { node },
        32 => Operation::InvalidateRemote { node },
        33 => Operation::Pause { node, time },
        34 => Operation::Suspend { node, time },
        35..=36 => Operation::Down { node, time },
        37..=38 => Operation::SlowDisk { node, time },
        39 => Operation::SlowNetwork { time },
        _ => Operation::Resolve,
    }
}
