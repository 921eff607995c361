//! What must be true, kept in the plainest tables there are.
//!
//! The oracle sees what a commit makes durable, what frames leave the server, what workers really do and what people
//! are told, and compares. It knows nothing of lanes, lines, pages or heaps; a run panics at the first thing that is
//! not as promised.
//!
//! Not here: the order among jobs that may run (`order`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use hostler_engine::effect::CancelAnswer;
use hostler_engine::fact::{Again, Assigned, Cancelling, Charge, Ended, Started};
use hostler_engine::spec::{Class, ClassSpec, Kind, Rule};
use hostler_engine::{Fact, Span, Time, When};
use hostler_server::config::Durability;
use hostler_server::store::seam::{Commit, EndRecord, NewJob};
use hostler_wire::frame::Report;
use hostler_wire::{Attempt, Epoch, Fence, JobId, JobState, Outcome, Reason, WorkerId};

use crate::printed::Prints;
use crate::workload::plan_of;

/// A job as the disk has it.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    pub(crate) plan: u64,
    pub(crate) class: Arc<Class>,
    due: Option<When>,
    expires: Option<When>,
    deadline: Option<When>,
    pub(crate) attempt: u16,
    failures: u16,
    losses: u16,
    later: u16,
    ever_started: bool,
    current: Option<Current>,
    cancelling: Option<Reason>,
    cancelling_since: Time,
    pub(crate) end: Option<(JobState, Reason)>,
    /// A person was told that it is accepted.
    pub(crate) promised: bool,
    /// A loss of it was noticed: a job that may run once only must not be given out again.
    spent: bool,
    /// Its commit had to be synced.
    sync: bool,
}

#[derive(Clone, Copy, Debug)]
struct Current {
    fence: Fence,
    worker: WorkerId,
    started: bool,
    /// How many backups had come back when it was given out.
    history: u32,
}

/// Between TERM and KILL where a job does not say.
const KILL_GRACE: Span = Span::from_secs(10);
/// What the server's backstop waits beyond that.
const BEATS: Span = Span::from_secs(4);
/// What frames, commits and wake-ups may take, with much to spare.
const SLACK: Span = Span::from_secs(5);

/// What really happened to an attempt, whoever heard of it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Truth {
    /// Processes of it that were started; more than one is a double start.
    pub(crate) starts: u32,
    /// The worker said, or was about to say, that it starts.
    pub(crate) said_started: bool,
    /// How its process ended.
    pub(crate) ended: Option<Outcome>,
    /// It had been told to.
    pub(crate) told: bool,
    /// The report that was made of it, and by which start of which worker.
    pub(crate) report: Option<(Outcome, bool, u64)>,
    /// How many backups had come back when it was given out.
    history: u32,
    /// A power cut took back what was known of it, and its worker may have forgotten it rightly.
    pub(crate) excused: bool,
}

