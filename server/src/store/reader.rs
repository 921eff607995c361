//! The reader threads: records and lists for people, bodies ahead of dispatch.
//!
//! Each reading thread has a reader of the store and a mailbox of its own. Bodies are best read by one that does
//! nothing else, so that somebody's long list never keeps a worker waiting.
//!
//! Not here: what an answer looks like (`http`), live states (`dispatch`).

use std::fmt;
use std::thread::JoinHandle;

use bytes::Bytes;
use hostler_wire::{JobId, JobState, Reason};
use tokio::sync::oneshot;

use crate::mailbox::{AbortOnPanic, Receiver, Sender};
use crate::store::seam::{AuditPage, AuditQuery, ListPage, ListQuery, Lookup, Read, StoreError};

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
        reply: oneshot::Sender<Result<Ends, StoreError>>,
    },
    /// A page.
    List {
        /// Of what.
        query: ListQuery,
        /// The answer.
        reply: oneshot::Sender<Result<ListPage, StoreError>>,
    },
    /// A page of who did what.
    Audit {
        /// Of what.
        query: AuditQuery,
        /// The answer.
        reply: oneshot::Sender<Result<AuditPage, StoreError>>,
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

/// Ended jobs and how they ended.
pub type Ends = Vec<(JobId, JobState, Reason)>;

/// What a reading thread needs.
pub struct Parts {
    /// Its own way into the store.
    pub store: Box<dyn Read>,
    /// Its mailbox.
    pub inbox: Receiver<Query>,
    /// Takes bodies to dispatch.
    pub fetched: Box<dyn Fn(Bodies) + Send>,
    /// Ends the process when the bodies of live jobs cannot be read: dispatch would wait for them for ever.
    pub fatal: Box<dyn FnOnce(StoreError) + Send>,
}

impl fmt::Debug for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parts").finish_non_exhaustive()
    }
}

/// Starts a reading thread of that name. A panic in it ends the process.
pub fn spawn(name: &str, parts: Parts) -> std::io::Result<JoinHandle<()>> {
    std::thread::Builder::new()
        .name(name.into())
        .spawn(move || {
            let _abort = AbortOnPanic;
            run(parts);
        })
}

/// The thread's work, until `Stop`.
pub fn run(parts: Parts) {
    let Parts {
        mut store,
        inbox,
        fetched,
        fatal,
    } = parts;
    let mut queries = Vec::new();
    loop {
        if inbox.drain(&mut queries, TURN_QUERIES) == 0 {
            inbox.park(None);
        }
        for query in queries.drain(..) {
            match query {
                Query::Job { id, reply } => drop(reply.send(store.job(id))),
                Query::Ends { jobs, reply } => drop(reply.send(store.ends(&jobs))),
                Query::List { query, reply } => drop(reply.send(store.list(&query))),
                Query::Audit { query, reply } => drop(reply.send(store.audit(&query))),
                Query::Bodies { jobs } => match store.bodies(&jobs) {
                    Ok(bodies) => fetched(bodies),
                    Err(error) => {
                        tracing::error!(%error, "bodies of live jobs cannot be read");
                        return fatal(error);
                    }
                },
                Query::Stop => return,
            }
        }
    }
}

/// Queries taken in one turn.
const TURN_QUERIES: usize = 256;

/// The other threads' end of the readers.
#[derive(Clone, Debug)]
pub struct Handle {
    sender: Sender<Query>,
    bodies: Sender<Query>,
}

impl Handle {
    /// A handle on that mailbox, for everything.
    pub fn new(sender: Sender<Query>) -> Self {
        Self {
            bodies: sender.clone(),
            sender,
        }
    }

    /// A handle on two readers, of which the second reads bodies and nothing else.
    pub fn with_bodies(sender: Sender<Query>, bodies: Sender<Query>) -> Self {
        Self { sender, bodies }
    }

    /// One job's record.
    pub fn job(&self, id: JobId) -> oneshot::Receiver<Result<Lookup, StoreError>> {
        let (reply, receiver) = oneshot::channel();
        self.sender.send(Query::Job { id, reply });
        receiver
    }

    /// Which of these have ended.
    pub fn ends(&self, jobs: Vec<JobId>) -> oneshot::Receiver<Result<Ends, StoreError>> {
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

    /// A page of who did what.
    pub fn audit(&self, query: AuditQuery) -> oneshot::Receiver<Result<AuditPage, StoreError>> {
        let (reply, receiver) = oneshot::channel();
        self.sender.send(Query::Audit { query, reply });
        receiver
    }

    /// Bodies, for dispatch, which gets them in its mailbox.
    pub fn fetch(&self, jobs: Vec<JobId>) {
        self.bodies.send(Query::Bodies { jobs });
    }

    /// The last message to each reader.
    pub fn stop(&self) {
        self.sender.send(Query::Stop);
        self.bodies.send(Query::Stop);
    }
}
