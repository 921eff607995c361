//! `status`: some jobs in full, or the cluster at a glance.

use hostler_wire::api::{JobView, Stats, Version, WorkerList};

use crate::client::{Ask, read};
use crate::context::Context;
use crate::exit::{Exit, Failure};
use crate::output::{self, Form, detail, json, list, paint};
use crate::select::Selector;

/// One job in full, or the whole cluster
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Which jobs: 7, 3-9,12, last; none: the cluster
    #[arg(value_name = "IDS")]
    ids: Vec<Selector>,

    /// Do not ask the worker, only the record
    #[arg(long)]
    no_probe: bool,
}

/// Runs it.
pub(crate) async fn run(args: Args, context: &mut Context) -> Result<Exit, Failure> {
    if args.ids.is_empty() {
        return cluster(context).await;
    }
    let selected = context.resolve(&args.ids).await?;
    let form = context.form();
    let query = if args.no_probe { "?live=0" } else { "" };
    let mut shown = 0;
    let mut whole = Vec::new();
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
        match form {
            Form::Json => whole.push(String::from_utf8_lossy(&body).into_owned()),
            Form::Ndjson => json::text(form, &String::from_utf8_lossy(&body))?,
            Form::Id => output::line(id)?,
            Form::Table | Form::Wide => {
                let job: JobView = read(&body)?;
                if shown > 0 {
                    output::line("")?;
                }
                output::line(detail::job(&job, list::now_ms()))?;
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
    Ok(Exit::Done)
}

async fn cluster(context: &mut Context) -> Result<Exit, Failure> {
    let version_body = context.client.body(&Ask::get("/version")).await?;
    let stats_body = context.client.body(&Ask::get("/stats")).await?;
    let workers_body = context.client.body(&Ask::get("/workers")).await?;
    let form = context.form();
    if form.is_json() {
        let text = |body| String::from_utf8_lossy(body).into_owned();
        json::text(
            form,
            &format!(
                "{{\"version\":{},\"stats\":{},\"workers\":{}}}",
                text(&version_body),
                text(&stats_body),
                text(&workers_body)
            ),
        )?;
        return Ok(Exit::Done);
    }
    let version: Version = read(&version_body)?;
    let stats: Stats = read(&stats_body)?;
    let workers: WorkerList = read(&workers_body)?;
    if form == Form::Id {
        for worker in &workers.workers {
            output::line(output::plain(&worker.name))?;
        }
        return Ok(Exit::Done);
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
    output::line(format_args!(
        "Workers {} connected with {} slots",
        stats.workers, stats.slots
    ))?;
    if workers.workers.is_empty() {
        output::note(format_args!(
            "{} start one with `hostler worker`",
            paint::yellow("no worker is connected:")
        ));
    } else {
        output::line("")?;
        output::line(list::workers(&workers.workers))?;
    }
    Ok(Exit::Done)
}
