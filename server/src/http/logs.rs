//! `GET /jobs/{id}/logs`: what a job printed, in three forms.
//!
//! Plain text is the very bytes, with ranges; ndjson and server-sent events carry pieces with their stream, place and
//! time. Pages are fetched from the output thread only as the client takes them in: between the two lies one page, so
//! that a slow reader costs one page and nobody's time. What it was too slow for, or what was never kept, is said where it
//! is missing (`resync`). Output that a report counted and that has not arrived is waited for a little (semantics 26) and
//! then said to be missing; output that was not kept is said to be cut. An answer that cannot be finished, or that has
//! no place to say what is missing, is broken off visibly.
//!
//! Not here: segments and offsets on disk (`output`).

use std::borrow::Cow;
use std::collections::VecDeque;
use std::future::Future;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use hostler_wire::api::{LogEnd, LogPiece, LogResync, Timestamp};
use hostler_wire::frame::{LogsMode, Stream, Work};
use hostler_wire::{JobId, Usage};
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::http::request;
use hyper::{Response, StatusCode};
use serde::Serialize;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Sleep;

use crate::dispatch::Ask;
use crate::http::body::{Body, Cut};
use crate::http::params::{Params, wrong};
use crate::http::problem::{Code, Refusal};
use crate::http::query::{self, Known};
use crate::http::route::Who;
use crate::http::{Parts, asked};
use crate::output::{Page, Piece, Read, ReadError};
use crate::store::seam::Record;

/// How long missing output is waited for once its attempt has ended.
const SETTLE: Duration = Duration::from_secs(2);
/// Output fetched at once.
const PAGE_BYTES: usize = 64 << 10;
/// How often a follower looks whether the world has moved on.
const TICK: Duration = Duration::from_millis(500);
/// Ticks between two signs of life in a quiet event stream: 15 s.
const PING_TICKS: u32 = 30;
/// Most lines of a tail.
const TAIL_LINES_MAX: usize = 100_000;

const X_LOG_ATTEMPT: HeaderName = HeaderName::from_static("x-log-attempt");
const X_LOG_TRUNCATED_BYTES: HeaderName = HeaderName::from_static("x-log-truncated-bytes");
const X_LOG_INCOMPLETE_BYTES: HeaderName = HeaderName::from_static("x-log-incomplete-bytes");

const LOGS_PARAMS: &[&str] = &["stream", "attempt", "tail", "since", "follow"];

/// How output is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Text,
    Lines,
    Events,
}

/// What is wanted of which output.
#[derive(Clone, Copy, Debug)]
struct Selection {
    job: JobId,
    attempt: Option<u16>,
    stream: Option<Stream>,
}

