//! Which jobs are meant: `7`, `3-9,12`, `last`, in one argument or several.
//!
//! Not here: asking the server which job is the last one (`cmd`), filters such as `--queue` (the server's).

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use hostler_wire::JobId;

/// Most jobs one selection may name: each becomes a request.
pub(crate) const SELECTED_MAX: u64 = 100_000;

/// One argument that names jobs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Selector(Vec<Part>);

/// What stands between two commas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    One(JobId),
    /// Both ends included, the first not above the second.
    Range(JobId, JobId),
    Last,
}

/// The jobs that all selectors of a command line name together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Selected {
    /// Rising, each once.
    pub(crate) ids: Vec<JobId>,
    /// Those named one by one: if such a job does not exist, that is an error. A range may have gaps.
    pub(crate) named: BTreeSet<JobId>,
}

impl Selector {
    /// Whether the newest job must be known to resolve it.
    pub(crate) fn wants_last(&self) -> bool {
        self.0.contains(&Part::Last)
    }
}

/// Puts selectors together. `last` is the newest job; it must be given if one of them wants it.
pub(crate) fn resolve(
    selectors: &[Selector],
    last: Option<JobId>,
) -> Result<Selected, InvalidSelector> {
    let mut ids = BTreeSet::new();
    let mut named = BTreeSet::new();
    let mut total = 0u64;
    for part in selectors.iter().flat_map(|selector| &selector.0) {
        let (first, to) = match *part {
            Part::One(id) => (id, id),
            Part::Range(first, to) => (first, to),
            Part::Last => {
                let id = last.ok_or(InvalidSelector::NoLast)?;
                (id, id)
            }
        };
        total = total.saturating_add(to.raw() - first.raw() + 1);
        if total > SELECTED_MAX {
            return Err(InvalidSelector::TooMany);
        }
        if first == to {
            named.insert(first);
        }
        ids.extend((first.raw()..=to.raw()).filter_map(JobId::new));
    }
    Ok(Selected {
        ids: ids.into_iter().collect(),
        named,
    })
}

impl FromStr for Selector {
    type Err = InvalidSelector;

    fn from_str(text: &str) -> Result<Self, InvalidSelector> {
        text.split(',')
            .map(|part| parse_part(part.trim()))
            .collect::<Result<Vec<_>, _>>()
            .map(Self)
    }
}

fn parse_part(text: &str) -> Result<Part, InvalidSelector> {
    let id = |text: &str| {
        text.trim()
            .parse::<JobId>()
            .or(Err(InvalidSelector::NoId(text.trim().to_owned())))
    };
    if text == "last" {
        return Ok(Part::Last);
    }
    let Some((first, to)) = text.split_once('-') else {
        return id(text).map(Part::One);
    };
    let (first, to) = (id(first)?, id(to)?);
    if first > to {
        return Err(InvalidSelector::Backwards(first, to));
    }
    Ok(Part::Range(first, to))
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, part) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            match part {
                Part::One(id) => write!(f, "{id}")?,
                Part::Range(first, to) => write!(f, "{first}-{to}")?,
                Part::Last => f.write_str("last")?,
            }
        }
        Ok(())
    }
}

/// Why a text names no jobs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum InvalidSelector {
    NoId(String),
    Backwards(JobId, JobId),
    TooMany,
    NoLast,
}

impl fmt::Display for InvalidSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoId(text) => write!(
                f,
                "\"{text}\" is no job: write an id (7), a range (3-9), a list (3-9,12) or `last`"
            ),
            Self::Backwards(first, to) => {
                write!(
                    f,
                    "the range {first}-{to} runs backwards: write {to}-{first}"
                )
            }
            Self::TooMany => write!(
                f,
                "more than {SELECTED_MAX} jobs at once; take them in parts"
            ),
            Self::NoLast => f.write_str("there is no job yet, so none is the last"),
        }
    }
}

impl std::error::Error for InvalidSelector {}

/// The numbers of these ids the short way: `3-9,12`.
pub(crate) fn compact(ids: &[JobId]) -> String {
    let mut text = String::new();
    let mut rest = ids;
    while let [first, tail @ ..] = rest {
        let run = tail
            .iter()
            .zip(first.raw() + 1..)
            .take_while(|(id, next)| id.raw() == *next)
            .count();
        if !text.is_empty() {
            text.push(',');
        }
        text.push_str(&first.to_string());
        if run > 0 {
            text.push_str(&format!("-{}", tail[run - 1]));
        }
        rest = &tail[run..];
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(raw: u64) -> JobId {
        JobId::new(raw).unwrap()
    }

    fn raw(selected: &Selected) -> Vec<u64> {
        selected.ids.iter().map(|id| id.raw()).collect()
    }

    #[test]
    fn lists_ranges_and_last_name_each_job_once_in_order() {
        let selectors = ["12,3-5", "last", "4"].map(|text| text.parse().unwrap());
        let selected = resolve(&selectors, Some(id(9))).unwrap();
        assert_eq!(raw(&selected), [3, 4, 5, 9, 12]);
        assert_eq!(selected.named, BTreeSet::from([id(4), id(9), id(12)]));
    }

    #[test]
    fn what_names_no_job_is_refused_with_the_reason() {
        for text in [
            "",
            "0",
            "-3",
            "3-",
            "3--4",
            "a",
            "1,,2",
            "9007199254740992",
            "Last",
        ] {
            assert!(text.parse::<Selector>().is_err(), "{text:?}");
        }
        assert_eq!(
            "9-3".parse::<Selector>(),
            Err(InvalidSelector::Backwards(id(9), id(3)))
        );
    }

    #[test]
    fn last_without_any_job_and_a_range_beyond_the_bound_are_refused() {
        let last: Selector = "last".parse().unwrap();
        assert!(last.wants_last());
        assert_eq!(resolve(&[last], None), Err(InvalidSelector::NoLast));
        let wide: Selector = "1-9007199254740991".parse().unwrap();
        assert_eq!(
            resolve(&[wide.clone(), wide], None),
            Err(InvalidSelector::TooMany)
        );
    }

    fn part() -> impl Strategy<Value = Part> {
        prop_oneof![
            (1u64..1000).prop_map(|n| Part::One(id(n))),
            (1u64..1000, 0u64..50).prop_map(|(n, more)| Part::Range(id(n), id(n + more))),
            Just(Part::Last),
        ]
    }

    proptest! {
        #[test]
        fn a_selector_survives_being_printed(parts in prop::collection::vec(part(), 1..8)) {
            let selector = Selector(parts);
            prop_assert_eq!(selector.to_string().parse::<Selector>().unwrap(), selector);
        }

        #[test]
        fn no_text_panics(text in "[-0-9,lasta ]{0,24}") {
            if let Ok(selector) = text.parse::<Selector>() {
                drop(resolve(&[selector], Some(id(7))));
            }
        }

        #[test]
        fn the_short_form_names_the_same_jobs(raws in prop::collection::btree_set(1u64..200, 1..60)) {
            let ids: Vec<_> = raws.iter().map(|n| id(*n)).collect();
            let selector: Selector = compact(&ids).parse().unwrap();
            prop_assert_eq!(resolve(&[selector], None).unwrap().ids, ids);
        }
    }
}
