//! The whole worker against a server played by the test: real sockets and real processes.
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "a test names the frames it waits for"
)]

use bytes::Bytes;
use hostler_wire::Outcome;
use hostler_wire::frame::{Cancel, Frame, LogsMode, Overflow, Probe, Resumed, Role, Task, Work};
use hostler_worker::{Exit, Job, WorkerError};
use serde_json::Value;

use fake::{FakeServer, RunningWorker, command, fence, handler, shell};

#[path = "support/fake.rs"]
mod fake;

#[test]
fn a_command_runs_and_its_output_arrives_byte_for_byte() {
    let server = FakeServer::new();
    let _worker = RunningWorker::start(server.worker());
    let mut control = server.control();
    control.assign([(
        1,
        shell("head -c 3000000 /dev/zero | tr '\\0' x; printf err >&2"),
    )]);
    let Frame::Started(started) = control.next() else {
        panic!("told before it starts")
    };
    assert_eq!(started.fences, [fence(1)]);
    let mut output = server.accept(Role::Output);
    let (stdout, stderr, end) = output.output(1);
    assert!(stdout.len() == 3_000_000 && stdout.iter().all(|&byte| byte == b'x'));
    assert_eq!(stderr, b"err");
    assert_eq!(
        (end.stdout_bytes, end.stderr_bytes, end.dropped_bytes),
        (3_000_000, 3, 0)
    );
    let report = control.report();
    assert_eq!(report.outcome, Outcome::Succeeded);
    assert!(report.started && !report.cancelled);
    let detail = report.detail.unwrap();
    assert_eq!(detail.exit_code, Some(0));
    let usage = detail.usage.unwrap();
    assert_eq!((usage.stdout_bytes, usage.stderr_bytes), (3_000_000, 3));
    assert!(usage.peak_rss_bytes > 0);
    assert_eq!(detail.stderr_tail, b"err");
}

#[test]
fn a_failure_says_its_exit_code_and_its_last_words() {
    let server = FakeServer::new();
    let _worker = RunningWorker::start(server.worker());
    let mut control = server.control();
    control.assign([
        (1, shell("echo no such luck >&2; exit 3")),
        (2, shell("kill -9 $$")),
    ]);
    let report = control.report();
    assert_eq!(report.outcome, Outcome::Exited { code: 3 });
    assert_eq!(report.detail.unwrap().stderr_tail, b"no such luck\n");
    let report = control.report();
    assert_eq!(report.outcome, Outcome::Signalled { signal: 9 });
    assert_eq!(report.detail.unwrap().signal, Some(9));
    control.assign([(3, command(&["/no/such/program"]))]);
    let report = control.report();
    assert_eq!(report.outcome, Outcome::SpawnFailed { errno: 2 });
    assert!(report.detail.unwrap().message.contains("/no/such/program"));
}

#[test]
fn standard_input_is_fed_whole() {
    let server = FakeServer::new();
    let _worker = RunningWorker::start(server.worker());
    let mut control = server.control();
    let mut work = command(&["wc", "-c"]);
    if let Task::Command(command) = &mut work.task {
        command.stdin = Some(Bytes::from(vec![b'y'; 1_000_000]));
    }
    control.assign([(1, work)]);
    let (stdout, _, _) = server.accept(Role::Output).output(1);
    assert_eq!(stdout, b"1000000\n");
}

