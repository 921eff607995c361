//! Many attempts in few bytes: ranges of jobs with consecutive ids and the same attempt number, as three LEB128 numbers
//! each: the first job's distance from the first of the range before, how many, the attempt.
//!
//! A worker's share of one commit is most often one range, so a row of `assigned` costs some five bytes however many
//! jobs it names.

use hostler_wire::{Attempt, JobId};

/// Appends the encoding of `attempts`, which are sorted. (A job may be there twice, if it came back and was given out
/// again within one commit.)
pub(super) fn encode(attempts: &[(JobId, Attempt)], into: &mut Vec<u8>) {
    let mut rest = attempts;
    let mut before = 0;
    while let Some(&(first, attempt)) = rest.first() {
        let run = rest
            .iter()
            .zip(first.raw()..)
            .take_while(|&(&(job, number), expected)| job.raw() == expected && number == attempt)
            .count();
        debug_assert!(first.raw() >= before, "attempts are sorted by job");
        put(first.raw() - before, into);
        put(run as u64, into);
        put(u64::from(attempt.raw()), into);
        before = first.raw();
        rest = &rest[run..];
    }
}

/// Gives each attempt to `each`, in order. Bytes that are no encoding are an error: rows are outside input too.
pub(super) fn decode(
    mut bytes: &[u8],
    mut each: impl FnMut(JobId, Attempt),
) -> Result<(), Garbled> {
    let mut before = 0_u64;
    while !bytes.is_empty() {
        let first = before.checked_add(take(&mut bytes)?).ok_or(Garbled)?;
        let count = take(&mut bytes)?;
        let attempt = u16::try_from(take(&mut bytes)?).ok().and_then(Attempt::new);
        let attempt = attempt.ok_or(Garbled)?;
        let end = first.checked_add(count).ok_or(Garbled)?;
        if count == 0
            || count > RANGE_MAX
            || JobId::new(first).is_none()
            || JobId::new(end - 1).is_none()
        {
            return Err(Garbled);
        }
        for job in (first..end).filter_map(JobId::new) {
            each(job, attempt);
        }
        before = first;
    }
    Ok(())
}

/// Most jobs in a range that is believed: more than any worker holds.
const RANGE_MAX: u64 = 1 << 24;

/// The bytes are not what [`encode`] writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Garbled;

#[expect(clippy::cast_possible_truncation, reason = "seven bits at a time")]
fn put(mut n: u64, into: &mut Vec<u8>) {
    while n >= 0x80 {
        into.push(n as u8 | 0x80);
        n >>= 7;
    }
    into.push(n as u8);
}

fn take(bytes: &mut &[u8]) -> Result<u64, Garbled> {
    let mut n = 0_u64;
    for shift in (0..63).step_by(7) {
        let (&byte, rest) = bytes.split_first().ok_or(Garbled)?;
        *bytes = rest;
        n |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok(n);
        }
    }
    Err(Garbled)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempts(list: &[(u64, u16)]) -> Vec<(JobId, Attempt)> {
        let one = |&(job, n)| (JobId::new(job).unwrap(), Attempt::new(n).unwrap());
        list.iter().map(one).collect()
    }

    fn decoded(bytes: &[u8]) -> Result<Vec<(JobId, Attempt)>, Garbled> {
        let mut all = Vec::new();
        decode(bytes, |job, attempt| all.push((job, attempt)))?;
        Ok(all)
    }

    #[test]
    fn a_run_of_jobs_costs_a_few_bytes_and_comes_back_whole() {
        let given: Vec<_> = (1_000_000..1_001_000).map(|job| (job, 1)).collect();
        let mut bytes = Vec::new();
        encode(&attempts(&given), &mut bytes);
        assert!(bytes.len() <= 6, "{bytes:?}");
        assert_eq!(decoded(&bytes), Ok(attempts(&given)));
    }

    #[test]
    fn gaps_and_other_attempt_numbers_begin_new_ranges() {
        let given = attempts(&[
            (1, 1),
            (2, 1),
            (3, 2),
            (3, 3),
            (9, 65_535),
            (JobId::MAX.raw(), 1),
        ]);
        let mut bytes = Vec::new();
        encode(&given, &mut bytes);
        assert_eq!(decoded(&bytes), Ok(given));
    }

    #[test]
    fn garbage_is_an_error_and_never_a_panic() {
        for bytes in [
            &[1, 0, 1][..],
            &[1, 1, 0],
            &[0, 1, 1],
            &[1, 1],
            &[0xff; 12],
            &[1, 1, 0x80, 0x80, 4],
        ] {
            assert_eq!(decoded(bytes), Err(Garbled), "{bytes:?}");
        }
    }
}
