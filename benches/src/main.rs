//! `hostler-bench`: the figures, or load on a server that runs.
#![expect(
    clippy::print_stdout,
    reason = "a command whose data goes to standard output"
)]

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use clap::{Parser, Subcommand, ValueEnum};
use hostler_benches::clock::Moment;
use hostler_benches::figures::{self, Sizes};
use hostler_benches::load::{self, Load, per_second};
use hostler_benches::report::Figure;
use hostler_benches::{backlog, logs, report, system};
use serde_json::json;

/// Hostler's load test. Loopback only, bounded in count and time
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true)]
struct Cli {
    /// Form of the result
    #[arg(short, long, global = true, value_enum, default_value = "table")]
    output: Form,

    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Form {
    Table,
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Measure: starts systems of its own, compares, checks that nothing was lost
    Figures {
        /// The hostler binary [default: beside this program]
        #[arg(long, env = "HOSTLER_BIN")]
        binary: Option<PathBuf>,
        /// Which: arrays, singles, processes, idle [default: all]
        #[arg(long, value_enum, value_delimiter = ',')]
        only: Vec<Which>,
        /// Runs whose median is told
        #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
        runs: u32,
        /// No-op jobs in arrays
        #[arg(long, default_value_t = 300_000, value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
        array_jobs: u64,
        /// Single requests
        #[arg(long, default_value_t = 50_000, value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
        single_jobs: u64,
        /// Processes
        #[arg(long, default_value_t = 3_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
        process_jobs: u64,
        /// Jobs one at a time
        #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
        idle_jobs: u32,
    },
    /// Queue jobs, kill the server, start it: how long until it dispatches, and memory a queued job
    Backlog {
        /// The hostler binary [default: beside this program]
        #[arg(long, env = "HOSTLER_BIN")]
        binary: Option<PathBuf>,
        /// How many jobs
        #[arg(long, default_value_t = 200_000, value_parser = clap::value_parser!(u64).range(1..=50_000_000))]
        jobs: u64,
    },
    /// Measure output: its speed, its delay, what others feel of a job that writes at full speed
    Logs {
        /// The hostler binary [default: beside this program]
        #[arg(long, env = "HOSTLER_BIN")]
        binary: Option<PathBuf>,
        /// Runs whose median is told
        #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
        runs: u32,
        /// Bytes a job writes
        #[arg(long, default_value_t = 250_000_000, value_parser = clap::value_parser!(u64).range(1..=10_000_000_000))]
        bytes: u64,
        /// Small jobs with and without a flood beside them
        #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..=100_000))]
        jobs: u32,
        /// Lines whose way to a follower is timed
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
        lines: u32,
    },
    /// Load a server that runs, wait until all jobs have ended, check each of them
    Load {
        /// Its HTTP address
        #[arg(long, default_value = "127.0.0.1:7440")]
        addr: SocketAddr,
        /// File with the access token; none for a server without
        #[arg(long)]
        token_file: Option<PathBuf>,
        /// How many jobs
        #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
        jobs: u64,
        /// Jobs a request
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=10_000))]
        batch: u64,
        /// Connections in use
        #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=1_024))]
        connections: u32,
        /// One job as JSON [default: a no-op with 100 bytes of payload]
        #[arg(long)]
        job: Option<String>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Which {
    Arrays,
    Singles,
    Processes,
    Idle,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        Command::Figures {
            binary,
            only,
            runs,
            array_jobs,
            single_jobs,
            process_jobs,
            idle_jobs,
        } => {
            let sizes = Sizes {
                array_jobs,
                single_jobs,
                process_jobs,
                idle_jobs,
                runs,
            };
            measure(binary, &only, &sizes, cli.output)
        }
        Command::Backlog { binary, jobs } => measure_backlog(binary, jobs, cli.output),
        Command::Logs {
            binary,
            runs,
            bytes,
            jobs,
            lines,
        } => {
            let sizes = logs::Sizes {
                bytes,
                jobs,
                lines,
                runs,
            };
            system::find_binary(binary)
                .and_then(|binary| logs::figures(&binary, &sizes))
                .map(|figures| tell(&figures, cli.output))
        }
        Command::Load {
            addr,
            token_file,
            jobs,
            batch,
            connections,
            job,
        } => {
            let mut load = Load::noop(jobs, batch, connections as usize);
            load.job = job.unwrap_or(load.job);
            run_load(addr, token_file, &load, cli.output)
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn measure(binary: Option<PathBuf>, only: &[Which], sizes: &Sizes, form: Form) -> Result<()> {
    let binary = system::find_binary(binary)?;
    let wanted = |which| only.is_empty() || only.contains(&which);
    let mut all = Vec::new();
    if wanted(Which::Arrays) {
        all.push(figures::arrays(&binary, sizes)?);
    }
    if wanted(Which::Singles) {
        all.push(figures::singles(&binary, sizes)?);
    }
    if wanted(Which::Processes) {
        all.push(figures::processes(&binary, sizes)?);
    }
    if wanted(Which::Idle) {
        all.extend(figures::idle(&binary, sizes)?);
    }
    tell(&all, form);
    Ok(())
}

fn measure_backlog(binary: Option<PathBuf>, jobs: u64, form: Form) -> Result<()> {
    let measured = backlog::measure(&system::find_binary(binary)?, jobs)?;
    match form {
        Form::Json => println!("{:#}", measured.as_json()),
        Form::Table => println!("{}", measured.as_line()),
    }
    Ok(())
}

fn tell(figures: &[Figure], form: Form) {
    match form {
        Form::Json => println!("{:#}", report::as_json(figures)),
        Form::Table => print!("{}", report::as_table(figures)),
    }
}

fn run_load(addr: SocketAddr, token_file: Option<PathBuf>, load: &Load, form: Form) -> Result<()> {
    let token = token_file
        .map(|path| {
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
        })
        .transpose()?;
    let token = token.as_deref().map(str::trim);
    let begun = Moment::now();
    let accepted = load.submit(addr, token)?;
    system::ended(addr, token)?;
    let elapsed = begun.elapsed();
    let others = load::not_succeeded(addr, token, &accepted, load.connections)?;
    let latency = |quantile| accepted.done.latency_us.value_at_quantile(quantile);
    match form {
        Form::Json => println!(
            "{:#}",
            json!({
                "jobs": load.jobs,
                "not_succeeded": others,
                "refused_requests": accepted.done.refused,
                "seconds": elapsed.as_secs_f64(),
                "jobs_per_second": per_second(load.jobs, elapsed),
                "accept_us": {"p50": latency(0.5), "p99": latency(0.99), "max": accepted.done.latency_us.max()},
            })
        ),
        Form::Table => println!(
            "{} jobs in {:.2}s: {:.0} jobs/s; a request took {}/{} µs (p50/p99), {} were refused and sent again; {others} jobs did not succeed",
            load.jobs,
            elapsed.as_secs_f64(),
            per_second(load.jobs, elapsed),
            latency(0.5),
            latency(0.99),
            accepted.done.refused,
        ),
    }
    ensure!(
        others == 0,
        "{others} of {} jobs did not succeed",
        load.jobs
    );
    Ok(())
}
