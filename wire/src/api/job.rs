//! A job as it is asked for, and as it is shown.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use serde::de::{self, DeserializeSeed, MapAccess, SeqAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

use crate::api::fields::{Token, at, fields};
use crate::api::text::{self, Text, Timestamp};
use crate::{JobId, JobState};

/// What `POST /jobs` takes: one of `command` and `handler` is needed, all else has a default. `null` means "not given",
/// but for `payload`, where it is a value.
///
/// Strings are borrowed from the request where they have no escapes.
#[derive(Clone, Debug, Default, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct JobRequest<'a> {
    /// A process to start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command: Option<CommandRequest<'a>>,
    /// A function of a worker to call.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub handler: Option<Cow<'a, str>>,
    /// What it is called with; any JSON.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<serde_json::Value>))]
    pub payload: Option<Cow<'a, RawValue>>,
    /// What people call the job.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<Cow<'a, str>>,
    /// `default` if none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue: Option<Cow<'a, str>>,
    /// −128..=127, higher first. In JSON also `low`, `mid`, `high`: −50, 0, 50.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<i64>,
    /// Longest run of one attempt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// Longest silence of one attempt: no output, progress or heartbeat.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stall_ms: Option<u64>,
    /// What happens after a failure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry: Option<RetryRequest<'a>>,
    /// Losses of a worker it may survive; 0 = at most once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_losses: Option<u64>,
    /// `keep` or `stop`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_partition: Option<Cow<'a, str>>,
    /// Not before this time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run_at: Option<Timestamp>,
    /// Not before so long after acceptance.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delay_ms: Option<u64>,
    /// Started by then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
    /// Started within so long.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_ms: Option<u64>,
    /// Over by then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deadline_at: Option<Timestamp>,
    /// Over within so long.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<u64>,
    /// `fsync` or `os`; the server's setting if none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub durability: Option<Cow<'a, str>>,
    /// Between TERM and KILL.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grace_ms: Option<u64>,
    /// Added to the worker's cleaned environment, in this order.
    #[serde(skip_serializing_if = "Vec::is_empty", serialize_with = "pairs")]
    #[cfg_attr(feature = "openapi", schema(value_type = BTreeMap<String, String>))]
    pub env: Vec<(Cow<'a, str>, Cow<'a, str>)>,
    /// Working directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cwd: Option<Cow<'a, str>>,
    /// Standard input, as text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stdin: Option<Cow<'a, str>>,
    /// Standard input, as bytes in base 64.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stdin_b64: Option<Cow<'a, str>>,
    /// What people sort jobs by.
    #[serde(skip_serializing_if = "Vec::is_empty", serialize_with = "pairs")]
    #[cfg_attr(feature = "openapi", schema(value_type = BTreeMap<String, String>))]
    pub labels: Vec<(Cow<'a, str>, Cow<'a, str>)>,
    /// What becomes of its output.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logs: Option<LogsRequest<'a>>,
    /// Fields of this interface that were given and that no server understands yet. Intake refuses them by name.
    #[serde(skip)]
    pub not_yet: Vec<&'static str>,
}

/// A process to start: a program with its arguments, or a line for `sh -c`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(untagged)]
pub enum CommandRequest<'a> {
    /// Program and arguments.
    Argv(Vec<Cow<'a, str>>),
    /// A line for the shell.
    Shell(Cow<'a, str>),
}

/// What happens after a failure.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RetryRequest<'a> {
    /// Tries allowed, the first included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_attempts: Option<u64>,
    /// Delay after the first failure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backoff_ms: Option<u64>,
    /// It grows by this factor a failure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub factor: Option<f64>,
    /// And no further than this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_backoff_ms: Option<u64>,
    /// Only these failures are retried, if any is named.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub on: Vec<RuleRequest<'a>>,
    /// These are not.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub never: Vec<RuleRequest<'a>>,
    /// Exit codes that mean "not now".
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub later: Vec<u64>,
}

/// A kind of failure.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(untagged)]
pub enum RuleRequest<'a> {
    /// An exit code.
    Code(u64),
    /// A range of them (`"64-78"`), or `signal`, `timeout`, `oom`, `spawn`, `error`.
    Word(Cow<'a, str>),
}

