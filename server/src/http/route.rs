//! Path and method → endpoint: one table, one match. The same paths are served with and without `/v1`.
//!
//! What was done or refused is noted here, for every endpoint at once; what the writer makes durable it notes itself.

use std::net::IpAddr;
use std::sync::Arc;

use hostler_wire::JobId;
use hyper::body::{Body as _, Incoming};
use hyper::header::{self, HeaderValue};
use hyper::http::request;
use hyper::{Method, Response};

use crate::auth::{Bearer, Right, TokenChange};
use crate::http::body::Body;
use crate::http::problem::{Code, Refusal};
use crate::http::{Parts, audit, guard, jobs, logs, ops, scrape, tokens};

/// What a path stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Route {
    Jobs,
    Job,
    Logs,
    Retry,
    Workers,
    Queues,
    Stats,
    Metrics,
    Tokens,
    Token,
    Audit,
    Healthz,
    Readyz,
    Version,
    Openapi,
}

/// Every path, and what it may be asked.
pub(super) const TABLE: &[(&str, Route, &str)] = &[
    ("/jobs", Route::Jobs, "GET, HEAD, POST"),
    ("/jobs/{id}", Route::Job, "GET, HEAD, DELETE"),
    ("/jobs/{id}/logs", Route::Logs, "GET, HEAD"),
    ("/jobs/{id}/retry", Route::Retry, "POST"),
    ("/workers", Route::Workers, "GET, HEAD"),
    ("/queues", Route::Queues, "GET, HEAD"),
    ("/stats", Route::Stats, "GET, HEAD"),
    ("/metrics", Route::Metrics, "GET, HEAD"),
    ("/tokens", Route::Tokens, "GET, HEAD, POST"),
    ("/tokens/{id}", Route::Token, "DELETE"),
    ("/audit", Route::Audit, "GET, HEAD"),
    ("/healthz", Route::Healthz, "GET, HEAD"),
    ("/readyz", Route::Readyz, "GET, HEAD"),
    ("/version", Route::Version, "GET, HEAD"),
    ("/openapi.json", Route::Openapi, "GET, HEAD"),
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

    /// Guard, access token, endpoint; and a note of what came of it.
    pub(super) async fn answer(
        &self,
        parts: &Parts,
        from: IpAddr,
        head: &mut request::Parts,
        body: Incoming,
    ) -> Result<Response<Body>, Box<Refusal>> {
        let found = self.router.at(head.uri.path()).ok();
        let asked = found.map(|found| Asked {
            route: found.value.0,
            methods: found.value.1,
            id: found.params.get("id").unwrap_or_default().to_owned(),
        });
        let mut who = None;
        let reads = guard::reads(&head.method);
        let action = asked
            .as_ref()
            .map_or("access", |asked| asked.action(&head.method));
        let is_purge = action == "cancel" && head.uri.query().is_some_and(|q| q.contains("purge"));
        let outcome = admitted(parts, from, head, body, asked.as_ref(), &mut who).await;
        audit::note(
            parts,
            audit::Done {
                reads,
                is_purge,
                from,
                who: who.as_ref(),
                action,
                object: asked.as_ref().and_then(Asked::object),
            },
            &outcome,
        );
        outcome
    }
}

/// What a request asks for.
struct Asked {
    route: Route,
    methods: &'static str,
    id: String,
}

/// Who calls.
#[derive(Clone, Debug)]
pub(super) struct Who {
    /// By which access token.
    pub(super) bearer: Arc<Bearer>,
    /// From where.
    pub(super) from: IpAddr,
}

/// Guard, access token, role, endpoint.
async fn admitted(
    parts: &Parts,
    from: IpAddr,
    head: &mut request::Parts,
    body: Incoming,
    asked: Option<&Asked>,
    told: &mut Option<Who>,
) -> Result<Response<Body>, Box<Refusal>> {
    guard::check(&parts.config, head, !body.is_end_stream())?;
    let reads = guard::reads(&head.method);
    if let Some(asked) = asked.filter(|asked| asked.route.is_public()) {
        return match (asked.route, reads) {
            (Route::Healthz, true) => ops::healthz(),
            (Route::Readyz, true) => ops::readyz(parts),
            (Route::Version, true) => ops::version(parts),
            (Route::Openapi, true) => ops::openapi(),
            _ => Err(asked.wrong_method()),
        };
    }
    let who = who(parts, from, head)?;
    *told = Some(who.clone());
    let Some(asked) = asked else {
        // Who may nothing here is not told which paths there are.
        who.bearer.may(Right::Read)?;
        return Err(Refusal::new(
            Code::NotFound,
            "there is nothing at this path; jobs are at /jobs, /jobs/ID and /jobs/ID/logs",
        ));
    };
    who.bearer.may(asked.needs(&head.method))?;
    if let (Route::Jobs, &Method::POST) = (asked.route, &head.method) {
        return jobs::submit(parts, &who, head, body).await;
    }
    // Apart, so that what a submission waits in, of which there are many thousands a second, has no room for these.
    Box::pin(answered(parts, &who, head, body, asked)).await
}

