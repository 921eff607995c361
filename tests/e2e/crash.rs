//! kill -9 of anything, at any moment: what was acknowledged is not lost, what ran is not run again without need, and
//! nothing is recorded twice.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use hostler_tests::{
    Client, Cluster, Effects, PATIENCE, Relay, Request, eventually, never, parse_rfc3339_ms, size,
    wait_for,
};
use hostler_wire::frame::Role;
use serde_json::{Value, json};

use crate::submit::{first_start, until_exists, until_exists_line};

/// As short as the heartbeat (every two seconds) allows with some room.
const SHORT_GRACE: &str = "6s";

/// Submitters that go on whatever happens to the server. Each submission is repeated under its key until it is
/// acknowledged, so each becomes exactly one job.
struct Submitters {
    job: Value,
    stop: AtomicBool,
    acknowledged: Mutex<Vec<u64>>,
    keys: AtomicU64,
}

impl Submitters {
    fn new(job: Value) -> Self {
        Self {
            job,
            stop: AtomicBool::new(false),
            acknowledged: Mutex::default(),
            keys: AtomicU64::new(0),
        }
    }

    fn run(&self, mut client: Client) {
        while !self.stop.load(Ordering::SeqCst) {
            let key = format!("key-{}", self.keys.fetch_add(1, Ordering::SeqCst));
            let id = wait_for(2 * PATIENCE, "a submission is acknowledged", || {
                let request = Request::post("/jobs")
                    .json(&self.job)
                    .header("Idempotency-Key", &key);
                // No answer, or "not now": nobody knows, so ask again under the same key.
                let answer = client
                    .send(request)
                    .ok()
                    .filter(|answer| answer.status != 503)?;
                answer.expect(201).json()["id"].as_u64()
            });
            self.acknowledged.lock().unwrap().push(id);
            // Gently: the jobs take longer than their submission.
            thread::park_timeout(Duration::from_millis(20));
        }
    }

    fn finish(self) -> Vec<u64> {
        let ids = self.acknowledged.into_inner().unwrap();
        let distinct: BTreeSet<u64> = ids.iter().copied().collect();
        assert_eq!(distinct.len(), ids.len(), "an id was given out twice");
        ids
    }
}

#[test]
fn when_only_the_server_dies_no_job_starts_twice_and_running_jobs_are_adopted() {
    let kills = size(4, 20);
    let mut cluster = Cluster::start();
    let workers = [cluster.worker("w-1", 4), cluster.worker("w-2", 4)];
    let effects = cluster.effects();

    // One long job lives through all of it.
    let gate = cluster.scratch().join("gate");
    let long = cluster.submit(&effects.job(&until_exists_line(&gate)));
    let long_start = first_start(&effects, long);
    let pid_before = live_pid(&cluster, long);

    let submitters = Submitters::new(effects.job("sleep 0.1"));
    thread::scope(|scope| {
        for _ in 0..4 {
            let client = cluster.client();
            scope.spawn(|| submitters.run(client));
        }
        for kill in 0..kills {
            let before = effects.starts().len();
            // Not always at the same point: sometimes at once, sometimes under full load.
            let more = [10, 1, 25, 3][kill % 4];
            eventually(
                PATIENCE,
                format!("jobs run again before kill {kill}"),
                || effects.starts().len() >= before + more,
            );
            cluster.restart_server();
        }
        submitters.stop.store(true, Ordering::SeqCst);
    });
    let made = submitters.keys.load(Ordering::SeqCst);
    let acknowledged = submitters.finish();

    cluster.await_worker("w-1");
    cluster.await_worker("w-2");
    let adopted = cluster.await_state(long, "running");
    assert_eq!(adopted["attempt"], 1, "{adopted}");
    assert_eq!(
        live_pid(&cluster, long),
        pid_before,
        "the same process, under its old fence"
    );
    std::fs::write(&gate, "").unwrap();
    let end = cluster.await_end(long);
    assert_eq!(
        (&end["state"], &end["attempt"]),
        (&json!("succeeded"), &json!(1)),
        "{end}"
    );

    for id in &acknowledged {
        // An assignment that was committed and had not left when the server died is given back, unstarted and uncharged.
        let end = cluster.await_end(*id);
        assert_eq!(end["state"], "succeeded", "{end}");
        let former = end["attempts"]
            .as_array()
            .into_iter()
            .flatten()
            .rev()
            .skip(1);
        for attempt in former {
            assert_eq!(attempt["reason"], "returned", "{end}");
        }
    }
    let mut expected: BTreeMap<u64, usize> = acknowledged.iter().map(|id| (*id, 1)).collect();
    expected.insert(long, 1);
    assert_eq!(
        effects.counts(),
        expected,
        "one start each, and nothing that was not acknowledged"
    );
    assert_eq!(effects.of(long), [long_start]);
    let database = cluster.database();
    database.check();
    assert_eq!(
        database.number("SELECT count(*) FROM job"),
        i64::try_from(made + 1).unwrap()
    );
    drop(workers);
}

