//! The writer: the only thread that changes the store.
//!
//! Takes submissions and facts from its mailbox, makes one transaction of them, commits, and only then answers. A
//! batch is what arrived while the last commit was on its way to disk: a quiet server commits one job at once, a busy
//! one thousands for the same sync.
//!
//! The order after a commit is fixed: jobs into the lanes, then word to dispatch, then the answers. So a job is
//! dispatched only after its commit (P2), an answer means on disk (P1), and whoever got one finds the job in the
//! engine.
//!
//! Where a submission comes alone and a worker waits for it, its commit is not synced: dispatch hears of it, and the
//! commit of what dispatch makes of it syncs both. Until then the answer is owed. So a job that is started at once
//! costs one sync, not two.
//!
//! A refused commit (disk full) refuses its submitters; facts stay queued in order and are tried again. After an
//! unknown one nobody knows what the disk holds: submitters are told so, and the process ends. A deposed writer
//! refuses everything.
//!
//! Not here: what a fact means (`engine`), SQL (`sqlite`), what a list shows (`reader`).

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use hostler_engine::fact::{Again, Ended};
use hostler_engine::lanes::Lanes;
use hostler_engine::spec::{Class, ClassId, ClassSpec, Run};
use hostler_engine::{Fact, Span, Time, When};
use hostler_wire::{JobId, JobState, mutation, result};
use tokio::sync::oneshot;

use crate::auth::TokenChange;
use crate::clock::{Clock, Stamp};
use crate::config::{Durability, Limits};
use crate::mailbox::{AbortOnPanic, Receiver, Sender};
use crate::metrics::{Commits, Counter, Health};
use crate::store::audit::{self, Notes};
use crate::store::depth::{ByQueue, Depths, LiveJobs};
use crate::store::ids::Ids;
use crate::store::seam::{
    AuditEntry, Batch, Commit, CommitError, Draft, KeyRecord, Moment, NewJob, Store, StoreError,
    StoreErrorKind, Submission, Totals,
};

/// Jobs in one commit, or one larger submission: 512 would cost 27 % of the speed, more wins nothing and delays
/// answers.
const COMMIT_JOBS: usize = 4_096;
/// Messages taken in one turn.
const TURN_MESSAGES: usize = 16_384;
/// Classes known at once. A class costs some 300 bytes here, in the engine and in each reader.
const CLASSES_MAX: usize = 1 << 20;
/// After a refused commit: how long until the next try without new work, at first and at most.
const RETRY_FIRST: Span = Span::from_millis(100);
const RETRY_LAST: Span = Span::from_secs(2);
/// Jobs of a submission whose answer may be owed.
const OWED_JOBS_MAX: usize = 16;
/// How long dispatch has to say what it makes of them.
const OWED_WAIT: Span = Span::from_millis(1);
/// Between two rows of counters.
const TOTALS_EVERY: Span = Span::from_secs(10);
/// Commits between two steps of housekeeping while there is no idle moment.
const BUSY_COMMITS: u64 = 32;
/// Idle: how often housekeeping is looked after.
const IDLE_LOOK: Duration = Duration::from_secs(60);

/// What the thread needs.
pub struct Parts {
    /// The write side, loaded.
    pub store: Box<dyn Store>,
    /// Its mailbox.
    pub inbox: Receiver<Write>,
    /// The other end, for the count of what is in flight.
    pub handle: Handle,
    /// Where accepted jobs go.
    pub lanes: JobLanes,
    /// Bytes of bodies in memory; dispatch subtracts what it lets go.
    pub resident_bytes: Arc<AtomicUsize>,
    /// Dispatch says: a worker waits for a job, and no job for a worker.
    pub idle: Arc<AtomicBool>,
    /// Tells dispatch; called once a commit, after the lanes have its jobs.
    pub notify: Box<dyn Fn(Notice) + Send>,
    /// Ends the process once nobody knows what the disk holds. Called after the submitters were told.
    pub fatal: Box<dyn FnOnce(StoreError) + Send>,
    /// Told when the store refuses commits, and when it takes them again.
    pub health: Arc<Health>,
    /// What the writer counts.
    pub counters: Arc<Counters>,
    /// The server's clock, which goes on from the store's stamp.
    pub clock: Clock,
    /// Jobs that have not ended, as loading the store has shown.
    pub live: LiveJobs,
    /// Whether facts are synced.
    pub durability: Durability,
    /// Of live jobs, resident bytes and keys.
    pub limits: Limits,
}

impl fmt::Debug for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parts").finish_non_exhaustive()
    }
}

/// What dispatch is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// Something came into the lanes.
    Arrived,
    /// The same, and the writer waits to hear what becomes of it: facts, or that there are none.
    Owed,
    /// Facts up to this number are durable; something may have come into the lanes too.
    Committed {
        /// The number.
        through: u64,
    },
    /// Another server owns the store.
    Deposed,
}

/// What the writer counts, for anyone to read.
#[derive(Debug, Default)]
pub struct Counters {
    /// Jobs accepted.
    pub submitted: Counter,
    /// Jobs that succeeded.
    pub succeeded: Counter,
    /// Jobs that failed.
    pub failed: Counter,
    /// Jobs that were cancelled.
    pub cancelled: Counter,
    /// Jobs that never started in time.
    pub expired: Counter,
    /// Jobs that became pointless.
    pub skipped: Counter,
    /// Attempts that ended without ending their job.
    pub attempts: Counter,
    /// Results of ended jobs that were too large, and are named instead.
    pub results_too_large: Counter,
    /// Commits made.
    pub commits: Counter,
    /// The one under way.
    pub under_way: Arc<Commits>,
    /// Commits refused.
    pub refused: Counter,
    /// Jobs that have not ended.
    pub live: Counter,
    /// Bytes in the database's log; grows while a reader holds an old snapshot.
    pub log_bytes: Counter,
}

