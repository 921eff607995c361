//! `status`: some jobs in full, or the cluster at a glance.

use std::time::Duration;

use hostler_wire::api::{JobView, QueueList, Stats, Version, WorkerList};

use crate::client::{Ask, read};
use crate::context::Context;
use crate::duration::took;
use crate::exit::{Exit, Failure};
use crate::output::{self, Form, detail, json, list, paint};
use crate::select::{Selected, Selector};

/// Between two looks of `--watch`.
const WATCH_EVERY: Duration = Duration::from_secs(1);

/// One job in full, or the whole cluster
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Which jobs: 7, 3-9,12, last; none: the cluster
    #[arg(value_name = "IDS")]
    ids: Vec<Selector>,

    /// Do not ask the worker, only the record
    #[arg(long)]
    no_probe: bool,

    /// Look again every second, until these jobs have ended
    #[arg(short, long)]
    watch: bool,
}

/// Runs it.
pub(crate) async fn run(args: Args, context: &mut Context) -> Result<Exit, Failure> {
    let selected = match &args.ids[..] {
        [] => None,
        ids => Some(context.resolve(ids).await?),
    };
    loop {
        if args.watch && context.form().is_human() {
            output::line("\x1b[H\x1b[2J")?;
        }
        let over = match &selected {
            None => cluster(context).await.map(|()| false)?,
            Some(selected) => jobs(selected, args.no_probe, context).await?,
        };
        if !args.watch || over {
            return Ok(Exit::Done);
        }
        tokio::time::sleep(WATCH_EVERY).await;
    }
}

/// Shows them; true if all of them have ended.
async fn jobs(selected: &Selected, no_probe: bool, context: &mut Context) -> Result<bool, Failure> {
    let form = context.form();
    let query = if no_probe { "?live=0" } else { "" };
    let mut shown = 0;
    let mut whole = Vec::new();
    let mut over = true;
    for id in &selected.ids {
        let answer = context
            .client
            .ask(&Ask::get(format!("/jobs/{id}{query}")))
            .await?;
        let body = match answer.yes().await? {
            Ok(answer) => answer.bytes().await?,
            Err(refusal) if matches!(refusal.status, 404 | 410) && !selected.named.contains(id) => {
                continue; // a gap in a range
            }
            Err(refusal) => return Err(refusal.into_failure()),
        };
        let job: JobView = read(&body)?;
        over &= job.state.is_terminal();
        match form {
            Form::Json => whole.push(String::from_utf8_lossy(&body).into_owned()),
            Form::Ndjson => json::text(form, &String::from_utf8_lossy(&body))?,
            Form::Id => output::line(id)?,
            Form::Table | Form::Wide => {
                if shown > 0 {
                    output::line("")?;
                }
                output::line(detail::job(&job, form == Form::Wide, list::now_ms()))?;
            }
        }
        shown += 1;
    }
    if shown == 0 {
        return Err(Failure::new(Exit::Unknown, "none of these jobs exists"));
    }
    match (form, &whole[..]) {
        (Form::Json, [one]) if selected.ids.len() == 1 => json::text(form, one)?,
        (Form::Json, all) => json::text(form, &format!("{{\"jobs\":[{}]}}", all.join(",")))?,
        _ => {}
    }
    Ok(over)
}

async fn cluster(context: &mut Context) -> Result<(), Failure> {
    let version_body = context.client.body(&Ask::get("/version")).await?;
    let stats_body = context.client.body(&Ask::get("/stats")).await?;
    let queues_body = context.client.body(&Ask::get("/queues")).await?;
    let workers_body = context.client.body(&Ask::get("/workers")).await?;
    let form = context.form();
    if form.is_json() {
        let text = |body| String::from_utf8_lossy(body).into_owned();
        json::text(
            form,
            &format!(
                "{{\"version\":{},\"stats\":{},\"queues\":{},\"workers\":{}}}",
                text(&version_body),
                text(&stats_body),
                text(&queues_body),
                text(&workers_body)
            ),
        )?;
        return Ok(());
    }
    let version: Version = read(&version_body)?;
    let stats: Stats = read(&stats_body)?;
    let queues: QueueList = read(&queues_body)?;
    let workers: WorkerList = read(&workers_body)?;
    if form == Form::Id {
        for worker in &workers.workers {
            output::line(output::plain(&worker.name))?;
        }
        return Ok(());
    }
    output::line(format_args!(
        "{}  version {}, start {}, cluster {}",
        paint::bold(&format!("Server {}", context.client.address())),
        version.version,
        version.epoch,
        version.cluster_id.get(..8).unwrap_or(&version.cluster_id),
    ))?;
    output::line(format_args!(
        "Jobs    {} queued, {} scheduled, {} running, {} cancelling",
        stats.queued, stats.scheduled, stats.running, stats.cancelling
    ))?;
    if let Some(ms) = stats.oldest_wait_ms {
        output::line(format_args!("Oldest  waits for {}", took(ms)))?;
    }
    let (used, ahead) = list::in_use(&workers.workers);
    output::line(format_args!(
        "Workers {} connected with {} slots, {used} in use{}",
        stats.workers,
        stats.slots,
        list::ahead(ahead)
    ))?;
    if !queues.queues.is_empty() {
        output::line("")?;
        output::line(list::queues(&queues.queues))?;
    }
    if workers.workers.is_empty() {
        output::note(format_args!(
            "{} start one with `hostler worker`",
            paint::yellow("no worker is connected:")
        ));
    } else {
        output::line("")?;
        output::line(list::workers(&workers.workers))?;
    }
    Ok(())
}
