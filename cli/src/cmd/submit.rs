//! `submit`: one job from the command line, or a stream of them from standard input.
//!
//! A stream goes out in requests of at most 1 MiB and 10,000 jobs, each all or nothing under a key of its own, so that
//! a lost connection never accepts a job twice. On an error the number of jobs accepted so far is told.

use std::io::{self, BufRead, Read};
use std::mem;

use bytes::Bytes;
use hostler_wire::JobId;
use hostler_wire::api::{Accepted, AcceptedBatch, JobRequest};

use crate::client::{Ask, Client, read};
use crate::cmd::spec::SpecArgs;
use crate::cmd::{logs, wait};
use crate::context::Context;
use crate::exit::{Exit, Failure};
use crate::follow::{Printer, Wanted};
use crate::output::{self, Form, json, paint};
use crate::select::{SELECTED_MAX, Selected};

/// Most bytes of one request of a stream.
const REQUEST_BYTES_MAX: usize = 1 << 20;
/// Most jobs of one request of a stream.
const REQUEST_JOBS_MAX: usize = 10_000;
/// Longest line of a stream: a job at its limit, in JSON that escapes a lot.
const LINE_BYTES_MAX: usize = 8 << 20;

/// Submit a job, or many from standard input
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  hostler submit -q video -n encode --timeout 30m --retries 3 -- ffmpeg -i in.mov out.mp4
  ID=$(hostler submit -o id -- make test); hostler wait \"$ID\"
  hostler submit --handler resize --payload '{\"width\":80}'
  generate-jobs | hostler submit -        one JSON object a line, as POST /jobs takes it")]
pub(crate) struct Args {
    #[command(flatten)]
    spec: SpecArgs,

    /// Call this function of a worker instead of starting a command
    #[arg(long, value_name = "NAME")]
    handler: Option<String>,

    /// What the function is called with
    #[arg(long, value_name = "JSON", requires = "handler")]
    payload: Option<String>,

    /// Wait until it has ended; the exit code tells how
    #[arg(short, long)]
    wait: bool,

    /// Show its output until it has ended; the exit code tells how
    #[arg(short, long)]
    follow: bool,

    /// The command and its arguments; - reads jobs from standard input
    #[arg(
        value_name = "COMMAND",
        trailing_var_arg = true,
        required_unless_present = "handler",
        conflicts_with = "handler"
    )]
    command: Vec<String>,
}

/// Runs it.
pub(crate) async fn run(args: Args, context: &mut Context) -> Result<Exit, Failure> {
    if args.command == ["-"] {
        return stream(&args, context).await;
    }
    let request = match &args.handler {
        Some(handler) => args.spec.handler(handler, args.payload.as_deref())?,
        None => args.spec.command(&args.command)?,
    };
    let (accepted, body) = submit(&mut context.client, &request).await?;
    let id = accepted.id;
    match context.form() {
        form @ (Form::Json | Form::Ndjson) => json::text(form, &String::from_utf8_lossy(&body))?,
        Form::Id => output::line(id)?,
        Form::Table | Form::Wide => {
            output::line(format_args!(
                "Job {id} {} in {}",
                accepted.state, accepted.queue
            ))?;
            if !args.follow && !args.wait {
                output::note(paint::dim(&format!("  follow: hostler logs -f {id}")));
            }
        }
    }
    if args.follow {
        let wanted = Wanted {
            split: true,
            ..Wanted::default()
        };
        let mut printer = Printer::new(&wanted);
        logs::to_the_end(&mut context.client, id, &wanted, &mut printer).await?;
    }
    if args.follow || args.wait {
        let selected = Selected {
            ids: vec![id],
            named: [id].into(),
        };
        return wait::all(context, &selected, None, wait::Show::Quiet).await;
    }
    Ok(Exit::Done)
}

/// Submits one job; gives the answer, and as it was sent.
pub(crate) async fn submit(
    client: &mut Client,
    request: &JobRequest<'_>,
) -> Result<(Accepted, Bytes), Failure> {
    let body = serde_json::to_vec(request)
        .map_err(|error| Failure::usage(format!("the job cannot be put into JSON: {error}")))?;
    let ask = Ask::post("/jobs", "application/json", body.into());
    let body = client.body(&ask).await?;
    Ok((read(&body)?, body))
}

