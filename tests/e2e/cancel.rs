//! Cancelling: what was told to stop has stopped when it is called cancelled, and the answer says what was true.

use std::fs;
use std::path::Path;
use std::time::Duration;

use hostler_tests::{Cluster, PATIENCE, Request, alive, elapsed, eventually, now, size, wait_for};
use rustix::process::Pid;
use serde_json::{Value, json};

use crate::submit::first_start;

#[test]
fn a_waiting_job_is_cancelled_at_once_and_never_starts() {
    let mut cluster = Cluster::start();
    let effects = cluster.effects();
    let queued = cluster.submit(&effects.job("true"));
    let mut later = effects.job("true");
    later["delay_ms"] = json!(500);
    let scheduled = cluster.submit(&later);
    for id in [queued, scheduled] {
        let answer = cluster
            .client()
            .delete(format!("/jobs/{id}?reason=not+needed"))
            .expect(200);
        assert_eq!(answer.json()["state"], "cancelled");
        let end = cluster.job(id);
        assert_eq!(end["reason"], "cancelled_by_user", "{end}");
        // Asking again is no error: it is what was wanted.
        cluster.client().delete(format!("/jobs/{id}")).expect(200);
    }
    let _worker = cluster.worker("w-1", 1);
    let last = cluster.submit(&effects.job("sleep 1"));
    cluster.await_end(last);
    let started: Vec<u64> = effects.starts().iter().map(|start| start.job).collect();
    assert_eq!(started, [last]);
}

#[test]
fn a_running_job_is_cancelled_when_it_has_really_ended() {
    let mut cluster = Cluster::start();
    let _worker = cluster.worker("w-1", 1);
    let effects = cluster.effects();
    let mut job = effects.job("trap 'exit 7' TERM; echo ready; while :; do sleep 0.05; done");
    // A cancelled job is not tried again.
    job["retry"] = json!({"max_attempts": 5, "backoff_ms": 1});
    let id = cluster.submit(&job);
    await_log(&cluster, id, "ready");
    let answer = cluster.client().delete(format!("/jobs/{id}")).expect(202);
    assert_eq!(answer.json()["state"], "cancelling");
    let end = cluster.await_end(id);
    assert_eq!(
        (&end["state"], &end["exit_code"]),
        (&json!("cancelled"), &json!(7)),
        "{end}"
    );
    assert_eq!(end["reason"], "cancelled_by_user");
    assert_eq!(effects.of(id).len(), 1);
    cluster.client().delete(format!("/jobs/{id}")).expect(200);
}

#[test]
fn exit_0_after_our_signal_is_cancelled() {
    let mut cluster = Cluster::start();
    let _worker = cluster.worker("w-1", 1);
    let line = "trap 'exit 0' TERM; echo ready; while :; do sleep 0.05; done";
    let id = cluster.submit(&json!({"command": line}));
    await_log(&cluster, id, "ready");
    cluster.client().delete(format!("/jobs/{id}")).expect(202);
    let end = cluster.await_end(id);
    assert_eq!(
        (&end["state"], &end["exit_code"]),
        (&json!("cancelled"), &json!(0)),
        "{end}"
    );
}

#[test]
fn a_job_deaf_to_term_is_killed_after_its_grace_with_all_its_children() {
    let mut cluster = Cluster::start();
    let _worker = cluster.worker("w-1", 1);
    let pids = cluster.scratch().join("pids");
    let id = cluster.submit(&stubborn(&pids, 700));
    let family = await_family(&pids);
    let start = now();
    cluster.client().delete(format!("/jobs/{id}")).expect(202);
    let end = cluster.await_end(id);
    let took = elapsed(start);
    assert_eq!(
        (&end["state"], &end["signal"]),
        (&json!("cancelled"), &json!(9)),
        "{end}"
    );
    assert!(
        took >= Duration::from_millis(700),
        "killed after {took:?}, before its grace was over"
    );
    for pid in family {
        eventually(Duration::from_secs(2), format!("{pid:?} is gone"), || {
            !alive(pid)
        });
    }
    // Its slot is free again.
    cluster.prove_healthy();
}

#[test]
fn force_does_not_wait_for_the_grace() {
    let mut cluster = Cluster::start();
    let _worker = cluster.worker("w-1", 1);
    let pids = cluster.scratch().join("pids");
    let id = cluster.submit(&stubborn(&pids, 600_000));
    let family = await_family(&pids);
    cluster
        .client()
        .delete(format!("/jobs/{id}?force=1"))
        .expect(202);
    let end = cluster.await_end(id);
    assert_eq!(
        (&end["state"], &end["signal"]),
        (&json!("cancelled"), &json!(9)),
        "{end}"
    );
    for pid in family {
        eventually(Duration::from_secs(2), format!("{pid:?} is gone"), || {
            !alive(pid)
        });
    }
}

#[test]
fn a_finished_job_is_a_conflict_and_an_unknown_one_is_not_found() {
    let mut cluster = Cluster::start();
    let _worker = cluster.worker("w-1", 1);
    let id = cluster.submit(&json!({"command": ["true"]}));
    let end = cluster.await_end(id);
    let problem = cluster.client().delete(format!("/jobs/{id}")).problem(409);
    assert_eq!(problem["code"], "job_finished");
    assert_eq!(cluster.job(id), end, "the refusal changed it");
    for unknown in ["999999", "9007199254740991"] {
        cluster
            .client()
            .delete(format!("/jobs/{unknown}"))
            .problem(404);
        cluster
            .client()
            .get(format!("/jobs/{unknown}"))
            .problem(404);
        cluster
            .client()
            .get(format!("/jobs/{unknown}/logs"))
            .problem(404);
    }
}

