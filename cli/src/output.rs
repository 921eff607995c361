//! What goes to the terminal: data to standard output, everything else to standard error.
//!
//! The form (`-o`) and the colours are decided once, here; the commands say what they have, not how it looks.
//! Escape codes are written freely and taken out again by `anstream` where nobody would see colours.

pub(crate) mod detail;
pub(crate) mod json;
pub(crate) mod list;
pub(crate) mod paint;
pub(crate) mod progress;
pub(crate) mod top;

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};

use crate::exit::Failure;

/// The form data is printed in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Form {
    /// For people
    #[default]
    Table,
    /// For people with wide windows
    Wide,
    /// One JSON value
    Json,
    /// One JSON value a line
    Ndjson,
    /// Ids only, one a line
    Id,
}

impl Form {
    /// Whether a program reads it.
    pub(crate) fn is_json(self) -> bool {
        matches!(self, Self::Json | Self::Ndjson)
    }

    /// Whether a person reads it.
    pub(crate) fn is_human(self) -> bool {
        matches!(self, Self::Table | Self::Wide)
    }
}

/// A line of data for people.
pub(crate) fn line(text: impl Display) -> Result<(), Failure> {
    let mut out = anstream::stdout().lock();
    writeln!(out, "{text}")?;
    Ok(out.flush()?)
}

/// Bytes exactly as they are.
pub(crate) fn raw(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(bytes)?;
    Ok(out.flush()?)
}

/// Bytes of a job's standard error, exactly as they are.
pub(crate) fn raw_error(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = io::stderr().lock();
    out.write_all(bytes)?;
    Ok(out.flush()?)
}

/// A line for a person beside the data. If nobody can read it there is nobody to tell.
pub(crate) fn note(text: impl Display) {
    drop(writeln!(anstream::stderr().lock(), "{text}"));
}

/// `error:` and, if there is one, `hint:`.
pub(crate) fn failure(failure: &Failure) {
    if failure.is_silent() {
        return;
    }
    note(format_args!("{} {failure}", paint::red("error:")));
    if let Some(hint) = failure.way_out() {
        note(format_args!("  {} {hint}", paint::cyan("hint:")));
    }
}

/// Asks a person for a yes. Anything else, and nobody being there, is a no.
pub(crate) fn confirm(question: &str) -> bool {
    if !can_ask() {
        return false;
    }
    let mut err = anstream::stderr().lock();
    if write!(err, "{question} [y/N] ")
        .and_then(|()| err.flush())
        .is_err()
    {
        return false;
    }
    drop(err);
    let mut answer = String::new();
    io::stdin().read_line(&mut answer).is_ok() && matches!(answer.trim(), "y" | "Y" | "yes" | "Yes")
}

/// Whether a person sits at both ends.
pub(crate) fn can_ask() -> bool {
    io::stdin().is_terminal() && io::stderr().is_terminal()
}

/// Text that came from a job or another user, without what would steer the terminal.
pub(crate) fn plain(text: &str) -> String {
    text.chars()
        .map(|c| {
            let turns = matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
            if c.is_control() && c != '\t' || turns {
                '\u{fffd}'
            } else {
                c
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_wrote_cannot_steer_the_terminal() {
        assert_eq!(
            plain("a\x1b[31mb\tc\r\n"),
            "a\u{fffd}[31mb\tc\u{fffd}\u{fffd}"
        );
        // Nor turn what stands beside it round.
        assert_eq!(plain("a\u{202e}exe.txt"), "a\u{fffd}exe.txt");
    }
}