/// What becomes of output. In JSON an object, or just the mode.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct LogsRequest<'a> {
    /// `keep`, `stream` or `none`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<Cow<'a, str>>,
    /// Most bytes kept of one attempt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit_bytes: Option<u64>,
    /// Above that: `drop` the middle, or `block` the job.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub overflow: Option<Cow<'a, str>>,
}

fields!(JobField {
    Command = "command",
    Handler = "handler",
    Payload = "payload",
    Name = "name",
    Queue = "queue",
    Priority = "priority",
    TimeoutMs = "timeout_ms",
    Retry = "retry",
    MaxLosses = "max_losses",
    OnPartition = "on_partition",
    RunAt = "run_at",
    DelayMs = "delay_ms",
    ExpiresAt = "expires_at",
    ExpiresMs = "expires_ms",
    DeadlineAt = "deadline_at",
    DeadlineMs = "deadline_ms",
    Durability = "durability",
    GraceMs = "grace_ms",
    Env = "env",
    Cwd = "cwd",
    Stdin = "stdin",
    StdinB64 = "stdin_b64",
    Labels = "labels",
    Logs = "logs",
    After = "after",
    Array = "array",
    UniqueKey = "unique_key",
    FairKey = "fair_key",
    Requires = "requires",
    StallMs = "stall_ms",
});

fields!(RetryField {
    MaxAttempts = "max_attempts",
    BackoffMs = "backoff_ms",
    Factor = "factor",
    MaxBackoffMs = "max_backoff_ms",
    On = "on",
    Never = "never",
    Later = "later",
});

fields!(LogsField {
    Mode = "mode",
    LimitBytes = "limit_bytes",
    Overflow = "overflow",
});

impl JobRequest<'_> {
    /// Every field there is, the ones no server understands yet included.
    pub const FIELDS: &'static [&'static str] = JobField::NAMES;
}

impl<'de> Deserialize<'de> for JobRequest<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut job = Self::default();
        Fill(&mut job).deserialize(deserializer)?;
        Ok(job)
    }
}

/// Reads a job into a request without fields. In a long array this spares the moves of a value of several hundred
/// bytes, which took as long as reading a small job's text.
#[derive(Debug)]
pub struct Fill<'r, 'a>(pub &'r mut JobRequest<'a>);

impl<'de> DeserializeSeed<'de> for Fill<'_, 'de> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Fill<'_, 'de> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a job: an object with `command` or `handler`")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut seen = 0;
        while let Some(field) = map.next_key::<JobField>()? {
            field.once(&mut seen)?;
            at(field.name(), self.0.set(field, &mut map))?;
        }
        Ok(())
    }
}

impl<'de> JobRequest<'de> {
    fn set<A: MapAccess<'de>>(&mut self, field: JobField, map: &mut A) -> Result<(), A::Error> {
        match field {
            JobField::Command => self.command = map.next_value()?,
            JobField::Handler => self.handler = words(map)?,
            JobField::Payload => {
                self.payload = Some(Cow::Borrowed(map.next_value::<&'de RawValue>()?));
            }
            JobField::Name => self.name = words(map)?,
            JobField::Queue => self.queue = words(map)?,
            JobField::Priority => {
                self.priority = map.next_value::<Option<Priority>>()?.map(|p| p.0);
            }
            JobField::TimeoutMs => self.timeout_ms = whole(map)?,
            JobField::StallMs => self.stall_ms = whole(map)?,
            JobField::Retry => self.retry = map.next_value()?,
            JobField::MaxLosses => self.max_losses = whole(map)?,
            JobField::OnPartition => self.on_partition = words(map)?,
            JobField::RunAt => self.run_at = map.next_value()?,
            JobField::DelayMs => self.delay_ms = whole(map)?,
            JobField::ExpiresAt => self.expires_at = map.next_value()?,
            JobField::ExpiresMs => self.expires_ms = whole(map)?,
            JobField::DeadlineAt => self.deadline_at = map.next_value()?,
            JobField::DeadlineMs => self.deadline_ms = whole(map)?,
            JobField::Durability => self.durability = words(map)?,
            JobField::GraceMs => self.grace_ms = whole(map)?,
            JobField::Env => self.env = map.next_value_seed(Pairs)?,
            JobField::Cwd => self.cwd = words(map)?,
            JobField::Stdin => self.stdin = words(map)?,
            JobField::StdinB64 => self.stdin_b64 = words(map)?,
            JobField::Labels => self.labels = map.next_value_seed(Pairs)?,
            JobField::Logs => self.logs = map.next_value()?,
            JobField::After
            | JobField::Array
            | JobField::UniqueKey
            | JobField::FairKey
            | JobField::Requires => {
                map.next_value::<de::IgnoredAny>()?;
                self.not_yet.push(field.name());
            }
        }
        Ok(())
    }
}

impl<'de> Deserialize<'de> for CommandRequest<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visit;
        impl<'de> Visitor<'de> for Visit {
            type Value = CommandRequest<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array of strings, or a string for `sh -c`")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(CommandRequest::Shell(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(CommandRequest::Shell(Cow::Owned(text.to_owned())))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Self::Value, A::Error> {
                items::<Text<'de>, A>(seq)
                    .map(|argv| CommandRequest::Argv(argv.into_iter().map(|text| text.0).collect()))
            }
        }
        deserializer.deserialize_any(Visit)
    }
}

