//! Handlers: named functions that a job can ask for, and the threads they run on.
//!
//! A program registers its own through [`Worker::handler`](crate::Worker::handler); built in are `noop`, `echo`,
//! `sleep` and `fail`, for tests and load. `noop` and `echo` cannot block or panic, so the loop runs them itself; all
//! others run on threads, started as they are needed and never more than there are slots. A panic is caught and fails
//! the attempt, not the worker.
//!
//! A thread cannot be killed: cancel, timeout and drain set [`Job::cancelled`], and the attempt ends when the handler
//! returns. Until then it keeps its slot and is reported as running, since it is.
//!
//! Not here: when a handler runs and what its end means (`session`).

use std::any::Any;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use crossbeam::channel::{Receiver, Sender, unbounded};
use crossbeam::queue::SegQueue;
use hostler_wire::allow::Handlers;
use hostler_wire::result::bounded;
use hostler_wire::{Attempt, Detail, Fence, JobId, Outcome};
use mio::Waker;
use serde_json::Value;

use crate::clock::Clock;
use crate::session::Ending;
use crate::signs::Signs;

/// A named function of the worker.
///
/// Every `Fn(&Job) -> Result<Value, HandlerError>` is one. It may run on several threads at once, and it may run more
/// than once for the same job (P3): [`Job::attempt`] and the job's id tell which try this is.
pub trait Handler: Send + Sync + 'static {
    /// Does the job. The value is kept as the job's result; `Value::Null` is no result.
    fn run(&self, job: &Job) -> Result<Value, HandlerError>;
}

impl<F> Handler for F
where
    F: Fn(&Job) -> Result<Value, HandlerError> + Send + Sync + 'static,
{
    fn run(&self, job: &Job) -> Result<Value, HandlerError> {
        self(job)
    }
}

/// One attempt at a job, as its handler sees it.
#[derive(Debug)]
pub struct Job {
    fence: Fence,
    payload: Bytes,
    watch: Arc<Watch>,
}

impl Job {
    /// Which job.
    pub fn id(&self) -> JobId {
        self.fence.job
    }

    /// Which try at it.
    pub fn attempt(&self) -> Attempt {
        self.fence.attempt
    }

    /// A number that rises with each assignment of this job: what the handler writes to can refuse an older one.
    pub fn fence(&self) -> u64 {
        self.fence.rising()
    }

    /// The payload as it was submitted: JSON text, or nothing.
    pub fn payload(&self) -> &[u8] {
        &self.payload
    }

    /// The payload parsed; `Null` if there is none. What is no JSON now will be none at the next try: a fatal error.
    pub fn json(&self) -> Result<Value, HandlerError> {
        if self.payload.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&self.payload)
            .map_err(|error| HandlerError::fatal(format!("the payload is no JSON: {error}")))
    }

    /// Whether the job should end: it was cancelled, its time is up, or the worker stops.
    pub fn cancelled(&self) -> bool {
        self.watch.cancelled.load(Ordering::Acquire)
    }

    /// Waits until the job should end, `timeout` at most. Returns whether it should.
    pub fn wait_cancelled(&self, timeout: Duration) -> bool {
        let signs = self.watch.signs();
        let waiting = |_: &mut Signs| !self.cancelled();
        drop(self.watch.wake.wait_timeout_while(signs, timeout, waiting));
        self.cancelled()
    }

    /// Says how far the job is (0.0 to 1.0; beyond is taken as the nearer end) and what it is about; shown to whoever
    /// looks at the job. A note of more than 256 bytes is cut, and ends with an ellipsis. It is a heartbeat too.
    pub fn progress(&self, done: f32, note: &str) {
        let now = self.watch.clock.now();
        self.watch.signs().say(now, Some(done), Some(note));
    }

    /// Says that it goes on: a job with `stall_ms` is ended when it neither does this nor tells its progress for so long.
    pub fn heartbeat(&self) {
        let now = self.watch.clock.now();
        self.watch.signs().say(now, None, None);
    }
}

/// Why a handler did not do its job.
///
/// Any `std::error::Error` becomes one with `?`; the job's retry policy then says whether there is another try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HandlerError {
    message: String,
    fatal: bool,
    retry_after: Option<Duration>,
}

