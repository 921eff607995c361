//! How fast the output of one attempt goes out once its job has printed more than is kept.
//!
//! Of a job that writes faster than anybody reads, head and tail are kept and the middle is dropped: sending all of it
//! would cost server, disk and everybody else's jobs what is thrown away there. So such an attempt has a bucket: its
//! limit goes at full speed, after that as much a second. A job that prints less than its limit a second never notices.
//!
//! What goes, goes in bursts of a sixteenth of that: a follower of such a job sees stretches without a gap.
//!
//! Not here: which pieces are dropped meanwhile (`output`).

use crate::clock::{Span, Time};

/// The least bucket, be the limit ever so small: two streams' lines are to be seen while they come.
const BUCKET_BYTES_MIN: u64 = 1 << 20;
/// The part of the bucket that must have come together before anything goes.
const BURST_SHARE: u64 = 16;
const SECOND_US: u64 = 1_000_000;

/// One attempt's bucket.
#[derive(Debug)]
pub(crate) struct Pace {
    /// Its size, and what comes into it a second.
    bucket_bytes: u64,
    bytes: u64,
    /// When it was last looked at, and the part of a byte that had come by then, in millionths.
    at: Time,
    part: u64,
    /// Of the burst that has begun, still to go.
    burst_bytes: u64,
}

impl Pace {
    /// A full bucket, for an attempt of which so much is kept.
    pub(crate) fn new(limit_bytes: u64) -> Self {
        let bucket_bytes = limit_bytes.max(BUCKET_BYTES_MIN);
        Self {
            bucket_bytes,
            bytes: bucket_bytes,
            at: Time::default(),
            part: 0,
            burst_bytes: 0,
        }
    }

    /// Whether a piece may go now, or when to ask again.
    pub(crate) fn ask(&mut self, now: Time) -> Result<(), Time> {
        if self.burst_bytes > 0 {
            return Ok(());
        }
        let burst_bytes = self.bucket_bytes / BURST_SHARE;
        // Beyond a second it is full whatever comes.
        let passed_us = now.since(self.at).us().min(SECOND_US);
        let come = self
            .bucket_bytes
            .saturating_mul(passed_us)
            .saturating_add(self.part);
        self.bytes = (self.bytes + come / SECOND_US).min(self.bucket_bytes);
        self.part = come % SECOND_US;
        self.at = now;
        if self.bytes >= burst_bytes {
            self.burst_bytes = burst_bytes;
            return Ok(());
        }
        let missing_us = (burst_bytes - self.bytes) * SECOND_US / self.bucket_bytes;
        Err(now + Span::from_us(missing_us + 1))
    }

    /// So many bytes have gone.
    pub(crate) fn sent(&mut self, bytes: u64) {
        self.bytes = self.bytes.saturating_sub(bytes);
        self.burst_bytes = self.burst_bytes.saturating_sub(bytes);
    }

    /// What is to go without a gap: so much of what comes next is not to be dropped.
    pub(crate) fn burst_bytes(&self) -> u64 {
        self.burst_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIECE: u64 = 64 << 10;

    /// Sends pieces for as long as it may, until that time; tells how many bytes went and in how many stretches.
    fn flood(pace: &mut Pace, from: Time, until: Time) -> (u64, u64) {
        let (mut now, mut bytes, mut stretches) = (from, 0, 1);
        while now < until {
            match pace.ask(now) {
                Ok(()) => {
                    pace.sent(PIECE);
                    bytes += PIECE;
                }
                Err(due) => {
                    assert!(due > now);
                    now = due;
                    stretches += 1;
                }
            }
        }
        (bytes, stretches)
    }

    #[test]
    fn the_limit_goes_at_once_and_then_as_much_a_second_in_sixteen_bursts() {
        let limit = 16 << 20;
        let mut pace = Pace::new(limit);
        let start = Time::from_us(5_000_000);
        let (bytes, _) = flood(&mut pace, start, start + Span::from_us(1));
        assert_eq!(bytes, limit);
        let (bytes, stretches) = flood(&mut pace, start, start + Span::from_ms(10_000));
        assert!((9 * limit..=10 * limit).contains(&bytes), "{bytes}");
        assert!((150..=162).contains(&stretches), "{stretches}");
    }

    #[test]
    fn who_prints_less_than_the_limit_a_second_never_waits() {
        let mut pace = Pace::new(1 << 20);
        let mut now = Time::from_us(1);
        for _ in 0..10_000 {
            assert_eq!(pace.ask(now), Ok(()));
            pace.sent(PIECE);
            now = now + Span::from_ms(64);
        }
    }

    #[test]
    fn asking_often_does_not_make_it_faster_or_slower() {
        let mut pace = Pace::new(1 << 20);
        while pace.ask(Time::from_us(1)).is_ok() {
            pace.sent(PIECE);
        }
        let mut now = 1;
        while pace.ask(Time::from_us(now)).is_err() {
            now += 1;
        }
        assert!((62_000..=63_000).contains(&now), "{now}");
    }
}
