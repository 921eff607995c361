//! The driver: a real engine in virtual time, jobs and workers by name, effects as sentences.
//!
//! Each step is one turn. Facts are committed at once unless `slow_disk` is set. While time passes, connected workers beat,
//! unless they are silent or deaf. An effect that nobody reads fails the test.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use hostler_engine::effect::{CancelAnswer, Refusal};
use hostler_engine::event::{Join, Report, Restore, RestoredJob};
use hostler_engine::fact::Charge;
use hostler_engine::spec::{Kind, Retry, Run};
use hostler_engine::{
    Class, ClassId, ClassSpec, Config, Effect, Engine, Event, Fact, JobView, Span, Time, When,
};
use hostler_wire::{
    Attempt, Detail, Epoch, Fence, JobId, JobState, Outcome, Priority, Reason, SessionId, WorkerId,
};

pub(crate) const BEAT_MS: u64 = 2_000;
pub(crate) const GRACE_MS: u64 = 30_000;
pub(crate) const EXIT_1: Outcome = Outcome::Exited { code: 1 };
pub(crate) const OK: Outcome = Outcome::Succeeded;

/// A job to be.
#[derive(Clone, Debug)]
pub(crate) struct NewJob {
    pub(crate) spec: ClassSpec,
    pub(crate) priority: i8,
    pub(crate) due: Option<When>,
    pub(crate) expires: Option<When>,
    pub(crate) deadline: Option<When>,
    pub(crate) resident: bool,
}

/// A worker to be.
#[derive(Clone, Debug)]
pub(crate) struct NewWorker {
    pub(crate) slots: u32,
    pub(crate) instance: u64,
    pub(crate) commands: bool,
    pub(crate) queues: Vec<String>,
    pub(crate) held: Vec<(Fence, bool)>,
}

pub(crate) fn slots(slots: u32) -> NewWorker {
    NewWorker {
        slots,
        instance: 1,
        commands: true,
        queues: vec!["default".into()],
        held: Vec::new(),
    }
}

#[derive(Debug)]
pub(crate) struct Trial {
    pub(crate) engine: Engine,
    pub(crate) now: Time,
    jobs: BTreeMap<String, JobId>,
    classes: Vec<ClassSpec>,
    sessions: BTreeMap<String, SessionId>,
    names: BTreeMap<SessionId, String>,
    workers: BTreeMap<WorkerId, String>,
    seqs: BTreeMap<SessionId, u64>,
    reports: BTreeMap<String, u64>,
    pub(crate) silent: BTreeSet<String>,
    pub(crate) deaf: BTreeSet<String>,
    pub(crate) slow_disk: bool,
    pub(crate) facts: Vec<Fact>,
    committed: u64,
    /// Jobs whose bodies left with an assignment; a quick reader brings them back without a word.
    sent: BTreeSet<JobId>,
    fetched: Vec<JobId>,
    effects: VecDeque<String>,
    /// Apart, since their order among the others says nothing.
    acks: VecDeque<String>,
    next_job: u64,
    next_session: u64,
    next_ask: u64,
    next_beat: Time,
}

pub(crate) fn config() -> Config {
    Config {
        epoch: Epoch::new(1),
        cluster: [7; 16],
        worker_grace: Span::from_millis(GRACE_MS),
        beat: Span::from_millis(BEAT_MS),
        kill_grace: Span::from_secs(10),
        prefetch_max: 64,
        fetch_ahead: 4,
    }
}

pub(crate) fn spec() -> ClassSpec {
    ClassSpec {
        queue: "default".into(),
        kind: Kind::Command,
        retry: Retry::default(),
        max_losses: 3,
        timeout: None,
        grace: None,
        stall: None,
        stop_on_partition: false,
    }
}

impl Trial {
    pub(crate) fn new() -> Self {
        Self::with(config())
    }

