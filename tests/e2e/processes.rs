//! Processes on the worker's machine: a job is over when all of it is, however it hides, and nothing else is touched.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use hostler_tests::{Cluster, PATIENCE, alive, elapsed, eventually, never, now, size, wait_for};
use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit};
use serde_json::{Value, json};

use crate::submit::{first_start, until_exists_line};

/// As short as the heartbeat (every two seconds) allows with some room.
const SHORT_GRACE: &str = "6s";

/// Where a job's processes write down their numbers, each on a line.
struct Roll(PathBuf);

impl Roll {
    fn new(cluster: &Cluster, name: &str) -> Self {
        Self(cluster.scratch().join(name))
    }

    /// A line of shell that enters the shell it runs in.
    fn enter(&self) -> String {
        format!("echo $$ >> {}", self.0.display())
    }

    /// A line of shell that leaves a daemon behind: a session of its own, no parent, no pipe of ours, deaf to TERM.
    fn daemon(&self) -> String {
        self.daemon_by("setsid")
    }

    /// The same, started by these words.
    fn daemon_by(&self, words: &str) -> String {
        let script = format!("trap \"\" TERM; {}; exec sleep 120", self.enter());
        format!("({words} sh -c '{script}' > /dev/null 2>&1 &)")
    }

    /// The numbers, once there are so many.
    #[track_caller]
    fn call(&self, count: usize) -> Vec<Pid> {
        wait_for(PATIENCE, format!("{count} processes enter"), || {
            let pids = self.pids();
            (pids.len() >= count).then_some(pids)
        })
    }

    fn pids(&self) -> Vec<Pid> {
        let text = fs::read_to_string(&self.0).unwrap_or_default();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let pid = |line: &str| Pid::from_raw(line.parse().unwrap()).unwrap();
        whole.lines().map(pid).collect()
    }
}

/// Those who live, of all these.
fn living(pids: &[Pid]) -> Vec<Pid> {
    pids.iter().copied().filter(|pid| alive(*pid)).collect()
}

/// How many attempts of a job were lost with their worker.
fn losses(end: &Value) -> usize {
    let attempts = end["attempts"].as_array().unwrap();
    let lost = attempts.iter().filter(|it| it["reason"] == "worker_lost");
    lost.count()
}

fn shell(line: &str) -> Value {
    json!({"command": ["sh", "-c", line]})
}

#[test]
fn what_a_job_leaves_behind_is_ended_before_its_end_is_told_and_the_record_says_so() {
    let mut cluster = Cluster::start();
    let _worker = cluster.worker("w-1", 1);
    let roll = Roll::new(&cluster, "roll");
    // Half of fifty children hold its pipes; two daemons hold nothing.
    let script = format!(
        "for n in 1 2 3 4 5; do for m in 1 2 3 4 5; do
            (exec sleep 120) & echo $! >> {0}
            (exec sleep 120) > /dev/null 2>&1 & echo $! >> {0}
        done; done; {1}; {1}; until [ $(wc -l < {0}) -ge 52 ]; do sleep 0.01; done; echo said; exit 3",
        roll.0.display(),
        roll.daemon(),
    );
    let id = cluster.submit(&shell(&script));
    let pids = roll.call(52);
    let start = now();
    let end = cluster.await_end(id);
    let told = elapsed(start);
    assert_eq!(living(&pids), [], "{end}");
    assert_eq!(
        (&end["state"], &end["exit_code"], &end["message"]),
        (
            &json!("failed"),
            &json!(3),
            &json!("it left 52 processes behind, which were ended")
        ),
        "{end}"
    );
    assert_eq!(cluster.log(id, "stdout").expect(200).text(), "said\n");
    eprintln!("told {told:?} after the last of 52 children was there");
    assert!(told < Duration::from_secs(10), "{told:?}");

    let id = cluster.submit(&json!({"command": ["true"]}));
    assert_eq!(cluster.await_end(id)["message"], Value::Null);
}

