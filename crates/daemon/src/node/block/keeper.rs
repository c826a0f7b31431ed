//! The thread of a disk: commands to the ublk driver block, some until requests of the very disk have been served, and
//! the library behind them keeps its ring with the thread. It is idle but when a disk is made or ended.

use std::sync::mpsc;
use std::time::Duration;

use tokio::sync::oneshot;
use udrbd_runtime::Errno;
use udrbd_runtime::ublk::{Control, ControlError, Mark, Parameters, Source};
use udrbd_units::Sector;

/// How long the driver may take. Some kernels never finish.
const PATIENCE: Duration = Duration::from_secs(30);

type Answer = oneshot::Sender<Result<(), ControlError>>;

enum Job {
    Start(Answer),
    Resize(Sector, Answer),
    Stop(Answer),
    StopUnused(Answer),
    Delete(Answer),
}

/// Where a disk comes from.
pub(super) enum Origin {
    /// A new one, with this number if it is free.
    New { number: u32, mark: Mark, parameters: Parameters },
    /// One whose server has died.
    Orphan { number: u32 },
}

/// Keeps a disk. Dropping it leaves the disk as it is.
pub(super) struct Keeper {
    jobs: mpsc::Sender<Job>,
    number: u32,
}

impl Keeper {
    /// Makes a disk, or takes one over; and where its queue gets its requests from.
    pub(super) async fn make(origin: Origin) -> Result<(Self, Source), ControlError> {
        let (jobs, todo) = mpsc::channel();
        let (made, outcome) = oneshot::channel();
        let work = move || keep(origin, made, &todo);
        let spawned = std::thread::Builder::new().name("ublk".to_owned()).spawn(work);
        spawned.map_err(|_| ControlError { step: "start a thread", errno: Errno::EAGAIN })?;
        let (number, source) = in_time("add a disk", outcome).await?;
        Ok((Self { jobs, number }, source))
    }

    /// The disk is `/dev/ublkbNUMBER`.
    pub(super) const fn number(&self) -> u32 {
        self.number
    }

    /// See [`Control::start`].
    pub(super) async fn start(&self) -> Result<(), ControlError> {
        self.run("start the disk", Job::Start).await
    }

    /// See [`Control::resize`].
    pub(super) async fn resize(&self, size: Sector) -> Result<(), ControlError> {
        self.run("resize the disk", |answer| Job::Resize(size, answer)).await
    }

    /// See [`Control::stop`].
    pub(super) async fn stop(&self) -> Result<(), ControlError> {
        self.run("stop the disk", Job::Stop).await
    }

    /// See [`Control::stop_unused`].
    pub(super) async fn stop_unused(&self) -> Result<(), ControlError> {
        self.run("stop the disk", Job::StopUnused).await
    }

    /// See [`Control::delete`].
    pub(super) async fn delete(&self) -> Result<(), ControlError> {
        self.run("delete the disk", Job::Delete).await
    }

    async fn run(&self, step: &'static str, job: impl FnOnce(Answer) -> Job) -> Result<(), ControlError> {
        let (answer, outcome) = oneshot::channel();
        let gone = ControlError { step, errno: Errno::ESRCH };
        self.jobs.send(job(answer)).map_err(|_| gone)?;
        in_time(step, outcome).await
    }
}

async fn in_time<T>(
    step: &'static str,
    outcome: oneshot::Receiver<Result<T, ControlError>>,
) -> Result<T, ControlError> {
    match tokio::time::timeout(PATIENCE, outcome).await {
        Ok(Ok(result)) => result,
        Ok(Err(_)) => Err(ControlError { step, errno: Errno::ESRCH }),
        Err(_) => Err(ControlError { step, errno: Errno::ETIMEDOUT }),
    }
}

/// Whoever waits for an answer may have given up.
fn keep(
    origin: Origin,
    made: oneshot::Sender<Result<(u32, Source), ControlError>>,
    jobs: &mpsc::Receiver<Job>,
) {
    let control = match origin {
        Origin::New { number, mark, parameters } => Control::add(Some(number), mark, &parameters),
        Origin::Orphan { number } => Control::take_over(number),
    };
    let control = match control {
        Ok(control) => control,
        Err(error) => {
            let _ = made.send(Err(error));
            return;
        }
    };
    let source = control.source();
    if made.send(source.map(|source| (control.number(), source))).is_err() {
        let _ = control.delete();
        return;
    }
    while let Ok(job) = jobs.recv() {
        match job {
            Job::Start(answer) => {
                let _ = answer.send(control.start());
            }
            Job::Resize(size, answer) => {
                let _ = answer.send(control.resize(size));
            }
            Job::Stop(answer) => {
                let _ = answer.send(control.stop());
            }
            Job::StopUnused(answer) => {
                let _ = answer.send(control.stop_unused());
            }
            Job::Delete(answer) => {
                let _ = answer.send(control.delete());
                return;
            }
        }
    }
}
