//! The command line: what it prints and how it ends, as scripts and people rely on it.

use std::fs;
use std::time::Duration;

use hostler_tests::{Cluster, PATIENCE, Process, Scratch, eventually, free_port};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::submit::until_exists_line;

#[test]
fn dev_runs_a_command_through_the_whole_system_and_ends_as_it_did() {
    for (line, code, stdout) in [
        ("echo hello", 0, "hello\n"),
        ("echo oh; exit 3", 3, "oh\n"),
        ("kill -TERM $$", 128 + 15, ""),
    ] {
        let scratch = Scratch::new();
        let port = free_port().to_string();
        let args = ["dev", "--port", &port, "--", "sh", "-c", line];
        let end = Process::hostler(&scratch, &args, &[])
            .wait(PATIENCE)
            .expect_code(code);
        assert_eq!(end.stdout, stdout);
        assert_eq!(scratch.processes(), [], "`{line}` left a process behind");
        assert!(
            scratch.join(".hostler/hostler.db").exists(),
            "the data is kept"
        );
    }
}

#[test]
fn dev_discards_its_data_when_told_to() {
    let scratch = Scratch::new();
    let port = free_port().to_string();
    let args = ["dev", "--ephemeral", "--port", &port, "--", "echo", "hello"];
    let end = Process::hostler(&scratch, &args, &[])
        .wait(PATIENCE)
        .expect_code(0);
    assert_eq!(end.stdout, "hello\n");
    assert!(!scratch.join(".hostler").exists());
}

#[test]
fn dev_takes_its_worker_along_when_it_is_stopped() {
    let scratch = Scratch::new();
    let port = free_port().to_string();
    let mut dev = Process::hostler(&scratch, &["dev", "--port", &port], &[]);
    let url = format!("http://127.0.0.1:{port}");
    let env = [("HOSTLER_URL", url.as_str())];
    eventually(PATIENCE, "dev is up", || {
        assert!(dev.runs(), "dev ended");
        Process::hostler(&scratch, &["health"], &env)
            .wait(PATIENCE)
            .code
            == 0
    });
    let end = Process::hostler(&scratch, &["run", "--", "echo", "hello"], &env).wait(PATIENCE);
    assert_eq!(end.expect_code(0).stdout, "hello\n");
    dev.signal(Signal::INT);
    dev.wait(PATIENCE).expect_code(0);
    assert_eq!(scratch.processes(), []);
}

#[test]
fn run_ends_as_the_job_did() {
    let mut cluster = Cluster::start();
    let _worker = cluster.worker("w-1", 2);
    for (line, code) in [
        ("true", 0),
        ("exit 1", 1),
        ("exit 77", 77),
        ("kill -KILL $$", 137),
    ] {
        cluster
            .hostler(&["run", "--", "sh", "-c", line])
            .expect_code(code);
    }
    let end = cluster
        .hostler(&["run", "--", "sh", "-c", "echo out; echo err >&2"])
        .expect_code(0);
    assert_eq!(end.stdout, "out\n");
    assert!(end.stderr.starts_with("err\n"), "{}", end.stderr);
    assert!(end.stderr.contains("succeeded in"), "{}", end.stderr);
    cluster
        .hostler(&["run", "--timeout", "300ms", "--", "sleep", "60"])
        .expect_code(124);
    // What is our trouble is told from the job's.
    cluster
        .hostler(&["run", "--no-such-flag", "--", "true"])
        .expect_code(125);
    cluster
        .hostler(&["run", "--", "/no/such/program"])
        .expect_code(125);
}

#[test]
fn a_run_that_does_not_start_says_why_and_goes_on_when_a_worker_comes() {
    let mut cluster = Cluster::start();
    let mut run = cluster.spawn_hostler(&["run", "--", "echo", "hello"]);
    eventually(PATIENCE, "it says why", || {
        run.stderr().contains("no worker serves queue default")
    });
    let _worker = cluster.worker("w-1", 2);
    let end = run.wait(PATIENCE).expect_code(0);
    assert_eq!(end.stdout, "hello\n");
    assert_eq!(end.stderr.matches("waits").count(), 1, "{}", end.stderr);
}

