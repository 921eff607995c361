//! Output under every fault at once, at sizes that hurt, and read in every way: nothing is missing that is not said to be.
//!
//! The figures (`rss`, `disk`, seconds) are printed, not asserted, but for the bounds that are promised:
//! `HOSTLER_TESTS_FULL=1 cargo nextest run -p hostler-tests --test e2e logs --no-capture`.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use hostler_tests::{Cluster, PATIENCE, Relay, Request, elapsed, eventually, now, size, wait_for};
use hostler_wire::api::base64;
use hostler_wire::frame::Role;
use serde_json::{Value, json};

use crate::submit::until_exists_line;

/// Longest wait at full size.
const LONG: Duration = Duration::from_secs(400);

#[test]
fn random_bytes_on_both_streams_are_exact_over_cuts_and_a_kill_of_the_server() {
    let bytes = size(3_000_000, 25_000_000);
    let mut cluster = Cluster::start();
    let relay = Relay::to(cluster.worker_addr());
    let _worker = cluster.worker_via(relay.addr(), "w-1", 2, &[]);
    let gate = cluster.scratch().join("gate");
    let (out, err) = (cluster.scratch().join("out"), cluster.scratch().join("err"));
    let line = format!(
        "head -c {bytes} /dev/urandom | tee {} & head -c {bytes} /dev/urandom | tee {} >&2 & wait; {}",
        out.display(),
        err.display(),
        until_exists_line(&gate)
    );
    relay.delay(Duration::from_millis(10));
    let job = json!({"command": line, "logs": {"overflow": "block"}});
    let id = cluster.submit(&job);
    let followers = ["--stdout", "--stderr"]
        .map(|stream| cluster.spawn_hostler(&["logs", "-f", &id.to_string(), stream]));

    for (cut, role) in [Role::Output, Role::Control].into_iter().enumerate() {
        let before = relay.passed_bytes();
        eventually(PATIENCE, format!("output flows before cut {cut}"), || {
            relay.open(Role::Output) == 1 && relay.passed_bytes() > before + 300_000
        });
        assert!(relay.cut(role) >= 1);
    }
    let before = relay.passed_bytes();
    eventually(PATIENCE, "output flows before the kill", || {
        relay.passed_bytes() > before + 300_000
    });
    cluster.restart_server();
    relay.delay(Duration::ZERO);
    fs::write(&gate, "").unwrap();
    let end = cluster.await_end(id);
    assert_eq!(
        (&end["state"], &end["attempt"]),
        (&json!("succeeded"), &json!(1)),
        "{end}"
    );

    for (mut follower, (stream, file)) in followers
        .into_iter()
        .zip([("stdout", &out), ("stderr", &err)])
    {
        let printed = fs::read(file).unwrap();
        assert_eq!(printed.len(), bytes);
        let answer = cluster.log(id, stream).expect(200);
        assert_eq!(answer.header("x-log-truncated-bytes"), Some("0"));
        assert!(
            answer.body == printed,
            "{stream} is not what the job printed"
        );
        follower.wait(PATIENCE).expect_code(0);
        assert!(
            follower.stdout_bytes() == printed,
            "the follower of {stream} has {} bytes of {bytes}: {}",
            follower.stdout_bytes().len(),
            follower.stderr()
        );
    }
}

#[test]
fn fifty_followers_at_once_see_every_byte() {
    let mut cluster = Cluster::start();
    let _worker = cluster.worker("w-1", 1);
    let (gate, copy) = (
        cluster.scratch().join("gate"),
        cluster.scratch().join("copy"),
    );
    let bytes = size(200_000, 2_000_000);
    let line = format!(
        "{}; for i in 1 2 3 4 5; do head -c {bytes} /dev/urandom | tee -a {}; sleep 0.1; done",
        until_exists_line(&gate),
        copy.display()
    );
    let id = cluster.submit(&json!({"command": line, "logs": {"overflow": "block"}}));
    cluster.await_state(id, "running");
    let request = Request::get(format!("/jobs/{id}/logs?stream=stdout&follow=1"));
    let followers: Vec<_> = (0..50)
        .map(|_| {
            let mut follower = cluster.client().stream(&request).unwrap();
            thread::spawn(move || follower.rest().unwrap())
        })
        .collect();
    fs::write(&gate, "").unwrap();
    let end = cluster.await_end(id);
    assert_eq!(end["state"], "succeeded", "{end}");
    let copy = fs::read(copy).unwrap();
    for follower in followers {
        assert!(
            follower.join().unwrap() == copy,
            "a follower missed something"
        );
    }
}

