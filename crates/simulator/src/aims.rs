//! Plans that concentrate on a narrow window. Chance alone meets some rules too seldom: an extent has to leave the activity
//! log while the peer still flushes what was written there, and both have to lose power just then. An aimed plan makes the
//! window wide, and times its faults by what the nodes do.

use crate::network::NodeId;
use crate::plan::{MILLISECOND, Moment, Operation, SECOND, Settings, Step, pause, settings};
use crate::random::Random;

/// What a plan concentrates on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Aim {
    /// Many requests at once in more extents than the activity log has slots (io spec I2, I3).
    Log,
    /// Caches that hold writes of several epochs when the power of a node goes (io spec I6, I12).
    Epochs,
    /// Nodes and disks that come back under load, and what happens while they are brought up to date (io spec I8 to I11).
    Resync,
    /// Disks that fail, in the middle of anything.
    Failures,
}

impl Aim {
    /// The aim of a seed; most have none.
    pub(crate) fn of(seed: u64) -> Option<Self> {
        match Random::new(!seed).below(9) {
            0 => Some(Self::Log),
            1 => Some(Self::Epochs),
            2 => Some(Self::Resync),
            3 => Some(Self::Failures),
            _ => None,
        }
    }
}

/// The steps of a plan, in the making.
struct Script<'a> {
    random: &'a mut Random,
    steps: Vec<Step>,
    at: u64,
}

impl Script<'_> {
    fn step(&mut self, operation: Operation) {
        self.steps.push(Step { at: self.at, operation });
    }

    fn wait(&mut self, low: u64, high: u64) {
        self.at += self.random.between(low, high);
    }

    fn load(&mut self, low: u64, high: u64, depths: &[u32]) {
        let requests = self.random.between(low, high) as u32;
        let depth = self.random.pick(depths);
        self.step(Operation::Load { requests, depth });
    }

    /// Does something shortly after a moment that `node` will come to, after it has come up to `most` times.
    fn when(&mut self, node: NodeId, moments: &[Moment], most: u64, then: Operation) {
        let moment = self.random.pick(moments);
        let count = self.random.between(1, most) as u32;
        let delay = self.delay();
        self.step(Operation::When { node, moment, count, delay, then: Box::new(then) });
    }

    fn delay(&mut self) -> u64 {
        match self.random.below(3) {
            0 => 0,
            1 => self.random.below(MILLISECOND),
            _ => self.random.below(20 * MILLISECOND),
        }
    }

    /// The power of `node` goes at a moment of the watched node, and perhaps that of the other a little later.
    fn power_cut_when(&mut self, watched: NodeId, moments: &[Moment], most: u64, node: NodeId) {
        let time = pause(self.random);
        if self.random.one_in(2) {
            self.when(watched, moments, most, Operation::PowerCut { node, time });
            return;
        }
        let (moment, count) = (self.random.pick(moments), self.random.between(1, most) as u32);
        let (first, gap) = (self.delay(), self.delay());
        for (node, delay) in [(node, first), (1 - node, first + gap)] {
            let then = Box::new(Operation::PowerCut { node, time: pause(self.random) });
            self.step(Operation::When { node: watched, moment, count, delay, then });
        }
    }
}

/// The plan of an aim.
pub(crate) fn plan(aim: Aim, random: &mut Random) -> (Settings, Vec<Step>) {
    let mut settings = settings(random, aim == Aim::Log);
    // Time is for the window: the nodes are equal from the start, find each other soon, and are looked at often.
    settings.in_sync |= !random.one_in(8);
    settings.net_options.connect_interval = udrbd_engine::interface::Duration::from_secs(1);
    settings.audit_events = random.between(10, 100);
    let at = random.between(SECOND, 4 * SECOND);
    let mut script = Script { random, steps: Vec::new(), at };
    match aim {
        Aim::Log => log(&mut settings, &mut script),
        Aim::Epochs => epochs(&mut settings, &mut script),
        Aim::Resync => resync(&mut settings, &mut script),
        Aim::Failures => failures(&mut settings, &mut script),
    }
    (settings, script.steps)
}

fn log(settings: &mut Settings, script: &mut Script<'_>) {
    settings.disk_options.al_extents = 67;
    settings.think = 0;
    settings.fua = 0;
    settings.blocks_max = script.random.pick(&[1, 2, 8]);
    settings.mix.0 = script.random.below(10);
    settings.mix.1 = script.random.below(4);
    let primary = script.random.below(2) as NodeId;
    settings.volatile[1 - primary] = true;
    script.step(Operation::Promote { node: primary });
    for _ in 0..script.random.between(1, 3) {
        // Only when most slots are held does a write take one that another has just let go.
        script.load(60, 240, &[40, 64, 100]);
        for _ in 0..script.random.below(3) {
            let (node, moments) = watched(script.random, primary);
            let victim = script.random.below(2) as NodeId;
            script.power_cut_when(node, moments, 80, victim);
        }
        script.wait(0, 6 * SECOND);
    }
}

