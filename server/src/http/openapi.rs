//! `docs/openapi.json`: the HTTP interface as OpenAPI 3.1 describes it.
//!
//! The shapes come from the types of `hostler_wire::api`, their bounds from the constants that intake checks with, the
//! codes from [`Code`], the paths and methods are held against the router's table. A test makes the document anew and
//! compares it with the file; with `HOSTLER_WRITE_OPENAPI=1` it writes the file.

use hostler_wire::api::{
    Accepted, AcceptedBatch, AuditList, Health, JobList, JobRequest, JobView, LogEnd, LogPiece,
    LogResync, Problem, QueueList, StateView, Stats, TokenList, TokenMade, TokenRequest, TokenView,
    Version, WorkerList,
};
use hostler_wire::limits::{ARGS_MAX, BODY_BYTES_MAX, LABELS_MAX, NAME_BYTES_MAX, QUEUES_MAX};
use hostler_wire::{JobId, JobState};
use serde_json::{Map, Value, json};

use crate::config::Config;
use crate::http::intake::{CWD_BYTES_MAX, DURATION_MS_MAX, FACTOR_MAX, GRACE_MS_MAX, RULES_MAX};
use crate::http::problem::Code;
use crate::http::route::TABLE;
use crate::http::tokens::{ALLOW_MAX, EXPIRES_MS_MAX};
use crate::http::{jobs, ops};
use crate::output::LIMIT_BYTES_MIN;

const QUEUE_PATTERN: &str = "^[A-Za-z0-9_.:-]+$";
const ALLOW_PATTERN: &str = "^(command|handler|handler:[^\\x00-\\x1f\\x7f]+)$";

#[derive(utoipa::OpenApi)]
#[openapi(components(schemas(
    Accepted,
    AcceptedBatch,
    AuditList,
    Health,
    JobList,
    JobRequest<'static>,
    JobView,
    LogEnd,
    LogPiece<'static>,
    LogResync<'static>,
    Problem,
    QueueList,
    StateView,
    Stats,
    TokenList,
    TokenMade,
    TokenRequest,
    TokenView,
    Version,
    WorkerList,
    JobId,
    JobState,
)))]
struct Shapes;

/// Any request may get these.
const ALWAYS: &[Code] = &[
    Code::MalformedRequest,
    Code::BadHost,
    Code::HostNotAllowed,
    Code::CrossSite,
    Code::MediaType,
    Code::UriTooLong,
    Code::HeadersTooLarge,
    Code::Internal,
    Code::Connections,
];
/// And any that needs an access token, these.
const GUARDED: &[Code] = &[
    Code::UnknownParameter,
    Code::BadParameter,
    Code::TokenMissing,
    Code::TokenInvalid,
    Code::TokenExpired,
    Code::RoleMissing,
    Code::RateLimited,
    Code::NoAnswer,
    Code::Stopping,
];

const STORED: &[Code] = &[Code::JobNotFound, Code::JobPurged, Code::StoreUnreadable];
const SUBMITS: &[Code] = &[
    Code::BadHeader,
    Code::QueueNotAllowed,
    Code::JobTypeNotAllowed,
    Code::KeyReused,
    Code::TooManyJobs,
    Code::QueueFull,
    Code::IntakeFull,
    Code::StoreUnavailable,
    Code::CommitUnknown,
];

/// Status, what it means, media types and their shapes, names of headers.
type Answer = (
    u16,
    &'static str,
    Vec<(&'static str, Value)>,
    &'static [&'static str],
);

/// One method of one path.
struct Operation {
    method: &'static str,
    path: &'static str,
    summary: &'static str,
    parameters: Vec<Value>,
    body: Option<Value>,
    answers: Vec<Answer>,
    codes: Vec<&'static [Code]>,
}

fn of(shape: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{shape}")})
}

fn one(shape: &str) -> Vec<(&'static str, Value)> {
    vec![("application/json", of(shape))]
}

fn query(name: &str, description: &str, schema: Value) -> Value {
    json!({"name": name, "in": "query", "description": description, "schema": schema})
}

fn header(name: &str, description: &str, schema: Value) -> Value {
    json!({"name": name, "in": "header", "description": description, "schema": schema})
}

fn flag(name: &str, description: &str) -> Value {
    query(
        name,
        description,
        json!({"enum": ["0", "1", "true", "false", ""]}),
    )
}

