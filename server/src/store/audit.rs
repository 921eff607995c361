//! Who did what: its rows, and what waits to become rows.
//!
//! An accepted submission is written with its jobs, in one commit, and costs no row a job: neighbours of one token from
//! one address share a row. Everything else comes as notes, waits for the next commit or a second, and is bounded: equal
//! refusals share a row, and above a steady rate of rows they are counted and not written, so that nobody can fill the
//! disk by being refused.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::sync::Arc;

use hostler_engine::{Span, Time, WallTime};
use hostler_wire::JobId;
use rusqlite::{Connection, Row};

use crate::store::page::AuditWalk;
use crate::store::seam::{AuditEntry, AuditPage, AuditQuery, Batch};
use crate::store::sql;
use crate::store::sqlite::{Fault, int, job_id};

/// How long notes wait for a commit before they make one.
const PATIENCE: Span = Span::from_millis(1_000);
/// Most notes that wait. What was done and not refused may take twice as many places.
const WAITING_MAX: usize = 512;
/// So many of the last ones are looked at for an equal one.
const LOOKED_AT: usize = 128;
/// Rows of refusals at once.
const REFUSALS_BURST: u64 = 256;
/// A row of refusals is earned in this time: 2 a second, some 400 MB in 30 days.
const REFUSAL_EVERY: Span = Span::from_millis(500);
/// Of those that were counted only, a row at most this often.
const UNCOUNTED_EVERY: Span = Span::from_secs(10);

/// What waits to be written.
#[derive(Debug)]
pub(super) struct Notes {
    waiting: VecDeque<AuditEntry>,
    since: Option<Time>,
    /// Refusals that may still be written, as of then.
    left: u64,
    earned_at: Time,
    /// Refused and not written.
    uncounted: u64,
    uncounted_at: Time,
}

impl Notes {
    pub(super) fn new(now: Time) -> Self {
        Self {
            waiting: VecDeque::new(),
            since: None,
            left: REFUSALS_BURST,
            earned_at: now,
            uncounted: 0,
            uncounted_at: now,
        }
    }

    /// Takes a note.
    pub(super) fn add(&mut self, entry: AuditEntry, now: Time) {
        let refusal = !entry.code.is_empty();
        let same = |other: &&mut AuditEntry| {
            (&other.token, other.from, &other.action) == (&entry.token, entry.from, &entry.action)
                && (other.status, &other.code) == (entry.status, &entry.code)
                && (refusal || other.object == entry.object)
        };
        let mut last = self.waiting.iter_mut().rev().take(LOOKED_AT);
        if let Some(other) = last.find(same) {
            other.requests += entry.requests;
            return;
        }
        self.earn(now);
        let room = if refusal {
            WAITING_MAX
        } else {
            2 * WAITING_MAX
        };
        if self.waiting.len() >= room || (refusal && self.left == 0) {
            self.uncounted += entry.requests;
        } else {
            self.left -= u64::from(refusal);
            self.waiting.push_back(entry);
        }
        self.since.get_or_insert(now);
    }

    fn earn(&mut self, now: Time) {
        let earned = now.since(self.earned_at).micros() / REFUSAL_EVERY.micros();
        self.earned_at = self.earned_at + REFUSAL_EVERY.times(earned);
        self.left = self.left.saturating_add(earned).min(REFUSALS_BURST);
    }

    /// When they are to be written even if nothing else is.
    pub(super) fn due(&self) -> Option<Time> {
        if self.waiting.is_empty() {
            let uncounted = self.uncounted_at + UNCOUNTED_EVERY;
            return (self.uncounted > 0).then_some(uncounted);
        }
        self.since.map(|since| since + PATIENCE)
    }

    /// What a commit made now writes.
    pub(super) fn ready(&self, now: Time, wall: WallTime) -> Vec<AuditEntry> {
        let mut all: Vec<_> = self.waiting.iter().cloned().collect();
        if self.uncounted > 0 && now >= self.uncounted_at + UNCOUNTED_EVERY {
            all.push(AuditEntry {
                at: wall,
                token: Arc::from(""),
                from: None,
                action: Cow::Borrowed("uncounted"),
                object: None,
                jobs: None,
                requests: self.uncounted,
                status: 0,
                code: Cow::Borrowed("too_many_refusals"),
            });
        }
        all
    }

    /// That was committed.
    pub(super) fn written(&mut self, now: Time) {
        self.waiting.clear();
        self.since = None;
        if self.uncounted > 0 && now >= self.uncounted_at + UNCOUNTED_EVERY {
            self.uncounted = 0;
            self.uncounted_at = now;
        }
    }
}

/// What a commit's submissions are told as: one row for neighbours of one token from one address.
pub(super) fn of_batches(batches: &[Batch], wall: WallTime, to: &mut Vec<AuditEntry>) {
    let mut open: Option<AuditEntry> = None;
    for batch in batches {
        let count = batch.jobs.len() as u64;
        let retry_of = match &batch.jobs[..] {
            [job] => job.retry_of,
            _ => None,
        };
        if let (Some(entry), None) = (&mut open, retry_of)
            && let Some((first, before)) = entry.jobs
            && entry.action == "submit"
            && (&entry.token, entry.from) == (&batch.by, batch.from)
            && first.raw() + before == batch.first.raw()
        {
            entry.jobs = Some((first, before + count));
            entry.requests += 1;
            continue;
        }
        to.extend(open.replace(AuditEntry {
            at: wall,
            token: Arc::clone(&batch.by),
            from: batch.from,
            action: Cow::Borrowed(if retry_of.is_some() {
                "retry"
            } else {
                "submit"
            }),
            object: retry_of.map(|job| job.to_string().into()),
            jobs: Some((batch.first, count)),
            requests: 1,
            status: 201,
            code: Cow::Borrowed(""),
        }));
    }
    to.extend(open);
}

