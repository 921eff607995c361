//! What people do: submit every kind of job there is, repeat what was not answered, cancel, wait. And what jobs do once
//! they run.
//!
//! A request is answered, refused, or its fate is unknown; with a key it is then repeated until it is known. A job's
//! behaviour follows from its plan and the number of its attempt.

use std::sync::Arc;

use bytes::Bytes;
use hostler_engine::Span;
use hostler_engine::WallTime;
use hostler_engine::spec::{ClassSpec, Kind, Retry, Rule};
use hostler_server::store::seam::{Draft, Moment, NewJob, Submission};
use hostler_wire::frame::{Command, Handler, Logs, LogsMode, OnPartition, Overflow, Task, Work};
use hostler_wire::{Attempt, Outcome, Priority};

use crate::options::{MS, Options, S};
use crate::rng::{Rng, mix};

/// Queues in use. The last one is served by few.
pub(crate) const QUEUES: [&str; 3] = ["default", "video", "rare"];
/// One that nobody serves before there is peace.
pub(crate) const LATE: &str = "late";
/// A handler the worker's loop runs itself.
pub(crate) const INLINE: &str = "noop";
/// One that has a thread and listens when told to end.
pub(crate) const THREAD: &str = "sleep";

/// Jobs asked for together.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    /// Of a thousand commands, those whose output is wanted.
    prints: u64,
    /// Plans are numbered: this is the first one's.
    pub(crate) first_plan: u64,
    pub(crate) jobs: Vec<Wish>,
    pub(crate) classes: Vec<ClassSpec>,
    pub(crate) key: Option<Arc<str>>,
}

/// One job as a person wants it.
#[derive(Clone, Debug)]
pub(crate) struct Wish {
    class: u32,
    priority: i8,
    due: Option<Moment>,
    expires: Option<Moment>,
    deadline: Option<Moment>,
    sync: bool,
}

/// How an attempt behaves once it has started.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Behaviour {
    pub(crate) runs: u64,
    pub(crate) outcome: Outcome,
    /// What TERM does: the outcome, soon; or nothing.
    pub(crate) on_term: Option<Outcome>,
    /// KILL does nothing either: a handler.
    pub(crate) unkillable: bool,
    /// Never ends by itself.
    pub(crate) hangs: bool,
}

/// The people's side of a run.
#[derive(Debug)]
pub(crate) struct Workload {
    classes: Vec<ClassSpec>,
    next_plan: u64,
    next_key: u64,
    run_max: u64,
    batch_max: u64,
    seed: u64,
    prints: u64,
    print_max: u64,
}

impl Workload {
    pub(crate) fn new(options: &Options, rng: &mut Rng) -> Self {
        let classes = (0..rng.between((1, 8)))
            .map(|_| class(options.alone, rng))
            .collect();
        Self {
            classes,
            next_plan: 1,
            next_key: 1,
            run_max: options.run_max,
            batch_max: options.batch_max,
            seed: options.seed,
            prints: options.prints,
            print_max: options.print_max,
        }
    }

    /// What a process of that attempt writes, the last first: stream, bytes.
    pub(crate) fn script(&self, plan: u64, attempt: Attempt) -> Vec<(usize, u64)> {
        let mut rng = Rng::new(mix(self.seed ^ plan << 18 ^ u64::from(attempt.raw())) ^ 7);
        let steps = rng.between((1, 6));
        (0..steps)
            .map(|_| {
                let stream = usize::from(rng.chance(300));
                (stream, rng.below(self.print_max))
            })
            .collect()
    }

    /// Somebody has something to do.
    pub(crate) fn request(&mut self, wall: WallTime, durable: bool, rng: &mut Rng) -> Request {
        let count = 1 + rng.below(self.batch_max);
        let first_plan = self.next_plan;
        self.next_plan += count;
        let kinds = 1 + rng.below(2);
        let classes: Vec<_> = (0..kinds).map(|_| rng.pick(&self.classes)).collect();
        let plain = rng.chance(700);
        let like = wish(kinds, wall, plain, durable, rng);
        let uniform = rng.chance(600);
        let jobs = (0..count).map(|_| {
            if uniform {
                like.clone()
            } else {
                wish(kinds, wall, plain, durable, rng)
            }
        });
        let jobs = jobs.collect();
        let key = rng.chance(700).then(|| {
            self.next_key += 1;
            Arc::from(format!("key {}", self.next_key).as_str())
        });
        let prints = self.prints;
        Request {
            prints,
            first_plan,
            jobs,
            classes,
            key,
        }
    }

