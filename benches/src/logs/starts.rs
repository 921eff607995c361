//! What others feel of a job that writes at full speed: how late small jobs start, step by step, alone, beside a job that
//! keeps the processors as busy and prints nothing, and beside the flood.

use std::collections::HashMap;

use anyhow::{Context as _, Result, ensure};
use hdrhistogram::Histogram;
use serde_json::{Value, json};

use super::{CANCELLED, Jobs, RUN_UP, mb_per_second, written};
use crate::check::Expect;
use crate::clock::{Moment, eventually, wall_ns};
use crate::report::{Figure, us};

/// Who else is there while small jobs come and go.
const COMPANY: [Option<&str>; 3] = [
    None,
    // The processors are as busy with it, but nothing is printed.
    Some("cat /dev/zero | cat > /dev/null"),
    Some("exec cat /dev/zero"),
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
/// Small jobs with each company in its turn, so many times a run at most: what else the machine does meets all of them.
const ROUNDS_MAX: u32 = 6;
/// Microseconds of a day.
const DAY_US: u64 = 86_400_000_000;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    Accepted,
    Assigned,
    Started,
    All,
}

impl Step {
    /// The moment of assignment is in the traces of a server of our own.
    fn is_traced(self) -> bool {
        matches!(self, Self::Assigned | Self::Started)
    }
}

/// The figures, with nothing in them yet.
pub(super) fn figures() -> Vec<Figure> {
    let three = |name| {
        [
            Figure::new(name, "µs", ""),
            Figure::new("… beside work", "µs", "alone"),
            Figure::new("… beside a flood", "µs", "alone"),
        ]
    };
    STARTS.iter().flat_map(|(name, ..)| three(*name)).collect()
}

/// One run of small jobs with each company; how fast the flood's output came.
pub(super) fn measure(system: &Jobs, jobs: u32, figures: &mut [Figure]) -> Result<f64> {
    small_jobs(system, 5)?; // what is slow once only
    let mut all: [Vec<Begun>; 3] = Default::default();
    let mut speeds = Vec::new();
    let rounds = ROUNDS_MAX.min(jobs);
    for _ in 0..rounds {
        for (line, begun) in COMPANY.into_iter().zip(&mut all) {
            let count = jobs.div_ceil(rounds);
            match line {
                None => begun.extend(small_jobs(system, count)?),
                Some(line) => {
                    let (these, speed) = beside(system, line, count)?;
                    begun.extend(these);
                    speeds.push(speed);
                }
            }
        }
    }
    let assigned = system.system.assigned_us()?;
    let mut references = [0.0; STARTS.len()];
    for (company, begun) in all.iter().enumerate() {
        for (n, (_, step, quantile)) in STARTS.into_iter().enumerate() {
            if step.is_traced() && assigned.is_none() {
                continue;
            }
            let mut times = Histogram::<u64>::new(3)?;
            for job in begun {
                times.record(job.took(step, assigned.as_ref())?)?;
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
    fn took(&self, step: Step, assigned: Option<&HashMap<u64, u64>>) -> Result<u64> {
        let assigned = || {
            let at = assigned.and_then(|all| all.get(&self.id)).copied();
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
    wall_ns / 1_000 % DAY_US
}

/// One after another: from the request to the first thing the job does, which is to look at the clock.
fn small_jobs(jobs: &Jobs, count: u32) -> Result<Vec<Begun>> {
    let mut all = Vec::new();
    for _ in 0..count {
        let submitted = time_of_day_us(wall_ns());
        let id = jobs.submit(&json!({"command": ["date", "+%s%N"]}), Expect::SUCCESS)?;
        let accepted = time_of_day_us(wall_ns());
        let job = jobs.get(&format!("/jobs/{id}?wait=60s&live=0"))?;
        let job: Value = serde_json::from_slice(&job)?;
        ensure!(job["state"] == "succeeded", "it did not succeed: {job}");
        let said = jobs.get(&format!("/jobs/{id}/logs?stream=stdout"))?;
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
fn beside(jobs: &Jobs, line: &str, count: u32) -> Result<(Vec<Begun>, f64)> {
    let busy = jobs.submit(&json!({"command": line}), CANCELLED)?;
    eventually(RUN_UP, RUN_UP, || false);
    let begun = Moment::now();
    let earlier = written(jobs, busy)?;
    let small = small_jobs(jobs, count)?;
    let bytes = written(jobs, busy)?.saturating_sub(earlier);
    let speed = mb_per_second(bytes, begun.elapsed());
    jobs.system.once("DELETE", &format!("/jobs/{busy}"), b"")?;
    jobs.get(&format!("/jobs/{busy}?wait=60s&live=0"))?;
    Ok((small, speed))
}
