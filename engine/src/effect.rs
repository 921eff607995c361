//! Everything the engine can ask for.

use hostler_wire::{Fence, JobId, JobState, Reason, SessionId, WorkerId};

use crate::event::AskId;
use crate::fact::Fact;

/// Effects in the order they are to happen.
pub type Effects = Vec<Effect>;

/// Something to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Make this durable; `Event::Committed` counts these.
    Persist(Fact),
    /// Bring these bodies into memory; answered by `Event::Fetched`.
    Fetch {
        /// In the order they will be wanted.
        jobs: Vec<JobId>,
    },
    /// The session is accepted: tell the worker what is acknowledged and what is void.
    Resumed {
        /// Whose.
        session: SessionId,
        /// The instance's number.
        worker: WorkerId,
        /// Reports up to this number are done with.
        acked: u64,
        /// Attempts to end without a report.
        void: Vec<Fence>,
    },
    /// The session is not accepted, or its worker must connect anew: tell it why and hang up.
    Refuse {
        /// Whose.
        session: SessionId,
        /// Why.
        why: Refusal,
    },
    /// Send assignments, whose fact is committed. Their bodies may leave memory: they count as not resident from here on.
    Assign {
        /// To whom.
        session: SessionId,
        /// Sequence number within the session, from 1.
        seq: u64,
        /// What, in order.
        fences: Vec<Fence>,
    },
    /// Ask for unstarted work back.
    Recall {
        /// From whom.
        session: SessionId,
        /// What.
        fences: Vec<Fence>,
    },
    /// End an attempt and report.
    Cancel {
        /// On whom.
        session: SessionId,
        /// Which.
        fence: Fence,
        /// KILL at once.
        force: bool,
    },
    /// Ask how long this attempt has been silent; `Event::Looked` answers, if the worker does.
    Look {
        /// On whom.
        session: SessionId,
        /// Which.
        fence: Fence,
    },
    /// End attempts without a report: they are void.
    Stop {
        /// On whom.
        session: SessionId,
        /// Which.
        fences: Vec<Fence>,
    },
    /// Reports up to this number are committed or void.
    Ack {
        /// To whom.
        session: SessionId,
        /// The number.
        through: u64,
    },
    /// Answer a cancel.
    Answer {
        /// Which question.
        ask: AskId,
        /// The answer; durable where it claims something.
        answer: CancelAnswer,
    },
    /// A job's end is committed: tell whoever waits for it, forget its body.
    Finished {
        /// Which.
        job: JobId,
        /// Its state for ever.
        state: JobState,
        /// Why.
        reason: Reason,
    },
}

/// Why a session ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Another instance of that name is connected.
    NameInUse,
    /// It did not receive what was sent to it (semantics 22): connect anew.
    Deaf,
    /// The server stops.
    Stopping,
}

/// What became of a cancel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CancelAnswer {
    /// It was waiting and is cancelled now.
    Cancelled,
    /// It runs, and was told to stop (or had been told before).
    Cancelling,
    /// It ended before the cancel was carried out; the end is committed.
    Finished {
        /// Its state for ever.
        state: JobState,
    },
    /// The engine does not know it: it ended long ago, or never was. The store knows which.
    Unknown,
}
