//! The store in memory: the simulator's and the tests', with faults on demand.
//!
//! A [`Disk`] outlives the stores opened on it, as a file outlives its servers. What a commit did not sync is lost
//! with [`Disk::lose_power`]. Commits can be refused, made uncertain before or after they were applied, or held until
//! they are let through.
//!
//! It behaves as SQLite's store does (one conformance suite runs on both), and keeps its rows as they are told, without
//! folding them: slow and obvious where that one is fast.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use hostler_engine::event::Restore;
use hostler_engine::fact::Fact;
use hostler_engine::spec::Class;
use hostler_engine::{Time, WallTime, When};
use hostler_wire::{Detail, Epoch, Fence, JobId, JobState, Reason, WorkerId};

use crate::auth::{TokenChange, TokenRecord};
use crate::clock::Stamp;
use crate::store::page::{self, AuditWalk, Candidate, Walk};
use crate::store::recover::{History, Runs, Waiting};
use crate::store::retention;
use crate::store::seam::{
    AttemptRecord, AuditEntry, AuditPage, AuditQuery, Batch, Commit, CommitError, EndRecord,
    KeyRecord, ListPage, ListQuery, Lookup, NewJob, Opening, Read, Record, Store, StoreError,
    StoreErrorKind,
};

/// What happens to the next commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Rolled back, for this reason.
    Refuse(StoreErrorKind),
    /// It fails, and was not applied; the store does not know.
    UnknownLost,
    /// It fails, and was applied; the store does not know.
    UnknownKept,
}

/// What lies under the stores. Clones are the same disk.
#[derive(Clone, Debug)]
pub struct Disk {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    state: Mutex<State>,
    gate: Condvar,
}

#[derive(Debug)]
struct State {
    now: Data,
    /// As it was at the last sync.
    synced: Data,
    /// What has been written since. (Taking part in each commit twice costs less than a copy of everything at the first
    /// one that is not synced.)
    unsynced: Vec<Written>,
    faults: VecDeque<Fault>,
    held: bool,
    waiting: usize,
    commits: u64,
    /// Grows when the power goes: stores opened before are dead.
    power: u64,
    /// Grows when a backup comes back, so that no start has the nonce of one that the backup does not know.
    history: u32,
}

/// A copy of all that is on a disk.
#[derive(Clone, Debug)]
pub struct Backup(Data);

impl Disk {
    /// An empty disk. The seed stands for the randomness of cluster and nonces.
    pub fn new(seed: u64) -> Self {
        let mut cluster = *b"memory..........";
        cluster[8..].copy_from_slice(&seed.to_le_bytes());
        let now = Data {
            cluster,
            ids_through: JobId::MIN.raw(),
            ..Data::default()
        };
        Self {
            inner: Arc::new(Inner {
                state: Mutex::new(State {
                    synced: now.clone(),
                    now,
                    unsynced: Vec::new(),
                    faults: VecDeque::new(),
                    held: false,
                    waiting: 0,
                    commits: 0,
                    power: 0,
                    history: 0,
                }),
                gate: Condvar::new(),
            }),
        }
    }

    /// The next commit without a fault in store meets this one.
    pub fn fault(&self, fault: Fault) {
        self.lock().faults.push_back(fault);
    }

    /// Commits wait at a gate from now on.
    pub fn hold(&self) {
        self.lock().held = true;
    }

    /// Opens the gate.
    pub fn release(&self) {
        self.lock().held = false;
        self.inner.gate.notify_all();
    }

    /// Waits until a commit stands at the gate.
    pub fn wait_for_held(&self) {
        let mut state = self.lock();
        while state.waiting == 0 {
            state = self.wait(state);
        }
    }

    /// The power goes: what was not synced is gone, and so are the stores that were open.
    pub fn lose_power(&self) {
        let mut state = self.lock();
        state.power += 1;
        if !state.unsynced.is_empty() {
            state.unsynced.clear();
            state.now = state.synced.clone();
        }
        self.inner.gate.notify_all();
    }

