//! JSON for programs: what the server sent, as it sent it, so that fields newer than this program come through.

use std::io::{self, Write};

use serde::Serialize;

use crate::exit::Failure;
use crate::output::Form;

/// Something of ours: spread over lines as `json`, on one line as `ndjson`.
pub(crate) fn value(form: Form, value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string(value).map_err(io::Error::from)?;
    self::text(form, &text)
}

/// JSON text from the server.
pub(crate) fn text(form: Form, text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    if form == Form::Json {
        out.write_all(spread(text).as_bytes())?;
    } else {
        out.write_all(text.trim().as_bytes())?;
    }
    out.write_all(b"\n")?;
    Ok(out.flush()?)
}

/// Spreads valid JSON over lines without reading anything into it: names and numbers stay as they were written.
fn spread(text: &str) -> String {
    let mut out = String::with_capacity(text.len() * 2);
    let mut depth = 0usize;
    let mut opened = false;
    for (c, in_string) in text.chars().filter_outside_strings() {
        let closes = !in_string && (c == '}' || c == ']');
        if opened && !closes {
            newline(&mut out, depth);
        }
        if closes {
            depth = depth.saturating_sub(1);
            if !opened {
                newline(&mut out, depth);
            }
        }
        opened = false;
        out.push(c);
        match c {
            '{' | '[' if !in_string => {
                depth += 1;
                opened = true;
            }
            ',' if !in_string => newline(&mut out, depth),
            ':' if !in_string => out.push(' '),
            _ => {}
        }
    }
    out
}

fn newline(out: &mut String, depth: usize) {
    out.push('\n');
    out.extend(std::iter::repeat_n("  ", depth));
}

/// Tells characters within strings from those outside, and drops white space outside.
trait FilterOutsideStrings: Iterator<Item = char> + Sized {
    fn filter_outside_strings(self) -> impl Iterator<Item = (char, bool)> {
        let (mut in_string, mut escaped) = (false, false);
        self.filter_map(move |c| {
            let inside = in_string;
            if escaped {
                escaped = false;
            } else if in_string && c == '\\' {
                escaped = true;
            } else if c == '"' {
                in_string = !in_string;
            }
            (inside || !c.is_ascii_whitespace()).then_some((c, inside || c == '"'))
        })
    }
}

impl<I: Iterator<Item = char>> FilterOutsideStrings for I {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_spread_over_lines_and_otherwise_kept() {
        let text = r#"{"a":[],"b": [1,{"c":"x,{:\" }\\"}],"d":1.50,"e":{}}"#;
        assert_eq!(
            spread(text),
            "{\n  \"a\": [],\n  \"b\": [\n    1,\n    {\n      \"c\": \"x,{:\\\" }\\\\\"\n    }\n  ],\n  \"d\": 1.50,\n  \"e\": {}\n}"
        );
        let there: serde_json::Value = serde_json::from_str(&spread(text)).unwrap();
        let here: serde_json::Value = serde_json::from_str(text).unwrap();
        assert_eq!(there, here);
    }
}