impl HandlerError {
    /// A failure that another try may mend.
    pub fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            fatal: false,
            retry_after: None,
        }
    }

    /// A failure that no other try will mend: the job fails at once.
    pub fn fatal(message: impl Into<String>) -> Self {
        Self {
            fatal: true,
            ..Self::new(message)
        }
    }

    /// Asks for the next try after this long, in place of the back-off.
    #[must_use]
    pub fn retry_after(mut self, delay: Duration) -> Self {
        self.retry_after = Some(delay);
        self
    }
}

impl fmt::Display for HandlerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl<E: std::error::Error> From<E> for HandlerError {
    fn from(error: E) -> Self {
        Self::new(error.to_string())
    }
}

/// What a loop and a handler's thread share about an attempt.
#[derive(Debug)]
pub(crate) struct Watch {
    cancelled: AtomicBool,
    signs: Mutex<Signs>,
    wake: Condvar,
    clock: Clock,
}

impl Watch {
    fn new(clock: Clock) -> Self {
        Self {
            cancelled: AtomicBool::new(false),
            signs: Mutex::new(Signs::new(clock.now())),
            wake: Condvar::new(),
            clock,
        }
    }

    pub(crate) fn cancel(&self) {
        // Under the lock, so that a handler about to wait sees it or is woken.
        let signs = self.signs();
        self.cancelled.store(true, Ordering::Release);
        drop(signs);
        self.wake.notify_all();
    }

    pub(crate) fn signs(&self) -> MutexGuard<'_, Signs> {
        // A panic while holding it leaves plain values behind, all valid.
        self.signs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The handlers a worker has.
#[derive(Clone)]
pub(crate) struct Registry {
    own: HashMap<String, Arc<dyn Handler>>,
    /// Those it runs, whatever it has.
    allowed: Handlers,
}

impl Default for Registry {
    fn default() -> Self {
        Self {
            own: HashMap::new(),
            allowed: Handlers::All,
        }
    }
}

/// How a handler is run.
pub(crate) enum Way {
    /// At once, by the loop: nothing to do.
    Noop,
    /// At once, by the loop: the payload is the result.
    Echo,
    /// On a thread.
    Thread(Arc<dyn Handler>),
}

const BUILT_IN: [&str; 4] = ["noop", "echo", "sleep", "fail"];

impl Registry {
    pub(crate) fn add(&mut self, name: String, handler: impl Handler) {
        self.own.insert(name, Arc::new(handler));
    }

    /// Runs none but these.
    pub(crate) fn allow(&mut self, handlers: Handlers) {
        self.allowed = handlers;
    }

    /// One's own come first, also before a built-in of the same name.
    pub(crate) fn find(&self, name: &str) -> Option<Way> {
        if !self.allowed.has(name) {
            return None;
        }
        if let Some(handler) = self.own.get(name) {
            return Some(Way::Thread(Arc::clone(handler)));
        }
        match name {
            "noop" => Some(Way::Noop),
            "echo" => Some(Way::Echo),
            "sleep" => Some(Way::Thread(Arc::new(sleep))),
            "fail" => Some(Way::Thread(Arc::new(fail))),
            _ => None,
        }
    }

    pub(crate) fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.own.keys().cloned().collect();
        names.extend(
            BUILT_IN
                .iter()
                .filter(|name| !self.own.contains_key(**name))
                .map(|&n| n.to_owned()),
        );
        names.retain(|name| self.allowed.has(name));
        names.sort_unstable();
        names
    }

    /// Those the loop runs itself.
    pub(crate) fn inline(&self) -> HashSet<String> {
        let inline = ["noop", "echo"]
            .iter()
            .filter(|name| !self.own.contains_key(**name) && self.allowed.has(name));
        inline.map(|&name| name.to_owned()).collect()
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.names()).finish()
    }
}

/// `sleep`: `{"ms": N}`; says so, and returns early when it should end.
fn sleep(job: &Job) -> Result<Value, HandlerError> {
    let payload = job.json()?;
    let ms = payload.get("ms").and_then(Value::as_u64);
    let ms = ms.ok_or_else(|| HandlerError::fatal("sleep needs {\"ms\": N}"))?;
    job.progress(0.0, &format!("sleeps for {ms} ms"));
    job.wait_cancelled(Duration::from_millis(ms));
    Ok(Value::Null)
}

/// `fail`: `{"message": text, "fatal": bool, "times": k}`; fails while the attempt is at most `times` (always, without).
fn fail(job: &Job) -> Result<Value, HandlerError> {
    let payload = job.json()?;
    let times = payload
        .get("times")
        .and_then(Value::as_u64)
        .unwrap_or(u64::MAX);
    if u64::from(job.attempt().raw()) > times {
        return Ok(Value::Null);
    }
    let message = payload
        .get("message")
        .and_then(Value::as_str)
        .unwrap_or("failed as asked");
    let fatal = payload
        .get("fatal")
        .and_then(Value::as_bool)
        .unwrap_or(false);
    Err(HandlerError {
        fatal,
        ..HandlerError::new(message)
    })
}