/// Starts the thread. A panic in it ends the process: the store is the truth, and the next start recovers from it.
pub fn spawn(parts: Parts) -> std::io::Result<JoinHandle<()>> {
    std::thread::Builder::new()
        .name("writer".into())
        .spawn(move || {
            let _abort = AbortOnPanic;
            run(parts);
        })
}

/// The thread's work, until `Stop`.
pub fn run(parts: Parts) {
    let mut writer = Writer::new(parts);
    loop {
        if writer.gather() {
            writer.commit();
        }
        match writer.rest() {
            Rest::GoOn => {}
            Rest::Sleep(timeout) => writer.inbox.park(Some(timeout)),
            Rest::Close => return writer.close(),
            Rest::Die => return,
        }
    }
}

/// The language of the writer's mailbox.
#[derive(Debug)]
pub enum Write {
    /// Jobs to accept.
    Submit {
        /// The jobs.
        submission: Submission,
        /// Answered after the commit and after the lanes have them.
        reply: Reply,
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
    /// An access token begins or ceases to be good for something.
    Token {
        /// What becomes of it.
        change: TokenChange,
        /// Who did it; written in the same commit.
        entry: AuditEntry,
        /// Answered after the commit.
        reply: oneshot::Sender<Result<(), StoreError>>,
    },
    /// An access token was used: with the next commit.
    Used(TokenChange),
    /// Something was done or refused: with the next commit, within a second or so.
    Note(AuditEntry),
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
    /// As many jobs of a queue as there may be have not ended.
    QueueFull {
        /// Which.
        queue: Arc<str>,
        /// How many there may be.
        max: u64,
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

/// Where the answer to a submission goes.
#[derive(Debug)]
pub struct Reply {
    to: oneshot::Sender<Result<Accepted, SubmitError>>,
    through: Option<Arc<Sender<Answer>>>,
}

/// An answer on its way to whoever waits for it on the thread that takes it out of its mailbox: there it wakes a task
/// without a system call, and a commit wakes a thread once, however many wait.
#[derive(Debug)]
pub struct Answer {
    to: oneshot::Sender<Result<Accepted, SubmitError>>,
    what: Result<Accepted, SubmitError>,
}

impl Answer {
    /// Hands it over; whoever asked may have gone.
    pub fn deliver(self) {
        tell(self.to, self.what);
    }
}

impl Reply {
    /// Answers, and wakes whoever waits.
    pub fn send(self, what: Result<Accepted, SubmitError>) {
        if let Some(through) = self.push(what) {
            through.wake();
        }
    }

    /// Answers; what is given back has to be woken.
    fn push(self, what: Result<Accepted, SubmitError>) -> Option<Arc<Sender<Answer>>> {
        let answer = Answer { to: self.to, what };
        match &self.through {
            Some(through) => through.push(answer),
            None => answer.deliver(),
        }
        self.through
    }
}

/// The other threads' end of the writer.
#[derive(Clone, Debug)]
pub struct Handle {
    sender: Sender<Write>,
    /// How answers to submissions travel; straight, if not by a mailbox.
    answers: Option<Arc<Sender<Answer>>>,
    /// Bytes of submissions sent and not yet answered.
    pending_bytes: Arc<AtomicUsize>,
    pending_bytes_max: usize,
}

impl Handle {
    /// A handle that lets in so many bytes of submissions at once.
    pub fn new(sender: Sender<Write>, pending_bytes_max: usize) -> Self {
        Self {
            sender,
            answers: None,
            pending_bytes: Arc::default(),
            pending_bytes_max,
        }
    }

    /// The same for a thread that takes answers to submissions out of this mailbox.
    #[must_use]
    pub fn through(&self, answers: Sender<Answer>) -> Self {
        Self {
            answers: Some(Arc::new(answers)),
            ..self.clone()
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
        let (to, receiver) = oneshot::channel();
        let through = self.answers.clone();
        let reply = Reply { to, through };
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

    /// Makes a token good for something, or for nothing.
    pub fn token(
        &self,
        change: TokenChange,
        entry: AuditEntry,
    ) -> oneshot::Receiver<Result<(), StoreError>> {
        let (reply, receiver) = oneshot::channel();
        self.sender.send(Write::Token {
            change,
            entry,
            reply,
        });
        receiver
    }

    /// Tells that a token was used.
    pub fn used(&self, change: TokenChange) {
        self.sender.send(Write::Used(change));
    }

    /// Tells what was done or refused.
    pub fn note(&self, entry: AuditEntry) {
        self.sender.send(Write::Note(entry));
    }

    /// The last message.
    pub fn stop(&self) {
        self.sender.send(Write::Stop);
    }
}

/// A submission that waits for its turn.
#[derive(Debug)]
struct Waiting {
    submission: Submission,
    reply: Reply,
}

type Told = oneshot::Sender<Result<(), StoreError>>;

/// A submission within the present commit.
#[derive(Debug)]
struct Pending {
    reply: Reply,
    first: JobId,
    count: u32,
    bytes: usize,
    /// Its key, until the commit has it, and repeats of the same request that wait for the same commit.
    repeats: Vec<(Reply, usize)>,
}

/// The answer to a submission whose commit is not synced yet.
#[derive(Debug)]
struct Owed {
    reply: Reply,
    bytes: usize,
    accepted: Accepted,
}

/// What one turn commits.
#[derive(Debug, Default)]
struct Turn {
    batches: Vec<Batch>,
    pending: Vec<Pending>,
    /// By token and key: place in `pending`, and the record in flight.
    keys: HashMap<(Arc<str>, Arc<str>), (usize, KeyRecord)>,
    jobs: usize,
    /// The same by queue, where there is a limit on that.
    of_queue: ByQueue,
    sync: bool,
}

/// What becomes of the thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flow {
    /// It commits.
    Serving,
    /// It refuses everything.
    Deposed,
    /// It ends without another word.
    Dead,
}

/// What one turn has gathered, on its way to the disk.
#[derive(Debug)]
struct Open {
    stamp: Stamp,
    turn: Turn,
    totals: Option<Totals>,
    ids_through: JobId,
    purges: Vec<JobId>,
    tokens: Vec<TokenChange>,
    audit: Vec<AuditEntry>,
    sync: bool,
    /// It is to be synced, but by the next one.
    owes: bool,
}

/// What the thread does between two turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// There is more to do.
    GoOn,
    /// Nothing to do before then, unless something comes.
    Sleep(Duration),
    /// It was told to stop, and nothing is left.
    Close,
    /// It ends without another word.
    Die,
}

/// The writer, turn by turn: the thread lets one follow the other, the simulator lets time pass in between.
pub struct Writer {
    store: Box<dyn Store>,
    inbox: Receiver<Write>,
    handle: Handle,
    lanes: JobLanes,
    resident_bytes: Arc<AtomicUsize>,
    idle: Arc<AtomicBool>,
    notify: Box<dyn Fn(Notice) + Send>,
    fatal: Option<Box<dyn FnOnce(StoreError) + Send>>,
    health: Arc<Health>,
    counters: Arc<Counters>,
    clock: Clock,
    durability: Durability,
    limits: Limits,

    flow: Flow,
    stopping: bool,
    ids: Ids,
    /// The next commit must promise ids for that many jobs.
    ids_wanted: u64,
    batch: u64,
    classes: HashMap<ClassSpec, Arc<Class>>,
    next_class: u32,
    /// Classes no commit has taken yet.
    new_classes: Vec<Arc<Class>>,
    live: u64,
    depths: Depths,

    waiting: VecDeque<Waiting>,
    owed: Vec<Owed>,
    /// Dispatch has said what it makes of what is owed an answer; or it is waited for no longer than this.
    told: bool,
    owed_until: Time,
    facts: Vec<Fact>,
    facts_through: u64,
    purges: Vec<(JobId, Told)>,
    tokens: Vec<(TokenChange, AuditEntry, Told)>,
    uses: Vec<TokenChange>,
    notes: Notes,

    /// After a refused commit: when to try again, and how long to wait after that.
    retry_at: Option<Time>,
    retry_delay: Span,
    totals_at: Time,
    totals_told: Totals,
    /// Commits since the last step of housekeeping.
    untidy: u64,
    open: Option<Open>,
}

impl fmt::Debug for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writer")
            .field("batch", &self.batch)
            .finish_non_exhaustive()
    }
}

impl Writer {
    /// A writer that goes on where the store left off.
    pub fn new(parts: Parts) -> Self {
        let opening = parts.store.opening();
        let classes: HashMap<_, _> = opening
            .classes
            .iter()
            .map(|class| (class.spec.clone(), Arc::clone(class)))
            .collect();
        let last_class = opening.classes.iter().map(|class| class.id.raw()).max();
        parts.counters.live.set(parts.live.jobs);
        let depths = Depths::new(parts.limits.queue_jobs_max, &opening.classes, &parts.live);
        Self {
            ids: Ids::new(opening.next_id),
            ids_wanted: 1,
            batch: 0,
            next_class: last_class.map_or(1, |last| last + 1),
            classes,
            new_classes: Vec::new(),
            live: parts.live.jobs,
            depths,
            store: parts.store,
            inbox: parts.inbox,
            handle: parts.handle,
            lanes: parts.lanes,
            resident_bytes: parts.resident_bytes,
            idle: parts.idle,
            notify: parts.notify,
            fatal: Some(parts.fatal),
            health: parts.health,
            counters: parts.counters,
            totals_at: parts.clock.now(),
            totals_told: Totals::default(),
            clock: parts.clock,
            durability: parts.durability,
            limits: parts.limits,
            flow: Flow::Serving,
            stopping: false,
            waiting: VecDeque::new(),
            owed: Vec::new(),
            told: false,
            owed_until: Time::ZERO,
            facts: Vec::new(),
            facts_through: 0,
            purges: Vec::new(),
            tokens: Vec::new(),
            uses: Vec::new(),
            notes: Notes::new(parts.clock.now()),
            retry_at: None,
            retry_delay: RETRY_FIRST,
            untidy: 0,
            open: None,
        }
    }

