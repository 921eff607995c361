//! A worker: the real session, a model of the loop round it, and model processes.
//!
//! A turn is what `worker.rs` does in one: read what came, take what ended, tick, flush, write, start what that
//! allows. Children run by themselves: also while their worker stands still, and (some of them) after it has died.

use std::collections::{BTreeMap, HashSet};

use bytes::BytesMut;
use hostler_engine::spec::Kind;
use hostler_wire::decoder::Decoder;
use hostler_wire::frame::{
    Challenge, Frame, Live, Login, LogsMode, Probe, ProbeReply, Role, Task, Work,
};
use hostler_wire::handshake::ClientHandshake;
use hostler_wire::limits::{FRAME_BYTES_MAX, HANDSHAKE_FRAME_BYTES_MAX};
use hostler_wire::token::Token;
use hostler_wire::{Detail, Fence, Outcome, Usage};
use hostler_worker::session::{self, Effect, Ending, Event, Session};
use hostler_worker::{Span, Time};

use crate::disk::SharedOracle;
use crate::network::{ConnId, End, Held, Network, Piece};
use crate::options::{MS, Options, S};
use crate::outlet::Outlet;
use crate::rng::Rng;
use crate::workload::{Behaviour, INLINE, THREAD, Workload, plan_of_work};

/// From the connect to the welcome.
const HANDSHAKE_TIME: u64 = 10 * S;
const PAUSE_MIN: u64 = 100 * MS;
const PAUSE_MAX: u64 = 5 * S;
const START_ROUNDS: usize = 64;
/// How long a worker that has ended waits for its output to be stored.
const LAST_OUTPUT: u64 = 2 * S;

/// A connection, as the worker sees it.
#[derive(Debug)]
struct Line {
    conn: ConnId,
    stage: Stage,
    decoder: Decoder,
    out: BytesMut,
    deadline: u64,
}

#[derive(Debug)]
enum Stage {
    Greeting(Box<ClientHandshake>),
    LoggingIn(Box<Challenge>),
    Ready,
    Moving,
}

/// A process, or a handler at work.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Child {
    pub(crate) serial: u64,
    behaviour: Behaviour,
    outcome: Outcome,
    since: u64,
    ends_at: Option<u64>,
    pub(crate) told: bool,
    is_handler: bool,
    history: u32,
    plan: u64,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) at: usize,
    pub(crate) name: String,
    pub(crate) slots: u32,
    pub(crate) queues: Vec<String>,
    pub(crate) commands: bool,
    idle_exit: Option<Span>,
    drain_timeout: Span,
    pub(crate) instance: u64,
    pub(crate) born: u64,
    pub(crate) session: Option<Session>,
    /// While it lives.
    pub(crate) outlet: Option<Outlet>,
    /// It has ended and waits for its output, until then.
    leaving: Option<u64>,
    line: Option<Line>,
    pub(crate) inbox: Vec<(ConnId, Piece)>,
    retry_at: u64,
    pause: u64,
    pub(crate) children: BTreeMap<Fence, Child>,
    /// Ended, and not noticed by the loop.
    pub(crate) ended: Vec<(Fence, Ending)>,
    pub(crate) drains: u32,
    pub(crate) frozen: bool,
    pub(crate) partitioned: Held,
    pub(crate) no_room: bool,
    pub(crate) turn_at: Option<u64>,
    /// Of the server it speaks to.
    history: u32,
    last_epoch: u32,
    /// In which history what it holds was given out.
    births: BTreeMap<Fence, u32>,
    /// What each report of this instance was about, from number 1, and in which history that was given out.
    pub(crate) reports: Vec<(Fence, u32)>,
    /// It was stopped in mid-run at some time: what it did not do then is not its session's fault.
    pub(crate) was_frozen: bool,
    effects: session::Effects,
    pub(crate) events: u64,
}

