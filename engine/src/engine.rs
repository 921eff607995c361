//! `Engine::handle`: the one match over events; each arm calls one method.

use hostler_wire::{Epoch, Fence, JobId, JobState, Priority, Reason, WorkerId};

use crate::effect::Effects;
use crate::event::Event;
use crate::spec::ClassSpec;
use crate::time::{Span, Time, When};

/// What the engine must be told at its start.
#[derive(Clone, Debug)]
pub struct Config {
    /// This start of the server.
    pub epoch: Epoch,
    /// Seeds the jitter of back-offs.
    pub cluster: [u8; 16],
    /// How long a silent worker keeps its work.
    pub worker_grace: Span,
    /// How often both sides beat; after three missed a worker gets no new work.
    pub beat: Span,
    /// Between TERM and KILL where a job does not say.
    pub kill_grace: Span,
    /// Most attempts a worker is given beyond its slots.
    pub prefetch_max: u32,
    /// How many jobs ahead of dispatch bodies are fetched.
    pub fetch_ahead: u32,
}

/// The state machine.
#[derive(Debug)]
pub struct Engine {
    _config: Config,
}

impl Engine {
    /// An engine that knows nothing yet: feed it `Event::Wall`, the `Restore`s, then `Ready`.
    pub fn new(config: Config) -> Self {
        Self { _config: config }
    }

    /// Takes one event at `now` (never earlier than the last) and appends what must be done to `out`.
    pub fn handle(&mut self, _now: Time, _event: Event, _out: &mut Effects) {
        todo!()
    }

    /// Ends a turn: gives ready jobs to free slots. Called once after the events of a turn, so that a batch of events
    /// makes one batch of assignments a worker.
    pub fn dispatch(&mut self, _now: Time, _out: &mut Effects) {
        todo!()
    }

    /// When to call `handle` with `Event::Tick` if nothing else happens first.
    pub fn next_deadline(&self) -> Option<Time> {
        todo!()
    }

    /// What a query may see of a live job.
    pub fn job(&self, _id: JobId) -> Option<JobView<'_>> {
        todo!()
    }

    /// Live jobs from this id on, in id order (or downwards from it).
    pub fn jobs_from(
        &self,
        _from: JobId,
        _descending: bool,
    ) -> Box<dyn Iterator<Item = JobView<'_>> + '_> {
        todo!()
    }

    /// The connected workers, and those whose grace runs.
    pub fn workers(&self) -> Box<dyn Iterator<Item = WorkerView<'_>> + '_> {
        todo!()
    }

    /// How many jobs are in which state, by queue.
    pub fn counts(&self) -> Counts {
        todo!()
    }

    /// Attempts assigned and not known to have started or been returned: what a stopping server waits for.
    pub fn unstarted_count(&self) -> usize {
        todo!()
    }

    /// Every invariant, slowly. The simulator and the tests call it after each event.
    pub fn check(&self) {
        todo!()
    }
}

/// A live job, as a query sees it.
#[derive(Clone, Debug)]
pub struct JobView<'a> {
    /// Which.
    pub id: JobId,
    /// Its state; a terminal one whose commit is pending shows as it was before.
    pub state: JobState,
    /// Why it is in it (`Delayed`, `BackOff`, `Later`, or the reason of a cancel).
    pub reason: Reason,
    /// Until when, if it waits for a time.
    pub due: Option<When>,
    /// Its priority.
    pub priority: Priority,
    /// Its class.
    pub class: &'a ClassSpec,
    /// The current attempt's fence, while one is out.
    pub fence: Option<Fence>,
    /// Attempts assigned so far.
    pub attempts: u16,
    /// Of them charged as failures.
    pub failures: u16,
    /// As losses.
    pub losses: u16,
    /// Who has it.
    pub worker: Option<WorkerView<'a>>,
    /// When the current attempt was reported started.
    pub started: Option<Time>,
}

/// A worker, as a query sees it.
#[derive(Clone, Debug)]
pub struct WorkerView<'a> {
    /// Its number.
    pub id: WorkerId,
    /// Its stable name.
    pub name: &'a str,
    /// Its session, while it is connected.
    pub session: Option<hostler_wire::SessionId>,
    /// Jobs it runs at once.
    pub slots: u32,
    /// Attempts it holds that have not ended.
    pub held: u32,
    /// When something was last heard of it.
    pub heard: Time,
    /// It takes no new work.
    pub draining: bool,
    /// Queues it serves.
    pub queues: &'a [String],
    /// What it says of itself.
    pub labels: &'a [(String, String)],
}

/// Live jobs by state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Waiting for a time.
    pub scheduled: u64,
    /// May run now.
    pub queued: u64,
    /// On a worker.
    pub running: u64,
    /// On a worker, told to stop.
    pub cancelling: u64,
}