    /// Whether something has come since the last turn.
    pub fn has_something(&self) -> bool {
        !self.inbox.is_empty()
    }

    /// Begins a turn: takes what came. True if there is something to commit.
    pub fn gather(&mut self) -> bool {
        let mut messages = Vec::new();
        self.inbox.drain(&mut messages, TURN_MESSAGES);
        // What can wait for the next commit is no reason to try one.
        let can_wait = |message: &Write| matches!(message, Write::Note(_) | Write::Used(_));
        let news = !messages.iter().all(can_wait);
        messages.drain(..).for_each(|message| self.sort(message));
        match self.flow {
            Flow::Serving => self.open = self.prepare(news),
            Flow::Deposed => self.refuse_all(),
            Flow::Dead => {}
        }
        self.open.is_some()
    }

    /// What follows a turn. Housekeeping is done here.
    pub fn rest(&mut self) -> Rest {
        if self.flow == Flow::Dead {
            return Rest::Die;
        }
        if !self.waiting.is_empty() {
            return Rest::GoOn;
        }
        if self.stopping {
            return Rest::Close;
        }
        if !self.owed.is_empty() {
            // Not even housekeeping comes before a sync that somebody waits for.
            let now = self.clock.now();
            let held_back = self.retry_at.is_some_and(|at| now < at);
            let waits = self.inbox.is_empty() && (held_back || !self.is_due(now));
            return if waits {
                Rest::Sleep(self.patience())
            } else {
                Rest::GoOn
            };
        }
        if self.untidy >= BUSY_COMMITS || self.inbox.is_empty() {
            let more = self.tidy();
            if self.flow != Flow::Dead && !more && self.inbox.is_empty() {
                return Rest::Sleep(self.patience());
            }
        }
        Rest::GoOn
    }

