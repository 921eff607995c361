//! The endpoints about jobs: submit, show, list, cancel, retry.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use hostler_engine::effect::CancelAnswer;
use hostler_engine::spec::Kind;
use hostler_engine::{Span, WallTime};
use hostler_wire::api::{
    Accepted, AcceptedBatch, JobList, JobView, Links, StateView, Timestamp, nearest,
};
use hostler_wire::frame::{Task, Work};
use hostler_wire::{JobId, JobState};
use hyper::body::{Body as _, Incoming};
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::http::request;
use hyper::{Response, StatusCode, Uri};
use sha2::{Digest, Sha256};
use tokio::sync::oneshot;

use crate::auth::{Bearer, Right};
use crate::dispatch::{Ask, JobStatus, LiveStatus};
use crate::http::body::{self, Body};
use crate::http::guard::{self, Media};
use crate::http::params::{Params, wrong};
use crate::http::problem::{self, Code, Refusal};
use crate::http::query::Known;
use crate::http::route::Who;
use crate::http::{Parts, asked, intake, logs, ops, query};
use crate::store::seam::{Draft, ListQuery, Lookup, Moment, Record, Submission};
use crate::store::writer::{self, SubmitError};

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const IDEMPOTENT_REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");
/// Longest Idempotency-Key.
pub(super) const KEY_BYTES_MAX: usize = 255;
/// Most jobs on a page, and how many without a word.
pub(super) const PAGE_JOBS_MAX: usize = 1_000;
const PAGE_JOBS: usize = 100;
/// Longest reason of a cancel.
pub(super) const NOTE_BYTES_MAX: usize = 1_024;
/// Records read at once for a list of live jobs: each may bring a body of 4 MiB along.
const RECORDS_AT_ONCE: usize = 16;
/// Pages of live jobs looked through for one answer, where a filter leaves many out.
const LIVE_PAGES_MAX: usize = 8;
/// How often a cancel is tried again when the job ends or moves meanwhile.
const CANCEL_TRIES: usize = 3;

type Outcome = Result<Response<Body>, Box<Refusal>>;

/// `POST /jobs`.
pub(super) async fn submit(
    parts: &Parts,
    who: &Who,
    head: &mut request::Parts,
    body: Incoming,
) -> Outcome {
    Params::parse(head.uri.query(), &[])?;
    if parts.health.is_stopping() {
        return Err(problem::stopping());
    }
    // What the head has wrong is told before the body is waited for.
    guard::media(&head.headers)?;
    key(head)?;
    let limits = &parts.config.limits;
    let body = body::read(body, limits.body_bytes_max, limits.http_body_timeout).await?;
    let (reply, answer) = hand_over(parts, who, head, body)?;
    Ok(answer.with(committed(reply).await?))
}

/// What has been submitted goes to the writer, and with it the last hold on hyper's buffer: it waits for the next request
/// in the same one.
fn hand_over(
    parts: &Parts,
    who: &Who,
    head: &mut request::Parts,
    body: Bytes,
) -> Result<(Promise, Answer), Box<Refusal>> {
    let media = guard::media(&head.headers)?;
    let key = key(head)?;
    let intake::Read {
        mut submission,
        batch,
    } = intake::read(&parts.config, who, media, &body)?;
    take_jobs(parts, who, submission.jobs.len())?;
    let form: &[u8] = match media {
        Media::Json => b"jobs json\n",
        Media::Ndjson => b"jobs ndjson\n",
    };
    submission.key = key.map(|key| (key, digest(form, &body)));
    head.headers.clear();
    head.uri = Uri::default();
    let answer = if batch {
        Answer::Batch
    } else {
        Answer::of_one(parts, &submission)
    };
    Ok((parts.writer.submit(submission)?, answer))
}

