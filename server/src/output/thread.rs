//! The output thread's loop: take what has come, append it, sync once, then acknowledge, then answer readers.
//!
//! What arrives while a sync runs is the next batch. A pipe's acknowledgements of one batch leave together. The thread
//! only lets one step of [`Keeper`] follow the other, so that the simulator can let time pass or the server die in
//! between.
//!
//! If a write fails, the pipes that sent something of it are closed: their workers keep what is not acknowledged,
//! connect again after a while and send it again. Jobs go on, health says what is wrong. So a pipe that stays open has
//! had everything it sent taken in, and a gap in it can only be what the worker dropped.
//!
//! Not here: files (`segments`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use hostler_engine::{Span, Time};
use hostler_wire::frame::{Frame, OutputAck};
use hostler_wire::{Fence, JobId};
use tokio::sync::oneshot;

use super::log::index_of;
use super::record::Key;
use super::segments::Segments;
use super::{
    Answer, Output, Page, PipeId, PollEnds, Read, ReadError, Retired, Status, WAITING_READERS_MAX,
    Ways,
};
use crate::clock::Clock;
use crate::mailbox::Receiver;

/// Most messages in one turn: at 256 KiB each that is one sync for 4 MiB. Others wait behind it for theirs.
const MESSAGES_MAX: usize = 16;
/// The same while jobs come and go: a commit of the database that begins meanwhile waits behind no more than 1 MiB.
const MESSAGES_SHARED: usize = 4;
/// How long after a commit of the database the next one is expected.
const SHARED_FOR: Span = Span::from_millis(1_000);
/// Longest that a sync steps back for a commit, and how often it looks.
const STEP_BACK: Span = Span::from_millis(20);
const STEP_BACK_LOOK: Duration = Duration::from_micros(200);
/// How often to look for segments to delete, for readers that gave up, and for a way out of trouble.
const HOUSEKEEPING: Span = Span::from_millis(1_000);

/// A streamed attempt that has ended goes after so many times [`Options::linger`](super::Options::linger), whoever still
/// looks at it.
const LINGERS_MAX: u64 = 30;
/// Most jobs with such attempts at a time: beyond it the oldest one's go before their time.
const LINGERING_MAX: usize = 65_536;

/// Segments deleted in one turn of housekeeping, at most.
const RETIRED_A_TURN: usize = 16;
/// Bytes copied from segments of which little is wanted in one turn of housekeeping, about.
const COPIED_A_TURN: u64 = 16 << 20;
/// Jobs whose ends are asked for at once.
const JOBS_ASKED_MAX: usize = 4_096;

type Reply = oneshot::Sender<Result<Page, ReadError>>;

/// A reader that waits for something new.
#[derive(Debug)]
struct Waiter {
    read: Read,
    reply: Reply,
}

/// A question which jobs of a segment ended well enough for their output to go.
struct Asking {
    segment: u32,
    why: Retired,
    /// Those not asked for yet.
    jobs: Vec<JobId>,
    unwanted: BTreeSet<u64>,
    poll: PollEnds,
}

/// See the module's head.
pub struct Keeper {
    segments: Segments,
    inbox: Receiver<Output>,
    messages: Vec<Output>,
    ways: Ways,
    asking: Option<Asking>,
    clock: Clock,
    status: Arc<Status>,
    waiters: BTreeMap<JobId, Vec<Waiter>>,
    waiting: usize,
    /// Pipes told to close that are not closed yet: what still comes from them is not taken.
    refused: BTreeSet<PipeId>,
    /// What this turn's frames ask to be acknowledged, as the workers claim it.
    touched: BTreeMap<(PipeId, Key), OutputAck>,
    changed: BTreeSet<JobId>,
    reads: Vec<(Read, Reply)>,
    purges: Vec<oneshot::Sender<()>>,
    /// The size of a batch that found no room, until one finds some: with less there is no end of the trouble.
    refused_bytes: usize,
    out: Vec<Answer>,
    /// Streamed attempts that have ended, by job.
    lingering: BTreeMap<JobId, Vec<Lingering>>,
    housekeeping_due: Time,
    /// Commits of the database seen, and until when the disk counts as shared with them.
    commits: u64,
    shared_until: Time,
    stopping: bool,
}

