//! Random events against a slow, obvious model.
//!
//! The model folds the engine's facts into two plain tables: what was emitted and what is durable. It knows nothing
//! of lanes, lines, pages or heaps; it says for each fact whether it was allowed, for each frame and answer whether
//! what it claims is durable, and after each turn whether anything was left undone that should have been done.
//! Workers lose frames, repeat reports, report what is stale, vanish and come back; the disk lags; the server is
//! killed and recovers from what was durable. In the end everything is let run in peace, and every job must have
//! ended exactly once.
#![expect(
    clippy::unwrap_used,
    reason = "a model that fails is a test that fails"
)]
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "workers here report a few outcomes only"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use hostler_engine::effect::CancelAnswer;
use hostler_engine::event::{Join, Report, Restore, RestoredAttempt, RestoredJob};
use hostler_engine::fact::Charge;
use hostler_engine::spec::{Kind, Retry, Run};
use hostler_engine::{
    Class, ClassId, ClassSpec, Config, Effect, Engine, Event, Fact, Span, Time, WallTime, When,
};
use hostler_wire::{
    Attempt, Epoch, Fence, JobId, JobState, Outcome, Priority, Reason, SessionId, WorkerId,
};
use proptest::prelude::*;

const BEAT: Span = Span::from_secs(2);
const GRACE: Span = Span::from_secs(30);
const PREFETCH_MAX: u32 = 3;
const NAMES: [&str; 3] = ["w0", "w1", "w2"];

// What can be done to the engine.

#[derive(Clone, Debug)]
enum Op {
    Submit {
        class: usize,
        count: u32,
        priority: i8,
        limits: [u8; 3],
        resident: bool,
    },
    Start {
        worker: usize,
        pick: usize,
    },
    Finish {
        worker: usize,
        pick: usize,
        outcome: usize,
        lost: bool,
    },
    Return {
        worker: usize,
        pick: usize,
        draining: bool,
    },
    Leave {
        worker: usize,
        forgets: bool,
    },
    Join {
        worker: usize,
    },
    NewInstance {
        worker: usize,
        unseen: bool,
    },
    Beat {
        worker: usize,
    },
    Repeat {
        worker: usize,
    },
    Stale {
        worker: usize,
        pick: usize,
    },
    Cancel {
        pick: usize,
        force: bool,
    },
    Fetched,
    Commit {
        count: u64,
    },
    Pass {
        ms: u64,
        beating: bool,
    },
    Wall {
        offset_ms: i64,
    },
    Crash,
}

fn op() -> impl Strategy<Value = Op> {
    let worker = 0..NAMES.len();
    let pick = 0..8_usize;
    prop_oneof![
        8 => (0..7_usize, 1..5_u32, -1..2_i8, prop::array::uniform3(0..12_u8), prop::bool::weighted(0.7))
            .prop_map(|(class, count, priority, limits, resident)| {
                Op::Submit { class, count, priority, limits, resident }
            }),
        8 => (worker.clone(), pick.clone()).prop_map(|(worker, pick)| Op::Start { worker, pick }),
        14 => (worker.clone(), pick.clone(), 0..7_usize, prop::bool::weighted(0.1))
            .prop_map(|(worker, pick, outcome, lost)| Op::Finish { worker, pick, outcome, lost }),
        2 => (worker.clone(), pick.clone(), prop::bool::weighted(0.1))
            .prop_map(|(worker, pick, draining)| Op::Return { worker, pick, draining }),
        2 => (worker.clone(), any::<bool>())
            .prop_map(|(worker, forgets)| Op::Leave { worker, forgets }),
        7 => worker.clone().prop_map(|worker| Op::Join { worker }),
        1 => (worker.clone(), any::<bool>())
            .prop_map(|(worker, unseen)| Op::NewInstance { worker, unseen }),
        4 => worker.clone().prop_map(|worker| Op::Beat { worker }),
        2 => worker.clone().prop_map(|worker| Op::Repeat { worker }),
        3 => (worker, pick.clone()).prop_map(|(worker, pick)| Op::Stale { worker, pick }),
        4 => (pick, prop::bool::weighted(0.3)).prop_map(|(pick, force)| Op::Cancel { pick, force }),
        4 => Just(Op::Fetched),
        10 => (1..6_u64).prop_map(|count| Op::Commit { count }),
        6 => Just(Op::Commit { count: u64::MAX }),
        6 => (prop::sample::select(vec![1, 100, 1_500, 3_000, 7_000, 31_000]), any::<bool>())
            .prop_map(|(ms, beating)| Op::Pass { ms, beating }),
        1 => (-20_000..20_000_i64).prop_map(|offset_ms| Op::Wall { offset_ms }),
        1 => Just(Op::Crash),
    ]
}

fn classes() -> Vec<Arc<Class>> {
    let plain = ClassSpec {
        queue: "default".into(),
        kind: Kind::Command,
        retry: Retry::default(),
        max_losses: 1,
        timeout: None,
        grace: None,
        stall: None,
        stop_on_partition: false,
    };
    let retry = Retry {
        max_attempts: 3,
        later: Box::new([75]),
        ..Retry::default()
    };
    let retried = ClassSpec {
        retry,
        ..plain.clone()
    };
    let at_once = Retry {
        backoff: Span::ZERO,
        ..retried.retry.clone()
    };
    let specs = vec![
        plain.clone(),
        retried.clone(),
        ClassSpec {
            max_losses: 0,
            ..plain.clone()
        },
        ClassSpec {
            timeout: Some(Span::from_secs(5)),
            ..retried.clone()
        },
        ClassSpec {
            stall: None,
            stop_on_partition: true,
            grace: Some(Span::from_secs(3)),
            ..retried.clone()
        },
        ClassSpec {
            queue: "video".into(),
            ..retried.clone()
        },
        ClassSpec {
            kind: Kind::Handler,
            retry: at_once,
            ..retried
        },
    ];
    let class = |(id, spec)| {
        Arc::new(Class {
            id: ClassId::new(id),
            spec,
        })
    };
    (0..).zip(specs).map(class).collect()
}

// The tables.