/// The endpoint.
pub(super) async fn read(
    parts: &Parts,
    who: &Who,
    id: JobId,
    head: &request::Parts,
) -> Result<Response<Body>, Box<Refusal>> {
    let params = Params::parse(head.uri.query(), LOGS_PARAMS)?;
    let form = form(head)?;
    let follow = params.flag("follow")?.unwrap_or(false);
    let tail = tail_lines(&params)?;
    let now = Timestamp::from_millis(parts.clock.wall().millis());
    let since = params.moment("since", now)?;
    let selection = Selection {
        job: id,
        attempt: params.number("attempt", "the number of an attempt, from 1")?,
        stream: stream(&params)?,
    };
    let known = query::job(parts, who, id, false).await?;
    if known.record.body.is_none() {
        return Err(Refusal::new(
            Code::BodyPurged,
            format!("body and output of job {id} were purged; its end is at /jobs/{id}"),
        ));
    }
    if let Some(attempt) = selection.attempt
        && !(1..=known.attempt()).contains(&attempt)
    {
        return Err(Refusal::new(
            Code::AttemptNotFound,
            format!("job {id} has had {} attempts", known.attempt()),
        ));
    }
    let resume = last_event(head, form, selection)?;
    let missing = if follow {
        0
    } else {
        settle_selected(parts, &known, selection).await
    };
    let begin = Selection {
        attempt: resume.map_or(selection.attempt, |(attempt, _)| attempt),
        ..selection
    };
    let glance = page(parts, begin, 0, 1, false).await?;
    let pinned = Selection {
        attempt: (glance.attempt > 0).then_some(glance.attempt),
        ..selection
    };
    let start = match (resume, tail, since) {
        (Some((_, at)), ..) => at,
        (None, None, None) => 0,
        (None, tail, since) => {
            let by_lines = match tail {
                Some(lines) => tail_start(parts, pinned, &glance, lines).await?,
                None => 0,
            };
            let by_time = match since {
                Some(since) => since_start(parts, pinned, since).await?,
                None => 0,
            };
            by_lines.max(by_time)
        }
    };
    let whole = start == 0 && form == Form::Text && !follow && glance.cut == 0;
    let range = if whole {
        range(head, glance.stored)?
    } else {
        Wanted::All
    };
    let (tx, rx) = mpsc::channel(1);
    let (start, length) = match range {
        Wanted::Part { from, to } => (from, Some(to - from)),
        // With a gap in it, the length is known when it has been read.
        Wanted::All if form == Form::Text && !follow && glance.cut == 0 => {
            (start, Some(glance.stored.saturating_sub(start)))
        }
        Wanted::All => (start, None),
    };
    let feed = Feed {
        parts: parts.clone(),
        who: who.clone(),
        selection,
        attempt: glance.attempt,
        at: start,
        offsets: if start == 0 { [Some(0); 2] } else { [None; 2] },
        told: glance.cut,
        untold: 0,
        left: (!follow).then(|| length.unwrap_or_else(|| glance.stored.saturating_sub(start))),
        form,
        to: tx,
        cut: glance.cut,
    };
    let body = Body::pieces(rx, length);
    let mut response = Response::new(body);
    describe(response.headers_mut(), form, &glance, follow, missing);
    if form == Form::Text && !follow {
        let ranges = if glance.cut == 0 { "bytes" } else { "none" };
        response
            .headers_mut()
            .insert(header::ACCEPT_RANGES, HeaderValue::from_static(ranges));
    }
    if let Wanted::Part { from, to } = range {
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
        let text = format!("bytes {from}-{}/{}", to - 1, glance.stored);
        let value = HeaderValue::from_str(&text).expect("digits and a slash");
        response.headers_mut().insert(header::CONTENT_RANGE, value);
    }
    if head.method == hyper::Method::HEAD {
        // Nothing will be sent; only the head of the answer counts.
        return Ok(response);
    }
    tokio::spawn(async move {
        if follow {
            feed.follow(known).await;
        } else {
            feed.tell(&known, missing).await;
        }
    });
    Ok(response)
}

fn form(head: &request::Parts) -> Result<Form, Box<Refusal>> {
    let mut any = false;
    let mut text = false;
    for value in head.headers.get_all(header::ACCEPT) {
        any = true;
        for kind in value.to_str().unwrap_or_default().split(',') {
            let kind = kind.split(';').next().unwrap_or_default().trim();
            match kind.to_ascii_lowercase().as_str() {
                "text/event-stream" => return Ok(Form::Events),
                "application/x-ndjson" => return Ok(Form::Lines),
                "text/plain" | "text/*" | "*/*" => text = true,
                _ => {}
            }
        }
    }
    if any && !text {
        return Err(Refusal::new(
            Code::NotAcceptable,
            "output comes as text/plain, application/x-ndjson or text/event-stream",
        ));
    }
    Ok(Form::Text)
}

fn stream(params: &Params<'_>) -> Result<Option<Stream>, Box<Refusal>> {
    match params.text("stream") {
        None | Some("all") => Ok(None),
        Some("stdout") => Ok(Some(Stream::Stdout)),
        Some("stderr") => Ok(Some(Stream::Stderr)),
        Some(_) => Err(wrong("stream", "must be stdout, stderr or all")),
    }
}

