//! The read side of SQLite: a read-only connection of one thread. Each question is one snapshot.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use hostler_engine::WallTime;
use hostler_engine::spec::{Class, ClassId};
use hostler_wire::{Detail, Epoch, JobId, JobState, Priority, Reason, Usage};
use rusqlite::{Connection, OpenFlags, OptionalExtension, Row};

use crate::store::page::{self, CLOCK_MARGIN_MS, Candidate, SCAN_MAX, Walk};
use crate::store::seam::{
    AttemptRecord, AuditPage, AuditQuery, EndRecord, ListPage, ListQuery, Lookup, Read, Record,
    StoreError,
};
use crate::store::sqlite::{Fault, int, job_id, reason, state, steady_plans};
use crate::store::{audit, class, sql};

/// The reader of one thread.
#[derive(Debug)]
pub(super) struct SqliteReader {
    db: Connection,
    path: PathBuf,
    classes: HashMap<u32, Arc<Class>>,
}

/// A connection that only reads.
pub(super) fn connect(path: &Path) -> Result<Connection, Fault> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(path, flags)?;
    db.busy_timeout(std::time::Duration::from_secs(1))?;
    db.set_prepared_statement_cache_capacity(32);
    steady_plans(&db)?;
    db.execute_batch(
        "PRAGMA query_only = ON; PRAGMA cache_size = -16384; PRAGMA mmap_size = 0; PRAGMA temp_store = MEMORY; \
         PRAGMA cell_size_check = ON; PRAGMA trusted_schema = OFF;",
    )?;
    Ok(db)
}

impl SqliteReader {
    pub(super) fn open(path: &Path) -> Result<Self, StoreError> {
        Ok(Self {
            db: connect(path).map_err(|fault| fault.told(path, "open for reading"))?,
            path: path.to_owned(),
            classes: HashMap::new(),
        })
    }

    /// One question in one snapshot.
    fn ask<T>(&mut self, ask: impl FnOnce(&mut Self) -> Result<T, Fault>) -> Result<T, StoreError> {
        let step = |db: &Connection, what| db.prepare_cached(what)?.raw_execute();
        let answer = step(&self.db, "BEGIN")
            .map_err(Fault::from)
            .and_then(|_rows| ask(self));
        let ended = if self.db.is_autocommit() {
            Ok(0)
        } else {
            step(&self.db, "COMMIT")
        };
        answer
            .and_then(|answer| ended.map(|_rows| answer).map_err(Fault::from))
            .map_err(|fault| fault.told(&self.path, "read"))
    }

    fn class(&mut self, id: u32) -> Result<Arc<Class>, Fault> {
        if let Some(class) = self.classes.get(&id) {
            return Ok(Arc::clone(class));
        }
        let text: Option<String> = self
            .db
            .prepare_cached(sql::CLASS_ONE)?
            .query_row([id], |row| row.get(0))
            .optional()?;
        let text = text.ok_or_else(|| Fault::Garbled(format!("class {id} is missing")))?;
        let class = class::decode(ClassId::new(id), &text)
            .map_err(|error| Fault::Garbled(format!("class {id}: {error}")))?;
        self.classes.insert(id, Arc::clone(&class));
        Ok(class)
    }

    fn record(&mut self, id: JobId) -> Result<Option<Record>, Fault> {
        let found = self
            .db
            .prepare_cached(sql::RECORD)?
            .query_row([id.raw()], |row| {
                Ok((row.get::<_, u32>(1)?, record_of(row)))
            })
            .optional()?;
        let Some((class, record)) = found else {
            return Ok(None);
        };
        let class = self.class(class)?;
        Ok(Some(record?(class)))
    }

    fn lookup(&mut self, id: JobId) -> Result<Lookup, Fault> {
        let Some(mut record) = self.record(id)? else {
            let purged: u64 = self
                .db
                .prepare_cached(sql::PURGED_AND_PROMISED)?
                .query_row([], |row| row.get(0))?;
            return Ok(if id.raw() <= purged {
                Lookup::Purged
            } else {
                Lookup::Never
            });
        };
        record.body = self.body(id)?;
        record.attempts = self.attempts(id)?;
        Ok(Lookup::Found(Box::new(record)))
    }