    /// What is on it now.
    pub fn backup(&self) -> Backup {
        Backup(self.lock().now.clone())
    }

    /// An older copy takes the place of what is there. Stores that were open are dead.
    pub fn restore(&self, backup: &Backup) {
        let mut state = self.lock();
        state.power += 1;
        state.history += 1;
        state.unsynced.clear();
        state.now = backup.0.clone();
        state.synced = backup.0.clone();
        self.inner.gate.notify_all();
    }

    /// Commits applied since the disk was made.
    pub fn commits(&self) -> u64 {
        self.lock().commits
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.inner
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.inner
            .gate
            .wait(state)
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn sync(&mut self) {
        for written in self.unsynced.drain(..) {
            match written {
                Written::Commit(kept) => self.synced.apply(&kept.commit()),
                Written::Retained(stamp) => self.synced.retain(&stamp),
            }
        }
    }
}

/// Something written and not yet synced.
#[derive(Debug)]
enum Written {
    Commit(Kept),
    Retained(Stamp),
}

/// A commit that belongs to us.
#[derive(Debug)]
struct Kept {
    epoch: Epoch,
    batch: u64,
    stamp: Stamp,
    ids_through: JobId,
    classes: Vec<Arc<Class>>,
    submissions: Vec<Batch>,
    facts: Vec<Fact>,
    purges: Vec<JobId>,
    tokens: Vec<TokenChange>,
    audit: Vec<AuditEntry>,
}

impl Kept {
    fn of(commit: &Commit<'_>) -> Self {
        Self {
            epoch: commit.epoch,
            batch: commit.batch,
            stamp: commit.stamp,
            ids_through: commit.ids_through,
            classes: commit.classes.to_vec(),
            submissions: commit.submissions.to_vec(),
            facts: commit.facts.to_vec(),
            purges: commit.purges.to_vec(),
            tokens: commit.tokens.to_vec(),
            audit: commit.audit.to_vec(),
        }
    }

    fn commit(&self) -> Commit<'_> {
        Commit {
            epoch: self.epoch,
            batch: self.batch,
            stamp: self.stamp,
            ids_through: self.ids_through,
            classes: &self.classes,
            submissions: &self.submissions,
            facts: &self.facts,
            purges: &self.purges,
            tokens: &self.tokens,
            audit: &self.audit,
            totals: None, // not kept here
            sync: false,
        }
    }
}

/// The store.
#[derive(Debug)]
pub struct MemoryStore {
    disk: Disk,
    opening: Opening,
    power: u64,
    /// Why nothing more is taken.
    dead: Option<StoreError>,
}

impl MemoryStore {
    /// Opens the disk under a new epoch. An older store on it is deposed.
    pub fn open(disk: &Disk) -> Self {
        let mut state = disk.lock();
        let epoch = Epoch::new(state.now.epochs.last().map_or(0, |(epoch, _)| epoch.raw()) + 1);
        let mut nonce = state.now.cluster;
        nonce[..4].copy_from_slice(&epoch.raw().to_le_bytes());
        nonce[4..8].copy_from_slice(&state.history.to_le_bytes());
        state.now.epochs.push((epoch, nonce));
        state.synced.epochs.push((epoch, nonce));
        let now = &state.now;
        let running = now.live.values().filter_map(|history| history.running);
        let oldest = running
            .map(|running| running.fence.epoch)
            .min()
            .unwrap_or(epoch);
        let opening = Opening {
            cluster: now.cluster,
            epoch,
            epoch_nonce: nonce,
            epochs: now
                .epochs
                .iter()
                .filter(|(epoch, _)| *epoch >= oldest)
                .copied()
                .collect(),
            next_id: JobId::new(now.ids_through).expect("promises are ids"),
            classes: now.classes.clone(),
            stamp: now.stamp,
            last: now.last,
            tokens: now.tokens.values().cloned().collect(),
        };
        let power = state.power;
        drop(state);
        Self {
            disk: disk.clone(),
            opening,
            power,
            dead: None,
        }
    }