/// `POST /jobs/{id}/retry`: a copy of a finished job, with a new id.
///
/// Times are counted from now: what the job had between its acceptance and its limits, the copy has too.
pub(super) async fn retry(
    parts: &Parts,
    who: &Who,
    id: JobId,
    head: &request::Parts,
    body: Incoming,
) -> Outcome {
    Params::parse(head.uri.query(), &[])?;
    if parts.health.is_stopping() {
        return Err(problem::stopping());
    }
    if !body.is_end_stream() {
        let mut refusal = Refusal::new(Code::BodyNotWanted, "a retry is a copy; it takes no body");
        refusal.close = true;
        return Err(refusal);
    }
    let key = key(head)?;
    let record = query::job(parts, who, id, false).await?.record;
    if record.end.is_none() {
        return Err(Refusal::new(
            Code::JobNotFinished,
            format!("job {id} has not finished; cancel it first, or wait"),
        ));
    }
    let Some(body) = record.body.clone() else {
        return Err(purged(id));
    };
    let kind = record.class.spec.kind;
    let handler = match kind {
        Kind::Command => None,
        Kind::Handler => Some(handler_of(&body)),
    };
    intake::allowed(&parts.config, &who.bearer, handler.as_deref()).map_err(|detail| {
        Refusal::field(Code::JobTypeNotAllowed, intake::pointer_of(kind), detail)
    })?;
    take_jobs(parts, who, 1)?;
    let draft = Draft {
        class: 0,
        priority: record.priority,
        name: record.name.clone(),
        labels: record.labels.clone(),
        due: None,
        expires: since(&record, record.expires),
        deadline: since(&record, record.deadline),
        sync: record.sync,
        retry_of: Some(id),
        body,
    };
    let submission = Submission {
        by: Arc::clone(&who.bearer.id),
        from: Some(who.from),
        classes: vec![record.class.spec.clone()],
        bytes: draft.body.len() + intake::DRAFT_BYTES,
        jobs: vec![draft],
        key: key.map(|key| (key, digest(b"retry\n", id.to_string().as_bytes()))),
    };
    let answer = Answer::of_one(parts, &submission);
    let reply = parts.writer.submit(submission)?;
    Ok(answer.with(committed(reply).await?))
}

/// Whom a stored body calls.
fn handler_of(body: &Bytes) -> String {
    match Work::decode(body.clone()).map(|work| work.task) {
        Ok(Task::Handler(handler)) => handler.name,
        Ok(Task::Command(_)) | Err(_) => String::new(),
    }
}

/// The caller submits that many jobs, if its rate allows it.
fn take_jobs(parts: &Parts, who: &Who, count: usize) -> Result<(), Box<Refusal>> {
    let taken = who.bearer.take_jobs(count as u64, parts.clock.now());
    Ok(taken.inspect_err(|_denied| {
        let limited = &parts.auth.counts().rate_limited;
        limited.fetch_add(1, Ordering::Relaxed);
    })?)
}

fn since(record: &Record, end: Option<WallTime>) -> Option<Moment> {
    let ms = end?.millis().saturating_sub(record.created.millis());
    Some(Moment::In(Span::from_millis(ms.max(1))))
}

/// What the writer will say.
type Promise = oneshot::Receiver<Result<writer::Accepted, SubmitError>>;

/// An answer that lacks the id.
enum Answer {
    One(Box<Accepted>),
    Batch,
}

impl Answer {
    /// A single job, described.
    fn of_one(parts: &Parts, submission: &Submission) -> Self {
        let draft = &submission.jobs[0];
        let waits = match draft.due {
            None => false,
            Some(Moment::In(_)) => true,
            Some(Moment::At(at)) => at > parts.clock.wall(),
        };
        Self::One(Box::new(Accepted {
            id: JobId::MIN,
            state: if waits {
                JobState::Scheduled
            } else {
                JobState::Queued
            },
            queue: submission.classes[draft.class as usize].queue.to_string(),
            name: draft.name.as_deref().map(str::to_owned),
            priority: draft.priority.raw(),
            retry_of: draft.retry_of,
            links: Links::default(),
        }))
    }

    fn with(self, accepted: writer::Accepted) -> Response<Body> {
        let first = accepted.first;
        match self {
            Self::One(mut answer) => {
                answer.id = first;
                answer.links = Links::of(first);
                let place = answer.links.this.clone();
                created(&answer, place, accepted.replayed)
            }
            Self::Batch => {
                let answer = AcceptedBatch {
                    first_id: first,
                    count: accepted.count,
                };
                created(&answer, format!("/jobs/{first}"), accepted.replayed)
            }
        }
    }
}

/// Waits for the commit (P1).
async fn committed(reply: Promise) -> Result<writer::Accepted, Box<Refusal>> {
    // No time limit: a commit that is under way will be answered, and an earlier answer could only be a guess.
    match reply.await {
        Ok(answer) => Ok(answer?),
        Err(_dropped) => Err(problem::stopping()),
    }
}

