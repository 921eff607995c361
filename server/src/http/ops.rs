//! What people and machines that look after the server ask for.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Write;

use hostler_engine::QueueView;
use hostler_wire::api::{
    Done, Health, NetStats, OutputStats, QueueList, QueueStats, Stats, StoreStats, Version,
    WorkerList, WorkerView,
};
use hyper::Response;
use hyper::header::{self, HeaderValue};
use hyper::http::request;
use serde::Serialize;
use tokio::sync::oneshot;

use crate::dispatch::{Ask, Glance, WorkerStatus};
use crate::http::body::Body;
use crate::http::params::Params;
use crate::http::problem::{Code, Refusal};
use crate::http::route::Who;
use crate::http::{Parts, asked};
use crate::store::seam::Lookup;
use crate::{net, output};

/// `GET /workers`: those that are connected, and those whose grace runs.
pub(super) async fn workers(
    parts: &Parts,
    who: &Who,
    head: &request::Parts,
) -> Result<Response<Body>, Box<Refusal>> {
    Params::parse(head.uri.query(), &[])?;
    let mut workers: Vec<WorkerView> = asked(ask_workers(parts))
        .await?
        .into_iter()
        .filter_map(|worker| seen_by(who, worker))
        .map(view)
        .collect();
    workers.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(json(&WorkerList { workers }))
}

/// Figures of the whole server are for tokens that are good for all queues.
pub(super) fn of_all_queues(who: &Who) -> Result<(), Box<Refusal>> {
    if let Some(queues) = who.bearer.scope() {
        return Err(Refusal::new(
            Code::QueueNotAllowed,
            format!(
                "these are figures of all queues, and the access token is good for {} only; see /queues",
                queues.join(", ")
            ),
        ));
    }
    Ok(())
}

/// `GET /stats`: live jobs by state, slots, the oldest wait, what was done since the start.
pub(super) async fn stats(
    parts: &Parts,
    who: &Who,
    head: &request::Parts,
) -> Result<Response<Body>, Box<Refusal>> {
    Params::parse(head.uri.query(), &[])?;
    of_all_queues(who)?;
    let (glance, workers) = (ask_glance(parts), ask_workers(parts));
    let (glance, workers) = (asked(glance).await?, asked(workers).await?);
    let connected = || workers.iter().filter(|worker| worker.connected);
    let waits = waits(parts, &glance.queues).await?;
    let (counts, done) = (&glance.counts, &parts.counters);
    Ok(json(&Stats {
        scheduled: counts.scheduled,
        queued: counts.queued,
        running: counts.running,
        cancelling: counts.cancelling,
        workers: connected().count() as u64,
        slots: connected().map(|worker| u64::from(worker.slots)).sum(),
        held: workers.iter().map(|worker| u64::from(worker.held)).sum(),
        oldest_wait_ms: waits.into_iter().flatten().max(),
        since_start: Done {
            submitted: done.submitted.value(),
            succeeded: done.succeeded.value(),
            failed: done.failed.value(),
            cancelled: done.cancelled.value(),
            expired: done.expired.value(),
            skipped: done.skipped.value(),
            attempts: done.attempts.value(),
            probes: glance.probes,
        },
        store: StoreStats {
            live: done.live.value(),
            commits: done.commits.value(),
            refused: done.refused.value(),
            log_bytes: done.log_bytes.value(),
        },
        net: net_stats(parts.net.status()),
        output: output_stats(parts.output.status()),
    }))
}

fn net_stats(status: &net::Status) -> NetStats {
    NetStats {
        connections: status.connections.value(),
        accepted: status.accepted.value(),
        refused: status.refused.value(),
        unauthorised: status.unauthorised.value(),
        cut_off: status.cut_off.value(),
        pending_output_bytes: status.pending_output_bytes.value(),
    }
}

fn output_stats(status: &output::Status) -> OutputStats {
    OutputStats {
        stored_bytes: status.stored_bytes.value(),
        appended_bytes: status.appended_bytes.value(),
        failures: status.failures.value(),
        retired_segments: status.retired_segments.value(),
    }
}

/// `GET /queues`: those with jobs, and those that somebody serves.
pub(super) async fn queues(
    parts: &Parts,
    who: &Who,
    head: &request::Parts,
) -> Result<Response<Body>, Box<Refusal>> {
    Params::parse(head.uri.query(), &[])?;
    let (glance, workers) = (ask_glance(parts), ask_workers(parts));
    let (mut glance, workers) = (asked(glance).await?, asked(workers).await?);
    glance.queues.retain(|queue| who.bearer.sees(&queue.name));
    let waits = waits(parts, &glance.queues).await?;
    let mut queues: BTreeMap<String, QueueStats> = BTreeMap::new();
    for (queue, wait) in glance.queues.iter().zip(waits) {
        let stats = QueueStats {
            name: queue.name.to_string(),
            queued: queue.queued,
            running: queue.held,
            oldest_wait_ms: wait,
            ..QueueStats::default()
        };
        queues.insert(stats.name.clone(), stats);
    }
    for worker in workers.iter().filter(|worker| worker.connected) {
        for name in worker.queues.iter().filter(|name| who.bearer.sees(name)) {
            let stats = queues.entry(name.clone()).or_default();
            stats.name.clone_from(name);
            stats.workers += 1;
            stats.slots += u64::from(worker.slots);
        }
    }
    let queues = queues.into_values().collect();
    Ok(json(&QueueList { queues }))
}

