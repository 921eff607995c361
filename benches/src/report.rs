//! How figures are told: medians, their reference and ratio, the machine they are of.

use std::fs;
use std::thread;

use serde_json::{Value, json};

/// One figure over several runs.
#[derive(Clone, Debug)]
pub struct Figure {
    /// What was measured.
    pub name: &'static str,
    /// In what.
    pub unit: &'static str,
    /// With what it is compared; empty for nothing.
    pub reference: &'static str,
    /// One a run.
    pub values: Vec<f64>,
    /// One a run.
    pub references: Vec<f64>,
    /// Server CPU time a job, microseconds; one a run.
    pub cpu_us: Vec<f64>,
}

impl Figure {
    /// A figure without runs yet.
    pub fn new(name: &'static str, unit: &'static str, reference: &'static str) -> Self {
        Self {
            name,
            unit,
            reference,
            values: Vec::new(),
            references: Vec::new(),
            cpu_us: Vec::new(),
        }
    }

    fn as_json(&self) -> Value {
        json!({
            "name": self.name,
            "unit": self.unit,
            "median": median(&self.values),
            "runs": self.values,
            "reference": self.reference,
            "reference_median": median(&self.references),
            "ratio": self.ratio(),
            "server_cpu_us_per_job": median(&self.cpu_us),
        })
    }

    fn ratio(&self) -> Option<f64> {
        Some(median(&self.values)? / median(&self.references)?)
    }
}

/// The middle one, or the mean of the middle two.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        length if length % 2 == 1 => Some(sorted[middle]),
        _ => Some(f64::midpoint(sorted[middle - 1], sorted[middle])),
    }
}

/// All figures as one JSON value.
pub fn as_json(figures: &[Figure]) -> Value {
    json!({
        "machine": machine(),
        "figures": figures.iter().map(Figure::as_json).collect::<Vec<_>>(),
    })
}

/// All figures as a table.
pub fn as_table(figures: &[Figure]) -> String {
    let mut text = format!("{}\n\n", machine());
    let runs = figures.first().map_or(0, |figure| figure.values.len());
    text.push_str(&format!(
        "{:<30} {:>12} {:>8} {:>12} {:>7} {:>12}  reference\n",
        format!("medians of {runs} runs"),
        "figure",
        "unit",
        "reference",
        "ratio",
        "CPU µs/job"
    ));
    for figure in figures {
        let number = |value: Option<f64>, digits: usize| {
            value.map_or("-".to_owned(), |value| format!("{value:.digits$}"))
        };
        text.push_str(&format!(
            "{:<30} {:>12} {:>8} {:>12} {:>7} {:>12}  {}\n",
            figure.name,
            number(median(&figure.values), 0),
            figure.unit,
            number(median(&figure.references), 0),
            number(figure.ratio(), 2),
            number(median(&figure.cpu_us), 2),
            figure.reference
        ));
    }
    text
}

/// What the figures are of.
fn machine() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
        .map_or("unknown processor", |(_, model)| model.trim());
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cores = thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let build = if cfg!(debug_assertions) {
        " · the load test is a debug build"
    } else {
        ""
    };
    format!("{cores} cores, {model}, Linux {}{build}", kernel.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }

    #[test]
    fn a_figure_is_told_with_its_ratio() {
        let mut figure = Figure::new("x", "jobs/s", "bare");
        figure.values = vec![90.0];
        figure.references = vec![100.0];
        assert_eq!(as_json(&[figure.clone()])["figures"][0]["ratio"], 0.9);
        assert!(as_table(&[figure]).contains("0.90"));
    }
}
