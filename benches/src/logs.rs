//! What output costs: how fast it flows from a job to disk and to a follower, how late a line is with a follower, what the
//! server takes for it, and what others feel of a job that writes at full speed.
//!
//! With and without are measured in the same run, on the same system, in turns.

mod starts;

use std::cell::RefCell;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use hdrhistogram::Histogram;
use serde_json::{Value, json};

use crate::check::{Book, Checked, Expect};
use crate::clock::{Moment, wall_ns};
use crate::environment::Environment;
use crate::report::{Figure, Report, us};
use crate::system::{Setup, Source, System};
use crate::watch::Tell;
use crate::{cat, load};

/// Measure output: its speed, its delay, what others feel of a job that writes at full speed
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Plan {
    /// Bytes a job writes, where how fast is the question
    #[arg(long, value_name = "BYTES", default_value_t = 250_000_000, value_parser = clap::value_parser!(u64).range(1..=10_000_000_000))]
    pub bytes: u64,
    /// Small jobs with, and as many without, a flood beside them
    #[arg(long, value_name = "N", default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub jobs: u32,
    /// Lines whose way to a follower is timed
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub lines: u32,
    /// Runs whose median is told
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub runs: u32,
}

/// How long a chatty job has until it is up to speed.
const RUN_UP: Duration = Duration::from_secs(1);
/// Longest silence of a follower's connection.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// All of it, on a worker with two slots: one is for the chatty job.
pub fn measure(source: &Source, plan: &Plan, tell: Tell<'_>) -> Result<Report> {
    let mut to_disk = Figure::new("job → disk", "MB/s", "cat through a socket");
    let mut to_follower = Figure::new("job → disk → follower", "MB/s", "cat through a socket");
    let mut late = Figure::new("print → follower, idle, p50", "µs", "");
    let mut late_tail = Figure::new("print → follower, idle, p99", "µs", "");
    let mut starts = starts::figures();
    let mut flood = Figure::new("the flood meanwhile", "MB/s", "");
    let mut server = Figure::new("server, most memory", "MiB", "before");
    let mut worker = Figure::new("worker, most memory", "MiB", "before");
    let mut last = None;
    let steps = u64::from(plan.runs) * 4;
    let mut step = 0;
    let mut next_step = || {
        step += 1;
        tell("steps", step, steps);
    };
    for _ in 0..plan.runs {
        let traced = Jobs::on(source.system(&Setup::TRACED)?);
        flood
            .values
            .push(starts::measure(&traced, plan.jobs, &mut starts)?);
        let checked = traced.checked()?;
        drop(traced);
        next_step();

        let system = Jobs::on(source.system(&Setup::PLAIN)?);
        let environment = Environment::of(&system.system)?;
        let warm = system.submit(&json!({"command": ["true"]}), Expect::SUCCESS)?;
        system.get(&format!("/jobs/{warm}?wait=60s&live=0"))?; // what is slow once only
        let before = system.system.peak_memory_mib();

        let lines = lines_to_a_follower(&system, plan.lines)?;
        next_step();
        late.values.push(us(&lines, 0.5));
        late_tail.values.push(us(&lines, 0.99));

        let reference = mb_per_second(plan.bytes, cat::through_a_socket(plan.bytes)?);
        to_disk.values.push(write(&system, plan.bytes, false)?);
        next_step();
        to_follower.values.push(write(&system, plan.bytes, true)?);
        next_step();
        to_disk.references.push(reference);
        to_follower.references.push(reference);
        if let (Some(before), Some(after)) = (before, system.system.peak_memory_mib()) {
            for (figure, (before, after)) in [&mut server, &mut worker]
                .into_iter()
                .zip(before.into_iter().zip(after))
            {
                figure.values.push(after);
                figure.references.push(before);
            }
        }
        last = Some((environment, checked.and(system.checked()?)));
    }
    let (environment, checked) = last.context("there is one run at least")?;
    let mut figures = starts;
    figures.extend([flood, to_disk, to_follower, late, late_tail, server, worker]);
    figures.retain(|figure| !figure.values.is_empty());
    Ok(Report {
        bench: "logs",
        environment,
        settings: json!({
            "bytes": plan.bytes,
            "jobs": plan.jobs,
            "lines": plan.lines,
            "runs": plan.runs,
        }),
        figures,
        curves: Vec::new(),
        samples: Vec::new(),
        checked,
    })
}