fn created<T: serde::Serialize>(answer: &T, place: String, replayed: bool) -> Response<Body> {
    let mut response = ops::json(answer);
    *response.status_mut() = StatusCode::CREATED;
    let headers = response.headers_mut();
    let place = HeaderValue::try_from(place).expect("a path of ASCII letters and digits");
    headers.insert(header::LOCATION, place);
    if replayed {
        headers.insert(IDEMPOTENT_REPLAYED, HeaderValue::from_static("true"));
    }
    response
}

/// The client's name for this request.
fn key(head: &request::Parts) -> Result<Option<Arc<str>>, Box<Refusal>> {
    let mut all = head.headers.get_all(IDEMPOTENCY_KEY).iter();
    let Some(value) = all.next() else {
        return Ok(None);
    };
    let text = value.to_str().unwrap_or_default();
    let fits =
        (1..=KEY_BYTES_MAX).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
    if !fits || all.next().is_some() {
        return Err(Refusal::new(
            Code::BadHeader,
            format!(
                "an Idempotency-Key is one word of 1 to {KEY_BYTES_MAX} visible ASCII characters"
            ),
        ));
    }
    Ok(Some(text.into()))
}

/// What a request with a key is recognised by: what it asks for, and its bytes.
fn digest(form: &[u8], body: &[u8]) -> [u8; 32] {
    Sha256::new()
        .chain_update(form)
        .chain_update(body)
        .finalize()
        .into()
}

fn purged(id: JobId) -> Box<Refusal> {
    Refusal::new(
        Code::BodyPurged,
        format!("body and output of job {id} were purged; its end is at /jobs/{id}"),
    )
}

/// `GET /jobs/{id}`.
pub(super) async fn show(parts: &Parts, who: &Who, id: JobId, head: &request::Parts) -> Outcome {
    let params = Params::parse(head.uri.query(), &["wait", "live"])?;
    let live = params.flag("live")?.unwrap_or(true);
    let mut known = None;
    if let Some(within) = params.duration("wait")? {
        let most = parts.config.limits.wait_max;
        if within > most {
            let detail = format!("must be at most {} s (limits.wait_max)", most.as_secs());
            return Err(wrong("wait", &detail));
        }
        if who.bearer.scope().is_some() {
            // Not even the time until a job's end is told to those it is not for.
            query::job(parts, who, id, false).await?;
        }
        known = wait(parts, who, id, within).await?;
        who.bearer.check(parts.clock.wall())?;
    }
    let known = match known {
        Some(known) => known,
        None => query::job(parts, who, id, live).await?,
    };
    let view = known.view(live);
    let json = serde_json::to_vec(&view).expect("a view has string keys and no failing parts");
    let tag = tag(&json);
    let mut response = if wants(head, &tag) {
        let mut response = Response::new(Body::full(Bytes::new()));
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        response
    } else {
        let mut response = Response::new(Body::full(json));
        response.headers_mut().insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        );
        response
    };
    let headers = response.headers_mut();
    headers.insert(header::ETAG, tag);
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    Ok(response)
}

/// Waits until the job has ended, and a little longer for the rest of its output, so that whoever asks for the output
/// next has it whole. What was read of an ended job is given back: an end is for ever, and asking for it a second time
/// would wake three threads once more.
async fn wait(
    parts: &Parts,
    who: &Who,
    job: JobId,
    within: Duration,
) -> Result<Option<Known>, Box<Refusal>> {
    let (reply, ended) = oneshot::channel();
    parts.dispatch.ask(Ask::Wait { job, reply });
    match tokio::time::timeout(within, ended).await {
        Err(_elapsed) => Ok(None),
        Ok(Err(_dropped)) => Err(problem::stopping()),
        // It had ended before: its output has had its time.
        Ok(Ok(None)) => Ok(None),
        Ok(Ok(Some(_ended))) => {
            let known = query::stored(parts, who, job).await?;
            logs::settle(parts, &known).await;
            Ok(known.record.end.is_some().then_some(known))
        }
    }
}

fn tag(json: &[u8]) -> HeaderValue {
    let digest: [u8; 32] = Sha256::digest(json).into();
    let text: String = digest[..12]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    HeaderValue::from_str(&format!("\"{text}\"")).expect("quoted hex digits")
}

