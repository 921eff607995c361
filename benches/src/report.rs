//! What a run has to tell: figures with their medians, references and ratios, latency curves, what was done when, the
//! environment it is of, and that nothing was lost. For people, for programs, and beside an older one.

use std::fmt::Write;

use anyhow::{Context as _, Result, ensure};
use hdrhistogram::Histogram;
use serde_json::{Value, json};

use crate::check::Checked;
use crate::environment::Environment;

/// Percentiles of a curve: finer the further out.
const QUANTILES: [f64; 20] = [
    0.0, 0.1, 0.25, 0.5, 0.75, 0.8, 0.85, 0.9, 0.925, 0.95, 0.97, 0.98, 0.99, 0.995, 0.998, 0.999,
    0.9995, 0.9999, 0.99999, 1.0,
];

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
}

/// A distribution of times.
#[derive(Clone, Debug)]
pub struct Curve {
    /// Of what.
    pub name: &'static str,
    /// Share of the times, and the time in microseconds that so many do not exceed.
    pub points: Vec<(f64, u64)>,
}

/// What was done by then.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// Since the beginning.
    pub seconds: f64,
    /// Jobs accepted so far.
    pub accepted: u64,
    /// Jobs ended so far.
    pub ended: u64,
}

/// Everything a run has to tell.
#[derive(Clone, Debug)]
pub struct Report {
    /// Which bench.
    pub bench: &'static str,
    /// Where.
    pub environment: Environment,
    /// With which settings.
    pub settings: Value,
    /// The figures.
    pub figures: Vec<Figure>,
    /// Of the last run.
    pub curves: Vec<Curve>,
    /// Of the last run.
    pub samples: Vec<Sample>,
    /// Of all runs.
    pub checked: Checked,
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
        }
    }

    /// A figure of one run.
    pub fn one(name: &'static str, unit: &'static str, value: f64) -> Self {
        let mut figure = Self::new(name, unit, "");
        figure.values.push(value);
        figure
    }

    /// To its reference, run by run; the median of that.
    pub fn ratio(&self) -> Option<f64> {
        let pairs = self.values.iter().zip(&self.references);
        median(
            &pairs
                .map(|(value, other)| value / other)
                .collect::<Vec<_>>(),
        )
    }

    /// The lowest and the highest ratio of a run.
    pub fn ratio_range(&self) -> Option<(f64, f64)> {
        let pairs = self.values.iter().zip(&self.references);
        range(
            &pairs
                .map(|(value, other)| value / other)
                .collect::<Vec<_>>(),
        )
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
        })
    }
}

impl Curve {
    /// Of times in microseconds.
    pub fn of(name: &'static str, times: &Histogram<u64>) -> Self {
        let points = QUANTILES
            .iter()
            // What lies beyond the last time but one is the same point again.
            .filter(|q| **q == 1.0 || (1.0 - **q) * times.len() as f64 >= 1.0)
            .map(|&quantile| (quantile, times.value_at_quantile(quantile)));
        Self {
            name,
            points: points.collect(),
        }
    }

    fn as_json(&self) -> Value {
        json!({"name": self.name, "points": self.points})
    }
}

impl Sample {
    fn as_json(&self) -> Value {
        json!({"seconds": self.seconds, "accepted": self.accepted, "ended": self.ended})
    }
}

impl Report {
    /// For programs, and for `--compare`.
    pub fn as_json(&self) -> Value {
        json!({
            "bench": self.bench,
            "environment": self.environment.as_json(),
            "settings": self.settings,
            "figures": self.figures.iter().map(Figure::as_json).collect::<Vec<_>>(),
            "curves": self.curves.iter().map(Curve::as_json).collect::<Vec<_>>(),
            "samples": self.samples.iter().map(Sample::as_json).collect::<Vec<_>>(),
            "checked": self.checked.as_json(),
        })
    }

    /// For people.
    pub fn as_table(&self) -> String {
        let mut text = self.head();
        text.push_str(&table(&self.figures));
        let _infallible = writeln!(text, "\n{}", self.checked);
        text
    }

    /// Beside an older result of the same bench: ratios new to old.
    pub fn compare(&self, old: &Value) -> Result<String> {
        let bench = old["bench"].as_str().unwrap_or("something else");
        ensure!(
            bench == self.bench,
            "the old result is of {bench}, not of {}",
            self.bench
        );
        let olds = old["figures"]
            .as_array()
            .context("an old result has figures")?;
        let mut text = format!("{:<34}{:>13}{:>13}{:>8}\n", "", "then", "now", "ratio");
        for figure in &self.figures {
            let then = olds
                .iter()
                .find(|old| old["name"] == figure.name && old["unit"] == figure.unit)
                .and_then(|old| old["median"].as_f64());
            let (Some(now), Some(then)) = (median(&figure.values), then) else {
                continue;
            };
            let ratio = now / then;
            let better = figure.unit.ends_with("/s") == (ratio > 1.0);
            let word = match (ratio - 1.0).abs() < 0.02 {
                true => "",
                false if better => "better",
                false => "worse",
            };
            let what = format!("{}, {}", figure.name, figure.unit);
            let (then, now) = (rounded(then), rounded(now));
            let _infallible = writeln!(text, "{what:<34}{then:>13}{now:>13}{ratio:>8.2}  {word}");
        }
        if old["settings"] != self.settings {
            text.push_str("the settings were others then\n");
        }
        let now = self.environment.as_json();
        if ["cores", "processor", "debug_build"]
            .iter()
            .any(|name| old["environment"][name] != now[name])
        {
            text.push_str("the machine or the build was another then\n");
        }
        Ok(text)
    }

