//! What must become durable: the engine's half of the language of the store's seam. (The other half, submissions, reaches
//! the store straight from intake and the engine through the lanes.)
//!
//! Facts are numbered by their order of emission, from 1 in each epoch; `Event::Committed` speaks of those numbers.

use hostler_wire::{Attempt, Detail, Fence, JobId, JobState, Reason, WorkerId};

use crate::spec::ClassId;
use crate::time::{Time, When};

/// Something that happened and must not be forgotten.
#[derive(Clone, Debug, PartialEq)]
pub enum Fact {
    /// A worker instance was seen for the first time.
    Worker(WorkerFact),
    /// Attempts were given to a worker (P2: before the frame leaves).
    Assigned(Assigned),
    /// Attempts were reported started.
    Started(Started),
    /// An attempt ended, and the job goes on.
    Again(Again),
    /// A job is over.
    Ended(Ended),
    /// A running job was told to stop.
    Cancelling(Cancelling),
}

/// A worker instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerFact {
    /// Its number from now on.
    pub id: WorkerId,
    /// Its stable name.
    pub name: String,
    /// Its start.
    pub instance: u64,
    /// First seen.
    pub at: Time,
}

/// Attempts given to one worker in one turn; their epoch is the server's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assigned {
    /// Who.
    pub worker: WorkerId,
    /// When.
    pub at: Time,
    /// Which, in the order they were given out.
    pub attempts: Vec<(JobId, Attempt)>,
}

/// Attempts that started on one worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Started {
    /// Who.
    pub worker: WorkerId,
    /// When they were heard of.
    pub at: Time,
    /// Which.
    pub fences: Vec<Fence>,
}

/// An attempt that ended without ending its job.
#[derive(Clone, Debug, PartialEq)]
pub struct Again {
    /// Which.
    pub fence: Fence,
    /// On whom.
    pub worker: WorkerId,
    /// Why it ended.
    pub reason: Reason,
    /// What it is charged as.
    pub charge: Charge,
    /// When it started, if it is known to have.
    pub started: Option<Time>,
    /// When it ended.
    pub at: Time,
    /// When the job may run again; none = at once, in its old place.
    pub due: Option<When>,
    /// Words and figures.
    pub detail: Option<Box<Detail>>,
}

/// Which budget an ended attempt is charged to (semantics 3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Charge {
    /// None: given back.
    Return = 0,
    /// `retry.max_attempts`.
    Failure = 1,
    /// `max_losses`.
    Loss = 2,
    /// The hundred of `retry.later`.
    Later = 3,
}

/// The one terminal fact of a job.
#[derive(Clone, Debug, PartialEq)]
pub struct Ended {
    /// The job.
    pub job: JobId,
    /// Its class.
    pub class: ClassId,
    /// Its state for ever.
    pub state: JobState,
    /// Why.
    pub reason: Reason,
    /// The attempt that ended it; none if none was running.
    pub fence: Option<Fence>,
    /// On whom.
    pub worker: Option<WorkerId>,
    /// When that attempt started, if it is known to have.
    pub started: Option<Time>,
    /// When it ended.
    pub at: Time,
    /// Words and figures.
    pub detail: Option<Box<Detail>>,
}

/// A running job was told to stop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cancelling {
    /// The job.
    pub job: JobId,
    /// When.
    pub at: Time,
    /// Why it will have ended: `cancelled_by_user`, or `deadline`.
    pub reason: Reason,
    /// What the person said.
    pub note: Option<Box<str>>,
}