fn tail_lines(params: &Params<'_>) -> Result<Option<usize>, Box<Refusal>> {
    let what = format!("a number of lines up to {TAIL_LINES_MAX}");
    match params.number("tail", &what)? {
        Some(lines) if lines > TAIL_LINES_MAX => Err(wrong("tail", &format!("must be {what}"))),
        lines => Ok(lines),
    }
}

/// Where an event stream goes on: `OFFSET`, or `ATTEMPT.OFFSET` where no attempt was selected.
fn last_event(
    head: &request::Parts,
    form: Form,
    selection: Selection,
) -> Result<Option<(Option<u16>, u64)>, Box<Refusal>> {
    let id = head.headers.get("last-event-id");
    let Some(value) = id.filter(|_| form == Form::Events) else {
        return Ok(None);
    };
    let text = value.to_str().unwrap_or_default();
    let bad = || {
        let detail = "a Last-Event-ID is the id of an event of this stream";
        Refusal::new(Code::BadHeader, detail)
    };
    let (attempt, offset) = match text.split_once('.') {
        Some((attempt, offset)) => {
            let attempt: u16 = attempt.parse().map_err(|_not| bad())?;
            if selection
                .attempt
                .is_some_and(|selected| selected != attempt)
            {
                return Err(bad());
            }
            (Some(attempt), offset)
        }
        None => (selection.attempt, text),
    };
    let offset = offset.parse().map_err(|_not| bad())?;
    Ok(Some((attempt, offset)))
}

/// Which bytes a client wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    All,
    Part { from: u64, to: u64 },
}

/// One range of bytes; anything else a `Range` may say is, as it may be, ignored.
fn range(head: &request::Parts, total: u64) -> Result<Wanted, Box<Refusal>> {
    let Some(text) = head
        .headers
        .get(header::RANGE)
        .and_then(|value| value.to_str().ok())
    else {
        return Ok(Wanted::All);
    };
    let parsed = text
        .strip_prefix("bytes=")
        .and_then(|range| range.trim().split_once('-'));
    let part = match parsed {
        Some(("", last)) => last
            .parse()
            .ok()
            .map(|n: u64| (total.saturating_sub(n), total)),
        Some((from, "")) => from.parse().ok().map(|from: u64| (from, total)),
        Some((from, to)) => match (from.parse::<u64>(), to.parse::<u64>()) {
            (Ok(from), Ok(to)) if from <= to => Some((from, to.saturating_add(1).min(total))),
            _ => None,
        },
        None => None,
    };
    match part {
        None => Ok(Wanted::All),
        Some((from, to)) if from < to => Ok(Wanted::Part { from, to }),
        Some(_) => {
            let all = HeaderValue::from_str(&format!("bytes */{total}")).expect("digits");
            let detail = format!("there are {total} bytes of output so far");
            Err(Refusal::new(Code::RangeNotSatisfiable, detail).with(header::CONTENT_RANGE, all))
        }
    }
}

fn describe(
    headers: &mut header::HeaderMap,
    form: Form,
    glance: &Page,
    follow: bool,
    missing: u64,
) {
    let kind = match form {
        Form::Text => "text/plain; charset=utf-8",
        Form::Lines => "application/x-ndjson",
        Form::Events => "text/event-stream",
    };
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    if follow || form == Form::Events {
        // Proxies are asked not to gather what should flow.
        headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    }
    headers.insert(X_LOG_ATTEMPT, HeaderValue::from(glance.attempt));
    headers.insert(X_LOG_TRUNCATED_BYTES, HeaderValue::from(glance.cut));
    if missing > 0 {
        headers.insert(X_LOG_INCOMPLETE_BYTES, HeaderValue::from(missing));
    }
}

/// A page of output.
async fn page(
    parts: &Parts,
    selection: Selection,
    from: u64,
    max: usize,
    wait: bool,
) -> Result<Page, Box<Refusal>> {
    let reply = parts.output.read(selection.read(from, max, wait));
    asked(reply).await?.map_err(|error| unreadable(&error))
}

fn unreadable(error: &ReadError) -> Box<Refusal> {
    let (ReadError::Io(why) | ReadError::Corrupt(why)) = error;
    Refusal::new(Code::OutputUnreadable, why)
}

