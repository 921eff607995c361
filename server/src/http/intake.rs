//! Intake: bytes → submission. First their shape, then whether this server takes that type of job, then the sense of
//! each value. After it nothing is unchecked, and nothing was clamped or ignored: what cannot be done is refused with a
//! pointer to the place and the bounds.
//!
//! Jobs are read one after another, borrowed from the request's bytes, and turned into a draft at once; classes are
//! found again without building them anew. So a small job in an array costs well under a microsecond.
//!
//! Not here: who is asking (`auth`), ids and the commit (`store`).

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use hostler_engine::spec::{ClassSpec, Kind, Retry, Rule};
use hostler_engine::{Span, WallTime};
use hostler_wire::Priority;
use hostler_wire::api::{
    CommandRequest, FieldError, Fill, JobRequest, LogsRequest, RetryRequest, RuleRequest,
    ShapeError, Timestamp,
};
use hostler_wire::frame::{Command, Handler, Logs, LogsMode, OnPartition, Overflow, Task, Work};
use hostler_wire::limits::{ARGS_MAX, BODY_BYTES_MAX, LABELS_MAX, NAME_BYTES_MAX};
use serde::de::{self, DeserializeSeed, SeqAccess, Visitor};

use crate::auth::Bearer;
use crate::config::{Config, Durability};
use crate::http::guard::Media;
use crate::http::problem::{Code, Refusal};
use crate::http::route::Who;
use crate::output::LIMIT_BYTES_MIN;
use crate::store::seam::{Draft, Moment, Submission};

/// Longest duration anyone may name: a hundred years.
pub(super) const DURATION_MS_MAX: u64 = 100 * 365 * 24 * 3_600_000;
/// Longest time between TERM and KILL: a day.
pub(super) const GRACE_MS_MAX: u64 = 24 * 3_600_000;
/// Largest growth of the back-off a failure.
pub(super) const FACTOR_MAX: f64 = 100.0;
/// Most rules and codes in a retry policy.
pub(super) const RULES_MAX: usize = 64;
/// Longest working directory: the kernel's limit of a path.
pub(super) const CWD_BYTES_MAX: usize = 4_096;
/// Most errors told at once.
const ERRORS_MAX: usize = 32;
/// Losses a job survives where it does not say.
const MAX_LOSSES: u16 = 3;
/// What a draft weighs in memory beside its body, roughly.
pub(super) const DRAFT_BYTES: usize = 160;

/// What a request's bytes mean.
#[derive(Debug)]
pub(super) struct Read {
    /// The jobs.
    pub(super) submission: Submission,
    /// They came as a batch, even if of one.
    pub(super) batch: bool,
}

/// Reads a body of that type.
pub(super) fn read(
    config: &Config,
    who: &Who,
    media: Media,
    body: &Bytes,
) -> Result<Read, Box<Refusal>> {
    let text = std::str::from_utf8(body).map_err(|error| not_text(body, error.valid_up_to()))?;
    let mut intake = Intake::new(config, who, body);
    let batch = match media {
        Media::Ndjson => {
            intake.lines(text)?;
            true
        }
        Media::Json if text.trim_ascii_start().starts_with('[') => {
            intake.array(text)?;
            true
        }
        Media::Json => {
            let mut job = serde_json::from_str(text).map_err(|error| broken(text, &error, None))?;
            intake.add(Place::Alone, &mut job);
            false
        }
    };
    let submission = intake.finish()?;
    Ok(Read { submission, batch })
}

/// Where in the request a job stands.
#[derive(Clone, Copy, Debug)]
enum Place {
    Alone,
    Item(usize),
    Line { item: usize, line: u64 },
}

/// One thing that is wrong with a job.
struct Wrong {
    code: Code,
    pointer: Cow<'static, str>,
    detail: String,
}

type Checked<T> = Result<T, Wrong>;

fn wrong(pointer: impl Into<Cow<'static, str>>, detail: impl Into<String>) -> Wrong {
    Wrong {
        code: Code::InvalidJob,
        pointer: pointer.into(),
        detail: detail.into(),
    }
}

