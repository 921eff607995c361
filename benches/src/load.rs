//! Jobs through HTTP in batches, on several connections, counted and checked: what was accepted is there, once.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::http;

/// What to submit.
#[derive(Clone, Debug)]
pub struct Load {
    /// How many jobs.
    pub jobs: u64,
    /// Jobs a request; 1 = single objects.
    pub batch: u64,
    /// Connections in use.
    pub connections: usize,
    /// One job, as JSON.
    pub job: String,
}

/// What was accepted.
#[derive(Debug)]
pub struct Accepted {
    /// First ids and counts, in order, without overlap.
    pub ranges: Vec<(u64, u64)>,
    /// How the loop went.
    pub done: http::Done,
}

impl Load {
    /// No-op jobs with a payload of about 100 bytes.
    pub fn noop(jobs: u64, batch: u64, connections: usize) -> Self {
        let payload = "x".repeat(98);
        Self {
            jobs,
            batch,
            connections,
            job: format!("{{\"handler\":\"noop\",\"payload\":\"{payload}\"}}"),
        }
    }

    /// Submits them all; an error if an answer does not add up.
    pub fn submit(&self, addr: SocketAddr, token: Option<&str>) -> Result<Accepted> {
        ensure!(
            self.jobs > 0 && self.batch > 0 && self.connections > 0,
            "nothing to do"
        );
        let body = |count: u64| {
            if self.batch == 1 {
                return self.job.clone();
            }
            let jobs: Vec<&str> = (0..count).map(|_| self.job.as_str()).collect();
            format!("[{}]", jobs.join(","))
        };
        let whole = http::request("POST", "/jobs", token, body(self.batch).as_bytes());
        let mut left = self.jobs;
        let next = || {
            let count = left.min(self.batch);
            left -= count;
            match count {
                0 => None,
                count if count == self.batch => Some(whole.clone()),
                count => Some(http::request(
                    "POST",
                    "/jobs",
                    token,
                    body(count).as_bytes(),
                )),
            }
        };
        let mut ranges = Vec::new();
        let single = self.batch == 1;
        let done = http::run(addr, self.connections, next, |answer| {
            ranges.push(range(answer, single)?);
            Ok(())
        })?;
        check(&mut ranges, self.jobs)?;
        Ok(Accepted { ranges, done })
    }
}

/// The ids in an answer to a submission.
fn range(answer: &[u8], single: bool) -> Result<(u64, u64)> {
    let field = |name: &str| -> Result<u64> {
        number(answer, name)
            .ok_or_else(|| anyhow::anyhow!("no {name} in {}", String::from_utf8_lossy(answer)))
    };
    if single {
        return Ok((field("id")?, 1));
    }
    Ok((field("first_id")?, field("count")?))
}

/// The number of a field, without reading the rest: the load test must not be the slow part.
fn number(json: &[u8], name: &str) -> Option<u64> {
    let text = std::str::from_utf8(json).ok()?;
    let at = text.find(&format!("\"{name}\":"))? + name.len() + 3;
    let digits = text[at..].trim_start();
    let end = digits
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(digits.len());
    digits[..end].parse().ok()
}

/// Each job once, all jobs counted.
fn check(ranges: &mut [(u64, u64)], jobs: u64) -> Result<()> {
    ranges.sort_unstable();
    let total: u64 = ranges.iter().map(|(_, count)| count).sum();
    ensure!(total == jobs, "{total} jobs were accepted, not {jobs}");
    for pair in ranges.windows(2) {
        let ((first, count), (next, _)) = (pair[0], pair[1]);
        ensure!(
            first + count <= next,
            "the ids {next}… were given out twice"
        );
    }
    Ok(())
}

/// Asks for each job by its id whether it succeeded; tells how many did not.
pub fn not_succeeded(
    addr: SocketAddr,
    token: Option<&str>,
    accepted: &Accepted,
    connections: usize,
) -> Result<u64> {
    let mut ids = accepted
        .ranges
        .iter()
        .flat_map(|(first, count)| *first..first + count);
    let next = || {
        let id = ids.next()?;
        Some(http::request(
            "GET",
            &format!("/jobs/{id}?live=0"),
            token,
            b"",
        ))
    };
    let mut others = 0;
    http::run(addr, connections, next, |body| {
        let job: serde_json::Value = serde_json::from_slice(body)?;
        others += u64::from(job["state"] != "succeeded");
        Ok(())
    })?;
    Ok(others)
}

/// Jobs a second.
pub fn per_second(jobs: u64, elapsed: Duration) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a count of jobs, for people")]
    let jobs = jobs as f64;
    jobs / elapsed.as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_given_out_twice_or_a_job_missing_is_found() {
        assert!(check(&mut [(4, 2), (1, 3)], 5).is_ok());
        assert!(check(&mut [(4, 2), (1, 4)], 6).is_err());
        assert!(check(&mut [(1, 3)], 4).is_err());
    }

    #[test]
    fn ids_are_read_from_answers() {
        assert_eq!(
            range(br#"{"first_id":7,"count":100}"#, false).unwrap(),
            (7, 100)
        );
        assert_eq!(
            range(br#"{"id": 12,"state":"queued"}"#, true).unwrap(),
            (12, 1)
        );
        assert!(range(b"{}", true).is_err());
    }
}
