//! The wall clock is set by a day, forth and back, under a running server and while there is none: what is a duration
//! neither ends early nor late nor is lost, and nobody is taken for lost.

use std::fs;
use std::thread;

use hostler_tests::{Cluster, Effects, PATIENCE, Scratch, Wall, eventually, parse_rfc3339_ms};
use serde_json::{Value, json};

use crate::submit::{first_start, until_exists_line};

const DAY_S: i64 = 24 * 3_600;

/// Jobs whose limits and waits are all durations.
struct Waits {
    running: u64,
    delayed: u64,
    retried: u64,
    /// Would be over in an hour, by one limit or the other.
    hour: [u64; 3],
    submitted_ms: i64,
}

const DELAY_MS: i64 = 2_500;

fn submit(cluster: &Cluster, effects: &Effects, gate: &std::path::Path) -> Waits {
    let running = cluster.submit(&effects.job(&until_exists_line(gate)));
    first_start(effects, running);
    let with = |mut job: Value, field: &str, value: Value| {
        job[field] = value;
        cluster.submit(&job)
    };
    let submitted_ms = hostler_tests::unix_ms();
    let delayed = with(effects.job("true"), "delay_ms", json!(DELAY_MS));
    let retry = json!({"max_attempts": 2, "backoff_ms": 2 * DELAY_MS});
    let retried = with(effects.job(r#"[ "$HOSTLER_ATTEMPT" = 2 ]"#), "retry", retry);
    cluster.await_state(retried, "scheduled");
    let nowhere = json!({"command": ["true"], "queue": "nobody"});
    let hour = [
        with(nowhere.clone(), "expires_ms", json!(3_600_000)),
        with(nowhere.clone(), "deadline_ms", json!(3_600_000)),
        with(nowhere, "delay_ms", json!(3_600_000)),
    ];
    Waits {
        running,
        delayed,
        retried,
        hour,
        submitted_ms,
    }
}

/// Everything came at its time, by a clock that was not set.
fn check(cluster: &Cluster, effects: &Effects, waits: &Waits) {
    for id in [waits.delayed, waits.retried] {
        let end = cluster.await_end(id);
        assert_eq!(end["state"], "succeeded", "{end}");
    }
    let starts = effects.of(waits.delayed);
    let after_ms = starts[0].at_ms - waits.submitted_ms;
    assert!(after_ms >= DELAY_MS - 1, "{after_ms} ms: early");
    assert!(after_ms < DELAY_MS + 20_000, "{after_ms} ms: late");
    let starts = effects.of(waits.retried);
    let back_off_ms = starts[1].at_ms - starts[0].at_ms;
    // Half of it at least is never left out.
    assert!(back_off_ms >= DELAY_MS - 1, "{back_off_ms} ms: early");
    assert!(
        back_off_ms < 2 * DELAY_MS + 20_000,
        "{back_off_ms} ms: late"
    );
    for id in waits.hour {
        let view = cluster.job(id);
        assert!(view["finished_at"].is_null(), "over within an hour: {view}");
    }
    let running = cluster.await_state(waits.running, "running");
    assert_eq!(running["attempt"], 1, "{running}");
    assert_eq!(effects.of(waits.running).len(), 1);
}

/// Forth and back, side by side: most of it is waiting.
fn both_ways(test: impl Fn(i64) + Sync) {
    thread::scope(|scope| {
        scope.spawn(|| test(1));
        test(-1);
    });
}

#[test]
fn a_wall_clock_set_by_a_day_moves_no_duration() {
    both_ways(|days| {
        let scratch = Scratch::new();
        let wall = Wall::new(&scratch);
        let mut cluster = Cluster::in_environment(scratch, &[], wall.environment());
        let _worker = cluster.worker("w-1", 4);
        let effects = cluster.effects();
        let gate = cluster.scratch().join("gate");
        let waits = submit(&cluster, &effects, &gate);
        wall.set(days * DAY_S);
        // The server does go by that wall: what it shows says so.
        let new = cluster.submit(&json!({"handler": "noop"}));
        let shown = cluster.await_end(new)["created_at"].clone();
        let shown_ms = parse_rfc3339_ms(shown.as_str().unwrap()) - hostler_tests::unix_ms();
        assert!((shown_ms / 1_000 - days * DAY_S).abs() < 60, "{shown}");
        check(&cluster, &effects, &waits);
        let view = cluster.worker_view("w-1").unwrap();
        assert_eq!(view["connected"], true, "{view}");
        fs::write(&gate, "").unwrap();
        assert_eq!(cluster.await_end(waits.running)["attempt"], 1);
        cluster.database().check();
    });
}

#[test]
fn a_wall_clock_set_by_a_day_over_a_restart_moves_no_duration() {
    both_ways(|days| {
        let scratch = Scratch::new();
        let wall = Wall::new(&scratch);
        let mut cluster = Cluster::in_environment(scratch, &[], wall.environment());
        let _worker = cluster.worker("w-1", 4);
        let effects = cluster.effects();
        let gate = cluster.scratch().join("gate");
        let waits = submit(&cluster, &effects, &gate);
        cluster.kill_server();
        wall.set(days * DAY_S);
        cluster.start_server();
        check(&cluster, &effects, &waits);
        // And set right again under its eyes.
        wall.set(0);
        fs::write(&gate, "").unwrap();
        let end = cluster.await_end(waits.running);
        assert_eq!(
            (&end["state"], &end["attempt"]),
            (&json!("succeeded"), &json!(1)),
            "{end}"
        );
        eventually(PATIENCE, "the worker is there", || {
            cluster
                .worker_view("w-1")
                .is_some_and(|it| it["connected"] == true)
        });
        cluster.database().check();
    });
}