#[derive(Clone, Debug)]
struct Job {
    class: usize,
    priority: i8,
    expires: Option<When>,
    deadline: Option<When>,
    attempt: u16,
    failures: u16,
    losses: u16,
    later: u16,
    ever_started: bool,
    phase: Phase,
}

#[derive(Clone, Debug, PartialEq)]
enum Phase {
    Scheduled(When, Reason),
    Queued,
    Out(Out),
    Ended(JobState, Reason),
}

#[derive(Clone, Debug, PartialEq)]
struct Out {
    fence: Fence,
    worker: WorkerId,
    started: Option<Time>,
    cancelling: Option<Reason>,
}

#[derive(Clone, Debug, Default)]
struct Table {
    jobs: BTreeMap<JobId, Job>,
    workers: BTreeMap<WorkerId, (String, u64)>,
}

impl Table {
    fn out(&self, job: JobId) -> Option<&Out> {
        match &self.jobs.get(&job)?.phase {
            Phase::Out(out) => Some(out),
            Phase::Scheduled(..) | Phase::Queued | Phase::Ended(..) => None,
        }
    }

    fn is_current(&self, fence: Fence) -> bool {
        self.out(fence.job).is_some_and(|out| out.fence == fence)
    }

    /// Folds a fact in, if it is one that may follow.
    fn apply(&mut self, fact: &Fact, epoch: Epoch) {
        match fact {
            Fact::Worker(worker) => {
                let new = self
                    .workers
                    .insert(worker.id, (worker.name.clone(), worker.instance));
                assert_eq!(new, None, "a worker's number is used once");
            }
            Fact::Assigned(assigned) => {
                for &(id, attempt) in &assigned.attempts {
                    let job = self
                        .jobs
                        .get_mut(&id)
                        .expect("only what was accepted runs (P2)");
                    assert_eq!(job.phase, Phase::Queued, "{id:?} may run");
                    assert_eq!(attempt.raw(), job.attempt + 1, "attempts are counted up");
                    job.attempt += 1;
                    let fence = Fence {
                        job: id,
                        epoch,
                        attempt,
                    };
                    let worker = assigned.worker;
                    job.phase = Phase::Out(Out {
                        fence,
                        worker,
                        started: None,
                        cancelling: None,
                    });
                }
            }
            Fact::Started(started) => {
                for fence in &started.fences {
                    let job = self.jobs.get_mut(&fence.job).unwrap();
                    job.ever_started = true;
                    let Phase::Out(out) = &mut job.phase else {
                        panic!("{fence:?} is out")
                    };
                    assert_eq!((out.fence, out.worker), (*fence, started.worker));
                    assert_eq!(out.started, None, "it starts once");
                    out.started = Some(started.at);
                }
            }
            Fact::Again(again) => {
                let out = self
                    .out(again.fence.job)
                    .expect("an attempt that is out ends");
                assert_eq!(
                    (out.fence, out.worker),
                    (again.fence, again.worker),
                    "its fence (P3)"
                );
                assert_eq!(out.cancelling, None, "a cancelling job never goes on");
                let job = self.jobs.get_mut(&again.fence.job).unwrap();
                let reason = match again.charge {
                    Charge::Return => Reason::WorkerLost,
                    Charge::Failure => {
                        job.failures += 1;
                        Reason::BackOff
                    }
                    Charge::Loss => {
                        job.losses += 1;
                        Reason::WorkerLost
                    }
                    Charge::Later => {
                        job.later += 1;
                        Reason::Later
                    }
                };
                job.ever_started |= again.started.is_some();
                job.phase = again
                    .due
                    .map_or(Phase::Queued, |due| Phase::Scheduled(due, reason));
            }
            Fact::Ended(ended) => {
                let out = self.out(ended.job).map(|out| (out.fence, out.worker));
                assert_eq!(
                    out,
                    ended.fence.zip(ended.worker),
                    "the current attempt, or none (P3)"
                );
                let job = self.jobs.get_mut(&ended.job).unwrap();
                assert!(
                    !matches!(job.phase, Phase::Ended(..)),
                    "{:?} ends once",
                    ended.job
                );
                assert!(ended.state.is_terminal());
                job.phase = Phase::Ended(ended.state, ended.reason);
            }
            Fact::Cancelling(cancelling) => {
                let job = self.jobs.get_mut(&cancelling.job).unwrap();
                let Phase::Out(out) = &mut job.phase else {
                    panic!("only what is out cancels")
                };
                assert_eq!(out.cancelling.replace(cancelling.reason), None);
            }
        }
    }
}

// The workers.

#[derive(Clone, Debug)]
struct Worker {
    instance: u64,
    session: Option<SessionId>,
    held: BTreeMap<Fence, Holds>,
    unacked: BTreeMap<u64, Report>,
    last_report: u64,
    sent: BTreeMap<u64, Fence>,
    draining: bool,
    rests_until: Time,
    joined: Time,
}

#[derive(Clone, Copy, Debug, Default)]
struct Holds {
    started: bool,
    cancelled: bool,
}

impl Worker {
    fn new(instance: u64) -> Self {
        Self {
            instance,
            session: None,
            held: BTreeMap::new(),
            unacked: BTreeMap::new(),
            last_report: 0,
            sent: BTreeMap::new(),
            draining: false,
            rests_until: Time::ZERO,
            joined: Time::ZERO,
        }
    }
}

fn slots(worker: usize) -> u32 {
    [2, 1, 3][worker]
}

fn serves(worker: usize, spec: &ClassSpec) -> bool {
    match worker {
        0 => &*spec.queue == "default",
        1 => true,
        _ => &*spec.queue == "default" && spec.kind == Kind::Handler,
    }
}

// The world.

struct World {
    engine: Engine,
    epoch: u32,
    now: Time,
    offset_ms: i64,
    classes: Vec<Arc<Class>>,
    emitted: Table,
    durable: Table,
    facts: Vec<Fact>,
    committed: u64,
    workers: Vec<Worker>,
    heard: BTreeMap<WorkerId, Time>,
    resident: BTreeSet<JobId>,
    fetching: BTreeSet<JobId>,
    recalled: Vec<(usize, Fence)>,
    run_us: BTreeMap<usize, u64>,
    fences: Vec<Fence>,
    asked: BTreeMap<u64, JobId>,
    next_job: u64,
    next_session: u64,
    next_instance: u64,
    next_ask: u64,
}

