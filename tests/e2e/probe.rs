//! The live part of a state answer: asked of the worker, never waited for longer than promised.

use std::thread;
use std::time::Duration;

use hostler_tests::{Cluster, PATIENCE, elapsed, now, wait_for};
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
    assert!(
        elapsed(start) < Duration::from_millis(500) + SLACK,
        "{:?}",
        elapsed(start)
    );

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