    fn sort(&mut self, message: Write) {
        match message {
            Write::Submit { submission, reply } => {
                self.waiting.push_back(Waiting { submission, reply });
            }
            Write::Facts { mut facts, through } => {
                bound_results(&mut facts, self.limits.result_bytes_max);
                if self.facts.is_empty() {
                    self.facts = facts;
                } else {
                    self.facts.extend(facts);
                }
                self.facts_through = through;
                self.told = true;
            }
            Write::Purge { job, reply } => self.purges.push((job, reply)),
            Write::Token {
                change,
                entry,
                reply,
            } => self.tokens.push((change, entry, reply)),
            Write::Used(change) => self.uses.push(change),
            Write::Note(entry) => self.notes.add(entry, self.clock.now()),
            Write::Stop => self.stopping = true,
        }
    }

    /// What the next commit is to hold, if there is something to commit.
    fn prepare(&mut self, news: bool) -> Option<Open> {
        let stamp = self.clock.stamp();
        let mut turn = Turn::default();
        self.admit_waiting(&stamp, &mut turn);
        let totals = self.totals_due(stamp.engine);
        // A store that refused is tried again even with nothing to commit: whoever looks at our health waits for it.
        let owes = !self.owed.is_empty();
        let wanted = self.ids_wanted > 0
            || owes && self.is_due(stamp.engine)
            || self.retry_at.is_some()
            || !self.facts.is_empty()
            || !self.purges.is_empty()
            || !self.tokens.is_empty()
            || self.notes.due().is_some_and(|due| due <= stamp.engine)
            || totals.is_some();
        let again = news || !self.waiting.is_empty();
        let held_back = self.retry_at.is_some_and(|at| stamp.engine < at) && !again;
        if turn.batches.is_empty() && (!wanted || held_back) {
            return None;
        }
        let facts_sync = self.durability == Durability::Fsync && !self.facts.is_empty();
        let ids_through = self.ids.promise(self.ids_wanted);
        let purges: Vec<JobId> = self.purges.iter().map(|(job, _)| *job).collect();
        let changes = !purges.is_empty() || !self.tokens.is_empty();
        let others = owes || facts_sync || changes || self.ids_wanted > 0;
        let sync = turn.sync || others;
        Some(Open {
            owes: turn.sync && !others && self.may_owe(&turn),
            stamp,
            totals,
            ids_through,
            purges,
            tokens: self.token_changes(),
            audit: self.audit(&stamp, &turn.batches),
            turn,
            sync,
        })
    }

    /// Whether the answers that are owed wait for nothing but a sync.
    fn is_due(&self, now: Time) -> bool {
        self.told || now >= self.owed_until
    }

    /// Whether dispatch will most likely have facts about what this turn commits, and nobody else waits for the disk.
    fn may_owe(&self, turn: &Turn) -> bool {
        let starts_now = |batch: &Batch| batch.jobs.iter().all(|job| job.due.is_none());
        self.idle.load(Ordering::Relaxed)
            && turn.pending.len() == 1
            && turn.jobs <= OWED_JOBS_MAX
            && turn.batches.iter().all(starts_now)
            && self.facts.is_empty()
            && self.waiting.is_empty()
            && self.inbox.is_empty()
            && self.retry_at.is_none()
            && !self.stopping
    }

    fn token_changes(&self) -> Vec<TokenChange> {
        let changes = self.tokens.iter().map(|(change, ..)| change);
        changes.chain(&self.uses).cloned().collect()
    }

    /// What this commit says of who did what.
    fn audit(&self, stamp: &Stamp, batches: &[Batch]) -> Vec<AuditEntry> {
        let mut all = self.notes.ready(stamp.engine, stamp.wall);
        all.extend(self.tokens.iter().map(|(_, entry, _)| entry.clone()));
        audit::of_batches(batches, stamp.wall, &mut all);
        all
    }