/// What became of a stream so far.
#[derive(Debug, Default)]
struct Accepting {
    /// Lines read before the request in hand.
    lines: u64,
    count: u64,
    /// First ids and counts, neighbours joined.
    runs: Vec<(JobId, u64)>,
}

async fn stream(args: &Args, context: &mut Context) -> Result<Exit, Failure> {
    let mut accepting = Accepting::default();
    let result = send_all(context, &mut accepting, io::stdin().lock()).await;
    if accepting.count > 0 || result.is_ok() {
        tell(context.form(), &accepting)?;
    }
    if let Err(failure) = result {
        output::note(format_args!(
            "{} jobs were accepted before the error, from the first {} lines",
            accepting.count, accepting.lines
        ));
        return Err(failure);
    }
    if !args.wait && !args.follow {
        return Ok(Exit::Done);
    }
    if accepting.count > SELECTED_MAX {
        return Err(Failure::usage(format!(
            "all {} jobs were accepted, but only {SELECTED_MAX} can be waited for at once",
            accepting.count
        )));
    }
    let ids = accepting
        .runs
        .iter()
        .flat_map(|(first, count)| (0..*count).map(|n| first.plus(n)))
        .collect();
    let selected = Selected {
        ids,
        named: Default::default(),
    };
    wait::all(context, &selected, None, wait::Show::Summary).await
}

async fn send_all(
    context: &mut Context,
    accepting: &mut Accepting,
    input: impl BufRead,
) -> Result<(), Failure> {
    let mut lines = Lines { input, ahead: None };
    loop {
        let request = lines.request(accepting.lines)?;
        if request.lines == 0 {
            return Ok(());
        }
        if request.jobs > 0 {
            let batch = send(&mut context.client, request.body, accepting.lines).await?;
            let count = u64::from(batch.count);
            accepting.count += count;
            match accepting.runs.last_mut() {
                Some((first, run)) if first.plus(*run) == batch.first_id => *run += count,
                _ => accepting.runs.push((batch.first_id, count)),
            }
        }
        accepting.lines += request.lines;
    }
}

async fn send(client: &mut Client, body: Vec<u8>, before: u64) -> Result<AcceptedBatch, Failure> {
    let ask = Ask::post("/jobs", "application/x-ndjson", body.into());
    match client.ask(&ask).await?.yes().await? {
        Ok(answer) => read(&answer.bytes().await?),
        Err(mut refusal) => {
            // The server counts the lines of a request, the user those of the stream.
            for error in &mut refusal.problem.errors {
                error.line = error.line.map(|line| line + before);
            }
            Err(refusal.into_failure())
        }
    }
}

fn tell(form: Form, accepting: &Accepting) -> Result<(), Failure> {
    match form {
        Form::Json | Form::Ndjson => json::value(
            form,
            &serde_json::json!({
                "count": accepting.count,
                "ranges": accepting.runs.iter().map(|(first, count)|
                    serde_json::json!({"first_id": first.raw(), "count": count})
                ).collect::<Vec<_>>(),
            }),
        ),
        Form::Id => {
            for (first, count) in &accepting.runs {
                let ids: Vec<_> = (0..*count).map(|n| first.plus(n).to_string()).collect();
                output::line(ids.join("\n"))?;
            }
            Ok(())
        }
        Form::Table | Form::Wide => {
            let ranges: Vec<_> = accepting
                .runs
                .iter()
                .take(8)
                .map(|(first, count)| match count {
                    1 => first.to_string(),
                    count => format!("{first}-{}", first.plus(count - 1)),
                })
                .collect();
            let more = if accepting.runs.len() > 8 { ",…" } else { "" };
            let which = if ranges.is_empty() {
                String::new()
            } else {
                format!(": {}{more}", ranges.join(","))
            };
            output::line(format_args!("{} jobs accepted{which}", accepting.count))
        }
    }
}

/// Lines of a stream, gathered into requests.
struct Lines<R> {
    input: R,
    /// A line that did not fit into the last request.
    ahead: Option<Vec<u8>>,
}