#[test]
fn each_stream_keeps_its_order_and_both_together_have_every_line() {
    let mut cluster = Cluster::start();
    let _worker = cluster.worker("w-1", 1);
    let lines = size(3_000, 100_000);
    let line =
        format!("i=0; while [ $i -lt {lines} ]; do echo out $i; echo err $i >&2; i=$((i+1)); done");
    let id = cluster.submit(&json!({"command": line}));
    cluster.await_end(id);
    let request = Request::get(format!("/jobs/{id}/logs")).header("Accept", "application/x-ndjson");
    let answer = cluster.client().ask(request).expect(200).text();
    let mut texts = [Vec::new(), Vec::new()];
    for line in answer.lines() {
        let piece: Value = serde_json::from_str(line).unwrap();
        let text = &mut texts[usize::from(piece["stream"] == "stderr")];
        assert_eq!(piece["offset"], text.len(), "a gap or a repeat");
        text.extend(data_of(&piece));
    }
    for (text, name) in texts.into_iter().zip(["out", "err"]) {
        let expected: String = (0..lines).map(|n| format!("{name} {n}\n")).collect();
        assert!(text == expected.as_bytes(), "{name} is out of order");
    }
}

#[test]
fn a_job_that_closes_its_standard_output_is_followed_to_its_end() {
    let mut cluster = Cluster::start();
    let _worker = cluster.worker("w-1", 1);
    let gate = cluster.scratch().join("gate");
    let line = format!(
        "echo before; exec 1>&-; echo closed >&2; {}; echo still here >&2; exit 3",
        until_exists_line(&gate)
    );
    let id = cluster.submit(&json!({"command": line}));
    let follow = |stream: &str| {
        cluster.spawn_hostler(&["logs", "-f", &id.to_string(), &format!("--{stream}")])
    };
    let (mut out, mut err) = (follow("stdout"), follow("stderr"));
    eventually(PATIENCE, "both streams are followed", || {
        out.stdout() == "before\n" && err.stdout() == "closed\n"
    });
    assert_eq!(cluster.job(id)["state"], "running");
    fs::write(&gate, "").unwrap();
    assert_eq!(cluster.await_end(id)["exit_code"], 3);
    assert_eq!(out.wait(PATIENCE).stdout, "before\n");
    assert_eq!(err.wait(PATIENCE).stdout, "closed\nstill here\n");
}

#[test]
fn what_a_daemon_child_prints_after_its_job_holds_up_neither_the_job_nor_its_followers() {
    let mut cluster = Cluster::start();
    let _worker = cluster.worker("w-1", 1);
    // It ends by the closed pipe, at the latest by itself.
    let daemon = "i=0; while [ $i -lt 600 ]; do echo late || exit; sleep 0.1; i=$((i+1)); done";
    let line = format!("setsid sh -c '{daemon}' & echo done");
    let id = cluster.submit(&json!({"command": line}));
    let mut follower = cluster.spawn_hostler(&["logs", "-f", &id.to_string(), "--stdout"]);
    let end = cluster.await_end(id);
    assert_eq!(end["state"], "succeeded", "{end}");
    let followed = follower.wait(PATIENCE).expect_code(0).stdout;
    let text = cluster.log(id, "stdout").expect(200).text();
    assert_eq!(followed, text);
    assert!(text.contains("done\n"), "{text}");
    assert_eq!(end["usage"]["stdout_bytes"], text.len(), "{text}");
}