    fn die(&mut self) -> CommitError {
        let error = StoreError {
            kind: StoreErrorKind::Io,
            message: "cannot write memory: the disk failed".into(),
        };
        self.dead = Some(error.clone());
        CommitError::Unknown(error)
    }
}

impl Store for MemoryStore {
    fn opening(&self) -> &Opening {
        &self.opening
    }

    fn load(&mut self, each: &mut dyn FnMut(Restore)) -> Result<(), StoreError> {
        self.disk.lock().now.load(each);
        Ok(())
    }

    fn commit(&mut self, commit: &Commit<'_>) -> Result<(), CommitError> {
        if let Some(error) = &self.dead {
            return Err(CommitError::Unknown(error.clone()));
        }
        let disk = self.disk.clone();
        let mut state = disk.lock();
        state.waiting += 1;
        disk.inner.gate.notify_all();
        while state.held && state.power == self.power {
            state = disk.wait(state);
        }
        state.waiting -= 1;
        if state.power != self.power {
            return Err(self.die());
        }
        if state.now.epochs.last().map(|(epoch, _)| *epoch) != Some(commit.epoch) {
            return Err(CommitError::Deposed);
        }
        let fault = state.faults.pop_front();
        match fault {
            Some(Fault::Refuse(kind)) => {
                return Err(CommitError::Refused(StoreError {
                    kind,
                    message: "cannot write memory: a fault was asked for".into(),
                }));
            }
            Some(Fault::UnknownLost) => return Err(self.die()),
            Some(Fault::UnknownKept) | None => {}
        }
        state.now.apply(commit);
        state.commits += 1;
        if commit.sync {
            state.sync();
            state.synced.apply(commit);
        } else {
            state.unsynced.push(Written::Commit(Kept::of(commit)));
        }
        if fault.is_some() {
            Err(self.die())
        } else {
            Ok(())
        }
    }

    fn key(&mut self, token: &str, key: &str) -> Result<Option<KeyRecord>, StoreError> {
        let state = self.disk.lock();
        Ok(state
            .now
            .keys
            .get(&(token.to_owned(), key.to_owned()))
            .cloned())
    }

    fn reader(&self) -> Result<Box<dyn Read>, StoreError> {
        Ok(Box::new(MemoryReader {
            disk: self.disk.clone(),
        }))
    }

    fn maintain(&mut self, stamp: &Stamp) -> Result<bool, StoreError> {
        let mut state = self.disk.lock();
        state.now.retain(stamp);
        if state.unsynced.is_empty() {
            state.synced.retain(stamp);
        } else {
            state.unsynced.push(Written::Retained(*stamp));
        }
        Ok(false)
    }

    fn close(self: Box<Self>) -> Result<(), StoreError> {
        self.disk.lock().sync();
        Ok(())
    }
}

#[derive(Debug)]
struct MemoryReader {
    disk: Disk,
}

impl Read for MemoryReader {
    fn job(&mut self, id: JobId) -> Result<Lookup, StoreError> {
        let state = self.disk.lock();
        let data = &state.now;
        Ok(match data.record(id) {
            Some(mut record) => {
                record.body = data.jobs[&id].body.clone();
                Lookup::Found(Box::new(record))
            }
            None if id.raw() <= data.purged => Lookup::Purged,
            None => Lookup::Never,
        })
    }

    fn ends(&mut self, jobs: &[JobId]) -> Result<Vec<(JobId, JobState, Reason)>, StoreError> {
        let state = self.disk.lock();
        let end = |job: &JobId| {
            let end = state.now.ends.get(job)?;
            Some((*job, end.state, end.attempt.reason))
        };
        Ok(jobs.iter().filter_map(end).collect())
    }