/// A streamed attempt that has ended, and how long its output is still there.
#[derive(Debug)]
struct Lingering {
    fence: Fence,
    until: Time,
    /// Looks do not prolong it beyond this.
    at_most: Time,
}

impl std::fmt::Debug for Keeper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keeper")
            .field("segments", &self.segments)
            .finish_non_exhaustive()
    }
}

impl Keeper {
    pub(super) fn new(
        segments: Segments,
        inbox: Receiver<Output>,
        ways: Ways,
        clock: Clock,
        status: Arc<Status>,
    ) -> Self {
        Self {
            segments,
            inbox,
            messages: Vec::new(),
            ways,
            asking: None,
            clock,
            status,
            waiters: BTreeMap::new(),
            waiting: 0,
            refused: BTreeSet::new(),
            touched: BTreeMap::new(),
            changed: BTreeSet::new(),
            reads: Vec::new(),
            purges: Vec::new(),
            refused_bytes: 0,
            out: Vec::new(),
            lingering: BTreeMap::new(),
            housekeeping_due: Time::ZERO,
            commits: 0,
            shared_until: Time::ZERO,
            stopping: false,
        }
    }

    /// Runs until `Output::Stop`.
    pub(super) fn run(mut self) {
        while !self.stopping {
            self.inbox
                .park(Some(Duration::from_millis(HOUSEKEEPING.millis())));
            while self.gather() {
                self.finish_turn();
                self.keep_house();
            }
            self.keep_house();
        }
        self.close();
    }

    /// Whether [`gather`](Self::gather) has something to take.
    pub fn has_something(&self) -> bool {
        !self.inbox.is_empty()
    }

    /// Whether it was told to stop.
    pub fn is_stopping(&self) -> bool {
        self.stopping
    }

    /// Takes in what has come; says whether there was anything. [`finish_turn`](Self::finish_turn) is to follow.
    pub fn gather(&mut self) -> bool {
        let most = self.messages_max();
        let mut messages = std::mem::take(&mut self.messages);
        let some = self.inbox.drain(&mut messages, most) > 0;
        for message in messages.drain(..) {
            self.take(message);
        }
        self.messages = messages;
        some
    }

    /// The last step: what is damaged after it is known to be damage.
    pub fn close(&mut self) {
        if let Err(error) = self.segments.close(self.clock.wall().millis()) {
            tracing::error!(%error, "the last output could not be synced; workers keep it");
        }
    }

    /// How much goes into one sync: little while the database makes commits on the same disk.
    fn messages_max(&mut self) -> usize {
        let (now, begun) = (self.clock.now(), self.ways.commits.begun());
        if begun != self.commits {
            self.commits = begun;
            self.shared_until = now + SHARED_FOR;
        }
        if now < self.shared_until {
            MESSAGES_SHARED
        } else {
            MESSAGES_MAX
        }
    }

    /// A commit of the database that is under way goes first: somebody waits for it, and it is small.
    fn step_back(&self) {
        let commits = &self.ways.commits;
        let (begun, until) = (commits.begun(), self.clock.now() + STEP_BACK);
        while !commits.has_ended(begun) && self.clock.now() < until {
            std::thread::park_timeout(STEP_BACK_LOOK);
        }
    }

