//! The HTTP side from outside: raw sockets on one end, a stand-in for the other threads on the other.
#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on should stop where it stands"
)]

#[path = "http/authority.rs"]
mod authority;
#[path = "http/world.rs"]
mod world;

use std::time::Duration;

use hostler_engine::QueueView;
use hostler_engine::effect::CancelAnswer;
use hostler_server::dispatch::LiveStatus;
use hostler_server::store::writer::SubmitError;
use hostler_wire::frame::{Live, Stream};
use hostler_wire::{Detail, JobState, Reason, Usage};

use world::World;

const JSON: (&str, &str) = ("content-type", "application/json");
const NDJSON: (&str, &str) = ("content-type", "application/x-ndjson");
const ECHO: &str = r#"{"handler":"echo","payload":{"a":1}}"#;

#[test]
fn a_submitted_job_is_answered_after_the_writer_and_found_again() {
    let w = World::new();
    let answer = w.post(r#"{"command":["true"],"queue":"q","name":"n","priority":"high"}"#);
    assert_eq!(
        (answer.status, answer.header("location")),
        (201, Some("/jobs/1"))
    );
    let json = answer.json();
    assert_eq!(json["id"], 1);
    assert_eq!(
        (&json["state"], &json["queue"], &json["priority"]),
        (&"queued".into(), &"q".into(), &50.into())
    );
    assert_eq!(json["links"]["logs"], "/jobs/1/logs");
    assert!(answer.header("x-request-id").is_some());
    assert_eq!(
        w.post(r#"{"command":"x","delay_ms":5}"#).json()["state"],
        "scheduled"
    );
    let view = w.ask("GET", "/v1/jobs/1").json();
    assert_eq!(
        (&view["state"], &view["live"]),
        (&"queued".into(), &serde_json::Value::Null)
    );
    assert!(view.as_object().unwrap().contains_key("live"));
    assert_eq!(view["command"], serde_json::json!(["true"]));
}

#[test]
fn a_batch_gets_consecutive_ids_or_nothing() {
    let w = World::new();
    let answer = w.post(&format!("[{ECHO},{ECHO},{ECHO}]"));
    assert_eq!(
        answer.json(),
        serde_json::json!({"first_id": 1, "count": 3})
    );
    let lines = format!("{ECHO}\n\n  {ECHO}\r\n{ECHO}");
    let answer = w
        .connect()
        .ask("POST", "/jobs", &[NDJSON], lines.as_bytes());
    assert_eq!(
        answer.json(),
        serde_json::json!({"first_id": 4, "count": 3})
    );
    let before = w.fake().submissions;
    let answer = w.post(&format!(
        r#"[{ECHO},{{"handler":"x","retry":{{"max_attempts":0}}}},{{"command":[]}}]"#
    ));
    assert_eq!((answer.status, answer.code()), (422, "invalid_job".into()));
    let errors = answer.json()["errors"].clone();
    assert_eq!(errors[0]["pointer"], "/1/retry/max_attempts");
    assert_eq!(errors[1]["pointer"], "/2/command");
    let lines = format!("{ECHO}\n\n{{\"handler\":\"x\",\"priority\":200}}\n");
    let answer = w
        .connect()
        .ask("POST", "/jobs", &[NDJSON], lines.as_bytes());
    let error = answer.json()["errors"][0].clone();
    assert_eq!(
        (&error["pointer"], &error["line"]),
        (&"/1/priority".into(), &3.into())
    );
    assert_eq!(
        w.fake().submissions,
        before,
        "nothing of a refused batch reaches the writer"
    );
}

#[test]
fn broken_json_is_told_its_place() {
    let w = World::new();
    for (body, line, place) in [
        ("{\"handler\":\"x\",\n  \"priority\": }", 2, "column 15"),
        ("", 1, "column 0"),
        (
            "[{\"handler\":\"x\"},\n{\"handler\" \"x\"}]",
            2,
            "column 12",
        ),
        ("{\"handler\":\"x\"} trailing", 1, "column 17"),
        ("{\"handler\":\"x\"", 1, "column 14"),
    ] {
        let answer = w.post(body);
        assert_eq!(
            (answer.status, answer.code()),
            (400, "malformed_json".into()),
            "{body}"
        );
        let error = &answer.json()["errors"][0];
        assert_eq!(error["line"], line, "{body}: {error}");
        assert!(
            error["detail"].as_str().unwrap().contains(place),
            "{body}: {error}"
        );
    }
    let lines = format!("{ECHO}\n{{oops}}\n");
    let answer = w
        .connect()
        .ask("POST", "/jobs", &[NDJSON], lines.as_bytes());
    assert_eq!(
        (answer.code(), &answer.json()["errors"][0]["line"]),
        ("malformed_json".into(), &2.into())
    );
    let answer = w
        .connect()
        .ask("POST", "/jobs", &[JSON], b"{\"handler\":\n\"\xff\"}");
    assert_eq!(
        (answer.code(), &answer.json()["errors"][0]["line"]),
        ("malformed_json".into(), &2.into())
    );
}

#[test]
fn every_field_is_judged_and_named() {
    let w = World::new();
    let command = |rest: &str| format!(r#"{{"command":["x"],{rest}}}"#);
    let handler = |rest: &str| format!(r#"{{"handler":"x",{rest}}}"#);
    let long = "n".repeat(129);
    let cases: Vec<(String, &str)> = vec![
        ("{}".into(), ""),
        ("7".into(), ""),
        ("null".into(), ""),
        ("\"x\"".into(), ""),
        (r#"{"command":["x"],"handler":"y"}"#.into(), "/handler"),
        (r#"{"command":[]}"#.into(), "/command"),
        (r#"{"command":[""]}"#.into(), "/command"),
        (r#"{"command":""}"#.into(), "/command"),
        (r#"{"command":7}"#.into(), "/command"),
        (r#"{"command":["x",null]}"#.into(), "/command/1"),
        (r#"{"command":["x","a\u0000b"]}"#.into(), "/command/1"),
        (r#"{"command":"a\u0000b"}"#.into(), "/command"),
        (r#"{"handler":""}"#.into(), "/handler"),
        (r#"{"handler":["x"]}"#.into(), "/handler"),
        (command(r#""payload":1"#), "/payload"),
        (handler(r#""env":{"A":"b"}"#), "/env"),
        (handler(r#""cwd":"/""#), "/cwd"),
        (handler(r#""stdin":"x""#), "/stdin"),
        (handler(r#""stdin_b64":"eA==""#), "/stdin_b64"),
        (command(r#""name":"""#), "/name"),
        (command(&format!(r#""name":"{long}""#)), "/name"),
        (command(r#""name":"a\nb""#), "/name"),
        (command(r#""name":5"#), "/name"),
        (command(r#""queue":"""#), "/queue"),
        (command(r#""queue":"a b""#), "/queue"),
        (command(&format!(r#""queue":"{long}""#)), "/queue"),
        (command(r#""queue":{}"#), "/queue"),
        (command(r#""priority":128"#), "/priority"),
        (command(r#""priority":-129"#), "/priority"),
        (command(r#""priority":"urgent""#), "/priority"),
        (command(r#""timeout_ms":0"#), "/timeout_ms"),
        (command(r#""timeout_ms":-5"#), "/timeout_ms"),
        (command(r#""timeout_ms":1e3"#), "/timeout_ms"),
        (
            command(r#""timeout_ms":18446744073709551615"#),
            "/timeout_ms",
        ),
        (command(r#""timeout_ms":"5""#), "/timeout_ms"),
        (command(r#""retry":4"#), "/retry"),
        (
            command(r#""retry":{"max_attempts":0}"#),
            "/retry/max_attempts",
        ),
        (
            command(r#""retry":{"max_attempts":65536}"#),
            "/retry/max_attempts",
        ),
        (
            command(r#""retry":{"backoff_ms":"1"}"#),
            "/retry/backoff_ms",
        ),
        (command(r#""retry":{"factor":0.99}"#), "/retry/factor"),
        (command(r#""retry":{"factor":100.5}"#), "/retry/factor"),
        (command(r#""retry":{"factor":1.00001}"#), "/retry/factor"),
        (
            command(r#""retry":{"backoff_ms":10,"max_backoff_ms":9}"#),
            "/retry/max_backoff_ms",
        ),
        (command(r#""retry":{"on":[0]}"#), "/retry/on/0"),
        (command(r#""retry":{"on":["signal","9-3"]}"#), "/retry/on/1"),
        (
            command(r#""retry":{"never":["sigkill"]}"#),
            "/retry/never/0",
        ),
        (command(r#""retry":{"later":[256]}"#), "/retry/later/0"),
        (command(r#""retry":{"attempts":3}"#), "/retry/attempts"),
        (command(r#""max_losses":65536"#), "/max_losses"),
        (command(r#""on_partition":"die""#), "/on_partition"),
        (command(r#""run_at":"tomorrow""#), "/run_at"),
        (command(r#""run_at":5"#), "/run_at"),
        (
            command(r#""run_at":"2030-01-01T00:00:00Z","delay_ms":1"#),
            "/delay_ms",
        ),
        (command(r#""expires_ms":0"#), "/expires_ms"),
        (command(r#""expires_ms":5,"delay_ms":5"#), "/expires_ms"),
        (
            command(r#""expires_at":"2030-01-01T00:00:00Z","expires_ms":5"#),
            "/expires_ms",
        ),
        (command(r#""deadline_ms":0"#), "/deadline_ms"),
        (
            command(r#""run_at":"2030-01-02T00:00:00Z","deadline_at":"2030-01-01T00:00:00Z""#),
            "/deadline_at",
        ),
        (command(r#""durability":"none""#), "/durability"),
        (command(r#""grace_ms":86400001"#), "/grace_ms"),
        (command(r#""env":[]"#), "/env"),
        (command(r#""env":{"A":1}"#), "/env/A"),
        (command(r#""env":{"A=B":"x"}"#), "/env/A=B"),
        (command(r#""env":{"":"x"}"#), "/env/"),
        (command(r#""env":{"A":"x\u0000"}"#), "/env/A"),
        (command(r#""env":{"A":"x","A":"y"}"#), "/env/A"),
        (
            command(r#""env":{"HOSTLER_FENCE":"1"}"#),
            "/env/HOSTLER_FENCE",
        ),
        (command(r#""cwd":"""#), "/cwd"),
        (command(r#""stdin":5"#), "/stdin"),
        (command(r#""stdin":"a","stdin_b64":"YQ==""#), "/stdin_b64"),
        (command(r#""stdin_b64":"?""#), "/stdin_b64"),
        (command(r#""labels":{"a":1}"#), "/labels/a"),
        (command(r#""labels":{"":"x"}"#), "/labels/"),
        (
            command(&format!(r#""labels":{{"a":"{long}"}}"#)),
            "/labels/a",
        ),
        (command(r#""logs":"maybe""#), "/logs"),
        (command(r#""logs":{"limit_bytes":0}"#), "/logs/limit_bytes"),
        (
            command(r#""logs":{"limit_bytes":4095}"#),
            "/logs/limit_bytes",
        ),
        (
            command(r#""logs":{"limit_bytes":16777217}"#),
            "/logs/limit_bytes",
        ),
        (command(r#""logs":{"overflow":"spill"}"#), "/logs/overflow"),
        (command(r#""logs":{"size":1}"#), "/logs/size"),
        (command(r#""queue":"a","queue":"b""#), "/queue"),
        (command(r#""time_out_ms":1"#), "/time_out_ms"),
    ];
    let mut client = w.connect();
    for (body, pointer) in &cases {
        let answer = client.ask("POST", "/jobs", &[JSON], body.as_bytes());
        assert_eq!(
            (answer.status, answer.code()),
            (422, "invalid_job".into()),
            "{body}: {}",
            answer.text()
        );
        assert_eq!(
            answer.json()["errors"][0]["pointer"],
            *pointer,
            "{body}: {}",
            answer.text()
        );
    }
    for field in ["after", "array", "unique_key", "fair_key", "requires"] {
        let answer = w.post(&command(&format!(r#""{field}":1"#)));
        assert_eq!(
            (answer.status, answer.code()),
            (422, "not_supported_yet".into()),
            "{field}"
        );
        assert_eq!(answer.json()["errors"][0]["pointer"], format!("/{field}"));
    }
    let typo = w.post(&command(r#""time_out_ms":1"#));
    assert!(
        typo.text().contains("did you mean `timeout_ms`?"),
        "{}",
        typo.text()
    );
    assert_eq!(w.fake().submissions, 0);
}

#[test]
fn good_values_at_their_bounds_are_taken() {
    let w = World::new();
    for rest in [
        r#""priority":-128"#,
        r#""priority":127"#,
        r#""timeout_ms":1"#,
        r#""retry":{"max_attempts":65535,"factor":100,"backoff_ms":0,"on":[1,"2-255","oom"],"later":[75]}"#,
        r#""max_losses":0"#,
        r#""run_at":"2030-01-01T00:00:00+02:00","expires_at":"2030-01-02T00:00:00Z""#,
        r#""delay_ms":0,"expires_ms":1"#,
        r#""env":{"LD_PRELOAD":"x\ny","HOSTLER_TOKEN":"t"},"cwd":"sub","stdin_b64":"AP8=""#,
        r#""labels":{"a":""},"logs":{"mode":"none","limit_bytes":16777216,"overflow":"drop"}"#,
        r#""logs":{"mode":"stream","limit_bytes":4096,"overflow":"block"}"#,
        r#""durability":"os","grace_ms":0,"on_partition":"stop","name":null"#,
    ] {
        let answer = w.post(&format!(r#"{{"command":["x"],{rest}}}"#));
        assert_eq!(answer.status, 201, "{rest}: {}", answer.text());
    }
}

#[test]
fn types_of_job_are_allowed_or_not() {
    let w = World::with(|config| config.allow.commands = false);
    let answer = w.post(r#"{"command":["true"]}"#);
    assert_eq!(
        (answer.status, answer.code()),
        (403, "job_type_not_allowed".into())
    );
    assert_eq!(w.post(ECHO).status, 201);
}

#[test]
fn the_guard_stands_before_every_method_and_path() {
    let w = World::new();
    for method in [
        "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE",
    ] {
        for path in ["/jobs", "/jobs/1", "/jobs/1/logs", "/healthz", "/nowhere"] {
            for (name, value, code) in [
                ("host", "evil.example", "host_not_allowed"),
                ("origin", "http://evil.example", "cross_site"),
                ("sec-fetch-site", "cross-site", "cross_site"),
            ] {
                let answer = w.connect().ask(method, path, &[(name, value)], b"");
                assert_eq!(answer.status, 403, "{method} {path} {name}");
                if method != "HEAD" {
                    assert_eq!(answer.code(), code, "{method} {path}");
                }
            }
        }
        if method != "HEAD" {
            let answer =
                w.connect()
                    .ask(method, "/jobs/1", &[("content-type", "text/plain")], b"x");
            assert_eq!(
                (answer.status, answer.code()),
                (415, "unsupported_media_type".into()),
                "{method}"
            );
        }
    }
    assert!(w.fake().notes.is_empty() && w.fake().submissions == 0);
}

#[test]
fn only_the_admin_gets_in_and_health_needs_nobody() {
    let w = World::new();
    let mut client = w.connect();
    let worker = format!("Bearer {}", w.worker_token);
    for (value, status, code) in [
        ("-", 401, "token_missing"),
        ("Bearer nonsense", 401, "token_invalid"),
        ("Basic eDp5", 401, "token_invalid"),
        (&*worker, 403, "role_missing"),
    ] {
        for path in ["/jobs", "/nowhere", "/jobs/1"] {
            let answer = client.ask("GET", path, &[("authorization", value)], b"");
            assert_eq!((answer.status, &*answer.code()), (status, code), "{path}");
            assert_eq!(answer.header("www-authenticate").is_some(), status == 401);
        }
    }
    for path in ["/healthz", "/readyz", "/version", "/v1/version"] {
        assert_eq!(
            client
                .ask("GET", path, &[("authorization", "-")], b"")
                .status,
            200,
            "{path}"
        );
    }
    let version = w.ask("GET", "/version").json();
    assert_eq!(
        (&version["cluster_id"], &version["epoch"]),
        (&"ab".repeat(16).into(), &7.into())
    );
    let open = World::with(|config| config.no_auth = true);
    assert_eq!(
        open.connect()
            .ask("GET", "/jobs", &[("authorization", "-")], b"")
            .status,
        200
    );
}

#[test]
fn hostile_requests_get_their_own_answer_and_harm_nobody() {
    let w = World::with(|config| {
        config.limits.body_bytes_max = 10_000;
        config.limits.batch_jobs_max = 20;
    });
    let post = |rest: &str| {
        format!(
            "POST /jobs HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {}\r\n{rest}",
            w.token
        )
    };
    let get = |path: &str| {
        format!(
            "GET {path} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {}\r\n\r\n",
            w.token
        )
    };
    let json = "content-type: application/json\r\n";
    let batch = vec![ECHO; 21].join(",");
    let many_headers = "x: y\r\n".repeat(200);
    let cases: Vec<(String, u16, &str)> = vec![
        (get("/nowhere"), 404, "not_found"),
        (get("/jobs/"), 404, "not_found"),
        (get("//jobs"), 404, "not_found"),
        (get("/jobs/../jobs"), 404, "not_found"),
        (get("/v2/jobs"), 404, "not_found"),
        (get("/jobs/0"), 404, "job_not_found"),
        (get("/jobs/-1"), 404, "job_not_found"),
        (get("/jobs/abc"), 404, "job_not_found"),
        (get("/jobs/%31"), 404, "job_not_found"),
        (get("/jobs/9007199254740992"), 404, "job_not_found"),
        (get("/jobs/99999999999999999999999"), 404, "job_not_found"),
        (get("/jobs/1"), 404, "job_not_found"),
        (get("/jobs/1/logs"), 404, "job_not_found"),
        (get("/jobs?stat=queued"), 400, "unknown_parameter"),
        (get("/jobs?state=qeued"), 400, "bad_parameter"),
        (get("/jobs?limit=0"), 400, "bad_parameter"),
        (get("/jobs?limit=1001"), 400, "bad_parameter"),
        (get("/jobs?limit=x"), 400, "bad_parameter"),
        (get("/jobs?cursor=x"), 400, "bad_parameter"),
        (get("/jobs?order=up"), 400, "bad_parameter"),
        (get("/jobs?since=yesterday"), 400, "bad_parameter"),
        (get("/jobs?state=%GG"), 400, "bad_parameter"),
        (get("/jobs?limit=1&limit=1"), 400, "bad_parameter"),
        (get("/jobs?label=a"), 422, "not_supported_yet"),
        (get("/jobs/1?wait=5"), 400, "bad_parameter"),
        (get("/jobs/1?wait=10h"), 400, "bad_parameter"),
        (get("/jobs/1?wait=-5s"), 400, "bad_parameter"),
        (get("/jobs/1/logs?stream=both"), 400, "bad_parameter"),
        (get("/jobs/1/logs?attempt=x"), 400, "bad_parameter"),
        (get("/jobs/1/logs?tail=100001"), 400, "bad_parameter"),
        (get("/jobs/1/retry"), 405, "method_not_allowed"),
        (
            get(&format!("/jobs?{}", "a".repeat(9_000))),
            414,
            "uri_too_long",
        ),
        (get(&"/".repeat(70_000)), 414, "uri_too_long"),
        (
            post(&format!("{json}content-length: 0\r\n\r\n")),
            400,
            "malformed_json",
        ),
        (
            post(&format!("{json}content-length: 2\r\n\r\n[]")),
            422,
            "empty_batch",
        ),
        (
            post(&format!("{json}content-length: 10001\r\n\r\n")),
            413,
            "body_too_large",
        ),
        (
            post(&format!(
                "{json}content-length: 99999999999999999999999\r\n\r\n"
            )),
            400,
            "malformed_request",
        ),
        (
            post(&format!("{json}content-length: +5\r\n\r\n")),
            400,
            "malformed_request",
        ),
        (
            post(&format!("{json}content-length: -1\r\n\r\n")),
            400,
            "malformed_request",
        ),
        (
            post(&format!(
                "{json}content-length: 4\r\ncontent-length: 5\r\n\r\n[1,2]"
            )),
            400,
            "malformed_request",
        ),
        (
            post(&format!("{json}transfer-encoding: gzip\r\n\r\n")),
            400,
            "malformed_request",
        ),
        (
            post(&format!("{json}transfer-encoding: chunked\r\n\r\nZZ\r\n")),
            400,
            "malformed_request",
        ),
        (
            post(&format!(
                "{json}transfer-encoding: chunked\r\n\r\nffffffffffffffff1\r\n"
            )),
            400,
            "malformed_request",
        ),
        (
            post(&format!(
                "{json}transfer-encoding: chunked\r\n\r\n2711\r\n{}",
                "x".repeat(10_001)
            )),
            413,
            "body_too_large",
        ),
        (
            post(&format!(
                "content-length: {}\r\n{json}\r\n[{batch}]",
                batch.len() + 2
            )),
            413,
            "batch_too_large",
        ),
        (
            post(&format!(
                "{json}idempotency-key: a b\r\ncontent-length: 2\r\n\r\n{{}}"
            )),
            400,
            "bad_header",
        ),
        (
            post(&format!(
                "{json}idempotency-key: {}\r\ncontent-length: 2\r\n\r\n{{}}",
                "k".repeat(256)
            )),
            400,
            "bad_header",
        ),
        (
            post(&format!("{json}{json}content-length: 2\r\n\r\n{{}}")),
            415,
            "unsupported_media_type",
        ),
        (
            post("content-length: 2\r\n\r\n{}"),
            415,
            "unsupported_media_type",
        ),
        (
            post(&format!("{many_headers}\r\n")),
            431,
            "headers_too_large",
        ),
        ("GET /jobs HTTP/1.1\r\n\r\n".into(), 400, "bad_host"),
        (
            "GET http://evil.example/jobs HTTP/1.1\r\nhost: localhost\r\n\r\n".into(),
            400,
            "bad_host",
        ),
        (
            "CONNECT localhost:1 HTTP/1.1\r\nhost: localhost:1\r\n\r\n".into(),
            401,
            "token_missing",
        ),
        ("HELLO\r\n\r\n".into(), 400, "malformed_request"),
        ("GET / HTTP/9.9\r\n\r\n".into(), 400, "malformed_request"),
        (
            "GET /jobs HTTP/1.1\r\nhost : localhost\r\n\r\n".into(),
            400,
            "malformed_request",
        ),
        (
            "GET /jobs HTTP/1.1\r\n\0: x\r\n\r\n".into(),
            400,
            "malformed_request",
        ),
        (
            "\x16\x03\x01\x02\x00\x01\x00\x01\x7f\x03\x03".into(),
            400,
            "malformed_request",
        ),
    ];
    let mut wrong = Vec::new();
    for (request, status, code) in &cases {
        let mut client = w.connect();
        client.send(request.as_bytes());
        let shown: String = request.chars().take(300).collect();
        let Some(answer) = client.try_answer() else {
            wrong.push(format!("{shown}: no answer"));
            continue;
        };
        if (answer.status, &*answer.code()) != (*status, *code) {
            wrong.push(format!("{shown}: {} {}", answer.status, answer.code()));
        }
        assert_eq!(
            answer.header("content-type"),
            Some("application/problem+json"),
            "{shown}"
        );
        if answer.header("connection") == Some("close") {
            assert!(client.is_closed(), "{shown}");
        } else {
            assert_eq!(
                client.ask("GET", "/healthz", &[], b"").status,
                200,
                "{shown}"
            );
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(w.fake().submissions, 0);
    assert_eq!(w.post(ECHO).status, 201);
}

#[test]
fn a_path_says_which_methods_it_takes() {
    let w = World::new();
    for (method, path, allow) in [
        ("PUT", "/jobs", "GET, HEAD, POST"),
        ("POST", "/jobs/1", "GET, HEAD, DELETE"),
        ("DELETE", "/jobs/1/logs", "GET, HEAD"),
        ("OPTIONS", "/workers", "GET, HEAD"),
    ] {
        let answer = w.ask(method, path);
        assert_eq!(
            (answer.status, answer.header("allow")),
            (405, Some(allow)),
            "{method} {path}"
        );
    }
    let (get, head) = (w.ask("GET", "/stats"), w.ask("HEAD", "/stats"));
    assert_eq!(
        (head.status, head.header("content-length")),
        (200, get.header("content-length"))
    );
    assert_eq!(get.json()["queued"], 3);
    assert_eq!(get.json()["held"], 1);
    assert_eq!(get.json()["since_start"]["probes"], 5);
    assert_eq!(
        w.ask("GET", "/workers").json()["workers"][0]["labels"]["zone"],
        "a"
    );
}

#[test]
fn metrics_are_told_as_prometheus_reads_them_and_a_queue_cannot_write_lines_of_its_own() {
    let w = World::new();
    let queue = |name: &str| QueueView {
        name: name.into(),
        queued: 2,
        oldest: None,
        held: 1,
    };
    w.fake().queues = vec![queue("video"), queue("a\"} 1\nevil{x=\"")];
    let answer = w.ask("GET", "/metrics");
    assert_eq!(answer.status, 200);
    let kind = answer.header("content-type").unwrap().to_owned();
    assert!(kind.starts_with("application/openmetrics-text"), "{kind}");
    let text = answer.text();
    for line in [
        "# TYPE hostler_jobs_submitted counter",
        "hostler_jobs_submitted_total 0.0",
        "hostler_jobs_finished_total{outcome=\"succeeded\"} 0.0",
        "hostler_jobs{state=\"queued\"} 3.0",
        "hostler_queue_jobs{queue=\"video\",state=\"queued\"} 2.0",
        "hostler_workers{state=\"connected\"} 1.0",
        "hostler_ready 1.0",
        "hostler_wal_bytes 0.0",
        "# EOF",
    ] {
        assert!(text.lines().any(|it| it == line), "no {line} in {text}");
    }
    assert!(!text.lines().any(|line| line.starts_with("evil")), "{text}");
    assert!(text.contains("process_resident_memory_bytes "), "{text}");
    // As /stats, it is not for everybody.
    let stranger = w
        .connect()
        .ask("GET", "/metrics", &[("authorization", "-")], b"");
    assert_eq!(stranger.status, 401);
}

#[test]
fn of_very_many_queues_some_have_rows_and_the_rest_is_counted() {
    let w = World::new();
    let queue = |n: u32| QueueView {
        name: format!("q{n:04}").into(),
        queued: 1,
        oldest: None,
        held: 0,
    };
    w.fake().queues = (0..1_000).map(queue).collect();
    let answer = w.ask("GET", "/metrics");
    let text = answer.text();
    let rows = text
        .lines()
        .filter(|it| it.starts_with("hostler_queue_jobs{"));
    assert_eq!(rows.count(), 2 * 256);
    assert!(text.contains("\nhostler_queues_omitted 744.0\n"), "{text}");
}

#[test]
fn a_request_id_is_echoed_if_it_is_a_decent_one() {
    let w = World::new();
    let mut client = w.connect();
    let mut ask = |id: &str| {
        let answer = client.ask("GET", "/nowhere", &[("x-request-id", id)], b"");
        assert_eq!(
            answer.json()["request_id"],
            answer.header("x-request-id").unwrap()
        );
        answer.header("x-request-id").unwrap().to_owned()
    };
    assert_eq!(ask("abc-123"), "abc-123");
    assert_ne!(ask(&"x".repeat(129)), "x".repeat(129));
    assert_ne!(ask("a b"), ask("a b"));
}

#[test]
fn a_key_replays_its_answer_and_refuses_another_request() {
    let w = World::new();
    let mut client = w.connect();
    let key = ("idempotency-key", "k-1");
    let first = client.ask("POST", "/jobs", &[JSON, key], ECHO.as_bytes());
    let again = client.ask("POST", "/jobs", &[JSON, key], ECHO.as_bytes());
    assert_eq!((first.status, again.status), (201, 201));
    assert_eq!(
        (
            first.header("idempotent-replayed"),
            again.header("idempotent-replayed")
        ),
        (None, Some("true"))
    );
    assert_eq!(first.body, again.body);
    let other = client.ask("POST", "/jobs", &[JSON, key], br#"{"handler":"other"}"#);
    assert_eq!(
        (other.status, other.code()),
        (422, "idempotency_key_reused".into())
    );
    // The same bytes as a batch of one ask for another answer.
    let lines = client.ask("POST", "/jobs", &[NDJSON, key], ECHO.as_bytes());
    assert_eq!(lines.code(), "idempotency_key_reused");
    assert_eq!(w.fake().records.len(), 1);
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let w = World::new();
    let mut client = w.connect();
    let mut all = String::new();
    for n in 0..50 {
        all.push_str(&client.head(
            "GET",
            "/nowhere",
            &[("x-request-id", &format!("r{n}"))],
            None,
        ));
    }
    client.send(all.as_bytes());
    for n in 0..50 {
        assert_eq!(
            client.answer(false).header("x-request-id").unwrap(),
            format!("r{n}")
        );
    }
}

#[test]
fn two_lengths_get_one_answer_and_then_the_end() {
    let w = World::new();
    for lengths in [
        "content-length: 4\r\ntransfer-encoding: chunked\r\n",
        "transfer-encoding: chunked\r\ncontent-length: 4\r\n",
    ] {
        let mut client = w.connect();
        let smuggled = client.head("DELETE", "/jobs/1", &[], None);
        let head = client
            .head("POST", "/jobs", &[JSON], None)
            .trim_end()
            .to_owned();
        client.send(format!("{head}\r\n{lengths}\r\n0\r\n\r\n{smuggled}").as_bytes());
        let answer = client.answer(false);
        assert_eq!(
            (answer.status, answer.code()),
            (400, "malformed_json".into())
        );
        assert!(client.is_closed());
    }
    assert!(
        w.fake().notes.is_empty(),
        "the smuggled request was not carried out"
    );
}

#[test]
fn slow_clients_are_shown_the_door() {
    let w = World::with(|config| {
        config.limits.http_header_timeout = Duration::from_millis(200);
        config.limits.http_body_timeout = Duration::from_millis(200);
        config.limits.http_idle_timeout = Duration::from_millis(600);
    });
    let mut client = w.connect();
    let head = client.head("POST", "/jobs", &[JSON], Some(100));
    client.send(head.as_bytes());
    client.send(b"{\"handler\"");
    let answer = client.answer(false);
    assert_eq!((answer.status, answer.code()), (408, "body_timeout".into()));
    assert!(client.is_closed());
    let mut client = w.connect();
    client.send(b"GET /jobs HTTP/1.1\r\nhost: local");
    assert!(client.is_closed(), "a head that never ends");
    let mut client = w.connect();
    assert_eq!(client.ask("GET", "/healthz", &[], b"").status, 200);
    assert!(client.is_closed(), "an idle connection");
}

#[test]
fn a_connection_too_many_is_told_so() {
    let w = World::with(|config| config.limits.http_connections_max = 2);
    let mut held = [w.connect(), w.connect()];
    for client in &mut held {
        assert_eq!(client.ask("GET", "/healthz", &[], b"").status, 200);
    }
    let mut third = w.connect();
    let answer = third.answer(false);
    assert_eq!(
        (answer.status, answer.code()),
        (503, "too_many_connections".into())
    );
    assert!(answer.header("retry-after").is_some());
    assert!(third.is_closed());
    assert_eq!(held[0].ask("GET", "/healthz", &[], b"").status, 200);
}

#[test]
fn limits_of_a_request_are_met_exactly() {
    const JOB: &str = r#"{"handler":"a"}"#;
    let w = World::with(|config| {
        config.limits.body_bytes_max = 200;
        config.limits.batch_jobs_max = 3;
    });
    let padded = |bytes: usize| format!("{JOB}{}", " ".repeat(bytes - JOB.len()));
    assert_eq!(w.post(&padded(200)).status, 201);
    let answer = w.post(&padded(201));
    assert_eq!((answer.status, &*answer.code()), (413, "body_too_large"));
    let batch = |jobs: usize| format!("[{}]", vec![JOB; jobs].join(","));
    assert_eq!(w.post(&batch(3)).status, 201);
    let answer = w.post(&batch(4));
    assert_eq!((answer.status, &*answer.code()), (413, "batch_too_large"));
}

#[test]
fn what_the_writer_refuses_is_told_with_a_time_to_come_back() {
    let w = World::new();
    for (error, status, code) in [
        (
            SubmitError::Busy {
                limit: "live_jobs_max",
            },
            429,
            "too_many_jobs",
        ),
        (
            SubmitError::Busy {
                limit: "intake_bytes_max",
            },
            503,
            "intake_full",
        ),
        (SubmitError::Stopping, 503, "stopping"),
    ] {
        w.fake().refuse = Some(error);
        let answer = w.post(ECHO);
        assert_eq!((answer.status, &*answer.code()), (status, code));
        assert!(answer.header("retry-after").is_some());
    }
    w.health.set_stopping();
    assert_eq!(w.post(ECHO).code(), "stopping");
    let ready = w.ask("GET", "/readyz");
    assert_eq!((ready.status, ready.code()), (503, "not_ready".into()));
    assert_eq!(w.ask("GET", "/healthz").status, 200);
}

#[test]
fn a_cancel_is_answered_by_what_became_of_the_job() {
    let w = World::new();
    w.post(&format!("[{}]", [ECHO; 8].join(",")));
    {
        let mut fake = w.fake();
        fake.cancels.insert(1, CancelAnswer::Cancelled);
        fake.cancels.insert(2, CancelAnswer::Cancelling);
        fake.set_live(2, JobState::Cancelling).worker = Some("w-9".into());
        fake.cancels.insert(
            3,
            CancelAnswer::Finished {
                state: JobState::Succeeded,
            },
        );
        fake.cancels.insert(
            4,
            CancelAnswer::Finished {
                state: JobState::Cancelled,
            },
        );
        fake.end(5, JobState::Failed, Reason::ExitCode);
        fake.end(6, JobState::Cancelled, Reason::CancelledByUser);
        fake.records.remove(&7);
        fake.purge_mark = 7;
    }
    for (id, status, what) in [
        (1, 200, "cancelled"),
        (2, 202, "cancelling"),
        (3, 409, "job_finished"),
        (4, 200, "cancelled"),
        (5, 409, "job_finished"),
        (6, 200, "cancelled"),
        (7, 410, "job_purged"),
        (8, 503, "no_answer"),
        (99, 404, "job_not_found"),
    ] {
        let answer = w.ask("DELETE", &format!("/jobs/{id}"));
        assert_eq!(answer.status, status, "job {id}: {}", answer.text());
        let json = answer.json();
        let told = if status < 300 {
            &json["state"]
        } else {
            &json["code"]
        };
        assert_eq!(told, what, "job {id}");
    }
    let away = w.ask("DELETE", "/jobs/2").json();
    assert_eq!(
        (&away["worker"], &away["worker_connected"]),
        (&"w-9".into(), &false.into())
    );
    w.ask("DELETE", "/jobs/1?force=1&reason=too%20slow");
    assert_eq!(
        w.fake().notes.last().unwrap(),
        &(1, true, Some("too slow".into()))
    );
    let long = format!("/jobs/1?reason={}", "x".repeat(1_025));
    assert_eq!(w.ask("DELETE", &long).status, 400);
}

#[test]
fn a_purge_keeps_the_end_and_nothing_else() {
    let w = World::new();
    w.post(&format!("[{ECHO},{ECHO}]"));
    w.fake().end(1, JobState::Succeeded, Reason::None);
    w.fake().print(1, 1, Stream::Stdout, 0, b"x");
    assert_eq!(
        w.ask("DELETE", "/jobs/2?purge=1").code(),
        "job_not_finished"
    );
    assert_eq!(
        w.ask("DELETE", "/jobs/1?purge=1&force=1").code(),
        "bad_parameter"
    );
    assert_eq!(w.ask("DELETE", "/jobs/1?purge=1").status, 204);
    assert!(w.fake().output.is_empty());
    let view = w.ask("GET", "/jobs/1").json();
    assert_eq!(
        (&view["state"], &view["purged"]),
        (&"succeeded".into(), &true.into())
    );
    assert_eq!(w.ask("GET", "/jobs/1/logs").code(), "body_purged");
    assert_eq!(w.ask("POST", "/jobs/1/retry").code(), "body_purged");
    assert_eq!(w.ask("DELETE", "/jobs/1?purge=1").status, 204);
}

#[test]
fn a_retry_is_a_copy_with_a_new_id() {
    let w = World::new();
    w.post(r#"{"command":["x","y"],"queue":"q","name":"n","deadline_ms":500,"labels":{"k":"v"}}"#);
    assert_eq!(w.ask("POST", "/jobs/1/retry").code(), "job_not_finished");
    w.fake().end(1, JobState::Failed, Reason::ExitCode);
    let mut client = w.connect();
    let key = ("idempotency-key", "again");
    let answer = client.ask("POST", "/jobs/1/retry", &[key], b"");
    assert_eq!(
        (answer.status, answer.header("location")),
        (201, Some("/jobs/2"))
    );
    assert_eq!(
        (&answer.json()["retry_of"], &answer.json()["queue"]),
        (&1.into(), &"q".into())
    );
    let replay = client.ask("POST", "/jobs/1/retry", &[key], b"");
    assert_eq!(
        (replay.body.clone(), replay.header("idempotent-replayed")),
        (answer.body, Some("true"))
    );
    let view = w.ask("GET", "/jobs/2").json();
    assert_eq!(
        (&view["name"], &view["labels"]["k"], &view["retry_of"]),
        (&"n".into(), &"v".into(), &1.into())
    );
    assert_eq!(view["deadline_at"], "1970-01-01T00:00:01.500Z");
    assert_eq!(
        client.ask("POST", "/jobs/1/retry", &[JSON], b"{}").code(),
        "body_not_wanted"
    );
}

#[test]
fn a_view_joins_record_and_live_part() {
    let w = World::new();
    w.post(r#"{"command":["x"],"env":{"SECRET":"hunter2"},"stdin":"abc"}"#);
    let status = w.fake().set_live(1, JobState::Running).clone();
    let live = Live {
        pid: 42,
        started: true,
        ..Live::default()
    };
    w.fake().live.get_mut(&1).unwrap().live = Some(LiveStatus::Seen {
        probed_us: 400,
        live: Box::new(live),
    });
    let answer = w.ask("GET", "/jobs/1");
    let view = answer.json();
    assert_eq!(
        (&view["state"], &view["worker"]),
        (&"running".into(), &"w-1".into())
    );
    assert_eq!(
        (&view["live"]["seen"], &view["live"]["pid"]),
        (&"yes".into(), &42.into())
    );
    assert_eq!(view["live"]["probed_ms"], 0.4);
    assert_eq!(
        (&view["env"], &view["stdin_bytes"]),
        (&serde_json::json!(["SECRET"]), &3.into())
    );
    assert!(!answer.text().contains("hunter2"));
    assert!(
        !w.ask("GET", "/jobs/1?live=0")
            .json()
            .as_object()
            .unwrap()
            .contains_key("live")
    );
    w.fake().live.insert(
        1,
        hostler_server::dispatch::JobStatus {
            live: Some(LiveStatus::Unseen {
                why: "timeout",
                waited_ms: 250,
                last_heard_ms: 4_100,
            }),
            ..status
        },
    );
    let live = w.ask("GET", "/jobs/1").json()["live"].clone();
    assert_eq!(
        live,
        serde_json::json!({"seen":"no","why":"timeout","waited_ms":250,"last_heard_ms":4100})
    );
    w.fake().end(1, JobState::Failed, Reason::ExitCode).detail = Some(Box::new(Detail {
        exit_code: Some(3),
        stderr_tail: b"oh no".to_vec(),
        result: b"{not json".to_vec(),
        ..Detail::default()
    }));
    let view = w.ask("GET", "/jobs/1").json();
    assert_eq!(
        (&view["state"], &view["reason"], &view["exit_code"]),
        (&"failed".into(), &"exit_code".into(), &3.into())
    );
    assert_eq!(
        (&view["failures"], &view["stderr_tail"], &view["result"]),
        (&1.into(), &"oh no".into(), &"{not json".into())
    );
    assert_eq!(view["attempts"][0]["number"], 1);
    assert_eq!(view["finished_at"], "1970-01-01T00:00:03.000Z");
}

#[test]
fn an_unchanged_view_is_not_sent_again() {
    let w = World::new();
    w.post(ECHO);
    let mut client = w.connect();
    let tag = client
        .ask("GET", "/jobs/1", &[], b"")
        .header("etag")
        .unwrap()
        .to_owned();
    let same = client.ask("GET", "/jobs/1", &[("if-none-match", &tag)], b"");
    assert_eq!((same.status, same.header("etag")), (304, Some(&*tag)));
    w.fake().end(1, JobState::Succeeded, Reason::None);
    assert_eq!(
        client
            .ask("GET", "/jobs/1", &[("if-none-match", &tag)], b"")
            .status,
        200
    );
}

#[test]
fn a_wait_ends_with_the_job_or_its_time() {
    let w = World::new();
    w.post(ECHO);
    w.fake().set_live(1, JobState::Queued);
    assert_eq!(w.ask("GET", "/jobs/1?wait=50ms").json()["state"], "queued");
    let mut client = w.connect();
    let head = client.head("GET", "/jobs/1?wait=30s", &[], None);
    client.send(head.as_bytes());
    w.fake().end(1, JobState::Succeeded, Reason::None);
    assert_eq!(client.answer(false).json()["state"], "succeeded");
    assert_eq!(
        w.ask("GET", "/jobs/1?wait=30s").json()["state"],
        "succeeded"
    );
    assert_eq!(w.ask("GET", "/jobs/7?wait=30s").status, 404);
}

#[test]
fn a_list_joins_engine_and_store_page_by_page() {
    let w = World::new();
    w.post(&format!("[{}]", [ECHO; 9].join(",")));
    {
        let mut fake = w.fake();
        for id in [1, 4, 7] {
            fake.end(id, JobState::Failed, Reason::ExitCode);
        }
        for id in [2, 5, 8] {
            fake.set_live(id, JobState::Running);
        }
        // 3, 6 and 9 are in the lanes: only stored.
    }
    let read = |query: &str| {
        let (mut ids, mut states, mut path) = (vec![], vec![], format!("/jobs?{query}"));
        loop {
            let answer = w.ask("GET", &path);
            assert_eq!(answer.status, 200, "{path}: {}", answer.text());
            let json = answer.json();
            for job in json["jobs"].as_array().unwrap() {
                ids.push(job["id"].as_u64().unwrap());
                states.push(job["state"].as_str().unwrap().to_owned());
            }
            match answer.header("link") {
                Some(link) => path = link[1..link.find('>').unwrap()].to_owned(),
                None => {
                    assert!(json["next_cursor"].is_null());
                    return (ids, states);
                }
            }
        }
    };
    let (ids, states) = read("limit=2");
    assert_eq!(ids, [9, 8, 7, 6, 5, 4, 3, 2, 1]);
    assert_eq!(states[..3], ["queued", "running", "failed"]);
    assert_eq!(read("order=asc&limit=4").0, [1, 2, 3, 4, 5, 6, 7, 8, 9]);
    assert_eq!(read("state=failed&limit=1").0, [7, 4, 1]);
    assert_eq!(read("state=running&limit=2").0, [8, 5, 2]);
    for limit in 1..8 {
        assert_eq!(
            read(&format!("state=running,failed&limit={limit}")).0,
            [8, 7, 5, 4, 2, 1],
            "{limit}"
        );
    }
    assert_eq!(
        read("state=failed,running&order=asc&limit=4").0,
        [1, 2, 4, 5, 7, 8]
    );
    assert_eq!(read("state=running&name=nobody").0, [0; 0]);
}

#[test]
fn output_is_the_very_bytes_in_text_with_ranges_and_tails() {
    let w = World::new();
    w.post(r#"{"command":["x"]}"#);
    let bytes: Vec<u8> = (0..200_000_u32)
        .map(|n| {
            if n % 100 == 99 {
                b'\n'
            } else {
                n.to_le_bytes()[0] | 0x80
            }
        })
        .collect();
    {
        let mut fake = w.fake();
        for piece in bytes.chunks(30_000) {
            fake.print(1, 1, Stream::Stdout, 1_000, piece);
        }
        fake.print(1, 1, Stream::Stderr, 9_000, b"one\ntwo\nthree");
        fake.end_output(1, 1);
        fake.end(1, JobState::Succeeded, Reason::None);
    }
    let mut client = w.connect();
    let mut ask = |query: &str, headers: &[(&str, &str)]| {
        client.ask("GET", &format!("/jobs/1/logs?{query}"), headers, b"")
    };
    let answer = ask("stream=stdout", &[]);
    assert_eq!((answer.status, answer.body == bytes), (200, true));
    assert_eq!(answer.header("x-log-truncated-bytes"), Some("0"));
    assert_eq!(answer.header("content-length"), Some("200000"));
    assert_eq!(ask("", &[]).body.len(), bytes.len() + 13);
    assert_eq!(ask("stream=stderr&tail=2", &[]).text(), "two\nthree");
    assert_eq!(ask("stream=stderr&tail=9", &[]).text(), "one\ntwo\nthree");
    assert_eq!(ask("stream=stderr&tail=0", &[]).text(), "");
    assert_eq!(ask("stream=stdout&tail=3", &[]).body, bytes[199_700..]);
    assert_eq!(ask("stream=stdout&tail=1500", &[]).body, bytes[50_000..]);
    assert_eq!(
        ask("since=1970-01-01T00:00:05Z", &[]).text(),
        "one\ntwo\nthree"
    );
    let part = ask("stream=stdout", &[("range", "bytes=70000-139999")]);
    assert_eq!(
        (part.status, part.header("content-range")),
        (206, Some("bytes 70000-139999/200000"))
    );
    assert_eq!(part.body, bytes[70_000..140_000]);
    let outside = ask("stream=stdout", &[("range", "bytes=200000-")]);
    assert_eq!(
        (outside.status, outside.header("content-range")),
        (416, Some("bytes */200000"))
    );
    assert_eq!(ask("attempt=2", &[]).code(), "attempt_not_found");
    assert_eq!(ask("", &[("accept", "image/png")]).code(), "not_acceptable");
    let head = w.ask("HEAD", "/jobs/1/logs?stream=stdout");
    assert_eq!(
        (head.status, head.header("content-length")),
        (200, Some("200000"))
    );
}

#[test]
fn cut_output_says_how_much_is_gone() {
    let w = World::new();
    w.post(r#"{"command":["x"]}"#);
    w.fake().print(1, 1, Stream::Stdout, 0, b"head tail");
    w.fake().output.get_mut(&(1, 1)).unwrap().cut = 77;
    w.fake().end_output(1, 1);
    w.fake().end(1, JobState::Succeeded, Reason::None);
    let answer = w.ask("GET", "/jobs/1/logs");
    assert_eq!(
        (answer.header("x-log-truncated-bytes"), answer.text()),
        (Some("77"), "head tail")
    );
}

#[test]
fn missing_output_is_waited_for_and_then_said_to_be_missing() {
    let w = World::new();
    w.post(&"[_,_]".replace('_', r#"{"command":["x"]}"#));
    for id in [1, 2] {
        let mut fake = w.fake();
        fake.print(id, 1, Stream::Stdout, 0, b"abc");
        fake.end(id, JobState::Succeeded, Reason::None).detail = Some(Box::new(Detail {
            usage: Some(Usage {
                stdout_bytes: 6,
                ..Usage::default()
            }),
            ..Detail::default()
        }));
    }
    let mut client = w.connect();
    let head = client.head("GET", "/jobs/1/logs", &[], None);
    client.send(head.as_bytes());
    w.eventually(world::Fake::awaits_output);
    w.fake().print(1, 1, Stream::Stdout, 0, b"def");
    let answer = client.answer(false);
    assert_eq!(
        (answer.text(), answer.header("x-log-incomplete-bytes")),
        ("abcdef", None)
    );
    let answer = w.ask("GET", "/jobs/2/logs");
    assert_eq!(
        (answer.text(), answer.header("x-log-incomplete-bytes")),
        ("abc", Some("3"))
    );
}

#[test]
fn lines_and_events_carry_place_time_and_stream() {
    let w = World::new();
    w.post(r#"{"command":["x"]}"#);
    {
        let mut fake = w.fake();
        fake.print(1, 1, Stream::Stdout, 5, b"hello\n");
        fake.print(1, 1, Stream::Stderr, 6, b"\xff\x00");
        fake.end_output(1, 1);
        fake.end(1, JobState::Failed, Reason::ExitCode).detail = Some(Box::new(Detail {
            exit_code: Some(2),
            ..Detail::default()
        }));
    }
    let mut client = w.connect();
    let lines = client.ask(
        "GET",
        "/jobs/1/logs",
        &[("accept", "application/x-ndjson")],
        b"",
    );
    let lines: Vec<serde_json::Value> = lines
        .text()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(
        lines,
        [
            serde_json::json!({"t":"1970-01-01T00:00:00.005Z","stream":"stdout","attempt":1,"offset":0,"data":"hello\n"}),
            serde_json::json!({"t":"1970-01-01T00:00:00.006Z","stream":"stderr","attempt":1,"offset":0,"data_b64":"/wA="}),
        ]
    );
    let sse = ("accept", "text/event-stream");
    let events = client.ask("GET", "/jobs/1/logs", &[sse], b"");
    assert_eq!(events.header("content-type"), Some("text/event-stream"));
    let events = events.text();
    assert!(events.starts_with("id: 1.6\ndata: {"), "{events}");
    assert!(events.contains("\n\nid: 1.8\ndata: {"), "{events}");
    let end = events.split("event: end\ndata: ").nth(1).unwrap();
    let end: serde_json::Value = serde_json::from_str(end.trim()).unwrap();
    assert_eq!(
        (&end["state"], &end["exit_code"]),
        (&"failed".into(), &2.into())
    );
    let rest = client.ask("GET", "/jobs/1/logs", &[sse, ("last-event-id", "1.6")], b"");
    assert!(rest.text().starts_with("id: 1.8\n"), "{}", rest.text());
    let one = client.ask(
        "GET",
        "/jobs/1/logs?attempt=1",
        &[sse, ("last-event-id", "6")],
        b"",
    );
    assert!(one.text().starts_with("id: 8\n"), "{}", one.text());
    let bad = client.ask("GET", "/jobs/1/logs", &[sse, ("last-event-id", "x")], b"");
    assert_eq!(bad.code(), "bad_header");
}

#[test]
fn a_follower_sees_every_attempt_and_the_end() {
    let w = World::new();
    w.post(r#"{"command":["x"]}"#);
    w.fake().set_live(1, JobState::Running);
    let mut client = w.connect();
    let head = client.head(
        "GET",
        "/jobs/1/logs?follow=1",
        &[("accept", "application/x-ndjson")],
        None,
    );
    client.send(head.as_bytes());
    let mut seen = String::new();
    let step = |change: &dyn Fn(&mut world::Fake)| change(&mut w.fake());
    step(&|fake| fake.print(1, 1, Stream::Stdout, 0, b"first"));
    assert_eq!(client.streaming_head(), 200);
    seen.push_str(&String::from_utf8(client.chunk().unwrap()).unwrap());
    assert!(
        seen.contains("\"attempt\":1") && seen.contains("first"),
        "{seen}"
    );
    step(&|fake| {
        fake.print(1, 1, Stream::Stdout, 0, b"more");
        fake.end_output(1, 1);
    });
    step(&|fake| fake.print(1, 2, Stream::Stdout, 0, b"second"));
    step(&|fake| {
        fake.end_output(1, 2);
        fake.end(1, JobState::Failed, Reason::ExitCode).number = 2;
    });
    while let Some(piece) = client.chunk() {
        seen.push_str(&String::from_utf8(piece).unwrap());
    }
    assert!(
        seen.contains("more") && seen.contains("\"attempt\":2"),
        "{seen}"
    );
    let last = seen.lines().last().unwrap();
    assert!(
        last.starts_with("{\"end\":") && last.contains("\"failed\""),
        "{last}"
    );
}

#[test]
fn a_follower_that_leaves_or_a_server_that_stops_ends_a_stream() {
    let mut w = World::new();
    w.post(r#"{"command":["x"]}"#);
    w.fake().set_live(1, JobState::Running);
    w.fake().print(1, 1, Stream::Stdout, 0, b"first");
    let mut client = w.connect();
    let head = client.head("GET", "/jobs/1/logs?follow=1", &[], None);
    client.send(head.as_bytes());
    assert_eq!(client.streaming_head(), 200);
    assert_eq!(client.chunk().unwrap(), b"first");
    w.health.set_stopping();
    w.stop(Duration::from_secs(5));
    assert!(
        client.is_closed(),
        "broken off, not ended as if it were whole"
    );
    w.join();
}

#[test]
fn a_reader_that_does_not_read_costs_a_page_and_not_the_output() {
    let w = World::new();
    w.post(r#"{"command":["x"]}"#);
    {
        let mut fake = w.fake();
        let piece = vec![b'x'; 60_000];
        for _ in 0..1_000 {
            fake.print(1, 1, Stream::Stdout, 0, &piece);
        }
        fake.end_output(1, 1);
        fake.end(1, JobState::Succeeded, Reason::None);
    }
    let mut slow = w.connect();
    let head = slow.head("GET", "/jobs/1/logs", &[], None);
    slow.send(head.as_bytes());
    for _ in 0..50 {
        assert_eq!(w.ask("GET", "/jobs/1").status, 200);
    }
    let answer = slow.answer(false);
    assert_eq!(answer.body.len(), 60_000_000);
}

#[test]
fn a_stop_lets_what_is_in_flight_finish() {
    let mut w = World::new();
    w.post(ECHO);
    w.fake().set_live(1, JobState::Queued);
    let mut waiting = w.connect();
    let head = waiting.head("GET", "/jobs/1?wait=5s", &[], None);
    waiting.send(head.as_bytes());
    let mut idle = w.connect();
    assert_eq!(idle.ask("GET", "/healthz", &[], b"").status, 200);
    w.stop(Duration::from_secs(5));
    assert!(idle.is_closed());
    w.fake().end(1, JobState::Succeeded, Reason::None);
    let answer = waiting.answer(false);
    assert_eq!(
        (answer.status, &answer.json()["state"]),
        (200, &"succeeded".into())
    );
    assert!(waiting.is_closed());
    w.join();
}