/// What was on disk at a moment.
#[derive(Clone, Debug)]
pub(crate) struct Snapshot {
    jobs: BTreeMap<JobId, Job>,
    taken: BTreeSet<JobId>,
    made: BTreeMap<u64, Vec<JobId>>,
    highest: u64,
    asked_to_stop: BTreeSet<JobId>,
    workers: BTreeMap<WorkerId, u64>,
    last_commit: (Epoch, u64),
    live: usize,
    /// Attempts that had printed: also one whose assignment had gone with the power, its output synced.
    printed: BTreeSet<Fence>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Oracle {
    /// What an answer means.
    durability: Durability,
    /// Nothing goes wrong in this run: then times can be judged too.
    peaceful: bool,
    pub(crate) jobs: BTreeMap<JobId, Job>,
    /// Jobs as they were at the last sync, those changed since.
    unsynced: BTreeMap<JobId, Option<Job>>,
    /// Jobs that went with the power before they were synced.
    taken: BTreeSet<JobId>,
    pub(crate) truths: BTreeMap<Fence, Truth>,
    pub(crate) prints: Prints,
    /// By plan: the jobs made of it.
    pub(crate) made: BTreeMap<u64, Vec<JobId>>,
    highest: u64,
    /// Jobs somebody asked to have stopped.
    pub(crate) asked_to_stop: BTreeSet<JobId>,
    /// Instances of workers by their numbers.
    workers: BTreeMap<WorkerId, u64>,
    last_commit: (Epoch, u64),
    live: usize,
    /// How many backups have come back: what was given out before is of another history.
    pub(crate) history: u32,
    /// A worker came back to a restored backup and could not know (docs/output.md): what it spooled may stand there.
    pub(crate) mixed: bool,
    /// Processes that run under the eyes of their workers, of jobs that must not run twice at once.
    alone: BTreeMap<u64, Vec<Fence>>,
    /// The last start before a power cut took assignments that had not been synced.
    forgotten_through: Epoch,
    pub(crate) facts: u64,
    pub(crate) submitted: u64,
    pub(crate) ended: u64,
    pub(crate) outcomes: BTreeMap<(&'static str, &'static str), u64>,
}

impl Oracle {
    pub(crate) fn new(durability: Durability, peaceful: bool) -> Self {
        Self {
            durability,
            peaceful,
            jobs: BTreeMap::new(),
            unsynced: BTreeMap::new(),
            taken: BTreeSet::new(),
            truths: BTreeMap::new(),
            prints: Prints::default(),
            made: BTreeMap::new(),
            highest: 0,
            asked_to_stop: BTreeSet::new(),
            workers: BTreeMap::new(),
            last_commit: (Epoch::new(0), 0),
            live: 0,
            history: 0,
            mixed: false,
            alone: BTreeMap::new(),
            forgotten_through: Epoch::new(0),
            facts: 0,
            submitted: 0,
            ended: 0,
            outcomes: BTreeMap::new(),
        }
    }

    /// It is on the disk (and synced if the commit says so).
    pub(crate) fn committed(&mut self, commit: &Commit<'_>) {
        let number = (commit.epoch, commit.batch);
        assert!(
            number > self.last_commit,
            "commits are numbered upwards: {number:?}"
        );
        self.last_commit = number;
        for batch in commit.submissions {
            for (place, job) in (0..).zip(&batch.jobs) {
                self.submit(batch.first.plus(place), job);
            }
        }
        for fact in commit.facts {
            self.fact(commit.epoch, fact);
        }
        if commit.sync {
            self.unsynced.clear();
        }
    }

    /// What is on disk now, to come back to.
    pub(crate) fn snapshot(&self) -> Snapshot {
        Snapshot {
            jobs: self.jobs.clone(),
            taken: self.taken.clone(),
            made: self.made.clone(),
            highest: self.highest,
            asked_to_stop: self.asked_to_stop.clone(),
            workers: self.workers.clone(),
            last_commit: self.last_commit,
            live: self.live,
            printed: self.prints.of.keys().copied().collect(),
        }
    }

    /// An older state of the disk is the truth again. What was given out since is nobody's.
    pub(crate) fn restore(&mut self, known: &Snapshot) {
        let Snapshot {
            jobs,
            taken,
            made,
            highest,
            asked_to_stop,
            workers,
            last_commit,
            live,
            printed,
        } = known.clone();
        let current: BTreeMap<Fence, u32> = jobs
            .values()
            .filter_map(|job| job.current.map(|current| (current.fence, current.history)))
            .collect();
        // Attempts are counted upwards, so up to that number they were given out before.
        let was_out = |fence: &Fence| {
            let job = jobs.get(&fence.job);
            job.is_some_and(|job| job.attempt >= fence.attempt.raw())
        };
        self.truths.retain(|fence, _| was_out(fence));
        for (fence, history) in &current {
            // Its end may have been acknowledged, and is forgotten everywhere.
            let truth = self.truths.entry(*fence).or_default();
            truth.history = *history;
            truth.report = None;
            truth.excused = true;
        }
        self.prints
            .restore(|fence| was_out(fence) || printed.contains(fence));
        (self.jobs, self.taken, self.made) = (jobs, taken, made);
        (self.highest, self.live) = (highest, live);
        (self.asked_to_stop, self.workers) = (asked_to_stop, workers);
        self.last_commit = last_commit;
        self.unsynced.clear();
        self.alone.clear();
    }

