//! A start with a backlog: how long until a server that was killed with so many jobs queued dispatches again, beside
//! the time in which SQLite reads the same rows once; and what a queued job costs in memory.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rusqlite::{Connection, OpenFlags};
use serde_json::json;

use crate::check::{Book, Expect};
use crate::clock::Moment;
use crate::environment::Environment;
use crate::load::{Load, per_second};
use crate::report::{Figure, Report};
use crate::system::{Durability, Setup, Source};
use crate::watch::{Tell, watched};

/// Queue jobs, kill the server, start it: how soon it dispatches, and memory a queued job
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Plan {
    /// How many jobs
    #[arg(long, value_name = "N", default_value_t = 200_000, value_parser = clap::value_parser!(u64).range(1..=50_000_000))]
    pub jobs: u64,
    /// Bytes of a job's payload
    #[arg(long, value_name = "BYTES", default_value_t = 100, value_parser = clap::value_parser!(u32).range(2..=500_000))]
    pub payload: u32,
    /// What the server means by accepted
    #[arg(long, value_enum, value_name = "WHAT", default_value = "fsync")]
    pub durability: Durability,
}

/// Jobs a request.
const BATCH: u64 = 1_000;
/// What recovery wants of a row.
const SCAN: &str =
    "SELECT id, class, priority, due_ms, expires_ms, deadline_ms, engine FROM jobs ORDER BY id";

/// Fills, kills, reads, starts.
pub fn measure(source: &Source, plan: &Plan, tell: Tell<'_>) -> Result<Report> {
    ensure!(
        matches!(source, Source::Own(_)),
        "backlog kills its server: it takes none that was there before; leave out --server"
    );
    let setup = Setup {
        durability: plan.durability,
        ..Setup::IDLE
    };
    let mut system = source.system(&setup)?;
    let environment = Environment::of(&system)?;
    let rss = |at: &str, system: &crate::system::System| {
        let rss = system.server_rss();
        rss.with_context(|| format!("no memory figure {at}"))
    };
    let before = rss("before", &system)?;
    let mut book = Book::default();
    let begun = Moment::now();
    let load = Load::noop(plan.jobs, BATCH, 4, plan.payload as usize);
    let (_, samples) = watched(&system, "jobs queued", plan.jobs, tell, || {
        load.submit(&system, &mut book, Expect::QUEUED)
    })?;
    let fill = begun.elapsed();
    let filled = rss("when filled", &system)?;
    system.kill_server()?;

    let database = system.database().context("its database is our own")?;
    let scan = scan(&database, plan.jobs)?;
    let begun = Moment::now();
    system.start_server()?;
    let ready = begun.elapsed();
    // Dispatch answers once it has all jobs, and may assign them from then on.
    let stats = system.stats()?;
    let dispatching = begun.elapsed();
    ensure!(
        stats["queued"] == plan.jobs,
        "not all jobs are back: {stats}"
    );
    let restarted = rss("after the start", &system)?;
    let checked = book.check(&system)?;

    let per_job = |rss: u64| rss.saturating_sub(before) as f64 / plan.jobs as f64;
    let mut start = Figure::one("start → dispatching", "ms", ms(dispatching));
    start.reference = "SQLite reads the table once";
    start.references.push(ms(scan));
    Ok(Report {
        bench: "backlog",
        environment,
        settings: json!({
            "jobs": plan.jobs,
            "payload": plan.payload,
            "durability": setup.as_json()["durability"],
        }),
        figures: vec![
            Figure::one("queued", "jobs/s", per_second(plan.jobs, fill)),
            start,
            Figure::one("start → ready", "ms", ms(ready)),
            Figure::one("memory a queued job", "B", per_job(filled)),
            Figure::one("memory a queued job, restarted", "B", per_job(restarted)),
        ],
        curves: Vec::new(),
        samples,
        checked,
    })
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1_000.0
}

/// Steps over all rows, the wanted columns of each taken; with the cache as full as the server will find it.
fn scan(database: &Path, jobs: u64) -> Result<Duration> {
    let mut best = Duration::MAX;
    for _ in 0..3 {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let begun = Moment::now();
        let db = Connection::open_with_flags(database, flags)?;
        let mut statement = db.prepare(SCAN)?;
        let mut rows = statement.query([])?;
        let (mut seen, mut sum) = (0, 0_i64);
        while let Some(row) = rows.next()? {
            seen += 1;
            for column in 0..6 {
                let value: Option<i64> = row.get(column)?;
                sum = sum.wrapping_add(value.unwrap_or(0));
            }
            let engine: Option<Vec<u8>> = row.get(6)?;
            sum = sum.wrapping_add(i64::from(engine.is_some()));
        }
        best = best.min(begun.elapsed());
        std::hint::black_box(sum);
        ensure!(seen == jobs, "the database has {seen} jobs, not {jobs}");
    }
    Ok(best)
}