    /// Commits what was gathered, and lets the consequences follow.
    pub fn commit(&mut self) {
        let Some(Open {
            stamp,
            turn,
            totals,
            ids_through,
            purges,
            tokens,
            audit,
            sync,
            owes,
        }) = self.open.take()
        else {
            return;
        };
        let sync = sync && !owes;
        let under_way = Arc::clone(&self.counters.under_way);
        let under_way = under_way.begin();
        let done = self.store.commit(&Commit {
            epoch: self.store.opening().epoch,
            batch: self.batch + 1,
            stamp,
            ids_through,
            classes: &self.new_classes,
            submissions: &turn.batches,
            facts: &self.facts,
            purges: &purges,
            tokens: &tokens,
            audit: &audit,
            totals,
            sync: sync && !mutation::is("commit not synced"),
        });
        drop(under_way);
        match done {
            Ok(()) => {
                self.batch += 1;
                // A promise that a power cut would take back is none.
                if sync {
                    self.ids.promised(ids_through);
                }
                self.committed(&stamp, turn, totals, owes);
            }
            Err(CommitError::Refused(error)) => self.refused(&stamp, turn, &error),
            Err(CommitError::Unknown(error)) => self.unknown(turn, &error),
            Err(CommitError::Deposed) => self.deposed(turn),
        }
    }

    /// Takes submissions into the turn until it is full, answering those that need no commit.
    fn admit_waiting(&mut self, stamp: &Stamp, turn: &mut Turn) {
        while let Some(next) = self.waiting.front() {
            let count = next.submission.jobs.len();
            if turn.jobs > 0 && turn.jobs + count > COMMIT_JOBS {
                return;
            }
            if !self.ids.has(count as u64) {
                // A commit of its own promises them first: ids in a commit that fails must not be given out again.
                self.ids_wanted = count.max(1) as u64;
                return;
            }
            let Waiting { submission, reply } = self
                .waiting
                .pop_front()
                .expect("its front was just looked at");
            let bytes = submission.bytes;
            match self.admit(stamp, turn, submission, reply) {
                // What it repeats may be what is not synced yet.
                Err((reply, Ok(accepted))) if !self.owed.is_empty() => self.owed.push(Owed {
                    reply,
                    bytes,
                    accepted,
                }),
                Err((reply, answer)) => self.answer(reply, bytes, answer),
                Ok(()) => {}
            }
        }
    }

    /// Takes one submission into the turn; or gives the answer it gets at once.
    fn admit(
        &mut self,
        stamp: &Stamp,
        turn: &mut Turn,
        submission: Submission,
        reply: Reply,
    ) -> Result<(), (Reply, Result<Accepted, SubmitError>)> {
        let count = submission.jobs.len();
        let Ok(count_u32) = u32::try_from(count) else {
            return Err((
                reply,
                Err(SubmitError::Busy {
                    limit: "batch_jobs_max",
                }),
            ));
        };
        let place = submission
            .key
            .as_ref()
            .map(|(key, _)| (Arc::clone(&submission.by), Arc::clone(key)));
        if let (Some(place), Some((_, hash))) = (&place, &submission.key) {
            if let Some((at, record)) = turn.keys.get(place) {
                if record.body_hash != *hash {
                    return Err((reply, Err(SubmitError::KeyReused(Box::new(record.clone())))));
                }
                turn.pending[*at].repeats.push((reply, submission.bytes));
                return Ok(());
            }
            if let Some(answer) = self.remembered(stamp, place, hash) {
                return Err((reply, answer));
            }
        }
        if self.live + turn.jobs as u64 + count as u64 > self.limits.live_jobs_max {
            return Err((
                reply,
                Err(SubmitError::Busy {
                    limit: "live_jobs_max",
                }),
            ));
        }
        let (classes, jobs) = (&submission.classes, &submission.jobs);
        let of_queue = match self.depths.admit(&turn.of_queue, classes, jobs) {
            Ok(of_queue) => of_queue,
            Err(queue) => {
                let max = self.limits.queue_jobs_max.unwrap_or_default();
                return Err((reply, Err(SubmitError::QueueFull { queue, max })));
            }
        };
        let Some(classes) = self.intern(submission.classes) else {
            return Err((
                reply,
                Err(SubmitError::Busy {
                    limit: "classes_max",
                }),
            ));
        };
        let first = self.ids.take(count as u64);
        let key = match (place, submission.key) {
            (Some(place), Some((key, body_hash))) => {
                let record = KeyRecord {
                    token: Arc::clone(&submission.by),
                    key,
                    body_hash,
                    first,
                    count: count_u32,
                    at: stamp.engine,
                };
                turn.keys
                    .insert(place, (turn.pending.len(), record.clone()));
                Some(record)
            }
            _ => None,
        };
        let job = |draft: Draft| new_job(stamp.engine, &classes, draft);
        let jobs: Vec<NewJob> = submission.jobs.into_iter().map(job).collect();
        turn.jobs += count;
        for (queue, count) in of_queue {
            *turn.of_queue.entry(queue).or_default() += count;
        }
        turn.sync |= jobs.iter().any(|job| job.sync);
        turn.batches.push(Batch {
            first,
            at: stamp.engine,
            by: submission.by,
            from: submission.from,
            jobs,
            key,
        });
        turn.pending.push(Pending {
            reply,
            first,
            count: count_u32,
            bytes: submission.bytes,
            repeats: Vec::new(),
        });
        Ok(())
    }

