//! The wire between worker and server is slow, silent, cut or damaged: what runs goes on, what was said arrives once, and
//! a peer that is gone is noticed though nobody says so.

use std::fs;
use std::time::Duration;

use hostler_tests::{
    Cluster, Damage, Effects, PATIENCE, Relay, Way, elapsed, eventually, never, now, size, wait_for,
};
use hostler_wire::frame::Role;
use serde_json::{Value, json};

use crate::submit::{first_start, until_exists_line};

/// As short as the heartbeat (every two seconds) allows.
const GRACE: Duration = Duration::from_secs(6);

/// A job that counts aloud until a file exists, so that the output connection is always in use.
fn counting(effects: &Effects, gate: &std::path::Path) -> Value {
    effects.job(&format!(
        "n=0; until [ -e {} ]; do n=$((n+1)); echo line $n; sleep 0.02; done; echo that was $n",
        gate.display()
    ))
}

/// The log of a counting job: every line once, in order.
#[track_caller]
fn expect_whole(cluster: &Cluster, id: u64) {
    let log = cluster.log(id, "stdout").expect(200).text();
    let mut lines = log.lines();
    let last = lines.next_back().unwrap();
    let count = lines
        .enumerate()
        .map(|(at, line)| assert_eq!(line, format!("line {}", at + 1)))
        .count();
    assert_eq!(last, format!("that was {count}"));
}

#[test]
fn pauses_and_cuts_shorter_than_the_grace_run_nothing_again() {
    let mut cluster = Cluster::start();
    let relay = Relay::to(cluster.worker_addr());
    let worker = cluster.worker_via(relay.addr(), "w-1", 4, &[]);
    let effects = cluster.effects();
    let gate = cluster.scratch().join("gate");
    let ids: Vec<u64> = (0..3)
        .map(|_| cluster.submit(&counting(&effects, &gate)))
        .collect();
    for id in &ids {
        first_start(&effects, *id);
    }
    eventually(PATIENCE, "output flows", || relay.open(Role::Output) == 1);
    let goes_on = |what: &str| {
        let before = relay.passed_bytes();
        eventually(PATIENCE, format!("bytes pass after {what}"), || {
            relay.passed_bytes() > before && relay.open(Role::Control) == 1
        });
        cluster.await_worker("w-1");
    };
    for role in [Role::Control, Role::Output] {
        eventually(PATIENCE, "a connection is reset", || relay.cut(role) > 0);
        goes_on("a reset");
        eventually(PATIENCE, "output flows", || relay.open(Role::Output) == 1);
        relay.damage(role, Way::Up, Damage::CutInFrame);
        eventually(PATIENCE, "a frame is cut", || relay.damaged() > 0);
        goes_on("a cut in a frame");
        eventually(PATIENCE, "output flows", || relay.open(Role::Output) == 1);
    }
    // Nothing passes, and nobody is told; for less than it takes to be missed.
    relay.hold(Role::Control);
    relay.hold(Role::Output);
    let silent = |at_least: u64| {
        cluster
            .worker_view("w-1")
            .is_some_and(|it| it["last_heard_ms"].as_u64() > Some(at_least))
    };
    eventually(PATIENCE, "the worker is silent", || silent(2_500));
    relay.release();
    goes_on("a silence");
    worker.process.freeze();
    eventually(PATIENCE, "the worker is silent", || silent(2_500));
    worker.process.thaw();
    goes_on("a frozen worker");

    fs::write(&gate, "").unwrap();
    for id in &ids {
        let end = cluster.await_end(*id);
        assert_eq!(
            (&end["state"], &end["attempt"]),
            (&json!("succeeded"), &json!(1)),
            "{end}"
        );
        assert_eq!(effects.of(*id).len(), 1);
        expect_whole(&cluster, *id);
    }
    cluster.database().check();
}

