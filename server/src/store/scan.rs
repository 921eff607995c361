//! The scan of the jobs nothing has happened to: the one part of a start whose cost grows with the backlog.
//!
//! Ids are cut into chunks, which several connections read side by side, each thread every n-th of them; what they find
//! is given on in id order, so that the engine's ranges grow at their ends. Few columns are looked at, and of a job that
//! is like the one before it nothing but its id and its kind (class and priority in one number). Bodies are not read,
//! and no page stays in memory.
//!
//! Not here: what has happened to a job (`load`, `recover`).

use std::num::NonZero;
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use hostler_engine::event::Restore;
use hostler_engine::spec::{ClassId, Run};
use hostler_wire::Priority;
use rusqlite::Connection;

use crate::store::load::{Recovery, SCAN_CACHE, each_row};
use crate::store::recover::{Runs, Waiting};
use crate::store::sqlite::{Fault, job_id};
use crate::store::{read, sql};

/// Ids in one chunk, some 3 ms; all of them together are no more than `CHUNKS_MAX`, however far apart ids lie.
const CHUNK_IDS: u64 = 16 << 10;
const CHUNKS_MAX: u64 = 1 << 20;
/// A smaller scan is done before another thread has begun.
const CHUNKS_SHARED: u64 = 4;
/// Chunks a thread may be ahead.
const AHEAD: usize = 4;
/// Threads that scan, the caller's included.
const THREADS_MAX: usize = 4;

/// What lies in one chunk.
struct Found {
    runs: Vec<Run>,
    live: u64,
}

/// Ids above `after`, up to `last`, in chunks of `ids`.
#[derive(Clone, Copy)]
struct Chunks {
    after: u64,
    last: u64,
    ids: u64,
}

impl Chunks {
    fn of(after: u64, last: u64) -> Self {
        let ids = CHUNK_IDS.max(last.saturating_sub(after).div_ceil(CHUNKS_MAX));
        Self { after, last, ids }
    }

    fn count(self) -> u64 {
        self.last.saturating_sub(self.after).div_ceil(self.ids)
    }

    /// The chunk's bounds: above the first, up to the second.
    fn at(self, n: u64) -> (u64, u64) {
        let after = self.after + n * self.ids;
        (after, self.last.min(after + self.ids))
    }
}

impl Recovery {
    /// Gives the untouched jobs above the mark to `each`, after those in `runs`. `file` is what other connections may
    /// open. Returns how many there are.
    pub(super) fn scan(
        &self,
        db: &Connection,
        file: Option<&Path>,
        mut runs: Runs,
        each: &mut dyn FnMut(Restore),
    ) -> Result<u64, Fault> {
        let last = db.query_row(sql::JOB_LAST, [], |row| row.get(0))?;
        let chunks = Chunks::of(self.mark_id, last);
        let threads = match file {
            Some(_) if chunks.count() >= CHUNKS_SHARED => {
                thread::available_parallelism().map_or(1, NonZero::get)
            }
            Some(_) | None => 1,
        };
        let threads = threads.min(THREADS_MAX);
        thread::scope(|scope| {
            let mut helpers: Vec<Receiver<Result<Found, Fault>>> = Vec::new();
            for n in 1..threads {
                let (found, receiver) = sync_channel(AHEAD);
                let help = move || self.help(file, chunks, (n, threads), &found);
                thread::Builder::new()
                    .name("scan".into())
                    .spawn_scoped(scope, help)
                    .map_err(|error| Fault::system("start a thread to read", &error))?;
                helpers.push(receiver);
            }
            let mut live = 0;
            for n in 0..chunks.count() {
                let at = usize::try_from(n % threads as u64).expect("few threads");
                let found = match at.checked_sub(1).map(|at| helpers[at].recv()) {
                    None => self.chunk(db, chunks.at(n))?,
                    Some(Ok(found)) => found?,
                    // Its panic goes on when the scope ends.
                    Some(Err(_)) => break,
                };
                live += found.live;
                let joined = found.runs.into_iter().filter_map(|run| runs.join(run));
                joined.map(Restore::Run).for_each(&mut *each);
            }
            runs.finish().map(Restore::Run).into_iter().for_each(each);
            Ok(live)
        })
    }

