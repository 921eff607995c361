//! Path and method → endpoint: one table, one match. The same paths are served with and without `/v1`.

use hyper::body::{Body as _, Incoming};
use hyper::header::{self, HeaderValue};
use hyper::http::request;
use hyper::{Method, Response};

use crate::http::body::Body;
use crate::http::problem::{Code, Refusal};
use crate::http::{Parts, guard, jobs, logs, ops, scrape};

/// What a path stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Route {
    Jobs,
    Job,
    Logs,
    Retry,
    Workers,
    Queues,
    Stats,
    Metrics,
    Healthz,
    Readyz,
    Version,
}

/// Every path, and what it may be asked.
const TABLE: &[(&str, Route, &str)] = &[
    ("/jobs", Route::Jobs, "GET, HEAD, POST"),
    ("/jobs/{id}", Route::Job, "GET, HEAD, DELETE"),
    ("/jobs/{id}/logs", Route::Logs, "GET, HEAD"),
    ("/jobs/{id}/retry", Route::Retry, "POST"),
    ("/workers", Route::Workers, "GET, HEAD"),
    ("/queues", Route::Queues, "GET, HEAD"),
    ("/stats", Route::Stats, "GET, HEAD"),
    ("/metrics", Route::Metrics, "GET, HEAD"),
    ("/healthz", Route::Healthz, "GET, HEAD"),
    ("/readyz", Route::Readyz, "GET, HEAD"),
    ("/version", Route::Version, "GET, HEAD"),
];

/// The table, ready to be asked.
pub(super) struct Routes {
    router: matchit::Router<(Route, &'static str)>,
}

impl Routes {
    pub(super) fn new() -> Self {
        let mut router = matchit::Router::new();
        for (path, route, methods) in TABLE {
            for prefix in ["", "/v1"] {
                router
                    .insert(format!("{prefix}{path}"), (*route, *methods))
                    .expect("the table has each path once");
            }
        }
        Self { router }
    }

    /// Guard, access token, endpoint.
    pub(super) async fn answer(
        &self,
        parts: &Parts,
        head: &request::Parts,
        body: Incoming,
    ) -> Result<Response<Body>, Box<Refusal>> {
        guard::check(&parts.config, head, !body.is_end_stream())?;
        let found = self.router.at(head.uri.path());
        let public = found.as_ref().is_ok_and(|found| found.value.0.is_public());
        let by = if public {
            None
        } else {
            let authorization = head.headers.get(header::AUTHORIZATION);
            let caller = parts.auth.admin(authorization.map(HeaderValue::as_bytes));
            Some(
                caller
                    .inspect_err(|denied| tracing::info!(?denied, "an HTTP request was refused"))?,
            )
        };
        let found = found.map_err(|_nothing| {
            Refusal::new(
                Code::NotFound,
                "there is nothing at this path; jobs are at /jobs, /jobs/ID and /jobs/ID/logs",
            )
        })?;
        let (route, methods) = *found.value;
        let id = || {
            let text = found.params.get("id").unwrap_or_default();
            text.parse().map_err(|error: hostler_wire::id::InvalidId| {
                Refusal::new(Code::JobNotFound, error.to_string())
            })
        };
        let by = by.unwrap_or_default();
        let reads = head.method == Method::GET || head.method == Method::HEAD;
        match (route, &head.method) {
            (Route::Jobs, &Method::POST) => jobs::submit(parts, &by, head, body).await,
            (Route::Jobs, _) if reads => jobs::list(parts, head).await,
            (Route::Job, _) if reads => jobs::show(parts, id()?, head).await,
            (Route::Job, &Method::DELETE) => jobs::delete(parts, id()?, head).await,
            (Route::Logs, _) if reads => logs::read(parts, id()?, head).await,
            (Route::Retry, &Method::POST) => jobs::retry(parts, &by, id()?, head, body).await,
            (Route::Workers, _) if reads => ops::workers(parts, head).await,
            (Route::Queues, _) if reads => ops::queues(parts, head).await,
            (Route::Stats, _) if reads => ops::stats(parts, head).await,
            (Route::Metrics, _) if reads => scrape::metrics(parts, head).await,
            (Route::Healthz, _) if reads => ops::healthz(),
            (Route::Readyz, _) if reads => ops::readyz(parts),
            (Route::Version, _) if reads => ops::version(parts),
            _ => Err(
                Refusal::new(Code::MethodNotAllowed, format!("this path takes {methods}"))
                    .with(header::ALLOW, HeaderValue::from_static(methods)),
            ),
        }
    }
}

impl Route {
    /// Answers without an access token: what a load balancer asks, and what tells a client whom it talks to.
    const fn is_public(self) -> bool {
        matches!(self, Self::Healthz | Self::Readyz | Self::Version)
    }
}
