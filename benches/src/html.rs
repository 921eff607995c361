//! A report as one HTML file that needs nothing else: figures, latency curves, what was done when, the environment.
//!
//! Drawn as SVG from numbers, with the colours of the reader's choice (light or dark), printable, without a script.

use std::fmt::Write;

use crate::report::{Curve, Report, Sample, median, rounded};

/// Size of a drawing, and the room for its words.
const WIDTH: f64 = 880.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 72.0;
const RIGHT: f64 = 24.0;
const TOP: f64 = 16.0;
const BOTTOM: f64 = 44.0;
/// Most points of a line: more cannot be seen.
const POINTS_MAX: usize = 400;

const STYLE: &str = "
:root{color-scheme:light dark;--ink:#1c2430;--dim:#667085;--line:#e3e7ee;--ground:#fff;--card:#f7f8fa;
--c0:#2563eb;--c1:#e4572e;--c2:#12926a;--c3:#9b51e0;--ok:#12805c}
@media(prefers-color-scheme:dark){:root{--ink:#e8ebf0;--dim:#97a1b3;--line:#2c3442;--ground:#12161d;--card:#1a2029;
--c0:#6ea0ff;--c1:#ff8a65;--c2:#4fd1a5;--c3:#c79bff;--ok:#4fd1a5}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:960px;padding:40px 24px 64px;background:var(--ground);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,'Segoe UI',sans-serif}
h1{font-size:26px;margin:0 0 4px;letter-spacing:-.01em}
h2{font-size:15px;margin:36px 0 10px;font-weight:600}
p.sub{margin:0;color:var(--dim)}
.ok{color:var(--ok);font-weight:600;margin:14px 0 0}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(200px,1fr));gap:12px;margin:24px 0 8px}
.card{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:14px 16px}
.card b{display:block;font-size:24px;font-weight:650;letter-spacing:-.02em;font-variant-numeric:tabular-nums}
.card b small{font-size:13px;font-weight:500;color:var(--dim);letter-spacing:0;margin-left:4px}
.card span{color:var(--dim);font-size:13px}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
td,th{padding:6px 10px 6px 0;border-bottom:1px solid var(--line);text-align:left;vertical-align:top;font-weight:400}
td.n,th.n{text-align:right}
th{color:var(--dim);font-size:13px}
svg{display:block;width:100%;height:auto}
svg text{fill:var(--dim);font-size:12px;font-family:inherit}
.grid{stroke:var(--line);stroke-width:1}
.l0{stroke:var(--c0)}.l1{stroke:var(--c1)}.l2{stroke:var(--c2)}.l3{stroke:var(--c3)}
path{fill:none;stroke-width:2.25;stroke-linejoin:round;stroke-linecap:round}
.key{display:flex;flex-wrap:wrap;gap:4px 18px;font-size:13px;color:var(--dim);margin:0 0 6px}
.key i{display:inline-block;width:14px;height:3px;border-radius:2px;margin:0 6px 3px 0;vertical-align:middle}
.k0{background:var(--c0)}.k1{background:var(--c1)}.k2{background:var(--c2)}.k3{background:var(--c3)}
@media print{body{padding:0}}
";

/// The whole file.
pub fn page(report: &Report) -> String {
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" \
         content=\"width=device-width\">\n<title>hostler bench {0}</title>\n<style>{STYLE}</style>\n\
         <h1>hostler bench {0}</h1>\n<p class=\"sub\">{1}</p>\n<p class=\"ok\">✓ {2}</p>\n",
        escape(report.bench),
        escape(&report.settings_line()),
        escape(&report.checked.to_string()),
    );
    page.push_str(&cards(report));
    if report.curves.iter().any(|curve| curve.points.len() > 2) {
        page.push_str("<h2>Latency: how long the slowest share takes</h2>\n");
        page.push_str(&latencies(&report.curves));
    }
    let rates = Rates::of(&report.samples);
    if rates.points.len() > 2 {
        page.push_str("<h2>Rate over time</h2>\n");
        page.push_str(&rates.draw());
    }
    page.push_str(&figures(report));
    page.push_str("<h2>Environment</h2>\n<table>\n");
    for (name, value) in report.environment.rows() {
        let (name, value) = (escape(name), escape(&value));
        let _infallible = writeln!(page, "<tr><th>{name}</th><td>{value}</td></tr>");
    }
    page.push_str("</table>\n</html>\n");
    page
}

/// The first figures, large.
fn cards(report: &Report) -> String {
    let mut text = String::from("<div class=\"cards\">\n");
    for figure in report.figures.iter().take(4) {
        let Some(value) = median(&figure.values) else {
            continue;
        };
        let _infallible = writeln!(
            text,
            "<div class=\"card\"><b>{}<small>{}</small></b><span>{}</span></div>",
            rounded(value),
            escape(figure.unit),
            escape(figure.name)
        );
    }
    text.push_str("</div>\n");
    text
}

