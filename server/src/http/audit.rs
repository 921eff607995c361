//! `GET /audit`, and the notes every endpoint leaves.
//!
//! Noted is what changes something or was meant to, and whoever was refused for who they are. Accepted jobs and tokens
//! are noted by the writer, in the commit that makes them durable.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use hostler_engine::WallTime;
use hostler_wire::api::{AuditList, AuditView, Timestamp};
use hyper::http::request;
use hyper::{Response, header};

use crate::http::body::Body;
use crate::http::params::{Params, wrong};
use crate::http::problem::{Code, Refusal};
use crate::http::route::Who;
use crate::http::{Parts, asked, ops, query};
use crate::store::seam::{AuditEntry, AuditQuery};

/// Most entries on a page, and how many without a word.
const PAGE_MAX: usize = 1_000;
const PAGE: usize = 100;

/// What was asked, and by whom.
pub(super) struct Done<'a> {
    /// It changes nothing.
    pub(super) reads: bool,
    /// It is a cancel that asks for more.
    pub(super) is_purge: bool,
    pub(super) from: IpAddr,
    /// Known by their token.
    pub(super) who: Option<&'a Who>,
    pub(super) action: &'static str,
    pub(super) object: Option<Box<str>>,
}

/// Notes what came of a request, if it is one of those that are noted.
pub(super) fn note(parts: &Parts, done: Done<'_>, outcome: &Result<Response<Body>, Box<Refusal>>) {
    let (status, code) = match outcome {
        // What the writer commits it notes itself; a replayed answer changes nothing.
        Ok(response) if done.action == "cancel" => (response.status().as_u16(), ""),
        Ok(_) => return,
        Err(refusal) => (refusal.code.status(), refusal.code.name()),
    };
    if done.reads && !matches!(status, 401 | 403) {
        return;
    }
    let unsaid = &parts.auth.counts().unsaid;
    if done.who.is_none() && code == Code::RateLimited.name() {
        // One of very many: counted now, told with the next that is told.
        unsaid.fetch_add(1, Ordering::Relaxed);
        return;
    }
    let mut entry = entry(parts, done.who, done.from, done.action);
    if done.is_purge {
        entry.action = Cow::Borrowed("purge");
    }
    entry.object = done.object;
    entry.status = status;
    entry.code = Cow::Borrowed(code);
    parts.writer.note(entry);
    let uncounted = unsaid.swap(0, Ordering::Relaxed);
    if uncounted > 0 {
        let mut rest = self::entry(parts, None, done.from, "uncounted");
        rest.requests = uncounted;
        rest.code = Cow::Borrowed("too_many_refusals");
        rest.status = Code::RateLimited.status();
        parts.writer.note(rest);
    }
}

/// An entry to be filled in.
pub(super) fn entry(
    parts: &Parts,
    who: Option<&Who>,
    from: IpAddr,
    action: &'static str,
) -> AuditEntry {
    AuditEntry {
        at: parts.clock.wall(),
        token: who.map_or_else(|| Arc::from(""), |who| Arc::clone(&who.bearer.id)),
        from: Some(from),
        action: Cow::Borrowed(action),
        object: None,
        jobs: None,
        requests: 1,
        status: 0,
        code: Cow::Borrowed(""),
    }
}

/// `GET /audit`: who did what, newest first.
pub(super) async fn list(
    parts: &Parts,
    head: &request::Parts,
) -> Result<Response<Body>, Box<Refusal>> {
    let known = ["since", "token", "action", "limit", "cursor"];
    let params = Params::parse(head.uri.query(), &known)?;
    let limit = params
        .number("limit", "a number from 1 to 1000")?
        .unwrap_or(PAGE);
    if !(1..=PAGE_MAX).contains(&limit) {
        return Err(wrong("limit", "must be a number from 1 to 1000"));
    }
    let now = Timestamp::from_millis(parts.clock.wall().millis());
    let since = params.moment("since", now)?;
    let page = asked(parts.reader.audit(AuditQuery {
        since: since.map(|at| WallTime::from_millis(at.millis())),
        token: params.text("token").map(Into::into),
        action: params.text("action").map(Into::into),
        below: params.number("cursor", "the next_cursor of a page")?,
        limit,
    }));
    let page = page.await??;
    let mut response = ops::json(&AuditList {
        entries: page.entries.into_iter().map(view).collect(),
        next_cursor: page.next.map(|n| n.to_string()),
    });
    if let Some(next) = page.next {
        let link = ops::next_page(head, &next.to_string());
        response.headers_mut().insert(header::LINK, link);
    }
    Ok(response)
}

fn view((n, entry): (u64, AuditEntry)) -> AuditView {
    AuditView {
        n,
        at: query::time(entry.at),
        token: entry.token.to_string(),
        from: entry.from.map(|from| from.to_string()),
        action: entry.action.into_owned(),
        object: entry.object.map(String::from),
        first_id: entry.jobs.map(|(first, _)| first.raw()),
        count: entry.jobs.map(|(_, count)| count),
        requests: entry.requests,
        status: Some(entry.status).filter(|status| *status > 0),
        code: Some(entry.code.into_owned()).filter(|code| !code.is_empty()),
    }
}