    /// Jobs wished for so far.
    pub(crate) fn planned(&self) -> u64 {
        self.next_plan - 1
    }

    /// What that attempt at the plan does.
    pub(crate) fn behaviour(&self, plan: u64, attempt: Attempt, kind: Kind) -> Behaviour {
        let mut rng = Rng::new(mix(self.seed ^ plan << 20 ^ u64::from(attempt.raw())));
        let runs = 1 + rng.below(self.run_max);
        let handler = kind == Kind::Handler;
        let outcome = match rng.below(100) {
            0..70 => Outcome::Succeeded,
            70..80 if handler => Outcome::HandlerFailed {
                fatal: rng.chance(200),
                retry_after_ms: rng.chance(300).then_some(700),
            },
            70..78 => Outcome::Exited {
                code: rng.pick(&[1, 2, 7]),
            },
            78..84 if !handler => Outcome::Exited { code: 75 },
            84..88 if !handler => Outcome::Signalled { signal: 11 },
            88..91 if !handler => Outcome::SpawnFailed { errno: 2 },
            91..92 if !handler => Outcome::OutOfMemory,
            _ => Outcome::Succeeded,
        };
        let on_term = match rng.below(10) {
            0..6 if !handler => Some(Outcome::Signalled { signal: 15 }),
            6..8 => Some(Outcome::Succeeded),
            8..9 if !handler => Some(Outcome::Exited { code: 3 }),
            _ => None,
        };
        Behaviour {
            runs,
            outcome,
            on_term,
            unkillable: handler,
            hangs: rng.chance(4),
        }
    }
}

impl Request {
    pub(crate) fn plans(&self) -> std::ops::Range<u64> {
        self.first_plan..self.first_plan + self.jobs.len() as u64
    }

    /// As the writer takes it.
    pub(crate) fn submission(&self) -> Submission {
        let drafts = self.plans().zip(&self.jobs).map(|(plan, wish)| {
            let class = &self.classes[wish.class as usize];
            Draft {
                class: wish.class,
                priority: Priority::new(wish.priority),
                name: Some(plan.to_string().into()),
                labels: None,
                due: wish.due,
                expires: wish.expires,
                deadline: wish.deadline,
                sync: wish.sync,
                retry_of: None,
                body: body(plan, class, self.prints),
            }
        });
        let jobs: Vec<Draft> = drafts.collect();
        let mut hash = [0; 32];
        hash[..8].copy_from_slice(&self.first_plan.to_le_bytes());
        Submission {
            by: "".into(),
            from: None,
            classes: self.classes.clone(),
            bytes: jobs.iter().map(|job| job.body.len()).sum(),
            jobs,
            key: self.key.as_ref().map(|key| (Arc::clone(key), hash)),
        }
    }
}

/// The plan a stored job was made of.
pub(crate) fn plan_of(new: &NewJob) -> u64 {
    let name = new.name.as_deref().expect("every plan has a name");
    name.parse().expect("its number")
}

/// The plan a worker was given.
pub(crate) fn plan_of_work(work: &Work) -> u64 {
    match &work.task {
        Task::Command(command) => command.argv[1].parse().expect("a plan's number"),
        Task::Handler(handler) => std::str::from_utf8(&handler.payload)
            .expect("digits")
            .parse()
            .expect("a plan's number"),
    }
}

