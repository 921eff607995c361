//! The load test: each of its parts once, in sizes that say nothing about speed but all about whether it works.

use std::fs;
use std::time::Duration;

use hostler_tests::{Cluster, Finished, Process, Scratch};
use serde_json::Value;

/// Each bench, tiny, with figures it must tell.
const TINY: &[(&[&str], &[&str])] = &[
    (
        &[
            "throughput",
            "--jobs",
            "500",
            "--batch",
            "7",
            "--priorities",
            "3",
            "--clients",
            "3",
        ],
        &[
            "submit → run → result committed",
            "server CPU a job",
            "server, most memory",
        ],
    ),
    (
        &["throughput", "--jobs", "300", "--access", "tls"],
        &["submit → run → result committed"],
    ),
    (
        &[
            "latency",
            "--jobs",
            "20",
            "--seconds",
            "1",
            "--access",
            "open",
        ],
        &["alone: submit → result, p50"],
    ),
    (
        &[
            "latency",
            "--jobs",
            "20",
            "--rate",
            "100",
            "--seconds",
            "1",
            "--clients",
            "8",
        ],
        &[
            "alone: submit → result, p50",
            "at a rate: due → result, p99",
        ],
    ),
    (
        &[
            "process",
            "--jobs",
            "30",
            "--",
            "sh",
            "-c",
            "echo out; echo err >&2",
        ],
        &["submit → run → result committed"],
    ),
    (
        &["backlog", "--jobs", "3000"],
        &["start → dispatching", "memory a queued job"],
    ),
    (
        &["logs", "--jobs", "1", "--lines", "5", "--bytes", "1000000"],
        &["job → disk", "print → follower, idle, p50"],
    ),
    (
        &[
            "connections",
            "--workers",
            "20",
            "--clients",
            "20",
            "--seconds",
            "1",
        ],
        &["submit → result beside them, p50"],
    ),
    (
        &[
            "mixed",
            "--jobs",
            "400",
            "--durability",
            "os",
            "--workers",
            "2",
        ],
        &["submit → end, all kinds"],
    ),
];

fn bench(scratch: &Scratch, args: &[&str]) -> Finished {
    // Global options first: a command of one's own takes all that follows it.
    let args: Vec<&str> = ["bench", "-o", "json", "--report", "report.html"]
        .iter()
        .chain(args)
        .copied()
        .collect();
    Process::hostler(scratch, &args, &[]).wait(Duration::from_secs(300))
}

#[test]
fn every_bench_measures_a_server_of_its_own_and_leaves_nothing_behind() {
    for (args, figures) in TINY {
        let scratch = Scratch::new();
        let result = bench(&scratch, args).expect_code(0).json();
        let told: Vec<&str> = result["figures"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|figure| figure["median"].as_f64() > Some(0.0))
            .map(|figure| figure["name"].as_str().unwrap())
            .collect();
        for figure in *figures {
            assert!(told.contains(figure), "{args:?} told {told:?}");
        }
        let checked = &result["checked"];
        assert!(checked["jobs"].as_u64() > Some(5), "{checked}");
        assert_eq!(
            (&checked["lost"], &checked["twice"]),
            (&0.into(), &0.into())
        );
        assert!(result["environment"]["sync_us"]["p50"].as_f64() > Some(0.0));
        assert_eq!(result["environment"]["server"], "its own, on this machine");
        let page = fs::read_to_string(scratch.join("report.html")).unwrap();
        assert!(page.contains("0 lost") && page.ends_with("</html>\n"));
        assert_eq!(scratch.processes(), [], "{args:?} left a process behind");
    }
}

#[test]
fn a_server_that_runs_is_measured_through_its_token_and_only_its_own_jobs_are_judged() {
    let mut cluster = Cluster::start();
    let _worker = cluster.worker("w-1", 2);
    let server = format!("http://{}", cluster.http_addr());
    let failed = cluster.submit(&serde_json::json!({"command": ["false"]}));
    cluster.await_end(failed);
    // A flood of output is measured beside: once is enough for the disk.
    for (args, _) in TINY.iter().filter(|(args, _)| args[0] != "logs") {
        let args: Vec<&str> = ["bench", "--server", &server, "-o", "json"]
            .iter()
            .chain(*args)
            .copied()
            .collect();
        let end = cluster.spawn_hostler(&args).wait(Duration::from_secs(300));
        if args.contains(&"backlog") || args.contains(&"connections") {
            let end = end.expect_code(1);
            assert!(end.stderr.contains("leave out --server"), "{}", end.stderr);
            continue;
        }
        let result = end.expect_code(0).json();
        assert_eq!(result["checked"]["lost"], 0, "{args:?}");
    }
    cluster.prove_healthy();
}

#[test]
fn what_is_no_server_of_ours_is_not_loaded() {
    let scratch = Scratch::new();
    let args = ["bench", "throughput", "--server", "http://127.0.0.1:1"];
    let end = Process::hostler(&scratch, &args, &[]).wait(Duration::from_secs(60));
    let end = end.expect_code(1);
    assert!(end.stderr.contains("no server answers"), "{}", end.stderr);
}

#[test]
fn a_result_is_compared_with_an_older_one() {
    let scratch = Scratch::new();
    let small = ["bench", "throughput", "--jobs", "200"];
    let args: Vec<&str> = small.iter().chain(&["-o", "json"]).copied().collect();
    let first = Process::hostler(&scratch, &args, &[]).wait(Duration::from_secs(60));
    let old: Value = first.expect_code(0).json();
    fs::write(scratch.join("old.json"), old.to_string()).unwrap();
    let compare = ["--compare", "old.json"];
    let args: Vec<&str> = small.iter().chain(&compare).copied().collect();
    let end = Process::hostler(&scratch, &args, &[]).wait(Duration::from_secs(60));
    let end = end.expect_code(0);
    assert!(end.stdout.contains("0 lost"), "{}", end.stdout);
    assert!(end.stderr.contains("ratio"), "{}", end.stderr);
    let args: Vec<&str> = ["bench", "latency"]
        .iter()
        .chain(&compare)
        .copied()
        .collect();
    let other = [&args[..], &["--jobs", "5", "--rate", "0"]].concat();
    let end = Process::hostler(&scratch, &other, &[]).wait(Duration::from_secs(60));
    assert!(end.expect_code(2).stderr.contains("is of throughput"));
}