/// A system, and the jobs it was given.
struct Jobs {
    system: System,
    book: RefCell<Book>,
}

impl Jobs {
    fn on(system: System) -> Self {
        Self {
            system,
            book: RefCell::default(),
        }
    }

    fn submit(&self, job: &Value, expect: Expect) -> Result<u64> {
        let answer = self
            .system
            .once("POST", "/jobs", job.to_string().as_bytes())?;
        let answer: Value = serde_json::from_slice(&answer)?;
        let id = answer["id"].as_u64();
        let id = id.with_context(|| format!("an answer without id: {answer}"))?;
        self.book.borrow_mut().add(id, 1, expect);
        Ok(id)
    }

    fn get(&self, path: &str) -> Result<Vec<u8>> {
        self.system.once("GET", path, b"")
    }

    fn checked(&self) -> Result<Checked> {
        let book = self.book.borrow();
        load::await_ends(&self.system, &book)?;
        book.check(&self.system)
    }
}

/// What the chatty job, which never ends by itself, does.
const CANCELLED: Expect = Expect {
    states: &["cancelled"],
    attempts: 1,
};

/// A job that prints the time now and then, and somebody who reads it.
fn lines_to_a_follower(jobs: &Jobs, lines: u32) -> Result<Histogram<u64>> {
    let line =
        format!("i=0; while [ $i -lt {lines} ]; do date +%s%N; sleep 0.02; i=$((i+1)); done");
    let id = jobs.submit(&json!({"command": line}), Expect::SUCCESS)?;
    let mut times = Histogram::new(3)?;
    let mut digits = String::new();
    follow(jobs, id, |piece| {
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
fn write(jobs: &Jobs, bytes: u64, followed: bool) -> Result<f64> {
    let command = json!(["head", "-c", bytes.to_string(), "/dev/zero"]);
    let begun = Moment::now();
    let job = json!({"command": command, "logs": {"overflow": "block"}});
    let id = jobs.submit(&job, Expect::SUCCESS)?;
    if followed {
        let mut zeros = 0;
        follow(jobs, id, |piece| {
            zeros += piece.iter().filter(|byte| **byte == 0).count() as u64;
            Ok(())
        })?;
        ensure!(zeros == bytes, "{zeros} bytes of {bytes} came");
    } else {
        jobs.get(&format!("/jobs/{id}?wait=300s&live=0"))?;
        // Answers once all of it is there.
        let part = jobs.get(&format!("/jobs/{id}/logs?stream=stdout&tail=0"))?;
        ensure!(part.is_empty(), "the end of zeros is no line");
    }
    Ok(mb_per_second(bytes, begun.elapsed()))
}

/// Reads a job's output to its end, as it comes on the connection.
fn follow(jobs: &Jobs, id: u64, mut on_piece: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
    let mut stream = TcpStream::connect(jobs.system.plain()?)?;
    stream.set_read_timeout(Some(SILENCE_MAX))?;
    let path = format!("/jobs/{id}/logs?stream=stdout&follow=1");
    stream.write_all(&jobs.system.request("GET", &path, b""))?;
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
fn written(jobs: &Jobs, id: u64) -> Result<u64> {
    let job: Value = serde_json::from_slice(&jobs.get(&format!("/jobs/{id}"))?)?;
    job["live"]["stdout_bytes"]
        .as_u64()
        .with_context(|| format!("nobody knows what it has written: {job}"))
}

fn mb_per_second(bytes: u64, elapsed: Duration) -> f64 {
    bytes as f64 / 1e6 / elapsed.as_secs_f64()
}