impl<'de> Deserialize<'de> for RetryRequest<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visit;
        impl<'de> Visitor<'de> for Visit {
            type Value = RetryRequest<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object such as {\"max_attempts\": 4}")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut retry = RetryRequest::default();
                let mut seen = 0;
                while let Some(field) = map.next_key::<RetryField>()? {
                    field.once(&mut seen)?;
                    at(field.name(), retry.set(field, &mut map))?;
                }
                Ok(retry)
            }
        }
        deserializer.deserialize_map(Visit)
    }
}

impl<'de> RetryRequest<'de> {
    fn set<A: MapAccess<'de>>(&mut self, field: RetryField, map: &mut A) -> Result<(), A::Error> {
        match field {
            RetryField::MaxAttempts => self.max_attempts = whole(map)?,
            RetryField::BackoffMs => self.backoff_ms = whole(map)?,
            RetryField::Factor => self.factor = map.next_value()?,
            RetryField::MaxBackoffMs => self.max_backoff_ms = whole(map)?,
            RetryField::On => self.on = list(map)?,
            RetryField::Never => self.never = list(map)?,
            RetryField::Later => {
                self.later = list::<Whole, A>(map)?.into_iter().map(|n| n.0).collect();
            }
        }
        Ok(())
    }
}

impl<'de> Deserialize<'de> for RuleRequest<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visit;
        impl<'de> Visitor<'de> for Visit {
            type Value = RuleRequest<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(
                    "an exit code, a range such as \"64-78\", or signal, timeout, oom, spawn, error",
                )
            }

            fn visit_u64<E>(self, code: u64) -> Result<Self::Value, E> {
                Ok(RuleRequest::Code(code))
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(RuleRequest::Word(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(RuleRequest::Word(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_any(Visit)
    }
}

/// The short form has no field of its own to blame: a mode that is none is wrong as `/logs`.
fn known_mode<E: de::Error>(mode: &str) -> Result<&str, E> {
    match mode {
        "keep" | "stream" | "none" => Ok(mode),
        _ => Err(E::custom("must be keep, stream or none")),
    }
}

impl<'de> Deserialize<'de> for LogsRequest<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visit;
        impl<'de> Visitor<'de> for Visit {
            type Value = LogsRequest<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("keep, stream or none, or an object with mode, limit_bytes, overflow")
            }

            fn visit_borrowed_str<E: de::Error>(self, mode: &'de str) -> Result<Self::Value, E> {
                Ok(LogsRequest {
                    mode: Some(Cow::Borrowed(known_mode(mode)?)),
                    ..LogsRequest::default()
                })
            }

            fn visit_str<E: de::Error>(self, mode: &str) -> Result<Self::Value, E> {
                Ok(LogsRequest {
                    mode: Some(Cow::Owned(known_mode(mode)?.to_owned())),
                    ..LogsRequest::default()
                })
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut logs = LogsRequest::default();
                let mut seen = 0;
                while let Some(field) = map.next_key::<LogsField>()? {
                    field.once(&mut seen)?;
                    let set = match field {
                        LogsField::Mode => words(&mut map).map(|mode| logs.mode = mode),
                        LogsField::LimitBytes => whole(&mut map).map(|n| logs.limit_bytes = n),
                        LogsField::Overflow => words(&mut map).map(|what| logs.overflow = what),
                    };
                    at(field.name(), set)?;
                }
                Ok(logs)
            }
        }
        deserializer.deserialize_any(Visit)
    }
}

