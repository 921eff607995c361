//! How attempts start and end, and what that makes of their jobs.
//!
//! A report is judged against the fence of the job's current attempt and nothing else: it ends that attempt, or it changes
//! nothing (P3). An attempt that has ended is not held by its worker any more in the same step, its slot is free, and its
//! job is either over (one terminal fact) or goes on (one fact that says at whose cost and from when).
//!
//! Not here: which failures retry and when (`retry`), sessions and lost workers (`session`).

use hostler_wire::{
    Detail, Fence, JobId, JobState, Outcome, Reason, SessionId, WorkerId, mutation,
};

use crate::commit::Consequence;
use crate::effect::{Effect, Effects};
use crate::engine::Engine;
use crate::event::Report;
use crate::fact::{Again, Charge, Ended, Fact, Started};
use crate::job::{Flag, Phase, Wait};
use crate::retry::{Spent, Verdict, judge};
use crate::spec::ClassId;
use crate::time::{Span, Time, When};
use crate::timers::Alarm;
use crate::worker::{Cancel, Held};

/// How long a worker gets nothing after it could not start something for want of resources (semantics 7).
const REST: Span = Span::from_secs(1);

/// An attempt that is not out any more.
#[derive(Debug)]
pub(crate) struct Closed {
    pub(crate) fence: Fence,
    at: u32,
    worker: WorkerId,
    pub(crate) started: Option<Time>,
    pub(crate) detail: Option<Box<Detail>>,
}

impl Engine {
    /// The place of the attempt with this fence, if it is its job's current one and that worker holds it.
    pub(crate) fn current(&self, fence: Fence, worker: u32) -> Option<u32> {
        let place = self.jobs.get(fence.job)?.held()?;
        let held = &self.workers.held[place as usize];
        let same = held.fence() == fence || mutation::is("fence not compared");
        (same && held.worker == worker).then_some(place)
    }

    pub(crate) fn on_started(
        &mut self,
        now: Time,
        session: SessionId,
        mut fences: Vec<Fence>,
        out: &mut Effects,
    ) {
        let Some(at) = self.hear(now, session) else {
            return;
        };
        fences.retain(|fence| {
            let place = self.current(*fence, at);
            place.is_some_and(|place| self.start(now, place))
        });
        self.record_starts(now, at, fences, out);
    }

    pub(crate) fn record_starts(
        &mut self,
        now: Time,
        at: u32,
        fences: Vec<Fence>,
        out: &mut Effects,
    ) {
        if !fences.is_empty() {
            let worker = self.workers.get(at).id;
            self.emit(
                Fact::Started(Started {
                    worker,
                    at: now,
                    fences,
                }),
                out,
            );
        }
    }

    /// An attempt has started. False if that was known.
    pub(crate) fn start(&mut self, now: Time, place: u32) -> bool {
        let held = &mut self.workers.held[place as usize];
        if held.started.is_some() {
            return false;
        }
        self.answered(place);
        let held = &mut self.workers.held[place as usize];
        held.started = Some(now);
        let job = held.job;
        self.jobs.live(job).set(Flag::EverStarted);
        self.watch(now, place);
        true
    }

    /// Sets an alarm for an attempt whose worker should have ended it long before: a backstop, the worker's clock is the rule.
    /// Whether one was silent for too long only its worker can tell, so that one is asked then.
    pub(crate) fn watch(&mut self, earliest: Time, place: u32) {
        let slack = self.config.beat.times(2);
        self.watch_from(earliest + slack, earliest, place);
    }

    /// The same, not before `earliest`, and as if silence had begun at `silent_since`.
    fn watch_from(&mut self, earliest: Time, silent_since: Time, place: u32) {
        let held = &mut self.workers.held[place as usize];
        let Some(started) = held.started.filter(|_| !held.alarmed) else {
            return;
        };
        let spec = &self.queues.class(self.jobs.live(held.job).class).class.spec;
        let late = spec.grace.unwrap_or(self.config.kill_grace) + self.config.beat.times(2);
        let over = spec.timeout.map(|timeout| started + timeout + late);
        let silent = spec.stall.map(|stall| silent_since + stall + late);
        if mutation::is("no backstop for timeouts") {
            return;
        }
        if let Some(at) = over.into_iter().chain(silent).min() {
            held.alarmed = true;
            let fence = held.fence();
            self.timers.set(
                When::Engine(at.max(earliest)),
                Alarm::Overrun(fence.job, fence.epoch, fence.attempt),
            );
        }
    }