#[test]
fn an_interrupted_run_leaves_its_job_alone_or_cancels_it() {
    let mut cluster = Cluster::start();
    let _worker = cluster.worker("w-1", 2);
    let gate = cluster.scratch().join("gate");
    let line = format!("echo ready; {}", until_exists_line(&gate));
    let mut detaching = cluster.spawn_hostler(&["run", "--", "sh", "-c", &line]);
    eventually(PATIENCE, "the job prints", || {
        detaching.stdout() == "ready\n"
    });
    detaching.signal(Signal::INT);
    let end = detaching.wait(PATIENCE).expect_code(125);
    assert!(end.stderr.contains("hostler logs -f 1"), "{}", end.stderr);
    assert_eq!(cluster.job(1)["state"], "running");
    fs::write(&gate, "").unwrap();
    assert_eq!(cluster.await_end(1)["state"], "succeeded");

    let args = [
        "run",
        "--on-interrupt",
        "cancel",
        "--",
        "sh",
        "-c",
        "echo ready; sleep 120",
    ];
    let mut cancelling = cluster.spawn_hostler(&args);
    eventually(PATIENCE, "the job prints", || {
        cancelling.stdout() == "ready\n"
    });
    cancelling.signal(Signal::INT);
    cancelling.wait(PATIENCE);
    assert_eq!(cluster.await_end(2)["state"], "cancelled");
}

#[test]
fn submit_gives_what_was_asked_for_on_stdout_and_nothing_else() {
    let cluster = Cluster::start();
    let id = cluster
        .hostler(&["submit", "-o", "id", "--", "true"])
        .expect_code(0);
    assert_eq!((id.stdout.as_str(), id.stderr.as_str()), ("1\n", ""));
    let human = cluster.hostler(&["submit", "-q", "video", "-n", "encode", "--", "true"]);
    assert_eq!(human.expect_code(0).stdout, "Job 2 queued in video\n");
    let json = cluster
        .hostler(&[
            "submit",
            "-o",
            "json",
            "-p",
            "5",
            "-e",
            "A=b",
            "--retries",
            "3",
            "--",
            "true",
        ])
        .expect_code(0)
        .json();
    assert_eq!((&json["id"], &json["state"]), (&json!(3), &json!("queued")));
    let shown = cluster.job(3);
    assert_eq!(
        (&shown["priority"], &shown["max_attempts"]),
        (&json!(5), &json!(4)),
        "{shown}"
    );
    assert_eq!(shown["env"], json!(["A"]), "names only");
}

#[test]
fn a_stream_of_jobs_is_submitted_and_an_error_tells_how_many_were() {
    let cluster = Cluster::start();
    let lines = "{\"handler\":\"noop\"}\n".repeat(25_000);
    cluster
        .hostler_reading(&["submit", "-"], &lines)
        .expect_code(0);
    assert_eq!(
        cluster.database().number("SELECT count(*) FROM job"),
        25_000
    );

    let bad = format!("{lines}{{\"handler\":7}}\n");
    let end = cluster
        .hostler_reading(&["submit", "-"], &bad)
        .expect_code(2);
    let more = cluster.database().number("SELECT count(*) FROM job") - 25_000;
    assert!(
        end.stderr.contains(&more.to_string()),
        "{more} accepted, told: {}",
        end.stderr
    );
    assert!(end.stderr.contains("25001"), "which line? {}", end.stderr);
}