fn config(epoch: u32) -> Config {
    Config {
        epoch: Epoch::new(epoch),
        cluster: [3; 16],
        worker_grace: GRACE,
        beat: BEAT,
        kill_grace: Span::from_secs(10),
        prefetch_max: PREFETCH_MAX,
        fetch_ahead: 2,
    }
}

impl World {
    fn new() -> Self {
        let mut world = Self {
            engine: Engine::new(config(1)),
            epoch: 1,
            now: Time::from_micros(60_000_000),
            offset_ms: 0,
            classes: classes(),
            emitted: Table::default(),
            durable: Table::default(),
            facts: Vec::new(),
            committed: 0,
            workers: (1..=3).map(Worker::new).collect(),
            heard: BTreeMap::new(),
            resident: BTreeSet::new(),
            fetching: BTreeSet::new(),
            recalled: Vec::new(),
            run_us: BTreeMap::new(),
            fences: Vec::new(),
            asked: BTreeMap::new(),
            next_job: 1,
            next_session: 1,
            next_instance: 10,
            next_ask: 1,
        };
        world.event(Event::Ready);
        world
    }

    fn spec(&self, job: &Job) -> &ClassSpec {
        &self.classes[job.class].spec
    }

    fn passed(&self, when: When) -> bool {
        match when {
            When::Engine(time) => time <= self.now,
            When::Wall(wall) => {
                let now_us = i128::from(self.now.micros()) + i128::from(self.offset_ms) * 1_000;
                i128::from(wall.millis()) * 1_000 <= now_us
            }
        }
    }

    /// What has come due stays due, also when the wall clock is set back.
    fn latch(&mut self) {
        for table in [true, false] {
            let due: Vec<JobId> = (if table { &self.emitted } else { &self.durable }
                .jobs
                .iter())
            .filter(|(_, job)| matches!(job.phase, Phase::Scheduled(due, _) if self.passed(due)))
            .map(|(id, _)| *id)
            .collect();
            let table = if table {
                &mut self.emitted
            } else {
                &mut self.durable
            };
            for id in due {
                table.jobs.get_mut(&id).unwrap().phase = Phase::Queued;
            }
        }
    }

    // One event and its turn.

    fn event(&mut self, event: Event) {
        self.latch();
        let mut out = Vec::new();
        self.engine.handle(self.now, event, &mut out);
        self.engine.check();
        self.take(out);
        self.dispatch();
    }

    fn dispatch(&mut self) {
        let mut out = Vec::new();
        self.engine.dispatch(self.now, &mut out);
        self.engine.check();
        self.latch();
        let mut before = self.emitted.clone();
        let facts = self.take(out);
        // What fell due comes before what is given out.
        for fact in facts
            .iter()
            .filter(|fact| !matches!(fact, Fact::Assigned(_)))
        {
            before.apply(fact, Epoch::new(self.epoch));
        }
        self.judge_turn(&before, &facts);
        self.compare();
        self.judge_waits();
        self.answer_recalls();
    }

    fn take(&mut self, out: Vec<Effect>) -> Vec<Fact> {
        let mut facts = Vec::new();
        for effect in out {
            if let Effect::Persist(fact) = effect {
                self.emitted.apply(&fact, Epoch::new(self.epoch));
                if let Fact::Worker(worker) = &fact {
                    self.heard.insert(worker.id, self.now);
                }
                self.facts.push(fact.clone());
                facts.push(fact);
            } else {
                self.take_frame(effect);
            }
        }
        facts
    }

    fn in_session(&self, session: SessionId) -> usize {
        let at = self
            .workers
            .iter()
            .position(|worker| worker.session == Some(session));
        at.expect("nothing is sent into a session that is over")
    }

    /// What leaves must be durable.
    fn take_frame(&mut self, effect: Effect) {
        match effect {
            Effect::Persist(_) => unreachable!(),
            Effect::Fetch { jobs } => {
                for job in jobs {
                    assert!(!self.resident.contains(&job) && self.fetching.insert(job));
                }
            }
            Effect::Resumed {
                session,
                acked,
                void,
                ..
            } => {
                let at = self.in_session(session);
                self.judge_ack(at, acked);
                for fence in void {
                    assert!(
                        !self.is_held(&self.emitted, at, fence),
                        "what is current is not void"
                    );
                    let worker = &mut self.workers[at];
                    worker.held.remove(&fence);
                    worker.unacked.retain(|_, report| report.fence != fence);
                }
            }
            Effect::Refuse { session, .. } => {
                for worker in &mut self.workers {
                    if worker.session == Some(session) {
                        worker.session = None;
                    }
                }
            }
            Effect::Assign {
                session, fences, ..
            } => {
                let at = self.in_session(session);
                for fence in fences {
                    assert!(
                        self.durable.is_current(fence),
                        "{fence:?} is durable first (P2)"
                    );
                    let out = self.emitted.out(fence.job).filter(|out| out.fence == fence);
                    assert!(
                        out.is_some_and(|out| out.cancelling.is_none()),
                        "it still stands"
                    );
                    let former = self.workers[at].held.insert(fence, Holds::default());
                    assert!(former.is_none(), "{fence:?} is sent once");
                    self.fences.push(fence);
                    assert!(
                        self.resident.remove(&fence.job),
                        "its body is there to be sent"
                    );
                }
            }
            Effect::Recall { session, fences } => {
                let at = self.in_session(session);
                self.recalled
                    .extend(fences.into_iter().map(|fence| (at, fence)));
            }
            Effect::Cancel { session, fence, .. } => {
                let at = self.in_session(session);
                let out = self.durable.out(fence.job).filter(|out| out.fence == fence);
                assert!(
                    out.is_some_and(|out| out.cancelling.is_some()),
                    "the cancel is durable"
                );
                if let Some(held) = self.workers[at].held.get_mut(&fence) {
                    held.cancelled = true;
                }
            }
            // No class of the model has `stall`: how that ends is told in `rules/time_limits.rs`.
            Effect::Look { .. } => panic!("nobody asked for it"),
            Effect::Stop { session, fences } => {
                let at = self.in_session(session);
                for fence in fences {
                    assert!(
                        !self.durable.is_current(fence),
                        "what made it void is durable"
                    );
                    self.workers[at].held.remove(&fence);
                    self.workers[at]
                        .unacked
                        .retain(|_, report| report.fence != fence);
                }
            }
            Effect::Ack { session, through } => {
                let at = self.in_session(session);
                self.judge_ack(at, through);
                self.workers[at]
                    .unacked
                    .retain(|number, _| *number > through);
            }
            Effect::Answer { ask, answer } => {
                let job = self.asked.remove(&ask).expect("each ask is answered once");
                let phase = self.durable.jobs.get(&job).map(|job| job.phase.clone());
                match (answer, phase) {
                    (CancelAnswer::Cancelled, Some(Phase::Ended(state, _))) => {
                        assert_eq!(state, JobState::Cancelled);
                    }
                    (CancelAnswer::Cancelling, Some(Phase::Out(out))) => {
                        assert!(out.cancelling.is_some());
                    }
                    (CancelAnswer::Finished { state }, Some(Phase::Ended(durable, _))) => {
                        assert_eq!(state, durable);
                    }
                    (CancelAnswer::Unknown, Some(Phase::Ended(..)) | None) => {}
                    (answer, phase) => panic!("{answer:?} claims what is not durable: {phase:?}"),
                }
            }
            Effect::Finished { job, state, reason } => {
                let phase = &self.durable.jobs[&job].phase;
                assert_eq!(*phase, Phase::Ended(state, reason), "the end is durable");
            }
        }
    }