/// Whether the client has this very answer.
fn wants(head: &request::Parts, tag: &HeaderValue) -> bool {
    let tag = tag.to_str().unwrap_or_default();
    let listed = |value: &HeaderValue| {
        let text = value.to_str().unwrap_or_default();
        text.split(',')
            .map(str::trim)
            .any(|theirs| theirs == "*" || theirs == tag)
    };
    head.headers
        .get_all(header::IF_NONE_MATCH)
        .iter()
        .any(listed)
}

/// `DELETE /jobs/{id}`: cancel, or with `?purge=1` forget what a finished job was made of.
pub(super) async fn delete(parts: &Parts, who: &Who, id: JobId, head: &request::Parts) -> Outcome {
    let params = Params::parse(head.uri.query(), &["reason", "force", "purge"])?;
    let force = params.flag("force")?;
    let note = params.text("reason");
    if params.flag("purge")?.unwrap_or(false) {
        if force.is_some() || note.is_some() {
            return Err(wrong(
                "purge",
                "is for finished jobs; `reason` and `force` are for cancelling",
            ));
        }
        who.bearer.may(Right::Admin)?;
        return purge(parts, who, id).await;
    }
    if let Some(note) = note
        && (note.len() > NOTE_BYTES_MAX || note.chars().any(char::is_control))
    {
        let detail = format!("may have {NOTE_BYTES_MAX} bytes without control characters");
        return Err(wrong("reason", &detail));
    }
    cancel(parts, who, id, force.unwrap_or(false), note).await
}

async fn cancel(parts: &Parts, who: &Who, id: JobId, force: bool, note: Option<&str>) -> Outcome {
    if who.bearer.scope().is_some() {
        query::job(parts, who, id, false).await?;
    }
    for _ in 0..CANCEL_TRIES {
        let (reply, answer) = oneshot::channel();
        parts.dispatch.ask(Ask::Cancel {
            job: id,
            force,
            note: note.map(Into::into),
            reply,
        });
        let ended = match asked(answer).await? {
            CancelAnswer::Cancelled => JobState::Cancelled,
            CancelAnswer::Cancelling => return cancelling(parts, id).await,
            CancelAnswer::Finished { state } => state,
            CancelAnswer::Unknown => match query::job(parts, who, id, false).await?.record.end {
                Some(end) => end.state,
                // It came to be, or its end is being told, while we asked.
                None => continue,
            },
        };
        if ended == JobState::Cancelled {
            return Ok(ops::json(&StateView::new(id, ended)));
        }
        return Err(Refusal::new(
            Code::JobFinished,
            format!("job {id} already {}", past(ended)),
        ));
    }
    Err(Refusal::new(
        Code::NoAnswer,
        format!("job {id} is stored and the scheduler does not know it yet; try again"),
    ))
}

const fn past(state: JobState) -> &'static str {
    match state {
        JobState::Succeeded => "succeeded",
        JobState::Failed => "failed",
        JobState::Expired => "expired",
        JobState::Skipped => "been skipped",
        JobState::Cancelled => "been cancelled",
        JobState::Scheduled
        | JobState::Blocked
        | JobState::Queued
        | JobState::Running
        | JobState::Cancelling => "finished",
    }
}

/// It runs and was told to stop; whether its worker can hear that is said too.
async fn cancelling(parts: &Parts, id: JobId) -> Outcome {
    let mut view = StateView::new(id, JobState::Cancelling);
    if let Some(status) = query::status(parts, id, false).await? {
        view.worker_connected = status.worker.is_some().then_some(status.worker_connected);
        view.worker = status.worker.map(String::from);
    }
    let mut response = ops::json(&view);
    *response.status_mut() = StatusCode::ACCEPTED;
    Ok(response)
}

async fn purge(parts: &Parts, who: &Who, id: JobId) -> Outcome {
    if query::job(parts, who, id, false)
        .await?
        .record
        .end
        .is_none()
    {
        return Err(Refusal::new(
            Code::JobNotFinished,
            format!("job {id} has not finished; cancel it first, or wait"),
        ));
    }
    asked(parts.writer.purge(id)).await?.map_err(|error| {
        Refusal::new(
            Code::StoreUnavailable,
            format!("the body could not be forgotten: {error}"),
        )
    })?;
    asked(parts.output.purge(id)).await?;
    let mut response = Response::new(Body::full(Bytes::new()));
    *response.status_mut() = StatusCode::NO_CONTENT;
    Ok(response)
}

