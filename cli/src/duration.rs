//! Lengths of time as people write and read them: `90s`, `1h30m`, `500ms`, `2d`; a day is 24 hours, a bare number is
//! refused.

use std::time::Duration;

use jiff::SpanRelativeTo;
use jiff::fmt::friendly::SpanParser;

/// Reads a length of time, for clap.
pub(crate) fn parse(text: &str) -> Result<Duration, String> {
    let wrong = || format!("\"{text}\" is no length of time: write 90s, 1h30m, 500ms or 2d");
    let span = SpanParser::new().parse_span(text).or(Err(wrong()))?;
    let duration = span
        .to_duration(SpanRelativeTo::days_are_24_hours())
        .or(Err(format!(
            "\"{text}\": months and years have no fixed length"
        )))?;
    Duration::try_from(duration).or(Err(format!("\"{text}\" is negative")))
}

/// Whole milliseconds, as the interface counts.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// How long something took: `12ms`, `3.2s`, `4m02s`, `1h05m`, `3d04h`.
pub(crate) fn took(ms: u64) -> String {
    let s = ms / 1_000;
    match ms {
        0..1_000 => format!("{ms}ms"),
        1_000..60_000 => format!("{}.{}s", s, ms % 1_000 / 100),
        60_000..3_600_000 => format!("{}m{:02}s", s / 60, s % 60),
        3_600_000..86_400_000 => format!("{}h{:02}m", s / 3_600, s / 60 % 60),
        _ => format!("{}d{:02}h", s / 86_400, s / 3_600 % 24),
    }
}

/// How long ago something was, in one unit: `4s`, `9m`, `3h`, `12d`.
pub(crate) fn ago(ms: u64) -> String {
    let s = ms / 1_000;
    match s {
        0..120 => format!("{s}s"),
        120..7_200 => format!("{}m", s / 60),
        7_200..172_800 => format!("{}h", s / 3_600),
        _ => format!("{}d", s / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_write_lengths_of_time_in_many_ways() {
        for (text, ms) in [
            ("90s", 90_000),
            ("1h30m", 5_400_000),
            ("1h 30m", 5_400_000),
            ("1.5h", 5_400_000),
            ("500ms", 500),
            ("2d", 172_800_000),
            ("1w", 604_800_000),
            ("0s", 0),
        ] {
            assert_eq!(parse(text).map(millis), Ok(ms), "{text}");
        }
    }

    #[test]
    fn a_bare_number_or_a_length_that_is_not_fixed_is_refused() {
        for text in ["90", "", "1mo", "1y", "-3s", "3s ago", "soon"] {
            assert!(parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn lengths_are_shown_with_the_digits_that_matter() {
        assert_eq!(
            [
                12,
                999,
                1_000,
                3_249,
                59_999,
                242_000,
                3_900_000,
                273_600_000
            ]
            .map(took),
            [
                "12ms", "999ms", "1.0s", "3.2s", "59.9s", "4m02s", "1h05m", "3d04h"
            ]
        );
        assert_eq!(
            [0, 4_000, 540_000, 10_800_000, 1_036_800_000].map(ago),
            ["0s", "4s", "9m", "3h", "12d"]
        );
    }
}
