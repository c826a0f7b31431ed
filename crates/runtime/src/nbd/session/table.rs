//! The requests of a session under way, and the pieces of them that were handed out.

use super::super::protocol::{Command, ErrorCode};
use crate::buffers::BufferHandle;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum JobState {
    /// Pieces are still to come.
    HandingOut,
    /// Every piece was submitted.
    HandedOut,
    /// A flush was submitted behind the pieces.
    Flushing,
    /// The client went away before all of it was here: no more pieces, and no answer.
    Abandoned,
}

/// One request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Job {
    pub(super) command: Command,
    pub(super) cookie: u64,
    pub(super) offset: u64,
    pub(super) length: u32,
    /// Pieces one after the other.
    pub(super) in_order: bool,
    pub(super) state: JobState,
    /// Pieces submitted and not completed.
    pub(super) outstanding: u32,
    /// The first error of a piece.
    pub(super) error: Option<ErrorCode>,
}

/// One submission.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    pub(super) job: u32,
    /// First byte on the device.
    pub(super) offset: u64,
    pub(super) length: u32,
    pub(super) buffer: Option<BufferHandle>,
    pub(super) carries_data: bool,
}

/// Both, by number; numbers are used again.
#[derive(Debug, Default)]
pub(super) struct Table {
    jobs: Slab<Job>,
    pieces: Slab<Piece>,
    data_bytes: u64,
}

impl Table {
    pub(super) fn insert_job(&mut self, job: Job) -> u32 {
        self.jobs.insert(job)
    }

    pub(super) fn job(&self, id: u32) -> &Job {
        self.jobs.get(id)
    }

    pub(super) fn job_mut(&mut self, id: u32) -> &mut Job {
        self.jobs.get_mut(id)
    }

    pub(super) fn remove_job(&mut self, id: u32) {
        let job = self.jobs.remove(id);
        assert!(job.outstanding == 0);
    }

    /// No more pieces of this job will come, and no answer.
    pub(super) fn abandon(&mut self, id: u32) {
        let job = self.jobs.get_mut(id);
        job.state = JobState::Abandoned;
        if job.outstanding == 0 {
            self.remove_job(id);
        }
    }

    pub(super) fn insert_piece(&mut self, piece: Piece) -> u32 {
        self.jobs.get_mut(piece.job).outstanding += 1;
        if piece.carries_data {
            self.data_bytes += u64::from(piece.length);
        }
        self.pieces.insert(piece)
    }

    pub(super) fn take_piece(&mut self, id: u32) -> Piece {
        let piece = self.pieces.remove(id);
        self.jobs.get_mut(piece.job).outstanding -= 1;
        if piece.carries_data {
            self.data_bytes -= u64::from(piece.length);
        }
        piece
    }

    pub(super) const fn pieces_in_flight(&self) -> usize {
        self.pieces.used
    }

    /// Bytes of data in pieces in flight.
    pub(super) const fn data_bytes(&self) -> u64 {
        self.data_bytes
    }
}

#[derive(Debug)]
struct Slab<V> {
    values: Vec<Option<V>>,
    free: Vec<u32>,
    used: usize,
}

impl<V> Default for Slab<V> {
    fn default() -> Self {
        Self { values: Vec::new(), free: Vec::new(), used: 0 }
    }
}

impl<V> Slab<V> {
    fn insert(&mut self, value: V) -> u32 {
        self.used += 1;
        if let Some(index) = self.free.pop() {
            self.values[index as usize] = Some(value);
            return index;
        }
        self.values.push(Some(value));
        (self.values.len() - 1) as u32
    }

    fn get(&self, index: u32) -> &V {
        let Some(value) = &self.values[index as usize] else { panic!("number {index} is not in use") };
        value
    }

    fn get_mut(&mut self, index: u32) -> &mut V {
        let Some(value) = &mut self.values[index as usize] else { panic!("number {index} is not in use") };
        value
    }

    fn remove(&mut self, index: u32) -> V {
        let Some(value) = self.values[index as usize].take() else { panic!("number {index} is not in use") };
        self.free.push(index);
        self.used -= 1;
        value
    }
}