struct Intake<'c> {
    config: &'c Config,
    bearer: &'c Bearer,
    body: &'c Bytes,
    submission: Submission,
    /// Queues named so far, so that each is one string.
    queues: Vec<Arc<str>>,
    /// Where each class is, once there are too many to look through.
    known: HashMap<ClassSpec, u32>,
    /// The class of the job before: most likely this one's too.
    last: u32,
    /// The last class of a job that says no more of it than kind and queue: found again by these two.
    plain: Option<(Kind, u32)>,
    errors: Vec<FieldError>,
    code: Option<Code>,
    too_many: bool,
}

impl<'c> Intake<'c> {
    fn new(config: &'c Config, who: &'c Who, body: &'c Bytes) -> Self {
        // Room for jobs of middling size; fewer than there may be, so that a body's claim costs less than itself.
        let room = (body.len() / 256 + 1).min(config.limits.batch_jobs_max);
        Self {
            config,
            bearer: &who.bearer,
            body,
            submission: Submission {
                by: Arc::clone(&who.bearer.id),
                from: Some(who.from),
                classes: Vec::new(),
                jobs: Vec::with_capacity(room),
                key: None,
                bytes: 0,
            },
            queues: Vec::new(),
            known: HashMap::new(),
            last: 0,
            plain: None,
            errors: Vec::new(),
            code: None,
            too_many: false,
        }
    }

    fn array(&mut self, text: &str) -> Result<(), Box<Refusal>> {
        let mut reader = serde_json::Deserializer::from_str(text);
        let read = (Items { intake: &mut *self }).deserialize(&mut reader);
        match read.and_then(|()| reader.end()) {
            Ok(()) => Ok(()),
            // What was found in the jobs before is told by `finish`.
            Err(_stopped) if self.is_full() => Ok(()),
            Err(error) => Err(broken(text, &error, None)),
        }
    }

    fn lines(&mut self, text: &str) -> Result<(), Box<Refusal>> {
        let mut item = 0;
        for (number, line) in text.split('\n').enumerate() {
            if line.trim_ascii().is_empty() {
                continue;
            }
            let number = number as u64 + 1;
            let mut job = serde_json::from_str(line)
                .map_err(|error| broken(line, &error, Some((item, number))))?;
            self.add(Place::Line { item, line: number }, &mut job);
            if self.is_full() {
                break;
            }
            item += 1;
        }
        Ok(())
    }

    /// No use in reading on.
    fn is_full(&self) -> bool {
        self.too_many || self.errors.len() >= ERRORS_MAX
    }

    fn add(&mut self, place: Place, job: &mut JobRequest<'_>) {
        if self.submission.jobs.len() >= self.config.limits.batch_jobs_max {
            self.too_many = true;
            return;
        }
        match self.draft(job) {
            Ok(draft) => {
                self.submission.bytes += draft.body.len() + DRAFT_BYTES;
                self.submission.jobs.push(draft);
            }
            Err(wrong) => self.refuse(place, &wrong),
        }
    }

    fn refuse(&mut self, place: Place, wrong: &Wrong) {
        // The gravest code speaks for the request: what is not allowed, then what is wrong.
        if self.code.is_none() || wrong.code.status() == 403 {
            self.code = Some(wrong.code);
        }
        let (pointer, line) = match place {
            Place::Alone => (wrong.pointer.to_string(), None),
            Place::Item(item) => (format!("/{item}{}", wrong.pointer), None),
            Place::Line { item, line } => (format!("/{item}{}", wrong.pointer), Some(line)),
        };
        self.errors.push(FieldError {
            pointer,
            detail: wrong.detail.clone(),
            line,
        });
    }

    fn finish(self) -> Result<Submission, Box<Refusal>> {
        if let Some(code) = self.code {
            let first = &self.errors[0];
            let more = self.errors.len() - 1;
            let mut detail = first.to_string();
            if more > 0 {
                detail.push_str(&format!(" (and {more} more)"));
            }
            let mut refusal = Refusal::new(code, detail);
            refusal.errors = self.errors;
            return Err(refusal);
        }
        if self.too_many {
            return Err(Refusal::new(
                Code::BatchTooLarge,
                format!(
                    "a request may have {} jobs; send them in several",
                    self.config.limits.batch_jobs_max
                ),
            ));
        }
        if self.submission.jobs.is_empty() {
            return Err(Refusal::new(
                Code::EmptyBatch,
                "there is no job in the batch",
            ));
        }
        Ok(self.submission)
    }

