//! What the worker owes the server: the attempts in its hands and the reports not yet acknowledged. Sans-I/O.
//!
//! [`Session::handle`] takes one event at a time and appends what must be done to the effects; [`Session::flush`] ends
//! a turn and lets what is to be told leave in as few frames as possible. One session lasts as long as the worker:
//! connections come and go beneath it.
//!
//! An attempt waits, is *starting* (`Started` is on its way), runs, and has ended; it is forgotten when its report is
//! acknowledged. A command starts only after `Started` was written to the socket, so that a loss is charged to who had
//! really started (semantics 3). Handlers named in [`Config::inline`] cannot harm the worker: they start at once, and
//! since their report leaves in the same turn, nobody is told that they start.
//!
//! Keeps P4 (a report is kept and sent again until it is acknowledged) and the worker's part of P3 (an assignment that
//! is already held changes nothing; void attempts are ended and never reported). Nothing starts and nothing is reported
//! between a disconnect and the server's `Resumed`.
//!
//! Not here: sockets and handshakes (`link`), processes (`child`), output (`output`), retries (the engine's).

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};

use hostler_wire::frame::{
    Ack, Assign, Assignment, Beat, Cancel, Frame, Held, OnPartition, Probe, Recall, Report,
    Reports, Resumed, Returned, Started, Stop, Task, Work,
};
use hostler_wire::limits::{BATCH_ITEMS_MAX, EPOCHS_MAX, HELD_MAX, MESSAGE_BYTES_MAX};
use hostler_wire::{Detail, Epoch, Fence, JobId, Outcome, mutation};

use crate::clock::{Span, Time};

/// No attempt starts for this long after the system refused us a process for want of resources (semantics 7).
const NO_ROOM_PAUSE: Span = Span::from_ms(1_000);
/// No server start has this number.
const NO_EPOCH: Epoch = Epoch::new(0);
/// A server that is silent for this many beats is left and looked for again (semantics 20).
const SILENT_BEATS: u64 = 3;
/// How long the last reports of a draining worker may wait for their acknowledgement.
const LAST_WORDS: Span = Span::from_ms(2_000);
/// Above this many bytes of unacknowledged reports nothing starts: results may be large, memory is not (P7).
const REPORT_BYTES_MAX: usize = 64 << 20;
/// A frame of reports is closed above this, so that it stays far below the protocol's largest frame.
const FRAME_BYTES_TARGET: usize = 2 << 20;

/// What a session is told once.
#[derive(Clone, Debug)]
pub struct Config {
    /// Attempts that run at once.
    pub slots: u32,
    /// Between TERM and KILL, for jobs that do not say.
    pub kill_grace: Span,
    /// How long a draining worker waits for what runs.
    pub drain_timeout: Span,
    /// Leave after having had nothing to do for this long.
    pub idle_exit: Option<Span>,
    /// Handlers the loop itself runs, at once and without a thread.
    pub inline: HashSet<String>,
}

/// Everything that can happen to a session.
#[derive(Debug)]
pub enum Event {
    /// The handshake is done. The login carried [`Session::resume`]; the server's `Resumed` comes next.
    Connected {
        /// How often each side beats.
        beat: Span,
        /// How long silence is forgiven.
        lease: Span,
        /// Which start of the server this is, and its random bytes.
        epoch: (Epoch, [u8; 16]),
    },
    /// The connection is gone.
    Disconnected,
    /// A frame came.
    Received(Frame),
    /// Bytes came, perhaps not yet a frame: the server lives.
    Heard,
    /// Every frame sent so far has left for the kernel.
    Written,
    /// An attempt that was started, or was to be started, is over and reaped.
    Ended {
        /// Which.
        fence: Fence,
        /// How.
        ending: Ending,
    },
    /// A running attempt gave a sign of life: output, progress or a heartbeat. Told at least of those that
    /// [`Session::suspects`] names, before a tick.
    Active {
        /// Which.
        fence: Fence,
        /// When: not after now.
        at: Time,
    },
    /// Someone wants the worker to stop: the first time in peace, the second time now.
    Drain,
    /// A deadline has come.
    Tick,
}

/// How an attempt was over, as the shell saw it.
#[derive(Debug)]
pub enum Ending {
    /// It ended.
    Done {
        /// How.
        outcome: Outcome,
        /// Words and figures.
        detail: Option<Box<Detail>>,
        /// It was told to end before it did: otherwise it ended by itself, whatever was asked meanwhile.
        told: bool,
    },
    /// The system had no process, thread or file descriptor left: nobody's fault.
    NoRoom {
        /// One sentence.
        message: String,
    },
}

/// Everything a session can ask for.
#[derive(Debug, PartialEq)]
pub enum Effect {
    /// Put this frame on the control connection.
    Send(Frame),
    /// Start this attempt. Answered by [`Event::Ended`], sooner or later.
    Start {
        /// Which.
        fence: Fence,
        /// What to do.
        work: Work,
    },
    /// Ask or force a started attempt to end. Sent only for attempts that have not ended.
    End {
        /// Which.
        fence: Fence,
        /// How hard.
        force: bool,
    },
    /// Nobody wants to hear of this attempt again: its output may go too.
    Forget(Fence),
    /// The server has another history from this start on (a restored backup): what is left of attempts of it and of
    /// later ones is nobody's there, and would pass for that of namesakes.
    ForgetSince(Epoch),
    /// Answer this probe.
    Answer(Probe),
    /// Leave this connection and make a new one.
    Reconnect(&'static str),
    /// The worker is done.
    Exit(Exit),
}

/// A batch of effects, in the order they must be carried out.
pub type Effects = Vec<Effect>;

/// How a worker ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It was told to stop and everything is settled.
    Drained,
    /// It had nothing to do for as long as `idle_exit` says.
    Idle,
    /// It was told to stop, and the server did not acknowledge this many reports: those jobs will run again.
    Unacknowledged(usize),
}