    /// Their worker does not see them any more, or stands still: it cannot end them.
    pub(crate) fn unwatched(&mut self, fences: &[Fence]) {
        for alone in self.alone.values_mut() {
            alone.retain(|fence| !fences.contains(fence));
        }
    }

    /// A process of it has ended.
    pub(crate) fn stops(&mut self, fence: Fence, plan: u64) {
        if let Some(alone) = self.alone.get_mut(&plan) {
            alone.retain(|other| *other != fence);
        }
    }

    /// The power went: what was not synced is gone.
    pub(crate) fn lose_power(&mut self) {
        if self.durability == Durability::Os {
            // Nobody knows any more that they run, or wait to: a worker may start one before it hears that it is void.
            self.alone.clear();
            self.forgotten_through = self.last_commit.0;
        }
        for (id, before) in std::mem::take(&mut self.unsynced) {
            let Some(now) = self.jobs.remove(&id) else {
                continue;
            };
            self.live -= usize::from(now.end.is_none());
            match before {
                Some(job) => {
                    assert!(
                        now.end == job.end || self.durability == Durability::Os,
                        "the end of {id:?} is gone with the power"
                    );
                    if let Some(current) = job.current {
                        // Its report may have been acknowledged, and is forgotten everywhere.
                        let truth = self.truths.entry(current.fence).or_default();
                        truth.history = current.history;
                        truth.report = None;
                        truth.excused = true;
                    }
                    self.live += usize::from(job.end.is_none());
                    self.jobs.insert(id, job);
                }
                None => {
                    assert!(
                        !(now.promised && now.sync),
                        "{id:?} was promised and is gone with the power (P1)"
                    );
                    self.taken.insert(id);
                    if let Some(made) = self.made.get_mut(&now.plan) {
                        made.retain(|other| *other != id);
                    }
                }
            }
        }
    }

    fn submit(&mut self, id: JobId, new: &NewJob) {
        assert!(
            id.raw() > self.highest,
            "{id:?} was given out before, or below one that was"
        );
        self.highest = id.raw();
        self.submitted += 1;
        self.live += 1;
        let plan = plan_of(new);
        let job = Job {
            plan,
            class: Arc::clone(&new.class),
            due: new.due,
            expires: new.expires,
            deadline: new.deadline,
            attempt: 0,
            failures: 0,
            losses: 0,
            later: 0,
            ever_started: false,
            current: None,
            cancelling: None,
            cancelling_since: Time::ZERO,
            end: None,
            promised: false,
            spent: false,
            sync: new.sync,
        };
        self.made.entry(plan).or_default().push(id);
        self.unsynced.entry(id).or_insert(None);
        self.jobs.insert(id, job);
    }

    fn fact(&mut self, epoch: Epoch, fact: &Fact) {
        self.facts += 1;
        match fact {
            Fact::Worker(worker) => {
                self.workers.insert(worker.id, worker.instance);
            }
            Fact::Assigned(assigned) => self.assigned(epoch, assigned),
            Fact::Started(started) => self.started(started),
            Fact::Again(again) => self.again(again),
            Fact::Ended(ended) => self.end(ended),
            Fact::Cancelling(cancelling) => self.cancelling(cancelling),
        }
    }

    fn change(&mut self, id: JobId) -> &mut Job {
        let job = self.jobs.get_mut(&id);
        let job = job.unwrap_or_else(|| panic!("{id:?} was never accepted (P2)"));
        self.unsynced.entry(id).or_insert_with(|| Some(job.clone()));
        job
    }