/// What `GET /jobs` was asked for.
#[derive(Debug)]
struct Listing {
    /// Wanted states the engine knows.
    live: Vec<JobState>,
    /// Wanted states the store knows.
    ended: Vec<JobState>,
    queues: Vec<Box<str>>,
    name: Option<Box<str>>,
    since: Option<WallTime>,
    until: Option<WallTime>,
    limit: usize,
    after: Option<JobId>,
    descending: bool,
}

const LIST_PARAMS: &[&str] = &[
    "state", "queue", "name", "since", "until", "limit", "cursor", "order", "live", "label",
    "worker", "q",
];

/// `GET /jobs`.
pub(super) async fn list(parts: &Parts, who: &Who, head: &request::Parts) -> Outcome {
    let params = Params::parse(head.uri.query(), LIST_PARAMS)?;
    let mut listing = Listing::new(&params, Timestamp::from_millis(parts.clock.wall().millis()))?;
    listing.keep_to(&who.bearer)?;
    let mut page = listing.page(parts).await?;
    if params.flag("live")?.unwrap_or(false) {
        add_lives(parts, &mut page.jobs).await?;
    }
    let mut response = ops::json(&JobList {
        jobs: page.jobs,
        next_cursor: page.next.map(|id| id.to_string()),
    });
    if let Some(next) = page.next {
        let next = ops::next_page(head, &next.to_string());
        response.headers_mut().insert(header::LINK, next);
    }
    Ok(response)
}

/// What the workers say of those that run: one question a worker, whatever their number, and one fixed wait.
async fn add_lives(parts: &Parts, jobs: &mut [JobView]) -> Result<(), Box<Refusal>> {
    let runs = |job: &JobView| matches!(job.state, JobState::Running | JobState::Cancelling);
    let running: Vec<JobId> = jobs
        .iter()
        .filter(|job| runs(job))
        .map(|job| job.id)
        .collect();
    let (reply, lives) = oneshot::channel();
    parts.dispatch.ask(Ask::Lives {
        jobs: running,
        reply,
    });
    let lives: HashMap<JobId, LiveStatus> = asked(lives).await?.into_iter().collect();
    for job in jobs {
        job.live = Some(
            lives
                .get(&job.id)
                .filter(|_| runs(job))
                .map(query::live_view),
        );
    }
    Ok(())
}

/// Some jobs in order, and where the next page begins.
#[derive(Debug, Default)]
struct Page {
    jobs: Vec<JobView>,
    next: Option<JobId>,
}

impl Listing {
    fn new(params: &Params<'_>, now: Timestamp) -> Result<Self, Box<Refusal>> {
        for name in ["label", "worker", "q"] {
            if params.text(name).is_some() {
                return Err(Refusal::field(
                    Code::NotSupportedYet,
                    format!("?{name}"),
                    "this filter is not supported yet",
                ));
            }
        }
        let (mut live, mut ended) = (Vec::new(), Vec::new());
        for name in params
            .text("state")
            .into_iter()
            .flat_map(|all| all.split(','))
        {
            let state = state(name)?;
            let states = if state.is_terminal() {
                &mut ended
            } else {
                &mut live
            };
            if !states.contains(&state) {
                states.push(state);
            }
        }
        let limit = params
            .number("limit", "a number from 1 to 1000")?
            .unwrap_or(PAGE_JOBS);
        if !(1..=PAGE_JOBS_MAX).contains(&limit) {
            return Err(wrong("limit", "must be a number from 1 to 1000"));
        }
        let moment = |name| -> Result<Option<WallTime>, Box<Refusal>> {
            let at = params.moment(name, now)?;
            Ok(at.map(|at| WallTime::from_millis(at.millis())))
        };
        Ok(Self {
            live,
            ended,
            queues: params.text("queue").into_iter().map(Into::into).collect(),
            name: params.text("name").map(Into::into),
            since: moment("since")?,
            until: moment("until")?,
            limit,
            after: params.number("cursor", "the next_cursor of a page")?,
            descending: match params.text("order") {
                None | Some("desc") => true,
                Some("asc") => false,
                Some(_) => return Err(wrong("order", "must be desc (newest first) or asc")),
            },
        })
    }

