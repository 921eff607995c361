//! As many no-op jobs as the system takes: submitted, run, ended, their results committed.

use anyhow::Result;
use serde_json::json;

use crate::check::Book;
use crate::environment::Environment;
use crate::load::{self, Load};
use crate::report::{Curve, Figure, Report};
use crate::system::{Setup, Source};
use crate::watch::Tell;

/// Submit no-op jobs as fast as they are taken
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Plan {
    /// How many jobs
    #[arg(long, value_name = "N", default_value_t = 200_000, value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    pub jobs: u64,
    /// Connections that submit
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=4_000))]
    pub clients: u32,
    /// Jobs a request; 1 = single objects
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    pub batch: u64,
    /// Bytes of a job's payload
    #[arg(long, value_name = "BYTES", default_value_t = 100, value_parser = clap::value_parser!(u32).range(2..=500_000))]
    pub payload: u32,
    /// Different priorities
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub priorities: u16,
    /// Runs whose median is told
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub runs: u32,
    #[command(flatten)]
    pub setup: Setup,
}

/// Measures it.
pub fn measure(source: &Source, plan: &Plan, tell: Tell<'_>) -> Result<Report> {
    let mut figures = load::figures("submit → run → result committed");
    let mut memory = Figure::new("server, most memory", "MiB", "");
    let mut report = None;
    for _ in 0..plan.runs {
        let system = source.system(&plan.setup)?;
        let environment = Environment::of(&system)?;
        let mut book = Book::default();
        let done = plan.load().run(&system, &mut book, tell)?;
        let checked = book.check(&system)?;
        done.add_to(plan.jobs, &mut figures);
        let peak = system.peak_memory_mib();
        memory.values.extend(peak.map(|[server, _]| server));
        report = Some(Report {
            bench: "throughput",
            environment,
            settings: plan.as_json(),
            figures: Vec::new(),
            curves: vec![Curve::of("request → accepted", &done.submit.latency_us)],
            samples: done.samples,
            checked,
        });
    }
    let mut report = report.expect("there is one run at least");
    report.figures.extend(figures);
    report.figures.push(memory);
    report.figures.retain(|figure| !figure.values.is_empty());
    Ok(report)
}

impl Plan {
    fn load(&self) -> Load {
        let mut load = Load::noop(
            self.jobs,
            self.batch,
            self.clients as usize,
            self.payload as usize,
        );
        if self.priorities > 1 {
            let kind = load.kinds[0].trim_end_matches('}').to_owned();
            // Around the default, so that some are above it and some below.
            let lowest = -i32::from(self.priorities / 2);
            let priorities = lowest..lowest + i32::from(self.priorities);
            load.kinds = priorities
                .map(|priority| format!("{kind},\"priority\":{priority}}}"))
                .collect();
        }
        load
    }

    fn as_json(&self) -> serde_json::Value {
        let mut settings = json!({
            "jobs": self.jobs,
            "clients": self.clients,
            "batch": self.batch,
            "payload": self.payload,
            "priorities": self.priorities,
            "runs": self.runs,
        });
        with_setup(&mut settings, &self.setup);
        settings
    }
}

/// Adds how the server was started.
pub(crate) fn with_setup(settings: &mut serde_json::Value, setup: &Setup) {
    if let (Some(all), serde_json::Value::Object(more)) =
        (settings.as_object_mut(), setup.as_json())
    {
        all.extend(more);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn priorities_lie_around_the_default_and_within_bounds() {
        let plan = |priorities| Plan {
            jobs: 1,
            clients: 1,
            batch: 1,
            payload: 2,
            priorities,
            runs: 1,
            setup: Setup::PLAIN,
        };
        assert_eq!(plan(1).load().kinds.len(), 1);
        let kinds = plan(256).load().kinds;
        assert_eq!(kinds.len(), 256);
        assert!(kinds[0].ends_with(",\"priority\":-128}"), "{}", kinds[0]);
        assert!(kinds[255].ends_with(",\"priority\":127}"), "{}", kinds[255]);
        assert!(serde_json::from_str::<serde_json::Value>(&kinds[3]).is_ok());
    }
}