/// What a machine's turn works with.
pub(crate) struct Around<'a> {
    pub(crate) now: u64,
    pub(crate) rng: &'a mut Rng,
    pub(crate) network: &'a mut Network,
    pub(crate) oracle: &'a SharedOracle,
    pub(crate) workload: &'a Workload,
    pub(crate) token: &'a Token,
    pub(crate) latency: (u64, u64),
    /// Deliveries to be made: connection, end, when.
    pub(crate) deliveries: &'a mut Vec<(ConnId, End, u64)>,
    /// Children to end by themselves: serial, fence, when.
    pub(crate) endings: &'a mut Vec<(u64, Fence, u64)>,
    /// Children that print: serial, fence, when.
    pub(crate) printings: &'a mut Vec<(u64, Fence, u64)>,
    pub(crate) next_serial: &'a mut u64,
    /// In peace nothing hangs for ever.
    pub(crate) at_peace: bool,
    pub(crate) check: bool,
}

impl Around<'_> {
    pub(crate) fn oracle(&self) -> std::sync::MutexGuard<'_, crate::oracle::Oracle> {
        self.oracle
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub(crate) fn send(&mut self, conn: ConnId, piece: Piece) {
        let at = self.now + self.rng.between(self.latency);
        if let Some(at) = self.network.send(conn, End::Server, piece, at) {
            self.deliveries.push((conn, End::Server, at));
        }
    }
}

impl Machine {
    pub(crate) fn new(at: usize, name: String, slots: u32, rng: &mut Rng) -> Self {
        Self {
            at,
            name,
            slots,
            queues: Vec::new(),
            commands: true,
            idle_exit: None,
            drain_timeout: Span::from_us(rng.pick(&[100 * MS, 3 * S, 30 * S])),
            instance: 0,
            born: 0,
            session: None,
            outlet: None,
            leaving: None,
            line: None,
            inbox: Vec::new(),
            retry_at: 0,
            pause: PAUSE_MIN,
            children: BTreeMap::new(),
            ended: Vec::new(),
            drains: 0,
            frozen: false,
            partitioned: Held::default(),
            no_room: false,
            turn_at: None,
            history: 0,
            last_epoch: 0,
            births: BTreeMap::new(),
            reports: Vec::new(),
            was_frozen: false,
            effects: Vec::new(),
            events: 0,
        }
    }

    /// A new process with a new instance number. What an earlier one left behind is found and ended.
    pub(crate) fn boot(&mut self, now: u64, instance: u64, options: &Options) {
        self.instance = instance;
        self.born = now;
        let config = session::Config {
            slots: self.slots,
            kill_grace: Span::from_us(10 * S),
            drain_timeout: self.drain_timeout,
            idle_exit: self.idle_exit,
            inline: HashSet::from([INLINE.to_owned()]),
        };
        self.session = Some(Session::new(config, self.time(now)));
        let spool = options.spool.clone();
        self.outlet = Some(Outlet::new(spool, now, options.spill_fails));
        self.leaving = None;
        self.line = None;
        self.inbox.clear();
        self.retry_at = now;
        self.pause = PAUSE_MIN;
        self.children.clear();
        self.ended.clear();
        self.drains = 0;
        self.reports.clear();
        self.births.clear();
        self.last_epoch = 0;
        self.was_frozen = false;
    }

    /// The process is gone. Says which connection it leaves.
    pub(crate) fn die(&mut self, oracle: &SharedOracle) -> Vec<ConnId> {
        self.session = None;
        self.ended.clear();
        self.inbox.clear();
        let (pipe, unsettled) = self.outlet.take().map(Outlet::die).unwrap_or_default();
        let mut oracle = oracle
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        oracle.prints.forgotten(&unsettled);
        let line = self.line.take().map(|line| line.conn);
        line.into_iter().chain(pipe).collect()
    }

    pub(crate) fn conn(&self) -> Option<ConnId> {
        self.line.as_ref().map(|line| line.conn)
    }

    fn time(&self, now: u64) -> Time {
        Time::from_us(now - self.born)
    }

