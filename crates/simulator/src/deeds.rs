//! What plans have beside faults and loads: verifies, two Primaries, and operators who give any command at any time. Each is
//! drawn apart from the rest, so that a seed without it stays what it was.

use udrbd_engine::interface::{Command, DiskOptions, NetOptions, Protocol, ResizeRequest};
use udrbd_units::{ConnectionState, DiskState, Minor};

use crate::machine::number;
use crate::network::NodeId;
use crate::node::Purpose;
use crate::plan::{Operation, SECOND, Settings, Step, pause};
use crate::random::Random;
use crate::world::{Due, Restore, World};

/// What makes `fencing` of a seed.
const FENCING: u64 = 0x6665_6e63;
/// What makes two Primaries.
const TWO_PRIMARIES: u64 = 0x7477_6f70;
/// What makes verifies.
const VERIFIES: u64 = 0x7665_7269;
/// What makes disks rot before verifies.
const ROT: u64 = 0x726f_7474;
/// What makes commands out of place.
const OPERATORS: u64 = 0x6f70_6572;

/// What makes a second volume.
const SEVERAL_VOLUMES: u64 = 0x766f_6c73;

/// Adds to the plan of a seed what is drawn apart from it.
pub(crate) fn add(seed: u64, settings: &mut Settings, steps: &mut Vec<Step>) {
    crate::several::plan(&mut Random::new(seed ^ SEVERAL_VOLUMES), settings);
    crate::fencing::plan(&mut Random::new(seed ^ FENCING), settings);
    let mut random = Random::new(seed ^ TWO_PRIMARIES);
    if random.one_in(8) && settings.net_options.protocol != Protocol::A {
        settings.net_options.allow_two_primaries = true;
        let count = random.between(2, 6);
        sprinkle(&mut random, steps, count, |_| Operation::PromoteBoth);
    }
    let mut random = Random::new(seed ^ VERIFIES);
    if random.one_in(8) {
        "crc32c".clone_into(&mut settings.net_options.verify_alg);
        let count = random.between(1, 4);
        sprinkle(&mut random, steps, count, |random| Operation::Verify { node: random.below(2) as NodeId });
        let mut random = Random::new(seed ^ ROT);
        if random.one_in(2) {
            crate::rot::plan(&mut random, steps);
        }
    }
    let mut random = Random::new(seed ^ OPERATORS);
    if random.one_in(8) && !settings.keeps_one_history() {
        let count = random.between(2, 12);
        sprinkle(&mut random, steps, count, |random| Operation::Deed {
            node: random.below(2) as NodeId,
            which: random.below(DEEDS) as u32,
            time: pause(random),
        });
    }
    if settings.keeps_one_history() {
        // Who resumes I/O that is frozen, or takes the disk of a Primary away and brings it back alone, overrides it.
        steps.retain(|step| !step.operation.overrides_the_cluster());
    }
}

/// Puts more steps between those of a plan.
pub(crate) fn sprinkle(
    random: &mut Random,
    steps: &mut Vec<Step>,
    count: u64,
    mut operation: impl FnMut(&mut Random) -> Operation,
) {
    let end = steps.last().map_or(0, |step| step.at) + 3 * SECOND;
    for _ in 0..count {
        let at = random.between(SECOND, end.max(2 * SECOND));
        let operation = operation(random);
        steps.push(Step { at, operation });
    }
    steps.sort_by_key(|step| step.at);
}

/// How many deeds there are.
const DEEDS: u64 = 18;

impl World {
    /// Both nodes become Primary.
    pub(crate) fn promote_both(&mut self) {
        for node in 0..2 {
            if self.nodes[node].least_disk_state() == DiskState::UpToDate
                && self.nodes[node].least_connection() == ConnectionState::Connected
            {
                self.try_promotion(node);
            }
        }
    }

    pub(crate) fn verify(&mut self, node: NodeId) {
        self.coverage.fault("verify");
        let volume = self.some_volume();
        let command = Command::Verify { volume: number(volume), start: None, stop: None };
        self.command(node, volume, Purpose::Other, command);
    }

    /// An operator gives a command that nobody asked for. What cannot be done now is refused.
    pub(crate) fn deed(&mut self, node: NodeId, which: u32, time: u64) {
        self.coverage.fault("command out of place");
        let place = self.some_volume();
        let volume = number(place);
        let command = match which {
            0 => Command::Outdate { volume },
            1 => Command::NewCurrentUuid { volume, clear_bitmap: false },
            2 => {
                self.nodes[node].volumes[place].wants_disk = false;
                self.nodes[node].volumes[place].gives_disk_up = true;
                self.after(time, Due::Over(Restore::Disk(node)));
                self.command(node, place, Purpose::Detach, Command::Detach { volume, force: true });
                return;
            }
            3 | 4 => {
                self.command(node, 0, Purpose::Disconnect, Command::Disconnect { force: which == 4 });
                return;
            }
            5 => {
                self.after(time, Due::Over(Restore::Resync(node)));
                Command::PauseSync { volume }
            }
            6 => {
                self.after(time, Due::Over(Restore::Io(node)));
                Command::SuspendIo { volume }
            }
            7 => Command::ResumeIo { volume },
            8 => {
                self.try_promotion(node);
                return;
            }
            9 => Command::Secondary { volume, held_open: false },
            10 => {
                let options = DiskOptions {
                    resync_rate_kib: self.random.pick(&[4_000, 40_000]),
                    al_extents: self.random.pick(&[67, 1237]),
                    ..self.plan.settings.disk_options.clone()
                };
                Command::DiskOptions { volume, options: Box::new(options) }
            }
            11 => {
                let options = NetOptions {
                    max_epoch_size: self.random.pick(&[1, 20, 2048]),
                    ..self.plan.settings.net_options.clone()
                };
                Command::NetOptions(Box::new(options))
            }
            12 => Command::NewMinor { volume, minor: Minor(place as u32) },
            13 => {
                self.command(node, place, Purpose::DelMinor, Command::DelMinor { volume });
                return;
            }
            14 => Command::Resize { volume, request: ResizeRequest::default() },
            15 => Command::ResumeSync { volume },
            16 => {
                self.invalidate(node, place, node);
                return;
            }
            _ => {
                self.verify(node);
                return;
            }
        };
        self.command(node, place, Purpose::Other, command);
    }
}
