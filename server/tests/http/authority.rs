//! Who may do what: roles, scopes, rates, what is noted of it, and what pages of other sites can do (nothing).

use hostler_engine::effect::CancelAnswer;
use hostler_server::auth::{Role, TokenChange, TokenRecord};
use hostler_server::store::seam::{AuditEntry, StoreError, StoreErrorKind};
use hostler_wire::{Allow, JobState, Reason};
use serde_json::{Value, json};

use crate::world::{Answer, World};
use crate::{ECHO, JSON};

impl World {
    /// A token of that role, as an `Authorization` header.
    fn bearer(&self, role: Role, change: impl FnOnce(&mut TokenRecord)) -> (String, String) {
        let token = self.auth.make(role).unwrap();
        let mut record = TokenRecord::new(&token, role);
        change(&mut record);
        self.auth.add(record);
        (token.id.clone(), format!("Bearer {token}"))
    }

    fn ask_as(&self, bearer: &str, method: &str, path: &str, body: &str) -> Answer {
        let headers = [("authorization", bearer), JSON];
        let headers = if body.is_empty() {
            &headers[..1]
        } else {
            &headers[..]
        };
        self.connect().ask(method, path, headers, body.as_bytes())
    }

    /// A job in each of two queues: 1 in `ours`, 2 in `theirs`.
    fn two_queues() -> Self {
        let w = Self::new();
        for queue in ["ours", "theirs"] {
            let job = format!(r#"{{"command":["true"],"queue":"{queue}"}}"#);
            assert_eq!(w.post(&job).status, 201);
        }
        w
    }
}

fn ours(record: &mut TokenRecord) {
    record.queues = vec!["ours".into()];
}

fn ids(answer: &Answer) -> Vec<u64> {
    let jobs = answer.json()["jobs"].as_array().unwrap().clone();
    jobs.iter().map(|job| job["id"].as_u64().unwrap()).collect()
}

#[test]
fn each_role_may_do_its_own_and_is_told_what_is_missing() {
    let w = World::new();
    w.post(ECHO);
    w.fake().end(1, JobState::Succeeded, Reason::None);
    w.fake().cancels.insert(
        1,
        CancelAnswer::Finished {
            state: JobState::Succeeded,
        },
    );
    let requests = [
        ("GET", "/jobs", "", "read"),
        ("GET", "/jobs/1", "", "read"),
        ("GET", "/queues", "", "read"),
        ("GET", "/workers", "", "read"),
        ("GET", "/stats", "", "read"),
        ("POST", "/jobs", ECHO, "submit"),
        ("POST", "/jobs/1/retry", "", "submit"),
        ("DELETE", "/jobs/1", "", "submit"),
        ("DELETE", "/jobs/1?purge=1", "", "admin"),
        ("GET", "/tokens", "", "admin"),
        ("POST", "/tokens", r#"{"role":"read"}"#, "admin"),
        ("DELETE", "/tokens/aaaaaaaa", "", "admin"),
        ("GET", "/audit", "", "admin"),
    ];
    for (role, rights) in [
        (Role::Worker, &[][..]),
        (Role::Read, &["read"][..]),
        (Role::Submit, &["read", "submit"][..]),
        (Role::Admin, &["read", "submit", "admin"][..]),
    ] {
        let (_, bearer) = w.bearer(role, |_| {});
        for (method, path, body, needs) in requests {
            let answer = w.ask_as(&bearer, method, path, body);
            let may = rights.contains(&needs);
            assert_eq!(answer.status != 403, may, "{role:?} {method} {path}");
            if !may {
                assert_eq!(answer.code(), "role_missing");
                let detail = answer.json()["detail"].to_string();
                let named = role == Role::Worker || detail.contains(needs);
                assert!(named, "{detail}");
            }
        }
    }
}

#[test]
fn a_scoped_token_sees_and_touches_the_jobs_of_its_queues_only() {
    let w = World::two_queues();
    w.fake().set_live(1, JobState::Queued).queue = "ours".into();
    w.fake().set_live(2, JobState::Queued).queue = "theirs".into();
    let (_, bearer) = w.bearer(Role::Submit, ours);
    let ask = |method: &str, path: &str| w.ask_as(&bearer, method, path, "");
    assert_eq!(ids(&ask("GET", "/jobs")), [1]);
    assert_eq!(ids(&ask("GET", "/jobs?state=queued")), [1]);
    assert_eq!(ids(&ask("GET", "/jobs?queue=ours")), [1]);
    let refused = ask("GET", "/jobs?queue=theirs");
    assert_eq!(
        (refused.status, &*refused.code()),
        (403, "queue_not_allowed")
    );
    assert_eq!(ask("GET", "/jobs/1").status, 200);
    // Another queue's job and one that never was cannot be told apart.
    let never = ask("GET", "/jobs/99").json()["detail"].to_string();
    for (method, path) in [
        ("GET", "/jobs/2"),
        ("GET", "/jobs/2?wait=5s"),
        ("GET", "/jobs/2/logs"),
        ("GET", "/jobs/2/logs?follow=1"),
        ("DELETE", "/jobs/2"),
        ("POST", "/jobs/2/retry"),
    ] {
        let answer = ask(method, path);
        assert_eq!(
            (answer.status, &*answer.code()),
            (404, "job_not_found"),
            "{path}"
        );
        let detail = answer.json()["detail"].to_string();
        assert_eq!(detail.replace('2', "99"), never);
    }
    assert!(
        w.fake().notes.is_empty(),
        "nothing of it reached the scheduler"
    );
    w.fake().cancels.insert(1, CancelAnswer::Cancelled);
    assert_eq!(ask("DELETE", "/jobs/1").status, 200);
}

#[test]
fn a_scoped_token_submits_to_its_queues_only_and_sees_no_figures_of_others() {
    let w = World::two_queues();
    let (_, bearer) = w.bearer(Role::Submit, ours);
    let post = |body: &str| w.ask_as(&bearer, "POST", "/jobs", body);
    assert_eq!(post(r#"{"command":["true"],"queue":"ours"}"#).status, 201);
    for (body, pointer) in [
        (r#"{"command":["true"]}"#, "/queue"),
        (
            r#"[{"command":["x"],"queue":"ours"},{"command":["x"],"queue":"theirs"}]"#,
            "/1/queue",
        ),
    ] {
        let answer = post(body);
        assert_eq!((answer.status, &*answer.code()), (403, "queue_not_allowed"));
        assert_eq!(answer.json()["errors"][0]["pointer"], pointer);
    }
    assert_eq!(w.fake().submissions, 3);
    assert_eq!(
        w.ask_as(&bearer, "GET", "/stats", "").code(),
        "queue_not_allowed"
    );
    // The one worker there is serves `default`.
    let workers = w.ask_as(&bearer, "GET", "/workers", "").json();
    assert_eq!(workers["workers"], json!([]));
}

#[test]
fn types_of_job_are_checked_against_the_servers_policy_and_the_tokens() {
    let w = World::with(|config| {
        config.allow = Allow::of_words(["command", "handler:echo", "handler:img.*"]).unwrap();
    });
    let (_, images) = w.bearer(Role::Submit, |record| {
        record.allow = Allow::of_words(["handler:img.*", "handler:other"]).unwrap();
    });
    let (_, any) = w.bearer(Role::Submit, |_| {});
    let handler = |name: &str| format!(r#"{{"handler":"{name}"}}"#);
    for (bearer, body, pointer) in [
        (&any, ECHO.to_owned(), None),
        (&any, handler("img.crop"), None),
        (&any, r#"{"command":["true"]}"#.into(), None),
        (&any, handler("noop"), Some("/handler")),
        (&any, handler("other"), Some("/handler")),
        (&images, handler("img.crop"), None),
        (&images, ECHO.to_owned(), Some("/handler")),
        // Allowed by the token, and not by the server.
        (&images, handler("other"), Some("/handler")),
        (&images, r#"{"command":["true"]}"#.into(), Some("/command")),
    ] {
        let answer = w.ask_as(bearer, "POST", "/jobs", &body);
        match pointer {
            None => assert_eq!(answer.status, 201, "{body}: {}", answer.text()),
            Some(pointer) => {
                assert_eq!(
                    (answer.status, &*answer.code()),
                    (403, "job_type_not_allowed"),
                    "{body}"
                );
                assert_eq!(answer.json()["errors"][0]["pointer"], pointer);
            }
        }
    }
    // A copy is held to the policy of the one who asks for it.
    w.fake().end(1, JobState::Succeeded, Reason::None);
    let answer = w.ask_as(&images, "POST", "/jobs/1/retry", "");
    assert_eq!(
        (answer.status, &*answer.code()),
        (403, "job_type_not_allowed")
    );
    assert_eq!(w.ask_as(&any, "POST", "/jobs/1/retry", "").status, 201);
}

#[test]
fn a_token_is_made_over_http_its_secret_told_once_and_revoked_at_once() {
    let w = World::new();
    let wish =
        r#"{"role":"submit","name":"ci","queues":["ours"],"allow":["command"],"expires_ms":60000}"#;
    let headers = [JSON];
    let made = w
        .connect()
        .ask("POST", "/tokens", &headers, wish.as_bytes());
    assert_eq!(made.status, 201, "{}", made.text());
    let token = made.json();
    let id = token["id"].as_str().unwrap().to_owned();
    assert_eq!(made.header("location"), Some(&*format!("/tokens/{id}")));
    let secret = token["secret"].as_str().unwrap().to_owned();
    let bearer = format!("Bearer {secret}");
    assert_eq!(
        (&token["queues"], &token["allow"], &token["state"]),
        (&json!(["ours"]), &json!(["command"]), &json!("active"))
    );
    assert_eq!(w.ask_as(&bearer, "GET", "/jobs", "").status, 200);
    let list = w.ask("GET", "/tokens");
    assert!(!list.text().contains(&secret) && list.text().contains(&id));
    let record = match &w.fake().tokens[0] {
        TokenChange::New(record) => format!("{record:?}"),
        other @ (TokenChange::Revoked { .. } | TokenChange::Used { .. }) => panic!("{other:?}"),
    };
    assert!(!record.contains(&secret), "{record}");

    let revoked = w.ask("DELETE", &format!("/tokens/{id}"));
    assert_eq!(
        (revoked.status, &revoked.json()["state"]),
        (200, &json!("revoked"))
    );
    let refused = w.ask_as(&bearer, "GET", "/jobs", "");
    assert_eq!((refused.status, &*refused.code()), (401, "token_expired"));
    assert!(refused.header("www-authenticate").is_some());
    w.eventually(|fake| fake.audit.len() >= 3);
    let told: Vec<_> = w
        .fake()
        .audit
        .iter()
        .map(|entry| entry.action.to_string())
        .collect();
    assert_eq!(told, ["token_create", "token_revoke", "access"]);
    // Twice is as good as once; one that never was is none; the files' are the files'.
    assert_eq!(w.ask("DELETE", &format!("/tokens/{id}")).status, 200);
    for unknown in ["zzzzzzzz", "x", "%2e%2e"] {
        let answer = w.ask("DELETE", &format!("/tokens/{unknown}"));
        assert_eq!(
            (answer.status, &*answer.code()),
            (404, "token_not_found"),
            "{unknown}"
        );
    }
    let admin = w.token.split('_').nth(2).unwrap();
    let answer = w.ask("DELETE", &format!("/tokens/{admin}"));
    assert_eq!((answer.status, &*answer.code()), (409, "token_of_file"));
}

#[test]
fn a_revocation_that_cannot_be_made_durable_holds_all_the_same_and_says_so() {
    let w = World::new();
    let (id, bearer) = w.bearer(Role::Read, |_| {});
    w.fake().refuse_tokens = Some(StoreError {
        kind: StoreErrorKind::Full,
        message: "no space".into(),
    });
    let answer = w.ask("DELETE", &format!("/tokens/{id}"));
    assert_eq!((answer.status, &*answer.code()), (503, "store_unavailable"));
    assert_eq!(w.ask_as(&bearer, "GET", "/jobs", "").status, 401);
    // And one that was not made durable is good for nothing.
    let made = w
        .connect()
        .ask("POST", "/tokens", &[JSON], br#"{"role":"read"}"#);
    assert_eq!(made.status, 503);
    assert_eq!(
        w.ask("GET", "/tokens").json()["tokens"]
            .as_array()
            .unwrap()
            .len(),
        3
    );
}

#[test]
fn a_token_that_makes_no_sense_is_refused_with_its_field() {
    let w = World::new();
    for (body, pointer) in [
        (r#"{"role":"root"}"#, "/role"),
        (r#"{"role":"admin","queues":["a"]}"#, "/role"),
        (r#"{"role":"read","queues":["a b"]}"#, "/queues/0"),
        (r#"{"role":"read","name":""}"#, "/name"),
        (r#"{"role":"read","expires_ms":0}"#, "/expires_ms"),
        (r#"{"role":"read","allow":["all"]}"#, "/allow"),
        (r#"{"role":"read","jobs_per_second":0}"#, "/jobs_per_second"),
    ] {
        let answer = w.connect().ask("POST", "/tokens", &[JSON], body.as_bytes());
        assert_eq!(
            (answer.status, &*answer.code()),
            (422, "invalid_token"),
            "{body}"
        );
        assert_eq!(answer.json()["errors"][0]["pointer"], pointer);
    }
    for (body, code) in [
        ("{", "malformed_json"),
        (r#"{"role":"read","x":1}"#, "invalid_token"),
    ] {
        let answer = w.connect().ask("POST", "/tokens", &[JSON], body.as_bytes());
        assert_eq!(answer.code(), code, "{body}");
    }
    assert!(w.fake().tokens.is_empty());
}

#[test]
fn a_tokens_rate_is_kept_and_says_when_to_come_again() {
    let w = World::new();
    let (_, requests) = w.bearer(Role::Read, |record| record.requests_per_second = Some(2));
    let statuses: Vec<_> = (0..4)
        .map(|_| w.ask_as(&requests, "GET", "/queues", "").status)
        .collect();
    assert_eq!(statuses[..2], [200, 200]);
    let refused = w.ask_as(&requests, "GET", "/queues", "");
    if refused.status == 429 {
        assert_eq!(refused.code(), "rate_limited");
        assert_eq!(refused.header("retry-after"), Some("1"));
    }
    let (_, jobs) = w.bearer(Role::Submit, |record| record.jobs_per_second = Some(2));
    let batch = format!("[{}]", [ECHO; 50].join(","));
    assert_eq!(w.ask_as(&jobs, "POST", "/jobs", &batch).status, 201);
    let refused = w.ask_as(&jobs, "POST", "/jobs", ECHO);
    assert_eq!((refused.status, &*refused.code()), (429, "rate_limited"));
    let seconds: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((20..=25).contains(&seconds), "{seconds}");
    assert_eq!(w.fake().submissions, 1);
    assert!(
        w.auth
            .counts()
            .rate_limited
            .load(std::sync::atomic::Ordering::Relaxed)
            >= 1
    );
}

#[test]
fn a_flood_of_wrong_tokens_is_limited_and_keeps_no_right_one_out() {
    let w = World::new();
    let codes: Vec<_> = (0..40)
        .map(|_| {
            w.ask_as("Bearer hostler_admin_x", "POST", "/jobs", ECHO)
                .code()
        })
        .collect();
    assert_eq!(codes[0], "token_invalid");
    assert_eq!(codes[39], "rate_limited");
    assert_eq!(w.ask("GET", "/jobs").status, 200);
    assert!(w.fake().audit.len() < 25, "not one entry each");
    assert_eq!(w.fake().submissions, 0);
}

#[test]
fn what_changes_something_is_noted_with_who_where_and_outcome() {
    let w = World::two_queues();
    let (id, bearer) = w.bearer(Role::Submit, ours);
    w.fake().cancels.insert(1, CancelAnswer::Cancelled);
    w.ask_as(&bearer, "DELETE", "/jobs/1", "");
    w.ask_as(&bearer, "DELETE", "/jobs/2", "");
    w.ask_as(&bearer, "DELETE", "/jobs/1?purge=1", "");
    w.ask_as(&bearer, "POST", "/jobs", r#"{"command":[],"queue":"ours"}"#);
    w.ask_as(&bearer, "GET", "/jobs", "");
    w.ask_as(&bearer, "GET", "/jobs/77", "");
    w.ask_as(&bearer, "GET", "/audit", "");
    w.ask_as("Bearer x", "GET", "/jobs", "");
    let headers = [("host", "evil.example")];
    w.connect().ask("DELETE", "/jobs/1", &headers, b"");
    w.eventually(|fake| fake.audit.len() >= 7);
    let told: Vec<_> = w.fake().audit.iter().map(row).collect();
    let expected = [
        json!([id, "cancel", "1", 200, ""]),
        json!([id, "cancel", "2", 404, "job_not_found"]),
        json!([id, "purge", "1", 403, "role_missing"]),
        json!([id, "submit", null, 422, "invalid_job"]),
        json!([id, "access", null, 403, "role_missing"]),
        json!(["", "access", null, 401, "token_invalid"]),
        json!(["", "cancel", "1", 403, "host_not_allowed"]),
    ];
    assert_eq!(told, expected);
    assert!(
        w.fake()
            .audit
            .iter()
            .all(|entry| entry.from.unwrap().is_loopback())
    );

    let page = w.ask("GET", "/audit?limit=3").json();
    let actions = page["entries"].as_array().unwrap().clone();
    assert_eq!(
        (actions.len(), &actions[0]["code"]),
        (3, &json!("host_not_allowed"))
    );
    let next = page["next_cursor"].as_str().unwrap();
    let rest = w.ask("GET", &format!("/audit?cursor={next}")).json();
    assert_eq!(rest["entries"].as_array().unwrap().len(), 4);
    assert_eq!(rest["next_cursor"], Value::Null);
}

fn row(entry: &AuditEntry) -> Value {
    json!([
        &*entry.token,
        entry.action,
        entry.object,
        entry.status,
        entry.code
    ])
}

const METHODS: [&str; 8] = [
    "GET", "HEAD", "POST", "DELETE", "PUT", "PATCH", "OPTIONS", "TRACE",
];

/// With tokens, and open as `dev` and `--no-auth` are.
fn both() -> [World; 2] {
    [World::new(), World::with(|config| config.no_auth = true)]
}

#[test]
fn dns_rebinding_gets_nothing_by_any_method_with_tokens_and_without() {
    for w in both() {
        w.post(ECHO);
        let port = w.address.port();
        for method in METHODS {
            // A page of evil.example whose name now means 127.0.0.1: to the browser it is one site.
            let (host, origin) = (
                format!("evil.example:{port}"),
                format!("http://evil.example:{port}"),
            );
            for path in [
                "/jobs",
                "/jobs/1",
                "/jobs/1/retry",
                "/tokens",
                "/tokens/aaaaaaaa",
                "/version",
            ] {
                let headers = [
                    ("host", &*host),
                    ("origin", &*origin),
                    ("sec-fetch-site", "same-origin"),
                    JSON,
                ];
                let answer = w.connect().ask(method, path, &headers, b"");
                assert_eq!(answer.status, 403, "{method} {path}");
                if method != "HEAD" {
                    assert_eq!(answer.code(), "host_not_allowed");
                }
                assert!(answer.header("access-control-allow-origin").is_none());
            }
        }
        let fake = w.fake();
        assert!(fake.submissions == 1 && fake.notes.is_empty() && fake.tokens.is_empty());
    }
}

#[test]
fn a_form_of_another_site_gets_nothing_by_any_method_with_tokens_and_without() {
    for w in both() {
        w.post(ECHO);
        let host = w.address.to_string();
        let forms = [
            "text/plain",
            "application/x-www-form-urlencoded",
            "multipart/form-data; boundary=x",
        ];
        for (method, kind) in METHODS
            .iter()
            .flat_map(|method| forms.map(|kind| (*method, kind)))
        {
            for path in ["/jobs", "/jobs/1", "/jobs/1/retry", "/tokens"] {
                let browser = [
                    ("host", &*host),
                    ("origin", "http://evil.example"),
                    ("sec-fetch-site", "cross-site"),
                    ("content-type", kind),
                ];
                // One that says where it comes from, and an old one that does not.
                let answer = w.connect().ask(method, path, &browser, b"");
                assert_eq!(answer.status, 403, "{method} {path} {kind}");
                let old = [browser[0], browser[3]];
                for body in [&b""[..], br#"{"command":["true"]}"#] {
                    if body.is_empty() && ["GET", "HEAD"].contains(&method) {
                        continue;
                    }
                    if method == "HEAD" {
                        continue;
                    }
                    let answer = w.connect().ask(method, path, &old, body);
                    assert_eq!(answer.status, 415, "{method} {path} {kind}");
                }
            }
        }
        let fake = w.fake();
        assert!(fake.submissions == 1 && fake.notes.is_empty() && fake.tokens.is_empty());
    }
}
