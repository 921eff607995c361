//! Following what a job prints, to its end, over lost connections and restarts of the server.
//!
//! Each piece comes as an event whose id says how far we are; after a loss the server is asked to go on from the last
//! id, so nothing is missing and nothing comes twice.

use std::time::Duration;

use hostler_wire::JobId;
use hostler_wire::api::{LogEnd, LogPiece, LogResync};
use hyper::header::{self, HeaderName};
use tokio::time::sleep;

use crate::client::{Ask, Client, encode};
use crate::clock::Moment;
use crate::exit::{Exit, Failure};
use crate::output;
use crate::sse::{Decoder, Event, TooLong};

/// How long a server may be away before we stop waiting for it.
const AWAY_MAX: Duration = Duration::from_secs(60);
/// Between two tries to reach it again.
const AWAY_PAUSE: Duration = Duration::from_millis(250);

/// Which output is wanted.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wanted {
    /// `stdout`, `stderr`; none = both.
    pub(crate) stream: Option<&'static str>,
    /// Which attempt; none = the latest, and those after it.
    pub(crate) attempt: Option<u16>,
    /// Only the last lines of what there is.
    pub(crate) tail: Option<u64>,
    /// Only what was printed since.
    pub(crate) since: Option<String>,
    /// The time before each line.
    pub(crate) timestamps: bool,
    /// Standard error to standard error; otherwise everything is data.
    pub(crate) split: bool,
}

impl Wanted {
    /// Where it is to be had.
    pub(crate) fn path(&self, job: JobId, follow: bool) -> String {
        let mut path = format!("/jobs/{job}/logs?stream={}", self.stream.unwrap_or("all"));
        if let Some(attempt) = self.attempt {
            path.push_str(&format!("&attempt={attempt}"));
        }
        if let Some(tail) = self.tail {
            path.push_str(&format!("&tail={tail}"));
        }
        if let Some(since) = &self.since {
            path.push_str(&format!("&since={}", encode(since)));
        }
        if follow {
            path.push_str("&follow=1");
        }
        path
    }
}

/// Prints pieces as they come.
#[derive(Debug)]
pub(crate) struct Printer {
    timestamps: bool,
    split: bool,
    /// Whether the next byte of standard output, standard error begins a line.
    fresh: [bool; 2],
    /// Prints what the server says as it is, a line each.
    json: bool,
    /// Something of this job was printed.
    pub(crate) printed: bool,
}

impl Printer {
    /// A printer for what was wanted.
    pub(crate) fn new(wanted: &Wanted) -> Self {
        Self {
            timestamps: wanted.timestamps,
            split: wanted.split,
            fresh: [true; 2],
            json: false,
            printed: false,
        }
    }

    /// A printer for programs: the same lines as the server's `application/x-ndjson`.
    pub(crate) fn json() -> Self {
        Self {
            json: true,
            ..Self::new(&Wanted::default())
        }
    }

    pub(crate) fn is_json(&self) -> bool {
        self.json
    }

    /// What is not a piece, under the name it has as a line.
    fn word(&self, name: &str, data: &str) -> Result<(), Failure> {
        output::raw(format!("{{\"{name}\":{data}}}\n").as_bytes())
    }

    /// Prints one piece.
    pub(crate) fn piece(&mut self, piece: &LogPiece<'_>) -> Result<(), Failure> {
        let decoded;
        let data = match (&piece.data, &piece.data_b64) {
            (Some(text), _) => text.as_bytes(),
            (None, Some(text)) => {
                decoded = hostler_wire::api::base64::decode(text).ok_or_else(|| {
                    Failure::new(
                        Exit::Unreachable,
                        "the server sent output that is not base 64",
                    )
                })?;
                &decoded
            }
            (None, None) => return Ok(()),
        };
        let error = piece.stream == "stderr";
        self.printed |= !data.is_empty();
        let stamped;
        let data = if self.timestamps {
            stamped = stamp(
                data,
                &piece.t.to_string(),
                &mut self.fresh[usize::from(error)],
            );
            &stamped
        } else {
            data
        };
        if error && self.split {
            output::raw_error(data)
        } else {
            output::raw(data)
        }
    }
}

/// Puts a time before each line that begins in `data`.
fn stamp(data: &[u8], time: &str, fresh: &mut bool) -> Vec<u8> {
    let mut out = Vec::with_capacity(data.len() + 64);
    for line in data.split_inclusive(|byte| *byte == b'\n') {
        if *fresh {
            out.extend_from_slice(time.as_bytes());
            out.push(b' ');
        }
        out.extend_from_slice(line);
        *fresh = line.ends_with(b"\n");
    }
    out
}

/// Prints a job's output until the job has ended, and says how.
pub(crate) async fn follow(
    client: &mut Client,
    job: JobId,
    wanted: &Wanted,
    printer: &mut Printer,
) -> Result<LogEnd, Failure> {
    let mut position: Option<String> = None;
    let mut wanted = wanted.clone();
    let mut contact = false;
    let mut give_up = None;
    loop {
        let lost = match listen(client, job, &wanted, &mut position, &mut contact, printer).await {
            Ok(end) => return Ok(end),
            Err(Stopped::For(failure)) => return Err(failure),
            Err(Stopped::Lost(failure)) if give_up.is_none() && !contact => return Err(failure),
            Err(Stopped::Lost(failure)) => failure,
        };
        if position.is_some() {
            (wanted.tail, wanted.since) = (None, None); // the position says it better
        }
        if contact || give_up.is_none() {
            output::note(output::paint::yellow(&format!(
                "connection lost, job {job} goes on; trying again for {}s …",
                AWAY_MAX.as_secs()
            )));
            give_up = Moment::after(AWAY_MAX);
        }
        contact = false;
        if give_up.is_none_or(|moment| moment.left().is_zero()) {
            return Err(lost.hint(format!("once the server is back: hostler logs -f {job}")));
        }
        sleep(AWAY_PAUSE).await;
    }
}