#[test]
fn when_workers_die_too_every_acknowledged_job_ends_once() {
    let rounds = size(4, 20);
    let mut cluster = Cluster::with(&["--worker-grace", SHORT_GRACE]);
    let mut workers = [cluster.worker("w-1", 4), cluster.worker("w-2", 4)];
    let effects = cluster.effects();
    let mut job = effects.job("sleep 0.2");
    job["max_losses"] = json!(100);
    let submitters = Submitters::new(job);
    let mut ended: BTreeMap<u64, Value> = BTreeMap::new();
    thread::scope(|scope| {
        for _ in 0..4 {
            let client = cluster.client();
            scope.spawn(|| submitters.run(client));
        }
        for round in 0..rounds {
            let before = effects.starts().len();
            eventually(
                PATIENCE,
                format!("jobs run again before round {round}"),
                || effects.starts().len() >= before + 10,
            );
            // The server, a worker, both at once, both workers.
            if round % 4 == 0 || round % 4 == 2 {
                cluster.kill_server();
            }
            let dying = [0..0, 0..1, 1..2, 0..2][round % 4].clone();
            for n in dying.clone() {
                workers[n].kill();
            }
            if round % 4 == 0 || round % 4 == 2 {
                cluster.start_server();
            }
            for n in dying {
                let name = format!("w-{}", n + 1);
                let addr = cluster.worker_addr().to_string();
                workers[n] = cluster.spawn_worker(&addr, &name, 4, &[]);
            }
            // What has been seen as ended must look the same for ever.
            for id in submitters.acknowledged.lock().unwrap().iter() {
                let now = cluster.job(*id);
                if now["finished_at"].is_string() {
                    ended.entry(*id).or_insert(now);
                }
            }
        }
        submitters.stop.store(true, Ordering::SeqCst);
    });
    let acknowledged = submitters.finish();
    for id in &acknowledged {
        let end = cluster.await_end(*id);
        assert_eq!(end["state"], "succeeded", "{end}");
    }
    for (id, seen) in &ended {
        let now = cluster.job(*id);
        for field in ["state", "attempt", "finished_at", "exit_code", "reason"] {
            assert_eq!(
                now[field], seen[field],
                "{field} of job {id} changed after its end"
            );
        }
    }
    assert!(!ended.is_empty(), "nothing had ended before the last round");
    check_attempts(&effects);
    let starts = effects.counts();
    assert!(
        starts.values().any(|count| *count > 1),
        "no kill hit a running job: {starts:?}"
    );
    cluster.database().check();
}

/// No attempt of a job starts twice, and the fence rises with the attempt.
fn check_attempts(effects: &Effects) {
    let mut fences: BTreeMap<u64, BTreeMap<u64, u64>> = BTreeMap::new();
    for start in effects.starts() {
        let before = fences
            .entry(start.job)
            .or_default()
            .insert(start.attempt, start.fence);
        assert_eq!(
            before, None,
            "attempt {}.{} started twice",
            start.job, start.attempt
        );
    }
    for (job, attempts) in fences {
        let fences: Vec<u64> = attempts.values().copied().collect();
        assert!(
            fences.is_sorted_by(|a, b| a < b),
            "fences of job {job} do not rise: {fences:?}"
        );
    }
}

