//! One job in full: what it is, its timeline, its attempts, what its worker says of it now, and what to do next.

use hostler_wire::JobState;
use hostler_wire::api::{AttemptView, JobView, Live, Timestamp, UsageView};
use jiff::tz::TimeZone;

use crate::duration::took;
use crate::output::list::{attempt, ended, indented, labels, percent, run_ms, why};
use crate::output::{paint, plain};

/// A job in full; the wide form tells of each attempt what it used.
pub(crate) fn job(job: &JobView, wide: bool, now_ms: u64) -> String {
    let mut lines = vec![head(job, now_ms)];
    let mut add = |name: &str, text: String| {
        if !text.is_empty() {
            lines.push(format!("{} {text}", paint::dim(&format!("{name:<9}"))));
        }
    };
    add("Command", command(job));
    add("Submitted", timeline(job, now_ms));
    add("Where", place(job));
    add("Asked", asked(job));
    add("Attempts", attempts(job, now_ms));
    if wide {
        for one in &job.attempts {
            let usage = one.usage.map(|usage| used(&usage));
            add(
                "",
                usage.map_or(String::new(), |usage| format!("#{} {usage}", one.number)),
            );
        }
    }
    add("Live", live(job));
    add(
        "Used",
        job.usage.map(|usage| used(&usage)).unwrap_or_default(),
    );
    add(
        "Message",
        job.message.as_deref().map(plain).unwrap_or_default(),
    );
    add("Result", result(job));
    if let Some(tail) = job.stderr_tail.as_deref().filter(|tail| !tail.is_empty()) {
        let title = if job.state == JobState::Succeeded {
            "Last lines of stderr"
        } else {
            "Last error"
        };
        lines.push(paint::dim(title));
        lines.push(indented(tail, 20, "    "));
    }
    lines.push(format!("{} {}", paint::dim("Next     "), next(job)));
    lines.join("\n")
}

fn head(job: &JobView, now_ms: u64) -> String {
    let state = format!("{} {}", paint::symbol(job.state), job.state);
    let why = why(job, now_ms)
        .filter(|why| !why.is_empty())
        .map(|why| format!(" ({why})"))
        .unwrap_or_default();
    let name = job
        .name
        .as_deref()
        .map(|name| format!("  {}", plain(name)))
        .unwrap_or_default();
    format!(
        "{}{name}   {}            queue {}   priority {}   attempt {}",
        paint::bold(&format!("Job {}", job.id)),
        paint::as_state(job.state, &format!("{state}{why}")),
        plain(&job.queue),
        job.priority,
        attempt(job),
    )
}

fn command(job: &JobView) -> String {
    if let Some(argv) = &job.command {
        return plain(
            &argv
                .iter()
                .map(|arg| quoted(arg))
                .collect::<Vec<_>>()
                .join(" "),
        );
    }
    match (&job.handler, &job.payload) {
        (Some(handler), Some(payload)) => plain(&format!("handler {handler} {}", payload.get())),
        (Some(handler), None) => plain(&format!("handler {handler}")),
        (None, _) if job.purged => "purged".into(),
        (None, _) => String::new(),
    }
}

/// An argument as a shell would want it typed.
fn quoted(arg: &str) -> String {
    let safe = |c: char| c.is_alphanumeric() || "-_./:=@%+,".contains(c);
    if !arg.is_empty() && arg.chars().all(safe) {
        arg.to_owned()
    } else {
        format!("'{}'", arg.replace('\'', "'\\''"))
    }
}

fn timeline(job: &JobView, now_ms: u64) -> String {
    let Some(created) = job.created_at else {
        return String::new();
    };
    let mut text = local(created, now_ms);
    if let Some(by) = &job.created_by {
        text.push_str(&format!(" by token {}", plain(by)));
    }
    if let Some(retry_of) = job.retry_of {
        text.push_str(&format!(" as a retry of {retry_of}"));
    }
    if let Some(started) = job.started_at {
        text.push_str(&format!("  ·  started {}", local(started, now_ms)));
    }
    if let Some(due) = job.due_at.filter(|_| job.state == JobState::Scheduled) {
        text.push_str(&format!("  ·  due {}", local(due, now_ms)));
    }
    if let Some(finished) = job.finished_at {
        let total = finished.millis().saturating_sub(created.millis());
        text.push_str(&format!(
            "  ·  finished {}  ·  total {}",
            local(finished, now_ms),
            took(total)
        ));
    } else if let Some(ms) = run_ms(job, now_ms) {
        text.push_str(&format!("  ·  running for {}", took(ms)));
    }
    text
}

