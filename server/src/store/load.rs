//! Recovery: everything unfinished, read from SQLite in the order the engine asks for.
//!
//! What is carried over the mark, the shares after it, and the few rows of attempts and marks above it are folded into
//! histories in memory; then one scan of `jobs` above the mark in id order, without those that have ended. Bodies are
//! not read, and finished jobs below the mark cost nothing. The scan itself is in `scan`.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;

use hostler_engine::event::{Restore, RestoredAttempt};
use hostler_engine::fact::Charge;
use hostler_engine::spec::{Class, ClassId};
use hostler_engine::{Time, WallTime, When};
use hostler_wire::{Attempt, Epoch, Fence, JobId, Priority, WorkerId};
use rusqlite::{Connection, Row, ToSql};

use crate::store::recover::{History, IdSet, Runs, Waiting};
use crate::store::sqlite::{
    CACHE, Fault, SqliteStore, job_id, joined, read_classes, reason, split,
};
use crate::store::{ranges, sql};

/// The same as `CACHE`, while everything is read once.
pub(super) const SCAN_CACHE: i32 = -1_024;

/// Histories by job, of jobs that have not ended.
pub(super) type Histories = BTreeMap<u64, History>;

/// Gives everything unfinished to `each`.
pub(super) fn load(store: &mut SqliteStore, each: &mut dyn FnMut(Restore)) -> Result<(), Fault> {
    let db = &store.db;
    // Each page is wanted once: with a small cache they come and go in the processor's own, and none of them stays.
    db.pragma_update(None, "cache_size", SCAN_CACHE)?;
    // One snapshot for all of it.
    db.execute_batch("BEGIN")?;
    let found = Recovery::read(db, store.mark.id(), store.mark.seq()).and_then(|recovery| {
        let live = recovery.give(db, store.shared_file(), each)?;
        Ok((live, recovery.ended.len()))
    });
    db.execute_batch("COMMIT")?;
    db.pragma_update(None, "cache_size", CACHE)?;
    let (live, finished) = found?;
    store.mark.counted(live, finished);
    Ok(())
}

pub(super) struct Recovery {
    pub(super) mark_id: u64,
    classes: HashMap<ClassId, Arc<Class>>,
    /// Ended jobs above the mark.
    ended: IdSet,
    /// Of jobs up to the mark: all that live. Above: those something has happened to.
    histories: Histories,
}

impl Recovery {
    fn read(db: &Connection, mark_id: u64, mark_seq: i64) -> Result<Self, Fault> {
        let mut recovery = Self {
            mark_id,
            classes: read_classes(db)?
                .into_iter()
                .map(|class| (class.id, class))
                .collect(),
            ended: IdSet::default(),
            histories: Histories::new(),
        };
        let histories = &mut recovery.histories;
        each_row(db, sql::CARRIED_ALL, [], |row| {
            let (job, history) = history_of(row)?;
            histories.insert(job, history);
            Ok(())
        })?;
        let ended = &mut recovery.ended;
        each_row(db, sql::ENDS_ABOVE, [mark_id], |row| {
            ended.push(row.get(0)?);
            Ok(())
        })?;
        each_row(db, sql::ASSIGNED_AFTER, [mark_seq], |row| {
            let share = ShareRow::of(row)?;
            share.each(row, |fence| {
                if let Some(history) = recovery_entry(histories, ended, mark_id, fence.job) {
                    history.assigned(fence, share.worker);
                }
            })
        })?;
        each_row(db, sql::ATTEMPTS_ABOVE, [mark_id], |row| {
            let (job, again) = AgainRow::of(row)?;
            if let Some(history) = recovery_entry(histories, ended, mark_id, job) {
                again.apply(history);
            }
            Ok(())
        })?;
        each_row(db, sql::STARTED_AFTER, [mark_seq], |row| {
            let share = ShareRow::of(row)?;
            share.each(row, |fence| {
                if let Some(history) = recovery_entry(histories, ended, mark_id, fence.job) {
                    history.started(fence, share.at);
                }
            })
        })?;
        each_row(db, sql::MARKS_ABOVE, [mark_id], |row| {
            let why = reason(row.get(1)?)?;
            if let Some(history) = recovery_entry(histories, ended, mark_id, job_id(row.get(0)?)?) {
                history.cancelling(why);
            }
            Ok(())
        })?;
        Ok(recovery)
    }

