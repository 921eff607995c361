//! The seam of facts: what any store must do. No SQL, row number, transaction or database error passes it.
//!
//! SQLite and the in-memory store stand behind it from the first day, and one conformance suite
//! (`server/tests/store.rs`) runs on both.

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use hostler_engine::event::Restore;
use hostler_engine::spec::{Class, ClassSpec};
use hostler_engine::{Fact, Time, WallTime, When};
use hostler_wire::{Detail, Epoch, JobId, JobState, Priority, Reason};

use crate::auth::{TokenChange, TokenRecord};
use crate::clock::Stamp;

/// The write side. Owned by the writer thread.
pub trait Store: Send + 'static {
    /// What was found, and claimed, when it was opened.
    fn opening(&self) -> &Opening;

    /// Gives everything unfinished to `each`, in the order `Restore` asks for: workers, jobs, runs in id order.
    fn load(&mut self, each: &mut dyn FnMut(Restore)) -> Result<(), StoreError>;

    /// Makes all of it durable, or none.
    fn commit(&mut self, commit: &Commit<'_>) -> Result<(), CommitError>;

    /// The remembered answer to an idempotency key.
    fn key(&mut self, token: &str, key: &str) -> Result<Option<KeyRecord>, StoreError>;

    /// A reader of its own, for another thread; sees every commit that was answered before it is asked.
    fn reader(&self) -> Result<Box<dyn Read>, StoreError>;

    /// One small step of housekeeping (checkpoint, mark, retention), between commits. True if there is more to do.
    fn maintain(&mut self, stamp: &Stamp) -> Result<bool, StoreError>;

    /// Bytes written and not yet where they are to stay, for stores that have such a log.
    fn log_bytes(&self) -> u64 {
        0
    }

    /// Leaves everything tidy on disk.
    fn close(self: Box<Self>) -> Result<(), StoreError>;
}

/// What a store says of itself once it is open. Its epoch is durable by then.
#[derive(Clone, Debug)]
pub struct Opening {
    /// Random, made once.
    pub cluster: [u8; 16],
    /// This start, one more than the last.
    pub epoch: Epoch,
    /// Random, made for this start.
    pub epoch_nonce: [u8; 16],
    /// Nonces of earlier starts that unfinished attempts may still carry, this one's included.
    pub epochs: Vec<(Epoch, [u8; 16])>,
    /// The first id never given out.
    pub next_id: JobId,
    /// Every class known.
    pub classes: Vec<Arc<Class>>,
    /// The clocks at the last commit, if there was one.
    pub stamp: Option<Stamp>,
    /// The access tokens kept, good or not.
    pub tokens: Vec<TokenRecord>,
    /// Whose the last commit was, and its number: whether one whose outcome was `Unknown` is there.
    pub last: Option<(Epoch, u64)>,
}

/// One transaction.
#[derive(Debug)]
pub struct Commit<'a> {
    /// Who writes. A store that has seen a later one answers `Deposed`.
    pub epoch: Epoch,
    /// Counts the commits of this epoch from 1; tells after an `Unknown` whether it is there.
    pub batch: u64,
    /// The clocks.
    pub stamp: Stamp,
    /// Ids below this are used or promised after this commit (P: never given out again).
    pub ids_through: JobId,
    /// Classes first used here.
    pub classes: &'a [Arc<Class>],
    /// Jobs accepted.
    pub submissions: &'a [Batch],
    /// What the engine wants kept, in its order.
    pub facts: &'a [Fact],
    /// Jobs whose body is to be forgotten.
    pub purges: &'a [JobId],
    /// What becomes of access tokens.
    pub tokens: &'a [TokenChange],
    /// Who did what.
    pub audit: &'a [AuditEntry],
    /// The counters, every 10 s while they change.
    pub totals: Option<Totals>,
    /// Sync the disk before answering.
    pub sync: bool,
}

/// What the server has done since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Jobs accepted.
    pub submitted: u64,
    /// Jobs ended, by state.
    pub succeeded: u64,
    /// Jobs ended, by state.
    pub failed: u64,
    /// Jobs ended, by state.
    pub cancelled: u64,
    /// Jobs ended, by state.
    pub expired: u64,
    /// Jobs ended, by state.
    pub skipped: u64,
    /// Attempts that ended without ending their job.
    pub attempts: u64,
    /// Commits made.
    pub commits: u64,
    /// Commits refused.
    pub refused: u64,
    /// Jobs that have not ended, now.
    pub live: u64,
}