    fn judge_ack(&self, at: usize, through: u64) {
        for (_, fence) in self.workers[at].sent.range(..=through) {
            let is_open = self.is_held(&self.durable, at, *fence);
            assert!(!is_open, "{fence:?} is settled before its ack (P4)");
        }
    }

    /// Whether the attempt is its job's current one and that worker's.
    fn is_held(&self, table: &Table, at: usize, fence: Fence) -> bool {
        table.out(fence.job).is_some_and(|out| {
            let (name, instance) = &table.workers[&out.worker];
            out.fence == fence && name == NAMES[at] && *instance == self.workers[at].instance
        })
    }

    /// Everything the engine shows is what the facts say.
    fn compare(&self) {
        for (id, job) in &self.emitted.jobs {
            let view = self.engine.job(*id);
            let is_over = |table: &Table| matches!(table.jobs[id].phase, Phase::Ended(..));
            assert_eq!(
                view.is_none(),
                is_over(&self.durable),
                "{id:?} goes with its commit"
            );
            let Some(view) = view else { continue };
            let counts = (view.attempts, view.failures, view.losses);
            assert_eq!(counts, (job.attempt, job.failures, job.losses), "{id:?}");
            match &job.phase {
                Phase::Scheduled(due, reason) => {
                    assert_eq!(view.state, JobState::Scheduled);
                    assert_eq!((view.due, view.reason), (Some(*due), *reason));
                }
                Phase::Queued => assert_eq!(view.state, JobState::Queued, "{id:?}"),
                Phase::Out(out) => {
                    let is_cancelling = view.state == JobState::Cancelling;
                    assert!(is_cancelling || view.state == JobState::Running);
                    assert_eq!(is_cancelling, out.cancelling.is_some());
                    assert_eq!(view.fence, Some(out.fence));
                    assert_eq!(view.started, out.started);
                    assert_eq!(view.worker.map(|worker| worker.id), Some(out.worker));
                }
                Phase::Ended(..) => assert!(!view.state.is_terminal()),
            }
        }
    }

    // A turn's assignments, by sorting everything.

    fn at_worker(&self, id: WorkerId) -> Option<usize> {
        let (name, instance) = &self.emitted.workers[&id];
        let at = NAMES.iter().position(|known| known == name)?;
        (self.workers[at].instance == *instance).then_some(at)
    }

    fn id_of(&self, at: usize) -> Option<WorkerId> {
        let is_it = |(name, instance): &(String, u64)| {
            name == NAMES[at] && *instance == self.workers[at].instance
        };
        self.emitted
            .workers
            .iter()
            .rev()
            .find(|(_, known)| is_it(known))
            .map(|(id, _)| *id)
    }

    fn takes_work(&self, at: usize) -> bool {
        let worker = &self.workers[at];
        let heard = self.id_of(at).and_then(|id| self.heard.get(&id));
        worker.session.is_some()
            && !worker.draining
            && worker.rests_until <= self.now
            && heard.is_some_and(|heard| self.now.since(*heard) <= BEAT.times(3))
    }

    fn load(table: &Table, id: WorkerId) -> u32 {
        let outs = table
            .jobs
            .values()
            .filter(|job| matches!(&job.phase, Phase::Out(out) if out.worker == id));
        u32::try_from(outs.count()).unwrap()
    }

    fn has_free_slot(&self, table: &Table, at: usize) -> bool {
        let load = self.id_of(at).map_or(0, |id| Self::load(table, id));
        self.takes_work(at) && load < slots(at)
    }

    /// The jobs that may run, best first, each with the number of its pool.
    fn ready(&self, table: &Table) -> Vec<(JobId, usize)> {
        let mut ready: Vec<_> = table
            .jobs
            .iter()
            .filter(|(_, job)| job.phase == Phase::Queued)
            .collect();
        ready.sort_by_key(|(id, job)| (-i16::from(job.priority), **id));
        let pool = |job: &Job| {
            let spec = self.spec(job);
            usize::from(&*spec.queue == "video") * 2 + usize::from(spec.kind == Kind::Handler)
        };
        ready
            .into_iter()
            .map(|(id, job)| (*id, pool(job)))
            .collect()
    }

