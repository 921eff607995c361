//! A job's state: what the engine knows of it, what the store remembers, and the worker's word of this moment, made one.
//!
//! The engine is asked first, and the store's snapshot is opened after its answer: a job the engine has forgotten has
//! its end in that snapshot. A stored end is the last word. A job that neither has ended nor is known to the engine, but
//! is stored, waits in the lanes: it is queued. The live part comes within the probe's fixed time, or is said to be
//! missing (dispatch keeps that time).

use std::borrow::Cow;

use hostler_engine::WallTime;
use hostler_wire::api::{AttemptView, JobView, Links, Live, Timestamp, UsageView};
use hostler_wire::frame::{Task, Work};
use hostler_wire::{Detail, JobId, JobState, Reason, Usage};
use serde_json::value::RawValue;
use tokio::sync::oneshot;

use crate::dispatch::{Ask, JobStatus, LiveStatus};
use crate::http::problem::{Code, Refusal};
use crate::http::route::Who;
use crate::http::{Parts, asked};
use crate::store::seam::{AttemptRecord, EndRecord, Lookup, Record};

/// What is known of one job.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) record: Box<Record>,
    pub(super) status: Option<Box<JobStatus>>,
}

/// Asks both; a job that is not there is a refusal, and so is one that the caller's token is not good for: the same.
pub(super) async fn job(
    parts: &Parts,
    who: &Who,
    id: JobId,
    live: bool,
) -> Result<Known, Box<Refusal>> {
    let status = status(parts, id, live).await?;
    let stored = stored(parts, who, id).await?;
    Ok(Known { status, ..stored })
}

/// Asks the store alone: enough for a job whose end the engine has told of.
pub(super) async fn stored(parts: &Parts, who: &Who, id: JobId) -> Result<Known, Box<Refusal>> {
    match asked(parts.reader.job(id)).await?? {
        Lookup::Found(record) if who.bearer.sees(&record.class.spec.queue) => Ok(Known {
            record,
            status: None,
        }),
        Lookup::Found(_) | Lookup::Never => Err(Refusal::new(
            Code::JobNotFound,
            format!("there never was a job {id}"),
        )),
        Lookup::Purged => Err(Refusal::new(
            Code::JobPurged,
            format!("job {id} is older than what is kept"),
        )),
    }
}

/// The engine's part.
pub(super) async fn status(
    parts: &Parts,
    job: JobId,
    live: bool,
) -> Result<Option<Box<JobStatus>>, Box<Refusal>> {
    let (reply, status) = oneshot::channel();
    parts.dispatch.ask(Ask::State { job, live, reply });
    asked(status).await
}

impl Known {
    /// Everything there is to show. `live` says that the live part was asked for.
    pub(super) fn view(&self, live: bool) -> JobView {
        let mut view = summary(&self.record, self.status.as_deref());
        view.attempts = history(&self.record);
        if live {
            let seen = self.status.as_ref().filter(|_| self.record.end.is_none());
            view.live = Some(seen.and_then(|status| status.live.as_ref()).map(live_view));
        }
        describe(&mut view, &self.record);
        view.links = Some(Links::of(view.id));
        view
    }
}

/// A record without its body and history, and what the engine adds to it.
pub(super) fn summary(record: &Record, status: Option<&JobStatus>) -> JobView {
    let mut view = JobView::new(record.id, JobState::Queued);
    view.queue = record.class.spec.queue.to_string();
    view.name = record.name.as_deref().map(str::to_owned);
    view.priority = record.priority.raw();
    view.max_attempts = record.class.spec.retry.max_attempts;
    view.created_at = Some(time(record.created));
    view.due_at = record.due.map(time);
    view.expires_at = record.expires.map(time);
    view.deadline_at = record.deadline.map(time);
    view.labels = record
        .labels
        .as_deref()
        .and_then(|json| serde_json::from_str(json).ok())
        .unwrap_or_default();
    view.retry_of = record.retry_of;
    match (&record.end, status) {
        (Some(end), _) => ended(&mut view, record, end),
        (None, Some(status)) => standing(&mut view, status),
        (None, None) => {}
    }
    view
}

/// What a live job's record shows of itself where there is no stored one at hand.
pub(super) fn standing(view: &mut JobView, status: &JobStatus) {
    view.state = status.state;
    view.reason = reason(status.reason);
    view.queue = status.queue.to_string();
    view.priority = status.priority.raw();
    view.attempt = status.attempt;
    view.failures = status.failures;
    view.max_attempts = status.max_attempts;
    view.worker = status.worker.as_deref().map(str::to_owned);
    view.worker_connected = status.worker.is_some().then_some(status.worker_connected);
    view.started_at = status.started.map(time);
    let scheduled = status.state == JobState::Scheduled;
    view.due_at = status.due.map(time).or(view.due_at.filter(|_| scheduled));
}

