//! What follows from an attempt's outcome: policy and counters in, verdict and delay out.
//!
//! Pure functions. The jitter is a hash of cluster, job and count, so that a replay decides the same and a thousand
//! jobs that failed together do not come back together (semantics 6, 7).

use hostler_wire::{JobId, JobState, Outcome, Reason, mutation};

use crate::fact::Charge;
use crate::spec::{Retry, Rule};
use crate::time::Span;

/// Most times a job may say "not now" (`retry.later`) before that counts as a failure.
pub(crate) const LATER_MAX: u16 = 100;

/// What becomes of a job whose attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is over.
    Done(JobState, Reason),
    /// It goes on.
    Again {
        /// At whose cost.
        charge: Charge,
        /// Why the attempt ended.
        reason: Reason,
        /// After how long; zero = at once, in its old place.
        delay: Span,
    },
}

/// What a job has used up so far.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spent {
    pub(crate) job: JobId,
    pub(crate) failures: u16,
    pub(crate) later: u16,
}

/// Judges an outcome. A list `on` that names something is exclusive: what it does not match is not retried. With an
/// empty one, all is retried that `never` does not match. (`on` is looked at first, so a failure in both is retried.)
pub(crate) fn judge(policy: &Retry, cluster: &[u8; 16], spent: Spent, outcome: Outcome) -> Verdict {
    let reason = reason(outcome);
    let mut delay = None;
    match outcome {
        Outcome::Succeeded => return Verdict::Done(JobState::Succeeded, Reason::None),
        Outcome::Returned => {
            return Verdict::Again {
                charge: Charge::Return,
                reason,
                delay: Span::ZERO,
            };
        }
        Outcome::HandlerFailed { fatal: true, .. } => {
            return Verdict::Done(JobState::Failed, reason);
        }
        Outcome::HandlerFailed {
            fatal: false,
            retry_after_ms,
        } => {
            delay = retry_after_ms.map(Span::from_millis);
        }
        Outcome::Exited { code } => {
            if policy.later.contains(&code) && spent.later < LATER_MAX {
                let delay = backoff(policy, cluster, spent.job, spent.later + 1);
                return Verdict::Again {
                    charge: Charge::Later,
                    reason: Reason::Later,
                    delay,
                };
            }
        }
        Outcome::Signalled { .. }
        | Outcome::OutOfMemory
        | Outcome::TimedOut
        | Outcome::Stalled
        | Outcome::SpawnFailed { .. }
        | Outcome::NoSuchHandler => {}
    }
    let failures = spent.failures.saturating_add(1);
    let mutated = mutation::is("one try too many");
    let allowed = policy.max_attempts + u16::from(mutated);
    if failures >= allowed || !is_retried(policy, outcome) {
        return Verdict::Done(JobState::Failed, reason);
    }
    let delay = delay.unwrap_or_else(|| backoff(policy, cluster, spent.job, failures));
    Verdict::Again {
        charge: Charge::Failure,
        reason,
        delay,
    }
}

/// d = min(max, base · factor^(k−1)); the delay lies between d/2 and d.
pub(crate) fn backoff(policy: &Retry, cluster: &[u8; 16], job: JobId, k: u16) -> Span {
    let max = policy.max_backoff.micros();
    let mut d = policy.backoff.micros().min(max);
    for _ in 1..k {
        let grown = u128::from(d) * u128::from(policy.factor_milli) / 1_000;
        let grown = u64::try_from(grown).unwrap_or(u64::MAX).min(max);
        if grown == d {
            break;
        }
        d = grown;
    }
    let half = d / 2;
    let share = (u128::from(half) * u128::from(jitter(cluster, job, k))) >> 64;
    Span::from_micros(d - half + u64::try_from(share).expect("less than half of a u64"))
}

fn is_retried(policy: &Retry, outcome: Outcome) -> bool {
    if policy.on.iter().any(|rule| matches(*rule, outcome)) {
        return true;
    }
    policy.on.is_empty() && !policy.never.iter().any(|rule| matches(*rule, outcome))
}

