//! `token`: makes, lists and revokes access tokens, on any server that takes ours for an admin's.
//!
//! The secret is told once: on standard output, or into a file that only its owner may read.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hostler_wire::api::{TokenList, TokenMade, TokenRequest, TokenView};

use crate::client::{Ask, read};
use crate::context::Context;
use crate::duration;
use crate::exit::{Exit, Failure};
use crate::output::{self, Form, json, list};

/// Make, list and revoke access tokens
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Roles: admin may do everything; submit makes, retries and cancels jobs and reads; read reads; worker is a worker.

Examples:
  hostler token create --role submit --name ci --queue builds --expires 30d --to ci.token
  hostler token create --role worker --queue video --allow command
  hostler token list
  hostler token revoke 8fK2mQ0a")]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Make one; its secret is told this once
    Create(Create),
    /// List them, without their secrets
    List,
    /// Make some good for nothing, at once
    Revoke {
        /// Which
        #[arg(value_name = "ID", required = true)]
        ids: Vec<String>,
    },
}

#[derive(Debug, clap::Args)]
struct Create {
    /// What it may do: admin, submit, read or worker
    #[arg(long, value_name = "ROLE", value_parser = ["admin", "submit", "read", "worker"],
          hide_possible_values = true)]
    role: String,

    /// What you call it
    #[arg(short, long, value_name = "NAME")]
    name: Option<String>,

    /// Good for this queue only; repeat for several [default: all]
    #[arg(short, long = "queue", value_name = "QUEUE", value_delimiter = ',')]
    queues: Vec<String>,

    /// Good for so long [default: for ever]
    #[arg(long, value_name = "TIME", value_parser = duration::parse)]
    expires: Option<Duration>,

    /// Good for this type of job only: command, handler, handler:NAME; NAME may end with * [default: all]
    #[arg(long, value_name = "TYPE", value_delimiter = ',')]
    allow: Vec<String>,

    /// Most HTTP requests a second [default: the server's]
    #[arg(long, value_name = "N")]
    requests_per_second: Option<u32>,

    /// Most jobs submitted a second [default: the server's]
    #[arg(long, value_name = "N")]
    jobs_per_second: Option<u32>,

    /// Write the secret into this new file, readable by you only, and not to standard output
    #[arg(long, value_name = "FILE")]
    to: Option<PathBuf>,
}

/// Runs it.
pub(crate) async fn run(args: Args, context: &mut Context) -> Result<Exit, Failure> {
    match args.what {
        What::Create(create) => self::create(create, context).await,
        What::List => list(context).await,
        What::Revoke { ids } => revoke(&ids, context).await,
    }
}

async fn create(args: Create, context: &mut Context) -> Result<Exit, Failure> {
    // The file first: a secret that cannot be written would be lost.
    let file = args.to.as_deref().map(new_file).transpose()?;
    let request = TokenRequest {
        role: args.role,
        name: args.name,
        queues: args.queues,
        allow: args.allow,
        expires_ms: args.expires.map(duration::millis),
        requests_per_second: args.requests_per_second,
        jobs_per_second: args.jobs_per_second,
    };
    let body = serde_json::to_vec(&request).map_err(std::io::Error::from)?;
    // Not repeated by itself: each repeat would be another token.
    let ask = Ask::post("/tokens", "application/json", body.into()).once();
    let made = match context.client.fetch::<TokenMade>(&ask).await {
        Ok(made) => made,
        Err(failure) => {
            if let Some(path) = &args.to {
                drop(std::fs::remove_file(path));
            }
            return Err(failure);
        }
    };
    let TokenView { id, role, .. } = &made.token;
    let told = format!("token {} ({})", output::plain(id), output::plain(role));
    if let (Some(mut file), Some(path)) = (file, &args.to) {
        writeln!(file, "{}", made.secret)
            .and_then(|()| file.sync_all())
            .map_err(|error| {
                Failure::new(
                    Exit::Unsuccessful,
                    format!("{told} was made, and its secret could not be written: {error}"),
                )
                .hint(format!("hostler token revoke {}", output::plain(id)))
            })?;
        output::note(format_args!("{told}: its secret is in {}", path.display()));
        match context.form() {
            Form::Id => output::line(output::plain(id))?,
            form @ (Form::Json | Form::Ndjson) => json::value(form, &made.token)?,
            Form::Table | Form::Wide => {}
        }
        return Ok(Exit::Done);
    }
    match context.form() {
        form @ (Form::Json | Form::Ndjson) => json::value(form, &made)?,
        Form::Table | Form::Wide | Form::Id => output::line(output::plain(&made.secret))?,
    }
    output::note(format_args!(
        "{told}: this is the only time its secret is told"
    ));
    Ok(Exit::Done)
}

/// A file nobody had before, for its owner only.
fn new_file(path: &Path) -> Result<std::fs::File, Failure> {
    let mut options = OpenOptions::new();
    let file = options.write(true).create_new(true).mode(0o600).open(path);
    file.map_err(|error| Failure::usage(format!("cannot make {}: {error}", path.display())))
}

async fn list(context: &mut Context) -> Result<Exit, Failure> {
    let body = context.client.body(&Ask::get("/tokens")).await?;
    let TokenList { tokens } = read(&body)?;
    match context.form() {
        Form::Json => json::text(Form::Json, &String::from_utf8_lossy(&body))?,
        Form::Ndjson => {
            for token in &tokens {
                json::value(Form::Ndjson, token)?;
            }
        }
        Form::Id => {
            for token in &tokens {
                output::line(output::plain(&token.id))?;
            }
        }
        Form::Table | Form::Wide => output::line(list::tokens(&tokens, list::now_ms()))?,
    }
    Ok(Exit::Done)
}

async fn revoke(ids: &[String], context: &mut Context) -> Result<Exit, Failure> {
    for id in ids {
        if id.len() != 8 || !id.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return Err(Failure::usage(format!(
                "\"{}\" is no token's id: eight letters and digits, as `hostler token list` shows them",
                output::plain(id)
            )));
        }
    }
    for id in ids {
        let body = context
            .client
            .body(&Ask::delete(format!("/tokens/{id}")))
            .await?;
        match context.form() {
            form @ (Form::Json | Form::Ndjson) => {
                json::text(form, &String::from_utf8_lossy(&body))?
            }
            Form::Id => output::line(id)?,
            Form::Table | Form::Wide => output::line(format_args!("Token {id} revoked"))?,
        }
    }
    Ok(Exit::Done)
}
