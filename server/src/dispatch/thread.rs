//! The loop of the dispatch thread.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use hostler_engine::effect::{CancelAnswer, Effect};
use hostler_engine::engine::{JobView, WorkerView};
use hostler_engine::event::{AskId, Event};
use hostler_engine::lanes::{Step, Turn};
use hostler_engine::{Effects, Engine, Fact, Span, Time, WallTime, When};
use hostler_wire::{Epoch, Fence, JobId, JobState, Reason, SessionId};
use tokio::sync::oneshot;

use crate::clock::{Clock, Stamp};
use crate::dispatch::bodies::Bodies;
use crate::dispatch::probes::{Asker, Lives, Probes};
use crate::dispatch::translate::{self, Heard, Numbers, Outgoing, Starts};
use crate::dispatch::{Ask, Glance, JobStatus, LiveStatus, Message, WorkerStatus};
use crate::mailbox::{Receiver, Wake};
use crate::net::{self, Arrival, Post};
use crate::store::reader;
use crate::store::writer::{self, JobLanes};

/// How long starts wait for something to ride along with.
const STARTS_WAIT: Span = Span::from_millis(50);
/// Most messages, and most asks, taken in one turn: bounds the time between two looks at the clock.
const TURN_MESSAGES_MAX: usize = 1_024;
/// Most records one list ask looks at.
const LIST_SCAN_MAX: usize = 20_000;
/// A wall clock that moved less than this against ours has only been disciplined.
const WALL_STEP_MS: i64 = 100;
/// No turn for so long: the process, or the machine, stood still.
const STOOD_STILL: Span = Span::from_secs(3);
/// How often that is looked at.
const WALL_LOOK: Span = Span::from_secs(1);

/// What the thread needs.
#[derive(Debug)]
pub struct Parts {
    /// Its sleep; made for both mailboxes and the lanes.
    pub wake: Arc<Wake>,
    /// Its mailbox.
    pub messages: Receiver<Message>,
    /// And that of questions.
    pub asks: Receiver<Ask>,
    /// Jobs from the writer.
    pub lanes: JobLanes,
    /// Bytes of bodies in memory, shared with the writer.
    pub resident_bytes: Arc<AtomicUsize>,
    /// Tells the writer that a worker waits for a job, and no job for a worker.
    pub idle: Arc<AtomicBool>,
    /// Where facts go.
    pub writer: writer::Handle,
    /// Where bodies are read.
    pub reader: reader::Handle,
    /// Where frames go.
    pub net: net::Handle,
    /// The server's clock.
    pub clock: Clock,
    /// Starts of the server whose attempts may still be out.
    pub epochs: Vec<(Epoch, [u8; 16])>,
    /// How long a state answer waits for the live part.
    pub probe_timeout: Span,
}

/// Starts the thread. A panic in it ends the process: the store is the truth, and the next start recovers from it.
pub fn spawn(parts: Parts, engine: Engine) -> std::io::Result<JoinHandle<()>> {
    std::thread::Builder::new()
        .name("dispatch".into())
        .spawn(move || {
            let _abort = crate::mailbox::AbortOnPanic;
            let mut dispatch = Dispatch::new(parts, engine);
            while !dispatch.is_stopped() {
                dispatch.turn();
                dispatch.sleep();
            }
        })
}

/// The thread's work, turn by turn: the thread sleeps between two turns, the simulator lets time pass.
#[derive(Debug)]
pub struct Dispatch {
    parts: Parts,
    engine: Engine,
    effects: Effects,
    /// Empty between two turns; kept for its room.
    messages: Vec<Message>,
    out: Outgoing,
    /// Number of the last fact handed to the writer, and of the last known to be durable.
    facts_sent: u64,
    facts_committed: u64,
    /// Since when nothing but starts waits to go to the writer.
    starts_since: Option<Time>,
    /// The writer waits to hear of facts, or that there are none.
    owed: bool,
    bodies: Bodies,
    probes: Probes,
    starts: Starts,
    numbers: Numbers,
    /// What a session's worker holds of starts we never made, until it has been told to drop it.
    foreign: HashMap<SessionId, Vec<Fence>>,
    /// Sessions that spoke in this turn, and those the wire thread knows to be stocked.
    spoke: Vec<SessionId>,
    stocked: HashSet<SessionId>,
    /// Who asked for a cancel.
    cancels: HashMap<AskId, oneshot::Sender<CancelAnswer>>,
    next_ask: AskId,
    /// Who waits for an end.
    waiting: HashMap<JobId, Vec<Waiter>>,
    wall_offset_ms: i64,
    wall_looked: Time,
    /// The last turn.
    turned: Option<Time>,
    settled: Option<oneshot::Sender<()>>,
    stopped: bool,
}

