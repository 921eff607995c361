//! The load of a torture run: submitters that write down each 2xx, cancellers that write down each answer, watchers that
//! write down each end they see. What is written down must be true for ever.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use hostler_tests::{
    Client, Effects, PATIENCE, Random, Request, Response, elapsed, now, parse_rfc3339_ms, pause,
};
use serde_json::{Value, json};

/// What the end of a job consists of.
const END_FIELDS: [&str; 7] = [
    "state",
    "reason",
    "attempt",
    "failures",
    "worker",
    "finished_at",
    "exit_code",
];
/// Losses a job bears that is to succeed whatever is done to its workers.
const MANY: u16 = 10_000;

/// How hard it presses.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// Jobs at once that nobody has seen end.
    pub(crate) live_max: usize,
    /// Between two submissions of one submitter.
    pub(crate) gap: Duration,
}

/// What a job is, and so how it may end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Succeeds after a moment, however many workers die of it.
    Brief,
    /// The same after some seconds.
    Long,
    /// Succeeds at its second try at the latest.
    Retried,
    /// Fails twice, and then for good.
    Hopeless,
    /// Runs once at most: it may be lost with its worker.
    Once,
    /// Waits before it starts.
    Delayed,
    /// A handler; leaves no line.
    Noop,
    /// Like `Brief`, accepted together with others.
    Batch,
}

/// One acknowledged job.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) kind: Kind,
    pub(crate) cancel: Option<Cancel>,
    /// Its end, as it was first seen.
    pub(crate) seen: Option<Value>,
}

/// The strongest answer to a cancel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Cancel {
    /// No answer came: it may have happened or not.
    Unanswered,
    /// 202: it is being ended.
    Cancelling,
    /// 200: it is cancelled.
    Cancelled,
}

pub(crate) struct Load {
    effects: Effects,
    name: String,
    pace: Pace,
    stopping: AtomicBool,
    /// A thread of ours found something wrong.
    failed: AtomicBool,
    keys: AtomicU64,
    counts: Counts,
    jobs: Mutex<Jobs>,
}

#[derive(Default)]
struct Jobs {
    all: BTreeMap<u64, Entry>,
    /// Whose end nobody has seen, in the order in which they are looked at.
    open: VecDeque<u64>,
    ended: Vec<u64>,
    /// Threads that still submit.
    submitting: usize,
}

#[derive(Default)]
struct Counts {
    requests: AtomicU64,
    unanswered: AtomicU64,
    refused: AtomicU64,
    replayed: AtomicU64,
    cancels: AtomicU64,
    looks: AtomicU64,
}

/// What the load did.
pub(crate) struct Tally {
    submissions: u64,
    acknowledged: usize,
    requests: u64,
    unanswered: u64,
    refused: u64,
    replayed: u64,
    cancels: u64,
    looks: u64,
}

/// Ends the load whichever way the test ends, or its threads would outlive the test's own failure.
pub(crate) struct StopAtEnd<'a>(pub(crate) &'a Load);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.failed.store(true, Ordering::SeqCst);
        }
        self.0.stop();
    }
}

impl Kind {
    const WEIGHTS: [(u64, Self); 8] = [
        (40, Self::Brief),
        (4, Self::Long),
        (10, Self::Retried),
        (6, Self::Hopeless),
        (10, Self::Once),
        (8, Self::Delayed),
        (14, Self::Noop),
        (8, Self::Batch),
    ];

    fn spec(self, effects: &Effects, random: &mut Random) -> Value {
        let ms = |random: &mut Random| 10 + random.below(300);
        let sleep = format!("sleep 0.{:03}", ms(random));
        let mut spec = match self {
            Self::Brief | Self::Once | Self::Batch => effects.plain_job(&sleep),
            Self::Long => effects.plain_job("sleep 3"),
            Self::Retried => effects.plain_job(r#"[ "$HOSTLER_ATTEMPT" -ge 2 ]"#),
            Self::Hopeless => effects.plain_job("exit 3"),
            Self::Delayed => effects.job("true"),
            Self::Noop => json!({ "handler": "noop" }),
        };
        spec["priority"] = json!(random.below(3));
        spec["max_losses"] = json!(MANY);
        match self {
            Self::Retried | Self::Hopeless => {
                spec["retry"] = json!({ "max_attempts": 2, "backoff_ms": 300 });
            }
            Self::Once => spec["max_losses"] = json!(0),
            Self::Delayed => spec["delay_ms"] = json!(200 + random.below(2_000)),
            Self::Brief | Self::Long | Self::Noop | Self::Batch => {}
        }
        spec
    }

    /// How it ends if nobody cancels it. (`Once` may also be lost.)
    fn state(self) -> &'static str {
        match self {
            Self::Hopeless => "failed",
            Self::Brief
            | Self::Long
            | Self::Retried
            | Self::Once
            | Self::Delayed
            | Self::Noop
            | Self::Batch => "succeeded",
        }
    }

    /// Whether it writes down its starts.
    pub(crate) fn leaves_lines(self) -> bool {
        self != Self::Noop
    }
}

