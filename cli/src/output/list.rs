//! Jobs and workers as tables: one line each, relative times, symbol + word + colour.

use comfy_table::{Table, presets};
use hostler_wire::JobState;
use hostler_wire::api::{AuditView, JobView, Live, QueueStats, Timestamp, TokenView, WorkerView};

use crate::clock;
use crate::duration::{ago, took};
use crate::output::{paint, plain};
use crate::signals;

/// Longest name in the narrow form.
const NAME_CHARS_MAX: usize = 24;

/// Milliseconds since 1970, now.
pub(crate) fn now_ms() -> u64 {
    u64::try_from(clock::now().as_millisecond()).unwrap_or(0)
}

/// Jobs, one a line.
pub(crate) fn jobs(jobs: &[JobView], wide: bool, now_ms: u64) -> String {
    let mut table = borderless();
    let mut header = vec![
        "ID", "STATE", "QUEUE", "NAME", "AGE", "RUN", "ATTEMPT", "WORKER",
    ];
    if wide {
        header.extend(["PRIO", "SUBMITTED", "LABELS"]);
    }
    header.push("");
    table.set_header(header);
    for job in jobs {
        let mut row = vec![
            job.id.to_string(),
            state(job.state),
            plain(&job.queue),
            name(job, wide),
            job.created_at
                .map_or("-".into(), |at| ago(since(at, now_ms))),
            run_ms(job, now_ms).map_or("-".into(), took),
            attempt(job),
            job.worker.as_deref().map_or("-".into(), plain),
        ];
        if wide {
            row.push(job.priority.to_string());
            row.push(job.created_at.map_or("-".into(), |at| at.to_string()));
            row.push(labels(&job.labels));
        }
        row.push(why(job, now_ms).unwrap_or_default());
        table.add_row(row);
    }
    let text = rendered(&mut table);
    let mut lines = text.lines();
    let mut out = lines.next().map(paint::dim).unwrap_or_default();
    for (line, job) in lines.zip(jobs) {
        let plain = state(job.state);
        out.push('\n');
        out.push_str(&line.replacen(&plain, &paint::as_state(job.state, &plain), 1));
    }
    out
}

/// Access tokens, one a line.
pub(crate) fn tokens(tokens: &[TokenView], now_ms: u64) -> String {
    let mut table = borderless();
    table.set_header([
        "ID", "ROLE", "STATE", "NAME", "QUEUES", "ALLOW", "EXPIRES", "USED",
    ]);
    let all = |words: &[String]| {
        if words.is_empty() {
            "all".into()
        } else {
            plain(&words.join(","))
        }
    };
    let left = |at: Timestamp| match at.millis().checked_sub(now_ms) {
        Some(ms) => format!("in {}", ago(ms)),
        None => format!("{} ago", ago(since(at, now_ms))),
    };
    for token in tokens {
        let name = token.name.as_ref().or(token.file.as_ref());
        table.add_row([
            plain(&token.id),
            plain(&token.role),
            plain(&token.state),
            name.map_or("-".into(), |name| plain(name)),
            all(&token.queues),
            all(&token.allow),
            token.expires_at.map_or("never".into(), left),
            token.last_used_at.map_or("-".into(), left),
        ]);
    }
    rendered(&mut table)
}

