//! The one place where an error becomes a status code.
//!
//! Every refusal has a [`Code`]: stable, what programs look at. Its status and title follow from it.

use std::sync::atomic::{AtomicU64, Ordering};

use hostler_wire::api::{FieldError, Problem};
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::{Response, StatusCode};

use crate::auth::{Denied, Right, Role};
use crate::http::body::Body;
use crate::store::seam::{StoreError, StoreErrorKind};
use crate::store::writer::SubmitError;

/// What HTTP counts of itself.
#[derive(Debug)]
pub struct Counts {
    /// Open connections.
    pub(super) connections: AtomicU64,
    refused: [AtomicU64; Code::ALL.len()],
}

impl Default for Counts {
    fn default() -> Self {
        Self {
            connections: AtomicU64::new(0),
            refused: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }
}

impl Counts {
    /// Somebody was told this.
    pub(super) fn refused(&self, code: Code) {
        self.refused[code as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// How often each code was told.
    pub(super) fn by_code(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let counts = self.refused.iter().map(|it| it.load(Ordering::Relaxed));
        Code::ALL.iter().map(|code| code.name()).zip(counts)
    }
}

/// As much of a path as is worth repeating.
const INSTANCE_CHARS_MAX: usize = 256;

macro_rules! codes {
    ($($(#[$meta:meta])* $name:ident = $status:literal, $text:literal, $title:literal;)+) => {
        /// Every code there is. A code never changes its meaning; new ones may come.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(super) enum Code { $($(#[$meta])* $name,)+ }

        impl Code {
            pub(super) const ALL: &'static [Self] = &[$(Self::$name,)+];

            pub(super) const fn status(self) -> u16 {
                match self { $(Self::$name => $status,)+ }
            }

            pub(super) const fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)+ }
            }

            const fn title(self) -> &'static str {
                match self { $(Self::$name => $title,)+ }
            }
        }
    };
}

codes! {
    MalformedRequest = 400, "malformed_request", "The request is not HTTP as it should be";
    MalformedJson = 400, "malformed_json", "The body is not JSON";
    BadHost = 400, "bad_host", "The Host header is missing or unreadable";
    UnknownParameter = 400, "unknown_parameter", "A query parameter is unknown";
    BadParameter = 400, "bad_parameter", "A query parameter has a value it cannot have";
    BadHeader = 400, "bad_header", "A header has a value it cannot have";
    BodyNotWanted = 400, "body_not_wanted", "This endpoint takes no body";
    TokenMissing = 401, "token_missing", "An access token is needed";
    TokenInvalid = 401, "token_invalid", "The access token is not valid here";
    TokenExpired = 401, "token_expired", "The access token is no longer valid";
    RoleMissing = 403, "role_missing", "The access token's role is not enough";
    QueueNotAllowed = 403, "queue_not_allowed", "The access token is not good for that queue";
    HostNotAllowed = 403, "host_not_allowed", "This server does not answer to that name";
    CrossSite = 403, "cross_site", "Requests from other sites are refused";
    JobTypeNotAllowed = 403, "job_type_not_allowed", "This server does not accept that type of job";
    NotFound = 404, "not_found", "There is nothing at this path";
    JobNotFound = 404, "job_not_found", "There is no such job";
    TokenNotFound = 404, "token_not_found", "There is no such access token";
    AttemptNotFound = 404, "attempt_not_found", "The job has no such attempt";
    MethodNotAllowed = 405, "method_not_allowed", "This path does not take that method";
    NotAcceptable = 406, "not_acceptable", "None of the wanted media types is available";
    BodyTimeout = 408, "body_timeout", "The body did not arrive in time";
    JobFinished = 409, "job_finished", "The job has already finished";
    JobNotFinished = 409, "job_not_finished", "The job has not finished yet";
    TokenOfFile = 409, "token_of_file", "The access token lies in a file";
    JobPurged = 410, "job_purged", "The job is no longer kept";
    BodyPurged = 410, "body_purged", "The job's body and output are no longer kept";
    BodyTooLarge = 413, "body_too_large", "The body is too large";
    BatchTooLarge = 413, "batch_too_large", "The batch has too many jobs";
    UriTooLong = 414, "uri_too_long", "The path and its query are too long";
    MediaType = 415, "unsupported_media_type", "The body is of a type this server does not read";
    RangeNotSatisfiable = 416, "range_not_satisfiable", "The range lies outside the output";
    InvalidJob = 422, "invalid_job", "The job cannot be accepted as it is";
    EmptyBatch = 422, "empty_batch", "The batch has no jobs";
    NotSupportedYet = 422, "not_supported_yet", "This server cannot do that yet";
    KeyReused = 422, "idempotency_key_reused", "The Idempotency-Key was used for another request";
    InvalidToken = 422, "invalid_token", "The access token cannot be made as it is";
    TooManyTokens = 422, "too_many_tokens", "There are too many access tokens";
    RateLimited = 429, "rate_limited", "Too much in too short a time";
    TooManyJobs = 429, "too_many_jobs", "Too many jobs wait";
    QueueFull = 429, "queue_full", "The queue is full";
    HeadersTooLarge = 431, "headers_too_large", "The headers are too large";
    Internal = 500, "internal", "The server made a mistake";
    Connections = 503, "too_many_connections", "Too many connections";
    IntakeFull = 503, "intake_full", "Too much waits to be made durable";
    StoreUnavailable = 503, "store_unavailable", "The store takes nothing at the moment";
    StoreUnreadable = 503, "store_unreadable", "The store cannot be read";
    CommitUnknown = 503, "commit_unknown", "Nobody knows whether the job was accepted";
    OutputUnreadable = 503, "output_unreadable", "The output cannot be read";
    NoAnswer = 503, "no_answer", "The server did not answer in time";
    Stopping = 503, "stopping", "The server is stopping";
    NotReady = 503, "not_ready", "The server is not ready";
}

/// A request that is not fulfilled, and why.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) code: Code,
    /// The thing, the limit, the way out.
    pub(super) detail: String,
    /// About fields, if it is about fields.
    pub(super) errors: Vec<FieldError>,
    /// Beyond the usual ones.
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
    /// The connection is not to be used any further.
    pub(super) close: bool,
}

