//! The live part of a state answer: asked of the worker, never waited for longer than promised.

use std::thread;
use std::time::Duration;

use hostler_tests::{Cluster, PATIENCE, elapsed, eventually, find_binary, now, wait_for};
use serde_json::{Value, json};

/// How much later than promised an answer may be on a busy machine.
const SLACK: Duration = Duration::from_secs(2);

#[test]
fn two_probes_of_a_busy_job_show_growing_cpu_time() {
    let mut cluster = Cluster::start();
    let _worker = cluster.worker("w-1", 1);
    let id = cluster.submit(&json!({"command": "echo working; while :; do :; done"}));
    let first = seen(&cluster, id, |live| live["stdout_bytes"] == 8);
    assert!(first["pid"].as_u64().unwrap() > 1, "{first}");
    assert!(first["processes"].as_u64().unwrap() >= 1, "{first}");
    assert!(first["rss_bytes"].as_u64().unwrap() > 0, "{first}");
    assert!(first["probed_ms"].is_number(), "{first}");
    let before = first["cpu_ms"].as_u64().unwrap();
    let second = seen(&cluster, id, |live| {
        live["cpu_ms"].as_u64() > Some(before + 50)
    });
    assert_eq!(second["pid"], first["pid"]);
}

#[test]
fn a_frozen_worker_is_told_after_the_fixed_wait_and_not_later() {
    let mut cluster = Cluster::start();
    let worker = cluster.worker("w-1", 1);
    let id = cluster.submit(&json!({"command": ["sleep", "120"]}));
    seen(&cluster, id, |_| true);
    worker.process.freeze();
    let start = now();
    let answer = cluster
        .client()
        .get(format!("/jobs/{id}"))
        .expect(200)
        .json();
    let took = elapsed(start);
    let live = &answer["live"];
    assert_eq!(
        (&live["seen"], &live["why"]),
        (&json!("no"), &json!("timeout")),
        "{answer}"
    );
    assert_eq!(
        answer["state"], "running",
        "the record is there all the same"
    );
    assert!(live["waited_ms"].as_u64().unwrap() >= 250, "{live}");
    assert!(live["last_heard_ms"].is_number(), "{live}");
    assert!(
        took >= Duration::from_millis(250),
        "answered after {took:?}: it did not wait"
    );
    assert!(
        took < Duration::from_millis(250) + SLACK,
        "answered only after {took:?}"
    );

    // Many at once share one probe: none waits for another.
    let start = now();
    thread::scope(|scope| {
        for _ in 0..50 {
            let mut client = cluster.client();
            scope.spawn(move || {
                let live = client.get(format!("/jobs/{id}")).expect(200).json()["live"].clone();
                assert_eq!(live["seen"], "no", "{live}");
            });
        }
    });
    let fifty = elapsed(start);
    eprintln!("R33: one question {took:?}, fifty at once {fifty:?}, of a wait of 250 ms");
    assert!(fifty < Duration::from_millis(500) + SLACK, "{fifty:?}");

    worker.process.thaw();
    seen(&cluster, id, |_| true);
    assert_eq!(
        cluster.job(id)["attempt"],
        1,
        "a short freeze costs nothing"
    );
}

#[test]
fn the_wait_is_a_setting() {
    let mut cluster = Cluster::with(&["--probe-timeout", "1s"]);
    let worker = cluster.worker("w-1", 1);
    let id = cluster.submit(&json!({"command": ["sleep", "120"]}));
    seen(&cluster, id, |_| true);
    worker.process.freeze();
    let start = now();
    let live = cluster
        .client()
        .get(format!("/jobs/{id}"))
        .expect(200)
        .json()["live"]
        .clone();
    assert_eq!(live["seen"], "no", "{live}");
    assert!(
        elapsed(start) >= Duration::from_secs(1),
        "{:?}",
        elapsed(start)
    );
    let start = now();
    let quick = cluster
        .client()
        .get(format!("/jobs/{id}?live=0"))
        .expect(200)
        .json();
    assert!(
        elapsed(start) < Duration::from_secs(1),
        "without the live part nobody is asked"
    );
    assert!(quick.get("live").is_none(), "{quick}");
}

#[test]
fn what_does_not_run_has_no_live_part() {
    let cluster = Cluster::start();
    let id = cluster.submit(&json!({"command": ["true"]}));
    let answer = cluster
        .client()
        .get(format!("/jobs/{id}"))
        .expect(200)
        .json();
    assert_eq!(answer.get("live"), Some(&Value::Null), "{answer}");
}

#[test]
fn many_askers_about_one_job_cost_its_worker_one_question() {
    let mut cluster = Cluster::with(&["--probe-timeout", "3s"]);
    let worker = cluster.worker("w-1", 1);
    let id = cluster.submit(&json!({"command": ["sleep", "120"]}));
    seen(&cluster, id, |_| true);
    worker.process.freeze();
    let before = probes(&cluster);
    thread::scope(|scope| {
        for _ in 0..50 {
            let mut client = cluster.client();
            scope.spawn(move || {
                let live = client.get(format!("/jobs/{id}")).expect(200).json()["live"].clone();
                assert_eq!(live["seen"], "no", "{live}");
            });
        }
    });
    // A second question only if it took longer than the wait until the last of them asked.
    let asked = probes(&cluster) - before;
    assert!((1..=2).contains(&asked), "{asked} questions");
}

