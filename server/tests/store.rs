//! One conformance suite for every store behind the seam, and what only SQLite can show.
#![expect(clippy::unwrap_used, reason = "this is a test, helpers and all")]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use hostler_engine::event::{Restore, RestoredAttempt, RestoredJob};
use hostler_engine::fact::{Again, Assigned, Cancelling, Charge, Ended, Started, WorkerFact};
use hostler_engine::spec::{Class, ClassId, ClassSpec, Kind, Retry, Run};
use hostler_engine::{Fact, Span, Time, WallTime, When};
use hostler_server::auth::{Role as TokenRole, TokenChange, TokenRecord};
use hostler_server::clock::{Clock, Readings, Stamp};
use hostler_server::config::{Durability, Limits};
use hostler_server::mailbox::{Wake, mailbox};
use hostler_server::metrics::Health;
use hostler_server::store::depth::LiveJobs;
use hostler_server::store::memory::{Disk, Fault, MemoryStore};
use hostler_server::store::reader;
use hostler_server::store::seam::{
    AttemptRecord, AuditEntry, AuditQuery, Batch, Commit, CommitError, Draft, KeyRecord, ListQuery,
    Lookup, Moment, NewJob, Read, Record, Store, StoreError, StoreErrorKind, Submission, Totals,
};
use hostler_server::store::sqlite::{FILE, SqliteStore};
use hostler_server::store::writer::{
    self, Accepted, Counters, JobLanes, Notice, Rest, SubmitError, Writer,
};
use hostler_wire::token::Token;
use hostler_wire::{
    Allow, Attempt, Detail, Epoch, Fence, JobId, JobState, Priority, Reason, Usage, WorkerId,
};
use proptest::prelude::*;
use rusqlite::Connection;

/// What a store lives on: opened again and again, as by one server after another.
trait Ground {
    fn open(&self) -> Box<dyn Store>;
    /// A second server, while the first still runs.
    fn take_over(&self) -> Box<dyn Store>;
}

struct Directory(tempfile::TempDir);

impl Directory {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("data")
    }

    fn sqlite(&self) -> SqliteStore {
        let mut store = SqliteStore::open(&self.path()).unwrap();
        store.move_mark_eagerly();
        store
    }

    fn database(&self) -> Connection {
        Connection::open(self.path().join(FILE)).unwrap()
    }
}

impl Ground for Directory {
    fn open(&self) -> Box<dyn Store> {
        Box::new(self.sqlite())
    }

    fn take_over(&self) -> Box<dyn Store> {
        // Somebody has removed the lock file, so that only the epoch guards.
        std::fs::remove_file(self.path().join("hostler.lock")).unwrap();
        self.open()
    }
}

impl Ground for Disk {
    fn open(&self) -> Box<dyn Store> {
        Box::new(MemoryStore::open(self))
    }

    fn take_over(&self) -> Box<dyn Store> {
        self.open()
    }
}

