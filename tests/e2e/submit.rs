//! From submission to end: nothing lost, nothing doubled, everything in its order.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Barrier, Mutex};
use std::thread;
use std::time::Duration;

use hostler_tests::{
    Client, Cluster, Database, Effects, PATIENCE, Process, Request, Scratch, elapsed, eventually,
    free_port, full, now, size, wait_for,
};
use serde_json::{Value, json};

#[test]
fn a_command_is_accepted_run_and_its_end_can_be_read() {
    let mut cluster = Cluster::start();
    let _worker = cluster.worker("w-1", 2);
    let job = json!({
        "command": ["sh", "-c", "echo to stdout; echo to stderr >&2; exit 3"],
        "name": "encode", "queue": "default", "priority": "high", "labels": {"team": "a"},
        "env": {"SECRET": "4711"}, "timeout_ms": 60_000,
    });
    let accepted = cluster.client().post("/jobs", &job).expect(201);
    let id = accepted.json()["id"].as_u64().unwrap();
    assert_eq!(
        accepted.header("location"),
        Some(format!("/jobs/{id}").as_str())
    );
    assert_eq!(accepted.json()["state"], "queued");
    assert_eq!(accepted.json()["links"]["logs"], format!("/jobs/{id}/logs"));

    let end = cluster.await_end(id);
    for (field, value) in [
        ("state", json!("failed")),
        ("reason", json!("exit_code")),
        ("exit_code", json!(3)),
        ("attempt", json!(1)),
        ("worker", json!("w-1")),
        ("name", json!("encode")),
        ("priority", json!(50)),
    ] {
        assert_eq!(end[field], value, "{field} of {end}");
    }
    assert!(
        end["stderr_tail"].as_str().unwrap().contains("to stderr"),
        "{end}"
    );
    assert!(
        !end.to_string().contains("4711"),
        "environment values are never shown: {end}"
    );
    assert_eq!(cluster.log(id, "stdout").expect(200).text(), "to stdout\n");
    assert_eq!(cluster.log(id, "stderr").expect(200).text(), "to stderr\n");
    assert_eq!(
        cluster.database().job(id),
        Some(("failed".to_owned(), "exit_code".to_owned(), 1))
    );
    cluster.database().check();
}

#[test]
fn every_job_of_a_running_dev_is_in_the_database_with_its_end() {
    let (commands, noops) = (size(300, 10_000), size(20_000, 1_000_000));
    let patience = if full() {
        Duration::from_secs(1_800)
    } else {
        2 * PATIENCE
    };
    let scratch = Scratch::new();
    let port = free_port();
    let mut dev = Process::hostler(&scratch, &["dev", "--port", &port.to_string()], &[]);
    let mut client = Client::new(([127, 0, 0, 1], port).into(), None);
    eventually(PATIENCE, "dev is ready", || {
        assert!(dev.runs(), "dev ended");
        client
            .send(Request::get("/readyz"))
            .is_ok_and(|answer| answer.status == 200)
    });

    let mut submit = |job: Value, count: usize| {
        for from in (0..count).step_by(1_000) {
            let batch = vec![job.clone(); (count - from).min(1_000)];
            let size = batch.len();
            let answer = client
                .post("/jobs", &Value::Array(batch))
                .expect(201)
                .json();
            assert_eq!(answer["count"], size, "{answer}");
        }
    };
    submit(json!({"command": ["true"]}), commands / 2);
    submit(json!({"handler": "noop"}), noops);
    submit(
        json!({"command": ["sh", "-c", "exit 9"]}),
        commands - commands / 2,
    );

    let data = scratch.join(".hostler");
    let database = Database::open(&data);
    eventually(patience, "nothing is unfinished", || {
        database.number("SELECT count(*) FROM job WHERE finished_at IS NULL") == 0
    });
    let failed = i64::try_from(commands - commands / 2).unwrap();
    let all = i64::try_from(commands + noops).unwrap();
    let expected = BTreeMap::from([
        ("failed".to_owned(), failed),
        ("succeeded".to_owned(), all - failed),
    ]);
    assert_eq!(database.states(), expected);
    let wrong = "SELECT count(*) FROM job WHERE state = 'failed' AND (reason, exit_code) <> ('exit_code', 9)";
    assert_eq!(database.number(wrong), 0);
    drop(database);

    dev.terminate(PATIENCE).expect_code(0);
    let database = Database::open(&data);
    database.check();
    assert_eq!(database.states(), expected);
    assert_eq!(scratch.processes(), [], "dev leaves no process behind");
}