impl Selection {
    fn read(self, from: u64, max: usize, wait: bool) -> Read {
        Read {
            job: self.job,
            attempt: self.attempt,
            stream: self.stream,
            from,
            max,
            wait,
            newer: None,
        }
    }

    /// Of what was used, the bytes of the selected streams.
    fn bytes(self, usage: &Usage) -> u64 {
        match self.stream {
            None => usage.stdout_bytes.saturating_add(usage.stderr_bytes),
            Some(Stream::Stdout) => usage.stdout_bytes,
            Some(Stream::Stderr) => usage.stderr_bytes,
        }
    }
}

/// Where the last lines begin. Looks at the end first, and further back as long as there are too few lines.
async fn tail_start(
    parts: &Parts,
    selection: Selection,
    glance: &Page,
    lines: usize,
) -> Result<u64, Box<Refusal>> {
    let end = glance.stored;
    let mut back = PAGE_BYTES as u64;
    loop {
        let from = if glance.cut > 0 {
            0
        } else {
            end.saturating_sub(back)
        };
        // The starts of lines, the oldest of those wanted in front.
        let mut starts = VecDeque::new();
        if from == 0 {
            starts.push_back(0);
        }
        let mut at = from;
        loop {
            let page = page(parts, selection, at, PAGE_BYTES, false).await?;
            for piece in &page.pieces {
                for (n, _) in piece
                    .data
                    .iter()
                    .enumerate()
                    .filter(|(_, byte)| **byte == b'\n')
                {
                    starts.push_back(piece.at + n as u64 + 1);
                    // One more than wanted: the last may turn out to be the end.
                    if starts.len() > lines + 1 {
                        starts.pop_front();
                    }
                }
            }
            if page.pieces.is_empty() || page.next <= at {
                break;
            }
            at = page.next;
        }
        if starts.back() == Some(&at) {
            starts.pop_back();
        }
        while starts.len() > lines {
            starts.pop_front();
        }
        match starts.front() {
            _ if lines == 0 => return Ok(at),
            Some(start) if starts.len() == lines || from == 0 => return Ok(*start),
            None if from == 0 => return Ok(at),
            _ => back = back.saturating_mul(4),
        }
    }
}

/// Where the first piece that was read at that time or later begins.
async fn since_start(
    parts: &Parts,
    selection: Selection,
    since: Timestamp,
) -> Result<u64, Box<Refusal>> {
    let mut at = 0;
    loop {
        let page = page(parts, selection, at, PAGE_BYTES, false).await?;
        if let Some(first) = page.pieces.iter().find(|it| it.at_ms >= since.millis()) {
            return Ok(first.at);
        }
        if page.pieces.is_empty() || page.next <= at {
            return Ok(at);
        }
        at = page.next;
    }
}

impl Known {
    /// The number of the last attempt.
    fn attempt(&self) -> u16 {
        let ended = self.record.end.as_ref().map_or(0, |end| end.attempt.number);
        let stored = self
            .record
            .attempts
            .last()
            .map_or(0, |attempt| attempt.number);
        let live = self.status.as_ref().map_or(0, |status| status.attempt);
        ended.max(stored).max(live)
    }
}

/// What a report said an attempt had printed; none if none said so, or if output was not wanted.
fn reported(record: &Record, attempt: u16) -> Option<Usage> {
    let last = record.end.as_ref().map(|end| &end.attempt);
    let found = record
        .attempts
        .iter()
        .chain(last)
        .find(|found| found.number == attempt)?;
    let usage = found.detail.as_ref()?.usage?;
    let work = Work::decode(record.body.clone()?).ok()?;
    (work.logs.mode != LogsMode::None).then_some(usage)
}

/// Waits a little for output that is reported and has not arrived.
pub(super) async fn settle(parts: &Parts, known: &Known) {
    let selection = Selection {
        job: known.record.id,
        attempt: None,
        stream: None,
    };
    settle_selected(parts, known, selection).await;
}