macro_rules! on_every_store {
    ($($name:ident)+) => {
        mod sqlite {
            $(#[test] fn $name() { super::$name(&super::Directory::new()); })+
        }
        mod memory {
            $(#[test] fn $name() { super::$name(&super::Disk::new(7)); })+
        }
    };
}

on_every_store! {
    what_was_accepted_reads_back_as_it_was
    ends_are_visible_after_their_commit
    ends_of_one_commit_are_each_what_they_were_and_a_restart_knows_them_all
    attempts_come_back_with_their_words
    a_list_knows_the_attempts_that_did_not_end_their_jobs
    epochs_grow_and_ids_are_never_given_out_again
    a_deposed_store_changes_nothing
    a_key_is_remembered_with_its_jobs
    a_purged_body_leaves_the_end
    retention_drops_old_jobs_and_never_a_living_one
    lists_page_through_everything_in_both_directions
    filters_are_joined_by_and
    unfinished_states_are_not_the_stores_to_list
    bodies_of_live_jobs_are_there
    a_missing_body_is_an_error
    the_last_commit_is_known_at_the_next_opening
    tokens_are_what_they_were_and_lose_what_was_taken_from_them
    the_audit_trail_pages_newest_first_and_is_kept_for_30_days
}

const WALL_MS: u64 = 1_700_000_000_000;
const DAY_US: u64 = 24 * 3_600 * 1_000_000;

/// Drives one store: keeps the counts that the writer would.
struct Trial {
    store: Box<dyn Store>,
    class: Arc<Class>,
    new_classes: Vec<Arc<Class>>,
    batch: u64,
    now: Time,
    next: u64,
}

impl Trial {
    fn new(ground: &dyn Ground) -> Self {
        Self::on(ground.open())
    }

    fn on(store: Box<dyn Store>) -> Self {
        let known = store.opening().classes.first().map(Arc::clone);
        let class = known.clone().unwrap_or_else(|| Arc::new(class(1, "video")));
        Self {
            new_classes: if known.is_some() {
                Vec::new()
            } else {
                vec![Arc::clone(&class)]
            },
            class,
            batch: 0,
            now: store
                .opening()
                .stamp
                .map_or(Time::from_micros(WALL_MS * 1_000), |stamp| stamp.engine),
            next: store.opening().next_id.raw(),
            store,
        }
    }

    fn stamp(&self) -> Stamp {
        Stamp {
            engine: self.now,
            boot: 7,
            boottime_us: self.now.micros() - WALL_MS * 1_000,
            wall: WallTime::from_millis(self.now.micros() / 1_000),
        }
    }

    fn commit(&mut self, submissions: &[Batch], facts: &[Fact]) -> Result<(), CommitError> {
        self.commit_purging(submissions, facts, &[])
    }

    fn commit_purging(
        &mut self,
        submissions: &[Batch],
        facts: &[Fact],
        purges: &[JobId],
    ) -> Result<(), CommitError> {
        let done = self.store.commit(&Commit {
            epoch: self.store.opening().epoch,
            batch: self.batch + 1,
            stamp: self.stamp(),
            ids_through: id(self.next + 1_000),
            classes: &self.new_classes,
            submissions,
            facts,
            purges,
            tokens: &[],
            audit: &[],
            totals: None,
            sync: true,
        });
        if done.is_ok() {
            self.batch += 1;
            self.new_classes.clear();
        }
        done
    }

    fn commit_tokens(&mut self, tokens: &[TokenChange]) {
        self.commit_authority(tokens, &[]);
    }

    fn commit_audit(&mut self, audit: &[AuditEntry]) {
        self.commit_authority(&[], audit);
    }

    fn commit_authority(&mut self, tokens: &[TokenChange], audit: &[AuditEntry]) {
        let done = self.store.commit(&Commit {
            epoch: self.store.opening().epoch,
            batch: self.batch + 1,
            stamp: self.stamp(),
            ids_through: id(self.next + 1_000),
            classes: &[],
            submissions: &[],
            facts: &[],
            purges: &[],
            tokens,
            audit,
            totals: None,
            sync: true,
        });
        done.unwrap();
        self.batch += 1;
    }

    fn batch(&mut self, jobs: Vec<NewJob>) -> Batch {
        let first = id(self.next);
        self.next += jobs.len() as u64;
        Batch {
            first,
            at: self.now,
            by: "tok_1".into(),
            from: None,
            jobs,
            key: None,
        }
    }

    /// Accepts that many plain jobs; their first id.
    fn submit(&mut self, count: usize) -> u64 {
        let jobs = vec![self.plain(); count];
        let batch = self.batch(jobs);
        let first = batch.first.raw();
        self.commit(&[batch], &[]).unwrap();
        first
    }

    fn plain(&self) -> NewJob {
        NewJob {
            class: Arc::clone(&self.class),
            priority: Priority::NORMAL,
            name: None,
            labels: None,
            due: None,
            expires: None,
            deadline: None,
            sync: true,
            retry_of: None,
            body: Bytes::from_static(b"body"),
        }
    }

    fn fence(&self, job: u64, attempt: u16) -> Fence {
        Fence {
            job: id(job),
            epoch: self.store.opening().epoch,
            attempt: Attempt::new(attempt).unwrap(),
        }
    }

    fn worker(&self, worker: u32) -> Fact {
        Fact::Worker(WorkerFact {
            id: WorkerId::new(worker),
            name: format!("w-{worker}"),
            instance: u64::MAX - u64::from(worker),
            at: self.now,
        })
    }

    fn assigned(&self, worker: u32, attempts: &[(u64, u16)]) -> Fact {
        let attempt = |&(job, number)| (id(job), Attempt::new(number).unwrap());
        Fact::Assigned(Assigned {
            worker: WorkerId::new(worker),
            at: self.now,
            attempts: attempts.iter().map(attempt).collect(),
        })
    }

    fn ended(&self, job: u64, attempt: u16, state: JobState, reason: Reason) -> Fact {
        Fact::Ended(Ended {
            job: id(job),
            class: ClassId::new(1),
            state,
            reason,
            fence: (attempt > 0).then(|| self.fence(job, attempt)),
            worker: (attempt > 0).then(|| WorkerId::new(1)),
            started: (attempt > 0).then_some(self.now),
            at: self.now,
            detail: None,
        })
    }

    fn succeeded(&self, job: u64) -> Fact {
        self.ended(job, 1, JobState::Succeeded, Reason::None)
    }

    fn read(&self) -> Box<dyn Read> {
        self.store.reader().unwrap()
    }

    fn record(&self, job: u64) -> Record {
        match self.read().job(id(job)).unwrap() {
            Lookup::Found(record) => *record,
            other @ (Lookup::Never | Lookup::Purged) => panic!("job {job}: {other:?}"),
        }
    }

    fn restored(&mut self) -> Restored {
        Restored::of(&mut *self.store)
    }

    /// The process dies: nothing is closed.
    fn reopen(self, ground: &dyn Ground) -> Self {
        drop(self);
        Self::new(ground)
    }

    fn maintain(&mut self) {
        let stamp = self.stamp();
        for _ in 0..100 {
            if !self.store.maintain(&stamp).unwrap() {
                return;
            }
        }
        panic!("housekeeping never comes to an end");
    }
}

fn id(raw: u64) -> JobId {
    JobId::new(raw).unwrap()
}

fn class(number: u32, queue: &str) -> Class {
    Class {
        id: ClassId::new(number),
        spec: ClassSpec {
            queue: queue.into(),
            kind: Kind::Command,
            retry: Retry {
                max_attempts: 4,
                ..Retry::default()
            },
            max_losses: 3,
            timeout: None,
            grace: None,
            stall: None,
            stop_on_partition: false,
        },
    }
}

fn list(query: impl FnOnce(&mut ListQuery)) -> ListQuery {
    let mut whole = ListQuery {
        states: Vec::new(),
        queues: Vec::new(),
        name: None,
        since: None,
        until: None,
        after: None,
        descending: false,
        limit: 100,
    };
    query(&mut whole);
    whole
}

/// Every page's ids, one after another.
fn pages(read: &mut dyn Read, mut query: ListQuery) -> Vec<u64> {
    let mut all = Vec::new();
    for _ in 0..1_000 {
        let page = read.list(&query).unwrap();
        assert!(page.records.len() <= query.limit);
        all.extend(page.records.iter().map(|record| record.id.raw()));
        match page.next {
            Some(next) => query.after = Some(next),
            None => return all,
        }
    }
    panic!("the pages never end");
}

/// What a recovery told, in a form that can be compared.
#[derive(Debug, Default, PartialEq)]
struct Restored {
    workers: Vec<(u32, String, u64)>,
    next_worker: u32,
    jobs: BTreeMap<u64, String>,
    quiet: BTreeMap<u64, String>,
}

impl Restored {
    fn of(store: &mut dyn Store) -> Self {
        let mut all = Self::default();
        let mut stage = 0;
        store
            .load(&mut |restore| {
                let now = match &restore {
                    Restore::Worker { .. } | Restore::Workers { .. } => 0,
                    Restore::Job(_) => 1,
                    Restore::Run(_) => 2,
                };
                assert!(now >= stage, "workers, then jobs, then runs");
                stage = now;
                all.take(restore);
            })
            .unwrap();
        all
    }

    fn take(&mut self, restore: Restore) {
        match restore {
            Restore::Worker { id, name, instance } => self.workers.push((id.raw(), name, instance)),
            Restore::Workers { next } => self.next_worker = next.raw(),
            Restore::Job(job) => {
                let twice = self.jobs.insert(job.id.raw(), format!("{job:?}"));
                assert!(twice.is_none(), "{job:?} is told twice");
            }
            Restore::Run(run) => {
                assert!(!run.resident, "bodies are not loaded");
                if let Some((last, _)) = self.quiet.last_key_value() {
                    assert!(run.first.raw() > *last, "runs come in id order");
                }
                for place in 0..u64::from(run.count) {
                    let id = run.first.plus(place);
                    self.quiet.insert(id.raw(), quiet(&run));
                }
            }
        }
    }
}

fn quiet(run: &Run) -> String {
    let Run {
        priority,
        class,
        due,
        expires,
        deadline,
        ..
    } = run;
    format!("{priority} {:?} {due:?} {expires:?} {deadline:?}", class.id)
}

fn what_was_accepted_reads_back_as_it_was(ground: &dyn Ground) {
    let mut t = Trial::new(ground);
    let now = t.now;
    let full = NewJob {
        priority: Priority::new(-128),
        name: Some("encode".into()),
        labels: Some("{\"a\":\"b\"}".into()),
        due: Some(When::Engine(now + Span::from_secs(5))),
        expires: Some(When::Wall(WallTime::from_millis(WALL_MS + 9_000))),
        deadline: Some(When::Engine(now + Span::from_secs(60))),
        sync: false,
        retry_of: Some(id(1)),
        body: Bytes::from(vec![7; 100_000]),
        ..t.plain()
    };
    // What one row sets, the next one must not inherit.
    let batch = t.batch(vec![t.plain(), full, t.plain()]);
    t.commit(&[batch], &[]).unwrap();
    let full = t.record(2);
    assert_eq!(
        (full.priority.raw(), full.name.as_deref()),
        (-128, Some("encode"))
    );
    assert_eq!(full.labels.as_deref(), Some("{\"a\":\"b\"}"));
    assert_eq!(full.due, Some(WallTime::from_millis(WALL_MS + 5_000)));
    assert_eq!(full.expires, Some(WallTime::from_millis(WALL_MS + 9_000)));
    assert_eq!(full.deadline, Some(WallTime::from_millis(WALL_MS + 60_000)));
    assert_eq!((full.sync, full.retry_of), (false, Some(id(1))));
    assert_eq!(full.body.map(|body| body.len()), Some(100_000));
    for plain in [t.record(1), t.record(3)] {
        assert_eq!(
            (plain.priority, plain.name, plain.labels),
            (Priority::NORMAL, None, None)
        );
        assert_eq!(
            (plain.due, plain.expires, plain.deadline),
            (None, None, None)
        );
        assert_eq!((plain.sync, plain.retry_of), (true, None));
        assert_eq!(
            (&*plain.by, plain.created),
            ("tok_1", WallTime::from_millis(WALL_MS))
        );
        assert_eq!(plain.class.spec.queue.as_ref(), "video");
        assert_eq!(plain.body.as_deref(), Some(&b"body"[..]));
        assert!(plain.end.is_none() && plain.attempts.is_empty());
    }
    assert!(matches!(t.read().job(id(4)).unwrap(), Lookup::Never));
}

fn ends_are_visible_after_their_commit(ground: &dyn Ground) {
    let mut t = Trial::new(ground);
    let first = t.submit(3);
    let mut reader = t.read();
    assert_eq!(reader.ends(&[id(first), id(first + 1)]).unwrap(), []);
    let facts = [
        t.worker(1),
        t.assigned(1, &[(first, 1), (first + 2, 1)]),
        t.ended(first + 2, 1, JobState::Failed, Reason::ExitCode),
        t.succeeded(first),
    ];
    t.commit(&[], &facts).unwrap();
    let asked = [id(first + 2), id(first + 1), id(first)];
    let ends = reader.ends(&asked).unwrap();
    assert_eq!(
        ends,
        [
            (id(first + 2), JobState::Failed, Reason::ExitCode),
            (id(first), JobState::Succeeded, Reason::None)
        ]
    );
    let end = t.record(first).end.unwrap();
    assert_eq!(
        (end.attempt.number, end.attempt.worker.as_deref()),
        (1, Some("w-1"))
    );
    assert_eq!(end.attempt.started, Some(WallTime::from_millis(WALL_MS)));
    assert_eq!(end.attempt.finished, WallTime::from_millis(WALL_MS));
}

fn ends_of_one_commit_are_each_what_they_were_and_a_restart_knows_them_all(ground: &dyn Ground) {
    let mut t = Trial::new(ground);
    t.submit(60);
    let all: Vec<(u64, u16)> = (1..=60).map(|job| (job, 1)).collect();
    t.commit(&[], &[t.worker(1), t.assigned(1, &all)]).unwrap();
    // Long and short runs of neighbours that are alike, broken by another state, by words, by another time, and by a job
    // that runs on; not in the order of their ids.
    let mut facts: Vec<Fact> = (1..=40).map(|job| t.succeeded(job)).collect();
    facts[19] = t.ended(20, 1, JobState::Failed, Reason::ExitCode);
    facts[21] = t.ended(22, 0, JobState::Cancelled, Reason::CancelledByUser);
    let detail = Detail {
        result: b"{}".to_vec(),
        ..Detail::default()
    };
    let Fact::Ended(with_words) = &mut facts[25] else {
        panic!("an end")
    };
    with_words.detail = Some(Box::new(detail));
    facts.remove(29);
    t.now = t.now + Span::from_millis(7);
    facts.extend((41..=50).map(|job| t.succeeded(job)));
    facts.rotate_left(33);
    t.commit(&[], &facts).unwrap();
    let expected: BTreeMap<JobId, Ended> = facts
        .into_iter()
        .filter_map(|fact| {
            if let Fact::Ended(end) = fact {
                Some((end.job, end))
            } else {
                None
            }
        })
        .collect();
    let mut t = t.reopen(ground);
    for job in 1..=60 {
        let found = t.record(job).end;
        let Some(end) = expected.get(&id(job)) else {
            assert!(found.is_none(), "{job}");
            continue;
        };
        let found = found.unwrap();
        let wall = |at: Time| WallTime::from_millis(at.micros() / 1_000);
        assert_eq!(
            (found.state, found.attempt.reason),
            (end.state, end.reason),
            "{job}"
        );
        assert_eq!(
            found.attempt.number,
            end.fence.map_or(0, |f| f.attempt.raw()),
            "{job}"
        );
        assert_eq!(
            found.attempt.worker.is_some(),
            end.worker.is_some(),
            "{job}"
        );
        assert_eq!(found.attempt.started, end.started.map(wall), "{job}");
        assert_eq!(found.attempt.finished, wall(end.at), "{job}");
        assert_eq!(found.attempt.detail, end.detail, "{job}");
    }
    let live: Vec<u64> = t.restored().jobs.into_keys().collect();
    let expected: Vec<u64> = (1..=60).filter(|job| *job == 30 || *job > 50).collect();
    assert_eq!(live, expected);
}

fn attempts_come_back_with_their_words(ground: &dyn Ground) {
    let mut t = Trial::new(ground);
    let job = t.submit(1);
    let detail = Detail {
        exit_code: Some(3),
        signal: None,
        message: "no such frame".into(),
        result: vec![1],
        stderr_tail: vec![0xff, 0],
        usage: Some(Usage {
            wall_ms: 6,
            user_ms: 1,
            system_ms: 2,
            peak_rss_bytes: 3,
            stdout_bytes: 4,
            stderr_bytes: 5,
        }),
    };
    let again = |number, detail| {
        Fact::Again(Again {
            fence: t.fence(job, number),
            worker: WorkerId::new(1),
            reason: Reason::ExitCode,
            charge: Charge::Failure,
            started: Some(t.now),
            at: t.now,
            due: Some(When::Engine(t.now)),
            detail,
        })
    };
    let facts = [
        t.worker(1),
        t.assigned(1, &[(job, 1)]),
        again(1, Some(Box::new(detail.clone()))),
        t.assigned(1, &[(job, 2)]),
        again(2, Some(Box::default())),
        t.assigned(1, &[(job, 3)]),
        again(3, None),
    ];
    t.commit(&[], &facts).unwrap();
    let attempts = t.record(job).attempts;
    let told: Vec<_> = attempts
        .iter()
        .map(|a| (a.number, a.reason, a.detail.as_deref()))
        .collect();
    let none = Detail::default();
    assert_eq!(
        told,
        [
            (1, Reason::ExitCode, Some(&detail)),
            (2, Reason::ExitCode, Some(&none)),
            (3, Reason::ExitCode, None)
        ]
    );
    assert_eq!(attempts[0].worker.as_deref(), Some("w-1"));
}

fn a_list_knows_the_attempts_that_did_not_end_their_jobs(ground: &dyn Ground) {
    let mut t = Trial::new(ground);
    let first = t.submit(3);
    let again = |job| {
        Fact::Again(Again {
            fence: t.fence(job, 1),
            worker: WorkerId::new(1),
            reason: Reason::ExitCode,
            charge: Charge::Failure,
            started: Some(t.now),
            at: t.now,
            due: Some(When::Engine(t.now)),
            detail: None,
        })
    };
    let facts = [
        t.worker(1),
        t.assigned(1, &[(first, 1), (first + 1, 1), (first + 2, 1)]),
        again(first),
        t.assigned(1, &[(first, 2)]),
        t.ended(first, 2, JobState::Succeeded, Reason::None),
        // Cancelled while it waited for its second try.
        again(first + 1),
        t.ended(first + 1, 0, JobState::Cancelled, Reason::CancelledByUser),
        t.ended(first + 2, 1, JobState::Succeeded, Reason::None),
    ];
    t.commit(&[], &facts).unwrap();
    let page = t.read().list(&list(|q| q.limit = 10)).unwrap();
    let former: Vec<usize> = (page.records.iter())
        .map(|record| record.attempts.len())
        .collect();
    assert_eq!(former, [1, 1, 0]);
    for record in &page.records {
        let told = t.record(record.id.raw()).attempts;
        let numbers = |all: &[AttemptRecord]| all.iter().map(|it| it.number).collect::<Vec<_>>();
        assert_eq!(numbers(&record.attempts), numbers(&told));
    }
}

fn epochs_grow_and_ids_are_never_given_out_again(ground: &dyn Ground) {
    let mut t = Trial::new(ground);
    let opening = t.store.opening().clone();
    assert_eq!(
        (opening.epoch, opening.next_id),
        (Epoch::new(1), JobId::MIN)
    );
    t.submit(2);
    let t = t.reopen(ground);
    let second = t.store.opening();
    assert_eq!(second.epoch, Epoch::new(2));
    assert_eq!(second.cluster, opening.cluster);
    assert_ne!(second.epoch_nonce, opening.epoch_nonce);
    // Two were used, a thousand more were promised, and the process died with its promise.
    assert_eq!(second.next_id, id(1_003));
}

fn a_deposed_store_changes_nothing(ground: &dyn Ground) {
    let mut first = Trial::new(ground);
    let job = first.submit(1);
    let second = Trial::on(ground.take_over());
    let facts = [
        first.worker(1),
        first.assigned(1, &[(job, 1)]),
        first.succeeded(job),
    ];
    assert!(matches!(
        first.commit(&[], &facts),
        Err(CommitError::Deposed)
    ));
    assert!(second.record(job).end.is_none());
}

fn a_key_is_remembered_with_its_jobs(ground: &dyn Ground) {
    let mut t = Trial::new(ground);
    let mut batch = t.batch(vec![t.plain(), t.plain()]);
    let record = KeyRecord {
        token: "tok_1".into(),
        key: "abc".into(),
        body_hash: [9; 32],
        first: batch.first,
        count: 2,
        at: t.stamp().engine,
    };
    batch.key = Some(record.clone());
    t.commit(&[batch], &[]).unwrap();
    let mut t = t.reopen(ground);
    assert_eq!(t.store.key("tok_1", "abc").unwrap(), Some(record));
    assert_eq!(t.store.key("tok_2", "abc").unwrap(), None);
    t.now = Time::from_micros(t.now.micros() + DAY_US + 1_000);
    t.maintain();
    assert_eq!(t.store.key("tok_1", "abc").unwrap(), None);
}

fn a_purged_body_leaves_the_end(ground: &dyn Ground) {
    let mut t = Trial::new(ground);
    let job = t.submit(2);
    let facts = [t.worker(1), t.assigned(1, &[(job, 1)]), t.succeeded(job)];
    t.commit(&[], &facts).unwrap();
    t.commit_purging(&[], &[], &[id(job), id(job + 1)]).unwrap();
    let record = t.record(job);
    assert!(record.body.is_none() && record.end.is_some());
    assert!(
        t.record(job + 1).body.is_some(),
        "a living job keeps its body"
    );
}

fn retention_drops_old_jobs_and_never_a_living_one(ground: &dyn Ground) {
    let mut t = Trial::new(ground);
    let first = t.submit(4);
    let ends =
        |t: &Trial, jobs: &[u64]| jobs.iter().map(|&job| t.succeeded(job)).collect::<Vec<_>>();
    let facts = [
        t.worker(1),
        t.assigned(1, &[(1, 1), (2, 1), (3, 1), (4, 1)]),
    ];
    t.commit(&[], &facts).unwrap();
    let facts = ends(&t, &[first, first + 2]);
    t.commit(&[], &facts).unwrap();
    t.restored();
    t.now = Time::from_micros(t.now.micros() + 20 * DAY_US);
    let facts = ends(&t, &[first + 3]);
    t.commit(&[], &facts).unwrap();
    t.maintain();
    assert!(t.record(first).end.is_some());
    t.now = Time::from_micros(t.now.micros() + 11 * DAY_US);
    t.maintain();
    let mut reader = t.read();
    assert!(matches!(reader.job(id(first)).unwrap(), Lookup::Purged));
    assert!(matches!(reader.job(id(first + 2)).unwrap(), Lookup::Purged));
    assert!(t.record(first + 1).end.is_none(), "it lives");
    assert!(t.record(first + 3).end.is_some(), "it ended 11 days ago");
    assert_eq!(
        t.restored().jobs.keys().copied().collect::<Vec<_>>(),
        [first + 1]
    );
    // The one that outlived its neighbours goes 30 days after its own end.
    let facts = ends(&t, &[first + 1]);
    t.commit(&[], &facts).unwrap();
    t.now = Time::from_micros(t.now.micros() + 31 * DAY_US);
    t.maintain();
    assert!(matches!(reader.job(id(first + 1)).unwrap(), Lookup::Purged));
}

fn lists_page_through_everything_in_both_directions(ground: &dyn Ground) {
    let mut t = Trial::new(ground);
    let first = t.submit(25);
    let facts: Vec<_> = (first..first + 10)
        .map(|job| t.ended(job, 0, JobState::Cancelled, Reason::CancelledByUser))
        .collect();
    t.commit(&[], &facts).unwrap();
    let mut reader = t.read();
    let all: Vec<u64> = (first..first + 25).collect();
    let up = pages(&mut *reader, list(|q| q.limit = 7));
    assert_eq!(up, all);
    let down = pages(&mut *reader, list(|q| (q.limit, q.descending) = (7, true)));
    assert!(down.iter().eq(all.iter().rev()));
    let cancelled = pages(
        &mut *reader,
        list(|q| (q.limit, q.states) = (3, vec![JobState::Cancelled, JobState::Failed])),
    );
    assert_eq!(cancelled, all[..10]);
    let newest = list(|q| (q.limit, q.descending, q.states) = (4, true, vec![JobState::Cancelled]));
    assert!(
        pages(&mut *reader, newest)
            .iter()
            .eq(all[..10].iter().rev())
    );
}

fn filters_are_joined_by_and(ground: &dyn Ground) {
    let mut t = Trial::new(ground);
    let audio = Arc::new(class(2, "audio"));
    t.new_classes.push(Arc::clone(&audio));
    let named = |name: &str, class: &Arc<Class>, t: &Trial| NewJob {
        name: Some(name.into()),
        class: Arc::clone(class),
        ..t.plain()
    };
    let video = Arc::clone(&t.class);
    let jobs = vec![
        named("a", &video, &t),
        named("a", &audio, &t),
        named("b", &audio, &t),
    ];
    let early = t.batch(jobs.clone());
    t.commit(&[early], &[]).unwrap();
    t.now = Time::from_micros(t.now.micros() + 10 * DAY_US);
    let late = t.batch(jobs);
    t.commit(&[late], &[]).unwrap();
    let facts = [t.ended(5, 0, JobState::Expired, Reason::NotStartedInTime)];
    t.commit(&[], &facts).unwrap();
    let mut reader = t.read();
    let mut ids = |query| pages(&mut *reader, query);
    assert_eq!(ids(list(|q| q.queues = vec!["audio".into()])), [2, 3, 5, 6]);
    assert_eq!(
        ids(list(
            |q| (q.queues, q.name) = (vec!["audio".into()], Some("a".into()))
        )),
        [2, 5]
    );
    let middle = Some(WallTime::from_millis(WALL_MS + 5 * DAY_US / 1_000));
    for descending in [false, true] {
        let mut since = ids(list(|q| (q.since, q.descending) = (middle, descending)));
        let mut until = ids(list(|q| (q.until, q.descending) = (middle, descending)));
        since.sort_unstable();
        until.sort_unstable();
        assert_eq!((since, until), (vec![4, 5, 6], vec![1, 2, 3]));
    }
    assert_eq!(
        ids(list(
            |q| (q.states, q.name) = (vec![JobState::Expired], Some("a".into()))
        )),
        [5]
    );
    assert_eq!(
        ids(list(
            |q| (q.states, q.name) = (vec![JobState::Expired], Some("b".into()))
        )),
        [0; 0]
    );
    assert_eq!(ids(list(|q| q.states = vec![JobState::Succeeded])), [0; 0]);
}

fn unfinished_states_are_not_the_stores_to_list(ground: &dyn Ground) {
    let t = Trial::new(ground);
    let error = t
        .read()
        .list(&list(|q| q.states = vec![JobState::Running]))
        .unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::NoIndex);
}

fn bodies_of_live_jobs_are_there(ground: &dyn Ground) {
    let mut t = Trial::new(ground);
    let jobs = (0..3_u8)
        .map(|n| NewJob {
            body: Bytes::from(vec![n; 20_000]),
            ..t.plain()
        })
        .collect();
    let batch = t.batch(jobs);
    t.commit(&[batch], &[]).unwrap();
    let bodies = t.read().bodies(&[id(3), id(1)]).unwrap();
    let told: Vec<_> = bodies
        .iter()
        .map(|(job, body)| (job.raw(), body[19_999]))
        .collect();
    assert_eq!(told, [(3, 2), (1, 0)]);
}

fn a_missing_body_is_an_error(ground: &dyn Ground) {
    let mut t = Trial::new(ground);
    t.submit(1);
    let error = t.read().bodies(&[id(1), id(2)]).unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Corrupt);
}

