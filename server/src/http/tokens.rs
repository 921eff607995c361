//! `/tokens`: an admin makes, lists and revokes access tokens.
//!
//! A secret is told once, in the answer that made it; the store gets what checks it. A revocation holds in memory before
//! it is on disk: if the disk takes nothing, it holds until the next start, and the answer says so.

use std::sync::Arc;

use bytes::Bytes;
use hostler_engine::WallTime;
use hostler_wire::Allow;
use hostler_wire::api::{ShapeError, TokenList, TokenMade, TokenRequest, TokenView};
use hostler_wire::limits::{NAME_BYTES_MAX, QUEUES_MAX};
use hyper::body::Incoming;
use hyper::header::{self, HeaderValue};
use hyper::http::request;
use hyper::{Response, StatusCode};

use crate::auth::{Bearer, Role, TOKENS_MAX, TokenChange, TokenRecord};
use crate::http::body::{self, Body};
use crate::http::guard::{self, Media};
use crate::http::params::Params;
use crate::http::problem::{Code, Refusal};
use crate::http::route::Who;
use crate::http::{Parts, asked, audit, intake, ops, query};
use crate::net::Post;

type Outcome = Result<Response<Body>, Box<Refusal>>;

/// Largest description of a token: all its queues and types of job.
const BODY_BYTES_MAX: usize = 256 << 10;
/// Longest life: ten years.
pub(super) const EXPIRES_MS_MAX: u64 = 10 * 365 * 24 * 3_600_000;
/// Most types of job a token may name.
pub(super) const ALLOW_MAX: usize = 256;

/// `POST /tokens`.
pub(super) async fn create(
    parts: &Parts,
    who: &Who,
    head: &request::Parts,
    body: Incoming,
) -> Outcome {
    Params::parse(head.uri.query(), &[])?;
    if guard::media(&head.headers)? != Media::Json {
        return Err(Refusal::new(
            Code::MediaType,
            "a token is described by one JSON object: send application/json",
        ));
    }
    let limits = &parts.config.limits;
    let body = body::read(body, BODY_BYTES_MAX, limits.http_body_timeout).await?;
    let request = read(&body)?;
    if parts.auth.count() >= TOKENS_MAX {
        return Err(Refusal::new(
            Code::TooManyTokens,
            format!(
                "there are {TOKENS_MAX} access tokens already; those that ended are forgotten after 30 days"
            ),
        ));
    }
    let role = role(&request)?;
    let token = parts
        .auth
        .make(role)
        .map_err(|error| Refusal::new(Code::Internal, error.to_string()))?;
    let mut record = TokenRecord::new(&token, role);
    describe(&mut record, &request, parts.clock.wall())?;
    record.created_by = Arc::clone(&who.bearer.id);
    let mut entry = audit::entry(parts, Some(who), who.from, "token_create");
    entry.object = Some(record.id.as_ref().into());
    entry.status = 201;
    let change = TokenChange::New(Box::new(record.clone()));
    asked(parts.writer.token(change, entry))
        .await?
        .map_err(|error| {
            Refusal::new(
                Code::StoreUnavailable,
                format!("the token could not be made durable, and is good for nothing: {error}"),
            )
        })?;
    parts.auth.add(record);
    tracing::info!(
        id = token.id,
        role = role.name(),
        "an access token was made"
    );
    let known = parts.auth.get(&token.id);
    let made = TokenMade {
        secret: token.to_string(),
        token: known.map_or_else(TokenView::default, |known| view(&known, parts.clock.wall())),
    };
    let mut response = ops::json(&made);
    *response.status_mut() = StatusCode::CREATED;
    let location = HeaderValue::from_str(&format!("/tokens/{}", token.id));
    let location = location.expect("an id is letters and digits");
    response.headers_mut().insert(header::LOCATION, location);
    Ok(response)
}

/// `GET /tokens`.
pub(super) fn list(parts: &Parts, head: &request::Parts) -> Outcome {
    Params::parse(head.uri.query(), &[])?;
    let wall = parts.clock.wall();
    let all = parts.auth.all();
    Ok(ops::json(&TokenList {
        tokens: all.iter().map(|known| view(known, wall)).collect(),
    }))
}

/// `DELETE /tokens/{id}`.
pub(super) async fn revoke(parts: &Parts, who: &Who, text: &str, head: &request::Parts) -> Outcome {
    Params::parse(head.uri.query(), &[])?;
    let known = id(text).and_then(|id| parts.auth.get(id));
    let known = known.ok_or_else(|| {
        Refusal::new(
            Code::TokenNotFound,
            "there is no such access token; `GET /tokens` lists them",
        )
    })?;
    if let Some(file) = known.file {
        return Err(Refusal::new(
            Code::TokenOfFile,
            format!(
                "this token lies in the server's DATA_DIR/{file}: remove the file and restart, and a new one is made"
            ),
        ));
    }
    let at = parts.clock.wall();
    if known.revoked().is_none() {
        known.revoke(at);
        parts.net.post(Post::TokensChanged);
        tracing::info!(id = &*known.id, "an access token was revoked");
    }
    let mut entry = audit::entry(parts, Some(who), who.from, "token_revoke");
    entry.object = Some(known.id.as_ref().into());
    entry.status = 200;
    let change = TokenChange::Revoked {
        id: Arc::clone(&known.id),
        at,
    };
    asked(parts.writer.token(change, entry))
        .await?
        .map_err(|error| {
            Refusal::new(
                Code::StoreUnavailable,
                format!(
                    "the token is good for nothing until the server's next start, but that could not be made \
                     durable: {error}; revoke it again"
                ),
            )
        })?;
    Ok(ops::json(&view(&known, at)))
}