    /// The answer to a key that the store remembers.
    fn remembered(
        &mut self,
        stamp: &Stamp,
        (token, key): &(Arc<str>, Arc<str>),
        hash: &[u8; 32],
    ) -> Option<Result<Accepted, SubmitError>> {
        if mutation::is("idempotency key forgotten") {
            return None;
        }
        let record = match self.store.key(token, key) {
            Ok(record) => record?,
            Err(error) => return Some(Err(SubmitError::Refused(error))),
        };
        let kept_us = u64::try_from(self.limits.key_retention.as_micros()).unwrap_or(u64::MAX);
        if stamp.engine.since(record.at) >= Span::from_micros(kept_us) {
            return None;
        }
        Some(if record.body_hash == *hash {
            Ok(Accepted {
                first: record.first,
                count: record.count,
                replayed: true,
            })
        } else {
            Err(SubmitError::KeyReused(Box::new(record)))
        })
    }

    /// The submission's classes by their numbers; none if there is no room for a new one.
    fn intern(&mut self, specs: Vec<ClassSpec>) -> Option<Vec<Arc<Class>>> {
        let mut interned = Vec::with_capacity(specs.len());
        for spec in specs {
            let known = self.classes.len();
            interned.push(match self.classes.entry(spec) {
                Entry::Occupied(known) => Arc::clone(known.get()),
                Entry::Vacant(_) if known >= CLASSES_MAX => return None,
                Entry::Vacant(place) => {
                    let class = Arc::new(Class {
                        id: ClassId::new(self.next_class),
                        spec: place.key().clone(),
                    });
                    self.next_class += 1;
                    self.depths.meet(&class);
                    self.new_classes.push(Arc::clone(&class));
                    Arc::clone(place.insert(class))
                }
            });
        }
        Some(interned)
    }

    /// It is on disk: the lanes, dispatch, the submitters, in this order.
    fn committed(&mut self, stamp: &Stamp, turn: Turn, totals: Option<Totals>, owes: bool) {
        self.ids_wanted = 0;
        self.new_classes.clear();
        self.untidy += 1;
        self.count(&turn);
        if let Some(totals) = totals {
            self.totals_at = stamp.engine;
            self.totals_told = totals;
        }
        if self.retry_at.take().is_some() {
            tracing::info!("the store takes commits again");
            self.health.set_store(None);
            self.retry_delay = RETRY_FIRST;
        }
        let arrived = !turn.batches.is_empty();
        self.push_runs(turn.batches);
        if !self.facts.is_empty() {
            self.facts.clear();
            (self.notify)(Notice::Committed {
                through: self.facts_through,
            });
        } else if arrived {
            (self.notify)(if owes { Notice::Owed } else { Notice::Arrived });
        }
        for (_, reply) in self.purges.drain(..) {
            tell(reply, Ok(()));
        }
        for (_, _, reply) in self.tokens.drain(..) {
            tell(reply, Ok(()));
        }
        self.uses.clear();
        self.notes.written(stamp.engine);
        let mut answers = mem::take(&mut self.owed);
        for pending in turn.pending {
            let first = (pending.reply, pending.bytes, false);
            let repeats = pending.repeats.into_iter();
            let repeats = repeats.map(|(reply, bytes)| (reply, bytes, true));
            let all = std::iter::once(first).chain(repeats);
            answers.extend(all.map(|(reply, bytes, replayed)| Owed {
                reply,
                bytes,
                accepted: Accepted {
                    first: pending.first,
                    count: pending.count,
                    replayed,
                },
            }));
        }
        if owes && !mutation::is("answered before its sync") {
            self.owed = answers;
            self.told = false;
            self.owed_until = stamp.engine + OWED_WAIT;
            return;
        }
        self.pay(answers);
    }

    /// Gives answers, and wakes each thread once.
    fn pay(&self, answers: Vec<Owed>) {
        let mut to_wake: Vec<Arc<Sender<Answer>>> = Vec::new();
        for Owed {
            reply,
            bytes,
            accepted,
        } in answers
        {
            self.handle.answered(bytes);
            if let Some(through) = reply.push(Ok(accepted))
                && !to_wake.iter().any(|known| Arc::ptr_eq(known, &through))
            {
                to_wake.push(through);
            }
        }
        to_wake.iter().for_each(|through| through.wake());
    }

    /// Neighbours that are to be treated alike go as one run, from whichever submission they came.
    fn push_runs(&self, batches: Vec<Batch>) {
        let jobs = batches.into_iter().flat_map(|batch| {
            (batch.first.raw()..).zip(batch.jobs).map(|(id, job)| {
                (
                    JobId::new(id).expect("ids were taken below the largest"),
                    job,
                )
            })
        });
        let mut open: Option<Arrival> = None;
        for (id, job) in jobs {
            if let Some(arrival) = &mut open {
                let run = &mut arrival.run;
                if id.raw() == run.first.raw() + u64::from(run.count)
                    && job.class.id == run.class.id
                    && (job.priority, job.due, job.expires, job.deadline)
                        == (run.priority, run.due, run.expires, run.deadline)
                {
                    run.count += 1;
                    arrival.bodies.push(job.body);
                    continue;
                }
            }
            let run = Run {
                first: id,
                count: 1,
                priority: job.priority,
                class: job.class,
                due: job.due,
                expires: job.expires,
                deadline: job.deadline,
                resident: false,
            };
            let bodies = vec![job.body];
            if let Some(done) = open.replace(Arrival { run, bodies }) {
                self.push_run(done);
            }
        }
        if let Some(done) = open {
            self.push_run(done);
        }
    }