/// Who did what, one a line.
pub(crate) fn audit(entries: &[AuditView]) -> String {
    let mut table = borderless();
    table.set_header([
        "AT", "TOKEN", "FROM", "ACTION", "OBJECT", "REQUESTS", "OUTCOME",
    ]);
    let or_dash = |text: &str| {
        if text.is_empty() {
            "-".into()
        } else {
            plain(text)
        }
    };
    for entry in entries {
        let made = match (entry.first_id, entry.count) {
            (Some(first), Some(1)) => Some(first.to_string()),
            (Some(first), Some(count)) => Some(format!(
                "{first}-{}",
                first.saturating_add(count.max(1) - 1)
            )),
            _ => None,
        };
        let object = match (&entry.object, made) {
            (Some(object), Some(made)) => format!("{object} as {made}"),
            (Some(object), None) => object.clone(),
            (None, made) => made.unwrap_or_default(),
        };
        let status = entry.status.map(|status| status.to_string());
        let outcome = [status.as_deref(), entry.code.as_deref()];
        let outcome: Vec<&str> = outcome.into_iter().flatten().collect();
        let outcome = if outcome.is_empty() {
            "ok".to_owned()
        } else {
            outcome.join(" ")
        };
        table.add_row([
            entry.at.to_string(),
            or_dash(&entry.token),
            or_dash(entry.from.as_deref().unwrap_or_default()),
            plain(&entry.action),
            or_dash(&object),
            entry.requests.to_string(),
            plain(&outcome),
        ]);
    }
    rendered(&mut table)
}

/// Workers, one a line.
pub(crate) fn workers(workers: &[WorkerView]) -> String {
    let mut table = borderless();
    table.set_header([
        "WORKER", "STATE", "HELD", "SLOTS", "QUEUES", "LABELS", "HEARD",
    ]);
    for worker in workers {
        table.add_row([
            plain(&worker.name),
            worker_state(worker).into(),
            worker.held.to_string(),
            worker.slots.to_string(),
            plain(&worker.queues.join(",")),
            labels(&worker.labels),
            format!("{} ago", took(worker.last_heard_ms)),
        ]);
    }
    rendered(&mut table)
}

/// Queues, one a line.
pub(crate) fn queues(queues: &[QueueStats]) -> String {
    let mut table = borderless();
    table.set_header([
        "QUEUE",
        "QUEUED",
        "RUNNING",
        "OLDEST WAIT",
        "WORKERS",
        "SLOTS",
        "",
    ]);
    for queue in queues {
        let nobody = queue.workers == 0 && queue.queued > 0;
        table.add_row([
            plain(&queue.name),
            queue.queued.to_string(),
            queue.running.to_string(),
            queue.oldest_wait_ms.map_or("-".into(), took),
            queue.workers.to_string(),
            queue.slots.to_string(),
            if nobody { "no worker" } else { "" }.into(),
        ]);
    }
    rendered(&mut table)
}

/// Slots that jobs have, and jobs that workers hold beyond them: the next ones, which have not started.
pub(crate) fn in_use(workers: &[WorkerView]) -> (u64, u64) {
    let of = |worker: &WorkerView| {
        let used = worker.held.min(worker.slots);
        (u64::from(used), u64::from(worker.held - used))
    };
    workers
        .iter()
        .filter(|worker| worker.connected)
        .map(of)
        .fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
}

/// The second of these in words.
pub(crate) fn ahead(jobs: u64) -> String {
    if jobs == 0 {
        String::new()
    } else {
        format!(", {jobs} more handed out ahead")
    }
}

/// A worker's state in words.
pub(crate) fn worker_state(worker: &WorkerView) -> &'static str {
    match (worker.connected, worker.draining) {
        (false, _) => "✗ away",
        (true, true) => "● draining",
        (true, false) => "✔ connected",
    }
}

/// Symbol and word.
pub(crate) fn state(state: JobState) -> String {
    format!("{} {}", paint::symbol(state), paint::word(state))
}

/// How long the job has run, or ran last.
pub(crate) fn run_ms(job: &JobView, now_ms: u64) -> Option<u64> {
    let started = job.started_at?;
    match job.state {
        JobState::Running | JobState::Cancelling => Some(since(started, now_ms)),
        JobState::Scheduled | JobState::Blocked | JobState::Queued => None,
        JobState::Succeeded
        | JobState::Failed
        | JobState::Cancelled
        | JobState::Expired
        | JobState::Skipped => job
            .finished_at
            .map(|finished| finished.millis().saturating_sub(started.millis())),
    }
}