type Waiter = oneshot::Sender<Option<(JobState, Reason)>>;

impl Dispatch {
    /// The engine's shell; the engine knows nothing yet.
    pub fn new(parts: Parts, engine: Engine) -> Self {
        let mut dispatch = Self {
            engine,
            effects: Effects::new(),
            messages: Vec::new(),
            out: Outgoing::default(),
            facts_sent: 0,
            facts_committed: 0,
            starts_since: None,
            owed: false,
            bodies: Bodies::new(Arc::clone(&parts.resident_bytes)),
            probes: Probes::new(parts.probe_timeout),
            starts: Starts::new(&parts.epochs),
            numbers: Numbers::default(),
            foreign: HashMap::new(),
            spoke: Vec::new(),
            stocked: HashSet::new(),
            cancels: HashMap::new(),
            next_ask: 1,
            waiting: HashMap::new(),
            wall_offset_ms: 0,
            wall_looked: Time::ZERO,
            turned: None,
            settled: None,
            stopped: false,
            parts,
        };
        let now = dispatch.parts.clock.now();
        dispatch.look_at_wall(now);
        dispatch
    }

    /// One turn, in the order `engine::lanes` says.
    pub fn turn(&mut self) {
        let mut asks = Vec::new();
        self.parts.asks.drain(&mut asks, TURN_MESSAGES_MAX);
        let mut turn = Turn::new(asks);
        let mut messages = std::mem::take(&mut self.messages);
        self.parts.messages.drain(&mut messages, TURN_MESSAGES_MAX);
        let now = self.parts.clock.now();
        // A turn comes each second at the latest; one that comes much later comes after all of us stood still.
        if self
            .turned
            .is_some_and(|turned| turned + STOOD_STILL <= now)
        {
            tracing::warn!("this process stood still; the grace of workers begins anew");
            self.engine.handle(now, Event::Awoken, &mut self.effects);
        }
        self.turned = Some(now);
        if self.wall_looked + WALL_LOOK <= now {
            self.look_at_wall(now);
        }
        for message in messages.drain(..) {
            self.on_message(now, message);
        }
        self.messages = messages;
        self.take_stock();
        while let Some(step) = turn.next(&self.parts.lanes) {
            match step {
                Step::Entry(arrival) => self.arrive(now, arrival),
                Step::Ask(ask) => self.on_ask(now, ask),
            }
        }
        if self.engine.next_deadline().is_some_and(|due| due <= now) {
            self.engine.handle(now, Event::Tick, &mut self.effects);
        }
        self.probes.expire(now);
        self.engine.dispatch(now, &mut self.effects);
        self.parts
            .idle
            .store(self.engine.is_idle(), Ordering::Relaxed);
        self.route(now);
        self.settle();
    }

    /// It was told to end.
    pub fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// The engine, to look at.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Tells the wire thread of workers that have so much work ahead that they can be listened to less often: each time we
    /// hear of one short job, three threads wake and the disk is written to. Asked before they get more, so that whoever
    /// has used up what it had is heard at once again.
    fn take_stock(&mut self) {
        for session in self.spoke.drain(..) {
            let stocked = self.engine.is_stocked(session);
            let news = Post::Stocked { session, stocked };
            if stocked && self.stocked.insert(session) {
                self.parts.net.push(news);
            } else if !stocked && self.stocked.remove(&session) {
                self.parts.net.post(news);
            }
        }
    }

    fn arrive(&mut self, now: Time, arrival: writer::Arrival) {
        let writer::Arrival { run, bodies } = arrival;
        if run.resident {
            self.bodies.arrive(run.first, bodies);
        }
        self.engine
            .handle(now, Event::Submitted(run), &mut self.effects);
    }

    fn sleep(&self) {
        if self.stopped {
            return;
        }
        let deadline = self.next_turn();
        let timeout = Duration::from_micros(deadline.since(self.parts.clock.now()).micros());
        self.parts
            .wake
            .sleep(Some(timeout), || !self.has_something());
    }

