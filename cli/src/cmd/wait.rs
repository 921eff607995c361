//! `wait`: until jobs have ended; the exit code tells whether all of them succeeded (semantics 31).

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use hostler_wire::api::JobView;
use hostler_wire::{JobId, JobState};
use tokio::task::JoinSet;

use crate::client::{Ask, Client, read};
use crate::clock::Moment;
use crate::context::Context;
use crate::duration::{self, millis, took};
use crate::exit::{Exit, Failure};
use crate::output::progress::Progress;
use crate::output::{self, Form, json, list, paint};
use crate::select::{Selected, Selector, compact};

/// Longest single question; the server allows more, a proxy in between might not.
const ASK_MAX: Duration = Duration::from_secs(30);
/// Most jobs that `--any` watches: each has a connection of its own.
const ANY_JOBS_MAX: usize = 64;
/// Most failed jobs told one by one.
const TOLD_MAX: usize = 20;

/// Wait until jobs have ended
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Ends with 0 if all jobs succeeded, with 1 if one did not, with 124 if --timeout elapsed.

Examples:
  hostler wait 1042
  hostler wait 3-9,12 --timeout 10m
  hostler wait --any 7 8 9")]
pub(crate) struct Args {
    /// Which jobs: 7, 3-9,12, last
    #[arg(value_name = "IDS", required = true)]
    ids: Vec<Selector>,

    /// Give up after this time; the jobs go on
    #[arg(long, value_name = "TIME", value_parser = duration::parse)]
    timeout: Option<Duration>,

    /// Until the first of them has ended
    #[arg(long)]
    any: bool,
}

/// How much is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Show {
    /// Data for each job, and a summary.
    All,
    /// A summary.
    Summary,
    /// Failures only: something else was the data.
    Quiet,
}

/// Runs it.
pub(crate) async fn run(args: Args, context: &mut Context) -> Result<Exit, Failure> {
    let selected = context.resolve(&args.ids).await?;
    if args.any {
        return any(context, &selected, args.timeout).await;
    }
    all(context, &selected, args.timeout, Show::All).await
}

/// Waits for all of them.
pub(crate) async fn all(
    context: &mut Context,
    selected: &Selected,
    timeout: Option<Duration>,
    show: Show,
) -> Result<Exit, Failure> {
    let begun = Moment::now();
    let give_up = timeout.and_then(Moment::after);
    let form = context.form();
    let mut progress = Progress::new(selected.ids.len());
    let mut tally = Tally::default();
    let mut bodies = Vec::new();
    for (done, id) in selected.ids.iter().enumerate() {
        let named = selected.named.contains(id) || selected.ids.len() == 1;
        let Some((job, body)) = ended(&mut context.client, *id, give_up, named).await? else {
            continue; // a gap in a range
        };
        if !job.state.is_terminal() {
            drop(progress);
            let open = selected.ids.len() - done;
            return Err(Failure::new(
                Exit::Elapsed,
                format!(
                    "time is up: {open} of {} jobs have not ended",
                    selected.ids.len()
                ),
            )
            .hint("they go on; see `hostler list`"));
        }
        progress.ended(job.state == JobState::Succeeded);
        if form.is_human() && job.state != JobState::Succeeded && tally.failed.len() < TOLD_MAX {
            progress.note(&failure_lines(&job));
        }
        tally.add(&job);
        match form {
            _ if show != Show::All => {}
            Form::Json => bodies.push(body),
            Form::Ndjson => json::text(form, &String::from_utf8_lossy(&body))?,
            Form::Id => output::line(job.id)?,
            Form::Table | Form::Wide => {}
        }
    }
    drop(progress);
    if form == Form::Json && show == Show::All {
        let bodies: Vec<_> = bodies
            .iter()
            .map(|body| String::from_utf8_lossy(body))
            .collect();
        json::text(form, &format!("{{\"jobs\":[{}]}}", bodies.join(",")))?;
    }
    if form.is_human() && (show != Show::Quiet || !tally.failed.is_empty()) {
        let summary = tally.summary(millis(begun.elapsed()));
        if show == Show::Quiet {
            output::note(summary);
        } else {
            output::line(summary)?;
        }
    }
    Ok(tally.exit())
}