#[test]
fn a_cancelled_flood_ends_with_what_it_wrote_until_its_end_and_says_what_is_missing() {
    let mut cluster = Cluster::start();
    let _worker = cluster.worker("w-1", 1);
    let copy = cluster.scratch().join("copy");
    let bytes = size(30_000_000, 100_000_000) as u64;
    let line = format!("seq 1 2000000000 | tee {}", copy.display());
    let id = cluster.submit(&json!({"command": line}));
    let written = |path: &Path| fs::metadata(path).map_or(0, |data| data.len());
    eventually(PATIENCE, "it has written enough", || {
        written(&copy) >= bytes
    });
    cluster.client().delete(format!("/jobs/{id}")).expect(202);
    let end = cluster.await_end(id);
    assert_eq!(end["state"], "cancelled", "{end}");
    let total = end["usage"]["stdout_bytes"].as_u64().unwrap();
    // `tee` writes to its output first: all of the copy was read, but for what was in the pipe when both were killed.
    assert!(
        total >= bytes && total + (1 << 20) >= written(&copy),
        "{total}"
    );

    let answer = cluster.log(id, "stdout").expect(200);
    let missing: u64 = answer
        .header("x-log-truncated-bytes")
        .unwrap()
        .parse()
        .unwrap();
    assert_eq!(answer.header("x-log-incomplete-bytes"), None);
    assert_eq!(answer.body.len() as u64 + missing, total);
    let request = Request::get(format!("/jobs/{id}/logs?stream=stdout"))
        .header("Accept", "application/x-ndjson");
    let lines = cluster.client().ask(request).expect(200).text();
    let printed = fs::read(&copy).unwrap();
    let (mut at, mut passed) = (0, 0);
    for line in lines.lines() {
        let value: Value = serde_json::from_str(line).unwrap();
        if let Some(gap) = value["resync"]["missing_bytes"].as_u64() {
            assert_eq!(value["resync"]["offset"], at + gap);
            (at, passed) = (at + gap, passed + gap);
            continue;
        }
        assert_eq!(value["offset"], at, "a gap that was not told");
        let data = data_of(&value);
        // The copy may lack the very last: `tee` writes to its output first.
        let from = usize::try_from(at).unwrap().min(printed.len());
        let same = data.len().min(printed.len() - from);
        assert!(
            data[..same] == printed[from..from + same],
            "not what was printed at {at}"
        );
        at += data.len() as u64;
    }
    assert_eq!(
        (at, passed),
        (total, missing),
        "the end is not what it wrote last"
    );
}

#[test]
fn a_reader_too_slow_for_a_flood_is_told_and_the_job_does_not_wait_for_it() {
    let mut cluster = Cluster::start();
    let _worker = cluster.worker("w-1", 1);
    let gate = cluster.scratch().join("gate");
    let bytes = size(40_000_000, 400_000_000);
    let line = format!("{}; head -c {bytes} /dev/zero", until_exists_line(&gate));
    let job = json!({"command": line, "logs": {"limit_bytes": 1 << 20}});
    let id = cluster.submit(&job);
    cluster.await_state(id, "running");
    let request = Request::get(format!("/jobs/{id}/logs?stream=stdout&follow=1"));
    let mut text = cluster.client().stream(&request).unwrap();
    let request = request.header("Accept", "text/event-stream");
    let mut events = cluster.client().stream(&request).unwrap();
    fs::write(&gate, "").unwrap();
    // Neither of them reads meanwhile.
    let end = cluster.await_end(id);
    assert_eq!(end["state"], "succeeded", "{end}");

    let (mut told, mut passed, mut ended) = (0, 0, false);
    for event in String::from_utf8(events.rest().unwrap())
        .unwrap()
        .split("\n\n")
    {
        let field = |name: &str| event.lines().find_map(|line| line.strip_prefix(name));
        let Some(data) = field("data: ") else {
            continue;
        };
        let value: Value = serde_json::from_str(data).unwrap();
        match field("event: ") {
            Some("resync") => passed += value["missing_bytes"].as_u64().unwrap(),
            Some("end") => ended = true,
            _ => told += data_of(&value).len() as u64,
        }
    }
    assert!(ended && passed > 0, "told {told}, passed over {passed}");
    assert_eq!(told + passed, bytes as u64);
    // Plain text has no place to say so: it does not end as if it were whole.
    assert!(text.rest().is_err());
}

#[test]
fn the_command_line_shows_bytes_as_they_are_and_lines_as_wanted() {
    let mut cluster = Cluster::start();
    let _worker = cluster.worker("w-1", 1);
    let file = cluster.scratch().join("bytes");
    let mut bytes = b"\x1b[31mred\x1b[0m\r\n".to_vec();
    bytes.extend((0..=255).cycle().take(70_000));
    fs::write(&file, &bytes).unwrap();
    let line = format!(
        "cat {}; echo of $HOSTLER_ATTEMPT >&2; exit 1",
        file.display()
    );
    let retry = json!({"max_attempts": 2, "backoff_ms": 1});
    let id = cluster.submit(&json!({"command": line, "retry": retry}));
    assert_eq!(cluster.await_end(id)["attempt"], 2);
    let id = id.to_string();
    for args in [
        &["logs", &id, "--stdout"][..],
        &["logs", "-f", "last", "--stdout"],
    ] {
        let mut shown = cluster.spawn_hostler(args);
        shown.wait(PATIENCE).expect_code(0);

        assert!(shown.stdout_bytes() == bytes, "{args:?}");
    }
    let logs = |args: &[&str]| {
        let args = [&["logs", &id, "--stderr"], args].concat();
        cluster.hostler(&args).expect_code(0).stdout
    };
    assert_eq!(logs(&[]), "of 2\n");
    assert_eq!(logs(&["--attempt", "1"]), "of 1\n");
    assert_eq!(logs(&["--since", "1h"]), "of 2\n");
    assert_eq!(logs(&["--since", "2030-01-01T00:00:00Z"]), "");
    let stamped = logs(&["--timestamps"]);
    let (time, rest) = stamped.split_once(' ').unwrap();
    assert!(
        time.starts_with("20") && time.ends_with('Z') && rest == "of 2\n",
        "{stamped}"
    );
}