    /// Whether something has come since the last turn.
    pub fn has_something(&self) -> bool {
        !(self.parts.messages.is_empty()
            && self.parts.asks.is_empty()
            && self.parts.lanes.is_empty())
    }

    /// When a turn is due if nothing comes.
    pub fn next_turn(&self) -> Time {
        let starts = self.starts_since.map(|since| since + STARTS_WAIT);
        let deadline = [
            self.engine.next_deadline(),
            self.probes.next_deadline(),
            starts,
        ]
        .into_iter()
        .flatten()
        .min();
        // The wall clock is looked at once a second anyway.
        let look = self.wall_looked + WALL_LOOK;
        deadline.map_or(look, |deadline| deadline.min(look))
    }

    fn look_at_wall(&mut self, now: Time) {
        let offset_ms = self.parts.clock.wall_offset_ms();
        if self.wall_looked == Time::ZERO || (offset_ms - self.wall_offset_ms).abs() >= WALL_STEP_MS
        {
            self.wall_offset_ms = offset_ms;
            self.engine
                .handle(now, Event::Wall { offset_ms }, &mut self.effects);
        }
        self.wall_looked = now;
    }

    fn on_message(&mut self, now: Time, message: Message) {
        let event = match message {
            Message::Restored(parts) => {
                for part in parts {
                    self.engine
                        .handle(now, Event::Restore(part), &mut self.effects);
                }
                return;
            }
            Message::Ready => Event::Ready,
            Message::Committed { through } => {
                self.facts_committed = through;
                Event::Committed { through }
            }
            Message::Owed => {
                self.owed = true;
                return;
            }
            Message::Deposed => Event::Deposed,
            Message::Fetched { bodies } => {
                let jobs = bodies.iter().map(|(job, _)| *job).collect();
                for (job, body) in bodies {
                    self.bodies.fetched(job, body);
                }
                Event::Fetched { jobs }
            }
            Message::Worker(Arrival::Joined { session, login }) => {
                let (join, foreign) = translate::join(&mut self.starts, session, *login);
                if !foreign.is_empty() {
                    self.foreign.insert(session, foreign);
                }
                Event::Joined(Box::new(join))
            }
            Message::Worker(Arrival::Frames { session, frames }) => {
                if frames.is_empty() {
                    self.engine
                        .handle(now, Event::Alive { session }, &mut self.effects);
                } else if self.spoke.last() != Some(&session) {
                    self.spoke.push(session);
                }
                for frame in frames {
                    match translate::hear(&self.starts, &mut self.numbers, session, frame) {
                        Heard::Event(event) => self.engine.handle(now, event, &mut self.effects),
                        Heard::Probed(reply) => {
                            for (fence, quiet) in self.probes.reply(now, reply) {
                                let looked = Event::Looked { fence, quiet };
                                self.engine.handle(now, looked, &mut self.effects);
                            }
                        }
                        Heard::Misplaced => {
                            tracing::warn!(session = session.raw(), "a frame out of place");
                        }
                    }
                }
                return;
            }
            Message::Worker(Arrival::Left { session }) => {
                self.starts.part(session);
                self.numbers.part(session);
                self.foreign.remove(&session);
                self.stocked.remove(&session);
                Event::Left { session }
            }
            Message::Stopping { settled } => {
                self.settled = Some(settled);
                Event::Stopping
            }
            Message::Stop => {
                self.stopped = true;
                return;
            }
        };
        self.engine.handle(now, event, &mut self.effects);
    }

