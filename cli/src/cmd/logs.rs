//! `logs`: what a job printed, byte for byte; with `-f` as it prints it.

use hostler_wire::JobId;
use hostler_wire::api::{LogEnd, LogPiece};
use hyper::header;
use serde::Deserialize;

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
    if context.form().is_json() {
        return pieces(context, id, &wanted, args.follow, None).await;
    }
    let mut printer = Printer::new(&wanted);
    if args.follow {
        to_the_end(&mut context.client, id, &wanted, &mut printer).await?;
    } else if args.timestamps {
        return pieces(context, id, &wanted, false, Some(printer)).await;
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
    let truncated = answer
        .headers
        .get("x-log-truncated-bytes")
        .and_then(|value| value.to_str().ok()?.parse().ok());
    while let Some(bytes) = answer.piece().await? {
        output::raw(&bytes)?;
    }
    follow::note_truncated(truncated.unwrap_or(0));
    Ok(())
}

/// The last line of an ndjson answer that follows.
#[derive(Deserialize)]
struct EndLine {
    end: LogEnd,
}

/// Piece by piece, with times: as JSON, or printed.
async fn pieces(
    context: &mut Context,
    id: JobId,
    wanted: &Wanted,
    follow: bool,
    mut printer: Option<Printer>,
) -> Result<Exit, Failure> {
    let ask = Ask::get(wanted.path(id, follow)).header(header::ACCEPT, "application/x-ndjson");
    let mut answer = agreed(context.client.ask(&ask).await?).await?;
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
            match &mut printer {
                None => output::raw(&line)?,
                Some(printer) => {
                    if let Ok(piece) = serde_json::from_slice::<LogPiece<'_>>(&line) {
                        printer.piece(&piece)?;
                    } else if let Ok(EndLine { end }) = serde_json::from_slice(&line) {
                        follow::note_missing(&end);
                    }
                }
            }
            line.clear();
        }
    }
    Ok(Exit::Done)
}

async fn agreed(answer: Answer) -> Result<Answer, Failure> {
    answer
        .yes()
        .await?
        .map_err(|refusal| refusal.into_failure())
}