#[test]
fn wait_tells_by_its_exit_code_how_jobs_ended() {
    let mut cluster = Cluster::start();
    let _worker = cluster.worker("w-1", 2);
    let good = cluster.submit(&json!({"command": ["true"]})).to_string();
    let bad = cluster
        .submit(&json!({"command": "echo broken >&2; exit 4"}))
        .to_string();
    let long = cluster
        .submit(&json!({"command": ["sleep", "120"]}))
        .to_string();
    cluster.hostler(&["wait", &good]).expect_code(0);
    let end = cluster
        .hostler(&["wait", &format!("{good},{bad}")])
        .expect_code(1);
    assert!(
        format!("{}{}", end.stdout, end.stderr).contains("broken"),
        "the reason is shown"
    );
    cluster
        .hostler(&["wait", &long, "--timeout", "300ms"])
        .expect_code(124);
    cluster
        .hostler(&["wait", "--any", &long, &good])
        .expect_code(0);
    cluster.hostler(&["cancel", &long]).expect_code(0);
    cluster.hostler(&["wait", &long]).expect_code(1);
    cluster.hostler(&["wait", "4711"]).expect_code(3);
}

#[test]
fn cancel_takes_selectors_and_tells_conflicts() {
    let mut cluster = Cluster::start();
    for _ in 0..12 {
        cluster.submit(&json!({"command": ["true"], "queue": "default"}));
    }
    cluster.hostler(&["cancel", "1-3,5", "last"]).expect_code(0);
    let cancelled = |id| cluster.job(id)["state"] == "cancelled";
    let gone: Vec<u64> = (1..=12).filter(|id| cancelled(*id)).collect();
    assert_eq!(gone, [1, 2, 3, 5, 12]);
    cluster.hostler(&["cancel", "9-7"]).expect_code(2);
    cluster.hostler(&["cancel", "banana"]).expect_code(2);
    cluster.hostler(&["cancel", "99"]).expect_code(3);
    let _worker = cluster.worker("w-1", 1);
    cluster.await_end(4);
    let end = cluster.hostler(&["cancel", "4"]).expect_code(6);
    assert!(
        end.stderr.contains("error: job 4 already succeeded"),
        "{}",
        end.stderr
    );
}

#[test]
fn cancelling_many_asks_first() {
    let cluster = Cluster::start();
    let jobs = vec![json!({"command": ["true"]}); 30];
    cluster
        .client()
        .post("/jobs", &Value::Array(jobs))
        .expect(201);
    let refused = cluster.hostler(&["cancel", "--queue", "default", "--state", "queued"]);
    assert_eq!(refused.code, 2, "{}", refused.stderr);
    assert!(refused.stderr.contains("-y"), "{}", refused.stderr);
    assert_eq!(cluster.job(30)["state"], "queued");
    cluster
        .hostler(&["cancel", "--queue", "default", "--state", "queued", "-y"])
        .expect_code(0);
    assert_eq!(
        cluster
            .database()
            .number("SELECT count(*) FROM job WHERE state = 'cancelled'"),
        30
    );
}

#[test]
fn logs_follow_a_job_to_its_end() {
    let mut cluster = Cluster::start();
    let _worker = cluster.worker("w-1", 1);
    let gate = cluster.scratch().join("gate");
    let line = format!(
        "echo first; {}; echo last; echo oops >&2",
        until_exists_line(&gate)
    );
    let id = cluster.submit(&json!({"command": line})).to_string();
    let mut follower = cluster.spawn_hostler(&["logs", "-f", &id]);
    eventually(
        PATIENCE,
        "the first line is there while the job runs",
        || follower.stdout() == "first\n",
    );
    assert!(follower.runs());
    // The server may go and come back meanwhile: nothing is missing and nothing comes twice.
    cluster.restart_server();
    fs::write(&gate, "").unwrap();
    let end = follower.wait(PATIENCE).expect_code(0);
    let out: Vec<&str> = end.stdout.lines().filter(|line| *line != "oops").collect();
    assert_eq!(out, ["first", "last"]);

    let logs = |args: &[&str]| cluster.hostler(args).expect_code(0).stdout;
    assert_eq!(logs(&["logs", &id, "--stdout"]), "first\nlast\n");
    assert_eq!(logs(&["logs", &id, "--stderr"]), "oops\n");
    assert_eq!(logs(&["logs", "last", "--stdout", "--tail", "1"]), "last\n");
    cluster.hostler(&["logs", "4711"]).expect_code(3);
}