/// Local time; with its date unless that is today's.
pub(crate) fn local(at: Timestamp, now_ms: u64) -> String {
    let zone = TimeZone::system();
    let zoned = |ms: u64| {
        let ms = i64::try_from(ms).ok()?;
        let at = jiff::Timestamp::from_millisecond(ms).ok()?;
        Some(at.to_zoned_datetime(zone.clone()))
    };
    let (Some(at), Some(now)) = (zoned(at.millis()), zoned(now_ms)) else {
        return at.to_string();
    };
    if at.date() == now.date() {
        at.strftime("%H:%M:%S").to_string()
    } else {
        at.strftime("%Y-%m-%d %H:%M:%S").to_string()
    }
}

fn place(job: &JobView) -> String {
    let mut parts = Vec::new();
    if let Some(worker) = &job.worker {
        let away = if job.worker_connected == Some(false) {
            " (unreachable)"
        } else {
            ""
        };
        parts.push(format!("worker {}{away}", plain(worker)));
    }
    if let Some(cwd) = &job.cwd {
        parts.push(format!("in {}", plain(cwd)));
    }
    if !job.env.is_empty() {
        parts.push(format!("env {}", plain(&job.env.join(" "))));
    }
    if !job.labels.is_empty() {
        parts.push(labels(&job.labels));
    }
    parts.join("  ·  ")
}

fn asked(job: &JobView) -> String {
    let mut parts = Vec::new();
    if let Some(ms) = job.timeout_ms {
        parts.push(format!("timeout {}", took(ms)));
    }
    if let Some(ms) = job.stall_ms {
        parts.push(format!("silence {} at most", took(ms)));
    }
    if let Some(at) = job.expires_at {
        parts.push(format!("started by {at}"));
    }
    if let Some(at) = job.deadline_at {
        parts.push(format!("over by {at}"));
    }
    if let Some(bytes) = job.stdin_bytes {
        parts.push(format!("stdin {bytes} bytes"));
    }
    if job.durability.as_deref() == Some("os") {
        parts.push("durability os".into());
    }
    parts.join("  ·  ")
}

fn attempts(job: &JobView, now_ms: u64) -> String {
    let mut parts: Vec<_> = Vec::new();
    let mut before: Option<&AttemptView> = None;
    for one in &job.attempts {
        parts.push(attempt_in_words(one, before));
        before = Some(one);
    }
    if let JobState::Running | JobState::Cancelling = job.state {
        let worker = job.worker.as_deref().map_or("?".into(), plain);
        let for_ms = run_ms(job, now_ms).map_or("not started".into(), took);
        parts.push(format!("#{} {worker} {} {for_ms}", job.attempt, job.state));
    }
    parts.join(" · ")
}

fn attempt_in_words(attempt: &AttemptView, before: Option<&AttemptView>) -> String {
    let mut text = format!("#{}", attempt.number);
    if let Some(worker) = &attempt.worker {
        text.push_str(&format!(" {}", plain(worker)));
    }
    let end = ended(&attempt.reason, attempt.exit_code, attempt.signal);
    text.push(' ');
    text.push_str(if end.is_empty() { "ok" } else { &end });
    if let Some(started) = attempt.started_at {
        let ms = attempt
            .finished_at
            .millis()
            .saturating_sub(started.millis());
        text.push_str(&format!(" {}", took(ms)));
        if let Some(before) = before {
            let pause = started.millis().saturating_sub(before.finished_at.millis());
            text.push_str(&format!(" (after {})", took(pause)));
        }
    }
    text
}

fn live(job: &JobView) -> String {
    match &job.live {
        None | Some(None) => String::new(),
        Some(Some(Live::Yes {
            probed_ms,
            started,
            pid,
            processes,
            cpu_ms,
            rss_bytes,
            stdout_bytes,
            stderr_bytes,
            quiet_ms: _,
            output_age_ms,
            progress,
            note,
        })) => {
            if !started {
                return format!("waits in the worker's hands (probed in {probed_ms:.1}ms)");
            }
            let mut text = if *pid == 0 {
                "handler".to_owned()
            } else {
                format!(
                    "pid {pid}, {processes} processes, cpu {}, memory {}",
                    took(*cpu_ms),
                    bytes(*rss_bytes)
                )
            };
            text.push_str(&format!(
                ", stdout {}, stderr {}",
                bytes(*stdout_bytes),
                bytes(*stderr_bytes)
            ));
            if let Some(age) = output_age_ms {
                text.push_str(&format!(" (last output {} ago)", took(*age)));
            }
            if let Some(progress) = progress {
                text.push_str(&format!(", {}", percent(*progress)));
            }
            if let Some(note) = note {
                text.push_str(&format!(", {}", plain(note)));
            }
            format!("{text}  (probed in {probed_ms:.1}ms)")
        }
        Some(Some(Live::No {
            why,
            waited_ms,
            last_heard_ms,
        })) => paint::yellow(&format!(
            "the worker did not answer: {} (waited {}, last heard {} ago)",
            plain(why),
            took(*waited_ms),
            took(*last_heard_ms)
        )),
    }
}