#[test]
fn a_daemon_that_holds_nothing_of_ours_is_noticed_all_the_same() {
    let mut cluster = Cluster::start();
    let _worker = cluster.worker("w-1", 1);
    let roll = Roll::new(&cluster, "roll");
    let until = until_exists_line(&roll.0);
    let id = cluster.submit(&shell(&format!("{}; {until}", roll.daemon())));
    let end = cluster.await_end(id);
    assert_eq!(living(&roll.pids()), [], "{end}");
    assert_eq!(
        (&end["state"], &end["message"]),
        (
            &json!("succeeded"),
            &json!("it left a process behind, which was ended")
        ),
        "{end}"
    );
}

#[test]
fn a_child_that_finishes_its_work_soon_is_given_the_time_and_its_output_kept() {
    let mut cluster = Cluster::start();
    let _worker = cluster.worker("w-1", 1);
    let id = cluster.submit(&shell("(sleep 0.05; echo late) & echo early"));
    let end = cluster.await_end(id);
    assert_eq!(
        (&end["state"], &end["message"]),
        (&json!("succeeded"), &Value::Null),
        "{end}"
    );
    let text = cluster.log(id, "stdout").expect(200).text();
    assert_eq!(text, "early\nlate\n");
}

#[test]
fn a_process_outlives_its_job_if_it_leaves_the_group_and_clears_its_marks() {
    let mut cluster = Cluster::start();
    let _worker = cluster.worker("w-1", 1);
    let roll = Roll::new(&cluster, "roll");
    let daemon = roll.daemon_by("env -u HOSTLER_JOB_ID setsid");
    let script = format!(
        "{daemon}; until [ -e {} ]; do sleep 0.01; done",
        roll.0.display()
    );
    let id = cluster.submit(&shell(&script));
    let pids = roll.call(1);
    let end = cluster.await_end(id);
    assert_eq!(
        (&end["state"], &end["message"]),
        (&json!("succeeded"), &Value::Null),
        "{end}"
    );
    cluster.prove_healthy();
    assert_eq!(living(&pids), pids);
}

#[test]
fn a_job_that_daemonizes_is_gone_when_it_is_called_cancelled() {
    let mut cluster = Cluster::start();
    let _worker = cluster.worker("w-1", 1);
    for (n, force) in ["", "?force=1"].into_iter().enumerate() {
        let roll = Roll::new(&cluster, &format!("roll-{n}"));
        let script = format!("{}; {0}; {}; exec sleep 120", roll.daemon(), roll.enter());
        let mut job = shell(&script);
        job["grace_ms"] = json!(300);
        let id = cluster.submit(&job);
        let pids = roll.call(3);
        let start = now();
        cluster
            .client()
            .delete(format!("/jobs/{id}{force}"))
            .expect(202);
        let end = cluster.await_end(id);
        eprintln!("cancelled{force} after {:?}", elapsed(start));
        assert_eq!(end["state"], "cancelled", "{end}");
        assert_eq!(living(&pids), [], "{end}");
    }
    cluster.prove_healthy();
}

#[test]
fn a_time_limit_ends_daemons_too() {
    let mut cluster = Cluster::start();
    let _worker = cluster.worker("w-1", 1);
    let roll = Roll::new(&cluster, "roll");
    let mut job = shell(&format!("{}; exec sleep 120", roll.daemon()));
    job["timeout_ms"] = json!(1_500);
    job["grace_ms"] = json!(200);
    let id = cluster.submit(&job);
    let pids = roll.call(1);
    let end = cluster.await_end(id);
    assert_eq!(
        (&end["state"], &end["reason"]),
        (&json!("failed"), &json!("timeout")),
        "{end}"
    );
    assert_eq!(living(&pids), [], "{end}");
}

