//! The dispatch thread: a thin shell round the engine. It takes what the others send, hands it to the engine as events,
//! and routes the effects: facts to the writer, frames to the wire thread, answers to whoever asked. It never waits for
//! anything but its own mailbox, and takes no lock.
//!
//! The order of one turn is the engine's (`engine::lanes::Turn`): the asks are taken first, the lanes emptied, the asks
//! handled last. So whoever was told "accepted" before asking finds the job (the writer pushes before it answers).
//!
//! Not here: any rule of scheduling (`engine`), what a frame looks like (`translate`), what waits for a worker's answer
//! (`probes`).

mod bodies;
mod probes;
mod thread;
mod translate;

pub use thread::{Dispatch, Parts, spawn};

use std::sync::Arc;

use hostler_engine::effect::CancelAnswer;
use hostler_engine::event::Restore;
use hostler_engine::{Counts, QueueView, WallTime};
use hostler_wire::frame::Live;
use hostler_wire::{JobId, JobState, Priority, Reason};
use tokio::sync::oneshot;

use crate::mailbox::Sender;
use crate::net::Arrival;
use crate::store::reader::Bodies;

/// The language of dispatch's mailbox, but for asks, which have one of their own.
#[derive(Debug)]
pub enum Message {
    /// From the start: what the store remembers, in the engine's order.
    Restored(Vec<Restore>),
    /// From the start: that was all, and the ports are open.
    Ready,
    /// From the writer: facts up to this number are durable.
    Committed {
        /// The number.
        through: u64,
    },
    /// From the writer: something came into the lanes, and it waits to hear of what facts that makes.
    Owed,
    /// From the writer: another server owns the store.
    Deposed,
    /// From the reader.
    Fetched {
        /// What `Effect::Fetch` asked for.
        bodies: Bodies,
    },
    /// From the wire thread.
    Worker(Arrival),
    /// From the server: no new assignments from now on, unstarted work comes back.
    Stopping {
        /// Told when nothing is in flight any more: no fact uncommitted, nothing unstarted with a worker.
        settled: oneshot::Sender<()>,
    },
    /// From the server: end.
    Stop,
}

/// Questions, from HTTP. All are answered, if only by dropping the reply when the server stops.
#[derive(Debug)]
pub enum Ask {
    /// The engine's record of a job, and the live part if wanted.
    State {
        /// Which.
        job: JobId,
        /// Probe the worker, waiting the fixed time.
        live: bool,
        /// None: not live (ended, or unknown).
        reply: oneshot::Sender<Option<Box<JobStatus>>>,
    },
    /// The engine's records of these jobs, without live parts; those that are not live are left out.
    States {
        /// Which.
        jobs: Vec<JobId>,
        /// In the order asked.
        reply: oneshot::Sender<Vec<JobStatus>>,
    },
    /// Live jobs in these states, by id.
    List {
        /// States wanted.
        states: Vec<JobState>,
        /// In one of these queues; empty = any.
        queues: Vec<Box<str>>,
        /// Below (descending) or above this id, exclusive.
        after: Option<JobId>,
        /// Newest first.
        descending: bool,
        /// Most entries; dispatch looks at no more than a fixed number of records for one ask.
        limit: usize,
        /// The entries, and where to go on, if there may be more.
        reply: oneshot::Sender<(Vec<JobStatus>, Option<JobId>)>,
    },
    /// Stop a job.
    Cancel {
        /// Which.
        job: JobId,
        /// KILL at once.
        force: bool,
        /// What the person said.
        note: Option<Box<str>>,
        /// After the commit.
        reply: oneshot::Sender<CancelAnswer>,
    },
    /// Tell when a job has ended (its end is committed), or at once if it is not live. Dropping the receiver is a way
    /// to stop waiting.
    Wait {
        /// Which.
        job: JobId,
        /// None: not live.
        reply: oneshot::Sender<Option<(JobState, Reason)>>,
    },
    /// The live parts of these jobs, waiting the fixed time at most. Those that are on no worker are left out.
    Lives {
        /// Which.
        jobs: Vec<JobId>,
        /// As they were told.
        reply: oneshot::Sender<Vec<(JobId, LiveStatus)>>,
    },
    /// Every worker.
    Workers {
        /// The answer.
        reply: oneshot::Sender<Vec<WorkerStatus>>,
    },
    /// Live jobs by state and by queue.
    Glance {
        /// The answer.
        reply: oneshot::Sender<Glance>,
    },
}

