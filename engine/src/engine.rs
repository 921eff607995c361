//! `Engine::handle`: the one match over events; each arm calls one method. Here are the methods about jobs as such:
//! how they come in, what they wait for, how they are seen and forgotten. Attempts, sessions, cancels, commits and
//! the giving out of work have files of their own.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use hostler_wire::{
    Epoch, Fence, JobId, JobState, Priority, Reason, SessionId, WorkerId, mutation,
};

use crate::commit::Consequence;
use crate::effect::Effects;
use crate::event::{AskId, Event, Restore, RestoredJob};
use crate::job::{self, Flag, Job, Jobs, Phase, Wait};
use crate::queue::{Queues, key};
use crate::ready::Ready;
use crate::spec::{Class, ClassSpec, Run};
use crate::time::{Span, Time, When};
use crate::timers::{Alarm, Timers};
use crate::worker::{Cancel, Held, Worker, Workers};

/// What the engine must be told at its start.
#[derive(Clone, Debug)]
pub struct Config {
    /// This start of the server.
    pub epoch: Epoch,
    /// Seeds the jitter of back-offs.
    pub cluster: [u8; 16],
    /// How long a silent worker keeps its work.
    pub worker_grace: Span,
    /// How often both sides beat; after three missed a worker gets no new work.
    pub beat: Span,
    /// Between TERM and KILL where a job does not say.
    pub kill_grace: Span,
    /// Most attempts a worker is given beyond its slots.
    pub prefetch_max: u32,
    /// How many jobs ahead of dispatch bodies are fetched.
    pub fetch_ahead: u32,
}

/// The state machine.
#[derive(Debug)]
pub struct Engine {
    pub(crate) config: Config,
    /// The latest time it was told.
    now: Time,
    pub(crate) jobs: Jobs,
    pub(crate) queues: Queues,
    pub(crate) workers: Workers,
    pub(crate) ready: Ready,
    pub(crate) timers: Timers,
    /// By a batch's first id.
    limits: BTreeMap<JobId, Limits>,
    /// What jobs wait for that waited for something else before.
    pub(crate) waits: BTreeMap<JobId, When>,
    /// Who is to be told of a pending end.
    pub(crate) asks: BTreeMap<JobId, Vec<AskId>>,
    /// What follows the facts that are not committed, in their order.
    pub(crate) pending: VecDeque<(u64, Consequence)>,
    pub(crate) emitted: u64,
    pub(crate) committed: u64,
    /// Workers of whose reports some have become committed or void.
    pub(crate) ack_due: Vec<(u32, WorkerId)>,
    pub(crate) is_ready: bool,
    pub(crate) is_stopping: bool,
    is_deposed: bool,
}

/// The moments of a batch of jobs.
#[derive(Clone, Copy, Debug)]
struct Limits {
    count: u32,
    live: u32,
    due: Option<When>,
    expires: Option<When>,
    deadline: Option<When>,
}

impl Engine {
    /// An engine that knows nothing yet: feed it `Event::Wall`, the `Restore`s, then `Ready`.
    pub fn new(config: Config) -> Self {
        Self {
            config,
            now: Time::ZERO,
            jobs: Jobs::default(),
            queues: Queues::default(),
            workers: Workers::new(),
            ready: Ready::default(),
            timers: Timers::default(),
            limits: BTreeMap::new(),
            waits: BTreeMap::new(),
            asks: BTreeMap::new(),
            pending: VecDeque::new(),
            emitted: 0,
            committed: 0,
            ack_due: Vec::new(),
            is_ready: false,
            is_stopping: false,
            is_deposed: false,
        }
    }

