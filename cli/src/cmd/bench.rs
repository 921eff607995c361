//! `bench`: measures a server, its own or one that runs, and checks that nothing was lost. The measuring is
//! `hostler_benches`' work; here are its options, its progress, and what becomes of its report.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use hostler_benches::report::Report;
use hostler_benches::system::Source;
use hostler_benches::{backlog, connections, html, latency, logs, mixed, process, throughput};
use serde_json::Value;

use crate::exit::{Exit, Failure};
use crate::output::progress::Bar;
use crate::output::{self, json};
use crate::settings::{Global, Settings};

/// Load test: how fast, how late, and that nothing is lost
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Without --server it starts a server and workers of its own in a temporary directory, on loopback, and
removes them. Every job that was accepted is looked for at the end: one that is lost, recorded twice or
ended wrongly makes it fail. Ends with 0, or with 1 if it failed.

Examples:
  hostler bench throughput                               no-op jobs as fast as they are taken
  hostler bench latency --rate 2000 --report out.html    at a fixed rate, drawn
  hostler bench process -- ./job.sh                      a command of yours
  hostler bench throughput -o json > old.json            and after a change:
  hostler bench throughput --compare old.json            ratios new to old
  hostler bench mixed --server http://127.0.0.1:7440     a realistic day for a server that runs")]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,

    /// Start a server of its own; the default without --server
    #[arg(long, global = true)]
    embedded: bool,

    /// Write the result as one HTML page, with curves
    #[arg(long, global = true, value_name = "FILE")]
    report: Option<PathBuf>,

    /// An older result (from -o json): tell the ratios to it
    #[arg(long, global = true, value_name = "FILE")]
    compare: Option<PathBuf>,
}

/// What is measured.
#[derive(Debug, clap::Subcommand)]
enum What {
    Throughput(throughput::Plan),
    Latency(latency::Plan),
    Process(process::Plan),
    Backlog(backlog::Plan),
    Logs(logs::Plan),
    Connections(connections::Plan),
    Mixed(mixed::Plan),
}

/// Runs it.
pub(crate) fn run(args: &Args, global: &Global) -> Result<Exit, Failure> {
    let settings = Settings::merge(global)?;
    // Looked at first: a file that cannot be read is to be told before minutes of measuring.
    let old = args
        .compare
        .as_ref()
        .map(|path| read_old(path, args.what.name()));
    let old = old.transpose()?;
    let source = source(args, global, &settings)?;
    let mut bar = Bar::new();
    let mut tell = |what: &str, done, total| bar.at(what, done, total);
    let report = match &args.what {
        What::Throughput(plan) => throughput::measure(&source, plan, &mut tell),
        What::Latency(plan) => latency::measure(&source, plan, &mut tell),
        What::Process(plan) => process::measure(&source, plan, &mut tell),
        What::Backlog(plan) => backlog::measure(&source, plan, &mut tell),
        What::Logs(plan) => logs::measure(&source, plan, &mut tell),
        What::Connections(plan) => connections::measure(&source, plan, &mut tell),
        What::Mixed(plan) => mixed::measure(&source, plan, &mut tell),
    };
    drop(bar);
    let report = report.map_err(|error| Failure::new(Exit::Unsuccessful, format!("{error:#}")))?;
    tell_of(&report, args, old.as_ref(), &settings)?;
    Ok(Exit::Done)
}

fn tell_of(
    report: &Report,
    args: &Args,
    old: Option<&Value>,
    settings: &Settings,
) -> Result<(), Failure> {
    if settings.form.is_json() {
        json::value(settings.form, &report.as_json())?;
    } else {
        output::line(report.as_table().trim_end())?;
    }
    if let Some(path) = &args.report {
        fs::write(path, html::page(report)).map_err(|error| {
            let text = format!("cannot write {}: {error}", path.display());
            Failure::new(Exit::Unsuccessful, text)
        })?;
        output::note(format_args!("report: {}", path.display()));
    }
    if let Some(old) = old {
        let text = report.compare(old);
        let text = text.map_err(|error| Failure::usage(format!("--compare: {error}")))?;
        // Beside the data, so that JSON stays JSON.
        output::note(format_args!("\n{}", text.trim_end()));
    }
    Ok(())
}

/// Whose server.
fn source(args: &Args, global: &Global, settings: &Settings) -> Result<Source, Failure> {
    if args.embedded && global.server.is_some() {
        return Err(Failure::usage(
            "--embedded starts a server of its own, --server names one that runs: which?",
        ));
    }
    if global.server.is_none() {
        let binary = env::current_exe().map_err(|error| {
            let text = format!("cannot find this program, to start a server from: {error}");
            Failure::new(Exit::Unsuccessful, text)
        })?;
        return Ok(Source::Own(binary));
    }
    let address = settings.addresses.first();
    let address = address.ok_or_else(|| Failure::usage("--server names no server"))?;
    Ok(Source::Running {
        address: address.authority(),
        token: settings.token()?,
        tls: address.is_tls().then(|| settings.tls.clone()),
    })
}

impl What {
    fn name(&self) -> &'static str {
        match self {
            Self::Throughput(_) => "throughput",
            Self::Latency(_) => "latency",
            Self::Process(_) => "process",
            Self::Backlog(_) => "backlog",
            Self::Logs(_) => "logs",
            Self::Connections(_) => "connections",
            Self::Mixed(_) => "mixed",
        }
    }
}

fn read_old(path: &Path, bench: &str) -> Result<Value, Failure> {
    let unreadable = |why: &dyn std::fmt::Display| {
        Failure::usage(format!("cannot compare with {}: {why}", path.display()))
            .hint("write one with: hostler bench … -o json > old.json")
    };
    let text = fs::read_to_string(path).map_err(|error| unreadable(&error))?;
    let old: Value = serde_json::from_str(&text).map_err(|error| unreadable(&error))?;
    match old["bench"].as_str() {
        Some(name) if name == bench => Ok(old),
        Some(name) => Err(unreadable(&format_args!("it is of {name}, not of {bench}"))),
        None => Err(unreadable(&"it is no result of a bench")),
    }
}