    /// When it wants a turn if nothing comes.
    pub(crate) fn next_turn(&self, now: u64) -> Option<u64> {
        let session = self.session.as_ref()?;
        let due = session.next_deadline().map(|due| self.born + due.us());
        let line = match &self.line {
            None => Some(self.retry_at),
            Some(line) if !matches!(line.stage, Stage::Ready) => Some(line.deadline),
            Some(_) => None,
        };
        let outlet = self
            .outlet
            .as_ref()
            .and_then(|outlet| outlet.next_turn(now));
        due.into_iter()
            .chain(line)
            .chain(outlet)
            .chain(self.leaving)
            .min()
    }

    /// One turn of the loop. True when the process has ended.
    pub(crate) fn turn(&mut self, around: &mut Around<'_>) -> bool {
        self.dial(around);
        for _ in 0..std::mem::take(&mut self.drains) {
            self.tell(Event::Drain, around);
        }
        self.listen(around);
        self.read_pipes(around);
        for (fence, mut ending) in std::mem::take(&mut self.ended) {
            let outlet = self.outlet.as_mut().expect("it lives");
            if let Some([stdout, stderr]) = outlet.close(fence, around)
                && let Ending::Done {
                    detail: Some(detail),
                    ..
                } = &mut ending
            {
                detail.usage = Some(Usage {
                    stdout_bytes: stdout,
                    stderr_bytes: stderr,
                    ..Usage::default()
                });
            }
            self.tell(Event::Ended { fence, ending }, around);
        }
        let time = self.time(around.now);
        let session = self.session.as_ref().expect("it lives");
        if session.next_deadline().is_some_and(|due| due <= time) {
            self.tell_signs(around);
            self.tell(Event::Tick, around);
        }
        if self.finish_turn(around) {
            // What is still in the spool has a while.
            self.leaving.get_or_insert(around.now + LAST_OUTPUT);
        }
        let wants_login = self.outlet.as_ref().is_some_and(Outlet::wants_login);
        let login = wants_login.then(|| self.login(around));
        let place = (self.at, self.partitioned);
        let outlet = self.outlet.as_mut().expect("it lives");
        outlet.turn(login.as_ref(), place, around);
        let over = self
            .leaving
            .is_some_and(|until| around.now >= until || outlet.is_sent());
        if around.check
            && let Some(session) = &self.session
        {
            session.check();
        }
        over
    }

    fn read_pipes(&mut self, around: &mut Around<'_>) {
        let outlet = self.outlet.as_mut().expect("it lives");
        if outlet.printing.is_empty() {
            return;
        }
        for (fence, serial, ends) in outlet.read_pipes(around) {
            around.printings.push((serial, fence, around.now + 1));
            if ends && let Some(child) = self.children.get_mut(&fence) {
                let at = around.now + 2;
                child.ends_at = Some(at);
                around.endings.push((child.serial, fence, at));
            }
        }
    }

    /// Before the session ends silent attempts, it hears of what they printed.
    fn tell_signs(&mut self, around: &mut Around<'_>) {
        let session = self.session.as_ref().expect("it lives");
        for fence in session.suspects(self.time(around.now)) {
            let outlet = self.outlet.as_ref().expect("it lives");
            if let Some(at) = outlet.active_at(fence, around.now) {
                let at = self.time(at);
                self.tell(Event::Active { fence, at }, around);
            }
        }
    }

    fn dial(&mut self, around: &mut Around<'_>) {
        if let Some(line) = &self.line
            && !matches!(line.stage, Stage::Ready)
            && around.now >= line.deadline
        {
            self.disconnect(around);
        }
        if self.line.is_some() || around.now < self.retry_at {
            return;
        }
        let mut nonce = [0; 32];
        nonce[..8].copy_from_slice(&around.rng.next().to_le_bytes());
        let (handshake, hello) = ClientHandshake::new(around.token, Role::Control, nonce);
        let conn = around.network.open(self.at, self.partitioned);
        let mut decoder = Decoder::new();
        decoder.accept_up_to(HANDSHAKE_FRAME_BYTES_MAX);
        let mut line = Line {
            conn,
            stage: Stage::Greeting(Box::new(handshake)),
            decoder,
            out: BytesMut::new(),
            deadline: around.now + HANDSHAKE_TIME,
        };
        Frame::Hello(hello).encode(&mut line.out);
        self.line = Some(line);
    }

