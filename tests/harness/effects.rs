//! What jobs really did, in their own words: each start appends a line to a file. The file knows nothing of server or
//! database, so it can contradict them.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::scratch::Scratch;

/// A file that jobs append to.
#[derive(Clone, Debug)]
pub struct Effects {
    file: PathBuf,
    cwd: PathBuf,
}

/// One line of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Start {
    /// `HOSTLER_JOB_ID`.
    pub job: u64,
    /// `HOSTLER_ATTEMPT`.
    pub attempt: u64,
    /// `HOSTLER_FENCE`.
    pub fence: u64,
    /// When, in ms since 1970; 0 of a job that does not say.
    pub at_ms: i64,
}

impl Effects {
    /// A file of this name in the test's directory.
    pub fn new(scratch: &Scratch, name: &str) -> Self {
        Self {
            file: scratch.join(name),
            cwd: scratch.path(),
        }
    }

    /// A job that writes down its start and then runs `then` (a line of shell).
    pub fn job(&self, then: &str) -> Value {
        // One write to a file opened for appending: lines of different jobs do not mix.
        let line = format!(
            r#"echo "$HOSTLER_JOB_ID $HOSTLER_ATTEMPT $HOSTLER_FENCE $(date +%s%3N)" >> {}; {then}"#,
            self.file.display(),
        );
        json!({ "command": ["sh", "-c", line], "cwd": self.cwd })
    }

    /// The same without the time of day: `date` is a process of its own, and costs more than the rest of the job.
    pub fn plain_job(&self, then: &str) -> Value {
        let line = format!(
            r#"echo "$HOSTLER_JOB_ID $HOSTLER_ATTEMPT $HOSTLER_FENCE 0" >> {}; {then}"#,
            self.file.display(),
        );
        json!({ "command": ["sh", "-c", line], "cwd": self.cwd })
    }

    /// Every start so far, in order. A line still being written is not there yet.
    pub fn starts(&self) -> Vec<Start> {
        let text = fs::read_to_string(&self.file).unwrap_or_default();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole
            .lines()
            .map(|line| {
                let fields: Vec<i64> = line
                    .split_whitespace()
                    .map(|field| {
                        field
                            .parse()
                            .unwrap_or_else(|_| panic!("no start: {line:?}"))
                    })
                    .collect();
                let [job, attempt, fence, at_ms] = fields[..] else {
                    panic!("no start: {line:?}")
                };
                let unsigned = |number: i64| u64::try_from(number).unwrap();
                Start {
                    job: unsigned(job),
                    attempt: unsigned(attempt),
                    fence: unsigned(fence),
                    at_ms,
                }
            })
            .collect()
    }

    /// The starts of one job.
    pub fn of(&self, job: u64) -> Vec<Start> {
        self.starts()
            .into_iter()
            .filter(|start| start.job == job)
            .collect()
    }

    /// How often each job started.
    pub fn counts(&self) -> BTreeMap<u64, usize> {
        let mut counts = BTreeMap::new();
        for start in self.starts() {
            *counts.entry(start.job).or_default() += 1;
        }
        counts
    }
}