    pub(crate) fn on_reported(
        &mut self,
        now: Time,
        session: SessionId,
        first: u64,
        reports: Vec<Report>,
        out: &mut Effects,
    ) {
        let Some(at) = self.hear(now, session) else {
            return;
        };
        let worker = self.workers.get(at).id;
        let mut number = first;
        let mut repeated = false;
        for report in reports {
            if number <= self.workers.get(at).reports.seen {
                // Its ack follows the commit it waits for, or was lost.
                repeated = true;
            } else {
                match self.current(report.fence, at) {
                    Some(place) => self.on_report(now, place, report, out),
                    // Whatever made it void is among the facts so far: it is not forgotten before they are durable (P4).
                    None => {
                        self.after(self.emitted, Consequence::Void { at, worker }, out);
                    }
                }
                let fact = if mutation::is("acknowledged before its commit") {
                    0
                } else {
                    self.emitted
                };
                self.workers.get_mut(at).reports.wait(fact, number);
            }
            number = number.saturating_add(1);
        }
        let acked = self.workers.get(at).reports.acked;
        self.acknowledge(out);
        if repeated && acked >= first && self.workers.get(at).reports.acked == acked {
            out.push(Effect::Ack {
                session,
                through: acked,
            });
        }
    }

    fn on_report(&mut self, now: Time, place: u32, report: Report, out: &mut Effects) {
        let held = &self.workers.held[place as usize];
        let (id, at) = (held.job, held.worker);
        // If it goes on, then rather elsewhere: what failed here may be this machine's doing (semantics 21).
        self.jobs.live(id).avoid = self.workers.get(at).tag;
        if report.started {
            self.jobs.live(id).set(Flag::EverStarted);
        }
        let is_return = report.outcome == Outcome::Returned;
        let job = self.jobs.live(id);
        let class = job.class;
        let spent = Spent {
            job: id,
            failures: job.failures,
            later: job.later,
        };
        if report.started && !report.cancelled && !is_return {
            let pool = self.queues.class(class).pool;
            if self.queues.ran(class, report.ran.micros()) {
                self.match_pool(pool);
            }
        }
        let policy = &self.queues.class(class).class.spec.retry;
        let verdict = judge(policy, &self.config.cluster, spent, report.outcome);
        if is_return && !report.started && !report.cancelled {
            self.rest(now, at);
        }
        let mut closed = self.close(place);
        if report.started && closed.0.started.is_none() {
            closed.0.started = Some(now.back(report.ran));
        }
        closed.0.detail = report.detail;
        self.settle(now, closed, verdict, report.cancelled, out);
    }

    /// The worker could not start something for want of resources.
    fn rest(&mut self, now: Time, at: u32) {
        let worker = self.workers.get_mut(at);
        worker.rests_until = now + REST;
        let alarm = Alarm::Rested(worker.id);
        self.timers.set(When::Engine(worker.rests_until), alarm);
        self.moved(at);
    }

    pub(crate) fn on_rested(&mut self, worker: WorkerId) {
        if let Some(at) = self.workers.numbered(worker) {
            self.moved(at);
        }
    }

    pub(crate) fn on_returned(
        &mut self,
        now: Time,
        session: SessionId,
        fences: Vec<Fence>,
        draining: bool,
        out: &mut Effects,
    ) {
        let Some(at) = self.hear(now, session) else {
            return;
        };
        if draining {
            self.workers.get_mut(at).draining = true;
            self.moved(at);
        }
        for fence in fences {
            if let Some(place) = self.current(fence, at) {
                self.give_back(now, place, Reason::Returned, out);
            }
        }
    }

    /// An attempt is taken back at nobody's cost; its job goes on at once in its old place.
    pub(crate) fn give_back(&mut self, now: Time, place: u32, reason: Reason, out: &mut Effects) {
        let closed = self.close(place);
        let verdict = Verdict::Again {
            charge: Charge::Return,
            reason,
            delay: Span::ZERO,
        };
        self.settle(now, closed, verdict, true, out);
    }

    /// The server's backstop for `timeout` and `stall`: the worker did not end the attempt in time.
    pub(crate) fn on_overrun(&mut self, now: Time, fence: Fence, out: &mut Effects) {
        let Some(place) = self.jobs.get(fence.job).and_then(|job| job.held()) else {
            return;
        };
        let held = &mut self.workers.held[place as usize];
        if held.fence() != fence {
            return;
        }
        held.alarmed = false;
        let (at, started) = (held.worker, held.started);
        let Some(session) = self.workers.get(at).session() else {
            // Its report may be on the way; the lease decides, or the alarm is set again when the worker is back.
            return;
        };
        let spec = &self
            .queues
            .class(self.jobs.live(fence.job).class)
            .class
            .spec;
        let late = spec.grace.unwrap_or(self.config.kill_grace) + self.config.beat.times(2);
        let is_over = |(started, timeout)| started + timeout + late <= now;
        if started.zip(spec.timeout).is_some_and(is_over) {
            return self.give_up(now, place, Outcome::TimedOut, out);
        }
        out.push(Effect::Look { session, fence });
        self.watch_from(now, now, place);
    }

