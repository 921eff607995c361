//! What output costs: how fast it flows from a job to disk and to a follower, how late a line is with a follower, what the
//! server takes for it, and what others feel of a job that writes at full speed.
//!
//! With and without are measured in the same run, on the same system, one after the other.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use hdrhistogram::Histogram;
use serde_json::{Value, json};

use crate::clock::{Moment, eventually, wall_ns};
use crate::report::Figure;
use crate::system::System;
use crate::{cat, http};

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Bytes a job writes, where how fast is the question.
    pub bytes: u64,
    /// Small jobs with, and as many without, a chatty one beside them.
    pub jobs: u32,
    /// Lines whose way to a follower is timed.
    pub lines: u32,
    /// Runs whose median is told.
    pub runs: u32,
}

/// One for the chatty job.
const SLOTS: u32 = 2;
/// How long a chatty job has until it is up to speed.
const RUN_UP: Duration = Duration::from_secs(1);
/// Longest silence of a follower's connection.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// Who else is there while small jobs come and go.
const COMPANY: [(&str, Option<&str>); 3] = [
    ("alone", None),
    // The processors are as busy with it, but nothing is printed.
    ("beside work", Some("cat /dev/zero | cat > /dev/null")),
    ("beside a flood", Some("exec cat /dev/zero")),
];
/// The figures of a start: of which step, at which quantile.
const STARTS: [(&str, Step, f64); 8] = [
    ("submit → accepted, p50", Step::Accepted, 0.5),
    ("submit → accepted, p99", Step::Accepted, 0.99),
    ("accepted → assigned, p50", Step::Assigned, 0.5),
    ("accepted → assigned, p99", Step::Assigned, 0.99),
    ("assigned → start, p50", Step::Started, 0.5),
    ("assigned → start, p99", Step::Started, 0.99),
    ("submit → start, p50", Step::All, 0.5),
    ("submit → start, p99", Step::All, 0.99),
];
/// Small jobs with each company in its turn, so many times a run: what else the machine does meets all of them.
const ROUNDS: u32 = 6;

#[derive(Clone, Copy)]
enum Step {
    Accepted,
    Assigned,
    Started,
    All,
}

/// All of them.
pub fn figures(binary: &Path, sizes: &Sizes) -> Result<Vec<Figure>> {
    let mut to_disk = Figure::new("job → disk", "MB/s", "cat through a socket");
    let mut to_follower = Figure::new("job → disk → follower", "MB/s", "cat through a socket");
    let mut late = Figure::new("print → follower, idle, p50", "µs", "");
    let mut late_tail = Figure::new("print → follower, idle, p99", "µs", "");
    let mut flood = Figure::new("the flood meanwhile", "MB/s", "");
    let mut server = Figure::new("server, most memory", "MiB", "before");
    let mut worker = Figure::new("worker, most memory", "MiB", "before");
    let mut starts: Vec<Figure> = Vec::new();
    for name in STARTS.map(|(name, ..)| name) {
        starts.push(Figure::new(name, "µs", ""));
        starts.push(Figure::new("… beside work", "µs", "alone"));
        starts.push(Figure::new("… beside a flood", "µs", "alone"));
    }
    for _ in 0..sizes.runs {
        flood
            .values
            .push(starts_of(binary, sizes.jobs, &mut starts)?);

        let system = System::start(binary, SLOTS)?;
        small_jobs(&system, 5)?; // what is slow once only
        let before = system.peak_memory_mib()?;
        let lines = lines_to_a_follower(&system, sizes.lines)?;
        late.values.push(us(&lines, 0.5));
        late_tail.values.push(us(&lines, 0.99));

        let reference = mb_per_second(sizes.bytes, cat::through_a_socket(sizes.bytes)?);
        to_disk.values.push(write(&system, sizes.bytes, false)?);
        to_follower.values.push(write(&system, sizes.bytes, true)?);
        to_disk.references.push(reference);
        to_follower.references.push(reference);
        let after = system.peak_memory_mib()?;
        for (figure, (before, after)) in [&mut server, &mut worker]
            .into_iter()
            .zip(before.into_iter().zip(after))
        {
            figure.values.push(after);
            figure.references.push(before);
        }
    }
    starts.extend([flood, to_disk, to_follower, late, late_tail, server, worker]);
    Ok(starts)
}