    fn listen(&mut self, around: &mut Around<'_>) {
        let mut heard = false;
        for (conn, piece) in std::mem::take(&mut self.inbox) {
            let outlet = self.outlet.as_mut().expect("it lives");
            if outlet.conn() == Some(conn) {
                outlet.inbox.push((conn, piece));
                continue;
            }
            if self.conn() != Some(conn) {
                continue;
            }
            match piece {
                Piece::Bytes(bytes) => {
                    heard |= !bytes.is_empty();
                    self.read(&bytes, around);
                }
                Piece::Closed => self.disconnect(around),
            }
        }
        if heard && self.line.is_some() {
            self.tell(Event::Heard, around);
        }
    }

    fn read(&mut self, bytes: &BytesMut, around: &mut Around<'_>) {
        if let Some(line) = &mut self.line {
            line.decoder.buffer().extend_from_slice(bytes);
        }
        while let Some(line) = &mut self.line {
            let frame = match line.decoder.next_frame() {
                Ok(Some(frame)) => frame,
                Ok(None) => return,
                Err(_) => return self.disconnect(around), // damaged on its way
            };
            self.events += 1;
            match (&line.stage, frame) {
                (_, Frame::Refused(_) | Frame::NotLeader(_)) => self.disconnect(around),
                (Stage::Ready, frame) => {
                    if let Frame::Assign(assign) = &frame {
                        let session = self.session.as_ref().expect("it lives");
                        for fence in assign.jobs.iter().map(|job| job.fence) {
                            if session.started(fence).is_none() {
                                self.births.insert(fence, self.history);
                            }
                        }
                    }
                    self.tell(Event::Received(frame), around);
                }
                (_, frame) => self.shake(frame, around),
            }
        }
    }

    fn shake(&mut self, frame: Frame, around: &mut Around<'_>) {
        let login = self.login(around);
        let line = self.line.as_mut().expect("it has just spoken");
        match (std::mem::replace(&mut line.stage, Stage::Moving), frame) {
            (Stage::Greeting(handshake), Frame::Challenge(challenge)) => {
                let mut login = login;
                let proven = handshake.login(&challenge, &mut login);
                proven.expect("the server is ours");
                Frame::Login(Box::new(login)).encode(&mut line.out);
                line.stage = Stage::LoggingIn(Box::new(challenge));
            }
            (Stage::LoggingIn(challenge), Frame::Welcome(welcome)) => {
                line.decoder.accept_up_to(FRAME_BYTES_MAX);
                line.stage = Stage::Ready;
                self.pause = PAUSE_MIN;
                let outlet = self.outlet.as_mut().expect("it lives");
                outlet.follow(Some(welcome.session), around);
                self.passes_over_a_history(&challenge, around);
                let nonce = challenge.epoch_nonce;
                self.history = u32::from_le_bytes([nonce[4], nonce[5], nonce[6], nonce[7]]);
                let connected = Event::Connected {
                    beat: Span::from_ms(welcome.beat_ms.into()),
                    lease: Span::from_ms(welcome.grace_ms.into()),
                    epoch: (challenge.epoch, challenge.epoch_nonce),
                };
                self.tell(connected, around);
            }
            (_, frame) => panic!("{} out of its turn", frame.name()),
        }
    }