    fn on_ask(&mut self, now: Time, ask: Ask) {
        match ask {
            Ask::State { job, live, reply } => self.on_state(now, job, live, reply),
            Ask::States { jobs, reply } => {
                let stamp = self.parts.clock.stamp();
                let found = jobs.iter().filter_map(|&id| self.engine.job(id));
                answer(reply, found.map(|job| status(&job, &stamp)).collect());
            }
            Ask::List {
                states,
                queues,
                after,
                descending,
                limit,
                reply,
            } => {
                let page = self.list(&states, &queues, after, descending, limit);
                answer(reply, page);
            }
            Ask::Cancel {
                job,
                force,
                note,
                reply,
            } => {
                let ask = self.next_ask;
                self.next_ask += 1;
                self.cancels.insert(ask, reply);
                let event = Event::Cancel {
                    ask,
                    job,
                    force,
                    note,
                };
                self.engine.handle(now, event, &mut self.effects);
            }
            Ask::Wait { job, reply } => {
                if self.engine.job(job).is_none() {
                    return answer(reply, None);
                }
                let waiting = self.waiting.entry(job).or_default();
                // Whoever went away is forgotten when the next one comes, so a job's list stays as long as its askers.
                waiting.retain(|waiter| !waiter.is_closed());
                waiting.push(reply);
            }
            Ask::Workers { reply } => {
                let all = self
                    .engine
                    .workers()
                    .map(|worker| worker_status(&worker, now));
                answer(reply, all.collect());
            }
            Ask::Lives { jobs, reply } => self.on_lives(now, &jobs, reply),
            Ask::Glance { reply } => {
                let glance = Glance {
                    counts: self.engine.counts(),
                    queues: self.engine.queues(),
                    probes: self.probes.sent_count(),
                    resident_bytes: self.bodies.resident_bytes(),
                    bodies_read: self.bodies.read_count(),
                };
                answer(reply, glance);
            }
        }
    }

    fn on_state(
        &mut self,
        now: Time,
        job: JobId,
        live: bool,
        reply: oneshot::Sender<Option<Box<JobStatus>>>,
    ) {
        let Some(view) = self.engine.job(job) else {
            return answer(reply, None);
        };
        let mut record = Box::new(status(&view, &self.parts.clock.stamp()));
        let (Some(fence), Some(worker), true) = (view.fence, &view.worker, live) else {
            return answer(reply, Some(record));
        };
        let Some(session) = worker.session else {
            record.live = Some(disconnected(now.since(worker.heard)));
            return answer(reply, Some(record));
        };
        let asker = Asker::Job(record, reply);
        self.probes.ask(now, session, fence, worker.heard, asker);
    }

    fn on_lives(&mut self, now: Time, jobs: &[JobId], reply: oneshot::Sender<Lives>) {
        let (mut members, mut known) = (Vec::new(), Lives::new());
        for view in jobs.iter().filter_map(|&job| self.engine.job(job)) {
            let (Some(fence), Some(worker)) = (view.fence, &view.worker) else {
                continue;
            };
            match worker.session {
                Some(session) => members.push((session, fence, worker.heard)),
                None => known.push((view.id, disconnected(now.since(worker.heard)))),
            }
        }
        self.probes.ask_list(now, &members, known, reply);
    }

    fn list(
        &self,
        states: &[JobState],
        queues: &[Box<str>],
        after: Option<JobId>,
        descending: bool,
        limit: usize,
    ) -> (Vec<JobStatus>, Option<JobId>) {
        let stamp = self.parts.clock.stamp();
        let from = after.unwrap_or(if descending { JobId::MAX } else { JobId::MIN });
        let mut found = Vec::new();
        let mut last = None;
        for (looked, job) in self.engine.jobs_from(from, descending).enumerate() {
            if after == Some(job.id) {
                continue;
            }
            if found.len() >= limit || looked >= LIST_SCAN_MAX {
                return (found, last);
            }
            last = Some(job.id);
            let wanted =
                |queue: &str| queues.is_empty() || queues.iter().any(|one| **one == *queue);
            if states.contains(&job.state) && wanted(&job.class.queue) {
                found.push(status(&job, &stamp));
            }
        }
        (found, None)
    }

