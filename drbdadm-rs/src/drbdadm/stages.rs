//! What is done in stages, after all resources were walked (cli spec 4).

use super::Exit;
use super::commands::Function;
use super::session::{Session, Work};

/// The stages in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// Creating objects, and removing what is to go.
    CreateResource,
    /// Options of resources.
    AdjustResource,
    /// Creating minors.
    PrepareDisk,
    /// Attaching.
    AdjustDisk,
    /// Disconnecting.
    PrepareNet,
    /// Connecting.
    AdjustNet,
}

/// All stages with their names in the progress output.
const STAGES: &[(Stage, &str)] = &[
    (Stage::CreateResource, "create res"),
    (Stage::AdjustResource, "adjust res"),
    (Stage::PrepareDisk, "prepare disk"),
    (Stage::AdjustDisk, "adjust disk"),
    (Stage::PrepareNet, "prepare net"),
    (Stage::AdjustNet, "adjust net"),
];

/// One step to do.
#[derive(Debug, Clone)]
struct Step {
    stage: Stage,
    function: Function,
    work: Work,
}

/// The steps scheduled so far.
#[derive(Debug, Clone, Default)]
pub(super) struct Stages {
    steps: Vec<Step>,
}

impl Session<'_> {
    /// Schedules a step.
    pub(super) fn schedule(&mut self, stage: Stage, function: Function, work: &Work, verb: &str) {
        let work = Work { verb: verb.to_owned(), ..work.clone() };
        self.stages.steps.push(Step { stage, function, work });
    }

    /// Schedules what `up` does to a volume, and first to its resource.
    pub(super) fn schedule_up(&mut self, work: &Work) -> i32 {
        if self.last_up.as_deref() != Some(work.resource.name.as_str()) {
            self.last_up = Some(work.resource.name.clone());
            let whole = Work { volume: None, ..work.clone() };
            self.schedule(Stage::CreateResource, Function::NewResource, &whole, "new-resource");
            self.schedule(Stage::AdjustNet, Function::Connect, &whole, "connect");
        }
        self.schedule(Stage::CreateResource, Function::NewMinor, work, "new-minor");
        self.schedule(Stage::AdjustDisk, Function::Attach, work, "attach");
        0
    }

    /// Does what was scheduled. A stage with a failure ends it, but for the progress form; the status is 1 then.
    pub(super) fn run_stages(&mut self) -> Result<i32, Exit> {
        if self.shows_progress {
            self.print("[");
        }
        let steps = std::mem::take(&mut self.stages.steps);
        let mut status = 0;
        for (stage, title) in STAGES {
            let steps: Vec<Step> = steps.iter().filter(|step| step.stage == *stage).cloned().collect();
            if self.run_stage(*stage, title, steps)? != 0 {
                status = 1;
                if !self.shows_progress {
                    return Ok(status);
                }
            }
        }
        if self.shows_progress {
            self.print("\n]\n");
        }
        Ok(status)
    }

    fn run_stage(&mut self, stage: Stage, title: &str, steps: Vec<Step>) -> Result<i32, Exit> {
        if self.shows_progress && !steps.is_empty() {
            self.print(&format!("\n{title:>15}:"));
        }
        let mut status = 0;
        let mut last = None;
        for mut step in steps {
            let identity = step.work.identity;
            let name = step.work.resource.name.clone();
            let skipped = self.skipped.contains(&identity);
            if self.shows_progress && last != Some(identity) {
                self.print(&if skipped { format!(" [skipped:{name}]") } else { format!(" {name}") });
            }
            last = Some(identity);
            if skipped {
                if !self.shows_progress {
                    let (program, verb) = (self.program.clone(), &step.work.verb);
                    self.complain(&format!("{program}: {verb} {name}: skipped due to earlier error\n"));
                }
                continue;
            }
            let failure = self.perform(step.function, &mut step.work)?;
            if failure != 0 {
                // Without its objects nothing more can be done for a resource; other failures leave room for it.
                if matches!(stage, Stage::CreateResource | Stage::PrepareDisk) {
                    self.skipped.insert(identity);
                }
                if self.shows_progress {
                    self.print(&format!(":failed({}:{failure})", step.work.verb));
                }
            }
            status = status.max(failure);
        }
        Ok(status)
    }
}