    /// A worker says how long an attempt has been silent: longer than it should have let it?
    pub(crate) fn on_looked(&mut self, now: Time, fence: Fence, quiet: Span, out: &mut Effects) {
        let Some(place) = self.jobs.get(fence.job).and_then(|job| job.held()) else {
            return;
        };
        if self.workers.held[place as usize].fence() != fence {
            return;
        }
        let spec = &self
            .queues
            .class(self.jobs.live(fence.job).class)
            .class
            .spec;
        let late = spec.grace.unwrap_or(self.config.kill_grace) + self.config.beat.times(2);
        if spec.stall.is_some_and(|stall| stall + late <= quiet) {
            self.give_up(now, place, Outcome::Stalled, out);
        }
    }

    /// Ends an attempt in its worker's stead, and tells that one to drop it.
    fn give_up(&mut self, now: Time, place: u32, outcome: Outcome, out: &mut Effects) {
        let held = &self.workers.held[place as usize];
        let (fence, at) = (held.fence(), held.worker);
        let job = self.jobs.live(fence.job);
        let spent = Spent {
            job: fence.job,
            failures: job.failures,
            later: job.later,
        };
        let policy = &self.queues.class(job.class).class.spec.retry;
        let verdict = judge(policy, &self.config.cluster, spent, outcome);
        let worker = self.workers.get(at).id;
        let closed = self.close(place);
        self.settle(now, closed, verdict, true, out);
        self.after(self.emitted, Consequence::Stop { at, worker, fence }, out);
    }

    /// An attempt is not out any more.
    pub(crate) fn close(&mut self, place: u32) -> (Closed, Option<Cancel>) {
        self.answered(place);
        let held: Held = self.workers.take(place);
        if held.alarmed {
            self.pointless(1);
        }
        self.moved(held.worker);
        let worker = self.workers.get(held.worker);
        let closed = Closed {
            fence: held.fence(),
            at: held.worker,
            worker: worker.id,
            started: held.started,
            detail: None,
        };
        (closed, held.cancel)
    }

    /// If the attempt was recalled, that is answered.
    pub(crate) fn answered(&mut self, place: u32) {
        let held = &mut self.workers.held[place as usize];
        if held.is_awaited() {
            held.recalled = false;
            self.workers.all[held.worker as usize].recalls -= 1;
            let class = self.jobs.live(held.job).class;
            let pool = self.queues.class(class).pool;
            self.queues.pool(pool).recalls -= 1;
        }
    }

    /// What becomes of the job. A cancelling one never goes on: it ends as it would have by itself, unless a signal was sent
    /// or it would have been tried again.
    pub(crate) fn settle(
        &mut self,
        now: Time,
        (closed, cancel): (Closed, Option<Cancel>),
        verdict: Verdict,
        signalled: bool,
        out: &mut Effects,
    ) {
        let id = closed.fence.job;
        let lost = matches!(
            verdict,
            Verdict::Again {
                reason: Reason::WorkerLost,
                ..
            } | Verdict::Done(_, Reason::WorkerLost)
        );
        match (cancel, verdict) {
            (None, Verdict::Done(state, reason)) => {
                self.end(now, id, state, reason, closed, out);
            }
            (Some(_), Verdict::Done(state, reason)) if !signalled => {
                self.end(now, id, state, reason, closed, out);
            }
            (
                Some(_),
                Verdict::Again {
                    charge,
                    reason,
                    delay,
                },
            ) if mutation::is("cancelling job tried again") => {
                self.go_on(now, closed, charge, reason, delay, out);
            }
            (Some(cancel), _) => {
                let (state, reason) = self.cancelled_as(id, cancel.reason);
                let reason = if lost && state == JobState::Cancelled {
                    Reason::WorkerLost
                } else {
                    reason
                };
                self.end(now, id, state, reason, closed, out);
            }
            (
                None,
                Verdict::Again {
                    charge,
                    reason,
                    delay,
                },
            ) => {
                self.go_on(now, closed, charge, reason, delay, out);
            }
        }
    }

