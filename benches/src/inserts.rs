//! What two rows a job cost at least: a bare loop of SQLite's inserts, as a server has to make them.
//!
//! A thousand jobs a commit, synced, and with each the results of the thousand before: two small tables without indexes, a
//! prepared statement for each row, pages and checkpoints as the server has them.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use rusqlite::Connection;

use crate::system::cpu_of;

/// Jobs of one commit.
const BATCH: u64 = 1_000;
/// Of a job.
const BODY_BYTES: usize = 100;
/// As the server's: the log goes into the file after 64 MiB.
const PREPARE: &str = "PRAGMA page_size = 16384; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; \
     PRAGMA wal_autocheckpoint = 4096; \
     CREATE TABLE jobs (id INTEGER PRIMARY KEY, priority INTEGER, created_ms INTEGER, body BLOB) STRICT; \
     CREATE TABLE results (id INTEGER PRIMARY KEY, state INTEGER, finished_ms INTEGER) STRICT;";

/// The processor time of this process for that many jobs in a new database in `dir`.
pub fn cpu(dir: &Path, jobs: u64) -> Result<Duration> {
    let db = Connection::open(dir.join("inserts.db"))?;
    db.execute_batch(PREPARE)?;
    let mut job = db.prepare("INSERT INTO jobs VALUES (?1, ?2, ?3, ?4)")?;
    let mut result = db.prepare("INSERT INTO results VALUES (?1, ?2, ?3)")?;
    let mut begin = db.prepare("BEGIN IMMEDIATE")?;
    let mut commit = db.prepare("COMMIT")?;
    let body = [b'x'; BODY_BYTES];
    let at_ms = 1_700_000_000_000_u64;
    let before = cpu_of(std::process::id())?;
    let mut first = 1;
    // The last round has results only.
    while first <= jobs + BATCH {
        begin.execute([])?;
        for id in first..(first + BATCH).min(jobs + 1) {
            job.execute((id, 0, at_ms + id, &body[..]))?;
        }
        for id in first.saturating_sub(BATCH).max(1)..first.min(jobs + 1) {
            result.execute((id, 10, at_ms + id))?;
        }
        commit.execute([])?;
        first += BATCH;
    }
    Ok(cpu_of(std::process::id())?.saturating_sub(before))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_job_has_a_row_and_a_result() {
        let dir = tempfile::tempdir().unwrap();
        cpu(dir.path(), 2_500).unwrap();
        let db = Connection::open(dir.path().join("inserts.db")).unwrap();
        let counts = "SELECT (SELECT count(*) FROM jobs), (SELECT count(*) FROM results), (SELECT max(id) FROM results)";
        let counts: (u64, u64, u64) = db
            .query_row(counts, [], |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?))
            })
            .unwrap();
        assert_eq!(counts, (2_500, 2_500, 2_500));
    }
}
