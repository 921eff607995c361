//! What is dropped, and when (semantics 30): finished jobs and all that belongs to them 30 days after their end, keys
//! after 24 hours, counters after 7 days. In small steps, by id range, only below the mark, never a living job.
//!
//! A job that outlived the retention of its neighbours is dropped later, one by one: there are few.

use hostler_engine::Span;

use crate::clock::Stamp;
use crate::store::load::each_row;
use crate::store::seam::StoreError;
use crate::store::sql;
use crate::store::sqlite::{Fault, SqliteStore, int};

const DAY: Span = Span::from_secs(24 * 3_600);
/// Of jobs, their ends, attempts and shares.
pub(super) const JOBS: Span = DAY.times(30);
/// Of idempotency keys.
pub(super) const KEYS: Span = DAY;
/// Of what was done, and of tokens after their end.
pub(super) const AUDIT: Span = DAY.times(30);
/// Of counters.
const METRICS: Span = DAY.times(7);
/// Between two looks when there was nothing to do.
const PAUSE: Span = Span::from_secs(60);
/// Rows dropped in one step.
const STEP: usize = 4_096;

/// When to look again.
#[derive(Debug, Default)]
pub(super) struct Housekeeping {
    next_us: u64,
}

impl SqliteStore {
    /// One step. True if there is more to do.
    pub(super) fn retain(&mut self, stamp: &Stamp) -> Result<bool, StoreError> {
        if stamp.engine.micros() < self.housekeeping.next_us {
            return Ok(false);
        }
        let more = self.within("drop old rows from", |store| {
            let before = |span: Span| int(stamp.wall.millis().saturating_sub(span.millis()));
            // A key's age is a duration: the wall clock has no say.
            let keys_before = int(stamp.engine.back(KEYS).micros() / 1_000);
            let engine_before = int(stamp.engine.back(JOBS).micros());
            let (mark_id, mark_seq) = (store.mark.id(), store.mark.seq());
            let mut dropped = drop_jobs(store, mark_id, before(JOBS))?;
            for statement in [sql::DROP_ASSIGNED, sql::DROP_STARTED] {
                dropped |=
                    store
                        .db
                        .prepare_cached(statement)?
                        .execute((mark_seq, engine_before, STEP))?
                        > 0;
            }
            dropped |= store
                .db
                .prepare_cached(sql::DROP_KEYS)?
                .execute((keys_before, STEP))?
                > 0;
            dropped |= store
                .db
                .prepare_cached(sql::DROP_METRICS)?
                .execute((before(METRICS), STEP))?
                > 0;
            dropped |= store
                .db
                .prepare_cached(sql::DROP_AUDIT)?
                .execute((before(AUDIT), STEP))?
                > 0;
            store
                .db
                .prepare_cached(sql::DROP_TOKENS)?
                .execute([before(AUDIT)])?;
            Ok(dropped)
        })?;
        if !more {
            self.housekeeping.next_us = (stamp.engine + PAUSE).micros();
        }
        Ok(more)
    }
}

/// Drops a range of jobs whose ends are all old. True if any were.
fn drop_jobs(store: &SqliteStore, mark_id: u64, before_ms: i64) -> Result<bool, Fault> {
    let purged: u64 = store
        .db
        .prepare_cached(sql::PURGED_AND_PROMISED)?
        .query_row([], |row| row.get(0))?;
    // Ends up to the purge mark are of jobs that lived longer than their neighbours.
    let mut late = Vec::new();
    each_row(&store.db, sql::OLD_ENDS, (0, purged, STEP), |row| {
        if row.get::<_, i64>(1)? < before_ms {
            late.push(row.get::<_, u64>(0)?);
        }
        Ok(())
    })?;
    for &id in &late {
        drop_range(store, id - 1, id)?;
    }
    let mut last_old = purged;
    let mut young = false;
    each_row(&store.db, sql::OLD_ENDS, (purged, mark_id, STEP), |row| {
        young |= row.get::<_, i64>(1)? >= before_ms;
        if !young {
            last_old = row.get(0)?;
        }
        Ok(())
    })?;
    if last_old > purged {
        drop_range(store, purged, last_old)?;
    }
    Ok(last_old > purged || !late.is_empty())
}

/// Drops the finished jobs of from+1..=to.
fn drop_range(store: &SqliteStore, from: u64, to: u64) -> Result<(), Fault> {
    for statement in [
        sql::DROP_JOBS,
        sql::DROP_ATTEMPTS,
        sql::DROP_MARKS,
        sql::DROP_DONE,
        sql::DROP_ENDS,
    ] {
        store.db.prepare_cached(statement)?.execute((from, to))?;
    }
    store.db.prepare_cached(sql::META_PURGED)?.execute([to])?;
    Ok(())
}