    fn draft(&mut self, job: &mut JobRequest<'_>) -> Checked<Draft> {
        if let Some(field) = job.not_yet.first() {
            return Err(Wrong {
                code: Code::NotSupportedYet,
                pointer: format!("/{field}").into(),
                detail: format!("`{field}` is not supported yet; leave it out"),
            });
        }
        let kind = self.kind(job)?;
        let class = self.class(job, kind)?;
        let times = times(job)?;
        let work = self.work(job, kind)?;
        Ok(Draft {
            class,
            priority: priority(job.priority)?,
            name: job
                .name
                .take()
                .map(|name| text("/name", &name).map(|()| name.into()))
                .transpose()?,
            labels: labels(&job.labels)?,
            due: times.due,
            expires: times.expires,
            deadline: times.deadline,
            sync: match job.durability.as_deref() {
                None => self.config.durability == Durability::Fsync,
                Some("fsync") => true,
                Some("os") => false,
                Some(_) => return Err(wrong("/durability", "must be fsync or os")),
            },
            retry_of: None,
            body: work.encode(),
        })
    }

    /// The type of job, and whether this server takes it.
    fn kind(&self, job: &JobRequest<'_>) -> Checked<Kind> {
        let kind = match (&job.command, &job.handler) {
            (Some(_), None) => Kind::Command,
            (None, Some(_)) => Kind::Handler,
            (None, None) => return Err(wrong("", "a job needs `command` or `handler`")),
            (Some(_), Some(_)) => {
                return Err(wrong(
                    "/handler",
                    "a job has `command` or `handler`, not both",
                ));
            }
        };
        allowed(self.config, self.bearer, job.handler.as_deref()).map_err(|detail| Wrong {
            code: Code::JobTypeNotAllowed,
            pointer: pointer_of(kind).into(),
            detail,
        })?;
        Ok(kind)
    }

    /// The number of the job's class within the submission.
    fn class(&mut self, job: &JobRequest<'_>, kind: Kind) -> Checked<u32> {
        let queue = job.queue.as_deref().unwrap_or("default");
        let is_plain = job.retry.is_none()
            && job.max_losses.is_none()
            && job.timeout_ms.is_none()
            && job.grace_ms.is_none()
            && job.stall_ms.is_none()
            && job.on_partition.is_none();
        if let Some((plain_kind, class)) = self.plain
            && is_plain
            && plain_kind == kind
            && *self.submission.classes[class as usize].queue == *queue
        {
            return Ok(class);
        }
        let class = self.new_class(job, kind, queue)?;
        if is_plain {
            self.plain = Some((kind, class));
        }
        Ok(class)
    }

    fn new_class(&mut self, job: &JobRequest<'_>, kind: Kind, queue: &str) -> Checked<u32> {
        let spec = ClassSpec {
            queue: self.queue(queue)?,
            kind,
            retry: job
                .retry
                .as_ref()
                .map_or_else(|| Ok(Retry::default()), retry)?,
            max_losses: match job.max_losses {
                None => MAX_LOSSES,
                Some(n) => u16::try_from(n)
                    .map_err(|_above| wrong("/max_losses", "must be from 0 to 65535"))?,
            },
            timeout: millis("/timeout_ms", job.timeout_ms, 1, DURATION_MS_MAX)?,
            grace: millis("/grace_ms", job.grace_ms, 0, GRACE_MS_MAX)?,
            stall: millis("/stall_ms", job.stall_ms, 1, DURATION_MS_MAX)?,
            stop_on_partition: on_partition(job)? == OnPartition::Stop,
        };
        Ok(self.intern(spec))
    }

    fn intern(&mut self, spec: ClassSpec) -> u32 {
        const LOOKED_THROUGH_MAX: usize = 8;
        let classes = &mut self.submission.classes;
        if classes.get(self.last as usize) == Some(&spec) {
            return self.last;
        }
        let found = if classes.len() <= LOOKED_THROUGH_MAX {
            (0..)
                .zip(&*classes)
                .find(|(_, other)| **other == spec)
                .map(|(n, _)| n)
        } else {
            if self.known.is_empty() {
                self.known = (0..)
                    .zip(&*classes)
                    .map(|(n, spec)| (spec.clone(), n))
                    .collect();
            }
            self.known.get(&spec).copied()
        };
        self.last = found.unwrap_or_else(|| {
            let number = u32::try_from(classes.len()).expect("a batch has at most 2^32 jobs");
            if !self.known.is_empty() {
                self.known.insert(spec.clone(), number);
            }
            classes.push(spec);
            number
        });
        self.last
    }