/// Writes entries, within a transaction.
pub(super) fn insert(db: &Connection, entries: &[AuditEntry]) -> Result<(), Fault> {
    if entries.is_empty() {
        return Ok(());
    }
    let mut insert = db.prepare_cached(sql::AUDIT_NEW)?;
    for entry in entries {
        insert.execute((
            int(entry.at.millis()),
            &*entry.token,
            entry.from.map(|from| from.to_string()),
            &*entry.action,
            entry.object.as_deref(),
            entry.jobs.map(|(first, _)| first.raw()),
            entry.jobs.map(|(_, count)| int(count)),
            int(entry.requests),
            Some(entry.status).filter(|status| *status > 0),
            Some(&*entry.code).filter(|code| !code.is_empty()),
        ))?;
    }
    Ok(())
}

/// One page, newest first.
pub(super) fn page(db: &Connection, query: &AuditQuery) -> Result<AuditPage, Fault> {
    let mut walk = AuditWalk::default();
    if query.limit == 0 {
        return Ok(walk.finish());
    }
    let mut statement = db.prepare_cached(sql::AUDIT_DOWN)?;
    let below = query.below.map_or(i64::MAX, int);
    let mut rows = statement.query([below])?;
    while let Some(row) = rows.next()? {
        let (n, entry) = entry(row)?;
        if !walk.look(query, n, entry) {
            break;
        }
    }
    Ok(walk.finish())
}

fn entry(row: &Row<'_>) -> Result<(u64, AuditEntry), Fault> {
    let first: Option<u64> = row.get(6)?;
    let jobs = match (first, row.get::<_, Option<u64>>(7)?) {
        (Some(first), Some(count)) => Some((job_id(first)?, count)),
        _ => None::<(JobId, u64)>,
    };
    let peer: Option<String> = row.get(3)?;
    let entry = AuditEntry {
        at: WallTime::from_millis(row.get(1)?),
        token: row.get::<_, String>(2)?.into(),
        from: peer.and_then(|peer| peer.parse().ok()),
        action: Cow::Owned(row.get(4)?),
        object: row.get::<_, Option<String>>(5)?.map(String::into_boxed_str),
        jobs,
        requests: row.get(8)?,
        status: row.get::<_, Option<u16>>(9)?.unwrap_or(0),
        code: Cow::Owned(row.get::<_, Option<String>>(10)?.unwrap_or_default()),
    };
    Ok((row.get(0)?, entry))
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Time = Time::from_micros(1_000_000_000);

    fn note(token: &str, code: &'static str, object: Option<&str>) -> AuditEntry {
        AuditEntry {
            at: WallTime::from_millis(5),
            token: token.into(),
            from: None,
            action: Cow::Borrowed("cancel"),
            object: object.map(Into::into),
            jobs: None,
            requests: 1,
            status: if code.is_empty() { 200 } else { 409 },
            code: Cow::Borrowed(code),
        }
    }

    fn ready(notes: &Notes, now: Time) -> Vec<AuditEntry> {
        notes.ready(now, WallTime::from_millis(9))
    }

    #[test]
    fn equal_refusals_share_a_row_and_what_was_done_to_another_job_does_not() {
        let mut notes = Notes::new(START);
        for job in ["7", "8", "9"] {
            notes.add(note("a", "job_finished", Some(job)), START);
            notes.add(note("a", "", Some(job)), START);
            notes.add(note("a", "", Some("7")), START);
        }
        let rows = ready(&notes, START);
        let told: Vec<_> = rows
            .iter()
            .map(|row| (&*row.code, row.object.as_deref(), row.requests))
            .collect();
        let expected = [
            ("job_finished", Some("7"), 3),
            ("", Some("7"), 4),
            ("", Some("8"), 1),
            ("", Some("9"), 1),
        ];
        assert_eq!(told, expected);
        assert_eq!(notes.due(), Some(START + PATIENCE));
        notes.written(START);
        assert_eq!((notes.due(), ready(&notes, START).len()), (None, 0));
    }

    #[test]
    fn a_flood_of_refusals_costs_a_bounded_number_of_rows_and_the_rest_is_counted() {
        let mut notes = Notes::new(START);
        let (mut rows, mut requests) = (0, 0);
        let minute = 60_000_u64;
        for ms in 0..minute {
            let now = START + Span::from_millis(ms);
            for n in 0..10 {
                notes.add(note(&format!("{ms}-{n}"), "token_invalid", None), now);
            }
            if notes.due().is_some_and(|due| due <= now) {
                let all = ready(&notes, now);
                rows += all.len();
                requests += all.iter().map(|row| row.requests).sum::<u64>();
                notes.written(now);
            }
        }
        // 256 at once, 2 a second, and a few that count the rest.
        assert!((370..=390).contains(&rows), "{rows}");
        let end = START + Span::from_millis(minute + 20_000);
        requests += ready(&notes, end)
            .iter()
            .map(|row| row.requests)
            .sum::<u64>();
        assert_eq!(requests, 10 * minute, "nothing is forgotten");
        // What is done stays told while others are refused.
        notes.add(note("a", "", Some("1")), end);
        assert!(ready(&notes, end).iter().any(|row| row.code.is_empty()));
    }
}