fn figures(report: &Report) -> String {
    let mut text = String::from(
        "<h2>Figures</h2>\n<table>\n<tr><th></th><th class=\"n\">median</th><th></th>\
         <th class=\"n\">reference</th><th class=\"n\">ratio</th><th></th></tr>\n",
    );
    for figure in &report.figures {
        let number = |value: Option<f64>| value.map(rounded).unwrap_or_default();
        let _infallible = writeln!(
            text,
            "<tr><td>{}</td><td class=\"n\">{}</td><td>{}</td><td class=\"n\">{}</td>\
             <td class=\"n\">{}</td><td>{}</td></tr>",
            escape(figure.name),
            number(median(&figure.values)),
            escape(figure.unit),
            number(median(&figure.references)),
            number(figure.ratio()),
            escape(figure.reference),
        );
    }
    text.push_str("</table>\n");
    text
}

/// A drawing's frame: values to places.
struct Axes {
    x: (f64, f64),
    y: (f64, f64),
}

impl Axes {
    fn x(&self, value: f64) -> f64 {
        LEFT + (value - self.x.0) / (self.x.1 - self.x.0).max(1e-9) * (WIDTH - LEFT - RIGHT)
    }

    fn y(&self, value: f64) -> f64 {
        let share = (value - self.y.0) / (self.y.1 - self.y.0).max(1e-9);
        HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)
    }

    fn row(&self, svg: &mut String, value: f64, word: &str) {
        let y = self.y(value);
        let (end, at, base) = (WIDTH - RIGHT, LEFT - 8.0, y + 4.0);
        let _infallible = writeln!(
            svg,
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{end}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
             <text x=\"{at}\" y=\"{base:.1}\" text-anchor=\"end\">{word}</text>"
        );
    }

    fn column(&self, svg: &mut String, value: f64, word: &str) {
        let (x, end, base) = (self.x(value), HEIGHT - BOTTOM, HEIGHT - BOTTOM + 18.0);
        let _infallible = writeln!(
            svg,
            "<line class=\"grid\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{TOP}\" y2=\"{end}\"/>\
             <text x=\"{x:.1}\" y=\"{base}\" text-anchor=\"middle\">{word}</text>"
        );
    }

    fn line(&self, svg: &mut String, colour: usize, points: impl Iterator<Item = (f64, f64)>) {
        let mut path = String::new();
        for (n, (x, y)) in points.enumerate() {
            let step = if n == 0 { 'M' } else { 'L' };
            let _infallible = write!(path, "{step}{:.1} {:.1}", self.x(x), self.y(y));
        }
        let _infallible = writeln!(svg, "<path class=\"l{}\" d=\"{path}\"/>", colour % 4);
    }
}

fn svg(label: &str, inside: &str) -> String {
    format!(
        "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{label}\">\n{inside}</svg>\n"
    )
}

fn key<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let mut text = String::from("<div class=\"key\">");
    for (n, name) in names.enumerate() {
        let (n, name) = (n % 4, escape(name));
        let _infallible = write!(text, "<span><i class=\"k{n}\"></i>{name}</span>");
    }
    text.push_str("</div>\n");
    text
}

/// Where a share stands: each nine as wide as the one before it.
fn nines(share: f64) -> f64 {
    -(1.0 - share).max(1e-6).log10()
}

/// Latency curves: share to the right, time upwards, both so that what is rare and slow can be seen.
fn latencies(curves: &[Curve]) -> String {
    let points = || curves.iter().flat_map(|curve| &curve.points);
    let least = points().map(|(_, us)| *us).min().unwrap_or(1).max(1) as f64;
    let most = points().map(|(_, us)| *us).max().unwrap_or(1).max(1) as f64;
    let furthest = points()
        .map(|(share, _)| *share)
        .filter(|share| *share < 1.0)
        .fold(0.99, f64::max);
    let axes = Axes {
        // The longest of all stands a little beyond the last share.
        x: (0.0, nines(furthest) + 0.3),
        y: (least.log10().floor(), most.log10().ceil()),
    };
    let mut inside = String::new();
    for (step, us) in (0..9).map(|power| (f64::from(power), 10f64.powi(power))) {
        if step >= axes.y.0 && step <= axes.y.1 {
            axes.row(&mut inside, step, &time(us));
        }
    }
    for (share, word) in [
        (0.0, "0"),
        (0.5, "50 %"),
        (0.9, "90 %"),
        (0.99, "99 %"),
        (0.999, "99.9 %"),
        (0.9999, "99.99 %"),
        (0.99999, "99.999 %"),
    ] {
        if share <= furthest {
            axes.column(&mut inside, nines(share), word);
        }
    }
    for (n, curve) in curves.iter().enumerate() {
        let points = curve.points.iter().map(|&(share, us)| {
            let x = if share < 1.0 { nines(share) } else { axes.x.1 };
            (x, (us.max(1) as f64).log10())
        });
        axes.line(&mut inside, n, points);
    }
    key(curves.iter().map(|curve| curve.name)) + &svg("latency by share", &inside)
}

