//! Everything that can happen to the engine.

use std::sync::Arc;

use hostler_wire::{Attempt, Detail, Fence, JobId, Outcome, Priority, Reason, SessionId, WorkerId};

use crate::spec::{Class, Run};
use crate::time::{Span, Time, When};

/// The number of a question; its answer carries the same.
pub type AskId = u64;

/// Something happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// Time passed; something may be due.
    Tick,
    /// The wall clock now reads engine time plus this, milliseconds. Sent first of all, and when the difference changes.
    Wall {
        /// Wall milliseconds since 1970 minus engine milliseconds; may be negative.
        offset_ms: i64,
    },

    /// The server stood still until now, or the machine was suspended: silence until now says nothing of the workers.
    Awoken,

    /// From the store at start: part of what was unfinished.
    Restore(Restore),
    /// Everything is restored and the ports are open: assignments begin, and absent workers' grace counts from now.
    Ready,
    /// The server stops: no new assignments, unstarted work is recalled.
    Stopping,
    /// Another server has taken over: nothing may leave any more.
    Deposed,

    /// Jobs whose commit is on disk, from the lanes.
    Submitted(Run),
    /// Answer to `Effect::Fetch`: these bodies are in memory.
    Fetched {
        /// Which; all that were asked for in one fetch.
        jobs: Vec<JobId>,
    },
    /// Every fact up to and including this number is durable.
    Committed {
        /// The number.
        through: u64,
    },

    /// A worker's control session began.
    Joined(Box<Join>),
    /// It ended: the socket is gone.
    Left {
        /// Which.
        session: SessionId,
    },
    /// Bytes came from the worker, though no whole frame yet: it is there.
    Alive {
        /// Which session.
        session: SessionId,
    },
    /// The worker's heartbeat. (Whatever else it says shows that it is there, too.)
    Heard {
        /// Which session.
        session: SessionId,
        /// The last assign sequence it received.
        assign_seq: u64,
    },
    /// Attempts start now.
    Started {
        /// Which session.
        session: SessionId,
        /// Which.
        fences: Vec<Fence>,
    },
    /// Answer to `Effect::Look`: the attempt gave its last sign of life so long ago, says its worker.
    Looked {
        /// Which.
        fence: Fence,
        /// How long ago.
        quiet: Span,
    },
    /// Attempts ended.
    Reported {
        /// Which session.
        session: SessionId,
        /// Number of the first report; the rest follow without gaps.
        first: u64,
        /// In the order they ended.
        reports: Vec<Report>,
    },
    /// Attempts were given back unstarted.
    Returned {
        /// Which session.
        session: SessionId,
        /// Which.
        fences: Vec<Fence>,
        /// It drains: give it nothing more.
        draining: bool,
    },

    /// Somebody wants a job stopped. Answered by `Effect::Answer`.
    Cancel {
        /// Whose answer.
        ask: AskId,
        /// Which job.
        job: JobId,
        /// KILL at once.
        force: bool,
        /// What the person said.
        note: Option<Box<str>>,
    },
}

/// A worker that has proven who it is.
#[derive(Clone, Debug)]
pub struct Join {
    /// Its session.
    pub session: SessionId,
    /// Its stable name.
    pub name: String,
    /// Its start.
    pub instance: u64,
    /// Jobs it runs at once, at least one.
    pub slots: u32,
    /// Runs commands.
    pub commands: bool,
    /// Queues it serves.
    pub queues: Vec<String>,
    /// What it says of itself.
    pub labels: Vec<(String, String)>,
    /// Attempts it holds, with whether each has started.
    pub held: Vec<(Fence, bool)>,
    /// Number of its last report.
    pub last_report: u64,
}

/// How an attempt ended.
#[derive(Clone, Debug)]
pub struct Report {
    /// Which.
    pub fence: Fence,
    /// How.
    pub outcome: Outcome,
    /// The worker had carried out a cancel on it.
    pub cancelled: bool,
    /// It had started.
    pub started: bool,
    /// How long it ran.
    pub ran: Span,
    /// Words and figures; passed on, never read.
    pub detail: Option<Box<Detail>>,
}

/// What the store remembers, in this order: workers, jobs, runs.
#[derive(Clone, Debug)]
pub enum Restore {
    /// A worker instance that still has assignments.
    Worker {
        /// Its number.
        id: WorkerId,
        /// Its name.
        name: String,
        /// Its start.
        instance: u64,
    },
    /// Worker numbers below this are taken.
    Workers {
        /// The first free one.
        next: WorkerId,
    },
    /// An unfinished job that has been assigned, or cancelled while it ran.
    Job(Box<RestoredJob>),
    /// Unfinished jobs nothing has happened to yet. (Ids also told of by `Job` are not in here.)
    Run(Run),
}

/// An unfinished job with a history.
#[derive(Clone, Debug)]
pub struct RestoredJob {
    /// Which.
    pub id: JobId,
    /// Its class.
    pub class: Arc<Class>,
    /// Its priority.
    pub priority: Priority,
    /// Must have started by then.
    pub expires: Option<When>,
    /// Must be over by then.
    pub deadline: Option<When>,
    /// Highest attempt ever assigned.
    pub attempt: Attempt,
    /// Attempts charged as failures.
    pub failures: u16,
    /// As losses.
    pub losses: u16,
    /// As "later".
    pub later: u16,
    /// It has started at least once: it cannot expire any more.
    pub ever_started: bool,
    /// The attempt that has not ended, if one has not.
    pub running: Option<RestoredAttempt>,
    /// It waits for this, and why (`Reason::BackOff`, `Later`).
    pub due: Option<(When, Reason)>,
    /// It was told to stop, with the reason it will have ended for.
    pub cancelling: Option<Reason>,
}

/// An assignment whose end is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RestoredAttempt {
    /// Its fence.
    pub fence: Fence,
    /// On whom.
    pub worker: WorkerId,
    /// When it was reported started, if it was.
    pub started: Option<Time>,
}