#[test]
fn a_job_that_has_stopped_itself_hears_its_cancel() {
    let mut cluster = Cluster::start();
    let _worker = cluster.worker("w-1", 1);
    let roll = Roll::new(&cluster, "roll");
    let script = format!(
        "trap 'exit 9' TERM; {}; kill -STOP $$; sleep 120",
        roll.enter()
    );
    let id = cluster.submit(&shell(&script));
    let pid = roll.call(1)[0].as_raw_nonzero();
    eventually(PATIENCE, "the job stops", || {
        fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") T "))
    });
    cluster.client().delete(format!("/jobs/{id}")).expect(202);
    let end = cluster.await_end(id);
    assert_eq!(
        (&end["state"], &end["exit_code"]),
        (&json!("cancelled"), &json!(9)),
        "{end}"
    );
}

#[test]
fn a_job_that_closes_its_output_has_not_ended() {
    let mut cluster = Cluster::start();
    let _worker = cluster.worker("w-1", 1);
    let gate = cluster.scratch().join("gate");
    let roll = Roll::new(&cluster, "roll");
    let script = format!(
        "echo said; exec >&- 2>&-; {}; {}; exit 5",
        roll.enter(),
        until_exists_line(&gate)
    );
    let id = cluster.submit(&shell(&script));
    roll.call(1);
    never(
        Duration::from_millis(500),
        "it is called ended without its exit",
        || cluster.job(id)["finished_at"].is_string(),
    );
    fs::write(&gate, "").unwrap();
    let end = cluster.await_end(id);
    assert_eq!(
        (&end["state"], &end["exit_code"]),
        (&json!("failed"), &json!(5)),
        "{end}"
    );
    assert_eq!(cluster.log(id, "stdout").expect(200).text(), "said\n");
}

#[test]
fn a_time_limit_that_meets_the_end_leaves_one_of_the_two() {
    let mut cluster = Cluster::start();
    let _worker = cluster.worker("w-1", 2);
    let effects = cluster.effects();
    let mut met = [0; 2];
    for n in 0..size(40, 400) {
        let mut job = effects.job("exec sleep 0.12");
        job["timeout_ms"] = json!(110 + n % 40);
        let end = cluster.await_end(cluster.submit(&job));
        assert_eq!(end["attempt"], 1, "{end}");
        let succeeded = end["state"] == "succeeded" && end["exit_code"] == 0;
        let timed_out = end["state"] == "failed" && end["reason"] == "timeout";
        assert!(succeeded != timed_out, "{end}");
        met[usize::from(timed_out)] += 1;
    }
    eprintln!("{} ended first, {} were ended", met[0], met[1]);
    // No slot leaked: two jobs run side by side.
    let pair = [(); 2].map(|()| cluster.submit(&json!({"command": ["sleep", "60"]})));
    for id in pair {
        cluster.await_state(id, "running");
    }
}

#[test]
fn helpers_that_a_running_job_has_let_go_do_not_stay_as_zombies() {
    let mut cluster = Cluster::start();
    let worker = cluster.worker("w-1", 1);
    let gate = cluster.scratch().join("gate");
    let roll = Roll::new(&cluster, "roll");
    let helper = format!("(setsid sh -c '{}' &)", roll.enter());
    let script = format!(
        "for n in 1 2 3 4 5 6 7 8 9 10; do {helper}; done; {}",
        until_exists_line(&gate)
    );
    let id = cluster.submit(&shell(&script));
    let pids = roll.call(10);
    eventually(PATIENCE, "all ten are reaped", || {
        pids.iter()
            .all(|pid| !Path::new(&format!("/proc/{}", pid.as_raw_nonzero())).exists())
    });
    fs::write(&gate, "").unwrap();
    let end = cluster.await_end(id);
    assert_eq!(end["state"], "succeeded", "{end}");
    drop(worker);
}

