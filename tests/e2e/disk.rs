//! A disk that is full, fails, or holds damage: nothing false is said, nothing acknowledged is lost, and where it can the
//! server comes back by itself.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use hostler_tests::{
    Client, Cluster, Database, LoopDisk, PATIENCE, Process, ReadOnly, Request, Scratch, SmallDisk,
    eventually, never,
};
use rustix::process::{Resource, Rlimit, prlimit};
use serde_json::{Value, json};

use crate::submit::{first_start, until_exists_line};

/// The figure: accepting again by itself after space is there.
const COMES_BACK: Duration = Duration::from_secs(20);

fn left_out() {
    eprintln!("left out: only root may mount a small disk");
}

/// A job whose body takes room.
fn large_job() -> Value {
    json!({"command": ["true"], "stdin": "x".repeat(64 << 10), "priority": -9})
}

/// Submits until a job is refused; the ids of those accepted, and the refusal.
fn submit_until_refused(client: &mut Client) -> (Vec<u64>, Value) {
    let mut accepted = Vec::new();
    loop {
        assert!(accepted.len() < 2_000, "the disk is never full");
        let answer = client.ask(Request::post("/jobs").json(&large_job()));
        if answer.status == 201 {
            accepted.push(answer.json()["id"].as_u64().unwrap());
            continue;
        }
        let retry_after = answer.header("Retry-After").map(str::to_owned);
        assert!(retry_after.is_some(), "when to try again is told");
        return (accepted, answer.problem(503));
    }
}

#[test]
fn a_full_disk_refuses_jobs_answers_reads_and_takes_jobs_again_when_there_is_space() {
    let Some(mut cluster) = Cluster::on_small_disk(28) else {
        return left_out();
    };
    let _worker = cluster.worker("w-1", 1);
    let effects = cluster.effects();
    let gate = cluster.scratch().join("gate");
    let running = cluster.submit(&effects.job(&until_exists_line(&gate)));
    first_start(&effects, running);

    cluster.disk().fill(1 << 20);
    let mut client = cluster.client();
    let (accepted, problem) = submit_until_refused(&mut client);
    assert!(!accepted.is_empty(), "there was room for some");
    assert_eq!(problem["code"], "store_unavailable", "{problem}");
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains("full"), "{detail}");
    let red = client.get("/readyz").problem(503);
    assert!(red["detail"].as_str().unwrap().contains("full"), "{red}");
    client.get("/healthz").expect(200);

    // Reads work, and so does what runs: its worker keeps the result until there is room for it.
    for id in [running, accepted[0], *accepted.last().unwrap()] {
        client.get(format!("/jobs/{id}")).expect(200);
    }
    client.get("/jobs?limit=10").expect(200);
    fs::write(&gate, "").unwrap();
    assert!(cluster.server().runs());

    cluster.disk().clear();
    // Nobody submits anything meanwhile: it must find out by itself.
    eventually(COMES_BACK, "it is ready by itself", || {
        client.get("/readyz").status == 200
    });
    let end = cluster.await_end(running);
    assert_eq!(
        (&end["state"], &end["attempt"]),
        (&json!("succeeded"), &json!(1)),
        "{end}"
    );
    let again = cluster.submit(&large_job());
    for id in accepted.iter().chain([&again]) {
        assert_eq!(cluster.await_end(*id)["state"], "succeeded");
    }
    cluster.database().check();
    cluster.stop_server().expect_code(0);
    cluster.database().check();
}