/// A string or null.
fn words<'de, A: MapAccess<'de>>(map: &mut A) -> Result<Option<Cow<'de, str>>, A::Error> {
    Ok(map.next_value::<Option<Text<'de>>>()?.map(|text| text.0))
}

/// A whole number or null.
fn whole<'de, A: MapAccess<'de>>(map: &mut A) -> Result<Option<u64>, A::Error> {
    Ok(map.next_value::<Option<Whole>>()?.map(|n| n.0))
}

/// An array or null.
fn list<'de, T: Deserialize<'de>, A: MapAccess<'de>>(map: &mut A) -> Result<Vec<T>, A::Error> {
    Ok(map
        .next_value::<Option<List<T>>>()?
        .map_or_else(Vec::new, |list| list.0))
}

/// The items of an array, each error with its index.
fn items<'de, T: Deserialize<'de>, A: SeqAccess<'de>>(mut seq: A) -> Result<Vec<T>, A::Error> {
    // A length that the input only claims reserves nothing.
    let mut all = Vec::new();
    while let Some(item) = at(all.len(), seq.next_element::<T>())? {
        all.push(item);
    }
    Ok(all)
}

struct List<T>(Vec<T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for List<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visit<T>(std::marker::PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Visit<T> {
            type Value = List<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<List<T>, A::Error> {
                items(seq).map(List)
            }
        }
        deserializer.deserialize_seq(Visit(std::marker::PhantomData))
    }
}

struct Whole(u64);

impl<'de> Deserialize<'de> for Whole {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visit;
        impl Visitor<'_> for Visit {
            type Value = Whole;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a whole number, 0 or more")
            }

            fn visit_u64<E>(self, n: u64) -> Result<Whole, E> {
                Ok(Whole(n))
            }
        }
        deserializer.deserialize_u64(Visit)
    }
}

struct Priority(i64);

impl<'de> Deserialize<'de> for Priority {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visit;
        impl Visitor<'_> for Visit {
            type Value = Priority;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a whole number from -128 to 127, or low, mid, high")
            }

            fn visit_i64<E>(self, n: i64) -> Result<Priority, E> {
                Ok(Priority(n))
            }

            fn visit_u64<E: de::Error>(self, n: u64) -> Result<Priority, E> {
                i64::try_from(n)
                    .map(Priority)
                    .map_err(|_too_large| E::invalid_value(de::Unexpected::Unsigned(n), &self))
            }

            fn visit_str<E: de::Error>(self, word: &str) -> Result<Priority, E> {
                match word {
                    "low" => Ok(Priority(-50)),
                    "mid" => Ok(Priority(0)),
                    "high" => Ok(Priority(50)),
                    _ => Err(E::invalid_value(de::Unexpected::Str(word), &self)),
                }
            }
        }
        deserializer.deserialize_any(Visit)
    }
}

/// An object of strings, in its order, or null.
struct Pairs;

impl<'de> DeserializeSeed<'de> for Pairs {
    type Value = Vec<(Cow<'de, str>, Cow<'de, str>)>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Pairs {
    type Value = Vec<(Cow<'de, str>, Cow<'de, str>)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object whose values are strings")
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(Vec::new())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut all = Vec::new();
        while let Some(name) = map.next_key::<Text<'de>>()? {
            let value = at(Token(&name.0), map.next_value::<Text<'de>>())?;
            all.push((name.0, value.0));
        }
        Ok(all)
    }
}

fn pairs<S: Serializer>(pairs: &[(Cow<'_, str>, Cow<'_, str>)], to: S) -> Result<S::Ok, S::Error> {
    let mut map = to.serialize_map(Some(pairs.len()))?;
    for (name, value) in pairs {
        map.serialize_entry(name, value)?;
    }
    map.end()
}