impl Refusal {
    pub(super) fn new(code: Code, detail: impl Into<String>) -> Box<Self> {
        let mut headers = Vec::new();
        match code.status() {
            401 => headers.push((
                header::WWW_AUTHENTICATE,
                HeaderValue::from_static("Bearer realm=\"hostler\""),
            )),
            429 | 503 => headers.push((header::RETRY_AFTER, HeaderValue::from_static("1"))),
            _ => {}
        }
        // What is left of these bodies is not read.
        let close = matches!(
            code,
            Code::BodyTooLarge | Code::BodyTimeout | Code::Internal | Code::MalformedRequest
        );
        Box::new(Self {
            code,
            detail: detail.into(),
            errors: Vec::new(),
            headers,
            close,
        })
    }

    /// About one field or parameter.
    pub(super) fn field(
        code: Code,
        pointer: impl Into<String>,
        detail: impl Into<String>,
    ) -> Box<Self> {
        let (pointer, detail) = (pointer.into(), detail.into());
        let mut refusal = Self::new(code, format!("{pointer}: {detail}"));
        refusal.errors.push(FieldError {
            pointer,
            detail,
            line: None,
        });
        refusal
    }

    pub(super) fn with(mut self: Box<Self>, name: HeaderName, value: HeaderValue) -> Box<Self> {
        self.headers.push((name, value));
        self
    }

    /// The answer.
    pub(super) fn respond(self, instance: &str, request_id: &str) -> Response<Body> {
        let problem = Problem {
            kind: "about:blank".into(),
            title: self.code.title().into(),
            status: self.code.status(),
            detail: self.detail,
            instance: instance.chars().take(INSTANCE_CHARS_MAX).collect(),
            code: self.code.name().into(),
            request_id: request_id.into(),
            errors: self.errors,
        };
        let json = serde_json::to_vec(&problem).expect("a problem is made of strings and numbers");
        let mut response = Response::new(Body::full(json));
        *response.status_mut() = StatusCode::from_u16(problem.status).expect("codes have statuses");
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        if self.close {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        headers.extend(
            self.headers
                .into_iter()
                .map(|(name, value)| (Some(name), value)),
        );
        response
    }
}

/// For the connection's own refusals, where no request has been understood: a whole answer in bytes.
pub(super) fn raw(code: Code, detail: &str) -> Vec<u8> {
    let problem = Problem {
        kind: "about:blank".into(),
        title: code.title().into(),
        status: code.status(),
        detail: detail.into(),
        code: code.name().into(),
        ..Problem::default()
    };
    let json = serde_json::to_string(&problem).expect("a problem is made of strings and numbers");
    let status = StatusCode::from_u16(code.status()).expect("codes have statuses");
    let retry = if code.status() == 503 {
        "retry-after: 1\r\n"
    } else {
        ""
    };
    format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/problem+json\r\ncontent-length: {}\r\n\
         {retry}connection: close\r\n\r\n{json}",
        json.len()
    )
    .into_bytes()
}

