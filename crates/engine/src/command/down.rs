//! `down`: everything of the resource, in DRBD's order (states spec 19.3).

use udrbd_units::DiskState;

use super::{Demotion, Disconnecting, Running};
use crate::Engine;
use crate::change::{DeviceRequest, Verbosity};
use crate::interface::{CommandId, Failure, Time};
use crate::state::{StateChangeResult as Code, StateRequest};

#[derive(Debug)]
enum Step {
    Demote(usize, Option<Demotion>),
    Disconnect(Disconnecting),
    Detach(usize, Option<DeviceRequest>),
}

/// A `down` under way.
#[derive(Debug)]
pub(crate) struct GoingDown {
    id: CommandId,
    step: Step,
    /// When it was given.
    since: Time,
}

impl GoingDown {
    /// When to look at it again if nothing happens, for its own sake.
    pub(crate) const fn timeout(&self) -> Option<Time> {
        match &self.step {
            Step::Disconnect(disconnecting) => disconnecting.timeout(),
            _ => None,
        }
    }

    /// When it was given.
    pub(crate) const fn since(&self) -> Time {
        self.since
    }
}

impl Engine {
    /// `down`.
    pub(super) fn go_down(&mut self, id: CommandId) {
        self.commands.push(Running::GoingDown(GoingDown {
            id,
            step: Step::Demote(0, None),
            since: self.now,
        }));
    }

    pub(super) fn run_going_down(&mut self, going: &mut GoingDown) -> bool {
        match self.poll_going_down(going) {
            None => false,
            Some(result) => {
                self.reply(going.id, result);
                true
            }
        }
    }

    fn poll_going_down(&mut self, going: &mut GoingDown) -> Option<Result<(), Failure>> {
        let id = going.id;
        self.give_up_silent_disks(going.since);
        loop {
            going.step = match &mut going.step {
                Step::Demote(index, _) if *index >= self.volumes.len() => {
                    if self.connection.options.is_some() {
                        Step::Disconnect(Disconnecting::new(id, false))
                    } else {
                        Step::Detach(0, None)
                    }
                }
                Step::Demote(index, _) if self.volumes[*index].removed => Step::Demote(*index + 1, None),
                Step::Demote(index, demotion) => {
                    let mut present = demotion.take().unwrap_or_else(|| Self::new_demotion(id, *index));
                    match self.poll_demotion(&mut present) {
                        None => {
                            *demotion = Some(present);
                            return None;
                        }
                        Some(Err(code)) => return Some(Err(failed(code, "failed to demote"))),
                        Some(Ok(())) => Step::Demote(*index + 1, None),
                    }
                }
                Step::Disconnect(disconnecting) => match self.poll_disconnecting(disconnecting)? {
                    Err(code) => return Some(Err(failed(code, "failed to disconnect"))),
                    Ok(()) => Step::Detach(0, None),
                },
                Step::Detach(index, _) if *index >= self.volumes.len() => {
                    for index in 0..self.volumes.len() {
                        self.remove_volume(index);
                    }
                    return Some(Ok(()));
                }
                Step::Detach(index, _) if self.volumes[*index].removed => Step::Detach(*index + 1, None),
                Step::Detach(index, request) => {
                    let index = *index;
                    match self.volumes[index].state.disk {
                        DiskState::Diskless => Step::Detach(index + 1, None),
                        // The runtime keeps what its answers need. Nothing of the volume is left for them here.
                        DiskState::Failed if self.is_abandoned(index) => Step::Detach(index + 1, None),
                        DiskState::Failed => return None,
                        _ => {
                            let wanted = StateRequest::disk(DiskState::Failed);
                            let present =
                                request.get_or_insert(DeviceRequest::new(index, wanted, Verbosity::Verbose));
                            let code = self.poll_request(present)?;
                            if !code.is_success() && code != Code::IsDiskless {
                                return Some(Err(failed(code, "failed to detach")));
                            }
                            Step::Detach(index, None)
                        }
                    }
                }
            };
        }
    }
}

fn failed(code: Code, what: &str) -> Failure {
    Failure::State { code, info: vec![what.to_owned()] }
}