    fn queue(&mut self, name: &str) -> Checked<Arc<str>> {
        let last = self.submission.classes.get(self.last as usize);
        if let Some(class) = last.filter(|class| &*class.queue == name) {
            return Ok(Arc::clone(&class.queue));
        }
        let place = self.queues.binary_search_by(|queue| (**queue).cmp(name));
        let place = match place {
            Ok(place) => return Ok(Arc::clone(&self.queues[place])),
            Err(place) => place,
        };
        if !is_queue(name) {
            return Err(wrong(
                "/queue",
                format!("must be 1 to {NAME_BYTES_MAX} letters, digits, `-`, `_`, `.` or `:`"),
            ));
        }
        if !self.bearer.sees(name) {
            return Err(Wrong {
                code: Code::QueueNotAllowed,
                pointer: "/queue".into(),
                detail: not_for_queue(self.bearer, name),
            });
        }
        let queue: Arc<str> = name.into();
        self.queues.insert(place, Arc::clone(&queue));
        Ok(queue)
    }

    /// What the worker will be told.
    fn work(&self, job: &JobRequest<'_>, kind: Kind) -> Checked<Work> {
        let work = Work {
            timeout_ms: job.timeout_ms,
            grace_ms: job.grace_ms,
            stall_ms: job.stall_ms,
            on_partition: on_partition(job)?,
            logs: self.logs(job.logs.as_ref())?,
            task: match kind {
                Kind::Command => Task::Command(command(job)?),
                Kind::Handler => Task::Handler(self.handler(job)?),
            },
        };
        // The protocol's own opinion: what a worker would refuse must not become durable.
        work.check().map_err(|error| {
            let pointer = match kind {
                Kind::Command => "/command",
                Kind::Handler => "/payload",
            };
            wrong(pointer, error.to_string())
        })?;
        Ok(work)
    }

    fn handler(&self, job: &JobRequest<'_>) -> Checked<Handler> {
        let name = job.handler.as_deref().unwrap_or_default();
        text("/handler", name)?;
        let of_commands = [
            ("/env", !job.env.is_empty()),
            ("/cwd", job.cwd.is_some()),
            ("/stdin", job.stdin.is_some()),
            ("/stdin_b64", job.stdin_b64.is_some()),
        ];
        if let Some((pointer, _)) = of_commands.iter().find(|(_, given)| *given) {
            return Err(wrong(
                *pointer,
                "is for commands; a handler gets its `payload`",
            ));
        }
        let payload = match &job.payload {
            None => Bytes::from_static(b"null"),
            Some(payload) if payload.get().len() > BODY_BYTES_MAX => {
                return Err(too_large("/payload", payload.get().len()));
            }
            // A part of the request's own bytes.
            Some(Cow::Borrowed(payload)) => self.body.slice_ref(payload.get().as_bytes()),
            Some(Cow::Owned(payload)) => Bytes::copy_from_slice(payload.get().as_bytes()),
        };
        Ok(Handler {
            name: name.to_owned(),
            payload,
        })
    }

    fn logs(&self, logs: Option<&LogsRequest<'_>>) -> Checked<Logs> {
        let most = self.config.limits.output_bytes_max;
        let default = LogsRequest::default();
        let logs = logs.unwrap_or(&default);
        Ok(Logs {
            mode: match logs.mode.as_deref() {
                None | Some("keep") => LogsMode::Keep,
                Some("stream") => LogsMode::Stream,
                Some("none") => LogsMode::None,
                Some(_) => return Err(wrong("/logs/mode", "must be keep, stream or none")),
            },
            limit_bytes: match logs.limit_bytes {
                None => most,
                Some(n) if (LIMIT_BYTES_MIN..=most).contains(&n) => n,
                Some(_) => {
                    let detail = format!(
                        "must be from {LIMIT_BYTES_MIN} to {most} (limits.output_bytes_max)"
                    );
                    return Err(wrong("/logs/limit_bytes", detail));
                }
            },
            overflow: match logs.overflow.as_deref() {
                None | Some("drop") => Overflow::Drop,
                Some("block") => Overflow::Block,
                Some(_) => return Err(wrong("/logs/overflow", "must be drop or block")),
            },
        })
    }
}