/// Where to go from a job.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Links {
    /// The job.
    #[serde(rename = "self")]
    pub this: String,
    /// Its output.
    pub logs: String,
}

impl Links {
    /// Of this job.
    pub fn of(id: JobId) -> Self {
        Self {
            this: format!("/jobs/{id}"),
            logs: format!("/jobs/{id}/logs"),
        }
    }
}

/// The answer to one job: it is on disk, and this is what it is called.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Accepted {
    /// Its id.
    #[serde(with = "text::id")]
    pub id: JobId,
    /// `queued`, or `scheduled` if it waits for a time.
    #[serde(with = "text::state")]
    pub state: JobState,
    /// Its queue.
    pub queue: String,
    /// What people call it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its priority.
    pub priority: i8,
    /// The job it repeats.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        with = "text::id_option"
    )]
    pub retry_of: Option<JobId>,
    /// Where to go from here.
    pub links: Links,
}

/// The answer to a batch: consecutive ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AcceptedBatch {
    /// The first.
    #[serde(with = "text::id")]
    pub first_id: JobId,
    /// How many.
    pub count: u32,
}

/// The answer to a cancel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct StateView {
    /// Which.
    #[serde(with = "text::id")]
    pub id: JobId,
    /// `cancelled`, or `cancelling` if it runs.
    #[serde(with = "text::state")]
    pub state: JobState,
    /// Who has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<String>,
    /// Whether that worker can hear of it now; otherwise when it is back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker_connected: Option<bool>,
}

impl StateView {
    /// A job in that state, on no worker.
    pub fn new(id: JobId, state: JobState) -> Self {
        Self {
            id,
            state,
            worker: None,
            worker_connected: None,
        }
    }
}

/// `GET /jobs`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct JobList {
    /// In the order asked.
    pub jobs: Vec<JobView>,
    /// Where the next page begins; `null` if this was the last.
    pub next_cursor: Option<String>,
}

/// A job as `GET /jobs/{id}` shows it. In a list the parts that need the body or the history are missing.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct JobView {
    /// Which.
    #[serde(with = "text::id")]
    pub id: JobId,
    /// Its state.
    #[serde(with = "text::state")]
    pub state: JobState,
    /// Why, if there is something to explain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Cow<'static, str>>,
    /// Its queue.
    pub queue: String,
    /// What people call it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Higher goes first.
    pub priority: i8,
    /// Number of the current or last attempt; 0 before the first.
    pub attempt: u16,
    /// Attempts charged as failures.
    pub failures: u16,
    /// Failures allowed, the last included.
    pub max_attempts: u16,
    /// Who has it or had it last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<String>,
    /// Whether that worker is connected; only while it has the job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker_connected: Option<bool>,
    /// Accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_at: Option<Timestamp>,
    /// By the access token with this id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_by: Option<String>,
    /// When the current or last attempt started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// When the job ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Timestamp>,
    /// What it waits for, if it waits for a time; once it has ended, what was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub due_at: Option<Timestamp>,
    /// Started by then, or it expires.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
    /// Over by then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_at: Option<Timestamp>,
    /// Exit code of the last attempt, if a process had one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<u8>,
    /// Signal that ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<u8>,
    /// One sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// What a handler returned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<serde_json::Value>))]
    pub result: Option<Box<RawValue>>,
    /// The last lines of standard error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stderr_tail: Option<String>,
    /// What the last attempt used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<UsageView>,
    /// The worker's word of this moment: missing if it was not asked, `null` if there is nothing to ask about.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "given"
    )]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<Live>))]
    pub live: Option<Option<Live>>,
    /// Program and arguments.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<Vec<String>>,
    /// The worker's function.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handler: Option<String>,
    /// What it is called with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<serde_json::Value>))]
    pub payload: Option<Box<RawValue>>,
    /// Names only: values are never shown.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// Working directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// Size of its standard input.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdin_bytes: Option<u64>,
    /// Longest run of one attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// Longest silence of one attempt: no output, progress or heartbeat.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stall_ms: Option<u64>,
    /// Its body was dropped by `?purge=1`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub purged: bool,
    /// What people sort jobs by.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// `fsync` or `os`: what its acceptance meant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub durability: Option<Cow<'static, str>>,
    /// The job it repeats.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        with = "text::id_option"
    )]
    pub retry_of: Option<JobId>,
    /// Attempts that have ended, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attempts: Vec<AttemptView>,
    /// Where to go from here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub links: Option<Links>,
}