fn moment(name: &str, description: &str) -> Value {
    let schema = json!({"anyOf": [
        {"type": "string", "format": "date-time"},
        {"type": "string", "pattern": "^[0-9]{1,6}(ms|s|m|h|d)$"},
    ]});
    query(
        name,
        &format!("{description}: a time from 1970 on, or so long ago"),
        schema,
    )
}

fn limit(most: usize) -> Value {
    let schema = json!({"type": "integer", "minimum": 1, "maximum": most});
    query("limit", "Most entries of the page", schema)
}

fn cursor() -> Value {
    let schema = json!({"type": "integer", "minimum": 0, "maximum": u64::MAX});
    query("cursor", "`next_cursor` of the page before", schema)
}

fn job_id() -> Value {
    json!({"name": "id", "in": "path", "required": true, "description": "The job", "schema": of("JobId")})
}

fn key() -> Value {
    let schema = json!({"type": "string", "pattern": "^[!-~]+$", "maxLength": jobs::KEY_BYTES_MAX});
    let text = "A repeated request with the same key and body gets the first one's answer";
    header("Idempotency-Key", text, schema)
}

fn read(path: &'static str, summary: &'static str, shape: &str) -> Operation {
    Operation {
        method: "get",
        path,
        summary,
        parameters: Vec::new(),
        body: None,
        answers: vec![(200, "As asked", one(shape), &[])],
        codes: Vec::new(),
    }
}

fn operations() -> Vec<Operation> {
    let mut all = jobs_operations();
    all.extend(log_operations());
    all.extend(token_operations());
    let figures: &[Code] = &[Code::QueueNotAllowed, Code::StoreUnreadable];
    all.push(read(
        "/workers",
        "Workers that are connected, and those whose grace runs",
        "WorkerList",
    ));
    let mut queues = read(
        "/queues",
        "Queues with jobs, and those that somebody serves",
        "QueueList",
    );
    queues.codes.push(&[Code::StoreUnreadable]);
    let mut stats = read("/stats", "Figures of the whole server", "Stats");
    stats.codes.push(figures);
    let mut metrics = read("/metrics", "What Prometheus reads", "");
    metrics.answers[0].2 = vec![("application/openmetrics-text", json!({"type": "string"}))];
    metrics.codes.push(figures);
    let mut ready = read(
        "/readyz",
        "Whether jobs can be submitted and their output be kept",
        "Health",
    );
    ready.codes.push(&[Code::NotReady]);
    let mut document = read("/openapi.json", "This document", "");
    document.answers[0].2 = vec![("application/json", json!({"type": "object"}))];
    all.extend([queues, stats, metrics, ready, document]);
    all.push(read("/healthz", "Whether the server answers", "Health"));
    all.push(read(
        "/version",
        "Which program, which cluster, which start",
        "Version",
    ));
    all
}

