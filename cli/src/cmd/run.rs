//! `run`: submit, show the output as it comes, end as the job did.

use std::time::Duration;

use hostler_wire::JobId;
use hostler_wire::JobState;
use hostler_wire::api::{JobRequest, JobView, QueueList};

use crate::client::{Ask, Client, read};
use crate::cmd::spec::SpecArgs;
use crate::cmd::{logs, submit, wait};
use crate::context::Context;
use crate::duration::took;
use crate::exit::{Exit, Failure};
use crate::follow::{Printer, Wanted};
use crate::output::{self, list, paint};
use crate::signals::Stops;

/// A job that has not started by then: the reason is told.
const SAY_WHY_AFTER: Duration = Duration::from_secs(2);

/// What an interrupt does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum OnInterrupt {
    /// Leave the job alone and end
    #[default]
    Detach,
    /// Cancel the job and see it end
    Cancel,
}

/// Submit a command, show its output, end as it did
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The job's standard output and standard error become ours, and so does its exit code: 128+N if signal N ended
it, 124 if its --timeout did, 125 if the trouble is Hostler's.

Examples:
  hostler run -- make test
  hostler run -q gpu --timeout 1h --on-interrupt cancel -- python train.py")]
pub(crate) struct Args {
    #[command(flatten)]
    spec: SpecArgs,

    /// What Ctrl-C does to the job: detach (it goes on) or cancel
    #[arg(
        long,
        value_enum,
        value_name = "WHAT",
        default_value = "detach",
        hide_possible_values = true
    )]
    on_interrupt: OnInterrupt,

    /// The command and its arguments
    #[arg(value_name = "COMMAND", trailing_var_arg = true, required = true)]
    command: Vec<String>,
}

/// Runs it.
pub(crate) async fn run(args: Args, context: &mut Context) -> Result<Exit, Failure> {
    let request = args.spec.command(&args.command)?;
    let mut stops = Stops::listen()?;
    through(&mut context.client, &request, args.on_interrupt, &mut stops).await
}

/// Takes one job through the system.
pub(crate) async fn through(
    client: &mut Client,
    request: &JobRequest<'_>,
    on_interrupt: OnInterrupt,
    stops: &mut Stops,
) -> Result<Exit, Failure> {
    let (accepted, _) = submit::submit(client, request).await?;
    let id = accepted.id;
    let mut asking = client.another();
    let mut looking = client.another();
    let mut cancelled = false;
    let mut ending = std::pin::pin!(async {
        let mut ending = std::pin::pin!(see_it_end(client, id));
        match race(ending.as_mut(), say_why_it_waits(&mut looking, id)).await {
            First::Left(end) => end,
            First::Right(_) => ending.await,
        }
    });
    let (job, printed) = loop {
        // Without tokio's macros: whichever is ready first, the job's end preferred.
        match race(ending.as_mut(), stops.next()).await {
            First::Left(end) => break end?,
            First::Right(_) if on_interrupt == OnInterrupt::Cancel && !cancelled => {
                cancelled = true;
                output::note(format_args!(
                    "cancelling job {id} … once more to leave it alone"
                ));
                let path = format!("/jobs/{id}?reason=interrupted");
                // If it has ended in this moment there is nothing to cancel, and its end comes by itself.
                drop(asking.ask(&Ask::delete(path)).await?);
            }
            First::Right(_) => {
                output::note(format_args!("detached: job {id} goes on without us"));
                output::note(format_args!("  output: hostler logs -f {id}"));
                output::note(format_args!("  end:    hostler wait {id}"));
                return Ok(Exit::Ours);
            }
        }
    };
    output::note(last_line(&job, printed));
    Ok(exit_of(&job))
}

async fn see_it_end(client: &mut Client, id: JobId) -> Result<(JobView, bool), Failure> {
    let wanted = Wanted {
        split: true,
        ..Wanted::default()
    };
    let mut printer = Printer::new(&wanted);
    logs::to_the_end(client, id, &wanted, &mut printer).await?;
    let job = wait::until_ended(client, id).await?;
    Ok((job, printer.printed))
}

/// Says once why a job does not start. What cannot be found out is not said: its end is what counts.
async fn say_why_it_waits(client: &mut Client, id: JobId) -> Option<()> {
    tokio::time::sleep(SAY_WHY_AFTER).await;
    let body = client
        .body(&Ask::get(format!("/jobs/{id}?live=0")))
        .await
        .ok()?;
    let job: JobView = read(&body).ok()?;
    if job.state != JobState::Queued {
        return None;
    }
    let body = client.body(&Ask::get("/queues")).await.ok()?;
    let QueueList { queues } = read(&body).ok()?;
    let queue = queues.iter().find(|queue| queue.name == job.queue)?;
    let name = output::plain(&queue.name);
    if queue.workers == 0 {
        output::note(format_args!(
            "job {id} waits: no worker serves queue {name}; `hostler worker` starts one"
        ));
    } else {
        output::note(format_args!(
            "job {id} waits: queue {name} has {} running and {} queued on {} slots",
            queue.running, queue.queued, queue.slots
        ));
    }
    Some(())
}

