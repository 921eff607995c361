//! `health`: is the server there, and does it take jobs? For people, containers and load balancers.

use crate::client::Ask;
use crate::context::Context;
use crate::exit::{Exit, Failure};
use crate::output::{self, json};

/// Is the server well?
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Ends with 0 if the server is ready, with 7 if it is not (yet, or any more), with 5 if it cannot be reached.")]
pub(crate) struct Args {
    /// Only whether it is alive, not whether it takes jobs
    #[arg(long)]
    live: bool,
}

/// Runs it.
pub(crate) async fn run(args: Args, context: &mut Context) -> Result<Exit, Failure> {
    let path = if args.live { "/healthz" } else { "/readyz" };
    let body = context.client.body(&Ask::get(path).once()).await?;
    let form = context.form();
    if form.is_json() {
        json::text(form, &String::from_utf8_lossy(&body))?;
    } else {
        let word = if args.live { "alive" } else { "ready" };
        output::line(format_args!("{} is {word}", context.client.address()))?;
    }
    Ok(Exit::Done)
}