/// Jobs a second between two looks.
struct Rates {
    /// Seconds, accepted and ended a second.
    points: Vec<(f64, f64, f64)>,
}

impl Rates {
    fn of(samples: &[Sample]) -> Self {
        // Too many looks become fewer, each over a longer time.
        let every = samples.len().div_ceil(POINTS_MAX).max(1);
        let mut before = Sample {
            seconds: 0.0,
            accepted: 0,
            ended: 0,
        };
        let mut points = Vec::new();
        for sample in samples.iter().skip(every - 1).step_by(every) {
            let time = sample.seconds - before.seconds;
            // The last look may follow at once on the one before: no rate can be told of so short a time.
            if time < 0.02 {
                continue;
            }
            let rate = |now: u64, then: u64| now.saturating_sub(then) as f64 / time;
            points.push((
                f64::midpoint(sample.seconds, before.seconds),
                rate(sample.accepted, before.accepted),
                rate(sample.ended, before.ended),
            ));
            before = *sample;
        }
        Self { points }
    }

    fn draw(&self) -> String {
        let most = self.points.iter().flat_map(|(_, a, b)| [*a, *b]);
        let most = round_up(most.fold(1.0, f64::max));
        let end = self.points.last().map_or(1.0, |point| point.0);
        let axes = Axes {
            x: (0.0, end),
            y: (0.0, most),
        };
        let mut inside = String::new();
        for quarter in 0..=4 {
            let share = f64::from(quarter) / 4.0;
            axes.row(&mut inside, most * share, &short(most * share));
        }
        let step = round_up(end / 8.0);
        let steps = (0..=8).map(|n| f64::from(n) * step);
        for at in steps.filter(|at| *at <= end) {
            let word = format!("{at:.2}");
            let word = word.trim_end_matches('0').trim_end_matches('.');
            axes.column(&mut inside, at, &format!("{word} s"));
        }
        axes.line(&mut inside, 0, self.points.iter().map(|it| (it.0, it.1)));
        axes.line(&mut inside, 1, self.points.iter().map(|it| (it.0, it.2)));
        key(["accepted a second", "ended a second"].into_iter()) + &svg("rate over time", &inside)
    }
}

/// The next of 1, 2, 4, 5, 8 times a power of ten.
fn round_up(value: f64) -> f64 {
    let power = 10f64.powf(value.log10().floor());
    let steps = [1.0, 2.0, 4.0, 5.0, 8.0, 10.0];
    let step = steps.iter().find(|step| **step * power >= value);
    step.unwrap_or(&10.0) * power
}

fn short(value: f64) -> String {
    if value >= 1e6 {
        format!("{:.1} M", value / 1e6)
    } else if value >= 1e3 {
        format!("{} k", rounded(value / 1e3))
    } else {
        format!("{value:.0}")
    }
}

fn time(us: f64) -> String {
    if us >= 1e6 {
        format!("{:.0} s", us / 1e6)
    } else if us >= 1e3 {
        format!("{:.0} ms", us / 1e3)
    } else {
        format!("{us:.0} µs")
    }
}

/// Text that stays text.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Checked;
    use crate::environment::Environment;
    use crate::report::Figure;
    use serde_json::json;

    #[test]
    fn a_page_holds_everything_and_needs_nothing() {
        let sample = |n: u32| Sample {
            seconds: f64::from(n) * 0.2,
            accepted: u64::from(n) * 100,
            ended: u64::from(n) * 90,
        };
        let report = Report {
            bench: "latency",
            environment: Environment::of_machine(),
            settings: json!({"command": "<script>"}),
            figures: vec![Figure::one("rate", "jobs/s", 12_345.0)],
            curves: vec![Curve {
                name: "a & b",
                points: vec![(0.0, 100), (0.5, 200), (0.99, 900), (1.0, 5_000)],
            }],
            samples: (1..2_000).map(sample).collect(),
            checked: Checked::default(),
        };
        let page = page(&report);
        assert!(page.contains("12,345") && page.contains("a &amp; b"));
        assert!(page.contains("&lt;script&gt;") && !page.contains("<script"));
        assert!(!page.contains("http"), "it must not fetch anything");
        assert!(!page.contains("NaN") && !page.contains("inf"));
        assert_eq!(page.matches("<svg").count(), 2);
        assert!(page.len() < 60_000, "{}", page.len());
    }

    #[test]
    fn rates_are_what_was_done_between_two_looks() {
        let sample = |seconds, ended| Sample {
            seconds,
            accepted: 0,
            ended,
        };
        let rates = Rates::of(&[sample(1.0, 50), sample(2.0, 250), sample(2.001, 251)]);
        let ended: Vec<f64> = rates.points.iter().map(|point| point.2).collect();
        assert_eq!(ended, [50.0, 200.0]);
    }
}
