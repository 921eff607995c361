//! The reader thread: records, lists, and bodies ahead of dispatch.

use bytes::Bytes;
use hostler_wire::{JobId, JobState, Reason};
use tokio::sync::oneshot;

use crate::mailbox::Sender;
use crate::store::seam::{ListPage, ListQuery, Lookup, StoreError};

/// The language of the readers' mailbox.
#[derive(Debug)]
pub enum Query {
    /// One job.
    Job {
        /// Which.
        id: JobId,
        /// The answer.
        reply: oneshot::Sender<Result<Lookup, StoreError>>,
    },
    /// Which of these have ended, and how.
    Ends {
        /// Which.
        jobs: Vec<JobId>,
        /// The answer.
        reply: oneshot::Sender<Result<Vec<(JobId, JobState, Reason)>, StoreError>>,
    },
    /// A page.
    List {
        /// Of what.
        query: ListQuery,
        /// The answer.
        reply: oneshot::Sender<Result<ListPage, StoreError>>,
    },
    /// Bodies for dispatch, answered into its mailbox.
    Bodies {
        /// Which.
        jobs: Vec<JobId>,
    },
    /// End.
    Stop,
}

/// Bodies brought into memory.
pub type Bodies = Vec<(JobId, Bytes)>;

/// The other threads' end of the readers.
#[derive(Clone, Debug)]
pub struct Handle {
    sender: Sender<Query>,
}

impl Handle {
    /// A handle on that mailbox.
    pub fn new(sender: Sender<Query>) -> Self {
        Self { sender }
    }

    /// One job's record.
    pub fn job(&self, id: JobId) -> oneshot::Receiver<Result<Lookup, StoreError>> {
        let (reply, receiver) = oneshot::channel();
        self.sender.send(Query::Job { id, reply });
        receiver
    }

    /// Which of these have ended.
    pub fn ends(
        &self,
        jobs: Vec<JobId>,
    ) -> oneshot::Receiver<Result<Vec<(JobId, JobState, Reason)>, StoreError>> {
        let (reply, receiver) = oneshot::channel();
        self.sender.send(Query::Ends { jobs, reply });
        receiver
    }

    /// A page of records.
    pub fn list(&self, query: ListQuery) -> oneshot::Receiver<Result<ListPage, StoreError>> {
        let (reply, receiver) = oneshot::channel();
        self.sender.send(Query::List { query, reply });
        receiver
    }

    /// Bodies, for dispatch, which gets them in its mailbox.
    pub fn fetch(&self, jobs: Vec<JobId>) {
        self.sender.send(Query::Bodies { jobs });
    }

    /// The last message.
    pub fn stop(&self) {
        self.sender.send(Query::Stop);
    }
}
