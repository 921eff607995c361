//! The checker: every job that was accepted is there, once, and ended as its kind does. A run that fails this is no
//! measurement.
//!
//! An own server's database is read after a check of its integrity; a server that was there before is asked for each
//! job by its id.

use std::fmt;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use rusqlite::{Connection, OpenFlags};
use serde_json::{Value, json};

use crate::http;
use crate::system::System;

/// Ids told of by their number; the rest is counted.
const EXAMPLES: usize = 5;
/// Connections that ask for jobs.
const ASKING: usize = 32;

/// How a job must have ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expect {
    /// One of these states.
    pub states: &'static [&'static str],
    /// After so many attempts at least.
    pub attempts: u64,
}

impl Expect {
    /// At the first try.
    pub const SUCCESS: Self = Self {
        states: &["succeeded"],
        attempts: 1,
    };
    /// Accepted, and not run yet.
    pub const QUEUED: Self = Self {
        states: &["unfinished", "queued"],
        attempts: 0,
    };
}

/// What was accepted: ids, and how each must end.
#[derive(Clone, Debug, Default)]
pub struct Book(Vec<(u64, u64, Expect)>);

/// A job as the server has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Its id.
    pub id: u64,
    /// Its state.
    pub state: String,
    /// The number of its last attempt.
    pub attempts: u64,
}

/// What the check found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// Jobs accepted.
    pub jobs: u64,
    /// Accepted, and not there.
    pub lost: u64,
    /// There more than once, or never accepted.
    pub twice: u64,
    /// Ended in another way than their kind does.
    pub wrong: u64,
    /// Some of each, in words.
    examples: Vec<String>,
}

impl Checked {
    /// Both systems' jobs.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        self.jobs += other.jobs;
        self.lost += other.lost;
        self.twice += other.twice;
        self.wrong += other.wrong;
        self.examples.extend(other.examples);
        self
    }
}

impl Book {
    /// These ids were accepted: so many from the first on.
    pub fn add(&mut self, first: u64, count: u64, expect: Expect) {
        self.0.push((first, count, expect));
    }

    /// Jobs accepted.
    pub fn jobs(&self) -> u64 {
        self.0.iter().map(|(_, count, _)| count).sum()
    }

    /// The last job of each request.
    pub fn lasts(&self) -> impl Iterator<Item = u64> {
        self.0.iter().map(|(first, count, _)| first + count - 1)
    }

    /// Every id, in order; an error if one was given out twice.
    fn entries(&self) -> Result<Vec<(u64, Expect)>> {
        let mut ranges = self.0.clone();
        ranges.sort_unstable_by_key(|(first, ..)| *first);
        for pair in ranges.windows(2) {
            let ((first, count, _), (next, ..)) = (pair[0], pair[1]);
            ensure!(first + count <= next, "the id {next} was given out twice");
        }
        let ids = ranges
            .iter()
            .flat_map(|&(first, count, expect)| (first..first + count).map(move |id| (id, expect)));
        Ok(ids.collect())
    }

    /// Compares with what is there, in the order of the ids.
    pub fn compare(&self, seen: impl IntoIterator<Item = Result<Seen>>) -> Result<Checked> {
        let entries = self.entries()?;
        let mut checked = Checked {
            jobs: entries.len() as u64,
            ..Checked::default()
        };
        let mut next = 0;
        let mut last = None;
        for job in seen {
            let job = job?;
            while next < entries.len() && entries[next].0 < job.id {
                checked.lose(entries[next].0);
                next += 1;
            }
            if entries.get(next).is_none_or(|(id, _)| *id != job.id) {
                let again = last == Some(job.id);
                checked.repeat(
                    job.id,
                    if again {
                        "is there twice"
                    } else {
                        "was never accepted"
                    },
                );
                continue;
            }
            let expect = entries[next].1;
            if !expect.states.contains(&job.state.as_str()) || job.attempts < expect.attempts {
                checked.mistake(&job, expect);
            }
            last = Some(job.id);
            next += 1;
        }
        for (id, _) in &entries[next..] {
            checked.lose(*id);
        }
        Ok(checked)
    }

    /// Looks at the system, all of whose jobs have ended.
    pub fn check(&self, system: &System) -> Result<Checked> {
        let checked = match system.database() {
            Some(database) => self.compare_database(&database)?,
            None => self.compare(self.asked(system)?.into_iter().map(Ok))?,
        };
        checked.verdict()?;
        if system.is_own() {
            self.compare_counters(&system.stats()?)?;
        }
        Ok(checked)
    }

