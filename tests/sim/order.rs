//! Order (P5), as the end of a turn shows it.
//!
//! Of the jobs that may run and stayed behind, none goes before one that was given to a worker that could have run it.
//! Work given ahead of a free slot is excepted: it may be late by prefetch.

use std::collections::BTreeMap;

use hostler_engine::spec::Kind;
use hostler_engine::{Engine, Fact, WorkerView};
use hostler_wire::{JobId, JobState, WorkerId};

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
            let serves = worker
                .queues
                .iter()
                .any(|queue| **queue == *job.class.queue);
            let runs = job.class.kind == Kind::Handler || commands(worker.name);
            assert!(
                !(serves && runs) || place > *worst,
                "{:?} waits, and {:?} was given to {}, which could have run it (P5): {job:?} before {:?}",
                job.id,
                worst.1,
                worker.name,
                engine.job(worst.1)
            );
        }
    }
}