/// Jobs accepted together: consecutive ids, all or nothing.
#[derive(Clone, Debug)]
pub struct Batch {
    /// The first id.
    pub first: JobId,
    /// When.
    pub at: Time,
    /// By whom: the id of an access token, empty without one.
    pub by: Arc<str>,
    /// From where.
    pub from: Option<IpAddr>,
    /// The jobs, in order.
    pub jobs: Vec<NewJob>,
    /// The client's key for this request.
    pub key: Option<KeyRecord>,
}

/// One job as it is stored.
#[derive(Clone, Debug)]
pub struct NewJob {
    /// Its class.
    pub class: Arc<Class>,
    /// Its priority.
    pub priority: Priority,
    /// What people call it.
    pub name: Option<Box<str>>,
    /// Its labels as a JSON object.
    pub labels: Option<Box<str>>,
    /// Not before.
    pub due: Option<When>,
    /// Started by then.
    pub expires: Option<When>,
    /// Over by then.
    pub deadline: Option<When>,
    /// The commit is synced for it.
    pub sync: bool,
    /// The job it repeats.
    pub retry_of: Option<JobId>,
    /// An encoded `wire::frame::Work`.
    pub body: Bytes,
}

/// An idempotency key and what it stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRecord {
    /// The caller.
    pub token: Arc<str>,
    /// What the caller sent.
    pub key: Arc<str>,
    /// Of the request's body.
    pub body_hash: [u8; 32],
    /// The first job it made.
    pub first: JobId,
    /// How many.
    pub count: u32,
    /// When, by the engine's clock: a corrected wall clock makes no key old.
    pub at: Time,
}

/// The read side. One per reading thread.
pub trait Read: Send {
    /// A job's record, with its attempts and its end.
    fn job(&mut self, id: JobId) -> Result<Lookup, StoreError>;

    /// The ends of these jobs, those that have one, in the order asked.
    fn ends(&mut self, jobs: &[JobId]) -> Result<Vec<(JobId, JobState, Reason)>, StoreError>;

    /// One page of records without body and attempts.
    fn list(&mut self, query: &ListQuery) -> Result<ListPage, StoreError>;

    /// One page of who did what.
    fn audit(&mut self, query: &AuditQuery) -> Result<AuditPage, StoreError>;

    /// Bodies, for dispatch. A missing one is an error: live jobs are never purged.
    fn bodies(&mut self, jobs: &[JobId]) -> Result<Vec<(JobId, Bytes)>, StoreError>;
}

/// What a store knows of an id.
#[derive(Clone, Debug)]
pub enum Lookup {
    /// There never was one.
    Never,
    /// There was; retention has dropped it.
    Purged,
    /// Here it is.
    Found(Box<Record>),
}

/// A job as it is remembered.
#[derive(Clone, Debug)]
pub struct Record {
    /// Which.
    pub id: JobId,
    /// Its class.
    pub class: Arc<Class>,
    /// Its priority.
    pub priority: Priority,
    /// What people call it.
    pub name: Option<Box<str>>,
    /// Its labels as a JSON object.
    pub labels: Option<Box<str>>,
    /// Accepted.
    pub created: WallTime,
    /// By whom.
    pub by: Box<str>,
    /// Not before (as first asked).
    pub due: Option<WallTime>,
    /// Started by then.
    pub expires: Option<WallTime>,
    /// Over by then.
    pub deadline: Option<WallTime>,
    /// Its commit was synced.
    pub sync: bool,
    /// The job it repeats.
    pub retry_of: Option<JobId>,
    /// The encoded work; none if purged or not asked for.
    pub body: Option<Bytes>,
    /// Its attempts that ended without ending it, in order. (Empty in lists.)
    pub attempts: Vec<AttemptRecord>,
    /// Its end.
    pub end: Option<EndRecord>,
}

/// An attempt that ended.
#[derive(Clone, Debug)]
pub struct AttemptRecord {
    /// Its number.
    pub number: u16,
    /// In which start of the server it was assigned.
    pub epoch: Epoch,
    /// Why it ended.
    pub reason: Reason,
    /// Its worker's name.
    pub worker: Option<Box<str>>,
    /// When it started.
    pub started: Option<WallTime>,
    /// When it ended.
    pub finished: WallTime,
    /// Words and figures.
    pub detail: Option<Box<Detail>>,
}

/// A job's end.
#[derive(Clone, Debug)]
pub struct EndRecord {
    /// Its state for ever.
    pub state: JobState,
    /// Its last attempt, if it had one: number 0 = it never was assigned.
    pub attempt: AttemptRecord,
}

/// Which jobs to list. Filters are joined by "and".
#[derive(Clone, Debug)]
pub struct ListQuery {
    /// Terminal states wanted; empty = any, unfinished ones too.
    pub states: Vec<JobState>,
    /// In one of these queues; empty = any.
    pub queues: Vec<Box<str>>,
    /// With this name.
    pub name: Option<Box<str>>,
    /// Accepted at or after.
    pub since: Option<WallTime>,
    /// Accepted before.
    pub until: Option<WallTime>,
    /// Below (descending) or above (ascending) this id, exclusive.
    pub after: Option<JobId>,
    /// Newest first.
    pub descending: bool,
    /// Most records.
    pub limit: usize,
}