impl From<Denied> for Box<Refusal> {
    fn from(denied: Denied) -> Self {
        match denied {
            Denied::Missing => Refusal::new(
                Code::TokenMissing,
                "send the access token of DATA_DIR/admin.token as `Authorization: Bearer TOKEN`",
            ),
            Denied::Malformed(why) => Refusal::new(Code::TokenInvalid, why),
            Denied::Unknown => Refusal::new(
                Code::TokenInvalid,
                "the access token is none of this server's: is it of another data directory?",
            ),
            Denied::Revoked => Refusal::new(Code::TokenExpired, "the access token was revoked"),
            Denied::Expired => Refusal::new(Code::TokenExpired, "the access token has expired"),
            Denied::TooMany => Refusal::new(
                Code::RateLimited,
                "too many wrong access tokens from this address; try again later",
            ),
            Denied::Role {
                role: Role::Worker, ..
            } => Refusal::new(
                Code::RoleMissing,
                "a worker's token opens the worker port only; use DATA_DIR/admin.token here, or one made by \
                 `hostler token create`",
            ),
            Denied::Role { role, needs } => {
                let needs = match needs {
                    Right::Read => "read, submit or admin",
                    Right::Submit => "submit or admin",
                    Right::Admin => "admin",
                };
                let role = role.name();
                Refusal::new(
                    Code::RoleMissing,
                    format!("the access token's role is {role}; this needs the role {needs}"),
                )
            }
            Denied::Rate {
                what,
                per_second,
                wait,
            } => {
                let mut refusal = Refusal::new(
                    Code::RateLimited,
                    format!(
                        "the access token is good for {per_second} {what} a second; try again in a moment"
                    ),
                );
                let seconds = wait.micros().div_ceil(1_000_000).max(1);
                refusal
                    .headers
                    .retain(|(name, _)| name != header::RETRY_AFTER);
                refusal.with(header::RETRY_AFTER, HeaderValue::from(seconds))
            }
        }
    }
}

impl From<SubmitError> for Box<Refusal> {
    fn from(error: SubmitError) -> Self {
        match error {
            SubmitError::KeyReused(key) => Refusal::new(
                Code::KeyReused,
                format!(
                    "Idempotency-Key {} stands for another request, which made job {}; \
                     repeat that request as it was, or send a new key",
                    key.key, key.first
                ),
            ),
            SubmitError::Refused(error) => Refusal::new(
                Code::StoreUnavailable,
                format!("the job could not be made durable, and is not accepted: {error}"),
            ),
            SubmitError::Unknown(error) => Refusal::new(
                Code::CommitUnknown,
                format!(
                    "the job may or may not be on disk: {error}; repeat the request with the same Idempotency-Key"
                ),
            ),
            SubmitError::Busy {
                limit: "live_jobs_max",
            } => Refusal::new(
                Code::TooManyJobs,
                "as many jobs as limits.live_jobs_max have not ended yet; try again when some have",
            ),
            SubmitError::QueueFull { queue, max } => Refusal::new(
                Code::QueueFull,
                format!(
                    "the queue {queue} may have {max} jobs that have not ended (queue_jobs_max), and these would be more; \
                     try again when some have"
                ),
            ),
            SubmitError::Busy { limit } => Refusal::new(
                Code::IntakeFull,
                format!("the limit {limit} is reached; try again in a moment"),
            ),
            SubmitError::Stopping => stopping(),
        }
    }
}

impl From<StoreError> for Box<Refusal> {
    fn from(error: StoreError) -> Self {
        match error.kind {
            StoreErrorKind::NoIndex => Refusal::new(Code::NotSupportedYet, error.message),
            StoreErrorKind::Full
            | StoreErrorKind::Busy
            | StoreErrorKind::ReadOnly
            | StoreErrorKind::Io
            | StoreErrorKind::Corrupt
            | StoreErrorKind::OtherVersion
            | StoreErrorKind::InUse => Refusal::new(Code::StoreUnreadable, error.message),
        }
    }
}

/// The server winds down and this cannot be done any more.
pub(super) fn stopping() -> Box<Refusal> {
    Refusal::new(
        Code::Stopping,
        "the server is stopping; try again when it is back",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unique_snake_case_and_have_an_error_status() {
        let mut names: Vec<_> = Code::ALL.iter().map(|code| code.name()).collect();
        for (code, name) in Code::ALL.iter().zip(&names) {
            assert!(
                name.bytes().all(|c| c.is_ascii_lowercase() || c == b'_'),
                "{name}"
            );
            assert!((400..=503).contains(&code.status()), "{name}");
            assert!(!code.title().ends_with('.'), "{name}");
        }
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Code::ALL.len());
    }

    #[test]
    fn what_may_pass_says_when_to_try_again() {
        let refusal: Box<Refusal> = SubmitError::Busy {
            limit: "live_jobs_max",
        }
        .into();
        let response = refusal.respond("/jobs", "r");
        assert_eq!(response.status(), 429);
        assert!(response.headers().contains_key(header::RETRY_AFTER));
        let (queue, max) = ("video".into(), 7);
        let refusal: Box<Refusal> = SubmitError::QueueFull { queue, max }.into();
        assert!(refusal.detail.contains("queue video may have 7 jobs"));
        let response = refusal.respond("/jobs", "r");
        assert_eq!(response.status(), 429);
        assert!(response.headers().contains_key(header::RETRY_AFTER));
        let refusal: Box<Refusal> = SubmitError::Stopping.into();
        assert!(
            refusal
                .respond("/jobs", "r")
                .headers()
                .contains_key(header::RETRY_AFTER)
        );
    }
}
