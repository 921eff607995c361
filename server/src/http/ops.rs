//! What people and machines that look after the server ask for.

use std::borrow::Cow;
use std::fmt::Write;

use hostler_wire::api::{Health, Stats, Version, WorkerList, WorkerView};
use hyper::Response;
use hyper::header::{self, HeaderValue};
use hyper::http::request;
use serde::Serialize;
use tokio::sync::oneshot;

use crate::dispatch::Ask;
use crate::http::body::Body;
use crate::http::params::Params;
use crate::http::problem::{Code, Refusal};
use crate::http::{Parts, asked};

/// `GET /workers`: those that are connected, and those whose grace runs.
pub(super) async fn workers(
    parts: &Parts,
    head: &request::Parts,
) -> Result<Response<Body>, Box<Refusal>> {
    Params::parse(head.uri.query(), &[])?;
    let mut workers: Vec<WorkerView> = asked(ask_workers(parts))
        .await?
        .into_iter()
        .map(view)
        .collect();
    workers.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(json(&WorkerList { workers }))
}

/// `GET /stats`: live jobs by state, slots.
pub(super) async fn stats(
    parts: &Parts,
    head: &request::Parts,
) -> Result<Response<Body>, Box<Refusal>> {
    Params::parse(head.uri.query(), &[])?;
    let (reply, counts) = oneshot::channel();
    parts.dispatch.ask(Ask::Counts { reply });
    let workers = ask_workers(parts);
    let (counts, workers) = (asked(counts).await?, asked(workers).await?);
    let connected = || workers.iter().filter(|worker| worker.connected);
    Ok(json(&Stats {
        scheduled: counts.scheduled,
        queued: counts.queued,
        running: counts.running,
        cancelling: counts.cancelling,
        workers: connected().count() as u64,
        slots: connected().map(|worker| u64::from(worker.slots)).sum(),
    }))
}

/// `GET /healthz`: the loop that answers is alive.
pub(super) fn healthz() -> Result<Response<Body>, Box<Refusal>> {
    Ok(json(&Health {
        status: Cow::Borrowed("ok"),
    }))
}

/// `GET /readyz`: jobs can be submitted, and what they print can be kept.
pub(super) fn readyz(parts: &Parts) -> Result<Response<Body>, Box<Refusal>> {
    let trouble = parts.health.trouble();
    match trouble.or_else(|| parts.output.status().trouble()) {
        None => Ok(json(&Health {
            status: Cow::Borrowed("ready"),
        })),
        Some(trouble) => Err(Refusal::new(Code::NotReady, trouble)),
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

/// A 200 with a JSON body.
pub(super) fn json<T: Serialize>(value: &T) -> Response<Body> {
    let mut response = Response::new(Body::json(value));
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    response
}

fn ask_workers(parts: &Parts) -> oneshot::Receiver<Vec<crate::dispatch::WorkerStatus>> {
    let (reply, workers) = oneshot::channel();
    parts.dispatch.ask(Ask::Workers { reply });
    workers
}

fn view(worker: crate::dispatch::WorkerStatus) -> WorkerView {
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