/// Every endpoint for those who are known, but the submission of jobs.
async fn answered(
    parts: &Parts,
    who: &Who,
    head: &request::Parts,
    body: Incoming,
    asked: &Asked,
) -> Result<Response<Body>, Box<Refusal>> {
    let reads = guard::reads(&head.method);
    match (asked.route, &head.method) {
        (Route::Jobs, _) if reads => jobs::list(parts, who, head).await,
        (Route::Job, _) if reads => jobs::show(parts, who, asked.job()?, head).await,
        (Route::Job, &Method::DELETE) => jobs::delete(parts, who, asked.job()?, head).await,
        (Route::Logs, _) if reads => logs::read(parts, who, asked.job()?, head).await,
        (Route::Retry, &Method::POST) => jobs::retry(parts, who, asked.job()?, head, body).await,
        (Route::Workers, _) if reads => ops::workers(parts, who, head).await,
        (Route::Queues, _) if reads => ops::queues(parts, who, head).await,
        (Route::Stats, _) if reads => ops::stats(parts, who, head).await,
        (Route::Metrics, _) if reads => scrape::metrics(parts, who, head).await,
        (Route::Tokens, &Method::POST) => tokens::create(parts, who, head, body).await,
        (Route::Tokens, _) if reads => tokens::list(parts, head),
        (Route::Token, &Method::DELETE) => tokens::revoke(parts, who, &asked.id, head).await,
        (Route::Audit, _) if reads => audit::list(parts, head).await,
        _ => Err(asked.wrong_method()),
    }
}

/// Who calls, by the access token; its use is told to the store now and then.
fn who(parts: &Parts, from: IpAddr, head: &request::Parts) -> Result<Who, Box<Refusal>> {
    let authorization = head.headers.get(header::AUTHORIZATION);
    let (now, wall) = (parts.clock.now(), parts.clock.wall());
    let bearer = parts
        .auth
        .caller(authorization.map(HeaderValue::as_bytes), from, now, wall)
        .inspect_err(|denied| tracing::debug!(?denied, %from, "an HTTP request was refused"))?;
    if bearer.touch(wall) {
        let id = Arc::clone(&bearer.id);
        parts.writer.used(TokenChange::Used { id, at: wall });
    }
    Ok(Who { bearer, from })
}

impl Asked {
    fn job(&self) -> Result<JobId, Box<Refusal>> {
        self.id
            .parse()
            .map_err(|error: hostler_wire::id::InvalidId| {
                Refusal::new(Code::JobNotFound, error.to_string())
            })
    }

    fn wrong_method(&self) -> Box<Refusal> {
        let methods = self.methods;
        Refusal::new(Code::MethodNotAllowed, format!("this path takes {methods}"))
            .with(header::ALLOW, HeaderValue::from_static(methods))
    }

    fn needs(&self, method: &Method) -> Right {
        match self.route {
            Route::Tokens | Route::Token | Route::Audit => Right::Admin,
            _ if guard::reads(method) => Right::Read,
            Route::Jobs | Route::Job | Route::Logs | Route::Retry => Right::Submit,
            Route::Workers | Route::Queues | Route::Stats | Route::Metrics => Right::Read,
            Route::Healthz | Route::Readyz | Route::Version | Route::Openapi => Right::Read,
        }
    }

    /// What it is called in the audit trail.
    fn action(&self, method: &Method) -> &'static str {
        match (self.route, method) {
            (Route::Jobs, &Method::POST) => "submit",
            (Route::Job, &Method::DELETE) => "cancel",
            (Route::Retry, &Method::POST) => "retry",
            (Route::Tokens, &Method::POST) => "token_create",
            (Route::Token, &Method::DELETE) => "token_revoke",
            _ => "access",
        }
    }

    /// To what it is done: ids only, never words of a stranger's own.
    fn object(&self) -> Option<Box<str>> {
        match self.route {
            Route::Job | Route::Logs | Route::Retry => {
                self.job().ok().map(|job| job.to_string().into())
            }
            Route::Token => tokens::id(&self.id).map(Into::into),
            Route::Jobs
            | Route::Workers
            | Route::Queues
            | Route::Stats
            | Route::Metrics
            | Route::Tokens
            | Route::Audit
            | Route::Healthz
            | Route::Readyz
            | Route::Version
            | Route::Openapi => None,
        }
    }
}

impl Route {
    /// Answers without an access token: what a load balancer asks, and what tells a client whom it talks to.
    const fn is_public(self) -> bool {
        matches!(
            self,
            Self::Healthz | Self::Readyz | Self::Version | Self::Openapi
        )
    }
}