#[test]
fn a_cut_connection_costs_neither_report_nor_output() {
    let server = FakeServer::new();
    let _worker = RunningWorker::start(server.worker());
    let mut control = server.control();
    let gate = tempfile::tempdir().unwrap();
    let gate = gate.path().join("gate");
    control.assign([(
        1,
        shell(&format!(
            "echo one; until [ -e {} ]; do sleep 0.01; done; echo two",
            gate.display()
        )),
    )]);
    let mut output = server.accept(Role::Output);
    output.output_start(1);
    let Frame::Chunk(chunk) = output.next() else {
        panic!("the first line")
    };
    assert_eq!(&*chunk.data, b"one\n");
    output.output_ack(1, 2, 0, false);
    control.cut();
    output.cut();
    std::fs::write(&gate, "").unwrap();

    let mut control = server.accept(Role::Control);
    let held = &control.login.held;
    assert!(held.len() == 1 && held[0].fence == fence(1) && held[0].started);
    control.send(&Frame::Resumed(Resumed {
        acked: 0,
        void: Vec::new(),
    }));
    let first = control.next();
    let Frame::Reports(_) = &first else {
        panic!("{first:?} instead of the report")
    };
    // Each session has its own output connection.
    let mut output = server.accept(Role::Output);
    output.output_start(1);
    let Frame::Chunk(_) = output.next() else {
        panic!("output is sent again")
    };
    control.cut(); // neither report nor output is acknowledged

    let mut control = server.control();
    assert_eq!(control.login.last_report, 1);
    assert_eq!(control.next(), first);
    let mut output = server.accept(Role::Output);
    // The acknowledgement may or may not have been read before the cut.
    let mut text = Vec::new();
    loop {
        match output.next() {
            Frame::Chunk(chunk) => {
                if text.is_empty() {
                    let kept = usize::try_from(chunk.offset).unwrap();
                    assert!(kept == 0 || kept == 2, "from the last acknowledged byte");
                    text.extend_from_slice(&b"on"[..kept]);
                }
                assert_eq!(chunk.offset, text.len() as u64, "no gap and no overlap");
                text.extend_from_slice(&chunk.data);
            }
            Frame::OutputStart(_) => assert!(text.is_empty(), "it comes first"),
            Frame::OutputEnd(end) => break assert_eq!(end.stdout_bytes, 8),
            frame => panic!("{frame:?}"),
        }
    }
    assert_eq!(text, b"one\ntwo\n");
}

#[test]
fn a_job_that_ignores_term_is_killed_after_its_grace_and_its_children_with_it() {
    let server = FakeServer::new();
    let _worker = RunningWorker::start(server.worker());
    let mut control = server.control();
    let stubborn = Work {
        grace_ms: Some(300),
        ..shell("trap '' TERM; (sleep 60; :) & echo $!; wait; sleep 60")
    };
    control.assign([(1, stubborn)]);
    let mut output = server.accept(Role::Output);
    output.output_start(1);
    let Frame::Chunk(chunk) = output.next() else {
        panic!("the pid of its child")
    };
    control.send(&Frame::Cancel(Cancel {
        fence: fence(1),
        force: false,
    }));
    let report = control.report();
    assert_eq!(report.outcome, Outcome::Signalled { signal: 9 });
    assert!(report.cancelled && report.started && report.run_us >= 300_000);
    let child = String::from_utf8_lossy(&chunk.data).trim().to_owned();
    let stat = std::fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
    assert!(
        stat.is_empty() || stat.contains(") Z "),
        "its child lives: {stat}"
    );
}

#[test]
fn children_get_the_grace_too_when_their_parent_obeys_at_once() {
    let server = FakeServer::new();
    let _worker = RunningWorker::start(server.worker());
    let mut control = server.control();
    let script = "(trap 'sleep 0.3; echo tidied; exit' TERM; echo ready; sleep 60 & wait) & wait";
    control.assign([(1, shell(script))]);
    let mut output = server.accept(Role::Output);
    output.output_start(1);
    let Frame::Chunk(chunk) = output.next() else {
        panic!("ready")
    };
    assert_eq!(&*chunk.data, b"ready\n");
    control.send(&Frame::Cancel(Cancel {
        fence: fence(1),
        force: false,
    }));
    let report = control.report();
    assert_eq!(report.outcome, Outcome::Signalled { signal: 15 });
    assert!(report.cancelled);
    let Frame::Chunk(chunk) = output.next() else {
        panic!("what it said at last")
    };
    assert_eq!(&*chunk.data, b"tidied\n");
}