    /// Another thread's chunks. Nobody writes before recovery is done, so that its snapshot is the caller's.
    fn help(
        &self,
        file: Option<&Path>,
        chunks: Chunks,
        (first, step): (usize, usize),
        to: &SyncSender<Result<Found, Fault>>,
    ) {
        let read = || -> Result<(), Fault> {
            let db = read::connect(file.expect("helpers have a file to read"))?;
            db.pragma_update(None, "cache_size", SCAN_CACHE)?;
            db.execute_batch("BEGIN")?;
            for n in (first as u64..chunks.count()).step_by(step) {
                if to.send(Ok(self.chunk(&db, chunks.at(n))?)).is_err() {
                    break; // the caller has met a fault
                }
            }
            Ok(())
        };
        if let Err(fault) = read() {
            drop(to.send(Err(fault)));
        }
    }

    fn chunk(&self, db: &Connection, (after, last): (u64, u64)) -> Result<Found, Fault> {
        let mut runs = Runs::default();
        let mut found = Found {
            runs: Vec::new(),
            live: 0,
        };
        let mut timed_after = None;
        let mut statement = db.prepare_cached(sql::WAITING_PLAIN)?;
        let mut rows = statement.query((after, last))?;
        while let Some(row) = rows.next()? {
            let id: u64 = row.get(0)?;
            let Some(kind) = row.get::<_, Option<i64>>(1)? else {
                timed_after = Some(id - 1);
                break;
            };
            if self.is_untouched(id) {
                found.live += 1;
                if !runs.extend(id, kind) {
                    found.runs.extend(runs.push(&self.plain(id, kind)?));
                }
            }
        }
        drop(rows);
        // Who has a time of its own seldom comes alone.
        if let Some(after) = timed_after {
            each_row(db, sql::WAITING, (after, last), |row| {
                if self.is_untouched(row.get(0)?) {
                    found.live += 1;
                    found.runs.extend(runs.push(&self.waiting(row)?));
                }
                Ok(())
            })?;
        }
        found.runs.extend(runs.finish());
        Ok(found)
    }

    /// A job without times of its own.
    fn plain(&self, id: u64, kind: i64) -> Result<Waiting, Fault> {
        let (class, priority) = split_kind(kind)
            .ok_or_else(|| Fault::Garbled(format!("class or priority of job {id} is garbled")))?;
        Ok(Waiting {
            id: job_id(id)?,
            class: self.class(ClassId::new(class))?,
            priority: Priority::new(priority),
            due: None,
            expires: None,
            deadline: None,
        })
    }
}

/// Class and priority of a job in one number, as `sql::WAITING_PLAIN` makes it.
pub(super) fn kind(class: u32, priority: i8) -> i64 {
    (i64::from(class) << 32) + i64::from(priority)
}

fn split_kind(kind: i64) -> Option<(u32, i8)> {
    let class = kind.checked_add(1 << 31)? >> 32;
    let priority = kind - (class << 32);
    Some((class.try_into().ok()?, priority.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_is_taken_apart_as_it_was_put_together() {
        for class in [0, 1, 77, u32::MAX / 2 - 1] {
            for priority in [-128, -1, 0, 1, 127] {
                assert_eq!(split_kind(kind(class, priority)), Some((class, priority)));
            }
        }
        assert_eq!(split_kind(kind(7, 0) + 128), None, "no priority");
        assert_eq!(split_kind(-(1 << 40)), None, "no class");
    }

    #[test]
    fn chunks_cover_every_id_once_and_are_few_however_far_apart_ids_lie() {
        for (after, last) in [(0, 1), (5, 5), (9, 3), (7, 100_000), (0, 1 << 53)] {
            let chunks = Chunks::of(after, last);
            let count = chunks.count();
            assert!(count <= CHUNKS_MAX);
            assert_eq!(count == 0, last <= after);
            for n in [0, count / 2, count.saturating_sub(1)] {
                if n < count {
                    let (from, to) = chunks.at(n);
                    assert_eq!(from == after, n == 0);
                    assert!(from < to);
                    let next = (n + 1 < count).then(|| chunks.at(n + 1).0);
                    assert_eq!(to, next.unwrap_or(last));
                }
            }
        }
    }
}
