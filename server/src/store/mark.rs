//! The low-water mark: keeps a restart from reading history.
//!
//! It is a pair. Of jobs with ids up to `id`, those that have not ended are in `carried` with their counters; rows of
//! `assigned` and `started` with numbers up to `seq` are not needed any more, because what they say of living jobs up
//! to the mark has been folded into `carried`. So at any time
//!
//! ```text
//! history of a job up to the mark = its carried row            + shares after seq
//! history of a job above it       = its attempts and marks rows + shares after seq
//! ```
//!
//! The mark moves once the finished jobs above it outnumber 64 Ki + the living ones, in steps that a commit can wait
//! for.
//!
//! Keeps P1 and P2 over restarts: recovery gives the same before and after a move (tested).

use hostler_engine::fact::Ended;
use hostler_wire::Fence;
use rusqlite::{Connection, OptionalExtension};

use crate::store::fold::Rows;
use crate::store::load::{AgainRow, ShareRow, each_row, history_of, put_history};
use crate::store::recover::History;
use crate::store::seam::StoreError;
use crate::store::sql;
use crate::store::sqlite::{Fault, SqliteStore, exists, reason};

/// Finished jobs above the mark are worth a move from here on.
const FINISHED_MIN: u64 = 64 << 10;
/// Ids looked at in one step, some 2 ms.
const STEP_IDS: u64 = 16 << 10;
/// Living jobs copied in one step.
const STEP_JOBS: usize = 4_096;
/// Shares folded in one step, and attempts in them.
const STEP_SHARES: usize = 256;
const STEP_ATTEMPTS: usize = 4_096;

/// Where the mark stands, and what lies above it.
#[derive(Debug)]
pub(super) struct Mark {
    id: u64,
    seq: i64,
    /// Known once the store has been loaded; before that the mark does not move.
    tally: Option<Tally>,
    /// It moves whether that pays or not.
    eager: bool,
}

#[derive(Debug)]
struct Tally {
    live: u64,
    finished_above: u64,
}

impl Mark {
    /// As it was found.
    pub(super) fn at(id: u64, seq: i64) -> Self {
        Self {
            id,
            seq,
            tally: None,
            eager: false,
        }
    }

    pub(super) fn id(&self) -> u64 {
        self.id
    }

    pub(super) fn seq(&self) -> i64 {
        self.seq
    }

    /// Recovery has counted.
    pub(super) fn counted(&mut self, live: u64, finished_above: u64) {
        self.tally = Some(Tally {
            live,
            finished_above,
        });
    }

    /// A commit is done.
    pub(super) fn count(&mut self, submitted: u64, ends: &[&Ended]) {
        if let Some(tally) = &mut self.tally {
            let above = ends.iter().filter(|end| end.job.raw() > self.id).count();
            tally.live = (tally.live + submitted).saturating_sub(ends.len() as u64);
            tally.finished_above += above as u64;
        }
    }

    /// Within a commit, before the ends' rows: keeps the carried rows of the jobs it tells of true. Shares need
    /// nothing, they lie after the mark.
    pub(super) fn keep_up(&self, db: &Connection, rows: &Rows<'_>) -> Result<(), Fault> {
        for again in &rows.attempts {
            let (job, number) = (again.fence.job.raw(), again.fence.attempt.raw());
            if job <= self.id {
                update(db, job, |history| {
                    history.again(number, again.charge, again.started.is_some(), again.due);
                })?;
            }
        }
        for mark in &rows.marks {
            if mark.job.raw() <= self.id {
                update(db, mark.job.raw(), |history| {
                    history.cancelling(mark.reason)
                })?;
            }
        }
        // They are in the order of their ids.
        let carried = rows.ends.partition_point(|end| end.job.raw() <= self.id);
        let carried = &rows.ends[..carried];
        if let (Some(first), Some(last)) = (carried.first(), carried.last())
            && has_carried(db, first.job.raw(), last.job.raw())?
        {
            let mut forget = db.prepare_cached(sql::CARRIED_DROP)?;
            for end in carried {
                forget.execute([end.job.raw()])?;
            }
        }
        Ok(())
    }

    fn is_worth_moving(&self) -> bool {
        let worth = |tally: &Tally| self.eager || tally.finished_above > FINISHED_MIN + tally.live;
        self.tally.as_ref().is_some_and(worth)
    }
}

impl SqliteStore {
    /// Moves the mark in every idle moment, so that a test need not finish 64 Ki jobs first.
    #[doc(hidden)]
    pub fn move_mark_eagerly(&mut self) {
        self.mark.eager = true;
    }

    /// One step, if one is worth it. True if there may be more to do.
    pub(super) fn move_mark(&mut self) -> Result<bool, StoreError> {
        if !self.mark.is_worth_moving() {
            return Ok(false);
        }
        self.within("move the mark in", |store| {
            let (id, passed) = carry(&store.db, store.mark.id)?;
            let seq = fold_shares(&store.db, id, store.mark.seq)?;
            store
                .db
                .prepare_cached(sql::META_MARK)?
                .execute((id, seq))?;
            Ok((id, seq, passed))
        })
        .map(|(id, seq, passed)| {
            let moved = id > self.mark.id || seq > self.mark.seq;
            (self.mark.id, self.mark.seq) = (id, seq);
            if let Some(tally) = &mut self.mark.tally {
                tally.finished_above = tally.finished_above.saturating_sub(passed);
            }
            moved
        })
    }
}

