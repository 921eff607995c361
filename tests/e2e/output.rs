//! What jobs print: every byte of it, while they run and after, whatever happens to the connection it comes on. And it
//! never holds up anything else.

use std::fs;
use std::time::Duration;

use hostler_tests::{Cluster, PATIENCE, Relay, Request, eventually, never, size};
use hostler_wire::frame::Role;
use serde_json::{Value, json};

use crate::submit::until_exists_line;

#[test]
fn both_streams_come_back_to_the_byte() {
    let mut cluster = Cluster::start();
    let _worker = cluster.worker("w-1", 2);
    let (id, out, err) = chatty(&cluster, 3_000_000, 2_000_000, "");
    let end = cluster.await_end(id);
    assert_eq!(end["state"], "succeeded", "{end}");
    assert_eq!(end["usage"]["stdout_bytes"], 3_000_000, "{end}");
    expect_log(&cluster, id, "stdout", &out());
    expect_log(&cluster, id, "stderr", &err());

    let request = Request::get(format!("/jobs/{id}/logs?stream=stdout"))
        .header("Range", "bytes=1000000-1000099");
    let part = cluster.client().ask(request).expect(206);
    assert_eq!(part.body, out()[1_000_000..1_000_100]);
    assert_eq!(
        part.header("content-range"),
        Some("bytes 1000000-1000099/3000000")
    );
    let beyond =
        Request::get(format!("/jobs/{id}/logs?stream=stdout")).header("Range", "bytes=3000000-");
    cluster.client().ask(beyond).problem(416);

    cluster.restart_server();
    expect_log(&cluster, id, "stdout", &out());
    expect_log(&cluster, id, "stderr", &err());
}

#[test]
fn the_log_is_whole_as_soon_as_the_job_has_ended() {
    let mut cluster = Cluster::start();
    let _worker = cluster.worker("w-1", 2);
    for n in 0..size(40, 400) {
        let line = format!("echo first-{n}; echo second-{n} >&2; echo last-{n}");
        let id = cluster.submit(&json!({"command": line}));
        cluster.await_end(id);
        let text = cluster.log(id, "stdout").expect(200).text();
        assert_eq!(text, format!("first-{n}\nlast-{n}\n"));
        assert_eq!(cluster.log(id, "stderr").text(), format!("second-{n}\n"));
    }
}

#[test]
fn while_the_output_socket_is_held_everything_else_goes_on() {
    let mut cluster = Cluster::start();
    let relay = Relay::to(cluster.worker_addr());
    let _worker = cluster.worker_via(relay.addr(), "w-1", 3, &[]);
    // It opens when output is wanted for the first time.
    let first = cluster.submit(&json!({"command": ["echo", "first"]}));
    cluster.await_end(first);
    assert_eq!(cluster.log(first, "stdout").expect(200).text(), "first\n");
    assert_eq!(relay.open(Role::Output), 1);
    relay.hold(Role::Output);

    let (talker, out, err) = chatty(&cluster, 400_000, 100_000, "");
    // Many times the slots and the credit: without acknowledgements this would stop.
    let many = vec![json!({"command": ["echo", "hello"]}); size(100, 1_000)];
    let count = many.len() as u64;
    let answer = cluster
        .client()
        .post("/jobs", &Value::Array(many))
        .expect(201)
        .json();
    let first = answer["first_id"].as_u64().unwrap();
    for id in (first..first + count).chain([talker]) {
        let end = cluster.await_end(id);
        assert_eq!(end["state"], "succeeded", "{end}");
    }
    assert_eq!(relay.open(Role::Control), 1);
    let held = cluster.log(talker, "stdout");
    assert_ne!(held.body, out(), "the relay held nothing");

    relay.release();
    expect_log(&cluster, talker, "stdout", &out());
    expect_log(&cluster, talker, "stderr", &err());
    for id in first..first + count {
        expect_log(&cluster, id, "stdout", b"hello\n");
    }
}

#[test]
fn a_log_whose_socket_is_cut_is_whole_after_the_reconnect() {
    let mut cluster = Cluster::start();
    let relay = Relay::to(cluster.worker_addr());
    let _worker = cluster.worker_via(relay.addr(), "w-1", 2, &[]);
    let gate = cluster.scratch().join("gate");
    let wait = until_exists_line(&gate);
    // Slowly, so that a cut finds bytes on their way.
    relay.delay(Duration::from_millis(20));
    let (id, out, err) = chatty(&cluster, 2_000_000, 1_000_000, &wait);
    for cut in 0..size(3, 10) {
        let before = relay.passed_bytes();
        eventually(PATIENCE, format!("output flows before cut {cut}"), || {
            relay.open(Role::Output) == 1 && relay.passed_bytes() > before + 200_000
        });
        assert!(relay.cut(Role::Output) >= 1);
    }
    relay.delay(Duration::ZERO);
    fs::write(&gate, "").unwrap();
    let end = cluster.await_end(id);
    assert_eq!(
        (&end["state"], &end["attempt"]),
        (&json!("succeeded"), &json!(1)),
        "{end}"
    );
    expect_log(&cluster, id, "stdout", &out());
    expect_log(&cluster, id, "stderr", &err());
}