#[test]
fn a_time_limit_ends_the_job() {
    let server = FakeServer::new();
    let _worker = RunningWorker::start(server.worker());
    let mut control = server.control();
    control.assign([(
        1,
        Work {
            timeout_ms: Some(200),
            ..command(&["sleep", "60"])
        },
    )]);
    let report = control.report();
    assert_eq!(report.outcome, Outcome::TimedOut);
    assert_eq!(report.detail.unwrap().signal, Some(15));
    assert!(report.run_us >= 200_000);
}

#[test]
fn a_child_that_holds_the_pipe_does_not_hold_up_the_report() {
    let server = FakeServer::new();
    let _worker = RunningWorker::start(server.worker());
    let mut control = server.control();
    control.assign([(1, shell("echo left; sleep 60 & exit 4"))]);
    let report = control.report();
    assert_eq!(report.outcome, Outcome::Exited { code: 4 });
    assert!(report.run_us < 1_000_000, "{} µs", report.run_us);
    let (stdout, _, _) = server.accept(Role::Output).output(1);
    assert_eq!(stdout, b"left\n");
}

/// Whether a process of this number lives, zombies aside.
fn lives(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    !stat.is_empty() && !stat.contains(") Z ")
}

/// Whether it is gone, or will be in a moment: a KILL that was sent need not have been carried out yet.
fn ends(pid: &str) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let pid = pid.parse().ok().and_then(rustix::process::Pid::from_raw);
    let pid = pid.expect("the job told its child's number");
    let Ok(handle) = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()) else {
        return true;
    };
    let patience = Timespec {
        tv_sec: 10,
        tv_nsec: 0,
    };
    let mut end = [PollFd::new(&handle, PollFlags::IN)];
    poll(&mut end, Some(&patience)) == Ok(1)
}

#[test]
fn a_cancel_reaches_a_daemon_although_nobody_is_its_subreaper() {
    let server = FakeServer::new();
    let _worker = RunningWorker::start(server.worker());
    let mut control = server.control();
    let daemon = "trap \"\" TERM; echo $$; exec sleep 60 >&- 2>&-";
    let work = Work {
        grace_ms: Some(300),
        ..shell(&format!("(setsid sh -c '{daemon}' &); sleep 60"))
    };
    control.assign([(1, work)]);
    let mut output = server.accept(Role::Output);
    output.output_start(1);
    let Frame::Chunk(chunk) = output.next() else {
        panic!("the pid of its daemon")
    };
    let daemon = String::from_utf8_lossy(&chunk.data).trim().to_owned();
    assert!(lives(&daemon), "{daemon}");
    control.send(&Frame::Cancel(Cancel {
        fence: fence(1),
        force: false,
    }));
    let report = control.report();
    assert_eq!(report.outcome, Outcome::Signalled { signal: 15 });
    assert!(report.run_us >= 300_000, "the daemon had its grace");
    assert!(!lives(&daemon), "{daemon}");
}

#[test]
fn what_is_left_in_the_group_is_ended_and_told_if_it_holds_the_pipe() {
    let server = FakeServer::new();
    let _worker = RunningWorker::start(server.worker());
    let mut control = server.control();
    let mut output = None;
    for (job, (redirect, message)) in [
        ("", "it left a process behind, which was ended"),
        (">&- 2>&-", ""),
    ]
    .into_iter()
    .enumerate()
    {
        let job = 1 + job as u64;
        control.assign([(job, shell(&format!("sleep 60 {redirect} & echo $!")))]);
        let report = control.report();
        assert_eq!(report.outcome, Outcome::Succeeded);
        assert_eq!(report.detail.unwrap().message, message);
        let output = output.get_or_insert_with(|| server.accept(Role::Output));
        let (child, _, _) = output.output(job);
        let child = String::from_utf8(child).unwrap();
        assert!(ends(child.trim()), "{child}");
    }
}