    fn list(&mut self, query: &ListQuery) -> Result<ListPage, StoreError> {
        page::check(query)?;
        let state = self.disk.lock();
        let data = &state.now;
        let mut walk = Walk::new(query);
        let mut look = |id: JobId, job: &Job| {
            let candidate = Candidate {
                queue: &job.new.class.spec.queue,
                name: job.new.name.as_deref(),
                created_ms: job.created.millis(),
                state: data.ends.get(&id).map(|end| end.state),
            };
            walk.look(query, id, &candidate)
        };
        if query.limit == 0 {
        } else if query.descending {
            let below = query.after.map_or(u64::MAX, JobId::raw);
            let mut jobs = data.jobs.iter().rev().filter(|(id, _)| id.raw() < below);
            while jobs.next().is_some_and(|(id, job)| look(*id, job)) {}
        } else {
            let above = query.after.map_or(0, JobId::raw);
            let mut jobs = data.jobs.iter().filter(|(id, _)| id.raw() > above);
            while jobs.next().is_some_and(|(id, job)| look(*id, job)) {}
        }
        Ok(ListPage {
            records: walk
                .found
                .iter()
                .filter_map(|id| data.record(*id))
                .collect(),
            next: walk.next(),
        })
    }

    fn audit(&mut self, query: &AuditQuery) -> Result<AuditPage, StoreError> {
        let state = self.disk.lock();
        let below = query.below.unwrap_or(u64::MAX);
        let mut walk = AuditWalk::default();
        for (n, entry) in state.now.audit.range(..below).rev() {
            if query.limit == 0 || !walk.look(query, *n, entry.clone()) {
                break;
            }
        }
        Ok(walk.finish())
    }

    fn bodies(&mut self, jobs: &[JobId]) -> Result<Vec<(JobId, Bytes)>, StoreError> {
        let state = self.disk.lock();
        let body = |id: &JobId| {
            let body = state.now.jobs.get(id).and_then(|job| job.body.clone());
            body.map(|body| (*id, body)).ok_or_else(|| StoreError {
                kind: StoreErrorKind::Corrupt,
                message: format!("cannot read memory: the body of {id:?} is missing"),
            })
        };
        jobs.iter().map(body).collect()
    }
}

/// Everything that was committed.
#[derive(Clone, Debug, Default)]
struct Data {
    cluster: [u8; 16],
    epochs: Vec<(Epoch, [u8; 16])>,
    classes: Vec<Arc<Class>>,
    jobs: BTreeMap<JobId, Job>,
    ends: BTreeMap<JobId, EndRecord>,
    attempts: BTreeMap<(JobId, u16), AttemptRecord>,
    /// Of jobs that have not ended.
    live: BTreeMap<JobId, History>,
    workers: BTreeMap<WorkerId, (String, u64)>,
    keys: HashMap<(String, String), KeyRecord>,
    tokens: BTreeMap<Arc<str>, TokenRecord>,
    audit: BTreeMap<u64, AuditEntry>,
    stamp: Option<Stamp>,
    last: Option<(Epoch, u64)>,
    ids_through: u64,
    purged: u64,
}

#[derive(Clone, Debug)]
struct Job {
    /// Its body apart: that can be purged.
    new: NewJob,
    body: Option<Bytes>,
    created: WallTime,
    by: Arc<str>,
    due: Option<WallTime>,
    expires: Option<WallTime>,
    deadline: Option<WallTime>,
}