/// What a login says of the work in hand.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resume {
    /// Every attempt held: ended and unacknowledged, started, waiting.
    pub held: Vec<Held>,
    /// Number of the last report ever made.
    pub last_report: u64,
    /// Epochs of the held attempts, with their random bytes.
    pub epochs: Vec<(Epoch, [u8; 16])>,
}

/// What the worker owes the server.
#[derive(Debug)]
pub struct Session {
    config: Config,
    link: Link,
    /// When the server last gave a sign of life.
    heard: Time,
    /// The same in a session that it took up: what a lease is counted from.
    leased: Time,
    beat: Span,
    lease: Span,
    beat_due: Time,
    /// Last assign frame of this connection.
    assign_seq: u64,
    epochs: BTreeMap<Epoch, [u8; 16]>,
    /// Which start of the server this connection is to.
    server: Option<(Epoch, [u8; 16])>,
    attempts: HashMap<Fence, Phase, BuildHasherDefault<FenceHasher>>,
    /// In the order they should start. Holds entries withdrawn meanwhile, which `attempts` does not know as waiting.
    waiting: VecDeque<Assignment>,
    /// Entries of `waiting` that really wait.
    waiting_count: usize,
    /// Told, or to be told, that they start; the last `untold` of them have not been told yet.
    starting: VecDeque<(Fence, Work)>,
    untold: usize,
    /// Slots in use: starting and running attempts, void ones included until they are reaped (semantics 27).
    used: u32,
    /// Void attempts that are still being ended.
    voided: usize,
    /// Of the running ones, those to be ended when the lease is over.
    stoppable: usize,
    /// When each attempt with a time limit or a signal behind it is due.
    due: BTreeSet<(Time, Fence)>,
    /// Unacknowledged, in order; the first has the number `acked + 1`.
    reports: VecDeque<Report>,
    report_bytes: usize,
    acked: u64,
    /// Last report sent on this connection.
    sent: u64,
    /// To be given back at the end of the turn.
    returned: Vec<Fence>,
    /// The server is to be told that we drain.
    tell_draining: bool,
    /// Nothing starts before: the system had no room.
    pause_until: Option<Time>,
    idle_since: Option<Time>,
    mode: Mode,
}

/// What is between us and the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Link {
    Down,
    /// Connected; `Resumed` has not come.
    Resuming,
    Up,
}

/// How long the worker means to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Working,
    /// Starts nothing; what runs may end in peace until then.
    Draining {
        end_at: Time,
        why: Exit,
    },
    /// What ran was told to end; what still runs then is given up.
    Ending {
        give_up_at: Time,
    },
    /// Nothing runs; the last reports have until then.
    Leaving {
        exit_at: Time,
        why: Exit,
    },
    Gone,
}

/// Where an attempt stands.
#[derive(Clone, Debug)]
enum Phase {
    Waiting,
    Starting,
    Running(Run),
    /// Its report is not yet acknowledged.
    Ended,
}

/// An attempt that runs.
#[derive(Clone, Debug)]
struct Run {
    since: Time,
    grace: Span,
    /// Ended when the lease is over.
    stop_when_cut_off: bool,
    /// Its time is up then.
    timeout_at: Option<Time>,
    /// Longest silence.
    stall: Option<Span>,
    /// Its last sign of life, as far as we were told.
    active: Time,
    /// When something is to be done about it next, as entered in `Session::due`.
    due: Option<Time>,
    /// A `Cancel` was carried out on it.
    cancelled: bool,
    /// Why it was told to end, if it was.
    ending: Option<Why>,
    /// KILL was sent.
    killed: bool,
}

/// Why we end an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    Cancelled,
    TimedOut,
    Stalled,
    Drained,
    CutOff,
    /// It has ended or been superseded elsewhere: nobody wants a report.
    Void,
}

impl Run {
    /// When it will have been silent for too long, as far as we were told.
    fn stalled_at(&self) -> Option<Time> {
        Some(self.active + self.stall?)
    }

    /// When the first of its limits may be reached.
    fn limit_at(&self) -> Option<Time> {
        self.timeout_at.into_iter().chain(self.stalled_at()).min()
    }

    /// The limit it has reached.
    fn overstepped(&self, now: Time) -> Option<Why> {
        if self.timeout_at.is_some_and(|at| at <= now) {
            Some(Why::TimedOut)
        } else {
            self.stalled_at()
                .is_some_and(|at| at <= now)
                .then_some(Why::Stalled)
        }
    }

    fn say_stalled(&self, detail: Option<Box<Detail>>) -> Box<Detail> {
        let mut detail = detail.unwrap_or_default();
        if let Some(stall) = self.stall.filter(|_| detail.message.is_empty()) {
            detail.message = format!("no output, progress or heartbeat for {stall} (stall_ms)");
        }
        detail
    }
}

impl Session {
    /// A session that holds nothing and is not connected.
    pub fn new(config: Config, now: Time) -> Self {
        Self {
            config,
            link: Link::Down,
            heard: now,
            leased: now,
            beat: Span::ZERO,
            lease: Span::ZERO,
            beat_due: now,
            assign_seq: 0,
            epochs: BTreeMap::new(),
            server: None,
            attempts: HashMap::default(),
            waiting: VecDeque::new(),
            waiting_count: 0,
            starting: VecDeque::new(),
            untold: 0,
            used: 0,
            voided: 0,
            stoppable: 0,
            due: BTreeSet::new(),
            reports: VecDeque::new(),
            report_bytes: 0,
            acked: 0,
            sent: 0,
            returned: Vec::new(),
            tell_draining: false,
            pause_until: None,
            idle_since: None,
            mode: Mode::Working,
        }
    }