/// A handler's end, on its way from its thread to the loop.
#[derive(Debug)]
pub(crate) struct Completion {
    pub(crate) fence: Fence,
    pub(crate) result: Result<Vec<u8>, HandlerError>,
    /// It should have ended before it did.
    pub(crate) told: bool,
}

impl Completion {
    pub(crate) fn into_ending(self, result_bytes_max: usize) -> Ending {
        let (outcome, detail) = match self.result {
            Ok(result) if result.is_empty() => (Outcome::Succeeded, None),
            Ok(result) => {
                let result = bounded(result, result_bytes_max);
                (
                    Outcome::Succeeded,
                    Some(Box::new(Detail {
                        result,
                        ..Detail::default()
                    })),
                )
            }
            Err(HandlerError {
                message,
                fatal,
                retry_after,
            }) => {
                let ms = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
                let outcome = Outcome::HandlerFailed {
                    fatal,
                    retry_after_ms: retry_after.map(ms),
                };
                (
                    outcome,
                    Some(Box::new(Detail {
                        message,
                        ..Detail::default()
                    })),
                )
            }
        };
        Ending::Done {
            outcome,
            detail,
            told: self.told,
        }
    }
}

/// Where threads put what they have done; the loop is woken once for each.
pub(crate) struct Completions {
    queue: SegQueue<Completion>,
    waker: Arc<Waker>,
}

impl Completions {
    pub(crate) fn new(waker: Arc<Waker>) -> Self {
        Self {
            queue: SegQueue::new(),
            waker,
        }
    }

    pub(crate) fn take(&self) -> Option<Completion> {
        self.queue.pop()
    }

    fn put(&self, completion: Completion) {
        self.queue.push(completion);
        // The loop is gone if this fails, and with it whoever would read.
        drop(self.waker.wake());
    }
}

/// The threads.
pub(crate) struct Pool {
    sender: Sender<(Arc<dyn Handler>, Job)>,
    receiver: Receiver<(Arc<dyn Handler>, Job)>,
    completions: Arc<Completions>,
    clock: Clock,
    threads: usize,
    busy: usize,
}

impl Pool {
    pub(crate) fn new(completions: Arc<Completions>, clock: Clock) -> Self {
        // Never holds more than there are slots: the session starts no more.
        let (sender, receiver) = unbounded();
        Self {
            sender,
            receiver,
            completions,
            clock,
            threads: 0,
            busy: 0,
        }
    }

    /// Runs it on a free thread, or a new one. An error means that there was no room for another thread.
    pub(crate) fn run(
        &mut self,
        fence: Fence,
        payload: Bytes,
        handler: Arc<dyn Handler>,
    ) -> std::io::Result<Arc<Watch>> {
        if self.busy == self.threads {
            self.start_thread()?;
        }
        self.busy += 1;
        let watch = Arc::new(Watch::new(self.clock));
        let job = Job {
            fence,
            payload,
            watch: Arc::clone(&watch),
        };
        self.sender
            .send((handler, job))
            .expect("the pool holds a receiver");
        Ok(watch)
    }

    /// The next attempt that is done.
    pub(crate) fn done(&mut self) -> Option<Completion> {
        let completion = self.completions.take()?;
        self.busy -= 1;
        Some(completion)
    }

    fn start_thread(&mut self) -> std::io::Result<()> {
        let receiver = self.receiver.clone();
        let completions = Arc::clone(&self.completions);
        std::thread::Builder::new()
            .name(format!("handler-{}", self.threads))
            .spawn(move || {
                while let Ok((handler, job)) = receiver.recv() {
                    completions.put(run(&*handler, &job));
                }
            })?;
        self.threads += 1;
        Ok(())
    }
}

fn run(handler: &dyn Handler, job: &Job) -> Completion {
    let result = catch_unwind(AssertUnwindSafe(|| handler.run(job))).unwrap_or_else(|panic| {
        Err(HandlerError::new(format!(
            "panicked: {}",
            words_of(&*panic)
        )))
    });
    let text = |value: Value| {
        if value.is_null() {
            Vec::new()
        } else {
            value.to_string().into_bytes()
        }
    };
    Completion {
        fence: job.fence,
        result: result.map(text),
        told: job.cancelled(),
    }
}

