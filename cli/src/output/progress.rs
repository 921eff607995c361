//! How far a wait for many jobs, or a load test, is: a bar on a terminal, elsewhere a line every ten seconds.

use std::io::{self, IsTerminal};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::clock::Moment;
use crate::output;

/// Between two lines where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Progress of a wait.
#[derive(Debug)]
pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    total: usize,
    ended: usize,
    failed: usize,
    last_line: Moment,
}

impl Progress {
    /// Progress over so many jobs; a single one has none to show.
    pub(crate) fn new(total: usize) -> Self {
        let bar = (total > 1)
            .then(|| bar(u64::try_from(total).ok()))
            .flatten();
        Self {
            bar,
            total,
            ended: 0,
            failed: 0,
            last_line: Moment::now(),
        }
    }

    /// One more has ended.
    pub(crate) fn ended(&mut self, succeeded: bool) {
        self.ended += 1;
        self.failed += usize::from(!succeeded);
        let counts = format!("{} ok  {} failed", self.ended - self.failed, self.failed);
        if let Some(bar) = &self.bar {
            bar.set_message(counts);
            bar.inc(1);
        } else if self.total > 1 && self.last_line.elapsed() >= LINE_EVERY {
            output::note(format_args!("{}/{}  {counts}", self.ended, self.total));
            self.last_line = Moment::now();
        }
    }

    /// Says something without disturbing the bar.
    pub(crate) fn note(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| output::note(text)),
            None => output::note(text),
        }
    }
}

/// A bar on standard error, if that is a terminal.
fn bar(total: Option<u64>) -> Option<ProgressBar> {
    io::stderr().is_terminal().then(|| {
        let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr());
        let style = ProgressStyle::with_template("[{bar:24}]  {pos}/{len}  {msg}  eta {eta}")
            .expect("the template is a constant")
            .progress_chars("██░");
        bar.set_style(style);
        bar
    })
}

/// Progress of something with several stages, each with a count of its own.
#[derive(Debug)]
pub(crate) struct Bar {
    bar: Option<ProgressBar>,
    last_line: Moment,
}

impl Bar {
    /// Nothing to show yet.
    pub(crate) fn new() -> Self {
        Self {
            bar: bar(None),
            last_line: Moment::now(),
        }
    }

    /// So far, of so many.
    pub(crate) fn at(&mut self, what: &str, done: u64, total: u64) {
        if let Some(bar) = &self.bar {
            if bar.message() != what {
                bar.reset();
                bar.set_message(what.to_owned());
            }
            bar.set_length(total);
            bar.set_position(done);
        } else if self.last_line.elapsed() >= LINE_EVERY {
            output::note(format_args!("{done}/{total} {what}"));
            self.last_line = Moment::now();
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
