//! The table that the project measures itself by, but for other systems (`peers`) and the bare engine (a micro bench):
//! each figure against its reference, in the same run, alternating, so that a busy moment of the machine hits both.

use anyhow::Result;

use crate::check::Book;
use crate::load::{Done, Load, cpu_us, per_second};
use crate::report::{Figure, Report, median, rounded, us};
use crate::system::{Setup, Source};
use crate::{append, backlog, http, inserts, latency, process, responder};

/// How much is measured.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Plan {
    /// Only these rows
    #[arg(long, value_enum, value_name = "ROWS")]
    pub only: Option<Part>,
    /// Runs whose median is told
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub runs: u32,
    /// No-op jobs in arrays
    #[arg(long, value_name = "N", default_value_t = 300_000, value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    pub array_jobs: u64,
    /// Single requests
    #[arg(long, value_name = "N", default_value_t = 50_000, value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    pub single_jobs: u64,
    /// Processes
    #[arg(long, value_name = "N", default_value_t = 3_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub process_jobs: u64,
    /// Jobs one at a time
    #[arg(long, value_name = "N", default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub idle_jobs: u32,
    /// Jobs queued while the server is killed
    #[arg(long, value_name = "N", default_value_t = 10_000_000, value_parser = clap::value_parser!(u64).range(1..=50_000_000))]
    pub backlog_jobs: u64,
}

/// CPU time a no-op job of the experiment the design was drawn from, and of a bare loop of inserts on the same machine, in
/// microseconds. On another machine the loop is measured, and the experiment taken to cost as much more than that.
const EXPERIMENT_CPU_US: f64 = 0.99;
const ITS_INSERTS_CPU_US: f64 = 0.77;
/// Connections of the arrays, and of the single requests.
const ARRAY_CONNECTIONS: usize = 64;
const SINGLE_CONNECTIONS: usize = 64;

/// A row of the table.
#[derive(Clone, Debug)]
pub struct Row {
    what: &'static str,
    reference: &'static str,
    at_least: &'static str,
    aim: &'static str,
    /// What stands beside those two.
    ratio: String,
    figure: Figure,
    command: String,
}

/// What rows are made by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    /// No-op jobs in arrays: rate, server CPU.
    Arrays,
    /// Single requests.
    Singles,
    /// Processes.
    Processes,
    /// One job at a time.
    Idle,
    /// A start with jobs queued: memory, time.
    Restart,
}

/// All rows that need no other system, or those that were asked for.
pub fn rows(source: &Source, plan: &Plan) -> Result<Vec<Row>> {
    let wanted = |part| plan.only.is_none_or(|only| only == part);
    let mut rows = Vec::new();
    if wanted(Part::Arrays) {
        rows.extend(arrays(source, plan)?);
    }
    if wanted(Part::Singles) {
        rows.push(singles(source, plan)?);
    }
    if wanted(Part::Processes) {
        rows.push(processes(source, plan)?);
    }
    if wanted(Part::Idle) {
        rows.push(idle(source, plan)?);
    }
    if wanted(Part::Restart) {
        rows.extend(restart(source, plan)?);
    }
    Ok(rows)
}

fn command(what: &str) -> String {
    format!("`hostler bench throughput {what}`")
}

fn arrays(source: &Source, plan: &Plan) -> Result<[Row; 2]> {
    let mut rate = Figure::new("", "jobs/s", "");
    let mut cpu = Figure::new("", "µs", "");
    let load = Load::noop(plan.array_jobs, 100, ARRAY_CONNECTIONS, 100);
    for _ in 0..plan.runs {
        let done = checked(source, &load)?.1;
        let dir = tempfile::tempdir()?;
        let inserts = cpu_us(inserts::cpu(dir.path(), load.jobs)?, load.jobs);
        rate.values.push(per_second(load.jobs, done.elapsed));
        cpu.values
            .extend(done.cpu.map(|time| cpu_us(time, load.jobs)));
        cpu.references
            .push(inserts * (EXPERIMENT_CPU_US / ITS_INSERTS_CPU_US));
    }
    Ok([
        Row {
            what: "durable no-op jobs, arrays of 100, 64 connections",
            reference: "other systems: below",
            at_least: "",
            aim: "",
            ratio: String::new(),
            figure: rate,
            command: command(&format!("--jobs {}", plan.array_jobs)),
        },
        Row {
            what: "server CPU a durable no-op job, arrays",
            reference: "two bare inserts a job, × 1.29: what an experiment of the same shape took beside them",
            at_least: "4 ×",
            aim: "2 ×",
            ratio: times(&cpu),
            figure: cpu,
            command: command(&format!("--jobs {}", plan.array_jobs)),
        },
    ])
}