#[test]
fn output_beyond_the_spool_is_dropped_and_counted_or_waits() {
    let server = FakeServer::new();
    let small = server.worker().configure(|config| {
        config.spool.memory_bytes = 128 << 10;
        config.spool.attempt_memory_bytes = 128 << 10;
        config.spool.file_bytes = 0;
    });
    let _worker = RunningWorker::start(small);
    let mut control = server.control();
    let flood = shell("head -c 8000000 /dev/zero");
    control.assign([(1, flood.clone())]);
    // Nobody reads the output connection meanwhile.
    let mut output = server.accept(Role::Output);
    let report = control.report();
    assert_eq!(
        report.detail.unwrap().usage.unwrap().stdout_bytes,
        8_000_000
    );
    let end = loop {
        match output.next() {
            Frame::OutputStart(_) | Frame::Chunk(_) => {}
            Frame::OutputEnd(end) => break end,
            frame => panic!("{frame:?}"),
        }
    };
    // What its stream was gathering when memory was full comes on top: less than 8 KiB.
    assert!(end.dropped_bytes > 8_000_000 - (136 << 10), "{end:?}");
    output.output_ack(1, 8_000_000, 0, true);

    let mut waits = flood;
    waits.logs.overflow = Overflow::Block;
    control.assign([(2, waits)]);
    let (stdout, _, end) = output.output(2);
    assert_eq!((stdout.len(), end.dropped_bytes), (8_000_000, 0));
}

#[test]
fn a_job_without_logs_makes_no_output_connection() {
    let server = FakeServer::new();
    let _worker = RunningWorker::start(server.worker());
    let mut control = server.control();
    let mut silent = shell("echo unheard");
    silent.logs.mode = LogsMode::None;
    control.assign([(1, silent)]);
    let report = control.report();
    assert_eq!(report.detail.unwrap().usage.unwrap().stdout_bytes, 0);
    control.cut();
    // The next connection is the control connection again.
    server.control();
}

#[test]
fn thousands_of_noops_come_back_without_a_word_about_their_start() {
    let server = FakeServer::new();
    let _worker = RunningWorker::start(server.worker().slots(2));
    let mut control = server.control();
    control.assign((1..=10_000).map(|job| (job, handler("noop", ""))));
    let mut frames = 0;
    let mut next = 1;
    while next <= 10_000 {
        let Frame::Reports(reports) = control.next() else {
            panic!("reports only")
        };
        assert_eq!(reports.first, next);
        for report in &reports.reports {
            assert_eq!(report.fence, fence(next));
            assert_eq!(report.outcome, Outcome::Succeeded);
            assert!(report.started && report.detail.is_none());
            next += 1;
        }
        frames += 1;
    }
    assert!(frames <= 10, "{frames} frames");
}