fn epochs(settings: &mut Settings, script: &mut Script<'_>) {
    let primary = script.random.below(2) as NodeId;
    settings.volatile[1 - primary] = true;
    settings.think = script.random.pick(&[0, 0, 2, 40]) * MILLISECOND;
    script.step(Operation::Promote { node: primary });
    for _ in 0..script.random.between(1, 5) {
        script.load(20, 120, &[1, 2, 4, 16]);
        for _ in 0..script.random.between(1, 2) {
            let (node, moments) = watched(script.random, primary);
            let victim = if script.random.one_in(3) { primary } else { 1 - primary };
            script.power_cut_when(node, moments, 50, victim);
        }
        if script.random.one_in(6) {
            script.step(Operation::SwitchOver);
        }
        script.wait(0, 8 * SECOND);
    }
}

/// What is watched in the life of a mirrored write.
const fn watched(random: &mut Random, primary: NodeId) -> (NodeId, &'static [Moment]) {
    if random.one_in(3) {
        (primary, &[Moment::Barrier, Moment::DataSubmitted, Moment::DataWritten, Moment::MetadataWritten])
    } else {
        (1 - primary, &[Moment::WriteAck, Moment::BarrierAck, Moment::DataWritten, Moment::Flushed])
    }
}

fn resync(settings: &mut Settings, script: &mut Script<'_>) {
    settings.mix = (script.random.pick(&[10, 50, 80]), script.random.below(5), script.random.below(5));
    settings.think = script.random.pick(&[0, 0, 4]) * MILLISECOND;
    let primary = script.random.below(2) as NodeId;
    script.step(Operation::Promote { node: primary });
    for _ in 0..script.random.between(1, 4) {
        script.load(10, 60, &[2, 16]);
        script.wait(0, 2 * SECOND);
        let time = script.random.between(SECOND / 10, 4 * SECOND);
        // Who has to be brought up to date afterwards.
        let target = script.random.below(2) as NodeId;
        let absence = match script.random.below(if target == primary { 2 } else { 6 }) {
            0 => Operation::Detach { node: target, time },
            1 => Operation::PowerCut { node: target, time },
            2 => Operation::Kill { node: target, time },
            3 => Operation::Cut { node: target, both: true, time: time + 2 * SECOND },
            4 => Operation::Disconnect { node: target, time, force: false },
            _ => Operation::Detach { node: target, time },
        };
        script.step(absence);
        script.wait(0, SECOND / 2);
        script.load(20, 80, &[4, 16]);
        during_resync(script, target);
        script.wait(0, 10 * SECOND);
    }
}

/// What happens while a node is brought up to date.
fn during_resync(script: &mut Script<'_>, target: NodeId) {
    let source = 1 - target;
    let sending: &[Moment] = &[Moment::ResyncData];
    let time = script.random.between(SECOND / 10, 6 * SECOND);
    if script.random.one_in(2) {
        script.when(source, sending, 2, Operation::SlowDisk { node: target, time });
    }
    if script.random.one_in(2) {
        script.when(source, sending, 8, Operation::SwitchOver);
    }
    // Clients are there at the right time.
    let requests = script.random.between(10, 80) as u32;
    script.when(source, sending, 8, Operation::Load { requests, depth: 16 });
    let writing: &[Moment] = &[Moment::DataSubmitted, Moment::DataWritten, Moment::ResyncAck];
    match script.random.below(8) {
        0..=1 => script.power_cut_when(target, writing, 40, target),
        2 => script.power_cut_when(target, writing, 40, source),
        3 => {
            let (pick, half) = (script.random.bits(), script.random.one_in(3));
            script.when(target, writing, 40, Operation::Break { pick, half });
        }
        4..=5 => {
            // Back so soon that what the resync gave to a slow disk is still there.
            let (node, time) = (script.random.below(2) as NodeId, script.random.below(SECOND));
            script.when(target, writing, 20, Operation::Detach { node, time });
        }
        6 => {
            // The source stays away: the target alone has to know what its disk is worth.
            let (moment, count) = (script.random.pick(writing), script.random.between(1, 40) as u32);
            for (node, time) in [(target, SECOND / 10), (source, 20 * SECOND)] {
                let then = Box::new(Operation::PowerCut { node, time });
                script.step(Operation::When { node: target, moment, count, delay: 0, then });
            }
            script.wait(SECOND, 8 * SECOND);
            script.step(Operation::Promote { node: target });
        }
        _ => {}
    }
}

fn failures(settings: &mut Settings, script: &mut Script<'_>) {
    settings.think = script.random.pick(&[0, 4, 40]) * MILLISECOND;
    let primary = script.random.below(2) as NodeId;
    script.step(Operation::Promote { node: primary });
    for _ in 0..script.random.between(1, 4) {
        script.load(20, 80, &[1, 4, 16]);
        for _ in 0..script.random.between(1, 2) {
            let (watched, moments) = if script.random.one_in(3) {
                let moments: &[Moment] = &[Moment::ResyncData, Moment::ResyncAck];
                (script.random.below(2) as NodeId, moments)
            } else {
                watched(script.random, primary)
            };
            let node = script.random.below(2) as NodeId;
            let (metadata, time) = (script.random.one_in(3), pause(script.random));
            script.when(watched, moments, 50, Operation::FailDisk { node, metadata, time });
        }
        if script.random.one_in(3) {
            let (node, moments) = watched(script.random, primary);
            let victim = script.random.below(2) as NodeId;
            script.power_cut_when(node, moments, 50, victim);
        }
        if script.random.one_in(4) {
            script.step(Operation::SwitchOver);
        }
        script.wait(0, 12 * SECOND);
    }
}