    fn assigned(&mut self, epoch: Epoch, assigned: &Assigned) {
        let history = self.history;
        for &(id, attempt) in &assigned.attempts {
            let at = assigned.at;
            let job = self.change(id);
            assert_eq!(job.end, None, "{id:?} is over and was given out");
            assert!(job.current.is_none(), "{id:?} was given out twice at once");
            assert_eq!(
                job.cancelling, None,
                "{id:?} is cancelling and was given out"
            );
            assert!(
                !job.spent,
                "{id:?} may run once only and was given out again"
            );
            assert_eq!(
                attempt.raw(),
                job.attempt + 1,
                "attempts of {id:?} are counted up by one"
            );
            assert!(
                !is_after(job.due, at),
                "{id:?} was given out at {at:?}, before {:?}",
                job.due
            );
            if !job.ever_started {
                assert!(
                    !is_before(job.expires, at),
                    "{id:?} had expired when it was given out"
                );
            }
            assert!(
                !is_before(job.deadline, at),
                "{id:?} was past its deadline when it was given out"
            );
            job.attempt = attempt.raw();
            job.current = Some(Current {
                fence: Fence {
                    job: id,
                    epoch,
                    attempt,
                },
                worker: assigned.worker,
                started: false,
                history,
            });
        }
    }

    fn started(&mut self, started: &Started) {
        for &fence in &started.fences {
            let truth = self.truths.get(&fence);
            assert!(
                truth.is_some_and(|truth| truth.said_started),
                "{fence:?} started, its worker never said so"
            );
            let job = self.change(fence.job);
            let current = job.current.as_mut();
            let current = current.unwrap_or_else(|| panic!("{fence:?} started and is not out"));
            assert_eq!(
                (current.fence, current.worker),
                (fence, started.worker),
                "what starts is current (P3)"
            );
            assert!(!current.started, "{fence:?} starts once");
            current.started = true;
            job.ever_started = true;
        }
    }

    fn again(&mut self, again: &Again) {
        let fence = again.fence;
        let truth = self.truths.get(&fence).cloned().unwrap_or_default();
        let instance = self.workers.get(&again.worker).copied();
        let peaceful = self.peaceful;
        let job = self.change(fence.job);
        let current = job.current.take();
        let current = current.unwrap_or_else(|| panic!("{fence:?} ended and is not out"));
        assert_eq!(
            (current.fence, current.worker),
            (fence, again.worker),
            "what ends is current (P3)"
        );
        assert_eq!(job.cancelling, None, "{fence:?} is cancelling and goes on");
        let spec = &job.class.spec;
        let (failures, later) = (job.failures, job.later);
        job.ever_started |= again.started.is_some();
        if peaceful {
            check_length(fence, spec, again.started, again.at);
        }
        match again.charge {
            Charge::Failure => {
                check_failure(fence, again.reason, &truth, spec);
                job.failures += 1;
                assert!(
                    job.failures < spec.retry.max_attempts,
                    "{fence:?}: no try is left after {} failures",
                    job.failures
                );
                assert!(
                    is_retried(&job.class, again.reason, &truth),
                    "{fence:?} failed for good and is tried again"
                );
            }
            Charge::Loss => {
                job.losses += 1;
                assert_eq!(again.reason, Reason::WorkerLost);
                assert!(
                    truth.said_started,
                    "{fence:?} was charged a loss and had not started"
                );
                assert!(
                    job.losses <= spec.max_losses,
                    "{fence:?}: {} losses, {} allowed",
                    job.losses,
                    spec.max_losses
                );
            }
            Charge::Later => {
                job.later += 1;
                let Some((Outcome::Exited { code }, false, _)) = truth.report else {
                    panic!("{fence:?} said 'later' without a word: {truth:?}");
                };
                assert!(spec.retry.later.contains(&code) && job.later <= 100);
            }
            Charge::Return => {
                let reported = truth.report.filter(|(_, _, by)| Some(*by) == instance);
                let never_arrived = again.reason == Reason::WorkerLost
                    || truth.starts == 0
                    || reported.is_some()
                    || truth.excused;
                assert!(
                    never_arrived,
                    "{fence:?} was taken back as not held, and runs: {truth:?}"
                );
                let kept_nothing = match reported {
                    // Lost, it may have done anything.
                    _ if again.reason == Reason::WorkerLost => true,
                    None => true,
                    Some((outcome, _, _)) => outcome == Outcome::Returned,
                };
                assert!(
                    kept_nothing,
                    "{fence:?} was taken back, and its report said {reported:?} (P4): {again:?}"
                );
                let may_again =
                    spec.max_losses > 0 || again.reason != Reason::WorkerLost || truth.starts == 0;
                assert!(
                    may_again,
                    "{fence:?} may run once only, had started, and is tried again"
                );
            }
        }
        if spec.max_losses == 0 && again.reason == Reason::WorkerLost && truth.starts > 0 {
            job.spent = true;
        }
        job.due = again.due;
        let delay = match again.due {
            Some(When::Engine(due)) => due.since(again.at),
            Some(When::Wall(_)) => panic!("a back-off is a duration"),
            None => Span::ZERO,
        };
        let k = match again.charge {
            Charge::Failure => failures + 1,
            Charge::Later => later + 1,
            Charge::Return | Charge::Loss => 0,
        };
        let named = matches!(
            truth.report,
            Some((
                Outcome::HandlerFailed {
                    retry_after_ms: Some(_),
                    ..
                },
                _,
                _
            ))
        );
        if k > 0 && !named {
            let full = full_backoff(&job.class, k);
            assert!(
                (full / 2..=full + 1).contains(&delay.micros()),
                "{fence:?} waits {delay:?} after {k} failures, {full} us is the whole of it"
            );
        }
    }