    fn take(&mut self, message: Output) {
        match message {
            Output::Frames {
                pipe,
                frames,
                bytes,
            } => {
                self.out.push(Answer::Taken { pipe, bytes });
                if self.refused.contains(&pipe) {
                    return;
                }
                if self.segments.is_broken() {
                    return self.refuse(pipe);
                }
                for frame in frames {
                    self.take_frame(pipe, frame);
                }
            }
            Output::PipeClosed { pipe } => drop(self.refused.remove(&pipe)),
            Output::Read { read, reply } => self.reads.push((read, reply)),
            Output::Attempts { job, reply } => match self.segments.attempts(job) {
                // Whoever asked may have gone.
                Ok(attempts) => drop(reply.send(attempts)),
                Err(error) => {
                    tracing::error!(%job, ?error, "the attempts with output cannot be listed")
                }
            },
            Output::Purge { job, reply } => {
                if !self.segments.is_broken() {
                    self.segments.purge(job);
                    self.changed.insert(job);
                    self.purges.push(reply);
                }
            }
            Output::Stop => self.stopping = true,
        }
    }

    fn take_frame(&mut self, pipe: PipeId, frame: Frame) {
        let (fence, next, ended) = if let Frame::Chunk(chunk) = &frame {
            self.segments.append(chunk);
            let mut next = [0, 0];
            next[index_of(chunk.stream)] = chunk.offset + chunk.data.len() as u64;
            (chunk.fence, next, false)
        } else if let Frame::OutputEnd(end) = &frame {
            self.segments.end(end);
            self.linger(end.fence);
            (end.fence, [end.stdout_bytes, end.stderr_bytes], true)
        } else if let Frame::OutputStart(start) = &frame {
            return self.segments.start(start); // nothing to be acknowledged
        } else {
            return; // the wire thread passes on nothing else
        };
        self.changed.insert(fence.job);
        let claim = self
            .touched
            .entry((pipe, fence.into()))
            .or_insert(OutputAck {
                fence,
                stdout_through: 0,
                stderr_through: 0,
                ended: false,
            });
        claim.stdout_through = claim.stdout_through.max(next[0]);
        claim.stderr_through = claim.stderr_through.max(next[1]);
        claim.ended |= ended;
    }

    /// Puts what was taken in on disk, then acknowledges it, then answers readers.
    pub fn finish_turn(&mut self) {
        let bytes = self.segments.batch_bytes();
        if bytes > 0 {
            self.step_back();
        }
        match self.segments.commit(self.clock.wall().millis()) {
            Ok(()) => {
                if bytes > 0 {
                    self.refused_bytes = 0;
                    self.status.appended_bytes.add(bytes as u64);
                    self.status.set_trouble(None);
                }
                let cut = self.segments.take_cut();
                self.status.cut_bytes.add(cut.bytes);
                self.status.cut_attempts.add(cut.attempts);
                self.status.stored_bytes.set(self.segments.stored_bytes());
                self.acknowledge();
            }
            Err(error) => {
                self.refused_bytes = self.refused_bytes.max(bytes);
                self.fail(&error.to_string());
            }
        }
        for (read, reply) in std::mem::take(&mut self.reads) {
            self.answer(read, reply);
        }
        for job in std::mem::take(&mut self.changed) {
            self.wake(job);
        }
        if !self.out.is_empty() {
            (self.ways.answers)(&mut self.out);
            self.out.clear();
        }
    }

    /// Everything taken in is on disk.
    fn acknowledge(&mut self) {
        let mut pipe_bytes: Option<(PipeId, BytesMut)> = None;
        for ((pipe, key), claim) in std::mem::take(&mut self.touched) {
            let purged = JobId::new(key.job).is_some_and(|job| self.segments.is_purged(job));
            // Output of a purged job is not stored, and not to be sent again either.
            let ack = if purged {
                claim
            } else {
                self.segments.ack(claim.fence)
            };
            if pipe_bytes.as_ref().is_none_or(|(same, _)| *same != pipe) {
                self.out.extend(pipe_bytes.take().map(acks));
                pipe_bytes = Some((pipe, BytesMut::new()));
            }
            if let Some((_, bytes)) = &mut pipe_bytes {
                Frame::OutputAck(ack).encode(bytes);
            }
        }
        self.out.extend(pipe_bytes.map(acks));
        for reply in self.purges.drain(..) {
            let _gone = reply.send(()).is_err();
        }
    }

