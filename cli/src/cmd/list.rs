//! `list`: jobs, newest first.

use std::time::Duration;

use crate::cmd::filter::{Filter, Pages};
use crate::context::Context;
use crate::exit::{Exit, Failure};
use crate::output::{self, Form, json, list, paint};

/// Jobs shown if nobody says how many.
const LIMIT: u64 = 25;
/// Between two looks of `--watch`.
const WATCH_EVERY: Duration = Duration::from_secs(2);

/// List jobs, newest first
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  hostler list --state queued,running
  hostler ls -q video --since 1h -a -o ndjson")]
pub(crate) struct Args {
    #[command(flatten)]
    filter: Filter,

    /// Most jobs shown [default: 25]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,

    /// All of them, however many
    #[arg(short, long, conflicts_with = "limit")]
    all: bool,

    /// Look again every two seconds
    #[arg(short, long)]
    watch: bool,

    /// Do not ask the workers, only the record
    #[arg(long)]
    no_probe: bool,
}

/// Runs it.
pub(crate) async fn run(args: Args, context: &mut Context) -> Result<Exit, Failure> {
    let limit = if args.all {
        u64::MAX
    } else {
        args.limit.unwrap_or(LIMIT)
    };
    loop {
        if args.watch && context.form().is_human() {
            output::line("\x1b[H\x1b[2J")?;
        }
        show(&args.filter, limit, !args.no_probe, context).await?;
        if !args.watch {
            return Ok(Exit::Done);
        }
        tokio::time::sleep(WATCH_EVERY).await;
    }
}

/// Shows page after page, so that a long list needs no memory; only one JSON value needs all of it at once.
async fn show(
    filter: &Filter,
    limit: u64,
    live: bool,
    context: &mut Context,
) -> Result<(), Failure> {
    let form = context.form();
    let mut pages = Pages::new(filter, limit).live(live && form != Form::Id);
    let mut shown = 0;
    let mut cursor = None;
    let mut whole = Vec::new();
    while let Some(page) = pages.next(context).await? {
        shown += page.jobs.len();
        match form {
            Form::Json => whole.extend(page.jobs.iter().map(|job| job.get().to_owned())),
            Form::Ndjson => {
                for job in &page.jobs {
                    json::text(form, job.get())?;
                }
            }
            Form::Id => {
                for job in page.views()? {
                    output::line(job.id)?;
                }
            }
            Form::Table | Form::Wide => {
                if !page.jobs.is_empty() {
                    let jobs = page.views()?;
                    output::line(list::jobs(&jobs, form == Form::Wide, list::now_ms()))?;
                }
            }
        }
        cursor = page.next_cursor;
    }
    match form {
        Form::Json => {
            let cursor = cursor.map_or("null".into(), |cursor| {
                serde_json::json!(cursor).to_string()
            });
            json::text(
                form,
                &format!(
                    "{{\"jobs\":[{}],\"next_cursor\":{cursor}}}",
                    whole.join(",")
                ),
            )?;
        }
        Form::Table | Form::Wide if shown == 0 => output::note(if filter.is_empty() {
            "no jobs yet; try `hostler run -- echo hello`"
        } else {
            "no such jobs"
        }),
        Form::Table | Form::Wide if cursor.is_some() => output::note(paint::dim(&format!(
            "The newest {shown}; there are more: --limit, --state, -a"
        ))),
        Form::Table | Form::Wide | Form::Ndjson | Form::Id => {}
    }
    Ok(())
}