/// How the program ends after this job.
fn exit_of(job: &JobView) -> Exit {
    let reason = job.reason.as_deref().unwrap_or_default();
    match (job.state, reason, job.exit_code, job.signal) {
        (JobState::Succeeded, ..) => Exit::Done,
        (JobState::Failed, "timeout" | "stalled", ..) => Exit::Elapsed,
        (JobState::Failed | JobState::Cancelled, _, Some(code), _) if code != 0 => Exit::Job(code),
        (JobState::Failed | JobState::Cancelled, _, _, Some(signal)) => Exit::Signal(signal),
        _ => Exit::Ours,
    }
}

/// How it ended, in a line.
fn last_line(job: &JobView, printed: bool) -> String {
    let id = job.id;
    let ms = |from: Option<_>, to: Option<_>| match (from, to) {
        (Some(from), Some(to)) => Some(u64::saturating_sub(to, from)),
        _ => None,
    };
    let created = job.created_at.map(|at| at.millis());
    let started = job.started_at.map(|at| at.millis());
    let finished = job.finished_at.map(|at| at.millis());
    let mut around = Vec::new();
    if let Some(waited) = ms(created, started) {
        around.push(format!("waited {}", took(waited)));
    }
    if job.max_attempts > 1 {
        around.push(format!("attempt {}", list::attempt(job)));
    }
    if let Some(worker) = &job.worker {
        around.push(format!("worker {}", output::plain(worker)));
    }
    let around = if around.is_empty() {
        String::new()
    } else {
        format!(" ({})", around.join(", "))
    };
    let run = ms(started.or(created), finished).map_or(String::new(), took);
    let symbol = paint::as_state(job.state, paint::symbol(job.state));
    let mut line = if job.state == JobState::Succeeded {
        format!("{symbol} job {id} succeeded in {run}{around}")
    } else {
        let why = list::why(job, 0).filter(|why| !why.is_empty());
        let why = why.map_or(String::new(), |why| format!(": {why}"));
        format!("{symbol} job {id} {}{why} after {run}{around}", job.state)
    };
    if let Some(message) = job.message.as_deref().filter(|text| !text.is_empty()) {
        line.push_str(&format!("\n  {}", output::plain(message)));
    }
    if !printed
        && job.state != JobState::Succeeded
        && let Some(tail) = job.stderr_tail.as_deref().filter(|tail| !tail.is_empty())
    {
        line.push_str(&format!("\n{}", list::indented(tail, 10, "    ")));
    }
    line
}

/// Which of two was ready first.
pub(crate) enum First<A, B> {
    Left(A),
    Right(B),
}

/// Waits for the first of two futures; the left one is looked at first.
pub(crate) async fn race<A, B>(
    mut left: std::pin::Pin<&mut impl Future<Output = A>>,
    right: impl Future<Output = B>,
) -> First<A, B> {
    let mut right = std::pin::pin!(right);
    std::future::poll_fn(|task| {
        if let std::task::Poll::Ready(value) = left.as_mut().poll(task) {
            return std::task::Poll::Ready(First::Left(value));
        }
        right.as_mut().poll(task).map(First::Right)
    })
    .await
}

#[cfg(test)]
mod tests {
    use hostler_wire::api::Timestamp;

    use super::*;

    fn ended(state: JobState, reason: &str, exit_code: Option<u8>, signal: Option<u8>) -> JobView {
        JobView {
            reason: Some(reason.to_owned().into()),
            exit_code,
            signal,
            ..JobView::new(JobId::MIN, state)
        }
    }

    #[test]
    fn the_program_ends_as_the_job_did() {
        for (job, code) in [
            (ended(JobState::Succeeded, "none", Some(0), None), 0),
            (ended(JobState::Failed, "exit_code", Some(42), None), 42),
            (ended(JobState::Failed, "signal", None, Some(9)), 137),
            (ended(JobState::Failed, "timeout", None, Some(15)), 124),
            (ended(JobState::Failed, "timeout", Some(3), None), 124),
            (ended(JobState::Failed, "spawn_failed", None, None), 125),
            (ended(JobState::Failed, "worker_lost", None, None), 125),
            (ended(JobState::Failed, "deadline", None, None), 125),
            (
                ended(JobState::Cancelled, "cancelled_by_user", None, Some(15)),
                143,
            ),
            // Exit 0 after our TERM is no success.
            (
                ended(JobState::Cancelled, "cancelled_by_user", Some(0), None),
                125,
            ),
            (
                ended(JobState::Cancelled, "cancelled_by_user", None, None),
                125,
            ),
            (
                ended(JobState::Expired, "not_started_in_time", None, None),
                125,
            ),
        ] {
            assert_eq!(exit_of(&job).code(), code, "{job:?}");
        }
    }

    #[test]
    fn the_last_line_says_how_it_ended() {
        let at = |ms| Some(Timestamp::from_millis(ms));
        let job = JobView {
            created_at: at(1_000),
            started_at: at(1_002),
            finished_at: at(1_014),
            worker: Some("local".into()),
            ..ended(JobState::Succeeded, "none", Some(0), None)
        };
        let line = anstream::adapter::strip_str(&last_line(&job, true)).to_string();
        assert_eq!(line, "✔ job 1 succeeded in 12ms (waited 2ms, worker local)");
        let job = JobView {
            state: JobState::Failed,
            reason: Some("exit_code".into()),
            exit_code: Some(2),
            ..job
        };
        let line = anstream::adapter::strip_str(&last_line(&job, true)).to_string();
        assert_eq!(
            line,
            "✗ job 1 failed: exit 2 after 12ms (waited 2ms, worker local)"
        );
    }
}