fn matches(rule: Rule, outcome: Outcome) -> bool {
    match (rule, outcome) {
        (Rule::Codes(from, to), Outcome::Exited { code }) => from <= code && code <= to,
        (Rule::Signal, Outcome::Signalled { .. })
        | (Rule::Timeout, Outcome::TimedOut | Outcome::Stalled)
        | (Rule::OutOfMemory, Outcome::OutOfMemory)
        | (Rule::Spawn, Outcome::SpawnFailed { .. })
        | (Rule::Error, Outcome::HandlerFailed { .. }) => true,
        _ => false,
    }
}

fn reason(outcome: Outcome) -> Reason {
    match outcome {
        Outcome::Succeeded => Reason::None,
        Outcome::Exited { .. } => Reason::ExitCode,
        Outcome::Signalled { .. } => Reason::Signal,
        Outcome::OutOfMemory => Reason::OutOfMemory,
        Outcome::TimedOut => Reason::Timeout,
        Outcome::Stalled => Reason::Stalled,
        Outcome::SpawnFailed { .. } => Reason::SpawnFailed,
        Outcome::HandlerFailed { .. } => Reason::HandlerError,
        Outcome::NoSuchHandler => Reason::NoSuchHandler,
        Outcome::Returned => Reason::Returned,
    }
}

/// A number that looks random and is the same for ever: rounds of a 64-bit mix over cluster, job and count.
fn jitter(cluster: &[u8; 16], job: JobId, k: u16) -> u64 {
    let cluster = u128::from_le_bytes(*cluster);
    let halves = [cluster & u128::from(u64::MAX), cluster >> 64];
    let words = halves.map(|half| u64::try_from(half).expect("64 of its bits"));
    [words[0], words[1], job.raw(), k.into()]
        .into_iter()
        .fold(0, |hash, word| mix(hash ^ word))
}