fn body(plan: u64, class: &ClassSpec, prints: u64) -> Bytes {
    let task = match class.kind {
        Kind::Command => Task::Command(Command {
            argv: vec!["plan".to_owned(), plan.to_string()],
            env: Vec::new(),
            cwd: None,
            stdin: None,
        }),
        Kind::Handler => Task::Handler(Handler {
            name: if plan.is_multiple_of(3) {
                THREAD
            } else {
                INLINE
            }
            .to_owned(),
            payload: plan.to_string().into(),
        }),
    };
    let work = Work {
        timeout_ms: class.timeout.map(Span::millis),
        stall_ms: class.stall.map(Span::millis),
        grace_ms: class.grace.map(Span::millis),
        on_partition: if class.stop_on_partition {
            OnPartition::Stop
        } else {
            OnPartition::Keep
        },
        logs: logs(plan, prints),
        task,
    };
    work.encode()
}

/// What is to become of what it prints.
fn logs(plan: u64, prints: u64) -> Logs {
    let mut rng = Rng::new(mix(plan) ^ 11);
    let mode = match rng.below(1_000) {
        n if n >= prints => LogsMode::None,
        n if n < prints / 8 => LogsMode::Stream,
        _ => LogsMode::Keep,
    };
    Logs {
        mode,
        limit_bytes: rng.pick(&[4_096, 16_000, 1 << 20]),
        overflow: rng.pick(&[Overflow::Drop, Overflow::Drop, Overflow::Block]),
    }
}

fn class(alone: u64, rng: &mut Rng) -> ClassSpec {
    let kind = rng.pick(&[Kind::Command, Kind::Command, Kind::Handler]);
    let retry = Retry {
        max_attempts: rng.pick(&[1, 1, 2, 3, 5]),
        backoff: Span::from_millis(rng.pick(&[0, 50, 1_000, 5_000])),
        factor_milli: rng.pick(&[1_000, 1_500, 2_000, 4_000]),
        max_backoff: Span::from_secs(rng.pick(&[1, 20, 60])),
        on: if rng.chance(150) {
            Box::new([Rule::Codes(1, 2), Rule::Signal])
        } else {
            Box::default()
        },
        never: if rng.chance(200) {
            Box::new([Rule::Codes(7, 7), Rule::Spawn, Rule::Timeout])
        } else {
            Box::default()
        },
        later: if rng.chance(300) {
            Box::new([75])
        } else {
            Box::default()
        },
    };
    ClassSpec {
        queue: rng
            .pick(&[
                QUEUES[0], QUEUES[0], QUEUES[0], QUEUES[1], QUEUES[1], QUEUES[2], QUEUES[2], LATE,
            ])
            .into(),
        kind,
        retry,
        max_losses: rng.pick(&[0, 1, 3, 3, 3]),
        timeout: rng
            .chance(300)
            .then(|| Span::from_millis(rng.pick(&[100, 1_000, 10_000]))),
        stall: rng
            .chance(150)
            .then(|| Span::from_millis(rng.pick(&[500, 5_000]))),
        grace: rng
            .chance(300)
            .then(|| Span::from_millis(rng.pick(&[1, 500, 3_000]))),
        stop_on_partition: rng.chance(alone),
    }
}

/// `plain`: no moments, and one of two priorities, so that large runs of alike jobs happen too.
fn wish(kinds: u64, wall: WallTime, plain: bool, durable: bool, rng: &mut Rng) -> Wish {
    let class = u32::try_from(rng.below(kinds)).expect("few");
    if plain {
        return Wish {
            class,
            priority: rng.pick(&[0, 0, 0, 50]),
            due: None,
            expires: None,
            deadline: None,
            sync: durable,
        };
    }
    let mut moment = |per_mille: u64, from: u64, to: u64| {
        if !rng.chance(per_mille) {
            return None;
        }
        let us = rng.between((from, to));
        Some(if rng.chance(700) {
            Moment::In(Span::from_micros(us))
        } else {
            Moment::At(WallTime::from_millis(wall.millis() + us / MS))
        })
    };
    let due = moment(400, MS, 20 * S);
    let expires = moment(200, MS, 60 * S);
    let deadline = moment(200, MS, 90 * S);
    Wish {
        class,
        priority: rng.pick(&[-128, -1, 0, 1, 127]),
        due,
        expires,
        deadline,
        sync: durable,
    }
}
