//! The same work given to what people use instead: as processes on loopback in directories of their own, in turn with
//! ours in the same run, so that the ratio means something where the figures do not.
//!
//! Each peer runs at the settings it was found to be fastest with, and each row says what the comparison is and is
//! not. `benches/peers/run` installs what is missing.

mod beanstalkd;
mod drive;
mod gearman;
mod postgres;
mod processes;
mod redis;
mod scripts;

use std::env;
use std::path::{Path, PathBuf};
use std::process::Child;

use anyhow::{Context as _, Result};

use crate::check::Book;
use crate::load::{Load, per_second};
use crate::report::{Figure, median, rounded};
use crate::system::{Setup, Source, end};

/// How much.
#[derive(Clone, Debug, clap::Args)]
pub struct Plan {
    /// Pairs of runs
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub rounds: u32,
    /// A tenth of the jobs: does it work at all?
    #[arg(long)]
    pub quick: bool,
    /// Only peers whose name contains one of these
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub only: Vec<String>,
    /// Where node_modules and a Python environment with the libraries are
    #[arg(long, value_name = "DIR", default_value = "target/peers")]
    pub libraries: PathBuf,
}

/// Another system.
struct Peer {
    name: &'static str,
    /// What an accepted job survives there.
    durability: &'static str,
    settings: &'static str,
    /// What the comparison is and is not.
    fairness: &'static str,
    work: Work,
    jobs: u64,
    /// Runs so many; jobs a second.
    run: fn(&Peer, &Plan, u64) -> Result<f64>,
}

/// What both do.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Work {
    /// Jobs that do nothing, until their results are kept.
    Noop,
    /// `/bin/true`, two at a time.
    Process,
}

const PEERS: &[Peer] = &[
    Peer {
        name: "beanstalkd",
        durability: "none",
        settings: "1 producer + 1 worker, window 32",
        fairness: "no durability, no results, no retries; a request a job, where ours carries 100",
        work: Work::Noop,
        jobs: 200_000,
        run: beanstalkd::in_memory,
    },
    Peer {
        name: "beanstalkd -b -f0",
        durability: "fsync of each write",
        settings: "32 + 32, window 32",
        fairness: "the same durability as ours, but no batches to share an fsync",
        work: Work::Noop,
        jobs: 20_000,
        run: beanstalkd::synced,
    },
    Peer {
        name: "Redis lists, appendfsync always",
        durability: "fsync of each event-loop turn",
        settings: "32 + 32, window 32; LPUSH, BLMOVE, LREM",
        fairness: "no scheduler: no priority, retry, timeout, result, or recovery of a dead worker's list; the \
                   ceiling of every queue built on Redis",
        work: Work::Noop,
        jobs: 400_000,
        run: redis::lists,
    },
    Peer {
        name: "gearmand",
        durability: "none",
        settings: "32 + 32, window 32, background jobs, 4 threads",
        fairness: "no durability; a job counts as done when its end is sent, nobody acknowledges it",
        work: Work::Noop,
        jobs: 100_000,
        run: gearman::in_memory,
    },
    Peer {
        name: "PostgreSQL, SKIP LOCKED",
        durability: "fsync (synchronous_commit)",
        settings: "8 connections, 100 jobs a transaction, put and take-and-delete in equal shares, 512 MB of buffers",
        fairness: "no claim between take and delete, no results; batches as ours",
        work: Work::Noop,
        jobs: 0,
        run: postgres::skip_locked,
    },
    Peer {
        name: "BullMQ on Redis, appendfsync always",
        durability: "fsync of each event-loop turn",
        settings: "addBulk of 1,000, 4 in flight; one worker, concurrency 64; both at once",
        fairness: "the nearest in what it offers; batched on the way in, a job at a time on the way out",
        work: Work::Noop,
        jobs: 20_000,
        run: scripts::bullmq,
    },
    Peer {
        name: "RQ on Redis, appendfsync always",
        durability: "fsync of each event-loop turn",
        settings: "enqueue_many of 1,000, then 2 SimpleWorkers (no fork a job)",
        fairness: "its default worker forks for each job and is slower",
        work: Work::Noop,
        jobs: 2_000,
        run: scripts::rq,
    },
    Peer {
        name: "xargs -P2 -n1",
        durability: "none",
        settings: "output to /dev/null",
        fairness: "no scheduler: a loop",
        work: Work::Process,
        jobs: 5_000,
        run: processes::xargs,
    },
    Peer {
        name: "GNU parallel -j2",
        durability: "none",
        settings: "output kept apart for each job, as ours",
        fairness: "one machine, nothing is remembered",
        work: Work::Process,
        jobs: 1_000,
        run: processes::parallel,
    },
];