/// A process that carries a job's numbers but comes from elsewhere.
fn stranger(cluster: &Cluster, id: u64, fence: u64) -> Child {
    Command::new("sleep")
        .arg("120")
        .current_dir(cluster.scratch().path())
        .env("HOSTLER_JOB_ID", id.to_string())
        .env("HOSTLER_FENCE", fence.to_string())
        .env("HOSTLER_WORKER", "w-1")
        .stdin(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
fn what_a_killed_worker_left_running_is_ended_at_its_next_start_and_nothing_else_is() {
    let mut cluster = Cluster::start();
    let flags = ["--kill-grace", "1s"];
    let addr = cluster.worker_addr();
    let mut worker = cluster.worker_via(addr, "w-1", 1, &flags);
    // The same worker name and the same job number, on this machine, in another cluster.
    let mut elsewhere = Cluster::start();
    let _their_worker = elsewhere.worker("w-1", 1);
    let gate = elsewhere.scratch().join("gate");
    let theirs = elsewhere.submit(&shell(&until_exists_line(&gate)));
    elsewhere.await_state(theirs, "running");

    let effects = cluster.effects();
    let roll = Roll::new(&cluster, "roll");
    // Its shell, a child, a child without marks in its group, and a deaf daemon. The second attempt only looks whether
    // it meets any of them.
    let line = format!(
        "if [ $HOSTLER_ATTEMPT = 1 ]; then
            {enter}; sleep 120 & echo $! >> {roll}; env -i sleep 120 & echo $! >> {roll}; {daemon}; wait
         else for pid in $(cat {roll}); do
            case \"$(cat /proc/$pid/stat 2>&1)\" in *') S '*|*') R '*|*') T '*) exit 77;; esac
         done; fi",
        enter = roll.enter(),
        daemon = roll.daemon(),
        roll = roll.0.display(),
    );
    let id = cluster.submit(&effects.job(&line));
    assert_eq!(id, theirs);
    let fence = first_start(&effects, id).fence;
    let pids = roll.call(4);
    let mut stranger = stranger(&cluster, id, fence);

    worker.kill();
    assert_eq!(living(&pids), pids, "they outlive their worker");
    let start = now();
    let _worker = cluster.worker_via(addr, "w-1", 1, &flags);
    eventually(PATIENCE, "the orphans are gone", || {
        living(&pids).is_empty()
    });
    eprintln!("orphans gone {:?} after the worker's start", elapsed(start));
    // The attempt is gone with its worker: charged as a loss, and run again when nobody of the first was left.
    let end = cluster.await_end(id);
    assert_eq!(
        (&end["state"], &end["exit_code"], losses(&end)),
        (&json!("succeeded"), &json!(0), 1),
        "{end}"
    );
    let attempts = cluster.database().attempts(id);
    assert_eq!(attempts[0], (1, "worker_lost".to_owned()), "{attempts:?}");

    assert!(
        stranger.try_wait().unwrap().is_none(),
        "a stranger was ended"
    );
    stranger.kill().unwrap();
    stranger.wait().unwrap();
    assert_eq!(elsewhere.job(theirs)["state"], "running");
    fs::write(&gate, "").unwrap();
    let end = elsewhere.await_end(theirs);
    assert_eq!(
        (&end["state"], &end["attempt"]),
        (&json!("succeeded"), &json!(1)),
        "{end}"
    );
}

#[test]
fn a_job_that_kills_its_worker_fails_when_its_losses_are_used_up_and_others_go_on() {
    let mut cluster = Cluster::start();
    let addr = cluster.worker_addr().to_string();
    let mut worker = cluster.worker("w-1", 2);
    let effects = cluster.effects();
    let mut poison = effects.job("kill -9 $PPID; sleep 120");
    poison["max_losses"] = json!(1);
    poison["priority"] = json!(10);
    let poison = cluster.submit(&poison);
    let innocent: Vec<u64> = (0..10)
        .map(|_| cluster.submit(&effects.job("sleep 0.05")))
        .collect();
    let mut deaths = 0;
    let end = wait_for(2 * PATIENCE, "the poisonous job ends", || {
        if !worker.process.runs() {
            deaths += 1;
            worker = cluster.spawn_worker(&addr, "w-1", 2, &[]);
        }
        let job = cluster.job(poison);
        job["finished_at"].is_string().then_some(job)
    });
    assert_eq!(
        (&end["state"], &end["reason"], losses(&end)),
        (&json!("failed"), &json!("worker_lost"), 2),
        "{end}"
    );
    assert_eq!(effects.of(poison).len(), 2);
    assert!(deaths >= 1, "{deaths}");
    if !worker.process.runs() {
        worker = cluster.spawn_worker(&addr, "w-1", 2, &[]);
    }
    for id in innocent {
        let end = cluster.await_end(id);
        assert_eq!(end["state"], "succeeded", "{end}");
        assert_eq!(end["failures"], 0, "{end}");
    }
    drop(worker);
}

#[test]
fn the_process_of_a_worker_frozen_beyond_the_grace_is_killed_when_it_thaws() {
    let mut cluster = Cluster::with(&["--worker-grace", SHORT_GRACE]);
    let addr = cluster.worker_addr();
    let first = cluster.worker_via(addr, "w-1", 1, &["--kill-grace", "500ms"]);
    let effects = cluster.effects();
    let roll = Roll::new(&cluster, "roll");
    let line = format!(
        "[ $HOSTLER_ATTEMPT != 1 ] || {{ trap '' TERM; {}; {}; sleep 120; sleep 120; }}",
        roll.enter(),
        roll.daemon()
    );
    let id = cluster.submit(&effects.job(&line));
    let pids = roll.call(2);
    first.process.freeze();
    let _second = cluster.worker("w-2", 1);
    let end = cluster.await_end(id);
    assert_eq!(
        (&end["state"], &end["attempt"], &end["worker"]),
        (&json!("succeeded"), &json!(2), &json!("w-2")),
        "{end}"
    );
    assert_eq!(living(&pids), pids, "its worker is frozen");
    first.process.thaw();
    let start = now();
    eventually(PATIENCE, "the old attempt is gone", || {
        living(&pids).is_empty()
    });
    eprintln!("gone {:?} after the thaw", elapsed(start));
    let after = cluster.job(id);
    for field in ["state", "attempt", "attempts", "worker", "finished_at"] {
        assert_eq!(after[field], end[field], "{field}");
    }
}

#[test]
fn a_second_signal_ends_a_draining_worker_at_once_and_gives_its_jobs_back() {
    let mut cluster = Cluster::start();
    let addr = cluster.worker_addr();
    let mut first = cluster.worker_via(addr, "w-1", 1, &["--drain-timeout", "10m"]);
    let effects = cluster.effects();
    let roll = Roll::new(&cluster, "roll");
    let line = format!(
        "[ $HOSTLER_ATTEMPT != 1 ] || {{ trap '' TERM; {}; {}; sleep 120; sleep 120; }}",
        roll.enter(),
        roll.daemon()
    );
    // One try only: a charged failure would end the job.
    let id = cluster.submit(&effects.job(&line));
    let pids = roll.call(2);
    first.drain();
    eventually(PATIENCE, "the worker drains", || {
        cluster
            .worker_view("w-1")
            .is_some_and(|worker| worker["draining"] == true)
    });
    assert!(first.process.runs());
    assert_eq!(living(&pids), pids);
    first.drain();
    first.wait(PATIENCE).expect_code(0);
    assert_eq!(living(&pids), []);
    let _second = cluster.worker("w-2", 1);
    let end = cluster.await_end(id);
    assert_eq!(
        (&end["state"], &end["failures"], losses(&end)),
        (&json!("succeeded"), &json!(0), 0),
        "{end}"
    );
}

/// Opens the gate once a start was given back, and counts how many were; no job pays for it.
#[track_caller]
fn all_succeed(cluster: &Cluster, ids: &[u64], open: impl FnOnce()) -> u64 {
    eventually(PATIENCE, "a start is given back", || {
        ids.iter()
            .any(|id| cluster.job(*id)["attempt"].as_u64() > Some(1))
    });
    open();
    let mut returned = 0;
    for id in ids {
        let end = cluster.await_end(*id);
        assert_eq!(
            (&end["state"], &end["failures"], losses(&end)),
            (&json!("succeeded"), &json!(0), 0),
            "{end}"
        );
        returned += end["attempt"].as_u64().unwrap() - 1;
    }
    returned
}

#[test]
fn a_worker_short_of_descriptors_gives_jobs_back_and_fails_none() {
    let jobs = size(60, 600);
    let mut cluster = Cluster::start();
    let mut worker = cluster.worker("w-1", 40);
    let few = Rlimit {
        current: Some(64),
        maximum: Some(64),
    };
    prlimit(Some(worker.process.pid()), Resource::Nofile, few).unwrap();
    let effects = cluster.effects();
    let gate = cluster.scratch().join("gate");
    let job = effects.job(&until_exists_line(&gate));
    let ids: Vec<u64> = (0..jobs).map(|_| cluster.submit(&job)).collect();
    let returned = all_succeed(&cluster, &ids, || fs::write(&gate, "").unwrap());
    eprintln!("{returned} starts were given back for want of descriptors");
    for (id, starts) in effects.counts() {
        assert_eq!(starts, 1, "job {id} started {starts} times");
    }
    assert!(worker.process.runs(), "{}", worker.process.stderr());
}

#[test]
fn arguments_and_variables_arrive_exactly_or_are_refused() {
    let mut cluster = Cluster::start();
    let _worker = cluster.worker("w-1", 1);
    let run = |job: &Value| {
        let id = cluster.submit(job);
        let end = cluster.await_end(id);
        (end, cluster.log(id, "stdout").expect(200).text())
    };
    // A hundred thousand arguments.
    let mut argv = vec![
        "sh".to_owned(),
        "-c".to_owned(),
        "echo $# $100000".to_owned(),
    ];
    argv[2] = "echo $# ${100000}".to_owned();
    argv.push("name".to_owned());
    argv.extend((1..=100_000).map(|n| n.to_string()));
    let (end, text) = run(&json!({ "command": argv }));
    assert_eq!(text, "100000 100000\n", "{end}");
    // One of 200 kB is more than the kernel takes.
    let (end, _) = run(&json!({"command": ["true", "x".repeat(200_000)]}));
    assert_eq!(
        (&end["state"], &end["reason"]),
        (&json!("failed"), &json!("spawn_failed")),
        "{end}"
    );
    let message = end["message"].as_str().unwrap();
    assert!(message.contains("Argument list too long"), "{message}");
    // Whatever bytes a text can have, and a library to be loaded first, which concerns the job alone.
    let odd = "a'b\"c\\ $HOME `id` \u{1f434}\n\ttwo lines";
    let job = json!({
        "command": ["sh", "-c", "printf '%s|%s|%s' \"$1\" \"$ODD\" \"$LD_PRELOAD\"", "sh", odd],
        "env": {"ODD": odd, "LD_PRELOAD": "/no/such/library.so"},
    });
    let (end, text) = run(&job);
    assert_eq!(end["state"], "succeeded", "{end}");
    assert_eq!(text, format!("{odd}|{odd}|/no/such/library.so"));
    // What no system can say is refused at the door, by its name.
    for (job, pointer) in [
        (json!({"command": ["echo", "a\u{0}b"]}), "/command/1"),
        (json!({"command": ["true"], "env": {"A=B": "1"}}), "/env"),
        (json!({"command": ["true"], "env": {"A": "x\u{0}"}}), "/env"),
    ] {
        let answer = cluster.client().post("/jobs", &job);
        assert!((400..500).contains(&answer.status), "{}", answer.text());
        assert!(answer.text().contains(pointer), "{}", answer.text());
    }
    cluster.prove_healthy();
}

/// A control group of version 1 below our own, with one limit, if this machine lets us make one.
struct ControlGroup(PathBuf);

impl ControlGroup {
    fn new(controller: &str, file: &str, limit: u64) -> Option<Self> {
        let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
        let ours = groups.lines().find_map(|line| {
            let (_, rest) = line.split_once(&format!(":{controller}:/"))?;
            Some(rest.to_owned())
        })?;
        let name = format!("hostler-e2e-{}", std::process::id());
        let root = Path::new("/sys/fs/cgroup").join(controller);
        let group = Self(root.join(ours).join(name));
        fs::create_dir(&group.0).ok()?;
        fs::write(group.0.join(file), limit.to_string()).ok()?;
        Some(group)
    }

    /// A worker that was in the group before it became one.
    fn worker(&self, cluster: &Cluster, slots: usize) -> Child {
        let script = "read go
            exec \"$0\" worker --name w-1 --slots \"$1\" --server \"$2\" --token-file \"$3\"";
        let mut worker = Command::new("sh")
            .args(["-c", script])
            .arg(hostler_tests::find_binary())
            .arg(slots.to_string())
            .arg(cluster.worker_addr().to_string())
            .arg(cluster.data().join("worker.token"))
            .current_dir(cluster.scratch().path())
            .stdin(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        fs::write(self.0.join("cgroup.procs"), worker.id().to_string()).unwrap();
        let mut stdin = worker.stdin.take().unwrap();
        stdin.write_all(b"go\n").unwrap();
        drop(stdin);
        cluster.await_worker("w-1");
        worker
    }
}

impl Drop for ControlGroup {
    fn drop(&mut self) {
        fs::remove_dir(&self.0).ok();
    }
}

/// Ends a worker that lives.
fn end(mut worker: Child) {
    assert!(worker.try_wait().unwrap().is_none(), "the worker has died");
    kill_process(Pid::from_child(&worker), Signal::TERM).unwrap();
    worker.wait().unwrap();
}

#[test]
fn a_worker_short_of_processes_gives_jobs_back_and_fails_none() {
    let Some(group) = ControlGroup::new("pids", "pids.max", 12) else {
        eprintln!("left out: no control group of version 1 can be made here");
        return;
    };
    let cluster = Cluster::start();
    let worker = group.worker(&cluster, 40);
    let mut gate = Command::new("sleep")
        .arg("120")
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    // Each is one process, starts no other, and ends when the gate does.
    let job = json!({"command": ["tail", "-f", "/dev/null", "-s", "0.1", "--pid", gate.id().to_string()]});
    let jobs = size(40, 400);
    let ids: Vec<u64> = (0..jobs).map(|_| cluster.submit(&job)).collect();
    let returned = all_succeed(&cluster, &ids, || {
        gate.kill().unwrap();
        gate.wait().unwrap();
    });
    eprintln!("{returned} starts were given back for want of processes");
    end(worker);
}

#[test]
fn a_job_killed_for_want_of_memory_is_told_from_one_that_somebody_killed() {
    let Some(group) = ControlGroup::new("memory", "memory.limit_in_bytes", 64 << 20) else {
        eprintln!("left out: no control group of version 1 can be made here");
        return;
    };
    let cluster = Cluster::start();
    let worker = group.worker(&cluster, 1);
    // A line without an end.
    let hungry = json!({"command": ["tail", "/dev/zero"]});
    let killed = shell("kill -9 $$");
    for (job, reason) in [(&hungry, "oom"), (&killed, "signal"), (&hungry, "oom")] {
        let end = cluster.await_end(cluster.submit(job));
        assert_eq!(
            (&end["state"], &end["reason"], &end["signal"]),
            (&json!("failed"), &json!(reason), &json!(9)),
            "{end}"
        );
    }
    end(worker);
}