/// Lines for one request.
#[derive(Debug, Default, PartialEq, Eq)]
struct Gathered {
    body: Vec<u8>,
    lines: u64,
    jobs: usize,
}

impl<R: BufRead> Lines<R> {
    /// The lines of the next request; none of them at the end. `before`: lines of earlier requests.
    fn request(&mut self, before: u64) -> Result<Gathered, Failure> {
        let mut request = Gathered::default();
        while request.jobs < REQUEST_JOBS_MAX {
            let Some(line) = self.line(before + request.lines)? else {
                break;
            };
            if request.jobs > 0 && request.body.len() + line.len() > REQUEST_BYTES_MAX {
                self.ahead = Some(line);
                break;
            }
            // Blank lines are sent too: so the server's line numbers stay ours.
            request.jobs += usize::from(!line.trim_ascii().is_empty());
            request.lines += 1;
            request.body.extend_from_slice(&line);
            if !line.ends_with(b"\n") {
                request.body.push(b'\n');
            }
        }
        Ok(request)
    }

    fn line(&mut self, before: u64) -> Result<Option<Vec<u8>>, Failure> {
        if let Some(line) = mem::take(&mut self.ahead) {
            return Ok(Some(line));
        }
        let mut line = Vec::new();
        let read = (&mut self.input)
            .take(LINE_BYTES_MAX as u64)
            .read_until(b'\n', &mut line)
            .map_err(|error| Failure::usage(format!("cannot read standard input: {error}")))?;
        if read == LINE_BYTES_MAX && !line.ends_with(b"\n") {
            return Err(Failure::usage(format!(
                "line {} of standard input is longer than {LINE_BYTES_MAX} bytes",
                before + 1
            )));
        }
        Ok((read > 0).then_some(line))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn requests(input: &[u8]) -> Vec<Gathered> {
        let mut lines = Lines { input, ahead: None };
        let mut out = Vec::new();
        let mut before = 0;
        loop {
            let request = lines.request(before).unwrap();
            if request.lines == 0 {
                return out;
            }
            before += request.lines;
            out.push(request);
        }
    }

    #[test]
    fn a_stream_is_cut_by_jobs_and_by_bytes_and_loses_nothing() {
        let many = b"{}\n".repeat(25_000);
        let sizes: Vec<_> = requests(&many).iter().map(|r| r.jobs).collect();
        assert_eq!(sizes, [10_000, 10_000, 5_000]);

        let long = [vec![b'x'; 400_000], b"\n".to_vec()].concat();
        let cut = requests(&long.repeat(5));
        assert_eq!(cut.iter().map(|r| r.jobs).collect::<Vec<_>>(), [2, 2, 1]);
        assert!(cut.iter().all(|r| r.body.len() <= REQUEST_BYTES_MAX));
        let bytes: Vec<u8> = cut.into_iter().flat_map(|r| r.body).collect();
        assert_eq!(bytes, long.repeat(5));
    }

    #[test]
    fn a_line_above_the_size_of_a_request_goes_alone() {
        let long = [vec![b'x'; REQUEST_BYTES_MAX + 1], b"\n".to_vec()].concat();
        let input = [b"{}\n".as_slice(), &long, b"{}"].concat();
        let cut = requests(&input);
        assert_eq!(cut.iter().map(|r| r.jobs).collect::<Vec<_>>(), [1, 1, 1]);
        assert_eq!(cut[2].body, b"{}\n");
    }

    #[test]
    fn a_line_without_end_is_refused() {
        let input = vec![b'x'; LINE_BYTES_MAX + 5];
        let mut lines = Lines {
            input: input.as_slice(),
            ahead: None,
        };
        let failure = lines.request(41).unwrap_err();
        assert!(failure.to_string().contains("line 42"), "{failure}");
    }

    #[test]
    fn blank_lines_count_as_lines_but_not_as_jobs() {
        let cut = requests(b"{}\n\n  \n{}\n");
        assert_eq!((cut[0].lines, cut[0].jobs), (4, 2));
        assert_eq!(requests(b""), []);
    }
}
