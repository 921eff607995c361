//! What is out of bounds is refused with its place and its bound; nothing is clamped, nothing is ignored, and what was
//! asked properly goes on.

use std::fs;
use std::io::Write as _;
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use hostler_tests::{
    Cluster, PATIENCE, Request, elapsed, eventually, full, now, pause, size, soak,
};
use rustix::process::{Resource, Rlimit, getrlimit, prlimit};
use serde_json::{Value, json};

#[test]
fn every_wrong_field_is_named_with_its_pointer() {
    let mut cluster = Cluster::start();
    let _worker = cluster.worker("w-1", 1);
    let mut client = cluster.client();
    let long = "x".repeat(129);
    let table: Vec<(Value, &str)> = vec![
        // Types.
        (json!({"command": 7}), "/command"),
        (json!({"command": ["a", 7]}), "/command/1"),
        (json!({"command": ["true"], "name": 7}), "/name"),
        (json!({"command": ["true"], "queue": ["a"]}), "/queue"),
        (json!({"command": ["true"], "priority": 1.5}), "/priority"),
        (
            json!({"command": ["true"], "priority": "urgent"}),
            "/priority",
        ),
        (
            json!({"command": ["true"], "timeout_ms": "5s"}),
            "/timeout_ms",
        ),
        (
            json!({"command": ["true"], "timeout_ms": -1}),
            "/timeout_ms",
        ),
        (json!({"command": ["true"], "retry": 3}), "/retry"),
        (
            json!({"command": ["true"], "retry": {"max_attempts": "x"}}),
            "/retry/max_attempts",
        ),
        (
            json!({"command": ["true"], "retry": {"factor": "x"}}),
            "/retry/factor",
        ),
        (
            json!({"command": ["true"], "retry": {"on": [1, true]}}),
            "/retry/on/1",
        ),
        (json!({"command": ["true"], "env": {"A": 1}}), "/env/A"),
        (json!({"command": ["true"], "env": []}), "/env"),
        (json!({"command": ["true"], "cwd": 1}), "/cwd"),
        (json!({"command": ["true"], "stdin": 1}), "/stdin"),
        (
            json!({"command": ["true"], "labels": {"a": null}}),
            "/labels/a",
        ),
        (
            json!({"command": ["true"], "run_at": "tomorrow"}),
            "/run_at",
        ),
        (json!({"command": ["true"], "delay_ms": 1.5}), "/delay_ms"),
        (
            json!({"command": ["true"], "expires_ms": "x"}),
            "/expires_ms",
        ),
        (
            json!({"command": ["true"], "deadline_at": 5}),
            "/deadline_at",
        ),
        (json!({"command": ["true"], "grace_ms": -5}), "/grace_ms"),
        (
            json!({"command": ["true"], "max_losses": "x"}),
            "/max_losses",
        ),
        (
            json!({"command": ["true"], "logs": {"mode": 1}}),
            "/logs/mode",
        ),
        // Ranges.
        (json!({"command": []}), "/command"),
        (json!({"command": ["true"], "priority": 128}), "/priority"),
        (json!({"command": ["true"], "priority": -129}), "/priority"),
        (json!({"command": ["true"], "name": long}), "/name"),
        (json!({"command": ["true"], "queue": long}), "/queue"),
        (json!({"command": ["true"], "queue": ""}), "/queue"),
        (json!({"command": ["true"], "timeout_ms": 0}), "/timeout_ms"),
        (
            json!({"command": ["true"], "retry": {"max_attempts": 0}}),
            "/retry/max_attempts",
        ),
        (
            json!({"command": ["true"], "retry": {"factor": -1.0}}),
            "/retry/factor",
        ),
        (
            json!({"command": ["true"], "retry": {"on": [256]}}),
            "/retry/on/0",
        ),
        (
            json!({"command": ["true"], "retry": {"on": ["9-3"]}}),
            "/retry/on/0",
        ),
        (
            json!({"command": ["true"], "retry": {"never": ["moon"]}}),
            "/retry/never/0",
        ),
        (
            json!({"command": ["true"], "retry": {"later": [0]}}),
            "/retry/later/0",
        ),
        (
            json!({"command": ["true"], "on_partition": "maybe"}),
            "/on_partition",
        ),
        (
            json!({"command": ["true"], "durability": "paper"}),
            "/durability",
        ),
        (json!({"command": ["true"], "logs": "loud"}), "/logs"),
        (
            json!({"command": ["true"], "logs": {"overflow": "burst"}}),
            "/logs/overflow",
        ),
        (json!({"command": ["a\u{0}b"]}), "/command/0"),
        (
            json!({"command": ["true"], "env": {"A=B": "c"}}),
            "/env/A=B",
        ),
        (json!({"command": ["true"], "env": {"": "c"}}), "/env/"),
        // Together they make no sense.
        (json!({}), ""),
        (json!([]), ""),
        (json!({"command": ["true"], "handler": "noop"}), "/handler"),
        (json!({"handler": ""}), "/handler"),
        (json!({"command": ["true"], "payload": 1}), "/payload"),
        (json!({"handler": "noop", "env": {"A": "b"}}), "/env"),
        (
            json!({"command": ["true"], "delay_ms": 1, "run_at": "2026-01-01T00:00:00Z"}),
            "/delay_ms",
        ),
        // Names nobody knows, and those not understood yet: never ignored.
        (json!({"command": ["true"], "retrys": 1}), "/retrys"),
        (
            json!({"command": ["true"], "retry": {"max_atempts": 1}}),
            "/retry/max_atempts",
        ),
        (json!({"command": ["true"], "a/b~c": 1}), "/a~1b~0c"),
        (json!({"command": ["true"], "after": [1]}), "/after"),
        (json!({"command": ["true"], "array": "1-3"}), "/array"),
        (
            json!({"command": ["true"], "unique_key": "k"}),
            "/unique_key",
        ),
        (json!({"command": ["true"], "fair_key": "k"}), "/fair_key"),
        (
            json!({"command": ["true"], "requires": {"cpus": 1}}),
            "/requires",
        ),
        (json!({"command": ["true"], "stall_ms": 0}), "/stall_ms"),
    ];
    let mut wrong = Vec::new();
    for (job, pointer) in table {
        let answer = client.post("/jobs", &job);
        if answer.status == 201 {
            wrong.push(format!("{job} was accepted"));
            continue;
        }
        let problem = answer.problem(answer.status);
        let pointers: Vec<&Value> = problem["errors"]
            .as_array()
            .map(|errors| errors.iter().map(|error| &error["pointer"]).collect())
            .unwrap_or_default();
        let found = pointers.contains(&&json!(pointer)) || pointer.is_empty();
        if !found || !(answer.status == 422 || answer.status == 400) {
            wrong.push(format!(
                "{job}: wanted {pointer}, got {} {problem}",
                answer.status
            ));
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of the table:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    assert_eq!(cluster.database().number("SELECT count(*) FROM job"), 0);
    cluster.prove_healthy();
}

#[test]
fn an_unknown_field_is_told_the_one_that_was_meant() {
    let cluster = Cluster::start();
    let problem = cluster
        .client()
        .post("/jobs", &json!({"command": ["true"], "retrys": 1}))
        .problem(422);
    let detail = problem["errors"][0]["detail"].as_str().unwrap();
    assert!(detail.contains("retry"), "{problem}");
}

#[test]
fn broken_json_is_told_where_it_breaks() {
    let cluster = Cluster::start();
    let mut client = cluster.client();
    for (text, line, column) in [
        ("{\"command\": [\"true\"],\n  \"name\": }", "2", "11"),
        ("{\"command\": [\"true\"]", "1", "20"),
        ("{\"command\": [\"tr\u{1}ue\"]}", "1", "16"),
        ("nonsense", "1", "2"),
    ] {
        let problem = client
            .ask(Request::post("/jobs").bytes("application/json", text))
            .problem(400);
        let said = problem.to_string();
        assert!(
            said.contains(&format!("line {line}")),
            "{text:?}: {problem}"
        );
        assert!(
            said.contains("column"),
            "{text:?}: no column near {column}: {problem}"
        );
    }
    let ndjson = "{\"command\":[\"true\"]}\n{\"command\":\n";
    let request = Request::post("/jobs").bytes("application/x-ndjson", ndjson);
    let problem = client.ask(request).problem(400);
    assert!(problem.to_string().contains('2'), "which line? {problem}");
    let not_utf8 =
        Request::post("/jobs").bytes("application/json", b"{\"name\":\"\xff\"}".to_vec());
    client.ask(not_utf8).problem(400);
    let deep = "[".repeat(100_000);
    client
        .ask(Request::post("/jobs").bytes("application/json", deep))
        .problem(400);
}

#[test]
fn what_is_too_large_is_413_before_it_is_read() {
    let mut cluster = Cluster::start();
    let _worker = cluster.worker("w-1", 1);
    let job = json!({"command": ["true"], "stdin": "x".repeat(9 << 20)});
    cluster.client().post("/jobs", &job).problem(413);

    // A length that is only claimed is refused without waiting for the bytes.
    let start = now();
    let request = Request::post("/jobs")
        .header("Content-Length", "99999999999")
        .bytes("application/json", "{");
    cluster.client().ask(request).problem(413);
    assert!(elapsed(start) < PATIENCE);

    let many = vec![json!({"handler": "noop"}); 10_001];
    let problem = cluster
        .client()
        .post("/jobs", &Value::Array(many))
        .problem(413);
    assert!(
        problem["detail"].as_str().unwrap().contains("10"),
        "which limit? {problem}"
    );
    // One job's body has a bound of its own, below that of a request.
    let job = json!({"command": ["true"], "stdin": "x".repeat(5 << 20)});
    let answer = cluster.client().post("/jobs", &job);
    assert!(
        answer.status == 413 || answer.status == 422,
        "{}",
        answer.status
    );
    answer.problem(answer.status);
    assert_eq!(cluster.database().number("SELECT count(*) FROM job"), 0);
    cluster.prove_healthy();
}

#[test]
fn memory_stays_flat_while_everything_is_refused() {
    let rounds = size(150, 5_000);
    let mut cluster = Cluster::start();
    let mut client = cluster.client();
    let too_large = "x".repeat((8 << 20) + 1);
    let many = format!("[{}]", vec![r#"{"handler":"noop"}"#; 10_001].join(","));
    let refuse_all = |client: &mut hostler_tests::Client, round: usize| {
        let json = |body: &str| Request::post("/jobs").bytes("application/json", body);
        let claimed = json("{").header("Content-Length", (8 << 20 | 1).to_string());
        client.ask(claimed).problem(413);
        client.ask(json(r#"{"command": 7}"#)).problem(422);
        client.ask(json("{")).problem(400);
        client.ask(Request::get("/jobs/999999")).problem(404);
        if round.is_multiple_of(10) {
            client.ask(json(&many)).problem(413);
            client.ask(json(&too_large)).problem(413);
        }
    };
    // What is kept once for all is there after a while.
    for round in 0..50 {
        refuse_all(&mut client, round);
    }
    let before = rss_bytes(&mut cluster);
    let (start, mut refused, mut told) = (now(), 0, Duration::ZERO);
    let length = soak().unwrap_or_default();
    while refused < rounds || elapsed(start) < length {
        refuse_all(&mut client, refused);
        refused += 1;
        if elapsed(start) < length {
            pause(Duration::from_millis(50));
            if elapsed(start) >= told {
                let kib = rss_bytes(&mut cluster) >> 10;
                eprintln!("  {:>6.0?} {} rounds, {kib} KiB", elapsed(start), refused);
                told += length / 20;
            }
        }
    }
    let after = rss_bytes(&mut cluster);
    eprintln!(
        "{} refusals: {} KiB before, {} KiB after",
        refused * 4,
        before >> 10,
        after >> 10
    );
    assert!(
        after < before + (4 << 20),
        "{} KiB more after {refused} rounds of refusals",
        (after - before) >> 10
    );
    assert_eq!(cluster.database().number("SELECT count(*) FROM job"), 0);
}

#[test]
fn paths_methods_and_parameters_nobody_knows_are_problems_too() {
    let cluster = Cluster::start();
    let mut client = cluster.client();
    for (request, status) in [
        (Request::get("/nowhere"), 404),
        (Request::get("/jobs/0"), 404),
        (Request::get("/jobs/abc"), 404),
        (Request::get("/jobs/99999999999999999999"), 404),
        (Request::new("PUT", "/jobs"), 405),
        (Request::new("PATCH", "/jobs/1"), 405),
        (Request::delete("/healthz"), 405),
        (Request::get("/jobs?colour=red"), 400),
        (Request::get("/jobs?limit=0"), 400),
        (Request::get("/jobs?limit=many"), 400),
        (Request::get("/jobs?state=asleep"), 400),
        (Request::get("/jobs?cursor=%00"), 400),
    ] {
        let answer = client.ask(request.clone());
        assert_eq!(answer.status, status, "{request:?}: {}", answer.text());
        answer.problem(status);
    }
    let id = cluster.submit(&json!({"command": ["true"]}));
    client.get(format!("/jobs/{id}?wait=9h")).problem(400);
    client.get(format!("/jobs/{id}?wait=soon")).problem(400);
    client.get(format!("/v1/jobs/{id}")).expect(200);
    let answer = client.ask(Request::get("/nowhere").header("X-Request-Id", "my-own-id"));
    assert_eq!(answer.header("x-request-id"), Some("my-own-id"));
    assert_eq!(answer.json()["request_id"], "my-own-id");
}

#[test]
fn bytes_that_are_no_http_get_one_answer_at_most_and_harm_nobody() {
    let cluster = Cluster::start();
    let client = cluster.client();
    let host = cluster.http_addr();
    let inputs: Vec<Vec<u8>> = vec![
        b"\x00\x01\x02\x03".to_vec(),
        b"GET / HTTP/9.9\r\n\r\n".to_vec(),
        b"GET /healthz HTTP/1.1\r\n\r\n".to_vec(),
        format!("POST /jobs HTTP/1.1\r\nHost: {host}\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /x")
            .into_bytes(),
        format!("POST /jobs HTTP/1.1\r\nHost: {host}\r\nContent-Length: +5\r\n\r\nhello").into_bytes(),
        format!("POST /jobs HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n").into_bytes(),
        format!("GET /{} HTTP/1.1\r\nHost: {host}\r\n\r\n", "a".repeat(200_000)).into_bytes(),
        format!("GET / HTTP/1.1\r\nHost: {host}\r\nX: {}\r\n\r\n", "a".repeat(600_000)).into_bytes(),
        format!("GET / HTTP/1.1\r\nHost: {host}\r\n{}\r\n", "X: y\r\n".repeat(5_000)).into_bytes(),
    ];
    for bytes in inputs {
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(60)]).into_owned();
        // A reset in the middle of our writing is an answer as well.
        let Ok(answer) = client.raw(&bytes) else {
            continue;
        };
        let text = String::from_utf8_lossy(&answer);
        let answers = text
            .lines()
            .filter(|line| line.starts_with("HTTP/1.1 "))
            .count();
        assert!(answers <= 1, "{shown}: {answers} answers: {text}");
        if answers == 1 {
            assert!(text.starts_with("HTTP/1.1 4"), "{shown}: {text}");
        }
    }
    cluster.client().get("/healthz").expect(200);
}

#[test]
fn slow_clients_do_not_keep_others_waiting() {
    let cluster = Cluster::start();
    let slow: Vec<TcpStream> = (0..200)
        .map(|_| {
            let mut stream = TcpStream::connect(cluster.http_addr()).unwrap();
            stream
                .write_all(b"POST /jobs HTTP/1.1\r\nHost: 127.0")
                .unwrap();
            stream
        })
        .collect();
    let start = now();
    let id = cluster.submit(&json!({"command": ["true"]}));
    cluster.job(id);
    assert!(elapsed(start) < PATIENCE / 3, "{:?}", elapsed(start));
    for stream in slow {
        stream.shutdown(Shutdown::Both).ok();
    }
}

#[test]
fn a_server_out_of_descriptors_waits_for_some_and_loses_nothing() {
    let mut cluster = Cluster::start();
    let _worker = cluster.worker("w-1", 2);
    let mut client = cluster.client();
    client.get("/healthz").expect(200); // it has its connection from now on
    let mut accepted = vec![cluster.submit(&json!({"command": "echo before"}))];
    cluster.await_end(accepted[0]);
    let pid = cluster.server().pid();
    let open = fs::read_dir(format!("/proc/{}/fd", pid.as_raw_nonzero())).unwrap();
    let limit = Rlimit {
        current: Some(open.count() as u64 + 8),
        maximum: getrlimit(Resource::Nofile).maximum,
    };
    let before = prlimit(Some(pid), Resource::Nofile, limit).unwrap();

    // More of them than there are descriptors; the others stay in the kernel's line.
    let address = cluster.http_addr();
    let idle: Vec<_> = (0..40)
        .map(|_| TcpStream::connect(address).unwrap())
        .collect();
    for _ in 0..20 {
        let answer = client.post("/jobs", &json!({"command": "echo during"}));
        accepted.push(answer.expect(201).json()["id"].as_u64().unwrap());
    }
    drop(idle);
    eventually(PATIENCE, "a new client is served", || {
        cluster.client().get("/healthz").status == 200
    });
    prlimit(Some(pid), Resource::Nofile, before).unwrap();
    for id in accepted {
        assert_eq!(cluster.await_end(id)["state"], "succeeded");
    }
    cluster.database().check();
}

#[test]
fn a_command_that_cannot_start_says_why() {
    let mut cluster = Cluster::start();
    let _worker = cluster.worker("w-1", 1);
    for (job, word) in [
        (json!({"command": ["/no/such/program"]}), "/no/such/program"),
        (json!({"command": ["/etc/passwd"]}), "/etc/passwd"),
        (
            json!({"command": ["true"], "cwd": "/no/such/place"}),
            "/no/such/place",
        ),
    ] {
        let end = cluster.await_end(cluster.submit(&job));
        assert_eq!(
            (&end["state"], &end["reason"]),
            (&json!("failed"), &json!("spawn_failed")),
            "{end}"
        );
        assert!(end["message"].as_str().unwrap().contains(word), "{end}");
    }
    let end = cluster.await_end(cluster.submit(&json!({"handler": "nobody_has_this"})));
    assert_eq!(
        (&end["state"], &end["reason"]),
        (&json!("failed"), &json!("no_such_handler"))
    );
    cluster.prove_healthy();
}

#[test]
fn a_job_sees_its_own_environment_and_none_of_our_secrets() {
    let mut cluster = Cluster::start();
    let _worker = cluster.worker("w-1", 1);
    let mut job = json!({"command": ["sh", "-c", "env; ls -l /proc/self/fd | wc -l"]});
    job["env"] = json!({"LINES": "one\ntwo", "EMPTY": ""});
    let id = cluster.submit(&job);
    cluster.await_end(id);
    let text = cluster.log(id, "stdout").expect(200).text();
    for line in [
        format!("HOSTLER_JOB_ID={id}"),
        "HOSTLER_ATTEMPT=1".into(),
        "EMPTY=".into(),
    ] {
        assert!(text.lines().any(|it| it == line), "no {line} in {text}");
    }
    assert!(text.contains("LINES=one\ntwo\n"), "{text}");
    let token = fs::read_to_string(cluster.data().join("worker.token")).unwrap();
    assert!(
        !text.contains("TOKEN") && !text.contains(token.trim()),
        "{text}"
    );
    // total, ., 0, 1, 2 and what `ls` opened itself.
    let fds: usize = text.lines().last().unwrap().trim().parse().unwrap();
    assert!(fds <= 6, "{fds} lines: descriptors were inherited");
}

#[test]
fn bodies_that_do_not_fit_into_memory_stay_on_disk_and_run_in_order() {
    let jobs = size(60_000, 1_000_000);
    let patience = if full() { 40 * PATIENCE } else { 4 * PATIENCE };
    let mut cluster = Cluster::start();
    let mut client = cluster.client();
    let payload = "x".repeat(4 << 10);
    let job = json!({"handler": "noop", "payload": payload});
    let mut sent = 0;
    while sent < jobs {
        // As many as one request may hold.
        let count = (jobs - sent).min(1_000);
        client
            .post("/jobs", &Value::Array(vec![job.clone(); count]))
            .expect(201);
        sent += count;
    }
    let rss = rss_bytes(&mut cluster);
    assert!(
        rss < 300 << 20,
        "the server takes {} MiB with {jobs} queued jobs",
        rss >> 20
    );
    eprintln!("{jobs} queued jobs of 4 KiB: RSS {} MiB", rss >> 20);

    // After a restart it is no different.
    cluster.restart_server();
    let rss = rss_bytes(&mut cluster);
    assert!(
        rss < 300 << 20,
        "after a restart the server takes {} MiB",
        rss >> 20
    );

    // These wait behind all of them and must come last, in their order.
    let effects = cluster.effects();
    let last: Vec<u64> = (0..5)
        .map(|_| cluster.submit(&effects.job("true")))
        .collect();
    let _worker = cluster.worker("w-1", 1);
    eventually(patience, "the last jobs have started", || {
        effects.starts().len() == last.len()
    });
    let started: Vec<u64> = effects.starts().iter().map(|start| start.job).collect();
    assert_eq!(started, last);
    let before_last = format!(
        "SELECT count(*) FROM job WHERE id < {} AND state = 'succeeded'",
        last[0]
    );
    let first_ends = || cluster.database().number(&before_last);
    eventually(PATIENCE, "all have ended", || {
        first_ends() == i64::try_from(jobs).unwrap()
    });
    // A start is reckoned back from its report by the time it ran, and both are whole milliseconds: one may be the rounding.
    let out_of_order = "SELECT group_concat(id || ': ' || started_at || ' after ' || before || ', attempt ' || attempt) FROM \
        (SELECT id, attempt, started_at, lag(started_at) OVER (ORDER BY id) AS before FROM job) \
        WHERE started_at < before - 1";
    let started_early = cluster.database().text(out_of_order);
    assert_eq!(started_early, None, "jobs that started before an older one");
    cluster.database().check();
}

fn rss_bytes(cluster: &mut Cluster) -> u64 {
    let pid = cluster.server().pid().as_raw_nonzero();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

#[test]
fn a_full_queue_is_told_with_its_limit_and_stays_full_over_a_kill() {
    let mut cluster = Cluster::with(&["--queue-jobs-max", "3"]);
    let job = |queue: &str| json!({"command": ["true"], "queue": queue});
    let first = cluster.submit(&job("a"));
    cluster
        .client()
        .post("/jobs", &Value::from(vec![job("a"); 2]))
        .expect(201);
    let expect_full = |cluster: &Cluster| {
        let refused = cluster.client().post("/jobs", &job("a"));
        let problem = refused.problem(429);
        assert_eq!(problem["code"], "queue_full");
        let detail = problem["detail"].as_str().unwrap();
        assert!(
            detail.contains("queue a ") && detail.contains(" 3 jobs"),
            "{detail}"
        );
        assert!(refused.header("retry-after").is_some());
    };
    expect_full(&cluster);
    // A batch for two queues is taken whole or not at all.
    let mixed = Value::from(vec![job("b"), job("a")]);
    cluster.client().post("/jobs", &mixed).problem(429);
    cluster.restart_server();
    expect_full(&cluster);
    cluster.submit(&job("b"));
    let end = cluster.hostler(&["cancel", &first.to_string()]);
    end.expect_code(0);
    cluster.submit(&job("a"));
    expect_full(&cluster);
    let told = cluster.hostler(&["submit", "-q", "a", "--", "true"]);
    assert_eq!(told.code, 7, "{}", told.stderr);
    assert_eq!(cluster.database().number("SELECT count(*) FROM job"), 5);
    cluster.database().check();
}
