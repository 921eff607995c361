//! What a job runs in: its environment, its limits, its control group; and the units by which systemd runs us.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hostler_tests::{Cluster, PATIENCE, Process, alive, eventually, wait_for};
use rustix::process::Pid;
use serde_json::json;

/// A worker with these flags and variables.
fn worker(cluster: &Cluster, flags: &[&str], env: &[(&str, &str)]) -> Process {
    let server = cluster.worker_addr().to_string();
    let token = cluster.data().join("worker.token").display().to_string();
    let mut args = vec!["worker", "--name", "w-1", "--slots", "2"];
    args.extend(["--server", &server, "--token-file", &token]);
    args.extend(flags);
    Process::hostler(cluster.scratch(), &args, env)
}

/// What a line of shell says as a job.
fn says(cluster: &Cluster, line: &str) -> String {
    let id = cluster.submit(&json!({"command": line}));
    let end = cluster.await_end(id);
    assert_eq!(end["state"], "succeeded", "{end}");
    cluster.log(id, "stdout").expect(200).text()
}

#[test]
fn a_job_gets_what_its_worker_was_told_to_give_and_nothing_of_the_worker_s_own() {
    let cluster = Cluster::start();
    let flags = [
        "--inherit-env",
        "GREETING",
        "--job-umask",
        "027",
        "--job-rlimit",
        "nofile=64:128,core=0",
    ];
    let env = [
        ("GREETING", "hello"),
        ("LC_PAPER", "C"),
        ("SECRET", "not for jobs"),
        ("HOSTLER_TOKEN_OTHER", "not for jobs"),
        ("LD_PRELOAD", ""),
    ];
    let _worker = worker(&cluster, &flags, &env);
    cluster.await_worker("w-1");
    let line = "umask; ulimit -n; ulimit -Hn; ulimit -c; ls /proc/self/fd | wc -l; pwd; env";
    let text = says(&cluster, line);
    let mut lines = text.lines();
    for expected in ["0027", "64", "128", "0", "4"] {
        assert_eq!(lines.next(), Some(expected), "{text}");
    }
    // Where the worker was started, unless the job says otherwise.
    let here = fs::canonicalize(cluster.scratch().path()).unwrap();
    assert_eq!(lines.next().map(Path::new), Some(&*here), "{text}");
    for expected in ["GREETING=hello", "LC_PAPER=C"] {
        assert!(text.lines().any(|line| line == expected), "{text}");
    }
    for unwanted in ["not for jobs", "TOKEN", "LD_PRELOAD"] {
        assert!(!text.contains(unwanted), "{unwanted} in {text}");
    }
    // A program that cannot be is told as such although another one was started first.
    let empty = cluster.scratch().join("empty");
    fs::write(&empty, "\u{1}").unwrap();
    let all = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(&empty, all).unwrap();
    for (program, word) in [
        ("/no/such/program".to_owned(), "No such file"),
        (empty.display().to_string(), "Exec format error"),
    ] {
        let end = cluster.await_end(cluster.submit(&json!({"command": [program]})));
        assert_eq!(end["reason"], "spawn_failed", "{end}");
        assert!(end["message"].as_str().unwrap().contains(word), "{end}");
    }
}

#[test]
fn what_a_worker_cannot_give_is_refused_when_it_starts() {
    let cluster = Cluster::start();
    for (flags, code, said) in [
        (&["--inherit-env", "HOSTLER_TOKEN"][..], 2, "HOSTLER_TOKEN"),
        (&["--job-umask", "1000"], 2, "mask of permissions"),
        (&["--job-rlimit", "files=3"], 2, "there are as, core"),
        (&["--cgroup=jobs"], 2, "no control group"),
        (
            &["--cgroup=/tmp"],
            2,
            "/tmp is no control group of version 2",
        ),
    ] {
        let mut worker = worker(&cluster, flags, &[]);
        let end = worker.wait(PATIENCE).expect_code(code);
        assert!(end.stderr.contains(said), "{flags:?}: {}", end.stderr);
    }
}

/// A group of version 2, delegated to us as it were, if one can be made here.
struct Delegated(PathBuf);

impl Delegated {
    fn new() -> Option<Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
        let mount = mounts.lines().find_map(|line| {
            let (place, system) = line.split_once(" - ")?;
            let is_it = system.starts_with("cgroup2 ");
            place.split(' ').nth(4).filter(|_| is_it)
        })?;
        let path = Path::new(mount).join(format!("hostler-e2e-{}", std::process::id()));
        fs::create_dir(&path).ok()?;
        Some(Self(path))
    }

    fn groups(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.0).unwrap().flatten();
        let groups = entries.filter(|entry| entry.path().is_dir());
        groups
            .map(|entry| entry.file_name().into_string().unwrap())
            .collect()
    }
}

