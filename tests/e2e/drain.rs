//! A server is told to stop while jobs run: it says so before anything else, takes nothing more, ends in time, and the
//! next one goes on with what runs.

use std::collections::BTreeSet;
use std::fs;
use std::thread;
use std::time::Duration;

use hostler_tests::{Cluster, PATIENCE, Request, elapsed, eventually, now, pause};
use rustix::process::Signal;
use serde_json::json;

use crate::submit::{first_start, until_exists_line};

#[test]
fn a_stopping_server_says_so_first_takes_nothing_more_and_leaves_jobs_running() {
    let limit = Duration::from_secs(8);
    let mut cluster = Cluster::with(&["--drain-timeout", "8s"]);
    let _first = cluster.worker("w-1", 1);
    let effects = cluster.effects();
    let gate = cluster.scratch().join("gate");
    let running = cluster.submit(&effects.job(&until_exists_line(&gate)));
    first_start(&effects, running);
    // A second worker is given a job and does not hear of it: the stop waits for it, for a moment.
    let second = cluster.worker("w-2", 1);
    second.process.freeze();
    let assigned = cluster.submit(&effects.job("true"));
    eventually(PATIENCE, "the frozen worker is given the job", || {
        cluster.worker_view("w-2").is_some_and(|it| it["held"] == 1)
    });
    let queued = cluster.submit(&effects.job("true"));

    // It waits two seconds for the frozen worker; should this machine have no time for us just then, once more.
    let mut has_said_so = false;
    for _ in 0..3 {
        let start = now();
        cluster.server().signal(Signal::TERM);
        has_said_so = says_that_it_stops(&mut cluster, running).is_some();
        let end = cluster.server().wait(PATIENCE);
        let took = elapsed(start);
        eprintln!("stopped after {took:.1?}, the limit is {limit:?}");
        end.expect_code(0);
        assert!(took < limit + PATIENCE / 3);
        let wal = fs::metadata(cluster.data().join("hostler.db-wal")).map_or(0, |it| it.len());
        assert_eq!(wal, 0, "what was committed is not in the database itself");
        cluster.start_anew();
        if has_said_so {
            break;
        }
    }
    assert!(has_said_so, "nobody heard that it stops");
    assert_eq!(effects.of(running).len(), 1);

    second.process.thaw();
    for id in [assigned, queued] {
        assert_eq!(cluster.await_end(id)["state"], "succeeded");
        assert_eq!(effects.of(id).len(), 1, "job {id}");
    }
    assert_eq!(cluster.await_state(running, "running")["attempt"], 1);
    fs::write(&gate, "").unwrap();
    let end = cluster.await_end(running);
    assert_eq!(
        (&end["state"], &end["attempt"]),
        (&json!("succeeded"), &json!(1)),
        "{end}"
    );
    assert_eq!(effects.of(running).len(), 1);
    cluster.database().check();
}

/// Asks a server that was told to stop, on new connections as a load balancer makes them. None if it was gone before all
/// was asked.
fn says_that_it_stops(cluster: &mut Cluster, running: u64) -> Option<()> {
    let refusal = loop {
        if !cluster.server().runs() {
            return None;
        }
        let answer = cluster.client().send(Request::get("/readyz")).ok()?;
        if answer.status != 200 {
            break answer;
        }
    };
    assert_eq!(refusal.problem(503)["code"], "not_ready");
    assert!(refusal.header("retry-after").is_some());
    let job = Request::post("/jobs").json(&json!({"command": ["true"]}));
    let answer = cluster.client().send(job).ok()?;
    assert_eq!(answer.problem(503)["code"], "stopping");
    assert!(answer.header("retry-after").is_some());
    // What is known can still be asked.
    let path = format!("/jobs/{running}?live=0");
    let view = cluster.client().send(Request::get(path)).ok()?;
    assert_eq!(view.expect(200).json()["state"], "running");
    let health = cluster.client().send(Request::get("/healthz")).ok()?;
    health.expect(200);
    Some(())
}

#[test]
fn a_stop_in_the_middle_of_assigning_loses_nothing_and_starts_nothing_twice() {
    let mut cluster = Cluster::with(&["--drain-timeout", "8s"]);
    let _workers = [cluster.worker("w-1", 4), cluster.worker("w-2", 4)];
    let effects = cluster.effects();
    let mut acknowledged = BTreeSet::new();
    for round in 0..5 {
        let client = cluster.client();
        let job = effects.plain_job("true");
        let ids = thread::scope(|scope| {
            let submitting = scope.spawn(move || {
                let mut client = client;
                let mut ids = Vec::new();
                // Until it is refused, or there is nobody to refuse it.
                while let Ok(answer) = client.send(Request::post("/jobs").json(&job)) {
                    if answer.status != 201 {
                        assert_eq!(answer.problem(503)["code"], "stopping");
                        break;
                    }
                    ids.push(answer.json()["id"].as_u64().unwrap());
                }
                ids
            });
            pause(Duration::from_millis(30 + 60 * round));
            cluster.stop_server().expect_code(0);
            submitting.join().unwrap()
        });
        acknowledged.extend(ids);
        cluster.start_server();
    }
    for id in &acknowledged {
        assert_eq!(cluster.await_end(*id)["state"], "succeeded");
    }
    for (id, starts) in effects.counts() {
        assert_eq!(starts, 1, "job {id}: a stop is no reason to run it again");
    }
    let counts = effects.counts();
    let never: Vec<&u64> = acknowledged
        .iter()
        .filter(|id| !counts.contains_key(id))
        .collect();
    assert!(never.is_empty(), "never ran: {never:?}");
    cluster.database().check();
}
