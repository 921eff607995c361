//! The figures: each against its reference, in the same run, alternating, so that a busy moment of the machine hits
//! both.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use hdrhistogram::Histogram;

use crate::clock::Moment;
use crate::http;
use crate::load::{Load, per_second};
use crate::report::Figure;
use crate::system::{Counts, System};
use crate::{append, responder, spawn};

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// No-op jobs in arrays.
    pub array_jobs: u64,
    /// Single requests.
    pub single_jobs: u64,
    /// Processes.
    pub process_jobs: u64,
    /// One at a time.
    pub idle_jobs: u32,
    /// Runs whose median is told.
    pub runs: u32,
}

/// Connections of the arrays.
const ARRAY_CONNECTIONS: usize = 16;
/// Connections of the single requests.
const SINGLE_CONNECTIONS: usize = 64;
/// Slots of the worker, and processes in flight of its reference.
const SLOTS: u32 = 2;

/// Durable no-op jobs through arrays of 100, until all have ended.
pub fn arrays(binary: &Path, sizes: &Sizes) -> Result<Figure> {
    let mut figure = Figure::new("no-op jobs, arrays of 100", "jobs/s", "");
    for _ in 0..sizes.runs {
        let load = Load::noop(sizes.array_jobs, 100, ARRAY_CONNECTIONS);
        measure(binary, &load, &mut figure)?;
    }
    Ok(figure)
}

/// Durable no-op jobs, each a request, beside the same requests to a server that does nothing.
pub fn singles(binary: &Path, sizes: &Sizes) -> Result<Figure> {
    let mut figure = Figure::new("no-op jobs, single requests", "jobs/s", "answered at once");
    let addr = responder::start()?;
    for _ in 0..sizes.runs {
        let load = Load::noop(sizes.single_jobs, 1, SINGLE_CONNECTIONS);
        measure(binary, &load, &mut figure)?;
        let bytes = http::request("POST", "/jobs", Some("x"), load.job.as_bytes());
        let mut left = load.jobs;
        let next = || {
            left = left.checked_sub(1)?;
            Some(bytes.clone())
        };
        let done = http::run(addr, load.connections, next, |_| Ok(()))?;
        figure
            .references
            .push(per_second(done.requests, done.elapsed));
    }
    Ok(figure)
}

/// `/bin/true` as jobs, beside a bare loop of starts.
pub fn processes(binary: &Path, sizes: &Sizes) -> Result<Figure> {
    let mut figure = Figure::new("/bin/true, 2 at a time", "jobs/s", "bare spawn loop");
    for _ in 0..sizes.runs {
        let load = Load {
            job: "{\"command\":[\"/bin/true\"]}".into(),
            ..Load::noop(sizes.process_jobs, 100, 4)
        };
        measure(binary, &load, &mut figure)?;
        let elapsed = spawn::bare_loop(usize::try_from(load.jobs)?, SLOTS as usize)?;
        figure.references.push(per_second(load.jobs, elapsed));
    }
    Ok(figure)
}

/// One job at a time on an idle system, submit to result, beside three synced appends: medians and 99th percentiles.
pub fn idle(binary: &Path, sizes: &Sizes) -> Result<[Figure; 2]> {
    let mut median = Figure::new("submit → result, idle, p50", "µs", "3 synced appends");
    let mut tail = Figure::new("submit → result, idle, p99", "µs", "3 synced appends");
    for _ in 0..sizes.runs {
        let system = System::start(binary, SLOTS)?;
        let before = system.server_cpu()?;
        let ours = one_by_one(&system, sizes.idle_jobs)?;
        let cpu = system.server_cpu()?.saturating_sub(before);
        let theirs = append::three_synced_appends(system.dir(), sizes.idle_jobs)?;
        all_there(&system, u64::from(sizes.idle_jobs))?;
        for (figure, quantile) in [(&mut median, 0.5), (&mut tail, 0.99)] {
            figure.values.push(us(&ours, quantile));
            figure.references.push(us(&theirs, quantile));
            figure.cpu_us.push(cpu_us(cpu, u64::from(sizes.idle_jobs)));
        }
    }
    Ok([median, tail])
}

/// One run: from the first request to the last job's end.
fn measure(binary: &Path, load: &Load, figure: &mut Figure) -> Result<()> {
    let system = System::start(binary, SLOTS)?;
    let before = system.server_cpu()?;
    let begun = Moment::now();
    load.submit(system.http, Some(&system.token))?;
    system.all_ended()?;
    let elapsed = begun.elapsed();
    let cpu = system.server_cpu()?.saturating_sub(before);
    all_there(&system, load.jobs)?;
    figure.values.push(per_second(load.jobs, elapsed));
    figure.cpu_us.push(cpu_us(cpu, load.jobs));
    Ok(())
}

/// The database has them all, succeeded.
fn all_there(system: &System, jobs: u64) -> Result<()> {
    let counts = system.counts()?;
    let expected = Counts {
        jobs,
        succeeded: jobs,
    };
    ensure!(
        counts == expected,
        "the database says {counts:?}, not {expected:?}"
    );
    Ok(())
}

fn one_by_one(system: &System, count: u32) -> Result<Histogram<u64>> {
    let submit = system.request("POST", "/jobs", b"{\"handler\":\"noop\"}");
    let mut times = Histogram::new(3)?;
    // Both requests of a job on one connection: the answer to the first makes the second.
    let waiting = std::cell::Cell::new(None::<u64>);
    let begun = std::cell::Cell::new(Moment::now());
    let mut left = count;
    let next = || {
        if let Some(id) = waiting.get() {
            return Some(system.request("GET", &format!("/jobs/{id}?wait=10s&live=0"), b""));
        }
        left = left.checked_sub(1)?;
        begun.set(Moment::now());
        Some(submit.clone())
    };
    http::run(system.http, 1, next, |body| {
        let job: serde_json::Value = serde_json::from_slice(body)?;
        if waiting.get().is_none() {
            waiting.set(job["id"].as_u64());
            ensure!(waiting.get().is_some(), "an answer without id: {job}");
        } else {
            ensure!(job["state"] == "succeeded", "it did not succeed: {job}");
            times.record(u64::try_from(begun.get().elapsed().as_micros())?)?;
            waiting.set(None);
        }
        Ok(())
    })?;
    Ok(times)
}

#[expect(clippy::cast_precision_loss, reason = "microseconds, for people")]
fn us(times: &Histogram<u64>, quantile: f64) -> f64 {
    times.value_at_quantile(quantile) as f64
}

fn cpu_us(cpu: Duration, jobs: u64) -> f64 {
    1e6 / per_second(jobs, cpu.max(Duration::from_nanos(1)))
}