/// One run of small jobs with each company; how fast the flood's output came.
fn starts_of(binary: &Path, jobs: u32, figures: &mut [Figure]) -> Result<f64> {
    let system = System::start_traced(binary, SLOTS)?;
    small_jobs(&system, 5)?; // what is slow once only
    let mut all: [Vec<Begun>; 3] = Default::default();
    let mut speeds = Vec::new();
    for _ in 0..ROUNDS {
        for ((_, line), begun) in COMPANY.into_iter().zip(&mut all) {
            let count = jobs.div_ceil(ROUNDS);
            match line {
                None => begun.extend(small_jobs(&system, count)?),
                Some(line) => {
                    let (these, speed) = beside(&system, line, count)?;
                    begun.extend(these);
                    speeds.push(speed);
                }
            }
        }
    }
    let steps = system.steps()?;
    let mut references = [0.0; STARTS.len()];
    for (company, begun) in all.iter().enumerate() {
        for (n, (_, step, quantile)) in STARTS.into_iter().enumerate() {
            let mut times = Histogram::<u64>::new(3)?;
            for job in begun {
                times.record(job.took(step, &steps)?)?;
            }
            let value = us(&times, quantile);
            let figure = &mut figures[3 * n + company];
            figure.values.push(value);
            if company == 0 {
                references[n] = value;
            } else {
                figure.references.push(references[n]);
            }
        }
    }
    speeds
        .into_iter()
        .reduce(f64::max)
        .context("no flood was measured")
}

/// One small job's moments: times of day, in µs.
struct Begun {
    id: u64,
    submitted: u64,
    accepted: u64,
    started: u64,
}

