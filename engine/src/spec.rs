//! What the engine keeps of a job's spec: a class, shared by all jobs that ask for the same treatment, so that a job
//! itself costs a few bytes.

use std::sync::Arc;

use hostler_wire::{JobId, Priority};

use crate::time::{Span, When};

/// A class's durable number, given out by the writer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClassId(u32);

impl ClassId {
    /// The class with this number.
    pub const fn new(raw: u32) -> Self {
        Self(raw)
    }

    /// The number itself.
    pub const fn raw(self) -> u32 {
        self.0
    }
}

/// A class and its number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Class {
    /// Its number.
    pub id: ClassId,
    /// What it is.
    pub spec: ClassSpec,
}

/// What jobs of one class have in common. Two equal specs are one class.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ClassSpec {
    /// The queue; a job belongs to one for ever.
    pub queue: Arc<str>,
    /// What a worker must be able to do.
    pub kind: Kind,
    /// What happens after a failure.
    pub retry: Retry,
    /// The job fails when more losses than this are charged to it; 0 = at most once.
    pub max_losses: u16,
    /// Longest run of one attempt.
    pub timeout: Option<Span>,
    /// Between TERM and KILL, if the job says; the server's backstop assumes 10 s otherwise.
    pub grace: Option<Span>,
    /// Longest silence of an attempt: no output, progress or heartbeat.
    pub stall: Option<Span>,
    /// The worker kills its attempt at lease end, so that a second one never runs beside it.
    pub stop_on_partition: bool,
}

/// What a worker must be able to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Start processes.
    Command,
    /// Call handlers.
    Handler,
}

/// What happens after a failure (semantics 3, 6, 7).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Retry {
    /// Failures allowed, the last included: 1 = no retry.
    pub max_attempts: u16,
    /// Delay after the first failure.
    pub backoff: Span,
    /// It grows by this factor a failure, in thousandths.
    pub factor_milli: u32,
    /// And no further than this.
    pub max_backoff: Span,
    /// Only these failures are retried, if any is named. First match over `on` then `never` wins; no match → retry.
    pub on: Box<[Rule]>,
    /// These are not.
    pub never: Box<[Rule]>,
    /// Exit codes that mean "not now": uncharged, tried again after the back-off, at most 100 times.
    pub later: Box<[u8]>,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            max_attempts: 1,
            backoff: Span::from_secs(5),
            factor_milli: 2_000,
            max_backoff: Span::from_secs(300),
            on: Box::default(),
            never: Box::default(),
            later: Box::default(),
        }
    }
}

/// A kind of failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rule {
    /// Exit codes from..=to.
    Codes(u8, u8),
    /// Any signal.
    Signal,
    /// `timeout_ms` or `stall_ms` ran out.
    Timeout,
    /// Killed for want of memory.
    OutOfMemory,
    /// Could not be started.
    Spawn,
    /// The handler failed.
    Error,
}

/// Consecutive jobs of one class and priority, committed together: what travels through the lanes.
#[derive(Clone, Debug)]
pub struct Run {
    /// The first id.
    pub first: JobId,
    /// How many, at least one.
    pub count: u32,
    /// Of all of them.
    pub priority: Priority,
    /// Of all of them.
    pub class: Arc<Class>,
    /// Not before this.
    pub due: Option<When>,
    /// Must have started by then.
    pub expires: Option<When>,
    /// Must be over by then.
    pub deadline: Option<When>,
    /// Their bodies are in memory.
    pub resident: bool,
}