fn jobs_operations() -> Vec<Operation> {
    let states: Vec<_> = JobState::ALL.iter().map(|state| state.name()).collect();
    let mut list = read("/jobs", "Jobs, newest first", "JobList");
    list.answers[0].3 = &["Link"];
    list.parameters = vec![
        json!({"name": "state", "in": "query", "description": "In one of these states", "style": "form",
            "explode": false, "schema": {"type": "array", "minItems": 1, "items": {"enum": states}}}),
        query("queue", "In this queue", json!({"type": "string"})),
        query("name", "With this name", json!({"type": "string"})),
        moment("since", "Accepted from then on"),
        moment("until", "Accepted before"),
        limit(jobs::PAGE_JOBS_MAX),
        query("cursor", "`next_cursor` of the page before", of("JobId")),
        query("order", "By id", json!({"enum": ["asc", "desc"]})),
        flag("live", "With the workers' word of this moment"),
    ];
    list.codes.push(&[
        Code::QueueNotAllowed,
        Code::NotSupportedYet,
        Code::StoreUnreadable,
    ]);
    let batch = json!({"type": "array", "items": of("JobRequest"), "minItems": 1,
        "maxItems": Config::new("/".into()).limits.batch_jobs_max});
    let submit = Operation {
        method: "post",
        path: "/jobs",
        summary: "Submit a job, or many: durable when it answers",
        parameters: vec![key()],
        body: Some(json!({
            "application/json": {"schema": {"oneOf": [of("JobRequest"), batch]}},
            "application/x-ndjson": {"schema": {"type": "string", "description": "A job a line"}},
        })),
        answers: vec![(
            201,
            "Accepted",
            vec![(
                "application/json",
                json!({"oneOf": [of("Accepted"), of("AcceptedBatch")]}),
            )],
            &["Location", "Idempotent-Replayed"],
        )],
        codes: vec![
            SUBMITS,
            &[
                Code::MalformedJson,
                Code::BodyTimeout,
                Code::BodyTooLarge,
                Code::BatchTooLarge,
                Code::InvalidJob,
                Code::EmptyBatch,
                Code::NotSupportedYet,
            ],
        ],
    };
    let mut show = read(
        "/jobs/{id}",
        "A job, with its worker's word of this moment",
        "JobView",
    );
    show.parameters = vec![
        job_id(),
        query(
            "wait",
            "Answer when the job has ended, or after so long",
            json!({"type": "string", "pattern": "^[0-9]{1,2}(ms|s)$"}),
        ),
        flag("live", "Ask the worker; 1 if absent"),
        header(
            "If-None-Match",
            "The ETag of an answer that is at hand",
            json!({"type": "string"}),
        ),
    ];
    show.answers[0].3 = &["ETag"];
    show.answers.push((304, "As it was", Vec::new(), &["ETag"]));
    show.codes.push(STORED);
    let cancel = Operation {
        method: "delete",
        path: "/jobs/{id}",
        summary: "Cancel a job; or forget what a finished one was made of",
        parameters: vec![
            job_id(),
            query(
                "reason",
                "Why",
                json!({"type": "string", "maxLength": jobs::NOTE_BYTES_MAX,
                    "pattern": r"^[^\u0000-\u001f\u007f-\u009f]*$"}),
            ),
            flag("force", "Kill at once"),
            flag("purge", "Forget body and output; for admins"),
        ],
        body: None,
        answers: vec![
            (200, "Cancelled", one("StateView"), &[]),
            (202, "Told to stop", one("StateView"), &[]),
            (204, "Forgotten", Vec::new(), &[]),
        ],
        codes: vec![
            STORED,
            &[
                Code::JobFinished,
                Code::JobNotFinished,
                Code::StoreUnavailable,
            ],
        ],
    };
    let retry = Operation {
        method: "post",
        path: "/jobs/{id}/retry",
        summary: "Submit a finished job again, with a new id",
        parameters: vec![job_id(), key()],
        body: None,
        answers: vec![(
            201,
            "Accepted",
            one("Accepted"),
            &["Location", "Idempotent-Replayed"],
        )],
        codes: vec![
            STORED,
            SUBMITS,
            &[Code::BodyNotWanted, Code::JobNotFinished, Code::BodyPurged],
        ],
    };
    vec![list, submit, show, cancel, retry]
}

fn log_operations() -> Vec<Operation> {
    let text = json!({"type": "string"});
    let kinds = ["text/plain", "application/x-ndjson", "text/event-stream"];
    let content: Vec<_> = kinds.into_iter().map(|kind| (kind, text.clone())).collect();
    let mut logs = read("/jobs/{id}/logs", "What a job printed", "");
    logs.parameters = vec![
        job_id(),
        query(
            "stream",
            "Of which stream",
            json!({"enum": ["stdout", "stderr", "all"]}),
        ),
        query(
            "attempt",
            "Of which attempt; the last if absent",
            json!({"type": "integer", "minimum": 1, "maximum": u16::MAX}),
        ),
        query(
            "tail",
            "Only the last lines",
            json!({"type": "integer", "minimum": 0, "maximum": 100_000}),
        ),
        moment("since", "Printed from then on"),
        flag("follow", "Until the job has ended"),
        header("Range", "Of plain text", text.clone()),
        header("Last-Event-ID", "Where an event stream goes on", text),
    ];
    let told: &[&str] = &[
        "X-Log-Attempt",
        "X-Log-Truncated-Bytes",
        "X-Log-Incomplete-Bytes",
    ];
    logs.answers = vec![
        (200, "The output", content.clone(), told),
        (206, "A part of it", content, told),
    ];
    logs.codes.push(STORED);
    logs.codes.push(&[
        Code::BadHeader,
        Code::AttemptNotFound,
        Code::NotAcceptable,
        Code::BodyPurged,
        Code::RangeNotSatisfiable,
        Code::OutputUnreadable,
    ]);
    vec![logs]
}