/// Whether this server takes that type of job from that caller; a job without a handler is a command.
pub(super) fn allowed(
    config: &Config,
    bearer: &Bearer,
    handler: Option<&str>,
) -> Result<(), String> {
    for (who, allow) in [
        ("this server", &config.allow),
        ("with this access token the server", bearer.allow()),
    ] {
        match handler {
            None if !allow.commands => return Err(format!("{who} takes no commands")),
            Some(_) if allow.no_handlers() => return Err(format!("{who} takes no handlers")),
            Some(name) if !allow.handler(name) => {
                return Err(format!("{who} does not take this handler"));
            }
            None | Some(_) => {}
        }
    }
    Ok(())
}

/// Where a job says what type it is.
pub(super) const fn pointer_of(kind: Kind) -> &'static str {
    match kind {
        Kind::Command => "/command",
        Kind::Handler => "/handler",
    }
}

/// Whether a text is a queue's name.
pub(super) fn is_queue(name: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte);
    (1..=NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(fits)
}

/// What is said of a queue the caller's token is not good for.
pub(super) fn not_for_queue(bearer: &Bearer, queue: &str) -> String {
    let ours = bearer.scope().unwrap_or_default().join(", ");
    format!("the access token is not good for the queue {queue}; it is for {ours}")
}

/// Reads the items of an array into drafts, one at a time.
struct Items<'i, 'c> {
    intake: &'i mut Intake<'c>,
}

impl<'de> DeserializeSeed<'de> for Items<'_, '_> {
    type Value = ();

    fn deserialize<D: de::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Items<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of jobs")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        for item in 0.. {
            let mut job = JobRequest::default();
            let next = seq.next_element_seed(Fill(&mut job)).map_err(|error| {
                let text = error.to_string();
                let between = if text.starts_with('/') { "" } else { ": " };
                de::Error::custom(format_args!("/{item}{between}{text}"))
            });
            match next? {
                Some(()) => self.intake.add(Place::Item(item), &mut job),
                None => break,
            }
            if self.intake.is_full() {
                return Err(de::Error::custom("enough"));
            }
        }
        Ok(())
    }
}

/// The refusal for bytes that are no text.
fn not_text(body: &[u8], at: usize) -> Box<Refusal> {
    let before = &body[..at];
    let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
    let column = at
        - before
            .iter()
            .rposition(|byte| *byte == b'\n')
            .map_or(0, |n| n + 1)
        + 1;
    let detail = format!("not UTF-8 at line {line} column {column}");
    let mut refusal = Refusal::new(Code::MalformedJson, &*detail);
    refusal.errors.push(FieldError {
        pointer: String::new(),
        detail,
        line: Some(line as u64),
    });
    refusal
}

/// The refusal for a text that is no JSON, or JSON of another shape. `line` is the item and the number of a line that
/// was read alone.
fn broken(text: &str, error: &serde_json::Error, line: Option<(usize, u64)>) -> Box<Refusal> {
    // A wrong shape is only worth telling if the text is JSON at all.
    let (code, shape) = match serde_json::from_str::<de::IgnoredAny>(text) {
        Ok(_) => (Code::InvalidJob, ShapeError::from(error)),
        Err(syntax) => (Code::MalformedJson, ShapeError::from(&syntax)),
    };
    let field = FieldError {
        pointer: match line {
            Some((item, _)) => format!("/{item}{}", shape.pointer),
            None => shape.pointer,
        },
        detail: match (code, line) {
            (Code::MalformedJson, None) => {
                format!(
                    "{} at line {} column {}",
                    shape.detail, shape.line, shape.column
                )
            }
            (Code::MalformedJson, Some(_)) => {
                format!("{} at column {}", shape.detail, shape.column)
            }
            _ => shape.detail,
        },
        line: match (code, line) {
            (_, Some((_, number))) => Some(number),
            (Code::MalformedJson, None) => Some(shape.line as u64),
            _ => None,
        },
    };
    let mut refusal = Refusal::new(
        code,
        match (code, line) {
            (Code::MalformedJson, None) => field.detail.clone(),
            _ => field.to_string(),
        },
    );
    refusal.errors.push(field);
    refusal
}

fn too_large(pointer: &'static str, bytes: usize) -> Wrong {
    wrong(
        pointer,
        format!("has {bytes} bytes; a job's body may have {BODY_BYTES_MAX}"),
    )
}

