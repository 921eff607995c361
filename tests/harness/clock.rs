//! The harness's only clock, and waiting without sleeping: a condition is asked again and again until a deadline.
//!
//! Deadlines are for catching what hangs, not for measuring: they are ample, because the machine may be busy.

use std::fmt::Display;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How long anything that should happen soon may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(45);

/// How long to wait before a condition is asked again.
const POLL: Duration = Duration::from_millis(10);

/// The monotonic clock.
#[expect(
    clippy::disallowed_methods,
    reason = "clock.rs is where the clock is read"
)]
pub fn now() -> Instant {
    Instant::now()
}

/// Time since `start`.
pub fn elapsed(start: Instant) -> Duration {
    now().duration_since(start)
}

/// The wall clock, in ms since 1970: to compare with what jobs and server write down.
#[expect(
    clippy::disallowed_methods,
    reason = "clock.rs is where the clock is read"
)]
pub fn unix_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    i64::try_from(since.as_millis()).unwrap()
}

/// Asks until there is an answer.
///
/// # Panics
/// If there is none after `within`.
#[track_caller]
pub fn wait_for<T>(within: Duration, what: impl Display, mut ask: impl FnMut() -> Option<T>) -> T {
    let start = now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(
            elapsed(start) < within,
            "still not after {within:?}: {what}"
        );
        thread::park_timeout(POLL);
    }
}

/// Asks until the condition holds.
///
/// # Panics
/// If it does not after `within`.
#[track_caller]
pub fn eventually(within: Duration, what: impl Display, mut holds: impl FnMut() -> bool) {
    wait_for(within, what, || holds().then_some(()));
}

/// Asks for the whole of `during`, and the condition must not come true.
///
/// # Panics
/// If it does.
#[track_caller]
pub fn never(during: Duration, what: impl Display, mut holds: impl FnMut() -> bool) {
    let start = now();
    while elapsed(start) < during {
        assert!(!holds(), "happened after {:?}: {what}", elapsed(start));
        thread::park_timeout(POLL);
    }
}

/// Lets time pass: to choose the moment of a blow, or the pace of a load. Never to wait until something has happened.
pub fn pause(span: Duration) {
    let start = now();
    while let Some(left) = span.checked_sub(elapsed(start)) {
        thread::park_timeout(left);
    }
}

/// A time such as `2026-11-24T09:01:12.345Z`, in ms since 1970.
///
/// # Panics
/// If it is no UTC time in RFC 3339: the interface promises that form.
#[track_caller]
pub fn parse_rfc3339_ms(text: &str) -> i64 {
    let number = |from: usize, to: usize| -> i64 {
        text.get(from..to)
            .and_then(|digits| digits.parse().ok())
            .unwrap_or_else(|| panic!("no RFC 3339 time: {text}"))
    };
    assert!(text.ends_with('Z'), "not UTC: {text}");
    let (year, month, day) = (number(0, 4), number(5, 7), number(8, 10));
    let ms = match text.get(19..20) {
        Some(".") => {
            let digits = &text[20..text.len() - 1];
            format!("{digits:0<3}")[..3].parse().unwrap()
        }
        _ => 0,
    };
    // Days since 1970 of a civil date, counting years from March so that the leap day comes last.
    let (y, m) = if month <= 2 {
        (year - 1, month + 9)
    } else {
        (year, month - 3)
    };
    let day_of_era = y * 365 + y / 4 - y / 100 + y / 400 + (m * 153 + 2) / 5 + day - 1;
    let days = day_of_era - 719_468;
    ((days * 24 + number(11, 13)) * 60 + number(14, 16)) * 60_000 + number(17, 19) * 1_000 + ms
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_to_the_millisecond() {
        assert_eq!(parse_rfc3339_ms("1970-01-01T00:00:00.000Z"), 0);
        assert_eq!(parse_rfc3339_ms("2000-02-29T12:00:00Z"), 951_825_600_000);
        assert_eq!(
            parse_rfc3339_ms("2026-11-24T09:01:12.345Z"),
            1_795_510_872_345
        );
    }
}