#[test]
fn cancel_at_any_moment_is_answered_truthfully() {
    let mut cluster = Cluster::start();
    let _worker = cluster.worker("w-1", 2);
    let effects = cluster.effects();
    let mut client = cluster.client();
    let mut met = [0; 3];
    for n in 0..size(60, 600) {
        let id = cluster.submit(&effects.job("sleep 0.03"));
        // Before, during and after dispatch, run and end: each job a little later than the last.
        let at = now();
        let delay = Duration::from_millis((n as u64 * 7) % 90);
        wait_for(PATIENCE, "the moment to cancel", || {
            (elapsed(at) >= delay).then_some(())
        });
        let status = client.delete(format!("/jobs/{id}")).status;
        let end = cluster.await_end(id);
        let state = end["state"].as_str().unwrap();
        match status {
            200 => assert_eq!((state, effects.of(id).len()), ("cancelled", 0), "{end}"),
            // Told to stop; it may have been faster, but then it was never signalled.
            202 => assert!(state == "cancelled" || end["exit_code"] == 0, "{end}"),
            409 => assert_eq!(state, "succeeded", "{end}"),
            other => panic!("DELETE of job {id}: {other}"),
        }
        met[[200, 202, 409].iter().position(|it| *it == status).unwrap()] += 1;
    }
    assert!(
        met[1] > 0 && met[2] > 0,
        "the moments were too much alike: {met:?}"
    );
    // No slot leaked: two jobs run side by side.
    let pair = [(); 2].map(|()| cluster.submit(&json!({"command": ["sleep", "60"]})));
    for id in pair {
        cluster.await_state(id, "running");
        client.delete(format!("/jobs/{id}?force=1")).expect(202);
    }
}

#[test]
fn a_cancel_that_was_answered_survives_the_servers_death() {
    let mut cluster = Cluster::start();
    let _worker = cluster.worker("w-1", 1);
    let pids = cluster.scratch().join("pids");
    let running = cluster.submit(&stubborn(&pids, 2_000));
    await_family(&pids);
    let effects = cluster.effects();
    let queued = cluster.submit(&effects.job("true"));
    cluster
        .client()
        .delete(format!("/jobs/{running}"))
        .expect(202);
    cluster
        .client()
        .delete(format!("/jobs/{queued}"))
        .expect(200);
    cluster.restart_server();
    assert_eq!(cluster.await_end(running)["state"], "cancelled");
    assert_eq!(cluster.job(queued)["state"], "cancelled");
    cluster.prove_healthy();
    assert_eq!(effects.starts(), []);
}

#[test]
fn a_job_over_its_time_limit_is_killed_and_failed() {
    let mut cluster = Cluster::start();
    let _worker = cluster.worker("w-1", 1);
    let effects = cluster.effects();
    let mut job = effects.job("sleep 120");
    job["timeout_ms"] = json!(400);
    let start = now();
    let id = cluster.submit(&job);
    let end = cluster.await_end(id);
    assert_eq!(
        (&end["state"], &end["reason"]),
        (&json!("failed"), &json!("timeout")),
        "{end}"
    );
    assert!(elapsed(start) >= Duration::from_millis(400));
    first_start(&effects, id);
}

#[test]
fn a_job_nobody_starts_in_time_expires() {
    let cluster = Cluster::start();
    let id = cluster.submit(&json!({"command": ["true"], "expires_ms": 300}));
    let end = cluster.await_end(id);
    assert_eq!(
        (&end["state"], &end["reason"]),
        (&json!("expired"), &json!("not_started_in_time")),
        "{end}"
    );
}

#[test]
fn a_purged_job_keeps_its_end_and_nothing_else() {
    let mut cluster = Cluster::start();
    let _worker = cluster.worker("w-1", 1);
    let id = cluster.submit(&json!({"command": ["echo", "secret-word"]}));
    cluster.await_end(id);
    assert_eq!(
        cluster.log(id, "stdout").expect(200).text(),
        "secret-word\n"
    );
    cluster
        .client()
        .delete(format!("/jobs/{id}?purge=1"))
        .expect(204);
    let end = cluster.job(id);
    assert_eq!(end["state"], "succeeded");
    assert!(!end.to_string().contains("secret-word"), "{end}");
    cluster.log(id, "stdout").problem(410);
    cluster
        .client()
        .ask(Request::post(format!("/jobs/{id}/retry")))
        .problem(410);
}

/// A job that ignores TERM, and its child does too; their ids go to a file.
fn stubborn(pids: &Path, grace_ms: u64) -> Value {
    let line = format!(
        "trap '' TERM; sleep 120 & echo \"$$ $!\" > {}; wait; sleep 120",
        pids.display()
    );
    json!({"command": ["sh", "-c", line], "grace_ms": grace_ms})
}

fn await_family(pids: &Path) -> Vec<Pid> {
    wait_for(PATIENCE, "the job tells its processes", || {
        let text = fs::read_to_string(pids)
            .ok()
            .filter(|text| text.ends_with('\n'))?;
        let pid = |word: &str| Pid::from_raw(word.parse().unwrap()).unwrap();
        Some(text.split_whitespace().map(pid).collect())
    })
}

/// Waits until a running job has printed this.
#[track_caller]
fn await_log(cluster: &Cluster, id: u64, word: &str) {
    let mut client = cluster.client();
    eventually(PATIENCE, format!("job {id} prints {word}"), || {
        let answer = client.get(format!("/jobs/{id}/logs?stream=stdout"));
        answer.status == 200 && answer.text().contains(word)
    });
}