    pub(crate) fn with(config: Config) -> Self {
        let mut t = Self::restoring(config);
        t.event(Event::Ready);
        t
    }

    /// Before *ready*: for tests of recovery.
    pub(crate) fn restoring(config: Config) -> Self {
        let mut t = Self {
            engine: Engine::new(config),
            now: Time::from_micros(1_000_000),
            jobs: BTreeMap::new(),
            classes: Vec::new(),
            sessions: BTreeMap::new(),
            names: BTreeMap::new(),
            workers: BTreeMap::new(),
            seqs: BTreeMap::new(),
            reports: BTreeMap::new(),
            silent: BTreeSet::new(),
            deaf: BTreeSet::new(),
            slow_disk: false,
            facts: Vec::new(),
            committed: 0,
            sent: BTreeSet::new(),
            fetched: Vec::new(),
            effects: VecDeque::new(),
            acks: VecDeque::new(),
            next_job: 1,
            next_session: 1,
            next_ask: 1,
            next_beat: Time::from_micros(1_000_000),
        };
        t.event(Event::Wall {
            offset_ms: 1_000_000,
        });
        t
    }

    // What happens.

    pub(crate) fn event(&mut self, event: Event) -> &mut Self {
        let mut out = Vec::new();
        self.engine.handle(self.now, event, &mut out);
        self.engine.check();
        self.take(&mut out);
        self.turn();
        self
    }

    /// The end of a turn, and with a quick disk the commits and turns that follow from it.
    fn turn(&mut self) {
        loop {
            let mut out = Vec::new();
            self.engine.dispatch(self.now, &mut out);
            self.engine.check();
            self.take(&mut out);
            let fetched = std::mem::take(&mut self.fetched);
            if !fetched.is_empty() {
                let mut out = Vec::new();
                let event = Event::Fetched { jobs: fetched };
                self.engine.handle(self.now, event, &mut out);
                self.take(&mut out);
                continue;
            }
            let through = self.facts.len() as u64;
            if self.slow_disk || self.committed == through {
                return;
            }
            self.commit_through(through);
        }
    }

    fn commit_through(&mut self, through: u64) {
        let mut out = Vec::new();
        self.committed = through;
        self.engine
            .handle(self.now, Event::Committed { through }, &mut out);
        self.engine.check();
        self.take(&mut out);
    }

    /// All facts so far become durable.
    pub(crate) fn commit(&mut self) -> &mut Self {
        self.commit_through(self.facts.len() as u64);
        self.turn();
        self
    }

    /// The oldest that are not, so many, become durable.
    pub(crate) fn commit_some(&mut self, count: u64) -> &mut Self {
        self.commit_through(self.committed + count);
        self.turn();
        self
    }

    pub(crate) fn submit(&mut self, names: &str) -> &mut Self {
        self.submit_with(names, |_| {})
    }

    /// Submits jobs, a batch of one run.
    pub(crate) fn submit_with(
        &mut self,
        names: &str,
        change: impl FnOnce(&mut NewJob),
    ) -> &mut Self {
        let run = self.run(names, change);
        self.event(Event::Submitted(run))
    }

    pub(crate) fn run(&mut self, names: &str, change: impl FnOnce(&mut NewJob)) -> Run {
        let mut job = NewJob {
            spec: spec(),
            priority: 0,
            due: None,
            expires: None,
            deadline: None,
            resident: true,
        };
        change(&mut job);
        let first = self.next_job;
        for name in names.split(' ') {
            self.jobs
                .insert(name.into(), JobId::new(self.next_job).unwrap());
            self.next_job += 1;
        }
        Run {
            first: JobId::new(first).unwrap(),
            count: u32::try_from(self.next_job - first).unwrap(),
            priority: Priority::new(job.priority),
            class: self.class(job.spec),
            due: job.due,
            expires: job.expires,
            deadline: job.deadline,
            resident: job.resident,
        }
    }