fn token_operations() -> Vec<Operation> {
    let create = Operation {
        method: "post",
        path: "/tokens",
        summary: "Make an access token; its secret is told this once",
        parameters: Vec::new(),
        body: Some(json!({"application/json": {"schema": of("TokenRequest")}})),
        answers: vec![(201, "Made", one("TokenMade"), &["Location"])],
        codes: vec![&[
            Code::MalformedJson,
            Code::BodyTimeout,
            Code::BodyTooLarge,
            Code::InvalidToken,
            Code::TooManyTokens,
            Code::StoreUnavailable,
        ]],
    };
    let id = json!({"name": "id", "in": "path", "required": true, "description": "The token's id",
        "schema": {"type": "string", "pattern": "^[A-Za-z0-9]{8}$"}});
    let revoke = Operation {
        method: "delete",
        path: "/tokens/{id}",
        summary: "Revoke an access token, at once",
        parameters: vec![id],
        body: None,
        answers: vec![(200, "Revoked", one("TokenView"), &[])],
        codes: vec![&[
            Code::TokenNotFound,
            Code::TokenOfFile,
            Code::StoreUnavailable,
        ]],
    };
    let mut audit = read("/audit", "Who did what, newest first", "AuditList");
    audit.parameters = vec![
        moment("since", "From then on"),
        query(
            "token",
            "By the token with this id",
            json!({"type": "string"}),
        ),
        query("action", "Of this kind", json!({"type": "string"})),
        limit(jobs::PAGE_JOBS_MAX),
        cursor(),
    ];
    audit.answers[0].3 = &["Link"];
    audit.codes.push(&[Code::StoreUnreadable]);
    vec![
        create,
        read(
            "/tokens",
            "All access tokens, without their secrets",
            "TokenList",
        ),
        revoke,
        audit,
    ]
}

/// What an operation answers, refusals by status with their codes.
fn answers(operation: &Operation, public: bool, bare: bool) -> Value {
    let mut all = Map::new();
    let headers = |names: &[&str]| -> Value {
        let named = names.iter().chain(&["X-Request-Id"]);
        named
            .map(|name| ((*name).to_owned(), json!({"schema": {"type": "string"}})))
            .collect()
    };
    for (status, text, content, names) in &operation.answers {
        let mut answer = json!({"description": text, "headers": headers(names)});
        if !bare && !content.is_empty() {
            answer["content"] = content
                .iter()
                .map(|(kind, shape)| ((*kind).to_owned(), json!({"schema": shape})))
                .collect();
        }
        all.insert(status.to_string(), answer);
    }
    let guarded = if public { &[][..] } else { GUARDED };
    let codes = operation
        .codes
        .iter()
        .copied()
        .chain([ALWAYS, guarded])
        .flatten();
    let mut refusals: std::collections::BTreeMap<u16, Vec<&str>> =
        std::collections::BTreeMap::new();
    for code in codes {
        let names = refusals.entry(code.status()).or_default();
        if !names.contains(&code.name()) {
            names.push(code.name());
        }
    }
    for (status, mut names) in refusals {
        names.sort_unstable();
        let own: &[&str] = match status {
            401 => &["WWW-Authenticate"],
            429 | 503 => &["Retry-After"],
            _ => &[],
        };
        let mut answer = json!({"description": names.join(", "), "headers": headers(own)});
        if !bare {
            let code = json!({"properties": {"code": {"enum": names}}});
            answer["content"] =
                json!({"application/problem+json": {"schema": {"allOf": [of("Problem"), code]}}});
        }
        all.insert(status.to_string(), answer);
    }
    Value::Object(all)
}