impl Begun {
    fn took(&self, step: Step, steps: &HashMap<(&'static str, u64), u64>) -> Result<u64> {
        let assigned = || {
            let at = steps.get(&("assigned", self.id)).copied();
            at.with_context(|| format!("no trace of the assignment of job {}", self.id))
        };
        let (from, to) = match step {
            Step::Accepted => (self.submitted, self.accepted),
            Step::Assigned => (self.accepted, assigned()?),
            Step::Started => (assigned()?, self.started),
            Step::All => (self.submitted, self.started),
        };
        // An answer may be later than what follows from the same commit; and midnight may have passed.
        Ok(to.saturating_sub(from))
    }
}

/// The time of day, in µs, of a wall clock's ns.
fn time_of_day_us(wall_ns: u64) -> u64 {
    wall_ns / 1_000 % 86_400_000_000
}

/// One after another: from the request to the first thing the job does, which is to look at the clock.
fn small_jobs(system: &System, count: u32) -> Result<Vec<Begun>> {
    let mut all = Vec::new();
    for _ in 0..count {
        let submitted = time_of_day_us(wall_ns());
        let id = submit(system, &json!({"command": ["date", "+%s%N"]}))?;
        let accepted = time_of_day_us(wall_ns());
        let job = once(system, "GET", &format!("/jobs/{id}?wait=60s&live=0"))?;
        let job: Value = serde_json::from_slice(&job)?;
        ensure!(job["state"] == "succeeded", "it did not succeed: {job}");
        let said = once(system, "GET", &format!("/jobs/{id}/logs?stream=stdout"))?;
        let started = std::str::from_utf8(&said)?.trim().parse()?;
        all.push(Begun {
            id,
            submitted,
            accepted,
            started: time_of_day_us(started),
        });
    }
    Ok(all)
}

/// Small jobs beside one that runs all the time, and how fast that one's output came.
fn beside(system: &System, line: &str, count: u32) -> Result<(Vec<Begun>, f64)> {
    let busy = submit(system, &json!({"command": line}))?;
    eventually(RUN_UP, RUN_UP, || false);
    let begun = Moment::now();
    let earlier = written(system, busy)?;
    let jobs = small_jobs(system, count)?;
    let bytes = written(system, busy)?.saturating_sub(earlier);
    let speed = mb_per_second(bytes, begun.elapsed());
    once(system, "DELETE", &format!("/jobs/{busy}"))?;
    system.all_ended()?;
    Ok((jobs, speed))
}

/// A job that prints the time now and then, and somebody who reads it.
fn lines_to_a_follower(system: &System, lines: u32) -> Result<Histogram<u64>> {
    let line =
        format!("i=0; while [ $i -lt {lines} ]; do date +%s%N; sleep 0.02; i=$((i+1)); done");
    let id = submit(system, &json!({"command": line}))?;
    let mut times = Histogram::new(3)?;
    let mut digits = String::new();
    follow(system, id, |piece| {
        let now = wall_ns();
        for byte in piece {
            if byte.is_ascii_digit() {
                digits.push(char::from(*byte));
            } else {
                // Lengths of chunks are shorter than a time.
                if digits.len() >= 19 {
                    let printed: u64 = digits.parse()?;
                    times.record(now.saturating_sub(printed) / 1_000)?;
                }
                digits.clear();
            }
        }
        Ok(())
    })?;
    ensure!(
        times.len() == u64::from(lines),
        "{} lines of {lines} came",
        times.len()
    );
    Ok(times)
}

/// A job that writes so much, none of it cut: until all of it is stored, or has come to a follower.
fn write(system: &System, bytes: u64, followed: bool) -> Result<f64> {
    let command = json!(["head", "-c", bytes.to_string(), "/dev/zero"]);
    let begun = Moment::now();
    let id = submit(
        system,
        &json!({"command": command, "logs": {"overflow": "block"}}),
    )?;
    if followed {
        let mut zeros = 0;
        follow(system, id, |piece| {
            zeros += piece.iter().filter(|byte| **byte == 0).count() as u64;
            Ok(())
        })?;
        ensure!(zeros == bytes, "{zeros} bytes of {bytes} came");
    } else {
        once(system, "GET", &format!("/jobs/{id}?wait=300s&live=0"))?;
        // Answers once all of it is there.
        let part = once(
            system,
            "GET",
            &format!("/jobs/{id}/logs?stream=stdout&tail=0"),
        )?;
        ensure!(part.is_empty(), "the end of zeros is no line");
    }
    Ok(mb_per_second(bytes, begun.elapsed()))
}

/// Reads a job's output to its end, as it comes on the connection.
fn follow(system: &System, id: u64, mut on_piece: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
    let mut stream = TcpStream::connect(system.http)?;
    stream.set_read_timeout(Some(SILENCE_MAX))?;
    let path = format!("/jobs/{id}/logs?stream=stdout&follow=1");
    stream.write_all(&system.request("GET", &path, b""))?;
    let mut buffer = vec![0; 256 << 10];
    let mut last = Vec::new();
    loop {
        let count = stream
            .read(&mut buffer)
            .context("the follower's connection")?;
        ensure!(count > 0, "the connection was closed before the end");
        let piece = &buffer[..count];
        on_piece(piece)?;
        last.extend_from_slice(&piece[count.saturating_sub(8)..]);
        last.drain(..last.len().saturating_sub(7));
        if last == b"\r\n0\r\n\r\n" {
            return Ok(());
        }
    }
}

/// Bytes a running job has written.
fn written(system: &System, id: u64) -> Result<u64> {
    let job: Value = serde_json::from_slice(&once(system, "GET", &format!("/jobs/{id}"))?)?;
    job["live"]["stdout_bytes"]
        .as_u64()
        .with_context(|| format!("nobody knows what it has written: {job}"))
}

fn submit(system: &System, job: &Value) -> Result<u64> {
    let answer = http::once(
        system.http,
        system.request("POST", "/jobs", job.to_string().as_bytes()),
    )?;
    let answer: Value = serde_json::from_slice(&answer)?;
    answer["id"]
        .as_u64()
        .with_context(|| format!("an answer without id: {answer}"))
}

fn once(system: &System, method: &str, path: &str) -> Result<Vec<u8>> {
    http::once(system.http, system.request(method, path, b""))
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn us(times: &Histogram<u64>, quantile: f64) -> f64 {
    times.value_at_quantile(quantile) as f64
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn mb_per_second(bytes: u64, elapsed: Duration) -> f64 {
    bytes as f64 / 1e6 / elapsed.as_secs_f64()
}