#[test]
fn output_goes_on_over_a_kill_of_the_server() {
    let mut cluster = Cluster::start();
    let _worker = cluster.worker("w-1", 1);
    let gate = cluster.scratch().join("gate");
    let wait = until_exists_line(&gate);
    let (id, out, err) = chatty(&cluster, 1_500_000, 500_000, &wait);
    eventually(PATIENCE, "some output has come", || {
        let answer = cluster.log(id, "stdout");
        answer.status == 200 && answer.body.len() > 100_000
    });
    cluster.restart_server();
    fs::write(&gate, "").unwrap();
    assert_eq!(cluster.await_end(id)["attempt"], 1);
    expect_log(&cluster, id, "stdout", &out());
    expect_log(&cluster, id, "stderr", &err());
}

#[test]
fn a_follower_reads_while_the_job_writes_and_ends_with_it() {
    let mut cluster = Cluster::start();
    let _worker = cluster.worker("w-1", 1);
    let gate = cluster.scratch().join("gate");
    let line = format!("echo first; {}; echo last", until_exists_line(&gate));
    let id = cluster.submit(&json!({"command": line}));
    cluster.await_state(id, "running");

    let request = Request::get(format!("/jobs/{id}/logs?stream=stdout&follow=1"));
    let mut follower = cluster.client().stream(&request).unwrap();
    let mut text = Vec::new();
    while !text.ends_with(b"first\n") {
        text.extend(
            follower
                .more()
                .unwrap()
                .expect("the stream ended before the job"),
        );
    }
    assert_eq!(cluster.job(id)["state"], "running");
    fs::write(&gate, "").unwrap();
    text.extend(follower.rest().unwrap());
    assert_eq!(String::from_utf8(text).unwrap(), "first\nlast\n");
}

#[test]
fn events_of_a_log_can_be_resumed_and_end_with_the_end() {
    let mut cluster = Cluster::start();
    let _worker = cluster.worker("w-1", 1);
    let id = cluster.submit(&json!({"command": "echo one; echo two; exit 5"}));
    cluster.await_end(id);
    let request = Request::get(format!("/jobs/{id}/logs?stream=stdout&follow=1"))
        .header("Accept", "text/event-stream");
    let text = cluster.client().ask(request.clone()).expect(200).text();
    let last_event = text.trim_end().rsplit("\n\n").next().unwrap();
    assert!(last_event.contains("event: end"), "{text}");
    let data = last_event
        .lines()
        .find_map(|line| line.strip_prefix("data: "))
        .unwrap();
    let end: Value = serde_json::from_str(data).unwrap();
    assert_eq!(
        (&end["state"], &end["exit_code"]),
        (&json!("failed"), &json!(5)),
        "{end}"
    );
    assert_eq!(
        (&end["truncated_bytes"], &end["incomplete_bytes"]),
        (&json!(0), &json!(0))
    );

    // From the last piece's id on there is nothing but the end.
    let last_id = text
        .lines()
        .filter_map(|line| line.strip_prefix("id: "))
        .next_back()
        .unwrap();
    let resumed = cluster
        .client()
        .ask(request.header("Last-Event-ID", last_id))
        .expect(200)
        .text();
    assert!(resumed.contains("event: end"), "{resumed}");
    assert!(
        !resumed.contains("one") && !resumed.contains("two"),
        "{resumed}"
    );
}

#[test]
fn cut_output_keeps_its_head_and_tail_and_says_how_much_is_missing() {
    let mut cluster = Cluster::start();
    let _worker = cluster.worker("w-1", 1);
    let line = "echo BEGIN; head -c 24000000 /dev/zero | tr '\\0' x; echo END";
    let job = json!({"command": line});
    let id = cluster.submit(&job);
    let end = cluster.await_end(id);
    assert_eq!(end["state"], "succeeded", "{end}");
    let answer = cluster.log(id, "stdout").expect(200);
    let missing: usize = answer
        .header("x-log-truncated-bytes")
        .unwrap()
        .parse()
        .unwrap();
    assert!(missing > 0);
    assert!(answer.body.starts_with(b"BEGIN\n"), "the head is missing");
    assert!(answer.body.ends_with(b"xEND\n"), "the tail is missing");
    let kept = answer.body.iter().filter(|byte| **byte == b'x').count();
    assert!(kept <= 16 << 20, "kept {kept} bytes, the limit is 16 MiB");
}

#[test]
fn a_job_may_ask_for_less_output_to_be_kept() {
    let mut cluster = Cluster::start();
    let _worker = cluster.worker("w-1", 1);
    let line = "echo BEGIN; head -c 4000000 /dev/zero | tr '\\0' x; echo END";
    let job = json!({"command": line, "logs": {"mode": "keep", "limit_bytes": 1 << 20}});
    let id = cluster.submit(&job);
    let end = cluster.await_end(id);
    assert_eq!(end["state"], "succeeded", "{end}");
    for restarted in [false, true] {
        if restarted {
            cluster.restart_server();
        }
        let answer = cluster.log(id, "stdout").expect(200);
        let missing: usize = answer
            .header("x-log-truncated-bytes")
            .unwrap()
            .parse()
            .unwrap();
        assert_eq!(answer.body.len() + missing, 4_000_010);
        assert!(answer.body.starts_with(b"BEGIN\n"), "the head is missing");
        assert!(answer.body.ends_with(b"xEND\n"), "the tail is missing");
        assert!(answer.body.len() <= 1 << 20, "the limit is 1 MiB");
    }
}