    fn judge_turn(&self, before: &Table, facts: &[Fact]) {
        let left = self.ready(&self.emitted);
        let rank = |id: JobId, table: &Table| (-i16::from(table.jobs[&id].priority), id);
        // Nobody idles while the first job of a pool that waits could run there.
        let mut seen = BTreeSet::new();
        for (id, pool) in &left {
            if !seen.insert(*pool) {
                continue;
            }
            let spec = self.spec(&self.emitted.jobs[id]);
            // A worker waits with the first job it could run.
            let waits = |at: usize| {
                let mut earlier = left.iter().map(|(id, _)| id);
                let first = earlier.find(|id| serves(at, self.spec(&self.emitted.jobs[id])));
                first.is_some_and(|first| first != id && !self.resident.contains(first))
            };
            let idle = (0..NAMES.len())
                .any(|at| serves(at, spec) && self.has_free_slot(&self.emitted, at) && !waits(at));
            if idle {
                assert!(
                    !self.resident.contains(id),
                    "{id:?} is ready and a fitting slot is free"
                );
                assert!(self.fetching.contains(id), "its body was asked for");
            }
        }
        let ready: BTreeMap<JobId, usize> = self.ready(before).into_iter().collect();
        for fact in facts {
            let Fact::Assigned(assigned) = fact else {
                continue;
            };
            let at = self
                .at_worker(assigned.worker)
                .expect("a worker that is there");
            let mut load = Self::load(before, assigned.worker);
            assert!(self.takes_work(at), "{} may be given work", NAMES[at]);
            for (id, _) in &assigned.attempts {
                let job = &self.emitted.jobs[id];
                let spec = self.spec(job);
                assert!(serves(at, spec) && self.resident.contains(id));
                let is_ahead = load >= slots(at);
                load += 1;
                for (other, pool) in &left {
                    let spec = self.spec(&self.emitted.jobs[other]);
                    let same_pool = ready.get(id) == Some(pool);
                    if same_pool || (!is_ahead && serves(at, spec)) {
                        let order = rank(*id, before) < rank(*other, &self.emitted);
                        assert!(order, "{id:?} went before {other:?} (P5)");
                    }
                }
                if is_ahead {
                    let free = (0..NAMES.len())
                        .any(|at| serves(at, spec) && self.has_free_slot(&self.emitted, at));
                    assert!(!free, "nothing goes ahead of a free slot (P5)");
                    assert!(spec.max_losses > 0, "at most once is never prefetched");
                    let run_us = self.run_us.get(&job.class).copied().unwrap_or(u64::MAX);
                    let covers = (u64::from(slots(at)) * 8_000 / run_us.max(1)).max(1);
                    let most = u32::try_from(covers).unwrap_or(u32::MAX).min(PREFETCH_MAX);
                    assert!(run_us < 50_000 && load - slots(at) <= most);
                }
            }
        }
    }

    /// Nothing that should have happened by now has not.
    fn judge_waits(&self) {
        for (id, job) in &self.emitted.jobs {
            let expired = !job.ever_started && job.expires.is_some_and(|when| self.passed(when));
            let late = job.deadline.is_some_and(|when| self.passed(when));
            match &job.phase {
                Phase::Scheduled(due, _) => {
                    assert!(!self.passed(*due), "{id:?} is due");
                    assert!(!expired && !late, "{id:?} is too late");
                }
                Phase::Queued => assert!(!expired && !late, "{id:?} is too late"),
                Phase::Out(out) => {
                    let heard = self.heard[&out.worker];
                    assert!(self.now.since(heard) < GRACE, "{id:?}: its worker is lost");
                    assert!(!late || out.cancelling.is_some(), "{id:?}");
                    let spec = self.spec(job);
                    let at = self.at_worker(out.worker);
                    if let (Some(at), Some(started), Some(timeout)) =
                        (at, out.started, spec.timeout)
                        && self.workers[at].session.is_some()
                    {
                        let grace = spec.grace.unwrap_or(Span::from_secs(10));
                        let end = (started + timeout + grace).max(self.workers[at].joined);
                        assert!(
                            self.now < end + BEAT.times(2) + Span::from_micros(1),
                            "overrun"
                        );
                    }
                }
                Phase::Ended(..) => {}
            }
        }
    }

    fn answer_recalls(&mut self) {
        for (at, fence) in std::mem::take(&mut self.recalled) {
            let worker = &mut self.workers[at];
            let Some(session) = worker.session else {
                continue;
            };
            if worker.held.get(&fence).is_some_and(|held| !held.started) {
                worker.held.remove(&fence);
                self.hear(at);
                self.event(Event::Returned {
                    session,
                    fences: vec![fence],
                    draining: false,
                });
            }
        }
    }

    fn hear(&mut self, at: usize) {
        if let Some(id) = self.id_of(at)
            && let Some(heard) = self.heard.get_mut(&id)
        {
            *heard = self.now;
        }
    }

    // What workers do.

    fn pick(&self, at: usize, pick: usize, started: Option<bool>) -> Option<(Fence, Holds)> {
        let held = self.workers[at].held.iter();
        let fits = |(_, held): &(&Fence, &Holds)| started.is_none_or(|s| held.started == s);
        let held: Vec<_> = held
            .filter(fits)
            .map(|(fence, held)| (*fence, *held))
            .collect();
        held.get(pick % held.len().max(1)).copied()
    }

    fn start(&mut self, at: usize, pick: usize) {
        let Some(session) = self.workers[at].session else {
            return;
        };
        let Some((fence, _)) = self.pick(at, pick, Some(false)) else {
            return;
        };
        self.workers[at].held.get_mut(&fence).unwrap().started = true;
        self.hear(at);
        self.event(Event::Started {
            session,
            fences: vec![fence],
        });
    }

    fn finish(&mut self, at: usize, pick: usize, outcome: usize, lost: bool) {
        let Some((fence, held)) = self.pick(at, pick, None) else {
            return;
        };
        let outcomes = [
            Outcome::Succeeded,
            Outcome::Succeeded,
            Outcome::Exited { code: 1 },
            Outcome::Exited { code: 75 },
            Outcome::Signalled { signal: 15 },
            Outcome::Returned,
            Outcome::SpawnFailed { errno: 2 },
        ];
        let started = held.started || outcome < 5;
        let report = Report {
            fence,
            outcome: outcomes[outcome],
            cancelled: held.cancelled && outcome != 1,
            started,
            ran: Span::from_micros(if pick == 0 { 80_000 } else { 700 }),
            detail: None,
        };
        let worker = &mut self.workers[at];
        worker.held.remove(&fence);
        worker.last_report += 1;
        let number = worker.last_report;
        worker.sent.insert(number, fence);
        worker.unacked.insert(number, report.clone());
        if lost {
            self.leave(at, false);
        } else {
            self.report(at, number, report);
        }
    }