/// How long the first job of each queue has been waiting; the store knows when it came. Of very many queues only some are
/// looked up.
pub(super) async fn waits(
    parts: &Parts,
    queues: &[QueueView],
) -> Result<Vec<Option<u64>>, Box<Refusal>> {
    let now = parts.clock.wall();
    let mut waits = Vec::with_capacity(queues.len());
    for (n, queue) in queues.iter().enumerate() {
        let job = queue.oldest.filter(|_| n < DATED_QUEUES_MAX);
        let found = match job {
            Some(job) => Some(asked(parts.reader.job(job)).await??),
            None => None,
        };
        waits.push(match found {
            Some(Lookup::Found(record)) => {
                let tried = record.attempts.last().map(|last| last.finished);
                let since = tried.max(record.due).max(Some(record.created));
                since.map(|since| now.millis().saturating_sub(since.millis()))
            }
            Some(Lookup::Never | Lookup::Purged) | None => None,
        });
    }
    Ok(waits)
}

/// Queues whose oldest wait is looked up for one answer.
const DATED_QUEUES_MAX: usize = 256;

/// `GET /healthz`: the loop that answers is alive.
pub(super) fn healthz() -> Result<Response<Body>, Box<Refusal>> {
    Ok(json(&Health {
        status: Cow::Borrowed("ok"),
    }))
}

/// `GET /readyz`: jobs can be submitted, and what they print can be kept.
pub(super) fn readyz(parts: &Parts) -> Result<Response<Body>, Box<Refusal>> {
    // Both are told: one disk may be full for the one and then for the other.
    let troubles = [parts.health.trouble(), parts.output.status().trouble()];
    let troubles: Vec<String> = troubles.into_iter().flatten().collect();
    if troubles.is_empty() {
        Ok(json(&Health {
            status: Cow::Borrowed("ready"),
        }))
    } else {
        Err(Refusal::new(Code::NotReady, troubles.join("; ")))
    }
}

/// `GET /version`: which program, which cluster, which start.
pub(super) fn version(parts: &Parts) -> Result<Response<Body>, Box<Refusal>> {
    let mut cluster_id = String::new();
    for byte in parts.cluster {
        write!(cluster_id, "{byte:02x}").expect("a string takes everything");
    }
    Ok(json(&Version {
        version: env!("CARGO_PKG_VERSION").into(),
        api: "v1".into(),
        protocol: hostler_wire::handshake::VERSION,
        cluster_id,
        epoch: parts.epoch.raw(),
    }))
}

/// The description of this interface: made by the tests of `openapi`.
pub(super) const OPENAPI: &str = include_str!("../../../docs/openapi.json");

/// `GET /openapi.json`: what may be asked, and what is answered.
pub(super) fn openapi() -> Result<Response<Body>, Box<Refusal>> {
    let mut response = Response::new(Body::full(OPENAPI));
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    Ok(response)
}

/// A 200 with a JSON body.
pub(super) fn json<T: Serialize>(value: &T) -> Response<Body> {
    let mut response = Response::new(Body::json(value));
    let headers = response.headers_mut();
    // With those that every answer gets.
    headers.reserve(6);
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    response
}

/// RFC 8288: the same question from where this page ended.
pub(super) fn next_page(head: &request::Parts, next: &str) -> HeaderValue {
    let mut query: Vec<_> = head
        .uri
        .query()
        .unwrap_or_default()
        .split('&')
        .filter(|part| !part.is_empty() && !part.starts_with("cursor="))
        .map(str::to_owned)
        .collect();
    query.push(format!("cursor={next}"));
    let link = format!("<{}?{}>; rel=\"next\"", head.uri.path(), query.join("&"));
    HeaderValue::from_str(&link).expect("path and query were in the request's head")
}

pub(super) fn ask_glance(parts: &Parts) -> oneshot::Receiver<Glance> {
    let (reply, glance) = oneshot::channel();
    parts.dispatch.ask(Ask::Glance { reply });
    glance
}

pub(super) fn ask_workers(parts: &Parts) -> oneshot::Receiver<Vec<WorkerStatus>> {
    let (reply, workers) = oneshot::channel();
    parts.dispatch.ask(Ask::Workers { reply });
    workers
}

/// A worker as far as the caller's token is good for its queues.
fn seen_by(who: &Who, mut worker: WorkerStatus) -> Option<WorkerStatus> {
    worker.queues.retain(|queue| who.bearer.sees(queue));
    let seen = who.bearer.scope().is_none() || !worker.queues.is_empty();
    seen.then_some(worker)
}

fn view(worker: WorkerStatus) -> WorkerView {
    WorkerView {
        name: worker.name.into(),
        connected: worker.connected,
        draining: worker.draining,
        slots: worker.slots,
        held: worker.held,
        last_heard_ms: worker.last_heard_ms,
        queues: worker.queues,
        labels: worker.labels.into_iter().collect(),
    }
}