/// The same for some of it; says how many bytes are still missing.
async fn settle_selected(parts: &Parts, known: &Known, selection: Selection) -> u64 {
    let attempt = match (selection.attempt, &known.record.end) {
        (Some(attempt), _) => attempt,
        (None, Some(end)) => end.attempt.number,
        (None, None) => return 0,
    };
    let Some(usage) = reported(&known.record, attempt) else {
        return 0;
    };
    let selection = Selection {
        attempt: Some(attempt),
        ..selection
    };
    let expected = selection.bytes(&usage);
    let mut missing = expected;
    let arrived = async {
        let mut at = 0;
        while missing > 0 {
            // Nothing of it is looked at but the count.
            let Ok(page) = page(parts, selection, at, 1, at > 0).await else {
                return;
            };
            if page.ended.is_some() {
                // All has come that ever will; what of it is not there was cut, and is said to be.
                missing = 0;
                return;
            }
            missing = expected.saturating_sub(page.stored);
            if page.stored == at {
                // Nothing new, or nothing at all, behind which one could wait: look again in a moment.
                tokio::time::sleep(TICK / 10).await;
            }
            at = page.stored;
        }
    };
    // Afterwards `missing` says what has not come.
    drop(tokio::time::timeout(SETTLE, arrived).await);
    missing
}

/// The client is gone, or cannot be told any more.
struct Gone;

/// Tells output to one client.
struct Feed {
    parts: Parts,
    who: Who,
    selection: Selection,
    /// The attempt being told; 0 before the first.
    attempt: u16,
    /// Where the next page begins.
    at: u64,
    /// Where each stream goes on, as far as that is known: a piece that begins later has a gap before it.
    offsets: [Option<u64>; 2],
    /// Bytes that the head said are missing, and that were not come to yet; and those passed over beyond them.
    told: u64,
    untold: u64,
    /// Bytes still to be told, if not all that comes.
    left: Option<u64>,
    form: Form,
    to: mpsc::Sender<Result<Bytes, Cut>>,
    /// Bytes of the attempt that were not kept.
    cut: u64,
}

/// What a follower waits for.
enum Happened {
    Page(Page),
    Failed,
    Ended,
    Tick,
    Gone,
}

impl Feed {
    /// What is there, and no more.
    async fn tell(mut self, known: &Known, missing: u64) {
        let told = self.tell_stored().await;
        if told.is_ok() && self.form == Form::Events {
            drop(self.end(known, missing).await);
        }
        if told.is_ok() {
            drop(self.finish().await);
        }
    }

    /// The end of the answer, unless that would make it look whole though more is missing than was said.
    async fn finish(&self) -> Result<(), Gone> {
        if self.form == Form::Text && self.untold > 0 {
            return self.break_off("resync").await;
        }
        self.send(Bytes::new()).await
    }

    async fn tell_stored(&mut self) -> Result<(), Gone> {
        while self.left.is_none_or(|left| left > 0) {
            let page = match page(&self.parts, self.current(), self.at, PAGE_BYTES, false).await {
                Ok(page) => page,
                Err(refusal) => return self.break_off(refusal.code.name()).await,
            };
            if page.pieces.is_empty() {
                break;
            }
            self.pieces(page).await?;
        }
        Ok(())
    }

    /// What is there and what comes, over all attempts unless one was selected, until the job has ended.
    async fn follow(mut self, known: Known) {
        drop(self.follow_all(known).await);
    }