    /// Those that did not end the job.
    fn attempts(&self, id: JobId) -> Result<Vec<AttemptRecord>, Fault> {
        let mut statement = self.db.prepare_cached(sql::ATTEMPTS)?;
        let mut rows = statement.query([id.raw()])?;
        let mut attempts = Vec::new();
        while let Some(row) = rows.next()? {
            attempts.push(AttemptRecord {
                number: row.get(0)?,
                epoch: Epoch::new(row.get(1)?),
                reason: reason(row.get(2)?)?,
                worker: row.get::<_, Option<String>>(3)?.map(String::into_boxed_str),
                started: wall(row, 4)?,
                finished: WallTime::from_millis(row.get(5)?),
                detail: detail_of(row, 6)?,
            });
        }
        Ok(attempts)
    }

    fn body(&self, id: JobId) -> Result<Option<Bytes>, Fault> {
        let found: Option<Option<Vec<u8>>> = self
            .db
            .prepare_cached(sql::BODY)?
            .query_row([id.raw()], |row| row.get(0))
            .optional()?;
        Ok(found.flatten().map(Bytes::from))
    }

    fn page(&mut self, query: &ListQuery) -> Result<ListPage, Fault> {
        let mut walk = Walk::new(query);
        let rare = |state: &JobState| *state != JobState::Succeeded;
        if query.limit == 0 {
        } else if !query.states.is_empty() && query.states.iter().all(rare) {
            self.walk_rare(query, &mut walk)?;
        } else {
            self.walk_ids(query, &mut walk)?;
        }
        let mut records = Vec::with_capacity(walk.found.len());
        for &id in &walk.found {
            let Some(mut record) = self.record(id)? else {
                continue;
            };
            // What ended at its first try has no former ones: most jobs cost no second look. Of a live job the engine
            // knows the counters.
            if record.end.as_ref().is_some_and(ended_late) {
                record.attempts = self.attempts(id)?;
            }
            records.push(record);
        }
        Ok(ListPage {
            records,
            next: walk.next(),
        })
    }

    fn walk_ids(&mut self, query: &ListQuery, walk: &mut Walk) -> Result<(), Fault> {
        let start = self.start(query)?;
        let statement = if query.descending {
            sql::CANDIDATES_DOWN
        } else {
            sql::CANDIDATES_UP
        };
        // Classes are looked up between rows, so the rows come in small lots.
        let mut after = start;
        loop {
            let lot = self.lot(statement, (after, LOT))?;
            for row in &lot {
                if !self.look(query, walk, row)? {
                    return Ok(());
                }
            }
            match lot.last() {
                Some(last) if lot.len() == LOT => after = int(last.id.raw()),
                _ => return Ok(()),
            }
        }
    }

    /// The newest (or oldest) ends of each state by the index, merged by id.
    fn walk_rare(&mut self, query: &ListQuery, walk: &mut Walk) -> Result<(), Fault> {
        let statement = if query.descending {
            sql::RARE_DOWN
        } else {
            sql::RARE_UP
        };
        let mut after = self.start(query)?;
        loop {
            let mut ids = Vec::new();
            for state in &query.states {
                let mut find = self.db.prepare_cached(statement)?;
                let found =
                    find.query_map((state.code(), after, LOT), |row| row.get::<_, i64>(0))?;
                for id in found {
                    ids.push((id?, *state));
                }
            }
            ids.sort_unstable_by_key(|&(id, _)| if query.descending { -id } else { id });
            ids.dedup();
            // Each state gave its next LOT, so the next LOT of all of them together are among these.
            ids.truncate(LOT);
            for &(id, state) in &ids {
                let lot = self.lot(sql::CANDIDATE, [id])?;
                let Some(row) = lot.into_iter().next() else {
                    continue;
                };
                let row = CandidateRow {
                    state: Some(state),
                    ..row
                };
                if !self.look(query, walk, &row)? {
                    return Ok(());
                }
            }
            match ids.last() {
                Some(&(last, _)) if ids.len() == LOT => after = last,
                _ => return Ok(()),
            }
        }
    }