    /// Takes one event at `now` (never earlier than the last) and appends what must be done to `out`.
    pub fn handle(&mut self, now: Time, event: Event, out: &mut Effects) {
        assert!(now >= self.now, "engine time never goes back");
        self.now = now;
        if self.is_deposed {
            return;
        }
        match event {
            Event::Tick => self.go_off(now, out),
            Event::Wall { offset_ms } => self.timers.set_offset(offset_ms),
            Event::Awoken => self.on_awoken(now),
            Event::Restore(part) => self.on_restore(now, part, out),
            Event::Ready => self.on_ready(now),
            Event::Stopping => self.on_stopping(now, out),
            Event::Deposed => self.is_deposed = true,
            Event::Submitted(run) => self.admit(now, &run),
            Event::Fetched { jobs } => self.on_fetched(&jobs),
            Event::Committed { through } => self.on_committed(through, out),
            Event::Joined(join) => self.on_joined(now, *join, out),
            Event::Left { session } => self.on_left(now, session, out),
            Event::Alive { session } => {
                self.hear(now, session);
            }
            Event::Heard {
                session,
                assign_seq,
            } => self.on_heard(now, session, assign_seq, out),
            Event::Started { session, fences } => self.on_started(now, session, fences, out),
            Event::Looked { fence, quiet } => self.on_looked(now, fence, quiet, out),
            Event::Reported {
                session,
                first,
                reports,
            } => {
                self.on_reported(now, session, first, reports, out);
            }
            Event::Returned {
                session,
                fences,
                draining,
            } => {
                self.on_returned(now, session, fences, draining, out);
            }
            Event::Cancel {
                ask,
                job,
                force,
                note,
            } => {
                self.on_cancel(now, ask, job, force, note, out);
            }
        }
    }

    /// Ends a turn: gives ready jobs to free slots. Called once after the events of a turn, so that a batch of events
    /// makes one batch of assignments a worker.
    pub fn dispatch(&mut self, now: Time, out: &mut Effects) {
        assert!(now >= self.now, "engine time never goes back");
        self.now = now;
        if self.is_deposed {
            return;
        }
        self.go_off(now, out);
        let stops = self.is_stopping && !mutation::is("stopping server gives work out");
        if self.is_ready && !stops {
            self.give_out(now, out);
        }
    }

    /// When to call `handle` with `Event::Tick` if nothing else happens first.
    pub fn next_deadline(&self) -> Option<Time> {
        if self.is_deposed {
            None
        } else {
            self.timers.next()
        }
    }

