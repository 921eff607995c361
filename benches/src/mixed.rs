//! A realistic day, in short: small jobs and large ones, handlers and commands, failures that stay and failures that
//! are mended by a retry, slow jobs, delayed ones, cancels, priorities; single requests and arrays.
//!
//! How each job must end is known beforehand, so the check is exact. The same seed makes the same day.

use std::cell::RefCell;
use std::collections::VecDeque;

use anyhow::Result;
use serde_json::{Value, json};

use crate::check::{Book, Expect};
use crate::environment::Environment;
use crate::load::{accepted, await_ends, cpu_us, per_second};
use crate::report::{Curve, Figure, Report, us};
use crate::system::{Setup, Source, System};
use crate::throughput::with_setup;
use crate::watch::{Tell, watched};
use crate::{clock::Moment, http};

/// Run a realistic day: sizes, failures, retries, cancels, slow jobs, priorities
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Plan {
    /// How many jobs
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    pub jobs: u64,
    /// Connections that submit
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=4_000))]
    pub clients: u32,
    /// The same seed makes the same jobs
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    #[command(flatten)]
    pub setup: Setup,
}

/// One request's jobs.
#[derive(Clone, Debug)]
struct Part {
    job: Value,
    /// None: a single object.
    array: Option<u64>,
    expect: Expect,
    then_cancel: bool,
}

/// What a request was.
enum Mark {
    Submission(Part),
    Cancel,
}

const fn expect(states: &'static [&'static str], attempts: u64) -> Expect {
    Expect { states, attempts }
}

/// Measures it.
pub fn measure(source: &Source, plan: &Plan, tell: Tell<'_>) -> Result<Report> {
    let system = source.system(&plan.setup)?;
    let environment = Environment::of(&system)?;
    let mut book = Book::default();
    let before = system.server_cpu();
    let begun = Moment::now();
    let ((submit, elapsed), samples) = watched(&system, "jobs ended", plan.jobs, tell, || {
        let submit = submit(&system, plan, &mut book)?;
        await_ends(&system, &book)?;
        Ok((submit, begun.elapsed()))
    })?;
    let cpu = system.server_cpu().zip(before);
    let checked = book.check(&system)?;
    let mut figures = vec![
        Figure::one(
            "submit → end, all kinds",
            "jobs/s",
            per_second(plan.jobs, elapsed),
        ),
        Figure::one("request → answer, p50", "µs", us(&submit.latency_us, 0.5)),
        Figure::one("request → answer, p99", "µs", us(&submit.latency_us, 0.99)),
    ];
    figures.extend(cpu.map(|(after, before)| {
        let cpu = cpu_us(after.saturating_sub(before), plan.jobs);
        Figure::one("server CPU a job", "µs", cpu)
    }));
    let peak = system.peak_memory_mib();
    figures.extend(peak.map(|[server, _]| Figure::one("server, most memory", "MiB", server)));
    let mut settings = json!({"jobs": plan.jobs, "clients": plan.clients, "seed": plan.seed});
    with_setup(&mut settings, &plan.setup);
    Ok(Report {
        bench: "mixed",
        environment,
        settings,
        figures,
        curves: vec![Curve::of("request → answer", &submit.latency_us)],
        samples,
        checked,
    })
}

fn submit(system: &System, plan: &Plan, book: &mut Book) -> Result<http::Done> {
    let mut day = Day {
        random: plan.seed,
        left: plan.jobs,
    };
    let cancels = RefCell::new(VecDeque::new());
    let next = || {
        if let Some(id) = cancels.borrow_mut().pop_front() {
            let bytes = system.request("DELETE", &format!("/jobs/{id}"), b"");
            return Some((bytes, Mark::Cancel));
        }
        let part = day.next()?;
        let body = match part.array {
            None => part.job.to_string(),
            Some(count) => {
                let one = part.job.to_string();
                let jobs: Vec<&str> = (0..count).map(|_| one.as_str()).collect();
                format!("[{}]", jobs.join(","))
            }
        };
        let bytes = system.request("POST", "/jobs", body.as_bytes());
        Some((bytes, Mark::Submission(part)))
    };
    http::run_marked(system.to(), plan.clients as usize, next, |mark, answer| {
        if let Mark::Submission(part) = mark {
            let (first, count) = accepted(answer, part.array.is_none())?;
            book.add(first, count, part.expect);
            if part.then_cancel {
                cancels.borrow_mut().extend(first..first + count);
            }
        }
        Ok(())
    })
}