#[test]
fn a_retry_whose_server_is_killed_meanwhile_runs_at_its_due_time_and_once() {
    let mut cluster = Cluster::start();
    let _worker = cluster.worker("w-1", 1);
    let effects = cluster.effects();
    let mut job = effects.job(r#"[ "$HOSTLER_ATTEMPT" = 2 ]"#);
    job["retry"] = json!({"max_attempts": 2, "backoff_ms": 6_000});
    let id = cluster.submit(&job);
    let waiting = cluster.await_state(id, "scheduled");
    assert_eq!(waiting["reason"], "back_off", "{waiting}");
    cluster.restart_server();

    let after = cluster.job(id);
    assert_eq!(
        after["state"], "scheduled",
        "the restart came too late to show anything: {after}"
    );
    let due = parse_rfc3339_ms(after["due_at"].as_str().unwrap());
    let before = parse_rfc3339_ms(waiting["due_at"].as_str().unwrap());
    assert!(
        (due - before).abs() <= 1,
        "due at {before}, after the restart at {due}"
    );
    let end = cluster.await_end(id);
    assert_eq!(
        (&end["state"], &end["attempt"]),
        (&json!("succeeded"), &json!(2)),
        "{end}"
    );
    let starts = effects.of(id);
    let attempts: Vec<u64> = starts.iter().map(|start| start.attempt).collect();
    assert_eq!(attempts, [1, 2]);
    let late = starts[1].at_ms - due;
    assert!(late >= -1, "attempt 2 started {} ms early", -late);
    assert!(late < 5_000, "attempt 2 started {late} ms late");
    let first_delay = starts[1].at_ms - starts[0].at_ms;
    assert!(
        first_delay >= 3_000,
        "the back-off is at least half its base: {first_delay} ms"
    );
}

#[test]
fn a_stopped_server_leaves_running_jobs_to_the_next_one() {
    let mut cluster = Cluster::start();
    let _worker = cluster.worker("w-1", 2);
    let effects = cluster.effects();
    let gate = cluster.scratch().join("gate");
    let across = cluster.submit(&effects.job(&until_exists_line(&gate)));
    // This one ends while no server is there to be told.
    let brief = cluster.scratch().join("brief");
    let between = cluster.submit(&effects.job(&until_exists_line(&brief)));
    first_start(&effects, across);
    first_start(&effects, between);
    cluster.stop_server().expect_code(0);
    std::fs::write(&brief, "").unwrap();
    eventually(PATIENCE, "only one job is left", || {
        let commands = cluster.scratch().processes();
        commands
            .iter()
            .filter(|(_, it)| it.contains("HOSTLER_JOB_ID"))
            .count()
            == 1
    });
    cluster.start_server();
    let end = cluster.await_end(between);
    assert_eq!(
        (&end["state"], &end["attempt"]),
        (&json!("succeeded"), &json!(1)),
        "{end}"
    );
    assert_eq!(cluster.await_state(across, "running")["attempt"], 1);
    std::fs::write(&gate, "").unwrap();
    assert_eq!(cluster.await_end(across)["state"], "succeeded");
    assert_eq!(
        (effects.of(across).len(), effects.of(between).len()),
        (1, 1)
    );
    cluster.database().check();
}

#[test]
fn a_killed_workers_job_runs_again_elsewhere_after_the_grace() {
    let mut cluster = Cluster::with(&["--worker-grace", SHORT_GRACE]);
    let mut first = cluster.worker("w-1", 1);
    let effects = cluster.effects();
    let id = cluster.submit(&effects.job(r#"[ "$HOSTLER_ATTEMPT" = 2 ] || sleep 120"#));
    first_start(&effects, id);
    let _second = cluster.worker("w-2", 1);
    first.kill();
    let end = cluster.await_end(id);
    assert_eq!(
        (&end["state"], &end["attempt"]),
        (&json!("succeeded"), &json!(2)),
        "{end}"
    );
    assert_eq!(end["worker"], "w-2");
    let history = cluster.database().attempts(id);
    assert_eq!(history[0], (1, "worker_lost".to_owned()), "{history:?}");
    check_attempts(&effects);
}

#[test]
fn a_job_that_bears_no_loss_is_never_started_again() {
    let mut cluster = Cluster::with(&["--worker-grace", SHORT_GRACE]);
    let mut first = cluster.worker("w-1", 1);
    let mut second = cluster.worker("w-2", 1);
    let effects = cluster.effects();
    let mut job = effects.job("sleep 120");
    job["max_losses"] = json!(0);
    let id = cluster.submit(&job);
    first_start(&effects, id);
    let holder = cluster.job(id)["worker"].as_str().unwrap().to_owned();
    if holder == "w-1" {
        first.kill()
    } else {
        second.kill()
    }
    let end = cluster.await_end(id);
    assert_eq!(
        (&end["state"], &end["reason"]),
        (&json!("failed"), &json!("worker_lost")),
        "{end}"
    );
    assert_eq!(effects.of(id).len(), 1);
}

#[test]
fn a_link_cut_for_less_than_the_grace_runs_nothing_again() {
    let mut cluster = Cluster::start();
    let relay = Relay::to(cluster.worker_addr());
    let _worker = cluster.worker_via(relay.addr(), "w-1", 2, &[]);
    let effects = cluster.effects();
    let gate = cluster.scratch().join("gate");
    let long = cluster.submit(&effects.job(&until_exists_line(&gate)));
    let brief = cluster.scratch().join("brief");
    let ends_meanwhile = cluster.submit(&effects.job(&until_exists_line(&brief)));
    first_start(&effects, long);
    first_start(&effects, ends_meanwhile);
    relay.refuse(true);
    assert_eq!(relay.cut(Role::Control), 1);
    std::fs::write(&brief, "").unwrap();
    eventually(PATIENCE, "the server misses the worker", || {
        cluster
            .worker_view("w-1")
            .is_none_or(|worker| worker["connected"] == false)
    });
    relay.refuse(false);
    let end = cluster.await_end(ends_meanwhile);
    assert_eq!(
        (&end["state"], &end["attempt"]),
        (&json!("succeeded"), &json!(1)),
        "{end}"
    );
    std::fs::write(&gate, "").unwrap();
    assert_eq!(cluster.await_end(long)["attempt"], 1);
    assert_eq!(
        (effects.of(long).len(), effects.of(ends_meanwhile).len()),
        (1, 1)
    );
}

#[test]
fn a_draining_worker_finishes_what_runs_and_leaves_the_rest_to_others() {
    let mut cluster = Cluster::start();
    let mut first = cluster.worker("w-1", 1);
    let effects = cluster.effects();
    let gate = cluster.scratch().join("gate");
    let running = cluster.submit(&effects.job(&until_exists_line(&gate)));
    first_start(&effects, running);
    let waiting: Vec<u64> = (0..3)
        .map(|_| cluster.submit(&effects.job("true")))
        .collect();
    first.drain();
    never(
        Duration::from_millis(500),
        "a draining worker begins something",
        || effects.starts().len() > 1,
    );
    assert!(first.process.runs(), "it does not leave while a job runs");
    let _second = cluster.worker("w-2", 1);
    for id in &waiting {
        let end = cluster.await_end(*id);
        assert_eq!(
            (&end["state"], &end["worker"]),
            (&json!("succeeded"), &json!("w-2")),
            "{end}"
        );
    }
    std::fs::write(&gate, "").unwrap();
    let end = cluster.await_end(running);
    assert_eq!(
        (&end["worker"], &end["attempt"]),
        (&json!("w-1"), &json!(1)),
        "{end}"
    );
    first.wait(PATIENCE).expect_code(0);
}

#[test]
fn what_outlives_the_drain_timeout_is_returned_uncharged() {
    let mut cluster = Cluster::start();
    let addr = cluster.worker_addr();
    let mut first = cluster.worker_via(addr, "w-1", 1, &["--drain-timeout", "500ms"]);
    let effects = cluster.effects();
    // One try only: a charged failure would end the job.
    let id = cluster.submit(&effects.job(r#"[ "$HOSTLER_ATTEMPT" != 1 ] || sleep 120"#));
    first_start(&effects, id);
    first.drain();
    first.wait(PATIENCE).expect_code(0);
    let _second = cluster.worker("w-2", 1);
    let end = cluster.await_end(id);
    assert_eq!(
        (&end["state"], &end["attempt"]),
        (&json!("succeeded"), &json!(2)),
        "{end}"
    );
    assert_eq!(end["failures"], 0, "{end}");
    assert_eq!(
        cluster.database().attempts(id)[0],
        (1, "returned".to_owned())
    );
}

#[test]
fn a_worker_frozen_beyond_the_grace_loses_its_job_and_its_late_word_changes_nothing() {
    let mut cluster = Cluster::with(&["--worker-grace", SHORT_GRACE]);
    let first = cluster.worker("w-1", 1);
    let effects = cluster.effects();
    // Attempt 1 would fail; it ends while its worker is frozen.
    let id = cluster.submit(&effects.job(r#"[ "$HOSTLER_ATTEMPT" = 2 ] || { sleep 1; exit 1; }"#));
    first_start(&effects, id);
    first.process.freeze();
    let _second = cluster.worker("w-2", 1);
    let end = cluster.await_end(id);
    assert_eq!(
        (&end["state"], &end["attempt"]),
        (&json!("succeeded"), &json!(2)),
        "{end}"
    );
    first.process.thaw();
    cluster.await_worker("w-1");
    let after = cluster.job(id);
    for field in ["state", "attempt", "worker", "finished_at"] {
        assert_eq!(after[field], end[field], "{field}");
    }
    check_attempts(&effects);
    cluster.prove_healthy();
}

#[test]
fn a_second_worker_of_one_name_waits_until_the_first_is_gone() {
    let mut cluster = Cluster::start();
    let mut first = cluster.worker("w-1", 1);
    let effects = cluster.effects();
    let id = cluster.submit(&effects.job(r#"[ "$HOSTLER_ATTEMPT" = 2 ] || sleep 120"#));
    first_start(&effects, id);
    let addr = cluster.worker_addr().to_string();
    let mut second = cluster.spawn_worker(&addr, "w-1", 1, &[]);
    eventually(PATIENCE, "the second is told why it waits", || {
        assert!(second.process.runs(), "{}", second.process.stderr());
        second.process.stderr().contains("of this name")
    });
    let view = cluster.job(id);
    assert_eq!(
        (&view["state"], &view["attempt"]),
        (&json!("running"), &json!(1))
    );
    assert_eq!(effects.of(id).len(), 1);
    // It is another instance: what the first one held is lost with it, at once.
    first.kill();
    let end = cluster.await_end(id);
    assert_eq!(
        (&end["state"], &end["attempt"], &end["worker"]),
        (&json!("succeeded"), &json!(2), &json!("w-1")),
        "{end}"
    );
    check_attempts(&effects);
    cluster.database().check();
}

#[test]
fn a_restored_backup_does_not_take_a_workers_old_attempts_for_its_own() {
    let mut cluster = Cluster::start();
    cluster.stop_server().expect_code(0);
    let (data, backup) = (cluster.data(), cluster.scratch().join("backup"));
    copy_files(&data, &backup);

    cluster.start_server();
    let _worker = cluster.worker("w-1", 1);
    let effects = cluster.effects();
    let gate = cluster.scratch().join("gate");
    let old = cluster.submit(&effects.job(&format!("{}; exit 7", until_exists_line(&gate))));
    let old_start = first_start(&effects, old);
    let old_pid = live_pid(&cluster, old);
    cluster.kill_server();

    // The server goes back to what it was: the same ids and the same number of its start will be given out again.
    std::fs::remove_dir_all(&data).unwrap();
    copy_files(&backup, &data);
    cluster.start_server();
    let new = cluster.submit(&effects.job("true"));
    assert_eq!(new, old, "not the situation that was meant");
    cluster.await_worker("w-1");
    let end = cluster.await_end(new);
    // It was given to the worker by the old one's name, and given back, or the old one was gone by then.
    assert_eq!(
        (&end["state"], &end["exit_code"]),
        (&json!("succeeded"), &json!(0)),
        "{end}"
    );
    for former in end["attempts"].as_array().unwrap().iter().rev().skip(1) {
        assert_eq!(former["reason"], "returned", "{end}");
    }
    let starts = effects.of(new);
    assert_eq!(starts.len(), 2, "the old one and the new one: {starts:?}");
    assert_eq!(starts[0], old_start);
    let pid = i32::try_from(old_pid.as_u64().unwrap()).unwrap();
    eventually(PATIENCE, "the job nobody remembers is ended", || {
        !hostler_tests::alive(rustix::process::Pid::from_raw(pid).unwrap())
    });
    cluster.prove_healthy();
    cluster.database().check();
}

fn copy_files(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_files(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[test]
fn a_lock_of_a_killed_server_is_not_in_the_way_although_its_jobs_live_on() {
    let mut cluster = Cluster::start();
    let gate = cluster.scratch().join("gate");
    let _worker = cluster.worker("w-1", 1);
    let id = cluster.submit(&json!({"command": until_exists(&gate)}));
    cluster.await_state(id, "running");
    cluster.restart_server();
    std::fs::write(&gate, "").unwrap();
    assert_eq!(cluster.await_end(id)["state"], "succeeded");
}

fn live_pid(cluster: &Cluster, id: u64) -> Value {
    let mut client = cluster.client();
    wait_for(PATIENCE, format!("the worker tells of job {id}"), || {
        let live = client.get(format!("/jobs/{id}")).expect(200).json()["live"].clone();
        (live["seen"] == "yes").then(|| live["pid"].clone())
    })
}
