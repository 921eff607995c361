//! What a job can be, why, and how urgent: names and stable numbers.
//!
//! Not here: which state may follow which (that is the engine's).

use std::fmt;

/// Defines an enum with a stable number and a stable snake_case name for each variant: the number is stored and sent,
/// the name is shown. Neither ever changes.
macro_rules! named {
    ($(#[$meta:meta])* $name:ident { $($(#[$vmeta:meta])* $variant:ident = $code:literal, $text:literal;)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum $name { $($(#[$vmeta])* $variant = $code,)+ }

        impl $name {
            /// Every value, in the order of the numbers.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The number it is stored and sent as.
            pub const fn code(self) -> u8 {
                self as u8
            }

            /// The value with this number.
            pub const fn from_code(code: u8) -> Option<Self> {
                match code { $($code => Some(Self::$variant),)+ _ => None }
            }

            /// The name it is shown as.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }

            /// The value with this name.
            pub fn from_name(name: &str) -> Option<Self> {
                match name { $($text => Some(Self::$variant),)+ _ => None }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.name())
            }
        }
    };
}

named! {
    /// A job's state, as users see it.
    JobState {
        /// Waits for a time: `run_at`, `delay_ms`, or the back-off before a retry.
        Scheduled = 1, "scheduled";
        /// Waits for jobs named in `after`.
        Blocked = 2, "blocked";
        /// May run now; waits for a slot.
        Queued = 3, "queued";
        /// An attempt is on a worker.
        Running = 4, "running";
        /// It was told to stop and has not ended yet.
        Cancelling = 5, "cancelling";
        /// Terminal: it did what it should.
        Succeeded = 10, "succeeded";
        /// Terminal: it did not, and no try is left.
        Failed = 11, "failed";
        /// Terminal: someone stopped it.
        Cancelled = 12, "cancelled";
        /// Terminal: it never started in time.
        Expired = 13, "expired";
        /// Terminal: a job it waited for made it pointless.
        Skipped = 14, "skipped";
    }
}

impl JobState {
    /// Whether it is for ever.
    pub const fn is_terminal(self) -> bool {
        self.code() >= JobState::Succeeded.code()
    }
}

named! {
    /// Why a job or an attempt is in its state.
    Reason {
        /// Nothing to explain: it succeeded, or waits in the ordinary way.
        None = 0, "none";
        /// The command ended with a non-zero exit code.
        ExitCode = 1, "exit_code";
        /// The command was ended by a signal.
        Signal = 2, "signal";
        /// `timeout_ms` ran out.
        Timeout = 3, "timeout";
        /// Its worker vanished.
        WorkerLost = 4, "worker_lost";
        /// The command could not be started.
        SpawnFailed = 5, "spawn_failed";
        /// The handler returned an error or panicked.
        HandlerError = 6, "handler_error";
        /// The worker has no handler of that name.
        NoSuchHandler = 7, "no_such_handler";
        /// Someone cancelled it.
        CancelledByUser = 8, "cancelled_by_user";
        /// A job named in `after` did not end as required.
        DependencyFailed = 9, "dependency_failed";
        /// `expires_at` or `expires_ms` passed before it ever started.
        NotStartedInTime = 10, "not_started_in_time";
        /// `deadline_at` or `deadline_ms` passed.
        Deadline = 11, "deadline";
        /// 65,535 attempts were used up.
        TooManyAttempts = 12, "too_many_attempts";
        /// The worker gave it back unstarted, or drained.
        Returned = 13, "returned";
        /// The kernel killed it for want of memory.
        OutOfMemory = 14, "oom";
        /// Waits for `run_at` or `delay_ms`.
        Delayed = 15, "delayed";
        /// Waits for the back-off before its next try.
        BackOff = 16, "back_off";
        /// An exit code of `retry.later`: uncharged, tried again later.
        Later = 17, "later";
        /// No output, progress or heartbeat for `stall_ms`.
        Stalled = 18, "stalled";
    }
}

/// How urgent a job is: −128..=127, higher first, 0 by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Priority(i8);

impl Priority {
    /// The default.
    pub const NORMAL: Self = Self(0);

    /// The priority with this number.
    pub const fn new(raw: i8) -> Self {
        Self(raw)
    }

    /// The number itself.
    pub const fn raw(self) -> i8 {
        self.0
    }

    /// Its place among 256 lanes, 0 for the least urgent.
    pub const fn lane(self) -> u8 {
        self.0.cast_unsigned() ^ 0x80
    }

    /// The priority of that lane.
    pub const fn from_lane(lane: u8) -> Self {
        Self((lane ^ 0x80).cast_signed())
    }
}

impl fmt::Display for Priority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