/// A name people gave: something to see, on one line, not too long.
fn text(pointer: &'static str, text: &str) -> Checked<()> {
    if text.is_empty() || text.len() > NAME_BYTES_MAX || text.chars().any(char::is_control) {
        return Err(wrong(
            pointer,
            format!("must be 1 to {NAME_BYTES_MAX} bytes without control characters"),
        ));
    }
    Ok(())
}

fn priority(asked: Option<i64>) -> Checked<Priority> {
    i8::try_from(asked.unwrap_or(0))
        .map(Priority::new)
        .map_err(|_outside| wrong("/priority", "must be from -128 to 127, or low, mid, high"))
}

fn on_partition(job: &JobRequest<'_>) -> Checked<OnPartition> {
    match job.on_partition.as_deref() {
        None | Some("keep") => Ok(OnPartition::Keep),
        Some("stop") => Ok(OnPartition::Stop),
        Some(_) => Err(wrong("/on_partition", "must be keep or stop")),
    }
}

fn millis(pointer: &'static str, asked: Option<u64>, min: u64, max: u64) -> Checked<Option<Span>> {
    match asked {
        None => Ok(None),
        Some(ms) if (min..=max).contains(&ms) => Ok(Some(Span::from_millis(ms))),
        Some(_) => Err(wrong(
            pointer,
            format!("must be from {min} to {max} milliseconds"),
        )),
    }
}

struct Times {
    due: Option<Moment>,
    expires: Option<Moment>,
    deadline: Option<Moment>,
}

fn times(job: &JobRequest<'_>) -> Checked<Times> {
    let due = moment(
        ("/run_at", job.run_at),
        ("/delay_ms", job.delay_ms),
        "`run_at` and `delay_ms` exclude each other",
        0,
    )?
    .filter(|due| *due != Moment::In(Span::ZERO));
    let expires = moment(
        ("/expires_at", job.expires_at),
        ("/expires_ms", job.expires_ms),
        "`expires_at` and `expires_ms` exclude each other",
        1,
    )?;
    let deadline = moment(
        ("/deadline_at", job.deadline_at),
        ("/deadline_ms", job.deadline_ms),
        "`deadline_at` and `deadline_ms` exclude each other",
        1,
    )?;
    for (end, pointer) in [(expires, "/expires"), (deadline, "/deadline")] {
        let never = match (due, end) {
            (Some(Moment::In(due)), Some(Moment::In(end))) => end <= due,
            (Some(Moment::At(due)), Some(Moment::At(end))) => end <= due,
            _ => false,
        };
        if never {
            let suffix = if matches!(end, Some(Moment::In(_))) {
                "_ms"
            } else {
                "_at"
            };
            return Err(wrong(
                format!("{pointer}{suffix}"),
                "is over before the job may run",
            ));
        }
    }
    Ok(Times {
        due,
        expires,
        deadline,
    })
}