    fn end(&mut self, ended: &Ended) {
        let id = ended.job;
        let was_asked = self.asked_to_stop.contains(&id);
        let peaceful = self.peaceful;
        let truth = ended
            .fence
            .and_then(|fence| self.truths.get(&fence).cloned())
            .unwrap_or_default();
        self.ended += 1;
        self.live -= 1;
        *self
            .outcomes
            .entry((ended.state.name(), ended.reason.name()))
            .or_default() += 1;
        let job = self.change(id);
        assert_eq!(job.end, None, "{id:?} has two ends");
        let current = job
            .current
            .take()
            .map(|current| (current.fence, current.worker));
        assert_eq!(
            current,
            ended.fence.zip(ended.worker),
            "the end of {id:?} is its current attempt's (P3)"
        );
        job.end = Some((ended.state, ended.reason));
        if peaceful && job.cancelling.is_some() && job.class.spec.kind == Kind::Command {
            let grace = job.class.spec.grace.unwrap_or(KILL_GRACE);
            let took = ended.at.since(job.cancelling_since);
            assert!(
                took <= grace + SLACK,
                "{id:?} was told to end and took {took:?}"
            );
        }
        let spec = &job.class.spec;
        if let (true, Some(fence)) = (peaceful, ended.fence) {
            check_length(fence, spec, ended.started, ended.at);
        }
        match (ended.state, ended.reason) {
            (JobState::Succeeded, Reason::None) => {
                let told = truth.report.map(|(outcome, _, _)| outcome);
                assert_eq!(
                    told,
                    Some(Outcome::Succeeded),
                    "{id:?} succeeded without having been reported so"
                );
            }
            (JobState::Failed, Reason::WorkerLost) => {
                let charged = truth.said_started || spec.max_losses == 0;
                assert!(charged, "{id:?} failed by a loss it never started for");
                assert!(job.losses >= spec.max_losses, "{id:?} had a loss left");
            }
            (JobState::Failed, Reason::Deadline) => {
                assert!(
                    is_before_or_wall(job.deadline, ended.at),
                    "{id:?} had time left"
                );
                let started = job.ever_started || truth.said_started;
                assert!(started, "{id:?} never started: expired, not failed");
            }
            (JobState::Failed, reason) => {
                let fence = ended.fence.expect("only an attempt fails");
                check_failure(fence, reason, &truth, spec);
                let fatal = matches!(
                    truth.report,
                    Some((Outcome::HandlerFailed { fatal: true, .. }, _, _))
                );
                assert!(
                    fatal
                        || job.cancelling.is_some()
                        || job.failures + 1 >= spec.retry.max_attempts
                        || !is_retried(&job.class, reason, &truth),
                    "{id:?} failed with tries left"
                );
            }
            (JobState::Expired, Reason::NotStartedInTime) => {
                assert!(
                    is_before_or_wall(job.expires, ended.at),
                    "{id:?} had not expired"
                );
                assert!(!job.ever_started, "{id:?} had started in time");
            }
            (JobState::Expired, Reason::Deadline) => {
                assert!(
                    is_before_or_wall(job.deadline, ended.at),
                    "{id:?} had time left"
                );
                assert!(!job.ever_started, "{id:?} had started: failed, not expired");
            }
            (JobState::Cancelled, Reason::CancelledByUser | Reason::WorkerLost) => {
                assert!(was_asked, "{id:?} was cancelled and nobody asked for it");
            }
            (state, reason) => panic!("{id:?} ended {state:?}, {reason:?}: no such end"),
        }
    }

