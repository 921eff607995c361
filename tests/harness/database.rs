//! The database as a stranger with sqlite3 sees it: read-only, through the two public views.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};

/// `DATA_DIR/hostler.db`, opened read-only.
#[derive(Debug)]
pub struct Database(Connection);

impl Database {
    /// Opens it.
    pub fn open(data_dir: &Path) -> Self {
        let connection = Connection::open_with_flags(
            data_dir.join("hostler.db"),
            OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX,
        )
        .unwrap();
        connection.busy_timeout(Duration::from_secs(10)).unwrap();
        Self(connection)
    }

    /// How many jobs are in each state.
    pub fn states(&self) -> BTreeMap<String, i64> {
        let mut query = self
            .0
            .prepare("SELECT state, count(*) FROM job GROUP BY state ORDER BY state")
            .unwrap();
        let rows = query
            .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))
            .unwrap();
        rows.map(Result::unwrap).collect()
    }

    /// One number.
    pub fn number(&self, sql: &str) -> i64 {
        self.0
            .query_row(sql, [], |row| row.get(0))
            .unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    /// One text, or nothing.
    pub fn text(&self, sql: &str) -> Option<String> {
        self.0
            .query_row(sql, [], |row| row.get(0))
            .unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    /// State, reason and attempt of a job, if there is one.
    pub fn job(&self, id: u64) -> Option<(String, String, i64)> {
        let id = i64::try_from(id).unwrap();
        let mut query = self
            .0
            .prepare("SELECT state, reason, attempt FROM job WHERE id = ?1")
            .unwrap();
        let mut rows = query
            .query_map([id], |row| {
                let reason: Option<String> = row.get(1)?;
                // Null: it ended without one.
                let attempt: Option<i64> = row.get(2)?;
                Ok((
                    row.get(0)?,
                    reason.unwrap_or_default(),
                    attempt.unwrap_or(0),
                ))
            })
            .unwrap();
        rows.next().map(Result::unwrap)
    }

    /// Number and reason of each ended attempt of a job, in order.
    pub fn attempts(&self, id: u64) -> Vec<(i64, String)> {
        let id = i64::try_from(id).unwrap();
        let mut query = self
            .0
            .prepare("SELECT number, reason FROM attempt WHERE job = ?1 ORDER BY number")
            .unwrap();
        let rows = query
            .query_map([id], |row| {
                let reason: Option<String> = row.get(1)?;
                Ok((row.get(0)?, reason.unwrap_or_default()))
            })
            .unwrap();
        rows.map(Result::unwrap).collect()
    }

    /// Job and number of every attempt that has ended.
    pub fn attempt_numbers(&self) -> BTreeSet<(u64, u64)> {
        let mut query = self.0.prepare("SELECT job, number FROM attempt").unwrap();
        let rows = query.query_map([], |row| Ok((row.get(0)?, row.get(1)?)));
        rows.unwrap().map(Result::unwrap).collect()
    }

    /// Looks through the whole file.
    ///
    /// # Panics
    /// If SQLite finds it damaged, a job is there twice, or an attempt number of a job is.
    #[track_caller]
    pub fn check(&self) {
        let verdict: String = self
            .0
            .query_row("PRAGMA integrity_check", [], |row| row.get(0))
            .unwrap();
        assert_eq!(verdict, "ok", "integrity_check");
        let twice = "SELECT count(*) FROM (SELECT 1 FROM job GROUP BY id HAVING count(*) > 1)";
        assert_eq!(self.number(twice), 0, "jobs that are there twice");
        let twice =
            "SELECT count(*) FROM (SELECT 1 FROM attempt GROUP BY job, number HAVING count(*) > 1)";
        assert_eq!(self.number(twice), 0, "attempts that ended twice");
    }
}