    /// Nothing of this turn is stored: the workers keep it. Dropping the purges' replies tells their askers.
    fn fail(&mut self, error: &str) {
        tracing::error!(%error, "output cannot be stored; workers keep theirs");
        self.status
            .set_trouble(Some(format!("output cannot be stored: {error}")));
        self.status.failures.add(1);
        self.purges.clear();
        let pipes: BTreeSet<PipeId> = self.touched.keys().map(|(pipe, _)| *pipe).collect();
        self.touched.clear();
        for pipe in pipes {
            self.refuse(pipe);
        }
    }

    fn refuse(&mut self, pipe: PipeId) {
        if self.refused.insert(pipe) {
            self.out.push(Answer::Refuse { pipe });
        }
    }

    /// A streamed attempt that has ended stays for a while.
    fn linger(&mut self, fence: Fence) {
        let job = self.lingering.get(&fence.job);
        if !self.segments.lingers(fence)
            || job.is_some_and(|all| all.iter().any(|l| l.fence == fence))
        {
            return; // it is of another kind, or this is a repeat
        }
        if self.lingering.len() >= LINGERING_MAX
            && let Some((_, oldest)) = self.lingering.pop_first()
        {
            oldest
                .iter()
                .for_each(|lingering| self.segments.let_go(lingering.fence));
        }
        let (now, linger) = (self.clock.now(), self.segments.linger());
        self.lingering
            .entry(fence.job)
            .or_default()
            .push(Lingering {
                fence,
                until: now + linger,
                at_most: now + linger.times(LINGERS_MAX),
            });
    }

    /// Somebody still reads this job's output.
    fn prolong(&mut self, job: JobId) {
        let now = self.clock.now();
        for lingering in self.lingering.get_mut(&job).into_iter().flatten() {
            lingering.until = lingering.at_most.min(now + self.segments.linger());
        }
    }

    /// Lets go of what has been there long enough.
    fn let_go(&mut self) {
        let now = self.clock.now();
        let segments = &mut self.segments;
        self.lingering.retain(|_, all| {
            all.retain(|lingering| {
                let stays = now < lingering.until;
                if !stays {
                    segments.let_go(lingering.fence);
                }
                stays
            });
            !all.is_empty()
        });
    }

    fn answer(&mut self, read: Read, reply: Reply) {
        self.prolong(read.job);
        let result = self.segments.read(&read);
        if let Ok(page) = &result
            && read.wait
            && page.pieces.is_empty()
            && page.ended.is_none()
            // Also if it came in the very turn of the question.
            && !self.has_newer(&read)
        {
            return self.wait(Waiter { read, reply });
        }
        drop(reply.send(result));
    }

    fn wait(&mut self, waiter: Waiter) {
        if self.waiting >= WAITING_READERS_MAX {
            self.sweep();
        }
        if self.waiting >= WAITING_READERS_MAX {
            let error = format!(
                "{WAITING_READERS_MAX} readers wait for output already, which is the limit"
            );
            drop(waiter.reply.send(Err(ReadError::Io(error))));
            return;
        }
        self.waiting += 1;
        self.waiters
            .entry(waiter.read.job)
            .or_default()
            .push(waiter);
    }

    /// Looks again for those who wait for this job's output.
    fn wake(&mut self, job: JobId) {
        let waiters = self.waiters.remove(&job).unwrap_or_default();
        self.waiting -= waiters.len();
        for waiter in waiters {
            if waiter.reply.is_closed() {
                continue;
            }
            let result = self.segments.read(&waiter.read);
            let nothing = result
                .as_ref()
                .is_ok_and(|page| page.pieces.is_empty() && page.ended.is_none());
            if nothing && !self.has_newer(&waiter.read) {
                self.wait(waiter);
            } else {
                drop(waiter.reply.send(result));
            }
        }
    }