    fn login(&self, around: &Around<'_>) -> Login {
        let session = self.session.as_ref().expect("it lives");
        let session::Resume {
            held,
            last_report,
            epochs,
        } = session.resume();
        let mut oracle = around.oracle();
        for held in held.iter().filter(|held| held.started) {
            if let Some(truth) = oracle.truth(held.fence, self.birth(held.fence)) {
                truth.said_started = true;
            }
        }
        Login {
            proof: [0; 32],
            name: self.name.clone(),
            instance: self.instance,
            session: None,
            slots: self.slots,
            commands: self.commands,
            handlers: vec![INLINE.to_owned(), THREAD.to_owned()],
            queues: self.queues.clone(),
            labels: Vec::new(),
            allocation: String::new(),
            held,
            last_report,
            epochs,
        }
    }

    /// A restored backup that was started so often meanwhile that its number is above any this worker knows: nobody
    /// tells the worker, and what it still spools is not judged.
    fn passes_over_a_history(&mut self, challenge: &Challenge, around: &Around<'_>) {
        let nonce = challenge.epoch_nonce;
        let history = u32::from_le_bytes([nonce[4], nonce[5], nonce[6], nonce[7]]);
        let epoch = challenge.epoch.raw();
        if history != self.history && epoch > self.last_epoch {
            let outlet = self.outlet.as_mut().expect("it lives");
            outlet.forget_of_other_histories(history, around);
            around.oracle().mixed = true;
        }
        self.last_epoch = epoch;
    }

    /// In which history an attempt was given out.
    fn birth(&self, fence: Fence) -> u32 {
        self.births.get(&fence).copied().unwrap_or(self.history)
    }

    /// The line is gone: try again later.
    fn disconnect(&mut self, around: &mut Around<'_>) {
        self.leave(around);
        self.tell(Event::Disconnected, around);
    }

    fn leave(&mut self, around: &mut Around<'_>) {
        if let Some(outlet) = &mut self.outlet {
            outlet.follow(None, around);
        }
        let Some(line) = self.line.take() else {
            return;
        };
        let told_at = around.now + around.rng.between(around.latency);
        if let Some(at) = around.network.close(line.conn, End::Worker, Some(told_at)) {
            around.deliveries.push((line.conn, End::Server, at));
        }
        let half = self.pause / 2;
        self.retry_at = around.now + half + around.rng.below(half);
        self.pause = (self.pause * 2).min(PAUSE_MAX);
    }

    fn tell(&mut self, event: Event, around: &mut Around<'_>) {
        self.events += 1;
        let time = self.time(around.now);
        let session = self.session.as_mut().expect("it lives");
        session.handle(time, event, &mut self.effects);
        self.carry_out(around);
    }

    /// What is to be told leaves; what waited for that starts. True when the process has ended.
    fn finish_turn(&mut self, around: &mut Around<'_>) -> bool {
        let mut exits = false;
        for _ in 0..START_ROUNDS {
            let time = self.time(around.now);
            let session = self.session.as_mut().expect("it lives");
            session.flush(time, &mut self.effects);
            exits |= self.carry_out(around);
            let Some(line) = &mut self.line else {
                break;
            };
            if !line.out.is_empty() {
                let (conn, bytes) = (line.conn, line.out.split());
                around.send(conn, Piece::Bytes(bytes));
            }
            if !self.session.as_ref().is_some_and(Session::awaits_write) {
                break;
            }
            self.tell(Event::Written, around);
        }
        exits
    }

    fn carry_out(&mut self, around: &mut Around<'_>) -> bool {
        let mut exits = false;
        while !self.effects.is_empty() {
            let mut effects = std::mem::take(&mut self.effects);
            for effect in effects.drain(..) {
                match effect {
                    Effect::Send(frame) => self.send(frame, around),
                    Effect::Start { fence, work } => self.start(fence, work, around),
                    Effect::End { fence, force } => self.end(fence, force, around),
                    Effect::Reconnect(_) => self.leave(around),
                    Effect::Exit(_) => exits = true,
                    Effect::Answer(probe) => self.answer(&probe, around),
                    Effect::ForgetSince(epoch) => {
                        let outlet = self.outlet.as_mut().expect("it lives");
                        outlet.forget_since(epoch, around);
                    }
                    Effect::Forget(fence) => {
                        let outlet = self.outlet.as_mut().expect("it lives");
                        outlet.forget(fence, around);
                    }
                }
            }
            if self.effects.is_empty() {
                self.effects = effects;
            }
        }
        exits
    }