    fn look(
        &mut self,
        query: &ListQuery,
        walk: &mut Walk,
        row: &CandidateRow,
    ) -> Result<bool, Fault> {
        let class = self.class(row.class)?;
        let candidate = Candidate {
            queue: &class.spec.queue,
            name: row.name.as_deref(),
            created_ms: row.created_ms,
            state: row.state,
        };
        Ok(walk.look(query, row.id, &candidate))
    }

    fn lot(
        &self,
        statement: &str,
        params: impl rusqlite::Params,
    ) -> Result<Vec<CandidateRow>, Fault> {
        let mut statement = self.db.prepare_cached(statement)?;
        let mut rows = statement.query(params)?;
        let mut lot = Vec::new();
        while let Some(row) = rows.next()? {
            let code: Option<u8> = row.get(4)?;
            lot.push(CandidateRow {
                id: job_id(row.get(0)?)?,
                class: row.get(1)?,
                created_ms: row.get(2)?,
                name: row.get(3)?,
                state: code.map(state).transpose()?,
            });
        }
        Ok(lot)
    }

    /// The id a walk begins behind: the query's own, or nearer to what it asks for if a time says so.
    fn start(&self, query: &ListQuery) -> Result<i64, Fault> {
        let after = query.after.map(|id| int(id.raw()));
        if query.descending {
            let after = after.unwrap_or(i64::MAX);
            let Some(until) = query.until else {
                return Ok(after);
            };
            let bound = self.first_from(until.millis().saturating_add(CLOCK_MARGIN_MS))?;
            Ok(after.min(bound))
        } else {
            let after = after.unwrap_or(0);
            let Some(since) = query.since else {
                return Ok(after);
            };
            let bound = self.first_from(since.millis().saturating_sub(CLOCK_MARGIN_MS))?;
            Ok(after.max(bound - 1))
        }
    }

    /// The first id created at that time or later, by halving: some fifty lookups.
    fn first_from(&self, created_ms: u64) -> Result<i64, Fault> {
        let mut find = self.db.prepare_cached(sql::CREATED_FROM)?;
        let (mut low, mut high) = (1, int(JobId::MAX.raw()));
        while low < high {
            let middle = low + (high - low) / 2;
            let found: Option<(i64, u64)> = find
                .query_row([middle], |row| Ok((row.get(0)?, row.get(1)?)))
                .optional()?;
            match found {
                Some((id, created)) if created < created_ms => low = id + 1,
                Some(_) | None => high = middle,
            }
        }
        Ok(low)
    }
}

impl Read for SqliteReader {
    fn job(&mut self, id: JobId) -> Result<Lookup, StoreError> {
        self.ask(|reader| reader.lookup(id))
    }

    fn ends(&mut self, jobs: &[JobId]) -> Result<Vec<(JobId, JobState, Reason)>, StoreError> {
        self.ask(|reader| {
            let mut find = reader.db.prepare_cached(sql::END_OF)?;
            let mut ends = Vec::new();
            for &job in jobs {
                let codes: Option<(u8, u8)> = find
                    .query_row([job.raw()], |row| Ok((row.get(0)?, row.get(1)?)))
                    .optional()?;
                if let Some((code, why)) = codes {
                    ends.push((job, state(code)?, reason(why)?));
                }
            }
            Ok(ends)
        })
    }

    fn list(&mut self, query: &ListQuery) -> Result<ListPage, StoreError> {
        page::check(query)?;
        self.ask(|reader| reader.page(query))
    }

    fn audit(&mut self, query: &AuditQuery) -> Result<AuditPage, StoreError> {
        self.ask(|reader| audit::page(&reader.db, query))
    }

    fn bodies(&mut self, jobs: &[JobId]) -> Result<Vec<(JobId, Bytes)>, StoreError> {
        self.ask(|reader| {
            let mut bodies = Vec::with_capacity(jobs.len());
            for &job in jobs {
                let body = reader.body(job)?;
                let body =
                    body.ok_or_else(|| Fault::Garbled(format!("the body of {job:?} is missing")))?;
                bodies.push((job, body));
            }
            Ok(bodies)
        })
    }
}