    async fn follow_all(&mut self, mut known: Known) -> Result<(), Gone> {
        let mut end = self.ask_end();
        let mut ticks = 0;
        while known.record.end.is_none() {
            if self.who.bearer.check(self.parts.clock.wall()).is_err() {
                return self.break_off("token_expired").await;
            }
            match self.happens(&mut end).await {
                Happened::Page(page) => {
                    ticks = 0;
                    self.follow_page(page).await?;
                    if self.is_selected_over(&known) {
                        break;
                    }
                }
                Happened::Failed => return self.break_off("output_unreadable").await,
                Happened::Gone => return Err(Gone),
                Happened::Ended => {
                    known = self.look(known).await?;
                    if known.record.end.is_none() {
                        // Its end is being told at this moment, or the scheduler has yet to hear of it.
                        tokio::time::sleep(TICK / 10).await;
                        end = self.ask_end();
                    }
                }
                Happened::Tick => {
                    ticks += 1;
                    if self.parts.health.is_stopping() {
                        return self.break_off("stopping").await;
                    }
                    if ticks % PING_TICKS == 0 && self.form == Form::Events {
                        self.send(Bytes::from_static(b": still here\n\n")).await?;
                    }
                    if self.next_attempt().await? {
                        continue;
                    }
                    if self.selection.attempt.is_some() {
                        known = self.look(known).await?;
                        if self.is_selected_over(&known) {
                            break;
                        }
                    }
                }
            }
        }
        self.close(&known).await
    }

    /// The selected attempt has ended, though its job goes on.
    fn is_selected_over(&self, known: &Known) -> bool {
        self.selection.attempt.is_some_and(|attempt| {
            known
                .record
                .attempts
                .iter()
                .any(|ended| ended.number == attempt)
        })
    }

    /// The job's state anew; where it cannot be had the old one stands.
    async fn look(&self, known: Known) -> Result<Known, Gone> {
        match query::job(&self.parts, &self.who, self.selection.job, false).await {
            Ok(fresh) => Ok(fresh),
            Err(refusal) if refusal.code == Code::Stopping => {
                self.break_off("stopping").await.map(|()| known)
            }
            Err(_for_now) => Ok(known),
        }
    }

    /// The rest of the last attempts' output, what is missing of it, and the end.
    async fn close(&mut self, known: &Known) -> Result<(), Gone> {
        self.tell_rest().await?;
        let last = known
            .record
            .end
            .as_ref()
            .map_or(0, |end| end.attempt.number);
        let selection = Selection {
            attempt: self.selection.attempt.or(Some(last)),
            ..self.selection
        };
        let missing = settle_selected(&self.parts, known, selection).await;
        self.tell_rest().await?;
        if self.form != Form::Text {
            self.end(known, missing).await?;
        } else if missing > 0 {
            // Plain text has no place to say it: it must not look whole.
            return self.break_off("incomplete").await;
        }
        self.finish().await
    }

    /// All that is stored, of this attempt and of those after it.
    async fn tell_rest(&mut self) -> Result<(), Gone> {
        // Before the first attempt there is nothing to go on with: it is told from its start below.
        if self.current().attempt.is_some() {
            self.tell_stored().await?;
        }
        while self.next_attempt().await? {
            self.tell_stored().await?;
        }
        Ok(())
    }

    /// Goes on to the next attempt that has output, if there is one.
    async fn next_attempt(&mut self) -> Result<bool, Gone> {
        if self.selection.attempt.is_some() {
            return Ok(false);
        }
        let Ok(all) = asked(self.parts.output.attempts(self.selection.job)).await else {
            return self.break_off("stopping").await.map(|()| false);
        };
        let next = all
            .iter()
            .map(|output| output.attempt)
            .filter(|n| *n > self.attempt)
            .min();
        let Some(next) = next else {
            return Ok(false);
        };
        if self.attempt > 0 {
            // What came of the old one up to now is told first.
            self.tell_stored().await?;
        }
        self.attempt = next;
        self.at = 0;
        self.offsets = [Some(0); 2];
        self.cut = 0;
        Ok(true)
    }

    async fn follow_page(&mut self, page: Page) -> Result<(), Gone> {
        if self.attempt == 0 {
            self.attempt = page.attempt;
        }
        let fits = page.attempt == self.attempt;
        if fits && !page.pieces.is_empty() {
            return self.pieces(page).await;
        }
        // The attempt's output is over: the next one, or the job's end, comes in its own time.
        if !self.next_attempt().await? {
            tokio::time::sleep(TICK / 5).await;
        }
        Ok(())
    }