fn the_last_commit_is_known_at_the_next_opening(ground: &dyn Ground) {
    let mut t = Trial::new(ground);
    assert_eq!(t.store.opening().last, None);
    t.submit(1);
    t.submit(1);
    let stamp = t.stamp();
    let t = t.reopen(ground);
    assert_eq!(t.store.opening().last, Some((Epoch::new(1), 2)));
    assert_eq!(t.store.opening().stamp, Some(stamp));
}

/// One step of a random history.
#[derive(Clone, Copy, Debug)]
enum Step {
    Submit(u8),
    Assign(u8),
    Start(u8),
    Again(u8),
    End(u8),
    CancelRunning(u8),
    Commit,
    Crash,
    Tidy,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = (0..20_u8, any::<u8>()).prop_map(|(kind, pick)| match kind {
        0..3 => Step::Submit(pick),
        3..7 => Step::Assign(pick),
        7..10 => Step::Start(pick),
        10..12 => Step::Again(pick),
        12..15 => Step::End(pick),
        15 => Step::CancelRunning(pick),
        16 | 17 => Step::Commit,
        18 => Step::Crash,
        _ => Step::Tidy,
    });
    proptest::collection::vec(step, 1..120)
}

/// A job as the engine's rules have it, told in the order things happen.
#[derive(Clone, Debug)]
struct ModelJob {
    new: NewJob,
    attempt: u16,
    failures: u16,
    losses: u16,
    later: u16,
    ever_started: bool,
    running: Option<RestoredAttempt>,
    due: Option<(When, Reason)>,
    cancelling: Option<Reason>,
}

struct World<'a> {
    t: Option<Trial>,
    ground: &'a dyn Ground,
    live: BTreeMap<u64, ModelJob>,
    batches: Vec<Batch>,
    facts: Vec<Fact>,
    workers: u32,
}