#[test]
fn output_that_finds_no_room_turns_health_red_and_is_whole_in_the_end() {
    let Some(mut cluster) = Cluster::on_small_disk(28) else {
        return left_out();
    };
    let _worker = cluster.worker("w-1", 1);
    let gate = cluster.scratch().join("gate");
    let line = format!(
        "echo begin; {}; head -c 3000000 /dev/zero; echo end",
        until_exists_line(&gate)
    );
    let id = cluster.submit(&json!({"command": line}));
    eventually(PATIENCE, "it has begun", || {
        cluster.log(id, "stdout").body.starts_with(b"begin")
    });
    cluster.disk().fill(1 << 20);
    fs::write(&gate, "").unwrap();
    let mut client = cluster.client();
    eventually(PATIENCE, "health is red for it", || {
        let answer = client.get("/readyz");
        answer.status == 503 && answer.text().contains("output cannot be stored")
    });
    cluster.disk().clear();
    eventually(COMES_BACK, "it is ready by itself", || {
        client.get("/readyz").status == 200
    });
    assert_eq!(cluster.await_end(id)["state"], "succeeded");
    let whole = "begin\n".len() + 3_000_000 + "end\n".len();
    eventually(PATIENCE, "all of the output is there", || {
        cluster.log(id, "stdout").body.len() == whole
    });
    cluster.stop_server().expect_code(0);
    cluster.database().check();
}

#[test]
fn a_read_only_file_system_refuses_jobs_and_takes_jobs_again_when_it_is_writable() {
    let scratch = Scratch::new();
    let disk = ReadOnly::new(&scratch, &scratch.join("data"));
    let mut cluster = Cluster::in_environment(scratch, &[], disk.environment());
    let _worker = cluster.worker("w-1", 1);
    let gate = cluster.scratch().join("gate");
    let line = format!("echo begin; {}; echo end", until_exists_line(&gate));
    let running = cluster.submit(&json!({"command": line}));
    eventually(PATIENCE, "it has begun", || {
        cluster.log(running, "stdout").body.starts_with(b"begin")
    });
    let mut client = cluster.client();
    let waiting = cluster.submit(&large_job());

    disk.begin();
    let (accepted, problem) = submit_until_refused(&mut client);
    assert_eq!(accepted, [0; 0], "nothing can be kept");
    assert_eq!(problem["code"], "store_unavailable", "{problem}");
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains("read-only"), "{detail}");
    let red = client.get("/readyz").problem(503);
    assert!(
        red["detail"].as_str().unwrap().contains("read-only"),
        "{red}"
    );
    client.get("/healthz").expect(200);
    client.get(format!("/jobs/{running}")).expect(200);
    // Its end and its last line find no place, and are kept by its worker.
    fs::write(&gate, "").unwrap();
    never(
        Duration::from_secs(2),
        "it ends on a read-only disk",
        || client.get(format!("/jobs/{running}")).json()["state"] != "running",
    );
    assert!(cluster.server().runs());
    let stats = client.get("/stats").expect(200).json();
    for counter in [
        "/store/refused",
        "/store/log_bytes",
        "/output/failures",
        "/net/connections",
    ] {
        let counted = stats.pointer(counter).and_then(Value::as_u64);
        assert!(counted > Some(0), "{counter}: {stats}");
    }

    disk.end();
    eventually(COMES_BACK, "it is ready by itself", || {
        client.get("/readyz").status == 200
    });
    let end = cluster.await_end(running);
    assert_eq!(
        (&end["state"], &end["attempt"]),
        (&json!("succeeded"), &json!(1)),
        "{end}"
    );
    eventually(PATIENCE, "all of the output is there", || {
        cluster.log(running, "stdout").body == b"begin\nend\n"[..]
    });
    for id in [waiting, cluster.submit(&large_job())] {
        assert_eq!(cluster.await_end(id)["state"], "succeeded");
    }
    cluster.stop_server().expect_code(0);
    cluster.database().check();
}