impl Drop for Delegated {
    fn drop(&mut self) {
        fs::remove_dir(&self.0).ok();
    }
}

#[test]
fn a_job_in_a_group_of_its_own_is_counted_and_ended_with_whoever_hid_from_it() {
    let Some(delegated) = Delegated::new() else {
        eprintln!("left out: no control group of version 2 can be made here");
        return;
    };
    let cluster = Cluster::start();
    let flag = format!("--cgroup={}", delegated.0.display());
    let mut worker = worker(&cluster, &[&flag], &[]);
    cluster.await_worker("w-1");

    // Out of its process group, without its marks, and its parent gone: by none of these it could be found.
    let roll = cluster.scratch().join("hidden");
    let hidden = format!("echo $$ > {}; exec sleep 120", roll.display());
    let line = format!(
        "(env -i setsid /bin/sh -c '{hidden}' > /dev/null 2>&1 &); cat /proc/self/cgroup; \
         while :; do :; done"
    );
    let id = cluster.submit(&json!({"command": ["sh", "-c", line]}));
    let pid = wait_for(PATIENCE, "somebody hides", || {
        let text = fs::read_to_string(&roll).ok()?;
        Pid::from_raw(text.trim().parse().ok()?)
    });
    let path = format!("/jobs/{id}");
    eventually(PATIENCE, "both are counted, and their time", || {
        let live = cluster.client().get(&path).expect(200).json()["live"].clone();
        live["processes"] == 2 && live["cpu_ms"].as_u64() > Some(50)
    });
    assert_eq!(delegated.groups(), [format!("hostler-{id}.1")]);
    let text = cluster.log(id, "stdout").expect(200).text();
    assert!(text.contains(&format!("/hostler-{id}.1")), "{text}");

    cluster
        .hostler(&["cancel", "--force", &id.to_string()])
        .expect_code(0);
    let end = cluster.await_state(id, "cancelled");
    assert!(!alive(pid), "who hid lives: {end}");
    eventually(PATIENCE, "the group is gone", || {
        delegated.groups().is_empty()
    });

    // One that ends by itself leaves nobody behind either.
    let line = format!("env -i setsid /bin/sh -c '{hidden}' > /dev/null 2>&1 & sleep 0.3");
    fs::remove_file(&roll).unwrap();
    let id = cluster.submit(&json!({"command": ["sh", "-c", line]}));
    let end = cluster.await_end(id);
    assert_eq!(end["state"], "succeeded", "{end}");
    let text = fs::read_to_string(&roll).unwrap();
    let pid = Pid::from_raw(text.trim().parse().unwrap()).unwrap();
    assert!(!alive(pid), "who hid lives: {end}");
    eventually(PATIENCE, "the group is gone", || {
        delegated.groups().is_empty()
    });
    worker.terminate(PATIENCE).expect_code(0);
}

#[test]
fn the_units_for_systemd_start_what_there_is_and_wait_long_enough() {
    let units = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/systemd");
    let cluster_free = hostler_tests::Scratch::new();
    for (name, least) in [("server", 30), ("worker", 40)] {
        let path = units.join(format!("hostler-{name}.service"));
        let unit = fs::read_to_string(&path).unwrap();
        let value = |key: &str| {
            let line = unit.lines().find_map(|line| line.strip_prefix(key));
            line.unwrap_or_else(|| panic!("no {key} in {}", path.display()))
        };
        let stop: u64 = value("TimeoutStopSec=").parse().unwrap();
        assert!(stop > least, "{name} is stopped for {stop} s at most");
        let mut words = value("ExecStart=").split(' ').skip(1);
        assert_eq!(words.next(), Some(name));
        let mut help = Process::hostler(&cluster_free, &[name, "--help"], &[]);
        let help = help.wait(Duration::from_secs(60)).expect_code(0).stdout;
        for flag in words.filter(|word| word.starts_with("--")) {
            assert!(help.contains(flag), "hostler {name} has no {flag}");
        }
    }
    // The judge, where it is there.
    let verify = std::process::Command::new("systemd-analyze")
        .args(["verify", "--man=no"])
        .args(["server", "worker"].map(|name| units.join(format!("hostler-{name}.service"))))
        .output();
    match verify {
        Err(_) => eprintln!("left out: no systemd-analyze here"),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            // It also minds that the program is not installed.
            let wrong =
                |line: &&str| line.contains(".service:") && !line.contains("/usr/bin/hostler");
            assert_eq!(said.lines().find(wrong), None, "{said}");
        }
    }
}