    /// Bodies go along while the budget lasts, and if the job may run now; else they are read back when it is their
    /// turn.
    fn push_run(&self, mut arrival: Arrival) {
        let bytes: usize = arrival.bodies.iter().map(Bytes::len).sum();
        let held = self.resident_bytes.load(Ordering::Relaxed);
        if arrival.run.due.is_none() && held + bytes <= self.limits.resident_bytes_max {
            self.resident_bytes.fetch_add(bytes, Ordering::Relaxed);
            arrival.run.resident = true;
        } else {
            arrival.bodies = Vec::new();
        }
        self.lanes.push(arrival.run.priority, arrival);
    }

    fn count(&mut self, turn: &Turn) {
        let counters = &self.counters;
        let mut ended = 0;
        self.depths.accepted(&turn.of_queue);
        for fact in &self.facts {
            match fact {
                Fact::Ended(end) => {
                    ended += 1;
                    self.depths.ended(end.class);
                    let detail = end.detail.as_deref();
                    if detail.is_some_and(|detail| result::is_named(&detail.result)) {
                        counters.results_too_large.add(1);
                    }
                    match end.state {
                        JobState::Succeeded => counters.succeeded.add(1),
                        JobState::Failed => counters.failed.add(1),
                        JobState::Cancelled => counters.cancelled.add(1),
                        JobState::Expired => counters.expired.add(1),
                        JobState::Skipped => counters.skipped.add(1),
                        JobState::Scheduled
                        | JobState::Blocked
                        | JobState::Queued
                        | JobState::Running
                        | JobState::Cancelling => unreachable!("an end is terminal"),
                    }
                }
                Fact::Again(_) => counters.attempts.add(1),
                Fact::Worker(_) | Fact::Assigned(_) | Fact::Started(_) | Fact::Cancelling(_) => {}
            }
        }
        self.live = (self.live + turn.jobs as u64).saturating_sub(ended);
        counters.submitted.add(turn.jobs as u64);
        counters.commits.add(1);
        counters.live.set(self.live);
    }

    /// Rolled back, for a reason that may pass. Its ids stay unused.
    fn refused(&mut self, stamp: &Stamp, turn: Turn, error: &StoreError) {
        if self.retry_at.is_none() {
            tracing::warn!(%error, "the store refuses commits");
        }
        self.counters.refused.add(1);
        if mutation::is("facts of a refused commit dropped") {
            self.facts.clear();
        }
        self.health.set_store(Some(error.message.clone()));
        self.retry_at = Some(stamp.engine + self.retry_delay);
        self.retry_delay = self.retry_delay.times(2).min(RETRY_LAST);
        let nothing_admitted = turn.pending.is_empty();
        self.fail(turn, || SubmitError::Refused(error.clone()));
        // The commit was only to promise ids for the next one in the line.
        if nothing_admitted && let Some(next) = self.waiting.pop_front() {
            let refusal = Err(SubmitError::Refused(error.clone()));
            self.answer(next.reply, next.submission.bytes, refusal);
        }
        self.uses.clear();
        self.fail_changes(error);
    }

    /// Nobody knows what is on disk: whoever waits is told so, and the process must end.
    fn unknown(&mut self, turn: Turn, error: &StoreError) {
        tracing::error!(%error, "a commit's outcome is unknown; the server ends, and the next start recovers");
        self.health.set_store(Some(error.message.clone()));
        self.fail(turn, || SubmitError::Unknown(error.clone()));
        self.die(error.clone());
    }

    fn deposed(&mut self, turn: Turn) {
        let error = taken_over();
        tracing::error!(%error, "this server serves no more");
        self.health.set_store(Some(error.message.clone()));
        self.flow = Flow::Deposed;
        (self.notify)(Notice::Deposed);
        self.fail(turn, || SubmitError::Refused(error.clone()));
        self.disown(&error);
        self.refuse_all();
    }

    fn refuse_all(&mut self) {
        let error = taken_over();
        self.facts.clear();
        for Waiting { submission, reply } in mem::take(&mut self.waiting) {
            let refusal = Err(SubmitError::Refused(error.clone()));
            self.answer(reply, submission.bytes, refusal);
        }
        self.uses.clear();
        self.fail_changes(&error);
    }

    fn fail_changes(&mut self, error: &StoreError) {
        let purges = self.purges.drain(..).map(|(_, reply)| reply);
        let tokens = self.tokens.drain(..).map(|(_, _, reply)| reply);
        for reply in purges.chain(tokens) {
            tell(reply, Err(error.clone()));
        }
    }

    fn fail(&self, turn: Turn, why: impl Fn() -> SubmitError) {
        for pending in turn.pending {
            self.answer(pending.reply, pending.bytes, Err(why()));
            for (reply, bytes) in pending.repeats {
                self.answer(reply, bytes, Err(why()));
            }
        }
    }

    /// What was committed and is owed its sync: nobody knows whether it will be there.
    fn disown(&mut self, error: &StoreError) {
        for Owed { reply, bytes, .. } in mem::take(&mut self.owed) {
            self.answer(reply, bytes, Err(SubmitError::Unknown(error.clone())));
        }
    }

    fn die(&mut self, error: StoreError) {
        self.flow = Flow::Dead;
        self.disown(&error);
        // These were in no commit at all, and may hear that.
        for Waiting { submission, reply } in mem::take(&mut self.waiting) {
            let refusal = Err(SubmitError::Refused(error.clone()));
            self.answer(reply, submission.bytes, refusal);
        }
        if let Some(fatal) = self.fatal.take() {
            fatal(error);
        }
    }

    fn answer(&self, reply: Reply, bytes: usize, answer: Result<Accepted, SubmitError>) {
        self.handle.answered(bytes);
        reply.send(answer);
    }