    pub(crate) fn class(&mut self, spec: ClassSpec) -> Arc<Class> {
        let at = self
            .classes
            .iter()
            .position(|known| *known == spec)
            .unwrap_or_else(|| {
                self.classes.push(spec.clone());
                self.classes.len() - 1
            });
        Arc::new(Class {
            id: ClassId::new(u32::try_from(at).unwrap()),
            spec,
        })
    }

    /// A worker joins and is welcome, with nothing to clear up.
    pub(crate) fn worker(&mut self, name: &str, worker: NewWorker) -> &mut Self {
        self.joins(name, worker);
        self.expect(&format!("resume {name} acked 0"))
    }

    pub(crate) fn joins(&mut self, name: &str, worker: NewWorker) -> &mut Self {
        let session = self.opens();
        self.joins_in(session, name, worker)
    }

    /// A connection is accepted; its login may be long in coming.
    pub(crate) fn opens(&mut self) -> SessionId {
        self.next_session += 1;
        SessionId::new(self.next_session - 1)
    }

    pub(crate) fn joins_in(
        &mut self,
        session: SessionId,
        name: &str,
        worker: NewWorker,
    ) -> &mut Self {
        self.names.insert(session, name.into());
        let former = self.sessions.insert(name.into(), session);
        self.event(Event::Joined(Box::new(Join {
            session,
            name: name.into(),
            instance: worker.instance,
            slots: worker.slots,
            commands: worker.commands,
            queues: worker.queues,
            labels: Vec::new(),
            held: worker.held,
            last_report: self.reports.get(name).copied().unwrap_or(0),
        })));
        let in_use = format!("refuse {name}: name in use");
        let overtaken = former.is_some_and(|former| session < former);
        if overtaken || self.effects.contains(&in_use) {
            self.sessions.insert(name.into(), former.unwrap());
        }
        self
    }

    pub(crate) fn leaves(&mut self, name: &str) -> &mut Self {
        let session = self.sessions[name];
        self.event(Event::Left { session })
    }

    pub(crate) fn starts(&mut self, job: &str) -> &mut Self {
        let (session, fence) = (self.holder(job), self.fence(job));
        self.event(Event::Started {
            session,
            fences: vec![fence],
        })
    }

    /// The job's current attempt ends on its worker, after having started.
    pub(crate) fn ends(&mut self, job: &str, outcome: Outcome) -> &mut Self {
        self.reports(job, |report| report.outcome = outcome)
    }

    pub(crate) fn reports(&mut self, job: &str, change: impl FnOnce(&mut Report)) -> &mut Self {
        let (session, fence) = (self.holder(job), self.fence(job));
        let name = self.names[&session].clone();
        self.reports_fence(&name, fence, change)
    }

    pub(crate) fn reports_fence(
        &mut self,
        worker: &str,
        fence: Fence,
        change: impl FnOnce(&mut Report),
    ) -> &mut Self {
        let number = self.reports.entry(worker.into()).or_default();
        *number += 1;
        let number = *number;
        self.reports_as(worker, number, fence, change)
    }

    /// With a number of its own: for repeats.
    pub(crate) fn reports_as(
        &mut self,
        worker: &str,
        number: u64,
        fence: Fence,
        change: impl FnOnce(&mut Report),
    ) -> &mut Self {
        let mut report = Report {
            fence,
            outcome: OK,
            cancelled: false,
            started: true,
            ran: Span::from_millis(100),
            detail: None,
        };
        change(&mut report);
        let session = self.sessions[worker];
        self.event(Event::Reported {
            session,
            first: number,
            reports: vec![report],
        })
    }

    pub(crate) fn returns(&mut self, job: &str) -> &mut Self {
        let (session, fence) = (self.holder(job), self.fence(job));
        self.event(Event::Returned {
            session,
            fences: vec![fence],
            draining: false,
        })
    }