impl Data {
    fn apply(&mut self, commit: &Commit<'_>) {
        let stamp = &commit.stamp;
        let wall = |when: When| match when {
            When::Engine(at) => stamp.wall_of(at),
            When::Wall(at) => at,
        };
        self.classes.extend(commit.classes.iter().cloned());
        for batch in commit.submissions {
            for (place, job) in (0..).zip(&batch.jobs) {
                let id = batch.first.plus(place);
                assert!(
                    id < commit.ids_through,
                    "ids are promised before they are used"
                );
                let new = NewJob {
                    body: Bytes::new(),
                    ..job.clone()
                };
                let stored = Job {
                    new,
                    body: Some(job.body.clone()),
                    created: stamp.wall_of(batch.at),
                    by: Arc::clone(&batch.by),
                    due: job.due.map(wall),
                    expires: job.expires.map(wall),
                    deadline: job.deadline.map(wall),
                };
                assert!(
                    self.jobs.insert(id, stored).is_none(),
                    "{id:?} is given out twice"
                );
                self.live.insert(id, History::default());
            }
            if let Some(key) = &batch.key {
                let place = (key.token.to_string(), key.key.to_string());
                self.keys.insert(place, key.clone());
            }
        }
        for fact in commit.facts {
            self.fact(commit.epoch, stamp, fact);
        }
        for job in commit.purges {
            if self.ends.contains_key(job)
                && let Some(job) = self.jobs.get_mut(job)
            {
                job.body = None;
            }
        }
        commit.tokens.iter().for_each(|change| self.token(change));
        for entry in commit.audit {
            let last = self.audit.last_key_value().map_or(0, |(n, _)| *n);
            self.audit.insert(last + 1, entry.clone());
        }
        self.stamp = Some(*stamp);
        self.last = Some((commit.epoch, commit.batch));
        self.ids_through = commit.ids_through.raw();
    }

    fn token(&mut self, change: &TokenChange) {
        match change {
            TokenChange::New(record) => {
                self.tokens
                    .insert(Arc::clone(&record.id), (**record).clone());
            }
            TokenChange::Revoked { id, at } => {
                if let Some(record) = self.tokens.get_mut(id) {
                    record.revoked.get_or_insert(*at);
                }
            }
            TokenChange::Used { id, at } => {
                if let Some(record) = self.tokens.get_mut(id) {
                    record.used = Some(*at);
                }
            }
        }
    }

    fn fact(&mut self, epoch: Epoch, stamp: &Stamp, fact: &Fact) {
        match fact {
            Fact::Worker(worker) => {
                let seen = (worker.name.clone(), worker.instance);
                self.workers.insert(worker.id, seen);
            }
            Fact::Assigned(assigned) => {
                for &(job, attempt) in &assigned.attempts {
                    if let Some(history) = self.live.get_mut(&job) {
                        let fence = Fence {
                            job,
                            epoch,
                            attempt,
                        };
                        history.assigned(fence, assigned.worker);
                    }
                }
            }
            Fact::Started(started) => {
                for &fence in &started.fences {
                    if let Some(history) = self.live.get_mut(&fence.job) {
                        history.started(fence, started.at);
                    }
                }
            }
            Fact::Again(again) => {
                let (job, number) = (again.fence.job, again.fence.attempt.raw());
                if let Some(history) = self.live.get_mut(&job) {
                    history.again(number, again.charge, again.started.is_some(), again.due);
                }
                let record = self.attempt(
                    stamp,
                    Some(again.fence),
                    Some(again.worker),
                    again.reason,
                    (again.started, again.at),
                    again.detail.clone(),
                );
                self.attempts.insert((job, number), record);
            }
            Fact::Cancelling(mark) => {
                if let Some(history) = self.live.get_mut(&mark.job) {
                    history.cancelling(mark.reason);
                }
            }
            Fact::Ended(ended) => {
                let end = EndRecord {
                    state: ended.state,
                    attempt: self.attempt(
                        stamp,
                        ended.fence,
                        ended.worker,
                        ended.reason,
                        (ended.started, ended.at),
                        ended.detail.clone(),
                    ),
                };
                self.live.remove(&ended.job);
                let before = self.ends.insert(ended.job, end);
                assert!(before.is_none(), "{:?} ended twice", ended.job);
            }
        }
    }