    /// Only what the caller's token is good for.
    fn keep_to(&mut self, bearer: &Bearer) -> Result<(), Box<Refusal>> {
        if let Some(queue) = self.queues.iter().find(|queue| !bearer.sees(queue)) {
            let detail = intake::not_for_queue(bearer, queue);
            return Err(Refusal::field(Code::QueueNotAllowed, "?queue", detail));
        }
        if self.queues.is_empty() {
            self.queues = bearer.scope().unwrap_or_default().to_vec();
        }
        Ok(())
    }

    /// Engine first, then the store's snapshot: what ended between the two is in the latter, and the latter wins.
    async fn page(&self, parts: &Parts) -> Result<Page, Box<Refusal>> {
        let any = self.live.is_empty() && self.ended.is_empty();
        let live = if self.live.is_empty() {
            Page::default()
        } else {
            self.live_page(parts).await?
        };
        if !any && self.ended.is_empty() {
            return Ok(live);
        }
        let stored = self.stored_page(parts).await?;
        if self.live.is_empty() {
            return Ok(stored);
        }
        Ok(self.merge(live, stored))
    }

    /// Two pages in the same order as one: no further than either of them reaches.
    fn merge(&self, live: Page, stored: Page) -> Page {
        let first = |a: JobId, b: JobId| if self.descending { a.max(b) } else { a.min(b) };
        let horizon = match (live.next, stored.next) {
            (Some(a), Some(b)) => Some(first(a, b)),
            (a, b) => a.or(b),
        };
        let within = |id: JobId| horizon.is_none_or(|horizon| first(id, horizon) == id);
        let mut jobs = stored.jobs;
        let ended: std::collections::HashSet<u64> = jobs.iter().map(|job| job.id.raw()).collect();
        jobs.extend(
            live.jobs
                .into_iter()
                .filter(|job| !ended.contains(&job.id.raw())),
        );
        jobs.retain(|job| within(job.id));
        jobs.sort_unstable_by_key(|job| job.id);
        if self.descending {
            jobs.reverse();
        }
        let next = if jobs.len() > self.limit {
            jobs.truncate(self.limit);
            jobs.last().map(|job| job.id)
        } else {
            horizon
        };
        Page { jobs, next }
    }

    async fn live_page(&self, parts: &Parts) -> Result<Page, Box<Refusal>> {
        let mut page = Page {
            jobs: Vec::new(),
            next: self.after,
        };
        for _ in 0..LIVE_PAGES_MAX {
            let (reply, answer) = oneshot::channel();
            parts.dispatch.ask(Ask::List {
                states: self.live.clone(),
                queues: self.queues.clone(),
                after: page.next,
                descending: self.descending,
                limit: self.limit - page.jobs.len(),
                reply,
            });
            let (found, next) = asked(answer).await?;
            page.next = next;
            self.add_records(parts, &found, &mut page.jobs).await?;
            if next.is_none() || page.jobs.len() >= self.limit {
                break;
            }
        }
        Ok(page)
    }

    /// What the engine does not keep comes from the store: names, labels, times. The other filters are applied here.
    async fn add_records(
        &self,
        parts: &Parts,
        found: &[JobStatus],
        jobs: &mut Vec<JobView>,
    ) -> Result<(), Box<Refusal>> {
        for some in found.chunks(RECORDS_AT_ONCE) {
            let records: Vec<_> = some
                .iter()
                .map(|status| parts.reader.job(status.id))
                .collect();
            for (status, record) in some.iter().zip(records) {
                let Lookup::Found(record) = asked(record).await?? else {
                    continue;
                };
                // What has ended since is no longer in a live state.
                if record.end.is_none() && self.fits(&record) {
                    jobs.push(query::summary(&record, Some(status)));
                }
            }
        }
        Ok(())
    }

    fn fits(&self, record: &Record) -> bool {
        (self.name.is_none() || self.name == record.name)
            && self.since.is_none_or(|since| record.created >= since)
            && self.until.is_none_or(|until| record.created < until)
    }

