//! `queues`: what waits where, and who would take it.

use hostler_wire::api::QueueList;

use crate::client::{Ask, read};
use crate::context::Context;
use crate::exit::{Exit, Failure};
use crate::output::{self, Form, json, list};

/// List queues
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

/// Runs it.
pub(crate) async fn run(_args: Args, context: &mut Context) -> Result<Exit, Failure> {
    let body = context.client.body(&Ask::get("/queues")).await?;
    let QueueList { queues } = read(&body)?;
    match context.form() {
        Form::Json => json::text(Form::Json, &String::from_utf8_lossy(&body))?,
        Form::Ndjson => {
            for queue in &queues {
                json::value(Form::Ndjson, queue)?;
            }
        }
        Form::Id => {
            for queue in &queues {
                output::line(output::plain(&queue.name))?;
            }
        }
        Form::Table | Form::Wide if queues.is_empty() => {
            output::note("no queue has jobs, and no worker serves one");
        }
        Form::Table | Form::Wide => output::line(list::queues(&queues))?,
    }
    Ok(Exit::Done)
}