fn moment(
    (_, at): (&'static str, Option<Timestamp>),
    (pointer, after): (&'static str, Option<u64>),
    both: &'static str,
    min: u64,
) -> Checked<Option<Moment>> {
    match (at, after) {
        (Some(_), Some(_)) => Err(wrong(pointer, both)),
        (Some(at), None) => Ok(Some(Moment::At(WallTime::from_millis(at.millis())))),
        (None, after) => Ok(millis(pointer, after, min, DURATION_MS_MAX)?.map(Moment::In)),
    }
}

fn retry(asked: &RetryRequest<'_>) -> Checked<Retry> {
    let default = Retry::default();
    let max_attempts = match asked.max_attempts {
        None => default.max_attempts,
        Some(n) => u16::try_from(n)
            .ok()
            .filter(|n| *n >= 1)
            .ok_or_else(|| wrong("/retry/max_attempts", "must be from 1 to 65535"))?,
    };
    let backoff = millis("/retry/backoff_ms", asked.backoff_ms, 0, DURATION_MS_MAX)?
        .unwrap_or(default.backoff);
    let most = millis(
        "/retry/max_backoff_ms",
        asked.max_backoff_ms,
        0,
        DURATION_MS_MAX,
    )?;
    if asked.backoff_ms.is_some() && most.is_some_and(|most| most < backoff) {
        return Err(wrong("/retry/max_backoff_ms", "is below backoff_ms"));
    }
    Ok(Retry {
        max_attempts,
        backoff,
        factor_milli: asked.factor.map_or(Ok(default.factor_milli), factor)?,
        // A first delay above the default bound raises the bound: it was asked for.
        max_backoff: most.unwrap_or(default.max_backoff.max(backoff)),
        on: rules("on", &asked.on)?,
        never: rules("never", &asked.never)?,
        later: later(&asked.later)?,
    })
}

fn factor(asked: f64) -> Checked<u32> {
    let milli = asked * 1_000.0;
    let exact = (milli - milli.round()).abs() < 1e-6;
    if !(1.0..=FACTOR_MAX).contains(&asked) || !exact {
        return Err(wrong(
            "/retry/factor",
            format!("must be from 1 to {FACTOR_MAX}, with at most three decimals"),
        ));
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "between 1,000 and 100,000"
    )]
    Ok(milli.round() as u32)
}

fn rules(name: &'static str, asked: &[RuleRequest<'_>]) -> Checked<Box<[Rule]>> {
    if asked.len() > RULES_MAX {
        return Err(wrong(
            format!("/retry/{name}"),
            format!("may have {RULES_MAX} entries"),
        ));
    }
    let rule = |(index, rule)| {
        self::rule(rule).ok_or_else(|| {
            wrong(
                format!("/retry/{name}/{index}"),
                "must be an exit code from 1 to 255, a range of them such as \"64-78\", \
                 or signal, timeout, oom, spawn, error",
            )
        })
    };
    asked.iter().enumerate().map(rule).collect()
}

fn rule(asked: &RuleRequest<'_>) -> Option<Rule> {
    let code = |n: u64| u8::try_from(n).ok().filter(|n| *n >= 1);
    match asked {
        RuleRequest::Code(n) => code(*n).map(|n| Rule::Codes(n, n)),
        RuleRequest::Word(word) => match &**word {
            "signal" => Some(Rule::Signal),
            "timeout" => Some(Rule::Timeout),
            "oom" => Some(Rule::OutOfMemory),
            "spawn" => Some(Rule::Spawn),
            "error" => Some(Rule::Error),
            range => {
                let (from, to) = range.split_once('-')?;
                let (from, to) = (code(from.parse().ok()?)?, code(to.parse().ok()?)?);
                (from <= to).then_some(Rule::Codes(from, to))
            }
        },
    }
}

fn later(asked: &[u64]) -> Checked<Box<[u8]>> {
    if asked.len() > RULES_MAX {
        return Err(wrong(
            "/retry/later",
            format!("may have {RULES_MAX} entries"),
        ));
    }
    let code = |(index, n): (usize, &u64)| {
        u8::try_from(*n).ok().filter(|n| *n >= 1).ok_or_else(|| {
            wrong(
                format!("/retry/later/{index}"),
                "must be an exit code from 1 to 255",
            )
        })
    };
    asked.iter().enumerate().map(code).collect()
}

/// Labels as they are stored: a JSON object.
fn labels(asked: &[(Cow<'_, str>, Cow<'_, str>)]) -> Checked<Option<Box<str>>> {
    if asked.is_empty() {
        return Ok(None);
    }
    if asked.len() > LABELS_MAX {
        return Err(wrong("/labels", format!("may have {LABELS_MAX} entries")));
    }
    distinct("/labels", asked)?;
    let mut json = String::from("{");
    for (name, value) in asked {
        let pointer = || format!("/labels/{}", shown(name));
        let fits = |text: &str| text.len() <= NAME_BYTES_MAX && !text.chars().any(char::is_control);
        if name.is_empty() || !fits(name) || !fits(value) {
            return Err(wrong(
                pointer(),
                format!(
                    "names and values have up to {NAME_BYTES_MAX} bytes without control characters"
                ),
            ));
        }
        if json.len() > 1 {
            json.push(',');
        }
        for (text, after) in [(name, ":"), (value, "")] {
            json.push_str(&serde_json::to_string(text).expect("a string is JSON"));
            json.push_str(after);
        }
    }
    json.push('}');
    Ok(Some(json.into()))
}

