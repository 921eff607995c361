//! The database as a stranger with sqlite3 sees it: read-only, through the two public views; and as `hostler verify`
//! sees it, against every promise.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};
use serde_json::Value;

use crate::binary::find_binary;

/// `DATA_DIR/hostler.db`, opened read-only.
#[derive(Debug)]
pub struct Database {
    connection: Connection,
    data_dir: PathBuf,
}

impl Database {
    /// Opens it.
    pub fn open(data_dir: &Path) -> Self {
        let connection = Connection::open_with_flags(
            data_dir.join("hostler.db"),
            OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX,
        )
        .unwrap();
        connection.busy_timeout(Duration::from_secs(10)).unwrap();
        Self {
            connection,
            data_dir: data_dir.to_owned(),
        }
    }

    /// How many jobs are in each state.
    pub fn states(&self) -> BTreeMap<String, i64> {
        let mut query = self
            .connection
            .prepare("SELECT state, count(*) FROM job GROUP BY state ORDER BY state")
            .unwrap();
        let rows = query
            .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))
            .unwrap();
        rows.map(Result::unwrap).collect()
    }

    /// One number.
    pub fn number(&self, sql: &str) -> i64 {
        self.connection
            .query_row(sql, [], |row| row.get(0))
            .unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    /// One text, or nothing.
    pub fn text(&self, sql: &str) -> Option<String> {
        self.connection
            .query_row(sql, [], |row| row.get(0))
            .unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    /// State, reason and attempt of a job, if there is one.
    pub fn job(&self, id: u64) -> Option<(String, String, i64)> {
        let id = i64::try_from(id).unwrap();
        let mut query = self
            .connection
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
            .connection
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
        let mut query = self
            .connection
            .prepare("SELECT job, number FROM attempt")
            .unwrap();
        let rows = query.query_map([], |row| Ok((row.get(0)?, row.get(1)?)));
        rows.unwrap().map(Result::unwrap).collect()
    }

    /// Looks through the whole data directory, database and output, against every promise.
    ///
    /// # Panics
    /// If one does not hold, or a job or an attempt number of a job is there twice in the public views.
    #[track_caller]
    pub fn check(&self) {
        let report = self.verify();
        assert_eq!(report["findings"], Value::Array(Vec::new()), "{report:#}");
        let twice = "SELECT count(*) FROM (SELECT 1 FROM job GROUP BY id HAVING count(*) > 1)";
        assert_eq!(self.number(twice), 0, "jobs that are there twice");
        let twice =
            "SELECT count(*) FROM (SELECT 1 FROM attempt GROUP BY job, number HAVING count(*) > 1)";
        assert_eq!(self.number(twice), 0, "attempts that ended twice");
    }

    /// What `hostler verify` reports; its end says the same.
    #[track_caller]
    pub fn verify(&self) -> Value {
        Self::verify_in(&self.data_dir)
    }

    /// The same where the database may be beyond opening.
    #[track_caller]
    pub fn verify_in(data_dir: &Path) -> Value {
        let output = Command::new(find_binary())
            .arg("verify")
            .arg(data_dir)
            .args(["-o", "json"])
            .env_clear()
            .env("HOME", data_dir)
            .output()
            .unwrap();
        let report: Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{error}: {output:?}"));
        let sound = report["findings"].as_array().unwrap().is_empty();
        let code = if sound { 0 } else { 1 };
        assert_eq!(output.status.code(), Some(code), "{output:?}");
        report
    }
}