    /// What a query may see of a live job.
    pub fn job(&self, id: JobId) -> Option<JobView<'_>> {
        self.jobs.get(id).map(|job| self.view(id, job))
    }

    /// Live jobs from this id on, in id order (or downwards from it).
    pub fn jobs_from(
        &self,
        from: JobId,
        descending: bool,
    ) -> Box<dyn Iterator<Item = JobView<'_>> + '_> {
        let step = if descending { job::before } else { job::after };
        let mut from = Some(from);
        Box::new(std::iter::from_fn(move || {
            let (id, job) = self.jobs.next(from?, descending)?;
            from = step(id);
            Some(self.view(id, job))
        }))
    }

    /// The connected workers, and those whose grace runs.
    pub fn workers(&self) -> Box<dyn Iterator<Item = WorkerView<'_>> + '_> {
        Box::new(
            self.workers
                .all
                .iter()
                .map(|(_, worker)| worker_view(worker)),
        )
    }

    /// Whether that session's worker has as much work ahead in hand as it has slots: it would not miss us for a while.
    pub fn is_stocked(&self, session: SessionId) -> bool {
        let at = self.workers.in_session(session);
        let worker = at.map(|at| self.workers.get(at));
        worker.is_some_and(|worker| worker.slots > 0 && worker.over() >= worker.slots)
    }

    /// Whether a worker waits for a job, and no job for a worker.
    pub fn is_idle(&self) -> bool {
        let gives_out = self.is_ready && !self.is_stopping;
        gives_out && self.jobs.counts().queued == 0 && self.has_free_slot()
    }

    /// Every queue with live jobs, or with some lately, by name. Costs what is out on workers and no more, whatever waits.
    pub fn queues(&self) -> Vec<QueueView> {
        let mut views: BTreeMap<&str, QueueView> = BTreeMap::new();
        for (_, pool) in &self.queues.pools {
            let view = views
                .entry(&pool.queue)
                .or_insert_with(|| QueueView::new(Arc::clone(&pool.queue)));
            view.queued += pool.queued;
            let is_queued = |id: &JobId| {
                let job = self.jobs.get(*id);
                job.is_some_and(|job| matches!(job.phase(), Phase::Queued))
            };
            let firsts = pool
                .lanes()
                .filter_map(|mut lane| lane.by_ref().take(PASSED_OVER_MAX).find(is_queued));
            view.oldest = firsts.chain(view.oldest).min();
        }
        for (_, held) in &self.workers.held {
            let class = self.jobs.get(held.job).map(|job| job.class);
            let pool = class.map(|class| self.queues.class(class).pool);
            let queue = pool.map(|pool| &*self.queues.pools[pool as usize].queue);
            if let Some(view) = queue.and_then(|queue| views.get_mut(queue)) {
                view.held += 1;
            }
        }
        views.into_values().collect()
    }

    /// How many jobs are in which state.
    pub fn counts(&self) -> Counts {
        self.jobs.counts().clone()
    }

    /// Attempts called back from connected workers that have neither come back nor started: what a stopping server
    /// waits for.
    pub fn awaited_count(&self) -> u32 {
        let connected = self
            .workers
            .all
            .iter()
            .filter(|(_, worker)| worker.link.is_some());
        connected.map(|(_, worker)| worker.recalls).sum()
    }

    /// Every invariant, slowly. The simulator and the tests call it after each event.
    pub fn check(&self) {
        self.workers.check();
        self.queues.check();
        self.check_ready(self.now);
        self.check_jobs();
        self.check_pending();
    }

    fn on_ready(&mut self, now: Time) {
        self.is_ready = true;
        for at in self.worker_places() {
            let worker = self.workers.get_mut(at);
            if worker.link.is_none() {
                worker.heard = now;
            }
            self.watch_lease(at);
            self.moved(at);
        }
    }

    fn on_stopping(&mut self, now: Time, out: &mut Effects) {
        self.is_stopping = true;
        for at in self.worker_places() {
            self.withdraw_unsent(now, at, out);
            if let Some(session) = self.workers.get(at).session() {
                self.recall_unstarted(at, session, out);
            }
        }
    }

    pub(crate) fn worker_places(&self) -> Vec<u32> {
        self.workers.all.iter().map(|(at, _)| key(at)).collect()
    }

    fn on_fetched(&mut self, jobs: &[JobId]) {
        for &id in jobs {
            let Some(job) = self.jobs.get_mut(id) else {
                continue;
            };
            let was_cold = !job.has(Flag::Resident) && !job.has(Flag::Fetching);
            job.set(Flag::Resident);
            job.unset(Flag::Fetching);
            if was_cold && job.phase() == Phase::Queued {
                let class = job.class;
                let pool = self.queues.class(class).pool;
                self.queues.pool(pool).cold -= 1;
            }
        }
    }

    /// Jobs that nothing has happened to yet.
    fn admit(&mut self, now: Time, run: &Run) {
        if run.count == 0 {
            return;
        }
        let class = self.intern(&run.class, run.count);
        let mut job = Job::new(class, run.priority);
        if run.resident {
            job.set(Flag::Resident);
        }
        let due = run.due.filter(|due| !self.timers.has_passed(*due, now));
        self.limit(
            &mut job,
            run.first,
            run.count,
            due,
            run.expires,
            run.deadline,
        );
        match due {
            Some(due) => {
                self.jobs
                    .add(run.first, run.count, job, Phase::Scheduled(Wait::Delayed));
                self.timers.set(due, Alarm::Due(run.first, run.count));
            }
            None => {
                self.jobs.add(run.first, run.count, job, Phase::Queued);
                self.enqueue(run.first, run.count);
            }
        }
    }

    fn intern(&mut self, class: &Arc<Class>, count: u32) -> u32 {
        let (class, pool) = self.queues.intern(class);
        if let Some(pool) = pool {
            self.open_pool(pool);
        }
        self.queues.join(class, count);
        class
    }

    /// Remembers the moments of a batch, if it has any.
    fn limit(
        &mut self,
        job: &mut Job,
        first: JobId,
        count: u32,
        due: Option<When>,
        expires: Option<When>,
        deadline: Option<When>,
    ) {
        if due.is_none() && expires.is_none() && deadline.is_none() {
            return;
        }
        job.set(Flag::Limited);
        self.limits.insert(
            first,
            Limits {
                count,
                live: count,
                due,
                expires,
                deadline,
            },
        );
        if let Some(expires) = expires {
            self.timers.set(expires, Alarm::Expires(first));
        }
        if let Some(deadline) = deadline {
            self.timers.set(deadline, Alarm::Deadline(first));
        }
    }

    fn on_restore(&mut self, now: Time, part: Restore, out: &mut Effects) {
        match part {
            Restore::Worker { id, name, instance } => {
                self.workers.add(Worker::new(id, name, instance, now));
            }
            Restore::Workers { next } => self.workers.next = self.workers.next.max(next),
            Restore::Job(job) => self.restore(now, &job, out),
            Restore::Run(run) => self.admit(now, &run),
        }
    }

    fn restore(&mut self, now: Time, past: &RestoredJob, out: &mut Effects) {
        let class = self.intern(&past.class, 1);
        let mut job = Job::new(class, past.priority);
        job.attempt = past.attempt.raw();
        job.failures = past.failures;
        job.losses = past.losses;
        job.later = past.later;
        if past.ever_started {
            job.set(Flag::EverStarted);
        }
        self.limit(&mut job, past.id, 1, None, past.expires, past.deadline);
        let Some(running) = past.running else {
            self.jobs
                .add(past.id, 1, job, Phase::Scheduled(Wait::Delayed));
            return self.restore_waiting(now, past, out);
        };
        let at = self.workers.numbered(running.worker).unwrap_or_else(|| {
            // The store tells workers first. One it does not know is treated as one that will not come back.
            let name = format!("worker {}", running.worker.raw());
            self.workers.add(Worker::new(running.worker, name, 0, now))
        });
        let mut held = Held::new(running.fence, at);
        held.started = running.started;
        held.sent = true;
        held.cancel = past.cancelling.map(|reason| Cancel {
            reason,
            force: false,
            committed: true,
        });
        let is_cancelling = held.cancel.is_some();
        let place = self.workers.give(held);
        let phase = if is_cancelling {
            Phase::Cancelling(place)
        } else {
            Phase::Running(place)
        };
        self.jobs.add(past.id, 1, job, phase);
    }

    fn restore_waiting(&mut self, now: Time, past: &RestoredJob, out: &mut Effects) {
        if let Some(reason) = past.cancelling {
            let (state, reason) = self.cancelled_as(past.id, reason);
            return self.end_with(now, past.id, state, reason, None, out);
        }
        match past
            .due
            .filter(|(due, _)| !self.timers.has_passed(*due, now))
        {
            Some((due, reason)) => {
                let wait = Wait::of(reason);
                self.postpone(past.id, due, wait);
            }
            None => {
                self.jobs.turn(past.id, Phase::Queued);
                self.enqueue(past.id, 1);
            }
        }
    }

    /// The end is committed: nothing is left of the job.
    pub(crate) fn forget(&mut self, id: JobId) {
        let job = *self.jobs.live(id);
        assert!(
            matches!(job.phase(), Phase::Ending(_)),
            "a job is forgotten after its end"
        );
        self.jobs.remove(id);
        if job.has(Flag::Limited)
            && let Some((&first, limits)) = self.limits.range_mut(..=id).next_back()
        {
            limits.live -= 1;
            if limits.live == 0 {
                let moments = [limits.due, limits.expires, limits.deadline];
                self.limits.remove(&first);
                self.pointless(moments.iter().flatten().count());
            }
        }
        if let Some((at, pool)) = self.queues.leave(job.class) {
            self.close_pool(at, &pool);
        }
    }

    fn limits_of(&self, id: JobId) -> Option<&Limits> {
        self.jobs.get(id).filter(|job| job.has(Flag::Limited))?;
        self.limits
            .range(..=id)
            .next_back()
            .map(|(_, limits)| limits)
    }

    /// Whether the job had to have started by now and never has.
    pub(crate) fn is_too_late(&self, now: Time, id: JobId) -> bool {
        let never = self
            .jobs
            .get(id)
            .is_some_and(|job| !job.has(Flag::EverStarted));
        let expires = self.limits_of(id).and_then(|limits| limits.expires);
        never && expires.is_some_and(|expires| self.timers.has_passed(expires, now))
    }

    /// So many alarms have become pointless; they are thrown out together.
    pub(crate) fn pointless(&mut self, count: usize) {
        if self.timers.pointless(count) {
            let (jobs, limits, workers) = (&self.jobs, &self.limits, &self.workers);
            self.timers
                .keep(|alarm| is_needed(*alarm, jobs, limits, workers));
        }
    }

    /// Everything that is due.
    fn go_off(&mut self, now: Time, out: &mut Effects) {
        while let Some(alarm) = self.timers.pop(now) {
            match alarm {
                Alarm::Due(first, count) => self.on_due(first, count),
                Alarm::Expires(first) => {
                    for id in self.batch(first) {
                        self.on_expired(now, id, out);
                    }
                }
                Alarm::Deadline(first) => {
                    for id in self.batch(first) {
                        self.on_deadline(now, id, out);
                    }
                }
                Alarm::Overrun(job, epoch, attempt) => {
                    self.on_overrun(
                        now,
                        Fence {
                            job,
                            epoch,
                            attempt,
                        },
                        out,
                    );
                }
                Alarm::Lease(worker) => self.on_lease(now, worker, out),
                Alarm::Rested(worker) => self.on_rested(worker),
            }
        }
    }

    /// The ids of the batch that begins here, if any of it is live.
    fn batch(&self, first: JobId) -> impl Iterator<Item = JobId> + use<> {
        let count = self.limits.get(&first).map_or(0, |limits| limits.count);
        (0..count.into()).map(move |n| first.plus(n))
    }

    fn on_due(&mut self, first: JobId, count: u32) {
        let mut run: Option<(JobId, u32)> = None;
        for n in 0..count.into() {
            let id = first.plus(n);
            let is_due = self
                .jobs
                .get(id)
                .is_some_and(|job| matches!(job.phase(), Phase::Scheduled(_)));
            if is_due {
                self.waits.remove(&id);
                self.jobs.turn(id, Phase::Queued);
                run = Some(run.map_or((id, 1), |(first, length)| (first, length + 1)));
            } else if let Some((first, length)) = run.take() {
                self.enqueue(first, length);
            }
        }
        if let Some((first, length)) = run {
            self.enqueue(first, length);
        }
    }

    /// It had to have started by now.
    fn on_expired(&mut self, now: Time, id: JobId, out: &mut Effects) {
        if !self.is_too_late(now, id) || mutation::is("expiry ignored") {
            return;
        }
        let (state, reason) = (JobState::Expired, Reason::NotStartedInTime);
        match self.jobs.live(id).phase() {
            Phase::Scheduled(_) | Phase::Queued => {
                self.end_with(now, id, state, reason, None, out);
            }
            Phase::Running(place) => {
                let held = &self.workers.held[place as usize];
                let (at, is_recalled) = (held.worker, held.recalled);
                if !held.sent {
                    self.withdraw(now, place, state, reason, None, out);
                } else if let (Some(session), false) = (self.workers.get(at).session(), is_recalled)
                {
                    // It may be starting this very moment: the worker knows. Given back, it has expired.
                    self.recall(at, session, vec![place], out);
                }
            }
            Phase::Cancelling(_) | Phase::Ending(_) | Phase::Absent => {}
        }
    }

    /// It had to be over by now.
    fn on_deadline(&mut self, now: Time, id: JobId, out: &mut Effects) {
        let phase = self.jobs.get(id).map_or(Phase::Absent, |job| job.phase());
        match phase {
            Phase::Scheduled(_) | Phase::Queued => {
                let (state, reason) = self.cancelled_as(id, Reason::Deadline);
                self.end_with(now, id, state, reason, None, out);
            }
            Phase::Running(place) if !self.workers.held[place as usize].sent => {
                let (state, reason) = self.cancelled_as(id, Reason::Deadline);
                self.withdraw(now, place, state, reason, None, out);
            }
            Phase::Running(place) => {
                self.begin_cancel(now, place, Reason::Deadline, None, None, out);
            }
            Phase::Cancelling(_) | Phase::Ending(_) | Phase::Absent => {}
        }
    }

    fn view(&self, id: JobId, job: &Job) -> JobView<'_> {
        let held = job.held().map(|place| &self.workers.held[place as usize]);
        let (reason, due) = match job.phase() {
            Phase::Scheduled(wait) => {
                let delay = || self.limits_of(id).and_then(|limits| limits.due);
                (wait.reason(), self.waits.get(&id).copied().or_else(delay))
            }
            Phase::Cancelling(_) => {
                let cancel = held.and_then(|held| held.cancel);
                (cancel.map_or(Reason::None, |cancel| cancel.reason), None)
            }
            Phase::Queued | Phase::Running(_) | Phase::Ending(_) | Phase::Absent => {
                (Reason::None, None)
            }
        };
        JobView {
            id,
            state: job.state().expect("a live job has a state"),
            reason,
            due,
            priority: job.priority,
            class: &self.queues.class(job.class).class.spec,
            fence: held.map(Held::fence),
            attempts: job.attempt,
            failures: job.failures,
            losses: job.losses,
            worker: held.map(|held| worker_view(self.workers.get(held.worker))),
            started: held.and_then(|held| held.started),
            over: matches!(job.phase(), Phase::Ending(_)),
        }
    }

    /// Every index and count against every record.
    fn check_jobs(&self) {
        let mut counts = Counts::default();
        let mut classes: BTreeMap<u32, u64> = BTreeMap::new();
        let mut pools: BTreeMap<u32, (u64, u64, u64)> = BTreeMap::new();
        let mut limited: BTreeMap<JobId, u32> = BTreeMap::new();
        let (mut out, mut waits) = (0, 0);
        for (id, job) in self.jobs.iter() {
            match job.state() {
                Some(JobState::Scheduled) => counts.scheduled += 1,
                Some(JobState::Queued) => counts.queued += 1,
                Some(JobState::Running) => counts.running += 1,
                Some(JobState::Cancelling) => counts.cancelling += 1,
                Some(_) | None => panic!("{id:?} is in no state a live job can be in"),
            }
            *classes.entry(job.class).or_default() += 1;
            let pool = pools.entry(self.queues.class(job.class).pool).or_default();
            assert!(!(job.has(Flag::Resident) && job.has(Flag::Fetching)));
            match job.phase() {
                Phase::Queued => {
                    pool.0 += 1;
                    pool.1 += u64::from(!job.has(Flag::Resident) && !job.has(Flag::Fetching));
                }
                Phase::Running(place) | Phase::Cancelling(place) => {
                    let held = &self.workers.held[place as usize];
                    assert_eq!(held.job, id);
                    assert_eq!(
                        held.fence().attempt.raw(),
                        job.attempt,
                        "the latest is current"
                    );
                    let is_cancelling = matches!(job.phase(), Phase::Cancelling(_));
                    assert_eq!(held.cancel.is_some(), is_cancelling);
                    assert!(held.started.is_none() || job.has(Flag::EverStarted));
                    pool.2 += u64::from(held.is_awaited());
                    out += 1;
                }
                Phase::Scheduled(_) => {
                    let waits_anew = self.waits.contains_key(&id);
                    let delay = self.limits_of(id).and_then(|limits| limits.due);
                    assert!(waits_anew || delay.is_some(), "{id:?} waits for a moment");
                    waits += usize::from(waits_anew);
                }
                Phase::Ending(_) | Phase::Absent => {}
            }
            if job.has(Flag::Limited) {
                let (&first, limits) = self
                    .limits
                    .range(..=id)
                    .next_back()
                    .expect("its batch is there");
                assert!(id.raw() < first.raw() + u64::from(limits.count));
                *limited.entry(first).or_default() += 1;
            }
        }
        assert_eq!(&counts, self.jobs.counts());
        assert_eq!(
            out,
            self.workers.held.len(),
            "every attempt that is out is its job's current"
        );
        assert_eq!(waits, self.waits.len());
        let limits: BTreeMap<JobId, u32> = self
            .limits
            .iter()
            .map(|(first, limits)| (*first, limits.live))
            .collect();
        assert_eq!(limited, limits);
        self.queues.check_jobs(&classes);
        for (at, pool) in &self.queues.pools {
            let sums = pools.get(&key(at)).copied().unwrap_or_default();
            assert_eq!((pool.queued, pool.cold, pool.recalls), sums);
            let queued = pool.ids().filter(|(_, id)| {
                self.jobs
                    .get(*id)
                    .is_some_and(|job| job.phase() == Phase::Queued)
            });
            let queued: Vec<_> = queued.collect();
            assert_eq!(
                queued.len() as u64,
                pool.queued,
                "who waits for a slot stands in a lane"
            );
            for (priority, id) in &queued {
                let job = self.jobs.get(*id).expect("just seen");
                assert_eq!(
                    (job.priority, self.queues.class(job.class).pool),
                    (*priority, key(at))
                );
            }
            let sorted = queued
                .windows(2)
                .all(|w| w[0].0 > w[1].0 || w[0].1 < w[1].1);
            assert!(sorted, "ids in lanes are in order and stand there once");
        }
        self.check_alarms();
    }

    /// Whatever waits for a moment has an alarm set.
    fn check_alarms(&self) {
        let alarms: Vec<Alarm> = self.timers.iter().copied().collect();
        let due = |id: JobId| {
            alarms.iter().any(|alarm| {
                let Alarm::Due(first, count) = alarm else {
                    return false;
                };
                (first.raw()..first.raw() + u64::from(*count)).contains(&id.raw())
            })
        };
        for (id, job) in self.jobs.iter() {
            if matches!(job.phase(), Phase::Scheduled(_)) {
                assert!(due(id), "{id:?} waits for an alarm");
            }
        }
        for (_, held) in &self.workers.held {
            let fence = held.fence();
            let alarm = Alarm::Overrun(fence.job, fence.epoch, fence.attempt);
            assert_eq!(held.alarmed, alarms.contains(&alarm));
            let spec = &self
                .queues
                .class(self.jobs.get(held.job).expect("live").class)
                .class
                .spec;
            let is_connected = self.workers.get(held.worker).link.is_some();
            let is_limited = spec.timeout.is_some() || spec.stall.is_some();
            if held.started.is_some() && is_limited && is_connected {
                assert!(held.alarmed, "{fence:?} is watched");
            }
        }
        for (_, worker) in &self.workers.all {
            assert_eq!(worker.alarmed, alarms.contains(&Alarm::Lease(worker.id)));
            assert!(worker.alarmed || !self.is_ready, "every lease is watched");
        }
    }

    fn check_pending(&self) {
        assert!(self.committed <= self.emitted && self.ack_due.is_empty());
        let facts: Vec<u64> = self.pending.iter().map(|(fact, _)| *fact).collect();
        assert!(facts.is_sorted());
        assert!(
            facts
                .iter()
                .all(|fact| self.committed < *fact && *fact <= self.emitted)
        );
        let mut ends = 0;
        for (_, what) in &self.pending {
            if let Consequence::Ended { job, .. } = what {
                let phase = self.jobs.get(*job).map(Job::phase);
                assert!(matches!(phase, Some(Phase::Ending(_))));
                ends += 1;
            }
        }
        let ending = |(_, job): &(JobId, &Job)| matches!(job.phase(), Phase::Ending(_));
        assert_eq!(
            ends,
            self.jobs.iter().filter(ending).count(),
            "each end awaits its commit once"
        );
        for job in self.asks.keys() {
            assert!(matches!(
                self.jobs.get(*job).map(Job::phase),
                Some(Phase::Ending(_))
            ));
        }
        for (_, held) in &self.workers.held {
            let fact = held.assigned;
            assert!(
                held.sent || fact > self.committed,
                "what is committed has left or come back"
            );
        }
    }
}