    fn report(&mut self, at: usize, number: u64, report: Report) {
        let Some(session) = self.workers[at].session else {
            return;
        };
        self.hear(at);
        let fence = report.fence;
        let holder = self.id_of(at);
        let out = self.emitted.out(fence.job).cloned();
        let out = out.filter(|out| out.fence == fence && Some(out.worker) == holder);
        let facts = self.facts.len();
        let job = self.emitted.jobs[&fence.job].clone();
        if out.is_some() {
            let is_return = report.outcome == Outcome::Returned;
            if is_return && !report.started && !report.cancelled {
                self.workers[at].rests_until = self.now + Span::from_secs(1);
            }
            if report.started && !report.cancelled && !is_return {
                let ran = report.ran.micros();
                let mean = self
                    .run_us
                    .get(&job.class)
                    .map_or(ran, |mean| mean - mean / 8 + ran / 8);
                self.run_us.insert(job.class, mean);
            }
        }
        self.latch();
        let mut effects = Vec::new();
        let event = Event::Reported {
            session,
            first: number,
            reports: vec![report.clone()],
        };
        self.engine.handle(self.now, event, &mut effects);
        self.engine.check();
        self.take(effects);
        let told: Vec<&Fact> = self.facts[facts..].iter().collect();
        match out {
            None => assert!(
                told.is_empty(),
                "what is stale changes nothing (P3): {told:?}"
            ),
            Some(out) => self.judge_end(&job, &out, &report, &told),
        }
        self.dispatch();
    }

    /// One fact, and the one that policy and counters ask for.
    fn judge_end(&self, job: &Job, out: &Out, report: &Report, told: &[&Fact]) {
        assert_eq!(told.len(), 1, "an end is one fact: {told:?}");
        let spec = self.spec(job);
        let retry = &spec.retry;
        let is_later = report.outcome == Outcome::Exited { code: 75 } && retry.later.contains(&75);
        let failures = job.failures + 1;
        let (state, reason) = match report.outcome {
            Outcome::Succeeded => (Some(JobState::Succeeded), Reason::None),
            Outcome::Returned => (None, Reason::Returned),
            _ if is_later && job.later < 100 => (None, Reason::Later),
            outcome => {
                let reason = match outcome {
                    Outcome::Exited { .. } => Reason::ExitCode,
                    Outcome::Signalled { .. } => Reason::Signal,
                    _ => Reason::SpawnFailed,
                };
                (
                    (failures >= retry.max_attempts).then_some(JobState::Failed),
                    reason,
                )
            }
        };
        if let Some(cancelling) = out.cancelling {
            let ever_started = job.ever_started || report.started;
            let expected = match state {
                Some(state) if !report.cancelled => (state, reason),
                _ if cancelling == Reason::CancelledByUser => (JobState::Cancelled, cancelling),
                _ if ever_started => (JobState::Failed, cancelling),
                _ => (JobState::Expired, cancelling),
            };
            let Fact::Ended(ended) = told[0] else {
                panic!("it ends: {told:?}")
            };
            return assert_eq!((ended.state, ended.reason), expected);
        }
        if let Some(state) = state {
            let Fact::Ended(ended) = told[0] else {
                panic!("it ends: {told:?}")
            };
            return assert_eq!((ended.state, ended.reason), (state, reason));
        }
        let ever_started = job.ever_started || report.started;
        if !ever_started && job.expires.is_some_and(|when| self.passed(when)) {
            let Fact::Ended(ended) = told[0] else {
                panic!("it has expired: {told:?}")
            };
            return assert_eq!(ended.state, JobState::Expired);
        }
        let Fact::Again(again) = told[0] else {
            panic!("it goes on: {told:?}")
        };
        let (charge, k) = match report.outcome {
            Outcome::Returned => (Charge::Return, 0),
            _ if is_later => (Charge::Later, job.later + 1),
            _ => (Charge::Failure, failures),
        };
        assert_eq!((again.charge, again.reason), (charge, reason));
        let full = if k == 0 {
            0
        } else {
            retry.backoff.micros() << (k - 1).min(20)
        };
        let full = full.min(retry.max_backoff.micros());
        let delay = match again.due {
            None => 0,
            Some(When::Engine(due)) => due.since(self.now).micros(),
            Some(When::Wall(_)) => panic!("a back-off is a span"),
        };
        assert!(full / 2 <= delay && delay <= full, "{delay} after {k}");
    }

    fn give_back(&mut self, at: usize, pick: usize, draining: bool) {
        let Some(session) = self.workers[at].session else {
            return;
        };
        let Some((fence, _)) = self.pick(at, pick, Some(false)) else {
            return;
        };
        self.workers[at].held.remove(&fence);
        self.workers[at].draining |= draining;
        self.hear(at);
        self.event(Event::Returned {
            session,
            fences: vec![fence],
            draining,
        });
    }

    fn leave(&mut self, at: usize, forgets: bool) {
        let Some(session) = self.workers[at].session.take() else {
            return;
        };
        if forgets && let Some((fence, _)) = self.pick(at, 0, Some(false)) {
            // The frame was still on its way.
            self.workers[at].held.remove(&fence);
        }
        self.event(Event::Left { session });
    }

    fn join(&mut self, at: usize) {
        if self.workers[at].session.is_some() {
            return;
        }
        let session = SessionId::new(self.next_session);
        self.next_session += 1;
        self.hear(at);
        let worker = &mut self.workers[at];
        worker.session = Some(session);
        worker.draining = false;
        worker.rests_until = Time::ZERO;
        worker.joined = self.now;
        let reported = worker
            .unacked
            .values()
            .map(|report| (report.fence, report.started));
        let held = worker
            .held
            .iter()
            .map(|(fence, held)| (*fence, held.started));
        let join = Join {
            session,
            name: NAMES[at].into(),
            instance: worker.instance,
            slots: slots(at),
            commands: at != 2,
            queues: if at == 1 {
                vec!["video".into(), "default".into()]
            } else {
                vec!["default".into()]
            },
            labels: Vec::new(),
            held: held.chain(reported).collect(),
            last_report: worker.last_report,
        };
        self.event(Event::Joined(Box::new(join)));
        self.repeat(at);
    }

