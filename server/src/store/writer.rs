//! The writer: the only thread that changes the database.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use hostler_engine::Fact;
use hostler_engine::lanes::Lanes;
use hostler_engine::spec::Run;
use hostler_wire::JobId;
use tokio::sync::oneshot;

use crate::mailbox::Sender;
use crate::store::seam::{KeyRecord, StoreError, Submission};

/// The language of the writer's mailbox.
#[derive(Debug)]
pub enum Write {
    /// Jobs to accept.
    Submit {
        /// The jobs.
        submission: Submission,
        /// Answered after the commit and after the lanes have them.
        reply: oneshot::Sender<Result<Accepted, SubmitError>>,
    },
    /// What the engine wants kept.
    Facts {
        /// In the engine's order.
        facts: Vec<Fact>,
        /// The number of the last.
        through: u64,
    },
    /// Forget a finished job's body.
    Purge {
        /// Which.
        job: JobId,
        /// Answered after the commit.
        reply: oneshot::Sender<Result<(), StoreError>>,
    },
    /// Commit what is here, close the store, end.
    Stop,
}

/// The promise (P1).
#[derive(Clone, Debug)]
pub struct Accepted {
    /// The first id; the rest follow without gaps.
    pub first: JobId,
    /// How many.
    pub count: u32,
    /// An earlier request with this key made them.
    pub replayed: bool,
}

/// Why jobs were not accepted.
#[derive(Clone, Debug)]
pub enum SubmitError {
    /// The key was used for another request body.
    KeyReused(Box<KeyRecord>),
    /// It could not be made durable, and is not there.
    Refused(StoreError),
    /// Nobody knows whether it is there: repeat it with the same key.
    Unknown(StoreError),
    /// Too much waits for its commit, or too many jobs live.
    Busy {
        /// The limit that was reached, in words.
        limit: &'static str,
    },
    /// The server stops.
    Stopping,
}

/// What travels through the lanes: a run, and its bodies while there is room for them.
#[derive(Debug)]
pub struct Arrival {
    /// The jobs.
    pub run: Run,
    /// Their bodies, in order; empty if they stay on disk.
    pub bodies: Vec<Bytes>,
}

/// The lanes between writer and dispatch.
pub type JobLanes = Arc<Lanes<Arrival>>;

/// The other threads' end of the writer.
#[derive(Clone, Debug)]
pub struct Handle {
    sender: Sender<Write>,
    /// Bytes of submissions sent and not yet answered.
    pending_bytes: Arc<AtomicUsize>,
    pending_bytes_max: usize,
}

impl Handle {
    /// A handle that lets in so many bytes of submissions at once.
    pub fn new(sender: Sender<Write>, pending_bytes_max: usize) -> Self {
        Self {
            sender,
            pending_bytes: Arc::default(),
            pending_bytes_max,
        }
    }

    /// Hands jobs to the writer. The receiver gets the answer after the commit; a dropped one means the server stops.
    pub fn submit(
        &self,
        submission: Submission,
    ) -> Result<oneshot::Receiver<Result<Accepted, SubmitError>>, SubmitError> {
        let bytes = submission.bytes;
        let before = self.pending_bytes.fetch_add(bytes, Ordering::Relaxed);
        // One submission is always let in, so that a large one is not refused for ever.
        if before > 0 && before + bytes > self.pending_bytes_max {
            self.pending_bytes.fetch_sub(bytes, Ordering::Relaxed);
            return Err(SubmitError::Busy {
                limit: "intake_bytes_max",
            });
        }
        let (reply, receiver) = oneshot::channel();
        self.sender.send(Write::Submit { submission, reply });
        Ok(receiver)
    }

    /// Called by the writer for each submission it has answered.
    pub(super) fn answered(&self, bytes: usize) {
        self.pending_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Hands over facts.
    pub fn facts(&self, facts: Vec<Fact>, through: u64) {
        self.sender.send(Write::Facts { facts, through });
    }

    /// Asks for a body to be forgotten.
    pub fn purge(&self, job: JobId) -> oneshot::Receiver<Result<(), StoreError>> {
        let (reply, receiver) = oneshot::channel();
        self.sender.send(Write::Purge { job, reply });
        receiver
    }

    /// The last message.
    pub fn stop(&self) {
        self.sender.send(Write::Stop);
    }
}
