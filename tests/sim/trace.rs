//! What happened, in words; kept only if somebody wants to read it.

use std::collections::VecDeque;

/// Lines kept for a failure.
const LINES_MAX: usize = 400;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Trace {
    wanted: Wanted,
    lines: VecDeque<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Wanted {
    #[default]
    Nothing,
    /// The last lines, should it fail.
    Last,
    /// All of them, as they come.
    All,
}

impl Trace {
    pub(crate) fn new(wanted: Wanted) -> Self {
        Self {
            wanted,
            lines: VecDeque::new(),
        }
    }

    /// Something happened.
    pub(crate) fn say(&mut self, now: u64, what: impl FnOnce() -> String) {
        if self.wanted == Wanted::Nothing {
            return;
        }
        let line = format!("{:>6}.{:06} {}", now / 1_000_000, now % 1_000_000, what());
        if self.wanted == Wanted::All {
            crate::print(&line);
            return;
        }
        self.lines.push_back(line);
        if self.lines.len() > LINES_MAX {
            self.lines.pop_front();
        }
    }

    /// The last lines.
    pub(crate) fn lines(&self) -> impl Iterator<Item = &str> {
        self.lines.iter().map(String::as_str)
    }
}