    /// Takes one event at `now` (never earlier than the last) and appends what must be done to `out`.
    pub fn handle(&mut self, now: Time, event: Event, out: &mut Effects) {
        match event {
            Event::Connected { beat, lease, epoch } => {
                self.on_connected(now, beat, lease, epoch, out)
            }
            Event::Disconnected => self.on_disconnected(),
            Event::Received(frame) => {
                self.on_frame(now, frame, out);
                self.on_heard(now);
            }
            Event::Heard => self.on_heard(now),
            Event::Written => self.start_told(now, out),
            Event::Ended { fence, ending } => self.on_ended(now, fence, ending),
            Event::Active { fence, at } => self.on_active(fence, at),
            Event::Drain => self.on_drain(now, out),
            Event::Tick => self.on_tick(now, out),
        }
        self.fill(now, out);
    }

    /// Ends a turn: what is to be told leaves in as few frames as possible.
    pub fn flush(&mut self, now: Time, out: &mut Effects) {
        if self.link == Link::Up {
            // Ends before starts, as they happened: the server reckons starts from when it hears of either.
            self.flush_reports(out);
            self.flush_started(out);
            self.flush_returned(out);
        }
        self.settle(now, out);
    }

    /// When to call [`handle`](Self::handle) with [`Event::Tick`] if nothing else happens first.
    pub fn next_deadline(&self) -> Option<Time> {
        let connected = self.link != Link::Down;
        let mode = match self.mode {
            Mode::Working | Mode::Gone => None,
            Mode::Draining { end_at, .. } => Some(end_at),
            Mode::Ending { give_up_at } => Some(give_up_at),
            Mode::Leaving { exit_at, .. } => Some(exit_at),
        };
        [
            self.due.first().map(|&(at, _)| at),
            connected.then_some(self.beat_due),
            connected.then(|| self.silent_at()),
            (self.stoppable > 0).then(|| self.lease_end()),
            self.pause_until,
            self.idle_exit_at(),
            mode,
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Attempts that the next tick ends for their silence, unless it is told of a later sign of life before.
    pub fn suspects(&self, now: Time) -> Vec<Fence> {
        let due = self.due.iter().take_while(|&&(at, _)| at <= now);
        let silent = |fence: Fence| {
            let run = self.run(fence)?;
            (run.ending.is_none() && run.stalled_at()? <= now).then_some(fence)
        };
        due.filter_map(|&(_, fence)| silent(fence)).collect()
    }

    /// Whether [`Event::Written`] would start something.
    pub fn awaits_write(&self) -> bool {
        self.link == Link::Up && self.starting.len() > self.untold
    }

    /// What a login has to say of the work in hand.
    pub fn resume(&self) -> Resume {
        let mut held: Vec<Held> = self
            .reports
            .iter()
            .map(|r| Held {
                fence: r.fence,
                started: r.started,
            })
            .collect();
        let mut started: Vec<Fence> = self
            .attempts
            .iter()
            .filter(|(_, phase)| match phase {
                Phase::Starting | Phase::Running(_) if mutation::is("running work not listed") => {
                    false
                }
                Phase::Starting => true,
                Phase::Running(run) => run.ending != Some(Why::Void),
                Phase::Waiting | Phase::Ended => false,
            })
            .map(|(&fence, _)| fence)
            .collect();
        started.sort_unstable();
        held.extend(started.into_iter().map(|fence| Held {
            fence,
            started: true,
        }));
        let waiting = self
            .waiting
            .iter()
            .map(|a| a.fence)
            .filter(|&fence| self.waits(fence));
        held.extend(waiting.map(|fence| Held {
            fence,
            started: false,
        }));
        let used: BTreeSet<Epoch> = held.iter().map(|h| h.fence.epoch).collect();
        // Attempts of still older epochs are void to the server, which never hears what it could not prove.
        let known = |epoch: &Epoch| self.epochs.get(epoch).map(|nonce| (*epoch, *nonce));
        let epochs = used
            .iter()
            .rev()
            .take(EPOCHS_MAX)
            .filter_map(known)
            .collect();
        Resume {
            held,
            last_report: self.last_report(),
            epochs,
        }
    }

    /// Whether the attempt is held, and if so whether it has started. One that has ended is not held any more here.
    pub fn started(&self, fence: Fence) -> Option<bool> {
        match self.attempts.get(&fence)? {
            Phase::Waiting => Some(false),
            Phase::Starting | Phase::Running(_) => Some(true),
            Phase::Ended => None,
        }
    }

    /// Attempts held that have not ended, void ones left out.
    pub fn held(&self) -> usize {
        self.attempts.len() - self.reports.len() - self.voided
    }

    /// Every invariant, slowly. The simulator calls it after each event.
    pub fn check(&self) {
        let count =
            |wanted: fn(&Phase) -> bool| self.attempts.values().filter(|p| wanted(p)).count();
        let waiting = count(|p| matches!(p, Phase::Waiting));
        let starting = count(|p| matches!(p, Phase::Starting));
        let running = count(|p| matches!(p, Phase::Running(_)));
        let ended = count(|p| matches!(p, Phase::Ended));
        assert_eq!(self.waiting_count, waiting, "waiting attempts are counted");
        assert!(
            self.waiting.len() >= waiting,
            "each waiting attempt has its place"
        );
        assert_eq!(
            self.starting.len(),
            starting,
            "starting attempts keep their work"
        );
        assert!(
            self.untold <= starting,
            "only starting attempts are to be told"
        );
        assert_eq!(
            self.used as usize,
            starting + running,
            "slots are held from start to reaped end"
        );
        assert!(self.used <= self.config.slots, "never more than its slots");
        assert_eq!(
            self.reports.len(),
            ended,
            "an ended attempt has a report, and a report its attempt"
        );
        assert!(
            self.sent <= self.last_report() && self.sent >= self.acked,
            "sent lies in between"
        );
        assert!(
            self.link == Link::Up || self.sent == self.acked,
            "no report before Resumed"
        );
        assert!(
            self.attempts.len() <= HELD_MAX,
            "no more is held than can be resumed"
        );
        let mut due = BTreeSet::new();
        let mut stoppable = 0;
        let mut voided = 0;
        for (&fence, phase) in &self.attempts {
            if let Phase::Running(run) = phase {
                due.extend(run.due.map(|at| (at, fence)));
                stoppable += usize::from(run.stop_when_cut_off && run.ending.is_none());
                voided += usize::from(run.ending == Some(Why::Void));
                assert!(run.ending.is_some() || !run.killed, "KILL has a reason");
            }
        }
        assert_eq!(self.due, due, "each deadline is entered once");
        assert_eq!(
            self.stoppable, stoppable,
            "attempts bound to the lease are counted"
        );
        assert_eq!(self.voided, voided, "void attempts are counted");
        assert_eq!(
            self.report_bytes,
            self.reports.iter().map(report_bytes).sum::<usize>()
        );
        for report in &self.reports {
            assert!(matches!(
                self.attempts.get(&report.fence),
                Some(Phase::Ended)
            ));
        }
    }

    fn on_connected(
        &mut self,
        now: Time,
        beat: Span,
        lease: Span,
        epoch: (Epoch, [u8; 16]),
        out: &mut Effects,
    ) {
        // Starts of one history are counted upwards.
        if let Some(before) = self.server
            && (epoch.0 < before.0 || epoch.0 == before.0 && epoch.1 != before.1)
            && !mutation::is("output of another history sent")
        {
            out.push(Effect::ForgetSince(epoch.0));
        }
        self.link = Link::Resuming;
        self.heard = now;
        // A server that wants no pause between beats gets one each millisecond: anything else would spin.
        self.beat = beat.max(Span::from_ms(1));
        self.lease = lease;
        self.beat_due = now + self.beat;
        self.assign_seq = 0;
        self.idle_since = None;
        let held: BTreeSet<Epoch> = self.attempts.keys().map(|fence| fence.epoch).collect();
        self.epochs.retain(|known, _| held.contains(known));
        // What is held of another start of the same number must not pass for work of this one, should we log in once more
        // before it is void.
        self.epochs.entry(epoch.0).or_insert(epoch.1);
        self.server = Some(epoch);
    }

    /// The server lives. Before `Resumed` that renews no lease: it may be about to refuse us, and to count us as lost (its
    /// name is in use) or as long gone.
    fn on_heard(&mut self, now: Time) {
        self.heard = now;
        if self.link == Link::Up || mutation::is("a refusal renews the lease") {
            self.leased = now;
        }
    }

    fn on_disconnected(&mut self) {
        self.link = Link::Down;
        if !mutation::is("report not sent again") {
            self.sent = self.acked;
        }
        self.returned.clear();
        // The next login says that these have started, which tells the server the same.
        self.untold = 0;
    }

    fn on_frame(&mut self, now: Time, frame: Frame, out: &mut Effects) {
        match frame {
            Frame::Resumed(resumed) => self.on_resumed(now, resumed, out),
            Frame::Assign(assign) => self.on_assign(assign, out),
            Frame::Recall(recall) => self.on_recall(&recall),
            Frame::Cancel(cancel) => self.on_cancel(now, cancel, out),
            Frame::Stop(Stop { fences }) => self.on_void(now, &fences, out),
            Frame::Ack(Ack { through }) => self.on_ack(through, out),
            Frame::Beat(_) => {}
            Frame::Probe(probe) => out.push(Effect::Answer(probe)),
            Frame::Hello(_)
            | Frame::Challenge(_)
            | Frame::Login(_)
            | Frame::Welcome(_)
            | Frame::Refused(_)
            | Frame::NotLeader(_)
            | Frame::Started(_)
            | Frame::Reports(_)
            | Frame::Returned(_)
            | Frame::ProbeReply(_)
            | Frame::Chunk(_)
            | Frame::OutputStart(_)
            | Frame::OutputEnd(_)
            | Frame::OutputAck(_) => {
                self.reconnect("the server sent a frame that is not its to send", out)
            }
        }
    }

    fn on_resumed(&mut self, now: Time, resumed: Resumed, out: &mut Effects) {
        if self.link != Link::Resuming {
            return self.reconnect(
                "the server resumed a session that was not waiting for it",
                out,
            );
        }
        self.on_ack(resumed.acked, out);
        if self.link == Link::Down {
            return;
        }
        self.link = Link::Up;
        self.on_void(now, &resumed.void, out);
        self.part_with_other_history(&resumed.void);
        self.start_told(now, out);
        if self.mode != Mode::Working {
            self.tell_draining = true;
            self.return_waiting();
        }
    }

    fn on_assign(&mut self, assign: Assign, out: &mut Effects) {
        if assign.seq != self.assign_seq + 1 {
            return self.reconnect("an assign frame is missing", out);
        }
        self.assign_seq = assign.seq;
        // Those names are ours, for reports that must end nobody.
        if assign.jobs.iter().any(|it| it.fence.epoch == NO_EPOCH) {
            return self.reconnect("an assignment names no start of a server", out);
        }
        for assignment in assign.jobs {
            let fence = assignment.fence;
            match self.attempts.get(&fence) {
                Some(Phase::Running(Run {
                    ending: Some(Why::Void),
                    ..
                })) => self.returned.push(fence),
                Some(_) => {}
                None if self.mode != Mode::Working || self.attempts.len() >= HELD_MAX => {
                    self.returned.push(fence);
                }
                None => {
                    self.attempts.insert(fence, Phase::Waiting);
                    self.waiting.push_back(assignment);
                    self.waiting_count += 1;
                }
            }
        }
    }

    /// Gives back what has not started. What has will report in its own time.
    fn on_recall(&mut self, recall: &Recall) {
        for &fence in &recall.fences {
            if self.waits(fence) {
                self.withdraw(fence);
                self.returned.push(fence);
            }
        }
        self.compact();
    }

    fn on_cancel(&mut self, now: Time, cancel: Cancel, out: &mut Effects) {
        let fence = cancel.fence;
        match self.attempts.get_mut(&fence) {
            Some(Phase::Waiting) => {
                self.waiting_count -= 1;
                self.report_unstarted(fence, true, None);
                self.compact();
            }
            Some(Phase::Starting) => {
                self.drop_starting(fence);
                self.report_unstarted(fence, true, None);
            }
            Some(Phase::Running(run)) => {
                run.cancelled = true;
                self.end(now, fence, Why::Cancelled, cancel.force, out);
            }
            // It ended first, or its report is settled: that stands.
            Some(Phase::Ended) | None => {}
        }
    }

    fn on_void(&mut self, now: Time, fences: &[Fence], out: &mut Effects) {
        for &fence in fences {
            match self.attempts.get(&fence) {
                Some(Phase::Waiting) => self.withdraw(fence),
                Some(Phase::Starting) => {
                    self.drop_starting(fence);
                    self.attempts.remove(&fence);
                }
                Some(Phase::Running(_)) => self.end(now, fence, Why::Void, false, out),
                // Reports are numbered without gaps; the server acknowledges this one like any other.
                Some(Phase::Ended) | None => {}
            }
            out.push(Effect::Forget(fence));
        }
        self.compact();
    }

    /// A server whose database is a restored backup gives the names of attempts out a second time. All that we hold by such
    /// names is void now; a report of it that must still be made, for its number, is made in nobody's name, so that it
    /// cannot end a namesake.
    fn part_with_other_history(&mut self, void: &[Fence]) {
        let Some((epoch, nonce)) = self.server else {
            return;
        };
        let known = self.epochs.insert(epoch, nonce);
        if known.is_none_or(|known| known == nonce) {
            return;
        }
        let void: BTreeSet<Fence> = void.iter().copied().filter(|v| v.epoch == epoch).collect();
        for (number, report) in (self.acked + 1..).zip(&mut self.reports) {
            if void.contains(&report.fence) {
                self.attempts.remove(&report.fence);
                report.fence.epoch = NO_EPOCH;
                // By its number: histories may have given one job's attempt the same number twice.
                report.fence.job = JobId::new(number).unwrap_or(report.fence.job);
                self.attempts.insert(report.fence, Phase::Ended);
            }
        }
    }

    fn on_ack(&mut self, through: u64, out: &mut Effects) {
        if through > self.last_report() {
            return self.reconnect("the server acknowledged a report that was never made", out);
        }
        while self.acked < through {
            let report = self
                .reports
                .pop_front()
                .expect("acked + reports = last report");
            self.report_bytes -= report_bytes(&report);
            self.attempts.remove(&report.fence);
            self.acked += 1;
        }
        self.sent = self.sent.max(self.acked);
    }

    fn on_ended(&mut self, now: Time, fence: Fence, ending: Ending) {
        let Some(Phase::Running(run)) = self.attempts.get(&fence) else {
            return; // given up already
        };
        let mut run = run.clone();
        self.leave_slot(fence, &run);
        if run.ending == Some(Why::Void) {
            self.attempts.remove(&fence);
            return;
        }
        let (outcome, started, detail) = match ending {
            Ending::NoRoom { message } => {
                self.pause_until = Some(now + NO_ROOM_PAUSE);
                (
                    Outcome::Returned,
                    false,
                    Some(Box::new(Detail {
                        message,
                        ..Detail::default()
                    })),
                )
            }
            Ending::Done {
                outcome,
                detail,
                told: false,
            } => {
                run.cancelled = false;
                (outcome, true, detail)
            }
            Ending::Done {
                outcome,
                detail,
                told: true,
            } => match run.ending {
                Some(Why::TimedOut) => (Outcome::TimedOut, true, detail),
                Some(Why::Stalled) => (Outcome::Stalled, true, Some(run.say_stalled(detail))),
                Some(Why::Drained | Why::CutOff) => (Outcome::Returned, true, detail),
                Some(Why::Cancelled | Why::Void) | None => (outcome, true, detail),
            },
        };
        let run_us = (now - run.since).us();
        let cancelled = run.cancelled;
        self.report(Report {
            fence,
            outcome,
            cancelled,
            started,
            run_us,
            detail,
        });
    }

    /// Its entry in `due` stays where it is, and is moved when it comes up: signs of life are many, ticks are few.
    fn on_active(&mut self, fence: Fence, at: Time) {
        if let Some(Phase::Running(run)) = self.attempts.get_mut(&fence) {
            run.active = run.active.max(at);
        }
    }

    fn on_drain(&mut self, now: Time, out: &mut Effects) {
        match self.mode {
            Mode::Working => self.drain(now, Exit::Drained),
            Mode::Draining { .. } | Mode::Ending { .. } => {
                self.end_all(now, true, out);
                self.mode = Mode::Ending {
                    give_up_at: now + LAST_WORDS,
                };
            }
            Mode::Leaving { why, .. } => self.mode = Mode::Leaving { exit_at: now, why },
            Mode::Gone => {}
        }
    }

    fn on_tick(&mut self, now: Time, out: &mut Effects) {
        while let Some(&(at, fence)) = self.due.first()
            && at <= now
        {
            let run = self.run(fence).expect("only running attempts are due");
            match (run.ending, run.overstepped(now)) {
                // A deadline after TERM means KILL; before it, it is a limit.
                (Some(why), _) => self.end(now, fence, why, true, out),
                (None, Some(why)) => self.end(now, fence, why, false, out),
                // It was alive meanwhile.
                (None, None) => self.look_later(fence),
            }
        }
        if self.link != Link::Down && self.silent_at() <= now {
            self.reconnect("the server is silent", out);
        }
        if self.link != Link::Down && self.beat_due <= now {
            self.beat_due = now + self.beat;
            let held = u32::try_from(self.held()).expect("at most HELD_MAX");
            out.push(Effect::Send(Frame::Beat(Beat {
                assign_seq: self.assign_seq,
                held,
            })));
        }
        if self.stoppable > 0 && self.lease_end() <= now {
            self.end_cut_off(now, out);
        }
        if self.pause_until.is_some_and(|until| until <= now) {
            self.pause_until = None;
        }
        if self.idle_exit_at().is_some_and(|at| at <= now) {
            self.drain(now, Exit::Idle);
        }
        match self.mode {
            Mode::Draining { end_at, .. } if end_at <= now => self.end_late(now, out),
            Mode::Ending { give_up_at } if give_up_at <= now => self.give_up(now, out),
            Mode::Working
            | Mode::Draining { .. }
            | Mode::Ending { .. }
            | Mode::Leaving { .. }
            | Mode::Gone => {}
        }
    }

    /// Starts what there is room for, in order.
    fn fill(&mut self, now: Time, out: &mut Effects) {
        if self.link != Link::Up || self.mode != Mode::Working || self.pause_until.is_some() {
            return;
        }
        while self.used < self.config.slots && self.report_bytes < REPORT_BYTES_MAX {
            let Some(Assignment { fence, body }) = self.waiting.pop_front() else {
                return;
            };
            if !self.waits(fence) {
                continue;
            }
            self.waiting_count -= 1;
            let Ok(work) = Work::decode(body) else {
                self.report_unreadable(fence);
                continue;
            };
            self.used += 1;
            if self.is_inline(&work.task) || mutation::is("started before it was said") {
                self.start(now, fence, work, out);
            } else {
                self.attempts.insert(fence, Phase::Starting);
                self.starting.push_back((fence, work));
                self.untold += 1;
            }
        }
    }

    fn start(&mut self, now: Time, fence: Fence, work: Work, out: &mut Effects) {
        let mut run = Run {
            since: now,
            timeout_at: work.timeout_ms.map(|ms| now + Span::from_ms(ms)),
            stall: work.stall_ms.map(Span::from_ms),
            active: now,
            grace: work.grace_ms.map_or(self.config.kill_grace, Span::from_ms),
            stop_when_cut_off: work.on_partition == OnPartition::Stop,
            due: None,
            cancelled: false,
            ending: None,
            killed: false,
        };
        run.due = run.limit_at();
        self.due.extend(run.due.map(|at| (at, fence)));
        self.stoppable += usize::from(run.stop_when_cut_off);
        self.attempts.insert(fence, Phase::Running(run));
        out.push(Effect::Start { fence, work });
    }

    fn look_later(&mut self, fence: Fence) {
        let Some(Phase::Running(run)) = self.attempts.get_mut(&fence) else {
            return;
        };
        let due = run.limit_at();
        if let Some(at) = std::mem::replace(&mut run.due, due) {
            self.due.remove(&(at, fence));
        }
        self.due.extend(due.map(|at| (at, fence)));
    }

    /// Starts those whose `Started` is written, or was said in the login that has just been answered.
    fn start_told(&mut self, now: Time, out: &mut Effects) {
        while self.awaits_write() {
            let (fence, work) = self.starting.pop_front().expect("told ones come first");
            self.start(now, fence, work, out);
        }
    }

    /// Tells a running attempt to end; `force` means KILL. The first reason stands, except that void wins.
    fn end(&mut self, now: Time, fence: Fence, why: Why, force: bool, out: &mut Effects) {
        let Some(Phase::Running(run)) = self.attempts.get_mut(&fence) else {
            return;
        };
        let first = run.ending.is_none();
        self.stoppable -= usize::from(first && run.stop_when_cut_off);
        if first || why == Why::Void {
            self.voided += usize::from(why == Why::Void && run.ending != Some(Why::Void));
            run.ending = Some(why);
        }
        if (!first && !force) || run.killed {
            return;
        }
        run.killed = force;
        let due = (!force).then(|| now + run.grace);
        if let Some(at) = std::mem::replace(&mut run.due, due) {
            self.due.remove(&(at, fence));
        }
        self.due.extend(due.map(|at| (at, fence)));
        out.push(Effect::End { fence, force });
    }

    /// The lease is over: ends what must not run on unseen (semantics 2).
    fn end_cut_off(&mut self, now: Time, out: &mut Effects) {
        for fence in self.running(|run| run.stop_when_cut_off && run.ending.is_none()) {
            if mutation::is("work goes on after its lease") {
                continue;
            }
            self.end(now, fence, Why::CutOff, false, out);
        }
    }

    fn end_all(&mut self, now: Time, force: bool, out: &mut Effects) {
        for fence in self.running(|_| true) {
            self.end(now, fence, Why::Drained, force, out);
        }
    }

    /// Starts nothing more, gives back what has not started, and leaves when the rest has ended (semantics 18).
    fn drain(&mut self, now: Time, why: Exit) {
        self.mode = Mode::Draining {
            end_at: now + self.config.drain_timeout,
            why,
        };
        self.tell_draining = true;
        for (fence, _) in std::mem::take(&mut self.starting) {
            self.used -= 1;
            self.report_unstarted(fence, false, Some("the worker is draining"));
        }
        self.untold = 0;
        if self.link == Link::Up {
            self.return_waiting();
        }
    }

    /// The drain has lasted long enough: TERM for all, and KILL when each one's own grace is over.
    fn end_late(&mut self, now: Time, out: &mut Effects) {
        self.end_all(now, false, out);
        let last = self.due.last().map_or(now, |&(at, _)| at);
        self.mode = Mode::Ending {
            give_up_at: last.max(now) + LAST_WORDS,
        };
    }

    /// Some attempts did not end even so: handlers cannot be killed. The process is about to end, and they with it.
    fn give_up(&mut self, now: Time, out: &mut Effects) {
        for fence in self.running(|_| true) {
            let run = self.run(fence).expect("it runs").clone();
            self.leave_slot(fence, &run);
            if run.ending == Some(Why::Void) {
                self.attempts.remove(&fence);
                continue;
            }
            let message = "the worker ended before the attempt did".to_owned();
            self.report(Report {
                fence,
                outcome: Outcome::Returned,
                cancelled: run.cancelled,
                started: true,
                run_us: (now - run.since).us(),
                detail: Some(Box::new(Detail {
                    message,
                    ..Detail::default()
                })),
            });
            if !run.killed {
                out.push(Effect::End { fence, force: true });
            }
        }
    }

    /// Notices idleness, and the end of a drain.
    fn settle(&mut self, now: Time, out: &mut Effects) {
        let idle = self.attempts.is_empty() && self.link == Link::Up && self.mode == Mode::Working;
        self.idle_since = idle.then(|| self.idle_since.unwrap_or(now));
        if self.used == 0
            && let Mode::Draining { .. } | Mode::Ending { .. } = self.mode
        {
            let (why, patience) = match self.mode {
                // Without a link the last reports may wait as long as what ran might have.
                Mode::Draining { why, .. } if self.link != Link::Up => {
                    (why, self.config.drain_timeout.max(LAST_WORDS))
                }
                Mode::Draining { why, .. } => (why, LAST_WORDS),
                Mode::Working | Mode::Ending { .. } | Mode::Leaving { .. } | Mode::Gone => {
                    (Exit::Drained, LAST_WORDS)
                }
            };
            self.mode = Mode::Leaving {
                exit_at: now + patience,
                why,
            };
        }
        if let Mode::Leaving { exit_at, why } = self.mode {
            let told = self.link != Link::Up || !self.tell_draining;
            if self.reports.is_empty() && told {
                self.mode = Mode::Gone;
                out.push(Effect::Exit(why));
            } else if exit_at <= now {
                self.mode = Mode::Gone;
                out.push(Effect::Exit(Exit::Unacknowledged(self.reports.len())));
            }
        }
    }

    fn flush_started(&mut self, out: &mut Effects) {
        let told = self.starting.len() - self.untold;
        let fences: Vec<Fence> = self
            .starting
            .iter()
            .skip(told)
            .map(|&(fence, _)| fence)
            .collect();
        for batch in fences.chunks(BATCH_ITEMS_MAX) {
            out.push(Effect::Send(Frame::Started(Started {
                fences: batch.to_vec(),
            })));
        }
        self.untold = 0;
    }

    fn flush_returned(&mut self, out: &mut Effects) {
        let draining = self.mode != Mode::Working;
        for batch in self.returned.chunks(BATCH_ITEMS_MAX) {
            let fences = batch.to_vec();
            out.push(Effect::Send(Frame::Returned(Returned { fences, draining })));
        }
        if self.tell_draining && self.returned.is_empty() {
            out.push(Effect::Send(Frame::Returned(Returned {
                fences: Vec::new(),
                draining,
            })));
        }
        self.tell_draining = false;
        self.returned.clear();
    }

    fn flush_reports(&mut self, out: &mut Effects) {
        let already = usize::try_from(self.sent - self.acked).expect("at most HELD_MAX");
        let mut unsent = self.reports.iter().skip(already).peekable();
        while unsent.peek().is_some() {
            let first = self.sent + 1;
            let mut reports = Vec::with_capacity(unsent.len().min(BATCH_ITEMS_MAX));
            let mut bytes = 0;
            while reports.len() < BATCH_ITEMS_MAX
                && bytes < FRAME_BYTES_TARGET
                && let Some(report) = unsent.next()
            {
                bytes += report_bytes(report);
                reports.push(report.clone());
            }
            self.sent += reports.len() as u64;
            out.push(Effect::Send(Frame::Reports(Reports { first, reports })));
        }
    }

    fn report(&mut self, mut report: Report) {
        if let Some(detail) = &mut report.detail {
            shorten(&mut detail.message, MESSAGE_BYTES_MAX);
        }
        self.attempts.insert(report.fence, Phase::Ended);
        self.report_bytes += report_bytes(&report);
        self.reports.push_back(report);
    }

    fn report_unstarted(&mut self, fence: Fence, cancelled: bool, message: Option<&str>) {
        let detail = message.map(|m| {
            Box::new(Detail {
                message: m.to_owned(),
                ..Detail::default()
            })
        });
        let outcome = Outcome::Returned;
        self.report(Report {
            fence,
            outcome,
            cancelled,
            started: false,
            run_us: 0,
            detail,
        });
    }

    /// The body is no `Work`: stored by a server of another make, or damaged. Trying here again is pointless.
    fn report_unreadable(&mut self, fence: Fence) {
        let message = "the job's body cannot be read by this worker".to_owned();
        self.report(Report {
            fence,
            outcome: Outcome::SpawnFailed {
                errno: libc::EINVAL,
            },
            cancelled: false,
            started: false,
            run_us: 0,
            detail: Some(Box::new(Detail {
                message,
                ..Detail::default()
            })),
        });
    }

    fn reconnect(&mut self, why: &'static str, out: &mut Effects) {
        self.on_disconnected();
        out.push(Effect::Reconnect(why));
    }

    fn return_waiting(&mut self) {
        for Assignment { fence, .. } in std::mem::take(&mut self.waiting) {
            if self.waits(fence) {
                self.withdraw(fence);
                self.returned.push(fence);
            }
        }
    }

    fn withdraw(&mut self, fence: Fence) {
        self.attempts.remove(&fence);
        self.waiting_count -= 1;
    }

    fn drop_starting(&mut self, fence: Fence) {
        let at = self
            .starting
            .iter()
            .position(|&(f, _)| f == fence)
            .expect("starting ones keep their work");
        if at >= self.starting.len() - self.untold {
            self.untold -= 1;
        }
        self.starting.remove(at);
        self.used -= 1;
    }

    fn leave_slot(&mut self, fence: Fence, run: &Run) {
        self.used -= 1;
        self.voided -= usize::from(run.ending == Some(Why::Void));
        self.stoppable -= usize::from(run.stop_when_cut_off && run.ending.is_none());
        if let Some(at) = run.due {
            self.due.remove(&(at, fence));
        }
    }

    /// Throws out entries of `waiting` that were withdrawn, once they are more than the others.
    fn compact(&mut self) {
        if self.waiting.len() > 2 * self.waiting_count {
            let attempts = &self.attempts;
            self.waiting
                .retain(|a| matches!(attempts.get(&a.fence), Some(Phase::Waiting)));
        }
    }

    fn waits(&self, fence: Fence) -> bool {
        matches!(self.attempts.get(&fence), Some(Phase::Waiting))
    }

    fn run(&self, fence: Fence) -> Option<&Run> {
        match self.attempts.get(&fence)? {
            Phase::Running(run) => Some(run),
            Phase::Waiting | Phase::Starting | Phase::Ended => None,
        }
    }

    /// Running attempts that fit, in the order of their fences.
    fn running(&self, fits: impl Fn(&Run) -> bool) -> Vec<Fence> {
        let mut fences: Vec<Fence> = self
            .attempts
            .iter()
            .filter(|(_, phase)| matches!(phase, Phase::Running(run) if fits(run)))
            .map(|(&fence, _)| fence)
            .collect();
        fences.sort_unstable();
        fences
    }

    fn is_inline(&self, task: &Task) -> bool {
        match task {
            Task::Handler(handler) => self.config.inline.contains(&handler.name),
            Task::Command(_) => false,
        }
    }

    fn last_report(&self) -> u64 {
        self.acked + self.reports.len() as u64
    }

    fn silent_at(&self) -> Time {
        self.heard + self.beat.times(SILENT_BEATS)
    }

    fn lease_end(&self) -> Time {
        self.leased + self.lease
    }

    fn idle_exit_at(&self) -> Option<Time> {
        Some(self.idle_since? + self.config.idle_exit?)
    }
}

/// Cuts a text that is too long for its place, and marks the cut with an ellipsis.
pub(crate) fn shorten(text: &mut String, bytes_max: usize) {
    const MARK: &str = "…";
    if text.len() > bytes_max {
        text.truncate(text.floor_char_boundary(bytes_max - MARK.len()));
        text.push_str(MARK);
    }
}

/// About what a report weighs, in memory and on the wire.
fn report_bytes(report: &Report) -> usize {
    let words = |detail: &Detail| {
        64 + detail.message.len() + detail.result.len() + detail.stderr_tail.len()
    };
    32 + report.detail.as_deref().map_or(0, words)
}

/// Fences come from an authenticated server and are mostly consecutive: a multiplication spreads them well enough, and
/// three hashes a job are worth saving.
#[derive(Debug, Default)]
struct FenceHasher(u64);

impl FenceHasher {
    fn mix(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
}

impl Hasher for FenceHasher {
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.mix(u64::from(byte));
        }
    }

    fn write_u16(&mut self, word: u16) {
        self.mix(u64::from(word));
    }

    fn write_u32(&mut self, word: u32) {
        self.mix(u64::from(word));
    }

    fn write_u64(&mut self, word: u64) {
        self.mix(word);
    }

    fn finish(&self) -> u64 {
        self.0.rotate_left(26)
    }
}

#[cfg(test)]
mod tests;