#[test]
fn a_file_system_the_kernel_gives_up_refuses_jobs_and_has_every_accepted_one_once_repaired() {
    let scratch = Scratch::new();
    let (image, at) = (scratch.join("disk.img"), scratch.join("data"));
    let Some(disk) = LoopDisk::mount(&image, &at, 160) else {
        return left_out();
    };
    let mut cluster = Cluster::in_environment(scratch, &[], Vec::new());
    // Declared behind the cluster, so that it is unmounted before the cluster's files are removed.
    let disk = disk;
    let mut client = cluster.client();
    let accepted: Vec<u64> = (0..20).map(|_| cluster.submit(&large_job())).collect();
    disk.give_up();
    let answer = client.ask(Request::post("/jobs").json(&large_job()));
    let problem = answer.problem(503);
    let detail = problem["detail"].as_str().unwrap();
    assert!(
        problem["code"] == "store_unavailable" && detail.contains("read-only"),
        "{problem}"
    );
    client.get("/readyz").problem(503);
    client.get(format!("/jobs/{}", accepted[0])).expect(200);
    assert!(cluster.server().runs());
    cluster.kill_server();
    disk.repair();
    cluster.start_server();
    for id in accepted {
        cluster.client().get(format!("/jobs/{id}")).expect(200);
    }
    let _worker = cluster.worker("w-1", 1);
    cluster.prove_healthy();
    cluster.stop_server().expect_code(0);
    cluster.database().check();
}

#[test]
fn a_write_that_fails_is_told_as_unknown_ends_the_server_and_the_next_one_knows() {
    let mut cluster = Cluster::start();
    let first = cluster.submit(&json!({"command": ["true"]}));
    let pid = cluster.server().pid();
    let log = cluster.data().join("hostler.db-wal");
    let length = fs::metadata(&log).unwrap().len();
    // Writes beyond this fail with an error that is not "no space".
    let limit = Rlimit {
        current: Some(length + (64 << 10)),
        maximum: None,
    };
    prlimit(Some(pid), Resource::Fsize, limit).unwrap();
    let mut client = cluster.client();
    let mut accepted = vec![first];
    let unknown = loop {
        let answer = client.ask(Request::post("/jobs").json(&large_job()));
        if answer.status != 201 {
            break answer.problem(503);
        }
        accepted.push(answer.json()["id"].as_u64().unwrap());
        assert!(accepted.len() < 100, "the limit does nothing");
    };
    assert_eq!(unknown["code"], "commit_unknown", "{unknown}");
    eventually(PATIENCE, "the server has ended", || {
        !cluster.server().runs()
    });
    cluster.kill_server();
    cluster.start_server();
    for id in accepted {
        cluster.client().get(format!("/jobs/{id}")).expect(200);
    }
    cluster.database().check();
}

/// Starts a server that cannot start; what it says.
fn refused_start(scratch: &Scratch, data: &Path) -> String {
    let data = data.to_str().unwrap();
    let any = "127.0.0.1:0";
    let args = [
        "server",
        "--listen",
        any,
        "--worker-listen",
        any,
        "--data-dir",
        data,
    ];
    let end = Process::hostler(scratch, &args, &[])
        .wait(PATIENCE)
        .expect_code(1);
    assert!(!end.stderr.contains("panicked"), "{}", end.stderr);
    assert!(end.stderr.contains("error: "), "{}", end.stderr);
    end.stderr
}

#[test]
fn a_start_that_cannot_succeed_says_why_and_what_to_do() {
    let scratch = Scratch::new();
    let file = scratch.join("file");
    fs::write(&file, "not a directory").unwrap();
    let said = refused_start(&scratch, &file);
    assert!(said.contains("file") && said.contains("hint: "), "{said}");
    let said = refused_start(&scratch, Path::new("/proc/nowhere"));
    assert!(
        said.contains("/proc/nowhere") && said.contains("hint: "),
        "{said}"
    );
    let Some(disk) = SmallDisk::mount(&scratch.join("small"), 4) else {
        return left_out();
    };
    disk.fill(0);
    let said = refused_start(&scratch, &scratch.join("small"));
    assert!(said.contains("space") && said.contains("hint: "), "{said}");
    disk.fill(100 << 10);
    let said = refused_start(&scratch, &scratch.join("small"));
    assert!(said.contains("full") && said.contains("hint: "), "{said}");
    disk.clear();
}