    /// Sends again what is not acknowledged.
    fn repeat(&mut self, at: usize) {
        for (number, report) in self.workers[at].unacked.clone() {
            if self.workers[at].unacked.contains_key(&number) {
                self.report(at, number, report);
            }
        }
    }

    fn new_instance(&mut self, at: usize, unseen: bool) {
        if unseen && let Some(session) = self.workers[at].session {
            // Refused while the old connection stands; it is seen to end later.
            let other = SessionId::new(self.next_session);
            self.next_session += 1;
            let mut out = Vec::new();
            let join = Join {
                session: other,
                name: NAMES[at].into(),
                instance: self.next_instance,
                slots: 1,
                commands: true,
                queues: Vec::new(),
                labels: Vec::new(),
                held: Vec::new(),
                last_report: 0,
            };
            self.engine
                .handle(self.now, Event::Joined(Box::new(join)), &mut out);
            assert!(matches!(out[..], [Effect::Refuse { session, .. }] if session == other));
            self.workers[at].session = Some(session);
        }
        self.leave(at, false);
        self.workers[at] = Worker::new(self.next_instance);
        self.next_instance += 1;
        self.join(at);
    }

    fn stale(&mut self, at: usize, pick: usize) {
        let old: Vec<Fence> = self
            .fences
            .iter()
            .copied()
            .filter(|f| !self.emitted.is_current(*f))
            .collect();
        let Some(&fence) = old.iter().rev().nth(pick % old.len().max(1)) else {
            return;
        };
        if self.workers[at].session.is_none() || self.workers[at].held.contains_key(&fence) {
            return;
        }
        let worker = &mut self.workers[at];
        worker.last_report += 1;
        let number = worker.last_report;
        worker.sent.insert(number, fence);
        let report = Report {
            fence,
            outcome: Outcome::Succeeded,
            cancelled: false,
            started: true,
            ran: Span::ZERO,
            detail: None,
        };
        worker.unacked.insert(number, report.clone());
        self.report(at, number, report);
    }

    // What the server does.

    fn moment(&self, code: u8, base_ms: u64) -> Option<When> {
        let ms = base_ms * (1 + u64::from(code % 3));
        match code {
            0..=1 => Some(When::Engine(self.now + Span::from_millis(ms))),
            2 => {
                let now_ms = i64::try_from(self.now.micros() / 1_000).unwrap() + self.offset_ms;
                let at = u64::try_from(now_ms).unwrap_or(0) + ms;
                Some(When::Wall(WallTime::from_millis(at)))
            }
            _ => None,
        }
    }

    fn submit(&mut self, class: usize, count: u32, priority: i8, limits: [u8; 3], resident: bool) {
        let first = JobId::new(self.next_job).unwrap();
        self.next_job += u64::from(count) + 1;
        let due = self
            .moment(limits[0], 1_000)
            .filter(|due| !self.passed(*due));
        let expires = self.moment(limits[1], 3_000);
        let deadline = self.moment(limits[2], 9_000);
        for n in 0..count.into() {
            let phase = due.map_or(Phase::Queued, |due| Phase::Scheduled(due, Reason::Delayed));
            let job = Job {
                class,
                priority,
                expires,
                deadline,
                attempt: 0,
                failures: 0,
                losses: 0,
                later: 0,
                ever_started: false,
                phase,
            };
            self.emitted.jobs.insert(first.plus(n), job.clone());
            self.durable.jobs.insert(first.plus(n), job);
            if resident {
                self.resident.insert(first.plus(n));
            }
        }
        let class = self.classes[class].clone();
        let priority = Priority::new(priority);
        self.event(Event::Submitted(Run {
            first,
            count,
            priority,
            class,
            due,
            expires,
            deadline,
            resident,
        }));
    }

    fn cancel(&mut self, pick: usize, force: bool) {
        let Some(last) = self.next_job.checked_sub(1 + pick as u64) else {
            return;
        };
        let Some(job) = JobId::new(last) else { return };
        let ask = self.next_ask;
        self.next_ask += 1;
        self.asked.insert(ask, job);
        self.event(Event::Cancel {
            ask,
            job,
            force,
            note: None,
        });
    }

    fn commit(&mut self, count: u64) {
        let through = self
            .committed
            .saturating_add(count)
            .min(self.facts.len() as u64);
        let (from, to) = (self.committed, through);
        let range = usize::try_from(from).unwrap()..usize::try_from(to).unwrap();
        self.latch();
        for fact in &self.facts[range] {
            self.durable.apply_late(fact, Epoch::new(self.epoch));
        }
        self.committed = through;
        self.event(Event::Committed { through });
    }

    fn fetched(&mut self) {
        let jobs: Vec<JobId> = std::mem::take(&mut self.fetching).into_iter().collect();
        self.resident.extend(&jobs);
        self.event(Event::Fetched { jobs });
    }

    fn pass(&mut self, ms: u64, beating: bool) {
        let end = self.now + Span::from_millis(ms);
        while self.now < end {
            let beat = self.now + Span::from_millis(1_500);
            let alarm = self.engine.next_deadline().unwrap_or(end).max(self.now);
            let next = alarm.min(end).min(if beating { beat } else { end });
            let next = if next == self.now {
                next + Span::from_micros(1)
            } else {
                next
            };
            self.now = next.min(end);
            if self
                .engine
                .next_deadline()
                .is_some_and(|due| due <= self.now)
            {
                self.event(Event::Tick);
            }
            if beating && self.now == beat {
                (0..NAMES.len()).for_each(|at| self.beat(at));
            }
        }
    }

    fn beat(&mut self, at: usize) {
        if let Some(session) = self.workers[at].session {
            self.hear(at);
            self.event(Event::Heard {
                session,
                assign_seq: u64::MAX,
            });
        }
    }