/// Refuses an object with a name given twice.
fn distinct(pointer: &'static str, pairs: &[(Cow<'_, str>, Cow<'_, str>)]) -> Checked<()> {
    let mut seen = HashSet::with_capacity(pairs.len());
    match pairs.iter().find(|(name, _)| !seen.insert(&**name)) {
        Some((name, _)) => Err(wrong(format!("{pointer}/{}", shown(name)), "given twice")),
        None => Ok(()),
    }
}

/// A name as part of a pointer: escaped, and short enough to be shown.
fn shown(name: &str) -> String {
    let short: String = name.chars().filter(|c| !c.is_control()).take(64).collect();
    short.replace('~', "~0").replace('/', "~1")
}

fn command(job: &JobRequest<'_>) -> Checked<Command> {
    if job.payload.is_some() {
        return Err(wrong(
            "/payload",
            "is for handlers; a command gets `stdin`, arguments and `env`",
        ));
    }
    Ok(Command {
        argv: argv(job)?,
        env: env(&job.env)?,
        cwd: match job.cwd.as_deref() {
            None => None,
            Some(cwd) if cwd.is_empty() || cwd.len() > CWD_BYTES_MAX || cwd.contains('\0') => {
                return Err(wrong(
                    "/cwd",
                    format!("must be a path of 1 to {CWD_BYTES_MAX} bytes without NUL"),
                ));
            }
            Some(cwd) => Some(cwd.to_owned()),
        },
        stdin: stdin(job)?,
    })
}

fn argv(job: &JobRequest<'_>) -> Checked<Vec<String>> {
    let argv: Vec<String> = match &job.command {
        Some(CommandRequest::Shell(line)) => {
            if line.trim().is_empty() {
                return Err(wrong("/command", "names no program"));
            }
            ["/bin/sh", "-c", line].map(str::to_owned).into()
        }
        Some(CommandRequest::Argv(argv)) => {
            if argv.len() > ARGS_MAX {
                return Err(wrong("/command", format!("may have {ARGS_MAX} arguments")));
            }
            argv.iter().map(|arg| arg.clone().into_owned()).collect()
        }
        None => Vec::new(),
    };
    if argv.first().is_none_or(String::is_empty) {
        return Err(wrong("/command", "names no program"));
    }
    if let Some(index) = argv.iter().position(|arg| arg.contains('\0')) {
        let pointer = match job.command {
            Some(CommandRequest::Argv(_)) => format!("/command/{index}"),
            _ => "/command".to_owned(),
        };
        return Err(wrong(pointer, "contains a NUL, which no argument can"));
    }
    Ok(argv)
}

fn env(asked: &[(Cow<'_, str>, Cow<'_, str>)]) -> Checked<Vec<(String, String)>> {
    if asked.is_empty() {
        return Ok(Vec::new());
    }
    if asked.len() > ARGS_MAX {
        return Err(wrong("/env", format!("may have {ARGS_MAX} entries")));
    }
    distinct("/env", asked)?;
    for (name, value) in asked {
        let pointer = || format!("/env/{}", shown(name));
        if name.is_empty() || name.contains(['=', '\0']) {
            return Err(wrong(
                pointer(),
                "a name may not be empty nor contain `=` or NUL",
            ));
        }
        if value.contains('\0') {
            return Err(wrong(pointer(), "contains a NUL, which no variable can"));
        }
        if matches!(
            &**name,
            "HOSTLER_JOB_ID" | "HOSTLER_ATTEMPT" | "HOSTLER_FENCE"
        ) {
            return Err(wrong(pointer(), "is set by the worker"));
        }
    }
    Ok(asked
        .iter()
        .map(|(name, value)| (name.clone().into_owned(), value.clone().into_owned()))
        .collect())
}

fn stdin(job: &JobRequest<'_>) -> Checked<Option<Bytes>> {
    match (&job.stdin, &job.stdin_b64) {
        (Some(_), Some(_)) => Err(wrong(
            "/stdin_b64",
            "`stdin` and `stdin_b64` exclude each other",
        )),
        (Some(text), None) if text.len() > BODY_BYTES_MAX => Err(too_large("/stdin", text.len())),
        (Some(text), None) => Ok(Some(Bytes::copy_from_slice(text.as_bytes()))),
        (None, Some(text)) => match hostler_wire::api::base64::decode(text) {
            Some(bytes) => Ok(Some(bytes.into())),
            None => Err(wrong("/stdin_b64", "is not base 64 with its padding")),
        },
        (None, None) => Ok(None),
    }
}