    fn send(&mut self, frame: Frame, around: &Around<'_>) {
        if let Frame::Reports(batch) = &frame {
            let mut oracle = around.oracle();
            for (number, report) in (batch.first..).zip(&batch.reports) {
                // Of another history it is made in nobody's name.
                let is_nobodys = report.fence.epoch.raw() == 0;
                if !is_nobodys {
                    oracle.reports(report, self.instance, self.birth(report.fence));
                }
                let place = usize::try_from(number - 1).expect("few");
                if let Some(known) = self.reports.get(place) {
                    assert!(
                        known.0 == report.fence || is_nobodys,
                        "a report keeps its number"
                    );
                } else {
                    assert_eq!(
                        place,
                        self.reports.len(),
                        "reports are numbered without gaps"
                    );
                    let birth = self.birth(report.fence);
                    self.reports.push((report.fence, birth));
                }
            }
        } else if let Frame::Started(started) = &frame {
            let mut oracle = around.oracle();
            for fence in &started.fences {
                if let Some(truth) = oracle.truth(*fence, self.birth(*fence)) {
                    truth.said_started = true;
                }
            }
        }
        if let Some(line) = &mut self.line {
            frame.encode(&mut line.out);
        }
    }

    fn start(&mut self, fence: Fence, work: Work, around: &mut Around<'_>) {
        let plan = plan_of_work(&work);
        let (kind, inline) = match &work.task {
            Task::Command(_) => (Kind::Command, false),
            Task::Handler(handler) => (Kind::Handler, handler.name == INLINE),
        };
        let behaviour = around.workload.behaviour(plan, fence.attempt, kind);
        let done = |outcome| Ending::Done {
            outcome,
            detail: None,
            told: false,
        };
        let at_once = if inline {
            let birth = self.birth(fence);
            let mut oracle = around.oracle();
            oracle.starts(fence, plan, birth);
            if let Some(truth) = oracle.truth(fence, birth) {
                truth.ended = Some(Outcome::Succeeded);
            }
            Some(done(Outcome::Succeeded))
        } else if self.no_room {
            Some(Ending::NoRoom {
                message: "no process left".to_owned(),
            })
        } else if let Outcome::SpawnFailed { .. } = behaviour.outcome {
            Some(done(behaviour.outcome))
        } else {
            None
        };
        if let Some(ending) = at_once {
            let time = self.time(around.now);
            let session = self.session.as_mut().expect("it lives");
            let event = Event::Ended { fence, ending };
            session.handle(time, event, &mut self.effects);
            self.events += 1;
            return;
        }
        {
            let mut oracle = around.oracle();
            let birth = self.birth(fence);
            oracle.starts(fence, plan, birth);
            let said = oracle
                .truth(fence, birth)
                .is_none_or(|truth| truth.said_started);
            assert!(said, "{fence:?} starts and its worker has not said so");
        }
        assert!(
            self.children.len() < self.slots as usize,
            "{} runs more than its slots",
            self.name
        );
        *around.next_serial += 1;
        let hangs = behaviour.hangs && !around.at_peace;
        // In peace what is left is to come to its end, however little there is to run it on.
        let longest = if around.at_peace { 20 * MS } else { u64::MAX };
        let runs = behaviour.runs.min(longest);
        let child = Child {
            serial: *around.next_serial,
            behaviour,
            outcome: behaviour.outcome,
            since: around.now,
            ends_at: (!hangs).then_some(around.now + runs),
            told: false,
            is_handler: kind == Kind::Handler,
            history: self.birth(fence),
            plan,
        };
        if let Some(at) = child.ends_at {
            around.endings.push((child.serial, fence, at));
        }
        if kind == Kind::Command && work.logs.mode != LogsMode::None {
            let script = around.workload.script(plan, fence.attempt);
            let pause = (runs / script.len() as u64).max(1);
            let serial = child.serial;
            let what = (fence, plan, serial, self.birth(fence));
            let outlet = self.outlet.as_mut().expect("it lives");
            outlet.begin(what, work.logs, script, pause, around);
            let at = around.now + around.rng.below(pause);
            around.printings.push((serial, fence, at));
        }
        self.children.insert(fence, child);
    }