impl World<'_> {
    fn t(&mut self) -> &mut Trial {
        self.t.as_mut().unwrap()
    }

    fn pick(&self, pick: u8, wanted: impl Fn(&ModelJob) -> bool) -> Option<u64> {
        let fitting: Vec<u64> = self
            .live
            .iter()
            .filter(|(_, job)| wanted(job))
            .map(|(id, _)| *id)
            .collect();
        (!fitting.is_empty()).then(|| fitting[usize::from(pick) % fitting.len()])
    }

    fn step(&mut self, step: Step) {
        let now = self.t().now + Span::from_micros(1_000);
        self.t().now = now;
        let idle = |job: &ModelJob| job.running.is_none();
        let running = |job: &ModelJob| job.running.is_some();
        match step {
            Step::Submit(pick) => self.submit(now, pick),
            Step::Assign(pick) => {
                // A job must be committed before it is assigned (P2).
                self.commit_jobs();
                if let Some(job) = self.pick(pick, idle) {
                    self.assign(job, 1 + u32::from(pick) % 3);
                }
            }
            Step::Start(pick) => {
                let Some(job) = self.pick(pick, running) else {
                    return;
                };
                let model = self.live.get_mut(&job).unwrap();
                model.ever_started = true;
                let attempt = model.running.as_mut().unwrap();
                if attempt.started.is_none() {
                    attempt.started = Some(now);
                    let (worker, fences) = (attempt.worker, vec![attempt.fence]);
                    self.facts.push(Fact::Started(Started {
                        worker,
                        at: now,
                        fences,
                    }));
                }
            }
            Step::Again(pick) => {
                if let Some(job) = self.pick(pick, |job| {
                    job.running.is_some() && job.cancelling.is_none()
                }) {
                    self.again(now, job, pick);
                }
            }
            Step::End(pick) => self.end(pick),
            Step::CancelRunning(pick) => {
                let Some(job) = self.pick(pick, |job| {
                    job.running.is_some() && job.cancelling.is_none()
                }) else {
                    return;
                };
                let reason = if pick & 1 == 0 {
                    Reason::CancelledByUser
                } else {
                    Reason::Deadline
                };
                self.live.get_mut(&job).unwrap().cancelling = Some(reason);
                self.facts.push(Fact::Cancelling(Cancelling {
                    job: id(job),
                    at: now,
                    reason,
                    note: None,
                }));
            }
            Step::Commit => self.commit(),
            Step::Crash => self.crash(),
            Step::Tidy => self.t().maintain(),
        }
    }

    fn submit(&mut self, now: Time, pick: u8) {
        let later = now + Span::from_secs(5);
        let new = NewJob {
            priority: Priority::new(i8::from(pick & 1 == 1)),
            due: (pick & 2 != 0).then_some(When::Engine(later)),
            expires: (pick & 4 != 0).then(|| When::Wall(WallTime::from_millis(WALL_MS + 1))),
            deadline: (pick & 8 != 0).then_some(When::Engine(later)),
            ..self.t().plain()
        };
        let count = 1 + u64::from(pick % 3);
        let batch = self
            .t()
            .batch(vec![new.clone(); usize::try_from(count).unwrap()]);
        for place in 0..count {
            let job = ModelJob {
                new: new.clone(),
                attempt: 0,
                failures: 0,
                losses: 0,
                later: 0,
                ever_started: false,
                running: None,
                due: None,
                cancelling: None,
            };
            self.live.insert(batch.first.raw() + place, job);
        }
        self.batches.push(batch);
    }

    fn assign(&mut self, job: u64, worker: u32) {
        while self.workers < worker {
            self.workers += 1;
            let fact = self.t.as_ref().unwrap().worker(self.workers);
            self.facts.push(fact);
        }
        let model = self.live.get_mut(&job).unwrap();
        model.attempt += 1;
        model.due = None;
        let t = self.t.as_ref().unwrap();
        model.running = Some(RestoredAttempt {
            fence: t.fence(job, model.attempt),
            worker: WorkerId::new(worker),
            started: None,
        });
        self.facts.push(t.assigned(worker, &[(job, model.attempt)]));
    }

    fn again(&mut self, now: Time, job: u64, pick: u8) {
        let model = self.live.get_mut(&job).unwrap();
        let attempt = model.running.take().unwrap();
        let due = (pick & 16 != 0).then(|| When::Engine(now + Span::from_secs(9)));
        let (charge, why) = match pick % 4 {
            0 => (Charge::Return, Reason::BackOff),
            1 => (Charge::Failure, Reason::BackOff),
            2 => (Charge::Loss, Reason::BackOff),
            _ => (Charge::Later, Reason::Later),
        };
        match charge {
            Charge::Return => {}
            Charge::Failure => model.failures += 1,
            Charge::Loss => model.losses += 1,
            Charge::Later => model.later += 1,
        }
        model.due = due.map(|when| (when, why));
        self.facts.push(Fact::Again(Again {
            fence: attempt.fence,
            worker: attempt.worker,
            reason: Reason::ExitCode,
            charge,
            started: attempt.started,
            at: now,
            due,
            detail: None,
        }));
    }

    fn end(&mut self, pick: u8) {
        self.commit_jobs();
        let Some(job) = self.pick(pick, |_| true) else {
            return;
        };
        let model = self.live.remove(&job).unwrap();
        let now = self.t().now;
        let state = match model.running {
            Some(_) if pick & 1 == 0 => JobState::Succeeded,
            Some(_) => JobState::Failed,
            None => JobState::Cancelled,
        };
        self.facts.push(Fact::Ended(Ended {
            job: id(job),
            class: ClassId::new(1),
            state,
            reason: Reason::None,
            fence: model.running.map(|running| running.fence),
            worker: model.running.map(|running| running.worker),
            started: model.running.and_then(|running| running.started),
            at: now,
            detail: None,
        }));
    }

    fn commit_jobs(&mut self) {
        if !self.batches.is_empty() {
            self.commit();
        }
    }

    fn commit(&mut self) {
        let (batches, facts) = (
            std::mem::take(&mut self.batches),
            std::mem::take(&mut self.facts),
        );
        self.t().commit(&batches, &facts).unwrap();
    }

    fn crash(&mut self) {
        self.commit();
        self.t = Some(self.t.take().unwrap().reopen(self.ground));
        self.compare();
        // And again, after a mark that moved as far as it would.
        self.t().maintain();
        self.compare();
    }

    fn compare(&mut self) {
        let expected = self.expected();
        assert_eq!(self.t().restored(), expected);
    }

    fn expected(&self) -> Restored {
        let mut expected = Restored {
            next_worker: self.workers + 1,
            ..Restored::default()
        };
        for worker in 1..=self.workers {
            let on = |job: &ModelJob| {
                job.running
                    .is_some_and(|running| running.worker.raw() == worker)
            };
            if self.live.values().any(on) {
                let (name, instance) = (format!("w-{worker}"), u64::MAX - u64::from(worker));
                expected.workers.push((worker, name, instance));
            }
        }
        for (&job, model) in &self.live {
            let NewJob {
                class,
                priority,
                due,
                expires,
                deadline,
                ..
            } = model.new.clone();
            if let Some(attempt) = Attempt::new(model.attempt) {
                let restored = RestoredJob {
                    id: id(job),
                    class,
                    priority,
                    expires,
                    deadline,
                    attempt,
                    failures: model.failures,
                    losses: model.losses,
                    later: model.later,
                    ever_started: model.ever_started,
                    running: model.running,
                    due: model.due,
                    cancelling: model.cancelling,
                };
                expected.jobs.insert(job, format!("{restored:?}"));
            } else {
                let run = Run {
                    first: id(job),
                    count: 1,
                    priority,
                    class,
                    due,
                    expires,
                    deadline,
                    resident: false,
                };
                expected.quiet.insert(job, quiet(&run));
            }
        }
        expected
    }
}

fn live_through(ground: &dyn Ground, steps: &[Step]) {
    let mut world = World {
        t: Some(Trial::new(ground)),
        ground,
        live: BTreeMap::new(),
        batches: Vec::new(),
        facts: Vec::new(),
        workers: 0,
    };
    world.t().restored();
    for &step in steps {
        world.step(step);
    }
    world.crash();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn recovery_from_sqlite_agrees_with_a_model(steps in steps()) {
        let ground = Directory::new();
        live_through(&ground, &steps);
        let report = hostler_server::verify(&ground.path()).unwrap();
        assert!(report.is_sound(), "{:#?}", report.findings);
    }

    #[test]
    fn recovery_from_memory_agrees_with_a_model(steps in steps()) {
        live_through(&Disk::new(7), &steps);
    }
}

#[test]
fn a_backlog_that_several_threads_read_is_told_whole_in_order_and_in_few_runs() {
    let ground = Directory::new();
    let mut t = Trial::new(&ground);
    let worker = t.worker(1);
    t.commit(&[], &[worker]).unwrap();
    let (first, all) = (t.next, 100_000);
    let mut expected = BTreeMap::new();
    while t.next < first + all {
        let jobs: Vec<NewJob> = (t.next..t.next + 5_000)
            .map(|job| NewJob {
                priority: Priority::new(if job < 30_000 { 0 } else { -7 }),
                due: (job % 9_000 == 0).then_some(When::Engine(Time::from_micros(7))),
                expires: (job % 9_001 == 0).then_some(When::Wall(WallTime::from_millis(8))),
                ..t.plain()
            })
            .collect();
        let batch = t.batch(jobs);
        for (place, job) in (0..).zip(&batch.jobs) {
            let run = Run {
                first: batch.first,
                count: 1,
                priority: job.priority,
                class: Arc::clone(&job.class),
                due: job.due,
                expires: job.expires,
                deadline: job.deadline,
                resident: false,
            };
            expected.insert(batch.first.raw() + place, quiet(&run));
        }
        t.commit(&[batch], &[]).unwrap();
    }
    // Some have ended, one has been given out: it is told for itself.
    let ended: Vec<u64> = (20_000..20_100).chain([16_384, 16_385, 49_152]).collect();
    let given: Vec<(u64, u16)> = ended.iter().map(|job| (*job, 1)).chain([(77, 1)]).collect();
    let mut facts = vec![t.assigned(1, &given)];
    facts.extend(ended.iter().map(|job| t.succeeded(*job)));
    t.commit(&[], &facts).unwrap();
    for job in ended.iter().chain(&[77]) {
        expected.remove(job);
    }
    let mut t = t.reopen(&ground);
    let mut runs = 0;
    let mut restored = Restored::default();
    t.store
        .load(&mut |part| {
            runs += usize::from(matches!(part, Restore::Run(_)));
            restored.take(part);
        })
        .unwrap();
    assert_eq!(restored.jobs.keys().copied().collect::<Vec<_>>(), [77]);
    assert!(
        restored.quiet == expected,
        "{} of {}",
        restored.quiet.len(),
        expected.len()
    );
    // A run ends at a gap, at a job with a time of its own and behind it, and where the priority changes; not at a chunk.
    assert!((40..60).contains(&runs), "{runs} runs");
}

// The writer, on the store in memory.

/// A writer on a thread of its own, and everything it talks to.
struct Desk {
    disk: Disk,
    handle: writer::Handle,
    lanes: JobLanes,
    resident_bytes: Arc<AtomicUsize>,
    notices: mpsc::Receiver<Notice>,
    fatal: mpsc::Receiver<StoreError>,
    health: Arc<Health>,
    counters: Arc<Counters>,
    thread: Option<JoinHandle<()>>,
}

impl Desk {
    fn new() -> Self {
        Self::with(&Disk::new(7), Limits::default())
    }

    fn with(disk: &Disk, limits: Limits) -> Self {
        let (notice, notices) = mpsc::channel();
        let (died, fatal) = mpsc::channel();
        let (parts_in, parts) = mpsc::channel::<writer::Parts>();
        let thread = std::thread::spawn(move || {
            if let Ok(parts) = parts.recv() {
                writer::run(parts);
            }
        });
        let (sender, inbox) = mailbox(&Wake::parking());
        let desk = Self {
            disk: disk.clone(),
            handle: writer::Handle::new(sender, 1 << 20),
            lanes: JobLanes::default(),
            resident_bytes: Arc::default(),
            notices,
            fatal,
            health: Arc::default(),
            counters: Arc::default(),
            thread: Some(thread),
        };
        desk.health.set_ready();
        let store = MemoryStore::open(disk);
        let clock = Clock::resume(store.opening().stamp);
        let parts = writer::Parts {
            store: Box::new(store),
            inbox,
            handle: desk.handle.clone(),
            lanes: Arc::clone(&desk.lanes),
            resident_bytes: Arc::clone(&desk.resident_bytes),
            idle: Arc::default(),
            notify: Box::new(move |said| notice.send(said).unwrap_or_default()),
            fatal: Box::new(move |error| drop(died.send(error))),
            health: Arc::clone(&desk.health),
            counters: Arc::clone(&desk.counters),
            clock,
            live: LiveJobs::default(),
            durability: Durability::Fsync,
            limits,
        };
        parts_in.send(parts).unwrap();
        desk
    }

    fn submit(&self, submission: Submission) -> Answer {
        self.handle.submit(submission).unwrap()
    }

    fn accept(&self, count: usize) -> Accepted {
        self.submit(submission(count))
            .blocking_recv()
            .unwrap()
            .unwrap()
    }

    fn ended(&self, job: u64) -> Fact {
        Fact::Ended(Ended {
            job: id(job),
            class: ClassId::new(1),
            state: JobState::Cancelled,
            reason: Reason::CancelledByUser,
            fence: None,
            worker: None,
            started: None,
            at: Time::ZERO,
            detail: None,
        })
    }

    fn stop(&mut self) {
        self.handle.stop();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        self.disk.release();
        self.stop();
    }
}

type Answer = tokio::sync::oneshot::Receiver<Result<Accepted, SubmitError>>;

fn submission(count: usize) -> Submission {
    let draft = || Draft {
        class: 0,
        priority: Priority::NORMAL,
        name: None,
        labels: None,
        due: None,
        expires: None,
        deadline: None,
        sync: true,
        retry_of: None,
        body: Bytes::from_static(b"0123456789"),
    };
    Submission {
        by: "tok_1".into(),
        from: None,
        classes: vec![class(0, "video").spec],
        jobs: (0..count).map(|_| draft()).collect(),
        key: None,
        bytes: 100,
    }
}