    /// A step of housekeeping. True if there is more to do.
    fn tidy(&mut self) -> bool {
        self.untidy = 0;
        if self.flow != Flow::Serving {
            return false;
        }
        let done = self.store.maintain(&self.clock.stamp());
        self.counters.log_bytes.set(self.store.log_bytes());
        match done {
            Ok(more) => more,
            Err(error) => {
                match error.kind {
                    // The next commit will say so too, or not; housekeeping can wait.
                    StoreErrorKind::Full
                    | StoreErrorKind::Busy
                    | StoreErrorKind::ReadOnly
                    | StoreErrorKind::InUse => tracing::warn!(%error, "housekeeping has to wait"),
                    StoreErrorKind::Io
                    | StoreErrorKind::Corrupt
                    | StoreErrorKind::OtherVersion
                    | StoreErrorKind::NoIndex => {
                        tracing::error!(%error, "housekeeping failed");
                        self.die(error);
                    }
                }
                false
            }
        }
    }

    /// How long the thread may sleep.
    fn patience(&self) -> Duration {
        let now = self.clock.now();
        let totals =
            (self.totals() != self.totals_told).then(|| (self.totals_at + TOTALS_EVERY).since(now));
        // While the store refuses, counters that are due wait for the next try like all else.
        let retry = self.retry_at.map(|at| at.since(now));
        let notes = self.notes.due().map(|due| due.since(now));
        let owed = (!self.owed.is_empty()).then(|| self.owed_until.since(now));
        let soonest = retry.or(totals.into_iter().chain(notes).chain(owed).min());
        soonest.map_or(IDLE_LOOK, |span| {
            Duration::from_micros(span.micros()).min(IDLE_LOOK)
        })
    }

    fn totals(&self) -> Totals {
        let counters = &self.counters;
        Totals {
            submitted: counters.submitted.value(),
            succeeded: counters.succeeded.value(),
            failed: counters.failed.value(),
            cancelled: counters.cancelled.value(),
            expired: counters.expired.value(),
            skipped: counters.skipped.value(),
            attempts: counters.attempts.value(),
            // Of the commits only those count that did something: a row about itself would never come to rest.
            commits: self.totals_told.commits,
            refused: counters.refused.value(),
            live: self.live,
        }
    }

    /// The counters, if a row of them is due.
    fn totals_due(&self, now: Time) -> Option<Totals> {
        let due = now >= self.totals_at + TOTALS_EVERY && self.totals() != self.totals_told;
        due.then(|| Totals {
            commits: self.counters.commits.value(),
            ..self.totals()
        })
    }

    /// What is here has been tried; unused ids are taken back, and the store is left tidy.
    pub fn close(mut self) {
        let tidy = if self.flow == Flow::Serving && self.batch > 0 {
            let stamp = self.clock.stamp();
            let (tokens, audit) = (self.token_changes(), self.audit(&stamp, &[]));
            self.store.commit(&Commit {
                epoch: self.store.opening().epoch,
                batch: self.batch + 1,
                stamp,
                ids_through: self.ids.next(),
                classes: &self.new_classes,
                submissions: &[],
                facts: &self.facts,
                purges: &[],
                tokens: &tokens,
                audit: &audit,
                totals: Some(Totals {
                    commits: self.counters.commits.value(),
                    ..self.totals()
                }),
                sync: true,
            })
        } else {
            Ok(())
        };
        match tidy {
            Ok(()) => {
                let owed = mem::take(&mut self.owed);
                self.pay(owed);
            }
            Err(error) => {
                tracing::warn!(%error, "the last commit failed; the next start recovers");
                self.disown(&match error {
                    CommitError::Deposed => taken_over(),
                    CommitError::Unknown(error) | CommitError::Refused(error) => error,
                });
            }
        }
        if let Err(error) = self.store.close() {
            tracing::warn!(%error, "the store was not closed tidily; the next start recovers");
        }
    }
}

/// Workers replace a result that is too large; of those that do not it is done here.
fn bound_results(facts: &mut [Fact], bytes_max: usize) {
    for fact in facts {
        let detail = match fact {
            Fact::Ended(Ended { detail, .. }) | Fact::Again(Again { detail, .. }) => detail,
            Fact::Worker(_) | Fact::Assigned(_) | Fact::Started(_) | Fact::Cancelling(_) => {
                continue;
            }
        };
        if let Some(detail) = detail {
            detail.result = result::bounded(mem::take(&mut detail.result), bytes_max);
        }
    }
}

fn taken_over() -> StoreError {
    StoreError {
        kind: StoreErrorKind::InUse,
        message: CommitError::Deposed.to_string(),
    }
}

/// A draft with its class and its moments: spans count from acceptance on the engine's clock.
fn new_job(at: Time, classes: &[Arc<Class>], draft: Draft) -> NewJob {
    let when = |moment: Moment| match moment {
        Moment::In(span) => When::Engine(at + span),
        Moment::At(wall) => When::Wall(wall),
    };
    NewJob {
        class: Arc::clone(&classes[draft.class as usize]),
        priority: draft.priority,
        name: draft.name,
        labels: draft.labels,
        due: draft.due.map(when),
        expires: draft.expires.map(when),
        deadline: draft.deadline.map(when),
        sync: draft.sync,
        retry_of: draft.retry_of,
        body: draft.body,
    }
}

/// Answers; whoever asked may have gone.
fn tell<T>(reply: oneshot::Sender<T>, answer: T) {
    drop(reply.send(answer));
}