/// Why the listening stopped before the end.
enum Stopped {
    /// The server cannot be reached, or went away.
    Lost(Failure),
    /// For good.
    For(Failure),
}

/// Listens on one connection.
async fn listen(
    client: &mut Client,
    job: JobId,
    wanted: &Wanted,
    position: &mut Option<String>,
    contact: &mut bool,
    printer: &mut Printer,
) -> Result<LogEnd, Stopped> {
    let mut ask = Ask::get(wanted.path(job, true))
        .header(header::ACCEPT, "text/event-stream")
        .once();
    if let Some(id) = position {
        ask = ask.header(HeaderName::from_static("last-event-id"), id);
    }
    let mut answer = client.ask(&ask).await.map_err(Stopped::Lost)?;
    if !(200..300).contains(&answer.status) {
        let status = answer.status;
        let failure = match answer.yes().await {
            Ok(Ok(_)) => unreachable!("its status was looked at above"),
            Ok(Err(refusal)) => refusal.into_failure(),
            Err(failure) => return Err(Stopped::Lost(failure)),
        };
        // A server that is about to stop, or has just started, is as good as one that is away.
        return Err(if status == 503 && position.is_some() {
            Stopped::Lost(failure)
        } else {
            Stopped::For(failure)
        });
    }
    let mut decoder = Decoder::default();
    let mut events = Vec::new();
    *contact = true;
    while let Some(bytes) = answer.piece().await.map_err(Stopped::Lost)? {
        decoder.push(&bytes, &mut events).map_err(|TooLong| {
            Stopped::For(Failure::new(
                Exit::Unreachable,
                "the server sent an event without end",
            ))
        })?;
        for event in events.drain(..) {
            if let Some(end) = take(&event, printer).map_err(Stopped::For)? {
                return Ok(end);
            }
            if !event.id.is_empty() {
                *position = Some(event.id);
            }
        }
    }
    Err(Stopped::Lost(Failure::new(
        Exit::Unreachable,
        "the server closed the connection before the job's end",
    )))
}

/// Prints one event, or recognises the last one.
fn take(event: &Event, printer: &mut Printer) -> Result<Option<LogEnd>, Failure> {
    if printer.json {
        match event.name.as_str() {
            "message" => output::raw(format!("{}\n", event.data).as_bytes())?,
            name => printer.word(name, &event.data)?,
        }
    }
    if event.name == "end" {
        return crate::client::read(event.data.as_bytes()).map(Some);
    }
    if printer.json {
        return Ok(None);
    }
    if event.name == "resync" {
        if let Ok(resync) = serde_json::from_str::<LogResync<'_>>(&event.data) {
            output::note(output::paint::yellow(&format!(
                "{} bytes of {} are not kept; it goes on at byte {}",
                resync.missing_bytes, resync.stream, resync.offset
            )));
        }
        return Ok(None);
    }
    // What is no piece of output belongs to a later version.
    if let Ok(piece) = serde_json::from_str::<LogPiece<'_>>(&event.data) {
        printer.piece(&piece)?;
    }
    Ok(None)
}

/// Says what of the output is missing, if something is.
pub(crate) fn note_missing(end: &LogEnd) {
    note_truncated(end.truncated_bytes);
    note_incomplete(end.incomplete_bytes);
}

/// Says that output has not arrived.
pub(crate) fn note_incomplete(bytes: u64) {
    if bytes > 0 {
        output::note(output::paint::yellow(&format!(
            "{bytes} bytes of the output have not arrived from the worker"
        )));
    }
}

/// Says that output was cut.
pub(crate) fn note_truncated(bytes: u64) {
    if bytes > 0 {
        output::note(output::paint::yellow(&format!(
            "{bytes} bytes of the output were not kept (over the job's limit)"
        )));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_stands_before_each_line_however_it_is_cut() {
        let mut fresh = true;
        let mut out = stamp(b"a\nb", "T", &mut fresh);
        out.extend(stamp(b"c\n\nd", "T", &mut fresh));
        out.extend(stamp(b"\n", "T", &mut fresh));
        assert_eq!(out, b"T a\nT bc\nT \nT d\n");
        assert!(fresh);
    }

    #[test]
    fn the_path_names_what_is_wanted() {
        let job = JobId::new(7).unwrap();
        let wanted = Wanted {
            stream: Some("stderr"),
            attempt: Some(2),
            tail: Some(10),
            since: Some("2026-11-24T09:00:00+01:00".into()),
            ..Wanted::default()
        };
        assert_eq!(
            wanted.path(job, true),
            "/jobs/7/logs?stream=stderr&attempt=2&tail=10&since=2026-11-24T09:00:00%2B01:00&follow=1"
        );
        assert_eq!(
            Wanted::default().path(job, false),
            "/jobs/7/logs?stream=all"
        );
    }
}