/// The jobs of a day, one request after the other.
struct Day {
    random: u64,
    left: u64,
}

impl Iterator for Day {
    type Item = Part;

    fn next(&mut self) -> Option<Part> {
        if self.left == 0 {
            return None;
        }
        let mut part = self.part();
        part.job["priority"] = json!(i64::try_from(self.below(21)).unwrap_or(0) - 10);
        // A third of the requests carry many jobs.
        if self.below(3) == 0 {
            let most = if part.then_cancel { 3 } else { 60 };
            part.array = Some((1 + self.below(most)).min(self.left));
        }
        self.left -= part.array.unwrap_or(1);
        Some(part)
    }
}

impl Day {
    fn part(&mut self) -> Part {
        let kind = self.below(100);
        let (job, expect) = match kind {
            0..45 => {
                let payload = self.payload();
                (
                    json!({"handler": "noop", "payload": payload}),
                    Expect::SUCCESS,
                )
            }
            45..60 => {
                let payload = self.payload();
                (
                    json!({"handler": "echo", "payload": payload}),
                    Expect::SUCCESS,
                )
            }
            60..75 => (json!({"command": ["/bin/true"]}), Expect::SUCCESS),
            75..79 => {
                let bytes = (1 << self.below(16)).to_string();
                let command = ["head", "-c", &bytes, "/dev/zero"];
                (json!({"command": command}), Expect::SUCCESS)
            }
            79..83 => (json!({"command": "exit 3"}), expect(&["failed"], 1)),
            83..87 => (
                json!({"handler": "fail", "payload": {"fatal": true},
                    "retry": {"max_attempts": 5, "backoff_ms": 50}}),
                expect(&["failed"], 1),
            ),
            87..93 => (
                json!({"handler": "fail", "payload": {"times": 2},
                    "retry": {"max_attempts": 4, "backoff_ms": 50}}),
                expect(&["succeeded"], 3),
            ),
            93..95 => (
                json!({"handler": "fail", "retry": {"max_attempts": 3, "backoff_ms": 50}}),
                expect(&["failed"], 3),
            ),
            95..97 => {
                let delay = 100 + self.below(400);
                (
                    json!({"handler": "noop", "delay_ms": delay}),
                    Expect::SUCCESS,
                )
            }
            97 => {
                let payload = json!({"ms": 20 + self.below(200)});
                (
                    json!({"handler": "sleep", "payload": payload}),
                    Expect::SUCCESS,
                )
            }
            _ => (
                json!({"handler": "sleep", "payload": {"ms": 60_000}}),
                expect(&["cancelled"], 0),
            ),
        };
        Part {
            job,
            array: None,
            expect,
            then_cancel: kind >= 98,
        }
    }

    /// From 16 bytes to 4 KiB, small ones as often as large ones.
    fn payload(&mut self) -> String {
        let bytes = 16usize << self.below(9);
        "x".repeat(bytes)
    }

    /// Evenly below `n`: splitmix64.
    fn below(&mut self, n: u64) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.random;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (x ^ (x >> 31)) % n
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn day(random: u64) -> Vec<Part> {
        Day {
            random,
            left: 5_000,
        }
        .collect()
    }

    #[test]
    fn a_day_has_as_many_jobs_as_were_asked_for_and_every_kind_of_end() {
        let parts = day(1);
        let jobs: u64 = parts.iter().map(|part| part.array.unwrap_or(1)).sum();
        assert_eq!(jobs, 5_000);
        for wanted in [
            Expect::SUCCESS,
            expect(&["failed"], 1),
            expect(&["succeeded"], 3),
            expect(&["failed"], 3),
            expect(&["cancelled"], 0),
        ] {
            assert!(parts.iter().any(|part| part.expect == wanted), "{wanted:?}");
        }
    }

    #[test]
    fn a_seed_makes_the_same_day() {
        let text = |parts: Vec<Part>| format!("{parts:?}");
        assert_eq!(text(day(7)), text(day(7)));
        assert_ne!(text(day(7)), text(day(8)));
    }
}
