//! Workers that say anything at any time to the real engine, between commits that lag, cancels and passing time: every
//! invariant holds after each event (`check`), nothing leaves before its fact is committed, and an end comes once.
//!
//! What comes from our own parts (ids, commits, bodies, session numbers) is as they would say it.

#![no_main]

use std::collections::BTreeSet;
use std::sync::Arc;

use hostler_engine::event::{Join, Report};
use hostler_engine::spec::{Kind, Retry, Rule, Run};
use hostler_engine::{
    Class, ClassId, ClassSpec, Config, Effect, Effects, Engine, Event, Fact, Span, Time, WallTime,
    When,
};
use hostler_wire::{Attempt, Epoch, Fence, JobId, Outcome, Priority, SessionId};
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
enum Op {
    Submit {
        class: u8,
        count: u8,
        priority: i8,
        due: Option<u16>,
        expires: Option<u16>,
        deadline: Option<u16>,
        on_wall: bool,
        resident: bool,
    },
    Commit(u8),
    Fetched,
    Join {
        name: u8,
        instance: u8,
        slots: u8,
        commands: bool,
        held: Vec<(Named, bool)>,
        last_report: u8,
    },
    Leave(u8),
    Alive(u8),
    Heard(u8, u8),
    Started(u8, Vec<Named>),
    Looked(Named, u16),
    Reported {
        session: u8,
        first: u16,
        reports: Vec<(Named, u8, bool, bool)>,
    },
    Returned(u8, Vec<Named>, bool),
    Cancel(u8, bool),
    Pass(u16),
    Wall(i32),
    Awoken,
    Stopping,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
struct Named {
    job: u8,
    epoch: bool,
    attempt: u8,
}

struct Trial {
    engine: Engine,
    now: Time,
    effects: Effects,
    classes: Vec<Arc<Class>>,
    next: u64,
    emitted: u64,
    committed: u64,
    /// Number of the fact that gave out each fence.
    assigned: Vec<(Fence, u64)>,
    ended: BTreeSet<JobId>,
    fetching: Vec<JobId>,
    sessions: Vec<SessionId>,
    last_session: u64,
    asks: u64,
}

fuzz_target!(|ops: Vec<Op>| {
    let engine = Engine::new(Config {
        epoch: Epoch::new(7),
        cluster: [1; 16],
        worker_grace: Span::from_secs(30),
        beat: Span::from_secs(2),
        kill_grace: Span::from_secs(10),
        prefetch_max: 3,
        fetch_ahead: 4,
    });
    let mut trial = Trial {
        engine,
        now: Time::ZERO,
        effects: Effects::new(),
        classes: classes(),
        next: 1,
        emitted: 0,
        committed: 0,
        assigned: Vec::new(),
        ended: BTreeSet::new(),
        fetching: Vec::new(),
        sessions: Vec::new(),
        last_session: 0,
        asks: 0,
    };
    trial.event(Event::Wall { offset_ms: 1_000_000 });
    trial.event(Event::Ready);
    for op in ops {
        trial.apply(op);
    }
});

impl Trial {
    fn apply(&mut self, op: Op) {
        match op {
            Op::Submit {
                class,
                count,
                priority,
                due,
                expires,
                deadline,
                on_wall,
                resident,
            } => {
                let count = u32::from(count % 5) + 1;
                let first = JobId::new(self.next).expect("few");
                self.next += u64::from(count);
                let when = |ms: Option<u16>| {
                    let ms = u64::from(ms?);
                    Some(if on_wall {
                        When::Wall(WallTime::from_millis(1_000_000 + ms))
                    } else {
                        When::Engine(self.now + Span::from_millis(ms))
                    })
                };
                let run = Run {
                    first,
                    count,
                    priority: Priority::new(priority),
                    class: Arc::clone(&self.classes[usize::from(class) % self.classes.len()]),
                    due: when(due),
                    expires: when(expires),
                    deadline: when(deadline),
                    resident,
                };
                self.event(Event::Submitted(run));
            }
            Op::Commit(count) => {
                let through = (self.committed + u64::from(count)).min(self.emitted);
                self.committed = through;
                self.event(Event::Committed { through });
            }
            Op::Fetched => {
                let jobs = std::mem::take(&mut self.fetching);
                if !jobs.is_empty() {
                    self.event(Event::Fetched { jobs });
                }
            }
            Op::Join {
                name,
                instance,
                slots,
                commands,
                held,
                last_report,
            } => {
                self.last_session += 1;
                let session = SessionId::new(self.last_session);
                self.sessions.push(session);
                let held = held
                    .into_iter()
                    .map(|(named, started)| (fence(named), started))
                    .collect();
                self.event(Event::Joined(Box::new(Join {
                    session,
                    name: format!("w{}", name % 3),
                    instance: u64::from(instance % 4),
                    slots: u32::from(slots % 4) + 1,
                    commands,
                    queues: vec!["default".into(), "video".into()],
                    labels: Vec::new(),
                    held,
                    last_report: last_report.into(),
                })));
            }
            Op::Leave(which) => {
                if let Some(session) = self.session(which) {
                    self.sessions.retain(|it| *it != session);
                    self.event(Event::Left { session });
                }
            }
            Op::Alive(which) => self.said(which, |session| Event::Alive { session }),
            Op::Heard(which, seq) => self.said(which, |session| Event::Heard {
                session,
                assign_seq: seq.into(),
            }),
            Op::Started(which, named) => self.said(which, |session| Event::Started {
                session,
                fences: fences(named),
            }),
            Op::Looked(named, ms) => self.event(Event::Looked {
                fence: fence(named),
                quiet: Span::from_millis(ms.into()),
            }),
            Op::Reported {
                session,
                first,
                reports,
            } => self.said(session, |session| Event::Reported {
                session,
                first: u64::from(first).max(1),
                reports: reports
                    .into_iter()
                    .map(|(named, how, cancelled, started)| Report {
                        fence: fence(named),
                        outcome: outcome(how),
                        cancelled,
                        started,
                        ran: Span::from_millis(how.into()),
                        detail: None,
                    })
                    .collect(),
            }),
            Op::Returned(which, named, draining) => self.said(which, |session| Event::Returned {
                session,
                fences: fences(named),
                draining,
            }),
            Op::Cancel(job, force) => {
                self.asks += 1;
                let cancel = Event::Cancel {
                    ask: self.asks,
                    job: JobId::new(u64::from(job % 24) + 1).expect("above 0"),
                    force,
                    note: None,
                };
                self.event(cancel);
            }
            Op::Pass(ms) => {
                self.now = self.now + Span::from_millis(ms.into());
                self.event(Event::Tick);
            }
            Op::Wall(by) => self.event(Event::Wall {
                offset_ms: 1_000_000 + i64::from(by),
            }),
            Op::Awoken => self.event(Event::Awoken),
            Op::Stopping => self.event(Event::Stopping),
        }
    }