/// Whether an alarm would still do something.
fn is_needed(
    alarm: Alarm,
    jobs: &Jobs,
    limits: &BTreeMap<JobId, Limits>,
    workers: &Workers,
) -> bool {
    match alarm {
        Alarm::Due(first, 1) => jobs
            .get(first)
            .is_some_and(|job| matches!(job.phase(), Phase::Scheduled(_))),
        Alarm::Due(first, _) | Alarm::Expires(first) | Alarm::Deadline(first) => {
            limits.contains_key(&first)
        }
        Alarm::Overrun(job, epoch, attempt) => {
            let fence = Fence {
                job,
                epoch,
                attempt,
            };
            // An attempt that is just being closed has left its place already, and its job does not know yet.
            let place = jobs.get(job).and_then(Job::held);
            let held = place.and_then(|place| workers.held.get(place as usize));
            held.is_some_and(|held| held.fence() == fence)
        }
        Alarm::Lease(worker) | Alarm::Rested(worker) => workers.numbered(worker).is_some(),
    }
}

fn worker_view(worker: &Worker) -> WorkerView<'_> {
    WorkerView {
        id: worker.id,
        name: &worker.name,
        session: worker.session(),
        slots: worker.slots,
        held: worker.held,
        heard: worker.heard,
        draining: worker.draining,
        queues: &worker.queues,
        labels: &worker.labels,
    }
}