/// A live job as the engine knows it.
#[derive(Clone, Debug)]
pub struct JobStatus {
    /// Which.
    pub id: JobId,
    /// Its state.
    pub state: JobState,
    /// Why.
    pub reason: Reason,
    /// Until when, if it waits for a time.
    pub due: Option<WallTime>,
    /// Its queue.
    pub queue: Arc<str>,
    /// Its priority.
    pub priority: Priority,
    /// The number of the current or last attempt, 0 before the first.
    pub attempt: u16,
    /// Attempts charged as failures.
    pub failures: u16,
    /// Failures allowed, the last included.
    pub max_attempts: u16,
    /// Who has it.
    pub worker: Option<Box<str>>,
    /// Whether that worker is connected.
    pub worker_connected: bool,
    /// When the current attempt started.
    pub started: Option<WallTime>,
    /// The live part, if it was asked for and there is something to probe.
    pub live: Option<LiveStatus>,
}

/// The live part of a state answer.
#[derive(Clone, Debug)]
pub enum LiveStatus {
    /// The worker answered.
    Seen {
        /// How long that took, microseconds.
        probed_us: u64,
        /// What it said.
        live: Box<Live>,
    },
    /// It did not.
    Unseen {
        /// `timeout`, `disconnected` or `not_held`.
        why: &'static str,
        /// How long we waited, milliseconds.
        waited_ms: u64,
        /// How long ago the worker was last heard, milliseconds.
        last_heard_ms: u64,
    },
}

/// All live jobs at a glance.
#[derive(Clone, Debug, Default)]
pub struct Glance {
    /// By state.
    pub counts: Counts,
    /// By queue.
    pub queues: Vec<QueueView>,
    /// Frames of questions sent to workers since the server's start.
    pub probes: u64,
    /// Bytes of bodies in memory.
    pub resident_bytes: u64,
    /// Bodies read back from disk since the server's start.
    pub bodies_read: u64,
}

/// A worker as the engine knows it.
#[derive(Clone, Debug)]
pub struct WorkerStatus {
    /// Its stable name.
    pub name: Box<str>,
    /// Whether it is connected.
    pub connected: bool,
    /// Whether it takes no new work.
    pub draining: bool,
    /// Jobs it runs at once.
    pub slots: u32,
    /// Attempts it holds.
    pub held: u32,
    /// How long ago it was last heard, milliseconds.
    pub last_heard_ms: u64,
    /// Queues it serves.
    pub queues: Vec<String>,
    /// What it says of itself.
    pub labels: Vec<(String, String)>,
}

/// The other threads' end of dispatch.
#[derive(Clone, Debug)]
pub struct Handle {
    messages: Sender<Message>,
    asks: Sender<Ask>,
}

impl Handle {
    /// A handle on those mailboxes.
    pub fn new(messages: Sender<Message>, asks: Sender<Ask>) -> Self {
        Self { messages, asks }
    }

    /// Asks; the reply comes through the ask itself.
    pub fn ask(&self, ask: Ask) {
        self.asks.send(ask);
    }

    /// Tells.
    pub fn tell(&self, message: Message) {
        self.messages.send(message);
    }

    /// Tells several things with one wake-up.
    pub fn tell_all(&self, messages: impl IntoIterator<Item = Message>) {
        self.messages.send_all(messages);
    }
}