/// Rows read at a time while walking.
const LOT: usize = 512;
const _: () = assert!(LOT <= SCAN_MAX);

struct CandidateRow {
    id: JobId,
    class: u32,
    created_ms: u64,
    name: Option<String>,
    state: Option<JobState>,
}

/// Whether the job may have had an attempt that did not end it.
fn ended_late(end: &EndRecord) -> bool {
    end.state != JobState::Succeeded || end.attempt.number > 1
}

/// A record but for its class, which takes another statement to find.
fn record_of(row: &Row<'_>) -> Result<impl FnOnce(Arc<Class>) -> Record + use<>, Fault> {
    let text = |column: usize| -> Result<Option<Box<str>>, Fault> {
        Ok(row
            .get::<_, Option<String>>(column)?
            .map(String::into_boxed_str))
    };
    let id = job_id(row.get(0)?)?;
    let priority = Priority::new(row.get(2)?);
    let sync = row.get(3)?;
    let created = WallTime::from_millis(row.get(4)?);
    let by = text(5)?.unwrap_or_default();
    let (due, expires, deadline) = (wall(row, 6)?, wall(row, 7)?, wall(row, 8)?);
    let retry_of = row.get::<_, Option<u64>>(9)?.map(job_id).transpose()?;
    let (name, labels) = (text(10)?, text(11)?);
    let code: Option<u8> = row.get(12)?;
    let end = match code {
        None => None,
        Some(code) => Some(EndRecord {
            state: state(code)?,
            attempt: AttemptRecord {
                number: row.get(13)?,
                epoch: Epoch::new(row.get(14)?),
                reason: reason(row.get(15)?)?,
                worker: text(16)?,
                started: wall(row, 17)?,
                finished: WallTime::from_millis(row.get(18)?),
                detail: detail_of(row, 19)?,
            },
        }),
    };
    Ok(move |class| Record {
        id,
        class,
        priority,
        name,
        labels,
        created,
        by,
        due,
        expires,
        deadline,
        sync,
        retry_of,
        body: None,
        attempts: Vec::new(),
        end,
    })
}

fn wall(row: &Row<'_>, column: usize) -> Result<Option<WallTime>, Fault> {
    Ok(row
        .get::<_, Option<u64>>(column)?
        .map(WallTime::from_millis))
}

/// The eleven columns of a detail, from `at` on. There is one if it has a message, be it empty.
fn detail_of(row: &Row<'_>, at: usize) -> Result<Option<Box<Detail>>, Fault> {
    let Some(message) = row.get::<_, Option<String>>(at + 7)? else {
        return Ok(None);
    };
    let usage = match row.get::<_, Option<u64>>(at + 2)? {
        None => None,
        Some(user_ms) => Some(Usage {
            wall_ms: row.get(at + 10)?,
            user_ms,
            system_ms: row.get(at + 3)?,
            peak_rss_bytes: row.get(at + 4)?,
            stdout_bytes: row.get(at + 5)?,
            stderr_bytes: row.get(at + 6)?,
        }),
    };
    Ok(Some(Box::new(Detail {
        exit_code: row.get(at)?,
        signal: row.get(at + 1)?,
        message,
        result: row.get::<_, Option<Vec<u8>>>(at + 8)?.unwrap_or_default(),
        stderr_tail: row.get::<_, Option<Vec<u8>>>(at + 9)?.unwrap_or_default(),
        usage,
    })))
}

#[cfg(test)]
mod tests {
    use rusqlite::StatementStatus;

    use super::*;
    use crate::store::sqlite::SqliteStore;

    #[test]
    fn a_question_is_planned_once_whatever_it_asks_about() {
        let dir = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(dir.path()).unwrap();
        let mut reader = SqliteReader::open(&store.path).unwrap();
        for id in 1..5 {
            reader.job(JobId::new(id).unwrap()).unwrap();
            reader.attempts(JobId::new(id).unwrap()).unwrap();
        }
        for question in [sql::RECORD, sql::ATTEMPTS] {
            let statement = reader.db.prepare_cached(question).unwrap();
            assert_eq!(
                statement.get_status(StatementStatus::RePrepare),
                0,
                "{question}"
            );
        }
    }
}