    fn session(&self, which: u8) -> Option<SessionId> {
        let at = usize::from(which) % self.sessions.len().max(1);
        self.sessions.get(at).copied()
    }

    fn said(&mut self, which: u8, event: impl FnOnce(SessionId) -> Event) {
        if let Some(session) = self.session(which) {
            self.event(event(session));
        }
    }

    /// One event and its turn's end, as dispatch does it.
    fn event(&mut self, event: Event) {
        self.engine.handle(self.now, event, &mut self.effects);
        self.engine.check();
        self.engine.dispatch(self.now, &mut self.effects);
        self.engine.check();
        for effect in std::mem::take(&mut self.effects) {
            match effect {
                Effect::Persist(fact) => {
                    self.emitted += 1;
                    if let Fact::Assigned(assigned) = fact {
                        for (job, attempt) in assigned.attempts {
                            let fence = Fence { job, epoch: Epoch::new(7), attempt };
                            assert!(
                                !self.assigned.iter().any(|(old, _)| *old == fence),
                                "{fence:?} was given out twice"
                            );
                            self.assigned.push((fence, self.emitted));
                        }
                    }
                }
                Effect::Assign { fences, .. } => {
                    for fence in fences {
                        let fact = self.assigned.iter().find(|(it, _)| *it == fence);
                        assert!(
                            fact.is_some_and(|(_, number)| *number <= self.committed),
                            "{fence:?} leaves before its commit"
                        );
                    }
                }
                Effect::Finished { job, .. } => {
                    assert!(self.ended.insert(job), "{job:?} ended twice");
                }
                Effect::Fetch { jobs } => self.fetching.extend(jobs),
                // A refused one may still say what was on its way, until it leaves.
                Effect::Refuse { .. }
                | Effect::Resumed { .. }
                | Effect::Recall { .. }
                | Effect::Cancel { .. }
                | Effect::Look { .. }
                | Effect::Stop { .. }
                | Effect::Ack { .. }
                | Effect::Answer { .. } => {}
            }
        }
    }
}

fn fence(named: Named) -> Fence {
    Fence {
        job: JobId::new(u64::from(named.job % 24) + 1).expect("above 0"),
        epoch: Epoch::new(if named.epoch { 6 } else { 7 }),
        attempt: Attempt::new(u16::from(named.attempt % 4) + 1).expect("above 0"),
    }
}

fn fences(named: Vec<Named>) -> Vec<Fence> {
    named.into_iter().map(fence).collect()
}

fn outcome(how: u8) -> Outcome {
    match how % 10 {
        0 => Outcome::Exited { code: how.max(1) },
        1 => Outcome::Signalled { signal: 9 },
        2 => Outcome::OutOfMemory,
        3 => Outcome::TimedOut,
        4 => Outcome::Stalled,
        5 => Outcome::SpawnFailed { errno: 2 },
        6 => Outcome::HandlerFailed {
            fatal: how > 128,
            retry_after_ms: (how > 64).then_some(how.into()),
        },
        7 => Outcome::NoSuchHandler,
        8 => Outcome::Returned,
        _ => Outcome::Succeeded,
    }
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
    let retried = ClassSpec {
        retry: Retry {
            max_attempts: 3,
            never: Box::new([Rule::Codes(10, 20)]),
            later: Box::new([30]),
            ..Retry::default()
        },
        ..plain.clone()
    };
    let specs = vec![
        plain.clone(),
        ClassSpec {
            queue: "video".into(),
            kind: Kind::Handler,
            max_losses: 0,
            ..plain.clone()
        },
        ClassSpec {
            timeout: Some(Span::from_secs(5)),
            stall: Some(Span::from_secs(3)),
            ..retried.clone()
        },
        ClassSpec {
            stop_on_partition: true,
            ..retried
        },
    ];
    let class = |(id, spec)| Arc::new(Class { id: ClassId::new(id), spec });
    (0..).zip(specs).map(class).collect()
}