    fn compare_database(&self, database: &Path) -> Result<Checked> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let db = Connection::open_with_flags(database, flags)
            .with_context(|| format!("cannot open {}", database.display()))?;
        let integrity: String = db.query_row("PRAGMA integrity_check", [], |row| row.get(0))?;
        ensure!(integrity == "ok", "the database is damaged: {integrity}");
        let mut statement =
            db.prepare("SELECT id, state, coalesce(attempt, 0) FROM job ORDER BY id")?;
        let rows = statement.query_map([], |row| {
            Ok(Seen {
                id: row.get(0)?,
                state: row.get(1)?,
                attempts: row.get(2)?,
            })
        })?;
        self.compare(rows.map(|row| Ok(row?)))
    }

    /// What an own server counted is what was accepted: an end counted twice would show here.
    fn compare_counters(&self, stats: &Value) -> Result<()> {
        let done = &stats["since_start"];
        let count = |name: &str| done[name].as_u64().unwrap_or(0);
        let names = ["succeeded", "failed", "cancelled", "expired", "skipped"];
        let ended: u64 = names.iter().map(|name| count(name)).sum();
        let queued = stats["queued"].as_u64().unwrap_or(0);
        // A server that was killed meanwhile counts from its second start on.
        let counted = ended + queued;
        ensure!(
            counted == self.jobs(),
            "the server counted {counted} jobs where {} were accepted: {stats}",
            self.jobs()
        );
        Ok(())
    }

    fn asked(&self, system: &System) -> Result<Vec<Seen>> {
        let entries = self.entries()?;
        let mut ids = entries.iter().map(|(id, _)| *id);
        let next = || {
            let path = format!("/jobs/{}?wait=60s&live=0", ids.next()?);
            Some(system.request("GET", &path, b""))
        };
        let mut seen = Vec::with_capacity(entries.len());
        http::run(system.to(), ASKING, next, |body| {
            let job: Value = serde_json::from_slice(body)?;
            seen.push(Seen {
                id: job["id"].as_u64().context("a job without id")?,
                state: job["state"].as_str().unwrap_or_default().to_owned(),
                attempts: job["attempt"].as_u64().unwrap_or(0),
            });
            Ok(())
        })?;
        seen.sort_unstable_by_key(|job| job.id);
        Ok(seen)
    }
}

impl Checked {
    /// An error if anything is not as it must be.
    pub fn verdict(&self) -> Result<()> {
        if self.lost + self.twice + self.wrong > 0 {
            bail!("{self}: {}", self.examples.join("; "));
        }
        Ok(())
    }

    /// For programs.
    pub fn as_json(&self) -> Value {
        json!({"jobs": self.jobs, "lost": self.lost, "twice": self.twice, "wrong": self.wrong})
    }

    fn lose(&mut self, id: u64) {
        self.lost += 1;
        self.tell(format!("job {id} was accepted and is not there"));
    }

    fn repeat(&mut self, id: u64, how: &str) {
        self.twice += 1;
        self.tell(format!("job {id} {how}"));
    }

    fn mistake(&mut self, job: &Seen, expect: Expect) {
        self.wrong += 1;
        self.tell(format!(
            "job {} is {} after {} attempts, not {} after {}",
            job.id,
            job.state,
            job.attempts,
            expect.states.join(" or "),
            expect.attempts
        ));
    }

    fn tell(&mut self, example: String) {
        if self.examples.len() < EXAMPLES {
            self.examples.push(example);
        }
    }
}

impl fmt::Display for Checked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} jobs accepted, {} lost, {} recorded twice, {} ended wrongly",
            self.jobs, self.lost, self.twice, self.wrong
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn book() -> Book {
        let mut book = Book::default();
        book.add(4, 2, Expect::SUCCESS);
        book.add(1, 3, Expect::SUCCESS);
        book
    }

    fn seen(ids: &[u64]) -> Vec<Result<Seen>> {
        let job = |&id: &u64| {
            Ok(Seen {
                id,
                state: "succeeded".into(),
                attempts: 1,
            })
        };
        ids.iter().map(job).collect()
    }

    fn found(ids: &[u64]) -> (u64, u64) {
        let checked = book().compare(seen(ids)).unwrap();
        assert_eq!(checked.verdict().is_err(), checked.lost + checked.twice > 0);
        (checked.lost, checked.twice)
    }

    #[test]
    fn a_lost_job_fails_the_run_wherever_it_was() {
        assert_eq!(found(&[1, 2, 3, 4, 5]), (0, 0));
        for lost in 1..=5 {
            let left: Vec<u64> = (1..=5).filter(|id| *id != lost).collect();
            assert_eq!(found(&left), (1, 0), "{lost}");
        }
        assert_eq!(found(&[]), (5, 0));
    }

    #[test]
    fn a_job_recorded_twice_or_never_accepted_fails_the_run() {
        assert_eq!(found(&[1, 2, 2, 3, 4, 5]), (0, 1));
        assert_eq!(found(&[1, 2, 3, 4, 5, 6]), (0, 1));
        assert_eq!(found(&[1, 2, 3, 5, 5]), (1, 1));
    }

    #[test]
    fn a_job_that_ended_in_another_way_fails_the_run() {
        for (state, attempts) in [("failed", 1), ("unfinished", 0), ("succeeded", 0)] {
            let mut jobs = seen(&[1, 2, 3, 4, 5]);
            jobs[2] = Ok(Seen {
                id: 3,
                state: state.into(),
                attempts,
            });
            let checked = book().compare(jobs).unwrap();
            assert_eq!((checked.lost, checked.wrong), (0, 1));
            let said = checked.verdict().unwrap_err().to_string();
            assert!(said.contains("job 3 is"), "{said}");
        }
    }

    #[test]
    fn an_id_given_out_twice_is_found() {
        let mut book = book();
        book.add(3, 1, Expect::SUCCESS);
        assert!(book.compare(seen(&[1, 2, 3, 4, 5])).is_err());
    }

    #[test]
    fn an_end_counted_twice_is_found() {
        let stats = |succeeded| json!({"queued": 0, "since_start": {"succeeded": succeeded}});
        assert!(book().compare_counters(&stats(5)).is_ok());
        assert!(book().compare_counters(&stats(6)).is_err());
    }
}
