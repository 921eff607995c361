//! Jobs through HTTP in batches, on several connections; what was accepted is written down for the checker.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::check::{Book, Expect};
use crate::clock::Moment;
use crate::http;
use crate::report::{Figure, Sample, us};
use crate::system::{END_PATIENCE, System};
use crate::watch::{Tell, watched};

/// What to submit.
#[derive(Clone, Debug)]
pub struct Load {
    /// How many jobs.
    pub jobs: u64,
    /// Jobs a request; 1 = single objects.
    pub batch: u64,
    /// Connections in use.
    pub connections: usize,
    /// Kinds of job as JSON; a request has one of them, in turn.
    pub kinds: Vec<String>,
}

/// One run of a load: from the first request to the last job's end.
#[derive(Debug)]
pub struct Done {
    /// How long it took.
    pub elapsed: Duration,
    /// The submission's part of it.
    pub submit: http::Done,
    /// CPU time of the own server.
    pub cpu: Option<Duration>,
    /// What was done when.
    pub samples: Vec<Sample>,
}

impl Load {
    /// No-op jobs with a payload of so many bytes, its quotes included.
    pub fn noop(jobs: u64, batch: u64, connections: usize, payload: usize) -> Self {
        let payload = "x".repeat(payload.saturating_sub(2));
        Self {
            jobs,
            batch,
            connections,
            kinds: vec![format!(
                "{{\"handler\":\"noop\",\"payload\":\"{payload}\"}}"
            )],
        }
    }

    /// Runs it on a system and waits for its end.
    pub fn run(&self, system: &System, book: &mut Book, tell: Tell<'_>) -> Result<Done> {
        let before = system.server_cpu();
        let begun = Moment::now();
        let ((submit, elapsed), samples) = watched(system, "jobs ended", self.jobs, tell, || {
            let submit = self.submit(system, book, Expect::SUCCESS)?;
            await_ends(system, book)?;
            Ok((submit, begun.elapsed()))
        })?;
        let cpu = system.server_cpu().zip(before);
        Ok(Done {
            elapsed,
            submit,
            cpu: cpu.map(|(after, before)| after.saturating_sub(before)),
            samples,
        })
    }

    /// Submits them all; an error if an answer does not add up.
    pub fn submit(&self, system: &System, book: &mut Book, expect: Expect) -> Result<http::Done> {
        ensure!(
            self.jobs > 0 && self.batch > 0 && self.connections > 0 && !self.kinds.is_empty(),
            "nothing to do"
        );
        let request = |kind: &str, count: u64| {
            let body = if self.batch == 1 {
                kind.to_owned()
            } else {
                let jobs: Vec<&str> = (0..count).map(|_| kind).collect();
                format!("[{}]", jobs.join(","))
            };
            system.request("POST", "/jobs", body.as_bytes())
        };
        let whole: Vec<Vec<u8>> = self
            .kinds
            .iter()
            .map(|kind| request(kind, self.batch))
            .collect();
        let mut left = self.jobs;
        let mut turn = 0;
        let next = || {
            let count = left.min(self.batch);
            left -= count;
            let kind = turn % whole.len();
            turn += 1;
            match count {
                0 => None,
                count if count == self.batch => Some(whole[kind].clone()),
                count => Some(request(&self.kinds[kind], count)),
            }
        };
        let before = book.jobs();
        let done = http::run(system.to(), self.connections, next, |answer| {
            let (first, count) = accepted(answer, self.batch == 1)?;
            book.add(first, count, expect);
            Ok(())
        })?;
        let accepted = book.jobs() - before;
        ensure!(
            accepted == self.jobs,
            "{accepted} jobs were accepted, not {}",
            self.jobs
        );
        Ok(done)
    }
}