    fn cancelling(&mut self, cancelling: &Cancelling) {
        let was_asked = self.asked_to_stop.contains(&cancelling.job);
        let job = self.change(cancelling.job);
        assert!(
            job.current.is_some() && job.end.is_none(),
            "only what is out cancels"
        );
        assert_eq!(job.cancelling, None, "it begins to cancel once");
        if cancelling.reason == Reason::CancelledByUser {
            assert!(was_asked, "nobody asked for it");
        } else {
            assert_eq!(cancelling.reason, Reason::Deadline, "no reason to cancel");
            assert!(
                is_before_or_wall(job.deadline, cancelling.at),
                "it had time left"
            );
        }
        job.cancelling = Some(cancelling.reason);
        job.cancelling_since = cancelling.at;
    }

    // What the world tells.

    /// Somebody was told that a request's jobs are accepted.
    pub(crate) fn accepted(&mut self, first: JobId, plans: std::ops::Range<u64>) {
        for (id, plan) in (first.raw()..).zip(plans) {
            let id = JobId::new(id).expect("an id");
            if self.taken.contains(&id) {
                continue; // the power was faster than the word
            }
            let job = self.jobs.get_mut(&id);
            let job = job.unwrap_or_else(|| panic!("{id:?} was promised and is not on disk (P1)"));
            assert_eq!(job.plan, plan, "the promise is about that job");
            job.promised = true;
        }
    }

    /// An assignment is about to leave the server.
    pub(crate) fn assign_leaves(&self, fence: Fence) {
        let known = self
            .jobs
            .get(&fence.job)
            .is_some_and(|job| job.attempt >= fence.attempt.raw());
        assert!(
            known,
            "{fence:?} leaves the server and its assignment is not on disk (P2)"
        );
    }

    /// A report is about to be acknowledged.
    pub(crate) fn ack_leaves(&self, fence: Fence, history: u32) {
        let is_it = |current: Current| current.fence == fence && current.history == history;
        let is_current = self
            .jobs
            .get(&fence.job)
            .is_some_and(|job| job.end.is_none() && job.current.is_some_and(is_it));
        assert!(
            !is_current,
            "the report of {fence:?} is acknowledged and its end is not on disk (P4)"
        );
    }

    /// What is known of an attempt that was given out in that history; none if it is not this one's.
    pub(crate) fn truth(&mut self, fence: Fence, history: u32) -> Option<&mut Truth> {
        let now = self.history;
        if history != now && !self.truths.contains_key(&fence) {
            return None;
        }
        let truth = self.truths.entry(fence).or_insert_with(|| Truth {
            history,
            ..Truth::default()
        });
        (truth.history == history).then_some(truth)
    }

    /// An attempt really starts, with that plan.
    pub(crate) fn starts(&mut self, fence: Fence, plan: u64, history: u32) {
        if self.truth(fence, history).is_none() {
            return;
        }
        let job = self.jobs.get(&fence.job);
        // A power cut may take back what had not been synced, but nothing that runs already.
        if let Some(job) = job {
            assert_eq!(job.plan, plan, "{fence:?} runs another job's body");
        }
        let must_be_alone = job.is_some_and(|job| {
            job.class.spec.stop_on_partition && job.class.spec.kind == Kind::Command
        });
        if must_be_alone && fence.epoch > self.forgotten_through {
            let alone = self.alone.entry(plan).or_default();
            assert!(
                alone.is_empty(),
                "{fence:?} starts, {alone:?} still runs, and its job must not run twice at once"
            );
            alone.push(fence);
        }
        let truth = self.truths.entry(fence).or_default();
        truth.starts += 1;
        assert_eq!(truth.starts, 1, "{fence:?} started twice");
    }