/// The finaliser of splitmix64: every bit of the input flips each bit of the output with a chance of about a half.
pub(crate) const fn mix(word: u64) -> u64 {
    let word = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(raw: u64) -> JobId {
        JobId::new(raw).unwrap()
    }

    fn policy() -> Retry {
        Retry {
            max_attempts: 3,
            ..Retry::default()
        }
    }

    fn verdict(policy: &Retry, failures: u16, outcome: Outcome) -> Verdict {
        judge(
            policy,
            &[7; 16],
            Spent {
                job: job(1),
                failures,
                later: 0,
            },
            outcome,
        )
    }

    fn retries(policy: &Retry, outcome: Outcome) -> bool {
        matches!(
            verdict(policy, 0, outcome),
            Verdict::Again {
                charge: Charge::Failure,
                ..
            }
        )
    }

    const EXIT_2: Outcome = Outcome::Exited { code: 2 };

    #[test]
    fn backoff_doubles_up_to_its_maximum_and_jitters_downwards_by_half_at_most() {
        let p = policy();
        for (k, seconds) in [(1, 5), (2, 10), (3, 20), (6, 160), (7, 300), (60_000, 300)] {
            let full = Span::from_secs(seconds).micros();
            for raw in 1..200 {
                let delay = backoff(&p, &[7; 16], job(raw), k).micros();
                assert!(
                    full / 2 <= delay && delay <= full,
                    "{delay} of {full} after {k}"
                );
            }
        }
    }

    #[test]
    fn jobs_that_fail_together_come_back_apart_but_always_the_same_way() {
        let p = policy();
        let delays: Vec<_> = (1..=100)
            .map(|raw| backoff(&p, &[7; 16], job(raw), 1))
            .collect();
        let mut apart = delays.clone();
        apart.sort();
        apart.dedup();
        assert!(apart.len() > 95);
        let again: Vec<_> = (1..=100)
            .map(|raw| backoff(&p, &[7; 16], job(raw), 1))
            .collect();
        assert_eq!(delays, again);
        assert_ne!(
            backoff(&p, &[7; 16], job(1), 1),
            backoff(&p, &[8; 16], job(1), 1)
        );
    }

    #[test]
    fn the_last_allowed_failure_ends_the_job() {
        assert!(matches!(
            verdict(&policy(), 1, EXIT_2),
            Verdict::Again { .. }
        ));
        let end = Verdict::Done(JobState::Failed, Reason::ExitCode);
        assert_eq!(verdict(&policy(), 2, EXIT_2), end);
        assert_eq!(
            verdict(&Retry::default(), 0, EXIT_2),
            end,
            "one attempt unless asked for more"
        );
    }

    #[test]
    fn a_named_list_of_failures_to_retry_is_exclusive_and_comes_first() {
        let on = Retry {
            on: Box::new([Rule::Codes(1, 9), Rule::Signal]),
            ..policy()
        };
        assert!(retries(&on, EXIT_2) && retries(&on, Outcome::Signalled { signal: 9 }));
        assert!(!retries(&on, Outcome::Exited { code: 10 }) && !retries(&on, Outcome::TimedOut));
        let never = Retry {
            never: Box::new([Rule::Codes(2, 2), Rule::Spawn]),
            ..policy()
        };
        assert!(!retries(&never, EXIT_2) && !retries(&never, Outcome::SpawnFailed { errno: 2 }));
        assert!(
            retries(&never, Outcome::Exited { code: 3 }) && retries(&never, Outcome::OutOfMemory)
        );
        let both = Retry {
            on: Box::new([Rule::Codes(2, 2)]),
            ..never
        };
        assert!(retries(&both, EXIT_2));
    }

    #[test]
    fn a_handler_may_end_its_retries_or_name_the_delay() {
        let fatal = Outcome::HandlerFailed {
            fatal: true,
            retry_after_ms: Some(1),
        };
        assert_eq!(
            verdict(&policy(), 0, fatal),
            Verdict::Done(JobState::Failed, Reason::HandlerError)
        );
        let named = Outcome::HandlerFailed {
            fatal: false,
            retry_after_ms: Some(1_234),
        };
        let expected = Verdict::Again {
            charge: Charge::Failure,
            reason: Reason::HandlerError,
            delay: Span::from_millis(1_234),
        };
        assert_eq!(verdict(&policy(), 0, named), expected);
    }

    #[test]
    fn not_now_is_uncharged_a_hundred_times_and_then_a_failure() {
        let p = Retry {
            later: Box::new([75]),
            ..policy()
        };
        let say = |later| {
            let spent = Spent {
                job: job(1),
                failures: 0,
                later,
            };
            judge(&p, &[7; 16], spent, Outcome::Exited { code: 75 })
        };
        assert!(matches!(
            say(99),
            Verdict::Again {
                charge: Charge::Later,
                ..
            }
        ));
        assert!(matches!(
            say(100),
            Verdict::Again {
                charge: Charge::Failure,
                ..
            }
        ));
    }

    #[test]
    fn what_is_given_back_goes_on_at_once_at_nobodys_cost() {
        let expected = Verdict::Again {
            charge: Charge::Return,
            reason: Reason::Returned,
            delay: Span::ZERO,
        };
        assert_eq!(verdict(&Retry::default(), 0, Outcome::Returned), expected);
    }

    proptest::proptest! {
        #[test]
        fn any_backoff_lies_between_half_of_the_formula_and_the_formula(
            backoff_ms in 0_u64..1 << 40,
            factor_milli in 1_000_u32..100_000,
            max_ms in 0_u64..1 << 40,
            k in 1_u16..200,
            id in 1_u64..1 << 53,
            cluster: [u8; 16],
        ) {
            let p = Retry {
                backoff: Span::from_millis(backoff_ms),
                factor_milli,
                max_backoff: Span::from_millis(max_ms),
                ..policy()
            };
            // min(max, base · factor^(k−1)), each step of it, rounded down to whole microseconds.
            let max = u128::from(p.max_backoff.micros());
            let formula = (1..k).fold(max.min(u128::from(p.backoff.micros())), |d, _| {
                max.min(d * u128::from(factor_milli) / 1_000)
            });
            let delay = u128::from(backoff(&p, &cluster, job(id), k).micros());
            proptest::prop_assert!(formula / 2 <= delay && delay <= formula, "{delay} for {formula}");
        }
    }
}
