//! Classes as JSON, which people can read in the database.
//!
//! The words are our own and stable; what they mean is the engine's.

use std::sync::Arc;

use hostler_engine::Span;
use hostler_engine::spec::{Class, ClassId, ClassSpec, Kind, Retry, Rule};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    queue: String,
    kind: StoredKind,
    max_attempts: u16,
    backoff_us: u64,
    factor_milli: u32,
    max_backoff_us: u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    on: Vec<StoredRule>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    never: Vec<StoredRule>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    later: Vec<u8>,
    max_losses: u16,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    timeout_us: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    grace_us: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    stall_us: Option<u64>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    stop_on_partition: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum StoredKind {
    Command,
    Handler,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum StoredRule {
    Codes(u8, u8),
    Signal,
    Timeout,
    Oom,
    Spawn,
    Error,
}

/// The text of a class.
pub(super) fn encode(spec: &ClassSpec) -> String {
    let Retry {
        max_attempts,
        backoff,
        factor_milli,
        max_backoff,
        on,
        never,
        later,
    } = &spec.retry;
    let stored = Stored {
        queue: spec.queue.to_string(),
        kind: match spec.kind {
            Kind::Command => StoredKind::Command,
            Kind::Handler => StoredKind::Handler,
        },
        max_attempts: *max_attempts,
        backoff_us: backoff.micros(),
        factor_milli: *factor_milli,
        max_backoff_us: max_backoff.micros(),
        on: on.iter().copied().map(StoredRule::of).collect(),
        never: never.iter().copied().map(StoredRule::of).collect(),
        later: later.to_vec(),
        max_losses: spec.max_losses,
        timeout_us: spec.timeout.map(Span::micros),
        grace_us: spec.grace.map(Span::micros),
        stall_us: spec.stall.map(Span::micros),
        stop_on_partition: spec.stop_on_partition,
    };
    serde_json::to_string(&stored).expect("strings and numbers always become JSON")
}

/// The class with that number and text; the error says what is wrong with the text.
pub(super) fn decode(id: ClassId, text: &str) -> Result<Arc<Class>, String> {
    let stored: Stored = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let rules = |list: Vec<StoredRule>| list.into_iter().map(StoredRule::rule).collect();
    let spec = ClassSpec {
        queue: stored.queue.into(),
        kind: match stored.kind {
            StoredKind::Command => Kind::Command,
            StoredKind::Handler => Kind::Handler,
        },
        retry: Retry {
            max_attempts: stored.max_attempts,
            backoff: Span::from_micros(stored.backoff_us),
            factor_milli: stored.factor_milli,
            max_backoff: Span::from_micros(stored.max_backoff_us),
            on: rules(stored.on),
            never: rules(stored.never),
            later: stored.later.into(),
        },
        max_losses: stored.max_losses,
        timeout: stored.timeout_us.map(Span::from_micros),
        grace: stored.grace_us.map(Span::from_micros),
        stall: stored.stall_us.map(Span::from_micros),
        stop_on_partition: stored.stop_on_partition,
    };
    Ok(Arc::new(Class { id, spec }))
}

impl StoredRule {
    fn of(rule: Rule) -> Self {
        match rule {
            Rule::Codes(from, to) => Self::Codes(from, to),
            Rule::Signal => Self::Signal,
            Rule::Timeout => Self::Timeout,
            Rule::OutOfMemory => Self::Oom,
            Rule::Spawn => Self::Spawn,
            Rule::Error => Self::Error,
        }
    }

    fn rule(self) -> Rule {
        match self {
            Self::Codes(from, to) => Rule::Codes(from, to),
            Self::Signal => Rule::Signal,
            Self::Timeout => Rule::Timeout,
            Self::Oom => Rule::OutOfMemory,
            Self::Spawn => Rule::Spawn,
            Self::Error => Rule::Error,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_comes_back_as_it_was() {
        let spec = ClassSpec {
            queue: "video".into(),
            kind: Kind::Command,
            retry: Retry {
                max_attempts: 4,
                on: [Rule::Codes(1, 9), Rule::Signal, Rule::OutOfMemory].into(),
                never: [Rule::Timeout, Rule::Spawn, Rule::Error].into(),
                later: [75].into(),
                ..Retry::default()
            },
            max_losses: 3,
            timeout: Some(Span::from_secs(9)),
            grace: None,
            stall: Some(Span::from_secs(3)),
            stop_on_partition: true,
        };
        let class = decode(ClassId::new(7), &encode(&spec)).unwrap();
        assert_eq!((class.id, &class.spec), (ClassId::new(7), &spec));
        assert!(decode(ClassId::new(7), "{\"queue\":1}").is_err());
    }
}