    /// Returns how many jobs live.
    fn give(
        &self,
        db: &Connection,
        file: Option<&Path>,
        each: &mut dyn FnMut(Restore),
    ) -> Result<u64, Fault> {
        self.give_workers(db, each)?;
        let mut find = db.prepare(sql::WAITING_ONE)?;
        let mut live = 0;
        // Jobs with a history, then the rest in id order: first those carried that nothing has happened to yet.
        let mut runs = Runs::default();
        let mut quiet = Vec::new();
        for (&id, history) in &self.histories {
            let mut rows = find.query([id])?;
            let row = rows
                .next()?
                .ok_or_else(|| Fault::Garbled(format!("job {id} has a history and no row")))?;
            let waiting = self.waiting(row)?;
            live += 1;
            match history.restored(waiting.clone()) {
                Some(job) => each(Restore::Job(Box::new(job))),
                None if id <= self.mark_id => quiet.push(waiting),
                None => live -= 1, // the scan meets it
            }
        }
        for waiting in &quiet {
            runs.push(waiting)
                .map(Restore::Run)
                .into_iter()
                .for_each(&mut *each);
        }
        Ok(live + self.scan(db, file, runs, each)?)
    }

    /// Whether nothing is known of that job above the mark but its row.
    pub(super) fn is_untouched(&self, id: u64) -> bool {
        let told = |history: &History| history.attempt > 0 || history.cancelling.is_some();
        !self.ended.contains(id) && !self.histories.get(&id).is_some_and(told)
    }

    fn give_workers(&self, db: &Connection, each: &mut dyn FnMut(Restore)) -> Result<(), Fault> {
        let running = self
            .histories
            .values()
            .filter_map(|history| history.running);
        let busy: BTreeSet<WorkerId> = running.map(|running| running.worker).collect();
        let mut known = BTreeSet::new();
        let mut next = 1;
        each_row(db, sql::WORKERS, [], |row| {
            let id = WorkerId::new(row.get(0)?);
            next = next.max(id.raw().saturating_add(1));
            if busy.contains(&id) {
                known.insert(id);
                each(Restore::Worker {
                    id,
                    name: row.get(1)?,
                    instance: row.get::<_, i64>(2)?.cast_unsigned(),
                });
            }
            Ok(())
        })?;
        if let Some(missing) = busy.difference(&known).next() {
            let what = format!("worker {} has assignments and no row", missing.raw());
            return Err(Fault::Garbled(what));
        }
        each(Restore::Workers {
            next: WorkerId::new(next),
        });
        Ok(())
    }

    pub(super) fn class(&self, id: ClassId) -> Result<Arc<Class>, Fault> {
        let class = self.classes.get(&id).cloned();
        class.ok_or_else(|| {
            Fault::Garbled(format!("a job is of class {}, which is missing", id.raw()))
        })
    }

    pub(super) fn waiting(&self, row: &Row<'_>) -> Result<Waiting, Fault> {
        let engine: Option<[u8; 24]> = row.get(6)?;
        let when = |column: usize, place: usize| -> Result<Option<When>, Fault> {
            let exact = engine.as_ref().and_then(|times| engine_time(times, place));
            let wall: Option<u64> = row.get(column)?;
            Ok(exact
                .map(When::Engine)
                .or(wall.map(|ms| When::Wall(WallTime::from_millis(ms)))))
        };
        Ok(Waiting {
            id: job_id(row.get(0)?)?,
            class: self.class(ClassId::new(row.get(1)?))?,
            priority: Priority::new(row.get(2)?),
            due: when(3, 0)?,
            expires: when(4, 1)?,
            deadline: when(5, 2)?,
        })
    }
}

/// The history a row belongs to; none if its job has ended.
fn recovery_entry<'a>(
    histories: &'a mut Histories,
    ended: &IdSet,
    mark_id: u64,
    job: JobId,
) -> Option<&'a mut History> {
    if job.raw() <= mark_id {
        histories.get_mut(&job.raw())
    } else if ended.contains(job.raw()) {
        None
    } else {
        Some(histories.entry(job.raw()).or_default())
    }
}

fn engine_time(times: &[u8; 24], place: usize) -> Option<Time> {
    let (slots, _) = times.as_chunks::<8>();
    match u64::from_le_bytes(slots[place]) {
        u64::MAX => None,
        us => Some(Time::from_micros(us)),
    }
}

/// The head of a row of `assigned` or `started`.
pub(super) struct ShareRow {
    epoch: Epoch,
    pub(super) worker: WorkerId,
    pub(super) at: Time,
}