#[test]
fn handlers_return_fail_panic_and_are_cancelled() {
    let server = FakeServer::new();
    let worker = server.worker().slots(2).handler("add", |job: &Job| {
        let payload = job.json()?;
        Ok(Value::from(
            payload["a"].as_u64().unwrap() + payload["b"].as_u64().unwrap(),
        ))
    });
    let _worker = RunningWorker::start(worker);
    let mut control = server.control();
    assert_eq!(
        control.login.handlers,
        ["add", "echo", "fail", "noop", "sleep"]
    );
    control.assign([(1, handler("add", r#"{"a":2,"b":3}"#))]);
    assert_eq!(control.report().detail.unwrap().result, b"5");
    control.assign([(2, handler("add", "{}"))]);
    let report = control.report();
    assert_eq!(
        report.outcome,
        Outcome::HandlerFailed {
            fatal: false,
            retry_after_ms: None
        }
    );
    assert!(report.detail.unwrap().message.starts_with("panicked: "));
    control.assign([(3, handler("nobody", ""))]);
    assert_eq!(control.report().outcome, Outcome::NoSuchHandler);
    control.assign([(4, handler("echo", r#"{"x":1}"#))]);
    assert_eq!(control.report().detail.unwrap().result, br#"{"x":1}"#);
    control.assign([(5, handler("sleep", r#"{"ms":600000}"#))]);
    let Frame::Started(_) = control.next() else {
        panic!("started")
    };
    control.send(&Frame::Probe(Probe {
        ask: 7,
        fences: vec![fence(5), fence(99)],
    }));
    let Frame::ProbeReply(reply) = control.next() else {
        panic!("a reply")
    };
    assert_eq!((reply.ask, reply.lives.len()), (7, 1));
    assert!(reply.lives[0].started);
    control.send(&Frame::Cancel(Cancel {
        fence: fence(5),
        force: false,
    }));
    let report = control.report();
    assert!(report.cancelled && report.outcome == Outcome::Succeeded);
}

#[test]
fn a_worker_for_handlers_only_starts_no_command_whoever_sends_one() {
    let server = FakeServer::new();
    let worker = server.worker().configure(|config| config.commands = false);
    let _worker = RunningWorker::start(worker);
    let mut control = server.control();
    assert!(!control.login.commands);
    control.assign([(1, command(&["/bin/true"]))]);
    let report = control.report();
    assert!(
        matches!(report.outcome, Outcome::SpawnFailed { .. }),
        "{report:?}"
    );
    assert_eq!(
        report.detail.unwrap().message,
        "this worker runs handlers only"
    );
}

#[test]
fn no_variable_of_the_workers_own_is_handed_on_though_it_be_asked_for() {
    let server = FakeServer::new();
    for own in ["HOSTLER_TOKEN", "HOSTLER_", "HOSTLER_X"] {
        let worker = server
            .worker()
            .configure(|config| config.inherit_env = vec!["HOME".to_owned(), own.to_owned()]);
        worker.stopper().stop();
        let error = worker.run().unwrap_err().to_string();
        assert!(error.contains(own), "{error}");
    }
}

#[test]
fn a_probe_sees_the_whole_group() {
    let server = FakeServer::new();
    let _worker = RunningWorker::start(server.worker());
    let mut control = server.control();
    control.assign([(1, shell("sleep 60 & sleep 60 & echo up; wait"))]);
    let Frame::Started(_) = control.next() else {
        panic!("started")
    };
    let mut output = server.accept(Role::Output);
    output.output_start(1);
    let Frame::Chunk(_) = output.next() else {
        panic!("up")
    };
    control.send(&Frame::Probe(Probe {
        ask: 1,
        fences: vec![fence(1)],
    }));
    let Frame::ProbeReply(reply) = control.next() else {
        panic!("a reply")
    };
    let live = &reply.lives[0];
    assert!(
        live.started && live.pid > 0 && live.rss_bytes > 0,
        "{live:?}"
    );
    assert_eq!((live.processes, live.stdout_bytes), (3, 3));
}

#[test]
fn a_stopped_worker_finishes_what_runs_and_leaves() {
    let server = FakeServer::new();
    let mut worker = RunningWorker::start(server.worker());
    let mut control = server.control();
    control.assign([(1, shell("sleep 0.2")), (2, shell("true"))]);
    let Frame::Started(_) = control.next() else {
        panic!("started")
    };
    worker.stop();
    let Frame::Returned(returned) = control.next() else {
        panic!("returned")
    };
    assert!(returned.draining && returned.fences == [fence(2)]);
    assert_eq!(control.report().outcome, Outcome::Succeeded);
    assert_eq!(worker.join().unwrap(), Exit::Drained);
}

#[test]
fn a_worker_with_the_wrong_token_says_so_and_ends() {
    let server = FakeServer::new();
    let mut token = server.token.clone();
    token.secret = [8; 32];
    let mut worker = RunningWorker::start(server.worker().token(&token.to_string()));
    // A real handshake on the other side, for the true token.
    let accepted = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        server.accept(Role::Control)
    }));
    assert!(
        accepted.is_err(),
        "it must not log in to a server that does not know its token"
    );
    let Err(WorkerError::Refused(why)) = worker.join() else {
        panic!("refused")
    };
    assert!(why.contains("does not know this access token"), "{why}");
}