/// Waits for the first of them.
async fn any(
    context: &Context,
    selected: &Selected,
    timeout: Option<Duration>,
) -> Result<Exit, Failure> {
    if selected.ids.len() > ANY_JOBS_MAX {
        return Err(Failure::usage(format!(
            "--any watches at most {ANY_JOBS_MAX} jobs, not {}",
            selected.ids.len()
        )));
    }
    let give_up = timeout.and_then(Moment::after);
    let mut asking = JoinSet::new();
    for id in &selected.ids {
        let mut client = context.client.another();
        let (id, named) = (*id, selected.named.contains(id));
        asking.spawn(async move { ended(&mut client, id, give_up, named).await });
    }
    while let Some(joined) = asking.join_next().await {
        let found = joined.map_err(|error| {
            Failure::new(
                Exit::Unreachable,
                format!("asking for a job failed: {error}"),
            )
        })??;
        let Some((job, body)) = found else {
            continue;
        };
        if !job.state.is_terminal() {
            return Err(Failure::new(
                Exit::Elapsed,
                "time is up: none of the jobs has ended",
            ));
        }
        match context.form() {
            form @ (Form::Json | Form::Ndjson) => {
                json::text(form, &String::from_utf8_lossy(&body))?;
            }
            Form::Id => output::line(job.id)?,
            Form::Table | Form::Wide => {
                let state = paint::as_state(job.state, &list::state(job.state));
                output::line(format_args!("Job {} {state}", job.id))?;
            }
        }
        let mut tally = Tally::default();
        tally.add(&job);
        return Ok(tally.exit());
    }
    Err(Failure::new(Exit::Unknown, "none of these jobs exists"))
}

/// Waits for one job, for as long as it takes.
pub(crate) async fn until_ended(client: &mut Client, id: JobId) -> Result<JobView, Failure> {
    match ended(client, id, None, true).await? {
        Some((job, _)) => Ok(job),
        None => Err(Failure::new(Exit::Unknown, format!("there is no job {id}"))),
    }
}

/// Waits until a job has ended or time is up; gives it as it is then. None if there is no such job and none was
/// called by name.
async fn ended(
    client: &mut Client,
    id: JobId,
    give_up: Option<Moment>,
    named: bool,
) -> Result<Option<(JobView, Bytes)>, Failure> {
    loop {
        let left = give_up.map_or(ASK_MAX, |moment| moment.left().min(ASK_MAX));
        let path = format!("/jobs/{id}?live=0&wait={}ms", millis(left));
        let answer = client.ask(&Ask::get(path).wait(left)).await?;
        let body = match answer.yes().await? {
            Ok(answer) => answer.bytes().await?,
            Err(refusal) if !named && matches!(refusal.status, 404 | 410) => return Ok(None),
            Err(refusal) => return Err(refusal.into_failure()),
        };
        let job: JobView = read(&body)?;
        if job.state.is_terminal() || give_up.is_some_and(|moment| moment.left().is_zero()) {
            return Ok(Some((job, body)));
        }
    }
}

/// How jobs ended.
#[derive(Debug, Default)]
struct Tally {
    succeeded: usize,
    others: BTreeMap<&'static str, usize>,
    failed: Vec<JobId>,
}

impl Tally {
    fn add(&mut self, job: &JobView) {
        if job.state == JobState::Succeeded {
            self.succeeded += 1;
        } else {
            *self.others.entry(job.state.name()).or_default() += 1;
            self.failed.push(job.id);
        }
    }

    fn exit(&self) -> Exit {
        if self.failed.is_empty() {
            Exit::Done
        } else {
            Exit::Unsuccessful
        }
    }

    fn summary(&self, ms: u64) -> String {
        let mut text = format!("{} succeeded", self.succeeded);
        for (state, count) in &self.others {
            text.push_str(&format!(", {count} {state}"));
        }
        text.push_str(&format!(" in {}", took(ms)));
        if !self.failed.is_empty() && self.failed.len() <= TOLD_MAX {
            let ids = compact(&self.failed);
            let first = self.failed[0];
            text.push_str(&format!(
                "\n  not succeeded: {ids}     retry: hostler retry {ids}     logs: hostler logs {first}"
            ));
        }
        text
    }
}

/// A job that did not succeed, in a line, and the last it said.
fn failure_lines(job: &JobView) -> String {
    let mut text = format!(
        "{} {} {}",
        paint::as_state(job.state, paint::symbol(job.state)),
        job.id,
        job.state
    );
    if let Some(why) = list::why(job, 0).filter(|why| !why.is_empty()) {
        text.push_str(&format!(", {why}"));
    }
    text.push_str(&format!(", attempt {}", list::attempt(job)));
    if let Some(worker) = &job.worker {
        text.push_str(&format!(", worker {}", output::plain(worker)));
    }
    if let Some(tail) = job.stderr_tail.as_deref().filter(|tail| !tail.is_empty()) {
        text.push('\n');
        text.push_str(&list::indented(tail, 3, "      "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_successes_end_with_0_and_the_summary_names_the_rest() {
        let id = |n| JobId::new(n).unwrap();
        let mut tally = Tally::default();
        tally.add(&JobView::new(id(1), JobState::Succeeded));
        assert_eq!(tally.exit(), Exit::Done);
        assert_eq!(tally.summary(1_200), "1 succeeded in 1.2s");
        tally.add(&JobView::new(id(2), JobState::Failed));
        tally.add(&JobView::new(id(3), JobState::Cancelled));
        assert_eq!(tally.exit(), Exit::Unsuccessful);
        let summary = tally.summary(1_200);
        assert!(
            summary.starts_with("1 succeeded, 1 cancelled, 1 failed in 1.2s"),
            "{summary}"
        );
        assert!(summary.contains("hostler retry 2-3"), "{summary}");
    }
}