fn singles(source: &Source, plan: &Plan) -> Result<Row> {
    let mut figure = Figure::new("", "jobs/s", "");
    let load = Load::noop(plan.single_jobs, 1, SINGLE_CONNECTIONS, 100);
    let instant = responder::start()?;
    for _ in 0..plan.runs {
        let (request, done) = checked(source, &load)?;
        figure.values.push(per_second(load.jobs, done.elapsed));
        let mut left = load.jobs;
        let next = || {
            left = left.checked_sub(1)?;
            Some(request.clone())
        };
        let done = http::run(instant, load.connections, next, |_| Ok(()))?;
        let rate = per_second(done.requests, done.elapsed);
        figure.references.push(rate);
    }
    Ok(Row {
        what: "single requests, 64 connections, durable",
        reference: "the same requests to a hyper server that answers at once",
        at_least: "50 %",
        aim: "75 %",
        ratio: percent(&figure),
        figure,
        command: command(&format!(
            "--batch 1 --clients 64 --jobs {}",
            plan.single_jobs
        )),
    })
}

/// One run of a load on a system of its own, of which nothing may be lost; and the first kind's request.
fn checked(source: &Source, load: &Load) -> Result<(Vec<u8>, Done)> {
    let system = source.system(&Setup::PLAIN)?;
    let mut book = Book::default();
    let done = load.run(&system, &mut book, &mut |_: &str, _, _| {})?;
    book.check(&system)?;
    let request = system.request("POST", "/jobs", load.kinds[0].as_bytes());
    Ok((request, done))
}

fn processes(source: &Source, plan: &Plan) -> Result<Row> {
    let process = process::Plan {
        jobs: plan.process_jobs,
        clients: 4,
        batch: 100,
        runs: plan.runs,
        setup: Setup::PLAIN,
        command: vec!["/bin/true".into()],
    };
    let report = process::measure(source, &process, &mut |_, _, _| {})?;
    let figure = take(&report, "submit → run → result committed");
    Ok(Row {
        what: "processes (`/bin/true`, output kept), 2 slots",
        reference: "a bare spawn and pipe loop, 2 in flight",
        at_least: "85 %",
        aim: "95 %",
        ratio: percent(&figure),
        figure,
        command: format!("`hostler bench process --jobs {}`", plan.process_jobs),
    })
}

fn idle(source: &Source, plan: &Plan) -> Result<Row> {
    let mut figure = Figure::new("", "µs", "");
    for _ in 0..plan.runs {
        let system = source.system(&Setup::PLAIN)?;
        let mut book = Book::default();
        latency::one_by_one(&system, 5, &mut book)?;
        let ours = latency::one_by_one(&system, plan.idle_jobs, &mut book)?;
        book.check(&system)?;
        figure.values.push(us(&ours.ended, 0.5));
        if let Some(dir) = system.dir() {
            let appends = append::three_synced_appends(dir, plan.idle_jobs)?;
            figure.references.push(us(&appends, 0.5));
        }
    }
    Ok(Row {
        what: "submit → running → result, one at a time, idle, p50",
        reference: "three synced appends one after another on that disk",
        at_least: "2 ×",
        aim: "1.2 ×",
        ratio: times(&figure),
        figure,
        command: format!("`hostler bench latency --rate 0 --jobs {}`", plan.idle_jobs),
    })
}

fn restart(source: &Source, plan: &Plan) -> Result<[Row; 2]> {
    let backlog = backlog::Plan {
        jobs: plan.backlog_jobs,
        payload: 100,
        durability: Setup::PLAIN.durability,
    };
    let report = backlog::measure(source, &backlog, &mut |_, _, _| {})?;
    let start = take(&report, "start → dispatching");
    let memory = take(&report, "memory a queued job");
    let command = format!("`hostler bench backlog --jobs {}`", plan.backlog_jobs);
    Ok([
        Row {
            what: "memory a queued job beyond its body's budget",
            reference: "",
            at_least: "100 B",
            aim: "40 B",
            ratio: median(&memory.values).map_or_else(String::new, |it| format!("{it:.0} B")),
            figure: memory,
            command: command.clone(),
        },
        Row {
            what: "start with those jobs queued, until dispatching (one run)",
            reference: "reading the table once with SQLite",
            at_least: "2 ×",
            aim: "1 ×",
            ratio: times(&start),
            figure: start,
            command,
        },
    ])
}

fn take(report: &Report, name: &str) -> Figure {
    let found = report.figures.iter().find(|figure| figure.name == name);
    found.cloned().unwrap_or_else(|| Figure::new("", "", ""))
}

fn times(figure: &Figure) -> String {
    figure
        .ratio()
        .map_or_else(String::new, |it| format!("{it:.2} ×"))
}

fn percent(figure: &Figure) -> String {
    figure
        .ratio()
        .map_or_else(String::new, |it| format!("{:.0} %", it * 100.0))
}

/// As a table of a document.
pub fn as_markdown(rows: &[Row]) -> String {
    let mut text = String::from(
        "| figure | reference in the same run | at least | aim | **ours** | value | command |\n\
         |---|---|---|---|---|---|---|\n",
    );
    for row in rows {
        let value = median(&row.figure.values).map_or("-".into(), rounded);
        text.push_str(&format!(
            "| {} | {} | {} | {} | **{}** | {value} {} | {} |\n",
            row.what, row.reference, row.at_least, row.aim, row.ratio, row.figure.unit, row.command
        ));
    }
    text.replace("****", "")
}