    pub(crate) fn drains(&mut self, worker: &str) -> &mut Self {
        let session = self.sessions[worker];
        self.event(Event::Returned {
            session,
            fences: Vec::new(),
            draining: true,
        })
    }

    pub(crate) fn cancel(&mut self, job: &str) -> &mut Self {
        self.cancel_with(job, false, None)
    }

    pub(crate) fn cancel_with(&mut self, job: &str, force: bool, note: Option<&str>) -> &mut Self {
        let job = self.jobs.get(job).copied().unwrap_or(JobId::MAX);
        let ask = self.next_ask;
        self.next_ask += 1;
        self.event(Event::Cancel {
            ask,
            job,
            force,
            note: note.map(Into::into),
        })
    }

    pub(crate) fn beats(&mut self, worker: &str) -> &mut Self {
        let session = self.sessions[worker];
        let sent = self.seqs.get(&session).copied().unwrap_or(0);
        let assign_seq = if self.deaf.contains(worker) { 0 } else { sent };
        self.event(Event::Heard {
            session,
            assign_seq,
        })
    }

    /// Time passes, and what is due happens when it is due.
    pub(crate) fn after_ms(&mut self, ms: u64) -> &mut Self {
        let end = self.now + Span::from_millis(ms);
        loop {
            let alarm = self.engine.next_deadline().unwrap_or(end);
            let next = alarm.max(self.now).min(self.next_beat);
            if next > end {
                break;
            }
            self.now = next;
            if self.engine.next_deadline().is_some_and(|due| due <= next) {
                self.event(Event::Tick);
            }
            if next == self.next_beat {
                self.next_beat = next + Span::from_millis(BEAT_MS);
                for (name, session) in self.sessions.clone() {
                    let is_connected = self
                        .engine
                        .workers()
                        .any(|worker| worker.session == Some(session));
                    if is_connected && !self.silent.contains(&name) {
                        self.beats(&name);
                    }
                }
            } else if alarm >= end {
                break;
            }
        }
        self.now = end;
        self.event(Event::Tick)
    }

    // What is expected.

    /// The next effect nobody has read yet.
    #[track_caller]
    pub(crate) fn expect(&mut self, effect: &str) -> &mut Self {
        let is_ack = effect.starts_with("ack ");
        let told = if is_ack {
            &mut self.acks
        } else {
            &mut self.effects
        };
        let next = told.pop_front();
        assert_eq!(next.as_deref(), Some(effect), "then {told:?}");
        self
    }

    #[track_caller]
    pub(crate) fn expect_nothing(&mut self) -> &mut Self {
        assert!(self.effects.is_empty(), "unexpected: {:?}", self.effects);
        assert!(self.acks.is_empty(), "unexpected: {:?}", self.acks);
        self
    }

    /// The latest fact, of those that tell of attempts and jobs.
    #[track_caller]
    pub(crate) fn expect_fact(&mut self, fact: &str) -> &mut Self {
        let facts: Vec<_> = self.facts.iter().map(|fact| self.tell_fact(fact)).collect();
        assert!(
            facts.iter().any(|told| told == fact),
            "{fact:?} is not among {facts:#?}"
        );
        self
    }

    #[track_caller]
    pub(crate) fn expect_state(&mut self, job: &str, state: JobState) -> &mut Self {
        assert_eq!(self.view(job).state, state);
        self
    }

    // What is there.

    pub(crate) fn id(&self, job: &str) -> JobId {
        self.jobs[job]
    }