#[test]
fn a_list_of_a_hundred_running_jobs_asks_each_of_two_workers_once() {
    let mut cluster = Cluster::start();
    let _one = cluster.worker("w-1", 50);
    let two = cluster.worker("w-2", 50);
    let sleep = json!({"handler": "sleep", "payload": {"ms": 600_000}});
    cluster
        .client()
        .post("/jobs", &json!(vec![sleep; 100]))
        .expect(201);
    let mut client = cluster.client();
    let list = "/jobs?state=running&limit=1000";
    let is_told = |job: &Value| job["live"]["note"] == "sleeps for 600000 ms";
    eventually(PATIENCE, "a hundred jobs run and say so", || {
        let jobs = client.get(format!("{list}&live=1")).expect(200).json()["jobs"].clone();
        let jobs = jobs.as_array().unwrap();
        jobs.len() == 100 && jobs.iter().all(is_told)
    });
    let before = probes(&cluster);
    let jobs = client.get(format!("{list}&live=1")).expect(200).json()["jobs"].clone();
    assert_eq!(probes(&cluster) - before, 2, "one question a worker");
    for job in jobs.as_array().unwrap() {
        assert_eq!(job["live"]["seen"], "yes", "{job}");
        assert!(is_told(job), "{job}");
    }
    assert!(jobs[0].get("command").is_none());

    two.process.freeze();
    let start = now();
    let jobs = client.get(format!("{list}&live=1")).expect(200).json()["jobs"].clone();
    let took = elapsed(start);
    eprintln!("a list of 100 with one of two workers frozen: {took:?}");
    assert!(took < Duration::from_millis(250) + SLACK, "{took:?}");
    for job in jobs.as_array().unwrap() {
        let seen = if job["worker"] == "w-2" { "no" } else { "yes" };
        assert_eq!(job["live"]["seen"], seen, "{job}");
    }
    two.process.thaw();
}

#[test]
fn a_command_says_how_far_it_is_and_nobody_else_can() {
    let mut cluster = Cluster::start();
    let _worker = cluster.worker("w-1", 2);
    let hostler = find_binary().display().to_string();
    let line = r#"env | grep ^HOSTLER_
        "$BIN" progress 25% "frame 1/4" && echo told
        setsid "$BIN" progress 0.5 "frame 2/4" && echo told; sleep 120"#;
    let id = cluster.submit(&json!({"command": line, "env": {"BIN": hostler}}));
    let live = seen(&cluster, id, |live| live["progress"] == 0.5);
    assert_eq!(live["note"], "frame 2/4", "{live}");
    let output = wait_for(PATIENCE, "both were taken", || {
        let text = cluster.log(id, "stdout").text();
        (text.matches("told").count() == 2).then_some(text)
    });

    let variable = |name: &str| {
        let line = output.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_once('=').unwrap().1.to_owned()
    };
    let [socket, job, fence] =
        ["HOSTLER_PROGRESS", "HOSTLER_JOB_ID", "HOSTLER_FENCE"].map(variable);
    let progress = ["progress", "1", "done", "--socket", &socket, "--job", &job];
    // We know everything the job knows, and are not of it.
    let end = cluster
        .hostler(&[&progress[..], &["--fence", &fence]].concat())
        .expect_code(3);
    assert!(end.stderr.contains("not the attempt's"), "{}", end.stderr);
    let end = cluster
        .hostler(&[&progress[..], &["--fence", "65538"]].concat())
        .expect_code(3);
    assert!(end.stderr.contains("no such attempt"), "{}", end.stderr);
    let end = cluster.hostler(&["progress", "0.5"]).expect_code(2);
    assert!(end.stderr.contains("hint:"), "{}", end.stderr);
    let live = seen(&cluster, id, |_| true);
    assert_eq!(live["progress"], 0.5, "{live}");

    let list = cluster.hostler(&["list"]).expect_code(0).stdout;
    assert!(list.contains("50 %  frame 2/4"), "{list}");
    let id = id.to_string();
    let status = cluster.hostler(&["status", &id]).expect_code(0).stdout;
    assert!(status.contains("50 %, frame 2/4"), "{status}");
}

#[test]
fn a_handler_says_how_far_it_is() {
    let mut cluster = Cluster::start();
    let _worker = cluster.worker("w-1", 1);
    let id = cluster.submit(&json!({"handler": "sleep", "payload": {"ms": 600_000}}));
    let live = seen(&cluster, id, |live| live["note"] == "sleeps for 600000 ms");
    assert_eq!(
        (&live["progress"], &live["pid"]),
        (&json!(0.0), &json!(0)),
        "{live}"
    );
}

/// Frames of questions sent to workers so far.
#[track_caller]
fn probes(cluster: &Cluster) -> u64 {
    let stats = cluster.client().get("/stats").expect(200).json();
    stats["since_start"]["probes"].as_u64().unwrap()
}

/// The worker's word about a running job, once it is as wanted.
#[track_caller]
fn seen(cluster: &Cluster, id: u64, wanted: impl Fn(&Value) -> bool) -> Value {
    let mut client = cluster.client();
    wait_for(
        PATIENCE,
        format!("the worker tells of job {id} as wanted"),
        || {
            let answer = client.get(format!("/jobs/{id}")).expect(200).json();
            let live = answer["live"].clone();
            (live["seen"] == "yes" && wanted(&live)).then_some(live)
        },
    )
}