/// Runs all pairs; the table.
pub fn measure(source: &Source, plan: &Plan) -> Result<String> {
    let mut text = String::from(
        "| peer, its best settings | durability | its jobs/s | ours in the same runs | **ours ÷ its** (range) | what \
         the comparison is and is not |\n|---|---|---|---|---|---|\n",
    );
    let wanted = |peer: &&Peer| {
        let named = |word: &String| peer.name.to_lowercase().contains(&word.to_lowercase());
        plan.only.is_empty() || plan.only.iter().any(named)
    };
    let mut skipped = Vec::new();
    for peer in PEERS.iter().filter(wanted) {
        match pairs(source, plan, peer) {
            Ok(figure) => text.push_str(&row(peer, &figure)),
            // A peer that is not there is no reason to measure no other.
            Err(error) => {
                eprintln!("{}: {error:#}", peer.name);
                skipped.push(peer.name);
            }
        }
    }
    text.push_str(&format!(
        "\nMedians of {} pairs of runs, one of theirs after one of ours{}. Ours: {}; fsync; processes: `/bin/true`, 2 \
         slots, output kept. Payload 100 bytes. Client, workers and server share the machine.\n",
        plan.rounds,
        if plan.quick { ", a tenth of the jobs" } else { "" },
        "durable no-op jobs in HTTP arrays of 100 on 64 connections, one worker, until every result is committed",
    ));
    if !skipped.is_empty() {
        text.push_str(&format!("Not measured here: {}.\n", skipped.join(", ")));
    }
    Ok(text)
}

fn pairs(source: &Source, plan: &Plan, peer: &Peer) -> Result<Figure> {
    let share = if plan.quick { 10 } else { 1 };
    let mut figure = Figure::new(peer.name, "jobs/s", "");
    for round in 0..plan.rounds {
        let ours = ours(source, peer.work, share)?;
        let theirs = (peer.run)(peer, plan, peer.jobs / share)?;
        eprintln!(
            "{} {}/{}: ours {ours:.0}, its {theirs:.0}, {:.2} ×",
            peer.name,
            round + 1,
            plan.rounds,
            ours / theirs
        );
        figure.values.push(ours);
        figure.references.push(theirs);
    }
    Ok(figure)
}

fn ours(source: &Source, work: Work, share: u64) -> Result<f64> {
    let load = match work {
        Work::Noop => Load::noop(300_000 / share, 100, 64, 100),
        Work::Process => Load {
            kinds: vec!["{\"command\":[\"/bin/true\"]}".into()],
            ..Load::noop(3_000 / share, 100, 4, 2)
        },
    };
    let system = source.system(&Setup::PLAIN)?;
    let mut book = Book::default();
    let done = load.run(&system, &mut book, &mut |_, _, _| {})?;
    book.check(&system)?;
    Ok(per_second(load.jobs, done.elapsed))
}

fn row(peer: &Peer, figure: &Figure) -> String {
    let number = |values: &[f64]| median(values).map_or("-".into(), rounded);
    let ratio = figure.ratio().zip(figure.ratio_range());
    let ratio = ratio.map_or("-".into(), |(middle, (least, most))| {
        format!("**{middle:.2} ×** ({least:.2} to {most:.2})")
    });
    format!(
        "| {}; {} | {} | {} | {} | {ratio} | {} |\n",
        peer.name,
        peer.settings,
        peer.durability,
        number(&figure.references),
        number(&figure.values),
        peer.fairness
    )
}

/// A process that is not left behind.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        end(&mut self.0);
    }
}

/// Where a program is.
fn program(name: &str) -> Result<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let places = env::split_paths(&path).chain(["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from));
    places
        .map(|place| place.join(name))
        .find(|path| path.is_file())
        .with_context(|| format!("{name} is not installed"))
}

/// A directory of its own for a peer.
fn place(name: &str) -> Result<tempfile::TempDir> {
    let prefix = format!("hostler-peer-{name}-");
    Ok(tempfile::Builder::new().prefix(&prefix).tempdir()?)
}

/// A library's place, or what to do.
fn library(dir: &Path) -> Result<&Path> {
    dir.exists().then_some(dir).with_context(|| {
        format!(
            "{} is missing: benches/peers/run installs it",
            dir.display()
        )
    })
}