fn keyed(count: usize, key: &str, hash: u8) -> Submission {
    Submission {
        key: Some((key.into(), [hash; 32])),
        ..submission(count)
    }
}

#[test]
fn nothing_leaves_the_writer_before_its_commit() {
    let desk = Desk::new();
    desk.accept(1);
    assert_eq!(desk.notices.recv(), Ok(Notice::Arrived));
    desk.lanes.pop().unwrap();
    desk.disk.hold();
    let mut answer = desk.submit(submission(3));
    desk.disk.wait_for_held();
    desk.handle.facts(vec![desk.ended(1)], 1);
    assert!(answer.try_recv().is_err(), "no answer");
    assert!(desk.lanes.pop().is_none(), "no arrival");
    assert!(desk.notices.try_recv().is_err(), "no word to dispatch");
    desk.disk.release();
    let accepted = answer.blocking_recv().unwrap().unwrap();
    assert_eq!(
        (accepted.first, accepted.count, accepted.replayed),
        (id(2), 3, false)
    );
    // By the time of the answer the jobs are in the lanes.
    let arrival = desk.lanes.pop().unwrap();
    assert_eq!((arrival.run.first, arrival.run.count), (id(2), 3));
    assert_eq!(desk.notices.recv(), Ok(Notice::Arrived));
    assert_eq!(desk.notices.recv(), Ok(Notice::Committed { through: 1 }));
}

#[test]
fn what_arrives_during_a_commit_makes_one_commit_and_one_run() {
    let desk = Desk::new();
    desk.accept(1);
    desk.lanes.pop().unwrap();
    desk.disk.hold();
    let first = desk.submit(submission(1));
    desk.disk.wait_for_held();
    let commits = desk.disk.commits();
    let rest: Vec<_> = (0..50).map(|_| desk.submit(submission(2))).collect();
    desk.disk.release();
    first.blocking_recv().unwrap().unwrap();
    for answer in rest {
        answer.blocking_recv().unwrap().unwrap();
    }
    assert_eq!(desk.disk.commits(), commits + 2);
    assert_eq!(desk.lanes.pop().unwrap().run.count, 1);
    assert_eq!(desk.lanes.pop().unwrap().run.count, 100);
    assert!(desk.lanes.pop().is_none());
}

#[test]
fn a_full_disk_refuses_submitters_and_keeps_the_facts() {
    let desk = Desk::new();
    desk.accept(1);
    assert_eq!(desk.notices.recv(), Ok(Notice::Arrived));
    for _ in 0..2 {
        desk.disk.fault(Fault::Refuse(StoreErrorKind::Full));
    }
    desk.handle.facts(vec![desk.ended(1)], 1);
    let refused = desk.submit(submission(1)).blocking_recv().unwrap();
    // Which of the two met the first fault is a matter of timing; the facts are tried again until they are in.
    assert!(
        matches!(refused, Err(SubmitError::Refused(ref error)) if error.kind == StoreErrorKind::Full)
    );
    loop {
        match desk.notices.recv().unwrap() {
            Notice::Arrived | Notice::Owed => {}
            Notice::Committed { through } => break assert_eq!(through, 1),
            Notice::Deposed => panic!("nobody else is there"),
        }
    }
    desk.accept(1);
    assert_eq!(desk.health.trouble(), None);
    assert_eq!(desk.counters.refused.value(), 2);
    assert_eq!(desk.counters.cancelled.value(), 1);
}

#[test]
fn a_store_that_refused_is_tried_again_though_nothing_waits_to_be_committed() {
    let desk = Desk::new();
    desk.accept(1);
    desk.disk.fault(Fault::Refuse(StoreErrorKind::Full));
    let refused = desk.submit(submission(1)).blocking_recv().unwrap();
    assert!(matches!(refused, Err(SubmitError::Refused(_))));
    desk.disk.hold();
    desk.disk.wait_for_held();
    assert!(desk.health.trouble().is_some());
    desk.disk.release();
    // The next one waits behind the try, so it finds the store well again.
    desk.accept(1);
    assert_eq!(desk.health.trouble(), None);
    assert_eq!(desk.counters.refused.value(), 1);
}

/// A writer in given time, and the way to hand it something; with `idle`, a worker waits for a job.
fn in_given_time(disk: &Disk, readings: &'static Readings, idle: bool) -> (Writer, writer::Handle) {
    let (sender, inbox) = mailbox(&Wake::parking());
    let handle = writer::Handle::new(sender, 1 << 20);
    let store = MemoryStore::open(disk);
    let writer = Writer::new(writer::Parts {
        clock: Clock::resume_given(readings, store.opening().stamp),
        store: Box::new(store),
        inbox,
        handle: handle.clone(),
        lanes: JobLanes::default(),
        resident_bytes: Arc::default(),
        idle: Arc::new(AtomicBool::new(idle)),
        notify: Box::new(|_| ()),
        fatal: Box::new(|_| ()),
        health: Arc::default(),
        counters: Arc::default(),
        live: LiveJobs::default(),
        durability: Durability::Fsync,
        limits: Limits::default(),
    });
    (writer, handle)
}

/// Turns of the writer until it would sleep.
fn work_off(writer: &mut Writer) -> Rest {
    loop {
        if writer.gather() {
            writer.commit();
        }
        let rest = writer.rest();
        if rest != Rest::GoOn {
            return rest;
        }
    }
}

/// A writer that owes the answer to its second submission, of one job: it waits to hear what dispatch makes of it.
fn owing(
    disk: &Disk,
    readings: &'static Readings,
    submission: Submission,
) -> (Writer, writer::Handle, Answer) {
    readings.set(1, 1_000_000, WallTime::from_millis(1_000));
    let (mut writer, handle) = in_given_time(disk, readings, true);
    // The first commit also promises ids, and is synced for that.
    let mut first = handle.submit(self::submission(20)).unwrap();
    work_off(&mut writer);
    first.try_recv().unwrap().unwrap();
    let mut answer = handle.submit(submission).unwrap();
    let rest = work_off(&mut writer);
    assert_eq!(rest, Rest::Sleep(Duration::from_millis(1)));
    assert!(answer.try_recv().is_err(), "it is not synced");
    (writer, handle, answer)
}

fn is_there(disk: &Disk, job: u64) -> bool {
    let mut store = MemoryStore::open(disk);
    let mut found = false;
    let mut look = |part| {
        if let Restore::Run(run) = part {
            found |= (run.first.raw()..run.first.raw() + u64::from(run.count)).contains(&job);
        }
    };
    store.load(&mut look).unwrap();
    found
}

#[test]
fn a_job_that_a_worker_waits_for_is_accepted_and_assigned_by_one_sync() {
    static READINGS: Readings = Readings::new();
    let disk = Disk::new(7);
    let (mut writer, handle, mut answer) = owing(&disk, &READINGS, submission(1));
    let worker = WorkerId::new(1);
    let (name, instance, at) = ("w".into(), 1, Time::ZERO);
    let facts = vec![
        Fact::Worker(WorkerFact {
            id: worker,
            name,
            instance,
            at,
        }),
        Fact::Assigned(Assigned {
            worker,
            at,
            attempts: vec![(id(21), Attempt::FIRST)],
        }),
    ];
    handle.facts(facts, 2);
    work_off(&mut writer);
    assert_eq!(answer.try_recv().unwrap().unwrap().first, id(21));
    disk.lose_power();
    drop(writer);
    let mut store = MemoryStore::open(&disk);
    let mut assigned = false;
    let mut look = |part| assigned |= matches!(part, Restore::Job(job) if job.id == id(21));
    store.load(&mut look).unwrap();
    assert!(assigned);
}

#[test]
fn a_job_whose_answer_is_owed_may_go_with_the_power() {
    static READINGS: Readings = Readings::new();
    let disk = Disk::new(7);
    let (writer, _handle, mut answer) = owing(&disk, &READINGS, submission(1));
    disk.lose_power();
    drop(writer);
    assert!(answer.try_recv().is_err());
    assert!(is_there(&disk, 20) && !is_there(&disk, 21));
}

#[test]
fn an_owed_answer_does_not_wait_for_a_dispatch_that_says_nothing() {
    static READINGS: Readings = Readings::new();
    let disk = Disk::new(7);
    let (mut writer, _handle, mut answer) = owing(&disk, &READINGS, submission(1));
    READINGS.set(1, 1_001_000, WallTime::from_millis(1_001));
    work_off(&mut writer);
    assert_eq!(answer.try_recv().unwrap().unwrap().first, id(21));
    disk.lose_power();
    drop(writer);
    assert!(is_there(&disk, 21));
}

#[test]
fn a_repeat_of_what_is_owed_an_answer_waits_for_the_same_sync() {
    static READINGS: Readings = Readings::new();
    let disk = Disk::new(7);
    let keyed = || Submission {
        key: Some(("key".into(), [7; 32])),
        ..submission(1)
    };
    let (mut writer, handle, mut answer) = owing(&disk, &READINGS, keyed());
    let mut repeat = handle.submit(keyed()).unwrap();
    work_off(&mut writer);
    assert!(repeat.try_recv().is_err(), "nothing was synced since");
    handle.facts(Vec::new(), 0);
    work_off(&mut writer);
    assert!(!answer.try_recv().unwrap().unwrap().replayed);
    let repeated = repeat.try_recv().unwrap().unwrap();
    assert!(repeated.replayed && repeated.first == id(21));
}

#[test]
fn whoever_is_owed_an_answer_is_told_when_nobody_knows_it_any_more() {
    static READINGS: Readings = Readings::new();
    for fault in [Fault::UnknownKept, Fault::UnknownLost] {
        let disk = Disk::new(7);
        let (mut writer, handle, mut answer) = owing(&disk, &READINGS, submission(1));
        disk.fault(fault);
        handle.facts(Vec::new(), 0);
        work_off(&mut writer);
        let told = answer.try_recv().unwrap();
        assert!(matches!(told, Err(SubmitError::Unknown(_))), "{told:?}");
    }
}

#[test]
fn an_owed_answer_is_given_before_the_writer_ends() {
    static READINGS: Readings = Readings::new();
    let disk = Disk::new(7);
    let (mut writer, handle, mut answer) = owing(&disk, &READINGS, submission(1));
    handle.stop();
    assert_eq!(work_off(&mut writer), Rest::Close);
    writer.close();
    assert_eq!(answer.try_recv().unwrap().unwrap().first, id(21));
}

#[test]
fn while_the_store_refuses_what_is_owed_waits_and_the_writer_sleeps() {
    static READINGS: Readings = Readings::new();
    let disk = Disk::new(7);
    let (mut writer, handle, mut answer) = owing(&disk, &READINGS, submission(1));
    disk.fault(Fault::Refuse(StoreErrorKind::Full));
    handle.facts(Vec::new(), 0);
    let rest = work_off(&mut writer);
    assert_eq!(rest, Rest::Sleep(Duration::from_millis(100)));
    assert!(answer.try_recv().is_err());
    disk.release();
    READINGS.set(1, 1_100_000, WallTime::from_millis(1_100));
    work_off(&mut writer);
    assert!(answer.try_recv().unwrap().is_ok());
}

#[test]
fn while_the_store_refuses_the_writer_sleeps_though_counters_are_due() {
    static READINGS: Readings = Readings::new();
    let at = |s: u64| READINGS.set(1, s * 1_000_000, WallTime::from_millis(1_000));
    at(1);
    let disk = Disk::new(7);
    let (mut writer, handle) = in_given_time(&disk, &READINGS, false);
    let _answer = handle.submit(submission(1)).unwrap();
    work_off(&mut writer);
    at(20);
    disk.fault(Fault::Refuse(StoreErrorKind::Full));
    let _answer = handle.submit(submission(1)).unwrap();
    assert_eq!(
        work_off(&mut writer),
        Rest::Sleep(Duration::from_millis(100))
    );
}