/// Tries so far out of tries allowed: charged failures, and the current one.
pub(crate) fn attempt(job: &JobView) -> String {
    let running = [JobState::Running, JobState::Cancelling, JobState::Succeeded];
    let current = u16::from(running.contains(&job.state));
    let tries = job.failures.saturating_add(current);
    format!("{tries}/{}", job.max_attempts)
}

/// Why the job is in its state, if its state does not say it all.
pub(crate) fn why(job: &JobView, now_ms: u64) -> Option<String> {
    let reason = job.reason.as_deref().unwrap_or("none");
    match job.state {
        JobState::Scheduled => {
            let due = job.due_at?;
            let wait = due.millis().saturating_sub(now_ms);
            Some(match reason {
                "back_off" => format!("tries again in {}", took(wait)),
                "later" => format!("not now, again in {}", took(wait)),
                _ => format!("starts in {}", took(wait)),
            })
        }
        JobState::Running if job.worker_connected == Some(false) => {
            Some("worker unreachable".into())
        }
        JobState::Cancelling if job.worker_connected == Some(false) => {
            Some("worker unreachable".into())
        }
        JobState::Running | JobState::Cancelling => progress(job),
        JobState::Queued | JobState::Blocked | JobState::Succeeded => None,
        JobState::Failed | JobState::Cancelled | JobState::Expired | JobState::Skipped => {
            Some(ended(reason, job.exit_code, job.signal))
        }
    }
}

/// How far it says it is, or that nobody could be asked.
fn progress(job: &JobView) -> Option<String> {
    match job.live.as_ref()?.as_ref()? {
        Live::Yes { started: false, .. } => Some("next at its worker".into()),
        Live::Yes { progress, note, .. } => {
            let share = progress.map(percent);
            let parts: Vec<_> = share
                .into_iter()
                .chain(note.as_deref().map(plain))
                .collect();
            (!parts.is_empty()).then(|| parts.join("  "))
        }
        Live::No { .. } => Some("the worker does not answer".into()),
    }
}

/// A share as people read it.
pub(crate) fn percent(share: f32) -> String {
    format!("{:.0} %", f64::from(share) * 100.0)
}

/// A reason in a few words.
pub(crate) fn ended(reason: &str, exit_code: Option<u8>, signal: Option<u8>) -> String {
    match (reason, exit_code, signal) {
        ("exit_code" | "none", Some(code), _) => format!("exit {code}"),
        ("signal", _, Some(signal)) => signals::name(signal),
        ("none", ..) => String::new(),
        ("cancelled_by_user", ..) => "by a user".into(),
        ("oom", ..) => "out of memory".into(),
        (other, ..) => plain(&other.replace('_', " ")),
    }
}

/// The last lines of what a job wrote to standard error, indented.
pub(crate) fn indented(tail: &str, lines_max: usize, indent: &str) -> String {
    let lines: Vec<_> = tail.trim_end().lines().collect();
    lines[lines.len().saturating_sub(lines_max)..]
        .iter()
        .map(|line| format!("{indent}{}", plain(line)))
        .collect::<Vec<_>>()
        .join("\n")
}

/// Labels as `k=v,k=v`.
pub(crate) fn labels(labels: &std::collections::BTreeMap<String, String>) -> String {
    let pairs: Vec<_> = labels
        .iter()
        .map(|(key, value)| plain(&format!("{key}={value}")))
        .collect();
    if pairs.is_empty() {
        "-".into()
    } else {
        pairs.join(",")
    }
}

fn name(job: &JobView, wide: bool) -> String {
    let Some(name) = &job.name else {
        return job.handler.as_deref().map_or("-".into(), plain);
    };
    if wide || name.chars().count() <= NAME_CHARS_MAX {
        return plain(name);
    }
    let short: String = name.chars().take(NAME_CHARS_MAX - 1).collect();
    format!("{}…", plain(&short))
}

fn since(at: Timestamp, now_ms: u64) -> u64 {
    now_ms.saturating_sub(at.millis())
}

