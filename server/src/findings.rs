//! What a look through a data directory finds: lines for people, the same as values for programs.
//!
//! Of each check only the first findings are kept, the rest is counted: a file with a million wrong rows has one
//! trouble, not a million.
//!
//! Not here: the checks (`store::verify`, `output::verify`).

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

/// Findings kept of one check.
const EACH_MAX: u64 = 20;

/// What was looked at and what was found.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// The directory.
    pub data_dir: String,
    /// Who runs a server on it, if somebody does.
    pub server: Option<String>,
    /// How many of what were looked at.
    pub counts: BTreeMap<&'static str, u64>,
    /// What does not hold.
    pub findings: Vec<Finding>,
    /// Findings beyond those kept, by check.
    pub omitted: BTreeMap<&'static str, u64>,
    /// Checks that could not be made, or not on everything.
    pub skipped: Vec<Skipped>,
}

/// An invariant that does not hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The check's name.
    pub check: &'static str,
    /// The job it is about, if it is about one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub job: Option<u64>,
    /// What is wrong, and what that means.
    pub message: String,
}

/// A check that was not made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Skipped {
    /// Which, or on what.
    pub what: String,
    /// Why.
    pub why: String,
}

impl Report {
    /// Whether every invariant holds.
    pub fn is_sound(&self) -> bool {
        self.findings.is_empty()
    }

    /// How many findings there are, those that were not kept included.
    pub fn total(&self) -> u64 {
        self.findings.len() as u64 + self.omitted.values().sum::<u64>()
    }

    /// Something is wrong.
    pub(crate) fn find(&mut self, check: &'static str, message: impl fmt::Display) {
        self.add(check, None, message);
    }

    /// Something is wrong with a job.
    pub(crate) fn find_job(&mut self, check: &'static str, job: u64, message: impl fmt::Display) {
        self.add(check, Some(job), message);
    }

    fn add(&mut self, check: &'static str, job: Option<u64>, message: impl fmt::Display) {
        let same = |finding: &&Finding| finding.check == check;
        if self.findings.iter().filter(same).count() as u64 >= EACH_MAX {
            *self.omitted.entry(check).or_default() += 1;
            return;
        }
        self.findings.push(Finding {
            check,
            job,
            message: message.to_string(),
        });
    }

    /// Something was not looked at.
    pub(crate) fn skip(&mut self, what: impl fmt::Display, why: impl fmt::Display) {
        self.skipped.push(Skipped {
            what: what.to_string(),
            why: why.to_string(),
        });
    }

    /// So many more of those were looked at.
    pub(crate) fn count(&mut self, what: &'static str, n: u64) {
        *self.counts.entry(what).or_default() += n;
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.job {
            Some(job) => write!(f, "{}: job {job}: {}", self.check, self.message),
            None => write!(f, "{}: {}", self.check, self.message),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_many_findings_of_one_check_the_first_are_kept_and_the_rest_is_counted() {
        let mut report = Report::default();
        for job in 1..=100 {
            report.find_job("end_without_job", job, "it was never accepted");
        }
        report.find("schema", "a table is missing");
        assert_eq!(report.findings.len() as u64, EACH_MAX + 1);
        assert_eq!(report.omitted["end_without_job"], 100 - EACH_MAX);
        assert_eq!(report.total(), 101);
        assert!(!report.is_sound());
        assert_eq!(
            report.findings[0].to_string(),
            "end_without_job: job 1: it was never accepted"
        );
    }
}
