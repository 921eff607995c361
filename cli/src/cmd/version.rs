//! `version`: of this program, and of the server if there is one.

use hostler_wire::api::Version;

use crate::client::{Ask, read};
use crate::context::Context;
use crate::exit::{Exit, Failure};
use crate::output::{self, json};

/// Versions of this program and of the server
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only this program's
    #[arg(long)]
    client: bool,
}

/// Runs it.
pub(crate) async fn run(args: Args, context: &mut Context) -> Result<Exit, Failure> {
    let ours = env!("CARGO_PKG_VERSION");
    let server: Option<Version> = if args.client {
        None
    } else {
        match context.client.body(&Ask::get("/version").once()).await {
            Ok(body) => Some(read(&body)?),
            // No server is no failure here: the question was about us as well.
            Err(failure) if failure.exit() == Exit::Unreachable => {
                output::note(format_args!("{failure}"));
                None
            }
            Err(failure) => return Err(failure),
        }
    };
    let form = context.form();
    if form.is_json() {
        json::value(form, &serde_json::json!({"client": ours, "server": server}))?;
        return Ok(Exit::Done);
    }
    output::line(format_args!("hostler {ours}"))?;
    if let Some(server) = server {
        output::line(format_args!(
            "server  {} at {} (HTTP {}, worker protocol {}, cluster {}, start {})",
            server.version,
            context.client.address(),
            server.api,
            server.protocol,
            server.cluster_id,
            server.epoch
        ))?;
    }
    Ok(Exit::Done)
}
