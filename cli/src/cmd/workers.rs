//! `workers`: the machines that run jobs.

use hostler_wire::api::WorkerList;

use crate::client::{Ask, read};
use crate::context::Context;
use crate::exit::{Exit, Failure};
use crate::output::{self, Form, json, list};

/// List workers
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

/// Runs it.
pub(crate) async fn run(_args: Args, context: &mut Context) -> Result<Exit, Failure> {
    let body = context.client.body(&Ask::get("/workers")).await?;
    let WorkerList { workers } = read(&body)?;
    match context.form() {
        Form::Json => json::text(Form::Json, &String::from_utf8_lossy(&body))?,
        Form::Ndjson => {
            for worker in &workers {
                json::value(Form::Ndjson, worker)?;
            }
        }
        Form::Id => {
            for worker in &workers {
                output::line(output::plain(&worker.name))?;
            }
        }
        Form::Table | Form::Wide if workers.is_empty() => {
            output::note("no worker is known; start one with `hostler worker`");
        }
        Form::Table | Form::Wide => output::line(list::workers(&workers))?,
    }
    Ok(Exit::Done)
}