#[test]
fn list_and_status_show_jobs_in_every_form() {
    let mut cluster = Cluster::start();
    let _worker = cluster.worker("w-1", 1);
    let failed = cluster.submit(&json!({"command": "echo refused >&2; exit 1", "name": "report"}));
    cluster.await_end(failed);
    let waiting = cluster.submit(&json!({"command": ["true"], "queue": "video", "name": "encode"}));

    let table = cluster.hostler(&["list"]).expect_code(0).stdout;
    let head = table.lines().next().unwrap();
    for column in [
        "ID", "STATE", "QUEUE", "NAME", "AGE", "RUN", "ATTEMPT", "WORKER",
    ] {
        assert!(head.contains(column), "no {column} in {head}");
    }
    let row = |name: &str| table.lines().find(|line| line.contains(name)).unwrap();
    assert!(
        row("report").contains("✗ failed") && row("report").contains("exit 1"),
        "{table}"
    );
    assert!(
        row("encode").contains("○ queued") && row("encode").contains("video"),
        "{table}"
    );
    assert!(!table.contains('\u{1b}'), "colours in a file");

    let ids = cluster.hostler(&["ls", "-o", "id"]).expect_code(0).stdout;
    assert_eq!(ids, format!("{waiting}\n{failed}\n"));
    let json = cluster
        .hostler(&["list", "-o", "json", "--state", "failed"])
        .expect_code(0)
        .json();
    assert_eq!(json["jobs"][0]["id"], failed);
    let lines = cluster
        .hostler(&["list", "-o", "ndjson"])
        .expect_code(0)
        .stdout;
    assert_eq!(lines.lines().count(), 2);

    let detail = cluster
        .hostler(&["status", &failed.to_string()])
        .expect_code(0)
        .stdout;
    for word in [
        "report",
        "failed",
        "exit 1",
        "w-1",
        "refused",
        "hostler logs",
    ] {
        assert!(detail.contains(word), "no {word} in\n{detail}");
    }
    let json = cluster
        .hostler(&["status", "-o", "json", &failed.to_string()])
        .expect_code(0);
    assert!(json.stdout.contains("\"exit_code\""), "{}", json.stdout);
    let all = cluster.hostler(&["status"]).expect_code(0).stdout;
    assert!(all.contains("queued"), "{all}");
    cluster.hostler(&["status", "4711"]).expect_code(3);
    cluster
        .hostler(&["list", "--state", "asleep"])
        .expect_code(2);
}

#[test]
fn retry_submits_a_copy() {
    let mut cluster = Cluster::start();
    let _worker = cluster.worker("w-1", 1);
    let id = cluster.submit(&json!({"command": ["false"]}));
    cluster.await_end(id);
    let copy = cluster
        .hostler(&["retry", "-o", "id", &id.to_string()])
        .expect_code(0)
        .stdout;
    let copy: u64 = copy.trim().parse().unwrap();
    assert!(copy > id);
    assert_eq!(cluster.job(copy)["retry_of"], id);
}

#[test]
fn health_and_version_tell_of_server_and_program() {
    let cluster = Cluster::start();
    cluster.hostler(&["health"]).expect_code(0);
    let version = cluster.hostler(&["version"]).expect_code(0).stdout;
    assert!(version.contains(env!("CARGO_PKG_VERSION")), "{version}");
    let told = cluster.client().get("/version").expect(200).json();
    let cluster_id = told["cluster_id"].as_str().unwrap();
    assert!(
        version.contains(&cluster_id[..8]) || version.contains("server"),
        "{version}"
    );
    cluster.hostler(&["--version"]).expect_code(0);
    for shell in ["bash", "zsh", "fish"] {
        let script = cluster
            .hostler(&["completions", shell])
            .expect_code(0)
            .stdout;
        assert!(script.contains("hostler"), "{shell}");
    }
}