    /// The worker's report of an attempt leaves for the first time.
    pub(crate) fn reports(&mut self, report: &Report, instance: u64, history: u32) {
        let fence = report.fence;
        let Some(truth) = self.truth(fence, history) else {
            return;
        };
        truth.said_started |= report.started;
        let said = (report.outcome, report.cancelled, instance);
        if let Some(before) = truth.report {
            assert_eq!(before, said, "{fence:?} is reported in one way only");
            return;
        }
        truth.report = Some(said);
        let fits = report.outcome == Outcome::Returned
            || if matches!(report.outcome, Outcome::TimedOut | Outcome::Stalled) {
                truth.told
            } else {
                truth.ended == Some(report.outcome) || truth.starts == 0
            };
        assert!(
            fits,
            "{fence:?} is reported {:?}, it was {truth:?}",
            report.outcome
        );
        assert!(
            !report.cancelled || truth.told || !report.started,
            "{fence:?} is reported cancelled and was never told to end"
        );
    }

    /// A cancel is answered; `was_there`: the job was live and promised when it was asked.
    pub(crate) fn cancel_answered(&self, id: JobId, answer: CancelAnswer, was_there: bool) {
        let job = self.jobs.get(&id);
        match answer {
            CancelAnswer::Cancelled => {
                let end = job.and_then(|job| job.end).map(|(state, _)| state);
                assert_eq!(
                    end,
                    Some(JobState::Cancelled),
                    "{id:?} was said to be cancelled and is not, on disk"
                );
            }
            CancelAnswer::Cancelling => {
                assert!(
                    job.is_some_and(|job| job.cancelling.is_some()),
                    "{id:?} was said to be cancelling and is not, on disk"
                );
            }
            CancelAnswer::Finished { state } => {
                let end = job.and_then(|job| job.end).map(|(state, _)| state);
                assert_eq!(end, Some(state), "{id:?} was said to have ended");
            }
            CancelAnswer::Unknown => {
                assert!(
                    !was_there || job.is_none_or(|job| job.end.is_some()),
                    "{id:?} was promised and not found"
                );
            }
        }
    }

    /// Somebody who waited was told of an end.
    pub(crate) fn end_told(&self, id: JobId, end: (JobState, Reason)) {
        let known = self.jobs.get(&id).and_then(|job| job.end);
        assert_eq!(known, Some(end), "{id:?} was said to have ended so");
    }

    /// Jobs that are not over.
    pub(crate) fn live(&self) -> impl Iterator<Item = (JobId, &Job)> {
        let live = self.jobs.iter().filter(|(_, job)| job.end.is_none());
        live.map(|(id, job)| (*id, job))
    }

    pub(crate) fn live_count(&self) -> usize {
        self.live
    }

    /// The bytes that a job's end names are those its worker read: whoever waits for the end knows how much there is.
    pub(crate) fn same_bytes(&self, id: JobId, end: &EndRecord) {
        let usage = end.attempt.detail.as_ref().and_then(|detail| detail.usage);
        let first = Fence {
            job: id,
            epoch: end.attempt.epoch,
            attempt: Attempt::FIRST,
        };
        let printed = self
            .prints
            .of
            .range(first..)
            .take_while(|(fence, _)| (fence.job, fence.epoch) == (id, end.attempt.epoch))
            .find(|(fence, _)| fence.attempt.raw() == end.attempt.number);
        if let (Some(usage), Some((fence, printed))) = (usage, printed)
            && printed.closed
        {
            assert_eq!(
                [usage.stdout_bytes, usage.stderr_bytes],
                printed.read,
                "the end of {fence:?} says how much it printed"
            );
        }
    }