#[test]
fn a_wall_clock_two_days_ahead_makes_no_key_forgotten() {
    static READINGS: Readings = Readings::new();
    READINGS.set(1, 0, WallTime::from_millis(1_000));
    let (mut writer, handle) = in_given_time(&Disk::new(7), &READINGS, false);
    let mut accept = |key| {
        let mut answer = handle.submit(keyed(1, key, 1)).unwrap();
        work_off(&mut writer);
        answer.try_recv().unwrap().unwrap()
    };
    let first = accept("k");
    READINGS.set(1, 1_000_000, WallTime::from_millis(2 * 86_400_000));
    let again = accept("k");
    assert_eq!((again.first, again.replayed), (first.first, true));
    // A day later by the clock that counts, it is.
    READINGS.set(1, 86_401_000_000, WallTime::from_millis(1_000));
    assert!(!accept("k").replayed);
}

#[test]
fn an_unknown_commit_is_told_as_unknown_and_ends_the_writer() {
    let desk = Desk::new();
    desk.accept(1);
    desk.disk.fault(Fault::UnknownKept);
    let answer = desk.submit(submission(1)).blocking_recv().unwrap();
    assert!(matches!(answer, Err(SubmitError::Unknown(_))), "{answer:?}");
    assert_eq!(desk.fatal.recv().unwrap().kind, StoreErrorKind::Io);
    assert!(desk.health.trouble().is_some());
}

#[test]
fn a_deposed_writer_says_so_and_refuses_everything() {
    let desk = Desk::new();
    desk.accept(1);
    let _usurper = MemoryStore::open(&desk.disk);
    for _ in 0..2 {
        let answer = desk.submit(submission(1)).blocking_recv().unwrap();
        assert!(
            matches!(answer, Err(SubmitError::Refused(ref error)) if error.kind == StoreErrorKind::InUse)
        );
    }
    assert_eq!(desk.notices.recv(), Ok(Notice::Arrived));
    assert_eq!(desk.notices.recv(), Ok(Notice::Deposed));
}

#[test]
fn a_key_makes_its_jobs_once() {
    let desk = Desk::new();
    let answer = |submission| desk.submit(submission).blocking_recv().unwrap();
    let first = answer(keyed(2, "a", 1)).unwrap();
    let again = answer(keyed(2, "a", 1)).unwrap();
    assert_eq!(
        (again.first, again.count, again.replayed),
        (first.first, 2, true)
    );
    assert!(matches!(
        answer(keyed(2, "a", 2)),
        Err(SubmitError::KeyReused(_))
    ));
    // And while the first is still on its way.
    desk.disk.hold();
    let held = desk.submit(submission(1));
    desk.disk.wait_for_held();
    let twins: Vec<_> = (0..2).map(|_| desk.submit(keyed(1, "b", 1))).collect();
    let other = desk.submit(keyed(1, "b", 2));
    desk.disk.release();
    held.blocking_recv().unwrap().unwrap();
    let twins: Vec<_> = twins
        .into_iter()
        .map(|twin| twin.blocking_recv().unwrap().unwrap())
        .collect();
    assert_eq!(twins[0].first, twins[1].first);
    assert_eq!((twins[0].replayed, twins[1].replayed), (false, true));
    assert!(matches!(
        other.blocking_recv().unwrap(),
        Err(SubmitError::KeyReused(_))
    ));
    assert_eq!(desk.counters.submitted.value(), 4);
}

#[test]
fn bodies_go_along_while_their_budget_lasts_and_the_job_may_run() {
    let limits = Limits {
        resident_bytes_max: 25,
        ..Limits::default()
    };
    let desk = Desk::with(&Disk::new(7), limits);
    for _ in 0..3 {
        desk.accept(1);
    }
    let resident: Vec<_> = (0..3)
        .map(|_| desk.lanes.pop().unwrap().run.resident)
        .collect();
    assert_eq!(resident, [true, true, false]);
    assert_eq!(desk.resident_bytes.load(Ordering::Relaxed), 20);
    desk.resident_bytes.store(0, Ordering::Relaxed);
    let mut later = submission(1);
    later.jobs[0].due = Some(Moment::In(Span::from_secs(5)));
    desk.submit(later).blocking_recv().unwrap().unwrap();
    let arrival = desk.lanes.pop().unwrap();
    assert!(!arrival.run.resident && arrival.bodies.is_empty());
    assert!(matches!(arrival.run.due, Some(When::Engine(_))));
}

#[test]
fn limits_are_met_exactly() {
    let limits = Limits {
        live_jobs_max: 3,
        ..Limits::default()
    };
    let desk = Desk::with(&Disk::new(7), limits);
    desk.accept(3);
    let answer = desk.submit(submission(1)).blocking_recv().unwrap();
    assert!(matches!(
        answer,
        Err(SubmitError::Busy {
            limit: "live_jobs_max"
        })
    ));
    desk.handle.facts(vec![desk.ended(1)], 1);
    assert_eq!(desk.notices.recv(), Ok(Notice::Arrived));
    assert_eq!(desk.notices.recv(), Ok(Notice::Committed { through: 1 }));
    desk.accept(1);
    let large = Submission {
        bytes: 2 << 20,
        ..submission(1)
    };
    // Alone it is let in, whatever its size; beside another it is not.
    let desk = Desk::new();
    desk.disk.hold();
    let first = desk.handle.submit(large).unwrap();
    let refused = desk.handle.submit(submission(1));
    assert!(matches!(
        refused,
        Err(SubmitError::Busy {
            limit: "intake_bytes_max"
        })
    ));
    desk.disk.release();
    assert!(first.blocking_recv().unwrap().is_ok());
}

#[test]
fn a_queues_limit_is_exact_however_many_submit_at_once_and_ends_make_room() {
    let limits = Limits {
        queue_jobs_max: Some(100),
        ..Limits::default()
    };
    let desk = Desk::with(&Disk::new(7), limits);
    let to = |queue: &str, count: usize| {
        let mut submission = submission(count);
        for class in &mut submission.classes {
            class.queue = queue.into();
        }
        submission
    };
    let (accepted, full) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|threads| {
        for _ in 0..8 {
            threads.spawn(|| {
                let answers: Vec<_> = (0..40).map(|_| desk.handle.submit(to("a", 1))).collect();
                for answer in answers {
                    match answer.unwrap().blocking_recv().unwrap() {
                        Ok(_) => accepted.fetch_add(1, Ordering::Relaxed),
                        Err(SubmitError::QueueFull { queue, max: 100 }) if &*queue == "a" => {
                            full.fetch_add(1, Ordering::Relaxed)
                        }
                        Err(other) => panic!("{other:?}"),
                    };
                }
            });
        }
    });
    let counts = [accepted, full].map(AtomicUsize::into_inner);
    assert_eq!(counts, [100, 220]);
    // Another queue has its own; a batch is taken whole or not at all.
    let ask = |queue: &str, count| desk.submit(to(queue, count)).blocking_recv().unwrap();
    assert!(matches!(ask("b", 101), Err(SubmitError::QueueFull { .. })));
    assert!(ask("b", 100).is_ok());
    // Each end makes room for one.
    desk.handle.facts(vec![desk.ended(1), desk.ended(2)], 1);
    while !matches!(desk.notices.recv(), Ok(Notice::Committed { through: 1 })) {}
    assert!(matches!(ask("a", 3), Err(SubmitError::QueueFull { .. })));
    assert!(ask("a", 2).is_ok());
    assert!(matches!(ask("a", 1), Err(SubmitError::QueueFull { .. })));
}

#[test]
fn a_batch_above_the_promised_block_gets_consecutive_ids() {
    let desk = Desk::new();
    desk.accept(1);
    let accepted = desk.accept(70_000);
    assert_eq!((accepted.first, accepted.count), (id(2), 70_000));
    assert_eq!(desk.accept(1).first, id(70_002));
}

#[test]
fn a_power_cut_never_takes_back_a_promise_that_ids_were_taken_from() {
    let disk = Disk::new(7);
    let desk = Desk::with(&disk, Limits::default());
    let unsynced = || {
        let mut submission = submission(40_000);
        for draft in &mut submission.jobs {
            draft.sync = false;
        }
        submission
    };
    let mut last = 0;
    for _ in 0..3 {
        let accepted = desk.submit(unsynced()).blocking_recv().unwrap().unwrap();
        last = accepted.first.raw() + u64::from(accepted.count) - 1;
    }
    disk.lose_power();
    let next = MemoryStore::open(&disk).opening().next_id;
    assert!(next > id(last), "{next} was given out before");
}

#[test]
fn a_tidy_stop_leaves_no_gap_in_the_ids_and_a_crash_no_doubles() {
    let disk = Disk::new(7);
    let mut desk = Desk::with(&disk, Limits::default());
    desk.accept(5);
    desk.stop();
    assert_eq!(MemoryStore::open(&disk).opening().next_id, id(6));
    let desk = Desk::with(&disk, Limits::default());
    desk.accept(5);
    disk.lose_power();
    let next = MemoryStore::open(&disk).opening().next_id;
    assert!(next > id(10), "{next}");
}

#[test]
fn the_readers_answer_until_they_are_stopped() {
    let disk = Disk::new(7);
    let mut t = Trial::new(&disk);
    t.submit(2);
    let facts = [t.ended(1, 0, JobState::Cancelled, Reason::CancelledByUser)];
    t.commit(&[], &facts).unwrap();
    let (fetched, bodies) = mpsc::channel();
    let (died, fatal) = mpsc::channel();
    let (parts_in, parts) = mpsc::channel::<reader::Parts>();
    let thread = std::thread::spawn(move || reader::run(parts.recv().unwrap()));
    let (sender, inbox) = mailbox(&Wake::parking());
    let handle = reader::Handle::new(sender);
    let parts = reader::Parts {
        store: t.read(),
        inbox,
        fetched: Box::new(move |bodies| fetched.send(bodies).unwrap()),
        fatal: Box::new(move |error| died.send(error).unwrap()),
    };
    parts_in.send(parts).unwrap();
    let lookup = handle.job(id(2)).blocking_recv().unwrap().unwrap();
    assert!(matches!(lookup, Lookup::Found(record) if record.id == id(2)));
    let ends = handle
        .ends(vec![id(1), id(2)])
        .blocking_recv()
        .unwrap()
        .unwrap();
    assert_eq!(
        ends,
        [(id(1), JobState::Cancelled, Reason::CancelledByUser)]
    );
    let page = handle
        .list(list(|q| q.limit = 1))
        .blocking_recv()
        .unwrap()
        .unwrap();
    assert_eq!((page.records.len(), page.next), (1, Some(id(1))));
    handle.fetch(vec![id(2)]);
    assert_eq!(
        bodies.recv().unwrap(),
        [(id(2), Bytes::from_static(b"body"))]
    );
    // Dispatch would wait for it for ever.
    handle.fetch(vec![id(3)]);
    assert_eq!(fatal.recv().unwrap().kind, StoreErrorKind::Corrupt);
    thread.join().unwrap();
}

// What only SQLite can show.