    /// Carries out what the engine asked for, one push and one wake-up for each destination.
    fn route(&mut self, now: Time) {
        for effect in self.effects.drain(..) {
            match effect {
                Effect::Persist(fact) => self.out.facts.push(fact),
                Effect::Fetch { jobs } => self.parts.reader.fetch(jobs),
                Effect::Resumed {
                    session,
                    worker: _,
                    acked,
                    void,
                } => {
                    let foreign = self.foreign.remove(&session).unwrap_or_default();
                    self.out.resumed(session, acked, &void, &foreign);
                }
                Effect::Refuse { session, why } => self.out.refuse(session, why),
                Effect::Assign {
                    session,
                    seq,
                    fences,
                } => {
                    let numbers = &mut self.numbers;
                    self.out
                        .assign(numbers, session, seq, &fences, &mut self.bodies);
                }
                Effect::Recall { session, fences } => self.out.recall(session, &fences),
                Effect::Cancel {
                    session,
                    fence,
                    force,
                } => self.out.cancel(session, fence, force),
                Effect::Look { session, fence } => {
                    let heard = self.engine.job(fence.job).and_then(|job| job.worker);
                    let heard = heard.map_or(now, |worker| worker.heard);
                    self.probes.ask(now, session, fence, heard, Asker::Engine);
                }
                Effect::Stop { session, fences } => self.out.stop(session, &fences),
                Effect::Ack { session, through } => self.out.ack(session, through),
                Effect::Answer { ask, answer: what } => {
                    if let Some(reply) = self.cancels.remove(&ask) {
                        answer(reply, what);
                    }
                }
                Effect::Finished { job, state, reason } => {
                    self.bodies.take(job);
                    if self.waiting.is_empty() {
                        continue;
                    }
                    for waiter in self.waiting.remove(&job).into_iter().flatten() {
                        answer(waiter, Some((state, reason)));
                    }
                }
            }
        }
        self.route_facts(now);
        for (session, ask, fences) in self.probes.take_unsent(now) {
            self.out.probe(session, ask, fences);
        }
        let frames = self.out.frames.drain();
        let closing = self.out.closing.drain(..);
        self.parts.net.post_all(
            frames
                .map(|(session, bytes)| Post::Control { session, bytes })
                .chain(closing.map(|(session, code, message)| Post::Close {
                    session,
                    code,
                    message,
                })),
        );
    }

    /// Facts go to the writer at once, but for starts alone: nothing waits for those, so they ride along with what comes
    /// next, and a process job costs one commit less.
    fn route_facts(&mut self, now: Time) {
        let only_starts = |facts: &[Fact]| facts.iter().all(|f| matches!(f, Fact::Started(_)));
        let owed = std::mem::take(&mut self.owed);
        if self.out.facts.is_empty() && !owed {
            return;
        }
        let since = *self.starts_since.get_or_insert(now);
        let can_wait = only_starts(&self.out.facts) && since + STARTS_WAIT > now;
        if can_wait && !owed && !self.is_ending() {
            return;
        }
        self.starts_since = None;
        let facts = std::mem::take(&mut self.out.facts);
        self.facts_sent += facts.len() as u64;
        self.parts.writer.facts(facts, self.facts_sent);
    }

    fn is_ending(&self) -> bool {
        self.stopped || self.settled.is_some()
    }

    /// Tells a stopping server when nothing is in flight any more.
    fn settle(&mut self) {
        if self.settled.is_some()
            && self.out.facts.is_empty()
            && self.facts_sent == self.facts_committed
            && self.engine.awaited_count() == 0
            && let Some(settled) = self.settled.take()
        {
            answer(settled, ());
        }
    }
}

/// Sends a reply; whoever asked may have gone.
fn answer<T>(reply: oneshot::Sender<T>, what: T) {
    drop(reply.send(what));
}

fn status(job: &JobView<'_>, stamp: &Stamp) -> JobStatus {
    JobStatus {
        id: job.id,
        state: job.state,
        reason: job.reason,
        due: job.due.map(|due| wall(due, stamp)),
        queue: Arc::clone(&job.class.queue),
        priority: job.priority,
        attempt: job.attempts,
        failures: job.failures,
        max_attempts: job.class.retry.max_attempts,
        worker: job.worker.as_ref().map(|worker| worker.name.into()),
        worker_connected: job
            .worker
            .as_ref()
            .is_some_and(|worker| worker.session.is_some()),
        started: job.started.map(|at| stamp.wall_of(at)),
        live: None,
    }
}

fn disconnected(silent: Span) -> LiveStatus {
    LiveStatus::Unseen {
        why: "disconnected",
        waited_ms: 0,
        last_heard_ms: silent.millis(),
    }
}

fn wall(when: When, stamp: &Stamp) -> WallTime {
    match when {
        When::Engine(at) => stamp.wall_of(at),
        When::Wall(at) => at,
    }
}

fn worker_status(worker: &WorkerView<'_>, now: Time) -> WorkerStatus {
    WorkerStatus {
        name: worker.name.into(),
        connected: worker.session.is_some(),
        draining: worker.draining,
        slots: worker.slots,
        held: worker.held,
        last_heard_ms: now.since(worker.heard).millis(),
        queues: worker.queues.to_vec(),
        labels: worker.labels.to_vec(),
    }
}