impl JobView {
    /// A job of which only this much is known.
    pub fn new(id: JobId, state: JobState) -> Self {
        Self {
            id,
            state,
            reason: None,
            queue: String::new(),
            name: None,
            priority: 0,
            attempt: 0,
            failures: 0,
            max_attempts: 1,
            worker: None,
            worker_connected: None,
            created_at: None,
            created_by: None,
            started_at: None,
            finished_at: None,
            due_at: None,
            expires_at: None,
            deadline_at: None,
            exit_code: None,
            signal: None,
            message: None,
            result: None,
            stderr_tail: None,
            usage: None,
            live: None,
            command: None,
            handler: None,
            payload: None,
            env: Vec::new(),
            cwd: None,
            stdin_bytes: None,
            timeout_ms: None,
            stall_ms: None,
            purged: false,
            labels: BTreeMap::new(),
            durability: None,
            retry_of: None,
            attempts: Vec::new(),
            links: None,
        }
    }
}

/// Tells `null` from a missing field.
fn given<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Option<Live>>, D::Error> {
    Option::<Live>::deserialize(from).map(Some)
}

/// An attempt that has ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AttemptView {
    /// Its number.
    pub number: u16,
    /// Why it ended: `none` if it succeeded.
    pub reason: Cow<'static, str>,
    /// Who had it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<String>,
    /// When it started, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Timestamp,
    /// Exit code, if a process had one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<u8>,
    /// Signal that ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<u8>,
    /// One sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// The last lines of standard error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stderr_tail: Option<String>,
    /// What it used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<UsageView>,
}

/// What an attempt used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct UsageView {
    /// From its start to its end, by the worker's clock.
    pub wall_ms: u64,
    /// CPU time in user mode.
    pub user_ms: u64,
    /// CPU time in the kernel.
    pub system_ms: u64,
    /// Largest resident size.
    pub peak_rss_bytes: u64,
    /// Bytes written to standard output.
    pub stdout_bytes: u64,
    /// Bytes written to standard error.
    pub stderr_bytes: u64,
}

/// The live part of a state answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(tag = "seen", rename_all = "snake_case")]
pub enum Live {
    /// The worker answered.
    Yes {
        /// How long that took.
        probed_ms: f64,
        /// It has started; otherwise it waits in the worker's hands.
        started: bool,
        /// Main process; 0 for a handler.
        pid: u32,
        /// Processes in its group.
        processes: u32,
        /// CPU time of the group.
        cpu_ms: u64,
        /// Resident memory of the group.
        rss_bytes: u64,
        /// Bytes read from standard output.
        stdout_bytes: u64,
        /// Bytes read from standard error.
        stderr_bytes: u64,
        /// Since its last sign of life: its start, output, progress or a heartbeat.
        #[serde(default)]
        quiet_ms: u64,
        /// Since its last output was read; missing if there was none.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        output_age_ms: Option<u64>,
        /// 0.0..=1.0, if the job says.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        progress: Option<f32>,
        /// Its latest note.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        note: Option<String>,
    },
    /// It did not.
    No {
        /// `timeout`, `disconnected` or `not_held`.
        why: Cow<'static, str>,
        /// How long the server waited.
        waited_ms: u64,
        /// How long ago the worker was last heard.
        last_heard_ms: u64,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::ShapeError;

    fn read(json: &str) -> Result<JobRequest<'_>, ShapeError> {
        serde_json::from_str(json).map_err(|error| ShapeError::from(&error))
    }

    fn wrong(json: &str) -> (String, String) {
        let error = read(json).unwrap_err();
        (error.pointer, error.detail)
    }