/// Bounds that a type does not tell, from the constants intake checks with.
fn bound(shapes: &mut Value) {
    let mut set = |shape: &str, field: &str, bounds: Value| {
        let place = &mut shapes[shape]["properties"][field];
        assert!(place.is_object(), "{shape} has no {field}");
        for (name, value) in bounds.as_object().expect("an object") {
            place[name] = value.clone();
        }
    };
    let span = json!({"minimum": 1, "maximum": DURATION_MS_MAX});
    for field in ["timeout_ms", "stall_ms", "expires_ms", "deadline_ms"] {
        set("JobRequest", field, span.clone());
    }
    set(
        "JobRequest",
        "delay_ms",
        json!({"minimum": 0, "maximum": DURATION_MS_MAX}),
    );
    set(
        "JobRequest",
        "grace_ms",
        json!({"minimum": 0, "maximum": GRACE_MS_MAX}),
    );
    set(
        "JobRequest",
        "max_losses",
        json!({"minimum": 0, "maximum": u16::MAX}),
    );
    let name = json!({"minLength": 1, "maxLength": NAME_BYTES_MAX});
    set("JobRequest", "handler", name.clone());
    let queue = json!({"minLength": 1, "maxLength": NAME_BYTES_MAX, "pattern": QUEUE_PATTERN});
    set("JobRequest", "queue", queue.clone());
    set(
        "JobRequest",
        "cwd",
        json!({"minLength": 1, "maxLength": CWD_BYTES_MAX}),
    );
    set("JobRequest", "stdin", json!({"maxLength": BODY_BYTES_MAX}));
    set("JobRequest", "labels", json!({"maxProperties": LABELS_MAX}));
    set("JobRequest", "env", json!({"maxProperties": ARGS_MAX}));
    set(
        "JobRequest",
        "on_partition",
        json!({"enum": ["keep", "stop", null]}),
    );
    set(
        "JobRequest",
        "durability",
        json!({"enum": ["fsync", "os", null]}),
    );
    set(
        "RetryRequest",
        "max_attempts",
        json!({"minimum": 1, "maximum": u16::MAX}),
    );
    set(
        "RetryRequest",
        "backoff_ms",
        json!({"minimum": 0, "maximum": DURATION_MS_MAX}),
    );
    set(
        "RetryRequest",
        "max_backoff_ms",
        json!({"minimum": 0, "maximum": DURATION_MS_MAX}),
    );
    set(
        "RetryRequest",
        "factor",
        json!({"minimum": 1, "maximum": FACTOR_MAX}),
    );
    for field in ["on", "never", "later"] {
        set("RetryRequest", field, json!({"maxItems": RULES_MAX}));
    }
    set(
        "RetryRequest",
        "later",
        json!({"items": {"type": "integer", "minimum": 1, "maximum": 255}}),
    );
    let most = Config::new("/".into()).limits.output_bytes_max;
    set(
        "LogsRequest",
        "limit_bytes",
        json!({"minimum": LIMIT_BYTES_MIN, "maximum": most}),
    );
    set(
        "LogsRequest",
        "mode",
        json!({"enum": ["keep", "stream", "none", null]}),
    );
    set(
        "LogsRequest",
        "overflow",
        json!({"enum": ["drop", "block", null]}),
    );
    set(
        "TokenRequest",
        "role",
        json!({"enum": ["admin", "submit", "read", "worker"]}),
    );
    set("TokenRequest", "name", name);
    set("TokenRequest", "queues", json!({"maxItems": QUEUES_MAX}));
    set("TokenRequest", "allow", json!({"maxItems": ALLOW_MAX}));
    set(
        "TokenRequest",
        "expires_ms",
        json!({"minimum": 1, "maximum": EXPIRES_MS_MAX}),
    );
    set(
        "TokenRequest",
        "requests_per_second",
        json!({"minimum": 1, "maximum": u32::MAX}),
    );
    set(
        "TokenRequest",
        "jobs_per_second",
        json!({"minimum": 1, "maximum": u32::MAX}),
    );
    shapes["TokenRequest"]["properties"]["queues"]["items"] =
        json!({"type": "string", "maxLength": NAME_BYTES_MAX, "pattern": QUEUE_PATTERN});
    shapes["TokenRequest"]["properties"]["allow"]["items"] =
        json!({"type": "string", "pattern": ALLOW_PATTERN});
    let job = &mut shapes["JobRequest"];
    // What reads leniently: words for a priority, a mode for an object, null for a list.
    job["properties"]["priority"] = json!({"description": "Higher goes first", "oneOf": [
        {"type": "integer", "minimum": -128, "maximum": 127},
        {"enum": ["low", "mid", "high", null]},
    ]});
    for field in ["env", "labels"] {
        job["properties"][field]["type"] = json!(["object", "null"]);
    }
    job["oneOf"] = json!([
        {"required": ["command"], "properties": {"command": {"not": {"type": "null"}}, "handler": {"type": "null"},
            "payload": false}},
        {"required": ["handler"], "properties": {"handler": {"type": "string"}, "command": {"type": "null"}}},
    ]);
    job["additionalProperties"] = json!(false);
    shapes["RetryRequest"]["additionalProperties"] = json!(false);
    for field in ["on", "never", "later"] {
        shapes["RetryRequest"]["properties"][field]["type"] = json!(["array", "null"]);
    }
    shapes["RuleRequest"] = json!({"description": "A kind of failure", "oneOf": [
        {"type": "integer", "minimum": 1, "maximum": 255},
        {"type": "string", "pattern": "^([1-9][0-9]{0,2}-[1-9][0-9]{0,2}|signal|timeout|oom|spawn|error)$"},
    ]});
    shapes["CommandRequest"] = json!({"description": "Program and arguments, or a line for `sh -c`", "oneOf": [
        {"type": "array", "minItems": 1, "maxItems": ARGS_MAX, "items": {"type": "string"}},
        {"type": "string", "minLength": 1},
    ]});
    let mut logs = shapes["LogsRequest"].take();
    logs["additionalProperties"] = json!(false);
    shapes["LogsRequest"] = json!({"oneOf": [{"enum": ["keep", "stream", "none"]}, logs]});
}

