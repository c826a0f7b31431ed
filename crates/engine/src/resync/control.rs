//! How many blocks a step of a resync may ask for (io spec 15.5).

use crate::interface::DiskOptions;

/// The controller's memory: a ring of corrections, one for each step of `c-plan-ahead`.
#[derive(Debug, Default)]
pub(crate) struct Controller {
    plan: Vec<i64>,
    head: usize,
    total: i64,
    /// Sectors asked for and not arrived.
    in_flight: i64,
    /// Blocks that may still be asked for before the next step.
    granted: i64,
    /// The last request of the step may have a block more.
    grows: bool,
    want_kib: u32,
}

/// What bounds the blocks on their way, beside the rate.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    /// `max-buffers`: half of it may be asked for and not arrived, and all of it not arrived or not finished.
    pub(super) max_buffers: u32,
    /// Sectors that have arrived since the last step.
    pub(super) arrived: u64,
    /// Sectors that are being written, or read for a comparison.
    pub(super) unfinished: u64,
}

impl Controller {
    /// The rate last wanted.
    pub(crate) const fn want_kib(&self) -> u32 {
        self.want_kib
    }

    /// So many blocks have been asked for.
    pub(super) const fn asked(&mut self, blocks: u64) {
        self.in_flight += blocks as i64 * 8;
        self.granted -= blocks as i64;
    }

    /// The blocks that this step may ask for, once there is room for them.
    pub(super) const fn granted(&self) -> i64 {
        self.granted
    }

    /// Whether the request with which all that is granted has been asked for may have a block more. DRBD does not count the
    /// first block of a request before it ends the step, and so comes up to speed twice as fast where neighbours are out of
    /// sync. Not where a rate is set: that is kept.
    pub(super) const fn last_request_grows(&self) -> bool {
        self.grows
    }

    /// What this step may still ask for is given up: the next place is busy.
    pub(super) const fn end_step(&mut self) {
        self.granted = 0;
    }

    /// The blocks that may be asked for between two steps: where a step may ask for more than may be on the way at a time, the
    /// rest follows when half of that has arrived. DRBD asks for it with the next step, that is never (io spec 22).
    pub(super) fn refill(&self, room: Room) -> i64 {
        let in_flight = (self.in_flight - room.arrived as i64) / 8;
        let most = i64::from(room.max_buffers / 2);
        if in_flight > most / 2 {
            return 0;
        }
        let unwritten = i64::from(room.max_buffers) - in_flight - room.unfinished as i64 / 8;
        self.granted.min(most - in_flight).min(unwritten)
    }

    /// The blocks this step may ask for at once.
    pub(super) fn step(&mut self, options: &DiskOptions, room: Room) -> i64 {
        let arrived = room.arrived as i64;
        self.in_flight -= arrived;
        let wanted = if options.c_plan_ahead == 0 {
            // The plan is forgotten with the dynamic control.
            self.plan.clear();
            self.grows = false;
            self.want_kib = options.resync_rate_kib;
            i64::from(options.resync_rate_kib) / 40
        } else {
            let (sectors, most) = (self.plan_step(options, arrived), max_step_sectors(options));
            self.grows = sectors < most;
            let blocks = sectors / 8;
            self.want_kib = (blocks * 40) as u32;
            blocks
        };
        self.granted = wanted;
        let in_flight = self.in_flight / 8;
        let unwritten = i64::from(room.max_buffers) - in_flight - room.unfinished as i64 / 8;
        wanted.min(i64::from(room.max_buffers / 2) - in_flight).min(unwritten)
    }

    /// The sectors the plan allows for this step.
    fn plan_step(&mut self, options: &DiskOptions, arrived: i64) -> i64 {
        let steps = options.c_plan_ahead as usize;
        if self.plan.len() != steps {
            self.plan = vec![0; steps];
            self.head = 0;
            self.total = 0;
        }
        let want = if self.in_flight + arrived == 0 {
            (i64::from(options.resync_rate_kib) * 2 / 10) * steps as i64
        } else if options.c_fill_target_sectors != 0 {
            i64::from(options.c_fill_target_sectors)
        } else {
            arrived * i64::from(options.c_delay_target)
        };
        let correction = (want - self.in_flight - self.total) / steps as i64;
        for planned in &mut self.plan {
            *planned += correction;
        }
        self.total += correction * steps as i64;
        let now = std::mem::take(&mut self.plan[self.head]);
        self.head = (self.head + 1) % steps;
        self.total -= now;
        (arrived + now).clamp(0, max_step_sectors(options))
    }
}

/// The sectors of a step at `c-max-rate`.
fn max_step_sectors(options: &DiskOptions) -> i64 {
    i64::from(options.c_max_rate_kib) * 2 / 10
}

#[cfg(test)]
mod tests {
    use super::*;

    fn room(arrived: u64) -> Room {
        Room { max_buffers: 2048, arrived, unfinished: 0 }
    }

    #[test]
    fn the_worked_trace_of_the_specification() {
        let options = DiskOptions::default();
        let mut controller = Controller::default();
        let mut arrived = 0;
        let mut blocks = Vec::new();
        for _ in 0..=21 {
            let number = controller.step(&options, room(arrived));
            controller.asked(number as u64);
            blocks.push(number);
            arrived = number as u64 * 8;
        }
        assert_eq!(&blocks[..10], &[6, 7, 8, 9, 10, 11, 12, 13, 14, 15]);
        assert_eq!((blocks[12], blocks[16], blocks[19], blocks[20], blocks[21]), (18, 22, 28, 24, 25));
    }

    #[test]
    fn a_fixed_rate_is_cut_by_max_buffers() {
        let options = DiskOptions { c_plan_ahead: 0, resync_rate_kib: 4096, ..DiskOptions::default() };
        let mut controller = Controller::default();
        assert_eq!(controller.step(&options, room(0)), 102);
        assert_eq!(controller.want_kib(), 4096);
        controller.asked(1000);
        assert_eq!(controller.step(&options, room(0)), 24);
    }

    #[test]
    fn what_a_step_may_ask_for_beyond_max_buffers_follows_when_half_has_arrived() {
        // 4000 blocks a step.
        let options = DiskOptions { c_plan_ahead: 0, resync_rate_kib: 160_000, ..DiskOptions::default() };
        let mut controller = Controller::default();
        assert_eq!(controller.step(&options, room(0)), 1024);
        controller.asked(1024);
        assert_eq!(controller.refill(room(511 * 8)), 0);
        assert_eq!(controller.refill(room(512 * 8)), 512);
        assert_eq!(controller.refill(room(1024 * 8)), 1024);
        // What has arrived and is not written takes room as well.
        let unfinished = 1500 * 8;
        assert_eq!(controller.refill(Room { unfinished, ..room(1024 * 8) }), 548);
        controller.asked(1024);
        controller.asked(1024);
        assert_eq!(controller.refill(room(3072 * 8)), 928, "the rate is never exceeded");
        controller.asked(928);
        assert_eq!(controller.refill(room(4000 * 8)), 0);
        assert_eq!(controller.step(&options, Room { unfinished: 2000 * 8, ..room(4000 * 8) }), 48);
        controller.end_step();
        assert_eq!(controller.refill(room(0)), 0);
    }
}