    pub(crate) fn view(&self, job: &str) -> JobView<'_> {
        self.engine.job(self.jobs[job]).expect("the job is live")
    }

    pub(crate) fn is_live(&self, job: &str) -> bool {
        self.engine.job(self.jobs[job]).is_some()
    }

    pub(crate) fn fence(&self, job: &str) -> Fence {
        self.view(job).fence.expect("the job is out")
    }

    pub(crate) fn fence_of(&self, job: &str, attempt: u16) -> Fence {
        let attempt = Attempt::new(attempt).unwrap();
        Fence {
            job: self.jobs[job],
            epoch: Epoch::new(1),
            attempt,
        }
    }

    pub(crate) fn is_stocked(&self, worker: &str) -> bool {
        self.engine.is_stocked(self.session(worker))
    }

    pub(crate) fn session(&self, worker: &str) -> SessionId {
        self.sessions[worker]
    }

    pub(crate) fn in_ms(&self, ms: u64) -> Option<When> {
        Some(When::Engine(self.now + Span::from_millis(ms)))
    }

    fn holder(&self, job: &str) -> SessionId {
        let view = self.view(job);
        let worker = view.worker.as_ref().expect("the job is out");
        worker.session.expect("its worker is connected")
    }

    /// A job with a past, for recovery.
    pub(crate) fn past(&mut self, name: &str, spec: ClassSpec) -> RestoredJob {
        let id = JobId::new(self.next_job).unwrap();
        self.next_job += 1;
        self.jobs.insert(name.into(), id);
        RestoredJob {
            id,
            class: self.class(spec),
            priority: Priority::NORMAL,
            expires: None,
            deadline: None,
            attempt: Attempt::FIRST,
            failures: 0,
            losses: 0,
            later: 0,
            ever_started: false,
            running: None,
            due: None,
            cancelling: None,
        }
    }

    pub(crate) fn restore(&mut self, part: Restore) -> &mut Self {
        if let Restore::Worker { id, name, .. } = &part {
            self.workers.insert(*id, name.clone());
        }
        self.event(Event::Restore(part))
    }

    // How effects read.

    fn take(&mut self, out: &mut Vec<Effect>) {
        for effect in out.drain(..) {
            match &effect {
                Effect::Persist(fact) => {
                    if let Fact::Worker(worker) = fact {
                        self.workers.insert(worker.id, worker.name.clone());
                    }
                    self.facts.push(fact.clone());
                    continue;
                }
                Effect::Fetch { jobs } if jobs.iter().all(|job| self.sent.remove(job)) => {
                    self.fetched.extend(jobs);
                    continue;
                }
                Effect::Assign {
                    session,
                    seq,
                    fences,
                } => {
                    self.sent.extend(fences.iter().map(|fence| fence.job));
                    let former = self.seqs.insert(*session, *seq).unwrap_or(0);
                    assert_eq!(*seq, former + 1, "sequences within a session have no gaps");
                }
                Effect::Fetch { .. }
                | Effect::Resumed { .. }
                | Effect::Refuse { .. }
                | Effect::Recall { .. }
                | Effect::Cancel { .. }
                | Effect::Look { .. }
                | Effect::Stop { .. }
                | Effect::Ack { .. }
                | Effect::Answer { .. }
                | Effect::Finished { .. } => {}
            }
            let told = self.tell(&effect);
            let is_ack = matches!(effect, Effect::Ack { .. });
            if is_ack {
                &mut self.acks
            } else {
                &mut self.effects
            }
            .push_back(told);
        }
    }

    fn tell(&self, effect: &Effect) -> String {
        let on = |session: &SessionId| &self.names[session];
        match effect {
            Effect::Persist(fact) => self.tell_fact(fact),
            Effect::Fetch { jobs } => {
                let jobs: Vec<_> = jobs.iter().map(|job| self.name(*job)).collect();
                format!("fetch {}", jobs.join(" "))
            }
            Effect::Resumed {
                session,
                acked,
                void,
                ..
            } if void.is_empty() => {
                format!("resume {} acked {acked}", on(session))
            }
            Effect::Resumed {
                session,
                acked,
                void,
                ..
            } => {
                format!(
                    "resume {} acked {acked} void {}",
                    on(session),
                    self.fences(void)
                )
            }
            Effect::Refuse { session, why } => {
                let why = match why {
                    Refusal::NameInUse => "name in use",
                    Refusal::Deaf => "deaf",
                    Refusal::Stopping => "stopping",
                };
                format!("refuse {}: {why}", on(session))
            }
            Effect::Assign {
                session, fences, ..
            } => {
                format!("assign {} to {}", self.fences(fences), on(session))
            }
            Effect::Recall { session, fences } => {
                format!("recall {} from {}", self.fences(fences), on(session))
            }
            Effect::Cancel {
                session,
                fence,
                force,
            } => {
                let force = if *force { " by force" } else { "" };
                format!(
                    "cancel {} on {}{force}",
                    self.fences(&[*fence]),
                    on(session)
                )
            }
            Effect::Look { session, fence } => {
                format!("look at {} on {}", self.fences(&[*fence]), on(session))
            }
            Effect::Stop { session, fences } => {
                format!("stop {} on {}", self.fences(fences), on(session))
            }
            Effect::Ack { session, through } => format!("ack {through} to {}", on(session)),
            Effect::Answer { ask, answer } => match answer {
                CancelAnswer::Cancelled => format!("answer {ask}: cancelled"),
                CancelAnswer::Cancelling => format!("answer {ask}: cancelling"),
                CancelAnswer::Finished { state } => format!("answer {ask}: finished {state}"),
                CancelAnswer::Unknown => format!("answer {ask}: unknown"),
            },
            Effect::Finished { job, state, reason } => {
                format!("finished {} {state}{}", self.name(*job), because(*reason))
            }
        }
    }

    fn tell_fact(&self, fact: &Fact) -> String {
        match fact {
            Fact::Worker(worker) => format!("worker {}", worker.name),
            Fact::Assigned(assigned) => {
                let attempts: Vec<_> = (assigned.attempts.iter())
                    .map(|(job, attempt)| format!("{}.{attempt}", self.name(*job)))
                    .collect();
                format!(
                    "assigned {} to {}",
                    attempts.join(" "),
                    self.workers[&assigned.worker]
                )
            }
            Fact::Started(started) => format!("started {}", self.fences(&started.fences)),
            Fact::Again(again) => {
                let charge = match again.charge {
                    Charge::Return => "return",
                    Charge::Failure => "failure",
                    Charge::Loss => "loss",
                    Charge::Later => "later",
                };
                let due = match again.due {
                    None => "at once",
                    Some(When::Engine(due)) if due > again.at => "after a wait",
                    Some(_) => panic!("an attempt is followed by a span of engine time"),
                };
                let fence = self.fences(&[again.fence]);
                format!("again {fence}{}, a {charge}, {due}", because(again.reason))
            }
            Fact::Ended(ended) => {
                let by = match ended.fence {
                    Some(fence) => self.fences(&[fence]),
                    None => self.name(ended.job).to_owned(),
                };
                let words = |detail: &Detail| format!(" {:?}", detail.message);
                let words = ended.detail.as_deref().map(words).unwrap_or_default();
                format!("ended {by} {}{}{words}", ended.state, because(ended.reason))
            }
            Fact::Cancelling(c) => format!("cancelling {}{}", self.name(c.job), because(c.reason)),
        }
    }

    fn fences(&self, fences: &[Fence]) -> String {
        let told = |fence: &Fence| format!("{}.{}", self.name(fence.job), fence.attempt);
        fences.iter().map(told).collect::<Vec<_>>().join(" ")
    }

    fn name(&self, job: JobId) -> &str {
        let named = self.jobs.iter().find(|(_, id)| **id == job);
        named.expect("the engine speaks of jobs it was told of").0
    }
}

fn because(reason: Reason) -> String {
    if reason == Reason::None {
        String::new()
    } else {
        format!(" {reason}")
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            assert!(
                self.effects.is_empty(),
                "effects nobody read: {:?}",
                self.effects
            );
        }
    }
}
