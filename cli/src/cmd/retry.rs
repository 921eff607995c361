//! `retry`: submits copies of jobs that have ended. What ended stays as it is (semantics 32).

use bytes::Bytes;
use hostler_wire::JobState;
use hostler_wire::api::Accepted;

use crate::client::{Ask, read};
use crate::cmd::cancel::{Each, chosen};
use crate::cmd::filter::Filter;
use crate::context::Context;
use crate::exit::{Exit, Failure};
use crate::output::{self, Form, json};
use crate::select::Selector;

/// Submit jobs again
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The copy is a job of its own with a new id; the job that ended stays as it is.

Examples:
  hostler retry 1207
  hostler retry --queue video --state failed --since 1h")]
pub(crate) struct Args {
    /// Which jobs: 7, 3-9,12, last
    #[arg(value_name = "IDS")]
    ids: Vec<Selector>,

    #[command(flatten)]
    filter: Filter,

    /// Do not ask, however many there are
    #[arg(short, long)]
    yes: bool,
}

/// Runs it.
pub(crate) async fn run(args: Args, context: &mut Context) -> Result<Exit, Failure> {
    let selected = chosen(context, &args.ids, &args.filter, &[JobState::Failed]).await?;
    context.agree("retry", selected.ids.len(), args.yes)?;
    let form = context.form();
    let mut result = Each::new(&selected);
    for id in &selected.ids {
        let ask = Ask::post(
            format!("/jobs/{id}/retry"),
            "application/json",
            Bytes::new(),
        );
        match context.client.ask(&ask).await?.yes().await? {
            Ok(answer) => {
                let body = answer.bytes().await?;
                let accepted: Accepted = read(&body)?;
                match form {
                    Form::Json | Form::Ndjson => {
                        json::text(form, &String::from_utf8_lossy(&body))?;
                    }
                    Form::Id => output::line(accepted.id)?,
                    Form::Table | Form::Wide => output::line(format_args!(
                        "Job {} {} in {} (retry of {id})",
                        accepted.id, accepted.state, accepted.queue
                    ))?,
                }
            }
            Err(refusal) => result.refused(*id, refusal.status, refusal.into_failure()),
        }
    }
    result.exit("had not finished yet")
}