#[test]
fn a_damaged_shortened_or_newer_database_is_refused_or_served_truthfully() {
    let mut cluster = Cluster::start();
    let jobs = vec![json!({"command": ["true"], "labels": {"a": "b"}}); 2_000];
    cluster.client().post("/jobs", &json!(jobs)).expect(201);
    cluster.stop_server().expect_code(0);
    let path = cluster.data().join("hostler.db");
    let whole = fs::read(&path).unwrap();
    let page = 16_384;
    let pages = whole.len() / page;
    let mut refused = 0;
    for hurt in 1..pages {
        let mut bytes = whole.clone();
        bytes[hurt * page..][..page].fill(0xa5);
        // What a killed server's log holds would stand in for the page.
        for log in ["hostler.db-wal", "hostler.db-shm"] {
            drop(fs::remove_file(cluster.data().join(log)));
        }
        fs::write(&path, &bytes).unwrap();
        let report = Database::verify_in(&cluster.data());
        assert_ne!(report["findings"], json!([]), "page {hurt}: {report:#}");
        let mut server = cluster.spawn_server();
        let addresses = cluster.data().join("addresses.json");
        eventually(PATIENCE, "it serves or ends", || {
            addresses.exists() || !server.runs()
        });
        if !server.runs() {
            let said = server.stderr();
            assert!(
                said.contains("damaged") || said.contains("malformed"),
                "{said}"
            );
            assert!(!said.contains("panicked"), "{said}");
            refused += 1;
            continue;
        }
        let mut client = cluster.client();
        for id in [1, 700, 1_300, 2_000] {
            let answer = client.get(format!("/jobs/{id}"));
            assert!(
                answer.status == 200 || answer.status == 503,
                "page {hurt}, job {id}: {}",
                answer.text()
            );
        }
        server.kill();
        fs::remove_file(addresses).unwrap();
    }
    assert!(
        refused > 0,
        "no page of {pages} kept a server from starting"
    );

    // A start reads most pages: what it serves must also be true of damage that comes later.
    let without_logs = || {
        for log in ["hostler.db-wal", "hostler.db-shm"] {
            drop(fs::remove_file(cluster.data().join(log)));
        }
    };
    without_logs();
    fs::write(&path, &whole).unwrap();
    let mut server = cluster.spawn_server();
    let addresses = cluster.data().join("addresses.json");
    eventually(PATIENCE, "it serves", || addresses.exists());
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    for hurt in 1..pages {
        file.write_all_at(&[0xa5; 16_384], (hurt * page) as u64)
            .unwrap();
    }
    let mut client = cluster.client();
    let answers = (1..=2_000).step_by(100).map(|id| {
        let answer = client.get(format!("/jobs/{id}"));
        assert!([200, 503].contains(&answer.status), "{}", answer.text());
        answer.status
    });
    let unreadable = answers.filter(|status| *status == 503).count();
    assert!(unreadable > 0, "no answer needed a damaged page");
    server.kill();
    without_logs();

    fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    let said = refused_start(cluster.scratch(), &cluster.data());
    assert!(
        said.contains("malformed") || said.contains("damaged"),
        "{said}"
    );
    fs::write(&path, &whole).unwrap();
    let db = rusqlite::Connection::open(&path).unwrap();
    db.pragma_update(None, "user_version", 9).unwrap();
    drop(db);
    let said = refused_start(cluster.scratch(), &cluster.data());
    assert!(said.contains("schema version 9"), "{said}");
}

#[test]
fn a_second_server_is_refused_and_the_first_goes_on() {
    let mut cluster = Cluster::start();
    let _worker = cluster.worker("w-1", 1);
    let said = refused_start(cluster.scratch(), &cluster.data());
    let pid = format!("pid {}", cluster.server().pid().as_raw_nonzero());
    assert!(
        said.contains("another server") && said.contains(&pid),
        "{said}"
    );
    cluster.prove_healthy();
    // Also while jobs of a worker outlive both, a killed server's lock is not in the way.
    let gate = cluster.scratch().join("gate");
    let effects = cluster.effects();
    let id = cluster.submit(&effects.job(&until_exists_line(&gate)));
    first_start(&effects, id);
    cluster.kill_server();
    cluster.start_server();
    fs::write(&gate, "").unwrap();
    assert_eq!(cluster.await_end(id)["state"], "succeeded");
}