/// The whole document, as the file has it.
fn document() -> String {
    let mut shapes = serde_json::to_value(<Shapes as utoipa::OpenApi>::openapi()).expect("JSON")
        ["components"]["schemas"]
        .take();
    bound(&mut shapes);
    let mut paths = Map::new();
    for operation in operations() {
        let public = ["/healthz", "/readyz", "/version", "/openapi.json"].contains(&operation.path);
        let mut methods = vec![operation.method];
        if operation.method == "get" {
            methods.push("head");
        }
        for method in methods {
            let words = operation
                .path
                .replace(['{', '}'], "")
                .replace(['/', '.'], "_");
            let mut told = json!({
                "operationId": format!("{method}{words}"),
                "summary": operation.summary,
                "parameters": operation.parameters,
                "responses": answers(&operation, public, method == "head"),
            });
            if public {
                told["security"] = json!([]);
            }
            if let Some(body) = &operation.body {
                told["requestBody"] = json!({"required": true, "content": body});
            }
            let path = paths.entry(operation.path).or_insert_with(|| json!({}));
            path[method] = told;
        }
    }
    let document = json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Hostler",
            "version": "v1",
            "description": "Every path is also served below /v1.",
            "license": {"name": "MIT OR Apache-2.0", "identifier": "MIT OR Apache-2.0"},
        },
        "servers": [{"url": "http://127.0.0.1:7440"}],
        "security": [{"bearer": []}],
        "paths": paths,
        "components": {
            "schemas": shapes,
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
    });
    let mut text = serde_json::to_string_pretty(&document).expect("JSON");
    text.push('\n');
    text
}

#[test]
fn the_committed_document_is_what_the_types_say() {
    let text = document();
    if std::env::var_os("HOSTLER_WRITE_OPENAPI").is_some() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/openapi.json");
        std::fs::write(path, &text).unwrap();
        return;
    }
    assert!(
        text == ops::OPENAPI,
        "docs/openapi.json is out of date; HOSTLER_WRITE_OPENAPI=1 cargo test -p hostler-server openapi writes it anew"
    );
}

#[test]
fn the_document_has_every_path_and_method_of_the_router_and_no_others() {
    let document: Value = serde_json::from_str(&document()).unwrap();
    let told: Map<String, Value> = document["paths"].as_object().unwrap().clone();
    let told: Vec<(String, Vec<String>)> = told
        .into_iter()
        .map(|(path, methods)| {
            let mut methods: Vec<_> = methods
                .as_object()
                .unwrap()
                .keys()
                .map(|m| m.to_uppercase())
                .collect();
            methods.sort();
            (path, methods)
        })
        .collect();
    let mut routed: Vec<(String, Vec<String>)> = TABLE
        .iter()
        .map(|(path, _, methods)| {
            let mut methods: Vec<_> = methods.split(", ").map(str::to_owned).collect();
            methods.sort();
            ((*path).to_owned(), methods)
        })
        .collect();
    routed.sort();
    let mut told = told;
    told.sort();
    assert_eq!(told, routed);
}

#[test]
fn every_code_but_the_method_s_and_the_path_s_stands_somewhere_in_the_document() {
    let text = document();
    for code in Code::ALL {
        let apart = matches!(code, Code::NotFound | Code::MethodNotAllowed);
        let name = format!("\"{}\"", code.name());
        assert!(apart || text.contains(&name), "{name}");
    }
}