impl ShareRow {
    pub(super) fn of(row: &Row<'_>) -> Result<Self, Fault> {
        Ok(Self {
            epoch: Epoch::new(row.get(1)?),
            worker: WorkerId::new(row.get(2)?),
            at: Time::from_micros(row.get(3)?),
        })
    }

    /// Gives each attempt of the row.
    pub(super) fn each(&self, row: &Row<'_>, mut take: impl FnMut(Fence)) -> Result<(), Fault> {
        let epoch = self.epoch;
        let blob = row.get_ref(4)?.as_blob().map_err(rusqlite::Error::from)?;
        ranges::decode(blob, |job, attempt| {
            take(Fence {
                job,
                epoch,
                attempt,
            })
        })
        .map_err(|ranges::Garbled| {
            let seq: i64 = row.get(0).unwrap_or(0);
            Fault::Garbled(format!("share {seq} is garbled"))
        })
    }
}

/// What recovery needs of a row of `attempts`.
pub(super) struct AgainRow {
    number: u16,
    charge: Charge,
    started: bool,
    due: Option<When>,
}

impl AgainRow {
    pub(super) fn of(row: &Row<'_>) -> Result<(JobId, Self), Fault> {
        let charge = match row.get(2)? {
            0_u8 => Charge::Return,
            1 => Charge::Failure,
            2 => Charge::Loss,
            3 => Charge::Later,
            other => return Err(Fault::Garbled(format!("{other} is no charge"))),
        };
        let again = Self {
            number: row.get(1)?,
            charge,
            started: row.get(3)?,
            due: joined(row.get(4)?, row.get(5)?),
        };
        Ok((job_id(row.get(0)?)?, again))
    }

    pub(super) fn apply(&self, history: &mut History) {
        history.again(self.number, self.charge, self.started, self.due);
    }
}

/// A row of `carried`.
pub(super) fn history_of(row: &Row<'_>) -> Result<(u64, History), Fault> {
    let job: u64 = row.get(0)?;
    let attempt: Option<u16> = row.get(7)?;
    let running = match (attempt.and_then(Attempt::new), row.get(8)?, row.get(9)?) {
        (Some(attempt), Some(epoch), Some(worker)) => Some(RestoredAttempt {
            fence: Fence {
                job: job_id(job)?,
                epoch: Epoch::new(epoch),
                attempt,
            },
            worker: WorkerId::new(worker),
            started: row.get::<_, Option<u64>>(10)?.map(Time::from_micros),
        }),
        _ => None,
    };
    let due = match joined(row.get(11)?, row.get(12)?) {
        Some(when) => Some((when, reason(row.get(13)?)?)),
        None => None,
    };
    let cancelling: Option<u8> = row.get(14)?;
    let history = History {
        attempt: row.get(1)?,
        ended: row.get(2)?,
        failures: row.get(3)?,
        losses: row.get(4)?,
        later: row.get(5)?,
        ever_started: row.get(6)?,
        running,
        due,
        cancelling: cancelling.map(reason).transpose()?,
    };
    Ok((job, history))
}

/// Writes a row of `carried`.
pub(super) fn put_history(db: &Connection, job: u64, history: &History) -> Result<(), Fault> {
    let running = history.running;
    let (due_us, due_ms) = split(history.due.map(|(when, _)| when));
    let started = running
        .and_then(|running| running.started)
        .map(Time::micros);
    let values: [&dyn ToSql; 15] = [
        &job,
        &history.attempt,
        &history.ended,
        &history.failures,
        &history.losses,
        &history.later,
        &history.ever_started,
        &running.map(|running| running.fence.attempt.raw()),
        &running.map(|running| running.fence.epoch.raw()),
        &running.map(|running| running.worker.raw()),
        &started,
        &due_us,
        &due_ms,
        &history.due.map(|(_, why)| why.code()),
        &history.cancelling.map(|why| why.code()),
    ];
    db.prepare_cached(sql::CARRIED_PUT)?.execute(&values[..])?;
    Ok(())
}

/// Runs a query and gives each row.
pub(super) fn each_row(
    db: &Connection,
    statement: &str,
    params: impl rusqlite::Params,
    mut each: impl FnMut(&Row<'_>) -> Result<(), Fault>,
) -> Result<(), Fault> {
    let mut statement = db.prepare_cached(statement)?;
    let mut rows = statement.query(params)?;
    while let Some(row) = rows.next()? {
        each(row)?;
    }
    Ok(())
}
