//! The real writer on a real database, and facts as the engine would tell them: what the tests of the store's promises
//! are driven by.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use hostler_engine::fact::{Again, Assigned, Cancelling, Charge, Ended, Started, WorkerFact};
use hostler_engine::spec::{ClassId, ClassSpec, Kind, Retry};
use hostler_engine::{Fact, Time};
use hostler_server::auth::{TokenChange, TokenRecord};
use hostler_server::clock::Clock;
use hostler_server::config::{Durability, Limits};
use hostler_server::mailbox::{Wake, mailbox};
use hostler_server::metrics::Health;
use hostler_server::store::depth::LiveJobs;
use hostler_server::store::seam::{AuditEntry, Draft, Store, StoreError, Submission};
use hostler_server::store::sqlite::SqliteStore;
use hostler_server::store::writer::{self, Accepted, Counters, JobLanes, Notice, SubmitError};
use hostler_wire::{Attempt, Epoch, Fence, JobId, JobState, Priority, Reason, WorkerId};

/// Longer than any wait that is not a failure.
const PATIENCE: Duration = Duration::from_secs(20);

/// A writer at work.
pub(crate) struct Desk {
    handle: writer::Handle,
    notices: mpsc::Receiver<Notice>,
    /// What the writer called fatal, if it has.
    pub(crate) fatal: mpsc::Receiver<StoreError>,
    /// What `/readyz` would see.
    pub(crate) health: Arc<Health>,
    thread: Option<JoinHandle<()>>,
    /// The server's start.
    pub(crate) epoch: Epoch,
    clock: Clock,
    told: u64,
    workers: BTreeMap<u32, bool>,
    /// The highest attempt given out, by job; survives in the test, not here.
    pub(crate) attempts: BTreeMap<u64, u16>,
}

impl Desk {
    /// Loads the store, as a starting server does, and puts the writer to work.
    pub(crate) fn open(mut store: SqliteStore, durability: Durability) -> Result<Self, StoreError> {
        store.load(&mut |_| {})?;
        let epoch = store.opening().epoch;
        let clock = Clock::resume(store.opening().stamp);
        let (notice, notices) = mpsc::channel();
        let (died, fatal) = mpsc::channel();
        let (sender, inbox) = mailbox(&Wake::parking());
        let handle = writer::Handle::new(sender, 1 << 30);
        let health = Arc::<Health>::default();
        health.set_ready();
        let (told_handle, told_health) = (handle.clone(), Arc::clone(&health));
        // The store's mailbox belongs to the thread that reads it.
        let thread = std::thread::spawn(move || {
            writer::run(writer::Parts {
                store: Box::new(store),
                inbox,
                handle: told_handle,
                lanes: JobLanes::default(),
                resident_bytes: Arc::default(),
                idle: Arc::default(),
                notify: Box::new(move |said| notice.send(said).unwrap_or_default()),
                fatal: Box::new(move |error| drop(died.send(error))),
                health: told_health,
                counters: Arc::<Counters>::default(),
                clock,
                live: LiveJobs::default(),
                durability,
                limits: Limits::default(),
            });
        });
        Ok(Self {
            handle,
            notices,
            fatal,
            health,
            thread: Some(thread),
            epoch,
            clock,
            told: 0,
            workers: BTreeMap::new(),
            attempts: BTreeMap::new(),
        })
    }

    /// Asks for jobs.
    pub(crate) fn submit(&self, submission: Submission) -> Result<Accepted, SubmitError> {
        let mut reply = self.handle.submit(submission)?;
        loop {
            let ended = self.thread.as_ref().is_none_or(JoinHandle::is_finished);
            match reply.try_recv() {
                Ok(answer) => return answer,
                // In a server the process has ended by now.
                Err(_) if ended => return Err(SubmitError::Stopping),
                Err(_) => std::thread::park_timeout(Duration::from_micros(50)),
            }
        }
    }

    /// A new access token, durable.
    pub(crate) fn make_token(&self, record: &TokenRecord) {
        let entry = AuditEntry {
            at: self.clock.wall(),
            token: "".into(),
            from: None,
            action: "token_create".into(),
            object: Some((*record.id).into()),
            jobs: None,
            requests: 1,
            status: 201,
            code: "".into(),
        };
        let change = TokenChange::New(Box::new(record.clone()));
        let made = self.handle.token(change, entry).blocking_recv();
        made.unwrap().unwrap();
    }

    /// Jobs that must be accepted; the first id.
    pub(crate) fn accept(&self, count: usize) -> u64 {
        self.submit(submission(count)).unwrap().first.raw()
    }