/// A page.
#[derive(Clone, Debug)]
pub struct ListPage {
    /// The records, in the order asked, without bodies. Those that have ended know their former attempts.
    pub records: Vec<Record>,
    /// Where the next page begins: its `after`; none if this was the last.
    pub next: Option<JobId>,
}

/// Something that was done, or refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditEntry {
    /// When.
    pub at: WallTime,
    /// By whom: the id of an access token, empty without one.
    pub token: Arc<str>,
    /// From where.
    pub from: Option<IpAddr>,
    /// What.
    pub action: Cow<'static, str>,
    /// To what: a job, a token, a worker.
    pub object: Option<Box<str>>,
    /// Jobs it made: the first, and how many.
    pub jobs: Option<(JobId, u64)>,
    /// How many requests it stands for.
    pub requests: u64,
    /// Of HTTP; 0 for workers.
    pub status: u16,
    /// Why it was refused; empty if it was not.
    pub code: Cow<'static, str>,
}

/// Which entries to list, newest first. Filters are joined by "and".
#[derive(Clone, Debug, Default)]
pub struct AuditQuery {
    /// At or after.
    pub since: Option<WallTime>,
    /// By this token.
    pub token: Option<Box<str>>,
    /// Of this kind.
    pub action: Option<Box<str>>,
    /// Below this number, exclusive.
    pub below: Option<u64>,
    /// Most entries.
    pub limit: usize,
}

/// A page of entries.
#[derive(Clone, Debug, Default)]
pub struct AuditPage {
    /// With their numbers, newest first.
    pub entries: Vec<(u64, AuditEntry)>,
    /// Where the next page begins: its `below`; none if this was the last.
    pub next: Option<u64>,
}

/// A commit that did not happen, or may not have.
#[derive(Clone, Debug)]
pub enum CommitError {
    /// A later start of the server owns the store.
    Deposed,
    /// Nobody knows: the caller must find out by the batch number, and with SQLite stop.
    Unknown(StoreError),
    /// Rolled back for a reason that may pass: full, busy, read-only.
    Refused(StoreError),
}

/// A store's trouble, in words.
#[derive(Clone, Debug)]
pub struct StoreError {
    /// The kind, which decides what is done about it.
    pub kind: StoreErrorKind,
    /// For a person: the thing, what went wrong, the way out.
    pub message: String,
}

/// Kinds of trouble.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreErrorKind {
    /// No space left.
    Full,
    /// Somebody else holds a lock.
    Busy,
    /// May not be written.
    ReadOnly,
    /// Reading or writing failed.
    Io,
    /// What is there is damaged.
    Corrupt,
    /// Made by another version of this program.
    OtherVersion,
    /// Another server has this data directory.
    InUse,
    /// The query cannot be served by an index.
    NoIndex,
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for StoreError {}

impl fmt::Display for CommitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Deposed => f.write_str("another server has taken over this store"),
            Self::Unknown(error) => write!(f, "whether it is on disk is unknown: {error}"),
            Self::Refused(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for CommitError {}

/// What the writer takes from intake: jobs without ids.
#[derive(Debug)]
pub struct Submission {
    /// By whom.
    pub by: Arc<str>,
    /// From where.
    pub from: Option<IpAddr>,
    /// The classes its jobs name, each once.
    pub classes: Vec<ClassSpec>,
    /// The jobs.
    pub jobs: Vec<Draft>,
    /// The client's key and the hash of its request.
    pub key: Option<(Arc<str>, [u8; 32])>,
    /// What it counts against the intake's bound, bytes.
    pub bytes: usize,
}

/// One job without an id.
#[derive(Debug)]
pub struct Draft {
    /// Index into the submission's classes.
    pub class: u32,
    /// Its priority.
    pub priority: Priority,
    /// What people call it.
    pub name: Option<Box<str>>,
    /// Its labels as a JSON object.
    pub labels: Option<Box<str>>,
    /// Not before.
    pub due: Option<Moment>,
    /// Started by then.
    pub expires: Option<Moment>,
    /// Over by then.
    pub deadline: Option<Moment>,
    /// Sync the commit for it.
    pub sync: bool,
    /// The job it repeats.
    pub retry_of: Option<JobId>,
    /// The encoded work.
    pub body: Bytes,
}

/// A moment as a person names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// So long after acceptance.
    In(hostler_engine::Span),
    /// At this time of day.
    At(WallTime),
}
