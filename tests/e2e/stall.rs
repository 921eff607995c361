//! What an attempt leaves behind, and what becomes of one that falls silent.

use hostler_tests::{Cluster, find_binary};
use serde_json::{Value, json};

#[test]
fn an_attempt_without_a_sign_of_life_is_ended_and_says_so() {
    let mut cluster = Cluster::start();
    let _worker = cluster.worker("w-1", 3);
    let quiet = [
        json!({"command": "echo once; sleep 120", "stall_ms": 300}),
        json!({"handler": "sleep", "payload": {"ms": 120_000}, "stall_ms": 300}),
        json!({"command": "sleep 120", "stall_ms": 300, "retry": {"max_attempts": 2, "backoff_ms": 1}}),
    ];
    let ids = quiet.map(|job| cluster.submit(&job));
    for id in ids {
        let end = cluster.await_end(id);
        assert_eq!(
            (&end["state"], &end["reason"]),
            (&json!("failed"), &json!("stalled")),
            "{end}"
        );
        let message = "no output, progress or heartbeat for 300ms (stall_ms)";
        assert_eq!(end["message"], message, "{end}");
    }
    let retried = cluster.job(ids[2]);
    let reasons: Vec<&Value> = attempts(&retried).iter().map(|it| &it["reason"]).collect();
    assert_eq!(
        reasons,
        ["stalled", "stalled"],
        "it counts as a failure like others"
    );
    cluster.prove_healthy();
}

#[test]
fn any_sign_of_life_will_do() {
    let mut cluster = Cluster::start();
    let _worker = cluster.worker("w-1", 2);
    let hostler = find_binary().display().to_string();
    // Both take longer than their longest silence; the machine may be busy, hence the wide margin.
    let prints = "for n in 1 2 3 4 5 6 7 8; do echo $n; sleep 0.4; done";
    let beats = "for n in 1 2 3 4 5 6 7 8; do \"$BIN\" progress; sleep 0.4; done";
    let ids = [prints, beats].map(|line| {
        cluster.submit(&json!({"command": line, "stall_ms": 2_500, "env": {"BIN": hostler}}))
    });
    for id in ids {
        let end = cluster.await_end(id);
        assert_eq!(end["state"], "succeeded", "{end}");
        assert!(end["usage"]["wall_ms"].as_u64().unwrap() > 2_500, "{end}");
    }
}

#[test]
fn an_attempt_leaves_what_it_used_and_its_last_lines_whatever_bytes_they_are() {
    let mut cluster = Cluster::start();
    let _worker = cluster.worker("w-1", 1);
    let line = r"echo out; for n in $(seq 30); do echo line $n >&2; done
        printf 'bad \033[2J \377\000 end\n' >&2; exit 3";
    let retry = json!({"max_attempts": 2, "backoff_ms": 1});
    let id = cluster.submit(&json!({"command": line, "retry": retry}));
    let end = cluster.await_end(id);
    let attempts = attempts(&end);
    assert_eq!(attempts.len(), 2, "{end}");
    for attempt in attempts {
        assert_eq!(
            (&attempt["exit_code"], &attempt["worker"]),
            (&json!(3), &json!("w-1"))
        );
        let usage = &attempt["usage"];
        assert_eq!(usage["stdout_bytes"], 4, "{attempt}");
        assert!(usage["stderr_bytes"].as_u64().unwrap() > 200, "{attempt}");
        assert!(
            usage["peak_rss_bytes"].as_u64().unwrap() > 100_000,
            "{attempt}"
        );
        for figure in ["wall_ms", "user_ms", "system_ms"] {
            assert!(usage[figure].is_u64(), "{attempt}");
        }
        let tail = attempt["stderr_tail"].as_str().unwrap();
        assert_eq!(tail.lines().count(), 20, "{tail}");
        assert!(tail.starts_with("line 12\n"), "{tail}");
        assert!(tail.ends_with("bad \u{1b}[2J \u{fffd}\0 end\n"), "{tail:?}");
    }
    let kept = cluster
        .database()
        .number("SELECT count(*) FROM attempt WHERE wall_ms IS NOT NULL AND output_bytes > 200");
    assert_eq!(kept, 2);

    let id = id.to_string();
    let status = cluster.hostler(&["status", &id]).expect_code(0).stdout;
    assert!(status.contains("Last error\n    line 12\n"), "{status}");
    assert!(
        status.contains("    bad \u{fffd}[2J \u{fffd}\u{fffd} end"),
        "{status}"
    );
    assert!(
        !status.contains('\u{1b}'),
        "nothing steers the terminal: {status:?}"
    );
    let wide = cluster
        .hostler(&["status", &id, "-o", "wide"])
        .expect_code(0)
        .stdout;
    assert!(
        wide.contains("#1 ") && wide.contains("peak memory"),
        "{wide}"
    );
}

fn attempts(job: &Value) -> &Vec<Value> {
    job["attempts"].as_array().unwrap()
}