fn borderless() -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table
}

fn rendered(table: &mut Table) -> String {
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.trim_fmt()
}

#[cfg(test)]
mod tests {
    use hostler_wire::JobId;

    use super::*;

    fn job(id: u64, state: JobState) -> JobView {
        JobView {
            queue: "default".into(),
            created_at: Some(Timestamp::from_millis(1_000_000)),
            max_attempts: 4,
            ..JobView::new(JobId::new(id).unwrap(), state)
        }
    }

    #[test]
    fn a_table_has_a_line_a_job_and_aligned_columns() {
        let running = JobView {
            started_at: Some(Timestamp::from_millis(1_000_800)),
            worker: Some("w-1".into()),
            attempt: 1,
            ..job(1044, JobState::Running)
        };
        let failed = JobView {
            name: Some("report".into()),
            reason: Some("exit_code".into()),
            exit_code: Some(1),
            failures: 4,
            ..job(7, JobState::Failed)
        };
        let text =
            anstream::adapter::strip_str(&jobs(&[running, failed], false, 1_004_000)).to_string();
        assert_eq!(
            text,
            "ID    STATE      QUEUE    NAME    AGE  RUN   ATTEMPT  WORKER\n\
             1044  ● running  default  -       4s   3.2s  1/4      w-1\n\
             7     ✗ failed   default  report  4s   -     4/4      -       exit 1"
        );
    }

    #[test]
    fn a_running_job_says_how_far_it_is_or_that_nobody_could_be_asked() {
        let says = |progress: Option<f32>, note: Option<&str>| JobView {
            live: Some(Some(Live::Yes {
                probed_ms: 0.4,
                started: true,
                pid: 7,
                processes: 1,
                cpu_ms: 0,
                rss_bytes: 0,
                stdout_bytes: 0,
                stderr_bytes: 0,
                quiet_ms: 0,
                output_age_ms: None,
                progress,
                note: note.map(Into::into),
            })),
            ..job(1, JobState::Running)
        };
        let why = |job: &JobView| why(job, 0);
        let note = Some("frame 440/1000\x1b[2J");
        assert_eq!(
            why(&says(Some(0.44), note)).unwrap(),
            "44 %  frame 440/1000\u{fffd}[2J"
        );
        assert_eq!(why(&says(None, None)), None);
        let mut next = says(None, None);
        if let Some(Some(Live::Yes { started, .. })) = &mut next.live {
            *started = false;
        }
        assert_eq!(why(&next).unwrap(), "next at its worker");
        let silent = JobView {
            live: Some(Some(Live::No {
                why: "timeout".into(),
                waited_ms: 250,
                last_heard_ms: 4_100,
            })),
            ..job(1, JobState::Running)
        };
        assert_eq!(why(&silent).unwrap(), "the worker does not answer");
        let away = JobView {
            worker_connected: Some(false),
            ..silent
        };
        assert_eq!(why(&away).unwrap(), "worker unreachable");
    }

    #[test]
    fn a_job_that_waits_says_for_what() {
        let waiting = JobView {
            reason: Some("back_off".into()),
            due_at: Some(Timestamp::from_millis(1_009_000)),
            failures: 1,
            ..job(1, JobState::Scheduled)
        };
        assert_eq!(why(&waiting, 1_004_000).unwrap(), "tries again in 5.0s");
        assert_eq!(attempt(&waiting), "1/4");
    }

    #[test]
    fn an_end_is_told_in_a_few_words() {
        assert_eq!(ended("exit_code", Some(3), None), "exit 3");
        assert_eq!(ended("signal", None, Some(9)), "SIGKILL");
        assert_eq!(ended("worker_lost", None, None), "worker lost");
    }

    #[test]
    fn only_the_last_lines_are_shown_and_none_can_steer_the_terminal() {
        assert_eq!(indented("a\nb\n\x1b[2Jc\n", 2, "  "), "  b\n  \u{fffd}[2Jc");
    }
}