#[test]
fn a_follower_for_programs_goes_on_over_a_restart_too() {
    let mut cluster = Cluster::start();
    let _worker = cluster.worker("w-1", 1);
    let gate = cluster.scratch().join("gate");
    let line = format!(
        "seq 1 1000; {}; seq 1001 2000; exit 4",
        until_exists_line(&gate)
    );
    let id = cluster.submit(&json!({"command": line}));
    let mut follower = cluster.spawn_hostler(&["logs", "-f", &id.to_string(), "-o", "ndjson"]);
    eventually(PATIENCE, "something has come", || {
        !follower.stdout().is_empty()
    });
    cluster.restart_server();
    fs::write(&gate, "").unwrap();
    let shown = follower.wait(PATIENCE).expect_code(0).stdout;
    let (mut text, mut end) = (Vec::new(), Value::Null);
    for line in shown.lines() {
        let value: Value = serde_json::from_str(line).unwrap();
        if value["end"].is_null() {
            text.extend(data_of(&value));
        } else {
            end = value["end"].clone();
        }
    }
    let expected: String = (1..=2_000).map(|n| format!("{n}\n")).collect();
    assert_eq!(String::from_utf8(text).unwrap(), expected);
    assert_eq!(
        (&end["state"], &end["exit_code"]),
        (&json!("failed"), &json!(4))
    );
}

#[test]
fn a_flood_and_a_reader_that_never_reads_cost_a_bounded_amount_of_memory_and_disk() {
    let mut cluster = Cluster::start();
    let worker = cluster.worker("w-1", 4);
    let figures = Figures::start(&mut cluster, worker.process.memory_kib("VmRSS"));
    let bytes = size(100_000_000, 1_000_000_000);
    let id = cluster.submit(&json!({"command": format!("head -c {bytes} /dev/zero")}));
    let request = Request::get(format!("/jobs/{id}/logs?follow=1"));
    let never_read = cluster.client().stream(&request).unwrap();
    // Others are served meanwhile, and their lines lie among those of the flood.
    let mut others = Vec::new();
    while cluster.job(id)["finished_at"].is_null() {
        let other = cluster.submit(&json!({"command": ["echo", "hello"]}));
        cluster.await_end(other);
        others.push(other);
    }
    let end = cluster.await_end(id);
    assert_eq!(end["state"], "succeeded", "{end}");
    assert_eq!(end["usage"]["stdout_bytes"], bytes);
    drop(never_read);
    let answer = cluster.log(id, "stdout").expect(200);
    let missing: usize = answer
        .header("x-log-truncated-bytes")
        .unwrap()
        .parse()
        .unwrap();
    assert_eq!(answer.body.len() + missing, bytes);
    for other in &others {
        assert_eq!(cluster.log(*other, "stdout").expect(200).text(), "hello\n");
    }
    let what = format!("a flood of {bytes} bytes, {} jobs beside it", others.len());
    // What is kept, a segment being written and one that waits to be rewritten, and some room.
    figures.tell(&mut cluster, &worker, &what, 200 << 20);
}

#[test]
fn a_hundred_thousand_jobs_with_a_line_each_cost_a_bounded_amount_of_memory_and_disk() {
    let mut cluster = Cluster::start();
    let worker = cluster.worker("w-1", 8);
    let figures = Figures::start(&mut cluster, worker.process.memory_kib("VmRSS"));
    let count = size(1_000, 100_000);
    let mut last = 0;
    let mut client = cluster.client();
    for _ in 0..count / 1_000 {
        // No more than some thousands at a time: what waits is memory too, but not of output.
        wait_for(LONG, "few are under way", || {
            let stats = client.get("/stats").expect(200).json();
            (stats["queued"].as_u64() < Some(2_000)).then_some(())
        });
        let many = vec![json!({"command": ["echo", "a line"]}); 1_000];
        let answer = client.post("/jobs", &Value::Array(many)).expect(201).json();
        last = answer["first_id"].as_u64().unwrap() + 999;
    }
    wait_for(LONG, "all have ended", || {
        let stats = client.get("/stats").expect(200).json();
        (stats["queued"] == 0 && stats["running"] == 0).then_some(())
    });
    for id in (last + 1 - count as u64..=last).step_by(size(37, 997)) {
        assert_eq!(cluster.log(id, "stdout").expect(200).text(), "a line\n");
    }
    figures.tell(
        &mut cluster,
        &worker,
        &format!("{count} jobs with a line each"),
        150 << 20,
    );
}