#[test]
fn the_views_show_jobs_and_attempts_by_name() {
    let ground = Directory::new();
    let mut t = Trial::new(&ground);
    t.submit(3);
    let again = Fact::Again(Again {
        fence: t.fence(1, 1),
        worker: WorkerId::new(1),
        reason: Reason::Signal,
        charge: Charge::Failure,
        started: Some(t.now),
        at: t.now,
        due: None,
        detail: Some(Box::new(Detail {
            signal: Some(9),
            ..Detail::default()
        })),
    });
    let facts = [
        t.worker(1),
        t.assigned(1, &[(1, 1)]),
        again,
        t.assigned(1, &[(1, 2)]),
        t.ended(1, 2, JobState::Failed, Reason::ExitCode),
        t.ended(2, 0, JobState::Cancelled, Reason::CancelledByUser),
    ];
    t.commit(&[], &facts).unwrap();
    let db = ground.database();
    let rows = |sql: &str| -> Vec<String> {
        let mut statement = db.prepare(sql).unwrap();
        let columns = statement.column_count();
        let row = |row: &rusqlite::Row<'_>| {
            let cell = |at| match row.get_ref(at).unwrap() {
                rusqlite::types::ValueRef::Null => "-".to_owned(),
                rusqlite::types::ValueRef::Integer(n) => n.to_string(),
                rusqlite::types::ValueRef::Real(x) => x.to_string(),
                rusqlite::types::ValueRef::Text(text) | rusqlite::types::ValueRef::Blob(text) => {
                    String::from_utf8_lossy(text).into_owned()
                }
            };
            Ok((0..columns).map(cell).collect::<Vec<_>>().join(" "))
        };
        let rows = statement.query_map([], row).unwrap();
        rows.map(Result::unwrap).collect()
    };
    let w = WALL_MS;
    assert_eq!(
        rows(
            "SELECT id, state, reason, queue, name, priority, attempt, max_attempts, worker, created_at, started_at, \
              finished_at, exit_code, signal FROM job ORDER BY id"
        ),
        [
            format!("1 failed exit_code video - 0 2 4 w-1 {w} {w} {w} - -"),
            format!("2 cancelled cancelled_by_user video - 0 - 4 - {w} - {w} - -"),
            format!("3 unfinished - video - 0 - 4 - {w} - - - -"),
        ]
    );
    assert_eq!(
        rows(
            "SELECT job, number, state, reason, worker, started_at, finished_at, exit_code, signal, user_ms, system_ms, \
              peak_rss_bytes, output_bytes FROM attempt ORDER BY job, number"
        ),
        [
            format!("1 1 failed signal w-1 {w} {w} - 9 - - - -"),
            format!("1 2 failed exit_code w-1 {w} {w} - - - - - -"),
        ]
    );
    let check: String = db
        .query_row("PRAGMA integrity_check", [], |row| row.get(0))
        .unwrap();
    assert_eq!(check, "ok");
}

#[test]
fn a_second_server_is_told_who_has_the_directory() {
    let ground = Directory::new();
    let _first = ground.sqlite();
    let error = SqliteStore::open(&ground.path()).unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::InUse);
    assert!(
        error
            .message
            .contains(&format!("pid {}", std::process::id())),
        "{error}"
    );
}

fn token(id: &str, role: TokenRole) -> TokenRecord {
    let text = Token {
        role: role.name().into(),
        id: id.into(),
        secret: [7; 32],
    };
    TokenRecord {
        created: Some(WallTime::from_millis(WALL_MS)),
        created_by: "admin000".into(),
        ..TokenRecord::new(&text, role)
    }
}

fn tokens_are_what_they_were_and_lose_what_was_taken_from_them(ground: &dyn Ground) {
    let mut t = Trial::new(ground);
    let at = |ms: u64| WallTime::from_millis(WALL_MS + ms);
    let scoped = TokenRecord {
        name: Some("ci".into()),
        queues: vec!["builds".into(), "tests".into()],
        allow: Allow::of_words(["command", "handler:img.*"]).unwrap(),
        requests_per_second: Some(5),
        jobs_per_second: Some(70),
        expires: Some(at(9_000)),
        ..token("aaaaaaaa", TokenRole::Submit)
    };
    let worker = token("bbbbbbbb", TokenRole::Worker);
    let new = |record: &TokenRecord| TokenChange::New(Box::new(record.clone()));
    t.commit_tokens(&[new(&scoped), new(&worker)]);
    let mut t = t.reopen(ground);
    assert_eq!(t.store.opening().tokens, [scoped.clone(), worker.clone()]);
    let revoked = |ms| TokenChange::Revoked {
        id: "bbbbbbbb".into(),
        at: at(ms),
    };
    let used = TokenChange::Used {
        id: "aaaaaaaa".into(),
        at: at(3),
    };
    t.commit_tokens(&[used, revoked(5), revoked(6)]);
    let mut t = t.reopen(ground);
    let kept = &t.store.opening().tokens;
    assert_eq!((kept[0].used, kept[0].revoked), (Some(at(3)), None));
    assert_eq!(kept[1].revoked, Some(at(5)), "the first word is the last");
    // Those that are good for nothing are forgotten after 30 days.
    t.now = Time::from_micros(t.now.micros() + 31 * DAY_US);
    t.commit_tokens(&[]);
    t.maintain();
    assert!(t.reopen(ground).store.opening().tokens.is_empty());
}

fn the_audit_trail_pages_newest_first_and_is_kept_for_30_days(ground: &dyn Ground) {
    let mut t = Trial::new(ground);
    let start = t.now.micros() / 1_000;
    for n in 0..10_u64 {
        let entry = AuditEntry {
            at: WallTime::from_millis(start + n * 10 * 24 * 3_600_000),
            token: if n % 2 == 0 { "even0000" } else { "odd00000" }.into(),
            from: Some(std::net::IpAddr::from([10, 0, 0, 7])),
            action: "cancel".into(),
            object: Some(n.to_string().into()),
            jobs: (n == 3).then(|| (id(5), 2)),
            requests: n + 1,
            status: if n == 4 { 409 } else { 200 },
            code: if n == 4 { "job_finished" } else { "" }.into(),
        };
        t.commit_audit(&[entry]);
    }
    let ask = |t: &Trial, query: AuditQuery| {
        let page = t.read().audit(&query).unwrap();
        let told = page.entries.iter().map(|(_, entry)| entry.requests - 1);
        (told.collect::<Vec<_>>(), page.next)
    };
    let all = AuditQuery {
        limit: 4,
        ..AuditQuery::default()
    };
    let (first, next) = ask(&t, all.clone());
    assert_eq!(first, [9, 8, 7, 6]);
    let (second, _) = ask(
        &t,
        AuditQuery {
            below: next,
            limit: 100,
            ..all.clone()
        },
    );
    assert_eq!(second, [5, 4, 3, 2, 1, 0]);
    let odd = AuditQuery {
        token: Some("odd00000".into()),
        since: Some(WallTime::from_millis(start + 45 * 24 * 3_600_000)),
        limit: 100,
        ..AuditQuery::default()
    };
    assert_eq!(ask(&t, odd), (vec![9, 7, 5], None));
    let page = t.read().audit(&AuditQuery {
        limit: 100,
        ..all.clone()
    });
    let page = page.unwrap();
    let (four, three) = (&page.entries[5].1, &page.entries[6].1);
    assert_eq!((four.status, &*four.code), (409, "job_finished"));
    assert_eq!(three.jobs, Some((id(5), 2)));
    assert_eq!(three.from.unwrap().to_string(), "10.0.0.7");
    t.now = Time::from_micros(t.now.micros() + 95 * DAY_US);
    t.maintain();
    assert_eq!(ask(&t, AuditQuery { limit: 100, ..all }).0, [9, 8, 7]);
}

#[test]
fn the_writer_notes_submissions_in_their_own_commit_and_neighbours_share_a_row() {
    let mut desk = Desk::new();
    desk.accept(1);
    desk.disk.hold();
    let first = desk.submit(submission(1));
    desk.disk.wait_for_held();
    let rest: Vec<_> = (0..5).map(|_| desk.submit(submission(2))).collect();
    desk.disk.release();
    for answer in rest.into_iter().chain([first]) {
        answer.blocking_recv().unwrap().unwrap();
    }
    desk.stop();
    let mut read = MemoryStore::open(&desk.disk).reader().unwrap();
    let page = read.audit(&AuditQuery {
        limit: 10,
        ..AuditQuery::default()
    });
    let told: Vec<_> = page
        .unwrap()
        .entries
        .into_iter()
        .map(|(_, entry)| (entry.jobs.unwrap(), entry.requests, entry.status))
        .collect();
    // The five that came while one was on its way are one commit and one row.
    let expected = [
        ((id(3), 10), 5, 201),
        ((id(2), 1), 1, 201),
        ((id(1), 1), 1, 201),
    ];
    assert_eq!(told, expected);
}

#[test]
fn a_note_waits_for_a_commit_or_a_second_and_a_token_for_neither() {
    let mut desk = Desk::new();
    desk.accept(1);
    let entry = AuditEntry {
        // Not older than what is kept.
        at: Clock::resume(None).wall(),
        token: "".into(),
        from: None,
        action: "access".into(),
        object: None,
        jobs: None,
        requests: 1,
        status: 401,
        code: "token_missing".into(),
    };
    for _ in 0..3 {
        desk.handle.note(entry.clone());
    }
    let record = Box::new(token("aaaaaaaa", TokenRole::Read));
    let made = AuditEntry {
        action: "token_create".into(),
        code: "".into(),
        ..entry
    };
    let answer = desk.handle.token(TokenChange::New(record), made);
    answer.blocking_recv().unwrap().unwrap();
    desk.stop();
    let store = MemoryStore::open(&desk.disk);
    assert_eq!(store.opening().tokens.len(), 1);
    let page = store.reader().unwrap().audit(&AuditQuery {
        limit: 10,
        ..AuditQuery::default()
    });
    let mut told: Vec<_> = page
        .unwrap()
        .entries
        .into_iter()
        .map(|(_, entry)| (entry.action.into_owned(), entry.requests))
        .collect();
    told.sort();
    let expected = [("access", 3), ("submit", 1), ("token_create", 1)];
    assert_eq!(told, expected.map(|(action, n)| (action.to_owned(), n)));
}

#[test]
fn a_newer_schema_is_refused_with_both_versions() {
    let ground = Directory::new();
    drop(ground.sqlite());
    ground
        .database()
        .pragma_update(None, "user_version", 9)
        .unwrap();
    let error = SqliteStore::open(&ground.path()).unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::OtherVersion);
    assert!(
        error.message.contains("version 9") && error.message.contains("up to 3"),
        "{error}"
    );
}

/// What makes a database of version 3 one of version 2, as the build before it left it; and that one of version 1.
const BACK_TO_2: &str = "INSERT INTO ends (id, state, reason, attempt, epoch, worker, started_ms, finished_ms) \
     SELECT id, 10, 0, attempt, epoch, worker, started_ms, finished_ms FROM done; \
     DROP TABLE done; PRAGMA user_version = 2;";
const BACK_TO_1: &str = "DROP TABLE tokens; DROP TABLE audit; PRAGMA user_version = 1;";

#[test]
fn a_database_of_an_older_version_is_raised_once_and_keeps_its_jobs_and_their_ends() {
    for (version, back) in [
        (2, BACK_TO_2.to_owned()),
        (1, [BACK_TO_2, BACK_TO_1].concat()),
    ] {
        let ground = Directory::new();
        let mut t = Trial::new(&ground);
        t.submit(3);
        let facts = [
            t.worker(1),
            t.assigned(1, &[(1, 1), (2, 1)]),
            t.succeeded(1),
        ];
        t.commit(&[], &facts).unwrap();
        t.store.close().unwrap();
        ground.database().execute_batch(&back).unwrap();
        for start in 0..2 {
            let mut t = Trial::new(&ground);
            let restored = t.restored();
            let live =
                [restored.jobs, restored.quiet].map(|jobs| jobs.into_keys().collect::<Vec<_>>());
            assert_eq!(live, [[2], [3]], "version {version}, start {start}");
            let end = t.record(1).end.unwrap();
            assert_eq!((end.state, end.attempt.number), (JobState::Succeeded, 1));
            assert_eq!(t.read().audit(&AuditQuery::default()).unwrap().entries, []);
            let now = ground
                .database()
                .pragma_query_value(None, "user_version", |row| row.get::<_, i32>(0));
            assert_eq!(now.unwrap(), 3);
            t.store.close().unwrap();
        }
    }
}