impl Entry {
    /// What is wrong with an end like this, if anything is.
    pub(crate) fn judge(&self, end: &Value) -> Option<&'static str> {
        let (state, reason) = (end["state"].as_str()?, end["reason"].as_str());
        let lost = state == "failed" && reason == Some("worker_lost");
        let own = state == self.kind.state() || (self.kind == Kind::Once && lost);
        // Cancelled between its first failure and its second, or about to fail for the last time.
        match self.cancel {
            None if own => None,
            None => Some("it ended in a way it cannot"),
            Some(Cancel::Cancelled) if state == "cancelled" => None,
            Some(Cancel::Cancelled) => Some("its cancellation was acknowledged"),
            Some(Cancel::Unanswered | Cancel::Cancelling)
                if state == "cancelled" || own || state == "failed" =>
            {
                None
            }
            Some(Cancel::Unanswered | Cancel::Cancelling) => Some("it was to be cancelled"),
        }
    }
}

impl Load {
    pub(crate) fn new(effects: &Effects, seed: u64, pace: Pace) -> Self {
        Self {
            effects: effects.clone(),
            name: format!("torture-{seed}"),
            pace,
            stopping: AtomicBool::new(false),
            failed: AtomicBool::new(false),
            keys: AtomicU64::new(0),
            counts: Counts::default(),
            jobs: Mutex::default(),
        }
    }

