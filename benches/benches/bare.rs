//! The bare engine: the loop of the dispatch thread without threads, disk and network. What is assigned ends at once, what
//! is to be durable is. So what is measured is the deciding alone.

use std::collections::VecDeque;
use std::sync::Arc;

use hostler_engine::event::{Join, Report};
use hostler_engine::spec::{Kind, Retry, Run};
use hostler_engine::{
    Class, ClassId, ClassSpec, Config, Effect, Effects, Engine, Event, Span, Time,
};
use hostler_wire::{Epoch, Fence, JobId, Outcome, Priority, SessionId};

/// Jobs a request, and so a run: they come one after another, alike.
const RUN: u32 = 100;

/// An engine and its surroundings.
pub(crate) struct Bare {
    engine: Engine,
    now: u64,
    class: Arc<Class>,
    next_job: u64,
    facts: u64,
    committed: u64,
    effects: Effects,
    /// By session number: the number of its last report.
    reported: Vec<u64>,
    /// Assigned and not ended.
    out: VecDeque<(SessionId, Fence)>,
    /// Jobs that ended.
    pub(crate) ended: u64,
}

impl Bare {
    /// With so many workers of one slot each, all of them free.
    pub(crate) fn new(workers: u32, prefetch_max: u32) -> Self {
        let spec = ClassSpec {
            queue: "default".into(),
            kind: Kind::Handler,
            retry: Retry::default(),
            max_losses: 3,
            timeout: None,
            grace: None,
            stall: None,
            stop_on_partition: false,
        };
        let config = Config {
            epoch: Epoch::new(1),
            cluster: [7; 16],
            worker_grace: Span::from_secs(30),
            beat: Span::from_secs(2),
            kill_grace: Span::from_secs(10),
            prefetch_max,
            fetch_ahead: 4_096,
        };
        let mut bare = Self {
            engine: Engine::new(config),
            now: 1_000_000,
            class: Arc::new(Class {
                id: ClassId::new(1),
                spec,
            }),
            next_job: 1,
            facts: 0,
            committed: 0,
            effects: Effects::new(),
            reported: vec![0; workers as usize + 1],
            out: VecDeque::new(),
            ended: 0,
        };
        bare.handle(Event::Wall {
            offset_ms: 1_000_000,
        });
        bare.handle(Event::Ready);
        for worker in 1..=u64::from(workers) {
            bare.handle(Event::Joined(Box::new(Join {
                session: SessionId::new(worker),
                name: format!("w{worker}"),
                instance: 1,
                slots: 1,
                commands: true,
                queues: vec!["default".into()],
                labels: Vec::new(),
                held: Vec::new(),
                last_report: 0,
            })));
        }
        bare.turn();
        bare
    }

    /// More jobs, of three priorities in turn.
    pub(crate) fn submit(&mut self, jobs: u64) {
        let mut left = jobs;
        let mut priorities = [0i8, 10, -10].into_iter().cycle();
        while left > 0 {
            let count = left.min(u64::from(RUN));
            left -= count;
            let run = Run {
                first: JobId::new(self.next_job).expect("ids begin at one"),
                count: u32::try_from(count).expect("a run is short"),
                priority: Priority::new(priorities.next().expect("it has no end")),
                class: Arc::clone(&self.class),
                due: None,
                expires: None,
                deadline: None,
                resident: true,
            };
            self.next_job += count;
            self.handle(Event::Submitted(run));
        }
    }

    /// Jobs end, `at_once` of them in each turn, until so many have; their slots are filled again.
    pub(crate) fn run(&mut self, jobs: u64, at_once: usize) {
        let until = self.ended + jobs;
        while self.ended < until {
            assert!(!self.out.is_empty(), "nothing runs, {} ended", self.ended);
            let most = usize::try_from(until - self.ended).unwrap_or(usize::MAX);
            for _ in 0..at_once.min(self.out.len()).min(most) {
                self.end_one();
            }
            self.turn();
        }
    }

    fn end_one(&mut self) {
        let (session, fence) = self.out.pop_front().expect("something runs");
        let number = &mut self.reported[usize::try_from(session.raw()).expect("few workers")];
        *number += 1;
        let first = *number;
        self.ended += 1;
        self.handle(Event::Reported {
            session,
            first,
            reports: vec![Report {
                fence,
                outcome: Outcome::Succeeded,
                cancelled: false,
                started: true,
                ran: Span::from_micros(1),
                detail: None,
            }],
        });
    }

    /// The end of a turn, and the commits that follow from it.
    pub(crate) fn turn(&mut self) {
        self.engine
            .dispatch(Time::from_micros(self.now), &mut self.effects);
        self.take();
        while self.committed < self.facts {
            self.committed = self.facts;
            self.handle(Event::Committed {
                through: self.facts,
            });
        }
    }

    fn handle(&mut self, event: Event) {
        self.now += 1;
        self.engine
            .handle(Time::from_micros(self.now), event, &mut self.effects);
        self.take();
    }

    fn take(&mut self) {
        for effect in self.effects.drain(..) {
            if let Effect::Persist(_) = effect {
                self.facts += 1;
            } else if let Effect::Assign {
                session, fences, ..
            } = effect
            {
                let given = fences.into_iter().map(|fence| (session, fence));
                self.out.extend(given);
            }
        }
    }
}