/// Copies the living jobs of the next ids into `carried`. Returns the new mark and how many finished ones it passed.
fn carry(db: &Connection, from: u64) -> Result<(u64, u64), Fault> {
    let count = |statement: &str, to: u64| -> Result<u64, Fault> {
        Ok(db
            .prepare_cached(statement)?
            .query_row((from, to), |row| row.get(0))?)
    };
    let last: u64 = db
        .prepare_cached(sql::JOB_LAST)?
        .query_row([], |row| row.get(0))?;
    let mut to = last.min(from + STEP_IDS).max(from);
    let mut live = Vec::new();
    // Counting is several times cheaper than joining, and mostly says that all have ended.
    let mut ended = count(sql::ENDS_IN, to)?;
    if count(sql::JOBS_IN, to)? != ended {
        each_row(db, sql::LIVE_IN, (from, to, STEP_JOBS), |row| {
            live.push(row.get::<_, u64>(0)?);
            Ok(())
        })?;
    }
    if live.len() == STEP_JOBS {
        to = *live.last().expect("the list was just found to be full");
        ended = count(sql::ENDS_IN, to)?;
    }
    for &job in &live {
        let mut history = History::default();
        each_row(db, sql::ATTEMPTS_OF, [job], |row| {
            AgainRow::of(row)?.1.apply(&mut history);
            Ok(())
        })?;
        each_row(db, sql::MARK_OF, [job], |row| {
            history.cancelling(reason(row.get(1)?)?);
            Ok(())
        })?;
        put_history(db, job, &history)?;
    }
    Ok((to, ended))
}

/// Folds the next shares into `carried`, up to one that a living job above the mark still needs. Returns the new mark.
fn fold_shares(db: &Connection, mark_id: u64, from: i64) -> Result<i64, Fault> {
    let mut seq = from;
    let mut statement = db.prepare_cached(sql::SHARES_AFTER)?;
    let mut rows = statement.query((from, STEP_SHARES))?;
    let mut attempts = 0;
    let mut fences = Vec::new();
    while let Some(row) = rows.next()? {
        let share = ShareRow::of(row)?;
        let is_start: bool = row.get(5)?;
        fences.clear();
        share.each(row, |fence| fences.push(fence))?;
        attempts += fences.len();
        // A share is in the order of its jobs.
        let (carried, above) =
            fences.split_at(fences.partition_point(|fence| fence.job.raw() <= mark_id));
        if !all_ended(db, above)? {
            for &fence in above {
                if is_needed(db, fence)? {
                    return Ok(seq);
                }
            }
        }
        if let (Some(first), Some(last)) = (carried.first(), carried.last())
            && has_carried(db, first.job.raw(), last.job.raw())?
        {
            for &fence in carried {
                update(db, fence.job.raw(), |history| {
                    if is_start {
                        history.started(fence, share.at);
                    } else {
                        history.assigned(fence, share.worker);
                    }
                })?;
            }
        }
        seq = row.get(0)?;
        if attempts >= STEP_ATTEMPTS {
            break;
        }
    }
    Ok(seq)
}

/// Whether one of these jobs has a carried row. Mostly none has: then a look at the range spares one at each of them,
/// which was a fifth of the writer's work for a no-op job.
fn has_carried(db: &Connection, first: u64, last: u64) -> Result<bool, Fault> {
    exists(&mut *db.prepare_cached(sql::CARRIED_IN)?, (first, last))
}

/// Whether all jobs from the first of these to the last have ended, as far as a count of a narrow range can tell.
fn all_ended(db: &Connection, fences: &[Fence]) -> Result<bool, Fault> {
    const NARROW: u64 = 4;
    let (Some(first), Some(last)) = (fences.first(), fences.last()) else {
        return Ok(true);
    };
    let (before, last) = (first.job.raw() - 1, last.job.raw());
    let span = last.saturating_sub(before);
    if span > NARROW * fences.len() as u64 {
        return Ok(false);
    }
    let ended: u64 = db
        .prepare_cached(sql::ENDS_IN)?
        .query_row((before, last), |row| row.get(0))?;
    Ok(ended == span)
}

/// Whether nothing else tells of that attempt yet.
fn is_needed(db: &Connection, fence: Fence) -> Result<bool, Fault> {
    let job = fence.job.raw();
    Ok(!exists(&mut *db.prepare_cached(sql::HAS_END)?, [job])?
        && !exists(
            &mut *db.prepare_cached(sql::HAS_ATTEMPT)?,
            (job, fence.attempt.raw()),
        )?)
}

/// Changes a carried row; a job that has none has ended.
fn update(db: &Connection, job: u64, change: impl FnOnce(&mut History)) -> Result<(), Fault> {
    let found = db
        .prepare_cached(sql::CARRIED_ONE)?
        .query_row([job], |row| Ok(history_of(row)))
        .optional()?;
    if let Some(found) = found {
        let (_, mut history) = found?;
        change(&mut history);
        put_history(db, job, &history)?;
    }
    Ok(())
}
