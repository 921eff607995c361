//! Order (P5), as the end of a turn shows it.
//!
//! Of the jobs that may run and stayed behind, none goes before one that was given to a worker that could have run it.
//! Work given ahead of a free slot is excepted: it may be late by prefetch. And no worker has a free slot for long while
//! something waits that it could run, whatever else waits that nobody serves.

use std::collections::BTreeMap;

use hostler_engine::spec::Kind;
use hostler_engine::{Engine, Fact, JobView, Span, Time, WorkerView};
use hostler_wire::{JobId, JobState, SessionId, WorkerId};

use crate::options::S;

/// What commits, reads of bodies and rests after a want of room may take, with much to spare.
const IDLE_MAX: u64 = 60 * S;
/// Of the oldest jobs, as many are looked at.
const JOBS_MAX: usize = 300;
/// Silent for longer, a worker gets nothing new.
const SILENCE: Span = Span::from_secs(6);

/// Looks at what a turn gave out, and at what it left. `commands`: which workers run them, by name.
pub(crate) fn check(engine: &Engine, facts: &[Fact], commands: &dyn Fn(&str) -> bool) {
    let mut last: BTreeMap<WorkerId, (i16, JobId)> = BTreeMap::new();
    for fact in facts {
        let Fact::Assigned(assigned) = fact else {
            continue;
        };
        for &(id, _) in &assigned.attempts {
            let Some(job) = engine.job(id) else { continue };
            let place = (-i16::from(job.priority.raw()), id);
            let worst = last.entry(assigned.worker).or_insert(place);
            *worst = (*worst).max(place);
        }
    }
    for worker in engine.workers() {
        assert!(
            worker.session.is_none() || worker.held <= worker.slots + 8_192,
            "{} holds more than slots and prefetch",
            worker.name
        );
    }
    if last.is_empty() {
        return;
    }
    let given: Vec<(WorkerView<'_>, (i16, JobId))> = engine
        .workers()
        .filter(|worker| worker.held <= worker.slots)
        .filter_map(|worker| last.get(&worker.id).map(|place| (worker, *place)))
        .collect();
    for job in engine.jobs_from(JobId::MIN, false) {
        if job.state != JobState::Queued || job.over {
            continue;
        }
        let place = (-i16::from(job.priority.raw()), job.id);
        for (worker, worst) in &given {
            assert!(
                !could_run(worker, &job, commands) || place > *worst,
                "{:?} waits, and {:?} was given to {}, which could have run it (P5): {job:?} before {:?}",
                job.id,
                worst.1,
                worker.name,
                engine.job(worst.1)
            );
        }
    }
}

fn could_run(worker: &WorkerView<'_>, job: &JobView<'_>, commands: &dyn Fn(&str) -> bool) -> bool {
    let mut queues = worker.queues.iter();
    let serves = queues.any(|queue| **queue == *job.class.queue);
    serves && (job.class.kind == Kind::Handler || commands(worker.name))
}

/// Since when workers have a free slot though something waits for them.
#[derive(Debug, Default)]
pub(crate) struct Idle(BTreeMap<SessionId, u64>);

impl Idle {
    /// At the end of a turn. `cramped`: workers that find no room for processes.
    pub(crate) fn check(
        &mut self,
        engine: &Engine,
        (now, engine_now): (u64, Time),
        commands: &dyn Fn(&str) -> bool,
        cramped: &[String],
    ) {
        let mut since = BTreeMap::new();
        for worker in engine.workers() {
            let Some(session) = worker.session else {
                continue;
            };
            let able = worker.held < worker.slots
                && !worker.draining
                && engine_now.since(worker.heard) <= SILENCE
                && !cramped.iter().any(|name| name == worker.name);
            if !able {
                continue;
            }
            let waits = |job: &JobView<'_>| {
                job.state == JobState::Queued && !job.over && could_run(&worker, job, commands)
            };
            let mut first = engine.jobs_from(JobId::MIN, false).take(JOBS_MAX);
            if let Some(job) = first.find(waits) {
                let began = self.0.get(&session).copied().unwrap_or(now);
                assert!(
                    now - began <= IDLE_MAX,
                    "{:?} waits, and {} has had a free slot for {} s",
                    job.id,
                    worker.name,
                    (now - began) / S
                );
                since.insert(session, began);
            }
        }
        self.0 = since;
    }
}
