//! `GET /metrics`: what the threads count, as Prometheus reads it (OpenMetrics text).
//!
//! Nothing is counted for this: the figures are those of `/stats` and `/queues`, and what each thread shows of itself.
//! Labels are few and bounded: states, outcomes, and the names of queues, of which the first [`QUEUES_MAX`] are told
//! and the rest counted. Never a job's id, name or label.

use std::sync::atomic::{AtomicU64, Ordering};

use hostler_wire::JobState;
use hyper::Response;
use hyper::header::{self, HeaderValue};
use hyper::http::request;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use crate::dispatch::{Glance, WorkerStatus};
use crate::http::body::Body;
use crate::http::ops::{self, ask_glance, ask_workers, waits};
use crate::http::params::Params;
use crate::http::problem::{Code, Refusal};
use crate::http::route::Who;
use crate::http::{Parts, asked};
use crate::metrics::{Counter, Usage};
use crate::output::Retired;

/// Queues that have rows of their own in one answer.
const QUEUES_MAX: usize = 256;
const MEDIA_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Names and values that tell one row of a metric from another.
type Labels = Vec<(&'static str, String)>;

/// One metric and its rows.
#[derive(Debug)]
struct Metric {
    name: &'static str,
    help: &'static str,
    rows: Rows,
}

#[derive(Debug)]
enum Rows {
    Counter(Vec<(Labels, f64)>),
    Gauge(Vec<(Labels, f64)>),
}

/// The endpoint.
pub(super) async fn metrics(
    parts: &Parts,
    who: &Who,
    head: &request::Parts,
) -> Result<Response<Body>, Box<Refusal>> {
    Params::parse(head.uri.query(), &[])?;
    ops::of_all_queues(who)?;
    let (glance, workers) = (ask_glance(parts), ask_workers(parts));
    let (mut glance, workers) = (asked(glance).await?, asked(workers).await?);
    glance.queues.sort_by(|a, b| a.name.cmp(&b.name));
    let waits = waits(parts, &glance.queues).await?;
    let mut metrics = Metrics::default();
    metrics.of_jobs(parts, &glance);
    metrics.of_queues(&glance, &waits);
    metrics.of_workers(&workers);
    metrics.of_threads(parts);
    metrics.of_callers(parts);
    metrics.of_process(parts);
    let mut registry = Registry::default();
    registry.register_collector(Box::new(metrics));
    let mut text = String::new();
    text::encode(&mut text, &registry)
        .map_err(|error| Refusal::new(Code::Internal, format!("metrics: {error}")))?;
    let mut response = Response::new(Body::full(text));
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
    Ok(response)
}

#[derive(Debug, Default)]
struct Metrics(Vec<Metric>);

impl Metrics {
    fn of_jobs(&mut self, parts: &Parts, glance: &Glance) {
        let done = &parts.counters;
        self.counter(
            "hostler_jobs_submitted",
            "Jobs accepted since the start",
            &done.submitted,
        );
        let outcomes = [
            (JobState::Succeeded, &done.succeeded),
            (JobState::Failed, &done.failed),
            (JobState::Cancelled, &done.cancelled),
            (JobState::Expired, &done.expired),
            (JobState::Skipped, &done.skipped),
        ];
        let rows = outcomes.map(|(state, count)| (one("outcome", state.name()), float(count)));
        self.push(
            "hostler_jobs_finished",
            "Jobs ended since the start",
            Rows::Counter(rows.into()),
        );
        self.counter(
            "hostler_attempts_again",
            "Attempts that ended without ending their job",
            &done.attempts,
        );
        let counts = &glance.counts;
        let states = [
            (JobState::Scheduled, counts.scheduled),
            (JobState::Queued, counts.queued),
            (JobState::Running, counts.running),
            (JobState::Cancelling, counts.cancelling),
        ];
        let rows = states.map(|(state, count)| (one("state", state.name()), count as f64));
        self.push(
            "hostler_jobs",
            "Jobs that have not ended, by state",
            Rows::Gauge(rows.into()),
        );
        self.gauge(
            "hostler_jobs_live",
            "Jobs that have not ended, as the store counts them",
            &done.live,
        );
        self.push(
            "hostler_probes",
            "Frames of questions sent to workers",
            Rows::Counter(vec![(Vec::new(), glance.probes as f64)]),
        );
        self.counter(
            "hostler_results_too_large",
            "Results that were too large to be kept, and are named instead",
            &done.results_too_large,
        );
        self.push(
            "hostler_bodies_resident_bytes",
            "Bytes of bodies in memory, of jobs that wait",
            Rows::Gauge(vec![(Vec::new(), glance.resident_bytes as f64)]),
        );
        self.push(
            "hostler_bodies_read",
            "Bodies read back from disk, because there was no room in memory when they came, or for a retry, a delay or a start",
            Rows::Counter(vec![(Vec::new(), glance.bodies_read as f64)]),
        );
    }

    fn of_queues(&mut self, glance: &Glance, waits: &[Option<u64>]) {
        let told = || glance.queues.iter().take(QUEUES_MAX);
        let state = |name: &str, state: JobState| {
            let queue = ("queue", name.to_owned());
            vec![queue, ("state", state.name().to_owned())]
        };
        let jobs = told().flat_map(|queue| {
            [
                (state(&queue.name, JobState::Queued), queue.queued as f64),
                (state(&queue.name, JobState::Running), queue.held as f64),
            ]
        });
        self.push(
            "hostler_queue_jobs",
            "Jobs of a queue that wait for a slot, or are with workers",
            Rows::Gauge(jobs.collect()),
        );
        let oldest = told().zip(waits).filter_map(|(queue, wait)| {
            let seconds = (*wait)? as f64 / 1_000.0;
            Some((one("queue", &queue.name), seconds))
        });
        self.push(
            "hostler_queue_oldest_seconds",
            "How long the first job of a queue has been waiting",
            Rows::Gauge(oldest.collect()),
        );
        let rest = glance.queues.len().saturating_sub(QUEUES_MAX);
        self.push(
            "hostler_queues_omitted",
            "Queues beyond those that have rows here",
            Rows::Gauge(vec![(Vec::new(), rest as f64)]),
        );
    }

    fn of_workers(&mut self, workers: &[WorkerStatus]) {
        let state = |worker: &WorkerStatus| match (worker.connected, worker.draining) {
            (false, _) => "absent",
            (true, true) => "draining",
            (true, false) => "connected",
        };
        let rows = ["connected", "draining", "absent"].map(|name| {
            let count = workers
                .iter()
                .filter(|worker| state(worker) == name)
                .count();
            (one("state", name), count as f64)
        });
        self.push(
            "hostler_workers",
            "Workers, by state; an absent one's grace runs",
            Rows::Gauge(rows.into()),
        );
        let slots: u64 = workers
            .iter()
            .filter(|worker| worker.connected)
            .map(|worker| u64::from(worker.slots))
            .sum();
        let held: u64 = workers.iter().map(|worker| u64::from(worker.held)).sum();
        self.push(
            "hostler_slots",
            "Jobs that connected workers run at once",
            Rows::Gauge(vec![(Vec::new(), slots as f64)]),
        );
        self.push(
            "hostler_attempts_held",
            "Attempts that are with workers, those ahead of a slot included",
            Rows::Gauge(vec![(Vec::new(), held as f64)]),
        );
        let ahead: u64 = workers
            .iter()
            .map(|worker| u64::from(worker.held.saturating_sub(worker.slots)))
            .sum();
        self.push(
            "hostler_attempts_ahead",
            "Of these, those beyond their worker's slots, given ahead",
            Rows::Gauge(vec![(Vec::new(), ahead as f64)]),
        );
    }

    fn of_threads(&mut self, parts: &Parts) {
        let store = &parts.counters;
        self.counter("hostler_store_commits", "Commits made", &store.commits);
        self.counter(
            "hostler_store_commits_refused",
            "Commits refused, for a full disk or a lock",
            &store.refused,
        );
        self.gauge(
            "hostler_wal_bytes",
            "Bytes in the database's log",
            &store.log_bytes,
        );
        let net = parts.net.status();
        self.gauge(
            "hostler_worker_connections",
            "Open connections on the worker port",
            &net.connections,
        );
        self.gauge("hostler_worker_sessions", "Workers joined", &net.sessions);
        for (name, help, counter) in [
            (
                "hostler_worker_connections_accepted",
                "Connections accepted on the worker port",
                &net.accepted,
            ),
            (
                "hostler_worker_connections_refused",
                "Of these told to go, for any reason",
                &net.refused,
            ),
            (
                "hostler_worker_connections_unauthorised",
                "Of these for a wrong token",
                &net.unauthorised,
            ),
            (
                "hostler_worker_connections_cut_off",
                "Workers cut off because they did not read",
                &net.cut_off,
            ),
            (
                "hostler_worker_connections_timed_out",
                "Connections closed because they had not proven themselves in time",
                &net.timed_out,
            ),
            (
                "hostler_worker_tls_failed",
                "Connections that did not come to speak TLS with us",
                &net.tls_failed,
            ),
            ("hostler_worker_frames", "Frames from workers", &net.frames),
        ] {
            self.counter(name, help, counter);
        }
        self.gauge(
            "hostler_output_pending_bytes",
            "Output that waits for the output thread",
            &net.pending_output_bytes,
        );
        self.counter(
            "hostler_output_pipes_held",
            "Times that an output socket was left unread because so much waited",
            &net.held_pipes,
        );
        self.of_output(parts);
    }

    fn of_output(&mut self, parts: &Parts) {
        let output = parts.output.status();
        self.counter(
            "hostler_output_appended_bytes",
            "Output written since the start",
            &output.appended_bytes,
        );
        self.gauge(
            "hostler_output_stored_bytes",
            "Output on disk",
            &output.stored_bytes,
        );
        self.counter(
            "hostler_output_failures",
            "Batches of output that could not be stored",
            &output.failures,
        );
        self.counter(
            "hostler_output_segments_retired",
            "Files of output deleted for age or size",
            &output.retired_segments,
        );
        let rows = Retired::ALL.map(|why| {
            let count = float(&output.retired_bytes[why as usize]);
            (one("limit", why.limit()), count)
        });
        self.push(
            "hostler_output_retired_bytes",
            "Bytes of output that went from the disk for age or size, by the limit",
            Rows::Counter(rows.into()),
        );
        self.counter(
            "hostler_output_cut_bytes",
            "Bytes that jobs wrote beyond their limit, or faster than it goes, and that are not kept",
            &output.cut_bytes,
        );
        self.counter(
            "hostler_output_cut_attempts",
            "Attempts of which something was cut",
            &output.cut_attempts,
        );
    }

    /// Who was not let in, and what was too much.
    fn of_callers(&mut self, parts: &Parts) {
        let open = parts.counts.connections.load(Ordering::Relaxed) as f64;
        self.push(
            "hostler_http_connections",
            "Open HTTP connections",
            Rows::Gauge(vec![(Vec::new(), open)]),
        );
        let timed_out = parts.counts.timed_out.load(Ordering::Relaxed) as f64;
        self.push(
            "hostler_http_timed_out",
            "HTTP connections closed because nothing came, or nothing was taken, in time",
            Rows::Counter(vec![(Vec::new(), timed_out)]),
        );
        let refused = parts.counts.by_code();
        let refused = refused.map(|(code, count)| (one("code", code), count as f64));
        self.push(
            "hostler_http_refused",
            "Requests that got a problem as their answer, by its code, and connections too many",
            Rows::Counter(refused.collect()),
        );
        let counts = parts.auth.counts();
        let told = |count: &AtomicU64| count.load(Ordering::Relaxed) as f64;
        let mut rows = vec![
            (
                "hostler_http_unauthorised",
                "HTTP requests without an access token that is good for anything",
                told(&counts.denied),
            ),
            (
                "hostler_http_rate_limited",
                "HTTP requests above the rate of their access token",
                told(&counts.rate_limited),
            ),
        ];
        if let Some(tls) = &parts.tls {
            rows.extend([
                (
                    "hostler_http_tls_failed",
                    "HTTP connections that did not come to speak TLS with us",
                    tls.failed_handshakes() as f64,
                ),
                (
                    "hostler_tls_reloads",
                    "Times the certificates were read again",
                    tls.reloads() as f64,
                ),
                (
                    "hostler_tls_reloads_failed",
                    "Times they were no use, and the old ones stayed",
                    tls.failed_reloads() as f64,
                ),
            ]);
        }
        for (name, help, count) in rows {
            self.push(name, help, Rows::Counter(vec![(Vec::new(), count)]));
        }
    }

    fn of_process(&mut self, parts: &Parts) {
        let trouble = parts.health.trouble();
        let ready = trouble
            .or_else(|| parts.output.status().trouble())
            .is_none();
        self.push(
            "hostler_ready",
            "1 if /readyz says so",
            Rows::Gauge(vec![(Vec::new(), f64::from(u8::from(ready)))]),
        );
        let version = one("version", env!("CARGO_PKG_VERSION"));
        self.push(
            "hostler_build_info",
            "Which program this is",
            Rows::Gauge(vec![(version, 1.0)]),
        );
        let usage = Usage::of_this_process();
        let gauges = [
            (
                "process_resident_memory_bytes",
                "Memory in use",
                usage.resident_bytes,
            ),
            (
                "process_virtual_memory_bytes",
                "Memory mapped",
                usage.virtual_bytes,
            ),
            ("process_open_fds", "Open descriptors", usage.descriptors),
            (
                "process_max_fds",
                "Most descriptors allowed",
                usage.descriptors_max,
            ),
            ("process_threads", "Threads", usage.threads),
            (
                "process_start_time_seconds",
                "When it started, seconds since 1970",
                usage.started_seconds,
            ),
        ];
        for (name, help, value) in gauges {
            // What this system does not tell has no row.
            let rows = value.into_iter().map(|value| (Vec::new(), value)).collect();
            self.push(name, help, Rows::Gauge(rows));
        }
        let cpu = usage.cpu_seconds.into_iter();
        self.push(
            "process_cpu_seconds",
            "CPU time used",
            Rows::Counter(cpu.map(|seconds| (Vec::new(), seconds)).collect()),
        );
    }

    fn counter(&mut self, name: &'static str, help: &'static str, counter: &Counter) {
        self.push(
            name,
            help,
            Rows::Counter(vec![(Vec::new(), float(counter))]),
        );
    }

    fn gauge(&mut self, name: &'static str, help: &'static str, counter: &Counter) {
        self.push(name, help, Rows::Gauge(vec![(Vec::new(), float(counter))]));
    }

    fn push(&mut self, name: &'static str, help: &'static str, rows: Rows) {
        self.0.push(Metric { name, help, rows });
    }
}

impl Collector for Metrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        for metric in &self.0 {
            let (kind, rows) = match &metric.rows {
                Rows::Counter(rows) => (MetricType::Counter, rows),
                Rows::Gauge(rows) => (MetricType::Gauge, rows),
            };
            let encode = |row: MetricEncoder<'_>, value: f64| match metric.rows {
                Rows::Counter(_) => ConstCounter::new(value).encode(row),
                Rows::Gauge(_) => ConstGauge::new(value).encode(row),
            };
            let mut family = encoder.encode_descriptor(metric.name, metric.help, None, kind)?;
            if let [(labels, value)] = &rows[..]
                && labels.is_empty()
            {
                encode(family, *value)?;
                continue;
            }
            for (labels, value) in rows {
                encode(family.encode_family(labels)?, *value)?;
            }
        }
        Ok(())
    }
}

fn one(name: &'static str, value: &str) -> Labels {
    vec![(name, value.to_owned())]
}

fn float(counter: &Counter) -> f64 {
    counter.value() as f64
}