/// A text that may be a token's id.
pub(super) fn id(text: &str) -> Option<&str> {
    let fits = text.len() == 8 && text.bytes().all(|byte| byte.is_ascii_alphanumeric());
    fits.then_some(text)
}

fn read(body: &Bytes) -> Result<TokenRequest, Box<Refusal>> {
    serde_json::from_slice(body).map_err(|error| {
        let ShapeError {
            pointer, detail, ..
        } = ShapeError::from(&error);
        if error.is_data() {
            Refusal::field(Code::InvalidToken, pointer, detail)
        } else {
            Refusal::new(Code::MalformedJson, error.to_string())
        }
    })
}

fn role(request: &TokenRequest) -> Result<Role, Box<Refusal>> {
    Role::from_name(&request.role)
        .ok_or_else(|| wrong("/role", "must be admin, submit, read or worker"))
}

/// Takes over what was asked for, as far as it makes sense.
fn describe(
    record: &mut TokenRecord,
    request: &TokenRequest,
    now: WallTime,
) -> Result<(), Box<Refusal>> {
    let admin = record.role == Role::Admin;
    if admin && !(request.queues.is_empty() && request.allow.is_empty()) {
        return Err(wrong(
            "/role",
            "an admin may do everything: leave out queues and allow, or take another role",
        ));
    }
    if let Some(name) = &request.name {
        let fits =
            (1..=NAME_BYTES_MAX).contains(&name.len()) && !name.chars().any(char::is_control);
        if !fits {
            let detail = format!("must be 1 to {NAME_BYTES_MAX} bytes without control characters");
            return Err(wrong("/name", detail));
        }
    }
    if request.queues.len() > QUEUES_MAX || request.allow.len() > ALLOW_MAX {
        let detail = format!("may name {QUEUES_MAX} queues and {ALLOW_MAX} types of job");
        return Err(wrong("", detail));
    }
    for (n, queue) in request.queues.iter().enumerate() {
        if !intake::is_queue(queue) {
            return Err(wrong(format!("/queues/{n}"), "is no queue's name"));
        }
    }
    let rates = [
        ("/requests_per_second", request.requests_per_second),
        ("/jobs_per_second", request.jobs_per_second),
    ];
    if let Some((pointer, _)) = rates.iter().find(|(_, rate)| *rate == Some(0)) {
        return Err(wrong(*pointer, "must be at least 1"));
    }
    record.expires = match request.expires_ms {
        None => None,
        Some(ms) if (1..=EXPIRES_MS_MAX).contains(&ms) => {
            Some(WallTime::from_millis(now.millis().saturating_add(ms)))
        }
        Some(_) => {
            let detail = format!("must be from 1 to {EXPIRES_MS_MAX} milliseconds");
            return Err(wrong("/expires_ms", detail));
        }
    };
    record.allow =
        Allow::of_words(&request.allow).map_err(|error| wrong("/allow", error.to_string()))?;
    record.name = request.name.as_deref().map(Into::into);
    record.queues = request
        .queues
        .iter()
        .map(|queue| queue.as_str().into())
        .collect();
    record.requests_per_second = request.requests_per_second;
    record.jobs_per_second = request.jobs_per_second;
    record.created = Some(now);
    Ok(())
}

fn wrong(pointer: impl Into<String>, detail: impl Into<String>) -> Box<Refusal> {
    Refusal::field(Code::InvalidToken, pointer, detail)
}

fn view(known: &Bearer, now: WallTime) -> TokenView {
    let record = &known.record;
    let revoked = known.revoked();
    let state = match (revoked, known.check(now)) {
        (Some(_), _) => "revoked",
        (None, Err(_)) => "expired",
        (None, Ok(())) => "active",
    };
    TokenView {
        id: known.id.to_string(),
        role: record.role.name().into(),
        state: state.into(),
        name: record.name.as_deref().map(str::to_owned),
        file: known.file.map(str::to_owned),
        queues: record
            .queues
            .iter()
            .map(|queue| queue.to_string())
            .collect(),
        allow: record.allow.words(),
        requests_per_second: record.requests_per_second,
        jobs_per_second: record.jobs_per_second,
        created_at: record.created.map(query::time),
        created_by: Some(record.created_by.to_string()).filter(|by| !by.is_empty()),
        expires_at: record.expires.map(query::time),
        revoked_at: revoked.map(query::time),
        last_used_at: known.used().map(query::time),
    }
}