#[test]
fn another_schema_of_ours_or_another_builds_form_is_refused_at_the_start_and_left_alone() {
    let ground = Directory::new();
    drop(ground.sqlite());
    let schema = || {
        let db = ground.database();
        let mut rows = db.prepare("SELECT sql FROM sqlite_schema").unwrap();
        let all = rows.query_map([], |row| row.get::<_, Option<String>>(0));
        let version = db.pragma_query_value(None, "user_version", |row| row.get::<_, i32>(0));
        let all: Vec<_> = all.unwrap().map(Result::unwrap).collect();
        (version.unwrap(), all)
    };
    let refused = |change: &str| {
        ground.database().execute_batch(change).unwrap();
        let before = schema();
        let error = SqliteStore::open(&ground.path()).unwrap_err();
        assert_eq!(error.kind, StoreErrorKind::OtherVersion, "{change}");
        assert_eq!(schema(), before, "{change}: it was changed");
        error.message
    };
    for none in [0, -1] {
        let told = refused(&format!("PRAGMA user_version = {none}"));
        assert!(told.contains(&format!("schema version {none}")), "{told}");
    }
    // It says 1 and has tables of 2; it says 1 and lacks one of 1; it has a column that nobody knows.
    let told = refused("PRAGMA user_version = 1");
    assert!(told.contains("table tokens"), "{told}");
    let told = refused("ALTER TABLE ends ADD COLUMN colour TEXT; PRAGMA user_version = 2");
    assert!(told.contains("table ends"), "{told}");
    let told = refused("ALTER TABLE ends DROP COLUMN colour; DROP TABLE marks");
    assert!(told.contains("table "), "{told}");
    let told = refused(BACK_TO_1);
    assert!(told.contains("version 1, but its table "), "{told}");
}

#[test]
fn a_database_of_another_program_is_left_alone() {
    let ground = Directory::new();
    std::fs::create_dir(ground.path()).unwrap();
    ground
        .database()
        .execute_batch("CREATE TABLE theirs (a)")
        .unwrap();
    let error = SqliteStore::open(&ground.path()).unwrap_err();
    assert!(error.message.contains("another program"), "{error}");
    std::fs::write(ground.path().join(FILE), [7; 4_096]).unwrap();
    let error = SqliteStore::open(&ground.path()).unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Corrupt);
}

#[test]
fn damaged_pages_are_named_and_never_read_as_nothing() {
    let ground = Directory::new();
    let mut t = Trial::new(&ground);
    t.submit(2_000);
    t.store.close().unwrap();
    let path = ground.path().join(FILE);
    let mut bytes = std::fs::read(&path).unwrap();
    // Everything after the schema's own pages.
    let page = 16_384;
    let from = bytes.len() - 2 * page;
    bytes[from..].fill(0xa5);
    std::fs::write(&path, bytes).unwrap();
    let mut store = SqliteStore::open(&ground.path()).unwrap();
    let error = store.load(&mut |_| {}).unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Corrupt);
    assert!(error.message.contains(FILE), "{error}");
    let error = store.reader().unwrap().job(id(1_999)).unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Corrupt);
}

#[test]
fn a_full_disk_refuses_and_goes_on_when_there_is_space() {
    let ground = Directory::new();
    let mut store = ground.sqlite();
    let pages = store.limit_pages(1);
    let mut t = Trial::on(Box::new(store));
    let large = NewJob {
        body: Bytes::from(vec![0; 1 << 20]),
        ..t.plain()
    };
    let batch = t.batch(vec![large]);
    let first = batch.first.raw();
    match t.commit(std::slice::from_ref(&batch), &[]) {
        Err(CommitError::Refused(error)) => assert_eq!(error.kind, StoreErrorKind::Full),
        other => panic!("{other:?}"),
    }
    assert!(
        matches!(t.read().job(id(first)).unwrap(), Lookup::Never),
        "{pages}"
    );
    drop(t);
    let mut t = Trial::new(&ground);
    t.next = t.next.max(batch.first.raw());
    t.commit(&[batch], &[]).unwrap();
    assert!(t.record(first).body.is_some());
}

#[test]
fn a_commit_without_sync_survives_a_kill() {
    let ground = Directory::new();
    let mut t = Trial::new(&ground);
    let batch = t.batch(vec![NewJob {
        sync: false,
        ..t.plain()
    }]);
    let stamp = t.stamp();
    t.store
        .commit(&Commit {
            epoch: t.store.opening().epoch,
            batch: 1,
            stamp,
            ids_through: id(10),
            classes: &t.new_classes.clone(),
            submissions: &[batch],
            facts: &[],
            purges: &[],
            tokens: &[],
            audit: &[],
            totals: Some(Totals {
                submitted: 1,
                ..Totals::default()
            }),
            sync: false,
        })
        .unwrap();
    let t = t.reopen(&ground);
    assert!(!t.record(1).sync);
    let submitted: u64 = ground
        .database()
        .query_row("SELECT submitted FROM metrics", [], |row| row.get(0))
        .unwrap();
    assert_eq!(submitted, 1);
}

#[test]
fn a_mark_that_has_moved_leaves_recovery_little_to_read() {
    let ground = Directory::new();
    let mut t = Trial::new(&ground);
    t.restored();
    t.submit(500);
    let attempts: Vec<_> = (1..=500).map(|job| (job, 1)).collect();
    let facts = [t.worker(1), t.assigned(1, &attempts)];
    t.commit(&[], &facts).unwrap();
    let ends: Vec<_> = (1..=500)
        .filter(|job| job % 100 != 0)
        .map(|job| t.succeeded(job))
        .collect();
    t.commit(&[], &ends).unwrap();
    let before = t.restored();
    t.maintain();
    assert_eq!(t.restored(), before);
    let db = ground.database();
    let count = |sql: &str| -> u64 { db.query_row(sql, [], |row| row.get(0)).unwrap() };
    assert_eq!(count("SELECT mark_id FROM meta"), 500);
    assert_eq!(count("SELECT count(*) FROM carried"), 5);
    assert_eq!(
        count("SELECT count(*) FROM assigned, meta WHERE seq > mark_seq"),
        0
    );
    let facts = [t.succeeded(100)];
    t.commit(&[], &facts).unwrap();
    assert_eq!(count("SELECT count(*) FROM carried"), 4);
}

#[test]
fn a_mark_on_its_way_keeps_what_living_jobs_above_it_need() {
    let ground = Directory::new();
    let mut t = Trial::new(&ground);
    t.restored();
    // More living jobs than one step copies: the mark stops between the two that are assigned.
    t.submit(5_000);
    let facts = [t.worker(1), t.assigned(1, &[(10, 1), (4_990, 1)])];
    t.commit(&[], &facts).unwrap();
    let before = t.restored();
    let stamp = t.stamp();
    assert!(t.store.maintain(&stamp).unwrap());
    let mark: u64 = ground
        .database()
        .query_row("SELECT mark_id FROM meta", [], |row| row.get(0))
        .unwrap();
    assert!(mark < 4_990, "{mark}");
    assert_eq!(t.restored(), before);
    t.maintain();
    assert_eq!(t.restored(), before);
}

#[test]
fn the_log_of_an_idle_store_is_given_room_that_commits_fill_and_that_a_start_after_a_kill_finds_empty()
 {
    let ground = Directory::new();
    let mut t = Trial::new(&ground);
    let length = || {
        let log = ground.path().join("hostler.db-wal");
        std::fs::metadata(log).unwrap().len()
    };
    t.submit(3);
    t.maintain();
    let room = length();
    assert!(room > 8 << 20, "{room}");
    t.submit(200);
    assert_eq!(length(), room, "it is written in place");
    let mut t = t.reopen(&ground);
    assert!(matches!(t.read().job(id(203)).unwrap(), Lookup::Found(_)));
    assert!(matches!(t.read().job(id(204)).unwrap(), Lookup::Never));
    t.submit(1);
    t.maintain();
    assert_eq!(length(), room, "once is enough");
}

#[test]
fn a_log_held_up_by_a_reader_grows_is_counted_and_begins_anew_when_the_reader_is_gone() {
    let ground = Directory::new();
    let mut store = ground.sqlite();
    store.checkpoint_every(8);
    let mut t = Trial::on(Box::new(store));
    let mut step = || {
        t.submit(200);
        t.now = t.now + Span::from_secs(2);
        let stamp = t.stamp();
        t.store.maintain(&stamp).unwrap();
        t.store.log_bytes()
    };
    let alone: Vec<u64> = (0..20).map(|_| step()).collect();
    let most = alone.iter().max().unwrap();
    assert!(*most < 40 * 16_384, "it is used anew by itself: {alone:?}");

    let reader = ground.database();
    reader.execute_batch("BEGIN").unwrap();
    let count = || -> u64 {
        let sql = "SELECT count(*) FROM jobs";
        reader.query_row(sql, [], |row| row.get(0)).unwrap()
    };
    let before = count();
    let held: Vec<u64> = (0..20).map(|_| step()).collect();
    assert!(held.is_sorted(), "{held:?}");
    assert!(held[19] > 2 * most, "{held:?} beside {most}");
    assert_eq!(count(), before, "the reader still sees its snapshot");
    reader.execute_batch("COMMIT").unwrap();
    let after: Vec<u64> = (0..3).map(|_| step()).collect();
    assert!(after[2] <= *most, "{after:?} beside {most}");
}

#[test]
fn a_log_that_a_reader_kept_from_beginning_anew_does_so_soon_after() {
    let ground = Directory::new();
    let mut store = ground.sqlite();
    store.checkpoint_every(64);
    let mut t = Trial::on(Box::new(store));
    let mut step = || {
        t.submit(200);
        t.now = t.now + Span::from_secs(2);
        let stamp = t.stamp();
        t.store.maintain(&stamp).unwrap();
        t.store.log_bytes() / 16_384
    };
    while step() < 50 {}
    let reader = ground.database();
    reader
        .execute_batch("BEGIN; SELECT count(*) FROM jobs")
        .unwrap();
    let mut held = 0;
    while held < 70 {
        held = step();
        assert!(held < 100, "it goes up in small steps");
    }
    reader.execute_batch("COMMIT").unwrap();
    let after: Vec<u64> = (0..3).map(|_| step()).collect();
    assert!(after[2] < 50, "{after:?} pages, {held} before");
}

// What only memory can show: its faults.

#[test]
fn memory_loses_with_the_power_what_was_not_synced() {
    let disk = Disk::new(1);
    let mut t = Trial::new(&disk);
    t.submit(1);
    let batch = t.batch(vec![t.plain()]);
    let stamp = t.stamp();
    let commit = |t: &mut Trial, batch: Batch| {
        t.store.commit(&Commit {
            epoch: Epoch::new(1),
            batch: 2,
            stamp,
            ids_through: id(10),
            classes: &[],
            submissions: &[batch],
            facts: &[],
            purges: &[],
            tokens: &[],
            audit: &[],
            totals: None,
            sync: false,
        })
    };
    commit(&mut t, batch).unwrap();
    assert!(t.record(2).end.is_none());
    disk.lose_power();
    assert!(matches!(t.commit(&[], &[]), Err(CommitError::Unknown(_))));
    let t = t.reopen(&disk);
    assert!(matches!(t.read().job(id(2)).unwrap(), Lookup::Never));
    assert!(matches!(t.read().job(id(1)).unwrap(), Lookup::Found(_)));
}

#[test]
fn after_an_unknown_commit_the_batch_number_tells() {
    for (fault, there) in [(Fault::UnknownKept, true), (Fault::UnknownLost, false)] {
        let disk = Disk::new(1);
        let mut t = Trial::new(&disk);
        t.submit(1);
        disk.fault(fault);
        let batch = t.batch(vec![t.plain()]);
        assert!(matches!(
            t.commit(&[batch], &[]),
            Err(CommitError::Unknown(_))
        ));
        let t = t.reopen(&disk);
        let last = if there { 2 } else { 1 };
        assert_eq!(t.store.opening().last, Some((Epoch::new(1), last)));
        assert_eq!(
            matches!(t.read().job(id(2)).unwrap(), Lookup::Found(_)),
            there
        );
    }
}