fn ended(view: &mut JobView, record: &Record, end: &EndRecord) {
    let last = &end.attempt;
    view.state = end.state;
    view.reason = reason(last.reason);
    view.attempt = last.number;
    view.worker = last.worker.as_deref().map(str::to_owned);
    view.started_at = last.started.map(time);
    view.finished_at = Some(time(last.finished));
    let failed = record
        .attempts
        .iter()
        .filter(|attempt| is_failure(attempt.reason))
        .count();
    let failed = failed + usize::from(end.state == JobState::Failed && is_failure(last.reason));
    view.failures = u16::try_from(failed).unwrap_or(u16::MAX);
    if let Some(detail) = &last.detail {
        view.exit_code = detail.exit_code;
        view.signal = detail.signal;
        view.message = words(&detail.message);
        view.result = result(&detail.result);
        view.stderr_tail = tail(detail);
        view.usage = detail.usage.as_ref().map(usage);
    }
}

/// Whether an attempt that ended like this was charged as a failure (semantics 3).
fn is_failure(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::ExitCode
            | Reason::Signal
            | Reason::Timeout
            | Reason::Stalled
            | Reason::SpawnFailed
            | Reason::HandlerError
            | Reason::NoSuchHandler
            | Reason::OutOfMemory
    )
}

fn history(record: &Record) -> Vec<AttemptView> {
    let last = record.end.as_ref().map(|end| &end.attempt);
    record
        .attempts
        .iter()
        .chain(last.filter(|last| last.number > 0))
        .map(attempt)
        .collect()
}

fn attempt(record: &AttemptRecord) -> AttemptView {
    let detail = record.detail.as_deref();
    AttemptView {
        number: record.number,
        reason: Cow::Borrowed(record.reason.name()),
        worker: record.worker.as_deref().map(str::to_owned),
        started_at: record.started.map(time),
        finished_at: time(record.finished),
        exit_code: detail.and_then(|detail| detail.exit_code),
        signal: detail.and_then(|detail| detail.signal),
        message: detail.and_then(|detail| words(&detail.message)),
        stderr_tail: detail.and_then(tail),
        usage: detail.and_then(|detail| detail.usage.as_ref().map(usage)),
    }
}

/// What the job does, from its body. Values of the environment stay unsaid.
fn describe(view: &mut JobView, record: &Record) {
    view.durability = Some(Cow::Borrowed(if record.sync { "fsync" } else { "os" }));
    view.created_by = Some(record.by.to_string()).filter(|by| !by.is_empty());
    let Some(body) = &record.body else {
        view.purged = true;
        return;
    };
    let work = match Work::decode(body.clone()) {
        Ok(work) => work,
        Err(error) => {
            tracing::error!(job = %record.id, %error, "a stored body cannot be read");
            view.message = Some(format!("the stored body cannot be read: {error}"));
            return;
        }
    };
    view.timeout_ms = work.timeout_ms;
    view.stall_ms = work.stall_ms;
    match work.task {
        Task::Command(command) => {
            view.command = Some(command.argv);
            view.env = command.env.into_iter().map(|(name, _value)| name).collect();
            view.cwd = command.cwd;
            view.stdin_bytes = command.stdin.map(|stdin| stdin.len() as u64);
        }
        Task::Handler(handler) => {
            view.handler = Some(handler.name);
            view.payload = result(&handler.payload);
        }
    }
}

pub(super) fn live_view(live: &LiveStatus) -> Live {
    match live {
        LiveStatus::Seen { probed_us, live } => Live::Yes {
            probed_ms: *probed_us as f64 / 1_000.0,
            started: live.started,
            pid: live.pid,
            processes: live.processes,
            cpu_ms: live.cpu_ms,
            rss_bytes: live.rss_bytes,
            stdout_bytes: live.stdout_bytes,
            stderr_bytes: live.stderr_bytes,
            quiet_ms: live.quiet_ms,
            output_age_ms: live.output_age_ms,
            progress: live.progress,
            note: words(&live.note),
        },
        LiveStatus::Unseen {
            why,
            waited_ms,
            last_heard_ms,
        } => Live::No {
            why: Cow::Borrowed(why),
            waited_ms: *waited_ms,
            last_heard_ms: *last_heard_ms,
        },
    }
}

pub(super) fn reason(reason: Reason) -> Option<Cow<'static, str>> {
    (reason != Reason::None).then(|| Cow::Borrowed(reason.name()))
}

pub(super) fn time(at: WallTime) -> Timestamp {
    Timestamp::from_millis(at.millis())
}

fn words(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

/// A worker's JSON as JSON; what is none is shown as a string, not believed.
fn result(json: &[u8]) -> Option<Box<RawValue>> {
    if json.is_empty() {
        return None;
    }
    let text = String::from_utf8_lossy(json);
    RawValue::from_string(text.clone().into_owned())
        .or_else(|_no_json| serde_json::value::to_raw_value(&*text))
        .ok()
}

fn tail(detail: &Detail) -> Option<String> {
    words(&String::from_utf8_lossy(&detail.stderr_tail))
}

fn usage(usage: &Usage) -> UsageView {
    UsageView {
        wall_ms: usage.wall_ms,
        user_ms: usage.user_ms,
        system_ms: usage.system_ms,
        peak_rss_bytes: usage.peak_rss_bytes,
        stdout_bytes: usage.stdout_bytes,
        stderr_bytes: usage.stderr_bytes,
    }
}
