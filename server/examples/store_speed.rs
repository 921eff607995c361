//! How long the store's commit takes for durable no-op jobs: each batch accepts jobs, assigns them, and ends those of the
//! batch before. `cargo run --release --example store_speed -- DIR [BATCH] [BATCHES]`
//!
//! Every other batch carries the row that tells who submitted it, as the server writes it; the CPU time of both halves is
//! told apart, so that what the row costs is seen in one run.

use std::sync::Arc;

use bytes::Bytes;
use hostler_engine::fact::{Assigned, Ended, WorkerFact};
use hostler_engine::spec::{Class, ClassId, ClassSpec, Kind, Retry};
use hostler_engine::{Fact, Time};
use hostler_server::clock::Clock;
use hostler_server::store::seam::{AuditEntry, Batch, Commit, NewJob, Store};
use hostler_server::store::sqlite::SqliteStore;
use hostler_wire::{Attempt, Fence, JobId, JobState, Priority, Reason, WorkerId};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let dir = args.next().ok_or("which directory?")?;
    let size: usize = args.next().map_or(Ok(1_000), |n| n.parse())?;
    let batches: u64 = args.next().map_or(Ok(500), |n| n.parse())?;
    let mut store = SqliteStore::open(dir.as_ref())?;
    let clock = Clock::resume(None);
    let epoch = store.opening().epoch;
    let mut next = store.opening().next_id;
    let class = Arc::new(class());
    let mut classes = vec![Arc::clone(&class)];
    if !store.opening().classes.is_empty() {
        classes.clear();
    }
    let worker = WorkerId::new(epoch.raw());
    let mut facts = vec![Fact::Worker(WorkerFact {
        id: worker,
        name: "w".into(),
        instance: 1,
        at: clock.now(),
    })];
    let body = Bytes::from(vec![7; 100]);
    let (begun, cpu) = (clock.now(), cpu_us());
    let mut halves = [0_u64; 2];
    for batch in 1..=batches {
        let at = clock.now();
        let job = NewJob {
            class: Arc::clone(&class),
            priority: Priority::NORMAL,
            name: None,
            labels: None,
            due: None,
            expires: None,
            deadline: None,
            sync: true,
            retry_of: None,
            body: body.clone(),
        };
        let first = next;
        next = first.plus(size as u64);
        let submission = Batch {
            first,
            at,
            by: "".into(),
            from: None,
            jobs: vec![job; size],
            key: None,
        };
        let half = usize::from(batch % 2 == 0);
        let row = AuditEntry {
            at: clock.wall(),
            token: "8fK2mQ0a".into(),
            from: Some(std::net::IpAddr::from([127, 0, 0, 1])),
            action: "submit".into(),
            object: None,
            jobs: Some((first, size as u64)),
            requests: 1,
            status: 201,
            code: "".into(),
        };
        let before = cpu_us();
        store.commit(&Commit {
            epoch,
            batch,
            stamp: clock.stamp(),
            ids_through: next,
            classes: &classes,
            submissions: &[submission],
            facts: &facts,
            purges: &[],
            tokens: &[],
            audit: &[row][..half],
            totals: None,
            sync: true,
        })?;
        halves[half] += cpu_us() - before;
        classes.clear();
        let jobs: Vec<JobId> = (0..size as u64).map(|place| first.plus(place)).collect();
        let attempts = jobs.iter().map(|&job| (job, Attempt::FIRST)).collect();
        facts = vec![Fact::Assigned(Assigned {
            worker,
            at,
            attempts,
        })];
        facts.extend(jobs.iter().map(|&job| ended(job, epoch, worker, at)));
    }
    let jobs = size as u64 * batches;
    let (wall, cpu) = (clock.now().since(begun).micros(), cpu_us() - cpu);
    let each = |us: u64| us.saturating_mul(1_000) / jobs;
    eprintln!(
        "{jobs} jobs: {} ns each, {} ns of CPU",
        each(wall),
        each(cpu)
    );
    let [without, with] = halves.map(|us| us.saturating_mul(1_000) / (batches / 2).max(1));
    eprintln!(
        "a commit of {size}: {without} ns of CPU without its row of the audit trail, {with} ns with it"
    );
    Box::new(store).close()?;
    Ok(())
}

fn ended(job: JobId, epoch: hostler_wire::Epoch, worker: WorkerId, at: Time) -> Fact {
    Fact::Ended(Ended {
        job,
        class: ClassId::new(1),
        state: JobState::Succeeded,
        reason: Reason::None,
        fence: Some(Fence {
            job,
            epoch,
            attempt: Attempt::FIRST,
        }),
        worker: Some(worker),
        started: Some(at),
        at,
        detail: None,
    })
}

fn class() -> Class {
    Class {
        id: ClassId::new(1),
        spec: ClassSpec {
            queue: "default".into(),
            kind: Kind::Handler,
            retry: Retry::default(),
            max_losses: 3,
            timeout: None,
            grace: None,
            stall: None,
            stop_on_partition: false,
        },
    }
}

/// CPU time of this process, which has one busy thread.
fn cpu_us() -> u64 {
    let used = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    let whole = |n: i64| u64::try_from(n).unwrap_or(0);
    whole(used.tv_sec) * 1_000_000 + whole(used.tv_nsec) / 1_000
}
