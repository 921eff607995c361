//! What has happened to an unfinished job, folded from rows; and which jobs have ended, in few bytes.
//!
//! The fold does not depend on the order rows are read in, only on attempt numbers, which grow: an assignment counts as
//! running unless its end, or a higher number, is known.
//!
//! Not here: reading the rows (`load`), moving the mark (`mark`).

use std::sync::Arc;

use hostler_engine::event::{RestoredAttempt, RestoredJob};
use hostler_engine::fact::Charge;
use hostler_engine::spec::{Class, Run};
use hostler_engine::{Time, When};
use hostler_wire::{Attempt, Fence, JobId, Priority, Reason, WorkerId};

use crate::store::scan;

/// The part of a job that recovery needs and its `jobs` row does not have.
#[derive(Clone, Debug, Default)]
pub(super) struct History {
    /// Highest attempt assigned.
    pub(super) attempt: u16,
    /// Highest attempt ended.
    pub(super) ended: u16,
    pub(super) failures: u16,
    pub(super) losses: u16,
    pub(super) later: u16,
    pub(super) ever_started: bool,
    pub(super) running: Option<RestoredAttempt>,
    pub(super) due: Option<(When, Reason)>,
    pub(super) cancelling: Option<Reason>,
}

impl History {
    /// The attempt was given to the worker.
    pub(super) fn assigned(&mut self, fence: Fence, worker: WorkerId) {
        let number = fence.attempt.raw();
        if number > self.attempt {
            self.attempt = number;
            self.due = None;
        }
        let newer = self
            .running
            .is_none_or(|running| running.fence.attempt < fence.attempt);
        if number > self.ended && newer {
            self.running = Some(RestoredAttempt {
                fence,
                worker,
                started: None,
            });
        }
    }

    /// The attempt was reported started.
    pub(super) fn started(&mut self, fence: Fence, at: Time) {
        self.ever_started = true;
        if let Some(running) = &mut self.running
            && running.fence == fence
        {
            running.started = Some(at);
        }
    }

    /// The attempt ended, and the job goes on.
    pub(super) fn again(&mut self, number: u16, charge: Charge, started: bool, due: Option<When>) {
        self.ever_started |= started;
        match charge {
            Charge::Return => {}
            Charge::Failure => self.failures += 1,
            Charge::Loss => self.losses += 1,
            Charge::Later => self.later += 1,
        }
        self.ended = self.ended.max(number);
        if number >= self.attempt {
            self.attempt = number;
            let why = match charge {
                Charge::Later => Reason::Later,
                Charge::Return | Charge::Failure | Charge::Loss => Reason::BackOff,
            };
            self.due = due.map(|when| (when, why));
        }
        if let Some(running) = self.running
            && running.fence.attempt.raw() <= self.ended
        {
            self.running = None;
        }
    }

    /// The job was told to stop.
    pub(super) fn cancelling(&mut self, reason: Reason) {
        self.cancelling.get_or_insert(reason);
    }

    /// What the engine is told; none if nothing has happened to the job yet, so that it belongs in a run.
    pub(super) fn restored(&self, job: Waiting) -> Option<RestoredJob> {
        let attempt = Attempt::new(self.attempt);
        if attempt.is_none() && self.cancelling.is_none() {
            return None;
        }
        Some(RestoredJob {
            id: job.id,
            class: job.class,
            priority: job.priority,
            expires: job.expires,
            deadline: job.deadline,
            attempt: attempt.unwrap_or(Attempt::FIRST),
            failures: self.failures,
            losses: self.losses,
            later: self.later,
            ever_started: self.ever_started,
            running: self.running,
            due: self.due,
            cancelling: self.cancelling,
        })
    }
}

/// The part of a job's row that recovery needs.
#[derive(Clone, Debug)]
pub(super) struct Waiting {
    pub(super) id: JobId,
    pub(super) class: Arc<Class>,
    pub(super) priority: Priority,
    pub(super) due: Option<When>,
    pub(super) expires: Option<When>,
    pub(super) deadline: Option<When>,
}

/// Makes runs of jobs that come in id order.
#[derive(Debug, Default)]
pub(super) struct Runs {
    open: Option<Run>,
}

impl Runs {
    /// Takes the next job; gives the run that it does not belong to any more.
    pub(super) fn push(&mut self, job: &Waiting) -> Option<Run> {
        self.join(Run {
            first: job.id,
            count: 1,
            priority: job.priority,
            class: Arc::clone(&job.class),
            due: job.due,
            expires: job.expires,
            deadline: job.deadline,
            resident: false,
        })
    }

