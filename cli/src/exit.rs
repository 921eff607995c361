//! Every exit code and its meaning, and the errors that carry one to the end of the program. No other file knows a
//! number.
//!
//! Scripts build on these: interface.md section 4 is the table, a change to it is a change of the contract.

use std::fmt;
use std::process::ExitCode;

/// How the program ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Done; all waited jobs succeeded.
    Done,
    /// A waited job did not succeed, or a server or worker could not go on.
    Unsuccessful,
    /// The command line, a file it names, or what it describes makes no sense.
    Usage,
    /// No such job, queue or worker.
    Unknown,
    /// The access token is missing or allows too little.
    Forbidden,
    /// The server cannot be reached, or does not answer as a Hostler server does.
    Unreachable,
    /// In conflict with what is so already: finished, or a key used twice.
    Conflict,
    /// Refused for now: queue full, draining, rate.
    Refused,
    /// `--timeout` elapsed, or the time limit of a job under `run`.
    Elapsed,
    /// Under `run`: the trouble is ours, not the job's.
    Ours,
    /// Under `run`: the job's own code.
    Job(u8),
    /// Ended by this signal: under `run` the job was, otherwise we were told twice to stop.
    Signal(u8),
}

impl Exit {
    /// The number the shell sees.
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Unsuccessful => 1,
            Self::Usage => 2,
            Self::Unknown => 3,
            Self::Forbidden => 4,
            Self::Unreachable => 5,
            Self::Conflict => 6,
            Self::Refused => 7,
            Self::Elapsed => 124,
            Self::Ours => 125,
            Self::Job(code) => code,
            Self::Signal(signal) => 128u8.saturating_add(signal),
        }
    }

    /// What an HTTP status means for the caller. `code` is the problem's stable name.
    pub(crate) fn of_status(status: u16, code: &str) -> Self {
        match status {
            401 | 403 => Self::Forbidden,
            404 | 410 => Self::Unknown,
            409 => Self::Conflict,
            422 if code.starts_with("idempotency") => Self::Conflict,
            429 | 503 => Self::Refused,
            400..=499 => Self::Usage,
            _ => Self::Unreachable,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

/// Why a command could not do what it was asked: what the user reads, and how the program ends.
#[derive(Debug)]
pub(crate) struct Failure {
    exit: Exit,
    message: String,
    hint: Option<String>,
}

impl Failure {
    /// A failure in a sentence, lower case, without a full stop.
    pub(crate) fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self {
            exit,
            message: message.into(),
            hint: None,
        }
    }

    /// The command line makes no sense.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message)
    }

    /// Adds the way out.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The same failure under `run`, where the small codes are the job's.
    pub(crate) fn ours(mut self) -> Self {
        if self.exit != Exit::Done {
            self.exit = Exit::Ours;
        }
        self
    }

    /// How the program ends by it.
    pub(crate) fn exit(&self) -> Exit {
        self.exit
    }

    /// The way out, if there is one to tell.
    pub(crate) fn way_out(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// Whether there is anything to say: a reader that went away (`hostler list | head`) wants no words.
    pub(crate) fn is_silent(&self) -> bool {
        self.message.is_empty()
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

/// Writing our own output failed: a closed pipe is the reader's way to say "enough".
impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        if error.kind() == std::io::ErrorKind::BrokenPipe {
            Self::new(Exit::Done, "")
        } else {
            Self::new(Exit::Unsuccessful, format!("cannot write: {error}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_codes_are_the_table_of_the_contract() {
        let table = [
            (Exit::Done, 0),
            (Exit::Unsuccessful, 1),
            (Exit::Usage, 2),
            (Exit::Unknown, 3),
            (Exit::Forbidden, 4),
            (Exit::Unreachable, 5),
            (Exit::Conflict, 6),
            (Exit::Refused, 7),
            (Exit::Elapsed, 124),
            (Exit::Ours, 125),
            (Exit::Job(42), 42),
            (Exit::Signal(15), 143),
        ];
        for (exit, code) in table {
            assert_eq!(exit.code(), code, "{exit:?}");
        }
    }

    #[test]
    fn a_status_of_the_server_becomes_the_code_for_what_it_says() {
        for (status, code, exit) in [
            (400, "invalid_json", Exit::Usage),
            (401, "unauthorized", Exit::Forbidden),
            (403, "forbidden", Exit::Forbidden),
            (404, "no_such_job", Exit::Unknown),
            (410, "purged", Exit::Unknown),
            (409, "job_finished", Exit::Conflict),
            (422, "invalid_job", Exit::Usage),
            (422, "idempotency_key_reused", Exit::Conflict),
            (429, "queue_full", Exit::Refused),
            (503, "draining", Exit::Refused),
            (500, "internal", Exit::Unreachable),
        ] {
            assert_eq!(Exit::of_status(status, code), exit, "{status} {code}");
        }
    }

    #[test]
    fn under_run_a_failure_is_ours_but_a_closed_pipe_is_none() {
        assert_eq!(Failure::usage("no").ours().exit(), Exit::Ours);
        let closed: Failure = std::io::Error::from(std::io::ErrorKind::BrokenPipe).into();
        assert!(closed.is_silent());
        assert_eq!(closed.ours().exit(), Exit::Done);
    }
}