#[test]
fn two_hundred_concurrent_submitters_lose_nothing_and_each_priority_keeps_its_order() {
    let each = size(3, 50);
    let mut cluster = Cluster::start();
    let effects = cluster.effects();
    let start = Barrier::new(200);
    let waits = Mutex::new(Vec::new());
    let accepted: Vec<(u64, i64)> = thread::scope(|scope| {
        let submitters: Vec<_> = (0..200)
            .map(|n| {
                let (start, effects, waits) = (&start, &effects, &waits);
                let mut client = cluster.client();
                scope.spawn(move || {
                    start.wait();
                    let submit = |k: i64| {
                        let priority = (n + k) % 3 - 1;
                        let mut job = effects.job("true");
                        job["priority"] = json!(priority);
                        let sent = now();
                        let answer = client.post("/jobs", &job).expect(201).json();
                        waits.lock().unwrap().push(elapsed(sent));
                        (answer["id"].as_u64().unwrap(), priority)
                    };
                    (0..i64::try_from(each).unwrap())
                        .map(submit)
                        .collect::<Vec<_>>()
                })
            })
            .collect();
        submitters
            .into_iter()
            .flat_map(|it| it.join().unwrap())
            .collect()
    });
    let mut waits = waits.into_inner().unwrap();
    waits.sort_unstable();
    let (median, late) = (waits[waits.len() / 2], waits[waits.len() * 99 / 100]);
    eprintln!(
        "200 submitters at once: a 201 after {median:?} at the median, {late:?} at the 99th percentile"
    );
    let ids: BTreeSet<u64> = accepted.iter().map(|(id, _)| *id).collect();
    assert_eq!(ids.len(), 200 * each, "an id was given out twice");
    assert!(ids.iter().all(|id| *id < 1 << 53));

    // All of them wait by now, so one slot must take them in exactly this order.
    let _worker = cluster.worker("w-1", 1);
    let mut order = accepted;
    order.sort_by_key(|(id, priority)| (-priority, *id));
    let expected: Vec<u64> = order.into_iter().map(|(id, _)| id).collect();
    let count = expected.len();
    eventually(4 * PATIENCE, "all have started", || {
        effects.starts().len() >= count
    });
    let started: Vec<u64> = effects.starts().iter().map(|start| start.job).collect();
    assert_eq!(started, expected);
}

#[test]
fn a_delete_right_after_the_201_always_finds_its_job() {
    let each = size(5, 50);
    let mut cluster = Cluster::start();
    let _worker = cluster.worker("w-1", 4);
    let effects = cluster.effects();
    let answers: Vec<(u64, u16)> = thread::scope(|scope| {
        let submitters: Vec<_> = (0..50)
            .map(|_| {
                let mut client = cluster.client();
                let job = effects.job("true");
                scope.spawn(move || {
                    (0..each)
                        .map(|_| {
                            let answer = client.post("/jobs", &job).expect(201).json();
                            let id = answer["id"].as_u64().unwrap();
                            (id, client.delete(format!("/jobs/{id}")).status)
                        })
                        .collect::<Vec<_>>()
                })
            })
            .collect();
        submitters
            .into_iter()
            .flat_map(|it| it.join().unwrap())
            .collect()
    });
    for (id, status) in &answers {
        let end = cluster.await_end(*id);
        let starts = effects.of(*id).len();
        match status {
            // Withdrawn before anybody had it.
            200 => assert_eq!(
                (end["state"].as_str(), starts),
                (Some("cancelled"), 0),
                "{end}"
            ),
            // On a worker: it was stopped, or it was faster.
            202 => {
                assert!(["cancelled", "succeeded"].contains(&end["state"].as_str().unwrap()));
            }
            409 => assert_eq!(
                (end["state"].as_str(), starts),
                (Some("succeeded"), 1),
                "{end}"
            ),
            other => panic!("DELETE of job {id} right after its 201: {other}"),
        }
        assert!(starts <= 1, "job {id} started {starts} times");
    }
    assert!(
        answers.iter().any(|(_, status)| *status == 200),
        "no job was withdrawn in time"
    );
}

