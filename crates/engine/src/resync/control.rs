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
    want_kib: u32,
}

impl Controller {
    /// The rate last wanted.
    pub(crate) const fn want_kib(&self) -> u32 {
        self.want_kib
    }

    /// A step has asked for so many blocks.
    pub(super) const fn asked(&mut self, blocks: u64) {
        self.in_flight += blocks as i64 * 8;
    }

    /// The blocks this step may ask for; `arrived` sectors came since the last.
    pub(super) fn step(&mut self, options: &DiskOptions, max_buffers: u32, arrived: u64) -> i64 {
        let arrived = arrived as i64;
        self.in_flight -= arrived;
        let wanted = if options.c_plan_ahead == 0 {
            // The plan is forgotten with the dynamic control.
            self.plan.clear();
            self.want_kib = options.resync_rate_kib;
            i64::from(options.resync_rate_kib) / 40
        } else {
            let blocks = self.plan_step(options, arrived) / 8;
            self.want_kib = (blocks * 40) as u32;
            blocks
        };
        wanted.min(i64::from(max_buffers / 2) - self.in_flight / 8)
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
        (arrived + now).clamp(0, i64::from(options.c_max_rate_kib) * 2 / 10)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worked_trace_of_the_specification() {
        let options = DiskOptions::default();
        let mut controller = Controller::default();
        let mut arrived = 0;
        let mut blocks = Vec::new();
        for _ in 0..=21 {
            let number = controller.step(&options, 2048, arrived);
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
        assert_eq!(controller.step(&options, 2048, 0), 102);
        assert_eq!(controller.want_kib(), 4096);
        controller.asked(1000);
        assert_eq!(controller.step(&options, 2048, 0), 24);
    }
}