#[test]
fn verify_tells_by_its_exit_code_whether_the_files_are_sound() {
    let mut cluster = Cluster::start();
    let _worker = cluster.worker("w-1", 2);
    let done = cluster.submit(&json!({"command": ["echo", "hello"]}));
    cluster.await_end(done);
    let data = cluster.data();
    let dir = data.to_str().unwrap();
    let beside = cluster.hostler(&["verify", dir]).expect_code(0);
    assert!(
        beside.stdout.contains("A server runs on it"),
        "{}",
        beside.stdout
    );
    assert!(beside.stdout.contains("sound"), "{}", beside.stdout);
    cluster.stop_server().expect_code(0);
    let offline = cluster
        .hostler(&["verify", dir, "-o", "json"])
        .expect_code(0);
    assert_eq!(offline.json()["server"], Value::Null);
    assert_eq!(offline.json()["counts"]["jobs"], 1);

    let db = rusqlite::Connection::open(data.join("hostler.db")).unwrap();
    db.execute("DELETE FROM jobs", []).unwrap();
    drop(db);
    let doctored = cluster.hostler(&["verify", dir]).expect_code(1);
    let said = format!("ends: job {done}: it has an end and was never accepted");
    assert!(doctored.stdout.contains(&said), "{}", doctored.stdout);

    let none = cluster.hostler(&["verify", "/no/such"]).expect_code(3);
    assert!(none.stderr.contains("/no/such"), "{}", none.stderr);
    cluster.hostler(&["verify", dir, "more"]).expect_code(2);
}

#[test]
fn without_a_server_the_way_out_is_told() {
    let scratch = Scratch::new();
    let url = format!("http://127.0.0.1:{}", free_port());
    for args in [
        &["list"][..],
        &["health"],
        &["submit", "--", "true"],
        &["wait", "1"],
    ] {
        let end = Process::hostler(&scratch, args, &[("HOSTLER_URL", &url)]).wait(2 * PATIENCE);
        let end = end.expect_code(5);
        assert!(
            end.stderr.contains("error: cannot reach the server at"),
            "{}",
            end.stderr
        );
        assert!(end.stderr.contains(&url), "{}", end.stderr);
        assert!(end.stderr.contains("hint:"), "{}", end.stderr);
        assert_eq!(end.stdout, "");
    }
}

#[test]
fn a_wrong_token_is_told_apart_from_a_wrong_word() {
    let cluster = Cluster::start();
    let url = format!("http://{}", cluster.http_addr());
    let with = |token: &str, args: &[&str]| {
        let env = [("HOSTLER_URL", url.as_str()), ("HOSTLER_TOKEN", token)];
        Process::hostler(cluster.scratch(), args, &env).wait(PATIENCE)
    };
    let worker = fs::read_to_string(cluster.data().join("worker.token")).unwrap();
    for token in ["", worker.trim()] {
        let end = with(token, &["list"]).expect_code(4);
        assert!(end.stderr.contains("token"), "{}", end.stderr);
    }
    let admin = fs::read_to_string(cluster.data().join("admin.token")).unwrap();
    with(admin.trim(), &["list"]).expect_code(0);
    // What the command line names goes before what the environment holds.
    let file = cluster.data().join("admin.token");
    let file = file.to_str().unwrap();
    with(worker.trim(), &["list", "--token-file", file]).expect_code(0);
    for args in [
        &["lisst"][..],
        &["list", "--colour"],
        &["submit"],
        &["wait"],
    ] {
        let end = with(admin.trim(), args).expect_code(2);
        assert!(end.stderr.contains("error"), "{}", end.stderr);
    }
}