    fn attempt(
        &self,
        stamp: &Stamp,
        fence: Option<Fence>,
        worker: Option<WorkerId>,
        reason: Reason,
        (started, finished): (Option<Time>, Time),
        detail: Option<Box<Detail>>,
    ) -> AttemptRecord {
        let worker = worker.and_then(|worker| self.workers.get(&worker));
        AttemptRecord {
            number: fence.map_or(0, |fence| fence.attempt.raw()),
            epoch: fence.map_or(Epoch::new(0), |fence| fence.epoch),
            reason,
            worker: worker.map(|(name, _)| name.as_str().into()),
            started: started.map(|at| stamp.wall_of(at)),
            finished: stamp.wall_of(finished),
            detail,
        }
    }

    fn load(&self, each: &mut dyn FnMut(Restore)) {
        for (id, (name, instance)) in &self.workers {
            let of =
                |history: &History| history.running.is_some_and(|running| running.worker == *id);
            if self.live.values().any(of) {
                each(Restore::Worker {
                    id: *id,
                    name: name.clone(),
                    instance: *instance,
                });
            }
        }
        let last = self.workers.keys().next_back();
        each(Restore::Workers {
            next: WorkerId::new(last.map_or(1, |id| id.raw() + 1)),
        });
        let waiting = |id: &JobId| {
            let job = &self.jobs[id].new;
            Waiting {
                id: *id,
                class: Arc::clone(&job.class),
                priority: job.priority,
                due: job.due,
                expires: job.expires,
                deadline: job.deadline,
            }
        };
        let mut runs = Runs::default();
        let mut rest = Vec::new();
        for (id, history) in &self.live {
            match history.restored(waiting(id)) {
                Some(job) => each(Restore::Job(Box::new(job))),
                None => rest.extend(runs.push(&waiting(id))),
            }
        }
        rest.extend(runs.finish());
        rest.into_iter().map(Restore::Run).for_each(each);
    }

    fn record(&self, id: JobId) -> Option<Record> {
        let job = self.jobs.get(&id)?;
        let attempts = self.attempts.range((id, 0)..=(id, u16::MAX));
        Some(Record {
            id,
            class: Arc::clone(&job.new.class),
            priority: job.new.priority,
            name: job.new.name.clone(),
            labels: job.new.labels.clone(),
            created: job.created,
            by: (&*job.by).into(),
            due: job.due,
            expires: job.expires,
            deadline: job.deadline,
            sync: job.new.sync,
            retry_of: job.new.retry_of,
            body: None,
            attempts: attempts.map(|(_, attempt)| attempt.clone()).collect(),
            end: self.ends.get(&id).cloned(),
        })
    }

    fn retain(&mut self, stamp: &Stamp) {
        let before = |span: hostler_engine::Span| stamp.wall.millis().saturating_sub(span.millis());
        self.keys
            .retain(|_, key| key.at >= stamp.engine.back(retention::KEYS));
        let past =
            |at: Option<WallTime>| at.is_some_and(|at| at.millis() < before(retention::AUDIT));
        self.audit.retain(|_, entry| !past(Some(entry.at)));
        self.tokens
            .retain(|_, token| !past(token.revoked) && !past(token.expires));
        let old = |end: &EndRecord| end.attempt.finished.millis() < before(retention::JOBS);
        let first_young = self
            .ends
            .iter()
            .find(|(id, end)| id.raw() > self.purged && !old(end));
        let to = first_young.map_or(u64::MAX, |(id, _)| id.raw() - 1);
        let dropped: Vec<JobId> = self
            .ends
            .iter()
            .filter(|(id, end)| id.raw() <= to && old(end))
            .map(|(id, _)| *id)
            .collect();
        for id in dropped {
            self.purged = self.purged.max(id.raw());
            self.ends.remove(&id);
            self.jobs.remove(&id);
            self.attempts.retain(|(job, _), _| *job != id);
        }
    }
}