    /// kill -9, and a start from what is durable.
    fn crash(&mut self) {
        self.epoch += 1;
        self.engine = Engine::new(config(self.epoch));
        self.facts.clear();
        self.committed = 0;
        self.emitted = self.durable.clone();
        self.resident.clear();
        self.fetching.clear();
        self.recalled.clear();
        self.run_us.clear();
        self.asked.clear();
        for worker in &mut self.workers {
            worker.session = None;
        }
        let offset_ms = self.offset_ms;
        self.restore(Event::Wall { offset_ms });
        let busy: BTreeSet<WorkerId> = self
            .durable
            .jobs
            .values()
            .filter_map(out_of)
            .map(|out| out.worker)
            .collect();
        let next = self
            .durable
            .workers
            .keys()
            .last()
            .map_or(1, |id| id.raw() + 1);
        for (id, (name, instance)) in self.durable.workers.clone() {
            if busy.contains(&id) {
                self.restore(Event::Restore(Restore::Worker { id, name, instance }));
            }
        }
        self.restore(Event::Restore(Restore::Workers {
            next: WorkerId::new(next),
        }));
        for (id, job) in self.durable.jobs.clone() {
            self.restore_job(id, &job);
        }
        for id in self.durable.workers.keys() {
            self.heard.insert(*id, self.now);
        }
        self.event(Event::Ready);
    }

    fn restore(&mut self, event: Event) {
        let mut out = Vec::new();
        self.engine.handle(self.now, event, &mut out);
        self.engine.check();
        self.take(out);
    }

    fn restore_job(&mut self, id: JobId, job: &Job) {
        if matches!(job.phase, Phase::Ended(..)) {
            return;
        }
        let class = self.classes[job.class].clone();
        let (expires, deadline) = (job.expires, job.deadline);
        let priority = Priority::new(job.priority);
        let due = match job.phase {
            Phase::Scheduled(due, reason) => Some((due, reason)),
            Phase::Queued | Phase::Out(_) | Phase::Ended(..) => None,
        };
        let Some(attempt) = Attempt::new(job.attempt) else {
            let due = due.map(|(due, _)| due);
            let run = Run {
                first: id,
                count: 1,
                priority,
                class,
                due,
                expires,
                deadline,
                resident: false,
            };
            return self.restore(Event::Restore(Restore::Run(run)));
        };
        let out = out_of(job);
        let running = out.map(|out| RestoredAttempt {
            fence: out.fence,
            worker: out.worker,
            started: out.started,
        });
        let past = RestoredJob {
            id,
            class,
            priority,
            expires,
            deadline,
            attempt,
            failures: job.failures,
            losses: job.losses,
            later: job.later,
            ever_started: job.ever_started,
            running,
            due,
            cancelling: out.and_then(|out| out.cancelling),
        };
        self.restore(Event::Restore(Restore::Job(Box::new(past))));
    }

    fn act(&mut self, op: Op) {
        match op {
            Op::Submit {
                class,
                count,
                priority,
                limits,
                resident,
            } => {
                self.submit(class, count, priority, limits, resident);
            }
            Op::Start { worker, pick } => self.start(worker, pick),
            Op::Finish {
                worker,
                pick,
                outcome,
                lost,
            } => self.finish(worker, pick, outcome, lost),
            Op::Return {
                worker,
                pick,
                draining,
            } => self.give_back(worker, pick, draining),
            Op::Leave { worker, forgets } => self.leave(worker, forgets),
            Op::Join { worker } => self.join(worker),
            Op::NewInstance { worker, unseen } => self.new_instance(worker, unseen),
            Op::Beat { worker } => self.beat(worker),
            Op::Repeat { worker } => self.repeat(worker),
            Op::Stale { worker, pick } => self.stale(worker, pick),
            Op::Cancel { pick, force } => self.cancel(pick, force),
            Op::Fetched => self.fetched(),
            Op::Commit { count } => self.commit(count),
            Op::Pass { ms, beating } => self.pass(ms, beating),
            Op::Wall { offset_ms } => {
                self.offset_ms = offset_ms;
                self.event(Event::Wall { offset_ms });
            }
            Op::Crash => self.crash(),
        }
    }

    /// Lets everything run in peace: each job must end, and be forgotten once that is durable.
    fn drain(&mut self) {
        for _ in 0..1_000 {
            self.commit(u64::MAX);
            if self.engine.counts() == Default::default() {
                assert!(self.asked.is_empty(), "every ask is answered");
                let unacked = self
                    .workers
                    .iter()
                    .filter(|worker| worker.session.is_some());
                assert!(unacked.into_iter().all(|worker| worker.unacked.is_empty()));
                return;
            }
            for at in 0..NAMES.len() {
                if self.workers[at].draining {
                    self.leave(at, false);
                }
                self.join(at);
                self.fetched();
                self.beat(at);
                while !self.workers[at].held.is_empty() {
                    self.start(at, 0);
                    self.finish(at, 0, 0, false);
                    self.commit(u64::MAX);
                }
            }
            self.pass(1_500, true);
        }
        panic!("jobs are stuck: {:?}", self.engine.counts());
    }
}

impl Table {
    /// As `apply`, on durable facts: a due moment may have come before the fact that follows it was durable.
    fn apply_late(&mut self, fact: &Fact, epoch: Epoch) {
        if let Fact::Assigned(assigned) = fact {
            for (id, _) in &assigned.attempts {
                let job = self.jobs.get_mut(id).unwrap();
                if matches!(job.phase, Phase::Scheduled(..)) {
                    job.phase = Phase::Queued;
                }
            }
        }
        self.apply(fact, epoch);
    }
}

fn out_of(job: &Job) -> Option<&Out> {
    match &job.phase {
        Phase::Out(out) => Some(out),
        _ => None,
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        max_shrink_iters: 4_000,
        ..ProptestConfig::default()
    })]

    #[test]
    fn the_engine_agrees_with_something_slow_and_obvious(
        ops in prop::collection::vec(op(), 1..150),
    ) {
        let mut world = World::new();
        for op in ops {
            world.act(op);
        }
        world.drain();
    }
}