    /// Nothing new; what has been begun is finished.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
    }

    /// Whether every job that was acknowledged has been seen to end, and no more are coming.
    pub(crate) fn is_over(&self) -> bool {
        let jobs = self.jobs.lock().unwrap();
        jobs.submitting == 0 && jobs.open.is_empty()
    }

    /// # Panics
    /// If one of the load's threads did.
    pub(crate) fn expect_well(&self) {
        let failed = self.failed.load(Ordering::SeqCst);
        assert!(!failed, "the load has found something wrong: see above");
    }

    /// Whether this job was acknowledged.
    pub(crate) fn entries_contain(&self, id: u64) -> bool {
        self.jobs.lock().unwrap().all.contains_key(&id)
    }

    /// Every acknowledged job.
    pub(crate) fn entries(&self) -> BTreeMap<u64, Entry> {
        self.jobs.lock().unwrap().all.clone()
    }

    pub(crate) fn tally(&self) -> Tally {
        let count = |it: &AtomicU64| it.load(Ordering::Relaxed);
        Tally {
            submissions: count(&self.keys),
            acknowledged: self.jobs.lock().unwrap().all.len(),
            requests: count(&self.counts.requests),
            unanswered: count(&self.counts.unanswered),
            refused: count(&self.counts.refused),
            replayed: count(&self.counts.replayed),
            cancels: count(&self.counts.cancels),
            looks: count(&self.counts.looks),
        }
    }

    fn goes_on(&self) -> bool {
        !self.stopping.load(Ordering::SeqCst)
    }

    /// Submits until the load stops. Each submission is repeated under its key until it is acknowledged, and some again
    /// after that: exactly one job must come of it (R16).
    pub(crate) fn submit(&self, mut client: Client, mut random: Random) {
        let _stop = StopAtEnd(self);
        self.jobs.lock().unwrap().submitting += 1;
        while self.goes_on() {
            if self.jobs.lock().unwrap().open.len() >= self.pace.live_max {
                pause(Duration::from_millis(5));
                continue;
            }
            let kind = random.weighted(&Kind::WEIGHTS);
            let body = match kind {
                Kind::Batch => (0..2 + random.below(4))
                    .map(|_| kind.spec(&self.effects, &mut random))
                    .collect(),
                Kind::Brief
                | Kind::Long
                | Kind::Retried
                | Kind::Hopeless
                | Kind::Once
                | Kind::Delayed
                | Kind::Noop => kind.spec(&self.effects, &mut random),
            };
            let key = format!(
                "{}-{}",
                self.name,
                self.keys.fetch_add(1, Ordering::Relaxed)
            );
            let answer = self.acknowledged(&mut client, &key, &body);
            self.accept(kind, &answer);
            if random.percent(10) {
                let again = self.acknowledged(&mut client, &key, &body);
                assert_eq!(again.header("idempotent-replayed"), Some("true"), "{key}");
                assert_eq!(again.text(), answer.text(), "{key} made another job");
            }
            let gap = u64::try_from(self.pace.gap.as_millis()).unwrap();
            pause(Duration::from_millis(random.below(2 * gap)));
        }
        self.jobs.lock().unwrap().submitting -= 1;
    }

    /// Asks under the same key until there is an acknowledgement.
    fn acknowledged(&self, client: &mut Client, key: &str, body: &Value) -> Response {
        let start = now();
        loop {
            assert!(
                elapsed(start) < 3 * PATIENCE,
                "a submission was never acknowledged"
            );
            self.counts.requests.fetch_add(1, Ordering::Relaxed);
            let request = Request::post("/jobs").json(body);
            match client.send(request.header("Idempotency-Key", key)) {
                Ok(answer) if answer.status == 503 => {
                    self.counts.refused.fetch_add(1, Ordering::Relaxed);
                }
                Ok(answer) => {
                    let answer = answer.expect(201);
                    if answer.header("idempotent-replayed").is_some() {
                        self.counts.replayed.fetch_add(1, Ordering::Relaxed);
                    }
                    return answer;
                }
                Err(_) => {
                    self.counts.unanswered.fetch_add(1, Ordering::Relaxed);
                }
            }
            pause(Duration::from_millis(20));
        }
    }

    fn accept(&self, kind: Kind, answer: &Response) {
        let answer = answer.json();
        let number = |field: &str| answer[field].as_u64();
        let first = number("id").or_else(|| number("first_id")).unwrap();
        let mut jobs = self.jobs.lock().unwrap();
        for id in first..first + number("count").unwrap_or(1) {
            let entry = Entry {
                kind,
                cancel: None,
                seen: None,
            };
            let before = jobs.all.insert(id, entry);
            assert!(before.is_none(), "id {id} was given out twice");
            jobs.open.push_back(id);
        }
    }

    /// Cancels one open job after another until the load stops.
    pub(crate) fn cancel(&self, mut client: Client, mut random: Random) {
        let _stop = StopAtEnd(self);
        while self.goes_on() {
            pause(Duration::from_millis(20 + random.below(300)));
            let id = {
                let mut jobs = self.jobs.lock().unwrap();
                if jobs.open.is_empty() {
                    continue;
                }
                let at = random.index(jobs.open.len());
                let id = jobs.open[at];
                // Before it is asked: its end may be seen before our answer.
                let cancel = &mut jobs.all.get_mut(&id).unwrap().cancel;
                *cancel = (*cancel).max(Some(Cancel::Unanswered));
                id
            };
            self.counts.cancels.fetch_add(1, Ordering::Relaxed);
            let force = if random.percent(20) { "?force=1" } else { "" };
            let answer = client.send(Request::delete(format!("/jobs/{id}{force}")));
            let Ok(answer) = answer else { continue };
            let state = || answer.json()["state"].clone();
            let answered = match answer.status {
                200 => {
                    assert_eq!(state(), "cancelled", "job {id}");
                    Cancel::Cancelled
                }
                202 => {
                    assert_eq!(state(), "cancelling", "job {id}");
                    Cancel::Cancelling
                }
                409 => {
                    // It says that the job has ended, so it has.
                    self.look(&mut client, id, true);
                    continue;
                }
                503 => continue,
                status => panic!("cancel of job {id}: {status} {}", answer.text()),
            };
            let mut jobs = self.jobs.lock().unwrap();
            let cancel = &mut jobs.all.get_mut(&id).unwrap().cancel;
            *cancel = (*cancel).max(Some(answered));
        }
    }

    /// Looks at open jobs in turn, and now and then at one that had ended, until everything is over.
    pub(crate) fn watch(&self, mut client: Client, mut random: Random) {
        let _stop = StopAtEnd(self);
        while (self.goes_on() || !self.is_over()) && !self.failed.load(Ordering::SeqCst) {
            let next = self.jobs.lock().unwrap().open.pop_front();
            if let Some(id) = next {
                // It stays among the open ones until it has been looked at.
                self.jobs.lock().unwrap().open.push_back(id);
                self.look(&mut client, id, false);
            }
            let old = {
                let jobs = self.jobs.lock().unwrap();
                (random.percent(10) && !jobs.ended.is_empty()).then(|| *random.pick(&jobs.ended))
            };
            if let Some(id) = old {
                self.look(&mut client, id, true);
            }
            pause(Duration::from_millis(3));
        }
    }

    fn look(&self, client: &mut Client, id: u64, has_ended: bool) {
        self.counts.looks.fetch_add(1, Ordering::Relaxed);
        let Ok(answer) = client.send(Request::get(format!("/jobs/{id}?live=0"))) else {
            return;
        };
        if answer.status == 503 {
            return;
        }
        // An acknowledged job is never unknown.
        let view = answer.expect(200).json();
        if view["finished_at"].is_null() {
            assert!(!has_ended, "job {id} had ended, and now: {view}");
            return;
        }
        self.saw_end(id, &view);
    }

    /// An end was seen: it must be the one that was seen before, if one was.
    pub(crate) fn saw_end(&self, id: u64, view: &Value) {
        let end = END_FIELDS.map(|field| (field, view[field].clone()));
        let end: Value = Value::Object(end.map(|(k, v)| (k.to_owned(), v)).into_iter().collect());
        let mut jobs = self.jobs.lock().unwrap();
        let entry = jobs.all.get_mut(&id).unwrap();
        if let Some(seen) = &entry.seen {
            assert_eq!(*seen, end, "the end of job {id} has changed");
            return;
        }
        parse_rfc3339_ms(view["finished_at"].as_str().unwrap());
        entry.seen = Some(end);
        jobs.open.retain(|open| *open != id);
        jobs.ended.push(id);
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} submissions in {} requests ({} unanswered, {} refused, {} replayed), {} jobs acknowledged, {} cancels, {} looks",
            self.submissions,
            self.requests,
            self.unanswered,
            self.refused,
            self.replayed,
            self.acknowledged,
            self.cancels,
            self.looks
        )
    }
}