    /// Tells facts, and waits until they are durable. False: they never will be, the writer has ended.
    pub(crate) fn tell(&mut self, facts: Vec<Fact>) -> bool {
        self.told += facts.len() as u64;
        self.handle.facts(facts, self.told);
        loop {
            match self.notices.recv_timeout(PATIENCE) {
                Ok(Notice::Committed { through }) if through >= self.told => return true,
                Ok(Notice::Committed { .. } | Notice::Arrived | Notice::Owed) => {}
                Ok(Notice::Deposed) | Err(mpsc::RecvTimeoutError::Disconnected) => return false,
                Err(mpsc::RecvTimeoutError::Timeout) => panic!("the writer says nothing"),
            }
        }
    }

    /// Tells facts without waiting.
    pub(crate) fn tell_later(&mut self, facts: Vec<Fact>) {
        self.told += facts.len() as u64;
        self.handle.facts(facts, self.told);
    }

    /// The next attempt of each job goes to that worker.
    pub(crate) fn assign(&mut self, worker: u32, jobs: &[u64]) -> Vec<Fact> {
        let at = self.now();
        let mut facts = Vec::new();
        if self.workers.insert(worker, true).is_none() {
            facts.push(Fact::Worker(WorkerFact {
                id: WorkerId::new(worker),
                name: format!("w-{worker}"),
                instance: u64::from(worker),
                at,
            }));
        }
        let attempts = jobs.iter().map(|job| {
            let number = self.attempts.entry(*job).or_default();
            *number += 1;
            (id(*job), Attempt::new(*number).unwrap())
        });
        facts.push(Fact::Assigned(Assigned {
            worker: WorkerId::new(worker),
            at,
            attempts: attempts.collect(),
        }));
        facts
    }

    /// The job's last attempt has started.
    pub(crate) fn started(&self, worker: u32, job: u64) -> Fact {
        Fact::Started(Started {
            worker: WorkerId::new(worker),
            at: self.now(),
            fences: vec![self.fence(job)],
        })
    }

    /// The job's last attempt has failed or the like, and the job goes on.
    pub(crate) fn again(&self, worker: u32, job: u64, charge: Charge) -> Fact {
        Fact::Again(Again {
            fence: self.fence(job),
            worker: WorkerId::new(worker),
            reason: Reason::ExitCode,
            charge,
            started: Some(self.now()),
            at: self.now(),
            due: None,
            detail: None,
        })
    }

    /// The job was told to stop.
    pub(crate) fn cancelling(&self, job: u64) -> Fact {
        Fact::Cancelling(Cancelling {
            job: id(job),
            at: self.now(),
            reason: Reason::CancelledByUser,
            note: None,
        })
    }

    /// The job's last attempt, or none if it had none, has ended it.
    pub(crate) fn ended(&self, worker: u32, job: u64, state: JobState) -> Fact {
        let fence = self.attempts.contains_key(&job).then(|| self.fence(job));
        Fact::Ended(Ended {
            job: id(job),
            class: ClassId::new(1),
            state,
            reason: if state == JobState::Failed {
                Reason::ExitCode
            } else {
                Reason::None
            },
            fence,
            worker: fence.map(|_| WorkerId::new(worker)),
            started: fence.map(|_| self.now()),
            at: self.now(),
            detail: None,
        })
    }

    /// Stops it in good order.
    pub(crate) fn stop(mut self) {
        self.finish();
    }

    fn finish(&mut self) {
        self.handle.stop();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }

    fn fence(&self, job: u64) -> Fence {
        Fence {
            job: id(job),
            epoch: self.epoch,
            attempt: Attempt::new(self.attempts[&job]).unwrap(),
        }
    }

    fn now(&self) -> Time {
        self.clock.now()
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.finish();
        }
    }
}

pub(crate) fn id(raw: u64) -> JobId {
    JobId::new(raw).unwrap()
}

/// Jobs of one class.
pub(crate) fn submission(count: usize) -> Submission {
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
        by: "token001".into(),
        from: None,
        classes: vec![ClassSpec {
            queue: "video".into(),
            kind: Kind::Command,
            retry: Retry {
                max_attempts: 4,
                ..Retry::default()
            },
            max_losses: 3,
            timeout: None,
            stall: None,
            grace: None,
            stop_on_partition: false,
        }],
        jobs: (0..count).map(|_| draft()).collect(),
        key: None,
        bytes: 100,
    }
}

/// The same under a key.
pub(crate) fn keyed(count: usize, key: &str) -> Submission {
    Submission {
        key: Some((key.into(), [7; 32])),
        ..submission(count)
    }
}

/// Copies a data directory, subdirectories and all.
pub(crate) fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy_dir(&path, &target);
        } else {
            std::fs::copy(&path, target).unwrap();
        }
    }
}