    #[test]
    fn a_request_is_read_borrowed_and_written_as_it_was() {
        let json = concat!(
            r#"{"command":["a","b c"],"name":"n","queue":"q","priority":-3,"timeout_ms":5,"#,
            r#""retry":{"max_attempts":4,"factor":1.5,"on":[1,"64-78"],"later":[75]},"#,
            r#""run_at":"2026-11-24T09:01:12.345Z","env":{"A":"b"},"labels":{"k":"v"},"#,
            r#""logs":{"mode":"keep","limit_bytes":9}}"#
        );
        let job = read(json).unwrap();
        assert!(matches!(job.queue, Some(Cow::Borrowed("q"))));
        assert_eq!(serde_json::to_string(&job).unwrap(), json);
    }

    #[test]
    fn a_payload_stays_the_text_it_was_and_null_is_one() {
        let job = read(r#"{"handler":"h","payload":{"b":  1.0,"a":[]}}"#).unwrap();
        assert_eq!(job.payload.unwrap().get(), r#"{"b":  1.0,"a":[]}"#);
        let job = read(r#"{"handler":"h","payload":null}"#).unwrap();
        assert_eq!(job.payload.unwrap().get(), "null");
        assert!(
            read(r#"{"handler":"h","queue":null,"env":null}"#)
                .unwrap()
                .queue
                .is_none()
        );
    }

    #[test]
    fn priorities_have_names() {
        for (word, number) in [("low", -50), ("mid", 0), ("high", 50)] {
            let json = format!(r#"{{"priority":"{word}"}}"#);
            assert_eq!(read(&json).unwrap().priority, Some(number));
        }
        assert_eq!(wrong(r#"{"priority":"hgih"}"#).0, "/priority");
        assert_eq!(wrong(r#"{"priority":1.5}"#).0, "/priority");
        assert_eq!(wrong(r#"{"priority":18446744073709551615}"#).0, "/priority");
    }

    #[test]
    fn a_wrong_type_names_its_place() {
        for (json, pointer) in [
            (r#"{"timeout_ms":"5s"}"#, "/timeout_ms"),
            (r#"{"timeout_ms":-1}"#, "/timeout_ms"),
            (r#"{"timeout_ms":1.5}"#, "/timeout_ms"),
            (r#"{"retry":{"max_attempts":"x"}}"#, "/retry/max_attempts"),
            (r#"{"retry":{"on":[1,true]}}"#, "/retry/on/1"),
            (r#"{"retry":3}"#, "/retry"),
            (r#"{"command":["a",7]}"#, "/command/1"),
            (r#"{"command":{}}"#, "/command"),
            (r#"{"env":{"A":"b","a/b":1}}"#, "/env/a~1b"),
            (r#"{"run_at":"soon"}"#, "/run_at"),
            (r#"{"logs":{"mode":1}}"#, "/logs/mode"),
            (r#"{"queue":"a","queue":"b"}"#, "/queue"),
            (r#"[]"#, ""),
        ] {
            assert_eq!(wrong(json).0, pointer, "{json}: {}", wrong(json).1);
        }
    }

    #[test]
    fn an_unknown_field_is_told_the_nearest_one() {
        let (pointer, detail) = wrong(r#"{"retrys":1}"#);
        assert_eq!(pointer, "/retrys");
        assert_eq!(detail, "unknown field, did you mean `retry`?");
        let (pointer, detail) = wrong(r#"{"retry":{"max_atempts":1}}"#);
        assert_eq!(pointer, "/retry/max_atempts");
        assert_eq!(detail, "unknown field, did you mean `max_attempts`?");
        assert_eq!(wrong(r#"{"zzz":1}"#).1, "unknown field");
    }

    #[test]
    fn fields_for_later_are_recognised() {
        let json = r#"{"command":"a","after":[1],"array":"1-3","unique_key":"k"}"#;
        assert_eq!(
            read(json).unwrap().not_yet,
            ["after", "array", "unique_key"]
        );
    }

    #[test]
    fn a_view_tells_a_missing_live_part_from_none() {
        let view = JobView::new(JobId::MIN, JobState::Queued);
        let read = |view: &JobView| -> JobView {
            serde_json::from_str(&serde_json::to_string(view).unwrap()).unwrap()
        };
        assert_eq!(read(&view).live, None);
        let asked = JobView {
            live: Some(None),
            ..view
        };
        assert!(
            serde_json::to_string(&asked)
                .unwrap()
                .contains(r#""live":null"#)
        );
        assert_eq!(read(&asked).live, Some(None));
    }
}