    async fn stored_page(&self, parts: &Parts) -> Result<Page, Box<Refusal>> {
        let page = asked(parts.reader.list(ListQuery {
            states: self.ended.clone(),
            queues: self.queues.clone(),
            name: self.name.clone(),
            since: self.since,
            until: self.until,
            after: self.after,
            descending: self.descending,
            limit: self.limit,
        }));
        let page = page.await??;
        let unfinished: Vec<JobId> = page
            .records
            .iter()
            .filter(|record| record.end.is_none())
            .map(|record| record.id)
            .collect();
        let known = Unfinished::look_up(parts, unfinished).await?;
        let jobs = page
            .records
            .iter()
            .map(|record| known.view(record))
            .collect();
        Ok(Page {
            jobs,
            next: page.next,
        })
    }
}

/// What has become of listed jobs that had no end in the list's snapshot.
struct Unfinished {
    live: Vec<JobStatus>,
    ended: Vec<(JobId, JobState, hostler_wire::Reason)>,
}

impl Unfinished {
    /// The engine first; for those it does not know a newer snapshot.
    async fn look_up(parts: &Parts, jobs: Vec<JobId>) -> Result<Self, Box<Refusal>> {
        let mut found = Self {
            live: Vec::new(),
            ended: Vec::new(),
        };
        if jobs.is_empty() {
            return Ok(found);
        }
        let (reply, live) = oneshot::channel();
        parts.dispatch.ask(Ask::States {
            jobs: jobs.clone(),
            reply,
        });
        found.live = asked(live).await?;
        found.live.sort_unstable_by_key(|status| status.id);
        let unknown: Vec<JobId> = jobs
            .into_iter()
            .filter(|id| found.status(*id).is_none())
            .collect();
        if !unknown.is_empty() {
            found.ended = asked(parts.reader.ends(unknown)).await??;
        }
        Ok(found)
    }

    fn status(&self, id: JobId) -> Option<&JobStatus> {
        let place = self
            .live
            .binary_search_by_key(&id, |status| status.id)
            .ok()?;
        Some(&self.live[place])
    }

    fn view(&self, record: &Record) -> JobView {
        let mut view = query::summary(record, self.status(record.id));
        let end = self.ended.iter().find(|(id, ..)| *id == record.id);
        if let Some((_, state, reason)) = end {
            view.state = *state;
            view.reason = query::reason(*reason);
        }
        view
    }
}

fn state(name: &str) -> Result<JobState, Box<Refusal>> {
    JobState::from_name(name).ok_or_else(|| {
        let names: Vec<_> = JobState::ALL.iter().map(|state| state.name()).collect();
        let detail = match nearest(name, &names) {
            Some(near) => format!("unknown state, did you mean `{near}`?"),
            None => format!("unknown state; known are {}", names.join(", ")),
        };
        wrong("state", &detail)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(ids: &[u64], next: Option<u64>) -> Page {
        let id = |raw| JobId::new(raw).unwrap();
        Page {
            jobs: ids
                .iter()
                .map(|raw| JobView::new(id(*raw), JobState::Failed))
                .collect(),
            next: next.map(id),
        }
    }

    fn merged(order: &str, live: Page, stored: Page) -> (Vec<u64>, Option<u64>) {
        let query = format!("state=running,failed&limit=3&order={order}");
        let params = Params::parse(Some(&query), LIST_PARAMS).unwrap();
        let listing = Listing::new(&params, Timestamp::from_millis(0)).unwrap();
        let page = listing.merge(live, stored);
        let ids = page.jobs.iter().map(|job| job.id.raw()).collect();
        (ids, page.next.map(JobId::raw))
    }

    #[test]
    fn a_joined_page_reaches_no_further_than_either_of_its_sources_looked() {
        let got = merged("desc", page(&[8], Some(6)), page(&[7, 4, 1], None));
        assert_eq!(got, (vec![8, 7], Some(6)));
        let got = merged("asc", page(&[2], Some(3)), page(&[1, 4], None));
        assert_eq!(got, (vec![1, 2], Some(3)));
        let got = merged("desc", page(&[], Some(9)), page(&[7, 4], Some(4)));
        assert_eq!(got, (vec![], Some(9)));
    }

    #[test]
    fn a_job_in_both_sources_is_listed_once_and_a_full_page_ends_at_its_limit() {
        let got = merged("desc", page(&[9, 8], None), page(&[9, 7, 5], Some(5)));
        assert_eq!(got, (vec![9, 8, 7], Some(7)));
        let got = merged("desc", page(&[9], None), page(&[7], None));
        assert_eq!(got, (vec![9, 7], None));
    }
}