    /// What it runs of what was asked for.
    fn answer(&mut self, probe: &Probe, around: &Around<'_>) {
        let session = self.session.as_ref().expect("it lives");
        let lives = probe.fences.iter().filter_map(|&fence| {
            let outlet = self.outlet.as_ref().expect("it lives");
            let active = outlet.active_at(fence, around.now);
            let since = active.or_else(|| self.children.get(&fence).map(|child| child.since));
            Some(Live {
                fence: Some(fence),
                started: session.started(fence)?,
                quiet_ms: (around.now - since.unwrap_or(around.now)) / MS,
                ..Live::default()
            })
        });
        let reply = ProbeReply {
            ask: probe.ask,
            lives: lives.collect(),
        };
        self.effects.push(Effect::Send(Frame::ProbeReply(reply)));
    }

    /// TERM, or KILL.
    fn end(&mut self, fence: Fence, force: bool, around: &mut Around<'_>) {
        let Some(child) = self.children.get_mut(&fence) else {
            return;
        };
        child.told = true;
        if let Some(truth) = around.oracle().truth(fence, child.history) {
            truth.told = true;
        }
        let outcome = if force && !child.behaviour.unkillable {
            Outcome::Signalled { signal: 9 }
        } else if let Some(outcome) = child.behaviour.on_term {
            outcome
        } else {
            return;
        };
        let at = around.now + around.rng.between((20, 20 * MS));
        // Unless it would have ended before, and waits in a write.
        let soon = around.now..=at;
        if child.ends_at.is_some_and(|before| soon.contains(&before)) {
            return;
        }
        *around.next_serial += 1;
        child.serial = *around.next_serial;
        child.outcome = outcome;
        child.ends_at = Some(at);
        around.endings.push((child.serial, fence, at));
    }

    /// A process ends. True if its worker is there to notice.
    pub(crate) fn child_ends(&mut self, serial: u64, fence: Fence, oracle: &SharedOracle) -> bool {
        let Some(child) = self.children.get(&fence).copied() else {
            return false;
        };
        if child.serial != serial {
            return false;
        }
        if !child.told
            && let Some(outlet) = &mut self.outlet
            && outlet.holds_back(fence)
        {
            return false;
        }
        self.children.remove(&fence);
        let mut oracle = oracle
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(truth) = oracle.truth(fence, child.history) {
            truth.ended = Some(child.outcome);
            truth.told = child.told;
            oracle.stops(fence, child.plan);
        }
        if self.session.is_none() {
            return false;
        }
        let ending = Ending::Done {
            outcome: child.outcome,
            detail: Some(Box::new(Detail::default())),
            told: child.told,
        };
        self.ended.push((fence, ending));
        true
    }

    /// Its worker dies: a process lives on or goes with it, a handler goes.
    pub(crate) fn orphan(&mut self, rng: &mut Rng) {
        self.children
            .retain(|_, child| !child.is_handler && rng.chance(500));
    }

    /// Whatever it printed is stored.
    pub(crate) fn is_settled(&self) -> bool {
        self.outlet.as_ref().is_none_or(Outlet::is_settled)
    }

    /// Something hangs for ever: a person must see to it.
    pub(crate) fn is_stuck(&self) -> bool {
        self.children.values().any(|child| child.ends_at.is_none())
    }
}