    /// The next thing worth waking for.
    async fn happens(&self, end: &mut oneshot::Receiver<Option<Ended>>) -> Happened {
        let read = Read {
            newer: (self.selection.attempt.is_none() && self.attempt > 0).then_some(self.attempt),
            ..self.current().read(self.at, PAGE_BYTES, true)
        };
        let read = self.parts.output.read(read);
        let tick: Sleep = tokio::time::sleep(TICK);
        let (mut read, mut gone, mut tick) = (pin!(read), pin!(self.to.closed()), pin!(tick));
        let mut end = pin!(end);
        std::future::poll_fn(move |cx| {
            if gone.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Happened::Gone);
            }
            if let Poll::Ready(page) = read.as_mut().poll(cx) {
                return Poll::Ready(match page {
                    Ok(Ok(page)) => Happened::Page(page),
                    Ok(Err(_)) | Err(_) => Happened::Failed,
                });
            }
            if end.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Happened::Ended);
            }
            tick.as_mut().poll(cx).map(|()| Happened::Tick)
        })
        .await
    }

    fn ask_end(&self) -> oneshot::Receiver<Option<Ended>> {
        let (reply, end) = oneshot::channel();
        self.parts.dispatch.ask(Ask::Wait {
            job: self.selection.job,
            reply,
        });
        end
    }

    fn current(&self) -> Selection {
        Selection {
            attempt: (self.attempt > 0)
                .then_some(self.attempt)
                .or(self.selection.attempt),
            ..self.selection
        }
    }

    async fn pieces(&mut self, page: Page) -> Result<(), Gone> {
        self.cut = page.cut;
        let mut text = BytesMut::new();
        let mut at = self.at;
        for piece in &page.pieces {
            let mut data = piece.data.clone();
            let missing = self.missing_before(piece, at);
            at = piece.at + data.len() as u64;
            if missing > 0 {
                self.pass_over(&mut text, piece, missing);
            }
            if let Some(left) = &mut self.left {
                data.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= data.len() as u64;
            }
            if !data.is_empty() {
                let behind = piece.at + data.len() as u64;
                self.write(&mut text, piece, &data, behind);
            }
        }
        self.at = page.next;
        if text.is_empty() {
            return Ok(());
        }
        self.send(text.freeze()).await
    }

    /// Bytes of the piece's stream that are not there between what came before and the piece.
    fn missing_before(&mut self, piece: &Piece, at: u64) -> u64 {
        let s = usize::from(piece.stream == Stream::Stderr);
        let goes_on = piece.offset + piece.data.len() as u64;
        match self.offsets[s].replace(goes_on) {
            Some(offset) => piece.offset.saturating_sub(offset),
            // After a resume the positions of the selection are all there is.
            None => piece.at.saturating_sub(at),
        }
    }

    /// Says that output is missing before this piece.
    fn pass_over(&mut self, text: &mut BytesMut, piece: &Piece, missing: u64) {
        let resync = LogResync {
            attempt: self.attempt,
            stream: Cow::Borrowed(name_of(piece.stream)),
            offset: piece.offset,
            missing_bytes: missing,
        };
        match self.form {
            Form::Text => {
                let told = missing.min(self.told);
                self.told -= told;
                self.untold += missing - told;
            }
            Form::Lines => {
                #[derive(Serialize)]
                struct Passed<'a> {
                    resync: LogResync<'a>,
                }
                line(text, &Passed { resync });
            }
            Form::Events => {
                text.extend_from_slice(b"event: resync\n");
                event(text, &resync);
            }
        }
    }

    fn write(&self, text: &mut BytesMut, piece: &Piece, data: &Bytes, behind: u64) {
        if self.form == Form::Text {
            return text.extend_from_slice(data);
        }
        let utf8 = std::str::from_utf8(data).ok();
        let told = LogPiece {
            t: Timestamp::from_millis(piece.at_ms),
            stream: Cow::Borrowed(name_of(piece.stream)),
            attempt: self.attempt,
            offset: piece.offset,
            data: utf8.map(Cow::Borrowed),
            data_b64: utf8
                .is_none()
                .then(|| Cow::Owned(hostler_wire::api::base64::encode(data))),
        };
        if self.form == Form::Lines {
            return line(text, &told);
        }
        let id = match self.selection.attempt {
            Some(_) => format!("id: {behind}\n"),
            None => format!("id: {}.{behind}\n", self.attempt),
        };
        text.extend_from_slice(id.as_bytes());
        event(text, &told);
    }

    /// The last word of an event stream, and of followed lines.
    async fn end(&self, known: &Known, missing: u64) -> Result<(), Gone> {
        let view = known.view(false);
        let end = LogEnd {
            id: view.id,
            state: view.state,
            reason: view.reason,
            attempt: self.attempt,
            exit_code: view.exit_code,
            signal: view.signal,
            truncated_bytes: self.cut,
            incomplete_bytes: missing,
        };
        let mut text = BytesMut::new();
        if self.form == Form::Events {
            text.extend_from_slice(b"event: end\n");
            event(&mut text, &end);
        } else {
            #[derive(Serialize)]
            struct Last {
                end: LogEnd,
            }
            line(&mut text, &Last { end });
        }
        self.send(text.freeze()).await
    }

    async fn send(&self, bytes: Bytes) -> Result<(), Gone> {
        self.to.send(Ok(bytes)).await.map_err(|_closed| Gone)
    }

    /// Ends the answer so that it cannot be taken for whole.
    async fn break_off(&self, why: &'static str) -> Result<(), Gone> {
        drop(self.to.send(Err(Cut(why))).await);
        Err(Gone)
    }
}