#[test]
fn help_fits_one_screen_and_shows_examples() {
    let scratch = Scratch::new();
    let end = Process::hostler(&scratch, &["--help"], &[])
        .wait(PATIENCE)
        .expect_code(0);
    for word in [
        "dev",
        "run",
        "submit",
        "Examples:",
        "hostler run -- make test",
    ] {
        assert!(end.stdout.contains(word), "no {word} in\n{}", end.stdout);
    }
    let widest = end
        .stdout
        .lines()
        .map(|line| line.chars().count())
        .max()
        .unwrap();
    assert!(widest <= 120, "{widest} columns");
}

#[test]
fn an_idle_worker_leaves_when_told_to() {
    let mut cluster = Cluster::start();
    let addr = cluster.worker_addr();
    let mut worker = cluster.worker_via(addr, "w-1", 1, &["--idle-exit", "1s"]);
    cluster.prove_healthy();
    worker.wait(PATIENCE).expect_code(0);
    eventually(
        Duration::from_secs(5),
        "the server knows that it left",
        || {
            cluster
                .worker_view("w-1")
                .is_none_or(|view| view["connected"] == false)
        },
    );
}

#[test]
fn the_cluster_is_seen_at_a_glance_and_top_needs_a_terminal() {
    let mut cluster = Cluster::start();
    let _worker = cluster.worker("w-1", 1);
    cluster.submit(&json!({"handler": "sleep", "payload": {"ms": 600_000}}));
    cluster.submit(&json!({"handler": "noop"}));
    let nowhere = cluster.submit(&json!({"handler": "noop", "queue": "video"}));
    let words = |text: &str| -> Vec<String> {
        let line = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        text.lines().map(line).collect()
    };
    eventually(PATIENCE, "one job runs and two wait", || {
        let stats = cluster.client().get("/stats").expect(200).json();
        stats["held"] == 1 && stats["queued"] == 2 && stats["since_start"]["submitted"] == 3
    });
    let stats = cluster.client().get("/stats").expect(200).json();
    assert!(stats["oldest_wait_ms"].is_u64(), "{stats}");
    let queues = cluster.client().get("/queues").expect(200).json()["queues"].clone();
    assert_eq!(queues[0]["name"], "default", "{queues}");
    let numbers = ["queued", "running", "workers", "slots"];
    assert_eq!(
        numbers.map(|of| queues[0][of].as_u64().unwrap()),
        [1, 1, 1, 1]
    );
    assert_eq!(
        numbers.map(|of| queues[1][of].as_u64().unwrap()),
        [1, 0, 0, 0]
    );

    let status = words(&cluster.hostler(&["status"]).expect_code(0).stdout);
    for wanted in [
        "Jobs 2 queued, 0 scheduled, 1 running, 0 cancelling",
        "Workers 1 connected with 1 slots, 1 in use",
        "QUEUE QUEUED RUNNING OLDEST WAIT WORKERS SLOTS",
    ] {
        assert!(
            status.iter().any(|line| line == wanted),
            "{wanted:?}: {status:#?}"
        );
    }
    let listed = words(&cluster.hostler(&["queues"]).expect_code(0).stdout);
    assert!(
        listed[2].starts_with("video 1 0 ") && listed[2].ends_with("0 0 no worker"),
        "{listed:#?}"
    );

    let top = cluster.hostler(&["top"]).expect_code(2);
    assert!(top.stderr.contains("needs a terminal"), "{}", top.stderr);
    assert!(top.stderr.contains("hint:"), "{}", top.stderr);

    // What is watched is shown again until it is over.
    let nowhere = nowhere.to_string();
    let mut watch = cluster.spawn_hostler(&["status", "-w", &nowhere]);
    eventually(PATIENCE, "it is shown twice", || {
        assert!(watch.runs(), "{}", watch.stderr());
        watch.stdout().matches("queued").count() >= 2
    });
    cluster.hostler(&["cancel", &nowhere]).expect_code(0);
    let end = watch.wait(PATIENCE).expect_code(0);
    assert!(end.stdout.contains("cancelled"), "{}", end.stdout);
}