fn used(usage: &UsageView) -> String {
    format!(
        "{} of time, cpu {} + {} system, peak memory {}, stdout {}, stderr {}",
        took(usage.wall_ms),
        took(usage.user_ms),
        took(usage.system_ms),
        bytes(usage.peak_rss_bytes),
        bytes(usage.stdout_bytes),
        bytes(usage.stderr_bytes)
    )
}

fn result(job: &JobView) -> String {
    let Some(result) = &job.result else {
        return String::new();
    };
    let text: String = result.get().chars().take(400).collect();
    let more = if text.len() < result.get().len() {
        "…"
    } else {
        ""
    };
    format!("{}{more}", plain(&text))
}

/// A size in the unit that suits it.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if count < 1_024 {
        return format!("{count} B");
    }
    let mut tenths = count.saturating_mul(10) / 1_024;
    let mut unit = 0;
    while tenths >= 10_240 && unit < UNITS.len() - 1 {
        tenths /= 1_024;
        unit += 1;
    }
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
}

fn next(job: &JobView) -> String {
    let id = job.id;
    match job.state {
        JobState::Running | JobState::Cancelling => {
            format!("hostler logs -f {id}   ·   hostler cancel {id}")
        }
        JobState::Scheduled | JobState::Blocked | JobState::Queued => {
            format!("hostler wait {id}   ·   hostler cancel {id}")
        }
        JobState::Succeeded => format!("hostler logs {id}"),
        JobState::Failed | JobState::Cancelled if job.attempt > 1 => format!(
            "hostler logs {id} --attempt {}   ·   hostler retry {id}",
            job.attempt
        ),
        JobState::Failed | JobState::Cancelled | JobState::Expired | JobState::Skipped => {
            format!("hostler logs {id}   ·   hostler retry {id}")
        }
    }
}

#[cfg(test)]
mod tests {
    use hostler_wire::JobId;

    use super::*;

    #[test]
    fn a_failed_job_shows_its_attempts_its_last_error_and_the_way_on() {
        let at = Timestamp::from_millis;
        let attempt = |number, started, finished| AttemptView {
            number,
            reason: "exit_code".into(),
            worker: Some("w-1".into()),
            started_at: Some(at(started)),
            finished_at: at(finished),
            exit_code: Some(1),
            ..AttemptView::default()
        };
        let failed = JobView {
            queue: "default".into(),
            name: Some("report".into()),
            reason: Some("exit_code".into()),
            exit_code: Some(1),
            attempt: 2,
            failures: 2,
            max_attempts: 2,
            created_at: Some(at(1_000)),
            finished_at: Some(at(47_000)),
            stderr_tail: Some("first\nconnection refused\n".into()),
            command: Some(vec!["python".into(), "a b.py".into()]),
            attempts: vec![attempt(1, 2_000, 13_800), attempt(2, 17_500, 47_000)],
            ..JobView::new(JobId::new(1041).unwrap(), JobState::Failed)
        };
        let text = anstream::adapter::strip_str(&job(&failed, false, 60_000)).to_string();
        for part in [
            "Job 1041  report   ✗ failed (exit 1)",
            "Command   python 'a b.py'",
            "total 46.0s",
            "#1 w-1 exit 1 11.8s · #2 w-1 exit 1 29.5s (after 3.7s)",
            "Last error\n    first\n    connection refused",
            "hostler logs 1041 --attempt 2   ·   hostler retry 1041",
        ] {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
    }

    #[test]
    fn a_silent_worker_is_said_to_be_silent() {
        let running = JobView {
            live: Some(Some(Live::No {
                why: "timeout".into(),
                waited_ms: 250,
                last_heard_ms: 4_100,
            })),
            ..JobView::new(JobId::MIN, JobState::Running)
        };
        let text = anstream::adapter::strip_str(&job(&running, false, 0)).to_string();
        assert!(text.contains("did not answer: timeout (waited 250ms, last heard 4.1s ago)"));
    }

    #[test]
    fn sizes_are_shown_in_the_unit_that_suits_them() {
        assert_eq!(
            [0, 1_023, 1_024, 1_812, 104_857_600].map(bytes),
            ["0 B", "1023 B", "1.0 KiB", "1.7 KiB", "100.0 MiB"]
        );
    }
}