#[test]
fn a_batch_is_accepted_whole_or_not_at_all() {
    let cluster = Cluster::start();
    let mut client = cluster.client();
    let good = json!({"command": ["true"]});
    let bad = json!({"command": ["true"], "timeout_ms": "soon"});

    let answer = client
        .post("/jobs", &json!([good, good, good]))
        .expect(201)
        .json();
    let first = answer["first_id"].as_u64().unwrap();
    assert_eq!(answer["count"], 3);
    for id in first..first + 3 {
        assert_eq!(cluster.job(id)["state"], "queued");
    }

    let problem = client.post("/jobs", &json!([good, bad, good])).problem(422);
    assert_eq!(
        problem["errors"][0]["pointer"], "/1/timeout_ms",
        "{problem}"
    );
    let lines = format!("{good}\n{good}\n{bad}\n");
    let request = Request::post("/jobs").bytes("application/x-ndjson", lines);
    let problem = client.ask(request).problem(422);
    assert_eq!(problem["errors"][0]["line"], 3, "{problem}");
    assert_eq!(cluster.database().number("SELECT count(*) FROM job"), 3);

    let lines = format!("{good}\n{good}\n");
    let answer = client.ask(Request::post("/jobs").bytes("application/x-ndjson", lines));
    assert_eq!(answer.expect(201).json()["count"], 2);
    client.post("/jobs", &json!([])).problem(422);
}

#[test]
fn a_repeated_key_makes_one_job_even_across_a_kill() {
    let mut cluster = Cluster::start();
    let job = json!({"command": ["true"], "name": "once"});
    let keyed = |job: &Value| {
        Request::post("/jobs")
            .json(job)
            .header("Idempotency-Key", "k-1")
    };
    let first = cluster.client().ask(keyed(&job)).expect(201);
    assert_eq!(first.header("idempotent-replayed"), None);
    let again = cluster.client().ask(keyed(&job)).expect(201);
    assert_eq!(again.header("idempotent-replayed"), Some("true"));
    assert_eq!(again.json(), first.json());

    cluster.restart_server();
    let again = cluster.client().ask(keyed(&job)).expect(201);
    assert_eq!(again.header("idempotent-replayed"), Some("true"));
    assert_eq!(again.json()["id"], first.json()["id"]);
    let other = cluster.client().ask(keyed(&json!({"command": ["false"]})));
    assert_eq!(other.problem(422)["code"], "idempotency_key_reused");
    assert_eq!(cluster.database().number("SELECT count(*) FROM job"), 1);
}

#[test]
fn the_same_key_at_the_same_time_makes_one_job() {
    let cluster = Cluster::start();
    let start = Barrier::new(20);
    let ids: BTreeSet<u64> = thread::scope(|scope| {
        let askers: Vec<_> = (0..20)
            .map(|_| {
                let (mut client, start) = (cluster.client(), &start);
                scope.spawn(move || {
                    start.wait();
                    let job = json!({"command": ["true"]});
                    let request = Request::post("/jobs")
                        .json(&job)
                        .header("Idempotency-Key", "x");
                    client.ask(request).expect(201).json()["id"]
                        .as_u64()
                        .unwrap()
                })
            })
            .collect();
        askers.into_iter().map(|it| it.join().unwrap()).collect()
    });
    assert_eq!(ids.len(), 1, "one key, several jobs: {ids:?}");
}

#[test]
fn a_long_poll_answers_when_the_job_ends_and_not_before() {
    let mut cluster = Cluster::start();
    let _worker = cluster.worker("w-1", 1);
    let gate = cluster.scratch().join("gate");
    let id = cluster.submit(&json!({"command": until_exists(&gate)}));
    cluster.await_state(id, "running");
    let early = cluster
        .client()
        .get(format!("/jobs/{id}?wait=300ms&live=0"))
        .expect(200)
        .json();
    assert_eq!(early["state"], "running");

    let answered = AtomicU64::new(0);
    thread::scope(|scope| {
        let mut client = cluster.client();
        let answered = &answered;
        let waiting = scope.spawn(move || {
            let end = client
                .get(format!("/jobs/{id}?wait=60s"))
                .expect(200)
                .json();
            answered.store(1, Ordering::SeqCst);
            end
        });
        hostler_tests::never(Duration::from_millis(300), "the poll has an answer", || {
            answered.load(Ordering::SeqCst) == 1
        });
        std::fs::write(&gate, "").unwrap();
        assert_eq!(waiting.join().unwrap()["state"], "succeeded");
    });
}

#[test]
fn a_delayed_job_waits_and_says_until_when() {
    let mut cluster = Cluster::start();
    let _worker = cluster.worker("w-1", 1);
    let effects = cluster.effects();
    let mut job = effects.job("true");
    job["delay_ms"] = json!(1_500);
    let before = hostler_tests::unix_ms();
    let id = cluster.submit(&job);
    let waiting = cluster.job(id);
    assert_eq!(waiting["state"], "scheduled", "{waiting}");
    assert_eq!(waiting["reason"], "delayed", "{waiting}");
    let due = hostler_tests::parse_rfc3339_ms(waiting["due_at"].as_str().unwrap());
    // Both are whole milliseconds: one may be the rounding.
    assert!(due >= before + 1_499, "due {due}, accepted after {before}");
    cluster.await_end(id);
    let start = effects.of(id)[0].at_ms;
    assert!(start >= due - 1, "started {} ms early", due - start);
}

