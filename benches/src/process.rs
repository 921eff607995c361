//! Real commands, their output kept, beside a bare loop that starts the same command.

use anyhow::Result;
use serde_json::json;

use crate::check::Book;
use crate::environment::Environment;
use crate::load::{self, Load, per_second};
use crate::report::{Curve, Report};
use crate::spawn;
use crate::system::{Setup, Source};
use crate::throughput::with_setup;
use crate::watch::Tell;

/// Run real commands
#[derive(Clone, Debug, clap::Args)]
pub struct Plan {
    /// How many jobs
    #[arg(long, value_name = "N", default_value_t = 3_000, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    pub jobs: u64,
    /// Connections that submit
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=4_000))]
    pub clients: u32,
    /// Jobs a request; 1 = single objects
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    pub batch: u64,
    /// Runs whose median is told
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub runs: u32,
    #[command(flatten)]
    pub setup: Setup,
    /// The command; it must succeed
    #[arg(last = true, value_name = "COMMAND", default_values_t = [String::from("/bin/true")])]
    pub command: Vec<String>,
}

/// Measures it, and in each run the bare loop after it.
pub fn measure(source: &Source, plan: &Plan, tell: Tell<'_>) -> Result<Report> {
    let mut figures = load::figures("submit → run → result committed");
    let mut report = None;
    for _ in 0..plan.runs {
        let system = source.system(&plan.setup)?;
        let environment = Environment::of(&system)?;
        let mut book = Book::default();
        let load = Load {
            kinds: vec![json!({"command": plan.command}).to_string()],
            ..Load::noop(plan.jobs, plan.batch, plan.clients as usize, 2)
        };
        let done = load.run(&system, &mut book, tell)?;
        let checked = book.check(&system)?;
        done.add_to(plan.jobs, &mut figures);
        if system.is_own() {
            let in_flight = (plan.setup.slots * plan.setup.workers) as usize;
            let count = usize::try_from(plan.jobs)?;
            let bare = spawn::bare_loop(&plan.command, count, in_flight)?;
            figures[0].references.push(per_second(plan.jobs, bare));
            figures[0].reference = "bare spawn loop";
        }
        let mut settings = json!({
            "jobs": plan.jobs,
            "clients": plan.clients,
            "batch": plan.batch,
            "runs": plan.runs,
            "command": plan.command.join(" "),
        });
        with_setup(&mut settings, &plan.setup);
        report = Some(Report {
            bench: "process",
            environment,
            settings,
            figures: Vec::new(),
            curves: vec![Curve::of("request → accepted", &done.submit.latency_us)],
            samples: done.samples,
            checked,
        });
    }
    let mut report = report.expect("there is one run at least");
    report.figures.extend(figures);
    report.figures.retain(|figure| !figure.values.is_empty());
    Ok(report)
}