    /// What a job ends as that was told to end for this reason.
    pub(crate) fn cancelled_as(&mut self, id: JobId, reason: Reason) -> (JobState, Reason) {
        if reason != Reason::Deadline {
            (JobState::Cancelled, reason)
        } else if self.jobs.live(id).has(Flag::EverStarted) {
            (JobState::Failed, reason)
        } else {
            (JobState::Expired, reason)
        }
    }

    /// The attempt is over, the job is not.
    fn go_on(
        &mut self,
        now: Time,
        closed: Closed,
        charge: Charge,
        reason: Reason,
        delay: Span,
        out: &mut Effects,
    ) {
        let id = closed.fence.job;
        if closed.fence.attempt.next().is_none() {
            return self.end(
                now,
                id,
                JobState::Failed,
                Reason::TooManyAttempts,
                closed,
                out,
            );
        }
        if self.is_too_late(now, id) {
            let (state, reason) = (JobState::Expired, Reason::NotStartedInTime);
            return self.end(now, id, state, reason, closed, out);
        }
        let job = self.jobs.live(id);
        let wait = match charge {
            Charge::Return => Wait::WorkerLost,
            Charge::Failure => {
                job.failures += 1;
                Wait::BackOff
            }
            Charge::Loss => {
                job.losses += 1;
                Wait::WorkerLost
            }
            Charge::Later => {
                job.later += 1;
                Wait::Later
            }
        };
        let due = (delay > Span::ZERO).then(|| When::Engine(now + delay));
        let fact = Again {
            fence: closed.fence,
            worker: closed.worker,
            reason,
            charge,
            started: closed.started,
            at: now,
            due,
            detail: closed.detail,
        };
        let fact = self.emit(Fact::Again(fact), out);
        let settled = Consequence::Settled {
            at: closed.at,
            worker: closed.worker,
            fence: closed.fence,
        };
        self.after(fact, settled, out);
        match due {
            None => {
                self.jobs.turn(id, Phase::Queued);
                self.enqueue(id, 1);
            }
            Some(due) => self.postpone(id, due, wait),
        }
    }

    /// The job may run again then.
    pub(crate) fn postpone(&mut self, id: JobId, due: When, wait: Wait) {
        self.jobs.turn(id, Phase::Scheduled(wait));
        self.waits.insert(id, due);
        if !mutation::is("retry timer lost") {
            self.timers.set(due, Alarm::Due(id, 1));
        }
    }

    /// A waiting job is over.
    pub(crate) fn end_with(
        &mut self,
        now: Time,
        id: JobId,
        state: JobState,
        reason: Reason,
        detail: Option<Box<Detail>>,
        out: &mut Effects,
    ) {
        let phase = self.jobs.live(id).phase();
        match phase {
            Phase::Queued => self.dequeue(id),
            Phase::Scheduled(_) => {
                if self.waits.remove(&id).is_some() {
                    self.pointless(1);
                }
            }
            Phase::Running(_) | Phase::Cancelling(_) | Phase::Absent | Phase::Ending(_) => {
                panic!("only a waiting job ends without an attempt")
            }
        }
        let ended = Ended {
            job: id,
            class: self.class_of(id),
            state,
            reason,
            fence: None,
            worker: None,
            started: None,
            at: now,
            detail,
        };
        self.record_end(ended, out);
    }

    /// The job is over, and that attempt ended it.
    pub(crate) fn end(
        &mut self,
        now: Time,
        id: JobId,
        state: JobState,
        reason: Reason,
        closed: Closed,
        out: &mut Effects,
    ) {
        let ended = Ended {
            job: id,
            class: self.class_of(id),
            state,
            reason,
            fence: Some(closed.fence),
            worker: Some(closed.worker),
            started: closed.started,
            at: now,
            detail: closed.detail,
        };
        let fact = self.record_end(ended, out);
        let settled = Consequence::Settled {
            at: closed.at,
            worker: closed.worker,
            fence: closed.fence,
        };
        self.after(fact, settled, out);
    }

    fn class_of(&mut self, id: JobId) -> ClassId {
        self.queues.class(self.jobs.live(id).class).class.id
    }

    /// One terminal fact; after its commit the job is forgotten.
    fn record_end(&mut self, ended: Ended, out: &mut Effects) -> u64 {
        let (job, state, reason) = (ended.job, ended.state, ended.reason);
        let before = self.jobs.live(job).phase().before_end();
        self.jobs.turn(job, Phase::Ending(before));
        let fact = self.emit(Fact::Ended(ended), out);
        self.after(fact, Consequence::Ended { job, state, reason }, out);
        fact
    }
}