impl Done {
    /// Adds this run to the figures of a load, made by [`figures`].
    pub fn add_to(&self, jobs: u64, figures: &mut [Figure; 4]) {
        let [rate, cpu, median, tail] = figures;
        rate.values.push(per_second(jobs, self.elapsed));
        if let Some(time) = self.cpu {
            cpu.values.push(cpu_us(time, jobs));
        }
        median.values.push(us(&self.submit.latency_us, 0.5));
        tail.values.push(us(&self.submit.latency_us, 0.99));
    }
}

/// The figures of a load.
pub fn figures(name: &'static str) -> [Figure; 4] {
    [
        Figure::new(name, "jobs/s", ""),
        Figure::new("server CPU a job", "µs", ""),
        Figure::new("request → accepted, p50", "µs", ""),
        Figure::new("request → accepted, p99", "µs", ""),
    ]
}

/// Waits until every job of the book has ended. Of a server that others use as well, only ours can be asked for.
pub fn await_ends(system: &System, book: &Book) -> Result<()> {
    if system.is_own() {
        await_last(system, book)?;
        return system.all_ended();
    }
    let mut lasts: Vec<u64> = book.lasts().collect();
    lasts.sort_unstable();
    let mut lasts = lasts.into_iter();
    let mut waiting = None::<u64>;
    let again = std::cell::Cell::new(false);
    let next = || {
        if !again.replace(false) {
            waiting = lasts.next();
        }
        let path = format!("/jobs/{}?wait=50s&live=0", waiting?);
        Some(system.request("GET", &path, b""))
    };
    http::run(system.to(), 1, next, |body| {
        let job: Value = serde_json::from_slice(body)?;
        again.set(!has_ended(&job));
        Ok(())
    })?;
    Ok(())
}

/// Waits for the job that came last, in few requests: a server that is asked again and again how far it is has a tenth of a
/// processor less for the work.
fn await_last(system: &System, book: &Book) -> Result<()> {
    let Some(last) = book.lasts().max() else {
        return Ok(());
    };
    let begun = Moment::now();
    let path = format!("/jobs/{last}?wait=50s&live=0");
    while begun.elapsed() < END_PATIENCE
        && !has_ended(&serde_json::from_slice(&system.once("GET", &path, b"")?)?)
    {}
    Ok(())
}

/// Whether a job's record says that it is over.
pub fn has_ended(job: &Value) -> bool {
    let ends = ["succeeded", "failed", "cancelled", "expired", "skipped"];
    job["state"].as_str().is_some_and(|it| ends.contains(&it))
}

/// The ids in an answer to a submission: the first, and how many.
pub fn accepted(answer: &[u8], single: bool) -> Result<(u64, u64)> {
    let field = |name: &str| -> Result<u64> {
        number(answer, name)
            .with_context(|| format!("no {name} in {}", String::from_utf8_lossy(answer)))
    };
    if single {
        return Ok((field("id")?, 1));
    }
    Ok((field("first_id")?, field("count")?))
}

/// The number of a field, without reading the rest: the load test must not be the slow part.
fn number(json: &[u8], name: &str) -> Option<u64> {
    let text = std::str::from_utf8(json).ok()?;
    let at = text.find(&format!("\"{name}\":"))? + name.len() + 3;
    let digits = text[at..].trim_start();
    let end = digits
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(digits.len());
    digits[..end].parse().ok()
}

/// Jobs a second.
pub fn per_second(jobs: u64, elapsed: Duration) -> f64 {
    jobs as f64 / elapsed.as_secs_f64()
}

/// Microseconds of CPU a job.
pub fn cpu_us(cpu: Duration, jobs: u64) -> f64 {
    cpu.as_secs_f64() * 1e6 / jobs.max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_read_from_answers() {
        assert_eq!(
            accepted(br#"{"first_id":7,"count":100}"#, false).unwrap(),
            (7, 100)
        );
        assert_eq!(
            accepted(br#"{"id": 12,"state":"queued"}"#, true).unwrap(),
            (12, 1)
        );
        assert!(accepted(b"{}", true).is_err());
    }
}
