//! `audit`: who did what, from where, and what came of it.

use hostler_wire::api::AuditList;

use crate::client::{Ask, encode, read};
use crate::context::Context;
use crate::exit::{Exit, Failure};
use crate::output::{self, Form, json, list};

/// Who did what
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  hostler audit --since 1h
  hostler audit --action token_create --limit 20
  hostler audit --token 8fK2mQ0a -o ndjson")]
pub(crate) struct Args {
    /// Not older than this: 10m, 2d, or a time
    #[arg(long, value_name = "TIME")]
    since: Option<String>,

    /// Of this access token
    #[arg(long, value_name = "ID")]
    token: Option<String>,

    /// Of this kind: submit, cancel, retry, purge, token_create, token_revoke, worker_login, access
    #[arg(long, value_name = "ACTION")]
    action: Option<String>,

    /// Most entries [default: 100]
    #[arg(long, value_name = "N")]
    limit: Option<u32>,

    /// Go on where an earlier page ended
    #[arg(long, value_name = "CURSOR")]
    cursor: Option<String>,
}

/// Runs it.
pub(crate) async fn run(args: Args, context: &mut Context) -> Result<Exit, Failure> {
    let limit = args.limit.map(|limit| limit.to_string());
    let mut path = "/audit".to_owned();
    let mut mark = '?';
    for (name, value) in [
        ("since", &args.since),
        ("token", &args.token),
        ("action", &args.action),
        ("limit", &limit),
        ("cursor", &args.cursor),
    ] {
        if let Some(value) = value {
            path.push_str(&format!("{mark}{name}={}", encode(value)));
            mark = '&';
        }
    }
    let body = context.client.body(&Ask::get(path)).await?;
    let AuditList {
        entries,
        next_cursor,
    } = read(&body)?;
    match context.form() {
        Form::Json => json::text(Form::Json, &String::from_utf8_lossy(&body))?,
        Form::Ndjson => {
            for entry in &entries {
                json::value(Form::Ndjson, entry)?;
            }
        }
        Form::Id => {
            for entry in &entries {
                output::line(entry.n)?;
            }
        }
        Form::Table | Form::Wide => output::line(list::audit(&entries))?,
    }
    if let Some(cursor) = next_cursor.filter(|_| context.form() != Form::Json) {
        output::note(format_args!(
            "there is more: --cursor {}",
            output::plain(&cursor)
        ));
    }
    Ok(Exit::Done)
}