fn name_of(stream: Stream) -> &'static str {
    match stream {
        Stream::Stdout => "stdout",
        Stream::Stderr => "stderr",
    }
}

type Ended = (hostler_wire::JobState, hostler_wire::Reason);

fn line<T: Serialize>(text: &mut BytesMut, value: &T) {
    serde_json::to_writer(text.writer(), value).expect("a piece is made of strings and numbers");
    text.put_u8(b'\n');
}

fn event<T: Serialize>(text: &mut BytesMut, value: &T) {
    text.extend_from_slice(b"data: ");
    line(text, value);
    text.put_u8(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(name: &str, value: &str) -> request::Parts {
        let request = hyper::Request::builder()
            .uri("/jobs/1/logs")
            .header(name, value);
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn a_range_is_one_part_or_everything() {
        let part = |text, total| range(&ask("range", text), total).map_err(|refusal| refusal.code);
        assert_eq!(part("bytes=0-0", 10), Ok(Wanted::Part { from: 0, to: 1 }));
        assert_eq!(part("bytes=4-", 10), Ok(Wanted::Part { from: 4, to: 10 }));
        assert_eq!(part("bytes=-3", 10), Ok(Wanted::Part { from: 7, to: 10 }));
        assert_eq!(part("bytes=-99", 10), Ok(Wanted::Part { from: 0, to: 10 }));
        assert_eq!(part("bytes=2-99", 10), Ok(Wanted::Part { from: 2, to: 10 }));
        for all in [
            "bytes=1-2,4-5",
            "lines=1-2",
            "bytes=5-2",
            "bytes=x-",
            "bytes=",
        ] {
            assert_eq!(part(all, 10), Ok(Wanted::All), "{all}");
        }
        for outside in ["bytes=10-", "bytes=10-11", "bytes=-0"] {
            assert_eq!(
                part(outside, 10),
                Err(Code::RangeNotSatisfiable),
                "{outside}"
            );
        }
        assert_eq!(part("bytes=0-", 0), Err(Code::RangeNotSatisfiable));
    }

    #[test]
    fn the_form_follows_what_is_accepted() {
        let form = |text| form(&ask("accept", text)).map_err(|refusal| refusal.code);
        assert_eq!(form("*/*"), Ok(Form::Text));
        assert_eq!(form("text/html, text/plain;q=0.5"), Ok(Form::Text));
        assert_eq!(form("application/x-ndjson"), Ok(Form::Lines));
        assert_eq!(form("text/event-stream"), Ok(Form::Events));
        assert_eq!(form("image/png"), Err(Code::NotAcceptable));
    }
}
