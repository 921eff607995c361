//! Colours, and how a state looks: symbol, word and colour, never colour alone.

use hostler_wire::JobState;

/// Wraps text in a colour.
fn paint(code: &str, text: &str) -> String {
    format!("\x1b[{code}m{text}\x1b[0m")
}

/// For what went wrong.
pub(crate) fn red(text: &str) -> String {
    paint("31", text)
}

/// For what went well.
pub(crate) fn green(text: &str) -> String {
    paint("32", text)
}

/// For what someone should look at.
pub(crate) fn yellow(text: &str) -> String {
    paint("33", text)
}

/// For what is going on, and for hints.
pub(crate) fn cyan(text: &str) -> String {
    paint("36", text)
}

/// For what is less important.
pub(crate) fn dim(text: &str) -> String {
    paint("2", text)
}

/// For headings.
pub(crate) fn bold(text: &str) -> String {
    paint("1", text)
}

/// A state's symbol.
pub(crate) fn symbol(state: JobState) -> &'static str {
    match state {
        JobState::Scheduled => "◔",
        JobState::Blocked => "◌",
        JobState::Queued => "○",
        JobState::Running | JobState::Cancelling => "●",
        JobState::Succeeded => "✔",
        JobState::Failed | JobState::Expired => "✗",
        JobState::Cancelled => "⊘",
        JobState::Skipped => "»",
    }
}

/// A state's word in a table.
pub(crate) fn word(state: JobState) -> &'static str {
    if state == JobState::Succeeded {
        "ok"
    } else {
        state.name()
    }
}

/// Text in a state's colour.
pub(crate) fn as_state(state: JobState, text: &str) -> String {
    match state {
        JobState::Scheduled | JobState::Blocked | JobState::Queued => dim(text),
        JobState::Running => cyan(text),
        JobState::Cancelling | JobState::Cancelled | JobState::Skipped => yellow(text),
        JobState::Succeeded => green(text),
        JobState::Failed | JobState::Expired => red(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_differ_without_their_colours() {
        let mut seen: Vec<_> = JobState::ALL
            .iter()
            .map(|state| format!("{} {}", symbol(*state), word(*state)))
            .collect();
        seen.sort();
        seen.dedup();
        assert_eq!(seen.len(), JobState::ALL.len());
    }
}