#[test]
fn millions_of_lines_of_one_job_cost_a_bounded_amount_of_memory_and_disk() {
    let mut cluster = Cluster::start();
    let worker = cluster.worker("w-1", 1);
    let figures = Figures::start(&mut cluster, worker.process.memory_kib("VmRSS"));
    let lines = size(300_000, 10_000_000);
    let script = "BEGIN { for (i = 1; i <= n; i++) { print i; fflush() } }";
    let job = json!({"command": ["awk", "-v", format!("n={lines}"), script]});
    let id = cluster.submit(&job);
    let end = wait_for(LONG, "it has ended", || {
        let job = cluster.job(id);
        job["finished_at"].is_string().then_some(job)
    });
    assert_eq!(end["state"], "succeeded", "{end}");
    let answer = cluster.log(id, "stdout").expect(200);
    let missing: u64 = answer
        .header("x-log-truncated-bytes")
        .unwrap()
        .parse()
        .unwrap();
    assert_eq!(
        answer.body.len() as u64 + missing,
        end["usage"]["stdout_bytes"].as_u64().unwrap()
    );
    assert!(answer.body.starts_with(b"1\n2\n3\n"));
    assert!(answer.body.ends_with(format!("\n{lines}\n").as_bytes()));
    let tail = cluster
        .hostler(&["logs", &id.to_string(), "--tail", "2"])
        .stdout;
    assert_eq!(tail, format!("{}\n{lines}\n", lines - 1));
    figures.tell(
        &mut cluster,
        &worker,
        &format!("{lines} lines of one job"),
        150 << 20,
    );
}

/// What something costs.
struct Figures {
    server_kib: u64,
    worker_kib: u64,
    began: std::time::Instant,
    output: PathBuf,
}

/// How much more memory a server may take, whatever jobs print.
const SERVER_MORE_KIB_MAX: u64 = 64 << 10;

impl Figures {
    fn start(cluster: &mut Cluster, worker_kib: u64) -> Self {
        // What the first job costs is not the flood's.
        let id = cluster.submit(&json!({"command": ["echo", "first"]}));
        cluster.await_end(id);
        let output = cluster.data().join("output");
        let server = cluster.server();
        server.forget_peak();
        Self {
            server_kib: server.memory_kib("VmRSS"),
            worker_kib,
            began: now(),
            output,
        }
    }

    /// Tells them, and checks what is promised.
    #[track_caller]
    fn tell(
        &self,
        cluster: &mut Cluster,
        worker: &hostler_tests::WorkerProc,
        what: &str,
        disk_max: u64,
    ) {
        let server = cluster
            .server()
            .memory_kib("VmHWM")
            .saturating_sub(self.server_kib);
        let peak = worker.process.memory_kib("VmHWM");
        let disk = disk_bytes(&self.output);
        eprintln!(
            "{what}: {:.1} s; server +{:.1} MiB at its peak, worker {:.1} MiB (+{:.1}); {:.1} MiB on disk",
            elapsed(self.began).as_secs_f64(),
            mib(server << 10),
            mib(peak << 10),
            mib(peak.saturating_sub(self.worker_kib) << 10),
            mib(disk),
        );
        assert!(
            server <= SERVER_MORE_KIB_MAX,
            "the server took {server} KiB more"
        );
        assert!(disk <= disk_max, "{disk} bytes of output on disk");
    }
}

fn mib(bytes: u64) -> f64 {
    f64::from(u32::try_from(bytes >> 10).unwrap()) / 1_024.0
}

/// What the files of a directory take, as the disk counts.
fn disk_bytes(directory: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let files = fs::read_dir(directory).unwrap();
    // One may go while we look.
    let sizes = files.filter_map(|file| Some(file.ok()?.metadata().ok()?.blocks() * 512));
    sizes.sum()
}

fn data_of(piece: &Value) -> Vec<u8> {
    match piece["data"].as_str() {
        Some(text) => text.as_bytes().to_vec(),
        None => base64::decode(piece["data_b64"].as_str().unwrap()).unwrap(),
    }
}