    /// The store's own word of an end, at the end of all.
    pub(crate) fn same_end(&self, id: JobId, stored: Option<&EndRecord>) {
        let stored = stored.map(|end| (end.state, end.attempt.reason));
        let known = self.jobs.get(&id).and_then(|job| job.end);
        assert_eq!(stored, known, "the store remembers the end of {id:?}");
    }
}

/// No attempt runs longer than it may: its worker ends it, and if that fails the server's backstop does.
fn check_length(fence: Fence, spec: &ClassSpec, started: Option<Time>, at: Time) {
    if let (Some(timeout), Some(started)) = (spec.timeout, started) {
        let most = timeout + spec.grace.unwrap_or(KILL_GRACE) + BEATS + SLACK;
        assert!(
            at.since(started) <= most,
            "{fence:?} ran for {:?}, it had {timeout:?}",
            at.since(started)
        );
    }
}

/// A failure is what the worker reported, or the server's own backstop for a time limit.
fn check_failure(fence: Fence, reason: Reason, truth: &Truth, spec: &ClassSpec) {
    let said = truth.report.map(|(outcome, _, _)| outcome);
    let fits = match (reason, said) {
        (Reason::Timeout, said) => {
            spec.timeout.is_some() && (said == Some(Outcome::TimedOut) || truth.said_started)
        }
        (Reason::Stalled, said) => {
            spec.stall.is_some() && (said == Some(Outcome::Stalled) || truth.said_started)
        }
        (Reason::ExitCode, Some(Outcome::Exited { .. }))
        | (Reason::Signal, Some(Outcome::Signalled { .. }))
        | (Reason::OutOfMemory, Some(Outcome::OutOfMemory))
        | (Reason::SpawnFailed, Some(Outcome::SpawnFailed { .. }))
        | (Reason::HandlerError, Some(Outcome::HandlerFailed { .. }))
        | (Reason::NoSuchHandler, Some(Outcome::NoSuchHandler)) => true,
        _ => false,
    };
    assert!(fits, "{fence:?} failed with {reason:?}, it was {truth:?}");
}

/// What the policy says of such a failure.
fn is_retried(class: &Class, reason: Reason, truth: &Truth) -> bool {
    let retry = &class.spec.retry;
    let outcome = truth.report.map(|(outcome, _, _)| outcome);
    let matches = |rule: &Rule| match *rule {
        Rule::Codes(from, to) => {
            reason == Reason::ExitCode
                && matches!(outcome, Some(Outcome::Exited { code }) if (from..=to).contains(&code))
        }
        Rule::Signal => reason == Reason::Signal,
        Rule::Timeout => matches!(reason, Reason::Timeout | Reason::Stalled),
        Rule::OutOfMemory => reason == Reason::OutOfMemory,
        Rule::Spawn => reason == Reason::SpawnFailed,
        Rule::Error => reason == Reason::HandlerError,
    };
    if retry.on.is_empty() {
        !retry.never.iter().any(matches)
    } else {
        retry.on.iter().any(matches)
    }
}

/// base · factor^(k−1), at most the maximum; microseconds.
fn full_backoff(class: &Class, k: u16) -> u64 {
    let retry = &class.spec.retry;
    let max = u128::from(retry.max_backoff.micros());
    let mut d = u128::from(retry.backoff.micros()).min(max);
    for _ in 1..k {
        d = (d * u128::from(retry.factor_milli) / 1_000).min(max);
    }
    u64::try_from(d).expect("at most the maximum")
}

/// It is a duration, and ends after that time.
fn is_after(when: Option<When>, at: Time) -> bool {
    matches!(when, Some(When::Engine(due)) if due > at)
}

/// It is a duration, and was over by that time.
fn is_before(when: Option<When>, at: Time) -> bool {
    matches!(when, Some(When::Engine(due)) if due <= at)
}

/// It was over by that time, as far as the engine's clock can tell.
fn is_before_or_wall(when: Option<When>, at: Time) -> bool {
    when.is_some() && !is_after(when, at)
}
