//! A build without ublk: the same names, and nothing behind them.

use std::convert::Infallible;
use std::fmt::Debug;
use std::marker::PhantomData;

use udrbd_units::Sector;

use super::{ControlError, Existing, Fetched, Mark, Parameters, Source};
use crate::Errno;
use crate::buffers::BufferHandle;
use crate::ring::Ring;

const ABSENT: ControlError = ControlError { step: "this build has no ublk", errno: Errno::EOPNOTSUPP };

/// Lists no disk.
#[must_use]
pub fn existing() -> Vec<Existing> {
    Vec::new()
}

/// Says no.
#[must_use]
pub const fn can_resize() -> bool {
    false
}

/// Removes no disk.
///
/// # Errors
/// Always.
pub const fn remove(_number: u32) -> Result<(), ControlError> {
    Err(ABSENT)
}

/// Removes no disk.
///
/// # Errors
/// Always.
pub const fn remove_unused(_number: u32) -> Result<(), ControlError> {
    Err(ABSENT)
}

/// See the module's text.
#[derive(Debug)]
pub struct Control(Infallible);

#[allow(missing_docs, clippy::missing_errors_doc, reason = "as in the build that has it")]
impl Control {
    pub fn add(_number: Option<u32>, _mark: Mark, _parameters: &Parameters) -> Result<Self, ControlError> {
        Err(ABSENT)
    }

    pub fn take_over(_number: u32) -> Result<Self, ControlError> {
        Err(ABSENT)
    }

    #[must_use]
    pub fn number(&self) -> u32 {
        match self.0 {}
    }

    pub fn source(&self) -> Result<Source, ControlError> {
        match self.0 {}
    }

    pub fn start(&self) -> Result<(), ControlError> {
        match self.0 {}
    }

    pub fn resize(&self, _size: Sector) -> Result<(), ControlError> {
        match self.0 {}
    }

    pub fn stop(&self) -> Result<(), ControlError> {
        match self.0 {}
    }

    pub fn stop_unused(&self) -> Result<(), ControlError> {
        match self.0 {}
    }

    pub fn delete(self) -> Result<(), ControlError> {
        match self.0 {}
    }
}

/// See the module's text.
#[derive(Debug)]
pub struct Queue<T: Copy + Debug> {
    never: Infallible,
    tokens: PhantomData<T>,
}

#[allow(missing_docs, clippy::missing_errors_doc, reason = "as in the build that has it")]
impl<T: Copy + Debug> Queue<T> {
    pub fn open(
        _ring: &mut Ring<T>,
        _source: Source,
        _others_mebibytes: usize,
        _token: impl Fn(u16) -> T,
    ) -> Result<Self, Errno> {
        Err(Errno::EOPNOTSUPP)
    }

    pub fn fetched(&mut self, _ring: &mut Ring<T>, _tag: u16, _result: Result<u32, Errno>) -> Fetched {
        match self.never {}
    }

    pub fn complete(
        &mut self,
        _ring: &mut Ring<T>,
        _tag: u16,
        _result: Result<(), Errno>,
        _data: Option<BufferHandle>,
    ) {
        match self.never {}
    }

    pub fn flush(&mut self, _ring: &mut Ring<T>) -> bool {
        match self.never {}
    }

    #[must_use]
    pub fn serving(&self) -> usize {
        match self.never {}
    }

    #[must_use]
    pub fn is_finished(&self) -> bool {
        match self.never {}
    }

    pub fn close(self, _ring: &mut Ring<T>) {
        match self.never {}
    }
}
