//! `logs`: what a job printed, byte for byte; with `-f` as it prints it.

use hostler_wire::JobId;
use hostler_wire::api::{LogEnd, LogPiece};
use hyper::header;

use crate::client::{Answer, Ask, Client};
use crate::cmd::filter::since;
use crate::context::Context;
use crate::exit::{Exit, Failure};
use crate::follow::{self, Printer, Wanted};
use crate::output;
use crate::select::Selector;

/// Longest line of an ndjson answer: a piece of output in base 64, many times.
const LINE_BYTES_MAX: usize = 4 << 20;

/// What a job printed
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  hostler logs 1042 > build.log
  hostler logs -f last
  hostler logs 1042 --stderr --tail 20 --timestamps")]
pub(crate) struct Args {
    /// Which job: an id, or last
    #[arg(value_name = "ID")]
    id: Selector,

    /// Show what comes, until the job has ended
    #[arg(short, long)]
    follow: bool,

    /// Only the last N lines of what there is
    #[arg(long, value_name = "N")]
    tail: Option<u64>,

    /// Only what was printed since: 10m (ago), or a time
    #[arg(long, value_name = "WHEN", value_parser = since)]
    since: Option<String>,

    /// The time before each line
    #[arg(short, long)]
    timestamps: bool,

    /// Only standard output
    #[arg(long, conflicts_with = "stderr")]
    stdout: bool,

    /// Only standard error
    #[arg(long)]
    stderr: bool,

    /// Of which attempt [default: the latest]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    attempt: Option<u16>,
}

/// Runs it.
pub(crate) async fn run(args: Args, context: &mut Context) -> Result<Exit, Failure> {
    let selected = context.resolve(std::slice::from_ref(&args.id)).await?;
    let [id] = selected.ids[..] else {
        return Err(Failure::usage("logs are shown of one job at a time"));
    };
    let wanted = Wanted {
        stream: match (args.stdout, args.stderr) {
            (true, _) => Some("stdout"),
            (_, true) => Some("stderr"),
            _ => None,
        },
        attempt: args.attempt,
        tail: args.tail,
        since: args.since,
        timestamps: args.timestamps,
        split: false,
    };
    let json = context.form().is_json();
    let mut printer = if json {
        Printer::json()
    } else {
        Printer::new(&wanted)
    };
    if args.follow {
        to_the_end(&mut context.client, id, &wanted, &mut printer).await?;
    } else if json || args.timestamps {
        pieces(context, id, &wanted, &mut printer).await?;
    } else {
        plain(context, id, &wanted).await?;
    }
    Ok(Exit::Done)
}

/// Shows a job's output until the job has ended, and says what of it is missing.
pub(crate) async fn to_the_end(
    client: &mut Client,
    id: JobId,
    wanted: &Wanted,
    printer: &mut Printer,
) -> Result<LogEnd, Failure> {
    let end = follow::follow(client, id, wanted, printer).await?;
    follow::note_missing(&end);
    Ok(end)
}

/// The bytes as they are.
async fn plain(context: &mut Context, id: JobId, wanted: &Wanted) -> Result<(), Failure> {
    let ask = Ask::get(wanted.path(id, false)).header(header::ACCEPT, "text/plain");
    let mut answer = agreed(context.client.ask(&ask).await?).await?;
    let missing = missing(&answer);
    while let Some(bytes) = answer.piece().await? {
        output::raw(&bytes)?;
    }
    note(missing);
    Ok(())
}

/// Bytes that were not kept, and bytes that have not arrived, as the head of an answer says.
fn missing(answer: &Answer) -> [u64; 2] {
    ["x-log-truncated-bytes", "x-log-incomplete-bytes"].map(|name| {
        let value = answer.headers.get(name);
        let number = value.and_then(|value| value.to_str().ok()?.parse().ok());
        number.unwrap_or(0)
    })
}

fn note([truncated, incomplete]: [u64; 2]) {
    follow::note_truncated(truncated);
    follow::note_incomplete(incomplete);
}

/// What there is, piece by piece, with times: as JSON, or printed.
async fn pieces(
    context: &mut Context,
    id: JobId,
    wanted: &Wanted,
    printer: &mut Printer,
) -> Result<(), Failure> {
    let ask = Ask::get(wanted.path(id, false)).header(header::ACCEPT, "application/x-ndjson");
    let mut answer = agreed(context.client.ask(&ask).await?).await?;
    let missing = missing(&answer);
    let mut line = Vec::new();
    while let Some(bytes) = answer.piece().await? {
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            line.extend_from_slice(part);
            if line.len() > LINE_BYTES_MAX {
                return Err(Failure::new(
                    Exit::Unreachable,
                    "the server sent a line without end",
                ));
            }
            if !line.ends_with(b"\n") {
                continue;
            }
            if printer.is_json() {
                output::raw(&line)?;
            } else if let Ok(piece) = serde_json::from_slice::<LogPiece<'_>>(&line) {
                printer.piece(&piece)?;
            }
            line.clear();
        }
    }
    note(missing);
    Ok(())
}

async fn agreed(answer: Answer) -> Result<Answer, Failure> {
    answer
        .yes()
        .await?
        .map_err(|refusal| refusal.into_failure())
}