    /// There is an attempt that the reader would rather hear of than wait.
    fn has_newer(&self, read: &Read) -> bool {
        let Some(known) = read.newer else {
            return false;
        };
        let attempts = self.segments.attempts(read.job).unwrap_or_default();
        attempts.iter().any(|attempt| attempt.attempt > known)
    }

    /// Forgets readers that gave up.
    fn sweep(&mut self) {
        self.waiters.retain(|_, waiters| {
            waiters.retain(|waiter| !waiter.reply.is_closed());
            !waiters.is_empty()
        });
        self.waiting = self.waiters.values().map(Vec::len).sum();
    }

    /// What is to be done now and then, if it is time.
    pub fn keep_house(&mut self) {
        let now = self.clock.now();
        if now < self.housekeeping_due {
            return;
        }
        self.housekeeping_due = now + HOUSEKEEPING;
        self.sweep();
        self.let_go();
        if self.segments.is_broken() {
            match self.segments.recover() {
                Ok(()) => tracing::info!("output can be stored again"),
                Err(error) => tracing::error!(%error, "output still cannot be stored"),
            }
        }
        // Whoever looks at health keeps jobs away while it is red: so it must not need their output to turn green.
        let in_trouble = self.status.trouble().is_some();
        let has_room = || self.segments.try_space(self.refused_bytes).is_ok();
        if in_trouble && !self.segments.is_broken() && has_room() {
            tracing::info!("the disk of output takes something again");
            self.status.set_trouble(None);
        }
        let now_ms = self.clock.wall().millis();
        for _ in 0..RETIRED_A_TURN {
            match self.segments.retire_one(now_ms) {
                Ok(Some((why, bytes))) => {
                    self.status.retired_segments.add(1);
                    self.status.retired_bytes[why as usize].add(bytes);
                }
                Ok(None) => break,
                Err(error) => {
                    tracing::error!(%error, "an old output segment could not be deleted");
                    break;
                }
            }
        }
        let mut copied = 0;
        while copied < COPIED_A_TURN {
            match self.segments.compact_one() {
                Ok(Some(bytes)) => copied += bytes + COPIED_A_TURN / 16,
                Ok(None) => break,
                Err(error) => {
                    tracing::error!(%error, "an output segment could not be rewritten");
                    break;
                }
            }
        }
        if let Err(error) = self.trim(now_ms) {
            self.asking = None;
            tracing::error!(%error, "output that has had its time could not be taken out of a segment");
        }
        self.status.stored_bytes.set(self.segments.stored_bytes());
    }

    /// Takes the output of jobs that ended well out of a segment that is old enough: a step of it at a time.
    fn trim(&mut self, now_ms: u64) -> std::io::Result<()> {
        if self.asking.is_none()
            && let Some((segment, why)) = self.segments.overdue(now_ms)
        {
            let mut jobs = self.segments.jobs_of(segment)?;
            let poll = (self.ways.ends)(some_of(&mut jobs));
            self.asking = Some(Asking {
                segment,
                why,
                jobs,
                unwanted: BTreeSet::new(),
                poll,
            });
        }
        let Some(mut asking) = self.asking.take() else {
            return Ok(());
        };
        match (asking.poll)() {
            None => self.asking = Some(asking),
            Some(None) => {} // another time
            Some(Some(ended)) => {
                asking.unwanted.extend(ended.into_iter().map(JobId::raw));
                if asking.jobs.is_empty() {
                    let bytes = self.segments.trim(asking.segment, &asking.unwanted)?;
                    self.status.retired_bytes[asking.why as usize].add(bytes);
                    return Ok(());
                }
                asking.poll = (self.ways.ends)(some_of(&mut asking.jobs));
                self.asking = Some(asking);
            }
        }
        Ok(())
    }
}

/// As many as are asked for at once.
fn some_of(jobs: &mut Vec<JobId>) -> Vec<JobId> {
    jobs.split_off(jobs.len().saturating_sub(JOBS_ASKED_MAX))
}

fn acks((pipe, bytes): (PipeId, BytesMut)) -> Answer {
    Answer::Acks { pipe, bytes }
}