/// A live job, as a query sees it.
#[derive(Clone, Debug)]
pub struct JobView<'a> {
    /// Which.
    pub id: JobId,
    /// Its state; a terminal one whose commit is pending shows as it was before.
    pub state: JobState,
    /// Why it is in it (`Delayed`, `BackOff`, `Later`, or the reason of a cancel).
    pub reason: Reason,
    /// Until when, if it waits for a time.
    pub due: Option<When>,
    /// Its priority.
    pub priority: Priority,
    /// Its class.
    pub class: &'a ClassSpec,
    /// The current attempt's fence, while one is out.
    pub fence: Option<Fence>,
    /// Attempts assigned so far.
    pub attempts: u16,
    /// Of them charged as failures.
    pub failures: u16,
    /// As losses.
    pub losses: u16,
    /// Who has it.
    pub worker: Option<WorkerView<'a>>,
    /// When the current attempt was reported started.
    pub started: Option<Time>,
    /// Its end waits for its commit: nothing more is done with it.
    pub over: bool,
}

/// A worker, as a query sees it.
#[derive(Clone, Debug)]
pub struct WorkerView<'a> {
    /// Its number.
    pub id: WorkerId,
    /// Its stable name.
    pub name: &'a str,
    /// Its session, while it is connected.
    pub session: Option<SessionId>,
    /// Jobs it runs at once.
    pub slots: u32,
    /// Attempts it holds that have not ended.
    pub held: u32,
    /// When something was last heard of it.
    pub heard: Time,
    /// It takes no new work.
    pub draining: bool,
    /// Queues it serves.
    pub queues: &'a [String],
    /// What it says of itself.
    pub labels: &'a [(String, String)],
}

/// Ended jobs passed over in one lane to find its oldest that waits.
const PASSED_OVER_MAX: usize = 1_000;

/// What a query may see of a queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueView {
    /// Its name.
    pub name: Arc<str>,
    /// Its jobs that may run now.
    pub queued: u64,
    /// Of them, the one accepted first.
    pub oldest: Option<JobId>,
    /// Its attempts that are with workers.
    pub held: u64,
}

impl QueueView {
    fn new(name: Arc<str>) -> Self {
        Self {
            name,
            queued: 0,
            oldest: None,
            held: 0,
        }
    }
}

/// Live jobs by state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Waiting for a time.
    pub scheduled: u64,
    /// May run now.
    pub queued: u64,
    /// On a worker.
    pub running: u64,
    /// On a worker, told to stop.
    pub cancelling: u64,
}