#[test]
fn a_job_that_would_rather_wait_loses_no_output() {
    let mut cluster = Cluster::start();
    let _worker = cluster.worker("w-1", 1);
    // More than is kept of one that would not, and more than its worker keeps for a slow server.
    let line = "head -c 100000000 /dev/zero";
    let id = cluster.submit(&json!({"command": line, "logs": {"overflow": "block"}}));
    cluster.await_end(id);
    let answer = cluster.log(id, "stdout").expect(200);
    assert_eq!(answer.header("x-log-truncated-bytes"), Some("0"));
    assert_eq!(answer.body.len(), 100_000_000);
}

#[test]
fn streamed_output_is_for_followers_and_nothing_of_it_is_kept() {
    let mut cluster = Cluster::start();
    let _worker = cluster.worker("w-1", 1);
    let gate = cluster.scratch().join("gate");
    let line = format!("echo first; {}; echo last", until_exists_line(&gate));
    let id = cluster.submit(&json!({"command": line, "logs": {"mode": "stream"}}));
    cluster.await_state(id, "running");
    let request = Request::get(format!("/jobs/{id}/logs?stream=stdout&follow=1"));
    let mut follower = cluster.client().stream(&request).unwrap();
    let mut text = Vec::new();
    while !text.ends_with(b"first\n") {
        text.extend(
            follower
                .more()
                .unwrap()
                .expect("the stream ended before the job"),
        );
    }
    fs::write(&gate, "").unwrap();
    text.extend(follower.rest().unwrap());
    assert_eq!(String::from_utf8(text).unwrap(), "first\nlast\n");

    cluster.await_end(id);
    cluster.restart_server();
    let answer = cluster.log(id, "stdout").expect(200);
    assert_eq!(answer.text(), "");
    assert_eq!(answer.header("x-log-truncated-bytes"), Some("11"));
}

#[test]
fn a_job_that_leaves_a_child_on_its_pipes_ends_when_it_ends() {
    let mut cluster = Cluster::start();
    let _worker = cluster.worker("w-1", 1);
    let id = cluster.submit(&json!({"command": "sleep 120 & echo done"}));
    let end = cluster.await_end(id);
    assert_eq!(end["state"], "succeeded", "{end}");
    assert_eq!(cluster.log(id, "stdout").expect(200).text(), "done\n");
}

#[test]
fn a_reader_that_does_not_read_harms_nobody() {
    let mut cluster = Cluster::start();
    let _worker = cluster.worker("w-1", 2);
    let (id, out, _err) = chatty(&cluster, 8_000_000, 10, "");
    cluster.await_end(id);
    let request = Request::get(format!("/jobs/{id}/logs?stream=stdout&follow=1"));
    let mut idle: Vec<_> = (0..20)
        .map(|_| cluster.client().stream(&request).unwrap())
        .collect();
    never(Duration::from_millis(500), "the server is held up", || {
        cluster.client().get("/healthz").status != 200
    });
    cluster.prove_healthy();
    assert_eq!(idle.pop().unwrap().rest().unwrap().len(), out().len());
}

/// A job that prints that many random bytes on each stream, then runs `then`; and what it printed, from its own copies.
fn chatty(
    cluster: &Cluster,
    out_bytes: usize,
    err_bytes: usize,
    then: &str,
) -> (
    u64,
    impl Fn() -> Vec<u8> + use<>,
    impl Fn() -> Vec<u8> + use<>,
) {
    let (out, err) = (
        cluster.scratch().join("printed.out"),
        cluster.scratch().join("printed.err"),
    );
    let line = format!(
        "head -c {out_bytes} /dev/urandom | tee {}; head -c {err_bytes} /dev/urandom | tee {} >&2; {then}",
        out.display(),
        err.display(),
    );
    let id = cluster.submit(&json!({"command": line}));
    (
        id,
        move || fs::read(&out).unwrap_or_default(),
        move || fs::read(&err).unwrap_or_default(),
    )
}

/// The log is, within reasonable time, exactly this: the worker sends again what a cut connection lost.
#[track_caller]
fn expect_log(cluster: &Cluster, id: u64, stream: &str, expected: &[u8]) {
    let mut seen = (0, false);
    let whole = || {
        let body = cluster.log(id, stream).expect(200).body;
        seen = (body.len(), expected.starts_with(&body));
        body == expected
    };
    let wanted = expected.len();
    let what = format!("the {stream} of job {id} has its {wanted} bytes");
    eventually(PATIENCE, what, whole);
    assert_eq!(seen, (wanted, true));
}