    /// Takes the next job if it has no times of its own and differs from the one before it in nothing but the id: that
    /// is most of a backlog, and spares each its class and its comparison. False: it has to be pushed.
    pub(super) fn extend(&mut self, id: u64, kind: i64) -> bool {
        let Some(run) = &mut self.open else {
            return false;
        };
        let alike = id == run.first.raw() + u64::from(run.count)
            && kind == scan::kind(run.class.id.raw(), run.priority.raw())
            && (run.due, run.expires, run.deadline) == (None, None, None)
            && run.count < u32::MAX;
        run.count += u32::from(alike);
        alike
    }

    /// Takes a run whose jobs come next; gives the one that it does not belong to any more.
    pub(super) fn join(&mut self, next: Run) -> Option<Run> {
        if let Some(run) = &mut self.open
            && next.first.raw() == run.first.raw() + u64::from(run.count)
            && (next.priority, next.due, next.expires, next.deadline)
                == (run.priority, run.due, run.expires, run.deadline)
            && next.class.id == run.class.id
            && let Some(count) = run.count.checked_add(next.count)
        {
            run.count = count;
            return None;
        }
        self.open.replace(next)
    }

    /// Gives the last run.
    pub(super) fn finish(self) -> Option<Run> {
        self.open
    }
}

/// A set of ids that were added in ascending order: ranges, since jobs end nearly in order.
#[derive(Debug, Default)]
pub(super) struct IdSet {
    /// first..=last
    ranges: Vec<(u64, u64)>,
    count: u64,
}

impl IdSet {
    /// Adds an id above all others.
    pub(super) fn push(&mut self, id: u64) {
        self.count += 1;
        match self.ranges.last_mut() {
            Some((_, last)) if *last + 1 == id => *last = id,
            _ => self.ranges.push((id, id)),
        }
    }

    /// Whether it is in there.
    pub(super) fn contains(&self, id: u64) -> bool {
        let at = self.ranges.partition_point(|&(_, last)| last < id);
        self.ranges.get(at).is_some_and(|&(first, _)| first <= id)
    }

    /// How many are.
    pub(super) fn len(&self) -> u64 {
        self.count
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hostler_wire::Epoch;

    fn fence(attempt: u16) -> Fence {
        Fence {
            job: JobId::MIN,
            epoch: Epoch::new(1),
            attempt: Attempt::new(attempt).unwrap(),
        }
    }

    #[test]
    fn the_fold_does_not_depend_on_the_order_of_rows() {
        let worker = WorkerId::new(1);
        let due = Some(When::Engine(Time::from_micros(7)));
        type Row = Box<dyn Fn(&mut History)>;
        let mut rows: [(&str, Row); 5] = [
            (
                "1 assigned",
                Box::new(move |h| h.assigned(fence(1), worker)),
            ),
            (
                "2 assigned",
                Box::new(move |h| h.assigned(fence(2), worker)),
            ),
            (
                "1 failed",
                Box::new(|h| h.again(1, Charge::Failure, true, None)),
            ),
            (
                "2 lost",
                Box::new(move |h| h.again(2, Charge::Loss, true, due)),
            ),
            (
                "3 assigned",
                Box::new(move |h| h.assigned(fence(3), worker)),
            ),
        ];
        for turn in 0..120 {
            let mut whole = History::default();
            let mut without_third = History::default();
            for (name, row) in &rows {
                row(&mut whole);
                if *name != "3 assigned" {
                    row(&mut without_third);
                }
            }
            assert_eq!(
                (whole.attempt, whole.ended, whole.failures, whole.losses),
                (3, 2, 1, 1)
            );
            assert_eq!(whole.running.map(|r| r.fence), Some(fence(3)));
            assert_eq!(whole.due, None);
            assert!(without_third.running.is_none());
            assert_eq!(without_third.due, due.map(|when| (when, Reason::BackOff)));
            let (a, b) = (turn % 5, (turn * 7 + 3) % 5);
            rows.swap(a, b);
        }
    }

    #[test]
    fn a_set_of_ended_jobs_knows_its_gaps() {
        let mut set = IdSet::default();
        for id in [1, 2, 3, 7, 9, 10] {
            set.push(id);
        }
        let inside: Vec<u64> = (0..12).filter(|&id| set.contains(id)).collect();
        assert_eq!(inside, [1, 2, 3, 7, 9, 10]);
        assert_eq!((set.ranges.len(), set.len()), (3, 6));
    }
}
