//! How long one job takes: alone on an idle system, and at a fixed rate.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use hdrhistogram::Histogram;
use serde_json::{Value, json};

use crate::check::{Book, Expect};
use crate::clock::Moment;
use crate::environment::Environment;
use crate::paced::{self, Pace};
use crate::report::{Curve, Figure, Report, us};
use crate::system::{Setup, Source, System};
use crate::throughput::with_setup;
use crate::watch::{Tell, watched};
use crate::{append, http};

/// Time single jobs: one after another, then at a fixed rate
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Plan {
    /// Jobs one after another
    #[arg(long, value_name = "N", default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub jobs: u32,
    /// Jobs a second of the second part; 0 leaves it out
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    pub rate: u32,
    /// Seconds the second part takes
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub seconds: u32,
    /// Connections of the second part; each has one job under way
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=4_000))]
    pub clients: u32,
    #[command(flatten)]
    pub setup: Setup,
}

/// Jobs before the first that is timed: what is slow once only.
const WARM_UP: u32 = 5;
const NOOP: &[u8] = b"{\"handler\":\"noop\"}";

/// Measures both.
pub fn measure(source: &Source, plan: &Plan, tell: Tell<'_>) -> Result<Report> {
    let system = source.system(&plan.setup)?;
    let environment = Environment::of(&system)?;
    let mut book = Book::default();
    one_by_one(&system, WARM_UP, &mut book)?;
    let total = u64::from(plan.jobs);
    let (alone, _) = watched(&system, "jobs one by one", total, tell, || {
        one_by_one(&system, plan.jobs, &mut book)
    })?;
    let mut figures = vec![
        Figure::one("alone: submit → result, p50", "µs", us(&alone.ended, 0.5)),
        Figure::one("alone: submit → result, p99", "µs", us(&alone.ended, 0.99)),
    ];
    if let Some(dir) = system.dir() {
        let appends = append::three_synced_appends(dir, plan.jobs)?;
        for (figure, quantile) in figures.iter_mut().zip([0.5, 0.99]) {
            figure.reference = "3 synced appends";
            figure.references.push(us(&appends, quantile));
        }
    }
    let mut curves = vec![
        Curve::of("alone: submit → accepted", &alone.accepted),
        Curve::of("alone: submit → result", &alone.ended),
    ];
    let mut more = vec![
        Figure::one(
            "alone: submit → accepted, p50",
            "µs",
            us(&alone.accepted, 0.5),
        ),
        Figure::one(
            "alone: submit → accepted, p99",
            "µs",
            us(&alone.accepted, 0.99),
        ),
    ];
    let mut samples = Vec::new();
    if plan.rate > 0 {
        let pace = Pace {
            rate: f64::from(plan.rate),
            jobs: u64::from(plan.rate) * u64::from(plan.seconds),
            connections: plan.clients as usize,
        };
        let (times, looks) = watched(&system, "jobs at a fixed rate", pace.jobs, tell, || {
            paced::run(&system, pace, NOOP, &mut book)
        })?;
        samples = looks;
        figures.extend(results_at_a_rate(&times));
        more.extend(accepted_at_a_rate(&times));
        curves.push(Curve::of("at a rate: due → accepted", &times.accepted));
        curves.push(Curve::of("at a rate: due → result", &times.ended));
    }
    figures.extend(more);
    let checked = book.check(&system)?;
    let mut settings = json!({
        "jobs": plan.jobs,
        "rate": plan.rate,
        "seconds": plan.seconds,
        "clients": plan.clients,
    });
    with_setup(&mut settings, &plan.setup);
    Ok(Report {
        bench: "latency",
        environment,
        settings,
        figures,
        curves,
        samples,
        checked,
    })
}

fn results_at_a_rate(times: &paced::Times) -> [Figure; 4] {
    let figure = |name, quantile| Figure::one(name, "µs", us(&times.ended, quantile));
    [
        figure("at a rate: due → result, p50", 0.5),
        figure("at a rate: due → result, p99", 0.99),
        figure("at a rate: due → result, p99.9", 0.999),
        figure("at a rate: due → result, longest", 1.0),
    ]
}

fn accepted_at_a_rate(times: &paced::Times) -> [Figure; 3] {
    let figure = |name, quantile| Figure::one(name, "µs", us(&times.accepted, quantile));
    [
        figure("at a rate: due → accepted, p50", 0.5),
        figure("at a rate: due → accepted, p99", 0.99),
        Figure::one("submitted over 1 ms late", "jobs", times.late as f64),
    ]
}

/// Times of jobs one after another, microseconds.
#[derive(Debug)]
pub struct Alone {
    /// Until the job was accepted.
    pub accepted: Histogram<u64>,
    /// Until its result was known, committed.
    pub ended: Histogram<u64>,
}

/// Submits a job, waits for its end, and so on. Both requests of a job go over the same connection.
pub fn one_by_one(system: &System, count: u32, book: &mut Book) -> Result<Alone> {
    let submit = system.request("POST", "/jobs", NOOP);
    let mut alone = Alone {
        accepted: Histogram::new(3)?,
        ended: Histogram::new(3)?,
    };
    let waiting = std::cell::Cell::new(None::<u64>);
    let begun = std::cell::Cell::new(Moment::now());
    let us = |time: Duration| u64::try_from(time.as_micros());
    let mut left = count;
    let next = || {
        if let Some(id) = waiting.get() {
            let path = format!("/jobs/{id}?wait=10s&live=0");
            return Some(system.request("GET", &path, b""));
        }
        left = left.checked_sub(1)?;
        begun.set(Moment::now());
        Some(submit.clone())
    };
    http::run(system.to(), 1, next, |body| {
        let elapsed = begun.get().elapsed();
        let job: Value = serde_json::from_slice(body)?;
        if waiting.get().is_none() {
            alone.accepted.record(us(elapsed)?)?;
            let id = job["id"].as_u64().context("an answer without id")?;
            book.add(id, 1, Expect::SUCCESS);
            waiting.set(Some(id));
        } else {
            ensure!(job["state"] == "succeeded", "it did not succeed: {job}");
            alone.ended.record(us(elapsed)?)?;
            waiting.set(None);
        }
        Ok(())
    })?;
    Ok(alone)
}