    fn head(&self) -> String {
        let mut text = String::new();
        for (name, value) in self.environment.rows() {
            let _infallible = writeln!(text, "{name:<12}{value}");
        }
        let _infallible = writeln!(text, "{:<12}{}\n", "settings", self.settings_line());
        text
    }

    /// The settings on one line.
    pub fn settings_line(&self) -> String {
        let settings = self.settings.as_object();
        let pairs = settings.into_iter().flatten();
        let words: Vec<String> = pairs
            .map(|(name, value)| match value.as_str() {
                Some(text) => format!("{name} {text}"),
                None => format!("{name} {value}"),
            })
            .collect();
        words.join(" · ")
    }
}

/// Figures as a table.
pub fn table(figures: &[Figure]) -> String {
    let runs = figures.iter().map(|figure| figure.values.len()).max();
    let title = match runs {
        Some(1) | None => String::new(),
        Some(runs) => format!("medians of {runs} runs"),
    };
    let compared = figures.iter().any(|figure| !figure.references.is_empty());
    let mut text = String::new();
    if compared || !title.is_empty() {
        let heads = if compared {
            ["reference", "ratio"]
        } else {
            [""; 2]
        };
        let head = format!("{title:<34}{:>21}{:>13}{:>8}", "", heads[0], heads[1]);
        text.push_str(&format!("{}\n", head.trim_end()));
    }
    for figure in figures {
        let value = median(&figure.values).map_or("-".into(), rounded);
        let mut line = format!("{:<34}{value:>13} {:<7}", figure.name, figure.unit);
        if let (Some(other), Some(ratio)) = (median(&figure.references), figure.ratio()) {
            let other = rounded(other);
            line.push_str(&format!("{other:>13}{ratio:>8.2}  {}", figure.reference));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
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

/// The least and the greatest.
pub fn range(values: &[f64]) -> Option<(f64, f64)> {
    let least = values.iter().copied().min_by(f64::total_cmp)?;
    let greatest = values.iter().copied().max_by(f64::total_cmp)?;
    Some((least, greatest))
}

/// A number with the digits a person reads.
pub fn rounded(value: f64) -> String {
    if value.abs() < 10.0 {
        return format!("{value:.2}");
    }
    if value.abs() < 100.0 {
        return format!("{value:.1}");
    }
    let digits = format!("{:.0}", value.abs());
    let mut text = String::new();
    for (n, digit) in digits.chars().enumerate() {
        if n > 0 && (digits.len() - n).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    if value < 0.0 {
        text.insert(0, '-');
    }
    text
}

/// A quantile of times, for people.
pub fn us(times: &Histogram<u64>, quantile: f64) -> f64 {
    times.value_at_quantile(quantile) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(values: &[f64]) -> Report {
        let mut rate = Figure::new("x", "jobs/s", "bare");
        rate.values = values.to_vec();
        rate.references = vec![100.0; values.len()];
        Report {
            bench: "throughput",
            environment: Environment::of_machine(),
            settings: json!({"jobs": 7, "durability": "fsync"}),
            figures: vec![rate, Figure::one("late", "µs", 10.0)],
            curves: Vec::new(),
            samples: Vec::new(),
            checked: Checked::default(),
        }
    }

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }

    #[test]
    fn a_figure_is_told_with_its_ratio() {
        let report = report(&[90.0]);
        assert_eq!(report.as_json()["figures"][0]["ratio"], 0.9);
        assert!(report.as_table().contains("0.90  bare"));
        assert!(report.as_table().contains("jobs 7"));
    }

    #[test]
    fn a_comparison_says_what_is_better() {
        let old = report(&[50.0]).as_json();
        let mut new = report(&[100.0]);
        let text = new.compare(&old).unwrap();
        assert!(text.contains("2.00  better"), "{text}");
        assert!(!text.contains("others"), "{text}");
        new.figures[1].values = vec![20.0];
        new.settings = json!({"jobs": 8});
        let text = new.compare(&old).unwrap();
        assert!(text.contains("2.00  worse"), "{text}");
        assert!(text.contains("the settings were others then"), "{text}");
        new.bench = "latency";
        assert!(new.compare(&old).is_err());
    }

    #[test]
    fn numbers_are_readable() {
        for (value, text) in [
            (1.234, "1.23"),
            (12.34, "12.3"),
            (999.0, "999"),
            (1_234_567.8, "1,234,568"),
        ] {
            assert_eq!(rounded(value), text);
        }
    }

    #[test]
    fn a_curve_ends_where_its_times_do() {
        let mut times = Histogram::new(3).unwrap();
        for us in 1..=100 {
            times.record(us).unwrap();
        }
        let curve = Curve::of("x", &times);
        assert_eq!(curve.points.last(), Some(&(1.0, 100)));
        assert_eq!(curve.points[curve.points.len() - 2].0, 0.99);
    }
}