fn words_of(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("without a word")
}

#[cfg(test)]
mod tests {
    use hostler_wire::Epoch;
    use hostler_wire::allow::Pattern;

    use super::*;

    fn job(attempt: u16, payload: &'static str) -> Job {
        let fence = Fence {
            job: JobId::MIN,
            epoch: Epoch::new(1),
            attempt: Attempt::new(attempt).unwrap(),
        };
        Job {
            fence,
            payload: Bytes::from_static(payload.as_bytes()),
            watch: Arc::new(Watch::new(Clock::start())),
        }
    }

    fn outcome(completion: Completion) -> (Outcome, Detail) {
        let Ending::Done {
            outcome, detail, ..
        } = completion.into_ending(64)
        else {
            unreachable!()
        };
        (outcome, detail.map(|d| *d).unwrap_or_default())
    }

    #[test]
    fn a_panic_fails_the_attempt_and_says_what_it_said() {
        let handler = |_: &Job| -> Result<Value, HandlerError> { panic!("no {}", "paper") };
        let (end, detail) = outcome(run(&handler, &job(1, "")));
        assert_eq!(
            end,
            Outcome::HandlerFailed {
                fatal: false,
                retry_after_ms: None
            }
        );
        assert_eq!(detail.message, "panicked: no paper");
    }

    #[test]
    fn a_result_that_is_too_long_is_named_by_size_and_digest() {
        let long = |_: &Job| Ok(Value::from("x".repeat(63)));
        let (end, detail) = outcome(run(&long, &job(1, "")));
        assert_eq!(end, Outcome::Succeeded);
        let result: Value = serde_json::from_slice(&detail.result).unwrap();
        assert_eq!(result["too_large"], true);
        assert_eq!(result["bytes"], 65);
        assert_eq!(result["sha256"].as_str().unwrap().len(), 64);

        let fits = |_: &Job| Ok(Value::from("x".repeat(62)));
        assert_eq!(outcome(run(&fits, &job(1, ""))).1.result.len(), 64);
    }

    #[test]
    fn fail_fails_as_often_as_it_is_told() {
        let payload = r#"{"message":"not yet","times":2}"#;
        for (attempt, ok) in [(1, false), (2, false), (3, true)] {
            let (end, _) = outcome(run(&fail, &job(attempt, payload)));
            assert_eq!(end == Outcome::Succeeded, ok, "attempt {attempt}");
        }
        let (end, detail) = outcome(run(&fail, &job(1, r#"{"fatal":true}"#)));
        assert_eq!(
            end,
            Outcome::HandlerFailed {
                fatal: true,
                retry_after_ms: None
            }
        );
        assert_eq!(detail.message, "failed as asked");
    }

    #[test]
    fn sleep_ends_when_it_is_told_to() {
        let job = job(1, r#"{"ms":3600000}"#);
        job.watch.cancel();
        assert!(run(&sleep, &job).told);
    }

    #[test]
    fn an_error_may_ask_for_its_own_delay() {
        let busy = |_: &Job| Err(HandlerError::new("busy").retry_after(Duration::from_secs(2)));
        let (end, _) = outcome(run(&busy, &job(1, "")));
        assert_eq!(
            end,
            Outcome::HandlerFailed {
                fatal: false,
                retry_after_ms: Some(2_000)
            }
        );
    }

    #[test]
    fn ones_own_handler_comes_before_a_built_in_of_the_same_name() {
        let mut registry = Registry::default();
        assert!(registry.inline().contains("noop"));
        registry.add("noop".to_owned(), |_: &Job| Ok(Value::Null));
        assert!(!registry.inline().contains("noop"));
        assert!(matches!(registry.find("noop"), Some(Way::Thread(_))));
        assert_eq!(registry.names(), ["echo", "fail", "noop", "sleep"]);
    }

    #[test]
    fn a_worker_has_only_the_handlers_it_was_started_for() {
        let mut registry = Registry::default();
        registry.add("img.crop".to_owned(), |_: &Job| Ok(Value::Null));
        registry.allow(Handlers::Only(vec![Pattern::new("img.*").unwrap()]));
        assert!(registry.find("img.crop").is_some());
        assert!(registry.find("noop").is_none() && registry.find("sleep").is_none());
        assert_eq!(registry.names(), ["img.crop"]);
        assert!(registry.inline().is_empty());
    }
}