#[test]
fn a_worker_that_is_gone_without_a_word_is_missed_and_its_job_done_elsewhere() {
    let mut cluster = Cluster::with(&["--worker-grace", "6s"]);
    let relay = Relay::to(cluster.worker_addr());
    let mut first = cluster.worker_via(relay.addr(), "w-1", 1, &[]);
    let effects = cluster.effects();
    let id = cluster.submit(&effects.job(r#"[ "$HOSTLER_ATTEMPT" = 2 ] || sleep 120"#));
    first_start(&effects, id);
    let _second = cluster.worker("w-2", 1);
    let start = now();
    // The machine is gone, cable and all: no FIN, no reset.
    assert_eq!(relay.abandon(Role::Control), 1);
    first.kill();
    let end = cluster.await_end(id);
    let redone = elapsed(start);
    assert_eq!(
        (&end["state"], &end["attempt"], &end["worker"]),
        (&json!("succeeded"), &json!(2), &json!("w-2")),
        "{end}"
    );
    eprintln!("half-open: done elsewhere after {redone:.1?}, the grace is {GRACE:?}");
    assert!(redone < 3 * GRACE + PATIENCE / 3, "{redone:?}");
    assert_eq!(effects.of(id).len(), 2);
    cluster.database().check();
}

#[test]
fn a_connection_that_is_dead_without_a_word_is_replaced_and_its_job_goes_on() {
    let mut cluster = Cluster::start();
    let relay = Relay::to(cluster.worker_addr());
    let worker = cluster.worker_via(relay.addr(), "w-1", 1, &[]);
    let effects = cluster.effects();
    let gate = cluster.scratch().join("gate");
    let id = cluster.submit(&counting(&effects, &gate));
    first_start(&effects, id);
    eventually(PATIENCE, "output flows", || relay.open(Role::Output) == 1);
    let start = now();
    assert_eq!(relay.abandon(Role::Control), 1);
    assert_eq!(relay.abandon(Role::Output), 1);
    // The worker misses three heartbeats, and comes back on another connection although the server still has the old one.
    eventually(PATIENCE, "the worker is back", || {
        relay.open(Role::Control) == 1 && relay.open(Role::Output) == 1
    });
    eprintln!("half-open, worker alive: back after {:.1?}", elapsed(start));
    fs::write(&gate, "").unwrap();
    let end = cluster.await_end(id);
    assert_eq!(
        (&end["state"], &end["attempt"]),
        (&json!("succeeded"), &json!(1)),
        "{end}"
    );
    assert_eq!(effects.of(id).len(), 1);
    expect_whole(&cluster, id);
    drop(worker);
    cluster.database().check();
}

#[test]
fn with_a_long_way_to_the_worker_its_slots_do_not_wait_for_it() {
    let noops = size(2_000, 50_000);
    let mut cluster = Cluster::start();
    let relay = Relay::to(cluster.worker_addr());
    relay.delay(Duration::from_millis(100));
    let _worker = cluster.worker_via(relay.addr(), "w-1", 8, &[]);
    let mut client = cluster.client();
    // The class has to be measured before anything is given ahead.
    cluster.prove_healthy();
    let start = now();
    let batch = vec![json!({"handler": "noop"}); noops.min(5_000)];
    let mut last = 0;
    for _ in 0..noops.div_ceil(5_000) {
        let answer = client
            .post("/jobs", &Value::Array(batch.clone()))
            .expect(201);
        let answer = answer.json();
        last = answer["first_id"].as_u64().unwrap() + answer["count"].as_u64().unwrap() - 1;
    }
    wait_for(2 * PATIENCE, "all noops have ended", || {
        let stats = client.get("/stats").expect(200).json();
        (stats["queued"] == 0 && stats["running"] == 0).then_some(())
    });
    let took = elapsed(start);
    let rate = noops as f64 / took.as_secs_f64();
    // Without work given ahead, 8 slots and 200 ms there and back make 40 jobs a second.
    eprintln!(
        "200 ms there and back, 8 slots: {noops} noops in {took:.1?}, {rate:.0}/s; slots/RTT is 40/s"
    );
    assert!(rate > 40.0, "{rate}");
    assert_eq!(cluster.job(last)["state"], "succeeded");
    cluster.database().check();
}

#[test]
fn garbage_on_a_workers_connection_ends_it_and_loses_nothing() {
    let mut cluster = Cluster::start();
    let relay = Relay::to(cluster.worker_addr());
    let mut worker = cluster.worker_via(relay.addr(), "w-1", 4, &[]);
    let effects = cluster.effects();
    let gate = cluster.scratch().join("gate");
    let id = cluster.submit(&counting(&effects, &gate));
    first_start(&effects, id);
    let mut damages = vec![
        Damage::Insert(0, vec![0xff; 64]),
        Damage::Insert(14, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_vec()),
    ];
    // Length, kind, check, sum, body: one bit of each byte, or of some.
    let step = size(5, 1);
    damages.extend(
        (0..26)
            .step_by(step)
            .map(|at| Damage::Flip(at, 1 << (at % 8))),
    );
    let mut done = 0;
    for role in [Role::Control, Role::Output] {
        for way in [Way::Up, Way::Down] {
            for damage in &damages {
                eventually(PATIENCE, "both connections are there", || {
                    relay.open(Role::Control) == 1 && relay.open(Role::Output) == 1
                });
                let accepted = relay.accepted();
                relay.damage(role, way, damage.clone());
                done += 1;
                eventually(PATIENCE, format!("damage {done} is done"), || {
                    relay.damaged() == done
                });
                eventually(
                    PATIENCE,
                    format!("{role:?} {way:?} {damage:?} ends the connection"),
                    || relay.accepted() > accepted,
                );
            }
        }
    }
    fs::write(&gate, "").unwrap();
    let end = cluster.await_end(id);
    assert_eq!(
        (&end["state"], &end["attempt"]),
        (&json!("succeeded"), &json!(1)),
        "{end}"
    );
    assert_eq!(effects.of(id).len(), 1);
    expect_whole(&cluster, id);
    assert!(worker.process.runs(), "{}", worker.process.stderr());
    cluster.prove_healthy();
    cluster.database().check();
}

#[test]
fn an_acknowledgement_that_is_lost_is_asked_for_again_and_counts_once() {
    let mut cluster = Cluster::start();
    let relay = Relay::to(cluster.worker_addr());
    let mut worker = cluster.worker_via(relay.addr(), "w-1", 1, &["--drain-timeout", "10m"]);
    let effects = cluster.effects();
    let gate = cluster.scratch().join("gate");
    let id = cluster.submit(&effects.job(&until_exists_line(&gate)));
    first_start(&effects, id);
    // The report passes, its acknowledgement is the next frame down, and never arrives.
    relay.damage(Role::Control, Way::Down, Damage::CutInFrame);
    fs::write(&gate, "").unwrap();
    let end = cluster.await_end(id);
    eventually(PATIENCE, "a frame down was cut", || relay.damaged() == 1);
    cluster.await_worker("w-1");
    eventually(PATIENCE, "the worker is rid of its report", || {
        cluster
            .worker_view("w-1")
            .is_some_and(|it| it["connected"] == true && it["held"] == 0)
    });
    never(Duration::from_millis(300), "it runs again", || {
        effects.of(id).len() > 1
    });
    let after = cluster.job(id);
    for field in ["state", "attempt", "finished_at"] {
        assert_eq!(after[field], end[field], "{field}");
    }
    cluster.prove_healthy();
    // It has been acknowledged meanwhile: a worker that still kept its report would not end.
    worker.drain();
    worker.wait(PATIENCE).expect_code(0);
    cluster.database().check();
}