#[test]
fn a_list_pages_through_every_job_once() {
    let cluster = Cluster::start();
    let mut client = cluster.client();
    let jobs = vec![json!({"command": ["true"], "queue": "nobody"}); 25];
    client.post("/jobs", &Value::Array(jobs)).expect(201);
    let mut seen = Vec::new();
    let mut path = "/jobs?limit=10&queue=nobody".to_owned();
    for _page in 0..10 {
        let page = client.get(&path).expect(200).json();
        seen.extend(
            page["jobs"]
                .as_array()
                .unwrap()
                .iter()
                .map(|job| job["id"].as_u64().unwrap()),
        );
        match page["next_cursor"].as_str() {
            Some(cursor) => path = format!("/jobs?limit=10&queue=nobody&cursor={cursor}"),
            None => break,
        }
    }
    let newest_first: Vec<u64> = (1..=25).rev().collect();
    assert_eq!(seen, newest_first);
}

#[test]
fn a_retry_of_a_finished_job_is_a_new_job_that_names_the_old_one() {
    let mut cluster = Cluster::start();
    let _worker = cluster.worker("w-1", 1);
    let effects = cluster.effects();
    let id = cluster.submit(&effects.job("exit 1"));
    let end = cluster.await_end(id);
    assert_eq!(end["state"], "failed");
    let copy = cluster
        .client()
        .ask(Request::post(format!("/jobs/{id}/retry")))
        .expect(201)
        .json();
    let copy_id = copy["id"].as_u64().unwrap();
    assert!(copy_id > id);
    let copy_end = cluster.await_end(copy_id);
    assert_eq!(copy_end["retry_of"], id, "{copy_end}");
    assert_eq!((effects.of(id).len(), effects.of(copy_id).len()), (1, 1));
    assert_eq!(cluster.job(id), end, "the old one stays as it ended");
}

/// A command that runs until a file exists.
pub(crate) fn until_exists(gate: &std::path::Path) -> Value {
    json!(["sh", "-c", until_exists_line(gate)])
}

/// The same as a line of shell.
pub(crate) fn until_exists_line(gate: &std::path::Path) -> String {
    format!("until [ -e {} ]; do sleep 0.05; done", gate.display())
}

/// Waits until a job has written down a start, and gives the first.
#[track_caller]
pub(crate) fn first_start(effects: &Effects, id: u64) -> hostler_tests::Start {
    wait_for(PATIENCE, format!("job {id} starts"), || {
        effects.of(id).first().copied()
    })
}

#[test]
fn durations_are_never_early_and_how_late_they_are_is_told() {
    let mut cluster = Cluster::start();
    let _worker = cluster.worker("w-1", 2);
    let at = |record: &Value, name: &str| {
        let text = record[name].as_str();
        hostler_tests::parse_rfc3339_ms(text.unwrap_or_else(|| panic!("no {name}: {record}")))
    };
    let mut late: [Vec<i64>; 3] = Default::default();
    for round in 0..size(5, 50) {
        let span = 100 + 37 * i64::try_from(round % 7).unwrap();
        let delayed = cluster.submit(&json!({"handler": "noop", "delay_ms": span}));
        let limited = json!({"command": ["sleep", "60"], "timeout_ms": span});
        let limited = cluster.submit(&limited);
        let unwanted = json!({"handler": "noop", "queue": "nobody", "expires_ms": span});
        let unwanted = cluster.submit(&unwanted);
        let end = cluster.await_end(delayed);
        late[0].push(at(&end, "started_at") - at(&end, "created_at") - span);
        let end = cluster.await_end(limited);
        assert_eq!(end["reason"], "timeout", "{end}");
        late[1].push(at(&end, "finished_at") - at(&end, "started_at") - span);
        let end = cluster.await_end(unwanted);
        assert_eq!(end["state"], "expired", "{end}");
        late[2].push(at(&end, "finished_at") - at(&end, "created_at") - span);
    }
    // Both ends are whole milliseconds: one may be the rounding. An attempt's start is when the server heard of it:
    // that may be late by itself, but its worker counts from the start.
    let kinds = [("a delay", -1), ("a time limit", -50), ("an expiry", -1)];
    for ((what, least), mut late) in kinds.into_iter().zip(late) {
        late.sort_unstable();
        let (first, last) = (late[0], late[late.len() - 1]);
        eprintln!(
            "{what} is {} ms late at the median, {last} at most",
            late[late.len() / 2]
        );
        assert!(first >= least, "{what} was {first} ms early");
    }
}
